"""What the documents tell people to type: each `animus` command in them can be parsed by the program."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from animus.cli import app

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def commands(text: str) -> Iterator[str]:
    """The lines of shell blocks that call `animus`."""
    for block in BLOCK.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("animus "):
                yield line


def faults(line: str) -> list[str]:
    """Why a command line could not run: no such command or option, or something that is missing."""
    command: Any = get_command(app)
    words = shlex.split(line, comments=True)[1:]
    name = "animus"
    while words and hasattr(command, "commands"):
        name, command = words[0], command.commands.get(words.pop(0))
        if command is None:
            return [f"{line}: no command {name}"]
    try:
        command.make_context(name, words)
    except Exception as error:
        return [f"{line}: {error}"]
    return []


DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_commands_in_documents_can_be_run(path: Path) -> None:
    """Commands, options and arguments are those that there are."""
    assert [fault for line in commands(path.read_text()) for fault in faults(line)] == []


def test_a_command_that_cannot_be_run_is_found() -> None:
    """A command, an option and a missing argument; comments are no part of it."""
    block = "```sh\nanimus audit check\nanimus audit verify --keys x\nanimus witness cosign --dir w\n```\n"
    assert [len(faults(line)) for line in commands(block)] == [1, 1, 1]
    assert [faults(line) for line in commands("```sh\nanimus audit verify p.log --key k   # offline\n```\n")] == [[]]
    text = (ROOT / "docs" / "log-verification.md").read_text()
    assert len(list(commands(text))) >= 8
