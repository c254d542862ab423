#!/bin/sh
# Mixed requests to the server with the demo model for an hour, or for MINUTES: streams that are dropped, pictures that
# are broken, queues that are full, 100 connections at once, slow readers and senders. All answers are checked, memory
# may grow by 3 % from minute 10 on, or from half of a shorter time, and then the server is killed, started again, and
# ended under load. Needs Python 3.11 and Linux. PROGRAM names a program that is built already.
#   sh scripts/soak.sh [MINUTES]
set -eu
. "$(dirname "$0")/program.sh"
exec python3 scripts/clients/soak.py "${1:-60}"
