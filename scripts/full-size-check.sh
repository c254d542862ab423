#!/bin/sh
# Makes a random LLaVA-Gemma 2B or Gemma 3 4B with a random SAE, converts it, and compares it with transformers, and the
# conversion with `cp`:
#   sh scripts/full-size-check.sh [llava-gemma | gemma3] [FOLDER]
# llava-gemma is the default. FOLDER (target/full-size, or target/full-size-gemma3) takes 30 GB, and is used again;
# Linux, Python 3.11 or later. PYTHON names an interpreter that has scripts/full-size/requirements.txt, or
# requirements-gemma3.txt; without it, one is made in FOLDER with pip.
set -eu
model=llava-gemma
case ${1:-} in llava-gemma | gemma3) model=$1 && shift ;; esac
[ "$model" = llava-gemma ] || suffix=-$model
. "$(dirname "$0")/full-size/setup.sh"
cargo build --release --locked
exec "$PYTHON" scripts/full-size/check.py "$model" "$folder"
