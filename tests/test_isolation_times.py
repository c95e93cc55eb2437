"""How the benchmark of isolation tells two sets of times apart."""

import math
import random

import pytest

from benchmarks.isolation import SMALLEST_MS, compare, sign_test


@pytest.mark.parametrize(("more", "less"), [(60, 40), (50, 50), (130, 70), (21, 9), (500, 431)])
def test_p_is_that_of_fair_coins(more: int, less: int) -> None:
    """As the binomial distribution has it, to a fifth; whichever way, and whatever the differences of zero."""
    count = more + less
    exact = min(1.0, 2 * sum(math.comb(count, heads) for heads in range(min(more, less) + 1)) / 2**count)
    for sign in (1, -1):
        assert sign_test([0.5 * sign] * more + [-3.0 * sign] * less + [0.0] * 7) == pytest.approx(exact, rel=0.2)
    assert sign_test([0.0] * 20) == 1.0


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
