"""docs/pipeline-spec.md and its JSON Schemas say what the code does: every field, every rule, every number."""

import copy
import dataclasses
import json
import os
import random
import re
import subprocess
import sys
import typing
from collections.abc import Callable, Iterator
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import rfc8785
import yaml
from domain.values import DOCUMENTS, LAW, SETS
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator, ValidationError, validators

from animus.codec import decode, encode
from animus.domain import names
from animus.domain.document import (
    MAX_DEPTH,
    MAX_VIOLATIONS,
    differing_paths,
    digest,
    dump,
    fields_of,
    from_tree,
    json_name,
    parse_text,
    tree_of,
)
from animus.domain.errors import Invalid, Violation
from animus.domain.labels import MAX_LABELS, Label
from animus.domain.pipeline import (
    CPU,
    DAY_SECONDS,
    MAX_ATTEMPTS,
    MAX_EDGES,
    MAX_ITEMS,
    MAX_STEPS,
    MEMORY,
    MULTIPLIER,
    SECRET_REF,
    ArtifactInput,
    ArtifactOutput,
    Backoff,
    DatasetInput,
    Dependency,
    EnvVar,
    PipelineGraph,
    PipelineMetadata,
    PipelineSpec,
    Resources,
    RetryPolicy,
    Step,
    StepInputs,
    StepOutputs,
    load_pipeline_spec,
)
from animus.domain.run import (
    MAX_BINDINGS,
    MAX_PARAMETERS,
    Commit,
    DatasetBinding,
    Parameter,
    RunSpec,
    check_bindings,
    load_run_spec,
)
from animus.v1 import pipeline_pb2, run_pb2

Schema = dict[str, Any]

ROOT = Path(__file__).parents[1]
DOC = (ROOT / "docs/pipeline-spec.md").read_text()
SCHEMAS: dict[type, Schema] = {
    PipelineSpec: json.loads((ROOT / "docs/schema/pipeline-spec.schema.json").read_text()),
    RunSpec: json.loads((ROOT / "docs/schema/run-spec.schema.json").read_text()),
}
DOCS_OF: list[type] = list(SCHEMAS)


def blocks(language: str) -> list[str]:
    """The code blocks of the document in a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", DOC, re.DOTALL | re.MULTILINE)


PIPELINE_TEXT, RUN_TEXT = blocks("yaml")
EXAMPLES: dict[type, Any] = {
    PipelineSpec: load_pipeline_spec(PIPELINE_TEXT.encode()),
    RunSpec: load_run_spec(RUN_TEXT.encode()),
}
TREES: dict[type, Any] = {PipelineSpec: parse_text(PIPELINE_TEXT.encode()), RunSpec: parse_text(RUN_TEXT.encode())}


# Values: the classes of a document.


def item_of(hint: Any) -> Any:
    """The type of a field, or of the items of one that is a list."""
    return typing.get_args(hint)[0] if typing.get_origin(hint) is tuple else hint


def is_list(hint: Any) -> bool:
    """Whether a field is a set or a list."""
    return typing.get_origin(hint) is tuple


def classes_of(kind: type) -> list[type]:
    """A class and those that its fields are made of, all the way down."""
    found = [kind]
    for each in found:
        items: set[type] = {item_of(hint) for _, _, hint in fields_of(each) if dataclasses.is_dataclass(item_of(hint))}
        found += sorted(items.difference(found), key=lambda item: item.__name__)
    return found


CLASSES = [each for kind in DOCS_OF for each in classes_of(kind)]


def objects(kind: type, tree: Any) -> Iterator[tuple[type, Any]]:
    """The objects of a tree, each with its class."""
    yield kind, tree
    for _, key, hint in fields_of(kind):
        if dataclasses.is_dataclass(item_of(hint)):
            for each in tree[key] if is_list(hint) else [tree[key]]:
                yield from objects(item_of(hint), each)


@cache
def samples() -> dict[type, list[Any]]:
    """Valid objects of each class: those of the examples, and three more that leave room for limits."""
    found: dict[type, list[Any]] = {kind: [] for kind in CLASSES}
    for kind in DOCS_OF:
        for each, tree in objects(kind, TREES[kind]):
            if tree not in found[each]:
                found[each].append(tree)
    roomy = {"type": "exponential", "initialSeconds": 0, "maxSeconds": DAY_SECONDS, "multiplier": "2"}
    found[Backoff].append(roomy)
    found[EnvVar].append({"name": "EMPTY", "value": "", "secretRef": ""})
    found[PipelineGraph].append({"steps": [found[Step][2]], "dependencies": []})
    return found


def violations_of(kind: type, tree: object) -> tuple[Violation, ...]:
    """What the loader refuses in a tree; nothing when it accepts it."""
    try:
        from_tree(tree, kind)
    except Invalid as error:
        return error.violations
    return ()


def changed(tree: Any, key: str, value: object) -> Any:
    """An object with another value of one field."""
    return {**tree, key: value}


# The schemas, made a second time of the code.


def pattern(rule: re.Pattern[str]) -> Schema:
    """A text that matches as a whole."""
    return {"type": "string", "pattern": f"^(?:{rule.pattern})$"}


def ref(name: str) -> Schema:
    """What `$defs` has under a name."""
    return {"$ref": f"#/$defs/{name}"}


def within(low: int, high: int) -> Schema:
    """A number between two bounds."""
    return {"minimum": low, "maximum": high}


TEXTS: dict[str, Schema] = {
    "id": pattern(names.RESOURCE_ID),
    "digest": pattern(names.DIGEST),
    "image": pattern(names.IMAGE),
    "mediaType": pattern(names.MEDIA_TYPE),
    "labelKey": pattern(names.LABEL_KEY),
    "variableName": pattern(names.ENV_NAME),
    "secretRef": pattern(SECRET_REF),
    "parameterName": pattern(names.PARAMETER_NAME),
    "repository": pattern(names.REPOSITORY),
    "commitHash": pattern(names.COMMIT),
    "cpu": {**pattern(CPU), "not": {"pattern": "000m$"}},
    "memory": pattern(MEMORY),
    "multiplier": {**pattern(MULTIPLIER), "not": {"pattern": r"^(?:1[1-9]|[2-9][0-9]|10\.)"}},
    "integer": pattern(names.INTEGER),
    "decimal": pattern(names.DECIMAL),
    "text": {"type": "string", "pattern": f"^[^{names.CONTROL.pattern.removeprefix('[')}*$"},
}
WORDS: Schema = {"items": {**ref("text"), "maxLength": 4_096}, "maxItems": MAX_ITEMS}

# The keywords of each field that is a text, a number or a list. The lengths of texts stand in the code as numbers;
# that these are they is what the test of limits shows.
RULES: dict[tuple[type, str], Schema] = {
    (PipelineSpec, "apiVersion"): {"const": "animus/v1"},
    (PipelineSpec, "kind"): {"const": "Pipeline"},
    (PipelineMetadata, "name"): ref("id"),
    (PipelineMetadata, "description"): {**ref("text"), "maxLength": 2_000},
    (PipelineMetadata, "labels"): {"maxItems": MAX_LABELS},
    (Label, "key"): ref("labelKey"),
    (Label, "value"): {**ref("text"), "maxLength": 255},
    (PipelineGraph, "steps"): {"minItems": 1, "maxItems": MAX_STEPS},
    (PipelineGraph, "dependencies"): {"maxItems": MAX_EDGES},
    (Dependency, "step"): ref("id"),
    (Dependency, "dependsOn"): ref("id"),
    (Step, "name"): ref("id"),
    (Step, "image"): ref("image"),
    (Step, "command"): WORDS,
    (Step, "args"): WORDS,
    (Step, "env"): {"maxItems": MAX_ITEMS},
    (StepInputs, "datasets"): {"maxItems": MAX_ITEMS},
    (StepInputs, "artifacts"): {"maxItems": MAX_ITEMS},
    (DatasetInput, "name"): ref("id"),
    (DatasetInput, "datasetRef"): ref("id"),
    (ArtifactInput, "name"): ref("id"),
    (ArtifactInput, "fromStep"): ref("id"),
    (ArtifactInput, "artifact"): ref("id"),
    (StepOutputs, "artifacts"): {"maxItems": MAX_ITEMS},
    (ArtifactOutput, "name"): ref("id"),
    (ArtifactOutput, "type"): ref("id"),
    (ArtifactOutput, "mediaType"): ref("mediaType"),
    (EnvVar, "name"): ref("variableName"),
    (EnvVar, "value"): {**ref("text"), "maxLength": 32_768},
    (EnvVar, "secretRef"): ref("secretRef"),
    (Resources, "cpu"): ref("cpu"),
    (Resources, "memory"): ref("memory"),
    (Resources, "gpu"): within(0, 1_024),
    (RetryPolicy, "maxAttempts"): within(1, MAX_ATTEMPTS),
    (RetryPolicy, "retryOn"): {"uniqueItems": True},
    (Backoff, "initialSeconds"): within(0, DAY_SECONDS),
    (Backoff, "maxSeconds"): within(0, DAY_SECONDS),
    (Backoff, "multiplier"): ref("multiplier"),
    (RunSpec, "apiVersion"): {"const": "animus/v1"},
    (RunSpec, "kind"): {"const": "Run"},
    (RunSpec, "pipelineSpecDigest"): ref("digest"),
    (RunSpec, "datasets"): {"maxItems": MAX_BINDINGS},
    (RunSpec, "environmentLockDigest"): ref("digest"),
    (RunSpec, "parameters"): {"maxItems": MAX_PARAMETERS},
    (DatasetBinding, "datasetRef"): ref("id"),
    (DatasetBinding, "datasetId"): ref("id"),
    (DatasetBinding, "contentDigest"): ref("digest"),
    (Commit, "repository"): ref("repository"),
    (Commit, "sha"): ref("commitHash"),
    (Parameter, "name"): ref("parameterName"),
    (Parameter, "value"): {**ref("text"), "maxLength": 32_768},
}


def when(field: str, is_value: str, then: str, rule: Schema) -> Schema:
    """Where one field has a value, another obeys a rule."""
    return {"if": {"properties": {field: {"const": is_value}}}, "then": {"properties": {then: rule}}}


CONDITIONS: dict[type, list[Schema]] = {
    Backoff: [when("type", "fixed", "multiplier", {"const": "1"})],
    EnvVar: [{"anyOf": [{"properties": {key: {"const": ""}}} for key in ("value", "secretRef")]}],
    Parameter: [
        when("type", "int", "value", ref("integer")),
        when("type", "bool", "value", {"enum": ["true", "false"]}),
        when("type", "decimal", "value", ref("decimal")),
    ],
}


def property_of(kind: type, key: str, hint: Any) -> Schema:
    """The schema of a field: its type, and its rule."""
    item = item_of(hint)
    if dataclasses.is_dataclass(item):
        of_item = ref(typing.cast(type, item).__name__)
    elif issubclass(item, StrEnum):
        of_item = {"enum": [member.value for member in item]}
    else:
        of_item = {"type": "integer"} if item is int else {}
    return {**({"type": "array", "items": of_item} if is_list(hint) else of_item), **RULES.get((kind, key), {})}


def object_of(kind: type) -> Schema:
    """The schema of a class."""
    properties = {key: property_of(kind, key, hint) for _, key, hint in fields_of(kind)}
    whole = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    return {**whole, "allOf": CONDITIONS[kind]} if kind in CONDITIONS else whole


@cache
def schema_of(kind: type) -> Schema:
    """The schema of a document, without a word of explanation."""
    parts = {each.__name__: object_of(each) for each in classes_of(kind)}
    top = parts.pop(kind.__name__)
    used = set(re.findall(r"#/\$defs/(\w+)", json.dumps([top, parts])))
    return {**top, "$defs": {**parts, **{name: rule for name, rule in TEXTS.items() if name in used}}}


def without_words(schema: Any) -> Any:
    """A schema without titles and descriptions."""
    if isinstance(schema, list):
        return [without_words(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    words = {key for key in ("$schema", "title", "description") if isinstance(schema.get(key), str)}
    return {key: without_words(value) for key, value in schema.items() if key not in words}


def schema_faults(schema: Schema, kind: type) -> list[str]:
    """Where a schema says something else than the code."""
    return [path for path, _, _ in differing_paths(without_words(schema), schema_of(kind))]


@pytest.mark.parametrize("kind", DOCS_OF)
def test_the_schema_has_the_fields_patterns_and_limits_of_the_code(kind: type) -> None:
    """Each field of each value, all required and no other, with the code's own patterns, choices and bounds."""
    Draft202012Validator.check_schema(SCHEMAS[kind])
    assert SCHEMAS[kind]["$schema"] == Draft202012Validator.META_SCHEMA["$id"]
    assert schema_faults(SCHEMAS[kind], kind) == []


def test_every_text_number_and_list_has_a_rule() -> None:
    """The table of rules above leaves no field out and names none that is not there."""
    assert RULES.keys() == {
        (kind, key) for kind in CLASSES for _, key, hint in fields_of(kind) if is_list(hint) or hint in (str, int)
    }


@pytest.mark.parametrize("kind", DOCS_OF)
def test_a_schema_that_lost_or_changed_a_keyword_is_found(kind: type) -> None:
    """Without any one of its keywords, wherever it stands, a schema differs from the code."""

    def nodes(tree: Any) -> Iterator[dict[str, Any]]:
        if isinstance(tree, dict):
            yield tree
        for each in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
            yield from nodes(each)

    schema = without_words(SCHEMAS[kind])
    lost = 0
    for node in list(nodes(schema)):
        for key in list(node):
            value = node.pop(key)
            assert schema_faults(schema, kind) != []
            node[key] = value
            lost += 1
    assert lost > 100
    assert schema_faults(schema, kind) == []


@pytest.mark.parametrize("kind", DOCS_OF)
def test_every_object_and_field_of_the_schema_is_described(kind: type) -> None:
    """An editor has a sentence to show for each."""

    def undescribed(schema: Schema) -> list[str]:
        parts = {"": schema, **schema["$defs"]}
        fields = {f"{name}.{key}": each for name in parts for key, each in parts[name].get("properties", {}).items()}
        return [name for name, each in {**parts, **fields}.items() if not each.get("description", "").endswith(".")]

    assert undescribed(SCHEMAS[kind]) == []
    planted = copy.deepcopy(SCHEMAS[kind])
    del planted["$defs"]["id"]["description"]
    del planted["properties"]["kind"]["description"]
    assert undescribed(planted) == ["id", ".kind"]


# Schema and loader judge alike.


def ecma_pattern(validator: Any, rule: str, instance: object, schema: object) -> Iterator[ValidationError]:
    """JSON Schema's patterns are of ECMA-262, where `$` is the very end; Python's may stand before a line feed."""
    if isinstance(instance, str) and not re.search(re.sub(r"\$\Z", r"\\Z", rule), instance):
        yield ValidationError(f"{instance!r} does not match {rule!r}")


EcmaValidator: Any = validators.extend(Draft202012Validator, {"pattern": ecma_pattern})  # type: ignore[no-untyped-call]


def validator_of(kind: type, schema: Schema) -> Any:
    """The validator of one class by the schema of its document."""
    return EcmaValidator({**ref(kind.__name__), "$defs": schema["$defs"]} if kind not in SCHEMAS else schema)


def document_of(kind: type) -> type:
    """The document that a class is a part of."""
    return next(each for each in DOCS_OF if kind in classes_of(each))


# What only the loader refuses, by the last field of the path and the description; the document lists the same.
LOADER_ONLY = [
    ("", r"is a floating-point number; an integer is expected"),
    ("", r"holds a lone surrogate"),
    ("", r"repeats .*"),
    ("", r"names no step of the pipeline: .*"),
    ("artifact", r"names no output of .*"),
    ("", r"makes .* wait for itself"),
    ("dependencies", r"have a cycle: .*|make more than .*"),
    ("maxSeconds", rf"is \d+; \d+ to {DAY_SECONDS} is allowed|is not initialSeconds, as a fixed backoff's must be"),
    ("memory", r"is no amount in its one spelling: .*"),
]


def disagreement(kind: type, tree: object, validator: Any) -> str:
    """How schema and loader differ about a tree; nothing when they agree, or only the loader can know."""
    found = violations_of(kind, tree)
    if validator.is_valid(tree):
        for each in found:
            if not any(each.field.endswith(end) and re.fullmatch(rule, each.description) for end, rule in LOADER_ONLY):
                return f"only the loader refuses: {each.field}: {each.description}"
    elif not found:
        return f"only the schema refuses: {tree}"
    return ""


HEX = "0123456789abcdef" * 4
THINGS: list[object] = [None, True, 0, 1, -1, 1.0, 1.5, 2**53, 86_401, "", [], [None], [[]], ["user", "user"], {}]
# Texts that some rule takes or just fails to take: names, media types, choices, numbers, amounts; then what has length.
SPELLINGS = [
    *"""
    a A a- -a a1 1a a_b a.b a/b python:3.11 text/csv Text/csv text/ a/b+c.d animus/v1 animus/v2 Pipeline Run
    true false True yes fixed exponential user system string int bool decimal NaN Infinity
    0 -0 1 01 +1 -1 1.5 1.50 0.5 -0.5 -0.0 .5 1. 1e3 10 10.5 11 99 9.999 9.9999 1.001 1.000 2.0
    999999 1000000 500m 1000m 1001m 10000m 0m m 999999999m 1000000001m 1.5m
    1Gi 1024Mi 1536Mi 2048Ti 1023Ki 0Ki 1gi 1G 1GiB 999999999Ki 1000000000Ki 1.5Gi
    """.split(),  # noqa: SIM905  (a table)
    *["a b", "a\n", "\n", "a\tb", "\x00", "\x1f", "\x7f", "\x85", "\u2028", "é", "😂", "\ud800", "a/b; c=d"],
    *[letter * count for letter in "aé1" for count in (63, 64, 128, 255, 256, 500, 501, 2_001)],
    *[HEX, HEX[:40], HEX[:39], HEX[:41], HEX[1:], HEX.upper(), f"{'a' * 127}/a", f"{'a' * 128}/a"],
    *[f"{before}sha256:{HEX}{after}" for before in ("", "a@", "@", "A@", f"{'a' * 256}@") for after in ("", "0", "\n")],
    *[f"a@sha256:{HEX[1:]}", f"a@sha256:{HEX.upper()}"],
]


def variants(kind: type) -> Iterator[Any]:
    """Objects of a class that differ from a valid one in one place."""
    for sample in samples()[kind] if kind in CONDITIONS else samples()[kind][-1:]:
        yield sample
        yield changed(sample, "unknown", "")
        for _, key, hint in fields_of(kind):
            yield {name: value for name, value in sample.items() if name != key}
            texts = [] if item_of(hint) in (int, *CLASSES) else SPELLINGS
            for value in THINGS if is_list(hint) else [*THINGS, *texts]:
                yield changed(sample, key, value)
            for value in [*THINGS, *texts] if is_list(hint) else []:
                yield changed(sample, key, [*sample[key], value])


@pytest.mark.parametrize("kind", CLASSES)
def test_schema_and_loader_judge_one_change_alike(kind: type) -> None:
    """What the schema refuses the loader refuses, and the loader refuses more only for the reasons that are listed."""
    validator = validator_of(kind, SCHEMAS[document_of(kind)])
    trees = list(variants(kind))
    assert [fault for tree in trees if (fault := disagreement(kind, tree, validator))] == []
    assert {bool(violations_of(kind, tree)) for tree in trees} == {True, False}


PLANTED: list[tuple[type, Callable[[Any], object], str]] = [
    (Step, lambda part: part["required"].remove("env"), "loader"),
    (Step, lambda part: part.pop("additionalProperties"), "loader"),
    (Step, lambda part: part["properties"].pop("args"), "schema"),
    (Resources, lambda part: part["properties"]["gpu"].pop("maximum"), "loader"),
    (Resources, lambda part: part["properties"]["gpu"].update(minimum=1), "schema"),
    (Resources, lambda part: part["properties"]["cpu"].update(pattern="^[0-9]+$"), "schema"),
    (Label, lambda part: part["properties"]["value"].update(maxLength=100), "schema"),
    (Label, lambda part: part["properties"]["value"].pop("maxLength"), "loader"),
    (Backoff, lambda part: part.pop("allOf"), "loader"),
    (Parameter, lambda part: part["allOf"].pop(1), "loader"),
    (Parameter, lambda part: part["allOf"][0]["then"].update(properties={"value": {"pattern": "^[0-9]$"}}), "schema"),
]


@pytest.mark.parametrize(("kind", "change", "stricter"), PLANTED)
def test_a_schema_that_judges_otherwise_is_found(kind: type, change: Callable[[Any], object], stricter: str) -> None:
    """Each planted change of a schema makes it disagree with the loader, in the direction expected."""
    schema = copy.deepcopy(SCHEMAS[document_of(kind)])
    change(schema["$defs"][kind.__name__])
    validator = validator_of(kind, schema)
    assert any(disagreement(kind, tree, validator).startswith(f"only the {stricter}") for tree in variants(kind))


def places(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place of a tree below its top."""
    if isinstance(tree, (dict, list)):
        for key in tree if isinstance(tree, dict) else range(len(tree)):
            yield (*path, key)
            yield from places(tree[key], (*path, key))


def at(tree: Any, path: tuple[Any, ...]) -> Any:
    """What stands at a place."""
    for key in path:
        tree = tree[key]
    return tree


def mutated(tree: Any, rng: random.Random) -> Any:
    """A tree with one place removed, replaced, repeated, or given what stands elsewhere."""
    tree = copy.deepcopy(tree)
    found = list(places(tree))
    *above, last = rng.choice(found)
    parent = at(tree, tuple(above))
    choice = rng.randrange(4)
    if choice == 0:
        del parent[last]
    elif choice == 1 and isinstance(parent, list):
        parent.append(copy.deepcopy(parent[last]))
    elif choice == 2:
        parent[last] = copy.deepcopy(at(tree, rng.choice(found)))
    else:
        parent[last] = rng.choice([*THINGS, *SPELLINGS])
    return tree


@pytest.mark.parametrize("kind", DOCS_OF)
def test_schema_and_loader_judge_mutated_documents_alike(kind: type) -> None:
    """The same for any valid document after up to three changes in any places."""
    validator = validator_of(kind, SCHEMAS[kind])

    @LAW
    @given(DOCUMENTS[kind], st.integers(0, 2**32).map(random.Random))
    def law(value: Any, rng: random.Random) -> None:
        tree = tree_of(value)
        assert (disagreement(kind, tree, validator), violations_of(kind, tree)) == ("", ())
        for _ in range(3):
            tree = mutated(tree, rng)
            assert disagreement(kind, tree, validator) == ""

    law()


def grown(items: list[Any], count: int) -> list[Any]:
    """So many items: those that are there and copies of the first, under other names where they have one."""
    name = next((key for key in ("name", "key", "datasetRef") if isinstance(items[0], dict) and key in items[0]), "")
    more = [changed(items[0], name, f"n{at}") if name else items[0] for at in range(count - len(items))]
    return items[: max(count, 0)] + more


def limit_cases(rule: Schema, items: Any) -> Iterator[tuple[Any, Any]]:
    """For each limit of a rule, a value at it and one beyond it; for the length of a list, its length beyond it."""
    for keyword, step in (("minimum", -1), ("maximum", 1)):
        if keyword in rule:
            yield rule[keyword], rule[keyword] + step
    if "maxLength" in rule:
        yield "x" * rule["maxLength"], "x" * (rule["maxLength"] + 1)
    for keyword, step in (("minItems", -1), ("maxItems", 1)):
        if keyword in rule:
            yield grown(items, rule[keyword]), rule[keyword] + step
    if "items" in rule:
        yield from (([fine], [beyond]) for fine, beyond in limit_cases(rule["items"], ()))


def count_refused(kind: type, name: str, sample: Any, count: int) -> bool:
    """Whether a list of so many items is refused for its length, before anything else about it."""
    value: Any = from_tree(sample, kind)
    try:
        dataclasses.replace(value, **{name: getattr(value, name)[:1] * count})
    except Invalid as error:
        return error.violations[0].field == json_name(name)
    return False


def limit_faults(kind: type, key: str, rule: Schema) -> list[str]:
    """Where the loader has another limit than a rule says."""
    [(name, hint)] = [(name, hint) for name, each, hint in fields_of(kind) if each == key]
    sample = next(each for each in reversed(samples()[kind]) if each[key] or not is_list(hint))
    faults = []
    for fine, beyond in limit_cases(rule, sample[key]):
        if found := violations_of(kind, changed(sample, key, fine)):
            faults.append(f"refuses what is allowed: {found[0]}")
        if is_list(hint) and isinstance(beyond, int):
            refused = count_refused(kind, name, sample, beyond)
        else:
            refused = any(each.field.startswith(key) for each in violations_of(kind, changed(sample, key, beyond)))
        if not refused:
            faults.append(f"{kind.__name__}.{key} accepts what is beyond: {str(beyond)[:40]}")
    return faults


def test_the_limits_are_those_that_the_loader_has() -> None:
    """Each length, bound and count is accepted as it stands, and one step beyond it is refused at that field."""
    probed = sum(1 for rule in RULES.values() for _ in limit_cases(rule, [""]))
    assert probed == len(re.findall(r'"(?:min|max)\w+"', json.dumps(list(RULES.values())))) > 20
    limited = [(kind, key, rule) for (kind, key), rule in RULES.items() if any(True for _ in limit_cases(rule, [""]))]
    assert [fault for case in limited for fault in limit_faults(*case)] == []


@pytest.mark.parametrize("shift", [-1, 1])
@pytest.mark.parametrize(
    ("kind", "key", "keyword"),
    [
        (Label, "value", "maxLength"),
        (Resources, "gpu", "minimum"),
        (Resources, "gpu", "maximum"),
        (PipelineMetadata, "labels", "maxItems"),
        (PipelineGraph, "steps", "minItems"),
        (Step, "args", "maxItems"),
    ],
)
def test_a_limit_that_is_one_off_is_found(kind: type, key: str, keyword: str, shift: int) -> None:
    """A rule that allows one more or one less than the loader is a fault."""
    limit = RULES[kind, key][keyword]
    assert limit_faults(kind, key, {keyword: limit}) == []
    assert limit_faults(kind, key, {keyword: limit + shift}) != []


# The document.


def cells(line: str) -> list[str]:
    """The cells of a row of a table."""
    return [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line.strip())[1:-1]]


def table(heading: str, number: int = 0) -> list[list[str]]:
    """The rows of a table below a heading, without its head."""
    section = re.split(r"^#+ ", DOC.split(f"# {heading}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]
    tables = re.findall(r"(?:^ *\|.*\n)+", section, re.MULTILINE)
    return [cells(line) for line in tables[number].splitlines()[2:]]


def code(cell: str) -> list[str]:
    """What stands in backticks."""
    return re.findall(r"`([^`]*)`", cell)


def numbers(cell: str) -> set[int]:
    """The numbers of a rule, those in code and links left out."""
    plain = re.sub(r"`[^`]*`|\[[^]]*\]\([^)]*\)", "", cell)
    return {int(number.replace(",", "")) for number in re.findall(r"\d[\d,]*", plain)}


def limits(schema: Schema) -> set[int]:
    """The numbers of a field's schema that a reader must know. Nobody needs to be told that a text may be empty."""
    keywords = ("minimum", "maximum", "minItems", "maxItems", "maxLength")
    own = {schema[keyword] for keyword in keywords if keyword in schema}
    return own | (limits(schema["items"]) if "items" in schema else set())


def alternatives(kind: type[StrEnum]) -> str:
    """The members of an enum as the document lists them."""
    *some, last = [f"`{member.value}`" for member in kind]
    return f"{', '.join(some)} or {last}"


def type_words(kind: type, name: str, hint: Any) -> str:
    """The type of a field as the document says it, without the keys of a set."""
    item = item_of(hint)
    if dataclasses.is_dataclass(item):
        words = f"[{typing.cast(type, item).__name__}](#{typing.cast(type, item).__name__.lower()})"
    elif issubclass(item, StrEnum):
        words = alternatives(item)
    else:
        words = {str: "text", int: "integer"}[item]
    return f"{'set' if (kind.__name__, name) in SETS else 'list'} of {words}" if is_list(hint) else words


def row_faults(kind: type, rows: list[list[str]]) -> list[str]:
    """Where the table of a class does not say what its schema says."""
    faults = []
    schema = object_of(kind)["properties"]
    if [field for field, *_ in rows] != [f"`{key}`" for key in schema]:
        return [f"{kind.__name__} has the fields {', '.join(schema)}"]
    for (field, type_cell, rule), (name, key, hint) in zip(rows, fields_of(kind), strict=True):
        refs = set(re.findall(r"#/\$defs/([a-z]\w*)", json.dumps(schema[key])))
        wanted = {
            "type": (type_cell.split(" by ")[0], type_words(kind, name, hint)),
            "limits": (numbers(rule), limits(schema[key])),
            "texts": (set(re.findall(r"\[(\w+)\]\(#texts\)", rule)), refs),
            "constant": (schema[key].get("const", ""), code(rule)[0] if "const" in schema[key] else ""),
        }
        faults += [f"{kind.__name__}.{field}: {part} {is_} {be}" for part, (is_, be) in wanted.items() if is_ != be]
    return faults


@pytest.mark.parametrize("kind", CLASSES)
def test_the_document_describes_each_field_with_its_type_and_limits(kind: type) -> None:
    """The table of each class has its fields in order, and just the numbers, texts and choices of the schema."""
    assert row_faults(kind, table(kind.__name__)) == []


def test_a_wrong_row_of_the_document_is_found() -> None:
    """A field left out, another limit, another type and another text are each a fault."""
    rows = table("EnvVar")
    assert row_faults(EnvVar, rows[:1]) != []
    for place, old, new in ((2, "32,768", "32,767"), (2, "[text]", "[id]"), (1, "text", "integer")):
        wrong = [cell.replace(old, new) if at == place else cell for at, cell in enumerate(rows[1])]
        planted = [rows[0], wrong, rows[2]]
        assert len(row_faults(EnvVar, planted)) == 1


# Around so many of a character, a text matches; around one more it does not.
LENGTHS: dict[str, list[tuple[str, str, int]]] = {
    "id": [("{}", "a", 63)],
    "digest": [("sha256:{}", "a", 64)],
    "image": [(f"{{}}@sha256:{HEX}", "a", 255), ("a@sha256:{}", "a", 64)],
    "mediaType": [("{}/a", "a", 127), ("a/{}", "a", 127)],
    "labelKey": [("{}", "a", 63)],
    "variableName": [("{}", "a", 255)],
    "secretRef": [("{}:a", "a", 63), ("a:{}", "a", 400)],
    "parameterName": [("{}", "a", 255)],
    "repository": [("{}", "a", 500)],
    "commitHash": [("{}", "a", 40), ("{}", "a", 64)],
    "cpu": [("{}", "1", 6), ("{}m", "1", 9)],
    "memory": [("{}Ki", "1", 9)],
    "multiplier": [("1.{}", "1", 3)],
    "integer": [],
    "decimal": [],
    "text": [],
}


def accepts_text(name: str, value: str) -> bool:
    """Whether the loader takes a value for a field of this kind of text."""
    kind: type
    if name in ("integer", "decimal"):
        kind, key = Parameter, "value"
        sample: Any = {"name": "x", "type": name[:3] if name == "integer" else name, "value": "0"}
    else:
        kind, key = next(place for place, rule in RULES.items() if rule.get("$ref") == ref(name)["$ref"])
        sample = samples()[kind][-1]
    return not violations_of(kind, changed(sample, key, value))


def test_the_document_describes_each_kind_of_text() -> None:
    """Every pattern of the schemas, with its lengths, and with spellings that the loader takes and refuses."""
    rows = table("Texts")
    used = {name for schema in SCHEMAS.values() for name in schema["$defs"] if name[0].islower()}
    assert [code(name) for name, *_ in rows] == [[name] for name in LENGTHS]
    assert used == set(LENGTHS) == set(TEXTS)
    for (name, rule, taken, refused), lengths in zip(rows, LENGTHS.values(), strict=True):
        [name] = code(name)
        assert numbers(rule) - {1} == {count for _, _, count in lengths}, name
        for form, character, count in lengths:
            assert accepts_text(name, form.format(character * count)), name
            assert not accepts_text(name, form.format(character * (count + 1))), name
        assert [value for value in code(taken) if not accepts_text(name, value)] == [], name
        assert [value for value in code(refused) if accepts_text(name, value)] == [], name
        assert taken, name


def test_the_examples_are_what_the_document_says_of_them() -> None:
    """They load, obey the schemas, fit each other, and have the digests that are shown; every class is in them."""
    for kind in DOCS_OF:
        assert list(validator_of(kind, SCHEMAS[kind]).iter_errors(TREES[kind])) == []
        assert {each for each, _ in objects(kind, TREES[kind])} == set(classes_of(kind))
    pipeline, run = EXAMPLES[PipelineSpec], EXAMPLES[RunSpec]
    check_bindings(run, pipeline, [binding.dataset_ref for binding in run.datasets])
    digests = {kind: digest(dump(EXAMPLES[kind])) for kind in DOCS_OF}
    assert run.pipeline_spec_digest == digests[PipelineSpec]
    assert re.findall(r"^Its digest is `(.*)`\.$", DOC, re.MULTILINE) == list(digests.values())
    assert blocks("json") == [dump(run).decode() + "\n"]


def sorted_by_the_document(kind: type, tree: Any) -> Any:
    """A tree with every set in the order that the document states."""
    result: dict[str, Any] = {}
    keys = {
        field: code(by) for [field], by in ((code(row[0]), row[1].partition(" by ")[2]) for row in table(kind.__name__))
    }
    for name, key, hint in fields_of(kind):
        value = tree[key]
        if dataclasses.is_dataclass(item_of(hint)):
            each = item_of(hint)
            value = (
                [sorted_by_the_document(each, item) for item in value]
                if is_list(hint)
                else sorted_by_the_document(each, value)
            )
        if (kind.__name__, name) in SETS:
            value = sorted(value, key=lambda item: [item[by] for by in keys[key]] if keys[key] else item)
        result[key] = value
    return result


@pytest.mark.parametrize("kind", DOCS_OF)
def test_canonical_bytes_follow_from_the_document_alone(kind: type) -> None:
    """Another YAML reader, the sets sorted as the tables say, `schema` added, another JCS: the same bytes."""
    text = {PipelineSpec: PIPELINE_TEXT, RunSpec: RUN_TEXT}[kind]
    tree = sorted_by_the_document(kind, yaml.safe_load(text))
    assert tree != yaml.safe_load(text)
    [schema] = [name for name in code(DOC) if name == kind.SCHEMA]  # type: ignore[attr-defined]
    assert rfc8785.dumps({**tree, "schema": schema}) == dump(EXAMPLES[kind])


def test_sha256sum_computes_and_checks_the_digests(tmp_path: Path) -> None:
    """The commands of the document, run as they stand, print what it says."""
    (tmp_path / "pipeline.yaml").write_text(PIPELINE_TEXT)
    (tmp_path / "run.yaml").write_text(RUN_TEXT)
    environment = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT / "src"),
        "LC_ALL": "C",
    }
    [commands], [printed] = blocks("sh"), blocks("text")
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr, done.returncode) == (printed, "", 0)


def test_scalars_are_read_as_the_document_says() -> None:
    """Each spelling in the table becomes what stands beside it; no field has a type that no field is said to take."""
    types = {"integer": int, "true or false": bool, "null": type(None), "floating-point number": float, "text": str}
    hints = {item_of(hint) for kind in CLASSES for _, _, hint in fields_of(kind)}
    seen = set()
    for spellings, words in table("How the text is read", 0):
        name = words.partition(", which no field takes")[0]
        assert (types[name] in hints) == (words == name)
        for written in code(spellings) + ([""] if "nothing" in spellings else []):
            value = typing.cast(Any, parse_text(f"x: {written}".encode()))["x"]
            assert type(value) is types[name], written
        seen.add(name)
    assert seen == types.keys()


def test_texts_that_are_refused_get_the_errors_of_the_document() -> None:
    """Each text in the table has exactly the error beside it, without a path."""
    rows = table("How the text is read", 1)
    assert len(rows) > 5
    for [text], [description] in ([code(cell) for cell in row] for row in rows):
        with pytest.raises(Invalid) as refused:
            load_pipeline_spec(text.encode())
        assert refused.value.violations == (Violation("", description),)


NESTED = "{a: " * MAX_DEPTH + "1" + "}" * MAX_DEPTH


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"kind: Run\n---\nkind: Run\n", "another document"),
        (f"kind: {NESTED}\n".encode(), f"nests deeper than {MAX_DEPTH} levels"),
        (b"kind: \xff\n", "is not UTF-8"),
        (b'kind: "\\0"\n', "NUL"),
        (b'{"kind": "\\ud800"}', "lone surrogate"),
        *((f"kind: 'a{character}b'\n".encode(), "has the line break") for character in "\x85\u2028\u2029"),
        (b"<<: {kind: Run}\n", "<<: is no field here"),
    ],
)
def test_texts_that_mean_more_than_they_show_are_refused(text: bytes, says: str) -> None:
    """What the document lists below its table of such texts, each with its own reason."""
    with pytest.raises(Invalid) as refused:
        load_run_spec(text)
    assert says in str([f"{each.field}: {each.description}" for each in refused.value.violations])


def test_the_numbers_in_the_prose_are_those_of_the_code() -> None:
    """How deep, how many edges, how many errors."""
    for words in (
        f"nesting beyond {MAX_DEPTH} levels",
        f"at most {MAX_EDGES:,} together",
        f"at most {MAX_VIOLATIONS} of them",
    ):
        assert words in DOC


def apply(tree: Any, change: str) -> Any:
    """A tree with one change of the form `path = value`, or without the path where there is no value."""
    tree = copy.deepcopy(tree)
    path, _, value = change.partition(" = ")
    *above, last = [int(part) if part.isdigit() else part for part in re.findall(r"[A-Za-z]+|\d+", path)]
    if value:
        at(tree, tuple(above))[last] = typing.cast(Any, parse_text(f"x: {value}".encode()))["x"]
    else:
        del at(tree, tuple(above))[last]
    return tree


def test_errors_have_the_paths_and_words_of_the_document() -> None:
    """Each change in the table, made to the example, has exactly the error beside it."""
    rows = table("Errors")
    assert len(rows) > 10
    for [change], [error] in ([code(cell) for cell in row] for row in rows):
        found = violations_of(PipelineSpec, apply(TREES[PipelineSpec], change))
        assert [f"{each.field}: {each.description}" for each in found] == [error]


def test_one_answer_names_faults_as_the_document_says() -> None:
    """All that is missing, unknown or mistyped; the first broken rule of each object; above a fault, nothing yet."""
    tree = TREES[PipelineSpec]
    for change in (
        "spec.steps[0].resources.gpu = many",
        "spec.steps[0].resources.cores = 2",
        "spec.steps[0].env",
        "spec.steps[1].resources.cpu = 2000m",
        "spec.steps[1].resources.memory = 2048Mi",
        "spec.steps[2].name = fit",
        "spec.dependencies[0].dependsOn = deploy",
    ):
        tree = apply(tree, change)
    assert {each.field for each in violations_of(PipelineSpec, tree)} == {
        "spec.steps[0].resources.gpu",
        "spec.steps[0].resources.cores",
        "spec.steps[0].env",
        "spec.steps[1].resources.cpu",
    }


# The contract.


def test_the_contract_has_the_same_fields_and_the_names_of_the_document() -> None:
    """As proto3 JSON a document differs only in the names of choices, and those are all in the table."""
    every: dict[type, Any] = {
        PipelineSpec: (EXAMPLES[PipelineSpec], pipeline_pb2.PipelineSpec()),
        RunSpec: (EXAMPLES[RunSpec], run_pb2.RunSpec()),
    }
    found = set()
    for kind, (value, message) in every.items():
        answer = json_format.MessageToDict(encode(value, message), always_print_fields_with_no_presence=True)
        assert decode(message, kind, "spec") == value
        for path, ours, theirs in differing_paths(tree_of(value), answer):
            key = re.findall(r"[A-Za-z]+(?=$|\[\d+\]$)", path)[-1]
            found.add((key, json.loads(ours), json.loads(theirs)))
    rows = [[code(cell)[0] for cell in row] for row in table("Over gRPC and HTTP")]
    assert {(field.partition(".")[2], ours, theirs) for field, ours, theirs in rows} == found
    chosen = {
        (f"{kind.__name__}.{key}", member.value)
        for kind in CLASSES
        for _, key, hint in fields_of(kind)
        if issubclass(item_of(hint), StrEnum)
        for member in item_of(hint)
    }
    assert {(field, ours) for field, ours, _ in rows} == chosen


def test_the_contract_has_the_same_paths_below_the_name_of_the_field() -> None:
    """A message with a fault is refused at the path that the loader gives, after the request's own field."""
    message = encode(EXAMPLES[PipelineSpec], pipeline_pb2.PipelineSpec())
    message.spec.steps[0].image = "python:3.11"
    with pytest.raises(Invalid) as refused:
        decode(message, PipelineSpec, "pipelineSpec")
    [violation] = refused.value.violations
    assert violation.field == "pipelineSpec.spec.steps[0].image"
    assert f"`{violation.field}`" in DOC
    message = pipeline_pb2.PipelineSpec()
    message.record.SetInParent()
    with pytest.raises(Invalid, match="record"):
        decode(message, PipelineSpec, "pipelineSpec")
