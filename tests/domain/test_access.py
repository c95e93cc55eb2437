"""Access: the table of roles keeps duties apart, and a token is what its pattern says and no more."""

import secrets
from typing import Any

import pytest

from animus.domain.access import (
    METHODS,
    PUBLIC,
    TOKEN,
    BreakGlass,
    Role,
    RoleBinding,
    RunToken,
    Scope,
    ServiceAccount,
    ServiceAccountEnd,
    Token,
    TokenRevocation,
    check_token_scope,
    principal_of,
)
from animus.domain.names import SYSTEM_PROJECT
from domain.test_names import BROKEN, INVISIBLE, SPACES
from domain.values import ONE, TIME, refusal

READS = ("Get", "List", "Validate", "DryRun", "Tail", "Export", "WaitForInclusion", "WhoAmI")
# What an auditor adds: a witness signed it, and it is taken only if it is good for a checkpoint that stands already.
ATTESTS = "animus.v1.LogService/AddCosignatures"
# What a runtime adds beside its reports: it reads the data before a step does, and says what it found and measured.
VERIFIES = "animus.v1.DatasetService/VerifyDatasetVersion"
# And what it saw of other systems' runs: it is where their clients are.
TELLS = "animus.v1.LineageService/RecordOpenLineageEvent"
MEASURES = {
    VERIFIES,
    TELLS,
    "animus.v1.QualityService/RegisterQualityProfile",
    "animus.v1.QualityService/EvaluateQuality",
    "animus.v1.QualityService/RecordForeignEvaluation",
}
# What a runtime hands on: a token of one run, no more than it may itself.
DELEGATES = "animus.v1.AccessService/CreateRunToken"
# What tells every caller of itself alone.
OF_ITSELF = "animus.v1.AccessService/WhoAmI"
# What tells of entries; the log's other reads are hashes and signatures, and prove to whoever holds a receipt.
TELLS_OF_ENTRIES = ("AuditService/", "LogService/GetEntryBundle")
OURS = {name: rule.roles for name, rule in METHODS.items() if name.startswith("animus.v1.")}
CHANGES = {name for name in OURS if not name.split("/")[1].startswith(READS)}


def overreach(table: dict[str, frozenset[Role]]) -> set[tuple[str, Role]]:
    """The methods that a role may call and that its duty does not need."""
    found = set()
    for name, roles in table.items():
        change = not name.split("/")[1].startswith(READS)
        if name == ATTESTS:
            found |= {(name, role) for role in roles & {Role.VIEWER, Role.OPERATOR}}
        elif change:
            found |= {(name, role) for role in roles & {Role.VIEWER, Role.AUDITOR, Role.INSTANCE_AUDITOR}}
        if any(each in name for each in TELLS_OF_ENTRIES):
            found |= {(name, role) for role in roles & {Role.OPERATOR, Role.RUNTIME, Role.VIEWER}}
        if change and "RuntimeService" not in name and name not in {DELEGATES, *MEASURES} and Role.RUNTIME in roles:
            found.add((name, Role.RUNTIME))
        if "RuntimeService" in name and Role.OPERATOR in roles:
            found.add((name, Role.OPERATOR))
        if name.endswith("CreateProject"):
            found |= {(name, role) for role in roles - {Role.INSTANCE_ADMIN}}
        if "AccessService/" in name and name not in (DELEGATES, OF_ITSELF):
            found |= {(name, role) for role in roles & {Role.OPERATOR, Role.RUNTIME, Role.VIEWER}}
    return found


def test_no_role_may_do_more_than_its_duty() -> None:
    """Who only reads changes nothing; who runs steps registers nothing; who operates neither reports nor audits.

    Auditors change nothing either, but for adding what a witness has signed; runtimes say what they found of data, and
    what other systems did, and hand on a token of one run. Who may do what is seen by those who administer or audit.
    """
    assert overreach(OURS) == set()
    assert OURS["animus.v1.ProjectService/CreateProject"] == {Role.INSTANCE_ADMIN}
    assert len(CHANGES) >= 10
    assert {ATTESTS, DELEGATES, *MEASURES} <= CHANGES
    assert Role.RUNTIME in OURS[DELEGATES]


def test_whoever_has_a_receipt_may_have_it_proven() -> None:
    """Checkpoints, proofs and tiles tell nothing of what was logged: every role reads them, and no entry with them."""
    log = {name: roles for name, roles in OURS.items() if "LogService/" in name and name not in CHANGES}
    entries = {name for name in log if any(each in name for each in TELLS_OF_ENTRIES)}
    assert entries == {"animus.v1.LogService/GetEntryBundle"}
    assert {name for name, roles in log.items() if roles != set(Role)} == entries


def test_a_role_that_may_do_more_is_found() -> None:
    """One planted right is one fault."""
    for name, role in (
        ("animus.v1.RunService/CreateRun", Role.VIEWER),
        ("animus.v1.RunService/CreateRun", Role.RUNTIME),
        ("animus.v1.AuditService/GetAuditEntry", Role.OPERATOR),
        ("animus.v1.AccessService/CreateToken", Role.OPERATOR),
        ("animus.v1.AccessService/CreateToken", Role.AUDITOR),
        ("animus.v1.AccessService/CreateServiceAccount", Role.RUNTIME),
        ("animus.v1.AccessService/DisableServiceAccount", Role.INSTANCE_AUDITOR),
        ("animus.v1.AccessService/GetServiceAccount", Role.OPERATOR),
        ("animus.v1.AccessService/ListServiceAccounts", Role.RUNTIME),
        ("animus.v1.AccessService/ListTokens", Role.VIEWER),
        ("animus.v1.AccessService/ListRoleBindings", Role.OPERATOR),
        ("animus.v1.AccessService/RevokeToken", Role.AUDITOR),
        ("animus.v1.AccessService/SetRoleBinding", Role.OPERATOR),
        (DELEGATES, Role.VIEWER),
        (DELEGATES, Role.AUDITOR),
        ("animus.v1.ProjectService/CreateProject", Role.ADMIN),
        ("animus.v1.RuntimeService/ReportStepEvents", Role.OPERATOR),
        ("animus.v1.AuditService/TailAuditEntries", Role.VIEWER),
        ("animus.v1.AuditService/ExportAuditEntries", Role.RUNTIME),
        ("animus.v1.LogService/GetEntryBundle", Role.VIEWER),
        (VERIFIES, Role.VIEWER),
        (VERIFIES, Role.AUDITOR),
        ("animus.v1.QualityService/RegisterQualityRule", Role.RUNTIME),
        ("animus.v1.QualityService/EvaluateQuality", Role.VIEWER),
        (ATTESTS, Role.OPERATOR),
        (ATTESTS, Role.RUNTIME),
        (ATTESTS, Role.VIEWER),
    ):
        assert overreach({name: OURS[name] | {role}}) == {(name, role)}


def test_only_health_and_reflection_are_public() -> None:
    """No method of ours answers without a token."""
    public = {name for name, rule in METHODS.items() if rule == PUBLIC}
    assert public
    assert all(name.startswith(("grpc.health.", "grpc.reflection.")) for name in public)
    assert all(OURS.values())


def test_the_instance_admin_may_call_everything() -> None:
    """Nobody is locked out of an instance."""
    assert {name for name, roles in OURS.items() if Role.INSTANCE_ADMIN not in roles} == set()


def test_a_principal_has_roles_in_its_own_project_only() -> None:
    """Roles of the instance reach every project, others one."""
    for role in Role:
        if role.of_instance:
            assert principal_of("ci", role, SYSTEM_PROJECT).roles("q") == {role}
        else:
            assert principal_of("ci", role, "p").roles("p") == {role}
            assert principal_of("ci", role, "p").roles("q") == frozenset()


def test_a_token_of_one_run_changes_nothing_but_by_reports_of_it() -> None:
    """It calls what a runtime may, reads what a run binds, and lists nothing of the project."""
    allowed = {name for name, rule in METHODS.items() if rule.run_token and name in OURS}
    assert {name for name in allowed if Role.RUNTIME not in OURS[name]} == set()
    assert {name for name in allowed & CHANGES if "RuntimeService/" not in name} == set()
    assert {name.split("/")[1] for name in allowed if "/List" in name} == {
        "ListStepAttempts",
        "ListArtifacts",
        "ListMetrics",
        "ListCheckpoints",
    }


def test_only_projects_are_asked_for_anywhere() -> None:
    """Every other method asks for a role in the project that its request names, but for who the caller is."""
    elsewhere = {name.split("/")[1]: rule.scope for name, rule in METHODS.items() if name in OURS}
    elsewhere = {name: scope for name, scope in elsewhere.items() if scope is not Scope.PROJECT}
    assert elsewhere == {"CreateProject": Scope.INSTANCE, "ListProjects": Scope.ANYWHERE, "WhoAmI": Scope.ANYONE}


@pytest.mark.parametrize("role", Role)
def test_roles_of_the_instance_belong_to_its_project(role: Role) -> None:
    """An instance role outside the system project, and any other inside it, is refused."""
    token = Token(ONE, "ci", role, TIME)
    right, wrong = (SYSTEM_PROJECT, "p") if role.of_instance else ("p", SYSTEM_PROJECT)
    check_token_scope(right, token)
    assert refusal(check_token_scope, wrong, token).field == "token.role"


@pytest.mark.parametrize(
    ("values", "field"),
    [
        (("animus_secret", "ci", Role.VIEWER, TIME), "tokenDigest"),
        ((ONE, "ci@example", Role.VIEWER, TIME), "principal"),
        ((ONE, "ci", Role.VIEWER, ""), "expireTime"),
        ((ONE, "ci", Role.VIEWER, "2026-01-31"), "expireTime"),
    ],
)
def test_a_token_outside_its_rules_is_refused_by_field(values: tuple[str, str, Role, str], field: str) -> None:
    """A registration holds a digest, never the token, and an end."""
    assert refusal(Token, *values).field == field


@pytest.mark.parametrize(
    ("kind", "values", "field"),
    [
        (ServiceAccount, ("Ci", "", ""), "serviceAccountId"),
        (ServiceAccount, ("ci", "x" * 201, ""), "displayName"),
        (ServiceAccount, ("ci", "", "x" * 2_001), "description"),
        (ServiceAccountEnd, ("ci-", "why"), "serviceAccountId"),
        (ServiceAccountEnd, ("ci", ""), "reason"),
        (RunToken, (ONE, "1", "ci", "p", TIME), "runId"),
        (RunToken, (ONE, "a" * 32, "oidc:corp:x", "p", TIME), "principal"),
        (RunToken, (ONE, "a" * 32, "ci", "", TIME), "principalProjectId"),
        (RunToken, (ONE, "a" * 32, "ci", "p", ""), "expireTime"),
        (TokenRevocation, ("x", "why"), "tokenDigest"),
        (TokenRevocation, (ONE, ""), "reason"),
        (RoleBinding, ("oidc:corp:x", (Role.VIEWER, Role.VIEWER), 1), "roles[1]"),
        (RoleBinding, ("oidc:corp:x", (), 0), "version"),
        (BreakGlass, (ONE, "", "owner"), "reason"),
        (BreakGlass, (ONE, "why", ""), "databaseRole"),
    ],
)
def test_what_gives_or_takes_a_right_is_refused_by_field(kind: Any, values: tuple[Any, ...], field: str) -> None:
    """Outside its rules, no such record exists; an end always has a reason."""
    assert refusal(kind, *values).field == field


def test_a_member_is_of_a_kind_an_issuer_and_a_name() -> None:
    """Printable ASCII of at most 400 characters, with no space at either end: it is one line wherever it is shown."""
    for kind in ("oidc:corp", "group:corp-2", "certificate:uri", "certificate:dns", "certificate:email"):
        for name in ("x", "a b", "spiffe://corp/ns/train", "~" * 400, "a:b"):
            assert RoleBinding(f"{kind}:{name}", (), 1).member == f"{kind}:{name}"
        for name in ("", " x", "x ", "x" * 401, "\u00e9", *(f"x{odd}" for odd in [*INVISIBLE, *BROKEN])):
            assert refusal(RoleBinding, f"{kind}:{name}", (), 1).field == "member"
    for kind in ("", "oidc", "oidc:", "oidc:Corp", "user:corp", "certificate:ip", "certificate", "OIDC:corp"):
        assert refusal(RoleBinding, f"{kind}:x", (), 1).field == "member"


def test_a_token_text_names_its_project_in_one_way() -> None:
    """43 characters follow the project; with underscores among them they name no other project."""
    for project in ("p", "a-b", "z" * 63):
        for random in ("A" * 43, "_" * 43, "-" * 43, "a_b" * 14 + "c", secrets.token_urlsafe(32)):
            match = TOKEN.fullmatch(f"animus_{project}_{random}")
            assert match
            assert match[1] == project


def test_what_only_looks_like_a_token_is_none() -> None:
    """Padding, other lengths, other letters and a line feed at the end are no token."""
    good = "animus_p_" + "A" * 43
    odd = [*INVISIBLE, *SPACES, *BROKEN]
    near = ["", "animus_p_", "animus__" + "A" * 43, "animus_" + "A" * 43, "Animus_p_" + "A" * 43, good + "A", good[:-1]]
    near += [good + "=", "animus_P_" + "A" * 43, "Bearer " + good, "animus_-_" + "A" * 43, "animus_p_" + "Ａ" * 43]
    assert TOKEN.fullmatch(good)
    assert [each for each in [*near, *(good + o for o in odd), *(o + good for o in odd)] if TOKEN.fullmatch(each)] == []
