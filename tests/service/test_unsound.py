"""A log that contradicts what was signed: no server takes a change, whichever of them found it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from conftest import Database
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.pool import NullPool

from animus.v1 import log_pb2, project_pb2
from service.conftest import Failure, Server
from service.requests import dataset
from service.shared import held, serving, until

NAME = "hidden-project"  # of which no other project's caller may hear


@dataclass(slots=True)
class Servers:
    """Three servers of one instance; the third has no signer's state."""

    admin: AsyncConnection
    all: list[Server] = field(default_factory=list)
    stacks: list[AsyncExitStack] = field(default_factory=list)
    count: int = 0

    async def leads(self, server: Server) -> None:
        """Waits until a server leads: one that does misses a round where another looks at the same moment."""
        leader = server.running.log.leader

        async def seen() -> bool:
            return leader is not None and leader.leads

        await until(seen, "a server that leads")

    async def change(self, server: Server) -> None:
        """A new change."""
        self.count += 1
        await server.admin("CreateDataset", dataset("p", f"d{self.count}"))

    async def refused(self) -> None:
        """No server takes a change, for longer than the signer's second, and each answers what is read."""
        for _ in range(30):
            for server in self.all:
                with pytest.raises(Failure) as found:
                    await self.change(server)
                assert (found.value.code, found.value.reason) == ("UNAVAILABLE", "LOG_UNSOUND")
                assert NAME not in found.value.message
                assert NAME not in str(found.value.metadata)
                await server.admin("GetProject", project_pb2.GetProjectRequest(project_id="p"))
            await asyncio.sleep(0.04)

    async def red(self) -> None:
        """Each server's health names the log that is at fault, and GetLog of another project does not."""
        for server in self.all:

            async def named(server: Server = server) -> bool:
                return any(NAME in each for each in server.running.log.problems)

            await until(named, "a server that knows of it")
            found = await server.admin("GetLog", log_pb2.GetLogRequest(project_id="p"))
            assert not any(NAME in problem for problem in found.problems)

    async def contradict(self) -> None:
        """Writes the tree of a log that nobody grew."""
        await self.admin.execute(
            text("INSERT INTO animus.log_state (project_id, size, hashes, fence) VALUES (:name, 2, sha256('x'), 1)"),
            {"name": NAME},
        )

        async def found() -> bool:
            return bool(await self.problem())

        await until(found, "a leader that has seen it")

    async def mend(self) -> None:
        """Takes it out again."""
        await self.admin.execute(text("DELETE FROM animus.log_state WHERE project_id = :name"), {"name": NAME})

        async def gone() -> bool:
            leaders = [server.running.log.leader for server in self.all]
            return not await self.problem() and not any(leader and leader.problem for leader in leaders)

        await until(gone, "servers that find all well")

    async def problem(self) -> str:
        """What the leader tells the others."""
        return str((await self.admin.execute(text("SELECT problem FROM animus.log_lead"))).scalar_one())


@pytest.fixture
async def servers(database: Database, tmp_path: Path) -> AsyncIterator[Servers]:
    """All of them take changes."""
    engine = create_async_engine(database.admin_url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    async with engine.connect() as admin, AsyncExitStack() as stack:
        found = Servers(admin)
        first = tmp_path / "0"
        for number in range(3):
            folder = tmp_path / str(number)
            folder.mkdir()
            if number:
                (folder / "admin.token").write_text((first / "admin.token").read_text())
            if number == 2:
                (folder / "log").mkdir()
                (folder / "log" / "log.key").write_text((first / "log" / "log.key").read_text())
                (folder / "log" / "log.key").chmod(0o600)
            settings = {"log_dir": str(first / "log")} if number == 1 else {}
            own = await stack.enter_async_context(AsyncExitStack())
            found.all.append(await own.enter_async_context(serving(database.service_url, folder, **settings)))
            found.stacks.append(own)
        await found.all[0].project("p")
        for server in found.all:
            await found.change(server)
        await found.leads(found.all[0])
        assert found.all[2].running.log.leader is None
        yield found
    await engine.dispose()


async def test_no_server_takes_a_change_while_the_log_is_unsound(servers: Servers) -> None:
    """From the moment in which one has found it until one has found all well: then they all take changes again."""
    await servers.contradict()
    await servers.refused()
    await servers.red()
    await servers.mend()
    for server in servers.all:
        await servers.change(server)


async def test_a_leader_that_cannot_look_again_clears_nothing(servers: Servers) -> None:
    """While another has the lock of whoever writes the log, what was found stands, mended or not."""
    await servers.contradict()
    async with held(servers.all[0]):
        await servers.admin.execute(text("DELETE FROM animus.log_state WHERE project_id = :name"), {"name": NAME})
        await servers.refused()
    await servers.mend()
    for server in servers.all:
        await servers.change(server)


async def test_the_next_leader_looks_for_itself(servers: Servers) -> None:
    """What the last one found stands when it is gone; the next finds it again, and after it that it is no more."""
    await servers.contradict()
    await servers.stacks[0].aclose()
    del servers.all[0]
    await servers.refused()
    await servers.red()
    assert NAME in await servers.problem()
    await servers.mend()
    for server in servers.all:
        await servers.change(server)
    await servers.leads(servers.all[0])
