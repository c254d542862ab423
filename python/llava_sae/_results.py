"""What runs give. In a notebook, results show themselves."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ._interventions import FeatureName, plain_name
from .errors import InvalidError

if TYPE_CHECKING:
    import os

    import pandas
    import PIL.Image
    import scipy.sparse
    from numpy.typing import NDArray

    from . import _native
    from ._model import Model
    from ._sae import SAE

_ALL = 2**31


class Token(NamedTuple):
    """A position of a prompt."""

    position: int
    kind: str
    """``"text"``, ``"image"`` or ``"generated"``."""
    id: int | None
    text: str | None


class Feature(NamedTuple):
    """A ranked feature; the names are those of ``features --json``."""

    rank: int
    feature: FeatureName
    label: str | None
    score: float
    """The activations at the pooled positions as one number."""
    lift: float | None
    """The largest activation above the usual one on pictures; None without a baseline."""
    max: float
    argmax_position: int
    n_tokens: int
    """Pooled positions where it is active."""


class ActiveFeature(NamedTuple):
    """A feature that is active at a position."""

    feature: FeatureName
    activation: float


class FeatureTable(Sequence[Feature]):
    """Features in order, as a table."""

    def __init__(self, features: Sequence[tuple[Any, ...]] | _native.Standings) -> None:
        self._features = features  # their fields: they become features when they are looked at

    def __len__(self) -> int:
        return len(self._features)

    def __getitem__(self, place):  # type: ignore[no-untyped-def]
        rows = range(len(self))[place]
        if isinstance(rows, range):
            return FeatureTable([self._features[row] for row in rows])
        return Feature._make(self._features[rows])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FeatureTable) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        lines = [f"{'rank':>4}  {'feature':>8}  {'score':>8}  {'lift':>8}  label"]
        for one in self:
            lift = "-" if one.lift is None else f"{one.lift:.3f}"
            label = one.label or "-"
            lines.append(f"{one.rank:>4}  {one.feature!s:>8}  {one.score:>8.3f}  {lift:>8}  {label}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{name}</th>" for name in ("rank", "feature", "score", "lift", "label"))
        rows = []
        for one in self:
            lift = "–" if one.lift is None else f"{one.lift:.3f}"
            cells = (one.rank, one.feature, f"{one.score:.3f}", lift, one.label or "–")
            rows.append("".join(f"<td>{html.escape(str(cell))}</td>" for cell in cells))
        body = "".join(f"<tr>{row}</tr>" for row in rows)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    def to_pandas(self) -> pandas.DataFrame:
        """Return the table as a data frame, a row a feature."""
        import pandas

        return pandas.DataFrame(list(self), columns=list(Feature._fields))


@dataclass(frozen=True, repr=False)
class HeatMap:
    """A feature over a picture."""

    feature: FeatureName
    patches: NDArray[np.float32]
    """Its activation at each patch, `[n_rows, n_columns]`."""
    png: bytes | None
    """The picture with the patches over it, as a PNG file; None where no patch activates the feature."""

    def image(self) -> PIL.Image.Image:
        """Return it as a PIL image.

        Raises
        ------
        InvalidError
            Where no patch activates the feature.
        """
        import io

        import PIL.Image

        if self.png is None:
            raise InvalidError(f"no patch activates feature `{self.feature}`")
        return PIL.Image.open(io.BytesIO(self.png))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the PNG file."""
        if self.png is None:
            raise InvalidError(f"no patch activates feature `{self.feature}`")
        with open(path, "wb") as file:
            file.write(self.png)

    def __repr__(self) -> str:
        rows, columns = self.patches.shape
        return f"HeatMap(feature={self.feature!r}, {rows} × {columns} patches, max={self.patches.max():.3f})"

    def _repr_png_(self) -> bytes | None:
        return self.png


class Page(str):
    """A page of HTML that holds its data and loads nothing."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file."""
        with open(path, "w", encoding="utf-8") as file:
            file.write(self)

    def __repr__(self) -> str:
        return f"Page({len(self)} characters)"

    def _repr_html_(self) -> str:
        # A page of its own, since it has styles and scripts.
        frame = "width:100%;height:720px;border:0"
        return f'<iframe style="{frame}" sandbox="allow-scripts" srcdoc="{html.escape(self)}"></iframe>'


class Features:
    """The features that a prompt activates, at each position and ranked.

    Attributes
    ----------
    saes : list of SAE
        Whose features they are.
    """

    def __init__(self, native: _native.Features, saes: list[SAE]) -> None:
        self._handle = native
        self.saes = saes

    def report(self, top: int = 10) -> dict[str, Any]:
        """Return the object that ``features --json`` prints, with `top` features of each SAE."""
        return json.loads(self._handle.report(top))

    def top(self, n: int = 10) -> FeatureTable:
        """Return the first `n` features of each SAE, best first."""
        return FeatureTable(self._handle.top(n))

    def search(self, text: str) -> FeatureTable:
        """Return the active features whose labels hold these words.

        Raises
        ------
        NoLabelsError
            Without labels.
        """
        found = set(self._handle.search(text))
        return FeatureTable([one for one in self.top(_ALL) if str(one.feature) in found])

    @cached_property
    def tokens(self) -> list[Token]:
        """The prompt's positions."""
        return tokens(self._handle.tokens())

    @cached_property
    def csr(self) -> scipy.sparse.csr_array:
        """The activations at all positions of the first SAE, `[n_positions, d_sae]`."""
        return self.csr_of(0)

    def csr_of(self, sae: int | str) -> scipy.sparse.csr_array:
        """Return the activations of one of the SAEs, by its place or id, `[n_positions, d_sae]`."""
        place = _place(self.saes, sae)
        return csr(self._handle.csr(place), self.saes[place].d_sae)

    def heatmap(self, feature: FeatureName, view: int | None = None) -> HeatMap:
        """Draw a feature over the picture.

        Parameters
        ----------
        feature : int or str
            An index, a label, or a part of one.
        view : int, optional
            Which part of which picture, where a prompt has several; the one where the feature is strongest, if
            none is given.
        """
        name = str(plain_name(feature))
        png, patches = self._handle.heat_map(name, view)
        found = self._handle.find(name)
        png = None if png is None else bytes(png)
        return HeatMap(int(found) if found.isdigit() else found, patches, png)

    def page(self, title: str = "picture") -> Page:
        """Return a page to explore them on: every patch and token, every active feature."""
        return Page(self._handle.page(title))

    def to_pandas(self) -> pandas.DataFrame:
        """Return all active features as a data frame, best first."""
        return self.top(_ALL).to_pandas()

    @property
    def seconds(self) -> float:
        """The time that the model took."""
        return self._handle.seconds

    def __repr__(self) -> str:
        return repr(self.top())

    def _repr_html_(self) -> str:
        return self.top()._repr_html_()


class Text(str):
    """A generated text: a string that knows how it came about.

    Attributes
    ----------
    token_ids : list of int
        The generated tokens, without the one that ended the text.
    stop : str
        Why it ended: ``"end"``, ``"length"``, ``"stop_string"`` or ``"interrupted"``.
    prompt : str
    interventions : list of dict
        What was done, with features by their indices and labels; a saved set.
    timings : dict
        Milliseconds of the prompt and of the generation.
    """

    token_ids: list[int]
    stop: str
    prompt: str
    interventions: list[dict[str, Any]]
    timings: dict[str, float]

    @classmethod
    def _of(cls, report: str) -> Text:
        fields = json.loads(report)
        text = cls(fields["text"])
        text.token_ids = fields["token_ids"]
        text.stop = fields["stop"]
        text.prompt = fields["prompt"]
        text.interventions = fields["interventions"]
        text.timings = {name: fields[name] for name in ("prompt_ms", "generate_ms")}
        return text

    @property
    def text(self) -> str:
        """The text as a plain string."""
        return str.__str__(self)

    def _repr_html_(self) -> str:
        done = ", ".join(_shown(entry) for entry in self.interventions)
        below = f"<br><small>{html.escape(done)}</small>" if done else ""
        return f'<p style="white-space:pre-wrap">{html.escape(self)}{below}</p>'


class Piece(NamedTuple):
    """What a step of a generation gives."""

    text: str
    """The new characters; a character may take several tokens."""
    token_id: int | None
    features: list[ActiveFeature]
    """What is active where the token was predicted, strongest first."""


class Stream(Iterator[Piece]):
    """A text as it comes. Leave the loop, or `close` it, to end the run.

    Attributes
    ----------
    text : Text or None
        The whole text, once it is there.
    """

    def __init__(self, native: _native.Stream, model: Model) -> None:
        self._handle = native
        self._model = model  # which is closed before Python ends
        self.text: Text | None = None

    def __next__(self) -> Piece:
        event = self._handle.next() if self.text is None else None
        if event is None:
            raise StopIteration
        is_step, report = event
        if not is_step:
            self.text = Text._of(report)
            raise StopIteration
        piece = json.loads(report)
        active = [ActiveFeature(*pair) for pair in piece["features"]]
        active.sort(key=lambda one: -one.activation)
        return Piece(piece["text"], piece["id"], active)

    def close(self) -> None:
        """End the run."""
        self._handle.close()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Capture:
    """What the hooks saw of a run, as arrays; their names are those of the tensors that ``capture`` writes.

    Attributes
    ----------
    tensors : dict of str to ndarray
        All of it. With several SAEs, the names of what each saw begin with ``"SAE/"``.
    text : Text
        What was generated.
    """

    def __init__(self, tensors: dict[str, NDArray[Any]], report: str, saes: list[SAE]) -> None:
        self.tensors = {
            # The numbers are the same in both types, and scipy's have signs.
            name: array.view(np.int32) if array.dtype == np.uint32 else array
            for name, array in tensors.items()
        }
        self.text = Text._of(report)
        self.saes = saes

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self.tensors[name]

    def __getattr__(self, name: str) -> NDArray[Any]:
        try:
            return self.__dict__["tensors"][name]
        except KeyError:
            raise AttributeError(f"there is no `{name}` in this capture") from None

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self.tensors]

    @cached_property
    def csr(self) -> scipy.sparse.csr_array:
        """The activations of the first SAE, `[n_rows, d_sae]`."""
        return self.csr_of(0)

    def csr_of(self, sae: int | str) -> scipy.sparse.csr_array:
        """Return the activations of one of the SAEs, by its place or id, `[n_rows, d_sae]`."""
        chosen = self.saes[_place(self.saes, sae)]
        prefix = f"{chosen.id}/" if len(self.saes) > 1 else ""
        names = ("feature_offsets", "feature_ids", "feature_values")
        return csr(tuple(self.tensors[prefix + name] for name in names), chosen.d_sae)

    def __repr__(self) -> str:
        shapes = (f"{name}{list(array.shape)}" for name, array in self.tensors.items())
        return f"Capture({', '.join(shapes)})"


class Sweep(Sequence[dict]):
    """A feature at several strengths: a row for each, with `strength`, `text`, `kl`, `mean_log_prob` and more."""

    def __init__(self, native: _native.Sweep) -> None:
        self._handle = native
        self._report = json.loads(native.report())

    def report(self) -> dict[str, Any]:
        """Return the object that ``sweep --json`` prints."""
        return self._report

    @property
    def original(self) -> dict[str, Any]:
        """The run without interventions."""
        return self._report["original"]

    def __len__(self) -> int:
        return len(self._report["steered"])

    def __getitem__(self, place):  # type: ignore[no-untyped-def]
        return self._report["steered"][place]

    def page(self) -> Page:
        """Return the page that ``sweep --html`` writes."""
        return Page(self._handle.page())

    def to_pandas(self) -> pandas.DataFrame:
        """Return a data frame, a row a strength, the original first."""
        import pandas

        return pandas.DataFrame([self.original, *self])

    def __repr__(self) -> str:
        rows = [("original", self.original)] + [(f"{row['strength']:g}", row) for row in self]
        lines = (f"{name:>10}  {row['kl']!s:>8.8}  {row['text'].strip()!r}" for name, row in rows)
        return "\n".join(["  strength        KL  text", *lines])

    def _repr_html_(self) -> str:
        rows = [("original", self.original)] + [(f"{row['strength']:g}", row) for row in self]
        cells = (
            f"<tr><td>{name}</td><td>{row['kl']!s:.8}</td><td>{html.escape(row['text'].strip())}</td></tr>"
            for name, row in rows
        )
        head = "<tr><th>strength</th><th>KL</th><th>text</th></tr>"
        return f"<table><thead>{head}</thead><tbody>{''.join(cells)}</tbody></table>"


def tokens(report: str) -> list[Token]:
    """Return positions that the native module gives as JSON."""
    return [Token(**token) for token in json.loads(report)]


def csr(arrays: Any, d_sae: int) -> scipy.sparse.csr_array:
    """Return arrays of the native module as a matrix, `[n_rows, d_sae]`."""
    try:
        import scipy.sparse
    except ImportError:
        raise ImportError("sparse matrices need scipy: pip install scipy") from None

    indptr, indices, data = arrays
    shape = (len(indptr) - 1, d_sae)
    return scipy.sparse.csr_array((data, indices.view(np.int32), indptr), shape=shape)


def _place(saes: list[SAE], sae: int | str) -> int:
    ids = [one.id for one in saes]
    if sae in ids:
        return ids.index(sae)  # type: ignore[arg-type]
    if isinstance(sae, int) and 0 <= sae < len(saes):
        return sae
    raise InvalidError(f"there is no SAE `{sae}`", f"they are {ids}")


def _shown(entry: dict[str, Any]) -> str:
    value = "" if entry.get("value") is None else f" {entry['value']:g}"
    name = entry.get("feature", "")
    label = f" `{entry['label']}`" if entry.get("label") else ""
    return f"{entry['kind']} {name}{label}{value} at {entry['at']}"
