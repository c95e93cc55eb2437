"""Lineage over gRPC on a real database: kinds, times, several starts, impact, and what joins runs by content."""

import itertools
import random
import secrets
from collections.abc import AsyncIterator, Iterable
from typing import Any

import pytest
from google.protobuf.message import Message
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from animus.domain import document
from animus.domain.lineage import LineageDirection, LineageEdge, LineageNodeKind, LineageRelation
from animus.service.lineage_walk import START, Place
from animus.store.embedded import EmbeddedPostgres
from animus.v1 import audit_pb2, lineage_pb2, run_pb2
from service.conftest import Failure, Server
from service.requests import (
    ONE,
    TWO,
    create_run,
    dataset,
    plan_run,
    planned_run,
    prepare,
    register_pipeline,
    two_steps,
    version,
)
from service.shared import executing, served
from service.test_lineage_walk import leaving, walked
from service.test_reproduction import executed, replayed

UP, DOWN, BOTH = (lineage_pb2.LineageDirection.Value(f"LINEAGE_DIRECTION_{each.name}") for each in LineageDirection)
KIND = {each: lineage_pb2.LineageNodeKind.Value(f"LINEAGE_NODE_KIND_{each.name}") for each in LineageNodeKind}
ARTIFACT = f"projects/p/artifacts/{TWO}"
SOURCE = f"projects/p/datasets/data/versions/{ONE}"
MADE = f"projects/p/datasets/data/versions/{TWO}"


def lineage(node: str, direction: Any = DOWN, **more: Any) -> lineage_pb2.GetLineageRequest:
    """A request to walk from a node of the project `p`."""
    return lineage_pb2.GetLineageRequest(project_id="p", node=node, direction=direction, **more)


def impact(node: str, **more: Any) -> lineage_pb2.GetImpactRequest:
    """A request for what is downstream of a node of the project `p`."""
    return lineage_pb2.GetImpactRequest(project_id="p", node=node, **more)


def names(nodes: Iterable[lineage_pb2.LineageNode]) -> list[str]:
    """The names of nodes."""
    return [node.name for node in nodes]


async def two_runs(server: Server) -> tuple[str, str]:
    """Full names of a run that made an artifact, and of one that read it as a dataset version; each has two steps."""
    first = await planned_run(server)
    await executed(server.admin, first)
    await server.admin("RegisterDatasetVersion", version("p", TWO))
    spec = (await server.admin("GetRun", run_pb2.GetRunRequest(project_id="p", run_id=first))).run_spec
    spec.datasets[0].content_digest = TWO
    second = (await server.admin("CreateRun", create_run(spec, "second"))).run_id
    await server.admin("PlanRun", plan_run(second, "plan-second"))
    await executed(server.admin, second, "sha256:" + "3" * 64)
    return f"projects/p/runs/{first}", f"projects/p/runs/{second}"


async def test_lineage_goes_on_where_a_run_reads_what_another_made(server: Server) -> None:
    """A version with the content of an artifact leads from the one run to the other, both ways; a join says so."""
    first, second = await two_runs(server)
    up = await server.admin("GetLineage", lineage(second, UP))
    assert {MADE, ARTIFACT, f"{first}/steps/first/attempts/1", first, SOURCE} <= set(names(up.nodes))
    assert [(join.dataset_version, join.artifact) for join in up.joins] == [(MADE, ARTIFACT)]
    down = await server.admin("GetLineage", lineage(SOURCE))
    assert {first, ARTIFACT, MADE, second, f"{second}/steps/second/attempts/1"} <= set(names(down.nodes))
    assert [(join.dataset_version, join.artifact) for join in down.joins] == [(MADE, ARTIFACT)]
    assert {node.name: node.depth for node in up.nodes}[ARTIFACT] == 2
    both = await server.admin("GetLineage", lineage(ARTIFACT, BOTH))
    assert {SOURCE, first, MADE, second} <= set(names(both.nodes))


async def test_a_version_is_joined_to_an_artifact_that_was_made(server: Server) -> None:
    """One that no run reads has lineage by its content; one that is not registered, or made by nobody, is unknown."""
    run = await planned_run(server)
    await server.admin("RegisterDatasetVersion", version("p", TWO))
    for direction in (UP, DOWN, BOTH):
        with pytest.raises(Failure) as found:
            await server.admin("GetLineage", lineage(MADE, direction))
        assert (found.value.reason, found.value.metadata["name"]) == ("LINEAGE_NODE_UNKNOWN", MADE)
    await executed(server.admin, run)
    walked_up = await server.admin("GetLineage", lineage(MADE, UP))
    assert {MADE, ARTIFACT, f"projects/p/runs/{run}", SOURCE} <= set(names(walked_up.nodes))
    alone = await server.admin("GetLineage", lineage(MADE))
    assert (names(alone.nodes), len(alone.joins), alone.truncated) == ([MADE], 0, False)
    with pytest.raises(Failure) as found:
        await server.admin("GetLineage", lineage(f"projects/p/datasets/other/versions/{TWO}", UP))
    assert found.value.reason == "LINEAGE_NODE_UNKNOWN"


async def test_only_nodes_of_the_kinds_are_returned_and_counted(server: Server) -> None:
    """The walk goes through the others; edges are those between nodes that are returned."""
    first, second = await two_runs(server)
    for kind in list(LineageNodeKind)[:7]:  # those that runs have
        number = KIND[kind]
        whole = await server.admin("GetLineage", lineage(second, BOTH))
        found = await server.admin("GetLineage", lineage(second, BOTH, kinds=[number]))
        assert list(found.nodes) == [node for node in whole.nodes if node.kind == number], kind
        assert found.nodes, kind
        assert not found.edges
    runs = await server.admin("GetLineage", lineage(SOURCE, kinds=[KIND[LineageNodeKind.RUN]], max_nodes=1))
    assert (names(runs.nodes), runs.truncated, bool(runs.next_page_token)) == ([first], False, True)
    wanted = [KIND[LineageNodeKind.RUN], KIND[LineageNodeKind.STEP_ATTEMPT]]
    some = await server.admin("GetLineage", lineage(SOURCE, kinds=wanted, max_nodes=6))
    assert (len(some.nodes), some.truncated) == (6, False)
    assert {edge.relation for edge in some.edges} == {lineage_pb2.LINEAGE_RELATION_WAS_STARTED_BY}


async def test_a_walk_starts_at_several_nodes(server: Server) -> None:
    """Depths are from the nearest; a node that nothing touches is named, wherever it stands; twice is once."""
    first, second = await two_runs(server)
    found = await server.admin("GetLineage", lineage(first, UP, more_nodes=[second, first], max_depth=1))
    assert names(found.nodes)[:2] == sorted([first, second])
    assert {node.depth for node in found.nodes[2:]} == {1}
    assert {SOURCE, MADE} <= set(names(found.nodes))
    absent = "projects/p/runs/absent"
    for method, request in (
        ("GetLineage", lineage(first, more_nodes=[absent])),
        ("GetLineage", lineage(absent, UP, more_nodes=[first])),
        ("GetImpact", impact(absent)),
    ):
        with pytest.raises(Failure) as failed:
            await server.admin(method, request)
        assert (failed.value.reason, failed.value.metadata["name"]) == ("LINEAGE_NODE_UNKNOWN", absent)


async def test_lineage_as_of_a_time_is_what_was_written_by_then(server: Server) -> None:
    """At each entry's time the walk is the one that was answered then; before the first, the node is unknown."""
    await two_runs(server)
    entries = (await server.admin("ListAuditEntries", audit_pb2.ListAuditEntriesRequest(project_id="p"))).audit_entries
    sizes = []
    for entry in entries:
        request = lineage(SOURCE)
        request.as_of_time.CopyFrom(entry.time)
        downstream = impact(SOURCE)
        downstream.as_of_time.CopyFrom(entry.time)
        try:
            found = await server.admin("GetLineage", request)
            sizes.append(len(found.nodes))
            counts = (await server.admin("GetImpact", downstream)).counts
            assert sum(count.count for count in counts) == len(found.nodes) - 1
        except Failure as failure:
            assert failure.reason == "LINEAGE_NODE_UNKNOWN"
            sizes.append(0)
    whole = await server.admin("GetLineage", lineage(SOURCE))
    assert sizes == sorted(sizes)
    assert (sizes[0], sizes[-1]) == (0, len(whole.nodes))
    # The version comes in with its registration, not with the artifact that has been there before.
    (registered,) = [entry for entry in entries if entry.resource == MADE]
    before = lineage(ARTIFACT)
    before.as_of_time.CopyFrom(registered.time)
    assert MADE in names((await server.admin("GetLineage", before)).nodes)
    before.as_of_time.FromMicroseconds(registered.time.ToMicroseconds() - 1)
    assert MADE not in names((await server.admin("GetLineage", before)).nodes)


async def test_impact_counts_what_is_downstream(server: Server) -> None:
    """Each run, attempt and artifact of both runs, by kind; runs and artifacts up to the limit, the nearest first."""
    first, second = await two_runs(server)
    found = await server.admin("GetImpact", impact(SOURCE))
    counts = {count.kind: count.count for count in found.counts}
    assert counts == {
        KIND[LineageNodeKind.RUN]: 2,
        KIND[LineageNodeKind.STEP_ATTEMPT]: 4,
        KIND[LineageNodeKind.ARTIFACT]: 2,
        KIND[LineageNodeKind.DATASET_VERSION]: 1,
    }
    assert [count.kind for count in found.counts] == sorted(counts)
    assert names(found.runs) == [first, second]
    assert names(found.artifacts) == [ARTIFACT, f"projects/p/artifacts/sha256:{'3' * 64}"]
    assert (found.truncated, found.partial) == (False, False)
    one = await server.admin("GetImpact", impact(SOURCE, max_nodes=1))
    assert (names(one.runs), names(one.artifacts), one.truncated, one.partial) == ([first], [ARTIFACT], True, False)
    assert list(one.counts) == list(found.counts)


async def test_an_impact_names_the_models(server: Server) -> None:
    """An artifact is a model where the pipeline of the attempt that wrote it says so of that output, and only there."""
    await executed(server.admin, await planned_run(server))
    assert names((await server.admin("GetImpact", impact(SOURCE))).models) == []
    tree: Any = two_steps()
    tree["spec"]["steps"][0]["outputs"]["artifacts"][0]["type"] = "model"
    pipeline = await server.admin("RegisterPipelineSpec", register_pipeline(tree, request_id="of-models"))
    spec = await prepare(server.admin)
    spec.pipeline_spec_digest = pipeline.record.digest
    run_id = (await server.admin("CreateRun", create_run(spec, "of-models"))).run_id
    await server.admin("PlanRun", plan_run(run_id, "plan-of-models"))
    model = f"sha256:{'3' * 64}"
    await executed(server.admin, run_id, model)
    found = await server.admin("GetImpact", impact(SOURCE))
    assert names(found.models) == [f"projects/p/artifacts/{model}"]
    assert set(names(found.artifacts)) == {ARTIFACT, f"projects/p/artifacts/{model}"}


async def test_an_artifact_that_another_run_read_leads_on_to_that_run(server: Server) -> None:
    """A replay that made the same read the same artifact in its second step: its run is told, with the run's own."""
    first = await planned_run(server)
    await executed(server.admin, first)
    again = await replayed(server.admin, first)
    await executed(server.admin, again)
    found = await server.admin("GetImpact", impact(ARTIFACT))
    assert set(names(found.runs)) == {f"projects/p/runs/{first}", f"projects/p/runs/{again}"}
    assert {node.depth for node in found.runs} == {2}
    assert {count.kind: count.count for count in found.counts} == {
        KIND[LineageNodeKind.RUN]: 2,
        KIND[LineageNodeKind.STEP_ATTEMPT]: 2,
    }
    alone = await server.admin("GetImpact", impact(f"projects/p/runs/{again}/steps/second/attempts/1"))
    assert names(alone.runs) == [f"projects/p/runs/{again}"]


async def test_bad_questions_are_refused_by_field(server: Server) -> None:
    """Each value that is out of range, of another project or unknown names its field."""
    run = f"projects/p/runs/{await planned_run(server)}"
    time = lineage(run)
    time.as_of_time.nanos = 1
    late = impact(run)
    late.as_of_time.seconds = 2**40
    bad: dict[str, Message] = {
        "node": lineage("projects/other/runs/x"),
        "moreNodes": lineage(run, more_nodes=[run] * 101),
        "moreNodes[1]": lineage(run, more_nodes=[run, "projects/other/runs/x"]),
        "moreNodes[0]": lineage(run, more_nodes=[""]),
        "direction": lineage(run, 4),
        "maxDepth": lineage(run, max_depth=1_001),
        "maxNodes": lineage(run, max_nodes=10_001),
        "kinds[1]": lineage(run, kinds=[1, 0]),
        "kinds[0]": lineage(run, kinds=[99]),
        "asOfTime": time,
        "asOfIndex": lineage(run, as_of_index=-1),
        "pageToken": lineage(run, page_token="AAAA"),
    }
    for field, request in bad.items():
        with pytest.raises(Failure) as found:
            await server.admin("GetLineage", request)
        assert list(found.value.fields) == [field]
    of_impact: dict[str, Message] = {
        "node": impact("projects/other/runs/x"),
        "maxNodes": impact(run, max_nodes=10_001),
        "asOfTime": late,
    }
    for field, request in of_impact.items():
        with pytest.raises(Failure) as found:
            await server.admin("GetImpact", request)
        assert list(found.value.fields) == [field]


async def test_lineage_of_another_project_is_unknown(server: Server) -> None:
    """Neither a node nor a join by content reaches into another project, and who has no token of it learns nothing."""
    await server.project("other")
    await two_runs(server)
    await server.admin("CreateDataset", dataset("other"))
    await server.admin("RegisterDatasetVersion", version("other", TWO))
    theirs = f"projects/other/datasets/data/versions/{TWO}"
    request = lineage_pb2.GetLineageRequest(project_id="other", node=theirs, direction=BOTH)
    with pytest.raises(Failure) as found:
        await server.admin("GetLineage", request)
    assert found.value.reason == "LINEAGE_NODE_UNKNOWN"
    whole = await server.admin("GetLineage", lineage(ARTIFACT, BOTH))
    assert all(name.startswith("projects/p/") for name in names(whole.nodes))
    viewer = await server.caller("other", "viewer")
    for method, asked in (("GetLineage", lineage(ARTIFACT)), ("GetImpact", impact(ARTIFACT))):
        with pytest.raises(Failure) as found:
            await viewer(method, asked)
        assert found.value.reason == "PROJECT_UNKNOWN"


async def test_a_level_costs_one_statement(server: Server) -> None:
    """However many nodes it has; one opens the call, and one says that the depth left something out."""
    await two_runs(server)
    seen: list[str] = []
    with executing(server, seen.append):
        whole = await server.admin("GetLineage", lineage(SOURCE, BOTH))
        levels = max(node.depth for node in whole.nodes) + 1
        walked_statements = [each for each in seen if "lineage_edge" in each]
        seen.clear()
        await server.admin("GetLineage", lineage(SOURCE, max_depth=2))
        short = [each for each in seen if "lineage_edge" in each]
    assert len(walked_statements) == levels
    assert len(short) == 3


@pytest.fixture(scope="module")
async def shared(
    postgres: EmbeddedPostgres, admin: AsyncEngine, template: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Server]:
    """A server for graphs, with a project `p`."""
    async with served(postgres, admin, template, tmp_path_factory.mktemp("data")) as found:
        await found.project("p")
        yield found


async def written(server: Server, links: Iterable[tuple[str, str, str]]) -> None:
    """Writes edges under an entry like that of the project's creation."""
    edges = [document.dump(LineageEdge(s, LineageRelation(r), o)) for s, r, o in links]
    async with server.running.engine.connect() as connection, connection.begin():
        await connection.execute(text("SELECT set_config('animus.project_id', 'p', true)"))
        await connection.execute(_WRITE, {"entry": secrets.token_hex(16), "edges": edges})


_WRITE = text(
    "WITH entry AS (INSERT INTO animus.audit_entry (project_id, document) SELECT 'p', convert_to(replace("
    "convert_from(document, 'UTF8'), entry_id, :entry), 'UTF8') FROM animus.audit_entry WHERE project_id = 'p' LIMIT 1)"
    " INSERT INTO animus.lineage_edge (project_id, entry_id, document)"
    " SELECT 'p', :entry, * FROM unnest(CAST(:edges AS bytea[]))"
)


async def test_random_graphs_in_the_database_are_walked_as_in_memory(shared: Server) -> None:
    """Every direction, several depths, limits and kinds, over gRPC, against the same walk on a list."""
    chance = random.Random(7)
    nodes = [
        f"projects/p/{prefix}/{number}"
        for number, prefix in itertools.product(range(12), ("runs", "artifacts", "runs/x/steps/s/attempts"))
    ]
    relations = [str(each) for each in LineageRelation]
    links = {(chance.choice(nodes), chance.choice(relations), chance.choice(nodes)) for _ in range(60)}
    await written(shared, links)
    asked = 0
    for direction, depth, limit in itertools.product(LineageDirection, (1, 2, 50), (4, 1_000)):
        for kinds in ([], [LineageNodeKind.RUN], [LineageNodeKind.ARTIFACT, LineageNodeKind.STEP_ATTEMPT]):
            start = chance.choice(sorted({link[0] for link in links}))
            more = chance.sample(sorted({link[2] for link in links}), 2)
            number = lineage_pb2.LineageDirection.Value(f"LINEAGE_DIRECTION_{direction.name}")
            numbers = [KIND[each] for each in kinds]
            request = lineage(start, number, max_depth=depth, max_nodes=limit, kinds=numbers, more_nodes=more)
            after: Place | None = START
            while after:
                found = await shared.admin("GetLineage", request)
                starts = list(dict.fromkeys([start, *more]))
                wanted = walked(links, starts, direction, depth, frozenset(kinds), limit, after)
                page = wanted.page()
                assert [(node.depth, node.name) for node in found.nodes] == list(page.nodes)
                assert [(e.subject, _relation(e.relation), e.object) for e in found.edges] == list(page.links)
                assert found.truncated == wanted.truncated
                assert bool(found.next_page_token) == bool(page.next_place)
                request.page_token, after = found.next_page_token, page.next_place
                asked += 1
    assert asked > 100
    assert leaving(links, nodes, LineageDirection.BOTH) == sorted(links)


def _relation(number: Any) -> str:
    return lineage_pb2.LineageRelation.Name(number).removeprefix("LINEAGE_RELATION_").lower()
