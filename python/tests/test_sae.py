"""SAEs against numpy's arithmetic."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse
from conftest import PICTURE, ROOT
from safetensors.numpy import load_file

import llava_sae
from llava_sae import SAE
from llava_sae.errors import InvalidError

SAES = ROOT / "tests/fixtures/saes"


@pytest.fixture(scope="module")
def rows(model, image):
    return model.capture(image).resid


def activations_of(sae, rows):
    """Features by SAELens' formula in float64."""
    x = rows.astype(np.float64)
    if sae.cfg["apply_b_dec_to_input"]:
        x = x - sae.b_dec
    h = x @ sae.W_enc.astype(np.float64) + sae.b_enc
    return np.where(h > sae.threshold, np.maximum(h, 0), 0)


def test_encoding_and_decoding(model, rows):
    sae = model.sae
    encoded = sae.encode(rows)
    expected = activations_of(sae, rows)
    # The encoder's weights are f16, and rows are rounded to that on the way.
    np.testing.assert_allclose(encoded.toarray(), expected, atol=2e-2 * expected.max())
    decoded = sae.decode(encoded)
    np.testing.assert_allclose(decoded, encoded @ sae.W_dec + sae.b_dec, rtol=1e-4, atol=1e-4)
    assert np.array_equal(sae.decode(encoded.toarray()), decoded)


def test_encoding_equals_what_the_hook_saw(model, image, rows):
    captured = model.capture(image)
    encoded = model.sae.encode(captured.resid)
    assert np.array_equal(encoded.indptr, captured.feature_offsets)
    assert np.array_equal(encoded.indices, captured.feature_ids)
    np.testing.assert_allclose(encoded.data, captured.feature_values, rtol=1e-6)


def test_rows_of_other_types_and_orders_are_converted(model, rows):
    expected = model.sae.encode(rows)
    for other in [rows.astype(np.float64), np.asfortranarray(rows), np.repeat(rows, 2, axis=0)[::2], rows.tolist()]:
        assert (model.sae.encode(other) != expected).nnz == 0
    one = model.sae.encode(rows[3])
    assert one.shape == (1, model.sae.d_sae)


def test_shapes(model):
    sae = model.sae
    assert sae.W_enc.shape == (sae.d_in, sae.d_sae) and sae.W_dec.shape == (sae.d_sae, sae.d_in)
    assert sae.b_enc.shape == sae.threshold.shape == (sae.d_sae,) and sae.b_dec.shape == (sae.d_in,)
    assert len(sae.labels) == sae.d_sae and sae.labels[sae.find("mushroom")] == "mushroom"
    assert sae.search("mushroom")[0] == (sae.find("mushroom"), "mushroom")


def test_of_arrays(model, rows):
    ours = model.sae
    arrays = {name: getattr(ours, name) for name in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")}
    architecture = ours.cfg["architecture"]
    if architecture == "standard":
        del arrays["threshold"]
    sae = SAE.from_arrays(
        **arrays,
        hook_name=ours.hook_name,
        architecture=architecture,
        apply_b_dec_to_input=ours.cfg["apply_b_dec_to_input"],
        labels={3: "three", 5: "five"},
        id="copy",
    )
    assert sae.labels[3] == "three" and sae.labels[4] is None and sae.id == "copy"
    for name in arrays:
        assert np.array_equal(getattr(sae, name), arrays[name]), name
    np.testing.assert_allclose(sae.encode(rows).toarray(), activations_of(ours, rows), rtol=1e-3, atol=1e-3)
    with llava_sae.demo(sae=sae) as other:
        found = other.features(PICTURE).csr
        expected = model.features(PICTURE).csr
        np.testing.assert_allclose(found.toarray(), expected.toarray(), atol=2e-2 * expected.max())
        text = other.generate(PICTURE, ablate="three")
        assert text.interventions[0]["feature"] == 3


def test_two_saes(model, image):
    ours = model.sae
    sae = SAE.from_arrays(ours, hook_name="blocks.1.hook_resid_post", id="below", k=None)
    with llava_sae.demo(sae=[str(ours.path), sae]) as both:
        captured = both.capture(PICTURE)
        assert np.array_equal(captured[f"{ours.id}/resid"], model.capture(image).resid)
        assert captured.csr_of("below").shape == captured.csr_of(1).shape
        assert both.find("below/7") == "below/7"
        with pytest.raises(InvalidError):
            captured.csr_of("above")


class Tensor:
    """What is asked of torch's tensors."""

    def __init__(self, array):
        self.array, self.shape = array, array.shape

    def detach(self):
        return self

    cpu = float = detach

    def numpy(self):
        return self.array


def test_of_an_object_as_sae_lens_has_it():
    random = np.random.default_rng(1)
    sae_lens = SimpleNamespace(
        W_enc=Tensor(random.normal(size=(4, 6)).astype(np.float32)),
        W_dec=Tensor(random.normal(size=(6, 4)).astype(np.float32)),
        b_enc=Tensor(random.normal(size=6).astype(np.float32)),
        b_dec=Tensor(random.normal(size=4).astype(np.float32)),
        threshold=Tensor(np.full(6, 0.5, np.float32)),
        cfg=SimpleNamespace(
            architecture=lambda: "jumprelu",
            apply_b_dec_to_input=True,
            normalize_activations="none",
            metadata=SimpleNamespace(hook_name="blocks.2.hook_resid_post"),
        ),
    )
    sae = SAE.from_arrays(sae_lens)
    assert sae.cfg["architecture"] == "jumprelu" and sae.hook_name == "blocks.2.hook_resid_post"
    rows = random.normal(size=(9, 4)).astype(np.float32)
    np.testing.assert_allclose(sae.encode(rows).toarray(), activations_of(sae, rows), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "norm_factor"), [("saelens-6-standard", 0.5), ("saelens-6-topk", None), ("saelens-6-layer-norm", None)]
)
def test_published_folders(name, norm_factor):
    sae = SAE.open(SAES / name, hook_name="blocks.1.hook_resid_post", norm_factor=norm_factor)
    cfg = json.loads((SAES / name / "cfg.json").read_text())
    assert (sae.d_in, sae.d_sae) == (cfg["d_in"], cfg["d_sae"])
    rows = np.random.default_rng(2).normal(size=(5, sae.d_in)).astype(np.float32)
    encoded = scipy.sparse.csr_matrix(sae.encode(rows))
    assert sae.decode(encoded, rows).shape == rows.shape
    if "layer-norm" in name:
        with pytest.raises(InvalidError, match="normalises each row"):
            sae.decode(encoded)


def test_wrong_arrays():
    enc, dec = np.ones((4, 6)), np.ones((6, 4))
    hook = "blocks.1.hook_resid_post"
    with pytest.raises(InvalidError, match="W_enc"):
        SAE.from_arrays(W_dec=dec, hook_name=hook)
    with pytest.raises(InvalidError, match=r"`W_dec` has the shape \(4, 6\), expected \(6, 4\)"):
        SAE.from_arrays(W_enc=enc, W_dec=enc, hook_name=hook)
    with pytest.raises(InvalidError, match="hook_name"):
        SAE.from_arrays(W_enc=enc, W_dec=dec)
    with pytest.raises(ValueError, match="not finite"):
        SAE.from_arrays(W_enc=enc * np.nan, W_dec=dec, hook_name=hook)
    with pytest.raises(TypeError, match="complex"):
        SAE.from_arrays(W_enc=enc * 1j, W_dec=dec, hook_name=hook)
    with pytest.raises(InvalidError, match="threshold"):
        SAE.from_arrays(W_enc=enc, W_dec=dec, hook_name=hook, architecture="jumprelu")
    with pytest.raises(NotImplementedError, match="nowhere"):
        SAE.from_arrays(W_enc=enc, W_dec=dec, hook_name="nowhere")


def test_wrong_rows(model):
    sae = model.sae
    for rows in [np.zeros((3, sae.d_in + 1)), np.zeros((2, 3, sae.d_in)), np.zeros(())]:
        with pytest.raises(InvalidError, match="expected"):
            sae.encode(rows)
    with pytest.raises(InvalidError, match="not finite"):
        sae.encode(np.full((1, sae.d_in), np.inf))
    with pytest.raises(TypeError, match="real numbers"):
        sae.encode(np.zeros((1, sae.d_in), complex))
    with pytest.raises(TypeError, match="real numbers"):
        sae.encode([["a"] * sae.d_in])
    with pytest.raises(InvalidError, match="expected"):
        sae.decode(np.zeros((1, sae.d_sae + 1)))


def test_transcoders():
    folder = ROOT / "tests/fixtures/transcoders/saes"
    oracle = load_file(folder / "oracle.safetensors")
    name = "saelens-jumprelu-skip-transcoder"
    sae = SAE.open(folder / name)
    assert (sae.hook_name, sae.hook_name_out) == ("blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out")
    assert sae.W_enc.shape == (24, 40) and sae.W_dec.shape == (40, 20) and sae.W_skip.shape == (20, 24)
    assert repr(sae).endswith("40 features from blocks.1.mlp.hook_in to blocks.1.hook_mlp_out)")
    weights = load_file(folder / name / "sae_weights.safetensors")
    of_arrays = SAE.from_arrays(**weights, hook_name=sae.hook_name, hook_name_out=sae.hook_name_out)
    for one in (sae, of_arrays):
        encoded = one.encode(oracle["x"])
        # Weights are f16.
        expected = oracle[f"{name}/acts"]
        np.testing.assert_allclose(encoded.toarray(), expected, atol=2e-2 * expected.max())
        # SAELens' own activations, through our decoder.
        decoded = one.decode(expected, oracle["x"])
        np.testing.assert_allclose(decoded, oracle[f"{name}/decoded"], atol=2e-2 * np.abs(decoded).max())
        with pytest.raises(InvalidError, match="rows that it reads"):
            one.decode(encoded)
    with pytest.raises(InvalidError, match="hook_name_out"):
        SAE.from_arrays(**weights, hook_name=sae.hook_name)
    weights["W_skip"] = weights["W_skip"].T
    with pytest.raises(InvalidError, match="W_skip"):
        SAE.from_arrays(**weights, hook_name=sae.hook_name, hook_name_out=sae.hook_name_out)
    plain = SAE.open(SAES / "saelens-6-standard", norm_factor=0.37)
    assert plain.hook_name_out == plain.hook_name and plain.W_skip is None
