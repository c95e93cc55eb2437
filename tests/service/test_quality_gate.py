"""Quality gates through the real services on a real PostgreSQL: what runs are let in by, and what refusals leave."""

import asyncio
import json
import secrets
import zipfile
from collections.abc import AsyncIterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

import animus_verify
from animus.store import records
from animus.store.embedded import EmbeddedPostgres
from animus.v1 import audit_pb2, lineage_pb2, log_pb2, quality_gate_pb2, run_pb2
from service.bundles import export, exported, finished_run, three_steps
from service.conftest import Failure, Server, gathered
from service.requests import (
    ONE,
    TWO,
    create_run,
    evaluate,
    foreign,
    overriding,
    prepare,
    profile,
    registered_version,
    rule,
    same,
    set_gate,
    version,
)
from service.shared import served

PASS, WARN, FAIL, ERROR = range(1, 5)


@pytest.fixture(scope="module")
async def shared(
    postgres: EmbeddedPostgres, admin: AsyncEngine, template: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Server]:
    """The server of these tests."""
    async with served(postgres, admin, template, tmp_path_factory.mktemp("data")) as found:
        yield found


class World:
    """A project of the test's own, with all that a run binds and a rule of one check: enough rows."""

    def __init__(self, server: Server, project_id: str) -> None:
        self.server, self.call, self.project_id = server, server.admin, project_id
        self.spec = run_pb2.RunSpec()
        self.rule = ""
        self._profiles: dict[int, str] = {}

    @classmethod
    async def new(cls, server: Server) -> "World":
        """The project."""
        world = cls(server, f"p{secrets.token_hex(6)}")
        await server.project(world.project_id)
        world.spec = await prepare(server.admin, world.project_id)
        made = await server.admin("RegisterQualityRule", rule(project_id=world.project_id))
        world.rule = made.record.digest
        return world

    async def gate(self, *asked: tuple[str, str, str, str], pipeline: str = "", allowed: bool = True) -> str:
        """Sets a gate of dataset_ref, dataset, rule and evaluator; its digest."""
        request = set_gate(self.project_id, *asked, pipeline=pipeline, allowed=allowed)
        return str((await self.call("SetQualityGate", request)).record.digest)

    async def judge(self, rows: int, digest: str = ONE) -> str:
        """Evaluates the rule on a profile of so many rows, of which two pass; the digest of the evaluation."""
        measured = await self.call("RegisterQualityProfile", profile(rows, project_id=self.project_id, digest=digest))
        asked = evaluate(self.rule, measured.record.digest, project_id=self.project_id)
        return str((await self.call("EvaluateQuality", asked)).record.digest)

    async def run(self, request_id: str = "") -> Any:
        """Creates a run, or says why not."""
        request = create_run(self.spec, request_id or secrets.token_hex(8), self.project_id)
        (found,) = await gathered([self.call("CreateRun", request)])
        return found

    async def override(self, reason: str, request_id: str = "") -> Any:
        """The same, past the gates."""
        request = overriding(self.spec, self.project_id, reason, request_id)
        (found,) = await gathered([self.call("CreateRunOverridingGates", request)])
        return found

    async def refusals(self) -> list[run_pb2.AdmissionRefusal]:
        """What gates refused, the newest first."""
        request = run_pb2.ListAdmissionRefusalsRequest(project_id=self.project_id)
        return list((await self.call("ListAdmissionRefusals", request)).admission_refusals)


@pytest.fixture
async def world(shared: Server) -> World:
    """A project of the test's own."""
    return await World.new(shared)


def verdicts(found: Any) -> list[tuple[str, int, int]]:
    """Evaluation, verdict and outcome of each check of gates of a run."""
    return [(each.evaluation_digest, each.verdict, each.outcome) for each in found.admission.gate_checks]


async def test_the_newest_verdict_governs(world: World) -> None:
    """None, PASS, FAIL, PASS: the same request is refused, and once the data has passed, answered with its run."""
    before = await world.run()
    assert (list(before.admission.gates), verdicts(before)) == ([], [])
    digest = await world.gate(("", "", world.rule, "animus"))
    refused = await world.run("again")
    name = f"projects/{world.project_id}/datasets/data/versions/{ONE}"
    assert (refused.code, refused.reason) == ("FAILED_PRECONDITION", "GATE_NOT_PASSED")
    assert refused.preconditions == [("GATE_NOT_PASSED", name)]
    assert refused.metadata == {
        "checks": "1", "gate": digest, "dataset_version": name, "rule": world.rule, "evaluator": "animus",
        "verdict": "",
    }  # fmt: skip
    assert f"the rule {world.rule} of animus has no verdict" in refused.message
    first = await world.judge(3)
    admitted = await world.run("again")
    assert admitted.admission.outcome == run_pb2.ADMISSION_OUTCOME_ADMITTED
    assert (list(admitted.admission.gates), verdicts(admitted)) == ([digest], [(first, PASS, 1)])
    assert admitted.admission.override_reason == ""
    second = await world.judge(1)
    refused = await world.run()
    assert (refused.reason, refused.metadata["verdict"]) == ("GATE_NOT_PASSED", "fail")
    assert "is FAIL" in refused.message
    assert "1 is below the minimum 2" in refused.message  # the check that does not hold
    third = await world.judge(3)
    assert len({first, second, third}) == 3
    assert verdicts(await world.run()) == [(third, PASS, 1)]
    assert same(await world.run("again"), admitted)
    assert [verdicts(run_pb2.Run(admission=each.decision))[0][:2] for each in await world.refusals()] == [
        (second, FAIL),
        ("", 0),
    ]


async def test_a_refusal_is_recorded_and_nothing_else(world: World) -> None:
    """One entry with one record; no run, no RunSpec, no answer is kept; a check that writes nothing leaves none."""
    digest = await world.gate(("data", "data", world.rule, "animus"), pipeline="demo")
    request = create_run(world.spec, "no", world.project_id)
    request.validate_only = True
    with pytest.raises(Failure) as found:
        await world.call("CreateRun", request)
    assert (found.value.reason, await world.refusals()) == ("GATE_NOT_PASSED", [])
    await world.run("no")
    (refusal,) = await world.refusals()
    entry = await world.call(
        "GetAuditEntry",
        audit_pb2.GetAuditEntryRequest(project_id=world.project_id, entry_id=refusal.record.audit_entry_id),
    )
    assert (entry.outcome, entry.reason) == (audit_pb2.AUDIT_OUTCOME_REFUSED, "GATE_NOT_PASSED")
    assert [(each.kind, each.digest) for each in entry.records] == [("admission_refusal", refusal.record.digest)]
    assert entry.request_id == "no"
    assert refusal.record.name == f"projects/{world.project_id}/admissionRefusals/{refusal.record.audit_entry_id}"
    assert refusal.decision.outcome == run_pb2.ADMISSION_OUTCOME_REFUSED
    assert (list(refusal.decision.gates), refusal.replay_of) == ([digest], "")
    assert refusal.pipeline_spec_digest == world.spec.pipeline_spec_digest
    runs = await world.call("ListRuns", run_pb2.ListRunsRequest(project_id=world.project_id))
    assert list(runs.runs) == []
    await world.judge(3)
    run = await world.run("no")
    assert refusal.run_spec_digest == run.run_spec_digest
    await world.gate(pipeline="demo")
    await world.gate(("", "", TWO, "dbt"))
    for _ in range(2):
        await world.run()
    listed = await world.call(
        "ListAdmissionRefusals", run_pb2.ListAdmissionRefusalsRequest(project_id=world.project_id, page_size=2)
    )
    rest = await world.call(
        "ListAdmissionRefusals",
        run_pb2.ListAdmissionRefusalsRequest(
            project_id=world.project_id, page_size=2, page_token=listed.next_page_token
        ),
    )
    times = [each.refuse_time.ToNanoseconds() for each in (*listed.admission_refusals, *rest.admission_refusals)]
    assert len(times) == 3
    assert times == sorted(times, reverse=True)
    assert rest.next_page_token == ""
    assert same(rest.admission_refusals[0], refusal)


async def test_a_gate_asks_what_it_names_and_no_more(world: World) -> None:
    """Of the project and of the pipeline; of a dataset_ref and a dataset; by who counts; WARN lets in."""
    await world.gate(("", "", TWO, "dbt"), pipeline="other")
    await world.gate(("base", "", TWO, "dbt"), ("", "cells", TWO, "dbt"), ("data", "cells", TWO, "dbt"))
    run = await world.run()
    assert (len(run.admission.gates), verdicts(run)) == (1, [])
    pipeline = await world.gate(("data", "", TWO, "dbt"), pipeline="demo")
    project = await world.gate(("", "data", TWO, "great-expectations"))
    for evaluator, verdict in (("soda", "PASS"), ("dbt", "WARN"), ("great-expectations", "ERROR")):
        await world.call("RecordForeignEvaluation", foreign(verdict, project_id=world.project_id, evaluator=evaluator))
    refused = await world.run()
    assert [refused.metadata[key] for key in ("gate", "verdict", "checks")] == [project, "error", "1"]
    made = await world.call(
        "RecordForeignEvaluation", foreign(project_id=world.project_id, evaluator="great-expectations")
    )
    run = await world.run()
    assert list(run.admission.gates) == sorted([pipeline, project])
    assert {each.evaluator: each.verdict for each in run.admission.gate_checks} == {
        "dbt": WARN,
        "great-expectations": PASS,
    }
    assert made.record.digest in {each.evaluation_digest for each in run.admission.gate_checks}
    read = await world.call("GetRun", run_pb2.GetRunRequest(project_id=world.project_id, run_id=run.run_id))
    assert read.admission == run.admission


async def test_a_verdict_is_of_one_content(world: World) -> None:
    """A version that was registered later has not passed by the verdict on the one before."""
    await world.gate(("", "", world.rule, "animus"))
    await world.judge(3)
    assert (await world.run()).run_id
    await world.call("RegisterDatasetVersion", version(world.project_id, TWO))
    world.spec.datasets[0].content_digest = TWO
    assert (await world.run()).reason == "GATE_NOT_PASSED"
    await world.judge(3, TWO)
    assert (await world.run()).run_id


async def test_an_admin_may_override_with_a_reason_that_stays(world: World) -> None:
    """Where each gate that refuses allows it; recorded with the run, or refused and recorded; nobody else may."""
    passed = await world.override("to be sure")
    assert (passed.admission.override_reason, list(passed.admission.gate_checks)) == ("", [])
    await world.gate(("", "", world.rule, "animus"))
    evaluation = await world.judge(1)
    run = await world.override("the rule is to be mended", "once")
    assert run.admission.outcome == run_pb2.ADMISSION_OUTCOME_ADMITTED
    assert run.admission.override_reason == "the rule is to be mended"
    assert verdicts(run) == [(evaluation, FAIL, run_pb2.ADMISSION_OUTCOME_REFUSED)]
    assert same(await world.override("the rule is to be mended", "once"), run)
    entry = await world.call(
        "GetAuditEntry",
        audit_pb2.GetAuditEntryRequest(project_id=world.project_id, entry_id=run.record.audit_entry_id),
    )
    assert (entry.action, entry.principal) == ("run.create_overriding_gates", "admin")
    off = await world.gate(("", "", TWO, "dbt"), pipeline="demo", allowed=False)
    refused = await world.override("please")
    assert (refused.code, refused.reason) == ("FAILED_PRECONDITION", "GATE_OVERRIDE_OFF")
    assert (refused.metadata["gate"], refused.metadata["checks"]) == (off, "1")
    (refusal,) = await world.refusals()
    assert (refusal.decision.override_reason, len(refusal.decision.gate_checks)) == ("", 2)
    await world.call("RecordForeignEvaluation", foreign(project_id=world.project_id))
    assert (await world.override("now it may")).run_id
    for reason in ("", "x" * 2_001):
        assert (await world.override(reason)).fields.keys() == {"reason"}
    operator = await world.server.caller(world.project_id, "operator")
    for method, request in (
        ("CreateRunOverridingGates", overriding(world.spec, world.project_id, "I may not")),
        ("SetQualityGate", set_gate(world.project_id)),
    ):
        with pytest.raises(Failure) as found:
            await operator(method, request)
        assert found.value.reason == "ROLE_MISSING"


async def test_a_run_of_very_many_checks_is_answered(world: World) -> None:
    """What is refused is told as far as an answer holds it, and counted; more than 10,000 checks are none."""
    rules = [f"sha256:{number:064x}" for number in range(1_000)]
    await world.gate(*(("data", "", each, "dbt") for each in rules))
    refused = await world.run()
    assert refused.metadata["checks"] == "1000"
    assert 1 <= len(refused.preconditions) < 100
    assert [len(each.decision.gate_checks) for each in await world.refusals()] == [1_000]
    await world.gate(*(("", "", each, "dbt") for each in rules))
    for number in range(10):
        binding = run_pb2.DatasetBinding(dataset_ref=f"r{number}", dataset_id="data", content_digest=ONE)
        world.spec.datasets.append(binding)
    refused = await world.run()
    assert (refused.reason, refused.fields.keys()) == ("FIELD_INVALID", {"runSpec.datasets"})


async def test_a_replay_goes_through_the_gates_of_now(world: World) -> None:
    """The run that is replayed was let in before there were any; the refusal names it."""
    first = await world.run()
    await world.gate(("", "", world.rule, "animus"))
    request = run_pb2.ReplayRunRequest(project_id=world.project_id, request_id="replay", run_id=first.run_id)
    with pytest.raises(Failure) as found:
        await world.call("ReplayRun", request)
    assert found.value.reason == "GATE_NOT_PASSED"
    (refusal,) = await world.refusals()
    assert refusal.replay_of == first.run_id
    await world.judge(3)
    again = await world.call("ReplayRun", request)
    assert (again.replay_of, len(again.admission.gate_checks)) == (first.run_id, 1)


async def test_a_dry_run_says_what_a_gate_would(world: World) -> None:
    """Its checks, and a blocker for each that does not pass; nothing is recorded."""
    request = run_pb2.DryRunRequest(project_id=world.project_id, run_spec=world.spec)
    digest = await world.gate(("", "", world.rule, "animus"), ("", "", TWO, "dbt"))
    evaluation = await world.judge(3)
    report = await world.call("DryRun", request)
    assert report.admission.outcome == run_pb2.ADMISSION_OUTCOME_REFUSED
    assert sorted((each.evaluation_digest, each.verdict) for each in report.admission.gate_checks) == [
        ("", 0),
        (evaluation, PASS),
    ]
    (blocker,) = report.blockers
    assert blocker.field == "datasets[data]"
    assert f"the gate {digest}" in blocker.description
    assert (report.plan_digest, await world.refusals()) == ("", [])
    await world.call("RecordForeignEvaluation", foreign(project_id=world.project_id))
    report = await world.call("DryRun", request)
    assert (list(report.blockers), report.admission.outcome) == ([], run_pb2.ADMISSION_OUTCOME_ADMITTED)
    request.run_spec.pipeline_spec_digest = TWO
    report = await world.call("DryRun", request)
    assert [each.field for each in report.blockers] == ["pipelineSpecDigest"]
    assert list(report.admission.gates) == [digest]


async def test_a_run_was_informed_by_the_evaluations_of_its_gates(world: World) -> None:
    """So what a run was let in by is upstream of it: verdict, rule and version."""
    await world.gate(("", "", world.rule, "animus"))
    evaluation = await world.judge(3)
    run = await world.run()
    walked = await world.call(
        "GetLineage",
        lineage_pb2.GetLineageRequest(
            project_id=world.project_id, node=run.record.name, direction=lineage_pb2.LINEAGE_DIRECTION_UPSTREAM
        ),
    )
    start = f"projects/{world.project_id}"
    found = {(each.subject, each.relation, each.object) for each in walked.edges}
    name = f"{start}/qualityEvaluations/{evaluation}"
    assert (run.record.name, lineage_pb2.LINEAGE_RELATION_WAS_INFORMED_BY, name) in found
    assert (name, lineage_pb2.LINEAGE_RELATION_USED, f"{start}/qualityRules/{world.rule}") in found


async def test_gates_are_set_read_and_lifted(world: World) -> None:
    """The newest of a pipeline is the one that governs; all that were ever set are listed; a rule must be there."""
    project = {"project_id": world.project_id}
    for pipeline, message in (("", "of the project"), ("demo", "of the pipeline demo")):
        with pytest.raises(Failure) as found:
            await world.call("GetQualityGate", quality_gate_pb2.GetQualityGateRequest(**project, pipeline=pipeline))
        assert (found.value.reason, found.value.code) == ("QUALITY_GATE_UNKNOWN", "NOT_FOUND")
        assert message in found.value.message
    set_by = [await world.gate(("", "", TWO, "dbt"), pipeline=pipeline) for pipeline in ("", "demo", "")]
    assert (await world.run()).reason == "GATE_NOT_PASSED"
    lifted = [await world.gate(pipeline=pipeline) for pipeline in ("", "demo")]
    run = await world.run()
    assert (list(run.admission.gates), verdicts(run)) == (sorted(lifted), [])
    newest = await world.call("GetQualityGate", quality_gate_pb2.GetQualityGateRequest(**project, pipeline="demo"))
    assert (newest.record.digest, newest.set_time) == (lifted[1], newest.record.create_time)
    assert newest.record.name == f"projects/{world.project_id}/qualityGates/{lifted[1]}"
    listed, token = list[str](), ""
    while token or not listed:
        page = await world.call(
            "ListQualityGates",
            quality_gate_pb2.ListQualityGatesRequest(**project, page_size=2, page_token=token),
        )
        listed += [each.record.digest for each in page.quality_gates]
        token = page.next_page_token
    assert listed == [*lifted[::-1], *set_by[::-1]]
    again = set_gate(world.project_id, pipeline="demo", request_id="twice")
    assert same(await world.call("SetQualityGate", again), await world.call("SetQualityGate", again))
    unknown = set_gate(world.project_id, ("", "", world.rule, "animus"), ("", "", TWO, "animus"))
    with pytest.raises(Failure) as found:
        await world.call("SetQualityGate", unknown)
    assert (found.value.reason, TWO in found.value.metadata["name"]) == ("QUALITY_RULE_UNKNOWN", True)
    twice = set_gate(world.project_id, ("", "", TWO, "dbt"), ("", "", TWO, "dbt"))
    with pytest.raises(Failure) as found:
        await world.call("SetQualityGate", twice)
    assert found.value.fields.keys() == {"qualityGate.requirements[1]"}


async def test_runs_that_meet_a_gate_being_set_see_it_or_not(world: World) -> None:
    """Each is decided by the gates of one moment: in without a gate, or refused by it; none slips in afterwards."""
    gate_set = asyncio.Event()

    async def set_it() -> None:
        await world.gate(("", "", world.rule, "animus"))
        gate_set.set()

    async def run() -> tuple[bool, Any]:
        late = gate_set.is_set()
        return late, await world.run()

    runs: list[asyncio.Task[tuple[bool, Any]]] = []
    setting = None
    while len(runs) < 24 or not gate_set.is_set() or not runs[-1].result()[0]:
        runs += [asyncio.ensure_future(run()) for _ in range(4)]
        if len(runs) == 12:
            setting = asyncio.ensure_future(set_it())
        await asyncio.gather(*runs)
    assert setting is not None
    await setting
    for late, found in (task.result() for task in runs):
        if isinstance(found, Failure):
            assert found.reason == "GATE_NOT_PASSED"
        else:
            assert not late
            assert list(found.admission.gates) == []


def reads(node: dict[str, Any], *, under_sort: bool = False) -> dict[str, tuple[str, bool, str]]:
    """The tables that a plan reads: how, whether what is read is sorted then, and the condition of the index."""
    under_sort = under_sort or node["Node Type"] == "Sort"
    found = dict[str, tuple[str, bool, str]]()
    for child in node.get("Plans", []):
        found |= reads(child, under_sort=under_sort)
    if "Relation Name" in node:
        found[node["Relation Name"]] = (node["Node Type"], under_sort, node.get("Index Cond", ""))
    return found


async def test_what_gates_ask_is_found_by_indexes(world: World) -> None:
    """The newest gate and the newest verdict are each the first row of an index; another order would be sorted."""
    values = {
        "project_id": world.project_id, "pipeline": "demo", "refs": ["data"], "datasets": ["data"],
        "contents": [ONE], "digest": ONE, "environment": ONE,
    }  # fmt: skip
    other = text("SELECT document FROM animus.quality_gate WHERE project_id = :project_id ORDER BY document LIMIT 1")
    plans = []
    async with world.server.running.engine.connect() as connection, connection.begin():
        scope = text("SELECT set_config('animus.project_id', :id, true)")
        await connection.execute(scope, {"id": world.project_id})
        await connection.execute(text("SET LOCAL enable_seqscan = off"))
        await connection.execute(text("SET LOCAL enable_bitmapscan = off"))
        for statement in (records._GATE_FACTS, records._RUN_SPEC_FACTS, other):
            bound = {name: values[name] for name in statement._bindparams}
            (plan,) = (await connection.execute(text(f"EXPLAIN (FORMAT JSON) {statement.text}"), bound)).scalars()
            plans.append(reads((json.loads(plan) if isinstance(plan, str) else plan)[0]["Plan"]))
    gates, facts, sorted_gates = plans
    assert gates.keys() == {"quality_gate", "quality_evaluation"}
    for how, under_sort, condition in gates.values():
        assert (how, under_sort) == ("Index Scan", False)
        assert "project_id" in condition
    assert "pipeline" in gates["quality_gate"][2]
    for column in ("dataset_id", "content_digest", "rule_digest", "evaluator"):
        assert column in gates["quality_evaluation"][2]
    assert facts["quality_gate"][0] in ("Index Scan", "Index Only Scan")
    assert sorted_gates["quality_gate"][1]


async def test_a_bundle_has_all_that_gates_rest_on(server: Server, tmp_path: Path) -> None:
    """Gates, verdicts, and of ours rule, profile and references, each with the entry that registered it."""
    call = server.admin
    await registered_version(call)
    other = await call("RegisterQualityProfile", profile(2))
    ks = {"name": "shift", "type": "KS", "column": "x", "maximum": "0.5"}
    made = await call("RegisterQualityRule", rule({**ks, "reference_profile_digest": other.record.digest}))
    measured = await call("RegisterQualityProfile", profile(5))
    judged = await call("EvaluateQuality", evaluate(made.record.digest, measured.record.digest))
    warned = await call("RecordForeignEvaluation", foreign("WARN"))
    gate = await call("SetQualityGate", set_gate("p", ("", "", made.record.digest, "animus"), ("data", "", TWO, "dbt")))
    spec = await prepare(call)
    refused = await gathered([call("CreateRun", create_run(spec, "refused"))])
    assert refused[0].reason == "GATE_NOT_PASSED"
    run = await call("CreateRunOverridingGates", overriding(spec, "p", "the column is new"))
    bundle = zipfile.ZipFile(BytesIO(await exported(call, export(run.run_id))))
    files = {name.partition("/")[2]: bundle.read(name) for name in bundle.namelist()}
    bound = {name[len("data/bound/") : -len(".json")] for name in files if name.startswith("data/bound/")}
    expected = [
        ("quality_gate", gate), ("quality_evaluation", judged), ("quality_evaluation", warned),
        ("quality_rule", made), ("quality_profile", measured), ("quality_profile", other),
    ]  # fmt: skip
    names = {f"{kind}-{each.record.digest[7:]}" for kind, each in expected}
    assert {name for name in bound if name.startswith("quality_")} == names
    registered = {
        record["digest"]
        for name, content in files.items()
        if name.startswith("data/proofs/") and name.endswith(".json")
        for record in json.loads(content)["records"]
    }
    assert {each.record.digest for _, each in expected} <= registered
    assert files["data/renderings/prov.json"].count(b"animus:QualityEvaluation") == 2


async def test_a_refusal_in_the_log_leaves_other_runs_verified(server: Server, tmp_path: Path) -> None:
    """A bundle of a run that was let in before has the entry of the refusal too, and so has a bundle of the log."""
    run_id = await finished_run(server)
    await server.admin("SetQualityGate", set_gate("p", ("", "", TWO, "dbt")))
    spec = await prepare(server.admin, tree=three_steps())
    (refused,) = await gathered([server.admin("CreateRun", create_run(spec, "refused"))])
    assert refused.reason == "GATE_NOT_PASSED"
    (key,) = (await server.admin("GetLog", log_pb2.GetLogRequest(project_id="p"))).keys
    for request in (export(run_id, "run"), export("", "log")):
        path = tmp_path / f"{request.request_id}.zip"
        path.write_bytes(await exported(server.admin, request))
        assert animus_verify.main([str(path), "--trust", key.vkey, "--accept", "signed"]) == 0
