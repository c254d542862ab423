"""A worker of `scan` beside `scan` itself: the same rows, flat memory, and hardly slower.

    check-worker.py PICTURES ROUNDS
"""

import base64
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from timed_scan import PROGRAM, draw, scan

MAX_GROWTH = 1.03
MIN_RATE = 0.97
COMPARED = 400  # pictures of a round of the comparison
OPTIONS = ["--quiet", "--image-cache", "0"]


class Worker:
    """A process that answers questions."""

    def __init__(self, folder):
        command = [PROGRAM, "scan", "--worker", *OPTIONS]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, cwd=folder, stdin=pipe, stdout=pipe)
        self.answers = pa.ipc.open_stream(self.process.stdout)

    def ask(self, questions):
        """The answers to all questions, which are written ahead as far as pipes are long."""

        def write():
            for question in questions:
                self.process.stdin.write(question.encode() + b"\n")
            self.process.stdin.flush()

        writer = threading.Thread(target=write)
        writer.start()
        for _ in questions:
            yield self.answers.read_next_batch()
        writer.join()

    def memory(self):
        """Resident bytes."""
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def processor_time(self):
        """Seconds of processor time so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")

    def end(self):
        self.process.stdin.close()
        assert not self.process.stdout.read().strip(b"\0\xff"), "the stream goes on behind its end"
        assert self.process.wait() == 0


def as_data(folder, name):
    data = base64.b64encode((folder / name).read_bytes()).decode()
    return json.dumps({"path": name, "data": data})


def check_rows(folder, names, worker, work):
    """The answers, put together, are the table."""
    table = work / "rows.parquet"
    scan(folder, names, table, OPTIONS)
    questions = [as_data(folder, name) if i % 2 else name for i, name in enumerate(names)]
    batches = list(worker.ask(questions))
    answered = pa.Table.from_batches(batches).replace_schema_metadata()
    assert answered["error"].null_count == len(answered)
    expected = pq.read_table(table)
    answered = answered.drop_columns(["input", "error"]).cast(expected.schema)
    assert answered.equals(expected), "the worker's rows are not the scan's"
    print(f"rows: {len(expected)} of {len(names)} pictures, equal to the scan's")


def check_rate(folder, names, worker, work, rounds):
    """Rates by turns. The scan's leaves out the time that one picture takes, loading included."""
    table = work / "rate.parquet"

    def now():
        return np.array([time.perf_counter(), worker.processor_time()])

    ratios = []
    for _ in range(rounds):
        start = now()
        for _ in worker.ask(names[1:]):
            pass
        of_worker = now() - start
        of_scan = scan(folder, names, table, OPTIONS) - scan(folder, names[:1], table, OPTIONS)
        ratios.append(of_scan / of_worker)
        per_second = (len(names) - 1) / np.array([of_worker[0], of_scan[0]])
        print("  worker {:.1f}, scan {:.1f} pictures/s".format(*per_second))
    ratio, of_processor = np.median(ratios, axis=0)
    print(f"rate: {ratio:.3f} of the scan's, by processor time {of_processor:.3f} (medians of {rounds})")
    return ratio >= MIN_RATE


def check_memory(folder, names, n_pictures):
    """Half of the pictures by path, half as data, and a broken line now and then."""
    worker = Worker(folder)
    samples = []
    step = max(n_pictures // 40, 1)
    for start in range(0, n_pictures, step):
        questions = []
        for i in range(start, min(start + step, n_pictures)):
            name = names[i % len(names)]
            questions.append(as_data(folder, name) if i % 2 else name)
        questions.append("{broken")
        batches = list(worker.ask(questions))
        assert all(batch["error"].null_count == len(batch) for batch in batches[:-1])
        assert batches[-1]["error"].null_count == 0
        samples.append(worker.memory())
    worker.end()
    warm = samples[len(samples) // 10 :]
    half = len(warm) // 2
    growth = max(warm[half:]) / max(warm[:half])
    megabytes = [f"{sample / 1e6:.1f}" for sample in samples]
    print(f"memory over {n_pictures} pictures, MB: {' '.join(megabytes)}")
    print(f"memory: {growth:.4f} of the first half's in the second")
    return growth <= MAX_GROWTH


def main():
    n_pictures, rounds = map(int, sys.argv[1:])
    with tempfile.TemporaryDirectory() as work:
        work = Path(work)
        folder = work / "drawings"
        names = draw(folder, min(n_pictures, 2000))
        compared = names[:COMPARED]
        worker = Worker(folder)
        check_rows(folder, compared, worker, work)
        is_fast = check_rate(folder, compared, worker, work, rounds)
        worker.end()
        is_flat = check_memory(folder, names, n_pictures)
    sys.exit(not (is_fast and is_flat))


main()
