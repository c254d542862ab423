#!/bin/sh
# Joins the shards of OUT, once all of them are done.
#   OUT=features sbatch --dependency=afterok:JOB merge.sh
#SBATCH --job-name=merge
set -eu
exec llava-sae-cpp scan merge "$OUT"/shard-*.parquet -o "$OUT/features.parquet"
