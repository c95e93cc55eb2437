"""EnvironmentService."""

from animus.domain.environment import EnvironmentLock
from animus.domain.names import check_digest, environment_lock_name
from animus.service.calls import Caller, call_of, decode_field, register, resource
from animus.service.pages import Pages
from animus.store.unit_of_work import Answer, UnitOfWork, View
from animus.v1 import environment_pb2 as pb


class EnvironmentService:
    """Registers and reads environment locks."""

    def __init__(self, work: UnitOfWork, pages: Pages) -> None:
        self.work = work
        self.pages = pages

    async def RegisterEnvironmentLock(self, request: pb.RegisterEnvironmentLockRequest, caller: Caller) -> Answer:
        """Registers a lock, or finds it registered."""
        lock = decode_field(request, "environment_lock", "environmentLock", EnvironmentLock)
        decide = register(lock, "environment_lock.register", environment_lock_name, caller, pb.EnvironmentLock)
        return await self.work.change(call_of(caller, request), decide)

    async def GetEnvironmentLock(self, request: pb.GetEnvironmentLockRequest, caller: Caller) -> pb.EnvironmentLock:
        """Returns a lock."""
        check_digest(request.digest, "digest")
        name = environment_lock_name(request.project_id, request.digest)

        async def query(view: View) -> pb.EnvironmentLock:
            return resource(await view.need(EnvironmentLock, name, digest=request.digest), name, pb.EnvironmentLock())

        return await self.work.read(request.project_id, query)

    async def ListEnvironmentLocks(
        self, request: pb.ListEnvironmentLocksRequest, caller: Caller
    ) -> pb.ListEnvironmentLocksResponse:
        """Lists locks by digest, without packages."""

        async def query(view: View) -> pb.ListEnvironmentLocksResponse:
            reply = pb.ListEnvironmentLocksResponse()
            page = await self.pages.read(view, EnvironmentLock, ("digest",), request, caller.method)
            for stored in page.items:
                name = environment_lock_name(view.project_id, stored.digest)
                resource(stored, name, reply.environment_locks.add()).ClearField("packages")
            reply.next_page_token = page.next_token(lambda stored: (stored.digest,))
            return reply

        return await self.work.read(request.project_id, query)
