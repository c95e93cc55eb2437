"""The command, run in this process with a home of the test's own."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
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


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for state, and no settings from outside."""
    for name in ("ADDRESS", "PROJECT", "TOKEN_FILE", "INSECURE"):
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
