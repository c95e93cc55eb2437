"""Calls through the gateway: HTTP on one side, a gRPC server on the other."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from animus_gateway.app import check_origins
from gateway_harness import MAX_BODY_BYTES, Stack, gateway_to, raw_exchange
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from ports import closed_port

from animus.v1 import audit_pb2, errors_pb2, log_pb2, project_pb2, run_pb2


@dataclass(frozen=True, slots=True)
class HealthServer:
    """A server of grpc.health.v1."""

    servicer: health.aio.HealthServicer
    target: str


@pytest.fixture
async def health_server() -> AsyncIterator[HealthServer]:
    """A gRPC server that serves health and nothing else."""
    servicer = health.aio.HealthServicer()
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    yield HealthServer(servicer, target)
    await server.stop(None)


HTTP_OF_CODE = {
    "CANCELLED": 499,
    "UNKNOWN": 500,
    "INVALID_ARGUMENT": 400,
    "DEADLINE_EXCEEDED": 504,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "PERMISSION_DENIED": 403,
    "RESOURCE_EXHAUSTED": 429,
    "FAILED_PRECONDITION": 400,
    "ABORTED": 409,
    "OUT_OF_RANGE": 400,
    "UNIMPLEMENTED": 501,
    "INTERNAL": 500,
    "UNAVAILABLE": 503,
    "DATA_LOSS": 500,
    "UNAUTHENTICATED": 401,
}
REASONS = {name.removeprefix("REASON_") for name in errors_pb2.Reason.keys()}  # noqa: SIM118


def failing(
    code: grpc.StatusCode, text: str, *trailing: tuple[str, str | bytes]
) -> Callable[[Any, Any], Awaitable[Message]]:
    """An upstream answer that ends in this error."""

    async def answer(_request: Any, context: Any) -> Message:
        await context.abort(code, text, trailing_metadata=trailing)
        raise AssertionError  # abort raises

    return answer


def assert_refused(response: Any, http_status: int, reason: str) -> dict[str, Any]:
    """The body of an error, once it has the shape that every error has."""
    assert response.status_code == http_status, response.text
    assert response.headers["content-type"] == "application/json"
    body: dict[str, Any] = response.json()
    assert set(body) == {"code", "message", "details"}
    info = body["details"][0]
    assert info["@type"] == "type.googleapis.com/google.rpc.ErrorInfo"
    assert (info["domain"], info["reason"]) == ("animus", reason)
    assert reason in REASONS
    return body


async def test_a_call_arrives_as_its_message_and_its_reply_as_json(stack: Stack) -> None:
    """The message that the service sees is the one that a gRPC client would have sent."""

    async def answer(request: run_pb2.CreateRunRequest, _context: Any) -> Message:
        return run_pb2.Run(run_id="r1", run_spec=request.run_spec, state=run_pb2.RUN_STATE_CREATED)

    stack.upstream.answer = answer
    spec = {"apiVersion": "animus/v1", "parameters": [{"name": "é", "type": "PARAMETER_TYPE_INT", "value": "1"}]}
    response = await stack.client.post("/v1/projects/p/runs", json={"requestId": "k", "runSpec": spec})
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert response.json()["runSpec"]["parameters"] == spec["parameters"]
    assert response.json()["state"] == "RUN_STATE_CREATED"
    assert response.json()["equalRuns"] == []
    parameter = run_pb2.Parameter(name="é", type=run_pb2.PARAMETER_TYPE_INT, value="1")
    assert stack.upstream.request == run_pb2.CreateRunRequest(
        project_id="p",
        request_id="k",
        run_spec=run_pb2.RunSpec(api_version="animus/v1", parameters=[parameter]),
    )


async def test_path_and_query_arrive_decoded_once(stack: Stack) -> None:
    """Over the whole way, through the HTTP server too, an encoded slash stays data."""
    await raw_get(stack, "/v1/projects/a%2Fb%252F/runs?pageSize=7&page_token=x%2By+z&run_spec_digest=sha256:ab")
    assert stack.upstream.request == run_pb2.ListRunsRequest(
        project_id="a/b%2F", page_size=7, page_token="x+y z", run_spec_digest="sha256:ab"
    )


async def raw_get(stack: Stack, target: str, *headers: str) -> tuple[int, bytes]:
    """The status and body of a GET of exactly this request target."""
    lines = [f"GET {target} HTTP/1.1", f"Host: 127.0.0.1:{stack.gateway.port}", "Connection: close", *headers]
    (reply,) = await raw_exchange(stack.gateway.port, "\r\n".join([*lines, "", ""]).encode())
    return reply.status, reply.body


@pytest.mark.parametrize("target", ["/v1/projects/%zz", "/v1/projects/%ff", "/v1/projects?page_token=%"])
async def test_a_broken_escape_gets_400_over_the_wire(stack: Stack, target: str) -> None:
    """The HTTP server passes it on unrepaired, and the gateway refuses it."""
    status, body = await raw_get(stack, target)
    assert (status, json.loads(body)["code"]) == (400, 3)
    assert stack.upstream.requests == []


async def test_unknown_paths_and_methods_get_a_status_too(stack: Stack) -> None:
    """404 and 405 have the shape of every error; 405 names what is allowed."""
    assert_refused(await stack.client.get("/v1/nothing"), 404, "REQUEST_MALFORMED")
    assert_refused(await stack.client.get("/healthz/"), 404, "REQUEST_MALFORMED")
    response = await stack.client.delete("/v1/projects/p")
    assert_refused(response, 405, "REQUEST_MALFORMED")
    assert response.headers["allow"] == "GET"
    for path in ("/healthz", "/readyz", "/openapi.json"):
        response = await stack.client.post(path, json={})
        assert_refused(response, 405, "REQUEST_MALFORMED")
        assert "GET" in response.headers["allow"]


async def test_answers_are_not_held_back_by_the_network_stack(stack: Stack) -> None:
    """Calls one after the other on one connection take less than the 40 ms each that Nagle's algorithm costs."""
    reader, writer = await asyncio.open_connection("127.0.0.1", stack.gateway.port)

    async def twenty_calls() -> float:
        started = time.monotonic()
        for _ in range(20):
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await reader.readuntil(b'{"status":"ok"}')
        return time.monotonic() - started

    assert min([await twenty_calls() for _ in range(3)]) < 20 * 0.03
    writer.close()


# --- errors


@pytest.mark.parametrize("name", HTTP_OF_CODE)
async def test_a_services_error_is_answered_with_its_code_text_and_details(stack: Stack, name: str) -> None:
    """For all sixteen codes: grpc-gateway's HTTP status, and the service's own google.rpc.Status as JSON."""
    code = getattr(grpc.StatusCode, name)
    status = status_pb2.Status(code=code.value[0], message="do this: é")
    status.details.add().Pack(error_details_pb2.ErrorInfo(domain="animus", reason="RUN_ENDED", metadata={"run": "r"}))
    status.details.add().Pack(error_details_pb2.RetryInfo())
    stack.upstream.answer = failing(
        code, "do this", ("grpc-status-details-bin", status.SerializeToString()), ("animus-trace-id", "ab12")
    )
    response = await stack.client.get("/v1/projects/p")
    body = assert_refused(response, HTTP_OF_CODE[name], "RUN_ENDED")
    assert (body["code"], body["message"]) == (code.value[0], "do this: é")
    assert body["details"][0]["metadata"] == {"run": "r"}
    assert body["details"][1]["@type"] == "type.googleapis.com/google.rpc.RetryInfo"
    assert response.headers["animus-trace-id"] == "ab12"
    assert ("www-authenticate" in response.headers) == (name == "UNAUTHENTICATED")
    assert ("retry-after" in response.headers) == (name in ("RESOURCE_EXHAUSTED", "UNAVAILABLE"))


@pytest.mark.parametrize(("seconds", "nanos", "told"), [(0, 1, "1"), (2, 0, "2"), (2, 1, "3")])
async def test_when_to_repeat_a_call_is_told_in_whole_seconds(
    stack: Stack, seconds: int, nanos: int, told: str
) -> None:
    """Retry-After is never less than what the service says."""
    status = status_pb2.Status(code=code_pb2.RESOURCE_EXHAUSTED, message="too fast")
    status.details.add().Pack(error_details_pb2.ErrorInfo(domain="animus", reason="RATE_LIMITED"))
    retry = error_details_pb2.RetryInfo()
    retry.retry_delay.seconds, retry.retry_delay.nanos = seconds, nanos
    status.details.add().Pack(retry)
    stack.upstream.answer = failing(
        grpc.StatusCode.RESOURCE_EXHAUSTED, "too fast", ("grpc-status-details-bin", status.SerializeToString())
    )
    response = await stack.client.get("/v1/projects/p")
    assert_refused(response, 429, "RATE_LIMITED")
    assert response.headers["retry-after"] == told


@pytest.mark.parametrize("name", HTTP_OF_CODE)
@pytest.mark.parametrize("details", [None, b"\xff\xff", b""])
async def test_an_error_without_details_keeps_its_code_and_none_of_its_text(
    stack: Stack, name: str, details: bytes | None
) -> None:
    """What gRPC or a broken server says may hold anything: it is answered with a fixed text and a reason."""
    trailing = [] if details is None else [("grpc-status-details-bin", details)]
    stack.upstream.answer = failing(getattr(grpc.StatusCode, name), "Traceback: secret at 10.0.0.1", *trailing)
    response = await stack.client.get("/v1/projects/p")
    assert response.status_code == HTTP_OF_CODE[name]
    assert response.json()["details"][0]["reason"] in REASONS
    assert "secret" not in response.text
    assert "10.0.0.1" not in response.text


def test_the_documented_status_codes_are_those_that_are_tested() -> None:
    """The table in docs/gateway.md is the map."""
    text = (Path(__file__).parents[2] / "docs" / "gateway.md").read_text()
    rows = re.findall(r"^\| (\d+) \| ([A-Z_]+) \| (\d+) \|$", text, flags=re.MULTILINE)
    assert {name: int(http_status) for _, name, http_status in rows} == HTTP_OF_CODE
    assert all(getattr(grpc.StatusCode, name).value[0] == int(number) for number, name, _ in rows)


async def test_a_detail_of_an_unknown_type_keeps_its_bytes(stack: Stack) -> None:
    """A newer server's details do not break the answer."""
    status = status_pb2.Status(code=code_pb2.ABORTED, message="m")
    status.details.add(type_url="type.googleapis.com/animus.v9.New", value=b"\xff\x00")
    status.details.add(type_url="type.googleapis.com/google.rpc.ErrorInfo", value=b"\xff")
    stack.upstream.answer = failing(
        grpc.StatusCode.ABORTED, "m", ("grpc-status-details-bin", status.SerializeToString())
    )
    assert (await stack.client.get("/v1/projects/p")).json()["details"] == [
        {"@type": "type.googleapis.com/animus.v9.New", "value": "/wA="},
        {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "value": "/w=="},
    ]


async def test_the_gateways_own_refusals_have_the_same_details_as_a_services(stack: Stack) -> None:
    """BadRequest with the field in JSON spelling, and the service is not called."""
    response = await stack.client.post("/v1/projects/p/runs", json={"runSpec": {"commit": {"shaa": "x"}}})
    body = assert_refused(response, 400, "FIELD_INVALID")
    assert body["code"] == 3
    assert body["message"] == "runSpec.commit.shaa: is no field of Commit"
    assert body["details"][1]["@type"] == "type.googleapis.com/google.rpc.BadRequest"
    assert body["details"][1]["fieldViolations"][0]["field"] == "runSpec.commit.shaa"
    assert stack.upstream.requests == []


async def test_a_server_that_is_not_there_is_unavailable() -> None:
    """503 without the address of the server; the gateway itself is alive but not ready."""
    with closed_port() as port:
        async with gateway_to(f"127.0.0.1:{port}") as (_, client):
            response = await client.get("/v1/projects/p")
            assert "127.0.0.1" not in assert_refused(response, 503, "DRAINING")["message"]
            assert_refused(await client.get("/readyz"), 503, "DRAINING")
            assert (await client.get("/healthz")).json() == {"status": "ok"}


async def test_a_call_ends_at_the_gateways_deadline(stack: Stack) -> None:
    """The gateway's timeout is the deadline that the service sees; past it the answer is 504."""
    cancelled = asyncio.Event()
    remaining = []

    async def answer(_request: Any, context: Any) -> Message:
        remaining.append(context.time_remaining())
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        raise AssertionError

    stack.upstream.answer = answer
    async with gateway_to(stack.target, timeout_seconds=0.3) as (_, client):
        assert_refused(await client.get("/v1/projects/p"), 504, "DEADLINE")
    assert 0 < remaining[0] < 0.5  # the clocks of gRPC's two sides differ by a little
    await asyncio.wait_for(cancelled.wait(), timeout=10)


async def test_a_reply_that_is_no_message_is_an_internal_error(stack: Stack) -> None:
    """Whatever the server sends, the client gets JSON."""
    rpc = stack.upstream.methods["/animus.v1.ProjectService/GetProject"]
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])

    async def answer(_request: bytes, _context: Any) -> bytes:
        return b"\xff\xff\xff"

    handler: Any = grpc.unary_unary_rpc_method_handler(answer)
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler(rpc.containing_service.full_name, {rpc.name: handler})]
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with gateway_to(f"127.0.0.1:{port}") as (_, client):
        assert_refused(await client.get("/v1/projects/p"), 500, "INTERNAL")
        assert_refused(await client.get("/v1/projects"), 501, "REQUEST_MALFORMED")
    await server.stop(None)


async def test_a_defect_is_answered_with_a_fixed_text_and_logged(
    health_server: HealthServer, caplog: pytest.LogCaptureFixture
) -> None:
    """500 without the exception's text, which goes to the gateway's log."""

    async def ready() -> bool:
        raise RuntimeError("inner secret")

    await health_server.servicer.set("", health_pb2.HealthCheckResponse.SERVING)
    async with gateway_to(health_server.target, ready=ready) as (_, client):
        response = await client.get("/readyz")
    body = assert_refused(response, 500, "INTERNAL")
    assert "secret" not in response.text
    assert body["code"] == code_pb2.INTERNAL
    (record,) = [record for record in caplog.records if record.name == "animus_gateway"]
    assert record.levelno == logging.ERROR
    assert "inner secret" in caplog.text


# --- headers


async def test_only_the_credential_and_the_trace_are_passed_on(stack: Stack) -> None:
    """Of all headers that a client sends, three become metadata, unchanged."""
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    passed = {"authorization": "Bearer animus_p_x", "traceparent": trace, "tracestate": "a=1,b=2"}
    others = {
        "cookie": "a=b",
        "x-forwarded-for": "10.0.0.1",
        "grpc-timeout": "1n",
        "grpc-metadata-x": "y",
        "animus-principal": "root",
        "baggage": "a=b",
    }
    await stack.client.get("/v1/projects/p", headers={**passed, **others})
    (metadata,) = stack.upstream.metadata
    assert {key: metadata.get(key) for key in passed} == passed
    assert not set(others) & set(metadata)
    stack.upstream.reset()
    await stack.client.get("/v1/projects/p")
    assert not set(passed) & set(stack.upstream.metadata[0])


async def test_a_broken_trace_is_left_out_and_a_broken_credential_refused(stack: Stack) -> None:
    """gRPC could carry neither; losing a trace harms nobody, losing a credential would."""
    await raw_get(stack, "/v1/projects/p", "traceparent: \u00e9", "tracestate: a=1")
    await raw_get(stack, "/v1/projects/p", "traceparent: a", "traceparent: b")
    assert [set(metadata) & {"traceparent", "tracestate"} for metadata in stack.upstream.metadata] == [set(), set()]
    stack.upstream.reset()
    for value in ("Bearer \u00e9", "Bearer a\tb"):
        assert (await raw_get(stack, "/v1/projects/p", f"Authorization: {value}"))[0] == 400
    assert (await raw_get(stack, "/v1/projects/p", "Authorization: Bearer a", "Authorization: Bearer b"))[0] == 400
    assert stack.upstream.requests == []


async def test_a_credential_never_reaches_a_log_or_an_answer(stack: Stack, caplog: pytest.LogCaptureFixture) -> None:
    """Whether the call works, is refused, fails, or the credential itself is broken or too large."""
    caplog.set_level(logging.DEBUG)
    answers = [
        await raw_get(stack, target, f"Authorization: Bearer canary-token{rest}")
        for rest in ("", " \u00e9", "x" * 30_000)
        for target in ("/v1/projects/p", "/v1/projects/%zz", "/v1/nothing")
    ]
    stack.upstream.answer = failing(grpc.StatusCode.INTERNAL, "no")
    answers.append(await raw_get(stack, "/v1/projects/p", "Authorization: Bearer canary-token"))
    assert {200, 400, 404, 429, 500} == {status for status, _ in answers}
    assert "canary" not in caplog.text
    assert not any(b"canary" in body for _, body in answers)


async def test_the_idempotency_key_becomes_the_request_id(stack: Stack) -> None:
    """As it stands in the header: what an id may look like, the service says."""
    url = "/v1/projects/p/runs/r:cancel"
    key = "job 17;x=\u00e9".encode("latin-1")
    assert (await stack.client.post(url, headers={b"Idempotency-Key": key})).status_code == 200
    assert stack.upstream.request.request_id == "job 17;x=\u00e9"
    response = await stack.client.post(url, headers={"Idempotency-Key": "a"}, json={"requestId": "b"})
    assert assert_refused(response, 400, "FIELD_INVALID")["message"].startswith("requestId: ")
    response = await stack.client.post(url, headers=[("Idempotency-Key", "a"), ("Idempotency-Key", "a")])
    assert_refused(response, 400, "REQUEST_MALFORMED")


async def test_replays_and_traces_are_shown_in_headers(stack: Stack) -> None:
    """`Animus-Replayed: true` only when the service says exactly that; the trace id as it is."""
    trailing: list[tuple[str, str]] = []

    async def answer(_request: Any, context: Any) -> Message:
        context.set_trailing_metadata(tuple(trailing))
        return project_pb2.Project()

    stack.upstream.answer = answer
    response = await stack.client.get("/v1/projects/p")
    assert "animus-replayed" not in response.headers
    assert "animus-trace-id" not in response.headers
    trailing[:] = [("animus-replayed", "false"), ("x-other", "y")]
    response = await stack.client.get("/v1/projects/p")
    assert "animus-replayed" not in response.headers
    assert "x-other" not in response.headers
    trailing[:] = [("animus-replayed", "true"), ("animus-trace-id", "ab12")]
    response = await stack.client.get("/v1/projects/p")
    assert (response.headers["animus-replayed"], response.headers["animus-trace-id"]) == ("true", "ab12")


@pytest.mark.parametrize("receipt", [bytes(range(256)), b"animus/receipt/v1\n\xe2\x80\x94", b""])
async def test_a_receipt_is_shown_in_a_header(stack: Stack, receipt: bytes) -> None:
    """In standard base64, on an answer and on an error with details or without."""
    shown = {"animus-audit-receipt": base64.b64encode(receipt).decode(), "animus-trace-id": "ab12"}
    trailing: list[tuple[str, str | bytes]] = [("animus-audit-receipt-bin", receipt), ("animus-trace-id", "ab12")]

    async def answer(_request: Any, context: Any) -> Message:
        context.set_trailing_metadata(tuple(trailing))
        return run_pb2.Run()

    details = status_pb2.Status(code=code_pb2.PERMISSION_DENIED, message="m").SerializeToString()
    denied = ("grpc-status-details-bin", details)
    code = grpc.StatusCode.PERMISSION_DENIED
    for answering, status in (
        (answer, 200),
        (failing(code, "m", *trailing), 403),
        (failing(code, "m", *trailing, denied), 403),
    ):
        stack.upstream.answer = answering
        response = await stack.client.post("/v1/projects/p/runs", json={"requestId": "k"})
        assert response.status_code == status
        assert {name: response.headers[name] for name in shown} == shown
    trailing.clear()
    stack.upstream.answer = answer
    assert "animus-audit-receipt" not in (await stack.client.post("/v1/projects/p/runs", json={})).headers


async def test_every_answer_has_the_security_headers(stack: Stack) -> None:
    """Nothing may be sniffed, stored, framed, shared with other origins or remembered in a cookie."""
    targets = ["GET /healthz", "GET /readyz", "GET /openapi.json", "GET /v1/projects/p", "GET /nothing"]
    for target in [*targets, "OPTIONS /v1/projects", "POST /v1/projects", "POST /healthz"]:
        method, path = target.split(" ")
        asks = {"access-control-request-method": "GET"}
        response = await stack.client.request(method, path, content=b"{", headers=asks)
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["cache-control"] == "no-store"
        assert response.headers["content-security-policy"].startswith("default-src 'none'")
        assert response.headers["cross-origin-resource-policy"] == "same-origin"
        assert response.headers["referrer-policy"] == "no-referrer"
        assert response.headers["x-frame-options"] == "DENY"
        assert "strict-transport-security" not in response.headers  # over HTTP it would mean nothing
        assert response.headers["content-type"] == "application/json"
        assert not {"set-cookie", "access-control-allow-origin", "server", "x-powered-by"} & set(response.headers)


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8080", "127.0.0.1.evil.example", "", "[::2]", "a b", "["]
)
async def test_another_host_name_is_refused_on_a_loopback_address(stack: Stack, host: str) -> None:
    """A page whose name was rebound to this machine reaches nothing but the health answers."""
    for target, expected in (("/v1/projects", 400), ("/openapi.json", 400), ("/healthz", 200)):
        request = f"GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
        (reply,) = await raw_exchange(stack.gateway.port, request)
        assert reply.status == expected
    assert stack.upstream.requests == []


async def test_host_names_of_this_machine_are_served(stack: Stack) -> None:
    """The negative control of the rule before, with and without port, in any case, on IPv6 too."""
    for host in ("localhost", f"LOCALHOST:{stack.gateway.port}", "127.0.0.1", "[::1]", "[::1]:8080"):
        request = f"GET /v1/projects HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
        (reply,) = await raw_exchange(stack.gateway.port, request)
        assert reply.status == 200


async def test_the_operator_says_which_host_names_are_served(stack: Stack) -> None:
    """With a list of names, those and no others."""
    async with gateway_to(stack.target, allowed_hosts=["Animus.example"]) as (_, client):
        for host, origin, status in [
            ("animus.example:443", None, 200),
            ("animus.example", "https://ANIMUS.example", 200),
            ("127.0.0.1", None, 400),
            ("animus.example", "https://evil.example", 400),
        ]:
            headers = {"host": host} | ({"origin": origin} if origin else {})
            assert (await client.get("/v1/projects", headers=headers)).status_code == status


async def test_pages_of_an_allowed_origin_may_call(stack: Stack) -> None:
    """They are told which methods and headers, may read receipts, and send no cookie; pages of others are refused."""
    page, method = {"origin": "https://ui.example"}, {"access-control-request-method": "POST"}
    async with gateway_to(stack.target, allowed_origins=["https://ui.example"]) as (_, client):
        sent = {"access-control-request-headers": "authorization, content-type"}
        asked = await client.options("/v1/projects", headers={**page, **method, **sent})
        assert asked.status_code == 200
        assert asked.headers["access-control-allow-origin"] == "https://ui.example"
        assert "authorization" in asked.headers["access-control-allow-headers"].lower()
        assert asked.headers["access-control-allow-methods"] == "GET, POST"
        assert "access-control-allow-credentials" not in asked.headers
        for path, status in (("/v1/projects", 200), ("/nothing", 404)):
            answer = await client.get(path, headers=page)
            assert answer.status_code == status
            assert answer.headers["access-control-allow-origin"] == "https://ui.example"
            assert "animus-audit-receipt" in answer.headers["access-control-expose-headers"]
        refused = await client.options(
            "/v1/projects", headers={**page, **method, "access-control-request-headers": "x"}
        )
        assert refused.status_code == 400
        for origin in ("https://evil.example", "https://ui.example.evil.example", "http://ui.example", "null"):
            for verb in ("GET", "OPTIONS"):
                answer = await client.request(verb, "/v1/projects", headers={**method, "origin": origin})
                assert_refused(answer, 400, "REQUEST_MALFORMED")
                assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    "origin", ["*", "null", "http://ui.example", "https://ui.example/", "https://*.example", "ui", ""]
)
def test_what_is_no_exact_origin_cannot_be_allowed(origin: str) -> None:
    """Nor one of plain text, whose pages anybody on the way could have written; loopback is this machine."""
    with pytest.raises(ValueError, match="is no origin"):
        check_origins([origin])
    check_origins(["https://ui.example", "https://ui.example:8443", "http://localhost:3000", "http://[::1]:1"])


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "file://", "http://127.0.0.1:1", "x"])
async def test_another_origin_is_refused(stack: Stack, origin: str) -> None:
    """Requests that a browser makes for another site are refused before anything is done."""
    response = await stack.client.post("/v1/projects", json={}, headers={"origin": origin})
    assert_refused(response, 400, "REQUEST_MALFORMED")
    assert stack.upstream.requests == []


async def test_the_same_origin_is_served(stack: Stack) -> None:
    """The negative control of the rule before."""
    own = {"origin": f"http://127.0.0.1:{stack.gateway.port}"}
    assert (await stack.client.post("/v1/projects", json={}, headers=own)).status_code == 200


@pytest.mark.parametrize(
    "content_type",
    [
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "text/plain",
        "text/plain; application/json",
    ],
)
async def test_what_a_form_can_send_is_refused(stack: Stack, content_type: str) -> None:
    """The content types that a browser sends to another site without asking get 415."""
    response = await stack.client.post("/v1/projects", content=b"{}", headers={"content-type": content_type})
    assert_refused(response, 415, "REQUEST_MALFORMED")
    assert stack.upstream.requests == []


async def test_two_content_types_are_refused(stack: Stack) -> None:
    """Which of them a proxy in front looked at cannot be known."""
    types = [("content-type", "application/json"), ("content-type", "text/plain")]
    assert_refused(await stack.client.post("/v1/projects", content=b"{}", headers=types), 400, "REQUEST_MALFORMED")


async def test_method_overrides_are_ignored(stack: Stack) -> None:
    """The method is the request line's; a header cannot change it, a parameter is an unknown one."""
    headers = dict.fromkeys(("X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override"), "POST")
    assert (await stack.client.get("/v1/projects/p", headers=headers)).status_code == 200
    assert stack.upstream.request == project_pb2.GetProjectRequest(project_id="p")
    assert_refused(await stack.client.get("/v1/projects/p?_method=POST"), 400, "FIELD_INVALID")


# --- fields that may be absent


async def test_zero_and_absent_are_told_apart(stack: Stack) -> None:
    """In a query an optional field that is given as 0 is there; in a reply it is left out only where it is absent."""
    url = "/v1/projects/p/log/inclusionProof"
    for query, index in (("", None), ("?index=0", 0), ("?index=9223372036854775807", 2**63 - 1)):
        stack.upstream.reset()
        assert (await stack.client.get(url + query)).status_code == 200
        assert stack.upstream.request == log_pb2.GetInclusionProofRequest(project_id="p", index=index)
    for query in ("?index=", "?index=-", "?index=00", "?index=1.0", "?index=9223372036854775808", "?index=1&index=1"):
        assert_refused(await stack.client.get(url + query), 400, "FIELD_INVALID")

    for index in (None, 0, 7):

        async def answer(_request: Any, _context: Any, index: int | None = index) -> Message:
            return audit_pb2.AuditEntry(index=index)

        stack.upstream.answer = answer
        found = (await stack.client.get("/v1/projects/p/auditEntries/e")).json()
        assert found.get("index") == (None if index is None else str(index))
        assert ("index" in found) == (index is not None)


# --- limits


async def test_a_large_body_and_a_large_reply_go_through(stack: Stack) -> None:
    """What is read and written beside the event loop is the same as what is read and written on it."""

    async def answer(request: project_pb2.CreateProjectRequest, _context: Any) -> Message:
        return request.project

    stack.upstream.answer = answer
    project = {"description": "é" * 100_000, "labels": [{"key": "k", "value": str(n)} for n in range(1000)]}
    response = await stack.client.post("/v1/projects", json={"project": project})
    assert response.json() == project
    response = await stack.client.post("/v1/projects", json={"project": {**project, "nope": 1}})
    assert_refused(response, 400, "FIELD_INVALID")


async def test_a_body_may_be_as_large_as_the_limit_and_no_larger(stack: Stack) -> None:
    """The limit is exact, with a declared length and with a chunked body."""

    async def chunks(body: bytes) -> Any:
        for start in range(0, len(body), 10_000):
            yield body[start : start + 10_000]

    fits = b"{}".ljust(MAX_BODY_BYTES)
    json_type = {"content-type": "application/json"}
    for body, status in ((fits, 200), (fits + b" ", 413)):
        for content in (body, chunks(body)):
            response = await stack.client.post("/v1/projects", content=content, headers=json_type)
            assert response.status_code == status
    assert_refused(response, 413, "REQUEST_MALFORMED")
    assert len(stack.upstream.requests) == 2


@pytest.mark.parametrize("length", [MAX_BODY_BYTES + 1, 10**12, 10**18, "0" * 5000 + "9"])
async def test_a_declared_length_beyond_the_limit_is_refused_unread(stack: Stack, length: object) -> None:
    """413 comes before a byte of the body, and no `100 Continue` asks for one."""
    head = (
        f"POST /v1/projects HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {length}\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n"
    )
    (reply,) = await raw_exchange(stack.gateway.port, head.encode())
    assert reply.status == 413


async def test_a_body_that_does_not_arrive_is_given_up(stack: Stack) -> None:
    """A client that stops in the middle of its body gets 408 and holds nothing."""
    async with gateway_to(stack.target, timeout_seconds=0.2) as (gateway, _):
        head = b"POST /v1/projects HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\nConnection: close\r\n\r\n{"
        (reply,) = await raw_exchange(gateway.port, head)
    assert reply.status == 408


async def test_a_client_that_leaves_in_the_middle_of_its_body_is_no_defect(
    stack: Stack, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is called and nothing logged; the next client is served."""
    _, writer = await asyncio.open_connection("127.0.0.1", stack.gateway.port)
    writer.write(b"POST /v1/projects HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{")
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    assert (await stack.client.get("/v1/projects/p")).status_code == 200
    assert stack.upstream.requests == [project_pb2.GetProjectRequest(project_id="p")]
    assert [record for record in caplog.records if record.name == "animus_gateway"] == []


async def test_a_request_head_is_bounded(stack: Stack) -> None:
    """A head without end is cut at 64 KiB and a little, however it is made."""
    for start in (b"GET /", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nX: "):
        for filling in (b"a", b"a: b\r\n"):
            reader, writer = await asyncio.open_connection("127.0.0.1", stack.gateway.port)
            writer.write(start)
            sent = 0
            try:
                while not reader.at_eof() and sent < 64 * 1024 * 1024:
                    writer.write(filling * (65536 // len(filling)))
                    sent += 65536
                    await writer.drain()
            except ConnectionError:
                assert sent > 64 * 1024  # cut by the server
            finally:
                writer.close()
            assert sent < 64 * 1024 * 1024


async def test_a_request_head_that_does_not_arrive_is_given_up(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that never finishes its first, or its second, request head is closed."""
    monkeypatch.setattr("animus_gateway.main.HEAD_SECONDS", 0.2)
    assert await raw_exchange(stack.gateway.port, b"GET /healthz HTTP/1.1\r\nHost: loc") == []
    reader, writer = await asyncio.open_connection("127.0.0.1", stack.gateway.port)
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert b"200 OK" in await reader.readuntil(b'ok"}')
    writer.write(b"GET /healthz HT")
    assert await asyncio.wait_for(reader.read(), timeout=4) == b""  # before the keep-alive timeout of five seconds
    writer.close()


SMUGGLED = b"GET /v1/projects/smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.mark.parametrize(
    "head",
    [
        "Content-Length: 4\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 4",
        "Content-Length: 4\r\nContent-Length: 5",
        "Content-Length: 4, 4",
        "Content-Length: -1",
        "Content-Length: +4",
        "Content-Length: 0x4",
        "Content-Length: 99999999999999999999999",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding: chunked, identity",
        "Transfer-Encoding : chunked",
        "Transfer-Encoding:\x0bchunked",
        "Content-Length : 4",
        "X: a\x00b",
        "X: a\r\n Content-Length: 4",
        " X: a",
    ],
)
async def test_a_request_with_unclear_length_is_refused_and_nothing_after_it_is_read(stack: Stack, head: str) -> None:
    """Two lengths, odd lengths and odd header lines get 400; what hides behind them is never a request."""
    request = f"POST /v1/projects HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{head}\r\n\r\n"
    for body in (b"0\r\n\r\n", b"{}  ", b"5\r\n{}   \r\n0\r\n\r\n"):
        replies = await raw_exchange(stack.gateway.port, request.encode("latin-1") + body + SMUGGLED)
        assert [reply.status for reply in replies] == [400]
    assert stack.upstream.requests == []


@pytest.mark.parametrize(
    "body",
    [
        "zz\r\n{}\r\n0\r\n\r\n",
        "-1\r\n{}\r\n",
        "2\r\n{}x\r\n0\r\n\r\n",
        "ffffffffffffffffff\r\n{}",
        "2 \n{}\r\n0\r\n\r\n",
    ],
)
async def test_broken_chunks_are_refused(stack: Stack, body: str) -> None:
    """A chunk whose size is not what it says ends the connection; the call is not made."""
    head = (
        "POST /v1/projects HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        "Transfer-Encoding: chunked\r\n\r\n"
    )
    replies = await raw_exchange(stack.gateway.port, (head + body).encode() + SMUGGLED)
    assert all(reply.status == 400 for reply in replies)
    assert stack.upstream.requests == []


# --- health


async def test_readiness_is_what_the_health_service_says(health_server: HealthServer) -> None:
    """200 only while `grpc.health.v1` says SERVING for the server as a whole, and the process agrees."""
    agrees = True

    async def ready() -> bool:
        return agrees

    async with gateway_to(health_server.target, ready=ready) as (_, client):
        for status, expected in (("NOT_SERVING", 503), ("SERVING", 200), ("UNKNOWN", 503), ("SERVING", 200)):
            await health_server.servicer.set("", health_pb2.HealthCheckResponse.ServingStatus.Value(status))
            assert (await client.get("/readyz")).status_code == expected
            assert (await client.get("/healthz")).status_code == 200
        agrees = False
        assert_refused(await client.get("/readyz"), 503, "DRAINING")


async def test_a_server_without_a_health_service_is_not_ready(stack: Stack) -> None:
    """Readiness is never guessed."""
    assert_refused(await stack.client.get("/readyz"), 503, "DRAINING")
