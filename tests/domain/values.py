"""Valid values of every kind of document for Hypothesis, and one full sample of each."""

import dataclasses
import importlib
import pkgutil
import random
from datetime import UTC, datetime
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

import animus.domain
from animus.domain import document
from animus.domain.access import Role, Token
from animus.domain.audit import AuditEntry, AuditOutcome, AuditRecord, AuditRefusal
from animus.domain.dataset import Column, Dataset, DatasetVersion, File, FileManifest
from animus.domain.document import MAX_INTEGER
from animus.domain.environment import Accelerator, EnvironmentLock, Image, Package
from animus.domain.labels import Label
from animus.domain.lineage import LineageEdge, LineageRelation
from animus.domain.names import format_time
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
from animus.domain.run import (
    AdmissionDecision,
    Artifact,
    Commit,
    DatasetBinding,
    Metric,
    Parameter,
    ParameterType,
    Run,
    RunSpec,
    admit,
)
from animus.domain.state import RunEvent, RunEventType, RunState, StepEvent, StepEventType

LAW = settings(max_examples=50, deadline=None)

ONE = "sha256:" + "1" * 64
TWO = "sha256:" + "2" * 64
TIME = "2026-01-02T03:04:05.678901Z"
RUN_ID = "0123456789abcdef" * 2
IMAGE = f"registry.test/a/b:1@{ONE}"


def tuples(items: SearchStrategy[Any], *, most: int = 3, least: int = 0, key: Any = None) -> SearchStrategy[Any]:
    """Tuples of some items, distinct by a key where one is given."""
    return st.lists(items, min_size=least, max_size=most, unique_by=key).map(tuple)


# Characters that differ in UTF-8, UTF-16, YAML or JSON, some that must be escaped, and plain ones.
LETTERS = "ab \t\n\"\\/'#:-~é\u00a0\u2028\u202e\ufeff\ufffd😂"


def texts(most: int, least: int = 0) -> SearchStrategy[str]:
    """Text of so many characters that a document can carry."""
    drawn = st.text(LETTERS, min_size=least, max_size=min(most, 6))
    return drawn | st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=least, max_size=min(most, 6))


ids = st.sampled_from(["a", "a-b", "ab", "b", "b1", "b10", "b2", "c", "d", "e", "z" * 63]) | st.text(
    "a1-", max_size=6
).map(lambda middle: f"x{middle}y")
digests = st.integers(0, 2**256 - 1).map(lambda number: f"sha256:{number:064x}")
random_ids = st.integers(0, 2**128 - 1).map(lambda number: f"{number:032x}")
times = st.datetimes(datetime(1, 1, 1), datetime(9999, 12, 31, 23, 59, 59, 999_999), timezones=st.just(UTC)).map(  # noqa: DTZ001
    format_time
)
sizes = st.integers(0, MAX_INTEGER)
printable = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=20)
media_types = st.sampled_from(["text/csv", "application/json", "application/vnd.apache.parquet"])
decimals = st.sampled_from(["0", "-0.5", "12.25", "7", "-3", "0.001", "9" * 40])
error_kinds = st.sampled_from([ErrorKind.USER, ErrorKind.SYSTEM])

labels = tuples(
    st.builds(Label, st.sampled_from(["a", "team", "a.b/c", "0_1"]), texts(255)), key=lambda label: label.key
)
datasets = st.builds(Dataset, ids, texts(2_000), labels)
projects = st.builds(Project, ids, texts(100), texts(2_000), labels)
tokens = st.builds(Token, digests, ids, st.sampled_from(Role), times)

files = st.builds(
    File,
    st.sampled_from(["a", "a/b", "ä.csv", "data/part-1", "data/part-10", "data/part-2", "😂"]),
    st.integers(0, 10**12),
    digests,
)
manifests = st.builds(FileManifest, tuples(files, least=1, most=5, key=lambda file: file.path))
columns = tuples(st.builds(Column, texts(255, 1), texts(100, 1)), key=lambda column: column.name)


@st.composite
def dataset_versions(draw: st.DrawFn) -> DatasetVersion:
    """A version of one file, or of a manifest."""
    manifest = draw(st.none() | manifests)
    return DatasetVersion(
        dataset_id=draw(ids),
        content_digest=document.digest(document.dump(manifest)) if manifest else draw(digests),
        size_bytes=manifest.size_bytes if manifest else draw(sizes),
        media_type=draw(media_types),
        uri=draw(texts(2_000)),
        columns=draw(columns),
        files=manifest.files if manifest else (),
    )


images = st.builds(Image, digests.map(lambda digest: f"registry.test/x@{digest}"))
packages = st.builds(Package, st.sampled_from(["a", "a-b", "numpy", "zope-interface", "0"]), texts(100, 1))
accelerators = st.builds(Accelerator, texts(100, 1), st.integers(1, 1_024), texts(100, 1))
environment_locks = st.builds(
    EnvironmentLock,
    tuples(images, key=lambda image: image.reference),
    texts(100),
    texts(100, 1),
    texts(100, 1),
    tuples(packages, key=lambda package: package.name),
    st.just("") | digests,
    tuples(accelerators, key=lambda accelerator: accelerator.model),
)

seconds = st.integers(0, 300)
backoffs = seconds.map(lambda wait: Backoff(BackoffType.FIXED, wait, wait, "1")) | st.builds(
    lambda initial, more, multiplier: Backoff(BackoffType.EXPONENTIAL, initial, initial + more, multiplier),
    seconds,
    seconds,
    st.sampled_from(["1", "1.5", "2", "1.001", "10", "9.999"]),
)
retry_policies = st.builds(RetryPolicy, st.integers(1, 5), tuples(st.sampled_from(RetryKind), key=str), backoffs)
resources = st.builds(Resources, st.sampled_from(["1", "500m", "64"]), st.sampled_from(["1Mi", "3Gi"]), st.just(0))
env = tuples(st.builds(EnvVar, st.sampled_from(["A", "_b", "C1"]), texts(99)), key=lambda variable: variable.name)
outputs = tuples(st.builds(ArtifactOutput, ids, ids, media_types), most=2, key=lambda output: output.name)
dataset_inputs = tuples(st.builds(DatasetInput, ids, ids), most=2, key=lambda each: each.name)


@st.composite
def pipelines(draw: st.DrawFn, most: int = 4) -> PipelineSpec:
    """A pipeline whose steps stand in no order of their names, with declared and implied edges."""
    names = draw(st.lists(ids, min_size=1, max_size=most, unique=True))
    steps: list[Step] = []
    dependencies = []
    for name in names:
        written = [(step.name, output.name) for step in steps for output in step.outputs.artifacts]
        read = draw(st.lists(st.sampled_from(written), max_size=2)) if written else []
        if steps:
            before = draw(st.lists(st.sampled_from(steps), max_size=2))
            dependencies += [Dependency(name, step.name) for step in before]
        steps.append(
            Step(
                name=name,
                image=IMAGE,
                command=draw(tuples(texts(20), most=2)),
                args=draw(tuples(texts(20), most=2)),
                inputs=StepInputs(
                    draw(dataset_inputs), tuple(ArtifactInput(f"i{at}", *each) for at, each in enumerate(read))
                ),
                outputs=StepOutputs(draw(outputs)),
                env=draw(env),
                resources=draw(resources),
                retry_policy=draw(retry_policies),
            )
        )
    metadata = PipelineMetadata(draw(ids), draw(texts(2_000)), draw(labels))
    return PipelineSpec("animus/v1", "Pipeline", metadata, PipelineGraph(tuple(steps), tuple(dependencies)))


plans = st.builds(make_plan, digests, digests, pipelines())

parameters = st.builds(
    lambda name, typed: Parameter(name, *typed),
    st.sampled_from(["seed", "lr", "_x", "A.b-c"]),
    st.tuples(st.just(ParameterType.STRING), texts(99))
    | st.tuples(st.just(ParameterType.INT), st.integers().map(str))
    | st.tuples(st.just(ParameterType.BOOL), st.sampled_from(["true", "false"]))
    | st.tuples(st.just(ParameterType.DECIMAL), decimals),
)
bindings = st.builds(DatasetBinding, ids, ids, digests)
commits = st.builds(Commit, printable, st.sampled_from(["c" * 40, "0123456789abcdef" * 4]))
run_specs = st.builds(
    RunSpec,
    st.just("animus/v1"),
    st.just("Run"),
    digests,
    tuples(bindings, key=lambda binding: binding.dataset_ref),
    commits,
    digests,
    tuples(parameters, key=lambda parameter: parameter.name),
)


@st.composite
def decisions(draw: st.DrawFn) -> AdmissionDecision:
    """A decision on some RunSpec, either way."""
    spec = draw(run_specs)
    known = draw(st.sets(st.sampled_from(spec.datasets))) if spec.datasets else set()
    return admit(
        "p",
        spec,
        pipeline_registered=draw(st.booleans()),
        environment_registered=draw(st.booleans()),
        versions_registered=frozenset((binding.dataset_id, binding.content_digest) for binding in known),
    )


runs = st.builds(Run, random_ids, digests, times, labels, decisions())
attempt_numbers = st.integers(1, 100)
artifacts = st.builds(Artifact, random_ids, ids, attempt_numbers, ids, digests, sizes, texts(2_000))
metrics = st.builds(
    Metric, random_ids, ids, attempt_numbers, st.sampled_from(["loss", "a/b.c-d_e"]), sizes, decimals, times
)
step_events = st.builds(
    lambda event_id, step, attempt, kind, message, time: StepEvent(event_id, step, attempt, *kind, message, time),
    printable,
    ids,
    attempt_numbers,
    st.tuples(st.just(StepEventType.FAILED), error_kinds)
    | st.tuples(
        st.sampled_from([kind for kind in StepEventType if kind is not StepEventType.FAILED]), st.just(ErrorKind.NONE)
    ),
    texts(4_000),
    times,
)
run_events = st.builds(
    RunEvent,
    random_ids,
    sizes,
    st.just(RunEventType.STEP),
    st.just(""),
    st.just(""),
    step_events.map(lambda event: (event,)),
    st.sampled_from(RunState),
) | st.builds(
    RunEvent,
    random_ids,
    sizes,
    st.just(RunEventType.PLANNED),
    digests,
    st.just(""),
    st.just(()),
    st.just(RunState.PLANNED),
)
audit_entries = st.builds(
    AuditEntry,
    project_id=ids,
    entry_id=random_ids,
    principal=ids,
    action=ids,
    resource=texts(100),
    method=printable,
    request_id=printable,
    request_digest=digests,
    time=times,
    outcome=st.sampled_from(AuditOutcome),
    reason=texts(20),
    records=tuples(st.builds(AuditRecord, ids, digests)),
    refusals=tuples(st.builds(AuditRefusal, st.integers(0, 1_000), ids)),
    reply_digest=digests,
)
lineage_edges = st.builds(LineageEdge, texts(99), st.sampled_from(LineageRelation), texts(99))

DOCUMENTS: dict[type, SearchStrategy[Any]] = {
    Artifact: artifacts,
    AuditEntry: audit_entries,
    Dataset: datasets,
    DatasetVersion: dataset_versions(),
    EnvironmentLock: environment_locks,
    ExecutionPlan: plans,
    FileManifest: manifests,
    LineageEdge: lineage_edges,
    Metric: metrics,
    PipelineSpec: pipelines(),
    Project: projects,
    Run: runs,
    RunEvent: run_events,
    RunSpec: run_specs,
    StepEvent: step_events,
    Token: tokens,
}


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
                (EnvVar("B", ""), EnvVar("A", "1")),
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

SAMPLES: dict[type, Any] = {
    Artifact: Artifact(RUN_ID, "fit", 1, "model", ONE, 7, "file:///model"),
    AuditEntry: AuditEntry(
        "p", "e", "who", "run.create", "projects/p", "CreateRun", "r", ONE, TIME, AuditOutcome.ACCEPTED, "", 
        (AuditRecord("run", ONE),), (AuditRefusal(0, "STEP_UNKNOWN"),), TWO,
    ),
    Dataset: Dataset("cells", "Cells", (Label("team", "a"), Label("b", "c"))),
    DatasetVersion: DatasetVersion(
        "cells", document.digest(document.dump(_FILES)), 3, "text/csv", "", 
        (Column("b", "int64"), Column("a", "utf8")), _FILES.files,
    ),
    EnvironmentLock: EnvironmentLock(
        (Image(IMAGE), Image(f"b@{TWO}")), "3.11.7", "linux", "x86_64",
        (Package("numpy", "2.0"), Package("attrs", "1")), ONE, (Accelerator("H100", 8, "550"), Accelerator("A", 1, "1")),
    ),
    ExecutionPlan: make_plan(ONE, TWO, _PIPELINE),
    FileManifest: _FILES,
    LineageEdge: LineageEdge("projects/p/runs/r", LineageRelation.USED, "projects/p/x"),
    Metric: Metric(RUN_ID, "fit", 1, "loss", 0, "0.5", TIME),
    PipelineSpec: _PIPELINE,
    Project: Project("p", "P", "", (Label("b", ""), Label("a", ""))),
    Run: Run(
        RUN_ID, ONE, TIME, (Label("b", ""), Label("a", "")),
        admit("p", _RUN_SPEC, pipeline_registered=True, environment_registered=True, versions_registered=frozenset()),
    ),
    RunEvent: RunEvent(
        RUN_ID, 1, RunEventType.STEP, "", "",
        (StepEvent("e", "fit", 1, StepEventType.STARTED, ErrorKind.NONE, "", TIME),), RunState.RUNNING,
    ),
    RunSpec: _RUN_SPEC,
    StepEvent: StepEvent("e", "fit", 1, StepEventType.FAILED, ErrorKind.USER, "why", TIME),
    Token: Token(ONE, "ci", Role.OPERATOR, TIME),
}  # fmt: skip


# Which tuples are sets and which are sequences: written down here a second time, to be compared with what values do.

SETS = {
    ("Dataset", "labels"),
    ("DatasetVersion", "files"),
    ("EnvironmentLock", "accelerators"),
    ("EnvironmentLock", "images"),
    ("EnvironmentLock", "packages"),
    ("FileManifest", "files"),
    ("PipelineGraph", "dependencies"),
    ("PipelineGraph", "steps"),
    ("PipelineMetadata", "labels"),
    ("Project", "labels"),
    ("RetryPolicy", "retry_on"),
    ("Run", "labels"),
    ("RunSpec", "datasets"),
    ("RunSpec", "parameters"),
    ("Step", "env"),
    ("StepInputs", "artifacts"),
    ("StepInputs", "datasets"),
    ("StepOutputs", "artifacts"),
}
SEQUENCES = {
    ("AdmissionDecision", "checks"),
    ("AuditEntry", "records"),
    ("AuditEntry", "refusals"),
    ("DatasetVersion", "columns"),
    ("ExecutionPlan", "critical_path"),
    ("ExecutionPlan", "steps"),
    ("PlanStep", "depends_on"),
    ("PlanStep", "retry_delays_seconds"),
    ("PlanStep", "retry_on"),
    ("RunEvent", "step_event"),
    ("Scenario", "failures"),
    ("ScenarioResult", "attempts"),
    ("ScenarioResult", "skipped_steps"),
    ("Step", "args"),
    ("Step", "command"),
}


def shuffled(value: Any, rng: random.Random, fields: set[tuple[str, str]]) -> Any:
    """The value built again with the items of these fields in another order, all the way down."""
    if isinstance(value, tuple):
        return tuple(shuffled(each, rng, fields) for each in value)
    if not dataclasses.is_dataclass(value):
        return value
    parts = {}
    for field in dataclasses.fields(value):
        part = shuffled(getattr(value, field.name), rng, fields)
        if (type(value).__name__, field.name) in fields:
            part = tuple(rng.sample(part, len(part)))
        parts[field.name] = part
    return type(value)(**parts)


def read_paths(tree: Any, path: str = "") -> dict[str, Any]:
    """Every scalar of a JSON tree by its path."""
    if isinstance(tree, dict):
        items = [(document.join(path, key), value) for key, value in tree.items()]
    elif isinstance(tree, list):
        items = [(f"{path}[{index}]", value) for index, value in enumerate(tree)]
    else:
        return {path: tree}
    return {place: scalar for below, value in items for place, scalar in read_paths(value, below).items()}
