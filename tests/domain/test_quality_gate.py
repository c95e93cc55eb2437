"""Gates: what they ask of which binding, which verdicts let in, and what an override may do."""

import dataclasses
import itertools
import random
from typing import Any

import pytest
from hypothesis import given

from animus.domain.errors import Invalid
from animus.domain.quality import QualityVerdict
from animus.domain.quality_gate import QualityGate, QualityRequirement
from animus.domain.run import (
    NO_GATES,
    AdmissionDecision,
    AdmissionOutcome,
    AdmissionRefusal,
    DatasetBinding,
    GateFacts,
    Run,
    RunSpec,
    admit,
)
from domain.values import LAW, ONE, SAMPLES, TIME, TWO, digest, generated, refusal

SAMPLE: RunSpec = SAMPLES[RunSpec]
DECIDED: AdmissionDecision = SAMPLES[Run].admission
THREE = "sha256:" + "3" * 64
ADMITTED, REFUSED = AdmissionOutcome


def decided(spec: RunSpec, gates: GateFacts, reason: str = "", *, registered: bool = True) -> AdmissionDecision:
    """The decision on a RunSpec."""
    pairs = frozenset((each.dataset_id, each.content_digest) for each in spec.datasets)
    return admit(
        "p", spec, pipeline_registered=registered, environment_registered=True, versions_registered=pairs,
        gates=gates, override_reason=reason,
    )  # fmt: skip


def gate(*requirements: tuple[str, str, str], allowed: bool = True, pipeline: str = "") -> QualityGate:
    """A gate that asks for verdicts of one evaluator: dataset_ref, dataset and rule."""
    asked = tuple(QualityRequirement(ref, dataset, rule, "animus") for ref, dataset, rule in requirements)
    return QualityGate(pipeline, asked, allowed, TIME)


def bound(*pairs: tuple[str, str]) -> RunSpec:
    """A RunSpec with these bindings: dataset_ref and dataset."""
    return dataclasses.replace(SAMPLE, datasets=tuple(DatasetBinding(ref, dataset, ONE) for ref, dataset in pairs))


def small(rng: random.Random) -> tuple[RunSpec, GateFacts]:
    """Few names, so that requirements meet bindings and each other."""
    spec = bound(*((ref, rng.choice("xy")) for ref in rng.sample("abc", rng.randint(0, 3))))
    gates = {
        digest(rng): gate(
            *{(rng.choice(["", "a", "b"]), rng.choice(["", "x", "y"]), rng.choice([ONE, TWO])) for _ in range(4)},
            allowed=rng.random() < 0.5,
        )
        for _ in range(rng.randint(0, 2))
    }
    newest = {
        (dataset, ONE, rule, "animus"): (digest(rng), rng.choice([*QualityVerdict][1:]))
        for dataset in "xy" for rule in (ONE, TWO) if rng.random() < 0.7
    }  # fmt: skip
    return spec, GateFacts(gates, newest)


@LAW
@given(generated(small))
def test_each_requirement_is_asked_of_each_binding_that_it_names(world: tuple[RunSpec, GateFacts]) -> None:
    """As looking at all pairs finds it; in by PASS and WARN alone; in one order, whatever order things came in."""
    spec, facts = world
    expected = {}
    for name, each in facts.gates.items():
        for asked, binding in itertools.product(each.requirements, spec.datasets):
            if asked.dataset_ref in ("", binding.dataset_ref) and asked.dataset_id in ("", binding.dataset_id):
                key = (binding.dataset_id, ONE, asked.rule_digest, "animus")
                found, verdict = facts.newest.get(key, ("", QualityVerdict.NONE))
                outcome = ADMITTED if verdict in ("pass", "warn") else REFUSED
                expected[(name, binding.dataset_ref, *key)] = (found, verdict, outcome)
    decision = decided(spec, facts)
    checks = decision.gate_checks
    assert {each.key: (each.evaluation_digest, each.verdict, each.outcome) for each in checks} == expected
    assert [each.key for each in checks] == sorted(expected)
    assert decision.gates == tuple(sorted(facts.gates))
    assert (decision.outcome is ADMITTED) == all(outcome is ADMITTED for _, _, outcome in expected.values())
    other = GateFacts(dict(reversed(facts.gates.items())), facts.newest)
    assert decided(dataclasses.replace(spec, datasets=spec.datasets[::-1]), other) == decision


def test_an_override_is_for_what_gates_refuse_and_allow() -> None:
    """Both gates of a run, refusing or not, allowing it or not, with a reason and without, a binding unknown or not."""
    spec = bound(("a", "x"))
    for refuses, allows in itertools.product(itertools.product([False, True], repeat=2), repeat=2):
        gates = {
            name: gate(("", "", rule), allowed=allowed)
            for name, rule, allowed in zip((ONE, TWO), (TWO if r else ONE for r in refuses), allows, strict=True)
        }
        facts = GateFacts(gates, {("x", ONE, ONE, "animus"): (THREE, QualityVerdict.PASS)})
        for reason, registered in itertools.product(["", "known"], [False, True]):
            decision = decided(spec, facts, reason, registered=registered)
            overridden = any(refuses) and reason != "" and all(a for a, r in zip(allows, refuses, strict=True) if r)
            assert decision.override_reason == (reason if overridden else "")
            assert (decision.outcome is ADMITTED) == (registered and (overridden or not any(refuses)))
            assert len(decision.refused_by_gates()) == sum(refuses)


def test_evaluations_are_cited_once() -> None:
    """Two gates that ask the same rest on one evaluation, and a version that has none cites none."""
    facts = GateFacts(
        {ONE: gate(("", "", ONE)), TWO: gate(("", "x", ONE))},
        {("x", ONE, ONE, "animus"): (THREE, QualityVerdict.WARN)},
    )
    decision = decided(bound(("a", "x"), ("b", "x"), ("c", "y")), facts)
    assert len(decision.gate_checks) == 5
    assert decision.evaluations() == (THREE,)
    assert decided(SAMPLE, NO_GATES).evaluations() == ()


def test_a_run_of_too_many_checks_is_refused() -> None:
    """10,000 are decided on, and one more is none; a requirement that names its binding costs one check."""
    rules = [f"sha256:{number:064x}" for number in range(100)]
    many = gate(*(("", "", rule) for rule in rules))
    spec = bound(*((f"r{number}", "x") for number in range(100)))
    assert len(decided(spec, GateFacts({ONE: many}, {})).gate_checks) == 10_000
    named = gate(*(("r0", "", rule) for rule in rules))
    assert len(decided(spec, GateFacts({ONE: named}, {})).gate_checks) == 100
    more = GateFacts({ONE: many, TWO: gate(("r0", "", ONE))}, {})
    assert refusal(decided, spec, more).field == "datasets"


CHECK = next(each for each in DECIDED.gate_checks if each.evaluation_digest)


@pytest.mark.parametrize(
    ("made", "changes", "field"),
    [
        (DECIDED, {"outcome": REFUSED}, "outcome"),
        (DECIDED, {"override_reason": ""}, "outcome"),
        (DECIDED, {"override_reason": "x" * 2_001}, "overrideReason"),
        (DECIDED, {"gates": (ONE, ONE)}, "gates[1]"),
        (DECIDED, {"gates": ("x",)}, "gates[0]"),
        (DECIDED, {"gate_checks": (CHECK, CHECK)}, "gateChecks[1]"),
        (DECIDED, {"gate_checks": ()}, "overrideReason"),
        (CHECK, {"outcome": ADMITTED}, "outcome"),
        (CHECK, {"verdict": QualityVerdict.NONE}, "verdict"),
        (CHECK, {"evaluation_digest": ""}, "verdict"),
        (CHECK, {"evaluation_digest": "x"}, "evaluationDigest"),
        (CHECK, {"gate_digest": "x"}, "gateDigest"),
        (CHECK, {"dataset_ref": ""}, "datasetRef"),
        (CHECK, {"dataset_id": ""}, "datasetId"),
        (CHECK, {"content_digest": "x"}, "contentDigest"),
        (CHECK, {"rule_digest": "x"}, "ruleDigest"),
        (CHECK, {"evaluator": ""}, "evaluator"),
        (SAMPLES[AdmissionRefusal], {"decision": DECIDED}, "decision.outcome"),
        (SAMPLES[AdmissionRefusal], {"run_spec_digest": "x"}, "runSpecDigest"),
        (SAMPLES[AdmissionRefusal], {"pipeline_spec_digest": "x"}, "pipelineSpecDigest"),
        (SAMPLES[AdmissionRefusal], {"replay_of": "x"}, "replayOf"),
        (SAMPLES[AdmissionRefusal], {"refuse_time": "x"}, "refuseTime"),
        (SAMPLES[QualityGate], {"pipeline": "A"}, "pipeline"),
        (SAMPLES[QualityGate], {"set_time": "x"}, "setTime"),
        (SAMPLES[QualityGate], {"requirements": SAMPLES[QualityGate].requirements[:1] * 2}, "requirements[1]"),
    ],
)  # fmt: skip
def test_a_value_that_does_not_fit_together_is_refused(made: Any, changes: dict[str, Any], field: str) -> None:
    """Each field by its path; a decision is what follows from its checks."""
    with pytest.raises(Invalid) as found:
        dataclasses.replace(made, **changes)
    assert [each.field for each in found.value.violations] == [field]
