"""Access: roles, the one table of which role may call which method, and API tokens.

The server refuses to start when a method that it serves has no row here.
"""

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

from animus.domain.errors import invalid
from animus.domain.names import SYSTEM_PROJECT, check_digest, check_resource_id, check_time

TOKEN = re.compile(r"animus_([a-z](?:[a-z0-9-]{0,61}[a-z0-9])?)_[A-Za-z0-9_-]{43}")
MAX_TOKEN_DAYS = 400


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
class Principal:
    """Who calls: the name, the role, and the project whose token it is; the system project for instance roles."""

    name: str
    role: Role
    project_id: str

    def sees(self, project_id: str) -> bool:
        """Whether the project exists for this caller at all."""
        return self.role.of_instance or self.project_id == project_id


def check_token_scope(project_id: str, token: Token) -> None:
    """Refuses an instance role outside the system project, and any other role inside it."""
    if token.role.of_instance != (project_id == SYSTEM_PROJECT):
        raise invalid(
            "token.role", f"is {token.role}: instance roles belong to the project {SYSTEM_PROJECT!r}, others elsewhere"
        )


PUBLIC: frozenset[Role] = frozenset()  # no token is asked for

_ADMINISTER = frozenset({Role.ADMIN, Role.INSTANCE_ADMIN})
_OPERATE = frozenset({Role.ADMIN, Role.OPERATOR, Role.INSTANCE_ADMIN})
_REPORT = frozenset({Role.ADMIN, Role.RUNTIME, Role.INSTANCE_ADMIN})
_READ = frozenset(Role)
_AUDIT = frozenset({Role.ADMIN, Role.AUDITOR, Role.INSTANCE_ADMIN, Role.INSTANCE_AUDITOR})
_BROWSE = _READ - {Role.RUNTIME}  # a runtime reads what its run needs, no more

METHODS: dict[str, frozenset[Role]] = {
    "animus.v1.ProjectService/CreateProject": frozenset({Role.INSTANCE_ADMIN}),
    "animus.v1.ProjectService/GetProject": _READ,
    "animus.v1.ProjectService/ListProjects": _READ,
    "animus.v1.AccessService/CreateToken": _ADMINISTER,
    "animus.v1.DatasetService/CreateDataset": _OPERATE,
    "animus.v1.DatasetService/GetDataset": _READ,
    "animus.v1.DatasetService/ListDatasets": _BROWSE,
    "animus.v1.DatasetService/RegisterDatasetVersion": _OPERATE,
    "animus.v1.DatasetService/GetDatasetVersion": _READ,
    "animus.v1.DatasetService/ListDatasetVersions": _BROWSE,
    "animus.v1.DatasetService/VerifyDatasetVersion": _OPERATE | _REPORT,  # whoever reads the data may say what it found
    "animus.v1.DatasetService/ListDatasetVerifications": _BROWSE,
    "animus.v1.EnvironmentService/RegisterEnvironmentLock": _OPERATE,
    "animus.v1.EnvironmentService/GetEnvironmentLock": _READ,
    "animus.v1.EnvironmentService/ListEnvironmentLocks": _BROWSE,
    "animus.v1.PipelineService/RegisterPipelineSpec": _OPERATE,
    "animus.v1.PipelineService/ValidatePipelineSpec": _BROWSE,
    "animus.v1.PipelineService/GetPipelineSpec": _READ,
    "animus.v1.PipelineService/ListPipelineSpecs": _BROWSE,
    "animus.v1.RunService/CreateRun": _OPERATE,
    "animus.v1.RunService/CreateRunOverridingGates": _ADMINISTER,
    "animus.v1.RunService/ListAdmissionRefusals": _BROWSE,
    "animus.v1.RunService/ReplayRun": _OPERATE,
    "animus.v1.RunService/CompareRuns": _OPERATE,
    "animus.v1.RunService/GetRun": _READ,
    "animus.v1.RunService/ListRuns": _READ,
    "animus.v1.RunService/PlanRun": _OPERATE,
    "animus.v1.RunService/GetPlan": _READ,
    "animus.v1.RunService/DryRun": _BROWSE,
    "animus.v1.RunService/CancelRun": _OPERATE,
    "animus.v1.RunService/ListStepAttempts": _READ,
    "animus.v1.RunService/ListArtifacts": _READ,
    "animus.v1.RunService/ListMetrics": _READ,
    "animus.v1.RuntimeService/ReportStepEvents": _REPORT,
    "animus.v1.RuntimeService/RegisterArtifacts": _REPORT,
    "animus.v1.RuntimeService/RecordMetrics": _REPORT,
    "animus.v1.AuditService/ListAuditEntries": _AUDIT,
    "animus.v1.AuditService/GetAuditEntry": _AUDIT,
    "animus.v1.AuditService/TailAuditEntries": _AUDIT,
    "animus.v1.AuditService/ExportAuditEntries": _AUDIT,
    # Hashes and signatures tell nothing of what was logged; whoever has a receipt may have it proven.
    "animus.v1.LogService/GetLog": _READ,
    "animus.v1.LogService/GetCheckpoint": _READ,
    "animus.v1.LogService/ListCheckpoints": _READ,
    "animus.v1.LogService/GetInclusionProof": _READ,
    "animus.v1.LogService/WaitForInclusion": _READ,
    "animus.v1.LogService/GetConsistencyProof": _READ,
    "animus.v1.LogService/GetTile": _READ,
    "animus.v1.LogService/GetEntryBundle": _AUDIT,
    "animus.v1.LogService/AddCosignatures": _AUDIT,
    "animus.v1.LineageService/GetLineage": _BROWSE,
    "animus.v1.LineageService/GetImpact": _BROWSE,
    "animus.v1.EvidenceService/ExportEvidence": _AUDIT,
    "animus.v1.QualityService/RegisterQualityRule": _OPERATE,
    "animus.v1.QualityService/GetQualityRule": _READ,
    "animus.v1.QualityService/ListQualityRules": _BROWSE,
    # Whoever reads the data may say what it measured, and ask for the verdict.
    "animus.v1.QualityService/RegisterQualityProfile": _OPERATE | _REPORT,
    "animus.v1.QualityService/GetQualityProfile": _READ,
    "animus.v1.QualityService/ListQualityProfiles": _BROWSE,
    "animus.v1.QualityService/EvaluateQuality": _OPERATE | _REPORT,
    "animus.v1.QualityService/RecordForeignEvaluation": _OPERATE | _REPORT,
    "animus.v1.QualityService/GetQualityEvaluation": _READ,
    "animus.v1.QualityService/ListQualityEvaluations": _BROWSE,
    "animus.v1.QualityGateService/SetQualityGate": _ADMINISTER,
    "animus.v1.QualityGateService/GetQualityGate": _READ,
    "animus.v1.QualityGateService/ListQualityGates": _BROWSE,
    "grpc.health.v1.Health/Check": PUBLIC,
    "grpc.health.v1.Health/List": PUBLIC,
    "grpc.health.v1.Health/Watch": PUBLIC,
    "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": PUBLIC,
}
