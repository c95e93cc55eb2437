"""LineageService."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from google.api import httpbody_pb2

from animus.codec import decode_time, encode
from animus.domain.access import Principal
from animus.domain.document import Sealed, seal
from animus.domain.errors import NotFound, invalid
from animus.domain.external_lineage import ExternalEvent, ExternalRun, check_run_id, edges_of_event, parse_event
from animus.domain.lineage import (
    MAX_DEPTH,
    MAX_MORE_NODES,
    MAX_NODES,
    LineageDirection,
    LineageEdge,
    LineageNodeKind,
    LineageRelation,
    node_kind,
    parts_of_attempt,
    run_of_attempt,
)
from animus.domain.log import MAX_SIZE
from animus.domain.names import (
    artifact_name,
    check_count,
    check_length,
    check_within,
    distinct,
    external_run_name,
    project_name,
)
from animus.domain.openlineage import events as openlineage_events
from animus.domain.prov import Subgraph, subgraph
from animus.domain.run import check_random_id
from animus.service.calls import Caller, at_path, call_of, completed_by, new_record, resource
from animus.service.lineage_walk import MAX_WALKED, START, Page, Place, Walk
from animus.service.log import log_too_small
from animus.service.log_identity import LogIdentity
from animus.service.pages import Pages, asked_of, selected_by
from animus.service.run_evidence import run_evidence
from animus.store.records import NOW, SAME_CONTENT, AsOf
from animus.store.unit_of_work import Answer, Change, UnitOfWork, View
from animus.v1 import lineage_pb2 as pb

DEFAULT_DEPTH = 100
DEFAULT_NODES = 1_000
MAX_EDGES = 100_000  # read in one level
MAX_EVENTS = 50  # on a page: each may have a mebibyte
PART_BYTES = 1 << 20  # of a message of a stream, about

JSON = "application/json"
NDJSON = "application/x-ndjson"

DIRECTIONS = {pb.LineageDirection.Value(f"LINEAGE_DIRECTION_{each.name}"): each for each in LineageDirection}
KINDS = {pb.LineageNodeKind.Value(f"LINEAGE_NODE_KIND_{each.name}"): each for each in LineageNodeKind}
KIND_NAMES = ", ".join(each.name for each in LineageNodeKind)
NUMBERS = {kind: number for number, kind in KINDS.items()}
RELATIONS = {str(each): pb.LineageRelation.Value(f"LINEAGE_RELATION_{each.name}") for each in LineageRelation}


@dataclass(frozen=True, slots=True)
class Question:
    """What to walk: a request, checked."""

    starts: Sequence[str]
    direction: LineageDirection
    max_depth: int
    kinds: frozenset[LineageNodeKind]
    as_of: AsOf


def _complete(request: pb.RecordOpenLineageEventRequest, principal: Principal) -> None:
    """OpenLineage's clients send an event and a token, and nothing else."""
    if request.HasField("event") and not request.event.content_type:
        request.event.content_type = JSON
    if not request.project_id and len(principal.grants) == 1 and not principal.of_instance:
        request.project_id = principal.project_id
    if not request.request_id:
        request.request_id = f"openlineage-{hashlib.sha256(request.event.data).hexdigest()}"


class LineageService:
    """Walks lineage breadth-first, with one statement for each level, and takes and gives that of other systems."""

    def __init__(self, work: UnitOfWork, pages: Pages, identity: LogIdentity) -> None:
        self.work = work
        self.pages = pages
        self.identity = identity

    async def GetLineage(self, request: pb.GetLineageRequest, caller: Caller) -> pb.Lineage:
        """Walks from some nodes until the page is known, nothing is new, or a limit is reached."""
        question = _question(request)
        check_within(request.max_nodes, 0, MAX_NODES, "maxNodes")
        size = request.max_nodes or DEFAULT_NODES
        asked = pb.GetLineageRequest()
        asked.CopyFrom(request)
        asked.ClearField("page_token")
        bound = (caller.method, request.project_id, asked.SerializeToString(deterministic=True).hex())
        time, after = "", START
        if place := self.pages.place(request, *bound):
            time, depth, name = (str(place[0]), int(place[1]), str(place[2]))
            after = (depth, name)
        if time:
            question = replace(question, as_of=AsOf(time, None))

        async def query(view: View) -> pb.Lineage:
            asking = question
            walk, page = await _walked(view, asking, after, size)
            if page.next_place and asking.as_of == NOW:  # the next pages are of the time of this call: so is this one
                asking = replace(asking, as_of=AsOf(view.time, None))
                if await view.written_after(view.time):
                    walk, page = await _walked(view, asking, after, size)
            reply = pb.Lineage(truncated=walk.truncated)
            for depth, name in page.nodes:
                reply.nodes.add(name=name, depth=depth, kind=_number(name))
            for subject, relation, object_ in page.links:
                if relation == SAME_CONTENT:
                    reply.joins.add(dataset_version=subject, artifact=object_)
                else:
                    reply.edges.add(subject=subject, relation=RELATIONS[relation], object=object_)
            if page.next_place:
                reply.next_page_token = self.pages.token((asking.as_of.time, *page.next_place), *bound)
            return reply

        return await self.work.read(request.project_id, query)

    async def GetImpact(self, request: pb.GetImpactRequest, caller: Caller) -> pb.Impact:
        """Walks downstream to the end, and counts."""
        _check_node(request.project_id, request.node, "node")
        check_within(request.max_nodes, 0, MAX_NODES, "maxNodes")
        question = Question([request.node], LineageDirection.DOWNSTREAM, MAX_DEPTH, frozenset(), _as_of(request))
        max_nodes = request.max_nodes or DEFAULT_NODES

        async def query(view: View) -> pb.Impact:
            walk, page = await _walked(view, question, START, MAX_WALKED)
            wrote = distinct(by for _, relation, by in page.links if relation == LineageRelation.WAS_GENERATED_BY)
            attempts = [parts_of_attempt(by) for by in wrote if node_kind(by) is LineageNodeKind.STEP_ATTEMPT]
            models = await view.models_of(attempts) if attempts else frozenset()
            return _impact(walk, request.node, max_nodes, {artifact_name(view.project_id, each) for each in models})

        return await self.work.read(request.project_id, query)

    async def ExportProv(self, request: pb.ExportProvRequest, caller: Caller) -> AsyncIterator[httpbody_pb2.HttpBody]:
        """Walks to the end, and renders what it came to."""
        question = _question(request)
        walk, page = await self.work.read(request.project_id, lambda view: _walked(view, question, START, MAX_WALKED))
        links = page.links
        part = Subgraph(
            instance_name=self.identity.instance_name,
            nodes=tuple(name for _, name in page.nodes),
            edges=tuple(LineageEdge(s, LineageRelation(r), o) for s, r, o in links if r != SAME_CONTENT),
            joins=tuple((version, artifact) for version, r, artifact in links if r == SAME_CONTENT),
            starts=tuple(question.starts),
            direction=question.direction,
            as_of_time=question.as_of.time,
            as_of_index=question.as_of.index,
            truncated=walk.truncated,
        )
        document = await asyncio.to_thread(subgraph, part)
        for start in range(0, len(document), PART_BYTES):
            yield httpbody_pb2.HttpBody(content_type=JSON, data=document[start : start + PART_BYTES])

    async def ExportOpenLineage(
        self, request: pb.ExportOpenLineageRequest, caller: Caller
    ) -> AsyncIterator[httpbody_pb2.HttpBody]:
        """Renders a run as it is now."""
        check_random_id(request.run_id, "runId")
        origin = self.identity.origin(request.project_id)
        run = await self.work.read(request.project_id, lambda view: run_evidence(view, request.run_id, origin))
        part = b""
        for event in await asyncio.to_thread(openlineage_events, run):
            part += event + b"\n"
            if len(part) >= PART_BYTES:
                yield httpbody_pb2.HttpBody(content_type=NDJSON, data=part)
                part = b""
        if part:
            yield httpbody_pb2.HttpBody(content_type=NDJSON, data=part)

    @completed_by(_complete)
    async def RecordOpenLineageEvent(self, request: pb.RecordOpenLineageEventRequest, caller: Caller) -> Answer:
        """Writes an event that is not there yet, and those of its edges that are not."""
        if not request.HasField("event"):
            raise invalid("event", "is missing")
        if request.event.content_type != JSON:
            raise invalid("event.contentType", f"is not {JSON}")
        if request.event.extensions:
            raise invalid("event.extensions", "are not taken")
        with at_path("event"):
            event = parse_event(request.event.data)
        sealed = seal(event)

        async def decide(view: View) -> Change:
            name = external_run_name(view.project_id, event.run_id)
            stored = await view.find(ExternalEvent, digest=sealed.digest)
            new: list[LineageEdge] = []
            if not stored:
                edges = edges_of_event(view.project_id, event)
                known = await view.known_edges(edges)
                new = [edge for edge in edges if edge not in known]
            records: tuple[Sealed[Any], ...] = () if stored else (sealed, *map(seal, new))
            reply = resource(stored or new_record(view, caller, sealed), name, pb.ExternalEvent())
            reply.ClearField("event")
            return Change("external_event.record", name, records, (), reply)

        return await self.work.change(call_of(caller, request), decide)

    async def ListExternalRuns(
        self, request: pb.ListExternalRunsRequest, caller: Caller
    ) -> pb.ListExternalRunsResponse:
        """Lists runs by id."""
        bound = (caller.method, request.project_id, *asked_of(request))
        size, place = self.pages.size(request), self.pages.place(request, *bound)
        selected = selected_by(ExternalRun, request, ("run_id",))

        async def query(view: View) -> pb.ListExternalRunsResponse:
            found = await view.external_runs(selected, place, size + 1)
            reply = pb.ListExternalRunsResponse()
            for run, _ in found[:size]:
                encode(run, reply.external_runs.add())
            if len(found) > size:
                reply.next_page_token = self.pages.token(found[size - 1][1], *bound)
            return reply

        return await self.work.read(request.project_id, query)

    async def ListExternalEvents(
        self, request: pb.ListExternalEventsRequest, caller: Caller
    ) -> pb.ListExternalEventsResponse:
        """Lists events by time."""
        check_run_id(request.run_id, "runId")
        request.page_size = min(request.page_size, MAX_EVENTS)
        name = external_run_name(request.project_id, request.run_id)

        async def query(view: View) -> pb.ListExternalEventsResponse:
            order = ("event_time", "digest")
            page = await self.pages.read(view, ExternalEvent, order, request, caller.method, run_id=request.run_id)
            reply = pb.ListExternalEventsResponse(
                next_page_token=page.next_token(lambda last: (last.value.event_time, last.digest))
            )
            for each in page.items:
                resource(each, name, reply.external_events.add())
            return reply

        return await self.work.read(request.project_id, query)


def _question(request: pb.GetLineageRequest | pb.ExportProvRequest) -> Question:
    """What a request asks. Raises Invalid."""
    check_count(tuple(request.more_nodes), 0, MAX_MORE_NODES, "moreNodes")
    _check_node(request.project_id, request.node, "node")
    for index, name in enumerate(request.more_nodes):
        _check_node(request.project_id, name, f"moreNodes[{index}]")
    if request.direction not in DIRECTIONS:
        raise invalid("direction", "is unspecified or unknown; give UPSTREAM, DOWNSTREAM or BOTH")
    check_within(request.max_depth, 0, MAX_DEPTH, "maxDepth")
    for index, number in enumerate(request.kinds):
        if number not in KINDS:
            raise invalid(f"kinds[{index}]", f"is unspecified or unknown; give one of {KIND_NAMES}")
    return Question(
        starts=distinct([request.node, *request.more_nodes]),
        direction=DIRECTIONS[request.direction],
        max_depth=request.max_depth or DEFAULT_DEPTH,
        kinds=frozenset(KINDS[number] for number in request.kinds),
        as_of=_as_of(request),
    )


async def _walked(view: View, question: Question, after: Place, size: int) -> tuple[Walk, Page]:
    """The walk of a question up to a page of it."""
    if question.as_of.index is not None:
        log = await view.log.size()
        if question.as_of.index > log.size:
            raise log_too_small(view.project_id, log.size)
    walk = Walk(question.starts, question.kinds, after, size)
    await _walk(view, walk, question.direction, question.max_depth, question.as_of)
    return walk, walk.page()


async def _walk(view: View, walk: Walk, direction: LineageDirection, max_depth: int, as_of: AsOf) -> None:
    """Walks to the end of the page; one statement for each level. Raises NotFound for a start that nothing touches."""
    starts = walk.frontier
    both = direction is LineageDirection.BOTH
    while walk.frontier and not walk.complete:
        if walk.depth == max_depth and walk.truncated:  # no more can be said
            break
        if walk.depth == max_depth and not both:  # no link of the frontier was taken: one is enough to know of
            walk.truncated |= await view.leads_on(walk.frontier, direction, as_of)
            break
        found = await view.links(walk.frontier, direction, as_of, MAX_EDGES)
        walk.truncated |= len(found) == MAX_EDGES
        if walk.depth == max_depth:
            walk.stop(found)
            break
        if not walk.depth:
            await _need(view, starts, {end for subject, _, object_ in found for end in (subject, object_)}, as_of)
        walk.take(found)


async def _need(view: View, starts: list[str], seen: set[str], as_of: AsOf) -> None:
    """Raises NotFound unless something touches each start; one statement, for those that no link was seen of."""
    unseen = [name for name in starts if name not in seen]
    touched = await view.touched(unseen, as_of) if unseen else frozenset()
    for name in unseen:
        if name not in touched:
            raise NotFound("LINEAGE_NODE_UNKNOWN", "no edge touches a node of this name", kind="LineageNode", name=name)


def _impact(walk: Walk, start: str, max_nodes: int, models: Collection[str]) -> pb.Impact:
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
    runs = sorted(by_kind.get(pb.LINEAGE_NODE_KIND_RUN, []))
    artifacts = sorted(by_kind.get(pb.LINEAGE_NODE_KIND_ARTIFACT, []))
    for target, nodes in (
        (reply.runs, runs),
        (reply.artifacts, artifacts),
        (reply.models, [node for node in artifacts if node[1] in models]),
    ):
        reply.truncated |= len(nodes) > max_nodes
        for depth, name in nodes[:max_nodes]:
            target.add(name=name, depth=depth, kind=_number(name))
    return reply


def _check_node(project_id: str, name: str, field: str) -> None:
    check_length(name, 1, 2_000, field)
    if not name.startswith(project_name(project_id) + "/"):
        raise invalid(field, f"is no full name within {project_name(project_id)}")


def _as_of(request: pb.GetLineageRequest | pb.GetImpactRequest | pb.ExportProvRequest) -> AsOf:
    """What a request says of the past."""
    time = decode_time(request.as_of_time, "asOfTime") if request.HasField("as_of_time") else ""
    if not request.HasField("as_of_index"):
        return AsOf(time, None)
    if time:
        raise invalid("asOfIndex", "is given beside asOfTime: give one of the two")
    check_within(request.as_of_index, 0, MAX_SIZE, "asOfIndex")
    return AsOf("", request.as_of_index)


def _number(name: str) -> pb.LineageNodeKind.ValueType:
    """The contract's number for the kind of a node; 0 for none."""
    kind = node_kind(name)
    return NUMBERS[kind] if kind else pb.LINEAGE_NODE_KIND_UNSPECIFIED
