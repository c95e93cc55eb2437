"""OpenLineage events, by the project's own schemas."""

import dataclasses
import json
import uuid
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator, FormatChecker, ValidationError
from referencing import Registry, Resource
from rfc3986_validator import validate_rfc3986  # type: ignore[import-untyped]

from animus.domain.evidence import RunEvidence, summarize
from animus.domain.names import attempt_name
from animus.domain.openlineage import NAMESPACE, URI, events, run_id
from animus.domain.run import Commit
from animus.domain.state import RunState
from domain.runs import ORIGIN, RUNS, digest_of, fixed_run
from domain.values import LAW

FOLDER = Path(__file__).parents[1] / "vectors/openlineage"
CORE = json.loads((FOLDER / "OpenLineage.json").read_text())
FACETS = [json.loads(path.read_text()) for path in sorted((FOLDER / "facets").glob("*.json"))]
REGISTRY: Registry[Any] = Registry().with_resources(
    (each["$id"], Resource.from_contents(each)) for each in (CORE, *FACETS)
)
CHECKER = FormatChecker()
EVENT = Draft202012Validator(CORE, registry=REGISTRY, format_checker=CHECKER)
BY_KEY = {next(iter(each["properties"])): each for each in FACETS}
RUN = fixed_run()


def trees(run: RunEvidence) -> list[Any]:
    """The events of a run, each valid."""
    found = [json.loads(each) for each in events(run)]
    for event in found:
        check(event)
    return found


def check(event: Any) -> None:
    """Refuses an event that is not valid, and a facet that its own schema refuses, or that names another schema."""
    EVENT.validate(event)
    for holder in (event["run"], event["job"], *event["inputs"], *event["outputs"]):
        for key, facet in holder.get("facets", {}).items():
            schema = BY_KEY[key]
            name = next(iter(schema["properties"][key].values())).rpartition("/")[2]
            assert facet["_schemaURL"] == f"{schema['$id']}#/$defs/{name}"
            Draft202012Validator(schema, registry=REGISTRY, format_checker=CHECKER).validate({key: facet})


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        ("run", "runId", "7"),
        ("event", "eventTime", "yesterday"),
        ("event", "eventType", "END"),
        ("event", "schemaURL", "no uri"),
        ("facet", "url", "git@git.test:a/b"),
        ("facet", "type", 7),
    ],
)
def test_an_event_that_is_not_valid_is_found(part: str, field: str, value: object) -> None:
    """The schemas and their formats are asked: one planted fault is refused."""
    event = trees(RUN)[0]
    holders = {"event": event, "run": event["run"], "facet": event["job"]["facets"]["sourceCodeLocation"]}
    holders[part][field] = value
    with pytest.raises(ValidationError):
        check(event)


@LAW
@given(RUNS)
def test_events_are_valid_and_say_what_happened(run: RunEvidence) -> None:
    """Each run and attempt that started has one start, and one end if it ended; the same input gives the same bytes."""
    found = trees(run)
    assert events(dataclasses.replace(run)) == events(run)
    summary = summarize(run)
    starts = [each for each in found if each["eventType"] == "START"]
    ends = [each for each in found if each["eventType"] != "START"]
    attempts = [(step.name, each) for step in summary.steps for each in step.attempts]
    assert len({each["run"]["runId"] for each in starts}) == len(starts) == 1 + len(attempts)
    assert len({each["run"]["runId"] for each in ends}) == len(ends)
    kinds = {"succeeded": "COMPLETE", "failed": "FAIL", "canceled": "ABORT"}
    expected = {
        run_id(attempt_name(run.project_id, run.run.run_id, step, each.attempt)): kinds[each.state]
        for step, each in attempts
        if each.state in kinds
    }
    if summary.state.final:
        expected[run_id(run.name)] = kinds[summary.state]
    assert {each["run"]["runId"]: each["eventType"] for each in ends} == expected
    assert all(("errorMessage" in each["run"]["facets"]) == (each["eventType"] == "FAIL") for each in found)


def test_the_fixed_run_is_told_in_order() -> None:
    """Run, steps in plan order with the retry, run again; times as the runtime claimed them."""
    told = [(each["job"]["name"], each["eventType"], each["eventTime"][17:19]) for each in trees(RUN)]
    assert told == [
        ("train", "START", "00"),
        ("train.split", "START", "01"),
        ("train.split", "COMPLETE", "02"),
        ("train.fit", "START", "03"),
        ("train.fit", "FAIL", "04"),
        ("train.fit", "START", "09"),
        ("train.fit", "COMPLETE", "10"),
        ("train.judge", "START", "11"),
        ("train.judge", "COMPLETE", "12"),
        ("train", "COMPLETE", "12"),
    ]


def test_attempts_have_the_run_as_parent_and_say_what_they_read_and_wrote() -> None:
    """Datasets with version and columns, artifacts by their lineage nodes, and why an attempt failed."""
    found = trees(RUN)
    whole, failed = found[0], found[4]
    assert failed["run"]["facets"]["parent"]["run"]["runId"] == whole["run"]["runId"] == run_id(RUN.name)
    assert failed["run"]["facets"]["parent"]["job"] == {"namespace": ORIGIN, "name": "train"}
    assert failed["run"]["facets"]["errorMessage"]["message"] == 'node "a"\nwas lost'
    assert [each["name"] for each in failed["inputs"]] == [f"projects/cells/artifacts/{digest_of('train')}"]
    assert [each["name"] for each in failed["outputs"]] == [f"projects/cells/artifacts/{digest_of('half a model')}"]
    (data,) = whole["inputs"]
    assert data["name"] == "projects/cells/datasets/measurements"
    assert data["facets"]["version"]["datasetVersion"] == RUN.versions[0].content_digest
    assert [each["name"] for each in data["facets"]["schema"]["fields"]] == ["id", "größe"]
    digests = {f"projects/cells/artifacts/{each.digest}" for each in summarize(RUN).outputs}
    assert {each["name"] for each in found[-1]["outputs"]} == digests
    assert {each["namespace"] for event in found for each in (event["job"], *event["inputs"])} == {ORIGIN}


def test_a_run_that_failed_says_why() -> None:
    """What the last attempt of each failed step said, by step."""
    assert RUN.plan is not None
    once = dataclasses.replace(
        RUN.plan, steps=tuple(dataclasses.replace(each, max_attempts=1) for each in RUN.plan.steps)
    )
    until = tuple(event for event in RUN.events if event.sequence <= 5)  # with the first failure
    run = dataclasses.replace(RUN, plan=once, events=until, artifacts=())
    assert summarize(run).state is RunState.FAILED
    end = trees(run)[-1]
    assert (end["job"]["name"], end["eventType"]) == ("train", "FAIL")
    assert end["run"]["facets"]["errorMessage"]["message"] == 'fit: node "a"\nwas lost'


def test_ids_are_those_of_the_standard() -> None:
    """Python's own uuid5 gives the same."""
    assert uuid.uuid5(uuid.NAMESPACE_URL, "urn:animus:openlineage").bytes == NAMESPACE
    for name in ("", RUN.name, "grüße"):
        assert run_id(name) == str(uuid.uuid5(uuid.UUID(bytes=NAMESPACE), name))


@pytest.mark.parametrize(
    ("repository", "is_uri"),
    [
        ("https://git.test/a/b.git", True),
        ("ssh://git@git.test:22/a%20b?x=1#y", True),
        ("file:///srv/git/a", True),
        ("git@git.test:team/repo.git", False),
        ("git.test/team/repo", False),
        ("https://git.test/a%2", False),
        ("https://git.test/a[b]", False),
        ("https://git.test:port/a", False),
        ('https://git.test/"a"', False),
        ("1https://git.test/a", False),
        ("localhost:team/repo", False),
    ],
)
def test_the_place_of_the_code_is_told_where_it_is_a_uri(repository: str, is_uri: bool) -> None:
    """The facet has the commit; for what is no URI it is left out."""
    spec = dataclasses.replace(RUN.spec, commit=Commit(repository, "c" * 40))
    facets = trees(dataclasses.replace(RUN, spec=spec))[1]["job"]["facets"]
    assert ("sourceCodeLocation" in facets) == is_uri
    if is_uri:
        assert facets["sourceCodeLocation"]["version"] == "c" * 40


@given(st.from_regex(URI, fullmatch=True))
def test_what_we_take_for_a_uri_is_one(text: str) -> None:
    """By another implementation of RFC 3986."""
    assert validate_rfc3986(text)
