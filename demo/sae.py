"""The sparse autoencoder: trained on text rows of the language model, and labelled from text alone.

BatchTopK (Bussmann et al. 2024, arXiv:2412.06410) with an auxiliary loss for dead features (Gao et
al. 2024, arXiv:2406.04093), saved as a JumpReLU SAE with one threshold, as SAELens does.
"""

import json
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import GemmaForCausalLM

from language_model import CONFIG, Rows, learning_rate, load_tokenizer
from words import NOUNS

LAYER = 1  # of 0 to 5
HOOK = f"blocks.{LAYER}.hook_resid_post"
D_SAE = 768
ACTIVE = 10  # features of a row, on average
N_ROWS = 1_200_000
BATCH = 4096
STEPS = 2000
PEAK_RATE = 1e-3
DEAD_AFTER = 100  # steps without firing
ALWAYS_ON = 0.5  # share of text rows


@torch.no_grad()
def text_rows(folder: Path, tokenizer_folder: Path, n_rows: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Residual rows after block `LAYER`, `[n_rows, d_model]`, of text, and their token ids. The
    beginning of a sequence and padding are left out. There is no picture: the model has no vision
    part, and its input is checked to be token ids, none of which stands for an image row."""
    model = GemmaForCausalLM.from_pretrained(folder).eval()
    model.config.use_cache = False
    tokenizer = load_tokenizer(tokenizer_folder)
    rows, image_id = Rows(tokenizer, seed), tokenizer.convert_tokens_to_ids("<image>")
    found, ids_found, n_found = [], [], 0
    while n_found < n_rows:
        ids, _ = rows.batch(128)
        assert ids.dtype == torch.int64 and not (ids == image_id).any(), "the SAE sees text alone"
        with torch.autocast("cpu", torch.bfloat16):
            # The layers above are not needed.
            hidden = model.model.embed_tokens(ids)
            hidden = run_blocks(model, hidden, LAYER)
        keep = (ids != CONFIG.pad_token_id) & (ids != CONFIG.bos_token_id)
        found.append(hidden[keep].float())
        ids_found.append(ids[keep])
        n_found += len(found[-1])
    return torch.cat(found)[:n_rows], torch.cat(ids_found)[:n_rows]


def run_blocks(model: GemmaForCausalLM, embeddings: torch.Tensor, last: int) -> torch.Tensor:
    """The residual stream after block `last`, for embeddings as the lookup gives them."""
    handle_output = {}

    def keep(_module, _inputs, output):
        handle_output["hidden"] = output[0]
        raise StopForward

    handle = model.model.layers[last].register_forward_hook(keep)
    try:
        model.model(inputs_embeds=embeddings, use_cache=False)
    except StopForward:
        pass
    finally:
        handle.remove()
    return handle_output["hidden"]


class StopForward(Exception):
    """The row that was wanted has been seen."""


class Sae(torch.nn.Module):
    """`W_enc [d_in, d_sae]`, `W_dec [d_sae, d_in]` with rows of unit length."""

    def __init__(self, d_in: int):
        super().__init__()
        directions = torch.nn.functional.normalize(torch.randn(D_SAE, d_in), dim=1)
        self.W_dec = torch.nn.Parameter(directions)
        self.W_enc = torch.nn.Parameter(directions.T.clone())
        self.b_enc = torch.nn.Parameter(torch.zeros(D_SAE))
        self.b_dec = torch.nn.Parameter(torch.zeros(d_in))

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu((x - self.b_dec) @ self.W_enc + self.b_enc)


def train(base: Path, tokenizer_folder: Path, out: Path) -> None:
    """Trains the SAE on text and writes a SAELens folder to `out`."""
    torch.manual_seed(107)
    rows, _ = text_rows(base, tokenizer_folder, N_ROWS, seed=108)
    scale = rows.shape[1] ** 0.5 / rows.norm(dim=1).mean()
    sae = Sae(rows.shape[1])
    with torch.no_grad():
        sae.b_dec.copy_((rows[:100_000] * scale).mean(0))
    optimizer = torch.optim.Adam(sae.parameters(), betas=(0.9, 0.99), fused=True)
    last_fired = torch.zeros(D_SAE)
    threshold, start = None, time.time()
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, STEPS, PEAK_RATE)
        x = rows[torch.randint(len(rows), (BATCH,))] * scale
        acts = sae.encode(x)
        least = torch.topk(acts.flatten(), ACTIVE * BATCH, sorted=False).values.min().detach()
        kept = acts * (acts >= least)
        error = x - (kept @ sae.W_dec + sae.b_dec)
        loss = error.pow(2).sum(1).mean()
        last_fired = torch.where((kept > 0).any(0), step, last_fired)
        dead = step - last_fired > DEAD_AFTER
        if dead.any():
            candidates = acts * dead
            n_extra = min(64, int(dead.sum()))
            values, indices = candidates.topk(n_extra, dim=1)
            extra = torch.zeros_like(acts).scatter(1, indices, values) @ sae.W_dec
            loss = loss + (error.detach() - extra).pow(2).sum(1).mean() / 32
        threshold = least if threshold is None else 0.99 * threshold + 0.01 * least
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            sae.W_dec.div_(sae.W_dec.norm(dim=1, keepdim=True))
        if (step + 1) % 500 == 0:
            explained = 1 - error.pow(2).sum() / (x - x.mean(0)).pow(2).sum()
            print(f"  step {step + 1}: explained variance {explained:.4f}, dead {int(dead.sum())}, {time.time() - start:.0f} s", flush=True)
    save(sae, float(scale), float(threshold), out)


def save(sae: Sae, scale: float, threshold: float, out: Path) -> None:
    """Writes the SAE for rows that are not scaled, its matrices rounded to f16, so that f16 files
    lose nothing."""
    out.mkdir(parents=True, exist_ok=True)
    tensors = {
        "W_enc": sae.W_enc.detach().half().float(),
        "W_dec": sae.W_dec.detach().half().float(),
        "b_enc": sae.b_enc.detach() / scale,
        "b_dec": sae.b_dec.detach() / scale,
        "threshold": torch.full((D_SAE,), threshold / scale),
    }
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, out / "sae_weights.safetensors")
    config = {
        "architecture": "jumprelu",
        "d_in": sae.W_dec.shape[1],
        "d_sae": D_SAE,
        "dtype": "float32",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            "model_name": "llava-gemma-emoji",
            "hook_name": HOOK,
            "prepend_bos": True,
            "sae_lens_training_version": None,
        },
    }
    (out / "cfg.json").write_text(json.dumps(config, indent=2) + "\n")


def activations(weights: dict[str, torch.Tensor], rows: torch.Tensor) -> torch.Tensor:
    """SAELens' JumpReLU encoder: `[n, d_sae]`, 0 where a feature is not active."""
    parts = []
    for part in rows.split(65_536):
        hidden = (part - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"]
        parts.append(torch.relu(hidden) * (hidden > weights["threshold"]))
    return torch.cat(parts)


def label(folder: Path, base: Path, tokenizer_folder: Path) -> None:
    """Writes `labels.json` (Neuronpedia's array form) and `class_features.json`.

    The rule: a feature counts as on where its activation is above a quarter of its largest one, and
    detects a word as well as the F1 of "on" says, over occurrences in text that the SAE was not
    trained on. A feature that detects a word best of all features, with an F1 of at least 0.4, is
    labelled with that word; the others with the three words that they detect best. A class's feature
    is the one that detects the class's word best.
    """
    tokenizer = load_tokenizer(tokenizer_folder)
    rows, ids = text_rows(base, tokenizer_folder, 400_000, seed=109)
    acts = activations(load_file(folder / "sae_weights.safetensors"), rows)
    is_on = (acts > acts.max(0).values / 4).float()
    share_on = (acts > 0).float().mean(0)
    counts = torch.bincount(ids, minlength=CONFIG.vocab_size).float()
    both = torch.zeros(CONFIG.vocab_size, D_SAE).index_add_(0, ids, is_on)  # [vocabulary, d_sae]
    f1 = 2 * both / (counts[:, None] + is_on.sum(0)).clamp(min=1)
    pieces = tokenizer.convert_ids_to_tokens(range(CONFIG.vocab_size))
    f1[counts < 50] = 0
    best_feature = f1.argmax(1)  # [vocabulary]
    labels, named = [], 0
    for feature in range(D_SAE):
        best = f1[:, feature].topk(3)
        score, token = float(best.values[0]), int(best.indices[0])
        if score == 0:
            continue
        if share_on[feature] > ALWAYS_ON:
            text = f"always on ({share_on[feature]:.0%} of text)"
        elif score >= 0.4 and best_feature[token] == feature:
            named += 1
            text = shown(pieces[token])
        else:
            text = ", ".join(shown(pieces[i]) for i in best.indices)
        entry = {"modelId": "llava-gemma-emoji", "layer": f"{LAYER}-res", "index": str(feature), "description": text}
        labels.append(entry | {"f1": round(score, 3)})
    (folder / "labels.json").write_text("[\n" + ",\n".join(json.dumps(entry) for entry in labels) + "\n]\n")
    classes = {}
    for noun in NOUNS:
        token = tokenizer.convert_tokens_to_ids(f"▁{noun}")
        feature = int(f1[token].argmax())
        mean = acts[ids == token, feature].mean()
        classes[noun] = {"feature": feature, "f1": round(float(f1[token, feature]), 4), "mean": round(float(mean), 3)}
    (folder / "class_features.json").write_text(json.dumps(classes, indent=1) + "\n")
    l0 = (acts > 0).float().sum(1).mean()
    scores = [entry["f1"] for entry in classes.values()]
    print(f"  L0 {l0:.1f}; {len(labels)} features with a label, {named} with one word")
    print(f"  classes' features: F1 {np.mean(scores):.3f} on average, {min(scores):.3f} at least; {len({c['feature'] for c in classes.values()})} different")


def shown(piece: str) -> str:
    """A token's text without the mark of its space."""
    return piece.replace("▁", "").replace("\n", "newline") or "space"
