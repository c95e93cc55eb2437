"""The explorer of the HTTP operations finds what is planted in a small server."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from animus.v1 import project_pb2
from faults.http import Record, explore

RPC = project_pb2.DESCRIPTOR.services_by_name["ProjectService"].methods_by_name["GetProject"]
STATUS = {"type": "object", "required": ["code"], "properties": {"code": {"type": "integer"}}}


def content(schema: object) -> dict[str, object]:
    """An answer of JSON."""
    return {"description": "An answer.", "content": {"application/json": {"schema": schema}}}


DOCUMENT = {
    "openapi": "3.1.0",
    "info": {"title": "Toy", "version": "v1"},
    "security": [{"bearer": []}],
    "paths": {
        "/v1/projects/{projectId}": {
            "get": {
                "operationId": "ProjectService_GetProject",
                "parameters": [{"name": "projectId", "in": "path", "required": True, "schema": {"type": "string"}}],
                "responses": {
                    "200": content({"type": "object", "properties": {"projectId": {"type": "string"}}}),
                    "default": content(STATUS),
                },
            }
        }
    },
    "components": {"securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}}},
}
SOUND = {True: (200, {"projectId": "fuzz"}), False: (401, {"code": 16})}


@contextmanager
def toy(answers: dict[bool, tuple[int, object]]) -> Iterator[str]:
    """A server that answers so with a token and without."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = answers["authorization" in self.headers]
            data = json.dumps(DOCUMENT if self.path == "/openapi.json" else body).encode()
            self.send_response(200 if self.path == "/openapi.json" else status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def explored(answers: dict[bool, tuple[int, object]]) -> Record:
    """What is found of such a server."""
    with toy(answers) as base:
        return explore(base, "token", [(RPC, project_pb2.GetProjectRequest(project_id="fuzz"))], {}, 6, 1)


def test_a_sound_server_has_no_findings() -> None:
    """What answers as it is described, and refuses who has no token, is left alone."""
    record = explored(SOUND)
    assert record.findings == {}
    assert record.statuses["ProjectService_GetProject"].keys() == {200}
    assert record.refused.keys() == {401}


@pytest.mark.parametrize(
    ("planted", "what"),
    [
        ({True: (500, {"code": 13})}, "Server error"),
        ({True: (200, {"projectId": 7})}, "Response violates schema"),
        ({True: (400, {"code": 3, "message": "<class 'KeyError'>"})}, "the program's own words"),
        ({False: (200, {"projectId": "fuzz"})}, "200 without a token"),
        ({False: (503, {"code": 14})}, "503 without a token"),
    ],
)
def test_planted_defects_are_found(planted: dict[bool, tuple[int, object]], what: str) -> None:
    """A failure, a body of another schema, an exception's text, and a success without a token."""
    findings = explored({**SOUND, **planted}).findings
    assert [found for _, found in findings] == [what]
