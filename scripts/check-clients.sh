#!/bin/sh
# Other people's clients, unchanged, against the server with the demo model: all of them, or those that are named.
#   sh scripts/check-clients.sh [openai | curl | neuronpedia | lm-eval | schemathesis | open-webui]…
# Each is installed from PyPI in an environment of its own below target/clients, once: 3 GB, of which Open WebUI has
# 2 GB. PROGRAM names a program that is built already.
set -eu
. "$(dirname "$0")/program.sh"

# Installs the packages that are named, where they are not yet.
environment() {
    folder=target/clients/$1
    shift
    [ "$(cat "$folder/installed" 2>/dev/null)" = "$*" ] && return
    echo "installing $*"
    rm -rf "$folder"
    python3 -m venv "$folder"
    "$folder/bin/pip" install --quiet --no-cache-dir "$@"
    echo "$*" > "$folder/installed"
}

# Open WebUI, but for what brings PyTorch along, which runs models of its own: embeddings of documents, and speech.
open_webui() {
    folder=target/clients/open-webui
    [ -e "$folder/installed" ] && return
    environment open-webui --no-deps open-webui==0.12.4
    rm "$folder/installed"
    "$folder/bin/python" - > "$folder/requirements.txt" <<'END'
from importlib.metadata import requires

left_out = ("accelerate", "sentence-transformers")
needed = [package for package in requires("open-webui") if "extra ==" not in package]
print(*(package for package in needed if not package.startswith(left_out)), sep="\n")
END
    "$folder/bin/pip" install --quiet --no-cache-dir -r "$folder/requirements.txt"
    touch "$folder/installed"
}

# shellcheck disable=SC2048 # words
for part in ${*:-openai curl neuronpedia lm-eval schemathesis open-webui}; do
    python=target/clients/$part/bin/python
    case $part in
        openai) environment "$part" openai==3.57.0 ;;
        curl) python=python3 ;;
        neuronpedia) environment "$part" neuronpedia-inference-client==1.10.1 ;;
        lm-eval) environment "$part" 'lm-eval[api]==0.4.13' transformers==5.24.0 ;;
        schemathesis) environment "$part" schemathesis==4.32.5 ;;
        open-webui) open_webui ;;
        *)
            echo "error: there is no part \`$part\`" >&2
            exit 2
            ;;
    esac
    "$python" "scripts/clients/with_$(echo "$part" | tr - _).py"
done
