"""The numbers of transformers on the exported model, which the Rust program's tests compare with.

Pictures by rule: the first of a fixed seed, half with one object and half with two of a pair that
training held out, whatever their captions say.
"""

import json
from pathlib import Path

import torch
import transformers
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPImageProcessor

import margins
import sae as text_sae
from corpus import PROMPT
from evaluate import said_nouns, test_pictures
from models import Demo
from projector import Prompt
from vision import training_drawings

SEED = 131
N_PICTURES = 16
STRENGTHS = [-0.7, -0.4, 0.5]  # times the feature's mean activation on its word in text


@torch.no_grad()
def run(demo: Demo, pixels: torch.Tensor, direction: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """One greedy run through transformers' own LLaVA code, steered everywhere by `direction`."""
    model, tokenizer = demo.model, demo.tokenizer
    before, after = Prompt(model.language_model, tokenizer).ids
    n_image = model.config.image_seq_length
    ids = torch.tensor([before + [model.config.image_token_index] * n_image + after])
    seen = {}

    def at_hook(_module, _inputs, output):
        seen.setdefault("resid", output[0][0].clone())
        return (output[0] + direction, *output[1:]) if direction is not None else output

    handle = model.language_model.model.layers[text_sae.LAYER].register_forward_hook(at_hook)
    try:
        output = model.generate(
            input_ids=ids,
            pixel_values=pixels,
            max_new_tokens=48,
            do_sample=False,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_logits=True,
        )
    finally:
        handle.remove()
    return {
        "prompt_ids": ids[0],
        "resid": seen["resid"],
        "logits": output.logits[0][0],
        "greedy_ids": output.sequences[0, ids.shape[1] :],
    }


def make(demo: Demo, llava: Path, sae_folder: Path, drawings_path: Path, out: Path) -> None:
    """Writes `pictures/`, `oracle.json` and `oracle.safetensors` to `out`."""
    (out / "pictures").mkdir(parents=True, exist_ok=True)
    processor = CLIPImageProcessor.from_pretrained(llava)
    drawings = training_drawings(drawings_path)
    tensors, entries = {}, []
    test = test_pictures(drawings, 3 * N_PICTURES, SEED, held_out=True)
    single = [entry for entry in test if len(entry[0].objects) == 1][: N_PICTURES // 2]
    double = [entry for entry in test if len(entry[0].objects) == 2][: N_PICTURES // 2]
    for i, (scene, picture, _) in enumerate(single + double):
        name = f"{i:02}.png"
        Image.fromarray(picture).save(out / "pictures" / name)
        pixels = processor(Image.open(out / "pictures" / name), return_tensors="pt")["pixel_values"]
        plain = run(demo, pixels, None)
        with torch.no_grad():
            rows = demo.model.get_image_features(pixels, -2, "default")[0]
        tensors["prompt_ids"] = plain.pop("prompt_ids")
        tensors[f"{name}/image_embeddings"] = rows
        tensors[f"{name}/acts"] = demo.acts(plain["resid"])
        tensors.update({f"{name}/{key}": value for key, value in plain.items()})
        caption = demo.tokenizer.decode(plain["greedy_ids"], skip_special_tokens=True)
        noun = scene.objects[0].noun
        chosen = demo.classes[noun]
        steered = {}
        for multiple in STRENGTHS:
            strength = round(multiple * chosen["mean"], 1)
            direction = strength * demo.weights["W_dec"][chosen["feature"]]
            found = run(demo, pixels, direction)
            key = f"{strength:g}"
            for part in ("logits", "greedy_ids"):
                tensors[f"{name}/steer{key}/{part}"] = found[part]
            steered[key] = demo.tokenizer.decode(found["greedy_ids"], skip_special_tokens=True)
        entries.append(
            {
                "picture": name,
                "reference": scene.caption(),
                "caption": caption,
                "noun": noun,
                "feature": chosen["feature"],
                "steered": steered,
            }
        )
    save_file({key: value.contiguous() for key, value in tensors.items()}, out / "oracle.safetensors")
    report = {
        "prompt": PROMPT,
        "layer": text_sae.LAYER,
        "made_with": f"transformers {transformers.__version__}, float32",
        "pictures": entries,
    }
    (out / "oracle.json").write_text(json.dumps(report, indent=1) + "\n")
    margins.add(out, llava, sae_folder)
    n_right = sum(said_nouns(entry["caption"]) == said_nouns(entry["reference"]) for entry in entries)
    print(f"oracle: {len(entries)} pictures, {n_right} captions with the right objects")
