"""Connections to PostgreSQL, and what their failures mean to the rest of the program."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from animus.domain.errors import Unavailable

POOL_WAIT_SECONDS = 5
UNREACHABLE = ("08", "53", "57P")  # SQLSTATE: connection lost, resources exhausted, shutting down
NO_LOGIN = ("28", "3D")  # SQLSTATE: wrong role or password, no such database
CONNECTION_SETTINGS = {
    "application_name": "animus",
    "statement_timeout": "30000",
    "lock_timeout": "10000",
    "idle_in_transaction_session_timeout": "60000",
    "jit": "off",
}


class LoginRefused(RuntimeError):
    """The database does not let this role in; the text is one line without the password."""


def driver_url(url: str) -> URL:
    """A PostgreSQL URL as people write it, for the one driver that is used. Raises ValueError without quoting it."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):  # the latter quotes what it takes for the port
        raise ValueError("is no URL such as postgresql://role:password@host:5432/database") from None
    if parsed.get_backend_name() not in ("postgresql", "postgres"):
        raise ValueError("is no postgresql:// URL")
    return parsed.set(drivername="postgresql+asyncpg")


def make_engine(url: str, *, pool_size: int, pgbouncer: bool) -> AsyncEngine:
    """The pool of connections of the service role.

    Behind pgbouncer in transaction mode, no statement may be prepared and no session setting sent.
    """
    arguments: dict[str, Any] = {"server_settings": CONNECTION_SETTINGS}
    if pgbouncer:
        arguments = {"statement_cache_size": 0, "prepared_statement_cache_size": 0}
    return create_async_engine(
        driver_url(url),
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=POOL_WAIT_SECONDS,
        connect_args=arguments,
        isolation_level="READ COMMITTED",
        hide_parameters=True,  # errors are logged; what users send is not
    )


def sqlstate(error: BaseException | None) -> str:
    """The SQLSTATE of an error of the driver, or of one that wraps it; empty where it has none."""
    if isinstance(error, DBAPIError):
        return sqlstate(error.orig)
    return getattr(error, "sqlstate", None) or ""


@asynccontextmanager
async def translated() -> AsyncIterator[None]:
    """Says in the terms of the domain that the database cannot be had; other errors pass.

    Raises Unavailable, or LoginRefused when the database answers and does not let the role in.
    """
    try:
        yield
    except PoolTimeout:
        raise Unavailable("BUSY", "all database connections are busy: repeat the call later") from None
    except Exception as error:  # of any class: a connection that fails is no DBAPIError yet; what is not meant passes
        state = sqlstate(error)
        if state.startswith(NO_LOGIN):
            raise LoginRefused(f"the database refuses the login: SQLSTATE {state}") from None
        lost = isinstance(error, DBAPIError) and error.connection_invalidated
        if lost or isinstance(error, OSError) or state.startswith(UNREACHABLE):
            raise Unavailable(
                "DATABASE_UNAVAILABLE", "the database does not answer: repeat the call with the same request_id"
            ) from error
        if state == "55P03":
            raise Unavailable(
                "CONTENTION", "another call holds what this one changes: repeat the call with the same request_id"
            ) from error
        if state == "57014":
            raise Unavailable("DEADLINE", "the database took longer than it may: repeat the call later") from error
        raise
