"""What Python adds to a call: the same features of the demo asked in Python and in Rust, by turns.

A new prompt is one that the model runs. One that it remembers, as the same picture asked twice, is the shortest call.
"""

import statistics
import sys
import time

from conftest import PICTURE

import llava_sae
from llava_sae import _native

ROUNDS, CALLS = 100, 10  # many rounds, as clocks wander
# The megabytes of remembered prompts, none for as many as there are by default, and the most that Python may take.
CASES = {"a new prompt": (0, 1.03), "a remembered one": (None, 1.05)}


def main() -> int:
    """Print the times of both, and their ratios."""
    too_much = [name for name, (cache, limit) in CASES.items() if _ratio(name, cache, limit) > limit]
    return int(bool(too_much))


def _ratio(name: str, cache: int | None, limit: float) -> float:
    language_model, mmproj, sae = _native.demo_files()
    opened = llava_sae.open(model=language_model, mmproj=mmproj, sae=sae, prompt_cache=cache, no_probe=True, quiet=True)
    with opened as model:
        image = model.image(PICTURE)

        def in_python() -> float:
            start = time.perf_counter()
            for _ in range(CALLS):
                model.features(image).top(10)
            return (time.perf_counter() - start) / CALLS

        settings = model._settings(None, [image._handle], False, {})
        ranking = _native.RankSettings.of(None, "max", None, [], False)

        def in_rust() -> float:
            return model._handle.time_features([image._handle], settings, ranking, 10, CALLS)

        in_python(), in_rust()
        pairs = [(in_python(), in_rust()) for _ in range(ROUNDS)]
    ours, theirs = (statistics.median(times) * 1e3 for times in zip(*pairs, strict=True))
    ratio = statistics.median(python / rust for python, rust in pairs)
    print(f"features of {name}, ms a call: {ours:.3f} in Python, {theirs:.3f} in Rust, ratio {ratio:.3f} (<= {limit})")
    return ratio


if __name__ == "__main__":
    sys.exit(main())
