"""PipelineSpec: a reusable template of steps. Nothing has a default: what is not said is an error.

Rules of the graph, checked as one at the end:

- the edges are the declared dependencies and those that artifact inputs imply;
- they name steps that exist, no step waits for itself, and there is no cycle (an error shows one);
- an artifact input names an output that its step declares.
"""

import graphlib
import re
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from typing import ClassVar

from animus.domain import document
from animus.domain.document import Violations
from animus.domain.errors import invalid
from animus.domain.labels import Label, sorted_labels
from animus.domain.names import (
    ENV_NAME,
    check_count,
    check_image,
    check_length,
    check_media_type,
    check_pattern,
    check_resource_id,
    check_within,
    sorted_set,
)

MAX_STEPS = 10_000
MAX_EDGES = 100_000
MAX_ITEMS = 256
MAX_ATTEMPTS = 100
DAY_SECONDS = 86_400
CYCLE_ENDS = 10  # steps shown of each end of a cycle

MULTIPLIER = re.compile(r"[1-9][0-9]?(?:\.[0-9]{0,2}[1-9])?")
MULTIPLIER_RULE = "is no decimal from 1 to 10 with at most 3 places and no needless zeros, such as '2' or '1.5'"
SECRET_REF = re.compile(r"(?:[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?:[!-~]{1,400})?")
CPU = re.compile(r"[1-9][0-9]{0,5}|[1-9][0-9]{0,8}m")
MEMORY = re.compile(r"([1-9][0-9]{0,8})(Ki|Mi|Gi|Ti)")


class ErrorKind(StrEnum):
    """Why an attempt failed."""

    NONE = ""  # it did not
    USER = "user"
    SYSTEM = "system"


class RetryKind(StrEnum):
    """A kind of failure after which a policy allows another attempt."""

    USER = "user"
    SYSTEM = "system"


class BackoffType(StrEnum):
    """How a wait grows from attempt to attempt."""

    FIXED = "fixed"
    EXPONENTIAL = "exponential"


@dataclass(frozen=True, slots=True)
class Backoff:
    """The wait before each further attempt, in whole seconds."""

    type: BackoffType
    initial_seconds: int  # 0 to 86,400
    max_seconds: int  # initial_seconds to 86,400
    multiplier: str  # decimal from 1 to 10 with at most 3 places

    def __post_init__(self) -> None:
        check_within(self.initial_seconds, 0, DAY_SECONDS, "initialSeconds")
        check_within(self.max_seconds, self.initial_seconds, DAY_SECONDS, "maxSeconds")
        check_pattern(MULTIPLIER, self.multiplier, "multiplier", MULTIPLIER_RULE)
        if not 1 <= Fraction(self.multiplier) <= 10:
            raise invalid("multiplier", MULTIPLIER_RULE)
        if self.type is BackoffType.FIXED and self.multiplier != "1":
            raise invalid("multiplier", "is not '1', as a fixed backoff's must be")
        if self.type is BackoffType.FIXED and self.max_seconds != self.initial_seconds:
            raise invalid("maxSeconds", "is not initialSeconds, as a fixed backoff's must be")

    def delays(self, count: int) -> tuple[int, ...]:
        """Seconds to wait after attempt 1, 2, …, `count`: exact arithmetic, rounded down to whole seconds."""
        delays: list[int] = []
        thousandths = int(Fraction(self.multiplier) * 1_000)  # integers: a plan may hold a million of these
        wait, scale = self.initial_seconds, 1
        while len(delays) < count and wait < self.max_seconds * scale:
            delays.append(wait // scale)
            wait, scale = wait * thousandths, scale * 1_000
        return (*delays, *[self.max_seconds] * (count - len(delays)))  # it never falls below the maximum again


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """What happens when an attempt fails."""

    max_attempts: int  # 1 to 100, the first attempt included
    retry_on: tuple[RetryKind, ...]  # a set
    backoff: Backoff

    def __post_init__(self) -> None:
        check_within(self.max_attempts, 1, MAX_ATTEMPTS, "maxAttempts")
        object.__setattr__(self, "retry_on", sorted_set(self.retry_on, lambda kind: kind, "retryOn", ""))


@dataclass(frozen=True, slots=True)
class Resources:
    """What a step needs to run. Each amount has one spelling."""

    cpu: str
    memory: str
    gpu: int  # 0 to 1,024

    def __post_init__(self) -> None:
        if not CPU.fullmatch(self.cpu) or self.cpu.endswith("000m"):
            raise invalid("cpu", "is no amount in its one spelling: whole cores ('2') or millicores ('500m')")
        match = MEMORY.fullmatch(self.memory)
        if not match or (int(match[1]) % 1024 == 0 and match[2] != "Ti"):
            raise invalid("memory", "is no amount in its one spelling: a number and the largest of Ki, Mi, Gi, Ti")
        check_within(self.gpu, 0, 1_024, "gpu")


@dataclass(frozen=True, slots=True)
class EnvVar:
    """An environment variable of a step; a secret is named and not held."""

    name: str
    value: str  # at most 32,768 characters; empty where secret_ref is not
    secret_ref: str  # `<store>:<reference>`, which the runtime resolves; empty for a plain value

    def __post_init__(self) -> None:
        check_pattern(ENV_NAME, self.name, "name", "is no variable name: [A-Za-z_][A-Za-z0-9_]*, up to 255 characters")
        check_length(self.value, 0, 32_768, "value")
        check_pattern(
            SECRET_REF,
            self.secret_ref,
            "secretRef",
            "is no <store>:<reference>: a name, ':' and 1 to 400 printable ASCII characters without space",
        )
        if self.value and self.secret_ref:
            raise invalid("value", "is not empty, as it must be beside a secretRef")


@dataclass(frozen=True, slots=True)
class DatasetInput:
    """A dataset that a step reads, through a reference that the RunSpec binds."""

    name: str
    dataset_ref: str

    def __post_init__(self) -> None:
        check_resource_id(self.name, "name")
        check_resource_id(self.dataset_ref, "datasetRef")


@dataclass(frozen=True, slots=True)
class ArtifactInput:
    """An artifact of an earlier step that a step reads."""

    name: str
    from_step: str
    artifact: str

    def __post_init__(self) -> None:
        check_resource_id(self.name, "name")
        check_resource_id(self.from_step, "fromStep")
        check_resource_id(self.artifact, "artifact")


@dataclass(frozen=True, slots=True)
class ArtifactOutput:
    """An artifact that a step writes."""

    name: str
    type: str
    media_type: str

    def __post_init__(self) -> None:
        check_resource_id(self.name, "name")
        check_resource_id(self.type, "type")
        check_media_type(self.media_type, "mediaType")


@dataclass(frozen=True, slots=True)
class StepInputs:
    """What a step reads: two sets."""

    datasets: tuple[DatasetInput, ...]
    artifacts: tuple[ArtifactInput, ...]

    def __post_init__(self) -> None:
        check_count(self.datasets, 0, MAX_ITEMS, "datasets")
        check_count(self.artifacts, 0, MAX_ITEMS, "artifacts")
        object.__setattr__(self, "datasets", sorted_set(self.datasets, lambda i: i.name, "datasets", "name"))
        object.__setattr__(self, "artifacts", sorted_set(self.artifacts, lambda i: i.name, "artifacts", "name"))


@dataclass(frozen=True, slots=True)
class StepOutputs:
    """What a step writes: a set."""

    artifacts: tuple[ArtifactOutput, ...]

    def __post_init__(self) -> None:
        check_count(self.artifacts, 0, MAX_ITEMS, "artifacts")
        object.__setattr__(self, "artifacts", sorted_set(self.artifacts, lambda o: o.name, "artifacts", "name"))


@dataclass(frozen=True, slots=True)
class Step:
    """A unit of work that a runtime executes."""

    name: str
    image: str
    command: tuple[str, ...]  # in order
    args: tuple[str, ...]  # in order
    inputs: StepInputs
    outputs: StepOutputs
    env: tuple[EnvVar, ...]  # a set
    resources: Resources
    retry_policy: RetryPolicy

    def __post_init__(self) -> None:
        check_resource_id(self.name, "name")
        check_image(self.image, "image")
        for field, words in (("command", self.command), ("args", self.args)):
            check_count(words, 0, MAX_ITEMS, field)
            for index, word in enumerate(words):
                check_length(word, 0, 4_096, f"{field}[{index}]")
        check_count(self.env, 0, MAX_ITEMS, "env")
        object.__setattr__(self, "env", sorted_set(self.env, lambda e: e.name, "env", "name"))


@dataclass(frozen=True, slots=True)
class Dependency:
    """`step` starts only after `depends_on` has succeeded."""

    step: str
    depends_on: str

    def __post_init__(self) -> None:
        check_resource_id(self.step, "step")
        check_resource_id(self.depends_on, "dependsOn")


@dataclass(frozen=True, slots=True)
class PipelineMetadata:
    """What people call a pipeline."""

    name: str
    description: str  # 0 to 2,000 characters
    labels: tuple[Label, ...]

    def __post_init__(self) -> None:
        check_resource_id(self.name, "name")
        check_length(self.description, 0, 2_000, "description")
        object.__setattr__(self, "labels", sorted_labels(self.labels))


@dataclass(frozen=True, slots=True)
class PipelineGraph:
    """The steps of a pipeline and what orders them: two sets."""

    steps: tuple[Step, ...]
    dependencies: tuple[Dependency, ...]

    def __post_init__(self) -> None:
        check_count(self.steps, 1, MAX_STEPS, "steps")
        check_count(self.dependencies, 0, MAX_EDGES, "dependencies")
        steps = sorted_set(self.steps, lambda s: s.name, "steps", "name")
        violations = Violations()
        self._check_dependencies(violations)
        self._check_artifact_inputs(violations)
        violations.raise_any()
        object.__setattr__(self, "steps", steps)
        object.__setattr__(
            self,
            "dependencies",
            tuple(sorted(set(self.dependencies), key=lambda d: (d.step, d.depends_on))),
        )
        edges = self.edges()
        if sum(map(len, edges.values())) > MAX_EDGES:
            raise invalid("dependencies", f"make more than {MAX_EDGES} edges with the artifact inputs")
        cycle = find_cycle(edges)
        if cycle:
            raise invalid("dependencies", "have a cycle: " + " -> ".join(_shortened(cycle)))

    def _check_dependencies(self, violations: Violations) -> None:
        names = {step.name for step in self.steps}
        for index, edge in enumerate(self.dependencies):
            path = f"dependencies[{index}]"
            for field, name in (("step", edge.step), ("dependsOn", edge.depends_on)):
                if name not in names:
                    violations.add(path, invalid(field, f"names no step of the pipeline: {name!r}"))
            if edge.step == edge.depends_on:
                violations.add(path, invalid("dependsOn", f"makes {edge.step!r} wait for itself"))

    def _check_artifact_inputs(self, violations: Violations) -> None:
        outputs = {step.name: {output.name for output in step.outputs.artifacts} for step in self.steps}
        for index, step in enumerate(self.steps):
            for artifact in step.inputs.artifacts:  # sorted by now: named, since the place that was sent is not known
                path = f"steps[{index}].inputs.artifacts[{artifact.name}]"
                if artifact.from_step not in outputs:
                    violations.add(path, invalid("fromStep", f"names no step of the pipeline: {artifact.from_step!r}"))
                elif artifact.from_step == step.name:
                    violations.add(path, invalid("fromStep", f"makes {step.name!r} wait for itself"))
                elif artifact.artifact not in outputs[artifact.from_step]:
                    violations.add(
                        path,
                        invalid("artifact", f"names no output of {artifact.from_step!r}: {artifact.artifact!r}"),
                    )

    def edges(self) -> dict[str, tuple[str, ...]]:
        """For each step, sorted by name: the steps that it waits for, sorted, without repeats."""
        waits: dict[str, set[str]] = {step.name: {a.from_step for a in step.inputs.artifacts} for step in self.steps}
        for edge in self.dependencies:
            waits[edge.step].add(edge.depends_on)
        return {name: tuple(sorted(waits[name])) for name in sorted(waits)}


@dataclass(frozen=True, slots=True)
class PipelineSpec:
    """A pipeline as it is registered, by digest."""

    SCHEMA: ClassVar[str] = "animus.pipeline_spec/v1"

    api_version: str
    kind: str
    metadata: PipelineMetadata
    spec: PipelineGraph

    def __post_init__(self) -> None:
        check_header(self.api_version, self.kind, "Pipeline")

    def dataset_refs(self) -> tuple[str, ...]:
        """The dataset references that a RunSpec must bind, sorted, without repeats."""
        return tuple(sorted({i.dataset_ref for step in self.spec.steps for i in step.inputs.datasets}))


def check_header(api_version: str, kind: str, expected: str) -> None:
    """Refuses a document of another API version or kind."""
    if api_version != "animus/v1":
        raise invalid("apiVersion", "is not 'animus/v1'")
    if kind != expected:
        raise invalid("kind", f"is not {expected!r}")


def load_pipeline_spec(text: bytes) -> PipelineSpec:
    """The spec that YAML or JSON text describes. Raises Invalid with the path of every field at fault."""
    return document.from_tree(document.parse_text(text), PipelineSpec)


def _shortened(cycle: list[str]) -> list[str]:
    """Both ends of a long cycle: an error travels in metadata, of which a client takes a few kilobytes."""
    left_out = len(cycle) - 2 * CYCLE_ENDS
    return [*cycle[:CYCLE_ENDS], f"({left_out} more)", *cycle[-CYCLE_ENDS:]] if left_out > 1 else cycle


def find_cycle(edges: dict[str, tuple[str, ...]]) -> list[str]:
    """A cycle as `a -> b -> … -> a`, each waiting for the next, from its smallest name; empty if there is none."""
    try:
        graphlib.TopologicalSorter(edges).prepare()
    except graphlib.CycleError as error:
        cycle: list[str] = error.args[1][:0:-1]  # the library names the step that is waited for first
        start = cycle.index(min(cycle))
        return [*cycle[start:], *cycle[:start], cycle[start]]
    return []
