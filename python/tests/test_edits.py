"""Functions at hook points, against interventions that are built in."""

import numpy as np
import pytest

from llava_sae.errors import InvalidError, UnsupportedError


@pytest.fixture(scope="module")
def hook(model):
    return model.sae.hook_name


def test_functions_see_the_rows(model, image, hook):
    seen = []
    captured = model.capture(image, max_tokens=3, edit={hook: lambda rows, tokens: seen.append((rows, tokens))})
    assert np.array_equal(np.concatenate([rows for rows, _ in seen]), captured.resid)
    assert np.array_equal(np.concatenate([tokens.ids for _, tokens in seen]), captured.token_ids)
    assert [tokens.kind for _, tokens in seen][-1] == "generated"
    assert model.generate(image) == model.generate(image, edit={hook: lambda rows, tokens: None})


def test_adding_a_direction_is_steering(model, image, hook):
    direction = model.sae.W_dec[model.find("mushroom")]

    def steer(rows, tokens):
        return rows + np.float32(-12) * direction if tokens.kind == "image" else None

    edited = model.capture(image, max_tokens=12, edit={hook: steer})
    steered = model.capture(image, max_tokens=12, steer={"mushroom": -12}, at="image")
    np.testing.assert_allclose(edited.logits, steered.logits, rtol=1e-5, atol=1e-5)
    assert edited.text.token_ids == steered.text.token_ids
    assert edited.text != model.generate(image, max_tokens=12)


def test_taking_a_feature_out_is_ablating(model, image, hook):
    sae, feature = model.sae, model.find("mushroom")

    def ablate(rows, tokens):
        active = sae.encode(rows)[:, [feature]].toarray()
        return rows - active * sae.W_dec[feature]

    edited = model.capture(image, max_tokens=12, edit={hook: ablate})
    ablated = model.capture(image, max_tokens=12, ablate="mushroom")
    # The one activation is rounded to f16 on its way, the other is not.
    np.testing.assert_allclose(edited.logits, ablated.logits, rtol=1e-2, atol=1e-2)
    assert edited.text.token_ids == ablated.text.token_ids


def test_functions_elsewhere(model, image, hook):
    places = ["blocks.0.hook_resid_post", "blocks.1.hook_mlp_out", hook]
    widths = {}

    def look(place):
        return lambda rows, tokens: widths.setdefault(place, rows.shape[1]) and None

    model.generate(image, max_tokens=1, edit={place: look(place) for place in places})
    assert widths.keys() == set(places)
    zeros = {"blocks.1.hook_mlp_out": lambda rows, tokens: np.zeros_like(rows)}
    assert not np.array_equal(model.logits(image, edit=zeros), model.logits(image))


def test_what_a_function_raises_ends_the_run(model, image, hook):
    calls = []

    def fail(rows, tokens):
        calls.append(tokens.kind)
        raise ZeroDivisionError("mine")

    for run in (model.generate, model.capture, model.logits, model.features):
        calls.clear()
        with pytest.raises(ZeroDivisionError, match="mine"):
            run(image, edit={hook: fail})
        assert len(calls) == 1
    with pytest.raises(ZeroDivisionError, match="mine"):
        list(model.generate(image, stream=True, edit={hook: fail}))
    assert model.generate(image, max_tokens=1).stop == "length"


@pytest.mark.parametrize(
    ("function", "error", "match"),
    [
        (lambda rows, tokens: rows[:1], InvalidError, "shape"),
        (lambda rows, tokens: "rows", ValueError, None),
        (lambda rows, tokens: rows.fill(0), ValueError, "read-only"),
        (lambda rows: None, TypeError, None),
    ],
)
def test_wrong_functions(model, image, hook, function, error, match):
    with pytest.raises(error, match=match):
        model.generate(image, edit={hook: function})


def test_wrong_places(model, image):
    with pytest.raises(ValueError, match="blocks.99"):
        model.generate(image, edit={"blocks.99.hook_resid_post": lambda rows, tokens: None})
    with pytest.raises(UnsupportedError, match="nowhere"):
        model.generate(image, edit={"nowhere": lambda rows, tokens: None})
    with pytest.raises(TypeError, match="function"):
        model.generate(image, edit={"blocks.1.hook_resid_post": 3})
