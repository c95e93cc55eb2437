"""The changes that the demo asks for: safe to repeat, and counted, so that each can be found in the audit log."""

import hashlib
import json

from demo.runner import REQUEST_PREFIX
from demo.stack import Stack, Tree


class Changes:
    """Asks for changes through the gateway, and keeps their request ids."""

    def __init__(self, stack: Stack) -> None:
        self.requests: set[str] = set()
        self._stack = stack

    def change(self, path: str, request_id: str, body: Tree) -> Tree:
        """Makes a change. The same request_id and body always have the same effect and answer."""
        return self.change_or_replay(path, request_id, body)[0]

    def change_or_replay(self, path: str, request_id: str, body: Tree) -> tuple[Tree, bool]:
        """Makes a change, and says whether it had been made before."""
        self.requests.add(request_id)
        answer = self._stack.post(path, {**body, "requestId": request_id})
        return answer.body, answer.replayed

    def try_change(self, path: str, request_id: str, body: Tree) -> None:
        """Asks for a change that is to be refused, and raises RefusedError then; it is not counted as made."""
        self._stack.post(path, {**body, "requestId": request_id})

    def register_as(self, kind: str, path: str, body: Tree) -> Tree:
        """Registers something under a request_id that follows from its content: once, however often it is asked for."""
        content = json.dumps(body, sort_keys=True).encode()
        return self.change(path, f"{REQUEST_PREFIX}{kind}-{hashlib.sha256(content).hexdigest()[:40]}", body)


def request_of(what: str, run_id: str) -> str:
    """A request_id for something that is done once for a run."""
    return f"{REQUEST_PREFIX}{what}-{hashlib.sha256(f'{what} {run_id}'.encode()).hexdigest()[:32]}"
