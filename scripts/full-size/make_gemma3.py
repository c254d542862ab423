"""Makes a random Gemma 3 4B and a random SAE for it, with the shapes and the layout of the published ones:

    python make_gemma3.py FOLDER        writes FOLDER/llava and FOLDER/sae, 8.9 GB

The shapes are those of google/gemma-3-4b-it (SigLIP of 896 pixels, 256 rows a picture, 34 layers, 262208 rows of
embedding for 262145 tokens) and of Gemma Scope 2's SAEs at `model.layers.17.output`. Weights are bfloat16, in shards
of at most 5 GB behind an index, under their published names.
"""

import re
import sys
from pathlib import Path

import torch
from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Gemma3ImageProcessor, Gemma3Processor
from transformers import GemmaTokenizer

import vocabulary
from make import make_weights, write_json, write_safetensors

D_MODEL, D_SAE, HOOK_LAYER = 2560, 16384, 17

# What google/gemma-3-4b-it has; keys that have transformers' defaults are left out, as there.
CONFIG = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "boi_token_index": 255999,
    "eoi_token_index": 256000,
    "eos_token_id": [1, 106],
    "image_token_index": 262144,
    "mm_tokens_per_image": 256,
    "model_type": "gemma3",
    "text_config": {
        "hidden_size": D_MODEL,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
    "torch_dtype": "bfloat16",
    "transformers_version": "4.50.0.dev0",
    "vision_config": {
        "hidden_size": 1152,
        "image_size": 896,
        "intermediate_size": 4304,
        "model_type": "siglip_vision_model",
        "num_attention_heads": 16,
        "num_hidden_layers": 27,
        "patch_size": 14,
        "vision_use_head": False,
    },
}
# transformers' names of modules, and those of the published weights (`_checkpoint_conversion_mapping`).
PUBLISHED = [
    (r"^model\.language_model\.", "language_model.model."),
    (r"^model\.(vision_tower|multi_modal_projector)\.", r"\1."),
]


def published(name: str) -> str:
    """A weight's name in the published files."""
    for pattern, target in PUBLISHED:
        name = re.sub(pattern, target, name)
    return name


def main() -> None:
    folder = Path(sys.argv[1])
    checkpoint = folder / "llava"
    for part in (checkpoint, folder / "sae"):
        part.mkdir(parents=True, exist_ok=True)
    vocabulary.make(checkpoint, vocabulary.GEMMA3)
    tokenizer = GemmaTokenizer.from_pretrained(checkpoint)
    images = Gemma3ImageProcessor(size={"height": 896, "width": 896})
    Gemma3Processor(images, tokenizer, tokenizer.chat_template, image_seq_length=256).save_pretrained(checkpoint)
    write_json(checkpoint / "config.json", CONFIG)
    write_json(checkpoint / "generation_config.json", {"bos_token_id": 2, "eos_token_id": [1, 106], "pad_token_id": 0})
    make_weights(checkpoint, shapes(), torch.Generator().manual_seed(0))
    make_sae(folder / "sae", torch.Generator().manual_seed(1))


def shapes() -> dict[str, list[int]]:
    """The model's tensors in its own order. The output matrix is the embedding, so it is not among them."""
    with torch.device("meta"):
        model = Gemma3ForConditionalGeneration(Gemma3Config.from_dict(CONFIG))
    model.tie_weights()
    return {published(name): list(parameter.shape) for name, parameter in model.named_parameters()}


def make_sae(folder: Path, rng: torch.Generator) -> None:
    """A jumprelu SAE of which some hundred features fire on a row."""
    w_enc = torch.randn(D_MODEL, D_SAE, generator=rng)
    w_enc /= w_enc.norm(dim=0)
    w_dec = torch.randn(D_SAE, D_MODEL, generator=rng)
    w_dec /= w_dec.norm(dim=1, keepdim=True)
    weights = {
        "w_enc": w_enc,
        "w_dec": w_dec,
        "b_enc": 0.3 * torch.randn(D_SAE, generator=rng),
        "b_dec": 0.3 * torch.randn(D_MODEL, generator=rng),
        "threshold": 12 + 6 * torch.rand(D_SAE, generator=rng),
    }
    tensors = {name: list(weight.shape) for name, weight in weights.items()}
    write_safetensors(folder / "params.safetensors", "F32", tensors, weights.values())
    hook_point = f"model.layers.{HOOK_LAYER}.output"
    config = {
        "hf_hook_point_in": hook_point,
        "hf_hook_point_out": hook_point,
        "width": D_SAE,
        "model_name": "google/gemma-3-4b-it",
        "architecture": "jump_relu",
        "l0": 100,
        "affine_connection": False,
        "type": "sae",
    }
    write_json(folder / "config.json", config)


if __name__ == "__main__":
    main()
