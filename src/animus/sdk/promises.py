"""Turns receipts into proofs that the promise was kept, or into evidence that it was not."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

import grpc

from animus.domain.audit import AuditEntry
from animus.domain.checkpoint import TlogProof
from animus.domain.errors import Invalid
from animus.domain.merkle import check_inclusion
from animus.domain.names import parse_time
from animus.domain.note import Key, load_note
from animus.domain.receipt import Receipt, load_receipt
from animus.sdk.client import CallFailed
from animus.sdk.contradiction import Contradiction, Finding
from animus.sdk.heads import KnownHead
from animus.sdk.proofs import check_extends, consistency, inclusion
from animus.sdk.receipts import Kept
from animus.sdk.source import CHECKPOINT, Head, Server, Source, call, load_head, split_origin
from animus.signing import verify_checkpoint, verify_receipt
from animus.v1 import log_pb2

NOT_YET = ("ENTRY_PENDING", "CHECKPOINT_UNKNOWN")  # the second while the log has no checkpoint at all
KeysFor = Callable[[str], tuple[Key, ...]]  # the trusted keys of a log by its origin; none where it is unknown


class Outcome(StrEnum):
    """What became of a promise that was not broken."""

    INCLUDED = "INCLUDED"  # there is a proof
    PENDING = "PENDING"  # it may still be kept


@dataclass(frozen=True, slots=True)
class Promise:
    """What a receipt says, once its signature was found good."""

    kept: Kept
    receipt: Receipt

    @property
    def place(self) -> str:
        """What it is called in messages."""
        return f"receipt {self.kept.line} ({self.receipt.entry_id})"


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a promise."""

    kept: Kept
    receipt: Receipt | None  # None where it could not be read
    outcome: Outcome | Finding
    description: str
    proof: TlogProof | None


def check_receipt(kept: Kept, keys_for: KeysFor) -> Promise | Result:
    """The promise of a receipt that a trusted key has signed; else what is wrong with it."""
    receipt: Receipt | None = None
    try:
        receipt = load_receipt(load_note(kept.note).text)
        keys = keys_for(receipt.origin)
        if not keys:
            return Result(kept, receipt, Finding.UNKNOWN_LOG, f"no trusted key is of the log {receipt.origin}", None)
        return Promise(kept, verify_receipt(kept.note, keys))
    except Invalid as error:
        return Result(kept, receipt, Finding.BAD_SIGNATURE, error.message, None)


def origin_of(kept: Kept) -> str:
    """Which log a receipt says it is of; empty where it cannot be read."""
    try:
        return load_receipt(load_note(kept.note).text).origin
    except Invalid:
        return ""


class ServerPromises:
    """Checks promises against the server of one project's log."""

    def __init__(self, server: Server, keys_for: KeysFor, wait_seconds: float) -> None:
        self._server = server
        self._keys_for = keys_for
        self._wait_seconds = wait_seconds
        self._origin = server.log().origin
        self._checked: dict[bytes, Head] = {}
        self._largest: Head | None = None  # of the heads that proofs were for

    def check_known(self, known: Iterable[KnownHead]) -> None:
        """Raises Contradiction unless the heads that proofs were for go on from those known of this epoch."""
        head = self._largest
        for each in known:
            checkpoint = each.checkpoint
            if head is None or checkpoint.origin != head.checkpoint.origin:
                continue
            if checkpoint.size > head.checkpoint.size:
                head = self._head(self._server.head(checkpoint.size).note)
            hashes = consistency(self._server, head, checkpoint.size)
            check_extends(hashes, checkpoint.size, checkpoint.root_hash, head)

    def check(self, promise: Promise) -> Result:
        """What became of a promise. Raises CallFailed, and Contradiction where the server contradicts itself."""
        receipt = promise.receipt
        base, epoch = split_origin(receipt.origin)
        its_base, its_epoch = split_origin(self._origin)
        if base != its_base or epoch > its_epoch:
            return _result(promise, Finding.UNKNOWN_LOG, f"the server's log is {self._origin}, not {receipt.origin}")
        try:
            proof = self._proof(receipt)
        except CallFailed as failed:
            if failed.reason not in ("AUDIT_ENTRY_UNKNOWN", *NOT_YET):
                raise
            if epoch < its_epoch and failed.reason == "AUDIT_ENTRY_UNKNOWN":
                return _lost(promise, self._origin, str(failed))
            return _absent(promise, datetime.now(UTC), f"the server says: {failed}")
        except Contradiction as contradiction:  # of this entry; that of others may still be shown
            return _result(promise, contradiction.finding, contradiction.description)
        return self._judge(promise, proof)

    def _proof(self, receipt: Receipt) -> log_pb2.InclusionProof:
        """The server's proof; while the promise may still be kept, after a wait."""
        request = log_pb2.GetInclusionProofRequest(project_id=self._server.project_id, entry_id=receipt.entry_id)
        try:
            return call(self._server.stub.GetInclusionProof, request)
        except CallFailed as failed:
            pending = failed
            left = (parse_time(receipt.promised_by) - datetime.now(UTC)).total_seconds()
            if failed.reason not in NOT_YET or left <= 0:
                raise
        end = time.monotonic() + min(left, self._wait_seconds)
        wait = log_pb2.WaitForInclusionRequest(project_id=self._server.project_id, entry_id=receipt.entry_id)
        while True:
            try:
                return call(self._server.stub.WaitForInclusion, wait, seconds=max(end - time.monotonic(), 1.0))
            except CallFailed as failed:
                if failed.code is not grpc.StatusCode.DEADLINE_EXCEEDED:
                    raise
                if time.monotonic() >= end:
                    raise pending from None

    def _judge(self, promise: Promise, proof: log_pb2.InclusionProof) -> Result:
        receipt = promise.receipt
        if proof.leaf_hash != receipt.leaf_hash.hex():
            return _result(
                promise,
                Finding.DIFFERENT_LEAF,
                f"the log has the leaf {proof.leaf_hash} for it, and {receipt.leaf_hash.hex()} was promised",
            )
        head = self._head(proof.checkpoint.note)
        size, root = head.checkpoint.size, head.checkpoint.root_hash
        hashes = tuple(proof.hashes)
        try:
            check_inclusion(hashes, proof.index, size, receipt.leaf_hash, root)
        except Invalid as error:
            raise Contradiction(Finding.WRONG_TILE, f"the server's proof for {promise.place}", error.message) from None
        return _included(promise, TlogProof(proof.index, hashes, b"", head.note), head)

    def _head(self, note: bytes) -> Head:
        """The head of a note that a trusted key of this log has signed."""
        if note in self._checked:
            return self._checked[note]
        head = load_head(CHECKPOINT, note)
        if split_origin(head.checkpoint.origin)[0] != split_origin(self._origin)[0]:
            raise Contradiction(Finding.UNKNOWN_LOG, CHECKPOINT, f"is of the log {head.checkpoint.origin}")
        try:
            verify_checkpoint(note, self._keys_for(head.checkpoint.origin))
        except Invalid as error:
            raise Contradiction(Finding.BAD_SIGNATURE, CHECKPOINT, error.message) from None
        self._checked = {note: head}  # the newest is asked for again and again
        if self._largest is None or head.checkpoint.size > self._largest.checkpoint.size:
            self._largest = head
        return head


class LogPromises:
    """Checks promises while a whole log is verified: give `watch` to the verification, and then ask for `results`."""

    def __init__(self, promises: Iterable[Promise]) -> None:
        self._promises = list(promises)
        self._wanted = {promise.receipt.entry_id for promise in self._promises}
        self._found: dict[str, tuple[int, bytes]] = {}
        self._last_time = ""

    def watch(self, index: int, entry: AuditEntry, leaf_hash: bytes) -> None:
        """Takes note of an entry."""
        self._last_time = max(self._last_time, entry.time)
        if entry.entry_id in self._wanted:
            self._found[entry.entry_id] = (index, leaf_hash)

    def results(self, source: Source, head: Head) -> Iterator[Result]:
        """What became of each promise, by a head that was verified. Raises Contradiction where no proof can be made."""
        base, epoch = split_origin(head.checkpoint.origin)
        for promise in self._promises:
            receipt = promise.receipt
            its_base, its_epoch = split_origin(receipt.origin)
            found = self._found.get(receipt.entry_id)
            if its_base != base or its_epoch > epoch:
                yield _result(promise, Finding.UNKNOWN_LOG, f"this is {head.checkpoint.origin}, not {receipt.origin}")
            elif found is None and its_epoch < epoch:
                yield _lost(promise, head.checkpoint.origin, "no entry of its id is there")
            elif found is None:
                # An entry of a later time than the promise shows that the log has gone on without this one.
                yield (
                    _absent(promise, parse_time(self._last_time), "this is the time of the log's last entry")
                    if (self._last_time)
                    else _result(promise, Outcome.PENDING, "the log is empty")
                )
            elif found[1] != receipt.leaf_hash:
                yield _result(
                    promise,
                    Finding.DIFFERENT_LEAF,
                    f"the log has the leaf {found[1].hex()} for it, and {receipt.leaf_hash.hex()} was promised",
                )
            else:
                yield _included(promise, inclusion(source, head, *found), head)


def _result(promise: Promise, outcome: Outcome | Finding, description: str, proof: TlogProof | None = None) -> Result:
    return Result(promise.kept, promise.receipt, outcome, description, proof)


def _included(promise: Promise, proof: TlogProof, head: Head) -> Result:
    epoch = "" if promise.receipt.origin == head.checkpoint.origin else f" of {head.checkpoint.origin}"
    return _result(
        promise, Outcome.INCLUDED, f"at index {proof.index} of the {head.checkpoint.size} leaves{epoch}", proof
    )


def _absent(promise: Promise, now: datetime, why: str) -> Result:
    promised_by = promise.receipt.promised_by
    if now <= parse_time(promised_by):
        return _result(promise, Outcome.PENDING, f"is promised by {promised_by}; {why}")
    return _result(
        promise,
        Finding.NOT_INCLUDED_IN_TIME,
        f"was promised by {promised_by}, and is in no checkpoint at {now.isoformat(timespec='seconds')}; {why}",
    )


def _lost(promise: Promise, origin: str, why: str) -> Result:
    return _result(
        promise,
        Finding.LOST_IN_RESTORE,
        f"was promised in epoch {split_origin(promise.receipt.origin)[1]}, and {origin} lacks it: an older "
        f"database was restored ({why})",
    )
