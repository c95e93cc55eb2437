"""A project with one of everything, and a request of every method about it. What differs between projects is named."""

import json
import secrets
import uuid
from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from contract import METHODS
from google.protobuf import json_format
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from service.conftest import Caller, Failure
from service.requests import TIME, pipeline, step

TOMORROW = (datetime.now(UTC) + timedelta(days=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
WITNESS_SIZE = 1  # the checkpoint that witnesses have signed


@dataclass(frozen=True, slots=True)
class World:
    """What requests about a project name: each thing is there in this project, and in no other."""

    project_id: str
    dataset_id: str
    content_digest: str
    unmeasured_digest: str  # of a version without verdicts
    found_digest: str  # what a copy was found to be
    lock_digest: str
    pipeline: str
    pipeline_digest: str
    run_spec_digest: str
    run_id: str  # its first step runs
    other_run_id: str  # of the same RunSpec
    event_id: str
    artifact_digest: str
    rule_id: str
    rule_digest: str
    profile_digest: str
    evaluation_digest: str
    external_run_id: str
    job: str
    entry_id: str
    account_id: str
    member: str
    token_digest: str
    run_token_digest: str
    node_project: str  # of full names
    cosignature: bytes


def new_hex() -> str:
    """A run or entry that is nowhere."""
    return secrets.token_hex(16)


def new_digest() -> str:
    """A digest of nothing."""
    return "sha256:" + secrets.token_hex(32)


def new_name() -> str:
    """A name that nobody has."""
    return f"n{secrets.token_hex(6)}"


def nowhere(project_id: str) -> World:
    """Names of which a project has none."""
    made: dict[str, Callable[[], Any]] = {
        "run_id": new_hex,
        "other_run_id": new_hex,
        "entry_id": new_hex,
        "event_id": new_hex,
        "external_run_id": lambda: str(uuid.uuid4()),
        "member": lambda: f"group:corp:{secrets.token_hex(6)}",
        "cosignature": lambda: b"\xe2\x80\x94 witness.test " + b64encode(secrets.token_bytes(76)) + b"\n",
    }
    values: dict[str, Any] = {"project_id": project_id, "node_project": project_id}
    for field in fields(World):
        usual = new_digest if field.name.endswith("digest") else new_name
        values.setdefault(field.name, made.get(field.name, usual)())
    return World(**values)


def trees(w: World) -> dict[str, list[dict[str, Any]]]:
    """Requests of each method, without project_id and what every change has: each is good where the world is made."""
    steps = pipeline(
        step("first", inputs={"datasets": [{"name": "data", "datasetRef": "data"}]}, outputs=("table",)),
        step("second", inputs={"artifacts": [{"name": "t", "fromStep": "first", "artifact": "table"}]}),
    )
    steps["metadata"]["name"] = w.pipeline  # type: ignore[index]
    version = {"dataset_id": w.dataset_id, "content_digest": w.content_digest}
    described = {"size_bytes": 1, "media_type": "text/csv", "row_count": -1, "source": "", "licence": ""}
    spec = {
        "api_version": "animus/v1",
        "kind": "Run",
        "pipeline_spec_digest": w.pipeline_digest,
        "datasets": [{"dataset_ref": "data", **version}],
        "commit": {"repository": "https://git.test/demo", "sha": "c" * 40},
        "environment_lock_digest": w.lock_digest,
        "parameters": [{"name": "seed", "type": "PARAMETER_TYPE_INT", "value": "7"}],
    }
    unmeasured = {**spec, "datasets": [{**spec["datasets"][0], "content_digest": w.unmeasured_digest}]}  # type: ignore[index]
    run, node = {"run_id": w.run_id}, f"projects/{w.node_project}/runs/{w.run_id}"
    attempt = {"step": "first", "attempt": 1}
    labels = [{"key": "of", "value": "test"}]
    upstream: dict[str, Any] = {"node": node, "direction": "LINEAGE_DIRECTION_UPSTREAM"}
    check = dict.fromkeys(("column", "maximum", "pattern", "probability", "metric", "reference_profile_digest"), "")
    check |= {"name": "rows", "type": "QUALITY_CHECK_TYPE_ROW_COUNT", "severity": "QUALITY_SEVERITY_ERROR"}
    drift = {"name": "drift", "type": "QUALITY_CHECK_TYPE_KS", "reference_profile_digest": w.profile_digest}
    drift |= {"column": "a", "maximum": "0.1", "minimum": ""}
    result = {"check": "fit", "severity": "QUALITY_SEVERITY_ERROR", "outcome": "QUALITY_OUTCOME_PASS"}
    foreign = {"rule_digest": w.rule_digest, "rule_name": "fit", "profile_digest": w.profile_digest}
    profile = {"profiler": "by hand 1", "row_count": 3, "size_bytes": 1}
    event = {
        "eventTime": TIME,
        "eventType": "COMPLETE",
        "producer": "https://example.org/p",
        "schemaURL": "https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/RunEvent",
        "run": {"runId": w.external_run_id, "facets": {}},
        "job": {"namespace": "jobs", "name": w.job},
        "inputs": [{"namespace": "pg", "name": w.dataset_id, "facets": {}}],
        "outputs": [],
    }
    return {
        "WhoAmI": [{}],
        "CreateServiceAccount": [
            {"service_account": {"service_account_id": w.account_id, "display_name": "", "description": ""}}
        ],
        "GetServiceAccount": [{"service_account_id": w.account_id}],
        "ListServiceAccounts": [{}, {"filter": f'service_account_id = "{w.account_id}"'}],
        "DisableServiceAccount": [{"service_account_id": w.account_id, "reason": "test"}],
        "CreateToken": [
            {
                "token": {
                    "token_digest": w.token_digest,
                    "principal": w.account_id,
                    "role": "ROLE_VIEWER",
                    "expire_time": TOMORROW,
                }
            }
        ],
        "CreateRunToken": [{**run, "run_token": {"token_digest": w.run_token_digest, "expire_time": TOMORROW}}],
        "ListTokens": [{}, {"filter": f'principal = "{w.account_id}"'}],
        "RevokeToken": [{"token_digest": each, "reason": "test"} for each in (w.token_digest, w.run_token_digest)],
        "SetRoleBinding": [{"role_binding": {"member": w.member, "roles": ["ROLE_VIEWER"]}}],
        "ListRoleBindings": [{}, {"filter": f'member = "{w.member}"'}],
        "ListAuditEntries": [{}, {"resource": node}, {"filter": f'resource = "{node}"'}],
        "GetAuditEntry": [{"entry_id": w.entry_id}],
        "TailAuditEntries": [{}],
        "ExportAuditEntries": [{}, {"resource": node}],
        "CreateDataset": [{"dataset": {"dataset_id": w.dataset_id, "description": "", "labels": labels}}],
        "GetDataset": [{"dataset_id": w.dataset_id}],
        "ListDatasets": [{}, {"page_size": 1}, {"filter": f'dataset_id = "{w.dataset_id}"'}],
        "RegisterDatasetVersion": [
            {"dataset_version": {**version, **described, "uris": ["file:///data.csv"]}},
            {
                "dataset_version": {
                    **version,
                    **described,
                    "content_digest": w.unmeasured_digest,
                    "derived_from": [version],
                }
            },
        ],
        "GetDatasetVersion": [version],
        "ListDatasetVersions": [{"dataset_id": w.dataset_id}],
        "SetDatasetVersionUris": [{**version, "uris": ["file:///elsewhere.csv"]}],
        "VerifyDatasetVersion": [
            {**version, "found_digest": w.found_digest, "found_size_bytes": 1, "location": "s3://copy"}
        ],
        "ListDatasetVerifications": [version],
        "RegisterEnvironmentLock": [
            {
                "environment_lock": {
                    "images": [{"reference": f"registry.test/{w.pipeline}@sha256:{'a' * 64}"}],
                    "python_version": "3.11.7",
                    "platform_os": "linux",
                    "platform_architecture": "x86_64",
                    "lock_file_digest": w.content_digest,
                }
            }
        ],
        "GetEnvironmentLock": [{"digest": w.lock_digest}],
        "ListEnvironmentLocks": [{}, {"filter": f'digest = "{w.lock_digest}"'}],
        "ExportEvidence": [run, {}],
        "GetLineage": [upstream, {**upstream, "more_nodes": [f"projects/{w.node_project}/runs/{w.other_run_id}"]}],
        "GetImpact": [{"node": node}],
        "ExportProv": [upstream, {**upstream, "more_nodes": [f"projects/{w.node_project}/runs/{w.other_run_id}"]}],
        "ExportOpenLineage": [run],
        "RecordOpenLineageEvent": [{"event": {"data": b64encode(json.dumps(event).encode()).decode()}}],
        "ListExternalRuns": [{}, {"filter": f'run_id = "{w.external_run_id}"'}],
        "ListExternalEvents": [{"run_id": w.external_run_id}],
        "GetLog": [{}],
        "GetCheckpoint": [{}],
        "ListCheckpoints": [{}],
        "GetInclusionProof": [{"entry_id": w.entry_id}, {"index": 0}],
        "WaitForInclusion": [{"entry_id": w.entry_id}],
        "GetConsistencyProof": [{"first_size": 1, "second_size": 2}],
        "GetTile": [{"width": 1}],
        "GetEntryBundle": [{"width": 1}],
        "AddCosignatures": [{"size": WITNESS_SIZE, "cosignatures": b64encode(w.cosignature).decode()}],
        "RegisterPipelineSpec": [{"pipeline_spec": steps}],
        "ValidatePipelineSpec": [{"pipeline_spec": steps}],
        "GetPipelineSpec": [{"digest": w.pipeline_digest}],
        "ListPipelineSpecs": [{}, {"name": w.pipeline}],
        "CreateProject": [],  # in test_access.py and test_role_matrix.py: no project's own
        "GetProject": [{}],
        "ListProjects": [{}],
        "SetQualityGate": [
            {
                "quality_gate": {
                    "pipeline": w.pipeline,
                    "requirements": [
                        {
                            "dataset_ref": "data",
                            "dataset_id": w.dataset_id,
                            "rule_digest": w.rule_digest,
                            "evaluator": "animus",
                        }
                    ],
                    "override_allowed": True,
                }
            }
        ],
        "GetQualityGate": [{"pipeline": w.pipeline}],
        "ListQualityGates": [{}],
        "RegisterQualityRule": [
            {"quality_rule": {"rule_id": w.rule_id, "description": "", "checks": [{**check, "minimum": "2"}]}},
            {"quality_rule": {"rule_id": w.rule_id, "description": "", "checks": [{**check, **drift}]}},
        ],
        "GetQualityRule": [{"digest": w.rule_digest}],
        "ListQualityRules": [{}, {"filter": f'rule_id = "{w.rule_id}"'}],
        "RegisterQualityProfile": [{"quality_profile": {**version, **profile}}],
        "GetQualityProfile": [{"digest": w.profile_digest}],
        "ListQualityProfiles": [version],
        "EvaluateQuality": [{"rule_digest": w.rule_digest, "profile_digest": w.profile_digest}],
        "RecordForeignEvaluation": [
            {
                "quality_evaluation": {
                    **version,
                    **foreign,
                    "evaluator": "dbt",
                    "evaluator_version": "1.9",
                    "verdict": "QUALITY_VERDICT_PASS",
                    "results": [{**result, "observed": "", "reason": ""}],
                }
            }
        ],
        "GetQualityEvaluation": [{"digest": w.evaluation_digest}],
        "ListQualityEvaluations": [version],
        "CreateRun": [{"run_spec": spec, "labels": labels}],
        "CreateRunOverridingGates": [{"run_spec": unmeasured, "reason": "test"}],
        "ListAdmissionRefusals": [{}],
        "ReplayRun": [run],
        "CompareRuns": [{**run, "other_run_id": w.other_run_id}],
        "GetRun": [run, {"run_id": w.other_run_id}],
        "ListRuns": [{}, {"run_spec_digest": w.run_spec_digest}, {"filter": f'pipeline = "{w.pipeline}"'}],
        "PlanRun": [run],
        "GetPlan": [run],
        "DryRun": [{"run_spec": spec}, {"run_spec": unmeasured, "compare_run_id": w.other_run_id}],
        "CancelRun": [{"run_id": w.other_run_id, "reason": "test"}],
        "ListStepAttempts": [run],
        "ListArtifacts": [run],
        "ListMetrics": [run],
        "ReportStepEvents": [
            {
                **run,
                "events": [
                    {
                        **attempt,
                        "event_id": w.event_id,
                        "type": "STEP_EVENT_TYPE_STARTED",
                        "occur_time": TIME,
                        "message": "",
                    }
                ],
            }
        ],
        "RegisterArtifacts": [
            {
                **run,
                "artifacts": [{**attempt, "name": "table", "digest": w.artifact_digest, "size_bytes": 3, "uri": ""}],
            }
        ],
        "RecordMetrics": [
            {**run, "metrics": [{**attempt, "name": "loss", "index": 0, "value": "0.5", "occur_time": TIME}]}
        ],
    }


def requests(w: World, name: str, request_id: str = "", *, validate_only: bool = False) -> list[Any]:
    """The requests of a method in a world."""
    return [_request(name, w.project_id, tree, request_id, validate_only) for tree in trees(w)[name]]


def _request(name: str, project_id: str, tree: dict[str, Any], request_id: str, validate_only: bool) -> Any:
    request: Any = json_format.ParseDict(tree, GetMessageClass(METHODS[name].input_type)())
    if "project_id" in request.DESCRIPTOR.fields_by_name:
        request.project_id = project_id
    if "request_id" in request.DESCRIPTOR.fields_by_name:
        request.request_id = request_id or secrets.token_hex(8)
        request.validate_only = validate_only
    return request


MUTATES = {name for name, rpc in METHODS.items() if "request_id" in rpc.input_type.fields_by_name}


async def made(call: Caller, project_id: str) -> World:
    """Fills a project that is there."""
    w = nowhere(project_id)

    async def do(name: str, number: int = 0) -> Any:
        return await call(name, requests(w, name)[number])

    await do("CreateDataset")
    await do("RegisterDatasetVersion")
    await do("RegisterDatasetVersion", 1)
    await do("SetDatasetVersionUris")
    await do("VerifyDatasetVersion")
    w = replace(w, lock_digest=(await do("RegisterEnvironmentLock")).record.digest)
    w = replace(w, pipeline_digest=(await do("RegisterPipelineSpec")).record.digest)
    w = replace(w, profile_digest=(await do("RegisterQualityProfile")).record.digest)
    w = replace(w, rule_digest=(await do("RegisterQualityRule")).record.digest)
    w = replace(w, evaluation_digest=(await do("EvaluateQuality")).record.digest)
    await do("RecordForeignEvaluation")
    await do("SetQualityGate")
    run = await do("CreateRun")
    w = replace(w, run_id=run.run_id, run_spec_digest=run.run_spec_digest, entry_id=run.record.audit_entry_id)
    await do("PlanRun")
    w = replace(w, other_run_id=(await do("CreateRun")).run_id)
    for name in ("ReportStepEvents", "RegisterArtifacts", "RecordMetrics", "CompareRuns", "ReplayRun"):
        await do(name)
    await do("CreateRunOverridingGates")
    await do("RecordOpenLineageEvent")
    for account_id in (nowhere(project_id).account_id, w.account_id):
        one = replace(w, account_id=account_id)
        await call("CreateServiceAccount", requests(one, "CreateServiceAccount")[0])
        if one != w:
            await call("DisableServiceAccount", requests(one, "DisableServiceAccount")[0])
    revoked = replace(w, token_digest=new_digest())
    await call("CreateToken", requests(revoked, "CreateToken")[0])
    await call("RevokeToken", requests(revoked, "RevokeToken")[0])
    for name in ("CreateToken", "CreateRunToken", "SetRoleBinding"):
        await do(name)
    return w


TAIL = 2  # entries of a stream that has no end


@dataclass(frozen=True, slots=True)
class Told:
    """Everything that a caller can see of an answer, its trace aside."""

    code: str
    reason: str
    status: bytes
    replies: tuple[bytes, ...]
    trailing: tuple[tuple[str, str | bytes], ...]


async def tell(caller: Caller, name: str, request: Message) -> Told:
    """Calls a method, and reads its answer to the end; of the log's tail, the beginning."""
    code, reason, status, replies = "OK", "", b"", []
    try:
        if METHODS[name].server_streaming:
            replies = await caller.stream(name, request, *([TAIL] if name == "TailAuditEntries" else []))
        else:
            replies = [await caller(name, request)]
    except Failure as failure:
        code, reason, status = failure.code, failure.reason, failure.raw
    trailing = () if name == "TailAuditEntries" else await caller.call.trailing_metadata()
    return Told(
        code,
        reason,
        status,
        tuple(reply.SerializeToString(deterministic=True) for reply in replies),
        tuple(sorted((str(key), value) for key, value in trailing if key not in NOT_COMPARED)),
    )


NOT_COMPARED = {"animus-trace-id", "grpc-status-details-bin"}  # another each time; compared as the status
