"""How sure transformers is of each of its captions: the smallest distance between the two best logits
of a caption's steps, as a part of the logits' norm. Another number type gives the same caption where
that is more than twice its own error.

`python margins.py [FOLDER]` adds them to the `oracle.json` of a folder that is laid out as
`tests/fixtures/demo`, the default.
"""

import json
import sys
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPImageProcessor, LlavaForConditionalGeneration

import sae as text_sae

FIXTURE = Path(__file__).parents[1] / "tests/fixtures/demo"


@torch.no_grad()
def smallest_margin(
    model: LlavaForConditionalGeneration,
    prompt_ids: torch.Tensor,
    pixels: torch.Tensor,
    greedy_ids: torch.Tensor,
    direction: torch.Tensor | None,
) -> float:
    """Of the steps of one run, steered everywhere by `direction`, whose ids are known."""

    def at_hook(_module, _inputs, output):
        return (output[0] + direction, *output[1:]) if direction is not None else output

    handle = model.language_model.model.layers[text_sae.LAYER].register_forward_hook(at_hook)
    try:
        ids = torch.cat([prompt_ids, greedy_ids[:-1]])[None]
        logits = model(input_ids=ids, pixel_values=pixels).logits[0, len(prompt_ids) - 1 :]
    finally:
        handle.remove()
    assert torch.equal(logits.argmax(-1), greedy_ids), "the oracle's run is another"
    best, second = logits.topk(2).values.unbind(-1)
    return ((best - second) / logits.norm(dim=-1)).min().item()


def add(oracle: Path, llava: Path, sae_folder: Path) -> None:
    """Adds `margin` and `steered_margins` to each picture in the `oracle.json` of a folder."""
    model = LlavaForConditionalGeneration.from_pretrained(llava).eval()
    processor = CLIPImageProcessor.from_pretrained(llava)
    w_dec = text_sae.load_file(sae_folder / "sae_weights.safetensors")["W_dec"]
    tensors = load_file(oracle / "oracle.safetensors")
    report = json.loads((oracle / "oracle.json").read_text())
    for entry in report["pictures"]:
        name = entry["picture"]
        image = Image.open(oracle / "pictures" / name)
        pixels = processor(image, return_tensors="pt")["pixel_values"]

        def margin(run: str, direction: torch.Tensor | None) -> float:
            ids = tensors[f"{name}/{run}greedy_ids"]
            return round(smallest_margin(model, tensors["prompt_ids"], pixels, ids, direction), 6)

        entry["margin"] = margin("", None)
        entry["steered_margins"] = {
            strength: margin(f"steer{strength}/", float(strength) * w_dec[entry["feature"]])
            for strength in entry["steered"]
        }
    (oracle / "oracle.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FIXTURE
    add(folder, folder / "llava", folder / "sae")
