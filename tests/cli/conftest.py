"""The command, run in this process with a home of the test's own."""

import asyncio
import json
import os
import secrets
import sys
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from service.conftest import Server
from typer.testing import CliRunner

from animus.cli import app


@dataclass(frozen=True, slots=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What it printed, as JSON."""
        return json.loads(self.out)


Animus = Callable[..., Done]
Command = Callable[..., Coroutine[Any, Any, Done]]


def command(server: Server, token: str, folder: Path, *words: str, project: str = "p", **more: str) -> Command:
    """Runs `animus` with these first words, in a process of its own, by a token; its state is in `folder`."""
    file = folder / f"{secrets.token_hex(4)}.token"
    file.write_text(token)
    environment = {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "XDG_STATE_HOME": str(folder / "state"),
        "ANIMUS_ADDRESS": server.running.grpc,
        "ANIMUS_PROJECT": project,
        "ANIMUS_TOKEN_FILE": str(file),
        **more,
    }

    async def run(*arguments: object) -> Done:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "animus.cli", *words, *map(str, arguments)),
            env=environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        assert process.returncode is not None
        return Done(process.returncode, out.decode(), err.decode())

    return run


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for state, and no settings from outside."""
    for name in (
        "ADDRESS",
        "PROJECT",
        "TOKEN_FILE",
        "INSECURE",
        "CA_FILE",
        "CLIENT_CERTIFICATE_FILE",
        "CLIENT_KEY_FILE",
    ):
        monkeypatch.delenv(f"ANIMUS_{name}", raising=False)
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("XDG_STATE_HOME", str(folder))
    return folder


@pytest.fixture
def animus(home: Path) -> Animus:
    """Runs `animus` with arguments. What is raised is a defect, and raised here too."""

    def run(*arguments: object) -> Done:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
        return Done(result.exit_code, result.stdout, result.stderr)

    return run
