"""How fast lineage answers, by the size of its graph: `python -m benchmarks.lineage [--edges 10000 100000]`.

Runs in layers, each reading as dataset versions what runs of the layer before wrote, are put into a database as a
server writes them, and asked about over gRPC, one call in flight. Times and numbers of statements go to stdout as JSON.
"""

import argparse
import hashlib
import json
import os
import platform
import random
import secrets
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import uvloop
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from animus.domain import document, merkle
from animus.domain.access import Role, principal_of
from animus.domain.audit import AuditEntry, AuditOutcome, AuditRecord
from animus.domain.dataset import DatasetVersion
from animus.domain.lineage import LineageEdge, LineageRelation
from animus.domain.names import (
    artifact_name,
    attempt_name,
    commit_name,
    dataset_version_name,
    environment_lock_name,
    pipeline_spec_name,
    run_name,
)
from animus.keyring import Keyring
from animus.service.calls import Caller
from animus.service.lineage import LineageService
from animus.service.log_identity import LogIdentity
from animus.service.pages import Pages
from animus.store.engine import make_engine
from animus.store.log import LogStore
from animus.store.unit_of_work import UnitOfWork
from animus.v1 import lineage_pb2 as pb
from animus.v1 import lineage_pb2_grpc
from benchmarks.log import published
from benchmarks.stack import PRODUCT, Machine, Served, machine, serving
from benchmarks.work import DIGEST, prepare

PROJECT = "p"
LAYERS = 12
SOURCES = 20  # dataset versions that no run wrote
READ = 2  # versions that a run reads
STEPS = 3  # of a run, each reading what the one before wrote
RUNS_OF_SPEC = 50  # of an environment, too
RUNS_OF_COMMIT = 10
EDGES_OF_RUN = 3 + READ + STEPS * 3 - 1 + READ
PART = 200  # changes in one transaction
MAX_MESSAGE = 256 << 20
WHOLE = {"max_depth": 1_000, "max_nodes": 10_000}


@dataclass(frozen=True, slots=True)
class Change:
    """What one call writes."""

    resource: str
    edges: tuple[LineageEdge, ...]
    versions: tuple[DatasetVersion, ...]


@dataclass(frozen=True, slots=True)
class Graph:
    """Where walks may start."""

    sources: list[str]
    versions: list[str]
    runs: list[str]
    artifacts: list[str]


def _digest(*parts: object) -> str:
    return "sha256:" + hashlib.sha256(repr(parts).encode()).hexdigest()


def _version(digest: str) -> DatasetVersion:
    return DatasetVersion("data", digest, 1, "text/csv", -1, "", "", (), (), (), ())


def new_changes(edges: int, chance: random.Random, graph: Graph) -> Iterator[Change]:
    """The changes of so many edges or a few more; names go into the graph."""
    runs = edges // EDGES_OF_RUN + 1
    before = [_digest("source", number) for number in range(SOURCES)]
    graph.sources.extend(dataset_version_name(PROJECT, "data", digest) for digest in before)
    yield Change("sources", (), tuple(map(_version, before)))
    wrote: list[str] = []
    used, started, generated = (
        LineageRelation.USED,
        LineageRelation.WAS_STARTED_BY,
        LineageRelation.WAS_GENERATED_BY,
    )
    for number in range(runs):
        if number and number % (runs // LAYERS + 1) == 0:
            before, wrote = wrote, []
        run_id = hashlib.md5(str(number).encode(), usedforsecurity=False).hexdigest()
        run = run_name(PROJECT, run_id)
        graph.runs.append(run)
        read = [dataset_version_name(PROJECT, "data", digest) for digest in chance.sample(before, READ)]
        bound = [
            pipeline_spec_name(PROJECT, _digest("spec", number // RUNS_OF_SPEC)),
            environment_lock_name(PROJECT, _digest("lock", number // RUNS_OF_SPEC)),
            commit_name(PROJECT, "https://git.test/demo", _digest(number // RUNS_OF_COMMIT)[7:47]),
        ]
        yield Change(run, tuple(LineageEdge(run, used, name) for name in (*bound, *read)), ())
        for step in range(STEPS):
            attempt = attempt_name(PROJECT, run_id, f"s{step}", 1)
            inputs = read if step == 0 else [artifact_name(PROJECT, _digest(number, step - 1))]
            yield Change(
                run,
                (LineageEdge(attempt, started, run), *(LineageEdge(attempt, used, name) for name in inputs)),
                (),
            )
            artifact = artifact_name(PROJECT, _digest(number, step))
            graph.artifacts.append(artifact)
            yield Change(run, (LineageEdge(artifact, generated, attempt),), ())
        made = _digest(number, STEPS - 1)
        wrote.append(made)
        version = dataset_version_name(PROJECT, "data", made)
        graph.versions.append(version)
        yield Change(version, (), (_version(made),))


async def fill(engine: AsyncEngine, keyring: Keyring, changes: Iterator[Change]) -> int:
    """Writes changes as a server does: entries, records and queue rows together. Gives the number of edges."""
    count = 0
    while part := [change for _, change in zip(range(PART), changes, strict=False)]:
        ids = [secrets.token_hex(16) for _ in part]
        edges = [(one, document.dump(edge)) for one, change in zip(ids, part, strict=True) for edge in change.edges]
        versions = [
            (one, document.dump(each)) for one, change in zip(ids, part, strict=True) for each in change.versions
        ]
        entries = [document.dump(_entry(one, change)) for one, change in zip(ids, part, strict=True)]
        hashes = [merkle.leaf_hash(data) for data in entries]
        values = {
            "project_id": PROJECT,
            "documents": entries,
            "entries": ids,
            "hashes": hashes,
            "seals": [keyring.seal(PROJECT, one, leaf) for one, leaf in zip(ids, hashes, strict=True)],
            "edge_entries": [one for one, _ in edges],
            "edges": [data for _, data in edges],
            "version_entries": [one for one, _ in versions],
            "versions": [data for _, data in versions],
        }
        async with engine.connect() as connection, connection.begin():
            await connection.execute(_SCOPE, values)
            await connection.execute(_UNFLUSHED)
            await connection.execute(_FILL, values)
        count += len(edges)
    return count


def _entry(entry_id: str, change: Change) -> AuditEntry:
    """An entry that says as much as a server's; its time is that of any other."""
    kinds = ["lineage_edge"] * len(change.edges) + ["dataset_version"] * len(change.versions)
    return AuditEntry(
        project_id=PROJECT,
        entry_id=entry_id,
        principal="admin",
        action="run.report_step_events",
        resource=change.resource,
        method="animus.v1.RuntimeService/ReportStepEvents",
        request_id=f"request-{entry_id}",
        request_digest=DIGEST,
        time="2026-01-02T03:04:05.000000Z",
        outcome=AuditOutcome.ACCEPTED,
        reason="",
        records=tuple(AuditRecord(kind, DIGEST) for kind in kinds),
        refusals=(),
        reply_digest=DIGEST,
    )


def questions(graph: Graph) -> dict[str, tuple[str, list[str], dict[str, Any]]]:
    """Each question: the method, where it may start, and the rest of the request."""
    up, down = pb.LINEAGE_DIRECTION_UPSTREAM, pb.LINEAGE_DIRECTION_DOWNSTREAM
    runs_only = {"kinds": [pb.LINEAGE_NODE_KIND_RUN]}
    return {
        "upstream of an artifact, depth 5": ("GetLineage", graph.artifacts, {"direction": up, "max_depth": 5}),
        "upstream of a run, depth 5": ("GetLineage", graph.runs, {"direction": up, "max_depth": 5}),
        "downstream of a version, depth 5": ("GetLineage", graph.versions, {"direction": down, "max_depth": 5}),
        "downstream of a source, depth 5": ("GetLineage", graph.sources, {"direction": down, "max_depth": 5}),
        "both ways from an artifact, depth 5": (
            "GetLineage",
            graph.artifacts,
            {"direction": pb.LINEAGE_DIRECTION_BOTH, "max_depth": 5},
        ),
        "upstream of a run, to the end": ("GetLineage", graph.runs[-1_000:], {"direction": up, **WHOLE}),
        "upstream of a run, to the end, runs only": (
            "GetLineage",
            graph.runs[-1_000:],
            {"direction": up, **WHOLE, **runs_only},
        ),
        "downstream of a source, up to 10,000 nodes": (
            "GetLineage",
            graph.sources,
            {"direction": down, **WHOLE},
        ),
        "the same as of a time": ("GetLineage", graph.sources, {"direction": down, **WHOLE, "as_of_time": _NOW}),
        "impact of a version": ("GetImpact", graph.versions, {}),
        "impact of a source": ("GetImpact", graph.sources, {}),
    }


def _request(method: str, start: str, rest: dict[str, Any]) -> Any:
    kind = pb.GetLineageRequest if method == "GetLineage" else pb.GetImpactRequest
    return kind(project_id=PROJECT, node=start, **rest)


async def ask(
    stub: Any, served: Served, method: str, starts: Sequence[str], rest: dict[str, Any], seconds: float, most: int
) -> dict[str, Any]:
    """Asks from random starts for some seconds, or so often, and at least 20 times."""
    chance = random.Random(1)  # noqa: S311 (the same in each measurement)
    times: list[float] = []
    nodes: list[int] = []
    end = time.perf_counter() + seconds
    for number in range(most + 5):
        if number >= 25 and time.perf_counter() > end:
            break
        request = _request(method, chance.choice(starts), rest)
        began = time.perf_counter()
        reply = await served.call(getattr(stub, method), request)
        if number >= 5:  # the first prepare statements
            times.append(time.perf_counter() - began)
            nodes.append(len(reply.nodes) if method == "GetLineage" else sum(each.count for each in reply.counts))
    times.sort()
    return {
        "calls": len(times),
        "nodes": {"median": round(statistics.median(nodes)), "most": max(nodes)},
        "ms": {
            "p50": round(statistics.median(times) * 1e3, 1),
            "p99": round(times[max(0, -(-len(times) * 99 // 100) - 1)] * 1e3, 1),
        },
    }


async def statements(engine: AsyncEngine, keyring: Keyring, method: str, start: str, rest: dict[str, Any]) -> int:
    """How many statements a call sends, counted as the same service sends them from here."""
    count = 0

    def executed(*_: object) -> None:
        nonlocal count
        count += 1

    work = UnitOfWork(engine, lambda: secrets.token_hex(16), lambda *_: b"", None)
    service = LineageService(work, Pages(b""), LogIdentity(LogStore(engine, "bench"), keyring))
    caller = Caller(principal_of("bench", Role.ADMIN, PROJECT), method)
    call: Callable[..., Awaitable[Any]] = getattr(service, method)
    event.listen(engine.sync_engine, "before_cursor_execute", executed)
    try:
        await call(_request(method, start, rest), caller)
    finally:
        event.remove(engine.sync_engine, "before_cursor_execute", executed)
    return count


async def measure(here: Machine, edges: int, seconds: float, most: int) -> dict[str, Any]:
    """One graph, on a server of its own."""
    async with serving(here, f"lineage_{edges}", PRODUCT) as served:
        await prepare(served, [PROJECT], 0)
        graph = Graph([], [], [], [])
        engine = make_engine(served.database.service_url, pool_size=1, pgbouncer=False)
        changes = new_changes(edges, random.Random(0), graph)  # noqa: S311 (the same in each measurement)
        began = time.perf_counter()
        keyring = Keyring(served.folder / "log")
        count = await fill(engine, keyring, changes)
        filled = time.perf_counter() - began
        await published(served)
        admin = create_async_engine(served.database.admin_url, isolation_level="AUTOCOMMIT")
        async with admin.connect() as connection:
            await connection.execute(text("VACUUM (ANALYZE)"))
        await admin.dispose()
        print(f"{count} edges in {filled:.0f} s", file=sys.stderr)
        found = {}
        target = json.loads((served.folder / "server.json").read_text())["grpc"]
        options = [("grpc.max_receive_message_length", MAX_MESSAGE)]
        async with grpc.aio.insecure_channel(target, options=options) as channel:
            stub: Any = lineage_pb2_grpc.LineageServiceStub(channel)
            for name, (method, starts, rest) in questions(graph).items():
                row = await ask(stub, served, method, starts, rest, seconds, most)
                some = (starts[0], starts[len(starts) // 2], starts[-1])
                row["statements"] = max([await statements(engine, keyring, method, start, rest) for start in some])
                print(f"{name}: {row}", file=sys.stderr)
                found[name] = row
        await engine.dispose()
        return {"edges": count, "runs": len(graph.runs), "questions": found}


async def run(sizes: Sequence[int], seconds: float, most: int) -> dict[str, Any]:
    """On a PostgreSQL of its own."""
    async with machine() as here:
        found = [await measure(here, size, seconds, most) for size in sizes]
    return {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
        "load": round(os.getloadavg()[0], 1),
        "graphs": found,
    }


_NOW = {"seconds": 2_000_000_000}
_SCOPE = text("SELECT set_config('animus.project_id', :project_id, true)")
_UNFLUSHED = text("SET LOCAL synchronous_commit = off")
_FILL = text(
    "WITH entries AS (INSERT INTO animus.audit_entry (project_id, document)"
    " SELECT :project_id, unnest(CAST(:documents AS bytea[])))"
    ", versions AS (INSERT INTO animus.dataset_version (project_id, entry_id, document)"
    " SELECT :project_id, * FROM unnest(CAST(:version_entries AS text[]), CAST(:versions AS bytea[])))"
    ", edges AS (INSERT INTO animus.lineage_edge (project_id, entry_id, document)"
    " SELECT :project_id, * FROM unnest(CAST(:edge_entries AS text[]), CAST(:edges AS bytea[])))"
    " INSERT INTO animus.audit_queue (project_id, entry_id, leaf_hash, seal)"
    " SELECT :project_id, * FROM unnest(CAST(:entries AS text[]), CAST(:hashes AS bytea[]), CAST(:seals AS bytea[]))"
)


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.lineage", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--edges", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--seconds", type=float, default=10, help="for each question")
    parser.add_argument("--calls", type=int, default=500, help="at most, for each question")
    arguments = parser.parse_args()
    print(json.dumps(uvloop.run(run(arguments.edges, arguments.seconds, arguments.calls)), indent=2))


if __name__ == "__main__":
    main()
