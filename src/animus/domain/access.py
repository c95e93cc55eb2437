"""Access: roles, the one table of who may call which method, credentials, and what grants a role.

A role is granted by a record: an API token has the role of its registration in the project that it names, and who
presents another credential has the roles of the role bindings of its members. The server refuses to start when a method
that it serves has no row here.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

from animus.domain.errors import invalid
from animus.domain.names import (
    RANDOM_ID,
    SYSTEM_PROJECT,
    check_count,
    check_digest,
    check_length,
    check_pattern,
    check_resource_id,
    check_time,
    check_within,
    sorted_set,
)

TOKEN = re.compile(r"animus_([a-z](?:[a-z0-9-]{0,61}[a-z0-9])?)_[A-Za-z0-9_-]{43}")
MEMBER = re.compile(
    r"(?:(?:oidc|group):[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?|certificate:(?:uri|dns|email))"
    r":[!-~](?:[ -~]{0,398}[!-~])?"
)
MEMBER_RULE = (
    "is no member: give oidc:<issuer>:<subject>, group:<issuer>:<group>, or certificate:<uri, dns or email>:<name>,"
    " in printable ASCII"
)
MAX_TOKEN_DAYS = 400
MAX_RUN_TOKEN_DAYS = 7
MAX_BREAK_GLASS_HOURS = 24
MAX_VERSIONS = 1_000_000


class Role(StrEnum):
    """What a principal may do."""

    ADMIN = "admin"
    OPERATOR = "operator"
    RUNTIME = "runtime"
    VIEWER = "viewer"
    AUDITOR = "auditor"
    INSTANCE_ADMIN = "instance_admin"
    INSTANCE_AUDITOR = "instance_auditor"

    @property
    def of_instance(self) -> bool:
        """Whether the role reaches every project."""
        return self in (Role.INSTANCE_ADMIN, Role.INSTANCE_AUDITOR)


@dataclass(frozen=True, slots=True)
class ServiceAccount:
    """Who is no person: what tokens are issued to."""

    SCHEMA: ClassVar[str] = "animus.service_account/v1"

    service_account_id: str
    display_name: str  # at most 200 characters
    description: str  # at most 2,000 characters

    def __post_init__(self) -> None:
        check_resource_id(self.service_account_id, "serviceAccountId")
        check_length(self.display_name, 0, 200, "displayName")
        check_length(self.description, 0, 2_000, "description")


@dataclass(frozen=True, slots=True)
class ServiceAccountEnd:
    """The end of a service account: none of its tokens is taken from then on."""

    SCHEMA: ClassVar[str] = "animus.service_account_end/v1"

    service_account_id: str
    reason: str  # 1 to 2,000 characters

    def __post_init__(self) -> None:
        check_resource_id(self.service_account_id, "serviceAccountId")
        check_length(self.reason, 1, 2_000, "reason")


@dataclass(frozen=True, slots=True)
class Token:
    """The registration of an API token. The token itself is never stored."""

    SCHEMA: ClassVar[str] = "animus.token/v1"

    token_digest: str  # SHA-256 of the whole token text
    principal: str
    role: Role
    expire_time: str

    def __post_init__(self) -> None:
        check_digest(self.token_digest, "tokenDigest")
        check_resource_id(self.principal, "principal")
        check_time(self.expire_time, "expireTime")


@dataclass(frozen=True, slots=True)
class RunToken:
    """The registration of a token of one run, for the steps that run it: its role is runtime."""

    SCHEMA: ClassVar[str] = "animus.run_token/v1"

    token_digest: str  # SHA-256 of the whole token text
    run_id: str
    principal: str
    expire_time: str

    def __post_init__(self) -> None:
        check_digest(self.token_digest, "tokenDigest")
        check_pattern(RANDOM_ID, self.run_id, "runId", "is no run id: 32 lower-case hexadecimal digits")
        check_resource_id(self.principal, "principal")
        check_time(self.expire_time, "expireTime")


@dataclass(frozen=True, slots=True)
class TokenRevocation:
    """The end of a token, before it expires."""

    SCHEMA: ClassVar[str] = "animus.token_revocation/v1"

    token_digest: str
    reason: str  # 1 to 2,000 characters

    def __post_init__(self) -> None:
        check_digest(self.token_digest, "tokenDigest")
        check_length(self.reason, 1, 2_000, "reason")


@dataclass(frozen=True, slots=True)
class RoleBinding:
    """The roles of a member in a project; of a member, the highest version governs, and no roles take all back."""

    SCHEMA: ClassVar[str] = "animus.role_binding/v1"

    member: str  # such as oidc:corp:6f1d, group:corp:ml-admins or certificate:uri:spiffe://corp/ns/train
    roles: tuple[Role, ...]  # a set
    version: int  # 1 for the first of the member, then one more each time

    def __post_init__(self) -> None:
        check_pattern(MEMBER, self.member, "member", MEMBER_RULE)
        check_count(self.roles, 0, len(Role), "roles")
        object.__setattr__(self, "roles", sorted_set(self.roles, lambda role: role, "roles", ""))
        check_within(self.version, 1, MAX_VERSIONS, "version")


@dataclass(frozen=True, slots=True)
class BreakGlass:
    """An administrator's token that the owner of the database made, past every role: why, and as which role there."""

    SCHEMA: ClassVar[str] = "animus.break_glass/v1"

    token_digest: str
    reason: str  # 1 to 2,000 characters
    database_role: str

    def __post_init__(self) -> None:
        check_digest(self.token_digest, "tokenDigest")
        check_length(self.reason, 1, 2_000, "reason")
        check_length(self.database_role, 1, 63, "databaseRole")


class CredentialKind(StrEnum):
    """What a caller proved itself with."""

    TOKEN = "token"  # noqa: S105 (a kind, no secret)
    RUN_TOKEN = "run_token"  # noqa: S105
    JWT = "jwt"
    CERTIFICATE = "certificate"
    NONE = ""  # the control plane itself, or an operator beside it


@dataclass(frozen=True, slots=True)
class Principal:
    """Who calls, and what it may do where."""

    name: str  # as audit entries name it
    grants: Mapping[str, frozenset[Role]]  # by project; those of the system project reach every project
    credential: CredentialKind
    run_id: str  # the one run that a run token is for; empty for every other credential
    expire_time: str  # of the credential; empty where the control plane does not know it
    members: tuple[str, ...]  # the names by which role bindings reach it; none for tokens

    @property
    def of_instance(self) -> frozenset[Role]:
        """Its roles in every project."""
        return self.grants.get(SYSTEM_PROJECT, frozenset())

    @property
    def project_id(self) -> str:
        """The only project that it has roles in; the system project where there is none or there are several."""
        return next(iter(self.grants)) if len(self.grants) == 1 else SYSTEM_PROJECT

    def roles(self, project_id: str) -> frozenset[Role]:
        """Its roles in a project, those of the instance included. Without any, the project does not exist for it."""
        return self.of_instance | self.grants.get(project_id, frozenset())

    @property
    def all_roles(self) -> frozenset[Role]:
        """Its roles wherever it has some."""
        return frozenset().union(*self.grants.values())


def principal_of(name: str, role: Role, project_id: str) -> Principal:
    """A principal with one role in one project."""
    return Principal(name, {project_id: frozenset({role})}, CredentialKind.NONE, "", "", ())


def check_token_scope(project_id: str, token: Token) -> None:
    """Refuses an instance role outside the system project, and any other role inside it."""
    check_role_scope(project_id, token.role, "token.role")


def check_role_scope(project_id: str, role: Role, field: str) -> None:
    """Refuses an instance role outside the system project, and any other role inside it."""
    if role.of_instance != (project_id == SYSTEM_PROJECT):
        raise invalid(field, f"is {role}: instance roles belong to the project {SYSTEM_PROJECT!r}, others elsewhere")


class Scope(StrEnum):
    """Where a caller needs one of a method's roles."""

    ANYWHERE = "anywhere"  # in any project: the method answers of what the caller sees
    PROJECT = "project"  # in the project that the request names
    INSTANCE = "instance"  # in the system project


@dataclass(frozen=True, slots=True)
class Rule:
    """Who may call a method. Without roles it is public: no credential is asked for."""

    roles: frozenset[Role]
    scope: Scope
    run_token: bool  # whether a token of one run may, too; if the request names a run, of that run only


_ADMINISTER = frozenset({Role.ADMIN, Role.INSTANCE_ADMIN})
_OPERATE = frozenset({Role.ADMIN, Role.OPERATOR, Role.INSTANCE_ADMIN})
_REPORT = frozenset({Role.ADMIN, Role.RUNTIME, Role.INSTANCE_ADMIN})
_READ = frozenset(Role)
_AUDIT = frozenset({Role.ADMIN, Role.AUDITOR, Role.INSTANCE_ADMIN, Role.INSTANCE_AUDITOR})
_BROWSE = _READ - {Role.RUNTIME}  # a runtime reads what its run needs, no more


def _of_project(roles: frozenset[Role]) -> Rule:
    return Rule(roles, Scope.PROJECT, run_token=False)


def _of_run(roles: frozenset[Role]) -> Rule:
    """What the steps of a run need: its reports, its own state, and what it binds."""
    return Rule(roles, Scope.PROJECT, run_token=True)


PUBLIC = Rule(frozenset(), Scope.ANYWHERE, run_token=True)

METHODS: dict[str, Rule] = {
    "animus.v1.ProjectService/CreateProject": Rule(frozenset({Role.INSTANCE_ADMIN}), Scope.INSTANCE, run_token=False),
    "animus.v1.ProjectService/GetProject": _of_project(_READ),
    "animus.v1.ProjectService/ListProjects": Rule(_READ, Scope.ANYWHERE, run_token=False),
    "animus.v1.AccessService/CreateToken": _of_project(_ADMINISTER),
    "animus.v1.DatasetService/CreateDataset": _of_project(_OPERATE),
    "animus.v1.DatasetService/GetDataset": _of_run(_READ),
    "animus.v1.DatasetService/ListDatasets": _of_project(_BROWSE),
    "animus.v1.DatasetService/RegisterDatasetVersion": _of_project(_OPERATE),
    "animus.v1.DatasetService/GetDatasetVersion": _of_run(_READ),
    "animus.v1.DatasetService/ListDatasetVersions": _of_project(_BROWSE),
    "animus.v1.DatasetService/SetDatasetVersionUris": _of_project(_OPERATE),
    # Whoever reads the data may say what it found.
    "animus.v1.DatasetService/VerifyDatasetVersion": _of_project(_OPERATE | _REPORT),
    "animus.v1.DatasetService/ListDatasetVerifications": _of_project(_BROWSE),
    "animus.v1.EnvironmentService/RegisterEnvironmentLock": _of_project(_OPERATE),
    "animus.v1.EnvironmentService/GetEnvironmentLock": _of_run(_READ),
    "animus.v1.EnvironmentService/ListEnvironmentLocks": _of_project(_BROWSE),
    "animus.v1.PipelineService/RegisterPipelineSpec": _of_project(_OPERATE),
    "animus.v1.PipelineService/ValidatePipelineSpec": _of_project(_BROWSE),
    "animus.v1.PipelineService/GetPipelineSpec": _of_run(_READ),
    "animus.v1.PipelineService/ListPipelineSpecs": _of_project(_BROWSE),
    "animus.v1.RunService/CreateRun": _of_project(_OPERATE),
    "animus.v1.RunService/CreateRunOverridingGates": _of_project(_ADMINISTER),
    "animus.v1.RunService/ListAdmissionRefusals": _of_project(_BROWSE),
    "animus.v1.RunService/ReplayRun": _of_project(_OPERATE),
    "animus.v1.RunService/CompareRuns": _of_project(_OPERATE),
    "animus.v1.RunService/GetRun": _of_run(_READ),
    "animus.v1.RunService/ListRuns": _of_project(_READ),
    "animus.v1.RunService/PlanRun": _of_project(_OPERATE),
    "animus.v1.RunService/GetPlan": _of_run(_READ),
    "animus.v1.RunService/DryRun": _of_project(_BROWSE),
    "animus.v1.RunService/CancelRun": _of_project(_OPERATE),
    "animus.v1.RunService/ListStepAttempts": _of_run(_READ),
    "animus.v1.RunService/ListArtifacts": _of_run(_READ),
    "animus.v1.RunService/ListMetrics": _of_run(_READ),
    "animus.v1.RuntimeService/ReportStepEvents": _of_run(_REPORT),
    "animus.v1.RuntimeService/RegisterArtifacts": _of_run(_REPORT),
    "animus.v1.RuntimeService/RecordMetrics": _of_run(_REPORT),
    "animus.v1.AuditService/ListAuditEntries": _of_project(_AUDIT),
    "animus.v1.AuditService/GetAuditEntry": _of_project(_AUDIT),
    "animus.v1.AuditService/TailAuditEntries": _of_project(_AUDIT),
    "animus.v1.AuditService/ExportAuditEntries": _of_project(_AUDIT),
    # Hashes and signatures tell nothing of what was logged; whoever has a receipt may have it proven.
    "animus.v1.LogService/GetLog": _of_run(_READ),
    "animus.v1.LogService/GetCheckpoint": _of_run(_READ),
    "animus.v1.LogService/ListCheckpoints": _of_run(_READ),
    "animus.v1.LogService/GetInclusionProof": _of_run(_READ),
    "animus.v1.LogService/WaitForInclusion": _of_run(_READ),
    "animus.v1.LogService/GetConsistencyProof": _of_run(_READ),
    "animus.v1.LogService/GetTile": _of_run(_READ),
    "animus.v1.LogService/GetEntryBundle": _of_project(_AUDIT),
    "animus.v1.LogService/AddCosignatures": _of_project(_AUDIT),
    "animus.v1.LineageService/GetLineage": _of_project(_BROWSE),
    "animus.v1.LineageService/GetImpact": _of_project(_BROWSE),
    "animus.v1.LineageService/ExportProv": _of_project(_BROWSE),
    "animus.v1.LineageService/ExportOpenLineage": _of_project(_READ),
    "animus.v1.LineageService/RecordOpenLineageEvent": _of_project(_OPERATE | _REPORT),
    "animus.v1.LineageService/ListExternalRuns": _of_project(_BROWSE),
    "animus.v1.LineageService/ListExternalEvents": _of_project(_BROWSE),
    "animus.v1.EvidenceService/ExportEvidence": _of_project(_AUDIT),
    "animus.v1.QualityService/RegisterQualityRule": _of_project(_OPERATE),
    "animus.v1.QualityService/GetQualityRule": _of_project(_READ),
    "animus.v1.QualityService/ListQualityRules": _of_project(_BROWSE),
    # Whoever reads the data may say what it measured, and ask for the verdict.
    "animus.v1.QualityService/RegisterQualityProfile": _of_project(_OPERATE | _REPORT),
    "animus.v1.QualityService/GetQualityProfile": _of_project(_READ),
    "animus.v1.QualityService/ListQualityProfiles": _of_project(_BROWSE),
    "animus.v1.QualityService/EvaluateQuality": _of_project(_OPERATE | _REPORT),
    "animus.v1.QualityService/RecordForeignEvaluation": _of_project(_OPERATE | _REPORT),
    "animus.v1.QualityService/GetQualityEvaluation": _of_project(_READ),
    "animus.v1.QualityService/ListQualityEvaluations": _of_project(_BROWSE),
    "animus.v1.QualityGateService/SetQualityGate": _of_project(_ADMINISTER),
    "animus.v1.QualityGateService/GetQualityGate": _of_project(_READ),
    "animus.v1.QualityGateService/ListQualityGates": _of_project(_BROWSE),
    "grpc.health.v1.Health/Check": PUBLIC,
    "grpc.health.v1.Health/List": PUBLIC,
    "grpc.health.v1.Health/Watch": PUBLIC,
    "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": PUBLIC,
}
