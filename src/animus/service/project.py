"""ProjectService."""

from animus.domain.errors import Conflict, invalid
from animus.domain.names import INSTANCE_LOG, SYSTEM_PROJECT, project_name
from animus.domain.project import Project
from animus.service.calls import Caller, call_of, creation, decode_field, resource
from animus.service.pages import Pages, asked_of, selected_by
from animus.store.filter import order_of
from animus.store.records import Stored
from animus.store.unit_of_work import Answer, Change, UnitOfWork, View
from animus.v1 import project_pb2 as pb


class ProjectService:
    """Creates and reads projects."""

    def __init__(self, work: UnitOfWork, pages: Pages) -> None:
        self.work = work
        self.pages = pages

    async def CreateProject(self, request: pb.CreateProjectRequest, caller: Caller) -> Answer:
        """Creates a project; its first audit entry is its own creation."""
        project = decode_field(request, "project", "project", Project)
        if project.project_id != request.project_id:
            raise invalid("project.projectId", f"is not {request.project_id!r}, the projectId of the request")
        if project.project_id in (SYSTEM_PROJECT, INSTANCE_LOG):
            raise invalid("projectId", f"{project.project_id!r} is reserved for the instance")

        async def decide(view: View) -> Change:
            name = project_name(view.project_id)
            if view.project_known:
                raise Conflict("PROJECT_EXISTS", "a project of this id exists", name=name)
            return creation(view, caller, "project.create", name, project, pb.Project())

        return await self.work.change(call_of(caller, request), decide, creates_project=True)

    async def GetProject(self, request: pb.GetProjectRequest, caller: Caller) -> pb.Project:
        """Returns a project."""

        async def query(view: View) -> pb.Project:
            name = project_name(view.project_id)
            return resource(await _project(view), name, pb.Project())

        return await self.work.read(request.project_id, query)

    async def ListProjects(self, request: pb.ListProjectsRequest, caller: Caller) -> pb.ListProjectsResponse:
        """Lists what the caller sees: every project for instance roles, for others those that they have roles in."""
        query_of = (caller.method, caller.principal.name, *asked_of(request))
        size, place = self.pages.size(request), self.pages.place(request, *query_of)
        key = ("project_id",)
        tree, order = selected_by(Project, request, key) or (None, order_of(Project, (), key))
        own = None if caller.principal.of_instance else sorted(caller.principal.grants)
        found = await self.work.select_projects(own, tree, order, place, size + 1)
        reply = pb.ListProjectsResponse()
        for stored, _ in found[:size]:
            resource(stored, project_name(stored.value.project_id), reply.projects.add())
        if len(found) > size:
            reply.next_page_token = self.pages.token(found[size - 1][1], *query_of)
        return reply


async def _project(view: View) -> Stored[Project]:
    found = await view.find(Project)
    assert found is not None  # the unit of work has seen it
    return found
