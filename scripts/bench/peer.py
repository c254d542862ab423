"""The same job in Python: transformers and the SAE's formulas in PyTorch, on the checkpoint of the full-size check.

    python peer.py CHECKPOINT PICTURE N_TOKENS float32|bfloat16 cache|no-cache ROUNDS

The picture is described with the features of every row (the ten largest of each) and one feature's decoder direction
added everywhere, as the main command does with `--steer 4501:-6 --top 10`. Without a cache every token runs the whole
sequence again, as the original experiment did; every such token takes the same time but for its position, so the first
stands for all. Prints one JSON object: seconds of each round after loading, for the image, the prompt and a token.
"""

import json
import resource
import sys
import time
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPImageProcessor, DynamicCache, GemmaTokenizer, LlavaForConditionalGeneration

sys.path.insert(0, str(Path(__file__).parents[1] / "full-size"))
from make import HOOK_LAYER, NORM_FACTOR  # noqa: E402
from reference import PROMPT  # noqa: E402

FEATURE, STRENGTH, TOP = 4501, -6.0, 10
UNCACHED_TOKENS = 1


class Sae:
    """Reads features at the hook and adds a decoder direction there."""

    def __init__(self, path: Path, dtype: torch.dtype):
        weights = load_file(path)
        self.w_enc = (NORM_FACTOR * weights["W_enc"]).to(dtype)
        self.b_enc = weights["b_enc"].to(dtype)
        self.delta = (STRENGTH / NORM_FACTOR * weights["W_dec"][FEATURE]).to(dtype)
        self.top = []

    def hook(self, _module, _inputs, output):
        rows = output[0]
        acts = torch.relu(rows[0] @ self.w_enc + self.b_enc)
        self.top.append(acts.topk(TOP, dim=1))
        return (rows + self.delta, *output[1:])


@torch.no_grad()
def main() -> None:
    checkpoint, picture = Path(sys.argv[1]), Path(sys.argv[2])
    n_tokens, dtype, cached, rounds = int(sys.argv[3]), getattr(torch, sys.argv[4]), sys.argv[5] == "cache", int(sys.argv[6])
    start = time.monotonic()
    model = LlavaForConditionalGeneration.from_pretrained(checkpoint / "llava", torch_dtype=dtype).eval()
    sae = Sae(checkpoint / "sae" / "sae_weights.safetensors", dtype)
    model.language_model.model.layers[HOOK_LAYER].register_forward_hook(sae.hook)
    load = time.monotonic() - start
    inputs = prepare(model, checkpoint / "llava")
    result = {"load": load, "image": [], "prompt": [], "token": [], "caption": []}
    for _ in range(rounds):
        times = describe(model, sae, inputs, picture, n_tokens, cached)
        for key, seconds in times.items():
            result[key].append(seconds)
    result["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(result))


def prepare(model, llava: Path):
    """The processor, and the prompt's ids with one for each image row."""
    processor, tokenizer = CLIPImageProcessor.from_pretrained(llava), GemmaTokenizer.from_pretrained(llava)
    turn = [{"role": "user", "content": f"<image>\n{PROMPT}"}]
    text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    vision = model.config.vision_config
    n_image = (vision.image_size // vision.patch_size) ** 2
    image_id = model.config.image_token_index
    ids = []
    for token in tokenizer.encode(text, add_special_tokens=False):
        ids += [token] * (n_image if token == image_id else 1)
    return processor, torch.tensor(ids)


def describe(model, sae: Sae, inputs, picture: Path, n_tokens: int, cached: bool) -> dict[str, float]:
    processor, ids = inputs
    sae.top.clear()
    start = time.monotonic()
    pixels = processor(Image.open(picture).convert("RGB"), return_tensors="pt")["pixel_values"].to(model.dtype)
    image = model.get_image_features(pixels, vision_feature_layer=-2, vision_feature_select_strategy="default")[0]
    is_image = ids == model.config.image_token_index
    rows = model.get_input_embeddings()(torch.where(is_image, 0, ids))
    rows[is_image] = image
    encoded = time.monotonic()
    language_model = model.language_model
    cache = DynamicCache() if cached else None
    run = lambda rows: language_model(inputs_embeds=rows, past_key_values=cache, use_cache=cached, num_logits_to_keep=1)
    token = run(rows[None]).logits[0, -1].argmax()
    prompted = time.monotonic()
    n_timed = n_tokens - 1 if cached else UNCACHED_TOKENS
    embed = model.get_input_embeddings()
    for _ in range(n_timed):
        row = embed(token[None])
        rows = row if cached else torch.cat([rows, row])
        token = run(rows[None]).logits[0, -1].argmax()
    per_token = (time.monotonic() - prompted) / n_timed
    image_time, prompt_time = encoded - start, prompted - encoded
    caption = image_time + prompt_time + (n_tokens - 1) * per_token
    return {"image": image_time, "prompt": prompt_time, "token": per_token, "caption": caption}


if __name__ == "__main__":
    main()
