"""What differs between two environment locks."""

from collections.abc import Mapping
from dataclasses import dataclass

from animus.domain.environment import EnvironmentLock


@dataclass(frozen=True, slots=True)
class EnvironmentDifference:
    """A place where two locks differ. Empty text stands for what a lock does not have."""

    field: str  # of the lock, in JSON spelling
    name: str  # of a package, reference of an image, model of an accelerator; else empty
    this_value: str
    other_value: str

    @property
    def change(self) -> str:
        """What happened on the way from this lock to the other: `added`, `removed` or `changed`."""
        if not self.this_value:
            return "added"
        return "changed" if self.other_value else "removed"


def compare_environments(this: EnvironmentLock, other: EnvironmentLock) -> tuple[EnvironmentDifference, ...]:
    """Where two locks differ: by field in the order of the lock, then by name.

    Empty only for locks with one digest. The other way round it is the same with the values exchanged.
    """
    lefts, rights = _parts(this), _parts(other)
    return tuple(
        EnvironmentDifference(field, name, left.get(name, ""), right.get(name, ""))
        for (field, left), right in zip(lefts.items(), rights.values(), strict=True)
        for name in sorted(left.keys() | right.keys())
        if left.get(name, "") != right.get(name, "")
    )


def _parts(lock: EnvironmentLock) -> Mapping[str, Mapping[str, str]]:
    """All that a lock says, as texts by field and name; two locks that say different things have different parts."""
    return {
        "pythonVersion": {"": lock.python_version},
        "platformOs": {"": lock.platform_os},
        "platformArchitecture": {"": lock.platform_architecture},
        "images": {image.reference: image.reference.rpartition("@")[2] for image in lock.images},
        "packages": {package.name: package.version for package in lock.packages},
        "lockFileDigest": {"": lock.lock_file_digest},
        "accelerators": {each.model: f"{each.count}:{each.driver_version}" for each in lock.accelerators},
    }
