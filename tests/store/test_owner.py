"""Who owns the database: the owner's login proves it, no other does, and no login to another database."""

import secrets

import pytest
from conftest import Database
from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from animus.store.engine import LoginRefused
from animus.store.owner import NotOwner, owner_of


async def proven(database: Database, owner_url: str) -> str:
    """The role that a URL proves to own a database."""
    engine = create_async_engine(database.service_url, poolclass=NullPool)
    return await owner_of(engine, owner_url)


async def test_the_owner_is_named(database: Database) -> None:
    """By the role of its login."""
    assert await proven(database, database.owner_url) == "animus_owner"


async def test_a_member_of_the_owner_is_named_by_its_own_login(database: Database) -> None:
    """A person's role that may act as the owner, not the owner's."""
    superuser = create_async_engine(database.admin_url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    secret = secrets.token_hex(8)
    async with superuser.connect() as admin:
        await admin.execute(text(f"CREATE ROLE keeper LOGIN PASSWORD '{secret}' IN ROLE animus_owner"))
        try:
            url = make_url(database.owner_url).set(username="keeper", password=secret)
            assert await proven(database, url.render_as_string(hide_password=False)) == "keeper"
        finally:
            await admin.execute(text("DROP ROLE keeper"))


async def test_a_role_that_does_not_own_the_schema_is_refused(database: Database) -> None:
    """The service's own, though it may write."""
    with pytest.raises(NotOwner, match="animus_service does not own the schema animus"):
        await proven(database, database.service_url)


async def test_the_owner_of_another_database_is_refused(database: Database, empty_database: Database) -> None:
    """The same role on the same PostgreSQL, but not this database."""
    with pytest.raises(NotOwner, match="another database"):
        await proven(database, empty_database.owner_url)


async def test_what_leads_nowhere_proves_nothing(database: Database) -> None:
    """No URL, and a wrong password; neither is quoted."""
    secret = secrets.token_hex(8)
    with pytest.raises(ValueError, match="no URL") as malformed:
        await proven(database, f"{secret} :")
    wrong = make_url(database.owner_url).set(password=secret).render_as_string(hide_password=False)
    with pytest.raises(LoginRefused) as refused:
        await proven(database, wrong)
    assert not [error for error in (malformed, refused) if secret in str(error.value)]
