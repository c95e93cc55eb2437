"""Errors as callers see them: the status code, and the typed details of AIP-193. The only mapping there is."""

import math

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from animus.domain.errors import Conflict, Denied, DomainError, Invalid, NotFound, Refused, Unavailable

DOMAIN = "animus"
# gRPC carries details in trailing metadata, of which clients take 8 KiB by default; base64 and the rest need room.
MAX_TEXT = 1_000  # characters of one text
MAX_VIOLATIONS_BYTES = 3_000

CODES: dict[type[DomainError], grpc.StatusCode] = {
    Invalid: grpc.StatusCode.INVALID_ARGUMENT,
    NotFound: grpc.StatusCode.NOT_FOUND,
    Conflict: grpc.StatusCode.ALREADY_EXISTS,
    Refused: grpc.StatusCode.FAILED_PRECONDITION,
    Denied: grpc.StatusCode.PERMISSION_DENIED,
    Unavailable: grpc.StatusCode.UNAVAILABLE,
}
CODES_BY_REASON = {
    "TOKEN_INVALID": grpc.StatusCode.UNAUTHENTICATED,
    "CONTENTION": grpc.StatusCode.ABORTED,
    "BUSY": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "RATE_LIMITED": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "ETAG_STALE": grpc.StatusCode.ABORTED,
    "DEADLINE": grpc.StatusCode.DEADLINE_EXCEEDED,
    "LOG_DAMAGED": grpc.StatusCode.DATA_LOSS,
}


def code_of(error: DomainError) -> grpc.StatusCode:
    """The status code of an error."""
    return CODES_BY_REASON.get(error.reason) or CODES[type(error)]


def status_of(error: DomainError) -> status_pb2.Status:
    """The rich status of an error. Long texts are cut, and violations left out beyond what callers can receive."""
    metadata = {key: _cut(value) for key, value in error.details.items()}
    details: list[Message] = [error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata)]
    if isinstance(error, Invalid):
        details.append(_bad_request(error))
    elif isinstance(error, NotFound):
        details.append(error_details_pb2.ResourceInfo(resource_type=error.kind, resource_name=_cut(error.name)))
    elif isinstance(error, Refused):
        details.append(_precondition_failure(error))
    elif isinstance(error, Unavailable):
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMicroseconds(math.ceil(error.retry_seconds * 1_000_000))
        details.append(retry)
    return _status(code_of(error), _cut(error.message), details)


def _bad_request(error: Invalid) -> error_details_pb2.BadRequest:
    found = error_details_pb2.BadRequest()
    for violation in error.violations:
        found.field_violations.add(field=_cut(violation.field), description=_cut(violation.description))
        if found.ByteSize() > MAX_VIOLATIONS_BYTES and len(found.field_violations) > 1:
            del found.field_violations[-1]
            break
    return found


def _precondition_failure(error: Refused) -> error_details_pb2.PreconditionFailure:
    found = error_details_pb2.PreconditionFailure()
    for each in error.preconditions:
        found.violations.add(type=error.reason, subject=each.subject, description=_cut(each.description))
        if found.ByteSize() > MAX_VIOLATIONS_BYTES and len(found.violations) > 1:
            del found.violations[-1]
            break
    return found


def _cut(text: str) -> str:
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"


def internal_status(trace_id: str) -> status_pb2.Status:
    """The status of a defect: nothing of its cause, and where to find it."""
    return _status(
        grpc.StatusCode.INTERNAL,
        "a defect of the control plane; its log has the cause under this trace_id",
        [error_details_pb2.ErrorInfo(reason="INTERNAL", domain=DOMAIN, metadata={"trace_id": trace_id})],
    )


def _status(code: grpc.StatusCode, message: str, details: list[Message]) -> status_pb2.Status:
    status = status_pb2.Status(code=code.value[0], message=message)
    for detail in details:
        packed = Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status
