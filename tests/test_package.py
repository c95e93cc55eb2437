"""The distribution: what is in the wheel, that it works where only the base is installed, and that the lock fits."""

import importlib.metadata
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built offline by the locked build backend."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


def files_of(wheel: Path) -> set[str]:
    """The names in a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_the_wheel_holds_the_program_and_nothing_else(wheel: Path) -> None:
    """Every module, the generated contract, the revisions, the gateway and the licence; no tests and no demo."""
    names = files_of(wheel)
    expected = {
        place + path.relative_to(ROOT / folder).as_posix()
        for folder, place in (("src", ""), ("gateway", ""), ("migrations", "animus/migrations/"))
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    information = {name for name in names if ".dist-info/" in name}
    assert names - information == expected
    assert {"animus/py.typed", "animus/v1/descriptors.binpb", "animus/migrations/env.py"} <= names
    assert any(name.endswith("/licenses/LICENSE") for name in information)
    assert any(name.startswith("animus/migrations/versions/0001") for name in names)


def test_the_wheel_works_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    """Installed on its own, the contract, the SDK and the command import, and the revisions are found inside it."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    # The environment's packages stay, its editable install of this checkout does not.
    script = f"""
import sys
sys.path = [{str(tmp_path)!r}] + [p for p in sys.path if not p.startswith({str(ROOT)!r}) or "site-packages" in p]
import animus.cli, animus.sdk, animus.v1.run_pb2, animus_gateway.main
from animus.store.migrate import head, locate
print(animus.cli.__file__, animus_gateway.__file__, locate(), sep="\\n")
head()
"""
    answer = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True, env={}
    )
    assert all(line.startswith(str(tmp_path)) for line in answer.stdout.splitlines())


def closure(requirements: Iterable[str]) -> set[str]:
    """The packages that requirements bring with them, by the metadata of those that are installed."""
    seen: set[tuple[str, str]] = set()
    waiting = [Requirement(each) for each in requirements]
    while waiting:
        requirement = waiting.pop()
        for extra in {"", *requirement.extras}:
            key = (canonicalize_name(requirement.name), extra)
            if key in seen:
                continue
            seen.add(key)
            inner = [Requirement(each) for each in importlib.metadata.requires(requirement.name) or []]
            waiting += [each for each in inner if each.marker is None or each.marker.evaluate({"extra": extra})]
    return {name for name, _ in seen}


HEAVY = {"sqlalchemy", "alembic", "asyncpg", "networkx", "opentelemetry-sdk", "starlette", "uvicorn", "numpy"}


def test_the_base_install_is_light_and_enough() -> None:
    """Without extras no database, graph, telemetry or web package comes along, and SDK and command do without them."""
    base = closure(PROJECT["project"]["dependencies"])
    assert base >= {"grpcio", "protobuf", "orjson", "typer"}
    assert base & HEAVY == set()
    absent = {
        module
        for module, owners in importlib.metadata.packages_distributions().items()
        if not {canonicalize_name(owner) for owner in owners} & {*base, "animus-control"}
    }
    assert absent >= {"sqlalchemy", "networkx", "pydantic_settings", "grpc_health"}
    script = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent!r}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
import animus.cli, animus.sdk, animus.sdk.environment, animus.sdk.hashing, animus.v1.run_pb2_grpc, animus.codec
try:
    import sqlalchemy
except ModuleNotFoundError:
    print("without")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("without\n", "")


PIN = re.compile(r"^([a-z0-9][a-z0-9-]*)==([^\s;\\]+)", re.MULTILINE)


def lock_faults(lock: str, requirements: Iterable[str]) -> list[str]:
    """Requirements that the lock does not meet, and pins without a hash."""
    pins = dict(PIN.findall(lock))
    faults = []
    for text in requirements:
        requirement = Requirement(text)
        pinned = pins.get(canonicalize_name(requirement.name))
        if pinned is None:
            faults.append(f"{requirement.name} is not in the lock")
        elif not requirement.specifier.contains(pinned, prereleases=True):
            faults.append(f"{requirement.name} is locked at {pinned}, and {requirement.specifier} is asked for")
    entries = re.split(r"\n(?=[a-z0-9])", lock.strip())
    return faults + [f"{entry.split()[0]} has no hash" for entry in entries if "--hash=sha256:" not in entry]


def test_the_lock_meets_every_requirement_with_hashes() -> None:
    """Each dependency of the project, its extras and its groups is pinned, fits, and has hashes; so has uv."""
    project = PROJECT["project"]
    requirements = [
        *project["dependencies"],
        *(each for extra in project["optional-dependencies"].values() for each in extra),
        *(each for group in PROJECT["dependency-groups"].values() for each in group),
        *PROJECT["build-system"]["requires"],
    ]
    assert lock_faults((ROOT / "requirements.lock").read_text(), requirements) == []
    assert lock_faults((ROOT / "uv.lock.txt").read_text(), []) == []
    generators = (ROOT / "proto" / "requirements.in").read_text().split()
    assert lock_faults((ROOT / "proto" / "requirements.lock").read_text(), generators) == []


def test_a_lock_that_does_not_fit_is_found() -> None:
    """A missing package, another version and a pin without hash are three faults."""
    lock = "a==1.0 \\\n    --hash=sha256:00\nb==2.0\n"
    assert lock_faults(lock, ["a>=1", "b<2", "c"]) == [
        "b is locked at 2.0, and <2 is asked for",
        "c is not in the lock",
        "b==2.0 has no hash",
    ]


def test_the_version_is_said_once() -> None:
    """The image and compose file name the version of the project."""
    version = PROJECT["project"]["version"]
    compose = (ROOT / "deploy" / "compose.yaml").read_text()
    assert re.findall(r"image: animus:(.+)", compose) == [version]
    assert f"-t animus:{version} " in (ROOT / "deploy" / "Dockerfile").read_text()
