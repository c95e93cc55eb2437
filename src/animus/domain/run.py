"""RunSpec, the unit of determinism; the run that is made of it; and the decision to let it in."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

from animus.domain import document
from animus.domain.document import MAX_INTEGER, Violations
from animus.domain.errors import invalid
from animus.domain.labels import Label, sorted_labels
from animus.domain.names import (
    COMMIT,
    DECIMAL,
    INTEGER,
    METRIC_NAME,
    PARAMETER_NAME,
    RANDOM_ID,
    REPOSITORY,
    check_count,
    check_decimal,
    check_digest,
    check_length,
    check_pattern,
    check_resource_id,
    check_time,
    check_within,
    dataset_version_name,
    environment_lock_name,
    pipeline_spec_name,
    sorted_set,
)
from animus.domain.pipeline import MAX_ATTEMPTS, PipelineSpec, check_header
from animus.domain.quality import QualityVerdict
from animus.domain.quality_gate import QualityGate, QualityRequirement

MAX_PARAMETERS = 1_000
MAX_BINDINGS = 10_000
MAX_GATE_CHECKS = 10_000
MAX_EQUAL_RUNS = 10


class ParameterType(StrEnum):
    """What a parameter's value spells."""

    STRING = "string"
    INT = "int"
    BOOL = "bool"
    DECIMAL = "decimal"


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of a run; its value in the one spelling of its type."""

    name: str
    type: ParameterType
    value: str  # at most 32,768 characters

    def __post_init__(self) -> None:
        check_pattern(
            PARAMETER_NAME, self.name, "name", "is no parameter name: [A-Za-z_][A-Za-z0-9_.-]*, at most 255 characters"
        )
        check_length(self.value, 0, 32_768, "value")
        if self.type is ParameterType.INT:
            check_pattern(INTEGER, self.value, "value", "is no integer without '+' or needless zeros")
        elif self.type is ParameterType.BOOL and self.value not in ("true", "false"):
            raise invalid("value", "is neither 'true' nor 'false'")
        elif self.type is ParameterType.DECIMAL:
            check_pattern(DECIMAL, self.value, "value", "is no decimal without exponent, '+' or needless zeros")


@dataclass(frozen=True, slots=True)
class DatasetBinding:
    """Binds a dataset_ref of the pipeline to one dataset version."""

    dataset_ref: str
    dataset_id: str
    content_digest: str

    def __post_init__(self) -> None:
        check_resource_id(self.dataset_ref, "datasetRef")
        check_resource_id(self.dataset_id, "datasetId")
        check_digest(self.content_digest, "contentDigest")


@dataclass(frozen=True, slots=True)
class Commit:
    """A commit of a source repository."""

    repository: str  # opaque, 1 to 500 printable ASCII characters
    sha: str  # the full hash

    def __post_init__(self) -> None:
        check_pattern(
            REPOSITORY, self.repository, "repository", "is no repository: 1 to 500 printable ASCII characters, no space"
        )
        check_pattern(
            COMMIT,
            self.sha,
            "sha",
            "is no full commit hash: give 40 or 64 lower-case hexadecimal digits, not a short hash or a branch",
        )


@dataclass(frozen=True, slots=True)
class RunSpec:
    """Everything that decides what a run computes, by digest. Bindings and parameters are sets."""

    SCHEMA: ClassVar[str] = "animus.run_spec/v1"

    api_version: str
    kind: str
    pipeline_spec_digest: str
    datasets: tuple[DatasetBinding, ...]
    commit: Commit
    environment_lock_digest: str
    parameters: tuple[Parameter, ...]

    def __post_init__(self) -> None:
        check_header(self.api_version, self.kind, "Run")
        check_digest(self.pipeline_spec_digest, "pipelineSpecDigest")
        check_count(self.datasets, 0, MAX_BINDINGS, "datasets")
        check_digest(self.environment_lock_digest, "environmentLockDigest")
        check_count(self.parameters, 0, MAX_PARAMETERS, "parameters")
        object.__setattr__(
            self, "datasets", sorted_set(self.datasets, lambda b: b.dataset_ref, "datasets", "datasetRef")
        )
        object.__setattr__(self, "parameters", sorted_set(self.parameters, lambda p: p.name, "parameters", "name"))


def load_run_spec(text: bytes) -> RunSpec:
    """The spec that YAML or JSON text describes. Raises Invalid with the path of every field at fault."""
    return document.from_tree(document.parse_text(text), RunSpec)


def check_bindings(spec: RunSpec, pipeline: PipelineSpec, sent_order: Iterable[str]) -> None:
    """Refuses a binding that is missing and one that no step refers to.

    `sent_order` has the dataset_refs in the order in which the caller sent them, for the paths of the errors.
    """
    violations = Violations()
    wanted = pipeline.dataset_refs()
    bound = {binding.dataset_ref for binding in spec.datasets}
    for ref in wanted:
        if ref not in bound:
            violations.add("", invalid("datasets", f"have no binding for the dataset_ref {ref!r} of the pipeline"))
    for index, ref in enumerate(sent_order):
        if ref not in wanted:
            violations.add("", invalid(f"datasets[{index}].datasetRef", f"is {ref!r}, which no step refers to"))
    violations.raise_any()


class AdmissionOutcome(StrEnum):
    """What was decided."""

    ADMITTED = "admitted"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class AdmissionCheck:
    """One check: the rule, the full name of what was checked, and the RunSpec field that it hangs on."""

    name: str
    subject: str
    outcome: AdmissionOutcome
    field: str


@dataclass(frozen=True, slots=True)
class AdmissionGateCheck:
    """One requirement of a gate, asked of one binding: the newest verdict there was, and what follows from it."""

    gate_digest: str
    dataset_ref: str
    dataset_id: str
    content_digest: str
    rule_digest: str
    evaluator: str
    evaluation_digest: str  # empty where there is no evaluation
    verdict: QualityVerdict  # NONE where there is no evaluation
    outcome: AdmissionOutcome

    def __post_init__(self) -> None:
        check_digest(self.gate_digest, "gateDigest")
        check_resource_id(self.dataset_ref, "datasetRef")
        check_resource_id(self.dataset_id, "datasetId")
        check_digest(self.content_digest, "contentDigest")
        check_digest(self.rule_digest, "ruleDigest")
        check_resource_id(self.evaluator, "evaluator")
        if self.evaluation_digest:
            check_digest(self.evaluation_digest, "evaluationDigest")
        if (self.verdict is QualityVerdict.NONE) == bool(self.evaluation_digest):
            raise invalid("verdict", "is given exactly where there is an evaluation")
        if self.outcome is not gate_outcome(self.verdict):
            raise invalid("outcome", f"is {self.outcome}, and the verdict is {self.verdict or 'none'}")

    @property
    def key(self) -> tuple[str, ...]:
        """What was asked of what: the order of the checks of a decision."""
        return (
            self.gate_digest,
            self.dataset_ref,
            self.dataset_id,
            self.content_digest,
            self.rule_digest,
            self.evaluator,
        )


def gate_outcome(verdict: QualityVerdict) -> AdmissionOutcome:
    """What a gate makes of the newest verdict: PASS and WARN let in."""
    passed = verdict in (QualityVerdict.PASS, QualityVerdict.WARN)
    return AdmissionOutcome.ADMITTED if passed else AdmissionOutcome.REFUSED


@dataclass(frozen=True, slots=True)
class AdmissionDecision:
    """Why a run was let in or refused. Gates and their checks are sets."""

    outcome: AdmissionOutcome
    checks: tuple[AdmissionCheck, ...]
    gates: tuple[str, ...]  # digests of the gates that apply, those without requirements too
    gate_checks: tuple[AdmissionGateCheck, ...]
    override_reason: str  # why an admin let the run in that a gate refuses; empty where none was overridden

    def __post_init__(self) -> None:
        for index, gate in enumerate(self.gates):
            check_digest(gate, f"gates[{index}]")
        object.__setattr__(self, "gates", sorted_set(self.gates, str, "gates", ""))
        check_count(self.gate_checks, 0, MAX_GATE_CHECKS, "gateChecks")
        # No part of the key holds a space, which is below all that they may hold.
        checks = sorted_set(self.gate_checks, lambda check: " ".join(check.key), "gateChecks", "")
        object.__setattr__(self, "gate_checks", checks)
        check_length(self.override_reason, 0, 2_000, "overrideReason")
        if self.override_reason and not self.refused_by_gates():
            raise invalid("overrideReason", "is given, and no gate refuses")
        if self.outcome is not self._follows():
            raise invalid("outcome", f"is {self.outcome}, and the checks come to {self._follows()}")

    def _follows(self) -> AdmissionOutcome:
        gates_pass = bool(self.override_reason) or not self.refused_by_gates()
        return AdmissionOutcome.ADMITTED if gates_pass and not self.refused() else AdmissionOutcome.REFUSED

    def refused(self) -> tuple[AdmissionCheck, ...]:
        """The checks that keep the run out, those of gates apart."""
        return tuple(check for check in self.checks if check.outcome is AdmissionOutcome.REFUSED)

    def refused_by_gates(self) -> tuple[AdmissionGateCheck, ...]:
        """The checks of gates that did not pass, overridden or not."""
        return tuple(check for check in self.gate_checks if check.outcome is AdmissionOutcome.REFUSED)

    def evaluations(self) -> tuple[str, ...]:
        """Digests of the evaluations that the checks of gates rest on, sorted."""
        return tuple(sorted({check.evaluation_digest for check in self.gate_checks} - {""}))


# For dataset, content, rule and evaluator, the newest evaluation by (evaluate_time, digest): its digest and verdict.
NewestVerdicts = Mapping[tuple[str, str, str, str], tuple[str, QualityVerdict]]


@dataclass(frozen=True, slots=True)
class GateFacts:
    """The gates that govern a run, by their digests, and the newest verdicts that they ask for, of one moment."""

    gates: Mapping[str, QualityGate]
    newest: NewestVerdicts

    def checks(self, spec: RunSpec) -> tuple[AdmissionGateCheck, ...]:
        """Each requirement of each gate asked of each binding that it is about. Raises Invalid beyond 10,000."""
        by_dataset: dict[str, list[DatasetBinding]] = {}
        for binding in spec.datasets:
            by_dataset.setdefault(binding.dataset_id, []).append(binding)
        by_ref = {binding.dataset_ref: [binding] for binding in spec.datasets}
        found = []
        for digest, gate in self.gates.items():
            for requirement in gate.requirements:
                bindings: Iterable[DatasetBinding] = spec.datasets
                if requirement.dataset_ref:
                    bindings = by_ref.get(requirement.dataset_ref, ())
                elif requirement.dataset_id:
                    bindings = by_dataset.get(requirement.dataset_id, ())
                found += [self._check(digest, requirement, b) for b in bindings if requirement.asks_of(b.dataset_id)]
                if len(found) > MAX_GATE_CHECKS:
                    raise invalid("datasets", f"are more than {MAX_GATE_CHECKS} checks of gates")
        return tuple({check.key: check for check in found}.values())  # two requirements may ask the same of a binding

    def _check(self, gate_digest: str, requirement: QualityRequirement, binding: DatasetBinding) -> AdmissionGateCheck:
        key = (binding.dataset_id, binding.content_digest, requirement.rule_digest, requirement.evaluator)
        evaluation_digest, verdict = self.newest.get(key, ("", QualityVerdict.NONE))
        return AdmissionGateCheck(
            gate_digest, binding.dataset_ref, *key, evaluation_digest, verdict, gate_outcome(verdict)
        )


NO_GATES = GateFacts({}, {})


def admit(
    project_id: str,
    spec: RunSpec,
    *,
    pipeline_registered: bool,
    environment_registered: bool,
    versions_registered: frozenset[tuple[str, str]],
    gates: GateFacts,
    override_reason: str,
) -> AdmissionDecision:
    """Decides on a RunSpec: each binding names something of the project, and each dataset passed the gates.

    `versions_registered` holds (dataset id, content digest). Checks are ordered by name and subject. A reason lets a
    run in that only gates refuse; where none does, or one does not allow it, it is left out of the decision. Raises
    Invalid for a run of more than 10,000 checks of gates.
    """

    def checked(name: str, subject: str, passed: bool, field: str) -> AdmissionCheck:
        return AdmissionCheck(name, subject, AdmissionOutcome.ADMITTED if passed else AdmissionOutcome.REFUSED, field)

    checks = [
        checked(
            "pipeline-spec-registered",
            pipeline_spec_name(project_id, spec.pipeline_spec_digest),
            pipeline_registered,
            "pipelineSpecDigest",
        ),
        checked(
            "environment-lock-registered",
            environment_lock_name(project_id, spec.environment_lock_digest),
            environment_registered,
            "environmentLockDigest",
        ),
        *(
            checked(
                "dataset-version-registered",
                dataset_version_name(project_id, binding.dataset_id, binding.content_digest),
                (binding.dataset_id, binding.content_digest) in versions_registered,
                f"datasets[{binding.dataset_ref}]",
            )
            for binding in spec.datasets
        ),
    ]
    checks.sort(key=lambda check: (check.name, check.subject, check.field))
    gate_checks = gates.checks(spec)
    refusing = {check.gate_digest for check in gate_checks if check.outcome is AdmissionOutcome.REFUSED}
    reason = override_reason if refusing and all(gates.gates[gate].override_allowed for gate in refusing) else ""
    passed = all(check.outcome is AdmissionOutcome.ADMITTED for check in checks) and (not refusing or bool(reason))
    return AdmissionDecision(
        AdmissionOutcome.ADMITTED if passed else AdmissionOutcome.REFUSED,
        tuple(checks),
        tuple(gates.gates),
        gate_checks,
        reason,
    )


@dataclass(frozen=True, slots=True)
class AdmissionRefusal:
    """A run that gates refused, as it is recorded. The RunSpec is not kept."""

    SCHEMA: ClassVar[str] = "animus.admission_refusal/v1"

    run_spec_digest: str
    pipeline_spec_digest: str
    replay_of: str  # id of the run that was to be replayed; empty for none
    decision: AdmissionDecision
    refuse_time: str  # the database's time of the decision

    def __post_init__(self) -> None:
        check_digest(self.run_spec_digest, "runSpecDigest")
        check_digest(self.pipeline_spec_digest, "pipelineSpecDigest")
        if self.replay_of:
            check_random_id(self.replay_of, "replayOf")
        if self.decision.outcome is not AdmissionOutcome.REFUSED:
            raise invalid("decision.outcome", f"is {self.decision.outcome}")
        check_time(self.refuse_time, "refuseTime")


@dataclass(frozen=True, slots=True)
class Run:
    """A run as it is recorded: which RunSpec, why it was let in. Its state is derived, never recorded here."""

    SCHEMA: ClassVar[str] = "animus.run/v1"

    run_id: str
    run_spec_digest: str
    create_time: str  # the database's time of the transaction
    labels: tuple[Label, ...]
    admission: AdmissionDecision
    replay_of: str  # id of the run that it replays; empty for none

    def __post_init__(self) -> None:
        check_random_id(self.run_id, "runId")
        check_digest(self.run_spec_digest, "runSpecDigest")
        check_time(self.create_time, "createTime")
        if self.replay_of:
            check_random_id(self.replay_of, "replayOf")
        object.__setattr__(self, "labels", sorted_labels(self.labels))


def check_random_id(value: str, field: str) -> None:
    """32 lower-case hexadecimal digits."""
    check_pattern(RANDOM_ID, value, field, "is no id: give 32 lower-case hexadecimal digits")


def check_attempt(step: str, attempt: int) -> None:
    """The fields that name an attempt within a run."""
    check_resource_id(step, "step")
    check_within(attempt, 1, MAX_ATTEMPTS, "attempt")


@dataclass(frozen=True, slots=True)
class Artifact:
    """An output of a step attempt, by digest."""

    SCHEMA: ClassVar[str] = "animus.artifact/v1"

    run_id: str
    step: str
    attempt: int
    name: str
    digest: str
    size_bytes: int
    uri: str  # opaque, 0 to 2,000 characters

    def __post_init__(self) -> None:
        check_random_id(self.run_id, "runId")
        check_attempt(self.step, self.attempt)
        check_resource_id(self.name, "name")
        check_digest(self.digest, "digest")
        check_within(self.size_bytes, 0, MAX_INTEGER, "sizeBytes")
        check_length(self.uri, 0, 2_000, "uri")


@dataclass(frozen=True, slots=True)
class Metric:
    """A point of a metric series of a step attempt."""

    SCHEMA: ClassVar[str] = "animus.metric/v1"

    run_id: str
    step: str
    attempt: int
    name: str
    index: int  # place in the series
    value: str  # decimal, at most 400 characters
    occur_time: str  # as the runtime claims

    def __post_init__(self) -> None:
        check_random_id(self.run_id, "runId")
        check_attempt(self.step, self.attempt)
        check_pattern(
            METRIC_NAME, self.name, "name", "is no metric name: [A-Za-z_][A-Za-z0-9_./-]*, at most 255 characters"
        )
        check_within(self.index, 0, MAX_INTEGER, "index")
        check_decimal(self.value, "value", most=400)
        check_time(self.occur_time, "occurTime")
