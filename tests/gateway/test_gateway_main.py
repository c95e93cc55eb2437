"""The `animus-gateway` command, and the handle for use in another process."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc.aio
import httpx
import pytest
from animus_gateway.main import (
    CannotListenError,
    Formatter,
    _arguments,
    _upstream_credentials,
    main,
    open_channel,
    serve_gateway,
)
from animus_gateway.routes import contract_files
from gateway_harness import Stack, gateway_to, upstream_of

from animus.dev_certificates import Authority
from animus.v1 import project_pb2


def environment(**changes: str) -> dict[str, str]:
    """This process's environment without settings of the gateway, and with these."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("ANIMUS_")}
    return {**kept, "PYTHONPATH": os.pathsep.join(sys.path), **changes}


async def start(*arguments: str, **changes: str) -> tuple[asyncio.subprocess.Process, int]:
    """A gateway process and the port that it says it listens on."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "animus_gateway.main",
        *arguments,
        env=environment(**changes),
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    line = (await asyncio.wait_for(process.stderr.readline(), timeout=30)).decode()
    listening = re.search(r"listening on \S+ port (\d+)", line)
    assert listening, line
    return process, int(listening[1])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_the_command_serves_until_it_is_told_to_stop(stack: Stack, number: signal.Signals) -> None:
    """It forwards calls to the upstream given, and ends with 0 on SIGTERM and on SIGINT."""
    process, port = await start("--port", "0", ANIMUS_ADDRESS=stack.target)
    async with httpx.AsyncClient(base_url=f"http://localhost:{port}", trust_env=False) as client:
        assert (await client.get("/healthz")).json() == {"status": "ok"}
        assert (await client.get("/v1/projects/p")).status_code == 200
    assert stack.upstream.request == project_pb2.GetProjectRequest(project_id="p")
    process.send_signal(number)
    _, output = await asyncio.wait_for(process.communicate(), timeout=20)
    assert process.returncode == 0
    assert b"Traceback" not in output


def test_a_port_in_use_gets_one_clear_line() -> None:
    """Exit status 1, and one line that names the port and what to do."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        ended = subprocess.run(
            [sys.executable, "-m", "animus_gateway.main", "--upstream", "localhost:1"],
            env=environment(ANIMUS_GATEWAY_PORT=port),
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    assert ended.returncode == 1
    assert ended.stdout == ""
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"animus-gateway: port {port} of 127.0.0.1 is in use; ")
    assert "ANIMUS_GATEWAY_PORT" in line


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "give --upstream or set ANIMUS_ADDRESS"),
        (["--upstream", "h:1", "--port", "x"], "invalid int value: 'x'"),
        (["--upstream", "h:1", "--nothing"], "unrecognized arguments"),
        (["--upstream", "h:1", "--host", "0.0.0.0"], "0.0.0.0 is not loopback: give --certificate and --key, or"),
        (["--upstream", "h:1", "--certificate", "c"], "a certificate needs its key"),
        (["--upstream", "h:1", "--upstream-ca-file", "c", "--insecure-upstream"], "give one of them"),
        (["--upstream", "h:1", "--allowed-origin", "*"], "'*' is no origin"),
    ],
)
def test_wrong_usage_is_explained(
    arguments: list[str], text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit status 2 and the reason."""
    monkeypatch.delenv("ANIMUS_ADDRESS", raising=False)
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert text in capsys.readouterr().err


@pytest.mark.parametrize(
    ("host", "port", "text"),
    [
        ("127.0.0.1", 70_000, "70000"),
        ("127.0.0.1", -1, "-1"),
        ("192.0.2.1", 0, "cannot listen on port 0 of 192.0.2.1"),
        ("no-such-host.invalid", 0, "cannot listen on port 0 of no-such-host.invalid"),
    ],
)
async def test_an_address_that_cannot_be_listened_on_is_a_typed_error(host: str, port: int, text: str) -> None:
    """The caller in the same process gets CannotListenError with the reason."""
    async with open_channel("127.0.0.1:1", 1024) as channel:
        with pytest.raises(CannotListenError, match=re.escape(text)):
            await serve_gateway(channel, host, port)


async def test_a_port_in_use_is_a_typed_error_and_leaves_the_other_gateway_alone(stack: Stack) -> None:
    """Two gateways never share a port."""
    async with open_channel(stack.target, 1024) as channel:
        with pytest.raises(CannotListenError, match="in use"):
            await serve_gateway(channel, "127.0.0.1", stack.gateway.port)
    assert (await stack.client.get("/healthz")).status_code == 200


@pytest.mark.parametrize(
    ("arguments", "secure"),
    [
        (["--upstream", "127.0.0.1:1"], False),
        (["--upstream", "localhost:1"], False),
        (["--upstream", "[::1]:1"], False),
        (["--upstream", "unix:socket"], False),
        (["--upstream", "animus.example:1"], True),
        (["--upstream", "10.0.0.1:1"], True),
        (["--upstream", "animus.example:1", "--insecure-upstream"], False),
    ],
)
def test_tokens_leave_this_machine_in_tls_unless_told_otherwise(arguments: list[str], secure: bool) -> None:
    """The server is called in plain text on loopback only, or where the operator says so."""
    assert (_upstream_credentials(_arguments(arguments)) is not None) is secure


async def test_the_command_speaks_tls_on_both_sides(tmp_path: Path) -> None:
    """With files for it: HTTPS in front, and gRPC over TLS behind; a key that others can read ends it with one line."""
    authority = Authority.new(datetime.now(UTC).replace(microsecond=0), 1)
    pair = authority.server(["127.0.0.1"])
    names = {"--upstream-ca-file": authority.pem, "--certificate": pair.certificate, "--key": pair.key}
    for name, data in names.items():
        path = tmp_path / name
        path.touch(0o600)
        path.write_bytes(data)
    files = [word for name in names for word in (name, str(tmp_path / name))]
    upstream = upstream_of(contract_files())
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers([upstream])
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(pair.key, pair.certificate)]))
    await server.start()
    try:
        process, listening = await start("--port", "0", "--upstream", f"127.0.0.1:{port}", *files)
        context = ssl.create_default_context(cadata=authority.pem.decode())
        async with httpx.AsyncClient(verify=context, trust_env=False) as client:
            assert (await client.get(f"https://127.0.0.1:{listening}/v1/projects/p")).status_code == 200
        process.send_signal(signal.SIGTERM)
        await asyncio.wait_for(process.communicate(), timeout=20)
    finally:
        await server.stop(None)
    assert upstream.request == project_pb2.GetProjectRequest(project_id="p")
    (tmp_path / "--key").chmod(0o644)
    with pytest.raises(SystemExit, match="animus-gateway: others can read or change the key"):
        main(["--upstream", "127.0.0.1:1", *files])


async def test_stopping_lets_open_requests_end(stack: Stack) -> None:
    """A call that is under way gets its answer; afterwards nobody listens."""
    arrived, release = asyncio.Event(), asyncio.Event()

    async def answer(_request: Any, _context: Any) -> Any:
        arrived.set()
        await release.wait()
        return project_pb2.Project(project_id="late")

    stack.upstream.answer = answer
    async with gateway_to(stack.target) as (gateway, client):
        call = asyncio.create_task(client.get("/v1/projects/p"))
        await asyncio.wait_for(arrived.wait(), timeout=10)
        stopping = asyncio.create_task(gateway.stop())
        release.set()
        assert (await call).json()["projectId"] == "late"
        await asyncio.wait_for(stopping, timeout=10)
        with pytest.raises(httpx.ConnectError):
            await client.get("/healthz")


async def test_the_processs_signal_handlers_are_left_alone(stack: Stack) -> None:
    """Inside another process the gateway takes no signal for itself."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    async with gateway_to(stack.target) as (_, client):
        assert (await client.get("/healthz")).status_code == 200
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


async def test_a_message_beyond_the_channels_limit_is_refused(stack: Stack) -> None:
    """`max_message_bytes` bounds what is sent and what is received."""

    async def answer(_request: Any, _context: Any) -> Any:
        return project_pb2.Project(description="x" * 5_000)

    async with open_channel(stack.target, 2_000) as channel:
        gateway = await serve_gateway(channel, "127.0.0.1", 0)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{gateway.port}", trust_env=False) as client:
            body = {"project": {"description": "x" * 5_000}}
            assert (await client.post("/v1/projects", json=body)).status_code == 429
            assert stack.upstream.requests == []
            stack.upstream.answer = answer
            assert (await client.get("/v1/projects/p")).status_code == 429
        await gateway.stop()


def test_an_exception_is_logged_by_type_and_place_and_without_its_text() -> None:
    """The text may quote what a client sent."""
    try:
        int("hunter2")
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, __file__, 1, "unexpected failure", (), sys.exc_info())
    said = Formatter("%(message)s").format(record)
    assert said.startswith("unexpected failure\n")
    assert Path(__file__).name in said
    assert said.endswith("\nValueError")
    assert "hunter2" not in said.replace('int("hunter2")', "")  # the line of code is in it


def test_the_gateway_imports_nothing_of_the_control_plane() -> None:
    """It speaks gRPC only: of `animus` it knows the contract, and how TLS is served."""
    script = (
        "import sys, animus_gateway.main\n"
        "print(sorted(name for name in sys.modules if name.startswith('animus.') and not name.startswith('animus.v1')))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script], env=environment(), capture_output=True, text=True, timeout=30, check=True
    )
    assert ended.stdout.strip() == "['animus.tls']"
