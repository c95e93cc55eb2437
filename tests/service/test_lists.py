"""Filters and orders of every list, through the real services, against the same conditions on what a list holds."""

import itertools
import random
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from contract import METHODS
from google.protobuf.message_factory import GetMessageClass
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from animus.codec import sha256
from animus.domain.access import RoleBinding, ServiceAccount, Token
from animus.domain.audit import AuditEntry
from animus.domain.dataset import Dataset, DatasetVerification, DatasetVersion
from animus.domain.environment import EnvironmentLock
from animus.domain.external_lineage import ExternalEvent, ExternalRun
from animus.domain.filter import OPERATORS, ORDERED, And, Filter, FilterField, Not, Or, parse_filter
from animus.domain.pipeline import PipelineSpec
from animus.domain.project import Project
from animus.domain.quality import QualityEvaluation, QualityProfile, QualityRule
from animus.domain.quality_gate import QualityGate
from animus.domain.run import AdmissionRefusal, Artifact, Metric, Run
from animus.store.embedded import EmbeddedPostgres
from animus.store.filter import COLUMNS, FIELDS
from animus.v1 import lineage_pb2, project_pb2, run_pb2, runtime_pb2, types_pb2
from service.conftest import Failure, Server
from service.requests import (
    ONE,
    TWO,
    artifact,
    bind,
    create_run,
    dataset,
    disable,
    environment,
    evaluate,
    event,
    external_event,
    foreign,
    plan_run,
    prepare,
    profile,
    register_pipeline,
    report,
    revoke,
    rule,
    set_gate,
    two_steps,
    verify,
    version,
)
from service.shared import executing, served

DOCS = Path(__file__).parents[2] / "docs" / "lists.md"


@dataclass(frozen=True, slots=True)
class Listed:
    """A list: its method, what else it is asked, and where its values stand in an item, if not under their names."""

    method: str
    asked: dict[str, str]
    elsewhere: dict[str, Callable[[Any], Any]]


RECORD: dict[str, Callable[[Any], Any]] = {
    "create_time": lambda item: item.record.create_time,
    "principal": lambda item: item.record.principal,
}
DIGEST = {**RECORD, "digest": lambda item: item.record.digest}
OF_VERSION = {"dataset_id": "data", "content_digest": ONE}
OTHERS_RUN = "01941f29-7c00-7000-8000-000000000000"
LISTS: dict[type, Listed] = {
    Project: Listed("ListProjects", {}, RECORD),
    ServiceAccount: Listed("ListServiceAccounts", {}, RECORD),
    Token: Listed("ListTokens", {}, {"create_time": RECORD["create_time"]}),
    RoleBinding: Listed("ListRoleBindings", {}, RECORD),
    Dataset: Listed("ListDatasets", {}, RECORD),
    DatasetVersion: Listed("ListDatasetVersions", {"dataset_id": "data"}, RECORD),
    DatasetVerification: Listed("ListDatasetVerifications", OF_VERSION, RECORD),
    EnvironmentLock: Listed("ListEnvironmentLocks", {}, DIGEST),
    PipelineSpec: Listed(
        "ListPipelineSpecs",
        {},
        {**DIGEST, "name": lambda item: item.metadata.name, "labels": lambda item: item.metadata.labels},
    ),
    Run: Listed("ListRuns", {}, RECORD),
    Artifact: Listed("ListArtifacts", {}, RECORD),
    Metric: Listed("ListMetrics", {}, RECORD),
    AuditEntry: Listed("ListAuditEntries", {}, {}),
    QualityRule: Listed("ListQualityRules", {}, DIGEST),
    QualityProfile: Listed("ListQualityProfiles", OF_VERSION, DIGEST),
    QualityEvaluation: Listed("ListQualityEvaluations", OF_VERSION, DIGEST),
    QualityGate: Listed("ListQualityGates", {}, DIGEST),
    AdmissionRefusal: Listed("ListAdmissionRefusals", {}, RECORD),
    ExternalEvent: Listed("ListExternalEvents", {"run_id": OTHERS_RUN}, RECORD),
    ExternalRun: Listed("ListExternalRuns", {}, {}),
}


@pytest.fixture(scope="module")
async def shared(
    postgres: EmbeddedPostgres, admin: AsyncEngine, template: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Server]:
    """A server with some of everything in its project `p`."""
    async with served(postgres, admin, template, tmp_path_factory.mktemp("data")) as found:
        await found.project("p")
        await _filled(found)
        yield found


async def _filled(server: Server) -> None:
    call = server.admin
    spec = await prepare(call)
    for number, team in enumerate(("vision", "", "speech")):
        labels = [types_pb2.Label(key="team", value=team), types_pb2.Label(key="tier/x", value=str(number))]
        project = project_pb2.Project(
            project_id=f"q{number}", display_name=f"Q{number}", description="é", labels=labels[:number]
        )
        await call(
            "CreateProject",
            project_pb2.CreateProjectRequest(project_id=project.project_id, request_id="q", project=project),
        )
        named = dataset("p", f"data-{number}")
        named.dataset.description = ("100%", 'a "quoted" one', "b_c")[number]
        named.dataset.labels.extend(labels[:number])
        await call("CreateDataset", named)
        sized = version("p", f"sha256:{str(number) * 63}f")
        sized.dataset_version.size_bytes = (0, 10, 2**53 - 1)[number]
        sized.dataset_version.row_count = (-1, 0, 7)[number]
        sized.dataset_version.source = ("", "s3://lake", "é")[number]
        sized.dataset_version.licence = ("", "MIT", "CC-BY-4.0")[number]
        sized.dataset_version.labels.extend(labels[:number])
        await call("RegisterDatasetVersion", sized)
        await call("VerifyDatasetVersion", verify(f"v{number}", found=(ONE, TWO)[number % 2]))
        lock = environment()
        lock.request_id = lock.environment_lock.platform_architecture = f"a{number}"
        await call("RegisterEnvironmentLock", lock)
        pipeline = register_pipeline(two_steps(), request_id=f"pipeline-{number}")
        pipeline.pipeline_spec.metadata.name = f"pipe-{number}"
        pipeline.pipeline_spec.metadata.labels.extend(labels[number:])
        registered = await call("RegisterPipelineSpec", pipeline)
        spec.pipeline_spec_digest = registered.record.digest
        run = create_run(spec, f"run-{number}")
        run.labels.extend(labels[: number + 1])
        run_id = (await call("CreateRun", run)).run_id
        if number:
            await call("PlanRun", plan_run(run_id, f"plan-{number}"))
    await call("ReportStepEvents", report(run_id, event("first", 1, "STARTED")))
    await call("RegisterArtifacts", artifact(run_id, "first", "table"))
    metrics = [
        runtime_pb2.MetricReport(step="first", attempt=1, name=name, index=index, value="1")
        for name in ("loss", "Loss")
        for index in (0, 7, 2**53 - 1)
    ]
    for at, metric in enumerate(metrics):
        metric.occur_time.FromJsonString(f"2026-01-0{at + 1}T00:00:00Z")
    await call(
        "RecordMetrics",
        runtime_pb2.RecordMetricsRequest(project_id="p", request_id="metrics", run_id=run_id, metrics=metrics),
    )
    replay = run_pb2.ReplayRunRequest(project_id="p", request_id="replay", run_id=run_id)
    await call("ReplayRun", replay)
    for kind in (Artifact, Metric):
        LISTS[kind].asked["run_id"] = run_id
    await _judged(server, spec, run_id)
    await _told(server)
    await _granted(server)


async def _judged(server: Server, spec: run_pb2.RunSpec, run_id: str) -> None:
    """Rules, profiles, verdicts, gates, and what these refused."""
    call = server.admin
    for number, name in enumerate(("fit", "fit", "fresh")):
        registered = rule(rule_id=name)
        registered.quality_rule.description = ("", "é", "100%")[number]
        registered.quality_rule.labels.extend([types_pb2.Label(key="team", value=name)] * (number % 2))
        judge = (await call("RegisterQualityRule", registered)).record.digest
        measured = profile((0, 3, 2**53 - 1)[number])
        measured.quality_profile.profiler = f"by hand {number % 2}"
        answer = (await call("RegisterQualityProfile", measured)).record.digest
        await call("EvaluateQuality", evaluate(judge, answer))
        await call("RecordForeignEvaluation", foreign(("WARN", "ERROR", "PASS")[number]))
    asked = ("", "", TWO, "nobody")
    for pipeline in ("pipe-2", "", "other"):
        await call("SetQualityGate", set_gate("p", asked, pipeline=pipeline, allowed=bool(pipeline)))
    for pipeline in await pages(server, PipelineSpec):
        spec.pipeline_spec_digest = pipeline.record.digest
        with pytest.raises(Failure) as found:
            await call("CreateRun", create_run(spec, f"refused-{pipeline.record.digest[-8:]}"))
        assert found.value.reason == "GATE_NOT_PASSED"
    with pytest.raises(Failure):
        await call("ReplayRun", run_pb2.ReplayRunRequest(project_id="p", request_id="refused", run_id=run_id))


async def _granted(server: Server) -> None:
    """Service accounts, tokens of theirs that were used, revoked or neither, and members with roles, or with none."""
    call = server.admin
    callers = [
        await server.caller("p", role, days=1 + days) for days, role in enumerate(("viewer", "admin", "runtime"))
    ]
    callers.append(await server.caller("p", "viewer", days=5))
    digests = [sha256(caller.token.encode()) for caller in callers]
    async with server.running.engine.begin() as connection:
        note = text("SELECT animus.note_token_uses(ARRAY['p', 'p'], CAST(:digests AS text[]))")
        await connection.execute(note, {"digests": digests[:2]})
    for digest in digests[1:3]:
        await call("RevokeToken", revoke("p", digest))
    await call("DisableServiceAccount", disable("p", "runtime"))
    for number, member in enumerate(("group:corp:b", "oidc:corp:a", "group:corp:b", "certificate:dns:e.test")):
        await call("SetRoleBinding", bind("p", member, "VIEWER", *["ADMIN"] * (number > 1)))
    await call("SetRoleBinding", bind("p", "oidc:corp:gone", "VIEWER"))
    await call("SetRoleBinding", bind("p", "oidc:corp:gone"))


async def _told(server: Server) -> None:
    """Events of runs of another system: one has all, others one to three, in any order of their times."""
    for number, kind in enumerate(("START", "RUNNING", None, "COMPLETE", "OTHER", "ABORT", "FAIL")):
        for other in (0, number + 1, (number + 1) % 7 + 1, number // 3 + 8, number + 11):
            run_id = f"{OTHERS_RUN[:-2]}{other:02}"
            tree: dict[str, Any] = {
                "eventTime": f"2026-01-01T00:00:0{(1, 0, 2, 0, 1, 2, 2)[number]}Z",
                "producer": "https://example.org/airflow",
                "schemaURL": "https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/RunEvent",
                "run": {"runId": run_id},
                "job": {"namespace": ("airflow", "dbt")[number % 2], "name": f"load-{number % 3}"},
            }
            if kind:
                tree["eventType"] = kind
            await server.admin("RecordOpenLineageEvent", external_event(tree))


async def pages(server: Server, kind: type, size: int = 100, **more: Any) -> list[Any]:
    """Every item of a list, page by page."""
    listed = LISTS[kind]
    method = METHODS[listed.method]
    request: Any = GetMessageClass(method.input_type)(page_size=size, **listed.asked, **more)
    if kind is not Project:
        request.project_id = "p"
    found: list[Any] = []
    while True:
        reply = await server.admin(listed.method, request)
        (items,) = [value for field, value in reply.ListFields() if field.name != "next_page_token"] or [[]]
        assert len(items) <= size
        found += items
        request.page_token = reply.next_page_token
        if not request.page_token:
            return found


async def values_of(server: Server, kind: type, item: Any) -> dict[str, Any]:
    """The values of an item by field: labels as a mapping, times as text."""
    found: dict[str, Any] = {}
    whole = item
    if kind is Run:
        whole = await server.admin("GetRun", run_pb2.GetRunRequest(project_id="p", run_id=item.run_id))
    for name, field in FIELDS[kind].items():
        if kind is Run and name in ("pipeline_spec_digest", "environment_lock_digest"):
            value: Any = getattr(whole.run_spec, name)
        elif kind is Run and name == "commit_sha":
            value = whole.run_spec.commit.sha
        elif kind is Run and name == "pipeline":
            specs = {each.record.digest: each for each in await pages(server, PipelineSpec)}
            value = specs[whole.run_spec.pipeline_spec_digest].metadata.name
        else:
            value = LISTS[kind].elsewhere.get(name, lambda item, name=name: getattr(item, name))(item)
        if field.type == "time":
            value = value.ToDatetime().strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        elif field.type == "labels":
            value = {label.key: label.value for label in value}
        elif field.type == "enum":
            number: Any = item.DESCRIPTOR.fields_by_name[name].enum_type
            value = dict(field.values)[number.values_by_number[value].name]
        found[name] = value
    return found


def meets(tree: Filter, values: dict[str, Any]) -> bool:
    """Whether values meet a filter: the meaning in Python."""
    if isinstance(tree, Not):
        return not meets(tree.item, values)
    if isinstance(tree, And):
        return all(meets(each, values) for each in tree.items)
    if isinstance(tree, Or):
        return any(meets(each, values) for each in tree.items)
    value: Any = values[tree.field]
    if isinstance(value, dict):
        if tree.operator == ":":
            return tree.key in value
        return (value.get(tree.key) == tree.value) == (tree.operator == "=")
    wanted: Any = tree.value
    if tree.operator == ":":
        return wanted in value
    return bool(
        {
            "=": value == wanted,
            "!=": value != wanted,
            **(
                {"<": value < wanted, "<=": value <= wanted, ">": value > wanted, ">=": value >= wanted}
                if tree.operator[0] in "<>"
                else {}
            ),
        }[tree.operator]
    )


def drawn(chance: random.Random, fields: list[FilterField], items: list[dict[str, Any]], depth: int = 2) -> str:
    """The text of a random filter, whose values are mostly some that items have."""
    if depth and chance.random() < 0.6:
        parts = [drawn(chance, fields, items, depth - 1) for _ in range(2)]
        return chance.choice(["({} AND {})", "({} {})", "({} OR {})", "NOT ({} OR {})"]).format(*parts)
    field = chance.choice(fields)
    value = chance.choice(items)[field.name]
    if field.type == "labels":
        key, label = chance.choice([*value.items(), ("team", "vision"), ("none", "")])
        return chance.choice([f'labels."{key}" = "{label}"', f'labels.{key} != "{label}"', f"labels:{key}"])
    operator = chance.choice(OPERATORS[field.type])
    if field.type == "text":
        shown = value[: chance.choice([0, 1, len(value), len(value)])].replace("\\", "\\\\").replace('"', '\\"')
        return f'{field.name} {operator} "{shown}"'
    if field.type == "enum":
        value = {stored: name for name, stored in field.values}[value]
    return f"{field.name} {operator} {str(value).lower() if field.type == 'bool' else value}"


@pytest.mark.parametrize("kind", LISTS, ids=lambda kind: kind.__name__)
async def test_a_list_holds_what_meets_its_filter_in_its_order(shared: Server, kind: type) -> None:
    """Random filters and orders over random pages: each match once, in order, as Python finds them."""
    chance = random.Random(kind.__name__)
    listed = await pages(shared, kind)
    values = [await values_of(shared, kind, item) for item in listed]
    fields = list(FIELDS[kind].values())
    sortable = [field.name for field in fields if field.type in ORDERED]
    met = 0
    for name in [*FIELDS[kind], *([""] * 10)]:
        chosen = [FIELDS[kind][name]] if name else fields
        asked = drawn(chance, chosen, values, depth=0 if name else 2)
        order = [(each, chance.random() < 0.5) for each in chance.sample(sortable, chance.randint(0, 3))]
        order_by = ", ".join(each + " desc" * backwards for each, backwards in order)
        tree = parse_filter(asked, FIELDS[kind])
        assert tree is not None
        expected = [item for item, value in zip(listed, values, strict=True) if meets(tree, value)]
        size = chance.randint(1, max(4, len(listed) // 3))
        found = await pages(shared, kind, size=size, filter=asked, order_by=order_by)
        assert sorted(map(str, found)) == sorted(map(str, expected)), asked
        if not order:
            assert list(map(str, found)) == list(map(str, expected)), asked
        by = {str(item): value for item, value in zip(listed, values, strict=True)}
        for left, right in itertools.pairwise(found):
            assert _in_order(order, by[str(left)], by[str(right)]), (asked, order_by)
        met += 0 < len(expected) < len(listed)
    assert met > 1 or len(listed) < 3


def _in_order(order: list[tuple[str, bool]], left: dict[str, Any], right: dict[str, Any]) -> bool:
    for name, backwards in order:
        if left[name] != right[name]:
            return bool((left[name] > right[name]) == backwards)
    return True


async def test_runs_are_found_by_the_state_that_follows_from_their_last_event(shared: Server) -> None:
    """Created without an event; after each event as that one left it."""
    for state in ("CREATED", "PLANNED", "RUNNING"):
        found = await pages(shared, Run, filter=f"state = RUN_STATE_{state}")
        assert found
        assert {run.state for run in found} == {run_pb2.RunState.Value(f"RUN_STATE_{state}")}
    assert await pages(shared, Run, filter="state = RUN_STATE_FAILED") == []


async def test_runs_of_other_systems_are_found_by_the_state_that_the_list_shows(shared: Server) -> None:
    """The statement that filters comes to the same state as the rule that answers, for every state."""
    listed = await pages(shared, ExternalRun)
    for name, number in lineage_pb2.ExternalEventType.items():
        found = await pages(shared, ExternalRun, filter=f"state = {name}")
        assert found == [run for run in listed if run.state == number], name
    assert {run.state for run in listed} == set(lineage_pb2.ExternalEventType.values())


async def test_a_role_of_a_project_lists_its_own_where_that_meets_the_filter(shared: Server) -> None:
    """No filter shows it another."""
    viewer = await shared.caller("q1", "viewer")
    for asked, ids in (("", ["q1"]), ('project_id != ""', ["q1"]), ("labels:team", ["q1"]), ("project_id = p", [])):
        reply = await viewer("ListProjects", project_pb2.ListProjectsRequest(filter=asked, order_by="project_id desc"))
        assert [project.project_id for project in reply.projects] == ids


async def test_a_token_is_of_its_filter_and_order(shared: Server) -> None:
    """With another of either, or without, it is refused."""
    asked = {"project_id": "p", "page_size": 1, "filter": "dataset_id:data", "order_by": "create_time desc"}
    request: Any = GetMessageClass(METHODS["ListDatasets"].input_type)
    token = (await shared.admin("ListDatasets", request(**asked))).next_page_token
    assert token
    for changed in ({"filter": ""}, {"filter": "dataset_id:dat"}, {"order_by": "create_time"}, {"order_by": ""}):
        with pytest.raises(Failure) as found:
            await shared.admin("ListDatasets", request(**{**asked, **changed}, page_token=token))
        assert found.value.reason == "PAGE_TOKEN_INVALID"


async def test_what_is_no_filter_or_order_is_refused_by_every_list(shared: Server) -> None:
    """With the field and the reason of the contract."""
    wrong: list[tuple[dict[str, Any], str, str]] = [
        ({"filter": "nothing = 1"}, "filter", "FILTER_INVALID"),
        ({"order_by": "nothing"}, "orderBy", "FIELD_INVALID"),
    ]
    for kind in LISTS:
        for more, field, reason in wrong:
            with pytest.raises(Failure) as found:
                await pages(shared, kind, **more)
            assert (found.value.code, found.value.reason) == ("INVALID_ARGUMENT", reason)
            assert list(found.value.fields) == [field]


async def test_runs_without_a_filter_are_listed_by_the_same_statements_as_before(shared: Server) -> None:
    """One opens the call, one reads the page, one the states."""
    seen: list[str] = []
    with executing(shared, seen.append):
        await pages(shared, Run)
    mine = [each for each in seen if "animus.run" in each and "log_" not in each]
    assert len(mine) == 2, mine
    assert "WHERE r.project_id = $1" in mine[0]
    assert " ORDER BY r.create_time DESC, r.run_id DESC LIMIT " in mine[0]
    assert "place_" not in mine[0]
    assert "last.state" in mine[1]


ORDERS = (
    ("run", "r.create_time DESC, r.run_id DESC"),
    ("run", "r.create_time, r.run_id"),
    ("dataset", "r.dataset_id"),
    ("dataset_version", "r.dataset_id, r.content_digest"),
    ("environment_lock", "r.digest"),
    ("pipeline_spec", "r.digest"),
    ("audit_entry", "r.time, r.entry_id"),
    ("audit_entry", "r.time DESC, r.entry_id DESC"),
    ("quality_rule", "r.rule_id, r.digest"),
    ("quality_profile", "r.dataset_id, r.content_digest, r.digest"),
    ("quality_evaluation", "r.dataset_id, r.content_digest, r.evaluate_time DESC, r.digest DESC"),
    ("quality_gate", "r.set_time DESC, r.digest DESC"),
    ("admission_refusal", "r.refuse_time DESC, r.entry_id DESC"),
    ("external_event", "r.run_id, r.event_time, r.digest"),
)


async def test_an_index_serves_the_orders_that_people_use(shared: Server) -> None:
    """No sort and no sequential scan, where the planner has the choice that large tables give it."""

    async def plan(table: str, order: str) -> str:
        async with shared.running.engine.connect() as connection, connection.begin():
            await connection.execute(text("SELECT set_config('animus.project_id', 'p', true)"))
            await connection.execute(text("SET LOCAL enable_seqscan = off"))
            await connection.execute(text("SET LOCAL enable_bitmapscan = off"))
            statement = f"SELECT r.document FROM animus.{table} r WHERE r.project_id = 'p' ORDER BY {order} LIMIT 10"
            rows = await connection.execute(text(f"EXPLAIN {statement}"))
            return "\n".join(rows.scalars())

    for table, order in ORDERS:
        found = await plan(table, order)
        assert "Index" in found, (table, order, found)
        assert "Sort" not in found, (table, order, found)
    assert "Sort" in await plan("run", "r.labels")


def documented(page: str) -> dict[str, dict[str, str]]:
    """The fields of the table of a page by method: name and type."""
    found: dict[str, dict[str, str]] = {}
    for method, fields in re.findall(r"^\| `(List\w+)` \| (.+?) \|", page, re.MULTILINE):
        found[method] = dict(re.findall(r"`(\w+)` \((\w+)\)", fields))
    return found


def test_the_documents_have_every_field_of_every_list() -> None:
    """The table in docs/lists.md is the table of the program, and so is what is filtered of the contract."""
    ours = {
        LISTS[kind].method: {column.field.name: column.field.type for column in columns}
        for kind, columns in COLUMNS.items()
    }
    assert documented(DOCS.read_text()) == ours
    assert documented("| `ListRuns` | `a` (text), `b` (time) | x |") == {"ListRuns": {"a": "text", "b": "time"}}
    assert set(ours) == {name for name, method in METHODS.items() if "filter" in method.input_type.fields_by_name}
