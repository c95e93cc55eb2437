"""LineageService."""

from animus.codec import decode_time
from animus.domain.errors import NotFound, invalid
from animus.domain.lineage import (
    MAX_DEPTH,
    MAX_MORE_NODES,
    MAX_NODES,
    LineageDirection,
    LineageNodeKind,
    LineageRelation,
    node_kind,
    run_of_attempt,
)
from animus.domain.names import check_count, check_length, check_within, distinct, project_name
from animus.service.calls import Caller
from animus.service.lineage_walk import MAX_WALKED, Walk
from animus.store.records import SAME_CONTENT
from animus.store.unit_of_work import UnitOfWork, View
from animus.v1 import lineage_pb2 as pb

DEFAULT_DEPTH = 100
DEFAULT_NODES = 1_000
MAX_EDGES = 100_000  # read in one level

DIRECTIONS = {pb.LineageDirection.Value(f"LINEAGE_DIRECTION_{each.name}"): each for each in LineageDirection}
KINDS = {pb.LineageNodeKind.Value(f"LINEAGE_NODE_KIND_{each.name}"): each for each in LineageNodeKind}
KIND_NAMES = ", ".join(each.name for each in LineageNodeKind)
NUMBERS = {kind: number for number, kind in KINDS.items()}
RELATIONS = {str(each): pb.LineageRelation.Value(f"LINEAGE_RELATION_{each.name}") for each in LineageRelation}


class LineageService:
    """Walks lineage breadth-first, with one statement for each level."""

    def __init__(self, work: UnitOfWork) -> None:
        self.work = work

    async def GetLineage(self, request: pb.GetLineageRequest, caller: Caller) -> pb.Lineage:
        """Walks from some nodes until nothing is new, or a limit is reached, which the answer says."""
        check_count(tuple(request.more_nodes), 0, MAX_MORE_NODES, "moreNodes")
        _check_node(request.project_id, request.node, "node")
        for index, name in enumerate(request.more_nodes):
            _check_node(request.project_id, name, f"moreNodes[{index}]")
        if request.direction not in DIRECTIONS:
            raise invalid("direction", "is unspecified or unknown; give UPSTREAM, DOWNSTREAM or BOTH")
        direction = DIRECTIONS[request.direction]
        check_within(request.max_depth, 0, MAX_DEPTH, "maxDepth")
        check_within(request.max_nodes, 0, MAX_NODES, "maxNodes")
        for index, number in enumerate(request.kinds):
            if number not in KINDS:
                raise invalid(f"kinds[{index}]", f"is unspecified or unknown; give one of {KIND_NAMES}")
        kinds = frozenset(KINDS[number] for number in request.kinds)
        as_of_time = _time(request)
        starts = distinct([request.node, *request.more_nodes])
        max_depth = request.max_depth or DEFAULT_DEPTH
        max_nodes = request.max_nodes or DEFAULT_NODES
        counted = sum(not kinds or node_kind(name) in kinds for name in starts)
        if max_nodes < counted:
            raise invalid("maxNodes", f"is {max_nodes}, and {counted} nodes to start at are more")

        async def query(view: View) -> pb.Lineage:
            walk = Walk(starts, kinds, max_nodes)
            await _walk(view, walk, direction, max_depth, as_of_time)
            reply = pb.Lineage(truncated=walk.truncated)
            for name, depth in walk.nodes():
                reply.nodes.add(name=name, depth=depth, kind=_number(name))
            for subject, relation, object_ in walk.links():
                if relation == SAME_CONTENT:
                    reply.joins.add(dataset_version=subject, artifact=object_)
                else:
                    reply.edges.add(subject=subject, relation=RELATIONS[relation], object=object_)
            return reply

        return await self.work.read(request.project_id, query)

    async def GetImpact(self, request: pb.GetImpactRequest, caller: Caller) -> pb.Impact:
        """Walks downstream to the end, and counts."""
        _check_node(request.project_id, request.node, "node")
        check_within(request.max_nodes, 0, MAX_NODES, "maxNodes")
        as_of_time = _time(request)
        max_nodes = request.max_nodes or DEFAULT_NODES

        async def query(view: View) -> pb.Impact:
            walk = Walk([request.node], frozenset(), MAX_WALKED)
            await _walk(view, walk, LineageDirection.DOWNSTREAM, MAX_DEPTH, as_of_time)
            return _impact(walk, request.node, max_nodes)

        return await self.work.read(request.project_id, query)


async def _walk(view: View, walk: Walk, direction: LineageDirection, max_depth: int, as_of_time: str) -> None:
    """Walks to the end; one statement for each level. Raises NotFound for a start that nothing touches."""
    starts = walk.frontier
    both = direction is LineageDirection.BOTH
    while walk.frontier:
        if walk.depth == max_depth and walk.truncated:  # no more can be said
            break
        if walk.depth == max_depth and not both:  # no link of the frontier was taken: one is enough to know of
            walk.truncated |= await view.leads_on(walk.frontier, direction, as_of_time)
            break
        found = await view.links(walk.frontier, direction, as_of_time, MAX_EDGES)
        walk.truncated |= len(found) == MAX_EDGES
        if walk.depth == max_depth:
            walk.stop(found)
            break
        if not walk.depth:
            await _need(view, starts, {end for subject, _, object_ in found for end in (subject, object_)}, as_of_time)
        walk.take(found)


async def _need(view: View, starts: list[str], seen: set[str], as_of_time: str) -> None:
    """Raises NotFound unless something touches each start; one statement, for those that no link was seen of."""
    unseen = [name for name in starts if name not in seen]
    touched = await view.touched(unseen, as_of_time) if unseen else frozenset()
    for name in unseen:
        if name not in touched:
            raise NotFound("LINEAGE_NODE_UNKNOWN", "no edge touches a node of this name", kind="LineageNode", name=name)


def _impact(walk: Walk, start: str, max_nodes: int) -> pb.Impact:
    """What a walk came to. The run of an attempt counts as reached; the walk does not go on from it."""
    depths = dict(walk.depths)
    for name, depth in walk.depths.items():
        if node_kind(name) is LineageNodeKind.STEP_ATTEMPT:
            run = run_of_attempt(name)
            depths[run] = min(depths.get(run, depth + 1), depth + 1)
    del depths[start]
    by_kind: dict[int, list[tuple[int, str]]] = {}
    for name, depth in depths.items():
        by_kind.setdefault(_number(name), []).append((depth, name))
    reply = pb.Impact(partial=walk.truncated, truncated=walk.truncated)
    for number in sorted(by_kind):
        reply.counts.add(kind=pb.LineageNodeKind.ValueType(number), count=len(by_kind[number]))
    for number, target in ((pb.LINEAGE_NODE_KIND_RUN, reply.runs), (pb.LINEAGE_NODE_KIND_ARTIFACT, reply.artifacts)):
        nodes = sorted(by_kind.get(number, []))
        reply.truncated |= len(nodes) > max_nodes
        for depth, name in nodes[:max_nodes]:
            target.add(name=name, depth=depth, kind=number)
    return reply


def _check_node(project_id: str, name: str, field: str) -> None:
    check_length(name, 1, 2_000, field)
    if not name.startswith(project_name(project_id) + "/"):
        raise invalid(field, f"is no full name within {project_name(project_id)}")


def _time(request: pb.GetLineageRequest | pb.GetImpactRequest) -> str:
    """As-of time of a request; empty for none."""
    return decode_time(request.as_of_time, "asOfTime") if request.HasField("as_of_time") else ""


def _number(name: str) -> pb.LineageNodeKind.ValueType:
    """The contract's number for the kind of a node; 0 for none."""
    kind = node_kind(name)
    return NUMBERS[kind] if kind else pb.LINEAGE_NODE_KIND_UNSPECIFIED
