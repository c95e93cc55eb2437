"""One server for all tests of a file, each of which takes a project of its own."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import create_database, drop_database
from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.util import await_only

from animus.server import run_server
from animus.service import log_growth
from animus.store.embedded import EmbeddedPostgres
from animus.v1 import environment_pb2, log_pb2
from animus.workers import leader as leading
from service.auditor import Answer, Verifier, ask, verifier_of
from service.conftest import Caller, Server, open_channel, settings_for
from service.requests import environment

LEADING = "x'616E696D75736C67'::bigint"  # the advisory lock of whoever writes the log


@asynccontextmanager
async def served(
    postgres: EmbeddedPostgres, admin: AsyncEngine, template: str, data_dir: Path, **settings: str
) -> AsyncIterator[Server]:
    """A server on a new database."""
    name = f"shared_{secrets.token_hex(4)}"
    await create_database(admin, name, template)
    url = make_url(postgres.service_url).set(database=name).render_as_string(hide_password=False)
    async with serving(url, data_dir, **settings) as server:
        yield server
    await drop_database(admin, name)


@asynccontextmanager
async def serving(url: str, data_dir: Path, **settings: str) -> AsyncIterator[Server]:
    """A server on a database that is there; it looks after its log more often than others, so that tests wait less."""
    found = settings_for(url, data_dir, **{"log_name": "animus.example", **settings})
    often = pytest.MonkeyPatch()
    often.setattr(leading, "INTEGRATE_SECONDS", 0.02)
    often.setattr(leading, "FOLLOW_SECONDS", 0.1)
    often.setattr(log_growth, "LOOK_SECONDS", 0.02)
    async with run_server(found) as running, open_channel(running.grpc) as channel:
        token = (data_dir / "admin.token").read_text().strip()
        yield Server(running, channel, found, Caller(channel, token))
    often.undo()


class Grown:
    """A project whose log grows as a test wants it to."""

    def __init__(self, server: Server, project_id: str) -> None:
        self.server = server
        self.project_id = project_id
        self._count = 0

    @classmethod
    async def new(cls, server: Server) -> "Grown":
        """A project that nobody else has; its log has one entry, its own creation."""
        project_id = f"p{secrets.token_hex(6)}"
        await server.project(project_id)
        return cls(server, project_id)

    def change(self) -> environment_pb2.RegisterEnvironmentLockRequest:
        """A new request that makes one entry: a record at first, and then nothing new."""
        request = environment(self.project_id)
        self._count += 1
        request.request_id = f"grow-{self._count}"
        return request

    async def grow(self, count: int = 1, caller: Caller | None = None) -> list[Answer]:
        """Makes so many entries, in no certain order; fewer at once than a connection takes."""
        found: list[Answer] = []
        while len(found) < count:
            requests = [self.change() for _ in range(min(80, count - len(found)))]
            calls = (ask(caller or self.server.admin, "RegisterEnvironmentLock", request) for request in requests)
            found += await asyncio.gather(*calls)
        failures = {(answer.failure.code, answer.failure.message) for answer in found if answer.failure}
        assert not failures, failures
        return found

    async def published(self, size: int) -> log_pb2.LogCheckpoint:
        """The newest checkpoint, once it has a size."""
        request = log_pb2.GetCheckpointRequest(project_id=self.project_id, minimum_size=size)
        found: log_pb2.LogCheckpoint = await self.server.admin("GetCheckpoint", request)
        return found

    async def key(self) -> Verifier:
        """What the log's notes are verified with."""
        return await key_of_log(self.server, self.project_id)


async def key_of_log(server: Server, project_id: str) -> Verifier:
    """The one key of a log, as GetLog says it."""
    log = await server.admin("GetLog", log_pb2.GetLogRequest(project_id=project_id))
    (key,) = log.keys
    return verifier_of(key.vkey)


@asynccontextmanager
async def held(server: Server) -> AsyncIterator[None]:
    """Meanwhile nothing gets an index or a checkpoint: another has the lock of whoever writes the log."""
    async with server.running.engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        await connection.execute(text(f"SELECT pg_advisory_lock({LEADING})"))
        try:
            yield
        finally:
            await connection.execute(text(f"SELECT pg_advisory_unlock({LEADING})"))


@asynccontextmanager
async def on_demand(server: Server) -> AsyncIterator[None]:
    """Meanwhile checkpoints are made only when they are asked for: the next second of the leader never comes."""
    leader = server.running.log.leader
    assert leader is not None
    seconds, leading.PUBLISH_SECONDS = leading.PUBLISH_SECONDS, 1e9

    async def waits() -> bool:
        return leader._next_publish > 1e8

    try:
        await until(waits, "a leader whose next second does not come")
        await idle(server)
        yield
    finally:
        leading.PUBLISH_SECONDS = seconds
        leader._next_publish = 0.0


async def idle(server: Server) -> None:
    """Waits until the leader is between two rounds, and nobody has asked it to publish."""
    leader = server.running.log.leader
    assert leader is not None
    wanted: Any = leader._wanted

    async def rests() -> bool:
        return bool(wanted._waiters) and not wanted.is_set()  # it waits there, and only there

    await until(rests, "a leader that rests")


async def until(condition: Callable[[], Awaitable[bool]], what: str, seconds: float = 60) -> None:
    """Waits for a condition to hold."""
    try:
        async with asyncio.timeout(seconds):
            while not await condition():
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"not seen within {seconds} seconds: {what}") from None


async def size_of(server: Server, project_id: str) -> log_pb2.Log:
    """How far a log has come."""
    found: log_pb2.Log = await server.admin("GetLog", log_pb2.GetLogRequest(project_id=project_id))
    return found


@contextmanager
def executing(server: Server, seen: Callable[[str], None]) -> Iterator[None]:
    """Meanwhile each statement of the server, of whichever call, is shown to a function once it has been executed."""
    dialect: Any = server.running.engine.sync_engine.dialect
    execute = dialect.do_execute

    def do_execute(cursor: Any, statement: str, parameters: Any, context: Any = None) -> None:
        execute(cursor, statement, parameters, context)
        seen(statement.strip())

    dialect.do_execute = do_execute
    try:
        yield
    finally:
        dialect.do_execute = execute


@contextmanager
def after_first(server: Server, starts: tuple[str, ...], call: Callable[[], Awaitable[None]]) -> Iterator[None]:
    """Calls something when the server has executed the first statement that begins like one of these."""
    waiting = True

    def seen(statement: str) -> None:
        nonlocal waiting
        if waiting and statement.startswith(starts):
            waiting = False
            await_only(call())

    with executing(server, seen):
        yield
    assert not waiting
