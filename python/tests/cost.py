"""What Python adds to a call: the same features of the demo asked in Python and in Rust, by turns."""

import statistics
import sys
import time

from conftest import PICTURE

import llava_sae
from llava_sae import _model

ROUNDS, CALLS, LIMIT = 40, 10, 1.03


def main() -> int:
    """Print both times and their ratio."""
    with llava_sae.demo() as model:
        image = model.image(PICTURE)

        def in_python() -> float:
            start = time.perf_counter()
            for _ in range(CALLS):
                model.features(image).top(10)
            return (time.perf_counter() - start) / CALLS

        settings = model._settings(None, [image._handle], False, {}, max_tokens=0)
        ranking = _model._ranking(None, "max", None, (), False)

        def in_rust() -> float:
            return model._handle.time_features([image._handle], settings, ranking, 10, CALLS)

        in_python(), in_rust()
        pairs = [(in_python(), in_rust()) for _ in range(ROUNDS)]
    ours, theirs = (statistics.median(times) * 1e3 for times in zip(*pairs, strict=True))
    ratio = statistics.median(python / rust for python, rust in pairs)
    print(
        f"features of the demo, ms a call: {ours:.3f} in Python, {theirs:.3f} in Rust, ratio {ratio:.3f} (<= {LIMIT})"
    )
    return int(ratio > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
