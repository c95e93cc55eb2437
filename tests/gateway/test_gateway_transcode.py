"""HTTP to message and back, one rule after the other. Over the wire: test_gateway_calls."""

from __future__ import annotations

import base64
import gzip
import itertools
import json
import zlib
from typing import Any

import pytest
from animus_gateway.routes import Match, Router, compile_routes, contract_files
from animus_gateway.status import Refusal
from animus_gateway.transcode import (
    MAX_DEPTH,
    MAX_SEPARATORS,
    check_content_type,
    decode_request,
    decompress,
    encode_reply,
    is_compressed,
    strict_json,
)
from gateway_harness import made_up_service
from google.api.http_pb2 import HttpRule
from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo
from hypothesis import given, settings
from hypothesis import strategies as st

from animus.v1 import audit_pb2, dataset_pb2, pipeline_pb2, run_pb2, runtime_pb2

CONTRACT = Router(compile_routes(contract_files()))
MADE_UP = Router(
    compile_routes(
        [
            made_up_service(
                {
                    "Send": HttpRule(post="/send", body="*"),
                    "Ask": HttpRule(get="/ask"),
                    "AskChild": HttpRule(get="/ask/{child.text}"),
                    "AskNumber": HttpRule(get="/numbers/{small}/{colour}/{flag}"),
                    "SendChild": HttpRule(post="/children/{text}", body="child"),
                    "SendDeep": HttpRule(post="/deep/{child.child.text}", body="*"),
                }
            )
        ]
    )
)


def sent(body: object, path: str = "/send") -> Any:
    """The message that a POST of this JSON makes."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return decode_request(MADE_UP.match("POST", path), "", raw, None)


def asked(query: str, path: str = "/ask") -> Any:
    """The message that a GET with this query makes."""
    return decode_request(MADE_UP.match("GET", path), query, b"", None)


def faults(refused: Refusal) -> list[str]:
    """The fields at fault of a refusal with the reason FIELD_INVALID, which has the shape of a service's own."""
    assert (refused.http_status, refused.status.code) == (400, 3)
    info, bad = ErrorInfo(), BadRequest()
    first, second = refused.status.details
    assert first.Unpack(info)
    assert second.Unpack(bad)
    assert (info.domain, info.reason) == ("animus", "FIELD_INVALID")
    assert refused.status.message.startswith(bad.field_violations[0].field or "the request")
    return [violation.field for violation in bad.field_violations]


def faults_of(body: object, path: str = "/send") -> list[str]:
    """The fields that a body's refusal names."""
    with pytest.raises(Refusal) as caught:
        sent(body, path)
    return faults(caught.value)


def query_faults(query: str, path: str = "/ask") -> list[str]:
    """The fields that a query's refusal names."""
    with pytest.raises(Refusal) as caught:
        asked(query, path)
    return faults(caught.value)


def malformed_text(body: bytes) -> str:
    """The text of the refusal of a body that is no message at all."""
    with pytest.raises(Refusal) as caught:
        sent(body)
    info = ErrorInfo()
    assert caught.value.status.details[0].Unpack(info)
    assert (caught.value.http_status, info.domain, info.reason) == (400, "animus", "REQUEST_MALFORMED")
    return str(caught.value.status.message)


# --- JSON, before any field


@pytest.mark.parametrize(
    "body",
    [
        b'{"text":"a","text":"a"}',
        b'{"child":{"small":1,"small":2}}',
        b'{"unknown":{"k":1,"k":2}}',
        b'{"a":1,"\\u0061":2}',
    ],
)
def test_a_duplicate_key_is_refused(body: bytes) -> None:
    """A key that stands twice in one object is refused, at any depth, escaped or not, with its name."""
    assert "stands twice in one object" in malformed_text(body)


def test_the_same_key_in_two_objects_is_no_duplicate() -> None:
    """The negative control of the rule before."""
    assert sent({"text": "a", "child": {"text": "b"}}).child.text == "b"


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1.0e400"])
@pytest.mark.parametrize("field", ["ratio", "small", "unknown"])
def test_a_number_that_is_not_finite_is_refused(number: str, field: str) -> None:
    """NaN, the infinities and what overflows a double are refused wherever they stand."""
    assert "number" in malformed_text(f'{{"{field}":{number}}}'.encode())


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e999", "nan", " 1", "1_0", "0x1", "", "١"])
def test_a_number_in_a_string_must_be_a_finite_json_number(text: str) -> None:
    """The names that proto3 JSON has for non-finite numbers are refused too."""
    assert faults_of({"ratio": text}) == ["ratio"]


@pytest.mark.parametrize(
    "body",
    [
        b"\xef\xbb\xbf{}",
        "{}".encode("utf-16"),
        "{}".encode("utf-16-le"),
        "{}".encode("utf-32"),
        b'{"text":"\xff"}',
        b'{"text":"\xc0\x80"}',
        b'{"text":"\xed\xa0\x80"}',
        b'{"text":"\xc3"}',
    ],
)
def test_a_body_that_is_not_utf_8_without_a_mark_is_refused(body: bytes) -> None:
    """A byte order mark, UTF-16, UTF-32, overlong forms, encoded surrogates and cut sequences are refused."""
    malformed_text(body)


@pytest.mark.parametrize(
    "body",
    [
        b"null",
        b"[]",
        b'"text"',
        b"1",
        b"true",
        b"{",
        b"{}{}",
        b"{} x",
        b"{'text':'a'}",
        b'{"text":"a",}',
        b'{"text":"a\nb"}',
        b"{/**/}",
        b'{"small":01}',
        b'{"small":+1}',
        b'{"small":.5}',
        b'{text:"a"}',
        b"\x00",
        b" ",
        b'{"text":"\\x41"}',
    ],
)
def test_a_body_that_is_no_json_object_is_refused(body: bytes) -> None:
    """Other values than objects, and everything that RFC 8259 does not have, are refused."""
    malformed_text(body)


@pytest.mark.parametrize("depth", [500, 1_000, 10_000, 200_000])
@pytest.mark.parametrize("shape", ["[", '{"child":', '{"unknown":['])
def test_deep_nesting_is_refused(depth: int, shape: str) -> None:
    """However deep a body nests, it is refused with 400 and nothing else happens."""
    with pytest.raises(Refusal) as caught:
        sent(shape.encode() * depth)
    assert caught.value.http_status == 400


def nested(depth: int) -> dict[str, Any]:
    """A message of this depth, the outermost included."""
    body: dict[str, Any] = {"text": "innermost"}
    for _ in range(depth - 1):
        body = {"child": body}
    return body


def test_messages_nest_up_to_the_bound_and_no_deeper() -> None:
    """The bound is exact, and the refusal names the first field beyond it."""
    assert sent(nested(MAX_DEPTH)).child.child.HasField("child")
    assert faults_of(nested(MAX_DEPTH + 1)) == [".".join(["child"] * MAX_DEPTH)]
    assert faults_of(nested(300)) == [".".join(["child"] * MAX_DEPTH)]


def test_a_free_form_value_that_nests_too_deep_is_refused() -> None:
    """Types with a JSON form of their own have the same protection."""
    assert faults_of(b'{"anything":' + b"[" * 300 + b"]" * 300 + b"}") == ["anything"]


def test_a_body_of_too_many_values_is_refused_unread() -> None:
    """What would take minutes to read is refused by counting; the count of a large body is fine."""
    too_many = b'{"children":[' + b",".join([b"{}"] * (MAX_SEPARATORS // 2)) + b"]}"
    assert "more than 1000000 commas" in malformed_text(too_many)
    assert strict_json(b"[" + b",".join([b"1"] * MAX_SEPARATORS) + b"]") == [1] * MAX_SEPARATORS


# --- fields


def test_an_unknown_field_is_refused_with_its_path() -> None:
    """Unknown fields are named, each of them, where they stand."""
    assert faults_of({"text": "a", "txet": "b", "child": {"nope": 1}, "children": [{}, {"nope": None}]}) == [
        "txet",
        "child.nope",
        "children[1].nope",
    ]


def test_an_unknown_fields_name_is_shown_in_short_and_as_text() -> None:
    """A name that the client chose cannot make the answer long or break its UTF-8."""
    (field,) = faults_of({"x" * 10_000: 1})
    assert len(field) == 100
    assert faults_of(b'{"\\ud800":1}') == ["\\ud800"]


def test_at_most_one_hundred_faults_are_listed() -> None:
    """A body with a thousand faults gets an answer of bounded size."""
    assert len(faults_of({f"unknown{number}": 1 for number in range(1000)})) == 100


def test_both_spellings_of_a_field_are_taken_but_not_together() -> None:
    """lowerCamel and snake_case mean the same field, so that giving both is giving it twice."""
    assert sent({"otherText": "a"}) == sent({"other_text": "a"})
    assert faults_of({"otherText": "a", "other_text": "a"}) == ["other_text"]


def test_null_is_an_absent_field_but_no_element() -> None:
    """As proto3 JSON says: null leaves a field unset, and is no member of a list."""
    assert sent({"text": None, "child": None, "words": None, "moment": None}) == sent({})
    assert faults_of({"words": [None], "children": [None], "amounts": [None]}) == [
        "words[0]",
        "children[0]",
        "amounts[0]",
    ]


RANGES = {
    "small": (-(2**31), 2**31 - 1),
    "large": (-(2**63), 2**63 - 1),
    "smallNatural": (0, 2**32 - 1),
    "largeNatural": (0, 2**64 - 1),
    "colour": (-(2**31), 2**31 - 1),
}


@pytest.mark.parametrize("field", RANGES)
def test_an_integer_is_taken_within_its_type_and_refused_beyond(field: str) -> None:
    """The first and last value of each integer type are taken, as number and as string; the next ones are refused."""
    name = {"smallNatural": "small_natural", "largeNatural": "large_natural"}.get(field, field)
    low, high = RANGES[field]
    for value in (low, high):
        assert getattr(sent({field: value}), name) == value
        if field != "colour":
            assert getattr(sent({field: str(value)}), name) == value
    for value in (low - 1, high + 1, 10**4000, -(10**4000)):
        assert faults_of({field: value}) == [field]
        assert faults_of({field: str(value)}) == [field]


def test_an_integer_of_too_many_digits_is_refused() -> None:
    """Beyond what Python reads (4,300 digits), before any field is looked at."""
    assert "too many digits" in malformed_text(b'{"large":' + b"9" * 4301 + b"}")
    assert faults_of(b'{"large":"' + b"9" * 4301 + b'"}') == ["large"]


@pytest.mark.parametrize(
    "value",
    [
        "1.0",
        "1.5",
        "1e3",
        '"1.0"',
        '"1e3"',
        '"+1"',
        '"01"',
        '" 1"',
        '"1 "',
        '"1_000"',
        '"0x10"',
        '"١"',
        '""',
        "true",
        "[]",
    ],
)
@pytest.mark.parametrize("field", ["small", "large", "largeNatural"])
def test_an_integer_has_one_form(field: str, value: str) -> None:
    """A fraction, an exponent, a sign, a leading zero, other digits or another type is refused."""
    assert faults_of(f'{{"{field}":{value}}}'.encode()) == [field]


def test_minus_zero_is_zero() -> None:
    """JSON's -0 is the integer 0."""
    assert sent(b'{"small":-0,"large":"-0"}') == sent({})


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("text", [1, True, [], {}, 1.5]),
        ("flag", [0, 1, "true", "false", "", [], {}]),
        ("colour", ["RED", "colour_red", "1", "", True, 1.5, [], {}]),
        ("ratio", [True, [], {}, 10**400]),
        ("smallRatio", [1e39, "1e39", 10**40]),
        ("data", ["a", "****", "YQ=x", "YQ===", "Y Q=", 1, [], {}]),
        ("moment", ["", "yesterday", "2026-01-01", "2026-13-01T00:00:00Z", 1, True, [], {}, "9" * 5000]),
        ("child", ["", 1, [], True]),
        ("words", ["", 1, {}, True]),
        ("children", [{}, "", 1]),
        ("sizes", [[], "", 1]),
    ],
)
def test_a_value_of_another_type_is_refused(field: str, values: list[object]) -> None:
    """Each kind of field takes only its own JSON type."""
    for value in values:
        assert faults_of({field: value}) == [field]


@pytest.mark.parametrize("body", [b'{"text":"\\ud800"}', b'{"text":"\\udc00\\ud800"}', b'{"text":"a\\uD83D"}'])
def test_a_lone_surrogate_is_refused(body: bytes) -> None:
    """Half of a pair is no text; the whole pair is."""
    assert faults_of(body) == ["text"]
    assert sent(b'{"text":"\\ud83d\\ude00"}').text == "\U0001f600"


def test_nul_is_text() -> None:
    """NUL is passed on as it is over gRPC: which text a field takes is the service's to say."""
    assert sent(b'{"text":"a\\u0000b"}').text == "a\0b"


def test_base64_is_taken_in_both_alphabets_with_and_without_padding() -> None:
    """As proto3 JSON says for bytes."""
    data = bytes(range(256)) + b"x"
    for text in (base64.b64encode(data), base64.urlsafe_b64encode(data)):
        assert sent({"data": text.decode()}).data == data
        assert sent({"data": text.decode().rstrip("=")}).data == data


def test_enums_are_taken_by_name_or_number() -> None:
    """A number without a name is passed on for the service to refuse, as it would be over gRPC."""
    assert sent({"colour": "COLOUR_RED"}).colour == sent({"colour": 1}).colour == 1
    assert sent({"colour": 77}).colour == 77


def test_map_keys_and_values_are_checked() -> None:
    """A fault in a map is named with its key."""
    assert dict(sent({"sizes": {"1": 2, "-3": "4"}}).sizes) == {1: 2, -3: 4}
    assert faults_of({"sizes": {"x": 1, "2": "y", "2147483648": 1}}) == ["sizes[x]", "sizes[2]", "sizes[2147483648]"]


def test_two_members_of_a_oneof_are_refused() -> None:
    """Whatever the protobuf parser refuses beyond our own rules is a bad request too."""
    assert sent({"left": "a"}).left == "a"
    assert "Everything" in malformed_text(b'{"left":"a","right":"b"}')


# --- query parameters


def test_query_parameters_take_both_spellings_dots_and_repetition() -> None:
    """A query says the same as a body, field by field."""
    assert asked(
        "text=a+b%2Bc&other_text=%C3%A9&small=-1&large=9223372036854775807&flag=true&colour=COLOUR_RED"
        "&words=a&words=b&amounts=1&amounts=2&colours=1&colours=COLOUR_RED&child.child.otherText=x&child.small=3"
        "&moment=2026-01-02T03:04:05Z&data=YQ%3D%3D&ratio=1.5"
    ) == sent(
        {
            "text": "a b+c",
            "otherText": "é",
            "small": -1,
            "large": "9223372036854775807",
            "flag": True,
            "colour": "COLOUR_RED",
            "words": ["a", "b"],
            "amounts": [1, 2],
            "colours": [1, 1],
            "child": {"child": {"otherText": "x"}, "small": 3},
            "moment": "2026-01-02T03:04:05Z",
            "data": "YQ==",
            "ratio": 1.5,
        }
    )
    assert asked("colour=1").colour == 1
    assert asked("&text=a&&small=1&") == sent({"text": "a", "small": 1})
    assert asked("text") == asked("text=") == sent({})


@pytest.mark.parametrize(
    "name",
    [
        "unknown",
        "child",
        "child.unknown",
        "children",
        "children.text",
        "words.text",
        "text.text",
        "sizes",
        "sizes.key",
        "sizes[1]",
        "anything",
        "moment.seconds",
        "",
        ".",
        "child.",
        ".text",
        "TEXT",
        "alt",
        "$alt",
    ],
)
def test_an_unknown_query_parameter_is_refused(name: str) -> None:
    """What is no scalar field of the request is refused by its name, whatever its value."""
    assert query_faults(f"{name}=1") == [name]


@pytest.mark.parametrize(
    "query",
    ["text=a&text=b", "text=a&text=a", "otherText=a&other_text=b", "child.text=a&child.text=a"],
)
def test_a_singular_query_parameter_given_twice_is_refused(query: str) -> None:
    """Twice is ambiguous, in whichever spelling."""
    assert len(query_faults(query)) == 1


@pytest.mark.parametrize(
    "query", ["small=x", "small=", "flag=1", "flag=True", "colour=RED", "large=9223372036854775808"]
)
def test_a_query_parameter_of_the_wrong_type_is_refused(query: str) -> None:
    """The same rules as in a body."""
    assert query_faults(query) == [query.partition("=")[0]]


@pytest.mark.parametrize("query", ["text=%", "text=%zz", "text=%ff", "%ff=a"])
def test_a_broken_escape_in_a_query_is_refused(query: str) -> None:
    """Escapes are decoded once, strictly."""
    with pytest.raises(Refusal) as caught:
        asked(query)
    assert caught.value.http_status == 400


def test_a_field_that_the_path_gives_is_no_query_parameter() -> None:
    """Not even with the same value, nor in the other spelling; its neighbours are."""
    assert query_faults("child.text=a", "/ask/a") == ["child.text"]
    assert asked("child.otherText=b", "/ask/a") == sent({"child": {"text": "a", "otherText": "b"}})
    with pytest.raises(Refusal) as caught:
        decode_request(CONTRACT.match("GET", "/v1/projects/p/runs"), "project_id=p", b"", None)
    assert faults(caught.value) == ["projectId"]


def test_a_method_whose_body_is_the_message_takes_no_query() -> None:
    """google.api.http: with body "*" there are no parameters."""
    with pytest.raises(Refusal) as caught:
        decode_request(MADE_UP.match("POST", "/send"), "text=a", b"{}", None)
    assert faults(caught.value) == ["text"]


# --- path, body and header together


def test_path_variables_have_the_type_of_their_field() -> None:
    """Numbers, enums and booleans are taken from the path as from a query."""
    assert asked("", "/numbers/-5/COLOUR_RED/true") == sent({"small": -5, "colour": 1, "flag": True})
    assert asked("", "/numbers/7/1/false") == sent({"small": 7, "colour": 1})
    assert query_faults("", "/numbers/x/1/true") == ["small"]
    assert query_faults("", "/numbers/1/RED/true") == ["colour"]
    assert query_faults("", "/numbers/1/1/yes") == ["flag"]


def test_a_body_may_repeat_what_the_path_says_and_not_contradict_it() -> None:
    """A field that both give must be equal; the refusal names it."""
    deep = {"child": {"child": {"text": "t", "small": 1}}}
    assert sent(deep, "/deep/t") == sent({"child": {"child": {"small": 1}}}, "/deep/t") == sent(deep)
    assert faults_of(deep, "/deep/other") == ["child.child.text"]


def test_an_empty_value_in_the_body_contradicts_the_path_only_where_presence_is_kept() -> None:
    """A proto3 field without presence cannot say that it is empty; an `optional` one can."""
    path = "/v1/projects/p/datasets/d/versions"
    match = CONTRACT.match("POST", path)
    assert decode_request(match, "", b'{"projectId":""}', None).project_id == "p"  # type: ignore[attr-defined]
    with pytest.raises(Refusal) as caught:
        decode_request(match, "", b'{"datasetVersion":{"datasetId":""}}', None)
    assert faults(caught.value) == ["datasetVersion.datasetId"]


def test_a_body_that_is_one_field_leaves_the_others_to_path_and_query() -> None:
    """The body's field is no query parameter; faults in the body have the whole path."""
    match = MADE_UP.match("POST", "/children/t")
    assert decode_request(match, "small=3", b'{"text":"c"}', None) == sent(
        {"text": "t", "small": 3, "child": {"text": "c"}}
    )
    with pytest.raises(Refusal) as caught:
        decode_request(match, "child.small=3", b"{}", None)
    assert faults(caught.value) == ["child.small"]
    assert faults_of({"nope": 1}, "/children/t") == ["child.nope"]


def test_a_body_is_refused_where_the_method_takes_none() -> None:
    """A GET with a body is a mistake, not something to ignore."""
    with pytest.raises(Refusal) as caught:
        decode_request(MADE_UP.match("GET", "/ask"), "", b"{}", None)
    assert caught.value.http_status == 400


def test_no_body_is_an_empty_message() -> None:
    """A call that needs no field but its path's needs no body."""
    match = CONTRACT.match("POST", "/v1/projects/p/runs/r:cancel")
    assert decode_request(match, "", b"", "job-1") == run_pb2.CancelRunRequest(
        project_id="p", request_id="job-1", run_id="r"
    )


def test_the_idempotency_key_is_the_request_id_where_the_body_has_none() -> None:
    """Absent or empty in the body: the header's. Equal: fine. Different: refused by the field's name."""
    match = CONTRACT.match("POST", "/v1/projects")
    for body in (b"{}", b'{"requestId":""}', b'{"requestId":null}', b'{"request_id":"k"}'):
        assert decode_request(match, "", body, "k").request_id == "k"  # type: ignore[attr-defined]
    assert decode_request(match, "", b'{"requestId":"k"}', None).request_id == "k"  # type: ignore[attr-defined]
    for key in ("other", "", "K"):
        with pytest.raises(Refusal) as caught:
            decode_request(match, "", b'{"requestId":"k"}', key)
        assert faults(caught.value) == ["requestId"]


def test_the_idempotency_key_is_ignored_where_the_request_has_no_request_id() -> None:
    """Reading twice needs no key."""
    assert decode_request(CONTRACT.match("GET", "/v1/projects/p"), "", b"", "k").ListFields()[0][1] == "p"


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "Application/JSON",
        "application/json; charset=utf-8",
        'application/json;charset="UTF-8"',
    ],
)
def test_json_in_utf_8_is_taken(content_type: str) -> None:
    """The one content type, in its spellings."""
    check_content_type(content_type)


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "",
        "text/plain",
        "text/json",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/json; charset=utf-16",
        "application/json; charset=latin-1",
        "application/json; version=1",
        "application/json, text/plain",
        "application/problem+json",
    ],
)
def test_any_other_content_type_is_refused(content_type: str | None) -> None:
    """Forms, plain text and other charsets get 415."""
    with pytest.raises(Refusal) as caught:
        check_content_type(content_type)
    assert caught.value.http_status == 415


def test_a_body_is_in_gzip_or_as_it_is() -> None:
    """Every other encoding, and two of them, get 415."""
    encodings = {None: False, "": False, "identity": False, "gzip": True, " GZIP ": True, "x-gzip": True}
    assert {each: is_compressed(each) for each in encodings} == encodings
    for other in ("br", "deflate", "zstd", "gzip, gzip", "br, identity"):
        with pytest.raises(Refusal) as caught:
            is_compressed(other)
        assert caught.value.http_status == 415


def test_gzip_is_taken_up_to_the_limit_of_the_body_that_it_holds() -> None:
    """A body of the limit is read; one byte more, or a thousand times as much in as little, is 413 unread."""
    assert decompress(gzip.compress(b"{}" * 50), 100) == b"{}" * 50
    for size in (101, 10_000_000):
        with pytest.raises(Refusal) as caught:
            decompress(gzip.compress(bytes(size)), 100)
        assert caught.value.http_status == 413


def test_what_is_not_one_whole_gzip_is_refused() -> None:
    """Cut short anywhere, with any byte more, twice, or with another checksum: 400."""
    whole = gzip.compress(b'{"a":1}')
    broken = [whole[:size] for size in range(1, len(whole))]
    broken += [whole + b"\0", whole + whole, whole[:-8] + bytes(8), b"{}", zlib.compress(b"{}")]
    for body in broken:
        with pytest.raises(Refusal) as caught:
            decompress(body, 100)
        assert caught.value.http_status == 400


# --- a body as it stands


@pytest.mark.parametrize("body", [b'{"a":1,"a":NaN}', b"no JSON", b"\xff", b"[" * 5_000])
def test_a_body_that_is_an_http_body_is_passed_on_as_it_stands(body: bytes) -> None:
    """Whatever is in it: that is the service's to judge. Path and query fill the other fields."""
    match = CONTRACT.match("POST", "/v1/projects/p/lineage:openlineage")
    message: Any = decode_request(match, "validateOnly=true", body, "k")
    assert (message.event.data, message.event.content_type) == (body, "application/json")
    assert (message.project_id, message.validate_only, message.request_id) == ("p", True, "k")


def test_an_http_body_that_is_empty_is_absent() -> None:
    """As an empty JSON body is an empty object; and no part of it is a query parameter."""
    match = CONTRACT.match("POST", "/api/v1/lineage")
    message: Any = decode_request(match, "projectId=p", b"", None)
    assert (message.project_id, message.HasField("event")) == ("p", False)
    with pytest.raises(Refusal):
        decode_request(match, "event.contentType=text/plain", b"{}", None)


# --- replies


def test_a_reply_has_every_field_without_presence_and_bytes_in_base64() -> None:
    """camelCase names, empty strings and lists there, absent optional fields left out, int64 as string."""
    entry = audit_pb2.AuditEntry(project_id="p", document=b"\xff\xfe", reason="é")
    assert json.loads(encode_reply(entry)) == {
        "projectId": "p",
        "outcome": "AUDIT_OUTCOME_UNSPECIFIED",
        "reason": "é",
        "records": [],
        "refusals": [],
        "leafHash": "",
        "document": "//4=",
    }
    version = dataset_pb2.DatasetVersion(size_bytes=2**53 - 1)
    lists = ("columns", "derivedFrom", "files", "labels", "uris")
    assert json.loads(encode_reply(version)) == {"sizeBytes": "9007199254740991", **{name: [] for name in lists}}
    assert b"\n" not in encode_reply(dataset_pb2.Dataset(description="a\nb"))


# --- laws


def messages(descriptor: Descriptor) -> st.SearchStrategy[Message]:
    """Messages of a type, with any of its fields set to anything that its kind can hold."""
    fields = {field.name: values(field) for field in descriptor.fields}
    return st.fixed_dictionaries({}, optional=fields).map(lambda given: GetMessageClass(descriptor)(**given))


def values(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    """Values of a field."""
    one = single_values(field)
    return st.lists(one, max_size=3) if field.is_repeated else one


def single_values(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    """Values of one element of a field."""
    if field.message_type is not None:
        if field.message_type.full_name == "google.protobuf.Timestamp":
            return st.builds(
                GetMessageClass(field.message_type),
                seconds=st.integers(-62135596800, 253402300799),
                nanos=st.integers(0, 999_999_999),
            )
        return messages(field.message_type)
    if field.enum_type is not None:
        return st.sampled_from([*field.enum_type.values_by_number, 77])
    kinds = {
        FieldDescriptor.CPPTYPE_INT32: st.integers(-(2**31), 2**31 - 1),
        FieldDescriptor.CPPTYPE_INT64: st.integers(-(2**63), 2**63 - 1),
        FieldDescriptor.CPPTYPE_BOOL: st.booleans(),
        FieldDescriptor.CPPTYPE_STRING: st.text(max_size=20),
    }
    return kinds[field.cpp_type]


REQUESTS = [
    run_pb2.CreateRunRequest.DESCRIPTOR,
    pipeline_pb2.RegisterPipelineSpecRequest.DESCRIPTOR,
    dataset_pb2.RegisterDatasetVersionRequest.DESCRIPTOR,
    runtime_pb2.ReportStepEventsRequest.DESCRIPTOR,
]


def match_for(message: Message) -> Match:
    """The match of a request message: its route, and what its path would give."""
    (route,) = [route for route in compile_routes(contract_files()) if route.rpc.input_type is message.DESCRIPTOR]
    given = []
    for path in route.variables:
        at: Any = message
        for field in path.fields:
            at = getattr(at, field.name)
        given.append(at)
    return Match(route, tuple(given))


@pytest.mark.parametrize("descriptor", REQUESTS, ids=lambda descriptor: descriptor.name)
def test_any_request_survives_json(descriptor: Descriptor) -> None:
    """Message to JSON to message is the identity, and agrees with protobuf's own parser."""

    @settings(max_examples=60, deadline=None)
    @given(messages(descriptor))
    def check(message: Any) -> None:
        match = match_for(message)
        if match.route.rpc.name == "RegisterDatasetVersion":
            message.dataset_version.dataset_id = message.dataset_version.dataset_id  # the path always gives it
        text = encode_reply(message)
        assert decode_request(match, "", text, None) == message
        assert json_format.Parse(text, GetMessageClass(descriptor)()) == message

    check()


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


@settings(max_examples=60, deadline=None)
@given(JSON_VALUES)
def test_strict_json_reads_what_json_writes(value: object) -> None:
    """Strictness refuses nothing that is plain JSON."""
    assert strict_json(json.dumps(value).encode()) == value


def leaf_fields() -> list[str]:
    """The fields of the made-up message, in JSON spelling."""
    return [field.json_name for field in MADE_UP.match("POST", "/send").route.rpc.input_type.fields]


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(leaf_fields()), JSON_VALUES, max_size=3))
def test_whatever_is_taken_is_taken_by_protobuf_too_and_means_the_same(body: dict[str, Any]) -> None:
    """Our rules only ever take away: a body is refused, or protobuf's parser reads the same message."""
    match = MADE_UP.match("POST", "/send")
    try:
        message = decode_request(match, "", json.dumps(body).encode(), None)
    except Refusal:
        return
    assert json_format.ParseDict(body, GetMessageClass(match.route.rpc.input_type)()) == message


def test_every_pair_of_sources_of_a_field_agrees_or_is_refused() -> None:
    """Over every small combination of path, body and header: equal values are one value, different ones an error."""
    match = CONTRACT.match("POST", "/v1/projects/p/runs/r:plan")
    for project, run, request, header in itertools.product(["", "p", "q"], ["", "r", "s"], ["", "k"], [None, "k", "l"]):
        body = json.dumps({"projectId": project, "runId": run, "requestId": request}).encode()
        fine = project in ("", "p") and run in ("", "r") and (header is None or request in ("", header))
        try:
            message = decode_request(match, "", body, header)
        except Refusal:
            assert not fine
        else:
            assert fine
            assert message == run_pb2.PlanRunRequest(project_id="p", run_id="r", request_id=request or header or "")
