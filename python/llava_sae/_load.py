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
    _HERE = Path(__file__).resolve().parent.parent
    _native.set_child_command([sys.executable, "-c", _CHILD, str(_HERE)])
