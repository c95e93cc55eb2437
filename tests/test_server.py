"""The server as a process: start, refusals to start, drain, kill, logs, metrics, traces."""

import asyncio
import http.server
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from conftest import Database, short_temporary_directory
from ports import closed_port
from service.conftest import Caller, Failure, open_channel
from service.requests import create_run, dataset, prepare

from animus.v1 import audit_pb2, project_pb2, run_pb2

TRACE = "0af7651916cd43dd8448eb211c80319c"


class Process:
    """An `animus serve` of the test's own, on free ports; or a program of the test's around it."""

    def __init__(self, data_dir: Path, program: str = "", **settings: str) -> None:
        self.data_dir = data_dir
        self.log = data_dir.parent / f"{data_dir.name}-{secrets.token_hex(4)}.log"
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.pathsep.join(sys.path),
            "ANIMUS_DATA_DIR": str(data_dir),
            "ANIMUS_GRPC_PORT": "0",
            "ANIMUS_GATEWAY_PORT": "0",
            "ANIMUS_METRICS_PORT": "0",
            **{f"ANIMUS_{key.upper()}": value for key, value in settings.items()},
        }
        command = ["-c", program] if program else ["-m", "animus.cli", "serve"]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen([sys.executable, *command], env=environment, stdout=log, stderr=log)

    def wait_until_up(self) -> dict[str, Any]:
        """Where the server is, once it says so. Fails with its log when it ends first."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log.read_text()
            try:
                state: dict[str, Any] = json.loads((self.data_dir / "server.json").read_text())
            except FileNotFoundError:
                pass
            else:
                if state["pid"] == self.process.pid:
                    return state
            threading.Event().wait(0.02)
        raise TimeoutError(self.log.read_text())

    def end(self, number: signal.Signals) -> int:
        """Sends a signal and waits for the end; returns the exit code."""
        self.process.send_signal(number)
        return self.process.wait(60)

    def lines(self) -> list[dict[str, Any]]:
        """The log."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def admin(self, channel: grpc.aio.Channel) -> Caller:
        """The first token's caller."""
        return Caller(channel, (self.data_dir / "admin.token").read_text().strip())


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A data directory that the embedded PostgreSQL's account may enter."""
    parent = short_temporary_directory()
    yield parent / "data"
    shutil.rmtree(parent)


def create_project(project_id: str = "p") -> project_pb2.CreateProjectRequest:
    """Creates a project."""
    return project_pb2.CreateProjectRequest(
        project_id=project_id,
        request_id=f"create-{project_id}",
        project=project_pb2.Project(project_id=project_id, display_name="", description=""),
    )


async def test_a_killed_server_is_taken_over_and_a_retry_finishes(data_dir: Path) -> None:
    """kill -9, start again on the same directory: the acknowledged are there, the retry answers as the first did."""
    first = Process(data_dir)
    state = first.wait_until_up()
    async with open_channel(state["grpc"]) as channel:
        admin = first.admin(channel)
        await admin("CreateProject", create_project())
        spec = await prepare(admin)
        run = await admin("CreateRun", create_run(spec))
    assert first.end(signal.SIGKILL) == -signal.SIGKILL
    second = Process(data_dir)
    state = second.wait_until_up()
    async with open_channel(state["grpc"]) as channel:
        admin = second.admin(channel)
        again = await admin("CreateRun", create_run(spec))
        assert admin.metadata["animus-replayed"] == "true"
        assert again.run_id == run.run_id
        entries = await admin("ListAuditEntries", audit_pb2.ListAuditEntriesRequest(project_id="p"))
        assert len(entries.audit_entries) == 6
    with urllib.request.urlopen(f"{state['http']}/readyz", timeout=10) as answer:
        assert answer.status == 200
    assert second.end(signal.SIGTERM) == 0
    assert not (data_dir / "server.json").exists()
    assert json.loads(second.log.read_text().splitlines()[-1])["level"] != "error"


async def test_sigterm_lets_open_calls_end(database: Database, tmp_path: Path) -> None:
    """Calls in flight are answered, later ones are not taken, and the exit code is 0."""
    process = Process(tmp_path / "data", database_url=database.service_url.replace("+asyncpg", ""), reflection="true")
    state = process.wait_until_up()
    async with open_channel(state["grpc"]) as channel:
        reflected: Any = channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")
        stream = reflected(iter([b"\x3a\x00"]))  # ListServices
        reply = await stream.read()
        stream.cancel()
        assert b"animus.v1.RunService" in reply
        admin = process.admin(channel)
        await admin("CreateProject", create_project())
        calls = [asyncio.create_task(admin("CreateDataset", dataset("p", f"d{index}"))) for index in range(40)]
        await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        process.process.send_signal(signal.SIGTERM)
        done = await asyncio.gather(*calls, return_exceptions=True)
    assert await asyncio.to_thread(process.process.wait, 30) == 0
    failures = {reply.code for reply in done if isinstance(reply, Failure)}
    assert failures <= {"UNAVAILABLE"}
    assert any(not isinstance(reply, BaseException) for reply in done)


async def test_refusals_to_start_are_one_clear_line(database: Database, tmp_path: Path) -> None:
    """Superuser, owner, a taken port, an open bind, a wrong setting: exit 1 and the reason."""
    with socket.create_server(("127.0.0.1", 0)) as taken, closed_port() as unused:
        port = str(taken.getsockname()[1])
        service = {"database_url": database.service_url, "log_dir": str(tmp_path / "log")}
        cases = {
            "superuser": {"database_url": database.admin_url},
            "owns": {"database_url": database.owner_url},
            f"port {port} on 127.0.0.1 is taken": {**service, "grpc_port": port},
            "ANIMUS_GATEWAY_PORT": {**service, "gateway_port": port},
            "ANIMUS_METRICS_PORT": {**service, "metrics_port": port},
            "0.0.0.0 is not loopback": {**service, "grpc_host": "0.0.0.0"},
            "ANIMUS_POOL_SIZE": {"pool_size": "many"},
            "the database refuses the login": {"database_url": database.service_url.replace("service:", "service:x")},
            "the database does not answer": {"database_url": f"postgresql://a:b@127.0.0.1:{unused}/c"},
            "ANIMUS_DATABASE_URL is no postgresql:// URL": {"database_url": "mysql://a:hunter2@b/c"},
        }
        processes = {
            reason: Process(tmp_path / f"data{index}", **settings)
            for index, (reason, settings) in enumerate(cases.items())
        }
        for reason, process in processes.items():
            assert await asyncio.to_thread(process.process.wait, 60) == 1, reason
            last = process.log.read_text().splitlines()[-1]
            assert last.startswith("animus: "), process.log.read_text()
            assert reason in last
            assert "Traceback" not in process.log.read_text()
            assert "hunter2" not in process.log.read_text()


async def test_migrate_takes_a_plain_url_and_says_what_it_applied(empty_database: Database, tmp_path: Path) -> None:
    """The first call applies, the second finds nothing; without a URL it says which variable to set."""
    url = tmp_path / "url"
    url.write_text(empty_database.owner_url.replace("postgresql+asyncpg:", "postgresql:"))

    def migrate(**settings: str) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path), **settings}
        command = [sys.executable, "-m", "animus.cli", "migrate"]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)

    for said in (
        "applied 0001, 0002, 0003, 0004, 0005, 0006, 0007, 0008, 0009, 0010, 0011, 0012, 0013\n",
        "nothing to apply\n",
    ):
        done = await asyncio.to_thread(migrate, ANIMUS_OWNER_DATABASE_URL_FILE=str(url))
        assert (done.returncode, done.stdout, done.stderr) == (0, said, "")
    done = await asyncio.to_thread(migrate)
    assert done.returncode == 1
    assert done.stderr.startswith("animus: set ANIMUS_OWNER_DATABASE_URL")


async def test_logs_name_the_call_and_hold_no_secret(database: Database, tmp_path: Path) -> None:
    """A line for each call, JSON throughout; the token, the password and what was sent are nowhere in it."""
    process = Process(tmp_path / "data", database_url=database.service_url)
    state = process.wait_until_up()
    planted = "planted-in-a-description"
    async with open_channel(state["grpc"]) as channel:
        admin = process.admin(channel)
        request = create_project()
        request.project.description = planted
        await admin("CreateProject", request)
        with pytest.raises(Failure):
            await Caller(channel, "animus_p_" + "S" * 43)("ListRuns", run_pb2.ListRunsRequest(project_id="p"))
    with urllib.request.urlopen(state["metrics"], timeout=10) as answer:
        metrics = answer.read().decode()
    assert 'animus_calls_total{code="OK",method="animus.v1.ProjectService/CreateProject"} 1.0' in metrics
    assert process.end(signal.SIGTERM) == 0
    (line,) = [each for each in process.lines() if each.get("request_id") == "create-p"]
    assert {key: line[key] for key in ("event", "method", "code", "project", "principal")} == {
        "event": "call",
        "method": "animus.v1.ProjectService/CreateProject",
        "code": "OK",
        "project": "p",
        "principal": "admin",
    }
    assert len(line["trace_id"]) == 32
    password = database.service_url.split(":")[2].split("@")[0]
    text = process.log.read_text()
    for secret in (admin.token, password, planted, "S" * 43):
        assert secret not in text


async def test_traces_continue_the_callers_and_go_to_the_collector(database: Database, tmp_path: Path) -> None:
    """With an endpoint set, a span of the caller's trace arrives; the reply names the trace."""
    received: list[tuple[str, bytes]] = []

    class Collector(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            """Says nothing."""

    collector = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    thread = threading.Thread(target=collector.serve_forever)
    thread.start()
    try:
        endpoint = f"http://127.0.0.1:{collector.server_port}"
        process = Process(tmp_path / "data", database_url=database.service_url, otlp_endpoint=endpoint)
        state = process.wait_until_up()
        async with grpc.aio.insecure_channel(state["grpc"]) as channel:
            token = process.admin(channel).token
            list_projects: Any = channel.unary_unary("/animus.v1.ProjectService/ListProjects")
            call = list_projects(
                b"",
                metadata=(
                    ("authorization", f"Bearer {token}"),
                    ("traceparent", f"00-{TRACE}-b7ad6b7169203331-01"),
                ),
            )
            await call
            assert ("animus-trace-id", TRACE) in list(await call.trailing_metadata())
        assert process.end(signal.SIGTERM) == 0
    finally:
        collector.shutdown()
        collector.server_close()
        thread.join()
    assert any(path == "/v1/traces" and bytes.fromhex(TRACE) in body for path, body in received)
    assert any(path == "/v1/metrics" and b"rpc.server.duration" in body for path, body in received)


async def test_a_dead_collector_delays_nothing(database: Database, tmp_path: Path) -> None:
    """The server serves and ends as without one."""
    with closed_port() as port:
        process = Process(
            tmp_path / "data", database_url=database.service_url, otlp_endpoint=f"http://127.0.0.1:{port}"
        )
        state = process.wait_until_up()
        async with open_channel(state["grpc"]) as channel:
            await process.admin(channel)("CreateProject", create_project())
        assert process.end(signal.SIGTERM) == 0
