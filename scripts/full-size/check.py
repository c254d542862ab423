"""Converts a full-size checkpoint, compares what the files compute with transformers, and prints a Markdown table:

    python check.py FOLDER       makes what is missing in FOLDER, which needs 30 GB; Linux

Both `cp` and `convert` read a checkpoint that has been read before and end when their output is on the disk; they take
turns, and the median of three counts. This process must stay small, since Linux counts a parent's memory in its
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
REPEATS = 3
# Number types of the language model, projector and SAE.
TYPES = {"f32": ("f32", "f32", "f32"), "f16": ("f16", "f16", "f16"), "q4_k_m": ("q4_k_m", "f16", "f16")}


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
    return [folder / "llava" / file for file in sorted(set(index.values()))] + [folder / "sae/sae_weights.safetensors"]


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


def measure_conversions(folder: Path) -> tuple[Finished, dict[str, Finished]]:
    copies, conversions = [], []
    for _ in range(REPEATS):
        read_through(sources(folder))
        copies.append(copy(folder))
        read_through(sources(folder))
        conversions.append(convert(folder, "f16"))
    median = lambda runs: sorted(runs, key=lambda run: run.seconds)[len(runs) // 2]
    read_through(sources(folder))
    others = {name: convert(folder, name) for name in TYPES if name != "f16"}
    return median(copies), {"f16": median(conversions)} | others


def agreement(folder: Path, name: str) -> dict:
    """How far a run is from transformers."""
    capture, reference = folder / f"{name}.safetensors", folder / "reference.safetensors"
    say(f"comparing {name} with transformers")
    run([PROGRAM, "capture", "-q", "-d", folder / name, *EXACT, "-o", capture, folder / "picture.png"])
    return json.loads(run([sys.executable, HERE / "reference.py", "compare", reference, capture]).stdout)


def table(folder: Path, copied: Finished, conversions: dict, agreements: dict) -> list[str]:
    n_bytes = sum(file.stat().st_size for file in sources(folder))
    sizes = {}
    for name in TYPES:
        gigabytes = {file.name.split("-")[0]: file.stat().st_size / 1e9 for file in (folder / name).glob("*.gguf")}
        sizes[name] = ", ".join(f"{gigabytes[part]:.2f}" for part in ("model", "mmproj", "sae"))
    seconds = {name: f"{made.seconds:.1f}" for name, made in conversions.items()}
    memory = lambda runs: {name: f"{run.own:.0f} / {run.peak:.0f}" for name, run in runs.items()}
    error = lambda key: {name: f"{values[key]:.1e}" for name, values in agreements.items()}
    count = lambda key: {name: str(values[key]) for name, values in agreements.items()}
    n_active = agreements["f32"]["active"]
    rows = [
        (f"conversion of {n_bytes / 1e9:.2f} GB, s (`cp`: {copied.seconds:.1f})", seconds),
        ("… peak memory, MiB: own / with mapped files", memory(conversions)),
        ("files, GB: model, projector, SAE", sizes),
        ("image embeddings, relative error", error("image_embeddings")),
        ("residual stream, worst text row", error("text_row_worst")),
        ("… image rows, median", error("image_row_median")),
        ("… image rows, worst", error("image_row_worst")),
        ("logits", error("logits")),
        ("SAE activations", error("activations")),
        (f"active on one side only, of {n_active}", count("active_on_one_side")),
        ("… of these not within 1e-3 of the threshold", count("not_near")),
    ]
    lines = ["| | " + " | ".join(TYPES) + " |", "| --- |" + " --- |" * len(TYPES)]
    for what, values in rows:
        lines.append(f"| {what} | " + " | ".join(values.get(name, "") for name in TYPES) + " |")
    return lines


def main() -> None:
    folder = Path(sys.argv[1]).resolve()
    if not (folder / "sae/cfg.json").exists():  # written last
        say("making the checkpoint")
        run([sys.executable, HERE / "make.py", folder])
    if not (folder / "reference.safetensors").exists():
        say("running transformers")
        run([sys.executable, HERE / "reference.py", "make", folder, PICTURE])
    copied, conversions = measure_conversions(folder)
    agreements = {name: agreement(folder, name) for name in TYPES}
    lines = table(folder, copied, conversions, agreements)
    shutil.rmtree(folder / "f32")
    model = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    print(f"{os.cpu_count()} cores of {model[0].split(': ')[1] if model else platform.machine()}\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
