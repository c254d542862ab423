#!/bin/sh
# One worker of `scan` on thousands of drawings with the demo model: answers equal the table of a scan, memory may grow
# by 3 % in the second half, and the rate, compared by turns, has to be 0.97 of the scan's or more. Linux; the first
# time it installs pyarrow and NumPy from PyPI below `target/`. PROGRAM names a program that is built already.
#   sh scripts/check-worker.sh [PICTURES [ROUNDS]]
set -eu
. "$(dirname "$0")/program.sh"
venv=target/check-worker
[ -e "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/pip" install --quiet numpy pyarrow
exec "$venv/bin/python" scripts/check-worker.py "${1:-20000}" "${2:-5}"
