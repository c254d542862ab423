"""Models."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Union, overload

import numpy as np

from . import _native
from ._interventions import FeatureName, entries, listed_names, plain_name
from ._results import Capture, Features, Stream, Sweep, Text, Token, tokens
from ._sae import SAE
from .errors import InvalidError

if TYPE_CHECKING:
    import PIL.Image
    from numpy.typing import NDArray
    from typing_extensions import Unpack

    from ._interventions import Interventions

# A path, a file's contents, pixels, or what `Model.image` gives.
ImageLike = Union[str, "os.PathLike[str]", bytes, "NDArray[np.uint8]", "PIL.Image.Image", "Image"]
# A user's turn, or OpenAI's messages.
Prompt = Union[str, Sequence[Mapping[str, Any]]]

_PROMPT = "Describe the image."
_open_models: weakref.WeakSet[Model] = weakref.WeakSet()


class Tokens(NamedTuple):
    """What rows at a hook point are."""

    kind: str
    """``"text"``, ``"image"`` or ``"generated"``; rows of different kinds come in different calls."""
    ids: NDArray[np.int32]
    """Ids in the vocabulary, `[n_rows]`; -1 for image rows."""


# What reads rows at a hook point, `[n_rows, width]` and read-only, and returns others in their place, or None.
Edit = Callable[["NDArray[np.float32]", Tokens], Union["NDArray[np.floating]", None]]


class Image:
    """A picture as a model reads it, encoded once for any number of runs; `Model.image` makes it.

    Attributes
    ----------
    size : tuple of int
        Width and height in pixels.
    """

    def __init__(self, native: _native.Image) -> None:
        self._handle = native

    @property
    def size(self) -> tuple[int, int]:
        return self._handle.size

    @property
    def embeddings(self) -> NDArray[np.float32]:
        """The rows that the projector gives, `[n_rows, d_model]`."""
        return self._handle.embeddings()

    def __repr__(self) -> str:
        width, height = self.size
        return f"Image({width} × {height} pixels, {self._handle.n_rows} rows)"

    def _repr_png_(self) -> bytes:
        return bytes(self._handle.png())


class Model:
    """A vision-language model with its SAEs; `open` and `demo` make it.

    It may be used from several threads, and does what they ask one after another. It can be closed, and used in a
    ``with`` statement, which closes it.

    All methods that run it take the interventions of `Interventions` as keyword arguments (`steer`, `clamp`,
    `ablate`, `scale`, `at`, `units` and others), and `edit`, functions by hook points.

    Attributes
    ----------
    saes : list of SAE
    """

    def __init__(self, native: _native.Model) -> None:
        self._handle = native
        self.saes = [SAE._of(sae) for sae in native.saes()]
        self._steered: ContextVar[tuple[dict[str, Any], ...]] = ContextVar("steered", default=())
        self._given: list[SAE] = []
        _open_models.add(self)

    @property
    def name(self) -> str:
        """What reports call it."""
        return self._handle.names[0]

    @property
    def sae(self) -> SAE:
        """The first SAE."""
        if not self.saes:
            raise InvalidError("the model has no SAE", "open it with one")
        return self.saes[0]

    @property
    def closed(self) -> bool:
        """Whether it is closed."""
        return self._handle.is_closed

    def close(self) -> None:
        """End what it does, and let go of it."""
        self._handle.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        ids = ", ".join(sae.id for sae in self.saes)
        return f"Model({self.name!r}, saes=[{ids}]{', closed' if self.closed else ''})"

    def image(self, source: ImageLike) -> Image:
        """Read and encode a picture.

        Parameters
        ----------
        source : path, bytes, PIL image or uint8 array
            A PNG, JPEG, GIF, WebP, BMP or TIFF file or its contents, or pixels, `[height, width, 3]`.
        """
        if isinstance(source, Image):
            return source
        if isinstance(source, (str, os.PathLike)):
            return Image(self._handle.image(os.fspath(source)))
        if isinstance(source, (bytes, bytearray, memoryview)):
            return Image(self._handle.image(bytes(source)))
        return Image(self._handle.image(_pixels(source)))

    def features(
        self,
        images: ImageLike | Sequence[ImageLike] = (),
        prompt: Prompt | None = None,
        *,
        over: str | None = None,
        pool: Literal["max", "sum", "mean", "count"] = "max",
        rank: Literal["lift", "activation"] | None = None,
        exclude: FeatureName | Sequence[FeatureName] = (),
        exclude_always_on: bool = False,
        raw_prompt: bool = False,
        max_tokens: int = 0,
        edit: Mapping[str, Edit] | None = None,
        **interventions: Unpack[Interventions],
    ) -> Features:
        """Find the features that a prompt activates.

        Parameters
        ----------
        images : image or list of images, optional
            Several make one prompt.
        prompt : str or list of messages, optional
            The user's turn, or a chat in OpenAI's form. ``"Describe the image."`` with images.
        over : str, optional
            The positions that are pooled, as for ``--over``; the image's, or the prompt's without one.
        pool : {"max", "sum", "mean", "count"}
            How activations at several positions become one score.
        rank : {"lift", "activation"}, optional
            The order; lift for maxima over the image, if the SAE has a baseline.
        exclude : int, str or list, optional
            Features that are left out.
        exclude_always_on : bool
            Whether those are left out that are active nearly everywhere.
        raw_prompt : bool
            Whether the prompt is taken as it stands, ``<image>`` marking images.
        max_tokens : int
            Tokens to generate, where `over` names generated ones.

        Raises
        ------
        NoPositionError, UnknownFeatureError, InvalidError, ClosedError
        """
        given = self._images(images)
        settings = self._settings(prompt, given, raw_prompt, interventions, max_tokens=max_tokens)
        ranking = _native.RankSettings.of(
            over, pool, rank, [str(name) for name in listed_names(exclude)] if exclude != () else [], exclude_always_on
        )
        found = self._handle.features(given, settings, ranking, _functions(edit) if edit else [])
        return Features(found, self.saes)

    @overload
    def generate(self, images: Any = ..., prompt: Any = ..., *, stream: Literal[True], **options: Any) -> Stream: ...
    @overload
    def generate(self, images: Any = ..., prompt: Any = ..., **options: Any) -> Text: ...
    def generate(
        self,
        images: ImageLike | Sequence[ImageLike] = (),
        prompt: Prompt | None = None,
        *,
        max_tokens: int = 128,
        temperature: float = 0.0,
        seed: int = 0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        stop: str | Sequence[str] = (),
        stream: bool = False,
        raw_prompt: bool = False,
        edit: Mapping[str, Edit] | None = None,
        **interventions: Any,
    ) -> Text | Stream:
        """Generate a text.

        Parameters
        ----------
        images, prompt, raw_prompt
            As for `features`.
        max_tokens : int
        temperature : float
            0 always takes the most likely token.
        seed, top_k, top_p, min_p
            For a temperature above 0; llama.cpp's defaults.
        stop : str or list of str, optional
            The text ends before the first of these.
        stream : bool
            Whether to return the text as it comes: an iterator over `Piece`.
        edit : dict of str to function, optional
            Functions that read and replace rows, by hook points such as ``"blocks.2.hook_resid_post"``. Each gets rows,
            `[n_rows, width]` and read-only, and `Tokens`, and returns rows of that shape, or None to leave them.
            They come behind the interventions there. An exception in one ends the run and is raised. Slow.
        """
        given = self._images(images)
        settings = self._settings(
            prompt,
            given,
            raw_prompt,
            interventions,
            max_tokens=max_tokens,
            temperature=temperature,
            seed=seed,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            stop=[stop] if isinstance(stop, str) else list(stop),
        )
        if stream:
            return Stream(self._handle.stream(given, settings, _functions(edit)), self)
        return Text._of(self._handle.generate(given, settings, _functions(edit)))

    @contextlib.contextmanager
    def steered(self, **interventions: Unpack[Interventions]) -> Iterator[Model]:
        """Intervene in all that this thread runs inside of the ``with`` statement.

        >>> with model.steered(clamp={4501: 0}):
        ...     model.generate(image)
        """
        token = self._steered.set((*self._steered.get(), *entries(interventions)))
        try:
            yield self
        finally:
            self._steered.reset(token)

    def sweep(
        self,
        images: ImageLike | Sequence[ImageLike] = (),
        prompt: Prompt | None = None,
        *,
        steer: tuple[FeatureName, Sequence[float]] | Mapping[FeatureName, Sequence[float]],
        at: str = "all",
        units: Literal["raw", "unit", "usual"] = "raw",
        word: str | None = None,
        max_tokens: int = 128,
        temperature: float = 0.0,
        seed: int = 0,
        raw_prompt: bool = False,
    ) -> Sweep:
        """Steer one feature with several strengths at once.

        Parameters
        ----------
        steer : dict of a feature to strengths
            Such as ``{"dog": range(-8, 1, 2)}``.
        word : str, optional
            A word that texts may hold.
        """
        if self._steered.get():
            raise InvalidError("a sweep steers one feature", "leave `steered` for it")
        pairs = list(dict([steer] if isinstance(steer, tuple) else steer).items())
        if len(pairs) != 1:
            raise InvalidError(f"a sweep steers one feature, not {len(pairs)}")
        [(feature, strengths)] = pairs
        if not len(strengths) or max_tokens < 1:
            raise InvalidError("a sweep without strengths or tokens has no texts to compare")
        given = self._images(images)
        settings = self._settings(
            prompt, given, raw_prompt, {}, max_tokens=max_tokens, temperature=temperature, seed=seed
        )
        wanted = {
            "feature": str(plain_name(feature)),
            "strengths": [float(strength) for strength in strengths],
            "at": at,
            "units": units,
            "word": word,
        }
        return Sweep(self._handle.sweep(given, settings, _json(wanted)))

    def capture(
        self,
        images: ImageLike | Sequence[ImageLike] = (),
        prompt: Prompt | None = None,
        *,
        max_tokens: int = 0,
        temperature: float = 0.0,
        seed: int = 0,
        logits: bool = True,
        raw_prompt: bool = False,
        edit: Mapping[str, Edit] | None = None,
        **interventions: Unpack[Interventions],
    ) -> Capture:
        """Keep what the hooks see: rows, features, image embeddings, logits.

        Rows are where the SAEs read, before and after interventions. They are not copied on their way.
        """
        given = self._images(images)
        settings = self._settings(
            prompt,
            given,
            raw_prompt,
            interventions,
            max_tokens=max_tokens,
            temperature=temperature,
            seed=seed,
        )
        tensors, report = self._handle.capture(given, settings, _functions(edit), logits)
        return Capture(tensors, report, self.saes)

    def logits(
        self,
        images: ImageLike | Sequence[ImageLike] = (),
        prompt: Prompt | None = None,
        *,
        raw_prompt: bool = False,
        edit: Mapping[str, Edit] | None = None,
        **interventions: Unpack[Interventions],
    ) -> NDArray[np.float32]:
        """Return the logits after the prompt, `[n_vocab]`."""
        given = self._images(images)
        settings = self._settings(prompt, given, raw_prompt, interventions)
        return self._handle.logits(given, settings, _functions(edit))

    def metrics(
        self,
        images: ImageLike | Sequence[ImageLike] = (),
        prompt: Prompt | None = None,
        *,
        text: str | None = None,
        raw_prompt: bool = False,
    ) -> dict[str, Any] | list[dict[str, Any]]:
        """Measure how well the SAE fits the model, by SAELens' measures; a list with several SAEs.

        Parameters
        ----------
        images : image or list of images
            Each has a prompt of its own.
        text : str, optional
            What text rows and losses are of, instead of the prompts.
        """
        if self._steered.get():
            raise InvalidError("metrics are of the model as it is", "leave `steered` for them")
        given = self._images(images)
        settings = self._settings(prompt, given, raw_prompt, {}, needs_prompt=text is None)
        reports = [json.loads(one) for one in self._handle.metrics(given, settings, text)]
        return reports[0] if len(reports) == 1 else reports

    def tokens(
        self,
        images: ImageLike | Sequence[ImageLike] = (),
        prompt: Prompt | None = None,
        *,
        raw_prompt: bool = False,
    ) -> list[Token]:
        """Return the positions of a prompt, as the model reads it."""
        given = self._images(images)
        settings = self._settings(prompt, given, raw_prompt, {})
        return tokens(self._handle.tokens(given, settings))

    def find(self, feature: FeatureName) -> FeatureName:
        """Return the feature that an index, a label or a part of one means."""
        found = self._handle.find(str(plain_name(feature)))
        return int(found) if found.isdigit() else found

    def feature(self, feature: FeatureName, top: int = 10) -> dict[str, Any]:
        """Return what the weights say of a feature, as ``feature --json`` prints it: neighbours, tokens."""
        return json.loads(self._handle.card(str(plain_name(feature)), top))

    def _images(self, images: Any) -> list[_native.Image]:
        if isinstance(images, Image):
            return [images._handle]
        several = isinstance(images, (list, tuple))
        given = images if several else [images]
        return [self.image(one)._handle for one in given]

    def _settings(
        self,
        prompt: Prompt | None,
        images: list[_native.Image],
        raw_prompt: bool,
        interventions: Mapping[str, Any],
        *,
        needs_prompt: bool = True,
        max_tokens: int = 0,
        **sampling: Any,
    ) -> _native.RunSettings:
        if prompt is None:
            if not images and needs_prompt:
                raise InvalidError("there is neither an image nor a prompt")
            prompt = _PROMPT
        steering = self._steered.get()
        if interventions:
            steering = (*steering, *entries(interventions))
        text = prompt if isinstance(prompt, str) else None
        return _native.RunSettings.of(
            text,
            _json(list(prompt)) if text is None else None,
            raw_prompt,
            _json(steering) if steering else None,
            max_tokens,
            **sampling,
        )


def open(
    model_dir: str | os.PathLike[str] | None = None,
    *,
    model: str | os.PathLike[str] | None = None,
    mmproj: str | os.PathLike[str] | None = None,
    sae: str | os.PathLike[str] | SAE | Sequence[str | os.PathLike[str] | SAE] = (),
    hf_repo: str | None = None,
    sae_hf: str | None = None,
    sae_release: str | None = None,
    sae_id: str | None = None,
    labels: str | None = None,
    chat_template: str | os.PathLike[str] | None = None,
    ctx_size: int | None = None,
    threads: int | None = None,
    gpu_layers: int | None = None,
    kv_type: Literal["f32", "f16", "q8_0"] | None = None,
    flash_attn: Literal["auto", "on", "off"] | None = None,
    image_prep: Literal["crop", "pad"] | None = None,
    repack: bool = False,
    image_cache: int | None = None,
    prompt_cache: int | None = None,
    no_probe: bool = False,
    offline: bool = False,
    quiet: bool = False,
) -> Model:
    """Open a model. The arguments are the command line's options.

    Parameters
    ----------
    model_dir : path or str, optional
        A folder that ``convert`` or ``pull`` wrote, or the name of a published model, which is downloaded if it is
        not here.
    model, mmproj : path, optional
        The language model and its projector, GGUF files.
    sae : path, SAE, or a list of them, optional
        GGUF files, or what `SAE.from_arrays` and `SAE.open` give.
    hf_repo, sae_hf, sae_release, sae_id, labels : str, optional
        What is published on Hugging Face's hub, by its address.
    ctx_size, threads, gpu_layers, kv_type, flash_attn, image_prep, repack, image_cache, prompt_cache
        How it computes, and megabytes of caches.
    no_probe : bool
        Load files that are new to this machine without first trying them in a separate process. A damaged one may
        then end this process.
    offline : bool
        Download nothing.
    quiet : bool
        Print nothing about downloads and trials.

    Raises
    ------
    MissingFileError, DamagedError, InvalidError, NotPublishedError and others

    Examples
    --------
    >>> model = llava_sae.open("llava-gemma-2b")
    >>> model = llava_sae.open(model="m.gguf", mmproj="p.gguf", sae=["layer-6.gguf", "layer-12.gguf"])
    """
    saes = list(sae) if isinstance(sae, (list, tuple)) else [sae]
    options: dict[str, Any] = {
        "model_dir": model_dir,
        "model": model,
        "mmproj": mmproj,
        "sae": [_path_of(one) for one in saes],
        "hf_repo": hf_repo,
        "sae_hf": sae_hf,
        "sae_release": sae_release,
        "sae_id": sae_id,
        "labels": labels,
        "chat_template": chat_template,
        "ctx_size": ctx_size,
        "threads": threads,
        "gpu_layers": gpu_layers,
        "kv_type": kv_type,
        "flash_attn": flash_attn,
        "image_prep": image_prep,
        "repack": repack,
        "image_cache": image_cache,
        "prompt_cache": prompt_cache,
        "no_probe": no_probe,
        "offline": offline,
        "quiet": quiet,
    }
    chosen = ("model_dir", "model", "mmproj", "sae", "hf_repo", "sae_hf", "sae_release")
    if not any(options[name] for name in chosen):
        raise InvalidError("no model is named", "give a folder or a name, or use `demo()`")
    opened = Model(_native.Model.open(["--yes", *_arguments(options)]))
    # Temporary files of SAEs live as long as the model.
    opened._given = [one for one in saes if isinstance(one, SAE)]
    return opened


def demo(
    *,
    sae: str | os.PathLike[str] | SAE | Sequence[str | os.PathLike[str] | SAE] = (),
    threads: int | None = None,
) -> Model:
    """Open the small model that is part of the package, or it with other SAEs."""
    if isinstance(sae, (list, tuple)) and not sae:
        return Model(_native.Model.open(["--quiet", *_arguments({"threads": threads})]))
    model, mmproj, _ = _native.demo_files()
    return open(model=model, mmproj=mmproj, sae=sae, threads=threads, no_probe=True, quiet=True)


def _arguments(options: Mapping[str, Any]) -> list[str]:
    arguments = []
    for name, value in options.items():
        option = "--" + name.replace("_", "-")
        if value is True:
            arguments.append(option)
        elif value is not None and value is not False:
            values = value if isinstance(value, list) else [value]
            arguments += [f"{option}={os.fspath(one) if hasattr(one, '__fspath__') else one}" for one in values]
    return arguments


def _path_of(sae: Any) -> str:
    return str(sae.path) if isinstance(sae, SAE) else os.fspath(sae)


def _pixels(source: Any) -> NDArray[np.uint8]:
    if hasattr(source, "convert") and hasattr(source, "mode"):
        source = np.asarray(source.convert("RGB"))
    if not isinstance(source, np.ndarray):
        kind = type(source).__name__
        raise TypeError(f"a picture is a path, bytes, a PIL image or a uint8 array, not {kind}")
    if source.dtype != np.uint8:
        raise TypeError(f"pixels are of the type uint8, not {source.dtype}")
    if source.ndim != 3 or source.shape[2] != 3:
        raise InvalidError(f"pixels have the shape (height, width, 3), not {source.shape}")
    return np.ascontiguousarray(source)


def _functions(edit: Mapping[str, Edit] | None) -> list[tuple[str, Callable[..., Any]]]:
    def at_hook(function: Edit) -> Callable[..., Any]:
        if not callable(function):
            raise TypeError(f"an edit is a function, not {type(function).__name__}")

        def call(rows: NDArray[np.float32], kind: str, ids: NDArray[np.int32]) -> Any:
            rows.flags.writeable = False
            replaced = function(rows, Tokens(kind, ids))
            if replaced is None:
                return None
            replaced = np.ascontiguousarray(replaced, dtype=np.float32)
            if replaced.shape != rows.shape:
                raise InvalidError(f"an edit returned rows of shape {replaced.shape}, not {rows.shape}")
            return replaced

        return call

    return [(hook, at_hook(function)) for hook, function in (edit or {}).items()]


def _json(value: Any) -> str:
    try:
        return json.dumps(value, allow_nan=False, default=_plain)
    except ValueError:
        raise InvalidError("a number is not finite") from None


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"an option cannot be of the type {type(value).__name__}")


@atexit.register
def _close_all() -> None:
    for model in list(_open_models):
        model.close()
