"""A walk of lineage, level by level: what is new, what is returned of it, and when to stop. It reads nothing."""

from collections.abc import Iterable, Sequence

from animus.domain.lineage import LineageNodeKind, node_kind

MAX_WALKED = 100_000  # nodes of one walk, returned or not

Link = tuple[str, str, str]  # subject, relation and object, of an edge or a join


class Walk:
    """Breadth first from some nodes. The caller reads the links of `frontier`, in their order, and `take`s them.

    The result depends on the links alone, not on the order in which nodes are given.
    """

    def __init__(self, starts: Iterable[str], kinds: frozenset[LineageNodeKind], max_nodes: int) -> None:
        """`kinds` are those of which at most `max_nodes` are returned; none means all."""
        self.depths = dict.fromkeys(starts, 0)
        self.frontier = list(self.depths)  # found last, their links not taken yet
        self.depth = 0
        self.truncated = False
        self._kinds = kinds
        self._links: set[Link] = set()
        self._room = max_nodes - sum(map(self.returns, self.depths))

    def returns(self, node: str) -> bool:
        """Whether a node is of a kind that is returned."""
        return not self._kinds or node_kind(node) in self._kinds

    def take(self, found: Iterable[Link]) -> None:
        """Goes on by the links of the frontier, each of which has an end there; its other ends are the next one."""
        depths = self.depths
        self.depth += 1
        self.frontier = []
        for link in found:
            node = link[2] if link[0] in depths else link[0]
            if node not in depths:
                returned = self.returns(node)
                if len(depths) == MAX_WALKED or (returned and not self._room):
                    self.truncated = True
                    continue
                self._room -= returned
                depths[node] = self.depth
                self.frontier.append(node)
            self._links.add(link)

    def stop(self, found: Iterable[Link]) -> None:
        """Ends at the frontier: links of it that were not taken are left out."""
        self.truncated |= any(link not in self._links for link in found)
        self.frontier = []

    def nodes(self) -> Sequence[tuple[str, int]]:
        """What is returned, with depths; ordered by depth and name."""
        return sorted(filter(lambda item: self.returns(item[0]), self.depths.items()), key=lambda item: item[::-1])

    def links(self) -> Sequence[Link]:
        """The links that were taken between nodes that are returned, in order."""
        if not self._kinds:
            return sorted(self._links)
        return sorted(link for link in self._links if self.returns(link[0]) and self.returns(link[2]))
