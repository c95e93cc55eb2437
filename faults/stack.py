"""A PostgreSQL, and servers that share it and the log's folder; each is started again whenever it ends."""

import asyncio
import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from animus.store.embedded import EmbeddedError, EmbeddedPostgres
from animus.store.migrate import migrate
from demo.processes import end_group, ended, launch
from faults.proofs import LogKey, load_key

LOOK_SECONDS = 0.02
UP_SECONDS = 60.0
STOP_SECONDS = 30.0
CHANNEL_OPTIONS = [
    ("grpc.enable_retries", 0),  # each try is ours to count
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 200),
]


class Violation(Exception):
    """A promise that was not kept, or a load that was none."""


class Server:
    """A server process, and those that follow it."""

    def __init__(self, name: str, folder: Path, environment: dict[str, str]) -> None:
        self.name = name
        self.folder = folder
        self.log = folder / "server.log"
        self.address = ""  # empty while it does not serve
        self.starts = 0
        self.given_up = 0  # starts that met a database which was down
        self.crashes: list[str] = []  # ends that nothing here explains
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None
        self._killed = False

    @property
    def pid(self) -> int:
        """Of the present process; 0 between two."""
        return self._process.pid if self._process is not None and self._process.returncode is None else 0

    async def keep(self) -> None:
        """Starts it again and again, until it is cancelled."""
        while True:
            self.starts += 1
            self._killed = False
            self._process = launch(
                [sys.executable, "-m", "animus.cli", "serve"],
                environment=self._environment,
                folder=self.folder,
                output=self.log,
                death=signal.SIGKILL,
            )
            while self._process.poll() is None:
                if not self.address:
                    self.address = self._said_address(self._process.pid)
                await asyncio.sleep(LOOK_SECONDS)
            served, self.address = bool(self.address), ""
            if not self._killed:
                if served or self._process.returncode != 1:
                    self.crashes.append(f"{self.name} ended by itself with {self._process.returncode}: see {self.log}")
                self.given_up += 1
                await asyncio.sleep(0.1)

    def kill(self) -> bool:
        """Ends it as a crash would. False where it had ended."""
        self._killed = self.signal(signal.SIGKILL)
        return self._killed

    def signal(self, number: signal.Signals) -> bool:
        """Signals it. False where it had ended."""
        if self._process is None or self._process.poll() is not None:
            return False
        self._process.send_signal(number)
        return True

    async def stop(self) -> None:
        """Ends it as an operator would, and by force where that takes too long."""
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        if self._process is not None:
            await asyncio.to_thread(ended, self._process, STOP_SECONDS)
            end_group(self._process)

    def errors(self, explained: Sequence[str]) -> list[str]:
        """What it has logged that no fault explains: lines of the level error, and whatever is no line of its log.

        Lines with one of the explained texts are left out.
        """
        found = []
        for line in self.log.read_text(errors="replace").splitlines():
            if line.startswith("animus: the database does not answer"):
                continue  # a start that met a database which was down
            try:
                event = json.loads(line)
            except ValueError:
                found.append(f"{self.name} wrote: {line[:200]}")
            else:
                if event["level"] in ("error", "critical") and not any(text in line for text in explained):
                    found.append(f"{self.name} logged: {line[:500]}")
        return found

    def _said_address(self, pid: int) -> str:
        with contextlib.suppress(FileNotFoundError):
            state = json.loads((self.folder / "server.json").read_text())
            if state["pid"] == pid:
                return str(state["grpc"])
        return ""


class Stack:
    """What the faults are made in."""

    def __init__(self, folder: Path, postgres: EmbeddedPostgres, servers: list[Server]) -> None:
        self.folder = folder
        self.servers = servers
        self.postgres = postgres
        self.postgres_problems: list[str] = []
        self.explained: tuple[str, ...] = ()  # texts of errors that the faults at hand explain
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._token = ""

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The administrator's token: the server that was first has made it."""
        if not self._token:
            found = [server.folder / "admin.token" for server in self.servers]
            self._token = next(path for path in found if path.exists()).read_text().strip()
        return (("authorization", f"Bearer {self._token}"),)

    def key(self, project_id: str) -> LogKey:
        """The key of a project's log, or of the instance's where the project is empty."""
        return load_key((self.folder / "log" / "log.key").read_text(), project_id)

    def channel(self, address: str) -> grpc.aio.Channel:
        """The channel to an address; all callers share it."""
        if address not in self._channels:
            self._channels[address] = grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
        return self._channels[address]

    async def wait_up(self, servers: Iterable[Server] = (), seconds: float = UP_SECONDS) -> None:
        """Waits until servers, all by default, say that they serve and that nothing is wrong. Raises Violation."""
        waiting, status = list(servers) or self.servers, "no address"
        for server in waiting:
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                if server.address:
                    stub: Any = health_pb2_grpc.HealthStub(self.channel(server.address))
                    try:
                        answer = await stub.Check(health_pb2.HealthCheckRequest(service=""), timeout=5)
                    except grpc.aio.AioRpcError as error:
                        status = error.code().name
                    else:
                        if answer.status == health_pb2.HealthCheckResponse.SERVING:
                            break
                        status = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
                await asyncio.sleep(0.05)
            else:
                raise Violation(f"{server.name} is not healthy after {seconds:.0f} s: {status}")

    async def leader(self) -> tuple[Server | None, int]:
        """The server that leads the log, if it runs, and the fence."""
        found = await self.rows("SELECT holder, fence FROM animus.log_lead")
        if not found:
            return None, 0
        pid = int(found[0]["holder"].split("/")[1])
        return next((server for server in self.servers if server.pid == pid), None), found[0]["fence"]

    async def rows(self, statement: str, *values: Any) -> list[Any]:
        """What a statement of the superuser finds."""
        async with self.superuser() as connection:
            return list(await connection.fetch(statement, *values))

    @asynccontextmanager
    async def superuser(self) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
        """A connection of the superuser."""
        connection = await asyncpg.connect(self.postgres.admin_url.replace("+asyncpg", ""), timeout=10)
        try:
            yield connection
        finally:
            await connection.close(timeout=10)

    async def keep_postgres(self) -> None:
        """Starts PostgreSQL again whenever it ended, until it is cancelled."""
        while True:
            try:
                await asyncio.to_thread(self.postgres.poll)
            except EmbeddedError as error:
                self.postgres_problems.append(str(error))
            await asyncio.sleep(LOOK_SECONDS)

    def kill_postgres(self) -> bool:
        """Ends PostgreSQL's first process as a crash would. False where it had ended."""
        try:
            pidfd = os.pidfd_open(self.postgres.pid)
        except ProcessLookupError:
            return False
        try:
            command = Path(f"/proc/{self.postgres.pid}/cmdline").read_bytes()
            if os.fsencode(self.folder) not in command:  # after pidfd_open: the id cannot pass to another any more
                return False
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        except (FileNotFoundError, ProcessLookupError):
            return False
        finally:
            os.close(pidfd)
        return True

    def problems(self) -> list[str]:
        """What went wrong with the processes that no fault explains."""
        found = [*self.postgres_problems]
        for server in self.servers:
            found += [*server.crashes, *server.errors(self.explained)]
        return found

    async def close(self) -> None:
        """Closes the channels."""
        await asyncio.gather(*(channel.close() for channel in self._channels.values()))


@asynccontextmanager
async def open_stack(folder: Path, servers: int, settings: Mapping[str, str] | None = None) -> AsyncIterator[Stack]:
    """A stack in a folder, its servers up with these settings beside the stack's own.

    All of it has ended when the context ends; the folder stays.
    """
    postgres = await asyncio.to_thread(EmbeddedPostgres.start, folder / "postgres", log=_quiet())
    stack = Stack(folder, postgres, [])
    keepers: list[asyncio.Task[None]] = []
    try:
        await migrate(postgres.owner_url)
        for number in range(servers):
            own = folder / f"server{number}"
            own.mkdir()
            stack.servers.append(
                Server(f"server{number}", own, _environment(own, folder / "log", postgres) | dict(settings or {}))
            )
        tasks: list[Callable[[], Awaitable[None]]] = [stack.keep_postgres, *(each.keep for each in stack.servers)]
        keepers = [asyncio.ensure_future(task()) for task in tasks]
        await stack.wait_up()
        yield stack
    finally:
        for task in keepers:
            task.cancel()
        ends = await asyncio.gather(*keepers, return_exceptions=True)
        await stack.close()
        for server in stack.servers:
            await server.stop()
        await asyncio.to_thread(postgres.stop)
    for error in ends:
        if not isinstance(error, asyncio.CancelledError) and isinstance(error, BaseException):
            raise error


def _environment(own: Path, log: Path, postgres: EmbeddedPostgres) -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ANIMUS_")}
    return environment | {
        "ANIMUS_DATA_DIR": str(own),
        "ANIMUS_LOG_DIR": str(log),
        "ANIMUS_LOG_NAME": "animus.faults",
        "ANIMUS_DATABASE_URL": postgres.service_url,
        "ANIMUS_GRPC_PORT": "0",
        "ANIMUS_GATEWAY": "false",
        "ANIMUS_METRICS_PORT": "0",
        "ANIMUS_RATE_PER_SECOND": "0",  # a few callers call as often as they can
        "ANIMUS_LOG_LEVEL": "warning",
        "ANIMUS_LOG_FORMAT": "json",
    }


def _quiet() -> logging.Logger:
    """A log for what is meant to happen here."""
    log = logging.getLogger("faults.postgres")
    log.addHandler(logging.NullHandler())
    log.propagate = False
    return log
