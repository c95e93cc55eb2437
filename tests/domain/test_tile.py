"""Tiles: every proof from them is that from nodes, paths have one spelling, a bundle is read whole or not at all."""

import base64
import itertools
import random
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from animus.domain import merkle, tile
from animus.domain.checkpoint import load_checkpoint
from animus.domain.errors import Invalid
from animus.domain.merkle import EMPTY_RANGE, Node
from animus.domain.note import load_note
from animus.domain.tile import MAX_ENTRY_BYTES, MAX_INDEX, WIDTH, Bundle, Tile
from domain import trees
from domain.trees import LEAVES, NODES, WORLD, flips
from domain.values import LAW, refusal


def levels_of(leaves: list[bytes]) -> list[list[bytes]]:
    """The perfect nodes of a tree by level."""
    levels = [leaves]
    while len(levels[-1]) > 1:
        row = levels[-1]
        levels.append([merkle.node_hash(row[at], row[at + 1]) for at in range(0, len(row) - 1, 2)])
    return levels


LARGE = 66_000  # leaves: three levels of tiles
LEVELS = levels_of([merkle.leaf_hash(number.to_bytes(4, "big")) for number in range(LARGE)])


def data_of(each: Tile) -> bytes:
    """The bytes of a tile of the large tree, as tlog-tiles defines it."""
    start = each.index * WIDTH
    return b"".join(LEVELS[8 * each.level][start : start + each.width])


def nodes_of(wanted: tuple[Node, ...]) -> dict[Node, bytes]:
    """Nodes of the large tree."""
    return {(level, index): LEVELS[level][index] for level, index in wanted}


def through_tiles(wanted: tuple[Node, ...], size: int) -> dict[Node, bytes]:
    """The same from the tiles that are asked for, and no others."""
    return tile.nodes_in({each: data_of(each) for each in tile.tiles_of(wanted, size)}, wanted)


EDGES = [255, 256, 257, 300, 511, 512, 513, 1_000, 65_535, 65_536, 65_537, 65_791, 65_792, 65_793, LARGE]


def claims() -> Iterator[tuple[int, int]]:
    """Every index and size of small trees, and some of those around the edges of tiles."""
    yield from ((index, size) for size in range(1, 45) for index in range(size))
    rng = random.Random(1)
    for size in EDGES:
        near = {0, 1, size - 1, size // 2, *(edge + by for edge in EDGES for by in (-1, 0, 1) if edge + by < size)}
        yield from ((index, size) for index in sorted(near | set(rng.sample(range(size), 5))))


def test_proofs_through_tiles_are_those_from_nodes() -> None:
    """Each proof of inclusion, each of consistency, and each range is the same from tiles alone as from nodes."""
    for index, size in claims():
        wanted = merkle.inclusion_nodes(index, size)
        found = through_tiles(wanted, size)
        assert found == nodes_of(wanted)
        proof = merkle.prove_inclusion(index, size, found)
        wanted = merkle.range_nodes(size)
        root = merkle.root(merkle.CompactRange(size, tuple(through_tiles(wanted, size).values())))
        merkle.check_inclusion(proof, index, size, LEVELS[0][index], root)
        wanted = merkle.consistency_nodes(index + 1, size)
        assert through_tiles(wanted, size) == nodes_of(wanted)


def test_tiles_of_a_proof_are_tiles_of_the_tree() -> None:
    """The tiles that a proof asks for exist at its size with that width, each once, in order."""
    for size, group in itertools.groupby(claims(), lambda claim: claim[1]):
        whole = set(tile.tree_tiles(size))
        for index, _ in group:
            asked = tile.tiles_of(merkle.inclusion_nodes(index, size), size)
            assert whole.issuperset(asked)
            assert list(asked) == sorted(set(asked), key=lambda each: (each.level, each.index))


@pytest.mark.parametrize("size", range(1, 7))
def test_every_node_of_a_small_tree_is_in_its_tiles(size: int) -> None:
    """All perfect nodes of a tree come out of its one tile."""
    data = {Tile(0, 0, size): b"".join(LEAVES[:size])}
    wanted = [node for node in NODES if (node[1] + 1) << node[0] <= size]
    assert tile.nodes_in(data, wanted) == {node: NODES[node] for node in wanted}


def test_a_wider_tile_serves_as_well() -> None:
    """A proof in a smaller tree may be made from the tiles of a larger one, whichever are at hand."""
    for size, more in ((3, 40), (257, 300), (300, LARGE)):
        wanted = merkle.inclusion_nodes(size - 1, size)
        tiles = {each: data_of(each) for each in (*tile.tiles_of(wanted, size), *tile.tiles_of(wanted, more))}
        assert tile.nodes_in(tiles, wanted) == nodes_of(wanted)
        wide = {each: data_of(each) for each in tile.tiles_of(wanted, more)}
        assert tile.nodes_in(wide, wanted) == nodes_of(wanted)


def test_a_damaged_tile_makes_no_proof() -> None:
    """One bit changed in any tile that a proof of 65,793 leaves is made from gives a proof that is refused."""
    size = 65_793
    root = merkle.root(merkle.append(EMPTY_RANGE, LEVELS[0][:size]))
    for index in (0, 65_535, 65_792):
        wanted = merkle.inclusion_nodes(index, size)
        tiles = {each: data_of(each) for each in tile.tiles_of(wanted, size)}
        used = 0
        for each, data in tiles.items():
            for at in range(0, len(data), 32):
                damaged = tiles | {each: data[:at] + flips(data[at : at + 1])[0] + data[at + 1 :]}
                found = tile.nodes_in(damaged, wanted)
                if found == nodes_of(wanted):  # that hash is of the other side
                    continue
                used += 1
                proof = merkle.prove_inclusion(index, size, found)
                found_wrong = refusal(merkle.check_inclusion, proof, index, size, LEVELS[0][index], root)
                assert found_wrong.field == "proof"
        assert used >= len(tiles)


def test_missing_hashes_are_refused() -> None:
    """Without a tile, with one too narrow, and with one of another length than its width, no node is computed."""
    wanted = merkle.inclusion_nodes(299, 300)
    tiles = {each: data_of(each) for each in tile.tiles_of(wanted, 300)}
    for each in tiles:
        without = {other: data for other, data in tiles.items() if other != each}
        assert refusal(tile.nodes_in, without, wanted).field == "tiles"
    assert refusal(tile.nodes_in, {Tile(0, 0, 3): b"".join(LEAVES[:3])}, [(0, 3)]).field == "tiles"
    assert refusal(tile.nodes_in, {Tile(0, 0, 3): b"".join(LEAVES[:3])}, [(2, 0)]).field == "tiles"
    for data in (b"", bytes(95), bytes(97), bytes(64), bytes(128)):
        assert refusal(tile.nodes_in, {Tile(0, 0, 3): data}, [(0, 0)]).field == "data"


def test_nodes_beyond_the_tree_are_a_defect() -> None:
    """Asking for the tiles of a node that the tree has not is no input of a caller."""
    with pytest.raises(AssertionError):
        tile.tiles_of([(0, 5)], 5)
    with pytest.raises(AssertionError):
        tile.tiles_of([(3, 0)], 7)


# The tiles of a tree.


def shape(size: int) -> tuple[dict[str, int], dict[str, int]]:
    """How many full tiles there are in each level, and how wide the partial one is."""
    full: dict[str, int] = {}
    partial: dict[str, int] = {}
    for each in tile.tree_tiles(size):
        if each.width == WIDTH:
            full[str(each.level)] = full.get(str(each.level), 0) + 1
        else:
            assert str(each.level) not in partial
            partial[str(each.level)] = each.width
    return full, partial


def test_a_tree_has_the_tiles_that_the_standard_says() -> None:
    """For sizes around the edges: all hashes of each level, in order, and partial tiles of floor(s / 256^l) mod 256."""
    for size in [*range(600), *EDGES]:
        tiles = list(tile.tree_tiles(size))
        for level in range(4):
            row = size // 256**level
            mine = [each for each in tiles if each.level == level]
            assert [each.index for each in mine] == list(range(-(-row // WIDTH)))
            assert sum(each.width for each in mine) == row
            assert [each.width for each in mine if each.width < WIDTH] == ([row % WIDTH] if row % WIDTH else [])
        bundles = [(each.index, each.width) for each in tile.tree_bundles(size)]
        assert bundles == [(each.index, each.width) for each in tiles if each.level == 0]
    assert refusal(lambda: list(tile.tree_tiles(-1))).field == "size"
    assert refusal(lambda: list(tile.tree_tiles(2**63))).field == "size"


# Paths.

places = st.integers(0, MAX_INDEX) | st.integers(0, 1_100_000)
widths = st.integers(1, WIDTH)
tiles = st.builds(Tile, st.integers(0, 63), places, widths)
bundles = st.builds(Bundle, places, widths)


def path_of(each: Tile | Bundle) -> str:
    """The path of either."""
    return tile.tile_path(each) if isinstance(each, Tile) else tile.bundle_path(each.index, each.width)


def parsed(path: str) -> Tile | Bundle | None:
    """What a path names, or nothing where it is refused."""
    try:
        return tile.parse_path(path)
    except Invalid as error:
        assert error.reason == "TILE_INVALID"
        return None


@LAW
@given(tiles | bundles)
def test_a_path_is_read_back(each: Tile | Bundle) -> None:
    """`parse_path` is the inverse of both ways to write a path."""
    assert tile.parse_path(path_of(each)) == each


@LAW
@given(tiles | bundles, st.data())
def test_a_path_has_one_spelling(each: Tile | Bundle, data: st.DataObject) -> None:
    """A path with some characters changed, more or less is refused, or is the path of what it names."""
    path = path_of(each)
    for _ in range(20):
        at = data.draw(st.integers(0, len(path)))
        end = data.draw(st.integers(at, min(len(path), at + 3)))
        put = data.draw(st.text("0123456789x/.p-+ entris\n٠", max_size=4))
        other = path[:at] + put + path[end:]
        found = parsed(other)
        assert found is None or path_of(found) == other


NOT_PATHS = [
    "", "tile", "tile/", "tile/0", "tile/0/", "tile/0/0", "tile/0/00", "tile/0/0000", "/tile/0/000", "tile/0/000/",
    "tile//000", "tile/00/000", "tile/01/000", "tile/64/000", "tile/99/000", "tile/-1/000", "tile/+1/000", "tile/a/000",
    "tile/entries", "tile/entries/", "tile/Entries/000", "TILE/0/000", "tiles/0/000", "tile/8/data/000",
    "tile/0/x000/000", "tile/0/x000/x001/067", "tile/0/001/067", "tile/0/x001", "tile/0/x001/x067", "tile/0/x1/067",
    "tile/0/X001/067", "tile/0/x001//067", "tile/0/000.p", "tile/0/000.p/", "tile/0/000.p/0", "tile/0/000.p/256",
    "tile/0/000.p/00", "tile/0/000.p/01", "tile/0/000.p/1000", "tile/0/000.p/-1", "tile/0/000.p/1/", "tile/0/000.P/1",
    "tile/0/000/p/1", "tile/0/000p/1", "tile/0/000.p/1.p/1", "tile/0/000 ", " tile/0/000", "tile/0/000\n",
    "tile/0/٠٠٠", "tile/٠/000", "tile/0/000.p/١", "tile/0/../000", "tile/0/%30%30%30", "tile/0/000?x", "checkpoint",
    "tile/0/x036/x028/x797/x018/x963/968", "tile/0/x999/x999/x999/x999/x999/999", "tile/0/" + "x001/" * 100 + "067",
]  # fmt: skip


@pytest.mark.parametrize("path", NOT_PATHS)
def test_what_only_looks_like_a_path_is_refused(path: str) -> None:
    """Other spellings, widths that no partial tile has, and indexes that no log reaches."""
    assert parsed(path) is None


def test_the_largest_and_the_smallest_have_paths() -> None:
    """The bounds themselves are allowed, one more is not."""
    assert tile.parse_path("tile/63/x036/x028/x797/x018/x963/967.p/255") == Tile(63, MAX_INDEX, 255)
    assert tile.parse_path("tile/0/000.p/1") == Tile(0, 0, 1)
    assert tile.parse_path("tile/entries/999") == Bundle(999, WIDTH)
    assert tile.tile_path(Tile(5, 1_000, WIDTH)) == "tile/5/x001/000"
    assert tile.bundle_path(1_000_000, 7) == "tile/entries/x001/x000/000.p/7"
    for level, index, width, field in [
        (-1, 0, 1, "level"), (64, 0, 1, "level"), (0, -1, 1, "index"), (0, MAX_INDEX + 1, 1, "index"),
        (0, 0, 0, "width"), (0, 0, WIDTH + 1, "width"),
    ]:  # fmt: skip
        assert refusal(Tile, level, index, width).field == field
        if field != "level":
            assert refusal(Bundle, index, width).field == field
            assert refusal(tile.bundle_path, index, width).field == field


# Contents.


@LAW
@given(st.lists(st.binary(max_size=40), min_size=1, max_size=WIDTH))
def test_a_bundle_is_read_back(entries: list[bytes]) -> None:
    """`load_bundle` is the inverse of `dump_bundle`, for the right width alone."""
    data = tile.dump_bundle(entries)
    assert tile.load_bundle(data, len(entries)) == tuple(entries)
    for width in {1, len(entries) - 1, len(entries) + 1, WIDTH} - {0, len(entries), WIDTH + 1}:
        assert refusal(tile.load_bundle, data, width).field == "data"


def test_a_cut_bundle_is_refused() -> None:
    """Every proper beginning of a bundle is refused, and so is a byte after it."""
    data = tile.dump_bundle([b"", b"a", b"", b"bcd" * 90, b""])
    for end in range(len(data)):
        assert refusal(tile.load_bundle, data[:end], 5).field == "data"
    assert refusal(tile.load_bundle, data + b"\x00", 5).description == "has 1 bytes after its 5 entries"


@LAW
@given(st.binary(max_size=60), st.integers(1, 5))
def test_a_bundle_has_one_spelling(data: bytes, width: int) -> None:
    """Bytes are refused, or are what would be written for the entries that they hold."""
    try:
        entries = tile.load_bundle(data, width)
    except Invalid as error:
        assert error.reason == "TILE_INVALID"
    else:
        assert tile.dump_bundle(entries) == data


def test_bundles_are_bounded() -> None:
    """An entry of 65,535 bytes fits and one of 65,536 does not; a bundle is never larger than its entries can be."""
    largest = bytes(MAX_ENTRY_BYTES)
    data = tile.dump_bundle([largest])
    assert tile.load_bundle(data, 1) == (largest,)
    assert refusal(tile.dump_bundle, [b"", largest + b"\x00"]).field == "entries[1]"
    assert refusal(tile.load_bundle, data + b"\x00", 1).description == "is 65538 bytes long, more than 1 entries can be"
    assert refusal(tile.dump_bundle, []).field == "width"
    assert refusal(tile.dump_bundle, [b""] * (WIDTH + 1)).field == "width"
    assert refusal(tile.load_bundle, b"", 0).field == "width"
    assert refusal(tile.load_bundle, b"", WIDTH + 1).field == "width"


def test_a_tile_is_read_back() -> None:
    """`load_tile` is the inverse of `dump_tile`; other lengths and widths are refused."""
    for width in range(1, WORLD):
        data = tile.dump_tile(LEAVES[:width])
        assert tile.load_tile(data, width) == tuple(LEAVES[:width])
        assert refusal(tile.load_tile, data, width + 1).field == "data"
        assert refusal(tile.load_tile, data[:-1], width).field == "data"
    assert refusal(tile.dump_tile, []).field == "width"
    assert refusal(tile.dump_tile, [LEAVES[0]] * 257).field == "width"
    assert refusal(tile.dump_tile, [LEAVES[0], b"short"]).field == "hashes[1]"
    assert refusal(tile.load_tile, b"", 0).field == "width"


# The published log of tessera, and the examples of tlog-tiles.

LOG = trees.read("transparency-dev-tessera/log.json")


def test_no_part_of_the_published_log_is_missing() -> None:
    """Checkpoints of sizes 0 to 15, and for each from 1 a tile and a bundle."""
    assert list(LOG["checkpoints"]) == [str(size) for size in range(16)]
    assert list(LOG["tile_level0_partial_base64"]) == [str(size) for size in range(1, 16)]
    assert list(LOG["entry_bundle_partial_base64"]) == [str(size) for size in range(1, 16)]


def published_root(size: int) -> bytes:
    """The root that the published checkpoint of a size states."""
    checkpoint = load_checkpoint(load_note(LOG["checkpoints"][str(size)].encode()).text)
    assert (checkpoint.origin, checkpoint.size) == (LOG["origin"], size)
    return checkpoint.root_hash


@pytest.mark.parametrize("size", range(16))
def test_a_published_root_is_that_of_its_entries(size: int) -> None:
    """The bundle's entries hash to the tile's leaves, those to the checkpoint's root, and every proof holds."""
    leaves: tuple[bytes, ...] = ()
    if size:
        data, hashes = trees.unbase64(
            [LOG["entry_bundle_partial_base64"][str(size)], LOG["tile_level0_partial_base64"][str(size)]]
        )
        entries = tile.load_bundle(data, size)
        assert tile.dump_bundle(entries) == data
        leaves = tile.load_tile(hashes, size)
        assert leaves == tuple(map(merkle.leaf_hash, entries))
    root = published_root(size)
    assert merkle.root(merkle.append(EMPTY_RANGE, leaves)) == root
    held = {each: b"".join(leaves) for each in tile.tree_tiles(size)}
    for index in range(size):
        proof = merkle.prove_inclusion(index, size, tile.nodes_in(held, merkle.inclusion_nodes(index, size)))
        merkle.check_inclusion(proof, index, size, leaves[index], root)
    for first in range(1, size + 1):
        proof = merkle.prove_consistency(first, size, tile.nodes_in(held, merkle.consistency_nodes(first, size)))
        merkle.check_consistency(proof, first, size, published_root(first), root)


@pytest.mark.parametrize("example", trees.examples("tlog-tiles.md"))
def test_the_examples_of_tlog_tiles_hold(example: dict[str, Any]) -> None:
    """The tiles of trees of 70,000 and of 256 leaves, and the path of the index 1234067."""
    if "path" in example:
        assert tile.tile_path(Tile(0, example["index"], WIDTH)) == f"tile/0/{example['path']}"
        assert tile.parse_path(f"tile/entries/{example['path']}") == Bundle(example["index"], WIDTH)
    else:
        assert shape(example["tree_size"]) == (example["full_tiles"], example["partial_width"])


def test_a_bundle_that_names_another_length_is_not_the_published_one() -> None:
    """Each length in the published bundle of 15 entries, changed by one, is refused or gives other entries."""
    data = base64.b64decode(LOG["entry_bundle_partial_base64"]["15"])
    entries = tile.load_bundle(data, 15)
    at = 0
    for entry in entries:
        for by in (-1, 1):
            length = (len(entry) + by) % 65_536
            other = data[:at] + length.to_bytes(2, "big") + data[at + 2 :]
            try:
                assert tile.load_bundle(other, 15) != entries
            except Invalid as error:
                assert error.reason == "TILE_INVALID"
        at += 2 + len(entry)
