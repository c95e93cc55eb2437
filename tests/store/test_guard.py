"""The guard: what it refuses to serve from, by name, and that it lets a sound database pass."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

import pytest
from conftest import Database
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from animus.store.embedded import EmbeddedPostgres
from animus.store.guard import EXEMPT, REASONS, TIMEOUTS, UNAUDITED, UnsafeDatabase, refuse_unsafe, unsafe_settings
from animus.store.migrate import head, migrate

AS_SERVICE = "SET LOCAL SESSION AUTHORIZATION animus_service"
ENDS = [f"SET LOCAL {name} = '{usual}'" for name, usual in TIMEOUTS.items()]  # which a role has from its login on
ENDLESS = "{0} of the role animus_service is 0: ALTER ROLE animus_service SET {0} = '{1}'"
NOT_FORCED = "row security is not forced on the table run"
NOT_KEPT = "no enabled trigger keeps the rows of the table run"
NOT_AUDITED = "no key ties the rows of the table run to the audit entry of their writing"
AUDIT_KEY = "run_project_id_entry_id_written_in_fkey"
SOUND = {"server_version_num": "150000", "fsync": "on", "full_page_writes": "on", "synchronous_commit": "local"}


async def reasons(
    url: str, *statements: str, exempt: Collection[str] = EXEMPT, ends: Iterable[str] = ENDS
) -> list[str]:
    """What the guard says after these statements, which are rolled back."""
    engine = create_async_engine(url, poolclass=NullPool)
    try:
        async with engine.connect() as connection:
            for statement in (*ends, *statements):
                await connection.execute(text(statement))
            await refuse_unsafe(connection, exempt)
    except UnsafeDatabase as unsafe:
        return unsafe.reasons
    finally:
        await engine.dispose()
    return []


async def test_a_sound_database_passes(database: Database) -> None:
    """The embedded server's service role on this release's schema is served from."""
    assert await reasons(database.service_url, ends=()) == []
    assert await reasons(database.admin_url, AS_SERVICE) == [], "and so it is as the tests below ask"


async def test_each_wrong_role_is_refused_with_what_it_is(database: Database) -> None:
    """The superuser and the owner are not to be served as; every reason is named."""
    admin = await reasons(database.admin_url)
    assert "the role postgres is a superuser" in admin
    assert "the role postgres bypasses row security" in admin
    owner = await reasons(database.owner_url)
    assert owner[:2] == ["the role animus_owner owns the database", "the role animus_owner owns the schema animus"]
    assert owner[2].startswith("the role animus_owner owns tables of the schema animus (")
    assert "run" in owner[2]
    assert len(owner) == 3


@pytest.mark.parametrize(
    ("defect", "expected"),
    [
        ("ALTER ROLE animus_service SUPERUSER", ["the role animus_service is a superuser"]),
        ("ALTER ROLE animus_service BYPASSRLS", ["the role animus_service bypasses row security"]),
        ("ALTER ROLE animus_service CREATEROLE", ["the role animus_service may create roles"]),
        ("ALTER SCHEMA animus OWNER TO animus_service", ["the role animus_service owns the schema animus"]),
        (
            "ALTER TABLE animus.run OWNER TO animus_service",
            ["the role animus_service owns tables of the schema animus (run)"],
        ),
        ("ALTER TABLE animus.run NO FORCE ROW LEVEL SECURITY", [NOT_FORCED]),
        ("ALTER TABLE animus.run DISABLE ROW LEVEL SECURITY", [NOT_FORCED]),
        ("DROP TRIGGER immutable_row ON animus.run", [NOT_KEPT]),
        ("DROP TRIGGER immutable_table ON animus.run", [NOT_KEPT]),
        ("ALTER TABLE animus.run DISABLE TRIGGER immutable_row", [NOT_KEPT]),
        ("ALTER TABLE animus.run ENABLE TRIGGER immutable_row", [NOT_KEPT]),
        ("ALTER TABLE animus.run ENABLE REPLICA TRIGGER immutable_row", [NOT_KEPT]),
        ("ALTER TRIGGER immutable_row ON animus.run RENAME TO mutable_row", [NOT_KEPT]),
        (f"ALTER TABLE animus.run DROP CONSTRAINT {AUDIT_KEY}", [NOT_AUDITED]),
        (
            f"ALTER TABLE animus.run DROP CONSTRAINT {AUDIT_KEY},"
            " ADD FOREIGN KEY (project_id, entry_id) REFERENCES animus.audit_entry (project_id, entry_id)",
            [NOT_AUDITED],  # by an entry of another transaction
        ),
        ("ALTER TABLE animus.run DISABLE TRIGGER ALL", [NOT_KEPT, NOT_AUDITED]),
        ("SET LOCAL synchronous_commit = off", ["synchronous_commit is off"]),
        ("SET LOCAL statement_timeout = 0", [ENDLESS.format("statement_timeout", "30s")]),
        ("SET LOCAL lock_timeout = 0", [ENDLESS.format("lock_timeout", "10s")]),
        (
            "SET LOCAL idle_in_transaction_session_timeout = 0",
            [ENDLESS.format("idle_in_transaction_session_timeout", "60s")],
        ),
        (
            "UPDATE animus.alembic_version SET version_num = 'older'",
            [f"the schema is at revision older and this release needs {head()}: run animus migrate"],
        ),
        (
            "DROP TABLE animus.alembic_version",
            [f"the schema is at revision none and this release needs {head()}: run animus migrate"],
        ),
        (
            "REVOKE SELECT ON animus.alembic_version FROM animus_service",
            ["the role may not read animus.alembic_version: run animus migrate with this release"],
        ),
        (
            "CREATE TABLE animus.unguarded ()",
            [
                "row security is not forced on the table unguarded",
                "no enabled trigger keeps the rows of the table unguarded",
                "no key ties the rows of the table unguarded to the audit entry of their writing",
            ],
        ),
    ],
)
async def test_a_planted_defect_is_named_and_nothing_else_is(
    defect: str, expected: list[str], database: Database
) -> None:
    """Each defect of the role or the schema gives exactly its own reasons."""
    assert await reasons(database.admin_url, defect, AS_SERVICE) == expected


@pytest.mark.parametrize(("name", "usual"), TIMEOUTS.items())
async def test_a_role_whose_work_may_last_for_ever_is_refused(name: str, usual: str, database: Database) -> None:
    """Where the role's own settings lack a timeout, which behind pgbouncer nothing else sets, the cure is named."""
    own = database.service_url.split("@/")[1].split("?")[0]
    engine = create_async_engine(database.admin_url, isolation_level="AUTOCOMMIT")
    async with engine.connect() as admin:
        await admin.execute(text(f"ALTER ROLE animus_service IN DATABASE {own} SET {name} = 0"))
    await engine.dispose()
    assert await reasons(database.service_url, ends=()) == [ENDLESS.format(name, usual)]


def test_the_timeouts_are_those_that_the_roles_are_made_with() -> None:
    """deploy/postgres/roles.sql sets each as the refusal says."""
    made = (Path(__file__).parents[2] / "deploy/postgres/roles.sql").read_text()
    for name, usual in TIMEOUTS.items():
        assert f"ALTER ROLE animus_service SET {name} = '{usual}';" in made


async def test_an_owner_of_the_database_is_refused(database: Database) -> None:
    """Whoever owns the database may grant itself the rest."""
    name = database.service_url.split("@/")[1].split("?")[0]
    found = await reasons(database.admin_url, f"ALTER DATABASE {name} OWNER TO animus_service", AS_SERVICE)
    assert found == ["the role animus_service owns the database"]


async def test_the_exempt_tables_are_there_and_each_has_its_reason(database: Database) -> None:
    """What the guard lets through by name is a table of this schema, lacks just that, and is said why."""
    kept = "no enabled trigger keeps the rows of the table "
    assert await reasons(database.service_url, exempt=()) == [kept + table for table in sorted(EXEMPT)]
    assert all([*REASONS.values(), *UNAUDITED.values()])
    engine = create_async_engine(database.service_url, poolclass=NullPool)
    async with engine.connect() as connection:
        for table in UNAUDITED:
            assert await connection.scalar(text(f"SELECT to_regclass('animus.{table}')")), table
    await engine.dispose()


async def test_a_member_of_a_wrong_role_is_refused(database: Database) -> None:
    """A power that the role can take on counts as held, also through another role, or by resetting the role."""
    found = await reasons(database.admin_url, "GRANT animus_owner TO animus_service", AS_SERVICE)
    assert found[0] == "the service is a member of animus_owner, which owns the database"
    chain = ("CREATE ROLE middle", "GRANT postgres TO middle", "GRANT middle TO animus_service")
    found = await reasons(database.admin_url, *chain, AS_SERVICE)
    assert "the service is a member of postgres, which is a superuser" in found
    found = await reasons(database.admin_url, "SET LOCAL ROLE animus_service")
    assert "the role postgres is a superuser" in found


async def test_an_exempt_table_needs_no_trigger_and_still_row_security(database: Database) -> None:
    """The exemption is of the trigger alone, and of the named table alone."""
    defects = ["DROP TRIGGER immutable_row ON animus.run", "DROP TRIGGER immutable_row ON animus.artifact"]
    kept = "no enabled trigger keeps the rows of the table "
    exempt = [*EXEMPT, "run"]
    assert await reasons(database.admin_url, *defects, AS_SERVICE) == [kept + "artifact", kept + "run"]
    assert await reasons(database.admin_url, *defects, AS_SERVICE, exempt=exempt) == [kept + "artifact"]
    defects.append("ALTER TABLE animus.run NO FORCE ROW LEVEL SECURITY")
    assert NOT_FORCED in await reasons(database.admin_url, *defects, AS_SERVICE, exempt=[*exempt, "artifact"])


async def test_a_server_that_would_lose_commits_is_refused(directory: Path) -> None:
    """fsync=off and full_page_writes=off are named, each."""
    server = EmbeddedPostgres.start(directory / "data", settings={"fsync": "off", "full_page_writes": "off"})
    try:
        await migrate(server.owner_url)
        assert await reasons(server.service_url) == ["fsync is off", "full_page_writes is off"]
    finally:
        server.stop()


def test_the_refusal_is_one_line_with_every_reason() -> None:
    """What `animus serve` prints is the text of the error."""
    assert str(UnsafeDatabase(["fsync is off", "full_page_writes is off"])) == "fsync is off; full_page_writes is off"


@pytest.mark.parametrize(
    ("setting", "value", "expected"),
    [
        ("server_version_num", "150000", []),
        ("server_version_num", "140019", ["this is PostgreSQL 14 and 15 is the oldest that will do"]),
        ("fsync", "off", ["fsync is off"]),
        ("full_page_writes", "off", ["full_page_writes is off"]),
        ("synchronous_commit", "off", ["synchronous_commit is off"]),
        ("synchronous_commit", "local", []),
        ("synchronous_commit", "on", []),
        ("synchronous_commit", "remote_write", []),
        ("synchronous_commit", "remote_apply", []),
    ],
)
def test_settings_are_judged_one_by_one(setting: str, value: str, expected: list[str]) -> None:
    """A version before 15, and any setting that may lose a commit, is a reason."""
    assert unsafe_settings({**SOUND, setting: value}) == expected
