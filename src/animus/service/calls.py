"""How a call is served: trace, errors, identity, limits, access, in this order around every method of every service.

Methods are found from the contract's descriptors, and each must have a row in the access table, or the server does
not start. Request bytes are parsed here, because grpc.aio answers malformed ones with exception text; one that holds a
credential is refused before anything is made of it. Whatever was written to the audit log is answered with a receipt
for it, an error too.
"""

import asyncio
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

import grpc
import structlog
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from grpc_status import rpc_status

from animus.codec import decode, decode_all, encode, refuse_secrets, refuse_unknown, request_bytes, timestamp
from animus.domain.access import METHODS, CredentialKind, Principal, Role, Rule, Scope
from animus.domain.audit import Logged
from animus.domain.document import Sealed, join, seal
from animus.domain.errors import Denied, DomainError, Invalid, NotFound, Unavailable, Violation, invalid
from animus.domain.names import RANDOM_ID, RESOURCE_ID, check_pattern, check_request_id, check_resource_id, run_name
from animus.domain.run import Run
from animus.service.certificates import presented
from animus.service.identity import Identity
from animus.service.limits import Limits, Place, counted_for
from animus.service.status import code_of, internal_status, status_of
from animus.store.records import Stored, unknown
from animus.store.unit_of_work import Answer, Call, Change, Decide, UnitOfWork, View, project_unknown
from animus.telemetry import CallTrace, Telemetry
from animus.v1 import types_pb2

QUIET_SECONDS = 0.1
RECEIPT = "animus-audit-receipt-bin"
PUSHBACK = (
    "grpc-retry-pushback-ms"  # gRFC A6: by it, a client that repeats calls by itself waits as long as RetryInfo says
)
STREAM_IDENTITY_SECONDS = 1.0  # so long may a stream go on with a credential or a role that has ended

log = structlog.get_logger("animus.calls")
Value = TypeVar("Value")
M = TypeVar("M", bound=Message)
Method = TypeVar("Method", bound=Callable[..., Any])


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


def decode_field(request: Message, name: str, path: str, kind: type[Value], **given: str | int) -> Value:
    """The value of a message field of a request. Raises Invalid when it is absent.

    `given` are fields that the server sets: a caller leaves them out.
    """
    if not request.HasField(name):
        raise invalid(path, "is missing")
    return decode(getattr(request, name), kind, path, **given)


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


def completed_by(complete: Callable[[Any, Principal], None]) -> Callable[[Method], Method]:
    """Marks a method whose request may leave out what follows from the rest and from who calls.

    It is completed before anything is checked, and counts as if the caller had said all of it.
    """

    def mark(serve: Method) -> Method:
        serve.complete = complete  # type: ignore[attr-defined]
        return serve

    return mark


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


Serve = Callable[[Any, Caller], Awaitable[Message | Answer]]
ServeStream = Callable[[Any, Caller], AsyncGenerator[Message | Answer, None]]
Receipts = Callable[[Logged], bytes]
Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(slots=True)
class Served:
    """A call on its way: its trace, its metadata, and what its caller is to be told at the end."""

    trace: CallTrace
    metadata: list[tuple[str, str | bytes]]
    certificate: str  # of the client, in PEM; empty where there is none
    trailing: list[tuple[str, str | bytes]]


class Calls:
    """Makes grpc handlers of servicers."""

    def __init__(
        self,
        work: UnitOfWork,
        telemetry: Telemetry,
        limits: Limits,
        identity: Identity,
        timeout_seconds: float,
        stream_timeout_seconds: float,
        receipt: Receipts,
    ) -> None:
        """`receipt` signs the promise to publish an entry of a project."""
        self._work = work
        self._identity = identity
        self._telemetry = telemetry
        self._limits = limits
        self._timeout_seconds = timeout_seconds
        self._stream_timeout_seconds = stream_timeout_seconds
        self._receipt = receipt
        self._open = 0
        self._last_end = 0.0
        self._draining = asyncio.Event()

    async def drain(self, seconds: float) -> None:
        """Refuses new calls with a reason, and waits, for so long at most, until none has been open for a moment.

        grpc's own shutdown answers calls that it has received and not yet handed over with CANCELLED, which does not
        say that a retry is safe: this lets them be handed over first. Streams end at once, with the same reason.
        """
        self._draining.set()
        self._last_end = time.monotonic()
        end = time.monotonic() + seconds
        while time.monotonic() < end and (self._open or time.monotonic() < self._last_end + QUIET_SECONDS):  # noqa: ASYNC110 (a quiet time has no event)
            await asyncio.sleep(QUIET_SECONDS / 4)

    def handler(self, descriptor: ServiceDescriptor, servicer: object) -> grpc.GenericRpcHandler:
        """The handler of a service. Raises LookupError for a method that the servicer or the access table lacks."""
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        for method in descriptor.methods:
            name = f"{descriptor.full_name}/{method.name}"
            serve: Any = getattr(servicer, method.name, None)
            if serve is None or name not in METHODS:
                raise LookupError(f"{name} has no {'row in the access table' if serve else 'implementation'}")
            if method.server_streaming:
                handlers[method.name] = grpc.unary_stream_rpc_method_handler(self._serve_stream(name, method, serve))
            else:
                handlers[method.name] = grpc.unary_unary_rpc_method_handler(self._serve(name, method, serve))
        return grpc.method_handlers_generic_handler(descriptor.full_name, handlers)

    def _serve(self, name: str, method: MethodDescriptor, serve: Serve) -> Callable[[bytes, Context], Awaitable[bytes]]:
        admit = self._admission(method, getattr(serve, "complete", None))

        async def answer(data: bytes, context: Context) -> bytes:
            async with self._served(name, context) as served:
                async with asyncio.timeout(self._timeout_seconds):
                    caller = await self._caller(name, served)
                    async with self._limits.place(counted_for(caller.principal, data)):
                        request = await admit(data, caller, served)
                        result = await serve(request, caller)
                if not isinstance(result, Answer):
                    return result.SerializeToString()
                self._answered(served, result)
                return result.reply
            raise AssertionError("an error was aborted with")

        return answer

    def _serve_stream(
        self, name: str, method: MethodDescriptor, serve: ServeStream
    ) -> Callable[[bytes, Context], AsyncIterator[bytes]]:
        admit = self._admission(method, getattr(serve, "complete", None))
        has_project = "project_id" in method.input_type.fields_by_name

        async def answer(data: bytes, context: Context) -> AsyncIterator[bytes]:
            began = checked = time.monotonic()
            async with self._served(name, context) as served:
                async with asyncio.timeout(self._timeout_seconds):
                    caller = await self._caller(name, served)
                project_id = counted_for(caller.principal, data)

                async def check() -> None:
                    nonlocal checked
                    if time.monotonic() >= began + self._stream_timeout_seconds:
                        raise Unavailable("DEADLINE", "the stream took too long: go on from where it ended")
                    if time.monotonic() >= checked + STREAM_IDENTITY_SECONDS:
                        principal = await self._identity.principal(served.metadata, served.certificate)
                        if principal.grants != caller.principal.grants:
                            await self._admit(Caller(principal, name), request, has_project=has_project, mutates=False)
                        checked = time.monotonic()

                with self._limits.stream(project_id):
                    async with self._limits.place(project_id) as place:
                        async with asyncio.timeout(self._timeout_seconds):
                            request = await admit(data, caller, served)
                        async with aclosing(serve(request, caller)) as messages:
                            while (message := await self._next(messages, place, check)) is not None:
                                if isinstance(message, Answer):  # of the stream's own change: told at its end
                                    self._answered(served, message)
                                else:
                                    yield message.SerializeToString()

        return answer

    async def _caller(self, name: str, served: Served) -> Caller:
        """Who calls; the call counts against its rate. Raises Denied or Unavailable."""
        caller = Caller(await self._identity.principal(served.metadata, served.certificate), name)
        served.trace.principal = caller.principal.name
        self._limits.charge(caller.principal)
        return caller

    async def _next(
        self, messages: AsyncIterator[Message | Answer], place: Place, check: Callable[[], Awaitable[None]]
    ) -> Message | Answer | None:
        """The next message of a stream, or None at its end. Raises Unavailable as soon as the server shuts down.

        It has a slot while it is made, and none while the caller takes it. `check` is called before a message is
        handed over, and now and then while there is none; what it raises passes.
        """

        async def make() -> Message | Answer | None:
            await place.run(None)  # a stream that has begun is not given up for being slow
            try:
                return await anext(messages, None)
            finally:
                place.rest()

        coming = asyncio.ensure_future(make())
        draining = asyncio.ensure_future(self._draining.wait())
        try:
            while not coming.done():
                await asyncio.wait(
                    {coming, draining}, timeout=STREAM_IDENTITY_SECONDS, return_when=asyncio.FIRST_COMPLETED
                )
                if draining.done() and not coming.done():
                    raise _draining()
                await check()
            return coming.result()
        finally:
            for task in (coming, draining):
                task.cancel()
            await asyncio.gather(coming, draining, return_exceptions=True)

    @asynccontextmanager
    async def _served(self, name: str, context: Context) -> AsyncIterator[Served]:
        """Around a call: counts it as open, traces it, and ends it with the status of whatever it raises."""
        self._open += 1
        metadata = [(str(key), value) for key, value in context.invocation_metadata() or ()]
        try:
            with self._telemetry.call(name, metadata) as trace:
                served = Served(trace, metadata, presented(context, metadata), [("animus-trace-id", trace.trace_id)])
                try:
                    if self._draining.is_set():
                        raise _draining()
                    yield served
                except DomainError as error:
                    status = status_of(error)
                    trace.end(code_of(error).name, error.reason)
                    if isinstance(error, Unavailable) and code_of(error) is grpc.StatusCode.RESOURCE_EXHAUSTED:
                        served.trailing.append((PUSHBACK, str(math.ceil(error.retry_seconds * 1_000))))
                    self._promise(served, error.logged)
                except TimeoutError:
                    late = Unavailable("DEADLINE", "the call took too long: repeat it with the same request_id")
                    status = status_of(late)
                    trace.end(code_of(late).name, late.reason)
                except (asyncio.CancelledError, GeneratorExit):
                    trace.end("CANCELLED", "")
                    raise
                except Exception:  # a defect: the caller learns where to look, the log learns all
                    log.exception("call failed", trace_id=trace.trace_id, method=name)
                    status = internal_status(trace.trace_id)
                    trace.end("INTERNAL", "INTERNAL")
                else:
                    trace.end("OK", "")
                    context.set_trailing_metadata(tuple(served.trailing))
                    return
                rich = rpc_status.to_status(status)
                context.set_trailing_metadata((*served.trailing, *rich.trailing_metadata))
                await context.abort(rich.code, rich.details)
        finally:
            self._open -= 1
            self._last_end = time.monotonic()

    def _answered(self, served: Served, answer: Answer) -> None:
        """Says at the end of the call what became of its change."""
        if answer.replayed:
            served.trailing.append(("animus-replayed", "true"))
        self._promise(served, answer.logged)

    def _promise(self, served: Served, logged: Logged | None) -> None:
        """Gives the caller a receipt. The entry is committed by now: from here on its absence could be proven."""
        if logged is not None:
            served.trailing.append((RECEIPT, self._receipt(logged)))

    def _admission(
        self, method: MethodDescriptor, complete: Callable[[Any, Principal], None] | None
    ) -> Callable[[bytes, Caller, Served], Awaitable[Any]]:
        """What comes before a method, once it has a slot: the request of the bytes, and whether the caller may."""
        request_class = GetMessageClass(method.input_type)
        has_project = "project_id" in method.input_type.fields_by_name
        mutates = "request_id" in method.input_type.fields_by_name

        async def admit(data: bytes, caller: Caller, served: Served) -> Any:
            request: Any = _parse(request_class, data)
            if complete is not None:
                complete(request, caller.principal)
            if has_project and RESOURCE_ID.fullmatch(request.project_id):  # logs hold no text of any length
                served.trace.project = request.project_id
            await self._admit(caller, request, has_project=has_project, mutates=mutates)
            if mutates:
                served.trace.request_id = request.request_id
            return request

        return admit

    async def _admit(self, caller: Caller, request: Any, *, has_project: bool, mutates: bool) -> None:
        """Project first, then role, then run, then the fields that every request of its kind has."""
        rule, principal = METHODS[caller.method], caller.principal
        project_id = request.project_id if has_project and rule.scope is Scope.PROJECT else ""
        if has_project:
            check_resource_id(request.project_id, "projectId")
        if project_id and not principal.roles(project_id):
            await self._deny(caller, request, project_unknown(project_id))
        held = _roles(principal, rule, project_id)
        if not rule.roles & held:
            await self._deny(caller, request, _role_missing(rule, held))
        if principal.credential is CredentialKind.RUN_TOKEN:
            if not rule.run_token:
                error = Denied("ROLE_MISSING", "a token of one run does not include this method", roles="")
                await self._deny(caller, request, error)
            if getattr(request, "run_id", principal.run_id) != principal.run_id:
                check_pattern(RANDOM_ID, request.run_id, "runId", "is no run id")
                await self._deny(caller, request, unknown(Run, run_name(project_id, request.run_id)))
        if mutates:
            check_request_id(request.request_id, "requestId")

    async def _deny(self, caller: Caller, request: Message, error: Denied | NotFound) -> NoReturn:
        """Refuses a call, on the record.

        In the log of the project that the caller's roles are in, so that it tells nothing of the one asked for.
        """
        principal = caller.principal
        asked = getattr(request, "project_id", "")
        home = asked if principal.grants.get(asked) else principal.project_id
        call = Call(caller.method, home, principal, "", False, request_bytes(request))
        denied = error if isinstance(error, Denied) else Denied(error.reason, error.message)
        error.logged = await self._work.record_refusal(call, denied)
        raise error


def _roles(principal: Principal, rule: Rule, project_id: str) -> frozenset[Role]:
    """The roles that count for a method."""
    match rule.scope:
        case Scope.ANYONE:
            return rule.roles
        case Scope.ANYWHERE:
            return principal.all_roles
        case Scope.PROJECT:
            return principal.roles(project_id)
        case Scope.INSTANCE:
            return principal.of_instance


def _role_missing(rule: Rule, held: frozenset[Role]) -> Denied:
    roles = ", ".join(sorted(rule.roles))
    own = ", ".join(sorted(held)) or "none"
    return Denied("ROLE_MISSING", f"this method needs one of the roles {roles}; yours: {own}", roles=roles, held=own)


def _draining() -> Unavailable:
    return Unavailable("DRAINING", "the server is shutting down: call another, or repeat later")


def _parse(request_class: type[Message], data: bytes) -> Message:
    try:
        request = request_class.FromString(data)
    except DecodeError:
        raise Invalid(
            [Violation("", "the bytes are no message of this method's request type")], "REQUEST_MALFORMED"
        ) from None
    refuse_unknown(request)
    refuse_secrets(request, data)
    return request
