"""The trained parts as one Hugging Face LLaVA-Gemma folder, in the form of transformers 4.39 to 5.3,
which scale image rows by sqrt(d_model) as llama.cpp does."""

import json
import shutil
from pathlib import Path

import torch
from transformers import CLIPVisionModel, GemmaForCausalLM, LlavaConfig, LlavaForConditionalGeneration

import scenes
from language_model import load_tokenizer
from vision import MEAN, STD

# Gemma's chat template: the image, a newline, the text.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<start_of_turn>' + ('model' if m['role']=='assistant' else m['role']) + '\n' }}"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type']=='image' %}{{ '<image>\n' }}{% else %}{{ c['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)


def build(encoder_folder: Path, base: Path, projector_path: Path) -> LlavaForConditionalGeneration:
    """The whole model, of its trained parts, rounded to f16: f16 files lose nothing."""
    encoder = CLIPVisionModel.from_pretrained(encoder_folder)
    language_model = GemmaForCausalLM.from_pretrained(base)
    config = LlavaConfig(
        vision_config=encoder.config,
        text_config=language_model.config,
        image_token_index=7,
        image_seq_length=scenes.GRID**2,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        projector_hidden_act="gelu",
    )
    model = LlavaForConditionalGeneration(config)
    model.vision_tower.load_state_dict(encoder.state_dict())
    model.language_model.load_state_dict(language_model.state_dict())
    model.multi_modal_projector.load_state_dict(torch.load(projector_path))
    return model.eval().half()


def export(encoder_folder: Path, base: Path, projector_path: Path, tokenizer_folder: Path, out: Path) -> None:
    """Writes the folder that the converter reads."""
    tokenizer = load_tokenizer(tokenizer_folder)
    model = build(encoder_folder, base, projector_path)
    model.generation_config.eos_token_id = [1, tokenizer.convert_tokens_to_ids("<end_of_turn>")]
    model.save_pretrained(out)
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(out)
    shutil.copy(tokenizer_folder / "tokenizer.model", out)
    processor = {
        "image_processor_type": "CLIPImageProcessor",
        "crop_size": {"height": scenes.SIZE, "width": scenes.SIZE},
        "size": {"shortest_edge": scenes.SIZE},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [round(float(value), 8) for value in MEAN],
        "image_std": [round(float(value), 8) for value in STD],
        "resample": 3,
        "rescale_factor": 1 / 255,
    }
    (out / "preprocessor_config.json").write_text(json.dumps(processor, indent=2) + "\n")
