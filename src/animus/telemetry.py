"""Traces, metrics and logs of calls. Logs are JSON and name request, trace, project and principal, nothing else.

Prometheus metrics are always kept; OpenTelemetry traces and metrics only where an OTLP endpoint is set. A dead
collector delays nothing: export happens on threads of its own, and shutdown waits for it briefly.

Whatever is logged passes `redact` last, the text of exceptions and other libraries' lines too: what looks like a
credential, the values of keys that are called like one, and the secrets of this process (`conceal`) are taken out. The
attributes of spans pass the same functions; metrics are labelled with words of the contract only.
"""

import logging
import re
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from animus.domain.secrets import MASK, mask

if TYPE_CHECKING:
    from opentelemetry.metrics import Histogram as OtelHistogram
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")  # W3C Trace Context §3.2
EXPORT_SECONDS = 2  # a collector that takes longer is dead to us
LEAST_CONCEALED = 6  # characters: what is shorter stands in too much that is no secret
SECRET_KEY = re.compile(r"(?i)(?:^|[_.-])(?:authorization|cookie|credential|passw(?:or)?d|secret|token|api[_-]?key)s?$")
BEARER = re.compile(r"(?i)\b(bearer\s{1,9})[A-Za-z0-9._~+/=-]{16,}")  # RFC 6750 §2.1
LIBPQ_PASSWORD = re.compile(r"(?i)\b(password=)[^\s'\",;&]+")
ROW_DETAIL = re.compile(r"\b(DETAIL:\s)(?s:.*?)(?=\nHINT:|\n\[SQL|\n\n|\Z)")  # PostgreSQL quotes the values of a row

log = structlog.get_logger("animus.calls")
_concealed: set[str] = set()


@dataclass(slots=True)
class CallTrace:
    """What is known of a call while it is served."""

    trace_id: str
    principal: str
    project: str
    request_id: str
    code: str
    reason: str

    def end(self, code: str, reason: str) -> None:
        """Says how the call came out."""
        self.code = code
        self.reason = reason


class Telemetry:
    """Counts, times and logs calls."""

    def __init__(self, otlp_endpoint: str) -> None:
        self.registry = CollectorRegistry()
        self._calls = Counter("animus_calls", "Calls served.", ["method", "code"], registry=self.registry)
        self._seconds = Histogram("animus_call_seconds", "Time to serve a call.", ["method"], registry=self.registry)
        self._tracers: TracerProvider | None = None
        self._meters: MeterProvider | None = None
        self._otel_seconds: OtelHistogram | None = None
        if otlp_endpoint:
            self._export_to(otlp_endpoint.rstrip("/"))

    @contextmanager
    def call(self, method: str, metadata: Iterable[tuple[str, str | bytes]]) -> Iterator[CallTrace]:
        """Follows one call from its metadata to its end."""
        parent = next((str(value) for key, value in metadata if key == "traceparent"), "")
        match = TRACEPARENT.fullmatch(parent)
        span = self._start_span(method, match)
        trace_id = f"{span.get_span_context().trace_id:032x}" if span else match[1] if match else secrets.token_hex(16)
        trace = CallTrace(trace_id, "", "", "", "UNKNOWN", "")
        started = time.perf_counter()
        try:
            yield trace
        finally:
            seconds = time.perf_counter() - started
            self._calls.labels(method, trace.code).inc()
            self._seconds.labels(method).observe(seconds)
            if self._otel_seconds is not None:
                self._otel_seconds.record(seconds, {"rpc.method": method, "rpc.grpc.status_code": trace.code})
            if span is not None:
                _end_span(span, method, trace)
            log.info(
                "call",
                method=method,
                code=trace.code,
                reason=trace.reason,
                seconds=round(seconds, 6),
                trace_id=trace.trace_id,
                request_id=trace.request_id,
                project=trace.project,
                principal=trace.principal,
            )

    def follow(self, name: str, about: str, value: Callable[[], float]) -> None:
        """Shows a value that something else keeps, as it is when it is asked for."""
        Gauge(name, about, registry=self.registry).set_function(value)

    def close(self) -> None:
        """Hands over what was gathered, and waits at most two seconds for each of traces and metrics."""
        if self._tracers is not None:
            self._tracers.force_flush(EXPORT_SECONDS * 1_000)
        if self._meters is not None:
            self._meters.force_flush(EXPORT_SECONDS * 1_000)

    def _export_to(self, endpoint: str) -> None:
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        resource = Resource.create({"service.name": "animus"})
        self._tracers = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._tracers.add_span_processor(
            BatchSpanProcessor(OTLPSpanExporter(f"{endpoint}/v1/traces", timeout=EXPORT_SECONDS))
        )
        reader = PeriodicExportingMetricReader(OTLPMetricExporter(f"{endpoint}/v1/metrics", timeout=EXPORT_SECONDS))
        self._meters = MeterProvider([reader], resource=resource, shutdown_on_exit=False)
        self._otel_seconds = self._meters.get_meter("animus").create_histogram("rpc.server.duration", "s")

    def _start_span(self, method: str, parent: re.Match[str] | None) -> "Span | None":
        if self._tracers is None:
            return None
        from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, TraceFlags, set_span_in_context

        context = None
        if parent:
            remote = SpanContext(int(parent[1], 16), int(parent[2], 16), True, TraceFlags(int(parent[3], 16)))
            context = set_span_in_context(NonRecordingSpan(remote))
        return self._tracers.get_tracer("animus").start_span(method, context=context, kind=SpanKind.SERVER)


def _end_span(span: "Span", method: str, trace: CallTrace) -> None:
    from opentelemetry.trace.status import Status, StatusCode

    span.set_attributes(
        {
            "rpc.system": "grpc",
            "rpc.method": method,
            "rpc.grpc.status_code": trace.code,
            "animus.reason": trace.reason,
            "animus.project": redacted(trace.project),
            "animus.principal": redacted(trace.principal),
            "animus.request_id": redacted(trace.request_id),
        }
    )
    if trace.code in ("INTERNAL", "UNKNOWN"):
        span.set_status(Status(StatusCode.ERROR))
    span.end()


def conceal(*values: str) -> None:
    """Takes these secrets of the process out of everything that it logs from now on; very short ones it leaves."""
    _concealed.update(value for value in values if len(value) >= LEAST_CONCEALED)


def redacted(text: str) -> str:
    """A text as it may be logged."""
    for value in sorted(_concealed, key=len, reverse=True):
        text = text.replace(value, MASK)
    text = mask(text)
    for pattern in (BEARER, LIBPQ_PASSWORD, ROW_DETAIL):
        text = pattern.sub(rf"\1{MASK}", text)
    return text


def redact(_logger: object, _method: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
    """The processor of every line: keys and values of all depths, and what would be written of any other object."""
    return {redacted(str(key)): _redacted(key, value) for key, value in event.items()}


def _redacted(key: object, value: object) -> object:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(key, str) and SECRET_KEY.search(key):
        return MASK
    if isinstance(value, Mapping):
        return {redacted(str(inner)): _redacted(inner, item) for inner, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_redacted(key, item) for item in value]
    return redacted(value if isinstance(value, str) else repr(value))


class _Handler(logging.StreamHandler[Any]):
    """Writes to stderr; of a line that cannot be written it says that, where Python would print its arguments."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (the library's name)
        kind = sys.exc_info()[0]
        name = kind.__name__ if kind else ""
        sys.stderr.write(f"a line of {record.name} at {record.pathname}:{record.lineno} cannot be logged: {name}\n")


def _log_uncaught() -> None:
    """Sends what nothing caught, in any thread, and warnings to the log, where Python would print them."""
    uncaught = structlog.get_logger("animus.uncaught")

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            sys.__excepthook__(kind, error, trace)
        else:
            uncaught.critical("uncaught exception", exc_info=(kind, error, trace))

    def hook_of_thread(found: "threading.ExceptHookArgs | sys.UnraisableHookArgs") -> None:
        if found.exc_value is not None:
            hook(found.exc_type, found.exc_value, found.exc_traceback)

    sys.excepthook = hook
    threading.excepthook = hook_of_thread
    sys.unraisablehook = hook_of_thread
    logging.captureWarnings(True)


def configure_logs(level: str, form: str) -> None:
    """Sends every log of the process to stderr, redacted: `json` one object a line, `text` for people."""
    shared: list[structlog.types.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    last: structlog.types.Processor = (
        structlog.processors.JSONRenderer() if form == "json" else structlog.dev.ConsoleRenderer(colors=False)
    )
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = _Handler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, redact, last],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.getLogger("uvicorn.access").disabled = True
    _log_uncaught()
