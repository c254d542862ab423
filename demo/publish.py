"""Puts a made demo model into the project: `python publish.py [WORK_DIR]`.

The checkpoint and the oracle's numbers go to `tests/fixtures/demo`, the files to embed, the figures
and the example pictures to `assets`.

Example pictures by rule: of the oracle's, which are the first of a fixed seed, the first three with
one object and the first three with two whose captions name exactly the objects that are there, with a
margin that no processor's rounding comes near. The README's example is the first of those with two:
the object named first is subtracted.
"""

import json
import shutil
import sys
from pathlib import Path

from evaluate import said_nouns

ROOT = Path(__file__).parents[1]
N_EXAMPLES = 3  # of each number of objects
MARGIN = 2e-3  # of the caption, as `margins.py` has it; `SHIPPED_MARGIN` in tests/it/conversion.rs


def replace(source: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)


def examples(pictures: list[dict]) -> list[tuple[str, str]]:
    """The example pictures' names in the oracle, and what they are to be called."""
    chosen: dict[int, list[tuple[str, str]]] = {1: [], 2: []}
    for picture in pictures:
        truth = said_nouns(picture["reference"])
        of_kind = chosen[len(truth)]
        is_right = said_nouns(picture["caption"]) == truth and picture["margin"] > MARGIN
        if is_right and len(of_kind) < N_EXAMPLES:
            nouns = sorted(truth, key=picture["caption"].index)
            of_kind.append((picture["picture"], "-".join(nouns) + ".png"))
    return chosen[1] + chosen[2]


def main() -> None:
    work = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent / "work")
    fixture, assets = ROOT / "tests/fixtures/demo", ROOT / "assets"
    for name in ("llava", "sae", "oracle/pictures"):
        replace(work / name, fixture / Path(name).name)
    for name in ("oracle.json", "oracle.safetensors"):
        shutil.copy(work / "oracle" / name, fixture)
    for file in (work / "gguf").glob("*.gguf"):
        shutil.copy(file, assets)
    shutil.copy(work / "evaluation.json", assets)
    shutil.rmtree(assets / "pictures")
    (assets / "pictures").mkdir()
    for source, target in examples(json.loads((work / "oracle/oracle.json").read_text())["pictures"]):
        shutil.copy(fixture / "pictures" / source, assets / "pictures" / target)
        print(f"{source}: {target}")


if __name__ == "__main__":
    main()
