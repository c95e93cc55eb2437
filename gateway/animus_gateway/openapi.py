"""The OpenAPI 3.1 description of the routes. The contract's comments are its descriptions.

Structure comes from the descriptors that also make the routes, so the two cannot differ. Comments come from
`animus/v1/descriptors.binpb`, the same contract as protoc describes it with source information, because generated
code carries none.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from importlib import resources
from typing import Any

from google.api import field_behavior_pb2
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.descriptor_pb2 import DescriptorProto, EnumDescriptorProto, FileDescriptorProto, FileDescriptorSet

from animus_gateway.routes import FieldPath, Route
from animus_gateway.tiles import LEVELS, WIDTH

Json = dict[str, Any]

_SCALARS: Mapping[int, Json] = {
    FieldDescriptor.TYPE_BOOL: {"type": "boolean"},
    FieldDescriptor.TYPE_BYTES: {"type": "string", "format": "byte", "contentEncoding": "base64"},
    FieldDescriptor.TYPE_DOUBLE: {"type": "number", "format": "double"},
    FieldDescriptor.TYPE_FLOAT: {"type": "number", "format": "float"},
    FieldDescriptor.TYPE_STRING: {"type": "string"},
    **{
        kind: {"type": "integer", "format": "int32"}
        for kind in (FieldDescriptor.TYPE_INT32, FieldDescriptor.TYPE_SINT32, FieldDescriptor.TYPE_SFIXED32)
    },
    **{
        kind: {"type": "string", "format": "int64"}
        for kind in (FieldDescriptor.TYPE_INT64, FieldDescriptor.TYPE_SINT64, FieldDescriptor.TYPE_SFIXED64)
    },
    **{
        kind: {"type": "integer", "format": "uint32"}
        for kind in (FieldDescriptor.TYPE_UINT32, FieldDescriptor.TYPE_FIXED32)
    },
    **{
        kind: {"type": "string", "format": "uint64"}
        for kind in (FieldDescriptor.TYPE_UINT64, FieldDescriptor.TYPE_FIXED64)
    },
}
_WELL_KNOWN: Mapping[str, Json] = {
    "google.protobuf.Any": {"type": "object", "required": ["@type"], "properties": {"@type": {"type": "string"}}},
    "google.protobuf.Duration": {"type": "string", "examples": ["1.5s"]},
    "google.protobuf.Empty": {"type": "object"},
    "google.protobuf.FieldMask": {"type": "string", "examples": ["displayName,labels"]},
    "google.protobuf.ListValue": {"type": "array"},
    "google.protobuf.Struct": {"type": "object"},
    "google.protobuf.Timestamp": {"type": "string", "format": "date-time"},
    "google.protobuf.Value": {},
}
_STATUS: Json = {
    "type": "object",
    "description": "An error. It has the shape of the services' own errors.",
    "required": ["code", "message", "details"],
    "properties": {
        "code": {"type": "integer", "format": "int32", "description": "A google.rpc.Code."},
        "message": {"type": "string", "description": "What went wrong and what to do, for people."},
        "details": {
            "type": "array",
            "description": "Messages of google/rpc/error_details.proto. The first is the google.rpc.ErrorInfo, whose "
            "`domain` is `animus` and whose `reason` is a name of animus.v1.Reason without its prefix. A BadRequest "
            "lists the fields at fault.",
            "items": {
                "type": "object",
                "required": ["@type"],
                "properties": {"@type": {"type": "string", "examples": ["type.googleapis.com/google.rpc.ErrorInfo"]}},
            },
        },
    },
}
_STATUS_NAME = "google.rpc.Status"
_ERRORS: Json = {
    "description": "The call failed; the HTTP status follows from `code`.",
    "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{_STATUS_NAME}"}}},
}
_HTTP_BODY = "google.api.HttpBody"
_HTTP_BODY_ANSWER: Json = {
    "description": "The body that the operation describes, in the content type that the service gives it. If the call "
    "fails once it has begun, the connection is cut before the end of the chunked body.",
    "content": {"*/*": {}},
}
# How the path of a log's file spells what is a number in the contract.
_FILE_PARAMETERS: Mapping[str, Json] = {
    "level": {"schema": {"type": "integer", "minimum": 0, "maximum": LEVELS - 1}},
    "index": {
        "description": "Index from 0, in three digits. From 1,000 on there are further path elements in front, which "
        "OpenAPI cannot describe, each an `x` and three digits: `x001/x234/067` is 1,234,067.",
        "schema": {"type": "string", "pattern": "^[0-9]{3}$"},
    },
    "width": {
        "description": "Width of a file that is not full.",
        "schema": {"type": "integer", "minimum": 1, "maximum": WIDTH - 1},
    },
}


def contract_comments() -> Mapping[str, str]:
    """The leading comment of every element of the contract, by its full name."""
    packed = resources.files("animus.v1").joinpath("descriptors.binpb").read_bytes()
    return {name: text for file in FileDescriptorSet.FromString(packed).file for name, text in _file_comments(file)}


def _file_comments(file: FileDescriptorProto) -> Iterator[tuple[str, str]]:
    names = dict(_named_paths(file))
    for location in file.source_code_info.location:
        name = names.get(tuple(location.path))
        if name is not None and location.leading_comments:
            lines = location.leading_comments.splitlines()
            yield name, "\n".join(line.removeprefix(" ") for line in lines).strip()


def _named_paths(file: FileDescriptorProto) -> Iterator[tuple[tuple[int, ...], str]]:
    """Each element's path of field numbers and indexes (descriptor.proto, SourceCodeInfo.Location) and full name."""
    for number, message in enumerate(file.message_type):
        yield from _message_paths(message, (4, number), file.package)
    for number, enum in enumerate(file.enum_type):
        yield from _enum_paths(enum, (5, number), file.package)
    for number, service in enumerate(file.service):
        name = f"{file.package}.{service.name}"
        yield (6, number), name
        for place, method in enumerate(service.method):
            yield (6, number, 2, place), f"{name}.{method.name}"


def _message_paths(
    message: DescriptorProto, path: tuple[int, ...], scope: str
) -> Iterator[tuple[tuple[int, ...], str]]:
    name = f"{scope}.{message.name}"
    yield path, name
    for number, field in enumerate(message.field):
        yield (*path, 2, number), f"{name}.{field.name}"
    for number, nested in enumerate(message.nested_type):
        yield from _message_paths(nested, (*path, 3, number), name)
    for number, enum in enumerate(message.enum_type):
        yield from _enum_paths(enum, (*path, 4, number), name)


def _enum_paths(enum: EnumDescriptorProto, path: tuple[int, ...], scope: str) -> Iterator[tuple[tuple[int, ...], str]]:
    name = f"{scope}.{enum.name}"
    yield path, name
    for number, value in enumerate(enum.value):
        yield (*path, 2, number), f"{name}.{value.name}"


def describe(routes: Iterable[Route], comments: Mapping[str, str]) -> Json:
    """The OpenAPI document of these routes."""
    return _Description(comments).document(list(routes))


class _Description:
    """One document in the making: schemas are added as routes and other schemas refer to them."""

    def __init__(self, comments: Mapping[str, str]) -> None:
        self._comments = comments
        self._schemas: dict[str, Json] = {_STATUS_NAME: _STATUS}

    def document(self, routes: list[Route]) -> Json:
        paths: dict[str, Json] = {}
        used: dict[str, int] = {}
        for route in routes:
            name = f"{route.rpc.containing_service.name}_{route.rpc.name}"
            used[name] = used.get(name, 0) + 1
            operation = self._operation(route, name if used[name] == 1 else f"{name}_{used[name]}")
            paths.setdefault(route.template, {})[route.http_method.lower()] = operation
        services = {route.rpc.containing_service.name: route.rpc.containing_service for route in routes}
        return {
            "openapi": "3.1.0",
            "info": {
                "title": "Animus",
                "version": "v1",
                "summary": "The gRPC contract animus.v1 over HTTP and JSON.",
                "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            },
            "security": [{"bearer": []}],
            "tags": [
                {"name": name, "description": self._comments.get(service.full_name, "")}
                for name, service in services.items()
            ],
            "paths": paths,
            "components": {
                "schemas": dict(sorted(self._schemas.items())),
                "securitySchemes": {
                    "bearer": {"type": "http", "scheme": "bearer", "description": "An API token, `animus_…`."}
                },
            },
        }

    def _operation(self, route: Route, operation_id: str) -> Json:
        comment = self._comments.get(route.rpc.full_name, "")
        operation: Json = {
            "operationId": operation_id,
            "tags": [route.rpc.containing_service.name],
            "summary": comment.partition("\n\n")[0].replace("\n", " "),
            "description": comment,
            "parameters": [*self._path_parameters(route), *self._query_parameters(route), *self._headers(route)],
            "responses": {"200": self._answer(route), "default": _ERRORS},
        }
        if route.raw_body is not None:
            comment = self._comments.get(route.raw_body.full_name, "")
            operation["requestBody"] = {"description": comment, "content": {"application/json": {}}}
        elif route.body is not None:
            body = route.rpc.input_type if route.body == "*" else route.body.message_type
            assert body is not None  # a route's body is a message
            operation["requestBody"] = {"content": {"application/json": {"schema": self._message(body)}}}
        return operation

    def _answer(self, route: Route) -> Json:
        name = route.rpc.output_type.full_name
        if route.content is not None:
            description = self._comments.get(f"{name}.{route.content.field}", "")
            return {"description": description, "content": {route.content.media_type: {}}}
        if name == _HTTP_BODY:
            return _HTTP_BODY_ANSWER
        reply = self._message(route.rpc.output_type)
        content: Json = {"application/json": {"schema": reply}}
        if route.rpc.server_streaming:
            line = {"type": "object", "properties": {"result": reply, "error": self._reference(_STATUS_NAME)}}
            content = {"application/x-ndjson": {"schema": line}}
        return {"description": self._comments.get(name, "The reply."), "content": content}

    def _path_parameters(self, route: Route) -> Iterator[Json]:
        for path in route.variables:
            if f"{{{path.json_name}}}" in route.template:
                yield {
                    "name": path.json_name,
                    "in": "path",
                    "required": True,
                    "description": self._comments.get(path.leaf.full_name, ""),
                    "schema": self._value(path.leaf),
                    **({} if route.content is None else _FILE_PARAMETERS.get(path.json_name, {})),
                }

    def _query_parameters(self, route: Route) -> Iterator[Json]:
        if route.body == "*":
            return
        bound = [path.fields for path in route.variables]
        for path in _query_fields(route.rpc.input_type, ()):
            if path.fields not in bound and path.fields[0] != route.body:
                yield {
                    "name": path.json_name,
                    "in": "query",
                    "description": self._comments.get(path.leaf.full_name, ""),
                    "schema": self._field(path.leaf),
                }

    def _headers(self, route: Route) -> Iterator[Json]:
        if "request_id" in route.rpc.input_type.fields_by_name:
            yield {
                "name": "Idempotency-Key",
                "in": "header",
                "description": "Taken as `requestId` where the body has none; refused where the two differ.",
                "schema": {"type": "string"},
            }

    def _reference(self, name: str) -> Json:
        return {"$ref": f"#/components/schemas/{name}"}

    def _message(self, message: Descriptor) -> Json:
        name = message.full_name
        if name in _WELL_KNOWN:
            return dict(_WELL_KNOWN[name])
        if name.startswith("google.protobuf."):
            raise ValueError(f"the JSON form of {name} is not described here")
        if name not in self._schemas:
            schema = self._schemas[name] = {"type": "object"}  # there before its fields: a message may hold itself
            schema.update(
                description=self._comments.get(name, ""),
                properties={field.json_name: self._property(field) for field in message.fields},
                additionalProperties=False,
            )
        return self._reference(name)

    def _enum(self, enum: EnumDescriptor) -> Json:
        name = enum.full_name
        if name not in self._schemas:
            values = [f"- `{value.name}`: {self._comments.get(f'{name}.{value.name}', '')}" for value in enum.values]
            self._schemas[name] = {
                "type": "string",
                "description": "\n".join([self._comments.get(name, ""), "", *values]),
                "enum": [value.name for value in enum.values],
            }
        return self._reference(name)

    def _property(self, field: FieldDescriptor) -> Json:
        schema = {**self._field(field), "description": self._comments.get(field.full_name, "")}
        if field_behavior_pb2.OUTPUT_ONLY in field.GetOptions().Extensions[field_behavior_pb2.field_behavior]:
            schema["readOnly"] = True
        return schema

    def _field(self, field: FieldDescriptor) -> Json:
        entry = field.message_type
        if entry is not None and entry.GetOptions().map_entry:
            return {"type": "object", "additionalProperties": self._value(entry.fields_by_name["value"])}
        return {"type": "array", "items": self._value(field)} if field.is_repeated else self._value(field)

    def _value(self, field: FieldDescriptor) -> Json:
        if field.message_type is not None:
            return self._message(field.message_type)
        return self._enum(field.enum_type) if field.enum_type is not None else dict(_SCALARS[field.type])


def _query_fields(message: Descriptor, above: tuple[FieldDescriptor, ...]) -> Iterator[FieldPath]:
    """The fields that a query may set, message by message; a message inside itself is not entered again."""
    for field in message.fields:
        kind = field.message_type
        path = (*above, field)
        own_form = None if kind is None else _WELL_KNOWN.get(kind.full_name)
        if kind is None or (own_form is not None and own_form.get("type") == "string"):
            yield FieldPath(path)
        elif own_form is None and not field.is_repeated and kind not in [part.message_type for part in above]:
            yield from _query_fields(kind, path)
