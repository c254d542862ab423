"""Converts a full-size checkpoint, compares what the files compute with transformers, and prints a Markdown table:

    python check.py MODEL FOLDER       makes what is missing in FOLDER, which needs 30 GB; Linux

MODEL is `llava-gemma` or `gemma3`.

Both `cp` and `convert` read a checkpoint that has been read before and end when their output is on the disk; they take
turns, and the median counts. This process must stay small, since Linux counts a parent's memory in its
children's peak.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PROGRAM = ROOT / "target/release/llava-sae-cpp"
PICTURE = ROOT / "assets/pictures/boat.png"
EXACT = ["--kv-type", "f32", "-fa", "off", "-n", "0"]  # as the reference computes
# Number types of the language model, projector and SAE.
TYPES = {"f32": ("f32", "f32", "f32"), "f16": ("f16", "f16", "f16"), "q4_k_m": ("q4_k_m", "f16", "f16")}


@dataclass
class Model:
    """What is made and compared."""

    make: str  # the script that makes the checkpoint
    reference: list[str]  # the one that runs transformers
    types: list[str]  # of its files, in the order in which they are made
    kept: list[str]  # of these, which stay
    repeats: int  # conversions to f16, and copies


MODELS = {
    "llava-gemma": Model("make.py", ["reference.py", "make"], ["f16", "f32", "q4_k_m"], ["f16", "q4_k_m"], 3),
    # In f32 it would take another 17 GB.
    "gemma3": Model("make_gemma3.py", ["reference_gemma3.py"], ["f16", "q4_k_m"], ["q4_k_m"], 1),
}


@dataclass
class Finished:
    """A command that has run. Memory in MiB: `own` is anonymous memory (sampled), `peak` also counts the pages of
    mapped files, which the system can drop at any time."""

    seconds: float
    peak: float
    own: float
    stdout: str


def run(command: list) -> Finished:
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    own = [0]
    sampler = threading.Thread(target=sample_own_memory, args=(process.pid, own))
    sampler.start()
    stdout = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.monotonic() - start
    sampler.join()
    if process.returncode:
        sys.exit(f"error: {' '.join(map(str, command))} failed")
    say(f"  {seconds:.1f} s, {usage.ru_maxrss / 1024:.0f} MiB")
    return Finished(seconds, usage.ru_maxrss / 1024, own[0] / 1024, stdout)


def sample_own_memory(pid: int, own: list) -> None:
    """Keeps the largest `RssAnon` of a process in `own`, until it ends."""
    while True:
        try:
            status = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            return
        found = [line for line in status.splitlines() if line.startswith("RssAnon")]
        if not found:  # it has ended
            return
        own[0] = max(own[0], int(found[0].split()[1]))
        time.sleep(0.005)


def say(text: str) -> None:
    print(f"full-size: {text}", file=sys.stderr)


def sources(folder: Path) -> list[Path]:
    """The weights that are converted."""
    index = json.loads((folder / "llava/model.safetensors.index.json").read_text())["weight_map"]
    return [folder / "llava" / file for file in sorted(set(index.values()))] + [*(folder / "sae").glob("*.safetensors")]


def read_through(files: list[Path]) -> None:
    """Brings files into the page cache, and what was written before onto the disk."""
    for file in files:
        with file.open("rb", buffering=0) as opened:
            while opened.read(1 << 24):
                pass
    os.sync()


def convert(folder: Path, name: str) -> Finished:
    model, mmproj, sae = TYPES[name]
    types = ["--type", model, "--mmproj-type", mmproj, "--sae-type", sae]
    inputs = ["--llava", folder / "llava", "--sae", folder / "sae"]
    say(f"converting to {name}")
    return run([PROGRAM, "convert", "-q", "--force", *types, *inputs, "-o", folder / name])


def copy(folder: Path) -> Finished:
    target = folder / "copy"
    target.mkdir(exist_ok=True)
    say("copying")
    made = run(["sh", "-c", 'cp "$@" && sync "$0"/*', target, *sources(folder), target])
    shutil.rmtree(target)
    return made


def median(runs: list[Finished]) -> Finished:
    return sorted(runs, key=lambda run: run.seconds)[len(runs) // 2]


def measure_copies(folder: Path, repeats: int) -> Finished:
    copies = []
    for _ in range(repeats):
        read_through(sources(folder))
        copies.append(copy(folder))
    return median(copies)


def measure_conversions(folder: Path, name: str, repeats: int) -> Finished:
    conversions = []
    for _ in range(repeats if name == "f16" else 1):
        read_through(sources(folder))
        conversions.append(convert(folder, name))
    return median(conversions)


def sizes(folder: Path, name: str) -> str:
    gigabytes = {file.name.split("-")[0]: file.stat().st_size / 1e9 for file in (folder / name).glob("*.gguf")}
    return ", ".join(f"{gigabytes[part]:.2f}" for part in ("model", "mmproj", "sae"))


def agreement(folder: Path, name: str) -> dict:
    """How far a run is from transformers."""
    capture, reference = folder / f"{name}.safetensors", folder / "reference.safetensors"
    say(f"comparing {name} with transformers")
    run([PROGRAM, "capture", "-q", "-d", folder / name, *EXACT, "-o", capture, folder / "picture.png"])
    return json.loads(run([sys.executable, HERE / "reference.py", "compare", reference, capture]).stdout)


def table(folder: Path, copied: Finished, conversions: dict, found_sizes: dict, agreements: dict) -> list[str]:
    n_bytes = sum(file.stat().st_size for file in sources(folder))
    seconds = {name: f"{made.seconds:.1f}" for name, made in conversions.items()}
    memory = lambda runs: {name: f"{run.own:.0f} / {run.peak:.0f}" for name, run in runs.items()}
    error = lambda key: {name: f"{values[key]:.1e}" for name, values in agreements.items()}
    count = lambda key: {name: str(values[key]) for name, values in agreements.items()}
    n_active = agreements["f16"]["active"]
    rows = [
        (f"conversion of {n_bytes / 1e9:.2f} GB, s (`cp`: {copied.seconds:.1f})", seconds),
        ("… peak memory, MiB: own / with mapped files", memory(conversions)),
        ("files, GB: model, projector, SAE", found_sizes),
        ("image embeddings, relative error", error("image_embeddings")),
        ("residual stream, worst text row", error("text_row_worst")),
        ("… image rows, median", error("image_row_median")),
        ("… image rows, worst", error("image_row_worst")),
        ("logits", error("logits")),
        ("SAE activations", error("activations")),
        (f"active on one side only, of {n_active}", count("active_on_one_side")),
        ("… of these not within 1e-3 of the threshold", count("not_near")),
    ]
    names = [name for name in TYPES if name in conversions]
    lines = ["| | " + " | ".join(names) + " |", "| --- |" + " --- |" * len(names)]
    for what, values in rows:
        lines.append(f"| {what} | " + " | ".join(values[name] for name in names) + " |")
    return lines


def main() -> None:
    model, folder = MODELS[sys.argv[1]], Path(sys.argv[2]).resolve()
    if not list((folder / "sae").glob("*.json")):  # written last
        say("making the checkpoint")
        run([sys.executable, HERE / model.make, folder])
    if not (folder / "reference.safetensors").exists():
        say("running transformers")
        run([sys.executable, HERE / model.reference[0], *model.reference[1:], folder, PICTURE])
    copied = measure_copies(folder, model.repeats)
    conversions, found_sizes, agreements = {}, {}, {}
    for name in model.types:
        conversions[name] = measure_conversions(folder, name, model.repeats)
        found_sizes[name] = sizes(folder, name)
        agreements[name] = agreement(folder, name)
        if name not in model.kept:
            shutil.rmtree(folder / name)
    lines = table(folder, copied, conversions, found_sizes, agreements)
    processor = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    print(f"{os.cpu_count()} cores of {processor[0].split(': ')[1] if processor else platform.machine()}\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
