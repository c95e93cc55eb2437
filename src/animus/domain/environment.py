"""Environment locks: what code runs in, exactly. A lock's digest is the environment hash."""

from dataclasses import dataclass
from typing import ClassVar

from animus.domain.names import (
    PACKAGE_NAME,
    check_count,
    check_digest,
    check_image,
    check_length,
    check_pattern,
    check_within,
    sorted_set,
)

MAX_IMAGES = 64
MAX_PACKAGES = 10_000
MAX_ACCELERATORS = 64


@dataclass(frozen=True, slots=True)
class Image:
    """A container image by digest."""

    reference: str

    def __post_init__(self) -> None:
        check_image(self.reference, "reference")


@dataclass(frozen=True, slots=True)
class Package:
    """An installed package."""

    name: str  # normalised as PEP 503 says
    version: str  # 1 to 100 characters

    def __post_init__(self) -> None:
        check_pattern(PACKAGE_NAME, self.name, "name", "is no normalised package name (PEP 503)")
        check_length(self.version, 1, 100, "version")


@dataclass(frozen=True, slots=True)
class Accelerator:
    """A kind of accelerator."""

    model: str  # 1 to 100 characters
    count: int  # 1 to 1,024
    driver_version: str  # 1 to 100 characters

    def __post_init__(self) -> None:
        check_length(self.model, 1, 100, "model")
        check_within(self.count, 1, 1_024, "count")
        check_length(self.driver_version, 1, 100, "driverVersion")


@dataclass(frozen=True, slots=True)
class EnvironmentLock:
    """What code runs in. Images, packages and accelerators are sets."""

    SCHEMA: ClassVar[str] = "animus.environment_lock/v1"

    images: tuple[Image, ...]
    python_version: str  # 0 to 100 characters; empty where no Python is used
    platform_os: str  # 1 to 100 characters
    platform_architecture: str  # 1 to 100 characters
    packages: tuple[Package, ...]
    lock_file_digest: str  # empty where there is no lock file
    accelerators: tuple[Accelerator, ...]

    def __post_init__(self) -> None:
        check_count(self.images, 0, MAX_IMAGES, "images")
        check_length(self.python_version, 0, 100, "pythonVersion")
        check_length(self.platform_os, 1, 100, "platformOs")
        check_length(self.platform_architecture, 1, 100, "platformArchitecture")
        check_count(self.packages, 0, MAX_PACKAGES, "packages")
        if self.lock_file_digest:
            check_digest(self.lock_file_digest, "lockFileDigest")
        check_count(self.accelerators, 0, MAX_ACCELERATORS, "accelerators")
        object.__setattr__(self, "images", sorted_set(self.images, lambda i: i.reference, "images", "reference"))
        object.__setattr__(self, "packages", sorted_set(self.packages, lambda p: p.name, "packages", "name"))
        object.__setattr__(
            self, "accelerators", sorted_set(self.accelerators, lambda a: a.model, "accelerators", "model")
        )
