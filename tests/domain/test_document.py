"""animus-json-1: one spelling per value, everything else refused, and values that come back as they went."""

import contextlib
import dataclasses
import enum
import hashlib
import json
import re
import time
from pathlib import Path
from typing import Any, ClassVar

import orjson
import pytest
import rfc8785
from hypothesis import given, settings
from hypothesis import strategies as st

from animus.domain import document
from animus.domain.errors import Invalid, Violation, invalid

VECTORS = Path(__file__).parents[1] / "vectors" / "jcs"
NAMES = ("arrays", "french", "structures", "unicode", "values", "weird")
LAW = settings(max_examples=100, deadline=None)


def embed(value: object) -> dict[str, Any]:
    """A document that holds any value of the profile."""
    return {"schema": "animus.test/v1", "value": value}


def embedded(published: bytes) -> bytes:
    """The canonical bytes of `embed`, given those of the value."""
    return b'{"schema":"animus.test/v1","value":' + published + b"}"


def published(name: str) -> bytes:
    """The output that the authors of RFC 8785 publish for a vector."""
    return (VECTORS / "output" / f"{name}.json").read_bytes()


def violations(call: Any, *args: Any) -> tuple[Violation, ...]:
    """What a call refuses."""
    with pytest.raises(Invalid) as caught:
        call(*args)
    return caught.value.violations


# The published vectors.


@pytest.mark.parametrize("name", NAMES)
def test_the_oracle_writes_the_published_output(name: str) -> None:
    """rfc8785, by which the tests below judge, agrees with each published vector, inside the profile or not."""
    assert rfc8785.dumps(json.loads((VECTORS / "input" / f"{name}.json").read_bytes())) == published(name)
    assert bytes.fromhex((VECTORS / "outhex" / f"{name}.txt").read_text()) == published(name)


@pytest.mark.parametrize("name", ["unicode", "structures"])
def test_published_values_inside_the_profile_keep_their_published_bytes(name: str) -> None:
    """A published output whose value is inside the profile is what `canonical` writes for that value."""
    value = document.parse_json(published(name))
    assert document.canonical(embed(value)) == embedded(published(name))
    assert document.parse(embedded(published(name))) == embed(value)


@pytest.mark.parametrize("name", NAMES)
def test_the_parts_of_a_vector_inside_the_profile_keep_their_published_bytes(name: str) -> None:
    """Each published string and each member with an ASCII key is spelled as published, whatever its siblings are."""
    whole = json.loads(published(name))
    kept = 0
    for part in parts(whole):
        spelled = rfc8785.dumps(part)
        assert spelled in published(name)
        assert document.canonical(embed(part)) == embedded(spelled)
        kept += 1
    assert kept >= 2


def parts(value: Any) -> list[Any]:
    """Every part of a value that lies inside the profile, by a rule that is not the product's."""
    below = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    inside = [part for each in below for part in parts(each)]
    whole = not any(type(each) in (float, type(None)) for each in every(value))
    return [*inside, value] if whole and all(key.isascii() for key in keys(value)) else inside


def every(value: Any) -> list[Any]:
    """A value and all values in it."""
    below = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    return [value, *(each for part in below for each in every(part))]


def keys(value: Any) -> list[str]:
    """All keys in a value."""
    return [key for each in every(value) if isinstance(each, dict) for key in each]


@pytest.mark.parametrize(
    ("name", "path", "reason"),
    [
        ("arrays", "value[1].10", "is null"),
        ("french", "", "a key that is no ASCII text"),
        ("structures", "value.1.\n", "is a floating-point number"),
        ("values", "value.numbers[0]", "is a floating-point number"),
        ("weird", "", "a key that is no ASCII text"),
    ],
)
def test_published_inputs_outside_the_profile_are_refused_by_name(name: str, path: str, reason: str) -> None:
    """What JCS would repair or sort by UTF-16 is refused, with the place and the reason."""
    text = b'{"schema":"animus.test/v1","value":' + (VECTORS / "input" / f"{name}.json").read_bytes() + b"}"
    (found,) = violations(lambda: document.canonical(document.parse_json(text)))
    assert found.field == path
    assert reason in found.description


def test_sorted_compact_json_is_not_canonical_outside_the_profile() -> None:
    """The check that runs first is needed: for these values the fast writer and JCS differ, or a value is lost."""
    weird = json.loads(published("weird"))
    assert orjson.dumps(weird, option=orjson.OPT_SORT_KEYS) != published("weird")
    assert orjson.dumps(float("nan")) == b"null"


# The law: inside the profile our bytes are those of RFC 8785, and come back.

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=20)
ascii_keys = st.text(st.characters(max_codepoint=127, exclude_characters="\x00"), max_size=8)
integers = st.integers(-document.MAX_INTEGER, document.MAX_INTEGER)
values = st.recursive(
    texts | integers | st.booleans(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(ascii_keys, inner, max_size=4),
    max_leaves=8,
)
schemas = st.sampled_from(["animus.test/v1", "animus.a_2/v10", "animus.0/v999"])
trees = st.builds(
    lambda members, schema: {**members, "schema": schema}, st.dictionaries(ascii_keys, values, max_size=4), schemas
)


@LAW
@given(trees)
def test_canonical_bytes_are_those_of_rfc_8785(tree: dict[str, Any]) -> None:
    """For every tree of the profile the bytes equal those of an independent implementation of the RFC."""
    assert document.canonical(tree) == rfc8785.dumps(tree)


@LAW
@given(trees)
def test_parse_is_the_inverse_of_canonical(tree: dict[str, Any]) -> None:
    """Reading the bytes gives the tree, and writing that gives the bytes."""
    written = document.canonical(tree)
    assert document.parse(written) == tree
    assert document.canonical(document.parse(written)) == written


@LAW
@given(trees, st.randoms(use_true_random=False))
def test_the_order_of_keys_does_not_matter(tree: dict[str, Any], random: Any) -> None:
    """Trees that are equal have one spelling, in whatever order their keys were written."""

    def shuffled(node: Any) -> Any:
        if isinstance(node, dict):
            members = [(key, shuffled(value)) for key, value in node.items()]
            random.shuffle(members)
            return dict(members)
        return [shuffled(each) for each in node] if isinstance(node, list) else node

    assert document.canonical(shuffled(tree)) == document.canonical(tree)


def test_the_digest_is_what_coreutils_print() -> None:
    """The digest is the plain SHA-256 of the document's bytes, with its algorithm in front."""
    bytes_ = document.canonical(embed("A"))
    assert bytes_ == b'{"schema":"animus.test/v1","value":"A"}'
    assert document.digest(bytes_) == "sha256:" + hashlib.sha256(bytes_).hexdigest()
    assert document.digest(bytes_) == "sha256:0379d4d85fbcae00f427812ffbc5dfa7bc19713c7ff49b6e2d492af9e04cdd20"


# Outside the profile.

outsiders = {
    "a float": (1.5, "floating-point"),
    "a whole float": (56.0, "floating-point"),
    "NaN": (float("nan"), "floating-point"),
    "infinity": (float("inf"), "floating-point"),
    "null": (None, "is null"),
    "2^53": (2**53, "beyond 2^53-1"),
    "-2^53": (-(2**53), "beyond 2^53-1"),
    "NUL": ("a\x00b", "NUL"),
    "a lone high surrogate": ("\ud800", "surrogate"),
    "a lone low surrogate": ("x\udfff", "surrogate"),
    "a key outside ASCII": ({"é": 1}, "no ASCII"),
    "a key with NUL": ({"\x00": 1}, "no ASCII"),
    "a key that is a number": ({1: 1}, "no ASCII"),
    "a surrogate key": ({"\ud800": 1}, "no ASCII"),
    "bytes": (b"a", "no JSON value"),
    "a set": ({"a"}, "no JSON value"),
}


@pytest.mark.parametrize("name", outsiders)
def test_a_value_outside_the_profile_is_refused_wherever_it_stands(name: str) -> None:
    """Each kind of outsider is refused with its reason and the path of the place."""
    outsider, reason = outsiders[name]
    for tree, path in (
        (embed(outsider), "value"),
        (embed([1, outsider]), "value[1]"),
        (embed({"a": [{"b": outsider}]}), "value.a[0].b"),
    ):
        (found,) = violations(document.canonical, tree)
        assert found.field == path
        assert reason in found.description


@LAW
@given(trees, st.sampled_from([outsider for outsider, _ in outsiders.values()]), st.randoms(use_true_random=False))
def test_one_outsider_anywhere_spoils_a_tree(tree: dict[str, Any], outsider: Any, random: Any) -> None:
    """A tree of the profile with one outsider put at any place is refused."""
    places = [each for each in every(tree) if isinstance(each, (dict, list))]
    place = random.choice(places)
    if isinstance(place, list):
        place.insert(random.randint(0, len(place)), outsider)
    else:
        place[random.choice(["added", *(key for key in place if place is not tree or key != "schema")])] = outsider
    violations(document.canonical, tree)


@pytest.mark.parametrize("edge", [2**53 - 1, -(2**53 - 1)])
def test_the_largest_integers_are_inside(edge: int) -> None:
    """The bounds themselves are kept exactly."""
    assert document.parse(document.canonical(embed(edge))) == embed(edge)


@pytest.mark.parametrize("nest", [lambda inner: [inner], lambda inner: {"a": inner}])
def test_depth_32_is_inside_and_33_is_refused(nest: Any) -> None:
    """The bound on nesting is exact, for lists and objects, in trees, JSON and YAML alike."""

    def nested(depth: int) -> dict[str, Any]:
        value: Any = "x"
        for _ in range(depth - 1):
            value = nest(value)
        return embed(value)

    inside, outside = nested(32), nested(33)
    written = document.canonical(inside)
    assert document.parse(written) == inside
    assert document.parse_yaml(written) == inside
    assert "deeper than 32" in violations(document.canonical, outside)[0].description
    assert "deeper than 32" in violations(document.parse, json.dumps(outside).encode())[0].description
    assert "deeper than 32" in violations(document.parse_yaml, json.dumps(outside).encode())[0].description


@pytest.mark.parametrize("read", [document.parse, document.parse_json, document.parse_yaml])
@pytest.mark.parametrize("text", [b"[" * 200_000, b'{"a":' * 200_000, b"[" * 200_000 + b"]" * 200_000])
def test_endless_nesting_is_refused_and_not_fatal(read: Any, text: bytes) -> None:
    """Nesting far beyond the stack is an answer, not a crash."""
    assert "deeper than 32" in violations(read, text)[0].description


@pytest.mark.parametrize(
    "top",
    [
        [],
        "text",
        7,
        True,
        None,
        {},
        {"schema": 1},
        {"schema": None},
        {"schema": ""},
        {"schema": "animus.test"},
        {"schema": "animus.Test/v1"},
        {"schema": "animus.test/v0"},
        {"schema": "animus.test/v01"},
        {"schema": "animus.test/v1\n"},
        {"schema": "other.test/v1"},
        {"Schema": "animus.test/v1"},
    ],
)
def test_a_top_without_a_schema_is_refused(top: Any) -> None:
    """Every document says what it is, so that bytes of one type are never those of another."""
    assert violations(document.canonical, top)[0].field == "schema"


# Bytes that are not canonical.


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b'{"schema":"animus.test/v1","value":1 }', "canonical form"),
        (b'{"schema":"animus.test/v1","value":1}\n', "canonical form"),
        (b'{"value":1,"schema":"animus.test/v1"}', "canonical form"),
        (b'{"schema":"animus.test/v1","value":"\\u0041"}', "canonical form"),
        (b'{"schema":"animus.test/v1","value":"\\/"}', "canonical form"),
        (b'{"schema":"animus.test/v1","value":-0}', "canonical form"),
        (b'{"schema":"animus.test/v1","value":1e1}', "floating-point"),
        (b'{"schema":"animus.test/v1","value":NaN}', "NaN"),
        (b'{"schema":"animus.test/v1","value":-Infinity}', "-Infinity"),
        (b'{"schema":"animus.test/v1","value":9007199254740992}', "beyond 2^53-1"),
        (b'{"schema":"animus.test/v1","value":' + b"9" * 100_000 + b"}", "beyond 2^53-1"),
        (b'{"schema":"animus.test/v1","value":01}', "no JSON"),
        (b'{"schema":"animus.test/v1","value":"\t"}', "no JSON"),
        (b'{"schema":"animus.test/v1","value":"\\ud800"}', "surrogate"),
        (b'{"schema":"animus.test/v1","\\ud800":1}', "no ASCII"),
        (b'{"schema":"animus.test/v1","value":"\\u0000"}', "NUL"),
        (b'{"schema":"animus.test/v1","value":"\xff"}', "UTF-8"),
        (b'{"schema":"animus.test/v1","value":"\xed\xa0\x80"}', "UTF-8"),
        (b'{"schema":"animus.test/v1","value":1,"value":1}', "'value' twice"),
        (b'{"schema":"animus.test/v1","value":[{"a":1,"b":2,"a":1}]}', "'a' twice"),
        (b'\xef\xbb\xbf{"schema":"animus.test/v1"}', "no JSON"),
        (b'{"schema":"animus.test/v1"}{}', "no JSON"),
        (b"", "no JSON"),
    ],
)
def test_other_spellings_are_refused(text: bytes, reason: str) -> None:
    """Bytes that a lenient reader would take for the same value are no document."""
    assert reason in violations(document.parse, text)[0].description


def test_a_repeated_key_behind_many_others_is_found_in_linear_time() -> None:
    """200,000 keys take a fraction of a second; comparing each with each would take many minutes."""
    count = 200_000
    text = b"{" + b",".join(b'"%d":1' % number for number in range(count)) + b',"%d":1}' % (count - 1)
    started = time.monotonic()
    assert "'199999' twice" in violations(document.parse_json, text)[0].description
    assert time.monotonic() - started < 20


sample = {
    "schema": "animus.test/v1",
    "list": [1, -2, 9007199254740991, True, False, [], {}],
    "text": 'a"\\\n\u007f\u0080é😂</script>',
    "nested": {"a": {"b": ["c", "d"]}},
}


def test_every_changed_byte_is_refused_or_is_another_document() -> None:
    """No byte can be changed, left out or added unnoticed: `parse` refuses it, or the digest is another."""
    written = document.canonical(sample)
    digest = document.digest(written)
    mangled = {written[:at] + bytes([byte]) + written[at + 1 :] for at in range(len(written)) for byte in range(256)}
    mangled |= {written[:at] + written[at + 1 :] for at in range(len(written))}
    mangled |= {written[:at] + bytes([byte]) + written[at:] for at in range(len(written) + 1) for byte in (0, 32, 92)}
    mangled -= {written}
    accepted = 0
    for each in mangled:
        try:
            tree = document.parse(each)
        except Invalid:
            continue
        accepted += 1
        assert tree != sample
        assert document.canonical(tree) == each
        assert document.digest(each) != digest
    assert 0 < accepted < len(mangled) // 2  # both answers occur: this test can fail


# YAML that people write.


def test_yaml_and_json_of_one_tree_read_alike() -> None:
    """The scalars of JSON mean the same in YAML, quoted or plain, in block or flow style."""
    text = b"""
a: 1
b: "1"
c: true
d: [x, 'y', -9007199254740991]
e: {}
f: |
  two
  lines
<<: plain
"""
    expected = {"a": 1, "b": "1", "c": True, "d": ["x", "y", -(2**53 - 1)], "e": {}, "f": "two\nlines\n", "<<": "plain"}
    assert document.parse_yaml(text) == expected
    assert document.parse_yaml(json.dumps(expected).encode()) == expected


PLAIN_WORDS = """
on off yes no y n True TRUE Null NULL 2026-01-01 2026-01-01T12:00:00Z 1_000 0x1F 0o17 012 1:30 +1 .5 .inf .nan = <<
"""


@pytest.mark.parametrize("word", PLAIN_WORDS.split())
def test_words_that_yaml_would_type_stay_text(word: str) -> None:
    """A country called `no`, a version called `1_000` or a date is the text that was written."""
    assert document.parse_yaml(f"value: {word}".encode()) == {"value": word}
    assert document.parse_yaml(f"{word}: value".encode()) == {word: "value"}


@pytest.mark.parametrize("word", ["1.5", "1e3", "-0.0", "123456789012345678", "null", "~", ""])
def test_plain_floats_and_nulls_are_seen_as_such(word: str) -> None:
    """They are not taken for text: the reader of the field says what is wrong with them."""
    tree = document.parse_yaml(f"value: {word}".encode())
    assert isinstance(tree, dict)
    assert type(tree["value"]) in (float, type(None))
    violations(document.canonical, embed(tree))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"a: 1\na: 1\n", "line 2: has the key 'a' twice"),
        (b"x:\n  a: 1\n  b: {c: 1, c: 2}\n", "line 3: has the key 'c' twice"),
        (b"a: &x [1]\nb: *x\n", "line 1: has an anchor"),
        (b"a: [1]\nb: *x\n", "line 2: has an anchor or an alias"),
        (b"a: &x 1\n", "line 1: has an anchor"),
        (b"&x a: 1\n", "line 1: has an anchor"),
        (b"&x {a: 1}\n", "line 1: has an anchor"),
        (b"base: &b {c: 1}\na:\n  <<: *b\n", "line 1: has an anchor"),
        (b"a: !!python/object/apply:os.system [ls]\n", "line 1: has the tag"),
        (b"a: !!python/name:os.system\n", "line 1: has the tag"),
        (b"a: !!int 0x1F\n", "line 1: has the tag"),
        (b"a: !!bool on\n", "line 1: has the tag"),
        (b"a: !!timestamp 2026-01-01\n", "line 1: has the tag"),
        (b"a: !!binary aGk=\n", "line 1: has the tag"),
        (b"a: !!set {b, c}\n", "line 1: has the tag"),
        (b"!!merge <<: {a: 1}\n", "line 1: has the tag"),
        (b"a: !!str {!!value =: foo}\n", "line 1: has the tag"),
        (b"a: !own 1\n", "line 1: has the tag"),
        (b"a: ! 1\n", "line 1: has the tag"),
        (b"1: a\n", "line 1: has a key that is no ASCII text"),
        (b"true: a\n", "line 1: has a key that is no ASCII text"),
        (b"x: {null: a}\n", "line 1: has a key that is no ASCII text"),
        (b"[a]: b\n", "line 1: has a key that is no ASCII text"),
        ("é: 1".encode(), "line 1: has a key that is no ASCII text"),
        (b'"\\0": 1', "line 1: has a key that is no ASCII text"),
        (b"a: 1\n---\nb: 1\n", "line 2: is no YAML"),
        (b"a: 1\n  b: 2\n", "line 2: is no YAML"),
        (b"a: [1\n", "is no YAML"),
        (b"a: \x00\n", "is no YAML"),
        ('a: 1\nb: "x\x85y"\n'.encode(), "line 2: has the line break '\\x85'"),
        ("a: x\u2028y\n".encode(), "line 1: has the line break '\\u2028'"),
        (b"a: \xff\n", "is not UTF-8"),
    ],
)
def test_yaml_that_means_more_than_it_shows_is_refused_with_the_line(text: bytes, reason: str) -> None:
    """Repeated keys, aliases, tags, keys that are no text and second documents are named with their line."""
    (found,) = violations(document.parse_yaml, text)
    assert reason in found.description
    assert "\n" not in found.description


def test_a_billion_laughs_are_refused_before_they_unfold() -> None:
    """Nine lines that a lenient reader unfolds into a thousand million items are refused at the first anchor."""
    lines = ["l0: &l0 [lol]"] + [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]" for n in range(1, 10)]
    assert "line 1: has an anchor" in violations(document.parse_yaml, "\n".join(lines).encode())[0].description


@LAW
@given(trees)
def test_canonical_json_is_yaml(tree: dict[str, Any]) -> None:
    """The canonical bytes of a tree read as YAML give the tree, unless they hold a character that YAML changes."""
    written = document.canonical(tree).decode()
    if re.search("[\x7f-\x84\x85\x86-\x9f\u2028\u2029\ufeff\ufffe\uffff]", written):
        with contextlib.suppress(Invalid):
            assert document.parse_yaml(written.encode()) == tree
    else:
        assert document.parse_yaml(written.encode()) == tree


# Values.


class Colour(enum.StrEnum):
    """An enum of a value."""

    RED = "RED"
    BLUE = "BLUE"


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """A nested value."""

    part_name: str
    count: int

    def __post_init__(self) -> None:
        if self.count < 0:
            raise invalid("count", "is negative")


@dataclasses.dataclass(frozen=True, slots=True)
class Whole:
    """A value with a field of each kind that a document may hold."""

    SCHEMA: ClassVar[str] = "animus.whole/v1"

    whole_id: str
    is_old: bool
    colour: Colour
    first_part: Part
    parts: tuple[Part, ...]
    words: tuple[str, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Other:
    """A value with the same fields as none."""

    SCHEMA: ClassVar[str] = "animus.other/v1"

    word: str


part_values = st.builds(Part, texts, st.integers(0, document.MAX_INTEGER))
wholes = st.builds(
    Whole, texts, st.booleans(), st.sampled_from(Colour), part_values, st.lists(part_values).map(tuple),
    st.lists(texts).map(tuple),
)  # fmt: skip
whole = Whole("w", True, Colour.RED, Part("p", 1), (Part("q", 2), Part("r", 3)), ("a", "b"))
whole_tree: dict[str, Any] = {
    "wholeId": "w",
    "isOld": True,
    "colour": "RED",
    "firstPart": {"partName": "p", "count": 1},
    "parts": [{"partName": "q", "count": 2}, {"partName": "r", "count": 3}],
    "words": ["a", "b"],
}


def test_a_document_has_the_fields_in_lower_camel_case_and_its_schema() -> None:
    """The bytes of a value are the canonical form of its fields by name, and its schema."""
    assert document.tree_of(whole) == whole_tree
    assert document.dump(whole) == rfc8785.dumps({**whole_tree, "schema": "animus.whole/v1"})


@LAW
@given(wholes)
def test_load_is_the_inverse_of_dump(value: Whole) -> None:
    """A value that was written is read back equal, and written again alike."""
    assert document.load(document.dump(value), Whole) == value
    assert document.dump(document.load(document.dump(value), Whole)) == document.dump(value)
    assert document.from_tree(document.tree_of(value), Whole) == value


@LAW
@given(wholes, wholes)
def test_digests_are_equal_only_for_equal_values(left: Whole, right: Whole) -> None:
    """Two values have one digest if and only if they are equal."""
    assert (document.digest(document.dump(left)) == document.digest(document.dump(right))) == (left == right)


def test_a_document_of_another_type_is_not_loaded() -> None:
    """The schema decides which type the bytes are of."""
    (found,) = violations(document.load, document.dump(Other("w")), Whole)
    assert found == Violation("schema", "is not animus.whole/v1")


def changed(**changes: Any) -> dict[str, Any]:
    """The sample's tree with some fields changed; None takes one out."""
    return {key: value for key, value in {**whole_tree, **changes}.items() if value is not None}


@pytest.mark.parametrize(
    ("tree", "field", "reason"),
    [
        (changed(wholeId=None), "wholeId", "is missing"),
        (changed(whole_id="w"), "whole_id", "is no field here"),
        (changed(wholeId=1), "wholeId", "is an integer; a string is expected"),
        (changed(wholeId="a\x00"), "wholeId", "NUL"),
        (changed(wholeId="\ud800"), "wholeId", "surrogate"),
        (changed(isOld="true"), "isOld", "is a string; true or false is expected"),
        (changed(isOld=1), "isOld", "is an integer; true or false is expected"),
        (changed(colour="GREEN"), "colour", "is none of 'RED', 'BLUE'"),
        (changed(colour=1), "colour", "is none of"),
        (changed(firstPart=[]), "firstPart", "is a list; an object is expected"),
        (changed(firstPart={"partName": "p", "count": True}), "firstPart.count", "is true or false; an integer"),
        (changed(firstPart={"partName": "p", "count": 1.0}), "firstPart.count", "is a floating-point number"),
        (changed(firstPart={"partName": "p", "count": 2**53}), "firstPart.count", "beyond 2^53-1"),
        (changed(firstPart={"partName": "p", "count": -1}), "firstPart.count", "is negative"),
        (changed(firstPart={"partName": None, "count": 1}), "firstPart.partName", "is null; a string is expected"),
        (changed(parts={}), "parts", "is an object; a list is expected"),
        (changed(parts=[{"partName": "p", "count": 1}, {"count": 1}]), "parts[1].partName", "is missing"),
        (changed(parts=[{"partName": "p", "count": 1, "size": 2}]), "parts[0].size", "is no field here"),
        (changed(words=["a", 2]), "words[1]", "is an integer; a string is expected"),
        (changed(words=[b"a"]), "words[0]", "is no JSON value; a string is expected"),
        ([], "", "is a list; an object is expected"),
        (None, "", "is null; an object is expected"),
    ],
)
def test_each_fault_is_named_by_its_path(tree: Any, field: str, reason: str) -> None:
    """Missing, unknown and wrong fields are refused with the JSON path and what is expected."""
    (found,) = violations(document.from_tree, tree, Whole)
    assert found.field == field
    assert reason in found.description


def test_all_faults_are_named_at_once() -> None:
    """One answer names every field at fault, in order."""
    tree = changed(wholeId=7, colour="GREEN", parts=[{"partName": "p", "count": -1}, {"partName": 1, "count": 1}])
    assert [each.field for each in violations(document.from_tree, tree, Whole)] == [
        "wholeId",
        "colour",
        "parts[0].count",
        "parts[1].partName",
    ]


@pytest.mark.parametrize("fault", [{"partName": "p"}, {"partName": "p", "count": "1"}, {"partName": "p", "count": -1}])
def test_more_faults_than_are_kept_are_still_faults(fault: dict[str, Any]) -> None:
    """Beyond the bound on named faults the answer stays Invalid, and no half-read value is built."""
    tree = changed(parts=[fault] * (document.MAX_VIOLATIONS * 2))
    assert len(violations(document.from_tree, tree, Whole)) == document.MAX_VIOLATIONS


# Where two trees differ.


@LAW
@given(trees)
def test_a_tree_does_not_differ_from_itself(tree: dict[str, Any]) -> None:
    """Equal trees have no differing path."""
    assert list(document.differing_paths(tree, document.parse(document.canonical(tree)))) == []


named = st.lists(st.fixed_dictionaries({"name": st.sampled_from("abc"), "value": st.sampled_from([1, 2])}), max_size=3)
small = st.dictionaries(
    st.sampled_from("xyz"),
    st.recursive(st.sampled_from([1, True, "1", "a"]), lambda v: named | st.lists(v, max_size=3), max_leaves=4),
)


@LAW
@given(small, small)
def test_trees_differ_at_a_path_if_and_only_if_their_bytes_differ(left: dict[str, Any], right: dict[str, Any]) -> None:
    """No difference goes unnamed, an order of named items included, and none is made up."""
    same = rfc8785.dumps(left) == rfc8785.dumps(right)
    assert (list(document.differing_paths(left, right)) == []) == same


@LAW
@given(small, small)
def test_differences_read_backwards_from_the_other_side(left: dict[str, Any], right: dict[str, Any]) -> None:
    """Swapping the trees swaps the two columns and keeps paths and order."""
    forwards = list(document.differing_paths(left, right))
    backwards = list(document.differing_paths(right, left))
    assert forwards == [(path, one, other) for path, other, one in backwards]
    assert len({path for path, _, _ in forwards}) == len(forwards)


def test_named_items_are_matched_by_name() -> None:
    """A step that was added, left out or changed is named by its name, not by how far it shifted the others."""
    left = {"steps": [{"name": "a", "image": "1"}, {"name": "b", "image": "1"}], "n": 1}
    right = {"steps": [{"name": "b", "image": "2"}, {"name": "c", "image": "1"}]}
    assert list(document.differing_paths(left, right)) == [
        ("n", "1", ""),
        ("steps[a]", '{"image":"1","name":"a"}', ""),
        ("steps[b].image", '"1"', '"2"'),
        ("steps[c]", "", '{"image":"1","name":"c"}'),
    ]


def test_true_is_not_one() -> None:
    """Python holds True and 1 for equal; two documents with them are not."""
    assert list(document.differing_paths({"a": True}, {"a": 1})) == [("a", "true", "1")]


def test_another_order_of_named_items_is_a_difference() -> None:
    """Where only the order differs, the path of the list shows both orders."""
    left, right = [{"name": "a"}, {"name": "b"}], [{"name": "b"}, {"name": "a"}]
    assert list(document.differing_paths({"l": left}, {"l": right})) == [("l", '["[a]","[b]"]', '["[b]","[a]"]')]
