"""The tiles of a tree, computed from its leaves: those of all levels at once, in one pass."""

from collections.abc import Iterator, Sequence

from animus.domain import merkle
from animus.domain.merkle import EMPTY_RANGE
from animus.domain.tile import HEIGHT, WIDTH, Tile


class TileTree:
    """A tree that grows by a tile of leaves at a time, and keeps only the edge of each level."""

    def __init__(self) -> None:
        self.size = 0
        self.edges: list[list[bytes]] = [[]]  # for each level the hashes of its last, partial tile
        self._above = EMPTY_RANGE  # of the roots of the full tiles of level 0

    def root(self, leaf_hashes: Sequence[bytes] = ()) -> bytes:
        """The root of the tree with up to 256 leaves more. The tree has no partial tile of leaves, or no leaf comes."""
        leaves = merkle.append(EMPTY_RANGE, leaf_hashes or self.edges[0])
        hashes = self._above.hashes + leaves.hashes
        return merkle.fold(hashes) if hashes else merkle.EMPTY_ROOT

    def add(self, leaf_hashes: Sequence[bytes]) -> list[tuple[Tile, bytes]]:
        """Appends leaves of one tile, and returns the tiles that became full, from the leaves up."""
        full = []
        self.size += len(leaf_hashes)
        level, row = 0, list(leaf_hashes)
        while row:
            if level == len(self.edges):
                self.edges.append([])
            edge = self.edges[level]
            edge += row
            if len(edge) < WIDTH:
                break
            assert len(edge) == WIDTH, "a tile was skipped"
            full.append((Tile(level, (self.size >> (HEIGHT * (level + 1))) - 1, WIDTH), b"".join(edge)))
            row = [merkle.root(merkle.append(EMPTY_RANGE, edge))]
            if level == 0:
                self._above = merkle.append(self._above, row)
            self.edges[level] = []
            level += 1
        return full

    def partial(self) -> Iterator[tuple[Tile, bytes]]:
        """The last tile of each level that has a partial one, from the leaves up."""
        for level, edge in enumerate(self.edges):
            if edge:
                yield Tile(level, self.size >> (HEIGHT * (level + 1)), len(edge)), b"".join(edge)


def root_of_edges(edges: Sequence[Sequence[bytes]]) -> bytes:
    """The root of the tree whose levels have these hashes in their partial tiles."""
    hashes: list[bytes] = []
    for edge in reversed(edges):
        hashes += merkle.append(EMPTY_RANGE, edge).hashes
    return merkle.fold(hashes) if hashes else merkle.EMPTY_ROOT
