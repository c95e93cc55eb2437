"""Comparisons: the verdict follows from outputs alone, and every difference is said where it is."""

import dataclasses
import itertools
import random
from typing import Any

import pytest
from hypothesis import given

from animus.domain import document
from animus.domain.comparison import (
    ComparedRun,
    ComparisonVerdict,
    OutputComparison,
    RunComparison,
    StepComparison,
    check_other_run,
    compare_runs,
)
from animus.domain.dry_run import Difference
from animus.domain.pipeline import Backoff, BackoffType, PipelineSpec, RetryKind, RetryPolicy
from animus.domain.plan import make_plan
from animus.domain.run import RunSpec
from animus.domain.state import RunState, StepEvent, StepState, derive_state
from domain.values import LAW, ONE, RUN_ID, SAMPLES, TWO, bare_step, generated, graph_of, pipeline, refusal, run_spec
from domain.worlds import FAILED, STARTED, SUCCEEDED, SYSTEM, event

OTHER_ID = "f" * 32
REPRODUCED, DIVERGED, INCOMPARABLE = ComparisonVerdict
SPEC: RunSpec = SAMPLES[RunSpec]
TWICE = RetryPolicy(2, (RetryKind.SYSTEM,), Backoff(BackoffType.FIXED, 0, 0, "1"))

Outputs = dict[tuple[str, str], str]


def run_of(
    spec: PipelineSpec, produced: Outputs, *, run_id: str = RUN_ID, bound: RunSpec = SPEC, events: Any = None
) -> ComparedRun:
    """A run of a pipeline, every step of which succeeded at once unless the events say otherwise."""
    plan = make_plan(ONE, TWO, spec)
    if events is None:
        events = [event(step.name, 1, kind) for step in plan.steps for kind in (STARTED, SUCCEEDED)]
    plan_digest = document.digest(document.dump(plan))
    return ComparedRun(run_id, bound, spec, plan_digest, derive_state(plan, events, cancel_requested=False), produced)


def declared(spec: PipelineSpec) -> list[tuple[str, str]]:
    """The outputs of a pipeline by step and name, in order."""
    return sorted((step.name, output.name) for step in spec.spec.steps for output in step.outputs.artifacts)


def pair(rng: random.Random) -> tuple[ComparedRun, ComparedRun]:
    """Two runs, of one pipeline or of two, with some outputs alike."""
    one = pipeline(rng)
    other = one if rng.random() < 0.7 else pipeline(rng)
    likely = rng.choice([1.0, 0.8])
    firsts = {key: rng.choice([ONE, TWO]) for key in declared(one)}
    seconds = {
        key: firsts[key] if key in firsts and rng.random() < likely else rng.choice([ONE, TWO])
        for key in declared(other)
    }
    events = None if rng.random() < 0.8 else [event(other.spec.steps[0].name, 1, STARTED)]
    bound = SPEC if rng.random() < 0.5 else run_spec(rng)
    return run_of(one, firsts), run_of(other, seconds, run_id=OTHER_ID, bound=bound, events=events)


def law_faults(this: ComparedRun, other: ComparedRun, found: RunComparison) -> list[str]:
    """Where a comparison says something else than the two runs do, by rules that are written a second time."""
    keys = set(declared(this.pipeline))
    same = keys == set(declared(other.pipeline)) and keys != set()
    succeeded = this.state.run is other.state.run is RunState.SUCCEEDED
    unequal = [key for key in keys if this.produced.get(key) != other.produced.get(key)]
    expected = INCOMPARABLE if not same or not succeeded else DIVERGED if unequal else REPRODUCED
    order = [step.name for step in this.state.plan.steps] if this.state.plan else []
    first = next((step for step in order if step in [each[0] for each in unequal]), "")
    either = sorted({*declared(this.pipeline), *declared(other.pipeline)})
    checks = {
        "verdict": found.verdict is expected,
        "reason": bool(found.reason) == (expected is INCOMPARABLE),
        "first step": found.first_step == (first if expected is DIVERGED else ""),
        "outputs": [(o.step, o.name, o.digest, o.other_digest) for o in found.outputs]
        == [(*key, this.produced.get(key, ""), other.produced.get(key, "")) for key in either],
        "steps": [(s.step, s.state, s.other_state) for s in found.steps]
        == [
            (name, this.state.steps.get(name, StepState.NONE), other.state.steps.get(name, StepState.NONE))
            for name in sorted(this.state.steps.keys() | other.state.steps.keys())
        ],
        "differences": (found.differences == ()) == (this.spec == other.spec),
    }
    return [name for name, holds in checks.items() if not holds]


@LAW
@given(generated(pair))
def test_a_comparison_says_what_the_runs_did(runs: tuple[ComparedRun, ComparedRun]) -> None:
    """For any two runs: REPRODUCED for equal digests of the same outputs alone, and every part as the runs have it."""
    assert law_faults(*runs, compare_runs(*runs)) == []
    assert law_faults(*runs[::-1], compare_runs(*runs[::-1])) == []


def turned(found: RunComparison) -> RunComparison:
    """A comparison the other way round; what only one side can say is left as it is."""
    return dataclasses.replace(
        found,
        run_id=found.other_run_id,
        other_run_id=found.run_id,
        state=found.other_state,
        other_state=found.state,
        differences=tuple(Difference(d.path, d.other_value, d.this_value) for d in found.differences),
        plan_digest=found.other_plan_digest,
        other_plan_digest=found.plan_digest,
        steps=tuple(StepComparison(s.step, s.other_state, s.state, s.other_attempts, s.attempts) for s in found.steps),
        outputs=tuple(OutputComparison(o.step, o.name, o.other_digest, o.digest, o.equal) for o in found.outputs),
    )


@LAW
@given(generated(pair))
def test_the_verdict_is_the_same_the_other_way_round(runs: tuple[ComparedRun, ComparedRun]) -> None:
    """Everything but the text of a reason and the plan in whose order the first step is turns with the runs."""
    found, back = compare_runs(*runs), compare_runs(*runs[::-1])
    assert found.verdict is back.verdict
    assert dataclasses.replace(turned(found), reason=back.reason, first_step=back.first_step) == back


@LAW
@given(generated(pipeline))
def test_a_run_with_the_same_outputs_reproduces_any_run(spec: PipelineSpec) -> None:
    """Whatever the pipeline, equal outputs are REPRODUCED, unless there are none."""
    produced = dict.fromkeys(declared(spec), ONE)
    found = compare_runs(run_of(spec, produced), run_of(spec, produced, run_id=OTHER_ID))
    assert found.verdict is (REPRODUCED if produced else INCOMPARABLE)


def test_a_comparison_that_says_something_else_is_found() -> None:
    """The law above fails for one planted fault of each kind."""
    spec = graph_of([bare_step("a", TWICE, outputs=2), bare_step("b", TWICE, outputs=1)])
    this = run_of(spec, dict.fromkeys(declared(spec), ONE))
    other = run_of(spec, {**dict.fromkeys(declared(spec), ONE), ("b", "o0"): TWO}, run_id=OTHER_ID)
    found = compare_runs(this, other)
    assert law_faults(this, other, found) == []
    planted: list[tuple[dict[str, Any], str]] = [
        ({"verdict": REPRODUCED, "first_step": ""}, "verdict"),
        ({"first_step": "a"}, "first step"),
        ({"outputs": found.outputs[1:]}, "outputs"),
        ({"steps": found.steps[1:]}, "steps"),
        ({"differences": (Difference("kind", "", "x"),)}, "differences"),
    ]
    for changes, fault in planted:
        assert fault in law_faults(this, other, dataclasses.replace(found, **changes))


def test_every_small_world_diverges_at_the_first_step_that_differs() -> None:
    """Three steps in a row, one output each, two digests: all 64 pairs, walked through in the order of the plan."""
    steps = [bare_step("c", TWICE, outputs=1), bare_step("b", TWICE, outputs=1), bare_step("a", TWICE, outputs=1)]
    spec = graph_of(steps, [("b", "c"), ("a", "b")])
    order = ["c", "b", "a"]  # against the order of names
    seen = set()
    for digests in itertools.product((ONE, TWO), repeat=6):
        one = {(step, "o0"): digest for step, digest in zip(order, digests[:3], strict=True)}
        other = {(step, "o0"): digest for step, digest in zip(order, digests[3:], strict=True)}
        found = compare_runs(run_of(spec, one), run_of(spec, other, run_id=OTHER_ID))
        first = next((step for step in order if one[step, "o0"] != other[step, "o0"]), "")
        assert (found.verdict, found.first_step) == (DIVERGED if first else REPRODUCED, first)
        assert [output.equal for output in found.outputs] == [
            one[step, "o0"] == other[step, "o0"] for step in sorted(order)
        ]
        seen.add(found.first_step)
    assert seen == {"", *order}


def events_of(text: str) -> list[StepEvent]:
    """Events of the step a: s starts its first attempt, x fails it, S starts its second, O has it succeed."""
    made = {
        "s": event("a", 1, STARTED),
        "x": event("a", 1, FAILED, SYSTEM),
        "S": event("a", 2, STARTED),
        "X": event("a", 2, FAILED, SYSTEM),
        "O": event("a", 2, SUCCEEDED),
    }
    return [made[letter] for letter in text]


@pytest.mark.parametrize(
    ("events", "state", "attempts"),
    [("", "PLANNED", 0), ("s", "RUNNING", 1), ("sx", "RUNNING", 1), ("sxS", "RUNNING", 2), ("sxSX", "FAILED", 2)],
)
def test_a_run_that_has_not_succeeded_cannot_be_compared(events: str, state: str, attempts: int) -> None:
    """The reason names the run and its state; what it did so far is said all the same."""
    spec = graph_of([bare_step("a", TWICE, outputs=1)])
    done = run_of(spec, {("a", "o0"): ONE})
    open_ = run_of(spec, {}, run_id=OTHER_ID, events=events_of(events))
    for runs in ((done, open_), (open_, done)):
        found = compare_runs(*runs)
        assert found.verdict is INCOMPARABLE
        assert found.reason == f"the run {OTHER_ID} is {state}; only runs that SUCCEEDED can be compared"
    assert compare_runs(done, open_).steps == (
        StepComparison("a", StepState.SUCCEEDED, open_.state.steps["a"], 1, attempts),
    )
    assert compare_runs(done, open_).outputs == (OutputComparison("a", "o0", ONE, "", equal=False),)


def test_how_often_a_step_was_tried_decides_nothing() -> None:
    """A run that needed a second attempt reproduces one that did not, and the attempts are said."""
    spec = graph_of([bare_step("a", TWICE, outputs=1)])
    again = run_of(spec, {("a", "o0"): ONE}, run_id=OTHER_ID, events=events_of("sxSO"))
    found = compare_runs(run_of(spec, {("a", "o0"): ONE}), again)
    assert found.verdict is REPRODUCED
    assert found.steps == (StepComparison("a", StepState.SUCCEEDED, StepState.SUCCEEDED, 1, 2),)


def test_runs_that_declare_other_outputs_cannot_be_compared() -> None:
    """The reason names the first output that one of them alone declares; both pipelines' outputs are said."""
    few = graph_of([bare_step("a", TWICE, outputs=1)])
    more = graph_of([bare_step("a", TWICE, outputs=2), bare_step("b", TWICE)])
    one = run_of(few, {("a", "o0"): ONE})
    two = run_of(more, {("a", "o0"): ONE, ("a", "o1"): ONE}, run_id=OTHER_ID)
    for runs in ((one, two), (two, one)):
        found = compare_runs(*runs)
        assert (found.verdict, found.first_step) == (INCOMPARABLE, "")
        assert found.reason == (
            f"the output o1 of the step a is declared by the run {OTHER_ID} and not by the run {RUN_ID}"
        )
        assert [(output.name, output.equal) for output in found.outputs] == [("o0", True), ("o1", False)]
    assert compare_runs(one, two).steps[1] == StepComparison("b", StepState.NONE, StepState.SUCCEEDED, 0, 1)


def test_runs_without_outputs_cannot_be_compared() -> None:
    """Nothing that was made is no evidence."""
    spec = graph_of([bare_step("a", TWICE)])
    found = compare_runs(run_of(spec, {}), run_of(spec, {}, run_id=OTHER_ID))
    assert (found.verdict, found.outputs) == (INCOMPARABLE, ())
    assert found.reason == f"the runs {RUN_ID} and {OTHER_ID} declare no output"


def test_a_run_without_a_plan_has_no_steps_to_compare() -> None:
    """Its plan digest is empty, and its outputs are those that its pipeline declares."""
    spec = graph_of([bare_step("a", TWICE, outputs=1)])
    bare = ComparedRun(OTHER_ID, SPEC, spec, "", derive_state(None, (), cancel_requested=False), {})
    found = compare_runs(bare, run_of(spec, {("a", "o0"): ONE}))
    assert (found.state, found.plan_digest) == (RunState.CREATED, "")
    assert found.steps == (StepComparison("a", StepState.NONE, StepState.SUCCEEDED, 0, 1),)
    assert found.outputs == (OutputComparison("a", "o0", "", ONE, equal=False),)


def test_equal_findings_are_one_document() -> None:
    """The same runs in the same state have one digest; the runs turned, or a state on, have another."""
    spec = graph_of([bare_step("a", TWICE, outputs=1)])
    one, two = run_of(spec, {("a", "o0"): ONE}), run_of(spec, {("a", "o0"): ONE}, run_id=OTHER_ID)
    before = run_of(spec, {}, run_id=OTHER_ID, events=events_of("s"))
    digests = [
        document.seal(compare_runs(*runs)).digest for runs in ((one, two), (one, two), (two, one), (one, before))
    ]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


SAMPLE: RunComparison = SAMPLES[RunComparison]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"run_id": "x"}, "runId"),
        ({"other_run_id": "x"}, "otherRunId"),
        ({"other_run_id": RUN_ID}, "otherRunId"),
        ({"reason": "why"}, "reason"),
        ({"verdict": INCOMPARABLE, "first_step": ""}, "reason"),
        ({"first_step": ""}, "firstStep"),
        ({"verdict": REPRODUCED}, "firstStep"),
        ({"plan_digest": "x"}, "planDigest"),
        ({"other_plan_digest": "x"}, "otherPlanDigest"),
        ({"differences": SAMPLE.differences * 2}, "differences[2].path"),
        ({"steps": SAMPLE.steps * 2}, "steps[2].step"),
        ({"outputs": SAMPLE.outputs * 2}, "outputs[2].name"),
    ],
)
def test_a_comparison_outside_its_rules_is_refused_by_field(changes: dict[str, Any], field: str) -> None:
    """A verdict has what belongs to it and nothing else, and nothing stands twice."""
    assert refusal(dataclasses.replace, SAMPLE, **changes).field == field


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: StepComparison("A", StepState.NONE, StepState.NONE, 0, 0), "step"),
        (lambda: StepComparison("a", StepState.NONE, StepState.NONE, -1, 0), "attempts"),
        (lambda: StepComparison("a", StepState.NONE, StepState.NONE, 0, 101), "otherAttempts"),
        (lambda: OutputComparison("A", "a", ONE, ONE, equal=True), "step"),
        (lambda: OutputComparison("a", "A", ONE, ONE, equal=True), "name"),
        (lambda: OutputComparison("a", "a", "x", ONE, equal=False), "digest"),
        (lambda: OutputComparison("a", "a", ONE, "x", equal=False), "otherDigest"),
        (lambda: OutputComparison("a", "a", ONE, ONE, equal=False), "equal"),
        (lambda: OutputComparison("a", "a", ONE, TWO, equal=True), "equal"),
        (lambda: OutputComparison("a", "a", "", "", equal=True), "equal"),
        (lambda: check_other_run(RUN_ID, RUN_ID), "otherRunId"),
        (lambda: check_other_run(RUN_ID, ""), "otherRunId"),
    ],
)
def test_a_part_of_a_comparison_outside_its_rules_is_refused_by_field(make: Any, field: str) -> None:
    """Two absent outputs are not equal ones, and a run is not compared with itself."""
    assert refusal(make).field == field


def test_outputs_stand_by_step_and_then_by_name() -> None:
    """Also where one step's name begins like another's and goes on with a hyphen."""
    made = [
        OutputComparison(step, name, ONE, ONE, equal=True) for step in ("a-b", "a", "ab") for name in ("z", "a-1", "a")
    ]
    found = dataclasses.replace(SAMPLE, outputs=tuple(made))
    assert [(o.step, o.name) for o in found.outputs] == sorted((o.step, o.name) for o in made)
