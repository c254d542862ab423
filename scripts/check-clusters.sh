#!/bin/sh
# The examples for clusters, for real: a local Ray cluster of three nodes, Spark with two executors, Slurm on this
# machine. Each scans thousands of drawings with the demo model; a worker is killed in the middle and replaced; what
# comes out has to equal one run of `scan`. Linux. The first time it installs Ray and PySpark from PyPI below `target/`
# (1 GB), and Java, munge and Slurm with apt-get where they are missing. PROGRAM names a program that is built already.
#   sh scripts/check-clusters.sh [PICTURES [ray | spark | slurm]…]
set -eu
. "$(dirname "$0")/setup.sh"
if [ -z "${PROGRAM:-}" ]; then
    cargo build --release --locked --workspace
    PROGRAM=$PWD/target/release/llava-sae-cpp
fi
export PROGRAM

pictures=${1:-2000}
[ $# -gt 0 ] && shift
[ $# -gt 0 ] || set -- ray spark slurm

packages=
for engine; do
    case $engine in
    spark) command -v java >/dev/null || packages="$packages default-jre-headless" ;;
    slurm) command -v slurmd >/dev/null || packages="$packages munge slurm-wlm" ;;
    esac
done
if [ -n "$packages" ]; then
    echo "check-clusters: installing with apt-get:$packages" >&2
    as_root apt-get update -qq
    # shellcheck disable=SC2086 # a list of words
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $packages >/dev/null
fi
venv=target/check-clusters
[ -e "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/pip" install --quiet "ray[data]==2.60.0" pyspark==4.3.0 "pandas<3" pyarrow
exec "$venv/bin/python" scripts/check-clusters.py "$pictures" "$@"
