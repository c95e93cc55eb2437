"""The language of filters and orders: what it means, what it refuses and where."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from animus.domain.errors import Invalid
from animus.domain.filter import (
    MAX_DEPTH,
    MAX_LENGTH,
    MAX_TERMS,
    OPERATORS,
    And,
    Filter,
    FilterField,
    Not,
    Or,
    Term,
    parse_filter,
    parse_order,
)

FIELDS = {
    field.name: field
    for field in (
        FilterField("name", "text", ()),
        FilterField("size", "integer", ()),
        FilterField("create_time", "time", ()),
        FilterField("matched", "bool", ()),
        FilterField("state", "enum", (("RUN_STATE_FAILED", "failed"), ("RUN_STATE_RUNNING", "running"))),
        FilterField("labels", "labels", ()),
    )
}


def size(value: int) -> Term:
    """`size = value`."""
    return Term("size", "", "=", value)


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("size=1", size(1)),
        ("  size  =  -1 ", size(-1)),
        ("size=1 size=2", And((size(1), size(2)))),
        ("size=1 AND size=2 size=3", And((size(1), size(2), size(3)))),
        ("size=1 AND size=2 OR size=3", And((size(1), Or((size(2), size(3)))))),
        ("size=1 OR size=2 AND size=3", And((Or((size(1), size(2))), size(3)))),
        ("(size=1 AND size=2) OR size=3", Or((And((size(1), size(2))), size(3)))),
        ("NOT size=1 OR size=2", Or((Not(size(1)), size(2)))),
        ("-(size=1 size=2)", Not(And((size(1), size(2))))),
        ("size=1(size=2)", And((size(1), size(2)))),
        ("name:vis", Term("name", "", ":", "vis")),
        ("name>=sha256:ab", Term("name", "", ">=", "sha256:ab")),
        ('name = "a \'b\' \\"c\\\\"', Term("name", "", "=", "a 'b' \"c\\")),
        ("name = '* AND'", Term("name", "", "=", "* AND")),
        ("name = ''", Term("name", "", "=", "")),
        ("labels:team", Term("labels", "team", ":", "")),
        ("labels.team = x", Term("labels", "team", "=", "x")),
        ('labels."a/b.c-d" != ""', Term("labels", "a/b.c-d", "!=", "")),
        ("state != RUN_STATE_FAILED", Term("state", "", "!=", "failed")),
        ("matched = true", Term("matched", "", "=", True)),
        ("create_time < 2026-01-02T03:04:05Z", Term("create_time", "", "<", "2026-01-02T03:04:05.000000Z")),
        ('create_time > "2026-01-02T03:04:05.5+01:30"', Term("create_time", "", ">", "2026-01-02T01:34:05.500000Z")),
        ("", None),
        (" \t\n", None),
    ],
)
def test_a_filter_means_what_aip_160_says(text: str, tree: Filter | None) -> None:
    """Precedence, negation, values by the type of their field, quotes and escapes."""
    assert parse_filter(text, FIELDS) == tree


@pytest.mark.parametrize(
    ("text", "place", "says"),
    [
        ("sze = 1", 1, "it has name, size, create_time"),
        ("size = 1 AND", 13, "a condition"),
        ("size = 1 OR OR size = 2", 13, "a condition"),
        ("AND size = 1", 1, "a condition"),
        ("size", 5, "= != < <= > >="),
        ("size : 1", 6, "= != < <= > >="),
        ("matched < true", 9, "= !="),
        ("state > RUN_STATE_FAILED", 7, "= !="),
        ("labels = x", 8, "one of : is"),
        ("labels.team : x", 13, "= !="),
        ("labels:Team", 8, "label key"),
        ("labels. = x", 8, "label key"),
        ("name.part = x", 1, "no parts"),
        ("size = x", 8, "integer"),
        ("size = '1'", 8, "integer"),
        ("size = 9007199254740992", 8, "integer"),
        ("size = 1.5", 8, "integer"),
        ("matched = 1", 11, "true or false"),
        ("state = FAILED", 9, "RUN_STATE_FAILED, RUN_STATE_RUNNING"),
        ("create_time = 2026-01-02", 15, "a time such as"),
        ("create_time = 2026-02-30T00:00:00Z", 15, "a time such as"),
        ("create_time = 2026-01-02T00:00:00.1234567Z", 15, "microseconds"),
        ("create_time = 0001-01-01T00:00:00+01:00", 15, "a time such as"),
        ("name = *", 8, "no wildcards"),
        ("name = a*", 9, "a condition"),
        ("name = AND", 8, "a value is expected"),
        ("name = ", 8, "a value is expected"),
        ("name = 'a", 8, "not closed"),
        (r"name = 'a\n'", 10, "backslash"),
        ("(size = 1", 10, "parenthesis"),
        ("size = 1)", 9, "parenthesis"),
        ("()", 2, "a condition"),
        ("NOT NOT size = 1", 5, "negated twice"),
        ("regex(name, 'a')", 1, "no functions"),
        ("= 1", 1, "a condition"),
        ("size = 1; DROP TABLE run", 8, "integer"),
    ],
)
def test_what_is_no_filter_is_refused_at_its_place(text: str, place: int, says: str) -> None:
    """The 1-based character, and what is allowed there; never a guess."""
    with pytest.raises(Invalid) as found:
        parse_filter(text, FIELDS)
    (violation,) = found.value.violations
    assert (found.value.reason, violation.field) == ("FILTER_INVALID", "filter")
    assert violation.description.startswith(f"character {place}: "), violation.description
    assert says in violation.description


def test_the_size_of_a_filter_is_bounded() -> None:
    """Characters, conditions and depth, each up to its bound and not beyond."""
    for fine, beyond in (
        ("size=1" + " " * (MAX_LENGTH - 6), "size=1" + " " * (MAX_LENGTH - 5)),
        ("size=1 " * MAX_TERMS, "size=1 " * (MAX_TERMS + 1)),
        ("(" * (MAX_DEPTH - 1) + "size=1" + ")" * (MAX_DEPTH - 1), "(" * MAX_DEPTH + "size=1" + ")" * MAX_DEPTH),
    ):
        assert parse_filter(fine, FIELDS)
        with pytest.raises(Invalid, match=r"allowed|more than|deeper"):
            parse_filter(beyond, FIELDS)
    with pytest.raises(Invalid, match="NUL") as found:
        parse_filter("name = '\0'", FIELDS)
    assert found.value.reason == "FILTER_INVALID"


TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8)
KEYS = st.from_regex(r"[a-z0-9]([a-z0-9._/-]{0,5}[a-z0-9])?", fullmatch=True)
TERMS = st.one_of(
    st.builds(Term, st.just("name"), st.just(""), st.sampled_from(OPERATORS["text"]), TEXTS),
    st.builds(
        Term, st.just("size"), st.just(""), st.sampled_from(OPERATORS["integer"]), st.integers(-(2**53) + 1, 2**53 - 1)
    ),
    st.builds(Term, st.just("matched"), st.just(""), st.sampled_from(OPERATORS["bool"]), st.booleans()),
    st.builds(
        Term, st.just("state"), st.just(""), st.sampled_from(OPERATORS["enum"]), st.sampled_from(["failed", "running"])
    ),
    st.builds(Term, st.just("labels"), KEYS, st.sampled_from(["=", "!="]), TEXTS),
    st.builds(Term, st.just("labels"), KEYS, st.just(":"), st.just("")),
)


def _parts(trees: st.SearchStrategy[Any], without: type) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(trees.filter(lambda tree: not isinstance(tree, without)), min_size=2, max_size=3).map(tuple)


TREES = st.recursive(
    TERMS,
    lambda trees: st.one_of(
        trees.filter(lambda tree: not isinstance(tree, Not)).map(Not),
        st.builds(And, _parts(trees, And)),
        st.builds(Or, _parts(trees, Or)),
    ),
    max_leaves=6,
)


def written(tree: Filter) -> str:
    """The text of a tree."""
    if isinstance(tree, Not):
        return f"NOT {_inner(tree.item)}"
    if isinstance(tree, (And, Or)):
        return f" {'AND' if isinstance(tree, And) else 'OR'} ".join(map(_inner, tree.items))
    name = f"labels.{tree.key}" if tree.field == "labels" and tree.operator != ":" else tree.field
    value = tree.value
    if tree.field == "labels" and tree.operator == ":":
        return f"labels:{tree.key}"
    if isinstance(value, bool):
        return f"{name} {tree.operator} {str(value).lower()}"
    if isinstance(value, int):
        return f"{name} {tree.operator} {value}"
    names = {stored: contract for contract, stored in FIELDS["state"].values}
    text = names[value] if tree.field == "state" else value.replace("\\", "\\\\").replace('"', '\\"')
    return f'{name} {tree.operator} "{text}"'


def _inner(tree: Filter) -> str:
    return f"({written(tree)})" if isinstance(tree, (And, Or)) else written(tree)


@settings(max_examples=40)
@given(TREES)
def test_a_tree_that_is_written_is_read_as_it_was(tree: Filter) -> None:
    """Reading is the inverse of writing, for every value that text can carry."""
    assert parse_filter(written(tree), FIELDS) == tree


@given(st.text("()\"' =<>!:-\\.aANDORT", max_size=30) | TEXTS)
def test_any_text_is_a_filter_or_refused(text: str) -> None:
    """No text makes the reader fail otherwise."""
    try:
        parse_filter(text, FIELDS)
    except Invalid as error:
        assert error.reason == "FILTER_INVALID"


def test_an_order_is_fields_with_directions() -> None:
    """Ascending unless `desc` follows; nothing is the list's own order."""
    assert parse_order("", FIELDS) == ()
    assert parse_order(" size desc , name,create_time asc", FIELDS) == (
        ("size", True),
        ("name", False),
        ("create_time", False),
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("sze", "create_time, name, size"),
        ("labels", "create_time, name, size"),
        ("state", "create_time, name, size"),
        ("size,", "''"),
        ("size down", "'desc'"),
        ("size desc desc", "'desc'"),
        ("size, size desc", "twice"),
        (",".join(["size"] * 11), "at most 10"),
    ],
)
def test_what_is_no_order_is_refused(text: str, says: str) -> None:
    """By the field `orderBy`, with what is allowed."""
    with pytest.raises(Invalid) as found:
        parse_order(text, FIELDS)
    assert found.value.violations[0].field == "orderBy"
    assert says in found.value.violations[0].description
