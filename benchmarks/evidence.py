"""What an export of evidence costs, and its verification: `python -m benchmarks.evidence [--entries N]`.

A project's log of many entries, each with two records, is exported over gRPC and verified by the one file in a process
of its own. Times, sizes and peak memory go to stdout as JSON.
"""

import argparse
import json
import os
import platform
import secrets
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import uvloop
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from animus.domain import document, merkle
from animus.domain.audit import AuditEntry, AuditOutcome, AuditRecord
from animus.domain.dataset import Dataset
from animus.domain.lineage import LineageEdge, LineageRelation
from animus.domain.names import dataset_name
from animus.keyring import Keyring
from animus.store.engine import make_engine
from animus.v1 import evidence_pb2, evidence_pb2_grpc, log_pb2, log_pb2_grpc
from benchmarks.log import published
from benchmarks.stack import PRODUCT, ROOT, Machine, Served, machine, serving
from benchmarks.work import DIGEST, prepare

PROJECT = "p"
PART = 10  # entries in one transaction: a server's have one each, and need no index to tell them apart


def new_change(number: int) -> tuple[AuditEntry, bytes, bytes]:
    """An entry such as CreateDataset leaves behind, and its two records."""
    name = dataset_name(PROJECT, f"d{number}")
    dataset = document.dump(Dataset(f"d{number}", "a dataset of the benchmark", ()))
    edge = document.dump(LineageEdge(name, LineageRelation.USED, f"projects/{PROJECT}/pipelineSpecs/{DIGEST}"))
    entry = AuditEntry(
        project_id=PROJECT,
        entry_id=secrets.token_hex(16),
        principal="admin",
        action="dataset.create",
        resource=name,
        method="animus.v1.DatasetService/CreateDataset",
        request_id=f"dataset-{number}",
        request_digest=DIGEST,
        time="2026-01-02T03:04:05.000000Z",
        outcome=AuditOutcome.ACCEPTED,
        reason="",
        records=(
            AuditRecord("dataset", document.digest(dataset)),
            AuditRecord("lineage_edge", document.digest(edge)),
        ),
        refusals=(),
        reply_digest=DIGEST,
    )
    return entry, dataset, edge


async def fill(engine: AsyncEngine, keyring: Keyring, count: int) -> None:
    """Writes changes as a server does: entries, records and queue rows together; not flushed one by one."""
    for first in range(0, count, PART):
        changes = [new_change(number) for number in range(first, min(first + PART, count))]
        entries = [document.dump(entry) for entry, _, _ in changes]
        ids = [entry.entry_id for entry, _, _ in changes]
        hashes = [merkle.leaf_hash(data) for data in entries]
        values = {
            "project_id": PROJECT,
            "documents": entries,
            "entries": ids,
            "hashes": hashes,
            "seals": [keyring.seal(PROJECT, one, leaf) for one, leaf in zip(ids, hashes, strict=True)],
            "datasets": [dataset for _, dataset, _ in changes],
            "edges": [edge for _, _, edge in changes],
        }
        async with engine.connect() as connection, connection.begin():
            await connection.execute(_SCOPE, values)
            await connection.execute(_UNFLUSHED)
            await connection.execute(_FILL, values)


async def export(served: Served, target: Path) -> dict[str, Any]:
    """Exports the log to a file."""
    service = evidence_pb2_grpc.EvidenceServiceStub(served.channel)
    request = evidence_pb2.ExportEvidenceRequest(project_id=PROJECT, request_id="export")
    before, began, size = peak_mb(served.pid), time.perf_counter(), 0
    used = served.cpu_seconds()
    with target.open("wb") as file:
        async for part in service.ExportEvidence(request, metadata=served.metadata):
            size += file.write(part.data)
    seconds = time.perf_counter() - began
    server, database = (after - start for after, start in zip(served.cpu_seconds(), used, strict=True))
    return {
        "seconds": round(seconds, 2),
        "CPU seconds": {"server": round(server, 2), "PostgreSQL": round(database, 2)},
        "MB": round(size / 1e6, 1),
        "server MB": {"before": before, "peak": peak_mb(served.pid)},
    }


def peak_mb(pid: int) -> int:
    """The most memory that a process has had, in MB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return round(int(status.partition("VmHWM:")[2].split()[0]) * 1_024 / 1e6)


def verify(bundle: Path, key: Path) -> dict[str, Any]:
    """Verifies a bundle in a process of its own."""
    command = [sys.executable, "-I", "-S", str(ROOT / "src" / "animus_verify.py"), str(bundle), "--trust", str(key)]
    began = time.perf_counter()
    with subprocess.Popen([*command, "--json"], env={}, stdout=subprocess.PIPE) as process:  # noqa: S603 (our own file)
        assert process.stdout is not None
        most = 0
        while not select.select([process.stdout], [], [], 0.01)[0]:  # what wait4 says of memory is the parent's, too
            most = max(most, peak_mb(process.pid))
        report = json.loads(process.stdout.read())
        _, status, used = os.wait4(process.pid, 0)
    return {
        "seconds": round(time.perf_counter() - began, 2),
        "CPU seconds": round(used.ru_utime + used.ru_stime, 2),
        "MB": most,
        "verdict": report["verdict"],
        "exit code": os.waitstatus_to_exitcode(status),
    }


async def measure(here: Machine, entries: int) -> dict[str, Any]:
    """All of it, on a server of its own."""
    async with serving(here, "evidence", PRODUCT) as served:
        await prepare(served, [PROJECT], 0)
        engine = make_engine(served.database.service_url, pool_size=1, pgbouncer=False)
        await fill(engine, Keyring(served.folder / "log"), entries)
        await engine.dispose()
        await published(served)
        log = log_pb2_grpc.LogServiceStub(served.channel)
        keys = (await served.call(log.GetLog, log_pb2.GetLogRequest(project_id=PROJECT))).keys
        bundle, key = here.folder / "bundle.zip", here.folder / "auditor.vkey"
        key.write_text("".join(f"{each.vkey}\n" for each in keys))
        exported = await export(served, bundle)
        return {"entries": entries, "export": exported, "verify": verify(bundle, key)}


async def run(entries: int) -> dict[str, Any]:
    """On a PostgreSQL of its own."""
    async with machine() as here:
        found = await measure(here, entries)
    return {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
        "load": round(os.getloadavg()[0], 1),
        **found,
    }


_SCOPE = text("SELECT set_config('animus.project_id', :project_id, true)")
_UNFLUSHED = text("SET LOCAL synchronous_commit = off")
_FILL = text(
    "WITH entries AS (INSERT INTO animus.audit_entry (project_id, document)"
    " SELECT :project_id, unnest(CAST(:documents AS bytea[])))"
    ", datasets AS (INSERT INTO animus.dataset (project_id, entry_id, document)"
    " SELECT :project_id, * FROM unnest(CAST(:entries AS text[]), CAST(:datasets AS bytea[])))"
    ", edges AS (INSERT INTO animus.lineage_edge (project_id, entry_id, document)"
    " SELECT :project_id, * FROM unnest(CAST(:entries AS text[]), CAST(:edges AS bytea[])))"
    " INSERT INTO animus.audit_queue (project_id, entry_id, leaf_hash, seal)"
    " SELECT :project_id, * FROM unnest(CAST(:entries AS text[]), CAST(:hashes AS bytea[]), CAST(:seals AS bytea[]))"
)


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.evidence", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--entries", type=int, default=100_000)
    print(json.dumps(uvloop.run(run(parser.parse_args().entries)), indent=2))


if __name__ == "__main__":
    main()
