"""Evidence bundles outside the server: downloads, unpacks and reads them. Verifying is left to animus_verify."""

import json
import re
import stat
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from animus.sdk.client import CallFailed
from animus.sdk.files import Unreadable, read_file, replace_file
from animus.v1 import evidence_pb2, evidence_pb2_grpc

TRIES = 5  # in a row without a byte
MEMBER = re.compile(r"[a-z0-9][a-z0-9-]*(?:/[A-Za-z0-9_][A-Za-z0-9._-]*)+")
MAX_SUMMARY_BYTES = 256 << 20
CHUNK_BYTES = 1 << 20
AGAIN = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED})


@dataclass(frozen=True, slots=True)
class Summary:
    """What a bundle says of itself, unverified: its two documents, the second only for a run."""

    evidence: dict[str, Any]
    run: dict[str, Any] | None


def download(
    channel: grpc.Channel,
    request: evidence_pb2.ExportEvidenceRequest,
    path: Path,
    progress: Callable[[int], None],
) -> int:
    """Writes a bundle to a file, and returns its size; goes on where an earlier call was cut short.

    Until it is whole it is `<path>.part`, beside `<path>.part.json`, which keeps the request. A `part` of another
    request is begun anew. Raises CallFailed, OSError.
    """
    part, kept = path.with_name(f"{path.name}.part"), path.with_name(f"{path.name}.part.json")
    request = _resumed(request, part, kept)
    service = evidence_pb2_grpc.EvidenceServiceStub(channel)
    tries = 0
    with part.open("ab") as file:
        progress(file.tell())
        while True:
            request.offset = file.tell()
            try:
                for body in service.ExportEvidence(request):
                    file.write(body.data)
                    progress(len(body.data))
                    tries = 0
                break
            except grpc.RpcError as error:
                tries += 1
                failed = CallFailed(error)
                if failed.code not in AGAIN or tries == TRIES:
                    raise failed from None
        size = file.tell()
    part.replace(path)
    kept.unlink()
    return size


def _resumed(request: evidence_pb2.ExportEvidenceRequest, part: Path, kept: Path) -> evidence_pb2.ExportEvidenceRequest:
    """The request that a part was begun with, if it is the same but for its id; else this one, from the start."""
    wanted = {
        "project": request.project_id,
        "run": request.run_id,
        "first": request.first_index,
        "size": request.size,
        "known": list(request.known_sizes),
    }
    if part.exists() and kept.exists():
        try:
            found = json.loads(read_file(kept, 64 << 10))
        except ValueError:
            found = {}
        if isinstance(found, dict) and found.get("request") == wanted and isinstance(found.get("id"), str):
            request.request_id = found["id"]
            return request
    replace_file(kept, json.dumps({"id": request.request_id, "request": wanted}).encode())
    part.unlink(missing_ok=True)
    return request


def unpack(bundle: Path, folder: Path) -> None:
    """Writes the files of a bundle to a folder that is new or empty. Raises Unreadable before anything is written.

    Names are of the few forms that a bundle has, so nothing is written outside the folder.
    """
    with _opened(bundle) as archive:
        members = archive.infolist()
        for member in members:
            _check(bundle, member)
        if len({member.filename for member in members}) != len(members):
            raise Unreadable(bundle, "has two members of one name")
        if folder.exists() and any(folder.iterdir()):
            raise FileExistsError(f"{folder} is not empty: name a new folder")
        for member in members:
            target = folder / member.filename
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(member) as source, target.open("xb") as file:
                while chunk := source.read(CHUNK_BYTES):
                    file.write(chunk)


def summarize(bundle: Path) -> Summary:
    """What a bundle, a ZIP or a folder, says of itself. Raises Unreadable."""
    evidence = _document(bundle, "data/evidence.json")
    return Summary(evidence, _document(bundle, "data/summary.json") if evidence.get("runId") else None)


def _document(bundle: Path, path: str) -> dict[str, Any]:
    try:
        tree = json.loads(_content(bundle, path))
    except (ValueError, RecursionError):
        raise Unreadable(bundle, f"{path} is no JSON") from None
    if not isinstance(tree, dict):
        raise Unreadable(bundle, f"{path} is no JSON object")
    return tree


def _content(bundle: Path, path: str) -> bytes:
    if bundle.is_dir():
        inner = [each for each in bundle.iterdir() if (each / "bagit.txt").is_file()]
        folder = bundle if (bundle / "bagit.txt").is_file() or not inner else inner[0]
        return read_file(folder / path, MAX_SUMMARY_BYTES)
    with _opened(bundle) as archive:
        for member in archive.infolist():
            if member.filename.partition("/")[2] == path:
                _check(bundle, member)
                if member.file_size > MAX_SUMMARY_BYTES:
                    raise Unreadable(bundle, f"{path} is too long")
                return archive.read(member)
    raise Unreadable(bundle, f"has no {path}", missing=True)


@contextmanager
def _opened(bundle: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with bundle.open("rb") as file, zipfile.ZipFile(file) as archive:
            yield archive
    except (zipfile.BadZipFile, RuntimeError, EOFError, UnicodeDecodeError) as error:  # as the library says them
        raise Unreadable(bundle, f"is no ZIP that can be read: {error}") from None


def _check(bundle: Path, member: zipfile.ZipInfo) -> None:
    name = member.filename
    if not MEMBER.fullmatch(name):
        raise Unreadable(bundle, f"has a member {name!r}, which no bundle has")
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind not in (0, stat.S_IFREG) or member.flag_bits & 1 or member.compress_type != zipfile.ZIP_STORED:
        raise Unreadable(bundle, f"has a member {name!r} that is no plain, stored file")
