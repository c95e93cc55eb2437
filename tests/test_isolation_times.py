"""How the benchmark of isolation tells two sets of times apart."""

import random

import pytest

from benchmarks.isolation import SMALLEST_MS, compare, signed_rank


@pytest.mark.parametrize(
    ("differences", "p"),
    [  # as scipy.stats.wilcoxon says, by the normal approximation without its correction for continuity
        ([1, -2, 3, 4, -5, 6, 7, 8, -9, 10, 11, 12, 13, -14, 15, 16, 17, 18, -19, 20], 0.03656128916854718),
        ([1, 1, 1, -1, 2, 2, -2, 3, 3, 3, -3, 4, 4, 5, -5, 6, 6, 7, 0, 0, -1, 2], 0.01733359173762795),
        ([0.0] * 20, 1.0),
    ],
)
def test_the_test_is_wilcoxons(differences: list[float], p: float) -> None:
    """With ties, and with differences of zero."""
    assert signed_rank(differences) == pytest.approx(p, rel=1e-9)
    assert signed_rank([-each for each in differences]) == pytest.approx(p, rel=1e-9)


def times(seed: int, more: float) -> tuple[list[float], list[float]]:
    """Pairs of times on a machine that is now fast and now slow, those of the first kind longer by so much."""
    chance = random.Random(seed)
    slow = [chance.uniform(1, 3) for _ in range(2_000)]
    return tuple([each + chance.expovariate(10) + add for each in slow] for add in (more, 0.0))  # type: ignore[return-value]


def test_a_difference_is_found_and_none_is_not() -> None:
    """A twentieth of a millisecond in a noise of two; and of twenty sets without a difference, none is told apart."""
    found = compare(*times(0, 0.05), 7)
    assert found.told(SMALLEST_MS)
    assert 0.04 < found.low < found.difference < found.high < 0.06
    for seed in range(20):
        same = compare(*times(seed, 0.0), 7)
        assert not same.told(SMALLEST_MS), seed
        assert same.high - same.low < 0.03


def test_a_difference_that_is_let_pass_is_not_told_apart() -> None:
    """However certain it is."""
    found = compare(*times(0, 0.05), 7)
    assert found.p < 1e-6
    assert not found.told(0.06)
