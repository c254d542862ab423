"""The pictures of `reproduce/demo.json`: `python reproduction.py [WORK_DIR]` writes `reproduce/demo/`.

Sixteen of each class that the example pictures show, one drawing in each, drawn as the test pictures
are: unvaried, in places and sizes of a seed of their own, so that no training picture is among them.
Their colours are reduced to 32, which makes the files small.
"""

import random
import shutil
import sys
from pathlib import Path

from PIL import Image

import scenes
from vision import training_drawings

ROOT = Path(__file__).parents[1]
CLASSES = ["apple", "boat", "carrot", "cow", "elephant", "frog", "mushroom"]
N_PICTURES = 16  # of each class
N_COLOURS = 32
SEED = 131


def main() -> None:
    work = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent / "work")
    drawings = training_drawings(work / "icons.npz")
    out = ROOT / "reproduce/demo"
    shutil.rmtree(out, ignore_errors=True)
    rng = random.Random(SEED)
    n_drawn = dict.fromkeys(CLASSES, 0)
    while min(n_drawn.values()) < N_PICTURES:
        scene = scenes.sample(rng, 1, held_out=False)
        [noun] = scene.nouns()
        if n_drawn.get(noun, N_PICTURES) == N_PICTURES:
            continue
        pixels, _ = scenes.draw(rng, scene, drawings, varied=False)
        path = out / noun / f"{n_drawn[noun]:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).quantize(N_COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
        n_drawn[noun] += 1


if __name__ == "__main__":
    main()
