"""The command ``llava-sae-cpp``, also as ``python -m llava_sae``."""

from __future__ import annotations

import os
import sys

from . import _native


def main() -> None:
    """Run the command with the process's arguments."""
    code = _native.main(["llava-sae-cpp", *sys.argv[1:]])
    sys.stdout.flush()
    # Python has nothing to tidy up, and what the library leaves to the system is no use of its time.
    os._exit(code)


if __name__ == "__main__":
    main()
