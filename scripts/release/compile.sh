#!/bin/sh
# Run by scripts/release.sh in its Debian: compiles what the packages hold, below /build/target.
set -eu
# The Python module is made for every Python from 3.10 on, and asks none.
export CARGO_HOME=/build/cargo CARGO_NET_OFFLINE=true PYO3_NO_PYTHON=1
export CMAKE_CXX_COMPILER_LAUNCHER=/build/source/scripts/release/launch.sh
# That Debian's cmake is too old for .cargo/unity.cmake.
if [ ! -x /build/cmake/bin/cmake ]; then
    python3 -m venv /build/cmake
    /build/cmake/bin/pip install -q --no-index --find-links /build/downloads cmake
fi
PATH=/build/rust/bin:/build/cmake/bin:$PATH
cd /build/source

# build NAME RUSTC_OPTIONS C_OPTIONS PACKAGES...
build() {
    echo "release: compiling for $1" >&2
    export CARGO_TARGET_DIR="/build/target/$1" RUSTFLAGS="$2 -C strip=symbols" CFLAGS="$3" CXXFLAGS="$3"
    shift 3
    # Without a named target, what only runs while this compiles would be compiled for other processors too.
    cargo build --release --locked --quiet --target x86_64-unknown-linux-gnu "$@"
}

# What chooses, and what computes little.
build any "-C target-cpu=x86-64" "" --package llava-sae-launcher --package gguf-tools

# Names of processors would ask for more than the table says, and GCC 10 does not know them all. Unless it is told
# otherwise, it takes each vector of 32 bytes in two halves, for processors older than the table's.
sed '/^#/d' launcher/processors.txt | while read -r name features; do
    rust=$(echo "+$features" | sed 's/ /,+/g')
    c="$(echo "-m$features" | sed 's/ / -m/g') -mno-avx256-split-unaligned-load -mno-avx256-split-unaligned-store"
    build "$name" "-C target-feature=$rust" "$c" --package llava-sae-cpp --package llava-sae-python </dev/null
done
