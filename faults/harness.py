"""A PostgreSQL, servers that share it, clients that retry until they know, and a check of the whole afterwards.

The check shares nothing with the product: it has its own RFC 6962 hashing and its own reader of signed notes.
"""

import asyncio
import base64
import hashlib
import json
import os
import random
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import grpc
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from animus.store.embedded import EmbeddedPostgres
from animus.store.migrate import migrate
from animus.v1 import dataset_pb2, dataset_pb2_grpc, log_pb2, log_pb2_grpc, project_pb2, project_pb2_grpc

PROJECT = "p"
RECEIPT = "animus-audit-receipt-bin"
CALL_SECONDS = 5.0
TRIES = 400
START_SECONDS = 60.0
DEFINITE = {"ALREADY_EXISTS", "INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "PERMISSION_DENIED"}


class Violation(Exception):
    """A promise that was not kept."""


@dataclass(slots=True)
class Done:
    """A change that was acknowledged."""

    request_id: str
    writer: int
    entry_id: str
    leaf_hash: bytes
    began: float
    ended: float
    unknown: int  # tries whose outcome was not known


@dataclass(slots=True)
class Replica:
    """A server process."""

    folder: Path
    environment: dict[str, str]
    process: asyncio.subprocess.Process | None = None
    address: str = ""

    async def start(self) -> None:
        """Starts it, and waits until it says where it is."""
        state = self.folder / "server.json"
        state.unlink(missing_ok=True)
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            if self.process is None or self.process.returncode is not None:
                with (self.folder / "server.log").open("ab") as out:
                    self.process = await asyncio.create_subprocess_exec(
                        *(sys.executable, "-m", "animus.cli", "serve"), env=self.environment, stdout=out, stderr=out
                    )
            if state.exists():
                self.address = json.loads(state.read_text())["grpc"]
                return
            await asyncio.sleep(0.02)  # a start that meets a dead PostgreSQL ends, and is tried again
        raise Violation(f"a server does not start within {START_SECONDS} s: see {self.folder}/server.log")

    async def kill(self) -> None:
        """Ends it as a crash would."""
        assert self.process is not None
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()

    async def stop(self) -> None:
        """Ends it as an operator would."""
        assert self.process is not None
        if self.process.returncode is None:
            self.process.terminate()
        await asyncio.wait_for(self.process.wait(), 30)


@dataclass(slots=True)
class Stack:
    """A database, and servers that share it and the log's folder."""

    folder: Path
    postgres: EmbeddedPostgres
    replicas: list[Replica]
    token: str
    done: list[Done] = field(default_factory=list)
    heads: dict[tuple[int, bytes], int] = field(default_factory=dict)  # every head that a client has seen

    def channel(self, replica: Replica) -> grpc.aio.Channel:
        """A new channel."""
        return grpc.aio.insecure_channel(replica.address)

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The administrator's token."""
        return (("authorization", f"Bearer {self.token}"),)

    async def change(self, writer: int, dice: random.Random) -> Done:
        """Creates a dataset, and repeats the call with the same request_id on any server until the outcome is known."""
        name = f"w{writer}-{secrets.token_hex(8)}"
        request = dataset_pb2.CreateDatasetRequest(
            project_id=PROJECT,
            request_id=name,
            dataset=dataset_pb2.Dataset(dataset_id=name, description=""),
        )
        began = time.monotonic()
        for unknown in range(TRIES):
            replica = dice.choice(self.replicas)
            try:
                async with self.channel(replica) as channel:
                    call = dataset_pb2_grpc.DatasetServiceStub(channel).CreateDataset(
                        request, metadata=self.metadata, timeout=CALL_SECONDS
                    )
                    await call
                    trailing: dict[str, Any] = {str(key): value for key, value in await call.trailing_metadata()}
            except grpc.aio.AioRpcError as error:
                if error.code().name in DEFINITE:
                    raise Violation(f"{name}: {error.code().name} {error.details()}") from None
                await asyncio.sleep(dice.uniform(0.01, 0.1))
                continue
            lines = trailing[RECEIPT].split(b"\n")
            done = Done(name, writer, lines[3].decode(), base64.b64decode(lines[2]), began, time.monotonic(), unknown)
            self.done.append(done)
            return done
        raise Violation(f"{name}: no definite outcome after {TRIES} tries")

    async def watch(self, dice: random.Random) -> None:
        """Keeps every head that any server shows, until it is cancelled."""
        while True:
            try:
                async with self.channel(dice.choice(self.replicas)) as channel:
                    head = await log_pb2_grpc.LogServiceStub(channel).GetCheckpoint(
                        log_pb2.GetCheckpointRequest(project_id=PROJECT), metadata=self.metadata, timeout=CALL_SECONDS
                    )
                self.heads[head.size, bytes.fromhex(head.root_hash)] = 1
            except grpc.aio.AioRpcError:
                pass  # a server that is down shows nothing
            await asyncio.sleep(0.1)

    async def published(self, entry_id: str, replica: Replica | None = None) -> None:
        """Waits until an entry is in a published checkpoint."""
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            try:
                async with self.channel(replica or self.replicas[0]) as channel:
                    await log_pb2_grpc.LogServiceStub(channel).WaitForInclusion(
                        log_pb2.WaitForInclusionRequest(project_id=PROJECT, entry_id=entry_id),
                        metadata=self.metadata,
                        timeout=CALL_SECONDS,
                    )
                return
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.05)
        raise Violation(f"the entry {entry_id} is in no checkpoint after {START_SECONDS} s")

    async def sql(self, statement: str, *values: Any) -> list[Any]:
        """Rows, as the superuser."""
        url = self.postgres.admin_url.replace("+asyncpg", "")
        connection = await asyncpg.connect(url)
        try:
            return list(await connection.fetch(statement, *values))
        finally:
            await connection.close()


@asynccontextmanager
async def stack(replicas: int) -> AsyncIterator[Stack]:
    """A stack with a project. Its folder is kept where what is inside fails, and removed otherwise."""
    folder = Path(tempfile.mkdtemp(prefix="animus-faults-"))
    os.chmod(folder, 0o711)  # noqa: PTH101, S103 (PostgreSQL runs as another account when we are root)
    postgres = EmbeddedPostgres.start(folder / "postgres")
    found = Stack(folder, postgres, [], "")
    try:
        await migrate(postgres.owner_url)
        for number in range(replicas):
            own = folder / f"server{number}"
            own.mkdir()
            environment = {name: value for name, value in os.environ.items() if not name.startswith("ANIMUS_")}
            environment |= {
                "ANIMUS_DATA_DIR": str(own),
                "ANIMUS_LOG_DIR": str(folder / "log"),
                "ANIMUS_DATABASE_URL": postgres.service_url,
                "ANIMUS_GRPC_PORT": "0",
                "ANIMUS_GATEWAY": "false",
                "ANIMUS_METRICS_PORT": "0",
                "ANIMUS_LOG_LEVEL": "warning",
            }
            found.replicas.append(Replica(own, environment))
            await found.replicas[-1].start()
        found.token = (folder / "server0" / "admin.token").read_text().strip()
        async with found.channel(found.replicas[0]) as channel:
            await project_pb2_grpc.ProjectServiceStub(channel).CreateProject(
                project_pb2.CreateProjectRequest(
                    project_id=PROJECT,
                    request_id="p",
                    project=project_pb2.Project(project_id=PROJECT, display_name="", description=""),
                ),
                metadata=found.metadata,
            )
        yield found
    except BaseException:
        print(f"kept: {folder}", file=sys.stderr)
        raise
    else:
        await _end(found)
        shutil.rmtree(folder)
    finally:
        await _end(found)


async def _end(found: Stack) -> None:
    for replica in found.replicas:
        if replica.process is not None:
            await replica.stop()
    found.postgres.stop()


def node(left: bytes, right: bytes) -> bytes:
    """An inner hash (RFC 6962 §2.1)."""
    return hashlib.sha256(b"\x01" + left + right).digest()


class Roots:
    """The roots of a growing tree."""

    def __init__(self) -> None:
        self._peaks: list[tuple[int, bytes]] = []  # (height, hash), the highest first

    def add(self, leaf_hash: bytes) -> None:
        """Appends a leaf."""
        height, above = 0, leaf_hash
        while self._peaks and self._peaks[-1][0] == height:
            above = node(self._peaks.pop()[1], above)
            height += 1
        self._peaks.append((height, above))

    def root(self) -> bytes:
        """The root over all leaves so far."""
        above = self._peaks[-1][1] if self._peaks else hashlib.sha256(b"").digest()
        for _, left in reversed(self._peaks[:-1]):
            above = node(left, above)
        return above


def check_note(note: bytes, public_key: bytes) -> tuple[int, bytes]:
    """Size and root of a checkpoint that the key has signed."""
    text, _, signatures = note.rpartition(b"\n\n")
    text += b"\n"
    signature = base64.b64decode(signatures.split(b"\n")[0].split(b" ")[2])
    Ed25519PublicKey.from_public_bytes(public_key).verify(signature[4:], text)
    lines = text.split(b"\n")
    return int(lines[1]), base64.b64decode(lines[2])


async def check(found: Stack) -> dict[str, int]:
    """Checks everything, by what the clients know and what the tables hold. Raises Violation."""
    rows = await found.sql(
        "SELECT l.index, l.entry_id, e.document FROM animus.log_leaf l LEFT JOIN animus.audit_entry e"
        " ON e.project_id = l.project_id AND e.entry_id = l.entry_id WHERE l.project_id = $1 ORDER BY l.index",
        PROJECT,
    )
    (key,) = await found.sql("SELECT convert_from(document, 'UTF8')::jsonb ->> 'publicKey' AS key FROM animus.log_key")
    signed = await found.sql("SELECT note FROM animus.log_checkpoint WHERE project_id = $1 ORDER BY size", PROJECT)
    heads = dict(check_note(row["note"], base64.b64decode(key["key"])) for row in signed)
    for size, root in found.heads:
        if heads.get(size) != root:
            raise Violation(f"a client saw a head of size {size} that the log does not have")
    roots, index_of, hash_of = Roots(), {}, {}
    for place, row in enumerate(rows):
        if row["index"] != place or row["document"] is None:
            raise Violation(f"the log has no leaf {place}, or its entry is gone")
        leaf_hash = hashlib.sha256(b"\x00" + row["document"]).digest()
        roots.add(leaf_hash)
        index_of[row["entry_id"]] = place
        hash_of[row["entry_id"]] = leaf_hash
        if place + 1 in heads and heads[place + 1] != roots.root():
            raise Violation(f"the signed head of size {place + 1} is not that of the first {place + 1} entries")
    covered = max(heads, default=0)
    if covered > len(rows):
        raise Violation(f"a head of {covered} is signed over {len(rows)} leaves")
    for each in found.done:
        if hash_of.get(each.entry_id) != each.leaf_hash:
            raise Violation(f"the receipt of {each.request_id} promises a leaf that is not in the log")
        if index_of[each.entry_id] >= covered:
            raise Violation(f"the entry of {each.request_id} is in no signed head")
    made = [json.loads(row["document"]) for row in rows]
    accepted = [each for each in made if each["outcome"] == "accepted"]
    changes = [each["requestId"] for each in accepted if each["action"] == "dataset.create"]
    if sorted(changes) != sorted({each.request_id for each in found.done}):
        raise Violation(f"{len(changes)} changes are in the log, and {len(found.done)} were acknowledged")
    (datasets,) = await found.sql("SELECT count(*) AS count FROM animus.dataset WHERE project_id = $1", PROJECT)
    if datasets["count"] != len(found.done):
        raise Violation(f"{datasets['count']} datasets stand, and {len(found.done)} were acknowledged")
    (rest,) = await found.sql(
        "SELECT (SELECT count(*) FROM animus.audit_queue) + (SELECT count(*) FROM animus.log_quarantine) AS count"
    )
    if rest["count"]:
        raise Violation(f"{rest['count']} entries wait or are in quarantine")
    _check_order(found.done, index_of)
    return {"entries": len(rows), "checkpoints": len(heads), "heads_seen": len(found.heads)}


def _check_order(done: list[Done], index_of: dict[str, int]) -> None:
    """A change that began after another was acknowledged comes after it in the log."""
    latest = float("-inf")  # start of the changes so far, in the order of the log
    for each in sorted(done, key=lambda each: index_of[each.entry_id]):
        if each.ended < latest:
            raise Violation(f"{each.request_id} had been acknowledged before a change began that stands before it")
        latest = max(latest, each.began)


async def prove_all(found: Stack) -> int:
    """Asks for a proof of every receipt, and checks each against a head that `check` has found true."""
    proven = 0
    left = iter(found.done)

    async def prove() -> None:
        nonlocal proven
        async with found.channel(found.replicas[0]) as channel:
            stub = log_pb2_grpc.LogServiceStub(channel)
            for each in left:
                request = log_pb2.GetInclusionProofRequest(project_id=PROJECT, entry_id=each.entry_id)
                proof = await stub.GetInclusionProof(request, metadata=found.metadata, timeout=60)
                size = proof.checkpoint.size
                root = _root_of_proof(each.leaf_hash, proof.index, size, list(proof.hashes))
                if root.hex() != proof.checkpoint.root_hash:
                    raise Violation(f"the proof of {each.request_id} leads to another root")
                proven += 1

    await asyncio.gather(*(prove() for _ in range(8)))
    return proven


def _root_of_proof(leaf_hash: bytes, index: int, size: int, proof: list[bytes]) -> bytes:
    """The root that a proof of inclusion leads to (RFC 9162 §2.1.3.2)."""
    at, last, above = index, size - 1, leaf_hash
    for each in proof:
        if last == 0:
            raise Violation("a proof is longer than its tree is high")
        if at % 2 or at == last:
            above = node(each, above)
            while at % 2 == 0 and at:
                at, last = at // 2, last // 2
        else:
            above = node(above, each)
        at, last = at // 2, last // 2
    if last:
        raise Violation("a proof is shorter than its tree is high")
    return above
