"""Derived state: order and repeats of events do not matter, and nothing is accepted that the rules forbid."""

import itertools
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given

from animus.domain.pipeline import ErrorKind, RetryKind
from animus.domain.plan import ExecutionPlan
from animus.domain.state import (
    DerivedState,
    Refusal,
    RunState,
    StepEvent,
    StepState,
    derive_state,
    judge_event,
    judge_output,
)
from domain.values import LAW, TIME, generated, refusal
from domain.worlds import (
    CANCELED,
    FAILED,
    SHAPES,
    STARTED,
    SUCCEEDED,
    SYSTEM,
    USER,
    allowed,
    derived,
    event,
    judged,
    random_plan,
    run_state,
    seen,
    step_states,
    universe,
    world,
)

Derive = Callable[[ExecutionPlan, list[StepEvent], bool], Any]

# What the events of one attempt may say together.
ATTEMPTS: list[list[tuple[Any, ErrorKind]]] = [
    [],
    [(STARTED, ErrorKind.NONE)],
    [(STARTED, ErrorKind.NONE), (SUCCEEDED, ErrorKind.NONE)],
    [(STARTED, ErrorKind.NONE), (FAILED, SYSTEM)],
    [(STARTED, ErrorKind.NONE), (FAILED, USER)],
    [(STARTED, ErrorKind.NONE), (CANCELED, ErrorKind.NONE)],
]


def every_world(plan: ExecutionPlan, attempts: int) -> list[list[StepEvent]]:
    """Each way in which the attempts of a plan may have gone, possible or not."""
    pairs = [(step.name, attempt) for step in plan.steps for attempt in range(1, attempts + 1)]
    return [
        [event(*pair, *outcome) for pair, outcomes in zip(pairs, choice, strict=True) for outcome in outcomes]
        for choice in itertools.product(ATTEMPTS, repeat=len(pairs))
    ]


@pytest.mark.parametrize(
    ("shape", "attempts"),
    [("one", 3), ("chain", 2), ("apart", 2), ("fork", 1), ("join", 1), ("row", 1), ("triangle", 1)],
)
def test_state_follows_the_rules_in_every_small_world(shape: str, attempts: int) -> None:
    """Whatever attempts say, with and without cancellation, the state is the one that the written rules give."""
    plan = world(SHAPES[shape], attempts=attempts)
    met = set()
    for events in every_world(plan, attempts):
        for cancel in (False, True):
            state = derive_state(plan, events, cancel_requested=cancel)
            assert state.steps == step_states(plan, events, cancel)
            assert state.run == run_state(plan, events, cancel)
            met.add(state.run)
    assert met == set(RunState) - {RunState.CREATED}


@LAW
@given(generated(lambda rng: (random_plan(rng, 6), rng)))
def test_state_follows_the_rules_for_any_events(made: tuple[ExecutionPlan, random.Random]) -> None:
    """Larger plans with any set of events, contradictions among them, have the state of the written rules."""
    plan, rng = made
    every = universe(plan, 3)
    for _ in range(5):
        events = rng.sample(every, rng.randint(0, min(len(every), 12)))
        for cancel in (False, True):
            state = derive_state(plan, events, cancel_requested=cancel)
            assert (state.run, state.steps) == (run_state(plan, events, cancel), step_states(plan, events, cancel))


def fails(check: Callable[..., object], *args: Any) -> bool:
    """Whether a check finds something."""
    try:
        check(*args)
    except AssertionError:
        return True
    return False


# Order and repeats.


def order_law(derive: Derive, plan: ExecutionPlan, events: list[StepEvent], rng: random.Random) -> None:
    """Fails unless events in another order, some of them repeated, give the same."""
    for cancel in (False, True):
        expected = derive(plan, events, cancel)
        mixed = [*events, *rng.choices(events, k=3)] if events else []
        rng.shuffle(mixed)
        assert derive(plan, mixed, cancel) == expected


def one_by_one(plan: ExecutionPlan, events: list[StepEvent], cancel: bool) -> Any:
    """The state after each event was applied, with cancellation asked for somewhere between."""
    state = derive_state(plan, (), cancel_requested=False)
    for index, each in enumerate(events):
        if cancel and index == len(events) // 2:
            state.request_cancel()
        state.apply(each)
    if cancel:
        state.request_cancel()
    return seen(state)


def last_wins(plan: ExecutionPlan, events: list[StepEvent], cancel: bool) -> Any:
    """A wrong derivation: of two ends of an attempt, the one that came last counts."""
    kept = {(each.step, each.attempt, each.type is STARTED): each for each in events}
    return derived(plan, kept.values(), cancel)


def counts_repeats(plan: ExecutionPlan, events: list[StepEvent], cancel: bool) -> Any:
    """A wrong derivation: a repeated event counts again."""
    return derived(plan, events, cancel), len(events)


@pytest.mark.parametrize("shape", ["one", "chain", "apart"])
def test_every_order_of_few_events_gives_one_state(shape: str) -> None:
    """All sets of up to three events, contradictory ones too, in every order, at once and one by one."""
    plan = world(SHAPES[shape])
    every = universe(plan, 2 if shape == "one" else 1)
    for size in range(4):
        for chosen in itertools.combinations(every, size):
            for cancel in (False, True):
                expected = derived(plan, chosen, cancel)
                for order in itertools.permutations(chosen):
                    assert derived(plan, order, cancel) == expected
                    assert one_by_one(plan, [*order, *order[:1]], cancel) == expected


def some_events(rng: random.Random) -> tuple[ExecutionPlan, list[StepEvent], random.Random]:
    """A plan and any events of its steps, with ids and times by which equal kinds differ."""
    plan = random_plan(rng, 6)
    every = [
        event(each.step, each.attempt, each.type, each.error_kind, event_id=f"{each.event_id}{number}", time=time)
        for each in universe(plan, 3)
        for number, time in enumerate([TIME, "2025-01-01T00:00:00.000000Z"])
    ]
    return plan, rng.sample(every, rng.randint(0, min(len(every), 15))), rng


@LAW
@given(generated(some_events))
def test_order_and_repeats_do_not_matter(made: tuple[ExecutionPlan, list[StepEvent], random.Random]) -> None:
    """Any events, shuffled and repeated: the same state of run, steps and attempts, messages and times included."""
    plan, events, rng = made
    order_law(derived, plan, events, rng)


@LAW
@given(generated(some_events))
def test_applying_one_by_one_is_deriving_at_once(made: tuple[ExecutionPlan, list[StepEvent], random.Random]) -> None:
    """Whatever the order, and whenever cancellation was asked for, the state after the last event is that of all."""
    plan, events, rng = made
    order_law(one_by_one, plan, events, rng)
    for cancel in (False, True):
        assert one_by_one(plan, events, cancel) == derived(plan, events, cancel)


@pytest.mark.parametrize("wrong", [last_wins, counts_repeats])
def test_a_derivation_that_depends_on_order_or_repeats_is_found(wrong: Derive) -> None:
    """The law fails for a last-one-wins and for one that counts."""
    plan = world(SHAPES["chain"])
    events = [event("a", 1, STARTED), event("a", 1, SUCCEEDED), event("a", 1, FAILED, SYSTEM)]
    order_law(derived, plan, events, random.Random(1))
    assert any(fails(order_law, wrong, plan, events, random.Random(seed)) for seed in range(20))


# What is accepted.

Judge = Callable[[StepEvent, DerivedState], Refusal | None]
Accepted = frozenset[StepEvent]


def check_world(plan: ExecutionPlan, events: Accepted, cancel: bool, state: DerivedState) -> None:
    """Fails if a set of accepted events breaks what holds of every run."""
    steps = {step.name: step for step in plan.steps}
    for name, attempts in state.attempts.items():
        mine = [each for each in events if each.step == name]
        assert sorted(attempts) == list(range(1, len(attempts) + 1)), "attempts are dense from 1"
        assert len(attempts) <= steps[name].max_attempts, "no attempt beyond the policy"
        for number in attempts:
            ends = [each for each in mine if each.attempt == number and each.type is not STARTED]
            assert len(ends) <= 1, "at most one end of an attempt"
            assert any(each.attempt == number and each.type is STARTED for each in mine), "what ends has started"
            if number < len(attempts):
                (end,) = ends
                assert end.type is FAILED, "only a failure is repeated"
                assert end.error_kind.value in list(steps[name].retry_on), "and only of a kind that is"
        if attempts:
            before = [state.steps[each] for each in steps[name].depends_on]
            assert all(each is StepState.SUCCEEDED for each in before), "no step starts before what it waits for"
    if state.run is RunState.SUCCEEDED:
        assert set(state.steps.values()) == {StepState.SUCCEEDED}
    if state.run is RunState.FAILED:
        assert StepState.FAILED in state.steps.values()
    if state.run.final:
        assert StepState.RUNNING not in state.steps.values(), "nothing runs in a run that has ended"
    assert cancel or StepState.CANCELED not in state.steps.values()


def check_follows(before: DerivedState, after: DerivedState) -> None:
    """Fails if a run goes back on what was final."""
    if before.run.final:
        assert after.run is before.run, "a final state never changes"
    for name, state in before.steps.items():
        if state in (StepState.SUCCEEDED, StepState.FAILED):
            assert after.steps[name] is state, "what a step has become it stays"
    order = [RunState.PLANNED, RunState.RUNNING, RunState.CANCELING]
    if after.run in order:
        assert order.index(after.run) >= order.index(before.run), "a run does not go back"


def explore(plan: ExecutionPlan, judge: Judge) -> set[tuple[Accepted, bool]]:
    """Every set of accepted events that offers in any order lead to, each checked; cancellation at any moment.

    As state depends on the set alone, this walks through all sequences of offers of any length.
    """
    offers = universe(plan, max(step.max_attempts for step in plan.steps) + 1)
    offers.append(event("z", 1, STARTED))
    met: set[tuple[Accepted, bool]] = set()
    waiting: list[tuple[Accepted, bool]] = [(frozenset(), False)]
    while waiting:
        here = waiting.pop()
        if here in met:
            continue
        met.add(here)
        events, cancel = here
        state = derive_state(plan, events, cancel_requested=cancel)
        check_world(plan, events, cancel, state)
        next_ones = [] if cancel or state.run.final else [(events, True)]
        for offer in offers:
            verdict = judge(offer, state) is None
            if offer not in events:
                assert verdict == allowed(plan, events, cancel, offer), (offer, state.run)
            if verdict:
                next_ones.append((events | {offer}, cancel))
        assert state.run.final or any(following[1] == cancel for following in next_ones), "no run is stuck"
        for following in next_ones:
            check_follows(state, derive_state(plan, following[0], cancel_requested=following[1]))
        waiting += next_ones
    return met


BOTH = (RetryKind.SYSTEM, RetryKind.USER)


@pytest.mark.parametrize(
    ("shape", "attempts", "kinds"),
    [
        ("one", 3, BOTH),
        ("one", 2, ()),
        ("chain", 2, BOTH),
        ("chain", 2, BOTH[:1]),
        ("apart", 2, BOTH[1:]),
        ("join", 2, BOTH),
        ("fork", 2, BOTH[1:]),
        ("row", 2, BOTH),
        ("triangle", 2, BOTH[:1]),
    ],
)
def test_every_sequence_of_offers_keeps_the_rules(shape: str, attempts: int, kinds: tuple[RetryKind, ...]) -> None:
    """In small worlds every event is offered at every moment: exactly what the rules allow is accepted."""
    met = explore(world(SHAPES[shape], attempts=attempts, retry_on=kinds), judged)
    assert {cancel for _, cancel in met} == {False, True}
    assert len(met) >= 10


def accepts_all(event: StepEvent, state: DerivedState) -> Refusal | None:
    """A wrong judge: everything may stand."""
    return judged(event, state) if event.step not in state.steps else None


def forgets(*reasons: str) -> Judge:
    """A wrong judge that lacks some reasons."""

    def judge(event: StepEvent, state: DerivedState) -> Refusal | None:
        found = judged(event, state)
        return None if found and found.reason in reasons else found

    return judge


def refuses_retries(event: StepEvent, state: DerivedState) -> Refusal | None:
    """A wrong judge: no second attempt."""
    return Refusal("NO", "") if event.attempt > 1 else judged(event, state)


@pytest.mark.parametrize(
    "wrong",
    [
        accepts_all,
        refuses_retries,
        *map(
            forgets,
            [
                "ATTEMPT_ENDED", "ATTEMPT_NOT_STARTED", "ATTEMPT_OUT_OF_ORDER", "ATTEMPTS_EXHAUSTED", "RUN_CANCELING",
                "RUN_ENDED", "RUN_NOT_CANCELING", "STEP_NOT_READY",
            ],
        ),
    ],
)  # fmt: skip
def test_a_judge_that_forgets_a_rule_is_found(wrong: Judge) -> None:
    """Each reason for which an event is refused is needed: without it the walk fails."""
    plans = [world(SHAPES[shape], retry_on=BOTH[:1]) for shape in ("chain", "apart")]
    assert any(fails(explore, plan, wrong) for plan in plans)


@pytest.mark.parametrize("wrong", [accepts_all, forgets("ATTEMPT_ENDED"), forgets("STEP_NOT_READY")])
def test_what_holds_of_every_run_would_break(wrong: Judge) -> None:
    """The invariants alone, without the table of what is allowed, find a judge that lets too much pass."""
    plan = world(SHAPES["chain"], retry_on=BOTH[:1])
    assert any(fails(walk, random.Random(seed), plan, wrong) for seed in range(200))


def walk(rng: random.Random, plan: ExecutionPlan, judge: Judge) -> DerivedState:
    """A runtime that reports at random, mostly what could be next: only what is accepted is applied."""
    state = derive_state(plan, (), cancel_requested=False)
    accepted: set[StepEvent] = set()
    offers = universe(plan, 4)
    cancel_at = rng.choice([-1, rng.randint(0, 30)])
    for moment in range(60):
        before = derive_state(plan, accepted, cancel_requested=state.cancel_requested)
        if moment == cancel_at and not state.run.final:
            state.request_cancel()
        else:
            likely = [each for each in offers if each.attempt == len(state.attempts[each.step])]
            offer = rng.choice(likely if likely and rng.random() < 0.5 else offers)
            if judge(offer, state) is not None:
                continue
            state.apply(offer)
            accepted.add(offer)
        check_world(plan, frozenset(accepted), state.cancel_requested, state)
        check_follows(before, state)
        assert seen(state) == derived(plan, accepted, state.cancel_requested)
    return state


@LAW
@given(generated(lambda rng: (rng, random_plan(rng, 7))))
def test_a_random_runtime_never_breaks_a_run(made: tuple[random.Random, ExecutionPlan]) -> None:
    """Larger plans, random reports, cancellation at a random moment: whatever is accepted, the invariants hold."""
    walk(*made, judged)


# Cancellation.


def test_a_run_without_a_plan_is_created_or_cancelled() -> None:
    """Nothing else can be said of it."""
    assert derive_state(None, (), cancel_requested=False).run is RunState.CREATED
    assert derive_state(None, (), cancel_requested=True).run is RunState.CANCELED
    state = derive_state(None, (), cancel_requested=False)
    state.request_cancel()
    assert state.run is RunState.CANCELED


@pytest.mark.parametrize("shape", ["one", "chain", "apart"])
def test_once_cancelled_nothing_starts_and_what_runs_may_end(shape: str) -> None:
    """From every reachable state: it is cancelling exactly while an attempt runs, and ends with the last one."""
    plan = world(SHAPES[shape])
    met = explore(plan, judged)
    for events, cancel in met:
        if not cancel:
            continue
        state = derive_state(plan, events, cancel_requested=True)
        running = [
            (name, number)
            for name, attempts in state.attempts.items()
            for number, attempt in attempts.items()
            if attempt.state == "running"
        ]
        assert (state.run is RunState.CANCELING) == bool(running)
        assert state.run in (RunState.CANCELING, RunState.CANCELED, RunState.SUCCEEDED)
        assert not {StepState.READY, StepState.PENDING} & set(state.steps.values())
        assert all(judged(each, state) for each in universe(plan, 3) if each.type is STARTED)
        for name, number in running:
            for end in (
                event(name, number, SUCCEEDED),
                event(name, number, FAILED, USER),
                event(name, number, CANCELED),
            ):
                assert judged(end, state) is None
            state.apply(event(name, number, CANCELED))
        assert state.run in (RunState.CANCELED, RunState.SUCCEEDED)


def test_a_run_that_succeeds_while_it_is_cancelled_has_succeeded() -> None:
    """The last running attempt may still make the run whole."""
    state = derive_state(world(SHAPES["one"]), [event("a", 1, STARTED)], cancel_requested=True)
    found = [state.run]
    state.apply(event("a", 1, SUCCEEDED))
    assert [*found, state.run] == [RunState.CANCELING, RunState.SUCCEEDED]


# Reasons.

CHAIN = world(SHAPES["chain"])


def state_of(*events: StepEvent, cancel: bool = False) -> DerivedState:
    """The state of a chain of two steps with two attempts, the second after SYSTEM."""
    return derive_state(CHAIN, events, cancel_requested=cancel)


ONE_STARTED = event("a", 1, STARTED)
DONE = (ONE_STARTED, event("a", 1, SUCCEEDED))


@pytest.mark.parametrize(
    ("state", "offer", "reason"),
    [
        (state_of(), event("z", 1, STARTED), "STEP_UNKNOWN"),
        (state_of(), event("z", 1, SUCCEEDED), "STEP_UNKNOWN"),
        (state_of(), event("b", 1, STARTED), "STEP_NOT_READY"),
        (state_of(), event("a", 2, STARTED), "ATTEMPT_OUT_OF_ORDER"),
        (state_of(), event("a", 1, SUCCEEDED), "ATTEMPT_NOT_STARTED"),
        (state_of(ONE_STARTED), event("a", 1, STARTED, event_id="again"), "ATTEMPT_OUT_OF_ORDER"),
        (state_of(ONE_STARTED), event("a", 2, STARTED), "ATTEMPT_OUT_OF_ORDER"),
        (state_of(ONE_STARTED), event("a", 1, CANCELED), "RUN_NOT_CANCELING"),
        (state_of(*DONE), event("a", 1, FAILED, USER), "ATTEMPT_ENDED"),
        (state_of(*DONE), event("a", 1, STARTED, event_id="again"), "ATTEMPT_ENDED"),
        (state_of(*DONE), event("a", 2, STARTED), "ATTEMPT_OUT_OF_ORDER"),
        (state_of(ONE_STARTED, event("a", 1, FAILED, USER)), event("a", 2, STARTED), "RUN_ENDED"),
        (state_of(ONE_STARTED, cancel=True), event("a", 2, STARTED), "RUN_CANCELING"),
        (state_of(cancel=True), event("a", 1, STARTED), "RUN_ENDED"),
    ],
)
def test_a_refusal_gives_its_reason(state: DerivedState, offer: StepEvent, reason: str) -> None:
    """Each way to come at the wrong moment has its reason of the contract."""
    found = judged(offer, state)
    assert found
    assert found.reason == reason
    assert found.message


def test_exhausted_attempts_are_told_apart_from_an_ended_run() -> None:
    """While another branch still runs, a step that failed for good says so."""
    plan = world(SHAPES["apart"])
    events = [ONE_STARTED, event("a", 1, FAILED, USER), event("b", 1, STARTED)]
    found = judged(event("a", 2, STARTED), derive_state(plan, events, cancel_requested=False))
    assert found
    assert found.reason == "ATTEMPTS_EXHAUSTED"


def test_success_needs_every_declared_output() -> None:
    """Missing outputs are named; a failure needs none."""
    state = state_of(ONE_STARTED)
    found = judge_event(event("a", 1, SUCCEEDED), state, ("model", "report"))
    assert found
    assert (found.reason, "model, report" in found.message) == ("OUTPUT_MISSING", True)
    assert judge_event(event("a", 1, FAILED, USER), state, ("model",)) is None


def test_only_a_running_attempt_hands_in_outputs() -> None:
    """Before it starts and after it ended, artifacts and metrics are refused."""
    reasons = {
        judge_output("z", 1, state_of()): "STEP_UNKNOWN",
        judge_output("a", 1, state_of()): "ATTEMPT_NOT_STARTED",
        judge_output("a", 2, state_of(ONE_STARTED)): "ATTEMPT_NOT_STARTED",
        judge_output("a", 1, state_of(*DONE)): "ATTEMPT_ENDED",
    }
    assert {found: found.reason for found in reasons if found} == reasons
    assert judge_output("a", 1, state_of(ONE_STARTED)) is None


def test_an_attempt_says_what_its_events_claim() -> None:
    """Start and end are the runtime's claims; of equal kinds the event with the smallest id counts."""
    early, late = "2026-01-01T00:00:00.000000Z", "2026-01-02T00:00:00.000000Z"
    events = [
        event("a", 1, STARTED, event_id="s2", time=late),
        event("a", 1, STARTED, event_id="s1", time=early),
        event("a", 1, FAILED, SYSTEM, event_id="f1", time=late),
    ]
    for order in itertools.permutations(events):
        attempt = derive_state(CHAIN, order, cancel_requested=False).attempts["a"][1]
        assert (attempt.start_time, attempt.end_time, attempt.message) == (early, late, "f1")
        assert attempt.error_kind is SYSTEM


@pytest.mark.parametrize(
    ("values", "field"),
    [
        (("", "a", 1, STARTED, ErrorKind.NONE, "", TIME), "eventId"),
        (("e 1", "a", 1, STARTED, ErrorKind.NONE, "", TIME), "eventId"),
        (("e\n", "a", 1, STARTED, ErrorKind.NONE, "", TIME), "eventId"),
        (("e" * 129, "a", 1, STARTED, ErrorKind.NONE, "", TIME), "eventId"),
        (("e", "A", 1, STARTED, ErrorKind.NONE, "", TIME), "step"),
        (("e", "a", 0, STARTED, ErrorKind.NONE, "", TIME), "attempt"),
        (("e", "a", 101, STARTED, ErrorKind.NONE, "", TIME), "attempt"),
        (("e", "a", 1, STARTED, USER, "", TIME), "errorKind"),
        (("e", "a", 1, SUCCEEDED, SYSTEM, "", TIME), "errorKind"),
        (("e", "a", 1, FAILED, ErrorKind.NONE, "", TIME), "errorKind"),
        (("e", "a", 1, STARTED, ErrorKind.NONE, "m" * 4_001, TIME), "message"),
        (("e", "a", 1, STARTED, ErrorKind.NONE, "\x1b[2J", TIME), "message"),
        (("e", "a", 1, STARTED, ErrorKind.NONE, "", "2026-01-02T03:04:05Z"), "occurTime"),
    ],
)
def test_an_event_outside_its_rules_is_refused_by_field(values: tuple[Any, ...], field: str) -> None:
    """Ids, attempts, kinds of failure, text and times each have their rule."""
    assert refusal(StepEvent, *values).field == field
