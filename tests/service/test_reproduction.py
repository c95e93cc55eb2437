"""Replays and comparisons of runs, through the real services on a real PostgreSQL."""

import secrets
from typing import Any

import pytest

from animus.v1 import audit_pb2, lineage_pb2, run_pb2, runtime_pb2
from service.conftest import Caller, Failure, Server, gathered
from service.requests import ONE, TWO, artifact, create_run, event, plan_run, planned_run, prepare, report, same
from service.test_run import counts

ABSENT = "0" * 32


def replay_run(run_id: str, request_id: str = "replay", project_id: str = "p") -> run_pb2.ReplayRunRequest:
    """Replays a run."""
    return run_pb2.ReplayRunRequest(project_id=project_id, request_id=request_id, run_id=run_id)


def compare_runs(
    run_id: str, other_run_id: str, request_id: str = "compare", project_id: str = "p"
) -> run_pb2.CompareRunsRequest:
    """Compares two runs."""
    return run_pb2.CompareRunsRequest(
        project_id=project_id, request_id=request_id, run_id=run_id, other_run_id=other_run_id
    )


async def executed(call: Caller, run_id: str, digest: str = TWO, *, attempts: int = 1) -> None:
    """Executes a planned run of two steps to its success, the first step at its last attempt."""
    for attempt in range(1, attempts):
        failed = event("first", attempt, "FAILED", error_kind="SYSTEM")
        await call("ReportStepEvents", report(run_id, event("first", attempt, "STARTED"), failed))
    await call("ReportStepEvents", report(run_id, event("first", attempts, "STARTED")))
    await call("RegisterArtifacts", artifact(run_id, "first", "table", attempt=attempts, digest=digest))
    rest = [event("first", attempts, "SUCCEEDED"), event("second", 1, "STARTED"), event("second", 1, "SUCCEEDED")]
    reply = await call("ReportStepEvents", report(run_id, *rest))
    assert reply.state == run_pb2.RUN_STATE_SUCCEEDED, reply


async def replayed(call: Caller, run_id: str) -> str:
    """The id of a new replay of a run, planned."""
    made = await call("ReplayRun", replay_run(run_id, secrets.token_hex(8)))
    await call("PlanRun", plan_run(made.run_id, f"plan-{made.run_id}"))
    return str(made.run_id)


async def last_entry(server: Server) -> Any:
    """The newest audit entry of the project."""
    entries = await server.admin("ListAuditEntries", audit_pb2.ListAuditEntriesRequest(project_id="p"))
    return entries.audit_entries[-1]


async def test_a_run_is_replayed_and_reproduced(server: Server) -> None:
    """From the first run to the verdict: a new run of the same spec, linked to the first, that made the same."""
    first = await planned_run(server)
    await executed(server.admin, first)
    request = replay_run(first)
    request.labels.add(key="why", value="audit")
    made = await server.admin("ReplayRun", request)
    original = await server.admin("GetRun", run_pb2.GetRunRequest(project_id="p", run_id=first))
    assert (made.replay_of, original.replay_of) == (first, "")
    assert (made.run_spec, made.run_spec_digest) == (original.run_spec, original.run_spec_digest)
    assert made.admission == original.admission
    assert (made.state, made.plan_digest, len(made.steps)) == (run_pb2.RUN_STATE_CREATED, "", 0)
    assert [(label.key, label.value) for label in made.labels] == [("why", "audit")]
    assert list(made.equal_runs) == [f"projects/p/runs/{first}"]
    entry = await last_entry(server)
    assert (entry.action, entry.resource) == ("run.replay", f"projects/p/runs/{made.run_id}")
    assert [record.kind for record in entry.records] == ["run", *["lineage_edge"] * 5]
    read = await server.admin("GetRun", run_pb2.GetRunRequest(project_id="p", run_id=made.run_id))
    listed = await server.admin("ListRuns", run_pb2.ListRunsRequest(project_id="p"))
    assert read.replay_of == first
    assert [each.replay_of for each in listed.runs] == [first, ""]
    await server.admin("PlanRun", plan_run(made.run_id, "plan-again"))
    await executed(server.admin, made.run_id, attempts=2)
    found = await server.admin("CompareRuns", compare_runs(made.run_id, first))
    assert found.verdict == run_pb2.COMPARISON_VERDICT_REPRODUCED
    assert (found.run_id, found.other_run_id, found.reason, found.first_step) == (made.run_id, first, "", "")
    assert found.state == found.other_state == run_pb2.RUN_STATE_SUCCEEDED
    assert found.plan_digest == found.other_plan_digest == original.plan_digest
    assert list(found.differences) == []
    done = run_pb2.STEP_STATE_SUCCEEDED
    assert [(s.step, s.state, s.other_state, s.attempts, s.other_attempts) for s in found.steps] == [
        ("first", done, done, 2, 1),
        ("second", done, done, 1, 1),
    ]
    assert [(o.step, o.name, o.digest, o.other_digest, o.equal) for o in found.outputs] == [
        ("first", "table", TWO, TWO, True)
    ]


async def test_a_replay_was_informed_by_its_run(server: Server) -> None:
    """The edge leads from the later run to the earlier, and back downstream."""
    first = await planned_run(server)
    second = await replayed(server.admin, first)
    third = await replayed(server.admin, second)
    names = [f"projects/p/runs/{run_id}" for run_id in (third, second, first)]
    upstream, downstream = lineage_pb2.LINEAGE_DIRECTION_UPSTREAM, lineage_pb2.LINEAGE_DIRECTION_DOWNSTREAM
    for start, direction in ((names[0], upstream), (names[2], downstream)):
        request = lineage_pb2.GetLineageRequest(project_id="p", node=start, direction=direction)
        walked = await server.admin("GetLineage", request)
        informed = lineage_pb2.LINEAGE_RELATION_WAS_INFORMED_BY
        edges = {(edge.subject, edge.object) for edge in walked.edges if edge.relation == informed}
        assert edges == {(names[0], names[1]), (names[1], names[2])}


async def test_a_replay_is_made_once_for_each_request_id(server: Server) -> None:
    """The same request is answered as before, at once too; another run under the same id is refused."""
    first = await planned_run(server)
    replies = await gathered([server.admin("ReplayRun", replay_run(first)) for _ in range(10)])
    assert all(same(reply, replies[0]) for reply in replies)
    other = await server.admin("ReplayRun", replay_run(first, "other"))
    listed = await server.admin("ListRuns", run_pb2.ListRunsRequest(project_id="p"))
    assert {run.run_id for run in listed.runs} == {first, replies[0].run_id, other.run_id}
    with pytest.raises(Failure) as found:
        await server.admin("ReplayRun", replay_run(other.run_id))
    assert (found.value.code, found.value.reason) == ("ALREADY_EXISTS", "REQUEST_ID_REUSED")
    assert found.value.metadata["paths"] == "runId"


async def test_what_is_only_validated_is_not_written(server: Server) -> None:
    """Both answer as if, with the same errors, and no row is written."""
    first = await planned_run(server)
    second = await replayed(server.admin, first)
    before = await counts(server)
    replay, comparison = replay_run(first), compare_runs(first, second)
    replay.validate_only = comparison.validate_only = True
    assert (await server.admin("ReplayRun", replay)).replay_of == first
    found = await server.admin("CompareRuns", comparison)
    assert found.verdict == run_pb2.COMPARISON_VERDICT_INCOMPARABLE
    replay.run_id = comparison.run_id = ABSENT
    for name, request in (("ReplayRun", replay), ("CompareRuns", comparison)):
        with pytest.raises(Failure) as failed:
            await server.admin(name, request)
        assert failed.value.reason == "RUN_UNKNOWN"
    assert await counts(server) == before
    comparison.run_id, comparison.validate_only = first, False
    assert (await server.admin("CompareRuns", comparison)).record.digest == found.record.digest
    assert (await counts(server))[-1] == before[-1] + 1


async def test_comparing_again_finds_what_is_recorded_until_a_run_goes_on(server: Server) -> None:
    """UNCHANGED and the same record while both runs are as they were; another record once one has changed."""
    first = await planned_run(server)
    second = await replayed(server.admin, first)
    one = await server.admin("CompareRuns", compare_runs(first, second, "one"))
    entry = await last_entry(server)
    assert one.record.name == f"projects/p/runs/{first}/comparisons/{one.record.digest}"
    assert (entry.entry_id, entry.action) == (one.record.audit_entry_id, "run.compare")
    assert (entry.resource, entry.outcome) == (f"projects/p/runs/{first}", audit_pb2.AUDIT_OUTCOME_ACCEPTED)
    assert [(record.kind, record.digest) for record in entry.records] == [("run_comparison", one.record.digest)]
    again = await server.admin("CompareRuns", compare_runs(first, second, "two"))
    entry = await last_entry(server)
    assert same(one, again)
    assert (entry.outcome, len(entry.records)) == (audit_pb2.AUDIT_OUTCOME_UNCHANGED, 0)
    assert entry.entry_id != again.record.audit_entry_id
    back = await server.admin("CompareRuns", compare_runs(second, first, "three"))
    assert back.record.digest != one.record.digest
    assert back.verdict == one.verdict
    await executed(server.admin, second)
    later = await server.admin("CompareRuns", compare_runs(first, second, "four"))
    assert later.record.digest != one.record.digest
    assert same(await server.admin("CompareRuns", compare_runs(first, second, "one")), one)  # as answered then


async def test_equal_comparisons_at_once_are_one_record(server: Server) -> None:
    """Ten callers with ids of their own get one record, that one of them wrote."""
    first = await planned_run(server)
    second = await replayed(server.admin, first)
    calls = [server.admin("CompareRuns", compare_runs(first, second, f"c{index}")) for index in range(10)]
    replies = await gathered(calls)
    assert {reply.record.SerializeToString() for reply in replies} == {replies[0].record.SerializeToString()}
    entries = await server.admin("ListAuditEntries", audit_pb2.ListAuditEntriesRequest(project_id="p"))
    outcomes = [entry.outcome for entry in entries.audit_entries if entry.action == "run.compare"]
    assert sorted(outcomes) == [audit_pb2.AUDIT_OUTCOME_ACCEPTED] + [audit_pb2.AUDIT_OUTCOME_UNCHANGED] * 9


async def test_runs_that_made_something_else_diverged(server: Server) -> None:
    """DIVERGED, with the step, both digests, and where the specs differ."""
    spec = await prepare(server.admin)
    runs = []
    for index, digest in enumerate((ONE, TWO)):
        spec.parameters[0].value = str(index)
        run_id = (await server.admin("CreateRun", create_run(spec, f"run-{index}"))).run_id
        await server.admin("PlanRun", plan_run(run_id, f"plan-{index}"))
        await executed(server.admin, run_id, digest)
        runs.append(run_id)
    found = await server.admin("CompareRuns", compare_runs(*runs))
    assert (found.verdict, found.first_step) == (run_pb2.COMPARISON_VERDICT_DIVERGED, "first")
    assert [(o.digest, o.other_digest, o.equal) for o in found.outputs] == [(ONE, TWO, False)]
    assert [(d.path, d.this_value, d.other_value) for d in found.differences] == [
        ("parameters[seed].value", '"0"', '"1"')
    ]
    assert found.plan_digest != found.other_plan_digest


async def test_what_a_failed_attempt_left_is_not_compared(server: Server) -> None:
    """The digest is that of the attempt that succeeded."""
    first = await planned_run(server)
    await executed(server.admin, first)
    second = await replayed(server.admin, first)
    await server.admin("ReportStepEvents", report(second, event("first", 1, "STARTED")))
    await server.admin("RegisterArtifacts", artifact(second, "first", "table", digest=ONE))
    await server.admin("ReportStepEvents", report(second, event("first", 1, "FAILED", error_kind="SYSTEM")))
    early = await server.admin("CompareRuns", compare_runs(second, first, "early"))
    assert early.reason == f"the run {second} is RUNNING; only runs that SUCCEEDED can be compared"
    assert [(o.digest, o.other_digest) for o in early.outputs] == [("", TWO)]
    await server.admin("ReportStepEvents", report(second, event("first", 2, "STARTED")))
    await server.admin("RegisterArtifacts", artifact(second, "first", "table", attempt=2))
    rest = [event("first", 2, "SUCCEEDED"), event("second", 1, "STARTED"), event("second", 1, "SUCCEEDED")]
    reply = await server.admin("ReportStepEvents", report(second, *rest))
    assert [result.outcome for result in reply.results] == [runtime_pb2.ITEM_OUTCOME_ACCEPTED] * 3
    late = await server.admin("CompareRuns", compare_runs(second, first, "late"))
    assert late.verdict == run_pb2.COMPARISON_VERDICT_REPRODUCED


async def test_a_run_that_is_not_there_is_named(server: Server) -> None:
    """RUN_UNKNOWN with the full name, whichever of the two it is."""
    run_id = (await server.admin("CreateRun", create_run(await prepare(server.admin)))).run_id
    for name, request in (
        ("ReplayRun", replay_run(ABSENT)),
        ("CompareRuns", compare_runs(ABSENT, run_id)),
        ("CompareRuns", compare_runs(run_id, ABSENT)),
    ):
        with pytest.raises(Failure) as found:
            await server.admin(name, request)
        assert (found.value.code, found.value.reason) == ("NOT_FOUND", "RUN_UNKNOWN")
        assert found.value.metadata["name"] == f"projects/p/runs/{ABSENT}"


@pytest.mark.parametrize(
    ("name", "request_", "field"),
    [
        ("ReplayRun", replay_run(""), "runId"),
        ("ReplayRun", replay_run("A" * 32), "runId"),
        ("CompareRuns", compare_runs("x", ABSENT), "runId"),
        ("CompareRuns", compare_runs(ABSENT, "x"), "otherRunId"),
        ("CompareRuns", compare_runs(ABSENT, ABSENT), "otherRunId"),
    ],
)
async def test_a_field_at_fault_is_named(server: Server, name: str, request_: Any, field: str) -> None:
    """An id that is none, and a run compared with itself."""
    with pytest.raises(Failure) as found:
        await server.admin(name, request_)
    assert (found.value.code, found.value.reason) == ("INVALID_ARGUMENT", "FIELD_INVALID")
    assert list(found.value.fields) == [field]


async def test_labels_of_a_replay_are_checked(server: Server) -> None:
    """A key that stands twice is named."""
    request = replay_run(await planned_run(server))
    for _ in range(2):
        request.labels.add(key="a", value="")
    with pytest.raises(Failure) as found:
        await server.admin("ReplayRun", request)
    assert list(found.value.fields) == ["labels[1].key"]


async def test_a_run_of_another_project_is_as_one_that_is_not_there(server: Server) -> None:
    """The same bytes for another project's run as for none, in every place."""
    await server.project("other")
    foreign = (await server.admin("CreateRun", create_run(await prepare(server.admin, "other"), "run", "other"))).run_id
    mine = (await server.admin("CreateRun", create_run(await prepare(server.admin)))).run_id
    operator = await server.caller("p", "operator")

    async def answer(name: str, request: Any) -> bytes:
        with pytest.raises(Failure) as found:
            await operator(name, request)
        return found.value.raw

    for name, requests in (
        ("ReplayRun", [replay_run(run_id) for run_id in (foreign, ABSENT)]),
        ("CompareRuns", [compare_runs(mine, run_id) for run_id in (foreign, ABSENT)]),
        ("CompareRuns", [compare_runs(run_id, mine) for run_id in (foreign, ABSENT)]),
    ):
        there, missing = [await answer(name, request) for request in requests]
        assert there.replace(foreign.encode(), ABSENT.encode()) == missing
