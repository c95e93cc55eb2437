"""Migrations: forward, one transaction each, by one process at a time, found however Animus is installed."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import asyncpg
import pytest
from conftest import Database
from sqlalchemy.exc import DBAPIError

from animus.store.migrate import MigrationRefused, current, head, locate, migrate

ENTRY = (
    '{"entryId":"e","outcome":"accepted","principal":"admin","projectId":"p","resource":"projects/p",'
    '"time":"2026-01-02T03:04:05.000000Z"}'
)
REVISION = """
from alembic import op
revision, down_revision = {revision!r}, {down!r}
def upgrade():
    for statement in {statements!r}:
        op.execute(statement)
"""


@pytest.fixture
def revisions(directory: Path) -> Path:
    """A directory of revisions of the test's own, with the real env.py."""
    (directory / "versions").mkdir()
    (directory / "env.py").write_text((locate() / "env.py").read_text())
    return directory


def add(revisions: Path, revision: str, down: str | None, *statements: str) -> None:
    text = REVISION.format(revision=revision, down=down, statements=statements)
    (revisions / "versions" / f"{revision}.py").write_text(text)


async def rows(database: Database, query: str) -> list[object]:
    connection = await asyncpg.connect(database.admin_url.replace("+asyncpg", ""))
    try:
        return [row[0] for row in await connection.fetch(query)]
    finally:
        await connection.close()


async def test_revisions_are_applied_in_order_and_once(empty_database: Database, revisions: Path) -> None:
    """migrate() returns what it applied, and the second time nothing; current() follows."""
    add(revisions, "0001", None, "CREATE TABLE animus.a ()")
    add(revisions, "0002", "0001", "CREATE TABLE animus.b ()", "CREATE TABLE animus.c ()")
    url = empty_database.owner_url
    assert head(revisions) == "0002"
    assert await current(url) is None
    assert await migrate(url, "0001", directory=revisions) == ["0001"]
    assert await current(url) == "0001"
    assert await migrate(url, directory=revisions) == ["0002"]
    assert await migrate(url, directory=revisions) == []
    assert await current(url) == "0002"
    tables = await rows(empty_database, "SELECT tablename FROM pg_tables WHERE schemaname = 'animus' ORDER BY 1")
    assert tables == ["a", "alembic_version", "b", "c"]
    assert await rows(empty_database, "SELECT nspowner::regrole::text FROM pg_namespace WHERE nspname = 'animus'") == [
        "animus_owner"
    ]


async def test_a_revision_that_fails_leaves_nothing_and_the_ones_before_it_stay(
    empty_database: Database, revisions: Path
) -> None:
    """Each revision is one transaction: the failing one is undone whole, and goes on from there when it is mended."""
    add(revisions, "0001", None, "CREATE TABLE animus.a ()")
    add(revisions, "0002", "0001", "CREATE TABLE animus.b ()", "CREATE TABLE nowhere.c ()")
    url = empty_database.owner_url
    with pytest.raises(DBAPIError, match="nowhere"):
        await migrate(url, directory=revisions)
    assert await current(url) == "0001"
    assert await rows(empty_database, "SELECT to_regclass('animus.b')") == [None]
    add(revisions, "0002", "0001", "CREATE TABLE animus.b ()")
    assert await migrate(url, directory=revisions) == ["0002"]


async def test_of_processes_that_migrate_at_once_exactly_one_applies(empty_database: Database, revisions: Path) -> None:
    """Two processes start together: one applies both revisions, the other waits and finds nothing to do."""
    add(revisions, "0001", None, "CREATE TABLE animus.a ()", "SELECT pg_sleep(0.3)")
    add(revisions, "0002", "0001", "CREATE TABLE animus.b ()", "SELECT pg_sleep(0.3)")
    program = (
        "import asyncio, sys; from pathlib import Path; from animus.store.migrate import migrate\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "print(asyncio.run(migrate(sys.argv[1], directory=Path(sys.argv[2]))))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    processes = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", program, empty_database.owner_url, str(revisions)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=environment,
        )
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"ready\n"
    done = await asyncio.gather(*(process.communicate(b"go\n") for process in processes))
    answers = [output.decode().strip() for output, _ in done]
    assert sorted(answers) == ["['0001', '0002']", "[]"]


async def test_a_killed_migration_lets_the_next_one_go_on(empty_database: Database, revisions: Path) -> None:
    """Killed -9 inside the second revision, the first stays, the second is undone, and the lock is free."""
    add(revisions, "0001", None, "CREATE TABLE animus.a ()")
    add(revisions, "0002", "0001", "CREATE TABLE animus.b ()", "SELECT pg_sleep(1000)")
    program = (
        "import asyncio, sys; from pathlib import Path; from animus.store.migrate import migrate\n"
        "asyncio.run(migrate(sys.argv[1], directory=Path(sys.argv[2])))"
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program, empty_database.owner_url, str(revisions)),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    asleep = "SELECT pid FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep(1000)%' AND wait_event = 'PgSleep'"
    async with asyncio.timeout(20):
        while not (pids := await rows(empty_database, asleep)):
            assert process.returncode is None
    process.kill()
    await process.wait()
    # The server notices a lost client when it next writes to it; an operator would not wait for that either.
    await rows(empty_database, f"SELECT pg_terminate_backend({pids[0]})")
    add(revisions, "0002", "0001", "CREATE TABLE animus.b ()")
    assert await migrate(empty_database.owner_url, directory=revisions) == ["0002"]


async def test_the_revisions_of_this_release_are_applied_one_after_the_other(empty_database: Database) -> None:
    """The first schema, the log, comparisons; a database that stands between two of them goes on from there."""
    url = empty_database.owner_url
    assert await migrate(url, "0001") == ["0001"]
    assert await rows(empty_database, "SELECT to_regclass('animus.log_leaf')") == [None]
    assert await migrate(url) == [f"{number:04}" for number in range(2, 14)]
    assert await current(url) == head() == "0013"


async def test_a_database_with_runs_from_before_gates_is_refused(empty_database: Database) -> None:
    """Their documents say nothing of gates, and no document is ever changed."""
    url = empty_database.owner_url
    await migrate(url, "0008")
    run = '{"createTime":"t","runId":"r","runSpecDigest":"d"}'
    planted = f"INSERT INTO animus.run (project_id, entry_id, document) VALUES ('p', 'e', '\\x{run.encode().hex()}')"
    await rows(empty_database, f"DO $$ BEGIN SET LOCAL session_replication_role = replica; {planted}; END $$")
    assert await rows(empty_database, "SELECT run_id FROM animus.run") == ["r"]
    with pytest.raises(MigrationRefused, match=r"^this database has runs that were made before gates were"):
        await migrate(url)
    assert await current(url) == "0008"


async def test_a_database_with_entries_from_before_the_log_is_refused(empty_database: Database) -> None:
    """Nobody sealed them: what stands in their rows is not known to be what was written."""
    url = empty_database.owner_url
    await migrate(url, "0001")
    insert = f"INSERT INTO animus.audit_entry (project_id, document) VALUES ('p', '\\x{ENTRY.encode().hex()}')"
    assert await rows(empty_database, insert) == []
    with pytest.raises(MigrationRefused, match=r"^this database was made before the log was: start with a new one$"):
        await migrate(url)
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join(sys.path),
        "ANIMUS_OWNER_DATABASE_URL": url,
    }
    command = [sys.executable, "-m", "animus.cli", "migrate"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    said = "animus: this database was made before the log was: start with a new one\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", said)
    assert await current(url) == "0001"
    assert await rows(empty_database, "SELECT count(*) FROM animus.audit_entry") == [1]


async def test_a_database_with_older_dataset_versions_is_refused(empty_database: Database) -> None:
    """Their documents have other fields: nothing is applied, and they stay."""
    url = empty_database.owner_url
    await migrate(url, "0006")
    document = f'{{"contentDigest":"sha256:{"1" * 64}","datasetId":"d"}}'.encode().hex()
    connection = await asyncpg.connect(empty_database.admin_url.replace("+asyncpg", ""))
    try:
        await connection.execute(  # without the rows that it refers to
            "SET session_replication_role = replica;"
            " INSERT INTO animus.dataset_version (project_id, entry_id, document)"
            f" VALUES ('p', 'e', '\\x{document}')"
        )
    finally:
        await connection.close()
    with pytest.raises(MigrationRefused, match="dataset versions with a URI inside"):
        await migrate(url)
    assert await current(url) == "0006"
    assert await rows(empty_database, "SELECT count(*) FROM animus.dataset_version") == [1]


@pytest.mark.parametrize(("env", "refused"), [("[]", False), ('[{"name":"A","value":"1"}]', True)])
async def test_a_database_with_environment_variables_from_before_secret_refs_is_refused(
    empty_database: Database, env: str, refused: bool
) -> None:
    """Their documents lack a field; a spec without a variable is the same before and after."""
    url = empty_database.owner_url
    await migrate(url, "0012")
    spec = f'{{"metadata":{{"name":"n"}},"spec":{{"steps":[{{"env":[]}},{{"env":{env}}}]}}}}'.encode().hex()
    planted = f"INSERT INTO animus.pipeline_spec (project_id, entry_id, document) VALUES ('p', 'e', '\\x{spec}')"
    await rows(empty_database, f"DO $$ BEGIN SET LOCAL session_replication_role = replica; {planted}; END $$")
    if refused:
        with pytest.raises(MigrationRefused, match="environment variables without a secretRef"):
            await migrate(url)
    else:
        assert await migrate(url) == ["0013"]
    assert await current(url) == ("0012" if refused else "0013")
    assert await rows(empty_database, "SELECT count(*) FROM animus.pipeline_spec") == [1]


async def test_the_service_role_may_read_the_revision_and_not_change_it(database: Database) -> None:
    """The server compares revisions at its start, as the service role."""
    assert await current(database.service_url) == head()
    connection = await asyncpg.connect(database.service_url.replace("+asyncpg", ""))
    try:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute("DELETE FROM animus.alembic_version")
    finally:
        await connection.close()


async def test_a_cloned_database_is_at_head(database: Database) -> None:
    """The database that each test gets has the whole schema of this release, and PUBLIC has no grant on it."""
    assert await current(database.owner_url) == head()
    assert await migrate(database.owner_url) == []
    public = "SELECT count(*) FROM pg_database, aclexplode(datacl) WHERE datname = current_database() AND grantee = 0"
    assert await rows(database, public) == [0]
    temporary = "SELECT has_database_privilege('animus_service', current_database(), 'TEMP, CREATE')"
    assert await rows(database, temporary) == [False]


def test_the_revisions_are_found_in_the_checkout() -> None:
    """In a source tree `migrations/` stands at its root."""
    assert locate().name == "migrations"
    assert (locate() / "env.py").is_file()


def test_the_revisions_are_found_in_a_wheel(directory: Path) -> None:
    """A wheel carries `migrations/` inside the package, and what is installed from it finds them there."""
    root = Path(__file__).parents[2]
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(directory)]
    subprocess.run(build, cwd=root, check=True, capture_output=True, timeout=60)
    (wheel,) = directory.glob("*.whl")
    installed = directory / "installed"
    zipfile.ZipFile(wheel).extractall(installed)
    program = "from animus.store.migrate import head, locate; print(locate(), head())"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(installed)},
        cwd=directory,
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.split() == [str(installed / "animus" / "migrations"), head()]
