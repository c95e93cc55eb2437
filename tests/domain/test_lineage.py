"""Lineage: edges are written once each, between exact versions of one project, from the later to the earlier."""

import dataclasses
import random

from hypothesis import given
from hypothesis import strategies as st

from animus.domain.lineage import (
    LineageEdge,
    LineageNodeKind,
    LineageRelation,
    edge_of_artifact,
    edge_of_replay,
    edges_of_run,
    edges_of_start,
    node_kind,
    run_of_attempt,
)
from animus.domain.pipeline import PipelineSpec
from animus.domain.run import Artifact, DatasetBinding, RunSpec
from domain.values import LAW, ONE, RUN_ID, SAMPLES, TWO, generated, pipeline, run_spec, shuffled

SPEC: RunSpec = SAMPLES[RunSpec]
PIPELINE: PipelineSpec = SAMPLES[PipelineSpec]
RUN = f"projects/p/runs/{RUN_ID}"


def stands_alone(edges: tuple[LineageEdge, ...]) -> bool:
    """Whether no edge stands twice and each stays within the project."""
    return len(set(edges)) == len(edges) and all(
        each.subject.startswith("projects/p/") and each.object.startswith("projects/p/") for each in edges
    )


def test_a_run_used_what_its_spec_binds() -> None:
    """Pipeline spec, environment, commit and each dataset version, by exact name."""
    assert edges_of_run("p", RUN_ID, SPEC) == tuple(
        LineageEdge(RUN, LineageRelation.USED, f"projects/p/{used}")
        for used in (
            f"pipelineSpecs/{ONE}",
            f"environmentLocks/{TWO}",
            f"commits/https://git.test/demo@{'c' * 40}",
            f"datasets/cells/versions/{TWO}",  # bound as `base`
            f"datasets/cells/versions/{ONE}",  # bound as `data`
        )
    )


@LAW
@given(generated(run_spec), st.integers())
def test_edges_follow_from_the_spec_alone(spec: RunSpec, seed: int) -> None:
    """The order in which bindings were sent changes no edge, and none stands twice."""
    edges = edges_of_run("p", RUN_ID, spec)
    assert stands_alone(edges)
    assert edges_of_run("p", RUN_ID, shuffled(spec, random.Random(seed), {("RunSpec", "datasets")})) == edges


def test_a_version_bound_twice_is_used_once() -> None:
    """Two references to one version are one edge."""
    twice = dataclasses.replace(SPEC, datasets=(DatasetBinding("x", "d", ONE), DatasetBinding("y", "d", ONE)))
    assert len(edges_of_run("p", RUN_ID, twice)) == 4
    assert stands_alone(edges_of_run("p", RUN_ID, twice))
    edge = LineageEdge(RUN, LineageRelation.USED, "projects/p/x")
    assert not stands_alone((edge, edge))
    assert not stands_alone((LineageEdge(RUN, LineageRelation.USED, "projects/q/x"),))


def test_an_attempt_used_what_its_step_reads() -> None:
    """It was started by its run, and used the bound versions and the digests that earlier steps wrote."""
    fit, split = PIPELINE.spec.steps
    assert edges_of_start("p", RUN_ID, split, 2, SPEC, {}) == (
        LineageEdge(f"{RUN}/steps/split/attempts/2", LineageRelation.WAS_STARTED_BY, RUN),
        LineageEdge(f"{RUN}/steps/split/attempts/2", LineageRelation.USED, f"projects/p/datasets/cells/versions/{ONE}"),
    )
    produced = {("split", "all"): ONE, ("split", "test"): TWO, ("other", "all"): TWO}
    attempt = f"{RUN}/steps/fit/attempts/1"
    assert edges_of_start("p", RUN_ID, fit, 1, SPEC, produced) == (
        LineageEdge(attempt, LineageRelation.WAS_STARTED_BY, RUN),
        LineageEdge(attempt, LineageRelation.USED, f"projects/p/artifacts/{ONE}"),  # read as `x`
        LineageEdge(attempt, LineageRelation.USED, f"projects/p/artifacts/{TWO}"),
    )
    same = {("split", "all"): ONE, ("split", "test"): ONE}
    assert len(edges_of_start("p", RUN_ID, fit, 1, SPEC, same)) == 2


@LAW
@given(generated(pipeline), st.integers(1, 5))
def test_the_edges_of_a_start_stand_alone(spec: PipelineSpec, attempt: int) -> None:
    """For any pipeline with everything bound and produced, no edge of an attempt stands twice or leaves the project."""
    bound = dataclasses.replace(SPEC, datasets=tuple(DatasetBinding(ref, "d", ONE) for ref in spec.dataset_refs()))
    produced = {(step.name, output.name): TWO for step in spec.spec.steps for output in step.outputs.artifacts}
    for step in spec.spec.steps:
        edges = edges_of_start("p", RUN_ID, step, attempt, bound, produced)
        assert stands_alone(edges)
        assert {edge.subject for edge in edges} == {f"{RUN}/steps/{step.name}/attempts/{attempt}"}


def test_an_artifact_was_generated_by_its_attempt() -> None:
    """The node of an artifact is its content, whichever run wrote it."""
    artifact = Artifact(RUN_ID, "fit", 3, "model", ONE, 1, "")
    assert edge_of_artifact("p", artifact) == LineageEdge(
        f"projects/p/artifacts/{ONE}", LineageRelation.WAS_GENERATED_BY, f"{RUN}/steps/fit/attempts/3"
    )
    renamed = dataclasses.replace(artifact, name="other", uri="file:///x")
    assert edge_of_artifact("p", renamed) == edge_of_artifact("p", artifact)


def test_a_replay_was_informed_by_the_run_that_it_replays() -> None:
    """From the later run to the earlier."""
    assert edge_of_replay("p", RUN_ID, "f" * 32) == LineageEdge(
        RUN, LineageRelation.WAS_INFORMED_BY, f"projects/p/runs/{'f' * 32}"
    )


KIND_OF = {
    f"projects/p/runs/{RUN_ID}": LineageNodeKind.RUN,
    f"projects/p/runs/{RUN_ID}/steps/fit/attempts/3": LineageNodeKind.STEP_ATTEMPT,
    f"projects/p/artifacts/{ONE}": LineageNodeKind.ARTIFACT,
    f"projects/p/datasets/cells/versions/{ONE}": LineageNodeKind.DATASET_VERSION,
    f"projects/p/pipelineSpecs/{ONE}": LineageNodeKind.PIPELINE_SPEC,
    f"projects/p/environmentLocks/{ONE}": LineageNodeKind.ENVIRONMENT_LOCK,
    f"projects/p/commits/https://git.test/runs/demo@{'c' * 40}": LineageNodeKind.COMMIT,
    f"projects/p/qualityRules/{ONE}": LineageNodeKind.QUALITY_RULE,
    f"projects/p/qualityEvaluations/{ONE}": LineageNodeKind.QUALITY_EVALUATION,
    "projects/p/externalRuns/0176a8c2-fe01-7439-87e6-56a1a1b4029f": LineageNodeKind.EXTERNAL_RUN,
    "projects/p/externalDatasets/s3%3A%2F%2Flake/raw%2Fcells@7": LineageNodeKind.EXTERNAL_DATASET,
}


def test_a_name_says_what_a_node_is() -> None:
    """Each kind by the shape of its full name, and nothing by another; a run is named by its attempts."""
    assert {name: node_kind(name) for name in KIND_OF} == KIND_OF
    assert set(KIND_OF.values()) == set(LineageNodeKind)
    for name in ("", "runs/x", "projects/p", "projects/p/runs/", "projects/p/datasets/d", f"x/{next(iter(KIND_OF))}"):
        assert node_kind(name) is None
    assert run_of_attempt(f"{RUN}/steps/fit/attempts/3") == RUN


@LAW
@given(generated(run_spec))
def test_every_node_of_an_edge_has_a_kind(spec: RunSpec) -> None:
    """What a run used, whatever the repository of its commit is called."""
    kinds = [node_kind(edge.object) for edge in edges_of_run("p", RUN_ID, spec)]
    assert kinds[:3] == [
        LineageNodeKind.PIPELINE_SPEC,
        LineageNodeKind.ENVIRONMENT_LOCK,
        LineageNodeKind.COMMIT,
    ]
    assert set(kinds[3:]) <= {LineageNodeKind.DATASET_VERSION}
