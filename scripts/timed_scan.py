"""Scans of drawings, timed."""

import os
import resource
import subprocess
import time

import numpy as np

from drawings import drawing

PROGRAM = os.environ["PROGRAM"]


def draw(folder, n_drawings):
    """Writes drawings into a new folder, and gives their names."""
    folder.mkdir()
    names = [f"{i:05}.png" for i in range(n_drawings)]
    for seed, name in enumerate(names):
        (folder / name).write_bytes(drawing(seed))
    return names


def scan(folder, names, table, options):
    """Scans by names on stdin; the seconds that it took, and those of processor time."""

    def now():
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return np.array([time.perf_counter(), used.ru_utime + used.ru_stime])

    start = now()
    command = [PROGRAM, "scan", "-", "-o", table, "--force", *options]
    subprocess.run(command, cwd=folder, input="\n".join(names).encode(), check=True)
    return now() - start
