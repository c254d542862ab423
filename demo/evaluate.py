"""What the demo model does, measured: captions, features on images, interventions, the SAE's fit.

Every figure of the Rust program stands beside the one of transformers. Prints tables and writes
them as JSON.
"""

import json
import random
import re
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import LlavaForConditionalGeneration

import icons
import sae as text_sae
import scenes
from language_model import load_tokenizer
from projector import Prompt, describe
from vision import patch_rows, training_drawings
from words import BACKGROUNDS, GROUNDS, NOUNS, PATCH_WORDS, article

N_PICTURES = 300  # of each test set: a third with one object, the rest with two
N_BASELINE = 250  # pictures that the SAE file's baseline is measured on
N_STEERED = 120
N_RUST = 100  # pictures that go through the Rust program too
# Strengths, as multiples of the feature's mean activation on its word in text.
MULTIPLES = [0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0]


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
    return test_pictures(drawings, N_BASELINE, 23, held_out=False)


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


class Demo:
    """The exported model in transformers, with its SAE."""

    def __init__(self, llava: Path, sae_folder: Path, tokenizer_folder: Path):
        self.model = LlavaForConditionalGeneration.from_pretrained(llava).eval()
        self.tokenizer = load_tokenizer(tokenizer_folder)
        self.sae_folder = sae_folder
        self.classes = json.loads((sae_folder / "class_features.json").read_text())
        self.weights = text_sae.load_file(sae_folder / "sae_weights.safetensors")

    @torch.no_grad()
    def image_rows(self, pictures: np.ndarray) -> torch.Tensor:
        rows = patch_rows(self.model.vision_tower, torch.from_numpy(pictures))
        return self.model.multi_modal_projector(rows)

    @torch.no_grad()
    def hook_rows(self, image_rows: torch.Tensor) -> torch.Tensor:
        """The residual stream of image positions at the SAE's layer: `[n, GRID², d_model]`."""
        language_model = self.model.language_model
        embeddings, _ = Prompt(language_model, self.tokenizer).embed(image_rows)
        n_before = len(Prompt(language_model, self.tokenizer).ids[0])
        hidden = text_sae.run_blocks(language_model, embeddings, text_sae.LAYER)
        return hidden[:, n_before : n_before + image_rows.shape[1]]

    def acts(self, image_rows: torch.Tensor) -> np.ndarray:
        rows = self.hook_rows(image_rows)
        return text_sae.activations(self.sae_folder, rows.flatten(0, 1)).view(*rows.shape[:2], -1).numpy()

    def describe(self, image_rows: torch.Tensor, steer: torch.Tensor | None = None) -> list[str]:
        return describe(self.model.language_model, self.tokenizer, image_rows, steer, text_sae.LAYER)


def feature_figures(
    demo: Demo, test: list, acts: np.ndarray, baseline: np.ndarray, controls: dict[str, np.ndarray]
) -> list[dict]:
    """How well each class's feature, chosen on text, tells the class's patches and pictures from
    others (AUROC), and whether its median rank among the features of its pictures is 10 at most;
    `acts` and each control are `[n, GRID², d_sae]`."""
    words = np.stack([patch_words.flatten() for _, _, patch_words in test])
    rng = np.random.default_rng(11)
    rows = []
    for noun in NOUNS:
        feature = demo.classes[noun]["feature"]
        here = words == PATCH_WORDS.index(noun)
        there = np.array([noun in scene.nouns() for scene, _, _ in test])
        if not here.any():
            continue
        random_feature = int(rng.integers(acts.shape[2]))
        row = {
            "class": noun,
            "feature": feature,
            "patches": auroc(acts[..., feature][here], acts[..., feature][~here]),
            "pictures": auroc(acts[there, :, feature].max(1), acts[~there, :, feature].max(1)),
            "patches, random feature": auroc(acts[..., random_feature][here], acts[..., random_feature][~here]),
        }
        for name, scores in (("activation", acts[there].max(1)), ("lift", acts[there].max(1) - baseline)):
            ranks = (scores > scores[:, [feature]]).sum(1) + 1
            row[f"in the top 10 by {name}"] = float(np.median(ranks) <= 10)
        for name, control in controls.items():
            row[f"patches, {name}"] = auroc(control[..., feature][here], control[..., feature][~here])
        rows.append(row)
    return rows


def rank_figures(demo: Demo, test: list, most: np.ndarray, baseline: np.ndarray) -> dict[str, float]:
    """Where a single object's own feature stands among its picture's features, by its largest
    activation and by lift. `most` is `[n, d_sae]`."""
    figures = {}
    for name, scores in (("activation", most), ("lift", most - baseline)):
        ranks = []
        for (scene, _, _), row in zip(test, scores):
            if len(scene.objects) == 1:
                feature = demo.classes[scene.objects[0].noun]["feature"]
                ranks.append(int((row > row[feature]).sum()) + 1)
        for place in (1, 5, 10):
            figures[f"top {place} by {name}"] = float((np.array(ranks) <= place).mean())
    return figures


def steering_figures(demo: Demo, test: list, rows: torch.Tensor, captions: list[str]) -> list[dict]:
    """What is left of captions when a class's feature is subtracted everywhere, beside a random
    feature and a random direction of the same size; and what appears when it is added."""
    rng = np.random.default_rng(12)
    weights = demo.weights["W_dec"]
    cases = []  # picture, a class that its caption names rightly, all such classes
    for i, ((scene, _, _), caption) in enumerate(zip(test, captions)):
        named = sorted(said_nouns(caption) & set(scene.nouns()))
        if named and len(cases) < N_STEERED:
            cases.append((i, named[int(rng.integers(len(named)))], named))
    pictures = rows[[i for i, _, _ in cases]]
    absent = [str(rng.choice([noun for noun in NOUNS if noun not in test[i][0].nouns()])) for i, _, _ in cases]

    def directions(nouns: list[str]) -> torch.Tensor:
        """`[n, 1, d_model]`: the classes' decoder directions times their mean activation on text."""
        chosen = [demo.classes[noun] for noun in nouns]
        return torch.stack([entry["mean"] * weights[entry["feature"]] for entry in chosen])[:, None]

    own = directions([noun for _, noun, _ in cases])
    random_rows = weights[torch.from_numpy(rng.integers(len(weights), size=len(cases)))][:, None]
    random_directions = torch.from_numpy(rng.normal(size=own.shape).astype(np.float32))
    size = own.norm(dim=-1, keepdim=True)
    kinds = {
        "feature": -own,
        "random feature": -size * random_rows / random_rows.norm(dim=-1, keepdim=True),
        "random direction": -size * random_directions / random_directions.norm(dim=-1, keepdim=True),
        "added": directions(absent),
    }
    figures = []
    for multiple in MULTIPLES:
        figure: dict[str, float] = {"multiple": multiple}
        for kind, direction in kinds.items():
            found = demo.describe(pictures, multiple * direction)
            said = [said_nouns(caption) for caption in found]
            grammatical = np.mean([bool(GRAMMAR.fullmatch(caption)) for caption in found])
            if kind == "added":
                figure["appears when added"] = float(np.mean([noun in s for noun, s in zip(absent, said)]))
                continue
            dropped = [noun not in s for (_, noun, _), s in zip(cases, said)]
            kept = [other in s for (_, noun, named), s in zip(cases, said) for other in named if other != noun]
            figure[f"dropped, {kind}"] = float(np.mean(dropped))
            figure[f"others kept, {kind}"] = float(np.mean(kept))
            figure[f"grammatical, {kind}"] = float(grammatical)
        figures.append(figure)
        print("  " + ", ".join(f"{name} {value:.2f}" for name, value in figure.items()), flush=True)
    return figures


def fit_figures(demo: Demo, rows: torch.Tensor) -> dict[str, float]:
    """How well the SAE fits these residual rows: L0, explained variance."""
    acts = text_sae.activations(demo.sae_folder, rows)
    rebuilt = acts @ demo.weights["W_dec"] + demo.weights["b_dec"]
    variance = (rows - rows.mean(0)).pow(2).sum()
    return {
        "L0": float((acts > 0).float().sum(1).mean()),
        "explained variance": float(1 - (rows - rebuilt).pow(2).sum() / variance),
    }


@torch.no_grad()
def loss_figures(demo: Demo, ids: torch.Tensor, labels: torch.Tensor, test: list, image_rows: torch.Tensor) -> dict:
    """Cross-entropy as it is, with the SAE's reconstruction in the stream's place, and with zeros
    (SAELens' evaluation): on text, where all rows but the first are replaced, and on captions, where
    the image rows are."""
    language_model = demo.model.language_model
    prompt = Prompt(language_model, demo.tokenizer)
    answers = [demo.tokenizer.encode(scene.caption() + "<end_of_turn>", add_special_tokens=False) for scene, _, _ in test]
    embeddings, caption_labels = prompt.embed(image_rows, answers)
    n_before, n_image = len(prompt.ids[0]), image_rows.shape[1]
    inputs = {
        "text": ({"input_ids": ids, "labels": labels}, slice(1, None)),
        "image": ({"inputs_embeds": embeddings, "labels": caption_labels}, slice(n_before, n_before + n_image)),
    }
    figures = {}
    for name, (arguments, where) in inputs.items():
        losses = []
        for kind in ("as it is", "reconstructed", "zeros"):

            def replace(_module, _inputs, output, kind=kind, where=where):
                hidden = output[0].clone()
                part = hidden[:, where]
                if kind == "zeros":
                    hidden[:, where] = 0
                elif kind == "reconstructed":
                    acts = text_sae.activations(demo.sae_folder, part.flatten(0, 1))
                    hidden[:, where] = (acts @ demo.weights["W_dec"] + demo.weights["b_dec"]).view_as(part)
                return (hidden, *output[1:])

            handle = language_model.model.layers[text_sae.LAYER].register_forward_hook(replace)
            losses.append(float(language_model(**arguments, use_cache=False).loss))
            handle.remove()
        plain, rebuilt, zeros = losses
        figures[name] = {
            "cross-entropy": plain,
            "reconstructed": rebuilt,
            "zeros": zeros,
            "recovered": (zeros - rebuilt) / (zeros - plain),
        }
    return figures


class Rust:
    """The Rust program on the converted model."""

    PROGRAM = Path(__file__).parents[1] / "target/release/llava-sae-cpp"

    def __init__(self, folder: Path, llava: Path, sae_folder: Path):
        self.folder = folder
        run = [self.PROGRAM, "convert", "--llava", llava, "--sae", sae_folder, "--labels", sae_folder / "labels.json"]
        types = ["--type", "f16", "--mmproj-type", "f16", "--sae-type", "f16"]
        subprocess.run([*run, *types, "-o", folder, "--force"], check=True)

    def json(self, command: list[str], picture: np.ndarray) -> dict:
        path = self.folder / "picture.png"
        Image.fromarray(picture).save(path)
        run = [self.PROGRAM, *command, "-q", "--json", "-d", self.folder, path]
        return json.loads(subprocess.run(run, check=True, capture_output=True).stdout)

    def caption(self, picture: np.ndarray, steer: list[str] = ()) -> str:
        report = self.json(["-n", "48", *steer], picture)
        return (report["steered"] or report["original"])["text"]

    def most(self, picture: np.ndarray, d_sae: int) -> np.ndarray:
        """Each feature's largest activation on the image rows, `[d_sae]`."""
        most = np.zeros(d_sae)
        report = self.json(["features", "--rank", "activation", "--top", str(d_sae)], picture)
        for entry in report["features"]:
            most[entry["feature"]] = entry["max"]
        return most


def table(title: str, columns: dict[str, dict[str, float]]) -> None:
    """Prints figures by name, a column each."""
    names = list(next(iter(columns.values())))
    width = max(map(len, names))
    print(f"\n{title}\n{'':{width}}  " + "  ".join(f"{column:>14}" for column in columns))
    for name in names:
        print(f"{name:{width}}  " + "  ".join(f"{column[name]:14.3f}" for column in columns.values()))


def mean_of(rows: list[dict]) -> dict[str, float]:
    """The mean of every figure over the classes."""
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0] if name not in ("class", "feature")}


def evaluate(work: Path) -> None:
    """Measures everything, prints it, and writes `evaluation.json` to `work`."""
    demo = Demo(work / "llava", work / "sae", work)
    known = training_drawings(work / "icons.npz")
    unseen = icons.load(work / "icons.npz")[icons.UNSEEN]
    tests = {"held out": test_pictures(known, N_PICTURES, 21, True), "unseen vendor": test_pictures(unseen, N_PICTURES, 22, True)}
    usual = usual_pictures(known)
    baseline = demo.acts(demo.image_rows(np.stack([picture for _, picture, _ in usual]))).max(1).mean(0)
    figures: dict = {"captions": {}, "ranks": {}, "features": {}, "fit": {}}
    generator = torch.Generator().manual_seed(13)
    w_enc = demo.weights["W_enc"]
    shuffled = w_enc.flatten()[torch.randperm(w_enc.numel(), generator=generator)].view_as(w_enc)
    for name, test in tests.items():
        image_rows = demo.image_rows(np.stack([picture for _, picture, _ in test]))
        captions = demo.describe(image_rows)
        acts = demo.acts(image_rows)
        figures["captions"][name] = caption_figures(test, captions)
        figures["ranks"][name] = rank_figures(demo, test, acts.max(1), baseline)
        hidden = demo.hook_rows(image_rows)
        control = torch.relu((hidden - demo.weights["b_dec"]) @ shuffled + demo.weights["b_enc"]).numpy()
        figures["features"][name] = feature_figures(demo, test, acts, baseline, {"shuffled weights": control})
        if name == "held out":
            rust_columns(work, demo, test, captions, acts.max(1), baseline, figures)
            text, _ = text_sae.text_rows(work / "base", work, 50_000, seed=14)
            figures["fit"] = {"text": fit_figures(demo, text), "image": fit_figures(demo, hidden.flatten(0, 1))}
            ids, labels = text_sae.Rows(demo.tokenizer, 15).batch(64)
            losses = loss_figures(demo, ids, labels, test[:64], image_rows[:64])
            for where, found in losses.items():
                figures["fit"][where] |= found
            print("\nsubtracting a class's feature from captions that name it")
            figures["steering"] = steering_figures(demo, test, image_rows, captions)
    table("captions", figures["captions"])
    table("a single object's own feature among its picture's", figures["ranks"])
    table("AUROC of class features, mean over classes", {name: mean_of(rows) for name, rows in figures["features"].items()})
    table("the SAE's fit", figures["fit"])
    (work / "evaluation.json").write_text(json.dumps(figures, indent=1) + "\n")


def rust_columns(work: Path, demo: Demo, test: list, captions: list[str], most: np.ndarray, baseline: np.ndarray, figures: dict) -> None:
    """The same figures through the Rust program, on the first pictures of the set."""
    few = test[:N_RUST]
    with tempfile.TemporaryDirectory() as folder:
        rust = Rust(Path(folder), work / "llava", work / "sae")
        found = [rust.caption(picture) for _, picture, _ in few]
        rust_most = np.stack([rust.most(picture, most.shape[1]) for _, picture, _ in few])
    figures["captions"][f"first {N_RUST}"] = caption_figures(few, captions[:N_RUST])
    figures["captions"]["… in Rust, f16"] = caption_figures(few, found)
    figures["ranks"][f"first {N_RUST}"] = rank_figures(demo, few, most[:N_RUST], baseline)
    figures["ranks"]["… in Rust, f16"] = rank_figures(demo, few, rust_most, baseline)
    same = float(np.mean([a == b for a, b in zip(found, captions)]))
    error = float(np.linalg.norm(rust_most - most[:N_RUST]) / np.linalg.norm(most[:N_RUST]))
    figures["Rust"] = {"identical captions": same, "activations, relative error": error}
    print(f"Rust against transformers: {same:.3f} of captions identical, activations off by {error:.2e}")
