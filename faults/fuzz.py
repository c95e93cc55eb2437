"""Messages that no client should send, to every RPC: `python -m faults.fuzz --messages 100000`.

Whatever is sent, with an administrator's token and many calls at once, each call ends within its time and in a status
that is the caller's affair; the server lives, has logged no defect, and needs no more memory than before.
`--replay FILE` sends a message that was found once more.
"""

import argparse
import asyncio
import base64
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.rpc import status_pb2

from animus.v1 import log_pb2
from faults.command import Figures, run
from faults.corpus import PROJECT, Corpus, Learned, methods, prepare
from faults.messages import Sent, messages
from faults.stack import CHANNEL_OPTIONS, Stack, Violation, open_stack

DEADLINE_SECONDS = 10.0
SERVER_SECONDS = 5.0  # the server's own limit: where it answers, nothing hangs
STREAM_SECONDS = 0.3  # a stream is left after so long, or so many messages
STREAM_MESSAGES = 20
AT_ONCE = 32
CHANNELS = 4
EXAMPLES = 3  # of findings of one RPC and one kind that are kept
SAMPLE_SECONDS = 1.0

DEFECTS = frozenset({"INTERNAL", "UNKNOWN", "DATA_LOSS", "UNIMPLEMENTED"})
LOST = frozenset({"UNAUTHENTICATED", "CANCELLED"})  # the token was good, and nobody cancelled
BUSY = ("RESOURCE_EXHAUSTED", "UNAVAILABLE", "ABORTED")  # a reason is given, and the message was not looked at
MAX_BUSY = 0.02  # of the messages
WAITS = frozenset({"WaitForInclusion"})  # until the server's limit, as its contract says
TOO_LARGE = re.compile(r"message larger than max")  # of gRPC itself, before any code of ours
# What only a traceback or an exception of the program has.
TRACE = re.compile(
    r"Traceback|File \"|\bline \d+, in |<class '|(?:asyncpg|sqlalchemy|google\.protobuf|builtins)\.\w|0x[0-9a-f]{8,}"
)

# A request is a kilobyte on the average: what keeps it, or a task or a trace of it, grows by as much a message. A sound
# server grew by 220 bytes over 100,000 messages, and by 110 and 30 over 40,000 reads and 20,000 changes alone: answers
# grow with what was written.
MAX_GROWTH = 512.0  # bytes for each message, as the slope over the samples after the first third
FEWEST_FOR_GROWTH = 50_000  # messages: with fewer, caches that fill are most of what is seen


@dataclass(frozen=True, slots=True)
class Finding:
    """What must not be, and the message that it takes."""

    rpc: str
    kind: str  # how the message was made
    what: str
    code: str
    details: str
    request: str  # base64
    learned: Learned  # what the ids and digests of that instance were


@dataclass(frozen=True, slots=True)
class Sample:
    """Memory after so many messages."""

    messages: int
    server: int  # bytes
    postgres: int


@dataclass(slots=True)
class Record:
    """What came of the messages."""

    calls: dict[str, Counter[str]] = field(default_factory=dict)  # by RPC: status codes
    kinds: Counter[str] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)
    seen: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    slowest: tuple[float, str] = (0.0, "")
    samples: list[Sample] = field(default_factory=list)

    @property
    def count(self) -> int:
        """Messages that were answered."""
        return sum(self.kinds.values())


class Fuzzer:
    """Sends messages to one server and judges what it answers."""

    def __init__(self, address: str, metadata: Sequence[tuple[str, str]], seconds: float = DEADLINE_SECONDS) -> None:
        self.record = Record({rpc.name: Counter() for rpc in methods()})
        self.corpus: Corpus = []
        self.learned: Learned = {}
        self._metadata = tuple(metadata)
        self._seconds = seconds
        options = [*CHANNEL_OPTIONS, ("grpc.use_local_subchannel_pool", 1), ("grpc.max_metadata_size", 64 << 10)]
        self._channels = [grpc.aio.insecure_channel(address, options=options) for _ in range(CHANNELS)]

    async def close(self) -> None:
        """Closes the channels."""
        await asyncio.gather(*(channel.close() for channel in self._channels))

    async def prepare(self) -> None:
        """Makes the requests of the corpus, and learns ids and digests of the answers. Raises Violation."""
        self.corpus, self.learned = await prepare(self.one)

    async def send_all(self, coming: Iterator[Sent]) -> None:
        """Sends messages, many at once."""

        async def work(channel: grpc.aio.Channel) -> None:
            for sent in coming:
                await self.send(channel, sent)

        async with asyncio.TaskGroup() as group:
            for number in range(AT_ONCE):
                group.create_task(work(self._channels[number % CHANNELS]))

    async def one(self, path: str, data: bytes) -> bytes:
        """The reply to a request that must succeed. Raises Violation."""
        ask: Any = self._channels[0].unary_unary(path)
        try:
            return bytes(await ask(data, metadata=self._metadata, timeout=self._seconds))
        except grpc.aio.AioRpcError as error:
            raise Violation(f"{path} answers {error.code().name}: {error.details()}") from None

    async def send(self, channel: grpc.aio.Channel, sent: Sent) -> None:
        """Sends a message and notes what becomes of it."""
        began = time.monotonic()
        code, details, trailing = await self._answer(channel, sent)
        took = time.monotonic() - began
        record, name = self.record, sent.rpc.name
        record.calls[name][code] += 1
        record.kinds[sent.kind] += 1
        record.slowest = max(record.slowest, (took, name))
        if what := wrong(name, code, details, trailing):
            record.seen[name, what, code] += 1
            if record.seen[name, what, code] <= EXAMPLES:
                data = base64.b64encode(sent.data).decode()
                record.findings.append(Finding(name, sent.kind, what, code, details[:1_000], data, self.learned))

    async def _answer(self, channel: grpc.aio.Channel, sent: Sent) -> tuple[str, str, dict[str, Any]]:
        """Code, details and trailing metadata; of a stream that was left CUT."""
        path = f"/{sent.rpc.containing_service.full_name}/{sent.rpc.name}"
        try:
            if not sent.rpc.server_streaming:
                ask: Any = channel.unary_unary(path)
                await ask(sent.data, metadata=self._metadata, timeout=self._seconds)
                return "OK", "", {}
            stream: Any = channel.unary_stream(path)
            call = stream(sent.data, metadata=self._metadata, timeout=self._seconds)
            try:
                async with asyncio.timeout(STREAM_SECONDS):
                    for _ in range(STREAM_MESSAGES):
                        if await call.read() is grpc.aio.EOF:
                            return "OK", "", {}
            except TimeoutError:
                pass
            finally:
                call.cancel()
            return "CUT", "", {}
        except grpc.aio.AioRpcError as error:
            trailing = {str(key): value for key, value in error.trailing_metadata() or ()}
            return error.code().name, error.details() or "", trailing


def wrong(name: str, code: str, details: str, trailing: dict[str, Any]) -> str:
    """What is wrong with an answer; empty where nothing is."""
    rich = status_pb2.Status.FromString(trailing.get("grpc-status-details-bin", b""))
    said = f"{details} {rich}"
    if code in DEFECTS:
        return "a defect"
    if code in LOST:
        return "the call was not taken"
    if TRACE.search(said):
        return "the program's own words"
    if code == "DEADLINE_EXCEEDED" and not (name in WAITS and rich.details):
        return "no answer in time"
    if code not in ("OK", "CUT") and not rich.details and not TOO_LARGE.search(details):
        return "no reason"
    return ""


def slope(samples: Sequence[tuple[float, float]]) -> float:
    """Growth for each message: least squares over the samples after the first third."""
    late = [(x, y) for x, y in samples if x >= samples[-1][0] / 3]
    x_mean, y_mean = (sum(values) / len(late) for values in zip(*late, strict=True))
    spread = sum((x - x_mean) ** 2 for x, _ in late)
    return sum((x - x_mean) * (y - y_mean) for x, y in late) / spread if spread else 0.0


def memory(pid: int) -> int:
    """Bytes that a process and its children have to themselves; 0 for one that is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    own = re.search(r"^RssAnon:\s+(\d+) kB$", status, re.MULTILINE)
    return (int(own[1]) << 10 if own else 0) + sum(memory(int(child)) for child in children)


async def fuzz(stack: Stack, count: int, number: int) -> Figures:
    """Sends so many messages to the stack's first server, and says what is wrong with what came of them."""
    server = stack.servers[0]
    pid = server.pid
    fuzzer = Fuzzer(server.address, stack.metadata)
    record = fuzzer.record
    try:
        await fuzzer.prepare()
        watching = asyncio.ensure_future(_watch(record, pid, stack))
        began = time.monotonic()
        await fuzzer.send_all(messages(fuzzer.corpus, fuzzer.learned, count, number))
        seconds = time.monotonic() - began
        watching.cancel()
        await stack.wait_up()
        request = log_pb2.GetLogRequest(project_id=PROJECT).SerializeToString()
        log = log_pb2.Log.FromString(await fuzzer.one("/animus.v1.LogService/GetLog", request))
    finally:
        await fuzzer.close()
    for index, finding in enumerate(record.findings):
        (stack.folder / f"finding-{index:03}.json").write_text(json.dumps(asdict(finding)))
    used = {"server": [each.server for each in record.samples], "postgres": [each.postgres for each in record.samples]}
    sent = [each.messages for each in record.samples]
    grown = {name: round(slope(list(zip(sent, sizes, strict=True))), 1) for name, sizes in used.items()}
    found = [f"{each.rpc}: {each.what}: {each.code} {each.details[:200]}" for each in record.findings]
    found += [f"the log says: {problem}" for problem in log.problems]
    found += stack.problems()
    if server.pid != pid:
        found.append(f"{server.name} ended")
    if count >= FEWEST_FOR_GROWTH:
        found += [f"{name} grows by {by} bytes a message" for name, by in grown.items() if by > MAX_GROWTH]
    codes: Counter[str] = sum(record.calls.values(), Counter())
    if (busy := sum(codes[code] for code in BUSY)) > MAX_BUSY * record.count:
        found.append(f"{busy} messages met a server that was busy: they say nothing")
    print(table(record), file=sys.stderr)
    return {
        "messages": record.count,
        "rpcs": len(record.calls),
        "kinds": dict(record.kinds),
        "codes": dict(codes.most_common()),
        "never_taken": sorted(name for name, counts in record.calls.items() if not counts["OK"] + counts["CUT"]),
        "per_second": round(record.count / seconds),
        "slowest": f"{record.slowest[0]:.2f} s, {record.slowest[1]}",
        "memory_mib": {name: f"{sizes[0] >> 20}, {_tenths(sizes)}" for name, sizes in used.items()},
        "growth_bytes_per_message": grown,
        "log_entries": log.size,
        "violations": found,
    }


async def _watch(record: Record, pid: int, stack: Stack) -> None:
    while True:
        record.samples.append(Sample(record.count, memory(pid), memory(stack.postgres.pid)))
        await asyncio.sleep(SAMPLE_SECONDS)


def _tenths(sizes: Sequence[int]) -> str:
    """In MiB, after each tenth of the time."""
    last = len(sizes) - 1
    return ", ".join(str(sizes[last * tenth // 10] >> 20) for tenth in range(1, 11))


def table(record: Record) -> str:
    """Status codes by RPC."""
    codes = sorted({code for counts in record.calls.values() for code in counts})
    rows = [["RPC", *(code.lower() for code in codes)]]
    rows += [[name, *(str(counts[code] or "") for code in codes)] for name, counts in sorted(record.calls.items())]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    )


def with_ids_of(data: bytes, there: Learned, here: Learned) -> bytes:
    """The same message with one instance's ids for those of another, where they are as long."""
    for name, values in there.items():
        for other, own in zip(values, here.get(name, []), strict=False):
            if len(other) == len(own):
                data = data.replace(other.encode(), own.encode())
    return data


async def replay(stack: Stack, finding: Finding) -> Figures:
    """Sends a message that was found to an instance of its own, with this instance's ids for those of the other."""
    rpc: MethodDescriptor = next(each for each in methods() if each.name == finding.rpc)
    fuzzer = Fuzzer(stack.servers[0].address, stack.metadata)
    try:
        await fuzzer.prepare()
        data = with_ids_of(base64.b64decode(finding.request), finding.learned, fuzzer.learned)
        await fuzzer.send_all(iter([Sent(rpc, finding.kind, data)]))
    finally:
        await fuzzer.close()
    codes = dict(fuzzer.record.calls[rpc.name])
    found = [f"{each.rpc}: {each.what}: {each.code} {each.details}" for each in fuzzer.record.findings]
    return {"messages": 1, "rpcs": 1, "codes": codes, "violations": [*found, *stack.problems()]}


def summary(figures: Figures) -> str:
    """One line."""
    return f"{figures['messages']:,} messages to {figures['rpcs']} RPCs: {figures['codes']}"


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="faults.fuzz", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--replay", type=Path)
    options = parser.parse_args()

    finding = Finding(**json.loads(options.replay.read_text())) if options.replay else None

    async def work(folder: Path) -> Figures:
        async with open_stack(folder, 1, {"ANIMUS_CALL_TIMEOUT_SECONDS": str(SERVER_SECONDS)}) as stack:
            if finding is not None:
                return await replay(stack, finding)
            return await fuzz(stack, options.messages, options.seed)

    sys.exit(run("faults.fuzz", work, summary, options.seed, 120 + options.messages / 50))


if __name__ == "__main__":
    main()
