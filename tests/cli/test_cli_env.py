"""`animus env`: locks are made of files, registered at a real server, shown and compared."""

import json
import platform
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from service.conftest import Server
from service.shared import served
from sqlalchemy.ext.asyncio import AsyncEngine

from animus.domain import document
from animus.domain.environment import EnvironmentLock
from animus.sdk import running_environment
from animus.sdk.receipts import Kept, ReceiptStore
from animus.store.embedded import EmbeddedPostgres
from animus.v1 import environment_pb2
from cli.conftest import Animus, Command, command

FILES = Path(__file__).parents[1] / "vectors" / "lock_files"
EXPECTED: dict[str, Any] = json.loads((FILES / "expected.json").read_text())
TARGET = ("--python-version", "3.11.7", "--platform-os", "linux", "--platform-architecture", "x86_64")
IMAGE = f"registry.example/train@sha256:{'1' * 64}"
ABSENT = f"sha256:{'0' * 64}"


@pytest.fixture(scope="module")
async def server(
    postgres: EmbeddedPostgres, admin: AsyncEngine, template: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Server]:
    """The server of these tests, with a project `p`."""
    async with served(postgres, admin, template, tmp_path_factory.mktemp("data")) as found:
        await found.project("p")
        yield found


@pytest.fixture
async def env(server: Server, tmp_path: Path) -> Command:
    """Runs `animus env` in a process of its own, as an operator of the project."""
    return command(server, (await server.caller("p", "operator")).token, tmp_path, "env", PATH=str(tmp_path))


def locked(animus: Animus, name: str, output: Path, *options: object) -> str:
    """Writes the environment lock of a golden file, and returns its digest."""
    done = animus("env", "lock", FILES / name, *TARGET, *options, "--output", output)
    assert (done.code, done.out) == (0, ""), done
    return done.err.strip()


# On this machine.


@pytest.mark.parametrize("name", EXPECTED)
def test_a_lock_file_becomes_its_canonical_document(animus: Animus, name: str) -> None:
    """The document alone on stdout, without a line feed, so that its SHA-256 is the digest; that one on stderr."""
    done = animus("env", "lock", FILES / name, *TARGET)
    assert (done.code, done.err) == (0, EXPECTED[name]["digest"] + "\n")
    lock = document.load(done.out.encode(), EnvironmentLock)
    assert document.digest(done.out.encode()) == EXPECTED[name]["digest"]
    assert {package.name: package.version for package in lock.packages} == EXPECTED[name]["packages"]


def test_without_a_path_it_is_the_running_environment(animus: Animus, tmp_path: Path) -> None:
    """What the SDK says of this interpreter, and what the options add."""
    done = animus("env", "lock", "--image", IMAGE, "--accelerator", "nvidia-h100-80gb:8:550.54.15")
    lock = document.load(done.out.encode(), EnvironmentLock)
    assert lock.packages == running_environment().packages
    assert [image.reference for image in lock.images] == [IMAGE]
    assert [(each.model, each.count, each.driver_version) for each in lock.accelerators] == [
        ("nvidia-h100-80gb", 8, "550.54.15")
    ]


def test_running_takes_python_and_platform_from_the_interpreter(animus: Animus) -> None:
    """And the packages from the file."""
    done = animus("env", "lock", FILES / "freeze.txt", "--running")
    lock = document.load(done.out.encode(), EnvironmentLock)
    assert lock.python_version == platform.python_version()
    assert (lock.platform_os, lock.platform_architecture) == (platform.system().lower(), platform.machine().lower())
    assert {package.name: package.version for package in lock.packages} == EXPECTED["freeze.txt"]["packages"]


def test_accelerators_are_detected_where_the_driver_is(
    animus: Animus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its program that is told and the lock has none; one that fails ends the command."""
    arguments = ("env", "lock", FILES / "freeze.txt", *TARGET, "--detect-accelerators")
    monkeypatch.setenv("PATH", str(tmp_path))
    done = animus(*arguments)
    assert (done.code, done.err.splitlines()) == (
        0,
        ["animus: no accelerator was found: nvidia-smi is not there", EXPECTED["freeze.txt"]["digest"]],
    )
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'Tesla T4, 550.54.15'\n")
    program.chmod(0o755)
    (found,) = document.load(animus(*arguments).out.encode(), EnvironmentLock).accelerators
    assert (found.model, found.count, found.driver_version) == ("tesla-t4", 1, "550.54.15")
    program.write_text("#!/bin/sh\nexit 9\n")
    done = animus(*arguments)
    assert (done.code, done.out, done.err) == (1, "", "animus: nvidia-smi ended with 9: it said nothing\n")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ((FILES / "uv.lock",), 2, "give --python-version, --platform-os, --platform-architecture, or --running"),
        ((FILES / "uv.lock", *TARGET[:4]), 2, "give --platform-architecture, or --running"),
        ((FILES / "uv.lock", "--running", *TARGET[:2]), 2, "leave out --python-version"),
        (TARGET[2:4], 2, "leave out --platform-os; they are for a lock file"),
        ((FILES / "uv.lock", "--python-version", "3", *TARGET[2:]), 2, "pythonVersion"),
        ((FILES, *TARGET), 2, "name the lock file"),
        ((FILES / "README.md", *TARGET), 2, "README.md: is of no known format"),
        ((FILES / "none.lock", *TARGET), 1, "none.lock: is missing"),
        ((FILES / "conda-lock.yml", *TARGET[:2], "--platform-os", "windows", *TARGET[4:]), 2, "it has linux-64"),
        (("--image", "python:3.11"), 2, "--image python:3.11 names no image by digest"),
        (("--image", IMAGE, "--image", IMAGE), 2, "images[1].reference"),
        (("--accelerator", "h100"), 2, "accelerator: is no MODEL:COUNT:DRIVER"),
        (("--accelerator", "a:1:1", "--accelerator", "a:2:1"), 2, "accelerators[1].model"),
    ],
)
def test_what_cannot_be_locked_is_one_line_and_a_code(
    animus: Animus, arguments: tuple[object, ...], code: int, said: str
) -> None:
    """The line names the option, the file, or the field."""
    done = animus("env", "lock", *arguments)
    assert (done.code, done.out, len(done.err.splitlines())) == (code, "", 1), done
    assert said in done.err


def test_files_are_compared_without_a_server(animus: Animus, tmp_path: Path) -> None:
    """7 and every difference with what happened; 0 for equal ones; the same as JSON."""
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    digest = locked(animus, "uv.lock", one)
    other = locked(animus, "requirements.txt", two, "--image", IMAGE)
    done = animus("env", "diff", one, two)
    assert done.code == 7, done
    lines = [line.split() for line in done.out.splitlines()]
    assert lines[:3] == [["DIFFERENT"], ["digest", digest], ["other", other]]
    for row in (
        ["images", IMAGE, "added", "-", IMAGE.rpartition("@")[2]],
        ["packages", "colorama", "removed", "0.4.6", "-"],
        ["packages", "jinja2", "added", "-", "3.1.4"],
        ["packages", "metrics-kit", "removed", "1.2.0", "-"],
        ["packages", "zope-interface", "added", "-", "7.1.1"],
    ):
        assert row in lines
    assert [line[2] for line in lines if line and line[0] == "lockFileDigest"] == ["changed"]
    assert len(lines) == 3 + 2 + 6
    told = animus("env", "diff", two, one, "--json")
    assert (told.code, told.json["equal"], told.json["digest"]) == (7, False, other)
    assert {"field": "packages", "name": "jinja2", "change": "removed", "thisValue": "3.1.4", "otherValue": ""} in (
        told.json["differences"]
    )
    same = animus("env", "diff", one, one)
    assert (same.code, same.out.splitlines()[0]) == (0, "EQUAL")
    told = animus("env", "diff", one, one, "--json")
    assert (told.code, told.json) == (
        0,
        {"equal": True, "digest": digest, "otherDigest": digest, "differences": []},
    )


def test_what_is_no_lock_is_not_compared(animus: Animus, tmp_path: Path) -> None:
    """A file of something else, one that is not there, and a digest without a project."""
    one = tmp_path / "one.json"
    locked(animus, "uv.lock", one)
    pretty = tmp_path / "pretty.json"
    pretty.write_text(json.dumps(json.loads(one.read_text()), indent=2))
    for second, code, said in (
        (FILES / "uv.lock", 2, "is no environment lock"),
        (pretty, 2, "canonical form"),
        (tmp_path / "none", 1, "is missing"),
        (ABSENT, 2, "--project"),
    ):
        done = animus("env", "diff", one, second)
        assert (done.code, done.out, len(done.err.splitlines())) == (code, "", 1), done
        assert said in done.err


# At a server.


async def test_a_lock_is_registered_and_shown(env: Command, server: Server, animus: Animus, tmp_path: Path) -> None:
    """The digest is printed and a receipt kept; the server has the lock, and shows it as it was written."""
    file = tmp_path / "lock.json"
    digest = locked(animus, "requirements.txt", file, "--image", IMAGE, "--accelerator", "t4:2:1.0")
    done = await env("register", file)
    assert (done.code, done.out) == (0, f"{digest}\n"), done
    request = environment_pb2.GetEnvironmentLockRequest(project_id="p", digest=digest)
    made = await server.admin("GetEnvironmentLock", request)
    assert {package.name: package.version for package in made.packages} == EXPECTED["requirements.txt"]["packages"]
    kept = list(ReceiptStore(tmp_path / "state" / "animus" / "receipts").read())
    assert [type(line) for line in kept] == [Kept]
    shown = await env("show", digest)
    assert (shown.code, re.split(r"\s{2,}|\n", shown.out)[:2]) == (0, ["python", "3.11.7"]), shown
    lines = [re.split(r"\s{2,}", line) for line in shown.out.splitlines()]
    for row in (
        ["platform", "linux x86_64"],
        ["image", IMAGE],
        ["accelerator", "t4:2:1.0"],
        ["package", "numpy==2.1.3"],
    ):
        assert row in lines
    assert (await env("show", digest, "--json")).json == json.loads(file.read_text())


async def test_a_registered_lock_is_compared_with_a_file(env: Command, animus: Animus, tmp_path: Path) -> None:
    """Digests and files stand on either side."""
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    first, second = locked(animus, "uv.lock", one), locked(animus, "freeze.txt", two)
    for file in (one, two):
        assert (await env("register", file)).code == 0
    for this, other in ((first, one), (one, first), (first, first)):
        done = await env("diff", this, other)
        assert (done.code, done.out.splitlines()[0]) == (0, "EQUAL"), done
    outs = [await env("diff", this, other) for this, other in ((first, second), (one, second), (first, two))]
    assert [done.code for done in outs] == [7, 7, 7]
    assert len({done.out for done in outs}) == 1


async def test_a_request_id_makes_a_repeated_command_one_change(env: Command, animus: Animus, tmp_path: Path) -> None:
    """The same id and lock answer as before; with another lock the id is taken."""
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    digest = locked(animus, "poetry.lock", one)
    locked(animus, "poetry.lock", two, "--image", IMAGE)
    told = [await env("register", one, "--request-id", "once") for _ in range(2)]
    assert [(done.code, done.out) for done in told] == [(0, f"{digest}\n")] * 2
    assert (await env("register", two, "--request-id", "once")).code == 5


async def test_what_is_refused_is_one_line_and_a_code(env: Command, animus: Animus, tmp_path: Path) -> None:
    """2 for what is no lock or digest, 3 for a lock that is not there, 1 for a file that cannot be read."""
    one = tmp_path / "one.json"
    locked(animus, "uv.lock", one)
    for done, code, said in (
        (await env("register", FILES / "uv.lock"), 2, "uv.lock is no environment lock"),
        (await env("register", tmp_path / "none"), 1, "is missing"),
        (await env("show", "latest"), 2, "digest"),
        (await env("show", ABSENT), 3, ABSENT),
        (await env("diff", one, ABSENT), 3, ABSENT),
    ):
        assert (done.code, done.out) == (code, ""), done
        assert said in done.err
        assert len(done.err.splitlines()) == 1
