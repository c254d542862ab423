# Sourced by the other scripts: goes to the project's folder and installs what llama.cpp's build
# needs (cmake, libclang, a C++ compiler), and a browser where `browser=wanted`, saying what it does.
cd "$(dirname "$0")/.."

has_libclang() {
    [ -n "${LIBCLANG_PATH:-}" ] && return 0
    for found in /usr/lib/llvm*/lib/libclang*.so* /usr/lib/*/libclang*.so* /usr/lib*/libclang*.so* \
        /opt/homebrew/opt/llvm/lib/libclang.dylib /usr/local/opt/llvm/lib/libclang.dylib \
        /Library/Developer/CommandLineTools/usr/lib/libclang.dylib; do
        [ -e "$found" ] && return 0
    done
    return 1
}

has_everything() {
    command -v cmake >/dev/null && command -v c++ >/dev/null && has_libclang
}

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

if ! has_everything; then
    if command -v apt-get >/dev/null; then
        echo "setup: installing cmake, libclang and a C++ compiler with apt-get" >&2
        as_root apt-get update -qq
        as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq \
            build-essential cmake libclang-dev >/dev/null
    elif command -v brew >/dev/null; then
        echo "setup: installing cmake and llvm with brew" >&2
        brew install cmake llvm
    else
        echo "error: building llama.cpp needs cmake, libclang and a C++ compiler" >&2
        echo "hint: install them with your system's package manager and run this again" >&2
        exit 1
    fi
fi

has_browser() {
    for name in chromium chromium-browser google-chrome google-chrome-stable chrome; do
        command -v "$name" >/dev/null && return 0
    done
    [ -n "${CHROME:-}" ] || [ -e "/Applications/Google Chrome.app" ] || [ -e /Applications/Chromium.app ]
}

if [ "${browser:-}" = wanted ] && ! has_browser; then
    if command -v apt-get >/dev/null; then
        echo "setup: installing chromium with apt-get, for the test of pages in a browser" >&2
        as_root apt-get update -qq &&
            as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium >/dev/null ||
            echo "setup: chromium cannot be installed: that test will be skipped" >&2
    else
        echo "setup: there is no Chromium: the test of pages in a browser will be skipped" >&2
    fi
fi
if ! command -v cargo >/dev/null; then
    echo "error: cargo is missing" >&2
    echo "hint: install Rust 1.88 or later from https://rustup.rs and run this again" >&2
    exit 1
fi
