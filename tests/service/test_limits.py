"""Limits: what one caller, one project or a stranger may take, and that others are served meanwhile."""

import asyncio
import contextlib
import secrets
import socket
import struct
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from conftest import Database
from grpc_health.v1 import health_pb2, health_pb2_grpc
from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from animus.domain.access import CredentialKind, Principal, Role
from animus.domain.errors import Unavailable
from animus.sdk.client import connect
from animus.service import calls, limits
from animus.service.limits import Turns, counted_for, limits_of, resting
from animus.store.embedded import EmbeddedPostgres
from animus.store.engine import make_engine, translated
from animus.v1 import audit_pb2, log_pb2, project_pb2, project_pb2_grpc, run_pb2
from service.auditor import Stream
from service.conftest import Caller, Failure, Server, gathered
from service.requests import create_run, dataset, plan_run, prepare
from service.shared import held, served, until

# Turns, as they are taken in a process.


async def started(work: Awaitable[Any]) -> asyncio.Task[Any]:
    """A task that has come as far as it can."""
    task = asyncio.ensure_future(work)
    for _ in range(5):
        await asyncio.sleep(0)
    return task


class Work:
    """Calls that run until they are told to end."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns
        self.begun: list[str] = []
        self.end = asyncio.Event()

    async def call(self, name: str) -> None:
        """One of the key that its name begins with."""
        async with self.turns.taken(name[0]):
            self.begun.append(name)
            await self.end.wait()


async def test_a_project_has_its_share_and_leaves_the_rest() -> None:
    """With one in its only slot, the next waits, and another's first is begun at once."""
    work = Work(Turns(2, 1, 10))
    tasks = [await started(work.call(name)) for name in ("a1", "a2", "b1")]
    assert work.begun == ["a1", "b1"]
    work.end.set()
    await asyncio.gather(*tasks)
    assert work.begun == ["a1", "b1", "a2"]
    assert len(work.turns) == 0


async def test_a_call_that_is_cancelled_frees_its_place() -> None:
    """Waiting or running, also when its turn has come in the same moment; nobody is left behind it."""
    work = Work(Turns(1, 1, 10))
    first, second, third, fourth = [await started(work.call(name)) for name in ("a1", "a2", "a3", "a4")]
    second.cancel()
    third.cancel()
    first.cancel()  # its slot goes to the one that is next, which is the fourth
    await asyncio.gather(first, second, third, return_exceptions=True)
    await started(asyncio.sleep(0))
    assert work.begun == ["a1", "a4"]
    fifth = await started(work.call("a5"))
    work.end.set()
    await asyncio.gather(fourth, fifth)
    assert len(work.turns) == 0


async def test_a_call_whose_turn_has_come_and_that_is_cancelled_hands_on() -> None:
    """A slot that was given in the moment of the cancellation is not lost."""
    turns = Turns(1, 1, 10)
    work = Work(turns)
    async with turns.taken("b"):
        second, third = [await started(work.call(name)) for name in ("a2", "a3")]
    second.cancel()  # it has the slot by now, and has not run since
    await asyncio.gather(second, return_exceptions=True)
    await started(asyncio.sleep(0))
    assert work.begun == ["a3"]
    work.end.set()
    await third


async def test_too_many_calls_of_a_project_are_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One call more than may be in is BUSY, and so is one that has waited long enough; another project's is taken."""
    work = Work(Turns(2, 1, 2))
    tasks = [await started(work.call(name)) for name in ("a1", "a2")]
    with pytest.raises(Unavailable) as found:
        await work.call("a3")
    assert (found.value.reason, found.value.retry_seconds) == ("BUSY", 1)
    monkeypatch.setattr(limits, "WAIT_SECONDS", 0)
    tasks.append(await started(work.call("b1")))
    with pytest.raises(Unavailable) as found:
        await work.call("b2")
    assert found.value.reason == "BUSY"
    assert work.begun == ["a1", "b1"]
    work.end.set()
    await asyncio.gather(*tasks)
    assert len(work.turns) == 0


async def test_who_waits_for_others_has_no_slot_meanwhile() -> None:
    """A call that rests lets the next one run, counts on, and takes its turn again."""
    found = limits_of(2, 8, 0, 1)
    resume, done = asyncio.Event(), []

    async def waits() -> None:
        async with found.place("a"):
            async with resting():
                await resume.wait()
            done.append("waits")

    async def works() -> None:
        async with found.place("a"):
            done.append("works")

    task = await started(waits())
    await works()
    assert (done, len(found.calls)) == (["works"], 1)
    resume.set()
    await task
    assert done == ["works", "waits"]


def test_a_call_counts_for_a_project_in_which_its_caller_may_call() -> None:
    """What the request names, if the caller has roles there; else the caller's own, whatever the bytes are."""
    of_two = Principal(
        "x", {"a": frozenset({Role.ADMIN}), "b": frozenset({Role.VIEWER})}, CredentialKind.JWT, "", "", ()
    )
    of_one = Principal("y", {"a": frozenset({Role.ADMIN})}, CredentialKind.TOKEN, "", "", ())
    request = run_pb2.GetRunRequest(project_id="b", run_id="r").SerializeToString()
    assert (counted_for(of_two, request), counted_for(of_one, request)) == ("b", "a")
    for odd in (b"", b"\x0a", b"\x0a\xff", b"\x0a\x02\xff\xfe", b"\x0a\x40" + b"b" * 64, b"\x12\x01b"):
        assert (counted_for(of_two, odd), counted_for(of_one, odd)) == ("system", "a"), odd


def test_slots_leave_connections_for_lookups_and_the_log() -> None:
    """However many are asked for, six connections of the pool are not for calls."""
    turns = limits_of(100, 20, 0, 1).calls
    running = []
    for number in range(100):
        ticket = turns._queue.enter(f"p{number}")
        assert ticket is not None
        turns._queue.wait(ticket)
        running.append(turns._queue.next())
    assert sum(ticket is not None for ticket in running) == 14


async def test_a_lock_that_is_not_had_in_time_is_no_defect(database: Database) -> None:
    """The database's own limit of a wait is CONTENTION: another call holds what this one changes."""
    engine = make_engine(database.service_url, pool_size=2, pgbouncer=False)
    lock = text("SELECT pg_advisory_xact_lock(1)")
    async with engine.connect() as first, engine.connect() as second, first.begin(), second.begin():
        await first.execute(lock)
        await second.execute(text("SET LOCAL lock_timeout = '10ms'"))
        with pytest.raises(Unavailable) as found:
            async with translated():
                await second.execute(lock)
    assert found.value.reason == "CONTENTION"
    await engine.dispose()


# A server.


@pytest.fixture(scope="module")
async def server(
    postgres: EmbeddedPostgres, admin: AsyncEngine, template: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Server]:
    """A server with two slots, of which a project has one, and little patience for those that call often."""
    small = {"call_slots": "2", "rate_per_second": "1", "rate_burst": "120", "stream_timeout_seconds": "1"}
    async with served(postgres, admin, template, tmp_path_factory.mktemp("limits"), **small) as found:
        await found.project("a")
        await found.project("b")
        yield found


def get(project_id: str) -> project_pb2.GetProjectRequest:
    """A read that costs little."""
    return project_pb2.GetProjectRequest(project_id=project_id)


async def test_a_caller_beyond_its_rate_is_told_when_to_call_and_no_other_is(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RATE_LIMITED with the true wait, for a library that repeats calls too; another caller of the project is taken."""
    monkeypatch.setattr(limits, "WAIT_SECONDS", 60)
    eager, calm = await server.caller("a", "viewer"), await server.caller("a", "admin")
    found = await gathered([eager("GetProject", get("a")) for _ in range(90)])
    found += await gathered([eager("GetProject", get("a")) for _ in range(90)])
    refused = [each for each in found if isinstance(each, Failure)]
    assert 0 < len(refused) <= 60
    for failure in refused:
        assert (failure.code, failure.reason) == ("RESOURCE_EXHAUSTED", "RATE_LIMITED")
        assert 0 < float(failure.metadata["retry_after"]) <= 1
        assert failure.metadata["per_second"] == "1"
    await calm("GetProject", get("a"))
    async with connect(server.running.grpc, eager.token) as channel:
        name = (await project_pb2_grpc.ProjectServiceStub(channel).GetProject(get("a"))).project_id
    assert name == "a", "the SDK waits as long as it is told"


@asynccontextmanager
async def locked_run(server: Server, postgres: EmbeddedPostgres, project_id: str) -> AsyncIterator[str]:
    """A run that no call gets past, until the context ends."""
    spec = await prepare(server.admin, project_id)
    run = await server.admin("CreateRun", create_run(spec, secrets.token_hex(8), project_id))
    database = make_url(server.settings.database_url.get_secret_value()).database
    engine = create_async_engine(make_url(postgres.admin_url).set(database=database))
    async with engine.connect() as connection:
        lock = text("SELECT pg_advisory_xact_lock(hashtextextended(:project_id || '/' || :run_id, 0))")
        await connection.execute(lock, {"project_id": project_id, "run_id": run.run_id})
        yield str(run.run_id)
    await engine.dispose()


async def test_a_project_whose_calls_are_stuck_holds_up_no_other(
    server: Server, postgres: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one call of a project has its only slot, its others are BUSY, and those of another are answered."""
    stuck, own, other = [await server.caller(project, "admin") for project in ("a", "a", "b")]
    async with locked_run(server, postgres, "a") as run_id:
        monkeypatch.setattr(limits, "WAIT_SECONDS", 0.05)
        plan = asyncio.ensure_future(stuck("PlanRun", plan_run(run_id, secrets.token_hex(8), "a")))

        async def is_stuck() -> bool:
            try:
                await own("GetProject", get("a"))
            except Failure as failure:
                return (failure.code, failure.reason) == ("RESOURCE_EXHAUSTED", "BUSY")
            return False

        await until(is_stuck, "a project without a free slot")
        for _ in range(5):
            await other("GetProject", get("b"))
    await plan
    await own("GetProject", get("a"))


async def test_calls_that_wait_for_the_log_hold_nobody_up(server: Server) -> None:
    """More calls of a project than it has slots wait for an index; the project's others are answered meanwhile."""
    admin = await server.caller("a", "admin")
    async with held(server):
        made = await admin("CreateDataset", dataset("a", "waited-for"))
        wait = log_pb2.WaitForInclusionRequest(project_id="a", entry_id=made.record.audit_entry_id)
        waiting = [asyncio.ensure_future(admin("WaitForInclusion", wait)) for _ in range(4)]
        growth = server.running.log.growth

        async def all_wait() -> bool:
            return len(growth._waiting) >= 4

        await until(all_wait, "four calls that wait")
        await admin("GetProject", get("a"))
    assert {proof.entry_id for proof in await asyncio.gather(*waiting)} == {made.record.audit_entry_id}


async def test_strangers_keep_nobody_from_being_known(server: Server) -> None:
    """Among many calls with made-up tokens, those of callers that were known are answered, and no stranger is."""
    known = await server.caller("b", "admin")
    await known("GetProject", get("b"))
    strangers = [Caller(server.channel, f"animus_b_{secrets.token_urlsafe(32)}") for _ in range(120)]
    flood = asyncio.ensure_future(gathered([stranger("GetProject", get("b")) for stranger in strangers]))
    for _ in range(10):
        await known("GetProject", get("b"))
    refused = {(each.code, each.reason) for each in await flood}
    assert refused <= {("UNAUTHENTICATED", "TOKEN_INVALID"), ("RESOURCE_EXHAUSTED", "BUSY")}


async def test_the_streams_of_a_project_are_counted(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """One tail more than a project may have is BUSY; another project's is served, and the next when one has ended."""
    monkeypatch.setattr(limits, "STREAMS_OF_PROJECT", 2)
    monkeypatch.setattr(calls, "STREAM_IDENTITY_SECONDS", 60)  # nor is it looked whether they take too long
    one, other = await server.caller("a", "admin"), await server.caller("b", "admin")

    def tail(caller: Caller, project_id: str) -> Stream:
        return Stream(caller, "TailAuditEntries", audit_pb2.TailAuditEntriesRequest(project_id=project_id))

    await server.published("a")
    await server.published("b")
    open_streams = [tail(one, "a"), tail(one, "a"), tail(other, "b")]
    for stream in open_streams:
        await stream.take(1)
    with pytest.raises(Failure) as found:
        await tail(one, "a").take(1)
    assert (found.value.code, found.value.reason) == ("RESOURCE_EXHAUSTED", "BUSY")
    open_streams[0].cancel()

    async def room() -> bool:
        with contextlib.suppress(Failure):
            open_streams.append(again := tail(one, "a"))
            await again.take(1)
            return True
        return False

    await until(room, "room for another stream")
    for stream in open_streams:
        stream.cancel()


async def test_a_stream_ends_when_it_has_taken_too_long(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tail without a deadline of its own is ended with a reason, and the client can go on where it was."""
    monkeypatch.setattr(calls, "STREAM_IDENTITY_SECONDS", 0.02)
    admin = await server.caller("a", "admin")
    await server.published("a")
    with pytest.raises(Failure) as found:
        await admin.stream("TailAuditEntries", audit_pb2.TailAuditEntriesRequest(project_id="a"))
    assert (found.value.code, found.value.reason) == ("DEADLINE_EXCEEDED", "DEADLINE")


async def test_a_message_that_grows_beyond_the_limit_is_refused(server: Server) -> None:
    """The limit holds for what is in a compressed message; the next call is served."""
    admin = await server.caller("a", "admin")
    big = b"\x0a" + (17 << 20).to_bytes(4, "little") + bytes(17 << 20)
    options = [("grpc.max_send_message_length", -1)]
    async with grpc.aio.insecure_channel(server.running.grpc, options, grpc.Compression.Gzip) as channel:
        with pytest.raises(Failure) as found:
            await Caller(channel, admin.token).raw("GetProject", big)
        assert found.value.code == "RESOURCE_EXHAUSTED"
        await Caller(channel, admin.token)("GetProject", get("a"))


async def test_too_much_metadata_is_refused(server: Server) -> None:
    """Beyond 16 KiB, before anyone is looked up."""
    with pytest.raises(Failure) as found:
        await Caller(server.channel, "x" * 17_000)("GetProject", get("a"))
    assert found.value.code == "RESOURCE_EXHAUSTED"


async def test_nobody_watches_health_without_end(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Health needs no credential, so those who watch it are counted; one more may when one has gone."""
    monkeypatch.setattr(limits, "WATCHES", 1)
    stub: Any = health_pb2_grpc.HealthStub(server.channel)
    first = stub.Watch(health_pb2.HealthCheckRequest())
    assert (await first.read()).status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.aio.AioRpcError) as found:
        await stub.Watch(health_pb2.HealthCheckRequest()).read()
    assert found.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    first.cancel()

    async def room() -> bool:
        with contextlib.suppress(grpc.aio.AioRpcError):
            await (again := stub.Watch(health_pb2.HealthCheckRequest())).read()
            again.cancel()
            return True
        return False

    await until(room, "room for another")


def frame(kind: int, payload: bytes, flags: int = 0) -> bytes:
    """A frame of HTTP/2 on stream 0 (RFC 9113, 4.1)."""
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + bytes(4) + payload


async def test_a_client_that_pings_without_calls_is_cut_off(server: Server) -> None:
    """A few pings without a call end the connection with GOAWAY, too_many_pings."""
    host, port = server.running.grpc.split(":")

    def ping() -> bytes:
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, b""))
            answer = b""
            for number in range(10):
                with contextlib.suppress(OSError):
                    connection.sendall(frame(6, number.to_bytes(8, "big")))
            with contextlib.suppress(OSError):
                while part := connection.recv(4096):
                    answer += part
            return answer

    assert b"too_many_pings" in await asyncio.to_thread(ping)
