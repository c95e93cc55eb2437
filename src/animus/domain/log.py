"""The log: what its records say, what its origins are called, and how it grows.

Every log of an instance is signed by the same key. Its origin tells it from the others, and is the first line of all
that is signed for it: `<instance name>/<project>/<epoch>`, and `<instance name>/<epoch>` for the instance's own log.
"""

import base64
import binascii
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import ClassVar

from animus.domain import merkle
from animus.domain.errors import Unavailable, invalid
from animus.domain.names import (
    INSTANCE_LOG,
    RANDOM_ID,
    check_length,
    check_pattern,
    check_within,
    format_time,
    parse_time,
)
from animus.domain.tile import WIDTH

FIRST_EPOCH = 1
MAX_SIZE = 2**53 - 1
PROMISE_SECONDS = 60  # so long after its change may an entry wait for a checkpoint; usually it is a second
INSTANCE_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._/-]{0,126}[a-z0-9])?")
HASH = re.compile(r"[0-9a-f]{64}")


class LogKeyStatus(StrEnum):
    """What became of a key."""

    ACTIVE = "active"
    RETIRED = "retired"
    REVOKED = "revoked"


@dataclass(frozen=True, slots=True)
class LogKey:
    """A public key that signs the logs of the instance."""

    SCHEMA: ClassVar[str] = "animus.log_key/v1"

    instance_name: str
    public_key: str  # base64 of 32 bytes

    def __post_init__(self) -> None:
        check_instance_name(self.instance_name, "instanceName")
        decode_public_key(self.public_key, "publicKey")


@dataclass(frozen=True, slots=True)
class LogKeyEnd:
    """The end of a key's use."""

    SCHEMA: ClassVar[str] = "animus.log_key_end/v1"

    public_key: str
    status: LogKeyStatus  # retired or revoked
    reason: str

    def __post_init__(self) -> None:
        decode_public_key(self.public_key, "publicKey")
        if self.status is LogKeyStatus.ACTIVE:
            raise invalid("status", "is active; a key ends retired or revoked")
        check_length(self.reason, 1, 2_000, "reason")


@dataclass(frozen=True, slots=True)
class LogEpoch:
    """A new epoch of a log: what it goes on from, and what had been signed before it."""

    SCHEMA: ClassVar[str] = "animus.log_epoch/v1"

    project_id: str
    epoch: int
    size: int
    root_hash: str
    signed_size: int  # -1 where the signer's state was lost
    signed_root_hash: str  # empty where it was lost
    reason: str

    def __post_init__(self) -> None:
        check_within(self.epoch, FIRST_EPOCH + 1, MAX_SIZE, "epoch")
        check_within(self.size, 0, MAX_SIZE, "size")
        check_hash(self.root_hash, "rootHash")
        check_within(self.signed_size, -1, MAX_SIZE, "signedSize")
        if (self.signed_size < 0) != (self.signed_root_hash == ""):
            raise invalid("signedRootHash", "is given exactly where signedSize is not -1")
        if self.signed_root_hash:
            check_hash(self.signed_root_hash, "signedRootHash")
        check_length(self.reason, 1, 2_000, "reason")


@dataclass(frozen=True, slots=True)
class Cosignature:
    """A witness's signature under a published checkpoint."""

    SCHEMA: ClassVar[str] = "animus.log_cosignature/v1"

    project_id: str
    epoch: int
    size: int
    vkey: str
    line: str  # of a signed note, without its newline


@dataclass(frozen=True, slots=True)
class LogForfeit:
    """An entry that was damaged before it had an index, and was given up."""

    SCHEMA: ClassVar[str] = "animus.log_forfeit/v1"

    entry_id: str
    leaf_hash: str  # as it was queued
    reason: str

    def __post_init__(self) -> None:
        check_pattern(RANDOM_ID, self.entry_id, "entryId", "is no id of 32 lower-case hexadecimal digits")
        check_hash(self.leaf_hash, "leafHash")
        check_length(self.reason, 1, 2_000, "reason")


@dataclass(frozen=True, slots=True)
class FullTile:
    """A tile that is complete, with the root of its tree: a hash of the level above."""

    level: int
    index: int
    hashes: bytes
    root: bytes


def check_instance_name(name: str, field: str) -> None:
    """1 to 128 characters of a URL without schema."""
    check_pattern(
        INSTANCE_NAME,
        name,
        field,
        "is no name such as animus.example: give 1 to 128 characters of a-z, 0-9 and '._/-', ends a letter or a digit",
    )


def check_hash(value: str, field: str) -> None:
    """64 lower-case hexadecimal digits."""
    check_pattern(HASH, value, field, "is no hash of 64 lower-case hexadecimal digits")


def decode_public_key(text: str, field: str) -> bytes:
    """The 32 bytes of a public key in base64. Raises Invalid for another spelling or length."""
    try:
        key = base64.b64decode(text.encode("ascii"), validate=True)
    except (UnicodeEncodeError, binascii.Error):
        key = b""
    if len(key) != 32 or base64.b64encode(key).decode() != text:
        raise invalid(field, "is no public key: give the base64 of 32 bytes")
    return key


def origin_of(instance_name: str, project_id: str, epoch: int) -> str:
    """The origin of a log."""
    return f"{instance_name}/{epoch}" if project_id == INSTANCE_LOG else f"{instance_name}/{project_id}/{epoch}"


def promised_by(time: str) -> str:
    """Until when an entry of this time has to be in a published checkpoint."""
    return format_time(parse_time(time) + timedelta(seconds=PROMISE_SECONDS))


def sealed_text(project_id: str, entry_id: str, leaf_hash: bytes) -> bytes:
    """What a queued entry's seal is a MAC of. None of the parts holds the separator."""
    return b"\x00".join((b"animus.audit_queue/v1", project_id.encode(), entry_id.encode(), leaf_hash.hex().encode()))


def instance_entry_id(project_id: str, epoch: int, size: int) -> str:
    """What a leaf of the instance's log is called: the checkpoint that it is."""
    return f"{project_id}/{epoch}/{size}"


def full_tiles(size: int, leaf_hashes: Sequence[bytes], edges: Sequence[Sequence[bytes]]) -> list[FullTile]:
    """The tiles that become full when a log of this size grows by these leaves.

    `edges` holds for each level, from 0, the hashes of its partial tile at this size; levels beyond have none.
    """
    tiles = []
    hashes = list(leaf_hashes)
    level = 0
    while hashes:
        edge = list(edges[level]) if level < len(edges) else []
        first = size // WIDTH
        assert len(edge) == size % WIDTH, "the edge is that of another size"
        hashes = edge + hashes
        roots = []
        for start in range(0, len(hashes) - len(hashes) % WIDTH, WIDTH):
            part = hashes[start : start + WIDTH]
            roots.append(merkle.root(merkle.append(merkle.EMPTY_RANGE, part)))
            tiles.append(FullTile(level, first + start // WIDTH, b"".join(part), roots[-1]))
        hashes = roots
        size = first
        level += 1
    return tiles


def damaged(problem: str, **place: str) -> Unavailable:
    """What a caller is told where what is stored is not what was logged."""
    return Unavailable("LOG_DAMAGED", f"the log is damaged: {problem}", problem=problem, **place)


def unsound() -> Unavailable:
    """What a caller is told while the log cannot be signed; why is for the operator, and may be another project's."""
    return Unavailable("LOG_UNSOUND", "no change is taken until an operator has seen to the log: its server names why")
