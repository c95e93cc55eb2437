"""Streams of the audit log: every entry from any index on, in order, once; as messages that follow, and as lines."""

import asyncio
import itertools
import json
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from contract import METHODS
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.timestamp_pb2 import Timestamp
from grpc_health.v1 import health_pb2, health_pb2_grpc
from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from animus.service import audit, calls
from animus.store.embedded import EmbeddedPostgres
from animus.v1 import audit_pb2, log_pb2
from service.auditor import RECEIPT, Stream, ask
from service.conftest import Caller, Failure, Server, open_channel
from service.requests import dataset
from service.shared import Grown, after_first, executing, held, served, size_of, until


@pytest.fixture(scope="module")
async def server(
    postgres: EmbeddedPostgres, admin: AsyncEngine, template: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Server]:
    """The server of these tests."""
    async with served(postgres, admin, template, tmp_path_factory.mktemp("data")) as found:
        yield found


@pytest.fixture
async def grown(server: Server) -> Grown:
    """A project of the test's own."""
    return await Grown.new(server)


def tail(grown: Grown, first_index: int = 0, caller: Caller | None = None) -> Stream:
    """A tail of a project's log."""
    request = audit_pb2.TailAuditEntriesRequest(project_id=grown.project_id, first_index=first_index)
    return Stream(caller or grown.server.admin, "TailAuditEntries", request)


async def export(grown: Grown, **fields: Any) -> list[bytes]:
    """The lines of an export."""
    request = audit_pb2.ExportAuditEntriesRequest(project_id=grown.project_id, **fields)
    bodies = await Stream(grown.server.admin, "ExportAuditEntries", request).rest()
    assert bodies
    assert {body.content_type for body in bodies} == {"application/x-ndjson"}
    data = b"".join(body.data for body in bodies)
    assert data.endswith(b"\n") or not data
    return data.splitlines(keepends=True)


async def integrated(grown: Grown, size: int) -> None:
    """Waits until so many entries have an index."""

    async def reached() -> bool:
        return (await size_of(grown.server, grown.project_id)).size >= size

    await until(reached, f"{size} entries with an index")


async def entries_of(grown: Grown) -> list[audit_pb2.AuditEntry]:
    """The entries of a log as they are listed, by index."""
    request = audit_pb2.ListAuditEntriesRequest(project_id=grown.project_id, page_size=1_000)
    listed = (await grown.server.admin("ListAuditEntries", request)).audit_entries
    return sorted((entry for entry in listed if entry.HasField("index")), key=lambda entry: entry.index)


# Tails.


async def test_a_tail_begins_at_any_index(server: Server, grown: Grown) -> None:
    """From each of 20: the entries from there on, as GetAuditEntry has them, without gap or repeat."""
    await grown.grow(19)
    await integrated(grown, 20)
    listed = await entries_of(grown)
    assert [entry.index for entry in listed] == list(range(20))
    for first in range(20):
        stream = tail(grown, first)
        assert await stream.take(20 - first) == listed[first:]
        stream.cancel()
    for entry in listed:
        assert sha256(b"\x00" + entry.document).hexdigest() == entry.leaf_hash


async def test_a_tail_reads_on_in_batches(grown: Grown, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is read at once, each entry comes once."""
    await grown.grow(19)
    await integrated(grown, 20)
    listed = await entries_of(grown)
    for batch in (1, 7, 20, 21):
        monkeypatch.setattr(audit, "BATCH", batch)
        stream = tail(grown)
        assert await stream.take(20) == listed
        stream.cancel()


async def test_a_tail_follows(server: Server, grown: Grown) -> None:
    """Entries come as they get their index, to each of several that began at different times; none before."""
    early, later, ahead = tail(grown), tail(grown, 3), tail(grown, 10)
    seen = await early.take(1)
    async with held(server):
        await grown.grow(4)
        coming = asyncio.create_task(early.next())
        assert (await size_of(server, grown.project_id)).queued == 4
        assert not coming.done()
    seen.append(await coming)
    seen += await early.take(3)
    assert [entry.index for entry in seen] == list(range(5))
    assert await later.take(2) == seen[3:]
    for size in range(5, 12):
        await grown.grow()
        seen.append(await early.next())
        assert await later.next() == seen[-1]
        assert seen[-1].index == size
    assert await ahead.take(2) == seen[10:]
    assert await entries_of(grown) == seen
    for stream in (early, later, ahead):
        stream.cancel()


async def test_a_tail_that_is_resumed_has_no_gap_and_no_repeat(grown: Grown) -> None:
    """Cut off again and again while the log grows, and gone on with at the next index."""
    growing = asyncio.create_task(grown.grow(60))
    seen: list[audit_pb2.AuditEntry] = []
    while len(seen) < 61:
        stream = tail(grown, len(seen))
        seen += await stream.take(min(7, 61 - len(seen)))
        stream.cancel()
    await growing
    assert [entry.index for entry in seen] == list(range(61))
    assert seen == await entries_of(grown)


LOOK = "SELECT project_id, size, published_size FROM animus.log_state"
READ = "SELECT l.index, l.entry_id, l.leaf_hash, e.document"


@dataclass(slots=True)
class Costs:
    """Statements that waiting tails cost."""

    looks: int = 0
    reads: int = 0

    def count(self, statement: str) -> None:
        """Counts one."""
        self.looks += statement.startswith(LOOK)
        self.reads += statement.startswith(READ)


async def test_many_tails_cost_no_more_than_one_while_they_wait(server: Server, grown: Grown) -> None:
    """Thirty tails of three logs: while the server looks five times, nobody else asks the database for them."""
    others = [await Grown.new(server) for _ in range(2)]
    logs = [grown, *others]
    streams = [tail(each) for each in logs for _ in range(10)]
    for stream in streams:
        await stream.take(1)
    waiting = server.running.log.growth._waiting

    async def all_wait() -> bool:
        return len(waiting) == 30

    await until(all_wait, "thirty tails that wait")
    costs = Costs()

    async def looked() -> bool:
        return costs.looks >= 5

    with executing(server, costs.count):
        await until(looked, "five looks")
        assert (costs.looks, costs.reads) == (5, 0)
        await grown.grow()
        for stream in streams[:10]:
            assert (await stream.next()).index == 1
        await until(all_wait, "thirty tails that wait again")
        assert costs.reads == 20  # the entry, and that there is no further one, for each of those whose log grew
    for stream in streams:
        stream.cancel()

    async def all_left() -> bool:
        return not waiting

    await until(all_left, "nobody who waits for those that left")


async def test_a_tail_ends_when_the_database_refuses_to_be_looked_at(
    server: Server, grown: Grown, postgres: EmbeddedPostgres
) -> None:
    """Nobody waits for what nobody looks for any more, and the server says that it is ill; afterwards all goes on."""
    stub: Any = health_pb2_grpc.HealthStub(server.channel)  # its stubs lack the methods

    async def healthy() -> bool:
        return bool((await stub.Check(health_pb2.HealthCheckRequest())).status == 1)

    async def ill() -> bool:
        return not await healthy()

    stream = tail(grown)
    await stream.take(1)
    failing = asyncio.create_task(stream.failure())
    async with superuser(server, postgres) as connection:
        await connection.execute(text("REVOKE SELECT ON animus.log_state FROM animus_service"))
        try:
            failure = await asyncio.wait_for(failing, 60)
            await until(ill, "a server that says that it is ill")
        finally:
            await connection.execute(text("GRANT SELECT ON animus.log_state TO animus_service"))
    assert (failure.code, failure.reason) == ("INTERNAL", "INTERNAL")

    async def sound() -> bool:
        leader = server.running.log.leader
        return leader is not None and not leader.problem

    await until(sound, "a log that can be signed again")
    await until(healthy, "a server that says that it is well")
    stream = tail(grown, 1)
    await grown.grow()
    assert (await stream.next()).index == 1
    stream.cancel()


@asynccontextmanager
async def superuser(server: Server, postgres: EmbeddedPostgres) -> AsyncIterator[AsyncConnection]:
    """A superuser's connection to a server's database, in autocommit."""
    name = make_url(server.settings.database_url.get_secret_value()).database
    engine = create_async_engine(make_url(postgres.admin_url).set(database=name), isolation_level="AUTOCOMMIT")
    async with engine.connect() as connection:
        yield connection
    await engine.dispose()


async def test_streams_end_when_the_server_stops(
    postgres: EmbeddedPostgres, admin: AsyncEngine, template: str, tmp_path: Path
) -> None:
    """At once, with the reason that another server may be called; what was sent before is whole."""
    async with AsyncExitStack() as stack:
        async with served(postgres, admin, template, tmp_path) as stopping:
            channel = await stack.enter_async_context(open_channel(stopping.running.grpc))  # outlives the server
            grown = await Grown.new(stopping)
            streams = [tail(grown, 0, Caller(channel, stopping.admin.token)) for _ in range(5)]
            for stream in streams:
                await stream.take(1)
            failing = asyncio.gather(*(stream.failure() for stream in streams))
            assert not failing.done()
        assert {(each.code, each.reason) for each in await failing} == {("UNAVAILABLE", "DRAINING")}


async def test_a_stream_ends_with_its_token(server: Server, grown: Grown, monkeypatch: pytest.MonkeyPatch) -> None:
    """While nothing comes, at the next look; and before an entry that comes when it is time to look."""
    caller = await server.caller(grown.project_id, "auditor", days=1.9 / 86_400)
    waiting = server.running.log.growth._waiting

    async def one_waits() -> bool:
        return len(waiting) == 1

    monkeypatch.setattr(calls, "STREAM_IDENTITY_SECONDS", 3_600)
    busy = tail(grown, 2, caller)  # after the project and the account
    assert (await busy.next()).action == "token.create"
    await until(one_waits, "a tail that waits")
    monkeypatch.setattr(calls, "STREAM_IDENTITY_SECONDS", 0.1)
    failure = await asyncio.wait_for(tail(grown, 3, caller).failure(), 60)
    assert (failure.code, failure.reason) == ("UNAUTHENTICATED", "TOKEN_INVALID")
    assert not busy.call.done()
    await grown.grow()
    with pytest.raises(Failure) as found:
        await busy.next()
    assert found.value.reason == "TOKEN_INVALID"


async def test_a_tail_outlives_the_limit_of_a_call(
    postgres: EmbeddedPostgres, admin: AsyncEngine, template: str, tmp_path: Path
) -> None:
    """A call of a second is refused where half a second is allowed; a tail goes on."""
    async with served(postgres, admin, template, tmp_path, call_timeout_seconds="0.5") as limited:
        grown = await Grown.new(limited)
        stream = tail(grown)
        await stream.take(1)
        async with held(limited):
            await grown.grow()
            request = log_pb2.GetCheckpointRequest(project_id=grown.project_id, minimum_size=2)
            assert (await ask(limited.admin, "GetCheckpoint", request)).reason == "DEADLINE"
        assert (await stream.next()).index == 1
        stream.cancel()


@pytest.mark.parametrize("name", ["TailAuditEntries", "ExportAuditEntries"])
async def test_who_may_not_read_the_audit_log_gets_no_stream_of_it(name: str, server: Server, grown: Grown) -> None:
    """Roles without it are denied, with a receipt; another project and the instance's log are unknown."""
    request_class = GetMessageClass(METHODS[name].input_type)
    for role in ("operator", "runtime", "viewer"):
        stream = Stream(await server.caller(grown.project_id, role), name, request_class(project_id=grown.project_id))
        assert (await stream.failure()).reason == "ROLE_MISSING"
        assert RECEIPT in dict(await stream.call.trailing_metadata())
    for project_id in ("system", "instance", "nowhere"):
        caller = await server.caller(grown.project_id, "auditor")
        failure = await Stream(caller, name, request_class(project_id=project_id)).failure()
        assert (failure.code, failure.reason) == ("NOT_FOUND", "PROJECT_UNKNOWN")
    failure = await Stream(server.admin, name, request_class(project_id="instance")).failure()
    assert failure.reason == "PROJECT_UNKNOWN"
    stranger = Caller(server.channel, f"animus_{grown.project_id}_{'x' * 43}")
    assert (
        await Stream(stranger, name, request_class(project_id=grown.project_id)).failure()
    ).code == "UNAUTHENTICATED"


BAD: list[tuple[str, dict[str, Any], str]] = [
    *((name, {"first_index": bad}, "firstIndex") for name in ("Tail", "Export") for bad in (-1, 2**53)),
    *((name, {"project_id": "P"}, "projectId") for name in ("Tail", "Export")),
    *(("Export", {name: "x" * 1_001}, name) for name in ("principal", "action", "resource")),
    *(("Export", {name: "a\x00b"}, name) for name in ("principal", "action", "resource")),
    ("Export", {"start_time": Timestamp(nanos=1)}, "startTime"),
    ("Export", {"start_time": Timestamp(seconds=253_402_300_800)}, "startTime"),
    ("Export", {"end_time": Timestamp(nanos=1_500)}, "endTime"),
    ("Export", {"end_time": Timestamp(seconds=-62_135_596_801)}, "endTime"),
    ("Export", {"end_time": Timestamp(nanos=-1)}, "endTime"),
]


@pytest.mark.parametrize(("name", "fields", "field"), BAD, ids=[f"{each[0]} {each[2]}" for each in BAD])
async def test_bad_input_is_refused_by_its_field(
    name: str, fields: dict[str, Any], field: str, server: Server, grown: Grown
) -> None:
    """Before anything is sent."""
    name = f"{name}AuditEntries"
    request = GetMessageClass(METHODS[name].input_type)(**{"project_id": grown.project_id, **fields})
    failure = await Stream(server.admin, name, request).failure()
    assert (failure.code, list(failure.fields)) == ("INVALID_ARGUMENT", [field])


# Exports.


@pytest.fixture(scope="module")
async def mixed(server: Server) -> Grown:
    """A project whose log has entries of several principals, actions, resources and outcomes."""
    grown = await Grown.new(server)
    callers = [await server.caller(grown.project_id, role) for role in ("operator", "viewer", "admin")]
    for number, caller in itertools.product(range(3), callers):
        request = dataset(grown.project_id, f"d{number}")
        request.request_id = secrets.token_hex(8)
        await ask(caller, "CreateDataset", request)
        await grown.grow(caller=callers[0])
    await integrated(grown, 25)
    return grown


def line_of(entry: audit_pb2.AuditEntry) -> bytes:
    """What an export says of an entry."""
    return b'{"entry":' + entry.document + f',"index":{entry.index},"leafHash":"{entry.leaf_hash}"}}\n'.encode()


async def test_an_export_has_a_line_for_each_entry(mixed: Grown) -> None:
    """JSON without spaces and with sorted keys, in which the entry stands as it was hashed."""
    lines = await export(mixed)
    listed = await entries_of(mixed)
    assert lines == [line_of(entry) for entry in listed]
    assert len(lines) == 25
    for index, line in enumerate(lines):
        found = json.loads(line)
        assert json.dumps(found, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode() + b"\n" == line
        entry = line.removeprefix(b'{"entry":').rpartition(b',"index":')[0]
        assert sha256(b"\x00" + entry).hexdigest() == found["leafHash"]
        assert (found["index"], json.loads(entry)) == (index, found["entry"])


@pytest.mark.parametrize("batch", [1, 5, 24, 25, 500])
async def test_an_export_is_the_same_however_much_is_read_at_once(
    batch: int, mixed: Grown, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From each index, to beyond the end, where it is empty and has a type all the same."""
    lines = [line_of(entry) for entry in await entries_of(mixed)]
    monkeypatch.setattr(audit, "BATCH", batch)
    for first in (*range(26), 1_000, 2**53 - 1):
        assert await export(mixed, first_index=first) == lines[first:]


async def test_filters_choose_what_they_say_and_all_of_them_must(mixed: Grown) -> None:
    """Every combination of each condition, one that meets nothing among them, from two indexes."""
    listed = await entries_of(mixed)
    principals = ["", "admin", "viewer", "nobody"]
    actions = ["", "dataset.create", "environment_lock.register", "dataset"]
    assert {each.principal for each in listed} > set(principals[1:3])
    assert {each.action for each in listed} > set(actions[1:3])
    resource = f"projects/{mixed.project_id}/datasets/d1"
    resources = ["", resource, f"projects/{mixed.project_id}/datasets/d"]
    middle = listed[11].time
    times: list[dict[str, Timestamp]] = [
        {},
        {"start_time": middle},
        {"end_time": middle},
        {"start_time": listed[5].time, "end_time": listed[15].time},
        {"start_time": listed[15].time, "end_time": listed[5].time},
    ]
    chosen = set()
    for principal, action, name, when in itertools.product(principals, actions, resources, times):
        expected = [
            line_of(entry)
            for entry in listed
            if principal in ("", entry.principal)
            and action in ("", entry.action)
            and name in ("", entry.resource)
            and ("start_time" not in when or entry.time.ToNanoseconds() >= when["start_time"].ToNanoseconds())
            and ("end_time" not in when or entry.time.ToNanoseconds() < when["end_time"].ToNanoseconds())
        ]
        asked = {"principal": principal, "action": action, "resource": name, **when}
        assert await export(mixed, **asked) == expected, asked
        chosen.add(len(expected))
    assert {0, 1, 25} <= chosen
    of_resource = await export(mixed, resource=resource, first_index=10)
    assert of_resource == [line_of(entry) for entry in listed[10:] if entry.resource == resource]


async def test_what_means_something_to_a_database_means_nothing_in_a_filter(mixed: Grown) -> None:
    """Wildcards, quotes and NULL are letters."""
    for value in ("%", "_", "'", "admin' OR 'a' = 'a", "NULL", "\\", "ADMIN", " admin", "admin "):
        assert await export(mixed, principal=value) == []
        assert await export(mixed, action=value) == []
        assert await export(mixed, resource=value) == []


async def test_an_export_ends_at_the_size_that_the_log_had(server: Server, grown: Grown) -> None:
    """Entries that get their index while it is sent are left to the next one."""
    await grown.grow(4)
    await integrated(grown, 5)

    async def more() -> None:
        await grown.grow(3)
        await integrated(grown, 8)

    with after_first(server, ("SELECT coalesce(max(size)",), more):
        lines = await export(grown)
    assert lines == [line_of(entry) for entry in (await entries_of(grown))[:5]]
    assert await export(grown) == [line_of(entry) for entry in await entries_of(grown)]


async def test_an_entry_that_waits_for_its_index_is_not_exported(server: Server, grown: Grown) -> None:
    """It has none that a line could say."""
    await integrated(grown, 1)
    async with held(server):
        await grown.grow()
        assert len(await export(grown)) == 1
    await integrated(grown, 2)
    assert len(await export(grown)) == 2


EDIT = (
    "UPDATE animus.audit_entry SET document = convert_to(replace(convert_from(document, 'UTF8'),"
    ' \'"principal":"admin"\', \'"principal":"nobody"\'), \'UTF8\') WHERE entry_id = :entry'
)


async def test_an_entry_that_was_changed_is_not_hidden_by_a_filter(
    server: Server, grown: Grown, postgres: EmbeddedPostgres
) -> None:
    """Whether or not its new content meets the conditions, the export says that it is damaged, and where."""
    await grown.grow(5)
    await integrated(grown, 6)
    entry = (await entries_of(grown))[3]
    async with superuser(server, postgres) as connection:
        await connection.execute(text("ALTER TABLE animus.audit_entry DISABLE TRIGGER ALL"))
        assert (await connection.execute(text(EDIT), {"entry": entry.entry_id})).rowcount == 1
        await connection.execute(text("ALTER TABLE animus.audit_entry ENABLE TRIGGER ALL"))
    for where in ({}, {"principal": "admin"}, {"principal": "nobody"}, {"principal": "other"}, {"action": "other"}):
        with pytest.raises(Failure) as found:
            await export(grown, **where)
        assert (found.value.code, found.value.reason) == ("DATA_LOSS", "LOG_DAMAGED")
        assert (found.value.metadata["index"], found.value.metadata["entry"]) == ("3", entry.entry_id)
    assert len(await export(grown, first_index=4)) == 2
    stream = tail(grown)
    assert [each.index for each in await stream.take(3)] == [0, 1, 2]
    with pytest.raises(Failure) as found:
        await stream.next()
    assert found.value.reason == "LOG_DAMAGED"
