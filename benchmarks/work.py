"""Work for a server: projects with what their runs need, and ways to send one call after another."""

import asyncio
import itertools
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf import json_format, timestamp_pb2

from animus.v1 import (
    dataset_pb2,
    dataset_pb2_grpc,
    environment_pb2,
    environment_pb2_grpc,
    pipeline_pb2,
    pipeline_pb2_grpc,
    project_pb2,
    project_pb2_grpc,
    run_pb2,
    run_pb2_grpc,
    runtime_pb2,
    runtime_pb2_grpc,
)
from benchmarks.stack import Served

IN_FLIGHT = 32
DIGEST = "sha256:" + "1" * 64
OCCUR_TIME = timestamp_pb2.Timestamp(seconds=1_767_323_045)

Send = Callable[[str], Awaitable[Any]]  # a new call about a project; gives the reply


@dataclass(frozen=True, slots=True)
class Prepared:
    """A project to work in."""

    run_spec: run_pb2.RunSpec
    running: Iterator[str]  # runs whose one step has started, round and round


async def prepare(served: Served, projects: Sequence[str], runs: int) -> dict[str, Prepared]:
    """Makes projects, in each what a run binds, and so many runs that have started."""
    return {project: await _prepare(served, project, runs) for project in projects}


async def _prepare(served: Served, project: str, runs: int) -> Prepared:
    await served.call(
        project_pb2_grpc.ProjectServiceStub(served.channel).CreateProject,
        project_pb2.CreateProjectRequest(
            project_id=project,
            request_id=project,
            project=project_pb2.Project(project_id=project, display_name="", description=""),
        ),
    )
    datasets = dataset_pb2_grpc.DatasetServiceStub(served.channel)
    await served.call(datasets.CreateDataset, new_dataset(project, "data"))
    await served.call(
        datasets.RegisterDatasetVersion,
        dataset_pb2.RegisterDatasetVersionRequest(
            project_id=project,
            request_id="version",
            dataset_version=dataset_pb2.DatasetVersion(
                dataset_id="data",
                content_digest=DIGEST,
                size_bytes=1,
                media_type="text/csv",
                row_count=-1,
                source="",
                licence="",
            ),
        ),
    )
    lock = await served.call(
        environment_pb2_grpc.EnvironmentServiceStub(served.channel).RegisterEnvironmentLock,
        environment_pb2.RegisterEnvironmentLockRequest(
            project_id=project,
            request_id="environment",
            environment_lock=environment_pb2.EnvironmentLock(
                python_version="3.11.7", platform_os="linux", platform_architecture="x86_64", lock_file_digest=""
            ),
        ),
    )
    pipeline = await served.call(
        pipeline_pb2_grpc.PipelineServiceStub(served.channel).RegisterPipelineSpec,
        pipeline_pb2.RegisterPipelineSpecRequest(
            project_id=project,
            request_id="pipeline",
            pipeline_spec=json_format.ParseDict(PIPELINE, pipeline_pb2.PipelineSpec()),
        ),
    )
    spec = run_pb2.RunSpec(
        api_version="animus/v1",
        kind="Run",
        pipeline_spec_digest=pipeline.record.digest,
        datasets=[run_pb2.DatasetBinding(dataset_ref="data", dataset_id="data", content_digest=DIGEST)],
        commit=run_pb2.Commit(repository="https://git.test/demo", sha="c" * 40),
        environment_lock_digest=lock.record.digest,
        parameters=[run_pb2.Parameter(name="seed", type=run_pb2.PARAMETER_TYPE_INT, value="7")],
    )
    return Prepared(spec, itertools.cycle([await _start(served, project, spec) for _ in range(runs)]))


async def _start(served: Served, project: str, spec: run_pb2.RunSpec) -> str:
    """A run whose step has started; its id."""
    service = run_pb2_grpc.RunServiceStub(served.channel)
    run = await served.call(service.CreateRun, new_run(project, spec))
    await served.call(
        service.PlanRun, run_pb2.PlanRunRequest(project_id=project, request_id=run.run_id, run_id=run.run_id)
    )
    event = runtime_pb2.StepEvent(
        event_id="start",
        step="train",
        attempt=1,
        type=runtime_pb2.STEP_EVENT_TYPE_STARTED,
        message="",
        occur_time=OCCUR_TIME,
    )
    await served.call(
        runtime_pb2_grpc.RuntimeServiceStub(served.channel).ReportStepEvents,
        runtime_pb2.ReportStepEventsRequest(
            project_id=project, request_id=run.run_id, run_id=run.run_id, events=[event]
        ),
    )
    return str(run.run_id)


def new_dataset(project: str, dataset_id: str) -> dataset_pb2.CreateDatasetRequest:
    """A request for a dataset."""
    return dataset_pb2.CreateDatasetRequest(
        project_id=project,
        request_id=f"dataset-{dataset_id}",
        dataset=dataset_pb2.Dataset(dataset_id=dataset_id, description=""),
    )


def new_run(project: str, spec: run_pb2.RunSpec) -> run_pb2.CreateRunRequest:
    """A request for a run."""
    return run_pb2.CreateRunRequest(project_id=project, request_id=secrets.token_hex(8), run_spec=spec)


PIPELINE = {
    "apiVersion": "animus/v1",
    "kind": "Pipeline",
    "metadata": {"name": "bench", "description": "", "labels": []},
    "spec": {
        "steps": [
            {
                "name": "train",
                "image": f"registry.test/train@sha256:{'a' * 64}",
                "command": ["python"],
                "args": [],
                "inputs": {"datasets": [{"name": "data", "datasetRef": "data"}], "artifacts": []},
                "outputs": {"artifacts": []},
                "env": [],
                "resources": {"cpu": "1", "memory": "1Gi", "gpu": 0},
                "retryPolicy": {
                    "maxAttempts": 1,
                    "retryOn": [],
                    "backoff": {"type": "BACKOFF_TYPE_FIXED", "initialSeconds": 1, "maxSeconds": 1, "multiplier": "1"},
                },
            }
        ],
        "dependencies": [],
    },
}


def senders(served: Served, prepared: dict[str, Prepared]) -> dict[str, Send]:
    """How to send each of the calls that are measured."""
    datasets = dataset_pb2_grpc.DatasetServiceStub(served.channel)
    runs = run_pb2_grpc.RunServiceStub(served.channel)
    runtime = runtime_pb2_grpc.RuntimeServiceStub(served.channel)
    points = itertools.count()

    async def create_dataset(project: str) -> Any:
        return await served.call(datasets.CreateDataset, new_dataset(project, f"d{secrets.token_hex(8)}"))

    async def create_run(project: str) -> Any:
        return await served.call(runs.CreateRun, new_run(project, prepared[project].run_spec))

    async def record_metrics(project: str) -> Any:
        index = next(points)
        metric = runtime_pb2.MetricReport(
            step="train", attempt=1, name="loss", index=index, value="0.125", occur_time=OCCUR_TIME
        )
        request = runtime_pb2.RecordMetricsRequest(
            project_id=project, request_id=f"m{index}", run_id=next(prepared[project].running), metrics=[metric]
        )
        reply = await served.call(runtime.RecordMetrics, request)
        assert reply.results[0].outcome == runtime_pb2.ITEM_OUTCOME_ACCEPTED, reply
        return reply

    return {"CreateDataset": create_dataset, "CreateRun": create_run, "RecordMetrics": record_metrics}


async def rate(projects: Sequence[str], calls: int, send: Send) -> float:
    """Calls a second, with 32 in flight, on the projects in turn."""
    left = iter(range(calls))

    async def worker() -> None:
        for number in left:
            await send(projects[number % len(projects)])

    began = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(IN_FLIGHT)))
    return calls / (time.perf_counter() - began)
