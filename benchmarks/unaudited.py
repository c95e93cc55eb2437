"""A server that writes no audit, for comparison only: `python -m benchmarks.unaudited` in the place of `animus serve`.

Everything else is the product's own: token, validation, telemetry, transactions, records, remembered replies. Left out
are the entry, the queue row with its seal, the receipt, and the leader. It works only on a schema that `strip` has
prepared, which no product code can make.
"""

from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

import animus.server
from animus.config import load_settings
from animus.domain.audit import Logged
from animus.domain.errors import DomainError
from animus.store.records import table_of
from animus.store.unit_of_work import Call, Change, UnitOfWork, View
from animus.telemetry import configure_logs

NO_ENTRY = "0" * 32  # what every row cites


class UnauditedWork(UnitOfWork):
    """Writes what a change leaves behind but its audit."""

    async def _append(
        self, connection: AsyncConnection, call: Call, view: View, change: Change, reply: bytes
    ) -> Logged:
        documents: dict[str, list[bytes]] = {}
        for record in change.records:
            documents.setdefault(table_of(type(record.value)), []).append(record.document)
        parts = [
            "answer AS (INSERT INTO animus.idempotency (project_id, method, request_id, request, reply, entry_id)"
            " VALUES (:project_id, :method, :request_id, :request, :reply, :entry_id))"
        ]
        parts += [
            f"{table}_rows AS (INSERT INTO animus.{table} (project_id, entry_id, document)"
            f" SELECT :project_id, :entry_id, unnest(CAST(:documents_{table} AS bytea[])))"
            for table in documents
        ]
        values: dict[str, Any] = {f"documents_{table}": items for table, items in documents.items()}
        values |= {
            "project_id": call.project_id,
            "entry_id": NO_ENTRY,
            "method": call.method,
            "request_id": call.request_id,
            "request": call.request,
            "reply": reply,
        }
        await connection.execute(_statement(tuple(parts)), values)
        return None  # type: ignore[return-value]  # no entry, and so no receipt

    async def record_refusal(self, call: Call, error: DomainError) -> Logged:
        """Writes nothing."""
        return None  # type: ignore[return-value]


_statements: dict[tuple[str, ...], Any] = {}


def _statement(parts: tuple[str, ...]) -> Any:
    if parts not in _statements:
        _statements[parts] = text(f"WITH {', '.join(parts)} SELECT 1")
    return _statements[parts]


async def strip(admin_url: str, projects: list[str]) -> None:
    """Takes the keys to the audit out of a migrated database. One entry a project is left for readers to join."""
    engine = create_async_engine(admin_url, isolation_level="AUTOCOMMIT")
    async with engine.connect() as admin:
        keys = await admin.execute(
            text(
                "SELECT conrelid::regclass::text, conname FROM pg_constraint"
                " WHERE contype = 'f' AND confrelid = 'animus.audit_entry'::regclass"
            )
        )
        for table, name in keys.all():
            await admin.execute(text(f"ALTER TABLE {table} DROP CONSTRAINT {name}"))
        for project in projects:
            await admin.execute(
                text(
                    "INSERT INTO animus.audit_entry (project_id, document) SELECT CAST(:p AS text), convert_to(replace("
                    "replace(convert_from(document, 'UTF8'), entry_id, repeat('0', 32)), '\"projectId\":\"system\"',"
                    " '\"projectId\":\"' || CAST(:p AS text) || '\"'), 'UTF8')"
                    " FROM animus.audit_entry WHERE project_id = 'system' LIMIT 1"
                ),
                {"p": project},
            )
    await engine.dispose()


def main() -> None:
    """Serves until SIGTERM."""
    import uvloop

    open_log = animus.server.open_log

    async def without_leader(*arguments: Any) -> Any:
        served, work = await open_log(*arguments)
        work.__class__ = UnauditedWork
        served.leader = None
        return served, work

    async def as_it_is(connection: AsyncConnection) -> None:
        """The guard would say, rightly, that nothing ties a row to its audit entry."""

    setattr(animus.server, "open_log", without_leader)  # noqa: B010
    setattr(animus.server, "refuse_unsafe", as_it_is)  # noqa: B010
    settings = load_settings()
    configure_logs(settings.log_level, settings.log_format)
    uvloop.run(animus.server.serve(settings))


if __name__ == "__main__":
    main()
