"""Heads of logs that were verified here before, and the keys that signed them: what a log may not go back on.

One file, one JSON object a line: `note`, the signed checkpoint, and `vkeys`, the trusted keys that signed it. It is
replaced as a whole, so that it is never half written.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import orjson

from animus.domain.checkpoint import Checkpoint
from animus.domain.errors import Invalid
from animus.domain.note import Key, dump_key, load_key
from animus.sdk.files import Unreadable, locked, read_file, replace_file, state_folder
from animus.sdk.source import split_origin
from animus.signing import verify_checkpoint

MAX_HEADS = 100  # of one log; the newest are kept, and extend the others
MAX_FILE_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class KnownHead:
    """A head that was verified here."""

    place: str  # file and line
    checkpoint: Checkpoint
    note: bytes
    keys: tuple[Key, ...]  # trusted at that time, and signed it


class KnownHeads:
    """A file of known heads."""

    def __init__(self, path: Path | None = None) -> None:
        """Without a path it is the user's own."""
        self.path = path or state_folder() / "known-heads"

    def read(self) -> list[KnownHead]:
        """All heads; none where there is no file. Raises Unreadable for a file that something else has changed."""
        try:
            data = read_file(self.path, MAX_FILE_BYTES)
        except Unreadable as error:
            if error.missing:
                return []
            raise
        return [self._load(number, line) for number, line in enumerate(data.splitlines(), 1)]

    def of(self, origin: str) -> list[KnownHead]:
        """The heads of a log in all its epochs, the newest last."""
        base, _ = split_origin(origin)
        found = [head for head in self.read() if split_origin(head.checkpoint.origin)[0] == base]
        return sorted(found, key=lambda head: (split_origin(head.checkpoint.origin)[1], head.checkpoint.size))

    def add(self, note: bytes, keys: Iterable[Key], *, forget: Iterable[KnownHead] = ()) -> None:
        """Keeps a head that was verified, durably, and forgets others. Raises Unreadable, OSError."""
        keys = tuple(keys)
        checkpoint, _ = verify_checkpoint(note, keys)
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with locked(self.path.with_name(f"{self.path.name}.lock")):
            gone = {head.note for head in forget}
            heads = [head for head in self.read() if head.note not in gone]
            same = [head for head in heads if head.checkpoint.origin == checkpoint.origin]
            # A head of the same size says the same: it was checked. The later note may have more cosignatures.
            old = [head for head in same if head.checkpoint.size == checkpoint.size]
            old += sorted((head for head in same if head not in old), key=lambda head: head.checkpoint.size)[
                : -(MAX_HEADS - 1)
            ]
            heads = [head for head in heads if head not in old]
            lines = [_dump(head.note, head.keys) for head in heads] + [_dump(note, keys)]
            replace_file(self.path, b"".join(lines), mode=0o600)

    def _load(self, number: int, line: bytes) -> KnownHead:
        try:
            tree = orjson.loads(line)
            note = tree["note"].encode()
            keys = tuple(load_key(key) for key in tree["vkeys"])
            checkpoint, _ = verify_checkpoint(note, keys)
        except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
            raise Unreadable(self.path, f"line {number} is no known head") from None
        except Invalid as error:
            raise Unreadable(self.path, f"line {number} is no known head: {error.message}") from None
        return KnownHead(f"{self.path}:{number}", checkpoint, note, keys)


def _dump(note: bytes, keys: Iterable[Key]) -> bytes:
    return orjson.dumps({"note": note.decode(), "vkeys": [dump_key(key) for key in keys]}) + b"\n"
