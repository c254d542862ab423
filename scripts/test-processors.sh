#!/bin/sh
# All tests as they run on other processors: compiled for x86-64-v3 (AVX2), for x86-64-v4 (AVX-512) and
# for this machine, with two threads; and the tests of numbers with one and three threads too. What this
# machine cannot run is said. Each of the three builds llama.cpp in a folder of its own (target/processors).
#   sh scripts/test-processors.sh [x86-64-v3] [x86-64-v4] [native]
set -eu
browser=wanted
. "$(dirname "$0")/setup.sh"

# The modules of tests/it whose bounds depend on how a processor rounds.
numbers="centred chunks conversion control_vector cross_layer families gemma3 gemma4 hook hook_points interventions metrics next oracle others passes projectors prompt_store qwen sae_formats screen steps sweep tiles transcoders vision"

can_run() {
    case $1 in
    native) ;;
    *) /lib64/ld-linux-x86-64.so.2 --help 2>/dev/null | grep -q "$1 (supported" ;;
    esac
}

[ $# -gt 0 ] || set -- x86-64-v3 x86-64-v4 native
left_out=
for processor; do
    if ! can_run "$processor"; then
        left_out="$left_out $processor"
        continue
    fi
    export RUSTFLAGS="-C target-cpu=$processor" CARGO_TARGET_DIR="target/processors/$processor"
    for threads in 2 1 3; do
        echo "test-processors: $processor, $threads threads" >&2
        if [ "$threads" = 2 ]; then
            TEST_THREADS=2 cargo test --release --locked --workspace --no-fail-fast
        else
            # shellcheck disable=SC2086 # a list of names
            TEST_THREADS=$threads cargo test --release --locked --workspace --test it -- $numbers
        fi
    done
done
if [ -n "$left_out" ]; then
    echo "test-processors: this machine cannot run, so not tested:$left_out" >&2
fi
