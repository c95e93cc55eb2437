"""How a call is served: trace, errors, identity, access, in this order around every method of every service.

Methods are found from the contract's descriptors, and each must have a row in the access table, or the server does
not start. Request bytes are parsed here, because grpc.aio answers malformed ones with exception text.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
import structlog
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from grpc_status import rpc_status

from animus.codec import decode, decode_all, encode, refuse_unknown, request_bytes, sha256, timestamp
from animus.domain import document
from animus.domain.access import METHODS, TOKEN, Principal, Token
from animus.domain.document import Sealed, join, seal
from animus.domain.errors import Denied, DomainError, Invalid, Unavailable, Violation, invalid
from animus.domain.names import check_request_id, check_resource_id
from animus.service.status import code_of, internal_status, status_of
from animus.store.records import Stored
from animus.store.unit_of_work import Answer, Call, Change, Decide, UnitOfWork, View, project_unknown
from animus.telemetry import Telemetry
from animus.v1 import types_pb2

TOKEN_CACHE_SECONDS = 1.0  # so long may an expired token still be taken
TOKEN_CACHE_SIZE = 10_000
QUIET_SECONDS = 0.1

log = structlog.get_logger("animus.calls")
Value = TypeVar("Value")
M = TypeVar("M", bound=Message)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls which method."""

    principal: Principal
    method: str


def call_of(caller: Caller, request: Any) -> Call:
    """The call that a change is made under."""
    return Call(
        method=caller.method,
        project_id=request.project_id,
        principal=caller.principal,
        request_id=request.request_id,
        validate_only=request.validate_only,
        request=request_bytes(request),
    )


def decode_field(request: Message, name: str, path: str, kind: type[Value]) -> Value:
    """The value of a message field of a request. Raises Invalid when it is absent."""
    if not request.HasField(name):
        raise invalid(path, "is missing")
    return decode(getattr(request, name), kind, path)


@contextmanager
def at_path(path: str) -> Iterator[None]:
    """Places the paths of what is found invalid inside below a path of the request."""
    try:
        yield
    except Invalid as error:
        raise Invalid(
            [Violation(join(path, each.field), each.description) for each in error.violations], error.reason
        ) from None


def decode_items(
    messages: Sequence[Message], path: str, kind: type[Value], most: int, **given: str
) -> tuple[Value, ...]:
    """The values of a batch. Raises Invalid when it is empty or has too many."""
    if not 1 <= len(messages) <= most:
        raise invalid(path, f"has {len(messages)} items; 1 to {most} are allowed")
    return decode_all(messages, kind, path, **given)


def resource(stored: Stored[Any], name: str, message: M) -> M:
    """The message of a record, with what the control plane recorded of it."""
    encode(stored.value, message)
    message.record.CopyFrom(record_of(stored, name))  # type: ignore[attr-defined]
    return message


def record_of(stored: Stored[Any], name: str) -> types_pb2.Record:
    """What the control plane recorded of a resource."""
    return types_pb2.Record(
        name=name,
        digest=stored.digest,
        audit_entry_id=stored.entry_id,
        principal=stored.principal,
        create_time=timestamp(stored.time),
    )


def new_record(view: View, caller: Caller, sealed: Sealed[Any]) -> Stored[Any]:
    """The record that the change at hand writes, as it will be read."""
    return Stored(sealed.value, sealed.digest, view.entry_id, caller.principal.name, view.time)


def creation(view: View, caller: Caller, action: str, name: str, value: object, message: Message) -> Change:
    """The change that writes one record and answers with it."""
    sealed = seal(value)
    return Change(action, name, (sealed,), (), resource(new_record(view, caller, sealed), name, message))


def register(
    value: object, action: str, name_of: Callable[[str, str], str], caller: Caller, message_class: type[Message]
) -> Decide:
    """Decides on something that its digest identifies: written once, found from then on."""
    sealed = seal(value)

    async def decide(view: View) -> Change:
        name = name_of(view.project_id, sealed.digest)
        found = await view.find(type(value), digest=sealed.digest)
        records = () if found else (sealed,)
        stored = found or new_record(view, caller, sealed)
        return Change(action, name, records, (), resource(stored, name, message_class()))

    return decide


class Identity:
    """Who calls: found by the hash of the token, and remembered for a second."""

    def __init__(self, work: UnitOfWork) -> None:
        self._work = work
        self._known: dict[str, tuple[float, Principal]] = {}

    async def principal(self, metadata: Iterable[tuple[str, str | bytes]]) -> Principal:
        """The caller. Raises Denied TOKEN_INVALID, the same for every fault of a token."""
        refused = Denied("TOKEN_INVALID", "the call needs a valid token: authorization: Bearer animus_…")
        values = [value for key, value in metadata if key == "authorization"]
        if len(values) != 1 or not isinstance(values[0], str):
            raise refused
        scheme, _, token = values[0].partition(" ")
        match = TOKEN.fullmatch(token)
        if scheme.lower() != "bearer" or not match:
            raise refused
        digest = sha256(token.encode())
        now = time.monotonic()
        known = self._known.get(digest)
        if known and known[0] > now:
            return known[1]
        found = await self._work.find_token(digest)
        if found is None or found[0] != match[1]:
            raise refused
        registration = document.load(found[1], Token)
        principal = Principal(registration.principal, registration.role, found[0])
        if len(self._known) >= TOKEN_CACHE_SIZE:
            self._known.clear()
        self._known[digest] = (now + TOKEN_CACHE_SECONDS, principal)
        return principal


Serve = Callable[[Any, Caller], Awaitable[Message | Answer]]


class Calls:
    """Makes grpc handlers of servicers."""

    def __init__(self, work: UnitOfWork, telemetry: Telemetry, timeout_seconds: float) -> None:
        self._work = work
        self._identity = Identity(work)
        self._telemetry = telemetry
        self._timeout_seconds = timeout_seconds
        self._open = 0
        self._last_end = 0.0
        self._draining = False

    async def drain(self, seconds: float) -> None:
        """Refuses new calls with a reason, and waits, for so long at most, until none has been open for a moment.

        grpc's own shutdown answers calls that it has received and not yet handed over with CANCELLED, which does not
        say that a retry is safe: this lets them be handed over first.
        """
        self._draining = True
        self._last_end = time.monotonic()
        end = time.monotonic() + seconds
        while time.monotonic() < end and (self._open or time.monotonic() < self._last_end + QUIET_SECONDS):  # noqa: ASYNC110 (a quiet time has no event)
            await asyncio.sleep(QUIET_SECONDS / 4)

    def handler(self, descriptor: ServiceDescriptor, servicer: object) -> grpc.GenericRpcHandler:
        """The handler of a service. Raises LookupError for a method that the servicer or the access table lacks."""
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        for method in descriptor.methods:
            name = f"{descriptor.full_name}/{method.name}"
            serve: Serve | None = getattr(servicer, method.name, None)
            if serve is None or name not in METHODS:
                raise LookupError(f"{name} has no {'row in the access table' if serve else 'implementation'}")
            handlers[method.name] = grpc.unary_unary_rpc_method_handler(self._serve(name, method, serve))
        return grpc.method_handlers_generic_handler(descriptor.full_name, handlers)

    def _serve(
        self, name: str, method: MethodDescriptor, serve: Serve
    ) -> Callable[[bytes, grpc.aio.ServicerContext[Any, Any]], Awaitable[bytes]]:
        request_class = GetMessageClass(method.input_type)
        has_project = "project_id" in method.input_type.fields_by_name
        mutates = "request_id" in method.input_type.fields_by_name

        async def answer(data: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
            self._open += 1
            try:
                return await respond(data, context)
            finally:
                self._open -= 1
                self._last_end = time.monotonic()

        async def respond(data: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
            metadata = [(str(key), value) for key, value in context.invocation_metadata() or ()]
            with self._telemetry.call(name, metadata) as trace:
                trailing = [("animus-trace-id", trace.trace_id)]
                try:
                    if self._draining:
                        raise Unavailable("DRAINING", "the server is shutting down: call another, or repeat later")
                    async with asyncio.timeout(self._timeout_seconds):
                        caller = Caller(await self._identity.principal(metadata), name)
                        trace.principal = caller.principal.name
                        request = _parse(request_class, data)
                        if has_project:
                            trace.project = request.project_id  # type: ignore[attr-defined]
                        await self._admit(caller, request, has_project=has_project, mutates=mutates)
                        if mutates:
                            trace.request_id = request.request_id  # type: ignore[attr-defined]
                        result = await serve(request, caller)
                except DomainError as error:
                    status = status_of(error)
                    trace.end(code_of(error).name, error.reason)
                except TimeoutError:
                    late = Unavailable("DEADLINE", "the call took too long: repeat it with the same request_id")
                    status = status_of(late)
                    trace.end(code_of(late).name, late.reason)
                except asyncio.CancelledError:
                    trace.end("CANCELLED", "")
                    raise
                except Exception:  # a defect: the caller learns where to look, the log learns all
                    log.exception("call failed", trace_id=trace.trace_id, method=name)
                    status = internal_status(trace.trace_id)
                    trace.end("INTERNAL", "INTERNAL")
                else:
                    trace.end("OK", "")
                    if isinstance(result, Answer):
                        if result.replayed:
                            trailing.append(("animus-replayed", "true"))
                        context.set_trailing_metadata(tuple(trailing))
                        return result.reply
                    context.set_trailing_metadata(tuple(trailing))
                    return result.SerializeToString()
                rich = rpc_status.to_status(status)
                context.set_trailing_metadata((*trailing, *rich.trailing_metadata))
                await context.abort(rich.code, rich.details)
                raise AssertionError("abort returned")

        return answer

    async def _admit(self, caller: Caller, request: Any, *, has_project: bool, mutates: bool) -> None:
        """Role first, then project, then the fields that every request of its kind has."""
        roles = METHODS[caller.method]
        if caller.principal.role not in roles:
            error = Denied(
                "ROLE_MISSING",
                f"the role {caller.principal.role} does not include this method",
                role=caller.principal.role,
                roles=", ".join(sorted(roles)),
            )
            await self._audit_denial(caller, request, error)
            raise error
        if has_project:
            check_resource_id(request.project_id, "projectId")
            if not caller.principal.sees(request.project_id):
                unknown = project_unknown(request.project_id)
                await self._audit_denial(caller, request, Denied(unknown.reason, unknown.message))
                raise unknown
        if mutates:
            check_request_id(request.request_id, "requestId")

    async def _audit_denial(self, caller: Caller, request: Message, error: Denied) -> None:
        """In the log of the caller's own token, so that it tells nothing of the project that was asked for."""
        await self._work.record_refusal(
            Call(caller.method, caller.principal.project_id, caller.principal, "", False, request_bytes(request)),
            error,
        )


def _parse(request_class: type[Message], data: bytes) -> Message:
    try:
        request = request_class.FromString(data)
    except DecodeError:
        raise Invalid(
            [Violation("", "the bytes are no message of this method's request type")], "REQUEST_MALFORMED"
        ) from None
    refuse_unknown(request)
    return request
