"""Messages that no client should send: made by Hypothesis from the contract's descriptors, altered, and mangled.

The same seed and the same corpus give the same messages.
"""

import random
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.internal.encoder import _VarintBytes  # type: ignore[attr-defined]
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from faults.corpus import PROJECT, Corpus, Learned

DEPTH = 5  # of messages inside messages
LIST = 4  # messages drawn at once: more would not fit into what Hypothesis takes for one example
LARGE = 1 << 20  # bytes

_ODD = [
    "", " ", "\x00", "a\x00b", "\n", "a\nb", "\ufeff", "\u202e", "é", "e\u0301", "𝔘", "\U0010ffff", "%00", "%2e%2e",
    "..", "../../etc/passwd", "/", "\\", "'", "';--", "' OR 1=1 --", '"', "{}", "[]", "null", "None", "NaN",
    "Infinity", "-0", "0", "-1", "1e999", "9" * 400, "a" * 63, "a" * 64, "a" * 2_001, "a" * 70_000, "A", "-", "a-",
    "_", "instance", "system", "sha256:" + "0" * 64, "sha256:" + "F" * 64, "sha256:", "sha512:" + "0" * 128, "0" * 32,
    "f" * 40, "projects/fuzz/runs/" + "0" * 32, "projects/other/datasets/data", "2026-01-02T03:04:05.678901Z",
    "9999-12-31T23:59:59Z", "<script>", "${jndi:ldap://x}", "%s%n", "{0}", "(" * 1_000, "a.b.c", "k8s.io/x",
    "https://user:pw@host/", "s3://b/k",
]  # fmt: skip
_ODD_OF = {
    "filter": [
        'createTime > "2026-01-01T00:00:00Z"',
        "a = ",
        'x:"' + "a" * 999,
        "NOT " * 300 + "a",
        "a AND (b OR",
        '"\\',
    ],
    "orderBy": ["createTime desc", "createTime,createTime", "a desc desc", ",", "createTime " * 50, "1; DROP TABLE x"],
    "pageToken": ["AAAA", "=" * 30, "A" * 10_000, "_-" * 40],
}
_INTEGERS = [
    0,
    1,
    -1,
    2,
    255,
    256,
    1_000,
    65_536,
    2**31 - 1,
    2**31,
    -(2**31),
    2**53,
    2**53 + 1,
    2**62,
    2**63 - 1,
    -(2**63),
]
_BOUNDS = {
    FieldDescriptor.TYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_ENUM: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.TYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_UINT64: (0, 2**64 - 1),
}


@dataclass(frozen=True, slots=True)
class Sent:
    """One message to one RPC."""

    rpc: MethodDescriptor
    kind: str  # how it was made
    data: bytes


# From descriptors.


def strategy(kind: Descriptor, learned: Learned, depth: int = DEPTH) -> st.SearchStrategy[Message]:
    """Messages of a kind: fields present or absent, with texts that the instance has and texts that it does not."""
    fields = {
        field.name: _later(field, learned, depth) for field in kind.fields if field.message_type is None or depth > 0
    }
    message_class = GetMessageClass(kind)

    def build(values: dict[str, Any]) -> Message:
        message = message_class()
        for name, value in values.items():
            put(message, kind.fields_by_name[name], value)
        return message

    always = {name: fields.pop(name) for name in ("project_id", "request_id") if name in fields}
    return st.fixed_dictionaries(always, optional=fields).map(build)


def _later(field: FieldDescriptor, learned: Learned, depth: int) -> st.SearchStrategy[Any]:
    """The values of a field, made when they are drawn from: a message may hold itself."""
    return st.deferred(lambda: _values(field, learned, depth))


def _values(field: FieldDescriptor, learned: Learned, depth: int) -> st.SearchStrategy[Any]:
    values: st.SearchStrategy[Any]
    if field.message_type is not None:
        values = strategy(field.message_type, learned, depth - 1)
    elif field.type == FieldDescriptor.TYPE_STRING:
        values = _texts(str(field.json_name), learned)
    elif field.type == FieldDescriptor.TYPE_BYTES:
        values = st.binary(max_size=64)
    elif field.type == FieldDescriptor.TYPE_BOOL:
        values = st.booleans()
    elif field.type in (FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FLOAT):
        values = st.floats(width=32)
    elif field.enum_type is not None:
        values = st.sampled_from([each.number for each in field.enum_type.values]) | st.sampled_from(
            [-1, 99, 2**31 - 1]
        )
    else:
        least, most = _BOUNDS[field.type]
        known = [each for each in _INTEGERS if least <= each <= most]
        values = st.sampled_from(known) | st.integers(least, most)
    return st.lists(values, max_size=3) if field.is_repeated else values


def _texts(name: str, learned: Learned) -> st.SearchStrategy[str]:
    known = [PROJECT] * 12 if name == "projectId" else learned.get(name) or learned.get("digest", ["x"])
    odd = st.sampled_from(_ODD + _ODD_OF.get(name, []))
    own = st.text(st.characters(codec="utf-8"), max_size=20)
    return st.sampled_from(known) | st.sampled_from(known) | odd | own


def put(message: Message, field: FieldDescriptor, value: Any) -> None:
    """Sets a field of a message, of whatever type."""
    if field.is_repeated:
        message.ClearField(field.name)
        getattr(message, field.name).extend(value)
    elif field.message_type is not None:
        getattr(message, field.name).CopyFrom(value)
    else:
        setattr(message, field.name, value)


def made(rpc: MethodDescriptor, learned: Learned, count: int, number: int) -> list[bytes]:
    """So many messages of Hypothesis' for an RPC, from a seed."""
    found: list[bytes] = []
    messages = strategy(rpc.input_type, learned)

    @seed(number)
    @settings(
        max_examples=-(-count // LIST),
        database=None,
        phases=[Phase.generate],
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(messages, min_size=LIST, max_size=LIST))
    def draw(drawn: list[Message]) -> None:
        found.extend(message.SerializeToString() for message in drawn)

    draw()
    return found[:count]


# One field otherwise.


def alter(message: Message, learned: Learned, dice: random.Random) -> Message:
    """The message with one to three fields otherwise."""
    altered = type(message)()
    altered.CopyFrom(message)
    for _ in range(dice.choice((1, 1, 2, 3))):
        inside = altered
        while inner := [
            (field, value)
            for field, value in inside.ListFields()
            if field.message_type is not None and len(_inner(value))
        ]:
            if dice.random() < 0.25:
                break
            inside = dice.choice(_inner(dice.choice(inner)[1]))
        fields: Any = inside.DESCRIPTOR.fields
        if fields:
            _alter_field(inside, dice.choice(fields), learned, dice)
    return altered


def _inner(value: Any) -> Sequence[Message]:
    return [value] if isinstance(value, Message) else list(value)


def _alter_field(message: Message, field: FieldDescriptor, learned: Learned, dice: random.Random) -> None:
    if field.message_type is not None:
        if not field.is_repeated:
            message.ClearField(field.name) if dice.random() < 0.7 else getattr(message, field.name).SetInParent()
        elif dice.random() < 0.4 and len(values := getattr(message, field.name)):
            for _ in range(dice.choice((1, 1, 1, 200))):
                values.add().CopyFrom(values[0])
        elif dice.random() < 0.5:
            message.ClearField(field.name)
        else:
            getattr(message, field.name).add()
        return
    value = _odd(field, learned, dice)
    if not field.is_repeated:
        message.ClearField(field.name) if dice.random() < 0.15 else setattr(message, field.name, value)
    else:
        put(message, field, [value] * dice.choice((0, 1, 1, 2, 1_001 if len(str(value)) < 1_000 else 3)))


def _odd(field: FieldDescriptor, learned: Learned, dice: random.Random) -> Any:
    if field.type == FieldDescriptor.TYPE_STRING:
        name = str(field.json_name)
        odd = dice.choice(_ODD + _ODD_OF.get(name, []) * 4)
        new = f"n{dice.getrandbits(32):x}"
        return dice.choice((odd, odd, new, dice.choice(learned.get(name) or [new])))
    if field.type == FieldDescriptor.TYPE_BYTES:
        return dice.choice([b"", b"\x00", b"{}", b"[" * 5_000, b'{"a":' * 2_000, b"\xff\xfe", dice.randbytes(40)])
    if field.type == FieldDescriptor.TYPE_BOOL:
        return dice.random() < 0.5
    if field.type in (FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FLOAT):
        return dice.choice([0.0, -0.0, 1e300, float("nan"), float("inf")])
    least, most = _BOUNDS[field.type]
    return dice.choice([each for each in _INTEGERS if least <= each <= most])


# Bytes.


def _at(data: bytes, dice: random.Random) -> int:
    return dice.randrange(len(data) + 1)


def _flip(data: bytes, dice: random.Random) -> bytes:
    changed = bytearray(data or b"\x00")
    for _ in range(dice.choice((1, 1, 2, 8))):
        changed[dice.randrange(len(changed))] ^= 1 << dice.randrange(8)
    return bytes(changed)


def _cut(data: bytes, dice: random.Random) -> bytes:
    return data[: _at(data, dice)]


def _drop(data: bytes, dice: random.Random) -> bytes:
    start = _at(data, dice)
    return data[:start] + data[start + dice.choice((1, 2, 8)) :]


def _insert(data: bytes, dice: random.Random) -> bytes:
    start = _at(data, dice)
    return data[:start] + dice.randbytes(dice.choice((1, 2, 9))) + data[start:]


def _twice(data: bytes, dice: random.Random) -> bytes:
    start, end = sorted((_at(data, dice), _at(data, dice)))
    return data[:end] + data[start:end] + data[end:] if dice.random() < 0.5 else data + data


def _not_text(data: bytes, dice: random.Random) -> bytes:
    """A letter becomes a byte that is no UTF-8, or NUL."""
    places = [index for index, byte in enumerate(data) if 97 <= byte <= 122]
    if not places:
        return data + b"\xff"
    place = dice.choice(places)
    return data[:place] + dice.choice((b"\xff", b"\xc0", b"\x00", b"\xed")) + data[place + 1 :]


def _other_type(data: bytes, dice: random.Random) -> bytes:
    """The first field has another wire type, the two that do not exist included."""
    return bytes([data[0] & 0xF8 | dice.randrange(8)]) + data[1:] if data else b"\x0f"


def _unknown(data: bytes, dice: random.Random) -> bytes:
    """A field that the message does not have."""
    number = dice.choice((99, 1_000, 19_500, 2**29 - 1, 2**29, 0))
    tag, content = dice.choice(((0, b"\x01"), (1, b"8 bytes!"), (2, b"\x03abc"), (3, b""), (4, b""), (5, b"four")))
    return data + bytes(_VarintBytes(number << 3 | tag)) + content


def _long_number(data: bytes, dice: random.Random) -> bytes:
    """A number of more bytes than there are, or a length beyond the end."""
    field = bytes([dice.randrange(1, 16) << 3])
    return data + dice.choice((field + b"\xff" * 11, field[:-1] + bytes([field[-1] | 2]) + b"\xff\xff\xff\xff\x07"))


def _deep(data: bytes, dice: random.Random) -> bytes:
    """A message in a message in a message."""
    field = dice.randrange(1, 16) << 3 | 2
    inside = b""
    for _ in range(dice.choice((10, 99, 101, 1_000))):
        inside = bytes([field]) + bytes(_VarintBytes(len(inside))) + inside
    return data + inside


def _groups(data: bytes, dice: random.Random) -> bytes:
    """Groups that are opened and never closed."""
    return data + bytes([dice.randrange(1, 16) << 3 | 3]) * dice.choice((1, 100, 10_000))


def _anything(_data: bytes, dice: random.Random) -> bytes:
    return dice.randbytes(dice.choice((1, 8, 64, 1_024)))


def _numbers(data: bytes, dice: random.Random) -> bytes:
    """Eight bytes are those of an odd number."""
    start = _at(data, dice)
    return data[:start] + struct.pack("<q", dice.choice(_INTEGERS)) + data[start + 8 :]


def _large(data: bytes, dice: random.Random) -> bytes:
    """A text of a megabyte."""
    return data + bytes([dice.randrange(1, 16) << 3 | 2]) + bytes(_VarintBytes(LARGE)) + b"a" * LARGE


MANGLERS: list[tuple[int, Callable[[bytes, random.Random], bytes]]] = [
    (200, _flip),
    (100, _cut),
    (80, _drop),
    (80, _insert),
    (60, _twice),
    (120, _not_text),
    (60, _other_type),
    (60, _unknown),
    (40, _long_number),
    (40, _deep),
    (20, _groups),
    (40, _anything),
    (40, _numbers),
    (1, _large),
]


def mangle(data: bytes, dice: random.Random) -> bytes:
    """The bytes of a message otherwise."""
    (mangler,) = dice.choices([each for _, each in MANGLERS], [weight for weight, _ in MANGLERS])
    return mangler(data, dice)


# All of it.


def messages(corpus: Corpus, learned: Learned, count: int, number: int) -> Iterator[Sent]:
    """So many messages, each RPC in its turn: a fifth of Hypothesis', the others those of the corpus: altered,
    mangled, and a tenth as they are.

    A message that was altered has a request_id of its own most of the time, so that it is not the answer of an earlier
    one that is seen.
    """
    dice = random.Random(number)  # noqa: S311
    of: dict[str, list[Message]] = {}
    rpcs: dict[str, MethodDescriptor] = {}
    for rpc, message in corpus:
        of.setdefault(rpc.name, []).append(message)
        rpcs[rpc.name] = rpc
    each = -(-count // len(rpcs))
    own = {name: made(rpc, learned, max(LIST, each // 5), number) for name, rpc in rpcs.items()}
    names = list(rpcs)
    for index in range(count):
        name = names[index % len(names)]
        rpc, choice = rpcs[name], dice.random()
        if choice < 0.2:
            yield Sent(rpc, "made", own[name][index // len(names) % len(own[name])])
            continue
        message = alter(dice.choice(of[name]), learned, dice) if choice < 0.7 else dice.choice(of[name])
        if "request_id" in rpc.input_type.fields_by_name and dice.random() < 0.8:
            message = _renamed(message, f"fuzz-{number}-{index}")
        data = message.SerializeToString()
        if choice < 0.5:
            yield Sent(rpc, "altered", data)
        elif choice < 0.9:
            yield Sent(rpc, "mangled", mangle(data, dice))
        else:
            yield Sent(rpc, "plain", data)


def _renamed(message: Message, request_id: str) -> Message:
    renamed = type(message)()
    renamed.CopyFrom(message)
    renamed.request_id = request_id  # type: ignore[attr-defined]
    return renamed
