"""Whether `explain` finds the feature of what a picture shows: `python explain.py [WORK_DIR]`.

Pictures with one object whose caption names it: without WORK_DIR the committed ones of `reproduce/demo/`, and with it
the test pictures of `evaluate.py`, from the drawings in `WORK_DIR/icons.npz`, which are downloaded if they are not
there. For each, `llava-sae-cpp explain --word NOUN` on the embedded files; a feature's rank is that of its first cause
among all candidates. A class's own feature is the one in `class_features.json`; besides, the first feature counts
whose label has the class's word.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROGRAM = ROOT / "target/release/llava-sae-cpp"
CLASSES = json.loads((ROOT / "tests/fixtures/demo/sae/class_features.json").read_text())


def committed() -> Iterator[tuple[str, Path]]:
    """The object and the file of each picture of `reproduce/demo/`."""
    for path in sorted((ROOT / "reproduce/demo").glob("*/*.png")):
        yield path.parent.name, path


def drawn(drawings: dict, seed: int, folder: Path) -> Iterator[tuple[str, Path]]:
    """The test pictures of `evaluate.py` that have one object."""
    from PIL import Image

    from evaluate import N_PICTURES, test_pictures

    for i, (scene, picture, _) in enumerate(test_pictures(drawings, N_PICTURES, seed, True)):
        if len(scene.objects) == 1:
            path = folder / f"{seed}-{i:03}.png"
            Image.fromarray(picture).save(path)
            yield scene.objects[0].noun, path


def explain(noun: str, picture: Path) -> dict | None:
    """What raised the noun in the picture's caption; none where that does not have it."""
    run = [PROGRAM, "explain", "-q", "--json", "--word", noun, "--top", "1000", picture]
    done = subprocess.run(run, capture_output=True, text=True)
    if done.returncode == 0:
        return json.loads(done.stdout)
    if "is not in the answer" not in done.stderr:
        raise SystemExit(done.stderr)
    return None


def measure(name: str, pictures: Iterator[tuple[str, Path]]) -> None:
    """Prints the shares of pictures whose word its own feature raised most, or third most at worst."""
    own, named, n_unsaid, start = [], [], 0, time.time()
    for noun, picture in pictures:
        report = explain(noun, picture)
        if report is None:
            n_unsaid += 1
            continue
        features = list(dict.fromkeys(cause["feature"] for cause in report["causes"]))
        labels = {cause["feature"]: (cause["label"] or "").split(", ") for cause in report["causes"]}
        feature = CLASSES[noun]["feature"]
        own.append(features.index(feature) + 1 if feature in features else 1000)
        has_word = [noun in labels[feature] or f"{noun}s" in labels[feature] for feature in features]
        named.append(has_word.index(True) + 1 if True in has_word else 1000)
        if own[-1] > 1:
            first = ", ".join(f"{c['feature']} {c['label']} at {c['at']} {c['effect']:.3f}" for c in report["causes"][:3])
            print(f"  {noun}: own feature {feature} has rank {own[-1]}; {first}", flush=True)
    seconds = (time.time() - start) / max(len(own) + n_unsaid, 1)
    print(f"{name}: {len(own)} captions name the object, {n_unsaid} do not; {seconds:.2f} s a picture")
    for what, ranks in (("own feature", own), ("a feature whose label has the word", named)):
        shares = [sum(rank <= place for rank in ranks) / len(ranks) for place in (1, 3)]
        print(f"  {what}: first in {shares[0]:.3f}, among three in {shares[1]:.3f}", flush=True)


def main() -> None:
    if len(sys.argv) < 2:
        measure("reproduce/demo", committed())
        return
    import icons
    from vision import training_drawings

    path = Path(sys.argv[1]) / "icons.npz"
    if not path.exists():
        icons.make(path)
    with tempfile.TemporaryDirectory() as folder:
        measure("held out", drawn(training_drawings(path), 121, Path(folder)))
        measure("unseen vendor", drawn(icons.load(path)[icons.UNSEEN], 122, Path(folder)))


if __name__ == "__main__":
    main()
