"""PipelineService."""

from animus.domain.document import digest, dump
from animus.domain.errors import Invalid
from animus.domain.names import check_digest, check_resource_id, pipeline_spec_name
from animus.domain.pipeline import PipelineSpec
from animus.service.calls import Caller, call_of, decode_field, register, resource
from animus.service.pages import Pages
from animus.store.unit_of_work import Answer, UnitOfWork, View
from animus.v1 import pipeline_pb2 as pb


class PipelineService:
    """Registers, validates and reads pipeline specs."""

    def __init__(self, work: UnitOfWork, pages: Pages) -> None:
        self.work = work
        self.pages = pages

    async def RegisterPipelineSpec(self, request: pb.RegisterPipelineSpecRequest, caller: Caller) -> Answer:
        """Registers a spec, or finds it registered."""
        spec = decode_field(request, "pipeline_spec", "pipelineSpec", PipelineSpec)
        decide = register(spec, "pipeline_spec.register", pipeline_spec_name, caller, pb.PipelineSpec)
        return await self.work.change(call_of(caller, request), decide)

    async def ValidatePipelineSpec(
        self, request: pb.ValidatePipelineSpecRequest, caller: Caller
    ) -> pb.ValidatePipelineSpecResponse:
        """Says what is wrong with a spec: here the violations are the answer, not an error."""
        reply = pb.ValidatePipelineSpecResponse()
        try:
            spec = decode_field(request, "pipeline_spec", "pipelineSpec", PipelineSpec)
            reply.digest = digest(dump(spec))
        except Invalid as error:
            for violation in error.violations:
                reply.violations.add(
                    field=violation.field.removeprefix("pipelineSpec").removeprefix("."),
                    description=violation.description,
                )
        return reply

    async def GetPipelineSpec(self, request: pb.GetPipelineSpecRequest, caller: Caller) -> pb.PipelineSpec:
        """Returns a spec."""
        check_digest(request.digest, "digest")
        name = pipeline_spec_name(request.project_id, request.digest)

        async def query(view: View) -> pb.PipelineSpec:
            return resource(await view.need(PipelineSpec, name, digest=request.digest), name, pb.PipelineSpec())

        return await self.work.read(request.project_id, query)

    async def ListPipelineSpecs(
        self, request: pb.ListPipelineSpecsRequest, caller: Caller
    ) -> pb.ListPipelineSpecsResponse:
        """Lists specs by digest, without their steps."""
        where = {}
        if request.name:
            check_resource_id(request.name, "name")
            where["name"] = request.name

        async def query(view: View) -> pb.ListPipelineSpecsResponse:
            reply = pb.ListPipelineSpecsResponse()
            page = await self.pages.read(view, PipelineSpec, ("digest",), request, caller.method, **where)
            for stored in page.items:
                name = pipeline_spec_name(view.project_id, stored.digest)
                resource(stored, name, reply.pipeline_specs.add()).ClearField("spec")
            reply.next_page_token = page.next_token(lambda stored: (stored.digest,))
            return reply

        return await self.work.read(request.project_id, query)
