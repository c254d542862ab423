#!/bin/sh
# Everything that must pass: formatting, lints, tests, documentation. One cargo profile, so that
# llama.cpp is built once.
set -eu
browser=wanted
. "$(dirname "$0")/setup.sh"
cargo fmt --all --check
cargo clippy --release --locked --workspace --all-targets -- -D warnings
cargo test --release --locked --workspace --no-fail-fast
RUSTDOCFLAGS="-D warnings" cargo doc --release --locked --workspace --no-deps
