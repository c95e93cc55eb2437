"""What is proven about a log, by the specifications alone: RFC 6962 trees, C2SP signed notes and checkpoints, receipts.

Nothing of the program is imported. Proofs are checked as RFC 6962 §2.1 defines them: by splitting the tree in two.
"""

import base64
import binascii
import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

HASH_BYTES = 32
ED25519 = b"\x01"  # type of a key, in C2SP signed-note
SIGNATURE = re.compile(r"— ([^ +]+) ([A-Za-z0-9+/]+=*)")
NUMBER = re.compile("0|[1-9][0-9]*")


class Unproven(Exception):
    """Something does not prove what it should; the text says what."""


# Trees.


def leaf_hash(entry: bytes) -> bytes:
    """The hash of a leaf."""
    return sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of a node."""
    return sha256(b"\x01" + left + right).digest()


class Tree:
    """A tree that grows leaf by leaf, and its root."""

    def __init__(self) -> None:
        self.size = 0
        self._whole: list[bytes] = []  # roots of the perfect trees that it consists of, the largest first

    def add(self, leaf: bytes) -> None:
        """Appends a leaf by its hash."""
        at = self.size
        while at % 2:  # each final one bit of the size is a perfect tree that the new one joins
            leaf = node_hash(self._whole.pop(), leaf)
            at //= 2
        self._whole.append(leaf)
        self.size += 1

    def root(self) -> bytes:
        """The root over all leaves so far."""
        if not self._whole:
            return sha256(b"").digest()
        found = self._whole[-1]
        for left in reversed(self._whole[:-1]):
            found = node_hash(left, found)
        return found


def split(size: int) -> int:
    """The largest power of two below a size: where RFC 6962 splits a tree."""
    return 1 << (size - 1).bit_length() - 1


def included_root(index: int, size: int, leaf: bytes, proof: Sequence[bytes]) -> bytes:
    """The root of the tree of which a proof says that it holds a leaf at an index. Raises Unproven."""
    if not 0 <= index < size:
        raise Unproven(f"an index of {index} in a tree of {size}")
    if any(len(each) != HASH_BYTES for each in (leaf, *proof)):
        raise Unproven("a proof of inclusion holds what is no hash")
    if size == 1:
        if proof:
            raise Unproven("a proof of inclusion is longer than its tree is high")
        return leaf
    if not proof:
        raise Unproven("a proof of inclusion is shorter than its tree is high")
    left = split(size)
    if index < left:
        return node_hash(included_root(index, left, leaf, proof[:-1]), proof[-1])
    return node_hash(proof[-1], included_root(index - left, size - left, leaf, proof[:-1]))


def check_consistency(first: "Head", second: "Head", proof: Sequence[bytes]) -> None:
    """Raises Unproven unless the proof shows that the second tree starts with the first."""
    if not 0 < first.size <= second.size:
        raise Unproven(f"a proof of consistency from {first.size} to {second.size}")
    if any(len(each) != HASH_BYTES for each in proof):
        raise Unproven("a proof of consistency holds what is no hash")
    if _consistent_roots(first.size, second.size, first.root, list(proof), whole=True) != (first.root, second.root):
        raise Unproven(f"the tree of {second.size} does not start with that of {first.size}")


def _consistent_roots(
    first: int, second: int, first_root: bytes, proof: list[bytes], *, whole: bool
) -> tuple[bytes, bytes]:
    """Both roots, as the proof has them. `whole`: the part is where the first tree begins, and its root is known."""
    if first == second:
        if len(proof) != (0 if whole else 1):
            raise Unproven("a proof of consistency has another length than its trees ask for")
        found = first_root if whole else proof[0]
        return found, found
    if not proof:
        raise Unproven("a proof of consistency is too short")
    left, last = split(second), proof[-1]
    if first <= left:
        before, after = _consistent_roots(first, left, first_root, proof[:-1], whole=whole)
        return before, node_hash(after, last)
    before, after = _consistent_roots(first - left, second - left, first_root, proof[:-1], whole=False)
    return node_hash(last, before), node_hash(last, after)


# Notes.


@dataclass(frozen=True, slots=True)
class LogKey:
    """The key of a log under its origin."""

    origin: str
    private: Ed25519PrivateKey  # so that a fork can be planted that only a proof can find

    @property
    def key_id(self) -> bytes:
        """How signature lines name the key."""
        return sha256(self.origin.encode() + b"\n" + ED25519 + self.public.public_bytes_raw()).digest()[:4]

    @property
    def public(self) -> Ed25519PublicKey:
        """What signatures are checked with."""
        return self.private.public_key()

    def sign(self, text: str) -> bytes:
        """A note."""
        signature = base64.b64encode(self.key_id + self.private.sign(text.encode())).decode()
        return f"{text}\n— {self.origin} {signature}\n".encode()


def load_key(text: str, project_id: str) -> LogKey:
    """The current key of `log.key`, for the first epoch of a project's log, or of the instance's where it is empty."""
    words = text.split("\n", 1)[0].split("+", 4)
    if words[:2] != ["PRIVATE", "KEY"]:
        raise Unproven("log.key starts with no private key")
    data = base64.b64decode(words[4], validate=True)
    if data[:1] != ED25519 or len(data) != 33:
        raise Unproven("log.key holds no Ed25519 seed")
    parts = [words[2], *([project_id] if project_id else []), "1"]
    return LogKey("/".join(parts), Ed25519PrivateKey.from_private_bytes(data[1:]))


def open_note(note: bytes, key: LogKey) -> list[str]:
    """The lines of a note that the key has signed. Raises Unproven."""
    try:
        body, blank, lines = note.decode().rpartition("\n\n")
    except UnicodeDecodeError:
        raise Unproven("a note is no UTF-8") from None
    if not blank or not lines.endswith("\n"):
        raise Unproven("a note has no signatures")
    text, signed = body + "\n", False
    for line in lines.removesuffix("\n").split("\n"):
        match = SIGNATURE.fullmatch(line)
        if match is None:
            raise Unproven(f"a note has the signature line {line!r}")
        data = _bytes_of(match[2])
        if (match[1], data[:4]) == (key.origin, key.key_id):
            try:
                key.public.verify(data[4:], text.encode())
            except InvalidSignature:
                raise Unproven(f"a note has a false signature of {key.origin}") from None
            signed = True
    if not signed:
        raise Unproven(f"a note is not signed by {key.origin}")
    return body.split("\n")


@dataclass(frozen=True, slots=True)
class Head:
    """What a checkpoint says."""

    size: int
    root: bytes


def open_checkpoint(note: bytes, key: LogKey) -> Head:
    """The head that a log has signed (C2SP tlog-checkpoint). Raises Unproven."""
    lines = open_note(note, key)
    if len(lines) != 3 or lines[0] != key.origin or not NUMBER.fullmatch(lines[1]):
        raise Unproven(f"no checkpoint of {key.origin}: {lines[:2]}")
    root = _bytes_of(lines[2])
    if len(root) != HASH_BYTES:
        raise Unproven(f"a checkpoint of {key.origin} has a root of {len(root)} bytes")
    return Head(int(lines[1]), root)


@dataclass(frozen=True, slots=True)
class Promise:
    """What a receipt says."""

    leaf: bytes
    entry_id: str


def open_receipt(note: bytes, key: LogKey) -> Promise:
    """The promise that a log has signed. Raises Unproven."""
    lines = open_note(note, key)
    if len(lines) != 5 or lines[:2] != ["animus/receipt/v1", key.origin]:
        raise Unproven(f"no receipt of {key.origin}: {lines[:2]}")
    return Promise(_bytes_of(lines[2]), lines[3])


def _bytes_of(text: str) -> bytes:
    """The bytes of base64 in its one spelling."""
    try:
        data = base64.b64decode(text, validate=True)
    except binascii.Error:
        raise Unproven(f"{text!r} is no base64") from None
    if base64.b64encode(data).decode() != text:
        raise Unproven(f"{text!r} is base64 of another spelling")
    return data
