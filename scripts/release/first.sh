#!/bin/sh
# Run by scripts/check-release.sh in its Debian: from installing the wheel to the first caption.
set -eu
for compiler in c++ cargo cc clang gcc; do
    ! command -v "$compiler" || exit 1
done
rm -rf /root/.cache /venv
python3 -m venv /venv
now() { date +%s%3N; }
start=$(now)
/venv/bin/pip install -q --no-index --find-links /downloads llava-sae
/venv/bin/llava-sae-cpp -q --steer mushroom:-12 /check/assets/pictures/carrot-mushroom.png
echo "check-release: from installing to the first caption: $(($(now) - start)) ms"
