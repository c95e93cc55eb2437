"""The demo's server as a child process, and calls to it over HTTP."""

import http.client
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo.processes import end_group, ended, launch, read_mark, stop, stop_marked, write_mark
from demo.state import CHECKOUT, DemoError

Tree = dict[str, Any]

START_SECONDS = 120.0
STOP_SECONDS = 40.0
PATIENCE_SECONDS = 90.0  # for all tries of a call
MAX_RESTARTS = 5
FAILED_PRECONDITION = 9  # google.rpc.Code, as is
ABORTED = 10  # repeat the call; over HTTP it has the same status as ALREADY_EXISTS


@dataclass(frozen=True, slots=True)
class Answer:
    """What the gateway answered."""

    body: Tree
    replayed: bool  # this request_id was answered before, and this is that answer


class RefusedError(DemoError):
    """The server refuses a call for the state of things, and says which."""

    def __init__(self, what: str, answer: Tree) -> None:
        super().__init__(what)
        self._answer = answer

    def preconditions(self) -> list[Tree]:
        """What does not hold."""
        kind = "type.googleapis.com/google.rpc.PreconditionFailure"
        return [each for detail in self._answer["details"] if detail["@type"] == kind for each in detail["violations"]]


class Stack:
    """One server, which is started again when it dies."""

    def __init__(self, folder: Path, port: int) -> None:
        self.data = folder / "server"
        self.url = f"http://localhost:{port}"
        self.grpc = ""  # host:port, known once it is up
        self._folder = folder
        self._port = port
        self._restarts = 0
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts the server; `wait` waits for it."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ANIMUS_")}
        environment |= {
            "ANIMUS_DATA_DIR": str(self.data),
            "ANIMUS_GATEWAY_HOST": "127.0.0.1",
            "ANIMUS_GATEWAY_PORT": str(self._port),
            "ANIMUS_GRPC_HOST": "127.0.0.1",
            "ANIMUS_GRPC_PORT": self.grpc.rpartition(":")[2] or "0",  # the same again: the runner knows it
            "ANIMUS_METRICS_PORT": "0",
            "ANIMUS_LOG_FORMAT": "json",
            "ANIMUS_LOG_NAME": "animus.demo",
        }
        self._process = launch(
            [sys.executable, "-m", "animus.cli", "serve"],
            environment=environment,
            folder=CHECKOUT,
            output=self._folder / "server.log",
            death=signal.SIGTERM,
        )
        write_mark(self._folder / "server.pid", self._process.pid)

    def wait(self) -> None:
        """Waits until the server answers. Raises DemoError when it ends or takes too long."""
        if not self._came_up():
            raise DemoError(f"the server ended {self._how()} at its start: {self._last_words()}")

    def check(self) -> None:
        """Starts the server again if it died; raises DemoError when that happened too often."""
        assert self._process is not None
        while ended(self._process, 0):
            if self._restarts == MAX_RESTARTS:
                raise DemoError(f"the server ended {self._how()} once more: see {self._folder}/server.log")
            self._restarts += 1
            print(f"    the server ended {self._how()}: starting it again", flush=True)
            self.start()
            if not self._came_up() and self._process.wait() > 0:  # it says itself why it does not start
                raise DemoError(f"the server ended {self._how()} at its start: {self._last_words()}")

    def ended(self, within: float) -> bool:
        """Whether the server has ended, waiting up to so many seconds."""
        assert self._process is not None
        return ended(self._process, within)

    def stop(self) -> None:
        """Stops the server and all that it started."""
        if self._process is not None:
            stop(self._process, STOP_SECONDS)

    def get(self, path: str) -> Tree:
        """What a path answers."""
        return self._call("GET", path, None).body

    def post(self, path: str, body: Tree) -> Answer:
        """Posts a body; safe to repeat because it carries a request_id, or writes nothing."""
        return self._call("POST", path, body)

    def list(self, path: str, field: str) -> list[Tree]:
        """All items of a list, page by page."""
        found: list[Tree] = []
        token = ""
        while True:
            page = self.get(f"{path}?pageSize=1000&pageToken={token}")
            found += page.get(field, [])
            token = page.get("nextPageToken", "")
            if not token:
                return found

    def _call(self, verb: str, path: str, body: Tree | None) -> Answer:
        began = time.monotonic()
        for tries in itertools.count():
            try:
                status, replayed, answer = self._send(verb, path, body)
            except (OSError, http.client.HTTPException, ValueError) as error:  # refused, cut, or cut short
                status, replayed, answer = 0, False, {"message": str(error) or type(error).__name__}
            if status == 200:
                return Answer(answer, replayed)
            again = status in (0, 429, 503, 504) or (status == 409 and answer.get("code") == ABORTED)
            if not again or time.monotonic() - began > PATIENCE_SECONDS:
                what = f"{verb} {path} answers {status or 'nothing'}: {answer.get('message', '')}"
                raise RefusedError(what, answer) if answer.get("code") == FAILED_PRECONDITION else DemoError(what)
            time.sleep(min(1.0, 0.1 * 2**tries))
            self.check()
        raise AssertionError("itertools.count() ended")

    def _send(self, verb: str, path: str, body: Tree | None) -> tuple[int, bool, Tree]:
        connection = http.client.HTTPConnection("localhost", self._port, timeout=20)
        try:
            headers = {"Authorization": f"Bearer {(self.data / 'admin.token').read_text().strip()}"}
            if body is not None:
                headers["Content-Type"] = "application/json"
            connection.request(verb, path, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            replayed = response.getheader("Animus-Replayed") == "true"
            return response.status, replayed, json.loads(response.read())
        finally:
            connection.close()

    def _came_up(self) -> bool:
        """Waits until the server answers or has ended. Raises DemoError when neither happens."""
        assert self._process is not None
        deadline = time.monotonic() + START_SECONDS
        while not self._up(self._process.pid):
            if ended(self._process, 0.05):
                return False
            if time.monotonic() > deadline:
                raise DemoError(f"the server was not up within {START_SECONDS:.0f} s: see {self._folder}/server.log")
        return True

    def _how(self) -> str:
        """How the server ended."""
        assert self._process is not None
        code = end_group(self._process)
        return f"by {signal.Signals(-code).name}" if code < 0 else f"with {code}"

    def _up(self, pid: int) -> bool:
        """Whether this process says where it listens, and answers there."""
        try:
            where = json.loads((self.data / "server.json").read_text())
            if where["pid"] != pid:
                return False  # of a server before this one
            for path in ("/healthz", "/readyz"):
                connection = http.client.HTTPConnection("localhost", self._port, timeout=5)
                try:
                    connection.request("GET", path)
                    if connection.getresponse().status != 200:
                        return False
                finally:
                    connection.close()
        except OSError:
            return False
        self.grpc = where["grpc"]
        return True

    def _last_words(self) -> str:
        """The last line that the server wrote."""
        lines = (self._folder / "server.log").read_text(errors="replace").strip().splitlines()
        return lines[-1][:500] if lines else "it wrote nothing"


def stop_left(folder: Path) -> list[str]:
    """Stops the children that a killed demo left in this folder, and says which there were."""
    stopped = []
    for name in ("runner", "server"):
        left = read_mark(folder / f"{name}.pid")
        if left is not None and stop_marked(left, signal.SIGTERM, STOP_SECONDS):
            stopped.append(f"{name} (process {left.pid})")
        (folder / f"{name}.pid").unlink(missing_ok=True)
    return stopped


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def check_port(port: int) -> None:
    """Raises DemoError when something listens on the port at either address of `localhost`."""
    for host in ("127.0.0.1", "::1"):
        try:
            socket.create_connection((host, port), timeout=2).close()
        except OSError:  # refused, or a machine without IPv6
            continue
        raise DemoError(f"port {port} is in use: stop what listens there, or choose another by ANIMUS_GATEWAY_PORT")
