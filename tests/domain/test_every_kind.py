"""Laws that hold for every kind of document."""

import contextlib
import dataclasses
import random
import typing
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from animus.domain import document
from animus.domain.errors import Invalid
from animus.domain.labels import Label
from domain.values import DOCUMENTS, LAW, SAMPLES, SEQUENCES, SETS, shuffled, value_classes

KINDS = sorted(DOCUMENTS, key=lambda kind: kind.__name__)
names = [kind.__name__ for kind in KINDS]
generators = st.integers(0, 2**32).map(random.Random)


def test_every_kind_of_document_is_tested() -> None:
    """Each value class with a schema has a strategy and a full sample here, and no two share a schema."""
    kinds = {kind for kind in value_classes() if hasattr(kind, "SCHEMA")}
    assert kinds == DOCUMENTS.keys() == SAMPLES.keys()
    assert len({kind.SCHEMA for kind in kinds}) == len(kinds)


def test_every_tuple_is_a_set_or_a_sequence() -> None:
    """Whoever adds a list to a value says whether its order means something."""
    lists = {
        (kind.__name__, field)
        for kind in value_classes()
        for field, hint in typing.get_type_hints(kind).items()
        if typing.get_origin(hint) is tuple
    }
    assert lists - {("Invalid", "violations")} == SETS | SEQUENCES
    assert set() == SETS & SEQUENCES


@pytest.mark.parametrize("kind", KINDS, ids=names)
def test_load_is_the_inverse_of_dump(kind: Any) -> None:
    """A value is read back from its bytes equal, and written again alike."""

    @LAW
    @given(DOCUMENTS[kind])
    def law(value: Any) -> None:
        written = document.dump(value)
        assert document.load(written, kind) == value
        assert document.dump(document.load(written, kind)) == written

    law()


# Values of the server's own making, or whose texts it bounds before: nobody sends one of these fields as it is.
MADE_HERE = {
    "AdmissionRefusal", "AuditEntry", "Cosignature", "ExecutionPlan", "ExternalEvent", "LineageEdge", "LogEpoch",
    "RecordManifest", "Run", "RunComparison", "RunEvent",
}  # fmt: skip


def texts_of(tree: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The places of all texts of a tree."""
    if isinstance(tree, str):
        yield path
    elif isinstance(tree, dict | list):
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from texts_of(value, (*path, key))


def unbounded(kind: Any) -> set[str]:
    """The fields of a kind that take a text of 100,000 characters, whatever its characters are."""
    tree: Any = document.parse(document.dump(SAMPLES[kind]))
    places = {".".join(key for key in path if isinstance(key, str)): path for path in texts_of(tree)}
    found = set()
    for name, path in places.items():
        owner = tree
        for key in path[:-1]:
            owner = owner[key]
        text = owner[path[-1]]
        for part in ("a", "1", text or "a"):
            owner[path[-1]] = part * (100_000 // len(part))
            with contextlib.suppress(Invalid):
                document.load(document.canonical(tree), kind)
                found.add(name)
        owner[path[-1]] = text
    return found


def test_every_text_of_a_document_has_a_longest_length() -> None:
    """No field that a caller fills takes a text without end, at any depth."""
    assert {
        kind.__name__: unbounded(kind) for kind in KINDS if kind.__name__ not in MADE_HERE and unbounded(kind)
    } == {}
    assert all(unbounded(kind) for kind in KINDS if kind.__name__ in MADE_HERE), "the check finds what has no bound"


def order_matters(value: Any, rng: random.Random, fields: set[tuple[str, str]]) -> bool:
    """Whether another order of these fields is another value or another document."""
    other = shuffled(value, rng, fields)
    return bool(other != value or document.dump(other) != document.dump(value))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.__name__ != "ExecutionPlan"])
def test_the_order_of_sets_does_not_matter(kind: Any) -> None:
    """Steps, dependencies, inputs, labels, files, packages, bindings, parameters: shuffled, they are the same value."""

    @LAW
    @given(DOCUMENTS[kind], generators)
    def law(value: Any, rng: random.Random) -> None:
        assert not order_matters(value, rng, SETS)

    law()


@dataclasses.dataclass(frozen=True, slots=True)
class Unsorted:
    """A value that forgets to sort its set."""

    SCHEMA: ClassVar[str] = "animus.unsorted/v1"

    labels: tuple[Label, ...]


def test_a_set_that_is_not_sorted_is_found() -> None:
    """The law above fails for a value that keeps the order in which its set was sent."""
    value = Unsorted(tuple(Label(key, "") for key in "abcdef"))
    assert order_matters(value, random.Random(1), {("Unsorted", "labels")})


@pytest.mark.parametrize("kind", KINDS, ids=names)
def test_the_order_of_sequences_matters(kind: Any) -> None:
    """Commands, columns, steps of a plan, records of a change keep their order: reversed, it is another document."""
    value = SAMPLES[kind]
    mine = {field for field in SEQUENCES if field[0] == kind.__name__} | {("Step", "command"), ("Step", "args")}
    changes = any(order_matters(value, random.Random(seed), mine) for seed in range(10))
    ordered = {"DatasetVersion", "ExecutionPlan", "PipelineSpec", "QualityProfile", "RecordManifest", "RunSummary"}
    assert changes == (kind.__name__ in ordered)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if any(k == kind.__name__ for k, _ in SETS)])
def test_bytes_with_a_set_in_another_order_are_not_loaded(kind: Any) -> None:
    """Only the one spelling of a value is its document: stored bytes with a shuffled or repeated item are refused."""
    tree: Any = document.parse(document.dump(SAMPLES[kind]))
    fields = [document.json_name(field) for owner, field in SETS if owner == kind.__name__]
    for field in fields:
        backwards = {**tree, field: tree[field][::-1]}
        assert backwards != tree
        with pytest.raises(Invalid):
            document.load(document.canonical(backwards), kind)


def test_bytes_with_a_nested_set_in_another_order_are_not_loaded() -> None:
    """That holds at any depth, and for what a value would quietly leave out."""
    kind = next(kind for kind in KINDS if kind.__name__ == "PipelineSpec")
    changes: list[Callable[[Any], object]] = [
        lambda spec: spec["steps"].reverse(),
        lambda spec: spec["steps"][1]["env"].reverse(),
        lambda spec: spec["steps"][1]["retryPolicy"]["retryOn"].reverse(),
        lambda spec: spec["dependencies"].append(spec["dependencies"][0]),
    ]
    for change in changes:
        tree: Any = document.parse(document.dump(SAMPLES[kind]))
        change(tree["spec"])
        with pytest.raises(Invalid, match="canonical form"):
            document.load(document.canonical(tree), kind)


@pytest.mark.parametrize("kind", KINDS, ids=names)
def test_bytes_of_one_kind_are_of_no_other(kind: Any) -> None:
    """The schema inside the bytes separates the kinds."""
    written = document.dump(SAMPLES[kind])
    for other in KINDS:
        if other is not kind:
            with pytest.raises(Invalid, match="schema"):
                document.load(written, other)
