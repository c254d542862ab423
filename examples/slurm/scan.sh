#!/bin/sh
# A shard of a scan for each task of a Slurm array. What a task has done stays in its folder of parts, so that one that
# fails or is preempted goes on where it stopped.
#   OUT=features sbatch --array=1-64 scan.sh PICTURES [OPTION OF `llava-sae-cpp scan`]…
#SBATCH --job-name=scan
#SBATCH --cpus-per-task=4
#SBATCH --requeue
#SBATCH --open-mode=append
set -eu
shard=$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT
llava-sae-cpp scan "$@" --shard "$shard" --threads "$SLURM_CPUS_PER_TASK" --force \
    -o "$OUT/shard-$SLURM_ARRAY_TASK_ID.parquet" && exit
[ "${SLURM_RESTART_COUNT:-0}" -lt 3 ] || exit 1
exec scontrol requeue "$SLURM_JOB_ID"
