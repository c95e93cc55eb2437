"""Who may call what, beside the role matrix: tokens, denials, and who sees which projects."""

import asyncio
import hashlib
import secrets
from datetime import UTC, datetime
from typing import Any

import grpc
import pytest
from contract import METHODS
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc

from animus.domain import access
from animus.server import add_services
from animus.service.calls import Calls
from animus.service.identity import Identity
from animus.service.issuers import open_issuers
from animus.service.limits import limits_of
from animus.service.pages import Pages
from animus.store.unit_of_work import UnitOfWork
from animus.telemetry import Telemetry
from animus.v1 import access_pb2, audit_pb2, log_pb2, project_pb2
from service.conftest import Caller, Failure, Server, gathered

OF_THE_LOG = {"GetLog", "GetCheckpoint", "ListCheckpoints", "GetConsistencyProof"}  # those that need no more fields


def empty_request(name: str, project_id: str) -> Message:
    """A request with nothing but project and request_id."""
    request = GetMessageClass(METHODS[name].input_type)()
    fields = request.DESCRIPTOR.fields_by_name
    if "project_id" in fields:
        request.project_id = project_id  # type: ignore[attr-defined]
    if "request_id" in fields:
        request.request_id = secrets.token_hex(8)  # type: ignore[attr-defined]
    return request


async def outcome(caller: Caller, name: str, project_id: str) -> tuple[str, str, bytes]:
    """Code, reason and bytes of a failure; OK where there is none."""
    try:
        await caller(name, empty_request(name, project_id))
    except Failure as failure:
        return failure.code, failure.reason, failure.raw
    return "OK", "", b""


async def test_the_instance_is_a_project_to_its_log_alone(server: Server) -> None:
    """Instance roles read its log as a project's, entries included; all else is in test_role_matrix.py."""
    await server.published("p")  # a leaf of the instance's log
    await server.published("instance")
    auditor = await server.caller("system", "instance_auditor")
    codes = {name: (await outcome(auditor, name, "instance"))[0] for name in METHODS if name in OF_THE_LOG}
    assert {name for name, code in codes.items() if code == "OK"} == OF_THE_LOG
    leaf = await auditor("GetEntryBundle", log_pb2.GetEntryBundleRequest(project_id="instance", width=1))
    assert b"/system/1\n" in leaf.entries


async def test_no_project_can_be_the_instance(server: Server) -> None:
    """Its name is taken, and no token is of it."""
    project = project_pb2.Project(project_id="instance", display_name="", description="")
    request = project_pb2.CreateProjectRequest(project_id="instance", request_id="r", project=project)
    with pytest.raises(Failure) as found:
        await server.admin("CreateProject", request)
    assert list(found.value.fields) == ["projectId"]
    with pytest.raises(Failure) as found:
        await server.caller("instance", "admin")
    assert found.value.reason == "PROJECT_UNKNOWN"


async def test_a_method_without_a_row_keeps_the_server_from_starting(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The start is refused with the method's name."""
    monkeypatch.delitem(access.METHODS, "animus.v1.RunService/GetRun")
    served = server.running.log
    work = UnitOfWork(server.running.engine, lambda: "", served.keyring.seal, served.check_sound)
    limits = limits_of(2, 8, 0, 1)
    identity = Identity(work, open_issuers(None, lambda: 0.0), limits.lookups, server.running.token_uses.note)
    calls = Calls(work, Telemetry(""), limits, identity, 1, 1, served.identity.receipt)
    with pytest.raises(LookupError, match=r"animus\.v1\.RunService/GetRun has no row"):
        add_services(grpc.aio.server(), work, calls, Pages(b"k"), served, [])


@pytest.mark.parametrize(
    "token",
    [
        "",
        "null",
        "animus_p_" + "A" * 43,
        "animus_p_" + "A" * 42,
        "animus_system_" + "A" * 43,
        "Bearer x",
        "eyJhbGciOiJub25lIn0.e30.",
        "x" * 5_000,
    ],
)
async def test_a_call_without_a_valid_token_is_unauthenticated(server: Server, token: str) -> None:
    """The same answer for every fault."""
    with pytest.raises(Failure) as found:
        await Caller(server.channel, token)("GetProject", project_pb2.GetProjectRequest(project_id="p"))
    assert (found.value.code, found.value.reason) == ("UNAUTHENTICATED", "TOKEN_INVALID")


async def test_a_token_moved_to_another_project_is_invalid(server: Server) -> None:
    """The project in the token's text is part of what was hashed."""
    caller = await server.caller("p", "admin")
    moved = caller.token.replace("animus_p_", "animus_system_")
    with pytest.raises(Failure) as found:
        await Caller(server.channel, moved)("GetProject", project_pb2.GetProjectRequest(project_id="p"))
    assert found.value.reason == "TOKEN_INVALID"


async def test_an_expired_token_is_invalid(server: Server) -> None:
    """By the database's clock, within the second for which a token is remembered."""
    caller = await server.caller("p", "viewer", days=2 / 86_400)
    request = project_pb2.GetProjectRequest(project_id="p")
    await caller("GetProject", request)
    async with asyncio.timeout(10):
        while True:
            try:
                await caller("GetProject", request)
            except Failure as failure:
                assert failure.reason == "TOKEN_INVALID"
                return
            await asyncio.sleep(0.05)


async def test_tokens_are_checked_when_they_are_made(server: Server) -> None:
    """Past or far expiries, instance roles outside the system project, and a hash that is taken are refused."""
    digest = "sha256:" + hashlib.sha256(b"x").hexdigest()
    token = access_pb2.Token(token_digest=digest, principal="bot", role=access_pb2.ROLE_VIEWER)
    token.expire_time.FromDatetime(datetime(2020, 1, 1, tzinfo=UTC))
    request = access_pb2.CreateTokenRequest(project_id="p", request_id="t1", token=token)
    with pytest.raises(Failure) as found:
        await server.admin("CreateToken", request)
    assert list(found.value.fields) == ["token.expireTime"]
    request.token.expire_time.FromDatetime(datetime(2999, 1, 1, tzinfo=UTC))
    with pytest.raises(Failure) as found:
        await server.admin("CreateToken", request)
    assert list(found.value.fields) == ["token.expireTime"]
    request.token.role = access_pb2.ROLE_INSTANCE_ADMIN
    with pytest.raises(Failure) as found:
        await server.admin("CreateToken", request)
    assert list(found.value.fields) == ["token.role"]


async def test_a_project_admin_cannot_raise_itself(server: Server) -> None:
    """No token of the system project, no project, no instance role."""
    admin = await server.caller("p", "admin")
    digest = "sha256:" + "1" * 64
    token = access_pb2.Token(token_digest=digest, principal="bot", role=access_pb2.ROLE_INSTANCE_ADMIN)
    token.expire_time.FromDatetime(datetime(2027, 1, 1, tzinfo=UTC))
    request = access_pb2.CreateTokenRequest(project_id="system", request_id="t", token=token)
    with pytest.raises(Failure) as found:
        await admin("CreateToken", request)
    assert found.value.reason == "PROJECT_UNKNOWN"
    request.project_id = "p"
    with pytest.raises(Failure) as found:
        await admin("CreateToken", request)
    assert list(found.value.fields) == ["token.role"]


async def test_denials_are_audited_in_the_callers_own_log(server: Server) -> None:
    """A viewer that tries to write leaves an entry in its project, not in the one it asked for."""
    await server.project("other")
    viewer = await server.caller("p", "viewer")
    operator = await server.caller("p", "operator")
    for caller, project_id in ((viewer, "p"), (operator, "other")):
        with pytest.raises(Failure):
            await caller("CreateRun", empty_request("CreateRun", project_id))
    entries = await server.admin("ListAuditEntries", audit_pb2.ListAuditEntriesRequest(project_id="p"))
    denied = [e for e in entries.audit_entries if e.outcome == audit_pb2.AUDIT_OUTCOME_DENIED]
    assert [(e.principal, e.reason) for e in denied] == [
        ("viewer", "ROLE_MISSING"),
        ("operator", "PROJECT_UNKNOWN"),
    ]
    others = await server.admin("ListAuditEntries", audit_pb2.ListAuditEntriesRequest(project_id="other"))
    assert [e.action for e in others.audit_entries] == ["project.create"]


async def test_projects_are_listed_to_those_who_see_them(server: Server) -> None:
    """Instance roles see all, a project's roles see theirs."""
    await server.project("other")
    viewer = await server.caller("p", "viewer")
    listed = await viewer("ListProjects", project_pb2.ListProjectsRequest())
    assert [project.project_id for project in listed.projects] == ["p"]
    auditor = await server.caller("system", "instance_auditor")
    found = []
    token = ""
    while True:
        page = await auditor("ListProjects", project_pb2.ListProjectsRequest(page_size=1, page_token=token))
        found += [project.project_id for project in page.projects]
        token = page.next_page_token
        if not token:
            break
    assert found == ["other", "p", "system"]


async def test_health_is_answered_without_a_token_for_each_service(server: Server) -> None:
    """And for the server as a whole."""
    stub: Any = health_pb2_grpc.HealthStub(server.channel)  # its stubs lack the methods
    services = {method.containing_service.full_name for method in METHODS.values()}
    for name in ("", *services):
        reply = await stub.Check(health_pb2.HealthCheckRequest(service=name))
        assert reply.status == health_pb2.HealthCheckResponse.SERVING, name


async def test_reflection_is_off_unless_it_is_asked_for(server: Server) -> None:
    """UNIMPLEMENTED by default."""
    call: Any = server.channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")
    stream = call()  # and nothing sent, which would race with the answer
    assert await stream.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_two_creators_of_one_project_make_one(server: Server) -> None:
    """The other is told that it exists."""
    requests = [
        project_pb2.CreateProjectRequest(
            project_id="race",
            request_id=f"r{index}",
            project=project_pb2.Project(project_id="race", display_name="", description=""),
        )
        for index in range(10)
    ]
    replies = await gathered([server.admin("CreateProject", request) for request in requests])
    failures = [reply for reply in replies if isinstance(reply, Failure)]
    assert len(failures) == 9
    assert {failure.reason for failure in failures} == {"PROJECT_EXISTS"}
