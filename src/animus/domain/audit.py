"""Audit entries: what was changed or refused, by whom, when. One for each call, in the transaction of its change."""

from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar


class AuditOutcome(StrEnum):
    """How a call came out."""

    ACCEPTED = "accepted"
    UNCHANGED = "unchanged"
    REFUSED = "refused"
    DENIED = "denied"


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """A record that a change wrote: what it is and the digest of its canonical bytes."""

    kind: str
    digest: str


@dataclass(frozen=True, slots=True)
class AuditRefusal:
    """An item of a batch that was refused: its place, from 0, and why."""

    index: int
    reason: str


@dataclass(frozen=True, slots=True)
class RecordManifest:
    """The records of a change that wrote too many to name them in its entry; itself a record."""

    SCHEMA: ClassVar[str] = "animus.record_manifest/v1"

    records: tuple[AuditRecord, ...]


@dataclass(frozen=True, slots=True)
class Logged:
    """An entry that was committed: what its receipt promises to publish."""

    project_id: str
    entry_id: str
    leaf_hash: bytes
    time: str


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """A leaf of the project's log. Personal data never enters it: principals are account names."""

    SCHEMA: ClassVar[str] = "animus.audit_entry/v1"

    project_id: str
    entry_id: str
    principal: str
    action: str
    resource: str
    method: str
    request_id: str
    request_digest: str
    time: str
    outcome: AuditOutcome
    reason: str
    records: tuple[AuditRecord, ...]  # in the order of writing
    refusals: tuple[AuditRefusal, ...]
    reply_digest: str
