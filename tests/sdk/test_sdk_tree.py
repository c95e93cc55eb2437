"""The tiles that are computed in one pass, against RFC 6962 and the tiles as the domain names them."""

import hashlib

from hypothesis import given, settings
from hypothesis import strategies as st

from animus.domain import merkle
from animus.domain.tile import Tile, tree_tiles
from animus.sdk.tree import TileTree, root_of_edges

HASHES = [hashlib.sha256(b"%d" % index).digest() for index in range(70_000)]


def grown(size: int) -> tuple[TileTree, dict[Tile, bytes]]:
    """The tree of a size, and the tiles that came of it."""
    tree = TileTree()
    tiles: dict[Tile, bytes] = {}
    for first in range(0, size, 256):
        tiles.update(tree.add(HASHES[first : min(first + 256, size)]))
    tiles.update(tree.partial())
    return tree, tiles


def root(size: int) -> bytes:
    """The root of the tree of a size."""
    return merkle.root(merkle.append(merkle.EMPTY_RANGE, HASHES[:size]))


def hash_of(level: int, index: int) -> bytes:
    """The hash in a tile: of 256^level leaves."""
    width = 256**level
    return merkle.root(merkle.append(merkle.EMPTY_RANGE, HASHES[index * width : (index + 1) * width]))


@given(st.one_of(st.integers(0, 2_000), st.sampled_from([65_535, 65_536, 65_537, 65_792])))
@settings(max_examples=40, deadline=None)
def test_the_tiles_of_a_tree_are_all_there_and_lead_to_its_root(size: int) -> None:
    """Each tile that a tree of this size has, and no other; and the same root by leaves and by edges."""
    tree, tiles = grown(size)
    assert set(tiles) == set(tree_tiles(size))
    assert tree.root() == root(size) == root_of_edges(tree.edges)
    for tile, data in tiles.items():
        assert len(data) == 32 * tile.width
        last = tile.index * 256 + tile.width - 1
        assert data[-32:] == hash_of(tile.level, last)


@given(st.integers(0, 3), st.integers(0, 256))
@settings(max_examples=40, deadline=None)
def test_a_root_in_the_middle_of_a_tile_is_that_of_its_size(tiles: int, more: int) -> None:
    """Before the leaves of a tile are added, each size up to its end has its root."""
    tree, _ = grown(256 * tiles)
    assert tree.root(HASHES[256 * tiles : 256 * tiles + more]) == root(256 * tiles + more)
