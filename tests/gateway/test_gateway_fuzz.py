"""Whatever a client sends, the answer is its fault or the service's: never the gateway's."""

from __future__ import annotations

import json
from urllib.parse import quote

from animus_gateway.routes import Route, compile_routes, contract_files
from gateway_harness import Stack, raw_exchange
from hypothesis import given, settings
from hypothesis import strategies as st

ROUTES = compile_routes(contract_files())
FIELDS = sorted({name for route in ROUTES for f in route.rpc.input_type.fields for name in (f.name, f.json_name)})
METHODS = st.sampled_from(["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"])
FUZZ = settings(max_examples=100, deadline=None)

encoded = st.text(max_size=8).map(lambda text: quote(text.encode("utf-8", "surrogatepass"), safe=""))
odd = st.text(st.sampled_from("ab:%2Ff.;=&+?~_-{}*0"), max_size=8)
words = st.sampled_from(
    ["v1", "projects", "runs", "p", "datasets", "versions", "runs:dryRun", "r:plan", "..", "", "%00"]
)
paths = st.lists(words | odd | encoded, max_size=8).map(lambda parts: "/" + "/".join(parts))
names = st.sampled_from(FIELDS) | odd | encoded
queries = st.lists(st.tuples(names, odd | encoded), max_size=4).map(
    lambda pairs: "&".join(f"{name}={value}" for name, value in pairs)
)
leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None), max_size=10)
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS) | st.text(), inner, max_size=4),
    max_leaves=12,
)


def check(status: int, body: bytes, method: str) -> None:
    """The answer is JSON and no failure of the gateway."""
    assert 200 <= status < 500, body
    if method != "HEAD":
        assert isinstance(json.loads(body), dict)


async def exchange(stack: Stack, method: str, target: str, body: bytes = b"") -> tuple[int, bytes]:
    """The answer to exactly this request target and body."""
    head = f"{method} {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n"
    (reply,) = await raw_exchange(stack.gateway.port, f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    return reply.status, reply.body


@FUZZ
@given(method=METHODS, path=paths, query=queries)
async def test_no_path_or_query_makes_the_gateway_fail(
    running_stack: Stack, method: str, path: str, query: str
) -> None:
    """Any method, any path, any query: an answer in JSON below 500."""
    check(*await exchange(running_stack, method, f"{path}?{query}"), method)


@FUZZ
@given(route=st.sampled_from([route for route in ROUTES if route.body]), value=values)
async def test_no_body_makes_the_gateway_fail(running_stack: Stack, route: Route, value: object) -> None:
    """Any JSON-like text on any route that takes a body. A stream that goes well has bytes of its own."""
    path = "/" + "/".join(part if isinstance(part, str) else "x" for part in route.segments)
    path += f":{route.verb}" if route.verb else ""
    status, body = await exchange(running_stack, "POST", path, json.dumps(value).encode())
    if not (route.rpc.server_streaming and status == 200):
        check(status, body, "POST")


GOOD = json.dumps({"requestId": "k", "runSpec": {"apiVersion": "é", "commit": {"sha": "0"}}, "labels": []}).encode()
spoiled = st.tuples(st.integers(0, len(GOOD) - 1), st.binary(max_size=3)).map(
    lambda change: GOOD[: change[0]] + change[1] + GOOD[change[0] + 1 :]
)


@FUZZ
@given(body=st.binary(max_size=60) | spoiled)
async def test_no_bytes_make_the_gateway_fail(running_stack: Stack, body: bytes) -> None:
    """Any bytes as a body, and good bodies with bytes changed."""
    check(*await exchange(running_stack, "POST", "/v1/projects/p/runs", body), "POST")
