"""What results hold, and how they show themselves."""

import numpy as np
import pytest
from conftest import PICTURE

import llava_sae


@pytest.fixture(scope="module")
def found(model, image):
    return model.features(image)


def test_tables(found):
    top = found.top(3)
    assert [one.rank for one in top] == [1, 2, 3]
    assert top[:2] == found.top(2)
    labels = [one.label for one in found.search("mushroom")]
    assert labels[0] == "mushroom" and all("mushroom" in label for label in labels)
    assert "<td>mushroom</td>" in top._repr_html_() and "mushroom" in repr(found)
    frame = found.to_pandas()
    assert list(frame["feature"][:3]) == [one.feature for one in top]


def test_activations(found, model):
    feature = model.find("mushroom")
    activations = found.csr
    assert activations.shape == (len(found.tokens), model.sae.d_sae)
    column = activations[:, [feature]].toarray()[:, 0]
    is_image = np.array([token.kind == "image" for token in found.tokens])
    [standing] = [one for one in found.search("mushroom") if one.feature == feature]
    assert column[is_image].max() == np.float32(standing.max)
    assert column.argmax() == standing.argmax_position
    heat_map = found.heatmap("mushroom")
    assert heat_map.feature == feature
    assert np.array_equal(heat_map.patches.ravel(), column[is_image])


def test_heat_maps(found, tmp_path):
    heat_map = found.heatmap("mushroom")
    assert heat_map._repr_png_().startswith(b"\x89PNG")
    heat_map.save(tmp_path / "map.png")
    assert heat_map.image().size[0] > 100
    never = set(range(found.saes[0].d_sae)) - {one.feature for one in found.top(10**6)}
    nothing = found.heatmap(min(never))
    assert nothing.png is None and not nothing.patches.any()
    with pytest.raises(llava_sae.errors.InvalidError, match="no patch"):
        nothing.image()


def test_pages(found, tmp_path):
    page = found.page("a picture")
    assert page.startswith("<!") and "a picture" in page
    page.save(tmp_path / "page.html")
    assert "srcdoc=" in page._repr_html_() and "characters" in repr(page)


def test_texts(model, image):
    text = model.generate(image, steer={"mushroom": -12}, max_tokens=8)
    assert isinstance(text, str) and text.text == str(text) and type(text.text) is str
    assert "steer" in text._repr_html_() and text.interventions[0]["label"] == "mushroom"
    assert model.generate(image, interventions={"interventions": text.interventions}, max_tokens=8) == text


def test_streams_tell_features(model, image):
    pieces = list(model.generate(image, stream=True, max_tokens=4))
    captured = model.capture(image, max_tokens=4)
    rows = captured.csr[-len(pieces) :]
    for piece, row in zip(pieces, rows, strict=True):
        active = dict(piece.features)
        assert active == dict(zip(row.indices.tolist(), row.data.astype(float).tolist(), strict=True)) or np.allclose(
            sorted(active.values()), sorted(row.data), rtol=1e-6
        )
        assert active.keys() == set(row.indices.tolist())


def test_a_stream_that_is_left_ends_its_run(model, image):
    with model.generate(image, stream=True) as stream:
        next(stream)
    assert model.generate(image, max_tokens=2).stop == "length"


def test_pictures_in_every_form(model, image):
    import PIL.Image

    picture = PIL.Image.open(PICTURE).convert("RGB")
    forms = [PICTURE, str(PICTURE), PICTURE.read_bytes(), picture, np.asarray(picture), np.asfortranarray(picture)]
    for form in forms:
        assert np.array_equal(model.image(form).embeddings, image.embeddings)
    assert image._repr_png_().startswith(b"\x89PNG") and model.image(image) is image


def test_chats(model, image):
    parts = [{"type": "image"}, {"type": "text", "text": "Describe the image."}]
    assert model.generate(image, [{"role": "user", "content": parts}]) == model.generate(image)


def test_tokens(model, image):
    tokens = model.tokens(image, "Hello")
    assert tokens[0].text == "<bos>" and "image" in {token.kind for token in tokens}


def test_a_label_that_is_markup_stays_text():
    hostile = llava_sae.Feature(1, 2, "<script>", 1.0, None, 1.0, 0, 1)
    assert "<script>" not in llava_sae.FeatureTable([hostile])._repr_html_()
