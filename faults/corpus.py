"""Requests that a new instance takes one after the other, and what is learned of its ids and digests on the way."""

import base64
import importlib
import json
import pkgutil
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

import animus.v1

PROJECT = "fuzz"
ONE, TWO = ("sha256:" + digit * 64 for digit in "12")
TIME = "2026-01-02T03:04:05.678901Z"

Tree = dict[str, Any]
Learned = dict[str, list[str]]  # by name of the field: the texts that the instance has for it
Corpus = list[tuple[MethodDescriptor, Message]]
Send = Callable[[str, bytes], Awaitable[bytes]]


def methods() -> list[MethodDescriptor]:
    """Every RPC of the contract, by name."""
    names = [module.name for module in pkgutil.iter_modules(animus.v1.__path__) if module.name.endswith("_pb2")]
    files = [importlib.import_module(f"animus.v1.{name}").DESCRIPTOR for name in names]
    found = [rpc for file in files for service in file.services_by_name.values() for rpc in service.methods]
    return sorted(found, key=lambda rpc: rpc.full_name)


def _step(name: str, inputs: Tree, outputs: list[Tree]) -> Tree:
    return {
        "name": name,
        "image": f"registry.test/{name}@sha256:{'a' * 64}",
        "command": ["python"],
        "args": ["-m", name],
        "inputs": {"datasets": [], "artifacts": [], **inputs},
        "outputs": {"artifacts": outputs},
        "env": [{"name": "MODE", "value": "fuzz", "secretRef": ""}],
        "resources": {"cpu": "1", "memory": "1Gi", "gpu": 0},
        "retryPolicy": {
            "maxAttempts": 2,
            "retryOn": ["ERROR_KIND_SYSTEM"],
            "backoff": {"type": "BACKOFF_TYPE_FIXED", "initialSeconds": 1, "maxSeconds": 1, "multiplier": "1"},
        },
    }


PIPELINE: Tree = {
    "apiVersion": "animus/v1",
    "kind": "Pipeline",
    "metadata": {"name": "fuzz", "description": "", "labels": [{"key": "team", "value": "a"}]},
    "spec": {
        "steps": [
            _step(
                "first",
                {"datasets": [{"name": "data", "datasetRef": "data"}]},
                [{"name": "table", "type": "file", "mediaType": "text/csv"}],
            ),
            _step("second", {"artifacts": [{"name": "t", "fromStep": "first", "artifact": "table"}]}, []),
        ],
        "dependencies": [{"step": "second", "dependsOn": "first"}],
    },
}
RUN_SPEC: Tree = {
    "apiVersion": "animus/v1",
    "kind": "Run",
    "pipelineSpecDigest": "<pipeline>",
    "datasets": [{"datasetRef": "data", "datasetId": "data", "contentDigest": ONE}],
    "commit": {"repository": "https://git.test/fuzz", "sha": "c" * 40},
    "environmentLockDigest": "<lock>",
    "parameters": [{"name": "seed", "type": "PARAMETER_TYPE_INT", "value": "7"}],
}
CHECK: Tree = {
    "name": "rows",
    "severity": "QUALITY_SEVERITY_ERROR",
    "type": "QUALITY_CHECK_TYPE_ROW_COUNT",
    **dict.fromkeys(("column", "maximum", "pattern", "probability", "metric", "referenceProfileDigest"), ""),
    "minimum": "2",
}
EVENT: Tree = {
    "eventType": "COMPLETE",
    "eventTime": "2026-01-02T03:04:05Z",
    "producer": "https://example.org/producer",
    "schemaURL": "https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/RunEvent",
    "run": {"runId": "0190a0a0-0000-7000-8000-000000000001"},
    "job": {"namespace": "fuzz", "name": "job"},
    "inputs": [{"namespace": "s3://fuzz", "name": "in"}],
    "outputs": [],
}


def _event(kind: str) -> Tree:
    return {
        "eventId": f"first-{kind.lower()}",
        "step": "first",
        "attempt": 1,
        "type": f"STEP_EVENT_TYPE_{kind}",
        "errorKind": "ERROR_KIND_UNSPECIFIED",
        "message": "",
        "occurTime": TIME,
    }


# Method, request without project_id and request_id, and what a field of the reply is called in later requests.
REQUESTS: list[tuple[str, Tree, dict[str, str]]] = [
    ("CreateProject", {"project": {"projectId": PROJECT, "displayName": "", "description": ""}}, {}),
    ("CreateDataset", {"dataset": {"datasetId": "data", "description": ""}}, {"entry": "auditEntryId"}),
    (
        "RegisterDatasetVersion",
        {
            "datasetVersion": {
                "datasetId": "data",
                "contentDigest": ONE,
                "sizeBytes": "1",
                "mediaType": "text/csv",
                "rowCount": "-1",
                "source": "",
                "licence": "",
                "uris": ["file:///data.csv"],
            }
        },
        {},
    ),
    ("SetDatasetVersionUris", {"datasetId": "data", "contentDigest": ONE, "uris": ["s3://bucket/data.csv"]}, {}),
    (
        "VerifyDatasetVersion",
        {"datasetId": "data", "contentDigest": ONE, "foundDigest": ONE, "foundSizeBytes": "1", "location": "s3://copy"},
        {},
    ),
    (
        "RegisterEnvironmentLock",
        {
            "environmentLock": {
                "pythonVersion": "3.11.7",
                "platformOs": "linux",
                "platformArchitecture": "x86_64",
                "lockFileDigest": "",
            }
        },
        {"lock": "digest"},
    ),
    ("ValidatePipelineSpec", {"pipelineSpec": PIPELINE}, {}),
    ("RegisterPipelineSpec", {"pipelineSpec": PIPELINE}, {"pipeline": "digest"}),
    (
        "RegisterQualityRule",
        {"qualityRule": {"ruleId": "fit", "description": "", "checks": [CHECK]}},
        {"rule": "digest"},
    ),
    (
        "RegisterQualityProfile",
        {
            "qualityProfile": {
                "datasetId": "data",
                "contentDigest": ONE,
                "profiler": "by hand 1",
                "rowCount": "3",
                "sizeBytes": "1",
                "columns": [],
            }
        },
        {"profile": "digest"},
    ),
    ("EvaluateQuality", {"ruleDigest": "<rule>", "profileDigest": "<profile>"}, {"evaluation": "digest"}),
    (
        "RecordForeignEvaluation",
        {
            "qualityEvaluation": {
                "datasetId": "data",
                "contentDigest": ONE,
                "ruleDigest": TWO,
                "ruleName": "not_null",
                "profileDigest": TWO,
                "evaluator": "dbt",
                "evaluatorVersion": "1.9",
                "verdict": "QUALITY_VERDICT_PASS",
                "results": [
                    {
                        "check": "not_null",
                        "severity": "QUALITY_SEVERITY_ERROR",
                        "outcome": "QUALITY_OUTCOME_PASS",
                        "observed": "",
                        "reason": "",
                    }
                ],
            }
        },
        {},
    ),
    (
        "SetQualityGate",
        {
            "qualityGate": {
                "pipeline": "",
                "requirements": [
                    {"datasetRef": "data", "datasetId": "data", "ruleDigest": "<rule>", "evaluator": "animus"}
                ],
                "overrideAllowed": True,
            }
        },
        {},
    ),
    ("DryRun", {"runSpec": RUN_SPEC, "scenarios": [{"name": "plain", "attemptSeconds": 10, "failures": []}]}, {}),
    ("CreateRun", {"runSpec": RUN_SPEC, "labels": [{"key": "team", "value": "a"}]}, {"run": "runId", "node": "name"}),
    ("CreateRunOverridingGates", {"runSpec": RUN_SPEC, "labels": [], "reason": "fuzz"}, {"other": "runId"}),
    ("PlanRun", {"runId": "<run>"}, {}),
    ("PlanRun", {"runId": "<other>"}, {}),
    ("ReportStepEvents", {"runId": "<run>", "events": [_event("STARTED")]}, {}),
    (
        "RegisterArtifacts",
        {
            "runId": "<run>",
            "artifacts": [
                {"step": "first", "attempt": 1, "name": "table", "digest": TWO, "sizeBytes": "3", "uri": "s3://t"}
            ],
        },
        {},
    ),
    (
        "RecordMetrics",
        {
            "runId": "<run>",
            "metrics": [
                {"step": "first", "attempt": 1, "name": "loss", "index": "0", "value": "0.5", "occurTime": TIME}
            ],
        },
        {},
    ),
    ("ReportStepEvents", {"runId": "<run>", "events": [_event("SUCCEEDED")]}, {}),
    ("ReplayRun", {"runId": "<run>", "labels": []}, {}),
    ("CancelRun", {"runId": "<other>", "reason": "fuzz"}, {}),
    ("CompareRuns", {"runId": "<run>", "otherRunId": "<other>"}, {}),
    ("RecordOpenLineageEvent", {"event": {"data": base64.b64encode(json.dumps(EVENT).encode()).decode()}}, {}),
    ("GetEnvironmentLock", {"digest": "<lock>"}, {}),
    ("GetPipelineSpec", {"digest": "<pipeline>"}, {}),
    ("GetQualityRule", {"digest": "<rule>"}, {}),
    ("GetQualityProfile", {"digest": "<profile>"}, {}),
    ("GetQualityEvaluation", {"digest": "<evaluation>"}, {}),
    ("GetLineage", {"node": "<node>", "direction": "LINEAGE_DIRECTION_BOTH"}, {}),
    ("GetImpact", {"node": "<node>"}, {}),
    ("ListExternalEvents", {"runId": EVENT["run"]["runId"], "pageSize": 1}, {}),
    ("WaitForInclusion", {"entryId": "<entry>"}, {}),
    ("GetInclusionProof", {"entryId": "<entry>"}, {}),
    ("GetEntryBundle", {"width": 1}, {}),
    ("GetTile", {"width": 1}, {}),
    ("ListAuditEntries", {"pageSize": 1}, {}),
    ("ListCheckpoints", {"pageSize": 1}, {}),
    ("ListRuns", {"pageSize": 1}, {}),
    ("ListQualityEvaluations", {"datasetId": "data", "contentDigest": ONE, "pageSize": 10}, {}),
]


def _filled(tree: Any, known: dict[str, str]) -> Any:
    if isinstance(tree, dict):
        return {key: _filled(value, known) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_filled(each, known) for each in tree]
    return known.get(tree[1:-1], "") if isinstance(tree, str) and tree.startswith("<") else tree


async def prepare(send: Send) -> tuple[Corpus, Learned]:
    """Makes the requests; returns them, one at least for each RPC, and the texts of what was asked and answered."""
    by_name = {rpc.name: rpc for rpc in methods()}
    known: dict[str, str] = {}
    learned: Learned = {}
    made: Corpus = []
    for number, (name, tree, named) in enumerate(REQUESTS):
        rpc = by_name[name]
        request = GetMessageClass(rpc.input_type)()
        own = {"projectId": PROJECT, "requestId": f"prepare-{number}"}
        fields = {field.json_name for field in rpc.input_type.fields}
        ParseDict({**{key: own[key] for key in own if key in fields}, **_filled(tree, known)}, request)
        reply = GetMessageClass(rpc.output_type).FromString(
            await send(f"/{rpc.containing_service.full_name}/{name}", request.SerializeToString())
        )
        made.append((rpc, request))
        for message in (request, reply):
            _learn(message, learned)
        texts = list(_texts(reply))
        known |= {key: next((text for name, text in texts if name == asked), "") for key, asked in named.items()}
    done = {rpc.name for rpc, _ in made}
    for rpc in by_name.values():
        if rpc.name not in done:
            made.append((rpc, _plausible(rpc, learned)))
    return made, learned


def _texts(message: Message) -> Iterator[tuple[str, str]]:
    """Names, as in JSON, and values of all texts in a message, those of inner messages last."""
    inner: list[Message] = []
    for field, value in message.ListFields():
        values = value if field.is_repeated else [value]
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            inner += values
        elif field.type == FieldDescriptor.TYPE_STRING:
            yield from ((str(field.json_name), each) for each in values)
    for each in inner:
        yield from _texts(each)


def _learn(message: Message, learned: Learned) -> None:
    for name, value in _texts(message):
        for key in {
            name,
            "pageToken" if name == "nextPageToken" else name,
            "digest" if value[:7] == "sha256:" else name,
        }:
            known = learned.setdefault(key, [])
            if value and value not in known and len(known) < 20:
                known.append(value)


def _plausible(rpc: MethodDescriptor, learned: Learned) -> Message:
    """A request whose texts the instance has; what enumerations there are have their first choice."""
    request: Any = GetMessageClass(rpc.input_type)()
    for field in rpc.input_type.fields:
        if field.type == FieldDescriptor.TYPE_STRING and not field.is_repeated and field.name != "page_token":
            value = PROJECT if field.name == "project_id" else next(iter(learned.get(str(field.json_name), [])), "")
            setattr(request, field.name, value)
        elif field.enum_type is not None and not field.is_repeated:
            setattr(request, field.name, field.enum_type.values[1].number)
    return request  # type: ignore[no-any-return]
