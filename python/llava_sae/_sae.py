"""Sparse autoencoders."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _native
from ._interventions import FeatureName, plain_name
from ._results import csr
from .errors import InvalidError

if TYPE_CHECKING:
    import scipy.sparse
    from numpy.typing import ArrayLike, NDArray


class SAE:
    """A sparse autoencoder: of a model (`Model.saes`), from a file, or from arrays.

    Its arrays and `cfg` have SAELens' names and shapes, all in float32: features are
    ``a = act((x - b_dec) @ W_enc + b_enc)``, the reconstruction is ``a @ W_dec + b_dec``. Factors of normalisation
    that are the same for all rows are in the weights already.

    Attributes
    ----------
    cfg : dict
        `architecture`, `d_in`, `d_sae`, `hook_name`, `apply_b_dec_to_input`, `normalize_activations` and more; of a
        transcoder `hook_names_out`, the places where it writes, and `d_out`, the width there.
    """

    cfg: dict[str, Any]
    _handle: _native.Sae
    _folder: tempfile.TemporaryDirectory[str] | None  # of a file that is temporary

    def __init__(self) -> None:
        raise TypeError("use `SAE.open`, `SAE.from_arrays` or `Model.saes`")

    @classmethod
    def _of(cls, native: _native.Sae, folder: tempfile.TemporaryDirectory[str] | None = None) -> SAE:
        sae = cls.__new__(cls)
        sae._handle = native
        sae._folder = folder
        sae.cfg = json.loads(native.config())
        return sae

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        labels: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
        norm_factor: float | None = None,
        hook_name: str | None = None,
    ) -> SAE:
        """Open a GGUF file, or convert a published SAE: a folder of SAELens, Gemma Scope and others.

        Parameters
        ----------
        labels : path or list of paths, optional
            Neuronpedia's labels, for a published SAE, as `norm_factor` and `hook_name`.
        """
        path = Path(path)
        if path.suffix == ".gguf":
            return cls._of(_native.Sae.open(path))
        given = [labels] if isinstance(labels, (str, os.PathLike)) else list(labels)
        folder = tempfile.TemporaryDirectory(prefix="llava-sae-")
        target = Path(folder.name) / "sae.gguf"
        _native.convert_sae(path, target, norm_factor, hook_name, [Path(one) for one in given])
        return cls._of(_native.Sae.open(target), folder)

    @classmethod
    def from_arrays(
        cls,
        sae: Any = None,
        *,
        W_enc: ArrayLike | None = None,
        W_dec: ArrayLike | None = None,
        b_enc: ArrayLike | None = None,
        b_dec: ArrayLike | None = None,
        threshold: ArrayLike | None = None,
        hook_name: str | None = None,
        hook_name_out: str | None = None,
        W_skip: ArrayLike | None = None,
        architecture: str | None = None,
        k: int | None = None,
        apply_b_dec_to_input: bool | None = None,
        normalize_activations: str | None = None,
        norm_factor: float | None = None,
        labels: Sequence[str | None] | Mapping[int, str] | None = None,
        id: str = "arrays",
    ) -> SAE:
        """Make an SAE of arrays, or of an object that has them, such as a `sae_lens.SAE`.

        Parameters
        ----------
        sae : object, optional
            What has `W_enc`, `W_dec` and so on as attributes, and what else it says in `cfg`. Each argument below goes
            before it.
        W_enc : array_like
            `[d_in, d_sae]`.
        W_dec : array_like
            `[d_sae, d_in]`.
        b_enc, b_dec, threshold : array_like, optional
            `[d_sae]`, `[d_in]` and `[d_sae]`; zeros, and no threshold.
        hook_name : str
            Where it reads, such as ``"blocks.12.hook_resid_post"``.
        hook_name_out : str, optional
            Where a transcoder writes, such as ``"blocks.12.hook_mlp_out"``; its `W_dec` is `[d_sae, d_out]` and its `b_dec`
            `[d_out]`.
        W_skip : array_like, optional
            `[d_out, d_in]`: what a transcoder adds of the rows that it reads.
        architecture : {"standard", "jumprelu", "topk"}, optional
            By default what fits: with a threshold ``"jumprelu"``, with `k` ``"topk"``.
        labels : list or dict, optional
            What features stand for.
        id : str
            What it is called among several.

        Raises
        ------
        InvalidError
            Arrays that do not fit each other, numbers that are not finite, a hook point or an architecture that is not
            known.
        """
        given = _Given(sae)
        threshold = given.of("threshold", threshold)
        k = given.of("k", k)
        default = "jumprelu" if threshold is not None else "topk" if k is not None else "standard"
        architecture = str(given.of("architecture", architecture) or default)
        enc, dec = given.of("W_enc", W_enc), given.of("W_dec", W_dec)
        if enc is None or dec is None:
            raise InvalidError("an SAE of arrays has `W_enc` and `W_dec`")
        enc = as_floats(enc, "W_enc", 2)
        d_in, d_sae = enc.shape
        hook_name_out, skip = given.of("hook_name_out", hook_name_out), given.of("W_skip", W_skip)
        if hook_name_out == given.of("hook_name", hook_name):
            hook_name_out = None  # an SAE of ours that is no transcoder
        if hook_name_out is not None:
            if architecture == "topk":
                raise InvalidError("a transcoder of arrays with top-k is not supported")
            words = [
                *(["jumprelu"] if threshold is not None else []),
                *(["skip"] if skip is not None else []),
                "transcoder",
            ]
            architecture = "_".join(words)
        elif skip is not None or architecture.endswith("transcoder"):
            raise InvalidError("a transcoder has a `hook_name_out`", "such as `blocks.12.hook_mlp_out`")
        dec = as_floats(dec, "W_dec", 2)
        d_out = d_in if hook_name_out is None else dec.shape[1]
        b_enc, b_dec = given.of("b_enc", b_enc), given.of("b_dec", b_dec)
        arrays = {
            "W_enc": enc,
            "W_dec": dec,
            "b_enc": np.zeros(d_sae, np.float32) if b_enc is None else as_floats(b_enc, "b_enc", 1),
            "b_dec": np.zeros(d_out, np.float32) if b_dec is None else as_floats(b_dec, "b_dec", 1),
        }
        if skip is not None:
            arrays["W_skip"] = as_floats(skip, "W_skip", 2)
        if architecture.startswith("jumprelu"):
            if threshold is None:
                raise InvalidError("an SAE of architecture `jumprelu` has a `threshold`")
            arrays["threshold"] = as_floats(threshold, "threshold", 1)
        shapes = {"W_dec": (d_sae, d_out), "b_enc": (d_sae,), "b_dec": (d_out,), "threshold": (d_sae,)}
        shapes["W_skip"] = (d_out, d_in)
        for name, shape in shapes.items():
            if name in arrays and arrays[name].shape != shape:
                got = arrays[name].shape
                raise InvalidError(f"`{name}` has the shape {got}, expected {shape} with `W_enc` {enc.shape}")
        for name, array in arrays.items():
            if not np.isfinite(array).all():
                raise InvalidError(f"`{name}` holds numbers that are not finite")
        cfg = {
            "architecture": architecture,
            "d_in": d_in,
            "d_sae": d_sae,
            "dtype": "float32",
            "apply_b_dec_to_input": bool(given.of("apply_b_dec_to_input", apply_b_dec_to_input) or False),
            "normalize_activations": str(given.of("normalize_activations", normalize_activations) or "none"),
        }
        hook_name = given.of("hook_name", hook_name)
        if hook_name is None:
            raise InvalidError("an SAE of arrays has a `hook_name`", "such as `blocks.12.hook_resid_post`")
        cfg["metadata"] = {"hook_name": str(hook_name)}
        if hook_name_out is not None:
            cfg["metadata"]["hook_name_out"] = str(hook_name_out)
        if architecture == "topk":
            cfg["k"] = int(k) if k is not None else None
        folder = tempfile.TemporaryDirectory(prefix="llava-sae-")
        source = Path(folder.name) / "source"
        source.mkdir()
        (source / "cfg.json").write_text(json.dumps(cfg))
        _write_safetensors(source / "sae_weights.safetensors", arrays)
        target = Path(folder.name) / f"{id}.gguf"
        _native.convert_sae(source, target, norm_factor, None, _label_files(labels, source))
        (source / "sae_weights.safetensors").unlink()
        return cls._of(_native.Sae.open(target), folder)

    @property
    def id(self) -> str:
        """Its name among several."""
        return self.cfg["id"]

    @property
    def d_in(self) -> int:
        """The width of the rows that it reads."""
        return self.cfg["d_in"]

    @property
    def d_sae(self) -> int:
        """How many features it has."""
        return self.cfg["d_sae"]

    @property
    def hook_name(self) -> str:
        """Where in the model it reads."""
        return self.cfg["hook_name"]

    @property
    def hook_name_out(self) -> str:
        """Where in the model its features write: where it reads, unless it is a transcoder."""
        names = self.cfg["hook_names_out"]
        return names[0] if names else self.hook_name

    @property
    def path(self) -> Path | None:
        """Its file."""
        return self._handle.path

    @cached_property
    def W_enc(self) -> NDArray[np.float32]:
        """The encoder, `[d_in, d_sae]`."""
        return self._handle.w_enc().T

    @cached_property
    def W_dec(self) -> NDArray[np.float32]:
        """The decoder, `[d_sae, d_out]`: row `i` is the direction of feature `i`.

        Of a cross-layer transcoder, a row has what the feature writes at all places side by side.
        """
        return self._handle.w_dec()

    @cached_property
    def W_skip(self) -> NDArray[np.float32] | None:
        """What a transcoder adds of the rows that it reads to its reconstruction, `[d_out, d_in]`, where it does."""
        return self._handle.w_skip()

    @cached_property
    def b_enc(self) -> NDArray[np.float32]:
        """The encoder's bias, `[d_sae]`."""
        return self._handle.b_enc()

    @cached_property
    def b_dec(self) -> NDArray[np.float32]:
        """The decoder's bias, `[d_out]`."""
        return self._handle.b_dec()

    @cached_property
    def threshold(self) -> NDArray[np.float32]:
        """What `h` must exceed for a feature to be active, `[d_sae]`; zeros for a ReLU."""
        return self._handle.threshold()

    @cached_property
    def labels(self) -> list[str | None]:
        """What each feature stands for, `[d_sae]`."""
        return self._handle.labels()

    def find(self, feature: FeatureName) -> int:
        """Return the index of the feature that an index, a label or a part of one means."""
        return self._handle.find(str(plain_name(feature)))

    def search(self, text: str) -> list[tuple[int, str]]:
        """Return the features whose labels hold these words, best match first, with their labels."""
        return [(index, self.labels[index] or "") for index in self._handle.search(text)]

    def encode(self, rows: ArrayLike) -> scipy.sparse.csr_array:
        """Compute the features of rows.

        Parameters
        ----------
        rows : array_like
            `[n_rows, d_in]` or `[d_in]`. Contiguous float32 is read where it is; other real numbers and orders are
            converted first.

        Returns
        -------
        scipy.sparse.csr_array
            `[n_rows, d_sae]`.
        """
        return csr(self._handle.encode(self._rows(rows)), self.d_sae)

    def decode(self, features: ArrayLike | scipy.sparse.sparray, rows: ArrayLike | None = None) -> NDArray[np.float32]:
        """Compute reconstructions from features.

        Parameters
        ----------
        features : array_like or sparse array
            `[n_rows, d_sae]`.
        rows : array_like, optional
            The rows that were encoded, `[n_rows, d_in]`, which an SAE needs that normalises each, and a transcoder with
            a skip connection.

        Returns
        -------
        ndarray
            `[n_rows, d_out]`.
        """
        import scipy.sparse

        if not scipy.sparse.issparse(features):
            features = np.atleast_2d(as_floats(features, "features"))
        active = scipy.sparse.csr_array(features)
        if active.ndim != 2 or active.shape[1] != self.d_sae:
            raise InvalidError(f"features have the shape {active.shape}, expected (n_rows, {self.d_sae})")
        if rows is None:
            if self.cfg["normalize_activations"] in ("constant_norm_rescale", "layer_norm"):
                raise InvalidError(
                    "this SAE normalises each row, which the reconstruction has to undo",
                    "give the rows that were encoded as `rows`",
                )
            if self.W_skip is not None:
                raise InvalidError(
                    "this transcoder adds a product with the rows that it reads",
                    "give the rows that were encoded as `rows`",
                )
            known = np.zeros((active.shape[0], self.d_in), np.float32)
        else:
            known = self._rows(rows)
            if known.shape[0] != active.shape[0]:
                raise InvalidError(f"there are {known.shape[0]} rows, and features of {active.shape[0]}")
        return self._handle.decode(
            active.indptr.astype(np.int64),
            active.indices.astype(np.int64),
            np.ascontiguousarray(active.data, np.float32),
            known,
        )

    def _rows(self, rows: ArrayLike) -> NDArray[np.float32]:
        rows = np.atleast_2d(as_floats(rows, "rows"))
        if rows.ndim != 2 or rows.shape[1] != self.d_in:
            raise InvalidError(f"rows have the shape {rows.shape}, expected (n_rows, {self.d_in})")
        if not np.isfinite(rows).all():
            raise InvalidError("rows hold numbers that are not finite")
        return rows

    def __repr__(self) -> str:
        return f"SAE({self.id!r}, {self.cfg['architecture']}, {self.d_sae} features {self._places()})"

    def _places(self) -> str:
        names = self.cfg["hook_names_out"]
        if not names:
            return f"at {self.hook_name}"
        return f"from {self.hook_name} to {', '.join(names)}"


class _Given:
    """Attributes of an object, or of its `cfg`, or of the metadata in that; SAELens has had them in each."""

    def __init__(self, sae: Any) -> None:
        cfg = getattr(sae, "cfg", None)
        self._places = [sae, cfg, getattr(cfg, "metadata", None)]

    def of(self, name: str, argument: Any) -> Any:
        if argument is not None:
            return argument
        for place in self._places:
            value = place.get(name) if isinstance(place, Mapping) else getattr(place, name, None)
            if value is not None:
                return value() if callable(value) and not hasattr(value, "shape") else value
        return None


def as_floats(values: Any, name: str, n_dimensions: int | None = None) -> NDArray[np.float32]:
    """Return real numbers as contiguous float32; tensors of torch are taken from where they are."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().float().numpy()
    array = np.asarray(values)
    if not np.issubdtype(array.dtype, np.number) or np.issubdtype(array.dtype, np.complexfloating):
        raise TypeError(f"`{name}` holds {array.dtype}, expected real numbers")
    if n_dimensions is not None and array.ndim != n_dimensions:
        raise InvalidError(f"`{name}` has the shape {array.shape}, expected {n_dimensions} dimensions")
    return np.ascontiguousarray(array, dtype=np.float32)


def _write_safetensors(path: Path, arrays: Mapping[str, NDArray[np.float32]]) -> None:
    header, end = {}, 0
    for name, array in arrays.items():
        start, end = end, end + array.nbytes
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in arrays.values():
            file.write(array.astype("<f4", copy=False).data)


def _label_files(labels: Any, folder: Path) -> list[Path]:
    if labels is None:
        return []
    pairs = labels.items() if isinstance(labels, Mapping) else enumerate(labels)
    records = [{"index": int(index), "description": str(text)} for index, text in pairs if text]
    path = folder / "labels.json"
    path.write_text(json.dumps(records))
    return [path]
