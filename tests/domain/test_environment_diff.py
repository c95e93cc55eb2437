"""What differs between two environment locks: named, complete, and the same from either side."""

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from animus.domain import document
from animus.domain.environment import Accelerator, EnvironmentLock, Image, Package
from animus.domain.environment_diff import EnvironmentDifference, compare_environments
from domain.values import DOCUMENTS, LAW, ONE, TWO

LOCK = EnvironmentLock(
    images=(Image(f"a@{ONE}"),),
    python_version="3.11.7",
    platform_os="linux",
    platform_architecture="x86_64",
    packages=(Package("numpy", "1.26.4"), Package("tqdm", "4.67.1")),
    lock_file_digest=ONE,
    accelerators=(Accelerator("h100", 8, "550.54"),),
)

# Few names and values, so that two locks often have some in common.
versions = st.sampled_from(["1", "2"])
locks = st.builds(
    EnvironmentLock,
    images=st.sets(st.sampled_from([Image(f"{name}@{digest}") for name in "ab" for digest in (ONE, TWO)])).map(tuple),
    python_version=st.sampled_from(["", "3.11.7"]),
    platform_os=st.sampled_from(["linux", "darwin"]),
    platform_architecture=st.just("arm64"),
    packages=st.dictionaries(st.sampled_from("abc"), versions).map(
        lambda d: tuple(Package(*each) for each in d.items())
    ),
    lock_file_digest=st.sampled_from(["", ONE]),
    accelerators=st.dictionaries(st.sampled_from("mn"), st.tuples(st.sampled_from([1, 11]), versions)).map(
        lambda d: tuple(Accelerator(model, *each) for model, each in d.items())
    ),
)
pairs = st.tuples(locks, locks) | st.tuples(DOCUMENTS[EnvironmentLock], DOCUMENTS[EnvironmentLock])


@pytest.mark.parametrize(
    ("changes", "field", "name", "change", "this", "other"),
    [
        ({"python_version": "3.12.1"}, "pythonVersion", "", "changed", "3.11.7", "3.12.1"),
        ({"python_version": ""}, "pythonVersion", "", "removed", "3.11.7", ""),
        ({"platform_os": "darwin"}, "platformOs", "", "changed", "linux", "darwin"),
        ({"platform_architecture": "arm64"}, "platformArchitecture", "", "changed", "x86_64", "arm64"),
        ({"lock_file_digest": TWO}, "lockFileDigest", "", "changed", ONE, TWO),
        ({"images": ()}, "images", f"a@{ONE}", "removed", ONE, ""),
        ({"accelerators": ()}, "accelerators", "h100", "removed", "8:550.54", ""),
        (
            {"accelerators": (Accelerator("h100", 4, "550.54"),)},
            *("accelerators", "h100", "changed", "8:550.54", "4:550.54"),
        ),
        (
            {"packages": (Package("numpy", "2.1.3"), Package("tqdm", "4.67.1"))},
            *("packages", "numpy", "changed", "1.26.4", "2.1.3"),
        ),
        ({"packages": (Package("tqdm", "4.67.1"),)}, "packages", "numpy", "removed", "1.26.4", ""),
        ({"packages": (*LOCK.packages, Package("a", "1"))}, "packages", "a", "added", "", "1"),
    ],
)
def test_a_difference_is_named(
    changes: dict[str, Any], field: str, name: str, change: str, this: str, other: str
) -> None:
    """One change of one field is one difference, with both values and what happened."""
    (found,) = compare_environments(LOCK, dataclasses.replace(LOCK, **changes))
    assert found == EnvironmentDifference(field, name, this, other)
    assert found.change == change


def test_differences_come_by_field_and_name() -> None:
    """The order is that of the lock's fields, then of the names; an image with another digest is another image."""
    other = dataclasses.replace(
        LOCK, images=(Image(f"a@{TWO}"),), packages=(Package("a", "1"), Package("z", "1")), platform_os="darwin"
    )
    found = [(each.field, each.name) for each in compare_environments(LOCK, other)]
    images = sorted([("images", f"a@{ONE}"), ("images", f"a@{TWO}")])
    packages = [("packages", name) for name in ("a", "numpy", "tqdm", "z")]
    assert found == [("platformOs", ""), *images, *packages]


@LAW
@given(pairs)
def test_nothing_differs_exactly_where_the_digests_are_equal(pair: tuple[EnvironmentLock, EnvironmentLock]) -> None:
    """No difference without another digest, and no other digest without a difference."""
    this, other = pair
    assert (compare_environments(this, other) == ()) == (document.seal(this).digest == document.seal(other).digest)
    assert compare_environments(this, this) == ()


@LAW
@given(pairs)
def test_the_other_way_round_it_is_mirrored(pair: tuple[EnvironmentLock, EnvironmentLock]) -> None:
    """The same places with the values exchanged; what was added is removed."""
    there, back = compare_environments(*pair), compare_environments(*reversed(pair))
    assert [(each.field, each.name, each.other_value, each.this_value) for each in back] == [
        dataclasses.astuple(each) for each in there
    ]
    mirror = {"added": "removed", "removed": "added", "changed": "changed"}
    assert [each.change for each in back] == [mirror[each.change] for each in there]
