"""Compares chat templates of published tokenizers, as `examples/chat.rs` runs them, with transformers.

    check-chat.py PROGRAM FOLDER...

Each FOLDER holds a `tokenizer_config.json`. Equal texts have equal token ids.
"""

import json
import pathlib
import subprocess
import sys

sys.path.append(str(pathlib.Path(__file__).parent.parent / "tests/fixtures"))
from make_chats import conversations, handed, render  # noqa: E402

# The image tokens of templates that take lists of parts; others take texts.
IMAGE_TOKENS = {"<start_of_image>": "both", "<|vision_start|><|image_pad|><|vision_end|>": "both"}
TOKENS = ["bos_token", "eos_token", "unk_token", "pad_token"]


def read(folder):
    config = json.loads((pathlib.Path(folder) / "tokenizer_config.json").read_text())
    template = config.get("chat_template")
    if isinstance(template, list):
        template = {named["name"]: named["template"] for named in template}["default"]
    tokens = {name: config.get(name) for name in TOKENS}
    tokens = {name: token["content"] if isinstance(token, dict) else token for name, token in tokens.items()}
    return template, {name: token for name, token in tokens.items() if token}


def compare(program, folder):
    template, tokens = read(folder)
    if not template:
        print(f"{folder}: no chat template")
        return True
    image, kind = next(((image, kind) for image, kind in IMAGE_TOKENS.items() if image in template), ("<image>", "text"))
    chats = dict(conversations())
    cases = [{"template": template, "image": image, "chat": chat, **tokens} for chat in chats.values()]
    lines = "\n".join(map(json.dumps, cases))
    ours = subprocess.run([program], input=lines, text=True, capture_output=True, check=True)
    n_equal, n_refused, differences = 0, 0, []
    for (name, chat), line in zip(chats.items(), ours.stdout.rstrip("\n").split("\n"), strict=True):
        ours, theirs = json.loads(line), render(template, handed(chat, kind, image), tokens)
        if theirs.get("text") == ours["text"] is not None:
            n_equal += 1
        elif "refused" in theirs and theirs["refused"] in (ours["refused"] or ""):
            n_refused += 1
        else:
            differences.append(f"  {name}:\n    ours         {ours}\n    transformers {theirs}")
    print(f"{folder}: {n_equal} of {len(chats)} equal, {n_refused} refused for the same reason")
    print(*differences, sep="\n", end="\n" if differences else "")
    return not differences


if __name__ == "__main__":
    equal = [compare(sys.argv[1], folder) for folder in sys.argv[2:]]
    sys.exit(0 if all(equal) else 1)
