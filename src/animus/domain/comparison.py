"""Reproduction: whether two runs made the same outputs, byte for byte, and where they differ.

The verdict is about outputs alone. Equal RunSpecs may diverge, because code need not be deterministic, and runs of
other RunSpecs may make the same. What else differs is said beside the verdict, and decides nothing.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

from animus.domain.dry_run import Difference, compare
from animus.domain.errors import invalid
from animus.domain.names import check_digest, check_resource_id, check_within, sorted_set
from animus.domain.pipeline import MAX_ATTEMPTS, PipelineSpec
from animus.domain.run import RunSpec, check_random_id
from animus.domain.state import DerivedState, RunState, StepState


class ComparisonVerdict(StrEnum):
    """What a comparison came to."""

    REPRODUCED = "reproduced"
    DIVERGED = "diverged"
    INCOMPARABLE = "incomparable"


@dataclass(frozen=True, slots=True)
class StepComparison:
    """A step in two runs. Where a plan lacks it, its state is NONE and there are no attempts."""

    step: str
    state: StepState
    other_state: StepState
    attempts: int
    other_attempts: int

    def __post_init__(self) -> None:
        check_resource_id(self.step, "step")
        check_within(self.attempts, 0, MAX_ATTEMPTS, "attempts")
        check_within(self.other_attempts, 0, MAX_ATTEMPTS, "otherAttempts")


@dataclass(frozen=True, slots=True)
class OutputComparison:
    """A declared output in two runs, by digest; empty where no attempt that succeeded made it."""

    step: str
    name: str
    digest: str
    other_digest: str
    equal: bool

    def __post_init__(self) -> None:
        check_resource_id(self.step, "step")
        check_resource_id(self.name, "name")
        for digest, field in ((self.digest, "digest"), (self.other_digest, "otherDigest")):
            if digest:
                check_digest(digest, field)
        if self.equal != (self.digest != "" and self.digest == self.other_digest):
            raise invalid("equal", "says something else than the two digests do")


@dataclass(frozen=True, slots=True)
class RunComparison:
    """How two runs compare: a record that its digest names, so that equal findings are one record."""

    SCHEMA: ClassVar[str] = "animus.run_comparison/v1"

    run_id: str
    other_run_id: str
    verdict: ComparisonVerdict
    reason: str  # of INCOMPARABLE, for people; else empty
    first_step: str  # of DIVERGED: the first in this run's plan with another output; else empty
    state: RunState
    other_state: RunState
    differences: tuple[Difference, ...]  # of the RunSpecs, by path
    plan_digest: str  # empty for a run without a plan
    other_plan_digest: str
    steps: tuple[StepComparison, ...]  # of either plan
    outputs: tuple[OutputComparison, ...]  # of either pipeline

    def __post_init__(self) -> None:
        check_random_id(self.run_id, "runId")
        check_other_run(self.run_id, self.other_run_id)
        if (self.verdict is ComparisonVerdict.INCOMPARABLE) != bool(self.reason):
            raise invalid("reason", "says why runs cannot be compared: give it for INCOMPARABLE, and for nothing else")
        if (self.verdict is ComparisonVerdict.DIVERGED) != bool(self.first_step):
            raise invalid("firstStep", "is where runs diverged: give it for DIVERGED, and for nothing else")
        for digest, field in ((self.plan_digest, "planDigest"), (self.other_plan_digest, "otherPlanDigest")):
            if digest:
                check_digest(digest, field)
        object.__setattr__(self, "differences", sorted_set(self.differences, lambda d: d.path, "differences", "path"))
        object.__setattr__(self, "steps", sorted_set(self.steps, lambda s: s.step, "steps", "step"))
        # A space sorts before all that an id holds: the outputs of a step stay together.
        object.__setattr__(self, "outputs", sorted_set(self.outputs, lambda o: f"{o.step} {o.name}", "outputs", "name"))


@dataclass(frozen=True, slots=True)
class ComparedRun:
    """What is compared of a run, as it is at one moment."""

    run_id: str
    spec: RunSpec
    pipeline: PipelineSpec
    plan_digest: str  # empty without a plan
    state: DerivedState
    produced: dict[tuple[str, str], str]  # digest by step and output, of attempts that succeeded

    def declared(self) -> set[tuple[str, str]]:
        """The outputs of its pipeline, by step and name."""
        return {(step.name, output.name) for step in self.pipeline.spec.steps for output in step.outputs.artifacts}


def check_other_run(run_id: str, other_run_id: str) -> None:
    """The run that another is compared with: an id, and not the same one."""
    check_random_id(other_run_id, "otherRunId")
    if other_run_id == run_id:
        raise invalid("otherRunId", "is the run itself: give another one to compare it with")


def compare_runs(this: ComparedRun, other: ComparedRun) -> RunComparison:
    """Compares two runs. The verdict is the same with the runs the other way round."""
    outputs = tuple(
        _output(step, name, this.produced.get((step, name), ""), other.produced.get((step, name), ""))
        for step, name in sorted(this.declared() | other.declared())
    )
    reason = _incomparable(this, other)
    unequal = {output.step for output in outputs if not output.equal}
    diverged = "" if reason else next((step for step in this.state.steps if step in unequal), "")
    if reason:
        verdict = ComparisonVerdict.INCOMPARABLE
    else:
        verdict = ComparisonVerdict.DIVERGED if unequal else ComparisonVerdict.REPRODUCED
    return RunComparison(
        run_id=this.run_id,
        other_run_id=other.run_id,
        verdict=verdict,
        reason=reason,
        first_step=diverged,
        state=this.state.run,
        other_state=other.state.run,
        differences=compare(this.spec, other.spec),
        plan_digest=this.plan_digest,
        other_plan_digest=other.plan_digest,
        steps=tuple(_step(name, this.state, other.state) for name in {**this.state.steps, **other.state.steps}),
        outputs=outputs,
    )


def _incomparable(this: ComparedRun, other: ComparedRun) -> str:
    """Why two runs cannot be compared; empty if they can."""
    for run in (this, other):
        if run.state.run is not RunState.SUCCEEDED:
            return f"the run {run.run_id} is {run.state.run.name}; only runs that SUCCEEDED can be compared"
    for run, without in ((this, other), (other, this)):
        alone = sorted(run.declared() - without.declared())
        if alone:
            step, name = alone[0]
            return (
                f"the output {name} of the step {step} is declared by the run {run.run_id}"
                f" and not by the run {without.run_id}"
            )
    return "" if this.declared() else f"the runs {this.run_id} and {other.run_id} declare no output"


def _output(step: str, name: str, digest: str, other_digest: str) -> OutputComparison:
    return OutputComparison(step, name, digest, other_digest, digest != "" and digest == other_digest)


def _step(name: str, this: DerivedState, other: DerivedState) -> StepComparison:
    return StepComparison(
        step=name,
        state=this.steps.get(name, StepState.NONE),
        other_state=other.steps.get(name, StepState.NONE),
        attempts=len(this.attempts.get(name, {})),
        other_attempts=len(other.attempts.get(name, {})),
    )
