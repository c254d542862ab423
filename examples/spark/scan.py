"""Tabulate the features of a folder of pictures with Spark.

    spark-submit scan.py PICTURES TABLES [--partitions N] [OPTION OF `llava-sae-cpp scan --worker`]…

Each task starts a worker of `llava-sae-cpp scan` and gives it the pictures of a partition. TABLES becomes a folder of
Parquet files, whose rows are those of `llava-sae-cpp scan PICTURES`, in another order. Needs pyspark, pandas and
pyarrow, and the program on the path of every executor.
"""

import argparse
import base64
import json
import subprocess
import sys
from urllib.parse import unquote, urlsplit

import pyarrow as pa
from pyspark.sql import SparkSession

PICTURES = "*.{png,jpg,jpeg,gif,webp,bmp,tif,tiff,PNG,JPG,JPEG}"
SCHEMA = "path string, class string, feature int, label string, sum float, max float, count int"


def scanner(folder, options):
    """A function from pictures to rows, which runs on the executors."""

    def scan(batches):
        command = ["llava-sae-cpp", "scan", "--worker", *options]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as worker:
            answers = pa.ipc.open_stream(worker.stdout)
            for batch in batches:
                for path, data in zip(batch["path"], batch["content"]):
                    name = unquote(urlsplit(path).path).removeprefix(folder).lstrip("/")
                    question = {"path": name, "data": base64.b64encode(data).decode()}
                    worker.stdin.write(json.dumps(question).encode() + b"\n")
                    worker.stdin.flush()
                    rows = answers.read_next_batch().to_pandas()
                    for error in rows["error"].dropna():
                        print(f"skipped: {error}", file=sys.stderr)
                    yield rows[rows["error"].isna()].drop(columns=["input", "error"])
            worker.stdin.close()

    return scan


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("pictures", help="a folder, as an absolute path or an address that Spark reads")
    parser.add_argument("tables")
    parser.add_argument("--partitions", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1, help="of each worker")
    args, options = parser.parse_known_args()
    spark = SparkSession.builder.appName("features of pictures").getOrCreate()
    files = spark.read.format("binaryFile").option("recursiveFileLookup", True)
    pictures = files.option("pathGlobFilter", PICTURES).load(args.pictures)
    scan = scanner(urlsplit(args.pictures).path, [f"--threads={args.threads}", *options])
    rows = pictures.repartition(args.partitions).mapInPandas(scan, SCHEMA)
    rows.write.parquet(args.tables)
    spark.stop()


if __name__ == "__main__":
    main()
