"""Environment locks: sets by name, exact bounds, one hash for one environment."""

import dataclasses
from typing import Any

import pytest

from animus.domain import document
from animus.domain.environment import (
    MAX_ACCELERATORS,
    MAX_IMAGES,
    MAX_PACKAGES,
    Accelerator,
    EnvironmentLock,
    Image,
    Package,
)
from domain.values import IMAGE, ONE, SAMPLES, refusal

LOCK: EnvironmentLock = SAMPLES[EnvironmentLock]


def changed(**changes: Any) -> EnvironmentLock:
    """The sample with some fields changed."""
    return dataclasses.replace(LOCK, **changes)


def test_a_lock_may_name_little() -> None:
    """No image, no Python, no package, no lock file, no accelerator: only the platform is needed."""
    bare = EnvironmentLock((), "", "linux", "arm64", (), "", ())
    assert document.load(document.dump(bare), EnvironmentLock) == bare


def test_any_difference_is_another_environment() -> None:
    """Each field is part of the hash."""
    others = [
        changed(images=LOCK.images[:1]),
        changed(python_version="3.11.8"),
        changed(platform_os="darwin"),
        changed(platform_architecture="arm64"),
        changed(packages=(LOCK.packages[0], Package(LOCK.packages[1].name, "9"))),
        changed(lock_file_digest=""),
        changed(accelerators=(dataclasses.replace(LOCK.accelerators[0], count=2), *LOCK.accelerators[1:])),
        changed(accelerators=(dataclasses.replace(LOCK.accelerators[0], driver_version="2"), *LOCK.accelerators[1:])),
    ]
    hashes = {document.digest(document.dump(lock)) for lock in [LOCK, *others]}
    assert len(hashes) == len(others) + 1


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: Image("python:3.11"), "reference"),
        (lambda: Image(IMAGE + "\n"), "reference"),
        (lambda: Package("Zope.Interface", "1"), "name"),
        (lambda: Package("zope_interface", "1"), "name"),
        (lambda: Package("a", ""), "version"),
        (lambda: Package("a", "1" * 101), "version"),
        (lambda: Accelerator("", 1, "1"), "model"),
        (lambda: Accelerator("a", 0, "1"), "count"),
        (lambda: Accelerator("a", 1_025, "1"), "count"),
        (lambda: Accelerator("a", 1, ""), "driverVersion"),
        (lambda: changed(python_version="3" * 101), "pythonVersion"),
        (lambda: changed(platform_os=""), "platformOs"),
        (lambda: changed(platform_architecture=""), "platformArchitecture"),
        (lambda: changed(platform_architecture="x\x1b86"), "platformArchitecture"),
        (lambda: changed(lock_file_digest="sha256:abc"), "lockFileDigest"),
        (lambda: changed(lock_file_digest=" "), "lockFileDigest"),
        (lambda: changed(images=(Image(IMAGE),) * 2), "images[1].reference"),
        (lambda: changed(images=(Image(IMAGE),) * (MAX_IMAGES + 1)), "images"),
        (lambda: changed(packages=(Package("a", "1"), Package("b", "1"), Package("a", "2"))), "packages[2].name"),
        (lambda: changed(packages=(Package("a", "1"),) * (MAX_PACKAGES + 1)), "packages"),
        (lambda: changed(accelerators=(Accelerator("a", 1, "1"), Accelerator("a", 2, "1"))), "accelerators[1].model"),
        (lambda: changed(accelerators=(Accelerator("a", 1, "1"),) * (MAX_ACCELERATORS + 1)), "accelerators"),
    ],
)
def test_a_value_outside_its_rules_is_refused_by_field(make: Any, field: str) -> None:
    """Each bound is named by the field that breaks it."""
    assert refusal(make).field == field


@pytest.mark.parametrize(
    ("field", "items"),
    [
        ("images", tuple(Image(f"i{number}@{ONE}") for number in range(MAX_IMAGES))),
        ("packages", tuple(Package(f"p{number}", "1") for number in range(MAX_PACKAGES))),
        ("accelerators", tuple(Accelerator(f"a{number}", 1, "1") for number in range(MAX_ACCELERATORS))),
    ],
)
def test_each_bound_itself_is_allowed(field: str, items: tuple[Any, ...]) -> None:
    """As many as the bound says may stand, and come sorted by their key."""
    found = getattr(changed(**{field: items[::-1]}), field)
    assert len(found) == len(items)
    assert list(found) == sorted(found, key=lambda item: dataclasses.astuple(item)[0])
