"""OpenLineage in and out: its own client against gateway and server, and what is exported, by its own schemas."""

import asyncio
import io
import json
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import prov.model as prov_model
import pytest
from animus_gateway.main import open_channel, serve_gateway
from domain.test_external_lineage import RUN, dataset, event
from domain.test_openlineage import FOLDER, check
from google.protobuf import json_format
from openlineage.client import OpenLineageClient
from openlineage.client.event_v2 import InputDataset, Job, OutputDataset, Run, RunEvent, RunState
from openlineage.client.facet_v2 import dataset_version_dataset, error_message_run, parent_run
from openlineage.client.transport.http import ApiKeyTokenProvider, HttpCompression, HttpConfig, HttpTransport
from sqlalchemy.ext.asyncio import AsyncEngine

from animus.domain.external_lineage import MAX_EVENT_BYTES, edges_of_event, parse_event
from animus.domain.names import external_run_name
from animus.store.embedded import EmbeddedPostgres
from animus.v1 import audit_pb2, evidence_pb2, lineage_pb2, log_pb2
from service.bundles import exported
from service.conftest import Caller, Failure, Server, gathered
from service.requests import ONE, TWO, create_run, external_event, plan_run, prepare, report, version
from service.requests import event as step_event
from service.shared import after_first, executing, served
from service.test_evidence_verified import verify
from service.test_lineage import BOTH, DOWN, UP, lineage, names
from service.test_reproduction import executed

NODE = f"projects/p/externalRuns/{RUN}"
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
async def shared(
    postgres: EmbeddedPostgres, admin: AsyncEngine, template: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Server]:
    """A server for these tests."""
    async with served(postgres, admin, template, tmp_path_factory.mktemp("data")) as found:
        await found.project("p")
        yield found


@pytest.fixture(scope="module")
async def http(shared: Server) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a gateway in front of the server."""
    async with open_channel(shared.running.grpc, 64 << 20) as channel:
        gateway = await serve_gateway(channel, "127.0.0.1", 0)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{gateway.port}", trust_env=False) as client:
            yield client
        await gateway.stop()


@pytest.fixture(scope="module")
async def runtime(shared: Server) -> Caller:
    """A runtime of the project `p`."""
    return await shared.caller("p", "runtime")


class Client:
    """The client of OpenLineage as its users have it, with a token as its key."""

    def __init__(self, url: str, token: str, compression: HttpCompression | None = None) -> None:
        key = ApiKeyTokenProvider({"apiKey": token})
        self._client = OpenLineageClient(
            transport=HttpTransport(HttpConfig(url=url, auth=key, compression=compression))
        )

    async def emit(self, *events: RunEvent) -> None:
        """Sends events, one after the other."""
        for each in events:
            await asyncio.to_thread(self._client.emit, each)


def told(kind: str, run_id: str, second: int, **more: Any) -> RunEvent:
    """An event of the client."""
    facets = more.pop("facets", {})
    return RunEvent(
        eventType=RunState[kind],
        eventTime=f"2026-01-01T00:00:{second:02}.000000+00:00",
        run=Run(runId=run_id, facets=facets),
        job=Job(namespace="airflow", name="daily.load"),
        producer="https://example.org/airflow",
        inputs=more.get("inputs", []),
        outputs=more.get("outputs", []),
    )


async def edges_at(server: Server, node: str) -> set[tuple[str, str, str]]:
    """The edges that touch a node."""
    found = await server.admin("GetLineage", lineage(node, BOTH, max_depth=1))
    return {
        (e.subject, lineage_pb2.LineageRelation.Name(e.relation).removeprefix("LINEAGE_RELATION_").lower(), e.object)
        for e in found.edges
    }


async def external_run(server: Server, run_id: str) -> lineage_pb2.ExternalRun:
    """A run of another system, found page by page."""
    request = lineage_pb2.ListExternalRunsRequest(project_id="p", page_size=2)
    seen: list[str] = []
    match: lineage_pb2.ExternalRun | None = None
    while True:
        page = await server.admin("ListExternalRuns", request)
        seen += [run.run_id for run in page.external_runs]
        match = next((run for run in page.external_runs if run.run_id == run_id), match)
        request.page_token = page.next_page_token
        if not request.page_token:
            assert seen == sorted(set(seen))
            assert match is not None
            return match


async def texts(server: Server, run_id: str) -> list[str]:
    """The texts of the events of an external run, page by page."""
    request = lineage_pb2.ListExternalEventsRequest(project_id="p", run_id=run_id, page_size=3)
    found: list[str] = []
    while True:
        page = await server.admin("ListExternalEvents", request)
        found += [each.event for each in page.external_events]
        request.page_token = page.next_page_token
        if not request.page_token:
            return found


@pytest.mark.parametrize("compression", [None, HttpCompression.GZIP])
async def test_the_client_of_openlineage_works_unmodified(
    shared: Server, http: httpx.AsyncClient, runtime: Caller, compression: HttpCompression | None
) -> None:
    """Start, end, failure, out of order and repeated: the graph and the state are those of all events together."""
    good, bad, parent = (f"{number}{compression is None:d}{'0' * 6}-0000-4000-8000-{'0' * 12}" for number in (1, 2, 3))
    facets: dict[str, Any] = {
        "parent": parent_run.ParentRunFacet(
            run=parent_run.Run(runId=parent), job=parent_run.Job(namespace="airflow", name="daily")
        )
    }
    at_seven: dict[str, Any] = {"version": dataset_version_dataset.DatasetVersionDatasetFacet(datasetVersion="7")}
    read, wrote = InputDataset("s3://lake", "raw/cells"), OutputDataset("pg", "cells", facets=at_seven)
    start = told("START", good, 1, facets=facets, inputs=[read])
    end = told("COMPLETE", good, 3, facets=facets, inputs=[read], outputs=[wrote])
    late = told("RUNNING", good, 5)
    why: dict[str, Any] = {"errorMessage": error_message_run.ErrorMessageRunFacet("no space", "python")}
    failed = told("FAIL", bad, 2, facets=why, inputs=[read])
    client = Client(str(http.base_url), runtime.token, compression)
    await client.emit(end, start, late, end, start, failed, told("START", bad, 1), failed)
    ours = {name: f"projects/p/externalRuns/{each}" for name, each in (("good", good), ("bad", bad), ("up", parent))}
    raw, cells = ("projects/p/externalDatasets/" + name for name in ("s3%3A%2F%2Flake/raw%2Fcells", "pg/cells@7"))
    assert await edges_at(shared, ours["good"]) == {
        (ours["good"], "used", raw),
        (cells, "was_generated_by", ours["good"]),
        (ours["good"], "was_started_by", ours["up"]),
    }
    assert await edges_at(shared, ours["bad"]) == {(ours["bad"], "used", raw)}
    found = await external_run(shared, good)
    assert json_format.MessageToDict(found) == {
        "runId": good,
        "state": "EXTERNAL_EVENT_TYPE_COMPLETE",
        "jobNamespace": "airflow",
        "jobName": "daily.load",
        "firstEventTime": "2026-01-01T00:00:01Z",
        "lastEventTime": "2026-01-01T00:00:05Z",
        "eventCount": "3",
        "inputCount": "1",
        "outputCount": "1",
    }
    other = await external_run(shared, bad)
    assert (other.state, other.event_count) == (lineage_pb2.EXTERNAL_EVENT_TYPE_FAIL, 2)
    kept = [json.loads(text) for text in await texts(shared, bad)]
    assert [each["eventType"] for each in kept] == ["START", "FAIL"]
    assert kept[1]["run"]["facets"]["errorMessage"]["message"] == "no space"


async def test_every_facet_is_kept_as_it_was_sent(shared: Server, http: httpx.AsyncClient, runtime: Caller) -> None:
    """The examples of the specification, one event each, come back as the same text, in order of time."""
    headers = {"authorization": f"Bearer {runtime.token}"}
    run_id = f"{'a' * 8}-0000-4000-8000-{'0' * 12}"
    sent = []
    for number, path in enumerate(sorted((FOLDER / "examples").glob("*.json"))):
        facets = json.loads(path.read_text())
        if "parent" in facets:
            continue
        time = f"2026-01-01T00:00:{number:02}Z"
        sent.append(json.dumps(event(eventTime=time, run={"runId": run_id, "facets": facets}), indent=1))
    assert len(sent) > 15
    for text in reversed(sent):
        answer = await http.post("/v1/projects/p/lineage:openlineage", content=text, headers={**JSON, **headers})
        assert answer.status_code == 200, answer.text
        assert "event" not in answer.json()  # it would only come back
        assert "animus-audit-receipt" in answer.headers
    assert await texts(shared, run_id) == sent


async def test_the_same_event_again_is_answered_as_before(
    shared: Server, http: httpx.AsyncClient, runtime: Caller
) -> None:
    """By its bytes, over either path; under another request_id it is found, and written no second time."""
    tree = event(run={"runId": f"{'b' * 8}-0000-4000-8000-{'0' * 12}"})
    body, headers = json.dumps(tree).encode(), {**JSON, "authorization": f"Bearer {runtime.token}"}
    paths = ("/api/v1/lineage", "/v1/projects/p/lineage:openlineage", "/api/v1/lineage?projectId=p")
    answers = [await http.post(path, content=body, headers=headers) for path in paths]
    assert [each.headers.get("animus-replayed") for each in answers] == [None, "true", "true"]
    assert len({each.content for each in answers}) == 1
    again = await runtime("RecordOpenLineageEvent", external_event(tree))
    assert again.record.digest == answers[0].json()["record"]["digest"]
    assert runtime.metadata["animus-replayed"] == "true"
    other = await http.post(paths[0], content=body, headers={**headers, "idempotency-key": "another"})
    assert other.json() == answers[0].json()
    assert "animus-replayed" not in other.headers
    reused = await http.post(paths[0], content=body + b"\n", headers={**headers, "idempotency-key": "another"})
    assert (reused.status_code, reused.json()["details"][0]["reason"]) == (409, "REQUEST_ID_REUSED")
    entries = audit_pb2.ListAuditEntriesRequest(project_id="p", resource=external_run_name("p", tree["run"]["runId"]))
    found = (await shared.admin("ListAuditEntries", entries)).audit_entries
    outcomes = [audit_pb2.AuditOutcome.Name(each.outcome).removeprefix("AUDIT_OUTCOME_") for each in found]
    assert outcomes == ["ACCEPTED", "UNCHANGED"]
    assert [len(each.records) for each in found] == [4, 0]


async def test_events_that_come_at_once_are_one_graph(shared: Server, runtime: Caller) -> None:
    """The same from many, and others of the same run beside it: each event once, each edge at least once."""
    run_id = f"{'c' * 8}-0000-4000-8000-{'0' * 12}"
    trees = [event(eventType=kind, run={"runId": run_id}) for kind in ("START", "COMPLETE")] * 4
    calls = [
        runtime("RecordOpenLineageEvent", external_event(tree, f"at-once-{number}"))
        for number, tree in enumerate(trees)
    ]
    replies = await gathered(calls)
    assert len({reply.record.digest for reply in replies}) == 2
    assert (await external_run(shared, run_id)).event_count == 2
    wanted = edges_of_event("p", parse_event(json.dumps(trees[0]).encode()))
    node = external_run_name("p", run_id)
    assert await edges_at(shared, node) == {(edge.subject, str(edge.relation), edge.object) for edge in wanted}
    found = await shared.admin("ListExternalRuns", lineage_pb2.ListExternalRunsRequest(project_id="p"))
    (counted,) = [run for run in found.external_runs if run.run_id == run_id]
    assert (counted.input_count, counted.output_count) == (2, 1)


async def test_validate_only_writes_nothing(shared: Server, runtime: Caller) -> None:
    """The same answer and the same faults."""
    run_id = f"{'d' * 8}-0000-4000-8000-{'0' * 12}"
    request = external_event(event(run={"runId": run_id}))
    request.validate_only = True
    assert (await runtime("RecordOpenLineageEvent", request)).run_id == run_id
    assert await texts(shared, run_id) == []
    with pytest.raises(Failure) as found:
        await shared.admin("GetLineage", lineage(external_run_name("p", run_id)))
    assert found.value.reason == "LINEAGE_NODE_UNKNOWN"


async def test_what_is_not_taken_is_refused_by_path(shared: Server, http: httpx.AsyncClient, runtime: Caller) -> None:
    """Over HTTP with the status and the field; nothing of it is kept."""
    base = {key: event()[key] for key in ("eventTime", "producer", "schemaURL")}
    bad: dict[str, object] = {
        "event": {**base, "dataset": dataset("a")},
        "event.run.runId": event(run={"runId": "x"}),
        "event.inputs[0].facets.version._producer": event(inputs=[{**dataset("a"), "facets": {"version": {}}}]),
    }
    headers = {**JSON, "authorization": f"Bearer {runtime.token}"}
    for field, tree in bad.items():
        answer = await http.post("/api/v1/lineage", json=tree, headers=headers)
        assert answer.status_code == 400
        assert [each["field"] for each in answer.json()["details"][1]["fieldViolations"]] == [field]
    for body in (b"", b"\xff", b'{"a":1,"a":2}'):
        answer = await http.post("/api/v1/lineage", content=body, headers=headers)
        assert (answer.status_code, answer.json()["details"][0]["reason"]) == (400, "FIELD_INVALID")
    wrong = external_event(event())
    wrong.event.content_type = "text/plain"
    extended = external_event(event())
    extended.event.extensions.add(type_url="x")
    for request, field in ((wrong, "event.contentType"), (extended, "event.extensions")):
        with pytest.raises(Failure) as found:
            await runtime("RecordOpenLineageEvent", request)
        assert list(found.value.fields) == [field]


async def test_who_may_tell_of_what(shared: Server, http: httpx.AsyncClient) -> None:
    """The project is that of the token; the instance has none; a viewer may not; another's project is unknown."""
    await shared.project("other")
    theirs = await shared.caller("other", "operator")
    answers = []
    for caller, query in (
        (shared.admin, ""),
        (await shared.caller("p", "viewer"), ""),
        (theirs, "?projectId=p"),
        (theirs, ""),
        (shared.admin, "?projectId=other"),
    ):
        headers = {"authorization": f"Bearer {caller.token}"}
        answer = await http.post(f"/api/v1/lineage{query}", json=event(), headers=headers)
        answers.append((answer.status_code, "" if answer.is_success else answer.json()["details"][0]["reason"]))
    refused = [(400, "FIELD_INVALID"), (403, "ROLE_MISSING"), (404, "PROJECT_UNKNOWN")]
    assert answers == [*refused, (200, ""), (200, "")]
    listed = await theirs("ListExternalRuns", lineage_pb2.ListExternalRunsRequest(project_id="other"))
    assert [run.run_id for run in listed.external_runs] == [RUN]
    for method, request in (
        ("ListExternalEvents", lineage_pb2.ListExternalEventsRequest(project_id="other", run_id=RUN.upper())),
        ("ExportOpenLineage", lineage_pb2.ExportOpenLineageRequest(project_id="other", run_id="x")),
    ):
        with pytest.raises(Failure) as found:
            await theirs(method, request)
        assert list(found.value.fields) == ["runId"]


async def ndjson(caller: Caller, run_id: str) -> list[bytes]:
    """The lines of an export of a run."""
    request = lineage_pb2.ExportOpenLineageRequest(project_id="p", run_id=run_id)
    parts = await caller.stream("ExportOpenLineage", request)
    assert {part.content_type for part in parts} == {"application/x-ndjson"}
    return b"".join(part.data for part in parts).splitlines()


async def test_a_run_is_exported_at_every_stage_and_leads_back_to_the_same_things(server: Server) -> None:
    """Each event is valid; at the end they are those of the bundle; taken in, they name the same versions."""
    spec = await prepare(server.admin)
    run_id = (await server.admin("CreateRun", create_run(spec))).run_id
    stages = [await ndjson(server.admin, run_id)]
    await server.admin("PlanRun", plan_run(run_id))
    await server.admin("ReportStepEvents", report(run_id, step_event("first", 1, "STARTED")))
    stages.append(await ndjson(server.admin, run_id))
    await executed(server.admin, run_id, attempts=2)
    stages.append(await ndjson(server.admin, run_id))
    for lines in stages:
        for line in lines:
            check(json.loads(line))
    kinds = [[json.loads(line)["eventType"] for line in lines] for lines in stages]
    assert kinds == [
        ["START"],
        ["START", "START"],
        ["START", "START", "FAIL", "START", "COMPLETE", "START", "COMPLETE", "COMPLETE"],
    ]
    request = evidence_pb2.ExportEvidenceRequest(project_id="p", request_id="e", run_id=run_id)
    parts = await server.admin.stream("ExportEvidence", request)
    with zipfile.ZipFile(io.BytesIO(b"".join(part.data for part in parts))) as bundle:
        (name,) = [name for name in bundle.namelist() if name.endswith("renderings/openlineage.ndjson")]
        assert bundle.read(name).splitlines() == stages[-1]
    for line in stages[-1]:
        await server.admin("RecordOpenLineageEvent", external_event(json.loads(line)))
    found = await server.admin("GetLineage", lineage(f"projects/p/artifacts/{TWO}", UP, max_depth=1))
    kinds_of = {node.kind for node in found.nodes}
    assert kinds_of == {3, 2, 10}  # an artifact, our attempt, and an external run that says it wrote it
    with pytest.raises(Failure) as failed:
        await ndjson(server.admin, "0" * 32)
    assert failed.value.reason == "RUN_UNKNOWN"


async def test_an_external_run_joins_ours_by_a_version_in_whichever_order(shared: Server, runtime: Caller) -> None:
    """It is told what wrote a version, and the version is registered and used, before or after."""
    spec = await prepare(shared.admin)
    run_id = f"{'e' * 8}-0000-4000-8000-{'0' * 12}"
    wrote = event(run={"runId": run_id}, inputs=[dataset("raw")], outputs=[dataset("data", ONE), dataset("data", TWO)])
    await runtime("RecordOpenLineageEvent", external_event(wrote))
    await shared.admin("RegisterDatasetVersion", version("p", TWO))
    spec.datasets[0].content_digest = TWO
    ours = []
    for digest in (ONE, TWO):
        spec.datasets[0].content_digest = digest
        made = await shared.admin("CreateRun", create_run(spec, f"run-{digest[-1]}"))
        ours.append(f"projects/p/runs/{made.run_id}")
    told_by, raw = external_run_name("p", run_id), "projects/p/externalDatasets/pg/raw"
    for name in ours:
        up = await shared.admin("GetLineage", lineage(name, UP))
        assert {told_by, raw} <= set(names(up.nodes))
        assert {node.name: node.kind for node in up.nodes}[raw] == lineage_pb2.LINEAGE_NODE_KIND_EXTERNAL_DATASET
    impact = await shared.admin("GetImpact", lineage_pb2.GetImpactRequest(project_id="p", node=raw))
    assert set(ours) <= set(names(impact.runs))
    assert lineage_pb2.LINEAGE_NODE_KIND_EXTERNAL_RUN in {count.kind for count in impact.counts}


Prov = tuple[dict[str, Any], prov_model.ProvDocument]


async def test_the_largest_event_is_taken_and_its_records_are_in_the_bundle_of_the_log(
    server: Server, tmp_path: Path
) -> None:
    """A mebibyte with 2,000 datasets: an edge for each, and all of it verified offline with the log."""
    tree = event(outputs=[], inputs=[dataset(f"t{number}") for number in range(2_000)])
    tree["job"]["facets"] = {"x": {"_producer": "p", "_schemaURL": "s", "text": ""}}
    room = MAX_EVENT_BYTES - len(json.dumps(tree))
    tree["job"]["facets"]["x"]["text"] = "x" * room
    request = external_event(tree)
    assert len(request.event.data) == MAX_EVENT_BYTES
    await server.admin("RecordOpenLineageEvent", request)
    found = await server.admin("ListExternalRuns", lineage_pb2.ListExternalRunsRequest(project_id="p"))
    assert [(run.input_count, run.output_count) for run in found.external_runs] == [(2_000, 0)]
    data = await exported(server.admin, evidence_pb2.ExportEvidenceRequest(project_id="p", request_id="e"))
    path = tmp_path / "bundle.zip"
    path.write_bytes(data)
    log = await server.admin("GetLog", log_pb2.GetLogRequest(project_id="p"))
    said = verify(path, [key.vkey for key in log.keys])
    assert said.verdict == "SIGNED", said
    with zipfile.ZipFile(path) as bundle:
        (name,) = [name for name in bundle.namelist() if "/records/" in name]
        assert request.event.data.decode()[:50].encode() in bundle.read(name).replace(b'\\"', b'"')


async def prov(caller: Caller, node: str, direction: Any, **more: Any) -> Prov:
    """A part of the graph as its tree, and as the prov library reads it."""
    request = lineage_pb2.ExportProvRequest(project_id="p", node=node, direction=direction, **more)
    parts = await caller.stream("ExportProv", request)
    assert {part.content_type for part in parts} == {"application/json"}
    text = b"".join(part.data for part in parts).decode()
    found = prov_model.ProvDocument.deserialize(content=text, format="json")
    assert isinstance(found, prov_model.ProvDocument)
    return json.loads(text), found


async def test_any_part_of_the_graph_is_exported_as_prov(server: Server) -> None:
    """The nodes and edges of the walk, each node by its kind; a join is an alternate; it says what it is of."""
    run_id = (await server.admin("CreateRun", create_run(await prepare(server.admin)))).run_id
    await server.admin("PlanRun", plan_run(run_id))
    await executed(server.admin, run_id)
    await server.admin("RegisterDatasetVersion", version("p", TWO))
    await server.admin("RecordOpenLineageEvent", external_event(event(inputs=[dataset("data", TWO)])))
    walked = await server.admin("GetLineage", lineage(NODE, UP))
    tree, found = await prov(server.admin, NODE, UP)
    activities = {lineage_pb2.LINEAGE_NODE_KIND_RUN, lineage_pb2.LINEAGE_NODE_KIND_STEP_ATTEMPT}
    activities.add(lineage_pb2.LINEAGE_NODE_KIND_EXTERNAL_RUN)
    happened = [node for node in walked.nodes if node.kind in activities]
    assert len(list(found.get_records(prov_model.ProvActivity))) == len(tree["activity"]) == len(happened)
    assert len(list(found.get_records(prov_model.ProvEntity))) == len(walked.nodes) - len(happened) + 1
    relations = ("used", "wasGeneratedBy", "wasStartedBy", "wasInformedBy", "wasDerivedFrom")
    assert sum(len(tree.get(each, {})) for each in relations) == len(walked.edges)
    assert len(walked.joins) == len(tree["alternateOf"]) == len(list(found.get_records(prov_model.ProvAlternate))) == 1
    assert all(part["prov:type"] for kind in ("activity", "entity") for part in tree[kind].values())
    subgraph = tree["entity"]["animus:subgraph"]
    assert (subgraph["animus:truncated"], subgraph["animus:direction"]) == (False, "upstream")
    runs = [lineage_pb2.LINEAGE_NODE_KIND_RUN, lineage_pb2.LINEAGE_NODE_KIND_STEP_ATTEMPT]
    some, _ = await prov(server.admin, NODE, UP, max_depth=4, kinds=runs)
    assert some["entity"].keys() == {"animus:subgraph"}
    assert some["entity"]["animus:subgraph"]["animus:truncated"] is True
    assert some.keys() - {"prefix", "entity", "activity"} <= {"wasStartedBy"}


async def test_lineage_as_of_an_index_is_what_the_entries_below_it_wrote(server: Server) -> None:
    """It grows to the whole, entry by entry; beyond the log it is refused, as are both at once."""
    run_id = (await server.admin("CreateRun", create_run(await prepare(server.admin)))).run_id
    await server.admin("PlanRun", plan_run(run_id))
    await executed(server.admin, run_id)
    await server.admin("RecordOpenLineageEvent", external_event(event(inputs=[dataset("data", ONE)])))
    await server.published("p")
    source = f"projects/p/datasets/data/versions/{ONE}"
    listed = await server.admin("ListAuditEntries", audit_pb2.ListAuditEntriesRequest(project_id="p"))
    entries = listed.audit_entries
    sizes = []
    for index in range(len(entries) + 1):
        try:
            found = await server.admin("GetLineage", lineage(source, as_of_index=index))
        except Failure as failure:
            assert failure.reason == "LINEAGE_NODE_UNKNOWN"
            sizes.append(0)
            continue
        sizes.append(len(found.nodes))
        request = lineage_pb2.GetImpactRequest(project_id="p", node=source, as_of_index=index)
        counted = await server.admin("GetImpact", request)
        reached = {node.name for node in found.nodes} | {node.name for node in counted.runs}
        assert sum(count.count for count in counted.counts) == len(reached) - 1
    whole = await server.admin("GetLineage", lineage(source))
    assert (sizes[0], sizes[-1], sizes) == (0, len(whole.nodes), sorted(sizes))
    assert NODE in names(whole.nodes)
    tree, _ = await prov(server.admin, source, DOWN, as_of_index=len(entries))
    assert tree["entity"]["animus:subgraph"]["animus:asOfIndex"] == len(entries)
    with pytest.raises(Failure) as failed:
        await server.admin("GetLineage", lineage(source, as_of_index=10_000))
    assert (failed.value.reason, failed.value.metadata["size"]) == ("LOG_TOO_SMALL", str(len(entries)))
    both = lineage(source, as_of_index=1)
    both.as_of_time.GetCurrentTime()
    both.as_of_time.nanos = 0
    with pytest.raises(Failure) as failed:
        await server.admin("GetLineage", both)
    assert list(failed.value.fields) == ["asOfIndex"]


async def test_pages_are_of_the_time_of_the_first(server: Server) -> None:
    """What is written between two pages is on none; a token is good for its own question alone."""
    sent = [event(inputs=[dataset(name)], outputs=[], run={"runId": RUN}) for name in "bdfh"]
    for tree in sent:
        await server.admin("RecordOpenLineageEvent", external_event(tree))
    walks: list[str] = []

    async def meanwhile() -> None:
        tree = event(inputs=[dataset("a")], outputs=[], run={"runId": RUN})
        await server.admin("RecordOpenLineageEvent", external_event(tree))

    with after_first(server, ("SELECT * FROM animus.open_call",), meanwhile), executing(server, walks.append):
        first = await server.admin("GetLineage", lineage(NODE, UP, max_nodes=2))
    assert (len(first.nodes), len(first.edges), first.truncated) == (2, 1, False)
    assert sum("CROSS JOIN LATERAL" in each for each in walks) == 4  # two levels, twice
    with executing(server, walks.append):
        assert (await server.admin("GetLineage", lineage(NODE, UP, max_nodes=2))).next_page_token
    assert sum("CROSS JOIN LATERAL" in each for each in walks) == 6  # nothing was written meanwhile: once
    for name in "ceg":
        tree = event(inputs=[dataset(name)], outputs=[], run={"runId": RUN})
        await server.admin("RecordOpenLineageEvent", external_event(tree))
    rest = await server.admin("GetLineage", lineage(NODE, UP, max_nodes=2, page_token=first.next_page_token))
    last = await server.admin("GetLineage", lineage(NODE, UP, max_nodes=2, page_token=rest.next_page_token))
    pages = [*first.nodes, *rest.nodes, *last.nodes]
    assert [node.name.rpartition("/")[2] for node in pages] == [RUN, "b", "d", "f", "h"]
    assert (last.next_page_token, len(rest.edges), len(last.edges)) == ("", 2, 1)
    assert len((await server.admin("GetLineage", lineage(NODE, UP))).nodes) == 9
    others = [lineage(NODE, UP, max_nodes=3), lineage(NODE, BOTH, max_nodes=2)]
    for other in (*others, lineage(NODE, UP, max_nodes=2, max_depth=9)):
        other.page_token = first.next_page_token
        with pytest.raises(Failure) as failed:
            await server.admin("GetLineage", other)
        assert failed.value.reason == "PAGE_TOKEN_INVALID"
