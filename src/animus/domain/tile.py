"""Tiles: a log's tree and entries cut into files that never change (C2SP tlog-tiles).

- The hash in a row of level L of the tiles is the perfect node of level 8 * L; 256 of them are a full tile. The levels
  between are computed. The last tile of a level may be partial; it is as wide as the tree of its size makes it.
- A bundle holds the entries under a tile of level 0: for each two bytes of length, big-endian, and the entry.
- A path has one spelling: `tile/<level>/<index>` and `tile/entries/<index>`, with `.p/<width>` where it is partial.

All bad input raises Invalid with the reason TILE_INVALID.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from animus.domain import merkle
from animus.domain.errors import Invalid, Violation
from animus.domain.merkle import HASH_BYTES, MAX_SIZE, Node

HEIGHT = 8  # levels of the tree in a tile
WIDTH = 1 << HEIGHT
MAX_LEVEL = 63
MAX_INDEX = MAX_SIZE >> HEIGHT  # no log has more tiles in a level
MAX_ENTRY_BYTES = 65_535

MAX_PATH_CHARACTERS = 60
PATH = re.compile(
    r"tile/(?P<level>entries|[0-9]|[1-5][0-9]|6[0-3])"
    r"/(?P<index>(?:x(?!000)[0-9]{3}/(?:x[0-9]{3}/)*)?[0-9]{3})"
    r"(?:\.p/(?P<width>[1-9][0-9]?|1[0-9]{2}|2[0-4][0-9]|25[0-5]))?"
)


def tile_invalid(field: str, description: str) -> Invalid:
    """An Invalid for what concerns a tile or a bundle."""
    return Invalid([Violation(field, description)], "TILE_INVALID")


def check_place(index: int, width: int) -> None:
    """Refuses an index or a width that no tile has."""
    if not 0 <= index <= MAX_INDEX:
        raise tile_invalid("index", f"is {index}; 0 to 2^55-1 is allowed")
    if not 1 <= width <= WIDTH:
        raise tile_invalid("width", f"is {width}; 1 to {WIDTH} is allowed")


@dataclass(frozen=True, slots=True)
class Tile:
    """Which hashes a file holds."""

    level: int  # 0 to 63
    index: int  # in the level, from 0
    width: int  # hashes, 1 to 256

    def __post_init__(self) -> None:
        if not 0 <= self.level <= MAX_LEVEL:
            raise tile_invalid("level", f"is {self.level}; 0 to {MAX_LEVEL} is allowed")
        check_place(self.index, self.width)


@dataclass(frozen=True, slots=True)
class Bundle:
    """Which entries a file holds."""

    index: int  # that of the tile of level 0 above them
    width: int  # entries, 1 to 256

    def __post_init__(self) -> None:
        check_place(self.index, self.width)


def tile_path(tile: Tile) -> str:
    """The path of a tile below the prefix of its log."""
    return f"tile/{tile.level}/{place_path(tile.index, tile.width)}"


def bundle_path(index: int, width: int) -> str:
    """The path of a bundle below the prefix of its log."""
    check_place(index, width)
    return f"tile/entries/{place_path(index, width)}"


def place_path(index: int, width: int) -> str:
    """`x001/x234/067` for the index 1234067, and the width of what is partial."""
    path = f"{index % 1000:03}"
    while index := index // 1000:
        path = f"x{index % 1000:03}/{path}"
    return path if width == WIDTH else f"{path}.p/{width}"


def parse_path(path: str) -> Tile | Bundle:
    """What a path below the prefix of a log names."""
    match = PATH.fullmatch(path) if len(path) <= MAX_PATH_CHARACTERS else None
    if not match:
        raise tile_invalid("path", "is no path of a tile such as tile/0/x001/067 or tile/entries/x001/067.p/12")
    index = int(match["index"].replace("/", "").replace("x", ""))
    width = int(match["width"] or WIDTH)
    return Bundle(index, width) if match["level"] == "entries" else Tile(int(match["level"]), index, width)


def tree_tiles(size: int) -> Iterator[Tile]:
    """All tiles of a tree, by level and index: each as wide as this size makes it."""
    if not 0 <= size <= MAX_SIZE:
        raise tile_invalid("size", f"is {size}; 0 to 2^63-1 is allowed")
    level = 0
    while size:
        yield from (Tile(level, index, WIDTH) for index in range(size // WIDTH))
        if size % WIDTH:
            yield Tile(level, size // WIDTH, size % WIDTH)
        level, size = level + 1, size // WIDTH


def tree_bundles(size: int) -> Iterator[Bundle]:
    """All bundles of a tree, by index."""
    for tile in tree_tiles(size):
        if tile.level:
            return
        yield Bundle(tile.index, tile.width)


def place_of(node: Node) -> tuple[int, int, slice]:
    """The level and index of the tile that a node is computed from, and the hashes below the node there."""
    level, index = node
    level, height = divmod(level, HEIGHT)
    first = index << height
    start = first % WIDTH
    return level, first // WIDTH, slice(start, start + (1 << height))


def tiles_of(nodes: Iterable[Node], size: int) -> tuple[Tile, ...]:
    """The tiles that these nodes of the tree of a size are computed from, each as wide as the size makes it, sorted."""
    places = set()
    for level, index in nodes:
        assert (index + 1) << level <= size, "the tree has no such perfect node"
        places.add(place_of((level, index))[:2])
    tiles = []
    for level, index in sorted(places):
        row = size >> (HEIGHT * level)  # hashes in all tiles of the level
        tiles.append(Tile(level, index, min(WIDTH, row - index * WIDTH)))
    return tuple(tiles)


def nodes_in(tiles: Mapping[Tile, bytes], nodes: Iterable[Node]) -> dict[Node, bytes]:
    """The hashes of these nodes, computed from the tiles of `tiles_of` or from wider ones."""
    widest: dict[tuple[int, int], tuple[bytes, ...]] = {}
    for tile, data in tiles.items():
        hashes = load_tile(data, tile.width)
        if len(hashes) > len(widest.get((tile.level, tile.index), ())):
            widest[tile.level, tile.index] = hashes
    found = {}
    for node in nodes:
        level, index, below = place_of(node)
        hashes = widest.get((level, index), ())
        if below.stop > len(hashes):
            raise tile_invalid("tiles", f"lack {below.stop} hashes of {tile_path(Tile(level, index, WIDTH))}")
        found[node] = above(hashes[below])
    return found


def above(hashes: Sequence[bytes]) -> bytes:
    """The hash of the perfect node above some; that above a full tile stands in the tile of the next level."""
    return merkle.root(merkle.append(merkle.EMPTY_RANGE, hashes))


def dump_tile(hashes: Sequence[bytes]) -> bytes:
    """The bytes of a tile."""
    check_place(0, len(hashes))
    for index, each in enumerate(hashes):
        if len(each) != HASH_BYTES:
            raise tile_invalid(f"hashes[{index}]", f"is {len(each)} bytes long; a hash has {HASH_BYTES}")
    return b"".join(hashes)


def load_tile(data: bytes, width: int) -> tuple[bytes, ...]:
    """The hashes of a tile of so many."""
    check_place(0, width)
    if len(data) != width * HASH_BYTES:
        raise tile_invalid("data", f"is {len(data)} bytes long; a tile of width {width} has {width * HASH_BYTES}")
    return tuple(data[at : at + HASH_BYTES] for at in range(0, len(data), HASH_BYTES))


def dump_bundle(entries: Sequence[bytes]) -> bytes:
    """The bytes of a bundle of 1 to 256 entries."""
    check_place(0, len(entries))
    for index, entry in enumerate(entries):
        if len(entry) > MAX_ENTRY_BYTES:
            raise tile_invalid(f"entries[{index}]", f"is {len(entry)} bytes long; at most {MAX_ENTRY_BYTES} fit")
    return b"".join(len(entry).to_bytes(2, "big") + entry for entry in entries)


def load_bundle(data: bytes, width: int) -> tuple[bytes, ...]:
    """The entries of a bundle of so many."""
    check_place(0, width)
    if len(data) > width * (2 + MAX_ENTRY_BYTES):
        raise tile_invalid("data", f"is {len(data)} bytes long, more than {width} entries can be")
    entries = []
    at = 0
    for number in range(width):
        start = at + 2
        end = start + int.from_bytes(data[at:start], "big")
        if len(data) < end:
            raise tile_invalid("data", f"ends within entry {number} of {width}")
        entries.append(data[start:end])
        at = end
    if at != len(data):
        raise tile_invalid("data", f"has {len(data) - at} bytes after its {width} entries")
    return tuple(entries)
