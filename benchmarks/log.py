"""What the audit log costs, and how fast it is: `python -m benchmarks.log [rpc|integrator|latency|proofs|all]`.

Everything runs on one machine, on Unix sockets and loopback, on a PostgreSQL of its own with fsync on, and ends by
itself. Tables go to stderr as they come, all figures to stdout as JSON. Ratios are of what ran in turns beside each
other; rates and times are of this machine, with whatever else it was doing.
"""

import argparse
import asyncio
import itertools
import json
import os
import platform
import random
import statistics
import sys
import time
from bisect import bisect_right
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import uvloop
from rich.console import Console
from rich.table import Table
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from animus.keyring import Keyring
from animus.store.engine import make_engine
from animus.store.log import LogStore
from animus.v1 import log_pb2, log_pb2_grpc
from benchmarks.entries import fill, integrate
from benchmarks.stack import PRODUCT, UNAUDITED, Machine, Served, machine, serving
from benchmarks.unaudited import strip
from benchmarks.work import IN_FLIGHT, Send, prepare, rate, senders

LOOK_SECONDS = 0.01  # between two looks at what is published
WAIT_SECONDS = 600  # for a log to be published, at most

Row = dict[str, str | int | float]


@dataclass(slots=True)
class Round:
    """What some calls came to."""

    per_second: float
    server_ms: float  # CPU of the server, for each call
    database_ms: float  # the same of PostgreSQL

    @property
    def cpu_ms(self) -> float:
        """CPU for each call, the client's left out."""
        return self.server_ms + self.database_ms


async def measure_rpc(here: Machine, calls: int, rounds: int, most_projects: int) -> list[Row]:
    """Audited against unaudited, in turns, on one project and on many."""
    projects = [f"p{number}" for number in range(most_projects)]
    rows: list[Row] = []
    async with serving(here, "audited", PRODUCT) as audited, serving(here, "unaudited", UNAUDITED) as unaudited:
        await strip(unaudited.database.admin_url, projects)
        sides = {"audited": audited, "unaudited": unaudited}
        ways: dict[str, dict[str, Send]] = {}
        for name, served in sides.items():
            # The hot project has a run for each call in flight: those of one run wait for each other.
            prepared = await prepare(served, projects[:1], IN_FLIGHT) | await prepare(served, projects[1:], 1)
            ways[name] = senders(served, prepared)
        for method, count in itertools.product(ways["audited"], sorted({1, most_projects})):
            found: dict[str, list[Round]] = {name: [] for name in sides}
            for number in range(-1, rounds):  # the first is a warm-up
                for name in sides:
                    async with alone(sides, name):
                        one = await _round(sides[name], projects[:count], calls, ways[name][method], name == "audited")
                    if number >= 0:
                        found[name].append(one)
            rows.append({"call": method, "projects": count, **_compared(found["audited"], found["unaudited"])})
    return rows


@asynccontextmanager
async def alone(sides: dict[str, Served], name: str) -> AsyncIterator[None]:
    """Stops all servers but one."""
    others = [served for other, served in sides.items() if other != name]
    for served in others:
        await served.pause()
    try:
        yield
    finally:
        for served in others:
            served.resume()


async def _round(served: Served, projects: Sequence[str], calls: int, send: Send, audited: bool) -> Round:
    """One round. CPU counts until what was promised is published; the rate ends with the last reply."""
    before = served.cpu_seconds()
    per_second = await rate(projects, calls, send)
    if audited:
        await published(served)
    server, database = (
        (after - start) * 1_000 / calls for after, start in zip(served.cpu_seconds(), before, strict=True)
    )
    return Round(per_second, server, database)


def _compared(audited: list[Round], unaudited: list[Round]) -> Row:
    pairs = [one.per_second / other.per_second for one, other in zip(audited, unaudited, strict=True)]
    medians = [statistics.median(each.per_second for each in side) for side in (audited, unaudited)]
    cpu = [statistics.median(each.cpu_ms for each in side) for side in (audited, unaudited)]
    servers = [statistics.median(each.server_ms for each in side) for side in (audited, unaudited)]
    return {
        "audited per second": round(medians[0]),
        "unaudited per second": round(medians[1]),
        "ratio": round(medians[0] / medians[1], 2),
        "least of a pair": round(min(pairs), 2),
        "greatest of a pair": round(max(pairs), 2),
        "audited CPU ms": round(cpu[0], 2),
        "of it server": round(servers[0], 2),
        "unaudited CPU ms": round(cpu[1], 2),
        "of which server": round(servers[1], 2),
        "ratio of CPU": round(cpu[1] / cpu[0], 2),
    }


async def published(served: Served) -> None:
    """Waits until every log of a server's instance is published."""
    engine = create_async_engine(served.database.admin_url)
    async with asyncio.timeout(WAIT_SECONDS), engine.connect() as admin:
        while (await admin.execute(_PENDING)).scalar_one():  # noqa: ASYNC110 (another process publishes)
            await asyncio.sleep(0.05)
    await engine.dispose()


async def measure_integrator(here: Machine, entries: int, most_projects: int) -> list[Row]:
    """Entries a second, each with its seal checked and its bytes hashed again, on one project and on many."""
    rows: list[Row] = []
    keyring, _ = Keyring.create(here.folder / "integrator", "animus.bench")
    for count in sorted({1, most_projects}):
        database = await here.database(f"integrator_{count}")
        engine = make_engine(database.service_url, pool_size=1, pgbouncer=False)
        for number in range(count):
            await fill(engine, keyring, f"p{number}", entries // count)
        done, seconds = await integrate(LogStore(engine, "bench"), keyring)
        await engine.dispose()
        rows.append({"projects": count, "entries": done, "per second": round(done / seconds)})
    return rows


async def measure_latency(here: Machine, calls: int) -> list[Row]:
    """From a reply to the first checkpoint that covers its entry, as the client's clock sees both, under load."""
    projects = [f"p{number}" for number in range(8)]
    replies: list[tuple[str, str, float]] = []  # project, entry, and when
    async with serving(here, "latency", PRODUCT) as served:
        create = senders(served, await prepare(served, projects, 0))["CreateDataset"]

        async def send(project: str) -> None:
            reply = await create(project)
            replies.append((project, reply.record.audit_entry_id, time.perf_counter()))

        looking = asyncio.create_task(_look(served))
        per_second = await rate(projects, calls, send)
        await published(served)
        await asyncio.sleep(2 * LOOK_SECONDS)
        looking.cancel()
        seen = (await asyncio.gather(looking, return_exceptions=True))[0]
        assert isinstance(seen, dict), seen
        engine = create_async_engine(served.database.admin_url)
        async with engine.connect() as admin:
            indexes = {(project, entry): index for project, entry, index in await admin.execute(_INDEXES)}
        await engine.dispose()
    seconds = []
    for project, entry_id, when in replies:
        sizes, times = seen[project]
        seconds.append(max(0.0, times[bisect_right(sizes, indexes[project, entry_id])] - when))
    return [
        {"changes": len(seconds), "changes per second": round(per_second), **quantiles(sorted(seconds), "s", 1)},
    ]


async def _look(served: Served) -> dict[str, tuple[list[int], list[float]]]:
    """Until it is cancelled: the sizes of published checkpoints, by log, and when each was there."""
    seen: dict[str, tuple[list[int], list[float]]] = {}
    engine = create_async_engine(served.database.admin_url, isolation_level="AUTOCOMMIT")
    try:
        async with engine.connect() as admin:
            while True:
                rows = (await admin.execute(_PUBLISHED)).all()
                now = time.perf_counter()
                for project_id, size in rows:
                    sizes, times = seen.setdefault(project_id, ([], []))
                    if not sizes or sizes[-1] < size:
                        sizes.append(size)
                        times.append(now)
                await asyncio.sleep(LOOK_SECONDS)
    except asyncio.CancelledError:
        return seen
    finally:
        await engine.dispose()


async def measure_proofs(here: Machine, leaves: int, proofs: int) -> list[Row]:
    """Time of a proof over gRPC, one in flight, in a log of many leaves."""
    async with serving(here, "proofs", PRODUCT) as served:
        await prepare(served, ["p"], 0)
        engine = make_engine(served.database.service_url, pool_size=1, pgbouncer=False)
        await fill(engine, Keyring(served.folder / "log"), "p", leaves)
        await engine.dispose()
        await published(served)  # by the server itself
        log = log_pb2_grpc.LogServiceStub(served.channel)
        size = (await served.call(log.GetCheckpoint, log_pb2.GetCheckpointRequest(project_id="p"))).size
        numbers = random.Random(7)  # noqa: S311 (the same numbers each time)
        times: dict[str, list[float]] = {"inclusion": [], "consistency": []}
        for number in range(proofs + proofs // 10):
            first, second = sorted(numbers.sample(range(1, size), 2))
            asked = {
                "inclusion": (log.GetInclusionProof, log_pb2.GetInclusionProofRequest(project_id="p", index=first)),
                "consistency": (
                    log.GetConsistencyProof,
                    log_pb2.GetConsistencyProofRequest(project_id="p", first_size=first, second_size=second),
                ),
            }
            for name, (method, request) in asked.items():
                began = time.perf_counter()
                await served.call(method, request)
                if number >= proofs // 10:  # those before are a warm-up
                    times[name].append(time.perf_counter() - began)
    return [
        {"proof of": name, "leaves": size, "proofs": proofs, **quantiles(sorted(values), "ms", 1_000)}
        for name, values in times.items()
    ]


def quantiles(values: Sequence[float], unit: str, factor: int) -> Row:
    """Median and 99th percentile of sorted values."""
    return {
        f"p{percent} {unit}": round(values[min(len(values) - 1, len(values) * percent // 100)] * factor, 3)
        for percent in (50, 99)
    }


def shown(title: str, rows: Sequence[Row]) -> Table:
    """Figures for people."""
    table = Table(title=title)
    for column in rows[0]:
        table.add_column(column, justify="left" if isinstance(rows[0][column], str) else "right")
    for row in rows:
        table.add_row(*(f"{value:,}" if isinstance(value, int) else str(value) for value in row.values()))
    return table


async def measure(part: str, scale: float, rounds: int) -> dict[str, Any]:
    """All parts, or the one that was asked for."""
    parts: dict[str, Callable[[Machine], Awaitable[list[Row]]]] = {
        "rpc": lambda here: measure_rpc(here, max(IN_FLIGHT, int(1_500 * scale)), rounds, 64),
        "integrator": lambda here: measure_integrator(here, max(640, int(100_000 * scale)), 64),
        "latency": lambda here: measure_latency(here, max(100, int(10_000 * scale))),
        "proofs": lambda here: measure_proofs(here, max(1_000, int(1_000_000 * scale)), max(100, int(1_000 * scale))),
    }
    found: dict[str, Any] = {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
        "load at the start": round(os.getloadavg()[0], 1),
    }
    console = Console(stderr=True, width=None if sys.stderr.isatty() else 160)
    async with machine() as here:
        for name in parts if part == "all" else [part]:
            found[name] = await parts[name](here)
            console.print(shown(name, found[name]))
    found["load at the end"] = round(os.getloadavg()[0], 1)
    return found


_PENDING = text(
    "SELECT (SELECT count(*) FROM animus.audit_queue)"
    " + (SELECT count(*) FROM animus.log_state WHERE size <> published_size)"
)
_PUBLISHED = text("SELECT project_id, published_size FROM animus.log_state")
_INDEXES = text("SELECT project_id, entry_id, index FROM animus.log_leaf")


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.log", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("part", nargs="?", default="all", choices=["rpc", "integrator", "latency", "proofs", "all"])
    parser.add_argument("--rounds", type=int, default=5, help="of `rpc`, for each side and call (default 5)")
    parser.add_argument("--scale", type=float, default=1.0, help="part of the usual amount of work (default 1)")
    options = parser.parse_args()
    print(json.dumps(uvloop.run(measure(options.part, options.scale, options.rounds)), indent=2))


if __name__ == "__main__":
    main()
