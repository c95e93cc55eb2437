"""Environment locks: of the running interpreter, and of a lock file for a platform that is given."""

import importlib.metadata
import platform
import re
from collections.abc import Iterable
from pathlib import Path

from animus.domain import document
from animus.domain.environment import Accelerator, EnvironmentLock, Image, Package
from animus.domain.errors import invalid
from animus.sdk.files import read_file
from animus.sdk.hashing import file_digest

# Left out: an editable install has the version of the checkout, and code is bound by its commit.
OURS = "animus-control"

# Of a folder: exactly one of them is there, or it takes a person to say which counts.
LOCK_FILES = ("uv.lock", "poetry.lock", "conda-lock.yml", "conda-lock.yaml", "requirements.lock", "requirements.txt")


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


def environment_of(
    path: Path,
    *,
    python_version: str,
    platform_os: str,
    platform_architecture: str,
    images: Iterable[Image] = (),
    accelerators: Iterable[Accelerator] = (),
) -> EnvironmentLock:
    """What a lock file says that code runs in, on this Python and platform; of a folder, its one lock file.

    Equal bytes and arguments give equal locks on any machine: nothing of this one gets in. Animus itself is left out,
    as in `running_environment`. Raises Unreadable for a file that cannot be read or is longer than 16 MiB, and Invalid
    with the line or the key for one whose packages are not certain.
    """
    from animus.sdk.lock_files import MAX_LOCK_FILE_BYTES, Target, packages_of

    target = Target(python_version, platform_os, platform_architecture)
    file = lock_file_in(path) if path.is_dir() else path
    data = read_file(file, MAX_LOCK_FILE_BYTES)
    return EnvironmentLock(
        images=tuple(images),
        python_version=python_version,
        platform_os=platform_os,
        platform_architecture=platform_architecture,
        packages=tuple(each for each in packages_of(file.name, data, target) if each.name != OURS),
        lock_file_digest=document.digest(data),
        accelerators=tuple(accelerators),
    )


def lock_file_in(folder: Path) -> Path:
    """The one lock file of a folder. Raises Invalid where there is none or several."""
    found = [name for name in LOCK_FILES if (folder / name).exists()]
    if len(found) != 1:
        have = f"has {', '.join(found)}" if found else f"has none of {', '.join(LOCK_FILES)}"
        raise invalid(str(folder), f"{have}: name the lock file")
    return folder / found[0]


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
