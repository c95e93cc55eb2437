"""Clients of a stack: they make changes until each has a definite outcome, watch heads, follow the log, and write down
everything that they were told."""

import asyncio
import contextlib
import json
import random
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.json_format import ParseDict
from google.rpc import error_details_pb2, status_pb2

from animus.v1 import audit_pb2, dataset_pb2, environment_pb2, log_pb2, pipeline_pb2, project_pb2, run_pb2
from faults.proofs import Head, LogKey, Unproven, leaf_hash, open_checkpoint
from faults.stack import Server, Stack, Violation

INSTANCE = "instance"
RECEIPT = "animus-audit-receipt-bin"
TRY_SECONDS = 5.0
PATIENCE_SECONDS = 120.0  # for all tries of one change
WATCH_SECONDS = 0.25
NOT_DONE = frozenset({"ABORTED", "RESOURCE_EXHAUSTED"})  # the server says that nothing was written
LOST = frozenset({"UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "UNKNOWN", "INTERNAL"})
DIGEST = "sha256:" + "1" * 64


@dataclass(frozen=True, slots=True)
class Reply:
    """A call that succeeded."""

    data: bytes
    receipt: bytes
    replayed: bool


class Failed(Exception):
    """A call that did not succeed. `unknown`: whether it was done, nobody knows."""

    def __init__(self, reason: str, *, unknown: bool) -> None:
        super().__init__(reason)
        self.reason = reason
        self.unknown = unknown


@dataclass(frozen=True, slots=True)
class Try:
    """One call of a change."""

    server: str
    began: float
    ended: float
    outcome: str  # OK, or why not
    unknown: bool


@dataclass(frozen=True, slots=True)
class Change:
    """A change that was acknowledged, with every try that it took."""

    writer: int
    method: str
    request_id: str
    request: bytes
    object_id: str  # of the dataset or run that it made; empty for what else is registered
    tries: tuple[Try, ...]
    reply: Reply

    @property
    def began(self) -> float:
        """When it was first asked for."""
        return self.tries[0].began

    @property
    def ended(self) -> float:
        """When it was acknowledged."""
        return self.tries[-1].ended

    @property
    def unknown(self) -> bool:
        """Whether there was a moment when nobody knew."""
        return any(each.unknown for each in self.tries)


@dataclass(frozen=True, slots=True)
class Seen:
    """A head that a server has shown."""

    server: str
    head: Head
    began: float
    ended: float


@dataclass(slots=True)
class Tail:
    """The log as one server streams it."""

    server: str
    entry_ids: list[str] = field(default_factory=list)
    hashes: list[bytes] = field(default_factory=list)
    reads: list[tuple[float, float, int]] = field(default_factory=list)  # since when it is open, now, entries by now
    resumed: int = 0


class Clients:
    """All clients of one project, and their history."""

    def __init__(self, stack: Stack, project_id: str, seed: str) -> None:
        self.stack = stack
        self.project_id = project_id
        self.seed = seed
        self.changes: list[Change] = []
        self.acknowledged = asyncio.Condition()
        self.failures: Counter[str] = Counter()  # tries by why they failed
        self.repeated = 0  # changes that were sent once more after they had been acknowledged
        self.seen: list[Seen] = []
        self.seen_of_instance: list[Seen] = []
        self.tails: list[Tail] = []
        self.violations: list[str] = []
        self._opened: dict[bytes, Head] = {}
        self._keys: dict[str, LogKey] = {}
        self._run_spec = run_pb2.RunSpec()

    def dice(self, name: object) -> random.Random:
        """A source of chance that follows from the seed."""
        return random.Random(f"{self.seed}/{self.project_id}/{name}")  # noqa: S311

    # Changes.

    async def prepare(self) -> None:
        """Makes the project, and what its runs are made of."""
        change, project_id = self._change_until_known, self.project_id
        await change(
            0,
            "ProjectService/CreateProject",
            project_pb2.CreateProjectRequest(
                project_id=project_id,
                request_id="project",
                project=project_pb2.Project(project_id=project_id, display_name="", description=""),
            ),
        )
        await change(0, "DatasetService/CreateDataset", self._dataset("data"))
        await change(
            0,
            "DatasetService/RegisterDatasetVersion",
            dataset_pb2.RegisterDatasetVersionRequest(
                project_id=project_id,
                request_id="version",
                dataset_version=dataset_pb2.DatasetVersion(
                    dataset_id="data",
                    content_digest=DIGEST,
                    size_bytes=1,
                    media_type="text/csv",
                    row_count=-1,
                    source="",
                    licence="",
                    uris=["file:///data"],
                ),
            ),
        )
        lock = await change(
            0,
            "EnvironmentService/RegisterEnvironmentLock",
            environment_pb2.RegisterEnvironmentLockRequest(
                project_id=project_id,
                request_id="environment",
                environment_lock=environment_pb2.EnvironmentLock(
                    python_version="3.11.7", platform_os="linux", platform_architecture="x86_64", lock_file_digest=""
                ),
            ),
        )
        pipeline = await change(
            0,
            "PipelineService/RegisterPipelineSpec",
            pipeline_pb2.RegisterPipelineSpecRequest(
                project_id=project_id,
                request_id="pipeline",
                pipeline_spec=ParseDict(_PIPELINE, pipeline_pb2.PipelineSpec()),
            ),
        )
        self._run_spec = run_pb2.RunSpec(
            api_version="animus/v1",
            kind="Run",
            pipeline_spec_digest=pipeline_pb2.PipelineSpec.FromString(pipeline.reply.data).record.digest,
            datasets=[run_pb2.DatasetBinding(dataset_ref="data", dataset_id="data", content_digest=DIGEST)],
            commit=run_pb2.Commit(repository="https://git.test/faults", sha="c" * 40),
            environment_lock_digest=environment_pb2.EnvironmentLock.FromString(lock.reply.data).record.digest,
        )

    async def write(self, writer: int, pause_seconds: float, ending: Callable[[], bool]) -> None:
        """Makes one change after the other: datasets, runs, and now and then the same change once more."""
        dice = self.dice(writer)
        while not ending():
            change = await self.change(writer, dice)
            if dice.random() < 0.1:
                await self._repeat(change, dice)
            await asyncio.sleep(dice.uniform(0, pause_seconds))

    async def change(self, writer: int, dice: random.Random) -> Change:
        """Makes a dataset, or a run whose id the server chooses."""
        name = f"w{writer}-{secrets.token_hex(8)}"
        if dice.random() < 0.8:
            return await self._change_until_known(writer, "DatasetService/CreateDataset", self._dataset(name), dice)
        spec = run_pb2.RunSpec()
        spec.CopyFrom(self._run_spec)
        spec.parameters.add(name="seed", type=run_pb2.PARAMETER_TYPE_STRING, value=name)
        request = run_pb2.CreateRunRequest(project_id=self.project_id, request_id=name, run_spec=spec)
        return await self._change_until_known(writer, "RunService/CreateRun", request, dice)

    async def _change_until_known(
        self, writer: int, method: str, request: Any, dice: random.Random | None = None
    ) -> Change:
        """Calls any server with the same request_id until the outcome is definite. Raises Violation."""
        dice = dice or self.dice("setup")
        data = request.SerializeToString(deterministic=True)
        tries: list[Try] = []
        end = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < end:
            server = dice.choice(self.stack.servers)
            if not server.address:
                await asyncio.sleep(0.02)
                continue
            began = time.monotonic()
            try:
                reply = await self.send(server, method, data)
            except Failed as failed:
                self.failures[failed.reason] += 1
                tries.append(Try(server.name, began, time.monotonic(), failed.reason, failed.unknown))
                await asyncio.sleep(dice.uniform(0.01, 0.1))
                continue
            tries.append(Try(server.name, began, time.monotonic(), "OK", unknown=False))
            made = _object_of(method, reply.data)
            change = Change(writer, method, request.request_id, data, made, tuple(tries), reply)
            async with self.acknowledged:
                self.changes.append(change)
                self.acknowledged.notify_all()
            return change
        raise Violation(f"{request.request_id} has no definite outcome after {PATIENCE_SECONDS:.0f} s: {tries[-3:]}")

    async def _repeat(self, change: Change, dice: random.Random) -> None:
        """Sends an acknowledged change again: the answer must be the first, byte for byte."""
        server = dice.choice(self.stack.servers)
        if not server.address:
            return
        try:
            again = await self.send(server, change.method, change.request)
        except Failed:
            return  # it is known to be done, whatever becomes of this call
        self.repeated += 1
        if not again.replayed or again.data != change.reply.data or again.receipt != change.reply.receipt:
            self.violations.append(f"{change.request_id} was answered otherwise when it was sent again")

    def _dataset(self, name: str) -> dataset_pb2.CreateDatasetRequest:
        return dataset_pb2.CreateDatasetRequest(
            project_id=self.project_id,
            request_id=name,
            dataset=dataset_pb2.Dataset(dataset_id=name, description=""),
        )

    async def send(self, server: Server, method: str, request: bytes, seconds: float = TRY_SECONDS) -> Reply:
        """One call. Raises Failed where it may be repeated, and Violation for any other failure."""
        ask: Any = self.stack.channel(server.address).unary_unary(f"/animus.v1.{method}")
        call = ask(request, metadata=self.stack.metadata, timeout=seconds)
        try:
            data = await call
            trailing: dict[str, Any] = {str(key): value for key, value in await call.trailing_metadata() or ()}
        except grpc.aio.AioRpcError as error:
            raise self._failed(method, error) from None
        return Reply(data, trailing.get(RECEIPT, b""), trailing.get("animus-replayed") == "true")

    def _failed(self, method: str, error: grpc.aio.AioRpcError) -> Failed:
        """What a failure means. Raises Violation for one that no fault explains."""
        code, reason, details = error.code().name, _reason(error), error.details() or ""
        name = f"{code} {reason}".strip()
        if not reason and code in LOST:  # the connection, not the server
            refused = code == "UNAVAILABLE" and "onnect" in details and "refused" in details.lower()
            return Failed(f"{code} no connection" if refused else f"{code} connection lost", unknown=not refused)
        unsound = reason == "LOG_UNSOUND"
        if code in NOT_DONE or reason == "DRAINING" or (unsound and self.stack.explained):
            return Failed(name, unknown=False)
        if code == "DEADLINE_EXCEEDED" or (code == "UNAVAILABLE" and not unsound):
            return Failed(name, unknown=True)
        raise Violation(f"{method} answers {name}: {details}")

    # What is read meanwhile.

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[None]:
        """Watches the heads of every server and follows the log of each, for as long as the context lasts."""
        self.tails = [Tail(server.name) for server in self.stack.servers]
        tasks = [asyncio.ensure_future(self._watch(server)) for server in self.stack.servers]
        tasks += [
            asyncio.ensure_future(self._follow(server, tail))
            for server, tail in zip(self.stack.servers, self.tails, strict=True)
        ]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
        self.violations += [repr(error) for error in ended if not isinstance(error, asyncio.CancelledError)]

    def open_head(self, project_id: str, note: bytes) -> Head:
        """The head of a checkpoint. Raises Unproven."""
        if note not in self._opened:
            if project_id not in self._keys:
                self._keys[project_id] = self.stack.key("" if project_id == INSTANCE else project_id)
            self._opened[note] = open_checkpoint(note, self._keys[project_id])
        return self._opened[note]

    async def _watch(self, server: Server) -> None:
        while True:
            for project_id, seen in ((self.project_id, self.seen), (INSTANCE, self.seen_of_instance)):
                await asyncio.sleep(WATCH_SECONDS / 2)
                if not server.address:
                    continue
                began = time.monotonic()
                request = log_pb2.GetCheckpointRequest(project_id=project_id).SerializeToString()
                try:
                    reply = await self.send(server, "LogService/GetCheckpoint", request)
                except Failed:
                    continue  # a server that is down shows nothing
                shown = log_pb2.LogCheckpoint.FromString(reply.data)
                try:
                    head = self.open_head(project_id, shown.note)
                except Unproven as unproven:
                    self.violations.append(f"{server.name} shows a checkpoint that proves nothing: {unproven}")
                    continue
                if (shown.size, shown.root_hash) != (head.size, head.root.hex()):
                    self.violations.append(f"{server.name} says of a checkpoint of {head.size} what it does not say")
                seen.append(Seen(server.name, head, began, time.monotonic()))

    async def _follow(self, server: Server, tail: Tail) -> None:
        while True:
            await asyncio.sleep(0.05)
            if not server.address:
                continue
            opened = time.monotonic()
            request = audit_pb2.TailAuditEntriesRequest(project_id=self.project_id, first_index=len(tail.entry_ids))
            ask: Any = self.stack.channel(server.address).unary_stream("/animus.v1.AuditService/TailAuditEntries")
            stream = ask(request.SerializeToString(), metadata=self.stack.metadata)
            try:
                async for data in stream:
                    entry = audit_pb2.AuditEntry.FromString(data)
                    if entry.index != len(tail.entry_ids):
                        self.violations.append(f"{server.name} streams {entry.index} after {len(tail.entry_ids)}")
                        return
                    tail.entry_ids.append(entry.entry_id)
                    tail.hashes.append(leaf_hash(entry.document))
                    now = time.monotonic()
                    if not tail.reads or now > tail.reads[-1][1] + WATCH_SECONDS:
                        tail.reads.append((opened, now, len(tail.entry_ids)))
            except grpc.aio.AioRpcError as error:
                self._failed("AuditService/TailAuditEntries", error)  # any other failure is a violation
                tail.resumed += 1
            finally:
                stream.cancel()

    async def wait_acknowledged(self, count: int, since: float, seconds: float) -> float:
        """When the first change was acknowledged of so many that were sent after a time. Raises Violation."""

        def sent_since() -> list[Change]:
            found = []
            for change in reversed(self.changes):
                if change.ended < since:
                    break  # they are in the order of their acknowledgement
                if change.tries[-1].began > since:
                    found.append(change)
            return found

        async with self.acknowledged:
            try:
                async with asyncio.timeout(seconds):
                    await self.acknowledged.wait_for(lambda: len(sent_since()) >= count)
            except TimeoutError:
                raise Violation(f"fewer than {count} changes were acknowledged within {seconds:.0f} s") from None
            return min(change.ended for change in sent_since())

    async def wait_included(self, server: Server, entry_id: str, seconds: float) -> None:
        """Waits until a server proves that a checkpoint covers an entry. Raises Violation."""
        request = log_pb2.WaitForInclusionRequest(project_id=self.project_id, entry_id=entry_id).SerializeToString()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with contextlib.suppress(Failed):
                await self.send(server, "LogService/WaitForInclusion", request)
                return
            await asyncio.sleep(0.05)
        raise Violation(f"{server.name} shows no checkpoint that covers {entry_id} after {seconds:.0f} s")

    async def wait_published(self, seconds: float) -> None:
        """Waits until every server shows a checkpoint of every change. Raises Violation."""
        request = log_pb2.GetCheckpointRequest(project_id=self.project_id, minimum_size=len(self.changes))
        end = time.monotonic() + seconds
        for server in self.stack.servers:
            while True:
                began = time.monotonic()
                try:
                    reply = await self.send(server, "LogService/GetCheckpoint", request.SerializeToString())
                except Failed as failed:
                    if time.monotonic() > end:
                        raise Violation(f"{server.name} publishes no more: {failed.reason}") from None
                    await asyncio.sleep(0.1)
                else:
                    head = self.open_head(self.project_id, log_pb2.LogCheckpoint.FromString(reply.data).note)
                    self.seen.append(Seen(server.name, head, began, time.monotonic()))
                    break

    async def wait_all_read(self, seconds: float) -> None:
        """Waits until every tail has every change. Raises Violation."""
        size = len(self.changes)
        end = time.monotonic() + seconds
        while any(len(tail.entry_ids) < size for tail in self.tails):
            if time.monotonic() > end:
                streamed = {tail.server: len(tail.entry_ids) for tail in self.tails}
                raise Violation(f"{streamed} of {size} entries were streamed after {seconds:.0f} s")
            await asyncio.sleep(0.05)

    def dump(self, path: Path) -> None:
        """Writes the history as lines of JSON."""
        with path.open("w") as file:
            for change in self.changes:
                tries = [[each.server, each.began, each.ended, each.outcome] for each in change.tries]
                line = {
                    "change": change.request_id,
                    "method": change.method,
                    "writer": change.writer,
                    "object": change.object_id,
                    "tries": tries,
                    "replayed": change.reply.replayed,
                    "receipt": change.reply.receipt.decode(),
                }
                file.write(json.dumps(line) + "\n")
            for log, heads in ((self.project_id, self.seen), (INSTANCE, self.seen_of_instance)):
                for seen in heads:
                    head = {"log": log, "size": seen.head.size, "root": seen.head.root.hex()}
                    when = {"server": seen.server, "began": seen.began, "ended": seen.ended}
                    file.write(json.dumps(head | when) + "\n")
            for tail in self.tails:
                file.write(json.dumps({"tail": tail.server, "resumed": tail.resumed, "reads": tail.reads}) + "\n")


def _object_of(method: str, reply: bytes) -> str:
    if method == "DatasetService/CreateDataset":
        return dataset_pb2.Dataset.FromString(reply).dataset_id
    if method == "RunService/CreateRun":
        return run_pb2.Run.FromString(reply).run_id
    return ""


def _reason(error: grpc.aio.AioRpcError) -> str:
    """The reason that the server gave; empty where it was not the server that failed the call."""
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            info = error_details_pb2.ErrorInfo()
            with contextlib.suppress(StopIteration):
                next(detail for detail in status_pb2.Status.FromString(value).details if detail.Unpack(info))
            return info.reason or "UNNAMED"
    return ""


_PIPELINE = {
    "apiVersion": "animus/v1",
    "kind": "Pipeline",
    "metadata": {"name": "faults", "description": "", "labels": []},
    "spec": {
        "steps": [
            {
                "name": "only",
                "image": f"registry.test/only@sha256:{'a' * 64}",
                "command": ["python"],
                "args": [],
                "inputs": {"datasets": [{"name": "data", "datasetRef": "data"}], "artifacts": []},
                "outputs": {"artifacts": []},
                "env": [],
                "resources": {"cpu": "1", "memory": "1Gi", "gpu": 0},
                "retryPolicy": {
                    "maxAttempts": 1,
                    "retryOn": [],
                    "backoff": {"type": "BACKOFF_TYPE_FIXED", "initialSeconds": 1, "maxSeconds": 1, "multiplier": "1"},
                },
            }
        ],
        "dependencies": [],
    },
}
