"""Service accounts, tokens, tokens of runs and role bindings: what gives a right, and what ends it."""

import asyncio
import itertools
import secrets
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from google.protobuf.message import Message
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from animus.codec import sha256
from animus.domain.access import CredentialKind, Principal, Role
from animus.domain.errors import Invalid
from animus.service.access import AccessService
from animus.service.calls import Caller as ServiceCaller
from animus.service.pages import Pages
from animus.store.embedded import EmbeddedPostgres
from animus.store.unit_of_work import UnitOfWork
from animus.v1 import access_pb2, audit_pb2, dataset_pb2, project_pb2, run_pb2
from service.conftest import Caller, Failure, Server, gathered
from service.requests import (
    bind,
    create_run,
    disable,
    event,
    new_run_token,
    new_token,
    plan_run,
    prepare,
    report,
    revoke,
    same,
)
from service.shared import after_first, served, until

MEMBER = "group:corp:ml-admins"
IDENTITY = access_pb2.WhoAmIRequest()
WAITS = text(
    "SELECT EXISTS (SELECT FROM pg_locks JOIN pg_database d ON d.oid = database"
    " WHERE datname = current_database() AND locktype = 'advisory' AND NOT granted)"
)
numbers = itertools.count()


@pytest.fixture(scope="module")
async def shared(
    postgres: EmbeddedPostgres, admin: AsyncEngine, template: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Server]:
    """One server for the tests of this file."""
    async with served(postgres, admin, template, tmp_path_factory.mktemp("data")) as found:
        yield found


@pytest.fixture
async def project(shared: Server) -> str:
    """A project that no other test has."""
    project_id = f"a{next(numbers)}"
    await shared.project(project_id)
    return project_id


async def refused(caller: Caller, method: str, request: Message) -> Failure:
    """The failure that a call ends with."""
    with pytest.raises(Failure) as found:
        await caller(method, request)
    return found.value


def account_request(project_id: str, service_account_id: str = "ci") -> access_pb2.CreateServiceAccountRequest:
    """Creates a service account."""
    return access_pb2.CreateServiceAccountRequest(
        project_id=project_id,
        request_id=secrets.token_hex(8),
        service_account=access_pb2.ServiceAccount(
            service_account_id=service_account_id, display_name="CI", description=""
        ),
    )


async def holder(server: Server, project_id: str, role: str, name: str = "ci") -> tuple[Caller, str]:
    """A caller with a new token of a service account, and the token's digest."""
    await server.account(project_id, name)
    token = f"animus_{project_id}_{secrets.token_urlsafe(32)}"
    await server.admin("CreateToken", new_token(project_id, name, role, token=token))
    return Caller(server.channel, token), sha256(token.encode())


async def gone(caller: Caller) -> None:
    """Waits until a caller's credential is refused."""

    async def is_refused() -> bool:
        try:
            await caller("WhoAmI", IDENTITY)
        except Failure as failure:
            assert (failure.code, failure.reason) == ("UNAUTHENTICATED", "TOKEN_INVALID")
            return True
        return False

    await until(is_refused, "a credential that is refused", 10)


async def actions(server: Server, project_id: str) -> list[tuple[str, str]]:
    """Action and outcome of every entry of a project, its creation and what was denied left out."""
    page = await server.admin("ListAuditEntries", audit_pb2.ListAuditEntriesRequest(project_id=project_id))
    names = {value: name.removeprefix("AUDIT_OUTCOME_") for name, value in audit_pb2.AuditOutcome.items()}
    return [(each.action or each.reason, names[each.outcome]) for each in page.audit_entries[1:]]


# Service accounts.


async def test_a_service_account_is_made_read_and_disabled_once(shared: Server, project: str) -> None:
    """It is in the list with its state; a second end changes nothing and answers alike; its id is taken for good."""
    admin = shared.admin
    made = await admin("CreateServiceAccount", account_request(project))
    assert made.record.name == f"projects/{project}/serviceAccounts/ci"
    await admin("CreateServiceAccount", account_request(project, "other"))
    get = access_pb2.GetServiceAccountRequest(project_id=project, service_account_id="ci")
    assert same(await admin("GetServiceAccount", get), made)
    ended = await admin("DisableServiceAccount", disable(project, "ci"))
    assert (ended.disabled, ended.record) == (True, made.record)
    assert same(await admin("DisableServiceAccount", disable(project, "ci")), ended)
    assert same(await admin("GetServiceAccount", get), ended)
    listed = await admin("ListServiceAccounts", access_pb2.ListServiceAccountsRequest(project_id=project))
    assert [(each.service_account_id, each.disabled) for each in listed.service_accounts] == [
        ("ci", True),
        ("other", False),
    ]
    assert (await refused(admin, "CreateServiceAccount", account_request(project))).reason == "SERVICE_ACCOUNT_EXISTS"
    assert await actions(shared, project) == [
        ("service_account.create", "ACCEPTED"),
        ("service_account.create", "ACCEPTED"),
        ("service_account.disable", "ACCEPTED"),
        ("service_account.disable", "UNCHANGED"),
        ("SERVICE_ACCOUNT_EXISTS", "REFUSED"),
    ]


async def test_a_token_needs_a_service_account_that_is_not_disabled(shared: Server, project: str) -> None:
    """Of the same project: one of another is as unknown as none."""
    request = new_token(project, "ci", "VIEWER")
    missing = await refused(shared.admin, "CreateToken", request)
    assert (missing.code, missing.reason) == ("NOT_FOUND", "SERVICE_ACCOUNT_UNKNOWN")
    await shared.project(f"{project}-other")
    await shared.admin("CreateServiceAccount", account_request(f"{project}-other"))
    assert (await refused(shared.admin, "CreateToken", request)).raw == missing.raw
    await shared.admin("CreateServiceAccount", account_request(project))
    await shared.admin("CreateToken", request)
    await shared.admin("DisableServiceAccount", disable(project, "ci"))
    found = await refused(shared.admin, "CreateToken", new_token(project, "ci", "VIEWER"))
    assert (found.code, found.reason) == ("FAILED_PRECONDITION", "SERVICE_ACCOUNT_DISABLED")
    assert found.preconditions == [("SERVICE_ACCOUNT_DISABLED", f"projects/{project}/serviceAccounts/ci")]


@pytest.mark.parametrize(
    ("method", "request_of", "field"),
    [
        ("CreateServiceAccount", lambda p: account_request(p, "No"), "serviceAccount.serviceAccountId"),
        ("GetServiceAccount", lambda p: access_pb2.GetServiceAccountRequest(project_id=p), "serviceAccountId"),
        ("DisableServiceAccount", lambda p: disable(p, "No"), "serviceAccountId"),
        ("CreateToken", lambda p: new_token(p, "ci", "VIEWER", seconds=-1), "token.expireTime"),
        ("CreateToken", lambda p: new_token(p, "ci", "VIEWER", seconds=401 * 86_400), "token.expireTime"),
        ("CreateToken", lambda p: new_token(p, "ci", "INSTANCE_AUDITOR"), "token.role"),
        ("CreateRunToken", lambda p: new_run_token(p, "1"), "runId"),
        ("CreateRunToken", lambda p: new_run_token(p, "a" * 32, seconds=8 * 86_400), "runToken.expireTime"),
        ("CreateRunToken", lambda p: new_run_token(p, "a" * 32, seconds=-1), "runToken.expireTime"),
        ("RevokeToken", lambda p: revoke(p, "animus_p_x"), "tokenDigest"),
        ("SetRoleBinding", lambda p: bind(p, "anyone", "VIEWER"), "roleBinding.member"),
        ("SetRoleBinding", lambda p: bind(p, MEMBER, "VIEWER", "VIEWER"), "roleBinding.roles[1]"),
        ("SetRoleBinding", lambda p: bind(p, MEMBER, "INSTANCE_ADMIN"), "roleBinding.roles"),
    ],
)
async def test_what_breaks_a_rule_is_refused_by_its_field(
    shared: Server, project: str, method: str, request_of: Callable[[str], Any], field: str
) -> None:
    """Nothing of it is written, and the path leads to what is wrong."""
    found = await refused(shared.admin, method, request_of(project))
    assert (found.code, list(found.fields)) == ("INVALID_ARGUMENT", [field])
    assert await actions(shared, project) == []


async def test_what_the_server_says_no_caller_may_say(shared: Server, project: str) -> None:
    """The state of an account, the owner of a run's token, and the version of a binding are refused in a request."""
    account = account_request(project)
    account.service_account.disabled = True
    assert list((await refused(shared.admin, "CreateServiceAccount", account)).fields) == ["serviceAccount.disabled"]
    token = new_run_token(project, "a" * 32)
    token.run_token.principal = token.run_token.principal_project_id = "boss"
    found = await refused(shared.admin, "CreateRunToken", token)
    assert set(found.fields) == {"runToken.principal", "runToken.principalProjectId"}
    binding = bind(project, MEMBER, "VIEWER")
    binding.role_binding.version, binding.role_binding.etag = 2, "x"
    found = await refused(shared.admin, "SetRoleBinding", binding)
    assert set(found.fields) == {"roleBinding.version", "roleBinding.etag"}


# Tokens.


async def test_a_revoked_token_is_refused_and_revoked_once(shared: Server, project: str) -> None:
    """Its other calls end within moments; a second revocation, under any request id, answers as the first did."""
    caller, digest = await holder(shared, project, "VIEWER")
    await caller("WhoAmI", IDENTITY)
    ended = await shared.admin("RevokeToken", revoke(project, digest))
    assert (ended.token_digest, ended.reason) == (digest, "lost")
    assert ended.record.name == f"projects/{project}/tokens/{digest}/revocation"
    again = revoke(project, digest)
    again.reason = "another"
    assert same(await shared.admin("RevokeToken", again), ended)
    await gone(caller)
    listed = await shared.admin("ListTokens", access_pb2.ListTokensRequest(project_id=project))
    assert [(each.token_digest, each.revoked) for each in listed.tokens] == [(digest, True)]
    assert (await actions(shared, project))[-2:] == [("token.revoke", "ACCEPTED"), ("token.revoke", "UNCHANGED")]


async def test_revocations_at_once_make_one_record(shared: Server, project: str) -> None:
    """All are answered alike, and one of them is the change."""
    _, digest = await holder(shared, project, "VIEWER")
    replies = await gathered([shared.admin("RevokeToken", revoke(project, digest)) for _ in range(6)])
    assert {reply.SerializeToString(deterministic=True) for reply in replies} == {
        replies[0].SerializeToString(deterministic=True)
    }
    outcomes = [outcome for action, outcome in await actions(shared, project) if action == "token.revoke"]
    assert sorted(outcomes) == ["ACCEPTED", *["UNCHANGED"] * 5]


async def test_a_disabled_account_takes_all_its_tokens_with_it(shared: Server, project: str) -> None:
    """And no other account's."""
    (one, _), (two, _), (other, _) = [await holder(shared, project, "VIEWER", name) for name in ("ci", "ci", "other")]
    for caller in (one, two, other):
        await caller("WhoAmI", IDENTITY)
    await shared.admin("DisableServiceAccount", disable(project, "ci"))
    await gone(one)
    await gone(two)
    assert (await other("WhoAmI", IDENTITY)).principal == "other"


async def test_tokens_of_another_project_are_as_unknown_as_none(shared: Server, project: str) -> None:
    """To end, to list and to read: the same bytes but for what was asked."""
    other = f"{project}-other"
    await shared.project(other)
    _, digest = await holder(shared, project, "VIEWER")
    admin = (await holder(shared, other, "ADMIN", "boss"))[0]
    foreign, none = [await refused(admin, "RevokeToken", revoke(other, each)) for each in (digest, sha256(b"none"))]
    assert foreign.reason == "TOKEN_UNKNOWN"
    assert foreign.raw.replace(digest.encode(), sha256(b"none").encode()) == none.raw
    get = access_pb2.GetServiceAccountRequest(project_id=other, service_account_id="ci")
    assert (await refused(admin, "GetServiceAccount", get)).reason == "SERVICE_ACCOUNT_UNKNOWN"
    assert (await refused(admin, "DisableServiceAccount", disable(other, "ci"))).reason == "SERVICE_ACCOUNT_UNKNOWN"
    listed = await admin("ListTokens", access_pb2.ListTokensRequest(project_id=other))
    assert [token.principal for token in listed.tokens] == ["boss"]


async def test_a_hash_that_another_project_registers_is_in_nobodys_way(shared: Server, project: str, run: str) -> None:
    """It answers as any new one, and the tokens that have it are good as before: a token's text names its project."""
    other = f"{project}-other"
    await shared.project(other)
    await shared.account(other, "ci")
    caller, digest = await holder(shared, project, "VIEWER")
    maker = (await holder(shared, project, "OPERATOR", "runner"))[0]
    of_run, made = await run_caller(shared, maker, project, run)
    for taken in (digest, made.token_digest):
        token = new_token(other, "ci", "ADMIN")
        token.token.token_digest = taken
        await shared.admin("CreateToken", token)
    assert [grant.project_id for grant in (await caller("WhoAmI", IDENTITY)).grants] == [project]
    assert (await of_run("WhoAmI", IDENTITY)).run_id == run


async def test_a_replay_needs_the_right_that_the_first_call_had(shared: Server, project: str) -> None:
    """Whoever lost it is refused, and does not learn what the first call made."""
    admin, digest = await holder(shared, project, "ADMIN", "boss")
    await shared.admin("CreateServiceAccount", account_request(project))
    request = new_token(project, "ci", "VIEWER")
    made = await admin("CreateToken", request)
    assert same(await admin("CreateToken", request), made)
    await shared.admin("RevokeToken", revoke(project, digest))
    await gone(admin)
    assert (await refused(admin, "CreateToken", request)).reason == "TOKEN_INVALID"
    operator = (await holder(shared, project, "OPERATOR", "boss"))[0]
    assert (await refused(operator, "CreateToken", request)).reason == "ROLE_MISSING"


async def test_no_role_can_make_itself_more(shared: Server, project: str) -> None:
    """Who runs steps makes no token but of a run; a project's admin gives no instance role, and none elsewhere."""
    await shared.account(project, "ci")
    for role in ("RUNTIME", "OPERATOR", "VIEWER", "AUDITOR"):
        caller = (await holder(shared, project, role, role.lower()))[0]
        for method, request in (
            ("CreateToken", new_token(project, "ci", "ADMIN")),
            ("SetRoleBinding", bind(project, MEMBER, "ADMIN")),
            ("CreateServiceAccount", account_request(project, "mine")),
            ("RevokeToken", revoke(project, sha256(b"x"))),
            ("DisableServiceAccount", disable(project, "ci")),
        ):
            assert (await refused(caller, method, request)).reason == "ROLE_MISSING", (role, method)
    admin = (await holder(shared, project, "ADMIN", "boss"))[0]
    for role in ("INSTANCE_ADMIN", "INSTANCE_AUDITOR"):
        for method, request, field in (
            ("SetRoleBinding", bind(project, MEMBER, role), "roleBinding.roles"),
            ("CreateToken", new_token(project, "ci", role), "token.role"),
        ):
            assert list((await refused(admin, method, request)).fields) == [field]
        assert (await refused(admin, "SetRoleBinding", bind("system", MEMBER, role))).reason == "PROJECT_UNKNOWN"


# Tokens of runs.


@pytest.fixture
async def run(shared: Server, project: str) -> str:
    """A planned run of the project."""
    spec = await prepare(shared.admin, project)
    found = await shared.admin("CreateRun", create_run(spec, "run", project))
    await shared.admin("PlanRun", plan_run(found.run_id, "plan", project))
    return str(found.run_id)


async def run_caller(server: Server, maker: Caller, project_id: str, run_id: str) -> tuple[Caller, access_pb2.RunToken]:
    """A caller with a new token of a run."""
    token = f"animus_{project_id}_{secrets.token_urlsafe(32)}"
    made = await maker("CreateRunToken", new_run_token(project_id, run_id, token=token))
    return Caller(server.channel, token), made


async def test_a_token_of_a_run_is_good_for_that_run_alone(shared: Server, project: str, run: str) -> None:
    """It reads and reports on its run under its maker's name; another answers as a missing one, lists are denied."""
    maker = (await holder(shared, project, "RUNTIME", "runner"))[0]
    caller, made = await run_caller(shared, maker, project, run)
    assert made.record.name == f"projects/{project}/runs/{run}/tokens/{made.token_digest}"
    assert (made.principal, made.principal_project_id, made.run_id) == ("runner", project, run)
    assert (await caller("GetRun", run_pb2.GetRunRequest(project_id=project, run_id=run))).run_id == run
    await caller("ReportStepEvents", report(run, event("first", 1, "STARTED"), project_id=project))
    entries = await shared.admin("ListAuditEntries", audit_pb2.ListAuditEntriesRequest(project_id=project))
    assert (entries.audit_entries[-1].action, entries.audit_entries[-1].principal) == (
        "run.report_step_events",
        "runner",
    )
    other = await shared.admin("ReplayRun", run_pb2.ReplayRunRequest(project_id=project, request_id="r", run_id=run))
    absent = "0" * 32
    foreign, none = [
        await refused(caller, "GetRun", run_pb2.GetRunRequest(project_id=project, run_id=each))
        for each in (other.run_id, absent)
    ]
    assert foreign.reason == "RUN_UNKNOWN"
    assert foreign.raw.replace(other.run_id.encode(), absent.encode()) == none.raw
    started = report(other.run_id, event("first", 1, "STARTED"), project_id=project)
    assert (await refused(caller, "ReportStepEvents", started)).reason == "RUN_UNKNOWN"
    for method, request in (
        ("ListRuns", run_pb2.ListRunsRequest(project_id=project)),
        ("ListDatasets", dataset_pb2.ListDatasetsRequest(project_id=project)),
        ("ListTokens", access_pb2.ListTokensRequest(project_id=project)),
        ("CreateRunToken", new_run_token(project, run)),
        ("GetProject", project_pb2.GetProjectRequest(project_id=project)),
    ):
        assert (await refused(caller, method, request)).reason == "ROLE_MISSING", method
    elsewhere = run_pb2.GetRunRequest(project_id="system", run_id=run)
    assert (await refused(caller, "GetRun", elsewhere)).reason == "PROJECT_UNKNOWN"


async def test_a_token_of_a_run_ends_with_its_revocation_or_its_makers_account(
    shared: Server, project: str, run: str
) -> None:
    """Of the project or of the instance: each account ends its own, though another has the same name."""
    maker = (await holder(shared, project, "OPERATOR", "runner"))[0]
    instance = (await holder(shared, "system", "INSTANCE_ADMIN", "runner"))[0]
    (one, made), (two, _), (three, high) = [
        await run_caller(shared, each, project, run) for each in (maker, maker, instance)
    ]
    assert high.principal_project_id == "system"
    for caller in (one, two, three):
        await caller("WhoAmI", IDENTITY)
    ended = await shared.admin("RevokeToken", revoke(project, made.token_digest))
    assert ended.record.name == f"{made.record.name}/revocation"
    await gone(one)
    await two("WhoAmI", IDENTITY)
    await shared.admin("DisableServiceAccount", disable(project, "runner"))
    await gone(two)
    await three("WhoAmI", IDENTITY)
    await shared.admin("DisableServiceAccount", disable("system", "runner"))
    await gone(three)


async def test_a_token_is_registered_once_as_one_kind(shared: Server, project: str, run: str) -> None:
    """A hash of a token is no other's, nor of a run's; a run that is not there gets none."""
    _, digest = await holder(shared, project, "VIEWER")
    maker = (await holder(shared, project, "OPERATOR", "runner"))[0]
    _, made = await run_caller(shared, maker, project, run)
    for taken in (digest, made.token_digest):
        token, run_token = new_token(project, "ci", "VIEWER"), new_run_token(project, run)
        token.token.token_digest = run_token.run_token.token_digest = taken
        for method, request in (("CreateToken", token), ("CreateRunToken", run_token)):
            found = await refused(shared.admin, method, request)
            assert (found.code, found.reason) == ("ALREADY_EXISTS", "TOKEN_EXISTS"), method
    unknown = await refused(maker, "CreateRunToken", new_run_token(project, "0" * 32))
    assert unknown.reason == "RUN_UNKNOWN"


# Role bindings.


async def test_a_binding_changes_by_versions_and_only_where_it_changes(shared: Server, project: str) -> None:
    """Roles are a set; equal ones change nothing; without roles the member leaves the list, and may come back."""
    listing = access_pb2.ListRoleBindingsRequest(project_id=project)
    first = await shared.admin("SetRoleBinding", bind(project, MEMBER, "OPERATOR", "AUDITOR"))
    assert first.version == 1
    assert first.record.name == f"projects/{project}/roleBindings/group%3Acorp%3Aml-admins"
    assert same(await shared.admin("SetRoleBinding", bind(project, MEMBER, "AUDITOR", "OPERATOR")), first)
    assert [same(each, first) for each in (await shared.admin("ListRoleBindings", listing)).role_bindings] == [True]
    none = await shared.admin("SetRoleBinding", bind(project, MEMBER, etag=first.etag))
    assert (none.version, list(none.roles)) == (2, [])
    assert not (await shared.admin("ListRoleBindings", listing)).role_bindings
    assert (await shared.admin("SetRoleBinding", bind(project, MEMBER, "VIEWER"))).version == 3
    assert await actions(shared, project) == [
        ("role_binding.set", outcome) for outcome in ("ACCEPTED", "UNCHANGED", "ACCEPTED", "ACCEPTED")
    ]


async def test_a_stale_etag_is_aborted(shared: Server, project: str) -> None:
    """Where the binding is another by now, was never made, or was made since; without an etag the last one wins."""
    early = await refused(shared.admin, "SetRoleBinding", bind(project, MEMBER, "VIEWER", etag="sha256:" + "0" * 64))
    assert (early.code, early.reason) == ("ABORTED", "ETAG_STALE")
    first = await shared.admin("SetRoleBinding", bind(project, MEMBER, "VIEWER"))
    second = await shared.admin("SetRoleBinding", bind(project, MEMBER, "ADMIN", etag=first.etag))
    assert second.etag != first.etag
    late = await refused(shared.admin, "SetRoleBinding", bind(project, MEMBER, "RUNTIME", etag=first.etag))
    assert (late.code, late.reason) == ("ABORTED", "ETAG_STALE")
    assert b"RetryInfo" not in late.raw
    assert (await shared.admin("SetRoleBinding", bind(project, MEMBER, "RUNTIME"))).version == 3


async def test_a_member_without_binding_has_nothing_to_lose(shared: Server, project: str) -> None:
    """Taking back what was never given names the member, which may be misspelt."""
    found = await refused(shared.admin, "SetRoleBinding", bind(project, MEMBER))
    assert (found.code, found.reason) == ("NOT_FOUND", "ROLE_BINDING_UNKNOWN")


async def test_bindings_that_are_set_at_once_have_one_version_each(shared: Server, project: str) -> None:
    """With one etag, one of them wins; without, each follows another."""
    roles = ("VIEWER", "AUDITOR", "OPERATOR", "RUNTIME")
    replies = await gathered([shared.admin("SetRoleBinding", bind(project, MEMBER, role)) for role in roles])
    assert sorted(reply.version for reply in replies) == [1, 2, 3, 4]
    (newest,) = [reply for reply in replies if reply.version == 4]
    races = [bind(project, MEMBER, *pair, etag=newest.etag) for pair in itertools.combinations(roles, 2)]
    replies = await gathered([shared.admin("SetRoleBinding", race) for race in races])
    assert [reply.version for reply in replies if not isinstance(reply, Failure)] == [5]
    assert {reply.reason for reply in replies if isinstance(reply, Failure)} == {"ETAG_STALE"}


# The last administrator.


async def test_the_instance_keeps_an_administrator(server: Server) -> None:
    """No token, account or binding ends that is the last to administer, and what else ends needs no other."""
    admin, first = server.admin, sha256(server.admin.token.encode())
    ends = (("RevokeToken", revoke("system", first)), ("DisableServiceAccount", disable("system", "admin")))
    for method, request in ends:
        found = await refused(admin, method, request)
        assert (found.code, found.reason) == ("FAILED_PRECONDITION", "LAST_ADMIN")
    auditor = (await holder(server, "system", "INSTANCE_AUDITOR", "auditor"))[1]
    await admin("RevokeToken", revoke("system", auditor))
    roles = ("INSTANCE_ADMIN", "INSTANCE_AUDITOR")
    await admin("SetRoleBinding", bind("system", MEMBER, *roles))
    for method, request in ends:  # one who administers by a binding is enough
        request.validate_only = True
        await admin(method, request)
    await admin("SetRoleBinding", bind("system", MEMBER, "INSTANCE_AUDITOR"))
    assert (await refused(admin, *ends[0])).reason == "LAST_ADMIN"
    _, second = await holder(server, "system", "INSTANCE_ADMIN", "second")
    await admin("RevokeToken", revoke("system", second))
    await holder(server, "system", "INSTANCE_ADMIN", "third")
    await admin("DisableServiceAccount", disable("system", "third"))
    server.accounts.add(("system", "admin"))  # the server made it
    await holder(server, "system", "INSTANCE_ADMIN", "admin")
    assert (await refused(admin, *ends[1])).reason == "LAST_ADMIN"
    await admin(*ends[0])
    await admin("SetRoleBinding", bind("system", MEMBER, *roles))
    await admin("RevokeToken", revoke("system", first))
    await gone(admin)


async def test_two_administrators_cannot_end_each_other(server: Server) -> None:
    """While one has found that the other is left, the other waits with its own end of the first, and is refused."""
    names = ("one", "two")
    callers = [await holder(server, "system", "INSTANCE_ADMIN", name) for name in names]
    await callers[0][0]("RevokeToken", revoke("system", sha256(server.admin.token.encode())))
    await callers[1][0]("WhoAmI", IDENTITY)
    second: list[asyncio.Future[Any]] = []

    async def start_second() -> None:
        second.append(asyncio.ensure_future(callers[1][0]("RevokeToken", revoke("system", callers[0][1]))))

        async def waits() -> bool:
            async with server.running.engine.connect() as connection:
                return second[0].done() or bool((await connection.execute(WAITS)).scalar_one())

        await until(waits, "an end that waits for the other")

    with after_first(server, ("SELECT EXISTS (\n",), start_second):
        await callers[0][0]("RevokeToken", revoke("system", callers[1][1]))
    with pytest.raises(Failure) as found:
        await second[0]
    assert found.value.reason == "LAST_ADMIN"
    assert (await refused(callers[0][0], "DisableServiceAccount", disable("system", "one"))).reason == "LAST_ADMIN"


# Who calls.


async def test_everyone_learns_who_it_is(shared: Server, project: str, run: str) -> None:
    """Name, credential, roles by project, end, and of a token of a run its run; without a credential nothing."""
    viewer, _ = await holder(shared, project, "VIEWER")
    who = await viewer("WhoAmI", IDENTITY)
    assert (who.principal, who.credential) == ("ci", access_pb2.CREDENTIAL_KIND_TOKEN)
    grant = access_pb2.ProjectRoles(project_id=project, roles=[access_pb2.ROLE_VIEWER])
    assert (list(who.grants), list(who.members), who.run_id, who.HasField("expire_time")) == ([grant], [], "", True)
    maker = (await holder(shared, project, "OPERATOR", "runner"))[0]
    caller, made = await run_caller(shared, maker, project, run)
    who = await caller("WhoAmI", IDENTITY)
    assert (who.principal, who.credential) == ("runner", access_pb2.CREDENTIAL_KIND_RUN_TOKEN)
    assert (list(who.grants[0].roles), who.run_id) == ([access_pb2.ROLE_RUNTIME], run)
    assert who.expire_time == made.expire_time
    assert (await refused(Caller(shared.channel, ""), "WhoAmI", IDENTITY)).reason == "TOKEN_INVALID"


async def test_roles_are_told_in_order_by_project(shared: Server) -> None:
    """Whoever has several, by the bindings of its members."""
    grants = {"q": frozenset({Role.VIEWER, Role.ADMIN}), "a": frozenset({Role.AUDITOR})}
    principal = Principal("oidc:corp:x", grants, CredentialKind.JWT, "", "", ("oidc:corp:x", MEMBER))
    service = AccessService(UnitOfWork(shared.running.engine, lambda: "", lambda *_: b"", None), Pages(b"k"))
    who = await service.WhoAmI(IDENTITY, ServiceCaller(principal, ""))
    assert who.credential == access_pb2.CREDENTIAL_KIND_JWT
    assert list(who.members) == ["oidc:corp:x", MEMBER]
    assert [(grant.project_id, list(grant.roles)) for grant in who.grants] == [
        ("a", [access_pb2.ROLE_AUDITOR]),
        ("q", [access_pb2.ROLE_ADMIN, access_pb2.ROLE_VIEWER]),
    ]
    assert not who.HasField("expire_time")


async def test_a_caller_without_service_account_makes_no_token_of_a_run(shared: Server, project: str) -> None:
    """Nothing would end the token with its maker; the error says what to call with."""
    principal = Principal(
        "oidc:corp:x", {project: frozenset({Role.ADMIN})}, CredentialKind.JWT, "", "", ("oidc:corp:x",)
    )
    service = AccessService(UnitOfWork(shared.running.engine, lambda: "", lambda *_: b"", None), Pages(b"k"))
    with pytest.raises(Invalid) as found:
        await service.CreateRunToken(new_run_token(project, "a" * 32), ServiceCaller(principal, ""))
    assert [each.field for each in found.value.violations] == ["runToken.principal"]
