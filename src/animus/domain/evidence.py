"""Evidence bundles: what one says of itself, and the state of a run that it carries (docs/evidence-format.md)."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, TypeVar

from animus.domain.dataset import DatasetVersion
from animus.domain.document import digest, dump
from animus.domain.environment import EnvironmentLock
from animus.domain.errors import invalid
from animus.domain.lineage import LineageEdge
from animus.domain.log import FIRST_EPOCH, MAX_SIZE, check_instance_name, origin_of
from animus.domain.names import (
    check_digest,
    check_length,
    check_resource_id,
    check_time,
    check_within,
    distinct,
    run_name,
    sorted_set,
)
from animus.domain.pipeline import ErrorKind, PipelineSpec
from animus.domain.plan import ExecutionPlan
from animus.domain.quality import EVALUATOR, QualityEvaluation, QualityRule
from animus.domain.run import Artifact, Run, RunSpec, check_attempt, check_random_id
from animus.domain.state import (
    Attempt,
    AttemptState,
    DerivedState,
    RunEvent,
    RunEventType,
    RunState,
    StepState,
    derive_state,
)

NO_ERROR = "none"  # how a summary spells ErrorKind.NONE

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a bundle is of: one run, or the entries of a project's log. Known sizes are a set."""

    SCHEMA: ClassVar[str] = "animus.evidence/v1"

    project_id: str
    run_id: str  # empty for a log bundle
    origin: str
    epoch: int
    first_index: int  # below size: a bundle has an entry
    size: int
    known_sizes: tuple[int, ...]  # above 0 and below size

    def __post_init__(self) -> None:
        check_resource_id(self.project_id, "projectId")
        if self.run_id:
            check_random_id(self.run_id, "runId")
        check_within(self.epoch, FIRST_EPOCH, MAX_SIZE, "epoch")
        instance_name = check_origin(self.origin, self.project_id)
        if self.origin != origin_of(instance_name, self.project_id, self.epoch):
            raise invalid("origin", f"is not that of epoch {self.epoch}")
        check_within(self.size, 1, MAX_SIZE, "size")
        check_within(self.first_index, 0, self.size - 1, "firstIndex")
        for index, known in enumerate(self.known_sizes):
            check_within(known, 1, self.size - 1, f"knownSizes[{index}]")
        check_distinct(self.known_sizes, "knownSizes", "")
        object.__setattr__(self, "known_sizes", tuple(sorted(self.known_sizes)))


def check_origin(origin: str, project_id: str) -> str:
    """The instance's name of a project's origin. Refuses another project's and what is no origin."""
    instance_name, *rest = origin.rsplit("/", 2)
    if len(rest) != 2 or rest[0] != project_id or not rest[1].isascii() or not rest[1].isdecimal():
        raise invalid("origin", f"is not <instance name>/{project_id}/<epoch>")
    check_instance_name(instance_name, "origin")
    return instance_name


def bag_name(evidence: Evidence) -> str:
    """The name of the bag, which is the folder that holds all of it."""
    part = f"run-{evidence.run_id}" if evidence.run_id else f"log-{evidence.first_index}"
    return f"animus-{evidence.project_id}-{part}-{evidence.size}"


@dataclass(frozen=True, slots=True)
class AttemptSummary:
    """What the events say of an attempt. Times are the runtime's claims."""

    attempt: int
    state: AttemptState
    error_kind: str  # none, user or system
    message: str  # empty where no event said one, as are the times
    start_time: str
    end_time: str

    def __post_init__(self) -> None:
        kinds = [kind.value or NO_ERROR for kind in ErrorKind]
        if self.error_kind not in kinds:
            raise invalid("errorKind", f"is none of {', '.join(kinds)}")
        check_length(self.message, 0, 4_000, "message")
        for field, time in (("startTime", self.start_time), ("endTime", self.end_time)):
            if time:
                check_time(time, field)


@dataclass(frozen=True, slots=True)
class StepSummary:
    """The state of a step. Attempts are a set, by number."""

    name: str
    state: StepState
    attempts: tuple[AttemptSummary, ...]

    def __post_init__(self) -> None:
        check_resource_id(self.name, "name")
        for each in self.attempts:
            check_attempt(self.name, each.attempt)
        check_distinct((each.attempt for each in self.attempts), "attempts", "attempt")
        object.__setattr__(self, "attempts", tuple(sorted(self.attempts, key=lambda each: each.attempt)))


@dataclass(frozen=True, slots=True)
class OutputSummary:
    """An artifact of the attempt by which its step succeeded."""

    step: str
    name: str
    attempt: int
    digest: str

    def __post_init__(self) -> None:
        check_attempt(self.step, self.attempt)
        check_resource_id(self.name, "name")
        check_digest(self.digest, "digest")


@dataclass(frozen=True, slots=True)
class RunSummary:
    """The derived state of a run. Outputs are a set, by step and name."""

    SCHEMA: ClassVar[str] = "animus.run_summary/v1"

    run_id: str
    state: RunState
    plan_digest: str  # empty without a plan
    steps: tuple[StepSummary, ...]  # in plan order
    outputs: tuple[OutputSummary, ...]

    def __post_init__(self) -> None:
        check_random_id(self.run_id, "runId")
        if self.plan_digest:
            check_digest(self.plan_digest, "planDigest")
        # No name holds a space, which is below all that they may hold: so this orders by step, and then by name.
        outputs = sorted_set(self.outputs, lambda each: f"{each.step} {each.name}", "outputs", "name")
        object.__setattr__(self, "outputs", outputs)


@dataclass(frozen=True, slots=True)
class RunEvidence:
    """All about one run that statements and renderings are made of. Its tuples are sets.

    That the digests are those of the values is the caller's word; that the values are of one run is checked here.
    """

    project_id: str
    origin: str  # of the log that the run is in
    run: Run
    run_digest: str
    spec: RunSpec
    pipeline: PipelineSpec
    environment: EnvironmentLock
    versions: tuple[DatasetVersion, ...]  # those that the RunSpec binds, each once, in its order
    evaluations: tuple[QualityEvaluation, ...]  # those that gates looked at, each once, by digest
    rules: tuple[QualityRule, ...]  # by which we made them, each once, by digest
    plan: ExecutionPlan | None
    plan_digest: str  # empty without a plan
    events: tuple[RunEvent, ...]  # by sequence
    artifacts: tuple[Artifact, ...]  # by step, attempt and name
    edges: tuple[LineageEdge, ...]  # by subject, relation and object

    def __post_init__(self) -> None:
        check_resource_id(self.project_id, "projectId")
        check_origin(self.origin, self.project_id)
        check_digest(self.run_digest, "runDigest")
        if (self.plan is None) != (self.plan_digest == ""):
            raise invalid("planDigest", "is given exactly where there is a plan")
        if self.plan_digest:
            check_digest(self.plan_digest, "planDigest")
        self._check_members()
        versions = {(each.dataset_id, each.content_digest): each for each in self.versions}
        bound = distinct((each.dataset_id, each.content_digest) for each in self.spec.datasets)
        if len(versions) != len(self.versions) or versions.keys() != set(bound):
            raise invalid("versions", "are not those that the RunSpec binds, each once")
        object.__setattr__(self, "versions", tuple(versions[key] for key in bound))
        evaluations = by_digest(self.evaluations)
        if tuple(evaluations) != self.run.admission.evaluations() or len(evaluations) != len(self.evaluations):
            raise invalid("evaluations", "are not those that the admission cites, each once")
        object.__setattr__(self, "evaluations", tuple(evaluations.values()))
        rules = by_digest(self.rules)
        ours = {each.rule_digest for each in self.evaluations if each.evaluator == EVALUATOR}
        if rules.keys() != ours or len(rules) != len(self.rules):
            raise invalid("rules", "are not those of the evaluations that are ours, each once")
        object.__setattr__(self, "rules", tuple(rules.values()))
        object.__setattr__(self, "events", tuple(sorted(self.events, key=lambda each: each.sequence)))
        object.__setattr__(
            self, "artifacts", tuple(sorted(self.artifacts, key=lambda each: (each.step, each.attempt, each.name)))
        )
        object.__setattr__(
            self, "edges", tuple(sorted(set(self.edges), key=lambda e: (e.subject, e.relation, e.object)))
        )

    def _check_members(self) -> None:
        steps = {step.name for step in self.plan.steps} if self.plan else set()
        check_distinct((event.sequence for event in self.events), "events", "sequence")
        check_distinct(((a.step, a.attempt, a.name) for a in self.artifacts), "artifacts", "name")
        for index, event in enumerate(self.events):
            if event.run_id != self.run.run_id:
                raise invalid(f"events[{index}].runId", "is another run's")
            if any(each.step not in steps for each in event.step_event):
                raise invalid(f"events[{index}].step", "names no step of the plan")
        for index, artifact in enumerate(self.artifacts):
            if artifact.run_id != self.run.run_id:
                raise invalid(f"artifacts[{index}].runId", "is another run's")
            if artifact.step not in steps:
                raise invalid(f"artifacts[{index}].step", "names no step of the plan")

    @property
    def instance_name(self) -> str:
        """The instance that the run is of."""
        return check_origin(self.origin, self.project_id)

    @property
    def name(self) -> str:
        """The run's full name."""
        return run_name(self.project_id, self.run.run_id)


def by_digest(records: Iterable[T]) -> dict[str, T]:
    """Records by their digests, in the order of these."""
    found = {digest(dump(record)): record for record in records}
    return {key: found[key] for key in sorted(found)}


def check_distinct(items: Iterable[T], field: str, inner: str) -> None:
    """Refuses an item that stands a second time, naming its place."""
    seen = set()
    for index, item in enumerate(items):
        if item in seen:
            where = f"{field}[{index}].{inner}" if inner else f"{field}[{index}]"
            raise invalid(where, "stands here a second time")
        seen.add(item)


def state_of(run: RunEvidence) -> DerivedState:
    """The state that follows from the run's plan and events."""
    events = [each for event in run.events for each in event.step_event]
    canceled = any(event.type is RunEventType.CANCEL_REQUESTED for event in run.events)
    return derive_state(run.plan, events, cancel_requested=canceled)


def summarize(run: RunEvidence) -> RunSummary:
    """The derived state of a run. Linear in its events and artifacts but for the sorting."""
    state = state_of(run)
    steps = [
        StepSummary(name, step_state, tuple(_summary(each) for each in state.attempts[name].values()))
        for name, step_state in state.steps.items()
    ]
    return RunSummary(
        run_id=run.run.run_id,
        state=state.run,
        plan_digest=run.plan_digest,
        steps=tuple(steps),
        outputs=tuple(
            OutputSummary(each.step, each.name, each.attempt, each.digest)
            for each in run.artifacts
            if succeeded(state, each)
        ),
    )


def succeeded(state: DerivedState, artifact: Artifact) -> bool:
    """Whether the attempt that wrote an artifact succeeded."""
    attempt = state.attempts[artifact.step].get(artifact.attempt)
    return attempt is not None and attempt.state is AttemptState.SUCCEEDED


def _summary(attempt: Attempt) -> AttemptSummary:
    return AttemptSummary(
        attempt=attempt.attempt,
        state=attempt.state,
        error_kind=attempt.error_kind.value or NO_ERROR,
        message=attempt.message,
        start_time=attempt.start_time,
        end_time=attempt.end_time,
    )
