#!/bin/sh
# Reads files of `scan`, of one SAE and of several, with DuckDB, Polars and pandas, in a Python environment made
# for it, compares each row with what `features` says, and asks `top` about what they write of it. No test run
# needs it.
set -eu
. "$(dirname "$0")/setup.sh"
cargo build --release --locked --workspace
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet duckdb polars pandas pyarrow
mkdir -p "$work/pictures/food" "$work/pictures/other"
cp assets/pictures/apple.png assets/pictures/carrot-mushroom.png "$work/pictures/food"
cp assets/pictures/boat.png "$work/pictures/other"
cp assets/pictures/frog.png "$work/pictures"
root=$PWD
program=$root/target/release/llava-sae-cpp
cd "$work"
"$root/target/release/gguf-tools" sae "$root/tests/fixtures/demo/sae" --hook-name blocks.3.hook_mlp_out \
    -o mlp.gguf > /dev/null
cp "$root/assets/sae-f16.gguf" resid.gguf

# Scans with these options, and writes what `features` says.
scan_and_look() {
    name=$1
    shift
    "$program" scan --quiet "$@" pictures -o "$name.parquet"
    for pool in sum max count; do
        "$program" features --quiet --json --rank activation --top 100000 --pool $pool "$@" \
            pictures/*.png pictures/*/*.png > "$name-$pool.jsonl"
    done
}
scan_and_look one
scan_and_look several --no-probe -d "$root/assets" --sae resid.gguf --sae mlp.gguf
export PROGRAM="$program"
venv/bin/python - <<'END'
import json
import os
import subprocess

import duckdb
import numpy as np
import pandas as pd
import polars as pl

COLUMNS = ["path", "class", "feature", "label", "sum", "max", "count"]
SAES = ["resid", "mlp"]


def class_of(path):
    return path.split("/")[-2] if "/" in path else None


def wanted_rows(name):
    """What `features` says, as rows of the table."""
    rows = {}
    for pool in ["sum", "max", "count"]:
        for line in open(f"{name}-{pool}.jsonl"):
            report = json.loads(line)
            path = report["image"].removeprefix("pictures/")
            for entry in report["features"]:
                *sae, feature = str(entry["feature"]).split("/")
                key = (path, tuple(map(SAES.index, sae)), int(feature))
                row = rows.setdefault(key, {"sae": sae, "label": entry["label"]})
                row[pool] = np.float32(entry["score"])
    for (path, _, feature), row in sorted(rows.items(), key=lambda item: item[0]):
        values = (row["label"], row["sum"], row["max"], int(row["count"]))
        yield (path, class_of(path), *row["sae"], feature, *values)


def check(name, version, rows, types, wanted):
    rows = [tuple(None if value != value else value for value in row) for row in rows]
    assert rows == wanted, f"{name}: {next(pair for pair in zip(rows, wanted) if pair[0] != pair[1])}"
    print(f"{name} {version}: {len(rows)} rows as expected; {types}")


def check_top(name, file, feature, firing):
    command = [os.environ["PROGRAM"], "top", file, "--feature", feature, "--top", "100", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    report = json.loads(done.stdout)
    assert str(report["feature"]) == feature, report
    assert [image["path"] for image in report["images"]] == [path for _, path in firing], name
    assert report["n_images"] is None and "is not known" in done.stderr, done.stderr
    print(f"top reads what {name} writes")


def check_table(name, columns):
    file = f"{name}.parquet"
    wanted = list(wanted_rows(name))
    table = duckdb.sql(f"select * from '{file}'")
    assert table.columns == columns
    check("DuckDB", duckdb.__version__, table.fetchall(), [str(kind) for kind in table.types], wanted)
    table = pl.read_parquet(file)
    assert table.columns == columns
    check("Polars", pl.__version__, table.rows(), [str(kind) for kind in table.dtypes], wanted)
    table = pd.read_parquet(file)
    assert list(table.columns) == columns
    rows = table.itertuples(index=False, name=None)
    check("pandas", pd.__version__, rows, [str(kind) for kind in table.dtypes], wanted)

    # What they write of the rows with `max` above 1, `top` reads.
    value = columns.index("max")
    names = slice(2, columns.index("feature") + 1)
    strong = [row for row in wanted if row[value] > 1]
    subject = strong[-1][names]
    firing = sorted((-row[value], row[0]) for row in strong if row[names] == subject)
    feature = "/".join(map(str, subject))
    duckdb.sql(f"copy (select * from '{file}' where max > 1) to 'duckdb.parquet'")
    check_top("DuckDB", "duckdb.parquet", feature, firing)
    pl.read_parquet(file).filter(pl.col("max") > 1).write_parquet("polars.parquet", compression="snappy")
    check_top("Polars", "polars.parquet", feature, firing)
    rows = pd.read_parquet(file)
    rows[rows["max"] > 1].to_parquet("pandas.parquet")
    check_top("pandas", "pandas.parquet", feature, firing)
    rows[rows["max"] > 1].to_parquet(file)
    check_top("pandas, in place", file, feature, firing)


check_table("one", COLUMNS)
check_table("several", [*COLUMNS[:2], "sae", *COLUMNS[2:]])
END
