"""Changes that write more records than a leaf can name: one manifest stands for all, and the log holds its digest."""

import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from hashlib import sha256

import pytest
from domain import trees
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from animus.domain import document
from animus.domain.audit import RecordManifest
from animus.store.embedded import EmbeddedPostgres
from animus.v1 import audit_pb2, log_pb2, runtime_pb2
from service.auditor import Answer, ask, entries_of, head_of, includes
from service.conftest import Server
from service.requests import create_run, event, pipeline, plan_run, prepare, report, step
from service.shared import Grown, served

LEAF = 65_535  # bytes that a C2SP entry bundle can carry of an entry
STEPS = 500


@dataclass(frozen=True, slots=True)
class Started:
    """A run whose first step was started."""

    grown: Grown
    run_id: str

    async def record(self, names: list[str], *, refused: int = 0) -> Answer:
        """Records a point of each name; some before them for a step that does not run."""
        request = runtime_pb2.RecordMetricsRequest(
            project_id=self.grown.project_id, request_id=secrets.token_hex(8), run_id=self.run_id
        )
        for number, name in enumerate([*["refused"] * refused, *names]):
            ran = "s1" if number < refused else "s0"
            point = request.metrics.add(step=ran, attempt=1, name=name, index=number, value="0.5")
            point.occur_time.CopyFrom(event("s0", 1, "STARTED").occur_time)
        answer = await ask(self.grown.server.admin, "RecordMetrics", request)
        assert answer.failure is None
        return answer


@pytest.fixture(scope="module")
async def server(
    postgres: EmbeddedPostgres, admin: AsyncEngine, template: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Server]:
    """The server of these tests."""
    async with served(postgres, admin, template, tmp_path_factory.mktemp("data")) as found:
        yield found


async def planned(server: Server, steps: int) -> tuple[Grown, str]:
    """A planned run of so many steps, each of which reads a dataset."""
    grown = await Grown.new(server)
    reads = {"datasets": [{"name": "data", "datasetRef": "data"}]}
    tree = pipeline(*(step(f"s{number}", inputs=reads) for number in range(steps)))
    spec = await prepare(server.admin, grown.project_id, tree)
    run = await server.admin("CreateRun", create_run(spec, project_id=grown.project_id))
    await server.admin("PlanRun", plan_run(run.run_id, project_id=grown.project_id))
    return grown, run.run_id


@pytest.fixture
async def started(server: Server) -> Started:
    """A run of two steps, the first of which runs."""
    grown, run_id = await planned(server, 2)
    request = report(run_id, event("s0", 1, "STARTED"), project_id=grown.project_id)
    await server.admin("ReportStepEvents", request)
    return Started(grown, run_id)


async def logged(grown: Grown, receipt: bytes) -> audit_pb2.AuditEntry:
    """The entry of a receipt, proven by its bytes."""
    entry_id = receipt.split(b"\n")[3].decode()
    wait = log_pb2.WaitForInclusionRequest(project_id=grown.project_id, entry_id=entry_id)
    proof = await grown.server.admin("WaitForInclusion", wait)
    head = head_of(proof.checkpoint.note, await grown.key())
    request = log_pb2.GetEntryBundleRequest(project_id=grown.project_id, width=head.size)
    data = entries_of((await grown.server.admin("GetEntryBundle", request)).entries)[proof.index]
    assert len(data) <= LEAF
    assert includes(head.root, head.size, proof.index, trees.leaf(data), proof.hashes)
    entry: audit_pb2.AuditEntry = await grown.server.admin(
        "GetAuditEntry", audit_pb2.GetAuditEntryRequest(project_id=grown.project_id, entry_id=entry_id)
    )
    assert entry.document == data
    return entry


async def written(grown: Grown, entry: audit_pb2.AuditEntry) -> dict[str, list[tuple[str, bytes]]]:
    """Digest and bytes of each record that a change has written, by table; digests are taken here."""
    found: dict[str, list[tuple[str, bytes]]] = {}
    async with grown.server.running.engine.connect() as connection:
        await connection.execute(
            text("SELECT set_config('animus.project_id', :project, true)"), {"project": grown.project_id}
        )
        for table in ("metric", "run_event", "lineage_edge", "artifact", "record_manifest"):
            rows = await connection.execute(
                text(f"SELECT document FROM animus.{table} WHERE entry_id = :entry"), {"entry": entry.entry_id}
            )
            documents = rows.scalars().all()
            if documents:
                found[table] = [(f"sha256:{sha256(each).hexdigest()}", each) for each in documents]
    return found


async def manifest_of(grown: Grown, entry: audit_pb2.AuditEntry) -> list[tuple[str, str]]:
    """Kind and digest of each record in an entry's manifest, which is the one record that the entry names."""
    ((digest, data),) = (await written(grown, entry))["record_manifest"]
    assert [(each.kind, each.digest) for each in entry.records] == [("record_manifest", digest)]
    manifest = document.load(data, RecordManifest)
    return [(each.kind, each.digest) for each in manifest.records]


async def check_complete(grown: Grown, entry: audit_pb2.AuditEntry) -> list[tuple[str, str]]:
    """The manifest, which names exactly what was written beside it."""
    listed = await manifest_of(grown, entry)
    rows = await written(grown, entry)
    del rows["record_manifest"]
    assert sorted(listed) == sorted((table, digest) for table, found in rows.items() for digest, _ in found)
    return listed


async def test_a_thousand_points_are_named_in_a_manifest(started: Started) -> None:
    """Each by its digest, in the order of the batch; the answer, its receipt and a retry are as for any change."""
    names = [f"loss.{number}" for number in range(1_000)]
    answer = await started.record(names)
    assert [each.outcome for each in answer.reply.results] == [runtime_pb2.ITEM_OUTCOME_ACCEPTED] * 1_000
    entry = await logged(started.grown, answer.receipt)
    assert (entry.action, entry.outcome) == ("run.record_metrics", audit_pb2.AUDIT_OUTCOME_ACCEPTED)
    listed = await check_complete(started.grown, entry)
    assert len(listed) == 1_000
    documents = dict((await written(started.grown, entry))["metric"])
    assert [f'"{name}"'.encode() in documents[digest] for name, (_, digest) in zip(names, listed, strict=True)] == [
        True
    ] * 1_000


async def test_a_thousand_events_with_their_edges_are_named_in_a_manifest(server: Server) -> None:
    """500 steps start and end in one call: 1,000 events, and the edges of what each start binds."""
    grown, run_id = await planned(server, STEPS)
    events = [event(f"s{number}", 1, kind) for number in range(STEPS) for kind in ("STARTED", "SUCCEEDED")]
    answer = await ask(server.admin, "ReportStepEvents", report(run_id, *events, project_id=grown.project_id))
    assert answer.failure is None
    assert {each.outcome for each in answer.reply.results} == {runtime_pb2.ITEM_OUTCOME_ACCEPTED}
    listed = await check_complete(grown, await logged(grown, answer.receipt))
    kinds = [kind for kind, _ in listed]
    assert kinds.count("run_event") == 2 * STEPS
    assert kinds.count("lineage_edge") >= STEPS
    assert len(set(listed)) == len(listed)


async def test_a_manifest_is_made_exactly_where_it_is_needed(started: Started) -> None:
    """The most points whose digests a leaf can carry are named in it; with one more they are in a manifest."""
    sizes = []
    for count in (1, 2):
        entry = await logged(started.grown, (await started.record([f"a{count}"] * count)).receipt)
        assert len(entry.records) == count
        sizes.append(len(entry.document))
    each = sizes[1] - sizes[0]
    most = 1 + (LEAF - sizes[0]) // each
    assert 100 < most < 1_000
    entry = await logged(started.grown, (await started.record(["b"] * most)).receipt)
    assert len(entry.records) == most
    assert LEAF - each < len(entry.document) <= LEAF
    assert "record_manifest" not in await written(started.grown, entry)
    entry = await logged(started.grown, (await started.record(["c"] * (most + 1))).receipt)
    assert len(await check_complete(started.grown, entry)) == most + 1
    assert len(entry.document) < sizes[1]


async def test_what_was_refused_stays_in_the_entry_beside_a_manifest(started: Started) -> None:
    """500 points that are refused and 500 that are written: each refusal with its place and reason."""
    answer = await started.record([f"loss.{number}" for number in range(500)], refused=500)
    entry = await logged(started.grown, answer.receipt)
    assert [each.index for each in entry.refusals] == list(range(500))
    assert {each.reason for each in entry.refusals} == {answer.reply.results[0].reason}
    assert len(await check_complete(started.grown, entry)) == 500


async def test_the_largest_number_of_refusals_fits_a_leaf(started: Started) -> None:
    """1,000 points of a step that does not run: no record, and an entry that says so of each."""
    answer = await started.record([], refused=1_000)
    entry = await logged(started.grown, answer.receipt)
    assert (len(entry.refusals), list(entry.records)) == (1_000, [])
    assert entry.outcome == audit_pb2.AUDIT_OUTCOME_REFUSED
