"""A run with all that can happen to one, and the bundles that come of it."""

import io
import secrets
import zipfile
from pathlib import Path
from typing import Any

from google.protobuf import json_format

from animus.v1 import evidence_pb2, run_pb2, runtime_pb2
from service.conftest import Caller, Server
from service.requests import TIME, TWO, artifact, create_run, event, pipeline, plan_run, prepare, report, step

THREE = "sha256:" + "3" * 64


def three_steps() -> dict[str, object]:
    """`second` reads what `first` made of the dataset, and `third` what both made."""
    return pipeline(
        step("first", inputs={"datasets": [{"name": "data", "datasetRef": "data"}]}, outputs=("table",)),
        step(
            "second",
            inputs={"artifacts": [{"name": "t", "fromStep": "first", "artifact": "table"}]},
            outputs=("model",),
        ),
        step(
            "third",
            inputs={
                "artifacts": [
                    {"name": "m", "fromStep": "second", "artifact": "model"},
                    {"name": "t", "fromStep": "first", "artifact": "table"},
                ]
            },
        ),
    )


def metrics(run_id: str, step_name: str, attempt: int, *values: str) -> runtime_pb2.RecordMetricsRequest:
    """Records a series."""
    request = runtime_pb2.RecordMetricsRequest(project_id="p", request_id=f"m-{run_id}-{step_name}", run_id=run_id)
    for index, value in enumerate(values):
        metric = runtime_pb2.MetricReport(step=step_name, attempt=attempt, name="loss", index=index, value=value)
        json_format.Parse(f'"{TIME}"', metric.occur_time)
        request.metrics.append(metric)
    return request


async def finished_run(server: Server, request_id: str = "run", model: str = THREE) -> str:
    """A run that succeeded at the second attempt of its second step; one report was refused. Returns its id."""
    call = server.admin
    spec = await prepare(call, tree=three_steps())
    run = await call("CreateRun", create_run(spec, request_id))
    run_id = str(run.run_id)
    await call("PlanRun", plan_run(run_id, f"plan-{request_id}"))
    await call("ReportStepEvents", report(run_id, event("first", 1, "STARTED"), event("third", 1, "STARTED")))
    await call("RegisterArtifacts", artifact(run_id, "first", "table", digest=TWO))
    await call("RecordMetrics", metrics(run_id, "first", 1, "0.5", "0.25"))
    failed = event("second", 1, "FAILED", error_kind="SYSTEM", message="the node was lost")
    await call(
        "ReportStepEvents", report(run_id, event("first", 1, "SUCCEEDED"), event("second", 1, "STARTED"), failed)
    )
    await call("ReportStepEvents", report(run_id, event("second", 2, "STARTED")))
    await call("RegisterArtifacts", artifact(run_id, "second", "model", attempt=2, digest=model))
    last = await call(
        "ReportStepEvents",
        report(run_id, event("second", 2, "SUCCEEDED"), event("third", 1, "STARTED"), event("third", 1, "SUCCEEDED")),
    )
    assert last.state == run_pb2.RUN_STATE_SUCCEEDED
    return run_id


def export(run_id: str = "", request_id: str = "export", **more: Any) -> evidence_pb2.ExportEvidenceRequest:
    """Asks for a bundle of the project `p`."""
    return evidence_pb2.ExportEvidenceRequest(project_id="p", request_id=request_id, run_id=run_id, **more)


async def exported(call: Caller, request: evidence_pb2.ExportEvidenceRequest) -> bytes:
    """The bytes of a bundle."""
    parts = await call.stream("ExportEvidence", request)
    assert {part.content_type for part in parts} == {"application/zip"}
    return b"".join(part.data for part in parts)


def unzipped(data: bytes, folder: Path) -> Path:
    """The bag of a bundle, unpacked in a new folder below this one."""
    target = folder / secrets.token_hex(8)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        archive.extractall(target)
    (bag,) = target.iterdir()
    return bag
