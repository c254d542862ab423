#!/bin/sh
# Builds and runs the example that is a package outside the workspace. The workspace's versions and target
# folder are used, so that of what was built already only this project's own crates are compiled again.
set -eu
. "$(dirname "$0")/setup.sh"
cp Cargo.lock examples/library/Cargo.lock
exec cargo run --release --quiet --manifest-path examples/library/Cargo.toml --target-dir target -- \
    "${1:-assets/pictures/carrot-mushroom.png}"
