"""Filters and orders of lists: AIP-160's language, less what a list here has no use for, and AIP-132's `order_by`.

`parse_filter` reads a text to a tree of conditions on the fields of one kind of list, and says what is wrong with it
by the 1-based character. OR binds tighter than AND, as AIP-160 has it; conditions side by side are joined by AND.
Each condition is true or false of each item, so `a != b` is `NOT a = b` also for a label that is not there.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, NoReturn

from animus.domain.document import MAX_INTEGER, check_text
from animus.domain.errors import Invalid, Violation, invalid
from animus.domain.names import LABEL_KEY, format_time

MAX_LENGTH = 2_000
MAX_DEPTH = 20
MAX_TERMS = 100
MAX_ORDER = 10

FieldType = Literal["text", "integer", "time", "bool", "enum", "labels"]
OPERATORS: dict[FieldType, tuple[str, ...]] = {
    "text": ("=", "!=", "<", "<=", ">", ">=", ":"),
    "integer": ("=", "!=", "<", "<=", ">", ">="),
    "time": ("=", "!=", "<", "<=", ">", ">="),
    "bool": ("=", "!="),
    "enum": ("=", "!="),
    "labels": ("=", "!=", ":"),
}
ORDERED: tuple[FieldType, ...] = ("text", "integer", "time")


@dataclass(frozen=True, slots=True)
class FilterField:
    """A field of a list."""

    name: str
    type: FieldType
    values: tuple[tuple[str, str], ...]  # of an enum: each by its name in the contract, and as it is stored


@dataclass(frozen=True, slots=True)
class Term:
    """One condition on one field."""

    field: str
    key: str  # of a label; else empty
    operator: str  # `:` is: text holds the value, or there is a label of the key
    value: str | int | bool  # a time in its one spelling, an enum as it is stored; empty for whether a label is there


@dataclass(frozen=True, slots=True)
class Not:
    """What does not meet a condition."""

    item: "Filter"


@dataclass(frozen=True, slots=True)
class And:
    """What meets all conditions, two at least."""

    items: tuple["Filter", ...]


@dataclass(frozen=True, slots=True)
class Or:
    """What meets one condition at least, of two at least."""

    items: tuple["Filter", ...]


Filter = Term | Not | And | Or

_SPACE = re.compile(r"\s*")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_KEY = re.compile(r"[a-z0-9._/-]+")
_OPERATOR = re.compile(r"!=|<=|>=|=|<|>|:")
_BARE = re.compile(r"""[^\s()"'=<>!,*\\]+""")
_QUOTED = re.compile(r""""((?:[^"\\]|\\.)*)"|'((?:[^'\\]|\\.)*)'""", re.DOTALL)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_INTEGER = re.compile(r"-?[0-9]{1,16}")
_TIME = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt][0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,6})?(?:[Zz]|[+-][0-9]{2}:[0-9]{2})"
)
_WORDS = ("AND", "OR", "NOT")


def parse_filter(text: str, fields: Mapping[str, FilterField]) -> Filter | None:
    """The tree of a filter, None of an empty one. Raises Invalid FILTER_INVALID."""
    try:
        check_text(text, "filter")
    except Invalid as error:
        raise Invalid(error.violations, "FILTER_INVALID") from None
    if len(text) > MAX_LENGTH:
        raise _refused(f"is {len(text)} characters long; at most {MAX_LENGTH:,} are allowed")
    if not text.strip():
        return None
    reader = _Reader(text, fields)
    found = reader.expression(1)
    if not reader.ended():
        reader.refuse("nothing opened this parenthesis" if reader.peek(")") else "a condition is expected")
    return found


def parse_order(text: str, fields: Mapping[str, FilterField]) -> tuple[tuple[str, bool], ...]:
    """The fields of an order, each with whether it runs backwards. Raises Invalid for `orderBy`."""
    if not text.strip():
        return ()
    allowed = ", ".join(sorted(name for name, field in fields.items() if field.type in ORDERED))
    order: dict[str, bool] = {}
    parts = text.split(",")
    if len(parts) > MAX_ORDER:
        raise invalid("orderBy", f"has {len(parts)} fields; at most {MAX_ORDER} are allowed")
    for part in parts:
        name, *direction = part.split() or [""]
        if name not in fields or fields[name].type not in ORDERED:
            raise invalid("orderBy", f"{name[:63]!r} is nothing to order this list by; give one of {allowed}")
        if direction not in ([], ["asc"], ["desc"]):
            raise invalid("orderBy", f"after {name!r} stands something else than 'desc'")
        if name in order:
            raise invalid("orderBy", f"names {name!r} twice")
        order[name] = direction == ["desc"]
    return tuple(order.items())


def _refused(description: str) -> Invalid:
    return Invalid([Violation("filter", description)], "FILTER_INVALID")


class _Reader:
    """Reads by recursive descent; the depth is bounded, and every pattern takes linear time."""

    def __init__(self, text: str, fields: Mapping[str, FilterField]) -> None:
        self._text = text
        self._fields = fields
        self._at = 0
        self._terms = 0

    def refuse(self, description: str, at: int | None = None) -> NoReturn:
        """Raises what is wrong at a place; without one, where the reader stands."""
        raise _refused(f"character {(self._at if at is None else at) + 1}: {description}")

    def ended(self) -> bool:
        """Whether nothing is left."""
        self._space()
        return self._at == len(self._text)

    def peek(self, character: str) -> bool:
        """Whether this comes next."""
        self._space()
        return self._text.startswith(character, self._at)

    def expression(self, depth: int) -> Filter:
        """Conditions joined by AND, or by standing side by side."""
        if depth > MAX_DEPTH:
            self.refuse(f"nests deeper than {MAX_DEPTH} levels")
        items = [self._factor(depth)]
        while self._word("AND") or not (self.ended() or self.peek(")")):
            items.append(self._factor(depth))
        return And(tuple(items)) if len(items) > 1 else items[0]

    def _factor(self, depth: int) -> Filter:
        items = [self._simple(depth)]
        while self._word("OR"):
            items.append(self._simple(depth))
        return Or(tuple(items)) if len(items) > 1 else items[0]

    def _simple(self, depth: int) -> Filter:
        if self._word("NOT") or self._take("-"):
            self._space()
            start = self._at
            if self._word("NOT") or self.peek("-"):
                self.refuse("a condition is negated twice", start)
            return Not(self._simple(depth))
        if self._take("("):
            found = self.expression(depth + 1)
            if not self._take(")"):
                self.refuse("a closing parenthesis is missing")
            return found
        return self._term()

    def _term(self) -> Filter:
        self._space()
        start = self._at
        name = self._match(_NAME)
        if name is None or name in _WORDS:
            self.refuse("a condition such as `field = value` is expected", start)
        if self._text.startswith("(", self._at):
            self.refuse("there are no functions; a condition is `field = value`", start)
        if name not in self._fields:
            self.refuse(f"{name[:63]!r} is no field of this list; it has {', '.join(self._fields)}", start)
        self._terms += 1
        if self._terms > MAX_TERMS:
            self.refuse(f"has more than {MAX_TERMS} conditions", start)
        field = self._fields[name]
        key = ""
        if self._text.startswith(".", self._at):
            if field.type != "labels":
                self.refuse(f"{name!r} has no parts", start)
            self._at += 1
            key = self._label_key()
        self._space()
        place = self._at
        operator = self._match(_OPERATOR)
        allowed = OPERATORS[field.type]
        if field.type == "labels":
            allowed = ("=", "!=") if key else (":",)
        if operator not in allowed:
            self.refuse(f"after {name!r} of this list one of {' '.join(allowed)} is expected", place)
        self._space()
        if field.type == "labels" and not key:
            return Term(name, self._label_key(), ":", "")
        return Term(name, key, operator, self._value(field))

    def _label_key(self) -> str:
        start = self._at
        key = self._quoted() if self._text[start : start + 1] in ("'", '"') else self._match(_KEY)
        if key is None or not LABEL_KEY.fullmatch(key):
            self.refuse("a label key is expected", start)
        return key

    def _value(self, field: FilterField) -> str | int | bool:
        start = self._at
        quoted = self._text[start : start + 1] in ("'", '"')
        text = self._quoted() if quoted else self._match(_BARE)
        if text is None or (not quoted and text in _WORDS):
            self.refuse("a value is expected; put text of other characters in quotes, there are no wildcards", start)
        if field.type == "integer":
            if quoted or not _INTEGER.fullmatch(text) or abs(int(text)) > MAX_INTEGER:
                self.refuse(f"{field.name!r} is compared with an integer within 2^53-1, without quotes", start)
            return int(text)
        if field.type == "time":
            return self._time(field, text, start)
        if field.type == "bool":
            if quoted or text not in ("true", "false"):
                self.refuse(f"{field.name!r} is compared with true or false, without quotes", start)
            return text == "true"
        if field.type == "enum":
            values = dict(field.values)
            if text not in values:
                self.refuse(f"{field.name!r} is compared with one of {', '.join(values)}", start)
            return values[text]
        return text

    def _time(self, field: FilterField, text: str, start: int) -> str:
        try:
            if not _TIME.fullmatch(text):
                raise ValueError
            return format_time(datetime.fromisoformat(text.upper()).astimezone(UTC))
        except (ValueError, OverflowError):
            self.refuse(
                f"{field.name!r} is compared with a time such as 2026-01-31T12:00:00Z, of microseconds at the finest",
                start,
            )

    def _quoted(self) -> str:
        start = self._at
        found = _QUOTED.match(self._text, start)
        if found is None:
            self.refuse("the quote is not closed", start)
        self._at = found.end()
        inner = found[1] if found[1] is not None else found[2]
        for escape in _ESCAPE.finditer(inner):
            if escape[1] not in "\\\"'":
                self.refuse("after a backslash stands a quote or a backslash", start + 1 + escape.start())
        return _ESCAPE.sub(r"\1", inner)

    def _space(self) -> None:
        found = _SPACE.match(self._text, self._at)
        assert found is not None
        self._at = found.end()

    def _match(self, pattern: re.Pattern[str]) -> str | None:
        found = pattern.match(self._text, self._at)
        if found is None:
            return None
        self._at = found.end()
        return found[0]

    def _take(self, character: str) -> bool:
        if not self.peek(character):
            return False
        self._at += 1
        return True

    def _word(self, word: str) -> bool:
        self._space()
        found = _NAME.match(self._text, self._at)
        if found is None or found[0] != word:
            return False
        self._at = found.end()
        return True
