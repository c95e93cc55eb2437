"""What a bundle says of itself, the summary of a run, and which records make up one run."""

import dataclasses
import random
from typing import Any

import pytest
from golden import evidence as golden
from hypothesis import given
from hypothesis import strategies as st

from animus.domain.dataset import DatasetVersion
from animus.domain.evidence import (
    AttemptSummary,
    Evidence,
    OutputSummary,
    RunEvidence,
    RunSummary,
    StepSummary,
    bag_name,
    summarize,
)
from animus.domain.state import AttemptState, RunEventType, RunState, StepState, derive_state
from domain.runs import ORIGIN, RUNS, digest_of, fixed_run
from domain.values import LAW, ONE, RUN_ID, SAMPLES, TIME, refusal, shuffled

EVIDENCE: Evidence = SAMPLES[Evidence]
RUN = fixed_run()


def test_a_bag_is_named_after_what_is_in_it() -> None:
    """A run bundle by the run, a log bundle by its first index, both by project and size."""
    assert bag_name(EVIDENCE) == f"animus-p-run-{RUN_ID}-9"
    assert bag_name(dataclasses.replace(EVIDENCE, run_id="")) == "animus-p-log-3-9"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"project_id": "P"}, "projectId"),
        ({"run_id": "7"}, "runId"),
        ({"epoch": 0}, "epoch"),
        ({"epoch": 2}, "origin"),
        ({"origin": "animus.example/q/1"}, "origin"),
        ({"origin": "animus.example/p/01"}, "origin"),
        ({"origin": "animus.example/p/x"}, "origin"),
        ({"origin": "animus.example/p/²"}, "origin"),
        ({"origin": "p/1"}, "origin"),
        ({"origin": "/p/1"}, "origin"),
        ({"origin": ""}, "origin"),
        ({"size": 0}, "size"),
        ({"size": 2**53}, "size"),
        ({"first_index": 9}, "firstIndex"),
        ({"first_index": -1}, "firstIndex"),
        ({"known_sizes": (0,)}, "knownSizes[0]"),
        ({"known_sizes": (2, 9)}, "knownSizes[1]"),
        ({"known_sizes": (2, 7, 2)}, "knownSizes[2]"),
    ],
)
def test_evidence_that_breaks_a_rule_is_refused(change: dict[str, Any], field: str) -> None:
    """The error names the field."""
    assert refusal(dataclasses.replace, EVIDENCE, **change).field == field


@pytest.mark.parametrize(
    ("kind", "values", "field"),
    [
        (AttemptSummary, (1, AttemptState.FAILED, "", "", "", ""), "errorKind"),
        (AttemptSummary, (1, AttemptState.FAILED, "user", "\x00", "", ""), "message"),
        (AttemptSummary, (1, AttemptState.FAILED, "user", "", "now", ""), "startTime"),
        (AttemptSummary, (1, AttemptState.FAILED, "user", "", TIME, "2026"), "endTime"),
        (StepSummary, ("A", StepState.READY, ()), "name"),
        (
            StepSummary,
            ("a", StepState.READY, (AttemptSummary(0, AttemptState.RUNNING, "none", "", "", ""),)),
            "attempt",
        ),
        (
            StepSummary,
            ("a", StepState.READY, (AttemptSummary(1, AttemptState.RUNNING, "none", "", "", ""),) * 2),
            "attempts[1].attempt",
        ),
        (OutputSummary, ("a", "", 1, ONE), "name"),
        (OutputSummary, ("a", "b", 101, ONE), "attempt"),
        (OutputSummary, ("a", "b", 1, "1" * 64), "digest"),
        (RunSummary, ("7", RunState.CREATED, "", (), ()), "runId"),
        (RunSummary, (RUN_ID, RunState.CREATED, "none", (), ()), "planDigest"),
        (RunSummary, (RUN_ID, RunState.CREATED, "", (), (OutputSummary("a", "b", 1, ONE),) * 2), "outputs[1].name"),
    ],
)
def test_a_summary_that_breaks_a_rule_is_refused(kind: Any, values: tuple[Any, ...], field: str) -> None:
    """The error names the field."""
    assert refusal(kind, *values).field == field


def test_outputs_are_ordered_by_step_and_then_by_name() -> None:
    """Also where the name of one step begins with that of another."""
    outputs = tuple(OutputSummary(*each, 1, ONE) for each in [("a-b", "a"), ("a", "z"), ("a", "b"), ("a1", "a")])
    ordered = RunSummary(RUN_ID, RunState.CREATED, "", (), outputs).outputs
    assert ordered == tuple(sorted(outputs, key=lambda each: (each.step, each.name)))


@pytest.mark.parametrize("name", sorted(golden.expected()))
def test_what_is_made_of_a_run_never_changes(name: str) -> None:
    """Summary, statements and renderings of one fixed run have the bytes that they always had."""
    assert (golden.FOLDER / name).read_bytes() == golden.expected()[name]


def test_each_golden_file_is_one_that_is_made() -> None:
    """No file lies there that nothing checks."""
    assert {path.name for path in golden.FOLDER.iterdir()} == golden.expected().keys()


def test_a_summary_says_what_happened() -> None:
    """The retry of the fixed run shows both attempts, and only the output of the one that succeeded."""
    summary = summarize(RUN)
    assert (summary.state, summary.plan_digest) == (RunState.SUCCEEDED, RUN.plan_digest)
    assert [step.name for step in summary.steps] == ["split", "fit", "judge"]
    fit = summary.steps[1]
    assert [(each.attempt, each.state, each.error_kind) for each in fit.attempts] == [
        (1, "failed", "system"),
        (2, "succeeded", "none"),
    ]
    models = [each for each in summary.outputs if each.name == "model"]
    assert models == [OutputSummary("fit", "model", 2, digest_of("model"))]


def test_a_run_without_a_plan_has_no_steps() -> None:
    """It was created and nothing more, or cancelled before it was planned."""
    bare = dataclasses.replace(RUN, plan=None, plan_digest="", events=(), artifacts=())
    assert summarize(bare) == RunSummary(RUN_ID, RunState.CREATED, "", (), ())
    request = dataclasses.replace(
        RUN.events[0], type=RunEventType.CANCEL_REQUESTED, plan_digest="", state=RunState.CANCELED
    )
    assert summarize(dataclasses.replace(bare, events=(request,))).state is RunState.CANCELED


@LAW
@given(RUNS)
def test_a_summary_has_the_derived_state_and_the_outputs(run: RunEvidence) -> None:
    """The state is the one recorded with the last event, and each artifact of a succeeded attempt is an output."""
    summary = summarize(run)
    if run.events:
        assert summary.state is run.events[-1].state
    cancel = any(event.type is RunEventType.CANCEL_REQUESTED for event in run.events)
    state = derive_state(run.plan, [each for e in run.events for each in e.step_event], cancel_requested=cancel)
    assert {step.name: step.state for step in summary.steps} == state.steps
    good = {(s.name, a.attempt) for s in summary.steps for a in s.attempts if a.state is AttemptState.SUCCEEDED}
    assert {(each.step, each.name, each.attempt, each.digest) for each in summary.outputs} == {
        (each.step, each.name, each.attempt, each.digest) for each in run.artifacts if (each.step, each.attempt) in good
    }


@LAW
@given(RUNS, st.integers(0, 2**32).map(random.Random))
def test_the_order_in_which_records_are_found_does_not_matter(run: RunEvidence, rng: random.Random) -> None:
    """Events, artifacts, edges and versions shuffled are the same evidence."""
    fields = {("RunEvidence", name) for name in ("events", "artifacts", "edges", "versions")}
    assert shuffled(run, rng, fields) == run


def test_the_instance_is_what_the_origin_begins_with() -> None:
    """Its name may have slashes."""
    assert (RUN.origin, RUN.instance_name) == (ORIGIN, "animus.example/lab")


OTHER_VERSION: DatasetVersion = SAMPLES[DatasetVersion]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"project_id": "Cells"}, "projectId"),
        ({"project_id": "p"}, "origin"),
        ({"origin": "animus.example/cells"}, "origin"),
        ({"run_digest": ""}, "runDigest"),
        ({"plan_digest": ""}, "planDigest"),
        ({"plan_digest": "x"}, "planDigest"),
        ({"plan": None}, "planDigest"),
        ({"plan": None, "plan_digest": ""}, "events[1].step"),
        ({"plan": None, "plan_digest": "", "events": ()}, "artifacts[0].step"),
        ({"versions": ()}, "versions"),
        ({"versions": (OTHER_VERSION,)}, "versions"),
        ({"versions": (*RUN.versions, OTHER_VERSION)}, "versions"),
        ({"versions": RUN.versions * 2}, "versions"),
        ({"events": (*RUN.events, RUN.events[0])}, f"events[{len(RUN.events)}].sequence"),
        ({"events": (dataclasses.replace(RUN.events[0], run_id="0" * 32),)}, "events[0].runId"),
        ({"artifacts": RUN.artifacts[:1] * 2}, "artifacts[1].name"),
        ({"artifacts": (dataclasses.replace(RUN.artifacts[0], run_id="0" * 32),)}, "artifacts[0].runId"),
        ({"artifacts": (dataclasses.replace(RUN.artifacts[0], step="none"),)}, "artifacts[0].step"),
    ],
)
def test_records_that_are_not_of_one_run_are_refused(change: dict[str, Any], field: str) -> None:
    """The error names the field."""
    assert refusal(dataclasses.replace, RUN, **change).field == field
