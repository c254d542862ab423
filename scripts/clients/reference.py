"""Log-probabilities of texts by the demo's language model, in double precision, as Gemma's paper has it: embeddings
times the root of the width, normed attention with rotary positions and one head of keys and values, gated GELUs."""

import json
import struct

import numpy as np
from demo_server import ROOT

CHECKPOINT = ROOT / "tests/fixtures/demo/llava"


class Reference:
    def __init__(self):
        self.config = json.loads((CHECKPOINT / "config.json").read_text())["text_config"]
        self.tensors = read_safetensors(CHECKPOINT / "model.safetensors", "language_model.model.")

    def log_probs(self, ids):
        """Of each token of the vocabulary, behind each of `ids`: [ids, vocabulary]."""
        embeddings = self.tensors["embed_tokens.weight"]
        rows = embeddings[ids] * np.sqrt(self.config["hidden_size"])
        for layer in range(self.config["num_hidden_layers"]):
            name = f"layers.{layer}."
            rows = rows + self.attention(self.norm(rows, name + "input_layernorm"), name + "self_attn.")
            normed = self.norm(rows, name + "post_attention_layernorm")
            gate, up = self.times(normed, name + "mlp.gate_proj"), self.times(normed, name + "mlp.up_proj")
            rows = rows + self.times(gelu(gate) * up, name + "mlp.down_proj")
        logits = self.norm(rows, "norm") @ embeddings.T
        logits -= logits.max(axis=1, keepdims=True)
        return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))

    def times(self, rows, name):
        return rows @ self.tensors[name + ".weight"].T

    def norm(self, rows, name):
        mean = np.mean(rows**2, axis=1, keepdims=True)
        return rows / np.sqrt(mean + self.config["rms_norm_eps"]) * (1 + self.tensors[name + ".weight"])

    def attention(self, rows, name):
        n, width = len(rows), self.config["head_dim"]
        heads = [self.times(rows, name + kind).reshape(n, -1, width) for kind in ("q_proj", "k_proj", "v_proj")]
        q, k, v = rotated(heads[0], self.config), rotated(heads[1], self.config), heads[2]
        group = q.shape[1] // k.shape[1]
        k, v = np.repeat(k, group, axis=1), np.repeat(v, group, axis=1)
        scores = np.einsum("ihd,jhd->hij", q, k) / np.sqrt(width)
        scores = np.where(np.tri(n, dtype=bool), scores, -np.inf)
        weights = np.exp(scores - scores.max(axis=2, keepdims=True))
        weights /= weights.sum(axis=2, keepdims=True)
        return self.times(np.einsum("hij,jhd->ihd", weights, v).reshape(n, -1), name + "o_proj")


def rotated(heads, config):
    half = config["head_dim"] // 2
    speeds = config["rope_theta"] ** (-np.arange(half) / half)
    angles = np.arange(len(heads))[:, None, None] * speeds
    first, second = heads[..., :half], heads[..., half:]
    cos, sin = np.cos(angles), np.sin(angles)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def read_safetensors(path, prefix):
    with open(path, "rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
        data = file.read()
    tensors = {}
    for name, about in header.items():
        if name.startswith(prefix):
            begin, end = about["data_offsets"]
            values = np.frombuffer(data[begin:end], {"F16": np.float16, "F32": np.float32}[about["dtype"]])
            tensors[name.removeprefix(prefix)] = values.reshape(about["shape"]).astype(np.float64)
    return tensors
