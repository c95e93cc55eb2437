"""Profiles of tables: measures against Python on the same rows, exact, and the same whatever the order and memory."""

import math
import random
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from animus.domain.dataset import Column
from animus.domain.document import dump
from animus.domain.errors import Invalid
from animus.domain.quality import ColumnProfile, QualityProfile, QualityRule, load_rule
from animus.domain.quality_evaluation import evaluate
from animus.sdk.files import Unreadable
from animus.sdk.hashing import content
from animus.sdk.profile import PROBABILITIES, _floor, decimal_text, profile
from animus.sdk.tables import Table, describe

NONE = f"sha256:{'0' * 64}"


def measured(
    path: Path, *rules: QualityRule, references: tuple[QualityProfile, ...] = (), memory_limit: str = "200MB"
) -> QualityProfile:
    """The profile of a table."""
    return profile(path, "data", content(path), rules, references, {}, memory_limit=memory_limit, scratch=path.parent)


def table(path: Path, text: str) -> Path:
    """A file of this text."""
    path.write_text(text)
    return path


def column(found: QualityProfile, name: str) -> ColumnProfile:
    """A column by its name."""
    return next(each for each in found.columns if each.name == name)


def measures(found: ColumnProfile) -> dict[str, str]:
    """Measures by kind and argument."""
    return {f"{each.kind} {each.argument}".strip(): each.value for each in found.measures}


def counts(found: ColumnProfile) -> dict[str, int]:
    """How often each value stands."""
    return {each.value: each.count for each in found.values}


ROWS = """id,state,amount,day,seen,zoned,large,flag,code,empty
1,a,1.5,2026-01-31,2026-01-31 12:00:00.5,2026-01-31T12:00:00+02:00,12345678901234567890,true,007,
2,b,nan,2026-02-01,2026-01-30T12:00:00,2026-01-31T12:00:00Z,1,FALSE,1,
3,,-0.0,,,,2,,,
4,"b, and
more",inf,2026-01-31,2026-01-31 12:00:00.500000,,2,true,x,
"""


def test_every_type_of_csv_is_measured(tmp_path: Path) -> None:
    """Nulls, distinct values, numbers, times and values are those of the rows; types are those of a dataset version."""
    found = measured(table(tmp_path / "rows.csv", ROWS))
    assert (found.row_count, found.size_bytes) == (4, len(ROWS))
    assert found.profiler.startswith("animus ")
    assert {each.name: (each.type, each.null_count) for each in found.columns} == {
        "id": ("int64", 0),
        "state": ("utf8", 1),
        "amount": ("float64", 0),
        "day": ("date32", 1),
        "seen": ("timestamp[us]", 1),
        "zoned": ("timestamp[us, UTC]", 2),
        "large": ("decimal128(38, 0)", 0),
        "flag": ("bool", 1),
        "code": ("utf8", 1),
        "empty": ("utf8", 4),
    }
    described = describe(tmp_path / "rows.csv")
    assert described == Table(tuple(Column(each.name, each.type) for each in found.columns), found.row_count)
    amount = measures(column(found, "amount"))
    assert (amount["distinct_count"], amount["not_finite_count"]) == ("4", "2")
    assert (amount["minimum"], amount["maximum"], amount["mean"]) == ("0", "1.5", "0.75")
    assert column(found, "amount").values == ()
    assert (column(found, "amount").edges, column(found, "amount").bin_counts) == (("0", "1.5"), (1, 1, 0))
    assert measures(column(found, "large"))["maximum"] == "12345678901234567890"
    assert counts(column(found, "large")) == {"1": 1, "2": 2, "12345678901234567890": 1}
    assert counts(column(found, "day")) == {"2026-01-31": 2, "2026-02-01": 1}
    assert measures(column(found, "day"))["newest"] == "2026-02-01T00:00:00.000000Z"
    assert counts(column(found, "seen")) == {"2026-01-30T12:00:00.000000Z": 1, "2026-01-31T12:00:00.500000Z": 2}
    assert measures(column(found, "zoned"))["oldest"] == "2026-01-31T10:00:00.000000Z"
    assert counts(column(found, "flag")) == {"true": 2, "false": 1}
    assert counts(column(found, "state")) == {"a": 1, "b": 1, "b, and\nmore": 1}
    assert column(found, "empty").measures == ()


def test_the_three_formats_give_the_same_measures(tmp_path: Path) -> None:
    """CSV, Parquet and JSON Lines of the same rows differ in content and in nothing that is measured."""
    day = "DATE '2026-01-01' + CAST(i % 9 AS INT)"
    source = f"(SELECT i AS n, i / 7 AS x, 't' || (i % 5) AS t, {day} AS d FROM range(500) r(i))"
    with duckdb.connect() as connection:
        connection.execute(f"COPY {source} TO '{tmp_path}/a.csv' (HEADER)")
        connection.execute(f"COPY {source} TO '{tmp_path}/a.parquet'")
        connection.execute(f"COPY {source} TO '{tmp_path}/a.jsonl' (FORMAT json)")
    one, two, three = (measured(tmp_path / f"a.{ending}").columns for ending in ("csv", "parquet", "jsonl"))
    assert [each.type for each in one] == ["int64", "float64", "utf8", "date32"]
    assert one == two == three


def test_types_of_parquet_are_spelt_as_arrow_does(tmp_path: Path) -> None:
    """Widths, scales, lists and structs; what has no spelling as a value is still counted."""
    with duckdb.connect() as connection:
        connection.execute(
            f"COPY (SELECT 1::TINYINT AS a, 2::UINTEGER AS b, 0.1::FLOAT AS c, 1.50::DECIMAL(9, 2) AS d, [1, 2] AS e,"
            f" {{'x': 1, 'y': 'z'}} AS f, 'ab'::BLOB AS g, TIMESTAMP_NS '2026-01-01 00:00:00.000000001' AS h,"
            f" DATE '-0100-01-01' AS i, 1e-300::DOUBLE AS j) TO '{tmp_path}/a.parquet'"
        )
    found = measured(tmp_path / "a.parquet")
    assert [each.type for each in found.columns] == [
        "int8",
        "uint32",
        "float32",
        "decimal128(9, 2)",
        "list<int32>",
        "struct<x: int32, y: utf8>",
        "binary",
        "timestamp[ns]",
        "date32",
        "float64",
    ]
    assert counts(found.columns[3]) == {"1.5": 1}
    assert measures(found.columns[2])["minimum"] == "0.10000000149011612"
    assert measures(found.columns[4]) == {"distinct_count": "1"}
    assert (measures(found.columns[8]), found.columns[8].values) == ({"distinct_count": "1"}, ())
    assert Decimal(measures(found.columns[9])["minimum"]) == Decimal("1e-300")


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=40))
@settings(max_examples=15, deadline=None)
def test_numbers_are_exact(tmp_path_factory: pytest.TempPathFactory, numbers: list[float]) -> None:
    """Extremes and quantiles are values of the data by definition; the mean is that of exact fractions, rounded."""
    path = tmp_path_factory.mktemp("numbers") / "x.jsonl"
    found = measured(table(path, "".join(f'{{"x": {number!r}}}\n' for number in [*numbers, 0.5]))).columns[0]
    rows: list[float] = sorted(number + 0.0 for number in [*numbers, 0.5])
    said = measures(found)
    assert (float(said["minimum"]), float(said["maximum"])) == (rows[0], rows[-1])
    for each in PROBABILITIES:
        place = max(1, math.ceil(Fraction(each) * len(rows)))
        assert float(said[f"quantile {each}"]) == rows[place - 1]
    mean = sum((Fraction(row) for row in rows), Fraction(0)) / len(rows)
    most = max(abs(Fraction(rows[0])), abs(Fraction(rows[-1])))
    assert abs(Fraction(said["mean"]) - mean) <= most * Fraction(1, 2**50) + Fraction(1, 10**300)
    upto = [len([row for row in rows if Fraction(row) <= Fraction(edge)]) for edge in found.edges]
    assert upto == list(running(found.bin_counts[:-1]))
    assert sum(found.bin_counts) == len(rows)


def running(numbers: tuple[int, ...]) -> Iterator[int]:
    """Sums up to each number."""
    total = 0
    for number in numbers:
        yield (total := total + number)


def test_order_files_and_memory_do_not_matter(tmp_path: Path) -> None:
    """A file larger than the limit, its rows in another order over three files, and much memory: the same columns."""
    chance = random.Random(7)
    long = "text" * 1_000
    rows = [f"{index},{chance.random() * 10 ** chance.randint(-9, 9)!r},{long}{index}\n" for index in range(8_500)]
    large = table(tmp_path / "large.csv", "id,x,t\n" + "".join(rows))
    assert large.stat().st_size > 32 << 20
    small = measured(large, memory_limit="32MiB")
    rows.reverse()
    folder = tmp_path / "parts"
    folder.mkdir()
    for part in range(3):
        table(folder / f"{part}.csv", "id,x,t\n" + "".join(rows[part::3]))
    assert measured(folder, memory_limit="1GB").columns == small.columns
    assert measures(small.columns[2])["distinct_count"] == "8500"
    assert list(tmp_path.glob("animus-table-*")) == []


RULE = b"""
ruleId: shop
description: ""
labels: []
checks:
  - {name: code, severity: error, type: pattern_fraction, column: code, pattern: "a|ab", minimum: "0.5"}
  - {name: whole, severity: error, type: pattern_fraction, column: n, pattern: "1.*", minimum: "0.3"}
  - {name: top, severity: error, type: quantile, column: n, probability: "0.999", maximum: "200"}
  - {name: known, severity: error, type: allowed_fraction, column: n, values: ["1", "7"], minimum: "0"}
  - {name: missing, severity: warn, type: mean, column: gone, minimum: "0"}
"""


def test_what_a_rule_needs_is_measured(tmp_path: Path) -> None:
    """Expressions match whole values, other quantiles are taken, and up to a thousand values are counted."""
    rows = "".join(f"{index},{'ab' if index % 2 else 'abc'}\n" for index in range(150))
    path = table(tmp_path / "rows.csv", f"n,code\n{rows}")
    rule = load_rule(RULE)
    found = measured(path, rule)
    assert measures(column(found, "code"))["pattern_count a|ab"] == "75"
    assert measures(column(found, "n"))["pattern_count 1.*"] == "61"
    assert len(column(found, "n").values) == 150
    assert column(measured(path), "n").values == ()
    verdict = evaluate("p", rule, NONE, found, NONE, {}, "2026-11-24T00:00:00.000000Z")
    assert {each.check: str(each.outcome) for each in verdict.results} == {
        "code": "pass",
        "known": "pass",
        "missing": "error",
        "top": "pass",
        "whole": "pass",
    }


def test_histograms_have_the_edges_of_the_reference(tmp_path: Path) -> None:
    """So that two profiles can be compared; references that differ are refused, as no histogram serves both."""
    first = measured(table(tmp_path / "a.csv", "n\n" + "".join(f"{index}\n" for index in range(100))))
    path = table(tmp_path / "b.csv", "n\n" + "".join(f"{index / 2}\n" for index in range(100)))
    second = measured(path, references=(first,))
    assert second.columns[0].edges == first.columns[0].edges
    assert (
        second.columns[0].bin_counts == (20, 20, 20, 20, 19, 1, 0, 0, 0, 0) or sum(second.columns[0].bin_counts) == 100
    )
    other = measured(path)
    assert other.columns[0].edges != first.columns[0].edges
    with pytest.raises(Invalid, match="different edges"):
        measured(path, references=(first, other))


@pytest.mark.parametrize(
    ("edge", "kind", "limit"),
    [
        ("0.1", "float64", math.nextafter(0.1, 0)),
        ("0.5", "float64", 0.5),
        ("-0.5", "int64", -1),
        ("2.5", "int64", 2),
        ("2.555", "decimal128(9, 2)", Decimal("2.55")),
        ("1" + "0" * 300, "int64", 10**38 - 1),
        ("1" + "0" * 399, "float64", 1.7976931348623157e308),
        ("-1" + "0" * 399, "float64", -math.inf),
    ],
)
def test_an_edge_is_compared_exactly(edge: str, kind: str, limit: object) -> None:
    """The greatest number of the column's type that is not above it."""
    assert _floor(edge, kind) == limit


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_double_is_spelt_by_its_shortest_digits(number: float) -> None:
    """The decimal is the double again, without exponent, in one spelling."""
    text = decimal_text(number)
    assert float(text) == number
    assert "e" not in text
    assert text != "-0"
    assert len(text) <= 400


def test_a_change_after_hashing_and_a_bad_expression_are_refused(tmp_path: Path) -> None:
    """A profile is of the content that it names; an expression that RE2 lacks is named."""
    path = table(tmp_path / "a.csv", "code\nx\n")
    before = content(path)
    table(path, "code\nxyz\n")
    with pytest.raises(Unreadable, match="changed"):
        profile(path, "data", before, [], [], {})
    with pytest.raises(Invalid, match="RE2"):
        measured(path, load_rule(RULE.replace(b'"a|ab"', b'"(?=a)"')))
    with pytest.raises(Invalid, match="memoryLimit"):
        measured(path, memory_limit="much")


def test_a_profile_is_a_document(tmp_path: Path) -> None:
    """What was measured can be registered, with metrics of the user's own; twice it has the same bytes."""
    path = table(tmp_path / "rows.csv", ROWS)
    one, two = (profile(path, "data", content(path), [], [], {"share": "0.25"}) for _ in range(2))
    assert dump(one) == dump(two)
    assert one.metrics[0].value == "0.25"
