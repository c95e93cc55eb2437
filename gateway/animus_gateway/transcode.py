"""HTTP to message and back: proto3 JSON, without what protobuf's own parser lets through.

A request message is put together from the JSON body or the query parameters, then the path, then the header
`Idempotency-Key`; each may only agree with what is there before it. `google.protobuf.json_format` does the
conversion. Before it, everything is refused that it would accept silently or report without naming the field:
duplicate keys, both spellings of one field, unknown fields, numbers that are no JSON numbers, integers written as
fractions or beyond their type, text that is not UTF-8, broken base64, deep nesting.
"""

from __future__ import annotations

import functools
import json
import math
import re
import zlib
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from google.api.httpbody_pb2 import HttpBody
from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import code_pb2

from animus_gateway.routes import FieldPath, Match, percent_decode
from animus_gateway.status import MAX_VIOLATIONS, Refusal, Violation, invalid, malformed, refusal

MAX_DEPTH = 64  # messages inside messages; the contract's deepest request has seven
# JSON of the largest pipeline (10,000 steps) has 500,000. Memory and time grow with their number, about 15 s for these.
MAX_SEPARATORS = 1_000_000
_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]{0,19})")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]{0,399})(?:\.[0-9]{1,400})?(?:[eE][+-]?[0-9]{1,4})?")
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]*={0,2}")
_RANGES: Mapping[int, tuple[int, int]] = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}
_FLOAT_MAX = 3.4028234663852886e38
_SPELLED = frozenset(f"google.protobuf.{name}" for name in ("Duration", "FieldMask", "Timestamp"))


def check_content_type(content_type: str | None) -> None:
    """Raises a Refusal (415) unless a body is declared as JSON in UTF-8."""
    media_type, *parameters = [part.strip().lower() for part in (content_type or "").split(";")]
    if media_type != "application/json" or any(part not in ("charset=utf-8", 'charset="utf-8"') for part in parameters):
        raise malformed("a body must have the content type application/json, in UTF-8", http_status=415)


def is_compressed(content_encoding: str | None) -> bool:
    """Whether a body is in gzip. Raises a Refusal (415) for any other encoding."""
    encoding = (content_encoding or "identity").strip().lower()
    if encoding not in ("identity", "gzip", "x-gzip"):
        raise malformed("a body must be compressed with gzip or not at all", http_status=415)
    return encoding != "identity"


def decompress(body: bytes, max_bytes: int) -> bytes:
    """A body without its gzip, which has one member. Raises a Refusal: 413 as soon as it is too large, or 400."""
    member = zlib.decompressobj(wbits=31)  # gzip with its header (RFC 1952)
    try:
        whole = member.decompress(body, max_bytes + 1)
    except zlib.error:
        raise malformed("the body is no gzip") from None
    if len(whole) > max_bytes:
        raise too_large(max_bytes)
    if not member.eof or member.unused_data:
        raise malformed("the body is not one whole member of gzip")
    return whole


def too_large(max_bytes: int) -> Refusal:
    """What a client is told whose body is larger than a limit."""
    return refusal(
        code_pb2.RESOURCE_EXHAUSTED,
        "REQUEST_MALFORMED",
        f"the body is larger than {max_bytes} bytes",
        http_status=413,
    )


def decode_request(match: Match, query: str, body: bytes, idempotency_key: str | None) -> Message:
    """The request message of a matched call. Raises a Refusal (400) that names each field at fault."""
    route = match.route
    raw = route.raw_body
    tree = {} if raw else _body_tree(match, body)
    if query:
        _add_query(match, tree, query)
    message = _parse(route.rpc.input_type, tree)
    if raw and body:
        getattr(message, raw.name).MergeFrom(HttpBody(content_type="application/json", data=body))
    for path, text in zip(route.variables, match.values, strict=True):
        _bind(route.rpc.input_type, message, path, text)
    field = route.rpc.input_type.fields_by_name.get("request_id")
    if idempotency_key is not None and field is not None:
        if getattr(message, field.name) not in ("", idempotency_key):
            raise invalid([Violation(field.json_name, "differs from the header Idempotency-Key")])
        setattr(message, field.name, idempotency_key)
    return message


def encode_reply(message: Message) -> bytes:
    """A message as proto3 JSON in UTF-8: lowerCamel names, fields without presence always there, no newline."""
    text = json_format.MessageToJson(
        message, always_print_fields_with_no_presence=True, indent=None, ensure_ascii=False
    )
    return text.encode()


def strict_json(body: bytes) -> Any:
    """The value of a JSON text. Raises a Refusal (400) for whatever RFC 8259 or I-JSON (RFC 7493) would not have."""
    if body.startswith(b"\xef\xbb\xbf"):
        raise malformed("the body starts with a byte order mark; send UTF-8 without one")
    if sum(body.count(separator) for separator in (b",", b"[", b"{")) > MAX_SEPARATORS:
        raise malformed(f"the body holds more than {MAX_SEPARATORS} commas and opening brackets")
    try:
        return json.loads(body.decode(), object_pairs_hook=_object, parse_float=_float, parse_constant=_constant)
    except UnicodeDecodeError:
        raise malformed("the body is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise malformed(f"the body is not JSON: {error.msg}, line {error.lineno}, column {error.colno}") from None
    except RecursionError:
        raise malformed("the body nests too deep") from None
    except ValueError:  # Python reads integers of at most 4,300 digits
        raise malformed("the body holds a number with too many digits") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise malformed(f"the key {_shown(key)} stands twice in one object")
            seen.add(key)
    return members


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise malformed("the body holds a number that is too large")
    return value


def _constant(text: str) -> float:
    raise malformed(f"{text} is no JSON number")


def _shown(text: str) -> str:
    """A name that the client chose, fit to be shown: short, and text that UTF-8 can carry."""
    return text[:100].encode("utf-8", "backslashreplace").decode()


def _body_tree(match: Match, body: bytes) -> dict[str, Any]:
    mapping = match.route.body
    if mapping is None:
        if body:
            raise malformed("this method takes no body")
        return {}
    value = strict_json(body) if body else {}
    if not isinstance(value, dict):
        raise malformed("the body must be a JSON object")
    return value if mapping == "*" else {mapping.json_name: value}


def _add_query(match: Match, tree: dict[str, Any], query: str) -> None:
    for pair in query.split("&"):
        if pair:
            name, _, text = pair.replace("+", " ").partition("=")
            _add_parameter(match, tree, percent_decode(name), percent_decode(text))


def _add_parameter(match: Match, tree: dict[str, Any], name: str, text: str) -> None:
    """Puts one query parameter into the JSON tree, or raises a Refusal that names it."""
    route = match.route
    fields = _query_path(route.rpc.input_type, name)
    if route.body == "*" or fields is None or fields[0] == route.body:
        raise invalid([Violation(_shown(name), "is no query parameter of this method")])
    json_name = FieldPath(fields).json_name
    if fields in [path.fields for path in route.variables]:
        raise invalid([Violation(json_name, "is given by the path")])
    at = tree
    for field in fields[:-1]:
        at = at.setdefault(field.json_name, {})
    leaf = fields[-1]
    value = _from_text(leaf, text)
    if leaf.is_repeated:
        at.setdefault(leaf.json_name, []).append(value)
    elif leaf.json_name in at:
        raise invalid([Violation(json_name, "is given twice")])
    else:
        at[leaf.json_name] = value


def _query_path(message: Descriptor, name: str) -> tuple[FieldDescriptor, ...] | None:
    fields: list[FieldDescriptor] = []
    at: Descriptor | None = message
    for part in name.split("."):
        if at is None or (fields and fields[-1].is_repeated):
            return None
        field = _fields(at).get(part)
        if field is None:
            return None
        fields.append(field)
        kind = field.message_type
        at = None if kind is None or _is_well_known(kind) else kind
    leaf = fields[-1].message_type
    return tuple(fields) if leaf is None or leaf.full_name in _SPELLED else None


def _from_text(field: FieldDescriptor, text: str) -> Any:
    """What a path segment or query parameter would be in a JSON body; left as text where it has no other form."""
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL and text in ("true", "false"):
        return text == "true"
    if field.cpp_type == FieldDescriptor.CPPTYPE_ENUM and _INTEGER.fullmatch(text):
        return int(text)
    return text


def _parse(descriptor: Descriptor, tree: dict[str, Any]) -> Message:
    message: Message = GetMessageClass(descriptor)()
    violations = list(islice(_message_faults(descriptor, tree, "", 1), MAX_VIOLATIONS))
    if violations:
        raise invalid(violations)
    try:
        return json_format.ParseDict(tree, message)
    except json_format.ParseError:
        raise malformed(f"the request is no {descriptor.name}") from None


def _bind(descriptor: Descriptor, message: Message, path: FieldPath, text: str) -> None:
    """Sets the field that a path variable names; a body that set it to something else is refused."""
    tree = _from_text(path.leaf, text)
    for field in reversed(path.fields):
        tree = {field.json_name: tree}
    bound: Any = _parse(descriptor, tree)
    target: Any = message
    for field in path.fields[:-1]:
        target, bound = getattr(target, field.name), getattr(bound, field.name)
    leaf = path.leaf
    wanted, found = getattr(bound, leaf.name), getattr(target, leaf.name)
    given = target.HasField(leaf.name) if leaf.has_presence else found != leaf.default_value
    if given and found != wanted:
        raise invalid([Violation(path.json_name, "differs from the path")])
    setattr(target, leaf.name, wanted)


@functools.cache
def _fields(message: Descriptor) -> Mapping[str, FieldDescriptor]:
    """The fields of a message by both their spellings."""
    return {name: field for field in message.fields for name in (field.name, field.json_name)}


def _message_faults(message: Descriptor, value: object, path: str, depth: int) -> Iterator[Violation]:
    """What is wrong with a JSON value that is to become a message, field by field."""
    if depth > MAX_DEPTH:
        yield Violation(path, f"nests deeper than {MAX_DEPTH} messages")
    elif _is_well_known(message):
        yield from _well_known_faults(message, value, path)
    elif not isinstance(value, dict):
        yield Violation(path, "must be an object")
    else:
        known = _fields(message)
        seen: set[str] = set()
        for key, item in value.items():
            field = known.get(key)
            at = f"{path}.{key}" if path else key
            if field is None:
                yield Violation(_shown(at), f"is no field of {message.name}")
                continue
            if field.name in seen:
                yield Violation(at, "is given twice, in both spellings")
            seen.add(field.name)
            if item is not None:  # null is an absent field in proto3 JSON
                yield from _field_faults(field, item, at, depth)


def _field_faults(field: FieldDescriptor, value: object, path: str, depth: int) -> Iterator[Violation]:
    if not field.is_repeated:
        yield from _faults(field, value, path, depth)
    elif field.message_type is not None and field.message_type.GetOptions().map_entry:
        if not isinstance(value, dict):
            yield Violation(path, "must be an object")
            return
        key_field, value_field = (field.message_type.fields_by_name[name] for name in ("key", "value"))
        for key, item in value.items():
            at = f"{path}[{_shown(key)}]"
            yield from _faults(key_field, _from_text(key_field, key), at, depth)
            yield from _faults(value_field, item, at, depth)
    elif not isinstance(value, list):
        yield Violation(path, "must be a list")
    else:
        for index, item in enumerate(value):
            yield from _faults(field, item, f"{path}[{index}]", depth)


def _faults(field: FieldDescriptor, value: object, path: str, depth: int) -> Iterator[Violation]:
    if field.message_type is not None:
        yield from _message_faults(field.message_type, value, path, depth + 1)
    else:
        fault = _scalar_fault(field, value)
        if fault is not None:
            yield Violation(path, fault)


def _is_well_known(message: Descriptor) -> bool:
    """Whether the type has a JSON form of its own, which json_format knows."""
    return message.full_name.startswith("google.protobuf.")


def _well_known_faults(message: Descriptor, value: object, path: str) -> Iterator[Violation]:
    try:
        # Parse, and not ParseDict: it alone turns every failure of these types into a ParseError.
        json_format.Parse(json.dumps(value), GetMessageClass(message)())
    except json_format.ParseError:
        yield Violation(path, f"is no {message.name} in proto3 JSON form")


def _scalar_fault(field: FieldDescriptor, value: object) -> str | None:
    """What is wrong with a JSON value that is to become a scalar or enum value; None when nothing is."""
    kind = field.cpp_type
    if kind == FieldDescriptor.CPPTYPE_STRING:
        if field.type == FieldDescriptor.TYPE_BYTES:
            return _bytes_fault(value)
        if not isinstance(value, str):
            return "must be a string"
        return None if _is_text(value) else "holds half of a surrogate pair"
    if kind in _RANGES:
        return _integer_fault(value, *_RANGES[kind])
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return None if isinstance(value, bool) else "must be true or false"
    if field.enum_type is not None:
        return _enum_fault(field.enum_type, value)
    return _float_fault(value, single=kind == FieldDescriptor.CPPTYPE_FLOAT)


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _bytes_fault(value: object) -> str | None:
    if not isinstance(value, str) or not _BASE64.fullmatch(value) or len(value.rstrip("=")) % 4 == 1:
        return "must be a string in base64"
    return None


def _integer_fault(value: object, low: int, high: int) -> str | None:
    if isinstance(value, str) and _INTEGER.fullmatch(value):
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        return "must be a whole number, without fraction or exponent"
    return None if low <= value <= high else f"must be from {low} to {high}"


def _enum_fault(enum: EnumDescriptor, value: object) -> str | None:
    if isinstance(value, str):
        return None if value in enum.values_by_name else f"must be one of {', '.join(enum.values_by_name)}"
    # A number that has no name is passed on: the service refuses it as it does over gRPC.
    return _integer_fault(value, *_RANGES[FieldDescriptor.CPPTYPE_INT32])


def _float_fault(value: object, *, single: bool) -> str | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return "must be a number"
    if isinstance(value, str) and not _NUMBER.fullmatch(value):
        return "must be a number"
    try:
        number = float(value)
    except OverflowError:
        return "is too large"
    return None if abs(number) <= (_FLOAT_MAX if single else math.inf) and math.isfinite(number) else "is too large"
