"""Routes, compiled once from the google.api.http rules of the services in a set of file descriptors.

A template is `/` and segments, each a literal or one variable `{field.path}` that takes exactly one segment, with an
optional `:verb` at its end. Wildcards (`*`, `**`, `{name=…}`), custom methods and `response_body` are refused at
start-up: the contract has none.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal
from urllib.parse import unquote_to_bytes

from google.api import annotations_pb2, http_pb2
from google.api.httpbody_pb2 import HttpBody
from google.protobuf.descriptor import Descriptor, FieldDescriptor, FileDescriptor, MethodDescriptor
from google.rpc import code_pb2

import animus.v1
from animus_gateway.status import malformed, refusal, wrong_method

_LAST_SEGMENT = re.compile(r"(\{[^{}]*\}|[^{}:]+)(?::([A-Za-z][A-Za-z0-9]*))?")
_LITERAL = re.compile(r"[A-Za-z0-9._~-]+")
_VARIABLE = re.compile(r"\{([a-z0-9_]+(?:\.[a-z0-9_]+)*)\}")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_HTTP_METHODS = ("get", "put", "post", "delete", "patch")


@dataclass(frozen=True, slots=True)
class FieldPath:
    """A field of a request message, reached through singular messages."""

    fields: tuple[FieldDescriptor, ...]

    @property
    def leaf(self) -> FieldDescriptor:
        """The field itself."""
        return self.fields[-1]

    @property
    def json_name(self) -> str:
        """The path in JSON spelling, such as `datasetVersion.datasetId`."""
        return ".".join(field.json_name for field in self.fields)


@dataclass(frozen=True, slots=True)
class Content:
    """One bytes field of the reply as an answer's whole body."""

    field: str
    media_type: str
    compressible: bool  # gzip makes it smaller


@dataclass(frozen=True, slots=True)
class Route:
    """One HTTP method and path template of one RPC."""

    rpc: MethodDescriptor
    http_method: str
    segments: tuple[str | FieldPath, ...]
    verb: str  # without its colon; empty where the template has none
    body: FieldDescriptor | Literal["*"] | None  # the field that the body is, the whole message, or no body
    template: str  # the path as OpenAPI writes it, with the fields in JSON spelling
    content: Content | None  # None: the answer is the whole reply

    @property
    def variables(self) -> tuple[FieldPath, ...]:
        """The fields that the path gives, in its order."""
        return tuple(segment for segment in self.segments if isinstance(segment, FieldPath))

    @property
    def raw_body(self) -> FieldDescriptor | None:
        """The field that takes the body as it stands; None where there is none, and the body is a message in JSON."""
        body = self.body
        return body if isinstance(body, FieldDescriptor) and body.message_type == HttpBody.DESCRIPTOR else None

    def take(self, segments: Sequence[str]) -> tuple[str, ...] | None:
        """The values of the variables in these segments, or None when the path is not of this route."""
        values = []
        for wanted, segment in zip(self.segments, segments, strict=True):
            if isinstance(wanted, FieldPath):
                if not segment:
                    return None
                values.append(segment)
            elif wanted != segment:
                return None
        return tuple(values)


@dataclass(frozen=True, slots=True)
class Match:
    """A route and the values of its variables, percent-decoded, in the path's order."""

    route: Route
    values: tuple[str, ...]


def contract_files() -> list[FileDescriptor]:
    """The file descriptors of every generated module of the package `animus.v1`, ordered by name."""
    names = sorted(module.name for module in pkgutil.iter_modules(animus.v1.__path__) if module.name.endswith("_pb2"))
    return [importlib.import_module(f"animus.v1.{name}").DESCRIPTOR for name in names]


def compile_routes(files: Iterable[FileDescriptor]) -> list[Route]:
    """One route for each http rule of each RPC, additional bindings included, in the order of the files.

    Raises ValueError for a rule that cannot be served: a template outside the grammar, an unknown or repeated field,
    client streaming, a body on GET or DELETE, or two rules that take the same requests.
    """
    routes = [route for file in files for route in _routes_of(file)]
    seen: dict[tuple[object, ...], str] = {}
    for route in routes:
        shape = tuple("{}" if isinstance(segment, FieldPath) else segment for segment in route.segments)
        key = (route.http_method, shape, route.verb)
        if key in seen:
            raise ValueError(f"{route.rpc.full_name} takes the same requests as {seen[key]}")
        seen[key] = route.rpc.full_name
    return routes


def _routes_of(file: FileDescriptor) -> Iterator[Route]:
    for service in file.services_by_name.values():
        for rpc in service.methods:
            options = rpc.GetOptions()
            if not options.HasExtension(annotations_pb2.http):
                continue
            if rpc.client_streaming:
                raise ValueError(f"{rpc.full_name}: a client stream has no HTTP rule")
            rule = options.Extensions[annotations_pb2.http]
            for binding in (rule, *rule.additional_bindings):
                yield _route(rpc, binding)


def _route(rpc: MethodDescriptor, rule: http_pb2.HttpRule) -> Route:
    kind = rule.WhichOneof("pattern")
    if kind not in _HTTP_METHODS or rule.response_body:
        raise ValueError(f"{rpc.full_name}: this kind of http rule is not served")
    template: str = getattr(rule, kind)
    *front, last = template.removeprefix("/").split("/")
    ending = _LAST_SEGMENT.fullmatch(last)
    if ending is None or not template.startswith("/"):
        raise ValueError(f"{rpc.full_name}: {template!r} is no path template")
    segments = tuple(_segment(rpc, template, text) for text in (*front, ending[1]))
    named = [segment.json_name for segment in segments if isinstance(segment, FieldPath)]
    if len(set(named)) != len(named):
        raise ValueError(f"{rpc.full_name}: {template!r} names a field twice")
    if rule.body and kind in ("get", "delete"):
        raise ValueError(f"{rpc.full_name}: a {kind.upper()} has no body")
    body: FieldDescriptor | Literal["*"] | None = None
    if rule.body == "*":
        body = "*"
    elif rule.body:
        body = field_path(rpc.input_type, rule.body).leaf
        if "." in rule.body or body.is_repeated or body.message_type is None:
            raise ValueError(f"{rpc.full_name}: the body {rule.body!r} is no singular message field of the request")
        if any(path.fields[0] == body for path in segments if isinstance(path, FieldPath)):
            raise ValueError(f"{rpc.full_name}: {template!r} names a field inside the body {rule.body!r}")
    verb = ending[2] or ""
    return Route(rpc, kind.upper(), segments, verb, body, _json_template(segments, verb), None)


def _json_template(segments: Iterable[str | FieldPath], verb: str) -> str:
    parts = (f"{{{part.json_name}}}" if isinstance(part, FieldPath) else part for part in segments)
    return "/" + "/".join(parts) + (f":{verb}" if verb else "")


def _segment(rpc: MethodDescriptor, template: str, text: str) -> str | FieldPath:
    if _LITERAL.fullmatch(text):
        return text
    variable = _VARIABLE.fullmatch(text)
    if variable is None:
        raise ValueError(f"{rpc.full_name}: {text!r} in {template!r} is neither a literal nor a variable")
    path = field_path(rpc.input_type, variable[1])
    if path.leaf.is_repeated or path.leaf.message_type is not None:
        raise ValueError(f"{rpc.full_name}: {variable[1]!r} in {template!r} is no singular scalar field")
    return path


def field_path(message: Descriptor, dotted: str) -> FieldPath:
    """The field that a dotted path of proto names leads to. Raises ValueError where it leads nowhere."""
    fields: list[FieldDescriptor] = []
    at: Descriptor | None = message
    for name in dotted.split("."):
        field = at.fields_by_name.get(name) if at is not None else None
        if field is None or (fields and fields[-1].is_repeated):
            raise ValueError(f"{message.full_name} has no field {dotted!r}")
        fields.append(field)
        at = field.message_type
    return FieldPath(tuple(fields))


def percent_decode(text: str) -> str:
    """Decodes percent escapes once, as UTF-8. Raises a Refusal (400) for a broken escape or other bytes than UTF-8."""
    if "%" not in text:
        return text
    if _BAD_ESCAPE.search(text):
        raise malformed("the request target holds a broken percent escape")
    try:
        return unquote_to_bytes(text).decode()
    except UnicodeDecodeError:
        raise malformed("the request target is not UTF-8 once percent-decoded") from None


class Router:
    """Finds the route of a request. A literal segment wins over a variable, read from the left."""

    def __init__(self, routes: Iterable[Route]) -> None:
        by_shape: dict[tuple[int, str], list[Route]] = defaultdict(list)
        for route in routes:
            by_shape[len(route.segments), route.verb].append(route)
        for same in by_shape.values():
            same.sort(key=lambda route: [isinstance(segment, FieldPath) for segment in route.segments])
        self._by_shape: Mapping[tuple[int, str], list[Route]] = dict(by_shape)

    def match(self, http_method: str, raw_path: str) -> Match:
        """The match of a path as it was sent, still percent-encoded.

        The path is split first and decoded once afterwards, so that an encoded slash or colon is data. What follows
        the last colon of the last segment is a verb where a route has this verb on this path, and data otherwise.
        Raises a Refusal: 400 for an undecodable path, 404 where no route has it, 405 with `Allow` where none of those
        that do has the method.
        """
        *front, last = raw_path.removeprefix("/").split("/")
        decoded = [percent_decode(segment) for segment in front]
        found: list[Match] = []
        stem, colon, verb = last.rpartition(":")
        if colon and verb:
            found = self._find([*decoded, percent_decode(stem)], percent_decode(verb))
        if not found:
            found = self._find([*decoded, percent_decode(last)], "")
        if not found or not raw_path.startswith("/"):
            raise refusal(code_pb2.NOT_FOUND, "REQUEST_MALFORMED", "no method of the contract has this path")
        for match in found:
            if match.route.http_method == http_method:
                return match
        raise wrong_method({match.route.http_method for match in found})

    def _find(self, segments: Sequence[str], verb: str) -> list[Match]:
        found = []
        for route in self._by_shape.get((len(segments), verb), ()):
            values = route.take(segments)
            if values is not None:
                found.append(Match(route, values))
        return found
