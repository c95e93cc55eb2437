"""What the audit log costs, and how fast it is: `python -m benchmarks.log [rpc|integrator|latency|proofs|all]`.

Everything runs on one machine, on Unix sockets and loopback, on a PostgreSQL of its own with fsync on, and ends by
itself. Ratios are of medians of interleaved rounds; figures in seconds and rates are of this machine.
"""

import argparse
import asyncio
import hashlib
import json
import os
import platform
import random
import secrets
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import uvloop
from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import create_async_engine

from animus.domain import document, merkle
from animus.domain.audit import AuditEntry, AuditOutcome, AuditRecord
from animus.keyring import Keyring
from animus.store.embedded import OWNER, EmbeddedPostgres, database_grants
from animus.store.engine import make_engine
from animus.store.log import LogStore
from animus.store.migrate import migrate
from animus.store.signer_state import SignerState
from animus.v1 import (
    dataset_pb2,
    dataset_pb2_grpc,
    environment_pb2,
    environment_pb2_grpc,
    log_pb2,
    log_pb2_grpc,
    pipeline_pb2,
    pipeline_pb2_grpc,
    project_pb2,
    project_pb2_grpc,
    run_pb2,
    run_pb2_grpc,
)
from animus.workers.integrator import Integrator
from animus.workers.publisher import Publisher
from benchmarks.unaudited import strip

IN_FLIGHT = 32
DIGEST = "sha256:" + "1" * 64
TIME = "2026-01-02T03:04:05.000000Z"

Request = Callable[[str], Awaitable[Any]]


@dataclass(slots=True)
class Machine:
    """A PostgreSQL and the folders of a benchmark."""

    folder: Path
    postgres: EmbeddedPostgres

    async def database(self, name: str) -> dict[str, str]:
        """A new migrated database, as each role reaches it."""
        urls = {
            role: make_url(url).set(database=name).render_as_string(hide_password=False)
            for role, url in (
                ("owner", self.postgres.owner_url),
                ("service", self.postgres.service_url),
                ("admin", self.postgres.admin_url),
            )
        }
        engine = create_async_engine(self.postgres.admin_url, isolation_level="AUTOCOMMIT")
        async with engine.connect() as admin:
            for statement in (f"CREATE DATABASE {name} OWNER {OWNER}", *database_grants(name)):
                await admin.execute(text(statement))
        await engine.dispose()
        await migrate(urls["owner"])
        return urls


@asynccontextmanager
async def machine() -> AsyncIterator[Machine]:
    """A PostgreSQL on the disk of temporary files, with fsync on."""
    folder = Path(tempfile.mkdtemp(prefix="animus-bench-"))
    os.chmod(folder, 0o711)  # noqa: PTH101, S103 (PostgreSQL runs as another account when we are root)
    postgres = EmbeddedPostgres.start(folder / "postgres")
    try:
        yield Machine(folder, postgres)
    finally:
        postgres.stop()
        shutil.rmtree(folder)


@dataclass(slots=True)
class Served:
    """A server in a process of its own, and calls to it."""

    channel: grpc.aio.Channel
    metadata: tuple[tuple[str, str], ...]

    async def call(self, method: Any, request: Any) -> Any:
        """The reply."""
        return await method(request, metadata=self.metadata, timeout=60)


@asynccontextmanager
async def serving(folder: Path, database_url: str, module: str) -> AsyncIterator[Served]:
    """A server until the context ends."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ANIMUS_")}
    environment |= {
        "ANIMUS_DATA_DIR": str(folder),
        "ANIMUS_DATABASE_URL": database_url,
        "ANIMUS_GRPC_PORT": "0",
        "ANIMUS_GATEWAY": "false",
        "ANIMUS_METRICS_PORT": "0",
        "ANIMUS_LOG_LEVEL": "warning",
    }
    command = [sys.executable, "-m", *module.split()]
    process = await asyncio.create_subprocess_exec(*command, env=environment, stdin=subprocess.DEVNULL)
    try:
        state = folder / "server.json"
        while not state.exists():
            if process.returncode is not None:
                raise SystemExit(f"{module} ended with {process.returncode}")
            await asyncio.sleep(0.05)
        address = json.loads(state.read_text())["grpc"]
        token = (folder / "admin.token").read_text().strip()
        async with grpc.aio.insecure_channel(address) as channel:
            yield Served(channel, (("authorization", f"Bearer {token}"),))
    finally:
        if process.returncode is None:
            process.terminate()
        await asyncio.wait_for(process.wait(), 30)


async def prepare(served: Served, projects: Sequence[str]) -> dict[str, run_pb2.RunSpec]:
    """Makes projects, and in each what a run binds."""
    specs = {}
    for project in projects:
        await served.call(
            project_pb2_grpc.ProjectServiceStub(served.channel).CreateProject,
            project_pb2.CreateProjectRequest(
                project_id=project,
                request_id=project,
                project=project_pb2.Project(project_id=project, display_name="", description=""),
            ),
        )
    for project in projects:
        datasets = dataset_pb2_grpc.DatasetServiceStub(served.channel)
        await served.call(datasets.CreateDataset, new_dataset(project, "data"))
        await served.call(
            datasets.RegisterDatasetVersion,
            dataset_pb2.RegisterDatasetVersionRequest(
                project_id=project,
                request_id="version",
                dataset_version=dataset_pb2.DatasetVersion(
                    dataset_id="data", content_digest=DIGEST, size_bytes=1, media_type="text/csv", uri=""
                ),
            ),
        )
        lock = await served.call(
            environment_pb2_grpc.EnvironmentServiceStub(served.channel).RegisterEnvironmentLock,
            environment_pb2.RegisterEnvironmentLockRequest(
                project_id=project,
                request_id="environment",
                environment_lock=environment_pb2.EnvironmentLock(
                    python_version="3.11.7", platform_os="linux", platform_architecture="x86_64", lock_file_digest=""
                ),
            ),
        )
        pipeline = await served.call(
            pipeline_pb2_grpc.PipelineServiceStub(served.channel).RegisterPipelineSpec,
            pipeline_pb2.RegisterPipelineSpecRequest(
                project_id=project, request_id="pipeline", pipeline_spec=new_pipeline()
            ),
        )
        specs[project] = run_pb2.RunSpec(
            api_version="animus/v1",
            kind="Run",
            pipeline_spec_digest=pipeline.record.digest,
            datasets=[run_pb2.DatasetBinding(dataset_ref="data", dataset_id="data", content_digest=DIGEST)],
            commit=run_pb2.Commit(repository="https://git.test/demo", sha="c" * 40),
            environment_lock_digest=lock.record.digest,
            parameters=[run_pb2.Parameter(name="seed", type=run_pb2.PARAMETER_TYPE_INT, value="7")],
        )
    return specs


def new_dataset(project: str, dataset_id: str) -> dataset_pb2.CreateDatasetRequest:
    """A request for a dataset."""
    return dataset_pb2.CreateDatasetRequest(
        project_id=project,
        request_id=f"dataset-{dataset_id}",
        dataset=dataset_pb2.Dataset(dataset_id=dataset_id, description=""),
    )


def new_pipeline() -> pipeline_pb2.PipelineSpec:
    """A pipeline of one step."""
    from google.protobuf import json_format

    step = {
        "name": "train",
        "image": f"registry.test/train@sha256:{'a' * 64}",
        "command": ["python"],
        "args": [],
        "inputs": {"datasets": [{"name": "data", "datasetRef": "data"}], "artifacts": []},
        "outputs": {"artifacts": []},
        "env": [],
        "resources": {"cpu": "1", "memory": "1Gi", "gpu": 0},
        "retryPolicy": {
            "maxAttempts": 1,
            "retryOn": [],
            "backoff": {"type": "BACKOFF_TYPE_FIXED", "initialSeconds": 1, "maxSeconds": 1, "multiplier": "1"},
        },
    }
    tree = {
        "apiVersion": "animus/v1",
        "kind": "Pipeline",
        "metadata": {"name": "bench", "description": "", "labels": []},
        "spec": {"steps": [step], "dependencies": []},
    }
    return json_format.ParseDict(tree, pipeline_pb2.PipelineSpec())


async def rate(projects: Sequence[str], calls: int, send: Request) -> float:
    """Calls a second, with so many in flight."""
    left = iter(range(calls))

    async def worker() -> None:
        for number in left:
            await send(projects[number % len(projects)])

    began = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(IN_FLIGHT)))
    return calls / (time.perf_counter() - began)


def senders(served: Served, specs: dict[str, run_pb2.RunSpec]) -> dict[str, Request]:
    """A way to make a new request of each method that is measured."""
    datasets = dataset_pb2_grpc.DatasetServiceStub(served.channel)
    runs = run_pb2_grpc.RunServiceStub(served.channel)

    async def create_dataset(project: str) -> Any:
        return await served.call(datasets.CreateDataset, new_dataset(project, f"d{secrets.token_hex(8)}"))

    async def create_run(project: str) -> Any:
        request = run_pb2.CreateRunRequest(project_id=project, request_id=secrets.token_hex(8), run_spec=specs[project])
        return await served.call(runs.CreateRun, request)

    return {"CreateDataset": create_dataset, "CreateRun": create_run}


async def measure_rpc(calls: int, rounds: int) -> dict[str, Any]:
    """Audited against unaudited, interleaved, on one project and on 64."""
    found: dict[str, Any] = {}
    async with machine() as here:
        for count in (1, 64):
            projects = [f"p{number}" for number in range(count)]
            async with AsyncExitStack() as stack:
                ways: dict[str, dict[str, Request]] = {}
                for name, module in (("audited", "animus.cli serve"), ("unaudited", "benchmarks.unaudited")):
                    urls = await here.database(f"{name}_{count}")
                    folder = here.folder / f"{name}-{count}"
                    folder.mkdir()
                    if name == "unaudited":  # the instance is founded by the product itself, then stripped
                        async with serving(folder, urls["service"], "animus.cli serve"):
                            pass
                        await strip(urls["admin"], projects)
                    served = await stack.enter_async_context(serving(folder, urls["service"], module))
                    ways[name] = senders(served, await prepare(served, projects))
                for method in ways["audited"]:
                    rates: dict[str, list[float]] = {"audited": [], "unaudited": []}
                    for ways_of in ways.values():
                        await rate(projects, calls // 4, ways_of[method])
                    for _ in range(rounds):
                        for name, ways_of in ways.items():
                            rates[name].append(await rate(projects, calls, ways_of[method]))
                    audited, unaudited = (statistics.median(rates[name]) for name in ("audited", "unaudited"))
                    found[f"{method}, {count} projects"] = {
                        "audited_per_second": round(audited),
                        "unaudited_per_second": round(unaudited),
                        "ratio": round(audited / unaudited, 3),
                    }
    return found


def entry_of(project: str, number: int) -> tuple[str, bytes]:
    """The id and bytes of an audit entry of usual size."""
    entry_id = hashlib.sha256(f"{project}/{number}".encode()).hexdigest()[:32]
    return entry_id, document.dump(
        AuditEntry(
            project_id=project,
            entry_id=entry_id,
            principal="admin",
            action="run.create",
            resource=f"projects/{project}/runs/{entry_id}",
            method="animus.v1.RunService/CreateRun",
            request_id=entry_id,
            request_digest=DIGEST,
            time=TIME,
            outcome=AuditOutcome.ACCEPTED,
            reason="",
            records=tuple(AuditRecord(kind, DIGEST) for kind in ("run", "lineage_edge", "lineage_edge")),
            refusals=(),
            reply_digest=DIGEST,
        )
    )


async def fill(engine: Any, keyring: Keyring, project: str, first: int, count: int) -> None:
    """Queues entries of a project, as a server would."""
    statement = text(
        "WITH e AS (INSERT INTO animus.audit_entry (project_id, document)"
        " SELECT :project, unnest(CAST(:documents AS bytea[])))"
        " INSERT INTO animus.audit_queue (project_id, entry_id, leaf_hash, seal)"
        " SELECT :project, * FROM unnest(CAST(:ids AS text[]), CAST(:hashes AS bytea[]), CAST(:seals AS bytea[]))"
    )
    for start in range(first, first + count, 5_000):
        entries = [entry_of(project, number) for number in range(start, min(start + 5_000, first + count))]
        hashes = [merkle.leaf_hash(data) for _, data in entries]
        seals = [
            keyring.seal(project, entry_id, leaf_hash) for (entry_id, _), leaf_hash in zip(entries, hashes, strict=True)
        ]
        async with engine.connect() as connection, connection.begin():
            await connection.execute(text("SELECT set_config('animus.project_id', :p, true)"), {"p": project})
            await connection.execute(
                statement,
                {
                    "project": project,
                    "documents": [data for _, data in entries],
                    "ids": [entry_id for entry_id, _ in entries],
                    "hashes": hashes,
                    "seals": seals,
                },
            )


async def integrate(store: LogStore, keyring: Keyring) -> tuple[int, float]:
    """Empties the queue; how many entries, in how many seconds."""
    integrator, count, began = Integrator(keyring), 0, time.perf_counter()
    while True:
        async with store.lead() as writer:
            assert writer is not None, "somebody else leads"
            taken = await integrator.step(writer)
        if not taken:
            return count, time.perf_counter() - began
        count += taken


async def measure_integrator(entries: int) -> dict[str, Any]:
    """Entries a second, each hashed again, on one project and on 64."""
    found = {}
    async with machine() as here:
        keyring, _ = Keyring.create(here.folder / "log", "animus.bench")
        for count in (1, 64):
            urls = await here.database(f"integrator_{count}")
            engine = make_engine(urls["service"], pool_size=4, pgbouncer=False)
            for number in range(count):
                await fill(engine, keyring, f"p{number}", 0, entries // count)
            done, seconds = await integrate(LogStore(engine, "bench"), keyring)
            found[f"{count} projects"] = {"entries": done, "per_second": round(done / seconds)}
            await engine.dispose()
    return found


async def measure_latency(calls: int) -> dict[str, Any]:
    """From a change's transaction to the first checkpoint that covers it, by the database's clock, under load."""
    async with machine() as here:
        urls = await here.database("latency")
        folder = here.folder / "latency"
        folder.mkdir()
        projects = [f"p{number}" for number in range(8)]
        async with serving(folder, urls["service"], "animus.cli serve") as served:
            send = senders(served, await prepare(served, projects))["CreateDataset"]
            per_second = await rate(projects, calls, send)
        engine = create_async_engine(urls["admin"])
        async with engine.connect() as admin:
            rows = await admin.execute(
                text(
                    "SELECT extract(epoch FROM min(c.create_time) - CAST(e.time AS timestamptz))"
                    " FROM animus.log_leaf l JOIN animus.audit_entry e USING (project_id, entry_id)"
                    " JOIN animus.log_checkpoint c ON c.project_id = l.project_id AND c.size > l.index"
                    " WHERE l.project_id LIKE 'p%' GROUP BY l.project_id, l.index, e.time"
                )
            )
            seconds = sorted(float(value) for value in rows.scalars())
        await engine.dispose()
    return {"entries": len(seconds), "load_per_second": round(per_second), **quantiles(seconds, "seconds", 1)}


async def measure_proofs(leaves: int, proofs: int) -> dict[str, Any]:
    """Time of a proof over gRPC, one in flight, in a log of many leaves."""
    async with machine() as here:
        urls = await here.database("proofs")
        folder = here.folder / "proofs"
        folder.mkdir()
        async with serving(folder, urls["service"], "animus.cli serve") as served:
            await prepare(served, ["p"])
        keyring = Keyring(folder / "log")
        engine = make_engine(urls["service"], pool_size=4, pgbouncer=False)
        await fill(engine, keyring, "p", 0, leaves)
        store = LogStore(engine, "bench")
        await integrate(store, keyring)
        began = time.perf_counter()
        await Publisher(store, SignerState(folder / "log" / "signer.db"), keyring).step()
        signed = time.perf_counter() - began
        await store.hand_over()
        await engine.dispose()
        numbers = random.Random(7)  # noqa: S311
        times: dict[str, list[float]] = {"inclusion": [], "consistency": []}
        async with serving(folder, urls["service"], "animus.cli serve") as served:
            log = log_pb2_grpc.LogServiceStub(served.channel)
            size = (await served.call(log.GetCheckpoint, log_pb2.GetCheckpointRequest(project_id="p"))).size
            for _ in range(proofs):
                first, second = sorted(numbers.sample(range(1, size), 2))
                asked = {
                    "inclusion": (log.GetInclusionProof, log_pb2.GetInclusionProofRequest(project_id="p", index=first)),
                    "consistency": (
                        log.GetConsistencyProof,
                        log_pb2.GetConsistencyProofRequest(project_id="p", first_size=first, second_size=second),
                    ),
                }
                for name, (method, request) in asked.items():
                    began = time.perf_counter()
                    await served.call(method, request)
                    times[name].append(time.perf_counter() - began)
    found: dict[str, Any] = {name: quantiles(sorted(values), "ms", 1_000) for name, values in times.items()}
    return {"leaves": size, "proofs": proofs, "first_signature_seconds": round(signed, 2), **found}


def quantiles(values: Sequence[float], unit: str, factor: int) -> dict[str, float]:
    """Median and 99th percentile of sorted values."""
    return {
        f"p{percent}_{unit}": round(values[min(len(values) - 1, len(values) * percent // 100)] * factor, 3)
        for percent in (50, 99)
    }


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    """What was asked for."""
    scale = options.scale
    parts: dict[str, Callable[[], Awaitable[dict[str, Any]]]] = {
        "rpc": lambda: measure_rpc(max(64, int(2_000 * scale)), options.rounds),
        "integrator": lambda: measure_integrator(max(640, int(100_000 * scale))),
        "latency": lambda: measure_latency(max(100, int(10_000 * scale))),
        "proofs": lambda: measure_proofs(max(1_000, int(1_000_000 * scale)), max(20, int(1_000 * scale))),
    }
    found: dict[str, Any] = {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    }
    for name in parts if options.part == "all" else [options.part]:
        found[name] = await parts[name]()
        print(json.dumps({name: found[name]}, indent=2), file=sys.stderr, flush=True)
    return found


def main() -> None:
    """Runs the command line; JSON goes to stdout."""
    parser = argparse.ArgumentParser(prog="benchmarks.log", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("part", nargs="?", default="all", choices=["rpc", "integrator", "latency", "proofs", "all"])
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds of `rpc` (default 5)")
    parser.add_argument("--scale", type=float, default=1.0, help="part of the usual amount of work (default 1)")
    print(json.dumps(uvloop.run(measure(parser.parse_args())), indent=2))


if __name__ == "__main__":
    main()
