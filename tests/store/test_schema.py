"""What the database itself refuses the service role, whatever the code above it does."""

import hashlib
from collections.abc import AsyncIterator

import pytest
from conftest import Database
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from animus.domain import document
from animus.domain.audit import AuditEntry, AuditOutcome
from animus.domain.project import Project
from animus.store.guard import EXEMPT, UNAUDITED

NOT_RECORDS = {"alembic_version"}  # says which revisions were applied; no project's, and read-only to the service
# What the service role may do beside INSERT and SELECT, in the tables that store/guard.py exempts.
MAY_CHANGE = {
    ("audit_queue", "DELETE"),
    ("log_quarantine", "DELETE"),
    ("log_state", "UPDATE"),
    ("log_lead", "UPDATE"),
    ("token_use", "UPDATE"),
}


@pytest.fixture
async def service(database: Database) -> AsyncIterator[AsyncConnection]:
    """A connection of the service role, as psql would have it."""
    engine = create_async_engine(database.service_url)
    async with engine.connect() as connection:
        yield connection
        await connection.rollback()
    await engine.dispose()


async def tables(connection: AsyncConnection) -> list[str]:
    """Every table of the schema but alembic's."""
    found = await connection.execute(
        text("SELECT relname FROM pg_class WHERE relnamespace = 'animus'::regnamespace AND relkind IN ('r', 'p')")
    )
    return sorted(set(found.scalars()) - NOT_RECORDS)


async def refusal(connection: AsyncConnection, statement: str, **values: object) -> str:
    """The SQLSTATE that a statement is refused with; empty if it is not."""
    try:
        async with connection.begin_nested():
            await connection.execute(text(statement), values)
    except DBAPIError as error:
        return str(error.orig.sqlstate)  # type: ignore[union-attr]
    return ""


async def scope(connection: AsyncConnection, project_id: str) -> None:
    """Sets the project that row security lets through."""
    await connection.execute(text("SELECT set_config('animus.project_id', :p, true)"), {"p": project_id})


def entry(entry_id: str = "a" * 32, project_id: str = "p") -> bytes:
    """The bytes of an audit entry."""
    return document.dump(
        AuditEntry(
            project_id=project_id,
            entry_id=entry_id,
            principal="tester",
            action="project.create",
            resource="projects/p",
            method="animus.v1.ProjectService/CreateProject",
            request_id="r",
            request_digest="sha256:" + "0" * 64,
            time="2026-01-02T03:04:05.000000Z",
            outcome=AuditOutcome.ACCEPTED,
            reason="",
            records=(),
            refusals=(),
            reply_digest="sha256:" + "0" * 64,
        )
    )


INSERT_ENTRY = "INSERT INTO animus.audit_entry (project_id, document) VALUES (:project, :document)"
INSERT_PROJECT = "INSERT INTO animus.project (project_id, entry_id, document) VALUES ('p', :entry, :document)"
INSERT_OF_THE_LOG = {
    "log_leaf": "INSERT INTO animus.log_leaf VALUES ('p', 0, 'e', '')",
    "log_tile": "INSERT INTO animus.log_tile VALUES ('p', 0, 0, '', decode(repeat('00', 8192), 'hex'))",
    "log_checkpoint": "INSERT INTO animus.log_checkpoint (project_id, epoch, size, note) VALUES ('p', 1, 1, '')",
}
PROJECT = document.dump(Project("p", "", "", ()))


async def test_update_delete_and_truncate_are_refused_on_every_table(service: AsyncConnection) -> None:
    """By grants: the service role may insert and select, and in the exempt tables what their use needs."""
    for table in await tables(service):
        for statement in (
            f"UPDATE animus.{table} SET project_id = project_id",
            f"DELETE FROM animus.{table}",
            f"TRUNCATE animus.{table}",
            f"ALTER TABLE animus.{table} DISABLE TRIGGER ALL",
            f"DROP TABLE animus.{table}",
        ):
            allowed = (table, statement.split()[0]) in MAY_CHANGE
            assert await refusal(service, statement) == ("" if allowed else "42501"), statement
    assert {table for table, _ in MAY_CHANGE} == EXEMPT


async def test_no_grant_is_wider_than_that(service: AsyncConnection) -> None:
    """Walks the catalogue: no column of another table can be updated, and no default of a row be named."""
    for table in await tables(service):
        held = await service.execute(
            text(
                "SELECT p FROM unnest(ARRAY['UPDATE', 'DELETE', 'TRUNCATE', 'REFERENCES', 'TRIGGER']) AS p"
                " WHERE has_table_privilege('animus_service', :table, p) OR p IN ('UPDATE', 'REFERENCES')"
                " AND has_any_column_privilege('animus_service', :table, p)"
            ),
            {"table": f"animus.{table}"},
        )
        assert {(table, privilege) for privilege in held.scalars()} == {each for each in MAY_CHANGE if each[0] == table}
        named = await service.execute(
            text(
                "SELECT a.attname FROM pg_attribute a"
                " WHERE a.attrelid = CAST(:table AS regclass) AND a.atthasdef AND a.attgenerated = ''"
                " AND has_column_privilege('animus_service', a.attrelid, a.attnum, 'INSERT')"
            ),
            {"table": f"animus.{table}"},
        )
        assert set(named.scalars()) == set(), table


async def test_triggers_refuse_changes_to_the_owner_and_the_superuser_too(
    database: Database, service: AsyncConnection
) -> None:
    """By ENABLE ALWAYS triggers, also under session_replication_role = replica; what proves the record is kept too."""
    await scope(service, "p")
    await service.execute(text(INSERT_ENTRY), {"project": "p", "document": entry()})
    await service.execute(text(INSERT_PROJECT), {"entry": "a" * 32, "document": PROJECT})
    await service.execute(text("SELECT set_config('animus.every_project', 'on', true)"))
    for statement in INSERT_OF_THE_LOG.values():
        await service.execute(text(statement))
    await service.commit()
    engine = create_async_engine(database.admin_url)
    async with engine.connect() as admin:
        await admin.execute(text("SET session_replication_role = replica"))
        for table in ("audit_entry", "project", *INSERT_OF_THE_LOG):
            assert await refusal(admin, f"UPDATE animus.{table} SET project_id = project_id") == "42501"
            assert await refusal(admin, f"DELETE FROM animus.{table}") == "42501"
        for table in await tables(admin):
            refused = await refusal(admin, f"TRUNCATE animus.{table} CASCADE") == "42501"
            assert refused == (table not in EXEMPT), table
    await engine.dispose()


async def test_a_row_without_an_entry_of_its_own_transaction_is_refused(service: AsyncConnection) -> None:
    """No entry, and an entry of an earlier transaction, are refused; an entry of the same one is not."""
    await scope(service, "p")
    assert await refusal(service, INSERT_PROJECT, entry="a" * 32, document=PROJECT) == "23503"
    await service.execute(text(INSERT_ENTRY), {"project": "p", "document": entry()})
    await service.commit()
    await scope(service, "p")
    assert await refusal(service, INSERT_PROJECT, entry="a" * 32, document=PROJECT) == "23503"
    named = INSERT_PROJECT.replace("(project_id,", "(written_in, project_id,").replace("('p',", "('1'::xid8, 'p',")
    assert await refusal(service, named, entry="a" * 32, document=PROJECT) == "42501"
    await service.execute(text(INSERT_ENTRY), {"project": "p", "document": entry("b" * 32)})
    assert await refusal(service, INSERT_PROJECT, entry="b" * 32, document=PROJECT) == ""


async def test_nothing_is_seen_or_written_outside_the_project_in_scope(service: AsyncConnection) -> None:
    """Without a project, or with another, every table is empty, and a row of another project is refused."""
    await scope(service, "p")
    await service.execute(text(INSERT_ENTRY), {"project": "p", "document": entry()})
    await service.execute(text(INSERT_PROJECT), {"entry": "a" * 32, "document": PROJECT})
    await service.commit()
    for project_id in (None, "", "q"):
        if project_id is not None:
            await scope(service, project_id)
        for table in await tables(service):
            rows = await service.execute(text(f"SELECT count(*) FROM animus.{table}"))
            assert rows.scalar_one() == 0, (project_id, table)
        assert await refusal(service, INSERT_ENTRY, project="p", document=entry("c" * 32)) == "42501"
        await service.rollback()
    await scope(service, "p")
    assert (await service.execute(text("SELECT count(*) FROM animus.project"))).scalar_one() == 1


async def test_a_column_cannot_disagree_with_the_document(service: AsyncConnection) -> None:
    """Generated columns cannot be named, and a project's own id must be the one of its document."""
    await scope(service, "p")
    named = "INSERT INTO animus.audit_entry (project_id, document, outcome) VALUES ('p', :document, 'denied')"
    assert await refusal(service, named, document=entry()) == "428C9"
    assert await refusal(service, INSERT_ENTRY, project="p", document=entry(project_id="q")) == "23514"


async def test_every_table_has_row_security_a_scope_key_and_the_audit_key(service: AsyncConnection) -> None:
    """Walks the catalogue: forced row security, project_id first in each key, the foreign key to audit_entry."""
    for table in await tables(service):
        keys = await service.execute(
            text(
                "SELECT a.attname FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid"
                " AND a.attnum = i.indkey[0] WHERE i.indrelid = CAST(:table AS regclass) AND i.indisunique"
            ),
            {"table": f"animus.{table}"},
        )
        assert set(keys.scalars()) == {"project_id"}, table
        forced = await service.execute(
            text("SELECT relrowsecurity AND relforcerowsecurity FROM pg_class WHERE oid = CAST(:table AS regclass)"),
            {"table": f"animus.{table}"},
        )
        assert forced.scalar_one(), table
        audited = await service.execute(
            text(
                "SELECT count(*) FROM pg_constraint WHERE conrelid = CAST(:table AS regclass) AND contype = 'f'"
                " AND confrelid = 'animus.audit_entry'::regclass AND array_length(conkey, 1) = 3"
            ),
            {"table": f"animus.{table}"},
        )
        assert audited.scalar_one() == (0 if table in UNAUDITED else 1), table


async def test_the_leaf_hash_is_that_of_rfc_6962(service: AsyncConnection) -> None:
    """SHA-256 of a zero byte and the stored bytes."""

    await scope(service, "p")
    await service.execute(text(INSERT_ENTRY), {"project": "p", "document": entry()})
    found = (await service.execute(text("SELECT leaf_hash FROM animus.audit_entry"))).scalar_one()
    assert found == hashlib.sha256(b"\x00" + entry()).digest()
