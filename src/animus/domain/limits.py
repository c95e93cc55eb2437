"""How often a caller may call: a token bucket, as a function of the time that it is given.

A bucket is one number, the time at which it is full again, so that one that nobody kept is a full one (the virtual
scheduling algorithm of ITU-T I.371, annex A, also known as GCRA). Times are nanoseconds of a clock that only goes on.
"""

from dataclasses import dataclass

from animus.domain.names import check_within

SECOND = 1_000_000_000
MAX_PER_SECOND = 100_000


@dataclass(frozen=True, slots=True)
class Rate:
    """What a caller may do."""

    per_second: int  # 1 to 100,000 calls, in the long run
    burst: int  # 1 to 100,000 calls at once, of one that has been quiet

    def __post_init__(self) -> None:
        check_within(self.per_second, 1, MAX_PER_SECOND, "perSecond")
        check_within(self.burst, 1, MAX_PER_SECOND, "burst")

    @property
    def interval(self) -> int:
        """Nanoseconds in which a token comes back."""
        return SECOND // self.per_second


def take(full: int, now: int, rate: Rate) -> tuple[int, int]:
    """Takes a token of a bucket that is full at a time; when it is full then, and how long a token is away.

    No wait: the token was taken. Otherwise the bucket is as before, and a call after just that wait finds a token.
    """
    start = max(full, now)
    wait = start - now - (rate.burst - 1) * rate.interval
    return (full, wait) if wait > 0 else (start + rate.interval, 0)


class Buckets:
    """A bucket for each caller, and so many at most."""

    def __init__(self, rate: Rate, most: int) -> None:
        self._rate = rate
        self._most = most
        self._full: dict[str, int] = {}  # those that called longest ago come first

    def __len__(self) -> int:
        return len(self._full)

    def take(self, key: str, now: int) -> int:
        """Takes a token of a caller; 0, or how long one is away."""
        full, wait = take(self._full.pop(key, 0), now, self._rate)
        if len(self._full) >= self._most:
            self._forget(now)
        self._full[key] = full
        return wait

    def _forget(self, now: int) -> None:
        """Drops the buckets that are full; where that is not enough, half of them all, whose callers gain a burst."""
        self._full = {key: full for key, full in self._full.items() if full > now}
        if len(self._full) >= self._most:
            for key in list(self._full)[: (self._most + 1) // 2]:
                del self._full[key]
