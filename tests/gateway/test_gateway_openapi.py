"""The OpenAPI document says what the routes do."""

from __future__ import annotations

import json
import re
from importlib import resources
from typing import Any

import pytest
from animus_gateway.openapi import contract_comments, describe
from animus_gateway.routes import compile_routes, contract_files
from animus_gateway.status import Violation, invalid, status_json
from animus_gateway.tiles import FILE_ROUTES
from gateway_harness import Stack, made_up_service
from google.api.http_pb2 import HttpRule
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from google.protobuf.message_factory import GetMessageClass
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from animus.v1 import audit_pb2, run_pb2

ROUTES = compile_routes(contract_files())
DOCUMENT = describe([*ROUTES, *FILE_ROUTES], contract_comments())
SCHEMAS = DOCUMENT["components"]["schemas"]
SECOND = ("/api/v1/lineage",)  # additional bindings of an RPC


def errors_of(document: dict[str, Any]) -> list[str]:
    """What the validator has against a document."""
    return [str(error.message) for error in OpenAPIV31SpecValidator(document).iter_errors()]


def operation(operation_id: str) -> dict[str, Any]:
    """The only operation of this id."""
    (found,) = [
        found for item in DOCUMENT["paths"].values() for found in item.values() if found["operationId"] == operation_id
    ]
    return dict(found)


async def test_the_document_is_served_and_needs_no_credential(stack: Stack) -> None:
    """`/openapi.json` is the description of the contract's routes."""
    response = await stack.client.get("/openapi.json")
    assert response.headers["content-type"] == "application/json"
    assert response.json() == DOCUMENT


def test_the_document_is_valid_openapi() -> None:
    """openapi-spec-validator has nothing against it; a planted fault shows that it looks."""
    assert errors_of(DOCUMENT) == []
    broken = {**DOCUMENT, "paths": {"/v1/{x}": {"get": {"responses": {}}}}}
    assert errors_of(broken) != []


def test_a_body_that_stands_as_it_is_is_json_of_any_kind() -> None:
    """Both paths of the event take it whole; what the path does not say, the query may."""
    for path, asked in (("/v1/projects/{projectId}/lineage:openlineage", []), ("/api/v1/lineage", ["projectId"])):
        found = DOCUMENT["paths"][path]["post"]
        assert found["requestBody"]["content"] == {"application/json": {}}
        parameters = [each["name"] for each in found["parameters"] if each["in"] == "query"]
        assert parameters == [*asked, "requestId", "validateOnly"]
    assert not [name for name in SCHEMAS if "HttpBody" in name or name.endswith(".Any")]


def test_a_service_with_every_kind_of_field_is_described_validly() -> None:
    """Maps, repeated and recursive messages, a body that is one field, more than one binding, streams."""
    rule = HttpRule(get="/things/{child.text}")
    rule.additional_bindings.add(post="/things/{text}:send", body="child")
    rules = {"Ask": rule, "Send": HttpRule(post="/send", body="*")}
    document = describe(compile_routes([made_up_service(rules, streaming=True)]), {})
    assert errors_of(document) == []
    ask, send = document["paths"]["/things/{child.text}"]["get"], document["paths"]["/things/{text}:send"]["post"]
    assert (ask["operationId"], send["operationId"]) == ("MadeUpService_Ask", "MadeUpService_Ask_2")
    names = {parameter["name"]: parameter for parameter in ask["parameters"]}
    assert names["child.text"]["in"] == "path"
    assert {"otherText", "words", "moment", "child.small"} <= set(names)
    assert not {"child", "sizes", "anything", "children"} & set(names)
    assert names["words"]["schema"] == {"type": "array", "items": {"type": "string"}}
    assert not [parameter for parameter in send["parameters"] if parameter["name"].startswith("child")]
    assert list(ask["responses"]["200"]["content"]) == ["application/x-ndjson"]


def test_each_route_is_an_operation_and_each_operation_a_route() -> None:
    """Every RPC with an http rule is there under its method and path, and nothing else is."""
    described = {
        (method.upper(), re.sub(r"\{[^}]*\}", "{}", path), found["operationId"])
        for path, item in DOCUMENT["paths"].items()
        for method, found in item.items()
        if not path.startswith("/logs/")
    }
    expected = {
        (
            route.http_method,
            "/"
            + "/".join(part if isinstance(part, str) else "{}" for part in route.segments)
            + (f":{route.verb}" if route.verb else ""),
            f"{route.rpc.containing_service.name}_{route.rpc.name}" + ("_2" if route.template in SECOND else ""),
        )
        for route in ROUTES
    }
    assert described == expected
    assert len(described) == len(ROUTES) > 20


def test_the_files_of_a_log_are_described_as_they_are_answered() -> None:
    """Each with its own content type and no schema of JSON; an index as it is spelled, a width where it is partial."""
    files = {path: item["get"] for path, item in DOCUMENT["paths"].items() if path.startswith("/logs/")}
    octets: dict[str, Any] = {"application/octet-stream": {}}
    assert {path: found["responses"]["200"]["content"] for path, found in files.items()} == {
        "/logs/{projectId}/checkpoint": {"text/plain; charset=utf-8": {}},
        "/logs/{projectId}/tile/{level}/{index}": octets,
        "/logs/{projectId}/tile/{level}/{index}.p/{width}": octets,
        "/logs/{projectId}/tile/entries/{index}": octets,
        "/logs/{projectId}/tile/entries/{index}.p/{width}": octets,
    }
    for path, found in files.items():
        parameters = {parameter["name"]: parameter for parameter in found["parameters"] if parameter["in"] == "path"}
        assert list(parameters) == re.findall(r"\{(\w+)\}", path)
        if "index" in parameters:
            assert re.fullmatch(parameters["index"]["schema"]["pattern"], "067")
        queries = [parameter["name"] for parameter in found["parameters"] if parameter["in"] == "query"]
        assert queries == (["minimumSize", "cosigned"] if path.endswith("/checkpoint") else [])


def test_a_body_of_the_services_own_is_described_as_one() -> None:
    """Whatever content type it has; neither lines of results nor a schema of HttpBody."""
    export = operation("AuditService_ExportAuditEntries")
    assert export["responses"]["200"]["content"] == {"*/*": {}}
    assert "cut" in export["responses"]["200"]["description"]
    assert list(operation("AuditService_TailAuditEntries")["responses"]["200"]["content"]) == ["application/x-ndjson"]
    assert not [name for name in SCHEMAS if name.startswith("google.api.")]


def test_every_element_has_the_contracts_comment() -> None:
    """Operations, parameters, schemas and fields all say what the proto file says."""
    bare = [
        name
        for name, schema in SCHEMAS.items()
        for field in schema.get("properties", {}).values()
        if "description" not in schema or not (field.get("description") or name == "google.rpc.Status")
    ]
    assert bare == []
    for item in DOCUMENT["paths"].values():
        for found in item.values():
            assert found["description"]
            assert found["summary"].endswith(".")
            assert all(parameter["description"] for parameter in found["parameters"])
    assert all(tag["description"] for tag in DOCUMENT["tags"])
    assert SCHEMAS["animus.v1.Commit"]["properties"]["sha"]["description"] == (
        "The full commit hash, 40 or 64 lower-case hexadecimal digits."
    )
    assert "- `RUN_STATE_CREATED`: Admitted, without a plan." in SCHEMAS["animus.v1.RunState"]["description"]


def test_the_packaged_descriptors_are_those_of_the_generated_code() -> None:
    """`descriptors.binpb` and the Python modules come from one contract."""
    packed = resources.files("animus.v1").joinpath("descriptors.binpb").read_bytes()
    by_name = {file.name: file for file in FileDescriptorSet.FromString(packed).file}
    for file in contract_files():
        with_comments = by_name[file.name]
        with_comments.ClearField("source_code_info")
        generated = FileDescriptorProto()
        file.CopyToProto(generated)
        for message in with_comments.message_type:  # protoc writes json_name here and leaves it out there
            for field in message.field:
                field.ClearField("json_name")
        for message in generated.message_type:
            for field in message.field:
                field.ClearField("json_name")
        assert with_comments == generated


def test_types_have_their_json_forms() -> None:
    """64-bit integers, bytes and times are strings with a format; enums are names; the server's fields are readOnly."""
    version = SCHEMAS["animus.v1.DatasetVersion"]["properties"]
    assert (version["sizeBytes"]["type"], version["sizeBytes"]["format"]) == ("string", "int64")
    assert version["record"]["readOnly"] is True
    assert version["record"]["$ref"] == "#/components/schemas/animus.v1.Record"
    assert "readOnly" not in version["uris"]
    document = SCHEMAS["animus.v1.AuditEntry"]["properties"]["document"]
    assert (document["type"], document["format"], document["contentEncoding"]) == ("string", "byte", "base64")
    time = SCHEMAS["animus.v1.Record"]["properties"]["createTime"]
    assert (time["type"], time["format"]) == ("string", "date-time")
    assert SCHEMAS["animus.v1.RunState"]["enum"] == list(run_pb2.RunState.keys())
    assert SCHEMAS["animus.v1.RetryPolicy"]["properties"]["maxAttempts"]["type"] == "integer"


def test_parameters_and_bodies_are_where_the_gateway_reads_them() -> None:
    """Path variables by their JSON path, the rest of a GET in the query, a key where there is a request_id."""
    found = {parameter["name"]: parameter["in"] for parameter in operation("RunService_ListRuns")["parameters"]}
    in_query = dict.fromkeys(("pageSize", "pageToken", "runSpecDigest", "filter", "orderBy"), "query")
    assert found == {"projectId": "path", **in_query}
    register = operation("DatasetService_RegisterDatasetVersion")
    found = {parameter["name"]: parameter["in"] for parameter in register["parameters"]}
    assert found == {"projectId": "path", "datasetVersion.datasetId": "path", "Idempotency-Key": "header"}
    assert register["requestBody"]["content"]["application/json"]["schema"] == {
        "$ref": "#/components/schemas/animus.v1.RegisterDatasetVersionRequest"
    }
    assert "requestBody" not in operation("RunService_GetRun")


def test_every_call_needs_a_bearer_token_and_may_answer_a_status() -> None:
    """Security is set for all operations at once, and no operation lifts it."""
    assert DOCUMENT["security"] == [{"bearer": []}]
    assert DOCUMENT["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"
    for item in DOCUMENT["paths"].values():
        for found in item.values():
            assert "security" not in found
            schema = found["responses"]["default"]["content"]["application/json"]["schema"]
            assert schema == {"$ref": "#/components/schemas/google.rpc.Status"}


@pytest.mark.parametrize("name", ["CreateProject", "CreateRun", "GetAuditEntry"])
async def test_replies_and_errors_are_instances_of_their_schemas(stack: Stack, name: str) -> None:
    """What the gateway sends is what the document promises."""
    (route,) = [route for route in ROUTES if route.rpc.name == name]

    async def answer(_request: Any, _context: Any) -> Any:
        return audit_pb2.AuditEntry(document=b"x", reason="y") if name == "GetAuditEntry" else reply_class()

    reply_class = GetMessageClass(route.rpc.output_type)
    stack.upstream.answer = answer
    path = "/" + "/".join(part if isinstance(part, str) else "x" for part in route.segments)
    response = await stack.client.request(route.http_method, path)
    assert response.status_code == 200

    def validator(schema: str) -> Draft202012Validator:
        return Draft202012Validator({**DOCUMENT, "$ref": f"#/components/schemas/{schema}"})

    validator(route.rpc.output_type.full_name).validate(response.json())
    validator("google.rpc.Status").validate(json.loads(status_json(invalid([Violation("a", "b")]).status)))
    assert not validator("google.rpc.Status").is_valid({"code": "3"})
