"""What exists in another project answers as what exists nowhere: every field that names something, of every method."""

import re
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from animus_gateway.main import open_channel, serve_gateway
from contract import METHODS
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from sqlalchemy.ext.asyncio import AsyncEngine

from animus.store.embedded import EmbeddedPostgres
from service.conftest import Caller, Server
from service.shared import served
from service.worlds import MUTATES, Told, World, made, nowhere, requests, tell, trees

# Texts that name nothing of a project: what they say is kept, compared with a pattern, or a matter of test_input.py.
# A field that is added is either in a request of worlds.py, where its name differs between projects, or here.
NAMES_NOTHING = {
    "project_id",  # in test_role_matrix.py
    "request_id",  # below
    "page_token",  # below
    "order_by",
    "description",
    "display_name",
    "principal",
    "action",
    "evaluator",
    "evaluator_version",
    "media_type",
    "source",
    "licence",
    "location",
    "uri",
    "uris",
    "path",
    "key",
    "value",
    "secret_ref",
    "name",
    "type",
    "column",
    "values",
    "edges",
    "minimum",
    "maximum",
    "pattern",
    "probability",
    "metric",
    "argument",
    "profiler",
    "observed",
    "reason",
    "check",
    "rule_name",
    "message",
    "step",
    "kind",
    "api_version",
    "dataset_ref",
    "repository",
    "sha",
    "version",
    "python_version",
    "platform_os",
    "platform_architecture",
    "model",
    "driver_version",
    "cpu",
    "memory",
    "image",
    "command",
    "args",
    "from_step",
    "artifact",
    "multiplier",
    "depends_on",
    "files.digest",  # of what the content digest follows from
    "etag",  # of a role binding of the project
    "run_token.run_id",  # the server sets both from the request and the caller, and takes neither
    "principal_project_id",
    "cosignatures",  # of a checkpoint of the project
    "filter",  # with a name where worlds.py has one; it lets through rows of the list, which are the project's
}
NOT_NAMES = {"project_id", "node_project", "cosignature"}  # of a world: one is who asks, and one has its own test
TELLS_DIGESTS = {"ValidatePipelineSpec", "DryRun"}  # that what was sent would have
CREATES = {"CreateServiceAccount", "CreateToken", "CreateRunToken", "CreateDataset"}  # of a name that is taken


@dataclass(frozen=True, slots=True)
class Projects:
    """A server with two projects that have one of everything, and what is nowhere."""

    server: Server
    theirs: World
    ours: World
    absent: World
    admin: Caller  # of ours


@pytest.fixture(scope="module")
async def projects(
    postgres: EmbeddedPostgres, admin: AsyncEngine, template: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Projects]:
    """One server for these tests."""
    async with served(postgres, admin, template, tmp_path_factory.mktemp("data")) as server:
        worlds: dict[str, World] = {}
        for project_id in ("theirs", "ours00"):
            await server.project(project_id)
            worlds[project_id] = await made(server.admin, project_id)
            await server.published(project_id)
        ours = await server.caller("ours00", "admin")
        yield Projects(server, worlds["theirs"], worlds["ours00"], nowhere("absent"), ours)


def asked(world: World, name: str) -> list[Any]:
    """The requests of a method, of which none writes."""
    return requests(world, name, "same", validate_only=True)


def pairs(projects: Projects, name: str) -> Iterator[tuple[str, str, str, Message, Message, Message]]:
    """For each name in a request of ours: the field of the world, another project's name and one of nothing; the
    request, and the request with either."""
    base = asked(projects.ours, name)
    for field in fields(World):
        if field.name in NOT_NAMES:
            continue
        theirs, absent = (getattr(world, field.name) for world in (projects.theirs, projects.absent))
        foreign, missing = (asked(replace(projects.ours, **{field.name: value}), name) for value in (theirs, absent))
        for was, one, other in zip(base, foreign, missing, strict=True):
            if was != one:
                yield field.name, theirs, absent, was, one, other


def normal(answer: Told, name: str, written: str = "") -> tuple[object, ...]:
    """An answer without the name that was asked for; of the change of a method, without what is new each time."""
    if not written or answer.code != "OK":
        told = [_blank(part.decode("latin-1"), name) for part in (answer.status, *answer.replies)]
        return answer.code, answer.reason, told, answer.trailing
    kind = GetMessageClass(METHODS[written].output_type)
    told = [VOLATILE.sub("", _blank(str(kind.FromString(reply)), name)) for reply in answer.replies]
    return answer.code, answer.reason, told, [key for key, _ in answer.trailing]


def _blank(text: str, name: str) -> str:
    """Without a name, as it is and as names of resources have it."""
    return text.replace(name, "_" * len(name)).replace(quote(name, safe=""), "_" * len(name))


VOLATILE = re.compile(r"sha256:[0-9a-f]{64}|[0-9a-f]{32}|(seconds|nanos): [0-9]+")


async def test_every_request_of_ours_is_good(projects: Projects) -> None:
    """So that a name of nothing is what makes it fail below; a name that is taken is, too."""
    assert trees(projects.ours).keys() == METHODS.keys()
    for name in METHODS:
        for number, request in enumerate(asked(projects.ours, name)):
            if name == "AddCosignatures":
                continue  # no witness is known here
            answer = await tell(projects.admin, name, request)
            wanted = "ALREADY_EXISTS" if name in CREATES else "OK"
            assert answer.code == wanted, (name, number, answer.reason, answer.status)


async def test_a_name_of_another_project_answers_as_one_of_nothing(projects: Projects) -> None:
    """Byte by byte, in status, details, replies and metadata, the name itself aside."""
    outcomes = Counter[str]()
    for name in METHODS:
        for field, theirs, absent, _, foreign, missing in pairs(projects, name):
            one, other = await tell(projects.admin, name, foreign), await tell(projects.admin, name, missing)
            written = name if name in MUTATES | TELLS_DIGESTS else ""
            assert normal(one, theirs, written) == normal(other, absent, written), (name, field)
            outcomes[one.reason or one.code] += 1
    unknown = {reason for reason in outcomes if reason.endswith("_UNKNOWN")}
    assert len(unknown) >= 11, outcomes
    assert sum(outcomes[reason] for reason in unknown) >= 60, outcomes


def texts(message: Descriptor, path: str = "") -> Iterator[tuple[str, FieldDescriptor]]:
    """Every field of text or bytes below a message, with its path; a message inside itself once."""
    for field in message.fields:
        if field.message_type is not None:
            if field.message_type.name != "Record" and field.message_type.full_name.startswith("animus."):
                yield from texts(field.message_type, f"{path}{field.name}.")
        elif field.type in (field.TYPE_STRING, field.TYPE_BYTES):
            yield f"{path}{field.name}", field


def differing(one: Message, other: Message, path: str = "") -> Iterator[str]:
    """Paths of texts in which two messages differ."""
    for field in one.DESCRIPTOR.fields:
        left, right = getattr(one, field.name), getattr(other, field.name)
        if left == right:
            continue
        if field.message_type is None:
            yield f"{path}{field.name}"
        else:
            several = zip(left, right, strict=True) if field.is_repeated else [(left, right)]
            for a, b in several:
                yield from differing(a, b, f"{path}{field.name}.")


async def test_every_text_of_every_request_is_tried_or_names_nothing(projects: Projects) -> None:
    """Walks the descriptors: a new field that names something is met."""
    tried, unmet, idle = set(), [], set(NAMES_NOTHING)
    for name, rpc in METHODS.items():
        for _, _, _, was, foreign, _ in pairs(projects, name):
            tried |= {(name, path) for path in differing(was, foreign)}
        for path, field in texts(rpc.input_type):
            plain = {field.name, ".".join(path.split(".")[-2:])} & NAMES_NOTHING
            idle -= plain
            if (name, path) not in tried and not plain:
                unmet.append(f"{name}.{path}")
    assert sorted(unmet) == []
    assert idle == set()


async def test_a_name_that_is_told_apart_is_found(projects: Projects) -> None:
    """Another status, another detail, another reply or another key of metadata is a difference."""
    plain = Told("NOT_FOUND", "RUN_UNKNOWN", b"no aa", (b"aa",), (("k", "v"),))
    assert normal(plain, "aa") == normal(replace(plain, status=b"no bb", replies=(b"bb",)), "bb")
    for change in (
        {"code": "PERMISSION_DENIED"},
        {"reason": "PLAN_UNKNOWN"},
        {"status": b"no aa."},
        {"replies": (b"aa", b"aa")},
        {"trailing": (("k", "v"), ("l", "v"))},
    ):
        assert normal(replace(plain, **change), "aa") != normal(plain, "aa"), change


# Beside ids: what a call of another project left behind.


@pytest.fixture(scope="module")
async def http(projects: Projects) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a gateway in front of the server, as an admin of ours."""
    async with open_channel(projects.server.running.grpc, 64 << 20) as channel:
        gateway = await serve_gateway(channel, "127.0.0.1", 0)
        headers = {"authorization": f"Bearer {projects.admin.token}"}
        url = f"http://127.0.0.1:{gateway.port}/v1/projects"
        async with httpx.AsyncClient(base_url=url, headers=headers, trust_env=False) as client:
            yield client
        await gateway.stop()


def root(projects: Projects) -> dict[str, str]:
    """The header of the instance's administrator."""
    return {"authorization": f"Bearer {projects.server.admin.token}"}


async def test_a_page_token_of_another_project_is_as_good_as_a_made_up_one(
    projects: Projects, http: httpx.AsyncClient
) -> None:
    """Every list that has two pages there, over HTTP and over gRPC alike."""
    tried = set()
    for name, rpc in METHODS.items():
        if not {"page_token", "page_size"} <= set(rpc.input_type.fields_by_name) or name == "ListProjects":
            continue
        theirs, ours = (requests(world, name)[0] for world in (projects.theirs, projects.ours))
        theirs.page_size = ours.page_size = 1
        token = (await projects.server.admin(name, theirs)).next_page_token
        if not token:
            continue
        answers = []
        for given in (token, "x" * len(token)):
            ours.page_token = given
            answers.append(await tell(projects.admin, name, ours))
        assert answers[0].reason == "PAGE_TOKEN_INVALID", name
        assert answers[0] == answers[1], name
        tried.add(name)
    assert {"ListRuns", "ListAuditEntries", "ListDatasetVersions", "ListQualityEvaluations"} <= tried
    runs = {"pageSize": "1"}
    token = (await http.get("/theirs/runs", params=runs, headers=root(projects))).json()["nextPageToken"]
    mine = (await http.get("/ours00/runs", params=runs)).json()["nextPageToken"]
    refused = [await http.get("/ours00/runs", params={**runs, "pageToken": each}) for each in (token, "x" * len(token))]
    assert [answer.status_code for answer in refused] == [400, 400]
    assert refused[0].json() == refused[1].json()
    assert (await http.get("/ours00/runs", params={**runs, "pageToken": mine})).status_code == 200
    foreign = [await http.get(f"/{each}/runs", params={**runs, "pageToken": token}) for each in ("theirs", "absent")]
    assert [answer.status_code for answer in foreign] == [404, 404]
    assert foreign[0].text.replace("theirs", "absent") == foreign[1].text


async def test_a_request_id_of_another_project_is_as_good_as_a_new_one(
    projects: Projects, http: httpx.AsyncClient
) -> None:
    """Neither answered with what was answered there, nor refused as used for another body."""
    there = {"request_id": "shared", "dataset": {"dataset_id": "shared", "description": "theirs"}}
    first = await http.post("/theirs/datasets", json=there, headers=root(projects))
    assert first.status_code == 200
    here = {"request_id": "shared", "dataset": {"dataset_id": "shared", "description": "ours"}}
    answers = [await http.post("/ours00/datasets", json=here) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 200]
    made_here = answers[0].json()
    assert made_here["record"]["name"] == "projects/ours00/datasets/shared"
    assert made_here["description"] == "ours"
    assert answers[1].json() == made_here


async def test_the_hash_of_another_projects_token_is_as_good_as_a_new_one(projects: Projects) -> None:
    """It is registered, and tells nothing: a token is looked up in the project that its text names."""
    request = requests(projects.ours, "CreateToken")[0]
    request.token.token_digest = projects.theirs.token_digest
    answer = await tell(projects.admin, "CreateToken", request)
    assert answer.code == "OK"
