"""The fault table: every statement and the commit of a change, each lost in three ways; a retry heals them all.

The faults are real: the database ends the connection before or after the statement, or the handler's task is
cancelled, as grpc does when the caller goes, while it waits for the answer.
"""

import asyncio
import contextlib
import re
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from conftest import Database
from google.protobuf.message import Message
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.util import await_only

from animus.v1 import run_pb2
from service.conftest import Caller, Failure, Server
from service.requests import create_run, dataset, event, plan_run, prepare, report, same

# Made by the first call of a token in a second: no part of a change.
BESIDE = "SELECT * FROM animus.find_token"
MODES = ("not stored", "stored but unanswered", "cancelled")


class Own:
    """Tells what calls do from what the server does all the time: keep the log, look after its health.

    Each call has a task of its own, which begins with it.
    """

    def __init__(self) -> None:
        self._others: set[asyncio.Task[Any]] = set()

    def begin(self) -> None:
        """Counts the calls from now on, and nothing that runs already."""
        self._others = asyncio.all_tasks()

    def is_now(self) -> bool:
        """Whether it is such a call that runs."""
        return asyncio.current_task() not in self._others


class Faults:
    """Counts the statements of calls, and breaks one of them."""

    def __init__(self, caller: Caller, admin: AsyncConnection) -> None:
        self.caller = caller
        self._admin = admin
        self._own = Own()
        self._at = 0
        self._mode = ""
        self.seen = 0

    def arm(self, at: int, mode: str) -> None:
        """Breaks the statement at a place, from 1; 0 breaks none."""
        self._at, self._mode, self.seen = at, mode, 0
        self._own.begin()

    def before(self, driver_connection: Any, statement: str) -> bool:
        """Called before a statement or commit; says whether it is to be broken once it has run."""
        if not self._own.is_now() or statement.startswith(BESIDE):
            return False
        self.seen += 1
        if self.seen != self._at:
            return False
        if self._mode == "not stored":
            await_only(self._terminate(driver_connection))
        elif self._mode == "cancelled":
            self.caller.call.cancel()
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
        return self._mode == "stored but unanswered"

        return self._break(driver_connection)

    def _break(self, driver_connection: Any) -> bool:
        if self._mode == "not stored":
            await_only(self._terminate(driver_connection))
        elif self._mode == "cancelled":
            self.caller.call.cancel()
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
        return self._mode == "stored but unanswered"

    def after(self, driver_connection: Any) -> None:
        """Ends the connection, and lets the caller meet that."""
        await_only(self._terminate(driver_connection))
        await_only(driver_connection.execute("SELECT 1"))
        raise AssertionError("the connection outlived its end")

    async def one(self, query: str) -> Any:
        """One row, as the superuser."""
        return (await self._admin.execute(text(query))).one()

    async def _terminate(self, driver_connection: Any) -> None:
        pid = driver_connection.get_server_pid()
        await self._admin.execute(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": pid})


class LogFaults(Faults):
    """Knows the statements of the task that keeps the log, and breaks the next one of a kind."""

    def __init__(self, caller: Caller, admin: AsyncConnection) -> None:
        super().__init__(caller, admin)
        self.met: dict[str, None] = {}  # kinds, in the order in which they came
        self.broken = asyncio.Event()
        self._last = ""
        self._kind = ""

    def arm_kind(self, kind: str, mode: str) -> None:
        """Breaks the next statement of a kind: its text, or for a commit also what came before it."""
        self._kind, self._mode = kind, mode
        self.broken.clear()

    async def breaks(self, seconds: float) -> bool:
        """Waits until it is broken, for so long at most."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.broken.wait()
        return self.broken.is_set()

    def before(self, driver_connection: Any, statement: str) -> bool:
        """As for calls."""
        task: Any = asyncio.current_task()
        if task.get_coro().__qualname__ != "Leader.run":
            return False
        text = " ".join(statement.split())
        kind = f"COMMIT after {self._last}" if text == "COMMIT" else text
        self._last, last = text, self._last
        if not last and text == "COMMIT":  # of a transaction that had begun
            return False
        self.met[kind] = None
        if kind != self._kind or self.broken.is_set():
            return False
        self.broken.set()
        return self._break(driver_connection)


@contextmanager
def listening(engine: AsyncEngine, faults: Faults) -> Iterator[None]:
    """Lets faults see the statements and commits of an engine."""
    dialect: Any = engine.sync_engine.dialect
    execute, commit = dialect.do_execute, dialect.do_commit

    def do_execute(cursor: Any, statement: str, parameters: Any, context: Any = None) -> None:
        driver = cursor._adapt_connection.driver_connection
        breaks = faults.before(driver, statement)
        execute(cursor, statement, parameters, context)
        if breaks:
            _broken(faults, cursor._adapt_connection)

    def do_commit(connection: Any) -> None:
        driver = connection.driver_connection
        breaks = faults.before(driver, "COMMIT")
        commit(connection)
        if breaks:
            _broken(faults, connection)

    dialect.do_execute, dialect.do_commit = do_execute, do_commit
    try:
        yield
    finally:
        dialect.do_execute, dialect.do_commit = execute, commit


def _broken(faults: Faults, connection: Any) -> None:
    """Raises what the driver raises when the connection ends: as its own errors, in its own translation."""
    try:
        faults.after(connection.driver_connection)
    except Exception as error:
        connection._handle_exception(error)


@pytest.fixture
async def faults(server: Server, superuser: AsyncConnection) -> AsyncIterator[Faults]:
    """Faults in the connections that calls use."""
    found = Faults(server.admin, superuser)
    with listening(server.running.engine, found):
        yield found


@pytest.fixture
async def log_faults(server: Server, superuser: AsyncConnection) -> AsyncIterator[LogFaults]:
    """Faults in the connections that the log is kept over."""
    found = LogFaults(server.admin, superuser)
    with listening(server.running.engine, found):
        yield found


@pytest.fixture
async def spec(server: Server) -> run_pb2.RunSpec:
    """What the runs of a test are made of."""
    return await prepare(server.admin)


async def next_call(method: str, server: Server, spec: run_pb2.RunSpec) -> Message:
    """A request of a method that was never sent, with everything before it done."""
    create = create_run(spec, secrets.token_hex(8))
    if method == "CreateRun":
        return create
    run = await server.admin("CreateRun", create)
    plan = plan_run(run.run_id, secrets.token_hex(8))
    if method == "PlanRun":
        return plan
    await server.admin("PlanRun", plan)
    return report(run.run_id, event("first", 1, "STARTED"))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("method", ["CreateRun", "PlanRun", "ReportStepEvents"])
async def test_a_retry_after_any_failure_makes_one_change(
    method: str, mode: str, server: Server, spec: run_pb2.RunSpec, faults: Faults, database: Database
) -> None:
    """Whatever fails, the same request_id ends in one change, one entry, one answer, and no open transaction."""
    for _ in range(2):  # what is kept by digest is read by the first
        request = await next_call(method, server, spec)
        faults.arm(0, mode)
        await server.admin(method, request)
    statements = faults.seen
    assert statements >= 4
    for at in range(1, statements + 1):
        request = await next_call(method, server, spec)
        before = await counts(faults)
        faults.arm(at, mode)
        try:
            await server.admin(method, request)
        except Failure as failure:
            assert failure.code in ("UNAVAILABLE", "CANCELLED", "UNKNOWN"), failure
        else:
            pytest.fail(f"the fault at {at} of {statements} did not show")
        faults.arm(0, mode)
        reply = await server.admin(method, request)
        again = await server.admin(method, request)
        assert same(reply, again)
        assert server.admin.metadata["animus-replayed"] == "true"
        after = await counts(faults)
        assert [new - old for new, old in zip(after, before, strict=True)] == [1, 1, 1], (at, before, after)
        await no_open_transaction(faults)
    await log_is_whole(server, faults)


async def test_the_table_sees_a_change_that_is_made_twice(
    server: Server, spec: run_pb2.RunSpec, faults: Faults
) -> None:
    """Negative control: two changes where one was asked for are counted as two."""
    before = await counts(faults)
    await server.admin("CreateRun", create_run(spec, "one"))
    await server.admin("CreateRun", create_run(spec, "two"))
    after = await counts(faults)
    assert [new - old for new, old in zip(after, before, strict=True)] == [2, 2, 2]


async def test_the_log_goes_on_after_any_failure_of_its_own(server: Server, log_faults: LogFaults) -> None:
    """Each statement and commit that keeps it, lost or unanswered: no entry is lost or doubled, no change refused."""
    await server.admin("CreateDataset", dataset("p", "first"))
    await log_is_whole(server, log_faults)
    (leads,) = [kind for kind in log_faults.met if kind.startswith("SELECT animus.lead_log")]
    done: list[str] = []
    while waiting := [kind for kind in log_faults.met if kind not in done]:
        kind = waiting[0]
        for mode in MODES[:2] if kind.startswith("COMMIT") else MODES[:1]:
            log_faults.arm_kind(kind, mode)
            await server.admin("CreateDataset", dataset("p", f"d{len(done)}-{mode.replace(' ', '-')}"))
            server.running.log.publish_soon()
            if not await log_faults.breaks(2):  # made only when the database may be another than before
                log_faults.arm_kind(leads, "not stored")
                assert await log_faults.breaks(20)
                log_faults.arm_kind(kind, mode)
                assert await log_faults.breaks(20), kind
        done.append(kind)
    tables = {table for kind in done for table in re.findall(r"(?:INTO|FROM|UPDATE) animus\.([a-z_]+)", kind)}
    assert tables >= {"audit_queue", "log_state", "log_leaf", "log_tile", "log_checkpoint", "log_quarantine"}
    await log_is_whole(server, log_faults)


async def test_a_contradiction_stands_until_it_is_gone(server: Server, superuser: AsyncConnection) -> None:
    """From the moment in which the signer sees a tree that nobody grew, no change is taken; then they all are again."""
    leader = server.running.log.leader
    assert leader is not None
    await superuser.execute(
        text("INSERT INTO animus.log_state (project_id, size, hashes, fence) VALUES ('q', 2, sha256('x'), 1)")
    )
    async with asyncio.timeout(20):
        while not leader.problem:
            await asyncio.sleep(0.01)
    for index in range(30):  # for longer than a second, in which the signer is due once
        with pytest.raises(Failure) as found:
            await server.admin("CreateDataset", dataset("p", f"d{index}"))
        assert found.value.reason == "LOG_UNSOUND"
        await asyncio.sleep(0.05)
    await superuser.execute(text("DELETE FROM animus.log_state WHERE project_id = 'q'"))
    async with asyncio.timeout(20):
        while leader.problem:
            await asyncio.sleep(0.01)
    await server.admin("CreateDataset", dataset("p", "d0"))
    await server.published("p")


async def log_is_whole(server: Server, faults: Faults) -> None:
    """Waits until all is published: each entry has one index, and no index is left out."""
    for project_id in ("p", "system", "instance"):
        await server.published(project_id)
    assert server.running.log.leader is not None
    assert server.running.log.leader.problem == ""
    row = await faults.one(
        "SELECT (SELECT count(*) FROM animus.audit_queue) AS queued,"
        " (SELECT count(*) FROM animus.log_quarantine) AS aside,"
        " (SELECT count(*) FROM animus.audit_entry) AS entries,"
        " (SELECT count(*) FROM animus.log_leaf"
        "   JOIN animus.audit_entry USING (project_id, entry_id, leaf_hash)) AS leaves,"
        " (SELECT count(*) FROM (SELECT FROM animus.log_leaf GROUP BY project_id"
        "   HAVING count(*) <> max(index) + 1 OR min(index) <> 0) AS sparse) AS sparse"
    )
    assert (row.queued, row.aside, row.sparse) == (0, 0, 0)
    assert row.leaves == row.entries


async def counts(faults: Faults) -> list[int]:
    """Accepted entries, remembered replies, and runs or events of runs, of all projects."""
    row = await faults.one(
        "SELECT (SELECT count(*) FROM animus.audit_entry WHERE outcome = 'accepted'),"
        " (SELECT count(*) FROM animus.idempotency),"
        " (SELECT count(*) FROM animus.run) + (SELECT count(*) FROM animus.run_event)"
    )
    return list(row)


async def no_open_transaction(faults: Faults) -> None:
    """Waits, for five seconds at most, until no connection of the server is in a transaction."""
    query = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        " AND usename = 'animus_service' AND (state <> 'idle' OR xact_start IS NOT NULL)"
    )
    async with asyncio.timeout(5):
        while (await faults.one(query))[0]:
            await asyncio.sleep(0.01)
