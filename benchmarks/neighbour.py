"""What a project feels of another at full load: `python -m benchmarks.neighbour [--seconds 20] [--unfair]`.

One server on a PostgreSQL of its own. Project b calls twenty times a second, CreateRun and GetRun in turn, first alone
and then beside project a, whose clients send as much as they can. Ends with 1 where b's 99th percentile is more than
three times what it was. `--unfair` serves without turns and shares, for comparison: there it must be. The rate of one
caller is not limited, so that it is not what helps; `--limited` leaves it as it is by default.

The clients of a run at a lower priority: they stand for other machines, and would take this one's processors from
what is measured.
"""

import argparse
import asyncio
import itertools
import json
import os
import platform
import secrets
import signal
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import uvloop
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

import animus.server
from animus.codec import sha256
from animus.config import Settings, load_settings
from animus.service import limits
from animus.service.limits import Limits
from animus.telemetry import configure_logs
from animus.v1 import access_pb2, access_pb2_grpc, run_pb2, run_pb2_grpc
from benchmarks.log import quantiles
from benchmarks.stack import PRODUCT, ROOT, Served, machine, serving
from benchmarks.work import new_run, prepare, rate, senders

UNFAIR = "benchmarks.neighbour --role server"
MOST_RATIO = 3
PER_SECOND = 20  # of b
NICENESS = 5
IN_FLIGHT = 32  # calls of one process of a
PROCESSES = (1, 2, 4)  # of a; b is asked for beside the last
RUNS = 500  # that each project has before
WARM_UP_SECONDS = 3.0
CALL_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Side:
    """A project as its clients need it; written to a file for them."""

    address: str
    token: str
    project: str
    run_spec: str  # hexadecimal
    seconds: float  # of a probe


def side_in(path: str) -> Side:
    """The side that a file says."""
    return Side(**json.loads(Path(path).read_text()))


class Client:
    """Calls of one project."""

    def __init__(self, side: Side, channel: grpc.aio.Channel) -> None:
        self.side = side
        self._runs = run_pb2_grpc.RunServiceStub(channel)
        self._metadata = (("authorization", f"Bearer {side.token}"),)
        self._spec = run_pb2.RunSpec.FromString(bytes.fromhex(side.run_spec))
        self.run_id = ""  # of the newest run

    async def create(self) -> None:
        """Makes a run."""
        run = await self._call(self._runs.CreateRun, new_run(self.side.project, self._spec))
        self.run_id = run.run_id

    async def get(self) -> None:
        """Reads the newest run."""
        await self._call(self._runs.GetRun, run_pb2.GetRunRequest(project_id=self.side.project, run_id=self.run_id))

    async def list(self) -> None:
        """Reads a page of runs."""
        await self._call(self._runs.ListRuns, run_pb2.ListRunsRequest(project_id=self.side.project))

    async def _call(self, method: Any, request: Message) -> Any:
        return await method(request, metadata=self._metadata, timeout=CALL_SECONDS)


@asynccontextmanager
async def client_of(side: Side) -> AsyncIterator[Client]:
    """The calls of a side."""
    async with grpc.aio.insecure_channel(side.address) as channel:
        client = Client(side, channel)
        await client.create()
        yield client


async def load(side: Side) -> None:
    """A process of a: as many calls as it can, until SIGTERM; then how many were answered and refused, and its time."""
    os.nice(NICENESS)
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    answered = refused = 0
    async with client_of(side) as client:
        calls = itertools.cycle([client.create, client.get, client.create, client.list, client.get])

        async def work() -> None:
            nonlocal answered, refused
            while not stopping.is_set():
                try:
                    await next(calls)()
                    answered += 1
                except grpc.aio.AioRpcError as error:
                    if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                        raise
                    refused += 1
                    await asyncio.sleep(retry_seconds(error))

        await client.list()
        print("ready", flush=True)
        began = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(IN_FLIGHT)))
        print(json.dumps({"answered": answered, "refused": refused, "seconds": time.perf_counter() - began}))


def retry_seconds(error: grpc.aio.AioRpcError) -> float:
    """When the server says to call again."""
    retry = error_details_pb2.RetryInfo()
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # its types know of blocking calls alone
    for detail in status.details if status else ():
        detail.Unpack(retry)
    return float(retry.retry_delay.ToNanoseconds()) / 1e9


async def probe(side: Side) -> None:
    """The process of b: calls at a steady rate, however long each takes; the seconds of each."""
    times: list[float] = []
    async with client_of(side) as client:

        async def measured(call: Any) -> None:
            began = time.perf_counter()
            await call()
            times.append(time.perf_counter() - began)

        async with asyncio.TaskGroup() as group:
            began = time.perf_counter()
            for number in range(int(client.side.seconds * PER_SECOND)):
                await asyncio.sleep(max(0.0, began + number / PER_SECOND - time.perf_counter()))
                group.create_task(measured(client.get if number % 2 else client.create))
    print(json.dumps(times))


async def start(role: str, side: Path) -> asyncio.subprocess.Process:
    """A process of this module."""
    command = (sys.executable, "-m", "benchmarks.neighbour", "--role", role, "--side", str(side))
    return await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=asyncio.subprocess.PIPE)


async def output(process: asyncio.subprocess.Process) -> Any:
    """What a process said at its end."""
    said, _ = await process.communicate()
    if process.returncode:
        raise SystemExit(f"a client ended with {process.returncode}")
    return json.loads(said)


async def probed(side: Path) -> dict[str, Any]:
    """What b's calls took."""
    return quantiles(sorted(await output(await start("probe", side))), "ms", 1_000)


@asynccontextmanager
async def loaded(side: Path, count: int, found: dict[str, Any]) -> AsyncIterator[None]:
    """Meanwhile so many processes of a call; what came of it is put into what was found."""
    processes = [await start("load", side) for _ in range(count)]
    for process in processes:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"ready\n", "a client did not come up"
    try:
        await asyncio.sleep(WARM_UP_SECONDS)
        yield
    finally:
        for process in processes:
            process.send_signal(signal.SIGTERM)
    told = [await output(process) for process in processes]
    found |= {
        "clients of a": count * IN_FLIGHT,
        "a's calls per second": round(sum(each["answered"] / each["seconds"] for each in told)),
        "refused per second": round(sum(each["refused"] / each["seconds"] for each in told), 1),
    }


async def side_of(served: Served, folder: Path, project: str, seconds: float) -> Path:
    """A project with a token of its own; the file that says so."""
    prepared = await prepare(served, [project], 0)
    await rate([project], RUNS, senders(served, prepared)["CreateRun"])
    access = access_pb2_grpc.AccessServiceStub(served.channel)
    account = access_pb2.ServiceAccount(service_account_id="bench", display_name="", description="")
    await served.call(
        access.CreateServiceAccount,
        access_pb2.CreateServiceAccountRequest(project_id=project, request_id="account", service_account=account),
    )
    token = f"animus_{project}_{secrets.token_urlsafe(32)}"
    message = access_pb2.Token(
        token_digest=sha256(token.encode()), principal="bench", role=access_pb2.Role.Value("ROLE_ADMIN")
    )
    message.expire_time.FromDatetime(datetime.now(UTC).replace(microsecond=0) + timedelta(days=1))
    request = access_pb2.CreateTokenRequest(project_id=project, request_id="bench", token=message)
    await served.call(access.CreateToken, request)
    address = json.loads((served.folder / "server.json").read_text())["grpc"]
    spec = prepared[project].run_spec.SerializeToString().hex()
    path = folder / f"{project}.json"
    path.write_text(json.dumps(asdict(Side(address, token, project, spec, seconds))))
    return path


async def measure(seconds: float, unfair: bool, limited: bool) -> dict[str, Any]:
    """B alone, then beside a."""
    settings = {"ANIMUS_LOG_LEVEL": "warning"} | ({"ANIMUS_RATE_PER_SECOND": "500"} if limited else {})
    settings |= {name: value for name, value in os.environ.items() if name == "ANIMUS_CALL_SLOTS"}
    saturation: list[dict[str, Any]] = []
    async with machine() as here, serving(here, "neighbour", UNFAIR if unfair else PRODUCT, None, settings) as served:
        a = await side_of(served, here.folder, "a", seconds)
        b = await side_of(served, here.folder, "b", seconds)
        engine = create_async_engine(served.database.admin_url, isolation_level="AUTOCOMMIT")
        async with engine.connect() as admin:  # as autovacuum does within a minute: plans need to know of the runs
            await admin.execute(text("ANALYZE"))
        await engine.dispose()
        quiet = await probed(b)
        for count in PROCESSES:
            saturation.append({})
            async with loaded(a, count, saturation[-1]):
                began, before = time.perf_counter(), served.cpu_seconds()
                if count < PROCESSES[-1]:
                    await asyncio.sleep(seconds / 4)
                else:
                    busy = await probed(b)
                took = time.perf_counter() - began
                used = [after - start for after, start in zip(served.cpu_seconds(), before, strict=True)]
            saturation[-1] |= {
                "processors of the server": round(used[0] / took, 2),
                "of its database": round(used[1] / took, 2),
            }
    return {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
        "load at the end": round(os.getloadavg()[0], 1),
        "fair": not unfair,
        "a": saturation,
        "b alone": quiet,
        "b beside a": busy,
        "ratio of p50": round(busy["p50 ms"] / quiet["p50 ms"], 2),
        "ratio of p99": round(busy["p99 ms"] / quiet["p99 ms"], 2),
    }


def serve_unfair() -> None:
    """The product without turns: every call has a slot, and no project a share."""

    def without_turns(_slots: int, _pool_size: int, _per_second: int, _burst: int) -> Limits:
        return Limits(10_000, 10_000, None)

    setattr(animus.server, "limits_of", without_turns)  # noqa: B010
    setattr(limits, "CALLS_OF_PROJECT", 10_000)  # noqa: B010
    settings: Settings = load_settings()
    configure_logs(settings.log_level, settings.log_format)
    uvloop.run(animus.server.serve(settings))


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.neighbour", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20, help="that b calls, alone and beside a (default 20)")
    parser.add_argument("--unfair", action="store_true", help="serve without turns and shares, for comparison")
    parser.add_argument("--limited", action="store_true", help="limit the rate of one caller as by default")
    parser.add_argument("--role", choices=["server", "load", "probe"], help=argparse.SUPPRESS)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    match options.role:
        case "server":
            serve_unfair()
        case "load":
            uvloop.run(load(side_in(options.side)))
        case "probe":
            uvloop.run(probe(side_in(options.side)))
        case _:
            found = uvloop.run(measure(options.seconds, options.unfair, options.limited))
            print(json.dumps(found, indent=2))
            sys.exit(found["ratio of p99"] > MOST_RATIO)


if __name__ == "__main__":
    main()
