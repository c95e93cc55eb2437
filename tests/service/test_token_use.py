"""When tokens were last used: written for many projects at once, seldom, and in nobody's way."""

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from conftest import Database
from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from structlog.testing import capture_logs

from animus.codec import sha256
from animus.server import run_server
from animus.store.unit_of_work import UnitOfWork
from animus.v1 import access_pb2
from animus.workers import token_use
from animus.workers.token_use import TokenUses
from service.conftest import Caller, Failure, open_channel, settings_for

DIGESTS = [f"sha256:{number:064x}" for number in range(50)]
USES = [(f"p{at % 3}", digest) for at, digest in enumerate(DIGESTS)]


def work_on(engine: AsyncEngine) -> UnitOfWork:
    """A unit of work that makes no change."""
    return UnitOfWork(engine, lambda: "", lambda *_: b"", None)


@pytest.fixture
async def engine(database: Database) -> AsyncIterator[AsyncEngine]:
    """The service role's engine."""
    found = create_async_engine(database.service_url)
    yield found
    await found.dispose()


async def written(database: Database, change: str = "SELECT") -> dict[tuple[str, str], float]:
    """The ages of all uses in seconds, after a change by the superuser."""
    engine = create_async_engine(database.admin_url, isolation_level="AUTOCOMMIT")
    async with engine.connect() as admin:
        await admin.execute(text(change))
        query = "SELECT project_id, token_digest, extract(epoch FROM now() - use_time)::float FROM animus.token_use"
        found = {(row[0], row[1]): row[2] for row in await admin.execute(text(query))}
    await engine.dispose()
    return found


async def test_uses_of_many_projects_are_written_at_once(database: Database, engine: AsyncEngine) -> None:
    """Each once, however often it was noted; and once they are written they are no longer held."""
    uses = TokenUses(work_on(engine))
    for project_id, digest in [*USES, *USES]:
        uses.note(project_id, digest)
    await uses.flush()
    assert set(await written(database)) == set(USES)
    await written(database, "DELETE FROM animus.token_use")
    await uses.flush()
    assert await written(database) == {}


async def test_a_server_that_stops_writes_what_it_has(database: Database, tmp_path: Path) -> None:
    """Of the token that was taken, by its digest; not of one that is none."""
    async with run_server(settings_for(database.service_url, tmp_path)) as running, open_channel(running.grpc) as found:
        token = (tmp_path / "admin.token").read_text().strip()
        await Caller(found, token)("WhoAmI", access_pb2.WhoAmIRequest())
        with pytest.raises(Failure):
            await Caller(found, token[:-1] + "_")("WhoAmI", access_pb2.WhoAmIRequest())
        assert await written(database) == {}
    assert set(await written(database)) == {("system", sha256(token.encode()))}


async def test_a_use_is_written_again_after_a_minute(database: Database, engine: AsyncEngine) -> None:
    """One that is half a minute old is left as it is."""
    uses = TokenUses(work_on(engine))
    for age, left in ((30, True), (90, False)):
        uses.note("p", DIGESTS[0])
        await uses.flush()
        await written(database, f"UPDATE animus.token_use SET use_time = now() - interval '{age} seconds'")
        uses.note("p", DIGESTS[0])
        await uses.flush()
        assert (next(iter((await written(database)).values())) >= age) is left


async def test_servers_that_write_the_same_uses_do_not_block_each_other(
    database: Database, engine: AsyncEngine
) -> None:
    """Eight at once, each with its own order: none fails, which of a deadlock one would."""
    work = work_on(engine)
    orders = [random.Random(seed).sample(USES, len(USES)) for seed in range(8)]
    await asyncio.gather(*(work.note_token_uses(order) for order in orders))
    assert set(await written(database)) == set(USES)


async def test_what_cannot_be_written_is_dropped_and_said_once(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is raised, one line is logged of two failures, and no more is held than may be."""
    monkeypatch.setattr(token_use, "HELD_AT_MOST", 10)
    gone = create_async_engine(make_url(database.service_url).update_query_dict({"host": str(tmp_path)}))
    uses = TokenUses(work_on(gone))
    with capture_logs() as lines:
        for _ in range(2):
            for project_id, digest in USES:
                uses.note(project_id, digest)
            assert len(uses._used) == 10
            await uses.flush()
            assert not uses._used
    assert [line["log_level"] for line in lines] == ["warning"]
    await gone.dispose()
