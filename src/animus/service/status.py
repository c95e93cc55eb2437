"""Errors as callers see them: the status code, and the typed details of AIP-193. The only mapping there is."""

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from animus.domain.errors import Conflict, Denied, DomainError, Invalid, NotFound, Refused, Unavailable

DOMAIN = "animus"
RETRY_AFTER_SECONDS = 1

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
    "DEADLINE": grpc.StatusCode.DEADLINE_EXCEEDED,
}


def code_of(error: DomainError) -> grpc.StatusCode:
    """The status code of an error."""
    return CODES_BY_REASON.get(error.reason) or CODES[type(error)]


def status_of(error: DomainError) -> status_pb2.Status:
    """The rich status of an error."""
    details: list[Message] = [error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.details)]
    if isinstance(error, Invalid):
        details.append(
            error_details_pb2.BadRequest(
                field_violations=[
                    error_details_pb2.BadRequest.FieldViolation(field=v.field, description=v.description)
                    for v in error.violations
                ]
            )
        )
    elif isinstance(error, NotFound):
        details.append(error_details_pb2.ResourceInfo(resource_type=error.kind, resource_name=error.name))
    elif isinstance(error, Refused):
        details.append(
            error_details_pb2.PreconditionFailure(
                violations=[
                    error_details_pb2.PreconditionFailure.Violation(
                        type=error.reason, subject=error.subject, description=error.message
                    )
                ]
            )
        )
    elif isinstance(error, Unavailable):
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.seconds = RETRY_AFTER_SECONDS
        details.append(retry)
    return _status(code_of(error), error.message, details)


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
