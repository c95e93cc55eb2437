"""Server streams over HTTP: one JSON line for each message, or a body of the service's own as it comes."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
import httpx
import pytest
from gateway_harness import Stack, gateway_to, made_up_service, running
from google.api.http_pb2 import HttpRule
from google.api.httpbody_pb2 import HttpBody
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

RULES = {"Watch": HttpRule(get="/watch/{text}"), "WatchBody": HttpRule(post="/watch", body="*")}


@pytest.fixture(scope="module")
async def streaming() -> AsyncIterator[Stack]:
    """A gateway to a made-up service whose methods stream."""
    async with running([made_up_service(RULES, streaming=True)]) as stack:
        yield stack


@pytest.fixture(scope="module")
async def exporting() -> AsyncIterator[Stack]:
    """A gateway to a made-up service whose methods stream a body of their own."""
    async with running([made_up_service(RULES, streaming=True, http_body=True)]) as stack:
        yield stack


@pytest.fixture(scope="module", params=[False, True], ids=["lines", "body"])
async def either(request: pytest.FixtureRequest) -> AsyncIterator[Stack]:
    """Each of the two."""
    async with running([made_up_service(RULES, streaming=True, http_body=request.param)]) as stack:
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


async def test_a_stream_has_no_deadline(either: Stack) -> None:
    """The gateway's timeout is for other calls: a stream lasts as long as the service goes on and the client stays."""
    remaining = []

    async def answers(_request: Any, context: Any) -> AsyncIterator[Message]:
        remaining.append(context.time_remaining())
        return
        yield

    either.upstream.answers = answers
    assert (await either.client.get("/watch/t")).status_code == 200
    assert remaining == [None]


async def test_a_client_that_leaves_before_the_first_message_ends_the_call(
    either: Stack, caplog: pytest.LogCaptureFixture
) -> None:
    """A stream that has nothing to send yet does not outlive its client, and nothing is logged."""
    started, ended = asyncio.Event(), asyncio.Event()

    async def answers(request: Any, _context: Any) -> AsyncIterator[Message]:
        started.set()
        try:
            await asyncio.Event().wait()
            yield request
        finally:
            ended.set()

    either.upstream.answers = answers
    _, writer = await asyncio.open_connection("127.0.0.1", either.gateway.port)
    writer.write(b"GET /watch/t HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await asyncio.wait_for(started.wait(), timeout=10)
    writer.close()
    await asyncio.wait_for(ended.wait(), timeout=10)
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_a_client_that_leaves_a_stream_without_pauses_ends_the_call(streaming: Stack) -> None:
    """Also where the next message is always there already."""
    ended = asyncio.Event()

    async def answers(request: Any, _context: Any) -> AsyncIterator[Message]:
        try:
            while True:
                yield request
        finally:
            ended.set()

    streaming.upstream.answers = answers
    async with streaming.client.stream("GET", "/watch/t") as response:
        await anext(response.aiter_lines())
    await asyncio.wait_for(ended.wait(), timeout=10)


async def test_a_gateway_that_stops_ends_its_streams_at_once(streaming: Stack) -> None:
    """With `DRAINING`: as the last line of a stream that has begun, as a plain error of one that has not."""
    started = asyncio.Event()

    async def answers(request: Any, _context: Any) -> AsyncIterator[Message]:
        if request.text == "begun":
            yield request
        else:
            started.set()
        await asyncio.Event().wait()

    streaming.upstream.answers = answers
    files = [rpc.containing_service.file for rpc in streaming.upstream.methods.values()][:1]
    async with gateway_to(streaming.target, files=files) as (gateway, client):
        async with client.stream("GET", "/watch/begun") as begun:
            parts = begun.aiter_lines()
            assert "result" in await anext(parts)
            waiting = asyncio.ensure_future(client.get("/watch/waiting"))
            await asyncio.wait_for(started.wait(), timeout=10)
            await asyncio.wait_for(gateway.stop(), timeout=5)  # before the ten seconds that other requests may take
            last = json.loads(await anext(parts))
        refused = await waiting
    assert refused.status_code == 503
    for status in (last["error"], refused.json()):
        assert (status["code"], status["details"][0]["reason"]) == (14, "DRAINING")


# --- bodies of the service's own


async def until_cut(parts: AsyncIterator[bytes]) -> bytes:
    """What comes until the connection is cut, which has to happen before the end of the body."""
    received = b""
    try:
        async for part in parts:
            received += part
    except httpx.RemoteProtocolError:
        return received
    raise AssertionError("the body came to its end")


async def test_a_body_is_written_as_it_comes(exporting: Stack) -> None:
    """Byte for byte, in the content type of the first message, each part before the next one is there."""
    gate = asyncio.Event()
    parts = [bytes(range(256)), b"", b'{"result":1}\n', b"\xff" * 300_000]

    async def answers(_request: Any, _context: Any) -> AsyncIterator[Message]:
        yield HttpBody(content_type="text/x-first", data=parts[0])
        await gate.wait()
        for part in parts[1:]:
            yield HttpBody(content_type="text/x-other", data=part)

    exporting.upstream.answers = answers
    async with exporting.client.stream("GET", "/watch/t") as response:
        assert response.status_code == 200
        assert response.headers["content-type"] == "text/x-first"
        assert response.headers["x-content-type-options"] == "nosniff"
        received = response.aiter_raw()
        assert await anext(received) == parts[0]
        gate.set()
        assert b"".join([part async for part in received]) == b"".join(parts[1:])


async def test_a_body_without_a_content_type_has_the_most_general_one(exporting: Stack) -> None:
    """As has one without messages, and one whose type no header can carry."""
    for bodies in (
        [],
        [HttpBody(data=b"x")],
        [HttpBody(data=b"x", content_type="a/b\r\nSet-Cookie: c=d")],
        [HttpBody(data=b"x", content_type="a/\u00e9")],
    ):

        async def answers(_request: Any, _context: Any, bodies: Any = bodies) -> AsyncIterator[Message]:
            for body in bodies:
                yield body

        exporting.upstream.answers = answers
        response = await exporting.client.get("/watch/t")
        assert (response.status_code, response.content) == (200, b"x" if bodies else b"")
        assert response.headers["content-type"] == "application/octet-stream"
        assert "set-cookie" not in response.headers


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
async def test_an_error_before_the_body_is_a_plain_error(exporting: Stack, code: grpc.StatusCode) -> None:
    """It has its own HTTP status, and the receipt beside it."""

    async def answers(request: Any, context: Any) -> AsyncIterator[Message]:
        await context.abort(code, "no", trailing_metadata=(("animus-audit-receipt-bin", b"\xff"),))
        yield request

    exporting.upstream.answers = answers
    response = await exporting.client.get("/watch/t")
    assert response.status_code >= 400
    assert response.json()["code"] == code.value[0]
    assert response.headers["animus-audit-receipt"] == "/w=="


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
async def test_an_error_in_the_middle_of_a_body_cuts_the_connection(exporting: Stack, code: grpc.StatusCode) -> None:
    """All that came is passed on, without the end of the chunked body: no client takes the part for the whole."""

    async def answers(_request: Any, context: Any) -> AsyncIterator[Message]:
        yield HttpBody(content_type="application/x-ndjson", data=b"first\n")
        await context.abort(code, "ended", trailing_metadata=(details(),))

    exporting.upstream.answers = answers
    async with exporting.client.stream("GET", "/watch/t") as response:
        assert response.status_code == 200
        assert await until_cut(response.aiter_raw()) == b"first\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", exporting.gateway.port)
    writer.write(b"GET /watch/t HTTP/1.1\r\nHost: localhost\r\n\r\n" * 2)
    answer = await asyncio.wait_for(reader.read(), timeout=10)
    writer.close()
    assert answer.count(b"HTTP/1.1") == 1
    assert answer.endswith(b"\r\n6\r\nfirst\n\r\n")


async def test_a_gateway_that_stops_cuts_a_body(exporting: Stack) -> None:
    """It was not whole."""

    async def answers(_request: Any, _context: Any) -> AsyncIterator[Message]:
        yield HttpBody(data=b"first")
        await asyncio.Event().wait()

    exporting.upstream.answers = answers
    files = [rpc.containing_service.file for rpc in exporting.upstream.methods.values()][:1]
    async with (
        gateway_to(exporting.target, files=files) as (gateway, client),
        client.stream("GET", "/watch/t") as response,
    ):
        received = response.aiter_raw()
        assert await anext(received) == b"first"
        await asyncio.wait_for(gateway.stop(), timeout=5)
        assert await until_cut(received) == b""


async def test_a_body_that_is_no_stream_is_answered_as_one_too() -> None:
    """Byte for byte, with its length, in its own content type."""
    async with running([made_up_service(RULES, http_body=True)]) as stack:

        async def answer(_request: Any, _context: Any) -> Any:
            return HttpBody(content_type="text/csv", data=b"\xff\n")

        stack.upstream.answer = answer
        response = await stack.client.get("/watch/t")
    assert (response.content, response.headers["content-type"]) == (b"\xff\n", "text/csv")
    assert response.headers["content-length"] == "2"


async def test_the_contracts_export_is_a_body(stack: Stack) -> None:
    """The lines of ExportAuditEntries stand in the answer as the service wrote them."""
    line = b'{"entry":{"action":"run.create"},"index":0,"leafHash":"00"}\n'

    async def answers(_request: Any, _context: Any) -> AsyncIterator[Message]:
        yield HttpBody(content_type="application/x-ndjson", data=line)
        yield HttpBody(content_type="application/x-ndjson", data=line * 2)

    stack.upstream.answers = answers
    url = "/v1/projects/p/auditEntries:export?firstIndex=0&startTime=2026-01-31T12:00:00Z&action=run.create"
    response = await stack.client.get(url)
    assert (response.status_code, response.content) == (200, line * 3)
    assert response.headers["content-type"] == "application/x-ndjson"
    assert stack.upstream.request.action == "run.create"
