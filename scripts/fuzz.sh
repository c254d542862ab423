#!/bin/sh
# Runs fuzz targets one after the other, 600 seconds each: sh scripts/fuzz.sh [-t SECONDS] [TARGET...]
# An input that panics, hangs or takes too much memory is left in fuzz/artifacts/TARGET.
set -eu
cd "$(dirname "$0")/../fuzz"
seconds=600
if [ "${1:-}" = -t ]; then
    seconds=$2
    shift 2
fi
[ $# -gt 0 ] || set -- gguf labels llava_folder npz sae_folder tokenizer_json tokenizer_model

# Inputs and outputs are files, which are fastest in memory.
memory=/dev/shm
[ -d "$memory" ] || memory=${TMPDIR:-/tmp}
TMPDIR=$(mktemp -d "$memory/gguf-tools-fuzz-XXXXXX")
export TMPDIR
trap 'rm -rf "$TMPDIR"' EXIT
trap 'exit 130' INT TERM

cargo run --release --quiet --locked --example seeds -- corpus
failed=0
for target; do
    mkdir -p "artifacts/$target"
    nice cargo +nightly fuzz run --fuzz-dir . "$target" -- -max_total_time="$seconds" \
        -max_len=20000 -timeout=10 -rss_limit_mb=1024 -malloc_limit_mb=128 \
        -print_final_stats=1 || failed=1
done
exit "$failed"
