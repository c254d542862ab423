#!/bin/sh
# Makes a random LLaVA-Gemma 2B with a random SAE, converts it, and compares it with transformers, and the
# conversion with `cp`:
#   sh scripts/full-size-check.sh [FOLDER]
# FOLDER (target/full-size by default) takes 30 GB, and is used again; Linux, Python 3.11 or later.
# PYTHON names an interpreter that has scripts/full-size/requirements.txt; without it, one is made in
# FOLDER with pip.
set -eu
. "$(dirname "$0")/full-size/setup.sh"
cargo build --release --locked
exec "$PYTHON" scripts/full-size/check.py "$folder"
