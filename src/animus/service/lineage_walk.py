"""A walk of lineage, level by level: what is new, which page of it is returned, and when to stop. It reads nothing."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from animus.domain.lineage import LineageNodeKind, node_kind

MAX_WALKED = 100_000  # nodes of one walk, returned or not

Link = tuple[str, str, str]  # subject, relation and object, of an edge or a join
Place = tuple[int, str]  # depth and name of a node: its place in the order of nodes

START: Place = (-1, "")


@dataclass(frozen=True, slots=True)
class Page:
    """A part of what is returned of a walk."""

    nodes: Sequence[Place]  # in order
    links: Sequence[Link]  # those that were taken between these, or from one of these to one before them; in order
    next_place: Place | None  # after which the next page starts; None on the last


class Walk:
    """Breadth first from some nodes. The caller reads the links of `frontier`, in their order, and `take`s them.

    The result depends on the links alone, not on the order in which nodes are given. The walk of a page is the whole
    walk up to where the page and its links are known: `complete` says that.
    """

    def __init__(self, starts: Iterable[str], kinds: frozenset[LineageNodeKind], after: Place, size: int) -> None:
        """`kinds` are those that are returned; none means all. The page has at most `size` nodes after a place."""
        self.depths = dict.fromkeys(starts, 0)
        self.frontier = list(self.depths)  # found last, their links not taken yet
        self.depth = 0
        self.truncated = False
        self._kinds = kinds
        self._after = after
        self._size = size
        self._links: set[Link] = set()
        self._taken = 0  # nodes of this page and later ones whose links were taken
        self._found = sum(self._ahead(node) for node in self.depths)  # all of them

    @property
    def complete(self) -> bool:
        """Whether the page has all its nodes and links, and there is another page."""
        return self._taken >= self._size and self._found > self._size

    def returns(self, node: str) -> bool:
        """Whether a node is of a kind that is returned."""
        return not self._kinds or node_kind(node) in self._kinds

    def take(self, found: Iterable[Link]) -> None:
        """Goes on by the links of the frontier, each of which has an end there; its other ends are the next one."""
        depths = self.depths
        self.depth += 1
        self.frontier = []
        self._taken = self._found
        for link in found:
            node = link[2] if link[0] in depths else link[0]
            if node not in depths:
                if len(depths) == MAX_WALKED:
                    self.truncated = True
                    continue
                depths[node] = self.depth
                self.frontier.append(node)
                self._found += self._ahead(node)
            self._links.add(link)

    def stop(self, found: Iterable[Link]) -> None:
        """Ends at the frontier: links of it that were not taken are left out."""
        self.truncated |= any(link not in self._links for link in found)
        self.frontier = []

    def page(self) -> "Page":
        """The page as it is known by now."""
        ahead = sorted((depth, name) for name, depth in self.depths.items() if self._ahead(name))
        nodes = ahead[: self._size]
        last = nodes[-1] if nodes else START
        links = sorted(link for link in self._links if self._after < self._later_end(link) <= last)
        return Page(nodes, links, last if len(ahead) > self._size else None)

    def _ahead(self, node: str) -> bool:
        return (self.depths[node], node) > self._after and self.returns(node)

    def _later_end(self, link: Link) -> Place:
        """The place of the end that comes later; before all places for a link to what is not returned."""
        ends = (link[0], link[2])
        return max((self.depths[end], end) for end in ends) if all(map(self.returns, ends)) else START
