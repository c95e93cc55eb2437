"""The environment lock of the running interpreter, and what the SDK may import."""

import importlib.metadata
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from animus.domain import document
from animus.domain.errors import Invalid
from animus.sdk import file_digest, running_environment
from animus.sdk.environment import OURS, installed_packages


def installed(folder: Path, *packages: tuple[str, str]) -> list[importlib.metadata.Distribution]:
    """The distributions of a directory with these packages in it, each a name and a version."""
    for index, (name, version) in enumerate(packages):
        info = folder / f"p{index}-1.dist-info"
        info.mkdir(parents=True)
        header = [f"Name: {name}"] * bool(name) + [f"Version: {version}"] * bool(version)
        (info / "METADATA").write_text("\n".join(["Metadata-Version: 2.1", *header]) + "\n")
    return sorted(importlib.metadata.distributions(path=[str(folder)]), key=lambda d: str(d.locate_file("")))


def test_the_lock_is_of_this_interpreter_and_its_packages() -> None:
    """Version, platform and packages are those of the process; asked twice, the digest is the same."""
    lock = running_environment()
    assert lock.python_version == platform.python_version()
    assert (lock.platform_os, lock.platform_architecture) == (sys.platform, platform.machine().lower())
    versions = {package.name: package.version for package in lock.packages}
    assert versions["pytest"] == pytest.__version__
    assert OURS not in versions
    assert document.digest(document.dump(lock)) == document.digest(document.dump(running_environment()))


def test_the_lock_names_the_dependency_lock_file_by_digest(tmp_path: Path) -> None:
    """A lock file that differs makes another environment."""
    (tmp_path / "requirements.lock").write_text("numpy==2.0.0\n")
    lock = running_environment(tmp_path / "requirements.lock")
    assert lock.lock_file_digest == file_digest(tmp_path / "requirements.lock")
    assert running_environment().lock_file_digest == ""


def test_package_names_are_normalised_and_animus_is_left_out(tmp_path: Path) -> None:
    """Every spelling of a name is one name (PEP 503); the checkout's own version changes no lock."""
    packages = installed_packages(installed(tmp_path, ("Foo_.-Bar", "1.0"), ("animus_control", "0.1.0")))
    assert [(package.name, package.version) for package in packages] == [("foo-bar", "1.0")]


def test_of_two_packages_with_one_name_the_first_on_the_path_counts(tmp_path: Path) -> None:
    """What is imported is what is locked."""
    first = installed(tmp_path / "first", ("foo", "2"))
    second = installed(tmp_path / "second", ("Foo", "1"), ("bar", "3"))
    packages = {package.name: package.version for package in installed_packages([*first, *second])}
    assert packages == {"foo": "2", "bar": "3"}


@pytest.mark.parametrize(
    ("packages", "said"),
    [
        ([("foo", "1"), ("Foo", "2")], "has foo"),
        ([("", "1")], "without name or version"),
        ([("foo", "")], "without name or version"),
    ],
)
def test_an_ambiguous_or_broken_installation_is_refused(
    tmp_path: Path, packages: list[tuple[str, str]], said: str
) -> None:
    """No guess is made where two versions stand in one directory or metadata is cut short."""
    with pytest.raises(Invalid, match=said):
        installed_packages(installed(tmp_path, *packages))


def test_the_sdk_imports_neither_the_server_nor_what_only_the_server_needs() -> None:
    """A training image that imports the SDK pays for nothing of the server."""
    code = "import sys, animus.sdk; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "animus.sdk.hashing" in loaded
    servers = ("animus.store", "animus.service", "animus.server")
    libraries = ("sqlalchemy", "alembic", "asyncpg", "networkx", "opentelemetry", "grpc", "starlette")
    assert [name for name in loaded if name.startswith(servers + libraries)] == []
