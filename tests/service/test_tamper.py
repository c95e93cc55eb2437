"""A superuser with the triggers off: what each thing that can be done to the log's tables is caught by.

Every case does one thing, in a database of its own, and names what must catch it. Whatever was done, nothing may be
signed that is no extension of what was signed before, or that holds a leaf which no server wrote.
"""

import asyncio
import base64
import hashlib
import shutil
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from conftest import Database, create_database
from contract import METHODS
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from animus.config import Settings
from animus.domain.log import LogKeyStatus
from animus.log_operations import end_key, forfeit, list_keys, open_epoch, rotate_key
from animus.server import Running, StartRefused, run_server
from animus.v1 import audit_pb2, log_pb2, project_pb2
from service.conftest import Failure, failure_of, open_channel, settings_for
from service.requests import dataset

TABLES = (
    "audit_entry",
    "audit_queue",
    "log_quarantine",
    "log_lead",
    "log_state",
    "log_leaf",
    "log_tile",
    "log_checkpoint",
)


def root_of(leaves: list[bytes]) -> bytes:
    """The root over leaf hashes, as RFC 6962 §2.1 defines it."""
    if len(leaves) <= 1:
        return leaves[0] if leaves else hashlib.sha256(b"").digest()
    middle = 1 << ((len(leaves) - 1).bit_length() - 1)
    return hashlib.sha256(b"\x01" + root_of(leaves[:middle]) + root_of(leaves[middle:])).digest()


@dataclass(slots=True)
class Attacked:
    """A log, and what is remembered of it outside the database."""

    database: Database
    settings: Settings
    admin: AsyncConnection
    running: Running | None = None
    channel: Any = None
    token: str = ""
    promised: dict[str, bytes] = field(default_factory=dict)  # entry id and leaf hash of each receipt, in their order
    honest: list[bytes] = field(default_factory=list)  # leaf hashes of the log before anything was done to it
    heads: dict[int, bytes] = field(default_factory=dict)  # every head of `p` that was signed: size and root
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def start(self, settings: Settings | None = None) -> None:
        """Starts a server on the database."""
        self.running = await self.stack.enter_async_context(run_server(settings or self.settings))
        self.channel = await self.stack.enter_async_context(open_channel(self.running.grpc))
        self.token = (self.settings.data_dir / "admin.token").read_text().strip()

    async def stop(self) -> None:
        """Stops the server."""
        await self.stack.aclose()
        self.stack = AsyncExitStack()
        self.running = None

    async def call(self, name: str, request: Message) -> Any:
        """The reply; a receipt that comes with it is remembered. Raises Failure."""
        method = METHODS[name]
        path = f"/{method.containing_service.full_name}/{name}"
        send = self.channel.unary_unary(
            path, type(request).SerializeToString, GetMessageClass(method.output_type).FromString
        )
        call = send(request, metadata=(("authorization", f"Bearer {self.token}"),))
        try:
            reply = await call
        except grpc.aio.AioRpcError as error:
            raise failure_of(error) from None
        for key, value in await call.trailing_metadata():
            if key == "animus-audit-receipt-bin":
                lines = value.split(b"\n")
                if b"/p/" in lines[1]:
                    self.promised[lines[3].decode()] = base64.b64decode(lines[2])
        return reply

    async def change(self, count: int = 1) -> None:
        """Makes changes in the project `p`."""
        for _ in range(count):
            await self.call("CreateDataset", dataset("p", f"d{len(self.promised)}"))

    async def publish(self) -> None:
        """Waits until the last change is in a published checkpoint."""
        request = log_pb2.WaitForInclusionRequest(project_id="p", entry_id=list(self.promised)[-1])
        await self.call("WaitForInclusion", request)

    async def sql(self, statement: str, **values: Any) -> Any:
        """Runs a statement as the superuser."""
        return await self.admin.execute(text(statement), values)

    async def one(self, statement: str, **values: Any) -> Any:
        """The one value of a query."""
        return (await self.sql(statement, **values)).scalar_one()

    async def tamper(self, *statements: str, **values: Any) -> None:
        """Runs statements with every trigger off, then puts the triggers back: no trace is left of how it was done."""
        for table in TABLES:
            await self.sql(f"ALTER TABLE animus.{table} DISABLE TRIGGER ALL")
        for statement in statements:
            found = await self.sql(statement, **{k: v for k, v in values.items() if f":{k}" in statement})
            assert found.rowcount, statement
        for table in TABLES:
            await self.sql(f"ALTER TABLE animus.{table} ENABLE TRIGGER ALL")
            names = await self.sql(
                "SELECT tgname FROM pg_trigger WHERE tgrelid = CAST(:t AS regclass) AND tgname LIKE 'immutable%'",
                t=f"animus.{table}",
            )
            for name in names.scalars().all():
                await self.sql(f"ALTER TABLE animus.{table} ENABLE ALWAYS TRIGGER {name}")

    async def until(self, condition: Callable[[], Awaitable[bool]], what: str) -> None:
        """Waits for a condition."""
        try:
            async with asyncio.timeout(20):
                while not await condition():
                    await asyncio.sleep(0.02)
        except TimeoutError:
            pytest.fail(f"not seen within 20 seconds: {what}")

    async def integrated(self) -> None:
        """Waits until the queue is empty."""

        async def empty() -> bool:
            return bool(await self.one("SELECT count(*) = 0 FROM animus.audit_queue"))

        await self.until(empty, "an empty queue")

    async def remember_honest(self) -> None:
        """Takes the log as it is now for what happened."""
        rows = await self.sql("SELECT leaf_hash FROM animus.log_leaf WHERE project_id = 'p' ORDER BY index")
        self.honest = list(rows.scalars())
        for size, root in await self._signed():
            assert root == root_of(self.honest[:size])
            self.heads[size] = root

    async def _signed(self) -> list[tuple[int, bytes]]:
        rows = await self.sql("SELECT note FROM animus.log_checkpoint WHERE project_id = 'p' ORDER BY epoch, size")
        lines = [bytes(note).split(b"\n") for note in rows.scalars()]
        return [(int(each[1]), base64.b64decode(each[2])) for each in lines]

    async def signer_heads(self) -> dict[str, int]:
        """Sizes of the heads that the signer remembers."""
        import sqlite3

        connection = sqlite3.connect(self.settings.data_dir / "log" / "signer.db")
        try:
            return dict(connection.execute("SELECT log, size FROM head").fetchall())
        finally:
            connection.close()

    async def nothing_false_is_signed(self, but: set[int]) -> None:
        """Every head of `p` beyond those known is that of the honest leaves, followed by promised ones only.

        `but` holds sizes of checkpoints that the case itself has put in the table, unsigned or signed by another key.
        """
        rows = await self.sql("SELECT leaf_hash FROM animus.log_leaf WHERE project_id = 'p' ORDER BY index")
        tail = list(rows.scalars())[len(self.honest) :]
        operators = await self.sql("SELECT leaf_hash FROM animus.audit_entry WHERE principal = 'operator'")
        real = {*self.promised.values(), *operators.scalars()}
        for size, root in await self._signed():
            if size in but or self.heads.get(size) == root:
                continue
            leaves = [*self.honest, *tail][:size]
            assert len(leaves) == size, f"a head of {size} was signed over {len(leaves)} leaves"
            assert root == root_of(leaves), f"the head of {size} is no extension of the honest log"
            assert set(tail[: max(0, size - len(self.honest))]) <= real, "a leaf was signed that no server wrote"


@pytest.fixture
async def log(database: Database, tmp_path: Path) -> AsyncIterator[Attacked]:
    """A running server with a project `p` whose log has six entries in two checkpoints."""
    engine: AsyncEngine = create_async_engine(database.admin_url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    async with engine.connect() as admin:
        found = Attacked(database, settings_for(database.service_url, tmp_path), admin)
        await found.start()
        create = project_pb2.Project(project_id="p", display_name="", description="")
        await found.call(
            "CreateProject", project_pb2.CreateProjectRequest(project_id="p", request_id="p", project=create)
        )
        await found.change(2)
        await found.publish()
        await found.change(3)
        await found.publish()
        await found.remember_honest()
        yield found
        await found.stop()
    await engine.dispose()


async def queue_only(log: Attacked, changes: int) -> None:
    """Makes changes through a server that has the key and no signer's state, so that they stay in the queue."""
    await log.stop()
    follower = log.settings.data_dir / "follower"
    (follower / "log").mkdir(parents=True)
    shutil.copy(log.settings.data_dir / "log" / "log.key", follower / "log" / "log.key")
    await log.start(log.settings.model_copy(update={"data_dir": follower}))
    await log.change(changes)
    await log.stop()


# What catches it. Each is shown where an operator or an auditor would see it.


async def caught_by_quarantine(log: Attacked, problem: str, entry: str) -> None:
    """The entry gets no index, the server's health turns red, and both name it."""
    assert log.running is not None

    async def red() -> bool:
        return any(entry in each and problem in each for each in log.running.log.problems)  # type: ignore[union-attr]

    await log.until(red, f"{entry}: {problem}")
    reply = await log.call("GetLog", log_pb2.GetLogRequest(project_id="p"))
    assert any(entry in each and problem in each for each in reply.problems)
    assert await log.one("SELECT count(*) FROM animus.log_leaf WHERE entry_id = :e", e=entry) == 0


async def caught_by_signer(log: Attacked, problem: str) -> None:
    """The signer refuses, says why, and no change is taken."""
    assert log.running is not None
    leader = log.running.log.leader
    assert leader is not None

    async def refused() -> bool:
        return bool(leader.problem) and problem in leader.problem

    await log.until(refused, f"the signer says {problem!r}")
    with pytest.raises(Failure) as found:
        await log.change()
    assert (found.value.code, found.value.reason) == ("UNAVAILABLE", "LOG_UNSOUND")
    assert "problem" not in found.value.metadata  # it may name another project


async def caught_by_reader(log: Attacked, problem: str, name: str, request: Message) -> None:
    """Who asks for it is told that it is damaged, and where."""
    with pytest.raises(Failure) as found:
        await log.call(name, request)
    assert (found.value.code, found.value.reason) == ("DATA_LOSS", "LOG_DAMAGED"), found.value
    assert problem in found.value.message, found.value.message


EDIT = (
    "UPDATE animus.audit_entry SET document = convert_to(replace(convert_from(document, 'UTF8'),"
    ' \'"principal":"admin"\', \'"principal":"nobody"\'), \'UTF8\') WHERE entry_id = :entry'
)
SWAP = (  # each under its own id with the other's content
    "UPDATE animus.audit_entry e SET document = convert_to(replace(convert_from(o.document, 'UTF8'), o.entry_id,"
    " e.entry_id), 'UTF8') FROM animus.audit_entry o"
    " WHERE (e.entry_id = :entry AND o.entry_id = :other) OR (e.entry_id = :other AND o.entry_id = :entry)"
)
COPY_ENTRY = (  # a made-up entry: the bytes of a real one under another id
    "INSERT INTO animus.audit_entry (project_id, document) SELECT project_id, convert_to(replace(convert_from(document,"
    " 'UTF8'), entry_id, repeat('f', 32)), 'UTF8') FROM animus.audit_entry WHERE entry_id = :entry"
)
FORGED = "f" * 32

# Before it has an index: (what is done, statements, the entry that is named, the problem)
QUEUED = [
    ("edit an audit entry", [EDIT], ":entry", "do not match the hash"),
    ("delete an audit entry", ["DELETE FROM animus.audit_entry WHERE entry_id = :entry"], ":entry", "are gone"),
    (
        "edit a queue row",
        ["UPDATE animus.audit_queue SET leaf_hash = sha256('x') WHERE entry_id = :entry"],
        ":entry",
        "not written by a server",
    ),
    (
        "edit an audit entry and its queue row",
        [EDIT, "UPDATE animus.audit_queue q SET leaf_hash = e.leaf_hash FROM animus.audit_entry e"
         " WHERE e.entry_id = :entry AND q.entry_id = :entry"],
        ":entry",
        "not written by a server",
    ),
    (
        "swap two queue rows",
        ["UPDATE animus.audit_queue q SET leaf_hash = o.leaf_hash, seal = o.seal FROM animus.audit_queue o"
         " WHERE (q.entry_id = :entry AND o.entry_id = :other) OR (q.entry_id = :other AND o.entry_id = :entry)"],
        ":entry",
        "not written by a server",
    ),
    (
        "swap two audit entries",
        [SWAP],
        ":entry",
        "do not match the hash",
    ),
    (
        "swap two audit entries and their queue rows",
        [SWAP, "UPDATE animus.audit_queue q SET leaf_hash = e.leaf_hash FROM animus.audit_entry e"
         " WHERE q.entry_id IN (:entry, :other) AND e.entry_id = q.entry_id"],
        ":entry",
        "not written by a server",
    ),
    (
        "insert an audit entry and a queue row",
        [COPY_ENTRY,
         "INSERT INTO animus.audit_queue (project_id, entry_id, leaf_hash, seal, written_in)"
         " SELECT project_id, entry_id, leaf_hash, sha256('x'), written_in FROM animus.audit_entry"
         " WHERE entry_id = repeat('f', 32)"],
        FORGED,
        "not written by a server",
    ),
    (
        "insert an audit entry and a copy of another's queue row",
        [COPY_ENTRY,
         "INSERT INTO animus.audit_queue (project_id, entry_id, leaf_hash, seal, written_in)"
         " SELECT e.project_id, e.entry_id, e.leaf_hash, q.seal, e.written_in FROM animus.audit_entry e,"
         " animus.audit_queue q WHERE e.entry_id = repeat('f', 32) AND q.entry_id = :entry"],
        FORGED,
        "not written by a server",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("done", "statements", "named", "problem"), QUEUED, ids=[case[0] for case in QUEUED])
async def test_what_waits_for_its_index_is_quarantined(
    done: str, statements: list[str], named: str, problem: str, log: Attacked
) -> None:
    """Each is put aside before it has an index, named, and the rest of the queue gets in."""
    await queue_only(log, 3)
    other, entry, last = list(log.promised)[-3:]
    await log.tamper(*statements, entry=entry, other=other)
    await log.start()
    await caught_by_quarantine(log, problem, entry if named == ":entry" else named)
    await log.integrated()
    assert await log.one("SELECT count(*) FROM animus.log_leaf WHERE entry_id = :e", e=last) == 1
    await log.publish()
    await log.nothing_false_is_signed(set())


async def test_a_queue_row_that_is_gone_leaves_an_entry_outside_the_log(log: Attacked) -> None:
    """Deleting the queue row: `animus audit verify` names the entry that stands outside the log."""
    await queue_only(log, 2)
    entry = list(log.promised)[-2]
    await log.tamper("DELETE FROM animus.audit_queue WHERE entry_id = :entry", entry=entry)
    await log.start()
    await log.publish()
    await caught_by_verification(log, entry)
    await log.nothing_false_is_signed(set())


async def test_an_entry_that_is_gone_without_a_trace_is_missed_by_its_receipt(log: Attacked) -> None:
    """Deleting entry and queue row before it has an index: only the receipt knows, and it says so."""
    await queue_only(log, 2)
    entry = list(log.promised)[-2]
    await log.tamper(
        "DELETE FROM animus.audit_queue WHERE entry_id = :entry",
        "DELETE FROM animus.audit_entry WHERE entry_id = :entry",
        entry=entry,
    )
    await log.start()
    await log.publish()
    with pytest.raises(Failure) as found:
        await log.call("GetInclusionProof", log_pb2.GetInclusionProofRequest(project_id="p", entry_id=entry))
    assert found.value.reason == "AUDIT_ENTRY_UNKNOWN"
    await log.nothing_false_is_signed(set())


async def caught_by_verification(log: Attacked, named: str) -> None:
    """`animus audit verify` fails with 7 and names the place."""
    assert log.running is not None
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "animus.cli", "audit", "verify", "--address", log.running.grpc, "--project", "p"),
        *("--token-file", str(log.settings.data_dir / "admin.token"), "--trust-server-key", "--json"),
        *("--known-heads", str(log.settings.data_dir / "heads.json"), "--wait", "3"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode == 7, (out, err)
    assert named in out.decode() + err.decode()


BUNDLE = log_pb2.GetEntryBundleRequest(project_id="p", index=0, width=6)

# After it is published: (what is done, statements, problem, method, request)
LOGGED = [
    ("swap two audit entries", [SWAP], "are not those that were logged", "GetEntryBundle", BUNDLE),
    ("edit an audit entry", [EDIT], "are not those that were logged", "GetEntryBundle", BUNDLE),
    (
        "delete an audit entry",
        ["DELETE FROM animus.audit_entry WHERE entry_id = :entry"],
        "are gone",
        "GetEntryBundle",
        BUNDLE,
    ),
    (
        "edit a leaf",
        ["UPDATE animus.log_leaf SET leaf_hash = sha256('x') WHERE entry_id = :entry"],
        "are not those that were logged",
        "GetEntryBundle",
        BUNDLE,
    ),
    (
        "edit an audit entry and its leaf",
        [EDIT, "UPDATE animus.log_leaf l SET leaf_hash = e.leaf_hash FROM animus.audit_entry e"
         " WHERE e.entry_id = :entry AND l.entry_id = :entry"],
        "do not lead to the signed root",
        "GetInclusionProof",
        log_pb2.GetInclusionProofRequest(project_id="p", index=1),
    ),
    (
        "delete a leaf",
        ["DELETE FROM animus.log_leaf WHERE entry_id = :entry"],
        "is missing",
        "GetEntryBundle",
        BUNDLE,
    ),
    (
        "swap two leaves",
        ["DELETE FROM animus.log_leaf WHERE entry_id IN (:entry, :other)",
         "INSERT INTO animus.log_leaf SELECT 'p', CASE WHEN entry_id = :entry THEN 2 ELSE 3 END, entry_id, leaf_hash"
         " FROM animus.audit_entry WHERE entry_id IN (:entry, :other)"],
        "do not lead to the signed root",
        "GetInclusionProof",
        log_pb2.GetInclusionProofRequest(project_id="p", index=3),
    ),
    (
        "edit a checkpoint",
        ["UPDATE animus.log_checkpoint"
            " SET note = convert_to(replace(convert_from(note, 'UTF8'), E'\\n6\\n', E'\\n7\\n'),"
         " 'UTF8') WHERE project_id = 'p' AND size = 6"],
        "the checkpoint of size 6",
        "GetCheckpoint",
        log_pb2.GetCheckpointRequest(project_id="p"),
    ),
    (
        "swap two checkpoints",
        ["UPDATE animus.log_checkpoint c SET note = o.note FROM animus.log_checkpoint o WHERE c.project_id = 'p'"
         " AND o.project_id = 'p' AND c.size <> o.size AND c.size IN (3, 6) AND o.size IN (3, 6)"],
        "is one of size 3",
        "GetCheckpoint",
        log_pb2.GetCheckpointRequest(project_id="p"),
    ),
    (
        "delete a checkpoint",
        ["DELETE FROM animus.log_checkpoint WHERE project_id = 'p' AND size = 6"],
        "are gone",
        "GetEntryBundle",
        log_pb2.GetEntryBundleRequest(project_id="instance", width=2),  # of whose log it is a leaf
    ),
    (
        "insert a checkpoint",
        ["INSERT INTO animus.log_checkpoint"
            " SELECT project_id, epoch, 99, convert_to(replace(convert_from(note, 'UTF8'),"
         " E'\\n6\\n', E'\\n99\\n'), 'UTF8') FROM animus.log_checkpoint WHERE project_id = 'p' AND size = 6"],
        "the checkpoint of size 99",
        "GetCheckpoint",
        log_pb2.GetCheckpointRequest(project_id="p"),
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("done", "statements", "problem", "method", "request_"), LOGGED, ids=[case[0] for case in LOGGED]
)
async def test_what_was_logged_answers_as_damaged(
    done: str, statements: list[str], problem: str, method: str, request_: Message, log: Attacked
) -> None:
    """No false proof, entry or checkpoint is answered: the reader is told what is damaged; the log goes on truly."""
    by_index = list(log.promised)
    await log.tamper(*statements, entry=by_index[3], other=by_index[2])
    if method == "GetInclusionProof" and "edit" in done:
        request_ = log_pb2.GetInclusionProofRequest(project_id="p", entry_id=by_index[3])
    if 'project_id: "instance"' in str(request_):
        size = await log.one("SELECT size FROM animus.log_state WHERE project_id = 'instance'")
        request_ = log_pb2.GetEntryBundleRequest(project_id="instance", width=size)
    await caught_by_reader(log, problem, method, request_)
    await log.nothing_false_is_signed({3, 6, 7, 99} if "checkpoint" in done else set())


async def test_an_entry_beside_the_log_is_found(log: Attacked) -> None:
    """Inserting an audit entry alone: `animus audit verify` names the entry that stands outside the log."""
    await log.tamper(COPY_ENTRY, entry=list(log.promised)[3])
    await caught_by_verification(log, FORGED)
    await log.change()
    await log.publish()
    await log.nothing_false_is_signed(set())


# Found when the log next grows, or the server next starts: (what is done, statements, what the signer says)
STATE = [
    (
        "edit the hashes of a state",
        ["UPDATE animus.log_state SET hashes = sha256('x') || sha256('y') WHERE project_id = 'p'"],
        "no extension of what was signed",
    ),
    ("edit the size of a state", ["UPDATE animus.log_state SET size = 5 WHERE project_id = 'p'"], "23505"),
    ("delete a state", ["DELETE FROM animus.log_state WHERE project_id = 'p'"], "23505"),
    (
        "insert a state",
        ["INSERT INTO animus.log_state (project_id, size, hashes, fence) VALUES ('q', 2, sha256('x'), 1)"],
        "of q is no extension",
    ),
    (
        "swap two states",
        ["UPDATE animus.log_state s SET size = o.size, hashes = o.hashes, published_size = 0 FROM animus.log_state o"
         " WHERE s.project_id IN ('p', 'system') AND o.project_id IN ('p', 'system') AND o.project_id <> s.project_id"],
        "of p has 1 leaves and 6 were signed",
    ),
    (
        "insert a leaf",
        ["INSERT INTO animus.log_leaf VALUES ('p', 6, repeat('f', 32), sha256('x'))"],
        "23505",
    ),
    (
        "truncate the tail",
        ["DELETE FROM animus.log_leaf WHERE project_id = 'p' AND index >= 4",
         "DELETE FROM animus.log_checkpoint WHERE project_id = 'p' AND size > 4",
         "UPDATE animus.log_state SET size = 4, published_size = 3, hashes = :four WHERE project_id = 'p'",
         "DELETE FROM animus.audit_entry e WHERE project_id = 'p'"
         " AND NOT EXISTS (SELECT FROM animus.log_leaf l WHERE l.entry_id = e.entry_id)"],
        "has 4 leaves and 6 were signed",
    ),
    (
        "rewrite the log from a leaf on",
        ["UPDATE animus.log_leaf SET leaf_hash = sha256('x') WHERE project_id = 'p' AND index = 3",
         "UPDATE animus.log_state SET hashes = :rewritten, published_size = 0 WHERE project_id = 'p'"],
        "no extension of what was signed",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("done", "statements", "problem"), STATE, ids=[case[0] for case in STATE])
@pytest.mark.parametrize("restarted", [False, True], ids=["running", "restarted"])
async def test_what_would_be_signed_next_is_refused(
    done: str, statements: list[str], problem: str, restarted: bool, log: Attacked
) -> None:
    """The signer finds it before it signs: at the next growth of the log, or at the start of a server."""
    grows = problem == "23505" or not restarted
    either = ("edit the size of a state", "delete a state") if restarted else ("truncate the tail", "swap two states")
    if done in either:
        problem = ""  # whichever of two ways of refusing comes first
    if restarted:
        await log.stop()
    leaves = [*log.honest[:3], hashlib.sha256(b"x").digest(), *log.honest[4:]]
    await log.tamper(
        *statements,
        four=root_of(log.honest[:4]),
        rewritten=root_of(leaves[:4]) + root_of(leaves[4:]),
    )
    if restarted:
        await log.start()
    if grows:
        try:
            await log.call("CreateDataset", dataset("p", "growth"))
        except Failure as failure:
            assert failure.reason == "LOG_UNSOUND"  # it was faster
    await caught_by_signer(log, problem)
    await log.nothing_false_is_signed(set())


async def test_what_changes_between_index_and_signature_is_refused(log: Attacked) -> None:
    """A leaf that was edited after it had its index and before it was signed is not signed."""
    assert log.running is not None
    leader = log.running.log.leader
    assert leader is not None
    leader._next_publish = float("inf")  # holds the publisher
    await log.change()
    await log.integrated()
    await log.tamper("UPDATE animus.log_leaf SET leaf_hash = sha256('x') WHERE project_id = 'p' AND index = 6")
    leader.publish_soon()
    await caught_by_signer(log, "no extension of what was signed")
    await log.nothing_false_is_signed(set())


TILES = [
    ("edit", ["UPDATE animus.log_tile SET hashes = sha256('x') || substr(hashes, 33) WHERE project_id = 'p'"]),
    ("delete", ["DELETE FROM animus.log_tile WHERE project_id = 'p'"]),
    (
        "swap",
        ["UPDATE animus.log_tile t SET hashes = o.hashes, root = o.root FROM animus.log_tile o WHERE t.project_id = 'p'"
         " AND o.project_id = 'p' AND t.index <> o.index"],
    ),
]  # fmt: skip


async def grow_to(log: Attacked, size: int) -> None:
    """Makes changes, many at once, until so many have been promised in all."""
    while len(log.promised) < size:
        start = len(log.promised)
        names = [f"t{start + offset}" for offset in range(min(50, size - start))]
        await asyncio.gather(*(log.call("CreateDataset", dataset("p", name)) for name in names))
    await log.call("GetCheckpoint", log_pb2.GetCheckpointRequest(project_id="p", minimum_size=size))


@pytest.mark.parametrize(("done", "statements"), TILES, ids=[case[0] for case in TILES])
async def test_a_tile_that_was_tampered_with_makes_no_false_proof(
    done: str, statements: list[str], log: Attacked
) -> None:
    """Proofs through it are refused as damaged, and the log goes on truly: nobody signs from tiles."""
    await grow_to(log, 515)
    assert await log.one("SELECT count(*) FROM animus.log_tile WHERE project_id = 'p'") == 2
    await log.remember_honest()
    proof = log_pb2.GetInclusionProofRequest(project_id="p", index=1)
    await log.call("GetInclusionProof", proof)
    await log.tamper(*statements)
    await caught_by_reader(log, "", "GetInclusionProof", proof)
    await log.change()
    await log.call("GetCheckpoint", log_pb2.GetCheckpointRequest(project_id="p", minimum_size=len(log.honest) + 1))
    await log.nothing_false_is_signed(set())


async def test_a_tile_before_its_time_stops_the_log_when_it_gets_there(log: Attacked) -> None:
    """A tile put in ahead of the log is no part of it; where the log's own belongs, it is found."""
    await log.tamper(
        "INSERT INTO animus.log_tile SELECT 'p', 0, 0, sha256('x'), string_agg(sha256('x'), '')"
        " FROM generate_series(1, 256)"
    )
    with pytest.raises(Failure) as found:
        await log.call("GetTile", log_pb2.GetTileRequest(project_id="p", level=0, index=0))
    assert found.value.reason == "TILE_UNKNOWN"
    await grow_to(log, 250)
    await log.remember_honest()
    await asyncio.gather(
        *(log.call("CreateDataset", dataset("p", f"last{i}")) for i in range(10)), return_exceptions=True
    )
    await caught_by_signer(log, "23505")
    await log.nothing_false_is_signed(set())


async def test_a_checkpoint_that_no_signer_remembers_is_refused_at_the_start(log: Attacked) -> None:
    """More in the database than the signer's state knows of: another signer was at work, or somebody made it up."""
    await log.stop()
    await log.tamper(
        "INSERT INTO animus.log_checkpoint SELECT project_id, epoch, 99, note FROM animus.log_checkpoint"
        " WHERE project_id = 'p' AND size = 6"
    )
    await log.start()
    await caught_by_signer(log, "a checkpoint of size 99")


async def test_a_repaired_entry_gets_its_index_and_a_lost_one_is_given_up_on_the_record(log: Attacked) -> None:
    """Putting the bytes back ends the quarantine; `animus log forfeit` ends it where that is not possible."""
    await queue_only(log, 2)
    repaired, lost = list(log.promised)[-2:]
    before = await log.one("SELECT document FROM animus.audit_entry WHERE entry_id = :e", e=repaired)
    await log.tamper(EDIT, entry=repaired)
    await log.tamper(EDIT, entry=lost)
    await log.start()
    await caught_by_quarantine(log, "do not match", repaired)
    await caught_by_quarantine(log, "do not match", lost)
    await log.tamper(
        "UPDATE animus.audit_entry SET document = :before WHERE entry_id = :entry", before=before, entry=repaired
    )

    async def in_log() -> bool:
        return bool(await log.one("SELECT count(*) FROM animus.log_leaf WHERE entry_id = :e", e=repaired))

    await log.until(in_log, "the repaired entry in the log")
    await log.stop()
    await forfeit(log.settings, "p", lost, "the disk lost it")
    await log.start()

    async def green() -> bool:
        assert log.running is not None
        return not log.running.log.problems and not await log.one("SELECT count(*) FROM animus.log_quarantine")

    await log.until(green, "no problem left")
    entries = await log.call("ListAuditEntries", audit_pb2.ListAuditEntriesRequest(project_id="p"))
    assert entries.audit_entries[-1].action == "log.forfeit"
    await log.nothing_false_is_signed(set())


@pytest.fixture
async def backup(log: Attacked, admin: AsyncEngine) -> str:
    """A backup of the database as it is now, as `CREATE DATABASE … TEMPLATE` makes one."""
    await log.stop()
    name = make_url(log.database.service_url).database
    old = f"{name}_backup"
    await log.admin.close()
    await create_database(admin, old, str(name))
    return old


async def test_a_restored_backup_is_refused_until_a_new_epoch_is_opened(
    log: Attacked, backup: str, admin: AsyncEngine
) -> None:
    """The signer remembers what the database forgot; a new epoch says on the record what was lost, and goes on."""
    await log.start()
    await log.change(4)
    await log.publish()
    await log.stop()
    lost = list(log.promised)[-1]
    url = make_url(log.database.service_url).set(database=backup).render_as_string(hide_password=False)
    restored = settings_for(url, log.settings.data_dir)
    owner = make_url(log.database.admin_url).set(database=backup).render_as_string(hide_password=False)
    engine = create_async_engine(owner, isolation_level="AUTOCOMMIT")
    async with engine.connect() as connection:
        log.admin = connection
        log.settings = restored
        await log.start()
        with pytest.raises(Failure) as found:  # the first call already
            await log.change()
        assert found.value.reason == "LOG_UNSOUND"
        await caught_by_signer(log, "restored from an older state")
        assert (await log.call("GetProject", project_pb2.GetProjectRequest(project_id="p"))).project_id == "p"
        await log.stop()

        assert await open_epoch(restored, "restored the backup of noon", new_key=False) == 2
        await log.start()
        await log.change()
        await log.publish()
        reply = await log.call("GetLog", log_pb2.GetLogRequest(project_id="p"))
        assert (reply.epoch, reply.origin.rpartition("/")[2], list(reply.problems)) == (2, "2", [])
        (epoch,) = reply.epochs
        assert (epoch.size, epoch.signed_size, epoch.reason) == (6, 10, "restored the backup of noon")
        assert bytes.fromhex(epoch.root_hash) == root_of(log.honest)
        checkpoint = await log.call("GetCheckpoint", log_pb2.GetCheckpointRequest(project_id="p"))
        assert checkpoint.origin.endswith("/p/2")
        with pytest.raises(Failure) as found:
            await log.call("GetInclusionProof", log_pb2.GetInclusionProofRequest(project_id="p", entry_id=lost))
        assert found.value.reason == "AUDIT_ENTRY_UNKNOWN"
        await log.nothing_false_is_signed(set())
        await log.stop()
    await engine.dispose()
    async with admin.connect() as connection:
        await connection.execute(text(f"DROP DATABASE {backup} WITH (FORCE)"))


async def test_keys_overlap_and_end_on_the_record(log: Attacked) -> None:
    """A new key signs beside the old one, which then retires; the last key cannot end; without one nothing starts."""
    await log.stop()
    ((first, _),) = await list_keys(log.settings)
    second = await rotate_key(log.settings)
    await log.start()
    await log.change()
    await log.publish()
    checkpoint = await log.call("GetCheckpoint", log_pb2.GetCheckpointRequest(project_id="p"))
    assert checkpoint.note.count("— ".encode()) == 2
    await log.stop()
    await end_key(log.settings, first.key.value.public_key, LogKeyStatus.RETIRED, "a year old")
    await log.start()
    await log.change()
    await log.publish()
    reply = await log.call("GetLog", log_pb2.GetLogRequest(project_id="p"))
    assert [key.status for key in reply.keys] == [log_pb2.LOG_KEY_STATUS_RETIRED, log_pb2.LOG_KEY_STATUS_ACTIVE]
    listed = await log.call("ListCheckpoints", log_pb2.ListCheckpointsRequest(project_id="p"))
    assert [each.note.count("— ".encode()) for each in listed.checkpoints][-2:] == [2, 1]
    await log.stop()
    with pytest.raises(Exception, match="the only key"):
        await end_key(log.settings, second, LogKeyStatus.REVOKED, "stolen")
    assert [bool(facts.ends) for facts, _ in await list_keys(log.settings)] == [True, False]
    log_key = log.settings.data_dir / "log" / "log.key"
    log_key.unlink()
    with pytest.raises(StartRefused, match=r"log\.key is missing"):
        await log.start()
