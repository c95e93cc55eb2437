"""animus-json-1: the canonical bytes of a value, and back.

A strict profile of RFC 8785 (JCS). It rejects and never repairs:

- the top is an object with `"schema": "animus.<type>/v<n>"` inside it, so that bytes of one type are never those of
  another, and `sha256sum` of a stored file is its digest;
- keys are ASCII and distinct; strings hold neither NUL nor lone surrogates;
- no floats, no null; integers within ±(2^53-1); decimals and times are strings;
- depth at most 32.

Inside this profile sorted compact JSON equals JCS; outside it does not, so the check always runs first.

A domain value becomes a document by its field names, in lowerCamelCase: str, int, bool, StrEnum, tuples and nested
values. `load` is the inverse of `dump`, and reads the same fields from JSON or YAML that a person wrote.
"""

import dataclasses
import enum
import hashlib
import json
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from functools import cache

import orjson
import yaml

from animus.domain.errors import Invalid, Violation, invalid

MAX_DEPTH = 32
MAX_INTEGER = 2**53 - 1
MAX_VIOLATIONS = 100

type_name = {dict: "an object", list: "a list", str: "a string", int: "an integer", bool: "true or false"}

T = typing.TypeVar("T")

Json = dict[str, "Json"] | list["Json"] | str | int | bool


def digest(document: bytes) -> str:
    """`sha256:` and the SHA-256 of the bytes in 64 lower-case hexadecimal digits."""
    return "sha256:" + hashlib.sha256(document).hexdigest()


def canonical(tree: object) -> bytes:
    """The one spelling of a tree of the profile. Raises Invalid with the path of the first thing outside it."""
    if not isinstance(tree, dict) or not isinstance(tree.get("schema"), str):
        raise invalid("schema", "is missing; the top of a document is an object that names its schema")
    if not re.fullmatch(r"animus\.[a-z0-9_]+/v[1-9][0-9]*", tree["schema"]):
        raise invalid("schema", "is no schema name of the form animus.<type>/v<n>")
    check(tree, "", 1)
    return orjson.dumps(tree, option=orjson.OPT_SORT_KEYS)


def check(node: object, path: str, depth: int) -> None:
    """Raises Invalid unless the node and all below it are within the profile."""
    if isinstance(node, str):
        check_text(node, path)
    elif isinstance(node, bool):
        pass
    elif isinstance(node, int):
        if not -MAX_INTEGER <= node <= MAX_INTEGER:
            raise invalid(path, "is beyond 2^53-1; write larger numbers as strings")
    elif depth > MAX_DEPTH:
        raise invalid(path, f"nests deeper than {MAX_DEPTH} levels")
    elif isinstance(node, dict):
        for key, value in node.items():
            check_key(key, path)
            check(value, f"{path}.{key}" if path else key, depth + 1)
    elif isinstance(node, (list, tuple)):
        for index, value in enumerate(node):
            check(value, f"{path}[{index}]", depth + 1)
    elif node is None:
        raise invalid(path, "is null; every field has a value")
    elif isinstance(node, float):
        raise invalid(path, "is a floating-point number; write decimals as strings")
    else:
        raise invalid(path, "is no JSON value")


def check_key(key: object, path: str) -> None:
    """Raises Invalid for a key that is no ASCII text: for others JCS sorts by UTF-16 units and we by bytes."""
    if not isinstance(key, str) or not key.isascii() or "\x00" in key:
        raise invalid(path, "has a key that is no ASCII text")


def check_text(text: str, path: str) -> None:
    """Raises Invalid for text that JSON, UTF-8 or PostgreSQL cannot carry."""
    if "\x00" in text:
        raise invalid(path, "holds a NUL character")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise invalid(path, "holds a lone surrogate") from None


def parse(document: bytes) -> dict[str, Json]:
    """The tree of canonical bytes. Raises Invalid unless the bytes are exactly what `canonical` would write."""
    tree = parse_json(document)
    if canonical(tree) != document:
        raise invalid("", "is not in canonical form")
    return typing.cast(dict[str, Json], tree)


def parse_json(text: bytes) -> object:
    """The tree of JSON that a person wrote. Refuses what JSON readers differ on: duplicate keys, NaN, deep nesting.

    Refuses keys outside the profile too, so that every path in an error is text that can be sent back.
    """

    def refuse_constant(name: str) -> object:
        raise invalid("", f"holds {name}, which is no JSON number")

    def distinct_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
        tree: dict[str, object] = {}
        for key, value in pairs:
            check_key(key, "")
            if key in tree:
                raise invalid("", f"has the key {key!r} twice in one object")
            tree[key] = value
        return tree

    def bounded_integer(digits: str) -> int:
        if len(digits) > 17:  # no integer of the profile is longer, and int() of a huge text is slow
            raise invalid("", "holds an integer beyond 2^53-1; write larger numbers as strings")
        return int(digits)

    try:
        return json.loads(
            text.decode(),
            object_pairs_hook=distinct_keys,
            parse_constant=refuse_constant,
            parse_int=bounded_integer,
        )
    except UnicodeDecodeError:
        raise invalid("", "is not UTF-8") from None
    except RecursionError:
        raise invalid("", f"nests deeper than {MAX_DEPTH} levels") from None
    except ValueError as error:
        raise invalid("", f"is no JSON: {error}") from None


class StrictLoader(yaml.CSafeLoader):
    """YAML with JSON's scalars only, and keys that are distinct ASCII text. Merge keys are keys like any other."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[typing.Hashable, object]:
        """As the base class, and refuses a key that is no ASCII text or stands twice."""
        seen = set()
        for key_node, _ in node.value:
            line = key_node.start_mark.line + 1
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str) or not key.isascii() or "\x00" in key:
                raise invalid("", f"line {line}: has a key that is no ASCII text")
            if key in seen:
                raise invalid("", f"line {line}: has the key {key!r} twice")
            seen.add(key)
        return super().construct_mapping(node, deep)


# YAML 1.1 reads `on`, `2026-01-01` and `1_000` as other things than they look like: only JSON's scalars are typed here.
StrictLoader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("tag:yaml.org,2002:bool", r"^(?:true|false)$", "tf"),
    ("tag:yaml.org,2002:int", r"^(?:0|-?[1-9][0-9]{0,16})$", "-0123456789"),
    ("tag:yaml.org,2002:float", r"^-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?$", "-0123456789"),
    ("tag:yaml.org,2002:null", r"^(?:null|~|)$", ["n", "~", ""]),
):
    StrictLoader.add_implicit_resolver(_tag, re.compile(_pattern), list(_first))


def refuse_surprises(text: str) -> None:
    """Raises Invalid, with the line, for YAML that means more than it shows.

    An alias may unfold a few lines into millions, a tag may turn text into another type, nesting may exhaust the stack.
    The C parser composes nodes without asking its Python subclass, so that this reads the events before it.
    """
    if hidden := re.search("[\x85\u2028\u2029]", text):  # YAML 1.1 folds them into spaces, even in quotes
        line = text.count("\n", 0, hidden.start()) + 1
        raise invalid("", f"line {line}: has the line break {hidden[0]!r}; write it as an escape in double quotes")
    depth = 0
    for event in yaml.parse(text, Loader=yaml.CSafeLoader):
        where = f"line {event.start_mark.line + 1}: " if event.start_mark else ""
        if isinstance(event, yaml.NodeEvent) and event.anchor is not None:
            raise invalid("", f"{where}has an anchor or an alias; write the value out")
        if isinstance(event, (yaml.ScalarEvent, yaml.CollectionStartEvent)) and event.tag is not None:
            raise invalid("", f"{where}has the tag {event.tag!r}; tags are not used here")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise invalid("", f"{where}nests deeper than {MAX_DEPTH} levels")


def parse_yaml(text: bytes) -> object:
    """The tree of YAML that a person wrote; JSON is YAML too. Raises Invalid with the line."""
    try:
        decoded = text.decode()
    except UnicodeDecodeError:
        raise invalid("", "is not UTF-8") from None
    try:
        refuse_surprises(decoded)
        loader = StrictLoader(decoded)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise invalid("", f"{where}is no YAML: {problem}") from None


def parse_text(text: bytes) -> object:
    """The tree of JSON or YAML that a person wrote; what begins with a brace is JSON.

    YAML's reader does not take all of JSON: it refuses surrogate pairs in escapes, DEL, and keys beyond 1,024 bytes.
    """
    return parse_json(text) if text.lstrip()[:1] == b"{" else parse_yaml(text)


def json_name(field: str) -> str:
    """The lowerCamelCase spelling of a snake_case name, as protobuf's JSON has it."""
    head, *tail = field.split("_")
    return head + "".join(part.capitalize() for part in tail)


class Violations:
    """Gathers what is wrong at which path, so that one answer names every field at fault."""

    def __init__(self) -> None:
        self.found: list[Violation] = []
        self.count = 0  # of all; only the first MAX_VIOLATIONS are kept

    def add(self, path: str, error: Invalid) -> None:
        """Keeps the violations of an error that was raised below a path."""
        for each in error.violations:
            self.count += 1
            if len(self.found) < MAX_VIOLATIONS:
                self.found.append(Violation(join(path, each.field), each.description))

    def raise_any(self) -> None:
        """Raises Invalid if anything was added."""
        if self.found:
            raise Invalid(self.found)


def join(path: str, field: str) -> str:
    """The path of a field below a path."""
    return field if not path else path if not field else path + field if field[0] == "[" else f"{path}.{field}"


def tree_of(value: object) -> Json:
    """The JSON tree of a value, without a schema."""
    return _writer(typing.cast(typing.Any, type(value)))(value)


def dump(value: object) -> bytes:
    """The canonical bytes of a value whose class has a `SCHEMA`."""
    tree = typing.cast(dict[str, Json], tree_of(value))
    tree["schema"] = value.SCHEMA  # type: ignore[attr-defined]
    return canonical(tree)


@dataclasses.dataclass(frozen=True, slots=True)
class Sealed(typing.Generic[T]):
    """A value with its canonical bytes and their digest, so that neither is made twice."""

    value: T
    document: bytes
    digest: str


def seal(value: T) -> Sealed[T]:
    """A value whose class has a `SCHEMA`, with its bytes and digest."""
    document = dump(value)
    return Sealed(value, document, digest(document))


def load(document: bytes, kind: type[T]) -> T:
    """The value of stored canonical bytes. Raises Invalid unless `dump` of it gives the same bytes.

    What `parse` checks of a tree, the fields of the value check here: they hold neither floats nor null.
    """
    try:
        tree = orjson.loads(document)
    except orjson.JSONDecodeError:
        raise invalid("", "is no JSON") from None
    if not isinstance(tree, dict) or orjson.dumps(tree, option=orjson.OPT_SORT_KEYS) != document:
        raise invalid("", "is not in canonical form")
    if tree.pop("schema", None) != kind.SCHEMA:  # type: ignore[attr-defined]
        raise invalid("schema", f"is not {kind.SCHEMA}")  # type: ignore[attr-defined]
    value = from_tree(tree, kind)
    if tree_of(value) != tree:  # a set in another order, or with a repeat
        raise invalid("", "is not in canonical form")
    return value


def from_tree(tree: object, kind: type[T]) -> T:
    """The value of a JSON tree. Raises Invalid with the path of every field that is missing, unknown or wrong."""
    violations = Violations()
    value = _reader(typing.cast(typing.Any, kind))(tree, "", violations)
    violations.raise_any()
    return typing.cast(T, value)


_INVALID = object()  # stands for a value that could not be read while its siblings still are


@cache
def fields_of(kind: type) -> tuple[tuple[str, str, typing.Any], ...]:
    """Name, JSON name and type of each field of a value class."""
    hints = typing.get_type_hints(kind)
    return tuple((f.name, json_name(f.name), hints[f.name]) for f in dataclasses.fields(kind))


@cache
def _writer(kind: typing.Any) -> Callable[[typing.Any], Json]:
    """The function that makes a tree of a value of this type."""
    if typing.get_origin(kind) is tuple:
        item = _writer(typing.get_args(kind)[0])
        return lambda value: [item(each) for each in value]
    if dataclasses.is_dataclass(kind):
        parts = [(name, key, _writer(hint)) for name, key, hint in fields_of(typing.cast(type, kind))]
        return lambda value: {key: write(getattr(value, name)) for name, key, write in parts}
    if isinstance(kind, type) and issubclass(kind, enum.StrEnum):
        return lambda value: value.value
    assert kind in (str, int, bool), f"{kind} has no place in a document"
    return lambda value: value


Reader = Callable[[object, str, Violations], object]


@cache
def _reader(kind: typing.Any) -> Reader:
    """The function that makes a value of this type from a tree."""
    if typing.get_origin(kind) is tuple:
        return _tuple_reader(_reader(typing.get_args(kind)[0]))
    if dataclasses.is_dataclass(kind):
        return _value_reader(typing.cast(type, kind))
    if isinstance(kind, type) and issubclass(kind, enum.StrEnum):
        return _enum_reader(kind)
    assert kind in (str, int, bool), f"{kind} has no place in a document"
    return _scalar_reader(kind)


def _tuple_reader(item: Reader) -> Reader:
    def read(tree: object, path: str, violations: Violations) -> object:
        if not isinstance(tree, list):
            return _wrong(tree, list, path, violations)
        return tuple(item(each, f"{path}[{index}]", violations) for index, each in enumerate(tree))

    return read


def _value_reader(kind: type) -> Reader:
    parts = [(name, key, _reader(hint)) for name, key, hint in fields_of(kind)]
    known = {key for _, key, _ in parts}

    def read(tree: object, path: str, violations: Violations) -> object:
        if not isinstance(tree, dict):
            return _wrong(tree, dict, path, violations)
        before = violations.count
        for key in tree:
            if key not in known:
                violations.add(path, invalid(str(key), f"is no field here; the fields are {', '.join(sorted(known))}"))
        values = {}
        for name, key, part in parts:
            if key in tree:
                values[name] = part(tree[key], join(path, key), violations)
            else:
                violations.add(path, invalid(key, "is missing; every field is required, empty lists included"))
        return build(kind, values, path, violations, before)

    return read


def build(kind: type, values: Mapping[str, object], path: str, violations: Violations, before: int) -> object:
    """The value of its fields, unless one of them was at fault; what the value itself refuses is gathered too."""
    if violations.count > before:
        return _INVALID
    try:
        return kind(**values)
    except Invalid as error:
        violations.add(path, error)
        return _INVALID


def _enum_reader(kind: type[enum.StrEnum]) -> Reader:
    members = {member.value: member for member in kind}

    def read(tree: object, path: str, violations: Violations) -> object:
        if isinstance(tree, str) and tree in members:
            return members[tree]
        violations.add(path, invalid("", f"is none of {', '.join(repr(m) for m in members)}"))
        return _INVALID

    return read


def _scalar_reader(kind: type) -> Reader:
    def read(tree: object, path: str, violations: Violations) -> object:
        if type(tree) is not kind:
            return _wrong(tree, kind, path, violations)
        try:
            check(tree, path, 1)
        except Invalid as error:
            violations.add("", error)
            return _INVALID
        return tree

    return read


def _wrong(tree: object, kind: type, path: str, violations: Violations) -> object:
    found = (
        "null"
        if isinstance(tree, types.NoneType)
        else "a floating-point number"
        if isinstance(tree, float)
        else type_name.get(type(tree), "no JSON value")
    )
    violations.add(path, invalid("", f"is {found}; {type_name[kind]} is expected"))
    return _INVALID


def differing_paths(left: object, right: object, path: str = "") -> Iterable[tuple[str, str, str]]:
    """Where two JSON trees differ, ordered by path: (path, left as JSON, right as JSON); empty text where absent.

    Items of a list of objects that have a distinct `name`, `key` or `datasetRef` are matched by it, others by place;
    where matched items stand in another order, the list's own path shows both orders. Empty only for equal trees.
    """
    if type(left) is type(right) and isinstance(left, (dict, list)):
        lefts, rights = _children(left), _children(right)
        for key in sorted(lefts.keys() | rights.keys()):
            below = join(path, key)
            if key not in lefts:
                yield below, "", _compact(rights[key])
            elif key not in rights:
                yield below, _compact(lefts[key]), ""
            else:
                yield from differing_paths(lefts[key], rights[key], below)
        orders = [key for key in lefts if key in rights], [key for key in rights if key in lefts]
        if isinstance(left, list) and orders[0] != orders[1]:
            yield path, _compact(orders[0]), _compact(orders[1])
    elif type(left) is not type(right) or left != right:
        yield path, _compact(left), _compact(right)


def _children(tree: object) -> dict[str, object]:
    if isinstance(tree, dict):
        return tree
    assert isinstance(tree, list)
    for key in ("name", "key", "datasetRef"):
        names = [item.get(key) for item in tree if isinstance(item, dict)]
        if len(names) == len(tree) and all(isinstance(n, str) for n in names) and len(set(names)) == len(names):
            return {f"[{name}]": item for name, item in zip(names, tree, strict=True)}
    return {f"[{index}]": item for index, item in enumerate(tree)}


def _compact(tree: object) -> str:
    return orjson.dumps(tree, option=orjson.OPT_SORT_KEYS).decode()
