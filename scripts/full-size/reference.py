"""transformers' numbers for the full-size checkpoint, in float32, and how far a capture of ours is from them:

    python reference.py make CHECKPOINT PICTURE     writes `reference.safetensors` and `picture.png` there, the picture
                                                    as large as the model sees it
    python reference.py compare REFERENCE CAPTURE   prints one JSON object

Weights are read from the checkpoint and made float32 as each module runs, so that memory for one module's weights is
enough, and given back.
"""

import json
import sys
from pathlib import Path

import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import CLIPImageProcessor, GemmaTokenizer, LlavaConfig, LlavaForConditionalGeneration
from transformers.modeling_utils import no_init_weights

from make import HOOK_LAYER, NORM_FACTOR

PROMPT = "Describe the image."
# An activation this near to its threshold, as a part of its row's largest, may be active on one side only.
NEAR_THRESHOLD = 1e-3


class Weights:
    """The tensors that the checkpoint's index names."""

    def __init__(self, llava: Path):
        index = json.loads((llava / "model.safetensors.index.json").read_text())["weight_map"]
        files = {file: safe_open(llava / file, "pt") for file in set(index.values())}
        self.get = lambda name: files[index[name]].get_tensor(name).float()


def load(llava: Path) -> LlavaForConditionalGeneration:
    config = LlavaConfig.from_pretrained(llava, torch_dtype=torch.float32)
    for part in (config, config.text_config, config.vision_config):
        part._attn_implementation = "eager"
    with no_init_weights():
        model = LlavaForConditionalGeneration(config).eval()
    model.tie_weights()  # the output matrix is the embedding
    stream(model, Weights(llava).get)
    return model


def stream(model: torch.nn.Module, read) -> None:
    """Has modules hold their weights only while they run; `read` gives a weight by its name."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for module in model.modules():
        own = {key: names[id(parameter)] for key, parameter in module.named_parameters(recurse=False)}

        def take(module, _inputs, own=own):
            for key, name in own.items():
                module._parameters[key] = torch.nn.Parameter(read(name), requires_grad=False)

        def give_back(module, _inputs, _output, own=own):
            for key in own:
                module._parameters[key] = torch.nn.Parameter(torch.empty(0), requires_grad=False)

        if own:
            module.register_forward_pre_hook(take)
            module.register_forward_hook(give_back)


@torch.no_grad()
def make(checkpoint: Path, picture_path: Path) -> None:
    """Token ids, image embeddings, residual rows at the hook, logits, the SAE's pre-activations."""
    llava = checkpoint / "llava"
    model, tokenizer = load(llava), GemmaTokenizer.from_pretrained(llava)
    processor = CLIPImageProcessor.from_pretrained(llava)
    size = (model.config.vision_config.image_size,) * 2
    picture = Image.open(picture_path).convert("RGB").resize(size, Image.Resampling.BICUBIC)
    picture.save(checkpoint / "picture.png")
    pixels = processor(picture, return_tensors="pt")["pixel_values"]
    image = model.get_image_features(pixels, vision_feature_layer=-2, vision_feature_select_strategy="default")[0]

    turn = [{"role": "user", "content": f"<image>\n{PROMPT}"}]
    text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    image_id = model.config.image_token_index
    ids = []
    for token in tokenizer.encode(text, add_special_tokens=False):
        ids += [token] * (len(image) if token == image_id else 1)
    ids = torch.tensor(ids)
    rows = model.get_input_embeddings()(torch.where(ids == image_id, 0, ids))
    rows[ids == image_id] = image

    seen = {}
    layer = model.language_model.model.layers[HOOK_LAYER]
    layer.register_forward_hook(lambda _module, _inputs, output: seen.update(resid=output[0][0]))
    output = model.language_model(inputs_embeds=rows[None], num_logits_to_keep=1, use_cache=False)
    sae = load_file(checkpoint / "sae" / "sae_weights.safetensors")
    save_file(
        {
            "token_ids": torch.where(ids == image_id, -1, ids),
            "image_embeddings": image.contiguous(),
            "resid": seen["resid"].contiguous(),
            "logits": output.logits[0, -1].contiguous(),
            "pre_activations": NORM_FACTOR * seen["resid"] @ sae["W_enc"] + sae["b_enc"],
        },
        checkpoint / "reference.safetensors",
    )


def compare(reference_path: Path, capture_path: Path) -> None:
    reference, ours = load_file(reference_path), load_file(capture_path)
    assert torch.equal(ours["token_ids"].long(), reference["token_ids"].long()), "token ids differ"
    pre = reference["pre_activations"]
    threshold = reference.get("threshold", torch.zeros(pre.shape[1]))
    is_active = pre > threshold
    acts = torch.zeros_like(pre)
    offsets = ours["feature_offsets"]
    rows = torch.repeat_interleave(torch.arange(len(pre)), offsets.diff())
    acts[rows, ours["feature_ids"].long()] = ours["feature_values"]
    one_side = (acts > 0) != is_active
    near = (pre - threshold).abs() < NEAR_THRESHOLD * pre.amax(dim=1, keepdim=True)
    is_image = reference["token_ids"] == -1
    errors = row_errors(ours["resid"], reference["resid"])
    result = {
        "image_embeddings": float(error(ours["image_embeddings"], reference["image_embeddings"])),
        "text_row_worst": float(errors[~is_image].max()),
        "image_row_median": float(errors[is_image].median()),
        "image_row_worst": float(errors[is_image].max()),
        "logits": float(error(ours["logits"], reference["logits"])),
        "same_token": bool(ours["logits"].argmax() == reference["logits"].argmax()),
        "activations": float(error(acts, torch.where(is_active, pre, 0))),
        "active": int(is_active.sum()),
        "active_on_one_side": int(one_side.sum()),
        "not_near": int((one_side & ~near).sum()),
        "mean_norm": float(reference["resid"].norm(dim=1).mean()),
    }
    print(json.dumps(result))


def error(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a - b).norm() / b.norm()


def row_errors(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a - b).norm(dim=1) / b.norm(dim=1)


if __name__ == "__main__":
    command, *paths = sys.argv[1:]
    {"make": make, "compare": compare}[command](*map(Path, paths))
