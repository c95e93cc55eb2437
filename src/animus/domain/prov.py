"""Lineage as W3C PROV-JSON (https://www.w3.org/submissions/prov-json/): that of a run, or any part of the graph.

The names of nodes have the prefix `node`, and what we say of them has `animus`. In a local name each byte other than
`A-Za-z0-9_./@-` is percent-encoded, so that decoding it gives the lineage node.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

import orjson

from animus.domain.evidence import RunEvidence, by_digest, state_of
from animus.domain.lineage import (
    LineageDirection,
    LineageEdge,
    LineageNodeKind,
    LineageRelation,
    edges_of_evaluation,
    node_kind,
)
from animus.domain.names import (
    artifact_name,
    attempt_name,
    commit_name,
    dataset_version_name,
    environment_lock_name,
    percent_encoded,
    pipeline_spec_name,
    quality_evaluation_name,
    quality_rule_name,
)
from animus.domain.state import Attempt, DerivedState

VOCABULARY = "urn:animus:prov:"
NODES = "urn:animus:instance:"  # and the instance's name, and a slash
ESCAPED = re.compile(r"[^A-Za-z0-9_./@-]")

# For each relation, what PROV-JSON calls it, its subject and its object.
RELATIONS = {
    LineageRelation.USED: ("used", "prov:activity", "prov:entity"),
    LineageRelation.WAS_GENERATED_BY: ("wasGeneratedBy", "prov:entity", "prov:activity"),
    LineageRelation.WAS_STARTED_BY: ("wasStartedBy", "prov:activity", "prov:starter"),
    LineageRelation.WAS_INFORMED_BY: ("wasInformedBy", "prov:informed", "prov:informant"),
    LineageRelation.WAS_DERIVED_FROM: ("wasDerivedFrom", "prov:generatedEntity", "prov:usedEntity"),
}

ROLES = {
    "prov:activity": "activity",
    "prov:starter": "activity",
    "prov:informed": "activity",
    "prov:informant": "activity",
    "prov:entity": "entity",
    "prov:generatedEntity": "entity",
    "prov:usedEntity": "entity",
}

# What happened; all other nodes are things.
ACTIVITIES = {
    LineageNodeKind.RUN: "Run",
    LineageNodeKind.STEP_ATTEMPT: "Attempt",
    LineageNodeKind.QUALITY_EVALUATION: "QualityEvaluation",
    LineageNodeKind.EXTERNAL_RUN: "ExternalRun",
}
ENTITIES = {
    LineageNodeKind.ARTIFACT: "Artifact",
    LineageNodeKind.DATASET_VERSION: "DatasetVersion",
    LineageNodeKind.PIPELINE_SPEC: "PipelineSpec",
    LineageNodeKind.ENVIRONMENT_LOCK: "EnvironmentLock",
    LineageNodeKind.COMMIT: "Commit",
    LineageNodeKind.QUALITY_RULE: "QualityRule",
    LineageNodeKind.EXTERNAL_DATASET: "ExternalDataset",
}

Tree = dict[str, object]


@dataclass(frozen=True, slots=True)
class Subgraph:
    """A part of the lineage graph, and what was asked for it. All edges and joins are between its nodes."""

    instance_name: str
    nodes: tuple[str, ...]
    edges: tuple[LineageEdge, ...]
    joins: tuple[tuple[str, str], ...]  # a dataset version and the artifact of the same content
    starts: tuple[str, ...]
    direction: LineageDirection
    as_of_time: str  # empty for none
    as_of_index: int | None
    truncated: bool


def subgraph(part: Subgraph) -> bytes:
    """The document of a part: sorted compact JSON and a line feed. Each node has its kind as type.

    A join is an alternateOf, which says that two things are the same in some aspect, and of neither that it was first.
    """
    tree: dict[str, Tree] = {
        "prefix": _prefixes(part.instance_name),
        "activity": {},
        "entity": {
            "animus:subgraph": {
                "prov:type": _kind("Subgraph"),
                "animus:direction": part.direction.value,
                "animus:start": [{"$": qualified(name), "type": "xsd:QName"} for name in part.starts],
                "animus:truncated": part.truncated,
                **({"animus:asOfTime": part.as_of_time} if part.as_of_time else {}),
                **({} if part.as_of_index is None else {"animus:asOfIndex": part.as_of_index}),
            }
        },
    }
    for name in part.nodes:
        kind = node_kind(name)
        if kind in ACTIVITIES:
            tree["activity"][qualified(name)] = {"prov:type": _kind(ACTIVITIES[kind])}
        else:
            tree["entity"][qualified(name)] = {"prov:type": _kind(ENTITIES[kind])} if kind else {}
    _relate(tree, part.edges)
    for number, (version, artifact) in enumerate(part.joins, 1):
        ends: Tree = {"prov:alternate1": qualified(version), "prov:alternate2": qualified(artifact)}
        tree.setdefault("alternateOf", {})[f"_:alternateOf{number}"] = ends
    return orjson.dumps(tree, option=orjson.OPT_SORT_KEYS) + b"\n"


def document(run: RunEvidence) -> bytes:
    """The document: sorted compact JSON and a line feed. It has a record for each edge, and for each end of one.

    To the edges of the run it adds what the evaluations used that its gates looked at.
    """
    tree: dict[str, Tree] = {
        "prefix": _prefixes(run.instance_name),
        "activity": _activities(run),
        "entity": _entities(run),
    }
    _relate(tree, (*run.edges, *_edges_of_evaluations(run)))
    return orjson.dumps(tree, option=orjson.OPT_SORT_KEYS) + b"\n"


def _prefixes(instance_name: str) -> Tree:
    return {"animus": VOCABULARY, "node": f"{NODES}{instance_name}/"}


def _relate(tree: dict[str, Tree], edges: Iterable[LineageEdge]) -> None:
    """Adds a record for each edge, and for each end of one that has none."""
    for number, edge in enumerate(edges, 1):
        relation, subject, object_ = RELATIONS[edge.relation]
        ends: Tree = {subject: qualified(edge.subject), object_: qualified(edge.object)}
        tree.setdefault(relation, {})[f"_:{relation}{number}"] = ends
        for role, name in ends.items():
            tree[ROLES[role]].setdefault(str(name), {})


def qualified(node: str) -> str:
    """The qualified name of a lineage node."""
    return "node:" + percent_encoded(node, ESCAPED)


def _activities(run: RunEvidence) -> Tree:
    state = state_of(run)
    attempts = [each for numbers in state.attempts.values() for each in numbers.values()]
    found: Tree = {qualified(run.name): _of_run(run, state, attempts)}
    for attempt in attempts:
        name = attempt_name(run.project_id, run.run.run_id, attempt.step, attempt.attempt)
        found[qualified(name)] = {
            "prov:type": _kind("Attempt"),
            "animus:state": attempt.state.value,
            **({"prov:startTime": attempt.start_time} if attempt.start_time else {}),
            **({"prov:endTime": attempt.end_time} if attempt.end_time else {}),
        }
    for digest, evaluation in by_digest(run.evaluations).items():
        found[qualified(quality_evaluation_name(run.project_id, digest))] = {
            "prov:type": _kind("QualityEvaluation"),
            "prov:startTime": evaluation.evaluate_time,
            "prov:endTime": evaluation.evaluate_time,
            "animus:evaluator": evaluation.evaluator,
            "animus:rule": evaluation.rule_digest,
            "animus:verdict": evaluation.verdict.value,
        }
    return found


def _edges_of_evaluations(run: RunEvidence) -> Iterable[LineageEdge]:
    for digest, evaluation in by_digest(run.evaluations).items():
        yield from edges_of_evaluation(run.project_id, digest, evaluation)


def _of_run(run: RunEvidence, state: DerivedState, attempts: Iterable[Attempt]) -> Tree:
    end = max([run.run.create_time, *(attempt.end_time for attempt in attempts)])
    return {
        "prov:type": _kind("Run"),
        "prov:startTime": run.run.create_time,
        "animus:runSpec": run.run.run_spec_digest,
        "animus:state": state.run.value,
        **({"animus:executionPlan": run.plan_digest} if run.plan_digest else {}),
        **({"prov:endTime": end} if state.run.final else {}),
    }


def _entities(run: RunEvidence) -> Tree:
    project, spec = run.project_id, run.spec
    commit = spec.commit
    found: Tree = {
        qualified(pipeline_spec_name(project, spec.pipeline_spec_digest)): {
            "prov:type": _kind("PipelineSpec"),
            "animus:digest": spec.pipeline_spec_digest,
            "animus:name": run.pipeline.metadata.name,
        },
        qualified(environment_lock_name(project, spec.environment_lock_digest)): {
            "prov:type": _kind("EnvironmentLock"),
            "animus:digest": spec.environment_lock_digest,
        },
        qualified(commit_name(project, commit.repository, commit.sha)): {
            "prov:type": _kind("Commit"),
            "animus:repository": commit.repository,
            "animus:sha": commit.sha,
        },
    }
    for version in run.versions:
        name = dataset_version_name(project, version.dataset_id, version.content_digest)
        found[qualified(name)] = {
            "prov:type": _kind("DatasetVersion"),
            "animus:dataset": version.dataset_id,
            "animus:digest": version.content_digest,
            "animus:mediaType": version.media_type,
        }
    for digest, rule in by_digest(run.rules).items():
        found[qualified(quality_rule_name(project, digest))] = {
            "prov:type": _kind("QualityRule"),
            "animus:digest": digest,
            "animus:name": rule.rule_id,
        }
    outputs: dict[str, set[str]] = {}  # one content may be several outputs
    for artifact in run.artifacts:
        outputs.setdefault(artifact.digest, set()).add(f"{artifact.step}/{artifact.name}")
    for digest, names in outputs.items():
        found[qualified(artifact_name(project, digest))] = {
            "prov:type": _kind("Artifact"),
            "animus:digest": digest,
            "animus:output": sorted(names) if len(names) > 1 else min(names),
        }
    return found


def _kind(name: str) -> Tree:
    return {"$": f"animus:{name}", "type": "xsd:QName"}
