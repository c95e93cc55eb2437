"""Lock files as uv writes them: names, versions, hashes, and what asked for each package."""

import re
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
LOCK = ROOT / "requirements.lock"
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")
_VIA = re.compile(r"#(?: via)? +(\S+)(?: \(\S+\))?$")


@dataclass(frozen=True, slots=True)
class Locked:
    """One version of a package. A lock has more than one of a name where markers tell them apart."""

    name: str  # lower case, words joined by one hyphen
    version: str
    marker: str  # where it is installed; empty: everywhere
    hashes: tuple[str, ...]  # SHA-256 of each of its files
    via: tuple[str, ...]  # who asks for it: other packages, this project, or the lock's own source


def read_lock(text: str) -> list[Locked]:
    """The packages of a lock, in its order. Raises ValueError for one that is not pinned to a version and to hashes."""
    found = []
    for block in re.split(r"\n(?=\S)", text.strip()):
        asked, *rest = [line.strip().removesuffix("\\").strip() for line in block.splitlines()]
        requirement = Requirement(asked)
        pins = [each.version for each in requirement.specifier if each.operator == "=="]
        hashes = tuple(_HASH.findall(block))
        if len(pins) != 1 or not hashes:
            raise ValueError(f"{requirement.name} is not pinned to one version and to hashes: run make lock")
        via = tuple(match[1] for line in rest if (match := _VIA.match(line)))
        found.append(Locked(canonicalize_name(requirement.name), pins[0], str(requirement.marker or ""), hashes, via))
    return found
