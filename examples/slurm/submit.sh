#!/bin/sh
# Scans a folder of pictures in so many tasks of a Slurm array, and joins what they give into FOLDER/features.parquet.
# The program has to be on the path, and FOLDER where every node sees it.
#   sh submit.sh TASKS FOLDER PICTURES [OPTION OF `llava-sae-cpp scan`]…
set -eu
tasks=$1
OUT=$2
export OUT
shift 2
here=$(dirname "$0")
mkdir -p "$OUT"
scan=$(sbatch --parsable --array="1-$tasks" "$here/scan.sh" "$@")
sbatch --dependency="afterok:$scan" "$here/merge.sh"
