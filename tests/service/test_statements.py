"""What each mutating call costs: its statements, and the times that it waits for the database.

The golden file holds both for a call that meets nothing in its way. `pytest -s` shows
the table; after a change that is meant, `ANIMUS_UPDATE_GOLDEN=1` writes the file anew.
"""

import asyncio
import json
import os
import secrets
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from conftest import Database
from contract import METHODS
from domain.test_external_lineage import event as openlineage_event
from google.protobuf.message import Message
from sqlalchemy import event, make_url

from animus.domain.note import COSIGNATURE, dump_key
from animus.server import run_server
from animus.signing import cosign, generate_signing_key
from animus.v1 import access_pb2, dataset_pb2, log_pb2, project_pb2, quality_pb2, run_pb2, runtime_pb2
from service.conftest import Caller, Server, open_channel, settings_for
from service.requests import (
    ONE,
    artifact,
    bind,
    create_run,
    dataset,
    disable,
    environment,
    evaluate,
    external_event,
    foreign,
    new_run_token,
    new_token,
    overriding,
    plan_run,
    prepare,
    profile,
    register_pipeline,
    report,
    revoke,
    rule,
    set_gate,
    two_steps,
    verify,
    version,
)
from service.requests import event as step_event
from service.test_faults import BESIDE, Own

GOLDEN = Path(__file__).parent.parent / "golden" / "statements.json"


@dataclass(slots=True)
class Meter:
    """What calls say to the database: their statements, and how often they spoke after it had answered.

    A connection is known by the process of the database's that serves it, and counts while a call holds it.
    """

    round_trips: int = 0
    statements: list[str] = field(default_factory=list)
    own: Own = field(default_factory=Own)
    held: set[int] = field(default_factory=set)  # by calls
    turns: dict[int, bool] = field(default_factory=dict)  # whose the last word was: true for the client's

    def begin(self) -> None:
        """Starts again from nothing, with the calls from now on."""
        self.round_trips = 0
        self.statements.clear()
        self.held.clear()
        self.own.begin()

    def took(self, connection: int) -> None:
        """A connection has left the pool."""
        if self.own.is_now():
            self.held.add(connection)

    def gave(self, connection: int) -> None:
        """A connection is back in the pool."""
        self.held.discard(connection)

    def executed(self, statement: str) -> None:
        """A statement or commit goes out."""
        if self.own.is_now():
            self.statements.append(" ".join(statement.split())[:60])

    def sent(self, connection: int) -> None:
        """The client wrote; a round trip begins if the server was last to write."""
        if not self.turns.get(connection, False) and connection in self.held:
            self.round_trips += 1
        self.turns[connection] = True

    def received(self, connection: int) -> None:
        """The server wrote."""
        self.turns[connection] = False


@asynccontextmanager
async def metered(socket_dir: str, meter: Meter) -> AsyncIterator[str]:
    """A socket in front of PostgreSQL's that counts turns; yields its directory."""
    with tempfile.TemporaryDirectory(prefix="animus-") as directory:

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            from_server, to_server = await asyncio.open_unix_connection(f"{socket_dir}/.s.PGSQL.5432")
            process: list[int] = []  # once it is known
            said = bytearray()

            def answered(data: bytes) -> None:
                if not process:
                    said.extend(data)
                    process.extend(_process(said))
                meter.received(*process or [0])

            await asyncio.gather(
                _pass(reader, to_server, lambda _: meter.sent(*process or [0])),
                _pass(from_server, writer, answered),
            )

        server = await asyncio.start_unix_server(serve, f"{directory}/.s.PGSQL.5432")
        async with server:
            yield directory


def _process(said: bytearray) -> list[int]:
    """The process that serves a connection, once it has said so: in a message of type K, as the login ends."""
    at = 0
    while at + 9 <= len(said):
        if said[at] == ord("K"):
            return [int.from_bytes(said[at + 5 : at + 9], "big")]
        at += 1 + int.from_bytes(said[at + 1 : at + 5], "big")
    return []


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, note: Callable[[bytes], None]) -> None:
    try:
        while data := await reader.read(1 << 20):
            note(data)
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


WITNESS = generate_signing_key("witness.example", secrets.token_bytes)


@pytest.fixture
async def metered_server(database: Database, tmp_path: Path, meter: Meter) -> AsyncIterator[Server]:
    """A server whose connections to the database are counted."""
    url = make_url(database.service_url)
    policy = tmp_path / "policy"
    policy.write_text(f"witness w {dump_key(WITNESS.key(key_type=COSIGNATURE))}\nquorum w\n")
    async with metered(str(url.query["host"]), meter) as directory:
        through = url.update_query_dict({"host": directory}).render_as_string(hide_password=False)
        settings = settings_for(through, tmp_path, pool_size="2", log_policy_file=str(policy))
        async with run_server(settings) as running, open_channel(running.grpc) as channel:
            server = Server(running, channel, settings, Caller(channel, (tmp_path / "admin.token").read_text().strip()))
            _listen(server, meter)
            await server.project("p")
            yield server


def _listen(server: Server, meter: Meter) -> None:
    engine = server.running.engine.sync_engine
    dialect: Any = engine.dialect
    execute, commit = dialect.do_execute, dialect.do_commit

    def do_execute(cursor: Any, statement: str, parameters: Any, context: Any = None) -> None:
        meter.executed(statement)
        execute(cursor, statement, parameters, context)

    def do_commit(connection: Any) -> None:
        meter.executed("COMMIT")
        commit(connection)

    def checked_out(connection: Any, *_: object) -> None:
        meter.took(connection.driver_connection.get_server_pid())

    def checked_in(connection: Any, *_: object) -> None:
        if connection is not None:  # None where it was lost
            meter.gave(connection.driver_connection.get_server_pid())

    dialect.do_execute, dialect.do_commit = do_execute, do_commit
    event.listen(engine.pool, "checkout", checked_out)
    event.listen(engine.pool, "checkin", checked_in)


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
            return new_token("p", await self._server.account("p", "bot"), "VIEWER")
        if method == "CreateServiceAccount":
            account = access_pb2.ServiceAccount(service_account_id=f"a{unique}", display_name="", description="")
            return access_pb2.CreateServiceAccountRequest(project_id="p", request_id=unique, service_account=account)
        if method == "DisableServiceAccount":
            return disable("p", await self._server.account("p", f"a{unique}"))
        if method == "RevokeToken":
            made = await self._server.admin(
                "CreateToken", new_token("p", await self._server.account("p", "bot"), "VIEWER")
            )
            return revoke("p", made.token_digest)
        if method == "SetRoleBinding":
            return bind("p", f"oidc:corp:{unique}", "VIEWER")
        if method == "CreateDataset":
            return dataset("p", f"data-{unique}")
        if method == "RegisterDatasetVersion":
            return version("p", f"sha256:{secrets.token_hex(32)}")
        if method == "SetDatasetVersionUris":
            return dataset_pb2.SetDatasetVersionUrisRequest(
                project_id="p", request_id=unique, dataset_id="data", content_digest=ONE, uris=[unique]
            )
        if method == "VerifyDatasetVersion":
            return verify(unique)
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
        if method == "SetQualityGate":
            return set_gate("p", ("", "", ONE, "dbt"), request_id=unique)
        if method == "CreateRunOverridingGates":
            return overriding(self._spec, "p", "why", unique)
        if method == "RegisterQualityRule":
            return rule(rule_id=f"r{unique}")
        if method == "RegisterQualityProfile":
            return profile(int(unique[:8], 16))
        if method == "EvaluateQuality":
            column = quality_pb2.ColumnProfile(name="a", type="int64", null_count=0, edges=["1"], bin_counts=[2, 1])
            measured = await self._server.admin("RegisterQualityProfile", profile(columns=[column]))
            drift = {"name": "c", "type": "KS", "column": "a", "maximum": "1"}
            drift["reference_profile_digest"] = measured.record.digest  # one more statement than without
            made = await self._server.admin("RegisterQualityRule", rule(drift))
            return evaluate(made.record.digest, measured.record.digest)
        if method == "RecordForeignEvaluation":
            return foreign()
        if method == "RecordOpenLineageEvent":
            return external_event(openlineage_event(job={"namespace": "jobs", "name": unique}))
        if method == "AddCosignatures":
            return await self._cosignatures(unique)
        run_id = (await self._server.admin("CreateRun", create_run(self._spec, secrets.token_hex(8)))).run_id
        if method == "ReplayRun":
            return run_pb2.ReplayRunRequest(project_id="p", request_id=unique, run_id=run_id)
        if method == "CompareRuns":
            other = await self._server.admin("CreateRun", create_run(self._spec, secrets.token_hex(8)))
            return run_pb2.CompareRunsRequest(
                project_id="p", request_id=unique, run_id=run_id, other_run_id=other.run_id
            )
        if method == "CreateRunToken":
            return new_run_token("p", run_id)
        if method == "PlanRun":
            return plan_run(run_id, unique)
        await self._server.admin("PlanRun", plan_run(run_id, secrets.token_hex(8)))
        if method == "CancelRun":
            return run_pb2.CancelRunRequest(project_id="p", request_id=unique, run_id=run_id)
        started = step_event("first", 1, "STARTED")
        if method == "ReportStepEvents":
            return report(run_id, started)
        await self._server.admin("ReportStepEvents", report(run_id, started))
        if method == "RegisterArtifacts":
            return artifact(run_id, "first", "table")
        assert method == "RecordMetrics"
        metric = runtime_pb2.MetricReport(step="first", attempt=1, name="loss", index=0, value="0.5")
        metric.occur_time.CopyFrom(started.occur_time)
        return runtime_pb2.RecordMetricsRequest(project_id="p", request_id=unique, run_id=run_id, metrics=[metric])

    async def _cosignatures(self, unique: str) -> Message:
        """A witness's signature under a checkpoint that nobody has cosigned."""
        await self._server.admin("CreateDataset", dataset("p", f"data-{unique}"))
        await self._server.published("p")
        newest = await self._server.admin("GetCheckpoint", log_pb2.GetCheckpointRequest(project_id="p"))
        text = newest.note.decode().partition("\n\n")[0] + "\n"
        return log_pb2.AddCosignaturesRequest(
            project_id="p", request_id=unique, size=newest.size, cosignatures=cosign(text, WITNESS, 1)
        )


MUTATING = (
    "CreateProject",
    "CreateServiceAccount",
    "DisableServiceAccount",
    "CreateToken",
    "RevokeToken",
    "SetRoleBinding",
    "CreateRunToken",
    "CreateDataset",
    "RegisterDatasetVersion",
    "SetDatasetVersionUris",
    "VerifyDatasetVersion",
    "RegisterEnvironmentLock",
    "RegisterPipelineSpec",
    "CreateRun",
    "ReplayRun",
    "CompareRuns",
    "PlanRun",
    "CancelRun",
    "ReportStepEvents",
    "RegisterArtifacts",
    "RecordMetrics",
    "AddCosignatures",
    "RegisterQualityRule",
    "RegisterQualityProfile",
    "EvaluateQuality",
    "RecordForeignEvaluation",
    "SetQualityGate",  # from here on, the project has one
    "CreateRunOverridingGates",
    "RecordOpenLineageEvent",
)


async def test_each_change_costs_what_the_golden_file_says(metered_server: Server, meter: Meter) -> None:
    """Statements and round trips of every mutating method, printed as a table."""
    calls = Calls(metered_server, await prepare(metered_server.admin))
    found: dict[str, dict[str, Any]] = {}
    for method in MUTATING:
        for _ in range(3):  # each connection prepares each statement once
            requests = [await calls.request(method) for _ in range(2)]
            await asyncio.gather(*(metered_server.admin(method, request) for request in requests))
        costs: list[tuple[int, list[str]]] = []
        async with asyncio.timeout(20):
            while len(costs) < 5:
                request = await calls.request(method)
                meter.begin()
                await metered_server.admin(method, request)
                if not any(statement.startswith(BESIDE) for statement in meter.statements):
                    costs.append((meter.round_trips, list(meter.statements)))
        assert all(statements == costs[0][1] for _, statements in costs), method
        # The least of them: the log shares the connections, and may have had the one that has all prepared.
        found[method] = {"round_trips": min(costs)[0], "statements": costs[0][1]}
    print(f"\n{'method':26}statements  round trips")
    for method, cost in found.items():
        print(f"{method:26}{len(cost['statements']):10}{cost['round_trips']:13}")
    if os.environ.get("ANIMUS_UPDATE_GOLDEN"):
        GOLDEN.write_text(json.dumps(found, indent=2) + "\n")
    assert found == json.loads(GOLDEN.read_text())


async def test_only_calls_are_counted(metered_server: Server, meter: Meter) -> None:
    """What the log needs meanwhile, over the same connections, is no part of what a call costs."""
    leader = metered_server.running.log.leader
    assert leader is not None
    await metered_server.admin("CreateDataset", dataset("p", "one"))
    meter.begin()
    before = leader.published
    async with asyncio.timeout(20):
        while leader.published < before + 2:  # the project's and the instance's
            await asyncio.sleep(0.01)
    assert (meter.round_trips, meter.statements) == (0, [])
    await metered_server.admin("CreateDataset", dataset("p", "two"))
    assert meter.statements[-1] == "COMMIT"
    assert meter.round_trips > len(meter.statements)


def test_every_mutating_method_is_measured() -> None:
    """A method with a request_id that the table lacks fails here; what a stream costs depends on what it carries."""
    mutating = {
        name
        for name, method in METHODS.items()
        if "request_id" in method.input_type.fields_by_name and not method.server_streaming
    }
    assert mutating == set(MUTATING)
