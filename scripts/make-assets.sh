#!/bin/sh
# Converts the demo checkpoint to the files that are embedded in the program.
set -eu
cd "$(dirname "$0")/.."
demo=tests/fixtures/demo
cargo build --release -p gguf-tools
target/release/gguf-tools llava "$demo/llava" -o assets --type f16 --mmproj-type f16 --force
target/release/gguf-tools sae "$demo/sae" -o assets/sae-f16.gguf --type f16 \
    --labels "$demo/class-labels.json" "$demo/labels.json" --force
