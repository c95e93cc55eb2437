"""What the leaves of a log have to be: entries of one project, or the checkpoints of an instance's projects."""

from collections.abc import Callable

from animus.domain import document
from animus.domain.audit import AuditEntry
from animus.domain.errors import Invalid
from animus.domain.names import RANDOM_ID, check_time
from animus.sdk.contradiction import Contradiction, Finding
from animus.sdk.source import load_head, project_of, split_origin
from animus.sdk.trust import Trust
from animus.signing import verify_checkpoint

Watch = Callable[[int, AuditEntry, bytes], None]  # index, entry, leaf hash

ID_BYTES = 16
INDEX_BYTES = 8
ROW = ID_BYTES + INDEX_BYTES


def place_of(index: int) -> str:
    """What a leaf is called in messages."""
    return f"entry {index}"


class AuditEntries:
    """The leaves of a project's log."""

    def __init__(self, origin: str, watches: tuple[Watch, ...]) -> None:
        self._project_id = project_of(origin)
        self._watches = watches
        self._ids = [bytearray() for _ in range(256)]  # by their first byte: 24 bytes for each entry

    def check(self, index: int, data: bytes, leaf_hash: bytes) -> None:
        """Raises Contradiction unless this is an entry of the project."""
        try:
            entry = document.load(data, AuditEntry)
            check_time(entry.time, "time")
        except Invalid as error:
            raise Contradiction(Finding.WRONG_ENTRY, place_of(index), f"is no audit entry: {error.message}") from None
        if not RANDOM_ID.fullmatch(entry.entry_id):
            raise Contradiction(Finding.WRONG_ENTRY, place_of(index), "has no id of 32 hexadecimal digits")
        if entry.project_id != self._project_id:
            raise Contradiction(
                Finding.WRONG_ENTRY,
                f"{place_of(index)} ({entry.entry_id})",
                f"is of the project {entry.project_id!r}, and this is the log of {self._project_id!r}",
            )
        key = bytes.fromhex(entry.entry_id)
        self._ids[key[0]] += key + index.to_bytes(INDEX_BYTES, "big")
        for watch in self._watches:
            watch(index, entry, leaf_hash)

    def finish(self) -> None:
        """Raises Contradiction for the first entry that stands a second time."""
        repeats = []
        for rows in self._ids:
            seen: dict[bytes, bytes] = {}
            for at in range(0, len(rows), ROW):
                key, index = bytes(rows[at : at + ID_BYTES]), bytes(rows[at + ID_BYTES : at + ROW])
                first = seen.setdefault(key, index)
                if first != index:
                    repeats.append((index, first, key))
            rows.clear()
        if repeats:
            index, first, key = min(repeats)
            raise Contradiction(
                Finding.REPEATED,
                f"{place_of(int.from_bytes(index, 'big'))} ({key.hex()})",
                f"stands at index {int.from_bytes(first, 'big')} already",
            )


class ProjectCheckpoints:
    """The leaves of an instance's log."""

    def __init__(self, origin: str, trust: Trust) -> None:
        self._instance = split_origin(origin)[0]
        self._trust = trust
        self._largest: dict[str, tuple[int, bytes, int]] = {}  # by origin: size, root, and index of the leaf

    def check(self, index: int, data: bytes, leaf_hash: bytes) -> None:
        """Raises Contradiction unless this is a signed checkpoint that its log could have after those before."""
        place = place_of(index)
        origin = load_head(place, data).checkpoint.origin
        if not origin.startswith(f"{self._instance}/") or split_origin(origin)[0] == self._instance:
            raise Contradiction(Finding.WRONG_ENTRY, place, f"is of {origin}, no log of a project of {self._instance}")
        try:
            checkpoint, _ = verify_checkpoint(data, self._trust.keys_for(origin))
        except Invalid as error:
            raise Contradiction(Finding.BAD_SIGNATURE, place, f"is of {origin}: {error.message}") from None
        size, root, at = self._largest.get(origin, (-1, b"", -1))
        if checkpoint.size < size or (checkpoint.size == size and checkpoint.root_hash != root):
            raise Contradiction(
                Finding.FORKED,
                place,
                f"is the checkpoint of size {checkpoint.size} of {origin}, after that of size {size} at index {at}",
            )
        self._largest[origin] = (checkpoint.size, checkpoint.root_hash, index)

    def finish(self) -> None:
        """Nothing is left to check."""
