"""Tabulate the features of a folder of pictures on a Ray cluster.

    python scan.py PICTURES TABLES [--workers N] [OPTION OF `llava-sae-cpp scan --worker`]…

Each actor holds a worker of `llava-sae-cpp scan`, so that a model is loaded once. TABLES becomes a folder of Parquet
files, whose rows are those of `llava-sae-cpp scan PICTURES`, in another order. What is in TABLES already is not done
again, but for pictures that could not be read or have no active feature. Needs ray[data] and pyarrow, the program on
the path of every machine, and both folders where every machine sees them.
"""

import argparse
import base64
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import ray

ENDINGS = {".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".tif", ".tiff"}


class Scan:
    """A model that stays loaded."""

    def __init__(self, folder, options):
        self.folder = folder
        self.command = ["llava-sae-cpp", "scan", "--worker", *options]
        self.start()

    def start(self):
        self.worker = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.answers = pa.ipc.open_stream(self.worker.stdout)

    def ask(self, name, data):
        question = {"path": name, "data": base64.b64encode(data).decode()}
        self.worker.stdin.write(json.dumps(question).encode() + b"\n")
        self.worker.stdin.flush()
        return self.answers.read_next_batch()

    def __call__(self, batch):
        answers = []
        for path, data in zip(batch["path"], batch["bytes"]):
            name = Path(path).relative_to(self.folder).as_posix()
            try:
                answers.append(self.ask(name, data))
            except (OSError, StopIteration, pa.ArrowInvalid):
                self.start()  # it was killed, say for its memory; a second time is an error
                answers.append(self.ask(name, data))
        rows = pa.Table.from_batches(answers).replace_schema_metadata()
        for error in rows["error"].drop_null().to_pylist():
            print(f"skipped: {error}", file=sys.stderr)
        return rows.filter(rows["error"].is_null()).drop_columns(["input", "error"])


def paths_in(tables):
    """The pictures whose rows are in `tables`; a file that was not written to its end goes."""
    paths = set()
    for file in tables.glob("*.parquet"):
        try:
            paths.update(pq.read_table(file, columns=["path"])["path"].unique().to_pylist())
        except pa.ArrowInvalid:
            file.unlink()
    return paths


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("pictures", type=Path)
    parser.add_argument("tables", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="of each worker")
    args, options = parser.parse_known_args()
    folder = args.pictures.resolve()
    done = paths_in(args.tables)
    pictures = sorted(path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS)
    left = [str(path) for path in pictures if path.relative_to(folder).as_posix() not in done]
    print(f"{len(left)} of {len(pictures)} pictures are left")
    if not left:
        return
    ray.init()
    rows = ray.data.read_binary_files(left, include_paths=True).map_batches(
        Scan,
        fn_constructor_args=(folder, [f"--threads={args.threads}", *options]),
        batch_size=32,
        concurrency=args.workers,
        num_cpus=args.threads,
    )
    rows.write_parquet(str(args.tables.resolve()), mode="append")


if __name__ == "__main__":
    main()
