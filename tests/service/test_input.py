"""Bad input: a typed error that names the field, a process that stays up, and nothing written."""

import copy
from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from contract import METHODS
from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message_factory import GetMessageClass
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from animus.v1 import audit_pb2, lineage_pb2, pipeline_pb2, run_pb2
from service.conftest import Caller, Failure, Server
from service.requests import (
    ONE,
    TWO,
    artifact,
    create_run,
    dataset,
    event,
    pipeline,
    planned_run,
    prepare,
    register_pipeline,
    report,
    step,
    two_steps,
    version,
)
from service.test_run import counts

Tree = dict[str, Any]


def changed(change: Callable[[Tree], None]) -> Tree:
    """The pipeline of two steps with a change."""
    tree: Tree = copy.deepcopy(two_steps())
    change(tree)
    return tree


def first(tree: Tree) -> Tree:
    """Its first step."""
    return tree["spec"]["steps"][0]  # type: ignore[no-any-return]


def put(tree: Tree, key: str, value: object) -> None:
    """Sets a key."""
    tree[key] = value


BAD_PIPELINES = {
    "tag": (lambda t: put(first(t), "image", "python:3.11"), "spec.steps[0].image"),
    "missing field": (lambda t: first(t).pop("image"), "spec.steps[0].image"),
    "missing message": (lambda t: first(t).pop("retryPolicy"), "spec.steps[0].retryPolicy"),
    "no steps": (lambda t: put(t["spec"], "steps", []), "spec.steps"),
    "duplicate name": (lambda t: put(first(t), "name", "second"), "spec.steps[1].name"),
    "bad name": (lambda t: put(first(t), "name", "First"), "spec.steps[0].name"),
    "name with newline": (lambda t: put(first(t), "name", "first\n"), "spec.steps[0].name"),
    "NUL": (lambda t: put(first(t), "args", ["a\x00b"]), "spec.steps[0].args[0]"),
    "unknown step": (
        lambda t: put(t["spec"], "dependencies", [{"step": "second", "dependsOn": "third"}]),
        "spec.dependencies[0].dependsOn",
    ),
    "self edge": (
        lambda t: put(t["spec"], "dependencies", [{"step": "first", "dependsOn": "first"}]),
        "spec.dependencies[0].dependsOn",
    ),
    "cycle": (
        lambda t: put(t["spec"], "dependencies", [{"step": "first", "dependsOn": "second"}]),
        "spec.dependencies",
    ),
    "unknown artifact": (
        lambda t: put(t["spec"]["steps"][1]["inputs"]["artifacts"][0], "artifact", "other"),
        "spec.steps[1].inputs.artifacts[t].artifact",
    ),
    "unspecified enum": (
        lambda t: put(first(t)["retryPolicy"]["backoff"], "type", "BACKOFF_TYPE_UNSPECIFIED"),
        "spec.steps[0].retryPolicy.backoff.type",
    ),
    "unknown enum": (
        lambda t: put(first(t)["retryPolicy"]["backoff"], "type", 99),
        "spec.steps[0].retryPolicy.backoff.type",
    ),
    "unbounded retries": (
        lambda t: put(first(t)["retryPolicy"], "maxAttempts", 101),
        "spec.steps[0].retryPolicy.maxAttempts",
    ),
    "float spelled as text": (
        lambda t: put(first(t)["retryPolicy"]["backoff"], "multiplier", "NaN"),
        "spec.steps[0].retryPolicy.backoff.multiplier",
    ),
    "two spellings": (lambda t: put(first(t)["resources"], "cpu", "1000m"), "spec.steps[0].resources.cpu"),
    "kind": (lambda t: put(t, "kind", "Run"), "kind"),
    "output-only": (lambda t: put(t, "record", {"name": "x"}), "record"),
}


async def test_bad_pipelines_are_refused_by_path(server: Server) -> None:
    """Register and validate name the same field, and nothing is written."""
    before = await counts(server)
    for name, (change, path) in BAD_PIPELINES.items():
        tree = changed(change)
        with pytest.raises(Failure) as found:
            await server.admin("RegisterPipelineSpec", register_pipeline(tree))
        assert (found.value.code, found.value.reason) == ("INVALID_ARGUMENT", "FIELD_INVALID"), name
        assert list(found.value.fields) == [f"pipelineSpec.{path}"], name
        request = pipeline_pb2.ValidatePipelineSpecRequest(
            project_id="p", pipeline_spec=json_format.ParseDict(tree, pipeline_pb2.PipelineSpec())
        )
        reply = await server.admin("ValidatePipelineSpec", request)
        assert [violation.field for violation in reply.violations] == [path], name
        assert not reply.digest
    assert await counts(server) == before


async def test_faults_of_several_steps_are_named_at_once(server: Server) -> None:
    """One answer for mistakes in different places, in the order of the document."""

    def change(tree: Tree) -> None:
        first(tree)["resources"]["gpu"] = -1
        first(tree)["retryPolicy"]["maxAttempts"] = 0
        tree["spec"]["steps"][1]["name"] = "-"

    with pytest.raises(Failure) as found:
        await server.admin("RegisterPipelineSpec", register_pipeline(changed(change)))
    assert list(found.value.fields) == [
        "pipelineSpec.spec.steps[0].resources.gpu",
        "pipelineSpec.spec.steps[0].retryPolicy.maxAttempts",
        "pipelineSpec.spec.steps[1].name",
    ]


async def test_an_error_with_many_violations_still_arrives(server: Server) -> None:
    """As many as the caller can receive, and the message says how many there are."""
    spec = json_format.ParseDict(two_steps(), pipeline_pb2.PipelineSpec())
    for index in range(500):
        spec.spec.steps.add(name=f"s{index}")
    request = register_pipeline(two_steps())
    request.pipeline_spec.CopyFrom(spec)
    with pytest.raises(Failure) as found:
        await server.admin("RegisterPipelineSpec", request)
    assert found.value.reason == "FIELD_INVALID"
    assert len(found.value.fields) > 10
    assert "(and 99 more)" in found.value.message


BAD_RUNS: dict[str, tuple[Callable[[run_pb2.RunSpec], object], str, str]] = {
    "short commit": (lambda s: setattr(s.commit, "sha", "abc1234"), "FIELD_INVALID", "runSpec.commit.sha"),
    "branch": (lambda s: setattr(s.commit, "sha", "main"), "FIELD_INVALID", "runSpec.commit.sha"),
    "missing commit": (lambda s: s.ClearField("commit"), "FIELD_INVALID", "runSpec.commit"),
    "missing binding": (lambda s: s.ClearField("datasets"), "FIELD_INVALID", "runSpec.datasets"),
    "extra binding": (
        lambda s: s.datasets.add(dataset_ref="more", dataset_id="data", content_digest=s.datasets[0].content_digest),
        "FIELD_INVALID",
        "runSpec.datasets[1].datasetRef",
    ),
    "binding twice": (
        lambda s: s.datasets.append(s.datasets[0]),
        "FIELD_INVALID",
        "runSpec.datasets[1].datasetRef",
    ),
    "parameter twice": (
        lambda s: s.parameters.append(s.parameters[0]),
        "FIELD_INVALID",
        "runSpec.parameters[1].name",
    ),
    "float": (
        lambda s: s.parameters.add(name="lr", type=run_pb2.PARAMETER_TYPE_DECIMAL, value="1e-3"),
        "FIELD_INVALID",
        "runSpec.parameters[1].value",
    ),
    "NaN": (
        lambda s: s.parameters.add(name="lr", type=run_pb2.PARAMETER_TYPE_DECIMAL, value="NaN"),
        "FIELD_INVALID",
        "runSpec.parameters[1].value",
    ),
    "unknown version": (
        lambda s: setattr(s.datasets[0], "content_digest", TWO),
        "DATASET_VERSION_UNKNOWN",
        "",
    ),
    "unknown pipeline": (lambda s: setattr(s, "pipeline_spec_digest", TWO), "PIPELINE_SPEC_UNKNOWN", ""),
    "unknown environment": (lambda s: setattr(s, "environment_lock_digest", TWO), "ENVIRONMENT_LOCK_UNKNOWN", ""),
}


async def test_bad_run_specs_are_refused_by_path(server: Server) -> None:
    """Field errors name the field, unknown things the reason; nothing is written."""
    good = await prepare(server.admin)
    before = await counts(server)
    for name, (change, reason, path) in BAD_RUNS.items():
        spec = run_pb2.RunSpec.FromString(good.SerializeToString())
        change(spec)
        with pytest.raises(Failure) as found:
            await server.admin("CreateRun", create_run(spec))
        assert found.value.reason == reason, name
        assert list(found.value.fields) == ([path] if path else []), name
    assert await counts(server) == before


async def test_a_version_of_another_project_is_unknown(server: Server) -> None:
    """A binding that only another project could resolve answers as one that nobody can."""
    await server.project("other")
    spec = await prepare(server.admin, "p")
    await prepare(server.admin, "other")
    await server.admin("RegisterDatasetVersion", version("other", TWO))
    spec.datasets[0].content_digest = TWO
    with pytest.raises(Failure) as found:
        await server.admin("CreateRun", create_run(spec))
    assert (found.value.code, found.value.reason) == ("NOT_FOUND", "DATASET_VERSION_UNKNOWN")


async def test_malformed_bytes_are_refused_with_a_fixed_text(server: Server) -> None:
    """Truncated, wrong, non-UTF-8 and deep bytes: INVALID_ARGUMENT on every method, without exception text."""
    bad = {
        b"\xff\xff\xff\xff": "REQUEST_MALFORMED",
        b"\x0a\x05ab": "REQUEST_MALFORMED",
        b"\x22\x05\xff\xfe": "REQUEST_MALFORMED",
        b"\x0b" * 200: "REQUEST_MALFORMED",
        b"\xf8\x3f\x01": "FIELD_INVALID",  # field 1023, which no request has
    }
    for name in METHODS:
        for data, reason in bad.items():
            with pytest.raises(Failure) as found:
                await server.admin.raw(name, data)
            assert (found.value.code, found.value.reason) == ("INVALID_ARGUMENT", reason), (name, data)
            assert "Error" not in found.value.message


ODD: dict[str, list[Any]] = {
    "int": [-1, 2**31 - 1, -(2**31), 2**53, 2**63 - 1, -(2**63)],
    "str": ["\x00", "a\n", "é", "../..", "instance", "'; --", "a" * 100_000],
    "bytes": [b"\x00", b"\xff\xfe", b"\n\n", "— a b\n".encode(), b"a" * 100_000],
}
KINDS = {FieldDescriptor.CPPTYPE_INT32: "int", FieldDescriptor.CPPTYPE_INT64: "int"}


async def test_odd_values_in_any_field_of_any_method_are_no_defect(server: Server) -> None:
    """One field at a time, numbers, texts and bytes that no caller means: a typed answer, and nothing is written."""
    await server.published("p")
    before = await counts(server)
    met = set()
    for name, method in METHODS.items():
        for field in method.input_type.fields:
            kind = KINDS.get(field.cpp_type, "bytes" if field.type == field.TYPE_BYTES else "str")
            scalar = field.cpp_type == field.CPPTYPE_STRING or field.cpp_type in KINDS
            if not scalar or field.is_repeated or field.name in ("project_id", "request_id"):
                continue
            if (name, field.name) == ("ExportEvidence", "offset"):  # an export is on record before its end is known
                continue
            for value in ODD[kind]:
                request: Any = GetMessageClass(method.input_type)()
                for known in {"project_id", "request_id"} & set(method.input_type.fields_by_name):
                    setattr(request, known, "p")
                try:
                    setattr(request, field.name, value)
                except ValueError:  # too large for the field
                    continue
                met.add((name, field.name))
                try:
                    await server.admin(name, request, timeout=1)
                except Failure as failure:
                    assert failure.code not in ("INTERNAL", "UNKNOWN"), (field.full_name, value, failure)
    assert {("TailAuditEntries", "first_index"), ("AddCosignatures", "cosignatures"), ("GetTile", "level")} <= met
    assert await counts(server) == before


# Fields that are looked at before the one in question, with values that are right.
RIGHT: dict[str, Any] = {
    "dataset_id": "data",
    "content_digest": ONE,
    "found_digest": ONE,
    "rule_digest": ONE,
    "direction": 1,
    "node": f"projects/p/datasets/data/versions/{ONE}",
    "size": 1,
    "service_account_id": "ci",
    "token_digest": ONE,
}


async def test_texts_and_lists_without_end_are_refused_by_name(server: Server) -> None:
    """100,000 characters in any text of any request, 20,000 items in any list: the answer names the field."""
    spec = await prepare(server.admin)
    run = await server.admin("CreateRun", create_run(spec))
    before = await counts(server)
    met = 0
    for name, method in METHODS.items():
        for field in method.input_type.fields:
            if field.name == "validate_only" or (field.message_type is not None and not field.is_repeated):
                continue
            if field.cpp_type != field.CPPTYPE_STRING and not field.is_repeated:
                continue
            if field.enum_type is not None:  # a set of kinds is no larger for being long
                continue
            request: Any = GetMessageClass(method.input_type)()
            for known in method.input_type.fields:
                if known.name in ("project_id", "request_id"):
                    setattr(request, known.name, "p")
                elif known.name == "run_spec" and known.message_type is not None:
                    request.run_spec.CopyFrom(spec)
                elif known.name in RIGHT and known.name != field.name and not known.is_repeated:
                    setattr(request, known.name, RIGHT[known.name])
                elif known.name == "run_id" != field.name:
                    request.run_id = str(UUID(int=0)) if name == "ListExternalEvents" else run.run_id
            if field.message_type is not None:
                getattr(request, field.name).extend([GetMessageClass(field.message_type)()] * 20_000)
            elif field.cpp_type == field.CPPTYPE_STRING:
                long: Any = b"a" * 100_000 if field.type == field.TYPE_BYTES else "a" * 100_000
                if field.is_repeated:
                    getattr(request, field.name).append(long)
                else:
                    setattr(request, field.name, long)
            else:
                getattr(request, field.name).extend([1] * 20_000)
            with pytest.raises(Failure) as found:
                await server.admin(name, request)
            assert found.value.code == "INVALID_ARGUMENT", (name, field.name)
            paths = [path.partition("[")[0].partition(".")[0] for path in found.value.fields]
            assert field.json_name in paths, (name, field.name, found.value)
            met += 1
    assert met > 100
    assert await counts(server) == before


async def test_a_message_beyond_the_limit_is_refused(server: Server) -> None:
    """RESOURCE_EXHAUSTED, and the next call is served."""
    big = b"\x0a" + (server.settings.max_message_bytes + 1).to_bytes(4, "little")
    with pytest.raises(Failure) as found:
        await server.admin.raw("GetProject", big + b"x" * (server.settings.max_message_bytes + 1))
    assert found.value.code == "RESOURCE_EXHAUSTED"
    await server.admin("ListRuns", run_pb2.ListRunsRequest(project_id="p"))


async def test_a_request_id_is_required_and_printable(server: Server) -> None:
    """Empty, long, spaced and non-ASCII ids are refused by name."""
    for request_id in ("", "a" * 129, "a b", "é", "a\n"):
        request = dataset()
        request.request_id = request_id
        with pytest.raises(Failure) as found:
            await server.admin("CreateDataset", request)
        assert list(found.value.fields) == ["requestId"]


async def test_pages_are_bounded_and_their_tokens_bound_to_the_query(server: Server) -> None:
    """Negative sizes, made-up tokens and tokens of another query, project or method are refused."""
    spec = await prepare(server.admin)
    for index in range(3):
        await server.admin("CreateRun", create_run(spec, f"r{index}"))
    page = await server.admin("ListRuns", run_pb2.ListRunsRequest(project_id="p", page_size=2))
    token = page.next_page_token
    rest = await server.admin("ListRuns", run_pb2.ListRunsRequest(project_id="p", page_size=2, page_token=token))
    assert len({run.run_id for run in (*page.runs, *rest.runs)}) == 3
    assert not rest.next_page_token
    await server.project("other")
    digest = page.runs[0].run_spec_digest
    bad = [
        run_pb2.ListRunsRequest(project_id="p", page_token=token, run_spec_digest=digest),
        run_pb2.ListRunsRequest(project_id="other", page_token=token),
        run_pb2.ListRunsRequest(project_id="p", page_token=token[:-1] + ("A" if token[-1] != "A" else "B")),
        run_pb2.ListRunsRequest(project_id="p", page_token="x"),
        run_pb2.ListRunsRequest(project_id="p", page_token="é"),
    ]
    for request in bad:
        with pytest.raises(Failure) as found:
            await server.admin("ListRuns", request)
        assert found.value.reason == "PAGE_TOKEN_INVALID"
    with pytest.raises(Failure) as found:
        await server.admin("ListAuditEntries", audit_pb2.ListAuditEntriesRequest(project_id="p", page_token=token))
    assert found.value.reason == "PAGE_TOKEN_INVALID"
    with pytest.raises(Failure) as found:
        await server.admin("ListRuns", run_pb2.ListRunsRequest(project_id="p", page_size=-1))
    assert list(found.value.fields) == ["pageSize"]


async def test_bad_reports_refuse_the_whole_batch_by_path(server: Server) -> None:
    """Malformed items are no matter of judgement: the call is invalid, and nothing of it is written."""
    run_id = await planned_run(server)
    before = await counts(server)
    good = event("first", 1, "STARTED")
    for bad, path in (
        (event("first", 1, "FAILED"), "events[1].errorKind"),
        (event("first", 1, "STARTED", error_kind="USER"), "events[1].errorKind"),
        (event("first", 0, "STARTED"), "events[1].attempt"),
        (event("first", 1, "STARTED", message="a\x00"), "events[1].message"),
        (event("first", 1, "STARTED", event_id="a b"), "events[1].eventId"),
    ):
        with pytest.raises(Failure) as found:
            await server.admin("ReportStepEvents", report(run_id, good, bad))
        assert list(found.value.fields) == [path]
    fine = event("first", 1, "STARTED")
    fine.occur_time.nanos += 1
    with pytest.raises(Failure) as found:
        await server.admin("ReportStepEvents", report(run_id, fine))
    assert list(found.value.fields) == ["events[0].occurTime"]
    with pytest.raises(Failure) as found:
        await server.admin("ReportStepEvents", report(run_id))
    assert list(found.value.fields) == ["events"]
    beyond = artifact(run_id, "first", "table")
    beyond.artifacts[0].size_bytes = 2**53
    with pytest.raises(Failure) as found:
        await server.admin("RegisterArtifacts", beyond)
    assert list(found.value.fields) == ["artifacts[0].sizeBytes"]
    assert await counts(server) == before


async def test_lineage_refuses_names_of_other_projects_and_unknown_nodes(server: Server) -> None:
    """A node is a full name within the project, and something must touch it."""
    request = lineage_pb2.GetLineageRequest(
        project_id="p", node="projects/other/runs/x", direction=lineage_pb2.LINEAGE_DIRECTION_UPSTREAM
    )
    with pytest.raises(Failure) as found:
        await server.admin("GetLineage", request)
    assert list(found.value.fields) == ["node"]
    request.node = "projects/p/runs/x"
    with pytest.raises(Failure) as found:
        await server.admin("GetLineage", request)
    assert found.value.reason == "LINEAGE_NODE_UNKNOWN"


async def test_a_call_ends_at_its_deadline(server: Server) -> None:
    """The client's deadline is honoured while the server works."""
    with pytest.raises(Failure) as found:
        await server.admin("ListRuns", run_pb2.ListRunsRequest(project_id="p"), timeout=0.000001)
    assert found.value.code == "DEADLINE_EXCEEDED"


async def test_a_wide_pipeline_is_refused_beyond_its_limits(server: Server) -> None:
    """10,001 steps: the field and the limit are named."""
    tree = pipeline(step("a"))
    spec = json_format.ParseDict(tree, pipeline_pb2.PipelineSpec())
    for index in range(10_000):
        spec.spec.steps.add().CopyFrom(spec.spec.steps[0])
        spec.spec.steps[-1].name = f"s{index}"
    request = register_pipeline(tree)
    request.pipeline_spec.CopyFrom(spec)
    with pytest.raises(Failure) as found:
        await server.admin("RegisterPipelineSpec", request)
    assert list(found.value.fields) == ["pipelineSpec.spec.steps"]


@given(data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_no_bytes_make_a_call_fail_as_a_defect(fuzzed: Caller, data: st.DataObject) -> None:
    """Random and mutated requests to every method: a typed answer, never INTERNAL or UNKNOWN."""
    name = data.draw(st.sampled_from(sorted(METHODS)))
    good = b"\x0a\x01p\x12\x01r\x22\x04\x12\x02ab\x2a\x03abc"
    at = data.draw(st.integers(0, len(good)))
    payload = data.draw(st.binary(max_size=40))
    try:
        await fuzzed.raw(name, good[:at] + payload + good[at:], timeout=5)  # what asks for the future waits for it
    except Failure as failure:
        assert failure.code not in ("INTERNAL", "UNKNOWN"), (name, failure)


@pytest.fixture
async def fuzzed(server: Server) -> Caller:
    """The admin, for the fuzzer."""
    return server.admin
