"""The demo model as it is measured: in transformers, and in the Rust program."""

import copy
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import LlavaForConditionalGeneration

import sae as text_sae
import scenes
from language_model import load_tokenizer
from projector import Prompt, describe
from vision import patch_rows


@dataclass
class Fired:
    """What pictures fire: activations `[n, GRID², d_sae]`, and each feature's largest one less its
    usual one, `[n, d_sae]`, `-inf` where it is not active, as `features` of the Rust program ranks."""

    acts: np.ndarray
    lift: np.ndarray

    @staticmethod
    def above(acts: np.ndarray, baseline: np.ndarray) -> "Fired":
        most = acts.max(1)
        return Fired(acts, np.where(most > 0, most - baseline, -np.inf))

    def ranks(self, pictures: np.ndarray, feature: int) -> np.ndarray:
        """The feature's rank by lift among the features of these pictures; the last one where it is
        not active."""
        lift = self.lift[pictures]
        better = (lift > lift[:, [feature]]).sum(1)
        return np.where(np.isneginf(lift[:, feature]), lift.shape[1], better + 1)


class Demo:
    """The exported model in transformers, with its SAE."""

    def __init__(self, llava: Path, sae_folder: Path, tokenizer_folder: Path):
        self.model = LlavaForConditionalGeneration.from_pretrained(llava).eval()
        self.tokenizer = load_tokenizer(tokenizer_folder)
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
        prompt = Prompt(language_model, self.tokenizer)
        embeddings, _ = prompt.embed(image_rows)
        n_before = len(prompt.ids[0])
        hidden = text_sae.run_blocks(language_model, embeddings, text_sae.LAYER)
        return hidden[:, n_before : n_before + image_rows.shape[1]]

    def acts(self, rows: torch.Tensor) -> torch.Tensor:
        """`[n, d_sae]` of residual rows `[n, d_model]`."""
        return text_sae.activations(self.weights, rows)

    def rebuilt(self, rows: torch.Tensor) -> torch.Tensor:
        """The SAE's reconstruction of residual rows."""
        return self.acts(rows) @ self.weights["W_dec"] + self.weights["b_dec"]

    def fired(self, hidden: torch.Tensor, usual: torch.Tensor) -> Fired:
        """What pictures fire, given the hook's image rows `[n, GRID², d_model]` of them and of the
        usual pictures."""
        acts, baseline = (self.acts(rows.flatten(0, 1)).view(*rows.shape[:2], -1).numpy() for rows in (hidden, usual))
        return Fired.above(acts, baseline.max(1).mean(0))

    def with_shuffled_encoder(self) -> "Demo":
        """The same with the encoder's weights in another order: a control."""
        w_enc = self.weights["W_enc"]
        order = torch.randperm(w_enc.numel(), generator=torch.Generator().manual_seed(113))
        shuffled = copy.copy(self)
        shuffled.weights = self.weights | {"W_enc": w_enc.flatten()[order].view_as(w_enc)}
        return shuffled

    def describe(self, image_rows: torch.Tensor, steer: torch.Tensor | None = None, image_only: bool = False) -> list[str]:
        return describe(self.model.language_model, self.tokenizer, image_rows, steer, text_sae.LAYER, image_only)


class Rust:
    """The Rust program on the files that it embeds, in a folder."""

    PROGRAM = Path(__file__).parents[1] / "target/release/llava-sae-cpp"

    def __init__(self, gguf: Path, pictures: list[np.ndarray], folder: Path):
        self.gguf = gguf
        self.paths = [folder / f"{i:03}.png" for i in range(len(pictures))]
        for path, picture in zip(self.paths, pictures):
            Image.fromarray(picture).save(path)

    def json(self, arguments: list) -> list[dict]:
        run = [self.PROGRAM, *arguments, "-q", "--json", "-d", self.gguf]
        return [json.loads(line) for line in subprocess.run(run, check=True, capture_output=True).stdout.splitlines()]

    def captions(self) -> list[str]:
        return [self.json(["-n", "48", path])[0]["original"]["text"] for path in self.paths]

    def steered_caption(self, picture: int, feature: int, strength: float) -> str:
        """Steered on the image's rows."""
        report = self.json(["-n", "48", f"--steer={feature}:{strength}", "--at", "image", self.paths[picture]])[0]
        return report["steered"]["text"]

    def fired(self, d_sae: int) -> Fired:
        acts = np.zeros((len(self.paths), scenes.GRID**2, d_sae), np.float32)
        lift = np.full((len(self.paths), d_sae), -np.inf)
        for i, report in enumerate(self.json(["features", "--top", str(d_sae), *self.paths])):
            for entry in report["features"]:
                acts[i, :, entry["feature"]] = entry["patches"]
                lift[i, entry["feature"]] = entry["lift"]
        return Fired(acts, lift)
