# Sourced by full-size-check.sh and bench.sh: goes to the project's folder, sets `folder` to their first
# argument or target/full-size, and PYTHON to an interpreter that has requirements.txt; with a `suffix`, such as
# -gemma3, target/full-size-gemma3 and requirements-gemma3.txt.
folder=${1:-}
[ -z "$folder" ] || { mkdir -p "$folder" && folder=$(cd "$folder" && pwd); }
. "$(dirname "$0")/setup.sh"
folder=${folder:-$PWD/target/full-size${suffix:-}}
if [ -z "${PYTHON:-}" ]; then
    PYTHON=$folder/venv/bin/python
    if [ ! -x "$PYTHON" ]; then
        echo "full-size: installing transformers in $folder/venv" >&2
        mkdir -p "$folder"
        python3 -m venv "$folder/venv"
        "$PYTHON" -m pip install -q -r "scripts/full-size/requirements${suffix:-}.txt"
    fi
fi
