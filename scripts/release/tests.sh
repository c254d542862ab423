#!/bin/sh
# Run by scripts/check-release.sh in its Debian, with the tests' packages as arguments: the tests with the build that
# LLAVA_SAE_PROCESSOR names, of the wheel and of the archive.
set -eu
/venv/bin/pip install -q --no-index --find-links /downloads "$@"
if ! /venv/bin/llava-sae-cpp --version >/dev/null 2>/tmp/said; then
    sed "s/^/check-release: left out: /" /tmp/said
    exit 0
fi
cd /check/python/tests
export XDG_CACHE_HOME=/tmp/cache
echo "check-release: the wheel's build $LLAVA_SAE_PROCESSOR"
/venv/bin/python -m pytest -q -p no:cacheprovider
echo "check-release: the archive's build $LLAVA_SAE_PROCESSOR"
LLAVA_SAE_PROGRAM=/check/archive/llava-sae-cpp /venv/bin/python -m pytest -q -p no:cacheprovider test_oracle.py
