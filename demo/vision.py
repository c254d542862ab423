"""The vision encoder: a small CLIP ViT, trained to say what each patch shows."""

import random
import time
from pathlib import Path

import numpy as np
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

import icons
import scenes
from language_model import learning_rate, optimizer_for
from words import PATCH_WORDS

N_PICTURES = 50_000
N_CHECK = 1_000
BATCH = 128
EPOCHS = 5
PEAK_RATE = 1.5e-3

# CLIP's normalisation of colours, as every LLaVA uses it.
MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])

# LLaVA reads the output of the second to last layer: the last one is never trained.
CONFIG = CLIPVisionConfig(
    hidden_size=128,
    intermediate_size=512,
    num_hidden_layers=6,
    num_attention_heads=4,
    image_size=scenes.SIZE,
    patch_size=scenes.PATCH,
    projection_dim=128,
    hidden_act="quick_gelu",
)


def training_drawings(path: Path) -> dict[str, list[np.ndarray]]:
    """The drawings of every vendor but the unseen one, by class."""
    by_set = icons.load(path)
    by_set.pop(icons.UNSEEN)
    merged: dict[str, list[np.ndarray]] = {}
    for drawings in by_set.values():
        for noun, found in drawings.items():
            merged.setdefault(noun, []).extend(found)
    return merged


def make_pictures(drawings_path: Path, out: Path) -> None:
    """Writes training pictures with their patches' words and captions to `out` (npz)."""
    drawings = training_drawings(drawings_path)
    rng = random.Random(104)
    pictures = np.empty((N_PICTURES, scenes.SIZE, scenes.SIZE, 3), np.uint8)
    words = np.empty((N_PICTURES, scenes.GRID, scenes.GRID), np.uint8)
    captions = []
    for i in range(N_PICTURES):
        n_objects = rng.choices([1, 2, 3], [40, 45, 15])[0]
        scene = scenes.sample(rng, n_objects, held_out=False)
        pictures[i], words[i] = scenes.draw(rng, scene, drawings, varied=True)
        captions.append(scene.caption())
    np.savez(out, pictures=pictures, words=words, captions=np.array(captions))
    print(f"{N_PICTURES:,} training pictures, none with a pair of classes that is held out")


def normalise(pictures: torch.Tensor) -> torch.Tensor:
    """`[n, SIZE, SIZE, 3]` u8 to `[n, 3, SIZE, SIZE]` as CLIP takes it."""
    return ((pictures.float() / 255 - MEAN) / STD).permute(0, 3, 1, 2)


def patch_rows(encoder: CLIPVisionModel, pictures: torch.Tensor) -> torch.Tensor:
    """What LLaVA's projector gets: `[n, GRID², width]`."""
    output = encoder(pixel_values=normalise(pictures), output_hidden_states=True)
    return output.hidden_states[-2][:, 1:]


def train(pictures_path: Path, out: Path) -> None:
    """Trains the encoder and saves it to `out`."""
    torch.manual_seed(105)
    with np.load(pictures_path) as archive:
        pictures = torch.from_numpy(archive["pictures"])
        words = torch.from_numpy(archive["words"]).flatten(1).long()
    encoder = CLIPVisionModel(CONFIG)
    head = torch.nn.Linear(CONFIG.hidden_size, len(PATCH_WORDS))
    model = torch.nn.ModuleList([encoder, head])
    optimizer = optimizer_for(model)
    steps = EPOCHS * (len(pictures) - N_CHECK) // BATCH
    print(f"vision encoder: {sum(p.numel() for p in encoder.parameters()):,} parameters, {steps} steps")
    order = torch.Generator().manual_seed(106)
    start, losses = time.time(), []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, PEAK_RATE)
        chosen = torch.randint(N_CHECK, len(pictures), (BATCH,), generator=order)
        with torch.autocast("cpu", torch.bfloat16):
            logits = head(patch_rows(encoder, pictures[chosen]))
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), words[chosen].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if (step + 1) % 200 == 0:
            print(f"  step {step + 1}: loss {np.mean(losses[-200:]):.4f}, {time.time() - start:.0f} s", flush=True)
    with torch.no_grad():
        found = torch.cat([head(patch_rows(encoder, part)).argmax(-1) for part in pictures[:N_CHECK].split(200)])
    is_object = words[:N_CHECK] < PATCH_WORDS.index("red")
    right = found == words[:N_CHECK]
    print(f"  patches right: {right.float().mean():.3f}, of objects {right[is_object].float().mean():.3f}")
    encoder.save_pretrained(out)
