"""PROV-JSON, as the prov library reads it. Its warnings are errors here: nothing is dropped or read another way."""

import dataclasses
import json
import re
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prov.model import (
    ProvActivity,
    ProvCommunication,
    ProvDocument,
    ProvEntity,
    ProvGeneration,
    ProvRecord,
    ProvStart,
    ProvUsage,
)

from animus.domain import prov
from animus.domain.evidence import RunEvidence
from animus.domain.lineage import LineageEdge, LineageRelation, edges_of_evaluation
from domain.runs import RUNS, digest_of_value, fixed_run
from domain.values import LAW

RUN = fixed_run()
KINDS: dict[LineageRelation, type[ProvRecord]] = {
    LineageRelation.USED: ProvUsage,
    LineageRelation.WAS_GENERATED_BY: ProvGeneration,
    LineageRelation.WAS_STARTED_BY: ProvStart,
    LineageRelation.WAS_INFORMED_BY: ProvCommunication,
}
BASE = "urn:animus:instance:animus.example/lab/"


def read(content: bytes) -> ProvDocument:
    """The document as the library reads it."""
    found = ProvDocument.deserialize(content=content.decode(), format="json")
    assert isinstance(found, ProvDocument)
    return found


def written(found: ProvDocument) -> bytes:
    """The document as the library writes it."""
    text = found.serialize(format="json")
    assert text is not None
    return text.encode()


def node(name: Any) -> str:
    """The lineage node of a qualified name."""
    return unquote(name.uri.removeprefix(BASE))


def edges(found: ProvDocument) -> set[tuple[str, LineageRelation, str]]:
    """The relations of a document as lineage edges."""
    relations = {(relation, record) for relation, kind in KINDS.items() for record in found.get_records(kind)}
    ends = [(relation, [value for _, value in record.formal_attributes if value]) for relation, record in relations]
    return {(node(first), relation, node(second)) for relation, (first, second) in ends}


def of_evaluations(run: RunEvidence) -> list[LineageEdge]:
    """What the evaluations used that the gates of a run looked at."""
    return [
        edge
        for evaluation in run.evaluations
        for edge in edges_of_evaluation(run.project_id, digest_of_value(evaluation), evaluation)
    ]


@LAW
@given(RUNS)
def test_the_library_reads_all_of_it(run: RunEvidence) -> None:
    """Read and written again it has the same records; each edge is one, and both of its ends are declared."""
    content = prov.document(run)
    assert prov.document(dataclasses.replace(run)) == content
    tree = json.loads(content)
    assert json.dumps(tree, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode() + b"\n" == content
    found = read(content)
    again = read(written(found))
    assert set(again.get_records()) == set(found.get_records())
    assert again == found
    assert len(list(found.get_records())) == sum(len(each) for kind, each in tree.items() if kind != "prefix")
    assert edges(found) == {(each.subject, each.relation, each.object) for each in (*run.edges, *of_evaluations(run))}
    declared = {node(each.identifier) for kind in (ProvEntity, ProvActivity) for each in found.get_records(kind)}
    assert declared >= {end for each in run.edges for end in (each.subject, each.object)}
    assert not {each.identifier for each in found.get_records(ProvEntity)} & {
        each.identifier for each in found.get_records(ProvActivity)
    }


def test_a_record_that_is_lost_is_found() -> None:
    """A document without one of its edges has other records."""
    fewer = dataclasses.replace(RUN, edges=RUN.edges[:-1])
    assert read(prov.document(fewer)) != read(prov.document(RUN))
    assert len(edges(read(prov.document(fewer)))) == len(RUN.edges) - 1


def test_the_fixed_run_has_its_nodes() -> None:
    """What was used and made, what made it, and when: each with its type."""
    found = read(prov.document(RUN))
    kinds = {
        node(each.identifier): str(next(iter(each.get_asserted_types())))
        for kind in (ProvEntity, ProvActivity)
        for each in found.get_records(kind)
    }
    assert kinds[RUN.name] == "animus:Run"
    assert kinds[f"{RUN.name}/steps/fit/attempts/2"] == "animus:Attempt"
    assert kinds[f"projects/cells/commits/https://git.test/lab/cells.git@{'c' * 40}"] == "animus:Commit"
    assert sorted(kinds.values()) == sorted(
        ["animus:Run", "animus:PipelineSpec", "animus:EnvironmentLock", "animus:Commit", "animus:DatasetVersion"]
        + ["animus:Attempt"] * 4
        + ["animus:Artifact"] * 5
    )
    (run,) = (each for each in found.get_records(ProvActivity) if node(each.identifier) == RUN.name)
    assert isinstance(run, ProvActivity)
    assert [str(each) for each in (run.get_startTime(), run.get_endTime())] == [
        "2026-01-02 03:04:00+00:00",
        "2026-01-02 03:04:12+00:00",
    ]


def test_evaluations_are_activities_and_our_rules_entities() -> None:
    """Each verdict with who found it and when; a run that they informed; a rule of another tool is none of ours."""
    run = fixed_run(gated=True)
    found = read(prov.document(run))
    activities = {
        node(each.identifier): {str(key): str(value) for key, value in each.attributes}
        for each in found.get_records(ProvActivity)
        if "animus:QualityEvaluation" in map(str, each.get_asserted_types())
    }
    assert sorted((each["animus:evaluator"], each["animus:verdict"]) for each in activities.values()) == [
        ("animus", "fail"),
        ("animus", "warn"),
        ("great-expectations", "pass"),
    ]
    informed = {far for near, relation, far in edges(found) if relation is LineageRelation.WAS_INFORMED_BY}
    assert informed == activities.keys()
    rules = {
        str(value)
        for each in found.get_records(ProvEntity)
        if "animus:QualityRule" in map(str, each.get_asserted_types())
        for key, value in each.attributes
        if str(key) == "animus:name"
    }
    assert rules == {"fresh", "late"}


def test_one_content_under_several_names_is_one_entity() -> None:
    """All of its names are told."""
    first, *others = RUN.artifacts
    run = dataclasses.replace(
        RUN, artifacts=(first, *(dataclasses.replace(each, digest=first.digest) for each in others))
    )
    tree = json.loads(prov.document(run))
    entity = tree["entity"][prov.qualified(f"projects/cells/artifacts/{first.digest}")]
    assert entity["animus:output"] == ["fit/model", "judge/o0", "split/o0", "split/o1"]
    found = read(prov.document(run))
    assert read(written(found)) == found


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a/b-c_d.e@1", "node:a/b-c_d.e@1"), ("sha256:1", "node:sha256%3A1"), ("a%b", "node:a%25b"), ("ä", "node:%C3%A4")],
)
def test_what_a_local_name_cannot_carry_is_encoded(name: str, expected: str) -> None:
    """By its bytes in UTF-8."""
    assert prov.qualified(name) == expected


@given(st.text())
def test_names_are_encoded_without_loss(name: str) -> None:
    """Decoded, a name is what it was; encoded, it has letters that a local name of PROV-N may have."""
    local = prov.qualified(name).removeprefix("node:")
    assert re.fullmatch(r"(?:[A-Za-z0-9_./@-]|%[0-9A-F]{2})*", local)
    assert unquote(local) == name
