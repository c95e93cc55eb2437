"""Runs with all that evidence of them is made of: one that is fixed, and any that could have happened."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence

from hypothesis.strategies import SearchStrategy

from animus.domain import document
from animus.domain.dataset import Column, DatasetVersion, File, FileManifest
from animus.domain.environment import EnvironmentLock, Image, Package
from animus.domain.evidence import RunEvidence
from animus.domain.labels import Label
from animus.domain.lineage import (
    LineageEdge,
    edge_of_artifact,
    edge_of_replay,
    edges_of_gates,
    edges_of_run,
    edges_of_start,
)
from animus.domain.pipeline import (
    ArtifactInput,
    ArtifactOutput,
    Backoff,
    BackoffType,
    DatasetInput,
    ErrorKind,
    PipelineGraph,
    PipelineMetadata,
    PipelineSpec,
    RetryKind,
    RetryPolicy,
    StepInputs,
    StepOutputs,
)
from animus.domain.plan import make_plan
from animus.domain.quality import (
    EVALUATOR,
    QualityCheck,
    QualityCheckType,
    QualityEvaluation,
    QualityOutcome,
    QualityResult,
    QualityRule,
    QualitySeverity,
    QualityVerdict,
)
from animus.domain.quality_gate import QualityGate, QualityRequirement
from animus.domain.run import (
    NO_GATES,
    Artifact,
    Commit,
    DatasetBinding,
    GateFacts,
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
    derive_state,
    judge_event,
)
from domain import values
from domain.values import IMAGE, ONE, RUN_ID, bare_step, generated

PROJECT = "cells"
ORIGIN = "animus.example/lab/cells/1"
STARTED, SUCCEEDED, FAILED, CANCELED = StepEventType


class World:
    """A run on which events happen one after the other, as the server would take them."""

    def __init__(
        self,
        run_id: str,
        pipeline: PipelineSpec,
        spec: RunSpec,
        create_time: str,
        *,
        planned: bool,
        judged: Judged | None = None,
        override_reason: str = "",
    ) -> None:
        digest = document.digest(document.dump(spec))
        self.judged = judged or Judged(NO_GATES)
        admission = admit(
            PROJECT,
            spec,
            pipeline_registered=True,
            environment_registered=True,
            versions_registered=frozenset((each.dataset_id, each.content_digest) for each in spec.datasets),
            gates=self.judged.facts,
            override_reason=override_reason,
        )
        self.run = Run(run_id, digest, create_time, (Label("team", "a"),), admission, "")
        self.pipeline, self.spec = pipeline, spec
        self.plan = make_plan(digest, spec.pipeline_spec_digest, pipeline) if planned else None
        self.plan_digest = document.digest(document.dump(self.plan)) if self.plan else ""
        self.state = derive_state(self.plan, (), cancel_requested=False)
        self.events: list[RunEvent] = []
        self.artifacts: list[Artifact] = []
        self.edges: list[LineageEdge] = [
            *edges_of_run(PROJECT, run_id, spec),
            *edges_of_gates(PROJECT, run_id, admission),
        ]
        if self.plan:
            self._append(RunEventType.PLANNED, plan_digest=self.plan_digest)

    def _append(
        self, kind: RunEventType, *, plan_digest: str = "", reason: str = "", step: StepEvent | None = None
    ) -> None:
        happened = (step,) if step else ()
        state = self.state.run
        self.events.append(RunEvent(self.run.run_id, len(self.events) + 1, kind, plan_digest, reason, happened, state))

    def cancel(self) -> None:
        """Asks for cancellation."""
        self.state.request_cancel()
        self._append(RunEventType.CANCEL_REQUESTED, reason="enough")

    def happen(
        self,
        step: str,
        attempt: int,
        kind: StepEventType,
        time: str,
        error: ErrorKind = ErrorKind.NONE,
        message: str = "",
    ) -> None:
        """Adds an event that may follow."""
        event = StepEvent(f"{step}-{attempt}-{kind}", step, attempt, kind, error, message, time)
        assert judge_event(event, self.state, ()) is None
        self.state.apply(event)
        self._append(RunEventType.STEP, step=event)
        if kind is STARTED:
            produced = {
                (each.step, each.name): each.digest
                for each in self.artifacts
                if self.state.attempts[each.step][each.attempt].state is AttemptState.SUCCEEDED
            }
            declared = next(each for each in self.pipeline.spec.steps if each.name == step)
            self.edges += edges_of_start(PROJECT, self.run.run_id, declared, attempt, self.spec, produced)

    def write(self, step: str, attempt: int, name: str, digest: str) -> None:
        """Adds an output."""
        artifact = Artifact(self.run.run_id, step, attempt, name, digest, 7, f"file:///{name}")
        self.artifacts.append(artifact)
        self.edges.append(edge_of_artifact(PROJECT, artifact))

    def replay(self, run_id: str) -> None:
        """Makes the run one that replays another."""
        self.run = dataclasses.replace(self.run, replay_of=run_id)
        self.edges.append(edge_of_replay(PROJECT, self.run.run_id, run_id))

    def evidence(self, environment: EnvironmentLock, versions: tuple[DatasetVersion, ...]) -> RunEvidence:
        """All of it."""
        return RunEvidence(
            project_id=PROJECT,
            origin=ORIGIN,
            run=self.run,
            run_digest=document.digest(document.dump(self.run)),
            spec=self.spec,
            pipeline=self.pipeline,
            environment=environment,
            versions=versions,
            evaluations=self.judged.evaluations,
            rules=self.judged.rules,
            plan=self.plan,
            plan_digest=self.plan_digest,
            events=tuple(self.events),
            artifacts=tuple(self.artifacts),
            edges=tuple(self.edges),
        )


def digest_of(text: str) -> str:
    """The digest of a text."""
    return document.digest(text.encode())


def digest_of_value(value: object) -> str:
    """The digest of a document."""
    return document.digest(document.dump(value))


def evaluated(
    binding: DatasetBinding, rule: QualityRule, evaluator: str, verdict: QualityVerdict, time: str
) -> QualityEvaluation:
    """A verdict on a bound version, with the one result that comes to it."""
    severity = QualitySeverity.WARN if verdict is QualityVerdict.WARN else QualitySeverity.ERROR
    outcome = {
        QualityVerdict.PASS: QualityOutcome.PASS,
        QualityVerdict.ERROR: QualityOutcome.ERROR,
    }.get(verdict, QualityOutcome.FAIL)
    return QualityEvaluation(
        binding.dataset_id, binding.content_digest, digest_of_value(rule), rule.rule_id, digest_of("profile"),
        evaluator, "1", verdict, (QualityResult("rows", severity, outcome, "7", "" if outcome == "pass" else "few"),),
        time,
    )  # fmt: skip


def rule_of(rule_id: str) -> QualityRule:
    """A rule about the number of rows."""
    check = QualityCheck(
        "rows", QualitySeverity.ERROR, QualityCheckType.ROW_COUNT, "", "1", "", (), "", "", "", (), ""
    )  # fmt: skip
    return QualityRule(rule_id, "", (), (check,))


@dataclasses.dataclass
class Judged:
    """What gates find, with the evaluations that they look at and our rules of these."""

    facts: GateFacts
    evaluations: tuple[QualityEvaluation, ...] = ()
    rules: tuple[QualityRule, ...] = ()


def judged(gates: Sequence[QualityGate], found: Sequence[tuple[QualityEvaluation, QualityRule]]) -> Judged:
    """The newest verdicts of these, for these gates."""
    newest = {
        (each.dataset_id, each.content_digest, each.rule_digest, each.evaluator): (digest_of_value(each), each.verdict)
        for each, _ in found
    }
    rules = {digest_of_value(rule): rule for each, rule in found if each.evaluator == EVALUATOR}
    return Judged(
        GateFacts({digest_of_value(gate): gate for gate in gates}, newest),
        tuple(each for each, _ in found),
        tuple(rules.values()),
    )


def any_judged(rng: random.Random, spec: RunSpec) -> Judged:
    """Gates that ask all of a run's bindings for anything, and some verdicts, each looked at."""
    rules = [rule_of("a"), rule_of("b")]
    asked = [(rule, rng.choice([EVALUATOR, "dbt"])) for rule in rules if rng.random() < 0.7]
    requirements = tuple(QualityRequirement("", "", digest_of_value(rule), evaluator) for rule, evaluator in asked)
    gates = [
        QualityGate(pipeline, requirements, override_allowed=True, set_time=values.time(rng))
        for pipeline in ("", "x") if rng.random() < 0.7
    ]  # fmt: skip
    pairs = {(each.dataset_id, each.content_digest): each for each in spec.datasets}
    found = [
        (evaluated(binding, rule, evaluator, rng.choice([*QualityVerdict][1:]), values.time(rng)), rule)
        for binding in pairs.values() for rule, evaluator in asked if gates and rng.random() < 0.8
    ]  # fmt: skip
    return judged(gates, found)


def fixed_run(*, gated: bool = False) -> RunEvidence:
    """Three steps, the second of them repeated after a failure that had written an output.

    Gated, it was let in by a warning, by another tool, and by an override.
    """
    files = FileManifest((File("part-1.csv", 3, digest_of("1")), File("part-2.csv", 4, digest_of("2"))))
    version = DatasetVersion(
        "measurements", document.digest(document.dump(files)), 7, "text/csv", "s3://cells/measurements",
        (Column("id", "int64"), Column("größe", "float64")), files.files,
    )  # fmt: skip
    environment = EnvironmentLock((Image(IMAGE),), "3.11.7", "linux", "x86_64", (Package("numpy", "2.0"),), "", ())
    once = RetryPolicy(1, (), Backoff(BackoffType.FIXED, 0, 0, "1"))
    twice = RetryPolicy(2, (RetryKind.SYSTEM,), Backoff(BackoffType.FIXED, 5, 5, "1"))
    split = dataclasses.replace(
        bare_step("split", once, outputs=2), inputs=StepInputs((DatasetInput("data", "data"),), ())
    )
    fit = dataclasses.replace(
        bare_step("fit", twice),
        inputs=StepInputs((), (ArtifactInput("train", "split", "o0"),)),
        outputs=StepOutputs((ArtifactOutput("model", "model", "application/octet-stream"),)),
    )
    judge = dataclasses.replace(
        bare_step("judge", once, outputs=1),
        inputs=StepInputs(
            (DatasetInput("base", "data"),),
            (ArtifactInput("model", "fit", "model"), ArtifactInput("test", "split", "o1")),
        ),
    )
    pipeline = PipelineSpec(
        "animus/v1", "Pipeline", PipelineMetadata("train", "Grüße 😂", ()), PipelineGraph((split, fit, judge), ())
    )
    spec = RunSpec(
        "animus/v1", "Run", document.digest(document.dump(pipeline)),
        (DatasetBinding("data", "measurements", version.content_digest),),
        Commit("https://git.test/lab/cells.git", "c" * 40), document.digest(document.dump(environment)),
        (Parameter("seed", ParameterType.INT, "7"), Parameter("lr", ParameterType.DECIMAL, "0.1")),
    )  # fmt: skip

    def at(second: int) -> str:
        return f"2026-01-02T03:04:{second:02}.000000Z"

    by_gates = Judged(NO_GATES)
    if gated:
        rules = [rule_of(name) for name in ("fresh", "late", "never", "whole")]
        asked = [
            QualityRequirement("", "measurements", digest_of_value(rule), evaluator)
            for rule, evaluator in zip(rules, [EVALUATOR, EVALUATOR, EVALUATOR, "great-expectations"], strict=True)
        ]
        (binding,), time = spec.datasets, "2026-01-02T03:04:00.000000Z"
        by_gates = judged(
            [
                QualityGate("train", tuple(asked), override_allowed=True, set_time=time),
                QualityGate("", (), override_allowed=False, set_time=time),
            ],
            [
                (evaluated(binding, rules[0], EVALUATOR, QualityVerdict.WARN, time), rules[0]),
                (evaluated(binding, rules[1], EVALUATOR, QualityVerdict.FAIL, time), rules[1]),
                (evaluated(binding, rules[3], "great-expectations", QualityVerdict.PASS, time), rules[3]),
            ],
        )
    reason = "the rule of rows is to be mended" if gated else ""
    world = World(RUN_ID, pipeline, spec, at(0), planned=True, judged=by_gates, override_reason=reason)
    world.happen("split", 1, STARTED, at(1))
    world.write("split", 1, "o0", digest_of("train"))
    world.write("split", 1, "o1", digest_of("test"))
    world.happen("split", 1, SUCCEEDED, at(2))
    world.happen("fit", 1, STARTED, at(3))
    world.write("fit", 1, "model", digest_of("half a model"))
    world.happen("fit", 1, FAILED, at(4), ErrorKind.SYSTEM, 'node "a"\nwas lost')
    world.happen("fit", 2, STARTED, at(9))
    world.write("fit", 2, "model", digest_of("model"))
    world.happen("fit", 2, SUCCEEDED, at(10))
    world.happen("judge", 1, STARTED, at(11))
    world.write("judge", 1, "o0", digest_of("report"))
    world.happen("judge", 1, SUCCEEDED, at(12))
    assert world.state.run is RunState.SUCCEEDED
    return world.evidence(environment, (version,))


def random_run(rng: random.Random) -> RunEvidence:
    """A run of any pipeline that got any distance."""
    pipeline, environment = values.pipeline(rng), values.environment_lock(rng)
    versions = [values.dataset_version(rng) for _ in range(2)]
    bound = {ref: rng.choice(versions) for ref in pipeline.dataset_refs()}
    repositories = ["https://git.test/a%20b", "git@git.test:a/b.git", "ssh://git@git.test:22/a", values.printable(rng)]
    spec = RunSpec(
        "animus/v1",
        "Run",
        document.digest(document.dump(pipeline)),
        tuple(DatasetBinding(ref, each.dataset_id, each.content_digest) for ref, each in bound.items()),
        Commit(rng.choice(repositories), rng.choice(["c" * 40, "0123456789abcdef" * 4])),
        document.digest(document.dump(environment)),
        values.some(rng, values.parameter, key=lambda each: each.name),
    )
    world = World(
        values.random_id(rng), pipeline, spec, values.time(rng), planned=rng.random() < 0.9,
        judged=any_judged(rng, spec), override_reason="it is known",
    )  # fmt: skip
    for _ in range(rng.randint(0, 40)):
        if world.state.run.final:
            break
        if rng.random() < 0.03:
            world.cancel()
        else:
            advance(world, rng)
    if rng.random() < 0.2:
        world.replay(values.random_id(rng))
    used = {(each.dataset_id, each.content_digest): each for each in bound.values()}
    return world.evidence(environment, tuple(used.values()))


def advance(world: World, rng: random.Random) -> None:
    """Lets one thing happen that may, if chance finds one."""
    if not world.plan:
        return
    step = rng.choice(world.plan.steps).name
    running = [number for number, each in world.state.attempts[step].items() if each.state is AttemptState.RUNNING]
    attempt = running[0] if running else max(world.state.attempts[step], default=0) + 1
    kind = rng.choice([SUCCEEDED, SUCCEEDED, FAILED, CANCELED]) if running else STARTED
    error = rng.choice([ErrorKind.USER, ErrorKind.SYSTEM]) if kind is FAILED else ErrorKind.NONE
    message, time = values.text(rng, 4_000), values.time(rng)
    if judge_event(StepEvent("e", step, attempt, kind, error, message, time), world.state, ()) is not None:
        return
    declared = next(each for each in world.pipeline.spec.steps if each.name == step)
    for output in declared.outputs.artifacts:
        if running and (kind is SUCCEEDED or rng.random() < 0.5):
            world.write(step, attempt, output.name, rng.choice([ONE, values.digest(rng)]))
    world.happen(step, attempt, kind, time, error, message)


RUNS: SearchStrategy[RunEvidence] = generated(random_run)
