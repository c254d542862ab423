#!/bin/sh
# What features and steering cost, beside plain llama.cpp and beside Python, as Markdown:
#   sh scripts/bench.sh [FOLDER [ROUNDS]]
# It makes a random LLaVA-Gemma 2B in FOLDER (target/full-size by default, 20 GB), or uses the one of
# scripts/full-size-check.sh; Linux, Python 3.11 or later. PYTHON is as there.
set -eu
. "$(dirname "$0")/full-size/setup.sh"
cargo build --release --locked --workspace
cargo build --release --locked --example speed --example serve_speed
exec "$PYTHON" scripts/bench/bench.py "$folder" ${2:+"$2"}
