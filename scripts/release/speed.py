"""Compares programs by turns: ratios of the times of a picture's caption to those of the first program.

    python3 scripts/release/speed.py MODEL_DIR PICTURE [NAME=]PROGRAM... [--rounds N] [--tokens N]

NAME is a build for LLAVA_SAE_PROCESSOR. The model's folder is one for `--model-dir`, and the caption is steered.
The order turns from round to round, so that a clock that drifts favours no program. What is printed of a part is the
median of its times, and of the rounds' ratios the median with the quartiles.
"""

import argparse
import json
import os
import statistics
import subprocess

PARTS = ("image_ms", "prompt_ms", "generate_ms")


def run(name: str, program: str, folder: str, picture: str, tokens: int) -> dict:
    environment = os.environ | ({"LLAVA_SAE_PROCESSOR": name} if name else {})
    command = [program, "-q", "--json", "-d", folder, "-n", str(tokens), "--steer", "11:-3", "--image-cache", "0"]
    command += ["--prompt-cache", "0", picture]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout)["timings"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("picture")
    parser.add_argument("programs", nargs="+")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=48, help="tokens of a caption (48)")
    arguments = parser.parse_args()
    programs = [one.rpartition("=")[::2] for one in arguments.programs]
    rounds = []
    for turn in range(arguments.rounds):
        order = list(range(len(programs)))
        order = order[turn % len(order) :] + order[: turn % len(order)]
        times = {at: run(*programs[at], arguments.folder, arguments.picture, arguments.tokens) for at in order}
        rounds.append([times[at] for at in range(len(programs))])
    for place, (name, program) in enumerate(programs):
        cells = []
        for part in PARTS:
            low, ratio, high = quartiles([one[place][part] / one[0][part] for one in rounds])
            time = statistics.median(one[place][part] for one in rounds)
            cells.append(f"{part.removesuffix('_ms')} {time:.0f} ms ({ratio:.3f}, {low:.3f} to {high:.3f})")
        print(f"{program} {name}: {', '.join(cells)}")


def quartiles(values: list[float]) -> list[float]:
    return statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3


if __name__ == "__main__":
    main()
