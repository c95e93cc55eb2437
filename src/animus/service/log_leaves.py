"""Leaves as they are read: never handed out unless they are what was logged."""

from animus.domain import merkle
from animus.domain.errors import Unavailable
from animus.domain.log import damaged
from animus.store.log import StoredLeaf


def missing(index: int) -> Unavailable:
    """What a caller is told of an index without a leaf."""
    return damaged(f"the leaf {index} is missing", index=str(index))


def check_place(leaf: StoredLeaf, index: int) -> None:
    """Refuses a leaf that is not the next."""
    if leaf.index != index:
        raise missing(index)


def data_of(leaf: StoredLeaf, index: int) -> bytes:
    """The bytes of a leaf, hashed again."""
    place = {"index": str(index), "entry": leaf.entry_id}
    if leaf.data is None:
        raise damaged(f"the bytes of entry {leaf.entry_id} at index {index} are gone", **place)
    if merkle.leaf_hash(leaf.data) != leaf.leaf_hash:
        raise damaged(f"the bytes of entry {leaf.entry_id} at index {index} are not those that were logged", **place)
    return leaf.data
