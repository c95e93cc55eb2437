"""A real gRPC server whose answers a test chooses, and services made up for tests."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc.aio
import httpx
from animus_gateway.main import Gateway, open_channel, serve_gateway
from google.api import annotations_pb2, http_pb2, httpbody_pb2
from google.protobuf import descriptor_pool, struct_pb2, timestamp_pb2
from google.protobuf.descriptor import FileDescriptor, MethodDescriptor
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

MIB = 1024 * 1024
MAX_BODY_BYTES = 512 * 1024
Answer = Callable[[Any, Any], Awaitable[Message]]
Answers = Callable[[Any, Any], AsyncIterator[Message]]
_numbers = itertools.count(1)


@dataclass(slots=True)
class Upstream(grpc.GenericRpcHandler):
    """A server of every method of some files. It keeps what it was sent and answers as the test says."""

    methods: Mapping[str, MethodDescriptor]
    requests: list[Message] = field(default_factory=list)
    metadata: list[dict[str, str]] = field(default_factory=list)
    answer: Answer | None = None  # None: an empty reply
    answers: Answers | None = None  # for server streams; None: an empty stream

    def reset(self) -> None:
        """Forgets what was sent and how to answer."""
        self.requests.clear()
        self.metadata.clear()
        self.answer = self.answers = None

    @property
    def request(self) -> Any:
        """The only request that arrived."""
        (request,) = self.requests
        return request

    def service(self, handler_call_details: Any) -> Any:
        """The handler of a method, made from its descriptor."""
        rpc = self.methods.get(handler_call_details.method)
        if rpc is None:
            return None
        reply_class = GetMessageClass(rpc.output_type)

        def note(request: Message, context: Any) -> None:
            self.requests.append(request)
            self.metadata.append(dict(context.invocation_metadata()))

        async def unary(request: Message, context: Any) -> Message:
            note(request, context)
            return reply_class() if self.answer is None else await self.answer(request, context)

        async def stream(request: Message, context: Any) -> AsyncIterator[Message]:
            note(request, context)
            if self.answers is not None:
                async for message in self.answers(request, context):
                    yield message

        make = grpc.unary_stream_rpc_method_handler if rpc.server_streaming else grpc.unary_unary_rpc_method_handler
        return make(
            stream if rpc.server_streaming else unary,
            request_deserializer=GetMessageClass(rpc.input_type).FromString,
            response_serializer=reply_class.SerializeToString,
        )


def upstream_of(files: Sequence[FileDescriptor]) -> Upstream:
    """An upstream that serves every method of these files."""
    return Upstream(
        {
            f"/{service.full_name}/{rpc.name}": rpc
            for file in files
            for service in file.services_by_name.values()
            for rpc in service.methods
        }
    )


def made_up_service(
    rules: Mapping[str, http_pb2.HttpRule], *, streaming: bool = False, http_body: bool = False
) -> FileDescriptor:
    """A file with one service whose methods, by name, have these http rules.

    All take `Everything`, a message with a field of each kind, and answer it, or an HttpBody.
    """
    package = f"made.up{next(_numbers)}.v1"
    file = FileDescriptorProto(name=f"{package.replace('.', '/')}.proto", package=package, syntax="proto3")
    file.dependency.extend(each.DESCRIPTOR.name for each in (timestamp_pb2, struct_pb2, httpbody_pb2))
    colour = file.enum_type.add(name="Colour")
    colour.value.add(name="COLOUR_UNSPECIFIED", number=0)
    colour.value.add(name="COLOUR_RED", number=1)
    message = file.message_type.add(name="Everything")
    _add_fields(message, f".{package}")
    service = file.service.add(name="MadeUpService")
    for name, rule in rules.items():
        rpc = service.method.add(
            name=name,
            input_type=f".{package}.Everything",
            output_type=".google.api.HttpBody" if http_body else f".{package}.Everything",
            server_streaming=streaming,
        )
        rpc.options.Extensions[annotations_pb2.http].CopyFrom(rule)
    pool = descriptor_pool.Default()
    pool.AddSerializedFile(file.SerializeToString())
    return pool.FindFileByName(file.name)


def _add_fields(message: DescriptorProto, scope: str) -> None:
    kinds = FieldDescriptorProto
    one, many = kinds.LABEL_OPTIONAL, kinds.LABEL_REPEATED
    numbers = itertools.count(1)

    def add(name: str, kind: Any, label: Any = one, type_name: str | None = None) -> None:
        message.field.add(name=name, number=next(numbers), type=kind, label=label, type_name=type_name)

    for name, kind in (
        ("text", kinds.TYPE_STRING),
        ("other_text", kinds.TYPE_STRING),
        ("small", kinds.TYPE_INT32),
        ("large", kinds.TYPE_INT64),
        ("small_natural", kinds.TYPE_UINT32),
        ("large_natural", kinds.TYPE_UINT64),
        ("flag", kinds.TYPE_BOOL),
        ("data", kinds.TYPE_BYTES),
        ("ratio", kinds.TYPE_DOUBLE),
        ("small_ratio", kinds.TYPE_FLOAT),
    ):
        add(name, kind)
    add("colour", kinds.TYPE_ENUM, type_name=f"{scope}.Colour")
    add("moment", kinds.TYPE_MESSAGE, type_name=".google.protobuf.Timestamp")
    add("anything", kinds.TYPE_MESSAGE, type_name=".google.protobuf.Value")
    add("child", kinds.TYPE_MESSAGE, type_name=f"{scope}.Everything")
    add("words", kinds.TYPE_STRING, many)
    add("amounts", kinds.TYPE_INT64, many)
    add("colours", kinds.TYPE_ENUM, many, f"{scope}.Colour")
    add("children", kinds.TYPE_MESSAGE, many, f"{scope}.Everything")
    entry = message.nested_type.add(name="SizesEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=kinds.TYPE_INT32, label=one)
    entry.field.add(name="value", number=2, type=kinds.TYPE_INT64, label=one)
    add("sizes", kinds.TYPE_MESSAGE, many, f"{scope}.Everything.SizesEntry")
    for name in ("left", "right"):
        add(name, kinds.TYPE_STRING)
        message.field[-1].oneof_index = 0
    message.oneof_decl.add(name="side")


@dataclass(frozen=True, slots=True)
class Stack:
    """The gateway, what is behind it, and a client in front of it."""

    upstream: Upstream
    target: str
    gateway: Gateway
    client: httpx.AsyncClient


@asynccontextmanager
async def running(files: Sequence[FileDescriptor]) -> AsyncIterator[Stack]:
    """A gRPC server of these files, with a gateway in front."""
    upstream = upstream_of(files)
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", 64 * MIB)])
    server.add_generic_rpc_handlers([upstream])
    target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        async with gateway_to(target, files=files) as (gateway, client):
            yield Stack(upstream, target, gateway, client)
    finally:
        await server.stop(None)


@asynccontextmanager
async def gateway_to(target: str, **options: Any) -> AsyncIterator[tuple[Gateway, httpx.AsyncClient]]:
    """A gateway to a gRPC server, and a client of it."""
    options = {"max_body_bytes": MAX_BODY_BYTES, "timeout_seconds": 10.0, **options}
    async with open_channel(target, 64 * MIB) as channel:
        gateway = await serve_gateway(channel, "127.0.0.1", 0, **options)
        try:
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{gateway.port}", trust_env=False) as client:
                yield gateway, client
        finally:
            await gateway.stop()


@dataclass(frozen=True, slots=True)
class RawReply:
    """An HTTP response as it came over the socket."""

    status: int
    head: str
    body: bytes


def _unchunked(data: bytes) -> tuple[bytes, bytes]:
    """The body that came in chunks, and what follows it; one that was cut short ends where it does."""
    body = b""
    while data:
        size, _, rest = data.partition(b"\r\n")
        length = int(size, 16)
        body, data = body + rest[:length], rest[length + 2 :]
        if not length:
            break
    return body, data


async def raw_exchange(port: int, request: bytes) -> list[RawReply]:
    """Sends these bytes on a connection of their own, and reads every response until the server closes it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        received = await asyncio.wait_for(reader.read(), timeout=20)
    finally:
        writer.close()
    replies = []
    while received:
        head, _, rest = received.partition(b"\r\n\r\n")
        text = head.decode("latin-1").lower()
        length = next((int(line.split(":")[1]) for line in text.splitlines() if line.startswith("content-length")), 0)
        body, received = rest[:length], rest[length:]
        if "transfer-encoding: chunked" in text:
            body, received = _unchunked(rest)
        replies.append(RawReply(int(text.split(" ")[1]), text, body))
    return replies
