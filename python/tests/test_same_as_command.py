"""Results equal those of the command in the same package, to the bit."""

import numpy as np
import pytest
from conftest import PICTURE, PICTURES, command, command_json
from safetensors.numpy import load_file

STEERED = [
    (["--steer", "mushroom:-12", "--at", "image"], {"steer": {"mushroom": -12}, "at": "image"}),
    (["--clamp", "10:3", "--units", "unit"], {"clamp": {10: 3}, "units": "unit"}),
    (["--ablate", "mushroom,carrot"], {"ablate": ["mushroom", "carrot"]}),
    (["--scale", "carrot:3", "--when", "carrot>0.5"], {"scale": {"carrot": 3}, "when": ("carrot", 0.5)}),
    (["--project", "mushroom:0", "--at", "image,-1"], {"project": {"mushroom": 0}, "at": ["image", -1]}),
]


@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        ([], {}),
        (["--over", "all", "--pool", "mean"], {"over": "all", "pool": "mean"}),
        (["--rank", "activation", "--exclude", "mushroom"], {"rank": "activation", "exclude": "mushroom"}),
        (["-p", "What is it?", "--exclude-always-on"], {"prompt": "What is it?", "exclude_always_on": True}),
    ],
)
def test_features(model, image, options, arguments):
    printed = command_json("features", *options, PICTURE)
    assert printed.pop("image") == str(PICTURE)
    assert model.features(image, **arguments).report(10) == printed


def test_features_of_a_text(model):
    printed = command_json("features", "-p", "A red carrot.")
    assert printed.pop("image") is None
    assert model.features(prompt="A red carrot.").report(10) == printed


@pytest.mark.parametrize(("options", "arguments"), STEERED)
def test_steered_texts(model, image, options, arguments):
    printed = command_json(*options, PICTURE)
    text = model.generate(image, **arguments)
    assert (text, text.token_ids, text.stop) == tuple(printed["steered"].values())
    assert text.interventions == printed["interventions"]
    with model.steered(**arguments):
        assert model.generate(image).token_ids == text.token_ids


def test_texts(model, image):
    for options, arguments in [
        ([], {}),
        (["--temp", "2", "--seed", "7", "-n", "9"], {"temperature": 2, "seed": 7, "max_tokens": 9}),
    ]:
        printed = command_json(*options, PICTURE)["original"]
        text = model.generate(image, **arguments)
        assert (text, text.token_ids, text.stop) == tuple(printed.values())
        pieces = list(stream := model.generate(image, stream=True, **arguments))
        assert "".join(piece.text for piece in pieces) == text
        assert stream.text == text and stream.text.token_ids == text.token_ids


def test_several_images(model):
    paths = [PICTURES / "frog.png", PICTURES / "boat.png"]
    printed = command_json(*paths)["original"]
    assert model.generate(paths).token_ids == printed["token_ids"]


@pytest.mark.parametrize("max_tokens", [0, 6])
def test_captures(model, image, tmp_path, max_tokens):
    file = tmp_path / "rows.safetensors"
    command("capture", "-n", max_tokens, "--clamp", "mushroom:0", "-o", file, PICTURE)
    captured = model.capture(image, max_tokens=max_tokens, clamp={"mushroom": 0})
    tensors = load_file(file)
    assert tensors.keys() == captured.tensors.keys()
    for name, tensor in tensors.items():
        ours = captured[name]
        assert (ours.dtype, ours.shape) == (tensor.dtype, tensor.shape), name
        assert ours.tobytes() == tensor.tobytes(), name
    assert captured.resid.base is not None, "the rows are the run's own"
    assert np.array_equal(captured.csr.data, tensors["feature_values"])
    logits = model.logits(image, clamp={"mushroom": 0})
    assert np.array_equal(logits, captured.logits)
    assert np.array_equal(image.embeddings, captured.image_embeddings)


def test_sweeps(model, image):
    printed = command_json("sweep", "--steer", "mushroom:-12..0:4", "--at", "image", "--word", "mushroom", PICTURE)
    sweep = model.sweep(image, steer={"mushroom": range(-12, 1, 4)}, at="image", word="mushroom")
    names = ("original", "steered", "feature", "label", "units", "at", "word", "model", "prompt")
    assert {name: sweep.report()[name] for name in names} == {name: printed[name] for name in names}
    assert "<html" in sweep.page()


def test_metrics(model, image, tmp_path):
    printed = command_json("metrics", PICTURE)
    measured = model.metrics(image)
    assert measured == {name: printed[name] for name in measured}
    text = "A red carrot and a frog. " * 20
    (tmp_path / "text.txt").write_text(text)
    printed = command_json("metrics", "--text", tmp_path / "text.txt")
    assert model.metrics(text=text)["loss"] == printed["loss"]


def test_cards(model):
    printed = command_json("feature", "mushroom", "--top", "3")
    assert [model.feature("mushroom", top=3)] == printed["features"]


def test_version():
    import llava_sae

    assert command("--version").split() == ["llava-sae-cpp", llava_sae.__version__]
