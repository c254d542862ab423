#!/bin/sh
# How copies of the program get along: one alone, two and four at once, and one beside a busy loop on each
# processor. N copies may take 1.3 × N times as long as one; busy loops count as a copy. Fails if more.
#   sh scripts/check-neighbours.sh [MODEL OPTIONS]      the embedded demo, or `-d FOLDER -n 8`
set -eu
. "$(dirname "$0")/setup.sh"
cargo build --release --locked --workspace
exec python3 - "$@" <<'END'
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROUNDS = 5
LIMIT = 1.3
PICTURES = sorted(Path("assets/pictures").glob("*.png"))
options = sys.argv[1:]
# A large model takes seconds for one picture.
pictures = PICTURES[:1] if options else PICTURES
runs = [f"target/release/llava-sae-cpp -q --image-cache 0 {' '.join(options)} {picture}" for picture in pictures]
copy = ["sh", "-ec", "\n".join(runs)]


def seconds(n_copies: int) -> float:
    start = time.monotonic()
    copies = [subprocess.Popen(copy, stdout=subprocess.DEVNULL) for _ in range(n_copies)]
    if any(process.wait() for process in copies):
        sys.exit("error: a copy failed")
    return time.monotonic() - start


def beside_busy_loops() -> float:
    loops = [subprocess.Popen(["sh", "-c", "while :; do :; done"]) for _ in os.sched_getaffinity(0)]
    try:
        return seconds(1)
    finally:
        for loop in loops:
            loop.kill()


cases = {
    "one copy": (1, lambda: seconds(1)),
    "two copies": (2, lambda: seconds(2)),
    "four copies": (4, lambda: seconds(4)),
    "one copy beside busy loops": (2, beside_busy_loops),
}
seconds(1)  # brings the files into memory
samples = {name: [] for name in cases}
for _ in range(ROUNDS):
    for name, (_, measure) in cases.items():
        samples[name].append(measure())
alone = samples["one copy"]
worst = 0.0
print("| | s | times one copy, by their number |\n| --- | --- | --- |")
for name, (n_copies, _) in cases.items():
    share = statistics.median(a / b / n_copies for a, b in zip(samples[name], alone))
    worst = max(worst, share)
    times = samples[name]
    print(f"| {name} | {statistics.median(times):.2f} ({min(times):.2f} to {max(times):.2f}) | {share:.2f} |")
sys.exit(f"error: {worst:.2f} is more than {LIMIT}" if worst > LIMIT else 0)
END
