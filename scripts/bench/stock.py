"""llama.cpp's own `llama-mtmd-cli` on the same files, compiled for this machine from the source that llama-cpp-sys-2
carries; whole commands, by turns."""

import json
import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "full-size"))
import check  # noqa: E402
from check import PICTURE, PROGRAM, ROOT, say  # noqa: E402

BUILD = ROOT / "target/llama.cpp"
PROMPT = "Describe this image."


def build() -> Path:
    """The program, which is compiled if it was not yet."""
    command = ["cargo", "metadata", "--locked", "--format-version", "1"]
    metadata = json.loads(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout)
    manifest = next(one["manifest_path"] for one in metadata["packages"] if one["name"] == "llama-cpp-sys-2")
    say("building llama-mtmd-cli")
    options = ["-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON", f"-DLLAMA_CPP={Path(manifest).parent / 'llama.cpp'}"]
    for command in (
        ["cmake", "-S", Path(__file__).parent / "llama-mtmd-cli", "-B", BUILD, *options],
        ["cmake", "--build", BUILD, "-j", str(os.cpu_count()), "--target", "llama-mtmd-cli"],
    ):
        subprocess.run(command, check=True, stdout=sys.stderr)
    return BUILD / "bin/llama-mtmd-cli"


def measure(paths: list, rounds: int, n_tokens: int) -> dict:
    """Runs of both, by row: to the first token, and to the last of `n_tokens`."""
    model, mmproj, sae, _ = paths
    stock = [build(), "-m", model, "--mmproj", mmproj, "--image", PICTURE, "-p", PROMPT, "--temp", "0"]
    stock += ["--chat-template", "gemma", "--ignore-eos"]
    ours = [PROGRAM, "-q", f"--model={model}", f"--mmproj={mmproj}", f"--sae={sae}", "-p", PROMPT, PICTURE]
    ours += ["--steer", "4501:-6", "--top", "10", "--image-cache", "0", "--prompt-cache", "0"]
    name = "llama-mtmd-cli"
    if subprocess.run([*stock, "-n", "1"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode:
        # Where it is compiled for AMX, its kernels for repacked weights crash.
        stock, name = [*stock, "--no-repack"], f"{name} with `--no-repack`, without which it crashes"
    programs = {name: stock, "llava-sae-cpp, steered, with features": ours}
    runs = {name: [] for name in programs}
    for turn in range(rounds):
        for name, command in list(programs.items())[:: -1 if turn % 2 else 1]:
            say(name)
            runs[name].append([check.run([*map(str, command), "-n", str(n)]) for n in (1, n_tokens)])
    return runs
