"""Runs through the real services on a real PostgreSQL."""

import asyncio

import pytest
from sqlalchemy import text

from animus.v1 import audit_pb2, lineage_pb2, log_pb2, run_pb2, runtime_pb2
from service.conftest import Failure, Server, gathered
from service.requests import (
    ONE,
    TWO,
    artifact,
    create_run,
    event,
    plan_run,
    planned_run,
    prepare,
    report,
    same,
)


async def test_a_run_goes_from_specs_to_success(server: Server) -> None:
    """The whole path: create, plan, report, derived state, artifacts, lineage, audit, and its log."""
    run_id = await planned_run(server)
    call = server.admin
    reply = await call("ReportStepEvents", report(run_id, event("first", 1, "STARTED")))
    assert reply.state == run_pb2.RUN_STATE_RUNNING
    await call("RegisterArtifacts", artifact(run_id, "first", "table"))
    reply = await call(
        "ReportStepEvents",
        report(run_id, event("first", 1, "SUCCEEDED"), event("second", 1, "STARTED"), event("second", 1, "SUCCEEDED")),
    )
    assert [result.outcome for result in reply.results] == [runtime_pb2.ITEM_OUTCOME_ACCEPTED] * 3, reply
    run = await call("GetRun", run_pb2.GetRunRequest(project_id="p", run_id=run_id))
    assert run.state == run_pb2.RUN_STATE_SUCCEEDED
    listed = await call("ListRuns", run_pb2.ListRunsRequest(project_id="p"))
    assert [(each.run_id, each.state, each.plan_digest) for each in listed.runs] == [
        (run_id, run.state, run.plan_digest)
    ]
    lineage = await call(
        "GetLineage",
        lineage_pb2.GetLineageRequest(
            project_id="p",
            node=f"projects/p/artifacts/{TWO}",
            direction=lineage_pb2.LINEAGE_DIRECTION_UPSTREAM,
        ),
    )
    assert f"projects/p/datasets/data/versions/{ONE}" in {node.name for node in lineage.nodes}
    assert not lineage.truncated
    entries = await call("ListAuditEntries", audit_pb2.ListAuditEntriesRequest(project_id="p"))
    assert [entry.action for entry in entries.audit_entries] == [
        "project.create",
        "dataset.create",
        "dataset_version.register",
        "environment_lock.register",
        "pipeline_spec.register",
        "run.create",
        "run.plan",
        "run.report_step_events",
        "run.register_artifacts",
        "run.report_step_events",
    ]
    waited = log_pb2.WaitForInclusionRequest(project_id="p", entry_id=entries.audit_entries[-1].entry_id)
    assert (await call("WaitForInclusion", waited)).index == 9
    tailed = await call.stream("TailAuditEntries", audit_pb2.TailAuditEntriesRequest(project_id="p"), most=10)
    assert [(entry.index, entry.entry_id) for entry in tailed] == [
        (index, entry.entry_id) for index, entry in enumerate(entries.audit_entries)
    ]


async def test_fifty_equal_requests_at_once_make_one_run(server: Server) -> None:
    """One run, one entry, 49 answers marked replayed, all answers the same bytes."""
    spec = await prepare(server.admin)
    callers = [type(server.admin)(server.channel, server.admin.token) for _ in range(50)]
    replies = await asyncio.gather(*(caller("CreateRun", create_run(spec, "same")) for caller in callers))
    assert all(same(reply, replies[0]) for reply in replies)
    assert sum(caller.metadata.get("animus-replayed") == "true" for caller in callers) == 49
    listed = await server.admin("ListRuns", run_pb2.ListRunsRequest(project_id="p"))
    assert len(listed.runs) == 1
    entries = await server.admin("ListAuditEntries", audit_pb2.ListAuditEntriesRequest(project_id="p"))
    assert [entry.action for entry in entries.audit_entries].count("run.create") == 1


async def test_a_request_id_used_for_another_body_is_refused(server: Server) -> None:
    """ALREADY_EXISTS with both digests and the differing path, and the refusal is audited."""
    spec = await prepare(server.admin)
    await server.admin("CreateRun", create_run(spec, "same"))
    spec.parameters[0].value = "8"
    with pytest.raises(Failure) as found:
        await server.admin("CreateRun", create_run(spec, "same"))
    assert (found.value.code, found.value.reason) == ("ALREADY_EXISTS", "REQUEST_ID_REUSED")
    assert found.value.metadata["paths"] == "runSpec.parameters[seed].value"
    assert found.value.metadata["first_digest"] != found.value.metadata["this_digest"]
    entries = await server.admin("ListAuditEntries", audit_pb2.ListAuditEntriesRequest(project_id="p"))
    last = entries.audit_entries[-1]
    assert (last.outcome, last.reason) == (audit_pb2.AUDIT_OUTCOME_REFUSED, "REQUEST_ID_REUSED")


async def test_a_new_request_id_with_an_equal_spec_is_a_new_run(server: Server) -> None:
    """Its answer names the earlier equal run."""
    spec = await prepare(server.admin)
    first = await server.admin("CreateRun", create_run(spec, "one"))
    second = await server.admin("CreateRun", create_run(spec, "two"))
    assert first.run_spec_digest == second.run_spec_digest
    assert first.run_id != second.run_id
    assert list(second.equal_runs) == [f"projects/p/runs/{first.run_id}"]


async def test_validate_only_checks_everything_and_writes_nothing(server: Server) -> None:
    """The same errors, and no row."""
    spec = await prepare(server.admin)
    before = await counts(server)
    request = create_run(spec)
    request.validate_only = True
    reply = await server.admin("CreateRun", request)
    assert reply.state == run_pb2.RUN_STATE_CREATED
    request.run_spec.datasets[0].content_digest = TWO
    with pytest.raises(Failure) as found:
        await server.admin("CreateRun", request)
    assert found.value.reason == "DATASET_VERSION_UNKNOWN"
    assert await counts(server) == before


async def test_planning_twice_returns_the_same_plan(server: Server) -> None:
    """The second call is accepted and changes nothing."""
    run_id = await planned_run(server)
    first = await server.admin("GetPlan", run_pb2.GetPlanRequest(project_id="p", run_id=run_id))
    again = await server.admin("PlanRun", plan_run(run_id, "again"))
    assert same(first, again)
    assert [step.name for step in again.steps] == ["first", "second"]
    assert list(again.critical_path) == ["first", "second"]


async def test_success_needs_every_declared_output(server: Server) -> None:
    """The refusal names the missing output; once it is registered, the same event stands."""
    run_id = await planned_run(server)
    await server.admin("ReportStepEvents", report(run_id, event("first", 1, "STARTED")))
    reply = await server.admin("ReportStepEvents", report(run_id, event("first", 1, "SUCCEEDED")))
    assert reply.results[0].reason == "OUTPUT_MISSING"
    await server.admin("RegisterArtifacts", artifact(run_id, "first", "table"))
    reply = await server.admin("ReportStepEvents", report(run_id, event("first", 1, "SUCCEEDED")))
    assert reply.results[0].outcome == runtime_pb2.ITEM_OUTCOME_ACCEPTED


async def test_each_event_of_a_batch_is_judged_alone(server: Server) -> None:
    """Accepted, duplicate and refused items of one batch, one audit entry that names the refusals."""
    run_id = await planned_run(server)
    started = event("first", 1, "STARTED")
    other = event("first", 1, "STARTED", message="other")
    reply = await server.admin(
        "ReportStepEvents",
        report(
            run_id,
            started,
            started,
            other,
            event("second", 1, "STARTED"),
            event("nowhere", 1, "STARTED"),
            event("first", 2, "STARTED"),
            event("first", 1, "CANCELED"),
            event("first", 1, "FAILED", error_kind="SYSTEM"),
            event("first", 1, "SUCCEEDED"),
            event("first", 2, "STARTED", event_id="again"),
        ),
    )
    assert [result.reason for result in reply.results] == [
        "",
        "",
        "EVENT_ID_REUSED",
        "STEP_NOT_READY",
        "STEP_UNKNOWN",
        "ATTEMPT_OUT_OF_ORDER",
        "RUN_NOT_CANCELING",
        "",
        "ATTEMPT_ENDED",
        "",
    ]
    entries = await server.admin("ListAuditEntries", audit_pb2.ListAuditEntriesRequest(project_id="p"))
    last = entries.audit_entries[-1]
    assert [(each.index, each.reason) for each in last.refusals] == [
        (2, "EVENT_ID_REUSED"),
        (3, "STEP_NOT_READY"),
        (4, "STEP_UNKNOWN"),
        (5, "ATTEMPT_OUT_OF_ORDER"),
        (6, "RUN_NOT_CANCELING"),
        (8, "ATTEMPT_ENDED"),
    ]


async def test_a_user_failure_ends_the_run_where_the_policy_says_so(server: Server) -> None:
    """Nothing is retried for USER here: the step fails, what waits for it is skipped, the run has failed."""
    run_id = await planned_run(server)
    reply = await server.admin(
        "ReportStepEvents",
        report(run_id, event("first", 1, "STARTED"), event("first", 1, "FAILED", error_kind="USER")),
    )
    assert reply.state == run_pb2.RUN_STATE_FAILED
    run = await server.admin("GetRun", run_pb2.GetRunRequest(project_id="p", run_id=run_id))
    assert [step.state for step in run.steps] == [run_pb2.STEP_STATE_FAILED, run_pb2.STEP_STATE_SKIPPED]
    reply = await server.admin("ReportStepEvents", report(run_id, event("second", 1, "STARTED")))
    assert reply.results[0].reason == "RUN_ENDED"


async def test_cancelling_waits_for_running_attempts(server: Server) -> None:
    """CANCELING while one runs, CANCELED once it has stopped, and nothing starts meanwhile."""
    run_id = await planned_run(server)
    await server.admin("ReportStepEvents", report(run_id, event("first", 1, "STARTED")))
    cancel = run_pb2.CancelRunRequest(project_id="p", request_id="cancel", run_id=run_id, reason="wrong data")
    run = await server.admin("CancelRun", cancel)
    assert run.state == run_pb2.RUN_STATE_CANCELING
    reply = await server.admin("ReportStepEvents", report(run_id, event("second", 1, "STARTED")))
    assert reply.results[0].reason == "RUN_CANCELING"
    reply = await server.admin("ReportStepEvents", report(run_id, event("first", 1, "CANCELED")))
    assert reply.state == run_pb2.RUN_STATE_CANCELED
    cancel.request_id = "again"
    assert (await server.admin("CancelRun", cancel)).state == run_pb2.RUN_STATE_CANCELED


async def test_a_run_that_has_ended_is_not_cancelled(server: Server) -> None:
    """FAILED_PRECONDITION with the reason and the run as subject, and the refusal is audited."""
    run_id = await planned_run(server)
    failed = report(run_id, event("first", 1, "STARTED"), event("first", 1, "FAILED", error_kind="USER"))
    await server.admin("ReportStepEvents", failed)
    with pytest.raises(Failure) as found:
        await server.admin("CancelRun", run_pb2.CancelRunRequest(project_id="p", request_id="c", run_id=run_id))
    assert (found.value.code, found.value.reason) == ("FAILED_PRECONDITION", "RUN_ENDED")
    assert found.value.preconditions == [("RUN_ENDED", f"projects/p/runs/{run_id}")]
    entries = await server.admin("ListAuditEntries", audit_pb2.ListAuditEntriesRequest(project_id="p"))
    assert entries.audit_entries[-1].outcome == audit_pb2.AUDIT_OUTCOME_REFUSED


async def test_dry_run_answers_and_writes_nothing(server: Server) -> None:
    """Plan, scenarios, earlier equal runs, differences and blockers; the same bytes for the same question."""
    spec = await prepare(server.admin)
    run = await server.admin("CreateRun", create_run(spec))
    before = await counts(server)
    request = run_pb2.DryRunRequest(project_id="p", run_spec=spec, compare_run_id=run.run_id)
    request.run_spec.parameters[0].value = "8"
    request.scenarios.add(name="flaky", attempt_seconds=10).failures.add(
        step="first", first_attempt=1, last_attempt=1, error_kind="ERROR_KIND_SYSTEM"
    )
    request.scenarios.add(name="broken", attempt_seconds=10).failures.add(
        step="first", first_attempt=1, last_attempt=1, error_kind="ERROR_KIND_USER"
    )
    reply = await server.admin("DryRun", request)
    assert same(reply, await server.admin("DryRun", request))
    flaky, broken = reply.scenarios
    assert (flaky.state, flaky.duration_seconds, len(flaky.attempts)) == (run_pb2.RUN_STATE_SUCCEEDED, 31, 3)
    assert (broken.state, list(broken.skipped_steps)) == (run_pb2.RUN_STATE_FAILED, ["second"])
    assert [(d.path, d.this_value, d.other_value) for d in reply.differences] == [
        ("parameters[seed].value", '"8"', '"7"')
    ]
    request.run_spec.datasets[0].content_digest = TWO
    blocked = await server.admin("DryRun", request)
    assert [blocker.field for blocker in blocked.blockers] == ["datasets[data]"]
    assert not blocked.HasField("plan")
    assert await counts(server) == before


async def test_reports_on_one_run_at_once_are_all_judged(server: Server) -> None:
    """Twenty writers of one run wait for each other: every answer is a judgement, one start is accepted."""
    run_id = await planned_run(server)
    replies = await gathered(
        [
            server.admin("ReportStepEvents", report(run_id, event("first", 1, "STARTED", event_id=f"e{index}")))
            for index in range(20)
        ]
    )
    outcomes = sorted(reply.results[0].reason for reply in replies)
    assert outcomes == ["", *["ATTEMPT_OUT_OF_ORDER"] * 19]


async def counts(server: Server) -> list[int]:
    """Rows of the tables that a run writes to; an entry is in the queue or in the log, whichever it has come to."""
    tables = ("audit_entry", "idempotency", "run", "run_spec", "execution_plan", "lineage_edge", "run_comparison")
    logged = "(SELECT count(*) FROM animus.audit_queue) + (SELECT count(*) FROM animus.log_leaf)"
    columns = [logged, *(f"(SELECT count(*) FROM animus.{table})" for table in tables)]
    async with server.running.engine.connect() as connection, connection.begin():
        await connection.execute(text("SELECT set_config('animus.project_id', 'p', true)"))
        return list((await connection.execute(text(f"SELECT {', '.join(columns)}"))).one())
