"""How a rule is evaluated on a profile: decimal arithmetic, every step of which docs/quality.md says.

Nothing but the documents and the time comes in: no setting of the process, no order in which something was sent.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from decimal import ROUND_HALF_EVEN, Context, Decimal, DivisionByZero, InvalidOperation, Overflow, localcontext

from animus.domain.errors import Refused
from animus.domain.names import parse_time, quality_profile_name
from animus.domain.quality import (
    EVALUATOR,
    EVALUATOR_VERSION,
    ColumnProfile,
    QualityCheck,
    QualityCheckType,
    QualityEvaluation,
    QualityMeasureKind,
    QualityOutcome,
    QualityProfile,
    QualityResult,
    QualityRule,
    verdict_of,
)

MAX_REASON = 1_000  # characters
PLACES = Decimal("1e-12")  # of a computed number
LEAST_SHARE = Decimal("0.0001")  # of a bin or value, for the population stability index

SCHEMA_TYPES = (QualityCheckType.SCHEMA_EQUAL, QualityCheckType.SCHEMA_COMPATIBLE)
# What is measured of finite numbers: a column that has none gives no answer.
NUMBERS = {
    QualityCheckType.RANGE: (QualityMeasureKind.MINIMUM, QualityMeasureKind.MAXIMUM),
    QualityCheckType.QUANTILE: (QualityMeasureKind.QUANTILE,),
    QualityCheckType.MEAN: (QualityMeasureKind.MEAN,),
    QualityCheckType.STANDARD_DEVIATION: (QualityMeasureKind.STANDARD_DEVIATION,),
}


class _NoAnswerError(Exception):
    """The check has no answer on this data."""


class _NotMeasuredError(Exception):
    """The profile, or the reference, lacks what the check needs."""


@dataclass(frozen=True, slots=True)
class ProfileFacts:
    """A profile, with ways to look things up."""

    profile: QualityProfile
    columns: Mapping[str, ColumnProfile]
    measures: Mapping[tuple[str, QualityMeasureKind, str], str]  # by column, kind and argument
    metrics: Mapping[str, str]


def evaluate(
    project_id: str,
    rule: QualityRule,
    rule_digest: str,
    profile: QualityProfile,
    profile_digest: str,
    references: Mapping[str, QualityProfile],
    evaluate_time: str,
) -> QualityEvaluation:
    """The verdict of a rule on a profile; `references` are the profiles that the rule names, by digest.

    Raises Refused QUALITY_NOT_MEASURED, naming each check, when a profile lacks what one needs.
    """
    facts = _facts(profile)
    others = {digest: _facts(each) for digest, each in references.items()}
    results: list[QualityResult] = []
    missing: list[str] = []
    with localcontext(_context()):
        for check in rule.checks:
            try:
                results.append(_result(check, facts, others, evaluate_time))
            except _NotMeasuredError as error:
                missing.append(f"checks[{check.name}]: {error}")
    if missing:
        raise Refused(
            "QUALITY_NOT_MEASURED",
            f"the profile lacks what {len(missing)} of the rule's checks need: profile the data again",
            subject=quality_profile_name(project_id, profile_digest),
            checks="; ".join(missing),
        )
    found = tuple(results)
    return QualityEvaluation(
        dataset_id=profile.dataset_id,
        content_digest=profile.content_digest,
        rule_digest=rule_digest,
        rule_name=rule.rule_id,
        profile_digest=profile_digest,
        evaluator=EVALUATOR,
        evaluator_version=EVALUATOR_VERSION,
        verdict=verdict_of(found),
        results=found,
        evaluate_time=evaluate_time,
    )


def _context() -> Context:
    """The arithmetic of every evaluation, whatever that of the thread is."""
    return Context(
        prec=50,
        rounding=ROUND_HALF_EVEN,
        Emin=-999_999,
        Emax=999_999,
        capitals=1,
        clamp=0,
        flags=[],
        traps=[InvalidOperation, DivisionByZero, Overflow],
    )


def _facts(profile: QualityProfile) -> ProfileFacts:
    return ProfileFacts(
        profile,
        {column.name: column for column in profile.columns},
        {(column.name, m.kind, m.argument): m.value for column in profile.columns for m in column.measures},
        {metric.name: metric.value for metric in profile.metrics},
    )


def _result(check: QualityCheck, facts: ProfileFacts, others: Mapping[str, ProfileFacts], time: str) -> QualityResult:
    """What came of a check. Raises _NotMeasuredError."""
    try:
        observed = "" if check.type in SCHEMA_TYPES else _observed(check, facts, others, time)
    except _NoAnswerError as error:
        return QualityResult(check.name, check.severity, QualityOutcome.ERROR, "", str(error)[:MAX_REASON])
    problem = _schema_problem(check, facts) if check.type in SCHEMA_TYPES else _bounds_problem(check, observed)
    outcome = QualityOutcome.FAIL if problem else QualityOutcome.PASS
    return QualityResult(check.name, check.severity, outcome, observed, problem[:MAX_REASON])


def _schema_problem(check: QualityCheck, facts: ProfileFacts) -> str:
    """The first way in which the columns are not what the check asks for; empty for none."""
    for index, wanted in enumerate(check.columns):
        found = facts.columns.get(wanted.name)
        if found is None:
            return f"there is no column {wanted.name!r}"
        if found.type != wanted.type:
            return f"column {wanted.name!r} has the type {found.type!r}, not {wanted.type!r}"
        if check.type is QualityCheckType.SCHEMA_EQUAL and facts.profile.columns[index].name != wanted.name:
            return f"column {index + 1} is {facts.profile.columns[index].name!r}, not {wanted.name!r}"
    if check.type is QualityCheckType.SCHEMA_EQUAL and len(facts.profile.columns) > len(check.columns):
        return f"there is a column {facts.profile.columns[len(check.columns)].name!r} more"
    return ""


def _bounds_problem(check: QualityCheck, observed: str) -> str:
    """Which bound an observed decimal, or one of two, breaks; empty for none."""
    for value in observed.split(".."):
        if check.minimum and Decimal(value) < Decimal(check.minimum):
            return f"{value} is below the minimum {check.minimum}"
        if check.maximum and Decimal(value) > Decimal(check.maximum):
            return f"{value} is above the maximum {check.maximum}"
    return ""


def _observed(check: QualityCheck, facts: ProfileFacts, others: Mapping[str, ProfileFacts], time: str) -> str:
    """What a check with bounds looks at. Raises _NoAnswerError and _NotMeasuredError."""
    if check.type is QualityCheckType.ROW_COUNT:
        return str(facts.profile.row_count)
    if check.type is QualityCheckType.SIZE_BYTES:
        return str(facts.profile.size_bytes)
    if check.type is QualityCheckType.METRIC:
        if check.metric not in facts.metrics:
            raise _NotMeasuredError(f"metric {check.metric!r}")
        return facts.metrics[check.metric]
    column = facts.columns.get(check.column)
    if column is None:
        raise _NoAnswerError(f"there is no column {check.column!r}")
    if check.type is QualityCheckType.NULL_FRACTION:
        if not facts.profile.row_count:
            raise _NoAnswerError("there are no rows")
        return _quotient(column.null_count, facts.profile.row_count)
    values = facts.profile.row_count - column.null_count
    if not values:
        raise _NoAnswerError(f"column {check.column!r} has no value")
    return _of_values(check, facts, column, values, others, time)


def _of_values(
    check: QualityCheck,
    facts: ProfileFacts,
    column: ColumnProfile,
    values: int,
    others: Mapping[str, ProfileFacts],
    time: str,
) -> str:
    """What a check looks at in a column that has values. Raises _NoAnswerError and _NotMeasuredError."""

    def measure(kind: QualityMeasureKind, argument: str = "") -> str:
        try:
            return facts.measures[column.name, kind, argument]
        except KeyError:
            raise _NotMeasuredError(f"{kind} {argument}".strip() + f" of column {column.name!r}") from None

    not_finite = facts.measures.get((column.name, QualityMeasureKind.NOT_FINITE_COUNT, ""), "0")
    if check.type is QualityCheckType.UNIQUE_FRACTION:
        return _quotient(int(measure(QualityMeasureKind.DISTINCT_COUNT)), values)
    if check.type is QualityCheckType.NOT_FINITE_FRACTION:
        return _quotient(int(not_finite), values)
    if check.type is QualityCheckType.ALLOWED_FRACTION:
        if not column.values:
            raise _NotMeasuredError(f"values of column {column.name!r}")
        allowed = frozenset(check.values)
        return _quotient(sum(each.count for each in column.values if each.value in allowed), values)
    if check.type is QualityCheckType.PATTERN_FRACTION:
        return _quotient(int(measure(QualityMeasureKind.PATTERN_COUNT, check.pattern)), values)
    if check.type is QualityCheckType.AGE_SECONDS:
        age = parse_time(time) - parse_time(measure(QualityMeasureKind.NEWEST))
        return _text(Decimal(age // timedelta(microseconds=1)).scaleb(-6))
    if check.type in (QualityCheckType.PSI, QualityCheckType.KS):
        other = others[check.reference_profile_digest].columns.get(column.name)
        if other is None:
            raise _NotMeasuredError(f"column {column.name!r} in the reference")
        return _text(_psi(column, other) if check.type is QualityCheckType.PSI else _ks(column, other))
    if int(not_finite) == values:
        raise _NoAnswerError(f"column {column.name!r} has no finite number")
    return "..".join(measure(kind, check.probability) for kind in NUMBERS[check.type])


def _psi(column: ColumnProfile, other: ColumnProfile) -> Decimal:
    """Population stability index of a column against another, over bins or else values."""
    if column.edges and column.edges == other.edges:
        pairs = list(zip(column.bin_counts, other.bin_counts, strict=True))
    elif column.values and other.values:
        these, those = ({each.value: each.count for each in of.values} for of in (column, other))
        pairs = [(these.get(value, 0), those.get(value, 0)) for value in sorted(these.keys() | those.keys())]
    else:
        raise _NotMeasuredError(f"column {column.name!r} has no histogram of equal edges, nor values, in both profiles")
    total, other_total = _totals(column, pairs)
    index = Decimal(0)
    for count, other_count in pairs:
        share = max(Decimal(count) / total, LEAST_SHARE)
        other_share = max(Decimal(other_count) / other_total, LEAST_SHARE)
        index += (share - other_share) * (share / other_share).ln()
    return index


def _ks(column: ColumnProfile, other: ColumnProfile) -> Decimal:
    """Kolmogorov-Smirnov distance of two columns, at the edges of their histograms."""
    if not column.edges or column.edges != other.edges:
        raise _NotMeasuredError(f"column {column.name!r} has no histogram of equal edges in both profiles")
    pairs = list(zip(column.bin_counts, other.bin_counts, strict=True))
    total, other_total = _totals(column, pairs)
    distance, below, other_below = Decimal(0), 0, 0
    for count, other_count in pairs[:-1]:  # the last bin has no edge
        below, other_below = below + count, other_below + other_count
        distance = max(distance, abs(Decimal(below) / total - Decimal(other_below) / other_total))
    return distance


def _totals(column: ColumnProfile, pairs: list[tuple[int, int]]) -> tuple[int, int]:
    """What both sides count. Raises _NotMeasuredError for a reference that counts nothing, else _NoAnswerError."""
    total, other_total = (sum(pair[side] for pair in pairs) for side in (0, 1))
    if not other_total:
        raise _NotMeasuredError(f"the reference has no finite number in column {column.name!r}")
    if not total:
        raise _NoAnswerError(f"column {column.name!r} has no finite number")
    return total, other_total


def _quotient(part: int, whole: int) -> str:
    return _text(Decimal(part) / whole)


def _text(number: Decimal) -> str:
    """A computed number, rounded, in its one spelling."""
    text = f"{number.quantize(PLACES):f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text
