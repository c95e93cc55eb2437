"""Derived state: a pure function of a run's plan and the set of its accepted events. Nobody sets it.

Rules:

1. Events are a set: their order and repeats do not matter.
2. An attempt with a terminal event has ended. Only one is ever accepted; of several, the first of SUCCEEDED, FAILED,
   CANCELED would count.
3. A step has succeeded if one of its attempts did. It has failed if its last attempt failed and the plan allows no
   further one for that kind of failure.
4. A step that waits for a failed, skipped or cancelled step is skipped, or cancelled with the run.
5. Once cancellation was asked for nothing starts: open steps without a running attempt are cancelled.
6. The run has SUCCEEDED when every step has; it is CANCELING or CANCELED once cancellation was asked for, unless it
   succeeded all the same; it has FAILED when every step has ended and one failed; it is RUNNING once an attempt
   started; else PLANNED, or CREATED without a plan.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

from animus.domain.errors import invalid
from animus.domain.names import REQUEST_ID, check_length, check_pattern, check_time
from animus.domain.pipeline import ErrorKind, RetryKind
from animus.domain.plan import ExecutionPlan, PlanStep
from animus.domain.run import check_attempt


class RunState(StrEnum):
    """State of a run."""

    CREATED = "created"
    PLANNED = "planned"
    RUNNING = "running"
    CANCELING = "canceling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"

    @property
    def final(self) -> bool:
        """Whether nothing more happens to the run."""
        return self in (RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELED)


class StepState(StrEnum):
    """State of a step."""

    NONE = ""  # in a comparison: the plan lacks it
    PENDING = "pending"
    READY = "ready"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    SKIPPED = "skipped"
    CANCELED = "canceled"


class AttemptState(StrEnum):
    """State of an attempt."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"


class StepEventType(StrEnum):
    """What happened to an attempt."""

    STARTED = "started"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"


@dataclass(frozen=True, slots=True)
class StepEvent:
    """Something that happened to an attempt, as a runtime reports it."""

    SCHEMA: ClassVar[str] = "animus.step_event/v1"

    event_id: str
    step: str
    attempt: int
    type: StepEventType
    error_kind: ErrorKind
    message: str  # 0 to 4,000 characters
    occur_time: str  # as the runtime claims; it decides nothing

    def __post_init__(self) -> None:
        check_pattern(
            REQUEST_ID, self.event_id, "eventId", "is no event id: 1 to 128 printable ASCII characters without space"
        )
        check_attempt(self.step, self.attempt)
        if (self.type is StepEventType.FAILED) != (self.error_kind is not ErrorKind.NONE):
            raise invalid("errorKind", "says why an attempt failed: give it for FAILED, and for nothing else")
        check_length(self.message, 0, 4_000, "message")
        check_time(self.occur_time, "occurTime")


class RunEventType(StrEnum):
    """What happened to a run."""

    PLANNED = "planned"
    CANCEL_REQUESTED = "cancel_requested"
    STEP = "step"


@dataclass(frozen=True, slots=True)
class RunEvent:
    """An accepted event of a run: one row. `sequence` is dense from 1 and decides between writers that race.

    `state` is the run's state after the event: a summary for lists that anyone can derive again.
    """

    SCHEMA: ClassVar[str] = "animus.run_event/v1"

    run_id: str
    sequence: int
    type: RunEventType
    plan_digest: str  # of PLANNED; else empty
    reason: str  # of CANCEL_REQUESTED; else empty
    step_event: tuple[StepEvent, ...]  # one for STEP; else none
    state: RunState


TERMINAL = {
    StepEventType.SUCCEEDED: AttemptState.SUCCEEDED,
    StepEventType.FAILED: AttemptState.FAILED,
    StepEventType.CANCELED: AttemptState.CANCELED,
}


@dataclass(frozen=True, slots=True)
class Attempt:
    """What the events say of one attempt. Times are the runtime's claims, empty where no event said one."""

    step: str
    attempt: int
    state: AttemptState
    error_kind: ErrorKind
    message: str
    start_time: str
    end_time: str


class DerivedState:
    """State of a run (`run`), of its steps in plan order (`steps`), and what its events say of attempts (`attempts`).

    Made by `derive_state`; `apply` adds an event at the cost of the steps that it touches, with the same result as
    deriving again from all events.
    """

    def __init__(self, plan: ExecutionPlan | None, events: Iterable[StepEvent], *, cancel_requested: bool) -> None:
        self.plan = plan
        self.cancel_requested = cancel_requested
        self.planned = {step.name: step for step in plan.steps} if plan else {}
        self.attempts: dict[str, dict[int, Attempt]] = {name: {} for name in self.planned}
        self.steps: dict[str, StepState] = {}
        self._events: dict[tuple[str, int], dict[StepEventType, StepEvent]] = {}
        self._followers: dict[str, list[str]] | None = None
        self._counts: Counter[StepState] = Counter()
        for event in events:
            self._note(event)
        self._derive_steps()

    @property
    def run(self) -> RunState:
        """State of the run."""
        if self.plan is None:
            return RunState.CANCELED if self.cancel_requested else RunState.CREATED
        if self._counts[StepState.SUCCEEDED] == len(self.steps):
            return RunState.SUCCEEDED
        if self.cancel_requested:
            return RunState.CANCELING if self._counts[StepState.RUNNING] else RunState.CANCELED
        if not any(self._counts[state] for state in (StepState.PENDING, StepState.READY, StepState.RUNNING)):
            return RunState.FAILED
        return RunState.RUNNING if self._events else RunState.PLANNED

    def apply(self, event: StepEvent) -> None:
        """Adds an event of a step of the plan."""
        self._note(event)
        if self._followers is None:
            self._followers = {name: [] for name in self.planned}
            for step in self.planned.values():
                for before in step.depends_on:
                    self._followers[before].append(step.name)
        changed = [event.step]
        while changed:
            name = changed.pop()
            state = self._step_state(self.planned[name])
            if state is not self.steps[name]:
                self._counts[self.steps[name]] -= 1
                self._counts[state] += 1
                self.steps[name] = state
                changed.extend(self._followers[name])

    def request_cancel(self) -> None:
        """Adds that cancellation was asked for."""
        self.cancel_requested = True
        self._derive_steps()

    def _derive_steps(self) -> None:
        for step in self.planned.values():  # execution order: dependencies come first
            self.steps[step.name] = self._step_state(step)
        self._counts = Counter(self.steps.values())

    def _note(self, event: StepEvent) -> None:
        seen = self._events.setdefault((event.step, event.attempt), {})
        other = seen.get(event.type)
        if other is None or event.event_id < other.event_id:
            seen[event.type] = event
            self.attempts[event.step][event.attempt] = _attempt_of(event.step, event.attempt, seen)

    def _step_state(self, step: PlanStep) -> StepState:
        attempts = self.attempts[step.name]
        states = {attempt.state for attempt in attempts.values()}
        if AttemptState.SUCCEEDED in states:
            return StepState.SUCCEEDED
        if AttemptState.RUNNING in states:
            return StepState.RUNNING
        last = attempts[max(attempts)] if attempts else None
        if last and last.state is AttemptState.FAILED and not may_retry(step, last):
            return StepState.FAILED
        if self.cancel_requested or AttemptState.CANCELED in states:
            return StepState.CANCELED
        before = {self.steps[name] for name in step.depends_on}
        if before & {StepState.FAILED, StepState.SKIPPED, StepState.CANCELED}:
            return StepState.SKIPPED
        return StepState.READY if before <= {StepState.SUCCEEDED} else StepState.PENDING


def derive_state(plan: ExecutionPlan | None, events: Iterable[StepEvent], *, cancel_requested: bool) -> DerivedState:
    """The state that follows from plan and events. Linear in both."""
    return DerivedState(plan, events, cancel_requested=cancel_requested)


def may_retry(step: PlanStep, failed: Attempt) -> bool:
    """Whether another attempt may follow one that failed."""
    return failed.attempt < step.max_attempts and RetryKind(failed.error_kind.value) in step.retry_on


def _attempt_of(step: str, attempt: int, seen: dict[StepEventType, StepEvent]) -> Attempt:
    started = seen.get(StepEventType.STARTED)
    end = next((seen[kind] for kind in TERMINAL if kind in seen), None)
    return Attempt(
        step=step,
        attempt=attempt,
        state=TERMINAL[end.type] if end else AttemptState.RUNNING,
        error_kind=end.error_kind if end else ErrorKind.NONE,
        message=end.message if end else "",
        start_time=started.occur_time if started else "",
        end_time=end.occur_time if end else "",
    )


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an item of a batch may not stand: a reason of the contract and what to do."""

    reason: str
    message: str


def judge_event(event: StepEvent, state: DerivedState, missing_outputs: tuple[str, ...]) -> Refusal | None:
    """Whether an event may follow, given the state before it. `missing_outputs`: declared outputs without artifact."""
    if event.step not in state.steps:
        return Refusal("STEP_UNKNOWN", f"the plan has no step {event.step!r}")
    if event.type is StepEventType.STARTED:
        return _judge_start(event, state)
    ended = judge_output(event.step, event.attempt, state)
    if ended:
        return ended
    if event.type is StepEventType.SUCCEEDED and missing_outputs:
        return Refusal("OUTPUT_MISSING", f"register the declared outputs first: {', '.join(missing_outputs)}")
    if event.type is StepEventType.CANCELED and state.run is not RunState.CANCELING:
        return Refusal("RUN_NOT_CANCELING", "nobody asked to cancel the run: report FAILED instead")
    return None


def _judge_start(event: StepEvent, state: DerivedState) -> Refusal | None:
    attempts = state.attempts[event.step]
    if event.attempt in attempts and attempts[event.attempt].state is not AttemptState.RUNNING:
        return Refusal("ATTEMPT_ENDED", f"attempt {event.attempt} has ended {attempts[event.attempt].state}")
    if state.run.final:
        return Refusal("RUN_ENDED", f"the run has ended {state.run}")
    if state.run is RunState.CANCELING:
        return Refusal("RUN_CANCELING", "the run is being cancelled: start nothing more")
    step_state = state.steps[event.step]
    if step_state in (StepState.PENDING, StepState.SKIPPED):
        return Refusal("STEP_NOT_READY", f"a step that {event.step!r} waits for has not succeeded")
    if step_state is StepState.FAILED:
        return Refusal("ATTEMPTS_EXHAUSTED", f"the retry policy of {event.step!r} allows no further attempt")
    expected = max(attempts, default=0) + 1
    if step_state is not StepState.READY or event.attempt != expected:
        return Refusal(
            "ATTEMPT_OUT_OF_ORDER", f"the next of {event.step!r} is attempt {expected}, after the last ended"
        )
    return None


def judge_output(step: str, attempt: int, state: DerivedState) -> Refusal | None:
    """Whether an attempt may still hand in artifacts and metrics: it runs."""
    if step not in state.steps:
        return Refusal("STEP_UNKNOWN", f"the plan has no step {step!r}")
    found = state.attempts[step].get(attempt)
    if found is None:
        return Refusal("ATTEMPT_NOT_STARTED", f"attempt {attempt} was never started")
    if found.state is not AttemptState.RUNNING:
        return Refusal("ATTEMPT_ENDED", f"attempt {attempt} has ended {found.state}: that stands")
    return None
