"""Datasets, environments, pipelines, audit and a large plan through the real services."""

import hashlib
import time

import pytest
from google.protobuf import json_format

from animus.v1 import (
    audit_pb2,
    dataset_pb2,
    environment_pb2,
    lineage_pb2,
    pipeline_pb2,
    project_pb2,
    run_pb2,
    runtime_pb2,
)
from service.conftest import Failure, Server, gathered
from service.requests import (
    ONE,
    artifact,
    create_run,
    dataset,
    environment,
    event,
    pipeline,
    plan_run,
    planned_run,
    prepare,
    register_pipeline,
    report,
    same,
    step,
    two_steps,
    version,
)
from service.shared import held


async def test_the_same_version_registered_again_is_the_version_that_is_there(server: Server) -> None:
    """Under another request_id: the same record, an entry that says unchanged. With other facts: a conflict."""
    await server.admin("CreateDataset", dataset())
    first = await server.admin("RegisterDatasetVersion", version())
    request = version()
    request.request_id = "again"
    assert same(first, await server.admin("RegisterDatasetVersion", request))
    entries = await server.admin("ListAuditEntries", audit_pb2.ListAuditEntriesRequest(project_id="p"))
    assert entries.audit_entries[-1].outcome == audit_pb2.AUDIT_OUTCOME_UNCHANGED
    request.request_id = "other"
    request.dataset_version.media_type = "text/plain"
    with pytest.raises(Failure) as found:
        await server.admin("RegisterDatasetVersion", request)
    assert (found.value.reason, found.value.metadata["paths"]) == ("DATASET_VERSION_DIFFERS", "mediaType")
    listed = await server.admin(
        "ListDatasetVersions", dataset_pb2.ListDatasetVersionsRequest(project_id="p", dataset_id="data")
    )
    assert [each.content_digest for each in listed.dataset_versions] == [ONE]
    got = await server.admin(
        "GetDatasetVersion",
        dataset_pb2.GetDatasetVersionRequest(project_id="p", dataset_id="data", content_digest=ONE),
    )
    assert same(got, first)


async def test_a_manifest_decides_the_content_digest(server: Server) -> None:
    """Another digest or size than that of the files is refused by name; the order of files does not matter."""
    await server.admin("CreateDataset", dataset())
    request = version()
    for path in ("b.csv", "a.csv"):
        request.dataset_version.files.add(path=path, size_bytes=2, digest=ONE)
    with pytest.raises(Failure) as found:
        await server.admin("RegisterDatasetVersion", request)
    assert list(found.value.fields) == ["datasetVersion.sizeBytes"]
    request.dataset_version.size_bytes = 4
    with pytest.raises(Failure) as found:
        await server.admin("RegisterDatasetVersion", request)
    assert list(found.value.fields) == ["datasetVersion.contentDigest"]
    files = ",".join(f'{{"digest":"{ONE}","path":"{path}","sizeBytes":2}}' for path in ("a.csv", "b.csv"))
    manifest = f'{{"files":[{files}],"schema":"animus.file_manifest/v1"}}'
    request.dataset_version.content_digest = "sha256:" + hashlib.sha256(manifest.encode()).hexdigest()
    reply = await server.admin("RegisterDatasetVersion", request)
    assert [file.path for file in reply.files] == ["a.csv", "b.csv"]


async def test_registrations_race_to_one_record(server: Server) -> None:
    """Ten callers register one pipeline at once under their own request_ids: one record, ten equal answers."""
    requests = [register_pipeline(two_steps(), request_id=f"r{index}") for index in range(10)]
    replies = await gathered([server.admin("RegisterPipelineSpec", request) for request in requests])
    assert all(same(reply, replies[0]) for reply in replies)


async def test_environments_and_pipelines_are_read_back(server: Server) -> None:
    """Get and List return what was registered, lists without the long parts."""
    lock = await server.admin("RegisterEnvironmentLock", environment())
    digest = lock.record.digest
    request = environment_pb2.GetEnvironmentLockRequest(project_id="p", digest=digest)
    assert same(lock, await server.admin("GetEnvironmentLock", request))
    listed = await server.admin("ListEnvironmentLocks", environment_pb2.ListEnvironmentLocksRequest(project_id="p"))
    assert [each.record.digest for each in listed.environment_locks] == [digest]
    spec = await server.admin("RegisterPipelineSpec", register_pipeline(two_steps()))
    get = pipeline_pb2.GetPipelineSpecRequest(project_id="p", digest=spec.record.digest)
    assert same(spec, await server.admin("GetPipelineSpec", get))
    named = await server.admin("ListPipelineSpecs", pipeline_pb2.ListPipelineSpecsRequest(project_id="p", name="demo"))
    assert [(each.record.digest, each.HasField("spec")) for each in named.pipeline_specs] == [
        (spec.record.digest, False)
    ]
    none = await server.admin("ListPipelineSpecs", pipeline_pb2.ListPipelineSpecsRequest(project_id="p", name="other"))
    assert not none.pipeline_specs
    valid = await server.admin(
        "ValidatePipelineSpec",
        pipeline_pb2.ValidatePipelineSpecRequest(
            project_id="p", pipeline_spec=json_format.ParseDict(two_steps(), pipeline_pb2.PipelineSpec())
        ),
    )
    assert (valid.digest, len(valid.violations)) == (spec.record.digest, 0)


async def test_metrics_are_points_that_stand(server: Server) -> None:
    """Recorded once, a duplicate is a duplicate, another value is refused."""
    run_id = await planned_run(server)
    await server.admin("ReportStepEvents", report(run_id, event("first", 1, "STARTED")))
    request = runtime_pb2.RecordMetricsRequest(project_id="p", request_id="m1", run_id=run_id)
    for index, value in ((0, "0.9"), (1, "0.5"), (1, "0.5"), (1, "0.4")):
        metric = request.metrics.add(step="first", attempt=1, name="loss", index=index, value=value)
        metric.occur_time.FromJsonString("2026-01-02T03:04:05Z")
    reply = await server.admin("RecordMetrics", request)
    assert [result.reason for result in reply.results] == ["", "", "", "METRIC_DIFFERS"]
    request.request_id = "m2"
    reply = await server.admin("RecordMetrics", request)
    assert reply.results[0].outcome == runtime_pb2.ITEM_OUTCOME_DUPLICATE
    listed = await server.admin("ListMetrics", run_pb2.ListMetricsRequest(project_id="p", run_id=run_id))
    assert [(each.index, each.value) for each in listed.metrics] == [(0, "0.9"), (1, "0.5")]


async def test_the_audit_log_holds_what_it_shows(server: Server) -> None:
    """Every entry's bytes hash to its leaf, name each record's digest, and are found by id and by resource."""
    run = await server.admin("CreateRun", create_run(await prepare(server.admin)))
    await server.published("p")
    entries = await server.admin("ListAuditEntries", audit_pb2.ListAuditEntriesRequest(project_id="p", page_size=2))
    seen = list(entries.audit_entries)
    while entries.next_page_token:
        entries = await server.admin(
            "ListAuditEntries",
            audit_pb2.ListAuditEntriesRequest(project_id="p", page_size=2, page_token=entries.next_page_token),
        )
        seen += entries.audit_entries
    assert len({entry.entry_id for entry in seen}) == len(seen) == 6
    assert [entry.index for entry in seen] == list(range(6))
    for entry in seen:
        assert entry.leaf_hash == hashlib.sha256(b"\x00" + entry.document).hexdigest()
        request = audit_pb2.GetAuditEntryRequest(project_id="p", entry_id=entry.entry_id)
        assert same(entry, await server.admin("GetAuditEntry", request))
    of_run = await server.admin(
        "ListAuditEntries", audit_pb2.ListAuditEntriesRequest(project_id="p", resource=run.record.name)
    )
    (entry,) = of_run.audit_entries
    assert run.record.digest in {record.digest for record in entry.records}
    assert entry.entry_id == run.record.audit_entry_id
    with pytest.raises(Failure) as found:
        await server.admin("GetAuditEntry", audit_pb2.GetAuditEntryRequest(project_id="p", entry_id="0" * 32))
    assert found.value.reason == "AUDIT_ENTRY_UNKNOWN"


async def test_an_entry_has_no_index_until_the_log_gives_it_one(server: Server) -> None:
    """Absent, which is not 0, in the list and alone; the first entry of a log has 0."""
    other = project_pb2.Project(project_id="other", display_name="", description="")
    async with held(server):
        await server.admin(
            "CreateProject", project_pb2.CreateProjectRequest(project_id="other", request_id="r", project=other)
        )
        listing = audit_pb2.ListAuditEntriesRequest(project_id="other")
        (waiting,) = (await server.admin("ListAuditEntries", listing)).audit_entries
        request = audit_pb2.GetAuditEntryRequest(project_id="other", entry_id=waiting.entry_id)
        assert same(waiting, await server.admin("GetAuditEntry", request))
        assert not waiting.HasField("index")
    await server.published("other")
    logged = await server.admin("GetAuditEntry", request)
    assert (logged.HasField("index"), logged.index) == (True, 0)
    logged.ClearField("index")
    assert same(logged, waiting)


async def test_lineage_says_when_it_leaves_something_out(server: Server) -> None:
    """Downstream of a version come its runs and what they made; the limit of depth shows as truncated."""
    run_id = await planned_run(server)
    await server.admin("ReportStepEvents", report(run_id, event("first", 1, "STARTED")))
    await server.admin("RegisterArtifacts", artifact(run_id, "first", "table"))
    request = lineage_pb2.GetLineageRequest(
        project_id="p",
        node=f"projects/p/datasets/data/versions/{ONE}",
        direction=lineage_pb2.LINEAGE_DIRECTION_DOWNSTREAM,
    )
    whole = await server.admin("GetLineage", request)
    names = [node.name.removeprefix(f"projects/p/runs/{run_id}") for node in whole.nodes]
    assert names[1:3] == ["", "/steps/first/attempts/1"]
    assert not whole.truncated
    request.max_depth = 1
    assert (await server.admin("GetLineage", request)).truncated
    request.max_depth = 0
    request.max_nodes = 2
    part = await server.admin("GetLineage", request)
    assert (len(part.nodes), part.truncated) == (2, False)  # the next page has the rest
    assert part.next_page_token


async def test_ten_thousand_steps_are_planned(server: Server) -> None:
    """Register, create, plan and read back the largest pipeline; the time is printed, not judged."""
    spec = pipeline_pb2.PipelineSpec()
    tree = pipeline(step("s00000", inputs={"datasets": [{"name": "data", "datasetRef": "data"}]}, attempts=1))
    json_format.ParseDict(tree, spec)
    for index in range(1, 10_000):
        added = spec.spec.steps.add()
        added.CopyFrom(spec.spec.steps[0])
        added.name = f"s{index:05}"
        del added.inputs.datasets[:]
        for before in {index // 2, index - 1 if index % 3 else index // 3}:
            if before != index:
                spec.spec.dependencies.add(step=added.name, depends_on=f"s{before:05}")
    small = await prepare(server.admin)
    request = register_pipeline(tree, request_id="large")
    request.pipeline_spec.CopyFrom(spec)
    started = time.perf_counter()
    registered = await server.admin("RegisterPipelineSpec", request)
    small.pipeline_spec_digest = registered.record.digest
    run = await server.admin("CreateRun", create_run(small))
    created = time.perf_counter()
    plan = await server.admin("PlanRun", plan_run(run.run_id))
    planned = time.perf_counter()
    got = await server.admin("GetPlan", run_pb2.GetPlanRequest(project_id="p", run_id=run.run_id))
    read = time.perf_counter()
    print(
        f"\n10,000 steps ({request.ByteSize() / 1e6:.1f} MB): register and create {created - started:.2f} s,"
        f" PlanRun {planned - created:.2f} s, GetPlan {read - planned:.2f} s"
    )
    assert same(plan, got)
    assert [step.name for step in plan.steps] == [f"s{index:05}" for index in range(10_000)]
    reply = await server.admin("ReportStepEvents", report(run.run_id, event("s00000", 1, "STARTED")))
    assert reply.results[0].outcome == runtime_pb2.ITEM_OUTCOME_ACCEPTED
