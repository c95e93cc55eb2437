"""The fuzzers, small: what they send, and that each finds what is planted in a server of every RPC."""

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from faults.corpus import methods, prepare
from faults.fuzz import DEADLINE_SECONDS, MAX_GROWTH, Fuzzer, slope, with_ids_of, wrong
from faults.messages import Sent, messages

METHODS = {f"/{rpc.containing_service.full_name}/{rpc.name}": rpc for rpc in methods()}
REFUSED = status_pb2.Status(code=3, message="no")
REFUSED.details.add().Pack(error_details_pb2.ErrorInfo(reason="FIELD_INVALID", domain="animus"))


@dataclass(slots=True)
class Toy(grpc.GenericRpcHandler):
    """A server of every RPC that refuses whatever it is asked. `planted` are its defects: by RPC, what it does."""

    planted: dict[str, str]
    answered: int = 0

    def service(self, handler_call_details: Any) -> Any:
        """The handler of a method."""
        rpc = METHODS[handler_call_details.method]
        request_class = GetMessageClass(rpc.input_type)

        async def refuse(data: bytes, context: Any) -> bytes:
            self.answered += 1
            match self.planted.get(rpc.name):
                case "raises":  # for a value of a field
                    if b".." in data:
                        raise KeyError("..")
                case "does not parse by itself":
                    request_class.FromString(data)
                case "says more than it should":
                    if len(data) < 8:
                        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "at <class 'KeyError'>")
                case "hangs":
                    await asyncio.Event().wait()
            rich = rpc_status.to_status(REFUSED)
            context.set_trailing_metadata(rich.trailing_metadata)
            await context.abort(rich.code, rich.details)
            return b""

        async def stream(data: bytes, context: Any) -> AsyncIterator[bytes]:
            yield await refuse(data, context)

        if rpc.server_streaming:
            return grpc.unary_stream_rpc_method_handler(stream)
        return grpc.unary_unary_rpc_method_handler(refuse)


@asynccontextmanager
async def toy(planted: dict[str, str], seconds: float = DEADLINE_SECONDS) -> AsyncIterator[tuple[Toy, Fuzzer]]:
    """The server, and a fuzzer of it."""
    handler = Toy(planted)
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", 16 << 20)])
    server.add_generic_rpc_handlers([handler])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    fuzzer = Fuzzer(f"127.0.0.1:{port}", (), seconds)
    try:
        yield handler, fuzzer
    finally:
        await fuzzer.close()
        await server.stop(None)


async def nothing(_path: str, _data: bytes) -> bytes:
    """A server that takes everything and says nothing."""
    return b""


async def sent(count: int, number: int, rpcs: int | None = None) -> list[Sent]:
    """Messages to all RPCs, or to the first few, for a server that says nothing of itself."""
    corpus, learned = await prepare(nothing)
    return list(messages(corpus[:rpcs], learned, count, number))


@pytest.fixture(scope="module")
async def coming() -> list[Sent]:
    """Two thousand messages."""
    return await sent(2_000, 5)  # one of them names a dataset ".."


async def test_the_same_seed_sends_the_same_messages(coming: list[Sent]) -> None:
    """And others with another seed; to every RPC, of every kind."""
    first, again, other = await sent(100, 1, rpcs=5), await sent(100, 1, rpcs=5), await sent(100, 2, rpcs=5)
    assert [each.data for each in first] == [each.data for each in again] != [each.data for each in other]
    assert {each.rpc.name for each in coming} == {rpc.name for rpc in METHODS.values()}
    assert {each.kind for each in coming} == {"made", "altered", "mangled", "plain"}


async def test_planted_defects_are_found(coming: list[Sent]) -> None:
    """A value that raises, bytes that are not parsed, an exception in a text; and nothing else."""
    planted = {
        "GetDataset": "raises",
        "CreateRun": "does not parse by itself",
        "GetRun": "says more than it should",
    }
    async with toy(planted) as (server, fuzzer):
        await fuzzer.send_all(iter(coming))
    record = fuzzer.record
    assert record.count == 2_000
    assert server.answered > 1_900  # a stream may have been left before its handler began
    found = {(each.rpc, each.what): each for each in record.findings}
    assert found.keys() == {
        ("GetDataset", "a defect"),
        ("CreateRun", "a defect"),
        ("GetRun", "the program's own words"),
    }
    assert len(record.findings) < 20  # of each a few examples
    assert b".." in base64.b64decode(found["GetDataset", "a defect"].request)


async def test_a_call_that_hangs_is_found(coming: list[Sent]) -> None:
    """It is given up at its deadline."""
    async with toy({"ListRuns": "hangs"}, seconds=0.2) as (_, fuzzer):
        await fuzzer.send_all(iter([next(each for each in coming if each.rpc.name == "ListRuns")]))
    assert [(each.rpc, each.what) for each in fuzzer.record.findings] == [("ListRuns", "no answer in time")]


async def test_a_sound_server_has_no_findings(coming: list[Sent]) -> None:
    """Whatever is sent, refusals with a reason are no findings."""
    async with toy({}) as (server, fuzzer):
        await fuzzer.send_all(iter(coming[:400]))
    assert fuzzer.record.findings == []
    assert fuzzer.record.count == 400
    assert server.answered > 380


def test_growth_is_told_from_a_memory_that_is_full() -> None:
    """A leak of a kilobyte a message is a slope of as much; a warm-up and a saw are none."""
    counts = range(0, 60_000, 1_000)
    full = [(count, min(count, 15_000) * 5_000 + (count % 2_000) * 2_000) for count in counts]
    assert abs(slope(full)) < MAX_GROWTH
    assert slope([(count, size + 1_024 * count) for count, size in full]) > MAX_GROWTH


@pytest.mark.parametrize("code", ["INTERNAL", "UNKNOWN", "DATA_LOSS", "UNIMPLEMENTED", "UNAUTHENTICATED", "NOT_FOUND"])
def test_an_answer_without_a_reason_is_wrong(code: str) -> None:
    """The codes of defects are wrong always, and every other failure without details."""
    reasoned = {"grpc-status-details-bin": REFUSED.SerializeToString()}
    assert wrong("GetRun", code, "", {})
    assert bool(wrong("GetRun", code, "", reasoned)) == (code != "NOT_FOUND")
    assert wrong("GetRun", "OK", "", {}) == ""


def test_a_message_is_sent_again_with_the_ids_of_another_instance() -> None:
    """Ids of the same place and length are exchanged; what has another length stays, for lengths stand before it."""
    there, here = {"runId": ["aaaa", "bbbb"], "name": ["long"]}, {"runId": ["cccc"], "name": ["longer"]}
    assert with_ids_of(b"\x04aaaa\x04bbbb\x04long\xff", there, here) == b"\x04cccc\x04bbbb\x04long\xff"
