"""A real PostgreSQL for each test process, and a new migrated database for each test that asks for one."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from animus.store.embedded import OWNER, EmbeddedPostgres, database_grants
from animus.store.migrate import migrate

TEMPLATE = "animus_template"
_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Database:
    """One database, as each role reaches it (SQLAlchemy asyncpg URLs)."""

    owner_url: str
    service_url: str
    admin_url: str


def short_temporary_directory() -> Path:
    """A new directory that PostgreSQL's account may enter, in memory where that is large enough and may run programs.

    Large enough for two test processes, each with some 400 MB at its end. fsync costs nothing there, so it stays on.
    pytest's own directories are 0700 and their paths long.
    """
    memory = Path("/dev/shm")
    parent = Path(tempfile.gettempdir())
    if memory.is_dir():
        found = os.statvfs(memory)
        if found.f_bavail * found.f_frsize >= 1 << 30 and not found.f_flag & os.ST_NOEXEC:
            parent = memory
    directory = Path(tempfile.mkdtemp(prefix="animus-", dir=parent))
    directory.chmod(0o711)
    return directory


@pytest.fixture
def directory() -> Iterator[Path]:
    """A short directory of the test's own, in which a data directory may be made."""
    path = short_temporary_directory()
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="session")
def postgres() -> Iterator[EmbeddedPostgres]:
    """The test process's PostgreSQL, with fsync on."""
    path = short_temporary_directory()
    server = EmbeddedPostgres.start(path / "data")
    yield server
    server.stop()
    shutil.rmtree(path)


@pytest.fixture(scope="session")
async def admin(postgres: EmbeddedPostgres) -> AsyncIterator[AsyncEngine]:
    """The superuser's engine, in autocommit, on a database that no test touches."""
    url = make_url(postgres.admin_url).set(database="postgres")
    engine = create_async_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    yield engine
    await engine.dispose()


@pytest.fixture(scope="session")
async def template(postgres: EmbeddedPostgres, admin: AsyncEngine) -> str:
    """The name of a migrated database to clone."""
    await create_database(admin, TEMPLATE, "template1")
    await migrate(_on(postgres.owner_url, TEMPLATE))
    return TEMPLATE


@pytest.fixture
async def database(postgres: EmbeddedPostgres, admin: AsyncEngine, template: str) -> AsyncIterator[Database]:
    """A new migrated database, dropped after the test."""
    name = f"test_{next(_numbers)}"
    await create_database(admin, name, template)
    yield Database(*(_on(url, name) for url in (postgres.owner_url, postgres.service_url, postgres.admin_url)))
    await drop_database(admin, name)


@pytest.fixture
async def empty_database(postgres: EmbeddedPostgres, admin: AsyncEngine) -> AsyncIterator[Database]:
    """A new database with no schema, dropped after the test."""
    name = f"test_{next(_numbers)}"
    await create_database(admin, name, "template1")
    yield Database(*(_on(url, name) for url in (postgres.owner_url, postgres.service_url, postgres.admin_url)))
    await drop_database(admin, name)


async def create_database(admin: AsyncEngine, name: str, template: str) -> None:
    """Clones a database and gives it the grants that the embedded server gives its own."""
    async with admin.connect() as connection:
        for statement in (f"CREATE DATABASE {name} TEMPLATE {template} OWNER {OWNER}", *database_grants(name)):
            await connection.execute(text(statement))


async def drop_database(admin: AsyncEngine, name: str) -> None:
    """Drops a database, with whatever connections the test left."""
    async with admin.connect() as connection:
        await connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))


def _on(url: str, database: str) -> str:
    return make_url(url).set(database=database).render_as_string(hide_password=False)
