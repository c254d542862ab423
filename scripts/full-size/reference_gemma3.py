"""transformers' numbers for the full-size Gemma 3, in float32:

    python reference_gemma3.py CHECKPOINT PICTURE     writes `reference.safetensors` and `picture.png` there, the
                                                      picture as large as the model sees it

All blocks run; memory for one module's weights is enough (`stream` in reference.py).
"""

import sys
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Gemma3Processor
from transformers.modeling_utils import no_init_weights

from make_gemma3 import HOOK_LAYER, published
from reference import PROMPT, Weights, stream


def load(checkpoint: Path) -> Gemma3ForConditionalGeneration:
    config = Gemma3Config.from_pretrained(checkpoint, dtype=torch.float32, attn_implementation="eager")
    with no_init_weights():
        model = Gemma3ForConditionalGeneration(config).eval()
    model.tie_weights()  # the output matrix is the embedding
    read = Weights(checkpoint).get
    stream(model, lambda name: read(published(name)))
    return model


@torch.no_grad()
def main() -> None:
    folder, picture_path = map(Path, sys.argv[1:])
    checkpoint = folder / "llava"
    model, processor = load(checkpoint), Gemma3Processor.from_pretrained(checkpoint)
    size = (model.config.vision_config.image_size,) * 2
    picture = Image.open(picture_path).convert("RGB").resize(size, Image.Resampling.BILINEAR)
    picture.save(folder / "picture.png")
    turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": PROMPT}]}]
    text = processor.apply_chat_template(turn, add_generation_prompt=True)
    inputs = processor(images=picture, text=text, add_special_tokens=False, return_tensors="pt")

    seen = {}
    keep = lambda name: lambda _module, _inputs, output: seen.update({name: output})
    model.model.multi_modal_projector.register_forward_hook(keep("image"))
    model.model.language_model.layers[HOOK_LAYER].register_forward_hook(keep("resid"))
    output = model(**inputs, logits_to_keep=1, use_cache=False)
    resid = seen["resid"][0] if isinstance(seen["resid"], tuple) else seen["resid"]
    sae = load_file(folder / "sae/params.safetensors")
    ids = inputs["input_ids"][0]
    save_file(
        {
            "token_ids": torch.where(ids == model.config.image_token_id, -1, ids),
            "image_embeddings": seen["image"][0].contiguous(),
            "resid": resid[0].contiguous(),
            "logits": output.logits[0, -1].contiguous(),
            "pre_activations": resid[0] @ sae["w_enc"] + sae["b_enc"],
            "threshold": sae["threshold"],
        },
        folder / "reference.safetensors",
    )


if __name__ == "__main__":
    main()
