"""What a run's state is derived from, read once and put together for the services of runs and runtimes."""

from collections import OrderedDict
from dataclasses import dataclass

from animus.domain.document import load
from animus.domain.errors import Refused
from animus.domain.names import run_name
from animus.domain.pipeline import PipelineSpec, Step
from animus.domain.plan import ExecutionPlan
from animus.domain.run import Artifact
from animus.domain.state import (
    AttemptState,
    DerivedState,
    RunEvent,
    RunEventType,
    RunState,
    StepEvent,
    derive_state,
)
from animus.store.records import RunFacts
from animus.store.unit_of_work import View

CACHED_STEPS = 50_000  # of plans and pipelines in all


@dataclass(frozen=True, slots=True)
class LoadedRun:
    """A run, its plan and pipeline where it has a plan, and the state that follows."""

    facts: RunFacts
    plan: ExecutionPlan | None
    plan_digest: str
    steps: dict[str, Step]  # of the pipeline, by name; none without a plan
    state: DerivedState

    @property
    def step_events(self) -> dict[str, StepEvent]:
        """The accepted events of attempts by id."""
        return {event.step_event[0].event_id: event.step_event[0] for event in self.facts.events if event.step_event}

    @property
    def artifacts(self) -> dict[tuple[str, int, str], Artifact]:
        """The registered outputs by step, attempt and name."""
        return {(a.step, a.attempt, a.name): a for a in self.facts.artifacts}

    def produced(self) -> dict[tuple[str, str], str]:
        """Digests of the outputs of attempts that succeeded, by step and name."""
        return {
            (a.step, a.name): a.digest
            for a in self.facts.artifacts
            if self.state.attempts[a.step][a.attempt].state is AttemptState.SUCCEEDED
        }

    def event(self, kind: RunEventType, sequence: int, state: RunState, **content: object) -> RunEvent:
        """A new event of the run at a place in its sequence."""
        parts: dict[str, object] = {"plan_digest": "", "reason": "", "step_event": ()}
        return RunEvent(
            run_id=self.facts.run.value.run_id,
            sequence=sequence,
            type=kind,
            state=state,
            **(parts | content),  # type: ignore[arg-type]
        )


@dataclass(frozen=True, slots=True)
class KnownPipeline:
    """A pipeline and its steps by name."""

    spec: PipelineSpec
    steps: dict[str, Step]


class RunStates:
    """Loads runs. Plans and pipelines are kept by digest: what has a digest never changes."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, ExecutionPlan | KnownPipeline] = OrderedDict()

    async def load(self, view: View, run_id: str) -> LoadedRun:
        """A run as its records are now. Raises NotFound."""
        facts = await view.run_facts(run_id, run_name(view.project_id, run_id))
        plan_digest = next((e.plan_digest for e in facts.events if e.type is RunEventType.PLANNED), "")
        plan: ExecutionPlan | None = None
        steps: dict[str, Step] = {}
        if plan_digest:
            plan = await self._plan(view, plan_digest)
            steps = (await self.pipeline(view, facts.spec.pipeline_spec_digest)).steps
        state = derive_state(
            plan,
            (event.step_event[0] for event in facts.events if event.step_event),
            cancel_requested=any(e.type is RunEventType.CANCEL_REQUESTED for e in facts.events),
        )
        recorded = facts.events[-1].state if facts.events else RunState.CREATED
        if recorded is not state.run:
            raise RuntimeError(f"run {run_id}: its events derive {state.run}, and the last of them says {recorded}")
        return LoadedRun(facts, plan, plan_digest, steps, state)

    async def load_planned(self, view: View, run_id: str) -> LoadedRun:
        """A run that runtimes report on, locked until the transaction ends. Raises Refused when it has no plan."""
        await view.lock_run(run_id)
        run = await self.load(view, run_id)
        if run.plan is None:
            raise Refused(
                "RUN_NOT_PLANNED", "the run has no plan: call PlanRun first", subject=run_name(view.project_id, run_id)
            )
        return run

    async def _plan(self, view: View, digest: str) -> ExecutionPlan:
        kept = self._kept.get(digest)
        if kept is None:
            kept = load((await view.documents(ExecutionPlan, "digest", [digest]))[digest], ExecutionPlan)
            self._keep(digest, kept)
        assert isinstance(kept, ExecutionPlan)
        return kept

    async def pipeline(self, view: View, digest: str) -> KnownPipeline:
        """A pipeline that the project is known to have."""
        kept = self._kept.get(digest)
        if kept is None:
            spec = load((await view.documents(PipelineSpec, "digest", [digest]))[digest], PipelineSpec)
            kept = KnownPipeline(spec, {step.name: step for step in spec.spec.steps})
            self._keep(digest, kept)
        assert isinstance(kept, KnownPipeline)
        return kept

    def _keep(self, digest: str, value: ExecutionPlan | KnownPipeline) -> None:
        self._kept[digest] = value
        while sum(len(kept.steps) for kept in self._kept.values()) > CACHED_STEPS:
            self._kept.popitem(last=False)
