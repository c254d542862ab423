"""Which build of the native module is taken."""

import pytest

from llava_sae import _load

TABLE = "# comment\nfast avx2 avx512f\nslow avx2\n"


@pytest.mark.parametrize(
    ("asked", "features", "expected"),
    [
        (None, {"avx2", "avx512f"}, "fast"),
        (None, {"avx2"}, "slow"),
        ("", {"avx2"}, "slow"),
        ("slow", {"avx2", "avx512f"}, "slow"),
    ],
)
def test_the_best_build_or_the_one_that_is_asked_for(asked, features, expected):
    assert _load._chosen_build(TABLE, features, asked) == expected


@pytest.mark.parametrize(
    ("asked", "features", "said"),
    [
        (None, {"avx512f"}, "too old for this package: it lacks avx2"),
        ("fast", {"avx2"}, "it lacks avx512f"),
        ("other", {"avx2"}, "there are `fast`, `slow`"),
    ],
)
def test_a_build_that_would_not_run_is_refused(asked, features, said):
    with pytest.raises(ImportError, match=said):
        _load._chosen_build(TABLE, features, asked)
