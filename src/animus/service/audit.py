"""AuditService."""

from animus.codec import encode
from animus.domain.audit import AuditEntry
from animus.domain.document import load
from animus.domain.errors import NotFound
from animus.domain.names import check_length
from animus.domain.run import check_random_id
from animus.service.calls import Caller
from animus.service.pages import Pages
from animus.store.unit_of_work import UnitOfWork, View
from animus.v1 import audit_pb2 as pb


class AuditService:
    """Reads the audit log."""

    def __init__(self, work: UnitOfWork, pages: Pages) -> None:
        self.work = work
        self.pages = pages

    async def ListAuditEntries(
        self, request: pb.ListAuditEntriesRequest, caller: Caller
    ) -> pb.ListAuditEntriesResponse:
        """Lists entries by time."""
        check_length(request.resource, 0, 1_000, "resource")
        query_of = (caller.method, request.project_id, request.resource)
        size, place = self.pages.size(request), self.pages.place(request, *query_of)
        after = (str(place[0]), str(place[1])) if place else None

        async def query(view: View) -> pb.ListAuditEntriesResponse:
            reply = pb.ListAuditEntriesResponse()
            found = await view.audit_entries(after, size + 1, request.resource)
            for entry, document, leaf_hash in found[:size]:
                _fill(reply.audit_entries.add(), entry, document, leaf_hash)
            if len(found) > size:
                last = found[size - 1][0]
                reply.next_page_token = self.pages.token((last.time, last.entry_id), *query_of)
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
            return _fill(pb.AuditEntry(), load(found[0], AuditEntry), *found)

        return await self.work.read(request.project_id, query)


def _fill(message: pb.AuditEntry, entry: AuditEntry, document: bytes, leaf_hash: bytes) -> pb.AuditEntry:
    encode(entry, message)
    message.document = document
    message.leaf_hash = leaf_hash.hex()
    return message
