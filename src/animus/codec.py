"""Messages to domain values and back, by field name: the only place where the two shapes meet.

`decode` refuses what protobuf would hide: a field that is absent, an enum that is unspecified or unknown, a field that
this version does not know, an output-only field that a caller set. Errors name the path in JSON spelling.
`encode` fills a message from a value. Enum values match by name (`BACKOFF_TYPE_FIXED` and `BackoffType.FIXED`; a
member `NONE` matches UNSPECIFIED), Timestamps match times as text.
"""

import base64
import dataclasses
import enum
import hashlib
import typing
from collections.abc import Callable
from datetime import UTC
from functools import cache

import orjson
from google.api import field_behavior_pb2
from google.protobuf import timestamp_pb2
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from animus.domain import secrets
from animus.domain.document import Violations, build, fields_of, join, json_name
from animus.domain.errors import Invalid, Violation, invalid
from animus.domain.names import check_within, format_time, parse_time

T = typing.TypeVar("T")
M = typing.TypeVar("M", bound=Message)

CALL_FIELDS = ("request_id", "validate_only", "offset")  # of a request: say how to call, not what to do

_INVALID = object()
_Decoder = Callable[[typing.Any, str, Violations], object]
_NOTHING: typing.Mapping[str, str | int] = {}


def decode(message: Message, kind: type[T], path: str, **given: str | int) -> T:
    """The value of a message at a path of its request. Raises Invalid with every field at fault.

    `given` are fields that the server sets: a caller leaves them out.
    """
    violations = Violations()
    read = _decoder(message.DESCRIPTOR, typing.cast(typing.Hashable, kind), tuple(given))
    value = read(message, path, violations, given)
    violations.raise_any()
    return typing.cast(T, value)


def decode_all(messages: typing.Iterable[Message], kind: type[T], path: str, **given: str | int) -> tuple[T, ...]:
    """The values of a repeated field at a path. Raises Invalid with every field at fault.

    `given` are fields that the request says once for all items, and the items' own type lacks.
    """
    violations = Violations()
    values = [
        _decoder(message.DESCRIPTOR, typing.cast(typing.Hashable, kind), tuple(given))(
            message, f"{path}[{index}]", violations, given
        )
        for index, message in enumerate(messages)
    ]
    violations.raise_any()
    return tuple(typing.cast(list[T], values))


def encode(value: object, message: M) -> M:
    """Fills a message from a value, and returns it."""
    _encoder(typing.cast(typing.Hashable, type(value)), message.DESCRIPTOR)(value, message)
    return message


def refuse_unknown(message: Message, path: str = "") -> None:
    """Raises Invalid where a message, or one inside it, has a field that this version of the contract lacks."""
    unknown = UnknownFieldSet(message)
    if len(unknown):
        raise invalid(path, f"has a field that is not in the contract: number {unknown[0].field_number}")
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        below = join(path, json_name(field.name))
        if field.is_repeated:
            for index, item in enumerate(value):
                refuse_unknown(item, f"{below}[{index}]")
        else:
            refuse_unknown(value, below)


def refuse_secrets(message: Message, data: bytes) -> None:
    """Raises Invalid where a field of a message, whose bytes these are, holds what looks like a credential.

    The error names field and kind and quotes nothing. The bytes alone clear most messages.
    """
    if secrets.may_hold(data) and (found := list(_secrets(message, ""))):
        raise Invalid(found, "SECRET_IN_REQUEST")


def _secrets(message: Message, path: str) -> typing.Iterator[Violation]:
    for field, value in message.ListFields():
        texts = field.type in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES)
        if not texts and field.message_type is None:
            continue
        name = join(path, json_name(field.name))
        for index, item in enumerate(value if field.is_repeated else [value]):
            below = f"{name}[{index}]" if field.is_repeated else name
            if not texts:
                yield from _secrets(item, below)
            elif kind := secrets.kind_of(item.decode(errors="replace") if isinstance(item, bytes) else item):
                remedy = "give its secretRef" if field.full_name == "animus.v1.EnvVar.value" else "leave it out"
                yield Violation(below, f"holds what looks like {kind}, which would be kept for ever: {remedy}")


def request_tree(request: Message) -> dict[str, object]:
    """What a request asks for as a JSON tree, in the order in which it was sent, without how it was called."""
    tree = typing.cast(dict[str, object], _tree(request))
    for field in CALL_FIELDS:
        tree.pop(json_name(field), None)
    return tree


def request_bytes(request: Message) -> bytes:
    """The JSON of `request_tree`: what a reused request_id is compared by."""
    return orjson.dumps(request_tree(request), option=orjson.OPT_SORT_KEYS)


def sha256(data: bytes) -> str:
    """Digest of bytes that are no document."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def timestamp(text: str) -> timestamp_pb2.Timestamp:
    """The Timestamp of a time as text."""
    message = timestamp_pb2.Timestamp()
    message.FromDatetime(parse_time(text))
    return message


def decode_time(message: timestamp_pb2.Timestamp, path: str) -> str:
    """The time as text of a Timestamp at a path of its request. Raises Invalid."""
    violations = Violations()
    value = _decode_time(message, path, violations)
    violations.raise_any()
    return typing.cast(str, value)


def _tree(message: Message) -> object:
    if isinstance(message, timestamp_pb2.Timestamp):
        return f"{message.seconds}.{message.nanos:09d}"
    return {
        json_name(field.name): [_scalar_tree(field, item) for item in value]
        if field.is_repeated
        else _scalar_tree(field, value)
        for field, value in message.ListFields()
    }


def _scalar_tree(field: FieldDescriptor, value: typing.Any) -> object:
    if field.message_type is not None:
        return _tree(value)
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value


@cache
def _decoder(descriptor: Descriptor, kind: typing.Any, given_names: tuple[str, ...] = ()) -> Callable[..., object]:
    """The function that decodes messages of this type to values of this kind."""
    parts = []
    for name, key, hint in fields_of(kind):
        if name in given_names:
            continue
        field = descriptor.fields_by_name[name]
        parts.append((name, key, field, _field_decoder(field, hint), field.has_presence))
    own = {name for name, _, _ in fields_of(kind)} - set(given_names)
    set_here = [
        field
        for field in descriptor.fields
        if field.name in given_names or (field.name not in own and _output_only(field))
    ]

    def read(
        message: Message, path: str, violations: Violations, given: typing.Mapping[str, str | int] = _NOTHING
    ) -> object:
        before = len(violations.found)
        for field in set_here:
            if message.HasField(field.name) if field.has_presence else getattr(message, field.name):
                violations.add(path, invalid(json_name(field.name), "is set by the server; leave it out"))
        values: dict[str, object] = dict(given)
        for name, key, field, part, has_presence in parts:
            if has_presence and not message.HasField(name):
                violations.add(path, invalid(key, "is missing; every field is required"))
            elif field.is_repeated:
                items = getattr(message, name)
                values[name] = tuple(
                    [part(item, f"{path}.{key}[{index}]", violations) for index, item in enumerate(items)]
                )
            else:
                values[name] = part(getattr(message, name), f"{path}.{key}", violations)
        return build(kind, values, path, violations, before)

    return read


def _output_only(field: FieldDescriptor) -> bool:
    return field_behavior_pb2.OUTPUT_ONLY in field.GetOptions().Extensions[field_behavior_pb2.field_behavior]


def _field_decoder(field: FieldDescriptor, hint: typing.Any) -> _Decoder:
    item: typing.Any = typing.get_args(hint)[0] if typing.get_origin(hint) is tuple else hint
    if field.message_type is not None and field.message_type.full_name == "google.protobuf.Timestamp":
        return _decode_time
    if dataclasses.is_dataclass(item):
        assert field.message_type is not None
        return _decoder(field.message_type, typing.cast(typing.Hashable, item))
    if isinstance(item, type) and issubclass(item, enum.StrEnum):
        assert field.enum_type is not None
        return _enum_decoder(field.enum_type, item)
    return lambda value, path, violations: value


def _decode_time(message: timestamp_pb2.Timestamp, path: str, violations: Violations) -> object:
    try:
        check_within(message.seconds, -62_135_596_800, 253_402_300_799, "")  # the years 1 to 9999
        check_within(message.nanos, 0, 999_999_999, "")
        if message.nanos % 1_000:
            raise invalid("", "is finer than a microsecond")
    except Invalid as error:
        violations.add(path, error)
        return _INVALID
    return format_time(message.ToDatetime(UTC))


def _enum_members(descriptor: EnumDescriptor, kind: type[enum.StrEnum]) -> dict[int, enum.StrEnum]:
    prefix = descriptor.values_by_number[0].name.removesuffix("UNSPECIFIED")
    numbers = {value.name.removeprefix(prefix): value.number for value in descriptor.values}
    return {0 if member.name == "NONE" else numbers[member.name]: member for member in kind}


@cache
def _enum_decoder(descriptor: EnumDescriptor, kind: type[enum.StrEnum]) -> _Decoder:
    members = _enum_members(descriptor, kind)
    names = ", ".join(descriptor.values_by_number[number].name for number in sorted(members) if number)

    def read(number: int, path: str, violations: Violations) -> object:
        if number in members:
            return members[number]
        violations.add(path, invalid("", f"is unspecified or unknown; give one of {names}"))
        return _INVALID

    return read


_Encoder = Callable[[typing.Any, typing.Any], None]


@cache
def _encoder(kind: typing.Any, descriptor: Descriptor) -> _Encoder:
    """The function that fills messages of this type from values of this kind."""
    parts = [_field_encoder(name, hint, descriptor.fields_by_name[name]) for name, _, hint in fields_of(kind)]

    def write(value: object, message: Message) -> None:
        for part in parts:
            part(value, message)

    return write


def _field_encoder(name: str, hint: typing.Any, field: FieldDescriptor) -> _Encoder:
    repeated = typing.get_origin(hint) is tuple
    item: typing.Any = typing.get_args(hint)[0] if repeated else hint
    if field.message_type is not None and field.message_type.full_name == "google.protobuf.Timestamp":

        def write_time(value: object, message: Message) -> None:
            time = getattr(value, name)
            if time:  # an empty text is a time that no one has said
                getattr(message, name).FromDatetime(parse_time(time))

        return write_time
    if dataclasses.is_dataclass(item):
        assert field.message_type is not None
        write = _encoder(typing.cast(typing.Hashable, item), field.message_type)
        if not repeated:

            def write_one(value: object, message: Message) -> None:
                target = getattr(message, name)
                target.SetInParent()
                write(getattr(value, name), target)

            return write_one

        def write_each(value: object, message: Message) -> None:
            target = getattr(message, name)
            for each in getattr(value, name):
                write(each, target.add())

        return write_each
    if isinstance(item, type) and issubclass(item, enum.StrEnum):
        assert field.enum_type is not None
        numbers = {member: number for number, member in _enum_members(field.enum_type, item).items()}
        if repeated:
            return lambda value, message: getattr(message, name).extend([numbers[m] for m in getattr(value, name)])
        return lambda value, message: setattr(message, name, numbers[getattr(value, name)])
    if repeated:
        return lambda value, message: getattr(message, name).extend(getattr(value, name))
    return lambda value, message: setattr(message, name, getattr(value, name))
