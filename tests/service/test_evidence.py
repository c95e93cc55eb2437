"""Export of evidence over gRPC: what a bundle has, that it is the same each time, and what a damaged store gives."""

import base64
import hashlib
import io
import json
import subprocess
import zipfile
from pathlib import Path

import bagit  # type: ignore[import-untyped]
import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

from animus.v1 import audit_pb2, evidence_pb2, log_pb2, project_pb2
from service.bundles import export, exported, finished_run, unzipped
from service.conftest import Failure, Server
from service.requests import TWO, dataset
from service.shared import held

RUN_FILES = {
    "data/attestations/admission.dsse.json",
    "data/attestations/provenance.dsse.json",
    "data/evidence.json",
    "data/log/checkpoint",
    "data/log/frontier",
    "data/renderings/openlineage.ndjson",
    "data/renderings/prov.json",
    "data/summary.json",
    "bag-info.txt",
    "bagit.txt",
    "evidence.dsse.json",
    "manifest-sha256.txt",
    "tagmanifest-sha256.txt",
}


async def entries_of(server: Server) -> list[audit_pb2.AuditEntry]:
    """The audit entries of the project `p`."""
    request = audit_pb2.ListAuditEntriesRequest(project_id="p", page_size=1_000)
    return list((await server.admin("ListAuditEntries", request)).audit_entries)


async def test_a_run_bundle_has_every_file_and_every_entry_since_the_run_began(server: Server, tmp_path: Path) -> None:
    """Sorted, stored, with manifests that coreutils and a BagIt library accept, and the bytes that were hashed."""
    run_id = await finished_run(server)
    data = await exported(server.admin, export(run_id))
    members = zipfile.ZipFile(io.BytesIO(data)).infolist()
    names = [member.filename for member in members]
    assert names == sorted(names)
    assert {member.compress_type for member in members} == {zipfile.ZIP_STORED}
    assert {member.date_time for member in members} == {(1980, 1, 1, 0, 0, 0)}
    folder = unzipped(data, tmp_path)
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert files.keys() >= RUN_FILES
    for manifest in ("manifest-sha256.txt", "tagmanifest-sha256.txt"):
        subprocess.run(["sha256sum", "--quiet", "--strict", "-c", manifest], cwd=folder, check=True)
    bagit.Bag(str(folder)).validate()

    evidence = json.loads(files["data/evidence.json"])
    assert folder.name == f"animus-p-run-{run_id}-{evidence['size']}"
    lines = [line for name in sorted(files) if "data/entries/" in name for line in files[name].splitlines()]
    logged = await entries_of(server)
    since = [each for each in logged if each.HasField("index") and each.index >= evidence["firstIndex"]]
    assert lines == [each.document for each in since[: evidence["size"] - evidence["firstIndex"]]]
    assert json.loads(lines[0])["action"] == "run.create"
    for name, content in files.items():
        if name.startswith("data/bound/"):
            assert hashlib.sha256(content).hexdigest() == name[-69:-5]
    kinds = {name[len("data/bound/") : -70] for name in files if name.startswith("data/bound/")}
    assert kinds == {"dataset_version", "environment_lock", "execution_plan", "pipeline_spec", "run_spec"}
    summary = json.loads(files["data/summary.json"])
    assert (summary["state"], [step["state"] for step in summary["steps"]]) == ("succeeded", ["succeeded"] * 3)
    statement = json.loads(base64.b64decode(json.loads(files["data/attestations/provenance.dsse.json"])["payload"]))
    assert {each["name"] for each in statement["subject"]} == {"first/table", "second/model"}


async def test_a_log_bundle_has_all_entries_and_their_records(server: Server, tmp_path: Path) -> None:
    """From any index; each record is the next that the entries name."""
    await finished_run(server)
    await exported(server.admin, export(request_id="all"))
    for first in (0, 1, 7):
        folder = unzipped(await exported(server.admin, export(request_id=f"from-{first}", first_index=first)), tmp_path)
        (entries,) = folder.glob("data/entries/*")
        assert entries.name == f"{first:020d}.ndjson"
        named = [
            record["digest"] for line in entries.read_bytes().splitlines() for record in json.loads(line)["records"]
        ]
        records = folder / "data" / "records" / entries.name
        assert [f"sha256:{hashlib.sha256(line).hexdigest()}" for line in records.read_bytes().splitlines()] == named


async def test_the_same_export_has_the_same_bytes_and_goes_on_from_any_byte(server: Server) -> None:
    """Under the same request_id for ever; under another at the same size; from each of some offsets."""
    run_id = await finished_run(server)
    first = await exported(server.admin, export(run_id, "one"))
    assert "animus-replayed" not in server.admin.metadata
    assert server.admin.metadata["animus-audit-receipt-bin"]
    await server.admin("CreateDataset", dataset("p", "later"))
    assert await exported(server.admin, export(run_id, "one")) == first
    assert server.admin.metadata["animus-replayed"] == "true"
    assert await exported(server.admin, export(run_id, "two", size=_size(first))) == first
    newest = await exported(server.admin, export(run_id, "three"))
    assert newest != first
    for offset in (0, 1, 100, len(first) // 2, len(first) - 1, len(first)):
        assert await exported(server.admin, export(run_id, "one", offset=offset)) == first[offset:]
    with pytest.raises(Failure) as found:
        await exported(server.admin, export(run_id, "one", offset=len(first) + 1))
    assert list(found.value.fields) == ["offset"]


async def test_exports_are_audited_and_say_what_they_cover(server: Server) -> None:
    """One entry each, with a record for what was not exported before; a retry writes none; a check writes none."""
    run_id = await finished_run(server)
    size = _size(await exported(server.admin, export(run_id, "one")))
    await exported(server.admin, export(run_id, "one"))
    await exported(server.admin, export(run_id, "two", size=size))
    assert await server.admin.stream("ExportEvidence", export(run_id, "three", validate_only=True)) == []
    entries = [each for each in await entries_of(server) if each.action == "evidence.export"]
    assert [(each.resource, [record.kind for record in each.records]) for each in entries] == [
        (f"projects/p/runs/{run_id}", ["evidence"]),
        (f"projects/p/runs/{run_id}", []),
    ]
    assert entries[0].principal == "admin"


async def test_consistency_with_known_heads_is_part_of_a_bundle(server: Server, tmp_path: Path) -> None:
    """For each known size below the bundle's; larger ones are left out."""
    run_id = await finished_run(server)
    request = export(run_id, known_sizes=[5, 3, 5, 10**9])
    folder = unzipped(await exported(server.admin, request), tmp_path)
    assert json.loads((folder / "data/evidence.json").read_bytes())["knownSizes"] == [3, 5]
    assert sorted(path.name for path in (folder / "data/log/consistency").iterdir()) == ["3", "5"]


@pytest.mark.parametrize(
    ("more", "reason", "field"),
    [
        ({"run_id": "x"}, "FIELD_INVALID", "runId"),
        ({"run_id": "0" * 32}, "RUN_UNKNOWN", ""),
        ({"run_id": "0" * 32, "first_index": 1}, "FIELD_INVALID", "firstIndex"),
        ({"first_index": -1}, "FIELD_INVALID", "firstIndex"),
        ({"first_index": 10**6}, "FIELD_INVALID", "size"),
        ({"size": -1}, "FIELD_INVALID", "size"),
        ({"size": 10**6}, "CHECKPOINT_UNKNOWN", ""),
        ({"known_sizes": [0]}, "FIELD_INVALID", "knownSizes[0]"),
        ({"known_sizes": list(range(1, 18))}, "FIELD_INVALID", "knownSizes"),
        ({"offset": -1}, "FIELD_INVALID", "offset"),
    ],
)
async def test_what_cannot_be_exported_is_refused_by_its_field(
    more: dict[str, object], reason: str, field: str, server: Server
) -> None:
    """Before anything is written."""
    before = len(await entries_of(server))
    with pytest.raises(Failure) as found:
        await exported(server.admin, export(**{"run_id": "", **more}))  # type: ignore[arg-type]
    assert found.value.reason == reason
    assert list(found.value.fields) == ([field] if field else [])
    assert len(await entries_of(server)) == before


async def test_a_size_that_does_not_cover_the_run_is_refused(server: Server) -> None:
    """The checkpoint exists, and the run began after it."""
    await server.published("p")
    small = (await server.admin("GetLog", log_pb2.GetLogRequest(project_id="p"))).published_size
    run_id = await finished_run(server)
    with pytest.raises(Failure) as found:
        await exported(server.admin, export(run_id, size=small))
    assert list(found.value.fields) == ["size"]


DAMAGE = {
    "an entry": "UPDATE animus.audit_entry SET document = convert_to(replace(convert_from(document, 'UTF8'),"
    " '\"principal\":\"admin\"', '\"principal\":\"other\"'), 'UTF8') WHERE resource LIKE '%/runs/%'",
    "the resource of an entry": "UPDATE animus.audit_entry SET document = convert_to(replace(convert_from(document,"
    " 'UTF8'), '/runs/', '/walks/'), 'UTF8') WHERE resource LIKE '%/runs/%'",
    "an entry that is gone": "DELETE FROM animus.audit_entry WHERE resource LIKE '%/plan'",
    "an event": "UPDATE animus.run_event SET document = convert_to(replace(convert_from(document, 'UTF8'),"
    " 'the node was lost', 'the code is bad'), 'UTF8')",
    "a metric that is gone": "DELETE FROM animus.metric WHERE index = 1",
    "a plan": "UPDATE animus.execution_plan SET document = convert_to(replace(convert_from(document, 'UTF8'),"
    " '\"level\":1', '\"level\":2'), 'UTF8')",
    "a dataset version": "UPDATE animus.dataset_version SET document = convert_to(replace(convert_from(document,"
    " 'UTF8'), 'text/csv', 'text/xml'), 'UTF8')",
    "a leaf": "UPDATE animus.log_leaf SET leaf_hash = sha256('x') WHERE index = 8 AND project_id = 'p'",
    "a leaf that is gone": "DELETE FROM animus.log_leaf WHERE index = 8 AND project_id = 'p'",
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
async def test_what_was_altered_is_not_handed_out(damage: str, server: Server, superuser: AsyncConnection) -> None:
    """The stream ends with an error that says what is damaged: no whole bundle of it is made."""
    run_id = await finished_run(server)
    whole = await exported(server.admin, export(run_id))
    await server.published("p")
    await superuser.exec_driver_sql("SET session_replication_role = replica")
    for table in ("audit_entry", "run_event", "metric", "execution_plan", "dataset_version", "log_leaf"):
        await superuser.exec_driver_sql(f"ALTER TABLE animus.{table} DISABLE TRIGGER ALL")
    assert (await superuser.exec_driver_sql(damage)).rowcount
    with pytest.raises(Failure) as found:
        await exported(server.admin, export(run_id))
    assert (found.value.code, found.value.reason) == ("DATA_LOSS", "LOG_DAMAGED")
    assert whole


async def test_an_entry_in_quarantine_is_waited_for_by_no_export(
    server: Server, superuser: AsyncConnection, tmp_path: Path
) -> None:
    """It was altered before it had an index, and has none: the bundle has all others."""
    async with held(server):
        await server.admin("CreateDataset", dataset("p", "altered"))
        await superuser.exec_driver_sql("ALTER TABLE animus.audit_entry DISABLE TRIGGER ALL")
        altered = await superuser.exec_driver_sql(
            "UPDATE animus.audit_entry SET document = convert_to(replace(convert_from(document, 'UTF8'),"
            " '/altered', '/another'), 'UTF8') WHERE resource LIKE '%%/altered'"
        )
        assert altered.rowcount == 1
        await server.admin("CreateDataset", dataset("p", "sound"))
    folder = unzipped(await exported(server.admin, export()), tmp_path)
    (entries,) = folder.glob("data/entries/*")
    named = [json.loads(line)["resource"] for line in entries.read_bytes().splitlines()]
    assert "projects/p/datasets/sound" in named
    assert not any("altered" in each or "another" in each for each in named)
    log = await server.admin("GetLog", log_pb2.GetLogRequest(project_id="p"))
    assert any("quarantined" in problem for problem in log.problems)


async def test_a_bundle_is_of_its_own_project(server: Server) -> None:
    """Another project's run is as unknown as none, and its entries are nowhere."""
    run_id = await finished_run(server)
    other = project_pb2.Project(project_id="q", display_name="", description="")
    await server.admin("CreateProject", project_pb2.CreateProjectRequest(project_id="q", request_id="q", project=other))
    answers = []
    for wanted in (run_id, "0" * 32):
        request = evidence_pb2.ExportEvidenceRequest(project_id="q", request_id="x", run_id=wanted)
        with pytest.raises(Failure) as found:
            await exported(server.admin, request)
        answers.append((found.value.code, found.value.reason, found.value.message.replace(wanted, "")))
    assert answers[0] == answers[1]
    data = await exported(server.admin, evidence_pb2.ExportEvidenceRequest(project_id="q", request_id="log"))
    assert b"projects/p" not in data
    assert TWO.encode() not in data


def _size(data: bytes) -> int:
    """The size of the checkpoint of a bundle."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        name = next(name for name in archive.namelist() if name.endswith("/data/evidence.json"))
        return int(json.loads(archive.read(name))["size"])
