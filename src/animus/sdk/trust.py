"""Which keys are trusted to sign for a log.

A key of the name N is trusted for the log whose origin is N, and for those whose origins begin with `N/`: the key of an
instance, under the instance's name, for all of its logs; the key of one log, under its origin, for that log in that
epoch.
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


def named_for(origin: str, keys: Iterable[Key]) -> tuple[Key, ...]:
    """The keys whose name covers an origin, under that origin."""
    named = [key for key in keys if key.type == ED25519 and f"{origin}/".startswith(f"{key.name}/")]
    return under(origin, named)


class Trusted:
    """Whom a reader trusts: the keys that are given; without any, those of the newest head known of a log; without
    either, what the log claims, where that is asked for."""

    def __init__(
        self, given: Iterable[Key], known: KnownHeads, claimed: Callable[[str], Iterable[Key]] | None, accept_epoch: int
    ) -> None:
        """`claimed` says which keys the log of an origin says it has. `accept_epoch`: see `of`."""
        self._given = tuple(given)
        self._known = known
        self._claimed = claimed
        self._accept_epoch = accept_epoch

    def of(self, origin: str) -> Trust:
        """The trusted keys of a log that calls itself so.

        A given key of one epoch is one for another only if that is `accept_epoch`; known ones are, for then the known
        heads say what became of the log. Raises Contradiction when no given key is of this log, and NoKeyError.
        """
        if not self._given:
            return self._unless_given(origin)
        base, epoch = split_origin(origin)
        same_log = [key for key in self._given if split_origin(key.name)[0] == base]
        keys = named_for(origin, self._given) or (under(origin, same_log) if epoch == self._accept_epoch else ())
        if not keys:
            names = ", ".join(dict.fromkeys(key.name for key in self._given))
            advice = f": if the new epoch is known to you, repeat with --accept-epoch {epoch}" if same_log else ""
            raise Contradiction(
                Finding.UNKNOWN_LOG, origin, f"is the log's name; the given keys are of {names}{advice}"
            )
        return Trust(KeySource.GIVEN, keys)

    def keys_for(self, origin: str) -> tuple[Key, ...]:
        """The keys whose receipts and older heads are good for a log, whatever its epoch; none where no given key is.

        Raises NoKeyError.
        """
        if not self._given:
            return self._unless_given(origin).keys
        base, _ = split_origin(origin)
        same_log = [key for key in self._given if split_origin(key.name)[0] == base]
        return named_for(origin, self._given) or under(origin, same_log)

    def _unless_given(self, origin: str) -> Trust:
        *_, newest = [None, *self._known.of(origin)]
        if newest is not None:
            return Trust(KeySource.PINNED, under(origin, newest.keys))
        if self._claimed is None:
            raise NoKeyError(f"no key is known for {origin}")
        base, _ = split_origin(origin)
        claimed = [key for key in self._claimed(origin) if split_origin(key.name)[0] == base]
        return Trust(KeySource.SERVER, under(origin, claimed))
