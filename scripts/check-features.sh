#!/bin/sh
# Checks that the main crate compiles without warnings with none of its features, and with each alone; llama.cpp is not
# built again. Devices' features are left to `test-cuda.sh` and its like.
set -eu
. "$(dirname "$0")/setup.sh"
for features in "" demo pull scan serve; do
    echo "features: ${features:-none}" >&2
    cargo clippy --release --locked --quiet --package llava-sae-cpp --no-default-features --features "$features" -- \
        -D warnings
done
