#!/bin/sh
# Reads a file of `scan` with DuckDB, Polars and pandas, in a Python environment made for it, compares each
# row with what `features` says, and asks `top` about what they write of it. No test run needs it.
set -eu
. "$(dirname "$0")/setup.sh"
cargo build --release --locked
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet duckdb polars pandas pyarrow
mkdir -p "$work/pictures/food" "$work/pictures/other"
cp assets/pictures/apple.png assets/pictures/carrot-mushroom.png "$work/pictures/food"
cp assets/pictures/boat.png "$work/pictures/other"
cp assets/pictures/frog.png "$work/pictures"
program=$PWD/target/release/llava-sae-cpp
cd "$work"
"$program" scan --quiet pictures -o features.parquet
export PROGRAM="$program"
for pool in sum max count; do
    "$program" features --quiet --json --rank activation --top 100000 --pool $pool \
        pictures/*.png pictures/*/*.png > $pool.jsonl
done
venv/bin/python - <<'END'
import json
import os
import subprocess

import duckdb
import numpy as np
import pandas as pd
import polars as pl

FILE = "features.parquet"
COLUMNS = ["path", "class", "feature", "label", "sum", "max", "count"]

expected = {}
for pool in ["sum", "max", "count"]:
    for line in open(f"{pool}.jsonl"):
        report = json.loads(line)
        path = report["image"].removeprefix("pictures/")
        for entry in report["features"]:
            row = expected.setdefault((path, entry["feature"]), {"label": entry["label"]})
            row[pool] = np.float32(entry["score"])


def class_of(path):
    return path.split("/")[-2] if "/" in path else None


wanted = [
    (path, class_of(path), feature, row["label"], row["sum"], row["max"], int(row["count"]))
    for (path, feature), row in sorted(expected.items())
]


def check(name, version, rows, types):
    rows = [tuple(None if value != value else value for value in row) for row in rows]
    assert rows == wanted, f"{name}: {next(pair for pair in zip(rows, wanted) if pair[0] != pair[1])}"
    print(f"{name} {version}: {len(rows)} rows as expected; {types}")


table = duckdb.sql(f"select * from '{FILE}'")
assert table.columns == COLUMNS
check("DuckDB", duckdb.__version__, table.fetchall(), [str(kind) for kind in table.types])
table = pl.read_parquet(FILE)
assert table.columns == COLUMNS
check("Polars", pl.__version__, table.rows(), [str(kind) for kind in table.dtypes])
table = pd.read_parquet(FILE)
assert list(table.columns) == COLUMNS
check("pandas", pd.__version__, table.itertuples(index=False, name=None), [str(kind) for kind in table.dtypes])

# What they write of the rows with `max` above 1, `top` reads.
strong = [row for row in wanted if row[5] > 1]
feature = strong[0][2]
firing = sorted((-row[5], row[0]) for row in strong if row[2] == feature)


def check_top(name, file):
    command = [os.environ["PROGRAM"], "top", file, "--feature", str(feature), "--top", "100", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    report = json.loads(done.stdout)
    assert [image["path"] for image in report["images"]] == [path for _, path in firing], name
    assert report["n_images"] is None and "is not known" in done.stderr, done.stderr
    print(f"top reads what {name} writes")


duckdb.sql(f"copy (select * from '{FILE}' where max > 1) to 'duckdb.parquet'")
check_top("DuckDB", "duckdb.parquet")
pl.read_parquet(FILE).filter(pl.col("max") > 1).write_parquet("polars.parquet", compression="snappy")
check_top("Polars", "polars.parquet")
rows = pd.read_parquet(FILE)
rows[rows["max"] > 1].to_parquet("pandas.parquet")
check_top("pandas", "pandas.parquet")
rows[rows["max"] > 1].to_parquet(FILE)
check_top("pandas, in place", FILE)
END
