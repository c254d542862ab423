"""The tokenizer and the language model: a small Gemma-1, trained on text only."""

import copy
import math
import random
import time
from pathlib import Path

import numpy as np
import sentencepiece
import torch
from transformers import GemmaConfig, GemmaForCausalLM, GemmaTokenizerFast

import corpus
from words import PATCH_WORDS

VOCABULARY = 2048
LENGTH = 128  # tokens of a training row
BATCH = 64
STEPS = 3000
PEAK_RATE = 2e-3
DEEPEN_STEPS, DEEPEN_RATE = 300, 4e-4
IGNORED = -100

CONFIG = GemmaConfig(
    vocab_size=VOCABULARY,
    hidden_size=192,
    intermediate_size=640,
    num_hidden_layers=6,
    num_attention_heads=6,
    num_key_value_heads=1,
    head_dim=32,
    max_position_embeddings=512,
    pad_token_id=0,
    eos_token_id=1,
    bos_token_id=2,
)


def train_tokenizer(out: Path) -> None:
    """Writes `out/tokenizer.model`: SentencePiece BPE with bytes to fall back on, as Gemma's."""
    rng = random.Random(101)
    makers = [corpus.prose, corpus.chat, corpus.text_chat]
    lines = [rng.choice(makers)(rng) for _ in range(30_000)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter("\n".join(lines).replace("<start_of_turn>", "").replace("<end_of_turn>", "").split("\n")),
        model_prefix=str(out / "tokenizer"),
        model_type="bpe",
        vocab_size=VOCABULARY,
        byte_fallback=True,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        pad_piece="<pad>",
        eos_piece="<eos>",
        bos_piece="<bos>",
        control_symbols=["<mask>", "<start_of_turn>", "<end_of_turn>", "<image>"],
        user_defined_symbols=["\n"],
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        split_digits=True,
        character_coverage=1.0,
        minloglevel=2,
    )
    (out / "tokenizer.vocab").unlink()
    tokenizer = load_tokenizer(out)
    split = [word for word in PATCH_WORDS if len(tokenizer.encode(f" {word}", add_special_tokens=False)) > 1]
    if split:
        raise SystemExit(f"error: not one token each: {split}")
    print(f"tokenizer: {len(tokenizer)} tokens, {len(PATCH_WORDS)} patch words of one token each")


def load_tokenizer(folder: Path) -> GemmaTokenizerFast:
    return GemmaTokenizerFast(
        vocab_file=str(folder / "tokenizer.model"),
        additional_special_tokens=["<start_of_turn>", "<end_of_turn>", "<image>"],
    )


def word_ids(tokenizer: GemmaTokenizerFast) -> list[int]:
    """The token of each patch word, with its leading space."""
    return [tokenizer.encode(f" {word}", add_special_tokens=False)[0] for word in PATCH_WORDS]


class Rows:
    """Endless training rows: half prose, packed; half conversations, padded."""

    def __init__(self, tokenizer: GemmaTokenizerFast, seed: int):
        self.tokenizer = tokenizer
        self.rng = random.Random(seed)
        self.rest: list[int] = []
        self.turn = tokenizer.convert_tokens_to_ids("<start_of_turn>")

    def prose(self) -> tuple[list[int], list[int]]:
        while len(self.rest) < LENGTH:
            maker = corpus.prose if self.rng.random() < 0.85 else corpus.text_chat
            self.rest += self.tokenizer.encode(maker(self.rng)) + [self.tokenizer.eos_token_id]
        row, self.rest = self.rest[:LENGTH], self.rest[LENGTH:]
        return row, row

    def chat(self) -> tuple[list[int], list[int]]:
        """Only the answer is learnt."""
        ids = self.tokenizer.encode(corpus.chat(self.rng))[:LENGTH]
        answer = len(ids) - 1 - ids[::-1].index(self.turn) + 3  # behind `<start_of_turn>model\n`
        labels = [IGNORED] * answer + ids[answer:]
        padding = LENGTH - len(ids)
        return ids + [0] * padding, labels + [IGNORED] * padding

    def batch(self, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        rows = [self.chat() if i % 2 else self.prose() for i in range(size)]
        ids, labels = zip(*rows)
        return torch.tensor(ids), torch.tensor(labels)


def learning_rate(step: int, steps: int, peak: float) -> float:
    """A warm-up, then a half cosine down to a twentieth."""
    warm_up = min(100, steps // 10)
    if step < warm_up:
        return peak * (step + 1) / warm_up
    progress = (step - warm_up) / (steps - warm_up)
    return peak * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress)))


def optimizer_for(model: torch.nn.Module) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only."""
    matrices = [p for p in model.parameters() if p.ndim > 1 and p.requires_grad]
    others = [p for p in model.parameters() if p.ndim <= 1 and p.requires_grad]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)


def train(tokenizer_folder: Path, out: Path) -> None:
    """Trains a language model of six blocks and saves it to `out`."""
    torch.manual_seed(103)
    # Eager attention and the compiler take two thirds of the time of the defaults on 2 cores.
    model = GemmaForCausalLM._from_config(CONFIG, attn_implementation="eager")
    fit(model, Rows(load_tokenizer(tokenizer_folder), seed=102), STEPS, PEAK_RATE)
    model.save_pretrained(out)


def deepen(shallow: Path, tokenizer_folder: Path, out: Path) -> None:
    """Adds a block behind the first one, as an identity, and trains on (block expansion, Wu et al.
    2024, arXiv:2401.02415).

    The shallow model's second block already carries what a scene shows to the text behind it, so that
    changing the rows of the scene after that block has little effect; and llama.cpp's control vectors
    begin after the second block. With one more before it, what comes after the second block is still
    in the scene's rows.
    """
    torch.manual_seed(117)
    model = GemmaForCausalLM.from_pretrained(shallow, attn_implementation="eager").train()
    block = copy.deepcopy(model.model.layers[0])
    torch.nn.init.zeros_(block.self_attn.o_proj.weight)
    torch.nn.init.zeros_(block.mlp.down_proj.weight)
    model.model.layers.insert(1, block)
    for i, layer in enumerate(model.model.layers):
        layer.self_attn.layer_idx = i
    model.config.num_hidden_layers = len(model.model.layers)
    fit(model, Rows(load_tokenizer(tokenizer_folder), seed=118), DEEPEN_STEPS, DEEPEN_RATE)
    model.save_pretrained(out)


def fit(model: GemmaForCausalLM, rows: Rows, steps: int, peak_rate: float) -> None:
    """Trains a language model."""
    compiled = torch.compile(model)
    optimizer = optimizer_for(model)
    print(f"language model: {sum(p.numel() for p in model.parameters()):,} parameters")
    start, losses = time.time(), []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, peak_rate)
        ids, labels = rows.batch(BATCH)
        with torch.autocast("cpu", torch.bfloat16):
            loss = compiled(input_ids=ids, labels=labels, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if (step + 1) % 100 == 0:
            rate = (step + 1) * BATCH * LENGTH / (time.time() - start)
            print(f"  step {step + 1}: loss {np.mean(losses[-100:]):.4f}, {rate:,.0f} tokens/s", flush=True)
