"""The six kinds of errors that a caller can meet. Each carries a reason of the contract (`errors.proto`).

The kind decides the status code, the reason is what a client branches on, the message says what to do, and every
value in the message is in `details` too. Anything else that is raised is a defect.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from animus.domain.audit import Logged


class DomainError(Exception):
    """Base of the six kinds; never raised itself."""

    def __init__(self, reason: str, message: str, **details: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.details = details
        self.logged: Logged | None = None  # the entry that says of the refusal, where there is one


@dataclass(frozen=True, slots=True)
class Violation:
    """One field that breaks its rule: its path in JSON spelling, and what would be right."""

    field: str
    description: str


class Invalid(DomainError):
    """INVALID_ARGUMENT: fields break their rules, whatever the state of things."""

    def __init__(self, violations: Iterable[Violation], reason: str = "FIELD_INVALID") -> None:
        self.violations = tuple(violations)
        first = self.violations[0]
        more = len(self.violations) - 1
        super().__init__(
            reason,
            f"{first.field or 'the request'}: {first.description}" + (f" (and {more} more)" if more else ""),
        )


def invalid(field: str, description: str) -> Invalid:
    """An Invalid with one violation."""
    return Invalid([Violation(field, description)])


class NotFound(DomainError):
    """NOT_FOUND: the caller's project has no such thing. Another project's thing answers just the same."""

    def __init__(self, reason: str, message: str, *, kind: str, name: str, **details: str) -> None:
        super().__init__(reason, message, kind=kind, name=name, **details)
        self.kind = kind
        self.name = name


class Conflict(DomainError):
    """ALREADY_EXISTS: the id is taken by something else."""


@dataclass(frozen=True, slots=True)
class Precondition:
    """What does not hold: of what, by its full name, and what would be right."""

    subject: str
    description: str


class Refused(DomainError):
    """FAILED_PRECONDITION: well-formed, and not possible in the state of things."""

    def __init__(
        self,
        reason: str,
        message: str,
        *,
        subject: str,
        preconditions: Sequence[Precondition] = (),
        records: Sequence[Any] = (),
        **details: str,
    ) -> None:
        """Without preconditions of its own, the message is the one that the subject does not meet.

        The records, sealed values, are kept with the audit entry of the refusal.
        """
        super().__init__(reason, message, **details)
        self.subject = subject
        self.preconditions = tuple(preconditions) or (Precondition(subject, message),)
        self.records = tuple(records)


class Denied(DomainError):
    """UNAUTHENTICATED (`TOKEN_INVALID`) or PERMISSION_DENIED: for who called, not for what was asked."""


class Unavailable(DomainError):
    """UNAVAILABLE, ABORTED or RESOURCE_EXHAUSTED by its reason: the same call may succeed later."""

    def __init__(self, reason: str, message: str, retry_seconds: float = 1, /, **details: str) -> None:
        """`retry_seconds` is when to repeat it."""
        super().__init__(reason, message, **details)
        self.retry_seconds = retry_seconds
