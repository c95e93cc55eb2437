"""`animus evidence` against the real server, and on bundles that mean harm."""

import asyncio
import io
import json
import warnings
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from service.bundles import export, exported, finished_run
from service.conftest import Server
from service.shared import served
from sqlalchemy.ext.asyncio import AsyncEngine

from animus.sdk.evidence import download, unpack
from animus.sdk.files import Unreadable
from animus.store.embedded import EmbeddedPostgres
from animus.v1 import evidence_pb2, evidence_pb2_grpc, log_pb2
from cli.conftest import Command, command


@pytest.fixture(scope="module")
async def server(
    postgres: EmbeddedPostgres, admin: AsyncEngine, template: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Server]:
    """The server of these tests, with a project `p`."""
    async with served(postgres, admin, template, tmp_path_factory.mktemp("data")) as found:
        await found.project("p")
        yield found


@pytest.fixture(scope="module")
async def run_id(server: Server) -> str:
    """A run that succeeded."""
    return await finished_run(server)


@pytest.fixture
async def evidence(server: Server, tmp_path: Path) -> Command:
    """Runs `animus evidence` in a process of its own, as an auditor of the project."""
    return command(server, (await server.caller("p", "auditor")).token, tmp_path, "evidence")


@pytest.fixture
async def key(server: Server, tmp_path: Path) -> Path:
    """The log's key, in a file."""
    path = tmp_path / "auditor.vkeys"
    log = await server.admin("GetLog", log_pb2.GetLogRequest(project_id="p"))
    path.write_text("".join(f"{each.vkey}\n" for each in log.keys))
    return path


async def test_a_run_is_exported_shown_and_verified(evidence: Command, run_id: str, key: Path, tmp_path: Path) -> None:
    """As a file and as a folder; later with the head that was kept."""
    bundle = tmp_path / "run.zip"
    done = await evidence("export", "--run", run_id, "--output", bundle)
    assert (done.code, done.out) == (0, f"{bundle} {bundle.stat().st_size} bytes\n"), done
    shown = await evidence("show", bundle)
    assert shown.out.splitlines()[:2] == [
        "not verified: animus evidence verify checks it",
        f"run {run_id} of project p",
    ]
    assert "  step second: succeeded, attempt 1 failed, attempt 2 succeeded" in shown.out.splitlines()
    told = await evidence("show", bundle, "--json")
    assert (told.json["verified"], told.json["run"]["state"]) == (False, "succeeded")
    verified = await evidence("verify", bundle, "--trust", key, "--json")
    assert (verified.code, verified.json["verdict"]) == (11, "SIGNED"), verified

    kept = tmp_path / "kept.checkpoint"
    with zipfile.ZipFile(bundle) as archive:
        name = next(each for each in archive.namelist() if each.endswith("/data/log/checkpoint"))
        kept.write_bytes(archive.read(name))
    folder = tmp_path / "later"
    done = await evidence("export", "--run", run_id, "--output", folder, "--folder", "--known-head", kept)
    assert done.code == 0, done
    assert not list(tmp_path.glob("*.part*"))
    assert not (tmp_path / "later.zip").exists()
    verified = await evidence("verify", folder, "--trust", key, "--known-head", kept)
    assert verified.code == 10, verified
    assert f"run {run_id} of project p" in (await evidence("show", folder)).out


async def test_a_log_is_exported_and_verified(evidence: Command, run_id: str, key: Path, tmp_path: Path) -> None:
    """From an index on."""
    bundle = tmp_path / "log.zip"
    assert (await evidence("export", "--first", 3, "--output", bundle)).code == 0
    assert (await evidence("show", bundle)).out.splitlines()[1] == "log of project p"
    verified = await evidence("verify", bundle, "--trust", key, "--accept", "signed")
    assert verified.code == 0, verified


async def test_what_cannot_be_done_is_one_line(evidence: Command, run_id: str, tmp_path: Path) -> None:
    """With the exit code of its kind, and no file left behind."""
    there = tmp_path / "there"
    there.write_text("")
    assert (await evidence("export", "--output", there)).code == 2
    unknown = await evidence("export", "--run", "0" * 32, "--output", tmp_path / "none.zip")
    assert (unknown.code, len(unknown.err.splitlines())) == (3, 1), unknown
    assert not (tmp_path / "none.zip").exists()
    assert (await evidence("show", tmp_path / "missing.zip")).code == 1
    assert (await evidence("show", there)).err.count("\n") == 1


class Broken(evidence_pb2_grpc.EvidenceServiceServicer):
    """Stands in for a connection that breaks: hands on some bytes of a bundle, and ends the stream."""

    def __init__(self, bundle: bytes, length: int) -> None:
        self.bundle = bundle
        self.length = length
        self.asked: list[tuple[str, int]] = []

    def ExportEvidence(self, request: evidence_pb2.ExportEvidenceRequest, context: Any) -> Any:
        """A part from the offset on."""
        import grpc
        from google.api import httpbody_pb2

        self.asked.append((request.request_id, request.offset))
        part = self.bundle[request.offset : request.offset + self.length]
        yield httpbody_pb2.HttpBody(content_type="application/zip", data=part)
        if request.offset + self.length < len(self.bundle):
            context.abort(grpc.StatusCode.UNAVAILABLE, "broken off")


async def test_a_download_goes_on_where_it_broke_off(server: Server, run_id: str, tmp_path: Path) -> None:
    """Under the same request_id from the byte reached, within a call and across two; the file is the whole bundle."""
    from concurrent.futures import ThreadPoolExecutor

    import grpc

    bundle = await exported(server.admin, export(run_id, "broken"))
    servicer = Broken(bundle, len(bundle) // 3)
    remote = grpc.server(ThreadPoolExecutor(2))
    evidence_pb2_grpc.add_EvidenceServiceServicer_to_server(servicer, remote)
    port = remote.add_insecure_port("127.0.0.1:0")
    remote.start()
    target = tmp_path / "bundle.zip"
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        size = await asyncio.to_thread(download, channel, export(run_id, "first"), target, lambda step: None)
        assert (size, target.read_bytes()) == (len(bundle), bundle)
        offsets = [offset for _, offset in servicer.asked]
        assert offsets == [number * (len(bundle) // 3) for number in range(len(offsets))]
        assert len(offsets) >= 3
        servicer.asked.clear()
        # What a command that was killed leaves: a part, and the request that it was begun with.
        request = export(run_id, "killed")
        wanted = {"project": "p", "run": run_id, "first": 0, "size": 0, "known": []}
        target.with_name("bundle.zip.part").write_bytes(bundle[:10])
        target.with_name("bundle.zip.part.json").write_text(json.dumps({"id": "killed", "request": wanted}))
        await asyncio.to_thread(download, channel, export(run_id, "again"), target, lambda step: None)
        assert servicer.asked[0] == (request.request_id, 10)
        assert target.read_bytes() == bundle
        servicer.asked.clear()
        target.with_name("bundle.zip.part").write_bytes(b"of another request")
        target.with_name("bundle.zip.part.json").write_text(json.dumps({"id": "other", "request": {}}))
        await asyncio.to_thread(download, channel, export(run_id, "anew"), target, lambda step: None)
        assert servicer.asked[0] == ("anew", 0)
        assert target.read_bytes() == bundle
    remote.stop(None)


HARMFUL = {
    "absolute": "/etc/passwd",
    "above": "a/../../b",
    "above at once": "../b",
    "backslash": "a\\..\\b",
    "drive": "C:/b",
    "hidden": "a/.ssh",
    "no folder": "b",
    "a folder": "a/b/",
    "control character": "a/b\nc",
}


@pytest.mark.parametrize("name", HARMFUL.values(), ids=HARMFUL)
def test_a_member_that_no_bundle_has_is_not_unpacked(name: str, tmp_path: Path) -> None:
    """Nothing is written, inside or outside the folder."""
    bundle = tmp_path / "bundle.zip"
    with zipfile.ZipFile(bundle, "w") as archive:
        archive.writestr("a/first", b"x")
        archive.writestr(zipfile.ZipInfo(name), b"x")
    with pytest.raises(Unreadable, match="which no bundle has"):
        unpack(bundle, tmp_path / "folder")
    assert [path.name for path in tmp_path.rglob("*")] == ["bundle.zip"]


def test_links_compressed_and_repeated_members_are_not_unpacked(tmp_path: Path) -> None:
    """Each before anything is written."""
    link = zipfile.ZipInfo("a/link")
    link.external_attr = 0o120777 << 16
    packed = zipfile.ZipInfo("a/packed")
    packed.compress_type = zipfile.ZIP_DEFLATED
    bundle = tmp_path / "bundle.zip"
    for members in ([(link, b"/etc")], [(packed, b"0" * 1_000_000)], [("a/b", b"1"), ("a/b", b"2")]):
        data = io.BytesIO()
        with zipfile.ZipFile(data, "w") as archive, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the library warns of the second of a name
            for member, content in members:
                archive.writestr(member, content)
        bundle.write_bytes(data.getvalue())
        with pytest.raises(Unreadable):
            unpack(bundle, tmp_path / "folder")
        assert not (tmp_path / "folder").exists()
