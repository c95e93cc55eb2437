"""What OpenLineage run events of other systems are taken for, and what is refused."""

import copy
import json
import random
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import ValidationError

from animus.domain import document, names
from animus.domain.errors import Invalid
from animus.domain.external_lineage import (
    MAX_DATASET_NAME,
    MAX_DATASETS,
    MAX_EVENT_BYTES,
    MAX_EVENT_DEPTH,
    ExternalDataset,
    ExternalEvent,
    ExternalEventType,
    dataset_node,
    edges_of_event,
    parse_event,
    state_of_run,
)
from animus.domain.lineage import LineageNodeKind, LineageRelation, node_kind
from animus.domain.openlineage import events
from domain.runs import fixed_run
from domain.test_openlineage import EVENT, FOLDER
from domain.values import LAW, ONE, refusal

RUN, PARENT = "0176a8c2-fe01-7439-87e6-56a1a1b4029f", "f99310b4-3c3c-1a1a-2b2b-c1b95c24ff11"
BASE = {"_producer": "https://example.org/p", "_schemaURL": "https://example.org/s"}
START, COMPLETE, OTHER = ExternalEventType.START, ExternalEventType.COMPLETE, ExternalEventType.OTHER
FAIL, RUNNING, NONE = ExternalEventType.FAIL, ExternalEventType.RUNNING, ExternalEventType.NONE


def dataset(name: str, version: str = "", namespace: str = "pg") -> dict[str, Any]:
    """A dataset of an event, with its version as facet."""
    facets = {"version": {**BASE, "datasetVersion": version}} if version else {}
    return {"namespace": namespace, "name": name, "facets": facets}


def event(**more: Any) -> dict[str, Any]:
    """An event with all that is looked at."""
    facets = {"parent": {**BASE, "run": {"runId": PARENT}, "job": {"namespace": "dbt", "name": "all"}}}
    return {
        "eventTime": "2026-01-31T12:00:00.123456Z",
        "eventType": "COMPLETE",
        "producer": "https://example.org/p",
        "schemaURL": "https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/RunEvent",
        "run": {"runId": RUN, "facets": facets},
        "job": {"namespace": "jobs", "name": "load"},
        "inputs": [dataset("raw"), dataset("cells", ONE)],
        "outputs": [dataset("public.t", "7")],
        **more,
    }


def parsed(tree: object) -> ExternalEvent:
    """The event of a tree."""
    return parse_event(json.dumps(tree).encode())


def test_an_event_is_read_whole() -> None:
    """What is looked at, and the text as it was sent, whatever its layout."""
    text = json.dumps(event(), indent=2) + "\n"
    found = parse_event(text.encode())
    assert found == ExternalEvent(
        event_time="2026-01-31T12:00:00.123456Z",
        event_type=COMPLETE,
        run_id=RUN,
        job_namespace="jobs",
        job_name="load",
        parent_run_id=PARENT,
        inputs=(ExternalDataset("pg", "cells", ONE), ExternalDataset("pg", "raw", "")),
        outputs=(ExternalDataset("pg", "public.t", "7"),),
        event=text,
    )
    assert document.load(document.dump(found), ExternalEvent) == found


def test_what_an_event_may_leave_out() -> None:
    """Type, inputs, outputs and all facets; a dataset twice is once; a deleted version is none."""
    least = event(run={"runId": RUN.upper()})
    for key in ("eventType", "inputs", "outputs"):
        del least[key]
    found = parsed(least)
    assert (found.event_type, found.run_id, found.parent_run_id, found.inputs, found.outputs) == (NONE, RUN, "", (), ())
    gone = {**dataset("raw"), "facets": {"version": {**BASE, "_deleted": True}}}
    assert parsed(event(inputs=[gone, dataset("raw")])).inputs == (ExternalDataset("pg", "raw", ""),)


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("2026-01-31T12:00:00Z", "2026-01-31T12:00:00.000000Z"),
        ("2026-01-31t12:00:00.1z", "2026-01-31T12:00:00.100000Z"),
        ("2026-01-31T12:00:00.123456789+02:00", "2026-01-31T10:00:00.123456Z"),
        ("2026-01-01T00:00:00.9999999-00:30", "2026-01-01T00:30:00.999999Z"),
    ],
)
def test_times_are_utc_and_cut_to_microseconds(sent: str, kept: str) -> None:
    """Any offset and any fraction of RFC 3339."""
    assert parsed(event(eventTime=sent)).event_time == kept


@pytest.mark.parametrize("path", sorted((FOLDER / "examples").glob("*.json")), ids=lambda path: path.stem)
def test_the_facets_of_the_specification_are_taken_and_kept(path: Path) -> None:
    """Each of its examples, on every thing that has facets: the text holds it as it was."""
    facets = json.loads(path.read_text())
    tree = event(inputs=[{**dataset("a"), "inputFacets": facets}], outputs=[{**dataset("b"), "outputFacets": facets}])
    for holder in (tree["run"], tree["job"], tree["inputs"][0], tree["outputs"][0]):
        holder["facets"] = facets
    EVENT.validate(tree)
    assert json.loads(parsed(tree).event) == tree


def test_the_event_of_the_specification_is_taken() -> None:
    """Its example is of an older schema, and has a member that run events lack."""
    data = (FOLDER / "event.json").read_bytes()
    found = parse_event(data)
    assert (found.event, found.job_name, found.inputs) == (data.decode(), "dbt", ())


def test_our_own_events_are_taken_and_name_our_own_things() -> None:
    """What we render of a run leads back to the same versions and artifacts."""
    run = fixed_run()
    found = [parse_event(each) for each in events(run)]
    edges = {edge for each in found for edge in edges_of_event(run.project_id, each)}
    used = {edge.object for edge in run.edges if edge.relation is LineageRelation.USED}
    ours = {LineageNodeKind.DATASET_VERSION, LineageNodeKind.ARTIFACT}
    assert {edge.object for edge in edges if edge.relation is LineageRelation.USED} == {
        name for name in used if node_kind(name) in ours
    }
    written = {edge.subject for edge in edges if edge.relation is LineageRelation.WAS_GENERATED_BY}
    assert written == {names.artifact_name(run.project_id, each.digest) for each in run.artifacts}


def without(key: str, *path: str) -> dict[str, Any]:
    """An event that lacks a member of one of its objects."""
    tree = copy.deepcopy(event())
    at = tree
    for each in path:
        at = at[each] if not each.isdigit() else at[int(each)]  # type: ignore[index]
    del at[key]
    return tree


LONG = "x" * (MAX_DATASET_NAME + 1)
BAD: dict[str, tuple[object, str, bool]] = {  # the event, the path at fault, and whether the public schema takes it
    "no object": ([event()], "", False),
    "no time": (without("eventTime"), "eventTime", False),
    "no producer": (without("producer"), "producer", False),
    "no schema": (without("schemaURL"), "schemaURL", False),
    "no run": ({**without("run"), "job": 1}, "", False),
    "no run and no job": ({"eventTime": "x", "producer": "x", "schemaURL": "x"}, "run", False),
    "no job": (without("job"), "job", False),
    "no run id": (without("runId", "run"), "run.runId", False),
    "no job name": (without("name", "job"), "job.name", False),
    "no job namespace": (without("namespace", "job"), "job.namespace", False),
    "no dataset name": (without("name", "inputs", "1"), "inputs[1].name", False),
    "no dataset namespace": (without("namespace", "outputs", "0"), "outputs[0].namespace", False),
    "number": (event(eventTime=7), "eventTime", False),
    "producer that is no text": (event(producer=None), "producer", False),
    "run that is no object": (event(run="x"), "run", False),
    "run id that is no UUID": (event(run={"runId": "run-1"}), "run.runId", False),
    "UUID with a line feed": (event(run={"runId": RUN + "\n"}), "run.runId", False),
    "unknown type": (event(eventType="END"), "eventType", False),
    "no type": (event(eventType=None), "eventType", False),
    "time without a zone": (event(eventTime="2026-01-31T12:00:00"), "eventTime", False),
    "no such day": (event(eventTime="2026-02-30T12:00:00Z"), "eventTime", False),
    "time before all others": (event(eventTime="0001-01-01T00:00:00+01:00"), "eventTime", True),
    "inputs that are no list": (event(inputs={}), "inputs", False),
    "dataset that is no object": (event(outputs=["x"]), "outputs[0]", False),
    "dataset without a name": (event(inputs=[dataset("")]), "inputs[0].name", True),
    "long name": (event(inputs=[dataset(LONG)]), "inputs[0].name", True),
    "name that is long when encoded": (event(inputs=[dataset("ä" * 400)]), "inputs[0].name", True),
    "long version": (event(outputs=[dataset("a", LONG)]), "outputs[0].facets.version.datasetVersion", True),
    "NUL": (event(inputs=[dataset("a\0b")]), "inputs[0].name", True),
    "half a surrogate pair": (event(job={"namespace": "a", "name": "\ud800"}), "job.name", True),
    "facets that are a list": (event(job={"namespace": "a", "name": "b", "facets": []}), "job.facets", False),
    "facet that is no object": (event(run={"runId": RUN, "facets": {"x": 1}}), "run.facets.x", False),
    "facet without producer": (
        event(inputs=[{**dataset("a"), "inputFacets": {"x": {"_schemaURL": "y"}}}]),
        "inputs[0].inputFacets.x._producer",
        False,
    ),
    "facet without schema": (
        event(outputs=[{**dataset("a"), "facets": {"é\ud800": {"_producer": "y"}}}]),
        "outputs[0].facets.é\\ud800._schemaURL",
        False,
    ),
    "parent without a run": (event(run={"runId": RUN, "facets": {"parent": BASE}}), "run.facets.parent.run", True),
    "parent of another name": (
        event(run={"runId": RUN, "facets": {"parent": {**BASE, "run": {"runId": "x"}}}}),
        "run.facets.parent.run.runId",
        True,
    ),
    "version that is none": (
        event(inputs=[{**dataset("a"), "facets": {"version": BASE}}]),
        "inputs[0].facets.version.datasetVersion",
        True,
    ),
    "too many": (event(inputs=[dataset("a")] * MAX_DATASETS), "inputs", True),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_run_event_is_refused_by_path(name: str) -> None:
    """What the public schema refuses, and what cannot be kept as lineage."""
    tree, path, in_schema = BAD[name]
    assert refusal(parsed, tree).field == path
    try:
        EVENT.validate(tree)
    except ValidationError:
        assert not in_schema
    else:
        assert in_schema


def test_events_of_datasets_and_jobs_are_refused_as_such() -> None:
    """They are OpenLineage, and the answer says that they are not taken."""
    base = {key: event()[key] for key in ("eventTime", "producer", "schemaURL")}
    for more, kind in (({"dataset": dataset("a")}, "a dataset event"), ({"job": event()["job"]}, "a job event")):
        EVENT.validate({**base, **more})
        found = refusal(parsed, {**base, **more})
        assert (found.field, kind in found.description) == ("", True)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "no JSON"),
        (b"\xef\xbb\xbf{}", "no JSON"),
        (b'{"a":"\xff"}', "not UTF-8"),
        (b'{"a":NaN}', "NaN"),
        (b'{"a":{"b":1,"b":1}}', "twice"),
        (b'{"a":-Infinity}', "-Infinity"),
        (b'{"a":"\n"}', "no JSON"),
        (b'{"a":01}', "no JSON"),
        (b'{"a":1}x', "no JSON"),
        (b"[" * 5_000, "deeper"),
        (b'{"a":' + b"[" * MAX_EVENT_DEPTH + b"]" * MAX_EVENT_DEPTH + b"}", "deeper"),
        (b" " * (MAX_EVENT_BYTES + 1), "bytes long"),
    ],
)
def test_json_that_readers_differ_on_is_refused(data: bytes, said: str) -> None:
    """As is text that is not UTF-8, too deep or too long."""
    assert said in refusal(parse_event, data).description


def test_what_facets_may_hold() -> None:
    """Null, floats, huge numbers and any key, down to the last level that is allowed."""
    inner = b'{"":null,"a":1.5e999,"b":' + b"9" * 10_000 + b',"c":' + b"[" * 59 + b"]" * 59 + b"}"
    facet = json.dumps(BASE).encode()[:-1] + b',"x":' + inner + b"}"
    whole = json.dumps(event(job={"namespace": "a", "name": "b", "facets": {"it": 0}})).encode()
    data = whole.replace(b'{"it": 0}', b'{"it": ' + facet + b"}")
    assert parse_event(data).event.encode() == data


@LAW
@given(st.binary(max_size=20))
def test_no_bytes_make_the_reader_fail(data: bytes) -> None:
    """Put anywhere into an event, they are taken or refused."""
    whole = json.dumps(event()).encode()
    for place in (0, 20, 150, 400, len(whole)):
        try:
            parse_event(whole[:place] + data + whole[place:])
        except Invalid as error:
            assert error.reason == "FIELD_INVALID"


# The graph.


def test_an_event_says_what_its_run_read_wrote_and_was_started_by() -> None:
    """One edge for each, between the nodes of their names."""
    run = f"projects/p/externalRuns/{RUN}"
    assert {(e.subject, e.relation, e.object) for e in edges_of_event("p", parsed(event()))} == {
        (run, LineageRelation.USED, "projects/p/externalDatasets/pg/raw"),
        (run, LineageRelation.USED, f"projects/p/datasets/cells/versions/{ONE}"),
        ("projects/p/externalDatasets/pg/public.t@7", LineageRelation.WAS_GENERATED_BY, run),
        (run, LineageRelation.WAS_STARTED_BY, f"projects/p/externalRuns/{PARENT}"),
    }
    own = event(run={"runId": PARENT, "facets": event()["run"]["facets"]}, inputs=[], outputs=[])
    assert edges_of_event("p", parsed(own)) == ()


@pytest.mark.parametrize(
    ("name", "version", "node"),
    [
        ("cells", ONE, f"datasets/cells/versions/{ONE}"),
        ("projects/p/datasets/cells", ONE, f"datasets/cells/versions/{ONE}"),
        ("projects/q/datasets/cells", ONE, f"externalDatasets/n/projects%2Fq%2Fdatasets%2Fcells@sha256%3A{'1' * 64}"),
        ("Cells", ONE, f"externalDatasets/n/Cells@sha256%3A{'1' * 64}"),
        ("cells", ONE[:-1], f"externalDatasets/n/cells@sha256%3A{'1' * 63}"),
        ("cells", "", "externalDatasets/n/cells"),
        (f"projects/p/artifacts/{ONE}", "", f"artifacts/{ONE}"),
        (f"projects/p/artifacts/{ONE}/x", "", f"externalDatasets/n/projects%2Fp%2Fartifacts%2Fsha256%3A{'1' * 64}%2Fx"),
    ],
)
def test_our_own_versions_and_artifacts_are_known_by_name(name: str, version: str, node: str) -> None:
    """A version by the dataset's id or full name and a digest, an artifact by its full name; all else is another's."""
    assert dataset_node("p", ExternalDataset("n", name, version)) == f"projects/p/{node}"


TEXT = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=30)


@LAW
@given(TEXT, TEXT, st.just("") | TEXT)
def test_each_dataset_has_a_node_of_its_own(namespace: str, name: str, version: str) -> None:
    """Namespace, name and version are read back from it, and its kind is known."""
    node = names.external_dataset_name("p", namespace, name, version)
    *_, first, second = node.split("/")
    assert (unquote(first), *map(unquote, second.partition("@")[::2])) == (namespace, name, version)
    assert node_kind(node) is LineageNodeKind.EXTERNAL_DATASET
    assert node_kind(names.external_run_name("p", RUN)) is LineageNodeKind.EXTERNAL_RUN


def summary(found: list[ExternalEvent]) -> tuple[object, ...]:
    """What follows from events in the order in which they came: nodes, edges and the state."""
    edges = {edge for each in found for edge in edges_of_event("p", each)}
    last: dict[ExternalEventType, str] = {}
    for each in found:
        last[each.event_type] = max(last.get(each.event_type, ""), each.event_time)
    return edges, {end for edge in edges for end in (edge.subject, edge.object)}, state_of_run(last)


EVENTS = st.builds(
    lambda second, kind, inputs, outputs: parsed(
        event(
            eventTime=f"2026-01-01T00:00:0{second}Z",
            eventType=kind,
            inputs=[dataset(name) for name in inputs],
            outputs=[dataset(name) for name in outputs],
        )
    ),
    st.integers(0, 3),
    st.sampled_from([kind.value for kind in ExternalEventType if kind]),
    st.sets(st.sampled_from("abc")),
    st.sets(st.sampled_from("bcd")),
)


@LAW
@given(st.lists(EVENTS, min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_neither_order_nor_repetition_of_events_matters(found: list[ExternalEvent], chance: random.Random) -> None:
    """Any permutation with any of them again gives the same nodes, edges and state."""
    other = [*found, *chance.choices(found, k=3)]
    chance.shuffle(other)
    assert summary(other) == summary(found)


@pytest.mark.parametrize(
    ("last", "state"),
    [
        ({START: "1"}, START),
        ({START: "1", RUNNING: "2"}, RUNNING),
        ({START: "1", RUNNING: "1"}, RUNNING),
        ({START: "2", RUNNING: "1"}, START),
        ({COMPLETE: "1", START: "2", OTHER: "3"}, COMPLETE),
        ({COMPLETE: "1", FAIL: "2"}, FAIL),
        ({COMPLETE: "2", FAIL: "1"}, COMPLETE),
        ({COMPLETE: "1", FAIL: "1"}, FAIL),
        ({NONE: "9", START: "1"}, START),
        ({NONE: "9"}, NONE),
    ],
)
def test_the_state_of_a_run(last: dict[ExternalEventType, str], state: ExternalEventType) -> None:
    """An end stands whatever is told later; otherwise the latest, and of two at once the higher."""
    assert state_of_run(last) is state
