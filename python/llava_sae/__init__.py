"""See the features of a sparse autoencoder (SAE) in a vision-language model, and steer by them, on llama.cpp.

>>> import llava_sae
>>> model = llava_sae.demo()
>>> image = model.image("carrot-mushroom.png")
>>> model.features(image).top(5)
>>> model.generate(image, steer={"mushroom": -12})

`open` loads a model, by a folder, files or a published name; `demo` the small one that is part of the package.
What is computed equals what the command ``llava-sae-cpp`` computes, to the bit, and options have its names.
"""

from __future__ import annotations

from . import (
    _load,  # noqa: F401  (before all that needs the native module)
    _native,
    errors,
)
from ._model import Image, Model, Tokens, demo, open
from ._results import (
    ActiveFeature,
    Capture,
    Feature,
    Features,
    FeatureTable,
    HeatMap,
    Page,
    Piece,
    Stream,
    Sweep,
    Text,
    Token,
)
from ._sae import SAE
from .errors import LlavaSaeError

__version__: str = _native.__version__

__all__ = [
    "SAE",
    "ActiveFeature",
    "Capture",
    "Feature",
    "FeatureTable",
    "Features",
    "HeatMap",
    "Image",
    "LlavaSaeError",
    "Model",
    "Page",
    "Piece",
    "Stream",
    "Sweep",
    "Text",
    "Token",
    "Tokens",
    "demo",
    "errors",
    "open",
]
