"""PipelineSpec: every field is required and bounded, every fault is named by its path, amounts have one spelling."""

import copy
import itertools
import json
import random
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from animus.codec import decode
from animus.domain import document
from animus.domain.errors import Invalid, Violation
from animus.domain.pipeline import (
    CYCLE_ENDS,
    MAX_EDGES,
    MAX_ITEMS,
    MAX_STEPS,
    Backoff,
    BackoffType,
    Dependency,
    PipelineGraph,
    PipelineSpec,
    Resources,
    RetryKind,
    RetryPolicy,
    check_header,
    find_cycle,
    load_pipeline_spec,
)
from animus.v1 import pipeline_pb2
from domain.test_names import accepts, spellings
from domain.values import (
    IMAGE,
    LAW,
    ONE,
    SAMPLES,
    as_yaml,
    bare_step,
    fill,
    generated,
    graph_of,
    name,
    pipeline,
    refusal,
    retry_policy,
)

SAMPLE: PipelineSpec = SAMPLES[PipelineSpec]  # `fit` reads two outputs of `split`
TREE: Any = document.tree_of(SAMPLE)
ONCE = RetryPolicy(1, (), Backoff(BackoffType.FIXED, 0, 0, "1"))
MISSING = object()

Place = tuple[str | int, ...]


def changed(place: Place, value: object) -> Any:
    """The sample's tree with one value at a place; MISSING takes it out."""
    tree = copy.deepcopy(TREE)
    node = tree
    for key in place[:-1]:
        node = node[key]
    if value is MISSING:
        del node[place[-1]]
    elif isinstance(node, list) and place[-1] == len(node):
        node.append(value)
    else:
        node[place[-1]] = value
    return tree


def path_of(place: Place) -> str:
    """How errors spell a place."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in place).lstrip(".")


def faults_of_text(tree: object) -> list[str]:
    """The paths at fault in a spec that is loaded from JSON, and they are the same from YAML."""
    with pytest.raises(Invalid) as from_json:
        load_pipeline_spec(json.dumps(tree).encode())
    with pytest.raises(Invalid) as from_yaml:
        load_pipeline_spec(as_yaml(tree))
    assert from_yaml.value.violations == from_json.value.violations
    return [each.field for each in from_json.value.violations]


def faults_of_tree(tree: object) -> list[str]:
    """The paths at fault in a tree that some text was read as."""
    with pytest.raises(Invalid) as caught:
        document.from_tree(tree, PipelineSpec)
    return [each.field for each in caught.value.violations]


def faults_of_message(tree: Any) -> list[str]:
    """The paths at fault in a spec that is decoded from a message."""
    message = pipeline_pb2.PipelineSpec()
    fill(message, tree)
    with pytest.raises(Invalid) as caught:
        decode(message, PipelineSpec, "pipelineSpec")
    return [each.field.removeprefix("pipelineSpec").removeprefix(".") for each in caught.value.violations]


def places(node: Any, place: Place = ()) -> list[Place]:
    """Every place of a tree, the top left out."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [each for key, value in items for each in [(*place, key), *places(value, (*place, key))]]


PLACES = places(TREE)
FIELDS = [place for place in PLACES if isinstance(place[-1], str)]


def at(place: Place) -> Any:
    """What the sample has at a place."""
    node = TREE
    for key in place:
        node = node[key]
    return node


@pytest.mark.parametrize("place", FIELDS, ids=path_of)
def test_a_missing_field_is_named(place: Place) -> None:
    """Each field at each depth, empty lists included: left out of the text, it is the one fault."""
    assert faults_of_text(changed(place, MISSING)) == [path_of(place)]
    if not isinstance(at(place), list):  # a message cannot lack a list
        assert faults_of_message(changed(place, MISSING)) == [path_of(place)]


@pytest.mark.parametrize("place", PLACES, ids=path_of)
def test_a_value_of_another_type_is_named(place: Place) -> None:
    """Null, a float, and whatever is not the field's own type are refused at each place, never converted."""
    own = type(at(place))
    others: list[object] = [None, 1.5, 1e3, True, 7, "text", [], {}, [[]], {"a": 1}]
    for other in others:
        if type(other) is not own:
            assert faults_of_tree(changed(place, other)) == [path_of(place)], other


@pytest.mark.parametrize(
    "place",
    [(), *(place for place in PLACES if isinstance(at(place), dict))],
    ids=lambda place: path_of(place) or "top",
)
def test_an_unknown_field_is_named(place: Place) -> None:
    """Another field anywhere is refused by its name, with the fields that there are."""
    for field in ("color", "Name", "schema", "__class__", "retry_policy"):
        assert faults_of_tree(changed((*place, field), "x")) == [path_of((*place, field))]


@pytest.mark.parametrize("place", [place for place in PLACES if isinstance(at(place), str)], ids=path_of)
def test_text_that_no_document_carries_is_named(place: Place) -> None:
    """NUL, control characters and lone surrogates are refused at each text of the spec."""
    for odd in ("\x00", "a\x1bb", "\ud800"):
        assert faults_of_tree(changed(place, odd)) == [path_of(place)]


FIT, SPLIT = ("spec", "steps", 0), ("spec", "steps", 1)
RETRY = (*SPLIT, "retryPolicy")
FIXED = (*FIT, "retryPolicy", "backoff")


@pytest.mark.parametrize(
    ("place", "value", "path", "text"),
    [
        (("apiVersion",), "animus/v2", "", "is not 'animus/v1'"),
        (("kind",), "Run", "", "is not 'Pipeline'"),
        (("metadata", "name"), "Demo", "", "is no name"),
        (("metadata", "name"), "demo\n", "", "is no name"),
        (("metadata", "name"), "dеmo", "", "is no name"),  # a Cyrillic letter
        (("metadata", "description"), "d" * 2_001, "", "2001 characters"),
        (("metadata", "labels", 2), {"key": "team", "value": ""}, "metadata.labels[2].key", "repeats 'team'"),
        (("metadata", "labels", 0, "key"), "Team", "", "is no label key"),
        (("metadata", "labels"), [{"key": f"k{n}", "value": ""} for n in range(65)], "", "65 items"),
        (("spec", "steps"), [], "", "has 0 items"),
        ((*FIT, "name"), "split", "spec.steps[1].name", "repeats 'split' of steps[0]"),
        ((*FIT, "name"), "x" * 64, "", "is no name"),
        ((*FIT, "image"), "python:3.11", "", "not a tag"),
        ((*FIT, "image"), "python@sha256:abc", "", "not a tag"),
        ((*FIT, "image"), f"python@{ONE.upper()}", "", "not a tag"),
        ((*SPLIT, "command", 1), "c" * 4_097, "", "4097 characters"),
        ((*SPLIT, "args"), ["a"] * (MAX_ITEMS + 1), "", "257 items"),
        ((*SPLIT, "env", 1, "name"), "A", "spec.steps[1].env[1].name", "repeats 'A' of env[0]"),
        ((*SPLIT, "env", 0, "name"), "1A", "", "is no variable name"),
        ((*SPLIT, "env", 0, "value"), "v" * 32_769, "", "32769 characters"),
        ((*SPLIT, "inputs", "datasets", 0, "datasetRef"), "Data", "", "is no name"),
        ((*SPLIT, "inputs", "datasets", 1), {"name": "data", "datasetRef": "b"},
         "spec.steps[1].inputs.datasets[1].name", "repeats 'data'"),
        ((*FIT, "inputs", "artifacts", 1, "name"), "x", "spec.steps[0].inputs.artifacts[1].name", "repeats 'x'"),
        ((*FIT, "inputs", "artifacts", 0, "fromStep"), "none",
         "spec.steps[0].inputs.artifacts[x].fromStep", "names no step of the pipeline: 'none'"),
        ((*FIT, "inputs", "artifacts", 0, "fromStep"), "fit",
         "spec.steps[0].inputs.artifacts[x].fromStep", "makes 'fit' wait for itself"),
        ((*FIT, "inputs", "artifacts", 1, "artifact"), "model",
         "spec.steps[0].inputs.artifacts[y].artifact", "names no output of 'split': 'model'"),
        ((*SPLIT, "outputs", "artifacts", 1, "name"), "all",
         "spec.steps[1].outputs.artifacts[1].name", "repeats 'all'"),
        ((*SPLIT, "outputs", "artifacts", 0, "mediaType"), "CSV", "", "is no media type"),
        ((*SPLIT, "outputs", "artifacts", 0, "type"), "", "", "is no name"),
        ((*FIT, "resources", "gpu"), -1, "", "is -1"),
        ((*FIT, "resources", "gpu"), 1_025, "", "is 1025"),
        ((*FIT, "resources", "cpu"), "1000m", "", "one spelling"),
        ((*FIT, "resources", "memory"), "2048Mi", "", "one spelling"),
        ((*RETRY, "maxAttempts"), 0, "", "is 0"),
        ((*RETRY, "maxAttempts"), 101, "", "is 101"),
        ((*RETRY, "retryOn", 1), "system", "spec.steps[1].retryPolicy.retryOn[1]", "repeats 'system'"),
        ((*RETRY, "backoff", "initialSeconds"), -1, "", "is -1"),
        ((*RETRY, "backoff", "initialSeconds"), 61, "spec.steps[1].retryPolicy.backoff.maxSeconds", "61 to 86400"),
        ((*RETRY, "backoff", "maxSeconds"), 86_401, "", "is 86401"),
        ((*RETRY, "backoff", "multiplier"), "1.0", "", "is no decimal from 1 to 10"),
        ((*RETRY, "backoff", "multiplier"), "NaN", "", "is no decimal from 1 to 10"),
        ((*FIXED, "multiplier"), "2", "", "is not '1'"),
        ((*FIXED, "maxSeconds"), 1, "", "is not initialSeconds"),
        (("spec", "dependencies", 0, "step"), "none", "", "names no step of the pipeline: 'none'"),
        (("spec", "dependencies", 0, "dependsOn"), "none", "", "names no step of the pipeline: 'none'"),
        (("spec", "dependencies", 0, "dependsOn"), "fit", "", "makes 'fit' wait for itself"),
        (("spec", "dependencies", 1), {"step": "split", "dependsOn": "fit"},
         "spec.dependencies", "have a cycle: fit -> split -> fit"),
    ],
)  # fmt: skip
def test_a_rule_that_is_broken_is_named(place: Place, value: Any, path: str, text: str) -> None:
    """The path is that of the field at fault, the same for YAML, JSON and messages, and the text says what is wrong."""
    tree = changed(place, value)
    expected = [path or path_of(place)]
    assert faults_of_message(tree) == expected
    assert faults_of_text(tree) == expected
    with pytest.raises(Invalid) as caught:
        document.from_tree(tree, PipelineSpec)
    assert text in caught.value.violations[0].description


@pytest.mark.parametrize(
    ("place", "value", "path"),
    [
        ((*RETRY, "backoff", "type"), "linear", ""),
        ((*RETRY, "backoff", "type"), "FIXED", ""),
        ((*RETRY, "backoff", "type"), "BACKOFF_TYPE_FIXED", ""),
        ((*RETRY, "retryOn", 0), "", ""),
        ((*RETRY, "retryOn", 0), "User", ""),
        ((*RETRY, "maxAttempts"), 2**53, ""),
        ((*RETRY, "maxAttempts"), -(2**53), ""),
        ((*RETRY, "maxAttempts"), float("nan"), ""),
        ((*FIT, "resources", "gpu"), 1.0, ""),
        ((*FIT, "resources", "cpu"), 2, ""),
    ],
)
def test_what_only_text_can_say_is_named(place: Place, value: Any, path: str) -> None:
    """Unknown words for an enum, numbers beyond 2^53-1, NaN and floats are refused at their place."""
    assert faults_of_tree(changed(place, value)) == [path or path_of(place)]


def test_nan_and_deep_nesting_are_refused_in_text() -> None:
    """JSON's NaN, 200,000 brackets, bytes that are no UTF-8, and another document are no spec."""
    deep = "[" * 200_000
    for text, reason in (
        (json.dumps(changed((*RETRY, "maxAttempts"), float("nan"))).encode(), "NaN"),
        (b'{"a":' + deep.encode(), "deeper than 32"),
        (deep.encode(), "deeper than 32"),
        (b"\xff", "UTF-8"),
        (b'{"\xff":1}', "UTF-8"),
        (b"", "is null"),
        (b"a: 1\n---\nb: 1", "is no YAML"),
        (b"{} {}", "is no JSON"),
        (b'{"kind":"Pipeline","kind":"Pipeline"}', "twice"),
        (b"kind: Pipeline\nkind: Pipeline", "twice"),
    ):
        assert reason in refusal(load_pipeline_spec, text).description, text[:20]


def test_every_fault_is_named_at_once() -> None:
    """Faults of several steps come in one answer."""
    tree = changed((*FIT, "image"), "python:latest")
    tree["spec"]["steps"][1]["resources"]["cpu"] = "0"
    tree["metadata"]["color"] = "red"
    assert faults_of_text(tree) == ["metadata.color", "spec.steps[0].image", "spec.steps[1].resources.cpu"]


def test_several_unknown_names_are_named_at_once() -> None:
    """Every edge to a step that is not there is named, not only the first."""
    tree = changed(("spec", "dependencies"), [{"step": "x", "dependsOn": "fit"}, {"step": "fit", "dependsOn": "y"}])
    assert faults_of_text(tree) == ["spec.dependencies[0].step", "spec.dependencies[1].dependsOn"]


def test_the_place_of_an_artifact_input_does_not_depend_on_the_order_sent() -> None:
    """Inputs are a set: the one at fault is named by its name, in whatever order the two were sent."""
    tree = changed((*FIT, "inputs", "artifacts", 0, "artifact"), "none")
    backwards = copy.deepcopy(tree)
    backwards["spec"]["steps"][0]["inputs"]["artifacts"].reverse()
    assert faults_of_text(tree) == faults_of_text(backwards) == ["spec.steps[0].inputs.artifacts[x].artifact"]


# One value, whatever the form.


@LAW
@given(generated(pipeline), st.integers())
def test_yaml_json_and_message_give_one_value(spec: PipelineSpec, seed: int) -> None:
    """One spec has one value and one digest, whatever form and order it was sent in."""
    tree: Any = document.tree_of(spec)
    rng = random.Random(seed)
    for items in (tree["spec"]["steps"], tree["spec"]["dependencies"], tree["metadata"]["labels"]):
        rng.shuffle(items)
    message = pipeline_pb2.PipelineSpec()
    fill(message, tree)
    assert decode(message, PipelineSpec, "x") == spec
    assert load_pipeline_spec(json.dumps(tree).encode()) == spec
    assert load_pipeline_spec(json.dumps(tree, ensure_ascii=False, indent="\t").encode()) == spec
    assert load_pipeline_spec(as_yaml(tree)) == spec
    flow = as_yaml(tree, default_flow_style=True, width=40, explicit_start=True)
    assert load_pipeline_spec(flow) == spec


def test_the_sample_has_a_human_form() -> None:
    """YAML with comments, block text and flow lists gives the same value as its tree."""
    text = b"""
# A comment.
apiVersion: animus/v1
kind: Pipeline
metadata: {name: on, description: "", labels: []}
spec:
  dependencies: []
  steps:
    - name: "no"
      image: %s
      command: [python, -c]
      args:
        - |
          print("a: b")
      inputs: {datasets: [{name: data, datasetRef: yes}], artifacts: []}
      outputs: {artifacts: []}
      env: [{name: VERSION, value: "1.10", secretRef: ""}, {name: DATE, value: 2026-01-01, secretRef: ""}]
      resources: {cpu: 500m, memory: 1Gi, gpu: 0}
      retryPolicy:
        maxAttempts: 1
        retryOn: []
        backoff: {type: fixed, initialSeconds: 0, maxSeconds: 0, multiplier: "1"}
"""
    spec = load_pipeline_spec(text % IMAGE.encode())
    assert spec.metadata.name == "on"
    (step,) = spec.spec.steps
    assert step.name == "no"
    assert step.args == ('print("a: b")\n',)
    assert [variable.value for variable in step.env] == ["2026-01-01", "1.10"]
    assert spec.dataset_refs() == ("yes",)


def test_dataset_refs_are_sorted_without_repeats() -> None:
    """Two steps that read one dataset need one binding."""
    tree = changed((*FIT, "inputs", "datasets"), [{"name": n, "datasetRef": r} for n, r in ("xb", "ya", "zb")])
    tree["spec"]["steps"][1]["inputs"]["datasets"][0]["datasetRef"] = "a"
    assert document.from_tree(tree, PipelineSpec).dataset_refs() == ("a", "b")


def test_a_header_of_another_kind_is_refused() -> None:
    """API version first, then kind."""
    check_header("animus/v1", "Run", "Run")
    assert refusal(check_header, "v1", "Run", "Run").field == "apiVersion"
    assert refusal(check_header, "animus/v1", "run", "Run").field == "kind"


# One spelling: of all short texts, exactly those are accepted that their meaning is spelled as.


def cpu(text: str) -> str | None:
    """How an amount of cores is spelled: whole cores where they are whole, else thousandths."""
    match = re.fullmatch(r"([0-9]+)(m?)", text)
    if not match or int(match[1]) == 0:
        return None
    thousandths = int(match[1]) * (1 if match[2] else 1_000)
    return f"{thousandths}m" if thousandths % 1_000 else str(thousandths // 1_000)


UNITS = ["Ki", "Mi", "Gi", "Ti"]


def memory(text: str) -> str | None:
    """How an amount of memory is spelled: in the largest unit that leaves a whole number."""
    match = re.fullmatch(r"([0-9]+)(Ki|Mi|Gi|Ti)", text)
    if not match or int(match[1]) == 0:
        return None
    kibibytes = int(match[1]) * 1_024 ** UNITS.index(match[2])
    power = max(power for power in range(4) if kibibytes % 1_024**power == 0)
    return f"{kibibytes // 1_024**power}{UNITS[power]}"


def multiplier(text: str) -> str | None:
    """How a factor from 1 to 10 with at most three places is spelled."""
    if not re.fullmatch(r"[0-9]+(?:\.[0-9]*)?|\.[0-9]+", text):
        return None
    value = Fraction(text)
    if not 1 <= value <= 10 or (value * 1_000).denominator != 1:
        return None
    return f"{float(value):.3f}".rstrip("0").rstrip(".")


def check_cpu(value: str) -> None:
    """Accepts an amount of cores at the field `f`."""
    _moved(lambda: Resources(value, "1Gi", 0), "cpu")


def check_memory(value: str) -> None:
    """Accepts an amount of memory at the field `f`."""
    _moved(lambda: Resources("1", value, 0), "memory")


def check_multiplier(value: str) -> None:
    """Accepts a factor at the field `f`."""
    _moved(lambda: Backoff(BackoffType.EXPONENTIAL, 1, 2, value), "multiplier")


def _moved(make: Callable[[], object], field: str) -> None:
    try:
        make()
    except Invalid as error:
        assert [each.field for each in error.violations] == [field]
        raise Invalid([Violation("f", error.violations[0].description)]) from None


NUMBERS = ["0", "00", "01", *map(str, range(1, 40)), "512", "1000", "1023", "1024", "1025", "1536", "2048", "1048576"]


@pytest.mark.parametrize(
    ("check", "spelled", "texts"),
    [
        (
            check_cpu,
            cpu,
            [*spellings("015m.", 5), *(f"{n}{m}" for n in (*range(1, 4_000), 10**6 - 1) for m in ("", "m"))],
        ),
        (check_memory, memory, [*map("".join, itertools.product(NUMBERS, [*UNITS, "", "K", "k", "M", "iB", "mi"]))]),
        (check_multiplier, multiplier, [*spellings("0159.", 6), "1.001", "9.999", "10.001", "2.5e0", "+2", " 2"]),
    ],
    ids=["cpu", "memory", "multiplier"],
)
def test_an_amount_has_one_spelling(
    check: Callable[[str], None], spelled: Callable[[str], str | None], texts: list[str]
) -> None:
    """Of many texts, an amount is accepted exactly where writing what it means gives the text again."""
    counts = {True: 0, False: 0}
    for text in texts:
        accepted = accepts(check, text)
        assert accepted == (spelled(text) == text), text
        counts[accepted] += 1
    assert min(counts.values()) > 50


@pytest.mark.parametrize(
    ("check", "refused"),
    [
        (
            check_cpu,
            ["1000m", "0", "0m", "0.5", "01", "+1", "1 ", "1\n", "1M", "½", "١", "-1", "1000000", "1e3", "1_0"],
        ),
        (check_memory, ["2048Mi", "1024Ki", "0Gi", "1.5Gi", "1G", "1GB", "1gi", "1 Gi", "1Gi\n", "01Gi", "1", "1e3Ki"]),
        (
            check_multiplier,
            ["1.0", "01", "-0", "1e3", "0.5", "11", "10.1", "1.0001", "2.", ".5", "", "NaN", "2\n", "١"],
        ),
    ],
    ids=["cpu", "memory", "multiplier"],
)
def test_other_spellings_are_refused(check: Callable[[str], None], refused: list[str]) -> None:
    """Zeros that say nothing, signs, exponents, other units and other digits are refused."""
    assert [text for text in refused if accepts(check, text)] == []


# Backoff.


def waits(backoff: Backoff, count: int) -> tuple[int, ...]:
    """The contract's words: min(max_seconds, floor(initial_seconds * multiplier^(n-1))), in exact fractions."""
    factor = Fraction(backoff.multiplier)
    return tuple(min(backoff.max_seconds, int(backoff.initial_seconds * factor**power // 1)) for power in range(count))


@LAW
@given(
    st.integers(0, 86_400),
    st.integers(0, 86_400),
    st.integers(1_000, 10_000).map(lambda number: f"{number / 1000:.3f}".rstrip("0").rstrip(".")),
    st.integers(0, 99),
)
def test_waits_follow_the_contract_exactly(one: int, other: int, factor: str, count: int) -> None:
    """For any policy the waits are those of exact fractions: never falling, never above the maximum."""
    backoff = Backoff(BackoffType.EXPONENTIAL, min(one, other), max(one, other), factor)
    delays = backoff.delays(count)
    assert delays == waits(backoff, count)
    assert list(delays) == sorted(delays)
    assert all(backoff.initial_seconds <= delay <= backoff.max_seconds for delay in delays)


def test_floats_would_wait_otherwise() -> None:
    """The reference tells exact waits from those of binary floating point."""
    backoff = Backoff(BackoffType.EXPONENTIAL, 100, 86_400, "1.15")
    floats = tuple(min(86_400, int(100 * 1.15**power)) for power in range(40))
    assert floats != waits(backoff, 40)
    assert waits(backoff, 40) == backoff.delays(40)


def test_waits_have_small_worlds() -> None:
    """Fixed waits are equal, a zero stays zero, a factor of one never grows, and a cap holds from where it is met."""
    assert Backoff(BackoffType.FIXED, 7, 7, "1").delays(3) == (7, 7, 7)
    assert Backoff(BackoffType.EXPONENTIAL, 0, 9, "2").delays(3) == (0, 0, 0)
    assert Backoff(BackoffType.EXPONENTIAL, 2, 9, "1").delays(3) == (2, 2, 2)
    assert Backoff(BackoffType.EXPONENTIAL, 1, 10, "2").delays(6) == (1, 2, 4, 8, 10, 10)
    assert Backoff(BackoffType.EXPONENTIAL, 1, 10, "2").delays(0) == ()


def test_the_slowest_factor_costs_little() -> None:
    """A hundred attempts that never reach their maximum keep numbers of a thousand bits."""
    backoff = Backoff(BackoffType.EXPONENTIAL, 1, 86_400, "1.001")
    assert backoff.delays(99) == waits(backoff, 99)
    assert all(backoff.delays(99)[-1] == 1 for _ in range(1_000))


# The graph.


def graph(edges: list[tuple[str, str]], count: int) -> PipelineGraph:
    """Steps `s0`, `s1`, … with edges of (step, the one that it waits for)."""
    return graph_of([bare_step(f"s{number}", ONCE) for number in range(count)], edges).spec


def reachable(edges: list[tuple[int, int]], count: int) -> list[list[bool]]:
    """Whether one step waits for another, through however many: Warshall's algorithm."""
    found = [[(step, before) in edges for before in range(count)] for step in range(count)]
    for middle, step, before in itertools.product(range(count), repeat=3):
        found[step][before] |= found[step][middle] and found[middle][before]
    return found


def test_a_graph_is_refused_exactly_when_it_has_a_cycle() -> None:
    """Of all 4,096 graphs of four steps, those with a cycle are refused, and the cycle shown is one of theirs."""
    pairs = [(step, before) for step in range(4) for before in range(4) if step != before]
    cyclic = 0
    for mask in range(2 ** len(pairs)):
        edges = [pair for bit, pair in enumerate(pairs) if mask >> bit & 1]
        waits_for = {f"s{step}": tuple(f"s{b}" for s, b in edges if s == step) for step in range(4)}
        cycle = find_cycle(waits_for)
        found = reachable(edges, 4)
        assert bool(cycle) == any(found[step][step] for step in range(4))
        if cycle:
            cyclic += 1
            assert cycle[0] == cycle[-1] == min(cycle)
            assert len(set(cycle)) == len(cycle) - 1
            assert all(before in waits_for[step] for step, before in itertools.pairwise(cycle))
    assert cyclic == 4_096 - 543  # the number of labelled acyclic graphs of four nodes


def test_a_cycle_is_shown() -> None:
    """The error walks the cycle from its smallest step, each waiting for the next; a long one is shortened."""
    edges = [("s2", "s1"), ("s1", "s3"), ("s3", "s2"), ("s4", "s2")]
    found = refusal(graph, edges, 5)
    assert found == Violation("dependencies", "have a cycle: s1 -> s3 -> s2 -> s1")
    ring = [(f"s{number}", f"s{(number + 1) % 5_000}") for number in range(5_000)]
    shown = refusal(graph, ring, 5_000).description
    assert shown.startswith("have a cycle: s0 -> s1 -> s2")
    assert f"s{CYCLE_ENDS - 1} -> ({5_001 - 2 * CYCLE_ENDS} more) -> s{5_001 - CYCLE_ENDS}" in shown
    assert shown.endswith("s4999 -> s0")
    assert len(shown) < 2_000


def test_a_cycle_through_an_artifact_is_found() -> None:
    """Implied edges count as declared ones do."""
    one = bare_step("a", ONCE, inputs=[("b", "o0")], outputs=1)
    two = bare_step("b", ONCE, inputs=[("a", "o0")], outputs=1)
    assert refusal(graph_of, [one, two]).description == "have a cycle: a -> b -> a"


def test_repeated_and_implied_edges_are_one_edge() -> None:
    """Declaring an edge twice, or beside an artifact that implies it, changes what is waited for in nothing."""
    steps = [bare_step("a", ONCE, outputs=2), bare_step("b", ONCE, inputs=[("a", "o0"), ("a", "o1")])]
    assert graph_of(steps, [("b", "a"), ("b", "a")]) == graph_of(steps, [("b", "a")])
    assert graph_of(steps).spec.edges() == graph_of(steps, [("b", "a")]).spec.edges() == {"a": (), "b": ("a",)}


@LAW
@given(generated(pipeline))
def test_edges_are_the_union_of_both_kinds(spec: PipelineSpec) -> None:
    """Each step waits for what it declares and what it reads, and for nothing else."""
    expected = {step.name: {each.from_step for each in step.inputs.artifacts} for step in spec.spec.steps}
    for edge in spec.spec.dependencies:
        expected[edge.step].add(edge.depends_on)
    edges = spec.spec.edges()
    assert {step: set(before) for step, before in edges.items()} == expected
    assert list(edges) == sorted(edges)
    assert all(list(before) == sorted(set(before)) for before in edges.values())


def test_the_bounds_on_steps_and_edges_are_exact() -> None:
    """10,000 steps stand, 10,001 do not; nor do more than 100,000 edges with those that artifacts imply."""
    steps = [bare_step(f"s{number:05}", ONCE) for number in range(MAX_STEPS + 1)]
    assert len(graph_of(steps[:-1]).spec.steps) == MAX_STEPS
    assert refusal(graph_of, steps).field == "steps"
    assert refusal(graph, [("s1", "s0")] * (MAX_EDGES + 1), 2).field == "dependencies"
    rows = [(f"s{step:05}", f"s{before:05}") for step in range(1, 500) for before in range(step)][:MAX_EDGES]
    assert len(rows) == MAX_EDGES
    assert len(graph_of(steps[:500], rows).spec.dependencies) == MAX_EDGES
    first = bare_step("s00000", ONCE, outputs=1)
    reader = bare_step("s00500", ONCE, inputs=[("s00000", "o0")])
    found = refusal(graph_of, [first, *steps[1:500], reader], rows)
    assert found == Violation("dependencies", "make more than 100000 edges with the artifact inputs")


@LAW
@given(generated(lambda rng: (retry_policy(rng), name(rng))))
def test_retry_kinds_are_a_set(made: tuple[RetryPolicy, str]) -> None:
    """The kinds of failure that are retried come sorted, whatever order they were given in."""
    policy, _ = made
    backwards = RetryPolicy(policy.max_attempts, policy.retry_on[::-1], policy.backoff)
    assert backwards == policy
    assert RetryPolicy(2, (RetryKind.USER, RetryKind.SYSTEM), policy.backoff).retry_on == (
        RetryKind.SYSTEM,
        RetryKind.USER,
    )


def test_a_dependency_names_two_steps() -> None:
    """Each end has the rule of a step's name."""
    assert refusal(Dependency, "A", "b").field == "step"
    assert refusal(Dependency, "a", "b\n").field == "dependsOn"
