"""A run as it is now, for renderings. A bundle of evidence reads the same from the log (`evidence_files.py`)."""

from animus.domain.dataset import DatasetVersion
from animus.domain.environment import EnvironmentLock
from animus.domain.evidence import RunEvidence
from animus.domain.lineage import LineageDirection, LineageEdge, LineageRelation
from animus.domain.names import (
    attempt_name,
    dataset_version_name,
    distinct,
    environment_lock_name,
    pipeline_spec_name,
    plan_name,
    quality_evaluation_name,
    quality_rule_name,
    run_name,
)
from animus.domain.pipeline import PipelineSpec
from animus.domain.plan import ExecutionPlan
from animus.domain.quality import EVALUATOR, QualityEvaluation, QualityRule
from animus.domain.state import RunEventType
from animus.store.records import NOW, SAME_CONTENT
from animus.store.unit_of_work import View

MAX_EDGES = 1_000_000  # of one run; 10,000 steps read less


async def run_evidence(view: View, run_id: str, origin: str) -> RunEvidence:
    """The records of a run; its edges are those that leave it and its attempts. Raises NotFound."""
    project_id = view.project_id
    name = run_name(project_id, run_id)
    facts = await view.run_facts(run_id, name)
    spec, events = facts.spec, facts.events
    lock_name = environment_lock_name(project_id, spec.environment_lock_digest)
    spec_name = pipeline_spec_name(project_id, spec.pipeline_spec_digest)
    environment = await view.need(EnvironmentLock, lock_name, digest=spec.environment_lock_digest)
    pipeline = await view.need(PipelineSpec, spec_name, digest=spec.pipeline_spec_digest)
    versions = [
        await view.need(
            DatasetVersion,
            dataset_version_name(project_id, dataset, content),
            dataset_id=dataset,
            content_digest=content,
        )
        for dataset, content in distinct((each.dataset_id, each.content_digest) for each in spec.datasets)
    ]
    plan_digest = next((event.plan_digest for event in events if event.type is RunEventType.PLANNED), "")
    plan = await view.need(ExecutionPlan, plan_name(project_id, run_id), digest=plan_digest) if plan_digest else None
    steps = distinct((each.step, each.attempt) for event in events for each in event.step_event)
    nodes = [name, *(attempt_name(project_id, run_id, step, attempt) for step, attempt in steps)]
    links = await view.links(nodes, LineageDirection.UPSTREAM, NOW, MAX_EDGES)
    evaluations = [
        (await view.need(QualityEvaluation, quality_evaluation_name(project_id, digest), digest=digest)).value
        for digest in facts.run.value.admission.evaluations()
    ]
    rules = [
        (await view.need(QualityRule, quality_rule_name(project_id, digest), digest=digest)).value
        for digest in distinct(each.rule_digest for each in evaluations if each.evaluator == EVALUATOR)
    ]
    return RunEvidence(
        project_id=project_id,
        origin=origin,
        run=facts.run.value,
        run_digest=facts.run.digest,
        spec=spec,
        pipeline=pipeline.value,
        environment=environment.value,
        versions=tuple(version.value for version in versions),
        plan=plan.value if plan else None,
        plan_digest=plan_digest,
        events=events,
        artifacts=facts.artifacts,
        evaluations=tuple(evaluations),
        rules=tuple(rules),
        edges=tuple(LineageEdge(s, LineageRelation(r), o) for s, r, o in links if r != SAME_CONTENT),
    )
