"""Traces, metrics and logs of calls. Logs are JSON and name request, trace, project and principal, nothing else.

Prometheus metrics are always kept; OpenTelemetry traces and metrics only where an OTLP endpoint is set. A dead
collector delays nothing: export happens on threads of its own, and shutdown waits for it briefly.
"""

import logging
import re
import secrets
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

if TYPE_CHECKING:
    from opentelemetry.metrics import Histogram as OtelHistogram
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")  # W3C Trace Context §3.2
EXPORT_SECONDS = 2  # a collector that takes longer is dead to us

log = structlog.get_logger("animus.calls")


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
            "animus.project": trace.project,
            "animus.principal": trace.principal,
            "animus.request_id": trace.request_id,
        }
    )
    if trace.code in ("INTERNAL", "UNKNOWN"):
        span.set_status(Status(StatusCode.ERROR))
    span.end()


def configure_logs(level: str, form: str) -> None:
    """Sends every log of the process to stderr: `json` one object a line, `text` for people."""
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
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, last],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.getLogger("uvicorn.access").disabled = True
