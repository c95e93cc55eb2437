"""The role matrix: every method by every credential, where it belongs and where it does not, each good and broken.

`make role-matrix` prints it, and asks for the whole of it. What is expected stands in tests/golden/roles.txt, by hand.
"""

import asyncio
import logging
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog
from contract import SERVICES
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from sqlalchemy.ext.asyncio import AsyncEngine

from animus.domain.access import METHODS, Role, RoleBinding, Scope
from animus.store.embedded import EmbeddedPostgres
from service.conftest import Server
from service.credentials import issuers_file, jwt, new_token, of_run, registered, revoked, write
from service.requests import create_run, prepare
from service.shared import served

GOLDEN = Path(__file__).parents[1] / "golden" / "roles.txt"
CREDENTIALS = [*Role, "run"]
# Where a good credential calls, in the order of a cell; names of one length, so that answers can be compared by bytes.
PLACES = {
    "own": "mine0001",
    "another": "theirs01",
    "missing": "absent01",
    "none named": "",
    "the instance": "instance",
    "system": "system",
    "another run": "mine0001",
    "no run": "mine0001",
}
OF_RUNS = ("another run", "no run")  # where a token of one run calls too
OF_ADMINS = ("the instance", "system")  # of the project's roles, where admin calls alone: a denial is a write
CODES = """
  y  reaches the method          n  ROLE_MISSING            ?  PROJECT_UNKNOWN
  f  project_id is refused       u  UNAUTHENTICATED         r  RUN_UNKNOWN
"""
SIGNS = {"ROLE_MISSING": "n", "PROJECT_UNKNOWN": "?", "RUN_UNKNOWN": "r"}
WHOLE = "ANIMUS_ROLE_MATRIX" in os.environ
# One role for each method, the next one for the next, unless the whole is asked for: of these, no role is known yet.
IN_TURN = (
    "expired",
    "revoked",
    "malformed",
    "of another project",
    "JWT of another audience",
    "JWT without signature",
    "JWT that expired",
)
WITHOUT_ROLES = {"public": "y", "anyone": "y", "anywhere": "n", "instance": "n", "project": "?"}
AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Row:
    """What the golden table says of a method."""

    where: str  # anywhere, project, instance or public
    allowed: frozenset[str]


def golden() -> dict[str, Row]:
    """The table by method, as `Service/Method`."""
    rows = {}
    for line in GOLDEN.read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        name, where, *cells = line.split()
        assert set(cells) <= {"x", "-"}, line
        rows[name] = Row(where, frozenset(c for c, cell in zip(CREDENTIALS, cells, strict=True) if cell == "x"))
    return rows


def rpcs() -> list[MethodDescriptor]:
    """Every method that a server has: the contract's, health and reflection."""
    others: list[Any] = [health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR]
    services = [*SERVICES, *(each for file in others for each in file.services_by_name.values())]
    return [method for service in services for method in service.methods]


def short(rpc: MethodDescriptor) -> str:
    """`Service/Method`."""
    return f"{rpc.containing_service.name}/{rpc.name}"


def full(rpc: MethodDescriptor) -> str:
    """The name in the access table."""
    return f"{rpc.containing_service.full_name}/{rpc.name}"


RPCS = {short(rpc): rpc for rpc in rpcs()}
NOT_SERVED = {"Health/List"}  # grpc's own health service does not have it


def faults_of(rows: dict[str, Row]) -> list[str]:
    """Where the two tables do not say the same, or a method has no row."""
    found = [f"{name} has no row in {GOLDEN.name}: say who may call it" for name in RPCS.keys() - rows.keys()]
    found += [f"{name} has a row in {GOLDEN.name} and is no method" for name in rows.keys() - RPCS.keys()]
    for name in RPCS.keys() & rows.keys():
        rule, row = METHODS[full(RPCS[name])], rows[name]
        roles = rule.roles or frozenset(Role)
        allowed = frozenset(map(str, roles)) | ({"run"} if rule.run_token else frozenset())
        where = str(rule.scope) if rule.roles else "public"
        if (where, allowed) != (row.where, row.allowed):
            found.append(f"{name} is {where} {sorted(allowed)} in code, {row.where} {sorted(row.allowed)} by hand")
    return sorted(found)


def test_the_table_by_hand_and_the_table_in_code_say_the_same() -> None:
    """Each method has one row, and each cell is the same."""
    assert faults_of(golden()) == []
    assert {row.where for row in golden().values()} == {*map(str, Scope), "public"}


def test_a_cell_or_a_row_that_differs_is_found() -> None:
    """A planted right, a planted scope, a row that is missing and one too many are a fault each."""
    rows = golden()
    for name, row in (
        ("RunService/CreateRun", Row("project", rows["RunService/CreateRun"].allowed | {"viewer"})),
        ("RunService/GetRun", Row("anywhere", rows["RunService/GetRun"].allowed)),
        ("RunService/MakeRun", rows["RunService/CreateRun"]),
    ):
        assert len(faults_of({**rows, name: row})) == 1
    assert len(faults_of({name: row for name, row in rows.items() if name != "Health/Watch"})) == 1


@dataclass(frozen=True, slots=True)
class Seen:
    """What a caller can see of an answer, its trace aside."""

    code: str  # OK or a status code
    reason: str
    fields: tuple[str, ...]
    text: str
    raw: bytes  # the status with its details
    keys: frozenset[str]  # of trailing metadata

    @property
    def sign(self) -> str:
        """The character of a cell."""
        if self.code == "UNAUTHENTICATED":
            return "u"
        if self.reason in SIGNS:
            return SIGNS[self.reason]
        return "f" if self.fields == ("projectId",) else "y"


class Matrix:
    """Calls by bytes."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.calls = 0
        self._methods = {
            name: getattr(
                channel,
                f"{'stream' if rpc.client_streaming else 'unary'}_{'stream' if rpc.server_streaming else 'unary'}",
            )(f"/{full(rpc)}")
            for name, rpc in RPCS.items()
        }
        self._turns = asyncio.Semaphore(AT_ONCE)

    async def call(self, name: str, token: str, project_id: str, run_id: str = "") -> Seen:
        """The answer to a request with nothing but these; of a stream, the first message."""
        rpc, metadata = RPCS[name], (("authorization", f"Bearer {token}"),) if token else ()
        request: Any = GetMessageClass(rpc.input_type)()
        fields = request.DESCRIPTOR.fields_by_name
        known = {"project_id": project_id, "run_id": run_id, "request_id": "matrix", "list_services": "x"}
        for field, value in known.items():
            if field in fields:
                setattr(request, field, value)
        data = request.SerializeToString()
        self.calls += 1
        async with self._turns:
            send = self._methods[name]
            call = send(iter([data]) if rpc.client_streaming else data, metadata=metadata)
            try:
                if rpc.server_streaming:
                    first = await call.read()
                    if first is not grpc.aio.EOF:
                        call.cancel()
                        return Seen("OK", "", (), "", b"", frozenset())
                    await call.code()
                else:
                    await call
            except grpc.aio.AioRpcError as error:
                return seen(error)
            return Seen("OK", "", (), "", b"", frozenset())


def seen(error: grpc.aio.AioRpcError) -> Seen:
    """What an error says."""
    trailing = dict(error.trailing_metadata() or ())
    status, info, bad = status_pb2.Status(), error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    status.ParseFromString(trailing.get("grpc-status-details-bin", b""))
    for detail in status.details:
        detail.Unpack(info) or detail.Unpack(bad)
    return Seen(
        error.code().name,
        info.reason,
        tuple(each.field for each in bad.field_violations),
        error.details() or "",
        status.SerializeToString(deterministic=True),
        frozenset(map(str, trailing)),
    )


@pytest.fixture(scope="module")
async def server(
    postgres: EmbeddedPostgres, admin: AsyncEngine, template: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Server]:
    """A server with reflection, and the projects of the matrix."""
    data_dir = tmp_path_factory.mktemp("data")
    issuers = issuers_file(tmp_path_factory.mktemp("issuers"))
    before = structlog.get_config()
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING)
    )  # not a line for each call
    async with served(postgres, admin, template, data_dir, reflection="true", issuers_file=str(issuers)) as found:
        for project_id in ("mine0001", "theirs01"):
            await found.project(project_id)
        yield found
    structlog.configure(**before)


def expected(name: str, row: Row, credential: str, place: str) -> str:
    """The signs that an answer may have; by the table by hand, and by what a request of the method can say."""
    rpc = RPCS[name]
    fields = rpc.input_type.fields_by_name
    of_instance = credential.startswith("instance")
    reaches = "y" if credential in row.allowed or row.where == "public" else "n"
    if "project_id" not in fields:
        return reaches
    if place == "none named":
        completed = name == "LineageService/RecordOpenLineageEvent" and not of_instance  # by the token's project
        return reaches if completed else "f"
    if row.where == "project" and not of_instance and PLACES[place] != PLACES["own"]:
        return "?"
    if place in OF_RUNS and "run_id" in fields:
        return reaches.replace("y", "r")
    if PLACES[place] != PLACES["own"] and row.where == "project":  # the role reaches every project, run or none
        nowhere = place == "missing" or (place == "the instance" and not name.startswith("LogService/"))
        return reaches.replace("y", "yr?" if nowhere else "yr")
    return reaches


async def test_every_method_by_every_credential_in_every_place(server: Server) -> None:
    """Who may is let through, who may not is denied, and who is not known is not: thousands of calls, no surprise."""
    spec = await prepare(server.admin, "mine0001")
    runs = [(await server.admin("CreateRun", create_run(spec, f"run{n}", "mine0001"))).run_id for n in range(2)]
    projects, instance = [r for r in Role if not r.of_instance], [r for r in Role if r.of_instance]
    good: dict[str, str] = {"run": await of_run(server, "mine0001", runs[0])}
    bad: dict[str, list[str]] = {
        "expired": [await of_run(server, "mine0001", runs[0], hours=-1)],
        "revoked": [],
        "malformed": [],
        "of another project": [],
        "unknown": [new_token("mine0001"), new_token("system"), new_token("absent01")],
        "JWT of another audience": [],
        "JWT without signature": [],
        "JWT that expired": [],
        "none": [""],
    }
    for home, roles in (("mine0001", projects), ("system", instance)):
        good.update((await registered(server, home, roles)).items())
        bad["expired"] += (await registered(server, home, roles, hours=-1)).values()
        bad["revoked"] += (await revoked(server, home, roles)).values()
        moved = {"mine0001": "theirs01", "system": "mine0001"}[home]
        bad["malformed"] += [good[role][:-1] for role in roles]
        bad["of another project"] += [good[role].replace(f"_{home}_", f"_{moved}_") for role in roles]
    bound = {role: ("mine0001" if role in projects else "system", f"oidc:corp:{role}") for role in Role}
    for role, (home, member) in bound.items():
        await write(server, home, RoleBinding(member, (role,), 1))
        good[f"jwt {role}"] = jwt(role)
        bad["JWT of another audience"].append(jwt(role, aud="https://other.test"))
        bad["JWT without signature"].append(jwt(role, "none"))
        bad["JWT that expired"].append(jwt(role, exp=int(time.time()) - 3_600))
    matrix, table, counts = Matrix(server.channel), golden(), Counter[str]()
    surprises: list[str] = []
    lines: list[tuple[str, list[str], str]] = []
    run_of = {"another run": runs[1], "no run": "0" * 32}

    async def of_method(name: str, row: Row) -> None:
        cells = []
        for credential in CREDENTIALS:
            places = [
                place
                for place in PLACES
                if (place not in OF_RUNS or credential == "run")
                and (place not in OF_ADMINS or credential in (Role.ADMIN, *instance) or WHOLE)
            ]
            if "project_id" not in RPCS[name].input_type.fields_by_name:
                places = ["own"]
            answers = dict(
                zip(
                    places,
                    await asyncio.gather(
                        *(
                            matrix.call(name, good[credential], PLACES[each], run_of.get(each, runs[0]))
                            for each in places
                        )
                    ),
                    strict=True,
                )
            )
            for place, answer in answers.items():
                counts[place] += 1
                if answer.sign not in expected(name, row, credential, place):
                    surprises.append(f"{name} as {credential}, {place}: {answer.code} {answer.reason}")
            if credential in ("run", *projects):
                named = {each: PLACES[each] if each not in run_of else run_of[each] for each in places}
                surprises.extend(f"{name} as {credential}: {each}" for each in told_apart(answers, named))
            elif "the instance" in answers and not name.startswith("LogService/"):  # no project but to its log
                alike = {each: answers[each] for each in ("the instance", "missing")}
                surprises.extend(f"{name} as {credential}: {each}" for each in told_apart(alike, PLACES))
            cells.append("".join(answers[each].sign for each in places))
        faults = [
            (kind, token)
            for kind, tokens in bad.items()
            for token in (tokens if WHOLE or kind not in IN_TURN else [tokens[len(lines) % len(tokens)]])
        ]
        refused = await asyncio.gather(*(matrix.call(name, token, "mine0001", runs[0]) for _, token in faults))
        wanted = "y" if row.where == "public" else "u"
        for (kind, _), answer in zip(faults, refused, strict=True):
            counts[kind] += 1
            if answer.sign != wanted or (wanted == "u" and answer != refused[0]):
                surprises.append(f"{name}, credential {kind}: {answer.code} {answer.reason}")
        role = list(Role)[len(lines) % len(Role)]
        for kind, token, sign in (
            ("JWT of a subject with a role", good[f"jwt {role}"], cells[CREDENTIALS.index(role)][0]),
            ("JWT of a subject without one", jwt("nobody"), WITHOUT_ROLES[row.where]),
        ):
            counts[kind] += 1
            answer = await matrix.call(name, token, "mine0001", runs[0])
            if answer.sign != sign:
                surprises.append(f"{name}, {kind} {role}: {answer.code} {answer.reason}")
        lines.append((name, cells, "".join(sorted({answer.sign for answer in refused}))))

    for name, row in table.items():
        if name not in NOT_SERVED:
            await of_method(name, row)
    print(rendered(lines, counts, matrix.calls, surprises))
    assert surprises == []
    assert matrix.calls == sum(counts.values()) > 3_000


def told_apart(answers: dict[str, Seen], named: dict[str, str]) -> Iterator[str]:
    """Places of which a caller is to know nothing, and whose answers differ in more than the name that it gave."""
    for reason in ("PROJECT_UNKNOWN", "RUN_UNKNOWN"):
        places = [place for place, answer in answers.items() if answer.reason == reason]
        for place in places[1:]:
            if len(named[place]) != len(named[places[0]]):
                continue  # its length shows in the bytes
            if normal(answers[place], named[place]) != normal(answers[places[0]], named[places[0]]):
                yield f"{place} and {places[0]} can be told apart"


def normal(answer: Seen, name: str) -> tuple[object, ...]:
    """An answer without the name that was asked for."""
    blank = "_" * len(name)
    raw = answer.raw.replace(name.encode(), blank.encode())
    return answer.code, answer.text.replace(name, blank), raw, answer.keys


def rendered(lines: list[tuple[str, list[str], str]], counts: Counter[str], calls: int, surprises: list[str]) -> str:
    """The matrix for people."""
    head = f"{'method':45} " + " ".join(f"{each.replace('instance_', 'i-')[:9]:9}" for each in CREDENTIALS) + " broken"
    rows = [f"{name:45} {' '.join(f'{cell:9}' for cell in cells)} {bad}" for name, cells, bad in lines]
    of_cell = "A cell, by the project that the request names: " + ", ".join(PLACES)
    told = "\n".join(f"  {count:6}  {kind}" for kind, count in counts.items())
    return "\n".join(
        ["", of_cell, CODES, head, *rows, "", f"{calls} calls:", told, f"surprises: {len(surprises)}", *surprises]
    )


def test_a_project_that_can_be_told_from_none_is_found() -> None:
    """Another text, another detail or another key of metadata is a difference."""
    missing = Seen("NOT_FOUND", "PROJECT_UNKNOWN", (), "no project absent01", b"absent01", frozenset({"a"}))
    same = Seen("NOT_FOUND", "PROJECT_UNKNOWN", (), "no project theirs01", b"theirs01", frozenset({"a"}))
    assert list(told_apart({"missing": missing, "another": same}, PLACES)) == []
    for other in (
        Seen("NOT_FOUND", "PROJECT_UNKNOWN", (), "no project theirs01!", b"theirs01", frozenset({"a"})),
        Seen("NOT_FOUND", "PROJECT_UNKNOWN", (), "no project theirs01", b"theirs01 ", frozenset({"a"})),
        Seen("NOT_FOUND", "PROJECT_UNKNOWN", (), "no project theirs01", b"theirs01", frozenset({"a", "b"})),
        Seen("PERMISSION_DENIED", "PROJECT_UNKNOWN", (), "no project theirs01", b"theirs01", frozenset({"a"})),
    ):
        assert len(list(told_apart({"missing": missing, "another": other}, PLACES))) == 1
