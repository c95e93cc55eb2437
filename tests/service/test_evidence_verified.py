"""Bundles of the real server, verified by the file that an auditor has: runs in every state, stretches of logs."""

import asyncio
import base64
import contextlib
import hashlib
import io
import itertools
import json
import secrets
import zipfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import Message
from sqlalchemy.ext.asyncio import AsyncEngine

import animus_verify
from animus.domain.checkpoint import Checkpoint, dump_checkpoint
from animus.signing import SigningKey, sign_note
from animus.store.embedded import EmbeddedPostgres
from animus.v1 import evidence_pb2, log_pb2, run_pb2, runtime_pb2
from service.bundles import exported, finished_run, three_steps
from service.conftest import Failure, Server
from service.requests import (
    ONE,
    TWO,
    artifact,
    create_run,
    dataset,
    environment,
    event,
    pipeline,
    plan_run,
    prepare,
    register_pipeline,
    report,
    step,
    version,
)
from service.shared import Grown, served
from service.test_log import POLICY, WITNESSES, cosign
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
        report = self.verify(data, await self.keys(project_id), "--project", project_id, "--run", run_id)
        assert (report.verdict, report.code) == ("SIGNED", 11), report
        return files_of(data)


def verify(path: Path, keys: list[str], *options: object) -> Report:
    """The report on a bundle; a defect of the verifier is raised."""
    text = io.StringIO()
    trust = [part for key in keys for part in ("--trust", key)]
    with contextlib.redirect_stdout(text):
        code = animus_verify.main([str(path), *trust, "--json", "--debug", *map(str, options)])
    tree = json.loads(text.getvalue())
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
    finished: ("succeeded", True),
}


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.__name__)
async def test_a_run_verifies_in_each_state(story: Story, auditor: Auditor) -> None:
    """Its derived state is the one that the server answers with; provenance is there when there are outputs."""
    state, outputs = STORIES[story]
    run_id = await story(auditor.server)
    data = await auditor.export(run_id)
    found = auditor.verify(data, await auditor.keys(), "--run", run_id, "--project", "p")
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


async def test_a_replay_and_the_run_that_it_is_compared_with_verify(auditor: Auditor) -> None:
    """The comparison is part of the first run's evidence."""
    server = auditor.server
    first = await failed(server)
    replay = str((await server.admin("ReplayRun", replay_run(first, secrets.token_hex(8)))).run_id)
    found = await server.admin("CompareRuns", compare_runs(first, replay, secrets.token_hex(8)))
    assert found.verdict == run_pb2.COMPARISON_VERDICT_INCOMPARABLE
    assert "data/records/run_comparison.ndjson" in await auditor.signed(first)
    again = await auditor.signed(replay)
    assert json.loads(again["data/records/run.ndjson"])["replayOf"] == first
    assert "data/records/run_comparison.ndjson" not in again


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
    text = dump_checkpoint(Checkpoint(origin, size, hashlib.sha256(b"another").digest(), ()))
    return sign_note(text, server.running.log.keyring.keys, origin)


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
