"""Loads the native module; imported before all that needs it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# How often OpenMP's threads look again before they sleep: dozens of microseconds. The command adapts this to who else
# wants the processors, which only works where OpenMP is linked into the program; here it is fixed, so that processes
# side by side do not wait for each other for long. OpenMP reads it when it is loaded.
_SPINS = "2000"
_VARIABLES = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}

_HERE = Path(__file__).resolve().parent

# A published wheel has the native module several times, compiled for lesser and for newer processors, in folders that
# this table names, best first, with the features that each needs.
_TABLE = _HERE / "processors.txt"
_CHOICE = "LLAVA_SAE_PROCESSOR"


def _chosen_build(table: str, has: set[str], asked: str | None) -> str:
    """Return the name of the build that is asked for, or of the best one that runs.

    Raises
    ------
    ImportError
        Where it does not run on a processor that `has` these features.
    """
    lines = [line.split() for line in table.splitlines() if not line.startswith("#")]
    lacking = {name: [feature for feature in features if feature not in has] for name, *features in lines}
    if asked:
        if asked not in lacking:
            names = "`, `".join(lacking)
            raise ImportError(f"there is no build `{asked}`, which `{_CHOICE}` names\nhint: there are `{names}`")
        if lacking[asked]:
            raise ImportError(
                f"this processor cannot run the build `{asked}`, which `{_CHOICE}` names: it lacks "
                f"{', '.join(lacking[asked])}\nhint: without `{_CHOICE}`, the best one that it can run is chosen"
            )
        return asked
    for name, features in lacking.items():
        if not features:
            return name
    least = list(lacking.values())[-1]
    raise ImportError(
        f"this processor is too old for this package: it lacks {', '.join(least)}\n"
        "hint: `cargo install llava-sae-cpp --locked` compiles a slower program that runs on any x86-64"
    )


def _features() -> set[str]:
    """Return what Linux says that the processor has, by rustc's names."""
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            name, _, value = line.partition(":")
            if name.strip() == "flags":
                return {flag.replace("_", "") for flag in value.split()}
    return set()


if _TABLE.exists():
    try:
        _build = _chosen_build(_TABLE.read_text(encoding="utf-8"), _features(), os.environ.get(_CHOICE))
    except ImportError as error:
        if sys.argv and Path(sys.argv[0]).name == "llava-sae-cpp":
            sys.exit(f"error: {error}")  # the command's users want no traceback
        raise
    sys.modules[__package__].__path__.append(str(_HERE / _build))

_is_chosen = bool(_VARIABLES & os.environ.keys())
if not _is_chosen:
    os.environ["GOMP_SPINCOUNT"] = _SPINS
try:
    from . import _native
finally:
    if not _is_chosen:
        del os.environ["GOMP_SPINCOUNT"]

if sys.executable:
    # Files that this machine has not seen are tried in a process of their own, whose Python may look elsewhere for
    # packages.
    _CHILD = "import sys; sys.path.insert(0, sys.argv.pop(1)); from llava_sae.__main__ import main; main()"
    _native.set_child_command([sys.executable, "-c", _CHILD, str(_HERE.parent)])
