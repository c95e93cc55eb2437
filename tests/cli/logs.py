"""Logs made without a server: entries, signed heads, receipts, and the directories that an export would write."""

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from animus.domain import document, merkle
from animus.domain.audit import AuditEntry, AuditOutcome, AuditRecord
from animus.domain.checkpoint import Checkpoint, dump_checkpoint
from animus.domain.merkle import EMPTY_RANGE, leaf_hash
from animus.domain.note import Key, dump_key
from animus.domain.receipt import Receipt, dump_receipt
from animus.domain.tile import WIDTH, bundle_path, dump_bundle, tile_path
from animus.sdk.tree import TileTree
from animus.signing import SigningKey, sign_note

INSTANCE = "animus.example"
KEY = SigningKey(INSTANCE, bytes(range(32)))
OTHER_KEY = SigningKey(INSTANCE, bytes(range(1, 33)))


def entry(index: int, project_id: str = "p", **changed: str) -> AuditEntry:
    """An entry; those of other indexes have other ids and later times."""
    value = AuditEntry(
        project_id=project_id,
        entry_id=f"{index * 2654435761 % 2**32:08x}{index:024x}",
        principal="ops",
        action="run.create",
        resource=f"projects/{project_id}/runs/r{index}",
        method="animus.v1.RunService/CreateRun",
        request_id=f"r-{index}",
        request_digest="sha256:" + "a" * 64,
        time=f"2026-01-31T{index // 3600 % 24:02}:{index // 60 % 60:02}:{index % 60:02}.000000Z",
        outcome=AuditOutcome.ACCEPTED,
        reason="",
        records=(AuditRecord("run", "sha256:" + "b" * 64),),
        refusals=(),
        reply_digest="sha256:" + "c" * 64,
    )
    return replace(value, **changed)  # type: ignore[arg-type]


def leaves(count: int, project_id: str = "p") -> list[bytes]:
    """The canonical bytes of so many entries."""
    return [document.dump(entry(index, project_id)) for index in range(count)]


@dataclass(frozen=True, slots=True)
class ToyLog:
    """A log of these leaves, and what its key signs for it."""

    leaves: Sequence[bytes]
    origin: str
    key: SigningKey

    def root(self, size: int) -> bytes:
        """The root of the tree of a size."""
        return merkle.root(merkle.append(EMPTY_RANGE, map(leaf_hash, self.leaves[:size])))

    def checkpoint(self, size: int) -> str:
        """The text of the checkpoint of a size."""
        return dump_checkpoint(Checkpoint(self.origin, size, self.root(size), ()))

    def note(self, size: int) -> bytes:
        """The signed checkpoint of a size."""
        return sign_note(self.checkpoint(size), [self.key], self.origin)

    def receipt(self, index: int, promised_by: str = "2026-01-31T23:59:59.000000Z") -> bytes:
        """The receipt of an entry."""
        value = document.load(self.leaves[index], AuditEntry)
        receipt = Receipt(self.origin, leaf_hash(self.leaves[index]), value.entry_id, promised_by)
        return sign_note(dump_receipt(receipt), [self.key], self.origin)

    @property
    def vkey(self) -> str:
        """Its public key."""
        return dump_key(Key(self.origin, 1, self.key.public_key))

    def write(self, folder: Path, size: int | None = None, heads: Iterable[int] = ()) -> Path:
        """Writes the directory of the tree of a size, with older heads."""
        size = len(self.leaves) if size is None else size
        if folder.exists():
            shutil.rmtree(folder)
        tree = TileTree()
        for first in range(0, size, WIDTH):
            part = self.leaves[first : min(first + WIDTH, size)]
            put(folder / bundle_path(first // WIDTH, len(part)), dump_bundle(part))
            for tile, data in tree.add([leaf_hash(leaf) for leaf in part]):
                put(folder / tile_path(tile), data)
        for tile, data in tree.partial():
            put(folder / tile_path(tile), data)
        for head in heads:
            put(folder / "checkpoints" / str(head), self.note(head))
        put(folder / "log.vkeys", f"{self.vkey}\n".encode())
        put(folder / "checkpoint", self.note(size))
        return folder


def toy_log(count: int, project_id: str = "p", epoch: int = 1, key: SigningKey = KEY) -> ToyLog:
    """A log of a project with so many entries."""
    return ToyLog(leaves(count, project_id), f"{INSTANCE}/{project_id}/{epoch}", key)


def put(path: Path, data: bytes) -> None:
    """Writes a file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


LOG_700 = toy_log(700)
