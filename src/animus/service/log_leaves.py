"""Leaves and tiles as they are read: never handed out unless they are what was logged, and whole."""

from collections.abc import Iterable

from animus.domain import merkle, tile
from animus.domain.errors import Unavailable
from animus.domain.log import damaged
from animus.domain.merkle import Node
from animus.domain.tile import Tile
from animus.store.log import StoredLeaf
from animus.store.unit_of_work import View


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


def check_whole(wanted: Tile, hashes: bytes) -> None:
    """Refuses a tile that lacks hashes."""
    if len(hashes) != wanted.width * merkle.HASH_BYTES:
        path = tile.tile_path(wanted)
        raise damaged(f"the tile {path} is missing, or lacks hashes", tile=path)


async def nodes_of(view: View, nodes: Iterable[Node], size: int) -> dict[Node, bytes]:
    """The hashes of these nodes of the tree of a size, from its tiles; one statement."""
    wanted = tuple(dict.fromkeys(nodes))
    tiles = await view.log.tiles(tile.tiles_of(wanted, size))
    for each, hashes in tiles.items():
        check_whole(each, hashes)
    return tile.nodes_in(tiles, wanted)
