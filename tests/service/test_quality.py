"""Rules, profiles and evaluations through the real server."""

from animus.v1 import audit_pb2, lineage_pb2, quality_pb2
from service.conftest import Server
from service.requests import ONE, evaluate, profile, registered_version, rule, same

VERSION = f"projects/p/datasets/data/versions/{ONE}"


async def test_a_rule_is_evaluated_on_a_profile(server: Server) -> None:
    """The verdict, its record, its entry and its lineage; the documents as they are read again."""
    await registered_version(server.admin)
    runtime = await server.caller("p", "runtime")
    made_rule = await server.admin("RegisterQualityRule", rule())
    made_profile = await runtime("RegisterQualityProfile", profile())
    evaluation = await runtime("EvaluateQuality", evaluate(made_rule.record.digest, made_profile.record.digest))
    assert evaluation.verdict == quality_pb2.QUALITY_VERDICT_PASS
    assert [(each.check, each.outcome, each.observed) for each in evaluation.results] == [("rows", 1, "3")]
    assert (evaluation.evaluator, evaluation.evaluator_version, evaluation.rule_name) == ("animus", "1", "fit")
    assert evaluation.evaluate_time == evaluation.record.create_time
    assert evaluation.record.name == f"projects/p/qualityEvaluations/{evaluation.record.digest}"
    entry = await server.admin(
        "GetAuditEntry", audit_pb2.GetAuditEntryRequest(project_id="p", entry_id=evaluation.record.audit_entry_id)
    )
    assert (entry.action, entry.resource) == ("quality_evaluation.evaluate", evaluation.record.name)
    assert [each.kind for each in entry.records] == ["quality_evaluation", "lineage_edge", "lineage_edge"]
    for method, kind, made in (
        ("GetQualityRule", quality_pb2.GetQualityRuleRequest, made_rule),
        ("GetQualityProfile", quality_pb2.GetQualityProfileRequest, made_profile),
        ("GetQualityEvaluation", quality_pb2.GetQualityEvaluationRequest, evaluation),
    ):
        assert same(await server.admin(method, kind(project_id="p", digest=made.record.digest)), made)
    walked = await server.admin(
        "GetLineage",
        lineage_pb2.GetLineageRequest(
            project_id="p", node=evaluation.record.name, direction=lineage_pb2.LINEAGE_DIRECTION_UPSTREAM
        ),
    )
    assert {(edge.relation, edge.object) for edge in walked.edges} == {
        (lineage_pb2.LINEAGE_RELATION_USED, VERSION),
        (lineage_pb2.LINEAGE_RELATION_USED, made_rule.record.name),
    }
