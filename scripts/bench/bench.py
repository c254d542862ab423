"""Measures what features and steering cost beside plain llama.cpp and beside Python, and prints Markdown tables:

    python bench.py FOLDER [ROUNDS]      makes what is missing in FOLDER, which needs 20 GB; Linux

A row is the median of ROUNDS (5 by default) with the smallest and the largest; a ratio is the median of the rounds'
ratios, since what is compared takes turns.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "full-size"))
import check  # noqa: E402
import stock  # noqa: E402
from check import PICTURE, PROGRAM, ROOT, say  # noqa: E402

EXAMPLES = ROOT / "target/release/examples"
N_TOKENS = 48
MAIN_JOB = ["--steer", "4501:-6", "--top", "10", "-n", str(N_TOKENS), "--image-cache", "0"]
# What the ratios of a table are to.
FIRST = {
    "start": "load",
    "token": "no callback",
    "prompt": "no callback",
    "sweep": "one run",
    "step": "1",
    "image_step": "1",
    "serve": "a run of the command line",
    "serve_picture": "one after another, nothing remembered",
    "serve_pictures": "one after another, nothing remembered",
    "serve_first": "a prompt's first token",
}
TITLES = {
    "start": "From the command to the first token",
    "image": "The image encoder",
    "token": "A generated token",
    "prompt": "A prompt",
    "sweep": "Runs side by side",
    "step": "A step of so many sequences",
    "image_step": "The same, behind an image",
    "encoder": "The encoder alone, on one row",
    "limits": "The machine",
    "serve": "A steered request to the server",
    "serve_picture": "Eight steered requests about one picture",
    "serve_pictures": "Eight steered requests about eight pictures",
    "serve_first": "The first token of a request",
    "serve_features": "From a prompt's end, its preparation included, to",
}


def files(folder: Path, name: str) -> list:
    """Model, projector, SAE, SAE in q8_0."""
    if name == "demo":
        assets = ROOT / "assets"
        found = [assets / f"{part}-f16.gguf" for part in ("model", "mmproj")]
        source = ROOT / "tests/fixtures/demo/sae"
    else:
        found = [next((folder / name).glob(f"{part}-*.gguf")) for part in ("model", "mmproj")]
        source = folder / "sae"
    for number_type in ("f16", "q8_0"):
        target = folder / f"sae-{name}-{number_type}.gguf"
        command = [PROGRAM.parent / "gguf-tools", "sae", source, "--type", number_type, "--force", "-o", target]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        found.append(target)
    return found


def measure(paths: list, rounds: int) -> tuple[dict, dict]:
    """Samples by table and row, and what else is said."""
    settings = [PICTURE, str(rounds), str(N_TOKENS)]
    commands = [[EXAMPLES / "speed", *paths, *settings], [EXAMPLES / "serve_speed", *paths[:3], *settings]]
    tables, facts = {}, {}
    for command in commands:
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            for line in process.stdout:
                found = json.loads(line)
                if "table" in found:
                    say(f"  {found['table']}: {found['row']}: {statistics.median(found['ms']):.2f} ms")
                    tables.setdefault(found["table"], {})[found["row"]] = found["ms"]
                else:
                    facts |= found
        if process.returncode:
            sys.exit("error: the measurement failed")
    return tables, facts


def spread(samples: list, form: str = "{:.1f}") -> str:
    return f"{form.format(statistics.median(samples))} ({form.format(min(samples))} to {form.format(max(samples))})"


def ratio(samples: list, others: list) -> float:
    return statistics.median(a / b for a, b in zip(samples, others))


def table(title: str, rows: dict, first: str | None) -> list[str]:
    head = f"| {title} | ms | ratio |" if first else f"| {title} | ms |"
    lines = [head, "| --- |" + " --- |" * (head.count("|") - 2)]
    for name, samples in rows.items():
        cells = [name, spread(samples, "{:.2f}" if statistics.median(samples) < 100 else "{:.0f}")]
        if first:
            cells.append(f"{ratio(samples, rows[first]):.3f}")
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, ""]


def limits(tables: dict, facts: dict) -> list[str]:
    """How close to what the machine can do: bytes a token, operations of a prompt, the encoder's bytes."""
    milliseconds = lambda table, row: statistics.median(tables[table][row])
    # A copy reads and writes.
    bandwidth = 2 * facts["copied_bytes"] / milliseconds("limits", "copy") * 1e3
    product = facts["product_operations"] / milliseconds("limits", "product") * 1e3
    token = facts["model_bytes"] / milliseconds("token", "no callback") * 1e3
    operations = 2 * (facts["block_weights"] * facts["n_prompt"] + facts["output_weights"])
    prompt = operations / milliseconds("prompt", "no callback") * 1e3
    lines = [
        "| Limit | reached | of | share |",
        "| --- | --- | --- | --- |",
        f"| GB/s of weights, a generated token; of a copy | {token / 1e9:.1f} | {bandwidth / 1e9:.1f} | "
        f"{token / bandwidth:.2f} |",
        f"| GFLOP/s, a prompt; of ggml's product with {facts['product_type']} | {prompt / 1e9:.0f} | "
        f"{product / 1e9:.0f} | {prompt / product:.2f} |",
    ]
    for row, key in (("f16", "encoder_bytes"), ("exact by screening", "screen_bytes")):
        if facts[key]:
            reached = facts[key] / milliseconds("encoder", row) * 1e3
            lines.append(
                f"| GB/s of the encoder, one row, {row} | {reached / 1e9:.1f} | {bandwidth / 1e9:.1f} | "
                f"{reached / bandwidth:.2f} |"
            )
    return [*lines, ""]


def main_job(paths: list) -> dict:
    """The command as a user runs it: seconds without loading, and its memory."""
    options = [f"--{role}={path}" for role, path in zip(("model", "mmproj", "sae"), paths)]
    finished = check.run([PROGRAM, "-q", "--json", *options, *MAIN_JOB, PICTURE])
    report = json.loads(finished.stdout)
    times = report["timings"]
    return {
        "n_prompt": report["n_prompt_tokens"],
        "load": times["load_ms"] / 1e3,
        "image": times["image_ms"] / 1e3,
        "prompt": times["prompt_ms"] / 1e3,
        "token": times["generate_ms"] / 1e3 / (times["generated_tokens"] - 1),
        "caption": (times["image_ms"] + times["prompt_ms"] + times["generate_ms"]) / 1e3,
        "own": finished.own,
        "peak": finished.peak,
    }


def peer(folder: Path, dtype: str, cache: str, rounds: int) -> dict:
    say(f"transformers in {dtype}, {cache}")
    arguments = [folder, PICTURE, N_TOKENS, dtype, cache, rounds]
    return json.loads(check.run([sys.executable, HERE / "peer.py", *map(str, arguments)]).stdout)


def python(folder: Path, paths: list, rounds: int) -> list[str]:
    peers = {
        "transformers, float32": ("float32", "cache", rounds),
        "transformers, bfloat16": ("bfloat16", "cache", rounds),
        "transformers, float32, without a KV cache": ("float32", "no-cache", rounds),
    }
    ours, theirs = [], {}
    # Ours before, between and after theirs, so that the machine's moods are shared.
    n_ours = -(-rounds // (len(peers) + 1))
    say("the main job")
    ours += [main_job(paths) for _ in range(n_ours)]
    for name, settings in peers.items():
        theirs[name] = peer(folder, *settings)
        ours += [main_job(paths) for _ in range(n_ours)]
    samples = lambda key: [run[key] for run in ours]
    caption = statistics.median(samples("caption"))
    memory = max(samples("peak"))
    keys = ("image", "prompt", "token", "caption")
    lines = [
        f"| The same caption of {N_TOKENS} tokens, s | image | prompt | a token | whole | ratio | peak memory, MiB |",
        "| --- |" + " --- |" * 6,
        "| llava-sae-cpp | " + " | ".join(spread(samples(key), "{:.2f}") for key in keys) + f" | 1 | {memory:.0f} |",
    ]
    for name, run in theirs.items():
        times = " | ".join(spread(run[key], "{:.2f}") for key in keys)
        times_ours = statistics.median(run["caption"]) / caption
        lines.append(f"| {name} | {times} | {times_ours:.1f} | {run['peak_mib']:.0f} |")
    sizes = sum(path.stat().st_size for path in paths[:3]) / 2**20
    cache = ours[0]["n_prompt"] + N_TOKENS
    return [
        *lines,
        "",
        f"Peak memory of llava-sae-cpp: {memory:.0f} MiB, of which {max(samples('own')):.0f} its own; its files have "
        f"{sizes:.0f} MiB, and the KV cache holds {cache} positions.",
        "",
    ]


def beside_stock(paths: list, rounds: int) -> list[str]:
    runs = stock.measure(paths, rounds, N_TOKENS)
    first = {name: [one.seconds for one, _ in found] for name, found in runs.items()}
    token = {
        name: [1e3 * (all_.seconds - one.seconds) / (N_TOKENS - 1) for one, all_ in found]
        for name, found in runs.items()
    }
    by = next(iter(runs))
    lines = [
        "| Whole commands on the same files | to the first token, s | ratio | a token, ms | ratio | peak memory, MiB |",
        "| --- |" + " --- |" * 5,
    ]
    for name, found in runs.items():
        memory = max(one.peak for pair in found for one in pair)
        lines.append(
            f"| {name} | {spread(first[name], '{:.2f}')} | {ratio(first[name], first[by]):.2f} | "
            f"{spread(token[name])} | {ratio(token[name], token[by]):.2f} | {memory:.0f} |"
        )
    return [*lines, ""]


def main() -> None:
    folder = Path(sys.argv[1]).resolve()
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 5
    if not (folder / "sae/cfg.json").exists():  # written last
        say("making the checkpoint")
        check.run([sys.executable, HERE.parent / "full-size/make.py", folder])
    if not (folder / "q4_k_m").exists():
        check.convert(folder, "q4_k_m")
    model = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    print(f"{os.cpu_count()} cores of {model[0].split(': ')[1] if model else platform.machine()}\n")
    for name, shown in (("q4_k_m", "LLaVA-Gemma 2B, random, q4_k_m"), ("demo", "The demo, f16")):
        say(f"measuring {shown}")
        paths = files(folder, name)
        tables, facts = measure(paths, rounds)
        print(f"## {shown}\n")
        print(f"{facts['n_prompt']} positions, {facts['n_image']} of the image; {N_TOKENS} generated tokens.")
        print(f"Computed by {facts['computed_by']}.\n")
        for key, rows in tables.items():
            if key != "limits":
                print("\n".join(table(TITLES[key], rows, FIRST.get(key))))
        print("\n".join(limits(tables, facts)))
        if name != "demo":
            print("\n".join(beside_stock(paths, rounds)), flush=True)
            print("\n".join(python(folder, paths, rounds)), flush=True)


if __name__ == "__main__":
    main()
