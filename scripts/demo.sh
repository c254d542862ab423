#!/bin/sh
# Builds the program, describes a picture, lists the features that it activates, and subtracts one.
set -eu
. "$(dirname "$0")/setup.sh"
echo "building (llama.cpp takes some minutes the first time)" >&2
# The packages that the tests build too, so that nothing is compiled twice.
cargo build --release --quiet --locked --workspace
exec target/release/llava-sae-cpp --steer mushroom:-12 --compare --top 5 "$@" \
    assets/pictures/carrot-mushroom.png
