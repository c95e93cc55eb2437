"""AuditService."""

from collections.abc import AsyncIterator
from functools import partial

from google.api import httpbody_pb2

from animus.codec import decode_time, encode
from animus.domain.audit import AuditEntry
from animus.domain.document import load
from animus.domain.errors import NotFound
from animus.domain.log import MAX_SIZE
from animus.domain.names import check_length, check_within
from animus.domain.run import check_random_id
from animus.service.calls import Caller
from animus.service.log_growth import LogGrowth
from animus.service.log_leaves import check_place, data_of, missing
from animus.service.pages import Pages, asked_of, selected_by
from animus.store.filter import order_of
from animus.store.log import StoredLeaf
from animus.store.records import StoredEntry
from animus.store.unit_of_work import UnitOfWork, View
from animus.v1 import audit_pb2 as pb

NDJSON = "application/x-ndjson"
BATCH = 500  # entries of a stream read at once


class AuditService:
    """Reads the audit log."""

    def __init__(self, work: UnitOfWork, pages: Pages, growth: LogGrowth) -> None:
        self.work = work
        self.pages = pages
        self.growth = growth

    async def ListAuditEntries(
        self, request: pb.ListAuditEntriesRequest, caller: Caller
    ) -> pb.ListAuditEntriesResponse:
        """Lists entries by time."""
        check_length(request.resource, 0, 1_000, "resource")
        query_of = (caller.method, request.project_id, request.resource, *asked_of(request))
        size, place = self.pages.size(request), self.pages.place(request, *query_of)
        key = ("time", "entry_id")
        tree, order = selected_by(AuditEntry, request, key) or (None, order_of(AuditEntry, (), key))

        async def query(view: View) -> pb.ListAuditEntriesResponse:
            reply = pb.ListAuditEntriesResponse()
            found = await view.select_entries(tree, order, place, size + 1, request.resource)
            for stored, _ in found[:size]:
                _fill(reply.audit_entries.add(), stored)
            if len(found) > size:
                reply.next_page_token = self.pages.token(found[size - 1][1], *query_of)
            return reply

        return await self.work.read(request.project_id, query)

    async def GetAuditEntry(self, request: pb.GetAuditEntryRequest, caller: Caller) -> pb.AuditEntry:
        """Returns an entry."""
        check_random_id(request.entry_id, "entryId")
        name = f"projects/{request.project_id}/auditEntries/{request.entry_id}"

        async def query(view: View) -> pb.AuditEntry:
            found = await view.audit_entry(request.entry_id)
            if found is None:
                raise NotFound("AUDIT_ENTRY_UNKNOWN", "the log has no entry of this id", kind="AuditEntry", name=name)
            return _fill(pb.AuditEntry(), found)

        return await self.work.read(request.project_id, query)

    async def TailAuditEntries(
        self, request: pb.TailAuditEntriesRequest, caller: Caller
    ) -> AsyncIterator[pb.AuditEntry]:
        """Streams entries by index, and waits for more."""
        check_within(request.first_index, 0, MAX_SIZE, "firstIndex")
        at = request.first_index
        while True:
            leaves = await self.work.read(request.project_id, partial(_leaves, first=at))
            for leaf in leaves:
                check_place(leaf, at)
                data = data_of(leaf, at)
                yield _fill(pb.AuditEntry(), StoredEntry(load(data, AuditEntry), data, leaf.leaf_hash, at))
                at += 1
            if not leaves:
                await self.growth.wait_size(request.project_id, at + 1)

    async def ExportAuditEntries(
        self, request: pb.ExportAuditEntriesRequest, caller: Caller
    ) -> AsyncIterator[httpbody_pb2.HttpBody]:
        """Streams the entries that meet the conditions as lines of JSON."""
        check_within(request.first_index, 0, MAX_SIZE, "firstIndex")
        where = {"principal": request.principal, "action": request.action, "resource": request.resource}
        for name, value in where.items():
            check_length(value, 0, 1_000, name)
        if request.HasField("start_time"):
            where["start_time"] = decode_time(request.start_time, "startTime")
        if request.HasField("end_time"):
            where["end_time"] = decode_time(request.end_time, "endTime")
        size = (await self.work.read(request.project_id, lambda view: view.log.size())).size
        sent = False
        for first in range(request.first_index, size, BATCH):
            end = min(first + BATCH, size)
            found = await self.work.read(request.project_id, partial(_entries, first=first, end=end, where=where))
            lines = []
            for index, (leaf, meets) in zip(range(first, end), found, strict=False):
                check_place(leaf, index)
                if meets:
                    lines.append(_line(leaf, index))
            if len(found) < end - first:
                raise missing(first + len(found))
            if lines:
                sent = True
                yield httpbody_pb2.HttpBody(content_type=NDJSON, data=b"".join(lines))
        if not sent:  # so that the answer has a type
            yield httpbody_pb2.HttpBody(content_type=NDJSON)


async def _leaves(view: View, *, first: int) -> list[StoredLeaf]:
    return await view.log.leaves(first, first + BATCH)


async def _entries(view: View, *, first: int, end: int, where: dict[str, str]) -> list[tuple[StoredLeaf, bool]]:
    return await view.log.entries(first, end, where)


def _line(leaf: StoredLeaf, index: int) -> bytes:
    return b'{"entry":%b,"index":%d,"leafHash":"%b"}\n' % (data_of(leaf, index), index, leaf.leaf_hash.hex().encode())


def _fill(message: pb.AuditEntry, stored: StoredEntry) -> pb.AuditEntry:
    encode(stored.value, message)
    message.document = stored.document
    message.leaf_hash = stored.leaf_hash.hex()
    if stored.index is not None:
        message.index = stored.index
    return message
