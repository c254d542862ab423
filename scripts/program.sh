# Sourced by the scripts that need the program alone: goes to the project's folder, and builds it, unless PROGRAM names
# one that is built already.
if [ -z "${PROGRAM:-}" ]; then
    . "$(dirname "$0")/setup.sh"
    cargo build --release --locked --workspace
    PROGRAM=$PWD/target/release/llava-sae-cpp
else
    cd "$(dirname "$0")/.." || exit
fi
export PROGRAM
