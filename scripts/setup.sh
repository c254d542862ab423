# Sourced by the other scripts: goes to the project's folder and sees to what llama.cpp's build needs
# (cmake, libclang, a C++ compiler), and to a browser where `browser=wanted`. What is missing is
# installed with apt-get or brew, which is said; where that cannot be, it is named, and the script ends.
cd "$(dirname "$0")/.." || exit

has_libclang() {
    [ -n "${LIBCLANG_PATH:-}" ] && return 0
    # `libclang-cpp.so`, the library of clang's tools, is another, which many systems have alone.
    for found in /usr/lib/llvm*/lib/libclang.so* /usr/lib/llvm*/lib/libclang-[0-9]*.so* \
        /usr/lib/*/libclang.so* /usr/lib/*/libclang-[0-9]*.so* /usr/lib*/libclang.so* /usr/lib*/libclang-[0-9]*.so* \
        /opt/homebrew/opt/llvm/lib/libclang.dylib /usr/local/opt/llvm/lib/libclang.dylib \
        /Library/Developer/CommandLineTools/usr/lib/libclang.dylib; do
        [ -e "$found" ] && return 0
    done
    return 1
}

has_browser() {
    for name in chromium chromium-browser google-chrome google-chrome-stable chrome; do
        command -v "$name" >/dev/null && return 0
    done
    [ -n "${CHROME:-}" ] || [ -e "/Applications/Google Chrome.app" ] || [ -e /Applications/Chromium.app ]
}

# Root, or somebody whom sudo lets or can ask for a password.
can_be_root() {
    [ "$(id -u)" = 0 ] || { command -v sudo >/dev/null && { sudo -n true 2>/dev/null || [ -t 0 ]; }; }
}

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

missing=
command -v c++ >/dev/null || missing="$missing build-essential"
command -v cmake >/dev/null || missing="$missing cmake"
has_libclang || missing="$missing libclang-dev"
if [ "${browser:-}" = wanted ] && ! has_browser; then
    missing="$missing chromium"
fi

if ! command -v cargo >/dev/null; then
    echo "error: cargo is missing" >&2
    echo "hint: install Rust 1.88 or later from https://rustup.rs and run this again" >&2
    exit 1
fi
if [ -n "$missing" ] && command -v apt-get >/dev/null; then
    if ! can_be_root; then
        echo "error: missing:$missing" >&2
        echo "hint: have root run \`apt-get install$missing\`, and run this again" >&2
        exit 1
    fi
    echo "setup: installing with apt-get:$missing" >&2
    as_root apt-get update -qq
    # shellcheck disable=SC2086 # a list of words
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $missing >/dev/null
elif [ -n "${missing# chromium}" ]; then
    if ! command -v brew >/dev/null; then
        echo "error: building llama.cpp needs cmake, libclang and a C++ compiler; missing, by Debian's names:$missing" >&2
        echo "hint: install them with your system's package manager and run this again" >&2
        exit 1
    fi
    echo "setup: installing cmake and llvm with brew" >&2
    brew install cmake llvm
elif [ -n "$missing" ]; then
    echo "setup: there is no Chromium: the test of pages in a browser will be skipped" >&2
fi
