"""Rules, profiles and verdicts: what they refuse, by path, and the form of a rule that people write."""

import dataclasses
import random
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given

from animus.domain import document
from animus.domain.errors import Invalid
from animus.domain.quality import (
    CHECK_FIELDS,
    ColumnProfile,
    QualityCheck,
    QualityCheckType,
    QualityEvaluation,
    QualityMeasure,
    QualityMeasureKind,
    QualityMetric,
    QualityOutcome,
    QualityProfile,
    QualityResult,
    QualityRule,
    QualitySeverity,
    QualityValueCount,
    QualityVerdict,
    load_rule,
    verdict_of,
)
from domain.values import LAW, ONE, SAMPLES, TIME, as_yaml, generated, numbers, quality_check, quality_rule, refusal

RULE = """
ruleId: fit
description: Fit to train
labels: [{key: team, value: cells}]
checks:
- {name: rows, severity: error, type: row_count, minimum: '1000', maximum: '2000'}
- {name: label, severity: error, type: allowed_fraction, column: label, values: [cat, dog], minimum: '1'}
- {name: drift, severity: warn, type: psi, column: age, referenceProfileDigest: DIGEST, maximum: '0.2'}
""".replace("DIGEST", ONE)


def faults(text: str) -> list[str]:
    """The paths that a rule's text is refused by."""
    with pytest.raises(Invalid) as caught:
        load_rule(text.encode())
    return [each.field for each in caught.value.violations]


def test_a_rule_is_read_from_text() -> None:
    """A check says the fields of its type; the document has all of them. YAML, JSON and the document are one rule."""
    rule = load_rule(RULE.encode())
    drift, label, rows = rule.checks
    assert (rows.minimum, rows.maximum, rows.column, rows.values, rows.columns) == ("1000", "2000", "", (), ())
    assert (label.values, label.maximum, drift.reference_profile_digest) == (("cat", "dog"), "", ONE)
    assert rule.references() == (ONE,)
    tree = document.tree_of(rule)
    assert load_rule(as_yaml(tree)) == rule


def test_the_rule_of_the_documentation_is_one() -> None:
    """docs/quality.md shows a rule as it is written."""
    page = (Path(__file__).parents[2] / "docs" / "quality.md").read_text()
    (block,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert load_rule(block.encode()).rule_id == "cells-fit"
    assert {kind for kind in QualityCheckType if f"`{kind}`" not in page} == set()


@LAW
@given(generated(quality_rule))
def test_what_a_rule_does_not_say_is_empty(rule: QualityRule) -> None:
    """Left out or written as empty, a field of another type, or a bound, makes the same rule."""
    tree: Any = document.tree_of(rule)
    tree["checks"] = [{key: value for key, value in check.items() if value} for check in tree["checks"]]
    assert load_rule(as_yaml(tree)) == rule


@pytest.mark.parametrize(
    ("change", "paths"),
    [
        (("'1000'", "'2001'"), ["checks[0].maximum"]),
        (("'1000'", "1000"), ["checks[0].minimum"]),
        (("'1000'", "'1e3'"), ["checks[0].minimum"]),
        (("minimum: '1000', maximum: '2000'", "column: a"), ["checks[0].column"]),
        (("minimum: '1000', maximum: '2000'", "rows: 1"), ["checks[0].rows"]),
        ((", minimum: '1000', maximum: '2000'", ""), ["checks[0].minimum"]),
        (("row_count", "rows"), ["checks[0].type"]),
        (("severity: error, type: row_count", "type: row_count"), ["checks[0].severity"]),
        (("column: label, ", ""), ["checks[1].column"]),
        (("[cat, dog]", "[]"), ["checks[1].values"]),
        (("[cat, dog]", "[cat, cat]"), ["checks[1].values[1]"]),
        (("[cat, dog]", "[cat, 1]"), ["checks[1].values[1]"]),
        ((ONE, "last"), ["checks[2].referenceProfileDigest"]),
        (("name: drift", "name: rows"), ["checks[2].name"]),
        (("name: drift", "name: Drift"), ["checks[2].name"]),
        (("ruleId: fit\n", ""), ["ruleId"]),
        (("labels: [{key: team, value: cells}]\n", ""), ["labels"]),
        (("column: age", "pattern: a"), ["checks[2].column"]),
        (("type: psi", "type: mean"), ["checks[2].referenceProfileDigest"]),
    ],
)
def test_a_rule_outside_its_rules_is_refused_by_path(change: tuple[str, str], paths: list[str]) -> None:
    """Each fault names its field, one of another type too."""
    assert change[0] in RULE
    assert faults(RULE.replace(*change)) == paths


def test_faults_of_several_checks_are_named_at_once() -> None:
    """One answer for mistakes in different checks; what is no rule at all says so."""
    assert faults(RULE.replace("'1000'", "'x'").replace("[cat, dog]", "cat")) == [
        "checks[0].minimum",
        "checks[1].values",
    ]
    assert faults("checks: 1") == ["ruleId", "description", "labels", "checks"]
    assert faults("checks: [1]")[-1] == "checks[0]"
    assert faults("[]") == [""]


@pytest.mark.parametrize("kind", QualityCheckType)
def test_a_check_has_the_fields_of_its_type(kind: QualityCheckType) -> None:
    """Each field that the type needs is missed by its path, and each other one is one too many."""
    check = quality_check(random.Random(1), kind)
    others = {
        "column": "a", "minimum": "1", "maximum": "1", "values": ("a",), "pattern": "a", "probability": "0.5",
        "metric": "a", "columns": SAMPLES[QualityRule].checks[1].columns, "reference_profile_digest": ONE,
    }  # fmt: skip
    for field, value in others.items():
        if field in ("minimum", "maximum") and field in CHECK_FIELDS[kind]:
            continue
        wrong = type(value)() if field in CHECK_FIELDS[kind] else value
        assert refusal(dataclasses.replace, check, **{field: wrong}).field == document.json_name(field)


@pytest.mark.parametrize(
    "value", ["NaN", "Infinity", "-Infinity", "1e5", "-0", "+1", "01", "1.0", ".5", "", " 1", "٣", "1_0"]
)
def test_what_is_no_decimal_in_its_one_spelling_is_refused(value: str) -> None:
    """NaN and infinities are no numbers that a bound, a measure, an edge or a metric may have."""
    assert refusal(QualityMetric, "a", value).field == "value"
    assert refusal(QualityMeasure, QualityMeasureKind.MEAN, "", value).field == "value"
    assert refusal(ColumnProfile, "a", "float64", 0, (), (), (value,), (1, 1)).field == "edges[0]"
    if value:
        assert refusal(quality_check_with, minimum=value).field == "minimum"


def quality_check_with(**fields: Any) -> QualityCheck:
    """A check of the rows with other fields."""
    (check,) = (each for each in load_rule(RULE.encode()).checks if each.name == "rows")
    return dataclasses.replace(check, **fields)


@pytest.mark.parametrize(
    ("kind", "argument", "value", "field"),
    [
        ("quantile", "", "1", "argument"),
        ("quantile", "1.1", "1", "argument"),
        ("quantile", "-0.1", "1", "argument"),
        ("pattern_count", "", "1", "argument"),
        ("mean", "x", "1", "argument"),
        ("distinct_count", "", "1.5", "value"),
        ("distinct_count", "", "-1", "value"),
        ("not_finite_count", "", "9007199254740992", "value"),
        ("newest", "", "2026-01-01", "value"),
        ("oldest", "", "1", "value"),
        ("mean", "", "9" * 401, "value"),
    ],
)
def test_a_measure_is_what_its_kind_says(kind: str, argument: str, value: str, field: str) -> None:
    """An argument where the kind has one, a whole number, a decimal or a time where it says so."""
    assert refusal(QualityMeasure, QualityMeasureKind(kind), argument, value).field == field


def test_a_rule_compares_with_ten_profiles_at_most() -> None:
    """More would have to be loaded for one evaluation."""
    rule = load_rule(RULE.encode())
    (drift,) = (each for each in rule.checks if each.name == "drift")
    many = [
        dataclasses.replace(drift, name=f"d{index}", reference_profile_digest=f"sha256:{index:064x}")
        for index in range(11)
    ]
    assert len(dataclasses.replace(rule, checks=tuple(many[:10])).references()) == 10
    assert refusal(dataclasses.replace, rule, checks=tuple(many)).field == "checks"


# Contradictions.


def profile(*, rows: int = 4, **change: Any) -> QualityProfile:
    """A profile of one column of the numbers 1, 2, 3 and a null, with fields of the column changed."""
    column = numbers("n", [3, 1, 2], 1, [1, 2])
    measures = {(each.kind, each.argument): each.value for each in column.measures}
    for key, value in change.pop("measures", {}).items():
        measures[key if isinstance(key, tuple) else (key, "")] = value
    found = tuple(QualityMeasure(kind, argument, value) for (kind, argument), value in measures.items() if value)
    column = dataclasses.replace(column, **{"measures": found, **change})
    return QualityProfile("cells", ONE, "by hand", rows, 1, (column,), ())


K = QualityMeasureKind


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"rows": 0}, "nullCount"),
        ({"null_count": 5}, "nullCount"),
        ({"rows": 5}, "values"),
        ({"measures": {K.DISTINCT_COUNT: "4"}}, "measures[distinct_count].value"),
        ({"measures": {K.DISTINCT_COUNT: "2"}}, "measures[distinct_count].value"),
        ({"measures": {K.DISTINCT_COUNT: "0"}, "values": ()}, "measures[distinct_count].value"),
        ({"measures": {K.NOT_FINITE_COUNT: "4"}}, "measures[not_finite_count].value"),
        ({"measures": {K.NOT_FINITE_COUNT: "1"}}, "binCounts"),
        ({"measures": {(K.PATTERN_COUNT, "a+"): "4"}}, "measures[pattern_count a+].value"),
        ({"measures": {K.MINIMUM: "4"}}, "measures[minimum].value"),
        ({"measures": {K.MEAN: "3.1"}}, "measures[mean].value"),
        ({"measures": {K.MEAN: "0.9"}}, "measures[mean].value"),
        ({"measures": {K.STANDARD_DEVIATION: "-1"}}, "measures[standard_deviation].value"),
        ({"measures": {K.STANDARD_DEVIATION: "2.1"}}, "measures[standard_deviation].value"),
        ({"measures": {(K.QUANTILE, "0.5"): "0"}}, "measures[quantile 0.5].value"),
        ({"measures": {(K.QUANTILE, "0.5"): "4"}}, "measures[quantile 0.5].value"),
        ({"measures": {(K.QUANTILE, "0.95"): "1"}}, "measures[quantile 0.95].value"),
        ({"measures": {K.NEWEST: TIME}}, "measures"),
        ({"bin_counts": (1, 1, 0)}, "binCounts"),
        ({"bin_counts": (1, 2)}, "binCounts"),
        ({"bin_counts": (1, 1, -1)}, "binCounts[2]"),
        ({"edges": ("2", "1")}, "edges[1]"),
        ({"edges": ("1", "1")}, "edges[1]"),
        ({"values": (QualityValueCount("1", 4),)}, "values"),
    ],
)
def test_numbers_that_contradict_each_other_are_refused(change: dict[str, Any], field: str) -> None:
    """Each contradiction of a column is named by its path."""
    profile()
    assert refusal(profile, **change).field.removeprefix("columns[0].") == field


def test_a_column_without_values_has_nothing_to_measure() -> None:
    """Neither numbers nor times of a column that is all null, nor numbers of one that is NaN and infinities only."""
    empty = ColumnProfile("n", "float64", 4, (QualityMeasure(K.MEAN, "", "1"),), (), (), ())
    times = ColumnProfile("t", "timestamp[us]", 4, (QualityMeasure(K.NEWEST, "", TIME),), (), (), ())
    nothing = dataclasses.replace(
        empty, null_count=0, measures=(*empty.measures, QualityMeasure(K.NOT_FINITE_COUNT, "", "4"))
    )
    for column, measure in ((empty, "mean"), (times, "newest"), (nothing, "mean")):
        found = refusal(QualityProfile, "cells", ONE, "by hand", 4, 1, (column,), ())
        assert found.field == f"columns[0].measures[{measure}]"


def test_times_that_contradict_each_other_are_refused() -> None:
    """The oldest is not after the newest, and a column of times has no histogram."""
    measures = (QualityMeasure(K.OLDEST, "", TIME), QualityMeasure(K.NEWEST, "", "2025-01-01T00:00:00.000000Z"))
    assert refusal(ColumnProfile, "t", "date32", 0, measures, (), (), ()).field == "measures[oldest].value"
    assert refusal(ColumnProfile, "t", "date32", 0, measures[:1], (), ("1",), (1, 1)).field == "measures"


def test_what_rounding_in_binary_explains_is_let_pass() -> None:
    """The mean of 0.1, 0.1 and 0.1 in double precision is above 0.1, and the deviation is not 0."""
    measures = {
        K.MINIMUM: "0.1",
        K.MAXIMUM: "0.1",
        K.MEAN: "0.10000000000000002",
        K.STANDARD_DEVIATION: "0.00000000000000001",
    }
    found = tuple(QualityMeasure(kind, "", value) for kind, value in measures.items())
    ColumnProfile("n", "float64", 0, found, (), (), ())
    worse = (*found[:2], QualityMeasure(K.MEAN, "", "0.100001"))
    assert refusal(ColumnProfile, "n", "float64", 0, worse, (), (), ()).field == "measures[mean].value"


# Verdicts.


@pytest.mark.parametrize(
    ("graves", "lights", "verdict"),
    [
        (["pass"], ["pass"], "pass"),
        ([], ["pass"], "pass"),
        (["pass"], ["fail"], "warn"),
        (["pass"], ["error", "pass"], "warn"),
        (["fail", "pass"], ["error"], "fail"),
        (["fail", "error"], ["pass"], "error"),
        (["error"], [], "error"),
    ],
)
def test_the_worst_result_decides(graves: list[str], lights: list[str], verdict: str) -> None:
    """Of severity ERROR first: no answer, then no; of severity WARN whatever does not hold."""
    found = [(QualitySeverity.ERROR, each) for each in graves] + [(QualitySeverity.WARN, each) for each in lights]
    results = tuple(
        QualityResult(f"c{index}", severity, QualityOutcome(outcome), "", "")
        for index, (severity, outcome) in enumerate(found)
    )
    assert verdict_of(results) is QualityVerdict(verdict)
    evaluation: QualityEvaluation = SAMPLES[QualityEvaluation]
    for each in QualityVerdict:
        if each == verdict:
            dataclasses.replace(evaluation, results=results, verdict=each)
        else:
            assert refusal(dataclasses.replace, evaluation, results=results, verdict=each).field == "verdict"


def test_a_verdict_without_a_result_is_none() -> None:
    """What checked nothing does not pass; and what holds needs no reason."""
    assert refusal(dataclasses.replace, SAMPLES[QualityEvaluation], results=()).field == "results"
    held = QualityResult("rows", QualitySeverity.ERROR, QualityOutcome.PASS, "", "")
    assert refusal(dataclasses.replace, held, reason="because").field == "reason"
