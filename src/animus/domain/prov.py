"""The lineage of a run as W3C PROV-JSON (https://www.w3.org/submissions/prov-json/).

The names of nodes have the prefix `node`, and what we say of them has `animus`. In a local name each byte other than
`A-Za-z0-9_./@-` is percent-encoded, so that decoding it gives the lineage node.
"""

import re
from collections.abc import Iterable

import orjson

from animus.domain.evidence import RunEvidence, by_digest, state_of
from animus.domain.lineage import LineageEdge, LineageRelation, edges_of_evaluation
from animus.domain.names import (
    artifact_name,
    attempt_name,
    commit_name,
    dataset_version_name,
    environment_lock_name,
    pipeline_spec_name,
    quality_evaluation_name,
    quality_rule_name,
)
from animus.domain.state import Attempt, DerivedState

VOCABULARY = "urn:animus:prov:"
NODES = "urn:animus:instance:"  # and the instance's name, and a slash
ESCAPED = re.compile(rb"[^A-Za-z0-9_./@-]")

# For each relation, what PROV-JSON calls it, its subject and its object.
RELATIONS = {
    LineageRelation.USED: ("used", "prov:activity", "prov:entity"),
    LineageRelation.WAS_GENERATED_BY: ("wasGeneratedBy", "prov:entity", "prov:activity"),
    LineageRelation.WAS_STARTED_BY: ("wasStartedBy", "prov:activity", "prov:starter"),
    LineageRelation.WAS_INFORMED_BY: ("wasInformedBy", "prov:informed", "prov:informant"),
    LineageRelation.WAS_DERIVED_FROM: ("wasDerivedFrom", "prov:generatedEntity", "prov:usedEntity"),
}

Tree = dict[str, object]


def document(run: RunEvidence) -> bytes:
    """The document: sorted compact JSON and a line feed. It has a record for each edge, and for each end of one.

    To the edges of the run it adds what the evaluations used that its gates looked at.
    """
    tree: dict[str, Tree] = {
        "prefix": {"animus": VOCABULARY, "node": f"{NODES}{run.instance_name}/"},
        "activity": _activities(run),
        "entity": _entities(run),
    }
    known = {
        "prov:activity": "activity",
        "prov:starter": "activity",
        "prov:informed": "activity",
        "prov:informant": "activity",
        "prov:entity": "entity",
        "prov:generatedEntity": "entity",
        "prov:usedEntity": "entity",
    }
    for number, edge in enumerate((*run.edges, *_edges_of_evaluations(run)), 1):
        relation, subject, object_ = RELATIONS[edge.relation]
        ends: Tree = {subject: qualified(edge.subject), object_: qualified(edge.object)}
        tree.setdefault(relation, {})[f"_:{relation}{number}"] = ends
        for role, name in ends.items():
            tree[known[role]].setdefault(str(name), {})
    return orjson.dumps(tree, option=orjson.OPT_SORT_KEYS) + b"\n"


def qualified(node: str) -> str:
    """The qualified name of a lineage node."""
    return "node:" + ESCAPED.sub(lambda found: b"%%%02X" % found[0][0], node.encode()).decode()


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
