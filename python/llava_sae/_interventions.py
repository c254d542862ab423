"""Interventions: keyword arguments as the list that a saved set holds."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Union

import numpy as np

from .errors import InvalidError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

# An index, a label or a part of one, or "SAE/INDEX".
FeatureName = Union[int, str]


class Interventions(TypedDict, total=False):
    """What is changed, and where; the command line's options of the same names.

    A feature is an index, a label or a part of one label, or ``"SAE/FEATURE"`` where there are several SAEs.
    """

    steer: Mapping[FeatureName, float]
    """Add so many decoder directions of a feature."""
    clamp: Mapping[FeatureName, float]
    """Set a feature's activation."""
    ablate: FeatureName | Iterable[FeatureName]
    """Set features' activations to 0."""
    scale: Mapping[FeatureName, float]
    """Multiply a feature's activation."""
    project: Mapping[FeatureName, float]
    """Multiply the row's component along a feature's direction."""
    cap: Mapping[FeatureName, float]
    """Limit the row's projection onto a feature's direction."""
    vector: tuple[ArrayLike, float] | Sequence[tuple[ArrayLike, float]]
    """Add a vector, `[d_model]`, at `hook`, so many times."""
    hook: str
    """Where vectors are added; the SAE's hook point if there is one SAE."""
    at: str | Iterable[str | int]
    """The positions: ``"all"``, ``"image"``, ``"prompt"``, ``"generated"``, ``"last"``, ``"-1"``, ``"5..9"``,
    ``"token:TEXT"``, ``"patch:ROW,COL"``, …, or several of them."""
    units: Literal["raw", "unit", "usual"]
    """Of `steer`, `clamp` and `vector`: decoder rows as trained, directions of length 1, or usual activations."""
    when: tuple[FeatureName, float]
    """Only in rows where this feature's activation is above this number."""
    interventions: str | os.PathLike[str] | Mapping[str, Any] | Sequence[Mapping[str, Any]]
    """A saved set besides: a file, its contents, or the list in it."""


_OF_FEATURES = ("steer", "clamp", "scale", "project", "cap")


def plain_name(name: object) -> FeatureName:
    """Return a feature's name as JSON has it, numpy's integers included."""
    if isinstance(name, str):
        return name
    if isinstance(name, (int, np.integer)) and not isinstance(name, bool):
        index = int(name)
        return index if index >= 0 else str(index)
    raise TypeError(f"a feature is an index or a label, not {type(name).__name__}")


def listed_names(names: object) -> list[FeatureName]:
    """Return one name or several as a list."""
    if isinstance(names, (str, int, np.integer)):
        return [plain_name(names)]
    return [plain_name(name) for name in names]  # type: ignore[attr-defined]


def entries(options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return keyword arguments as entries of a saved set."""
    options = {name: value for name, value in options.items() if value is not None}
    unknown = options.keys() - Interventions.__annotations__.keys()
    if unknown:
        raise TypeError(f"unexpected keyword argument {sorted(unknown)[0]!r}")
    shared: dict[str, Any] = {}
    if "at" in options:
        at = options.pop("at")
        shared["at"] = at if isinstance(at, str) else ",".join(map(str, at))
    if "units" in options:
        shared["units"] = options.pop("units")
    if "when" in options:
        name, above = options.pop("when")
        shared["when"] = {"feature": plain_name(name), "above": float(above)}
    hook = options.pop("hook", None)
    saved = _saved(options.pop("interventions", []))
    made: list[dict[str, Any]] = []
    for kind in _OF_FEATURES:
        for name, value in dict(options.get(kind, {})).items():
            made.append({"kind": kind, "feature": plain_name(name), "value": float(value)})
    for name in listed_names(options.get("ablate", ())):
        made.append({"kind": "ablate", "feature": name})
    for values, strength in _pairs(options.get("vector", ())):
        vector = np.asarray(values, dtype=np.float32)
        if vector.ndim != 1:
            raise InvalidError(f"a vector has one dimension, not {vector.ndim}")
        entry = {"kind": "vector", "values": vector.tolist(), "value": float(strength)}
        made.append(entry if hook is None else {**entry, "hook": str(hook)})
    if shared and not made:
        raise InvalidError(f"`{next(iter(shared))}` is given, and no intervention that it is about")
    return saved + [{**entry, **shared} for entry in made]


def _pairs(vectors: Any) -> list[tuple[Any, float]]:
    if isinstance(vectors, tuple) and len(vectors) == 2 and np.ndim(vectors[1]) == 0:
        return [vectors]
    return list(vectors)


def _saved(given: Any) -> list[dict[str, Any]]:
    if isinstance(given, (str, os.PathLike)):
        path = Path(given)
        try:
            given = json.loads(path.read_text())
        except ValueError as error:
            raise InvalidError(f"`{path}` is not a JSON file: {error}") from None
    if isinstance(given, Mapping):
        given = given.get("interventions", [])
    return [dict(entry) for entry in given]
