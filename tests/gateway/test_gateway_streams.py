"""Server streams over HTTP: one JSON line for each message."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
import httpx
import pytest
from gateway_harness import Stack, gateway_to, made_up_service, running
from google.api.http_pb2 import HttpRule
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

RULES = {"Watch": HttpRule(get="/watch/{text}"), "WatchBody": HttpRule(post="/watch", body="*")}


@pytest.fixture(scope="module")
async def streaming() -> AsyncIterator[Stack]:
    """A gateway to a made-up service whose methods stream."""
    async with running([made_up_service(RULES, streaming=True)]) as stack:
        yield stack


def details() -> tuple[str, bytes]:
    """Trailing metadata with the details of an error of the service's own."""
    status = status_pb2.Status(code=9, message="ended\nwith é")
    status.details.add().Pack(error_details_pb2.ErrorInfo(domain="animus", reason="RUN_ENDED"))
    return "grpc-status-details-bin", status.SerializeToString()


def lines(response: httpx.Response) -> list[Any]:
    """The lines of a streamed answer."""
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/x-ndjson"
    assert response.content == b"" or response.content.endswith(b"\n")
    return [json.loads(line) for line in response.content.splitlines()]


async def test_each_message_is_one_line(streaming: Stack) -> None:
    """`{"result": …}` and a newline; a newline inside a message does not make another line."""

    async def answers(request: Any, _context: Any) -> AsyncIterator[Message]:
        for number in range(3):
            yield type(request)(text=f"{request.text}\n\u2028é", small=number)

    streaming.upstream.answers = answers
    response = await streaming.client.get("/watch/a%2Fb?small=9")
    found = lines(response)
    assert [line["result"]["small"] for line in found] == [0, 1, 2]
    assert {line["result"]["text"] for line in found} == {"a/b\n\u2028é"}
    assert response.headers["x-content-type-options"] == "nosniff"
    found = lines(await streaming.client.post("/watch", json={"text": "t"}))
    assert len(found) == 3


async def test_a_stream_without_messages_is_an_empty_answer(streaming: Stack) -> None:
    """200, and not a line."""
    streaming.upstream.answers = None
    assert lines(await streaming.client.get("/watch/t")) == []


async def test_an_error_after_messages_is_the_last_line(streaming: Stack) -> None:
    """`{"error": …}` holds the same Status that a unary call would have answered."""

    async def answers(request: Any, context: Any) -> AsyncIterator[Message]:
        yield type(request)(text="one")
        await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "ended", trailing_metadata=(details(),))

    streaming.upstream.answers = answers
    first, last = lines(await streaming.client.get("/watch/t"))
    assert first["result"]["text"] == "one"
    assert set(last) == {"error"}
    assert (last["error"]["code"], last["error"]["message"]) == (9, "ended\nwith é")
    assert last["error"]["details"][0]["reason"] == "RUN_ENDED"


async def test_an_error_before_any_message_is_a_plain_error(streaming: Stack) -> None:
    """It has its own HTTP status, as a unary call's has."""

    async def answers(request: Any, context: Any) -> AsyncIterator[Message]:
        await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "ended", trailing_metadata=(details(),))
        yield request

    streaming.upstream.answers = answers
    response = await streaming.client.get("/watch/t")
    assert response.status_code == 400
    assert response.json()["details"][0]["reason"] == "RUN_ENDED"


async def test_a_message_that_is_none_ends_the_stream_in_an_error(streaming: Stack) -> None:
    """Bytes that are no message of the method's type are neither passed on nor left out."""
    method = next(iter(streaming.upstream.methods))

    async def answers(_request: bytes, _context: Any) -> AsyncIterator[bytes]:
        yield b""
        yield b"\xff\xff"

    service, name = method.removeprefix("/").split("/")
    handler: Any = grpc.unary_stream_rpc_method_handler(answers)
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, {name: handler})])
    target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    files = [streaming.upstream.methods[method].containing_service.file]
    async with gateway_to(target, files=files) as (_, client):
        first, last = lines(await client.get("/watch/t"))
    assert "result" in first
    assert last["error"]["code"] == 13
    await server.stop(None)


async def test_a_refused_request_does_not_start_a_stream(streaming: Stack) -> None:
    """Requests of streams are read as strictly as others."""
    streaming.upstream.reset()
    assert (await streaming.client.get("/watch/t?unknown=1")).status_code == 400
    assert (await streaming.client.post("/watch", json={"small": "x"})).status_code == 400
    assert streaming.upstream.requests == []


async def test_messages_are_sent_on_as_they_come_and_a_client_that_leaves_ends_the_call(streaming: Stack) -> None:
    """The first line is there while the service still waits; when the client goes, the service is told."""
    ended = asyncio.Event()

    async def answers(request: Any, _context: Any) -> AsyncIterator[Message]:
        try:
            yield request
            await asyncio.Event().wait()
        finally:
            ended.set()

    streaming.upstream.answers = answers
    async with streaming.client.stream("GET", "/watch/t") as response:
        assert json.loads(await anext(response.aiter_lines()))["result"]["text"] == "t"
        assert not ended.is_set()
    await asyncio.wait_for(ended.wait(), timeout=10)
