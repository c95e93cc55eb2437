"""Dry-run: what would happen under failures that the caller names, in virtual time. Nothing is random.

Every step starts as early as its dependencies allow; an attempt runs as long as the scenario says; a failed attempt is
repeated after the plan's delay if the plan allows it for that kind of failure; what waits for a failed step is skipped.
"""

from dataclasses import dataclass

from animus.domain.document import differing_paths, tree_of
from animus.domain.errors import invalid
from animus.domain.names import check_count, check_resource_id, check_within
from animus.domain.pipeline import DAY_SECONDS, MAX_ATTEMPTS, ErrorKind, RetryKind
from animus.domain.plan import ExecutionPlan, PlanStep
from animus.domain.run import RunSpec
from animus.domain.state import AttemptState, RunState

MAX_SCENARIOS = 16
MAX_FAILURES = 1_000
MAX_VIRTUAL_ATTEMPTS = 100_000


@dataclass(frozen=True, slots=True)
class AssumedFailure:
    """Attempts of a step that fail in a scenario."""

    step: str
    first_attempt: int
    last_attempt: int
    error_kind: RetryKind

    def __post_init__(self) -> None:
        check_resource_id(self.step, "step")
        check_within(self.first_attempt, 1, MAX_ATTEMPTS, "firstAttempt")
        check_within(self.last_attempt, self.first_attempt, MAX_ATTEMPTS, "lastAttempt")


@dataclass(frozen=True, slots=True)
class Scenario:
    """What to assume. Attempts that no failure names succeed; of several failures that name one, the first counts."""

    name: str
    attempt_seconds: int  # how long each attempt runs, 0 to 86,400
    failures: tuple[AssumedFailure, ...]

    def __post_init__(self) -> None:
        check_resource_id(self.name, "name")
        check_within(self.attempt_seconds, 0, DAY_SECONDS, "attemptSeconds")
        check_count(self.failures, 0, MAX_FAILURES, "failures")


@dataclass(frozen=True, slots=True)
class VirtualAttempt:
    """An attempt in virtual time, which starts at 0."""

    step: str
    attempt: int
    start_seconds: int
    end_seconds: int
    state: AttemptState
    error_kind: ErrorKind


@dataclass(frozen=True, slots=True)
class ScenarioResult:
    """What a scenario leads to."""

    name: str
    state: RunState
    attempts: tuple[VirtualAttempt, ...]  # by start, step and attempt
    skipped_steps: tuple[str, ...]  # sorted
    duration_seconds: int


def simulate(plan: ExecutionPlan, scenario: Scenario) -> ScenarioResult:
    """Plays a scenario. Raises Invalid for a failure of a step that the plan lacks, and beyond 100,000 attempts."""
    known = {step.name for step in plan.steps}
    failures: dict[str, list[AssumedFailure]] = {}
    for index, failure in enumerate(scenario.failures):
        if failure.step not in known:
            raise invalid(f"failures[{index}].step", f"names no step of the pipeline: {failure.step!r}")
        failures.setdefault(failure.step, []).append(failure)
    ends: dict[str, int] = {}  # of steps that succeed
    attempts: list[VirtualAttempt] = []
    skipped = []
    for step in plan.steps:
        if not all(before in ends for before in step.depends_on):
            skipped.append(step.name)
            continue
        start = max((ends[before] for before in step.depends_on), default=0)
        attempts.extend(_attempts(step, start, scenario.attempt_seconds, failures.get(step.name, [])))
        if len(attempts) > MAX_VIRTUAL_ATTEMPTS:
            raise invalid("failures", f"lead to more than {MAX_VIRTUAL_ATTEMPTS} attempts")
        if attempts[-1].state is AttemptState.SUCCEEDED:
            ends[step.name] = attempts[-1].end_seconds
    attempts.sort(key=lambda a: (a.start_seconds, a.step, a.attempt))
    return ScenarioResult(
        name=scenario.name,
        state=RunState.SUCCEEDED if len(ends) == len(plan.steps) else RunState.FAILED,
        attempts=tuple(attempts),
        skipped_steps=tuple(sorted(skipped)),
        duration_seconds=max(a.end_seconds for a in attempts),
    )


def _attempts(step: PlanStep, start: int, seconds: int, failures: list[AssumedFailure]) -> list[VirtualAttempt]:
    made = []
    for attempt in range(1, step.max_attempts + 1):
        kind = next((f.error_kind for f in failures if f.first_attempt <= attempt <= f.last_attempt), None)
        end = start + seconds
        made.append(
            VirtualAttempt(
                step=step.name,
                attempt=attempt,
                start_seconds=start,
                end_seconds=end,
                state=AttemptState.SUCCEEDED if kind is None else AttemptState.FAILED,
                error_kind=ErrorKind.NONE if kind is None else ErrorKind(kind.value),
            )
        )
        if kind is None or kind not in step.retry_on or attempt == step.max_attempts:
            break
        start = end + step.retry_delays_seconds[attempt - 1]
    return made


@dataclass(frozen=True, slots=True)
class Difference:
    """A place where two RunSpecs differ: values as JSON, empty where absent."""

    path: str
    this_value: str
    other_value: str


def compare(this: RunSpec, other: RunSpec) -> tuple[Difference, ...]:
    """Where two RunSpecs differ, ordered by path; items of sets are named by their key."""
    return tuple(Difference(*found) for found in differing_paths(tree_of(this), tree_of(other)))
