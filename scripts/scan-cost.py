"""What a scan costs.

    scan-cost.py [PICTURES [MODEL OPTION]…]
"""

import json
import os
import resource
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from timed_scan import draw, scan

ROUNDS = 3
MILLION = 1e6


def measure(folder, names, table, options):
    """Seconds for a picture, by the clock and of processor time: medians of some rounds. What a scan of the first
    picture alone takes, loading included, is left out."""
    options = ["--quiet", "--image-cache=0", *options]
    rounds = []
    for _ in range(ROUNDS):
        first = scan(folder, names[:1], table, options)
        rounds.append((scan(folder, names, table, options) - first) / (len(names) - 1))
    return np.median(rounds, axis=0)


def main():
    n_pictures = int(sys.argv[1]) if len(sys.argv) > 1 else 400
    options = [str(Path(option).resolve()) if Path(option).exists() else option for option in sys.argv[2:]]
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as work:
        folder, table = Path(work) / "drawings", Path(work) / "features.parquet"
        names = draw(folder, n_pictures)
        for jobs in sorted({1, cores}):
            seconds, of_processor = measure(folder, names, table, [f"--jobs={jobs}", *options])
            hours = of_processor * MILLION / 3600
            print(f"{jobs} at once on {cores} cores: {1 / seconds:.3f} pictures/s; a million: {hours:,.1f} core-hours")
        rows, n_bytes = pq.read_metadata(table).num_rows, table.stat().st_size
        print(f"{rows / n_pictures:.1f} rows a picture, {n_bytes / rows:.2f} bytes a row")
        print(f"a million: {n_bytes / n_pictures * MILLION / 1e9:.2f} GB")
        print(json.dumps(json.loads(table.with_name("features.parquet.json").read_text())["computed_by"]))
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    print(f"peak memory, mapped files included: {peak / 1e6:.2f} GB")


main()
