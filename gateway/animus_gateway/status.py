"""Errors over HTTP: google.rpc.Status as JSON, with the status code map of grpc-gateway.

An error that the gateway finds itself and one that a service answers have the same shape: `code`, `message` and
`details`, of which the first is a `google.rpc.ErrorInfo` whose reason is one of the contract's (errors.proto).
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import grpc.aio
from google.protobuf import json_format
from google.protobuf.message import DecodeError, Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

HTTP_STATUS: Mapping[int, int] = {
    code_pb2.OK: 200,
    code_pb2.CANCELLED: 499,
    code_pb2.UNKNOWN: 500,
    code_pb2.INVALID_ARGUMENT: 400,
    code_pb2.DEADLINE_EXCEEDED: 504,
    code_pb2.NOT_FOUND: 404,
    code_pb2.ALREADY_EXISTS: 409,
    code_pb2.PERMISSION_DENIED: 403,
    code_pb2.RESOURCE_EXHAUSTED: 429,
    code_pb2.FAILED_PRECONDITION: 400,
    code_pb2.ABORTED: 409,
    code_pb2.OUT_OF_RANGE: 400,
    code_pb2.UNIMPLEMENTED: 501,
    code_pb2.INTERNAL: 500,
    code_pb2.UNAVAILABLE: 503,
    code_pb2.DATA_LOSS: 500,
    code_pb2.UNAUTHENTICATED: 401,
}

# What is said where gRPC itself ended the call, so that no service gave a reason. The text that gRPC gives holds
# addresses, and in other servers the text of exceptions: it is never passed on.
_WITHOUT_DETAILS: Mapping[int, tuple[str, str]] = {
    code_pb2.UNAVAILABLE: (
        "DRAINING",
        "the control plane does not answer; the same call with the same request_id is safe to repeat",
    ),
    code_pb2.DEADLINE_EXCEEDED: (
        "DEADLINE",
        "the call took longer than the gateway allows; a change may have happened: repeat it with the same request_id",
    ),
    code_pb2.RESOURCE_EXHAUSTED: (
        "REQUEST_MALFORMED",
        "the call or its answer is larger than the gateway or the control plane accepts",
    ),
    code_pb2.UNIMPLEMENTED: ("REQUEST_MALFORMED", "the control plane does not serve this method"),
}
_NO_REASON = ("INTERNAL", "the control plane ended the call without a reason")
MAX_VIOLATIONS = 100


@dataclass(frozen=True, slots=True)
class Violation:
    """One field that breaks a rule: its path in JSON spelling, and what would be right."""

    field: str
    description: str


class Refusal(Exception):
    """A call that ends in an error: the google.rpc.Status to answer with, its HTTP status, and further headers."""

    def __init__(
        self, status: status_pb2.Status, *, http_status: int | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(status.message)
        self.status = status
        self.http_status = http_status or HTTP_STATUS.get(status.code, 500)
        self.headers = dict(headers or {})
        if self.http_status in (429, 503) and (seconds := _retry_seconds(status)):  # RFC 9110, 10.2.3
            self.headers.setdefault("Retry-After", str(seconds))
        if self.http_status == 401:  # RFC 9110, 15.5.2: a 401 names the scheme
            self.headers.setdefault("WWW-Authenticate", "Bearer")


def refusal(
    code: int,
    reason: str,
    message: str,
    *,
    details: Iterable[Message] = (),
    http_status: int | None = None,
    headers: Mapping[str, str] | None = None,
) -> Refusal:
    """A Refusal with an ErrorInfo of the domain `animus`, and the details given."""
    status = status_pb2.Status(code=code, message=message)
    status.details.add().Pack(error_details_pb2.ErrorInfo(domain="animus", reason=reason))
    for detail in details:
        status.details.add().Pack(detail)
    return Refusal(status, http_status=http_status, headers=headers)


def malformed(message: str, *, http_status: int | None = None) -> Refusal:
    """INVALID_ARGUMENT: the request is no message of the method's type, whatever its fields would say."""
    return refusal(code_pb2.INVALID_ARGUMENT, "REQUEST_MALFORMED", message, http_status=http_status)


def invalid(violations: Iterable[Violation]) -> Refusal:
    """INVALID_ARGUMENT: these fields break their rules; at least one."""
    listed = list(violations)
    request = error_details_pb2.BadRequest()
    for violation in listed:
        request.field_violations.add(field=violation.field, description=violation.description)
    first = f"{listed[0].field or 'the request'}: {listed[0].description}"
    more = f" (and {len(listed) - 1} more)" if len(listed) > 1 else ""
    return refusal(code_pb2.INVALID_ARGUMENT, "FIELD_INVALID", first + more, details=[request])


def internal() -> Refusal:
    """INTERNAL with a fixed text: what happened is in the log."""
    return refusal(code_pb2.INTERNAL, "INTERNAL", "a defect of the gateway; its log holds the cause")


def wrong_method(allowed: Iterable[str]) -> Refusal:
    """UNIMPLEMENTED, over HTTP 405: the path takes these methods only, which `Allow` lists."""
    allow = ", ".join(sorted(allowed))
    return refusal(
        code_pb2.UNIMPLEMENTED,
        "REQUEST_MALFORMED",
        f"this path takes {allow} only",
        http_status=405,
        headers={"Allow": allow},
    )


def from_call(error: grpc.aio.AioRpcError) -> Refusal:
    """What a failed gRPC call answers: the service's own status from `grpc-status-details-bin`, or a fixed text."""
    code: int = error.code().value[0]
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin" and isinstance(value, bytes):
            status = _parse(value)
            if status is not None and status.code == code:
                return Refusal(status)
    reason, message = _WITHOUT_DETAILS.get(code, _NO_REASON)
    return refusal(code, reason, message)


def _parse(value: bytes) -> status_pb2.Status | None:
    try:
        return status_pb2.Status.FromString(value)
    except DecodeError:
        return None  # not from our services: answered as a call without details


def _retry_seconds(status: status_pb2.Status) -> int:
    """When a service says to repeat the call: whole seconds, one at least; 0 where it says nothing."""
    retry = error_details_pb2.RetryInfo()
    for detail in status.details:
        if detail.Is(retry.DESCRIPTOR):
            try:
                detail.Unpack(retry)
            except DecodeError:
                return 0  # not from our services
            seconds: int = retry.retry_delay.seconds + (retry.retry_delay.nanos > 0)
            return max(1, seconds)
    return 0


def status_json(status: status_pb2.Status) -> bytes:
    """A status as JSON in UTF-8. A detail of a type that this gateway does not know keeps its bytes, as base64."""
    details = []
    for detail in status.details:
        try:
            details.append(json_format.MessageToDict(detail, always_print_fields_with_no_presence=True))
        except (TypeError, DecodeError):
            details.append({"@type": detail.type_url, "value": base64.b64encode(detail.value).decode()})
    body = {"code": status.code, "message": status.message, "details": details}
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
