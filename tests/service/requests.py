"""Requests that succeed, for tests to vary: a pipeline of two steps, a dataset, an environment, a run."""

import json
import secrets
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from google.api import httpbody_pb2
from google.protobuf import json_format, timestamp_pb2
from google.protobuf.message import Message

from animus.codec import sha256
from animus.v1 import (
    access_pb2,
    dataset_pb2,
    environment_pb2,
    lineage_pb2,
    pipeline_pb2,
    quality_gate_pb2,
    quality_pb2,
    run_pb2,
    runtime_pb2,
    types_pb2,
)
from service.conftest import Caller, Server

ONE = "sha256:" + "1" * 64
TWO = "sha256:" + "2" * 64
TIME = "2026-01-02T03:04:05.678901Z"


def step(
    name: str, *, inputs: Mapping[str, object] | None = None, outputs: tuple[str, ...] = (), attempts: int = 2
) -> dict[str, object]:
    """A step of a pipeline as JSON."""
    return {
        "name": name,
        "image": f"registry.test/{name}@sha256:{'a' * 64}",
        "command": ["python"],
        "args": [],
        "inputs": {"datasets": [], "artifacts": [], **(inputs or {})},
        "outputs": {"artifacts": [{"name": o, "type": "file", "mediaType": "text/plain"} for o in outputs]},
        "env": [],
        "resources": {"cpu": "1", "memory": "1Gi", "gpu": 0},
        "retryPolicy": {
            "maxAttempts": attempts,
            "retryOn": ["ERROR_KIND_SYSTEM"],
            "backoff": {"type": "BACKOFF_TYPE_FIXED", "initialSeconds": 1, "maxSeconds": 1, "multiplier": "1"},
        },
    }


def two_steps() -> dict[str, object]:
    """A pipeline in which `second` reads what `first` made of the dataset `data`."""
    return pipeline(
        step("first", inputs={"datasets": [{"name": "data", "datasetRef": "data"}]}, outputs=("table",)),
        step("second", inputs={"artifacts": [{"name": "t", "fromStep": "first", "artifact": "table"}]}),
    )


def pipeline(*steps: object) -> dict[str, object]:
    """A pipeline of these steps as JSON."""
    return {
        "apiVersion": "animus/v1",
        "kind": "Pipeline",
        "metadata": {"name": "demo", "description": "", "labels": []},
        "spec": {"steps": list(steps), "dependencies": []},
    }


def dataset(project_id: str = "p", dataset_id: str = "data") -> dataset_pb2.CreateDatasetRequest:
    """Creates the dataset."""
    return dataset_pb2.CreateDatasetRequest(
        project_id=project_id,
        request_id=f"dataset-{dataset_id}",
        dataset=dataset_pb2.Dataset(dataset_id=dataset_id, description=""),
    )


def version(project_id: str = "p", digest: str = ONE) -> dataset_pb2.RegisterDatasetVersionRequest:
    """Registers a version of the dataset."""
    return dataset_pb2.RegisterDatasetVersionRequest(
        project_id=project_id,
        request_id=f"version-{digest[-8:]}",
        dataset_version=dataset_pb2.DatasetVersion(
            dataset_id="data",
            content_digest=digest,
            size_bytes=1,
            media_type="text/csv",
            row_count=-1,
            source="",
            licence="",
            uris=["file:///data.csv"],
        ),
    )


def verify(
    request_id: str, project_id: str = "p", digest: str = ONE, found: str = ONE, location: str = "s3://copy"
) -> dataset_pb2.VerifyDatasetVersionRequest:
    """Records what was found of a copy of the version."""
    return dataset_pb2.VerifyDatasetVersionRequest(
        project_id=project_id,
        request_id=request_id,
        dataset_id="data",
        content_digest=digest,
        found_digest=found,
        found_size_bytes=1,
        location=location,
    )


def environment(project_id: str = "p") -> environment_pb2.RegisterEnvironmentLockRequest:
    """Registers an environment lock."""
    return environment_pb2.RegisterEnvironmentLockRequest(
        project_id=project_id,
        request_id="environment",
        environment_lock=environment_pb2.EnvironmentLock(
            python_version="3.11.7", platform_os="linux", platform_architecture="x86_64", lock_file_digest=""
        ),
    )


def register_pipeline(
    tree: dict[str, object], project_id: str = "p", request_id: str = "pipeline"
) -> pipeline_pb2.RegisterPipelineSpecRequest:
    """Registers a pipeline."""
    return pipeline_pb2.RegisterPipelineSpecRequest(
        project_id=project_id,
        request_id=request_id,
        pipeline_spec=json_format.ParseDict(tree, pipeline_pb2.PipelineSpec()),
    )


async def prepare(call: Caller, project_id: str = "p", tree: dict[str, object] | None = None) -> run_pb2.RunSpec:
    """Registers everything that a run binds, and returns its spec."""
    await call("CreateDataset", dataset(project_id))
    await call("RegisterDatasetVersion", version(project_id))
    lock = await call("RegisterEnvironmentLock", environment(project_id))
    spec = await call("RegisterPipelineSpec", register_pipeline(tree or two_steps(), project_id))
    return run_pb2.RunSpec(
        api_version="animus/v1",
        kind="Run",
        pipeline_spec_digest=spec.record.digest,
        datasets=[run_pb2.DatasetBinding(dataset_ref="data", dataset_id="data", content_digest=ONE)],
        commit=run_pb2.Commit(repository="https://git.test/demo", sha="c" * 40),
        environment_lock_digest=lock.record.digest,
        parameters=[run_pb2.Parameter(name="seed", type=run_pb2.PARAMETER_TYPE_INT, value="7")],
    )


def create_run(spec: run_pb2.RunSpec, request_id: str = "run", project_id: str = "p") -> run_pb2.CreateRunRequest:
    """Creates a run."""
    return run_pb2.CreateRunRequest(project_id=project_id, request_id=request_id, run_spec=spec)


def plan_run(run_id: str, request_id: str = "plan", project_id: str = "p") -> run_pb2.PlanRunRequest:
    """Plans a run."""
    return run_pb2.PlanRunRequest(project_id=project_id, request_id=request_id, run_id=run_id)


def event(
    step: str, attempt: int, kind: str, *, event_id: str = "", error_kind: str = "UNSPECIFIED", message: str = ""
) -> runtime_pb2.StepEvent:
    """An event of an attempt."""
    found = runtime_pb2.StepEvent(
        event_id=event_id or f"{step}-{attempt}-{kind}",
        step=step,
        attempt=attempt,
        type=runtime_pb2.StepEventType.Value(f"STEP_EVENT_TYPE_{kind}"),
        error_kind=types_pb2.ErrorKind.Value(f"ERROR_KIND_{error_kind}"),
        message=message,
    )
    found.occur_time.FromJsonString(TIME)
    return found


def report(
    run_id: str, *events: runtime_pb2.StepEvent, request_id: str = "", project_id: str = "p"
) -> runtime_pb2.ReportStepEventsRequest:
    """Reports events."""
    return runtime_pb2.ReportStepEventsRequest(
        project_id=project_id, request_id=request_id or secrets.token_hex(8), run_id=run_id, events=events
    )


def artifact(
    run_id: str, step: str, name: str, *, attempt: int = 1, digest: str = TWO, request_id: str = ""
) -> runtime_pb2.RegisterArtifactsRequest:
    """Registers an output."""
    return runtime_pb2.RegisterArtifactsRequest(
        project_id="p",
        request_id=request_id or secrets.token_hex(8),
        run_id=run_id,
        artifacts=[
            runtime_pb2.ArtifactReport(step=step, attempt=attempt, name=name, digest=digest, size_bytes=3, uri="")
        ],
    )


async def planned_run(server: Server) -> str:
    """Prepares, creates and plans a run; returns its id."""
    run = await server.admin("CreateRun", create_run(await prepare(server.admin)))
    await server.admin("PlanRun", plan_run(run.run_id))
    return str(run.run_id)


def external_event(
    tree: object, request_id: str = "", project_id: str = "p"
) -> lineage_pb2.RecordOpenLineageEventRequest:
    """Records an OpenLineage event."""
    return lineage_pb2.RecordOpenLineageEventRequest(
        project_id=project_id, request_id=request_id, event=httpbody_pb2.HttpBody(data=json.dumps(tree).encode())
    )


def same(left: Message, right: Message) -> bool:
    """Whether two messages have the same bytes."""
    return left.SerializeToString(deterministic=True) == right.SerializeToString(deterministic=True)


def rule(
    *checks: Mapping[str, Any], project_id: str = "p", rule_id: str = "fit", request_id: str = ""
) -> quality_pb2.RegisterQualityRuleRequest:
    """Registers a rule; of a check, only the fields that are not empty are given."""
    return quality_pb2.RegisterQualityRuleRequest(
        project_id=project_id,
        request_id=request_id or secrets.token_hex(8),
        quality_rule=quality_pb2.QualityRule(
            rule_id=rule_id, description="", checks=[check(**each) for each in checks or (ROWS,)]
        ),
    )


ROWS: Mapping[str, Any] = {"name": "rows", "type": "ROW_COUNT", "minimum": "2"}


def check(name: str, type: str, severity: str = "ERROR", **fields: object) -> quality_pb2.QualityCheck:  # noqa: A002
    """A check; what is not given is empty."""
    texts = ("column", "minimum", "maximum", "pattern", "probability", "metric", "reference_profile_digest")
    return quality_pb2.QualityCheck(
        name=name,
        severity=quality_pb2.QualitySeverity.Value(f"QUALITY_SEVERITY_{severity}"),
        type=quality_pb2.QualityCheckType.Value(f"QUALITY_CHECK_TYPE_{type}"),
        **{**dict.fromkeys(texts, ""), **fields},  # type: ignore[arg-type]
    )


def profile(
    row_count: int = 3,
    *,
    columns: Iterable[quality_pb2.ColumnProfile] = (),
    project_id: str = "p",
    digest: str = ONE,
    request_id: str = "",
) -> quality_pb2.RegisterQualityProfileRequest:
    """Registers a profile of the version."""
    return quality_pb2.RegisterQualityProfileRequest(
        project_id=project_id,
        request_id=request_id or secrets.token_hex(8),
        quality_profile=quality_pb2.QualityProfile(
            dataset_id="data",
            content_digest=digest,
            profiler="by hand 1",
            row_count=row_count,
            size_bytes=1,
            columns=columns,
        ),
    )


def evaluate(
    rule_digest: str, profile_digest: str, *, project_id: str = "p", request_id: str = ""
) -> quality_pb2.EvaluateQualityRequest:
    """Evaluates a rule on a profile."""
    return quality_pb2.EvaluateQualityRequest(
        project_id=project_id,
        request_id=request_id or secrets.token_hex(8),
        rule_digest=rule_digest,
        profile_digest=profile_digest,
    )


def foreign(
    verdict: str = "PASS", *, project_id: str = "p", digest: str = ONE, evaluator: str = "dbt", request_id: str = ""
) -> quality_pb2.RecordForeignEvaluationRequest:
    """Records another tool's verdict of one check on the version."""
    severity, outcome = ("WARN", "FAIL") if verdict == "WARN" else ("ERROR", verdict)
    return quality_pb2.RecordForeignEvaluationRequest(
        project_id=project_id,
        request_id=request_id or secrets.token_hex(8),
        quality_evaluation=quality_pb2.QualityEvaluation(
            dataset_id="data",
            content_digest=digest,
            rule_digest=TWO,
            rule_name="not_null",
            profile_digest=TWO,
            evaluator=evaluator,
            evaluator_version="1.9",
            verdict=quality_pb2.QualityVerdict.Value(f"QUALITY_VERDICT_{verdict}"),
            results=[
                quality_pb2.QualityResult(
                    check="not_null",
                    severity=quality_pb2.QualitySeverity.Value(f"QUALITY_SEVERITY_{severity}"),
                    outcome=quality_pb2.QualityOutcome.Value(f"QUALITY_OUTCOME_{outcome}"),
                    observed="",
                    reason="",
                )
            ],
        ),
    )


async def registered_version(caller: Caller, project_id: str = "p") -> None:
    """A dataset with a version."""
    await caller("CreateDataset", dataset(project_id))
    await caller("RegisterDatasetVersion", version(project_id))


def set_gate(
    project_id: str, *asked: tuple[str, str, str, str], pipeline: str = "", allowed: bool = True, request_id: str = ""
) -> quality_gate_pb2.SetQualityGateRequest:
    """Sets a gate of dataset_ref, dataset, rule and evaluator."""
    return quality_gate_pb2.SetQualityGateRequest(
        project_id=project_id,
        request_id=request_id or secrets.token_hex(8),
        quality_gate=quality_gate_pb2.QualityGate(
            pipeline=pipeline,
            requirements=[
                quality_gate_pb2.QualityRequirement(dataset_ref=ref, dataset_id=data, rule_digest=digest, evaluator=by)
                for ref, data, digest, by in asked
            ],
            override_allowed=allowed,
        ),
    )


def overriding(
    spec: run_pb2.RunSpec, project_id: str, reason: str, request_id: str = ""
) -> run_pb2.CreateRunOverridingGatesRequest:
    """Creates a run past the gates."""
    return run_pb2.CreateRunOverridingGatesRequest(
        project_id=project_id, request_id=request_id or secrets.token_hex(8), run_spec=spec, reason=reason
    )


def new_token(
    project_id: str, principal: str, role: str, *, token: str = "", seconds: float = 3_600, request_id: str = ""
) -> access_pb2.CreateTokenRequest:
    """Registers a token of a service account; one that nobody has if none is given."""
    return access_pb2.CreateTokenRequest(
        project_id=project_id,
        request_id=request_id or secrets.token_hex(8),
        token=access_pb2.Token(
            token_digest=sha256((token or secrets.token_hex(32)).encode()),
            principal=principal,
            role=access_pb2.Role.Value(f"ROLE_{role}"),
            expire_time=_from_now(seconds),
        ),
    )


def new_run_token(
    project_id: str, run_id: str, *, token: str = "", seconds: float = 3_600, request_id: str = ""
) -> access_pb2.CreateRunTokenRequest:
    """Registers a token of a run; one that nobody has if none is given."""
    return access_pb2.CreateRunTokenRequest(
        project_id=project_id,
        request_id=request_id or secrets.token_hex(8),
        run_id=run_id,
        run_token=access_pb2.RunToken(
            token_digest=sha256((token or secrets.token_hex(32)).encode()), expire_time=_from_now(seconds)
        ),
    )


def _from_now(seconds: float) -> timestamp_pb2.Timestamp:
    time = timestamp_pb2.Timestamp()
    time.FromDatetime(datetime.now(UTC) + timedelta(seconds=seconds))
    return time


def revoke(project_id: str, token_digest: str, request_id: str = "") -> access_pb2.RevokeTokenRequest:
    """Ends a token."""
    return access_pb2.RevokeTokenRequest(
        project_id=project_id, request_id=request_id or secrets.token_hex(8), token_digest=token_digest, reason="lost"
    )


def disable(project_id: str, service_account_id: str, request_id: str = "") -> access_pb2.DisableServiceAccountRequest:
    """Ends a service account."""
    return access_pb2.DisableServiceAccountRequest(
        project_id=project_id,
        request_id=request_id or secrets.token_hex(8),
        service_account_id=service_account_id,
        reason="left",
    )


def bind(
    project_id: str, member: str, *roles: str, etag: str = "", request_id: str = ""
) -> access_pb2.SetRoleBindingRequest:
    """Sets the roles of a member."""
    return access_pb2.SetRoleBindingRequest(
        project_id=project_id,
        request_id=request_id or secrets.token_hex(8),
        role_binding=access_pb2.RoleBinding(
            member=member, roles=[access_pb2.Role.Value(f"ROLE_{role}") for role in roles]
        ),
        etag=etag,
    )
