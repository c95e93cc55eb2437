"""Who owns the database: proven by a login as the role that owns the schema `animus`, or as a member of it."""

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from animus.store.engine import driver_url, translated


class NotOwner(RuntimeError):
    """The role that was given does not own the database; the text is one line that says why."""


# The cluster's own number and the database's name: two addresses that agree in both lead to one database.
_WHO = text(
    """
    SELECT session_user AS role, current_database() AS database,
           (SELECT system_identifier FROM pg_control_system()) AS cluster,
           EXISTS (SELECT FROM pg_namespace s
                   WHERE s.nspname = 'animus' AND pg_has_role(session_user, s.nspowner, 'MEMBER')) AS owns
    """
)


async def owner_of(engine: AsyncEngine, owner_url: str) -> str:
    """The role of the owner's URL, if it owns the database of the engine.

    Raises NotOwner; ValueError for what is no URL, without quoting it; LoginRefused and Unavailable.
    """
    owners = create_async_engine(driver_url(owner_url), poolclass=NullPool)
    try:
        async with translated(), owners.connect() as connection:
            found = (await connection.execute(_WHO)).one()
    finally:
        await owners.dispose()
    async with translated(), engine.connect() as connection:
        served = (await connection.execute(_WHO)).one()
    if (found.cluster, found.database) != (served.cluster, served.database):
        raise NotOwner("the owner's URL leads to another database than the server's")
    if not found.owns:
        raise NotOwner(f"the role {found.role} does not own the schema animus")
    return str(found.role)
