#!/bin/sh
# What a scan costs on this machine: pictures a second, core-hours and bytes for a million pictures, memory. Drawings
# are scanned with the demo model, or with the model that options name. Linux; NumPy and pyarrow are installed below `target/`.
# PROGRAM names a program that is built already.
#   sh scripts/scan-cost.sh [PICTURES [MODEL OPTION]…]
set -eu
. "$(dirname "$0")/program.sh"
venv=target/scan-cost
[ -e "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/pip" install --quiet numpy pyarrow
exec "$venv/bin/python" scripts/scan-cost.py "$@"
