"""How a server starts on its log: first of several at once, and later only with the key that the database knows."""

import asyncio
import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from conftest import Database
from sqlalchemy import make_url

from animus.server import StartRefused, run_server
from animus.signing import dump_signing_key, generate_signing_key
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


async def test_settings_of_the_log_that_mean_nothing_are_refused_by_name(database: Database, tmp_path: Path) -> None:
    """Each is named in one line, before anything is made in the instance's name."""
    (tmp_path / "policy").write_text("witness w\n")
    cases = [
        ("ANIMUS_LOG_NAME: is no name", {"log_name": "Animus Example"}),
        ("ANIMUS_LOG_POLICY_FILE: ", {"log_policy_file": str(tmp_path / "policy")}),
        ("ANIMUS_LOG_POLICY_FILE: .*No such file", {"log_policy_file": str(tmp_path / "none")}),
    ]
    for said, settings in cases:
        with pytest.raises(StartRefused, match=said) as found:
            async with run_server(settings_for(database.service_url, tmp_path / "data", **settings)):
                pass
        assert "\n" not in str(found.value)
    assert list(tmp_path.rglob("log.key")) == []


async def test_a_server_starts_only_with_the_key_of_its_log(database: Database, tmp_path: Path) -> None:
    """Without it, with that of another instance, or with one that others can read it does not start; then it does."""
    data_dir = tmp_path / "data"
    key = data_dir / "log" / "log.key"
    settings = settings_for(database.service_url, data_dir, log_name="animus.example")
    async with run_server(settings):
        pass
    kept = key.read_text()

    def another() -> None:
        key.write_text(dump_signing_key(generate_signing_key("animus.example", secrets.token_bytes)) + "\n")

    cases = [
        (r"log\.key is missing", key.unlink),
        ("is not the key of this instance's log", another),
        ("can be read by others: chmod 600", lambda: key.chmod(0o640)),
    ]
    for said, spoil in cases:
        spoil()
        with pytest.raises(StartRefused, match=said) as found:
            async with run_server(settings):
                pass
        assert "\n" not in str(found.value)
        assert kept.strip() not in str(found.value)
        key.unlink(missing_ok=True)
        key.write_text(kept)
        key.chmod(0o600)
    async with run_server(settings):
        pass


async def test_a_server_without_the_signers_state_takes_changes_and_signs_nothing(
    database: Database, tmp_path: Path
) -> None:
    """What it wrote waits for a server that has the state: no second one is made for a log that was signed."""
    first, second = tmp_path / "first", tmp_path / "second"
    async with admin_of(database.service_url, first, first):
        pass
    (second / "log").mkdir(parents=True)
    shutil.copy(first / "log" / "log.key", second / "log" / "log.key")
    project = project_pb2.Project(project_id="p", display_name="", description="")
    create = project_pb2.CreateProjectRequest(project_id="p", request_id="r", project=project)
    async with admin_of(database.service_url, second, first) as admin:
        await admin("CreateProject", create)
        log = await admin("GetLog", log_pb2.GetLogRequest(project_id="p"))
        assert (log.size, log.published_size, log.queued) == (0, 0, 1)
    assert [path.name for path in (second / "log").iterdir()] == ["log.key"]
    async with admin_of(database.service_url, first, first) as admin:
        await admin("GetCheckpoint", log_pb2.GetCheckpointRequest(project_id="p", minimum_size=1))
