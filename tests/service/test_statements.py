"""What each mutating call costs: its statements, and the times that it waits for the database.

The golden file holds both for a call that meets nothing in its way. `pytest -s` shows
the table; after a change that is meant, `ANIMUS_UPDATE_GOLDEN=1` writes the file anew.
"""

import asyncio
import json
import os
import secrets
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from conftest import Database
from contract import METHODS
from google.protobuf.message import Message
from sqlalchemy import make_url

from animus.server import run_server
from animus.v1 import access_pb2, project_pb2, run_pb2, runtime_pb2
from service.conftest import Caller, Server, open_channel, settings_for
from service.requests import (
    artifact,
    create_run,
    dataset,
    environment,
    event,
    plan_run,
    prepare,
    register_pipeline,
    report,
    two_steps,
    version,
)
from service.test_faults import BESIDE

GOLDEN = Path(__file__).parent.parent / "golden" / "statements.json"


@dataclass(slots=True)
class Meter:
    """What one database connection's traffic says: how often the client spoke after the server had."""

    round_trips: int = 0
    statements: list[str] = field(default_factory=list)
    turns: dict[int, bool] = field(default_factory=dict)

    def reset(self) -> None:
        """Starts again from nothing."""
        self.round_trips = 0
        self.statements.clear()

    def sent(self, connection: int) -> None:
        """The client wrote; a round trip begins if the server was last to write."""
        if not self.turns.get(connection, False):
            self.round_trips += 1
        self.turns[connection] = True

    def received(self, connection: int) -> None:
        """The server wrote."""
        self.turns[connection] = False


@asynccontextmanager
async def metered(socket_dir: str, meter: Meter) -> AsyncIterator[str]:
    """A socket in front of PostgreSQL's that counts turns; yields its directory."""
    with tempfile.TemporaryDirectory(prefix="animus-") as directory:
        numbers = iter(range(1, 1_000))

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            number = next(numbers)
            from_server, to_server = await asyncio.open_unix_connection(f"{socket_dir}/.s.PGSQL.5432")
            await asyncio.gather(
                _pass(reader, to_server, lambda: meter.sent(number)),
                _pass(from_server, writer, lambda: meter.received(number)),
            )

        server = await asyncio.start_unix_server(serve, f"{directory}/.s.PGSQL.5432")
        async with server:
            yield directory


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, note: Any) -> None:
    try:
        while data := await reader.read(1 << 20):
            note()
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass  # either side may go first
    finally:
        writer.close()


@pytest.fixture
async def meter() -> Meter:
    """Counts of the metered server."""
    return Meter()


@pytest.fixture
async def metered_server(database: Database, tmp_path: Path, meter: Meter) -> AsyncIterator[Server]:
    """A server whose connections to the database are counted."""
    url = make_url(database.service_url)
    async with metered(str(url.query["host"]), meter) as directory:
        through = url.update_query_dict({"host": directory}).render_as_string(hide_password=False)
        settings = settings_for(through, tmp_path, pool_size="2")
        async with run_server(settings) as running, open_channel(running.grpc) as channel:
            server = Server(running, channel, settings, Caller(channel, (tmp_path / "admin.token").read_text().strip()))
            _note_statements(server, meter)
            await server.project("p")
            yield server


def _note_statements(server: Server, meter: Meter) -> None:
    dialect: Any = server.running.engine.sync_engine.dialect
    execute, commit = dialect.do_execute, dialect.do_commit

    def do_execute(cursor: Any, statement: str, parameters: Any, context: Any = None) -> None:
        meter.statements.append(" ".join(statement.split())[:60])
        execute(cursor, statement, parameters, context)

    def do_commit(connection: Any) -> None:
        meter.statements.append("COMMIT")
        commit(connection)

    dialect.do_execute, dialect.do_commit = do_execute, do_commit


class Calls:
    """A new request of each mutating method, with everything before it done."""

    def __init__(self, server: Server, spec: run_pb2.RunSpec) -> None:
        self._server = server
        self._spec = spec
        self._count = 0

    async def request(self, method: str) -> Message:
        """The request."""
        self._count += 1
        unique = secrets.token_hex(8)
        if method == "CreateProject":
            project = project_pb2.Project(project_id=f"n{self._count}", display_name="", description="")
            return project_pb2.CreateProjectRequest(project_id=project.project_id, request_id=unique, project=project)
        if method == "CreateToken":
            token = access_pb2.Token(
                token_digest=f"sha256:{secrets.token_hex(32)}", principal="bot", role=access_pb2.ROLE_VIEWER
            )
            token.expire_time.GetCurrentTime()
            token.expire_time.nanos = 0
            token.expire_time.seconds += 3_600
            return access_pb2.CreateTokenRequest(project_id="p", request_id=unique, token=token)
        if method == "CreateDataset":
            return dataset("p", f"data-{unique}")
        if method == "RegisterDatasetVersion":
            return version("p", f"sha256:{secrets.token_hex(32)}")
        if method == "RegisterEnvironmentLock":
            lock = environment()
            lock.request_id = lock.environment_lock.python_version = unique
            return lock
        if method == "RegisterPipelineSpec":
            pipeline = register_pipeline(two_steps(), request_id=unique)
            pipeline.pipeline_spec.metadata.description = unique
            return pipeline
        if method == "CreateRun":
            return create_run(self._spec, unique)
        run_id = (await self._server.admin("CreateRun", create_run(self._spec, secrets.token_hex(8)))).run_id
        if method == "PlanRun":
            return plan_run(run_id, unique)
        await self._server.admin("PlanRun", plan_run(run_id, secrets.token_hex(8)))
        if method == "CancelRun":
            return run_pb2.CancelRunRequest(project_id="p", request_id=unique, run_id=run_id)
        started = event("first", 1, "STARTED")
        if method == "ReportStepEvents":
            return report(run_id, started)
        await self._server.admin("ReportStepEvents", report(run_id, started))
        if method == "RegisterArtifacts":
            return artifact(run_id, "first", "table")
        assert method == "RecordMetrics"
        metric = runtime_pb2.MetricReport(step="first", attempt=1, name="loss", index=0, value="0.5")
        metric.occur_time.CopyFrom(started.occur_time)
        return runtime_pb2.RecordMetricsRequest(project_id="p", request_id=unique, run_id=run_id, metrics=[metric])


MUTATING = (
    "CreateProject",
    "CreateToken",
    "CreateDataset",
    "RegisterDatasetVersion",
    "RegisterEnvironmentLock",
    "RegisterPipelineSpec",
    "CreateRun",
    "PlanRun",
    "CancelRun",
    "ReportStepEvents",
    "RegisterArtifacts",
    "RecordMetrics",
)


async def test_each_change_costs_what_the_golden_file_says(metered_server: Server, meter: Meter) -> None:
    """Statements and round trips of every mutating method, printed as a table."""
    calls = Calls(metered_server, await prepare(metered_server.admin))
    found: dict[str, dict[str, Any]] = {}
    for method in MUTATING:
        for _ in range(3):  # each connection prepares each statement once
            requests = [await calls.request(method) for _ in range(2)]
            await asyncio.gather(*(metered_server.admin(method, request) for request in requests))
        async with asyncio.timeout(20):
            while method not in found:
                request = await calls.request(method)
                meter.reset()
                await metered_server.admin(method, request)
                if not any(statement.startswith(BESIDE) for statement in meter.statements):
                    found[method] = {"round_trips": meter.round_trips, "statements": list(meter.statements)}
    print(f"\n{'method':26}statements  round trips")
    for method, cost in found.items():
        print(f"{method:26}{len(cost['statements']):10}{cost['round_trips']:13}")
    if os.environ.get("ANIMUS_UPDATE_GOLDEN"):
        GOLDEN.write_text(json.dumps(found, indent=2) + "\n")
    assert found == json.loads(GOLDEN.read_text())


def test_every_mutating_method_is_measured() -> None:
    """A method with a request_id that the table lacks fails here."""
    mutating = {name for name, method in METHODS.items() if "request_id" in method.input_type.fields_by_name}
    assert mutating == set(MUTATING)
