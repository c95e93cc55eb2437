"""Bundles of the real server, verified by the file that an auditor has: runs in every state, stretches of logs."""

import asyncio
import contextlib
import hashlib
import io
import itertools
import json
import random
import secrets
import zipfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bagit  # type: ignore[import-untyped]
import httpx
import pytest
from conftest import Database, create_database, drop_database
from domain.test_attestation import check_resource, checked, predicate, public
from domain.test_openlineage import check as check_openlineage
from domain.test_prov import edges, read
from google.protobuf.message import Message
from in_toto_attestation.predicates.provenance.v1 import provenance_pb2  # type: ignore[import-untyped]
from in_toto_attestation.predicates.test_result.v0 import test_result_pb2  # type: ignore[import-untyped]
from securesystemslib import dsse
from securesystemslib.exceptions import VerificationError
from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import AsyncEngine
from verify.bundles import OUTSIDER, Files, bagged, zipped
from verify.test_verify_mutations import GOOD, flips, moves, records

import animus_verify
from animus.domain import document, merkle
from animus.domain.attestation import TAG_FILES
from animus.domain.audit import AuditEntry, AuditOutcome, AuditRecord
from animus.domain.checkpoint import Checkpoint, dump_checkpoint
from animus.domain.dataset import Dataset, File, FileManifest
from animus.domain.log import LogKeyStatus
from animus.log_operations import end_key, list_keys, open_epoch, rotate_key
from animus.signing import SigningKey, sign_note
from animus.store.embedded import EmbeddedPostgres
from animus.v1 import dataset_pb2, environment_pb2, evidence_pb2, log_pb2, run_pb2, runtime_pb2, types_pb2
from service.bundles import export, exported, finished_run, three_steps, unzipped
from service.conftest import Failure, Server, settings_for
from service.requests import (
    ONE,
    TIME,
    TWO,
    artifact,
    bind,
    create_run,
    dataset,
    disable,
    environment,
    evaluate,
    event,
    foreign,
    new_run_token,
    new_token,
    pipeline,
    plan_run,
    prepare,
    register_pipeline,
    report,
    revoke,
    step,
    version,
)
from service.requests import profile as quality_profile
from service.requests import rule as quality_rule
from service.requests import verify as verify_version
from service.shared import Grown, served, serving
from service.test_log import POLICY, WITNESSES, cosign
from service.test_record_manifest import planned as planned_steps
from service.test_reproduction import compare_runs, replay_run

SEEDS = itertools.count(1_000)


@dataclass(frozen=True, slots=True)
class Report:
    """What the verifier said."""

    code: int
    verdict: str
    file: str
    problem: str
    checked: list[str]
    not_shown: list[str]


@dataclass(frozen=True, slots=True)
class Auditor:
    """Exports bundles and verifies them with the keys of the server's logs."""

    server: Server
    folder: Path

    async def export(self, run_id: str = "", project_id: str = "p", **more: Any) -> bytes:
        """The bytes of a bundle, asked for once."""
        request = evidence_pb2.ExportEvidenceRequest(
            project_id=project_id, request_id=secrets.token_hex(8), run_id=run_id, **more
        )
        return await exported(self.server.admin, request)

    async def keys(self, project_id: str = "p") -> list[str]:
        """The verifier keys of a log, the oldest first."""
        log = await self.server.admin("GetLog", log_pb2.GetLogRequest(project_id=project_id))
        return [key.vkey for key in log.keys]

    def verify(self, data: bytes, keys: list[str], *options: object) -> Report:
        """The report on a bundle; a defect of the verifier is raised."""
        return verify(self.file(data), keys, *options)

    def file(self, data: bytes) -> Path:
        """A new file of these bytes."""
        path = self.folder / secrets.token_hex(8)
        path.write_bytes(data)
        return path

    async def signed(self, run_id: str = "", project_id: str = "p", **more: Any) -> dict[str, bytes]:
        """The files of a new bundle, which verifies."""
        data = await self.export(run_id, project_id, **more)
        report = self.verify(data, await self.keys(project_id), "--run", run_id)
        assert (report.verdict, report.code) == ("SIGNED", 11), report
        return files_of(data)


def verify(path: Path, keys: list[str], *options: object) -> Report:
    """The report on a bundle; a defect of the verifier is raised."""
    out = io.StringIO()
    trust = [part for key in keys for part in ("--trust", key)]
    with contextlib.redirect_stdout(out):
        code = animus_verify.main([str(path), *trust, "--json", "--debug", *map(str, options)])
    tree = json.loads(out.getvalue())
    assert tree["exitCode"] == code
    return Report(code, *(tree[name] for name in ("verdict", "file", "problem", "checked", "notShown")))


def files_of(data: bytes) -> dict[str, bytes]:
    """The files of a bundle by their paths in the bag."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def said(files: dict[str, bytes]) -> Any:
    """What a bundle says that it is."""
    return json.loads(files["data/evidence.json"])


def entries(files: dict[str, bytes]) -> list[Any]:
    """The entries of a bundle."""
    names = sorted(name for name in files if name.startswith("data/entries/"))
    return [json.loads(line) for name in names for line in files[name].splitlines()]


@pytest.fixture(scope="module")
async def server(
    postgres: EmbeddedPostgres, admin: AsyncEngine, template: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Server]:
    """The server of these tests, with a gateway, two witnesses and a project `p`."""
    policy = tmp_path_factory.mktemp("policy") / "policy"
    policy.write_text(POLICY)
    data_dir = tmp_path_factory.mktemp("data")
    more = {"log_policy_file": str(policy), "gateway": "true"}
    async with served(postgres, admin, template, data_dir, **more) as found:
        await found.project("p")
        yield found


@pytest.fixture
def auditor(server: Server, tmp_path: Path) -> Auditor:
    """An auditor of the server."""
    return Auditor(server, tmp_path)


# Runs in every state.


async def spec_of(server: Server) -> run_pb2.RunSpec:
    """A RunSpec of three steps that no other run has."""
    spec = await prepare(server.admin, tree=three_steps())
    spec.parameters[0].value = str(next(SEEDS))
    return spec


async def created(server: Server, spec: run_pb2.RunSpec | None = None) -> str:
    """A run that was let in."""
    run = await server.admin("CreateRun", create_run(spec or await spec_of(server), secrets.token_hex(8)))
    return str(run.run_id)


async def planned(server: Server, spec: run_pb2.RunSpec | None = None) -> str:
    """A run that has its plan."""
    run_id = await created(server, spec)
    await server.admin("PlanRun", plan_run(run_id, f"plan-{run_id}"))
    return run_id


async def running(server: Server) -> str:
    """A run of whose first step an attempt goes on, with an output and a metric that are there already."""
    run_id = await planned(server)
    await server.admin("ReportStepEvents", report(run_id, event("first", 1, "STARTED")))
    await server.admin("RegisterArtifacts", artifact(run_id, "first", "table"))
    await server.admin("RecordMetrics", points(run_id, "first", "loss"))
    return run_id


async def failed(server: Server) -> str:
    """A run whose second step failed by its code, so that the third was skipped."""
    run_id = await running(server)
    ended = event("second", 1, "FAILED", error_kind="USER", message="no\n“column”\u2028")
    await server.admin(
        "ReportStepEvents", report(run_id, event("first", 1, "SUCCEEDED"), event("second", 1, "STARTED"), ended)
    )
    return run_id


async def out_of_attempts(server: Server) -> str:
    """A run whose first step was lost with the machine as often as it may be."""
    run_id = await planned(server)
    for attempt in (1, 2):
        ended = event("first", attempt, "FAILED", error_kind="SYSTEM")
        await server.admin("ReportStepEvents", report(run_id, event("first", attempt, "STARTED"), ended))
    return run_id


async def cancel(server: Server, run_id: str) -> None:
    """Asks for the end of a run."""
    request = run_pb2.CancelRunRequest(project_id="p", request_id=f"cancel-{run_id}", run_id=run_id, reason="enough")
    await server.admin("CancelRun", request)


async def cancelled_unplanned(server: Server) -> str:
    """A run that was cancelled before it had a plan."""
    run_id = await created(server)
    await cancel(server, run_id)
    return run_id


async def cancelled_planned(server: Server) -> str:
    """A run that was cancelled before anything had started."""
    run_id = await planned(server)
    await cancel(server, run_id)
    return run_id


async def canceling(server: Server) -> str:
    """A run that was cancelled while an attempt went on, which goes on still."""
    run_id = await running(server)
    await cancel(server, run_id)
    return run_id


async def cancelled_running(server: Server) -> str:
    """A run that was cancelled while an attempt went on, which then ended."""
    run_id = await canceling(server)
    await server.admin("ReportStepEvents", report(run_id, event("first", 1, "CANCELED")))
    return run_id


async def without_outputs(server: Server) -> str:
    """A run that succeeded and made nothing."""
    spec = await spec_of(server)
    tree = pipeline(step("only"))
    registered = await server.admin("RegisterPipelineSpec", register_pipeline(tree, request_id="only"))
    spec.pipeline_spec_digest = registered.record.digest
    del spec.datasets[:]
    run_id = await planned(server, spec)
    await server.admin("ReportStepEvents", report(run_id, event("only", 1, "STARTED"), event("only", 1, "SUCCEEDED")))
    return run_id


async def refused_at_times(server: Server) -> str:
    """A run of which calls were refused, denied, repeated, and without effect."""
    run_id = await running(server)
    viewer = await server.caller("p", "viewer")
    for caller, name, request in (
        (server.admin, "PlanRun", plan_run(run_id, f"again-{run_id}")),
        (server.admin, "ReportStepEvents", report(run_id, event("third", 1, "STARTED"))),
        (server.admin, "ReportStepEvents", report(run_id, event("nothing", 1, "STARTED"))),
        (server.admin, "RegisterArtifacts", artifact(run_id, "third", "table")),
        (server.admin, "RegisterArtifacts", artifact(run_id, "first", "table", digest=ONE)),
        (server.admin, "RecordMetrics", points(run_id, "first", "loss")),
        (viewer, "ReportStepEvents", report(run_id, event("first", 1, "FAILED", error_kind="USER"))),
        (viewer, "CancelRun", run_pb2.CancelRunRequest(project_id="p", request_id="x", run_id=run_id)),
    ):
        with contextlib.suppress(Failure):
            await caller(name, request)
    return run_id


def everything() -> dict[str, object]:
    """A pipeline that uses each field: names out of order, two ways to one step, one reference read twice."""
    reads = [{"name": "x", "datasetRef": "files"}, {"name": "a", "datasetRef": "again"}]
    table = [
        {"name": "t", "fromStep": "zeta", "artifact": "out"},
        {"name": "s", "fromStep": "zeta", "artifact": "also"},
    ]
    steps: list[dict[str, Any]] = [
        step("join", inputs={"artifacts": [{"name": "m", "fromStep": "mid", "artifact": "out"}, *table]}, attempts=1),
        step("mid", inputs={"datasets": reads[:1], "artifacts": table}, outputs=("out",)),
        step("alone", inputs={"datasets": reads}),
        step("zeta", inputs={"datasets": reads}, outputs=("out", "also"), attempts=3),
        step("beta"),
    ]
    for number, each in enumerate(steps):
        each["env"] = [{"name": "Z", "value": "größe \u2028 \U0001f600", "secretRef": ""}]
        each["env"] += [{"name": "A", "value": "", "secretRef": "vault:ml/registry#token"}]
        each["args"] = ["--x", "", "ünï", '"\\\t\n']
        each["resources"] = {"cpu": "500m", "memory": "1536Mi", "gpu": number}
        each["retryPolicy"] = {
            "maxAttempts": each["retryPolicy"]["maxAttempts"],
            "retryOn": ["ERROR_KIND_USER", "ERROR_KIND_SYSTEM"],
            "backoff": {"type": "BACKOFF_TYPE_EXPONENTIAL", "initialSeconds": 0, "maxSeconds": 9, "multiplier": "1.25"},
        }
    return {
        **pipeline(*steps),
        "metadata": {
            "name": "all",
            "description": "ü",
            "labels": [{"key": "z", "value": "ä"}, {"key": "a", "value": ""}],
        },
        "spec": {"steps": steps, "dependencies": [{"step": "alone", "dependsOn": "join"}]},
    }


async def rich(server: Server) -> str:
    """A planned run whose specs use each field, with texts beyond ASCII, and data sets of many files."""
    call, spec = server.admin, await spec_of(server)
    files = [File(path, size, ONE) for path, size in (("ä/b", 0), ("a/ü", 2**53 - 1 - 7), ("z", 7))]
    content = document.digest(document.dump(FileManifest(tuple(files))))
    of_files = dataset_pb2.DatasetVersion(
        dataset_id="data",
        content_digest=content,
        size_bytes=2**53 - 1,
        media_type="text/csv",
        row_count=2**53 - 1,
        source="größe",
        licence="MIT",
        uris=["s3://größe"],
        labels=[types_pb2.Label(key="z", value="ä")],
    )
    for each in reversed(files):
        of_files.files.add(path=each.path, size_bytes=each.size_bytes, digest=each.digest)
    of_files.columns.add(name="größe", type="float64")
    of_files.columns.add(name="a", type="list<item: string>")
    await call(
        "RegisterDatasetVersion",
        dataset_pb2.RegisterDatasetVersionRequest(project_id="p", request_id="files", dataset_version=of_files),
    )
    lock = environment().environment_lock
    for name in ("zeta", "alpha"):
        lock.packages.add(name=name, version="1.0+ü")
        lock.images.add(reference=f"registry.test/{name}@{ONE}")
    lock.lock_file_digest = ONE
    lock.accelerators.add(model="H100", count=8, driver_version="550")
    request = environment_pb2.RegisterEnvironmentLockRequest(project_id="p", request_id="rich", environment_lock=lock)
    locked = await call("RegisterEnvironmentLock", request)
    registered = await call("RegisterPipelineSpec", register_pipeline(everything(), request_id="rich"))
    spec.pipeline_spec_digest, spec.environment_lock_digest = registered.record.digest, locked.record.digest
    spec.commit.repository, spec.commit.sha = "https://git.test/a%20b?c=d&e", "d" * 64
    del spec.datasets[:]
    spec.datasets.add(dataset_ref="files", dataset_id="data", content_digest=content)
    spec.datasets.add(dataset_ref="again", dataset_id="data", content_digest=ONE)
    for name, kind, value in (
        ("z", "STRING", 'größe \u2028\U0001f600 "\\\t\n'),
        ("b", "BOOL", "true"),
        ("d", "DECIMAL", "-0.125"),
        ("i", "INT", "-123456789012345678901234567890"),
    ):
        spec.parameters.add(name=name, type=run_pb2.ParameterType.Value(f"PARAMETER_TYPE_{kind}"), value=value)
    create = create_run(spec, secrets.token_hex(8))
    for key, value in (("z", "ü"), ("a", "")):
        create.labels.add(key=key, value=value)
    run = await call("CreateRun", create)
    await call("PlanRun", plan_run(run.run_id, f"plan-{run.run_id}"))
    return str(run.run_id)


async def eventful(server: Server) -> str:
    """A run of all fields, with retries, repeated reports, equal outputs, odd times and numbers; one step is left."""
    call, run_id = server.admin, await rich(server)
    lost = event("zeta", 1, "FAILED", error_kind="SYSTEM", message="größe\t\n\u2028\U0001f600")
    lost.occur_time.FromJsonString("0001-01-01T00:00:00Z")
    again = event("zeta", 2, "STARTED")
    again.occur_time.FromJsonString("9999-12-31T23:59:59.999999Z")
    await call("ReportStepEvents", report(run_id, event("beta", 1, "STARTED"), event("zeta", 1, "STARTED")))
    await call("RegisterArtifacts", artifact(run_id, "zeta", "out"))  # of an attempt that fails
    await call("ReportStepEvents", report(run_id, lost, again))
    await call("ReportStepEvents", report(run_id, lost, again, event("zeta", 2, "FAILED", error_kind="USER")))
    await call("ReportStepEvents", report(run_id, event("zeta", 3, "STARTED"), event("join", 1, "STARTED")))
    both = artifact(run_id, "zeta", "out", attempt=3)
    both.artifacts.extend(artifact(run_id, "zeta", "also", attempt=3).artifacts)
    await call("RegisterArtifacts", both)  # one content under two names
    await call("RegisterArtifacts", artifact(run_id, "zeta", "also", attempt=3))
    for values in (["0", "-0.5", f"0.{0:0300}1", "12345678901234567890.125"], ["0", "7"]):
        request = points(run_id, "zeta", *("v" for _ in values))
        for point, value in zip(request.metrics, values, strict=True):
            point.attempt, point.value, point.index = 3, value, point.index * 10**9
        await call("RecordMetrics", request)
    ended = [event("zeta", 3, "SUCCEEDED"), event("mid", 1, "STARTED"), event("beta", 1, "SUCCEEDED")]
    await call("ReportStepEvents", report(run_id, *ended))
    await call("RegisterArtifacts", artifact(run_id, "mid", "out"))  # the same content again, of another step
    await call("ReportStepEvents", report(run_id, event("mid", 1, "SUCCEEDED"), event("join", 1, "STARTED")))
    await call("ReportStepEvents", report(run_id, event("join", 1, "SUCCEEDED")))
    return run_id


async def stopped_twice(server: Server) -> str:
    """A run that was cancelled twice while a step was being retried, and of which there were reports after its end."""
    run_id = await eventful(server)
    await server.admin("ReportStepEvents", report(run_id, event("alone", 1, "STARTED")))
    for number in range(2):
        request = run_pb2.CancelRunRequest(project_id="p", request_id=f"{number}-{run_id}", run_id=run_id, reason="ü")
        await server.admin("CancelRun", request)
    late = [event("alone", 1, "FAILED", error_kind="SYSTEM"), event("alone", 2, "STARTED")]
    await server.admin("ReportStepEvents", report(run_id, *late))
    with contextlib.suppress(Failure):
        await server.admin("ReportStepEvents", report(run_id, event("alone", 1, "SUCCEEDED")))
    await server.admin("CancelRun", run_pb2.CancelRunRequest(project_id="p", request_id=f"z-{run_id}", run_id=run_id))
    return run_id


async def bound_twice(server: Server) -> str:
    """A run with an output whose RunSpec binds one dataset version under two references."""
    reads = [{"name": "a", "datasetRef": "data"}, {"name": "b", "datasetRef": "same"}]
    tree = pipeline(step("first", inputs={"datasets": reads}, outputs=("table",)))
    spec = await spec_of(server)
    registered = await server.admin("RegisterPipelineSpec", register_pipeline(tree, request_id="twice"))
    spec.pipeline_spec_digest = registered.record.digest
    spec.datasets.add(dataset_ref="same", dataset_id="data", content_digest=ONE)
    run_id = await planned(server, spec)
    await server.admin("ReportStepEvents", report(run_id, event("first", 1, "STARTED")))
    await server.admin("RegisterArtifacts", artifact(run_id, "first", "table"))
    await server.admin("ReportStepEvents", report(run_id, event("first", 1, "SUCCEEDED")))
    return run_id


async def replay_of(server: Server, run_id: str) -> str:
    """A run that replays another, planned."""
    made = await server.admin("ReplayRun", replay_run(run_id, secrets.token_hex(8)))
    await server.admin("PlanRun", plan_run(made.run_id, f"plan-{made.run_id}"))
    return str(made.run_id)


async def replayed(server: Server) -> str:
    """A planned run that replays one that failed."""
    return await replay_of(server, await failed(server))


def points(run_id: str, step_name: str, *names: str, project_id: str = "p") -> runtime_pb2.RecordMetricsRequest:
    """Records a point of each name."""
    request = runtime_pb2.RecordMetricsRequest(project_id=project_id, request_id=secrets.token_hex(8), run_id=run_id)
    for number, name in enumerate(names):
        point = request.metrics.add(step=step_name, attempt=1, name=name, index=number, value="0.5")
        point.occur_time.CopyFrom(event("first", 1, "STARTED").occur_time)
    return request


async def all_of(server: Server, name: str, requests: Sequence[Message]) -> None:
    """Makes many calls, fewer at once than a connection takes."""
    for part in range(0, len(requests), 50):
        await asyncio.gather(*(server.admin(name, each) for each in requests[part : part + 50]))


async def finished(server: Server) -> str:
    """A run that succeeded."""
    return await finished_run(server, secrets.token_hex(8))


Story = Callable[[Server], Awaitable[str]]
STORIES: dict[Story, tuple[str, bool]] = {  # the state of the run, and whether it has outputs
    created: ("created", False),
    planned: ("planned", False),
    running: ("running", False),
    refused_at_times: ("running", False),
    failed: ("failed", True),
    out_of_attempts: ("failed", False),
    cancelled_unplanned: ("canceled", False),
    cancelled_planned: ("canceled", False),
    canceling: ("canceling", False),
    cancelled_running: ("canceled", False),
    without_outputs: ("succeeded", False),
    bound_twice: ("succeeded", True),
    rich: ("planned", False),
    eventful: ("running", True),
    stopped_twice: ("canceled", True),
    finished: ("succeeded", True),
}


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.__name__)
async def test_a_run_verifies_in_each_state(story: Story, auditor: Auditor) -> None:
    """Its derived state is the one that the server answers with; provenance is there when there are outputs."""
    state, outputs = STORIES[story]
    run_id = await story(auditor.server)
    data = await auditor.export(run_id)
    found = auditor.verify(data, await auditor.keys(), "--run", run_id)
    assert found.verdict == "SIGNED", found
    assert any(f"the run is {state}" in each for each in found.checked)
    files = files_of(data)
    summary = json.loads(files["data/summary.json"])
    assert (summary["state"], bool(summary["outputs"])) == (state, outputs)
    assert ("data/attestations/provenance.dsse.json" in files) == outputs
    run = await auditor.server.admin("GetRun", run_pb2.GetRunRequest(project_id="p", run_id=run_id))
    assert run_pb2.RunState.Name(run.state) == f"RUN_STATE_{state.upper()}"
    assert [each["name"] for each in summary["steps"]] == [each.step for each in run.steps]
    other = auditor.verify(data, await auditor.keys(), "--run", "0" * 32)
    assert other.verdict == "INVALID"


async def test_a_plan_that_another_run_registered_is_proven_by_its_entry(auditor: Auditor) -> None:
    """Of two runs of one RunSpec the one that was created second plans first, and the other has the same plan."""
    server = auditor.server
    spec = await spec_of(server)
    one, two = await created(server, spec), await created(server, spec)
    await server.admin("PlanRun", plan_run(two, f"plan-{two}"))
    await server.admin("ReportStepEvents", report(two, event("first", 1, "STARTED")))
    await server.admin("PlanRun", plan_run(one, f"plan-{one}"))
    await server.admin("ReportStepEvents", report(one, event("first", 1, "STARTED")))
    for run_id in (one, two):
        files = await auditor.signed(run_id)
        proofs = [json.loads(files[name]) for name in files if "data/proofs/" in name and name.endswith(".json")]
        assert f"projects/p/runs/{two}/plan" in {each["resource"] for each in proofs}


async def test_a_run_verifies_with_its_comparisons(auditor: Auditor) -> None:
    """With a replay, and with a run that was cancelled; one that is found again writes an entry without record."""
    server = auditor.server
    first, other = await failed(server), await cancelled_unplanned(server)
    replay = await replay_of(server, first)
    for against in (replay, other, replay):
        await server.admin("CompareRuns", compare_runs(first, against, secrets.token_hex(8)))
    files = await auditor.signed(first)
    assert files["data/records/run_comparison.ndjson"].count(b"\n") == 2
    assert [each["outcome"] for each in entries(files) if each["action"] == "run.compare"] == [
        *("accepted", "accepted", "unchanged")
    ]
    assert "data/records/run_comparison.ndjson" not in await auditor.signed(other)


async def test_a_replay_verifies(auditor: Auditor) -> None:
    """It was created by another action, and is linked to the run that it replays."""
    first = await failed(auditor.server)
    files = await auditor.signed(await replay_of(auditor.server, first))
    assert json.loads(files["data/records/run.ndjson"])["replayOf"] == first
    assert entries(files)[0]["action"] == "run.replay"


async def test_reports_too_large_for_an_entry_verify_by_their_manifests(auditor: Auditor) -> None:
    """1,000 points in one call, then some more: all are there, behind the manifest and beside it."""
    run_id = await planned(auditor.server)
    await auditor.server.admin("ReportStepEvents", report(run_id, event("first", 1, "STARTED")))
    await auditor.server.admin("RecordMetrics", points(run_id, "first", *(f"loss.{at}" for at in range(1_000))))
    await auditor.server.admin("RecordMetrics", points(run_id, "first", *(f"more.{at}" for at in range(100))))
    files = await auditor.signed(run_id)
    assert files["data/records/metric.ndjson"].count(b"\n") == 1_100
    assert files["data/records/record_manifest.ndjson"].count(b"\n") == 1
    first = said(files)["firstIndex"]
    await auditor.signed(first_index=first)


async def test_events_and_edges_behind_a_manifest_verify(auditor: Auditor) -> None:
    """300 steps start and end in one call; each start has its edges."""
    grown, run_id = await planned_steps(auditor.server, 300)
    happened = [event(f"s{number}", 1, kind) for number in range(300) for kind in ("STARTED", "SUCCEEDED")]
    await auditor.server.admin("ReportStepEvents", report(run_id, *happened, project_id=grown.project_id))
    files = await auditor.signed(run_id, grown.project_id)
    assert files["data/records/record_manifest.ndjson"].count(b"\n") == 1
    assert json.loads(files["data/summary.json"])["state"] == "succeeded"


def random_pipeline(rng: random.Random) -> dict[str, object]:
    """Up to seven steps with names in no order, which read what any step before them makes."""
    names = rng.sample("abcdefghij", rng.randint(1, 7))
    made: list[tuple[str, str]] = []
    steps, dependencies = [], []
    for number, name in enumerate(names):
        reads = [{"name": f"d{at}", "datasetRef": "data"} for at in range(rng.randint(0, 2))]
        taken = rng.sample(made, rng.randint(0, min(3, len(made))))
        inputs = [{"name": f"i{at}", "fromStep": each, "artifact": out} for at, (each, out) in enumerate(taken)]
        outputs = tuple(rng.sample(("x", "y", "z"), rng.randint(0, 2)))
        made += [(name, output) for output in outputs]
        steps.append(step(name, inputs={"datasets": reads, "artifacts": inputs}, outputs=outputs, attempts=3))
        if number and rng.random() < 0.3:
            dependencies.append({"step": name, "dependsOn": rng.choice(names[:number])})
    steps[0]["inputs"] = {"datasets": [{"name": "d", "datasetRef": "data"}], "artifacts": []}
    rng.shuffle(steps)
    tree = pipeline(*steps)
    return {**tree, "spec": {"steps": steps, "dependencies": dependencies}}


async def at_random(server: Server, rng: random.Random, run_id: str, steps: Sequence[Any]) -> None:
    """A call such as a runtime makes, right or wrong."""
    reports = []
    for _ in range(rng.randint(1, 8)):
        each, attempt = rng.choice(steps), rng.choice((1, 1, 2, 2, 3))
        reports.append(
            (each, attempt, rng.choice(("STARTED", "STARTED", "SUCCEEDED", "SUCCEEDED", "FAILED", "CANCELED")))
        )
    call = rng.random()
    if call < 0.55:
        found = []
        for each, attempt, kind in reports:
            error = rng.choice([*["SYSTEM"] * 9, "USER"]) if kind == "FAILED" else "UNSPECIFIED"
            found.append(
                event(each.name, attempt, kind, error_kind=error, event_id=f"{each.name}{attempt}{kind}{error}")
            )
        await server.admin("ReportStepEvents", report(run_id, *found))
    elif call < 0.9:
        request = artifact(run_id, "none", "none")
        del request.artifacts[:]
        for each, attempt, _ in reports:
            name = rng.choice([output.name for output in each.outputs.artifacts] or ["x"])
            request.artifacts.extend(
                artifact(run_id, each.name, name, attempt=attempt, digest=rng.choice((ONE, TWO))).artifacts
            )
        await server.admin("RegisterArtifacts", request)
    elif call < 0.995:
        await server.admin("RecordMetrics", points(run_id, reports[0][0].name, "loss", "loss"))
    else:
        await cancel(server, run_id)


async def test_whatever_a_runtime_reports_the_bundle_verifies(auditor: Auditor) -> None:
    """Random pipelines and random calls, most of which are refused in part; the state is the server's at each look."""
    server, rng, states = auditor.server, random.Random(5), set()
    for number in range(10):
        spec = await spec_of(server)
        tree = register_pipeline(random_pipeline(rng), request_id=f"random-{number}")
        registered = await server.admin("RegisterPipelineSpec", tree)
        spec.pipeline_spec_digest = registered.record.digest
        run_id = await planned(server, spec)
        for _ in range(3):
            for _ in range(20):
                with contextlib.suppress(Failure):
                    await at_random(server, rng, run_id, registered.spec.steps)
            summary = json.loads((await auditor.signed(run_id))["data/summary.json"])
            run = await server.admin("GetRun", run_pb2.GetRunRequest(project_id="p", run_id=run_id))
            assert run_pb2.RunState.Name(run.state) == f"RUN_STATE_{summary['state'].upper()}"
            assert [(each["name"], f"STEP_STATE_{each['state'].upper()}") for each in summary["steps"]] == [
                (each.step, run_pb2.StepState.Name(each.state)) for each in run.steps
            ]
            states |= {summary["state"], *(each["state"] for each in summary["steps"])}
            states |= {f"output {each['attempt']}" for each in summary["outputs"]}
    print(sorted(states))
    assert states >= {"failed", "running", "canceled", "skipped", "succeeded", "output 1", "output 2"}


async def test_bundles_that_are_made_while_the_run_goes_on_verify(auditor: Auditor) -> None:
    """Each shows the run as it was at its checkpoint."""
    server, run_id = auditor.server, await running(auditor.server)

    async def goes_on() -> None:
        for number in range(20):
            await server.admin("RecordMetrics", points(run_id, "first", f"loss.{number}"))
        ended = event("first", 1, "FAILED", error_kind="USER")
        await server.admin("ReportStepEvents", report(run_id, ended))

    found = await asyncio.gather(*(auditor.export(run_id) for _ in range(8)), goes_on())
    keys = await auditor.keys()
    assert [auditor.verify(data, keys).verdict for data in found if data] == ["SIGNED"] * 8
    assert json.loads((await auditor.signed(run_id))["data/summary.json"])["state"] == "failed"


async def test_a_run_that_was_created_with_a_manifest_verifies(auditor: Auditor) -> None:
    """It binds 660 versions of a dataset: its RunSpec is named in the manifest of the entry that created it."""
    server, project_id = auditor.server, (await Grown.new(auditor.server)).project_id
    digests = [f"sha256:{number:064x}" for number in range(660)]
    await server.admin("CreateDataset", dataset(project_id))
    await all_of(server, "RegisterDatasetVersion", [version(project_id, digest) for digest in digests])
    lock = await server.admin("RegisterEnvironmentLock", environment(project_id))
    read = [{"name": f"d{number}", "datasetRef": f"d{number}"} for number in range(660)]
    tree = pipeline(*(step(f"s{at}", inputs={"datasets": read[at : at + 220]}) for at in range(0, 660, 220)))
    registered = await server.admin("RegisterPipelineSpec", register_pipeline(tree, project_id))
    spec = run_pb2.RunSpec(
        api_version="animus/v1",
        kind="Run",
        pipeline_spec_digest=registered.record.digest,
        commit=run_pb2.Commit(repository="https://git.test/demo", sha="c" * 40),
        environment_lock_digest=lock.record.digest,
    )
    for number, digest in enumerate(digests):
        spec.datasets.add(dataset_ref=f"d{number}", dataset_id="data", content_digest=digest)
    run = await server.admin("CreateRun", create_run(spec, project_id=project_id))
    files = await auditor.signed(run.run_id, project_id)
    assert sum(name.startswith("data/bound/record_manifest-") for name in files) == 1
    assert sum(name.startswith("data/bound/dataset_version-") for name in files) == 660
    await auditor.signed("", project_id)


async def test_a_run_among_many_other_entries_and_projects_verifies(auditor: Auditor) -> None:
    """Only what names the run is taken for it, however much of other things lies between."""
    server = auditor.server
    run_id = await running(server)
    other = await Grown.new(server)
    await all_of(server, "CreateDataset", [dataset("p", f"between-{at}") for at in range(300)])
    neighbour = await running(server)
    await other.grow(50)
    await server.admin("ReportStepEvents", report(run_id, event("first", 1, "SUCCEEDED")))
    files = await auditor.signed(run_id)
    assert len(entries(files)) > 300
    events = [json.loads(line) for line in files["data/records/run_event.ndjson"].splitlines()]
    assert {each["runId"] for each in events} == {run_id}
    assert other.project_id.encode() not in b"".join(files.values())
    assert neighbour.encode() in files[f"data/entries/{said(files)['firstIndex']:020d}.ndjson"]
    of_other = await auditor.export("", other.project_id)
    assert auditor.verify(of_other, await auditor.keys()).verdict == "INVALID"


async def test_exports_are_part_of_later_bundles(auditor: Auditor) -> None:
    """The first writes what it covered, a second of the same only that it was made; both are in the third."""
    run_id = await failed(auditor.server)
    size = said(await auditor.signed(run_id))["size"]
    await auditor.signed(run_id, size=size)
    later = await auditor.signed(run_id)
    made = [(each["outcome"], len(each["records"])) for each in entries(later) if each["action"] == "evidence.export"]
    assert made == [("accepted", 1), ("unchanged", 0)]
    assert later["data/records/evidence.ndjson"].count(b"\n") == 1


async def test_a_bundle_of_an_earlier_size_shows_the_run_as_it_was(auditor: Auditor) -> None:
    """Each size that was published once, with the state of then; keys and proofs are of that checkpoint."""
    server = auditor.server
    states, run_id = {}, await created(server)
    for state, call in (
        ("created", None),
        ("planned", ("PlanRun", plan_run(run_id, f"plan-{run_id}"))),
        ("running", ("ReportStepEvents", report(run_id, event("first", 1, "STARTED")))),
        ("failed", ("ReportStepEvents", report(run_id, event("first", 1, "FAILED", error_kind="USER")))),
    ):
        if call:
            await server.admin(*call)
        await server.published("p")
        log = await server.admin("GetLog", log_pb2.GetLogRequest(project_id="p"))
        states[log.published_size] = state
    assert len(states) == 4
    for size, state in states.items():
        assert json.loads((await auditor.signed(run_id, size=size))["data/summary.json"])["state"] == state
        await auditor.signed(size=size)


# Heads that an auditor kept, and witnesses.


async def head(server: Server, project_id: str = "p") -> tuple[int, bytes]:
    """Size and note of the newest checkpoint, which covers everything."""
    await server.published(project_id)
    found = await server.admin("GetCheckpoint", log_pb2.GetCheckpointRequest(project_id=project_id))
    return found.size, found.note


def forged(server: Server, size: int, origin: str) -> bytes:
    """A checkpoint of another tree that the log's own key has signed."""
    lines = dump_checkpoint(Checkpoint(origin, size, hashlib.sha256(b"another").digest(), ()))
    return sign_note(lines, server.running.log.keyring.keys, origin)


@pytest.mark.parametrize("of_run", [True, False], ids=["run", "log"])
async def test_a_bundle_goes_on_from_heads_that_were_kept(of_run: bool, auditor: Auditor) -> None:
    """Before the bundle by a proof that was asked for, in it and at its end by its entries; a later head by nothing."""
    server = auditor.server
    before, note_before = await head(server)
    run_id = await created(server)
    first = before
    within, note_within = await head(server)
    await server.admin("PlanRun", plan_run(run_id, f"plan-{run_id}"))
    size, note = await head(server)
    await server.admin("CreateDataset", dataset("p", f"after-{run_id}"))
    _, note_after = await head(server)
    assert before <= first < within < size
    wanted = {"run_id": run_id} if of_run else {"first_index": first}
    keys = await auditor.keys()
    plain = await auditor.export(size=size, **wanted)
    proven = await auditor.export(size=size, known_sizes=[before, 1], **wanted)

    def verdict(data: bytes, *notes: bytes) -> str:
        heads = [part for each in notes for part in ("--known-head", auditor.file(each))]
        return auditor.verify(data, keys, *heads).verdict

    assert [verdict(plain, each) for each in (note_within, note, note_after)] == ["CONSISTENT", "CONSISTENT", "SIGNED"]
    assert verdict(proven, note_before) == "CONSISTENT"
    assert verdict(proven, note_before, note_within, note) == "CONSISTENT"
    origin = said(files_of(plain))["origin"]
    for at in (before, within, size):
        assert verdict(proven, forged(server, at, origin)) == "CONTRADICTION"
    assert verdict(proven, note_within, forged(server, before, origin)) == "CONTRADICTION"
    other = await Grown.new(server)
    assert verdict(proven, (await other.published(1)).note) == "INVALID"
    stranger = SigningKey(origin, bytes(32))
    assert verdict(proven, sign_note(dump_checkpoint(Checkpoint(origin, before, bytes(32), ())), [stranger])) == (
        "INVALID"
    )


async def test_every_stretch_of_a_small_log_goes_on_from_every_head(auditor: Auditor) -> None:
    """Of each size up to nine, from each index, with proofs from all smaller sizes: all heads are of this log."""
    grown = await Grown.new(auditor.server)
    project_id, keys = grown.project_id, await auditor.keys(grown.project_id)
    heads: dict[int, Path] = {}
    for size in range(1, 10):
        if size > 1:
            await grown.grow()
        heads[size] = auditor.file((await grown.published(size)).note)
    for size in heads:
        kept = [part for at in heads if at <= size for part in ("--known-head", heads[at])]
        for first in range(size):
            data = await auditor.export("", project_id, first_index=first, size=size, known_sizes=list(range(1, size)))
            found = auditor.verify(data, keys, *kept)
            uncovered = [each for each in found.not_shown if "began with" in each]
            assert (found.verdict, uncovered) == ("CONSISTENT", []), (first, size)
            assert f"{size} of {size} kept checkpoints are of this log" in found.checked


@pytest.mark.parametrize("of_run", [True, False], ids=["run", "log"])
async def test_a_bundle_that_witnesses_have_cosigned_is_witnessed(of_run: bool, auditor: Auditor) -> None:
    """By as many as the policy asks for: one of two is not enough; without a policy nobody is asked."""
    run_id = await running(auditor.server)
    size, note = await head(auditor.server)
    wanted = {"run_id": run_id} if of_run else {"first_index": size - 5}
    keys, policy = await auditor.keys(), auditor.file(POLICY.encode())
    found = []
    for witness in (None, *WITNESSES):
        if witness:
            await auditor.server.admin("AddCosignatures", cosign("p", size, witness.line(note)))
        data = await auditor.export(size=size, **wanted)
        found.append((auditor.verify(data, keys, "--policy", policy).verdict, auditor.verify(data, keys).verdict))
    assert found == [("SIGNED", "SIGNED"), ("SIGNED", "SIGNED"), ("WITNESSED", "SIGNED")]
    assert auditor.verify(data, keys, "--policy", policy).code == 0
    kept = auditor.file(note)
    assert auditor.verify(data, keys, "--known-head", kept).verdict == "CONSISTENT"


# Keys and epochs.


async def test_bundles_of_a_rotated_key_verify_by_every_key_that_signed_all_of_them(
    database: Database, tmp_path: Path
) -> None:
    """By the old one until it ends, by the new one from its first checkpoint, and by both together always."""
    name = {"log_name": "animus.example/eu-1"}  # builder and origin have it whole
    async with serving(database.service_url, tmp_path, **name) as server:
        await server.project("p")
        auditor = Auditor(server, tmp_path)
        run_id = await failed(server)
        (old,) = await auditor.keys()
        bundles = {"before": await auditor.export(run_id)}
    size, note = said(files_of(bundles["before"]))["size"], files_of(bundles["before"])["data/log/checkpoint"]
    ((facts, _),) = await list_keys(server.settings)
    await rotate_key(server.settings)
    async with serving(database.service_url, tmp_path, **name) as server:
        auditor = Auditor(server, tmp_path)
        (new,) = set(await auditor.keys()) - {old}
        await server.admin("CreateDataset", dataset("p", "rotated"))  # so that there is a checkpoint of this time
        bundles["rotated"] = await auditor.export(run_id)
        bundles["rotated, of the old size"] = await auditor.export(run_id, size=size)
    await end_key(server.settings, facts.key.value.public_key, LogKeyStatus.RETIRED, "a year old")
    async with serving(database.service_url, tmp_path, **name) as server:
        auditor = Auditor(server, tmp_path)
        assert set(await auditor.keys()) == {old, new}
        await server.admin("CreateDataset", dataset("p", "retired"))
        bundles["retired"] = await auditor.export(run_id)
        bundles["retired, of the old size"] = await auditor.export(run_id, size=size)
        bundles["retired, of the log"] = await auditor.export()
        bundles["retired, of the system"] = await auditor.export(project_id="system")
        system = await auditor.keys("system")
    good, bad = "SIGNED", "INVALID"
    assert {each: [auditor.verify(bundles[each], keys).verdict for keys in ([old], [new], [old, new])] for each in (
        "before", "rotated", "rotated, of the old size", "retired", "retired, of the old size", "retired, of the log"
    )} == {
        "before": [good, bad, good],
        "rotated": [good, good, good],
        "rotated, of the old size": [good, bad, good],
        "retired": [bad, good, good],
        "retired, of the old size": [bad, bad, good],
        "retired, of the log": [bad, good, good],
    }  # fmt: skip
    kept = auditor.file(note)
    for each in ("rotated", "retired", "retired, of the log"):
        assert auditor.verify(bundles[each], [old, new], "--known-head", kept).verdict == "CONSISTENT"
    assert auditor.verify(bundles["retired, of the log"], [new], "--known-head", kept).verdict == "INVALID"
    assert auditor.verify(bundles["retired, of the system"], system).verdict == "SIGNED"
    assert {"key.rotate", "key.retire"} <= {
        each["action"] for each in entries(files_of(bundles["retired, of the system"]))
    }


async def test_bundles_of_a_new_epoch_are_of_another_log(
    database: Database, admin: AsyncEngine, tmp_path: Path
) -> None:
    """After a restored backup: what was exported before stays good under the old name, and nothing new is."""
    name = str(make_url(database.service_url).database)
    async with serving(database.service_url, tmp_path) as server:
        await server.project("p")
        auditor = Auditor(server, tmp_path)
        kept_run = await running(server)
        (old,) = await auditor.keys()
        await server.published("p")
    await create_database(admin, f"{name}_backup", name)
    async with serving(database.service_url, tmp_path) as server:
        lost_run = await failed(server)
        lost = await Auditor(server, tmp_path).export(lost_run)
        note = files_of(lost)["data/log/checkpoint"]
    url = make_url(database.service_url).set(database=f"{name}_backup").render_as_string(hide_password=False)
    restored = settings_for(url, tmp_path, log_name="animus.example")
    assert await open_epoch(restored, "restored the backup of noon", new_key=False) == 2
    async with serving(url, tmp_path) as server:
        auditor = Auditor(server, tmp_path)
        (new,) = await auditor.keys()
        assert (old.partition("+")[0], new.partition("+")[0]) == ("animus.example/p/1", "animus.example/p/2")
        await server.admin("ReportStepEvents", report(kept_run, event("first", 1, "SUCCEEDED")))
        later = [await auditor.export(kept_run), await auditor.export(await finished(server)), await auditor.export()]
        with pytest.raises(Failure) as found:
            await auditor.export(lost_run)
        assert found.value.reason == "RUN_UNKNOWN"
    kept = auditor.file(note)
    for data in later:
        assert [auditor.verify(data, keys).verdict for keys in ([old], [new], [old, new])] == [
            *("INVALID", "SIGNED", "SIGNED")
        ]
        assert auditor.verify(data, [old, new], "--known-head", kept).verdict == "INVALID"  # it is of another log
    assert [auditor.verify(lost, keys).verdict for keys in ([old], [new])] == ["SIGNED", "INVALID"]
    assert "log.epoch" in {each["action"] for each in entries(files_of(later[2]))}
    await drop_database(admin, f"{name}_backup")


# Logs.


async def test_stretches_of_logs_verify(auditor: Auditor) -> None:
    """From the beginning, from any entry, and the last entry alone; of a project, and of the instance."""
    run_id = await finished(auditor.server)
    await head(auditor.server, "system")
    for project_id in ("p", "system"):
        size, _ = await head(auditor.server, project_id)
        for first in sorted({0, size // 2, max(0, size - 2), size - 1}):
            files = await auditor.signed("", project_id, first_index=first, size=size)
            assert (said(files)["firstIndex"], len(entries(files))) == (first, size - first)
    whole = await auditor.signed()
    assert any(each["resource"].startswith(f"projects/p/runs/{run_id}") for each in entries(whole))


async def test_a_log_verifies_with_the_verifications_of_copies(auditor: Auditor) -> None:
    """Each is a record of its entry, whether the copy matched or not."""
    await finished(auditor.server)  # registers the version
    for found in (ONE, TWO, ONE):
        await auditor.server.admin("VerifyDatasetVersion", verify_version(secrets.token_hex(8), found=found))
    files = await auditor.signed()
    documents = [
        json.loads(line)
        for name in sorted(files)
        if name.startswith("data/records/")
        for line in files[name].splitlines()
        if b'"schema":"animus.dataset_verification/v1"' in line
    ]
    assert [each["matched"] for each in documents[-3:]] == [True, False, True]
    assert [each["resource"] for each in entries(files) if each["action"] == "dataset_version.verify"][-3:] == [
        f"projects/p/datasets/data/versions/{ONE}"
    ] * 3


async def test_a_log_verifies_with_quality_and_its_lineage(auditor: Auditor) -> None:
    """Rules, profiles and verdicts of either kind are records of their entries, and so are the verdicts' edges."""
    await finished(auditor.server)  # registers the version
    made = await auditor.server.admin("RegisterQualityRule", quality_rule())
    measured = await auditor.server.admin("RegisterQualityProfile", quality_profile())
    await auditor.server.admin("EvaluateQuality", evaluate(made.record.digest, measured.record.digest))
    await auditor.server.admin("RecordForeignEvaluation", foreign("FAIL"))
    files = await auditor.signed()
    records = b"".join(content for name, content in files.items() if name.startswith("data/records/"))
    for kind, count in (("quality_rule", 1), ("quality_profile", 1), ("quality_evaluation", 2)):
        assert records.count(b'"schema":"animus.%s/v1"' % kind.encode()) == count
    assert records.count(b'"subject":"projects/p/qualityEvaluations/') == 3


async def test_a_log_and_a_run_verify_with_what_gives_and_takes_rights(auditor: Auditor) -> None:
    """Accounts, tokens, those of runs, bindings and the ends of all of them are records of their entries."""
    admin, run_id = auditor.server.admin, await finished(auditor.server)
    await auditor.server.account("p", "ci")
    maker = await auditor.server.caller("p", "operator")
    token = (await admin("CreateToken", new_token("p", "ci", "VIEWER"))).token_digest
    run_token = (await maker("CreateRunToken", new_run_token("p", run_id))).token_digest
    for digest in (token, run_token, token):  # the last changes nothing
        await admin("RevokeToken", revoke("p", digest))
    await admin("DisableServiceAccount", disable("p", "ci"))
    await admin("SetRoleBinding", bind("p", "oidc:corp:x", "VIEWER", "ADMIN"))
    await admin("SetRoleBinding", bind("p", "oidc:corp:x"))
    files = await auditor.signed()
    records = b"".join(content for name, content in files.items() if name.startswith("data/records/"))
    for kind, count in (("service_account_end", 1), ("run_token", 1), ("token_revocation", 2), ("role_binding", 2)):
        assert records.count(b'"schema":"animus.%s/v1"' % kind.encode()) == count
    of_run = {each["action"] for each in entries(await auditor.signed(run_id))}
    assert of_run >= {"run.create", "run_token.create", "token.revoke"}
    await auditor.signed("", "system")  # with the account of the first token


async def fill(server: Server, count: int) -> None:
    """Writes changes of the project `p` as the server does, many in one transaction."""
    keyring = server.running.log.keyring
    for first in range(0, count, 500):
        rows = []
        for number in range(first, min(first + 500, count)):
            record = document.dump(Dataset(f"d{number}", "", ()))
            named = (AuditRecord("dataset", document.digest(record)),)
            entry = AuditEntry(
                "p", secrets.token_hex(16), "admin", "dataset.create", f"projects/p/datasets/d{number}",
                "animus.v1.DatasetService/CreateDataset", f"dataset-{number}", ONE, TIME, AuditOutcome.ACCEPTED, "",
                named, (), ONE,
            )  # fmt: skip
            data = document.dump(entry)
            leaf = merkle.leaf_hash(data)
            rows.append((entry.entry_id, data, record, leaf, keyring.seal("p", entry.entry_id, leaf)))
        ids, entries_, records_, leaves, seals = map(list, zip(*rows, strict=True))
        values = {"ids": ids, "entries": entries_, "records": records_, "leaves": leaves, "seals": seals}
        async with server.running.engine.connect() as connection, connection.begin():
            await connection.execute(text("SELECT set_config('animus.project_id', 'p', true)"))
            await connection.execute(FILL, values)


FILL = text(
    "WITH entries AS (INSERT INTO animus.audit_entry (project_id, document)"
    " SELECT 'p', unnest(CAST(:entries AS bytea[])))"
    ", datasets AS (INSERT INTO animus.dataset (project_id, entry_id, document)"
    " SELECT 'p', * FROM unnest(CAST(:ids AS text[]), CAST(:records AS bytea[])))"
    " INSERT INTO animus.audit_queue (project_id, entry_id, leaf_hash, seal)"
    " SELECT 'p', * FROM unnest(CAST(:ids AS text[]), CAST(:leaves AS bytea[]), CAST(:seals AS bytea[]))"
)


async def test_a_log_of_more_entries_than_a_file_holds_verifies(
    postgres: EmbeddedPostgres, admin: AsyncEngine, template: str, tmp_path: Path
) -> None:
    """The entries and their records are in two files each; with a run in the second one, that is a bundle too."""
    async with served(postgres, admin, template, tmp_path) as server:
        await server.project("p")
        run_id = await created(server)
        await fill(server, 10_000)
        await server.published("p")
        await server.admin("PlanRun", plan_run(run_id, "plan"))
        auditor = Auditor(server, tmp_path)
        for files in (await auditor.signed(), await auditor.signed(run_id)):
            assert len(entries(files)) > 10_000
            first = said(files)["firstIndex"]
            assert [name for name in files if "/entries/" in name] == [
                f"data/entries/{index:020d}.ndjson" for index in (first, first + 10_000)
            ]
            if not first:
                assert [name[-12:] for name in files if "/records/" in name] == ["00000.ndjson", "10000.ndjson"]


# Faults in real bundles.


def planted(files: Files, others: Files, key: SigningKey, share: float) -> Iterator[tuple[str, Files]]:
    """Changed bundles: with their digests as they were, made anew, and made anew and signed by the right key."""
    rng = random.Random(11)
    yield from flips(files)
    yield from moves(files, others)
    for what, changed in flips(files):
        if what.startswith("data/"):
            yield f"{what}, signed by an outsider", bagged(changed, OUTSIDER)
    for what, changed in records(files):
        chosen = rng.random()
        if chosen < share / 2:
            yield f"{what}, with new manifests", bagged(changed, sign=False)
        if chosen < share or what.startswith(("data/summary", "data/evidence")):
            yield f"{what}, signed by the right key", bagged(changed, key)


@pytest.mark.parametrize("of_run", [True, False], ids=["run", "log"])
async def test_no_change_of_a_real_bundle_passes(of_run: bool, auditor: Auditor) -> None:
    """By anybody, and of what follows from the entries by the owner of the key either; unchanged it passes."""
    server = auditor.server
    runs = [await finished(server), await failed(server)]
    size, _ = await head(server)
    wanted = [{"run_id": run_id} if of_run else {"first_index": size - 12 + at} for at, run_id in enumerate(runs)]
    files, others = [files_of(await auditor.export(known_sizes=[2, 5], **each)) for each in wanted]
    keys, (key,) = await auditor.keys(), server.running.log.keyring.keys
    path = auditor.folder / "bundle.zip"
    missed, count = [], 0
    for what, changed in planted(files, others, key, 0.03 if of_run else 0.06):
        path.write_bytes(zipped(changed))
        count += 1
        if verify(path, keys).code in GOOD:
            missed.append(what)
    print(count, "changes")
    assert count > 100
    assert missed == []
    for whole in (files, bagged(files, key)):
        path.write_bytes(zipped(whole))
        assert verify(path, keys).verdict == "SIGNED"


# Others than the verifier, who read the same bundles.


async def test_public_libraries_take_what_a_real_bundle_says(auditor: Auditor) -> None:
    """in-toto, DSSE, SLSA, PROV and OpenLineage, each by the library or the schema of its project."""
    run_id = await finished(auditor.server)
    files = files_of(await auditor.export(run_id))
    keys = [public(key) for key in auditor.server.running.log.keyring.keys]
    stranger = public(SigningKey("stranger", bytes(32)))
    payloads = {}
    for name in (name for name in files if name.endswith(".dsse.json")):
        envelope = dsse.Envelope.from_dict(json.loads(files[name]))
        assert envelope.payload_type == "application/vnd.in-toto+json"
        assert envelope.verify(keys, len(keys)).keys() == {key.keyid for key in keys}
        with pytest.raises(VerificationError):
            envelope.verify([stranger], 1)
        payloads[name.rpartition("/")[2]] = envelope.payload
    assert payloads.keys() == {"admission.dsse.json", "evidence.dsse.json", "provenance.dsse.json"}
    tags = {each["name"]: each["digest"]["sha256"] for each in checked(payloads["evidence.dsse.json"])["subject"]}
    assert tags == {name: hashlib.sha256(files[name]).hexdigest() for name in TAG_FILES}
    result = predicate(payloads["admission.dsse.json"], test_result_pb2.TestResult())
    assert (result.result, len(result.passed_tests), len(result.failed_tests)) == ("PASSED", 3, 0)
    provenance = predicate(payloads["provenance.dsse.json"], provenance_pb2.Provenance())
    for each in (*provenance.build_definition.resolved_dependencies, *provenance.run_details.byproducts):
        check_resource(each)
    assert provenance.run_details.builder.id == "urn:animus:instance:animus.example"
    outputs = json.loads(files["data/summary.json"])["outputs"]
    subjects = {each["name"]: each["digest"]["sha256"] for each in checked(payloads["provenance.dsse.json"])["subject"]}
    assert subjects == {f"{each['step']}/{each['name']}": each["digest"][7:] for each in outputs}
    assert len(subjects) == 2


@pytest.mark.parametrize(
    ("story", "ends"),
    [
        (created, []),
        (canceling, []),
        (failed, ["COMPLETE", "FAIL", "FAIL"]),
        (cancelled_running, ["ABORT", "ABORT"]),
        (replayed, []),
        (eventful, [*["COMPLETE"] * 4, "FAIL", "FAIL"]),
        (finished, [*["COMPLETE"] * 4, "FAIL"]),
    ],
    ids=lambda each: getattr(each, "__name__", ""),
)
async def test_renderings_of_real_runs_are_valid(story: Story, ends: list[str], auditor: Auditor) -> None:
    """OpenLineage's schemas take each event, and the prov library reads every edge of the lineage and no other."""
    files = files_of(await auditor.export(await story(auditor.server)))
    told = [json.loads(line) for line in files["data/renderings/openlineage.ndjson"].splitlines()]
    for each in told:
        check_openlineage(each)
    assert sorted(each["eventType"] for each in told if each["eventType"] != "START") == ends
    base = "urn:animus:instance:animus.example/"
    found = edges(read(files["data/renderings/prov.json"]))
    lines = [json.loads(line) for line in files["data/records/lineage_edge.ndjson"].splitlines()]
    assert {(one.removeprefix(base), relation, other.removeprefix(base)) for one, relation, other in found} == {
        (each["subject"], each["relation"], each["object"]) for each in lines
    }


async def test_a_real_log_bundle_is_a_bag(auditor: Auditor, tmp_path: Path) -> None:
    """The Library of Congress's own library takes it; a file that was changed it does not take."""
    await running(auditor.server)
    folder = unzipped(await auditor.export(known_sizes=[1, 4]), tmp_path)
    bag = bagit.Bag(str(folder))
    bag.validate()
    assert bag.info["External-Identifier"] == "projects/p"
    assert verify(folder, await auditor.keys()).verdict == "SIGNED"
    frontier = folder / "data/log/consistency/4"
    frontier.write_bytes(frontier.read_bytes()[::-1])
    with pytest.raises(bagit.BagValidationError):
        bag.validate()
    assert verify(folder, await auditor.keys()).verdict == "INVALID"


async def test_the_gateway_streams_the_same_bytes(auditor: Auditor) -> None:
    """As a ZIP; from an offset the rest of it, under the same request."""
    server = auditor.server
    run_id = await finished(server)
    data = await auditor.export(run_id)
    body = {"requestId": "over-http", "runId": run_id, "size": str(said(files_of(data))["size"])}
    headers = {"Authorization": f"Bearer {server.admin.token}"}
    async with httpx.AsyncClient(base_url=server.running.http, headers=headers, trust_env=False) as client:
        for offset in (0, 1, len(data) // 2, len(data)):
            answer = await client.post("/v1/projects/p/evidence:export", json={**body, "offset": str(offset)})
            assert (answer.status_code, answer.headers["content-type"]) == (200, "application/zip")
            assert answer.content == data[offset:]
        answer = await client.post("/v1/projects/p/evidence:export", json={**body, "offset": str(len(data) + 1)})
        assert answer.status_code == 400
        refused = await client.post("/v1/projects/p/evidence:export", json=body, headers={"Authorization": "Bearer x"})
        assert refused.status_code == 401


async def test_auditors_and_admins_export(auditor: Auditor) -> None:
    """Nobody else: a runtime, an operator and a viewer are denied a run and the log."""
    server = auditor.server
    run_id = await created(server)
    answers = {}
    for role in ("viewer", "operator", "runtime", "auditor", "admin"):
        caller = await server.caller("p", role)
        for kind, wanted in (("run", run_id), ("log", "")):
            request = export(wanted, f"{role}-{kind}")
            try:
                data = await exported(caller, request)
            except Failure as failure:
                answers[role, kind] = failure.code
            else:
                answers[role, kind] = auditor.verify(data, await auditor.keys()).verdict
    good, bad = "SIGNED", "PERMISSION_DENIED"
    expected = {"viewer": bad, "operator": bad, "runtime": bad, "auditor": good, "admin": good}
    assert answers == {(role, kind): code for role, code in expected.items() for kind in ("run", "log")}
    await auditor.signed(run_id)  # the denials name the run
