"""A server that is stopped in the middle of its work on the log, while another leads, and then goes on."""

import asyncio
import secrets
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import Database
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from animus.domain import document
from animus.domain.access import Role, principal_of
from animus.domain.merkle import CompactRange
from animus.domain.project import Project
from animus.keyring import Keyring
from animus.store.log import LogStore
from animus.store.signer_state import Advance, SignerState
from animus.store.unit_of_work import Call, Change, UnitOfWork, View
from animus.v1 import project_pb2
from animus.workers.integrator import Integrator
from animus.workers.leader import Leader
from animus.workers.publisher import Publisher


class StoppedState(SignerState):
    """The signer's state as a process has it that is stopped once: before it reads, after it, or before it writes."""

    def __init__(self, path: Path, place: str) -> None:
        super().__init__(path)
        self.place = place
        self.reached = threading.Event()
        self.goes_on = threading.Event()

    def heads(self, logs: Sequence[str] = ()) -> dict[str, CompactRange]:
        """Stops before or after."""
        self._stop("before a look" if logs else "before the first look")
        found = super().heads(logs)
        self._stop("after a look" if logs else "after the first look")
        return found

    def advance(self, epoch: int, advances: Sequence[Advance]) -> None:
        """Stops before."""
        self._stop("before a promise")
        super().advance(epoch, advances)

    def _stop(self, place: str) -> None:
        if place == self.place and not self.reached.is_set():
            self.reached.set()
            assert self.goes_on.wait(60)


@dataclass(slots=True)
class World:
    """An instance of two servers."""

    engine: AsyncEngine
    superuser: AsyncEngine
    keyring: Keyring
    state: Path
    work: UnitOfWork

    def leader(self, name: str, state: SignerState) -> tuple[Leader, AsyncEngine]:
        """The task of a server, with connections of its own."""
        engine = create_async_engine(self.engine.url, connect_args={"server_settings": {"application_name": name}})
        store = LogStore(engine, name)
        return Leader(store, self.keyring, Integrator(self.keyring), Publisher(store, state, self.keyring)), engine

    async def change(self) -> None:
        """A change, with its entry."""
        project_id = f"p{secrets.token_hex(8)}"
        call = Call("m", "p", principal_of("tester", Role.ADMIN, project_id), project_id, False, b"{}")

        async def decide(view: View) -> Change:
            records = () if view.project_known else (document.seal(Project("p", "", "", ())),)
            return Change("project.create", "projects/p", records, (), project_pb2.Project())

        await self.work.change(call, decide, creates_project=True)

    async def lose(self, name: str) -> None:
        """What a stop of seconds does to a leader: its lease runs out, and its open transaction is ended."""
        async with self.superuser.connect() as connection:
            await connection.execute(
                text("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = :name"),
                {"name": name},
            )
            await connection.execute(text("UPDATE animus.log_lead SET renew_time = '-infinity'"))


@pytest.fixture
async def world(database: Database, tmp_path: Path) -> AsyncIterator[World]:
    """An instance whose log has one published head."""
    engine = create_async_engine(database.service_url)
    superuser = create_async_engine(database.admin_url, isolation_level="AUTOCOMMIT")
    keyring, _ = Keyring.create(tmp_path, "animus.example")
    state = tmp_path / "signer.db"
    SignerState.create(state, 1)
    work = UnitOfWork(engine, lambda: secrets.token_hex(16), keyring.seal, None)
    yield World(engine, superuser, keyring, state, work)
    await engine.dispose()
    await superuser.dispose()


async def until(done: Callable[[], bool]) -> None:
    """Waits."""
    async with asyncio.timeout(60):
        while not done():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    "place", ["before the first look", "after the first look", "before a look", "after a look", "before a promise"]
)
async def test_a_leader_that_was_stopped_makes_no_false_alarm(place: str, world: World) -> None:
    """Wherever it was, it finds that another leads, says that nothing is wrong, and signs nothing that contradicts."""
    stopped = StoppedState(world.state, "" if "first" not in place else place)
    one, ones = world.leader("one", stopped)
    other, others = world.leader("other", SignerState(world.state))
    await world.change()
    if "first" not in place:
        await one.start()
        assert (one.leads, one.problem, one.published) == (True, "", 2)
        await world.change()
        stopped.place = place
        one.publish_soon()
    working = asyncio.create_task(one.start())
    await until(stopped.reached.is_set)
    await world.lose("one")
    await world.change()
    await other.start()
    assert (other.leads, other.problem, other.published) == (True, "", 2)
    stopped.goes_on.set()
    await working
    assert one.problem == ""
    assert not one.leads
    await world.lose("other")
    await world.change()
    one.publish_soon()
    await one.start()
    assert (one.leads, one.problem) == (True, "")
    await ones.dispose()
    await others.dispose()
