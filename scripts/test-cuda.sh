#!/bin/sh
# The tests of numbers on an NVIDIA card instead of the processor: model, projector and SAE lie in its memory.
#   sh scripts/test-cuda.sh [TEST...]
# NVIDIA's driver and its CUDA toolkit (nvcc, and cuBLAS as a static library) have to be there. Building
# takes about 5 minutes on 16 cores.
set -eu
. "$(dirname "$0")/setup.sh"

command -v nvcc >/dev/null || PATH=$PATH:/usr/local/cuda/bin
if ! command -v nvcc >/dev/null; then
    echo "error: the CUDA backend needs nvcc" >&2
    echo "hint: install NVIDIA's CUDA toolkit (https://developer.nvidia.com/cuda-downloads) and run this again" >&2
    exit 1
fi

set_up="--release --locked --features cuda --target-dir target/cuda"
# shellcheck disable=SC2086 # words
said=$(cargo run $set_up -- -v -n 1 assets/pictures/boat.png 2>&1) || true
if ! echo "$said" | grep -o "using device CUDA.*"; then
    echo "$said" | tail -5 >&2
    echo "error: llama.cpp uses no CUDA device" >&2
    exit 1
fi
[ $# -gt 0 ] || set -- centred:: chunks:: conversion:: cross_layer:: families:: gemma3:: gemma4:: gemma4_pictures:: control_vector:: hook:: hook_points:: interventions:: metrics:: next:: oracle:: others:: \
    passes:: projectors:: prompt_store:: qwen:: sae_formats:: screen:: sweep:: tiles:: transcoders:: vision::
# shellcheck disable=SC2086
cargo test $set_up --test it -- "$@"
