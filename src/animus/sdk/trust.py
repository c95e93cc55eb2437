"""Which keys are trusted to sign for a log.

All logs of an instance are signed by one key, under their own names. So a key that is trusted for one of them is for
the others too. Only another epoch of the same log is more than that: it follows a restore, and somebody accepts it.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum

from animus.domain.note import ED25519, Key
from animus.sdk.contradiction import Contradiction, Finding
from animus.sdk.heads import KnownHeads
from animus.sdk.source import split_origin


class KeySource(StrEnum):
    """Who says that the keys are the log's."""

    GIVEN = "given"  # the reader, who has them from elsewhere
    PINNED = "pinned"  # the heads that were verified here before
    SERVER = "server"  # the log itself: worth no more than that it stays the same from now on


class NoKeyError(Exception):
    """No key is given, and none is known."""


@dataclass(frozen=True, slots=True)
class Trust:
    """The keys that are trusted for one log."""

    source: KeySource
    keys: tuple[Key, ...]  # under the log's origin

    def keys_for(self, origin: str) -> tuple[Key, ...]:
        """The same keys in another epoch of the log, or for another log of its instance."""
        return under(origin, self.keys)


def under(origin: str, keys: Iterable[Key]) -> tuple[Key, ...]:
    """Public keys under the name of a log."""
    return tuple(dict.fromkeys(Key(origin, ED25519, key.public_key) for key in keys))


def instances_of(name: str) -> frozenset[str]:
    """The instances that a log of this name, or a key, may be of: `a/b/1` is the log of `a/b`, or that of b in `a`."""
    base, epoch = split_origin(name)
    return frozenset({base, base.rpartition("/")[0]} - {""}) if epoch else frozenset({name})


def is_of(key: Key, origin: str) -> bool:
    """Whether a key is of the instance of a log."""
    return key.type == ED25519 and not instances_of(key.name).isdisjoint(instances_of(origin))


def in_another_epoch(key: Key, origin: str) -> bool:
    """Whether a key is of the same log under the name of another epoch."""
    base, epoch = split_origin(key.name)
    return bool(epoch) and key.name != origin and base == split_origin(origin)[0]


class Trusted:
    """Whom a reader trusts: the keys that are given; without any, those of the newest head known of a log, or else of
    its instance; without either, what the log claims, where that is asked for."""

    def __init__(
        self, given: Iterable[Key], known: KnownHeads, claimed: Callable[[str], Iterable[Key]] | None, accept_epoch: int
    ) -> None:
        """`claimed` says which keys the log of an origin says it has. `accept_epoch`: see `of`."""
        self._given = tuple(given)
        self._known = known
        self._claimed = claimed
        self._accept_epoch = accept_epoch
        self._found: dict[str, Trust] = {}

    def of(self, origin: str) -> Trust:
        """The trusted keys of a log that calls itself so.

        A given key of one epoch is one for another only if that is `accept_epoch`; known ones are, for then the known
        heads say what became of the log. Raises Contradiction when no given key is of this log, and NoKeyError.
        """
        if not self._given:
            return self._unless_given(origin)
        epoch = split_origin(origin)[1]
        ours = [key for key in self._given if is_of(key, origin)]
        keys = [key for key in ours if epoch == self._accept_epoch or not in_another_epoch(key, origin)]
        if not keys:
            names = ", ".join(dict.fromkeys(key.name for key in self._given))
            advice = f": if the new epoch is known to you, repeat with --accept-epoch {epoch}" if ours else ""
            raise Contradiction(
                Finding.UNKNOWN_LOG, origin, f"is the log's name; the given keys are of {names}{advice}"
            )
        return Trust(KeySource.GIVEN, under(origin, keys))

    def keys_for(self, origin: str) -> tuple[Key, ...]:
        """The keys whose receipts and older heads are good for a log, whatever its epoch; none where no given key is.

        Raises NoKeyError.
        """
        if not self._given:
            return self._unless_given(origin).keys
        return under(origin, [key for key in self._given if is_of(key, origin)])

    def _unless_given(self, origin: str) -> Trust:
        if origin not in self._found:
            self._found[origin] = self._find(origin)
        return self._found[origin]

    def _find(self, origin: str) -> Trust:
        *_, newest = [None, *self._known.of(origin)]
        *_, other = [None, *(head for head in self._known.read() if any(is_of(key, origin) for key in head.keys))]
        if head := newest or other:
            return Trust(KeySource.PINNED, under(origin, head.keys))
        if self._claimed is None:
            raise NoKeyError(f"no key is known for {origin}")
        return Trust(KeySource.SERVER, under(origin, [key for key in self._claimed(origin) if is_of(key, origin)]))
