"""Valid values of every kind of document for Hypothesis, and one full sample of each.

A value is made from a seed that Hypothesis draws: hundreds of large values cost less than a second that way. A
counterexample is printed whole, and not made smaller.
"""

import base64
import bisect
import dataclasses
import importlib
import pkgutil
import random
import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Any, TypeVar

import pytest
import yaml
from google.protobuf.message import Message
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

import animus.domain
from animus.domain import document
from animus.domain.access import (
    BreakGlass,
    Role,
    RoleBinding,
    RunToken,
    ServiceAccount,
    ServiceAccountEnd,
    Token,
    TokenRevocation,
)
from animus.domain.audit import AuditEntry, AuditOutcome, AuditRecord, AuditRefusal, RecordManifest
from animus.domain.comparison import ComparisonVerdict, OutputComparison, RunComparison, StepComparison
from animus.domain.dataset import (
    UNKNOWN,
    Column,
    Dataset,
    DatasetVerification,
    DatasetVersion,
    DatasetVersionId,
    DatasetVersionUris,
    File,
    FileManifest,
)
from animus.domain.document import MAX_INTEGER, json_name
from animus.domain.dry_run import Difference
from animus.domain.environment import Accelerator, EnvironmentLock, Image, Package
from animus.domain.errors import Invalid, Violation
from animus.domain.evidence import AttemptSummary, Evidence, OutputSummary, RunSummary, StepSummary
from animus.domain.external_lineage import ExternalDataset, ExternalEvent, ExternalEventType
from animus.domain.labels import Label
from animus.domain.lineage import LineageEdge, LineageRelation
from animus.domain.log import MAX_SIZE, Cosignature, LogEpoch, LogForfeit, LogKey, LogKeyEnd, LogKeyStatus
from animus.domain.names import INSTANCE_LOG, format_time
from animus.domain.pipeline import (
    ArtifactInput,
    ArtifactOutput,
    Backoff,
    BackoffType,
    DatasetInput,
    Dependency,
    EnvVar,
    ErrorKind,
    PipelineGraph,
    PipelineMetadata,
    PipelineSpec,
    Resources,
    RetryKind,
    RetryPolicy,
    Step,
    StepInputs,
    StepOutputs,
)
from animus.domain.plan import ExecutionPlan, make_plan
from animus.domain.project import Project
from animus.domain.quality import (
    CHECK_FIELDS,
    ColumnProfile,
    QualityCheck,
    QualityCheckType,
    QualityEvaluation,
    QualityMeasure,
    QualityMeasureKind,
    QualityMetric,
    QualityOutcome,
    QualityProfile,
    QualityResult,
    QualityRule,
    QualitySeverity,
    QualityValueCount,
    QualityVerdict,
    verdict_of,
)
from animus.domain.quality_gate import QualityGate, QualityRequirement
from animus.domain.run import (
    AdmissionDecision,
    AdmissionOutcome,
    AdmissionRefusal,
    Artifact,
    Commit,
    DatasetBinding,
    GateFacts,
    Metric,
    Parameter,
    ParameterType,
    Run,
    RunSpec,
    admit,
)
from animus.domain.state import (
    AttemptState,
    RunEvent,
    RunEventType,
    RunState,
    StepEvent,
    StepEventType,
    StepState,
)

LAW = settings(max_examples=50, deadline=None)

ONE = "sha256:" + "1" * 64
TWO = "sha256:" + "2" * 64
TIME = "2026-01-02T03:04:05.678901Z"
RUN_ID = "0123456789abcdef" * 2
PUBLIC_KEY = base64.b64encode(bytes(range(32))).decode()
IMAGE = f"registry.test/a/b:1@{ONE}"

T = TypeVar("T")
Rng = random.Random

# Characters that differ in UTF-8, UTF-16, YAML or JSON, some that must be escaped, and plain ones.
LETTERS = "ab \t\n\"\\/'#:-~é\u00a0\u2028\u202e\ufeff\ufffd😂"
IDS = ["a", "a-b", "ab", "b", "b1", "b10", "b2", "c", "d", "e", "z" * 63]


def generated(make: Callable[[Rng], T]) -> SearchStrategy[T]:
    """The values that a function makes from random numbers."""
    return st.integers(0, 2**64 - 1).map(lambda seed: make(random.Random(seed)))


def some(rng: Rng, make: Callable[[Rng], T], *, least: int = 0, most: int = 3, key: Any = None) -> tuple[T, ...]:
    """A few items, distinct by a key where one is given, in any order."""
    found = [make(rng) for _ in range(rng.randint(least, most))]
    return tuple({key(item): item for item in found}.values()) if key else tuple(found)


def text(rng: Rng, most: int, least: int = 0) -> str:
    """Text of so many characters that a document can carry."""
    letters = (
        [chr(rng.choice((rng.randint(0xA0, 0xD7FF), rng.randint(0xE000, 0x10FFFF))))] if rng.random() < 0.5 else []
    )
    return "".join(rng.choice(LETTERS) for _ in range(rng.randint(least, min(most, 8) - len(letters)))) + "".join(
        letters
    )


def name(rng: Rng) -> str:
    """A resource id."""
    return rng.choice(IDS) if rng.random() < 0.5 else f"x{rng.choice('a-0')}{rng.randint(0, 99)}"


def digest(rng: Rng) -> str:
    """Any digest."""
    return f"sha256:{rng.getrandbits(256):064x}"


def random_id(rng: Rng) -> str:
    """Any id that a server might choose."""
    return f"{rng.getrandbits(128):032x}"


def time(rng: Rng) -> str:
    """Any time that can be written."""
    if rng.random() < 0.1:
        return rng.choice(["0001-01-01T00:00:00.000000Z", "9999-12-31T23:59:59.999999Z", "2000-02-29T00:00:00.000001Z"])
    return format_time(datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=rng.randint(-(10**16), 10**17)))


def printable(rng: Rng) -> str:
    """Printable ASCII without space."""
    return "".join(chr(rng.randint(0x21, 0x7E)) for _ in range(rng.randint(1, 12)))


def size(rng: Rng) -> int:
    """Any number of bytes."""
    return rng.choice([0, 1, MAX_INTEGER, rng.randint(0, MAX_INTEGER)])


def decimal(rng: Rng) -> str:
    """A decimal in its one spelling."""
    return rng.choice(["0", "-0.5", "12.25", "7", "-3", "0.001", "9" * 40])


def labels(rng: Rng) -> tuple[Label, ...]:
    """Labels in any order."""
    return some(rng, lambda r: Label(r.choice(["a", "team", "a.b/c", "0_1"]), text(r, 255)), key=lambda each: each.key)


def manifest(rng: Rng) -> FileManifest:
    """Files in any order."""
    paths = ["a", "a/b", "ä.csv", "data/part-1", "data/part-10", "data/part-2", "😂"]
    found = rng.sample(paths, rng.randint(1, len(paths)))
    return FileManifest(tuple(File(path, rng.randint(0, 10**12), digest(rng)) for path in found))


def dataset_version(rng: Rng) -> DatasetVersion:
    """A version of one file, or of a manifest."""
    files = manifest(rng) if rng.random() < 0.5 else None
    return DatasetVersion(
        dataset_id=name(rng),
        content_digest=document.digest(document.dump(files)) if files else digest(rng),
        size_bytes=files.size_bytes if files else size(rng),
        media_type=rng.choice(["text/csv", "application/vnd.apache.parquet"]),
        row_count=rng.choice([UNKNOWN, size(rng)]),
        source=text(rng, 2_000),
        licence=rng.choice(["", "MIT", "(Apache-2.0 OR GPL-2.0+) AND LicenseRef-x"]),
        labels=labels(rng),
        columns=some(rng, lambda r: Column(text(r, 255, 1), text(r, 100, 1)), key=lambda each: each.name),
        files=files.files if files else (),
        derived_from=some(
            rng, lambda r: DatasetVersionId(name(r), digest(r)), key=lambda each: (each.dataset_id, each.content_digest)
        ),
    )


def dataset_version_uris(rng: Rng) -> DatasetVersionUris:
    """Some places, or none any more."""
    uris = some(rng, lambda r: text(r, 2_000, 1), key=lambda each: each)
    return DatasetVersionUris(name(rng), digest(rng), rng.randint(1, MAX_INTEGER), uris)


def dataset_verification(rng: Rng) -> DatasetVerification:
    """A verification of a copy that matched, or of one that did not."""
    expected, other = digest(rng), digest(rng)
    found = rng.choice([expected, other])
    return DatasetVerification(
        name(rng), expected, found, size(rng), text(rng, 2_000), matched=found == expected, verify_time=time(rng)
    )


def environment_lock(rng: Rng) -> EnvironmentLock:
    """A lock of few packages."""
    return EnvironmentLock(
        some(rng, lambda r: Image(f"registry.test/x@{digest(r)}"), key=lambda each: each.reference),
        text(rng, 100),
        text(rng, 100, 1),
        text(rng, 100, 1),
        some(rng, lambda r: Package(r.choice(["a", "a-b", "zope", "0"]), text(r, 100, 1)), key=lambda each: each.name),
        rng.choice(["", digest(rng)]),
        some(rng, lambda r: Accelerator(text(r, 100, 1), r.randint(1, 1_024), text(r, 9, 1)), key=lambda a: a.model),
    )


def retry_policy(rng: Rng) -> RetryPolicy:
    """Up to five attempts."""
    wait = rng.randint(0, 300)
    backoff = (
        Backoff(BackoffType.FIXED, wait, wait, "1")
        if rng.random() < 0.5
        else Backoff(BackoffType.EXPONENTIAL, wait, wait + rng.randint(0, 300), rng.choice(["1", "1.5", "9.999", "10"]))
    )
    return RetryPolicy(rng.randint(1, 5), tuple(rng.sample(list(RetryKind), rng.randint(0, 2))), backoff)


def env_var(rng: Rng) -> EnvVar:
    """Any environment variable, its value here or elsewhere."""
    value, secret_ref = rng.choice([(text(rng, 99), ""), ("", f"{name(rng)}:a/b#c"), ("", "")])
    return EnvVar(rng.choice(["A", "_b", "C1"]), value, secret_ref)


def bare_step(step: str, policy: RetryPolicy, *, inputs: Sequence[tuple[str, str]] = (), outputs: int = 0) -> Step:
    """A step that reads outputs `o0`, `o1`, … of other steps, and writes some."""
    return Step(
        name=step,
        image=IMAGE,
        command=(),
        args=(),
        inputs=StepInputs((), tuple(ArtifactInput(f"i{at}", *each) for at, each in enumerate(inputs))),
        outputs=StepOutputs(tuple(ArtifactOutput(f"o{at}", "file", "text/plain") for at in range(outputs))),
        env=(),
        resources=Resources("1", "1Gi", 0),
        retry_policy=policy,
    )


def graph_of(steps: Sequence[Step], dependencies: Sequence[tuple[str, str]] = ()) -> PipelineSpec:
    """A pipeline of these steps, with edges of (step, the one that it waits for)."""
    edges = tuple(Dependency(*edge) for edge in dependencies)
    return PipelineSpec("animus/v1", "Pipeline", PipelineMetadata("p", "", ()), PipelineGraph(tuple(steps), edges))


def pipeline(rng: Rng) -> PipelineSpec:
    """A pipeline whose steps stand in no order of their names, with declared and implied edges."""
    steps: list[Step] = []
    edges = []
    for step in rng.sample(IDS, rng.randint(1, 6)):
        written = [(each.name, output.name) for each in steps for output in each.outputs.artifacts]
        read = rng.sample(written, min(len(written), rng.randint(0, 2)))
        edges += [(step, rng.choice(steps).name) for _ in range(rng.randint(0, 2)) if steps]
        bare = bare_step(step, retry_policy(rng), inputs=read, outputs=rng.randint(0, 2))
        found = some(rng, lambda r: DatasetInput(name(r), name(r)), most=2, key=lambda each: each.name)
        steps.append(
            dataclasses.replace(
                bare,
                command=some(rng, lambda r: text(r, 20)),
                args=some(rng, lambda r: text(r, 20)),
                inputs=StepInputs(found, bare.inputs.artifacts),
                env=some(rng, env_var, key=lambda each: each.name),
                resources=Resources(rng.choice(["1", "500m"]), rng.choice(["1Mi", "3Gi"]), rng.randint(0, 1_024)),
            )
        )
    graph = graph_of(steps, edges).spec
    metadata = PipelineMetadata(name(rng), text(rng, 2_000), labels(rng))
    return PipelineSpec("animus/v1", "Pipeline", metadata, graph)


def plan(rng: Rng) -> ExecutionPlan:
    """The plan of any pipeline."""
    return make_plan(digest(rng), digest(rng), pipeline(rng))


def parameter(rng: Rng) -> Parameter:
    """A parameter of any type."""
    kind = rng.choice(list(ParameterType))
    values = {
        ParameterType.STRING: text(rng, 99),
        ParameterType.INT: str(rng.randint(-(10**30), 10**30)),
        ParameterType.BOOL: rng.choice(["true", "false"]),
        ParameterType.DECIMAL: decimal(rng),
    }
    return Parameter(rng.choice(["seed", "lr", "_x", "A.b-c"]), kind, values[kind])


def run_spec(rng: Rng) -> RunSpec:
    """A RunSpec with few bindings and parameters."""
    return RunSpec(
        "animus/v1",
        "Run",
        digest(rng),
        some(rng, lambda r: DatasetBinding(name(r), name(r), digest(r)), key=lambda each: each.dataset_ref),
        Commit(printable(rng), rng.choice(["c" * 40, "0123456789abcdef" * 4])),
        digest(rng),
        some(rng, parameter, key=lambda each: each.name),
    )


def quality_gate(rng: Rng) -> QualityGate:
    """A gate that asks for little."""
    requirements = some(
        rng,
        lambda rng: QualityRequirement(
            rng.choice(["", name(rng)]), rng.choice(["", name(rng)]), rng.choice([ONE, digest(rng)]), name(rng)
        ),
        key=lambda each: each.key,
    )
    return QualityGate(rng.choice(["", name(rng)]), requirements, rng.random() < 0.5, time(rng))


def gate_facts(rng: Rng, spec: RunSpec) -> GateFacts:
    """Gates, and verdicts on some of what they ask for."""
    gates = {digest(rng): quality_gate(rng) for _ in range(rng.randint(0, 2))}
    newest = {
        (binding.dataset_id, binding.content_digest, each.rule_digest, each.evaluator): (
            digest(rng), rng.choice([*QualityVerdict][1:])
        )
        for gate in gates.values() for each in gate.requirements for binding in spec.datasets if rng.random() < 0.7
    }  # fmt: skip
    return GateFacts(gates, newest)


def admission(rng: Rng) -> AdmissionDecision:
    """A decision either way."""
    spec = run_spec(rng)
    return admit(
        "p",
        spec,
        pipeline_registered=rng.random() < 0.5,
        environment_registered=rng.random() < 0.5,
        versions_registered=frozenset((each.dataset_id, each.content_digest) for each in spec.datasets),
        gates=gate_facts(rng, spec),
        override_reason=rng.choice(["", "why"]),
    )


def admission_refusal(rng: Rng) -> AdmissionRefusal:
    """A decision against a run."""
    refused = next(each for each in iter(lambda: admission(rng), None) if each.outcome is AdmissionOutcome.REFUSED)
    return AdmissionRefusal(digest(rng), digest(rng), rng.choice(["", random_id(rng)]), refused, time(rng))


def run(rng: Rng) -> Run:
    """A run with a decision either way."""
    decision = admission(rng)
    replay_of = random_id(rng) if rng.random() < 0.5 else ""
    return Run(random_id(rng), digest(rng), time(rng), labels(rng), decision, replay_of)


def output_comparison(rng: Rng) -> OutputComparison:
    """An output that both runs made alike or not, or that one of them or none made."""
    one, other = digest(rng), digest(rng)
    found = rng.choice([(one, one), (one, other), (one, ""), ("", other), ("", "")])
    return OutputComparison(name(rng), name(rng), *found, equal=found[0] != "" and found[0] == found[1])


def run_comparison(rng: Rng) -> RunComparison:
    """A comparison with any verdict."""
    verdict = rng.choice(list(ComparisonVerdict))
    states = list(StepState)
    return RunComparison(
        run_id=random_id(rng),
        other_run_id=random_id(rng),
        verdict=verdict,
        reason=text(rng, 99, 1) if verdict is ComparisonVerdict.INCOMPARABLE else "",
        first_step=name(rng) if verdict is ComparisonVerdict.DIVERGED else "",
        state=rng.choice(list(RunState)),
        other_state=rng.choice(list(RunState)),
        differences=some(rng, lambda r: Difference(printable(r), text(r, 99), text(r, 99)), key=lambda d: d.path),
        plan_digest=rng.choice(["", digest(rng)]),
        other_plan_digest=rng.choice(["", digest(rng)]),
        steps=some(
            rng,
            lambda r: StepComparison(name(r), r.choice(states), r.choice(states), r.randint(0, 100), r.randint(0, 100)),
            key=lambda each: each.step,
        ),
        outputs=some(rng, output_comparison, key=lambda each: (each.step, each.name)),
    )


def step_event(rng: Rng) -> StepEvent:
    """An event of any type."""
    kind = rng.choice(list(StepEventType))
    error = rng.choice([ErrorKind.USER, ErrorKind.SYSTEM]) if kind is StepEventType.FAILED else ErrorKind.NONE
    return StepEvent(printable(rng), name(rng), rng.randint(1, 100), kind, error, text(rng, 4_000), time(rng))


def run_event(rng: Rng) -> RunEvent:
    """An event of any type."""
    kind = rng.choice(list(RunEventType))
    return RunEvent(
        random_id(rng),
        rng.randint(1, 1_000),
        kind,
        digest(rng) if kind is RunEventType.PLANNED else "",
        text(rng, 99) if kind is RunEventType.CANCEL_REQUESTED else "",
        (step_event(rng),) if kind is RunEventType.STEP else (),
        rng.choice(list(RunState)),
    )


def audit_record(rng: Rng) -> AuditRecord:
    """A record by its digest."""
    return AuditRecord(name(rng), digest(rng))


def audit_entry(rng: Rng) -> AuditEntry:
    """An entry with a few records and refusals."""
    return AuditEntry(
        project_id=name(rng),
        entry_id=random_id(rng),
        principal=name(rng),
        action=name(rng),
        resource=text(rng, 99),
        method=printable(rng),
        request_id=printable(rng),
        request_digest=digest(rng),
        time=time(rng),
        outcome=rng.choice(list(AuditOutcome)),
        reason=text(rng, 20),
        records=some(rng, audit_record),
        refusals=some(rng, lambda r: AuditRefusal(r.randint(0, 1_000), name(r))),
        reply_digest=digest(rng),
    )


def public_key(rng: Rng) -> str:
    """32 bytes in base64."""
    return base64.b64encode(rng.randbytes(32)).decode()


def log_of(rng: Rng) -> str:
    """A project, or the instance's log."""
    return INSTANCE_LOG if rng.random() < 0.2 else name(rng)


def leaf_hash(rng: Rng) -> str:
    """64 hexadecimal digits."""
    return f"{rng.getrandbits(256):064x}"


def log_epoch(rng: Rng) -> LogEpoch:
    """An epoch whose signer remembered its heads, or had lost them."""
    signed = (size(rng), leaf_hash(rng)) if rng.random() < 0.5 else (-1, "")
    return LogEpoch(log_of(rng), rng.randint(2, MAX_SIZE), size(rng), leaf_hash(rng), *signed, text(rng, 2_000, 1))


def cosignature(rng: Rng) -> Cosignature:
    """A line under a checkpoint."""
    vkey = f"{printable(rng)}+{rng.getrandbits(32):08x}+{public_key(rng)}"
    return Cosignature(log_of(rng), rng.randint(1, 9), size(rng), vkey, f"— {printable(rng)} {public_key(rng)}")


def evidence(rng: Rng) -> Evidence:
    """A bundle of either kind."""
    project, epoch, total = name(rng), rng.randint(1, MAX_SIZE), rng.randint(2, MAX_SIZE)
    return Evidence(
        project_id=project,
        run_id=rng.choice(["", random_id(rng)]),
        origin=f"{rng.choice(['animus.example', 'a', 'a/b-c_d'])}/{project}/{epoch}",
        epoch=epoch,
        first_index=rng.randint(0, total - 1),
        size=total,
        known_sizes=some(rng, lambda r: r.randint(1, total - 1), key=lambda each: each),
    )


def uuid(rng: Rng) -> str:
    """A UUID of no version."""
    digits = random_id(rng)
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def external_event(rng: Rng) -> ExternalEvent:
    """A run event of another system; its text is any."""
    return ExternalEvent(
        event_time=time(rng),
        event_type=rng.choice(list(ExternalEventType)),
        run_id=uuid(rng),
        job_namespace=text(rng, 99, 1),
        job_name=text(rng, 99, 1),
        parent_run_id=rng.choice(["", uuid(rng)]),
        inputs=some(rng, external_dataset, key=repr),
        outputs=some(rng, external_dataset, key=repr),
        event=text(rng, 99),
    )


def external_dataset(rng: Rng) -> ExternalDataset:
    """A dataset of another system."""
    return ExternalDataset(text(rng, 99, 1), text(rng, 99, 1), rng.choice(["", text(rng, 99)]))


def attempt_summary(rng: Rng) -> AttemptSummary:
    """An attempt in any state."""
    return AttemptSummary(
        rng.randint(1, 100),
        rng.choice(list(AttemptState)),
        rng.choice(["none", "user", "system"]),
        text(rng, 4_000),
        rng.choice(["", time(rng)]),
        rng.choice(["", time(rng)]),
    )


def run_summary(rng: Rng) -> RunSummary:
    """A run in any state."""
    return RunSummary(
        random_id(rng),
        rng.choice(list(RunState)),
        rng.choice(["", digest(rng)]),
        some(
            rng,
            lambda r: StepSummary(
                name(r), r.choice(list(StepState)), some(r, attempt_summary, key=lambda each: each.attempt)
            ),
        ),
        some(
            rng,
            lambda r: OutputSummary(name(r), name(r), r.randint(1, 100), digest(r)),
            key=lambda each: (each.step, each.name),
        ),
    )


PROBABILITIES = ("0", "0.05", "0.5", "0.95", "1")
PATTERN = "[a-z]+"
METRICS = ("accuracy", "_x/y")
COLUMNS = ("ä", "n", "t", "when")
REFERENCES = (ONE, TWO)


def quality_check(rng: Rng, kind: QualityCheckType | None = None) -> QualityCheck:
    """A check of a type, or of any."""
    kind = kind or rng.choice(list(QualityCheckType))
    least, most = sorted((rng.randint(-9, 9), rng.randint(-9, 9)))
    bounds = rng.choice([(f"{least}", ""), ("", f"{most}"), (f"{least}", f"{most}"), ("-0.5", "0.25")])
    fields: dict[str, Any] = {
        "column": rng.choice(COLUMNS),
        "minimum": bounds[0],
        "maximum": bounds[1],
        "values": some(rng, lambda r: text(r, 9), least=1, key=str),
        "pattern": PATTERN,
        "probability": rng.choice(PROBABILITIES),
        "metric": rng.choice(METRICS),
        "columns": some(rng, lambda r: Column(r.choice(COLUMNS), "utf8"), least=1, key=lambda each: each.name),
        "reference_profile_digest": rng.choice(REFERENCES),
    }
    has = {field: value if field in CHECK_FIELDS[kind] else type(value)() for field, value in fields.items()}
    return QualityCheck(name=name(rng), severity=rng.choice(list(QualitySeverity)), type=kind, **has)


def quality_rule(rng: Rng) -> QualityRule:
    """A rule of few checks."""
    checks = some(rng, quality_check, least=1, most=9, key=lambda each: each.name)
    return QualityRule(name(rng), text(rng, 2_000), labels(rng), checks)


def measured(name: str, kind: str, items: Sequence[Any], nulls: int, measures: dict[Any, str]) -> ColumnProfile:
    """A column of these items, each counted; measures are by kind, or by kind and argument."""
    counts = {each: items.count(each) for each in items}
    whole = {key if isinstance(key, tuple) else (key, ""): value for key, value in measures.items()}
    return ColumnProfile(
        name=name,
        type=kind,
        null_count=nulls,
        measures=tuple(QualityMeasure(kind, argument, value) for (kind, argument), value in whole.items()),
        values=tuple(QualityValueCount(f"{value}", count) for value, count in counts.items()),
        edges=(),
        bin_counts=(),
    )


def numbers(name: str, items: Sequence[int], nulls: int, edges: Sequence[int]) -> ColumnProfile:
    """A column of whole numbers, measured in full; the deviation is rounded."""
    kinds, ordered = QualityMeasureKind, sorted(items)
    mean = Fraction(sum(items), len(items) or 1)
    found = {kinds.DISTINCT_COUNT: f"{len(set(items))}", kinds.NOT_FINITE_COUNT: "0"}
    if items:
        found |= {kinds.MINIMUM: f"{ordered[0]}", kinds.MAXIMUM: f"{ordered[-1]}"}
        places = f"{float(mean):.6f}".rstrip("0").rstrip(".")
        found |= {kinds.MEAN: "0" if places == "-0" else places}
        variance = sum((each - mean) ** 2 for each in items) / len(items)
        found |= {kinds.STANDARD_DEVIATION: f"{float(variance) ** 0.5:.3f}".rstrip("0").rstrip(".")}
    all_found: dict[Any, str] = dict(found)
    for probability in PROBABILITIES if items else ():
        at = min(int(Fraction(probability) * len(items)), len(items) - 1)
        all_found[kinds.QUANTILE, probability] = f"{ordered[at]}"
    bins = [sum(1 for each in items if bisect.bisect_left(edges, each) == index) for index in range(len(edges) + 1)]
    column = measured(name, "int64", items, nulls, all_found)
    return dataclasses.replace(column, edges=tuple(map(str, edges)), bin_counts=tuple(bins) if edges else ())


def quality_profile(rng: Rng) -> QualityProfile:
    """A profile of columns of numbers, text and times, measured in full, each of which may be all null or left out."""
    rows = rng.choice([0, 1, 2, rng.randint(3, 40)])

    def nulls() -> int:
        return rng.choice([0, rng.randint(0, rows), rows])

    missing = [nulls() for _ in COLUMNS]
    texts = [text(rng, 3) for _ in range(rows - missing[0])]
    words = [rng.choice(["a", "ab", "A1", ""]) for _ in range(rows - missing[2])]
    times = sorted(time(rng) for _ in range(rows - missing[3]))
    kinds = QualityMeasureKind
    ends: dict[Any, str] = {kinds.OLDEST: times[0], kinds.NEWEST: times[-1]} if times else {}
    columns = [
        measured("ä", "utf8", texts, missing[0], {kinds.DISTINCT_COUNT: f"{len(set(texts))}"}),
        numbers("n", [rng.randint(-5, 5) for _ in range(rows - missing[1])], missing[1], (-1, 0, 3)),
        measured(
            "t", "utf8", words, missing[2],
            {
                kinds.DISTINCT_COUNT: f"{len(set(words))}",
                (kinds.PATTERN_COUNT, PATTERN): f"{sum(1 for each in words if re.fullmatch(PATTERN, each))}",
            },
        ),
        measured("when", "timestamp[us]", times, missing[3], ends),
    ]  # fmt: skip
    return QualityProfile(
        dataset_id=name(rng),
        content_digest=digest(rng),
        profiler=text(rng, 200, 1),
        row_count=rows,
        size_bytes=size(rng),
        columns=tuple(rng.sample(columns, rng.randint(2, len(columns)))),
        metrics=tuple(QualityMetric(each, decimal(rng)) for each in METRICS[: rng.randint(0, 2)]),
    )


def quality_result(rng: Rng) -> QualityResult:
    """What came of a check."""
    outcome = rng.choice(list(QualityOutcome))
    reason = "" if outcome is QualityOutcome.PASS else text(rng, 1_000)
    return QualityResult(text(rng, 500, 1), rng.choice(list(QualitySeverity)), outcome, text(rng, 1_000), reason)


def quality_evaluation(rng: Rng) -> QualityEvaluation:
    """A verdict of any tool."""
    results = some(rng, quality_result, least=1, key=lambda each: each.check)
    return QualityEvaluation(
        name(rng), digest(rng), digest(rng), text(rng, 200, 1), digest(rng), name(rng), text(rng, 100, 1),
        verdict_of(results), results, time(rng),
    )  # fmt: skip


MAKERS: dict[type, Callable[[Rng], Any]] = {
    Artifact: lambda r: Artifact(random_id(r), name(r), r.randint(1, 100), name(r), digest(r), size(r), text(r, 2_000)),
    AuditEntry: audit_entry,
    Cosignature: cosignature,
    Dataset: lambda r: Dataset(name(r), text(r, 2_000), labels(r)),
    DatasetVerification: dataset_verification,
    DatasetVersionUris: dataset_version_uris,
    DatasetVersion: dataset_version,
    EnvironmentLock: environment_lock,
    Evidence: evidence,
    ExecutionPlan: plan,
    FileManifest: manifest,
    ExternalEvent: external_event,
    LineageEdge: lambda r: LineageEdge(text(r, 99), r.choice(list(LineageRelation)), text(r, 99)),
    LogEpoch: log_epoch,
    LogForfeit: lambda r: LogForfeit(random_id(r), leaf_hash(r), text(r, 2_000, 1)),
    LogKey: lambda r: LogKey(r.choice(["animus.example", "a", "a/b-c_d"]), public_key(r)),
    LogKeyEnd: lambda r: LogKeyEnd(
        public_key(r), r.choice([LogKeyStatus.RETIRED, LogKeyStatus.REVOKED]), text(r, 2_000, 1)
    ),
    Metric: lambda r: Metric(random_id(r), name(r), r.randint(1, 100), "a/b.c-d", size(r), decimal(r), time(r)),
    PipelineSpec: pipeline,
    Project: lambda r: Project(name(r), text(r, 100), text(r, 2_000), labels(r)),
    QualityEvaluation: quality_evaluation,
    QualityProfile: quality_profile,
    QualityRule: quality_rule,
    RecordManifest: lambda r: RecordManifest(some(r, audit_record)),
    AdmissionRefusal: admission_refusal,
    QualityGate: quality_gate,
    Run: run,
    RunComparison: run_comparison,
    RunEvent: run_event,
    RunSpec: run_spec,
    RunSummary: run_summary,
    StepEvent: step_event,
    Token: lambda r: Token(digest(r), name(r), r.choice(list(Role)), time(r)),
    RunToken: lambda r: RunToken(digest(r), f"{r.getrandbits(128):032x}", name(r), name(r), time(r)),
    TokenRevocation: lambda r: TokenRevocation(digest(r), name(r)),
    ServiceAccount: lambda r: ServiceAccount(name(r), name(r), ""),
    ServiceAccountEnd: lambda r: ServiceAccountEnd(name(r), name(r)),
    RoleBinding: lambda r: RoleBinding(
        f"oidc:{name(r)}:{name(r)}", tuple(r.sample(list(Role), r.randrange(4))), r.randrange(1, 9)
    ),
    BreakGlass: lambda r: BreakGlass(digest(r), name(r), name(r)),
}
DOCUMENTS = {kind: generated(make) for kind, make in MAKERS.items()}


def refusal(call: Callable[..., Any], *args: Any, **named: Any) -> Violation:
    """The one violation that a call raises."""
    with pytest.raises(Invalid) as caught:
        call(*args, **named)
    (found,) = caught.value.violations
    return found


def value_classes() -> list[type]:
    """Every value class of the domain, by name."""
    found = {
        value
        for module in pkgutil.iter_modules(animus.domain.__path__)
        for value in vars(importlib.import_module(f"animus.domain.{module.name}")).values()
        if isinstance(value, type) and dataclasses.is_dataclass(value)
    }
    return sorted(found, key=lambda kind: kind.__name__)


# Full samples: every list holds something, so that every field of a message can be met.

_FILES = FileManifest((File("a/b", 1, ONE), File("c", 2, TWO)))
_PIPELINE = PipelineSpec(
    "animus/v1",
    "Pipeline",
    PipelineMetadata("demo", "Grüße 😂", (Label("team", "a"), Label("stage", ""))),
    PipelineGraph(
        (
            Step(
                "split",
                IMAGE,
                ("python", "-m"),
                ("x", ""),
                StepInputs((DatasetInput("data", "data"),), ()),
                StepOutputs((ArtifactOutput("test", "table", "text/csv"), ArtifactOutput("all", "table", "text/csv"))),
                (EnvVar("B", "", "env:B"), EnvVar("A", "1", "")),
                Resources("500m", "1Gi", 0),
                RetryPolicy(3, (RetryKind.USER, RetryKind.SYSTEM), Backoff(BackoffType.EXPONENTIAL, 1, 60, "1.5")),
            ),
            Step(
                "fit",
                IMAGE,
                (),
                (),
                StepInputs((), (ArtifactInput("y", "split", "test"), ArtifactInput("x", "split", "all"))),
                StepOutputs(()),
                (),
                Resources("2", "1536Mi", 1),
                RetryPolicy(1, (), Backoff(BackoffType.FIXED, 0, 0, "1")),
            ),
        ),
        (Dependency("fit", "split"),),
    ),
)
_RUN_SPEC = RunSpec(
    "animus/v1",
    "Run",
    ONE,
    (DatasetBinding("data", "cells", ONE), DatasetBinding("base", "cells", TWO)),
    Commit("https://git.test/demo", "c" * 40),
    TWO,
    (Parameter("seed", ParameterType.INT, "7"), Parameter("lr", ParameterType.DECIMAL, "0.1")),
)

_GATE = QualityGate(
    "demo",
    (QualityRequirement("data", "", ONE, "animus"), QualityRequirement("", "cells", TWO, "animus")),
    override_allowed=True,
    set_time=TIME,
)


def _decided(override_reason: str) -> AdmissionDecision:
    """What a gate makes of the RunSpec of the samples."""
    pairs = frozenset((each.dataset_id, each.content_digest) for each in _RUN_SPEC.datasets)
    newest = {(*pair, ONE, "animus"): (TWO, QualityVerdict.FAIL) for pair in pairs}
    return admit(
        "p", _RUN_SPEC, pipeline_registered=True, environment_registered=True, versions_registered=pairs,
        gates=GateFacts({ONE: _GATE, TWO: dataclasses.replace(_GATE, pipeline="")}, newest),
        override_reason=override_reason,
    )  # fmt: skip


SAMPLES: dict[type, Any] = {
    AdmissionRefusal: AdmissionRefusal(ONE, TWO, "f" * 32, _decided(""), TIME),
    Artifact: Artifact(RUN_ID, "fit", 1, "model", ONE, 7, "file:///model"),
    AuditEntry: AuditEntry(
        "p", "e", "who", "run.create", "projects/p", "CreateRun", "r", ONE, TIME, AuditOutcome.ACCEPTED, "",
        (AuditRecord("run", ONE),), (AuditRefusal(0, "STEP_UNKNOWN"),), TWO,
    ),
    Cosignature: Cosignature(
        "p", 2, 7, f"witness.example+01234567+{PUBLIC_KEY}", f"— witness.example {PUBLIC_KEY}"
    ),
    Dataset: Dataset("cells", "Cells", (Label("team", "a"), Label("b", "c"))),
    DatasetVerification: DatasetVerification(
        "cells", ONE, TWO, 3, "s3://copies/cells", matched=False, verify_time=TIME
    ),
    DatasetVersion: DatasetVersion(
        "cells", document.digest(document.dump(_FILES)), 3, "text/csv", 7, "the lab", "MIT OR Apache-2.0",
        (Label("team", "a"), Label("b", "c")), (Column("b", "int64"), Column("a", "utf8")), _FILES.files,
        (DatasetVersionId("raw", TWO), DatasetVersionId("raw", ONE), DatasetVersionId("other", ONE)),
    ),
    DatasetVersionUris: DatasetVersionUris("cells", ONE, 2, ("s3://b/cells", "file:///cells")),
    EnvironmentLock: EnvironmentLock(
        (Image(IMAGE), Image(f"b@{TWO}")), "3.11.7", "linux", "x86_64",
        (Package("numpy", "2.0"), Package("attrs", "1")), ONE,
        (Accelerator("H100", 8, "550"), Accelerator("A", 1, "1")),
    ),
    Evidence: Evidence("p", RUN_ID, "animus.example/p/1", 1, 3, 9, (7, 2)),
    ExecutionPlan: make_plan(ONE, TWO, _PIPELINE),
    FileManifest: _FILES,
    ExternalEvent: ExternalEvent(
        "2026-01-02T03:04:05.678901Z", ExternalEventType.COMPLETE, "1" * 8 + "-1111" * 3 + "-" + "1" * 12,
        "jobs", "load", "2" * 8 + "-2222" * 3 + "-" + "2" * 12,
        (ExternalDataset("s3://lake", "raw", "v1"), ExternalDataset("s3://lake", "keys", "")),
        (ExternalDataset("pg", "public.cells", ""), ExternalDataset("pg", "public.added", "")), "{}",
    ),
    LineageEdge: LineageEdge("projects/p/runs/r", LineageRelation.USED, "projects/p/x"),
    LogEpoch: LogEpoch(INSTANCE_LOG, 2, 7, "1" * 64, 9, "2" * 64, "restored"),
    LogForfeit: LogForfeit(RUN_ID, "1" * 64, "the disk lost it"),
    LogKey: LogKey("animus.example", PUBLIC_KEY),
    LogKeyEnd: LogKeyEnd(PUBLIC_KEY, LogKeyStatus.REVOKED, "it leaked"),
    Metric: Metric(RUN_ID, "fit", 1, "loss", 0, "0.5", TIME),
    PipelineSpec: _PIPELINE,
    Project: Project("p", "P", "", (Label("b", ""), Label("a", ""))),
    QualityGate: _GATE,
    QualityEvaluation: QualityEvaluation(
        "cells", ONE, TWO, "fit", ONE, "dbt", "1.9", QualityVerdict.FAIL,
        (
            QualityResult("rows", QualitySeverity.ERROR, QualityOutcome.FAIL, "1", "1 is below the minimum 2"),
            QualityResult("allowed", QualitySeverity.WARN, QualityOutcome.PASS, "1", ""),
        ),
        TIME,
    ),
    QualityProfile: QualityProfile(
        "cells", ONE, "by hand 1", 4, 3,
        (
            numbers("n", [3, 1, 2], 1, [1, 2]),
            measured("a", "utf8", ["x", "y", "x"], 1, {(QualityMeasureKind.PATTERN_COUNT, PATTERN): "3"}),
        ),
        (QualityMetric("b", "0.5"), QualityMetric("a", "1")),
    ),
    QualityRule: QualityRule(
        "fit", "Fit to train", (Label("team", "a"), Label("b", "")),
        (
            quality_check(random.Random(1), QualityCheckType.SCHEMA_EQUAL),
            dataclasses.replace(quality_check(random.Random(2), QualityCheckType.ALLOWED_FRACTION), values=("b", "a")),
        ),
    ),
    RecordManifest: RecordManifest((AuditRecord("run", ONE), AuditRecord("lineage_edge", TWO))),
    Run: Run(
        RUN_ID, ONE, TIME, (Label("b", ""), Label("a", "")),
        _decided("it is known to be late"),
        "f" * 32,
    ),
    RunComparison: RunComparison(
        RUN_ID, "f" * 32, ComparisonVerdict.DIVERGED, "", "fit", RunState.SUCCEEDED, RunState.SUCCEEDED,
        (Difference("parameters[seed].value", '"7"', '"8"'), Difference("commit.sha", '"c"', '"d"')), ONE, TWO,
        (
            StepComparison("split", StepState.SUCCEEDED, StepState.SUCCEEDED, 1, 2),
            StepComparison("fit", StepState.SUCCEEDED, StepState.NONE, 1, 0),
        ),
        (OutputComparison("split", "all", ONE, ONE, equal=True), OutputComparison("fit", "x", ONE, TWO, equal=False)),
    ),
    RunEvent: RunEvent(
        RUN_ID, 1, RunEventType.STEP, "", "",
        (StepEvent("e", "fit", 1, StepEventType.STARTED, ErrorKind.NONE, "", TIME),), RunState.RUNNING,
    ),
    RunSpec: _RUN_SPEC,
    RunSummary: RunSummary(
        RUN_ID, RunState.RUNNING, ONE,
        (
            StepSummary(
                "split", StepState.SUCCEEDED,
                (
                    AttemptSummary(2, AttemptState.SUCCEEDED, "none", "", TIME, TIME),
                    AttemptSummary(1, AttemptState.FAILED, "system", "lost", TIME, TIME),
                ),
            ),
            StepSummary("fit", StepState.READY, ()),
        ),
        (OutputSummary("split", "test", 2, ONE), OutputSummary("split", "all", 2, TWO)),
    ),
    StepEvent: StepEvent("e", "fit", 1, StepEventType.FAILED, ErrorKind.USER, "why", TIME),
    Token: Token(ONE, "ci", Role.OPERATOR, TIME),
    RunToken: RunToken(ONE, "a" * 32, "ci", "p", TIME),
    TokenRevocation: TokenRevocation(ONE, "lost"),
    ServiceAccount: ServiceAccount("ci", "CI", "Creates runs."),
    ServiceAccountEnd: ServiceAccountEnd("ci", "replaced"),
    RoleBinding: RoleBinding("group:corp:ml-admins", (Role.AUDITOR, Role.OPERATOR), 1),
    BreakGlass: BreakGlass(ONE, "the last administrator left", "animus_owner"),
}  # fmt: skip


# Which tuples are sets and which are sequences: written down here a second time, to be compared with what values do.

SETS = {
    ("AdmissionDecision", "gate_checks"),
    ("AdmissionDecision", "gates"),
    ("ColumnProfile", "measures"),
    ("ColumnProfile", "values"),
    ("Dataset", "labels"),
    ("DatasetVersion", "derived_from"),
    ("DatasetVersion", "files"),
    ("DatasetVersion", "labels"),
    ("DatasetVersionUris", "uris"),
    ("EnvironmentLock", "accelerators"),
    ("EnvironmentLock", "images"),
    ("EnvironmentLock", "packages"),
    ("RoleBinding", "roles"),
    ("Evidence", "known_sizes"),
    ("FileManifest", "files"),
    ("Group", "members"),
    ("PipelineGraph", "dependencies"),
    ("PipelineGraph", "steps"),
    ("PipelineMetadata", "labels"),
    ("Policy", "logs"),
    ("Policy", "witnesses"),
    ("Project", "labels"),
    ("QualityGate", "requirements"),
    ("QualityCheck", "values"),
    ("QualityEvaluation", "results"),
    ("QualityProfile", "metrics"),
    ("QualityRule", "checks"),
    ("QualityRule", "labels"),
    ("RetryPolicy", "retry_on"),
    ("ExternalEvent", "inputs"),
    ("ExternalEvent", "outputs"),
    ("Subgraph", "edges"),
    ("Subgraph", "joins"),
    ("Subgraph", "nodes"),
    ("Subgraph", "starts"),
    ("Run", "labels"),
    ("RunEvidence", "artifacts"),
    ("RunEvidence", "edges"),
    ("RunEvidence", "evaluations"),
    ("RunEvidence", "events"),
    ("RunEvidence", "rules"),
    ("RunEvidence", "versions"),
    ("RunComparison", "differences"),
    ("RunComparison", "outputs"),
    ("RunComparison", "steps"),
    ("RunSpec", "datasets"),
    ("RunSpec", "parameters"),
    ("RunSummary", "outputs"),
    ("Step", "env"),
    ("StepInputs", "artifacts"),
    ("StepInputs", "datasets"),
    ("StepOutputs", "artifacts"),
    ("StepSummary", "attempts"),
}
SEQUENCES = {
    ("And", "items"),  # as the filter has them
    ("FilterField", "values"),
    ("Or", "items"),
    ("AdmissionDecision", "checks"),
    ("AuditEntry", "records"),
    ("AuditEntry", "refusals"),
    ("Checkpoint", "extensions"),
    ("CheckpointRequest", "proof"),
    ("ColumnProfile", "bin_counts"),
    ("ColumnProfile", "edges"),
    ("CompactRange", "hashes"),
    ("DatasetVersion", "columns"),
    ("ExecutionPlan", "critical_path"),
    ("ExecutionPlan", "steps"),
    ("Note", "signatures"),
    ("PlanStep", "depends_on"),
    ("Principal", "members"),  # as the credential has them
    ("PlanStep", "retry_delays_seconds"),
    ("PlanStep", "retry_on"),
    ("Policy", "groups"),
    ("QualityCheck", "columns"),
    ("QualityProfile", "columns"),
    ("RecordManifest", "records"),
    ("RunEvent", "step_event"),
    ("RunSummary", "steps"),
    ("Scenario", "failures"),
    ("ScenarioResult", "attempts"),
    ("ScenarioResult", "skipped_steps"),
    ("Step", "args"),
    ("Step", "command"),
    ("TlogProof", "hashes"),
}


def shuffled(value: Any, rng: random.Random, fields: set[tuple[str, str]]) -> Any:
    """The value built again with the items of these fields in another order, all the way down."""
    if isinstance(value, tuple):
        return tuple(shuffled(each, rng, fields) for each in value)
    if not dataclasses.is_dataclass(value):
        return value
    kind: Any = type(value)
    parts = {}
    for field in dataclasses.fields(value):
        part = shuffled(getattr(value, field.name), rng, fields)
        if (kind.__name__, field.name) in fields:
            part = tuple(rng.sample(part, len(part)))
        parts[field.name] = part
    return kind(**parts)


class Dumper(yaml.CSafeDumper):
    """Quotes text that is a number in YAML 1.2 and JSON, such as 5E3: in YAML 1.1 it is none."""


Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?[eE][-+]?[0-9]+"), list("-0123456789")
)


def as_yaml(tree: object, **style: Any) -> bytes:
    """A tree as YAML, as libyaml writes it."""
    written: str = yaml.dump(tree, Dumper=Dumper, **style)
    return written.encode()


def fill(message: Message, tree: dict[str, Any]) -> None:
    """Fills a message from the tree of a value, as a client would: enums by name, what the tree lacks left out."""
    for field in message.DESCRIPTOR.fields:
        if json_name(field.name) not in tree:
            continue
        value = tree[json_name(field.name)]
        for item in value if field.is_repeated else [value]:
            if field.message_type is not None:
                child = getattr(message, field.name)
                child = child.add() if field.is_repeated else child
                child.SetInParent()
                fill(child, item)
                continue
            if field.enum_type is not None:
                prefix = field.enum_type.values[0].name.removesuffix("UNSPECIFIED")
                item = field.enum_type.values_by_name[prefix + item.upper()].number
            if field.is_repeated:
                getattr(message, field.name).append(item)
            else:
                setattr(message, field.name, item)
