"""Follows a log across restarts of its server, without gap or repeat."""

import time
from collections.abc import Callable, Iterator

import grpc

from animus.domain.merkle import leaf_hash
from animus.sdk.client import CallFailed
from animus.sdk.contradiction import Contradiction, Finding
from animus.sdk.leaves import place_of
from animus.sdk.source import Server
from animus.v1 import audit_pb2

PAUSE_SECONDS = 0.25  # before the second try; doubled for each after it
LONGEST_PAUSE_SECONDS = 10.0
PASSING = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.ABORTED,
)


def follow(server: Server, index: int, say: Callable[[str], None]) -> Iterator[bytes]:
    """Entries from an index on, as lines of JSON: `entry` as it was hashed, `index`, `leafHash`.

    Does not end by itself. What keeps the server from answering is said once, until it answers again. Raises
    Contradiction for an entry that is not the next or not what its hash says, and CallFailed for what will not pass.
    """
    pause = PAUSE_SECONDS
    while True:
        request = audit_pb2.TailAuditEntriesRequest(project_id=server.project_id, first_index=index)
        try:
            for entry in server.audit.TailAuditEntries(request):
                yield _line(entry, index)
                index += 1
                pause = PAUSE_SECONDS
        except grpc.RpcError as error:
            failed = CallFailed(error)
            if failed.code is grpc.StatusCode.DATA_LOSS:
                raise Contradiction(Finding.DAMAGED, place_of(index), f"cannot be had: {failed}") from None
            if failed.code not in PASSING:
                raise failed from None
            if pause == PAUSE_SECONDS:
                say(f"waiting for the server, to go on at index {index}: {failed}")
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)


def _line(entry: audit_pb2.AuditEntry, index: int) -> bytes:
    if entry.index != index:
        raise Contradiction(Finding.WRONG_ENTRY, place_of(index), f"was asked for, and the server sent {entry.index}")
    digest = leaf_hash(entry.document).hex()
    if entry.leaf_hash != digest:
        raise Contradiction(Finding.DIFFERENT_LEAF, place_of(index), "has another leaf hash than its document")
    return b'{"entry":%b,"index":%d,"leafHash":"%b"}\n' % (entry.document, index, digest.encode())
