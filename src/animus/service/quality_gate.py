"""QualityGateService."""

from animus.domain.document import seal
from animus.domain.errors import NotFound
from animus.domain.names import check_resource_id, distinct, quality_gate_name, quality_rule_name
from animus.domain.quality import EVALUATOR, QualityRule
from animus.domain.quality_gate import QualityGate
from animus.service.calls import Caller, call_of, decode_field, new_record, resource
from animus.service.pages import Pages
from animus.store.records import unknown
from animus.store.unit_of_work import Answer, Change, UnitOfWork, View
from animus.v1 import quality_gate_pb2 as pb

NEWEST = ("-set_time", "-digest")


class QualityGateService:
    """Sets and reads quality gates. RunService applies them."""

    def __init__(self, work: UnitOfWork, pages: Pages) -> None:
        self.work = work
        self.pages = pages

    async def SetQualityGate(self, request: pb.SetQualityGateRequest, caller: Caller) -> Answer:
        """Sets the gate of a project or a pipeline, whose rules are registered."""

        async def decide(view: View) -> Change:
            gate = decode_field(request, "quality_gate", "qualityGate", QualityGate, set_time=view.time)
            rules = distinct(each.rule_digest for each in gate.requirements if each.evaluator == EVALUATOR)
            if rules:
                known = await view.known(QualityRule, rules)
                for digest in rules:
                    if digest not in known:
                        raise unknown(QualityRule, quality_rule_name(view.project_id, digest))
            sealed = seal(gate)
            name = quality_gate_name(view.project_id, sealed.digest)
            reply = resource(new_record(view, caller, sealed), name, pb.QualityGate())
            return Change("quality_gate.set", name, (sealed,), (), reply)

        return await self.work.change(call_of(caller, request), decide)

    async def GetQualityGate(self, request: pb.GetQualityGateRequest, caller: Caller) -> pb.QualityGate:
        """Returns the gate that governs now."""
        if request.pipeline:
            check_resource_id(request.pipeline, "pipeline")

        async def query(view: View) -> pb.QualityGate:
            newest = await view.page(QualityGate, NEWEST, (), 1, pipeline=request.pipeline)
            if not newest:
                of = f"of the pipeline {request.pipeline}" if request.pipeline else "of the project"
                raise NotFound("QUALITY_GATE_UNKNOWN", f"no gate {of} was ever set", kind="QualityGate", name=of)
            return resource(newest[0], quality_gate_name(view.project_id, newest[0].digest), pb.QualityGate())

        return await self.work.read(request.project_id, query)

    async def ListQualityGates(
        self, request: pb.ListQualityGatesRequest, caller: Caller
    ) -> pb.ListQualityGatesResponse:
        """Lists the gates that were ever set, the newest first."""

        async def query(view: View) -> pb.ListQualityGatesResponse:
            reply = pb.ListQualityGatesResponse()
            page = await self.pages.read(view, QualityGate, NEWEST, request, caller.method)
            for stored in page.items:
                resource(stored, quality_gate_name(view.project_id, stored.digest), reply.quality_gates.add())
            reply.next_page_token = page.next_token(lambda last: (last.value.set_time, last.digest))
            return reply

        return await self.work.read(request.project_id, query)
