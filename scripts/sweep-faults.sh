#!/bin/sh
# Tries the program on thousands of files with valid headers and wrong contents, for some minutes:
# sh scripts/sweep-faults.sh [--part I/N] [--jobs N] [TEXT]. Prints what is wrong and a table, and
# fails if anything is. A second run goes on; `rm -r target/faults` starts anew.
set -eu
cd "$(dirname "$0")/.."
cargo build --release --locked
cargo run --release --locked --quiet -p gguf-tools --example faults -- "$@"
