"""The command gives transformers' numbers, whichever build of it this is; see tests/it/oracle.rs for the tolerances.

LLAVA_SAE_PROGRAM names a program to be tried in place of the package's command.
"""

import json

import numpy as np
import pytest
from conftest import ROOT, command, command_json
from safetensors.numpy import load_file

DEMO = ROOT / "tests/fixtures/demo"
ORACLE = json.loads((DEMO / "oracle.json").read_text())
NUMBERS = load_file(DEMO / "oracle.safetensors")
THRESHOLD = load_file(DEMO / "sae/sae_weights.safetensors")["threshold"]
# In f32 throughout; the language model's GELU is looked up in a table of f16.
EXACT = ["--kv-type", "f32", "--flash-attn", "off"]
TOLERANCE = 1e-3


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("oracle") / "demo"
    command("convert", "--llava", DEMO / "llava", "--sae", DEMO / "sae", "--type", "f32", "--mmproj-type", "f32", "--sae-type",
        "f32", "-o", folder)  # fmt: skip
    return ["--model-dir", folder, *EXACT]


def error(ours, expected):
    ours, expected = np.asarray(ours, np.float64).ravel(), np.asarray(expected, np.float64).ravel()
    return np.linalg.norm(ours - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("one", ORACLE["pictures"], ids=lambda one: one["picture"])
def test_numbers_and_texts_are_those_of_transformers(model, tmp_path, one):
    name = one["picture"]
    picture, file = DEMO / "pictures" / name, tmp_path / "rows.safetensors"
    command("capture", *model, "-n", 0, "-o", file, picture)
    rows = load_file(file)
    assert error(rows["image_embeddings"], NUMBERS[f"{name}/image_embeddings"]) < 1e-5
    assert error(rows["resid"], NUMBERS[f"{name}/resid"]) < TOLERANCE
    assert error(rows["logits"], NUMBERS[f"{name}/logits"]) < TOLERANCE
    expected = NUMBERS[f"{name}/acts"]
    activations = np.zeros_like(expected)
    for row, (start, end) in enumerate(zip(rows["feature_offsets"], rows["feature_offsets"][1:], strict=False)):
        activations[row, rows["feature_ids"][start:end]] = rows["feature_values"][start:end]
    both = (activations > 0) & (expected > 0)
    assert error(activations[both], expected[both]) < TOLERANCE
    # A feature may be active on one side alone if its activation is next to its threshold.
    near = TOLERANCE * np.maximum(THRESHOLD, expected.max(axis=1, keepdims=True))
    values = np.maximum(activations, expected)
    assert (both | (values == 0) | (np.abs(values - THRESHOLD) < near)).all()
    assert command_json(*model, "-n", 48, picture)["original"]["text"] == one["caption"]
    for strength, caption in one["steered"].items():
        printed = command_json(*model, "-n", 48, "--steer", f"{one['feature']}:{strength}", picture)
        assert printed["steered"]["text"] == caption
