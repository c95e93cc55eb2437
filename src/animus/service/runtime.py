"""RuntimeService: what the data plane reports.

A batch is judged item by item, as if each had come alone. Reports on one run wait for each other at the run's lock,
so that each is judged by a state that stays true until it is written.
"""

from collections.abc import Sequence
from typing import Any

from animus.domain.audit import AuditRefusal
from animus.domain.document import seal
from animus.domain.lineage import LineageEdge, edge_of_artifact, edges_of_start
from animus.domain.names import run_name
from animus.domain.run import Artifact, Metric, check_random_id
from animus.domain.state import Refusal, RunEventType, StepEvent, StepEventType, judge_event, judge_output
from animus.service.calls import Caller, call_of, decode_items
from animus.service.run_state import LoadedRun, RunStates
from animus.store.unit_of_work import Answer, Change, UnitOfWork, View
from animus.v1 import run_pb2
from animus.v1 import runtime_pb2 as pb

MAX_BATCH = 1_000

ACCEPTED = pb.ItemResult(outcome=pb.ITEM_OUTCOME_ACCEPTED)
DUPLICATE = pb.ItemResult(outcome=pb.ITEM_OUTCOME_DUPLICATE)


class RuntimeService:
    """Takes reports from runtimes."""

    def __init__(self, work: UnitOfWork, states: RunStates) -> None:
        self.work = work
        self.states = states

    async def ReportStepEvents(self, request: pb.ReportStepEventsRequest, caller: Caller) -> Answer:
        """Judges events in their order, each by the state that those before it left."""
        check_random_id(request.run_id, "runId")
        events = decode_items(request.events, "events", StepEvent, MAX_BATCH)

        async def decide(view: View) -> Change:
            run = await self.states.load_planned(view, request.run_id)
            known = run.step_events
            records: list[object] = []
            results = []
            sequence = len(run.facts.events)
            for event in events:
                if event.event_id in known:
                    results.append(DUPLICATE if known[event.event_id] == event else _refused(_REUSED))
                    continue
                refusal = judge_event(event, run.state, _missing_outputs(run, event))
                if refusal:
                    results.append(_refused(refusal))
                    continue
                if event.type is StepEventType.STARTED:
                    step = run.steps[event.step]
                    records += edges_of_start(
                        view.project_id, request.run_id, step, event.attempt, run.facts.spec, run.produced()
                    )
                run.state.apply(event)
                sequence += 1
                records.append(run.event(RunEventType.STEP, sequence, run.state.run, step_event=(event,)))
                known[event.event_id] = event
                results.append(ACCEPTED)
            reply = pb.ReportStepEventsResponse(
                results=results, state=run_pb2.RunState.Value(f"RUN_STATE_{run.state.run.name}")
            )
            return _change("run.report_step_events", view, request.run_id, records, results, reply)

        return await self.work.change(call_of(caller, request), decide)

    async def RegisterArtifacts(self, request: pb.RegisterArtifactsRequest, caller: Caller) -> Answer:
        """Registers outputs of running attempts."""
        check_random_id(request.run_id, "runId")
        artifacts = decode_items(request.artifacts, "artifacts", Artifact, MAX_BATCH, run_id=request.run_id)

        async def decide(view: View) -> Change:
            run = await self.states.load_planned(view, request.run_id)
            known = run.artifacts
            records: list[object] = []
            edges: dict[LineageEdge, None] = {}  # two names may hold the same bytes
            results = []
            for artifact in artifacts:
                key = (artifact.step, artifact.attempt, artifact.name)
                if key in known:
                    results.append(DUPLICATE if known[key] == artifact else _refused(_ARTIFACT_DIFFERS))
                    continue
                refusal = judge_output(artifact.step, artifact.attempt, run.state) or _undeclared(run, artifact)
                if refusal:
                    results.append(_refused(refusal))
                    continue
                known[key] = artifact
                records.append(artifact)
                edges[edge_of_artifact(view.project_id, artifact)] = None
                results.append(ACCEPTED)
            reply = pb.RegisterArtifactsResponse(results=results)
            records += edges
            return _change("run.register_artifacts", view, request.run_id, records, results, reply)

        return await self.work.change(call_of(caller, request), decide)

    async def RecordMetrics(self, request: pb.RecordMetricsRequest, caller: Caller) -> Answer:
        """Records metric points of running attempts."""
        check_random_id(request.run_id, "runId")
        metrics = decode_items(request.metrics, "metrics", Metric, MAX_BATCH, run_id=request.run_id)

        async def decide(view: View) -> Change:
            run = await self.states.load_planned(view, request.run_id)
            points = await view.metrics_at(request.run_id, [_point(metric) for metric in metrics])
            known = {_point(metric): metric for metric in points}
            records: list[object] = []
            results = []
            for metric in metrics:
                if _point(metric) in known:
                    results.append(DUPLICATE if known[_point(metric)] == metric else _refused(_METRIC_DIFFERS))
                    continue
                refusal = judge_output(metric.step, metric.attempt, run.state)
                if refusal:
                    results.append(_refused(refusal))
                    continue
                known[_point(metric)] = metric
                records.append(metric)
                results.append(ACCEPTED)
            reply = pb.RecordMetricsResponse(results=results)
            return _change("run.record_metrics", view, request.run_id, records, results, reply)

        return await self.work.change(call_of(caller, request), decide)


_REUSED = Refusal("EVENT_ID_REUSED", "an event of this event_id was accepted with other content: that stands")
_ARTIFACT_DIFFERS = Refusal("ARTIFACT_DIFFERS", "the attempt has another artifact of this name: that stands")
_METRIC_DIFFERS = Refusal("METRIC_DIFFERS", "the attempt has another point of this name and index: that stands")


def _refused(refusal: Refusal) -> pb.ItemResult:
    return pb.ItemResult(outcome=pb.ITEM_OUTCOME_REFUSED, reason=refusal.reason, message=refusal.message)


def _point(metric: Metric) -> tuple[str, int, str, int]:
    return metric.step, metric.attempt, metric.name, metric.index


def _missing_outputs(run: LoadedRun, event: StepEvent) -> tuple[str, ...]:
    if event.type is not StepEventType.SUCCEEDED or event.step not in run.steps:
        return ()
    declared = run.steps[event.step].outputs.artifacts
    return tuple(o.name for o in declared if (event.step, event.attempt, o.name) not in run.artifacts)


def _undeclared(run: LoadedRun, artifact: Artifact) -> Refusal | None:
    if any(output.name == artifact.name for output in run.steps[artifact.step].outputs.artifacts):
        return None
    return Refusal("STEP_UNKNOWN", f"the step {artifact.step!r} declares no output {artifact.name!r}")


def _change(
    action: str,
    view: View,
    run_id: str,
    records: Sequence[object],
    results: Sequence[pb.ItemResult],
    reply: Any,
) -> Change:
    refusals = tuple(
        AuditRefusal(index, result.reason)
        for index, result in enumerate(results)
        if result.outcome == pb.ITEM_OUTCOME_REFUSED
    )
    return Change(action, run_name(view.project_id, run_id), tuple(map(seal, records)), refusals, reply)
