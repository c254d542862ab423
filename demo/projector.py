"""The projector: from the encoder's patch rows to the language model's embeddings.

First each patch is led to the embedding of the word for what it shows, then the whole model learns
captions; the language model, which has read scenes as grids of words, stays as it is.
"""

import time
from pathlib import Path

import numpy as np
import torch
from transformers import CLIPVisionModel, GemmaForCausalLM

from corpus import END, MODEL, PROMPT, USER
from language_model import CONFIG, IGNORED, learning_rate, load_tokenizer, optimizer_for, word_ids
from vision import N_CHECK, patch_rows

ALIGN_STEPS = 3000
ALIGN_BATCH = 8192  # patches
CAPTION_STEPS = 1000
CAPTION_BATCH = 32
ALIGN_RATE, CAPTION_RATE = 2e-3, 3e-4


class Projector(torch.nn.Module):
    """LLaVA's: two linear layers with a GELU between them."""

    def __init__(self, d_vision: int, d_text: int):
        super().__init__()
        self.linear_1 = torch.nn.Linear(d_vision, d_text)
        self.linear_2 = torch.nn.Linear(d_text, d_text)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.linear_2(torch.nn.functional.gelu(self.linear_1(rows)))


class Prompt:
    """The demo's prompt around the image rows, as embeddings."""

    def __init__(self, model: GemmaForCausalLM, tokenizer):
        self.model, self.tokenizer = model, tokenizer
        before = tokenizer.encode(USER)
        after = tokenizer.encode(f"\n{PROMPT}{END}\n{MODEL}", add_special_tokens=False)
        self.ids = before, after

    def embed(self, image_rows: torch.Tensor, answers: list[list[int]] | None = None):
        """Embeddings `[n, length, d_model]`, and labels where answers are given."""
        n, n_image, _ = image_rows.shape
        lookup = self.model.model.embed_tokens
        before, after = (lookup(torch.tensor(ids)).expand(n, -1, -1) for ids in self.ids)
        parts = [before, image_rows, after]
        if answers is None:
            return torch.cat(parts, 1), None
        longest = max(map(len, answers))
        padded = torch.tensor([ids + [0] * (longest - len(ids)) for ids in answers])
        n_prompt = len(self.ids[0]) + n_image + len(self.ids[1])
        labels = torch.full((n, n_prompt + longest), IGNORED)
        for i, ids in enumerate(answers):
            labels[i, n_prompt : n_prompt + len(ids)] = torch.tensor(ids)
        return torch.cat([*parts, lookup(padded)], 1), labels


def train(pictures_path: Path, encoder_folder: Path, base: Path, tokenizer_folder: Path, out: Path) -> None:
    """Trains the projector and saves its weights to `out`."""
    torch.manual_seed(110)
    tokenizer = load_tokenizer(tokenizer_folder)
    encoder = CLIPVisionModel.from_pretrained(encoder_folder).eval()
    model = GemmaForCausalLM.from_pretrained(base, attn_implementation="eager").eval()
    model.requires_grad_(False)
    with np.load(pictures_path) as archive:
        pictures, captions = torch.from_numpy(archive["pictures"]), archive["captions"].tolist()
        words = torch.from_numpy(archive["words"]).flatten(1).long()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        rows = torch.cat([patch_rows(encoder, part).bfloat16() for part in pictures.split(500)])
    targets = model.model.embed_tokens.weight[word_ids(tokenizer)]
    projector = Projector(rows.shape[2], targets.shape[1])
    align(projector, rows[N_CHECK:].flatten(0, 1), words[N_CHECK:].flatten(), targets)
    caption(projector, rows, captions, model, tokenizer)
    torch.save(projector.state_dict(), out)


def align(projector: Projector, rows: torch.Tensor, words: torch.Tensor, targets: torch.Tensor) -> None:
    """Leads each patch to its word's embedding, by mean squared error."""
    optimizer = optimizer_for(projector)
    size = targets.pow(2).mean()
    for step in range(ALIGN_STEPS):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, ALIGN_STEPS, ALIGN_RATE)
        chosen = torch.randint(len(rows), (ALIGN_BATCH,))
        error = projector(rows[chosen].float()) - targets[words[chosen]]
        loss = error.pow(2).mean() / size
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"  aligned: squared error {loss.item():.4f} of the embeddings' size")


def caption(projector: Projector, rows: torch.Tensor, captions: list[str], model: GemmaForCausalLM, tokenizer) -> None:
    """Trains the projector on captions, through the language model."""
    prompt = Prompt(model, tokenizer)
    optimizer = optimizer_for(projector)
    start, losses = time.time(), []
    for step in range(CAPTION_STEPS):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, CAPTION_STEPS, CAPTION_RATE)
        chosen = torch.randint(N_CHECK, len(rows), (CAPTION_BATCH,))
        answers = [tokenizer.encode(captions[i] + END, add_special_tokens=False) for i in chosen.tolist()]
        embeddings, labels = prompt.embed(projector(rows[chosen].float()), answers)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(inputs_embeds=embeddings, labels=labels, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(projector.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if (step + 1) % 100 == 0:
            print(f"  captions, step {step + 1}: loss {np.mean(losses[-100:]):.4f}, {time.time() - start:.0f} s", flush=True)


@torch.no_grad()
def describe(
    model: GemmaForCausalLM,
    tokenizer,
    image_rows: torch.Tensor,
    steer: torch.Tensor | None = None,
    layer: int = 0,
    image_only: bool = False,
) -> list[str]:
    """Greedy captions for `[n, GRID², d_model]` projected rows, at most 48 tokens; `steer` is added
    to every row after block `layer`, or to the image rows alone."""
    n_before = len(Prompt(model, tokenizer).ids[0])
    where = slice(n_before, n_before + image_rows.shape[1]) if image_only else slice(None)

    def add(_module, _inputs, output):
        hidden = output[0].clone()
        if not image_only or hidden.shape[1] > 1:  # one row is a generated token
            hidden[:, where] += steer
        return (hidden, *output[1:])

    handle = None
    if steer is not None:
        handle = model.model.layers[layer].register_forward_hook(add)
    try:
        embeddings, _ = Prompt(model, tokenizer).embed(image_rows)
        ends = [CONFIG.eos_token_id, tokenizer.convert_tokens_to_ids(END)]
        ids = model.generate(
            inputs_embeds=embeddings,
            attention_mask=torch.ones(embeddings.shape[:2], dtype=torch.long),
            max_new_tokens=48,
            do_sample=False,
            eos_token_id=ends,
            pad_token_id=0,
        )
    finally:
        if handle:
            handle.remove()
    return tokenizer.batch_decode(ids, skip_special_tokens=True)
