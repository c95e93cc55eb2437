"""What other systems tell of lineage in OpenLineage run events (schema 2-0-2), read strictly.

- An event is kept as the text that was sent; everything else here is a pure function of that text. So all its facets
  are there, whether this module knows them or not.
- What the schema requires is required: its fields with their types, and of each facet `_producer` and `_schemaURL`. Of
  its formats the time and the UUID are checked. JSON that readers differ on is refused: duplicate keys, NaN, text that
  is not UTF-8.
- Only run events are taken: one of a dataset or of a job alone says of no run what it did.
- The graph is the union of what the events say. Neither their order nor their repetition matters.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import ClassVar, cast

from animus.domain.document import check_text, join, type_name
from animus.domain.errors import Invalid, invalid
from animus.domain.lineage import LineageEdge, LineageRelation
from animus.domain.names import (
    DIGEST,
    RESOURCE_ID,
    artifact_name,
    check_count,
    check_length,
    check_pattern,
    check_time,
    dataset_version_name,
    distinct,
    external_dataset_name,
    external_run_name,
    format_time,
    project_name,
)

MAX_EVENT_BYTES = 1 << 20
MAX_EVENT_DEPTH = 64
MAX_DATASETS = 10_000  # inputs and outputs of one event
MAX_JOB_NAME = 2_000
MAX_DATASET_NAME = 1_900  # namespace, name and version as they are in a lineage node: it has at most 2,000 characters

RUN_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_TIME = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})[Tt]([0-9]{2}:[0-9]{2}:[0-9]{2})(?:\.([0-9]+))?([Zz]|[+-][0-9]{2}:[0-9]{2})"
)

Tree = Mapping[str, object]


class ExternalEventType(StrEnum):
    """What an event says of its run, in the order in which it counts where times are the same."""

    NONE = ""
    START = "START"
    RUNNING = "RUNNING"
    OTHER = "OTHER"
    COMPLETE = "COMPLETE"
    ABORT = "ABORT"
    FAIL = "FAIL"


_ORDER = {kind: place for place, kind in enumerate(ExternalEventType)}
_ENDS = {ExternalEventType.COMPLETE, ExternalEventType.ABORT, ExternalEventType.FAIL}


@dataclass(frozen=True, slots=True)
class ExternalDataset:
    """A dataset as another system calls it."""

    namespace: str
    name: str
    version: str  # empty where none was told

    def __post_init__(self) -> None:
        check_length(self.namespace, 1, MAX_DATASET_NAME, "namespace")
        check_length(self.name, 1, MAX_DATASET_NAME, "name")
        check_length(self.version, 0, MAX_DATASET_NAME, "version")
        size = len(external_dataset_name("", self.namespace, self.name, self.version))
        size -= len(external_dataset_name("", "", "", ""))
        if size > MAX_DATASET_NAME:
            raise invalid(
                "name",
                f"is with namespace and version {size} characters long, percent-encoded;"
                f" {MAX_DATASET_NAME} are allowed",
            )


@dataclass(frozen=True, slots=True)
class ExternalEvent:
    """A run event. Inputs and outputs are sets."""

    SCHEMA: ClassVar[str] = "animus.external_event/v1"

    event_time: str
    event_type: ExternalEventType
    run_id: str  # a UUID in lower case, as parent_run_id is
    job_namespace: str
    job_name: str
    parent_run_id: str  # empty where none was told
    inputs: tuple[ExternalDataset, ...]
    outputs: tuple[ExternalDataset, ...]
    event: str  # the text that was sent

    def __post_init__(self) -> None:
        check_time(self.event_time, "eventTime")
        check_run_id(self.run_id, "runId")
        check_length(self.job_namespace, 1, MAX_JOB_NAME, "jobNamespace")
        check_length(self.job_name, 1, MAX_JOB_NAME, "jobName")
        if self.parent_run_id:
            check_run_id(self.parent_run_id, "parentRunId")
        check_count((*self.inputs, *self.outputs), 0, MAX_DATASETS, "inputs")
        check_text(self.event, "event")
        object.__setattr__(self, "inputs", _as_set(self.inputs))
        object.__setattr__(self, "outputs", _as_set(self.outputs))


@dataclass(frozen=True, slots=True)
class ExternalRun:
    """A run of another system, as its events tell it."""

    run_id: str
    state: ExternalEventType
    job_namespace: str
    job_name: str
    first_event_time: str
    last_event_time: str
    event_count: int
    input_count: int
    output_count: int


def check_run_id(value: str, field: str) -> None:
    """A UUID in lower case, as RFC 9562 §4 writes it."""
    check_pattern(RUN_ID, value, field, "is no UUID in lower case")


def state_of_run(last_times: Mapping[ExternalEventType, str]) -> ExternalEventType:
    """The type of the event that decides, by the time of the last event of each type.

    An end counts before all else, since what is told after it is told late, and an event without a type after all else.
    Otherwise the later wins, and of two at the same time the higher.
    """
    return max(last_times, key=lambda kind: (kind in _ENDS, bool(kind), last_times[kind], _ORDER[kind]))


def edges_of_event(project_id: str, event: ExternalEvent) -> tuple[LineageEdge, ...]:
    """What an event says of lineage, each edge once."""
    run = external_run_name(project_id, event.run_id)
    edges = [LineageEdge(run, LineageRelation.USED, dataset_node(project_id, each)) for each in event.inputs]
    edges += [
        LineageEdge(dataset_node(project_id, each), LineageRelation.WAS_GENERATED_BY, run) for each in event.outputs
    ]
    if event.parent_run_id and event.parent_run_id != event.run_id:
        parent = external_run_name(project_id, event.parent_run_id)
        edges.append(LineageEdge(run, LineageRelation.WAS_STARTED_BY, parent))
    return distinct(edges)


def dataset_node(project_id: str, dataset: ExternalDataset) -> str:
    """The lineage node of a dataset: our own where it is named as one, whether or not that is registered yet.

    A dataset version has its content digest as version, and the dataset's id or full name as name; an artifact has the
    full name of its node.
    """
    ours = project_name(project_id)
    dataset_id = dataset.name.removeprefix(f"{ours}/datasets/")
    if DIGEST.fullmatch(dataset.version) and RESOURCE_ID.fullmatch(dataset_id):
        return dataset_version_name(project_id, dataset_id, dataset.version)
    digest = dataset.name.rpartition("/")[2]
    if DIGEST.fullmatch(digest) and dataset.name == artifact_name(project_id, digest):
        return dataset.name
    return external_dataset_name(project_id, dataset.namespace, dataset.name, dataset.version)


def parse_event(data: bytes) -> ExternalEvent:
    """The event of the bytes that were sent. Raises Invalid with the path of the first thing that is wrong."""
    if len(data) > MAX_EVENT_BYTES:
        raise invalid("", f"is {len(data)} bytes long; {MAX_EVENT_BYTES} are allowed")
    text, tree = _parse(data)
    if "run" not in tree and ("dataset" in tree or "job" in tree):
        kind = "dataset" if "dataset" in tree else "job"
        raise invalid("", f"is a {kind} event of OpenLineage: only run events are taken, which have a run")
    for key in ("producer", "schemaURL"):
        _field(tree, "", key, str)
    run, job = (cast(Tree, _field(tree, "", key, dict)) for key in ("run", "job"))
    run_facets = _facets(run, "run", "facets")
    _facets(job, "job", "facets")
    lists = {key: cast(list[object], _field(tree, "", key, list)) if key in tree else [] for key in _DATASETS}
    check_count((*lists["inputs"], *lists["outputs"]), 0, MAX_DATASETS, "inputs")
    datasets = {key: tuple(_dataset(item, f"{key}[{i}]", key) for i, item in enumerate(lists[key])) for key in lists}
    return ExternalEvent(
        event_time=_time(_text(tree, "", "eventTime")),
        event_type=_type(tree),
        run_id=_uuid(run, "run"),
        job_namespace=_name(job, "job", "namespace"),
        job_name=_name(job, "job", "name"),
        parent_run_id=_parent(run_facets),
        inputs=datasets["inputs"],
        outputs=datasets["outputs"],
        event=text,
    )


_DATASETS = {"inputs": "inputFacets", "outputs": "outputFacets"}


def _parse(data: bytes) -> tuple[str, Tree]:
    """The text and its tree, with 0 for each number: none is looked at, and some are slow to read."""

    def refuse_constant(name: str) -> object:
        raise invalid("", f"holds {name}, which is no JSON number")

    def distinct_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
        tree = dict(pairs)
        if len(tree) < len(pairs):
            seen: set[str] = set()
            for key, _ in pairs:
                if key in seen:
                    raise invalid("", f"has the key {_shown(key)} twice in one object")
                seen.add(key)
        return tree

    deep = invalid("", f"nests deeper than {MAX_EVENT_DEPTH} levels")
    try:
        text = data.decode()
        tree = json.loads(
            text,
            object_pairs_hook=distinct_keys,
            parse_constant=refuse_constant,
            parse_float=lambda _: 0,
            parse_int=lambda _: 0,
        )
    except UnicodeDecodeError:
        raise invalid("", "is not UTF-8") from None
    except RecursionError:
        raise deep from None
    except ValueError as error:
        raise invalid("", f"is no JSON: {error}") from None
    if not isinstance(tree, dict):
        raise invalid("", "is no object")
    level: list[object] = [tree]
    for _ in range(MAX_EVENT_DEPTH):
        level = [inner for node in level for inner in _inside(node)]
    if level:
        raise deep
    return text, tree


def _inside(node: object) -> Iterator[object]:
    """The objects and lists right inside a node."""
    inner: Iterable[object] = node.values() if isinstance(node, dict) else cast(list[object], node)
    return (each for each in inner if isinstance(each, dict | list))


def _field(tree: Tree, path: str, key: str, kind: type) -> object:
    """A member of an object, of a type."""
    if key not in tree:
        raise invalid(join(path, key), "is missing")
    if not isinstance(tree[key], kind):
        raise invalid(join(path, key), f"must be {type_name[kind]}")
    return tree[key]


def _text(tree: Tree, path: str, key: str) -> str:
    return cast(str, _field(tree, path, key, str))


def _name(tree: Tree, path: str, key: str) -> str:
    text = _text(tree, path, key)
    check_length(text, 1, MAX_JOB_NAME, join(path, key))
    return text


def _type(tree: Tree) -> ExternalEventType:
    if "eventType" not in tree:
        return ExternalEventType.NONE
    kinds = [kind.value for kind in ExternalEventType if kind]
    text = _text(tree, "", "eventType")
    if text not in kinds:
        raise invalid("eventType", f"is none of {', '.join(kinds)}")
    return ExternalEventType(text)


def _time(text: str) -> str:
    """The time as ours are written; what is finer than a microsecond is cut off."""
    found = _TIME.fullmatch(text)
    if not found:
        raise invalid("eventTime", "is no RFC 3339 time with a time zone, such as 2026-01-31T12:00:00.000Z")
    date, time, fraction, zone = found.groups()
    try:
        return format_time(datetime.fromisoformat(f"{date}T{time}.{(fraction or '')[:6]:0<6}{zone.upper()}"))
    except (ValueError, OverflowError):
        raise invalid("eventTime", "is no time that exists") from None


def _uuid(run: Tree, path: str) -> str:
    run_id = _text(run, path, "runId").lower()
    check_pattern(RUN_ID, run_id, join(path, "runId"), "is no UUID")
    return run_id


def _facets(owner: Tree, path: str, key: str) -> dict[str, Tree]:
    """The facets of a thing by name; what every facet has is checked."""
    if key not in owner:
        return {}
    facets = cast(dict[str, object], _field(owner, path, key, dict))
    for name, facet in facets.items():
        at = f"{join(path, key)}.{_shown(name)}"
        if not isinstance(facet, dict):
            raise invalid(at, "must be an object")
        _text(facet, at, "_producer")
        _text(facet, at, "_schemaURL")
    return cast(dict[str, Tree], facets)


def _parent(facets: Mapping[str, Tree]) -> str:
    if "parent" not in facets:
        return ""
    path = "run.facets.parent"
    run = cast(Tree, _field(facets["parent"], path, "run", dict))
    return _uuid(run, f"{path}.run")


def _dataset(tree: object, path: str, key: str) -> ExternalDataset:
    if not isinstance(tree, dict):
        raise invalid(path, "must be an object")
    namespace, name = _text(tree, path, "namespace"), _text(tree, path, "name")
    facet = _facets(tree, path, "facets").get("version", {})
    _facets(tree, path, _DATASETS[key])
    told = bool(facet) and facet.get("_deleted") is not True
    version = _text(facet, f"{path}.facets.version", "datasetVersion") if told else ""
    try:
        return ExternalDataset(namespace, name, version)
    except Invalid as error:
        first = error.violations[0]
        field = "facets.version.datasetVersion" if first.field == "version" else first.field
        raise invalid(join(path, field), first.description) from None


def _as_set(datasets: Iterable[ExternalDataset]) -> tuple[ExternalDataset, ...]:
    return tuple(sorted(set(datasets), key=lambda each: (each.namespace, each.name, each.version)))


def _shown(name: str) -> str:
    """A name that the sender chose, fit to be shown: short, and text that UTF-8 can carry."""
    return name[:100].encode("utf-8", "backslashreplace").decode()
