"""Draws the README's figure with the Rust program: `python figure.py PICTURE FEATURE STRENGTH OUT`.

The picture, the activation of a feature over its patches, and the captions before and after the
feature is added everywhere with that strength.
"""

import json
import subprocess
import sys
import textwrap

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

from models import Rust  # noqa: E402


def run(*arguments: str) -> dict:
    done = subprocess.run([Rust.PROGRAM, *arguments, "-q", "--json"], check=True, capture_output=True)
    return json.loads(done.stdout)


def main() -> None:
    path, feature, strength, out = sys.argv[1:]
    report = run(f"--steer={feature}:{strength}", "--compare", path)
    index = report["interventions"][0]["feature"]
    fired = run("features", "--top", "10000", path)
    entry = next(entry for entry in fired["features"] if entry["feature"] == index)
    patches = np.array(entry["patches"]).reshape(fired["grid"])
    picture = np.asarray(Image.open(path).convert("RGB"))
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(9, 3), width_ratios=[1, 1.15, 1.5], layout="constrained")
    extent = (0, picture.shape[1], picture.shape[0], 0)
    left.imshow(picture)
    left.set_title("picture", fontsize=10)
    middle.imshow(picture.mean(2), cmap="gray", vmin=0, vmax=255)
    shown = middle.imshow(np.ma.masked_equal(patches, 0), cmap="viridis", vmin=0, extent=extent, alpha=0.85)
    middle.set_title(f"feature {index}, “{entry['label']}”", fontsize=10)
    figure.colorbar(shown, ax=middle, label="activation", shrink=0.85)
    captions = [
        ("original", report["original"]["text"]),
        (f"--steer {feature}:{strength}", report["steered"]["text"]),
    ]
    for y, (title, text) in zip((0.86, 0.4), captions):
        right.text(0, y, title, fontsize=10, family="monospace", weight="bold", va="bottom")
        right.text(0, y - 0.03, textwrap.fill(text, 36), fontsize=10, va="top")
    for axes in (left, middle, right):
        axes.axis("off")
    figure.savefig(out, dpi=150)


if __name__ == "__main__":
    main()
