"""The first start of an instance, by several servers at once: one makes it, and the others find it or give way."""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from conftest import Database
from sqlalchemy import make_url

from animus.server import StartRefused, run_server
from animus.v1 import log_pb2, project_pb2
from service.conftest import Caller, open_channel, settings_for


@dataclass(slots=True)
class Gate:
    """Holds back what makes the instance, until it is opened."""

    url: str = ""  # of the database, through the gate
    reached: asyncio.Event = field(default_factory=asyncio.Event)
    opened: asyncio.Event = field(default_factory=asyncio.Event)

    async def pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, held: bytes) -> None:
        """Passes bytes on until the end; those that hold a text wait."""
        try:
            while data := await reader.read(1 << 20):
                if held and held in data:
                    self.reached.set()
                    await self.opened.wait()
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass  # either side may go first
        finally:
            writer.close()


@pytest.fixture
async def gate(database: Database) -> AsyncIterator[Gate]:
    """A way to the test's database that a server comes late by."""
    url = make_url(database.service_url)
    gate = Gate()
    with tempfile.TemporaryDirectory(prefix="animus-") as directory:

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            answers, requests = await asyncio.open_unix_connection(f"{url.query['host']}/.s.PGSQL.5432")
            await asyncio.gather(
                gate.pass_on(reader, requests, b"INSERT INTO animus.audit_entry"), gate.pass_on(answers, writer, b"")
            )

        gate.url = url.update_query_dict({"host": directory}).render_as_string(hide_password=False)
        server = await asyncio.start_unix_server(serve, f"{directory}/.s.PGSQL.5432")
        async with server:
            yield gate


@asynccontextmanager
async def admin_of(url: str, data_dir: Path, token_dir: Path, **more: str) -> AsyncIterator[Caller]:
    """A server for as long as the context lasts, called with the first token, from the data directory that has it."""
    async with run_server(settings_for(url, data_dir, **more)) as running, open_channel(running.grpc) as channel:
        yield Caller(channel, (token_dir / "admin.token").read_text().strip())


async def test_a_late_server_finds_the_key_that_it_made_itself(database: Database, gate: Gate, tmp_path: Path) -> None:
    """Of two that share the log's folder, one makes the key and the other registers it: it stays, with one token."""
    log_dir = str(tmp_path / "log")
    late, early = tmp_path / "late", tmp_path / "early"

    async def start_late() -> None:
        async with admin_of(gate.url, late, early, log_dir=log_dir) as admin:
            await admin("ListProjects", project_pb2.ListProjectsRequest())

    starting = asyncio.create_task(start_late())
    await gate.reached.wait()
    key = (tmp_path / "log" / "log.key").read_bytes()
    async with admin_of(database.service_url, early, early, log_dir=log_dir) as admin:
        gate.opened.set()
        await starting
        log = await admin("GetLog", log_pb2.GetLogRequest(project_id="system"))
        await admin("GetCheckpoint", log_pb2.GetCheckpointRequest(project_id="system", minimum_size=log.size))
    assert (tmp_path / "log" / "log.key").read_bytes() == key
    assert list(tmp_path.glob("*/admin.token")) == [early / "admin.token"]


async def test_a_late_server_with_a_key_of_its_own_gives_way_and_leaves_nothing(
    database: Database, gate: Gate, tmp_path: Path
) -> None:
    """It does not start, its key and token are gone, and the log of the other holds nothing under that key."""
    late, early = tmp_path / "late", tmp_path / "early"

    async def start_late() -> None:
        async with admin_of(gate.url, late, early):
            pass

    starting = asyncio.create_task(start_late())
    await gate.reached.wait()
    async with admin_of(database.service_url, early, early) as admin:
        gate.opened.set()
        with pytest.raises(StartRefused, match=r"log\.key is missing"):
            await starting
        assert [path for path in late.rglob("*") if path.is_file()] == []
        log = await admin("GetLog", log_pb2.GetLogRequest(project_id="system"))
        whole = log_pb2.GetCheckpointRequest(project_id="system", minimum_size=log.size + log.queued)
        await admin("GetCheckpoint", whole)
        log = await admin("GetLog", log_pb2.GetLogRequest(project_id="system"))
        assert (log.published_size, list(log.problems)) == (1, [])
