#!/bin/sh
# Converts a demo checkpoint to the files that are embedded in the program:
#   sh scripts/make-assets.sh CHECKPOINT PICTURES OUT
# CHECKPOINT holds `llava/` and `sae/`, PICTURES those that the SAE file's baseline is measured on.
set -eu
checkpoint=$1 pictures=$2 out=$3
program=$(dirname "$0")/../target/release/llava-sae-cpp
"$program" convert --llava "$checkpoint/llava" --sae "$checkpoint/sae" \
    --labels "$checkpoint/sae/labels.json" \
    --type f16 --mmproj-type f16 --sae-type f16 -o "$out" --force
"$program" baseline -d "$out" "$pictures" -o "$out/sae-f16.gguf" --force
