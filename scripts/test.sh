#!/bin/sh
# Everything that must pass: formatting, lints, tests, the example, documentation. One cargo profile, so
# that llama.cpp is built once.
set -eu
browser=wanted
. "$(dirname "$0")/setup.sh"

# What the demo builds has the features that it has here, else cargo compiles it again, llama.cpp
# included. Where this fails, the last lines of `[dependencies]` in Cargo.toml ask for too little.
features() {
    cargo tree --locked --workspace --prefix none --no-dedupe --format '{p} {f}' --edges "$1" |
        sed 's/ (\*)$//' | sort -u
}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
features normal,build >"$work/program"
features normal,build,dev >"$work/tests"
if comm -23 "$work/program" "$work/tests" | grep . >&2; then
    echo "error: the tests ask these for other features than the program does" >&2
    exit 1
fi

cargo fmt --all --check
cargo clippy --release --locked --workspace --all-targets -- -D warnings
cargo test --release --locked --workspace --no-fail-fast
cargo fmt --check --manifest-path examples/library/Cargo.toml
sh scripts/example.sh >/dev/null
RUSTDOCFLAGS="-D warnings" cargo doc --release --locked --workspace --no-deps
