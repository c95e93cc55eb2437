"""Rules, profiles and evaluations through the real server."""

import secrets
from collections.abc import AsyncIterator
from typing import Any

import pytest
from google.protobuf.message import Message
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from animus.domain import access
from animus.domain.document import digest, load
from animus.domain.quality import QualityEvaluation, QualityProfile, QualityRule
from animus.domain.quality_evaluation import evaluate as evaluated
from animus.store.embedded import EmbeddedPostgres
from animus.v1 import audit_pb2, lineage_pb2, quality_pb2
from service.conftest import Failure, Server, gathered
from service.requests import (
    ONE,
    TWO,
    evaluate,
    foreign,
    profile,
    registered_version,
    rule,
    same,
    version,
)
from service.shared import served

METRIC = {"name": "auc", "type": "METRIC", "metric": "auc", "minimum": "0.5"}
PSI = {"name": "drift", "type": "PSI", "column": "a", "maximum": "0.1"}
USED = lineage_pb2.LINEAGE_RELATION_USED


@pytest.fixture(scope="module")
async def server(
    postgres: EmbeddedPostgres, admin: AsyncEngine, template: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Server]:
    """One server for these tests, with a project `p` that nothing is in."""
    async with served(postgres, admin, template, tmp_path_factory.mktemp("data")) as found:
        await found.project("p")
        yield found


@pytest.fixture
async def project(server: Server) -> str:
    """A project of the test's own, which has the version."""
    project_id = f"p{secrets.token_hex(6)}"
    await server.project(project_id)
    await registered_version(server.admin, project_id)
    return project_id


def ids(project_id: str, found: str) -> dict[str, str]:
    """What a request for one thing says."""
    return {"project_id": project_id, "digest": found}


GET: dict[str, Any] = {
    "GetQualityRule": quality_pb2.GetQualityRuleRequest,
    "GetQualityProfile": quality_pb2.GetQualityProfileRequest,
    "GetQualityEvaluation": quality_pb2.GetQualityEvaluationRequest,
}
LIST: dict[str, Any] = {
    "ListQualityProfiles": quality_pb2.ListQualityProfilesRequest,
    "ListQualityEvaluations": quality_pb2.ListQualityEvaluationsRequest,
}


async def refused(server: Server, method: str, request: Message) -> Failure:
    """How a call is refused."""
    with pytest.raises(Failure) as found:
        await server.admin(method, request)
    return found.value


async def test_a_rule_is_evaluated_on_a_profile(server: Server, project: str) -> None:
    """The verdict, its record, its entry and its lineage; the documents as they are read again."""
    runtime = await server.caller(project, "runtime")
    made_rule = await server.admin("RegisterQualityRule", rule(project_id=project))
    made_profile = await runtime("RegisterQualityProfile", profile(project_id=project))
    asked = evaluate(made_rule.record.digest, made_profile.record.digest, project_id=project)
    evaluation = await runtime("EvaluateQuality", asked)
    assert evaluation.verdict == quality_pb2.QUALITY_VERDICT_PASS
    assert [(each.check, each.outcome, each.observed) for each in evaluation.results] == [("rows", 1, "3")]
    assert (evaluation.evaluator, evaluation.evaluator_version, evaluation.rule_name) == ("animus", "1", "fit")
    assert evaluation.evaluate_time == evaluation.record.create_time
    assert evaluation.record.name == f"projects/{project}/qualityEvaluations/{evaluation.record.digest}"
    entry_id = evaluation.record.audit_entry_id
    entry = await server.admin("GetAuditEntry", audit_pb2.GetAuditEntryRequest(project_id=project, entry_id=entry_id))
    assert (entry.action, entry.resource) == ("quality_evaluation.evaluate", evaluation.record.name)
    assert (entry.principal, entry.time) == ("runtime", evaluation.evaluate_time)
    assert [each.kind for each in entry.records] == ["quality_evaluation", "lineage_edge", "lineage_edge"]
    for method, made in zip(GET, (made_rule, made_profile, evaluation), strict=True):
        assert same(await server.admin(method, GET[method](**ids(project, made.record.digest))), made)
    walked = await server.admin(
        "GetLineage",
        lineage_pb2.GetLineageRequest(
            project_id=project, node=evaluation.record.name, direction=lineage_pb2.LINEAGE_DIRECTION_UPSTREAM
        ),
    )
    data = f"projects/{project}/datasets/data/versions/{ONE}"
    assert {(each.relation, each.object) for each in walked.edges} == {(USED, data), (USED, made_rule.record.name)}
    for node in (data, made_rule.record.name):
        impact = await server.admin("GetImpact", lineage_pb2.GetImpactRequest(project_id=project, node=node))
        kinds = {each.kind: each.count for each in impact.counts}
        assert kinds == {lineage_pb2.LINEAGE_NODE_KIND_QUALITY_EVALUATION: 1}


async def test_the_verdict_follows_from_the_stored_documents(server: Server, project: str) -> None:
    """Whoever evaluates the stored rule on the stored profiles at the stored time comes to the stored bytes."""
    columns = [column(3, 1), column(1, 1)]
    reference = await server.admin("RegisterQualityProfile", profile(2, columns=[columns[1]], project_id=project))
    drift = {**PSI, "reference_profile_digest": reference.record.digest}
    made = await server.admin("RegisterQualityRule", rule(drift, project_id=project))
    measured = await server.admin("RegisterQualityProfile", profile(4, columns=[columns[0]], project_id=project))
    asked = evaluate(made.record.digest, measured.record.digest, project_id=project)
    reply = await server.admin("EvaluateQuality", asked)
    assert [(each.outcome, each.observed) for each in reply.results] == [(2, "0.274653072167")]
    assert reply.verdict == quality_pb2.QUALITY_VERDICT_FAIL
    stored: dict[str, bytes] = {}
    async with server.running.engine.connect() as connection, connection.begin():
        await connection.execute(text("SELECT set_config('animus.project_id', :p, true)"), {"p": project})
        for table in ("quality_rule", "quality_profile", "quality_evaluation"):
            rows = await connection.execute(text(f"SELECT digest, document FROM animus.{table}"))
            stored |= {row.digest: row.document for row in rows}
    assert {digest(document) for document in stored.values()} == stored.keys()
    profiles = {each.record.digest: load(stored[each.record.digest], QualityProfile) for each in (reference, measured)}
    evaluation = load(stored[reply.record.digest], QualityEvaluation)
    again = evaluated(
        project,
        load(stored[made.record.digest], QualityRule),
        made.record.digest,
        profiles[measured.record.digest],
        measured.record.digest,
        {reference.record.digest: profiles[reference.record.digest]},
        evaluation.evaluate_time,
    )
    assert again == evaluation


def column(*counts: int) -> quality_pb2.ColumnProfile:
    """A column whose bins end at 1, 2, …"""
    edges = [f"{index + 1}" for index in range(len(counts) - 1)]
    return quality_pb2.ColumnProfile(name="a", type="int64", null_count=0, edges=edges, bin_counts=counts)


async def test_what_is_registered_again_is_found(server: Server, project: str) -> None:
    """The same rule, and the same profile, is one record; an evaluation is a new one each time."""
    rules = await gathered([server.admin("RegisterQualityRule", rule(project_id=project)) for _ in range(3)])
    profiles = await gathered([server.admin("RegisterQualityProfile", profile(project_id=project)) for _ in range(3)])
    for made in (rules, profiles):
        assert all(same(made[0], each) for each in made)
    asked = [evaluate(rules[0].record.digest, profiles[0].record.digest, project_id=project) for _ in range(3)]
    verdicts = await gathered([server.admin("EvaluateQuality", each) for each in asked])
    assert len({each.record.digest for each in verdicts}) == 3
    assert same(await server.admin("EvaluateQuality", asked[0]), verdicts[0])
    assert server.admin.metadata["animus-replayed"] == "true"
    asked[0].rule_digest = TWO
    assert (await refused(server, "EvaluateQuality", asked[0])).reason == "REQUEST_ID_REUSED"


async def test_another_tools_verdict_is_recorded_as_its_own(server: Server, project: str) -> None:
    """By its name, with an edge to the data and none to a rule; never as one of `animus`, nor against its results."""
    runtime = await server.caller(project, "runtime")
    made = await runtime("RecordForeignEvaluation", foreign("WARN", project_id=project))
    assert (made.evaluator, made.verdict) == ("dbt", quality_pb2.QUALITY_VERDICT_WARN)
    assert made.evaluate_time == made.record.create_time
    walked = await server.admin(
        "GetLineage",
        lineage_pb2.GetLineageRequest(
            project_id=project, node=made.record.name, direction=lineage_pb2.LINEAGE_DIRECTION_BOTH
        ),
    )
    assert [each.object for each in walked.edges] == [f"projects/{project}/datasets/data/versions/{ONE}"]
    timed = foreign(project_id=project)
    timed.quality_evaluation.evaluate_time.GetCurrentTime()
    against = foreign(project_id=project)
    against.quality_evaluation.verdict = quality_pb2.QUALITY_VERDICT_FAIL
    unsaid = foreign(project_id=project)
    unsaid.quality_evaluation.verdict = quality_pb2.QUALITY_VERDICT_UNSPECIFIED
    for bad, path in (
        (foreign(project_id=project, evaluator="animus"), "evaluator"),
        (foreign(project_id=project, evaluator="Great Expectations"), "evaluator"),
        (timed, "evaluateTime"),
        (against, "verdict"),
        (unsaid, "verdict"),
    ):
        assert list((await refused(server, "RecordForeignEvaluation", bad)).fields) == [f"qualityEvaluation.{path}"]
    unknown = await refused(server, "RecordForeignEvaluation", foreign(project_id=project, digest=TWO))
    assert unknown.reason == "DATASET_VERSION_UNKNOWN"
    empty = quality_pb2.RecordForeignEvaluationRequest(project_id=project, request_id="r")
    assert list((await refused(server, "RecordForeignEvaluation", empty)).fields) == ["qualityEvaluation"]


async def test_a_check_that_was_not_measured_is_refused_and_audited(server: Server, project: str) -> None:
    """The error names the checks; the log says of the refusal; no evaluation is there."""
    made = await server.admin("RegisterQualityRule", rule(METRIC, project_id=project))
    measured = await server.admin("RegisterQualityProfile", profile(project_id=project))
    asked = evaluate(made.record.digest, measured.record.digest, project_id=project)
    failure = await refused(server, "EvaluateQuality", asked)
    assert (failure.code, failure.reason) == ("FAILED_PRECONDITION", "QUALITY_NOT_MEASURED")
    assert failure.metadata["checks"] == "checks[auc]: metric 'auc'"
    assert failure.preconditions == [("QUALITY_NOT_MEASURED", measured.record.name)]
    request = audit_pb2.ListAuditEntriesRequest(project_id=project)
    last = (await server.admin("ListAuditEntries", request)).audit_entries[-1]
    assert (last.outcome, last.reason) == (audit_pb2.AUDIT_OUTCOME_REFUSED, "QUALITY_NOT_MEASURED")
    listing = quality_pb2.ListQualityEvaluationsRequest(project_id=project, dataset_id="data", content_digest=ONE)
    assert not (await server.admin("ListQualityEvaluations", listing)).quality_evaluations


async def test_what_a_call_names_must_be_there(server: Server, project: str) -> None:
    """Each unknown thing has its reason, another project's as one that is nowhere, and nothing is written."""
    other = f"o{secrets.token_hex(6)}"
    await server.project(other)
    await registered_version(server.admin, other)
    theirs = await server.admin("RegisterQualityProfile", profile(project_id=other))
    their_rule = await server.admin("RegisterQualityRule", rule(project_id=other))
    verdict = await server.admin(
        "EvaluateQuality", evaluate(their_rule.record.digest, theirs.record.digest, project_id=other)
    )
    ours = await server.admin("RegisterQualityRule", rule({**METRIC}, project_id=project))
    nowhere = f"sha256:{'9' * 64}"
    for made, method in zip((their_rule, theirs, verdict), GET, strict=True):
        found = [
            await refused(server, method, GET[method](**ids(project, each))) for each in (made.record.digest, nowhere)
        ]
        assert {(each.code, each.reason) for each in found} == {("NOT_FOUND", _reason(method))}
        assert found[0].raw.replace(made.record.digest.encode(), nowhere.encode()) == found[1].raw
    for foreign_digest in (theirs.record.digest, nowhere):
        drift = rule({**PSI, "reference_profile_digest": foreign_digest}, project_id=project)
        failure = await refused(server, "RegisterQualityRule", drift)
        name = f"projects/{project}/qualityProfiles/{foreign_digest}"
        assert (failure.reason, failure.metadata["name"]) == ("QUALITY_PROFILE_UNKNOWN", name)
    cases: list[tuple[str, Message, str]] = [
        ("EvaluateQuality", evaluate(their_rule.record.digest, nowhere, project_id=project), "QUALITY_RULE_UNKNOWN"),
        (
            "EvaluateQuality",
            evaluate(ours.record.digest, theirs.record.digest, project_id=project),
            "QUALITY_PROFILE_UNKNOWN",
        ),
        ("RegisterQualityProfile", profile(project_id=project, digest=TWO), "DATASET_VERSION_UNKNOWN"),
        *(
            (method, kind(project_id=project, dataset_id="data", content_digest=TWO), "DATASET_VERSION_UNKNOWN")
            for method, kind in LIST.items()
        ),
    ]
    for method, request, reason in cases:
        assert (await refused(server, method, request)).reason == reason, method
    listed = await server.admin("ListQualityRules", quality_pb2.ListQualityRulesRequest(project_id=project))
    assert [each.record.name for each in listed.quality_rules] == [ours.record.name]


async def test_a_profile_counts_the_rows_of_its_version(server: Server, project: str) -> None:
    """Where the version says how many rows it has, a profile of another number is of something else."""
    known = version(project, TWO)
    known.dataset_version.row_count = 5
    await server.admin("RegisterDatasetVersion", known)
    with pytest.raises(Failure) as found:
        await server.admin("RegisterQualityProfile", profile(4, project_id=project, digest=TWO))
    assert list(found.value.fields) == ["qualityProfile.rowCount"]
    await server.admin("RegisterQualityProfile", profile(5, project_id=project, digest=TWO))


def _reason(method: str) -> str:
    """The reason of what a method does not find."""
    return f"QUALITY_{method.removeprefix('GetQuality').upper()}_UNKNOWN"


async def test_bad_rules_profiles_and_names_are_refused_by_path(server: Server, project: str) -> None:
    """The field of the check, the number of the column that contradicts, the size that is not the version's."""
    bad_rule = rule({"name": "c", "type": "MEAN", "column": "a", "minimum": "NaN"}, project_id=project)
    no_type = rule(project_id=project)
    no_type.quality_rule.checks[0].type = quality_pb2.QUALITY_CHECK_TYPE_UNSPECIFIED
    more = rule({"name": "c", "type": "ROW_COUNT", "minimum": "1", "column": "a"}, project_id=project)
    nulls = column()
    nulls.null_count = 4
    size = profile(project_id=project)
    size.quality_profile.size_bytes = 2
    rows = profile(project_id=project)
    rows.quality_profile.row_count = -1
    infinite = profile(project_id=project)
    infinite.quality_profile.metrics.add(name="a", value="Infinity")
    for method, request, path in (
        ("RegisterQualityRule", bad_rule, "qualityRule.checks[0].minimum"),
        ("RegisterQualityRule", no_type, "qualityRule.checks[0].type"),
        ("RegisterQualityRule", more, "qualityRule.checks[0].column"),
        ("RegisterQualityProfile", profile(columns=[nulls], project_id=project), "qualityProfile.columns[0].nullCount"),
        (
            "RegisterQualityProfile",
            profile(columns=[column(1, 1)], project_id=project),
            "qualityProfile.columns[0].binCounts",
        ),
        ("RegisterQualityProfile", size, "qualityProfile.sizeBytes"),
        ("RegisterQualityProfile", rows, "qualityProfile.rowCount"),
        ("RegisterQualityProfile", infinite, "qualityProfile.metrics[0].value"),
        ("EvaluateQuality", evaluate("x", ONE, project_id=project), "ruleDigest"),
        ("EvaluateQuality", evaluate(ONE, "x", project_id=project), "profileDigest"),
        *((method, kind(**ids(project, "x")), "digest") for method, kind in GET.items()),
        *(
            (method, kind(project_id=project, dataset_id="X", content_digest=ONE), "datasetId")
            for method, kind in LIST.items()
        ),
        *(
            (method, kind(project_id=project, dataset_id="data", content_digest="x"), "contentDigest")
            for method, kind in LIST.items()
        ),
    ):
        assert list((await refused(server, method, request)).fields) == [path]


async def test_lists_are_in_order_in_pages_and_without_what_is_long(server: Server, project: str) -> None:
    """Rules by id and digest, profiles by digest, evaluations the newest first; two to a page."""
    await server.admin("RegisterDatasetVersion", version(project, TWO))
    rules = [
        await server.admin("RegisterQualityRule", rule(check, rule_id=each, project_id=project))
        for each in ("b", "a")
        for check in (METRIC, {**METRIC, "minimum": "0.6"})
    ]
    profiles = [await server.admin("RegisterQualityProfile", profile(each, project_id=project)) for each in range(5)]
    await server.admin("RegisterQualityProfile", profile(project_id=project, digest=TWO))
    verdicts = [await server.admin("RecordForeignEvaluation", foreign(project_id=project)) for _ in range(5)]
    await server.admin("RecordForeignEvaluation", foreign(project_id=project, digest=TWO))
    of_version: dict[str, Any] = {"project_id": project, "dataset_id": "data", "content_digest": ONE}
    cases: list[tuple[str, Any, str, list[Any], tuple[str, ...]]] = [
        (
            "ListQualityRules",
            quality_pb2.ListQualityRulesRequest(project_id=project),
            "quality_rules",
            sorted(rules, key=lambda each: (each.rule_id, each.record.digest)),
            ("checks",),
        ),
        (
            "ListQualityProfiles",
            quality_pb2.ListQualityProfilesRequest(**of_version),
            "quality_profiles",
            sorted(profiles, key=lambda each: each.record.digest),
            ("columns", "metrics"),
        ),
        (
            "ListQualityEvaluations",
            quality_pb2.ListQualityEvaluationsRequest(**of_version),
            "quality_evaluations",
            verdicts[::-1],
            ("results",),
        ),
    ]
    for method, request, items, expected, left_out in cases:
        found: list[Any] = []
        request.page_size = 2
        while True:
            page = await server.admin(method, request)
            assert len(getattr(page, items)) <= 2
            found += getattr(page, items)
            if not page.next_page_token:
                break
            request.page_token = page.next_page_token
        for each in expected:
            for name in left_out:
                each.ClearField(name)
        assert [each.SerializeToString() for each in found] == [each.SerializeToString() for each in expected]
        request.page_size = -1
        assert list((await refused(server, method, request)).fields) == ["pageSize"]
    foreign_token = quality_pb2.ListQualityProfilesRequest(**of_version, page_token=cases[2][1].page_token)
    assert (await refused(server, "ListQualityProfiles", foreign_token)).reason == "PAGE_TOKEN_INVALID"


async def test_validate_only_writes_nothing(server: Server, project: str) -> None:
    """The answer is as it would be, the errors are the same, and nothing is there."""
    made = await server.admin("RegisterQualityRule", rule(project_id=project))
    measured = await server.admin("RegisterQualityProfile", profile(project_id=project))
    for method, request in (
        ("RegisterQualityRule", rule(METRIC, project_id=project)),
        ("RegisterQualityProfile", profile(9, project_id=project)),
        ("EvaluateQuality", evaluate(made.record.digest, measured.record.digest, project_id=project)),
        ("RecordForeignEvaluation", foreign(project_id=project)),
    ):
        request.validate_only = True
        assert (await server.admin(method, request)).record.digest
    listed = await server.admin("ListQualityRules", quality_pb2.ListQualityRulesRequest(project_id=project))
    assert [each.record.digest for each in listed.quality_rules] == [made.record.digest]
    verdicts = quality_pb2.ListQualityEvaluationsRequest(project_id=project, dataset_id="data", content_digest=ONE)
    assert not (await server.admin("ListQualityEvaluations", verdicts)).quality_evaluations


async def test_each_role_may_do_its_part(server: Server, project: str) -> None:
    """Operators make rules; runtimes measure and ask for verdicts; the others read, and runtimes do not browse."""
    made = await server.admin("RegisterQualityRule", rule(project_id=project))
    measured = await server.admin("RegisterQualityProfile", profile(project_id=project))
    measures, reads = {"admin", "operator", "runtime"}, {"admin", "operator", "runtime", "viewer", "auditor"}
    of_version: dict[str, Any] = {"project_id": project, "dataset_id": "data", "content_digest": ONE}
    for role in (each for each in access.Role if not each.of_instance):
        caller = await server.caller(project, role)
        verdict = await server.admin("RecordForeignEvaluation", foreign(project_id=project))
        cases: list[tuple[str, Any, set[str]]] = [
            ("RegisterQualityRule", rule(project_id=project), {"admin", "operator"}),
            ("RegisterQualityProfile", profile(project_id=project), measures),
            ("EvaluateQuality", evaluate(made.record.digest, measured.record.digest, project_id=project), measures),
            ("RecordForeignEvaluation", foreign(project_id=project), measures),
            *(
                (name, GET[name](**ids(project, each.record.digest)), reads)
                for name, each in zip(GET, (made, measured, verdict), strict=True)
            ),
            ("ListQualityRules", quality_pb2.ListQualityRulesRequest(project_id=project), reads - {"runtime"}),
            *((name, LIST[name](**of_version), reads - {"runtime"}) for name in LIST),
        ]
        for name, request, allowed in cases:
            (answer,) = await gathered([caller(name, request)])
            assert (getattr(answer, "reason", "") == "ROLE_MISSING") == (role not in allowed), (name, role)
            assert isinstance(answer, Failure) == (role not in allowed), (name, role, answer)


async def test_the_newest_of_a_rule_and_evaluator_is_found_by_an_index(server: Server, project: str) -> None:
    """What a gate asks of each binding, and the list of a version, read one index in its order and sort nothing."""
    newest = (
        "SELECT digest FROM animus.quality_evaluation WHERE project_id = :p AND dataset_id = 'data'"
        " AND content_digest = :d{more} ORDER BY evaluate_time DESC, digest DESC LIMIT 1"
    )
    async with server.running.engine.connect() as connection, connection.begin():
        await connection.execute(text("SELECT set_config('animus.project_id', :p, true)"), {"p": project})
        await connection.execute(text("SET LOCAL enable_seqscan = off"))  # the table is small
        for more in (" AND rule_digest = :d AND evaluator = 'dbt'", ""):
            rows = await connection.execute(text("EXPLAIN " + newest.format(more=more)), {"p": project, "d": ONE})
            plan = "\n".join(rows.scalars())
            assert "Index" in plan, plan
            assert "Sort" not in plan, plan


async def test_stored_rules_profiles_and_verdicts_never_change(server: Server, project: str) -> None:
    """The service role may not, and the database refuses it to its owner too."""
    async with server.running.engine.connect() as connection:
        for table in ("quality_rule", "quality_profile", "quality_evaluation"):
            for statement in (f"UPDATE animus.{table} SET project_id = 'q'", f"DELETE FROM animus.{table}"):
                with pytest.raises(DBAPIError, match="permission denied"):
                    await connection.execute(text(statement))
                await connection.rollback()
