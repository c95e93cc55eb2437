"""Secrets planted in every field, in metadata and in defects of a real server, and looked for everywhere after."""

import asyncio
import base64
import http.server
import io
import itertools
import json
import secrets
import signal
import threading
import urllib.error
import urllib.request
import zipfile
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from conftest import create_database, drop_database
from contract import METHODS
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from test_server import Process

from animus.domain.document import join, json_name
from animus.store.embedded import EmbeddedPostgres
from animus.v1 import audit_pb2, evidence_pb2, project_pb2
from service.bundles import exported
from service.conftest import Caller, Failure
from service.requests import create_run, pipeline, prepare, step

# A word of letters only, which every planted credential holds, and one that no rule could know for a secret.
WORD = "PlantedWithin"
CANARY = "CanaryWithoutShape"
REFERENCE = "vault:team/password"


def encoded(tree: object) -> str:
    """A part of a JSON Web Token."""
    return base64.urlsafe_b64encode(json.dumps(tree).replace(" ", "").encode()).rstrip(b"=").decode()


SHAPED = {
    "Animus token": f"animus_p_{WORD:A<43}",
    "JSON Web Token": f"{encoded({'alg': 'RS256'})}.{encoded({'sub': 'x'})}.{WORD}",
    "private key": f"-----BEGIN PRIVATE KEY-----\n{WORD}\n-----END PRIVATE KEY-----",
    "private key of a log": f"PRIVATE+KEY+a.example+01234567+{WORD:A<44}",
    "URL with a password": f"postgresql://role:{WORD}@db.example/x",
    "GitHub token": f"ghp_{WORD:A<36}",
    "GitLab token": f"glpat-{WORD:A<20}",
    "Slack token": f"xoxb-1234567890-1234567890-{WORD:A<24}",
    "Hugging Face token": f"hf_{WORD:A<34}",
    "AWS secret key": f"AKIA{'Q' * 16} {WORD:z<40}",
}

# The server as it is, but for a method that fails with a text that holds all of these and the database's URL.
PROGRAM = """
import os, sys
from animus.cli import main
from animus.service.project import ProjectService
from animus.store.unit_of_work import UnitOfWork

async def fail(self, request, caller):
    raise RuntimeError(os.environ["ANIMUS_PLANTED"] + os.environ["ANIMUS_DATABASE_URL"])

ProjectService.GetProject = fail
sys.argv = ["animus", "serve"]
main()
"""


def forms(word: str) -> list[bytes]:
    """A word as it is, in hexadecimal, and in base64 from each of the three places that it may begin at."""
    data = word.encode()
    found = [data, data.hex().encode()]
    for before in range(3):
        cut = base64.b64encode(b"\0" * before + data)[4 if before else 0 :]
        found.append(cut[: len(cut) // 4 * 4 - 4])
    return found


def holds(data: bytes, word: str) -> bool:
    """Whether a word is in there, in any of its forms."""
    return any(form in data for form in forms(word))


Path_ = tuple[FieldDescriptor, ...]


def fields_of(descriptor: Descriptor, path: Path_ = ()) -> Iterator[Path_]:
    """The path of every text and bytes field of a message, and of those inside it."""
    for each in descriptor.fields:
        if each.type in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES):
            yield (*path, each)
        elif each.message_type is not None and each.message_type not in [above.message_type for above in path]:
            yield from fields_of(each.message_type, (*path, each))


def planted_request(name: str, paths: Iterable[Path_], value: str) -> Message:
    """A request of some fields with one value, beside its project and id."""
    request: Any = GetMessageClass(METHODS[name].input_type)()
    for common, said in (("project_id", "p"), ("request_id", secrets.token_hex(8))):
        if common in METHODS[name].input_type.fields_by_name:
            setattr(request, common, said)
    for path in paths:
        message = request
        for each in path[:-1]:
            inner = getattr(message, each.name)
            message = inner if not each.is_repeated else inner[0] if inner else inner.add()
        last = path[-1]
        kept = value.encode() if last.type == FieldDescriptor.TYPE_BYTES else value
        if last.is_repeated:
            getattr(message, last.name).append(kept)
        else:
            setattr(message, last.name, kept)
    return request  # type: ignore[no-any-return]


def spelled(path: Path_) -> str:
    """A path in JSON spelling."""
    name = ""
    for each in path:
        name = join(name, json_name(each.name)) + ("[0]" if each.is_repeated else "")
    return name


@dataclass(slots=True)
class Found:
    """What a server left behind, by place, and what it answered."""

    process: Process
    places: dict[str, bytes] = field(default_factory=dict)
    refused: list[tuple[str, str, str, dict[str, str], str]] = field(default_factory=list)
    replies: list[bytes] = field(default_factory=list)
    own: dict[str, str] = field(default_factory=dict)  # the secrets of the instance
    defect: Failure | None = None


@contextmanager
def collector() -> Iterator[tuple[str, list[bytes]]]:
    """An OTLP endpoint, and what it has received."""
    received: list[bytes] = []

    class Collector(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            """Says nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", received
    server.shutdown()
    server.server_close()
    thread.join()


async def attempted(found: Found, caller: Caller, name: str, request: Message) -> Failure | None:
    """Makes a call and keeps what was answered; a stream is left at its first message."""
    try:
        reply = await caller.stream(name, request, 1) if METHODS[name].server_streaming else await caller(name, request)
        found.replies += [each.SerializeToString() for each in (reply if isinstance(reply, list) else [reply])]
    except Failure as failure:
        found.replies += [failure.raw, failure.message.encode()]
        return failure
    return None


async def plant_in_fields(found: Found, caller: Caller) -> None:
    """A credential in each field of each method, one shape after the other; then a word without one in all of them."""
    shapes = itertools.cycle(SHAPED.values())

    async def plant(name: str, path: Path_, shaped: str) -> None:
        failure = await attempted(found, caller, name, planted_request(name, [path], shaped))
        reason, code, fields = (failure.reason, failure.code, failure.fields) if failure else ("", "OK", {})
        found.refused.append((name, reason, code, fields, spelled(path)))

    for name, method in METHODS.items():
        paths = list(fields_of(method.input_type))
        await asyncio.gather(*(plant(name, path, next(shapes)) for path in paths))
        unnamed = [path for path in paths if path[0].name not in ("project_id", "request_id")]  # which logs name
        await attempted(found, caller, name, planted_request(name, unnamed, CANARY))


async def plant_beside_fields(found: Found, state: dict[str, Any], token: str) -> None:
    """Credentials in metadata, well-formed or not, over gRPC and HTTP, in queries and in bodies that are no JSON."""
    list_projects = "/animus.v1.ProjectService/ListProjects"
    for shaped in SHAPED.values():
        plain = shaped.replace("\n", " ")
        options = [("grpc.primary_user_agent", plain)]
        async with grpc.aio.insecure_channel(state["grpc"], options=options) as channel:
            call: Any = channel.unary_unary(list_projects)
            for authorization in (plain, f"Bearer {plain}", f"Basic {plain}", f"Bearer {token}"):
                sent = (
                    ("authorization", authorization),
                    ("x-custom", plain),
                    ("x-custom-bin", plain.encode()),
                    ("traceparent", plain),
                    ("tracestate", f"a={plain}"),
                )
                try:
                    found.replies.append(await call(b"", metadata=sent))
                except grpc.aio.AioRpcError as error:
                    found.replies += [(error.details() or "").encode(), str(error.trailing_metadata()).encode()]
        headers = {"authorization": f"Bearer {token}", "content-type": "application/json", "cookie": plain}
        quoted = urllib.request.quote(shaped, safe="")  # type: ignore[attr-defined]
        body = json.dumps({"requestId": "r", "project": {"projectId": "q", "displayName": shaped}}).encode()
        for path, data in (
            (f"/v1/projects?filter={quoted}", None),
            (f"/v1/projects?token={quoted}", None),
            (f"/v1/projects/{quoted}", None),
            (f"/{quoted}", None),
            ("/v1/projects", body),
            ("/v1/projects", body[:-3]),
        ):
            request = urllib.request.Request(state["http"] + path, data, {**headers, "x-custom": plain})
            try:
                with await asyncio.to_thread(urllib.request.urlopen, request, timeout=10) as answer:
                    found.replies.append(answer.read())
            except urllib.error.HTTPError as error:
                found.replies.append(error.read())


async def records(caller: Caller) -> bytes:
    """A run whose step names a secret, and the bundle of its project."""
    variable = {"name": "PASSWORD", "value": "", "secretRef": REFERENCE}
    tree: Any = pipeline(
        {**step("only", inputs={"datasets": [{"name": "d", "datasetRef": "data"}]}), "env": [variable]}
    )
    spec = await prepare(caller, tree=tree)
    await caller("CreateRun", create_run(spec))
    whole = await exported(caller, evidence_pb2.ExportEvidenceRequest(project_id="p", request_id="export"))
    with zipfile.ZipFile(io.BytesIO(whole)) as files:
        return b"\n".join(files.read(name) for name in files.namelist())


async def rows(admin_url: str) -> bytes:
    """Every row of every table, as text."""
    engine = create_async_engine(admin_url)
    lines: list[str] = []
    async with engine.connect() as connection:
        tables = "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables WHERE schemaname = 'animus'"
        for table in list(await connection.scalars(text(tables))):
            lines += await connection.scalars(text(f"SELECT r::text FROM {table} AS r"))
    await engine.dispose()
    return "\n".join(lines).encode()


async def entries(caller: Caller) -> bytes:
    """Every audit entry."""
    lists = [
        await caller("ListAuditEntries", audit_pb2.ListAuditEntriesRequest(project_id=project, page_size=1000))
        for project in ("p", "system")
    ]
    assert not any(each.next_page_token for each in lists)
    return b"".join(each.SerializeToString() for each in lists)


@pytest.fixture(scope="module")
async def found(
    postgres: EmbeddedPostgres, admin: AsyncEngine, template: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Found]:
    """A server that all of this was done to, and what it left behind."""
    name = f"secrets_{secrets.token_hex(4)}"
    await create_database(admin, name, template)
    service, root = (
        make_url(url).set(database=name).render_as_string(hide_password=False)
        for url in (postgres.service_url, postgres.admin_url)
    )
    data_dir = tmp_path_factory.mktemp("secrets") / "data"
    planted = "\n".join(SHAPED.values())
    with collector() as (endpoint, spans):
        process = Process(data_dir, PROGRAM, database_url=service, otlp_endpoint=endpoint, planted=planted)
        found = Found(process)
        state = process.wait_until_up()
        async with grpc.aio.insecure_channel(state["grpc"]) as channel:
            caller = process.admin(channel)
            found.own = {
                "token": caller.token,
                "password": make_url(service).password or "",
                "page key": (data_dir / "page-token.key").read_text().strip(),
                "log key": (data_dir / "log" / "log.key").read_text().strip(),
            }
            project = project_pb2.Project(project_id="p", display_name="", description=CANARY)
            request = project_pb2.CreateProjectRequest(project_id="p", request_id="p", project=project)
            await caller("CreateProject", request)
            found.places["bundle"] = await records(caller)
            await plant_in_fields(found, caller)
            await plant_beside_fields(found, state, caller.token)
            found.defect = await attempted(found, caller, "GetProject", project_pb2.GetProjectRequest(project_id="p"))
            found.places["entries"] = await entries(caller)
        with urllib.request.urlopen(state["metrics"], timeout=10) as answer:
            found.places["metrics"] = answer.read()
        found.places["titles"] = Path(f"/proc/{process.process.pid}/cmdline").read_bytes()
        assert await asyncio.to_thread(process.end, signal.SIGTERM) == 0
        found.places["traces"] = b"".join(spans)
    found.places["log"] = process.log.read_bytes()
    found.places["rows"] = await rows(root)
    found.places["replies"] = b"\n".join(found.replies)
    found.places["state"] = (data_dir / "log" / "signer.db").read_bytes()
    yield found
    await drop_database(admin, name)


def test_every_field_of_every_request_refuses_a_credential(found: Found) -> None:
    """INVALID_ARGUMENT, the reason, and the field's path."""
    assert {name for name, *_ in found.refused} == {name for name in METHODS if METHODS[name].input_type.fields}
    for name, reason, code, fields, path in found.refused:
        assert (code, reason, list(fields)) == ("INVALID_ARGUMENT", "SECRET_IN_REQUEST", [path]), name
        assert "holds what looks like" in fields[path]
    assert len(found.refused) > 400


@pytest.mark.parametrize(
    "place", ["log", "traces", "metrics", "entries", "rows", "bundle", "replies", "titles", "state"]
)
def test_no_planted_credential_is_anywhere(found: Found, place: str) -> None:
    """As it was planted, in hexadecimal and in base64."""
    assert found.places[place]
    assert not holds(found.places[place], WORD)


@pytest.mark.parametrize("place", ["log", "traces", "metrics", "entries", "rows", "bundle", "replies", "titles"])
def test_no_secret_of_the_instance_is_anywhere(found: Found, place: str) -> None:
    """The token that called, the database's password, the keys of pages and of the log."""
    assert set(found.own) == {"token", "password", "page key", "log key"}
    for name, secret in found.own.items():
        assert len(secret) > 10
        assert not holds(found.places[place], secret), name


@pytest.mark.parametrize("place", ["log", "traces", "metrics", "titles"])
def test_no_text_of_a_request_is_in_what_is_watched(found: Found, place: str) -> None:
    """A word that nothing could know for a secret is not there either."""
    assert not holds(found.places[place], CANARY)


@pytest.mark.parametrize("place", ["rows", "bundle"])
def test_what_is_not_known_for_a_secret_is_kept_and_found(found: Found, place: str) -> None:
    """So the search sees what is there: a description and a reference to a secret are stored as they are given."""
    assert holds(found.places[place], CANARY)
    assert holds(found.places[place], REFERENCE)


def test_a_defect_is_answered_with_a_fixed_text_and_logged_without_its_secrets(found: Found) -> None:
    """The reply says where to look; the log has the exception, and the credentials in its text are taken out."""
    assert found.defect is not None
    assert (found.defect.code, found.defect.reason) == ("INTERNAL", "INTERNAL")
    assert found.defect.message == "a defect of the control plane; its log has the cause under this trace_id"
    failed = [each for each in found.process.lines() if each["event"] == "call failed"]
    assert {each["method"] for each in failed} == {"animus.v1.ProjectService/GetProject"}
    (line,) = [each for each in failed if each["trace_id"] == found.defect.metadata["trace_id"]]
    assert "RuntimeError: [redacted]" in line["exception"]
    assert line["exception"].count("[redacted]") >= len(SHAPED)


def test_a_line_of_a_call_has_the_fields_that_it_may_have(found: Found) -> None:
    """No other field, and of those that callers choose, none that is not well-formed."""
    allowed = {"method", "code", "reason", "seconds", "trace_id", "request_id", "project", "principal"}
    of_every = {"event", "level", "logger", "timestamp"}
    lines = [each for each in found.process.lines() if each["event"] == "call"]
    assert len(lines) > 500
    assert {frozenset(line) for line in lines} == {frozenset(allowed | of_every)}
    assert {line["project"] for line in lines} <= {"", "p", "system"}


@pytest.mark.parametrize("word", [WORD, CANARY, "animus.example/x"])
def test_a_word_is_found_in_each_of_its_forms(word: str) -> None:
    """Wherever it begins in what is encoded, and not where it is not."""
    for before in range(6):
        data = b"-" * before + word.encode() + b"-" * 4
        for form in (data, data.hex().encode(), base64.b64encode(data)):
            assert holds(form, word)
            assert not holds(form, word[::-1])
