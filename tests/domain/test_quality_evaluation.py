"""How a rule is evaluated on a profile: each type of check by hand, and what no setting or order may change."""

import dataclasses
import decimal
import json
import math
import os
import random
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from golden.quality import HERE, expected
from hypothesis import given
from hypothesis import strategies as st

from animus.domain import document, quality_evaluation
from animus.domain.dataset import Column
from animus.domain.errors import Refused
from animus.domain.names import check_decimal
from animus.domain.quality import (
    ColumnProfile,
    QualityCheck,
    QualityCheckType,
    QualityEvaluation,
    QualityMeasure,
    QualityMeasureKind,
    QualityMetric,
    QualityOutcome,
    QualityProfile,
    QualityRule,
    QualitySeverity,
    QualityValueCount,
    QualityVerdict,
    load_rule,
)
from animus.domain.quality_evaluation import evaluate
from domain.values import (
    LAW,
    ONE,
    SETS,
    TIME,
    TWO,
    measured,
    numbers,
    quality_profile,
    quality_rule,
    shuffled,
)

K = QualityMeasureKind
T = QualityCheckType


def judge(
    rule: QualityRule, profile: QualityProfile, *references: QualityProfile, time: str = TIME
) -> QualityEvaluation:
    """The verdict, with the references that a rule calls ONE and TWO."""
    return evaluate("p", rule, ONE, profile, TWO, dict(zip((ONE, TWO), references, strict=False)), time)


def outcome(rule: QualityRule, profile: QualityProfile, *references: QualityProfile) -> bytes:
    """The document of the verdict, or what a check lacks."""
    try:
        return document.dump(judge(rule, profile, *references))
    except Refused as error:
        return f"{error.reason} {error.details}".encode()


def check(kind: QualityCheckType, **fields: Any) -> QualityCheck:
    """A check with what a test gives; where it gives no bound, every number is allowed."""
    empty: dict[str, Any] = dict.fromkeys(("column", "minimum", "maximum", "pattern", "probability", "metric"), "")
    empty |= {"values": (), "columns": (), "reference_profile_digest": ""}
    if "minimum" not in fields and "maximum" not in fields and "columns" not in fields:
        fields["minimum"] = "-" + "9" * 99
    return QualityCheck(name="c", severity=QualitySeverity.ERROR, type=kind, **{**empty, **fields})


def found(
    kind: QualityCheckType, profile: QualityProfile, *references: QualityProfile, **fields: Any
) -> tuple[str, str]:
    """Outcome and what was observed of one check; `lacks` and what, where it was not measured."""
    rule = QualityRule("fit", "", (), (check(kind, **fields),))
    try:
        (result,) = judge(rule, profile, *references).results
    except Refused as error:
        assert error.reason == "QUALITY_NOT_MEASURED"
        assert error.subject == f"projects/p/qualityProfiles/{TWO}"
        return "lacks", error.details["checks"].removeprefix("checks[c]: ")
    assert bool(result.reason) == (result.outcome is not QualityOutcome.PASS)
    return str(result.outcome), result.observed


def of(*columns: ColumnProfile, rows: int = 4, metrics: tuple[QualityMetric, ...] = ()) -> QualityProfile:
    """A profile of these columns."""
    return QualityProfile("cells", ONE, "by hand", rows, 7, columns, metrics)


N = numbers("n", [3, 1, 2], 1, [1, 2])
WORDS = measured("t", "utf8", ["a", "b", "a"], 1, {K.DISTINCT_COUNT: "2", (K.PATTERN_COUNT, "a"): "2"})
WHEN = measured("when", "timestamp[us]", [], 0, {K.NEWEST: "2026-01-02T03:04:05.678900Z"})
NULLS = measured("nulls", "utf8", [], 4, {})
NAN = dataclasses.replace(measured("nan", "float64", [], 0, {K.NOT_FINITE_COUNT: "4"}), edges=("0",), bin_counts=(0, 0))
BARE = ColumnProfile("bare", "utf8", 0, (), (), (), ())
NO_HISTOGRAM = "column 't' has no histogram of equal edges in both profiles"
PROFILE = of(N, WORDS, WHEN, NULLS, NAN, BARE, metrics=(QualityMetric("auc", "0.50000000000000000001"),))


@pytest.mark.parametrize(
    ("kind", "fields", "expected"),
    [
        (T.ROW_COUNT, {}, ("pass", "4")),
        (T.ROW_COUNT, {"minimum": "4", "maximum": "4"}, ("pass", "4")),
        (T.ROW_COUNT, {"minimum": "4.0000000000000000000000001"}, ("fail", "4")),
        (T.SIZE_BYTES, {"maximum": "6.5"}, ("fail", "7")),
        (T.METRIC, {"metric": "auc", "minimum": "0.5"}, ("pass", "0.50000000000000000001")),
        (T.METRIC, {"metric": "auc", "maximum": "0.5"}, ("fail", "0.50000000000000000001")),
        (T.METRIC, {"metric": "f1"}, ("lacks", "metric 'f1'")),
        (T.NULL_FRACTION, {"column": "n", "maximum": "0.25"}, ("pass", "0.25")),
        (T.NULL_FRACTION, {"column": "nulls"}, ("pass", "1")),
        (T.NULL_FRACTION, {"column": "x"}, ("error", "")),
        (T.UNIQUE_FRACTION, {"column": "n", "minimum": "1"}, ("pass", "1")),
        (T.UNIQUE_FRACTION, {"column": "t"}, ("pass", "0.666666666667")),
        (T.UNIQUE_FRACTION, {"column": "t", "maximum": "0.666666666667"}, ("pass", "0.666666666667")),
        (T.UNIQUE_FRACTION, {"column": "nulls"}, ("error", "")),
        (T.UNIQUE_FRACTION, {"column": "bare"}, ("lacks", "distinct_count of column 'bare'")),
        (T.NOT_FINITE_FRACTION, {"column": "n"}, ("pass", "0")),
        (T.NOT_FINITE_FRACTION, {"column": "bare"}, ("pass", "0")),
        (T.NOT_FINITE_FRACTION, {"column": "nan", "maximum": "0.5"}, ("fail", "1")),
        (T.ALLOWED_FRACTION, {"column": "t", "values": ("a", "c")}, ("pass", "0.666666666667")),
        (T.ALLOWED_FRACTION, {"column": "t", "values": ("c",), "minimum": "0.5"}, ("fail", "0")),
        (T.ALLOWED_FRACTION, {"column": "bare", "values": ("c",)}, ("lacks", "values of column 'bare'")),
        (T.PATTERN_FRACTION, {"column": "t", "pattern": "a"}, ("pass", "0.666666666667")),
        (T.PATTERN_FRACTION, {"column": "t", "pattern": "b"}, ("lacks", "pattern_count b of column 't'")),
        (T.RANGE, {"column": "n", "minimum": "1", "maximum": "3"}, ("pass", "1..3")),
        (T.RANGE, {"column": "n", "minimum": "1.5"}, ("fail", "1..3")),
        (T.RANGE, {"column": "n", "maximum": "2.5"}, ("fail", "1..3")),
        (T.RANGE, {"column": "bare"}, ("lacks", "minimum of column 'bare'")),
        (T.RANGE, {"column": "nulls"}, ("error", "")),
        (T.RANGE, {"column": "nan"}, ("error", "")),
        (T.QUANTILE, {"column": "n", "probability": "0.5"}, ("pass", "2")),
        (T.QUANTILE, {"column": "n", "probability": "0.25"}, ("lacks", "quantile 0.25 of column 'n'")),
        (T.QUANTILE, {"column": "nan", "probability": "0.25"}, ("error", "")),
        (T.MEAN, {"column": "n"}, ("pass", "2")),
        (T.MEAN, {"column": "nan"}, ("error", "")),
        (T.STANDARD_DEVIATION, {"column": "n", "maximum": "0.8"}, ("fail", "0.816")),
        (T.AGE_SECONDS, {"column": "when"}, ("pass", "0.000001")),
        (T.AGE_SECONDS, {"column": "n"}, ("lacks", "newest of column 'n'")),
        (T.PSI, {"column": "x", "reference_profile_digest": ONE}, ("error", "")),
        (T.PSI, {"column": "nulls", "reference_profile_digest": ONE}, ("error", "")),
        (T.PSI, {"column": "nan", "reference_profile_digest": ONE}, ("lacks", "column 'nan' in the reference")),
        (T.KS, {"column": "t", "reference_profile_digest": ONE}, ("lacks", NO_HISTOGRAM)),
    ],
)  # fmt: skip
def test_each_type_of_check_looks_at_what_it_says(
    kind: QualityCheckType, fields: dict[str, Any], expected: tuple[str, str]
) -> None:
    """Outcome and observed value of each, at its bounds, on a column that is empty, absent, or not measured."""
    assert found(kind, PROFILE, of(N, WORDS), **fields) == expected


@pytest.mark.parametrize("kind", [T.NULL_FRACTION, T.UNIQUE_FRACTION, T.MEAN, T.NOT_FINITE_FRACTION])
def test_without_rows_a_column_gives_no_answer(kind: QualityCheckType) -> None:
    """And the number of rows does."""
    empty = of(measured("t", "utf8", [], 0, {}), rows=0)
    assert found(kind, empty, column="t") == ("error", "")
    assert found(T.ROW_COUNT, empty, minimum="1") == ("fail", "0")


@pytest.mark.parametrize(
    ("columns", "equal", "compatible"),
    [
        ([("a", "int64"), ("b", "utf8")], "pass", "pass"),
        ([("b", "utf8"), ("a", "int64")], "fail", "pass"),
        ([("a", "int64"), ("b", "utf8"), ("c", "utf8")], "fail", "pass"),
        ([("c", "utf8"), ("a", "int64"), ("b", "utf8")], "fail", "pass"),
        ([("a", "int64")], "fail", "fail"),
        ([("a", "int32"), ("b", "utf8")], "fail", "fail"),
        ([("A", "int64"), ("b", "utf8")], "fail", "fail"),
        ([], "fail", "fail"),
    ],
)
def test_a_schema_is_equal_or_has_what_is_asked_for(
    columns: list[tuple[str, str]], equal: str, compatible: str
) -> None:
    """Names, types and order, or names and types of some."""
    profile = of(*(ColumnProfile(name, kind, 0, (), (), (), ()) for name, kind in columns))
    wanted = (Column("a", "int64"), Column("b", "utf8"))
    assert found(T.SCHEMA_EQUAL, profile, columns=wanted) == (equal, "")
    assert found(T.SCHEMA_COMPATIBLE, profile, columns=wanted) == (compatible, "")


def histogram(*counts: int) -> QualityProfile:
    """A profile of a histogram with edges 1, 2, …."""
    edges = tuple(f"{index + 1}" for index in range(len(counts) - 1))
    return of(ColumnProfile("n", "float64", 0, (), (), edges, counts), rows=sum(counts))


def counted(**counts: int) -> QualityProfile:
    """A profile of a column whose values were counted."""
    values = tuple(QualityValueCount(value, count) for value, count in counts.items())
    return of(ColumnProfile("n", "utf8", 0, (), values, (), ()), rows=sum(counts.values()))


DRIFT = {"column": "n", "reference_profile_digest": ONE}


@pytest.mark.parametrize(
    ("this", "reference", "psi", "ks"),
    [
        (histogram(1, 1), histogram(1, 1), "0", "0"),
        (histogram(3, 1), histogram(1, 1), "0.274653072167", "0.25"),
        (histogram(1, 0), histogram(0, 1), "18.418838675878", "1"),
        (histogram(0, 0, 3), histogram(1, 1, 1), None, "0.666666666667"),
        (counted(a=3, b=1), counted(b=1, a=1), "0.274653072167", None),
        (counted(a=1), counted(b=1), "18.418838675878", None),
    ],
)
def test_distances_are_those_of_their_formulas(
    this: QualityProfile, reference: QualityProfile, psi: str | None, ks: str | None
) -> None:
    """By hand: 0.25 ln 1.5 − 0.25 ln 0.5, and 2 · 0.9999 ln 10000 where nothing is shared."""
    if psi is not None:
        assert found(T.PSI, this, reference, **DRIFT) == ("pass", psi)
        assert float(psi) == pytest.approx(
            {"0": 0, "0.274653072167": 0.25 * math.log(3)}.get(psi, 1.9998 * math.log(1e4))
        )
    if ks is not None:
        assert found(T.KS, this, reference, **DRIFT) == ("pass", ks)


def test_profiles_that_cannot_be_compared_are_not() -> None:
    """Other edges, nothing counted, or a reference that holds nothing: it was not measured; this one: no answer."""
    none, other, words = histogram(0, 0), histogram(1, 1, 1), counted(a=1)
    nothing = dataclasses.replace(NAN, name="n", edges=("1",))
    nothing_now, full = of(nothing), histogram(1, 1)
    for kind in (T.PSI, T.KS):
        assert found(kind, full, other, **DRIFT)[0] == "lacks"
        assert found(kind, words, full, **DRIFT)[0] == "lacks"
        assert found(kind, full, words, **DRIFT)[0] == "lacks"
        assert found(kind, full, none, **DRIFT) == ("lacks", "the reference has no finite number in column 'n'")
        assert found(kind, nothing_now, full, **DRIFT) == ("error", "")
        assert found(kind, nothing_now, none, **DRIFT)[0] == "lacks"


def test_a_check_that_was_not_measured_leaves_no_verdict() -> None:
    """Each such check is named with what lacks, and the others say nothing."""
    rule = QualityRule("fit", "", (), (check(T.ROW_COUNT), *(
        dataclasses.replace(check(T.METRIC, metric=each), name=each) for each in ("b", "a")
    )))  # fmt: skip
    with pytest.raises(Refused) as caught:
        judge(rule, PROFILE)
    assert caught.value.details == {"checks": "checks[a]: metric 'a'; checks[b]: metric 'b'"}


def test_a_reason_fits_whatever_the_names_are() -> None:
    """Names of 255 characters that are shown as escapes, and decimals of 400, are cut."""
    long = "\u202e" * 255
    column = ColumnProfile(long, "utf8", 0, (), (), (), ())
    rule = QualityRule("fit", "", (), (check(T.SCHEMA_EQUAL, columns=(Column("a", "utf8"),) * 1),))
    assert judge(rule, of(column)).results[0].outcome is QualityOutcome.FAIL
    shown = QualityRule("fit", "", (), (check(T.SCHEMA_EQUAL, columns=(Column(long, "int8"),)),))
    assert len(judge(shown, of(column)).results[0].reason) <= 1_000
    missing = QualityRule("fit", "", (), (check(T.MEAN, column=long),))
    assert len(judge(missing, PROFILE).results[0].reason) == 1_000
    wide = numbers("n", [0], 0, [])
    digits = "9" * 400
    measures = (QualityMeasure(K.MINIMUM, "", "-" + digits[1:]), QualityMeasure(K.MAXIMUM, "", digits))
    wide = dataclasses.replace(wide, measures=measures)
    assert found(T.RANGE, of(wide, rows=1), column="n", maximum="1") == ("fail", f"-{digits[1:]}..{digits}")


# Laws.

seeds = st.integers(0, 2**32)


def case(seed: int) -> tuple[QualityRule, QualityProfile, QualityProfile, QualityProfile]:
    """A rule, a profile and two references."""
    rng = random.Random(seed)
    profile = quality_profile(rng)
    reference = rng.choice([profile, quality_profile(rng)])
    return quality_rule(rng), profile, reference, quality_profile(rng)


@LAW
@given(seeds)
def test_the_order_of_checks_measures_and_values_does_not_matter(seed: int) -> None:
    """However sets were ordered when they were sent, one verdict comes out, byte by byte."""
    values = case(seed)
    rng = random.Random(seed)
    assert outcome(*(shuffled(each, rng, SETS) for each in values)) == outcome(*values)


@LAW
@given(seeds)
def test_what_is_observed_is_one_decimal_in_bounds_where_it_passes(seed: int) -> None:
    """Each observed text is a decimal in its one spelling, or two; it decides alone; a verdict is of all results."""
    rule, profile, *references = case(seed)
    for each in rule.checks:
        alone = QualityRule("fit", "", (), (each,))
        try:
            (result,) = judge(alone, profile, *references).results
        except Refused:
            continue
        values = [value for value in result.observed.split("..") if value]
        for value in values:
            check_decimal(value, "", most=400)
        if values:
            low = all(not each.minimum or Fraction(each.minimum) <= Fraction(value) for value in values)
            high = all(not each.maximum or Fraction(value) <= Fraction(each.maximum) for value in values)
            assert (result.outcome is QualityOutcome.PASS) == (low and high)


counts = st.lists(st.integers(0, 10**15), min_size=2, max_size=12).filter(any)


@LAW
@given(counts, counts)
def test_distances_have_their_bounds(one: list[int], other: list[int]) -> None:
    """PSI is not below 0, KS is from 0 to 1, both are 0 of a profile with itself, and alike in both directions."""
    size = min(len(one), len(other))
    one, other = [*one[: size - 1], one[-1] + 1], [*other[: size - 1], other[-1] + 1]
    this, reference = histogram(*one), histogram(*other)
    psi, ks = (found(kind, this, reference, **DRIFT)[1] for kind in (T.PSI, T.KS))
    assert Fraction(psi) >= 0
    assert 0 <= Fraction(ks) <= 1
    assert ks == found(T.KS, reference, this, **DRIFT)[1]
    for kind in (T.PSI, T.KS):
        assert found(kind, this, this, **DRIFT) == ("pass", "0")
    p, q = ([max(Fraction(each, sum(side)), Fraction(1, 10_000)) for each in side] for side in (one, other))
    expected = sum(float(a - b) * math.log(a / b) for a, b in zip(p, q, strict=True))
    assert float(psi) == pytest.approx(expected, abs=1e-9)
    steps = [abs(Fraction(sum(one[:at]), sum(one)) - Fraction(sum(other[:at]), sum(other))) for at in range(1, size)]
    assert abs(Fraction(ks) - max(steps)) <= Fraction(1, 10**12)


@LAW
@given(st.integers(0, 2**53 - 1), st.integers(1, 2**53 - 1))
def test_a_fraction_is_rounded_once(part: int, whole: int) -> None:
    """Fifty digits are enough: the twelve that are left are those of the exact quotient, half to even."""
    part, whole = sorted((part, whole))
    profile = of(dataclasses.replace(BARE, null_count=part), rows=whole)
    assert Fraction(found(T.NULL_FRACTION, profile, column="bare")[1]) == round(Fraction(part, whole), 12)


ELSEWHERE = """
import decimal, locale, sys
locale.setlocale(locale.LC_ALL, "")
decimal.setcontext(decimal.Context(prec=2, rounding=decimal.ROUND_UP, traps=[decimal.Inexact]))
decimal.DefaultContext.prec = 2
sys.path[:0] = sys.argv[1:]
from domain.test_quality_evaluation import digest_of_all
print(digest_of_all())
"""


def digest_of_all() -> str:
    """A digest of many verdicts."""
    return document.digest(b"\n".join(outcome(*case(seed)) for seed in range(300)))


def test_a_verdict_does_not_depend_on_the_process() -> None:
    """Another hash seed, another decimal context of the thread, another locale: the same bytes of 300 verdicts."""
    here = digest_of_all()
    with decimal.localcontext(decimal.Context(prec=1, traps=[decimal.Inexact, decimal.FloatOperation])):
        assert digest_of_all() == here
    tests = Path(__file__).parent.parent
    command = [sys.executable, "-c", ELSEWHERE, str(tests), str(tests.parent / "src")]
    environment = {**os.environ, "PYTHONHASHSEED": "7", "LC_ALL": "C.UTF-8", "TZ": "Asia/Kathmandu"}
    other = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    assert other.stdout.strip() == here


def test_arithmetic_that_depends_on_the_thread_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The law above fails for an evaluation that takes the context that it finds."""
    here = digest_of_all()
    monkeypatch.setattr(quality_evaluation, "_context", decimal.getcontext)
    with decimal.localcontext(decimal.Context(prec=50, rounding=decimal.ROUND_UP)):
        assert digest_of_all() != here


def test_those_verdicts_are_of_every_kind() -> None:
    """The law above meets each verdict, each outcome of each type of check, and rules that cannot be evaluated."""
    verdicts, outcomes, refused = set(), set(), 0
    for seed in range(300):
        rule, *profiles = case(seed)
        try:
            evaluation = judge(rule, *profiles)
        except Refused:
            refused += 1
            continue
        verdicts.add(evaluation.verdict)
        kinds = {each.name: each.type for each in rule.checks}
        outcomes |= {(kinds[each.check], each.outcome) for each in evaluation.results}
    assert verdicts == set(QualityVerdict) - {QualityVerdict.NONE}
    assert {kind for kind, _ in outcomes} == set(QualityCheckType)
    assert {each for _, each in outcomes} == set(QualityOutcome)
    assert refused


# Golden files.


def test_the_golden_verdict_is_what_it_was() -> None:
    """Rule, profiles and verdict have the bytes and digests that stored records have."""
    for name, content in expected().items():
        assert (HERE / name).read_bytes() == content, name


def test_the_golden_verdict_meets_every_type_of_check() -> None:
    """And passes, failures and errors."""
    rule = load_rule((HERE / "rule.yaml").read_bytes())
    assert {each.type for each in rule.checks} == set(QualityCheckType)
    results = json.loads((HERE / "evaluation.json").read_bytes())["results"]
    assert {each["outcome"] for each in results} == set(QualityOutcome)
