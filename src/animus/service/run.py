"""RunService."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from animus.codec import decode_all, encode
from animus.domain.comparison import ComparedRun, check_other_run, compare_runs
from animus.domain.document import Sealed, digest, dump, load, seal
from animus.domain.dry_run import MAX_SCENARIOS, Scenario, compare, simulate
from animus.domain.errors import Invalid, NotFound, Precondition, Refused, Violation
from animus.domain.labels import Label, sorted_labels
from animus.domain.lineage import edge_of_replay, edges_of_gates, edges_of_run
from animus.domain.names import (
    admission_refusal_name,
    attempt_name,
    check_count,
    check_digest,
    check_length,
    comparison_name,
    dataset_version_name,
    distinct,
    plan_name,
    run_artifact_name,
    run_name,
    sorted_set,
)
from animus.domain.pipeline import PipelineSpec
from animus.domain.plan import ExecutionPlan, make_plan
from animus.domain.quality import QualityEvaluation, QualityOutcome, QualitySeverity, QualityVerdict
from animus.domain.run import (
    NO_GATES,
    AdmissionDecision,
    AdmissionGateCheck,
    AdmissionOutcome,
    AdmissionRefusal,
    Artifact,
    GateFacts,
    Metric,
    Run,
    RunSpec,
    admit,
    check_bindings,
    check_random_id,
)
from animus.domain.state import RunEventType, RunState, derive_state
from animus.service.calls import Caller, at_path, call_of, decode_field, new_record, record_of, register, resource
from animus.service.pages import Pages
from animus.service.run_state import LoadedRun, RunStates
from animus.store.records import RunSpecFacts, Stored, unknown
from animus.store.unit_of_work import Answer, Change, UnitOfWork, View
from animus.v1 import run_pb2 as pb

MAX_EXPLAINED = 10  # evaluations of which a refusal says what does not hold
MAX_NAMED = 5  # checks of one that it names

Evaluations = Mapping[str, QualityEvaluation]  # by digest

UNKNOWN_BY_CHECK = {
    "pipeline-spec-registered": "PIPELINE_SPEC_UNKNOWN",
    "environment-lock-registered": "ENVIRONMENT_LOCK_UNKNOWN",
    "dataset-version-registered": "DATASET_VERSION_UNKNOWN",
}


@dataclass(frozen=True, slots=True)
class _Asked:
    """A RunSpec that is to become a run."""

    caller: Caller
    action: str
    spec: Sealed[RunSpec]
    labels: tuple[Label, ...]
    sent_order: list[str]  # of dataset_refs
    replay_of: str  # empty for none
    override_reason: str  # empty where gates are not to be overridden


class RunService:
    """Creates, replays, compares, plans, simulates, cancels and reads runs."""

    def __init__(self, work: UnitOfWork, pages: Pages, states: RunStates) -> None:
        self.work = work
        self.pages = pages
        self.states = states

    async def CreateRun(self, request: pb.CreateRunRequest, caller: Caller) -> Answer:
        """Admits a RunSpec as a run."""
        spec = decode_field(request, "run_spec", "runSpec", RunSpec)
        labels = sorted_labels(decode_all(request.labels, Label, "labels"))
        sealed_spec = seal(spec)

        async def decide(view: View) -> Change:
            asked = _Asked(caller, "run.create", sealed_spec, labels, _sent_order(request), "", "")
            return await self._admitted(view, asked)

        return await self.work.change(call_of(caller, request), decide)

    async def CreateRunOverridingGates(self, request: pb.CreateRunOverridingGatesRequest, caller: Caller) -> Answer:
        """Admits a RunSpec as a run where gates refuse it, with a reason."""
        spec = decode_field(request, "run_spec", "runSpec", RunSpec)
        labels = sorted_labels(decode_all(request.labels, Label, "labels"))
        check_length(request.reason, 1, 2_000, "reason")
        sealed_spec = seal(spec)

        async def decide(view: View) -> Change:
            order = _sent_order(request)
            asked = _Asked(caller, "run.create_overriding_gates", sealed_spec, labels, order, "", request.reason)
            return await self._admitted(view, asked)

        return await self.work.change(call_of(caller, request), decide)

    async def ListAdmissionRefusals(
        self, request: pb.ListAdmissionRefusalsRequest, caller: Caller
    ) -> pb.ListAdmissionRefusalsResponse:
        """Lists the runs that gates refused, the newest first."""

        async def query(view: View) -> pb.ListAdmissionRefusalsResponse:
            reply = pb.ListAdmissionRefusalsResponse()
            order = ("-refuse_time", "-entry_id")
            page = await self.pages.read(view, AdmissionRefusal, order, request, caller.method)
            for stored in page.items:
                name = admission_refusal_name(view.project_id, stored.entry_id)
                resource(stored, name, reply.admission_refusals.add())
            reply.next_page_token = page.next_token(lambda last: (last.value.refuse_time, last.entry_id))
            return reply

        return await self.work.read(request.project_id, query)

    async def ReplayRun(self, request: pb.ReplayRunRequest, caller: Caller) -> Answer:
        """Admits the RunSpec of a run again, as a run that names it."""
        check_random_id(request.run_id, "runId")
        labels = sorted_labels(decode_all(request.labels, Label, "labels"))

        async def decide(view: View) -> Change:
            spec = (await view.run_facts(request.run_id, run_name(view.project_id, request.run_id))).spec
            refs = [binding.dataset_ref for binding in spec.datasets]
            asked = _Asked(caller, "run.replay", seal(spec), labels, refs, request.run_id, "")
            return await self._admitted(view, asked)

        return await self.work.change(call_of(caller, request), decide)

    async def _admitted(self, view: View, asked: _Asked) -> Change:
        """The change that makes a run of a RunSpec. Raises NotFound, Invalid and Refused where it is not let in."""
        sealed_spec, replay_of = asked.spec, asked.replay_of
        spec = sealed_spec.value
        facts = await view.run_spec_facts(spec, sealed_spec.digest)
        pipeline = await self._pipeline(view, spec, facts)
        gates = await _gates(view, spec, facts, pipeline)
        decision = _decide_admission(view.project_id, spec, facts, gates, asked.override_reason)
        for check in decision.refused():
            raise NotFound(
                UNKNOWN_BY_CHECK[check.name],
                f"runSpec.{check.field} names nothing of the project; register it first",
                kind=check.name,
                name=check.subject,
            )
        assert pipeline is not None  # nothing is unknown
        with at_path("runSpec"):
            check_bindings(spec, pipeline, asked.sent_order)
        if decision.outcome is AdmissionOutcome.REFUSED:
            raise _refused_by_gates(view, asked, decision, gates, await _explained(view, decision))
        run = Run(view.new_id(), sealed_spec.digest, view.time, asked.labels, decision, replay_of)
        sealed = seal(run)
        edges = (
            *edges_of_run(view.project_id, run.run_id, spec),
            *edges_of_gates(view.project_id, run.run_id, decision),
            *((edge_of_replay(view.project_id, run.run_id, replay_of),) if replay_of else ()),
        )
        records = (*(() if facts.run_spec_known else (sealed_spec,)), sealed, *map(seal, edges))
        reply = _run_message(view.project_id, new_record(view, asked.caller, sealed), RunState.CREATED, "")
        encode(spec, reply.run_spec)
        encode(decision, reply.admission)
        reply.equal_runs.extend(run_name(view.project_id, run_id) for run_id in facts.equal_runs)
        return Change(asked.action, run_name(view.project_id, run.run_id), records, (), reply)

    async def _pipeline(self, view: View, spec: RunSpec, facts: RunSpecFacts) -> PipelineSpec | None:
        """The pipeline of a RunSpec; None where the project has none such."""
        if not facts.pipeline_known:
            return None
        return (await self.states.pipeline(view, spec.pipeline_spec_digest)).spec

    async def CompareRuns(self, request: pb.CompareRunsRequest, caller: Caller) -> Answer:
        """Records how two runs compare, or finds that recorded."""
        check_random_id(request.run_id, "runId")
        check_other_run(request.run_id, request.other_run_id)

        def name_of(project_id: str, digest: str) -> str:
            return comparison_name(project_id, request.run_id, digest)

        async def decide(view: View) -> Change:
            this, other = await self._compared(view, request.run_id), await self._compared(view, request.other_run_id)
            registered = register(compare_runs(this, other), "run.compare", name_of, caller, pb.RunComparison)
            return replace(await registered(view), resource=run_name(view.project_id, request.run_id))

        return await self.work.change(call_of(caller, request), decide)

    async def _compared(self, view: View, run_id: str) -> ComparedRun:
        run = await self.states.load(view, run_id)
        pipeline = (await self.states.pipeline(view, run.facts.spec.pipeline_spec_digest)).spec
        return ComparedRun(run_id, run.facts.spec, pipeline, run.plan_digest, run.state, run.produced())

    async def GetRun(self, request: pb.GetRunRequest, caller: Caller) -> pb.Run:
        """Returns a run with its derived state."""
        check_random_id(request.run_id, "runId")

        async def query(view: View) -> pb.Run:
            run = await self.states.load(view, request.run_id)
            equal = await view.equal_runs(run.facts.run.value.run_spec_digest)
            reply = _loaded_message(view.project_id, run)
            reply.equal_runs.extend(run_name(view.project_id, each) for each in equal if each != request.run_id)
            return reply

        return await self.work.read(request.project_id, query)

    async def ListRuns(self, request: pb.ListRunsRequest, caller: Caller) -> pb.ListRunsResponse:
        """Lists runs, the newest first, with the state that their last event recorded."""
        where = {}
        if request.run_spec_digest:
            check_digest(request.run_spec_digest, "runSpecDigest")
            where["run_spec_digest"] = request.run_spec_digest

        async def query(view: View) -> pb.ListRunsResponse:
            reply = pb.ListRunsResponse()
            page = await self.pages.read(view, Run, ("-create_time", "-run_id"), request, caller.method, **where)
            states = await view.run_states([stored.value.run_id for stored in page.items])
            for stored in page.items:
                state, plan_digest = states.get(stored.value.run_id, (RunState.CREATED, ""))
                reply.runs.append(_run_message(view.project_id, stored, RunState(state), plan_digest))
            reply.next_page_token = page.next_token(lambda last: (last.value.create_time, last.value.run_id))
            return reply

        return await self.work.read(request.project_id, query)

    async def PlanRun(self, request: pb.PlanRunRequest, caller: Caller) -> Answer:
        """Plans a run, or finds it planned."""
        check_random_id(request.run_id, "runId")

        async def decide(view: View) -> Change:
            await view.lock_run(request.run_id)
            run = await self.states.load(view, request.run_id)
            name = plan_name(view.project_id, request.run_id)
            if run.plan is not None:
                found = await view.need(ExecutionPlan, name, digest=run.plan_digest)
                return Change("run.plan", name, (), (), resource(found, name, pb.ExecutionPlan()))
            if run.state.run.final:
                raise Refused("RUN_ENDED", f"the run has ended {run.state.run}", subject=name)
            spec_digest = run.facts.spec.pipeline_spec_digest
            pipeline = (await self.states.pipeline(view, spec_digest)).spec
            sealed = seal(make_plan(run.facts.run.value.run_spec_digest, spec_digest, pipeline))
            planned = derive_state(sealed.value, (), cancel_requested=False).run
            event = run.event(RunEventType.PLANNED, len(run.facts.events) + 1, planned, plan_digest=sealed.digest)
            known = await view.find(ExecutionPlan, digest=sealed.digest)
            stored = known or new_record(view, caller, sealed)
            records = (seal(event),) if known else (sealed, seal(event))
            return Change("run.plan", name, records, (), resource(stored, name, pb.ExecutionPlan()))

        return await self.work.change(call_of(caller, request), decide)

    async def GetPlan(self, request: pb.GetPlanRequest, caller: Caller) -> pb.ExecutionPlan:
        """Returns the plan of a run."""
        check_random_id(request.run_id, "runId")
        name = plan_name(request.project_id, request.run_id)

        async def query(view: View) -> pb.ExecutionPlan:
            await view.need(Run, run_name(view.project_id, request.run_id), run_id=request.run_id)
            states = await view.run_states([request.run_id])
            _, plan_digest = states.get(request.run_id, ("", ""))
            if not plan_digest:
                raise unknown(ExecutionPlan, name)
            return resource(await view.need(ExecutionPlan, name, digest=plan_digest), name, pb.ExecutionPlan())

        return await self.work.read(request.project_id, query)

    async def DryRun(self, request: pb.DryRunRequest, caller: Caller) -> pb.DryRunReport:
        """Answers what would happen."""
        spec = decode_field(request, "run_spec", "runSpec", RunSpec)
        scenarios = decode_all(request.scenarios, Scenario, "scenarios")
        check_count(scenarios, 0, MAX_SCENARIOS, "scenarios")
        sorted_set(scenarios, lambda scenario: scenario.name, "scenarios", "name")
        if request.compare_run_id:
            check_random_id(request.compare_run_id, "compareRunId")
        spec_digest = digest(dump(spec))

        async def query(view: View) -> pb.DryRunReport:
            facts = await view.run_spec_facts(spec, spec_digest)
            pipeline = await self._pipeline(view, spec, facts)
            gates = await _gates(view, spec, facts, pipeline)
            decision = _decide_admission(view.project_id, spec, facts, gates, "")
            reply = pb.DryRunReport(run_spec_digest=spec_digest)
            encode(decision, reply.admission)
            evaluations = await _explained(view, decision)
            for violation in _blockers(spec, pipeline, decision, evaluations, _sent_order(request)):
                reply.blockers.add(field=violation.field, description=violation.description)
            reply.equal_runs.extend(run_name(view.project_id, run_id) for run_id in facts.equal_runs)
            if request.compare_run_id:
                other = await view.run_facts(request.compare_run_id, run_name(view.project_id, request.compare_run_id))
                for difference in compare(spec, other.spec):
                    encode(difference, reply.differences.add())
            if not reply.blockers:
                assert pipeline is not None  # nothing blocks
                plan = make_plan(spec_digest, spec.pipeline_spec_digest, pipeline)
                encode(plan, reply.plan)
                reply.plan_digest = digest(dump(plan))
                for index, scenario in enumerate(scenarios):
                    with at_path(f"scenarios[{index}]"):
                        encode(simulate(plan, scenario), reply.scenarios.add())
            return reply

        return await self.work.read(request.project_id, query)

    async def CancelRun(self, request: pb.CancelRunRequest, caller: Caller) -> Answer:
        """Asks for a run to be cancelled, or finds that it was asked for."""
        check_random_id(request.run_id, "runId")
        check_length(request.reason, 0, 2_000, "reason")

        async def decide(view: View) -> Change:
            await view.lock_run(request.run_id)
            run = await self.states.load(view, request.run_id)
            name = run_name(view.project_id, request.run_id)
            if run.state.cancel_requested:
                return Change("run.cancel", name, (), (), _loaded_message(view.project_id, run))
            if run.state.run.final:
                raise Refused("RUN_ENDED", f"the run has ended {run.state.run}", subject=name)
            run.state.request_cancel()
            event = run.event(
                RunEventType.CANCEL_REQUESTED, len(run.facts.events) + 1, run.state.run, reason=request.reason
            )
            return Change("run.cancel", name, (seal(event),), (), _loaded_message(view.project_id, run))

        return await self.work.change(call_of(caller, request), decide)

    async def ListStepAttempts(
        self, request: pb.ListStepAttemptsRequest, caller: Caller
    ) -> pb.ListStepAttemptsResponse:
        """Lists what the events say of each attempt."""
        check_random_id(request.run_id, "runId")
        query_of = (caller.method, request.project_id, request.run_id)
        size, place = self.pages.size(request), self.pages.place(request, *query_of)

        async def query(view: View) -> pb.ListStepAttemptsResponse:
            run = await self.states.load(view, request.run_id)
            attempts = sorted(
                (
                    attempt
                    for mine in run.state.attempts.values()
                    for attempt in mine.values()
                    if not place or (attempt.step, attempt.attempt) > place
                ),
                key=lambda attempt: (attempt.step, attempt.attempt),
            )
            reply = pb.ListStepAttemptsResponse()
            for attempt in attempts[:size]:
                encode(attempt, reply.step_attempts.add())
            if len(attempts) > size:
                last = attempts[size - 1]
                reply.next_page_token = self.pages.token((last.step, last.attempt), *query_of)
            return reply

        return await self.work.read(request.project_id, query)

    async def ListArtifacts(self, request: pb.ListArtifactsRequest, caller: Caller) -> pb.ListArtifactsResponse:
        """Lists the artifacts of a run."""
        check_random_id(request.run_id, "runId")

        async def query(view: View) -> pb.ListArtifactsResponse:
            await view.need(Run, run_name(view.project_id, request.run_id), run_id=request.run_id)
            reply = pb.ListArtifactsResponse()
            order = ("step", "attempt", "name")
            page = await self.pages.read(view, Artifact, order, request, caller.method, run_id=request.run_id)
            for stored in page.items:
                resource(stored, _artifact_name(view.project_id, stored.value), reply.artifacts.add())
            reply.next_page_token = page.next_token(lambda last: (last.value.step, last.value.attempt, last.value.name))
            return reply

        return await self.work.read(request.project_id, query)

    async def ListMetrics(self, request: pb.ListMetricsRequest, caller: Caller) -> pb.ListMetricsResponse:
        """Lists the metric points of a run."""
        check_random_id(request.run_id, "runId")

        async def query(view: View) -> pb.ListMetricsResponse:
            await view.need(Run, run_name(view.project_id, request.run_id), run_id=request.run_id)
            reply = pb.ListMetricsResponse()
            order = ("step", "attempt", "name", "index")
            page = await self.pages.read(view, Metric, order, request, caller.method, run_id=request.run_id)
            for stored in page.items:
                resource(stored, _metric_name(view.project_id, stored.value), reply.metrics.add())
            reply.next_page_token = page.next_token(
                lambda last: (last.value.step, last.value.attempt, last.value.name, last.value.index)
            )
            return reply

        return await self.work.read(request.project_id, query)


async def _gates(view: View, spec: RunSpec, facts: RunSpecFacts, pipeline: PipelineSpec | None) -> GateFacts:
    """What gates say of a RunSpec; without a pipeline, that of the project alone. No statement where none was set."""
    if not facts.gated:
        return NO_GATES
    return await view.gate_facts(pipeline.metadata.name if pipeline else "", spec)


def _decide_admission(
    project_id: str, spec: RunSpec, facts: RunSpecFacts, gates: GateFacts, override_reason: str
) -> AdmissionDecision:
    with at_path("runSpec"):
        return admit(
            project_id,
            spec,
            pipeline_registered=facts.pipeline_known,
            environment_registered=facts.environment_known,
            versions_registered=facts.versions_known,
            gates=gates,
            override_reason=override_reason,
        )


async def _explained(view: View, decision: AdmissionDecision) -> Evaluations:
    """The first evaluations that keep a run out; one statement, and none where all gates pass."""
    digests = distinct(check.evaluation_digest for check in decision.refused_by_gates() if check.evaluation_digest)
    if not digests:
        return {}
    found = await view.documents(QualityEvaluation, "digest", digests[:MAX_EXPLAINED])
    return {digest: load(document, QualityEvaluation) for digest, document in found.items()}


def _refused_by_gates(
    view: View, asked: _Asked, decision: AdmissionDecision, gates: GateFacts, evaluations: Evaluations
) -> Refused:
    """The refusal of a run by gates, with the record of it."""
    spec = asked.spec
    refusal = AdmissionRefusal(spec.digest, spec.value.pipeline_spec_digest, asked.replay_of, decision, view.time)
    reason, checks = "GATE_NOT_PASSED", decision.refused_by_gates()
    if asked.override_reason:  # then it would be in, if each gate that refuses allowed it
        reason = "GATE_OVERRIDE_OFF"
        checks = tuple(check for check in checks if not gates.gates[check.gate_digest].override_allowed)
    found = [
        Precondition(
            dataset_version_name(view.project_id, check.dataset_id, check.content_digest),
            _verdict_of(check, evaluations.get(check.evaluation_digest)),
        )
        for check in checks
    ]
    may_not = ", and may not be overridden" if asked.override_reason else ""
    return Refused(
        reason,
        f"{len(checks)} checks of quality gates do not pass{may_not}; the first: {found[0].description}",
        subject=found[0].subject,
        preconditions=found,
        records=(seal(refusal),),
        checks=str(len(checks)),
        gate=checks[0].gate_digest,
        dataset_version=found[0].subject,
        rule=checks[0].rule_digest,
        evaluator=checks[0].evaluator,
        verdict=checks[0].verdict.value,
    )


def _verdict_of(check: AdmissionGateCheck, evaluation: QualityEvaluation | None) -> str:
    """What a check of a gate found, for people; with the evaluation, which checks of the rule do not hold."""
    rule = f"the rule {check.rule_digest} of {check.evaluator}"
    if check.verdict is QualityVerdict.NONE:
        return f"{rule} has no verdict on this version: evaluate it"
    verdict = f"the newest verdict of {rule} is {check.verdict.name}"
    if evaluation is None:
        return verdict
    failed = [
        f"{result.check}: {result.reason}"
        for result in evaluation.results
        if result.outcome is not QualityOutcome.PASS and result.severity is QualitySeverity.ERROR
    ]
    more = f" and {len(failed) - MAX_NAMED} more" if len(failed) > MAX_NAMED else ""
    return f"{verdict} ({evaluation.rule_name}: {'; '.join(failed[:MAX_NAMED])}{more})"


def _blockers(
    spec: RunSpec,
    pipeline: PipelineSpec | None,
    decision: AdmissionDecision,
    evaluations: Evaluations,
    sent_order: list[str],
) -> list[Violation]:
    """What keeps a run out, by path of the RunSpec."""
    blockers = [
        Violation(check.field, f"names nothing of the project; register it first: {check.subject}")
        for check in decision.refused()
    ]
    blockers += [
        Violation(
            f"datasets[{check.dataset_ref}]",
            f"does not pass the gate {check.gate_digest}: "
            + _verdict_of(check, evaluations.get(check.evaluation_digest)),
        )
        for check in decision.refused_by_gates()
    ]
    if pipeline is not None:
        try:
            check_bindings(spec, pipeline, sent_order)
        except Invalid as error:  # here the violations are the answer, not an error
            blockers.extend(error.violations)
    return blockers


def _sent_order(request: pb.CreateRunRequest | pb.CreateRunOverridingGatesRequest | pb.DryRunRequest) -> list[str]:
    return [binding.dataset_ref for binding in request.run_spec.datasets]


def _run_message(project_id: str, stored: Stored[Run], state: RunState, plan_digest: str) -> pb.Run:
    """A run without what lists leave out."""
    run = stored.value
    message = pb.Run(
        record=record_of(stored, run_name(project_id, run.run_id)),
        run_id=run.run_id,
        run_spec_digest=run.run_spec_digest,
        state=pb.RunState.Value(f"RUN_STATE_{state.name}"),
        plan_digest=plan_digest,
        replay_of=run.replay_of,
    )
    for label in run.labels:
        encode(label, message.labels.add())
    return message


def _loaded_message(project_id: str, run: LoadedRun) -> pb.Run:
    """A run with its RunSpec, admission and steps."""
    message = _run_message(project_id, run.facts.run, run.state.run, run.plan_digest)
    encode(run.facts.spec, message.run_spec)
    encode(run.facts.run.value.admission, message.admission)
    for step, state in run.state.steps.items():
        message.steps.add(
            step=step,
            state=pb.StepState.Value(f"STEP_STATE_{state.name}"),
            attempts=len(run.state.attempts[step]),
        )
    return message


def _artifact_name(project_id: str, artifact: Artifact) -> str:
    return run_artifact_name(project_id, artifact.run_id, artifact.step, artifact.attempt, artifact.name)


def _metric_name(project_id: str, metric: Metric) -> str:
    attempt = attempt_name(project_id, metric.run_id, metric.step, metric.attempt)
    return f"{attempt}/metrics/{metric.name}/{metric.index}"
