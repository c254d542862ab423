#!/bin/sh
# Makes a random LLaVA-Gemma 2B with a random SAE, converts it, runs it, and measures all that beside
# `cp` and transformers:
#   sh scripts/full-size-check.sh [FOLDER]
# FOLDER (target/full-size by default) takes 30 GB, and is used again; Linux, Python 3.11 or later.
# PYTHON names an interpreter that has scripts/full-size/requirements.txt; without it, one is made in
# FOLDER with pip.
set -eu
folder=${1:-}
[ -z "$folder" ] || { mkdir -p "$folder" && folder=$(cd "$folder" && pwd); }
. "$(dirname "$0")/setup.sh"
folder=${folder:-$PWD/target/full-size}
cargo build --release --locked
if [ -z "${PYTHON:-}" ]; then
    PYTHON=$folder/venv/bin/python
    if [ ! -x "$PYTHON" ]; then
        echo "full-size: installing transformers in $folder/venv" >&2
        python3 -m venv "$folder/venv"
        "$PYTHON" -m pip install -q -r scripts/full-size/requirements.txt
    fi
fi
exec "$PYTHON" scripts/full-size/check.py "$folder"
