"""Whether the entries that a server lists are those of its log: none differs, none is outside, none is left out."""

import hashlib
import secrets
import time
from collections.abc import Callable, Collection

import grpc

from animus.codec import decode
from animus.domain import document, merkle
from animus.domain.audit import AuditEntry
from animus.domain.errors import Invalid
from animus.sdk.client import CallFailed
from animus.sdk.contradiction import Contradiction, Finding
from animus.sdk.leaves import place_of
from animus.sdk.source import PAGE, Head, Server, call
from animus.v1 import audit_pb2, log_pb2

MARK_BYTES = 8
ABSENT = bytes(MARK_BYTES)


class Listing:
    """What ListAuditEntries shows, as eight bytes for each entry: a keyed hash, so that no server can aim at them."""

    def __init__(self, server: Server, accepted: Collection[str]) -> None:
        """`accepted` are the ids of entries that may stand outside the log, such as those that an operator gave up."""
        self._server = server
        self._accepted = accepted
        self.outside: list[str] = []  # those of them that do
        self._key = secrets.token_bytes(16)
        self._marks = bytearray()  # of the entries up to the size that the log had at the start
        self._later: dict[int, bytes] = {}
        self._pending: dict[str, bytes] = {}  # leaf hash by entry

    def collect(self, wait_seconds: float, progress: Callable[[int], None]) -> Head:
        """Reads the list, waits until all that it shows has its place, and returns a head that covers it.

        Raises Contradiction for an entry that is not what it says, or that has no place after so many seconds.
        """
        self._marks = bytearray(MARK_BYTES * self._server.newest().checkpoint.size)
        request = audit_pb2.ListAuditEntriesRequest(project_id=self._server.project_id, page_size=PAGE)
        while True:
            page = call(self._server.audit.ListAuditEntries, request)
            for entry in page.audit_entries:
                self._take(entry)
            progress(len(page.audit_entries))
            if not page.next_page_token:
                break
            request.page_token = page.next_page_token
        end = time.monotonic() + wait_seconds
        for entry_id, leaf_hash in self._pending.items():
            if entry_id in self._accepted:
                self.outside.append(entry_id)
            else:
                self._wait(entry_id, leaf_hash, end)
        least = max(self._later, default=-1) + 1
        try:
            head = self._server.head(least)
        except CallFailed as failed:
            if failed.reason != "LOG_TOO_SMALL":
                raise
            raise Contradiction(Finding.OUTSIDE, place_of(least - 1), f"is listed, and {failed}") from None
        if head.checkpoint.size < least:
            raise Contradiction(
                Finding.OUTSIDE, place_of(least - 1), f"is listed, and the log has {head.checkpoint.size} leaves"
            )
        return head

    def watch(self, index: int, entry: AuditEntry, leaf_hash: bytes) -> None:
        """Raises Contradiction unless the list shows this leaf at its index."""
        place = MARK_BYTES * index
        if place < len(self._marks):
            mark = bytes(self._marks[place : place + MARK_BYTES])
            if mark == ABSENT:
                raise Contradiction(
                    Finding.HIDDEN,
                    f"{place_of(index)} ({entry.entry_id})",
                    "is not listed by ListAuditEntries",
                )
        else:
            mark = self._later.get(index, b"")
            if not mark:
                return  # newer than the list
        if mark != self._mark(leaf_hash):
            raise Contradiction(
                Finding.DIFFERENT_LEAF,
                f"{place_of(index)} ({entry.entry_id})",
                "is another in the log than ListAuditEntries shows at this index",
            )

    def _take(self, entry: audit_pb2.AuditEntry) -> None:
        place = f"listed entry {entry.entry_id}"
        leaf_hash = merkle.leaf_hash(entry.document)
        if entry.leaf_hash != leaf_hash.hex():
            raise Contradiction(Finding.DIFFERENT_LEAF, place, "has another leaf hash than its document")
        try:
            shown = decode(entry, AuditEntry, "")
            logged = document.load(entry.document, AuditEntry)
        except Invalid as error:
            raise Contradiction(Finding.WRONG_ENTRY, place, f"is no audit entry: {error.message}") from None
        if shown != logged:
            raise Contradiction(Finding.DIFFERENT_LEAF, place, "shows other fields than its document has")
        if entry.HasField("index"):
            self._keep(entry.index, leaf_hash)
        else:
            self._pending[entry.entry_id] = leaf_hash

    def _keep(self, index: int, leaf_hash: bytes) -> None:
        at = MARK_BYTES * index
        if index < 0:
            raise Contradiction(Finding.OUTSIDE, place_of(index), "is listed, and no log has such an index")
        if at >= len(self._marks):
            self._later[index] = self._mark(leaf_hash)
        elif self._marks[at : at + MARK_BYTES] in (ABSENT, mark := self._mark(leaf_hash)):
            self._marks[at : at + MARK_BYTES] = mark
        else:
            raise Contradiction(Finding.DIFFERENT_LEAF, place_of(index), "is listed twice, with different documents")

    def _wait(self, entry_id: str, leaf_hash: bytes, end: float) -> None:
        request = log_pb2.WaitForInclusionRequest(project_id=self._server.project_id, entry_id=entry_id)
        while True:
            left = end - time.monotonic()
            try:
                proof = call(self._server.stub.WaitForInclusion, request, seconds=max(left, 1.0))
            except CallFailed as failed:
                late = failed.code is grpc.StatusCode.DEADLINE_EXCEEDED
                if late and end - time.monotonic() > 0:
                    continue  # the server's own limit is shorter
                if late or failed.reason == "AUDIT_ENTRY_UNKNOWN":
                    raise Contradiction(
                        Finding.OUTSIDE, f"listed entry {entry_id}", "has no place in the log: nobody logged it"
                    ) from None
                raise
            if proof.leaf_hash != leaf_hash.hex():
                raise Contradiction(
                    Finding.DIFFERENT_LEAF, f"listed entry {entry_id}", "is another in the log than in the list"
                )
            self._keep(proof.index, leaf_hash)
            return

    def _mark(self, leaf_hash: bytes) -> bytes:
        return hashlib.blake2b(leaf_hash, digest_size=MARK_BYTES, key=self._key).digest()
