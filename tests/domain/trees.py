"""RFC 6962 §2.1 as it is written, by recursion and without a limit: what the tree of the program is compared with.

The published vectors of trees are read here too.
"""

import base64
import json
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from animus.domain.merkle import Node

VECTORS = Path(__file__).parents[1] / "vectors"


def read(name: str) -> Any:
    """A JSON file of the vectors."""
    return json.loads((VECTORS / name).read_text())


def unbase64(texts: Sequence[str] | None) -> tuple[bytes, ...]:
    """The bytes of a list of base64; `null` is an empty list there."""
    return tuple(base64.b64decode(text) for text in texts or ())


def leaf(entry: bytes) -> bytes:
    """MTH({entry})."""
    return sha256(b"\x00" + entry).digest()


def half(count: int) -> int:
    """k, the largest power of two smaller than count."""
    k = 1
    while k * 2 < count:
        k *= 2
    return k


def mth(leaves: Sequence[bytes]) -> bytes:
    """MTH(D[n]), of the leaves' hashes."""
    if not leaves:
        return sha256().digest()
    if len(leaves) == 1:
        return leaves[0]
    k = half(len(leaves))
    return sha256(b"\x01" + mth(leaves[:k]) + mth(leaves[k:])).digest()


def path(index: int, leaves: Sequence[bytes]) -> tuple[bytes, ...]:
    """PATH(m, D[n])."""
    if len(leaves) == 1:
        return ()
    k = half(len(leaves))
    if index < k:
        return (*path(index, leaves[:k]), mth(leaves[k:]))
    return (*path(index - k, leaves[k:]), mth(leaves[:k]))


def proof(first: int, leaves: Sequence[bytes]) -> tuple[bytes, ...]:
    """PROOF(m, D[n])."""
    return subproof(first, leaves, known=True)


def subproof(first: int, leaves: Sequence[bytes], *, known: bool) -> tuple[bytes, ...]:
    """SUBPROOF(m, D[n], b)."""
    if first == len(leaves):
        return () if known else (mth(leaves),)
    k = half(len(leaves))
    if first <= k:
        return (*subproof(first, leaves[:k], known=known), mth(leaves[k:]))
    return (*subproof(first - k, leaves[k:], known=False), mth(leaves[:k]))


def nodes(leaves: Sequence[bytes]) -> dict[Node, bytes]:
    """Every perfect node of a tree."""
    found = {}
    level = 0
    while 1 << level <= len(leaves):
        for index in range(len(leaves) >> level):
            found[level, index] = mth(leaves[index << level : (index + 1) << level])
        level += 1
    return found


WORLD = 50  # leaves: beyond three tiers of subtrees, and enough for every shape of the right edge
LEAVES = [leaf(f"entry {number}".encode()) for number in range(WORLD)]
ROOTS = [mth(LEAVES[:size]) for size in range(WORLD + 1)]
NODES = nodes(LEAVES)


def flips(data: bytes) -> list[bytes]:
    """The data with one bit changed, for each bit."""
    return [bytes([*data[:at], data[at] ^ 1 << bit, *data[at + 1 :]]) for at in range(len(data)) for bit in range(8)]


def examples(spec: str) -> list[Any]:
    """The published examples of one C2SP specification, by their names."""
    found = [each for each in read("c2sp-specs/examples.json") if each["spec"] == spec]
    return [pytest.param(each, id=each["name"]) for each in found]
