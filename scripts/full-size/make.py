"""Makes a random LLaVA-Gemma 2B and a random SAE for it, with the shapes and the layout of the published ones:

    python make.py FOLDER        writes FOLDER/llava and FOLDER/sae, 5.9 GB

The shapes are those of Intel/llava-gemma-2b (CLIP ViT-L/14-336, a projector of two layers, Gemma 2B with 256064 rows
of embedding for 256001 tokens) and of SAELens' gemma-2b-res-jb at `blocks.12.hook_resid_post`. Weights are bfloat16,
Gemma's own type, in shards of at most 5 GB behind an index, named as transformers 4.38 to 4.51 names them, and beside
them lies a set of files that the index does not name. Weights are made and written a few megabytes at a time.
"""

import json
import math
import sys
from pathlib import Path

import torch
from transformers import CLIPImageProcessor, LlavaConfig, LlavaForConditionalGeneration

import vocabulary

SHARD_BYTES = 5_000_000_000  # `max_shard_size` of `save_pretrained`
BLOCK_VALUES = 1 << 22
D_MODEL, D_SAE, HOOK_LAYER = 2048, 16384, 12
NORM_FACTOR = 0.21381938399317255  # of the published SAE, in SAELens' table

# What transformers saves of this model; keys that have its defaults are left out, as in published configs.
CONFIG = {
    "architectures": ["LlavaForConditionalGeneration"],
    "ignore_index": -100,
    "image_token_index": 256000,
    "model_type": "llava",
    "projector_hidden_act": "gelu",
    "text_config": {
        "architectures": ["GemmaForCausalLM"],
        "hidden_size": D_MODEL,
        "intermediate_size": 16384,
        "model_type": "gemma",
        "num_attention_heads": 8,
        "num_hidden_layers": 18,
        "num_key_value_heads": 1,
        "torch_dtype": "bfloat16",
        "vocab_size": 256064,
    },
    "torch_dtype": "bfloat16",
    "transformers_version": "4.39.1",
    "vision_config": {
        "hidden_size": 1024,
        "image_size": 336,
        "intermediate_size": 4096,
        "model_type": "clip_vision_model",
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "patch_size": 14,
        "projection_dim": 768,
        "vocab_size": 32000,
    },
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
    "vocab_size": 256064,
}


def main() -> None:
    folder = Path(sys.argv[1])
    llava = folder / "llava"
    for part in (llava, folder / "sae"):
        part.mkdir(parents=True, exist_ok=True)
    write_json(llava / "config.json", CONFIG)
    write_json(llava / "generation_config.json", {"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0})
    CLIPImageProcessor(size={"shortest_edge": 336}, crop_size=336).save_pretrained(llava)
    vocabulary.make(llava)
    rng = torch.Generator().manual_seed(0)
    make_weights(llava, shapes(), rng)
    make_foreign_weights(llava, shapes())
    make_sae(folder / "sae", torch.Generator().manual_seed(1))


def shapes() -> dict[str, list[int]]:
    """The model's tensors in its own order. The output matrix is the embedding, so it is not among them."""
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(LlavaConfig.from_dict(CONFIG))
    return {name: list(parameter.shape) for name, parameter in model.named_parameters()}


def make_weights(folder: Path, tensors: dict[str, list[int]], rng: torch.Generator) -> None:
    """Writes the shards and their index."""
    shards = [{}]
    for name, shape in tensors.items():
        if shards[-1] and n_bytes(shards[-1]) + n_bytes({name: shape}) > SHARD_BYTES:
            shards.append({})
        shards[-1][name] = shape
    weight_map = {}
    for i, shard in enumerate(shards):
        file = f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
        blocks = (block.bfloat16() for name, shape in shard.items() for block in random_blocks(name, shape, rng))
        write_safetensors(folder / file, "BF16", shard, blocks)
        weight_map |= dict.fromkeys(shard, file)
    write_json(
        folder / "model.safetensors.index.json",
        {"metadata": {"total_size": n_bytes(tensors)}, "weight_map": weight_map},
    )


def make_foreign_weights(folder: Path, tensors: dict[str, list[int]]) -> None:
    """The same names in other files; all zeros and holes on the disk, so that reading them shows."""
    names = list(tensors)
    for i in range(3):
        part = {name: tensors[name] for name in names[i::3]}
        write_safetensors(folder / f"model-{i + 1:05}-of-00003.safetensors", "BF16", part, [])


def n_bytes(tensors: dict[str, list[int]]) -> int:
    return sum(2 * math.prod(shape) for shape in tensors.values())


def random_blocks(name: str, shape: list[int], rng: torch.Generator):
    """The tensor's values as float32, some rows at a time. Rows of the residual stream come out with norms of some
    hundreds, as Gemma's have, and attention is neither even nor stuck on one row."""
    scale, offset = 0.02, 0.0
    if "norm" in name or "layrnorm" in name:
        # Gemma adds 1 to its norm weights itself, CLIP does not.
        scale, offset = 0.1, 1.0 if "vision_tower" in name and name.endswith("weight") else 0.0
    elif "vision_tower" in name and ("q_proj.weight" in name or "k_proj.weight" in name):
        scale = 0.04
    elif name.endswith(("q_proj.weight", "k_proj.weight")):
        scale = 0.03
    elif "linear_2" in name:
        scale = 0.002  # Gemma multiplies image rows by sqrt(d_model), as it does token embeddings
    row = math.prod(shape[1:])
    block_rows = max(1, BLOCK_VALUES // row)
    for start in range(0, shape[0], block_rows):
        rows = min(block_rows, shape[0] - start)
        yield torch.randn(rows * row, generator=rng) * scale + offset


def write_safetensors(path: Path, dtype: str, tensors: dict[str, list[int]], blocks) -> None:
    """Writes tensors whose values come as `blocks`, in order; what is missing at the end is a hole."""
    width = {"BF16": 2, "F32": 4}[dtype]
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in tensors.items():
        start, end = end, end + width * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for block in blocks:
            file.write(block.contiguous().view(torch.uint8).numpy())
        file.truncate(8 + len(text) + end)


def make_sae(folder: Path, rng: torch.Generator) -> None:
    """A standard SAE of which some hundred features fire on a row, as on the published one's."""
    w_enc = torch.randn(D_MODEL, D_SAE, generator=rng)
    w_enc /= w_enc.norm(dim=0)
    b_enc = -4.5 + 0.3 * torch.randn(D_SAE, generator=rng)
    w_dec = torch.randn(D_SAE, D_MODEL, generator=rng)
    w_dec *= (0.5 + torch.rand(D_SAE, 1, generator=rng)) / w_dec.norm(dim=1, keepdim=True)
    b_dec = 0.3 * torch.randn(D_MODEL, generator=rng)
    weights = {"W_enc": w_enc, "b_enc": b_enc, "W_dec": w_dec, "b_dec": b_dec}
    tensors = {name: list(weight.shape) for name, weight in weights.items()}
    write_safetensors(folder / "sae_weights.safetensors", "F32", tensors, weights.values())
    write_json(
        folder / "cfg.json",
        {
            "model_name": "gemma-2b",
            "hook_point": f"blocks.{HOOK_LAYER}.hook_resid_post",
            "hook_point_layer": HOOK_LAYER,
            "hook_point_head_index": None,
            "d_in": D_MODEL,
            "d_sae": D_SAE,
            "activation_fn_str": "relu",
            "normalize_activations": "expected_average_only_in",
            "apply_b_dec_to_input": False,
            "context_size": 1024,
            "prepend_bos": True,
            "dtype": "torch.float32",
        },
    )


def write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


if __name__ == "__main__":
    main()
