"""The files of a log over HTTP, as C2SP tlog-tiles lays them out."""

from __future__ import annotations

import gzip
import itertools
import string
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from animus_gateway.routes import Match
from animus_gateway.status import Refusal
from animus_gateway.tiles import match_file
from gateway_harness import Stack, raw_exchange
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from animus.v1 import log_pb2

EVERY_BYTE = bytes(range(256))
LARGEST = 2**55 - 1
Place = tuple[str, int, int]  # level or `entries`, index and width of a file


def spelled(place: Place) -> str:
    """The path of a tile or bundle of the project p, written down as the layout says."""
    level, index, width = place
    elements = f"{index:,}".split(",")
    elements[0] = elements[0].zfill(3)
    path = "/".join([*(f"x{element}" for element in elements[:-1]), elements[-1]])
    return f"/logs/p/tile/{level}/{path}" + ("" if width == 256 else f".p/{width}")


def place_of(match: Match) -> Place:
    """What a match asks for."""
    fields = {path.leaf.name: value for path, value in zip(match.route.variables, match.values, strict=True)}
    level = fields["level"] if match.route.rpc.name == "GetTile" else "entries"
    return level, int(fields["index"]), int(fields["width"])


def matched(path: str) -> Match | None:
    """The match of a path, or None when it is refused as the path of no file."""
    try:
        return match_file("GET", path)
    except Refusal as error:
        assert error.http_status == 404
        return None


# --- paths


def test_the_layouts_own_example() -> None:
    """Index 1234067 is x001/x234/067, and the path as a whole is what the specification shows."""
    assert spelled(("0", 1_234_067, 256)) == "/logs/p/tile/0/x001/x234/067"
    assert spelled(("entries", 0, 8)) == "/logs/p/tile/entries/000.p/8"


def test_every_path_of_a_small_log_is_found() -> None:
    """Every level with every width, every index below 1,100, and the indexes around those with an element more."""
    edges = [10**power + step for power in (3, 6, 9, 12, 15) for step in (-1, 0, 1)]
    places = [
        *((level, 0, width) for level in [*"01234567", "entries"] for width in range(1, 257)),
        *((level, index, width) for level in ("0", "entries") for index in range(1_100) for width in (1, 256)),
        *((level, index, width) for level in ("7", "entries") for index in [*edges, LARGEST] for width in (255, 256)),
    ]
    for place in places:
        match = matched(spelled(place))
        assert match is not None, place
        assert place_of(match) == place


def words(alphabet: str, longest: int) -> Iterator[str]:
    """Every text over an alphabet up to a length, the empty one too."""
    for length in range(longest + 1):
        for letters in itertools.product(alphabet, repeat=length):
            yield "".join(letters)


@pytest.mark.parametrize(
    ("paths", "found"),
    [
        pytest.param((f"/logs/p/tile/0/{word}" for word in words("01x/", 7)), 2**3, id="index"),
        pytest.param((f"/logs/p/tile/0/x{word}" for word in words("01/", 7)), 2**6 - 2**3, id="index of two elements"),
        pytest.param((f"/logs/p/tile/0/000.p/{word}" for word in words("0123456789", 3)), 255, id="width"),
        pytest.param((f"/logs/p/tile/{word}/000" for word in words("0123456789", 3)), 8, id="level"),
        pytest.param((f"/logs/p/tile/0/000{word}" for word in words(".p/1", 5)), 1 + 2, id="suffix"),
    ],
)
def test_no_file_has_two_paths(paths: Iterator[str], found: int) -> None:
    """Of all texts over a small alphabet, exactly those are paths that are written as the layout says."""
    matches = [(path, match) for path in paths if (match := matched(path)) is not None]
    assert [path for path, match in matches if spelled(place_of(match)) != path] == []
    assert len(matches) == found


@pytest.mark.parametrize(
    "path",
    ["/logs/p/tile/0/x001/x234/067", "/logs/p/tile/entries/x001/067.p/12", "/logs/p/tile/7/000.p/255"],
)
def test_a_mangled_path_is_no_other_files(path: str) -> None:
    """With any one character changed, left out or put in, a path is refused or is written as the layout says."""
    start = len("/logs/p/")
    letters = string.printable + "\u0661\u00b2\u00e9\0"
    for at in range(start, len(path) + 1):
        before, after = path[:at], path[at:]
        mangled = {before + letter + after for letter in letters} | {before + after[1:]}
        mangled |= {before + letter + after[1:] for letter in letters}
        for other in mangled:
            match = matched(other)
            assert match is None or spelled(place_of(match)) == other


@pytest.mark.parametrize(
    "rest",
    [
        *(
            "",
            "/",
            "/p",
            "/p/",
            "//checkpoint",
            "/p/checkpoint/",
            "/p/Checkpoint",
            "/p/checkpoint.p/1",
            "/p/q/checkpoint",
        ),
        *("/p/check%70oint", "/p/tile", "/p/tile/", "/p/tile/0", "/p/tile/0/", "/p/tile/entries", "/p/tile/%30/000"),
        *("/p/tile/0/0", "/p/tile/0/00", "/p/tile/0/0000", "/p/tile/0/x000", "/p/tile/0/x000/001", "/p/tile/0/001/001"),
        *("/p/tile/0/000.p", "/p/tile/0/000.p/", "/p/tile/0/000.p/0", "/p/tile/0/000.p/256", "/p/tile/0/000.p/01"),
        *("/p/tile/8/000", "/p/tile/63/000", "/p/tile/64/000", "/p/tile/-1/000", "/p/tile/+1/000", "/p/tile/00/000"),
        *("/p/tile/entries/0", "/p/tile/Entries/000", "/p/tile/data/000", "/p/tile/0/x036/x028/x797/x018/x963/968"),
        *(
            "/p/tile/0/x001" + "/x000" * 5 + "/000",
            "/p/tile/0/" + "x999/" * 10_000 + "999",
            "/p/tile/0/..",
            "/p/../p/tile",
        ),
        *("/p/tile/0/%D9%A1%D9%A2%D9%A3", "/p/tile/0/000%0A", "/p/tile/0/000:verb", "/p/tile/0/000%2Ep/1"),
    ],
)
async def test_what_is_no_path_of_a_file_gets_404(stack: Stack, rest: str) -> None:
    """In the shape of every error, over the wire, and without a call."""
    request = f"GET /logs{rest} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    (reply,) = await raw_exchange(stack.gateway.port, request.encode())
    assert (reply.status, b'"REQUEST_MALFORMED"' in reply.body) == (404, True)
    assert "content-type: application/json\r\n" in reply.head + "\r\n"
    assert stack.upstream.requests == []


# --- answers

CHECKPOINT = "/logs/p/checkpoint"
TILE = "/logs/p/tile/3/x001/067.p/12"
BUNDLE = "/logs/p/tile/entries/x001/067"
ANSWERS: dict[str, tuple[Message, Message, str]] = {
    CHECKPOINT: (
        log_pb2.GetCheckpointRequest(project_id="p"),
        log_pb2.LogCheckpoint(origin="o", size=3, note=EVERY_BYTE),
        "text/plain; charset=utf-8",
    ),
    TILE: (
        log_pb2.GetTileRequest(project_id="p", level=3, index=1_067, width=12),
        log_pb2.Tile(hashes=EVERY_BYTE * 32),
        "application/octet-stream",
    ),
    BUNDLE: (
        log_pb2.GetEntryBundleRequest(project_id="p", index=1_067, width=256),
        log_pb2.EntryBundle(entries=EVERY_BYTE * 4_000),
        "application/octet-stream",
    ),
}


def bytes_of(reply: Any) -> bytes:
    """What a file holds."""
    (field,) = [field for field in reply.DESCRIPTOR.fields if field.name in ("note", "hashes", "entries")]
    data: bytes = getattr(reply, field.name)
    return data


def answering(stack: Stack, reply: Message) -> None:
    """Lets the upstream give this reply, with a receipt."""

    async def answer(_request: Any, context: Any) -> Message:
        context.set_trailing_metadata((("animus-trace-id", "ab12"), ("animus-audit-receipt-bin", b"\xff")))
        return reply

    stack.upstream.answer = answer


@pytest.mark.parametrize("path", ANSWERS)
@pytest.mark.parametrize("coding", ["gzip", "identity"])
async def test_a_file_is_the_bytes_that_the_service_gave(stack: Stack, path: str, coding: str) -> None:
    """One call with the client's credential; every byte value comes through, with its length and type."""
    asked, reply, media_type = ANSWERS[path]
    answering(stack, reply)
    headers = {"accept-encoding": coding, "authorization": "Bearer animus_p_x", "tracestate": "a=1", "cookie": "a=b"}
    response = await stack.client.get(path, headers=headers)
    assert response.status_code == 200
    assert response.content == bytes_of(reply)
    assert response.headers["content-type"] == media_type
    assert response.headers["cache-control"] == "no-store"
    assert (response.headers["animus-trace-id"], response.headers["animus-audit-receipt"]) == ("ab12", "/w==")
    assert stack.upstream.request == asked
    assert stack.upstream.metadata[0]["authorization"] == "Bearer animus_p_x"
    assert "cookie" not in stack.upstream.metadata[0]


@pytest.mark.parametrize("path", ANSWERS)
async def test_head_is_get_without_the_body(stack: Stack, path: str) -> None:
    """The same headers after the same call, and not a byte of the file."""
    asked, reply, _ = ANSWERS[path]
    answering(stack, reply)
    got = await stack.client.get(path)
    stack.upstream.requests.clear()
    request = f"HEAD {path} HTTP/1.1\r\nHost: localhost\r\nAccept-Encoding: gzip\r\nConnection: close\r\n\r\n"
    (head,) = await raw_exchange(stack.gateway.port, request.encode())
    assert (head.status, head.body) == (200, b"")
    assert f"content-length: {got.headers['content-length']}" in head.head
    assert stack.upstream.request == asked


@pytest.mark.parametrize("path", ANSWERS)
@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
async def test_a_file_is_only_read(stack: Stack, path: str, method: str) -> None:
    """Any other method gets 405 and what is allowed; on a path of no file, 404."""
    response = await stack.client.request(method, path)
    assert (response.status_code, response.headers["allow"]) == (405, "GET, HEAD")
    assert response.json()["message"] == "this path takes GET, HEAD only"
    assert (await stack.client.request(method, f"{path}/0")).status_code == 404
    assert stack.upstream.requests == []


async def test_the_project_is_percent_decoded_once(stack: Stack) -> None:
    """As in every other path: an encoded slash is data, and a broken escape a bad request."""
    assert (await stack.client.get("/logs/a%2Fb%252F:c/checkpoint")).status_code == 200
    assert stack.upstream.request == log_pb2.GetCheckpointRequest(project_id="a/b%2F:c")
    for project in ("%", "%zz", "%ff"):
        request = f"GET /logs/{project}/checkpoint HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        (reply,) = await raw_exchange(stack.gateway.port, request.encode())
        assert reply.status == 400


async def test_queries_and_bodies_are_those_of_the_call(stack: Stack) -> None:
    """What the path does not give may be asked for; a second spelling of what it gives, and a body, are refused."""
    assert (await stack.client.get(f"{CHECKPOINT}?cosigned=true&minimumSize=9")).status_code == 200
    assert stack.upstream.request == log_pb2.GetCheckpointRequest(project_id="p", cosigned=True, minimum_size=9)
    stack.upstream.reset()
    for path in ("/logs/p/tile/0/000", TILE, BUNDLE):
        for query in ("width=3", "index=1", "projectId=q", "x", "minimumSize=1"):
            assert (await stack.client.get(f"{path}?{query}")).status_code == 400
    assert (await stack.client.request("GET", TILE, json={})).status_code == 400
    assert stack.upstream.requests == []


@pytest.mark.parametrize("path", ANSWERS)
@pytest.mark.parametrize(
    ("code", "reason", "http_status"),
    [("NOT_FOUND", "TILE_UNKNOWN", 404), ("DATA_LOSS", "LOG_DAMAGED", 500), ("UNAUTHENTICATED", "TOKEN_INVALID", 401)],
)
async def test_errors_are_those_of_every_call(
    stack: Stack, path: str, code: str, reason: str, http_status: int
) -> None:
    """The service's Status in JSON, whole, with the receipt beside it."""
    status = status_pb2.Status(code=getattr(grpc.StatusCode, code).value[0], message="é")
    status.details.add().Pack(error_details_pb2.ErrorInfo(domain="animus", reason=reason))

    async def answer(_request: Any, context: Any) -> Message:
        trailing = (("grpc-status-details-bin", status.SerializeToString()), ("animus-audit-receipt-bin", b"\xff"))
        await context.abort(getattr(grpc.StatusCode, code), "é", trailing_metadata=trailing)
        raise AssertionError  # abort raises

    stack.upstream.answer = answer
    response = await stack.client.get(path)
    assert (response.status_code, response.headers["content-type"]) == (http_status, "application/json")
    assert response.json()["message"] == "é"
    assert response.json()["details"][0]["reason"] == reason
    assert response.headers["animus-audit-receipt"] == "/w=="
    assert "content-encoding" not in response.headers
    assert (await stack.client.head(path)).status_code == http_status


# --- compression


@pytest.mark.parametrize(
    ("accepted", "compressed"),
    [
        *(("gzip", True), ("GZIP", True), ("x-gzip", True), ("br, gzip;q=0.5", True), ("gzip ; q=1.000", True)),
        *(
            ("", False),
            ("identity", False),
            ("*", False),
            ("br", False),
            ("gzipped", False),
            ("identity;q=1, *", False),
        ),
        *(("gzip;q=0", False), ("gzip; Q=0.000, br", False), ("gzip;q=0.001", True)),
    ],
)
async def test_bundles_are_compressed_for_those_who_take_it(stack: Stack, accepted: str, compressed: bool) -> None:
    """gzip where `Accept-Encoding` names it; the bytes inside are the same, small and large."""
    for entries in (b"", EVERY_BYTE, EVERY_BYTE * 4_000):
        answering(stack, log_pb2.EntryBundle(entries=entries))
        request = (
            f"GET {BUNDLE} HTTP/1.1\r\nHost: localhost\r\nAccept-Encoding: {accepted}\r\nConnection: close\r\n\r\n"
        )
        (reply,) = await raw_exchange(stack.gateway.port, request.encode())
        assert ("content-encoding: gzip" in reply.head) == compressed
        assert "vary: accept-encoding" in reply.head
        assert (gzip.decompress(reply.body) if compressed else reply.body) == entries


@pytest.mark.parametrize("path", [CHECKPOINT, TILE])
async def test_what_holds_hashes_or_signatures_is_not_compressed(stack: Stack, path: str) -> None:
    """It would not become smaller."""
    answering(stack, ANSWERS[path][1])
    response = await stack.client.get(path, headers={"accept-encoding": "gzip"})
    assert not {"content-encoding", "vary"} & set(response.headers)
