"""What the demo model does, measured: captions, features on images, interventions, the SAE's fit.

The Rust program's figures, on the files that it embeds, stand beside those of transformers. Prints
tables in Markdown and writes them as JSON.
"""

import json
import random
import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import icons
import sae as text_sae
import scenes
from models import Demo, Fired, Rust
from projector import Prompt
from vision import training_drawings
from words import BACKGROUNDS, GROUNDS, NOUNS, PATCH_WORDS, article

N_PICTURES = 300  # of each test set: a third with one object, the rest with two
N_BASELINE = 250  # pictures that the SAE file's baseline is measured on
N_STEERED = 120
# Strengths, as multiples of the feature's mean activation on its word in text.
MULTIPLES = [0.5, 0.6, 0.7, 0.8, 1.0, 1.2, 1.5]
RUST_MULTIPLE = 1.2  # the one that goes through the Rust program too, on the image's rows


def test_pictures(drawings: dict, n: int, seed: int, held_out: bool) -> list[tuple[scenes.Scene, np.ndarray, np.ndarray]]:
    """Pictures as training drew them; with two objects, of pairs that training held out."""
    rng = random.Random(seed)
    found = []
    for i in range(n):
        scene = scenes.sample(rng, 1 if i % 3 == 0 else 2, held_out)
        found.append((scene, *scenes.draw(rng, scene, drawings, varied=False)))
    return found


def usual_pictures(drawings: dict) -> list[tuple[scenes.Scene, np.ndarray, np.ndarray]]:
    """The pictures that the SAE file's baseline is measured on; no test picture is among them."""
    return test_pictures(drawings, N_BASELINE, 123, held_out=False)


def write_usual_pictures(drawings_path: Path, out: Path) -> None:
    """Writes them to a folder, for the Rust program's `baseline`."""
    out.mkdir()
    for i, (_, picture, _) in enumerate(usual_pictures(training_drawings(drawings_path))):
        Image.fromarray(picture).save(out / f"{i:03}.png")


def said_nouns(caption: str) -> set[str]:
    return {noun for noun in NOUNS if re.search(rf"\b{noun}\b", caption)}


def said_ground(caption: str) -> str | None:
    return next((ground for ground in GROUNDS if caption.endswith(f", {BACKGROUNDS[ground][0]}.")), None)


PLACE = r"(in the center|on the left|on the right|at the top|at the bottom)"
THING = "(" + "|".join(article(noun) for noun in NOUNS) + ")"
GRAMMAR = re.compile(
    rf"The image shows {THING} {PLACE}(, {THING} {PLACE})*( and {THING} {PLACE})?, ("
    + "|".join(phrase for phrase, _, _ in BACKGROUNDS.values())
    + r")\."
)


def caption_figures(test: list, captions: list[str]) -> dict[str, float]:
    """Precision and recall of objects, and what share of captions is right in other ways."""
    right = said = there = grounds = grammatical = exact = 0
    for (scene, _, _), caption in zip(test, captions):
        truth, found = set(scene.nouns()), said_nouns(caption)
        right += len(truth & found)
        said += len(found)
        there += len(truth)
        exact += truth == found
        grounds += said_ground(caption) == scene.ground
        grammatical += bool(GRAMMAR.fullmatch(caption))
    return {
        "object precision": right / max(said, 1),
        "object recall": right / there,
        "exact set of objects": exact / len(test),
        "background": grounds / len(test),
        "grammatical": grammatical / len(test),
    }


def auroc(positive: np.ndarray, negative: np.ndarray) -> float:
    """The chance that a positive is above a negative; ties count half."""
    values = np.concatenate([positive, negative])
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    n, m = len(positive), len(negative)
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * m))


def feature_figures(demo: Demo, test: list, sources: dict[str, Fired]) -> list[dict]:
    """How well each class's feature, chosen on text, tells the class's patches and pictures from
    others (AUROC), and its median rank by lift among the features of its pictures; beside it a random
    feature, and the same feature in the other sources of activations."""
    words = np.stack([patch_words.flatten() for _, _, patch_words in test])
    rng = np.random.default_rng(111)
    rows = []
    for noun in NOUNS:
        here = words == PATCH_WORDS.index(noun)
        there = np.array([noun in scene.nouns() for scene, _, _ in test])
        own, random_feature = demo.classes[noun]["feature"], int(rng.integers(sources["own feature"].acts.shape[2]))
        if not here.any():
            continue
        columns = {name: (fired, own) for name, fired in sources.items()}
        columns["random feature"] = (sources["own feature"], random_feature)
        row = {"class": noun, "feature": own}
        for name, (fired, feature) in columns.items():
            acts = fired.acts[..., feature]
            row[name] = {
                "AUROC, patches": auroc(acts[here], acts[~here]),
                "AUROC, pictures": auroc(acts[there].max(1), acts[~there].max(1)),
                "median rank": float(np.median(fired.ranks(there, feature))),
                "median rank 10 or better": float(np.median(fired.ranks(there, feature)) <= 10),
            }
        rows.append(row)
    return rows


def mean_of(rows: list[dict]) -> dict[str, dict[str, float]]:
    """The mean over classes of each figure of each source."""
    sources = [name for name in rows[0] if name not in ("class", "feature")]
    figures = rows[0][sources[0]]
    return {name: {figure: float(np.mean([row[name][figure] for row in rows])) for figure in figures} for name in sources}


def rank_figures(demo: Demo, test: list, fired: Fired) -> dict[str, float]:
    """Where a single object's own feature stands among its picture's features, by its largest
    activation and by lift."""
    by_activation = Fired.above(fired.acts, np.zeros(fired.acts.shape[2]))
    figures = {}
    for name, scores in (("activation", by_activation), ("lift", fired)):
        ranks = []
        for i, (scene, _, _) in enumerate(test):
            if len(scene.objects) == 1:
                feature = demo.classes[scene.objects[0].noun]["feature"]
                ranks.append(int(scores.ranks(np.array([i]), feature)[0]))
        for place in (1, 5, 10):
            figures[f"top {place} by {name}"] = float((np.array(ranks) <= place).mean())
    return figures


@dataclass
class Case:
    """A picture whose caption names a class rightly, and a class that the picture does not show."""

    picture: int
    noun: str
    named: list[str]  # all classes that the caption names rightly
    absent: str


def steering_cases(test: list, captions: list[str]) -> list[Case]:
    rng = np.random.default_rng(112)
    cases = []
    for i, ((scene, _, _), caption) in enumerate(zip(test, captions)):
        named = sorted(said_nouns(caption) & set(scene.nouns()))
        if named and len(cases) < N_STEERED:
            absent = str(rng.choice([noun for noun in NOUNS if noun not in scene.nouns()]))
            cases.append(Case(i, named[int(rng.integers(len(named)))], named, absent))
    return cases


def left_of(cases: list[Case], captions: list[str]) -> dict[str, float]:
    """What captions have lost by a subtraction, and what they keep."""
    said = [said_nouns(caption) for caption in captions]
    others = [other in s for case, s in zip(cases, said) for other in case.named if other != case.noun]
    return {
        "object dropped": float(np.mean([case.noun not in s for case, s in zip(cases, said)])),
        "other objects kept": float(np.mean(others)),
        "grammatical": float(np.mean([bool(GRAMMAR.fullmatch(caption)) for caption in captions])),
    }


def steering_figures(demo: Demo, cases: list[Case], rows: torch.Tensor, image_only: bool) -> tuple[list[dict], list[str]]:
    """What is left of captions when a class's feature is subtracted, everywhere or from the image's
    rows alone, beside a random feature and a random direction of the same size, and what appears when
    it is added; and the captions at `RUST_MULTIPLE`."""
    rng = np.random.default_rng(116)
    weights = demo.weights["W_dec"]
    pictures = rows[[case.picture for case in cases]]

    def directions(nouns: list[str]) -> torch.Tensor:
        """`[n, 1, d_model]`: the classes' decoder directions times their mean activation on text."""
        chosen = [demo.classes[noun] for noun in nouns]
        return torch.stack([entry["mean"] * weights[entry["feature"]] for entry in chosen])[:, None]

    own = directions([case.noun for case in cases])
    random_rows = weights[torch.from_numpy(rng.integers(len(weights), size=len(cases)))][:, None]
    random_directions = torch.from_numpy(rng.normal(size=own.shape).astype(np.float32))
    size = own.norm(dim=-1, keepdim=True)
    controls = {
        "random feature": size * torch.nn.functional.normalize(random_rows, dim=-1),
        "random direction": size * torch.nn.functional.normalize(random_directions, dim=-1),
    }
    added = directions([case.absent for case in cases])
    figures, kept = [], []
    for multiple in MULTIPLES:
        captions = demo.describe(pictures, -multiple * own, image_only)
        if multiple == RUST_MULTIPLE:
            kept = captions
        figure = {"multiple": multiple, **left_of(cases, captions)}
        for name, direction in controls.items():
            left = left_of(cases, demo.describe(pictures, -multiple * direction, image_only))
            figure |= {f"{what}, {name}": value for what, value in left.items()}
        said = [said_nouns(caption) for caption in demo.describe(pictures, multiple * added, image_only)]
        figure["appears when added"] = float(np.mean([case.absent in s for case, s in zip(cases, said)]))
        figures.append(figure)
        print(f"  {multiple} x: " + ", ".join(f"{name} {value:.2f}" for name, value in figure.items()), flush=True)
    return figures, kept


def rust_steered_captions(demo: Demo, rust: Rust, cases: list[Case]) -> list[str]:
    """The captions that `RUST_MULTIPLE` of the class's feature leaves."""
    entries = [demo.classes[case.noun] for case in cases]
    steered = [(case.picture, entry["feature"], -RUST_MULTIPLE * entry["mean"]) for case, entry in zip(cases, entries)]
    return [rust.steered_caption(*arguments) for arguments in steered]


def fit_figures(demo: Demo, rows: torch.Tensor) -> dict[str, float]:
    """How well the SAE fits these residual rows: L0, explained variance."""
    variance = (rows - rows.mean(0)).pow(2).sum()
    return {
        "L0": float((demo.acts(rows) > 0).float().sum(1).mean()),
        "explained variance": float(1 - (rows - demo.rebuilt(rows)).pow(2).sum() / variance),
    }


def text_loss_figures(demo: Demo, ids: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """`loss_figures` on text, where all rows but the first are replaced."""
    return loss_figures(demo, {"input_ids": ids, "labels": labels}, slice(1, None))


def image_loss_figures(demo: Demo, test: list, image_rows: torch.Tensor) -> dict[str, float]:
    """`loss_figures` on the captions of the first 64 pictures, where the image rows are replaced."""
    prompt = Prompt(demo.model.language_model, demo.tokenizer)
    answers = [demo.tokenizer.encode(scene.caption() + "<end_of_turn>", add_special_tokens=False) for scene, _, _ in test[:64]]
    embeddings, labels = prompt.embed(image_rows[:64], answers)
    n_before = len(prompt.ids[0])
    return loss_figures(demo, {"inputs_embeds": embeddings, "labels": labels}, slice(n_before, n_before + image_rows.shape[1]))


@torch.no_grad()
def loss_figures(demo: Demo, inputs: dict, where: slice) -> dict[str, float]:
    """Cross-entropy as it is, with the SAE's reconstruction in the place of the stream's rows
    `where`, and with zeros there (SAELens' evaluation)."""
    language_model = demo.model.language_model
    losses = []
    for kind in ("as it is", "reconstructed", "zeros"):

        def replace(_module, _inputs, output, kind=kind):
            hidden = output[0].clone()
            part = hidden[:, where]
            if kind == "zeros":
                hidden[:, where] = 0
            elif kind == "reconstructed":
                hidden[:, where] = demo.rebuilt(part.flatten(0, 1)).view_as(part)
            return (hidden, *output[1:])

        handle = language_model.model.layers[text_sae.LAYER].register_forward_hook(replace)
        losses.append(float(language_model(**inputs, use_cache=False).loss))
        handle.remove()
    plain, rebuilt, zeros = losses
    return {
        "cross-entropy": plain,
        "… with reconstructed rows": rebuilt,
        "… with zeros": zeros,
        "cross-entropy recovered": (zeros - rebuilt) / (zeros - plain),
    }


def table(title: str, columns: dict[str, dict[str, float]]) -> None:
    """Prints figures by name, a column each, in Markdown."""
    print(f"\n{title}\n\n|  | " + " | ".join(columns) + " |\n| --- |" + " --- |" * len(columns))
    for name in next(iter(columns.values())):
        print(f"| {name} | " + " | ".join(f"{column[name]:.3f}" for column in columns.values()) + " |")


def evaluate(work: Path) -> None:
    """Measures everything, prints it, and writes `evaluation.json` to `work`."""
    demo = Demo(work / "llava", work / "sae", work)
    known = training_drawings(work / "icons.npz")
    unseen = icons.load(work / "icons.npz")[icons.UNSEEN]
    tests = {"held out": test_pictures(known, N_PICTURES, 121, True), "unseen vendor": test_pictures(unseen, N_PICTURES, 122, True)}
    shuffled = demo.with_shuffled_encoder()
    usual = demo.hook_rows(demo.image_rows(np.stack([picture for _, picture, _ in usual_pictures(known)])))
    figures: dict = {name: {} for name in ("captions", "ranks", "features", "steering", "fit")}
    text, _ = text_sae.text_rows(work / "base", work, 50_000, seed=114)
    ids, labels = text_sae.Rows(demo.tokenizer, 115).batch(64)
    figures["fit"]["text"] = fit_figures(demo, text) | text_loss_figures(demo, ids, labels)
    for name, test in tests.items():
        image_rows = demo.image_rows(np.stack([picture for _, picture, _ in test]))
        hidden = demo.hook_rows(image_rows)
        captions = demo.describe(image_rows)
        fired = demo.fired(hidden, usual)
        sources = {"own feature": fired, "shuffled weights": shuffled.fired(hidden, usual)}
        cases = steering_cases(test, captions)
        with tempfile.TemporaryDirectory() as folder:
            rust = Rust(work / "gguf", [picture for _, picture, _ in test], Path(folder))
            rust_captions, rust_steered, rust_fired = rust.captions(), rust_steered_captions(demo, rust, cases), rust.fired(fired.acts.shape[2])
        sources["own feature, Rust"] = rust_fired
        figures["captions"][name] = caption_figures(test, captions)
        figures["captions"][f"{name}, Rust"] = caption_figures(test, rust_captions)
        figures["ranks"][name] = rank_figures(demo, test, fired)
        figures["ranks"][f"{name}, Rust"] = rank_figures(demo, test, rust_fired)
        figures["features"][name] = feature_figures(demo, test, sources)
        for where in ("everywhere", "image rows"):
            print(f"\n{name}, {where}: a class's feature subtracted from captions that name the class")
            found, steered = steering_figures(demo, cases, image_rows, where == "image rows")
            figures["steering"][f"{name}, {where}"] = found
        figures["Rust"] = figures.get("Rust", {}) | {
            name: {
                "identical captions": float(np.mean([a == b for a, b in zip(rust_captions, captions)])),
                "identical steered captions": float(np.mean([a == b for a, b in zip(rust_steered, steered)])),
                "activations, relative error": float(np.linalg.norm(rust_fired.acts - fired.acts) / np.linalg.norm(fired.acts)),
            }
        }
        figures["steering"][f"{name}, image rows, Rust"] = [{"multiple": RUST_MULTIPLE, **left_of(cases, rust_steered)}]
        figures["fit"][f"image, {name}"] = fit_figures(demo, hidden.flatten(0, 1)) | image_loss_figures(demo, test, image_rows)
    table("captions", figures["captions"])
    table("a single object's own feature among its picture's", figures["ranks"])
    for name, rows in figures["features"].items():
        table(f"class features, mean over classes, {name}", mean_of(rows))
    for name, found in figures["steering"].items():
        table(f"subtracting, {name}", {f"{figure['multiple']} x": figure for figure in found})
    table("the SAE's fit", figures["fit"])
    table("Rust against transformers", figures["Rust"])
    (work / "evaluation.json").write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    evaluate(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent / "work"))
