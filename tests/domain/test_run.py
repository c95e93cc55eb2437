"""RunSpec, bindings and admission: one value whatever the form and order, every fault named by its path."""

import copy
import dataclasses
import json
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from animus.codec import decode
from animus.domain import document
from animus.domain.document import MAX_INTEGER
from animus.domain.errors import Invalid
from animus.domain.labels import Label
from animus.domain.pipeline import PipelineSpec
from animus.domain.run import (
    MAX_BINDINGS,
    MAX_PARAMETERS,
    NO_GATES,
    AdmissionOutcome,
    Artifact,
    DatasetBinding,
    Metric,
    Parameter,
    ParameterType,
    Run,
    RunSpec,
    admit,
    check_bindings,
    load_run_spec,
)
from animus.v1 import run_pb2
from domain.values import LAW, ONE, RUN_ID, SAMPLES, TIME, TWO, as_yaml, fill, generated, refusal, run_spec

SAMPLE: RunSpec = SAMPLES[RunSpec]
TREE: Any = document.tree_of(SAMPLE)
PIPELINE: PipelineSpec = SAMPLES[PipelineSpec]  # refers to `data`


def faults(tree: Any) -> list[str]:
    """The paths at fault, the same in YAML, JSON and a message."""
    found = []
    message = run_pb2.RunSpec()
    fill(message, tree)
    readers: list[Callable[[], RunSpec]] = [
        lambda: load_run_spec(json.dumps(tree).encode()),
        lambda: load_run_spec(as_yaml(tree)),
        lambda: decode(message, RunSpec, "runSpec"),
    ]
    for read in readers:
        with pytest.raises(Invalid) as caught:
            read()
        found.append([each.field.removeprefix("runSpec.") for each in caught.value.violations])
    assert found[0] == found[1] == found[2]
    return found[0]


def changed(**changes: Any) -> Any:
    """The sample's tree with some fields changed."""
    return {**copy.deepcopy(TREE), **changes}


def parameter(kind: str, value: str, name: str = "a") -> dict[str, str]:
    """A parameter's tree."""
    return {"name": name, "type": kind, "value": value}


def binding(ref: str, dataset: str = "d", digest: str = ONE) -> dict[str, str]:
    """A binding's tree."""
    return {"datasetRef": ref, "datasetId": dataset, "contentDigest": digest}


@pytest.mark.parametrize(
    ("tree", "path"),
    [
        (changed(apiVersion="animus/v2"), "apiVersion"),
        (changed(kind="Pipeline"), "kind"),
        (changed(pipelineSpecDigest="latest"), "pipelineSpecDigest"),
        (changed(pipelineSpecDigest="1" * 64), "pipelineSpecDigest"),
        (changed(pipelineSpecDigest="sha256:" + "A" * 64), "pipelineSpecDigest"),
        (changed(environmentLockDigest="python:3.11"), "environmentLockDigest"),
        (changed(environmentLockDigest=""), "environmentLockDigest"),
        (changed(commit={"repository": "r", "sha": "abc1234"}), "commit.sha"),
        (changed(commit={"repository": "r", "sha": "main"}), "commit.sha"),
        (changed(commit={"repository": "r", "sha": "c" * 41}), "commit.sha"),
        (changed(commit={"repository": "r", "sha": "C" * 40}), "commit.sha"),
        (changed(commit={"repository": "", "sha": "c" * 40}), "commit.repository"),
        (changed(commit={"repository": "a b", "sha": "c" * 40}), "commit.repository"),
        (changed(commit={"repository": "r\n", "sha": "c" * 40}), "commit.repository"),
        (changed(datasets=[binding("a"), binding("b", digest="v1.2")]), "datasets[1].contentDigest"),
        (changed(datasets=[binding("a", dataset="A")]), "datasets[0].datasetId"),
        (changed(datasets=[binding("a\x00")]), "datasets[0].datasetRef"),
        (changed(datasets=[binding("b"), binding("a"), binding("b", digest=TWO)]), "datasets[2].datasetRef"),
        (changed(parameters=[parameter("string", "a"), parameter("int", "1")]), "parameters[1].name"),
        (changed(parameters=[parameter("string", "a", "1a")]), "parameters[0].name"),
        (changed(parameters=[parameter("string", "a\x00")]), "parameters[0].value"),
        (changed(parameters=[parameter("string", "a" * 32_769)]), "parameters[0].value"),
        (changed(parameters=[parameter("string", "", f"p{n}") for n in range(MAX_PARAMETERS + 1)]), "parameters"),
        *(
            (changed(parameters=[parameter("int", value)]), "parameters[0].value")
            for value in ("", "01", "-0", "+1", "1.0", "1e3", "0x1", "1_000", " 1", "1\n", "١", "NaN")
        ),
        *(
            (changed(parameters=[parameter("bool", value)]), "parameters[0].value")
            for value in ("", "True", "1", "yes", "on", "true\n", "ｔrue")
        ),
        *(
            (changed(parameters=[parameter("decimal", value)]), "parameters[0].value")
            for value in ("", "1.0", "01", "-0", "-0.0", ".5", "5.", "1e3", "NaN", "inf", "-Infinity", "1,5", "0.5\n")
        ),
    ],
)
def test_a_rule_that_is_broken_is_named(tree: Any, path: str) -> None:
    """Each fault has the path of its field, in whatever form the spec was sent."""
    assert faults(tree) == [path]


@pytest.mark.parametrize("field", TREE)
def test_a_missing_field_is_named(field: str) -> None:
    """Every field is required, empty lists included."""
    tree = changed()
    del tree[field]
    found = refusal(load_run_spec, json.dumps(tree).encode())
    assert (found.field, found.description.split(";")[0]) == (field, "is missing")


@pytest.mark.parametrize(
    ("tree", "path"),
    [
        (changed(labels=[]), "labels"),
        (changed(createTime=TIME), "createTime"),
        (changed(parameters=[{**parameter("int", "1"), "unit": "s"}]), "parameters[0].unit"),
        (changed(parameters=[{**parameter("int", "1"), "value": 1}]), "parameters[0].value"),
        (changed(parameters=[{**parameter("int", "1"), "value": 0.5}]), "parameters[0].value"),
        (changed(parameters=[{**parameter("int", "1"), "value": None}]), "parameters[0].value"),
        (changed(parameters=[parameter("float", "1")]), "parameters[0].type"),
        (changed(parameters=[parameter("PARAMETER_TYPE_INT", "1")]), "parameters[0].type"),
        (changed(parameters=None), "parameters"),
        (changed(parameters={"seed": "7"}), "parameters"),
        (changed(commit="c" * 40), "commit"),
        (changed(pipelineSpecDigest=2**53), "pipelineSpecDigest"),
    ],
)
def test_what_only_text_can_say_is_named(tree: Any, path: str) -> None:
    """Unknown fields, other types, null and floats are refused at their place: nothing is converted."""
    for text in (json.dumps(tree).encode(), as_yaml(tree)):
        assert refusal(load_run_spec, text).field == path


@LAW
@given(generated(run_spec), st.integers())
def test_yaml_json_and_message_give_one_value(spec: RunSpec, seed: int) -> None:
    """One spec has one value and one digest, whatever form and order it was sent in."""
    tree: Any = document.tree_of(spec)
    rng = random.Random(seed)
    rng.shuffle(tree["datasets"])
    rng.shuffle(tree["parameters"])
    message = run_pb2.RunSpec()
    fill(message, tree)
    assert decode(message, RunSpec, "x") == spec
    assert load_run_spec(json.dumps(tree).encode()) == spec
    assert load_run_spec(json.dumps(tree, ensure_ascii=False, indent=1).encode()) == spec
    assert load_run_spec(as_yaml(tree)) == spec
    assert document.dump(load_run_spec(as_yaml(tree, sort_keys=False))) == document.dump(spec)


def test_everything_in_a_spec_is_part_of_its_digest() -> None:
    """Changing any one thing that decides what a run computes gives another digest."""
    first, second = SAMPLE.parameters
    others = [
        dataclasses.replace(SAMPLE, pipeline_spec_digest=TWO),
        dataclasses.replace(SAMPLE, environment_lock_digest=ONE),
        dataclasses.replace(SAMPLE, commit=dataclasses.replace(SAMPLE.commit, sha="d" * 40)),
        dataclasses.replace(SAMPLE, commit=dataclasses.replace(SAMPLE.commit, repository="x")),
        dataclasses.replace(SAMPLE, datasets=SAMPLE.datasets[:1]),
        dataclasses.replace(SAMPLE, datasets=(dataclasses.replace(SAMPLE.datasets[0], dataset_id="x"),)),
        dataclasses.replace(SAMPLE, parameters=(first,)),
        dataclasses.replace(SAMPLE, parameters=(first, dataclasses.replace(second, value="8"))),
        dataclasses.replace(SAMPLE, parameters=(first, dataclasses.replace(second, name="sead"))),
        dataclasses.replace(SAMPLE, parameters=(first, dataclasses.replace(second, type=ParameterType.STRING))),
    ]
    assert len({document.digest(document.dump(spec)) for spec in [SAMPLE, *others]}) == len(others) + 1


def test_large_numbers_are_parameters_as_text() -> None:
    """An integer or decimal of any size is kept to its last digit."""
    for kind, value in ((ParameterType.INT, "-" + "9" * 1_000), (ParameterType.DECIMAL, "0." + "0" * 500 + "1")):
        spec = dataclasses.replace(SAMPLE, parameters=(Parameter("a", kind, value),))
        assert document.load(document.dump(spec), RunSpec).parameters[0].value == value


def test_the_bounds_on_sets_are_exact() -> None:
    """1,000 parameters and 10,000 bindings stand, one more does not."""
    parameters = tuple(Parameter(f"p{n}", ParameterType.STRING, "") for n in range(MAX_PARAMETERS + 1))
    bindings = tuple(DatasetBinding(f"r{n}", "d", ONE) for n in range(MAX_BINDINGS + 1))
    spec = dataclasses.replace(SAMPLE, parameters=parameters[1:], datasets=bindings[1:])
    assert (len(spec.parameters), len(spec.datasets)) == (MAX_PARAMETERS, MAX_BINDINGS)
    assert refusal(dataclasses.replace, SAMPLE, parameters=parameters).field == "parameters"
    assert refusal(dataclasses.replace, SAMPLE, datasets=bindings).field == "datasets"


# Bindings and admission.


def with_bindings(*refs: str) -> RunSpec:
    """The sample with these references bound."""
    return dataclasses.replace(SAMPLE, datasets=tuple(DatasetBinding(ref, "d", ONE) for ref in refs))


def test_a_binding_for_each_reference_is_enough() -> None:
    """Exactly the references of the pipeline, bound in any order, pass."""
    check_bindings(with_bindings("data"), PIPELINE, ["data"])


def test_a_binding_that_is_missing_or_extra_is_named() -> None:
    """A missing one by its reference, an extra one by the place at which the caller sent it; all at once."""
    missing = refusal(check_bindings, with_bindings(), PIPELINE, [])
    assert missing.field == "datasets"
    assert "'data'" in missing.description
    extra = refusal(check_bindings, with_bindings("data", "x"), PIPELINE, ["x", "data"])
    assert extra.field == "datasets[0].datasetRef"
    with pytest.raises(Invalid) as caught:
        check_bindings(with_bindings("b", "a"), PIPELINE, ["b", "a"])
    assert [each.field for each in caught.value.violations] == [
        "datasets", "datasets[0].datasetRef", "datasets[1].datasetRef",
    ]  # fmt: skip


@LAW
@given(generated(run_spec), st.booleans(), st.booleans(), st.data())
def test_admission_asks_for_everything_that_is_bound(spec: RunSpec, pipeline: bool, lock: bool, data: Any) -> None:
    """A run is let in exactly when its pipeline, its environment and each version are the project's."""
    every = sorted({(each.dataset_id, each.content_digest) for each in spec.datasets})
    known = frozenset(data.draw(st.sets(st.sampled_from(every)))) if every else frozenset()
    decision = admit(
        "p",
        spec,
        pipeline_registered=pipeline,
        environment_registered=lock,
        versions_registered=known,
        gates=NO_GATES,
        override_reason="",
    )
    expected = pipeline and lock and known == set(every)
    assert (decision.outcome is AdmissionOutcome.ADMITTED) == expected == (decision.refused() == ())
    assert len(decision.checks) == 2 + len(spec.datasets)
    assert list(decision.checks) == sorted(decision.checks, key=lambda check: (check.name, check.subject, check.field))
    assert {check.field for check in decision.refused()} == {
        *([] if pipeline else ["pipelineSpecDigest"]),
        *([] if lock else ["environmentLockDigest"]),
        *(
            f"datasets[{each.dataset_ref}]"
            for each in spec.datasets
            if (each.dataset_id, each.content_digest) not in known
        ),
    }


def test_a_version_of_another_dataset_is_another_version() -> None:
    """The same digest registered under another dataset does not admit a binding."""
    decision = admit(
        "p",
        with_bindings("data"),
        pipeline_registered=True,
        environment_registered=True,
        versions_registered=frozenset({("other", ONE)}),
        gates=NO_GATES,
        override_reason="",
    )
    (refused,) = decision.refused()
    assert refused.subject == f"projects/p/datasets/d/versions/{ONE}"


# Records of a run.

ADMISSION = SAMPLES[Run].admission


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: Run("1", ONE, TIME, (), ADMISSION, ""), "runId"),
        (lambda: Run("A" * 32, ONE, TIME, (), ADMISSION, ""), "runId"),
        (lambda: Run(RUN_ID, "x", TIME, (), ADMISSION, ""), "runSpecDigest"),
        (lambda: Run(RUN_ID, ONE, "now", (), ADMISSION, ""), "createTime"),
        (lambda: Run(RUN_ID, ONE, TIME, (Label("a", ""),) * 2, ADMISSION, ""), "labels[1].key"),
        (lambda: Run(RUN_ID, ONE, TIME, (), ADMISSION, "1"), "replayOf"),
        (lambda: Run(RUN_ID, ONE, TIME, (), ADMISSION, "A" * 32), "replayOf"),
        (lambda: Artifact("r", "s", 1, "m", ONE, 0, ""), "runId"),
        (lambda: Artifact(RUN_ID, "S", 1, "m", ONE, 0, ""), "step"),
        (lambda: Artifact(RUN_ID, "s", 0, "m", ONE, 0, ""), "attempt"),
        (lambda: Artifact(RUN_ID, "s", 101, "m", ONE, 0, ""), "attempt"),
        (lambda: Artifact(RUN_ID, "s", 1, "", ONE, 0, ""), "name"),
        (lambda: Artifact(RUN_ID, "s", 1, "m", "latest", 0, ""), "digest"),
        (lambda: Artifact(RUN_ID, "s", 1, "m", ONE, -1, ""), "sizeBytes"),
        (lambda: Artifact(RUN_ID, "s", 1, "m", ONE, MAX_INTEGER + 1, ""), "sizeBytes"),
        (lambda: Artifact(RUN_ID, "s", 1, "m", ONE, 0, "u" * 2_001), "uri"),
        (lambda: Metric(RUN_ID, "s", 1, "1a", 0, "0", TIME), "name"),
        (lambda: Metric(RUN_ID, "s", 1, "a", -1, "0", TIME), "index"),
        (lambda: Metric(RUN_ID, "s", 1, "a", MAX_INTEGER + 1, "0", TIME), "index"),
        (lambda: Metric(RUN_ID, "s", 1, "a", 0, "nan", TIME), "value"),
        (lambda: Metric(RUN_ID, "s", 1, "a", 0, "1e-3", TIME), "value"),
        (lambda: Metric(RUN_ID, "s", 1, "a", 0, "9" * 401, TIME), "value"),
        (lambda: Metric(RUN_ID, "s", 1, "a", 0, "0", "2026-01-31"), "occurTime"),
    ],
)
def test_a_record_outside_its_rules_is_refused_by_field(make: Any, field: str) -> None:
    """Ids, attempts, sizes, decimals and times each have their rule."""
    assert refusal(make).field == field
