"""A database that goes away and comes back."""

import asyncio

from conftest import Database
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from animus.v1 import run_pb2
from service.conftest import Failure, Server


async def test_the_database_may_go_and_come_back(server: Server, database: Database) -> None:
    """Connections that the database ended are replaced: a call fails with UNAVAILABLE at most once for each."""
    request = run_pb2.ListRunsRequest(project_id="p")
    await asyncio.gather(*(server.admin("ListRuns", request) for _ in range(10)))
    engine = create_async_engine(database.admin_url, isolation_level="AUTOCOMMIT")
    async with engine.connect() as admin:
        await admin.execute(
            text(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
                " WHERE datname = current_database() AND usename = 'animus_service'"
            )
        )
    await engine.dispose()
    async with asyncio.timeout(10):
        while True:
            try:
                await server.admin("ListRuns", request)
            except Failure as failure:
                assert failure.code == "UNAVAILABLE"
            else:
                break
