"""Receipts that clients keep: the file, and the channels that add to it."""

import asyncio
import os
import stat
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from service.conftest import Server
from service.requests import dataset
from service.shared import served
from sqlalchemy.ext.asyncio import AsyncEngine

from animus.domain.note import load_key
from animus.domain.receipt import Receipt
from animus.sdk.client import CallFailed, _credentials, connect, connect_blocking
from animus.sdk.files import Unreadable
from animus.sdk.receipts import Kept, ReceiptStore, Torn
from animus.signing import verify_receipt
from animus.store.embedded import EmbeddedPostgres
from animus.v1 import audit_pb2, audit_pb2_grpc, dataset_pb2_grpc, log_pb2, log_pb2_grpc

METHOD = "animus.v1.RunService/CreateRun"


@pytest.fixture
def store(tmp_path: Path) -> ReceiptStore:
    """A store whose file and folder are not there yet."""
    return ReceiptStore(tmp_path / "state" / "receipts")


def notes(store: ReceiptStore) -> list[bytes]:
    """The receipts of a store, none of whose lines is torn."""
    return [line.note for line in store.read() if isinstance(line, Kept)]


# The file.


def test_what_is_kept_is_read_back_in_its_order(store: ReceiptStore) -> None:
    """Bytes of any kind, the method and the request_id come back, each with the number of its line."""
    kept = [
        Kept(1, b"a note\n\n\xe2\x80\x94 key AAAA\n", METHOD, "r-1"),
        Kept(2, bytes(range(256)), "a/B", ""),
        Kept(3, b"", "", 'r\n\u00e4"\\'),
    ]
    for each in kept:
        store.keep(each.note, each.method, each.request_id)
    assert list(store.read()) == kept
    assert list(ReceiptStore(store.path).read()) == kept


def test_the_file_is_for_its_owner_only(store: ReceiptStore) -> None:
    """Whatever the umask: nobody else reads it, or enters a folder that was made for it."""
    before = os.umask(0)
    try:
        store.keep(b"note", METHOD, "r-1")
    finally:
        os.umask(before)
    assert stat.S_IMODE(store.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(store.path.parent.stat().st_mode) == 0o700


def test_no_file_is_said_to_be_missing(store: ReceiptStore) -> None:
    """It is no empty one; and a folder in its place is named too."""
    with pytest.raises(Unreadable) as caught:
        list(store.read())
    assert (caught.value.path, caught.value.missing) == (store.path, True)
    store.path.mkdir(parents=True)
    with pytest.raises(Unreadable, match=str(store.path)):
        list(store.read())


@settings(deadline=None, max_examples=50)
@example(cut=-1, note=b"")
@example(cut=1, note=b"")
@given(cut=st.integers(0, 10_000), note=st.binary(max_size=300))
def test_a_line_that_was_cut_short_is_told_and_harms_no_other(
    tmp_path_factory: pytest.TempPathFactory, cut: int, note: bytes
) -> None:
    """Cut after any byte but its last, the last line is torn; those before are whole, and the next one is too.

    A line that lacks only its end gets it by the next one.
    """
    store = ReceiptStore(tmp_path_factory.mktemp("torn") / "receipts")
    store.keep(b"first", METHOD, "r-1")
    whole = store.path.read_bytes()
    store.keep(note, METHOD, "r-2")
    second = store.path.read_bytes()[len(whole) :]
    left = second[: cut % len(second)]
    store.path.write_bytes(whole + left)
    first = Kept(1, b"first", METHOD, "r-1")
    torn: list[Kept | Torn] = [Torn(2)] if left else []
    assert list(store.read()) == [first, *torn]
    store.keep(note, METHOD, "r-3")
    if left == second[:-1]:
        torn = [Kept(2, note, METHOD, "r-2")]
    assert list(store.read()) == [first, *torn, Kept(2 + len(torn), note, METHOD, "r-3")]


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\x00" * 100,
        b"\xff",
        b"[]",
        b"{}",
        b'{"method":"a","receipt":"AA==","requestId":"b","more":1}',
        b'{"method":"a","receipt":"AA==","requestId":1}',
        b'{"method":"a","receipt":"A","requestId":"b"}',
        b'{"method":"a","receipt":"A A=","requestId":"b"}',
        b'{"method":"a","receipt":"\xc3\xa4","requestId":"b"}',
        b"[" * 100_000,
    ],
)
def test_a_line_that_something_else_wrote_is_told(store: ReceiptStore, line: bytes) -> None:
    """It is torn, by its number, and the lines around it are read."""
    store.keep(b"one", METHOD, "r-1")
    with store.path.open("ab") as file:
        file.write(line + b"\n")
    store.keep(b"two", METHOD, "r-2")
    assert list(store.read()) == [Kept(1, b"one", METHOD, "r-1"), Torn(2), Kept(3, b"two", METHOD, "r-2")]


def run(script: str, *arguments: object) -> "subprocess.Popen[str]":
    """A new interpreter that runs a script, once it is told to."""
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


KEEP = """
import sys
from pathlib import Path
from animus.sdk.receipts import ReceiptStore
store, name, count = ReceiptStore(Path(sys.argv[1])), sys.argv[2], int(sys.argv[3])
print("ready", flush=True)
sys.stdin.readline()
for number in range(count):
    store.keep(name.encode() * (1 + 4_000 * (number % 3)), name, str(number))
"""


def test_two_processes_write_at_once(store: ReceiptStore) -> None:
    """No line is lost, split or mixed with another, and those of one process are in its order."""
    count = 60
    processes = [run(KEEP, store.path, name, count) for name in "ab"]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        assert process.communicate(timeout=60)[1] == ""
    lines = [line for line in store.read() if isinstance(line, Kept)]
    assert Counter(line.method for line in lines) == {"a": count, "b": count}
    for name in "ab":
        assert [line.request_id for line in lines if line.method == name] == [str(number) for number in range(count)]
    assert all(set(line.note.decode()) == {line.method} for line in lines)


FULL = """
import resource, signal, sys
from pathlib import Path
from animus.sdk.receipts import ReceiptStore
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))
try:
    ReceiptStore(Path(sys.argv[1])).keep(b"x" * 300, "a/B", "r-2")
except OSError as error:
    print(error)
"""


def test_a_disk_that_is_full_is_told_to_whoever_keeps(store: ReceiptStore) -> None:
    """A receipt that could be written in part only raises; what is left of it is torn, and the next one is whole."""
    store.keep(b"one", METHOD, "r-1")
    out, err = run(FULL, store.path).communicate(timeout=60)
    assert err == ""
    assert "bytes of a receipt could be written" in out
    store.keep(b"three", METHOD, "r-3")
    assert list(store.read()) == [Kept(1, b"one", METHOD, "r-1"), Torn(2), Kept(3, b"three", METHOD, "r-3")]


# Channels.


@pytest.fixture(scope="module")
async def server(
    postgres: EmbeddedPostgres, admin: AsyncEngine, template: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Server]:
    """A server with a project `p`."""
    async with served(postgres, admin, template, tmp_path_factory.mktemp("data")) as found:
        await found.project("p")
        yield found


async def promises(server: Server, store: ReceiptStore) -> list[Receipt]:
    """What the receipts of a store say, each signed by the key of the log of `p`."""
    log = await server.admin("GetLog", log_pb2.GetLogRequest(project_id="p"))
    keys = [load_key(key.vkey) for key in log.keys]
    return [verify_receipt(note, keys) for note in notes(store)]


async def actions(server: Server, found: list[Receipt]) -> list[tuple[str, str]]:
    """The request and the outcome that the log has for each of these promises."""
    outcomes = []
    for receipt in found:
        wait = log_pb2.WaitForInclusionRequest(project_id="p", entry_id=receipt.entry_id)
        proof = await server.admin("WaitForInclusion", wait)
        assert proof.leaf_hash == receipt.leaf_hash.hex()
        get = audit_pb2.GetAuditEntryRequest(project_id="p", entry_id=receipt.entry_id)
        entry = await server.admin("GetAuditEntry", get)
        outcomes.append((entry.request_id, audit_pb2.AuditOutcome.Name(entry.outcome).removeprefix("AUDIT_OUTCOME_")))
    return outcomes


CREATE = "animus.v1.DatasetService/CreateDataset"


async def blocking(server: Server, token: str, store: ReceiptStore | None, *requests: Any) -> list[str]:
    """Calls CreateDataset by a blocking channel, and returns the status code of each call."""

    def work() -> list[str]:
        codes = []
        with connect_blocking(server.running.grpc, token, store) as channel:
            for request in requests:
                try:
                    dataset_pb2_grpc.DatasetServiceStub(channel).CreateDataset(request)
                    codes.append("OK")
                except grpc.RpcError as error:
                    codes.append(CallFailed(error).code.name)
        return codes

    return await asyncio.to_thread(work)


async def with_asyncio(server: Server, token: str, store: ReceiptStore | None, *requests: Any) -> list[str]:
    """The same by a channel for asyncio."""
    codes = []
    async with connect(server.running.grpc, token, store) as channel:
        for request in requests:
            try:
                await dataset_pb2_grpc.DatasetServiceStub(channel).CreateDataset(request)
                codes.append("OK")
            except grpc.aio.AioRpcError as error:
                codes.append(CallFailed(error).code.name)
    return codes


def name_of(calls: Any) -> str:
    """What the records of such calls are called."""
    return str(calls.__name__).replace("_", "-")


BOTH = pytest.mark.parametrize("calls", [blocking, with_asyncio])


@BOTH
async def test_answers_of_both_kinds_leave_a_receipt(server: Server, store: ReceiptStore, calls: Any) -> None:
    """A change, its repetition, a conflict and a denial: each true, with the method and the request_id of its call."""
    name = name_of(calls)
    first, other = dataset("p", f"d-{name}"), dataset("p", f"d-{name}")
    other.request_id = f"other-{name}"
    other.dataset.description = "another"
    assert await calls(server, server.admin.token, store, first, first, other) == ["OK", "OK", "ALREADY_EXISTS"]
    denied = dataset("p", f"denied-{name}")
    auditor = await server.caller("p", "auditor")
    assert await calls(server, auditor.token, store, denied) == ["PERMISSION_DENIED"]
    lines = list(store.read())
    requests = [first.request_id, first.request_id, other.request_id, denied.request_id]
    assert [(line.method, line.request_id) for line in lines if isinstance(line, Kept)] == [
        (CREATE, each) for each in requests
    ]
    found = await promises(server, store)
    assert found[0] == found[1]
    assert await actions(server, found) == [
        (first.request_id, "ACCEPTED"),
        (first.request_id, "ACCEPTED"),
        (other.request_id, "REFUSED"),
        ("", "DENIED"),  # a request that is denied is not read
    ]


@BOTH
async def test_what_leaves_no_entry_leaves_no_receipt(server: Server, store: ReceiptStore, calls: Any) -> None:
    """An unknown token and a request that is only validated write nothing; nor does a channel without a store."""
    only = dataset("p", "only")
    only.validate_only = True
    assert await calls(server, "animus_p_" + "x" * 43, store, only) == ["UNAUTHENTICATED"]
    assert await calls(server, server.admin.token, store, only) == ["OK"]
    assert await calls(server, server.admin.token, None, dataset("p", f"none-{name_of(calls)}")) == ["OK"]
    assert not store.path.exists()


@BOTH
async def test_a_receipt_that_cannot_be_kept_is_no_success(server: Server, tmp_path: Path, calls: Any) -> None:
    """The caller is told; the same request, once there is room, brings the same receipt."""
    (tmp_path / "state").write_text("a file where the folder should be")
    store = ReceiptStore(tmp_path / "state" / "receipts")
    request = dataset("p", f"lost-{name_of(calls)}")
    with pytest.raises(OSError, match="state"):
        await calls(server, server.admin.token, store, request)
    (tmp_path / "state").unlink()
    assert await calls(server, server.admin.token, store, request) == ["OK"]
    assert await actions(server, await promises(server, store)) == [(request.request_id, "ACCEPTED")]


async def test_calls_at_once_leave_every_receipt(server: Server, store: ReceiptStore) -> None:
    """Of calls on one channel and from many threads, none is lost."""
    requests = [dataset("p", f"many-{number}") for number in range(24)]
    async with connect(server.running.grpc, server.admin.token, store) as channel:
        stub: Any = dataset_pb2_grpc.DatasetServiceStub(channel)
        await asyncio.gather(*(stub.CreateDataset(request) for request in requests[:12]))
    await asyncio.gather(*(blocking(server, server.admin.token, store, request) for request in requests[12:]))
    assert {line.request_id for line in store.read() if isinstance(line, Kept)} == {
        request.request_id for request in requests
    }
    assert len({receipt.entry_id for receipt in await promises(server, store)}) == 24


async def test_a_stream_carries_the_token(server: Server) -> None:
    """Both channels send it with calls whose answer is a stream."""
    request = audit_pb2.ExportAuditEntriesRequest(project_id="p")

    def read() -> bytes:
        with connect_blocking(server.running.grpc, server.admin.token) as channel:
            return b"".join(part.data for part in audit_pb2_grpc.AuditServiceStub(channel).ExportAuditEntries(request))

    async with connect(server.running.grpc, server.admin.token) as channel:
        stub: Any = audit_pb2_grpc.AuditServiceStub(channel)
        parts = [part.data async for part in stub.ExportAuditEntries(request)]
    assert b"".join(parts)[:2] == (await asyncio.to_thread(read))[:2] == b'{"'


async def test_a_refusal_says_its_reason(server: Server) -> None:
    """The code, the reason of the contract and one line of text."""

    def ask() -> CallFailed:
        with connect_blocking(server.running.grpc, server.admin.token) as channel:
            try:
                log_pb2_grpc.LogServiceStub(channel).GetLog(log_pb2.GetLogRequest(project_id="nobody"))
            except grpc.RpcError as error:
                return CallFailed(error)
        raise AssertionError("it was answered")

    failed = await asyncio.to_thread(ask)
    assert (failed.code, failed.reason) == (grpc.StatusCode.NOT_FOUND, "PROJECT_UNKNOWN")
    assert len(str(failed).splitlines()) == 1


@pytest.mark.parametrize(
    ("address", "token", "insecure"),
    [
        ("127.0.0.1", "t", False),
        ("127.0.0.1:70000", "t", False),
        ("unix:socket", "t", True),
        ("dns:///127.0.0.1:1", "t", True),
        ("127.0.0.1:7443", "", False),
        ("127.0.0.1:7443", "a b", False),
        ("127.0.0.1:7443", "a\n", False),
        ("127.0.0.1:7443", "\u00e4", False),
    ],
)
async def test_no_channel_to_where_a_token_must_not_go(address: str, token: str, insecure: bool) -> None:
    """What is no address or no token is refused before anything is sent."""
    for make in (connect, connect_blocking):
        with pytest.raises(ValueError, match=r"address|token"):
            make(address, token, insecure=insecure)


@pytest.mark.parametrize(
    ("address", "insecure"),
    [("localhost:1", False), ("[::1]:1", False), ("127.9.9.9:1", False), ("10.0.0.1:1", True), ("10.0.0.1:1", False)],
)
async def test_a_channel_to_loopback_or_where_it_is_allowed(address: str, insecure: bool) -> None:
    """Nothing is sent before the first call. In plain text only to loopback, or where that was asked for."""
    plain = insecure or address != "10.0.0.1:1"
    connect_blocking(address, "t", insecure=insecure).close()
    await connect(address, "t", insecure=insecure).close()
    assert (_credentials(address, insecure, None, None, None) is None) is plain
