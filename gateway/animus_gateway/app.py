"""The HTTP application: finds the RPC, makes the message, calls the service, answers in JSON or with the bytes it gave.

It decides nothing about who may do what: the call goes over a channel like any other client's, so that
authentication, validation and audit are the services' own. From the client's headers it passes on `authorization`,
`traceparent` and `tracestate`, and nothing else; and the client certificate, where TLS asked for one.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import re
import ssl
from collections.abc import Awaitable, Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar
from urllib.parse import urlsplit

import grpc.aio
from google.api.httpbody_pb2 import HttpBody
from google.protobuf.descriptor import FileDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import code_pb2
from grpc_health.v1 import health_pb2
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.types import Message as Event

from animus_gateway.openapi import contract_comments, describe
from animus_gateway.routes import Content, Match, Router, compile_routes, contract_files
from animus_gateway.status import Refusal, from_call, internal, malformed, refusal, status_json, wrong_method
from animus_gateway.tiles import FILE_ROUTES, encode_file, match_file
from animus_gateway.transcode import (
    check_content_type,
    decode_request,
    decompress,
    encode_reply,
    is_compressed,
    too_large,
)

logger = logging.getLogger("animus_gateway")

_T = TypeVar("_T")
Metadata = tuple[tuple[str, str | bytes], ...]

_ALWAYS = (
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
)
_HSTS = (b"strict-transport-security", b"max-age=31536000")
_ORIGIN = re.compile(
    r"https://(?:[a-z0-9.-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?|http://(?:localhost|127\.0\.0\.1|\[::1\])(?::[0-9]{1,5})?"
)
# What a page of an allowed origin may send and read. Credentials are headers that it sets itself: no cookie is taken.
_CORS_SENT = ("authorization", "content-encoding", "content-type", "idempotency-key", "traceparent", "tracestate")
_CORS_READ = ("animus-audit-receipt", "animus-replayed", "animus-trace-id")
_CORS_SECONDS = 600
_HEALTH_PATHS = ("/healthz", "/readyz")
_READY_SECONDS = 2.0
_LARGE_BYTES = 64 * 1024  # from here on, JSON is read and written beside the event loop, one body at a time


def build_app(
    target_channel: grpc.aio.Channel,
    *,
    max_body_bytes: int,
    timeout_seconds: float,
    ready: Callable[[], Awaitable[bool]] | None = None,
    allowed_hosts: Collection[str] | None = None,
    allowed_origins: Collection[str] = (),
    files: Sequence[FileDescriptor] | None = None,
    stopping: asyncio.Event | None = None,
) -> Starlette:
    """The gateway to the services behind a channel.

    A body may have `max_body_bytes`; a request may take `timeout_seconds` to arrive and its call as long again. A
    stream may take as long as its client stays, and ends once `stopping` is set. `/readyz` asks the channel, and
    `ready` too where it is given. With `allowed_hosts`, requests that name another host are refused (DNS rebinding);
    without, any name will do. Pages of `allowed_origins` may call (CORS); of other origins than the gateway's own, no
    others. `files` holds the services to route to, the whole contract by default; the files of logs
    are served beside them. Raises ValueError when their http rules cannot be served, or an origin is none.
    """
    routes = compile_routes(contract_files() if files is None else files)
    description = json.dumps(describe([*routes, *FILE_ROUTES], contract_comments()), ensure_ascii=False).encode()
    calls = _Calls(Router(routes), target_channel, max_body_bytes, timeout_seconds, stopping or asyncio.Event())
    check_health = target_channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )

    async def alive(_request: Request) -> Response:
        return _json_response(b'{"status":"ok"}')

    async def readiness(_request: Request) -> Response:
        try:
            reply = await check_health(health_pb2.HealthCheckRequest(), timeout=_READY_SECONDS)
            serving = reply.status == health_pb2.HealthCheckResponse.SERVING
        except grpc.aio.AioRpcError:
            serving = False
        if serving and (ready is None or await ready()):
            return _json_response(b'{"status":"ok"}')
        raise refusal(code_pb2.UNAVAILABLE, "DRAINING", "the control plane is not ready")

    async def openapi(_request: Request) -> Response:
        return _json_response(description)

    middleware = [Middleware(_Guard, allowed_hosts=allowed_hosts, allowed_origins=allowed_origins)]
    if allowed_origins:
        check_origins(allowed_origins)
        middleware.append(
            Middleware(
                CORSMiddleware,
                allow_origins=[*allowed_origins],
                allow_methods=sorted({route.http_method for route in routes}),
                allow_headers=_CORS_SENT,
                expose_headers=_CORS_READ,
                max_age=_CORS_SECONDS,
            )
        )
    app = Starlette(
        routes=[
            Route("/healthz", alive, methods=["GET"]),
            Route("/readyz", readiness, methods=["GET"]),
            Route("/openapi.json", openapi, methods=["GET"]),
        ],
        middleware=middleware,
        exception_handlers={Refusal: _answer_refusal, HTTPException: _answer_http_exception},
    )
    app.router.redirect_slashes = False
    app.router.default = calls
    return app


def check_origins(origins: Collection[str]) -> None:
    """Raises ValueError for what is no exact origin, or one whose pages anybody on the way could have written."""
    for origin in origins:
        if not _ORIGIN.fullmatch(origin):
            raise ValueError(f"{origin!r} is no origin such as https://ui.example; http:// is for loopback only")


def _json_response(body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(body, status, headers, media_type="application/json")


def _refusal_response(error: Refusal) -> Response:
    return _json_response(status_json(error.status), error.http_status, error.headers)


def _answer_refusal(_request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)  # registered for this type
    return _refusal_response(error)


def _answer_http_exception(_request: Request, _error: Exception) -> Response:
    """What Starlette refuses itself, which is one thing: another method than GET on a path that is no RPC."""
    return _refusal_response(wrong_method(("GET", "HEAD")))


class _Guard:
    """Around everything: hosts and origins, headers on every answer, and one answer for every defect."""

    def __init__(self, app: ASGIApp, allowed_hosts: Collection[str] | None, allowed_origins: Collection[str]) -> None:
        self._app = app
        self._allowed_origins = frozenset(allowed_origins)
        self._allowed_hosts = None if allowed_hosts is None else {host.lower() for host in allowed_hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"  # neither WebSockets nor lifespan events are served
        started = False
        # A browser would hold every port of this name to TLS, of whichever program.
        local = _host_name(Headers(scope=scope).get("host", "")) == "localhost"
        hsts = (_HSTS,) if scope["scheme"] == "https" and not local else ()

        async def send_with_headers(event: Event) -> None:
            nonlocal started
            if event["type"] == "http.response.start":
                started = True
                event["headers"] = [*event.get("headers", ()), *_ALWAYS, *hsts]
            await send(event)

        try:
            if scope["path"] not in _HEALTH_PATHS:  # probes call by address; the answer tells nothing
                self._check_host(Headers(scope=scope))
            await self._app(scope, receive, send_with_headers)
        except Refusal as error:
            await _refusal_response(error)(scope, receive, send_with_headers)
        except ClientDisconnect:
            return  # in the middle of its body, or of a stream; nobody is left to answer
        except Exception:  # the last frame of a request: a defect is logged here and answered without its text
            logger.exception("unexpected failure")
            if started:
                raise  # the server cuts the connection, so that the client does not take a part for the whole
            await _refusal_response(internal())(scope, receive, send_with_headers)

    def _check_host(self, headers: Headers) -> None:
        """Refuses what a browser sends on another site's behalf. Every such request names its origin or host."""
        hosts = headers.getlist("host")
        if len(hosts) > 1:
            raise malformed("the header Host stands more than once")
        host = hosts[0].lower() if hosts else ""
        allowed = self._allowed_hosts
        if allowed is not None and _host_name(host) not in allowed:
            raise malformed("the header Host names a host that this gateway does not serve")
        for origin in headers.getlist("origin"):
            if origin.lower().partition("://")[2] != host and origin not in self._allowed_origins:
                raise malformed("requests from other origins are refused")


def _host_name(authority: str) -> str:
    """The host of `host:port`, without port and brackets; empty where there is none."""
    try:
        return urlsplit(f"//{authority}").hostname or ""
    except ValueError:
        return ""


class _Calls:
    """The ASGI application of every path that is an RPC, or nothing."""

    def __init__(
        self,
        router: Router,
        channel: grpc.aio.Channel,
        max_body_bytes: int,
        timeout_seconds: float,
        stopping: asyncio.Event,
    ) -> None:
        self._router = router
        self._channel = channel
        self._max_body_bytes = max_body_bytes
        self._timeout_seconds = timeout_seconds
        self._stopping = stopping
        # One thread: however many large bodies arrive, small calls keep half of the interpreter.
        self._json_worker = ThreadPoolExecutor(1, thread_name_prefix="animus-gateway-json")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        raw_path: str = scope["raw_path"].decode("latin-1")
        match = match_file(request.method, raw_path) or self._router.match(request.method, raw_path)
        metadata = _forwarded(request.headers) + _verified(scope)
        body = await self._body(request)
        compressed = False
        if body:
            check_content_type(_one(request.headers, "content-type"))
            compressed = is_compressed(_one(request.headers, "content-encoding"))
        query: bytes = scope["query_string"]

        def decode() -> Message:
            whole = decompress(body, self._max_body_bytes) if compressed else body
            return decode_request(match, query.decode("latin-1"), whole, _one(request.headers, "idempotency-key"))

        message = await self._beside_loop(self._max_body_bytes if compressed else len(body), decode)
        if match.route.rpc.server_streaming:
            await self._stream(match, message, metadata, receive, send)
        else:
            response = await self._unary(match, message, metadata, request.headers)
            await response(scope, receive, send)

    async def _body(self, request: Request) -> bytes:
        """The whole body. Raises a Refusal: 413 as soon as it is too large, 408 when it does not arrive in time."""
        declared = request.headers.get("content-length", "0")  # digits only: the HTTP parser has seen to that
        if len(declared) > 15 or int(declared) > self._max_body_bytes:
            raise too_large(self._max_body_bytes)
        body = bytearray()
        try:
            async with asyncio.timeout(self._timeout_seconds):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > self._max_body_bytes:
                        raise too_large(self._max_body_bytes)
        except TimeoutError:
            raise refusal(
                code_pb2.DEADLINE_EXCEEDED, "DEADLINE", "the body did not arrive in time", http_status=408
            ) from None
        return bytes(body)

    async def _unary(self, match: Match, message: Message, metadata: Metadata, asked: Headers) -> Response:
        rpc = match.route.rpc
        call = self._channel.unary_unary(
            _method_path(rpc),
            request_serializer=type(message).SerializeToString,
            response_deserializer=GetMessageClass(rpc.output_type).FromString,
        )(message, metadata=metadata, timeout=self._timeout_seconds)
        try:
            reply = _received(await call)
        except grpc.aio.AioRpcError as error:
            raise _call_refusal(error) from None
        response = await self._beside_loop(reply.ByteSize(), lambda: _reply_response(match.route.content, reply, asked))
        response.headers.update(_reply_headers(await call.trailing_metadata()))
        return response

    async def _stream(self, match: Match, message: Message, metadata: Metadata, receive: Receive, send: Send) -> None:
        """Sends each message on as it comes, until the call, the client's connection or this gateway ends.

        Until the first message a Refusal is raised. Afterwards an error is the last line of lines of JSON; a body of
        the service's own is left without its end, upon which the server cuts the connection.
        """
        rpc = match.route.rpc
        is_body = rpc.output_type == HttpBody.DESCRIPTOR
        call: grpc.aio.UnaryStreamCall[Any, Any] = self._channel.unary_stream(
            _method_path(rpc),
            request_serializer=type(message).SerializeToString,
            response_deserializer=GetMessageClass(rpc.output_type).FromString,
        )(message, metadata=metadata)
        gone = asyncio.ensure_future(_disconnected(receive))
        stopping = asyncio.ensure_future(self._stopping.wait())
        last = b""
        try:
            part = await _next(call, gone, stopping)
            media_type = _media_type(part) if is_body else "application/x-ndjson"
            headers = [(b"content-type", media_type.encode())]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            try:
                while part is not None:
                    await send({"type": "http.response.body", "body": _part_bytes(part), "more_body": True})
                    part = await _next(call, gone, stopping)
            except Refusal as error:
                if is_body:
                    logger.warning("%s failed in the middle of its body: the connection is cut", rpc.full_name)
                    return
                last = b'{"error":' + status_json(error.status) + b"}\n"
            await send({"type": "http.response.body", "body": last})
        finally:
            for ended in (gone, stopping, call):
                ended.cancel()

    async def _beside_loop(self, size_bytes: int, work: Callable[[], _T]) -> _T:
        """Runs work on this many bytes: in a thread where it would hold up the event loop's other calls."""
        if size_bytes < _LARGE_BYTES:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._json_worker, work)


async def _disconnected(receive: Receive) -> None:
    """Returns when the client's connection has ended. The request's body has been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _next(
    call: grpc.aio.UnaryStreamCall[Any, Any], gone: asyncio.Future[Any], stopping: asyncio.Future[Any]
) -> Message | None:
    """The next message of a stream, or None at its end.

    Raises a Refusal for the error that the call ends in and once the gateway stops, and ClientDisconnect once nobody is
    left to answer.
    """
    if not (gone.done() or stopping.done()):
        coming: asyncio.Future[Any] = asyncio.ensure_future(call.read())
        try:
            await asyncio.wait({coming, gone, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if coming.done():
                message = coming.result()
                return None if message is grpc.aio.EOF else _received(message)
        except grpc.aio.AioRpcError as error:
            raise _call_refusal(error) from None
        finally:
            coming.cancel()
    if gone.done():
        raise ClientDisconnect
    raise refusal(code_pb2.UNAVAILABLE, "DRAINING", "the gateway is stopping; the same call is safe to repeat")


def _part_bytes(message: Message) -> bytes:
    """What a message of a stream is in the answer: the bytes of an HttpBody, a line of JSON otherwise."""
    if isinstance(message, HttpBody):
        data: bytes = message.data
        return data
    return b'{"result":' + encode_reply(message) + b"}\n"


def _media_type(body: HttpBody | None) -> str:
    """The content type that a service gives a body of its own; the most general one where it gives none."""
    named = "" if body is None else body.content_type
    return named if named and _is_printable(named) else "application/octet-stream"


def _reply_response(content: Content | None, reply: Message, asked: Headers) -> Response:
    """The answer that a reply is: bytes as the service gave them where these are its content, JSON otherwise."""
    if content is not None:
        body, headers = encode_file(content, reply, ",".join(asked.getlist("accept-encoding")))
        return Response(body, headers=headers)
    if isinstance(reply, HttpBody):
        return Response(reply.data, headers={"Content-Type": _media_type(reply)})
    return _json_response(encode_reply(reply))


def _received(message: Any) -> Message:
    """A message as it was received. Raises a Refusal for None, which is what gRPC makes of bytes that are none."""
    if not isinstance(message, Message):
        raise refusal(code_pb2.INTERNAL, "INTERNAL", "the control plane sent what is no message of its contract")
    return message


def _method_path(rpc: MethodDescriptor) -> str:
    return f"/{rpc.containing_service.full_name}/{rpc.name}"


def _one(headers: Headers, name: str) -> str | None:
    """The value of a header that may stand once. Raises a Refusal (400) when it stands twice."""
    values = headers.getlist(name)
    if len(values) > 1:
        raise malformed(f"the header {name} stands more than once")
    return values[0] if values else None


def _is_printable(value: str) -> bool:
    return value.isascii() and value.isprintable()


def _forwarded(headers: Headers) -> Metadata:
    """The metadata of the call. What gRPC could not carry is refused (a credential) or left out (a trace)."""
    metadata: list[tuple[str, str | bytes]] = []
    authorization = _one(headers, "authorization")
    if authorization is not None:
        if not _is_printable(authorization):
            raise malformed("the header authorization holds other than printable ASCII characters")
        metadata.append(("authorization", authorization))
    parents = headers.getlist("traceparent")
    if len(parents) == 1 and _is_printable(parents[0]):  # W3C Trace Context: a broken one starts a new trace
        metadata.append(("traceparent", parents[0]))
        state = ",".join(headers.getlist("tracestate"))
        if state and _is_printable(state):
            metadata.append(("tracestate", state))
    return tuple(metadata)


def _verified(scope: Scope) -> Metadata:
    """The client certificate that TLS verified, if there is one. The service believes it of its own gateway only."""
    chain = scope.get("extensions", {}).get("tls", {}).get("client_cert_chain", ())
    return tuple(("animus-client-certificate-bin", ssl.PEM_cert_to_DER_cert(certificate)) for certificate in chain[:1])


def _call_refusal(error: grpc.aio.AioRpcError) -> Refusal:
    refused = from_call(error)
    refused.headers.update(_reply_headers(error.trailing_metadata()))
    return refused


def _reply_headers(trailing: Any) -> dict[str, str]:
    """The response headers that a call's trailing metadata asks for."""
    headers = {}
    for key, value in trailing or ():
        if key == "animus-replayed" and value == "true":
            headers["Animus-Replayed"] = "true"
        elif key == "animus-trace-id" and isinstance(value, str):
            headers["Animus-Trace-Id"] = value
        elif key == "animus-audit-receipt-bin" and isinstance(value, bytes):
            headers["Animus-Audit-Receipt"] = base64.b64encode(value).decode()
    return headers
