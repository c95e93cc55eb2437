"""The token bucket: what it lets through in any time, and that what it says of the wait is true."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from animus.domain.errors import Invalid
from animus.domain.limits import SECOND, Buckets, Rate, take

RATES = st.builds(Rate, per_second=st.integers(1, 2_000), burst=st.integers(1, 50))
GAPS = st.lists(st.integers(0, SECOND), min_size=1, max_size=60)


@given(RATES, GAPS)
def test_no_stretch_of_time_lets_more_through_than_burst_and_rate(rate: Rate, gaps: list[int]) -> None:
    """Between any two calls that were taken lie no more than the burst and what came back meanwhile."""
    now, full = 0, 0
    taken: list[int] = []
    for gap in gaps:
        now += gap
        full, wait = take(full, now, rate)
        if not wait:
            taken.append(now)
    for first, start in enumerate(taken):
        for last, end in enumerate(taken[first:], first):
            assert last - first + 1 <= rate.burst + (end - start) // rate.interval


@given(RATES, GAPS)
def test_the_wait_is_true(rate: Rate, gaps: list[int]) -> None:
    """After just the wait a token is there, and a nanosecond before it is not."""
    now, full = 0, 0
    for gap in gaps:
        now += gap
        full, wait = take(full, now, rate)
        if wait:
            assert take(full, now + wait, rate)[1] == 0
            assert take(full, now + wait - 1, rate)[1] == 1


@given(RATES, st.lists(st.integers(0, SECOND), min_size=1, max_size=60))
def test_a_caller_within_its_rate_is_never_refused(rate: Rate, more: list[int]) -> None:
    """Whoever leaves the interval between two calls is always taken."""
    now, full = 0, 0
    for gap in more:
        now += rate.interval + gap
        full, wait = take(full, now, rate)
        assert wait == 0


def test_buckets_are_apart_and_bounded() -> None:
    """One caller's calls cost no other; callers that are quiet are forgotten without a difference, others by half."""
    buckets = Buckets(Rate(1, 2), 4)
    assert [buckets.take("a", 0) for _ in range(3)] == [0, 0, SECOND]
    assert buckets.take("b", 0) == 0
    for number in range(100):
        buckets.take(f"c{number}", 0)
        assert len(buckets) <= 4
    kept = Buckets(Rate(1, 2), 4)
    for name in "abcd":
        kept.take(name, 0)
    assert kept.take("d", SECOND // 2) == 0
    kept.take("e", 1 + SECOND)  # a, b and c are full by now
    assert len(kept) == 2
    assert [kept.take("d", 1 + SECOND) for _ in range(2)] == [0, SECOND - 1], "d's is kept"


@pytest.mark.parametrize(("per_second", "burst"), [(0, 1), (1, 0), (100_001, 1), (1, 100_001)])
def test_a_rate_that_is_none_is_refused(per_second: int, burst: int) -> None:
    """Nothing at all is no rate, and neither is more than a server could count."""
    with pytest.raises(Invalid):
        Rate(per_second, burst)
