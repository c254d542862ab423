#!/bin/sh
# Instructions of the eval callback for a generated token of the demo, beside those of the whole token, as
# Markdown; valgrind counts them, so that they do not depend on how busy the machine is:
#   sh scripts/count-instructions.sh
# It builds llama.cpp once more in target/valgrind, with instructions that valgrind knows (x86-64 only).
set -eu
. "$(dirname "$0")/setup.sh"
if ! command -v valgrind >/dev/null; then
    command -v apt-get >/dev/null || { echo "error: valgrind is missing" >&2; exit 1; }
    echo "count-instructions: installing valgrind with apt-get" >&2
    as_root apt-get update -qq
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq valgrind >/dev/null
fi
RUSTFLAGS="-C target-cpu=x86-64-v3" cargo build --release --locked --target-dir target/valgrind
program=target/valgrind/release/llava-sae-cpp
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# Instructions of a run of $1 tokens: `all`, or those of the callback.
count() {
    tokens=$1 what=$2
    shift 2
    case $what in
    all) set -- --collect-atstart=yes "$program" "$@" ;;
    callback) set -- --collect-atstart=no '--toggle-collect=*on_eval*' "$program" "$@" ;;
    esac
    valgrind --tool=callgrind --callgrind-out-file="$scratch/out" "$@" -q -t 1 -n "$tokens" \
        -p "Tell a long story." 2>&1 >/dev/null | sed -n 's/.*Collected : \([0-9]*\).*/\1/p'
}

# The same for each token behind the eighth.
per_token() {
    short=$(count 8 "$@")
    long=$(count 24 "$@")
    echo $(((long - short) / 16))
}

echo "| a token of the demo, one thread | instructions of the callback |"
echo "| --- | --- |"
total=$(per_token all)
row() {
    name=$1
    shift
    n=$(per_token callback "$@")
    share=$(awk "BEGIN { printf \"%.2f\", 100 * $n / $total }")
    echo "| $name | $n ($share %) |"
}
row "nothing is wanted"
row "an addition at generated tokens" --steer 1:1 --at generated
row "a clamp at generated tokens" --clamp 1:1 --at generated
row "all rows and their features" capture -o "$scratch/rows.safetensors"
echo
echo "The whole token takes $total."
