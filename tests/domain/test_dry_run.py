"""Dry-run: what it says would happen is what the rules of state make of the same events, and nothing is random."""

import dataclasses
import random
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given

from animus.domain import document
from animus.domain.document import dump, tree_of
from animus.domain.dry_run import (
    MAX_FAILURES,
    MAX_VIRTUAL_ATTEMPTS,
    AssumedFailure,
    Difference,
    Scenario,
    ScenarioResult,
    VirtualAttempt,
    compare,
    simulate,
)
from animus.domain.names import format_time
from animus.domain.pipeline import Backoff, BackoffType, ErrorKind, RetryKind, RetryPolicy
from animus.domain.plan import ExecutionPlan, make_plan
from animus.domain.run import ParameterType, RunSpec
from animus.domain.state import AttemptState, DerivedState, RunState, StepEvent, StepState, derive_state
from domain.values import (
    LAW,
    ONE,
    SAMPLES,
    TIME,
    TWO,
    bare_step,
    generated,
    graph_of,
    refusal,
    run_spec,
    shuffled,
)
from domain.worlds import FAILED, STARTED, SUCCEEDED, event, judged, random_plan, world

USER, SYSTEM = RetryKind.USER, RetryKind.SYSTEM


def scenario(*failures: AssumedFailure, seconds: int = 10) -> Scenario:
    """A scenario by its failures."""
    return Scenario("test", seconds, failures)


def some_scenario(rng: random.Random) -> tuple[ExecutionPlan, Scenario]:
    """A plan with waits, and a scenario in which some attempts of some steps fail."""
    plan = random_plan(rng, 7)
    steps = tuple(
        dataclasses.replace(step, retry_delays_seconds=tuple(rng.randint(0, 9) for _ in step.retry_delays_seconds))
        for step in plan.steps
    )
    failures = []
    for _ in range(rng.randint(0, 4)):
        first = rng.randint(1, 3)
        failures.append(
            AssumedFailure(rng.choice(steps).name, first, rng.randint(first, 4), rng.choice([USER, SYSTEM]))
        )
    return dataclasses.replace(plan, steps=steps), scenario(*failures, seconds=rng.choice([0, 1, 7]))


def replay(plan: ExecutionPlan, result: ScenarioResult) -> DerivedState:
    """The state after a result's attempts were reported in the order of time; fails where a report is refused."""
    place = {step.name: index for index, step in enumerate(plan.steps)}
    reports: list[tuple[int, int, int, int, StepEvent]] = []
    for each in result.attempts:
        ended = SUCCEEDED if each.state is AttemptState.SUCCEEDED else FAILED
        for second, number, kind, error in (
            (each.start_seconds, 0, STARTED, ErrorKind.NONE),
            (each.end_seconds, 1, ended, each.error_kind),
        ):
            time = format_time(datetime.fromisoformat(TIME) + timedelta(seconds=second))
            made = event(each.step, each.attempt, kind, error, time=time)
            reports.append((second, place[each.step], each.attempt, number, made))
    state = derive_state(plan, (), cancel_requested=False)
    for *_, report in sorted(reports, key=lambda item: item[:4]):
        refused = judged(report, state)
        assert refused is None, (report, refused)
        state.apply(report)
    return state


def result_law(plan: ExecutionPlan, assumed: Scenario, result: ScenarioResult) -> None:
    """Fails unless a result is what the rules of state make of its attempts, each as early as it can be."""
    state = replay(plan, result)
    assert state.run is result.state
    skipped = [name for name, each in state.steps.items() if each is StepState.SKIPPED]
    assert sorted(skipped) == list(result.skipped_steps)
    found = {(each.step, each.attempt): each for each in result.attempts}
    assert len(found) == len(result.attempts)
    order = [(each.start_seconds, each.step, each.attempt) for each in result.attempts]
    assert order == sorted(order)
    last = {step: max(number for name, number in found if name == step) for step, _ in found}
    for step in plan.steps:
        for number in range(1, last.get(step.name, 0) + 1):
            each = found[step.name, number]
            if number == 1:
                earliest = max((found[before, last[before]].end_seconds for before in step.depends_on), default=0)
            else:
                earliest = found[step.name, number - 1].end_seconds + step.retry_delays_seconds[number - 2]
            assert each.start_seconds == earliest
            assert each.end_seconds - each.start_seconds == assumed.attempt_seconds
            named = [
                failure.error_kind.value
                for failure in assumed.failures
                if failure.step == step.name and failure.first_attempt <= number <= failure.last_attempt
            ]
            assert each.error_kind == (named[0] if named else "")
            assert (each.state is AttemptState.FAILED) == bool(named)
    assert result.duration_seconds == max(each.end_seconds for each in result.attempts)


@LAW
@given(generated(some_scenario))
def test_a_dry_run_is_what_reports_would_make_of_it(made: tuple[ExecutionPlan, Scenario]) -> None:
    """Each virtual attempt, reported in the order of time, is accepted, and the state at the end is as predicted."""
    plan, assumed = made
    result_law(plan, assumed, simulate(plan, assumed))


@LAW
@given(generated(some_scenario))
def test_the_same_input_gives_the_same_result(made: tuple[ExecutionPlan, Scenario]) -> None:
    """Simulated twice, the result is the same to the byte."""
    plan, assumed = made
    assert repr(tree_of(simulate(plan, assumed))) == repr(tree_of(simulate(plan, assumed)))


CHAIN = world({"a": "", "b": "a", "c": "b"}, attempts=3)


def changed_attempt(result: ScenarioResult, index: int, **changes: Any) -> ScenarioResult:
    """A result with one attempt changed."""
    attempts = list(result.attempts)
    attempts[index] = dataclasses.replace(attempts[index], **changes)
    return dataclasses.replace(result, attempts=tuple(attempts))


def test_a_result_that_could_not_happen_is_found() -> None:
    """An attempt too early, one left out, another end, another state or skip: each breaks the law above."""
    assumed = scenario(AssumedFailure("b", 1, 1, SYSTEM))
    result = simulate(CHAIN, assumed)
    result_law(CHAIN, assumed, result)
    for wrong in (
        changed_attempt(result, 1, start_seconds=0),
        changed_attempt(result, 1, start_seconds=9, end_seconds=19),
        changed_attempt(result, 2, start_seconds=20, end_seconds=30),
        changed_attempt(result, 1, error_kind=ErrorKind.USER),
        changed_attempt(result, 1, state=AttemptState.SUCCEEDED, error_kind=ErrorKind.NONE),
        dataclasses.replace(result, attempts=result.attempts[1:]),
        dataclasses.replace(result, attempts=result.attempts[:-1]),
        dataclasses.replace(result, attempts=result.attempts[::-1]),
        dataclasses.replace(result, state=RunState.FAILED),
        dataclasses.replace(result, skipped_steps=("c",)),
        dataclasses.replace(result, duration_seconds=1),
    ):
        with pytest.raises((AssertionError, IndexError)):
            result_law(CHAIN, assumed, wrong)


def test_a_failure_within_the_policy_costs_time_only() -> None:
    """Attempts 1 and 2 of b fail and are repeated after the plan's wait; c starts when b is done."""
    result = simulate(CHAIN, scenario(AssumedFailure("b", 1, 2, SYSTEM)))
    assert [(each.step, each.attempt, each.start_seconds, each.end_seconds) for each in result.attempts] == [
        ("a", 1, 0, 10), ("b", 1, 10, 20), ("b", 2, 21, 31), ("b", 3, 32, 42), ("c", 1, 42, 52),
    ]  # fmt: skip
    assert (result.state, result.skipped_steps, result.duration_seconds) == ("succeeded", (), 52)
    assert [each.error_kind for each in result.attempts] == ["", "system", "system", "", ""]


def test_a_failure_beyond_the_policy_skips_what_follows() -> None:
    """A kind that is not retried, or the last attempt, ends the step; whatever waits for it is skipped."""
    for failure, attempts in (
        (AssumedFailure("a", 1, 1, USER), [("a", 1)]),
        (AssumedFailure("a", 1, 100, SYSTEM), [("a", 1), ("a", 2), ("a", 3)]),
    ):
        result = simulate(CHAIN, scenario(failure))
        assert [(each.step, each.attempt) for each in result.attempts] == attempts
        assert (result.state, result.skipped_steps) == ("failed", ("b", "c"))


def test_another_branch_runs_on() -> None:
    """Only what waits for the failed step is skipped."""
    plan = world({"a": "", "b": "", "c": "a", "d": "b", "e": "cd"})
    result = simulate(plan, scenario(AssumedFailure("a", 1, 1, USER)))
    assert {each.step for each in result.attempts} == {"a", "b", "d"}
    assert result.skipped_steps == ("c", "e")


def test_of_several_failures_that_name_an_attempt_the_first_counts() -> None:
    """The caller's order decides, not the width of the range."""
    one, other = AssumedFailure("a", 1, 1, USER), AssumedFailure("a", 1, 3, SYSTEM)
    assert [each.error_kind for each in simulate(CHAIN, scenario(one, other)).attempts] == ["user"]
    assert [each.error_kind for each in simulate(CHAIN, scenario(other, one)).attempts] == ["system"] * 3


def test_a_failure_of_an_attempt_that_is_never_made_changes_nothing() -> None:
    """A range beyond the attempts that happen is no error."""
    assert simulate(CHAIN, scenario(AssumedFailure("a", 2, 100, USER))) == simulate(CHAIN, scenario())


def test_attempts_that_take_no_time_keep_their_order() -> None:
    """With every attempt at second 0 the result is still in order and can be replayed."""
    plan = world({"b": "", "a": "b", "c": "a"})
    result = simulate(plan, scenario(seconds=0))
    assert result.attempts[0] == VirtualAttempt("a", 1, 0, 0, AttemptState.SUCCEEDED, ErrorKind.NONE)
    result_law(plan, scenario(seconds=0), result)


def test_a_plan_with_every_wait_takes_its_worst_case() -> None:
    """When every attempt but the last fails and none takes time, the last step ends at the plan's worst-case delay."""
    policy = RetryPolicy(4, (SYSTEM,), Backoff(BackoffType.EXPONENTIAL, 3, 20, "2"))
    spec = graph_of([bare_step(name, policy) for name in "abcd"], [("b", "a"), ("c", "a"), ("d", "b"), ("d", "c")])
    plan = make_plan(ONE, TWO, spec)
    result = simulate(plan, scenario(*(AssumedFailure(name, 1, 3, SYSTEM) for name in "abcd"), seconds=0))
    assert result.duration_seconds == max(step.worst_case_delay_seconds for step in plan.steps) == 3 * (3 + 6 + 12)


# Limits.


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: simulate(CHAIN, scenario(AssumedFailure("z", 1, 1, USER))), "failures[0].step"),
        (
            lambda: simulate(CHAIN, scenario(AssumedFailure("a", 1, 1, USER), AssumedFailure("x", 1, 1, USER))),
            "failures[1].step",
        ),
        (lambda: AssumedFailure("A", 1, 1, USER), "step"),
        (lambda: AssumedFailure("a", 0, 1, USER), "firstAttempt"),
        (lambda: AssumedFailure("a", 101, 101, USER), "firstAttempt"),
        (lambda: AssumedFailure("a", 2, 1, USER), "lastAttempt"),
        (lambda: AssumedFailure("a", 1, 101, USER), "lastAttempt"),
        (lambda: Scenario("", 0, ()), "name"),
        (lambda: Scenario("a", -1, ()), "attemptSeconds"),
        (lambda: Scenario("a", 86_401, ()), "attemptSeconds"),
        (lambda: Scenario("a", 0, (AssumedFailure("a", 1, 1, USER),) * (MAX_FAILURES + 1)), "failures"),
    ],
)
def test_a_scenario_outside_its_rules_is_refused_by_field(make: Any, field: str) -> None:
    """Unknown steps and numbers beyond their bounds are named."""
    assert refusal(make).field == field


def test_the_bound_on_virtual_attempts_is_exact() -> None:
    """100,000 attempts are played; one step more is refused."""
    names = [f"s{number:04}" for number in range(1_001)]
    policy = RetryPolicy(100, (SYSTEM,), Backoff(BackoffType.FIXED, 0, 0, "1"))
    plan = make_plan(ONE, TWO, graph_of([bare_step(name, policy) for name in names]))
    failing = tuple(AssumedFailure(name, 1, 100, SYSTEM) for name in names)
    most = simulate(dataclasses.replace(plan, steps=plan.steps[:1_000]), Scenario("a", 0, failing[:1_000]))
    assert len(most.attempts) == MAX_VIRTUAL_ATTEMPTS
    found = refusal(simulate, plan, Scenario("a", 0, failing[:1_000]))
    assert found.field == "failures"


# Where two RunSpecs differ.


@LAW
@given(generated(lambda rng: (run_spec(rng), run_spec(rng), rng)))
def test_specs_differ_exactly_where_their_digests_do(made: tuple[RunSpec, RunSpec, random.Random]) -> None:
    """No path for equal specs in any order; some for others; swapped, the columns swap and the order stays."""
    one, other, rng = made
    again = shuffled(one, rng, {("RunSpec", "datasets"), ("RunSpec", "parameters")})
    assert compare(one, again) == ()
    found = compare(one, other)
    assert (found == ()) == (document.digest(dump(one)) == document.digest(dump(other)))
    assert found == tuple(Difference(each.path, each.other_value, each.this_value) for each in compare(other, one))
    assert [each.path for each in found] == sorted({each.path for each in found})


SPEC: RunSpec = SAMPLES[RunSpec]
LR, SEED = SPEC.parameters
BASE, DATA = SPEC.datasets


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"pipeline_spec_digest": TWO}, [("pipelineSpecDigest", f'"{ONE}"', f'"{TWO}"')]),
        (
            {"commit": dataclasses.replace(SPEC.commit, sha="d" * 40)},
            [("commit.sha", f'"{"c" * 40}"', f'"{"d" * 40}"')],
        ),
        (
            {"parameters": (LR, dataclasses.replace(SEED, value="8"))},
            [("parameters[seed].value", '"7"', '"8"')],
        ),
        ({"parameters": (SEED,)}, [("parameters[lr]", '{"name":"lr","type":"decimal","value":"0.1"}', "")]),
        (
            {"parameters": (LR, SEED, dataclasses.replace(SEED, name="a"))},
            [("parameters[a]", "", '{"name":"a","type":"int","value":"7"}')],
        ),
        (
            {"datasets": (BASE, dataclasses.replace(DATA, content_digest=TWO))},
            [("datasets[data].contentDigest", f'"{ONE}"', f'"{TWO}"')],
        ),
        (
            {"environment_lock_digest": ONE, "parameters": (LR, dataclasses.replace(SEED, type=ParameterType.STRING))},
            [("environmentLockDigest", f'"{TWO}"', f'"{ONE}"'), ("parameters[seed].type", '"int"', '"string"')],
        ),
    ],
)
def test_each_difference_is_named_by_its_path(changes: dict[str, Any], expected: list[tuple[str, str, str]]) -> None:
    """Items of sets are matched by name, so that one more shifts none of the others."""
    other = dataclasses.replace(SPEC, **changes)
    assert compare(SPEC, other) == tuple(Difference(*each) for each in expected)
