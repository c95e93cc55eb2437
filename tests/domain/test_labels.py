"""Labels: a sorted set of at most 64, with exact bounds."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from animus.domain.labels import MAX_LABELS, Label, sorted_labels
from domain.values import LAW, refusal


@LAW
@given(st.sets(st.integers(0, 999), max_size=MAX_LABELS), st.randoms(use_true_random=False))
def test_labels_are_a_set(numbers: set[int], rng: random.Random) -> None:
    """Whatever order they are sent in, they come by key."""
    labels = tuple(Label(f"k{number}", str(number)) for number in numbers)
    mixed = tuple(rng.sample(labels, len(labels)))
    assert sorted_labels(mixed) == sorted_labels(labels) == tuple(sorted(labels, key=lambda label: label.key))


def test_64_labels_are_allowed_and_65_are_not() -> None:
    """The bound is exact and counts the labels that were sent."""
    labels = tuple(Label(f"k{number}", "") for number in range(MAX_LABELS + 1))
    assert len(sorted_labels(labels[:-1])) == MAX_LABELS
    assert refusal(sorted_labels, labels).field == "labels"


def test_a_key_that_stands_twice_is_named_by_its_place() -> None:
    """Two values for one key are refused, even equal ones."""
    labels = (Label("b", ""), Label("a", "1"), Label("b", ""))
    assert refusal(sorted_labels, labels).field == "labels[2].key"


@pytest.mark.parametrize(
    ("key", "value", "field"),
    [
        ("", "", "key"),
        ("A", "", "key"),
        ("a\n", "", "key"),
        ("k" * 64, "", "key"),
        ("a", "v" * 256, "value"),
        ("a", "\x00", "value"),
        ("a", "\x9b31m", "value"),
        ("a", "\ud800", "value"),
    ],
)
def test_a_label_outside_its_rules_is_refused_by_field(key: str, value: str, field: str) -> None:
    """Key and value each have their rule."""
    assert refusal(Label, key, value).field == field
    assert Label("k" * 63, "v" * 255)
