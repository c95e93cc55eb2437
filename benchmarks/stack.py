"""What a benchmark runs on: a PostgreSQL of its own with fsync on, servers in processes of their own, and their CPU."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from animus.store.embedded import OWNER, EmbeddedPostgres, database_grants
from animus.store.migrate import migrate

ROOT = Path(__file__).parents[1]
TEMPLATE = "bench_template"
STOP_SECONDS = 60
# Of /proc/<pid>/stat, counted after the name of the process.
PARENT = 1
CPU = slice(11, 13)  # utime and stime
CPU_WITH_CHILDREN = slice(11, 15)  # and those of children that have ended
TICK = os.sysconf("SC_CLK_TCK")

PRODUCT = "animus.cli serve"
UNAUDITED = "benchmarks.unaudited"


@dataclass(frozen=True, slots=True)
class Database:
    """A migrated database, as each role reaches it (SQLAlchemy asyncpg URLs)."""

    service_url: str
    admin_url: str


@dataclass(frozen=True, slots=True)
class Machine:
    """A PostgreSQL, and a folder for servers."""

    folder: Path
    postgres: EmbeddedPostgres
    template: str  # a migrated database

    async def database(self, name: str) -> Database:
        """A new migrated database."""
        await _create(self.postgres, name, self.template)
        return Database(_on(self.postgres.service_url, name), _on(self.postgres.admin_url, name))


@asynccontextmanager
async def machine() -> AsyncIterator[Machine]:
    """A PostgreSQL on the disk of temporary files."""
    folder = Path(tempfile.mkdtemp(prefix="animus-bench-"))
    os.chmod(folder, 0o711)  # noqa: PTH101, S103 (PostgreSQL runs as another account when we are root)
    try:
        postgres = await asyncio.to_thread(EmbeddedPostgres.start, folder / "postgres")
        try:
            await _create(postgres, TEMPLATE, "template1")
            await migrate(_on(postgres.owner_url, TEMPLATE))
            yield Machine(folder, postgres, TEMPLATE)
        finally:
            postgres.stop()
    finally:
        shutil.rmtree(folder)


@dataclass(frozen=True, slots=True)
class Served:
    """A server in a process of its own, and calls to it."""

    folder: Path
    database: Database
    pid: int
    postmaster: int  # the process id of its database's server
    channel: grpc.aio.Channel
    metadata: tuple[tuple[str, str], ...]

    async def call(self, method: Any, request: Any) -> Any:
        """The reply. Raises grpc.RpcError: no benchmark goes on with calls that fail."""
        return await method(request, metadata=self.metadata, timeout=60)

    async def pause(self) -> None:
        """Stops the process, outside of any transaction, so that it costs nothing while another is measured."""
        engine = create_async_engine(self.database.admin_url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
        async with engine.connect() as admin:
            while True:
                os.kill(self.pid, signal.SIGSTOP)
                if not (await admin.execute(_OPEN)).scalar_one():
                    break
                self.resume()
                await asyncio.sleep(0.01)
        await engine.dispose()

    def resume(self) -> None:
        """Lets it go on."""
        os.kill(self.pid, signal.SIGCONT)

    def cpu_seconds(self) -> tuple[float, float]:
        """What this server and PostgreSQL have used so far, in user and system time."""
        stats = _stats()
        postmaster = stats[self.postmaster]
        database = sum(_ticks(stat, CPU) for stat in stats.values() if int(stat[PARENT]) == self.postmaster)
        return _ticks(stats[self.pid], CPU) / TICK, (database + _ticks(postmaster, CPU_WITH_CHILDREN)) / TICK


@asynccontextmanager
async def serving(
    here: Machine, name: str, module: str, beside: Served | None = None, settings: Mapping[str, str] | None = None
) -> AsyncIterator[Served]:
    """A server on a new database, with the product's own settings but for these and the rate of one caller.

    With `beside`, it shares the database, the log's folder and the first token of one that runs already.
    """
    database = beside.database if beside else await here.database(f"bench_{name}")
    folder = here.folder / name
    folder.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ANIMUS_")}
    environment |= {
        "ANIMUS_DATA_DIR": str(folder),
        "ANIMUS_DATABASE_URL": database.service_url,
        "ANIMUS_GRPC_PORT": "0",
        "ANIMUS_GATEWAY": "false",
        "ANIMUS_METRICS_PORT": "0",
        "ANIMUS_LOG_DIR": str((beside.folder if beside else folder) / "log"),
        "ANIMUS_RATE_PER_SECOND": "0",
        **(settings or {}),
    }
    output = folder / "server.log"
    with output.open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", *module.split()),
            env=environment,
            cwd=ROOT,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        state = folder / "server.json"
        while not state.exists():
            if process.returncode is not None:
                raise SystemExit(f"{module} ended with {process.returncode}: {output.read_text()[-2_000:]}")
            await asyncio.sleep(0.02)
        token = ((beside.folder if beside else folder) / "admin.token").read_text().strip()
        engine = create_async_engine(database.admin_url, poolclass=NullPool)
        async with engine.connect() as admin:
            postmaster = int(
                (await admin.execute(text("SELECT pg_read_file('postmaster.pid')"))).scalar_one().split()[0]
            )
        await engine.dispose()
        async with grpc.aio.insecure_channel(json.loads(state.read_text())["grpc"]) as channel:
            metadata = (("authorization", f"Bearer {token}"),)
            yield Served(folder, database, process.pid, postmaster, channel, metadata)
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGCONT)
            process.terminate()
        await asyncio.wait_for(process.wait(), STOP_SECONDS)


# Anything that the server has begun and not ended; its sessions wait for it in the meantime.
_OPEN = text(
    "SELECT count(*) FROM pg_stat_activity"
    " WHERE datname = current_database() AND pid <> pg_backend_pid() AND state <> 'idle'"
)


def _stats() -> dict[int, list[str]]:
    """The fields of every process, by its id."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # ended since
            found[int(path.parent.name)] = path.read_text().rpartition(")")[2].split()
    return found


def _ticks(stat: list[str], fields: slice) -> int:
    return sum(map(int, stat[fields]))


async def _create(postgres: EmbeddedPostgres, name: str, template: str) -> None:
    url = _on(postgres.admin_url, "postgres")
    engine = create_async_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    async with engine.connect() as admin:
        for statement in (f"CREATE DATABASE {name} TEMPLATE {template} OWNER {OWNER}", *database_grants(name)):
            await admin.execute(text(statement))
    await engine.dispose()


def _on(url: str, database: str) -> str:
    return make_url(url).set(database=database).render_as_string(hide_password=False)
