# Sourced by the other scripts: goes to the project's folder and installs what llama.cpp's build
# needs (cmake, libclang, a C++ compiler), saying what it does.
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
if ! command -v cargo >/dev/null; then
    echo "error: cargo is missing" >&2
    echo "hint: install Rust 1.88 or later from https://rustup.rs and run this again" >&2
    exit 1
fi
