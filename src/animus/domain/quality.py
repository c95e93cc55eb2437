"""Quality: rules, profiles of dataset versions, and the verdicts of the one on the other (docs/quality.md)."""

from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from fractions import Fraction
from typing import ClassVar

from animus.domain import document
from animus.domain.dataset import MAX_COLUMNS, Column
from animus.domain.document import MAX_INTEGER, fields_of
from animus.domain.errors import Invalid, invalid
from animus.domain.labels import Label, sorted_labels
from animus.domain.names import (
    METRIC_NAME,
    check_count,
    check_decimal,
    check_digest,
    check_length,
    check_pattern,
    check_resource_id,
    check_time,
    check_within,
    sorted_set,
)

MAX_CHECKS = 1_000
MAX_VALUES = 1_000
MAX_EDGES = 1_000
MAX_MEASURES = 1_000
MAX_METRICS = 1_000
MAX_DECIMAL = 400  # characters
MAX_REFERENCES = 10  # profiles that a rule compares with

EVALUATOR = "animus"  # what no other tool may call itself
EVALUATOR_VERSION = "1"  # of the rules of evaluation


class QualitySeverity(StrEnum):
    """How much a check weighs."""

    ERROR = "error"
    WARN = "warn"


class QualityCheckType(StrEnum):
    """What a check is about."""

    ROW_COUNT = "row_count"
    SIZE_BYTES = "size_bytes"
    SCHEMA_EQUAL = "schema_equal"
    SCHEMA_COMPATIBLE = "schema_compatible"
    NULL_FRACTION = "null_fraction"
    UNIQUE_FRACTION = "unique_fraction"
    NOT_FINITE_FRACTION = "not_finite_fraction"
    RANGE = "range"
    ALLOWED_FRACTION = "allowed_fraction"
    PATTERN_FRACTION = "pattern_fraction"
    QUANTILE = "quantile"
    MEAN = "mean"
    STANDARD_DEVIATION = "standard_deviation"
    AGE_SECONDS = "age_seconds"
    PSI = "psi"
    KS = "ks"
    METRIC = "metric"


class QualityMeasureKind(StrEnum):
    """What a measure of a column says."""

    DISTINCT_COUNT = "distinct_count"
    NOT_FINITE_COUNT = "not_finite_count"
    MINIMUM = "minimum"
    MAXIMUM = "maximum"
    MEAN = "mean"
    STANDARD_DEVIATION = "standard_deviation"
    QUANTILE = "quantile"  # of a probability
    PATTERN_COUNT = "pattern_count"  # of an expression
    OLDEST = "oldest"
    NEWEST = "newest"


class QualityVerdict(StrEnum):
    """What an evaluation came to; NONE where there is none."""

    NONE = ""
    PASS = "pass"  # noqa: S105
    WARN = "warn"
    FAIL = "fail"
    ERROR = "error"


class QualityOutcome(StrEnum):
    """What a check came to."""

    PASS = "pass"  # noqa: S105
    FAIL = "fail"
    ERROR = "error"


# The fields that a check of a type has beside name, severity and type; all others are empty.
BOUNDS = ("minimum", "maximum")
CHECK_FIELDS: dict[QualityCheckType, tuple[str, ...]] = {
    QualityCheckType.ROW_COUNT: BOUNDS,
    QualityCheckType.SIZE_BYTES: BOUNDS,
    QualityCheckType.SCHEMA_EQUAL: ("columns",),
    QualityCheckType.SCHEMA_COMPATIBLE: ("columns",),
    QualityCheckType.NULL_FRACTION: ("column", *BOUNDS),
    QualityCheckType.UNIQUE_FRACTION: ("column", *BOUNDS),
    QualityCheckType.NOT_FINITE_FRACTION: ("column", *BOUNDS),
    QualityCheckType.RANGE: ("column", *BOUNDS),
    QualityCheckType.ALLOWED_FRACTION: ("column", "values", *BOUNDS),
    QualityCheckType.PATTERN_FRACTION: ("column", "pattern", *BOUNDS),
    QualityCheckType.QUANTILE: ("column", "probability", *BOUNDS),
    QualityCheckType.MEAN: ("column", *BOUNDS),
    QualityCheckType.STANDARD_DEVIATION: ("column", *BOUNDS),
    QualityCheckType.AGE_SECONDS: ("column", *BOUNDS),
    QualityCheckType.PSI: ("column", "reference_profile_digest", *BOUNDS),
    QualityCheckType.KS: ("column", "reference_profile_digest", *BOUNDS),
    QualityCheckType.METRIC: ("metric", *BOUNDS),
}


@dataclass(frozen=True, slots=True)
class QualityCheck:
    """One check of a rule. Values are a set; columns are in their order."""

    name: str
    severity: QualitySeverity
    type: QualityCheckType
    column: str
    minimum: str  # decimal of at most 100 characters, included; empty for no bound
    maximum: str
    values: tuple[str, ...]
    pattern: str  # RE2, 1 to 1,000 characters
    probability: str  # decimal from 0 to 1
    metric: str
    columns: tuple[Column, ...]
    reference_profile_digest: str

    def __post_init__(self) -> None:
        check_resource_id(self.name, "name")
        check_count(self.values, 0, MAX_VALUES, "values")
        check_count(self.columns, 0, MAX_COLUMNS, "columns")
        sorted_set(self.columns, lambda c: c.name, "columns", "name")
        for index, value in enumerate(self.values):
            check_length(value, 0, 1_000, f"values[{index}]")
        object.__setattr__(self, "values", sorted_set(self.values, str, "values", ""))
        self._check_fields()
        for field, bound in (("minimum", self.minimum), ("maximum", self.maximum)):
            if bound:
                check_decimal(bound, field, most=100)
        if self.minimum and self.maximum and Decimal(self.minimum) > Decimal(self.maximum):
            raise invalid("maximum", f"is {self.maximum}, which is below the minimum {self.minimum}")

    def _check_fields(self) -> None:
        """The fields of the type, and no others."""
        has = CHECK_FIELDS[self.type]
        for field, json, value in (
            ("column", "column", self.column),
            ("minimum", "minimum", self.minimum),
            ("maximum", "maximum", self.maximum),
            ("values", "values", self.values),
            ("pattern", "pattern", self.pattern),
            ("probability", "probability", self.probability),
            ("metric", "metric", self.metric),
            ("columns", "columns", self.columns),
            ("reference_profile_digest", "referenceProfileDigest", self.reference_profile_digest),
        ):
            if value and field not in has:
                raise invalid(json, f"is no field of a check of type {self.type}: leave it empty")
            if not value and field in has and field not in BOUNDS:
                raise invalid(json, f"is needed for a check of type {self.type}")
        if "minimum" in has and not self.minimum and not self.maximum:
            raise invalid("minimum", "is empty, and so is maximum: give at least one bound")
        if self.column:
            check_length(self.column, 1, 255, "column")
        if self.pattern:
            check_length(self.pattern, 1, 1_000, "pattern")
        if self.probability:
            check_probability(self.probability, "probability")
        if self.metric:
            check_metric_name(self.metric, "metric")
        if self.reference_profile_digest:
            check_digest(self.reference_profile_digest, "referenceProfileDigest")


def check_probability(value: str, field: str) -> None:
    """A decimal from 0 to 1 in its one spelling."""
    check_decimal(value, field, most=100)
    if not 0 <= Decimal(value) <= 1:
        raise invalid(field, f"is {value}; 0 to 1 is allowed")


def check_metric_name(value: str, field: str) -> None:
    """`[A-Za-z_][A-Za-z0-9_./-]*`, at most 255 characters."""
    check_pattern(METRIC_NAME, value, field, "is no metric name: [A-Za-z_][A-Za-z0-9_./-]*, at most 255 characters")


@dataclass(frozen=True, slots=True)
class QualityRule:
    """A version of a rule. Checks and labels are sets."""

    SCHEMA: ClassVar[str] = "animus.quality_rule/v1"

    rule_id: str
    description: str  # 0 to 2,000 characters
    labels: tuple[Label, ...]
    checks: tuple[QualityCheck, ...]

    def __post_init__(self) -> None:
        check_resource_id(self.rule_id, "ruleId")
        check_length(self.description, 0, 2_000, "description")
        check_count(self.checks, 1, MAX_CHECKS, "checks")
        object.__setattr__(self, "labels", sorted_labels(self.labels))
        object.__setattr__(self, "checks", sorted_set(self.checks, lambda c: c.name, "checks", "name"))
        if len(self.references()) > MAX_REFERENCES:
            raise invalid("checks", f"compare with {len(self.references())} profiles; {MAX_REFERENCES} are allowed")

    def references(self) -> tuple[str, ...]:
        """Digests of the profiles that the checks compare with, sorted, without repeats."""
        return tuple(sorted({check.reference_profile_digest for check in self.checks} - {""}))


def load_rule(text: bytes) -> QualityRule:
    """The rule that YAML or JSON text describes: a check needs the fields of its type only.

    Raises Invalid with the path of every field at fault, which a field of another type is.
    """
    tree = document.parse_text(text)
    if isinstance(tree, dict) and isinstance(tree.get("checks"), list):
        tree = {
            **tree,
            "checks": [{**NO_FIELDS, **each} if isinstance(each, dict) else each for each in tree["checks"]],
        }
    return document.from_tree(tree, QualityRule)


# A check of no type, as JSON.
NO_FIELDS: dict[str, object] = {
    key: [] if field in ("values", "columns") else ""
    for field, key, _ in fields_of(QualityCheck)
    if field not in ("name", "severity", "type")
}


@dataclass(frozen=True, slots=True)
class QualityMeasure:
    """A number or a time that was measured of a column."""

    kind: QualityMeasureKind
    argument: str  # probability or expression; empty where the kind has none
    value: str

    def __post_init__(self) -> None:
        if self.kind is QualityMeasureKind.QUANTILE:
            check_probability(self.argument, "argument")
        elif self.kind is QualityMeasureKind.PATTERN_COUNT:
            check_length(self.argument, 1, 1_000, "argument")
        elif self.argument:
            raise invalid("argument", f"is none of a measure of kind {self.kind}: leave it empty")
        if self.kind in TIMES:
            check_time(self.value, "value")
            return
        check_decimal(self.value, "value", most=MAX_DECIMAL)
        if self.kind in COUNTS:
            check_count_text(self.value, "value")


COUNTS = frozenset(
    {QualityMeasureKind.DISTINCT_COUNT, QualityMeasureKind.NOT_FINITE_COUNT, QualityMeasureKind.PATTERN_COUNT}
)
NUMBERS = frozenset(  # of finite numbers
    {
        QualityMeasureKind.MINIMUM,
        QualityMeasureKind.MAXIMUM,
        QualityMeasureKind.MEAN,
        QualityMeasureKind.STANDARD_DEVIATION,
        QualityMeasureKind.QUANTILE,
    }
)
TIMES = frozenset({QualityMeasureKind.OLDEST, QualityMeasureKind.NEWEST})
ROUNDING = Fraction(1, 10**9)  # of a magnitude: far above what sums in binary lose, far below what a mistake makes


def check_count_text(value: str, field: str) -> None:
    """A whole number from 0 to 2^53-1, as text."""
    if not value.isdecimal() or len(value) > 16 or int(value) > MAX_INTEGER:
        raise invalid(field, "is no whole number from 0 to 2^53-1")


@dataclass(frozen=True, slots=True)
class QualityValueCount:
    """A value and how often it stands in a column."""

    value: str  # 0 to 1,000 characters
    count: int

    def __post_init__(self) -> None:
        check_length(self.value, 0, 1_000, "value")
        check_within(self.count, 1, MAX_INTEGER, "count")


@dataclass(frozen=True, slots=True)
class ColumnProfile:
    """What was measured of a column. Measures and values are sets; values, if any, are all that are not null."""

    name: str
    type: str  # Arrow-style type name
    null_count: int
    measures: tuple[QualityMeasure, ...]
    values: tuple[QualityValueCount, ...]
    edges: tuple[str, ...]  # ascending decimals
    bin_counts: tuple[int, ...]  # one more than edges, or none

    def __post_init__(self) -> None:
        Column(self.name, self.type)
        check_within(self.null_count, 0, MAX_INTEGER, "nullCount")
        check_count(self.measures, 0, MAX_MEASURES, "measures")
        check_count(self.values, 0, MAX_VALUES, "values")
        check_count(self.edges, 0, MAX_EDGES, "edges")
        check_count(self.bin_counts, 0, MAX_EDGES + 1, "binCounts")
        # No kind holds a space, which is below all that they may hold: so this orders by kind, and then by argument.
        measures = sorted_set(self.measures, lambda m: f"{m.kind} {m.argument}", "measures", "kind")
        object.__setattr__(self, "measures", measures)
        object.__setattr__(self, "values", sorted_set(self.values, lambda v: v.value, "values", "value"))
        for index, edge in enumerate(self.edges):
            check_decimal(edge, f"edges[{index}]", most=MAX_DECIMAL)
            if index and Decimal(self.edges[index - 1]) >= Decimal(edge):
                raise invalid(f"edges[{index}]", "is not above the edge before it")
        if len(self.bin_counts) != (len(self.edges) + 1 if self.edges else 0):
            raise invalid("binCounts", f"has {len(self.bin_counts)} items: one more than edges, or none without edges")
        for index, count in enumerate(self.bin_counts):
            check_within(count, 0, MAX_INTEGER, f"binCounts[{index}]")
        self._check_numbers()
        self._check_times()

    def _check_numbers(self) -> None:
        """Refuses numbers that no column can have together.

        A mean and a deviation are computed, in binary as a rule: what their rounding explains is let pass.
        """
        least, greatest, mean, deviation = (
            None if (text := self.measure(kind)) is None else Decimal(text)
            for kind in (
                QualityMeasureKind.MINIMUM,
                QualityMeasureKind.MAXIMUM,
                QualityMeasureKind.MEAN,
                QualityMeasureKind.STANDARD_DEVIATION,
            )
        )
        if deviation is not None and deviation < 0:
            raise invalid("measures[standard_deviation].value", "is negative")
        if least is not None and greatest is not None:
            if least > greatest:
                raise invalid("measures[minimum].value", "is above the maximum")
            low, high = Fraction(least), Fraction(greatest)
            slack = max(abs(low), abs(high)) * ROUNDING
            if mean is not None and not low - slack <= mean <= high + slack:
                raise invalid("measures[mean].value", "is not between minimum and maximum")
            if deviation is not None and deviation > high - low + slack:
                raise invalid("measures[standard_deviation].value", "is more than from minimum to maximum")
        before = least
        quantiles = [each for each in self.measures if each.kind is QualityMeasureKind.QUANTILE]
        for each in sorted(quantiles, key=lambda measure: Decimal(measure.argument)):
            path, value = f"measures[quantile {each.argument}].value", Decimal(each.value)
            if before is not None and value < before:
                raise invalid(path, "is below the minimum, or the quantile of a smaller probability")
            if greatest is not None and value > greatest:
                raise invalid(path, "is above the maximum")
            before = value

    def _check_times(self) -> None:
        """Refuses times that no column can have together, or beside numbers."""
        oldest, newest = self.measure(QualityMeasureKind.OLDEST), self.measure(QualityMeasureKind.NEWEST)
        if oldest and newest and oldest > newest:
            raise invalid("measures[oldest].value", "is after the newest")
        kinds = {each.kind for each in self.measures}
        if kinds & TIMES and (kinds & NUMBERS or self.edges):
            raise invalid("measures", "are of numbers and of times: a column has one of them")

    def check_counts(self, row_count: int) -> None:
        """Refuses counts that a column of so many rows cannot have."""
        check_within(self.null_count, 0, row_count, "nullCount")
        values = row_count - self.null_count
        for measure in self.measures:
            if measure.kind in COUNTS and int(measure.value) > values:
                raise invalid(
                    f"measures[{f'{measure.kind} {measure.argument}'.strip()}].value",
                    f"is more than the {values} values that are not null",
                )
        distinct = self.measure(QualityMeasureKind.DISTINCT_COUNT)
        if distinct == "0" and values:
            raise invalid("measures[distinct_count].value", f"is 0, and {values} values are not null")
        if self.values and sum(each.count for each in self.values) != values:
            raise invalid("values", f"have counts that do not come to the {values} values that are not null")
        if self.values and distinct is not None and int(distinct) != len(self.values):
            raise invalid("measures[distinct_count].value", f"is {distinct}, and there are {len(self.values)} values")
        finite = values - int(self.measure(QualityMeasureKind.NOT_FINITE_COUNT) or 0)
        if self.edges and sum(self.bin_counts) != finite:
            raise invalid("binCounts", f"do not come to the {finite} finite numbers")
        for measure in self.measures:
            if measure.kind in NUMBERS | TIMES and not finite:
                raise invalid(f"measures[{measure.kind}]", "is of a column that has nothing to measure")

    def measure(self, kind: QualityMeasureKind) -> str | None:
        """The value of a measure without an argument; None where it was not measured."""
        return next((each.value for each in self.measures if each.kind is kind and not each.argument), None)


@dataclass(frozen=True, slots=True)
class QualityMetric:
    """A value of the user's own about a dataset version."""

    name: str
    value: str  # decimal

    def __post_init__(self) -> None:
        check_metric_name(self.name, "name")
        check_decimal(self.value, "value", most=MAX_DECIMAL)


@dataclass(frozen=True, slots=True)
class QualityProfile:
    """What was measured of a dataset version. Columns are in their order; metrics are a set."""

    SCHEMA: ClassVar[str] = "animus.quality_profile/v1"

    dataset_id: str
    content_digest: str
    profiler: str  # what measured, with its version
    row_count: int
    size_bytes: int
    columns: tuple[ColumnProfile, ...]
    metrics: tuple[QualityMetric, ...]

    def __post_init__(self) -> None:
        check_resource_id(self.dataset_id, "datasetId")
        check_digest(self.content_digest, "contentDigest")
        check_length(self.profiler, 1, 200, "profiler")
        check_within(self.row_count, 0, MAX_INTEGER, "rowCount")
        check_within(self.size_bytes, 0, MAX_INTEGER, "sizeBytes")
        check_count(self.columns, 0, MAX_COLUMNS, "columns")
        check_count(self.metrics, 0, MAX_METRICS, "metrics")
        sorted_set(self.columns, lambda c: c.name, "columns", "name")
        for index, column in enumerate(self.columns):
            try:
                column.check_counts(self.row_count)
            except Invalid as error:
                (found,) = error.violations
                raise invalid(f"columns[{index}].{found.field}", found.description) from None
        object.__setattr__(self, "metrics", sorted_set(self.metrics, lambda m: m.name, "metrics", "name"))


@dataclass(frozen=True, slots=True)
class QualityResult:
    """What came of one check."""

    check: str  # name of the check; of another tool, 1 to 500 characters
    severity: QualitySeverity
    outcome: QualityOutcome
    observed: str  # 0 to 1,000 characters
    reason: str  # 0 to 1,000 characters; empty where it holds

    def __post_init__(self) -> None:
        check_length(self.check, 1, 500, "check")
        check_length(self.observed, 0, 1_000, "observed")
        check_length(self.reason, 0, 1_000, "reason")
        if self.outcome is QualityOutcome.PASS and self.reason:
            raise invalid("reason", "says why a check does not hold, and it holds: leave it empty")


@dataclass(frozen=True, slots=True)
class QualityEvaluation:
    """A verdict on a dataset version. Results are a set, by check."""

    SCHEMA: ClassVar[str] = "animus.quality_evaluation/v1"

    dataset_id: str
    content_digest: str
    rule_digest: str
    rule_name: str  # id of the rule; of another tool, what it calls it
    profile_digest: str
    evaluator: str
    evaluator_version: str
    verdict: QualityVerdict
    results: tuple[QualityResult, ...]
    evaluate_time: str  # the database's time of the transaction

    def __post_init__(self) -> None:
        check_resource_id(self.dataset_id, "datasetId")
        check_digest(self.content_digest, "contentDigest")
        check_digest(self.rule_digest, "ruleDigest")
        check_length(self.rule_name, 1, 200, "ruleName")
        check_digest(self.profile_digest, "profileDigest")
        check_resource_id(self.evaluator, "evaluator")
        check_length(self.evaluator_version, 1, 100, "evaluatorVersion")
        check_count(self.results, 1, MAX_CHECKS, "results")
        object.__setattr__(self, "results", sorted_set(self.results, lambda r: r.check, "results", "check"))
        check_time(self.evaluate_time, "evaluateTime")
        if self.verdict is not verdict_of(self.results):
            found = self.verdict or "unspecified"
            raise invalid("verdict", f"is {found}, and the results come to {verdict_of(self.results)}")


def verdict_of(results: tuple[QualityResult, ...]) -> QualityVerdict:
    """What results come to: the worst of those of severity ERROR, else WARN if any of the others does not hold."""
    grave = {result.outcome for result in results if result.severity is QualitySeverity.ERROR}
    if QualityOutcome.ERROR in grave:
        return QualityVerdict.ERROR
    if QualityOutcome.FAIL in grave:
        return QualityVerdict.FAIL
    if any(result.outcome is not QualityOutcome.PASS for result in results):
        return QualityVerdict.WARN
    return QualityVerdict.PASS
