"""What is refused, and by which exception."""

import builtins

import numpy as np
import pytest
from conftest import PICTURE

import llava_sae
from llava_sae import _native, errors


def test_every_kind_of_error_has_its_class():
    for kind, name in _native.ERROR_KINDS:
        error = errors.of_kind(kind, "what", "hint")
        assert type(error) is not llava_sae.LlavaSaeError, kind
        assert isinstance(error, llava_sae.LlavaSaeError) and isinstance(error, getattr(builtins, name))
        assert (str(error), error.hint) == ("what\nhint: hint", "hint")


def test_missing_files(model, tmp_path):
    with pytest.raises(FileNotFoundError) as raised:
        model.image(tmp_path / "none.png")
    assert isinstance(raised.value, errors.MissingFileError)
    with pytest.raises(FileNotFoundError):
        llava_sae.open(model=tmp_path / "none.gguf", sae=tmp_path / "none.gguf", quiet=True)
    with pytest.raises(FileNotFoundError):
        llava_sae.SAE.open(tmp_path / "none.gguf")
    with pytest.raises(ValueError, match="no `model"):
        llava_sae.open(tmp_path, quiet=True)
    with pytest.raises(errors.LlavaSaeError):
        llava_sae.open("no-such-model", offline=True, quiet=True)
    with pytest.raises(errors.InvalidError, match="no model is named"):
        llava_sae.open()
    with pytest.raises(errors.InvalidError, match="threads"):
        llava_sae.open(tmp_path, threads=0)


def test_damaged_files(tmp_path):
    model, mmproj, sae = _native.demo_files()
    header = bytearray(model.read_bytes())
    (tmp_path / "sae.gguf").write_bytes(sae.read_bytes()[:5000])
    with pytest.raises(errors.LlavaSaeError):
        llava_sae.open(model=model, mmproj=mmproj, sae=tmp_path / "sae.gguf", quiet=True)
    # A model whose numbers are none kills or spoils what runs it: another process finds out.
    header[len(header) // 2 :] = b"\xff" * (len(header) - len(header) // 2)
    (tmp_path / "model.gguf").write_bytes(header)
    with pytest.raises(errors.LlavaSaeError):
        llava_sae.open(model=tmp_path / "model.gguf", mmproj=mmproj, sae=sae, quiet=True)


def test_files_that_are_new_are_tried(tmp_path):
    model, mmproj, sae = _native.demo_files()
    (tmp_path / "model.gguf").write_bytes(model.read_bytes())
    with llava_sae.open(model=tmp_path / "model.gguf", mmproj=mmproj, sae=sae, quiet=True) as opened:
        assert opened.generate(PICTURE, max_tokens=1).stop == "length"


@pytest.mark.parametrize(
    ("feature", "error"),
    [
        ("no such thing", KeyError),
        (10**6, IndexError),
        (-1, errors.UnknownFeatureError),
        (np.int64(10**7), LookupError),
        ("", errors.LlavaSaeError),
        (1.5, TypeError),
        (True, TypeError),
    ],
)
def test_features_that_are_none(model, image, feature, error):
    with pytest.raises(error):
        model.generate(image, steer={feature: 1})
    with pytest.raises(error):
        model.features(image).heatmap(feature)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"steer": {3: float("nan")}}, ValueError, "finite"),
        ({"steer": {3: "much"}}, ValueError, None),
        ({"steer": {3: 1e300}}, ValueError, "too large"),
        ({"steer": {3: 1}, "at": "nowhere"}, ValueError, "nowhere"),
        ({"steer": {3: 1}, "at": "9999"}, ValueError, "9999"),
        ({"steer": {3: 1}, "at": "token:zebra"}, errors.NoPositionError, "zebra"),
        ({"at": "image"}, ValueError, "no intervention"),
        ({"steer": {3: 1}, "units": "feet"}, ValueError, "feet"),
        ({"steer": {510: 1}, "units": "usual"}, errors.NoBaselineError, "no picture"),
        ({"clamp": {3: 1, "mushroom": 2}, "ablate": 3}, ValueError, None),
        ({"stear": {3: 1}}, TypeError, "stear"),
        ({"vector": (np.zeros(3), 1.0)}, ValueError, None),
        ({"vector": (np.zeros((3, 3)), 1.0)}, ValueError, "one dimension"),
        ({"interventions": [{"kind": "steer"}]}, ValueError, "feature"),
        ({"temperature": -1}, ValueError, "temperature"),
        ({"max_tokens": -1}, ValueError, "-1 is negative"),
        ({"max_tokens": 2**70}, ValueError, "too large"),
        ({"max_tokens": "many"}, TypeError, "max_tokens"),
        ({"seed": 2**32}, ValueError, "too large"),
        ({"top_k": -3}, ValueError, "-3 is negative"),
        ({"temperature": float("nan")}, ValueError, "temperature"),
        ({"stop": [""]}, ValueError, "stop"),
        ({"prompt": "<image>", "raw_prompt": True, "images": ()}, ValueError, "image"),
        ({"prompt": [{"role": "user"}]}, ValueError, None),
        ({"prompt": None, "images": ()}, ValueError, "neither"),
    ],
)
def test_options(model, image, arguments, error, match):
    with pytest.raises(error, match=match):
        model.generate(**{"images": image, **arguments})


def test_pictures(model):
    for picture, error in [
        (b"", ValueError),
        (b"no picture", ValueError),
        (np.zeros((4, 4, 3)), TypeError),
        (np.zeros((4, 4), np.uint8), ValueError),
        (np.zeros((4, 4, 4), np.uint8), ValueError),
        (np.zeros((0, 4, 3), np.uint8), ValueError),
        (np.zeros((1, 400, 3), np.uint8), ValueError),
        (3, TypeError),
        (None, TypeError),
    ]:
        with pytest.raises(error):
            model.image(picture)


def test_other_results(model, image):
    found = model.features(image)
    with pytest.raises(ValueError, match="view 9"):
        found.heatmap("mushroom", view=9)
    with pytest.raises(ValueError, match="no view"):
        model.features(prompt="Hello").heatmap("mushroom")
    with pytest.raises(ValueError, match="no SAE"):
        found.csr_of(1)
    with pytest.raises(AttributeError, match="nothing"):
        model.capture(image).nothing  # noqa: B018
    with pytest.raises(ValueError):
        model.features(image, over="nowhere")
    with pytest.raises(ValueError, match="pooled"):
        model.features(image, pool="pooled")
    with pytest.raises(ValueError, match="negative"):
        found.top(-1)
    table = found.top(3)
    with pytest.raises(IndexError):
        table[3]
    assert table[-1] == list(table)[2] and list(table[1:]) == list(table)[1:]
    with pytest.raises(ValueError):
        model.features(prompt="Hello", over="image")
    with pytest.raises(ValueError, match="one feature"):
        model.sweep(image, steer={1: [0], 2: [0]})
    with pytest.raises(errors.LlavaSaeError):
        model.sweep(image, steer={1: []}, max_tokens=2)
