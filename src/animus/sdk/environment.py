"""The environment lock of the running interpreter."""

import importlib.metadata
import platform
import re
from collections.abc import Iterable
from pathlib import Path

from animus.domain.environment import EnvironmentLock, Package
from animus.domain.errors import invalid
from animus.sdk.hashing import file_digest

# Left out: an editable install has the version of the checkout, and code is bound by its commit.
OURS = "animus-control"


def running_environment(lock_file: Path | None = None) -> EnvironmentLock:
    """What this interpreter runs in: its version, the platform, every installed package, and a dependency lock file.

    Two interpreters of one version with the same packages on one kind of machine have equal locks, wherever they are
    installed. Raises Invalid for an installation whose packages are ambiguous or broken.
    """
    return EnvironmentLock(
        images=(),
        python_version=platform.python_version(),
        platform_os=platform.system().lower(),
        platform_architecture=platform.machine().lower(),
        packages=installed_packages(importlib.metadata.distributions()),
        lock_file_digest=file_digest(lock_file) if lock_file else "",
        accelerators=(),
    )


def installed_packages(distributions: Iterable[importlib.metadata.Distribution]) -> tuple[Package, ...]:
    """The packages of distributions in the order of the import path: of two with one name, the first is imported.

    Raises Invalid where the order says nothing: two versions in one directory, or metadata without name or version.
    """
    found: dict[str, tuple[str, str]] = {}
    for distribution in distributions:
        directory = str(distribution.locate_file(""))
        metadata = distribution.metadata  # parsed at each access
        # Both are None in what an interrupted installation leaves behind, whatever the annotations say.
        spelled: str | None = metadata["Name"]
        version: str | None = metadata["Version"]
        if not spelled or not version:
            raise invalid("packages", f"has a distribution without name or version in {directory}: reinstall it")
        name = re.sub(r"[-_.]+", "-", spelled).lower()
        first_version, first_directory = found.setdefault(name, (version, directory))
        if first_directory == directory and first_version != version:
            raise invalid("packages", f"has {name} {first_version} and {version} in {directory}: reinstall it")
    found.pop(OURS, None)
    return tuple(Package(name, version) for name, (version, _) in found.items())
