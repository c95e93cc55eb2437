"""Audit entries in bulk: queued as a server queues them, with the seals of its keys."""

import hashlib
import time

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from animus.domain import document, merkle
from animus.domain.audit import AuditEntry, AuditOutcome, AuditRecord
from animus.keyring import Keyring
from animus.store.log import LogStore
from animus.workers.integrator import Integrator
from benchmarks.work import DIGEST

PART = 5_000  # entries in one statement


def new_entry(project: str, number: int) -> tuple[str, bytes]:
    """The id and the bytes of an entry such as CreateRun leaves behind: some 1.2 kB."""
    entry_id = hashlib.sha256(f"{project}/{number}".encode()).hexdigest()[:32]
    entry = AuditEntry(
        project_id=project,
        entry_id=entry_id,
        principal="admin",
        action="run.create",
        resource=f"projects/{project}/runs/{entry_id}",
        method="animus.v1.RunService/CreateRun",
        request_id=entry_id,
        request_digest=DIGEST,
        time="2026-01-02T03:04:05.000000Z",
        outcome=AuditOutcome.ACCEPTED,
        reason="",
        records=tuple(AuditRecord(kind, DIGEST) for kind in ("run", "lineage_edge", "lineage_edge")),
        refusals=(),
        reply_digest=DIGEST,
    )
    return entry_id, document.dump(entry)


async def fill(engine: AsyncEngine, keyring: Keyring, project: str, count: int) -> None:
    """Queues entries of a project."""
    for first in range(0, count, PART):
        entries = [new_entry(project, number) for number in range(first, min(first + PART, count))]
        hashes = [merkle.leaf_hash(data) for _, data in entries]
        values = {
            "project_id": project,
            "documents": [data for _, data in entries],
            "entries": [entry_id for entry_id, _ in entries],
            "hashes": hashes,
            "seals": [keyring.seal(project, entry[0], leaf) for entry, leaf in zip(entries, hashes, strict=True)],
        }
        async with engine.connect() as connection, connection.begin():
            await connection.execute(_SCOPE, values)
            await connection.execute(_FILL, values)


async def integrate(store: LogStore, keyring: Keyring) -> tuple[int, float]:
    """Empties the queue; how many entries, in how many seconds."""
    integrator, count, began = Integrator(keyring), 0, time.perf_counter()
    while True:
        async with store.lead() as writer:
            taken = await integrator.step(writer)
        if not taken:
            return count, time.perf_counter() - began
        count += taken


_SCOPE = text("SELECT set_config('animus.project_id', :project_id, true)")
_FILL = text(
    "WITH entries AS (INSERT INTO animus.audit_entry (project_id, document)"
    " SELECT :project_id, unnest(CAST(:documents AS bytea[])))"
    " INSERT INTO animus.audit_queue (project_id, entry_id, leaf_hash, seal)"
    " SELECT :project_id, * FROM unnest(CAST(:entries AS text[]), CAST(:hashes AS bytea[]), CAST(:seals AS bytea[]))"
)
