"""A walk of lineage against a naive one: every direction, depth, choice of kinds and limit, on small graphs."""

import itertools
import random
from collections.abc import Iterable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from animus.domain.lineage import LineageDirection, LineageNodeKind, node_kind
from animus.service import lineage_walk
from animus.service.lineage_walk import START, Link, Place, Walk

UP, DOWN, BOTH = LineageDirection.UPSTREAM, LineageDirection.DOWNSTREAM, LineageDirection.BOTH
RUN, ATTEMPT, ARTIFACT = LineageNodeKind.RUN, LineageNodeKind.STEP_ATTEMPT, LineageNodeKind.ARTIFACT
NODES = [
    *(f"projects/p/runs/{letter}" for letter in "abc"),
    *(f"projects/p/runs/a/steps/{letter}/attempts/1" for letter in "abc"),
    *(f"projects/p/artifacts/{letter}" for letter in "abc"),
]
LINKS = st.sets(st.tuples(st.sampled_from(NODES), st.sampled_from(["used", "same_content"]), st.sampled_from(NODES)))
KINDS = st.sets(st.sampled_from([RUN, ATTEMPT, ARTIFACT])).map(frozenset)


def leaving(links: Iterable[Link], nodes: Iterable[str], direction: LineageDirection) -> list[Link]:
    """The links that leave nodes in a direction, in order, as the store finds them."""
    near = set(nodes)
    return sorted(
        link for link in links if (direction != DOWN and link[0] in near) or (direction != UP and link[2] in near)
    )


def walked(
    links: Iterable[Link],
    starts: Sequence[str],
    direction: LineageDirection,
    max_depth: int,
    kinds: frozenset[LineageNodeKind],
    size: int,
    after: Place = START,
) -> Walk:
    """A walk to the end of a page."""
    walk = Walk(starts, kinds, after, size)
    while walk.frontier and not walk.complete:
        found = leaving(links, walk.frontier, direction)
        if walk.depth == max_depth:
            walk.stop(found)
        else:
            walk.take(found)
    return walk


def distances(links: Iterable[Link], starts: Iterable[str], direction: LineageDirection) -> dict[str, int]:
    """How far each node is, by steps from everything to everything until nothing is nearer."""
    found = dict.fromkeys(starts, 0)
    for _ in NODES:
        for subject, _, object_ in links:
            ways = [(subject, object_)] if direction == UP else [(object_, subject)]
            ways = [(subject, object_), (object_, subject)] if direction == BOTH else ways
            for near, far in ways:
                if near in found:
                    found[far] = min(found.get(far, len(NODES)), found[near] + 1)
    return found


@given(LINKS, st.sets(st.sampled_from(NODES), min_size=1, max_size=3), st.sampled_from(list(LineageDirection)), KINDS)
def test_a_walk_to_the_end_finds_what_a_naive_one_finds(
    links: set[Link], starts: set[str], direction: LineageDirection, kinds: frozenset[LineageNodeKind]
) -> None:
    """Nodes with their depths, and the links between them; at each depth, and whether that left something out."""
    everything = distances(links, starts, direction)
    for depth in range(1, len(NODES) + 1):
        walk = walked(links, sorted(starts), direction, depth, kinds, 100)
        within = {name: far for name, far in everything.items() if far <= depth}
        wanted = {name for name in within if not kinds or node_kind(name) in kinds}
        page = walk.page()
        assert (list(page.nodes), page.next_place) == (sorted((within[n], n) for n in wanted), None)
        inner = [name for name, far in within.items() if far < depth]
        taken = leaving(links, inner, direction)
        assert list(page.links) == [link for link in taken if {link[0], link[2]} <= wanted]
        assert walk.truncated == (len(leaving(links, within, direction)) > len(taken))


@given(
    LINKS,
    st.sets(st.sampled_from(NODES), min_size=1, max_size=3),
    st.sampled_from(list(LineageDirection)),
    KINDS,
    st.integers(1, 9),
    st.integers(1, 9),
    st.randoms(use_true_random=False),
)
def test_all_pages_together_are_the_whole(
    links: set[Link],
    starts: set[str],
    direction: LineageDirection,
    kinds: frozenset[LineageNodeKind],
    depth: int,
    size: int,
    shuffle: random.Random,
) -> None:
    """Each node and link once, in order, whatever the size; truncated if the whole is; the same in whichever order."""
    whole = walked(links, sorted(starts), direction, depth, kinds, 100)
    nodes: list[Place] = []
    found: list[Link] = []
    place: Place | None = START
    while place:
        order = shuffle.sample(sorted(starts), len(starts))
        walk = walked(links, order, direction, depth, kinds, size, place)
        page = walk.page()
        assert len(page.nodes) == size or page.next_place is None
        known = {name for _, name in (*nodes, *page.nodes)}
        assert all({link[0], link[2]} <= known for link in page.links)
        nodes += page.nodes
        found += page.links
        place = page.next_place
    assert walk.truncated == whole.truncated
    assert (nodes, sorted(found)) == (list(whole.page().nodes), list(whole.page().links))
    assert len(found) == len(set(found))


def test_a_page_ends_the_walk_where_it_is_known() -> None:
    """On a line of nodes, a page of two reads the links of its own nodes and no others."""
    line = [f"projects/p/runs/{number:02}" for number in range(20)]
    links = [(near, "used", far) for near, far in itertools.pairwise(line)]
    walk = walked(links, line[:1], UP, 100, frozenset(), 2, (4, line[4]))
    assert [name for _, name in walk.page().nodes] == line[5:7]
    assert walk.page().links == links[4:6]
    assert (walk.depth, walk.truncated) == (7, False)


def test_every_small_graph_is_walked_through() -> None:
    """All graphs of three nodes, from each of them, in each direction."""
    nodes = NODES[:3]
    pairs = [(a, "used", b) for a in nodes for b in nodes]
    for size in range(len(pairs) + 1):
        for links in itertools.combinations(pairs, size):
            for direction in LineageDirection:
                walk = walked(links, nodes[:1], direction, 9, frozenset(), 9)
                depths = {name: depth for depth, name in walk.page().nodes}
                assert depths == distances(links, nodes[:1], direction)
                assert not walk.truncated


def test_a_walk_of_too_many_nodes_ends_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound of the server holds for nodes that are not returned, too."""
    monkeypatch.setattr(lineage_walk, "MAX_WALKED", 2)
    links = [("projects/p/runs/a", "used", "projects/p/runs/b"), ("projects/p/runs/b", "used", "projects/p/runs/c")]
    walk = walked(links, ["projects/p/runs/a"], UP, 9, frozenset({ARTIFACT}), 9)
    assert (list(walk.depths), walk.truncated) == (["projects/p/runs/a", "projects/p/runs/b"], True)
    assert (walk.page().nodes, walk.page().links) == ([], [])
