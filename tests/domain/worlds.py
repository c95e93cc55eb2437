"""Small worlds for state: plans by hand, events by name, and the rules of derived state written a second time."""

import random
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from animus.domain.pipeline import ErrorKind, RetryKind
from animus.domain.plan import ExecutionPlan, PlanStep
from animus.domain.state import (
    DerivedState,
    Refusal,
    RunState,
    StepEvent,
    StepEventType,
    StepState,
    derive_state,
    judge_event,
)
from domain.values import ONE, TIME, TWO

STARTED, SUCCEEDED, FAILED, CANCELED = StepEventType
SYSTEM, USER = ErrorKind.SYSTEM, ErrorKind.USER
OUTCOMES = ((STARTED, ErrorKind.NONE), (SUCCEEDED, ErrorKind.NONE), (FAILED, SYSTEM), (FAILED, USER),
            (CANCELED, ErrorKind.NONE))  # fmt: skip


def world(
    waits: dict[str, str], *, attempts: int = 2, retry_on: Sequence[RetryKind] = (RetryKind.SYSTEM,)
) -> ExecutionPlan:
    """A plan of steps with names of one letter: {"c": "ab"} waits for a and b. Steps come in execution order."""
    steps = tuple(
        PlanStep(name, 0, tuple(before), attempts, tuple(retry_on), (1,) * (attempts - 1), 0)
        for name, before in waits.items()
    )
    return ExecutionPlan(ONE, TWO, steps, ())


SHAPES = {
    "one": {"a": ""},
    "chain": {"a": "", "b": "a"},
    "apart": {"a": "", "b": ""},
    "fork": {"a": "", "b": "a", "c": "a"},
    "join": {"a": "", "b": "", "c": "ab"},
    "row": {"a": "", "b": "a", "c": "b"},
    "triangle": {"a": "", "b": "a", "c": "ab"},
}


def event(
    step: str,
    attempt: int,
    kind: StepEventType,
    error: ErrorKind = ErrorKind.NONE,
    *,
    event_id: str = "",
    time: str = TIME,
) -> StepEvent:
    """An event; its id says what it is unless one is given."""
    made = event_id or f"{step}{attempt}{kind}{error}"
    return StepEvent(made, step, attempt, kind, error, made, time)


def universe(plan: ExecutionPlan, attempts: int) -> list[StepEvent]:
    """Every event that could be offered, of attempts up to a number."""
    return [
        event(step.name, attempt, *outcome)
        for step in plan.steps
        for attempt in range(1, attempts + 1)
        for outcome in OUTCOMES
    ]


def seen(state: DerivedState) -> Any:
    """All that a state says."""
    return (state.run, list(state.steps.items()), state.attempts, state.cancel_requested)


def derived(plan: ExecutionPlan, events: Iterable[StepEvent], cancel: bool) -> Any:
    """All that the state of these events says."""
    return seen(derive_state(plan, events, cancel_requested=cancel))


# The six rules of the module, one after the other, without its data structures: slow, and easy to read.


def step_states(plan: ExecutionPlan, events: Collection[StepEvent], cancel: bool) -> dict[str, StepState]:
    """The state of each step, by rules 2 to 5."""
    states: dict[str, StepState] = {}
    for step in plan.steps:
        mine = [each for each in events if each.step == step.name]
        numbers = {each.attempt for each in mine}

        def ended(attempt: int, mine: list[StepEvent] = mine) -> StepEvent | None:
            ends = [each for each in mine if each.attempt == attempt and each.type is not STARTED]
            return min(ends, key=lambda each: (list(StepEventType).index(each.type), each.event_id), default=None)

        ends = {number: ended(number) for number in numbers}
        last = ends[max(numbers)] if numbers else None
        retryable = bool(
            last
            and last.type is FAILED
            and last.attempt < step.max_attempts
            and last.error_kind.value in [kind.value for kind in step.retry_on]
        )
        blocked = [states[before] for before in step.depends_on]
        if any(end and end.type is SUCCEEDED for end in ends.values()):
            states[step.name] = StepState.SUCCEEDED
        elif any(end is None for end in ends.values()):
            states[step.name] = StepState.RUNNING
        elif last and last.type is FAILED and not retryable:
            states[step.name] = StepState.FAILED
        elif cancel or any(end and end.type is CANCELED for end in ends.values()):
            states[step.name] = StepState.CANCELED
        elif any(state in (StepState.FAILED, StepState.SKIPPED, StepState.CANCELED) for state in blocked):
            states[step.name] = StepState.SKIPPED
        elif all(state is StepState.SUCCEEDED for state in blocked):
            states[step.name] = StepState.READY
        else:
            states[step.name] = StepState.PENDING
    return states


def run_state(plan: ExecutionPlan, events: Collection[StepEvent], cancel: bool) -> RunState:
    """The state of the run, by rule 6."""
    states = list(step_states(plan, events, cancel).values())
    if all(state is StepState.SUCCEEDED for state in states):
        return RunState.SUCCEEDED
    if cancel:
        return RunState.CANCELING if StepState.RUNNING in states else RunState.CANCELED
    if not {StepState.PENDING, StepState.READY, StepState.RUNNING} & set(states):
        return RunState.FAILED
    return RunState.RUNNING if events else RunState.PLANNED


def allowed(plan: ExecutionPlan, events: Collection[StepEvent], cancel: bool, new: StepEvent) -> bool:
    """Whether an event may follow a set of accepted events, from those events alone."""
    step = next((step for step in plan.steps if step.name == new.step), None)
    if step is None:
        return False
    kinds = {(each.step, each.attempt, each.type): each for each in events}
    started = (new.step, new.attempt, STARTED) in kinds
    ended = any((new.step, new.attempt, kind) in kinds for kind in (SUCCEEDED, FAILED, CANCELED))
    if new.type is not STARTED:
        return started and not ended and (new.type is not CANCELED or cancel)
    earlier = [kinds.get((new.step, number, FAILED)) for number in range(1, new.attempt)]
    return (
        not cancel
        and not started
        and new.attempt <= step.max_attempts
        and all(each is not None and each.error_kind.value in list(step.retry_on) for each in earlier)
        and all(any((before, number, SUCCEEDED) in kinds for number in range(101)) for before in step.depends_on)
    )


def judged(event: StepEvent, state: DerivedState) -> Refusal | None:
    """The judgement of an event of a step whose outputs are all there."""
    return judge_event(event, state, ())


def random_plan(rng: random.Random, most: int) -> ExecutionPlan:
    """A plan of a few steps, each waiting for some of those before it."""
    names = "abcdefgh"[: rng.randint(1, most)]
    waits = {name: "".join(sorted(rng.sample(names[:at], rng.randint(0, min(at, 3))))) for at, name in enumerate(names)}
    kinds = rng.sample(list(RetryKind), rng.randint(0, 2))
    return world(waits, attempts=rng.randint(1, 3), retry_on=kinds)
