"""Brings a database to the schema of this release: Alembic revisions in `migrations/`, forward only.

Each revision is one transaction, so a crash leaves the last whole revision and the next run goes on from there. Of two
processes that migrate one database at once, one does it and the other waits and then finds nothing to do (the lock is
in `migrations/env.py`).
"""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.pool import NullPool

import animus
from animus.store.engine import driver_url, sqlstate, translated

REFUSED = "P0001"  # SQLSTATE of what a revision raises itself


class MigrationRefused(RuntimeError):
    """A revision does not go on from what the database holds; the text is one line that says why and what to do."""


def locate() -> Path:
    """The directory of the revisions: inside the package when installed from a wheel, else at the checkout's root."""
    package = Path(animus.__file__).resolve().parent
    for directory in (package / "migrations", package.parent.parent / "migrations"):
        if (directory / "env.py").is_file():
            return directory
    raise RuntimeError(f"this installation has no migrations: looked in {package} and in {package.parent.parent}")


def head(directory: Path | None = None) -> str:
    """The newest revision. `directory` stands in for `locate()`. Raises RuntimeError when there is none."""
    newest = ScriptDirectory.from_config(_config(directory)).get_current_head()
    if newest is None:
        raise RuntimeError(f"{directory or locate()} holds no revision")
    return newest


async def migrate(owner_url: str, revision: str = "head", *, directory: Path | None = None) -> list[str]:
    """Applies the revisions up to the given one, as the database's owner, and returns those applied, oldest first.

    Waits for another process that migrates the same database. Raises MigrationRefused where a revision refuses; driver
    errors pass through. The revisions before the failing one stay applied.
    """
    config = _config(directory)
    applied: list[str] = []

    def upgrade(connection: Connection) -> None:
        config.attributes.update(connection=connection, applied=applied)
        command.upgrade(config, revision)

    engine = create_async_engine(driver_url(owner_url), poolclass=NullPool)
    try:
        async with translated(), engine.connect() as connection:
            await connection.run_sync(upgrade)
    except DBAPIError as error:
        if sqlstate(error) != REFUSED or error.orig is None:
            raise
        raise MigrationRefused(str(error.orig.__cause__)) from None
    finally:
        await engine.dispose()
    return applied


async def current(url: str) -> str | None:
    """The revision that the database is at, or None before the first. The role needs to read `animus`'s version."""
    engine = create_async_engine(driver_url(url), poolclass=NullPool)
    try:
        async with translated(), engine.connect() as connection:
            return await revision_of(connection)
    finally:
        await engine.dispose()


async def revision_of(connection: AsyncConnection) -> str | None:
    """The same, on an open connection."""
    exists = await connection.scalar(
        text(
            "SELECT true FROM pg_class t JOIN pg_namespace s ON s.oid = t.relnamespace"
            " WHERE s.nspname = 'animus' AND t.relname = 'alembic_version'"
        )
    )
    if not exists:
        return None
    revision: str | None = await connection.scalar(text("SELECT version_num FROM animus.alembic_version"))
    return revision


def _config(directory: Path | None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(directory or locate()).replace("%", "%%"))
    return config
