"""Profiles of tables: what rules judge, measured where the data is (docs/quality-profile.md).

The same data gives the same profile, whatever the order of rows, files, threads and memory: everything but means and
deviations is counted or compared, and those are summed exactly (`math.fsum`) before they are rounded. Nothing is
sampled or approximated. Per column, equal values are first brought together on disk; all else is read from there.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from animus.domain.dataset import Column
from animus.domain.errors import Invalid, invalid
from animus.domain.names import format_time
from animus.domain.quality import (
    MAX_VALUES,
    ColumnProfile,
    QualityCheckType,
    QualityMeasure,
    QualityMeasureKind,
    QualityMetric,
    QualityProfile,
    QualityRule,
    QualityValueCount,
)
from animus.sdk.files import Unreadable
from animus.sdk.hashing import Content
from animus.sdk.tables import MEMORY_LIMIT, OpenTable, open_table

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

PROBABILITIES = ("0.01", "0.05", "0.25", "0.5", "0.75", "0.95", "0.99")
DECILES = tuple(f"0.{tenth}" for tenth in range(1, 10))
FEW_VALUES = 100  # distinct values that are counted one by one without being asked for
BATCH = 10_000  # rows that are fetched at a time

FLOATS = ("float32", "float64")
TIMES = ("date32", "timestamp[s]", "timestamp[ms]", "timestamp[us]", "timestamp[ns]", "timestamp[us, UTC]")
TEXTS = ("utf8", "dictionary<utf8>")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
EXACT = Context(prec=500)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What is measured of a column beside what always is."""

    patterns: tuple[str, ...]
    probabilities: tuple[str, ...]
    edges: tuple[str, ...]
    every_value: bool  # up to as many as a profile holds


def profile(
    path: Path,
    dataset_id: str,
    content: Content,
    rules: Sequence[QualityRule],
    references: Sequence[QualityProfile],
    metrics: Mapping[str, str],
    *,
    memory_limit: str = MEMORY_LIMIT,
    scratch: Path | None = None,
) -> QualityProfile:
    """Measures a table whose content was hashed before, as the rules need it and the histograms of references allow.

    `metrics` are values of the user's own, decimals by name. `memory_limit` is DuckDB's, such as `500MB`; what does not
    fit goes to a folder below `scratch`, or else the system's for temporary files, and is removed. Raises Invalid for a
    pattern that is no RE2, for references whose edges differ and for what is no table, and Unreadable for what cannot
    be read or changed.
    """
    wanted = _wanted(rules, references)
    before = _seen(path)
    if sum(size for _, size, _ in before) != content.size_bytes:
        raise Unreadable(path, "changed after it was hashed")
    with open_table(path, memory_limit, scratch) as table:
        for each in wanted.values():
            for pattern in each.patterns:
                _check_pattern(table.connection, pattern)
        columns = tuple(
            _column(table, column, expression, wanted.get(column.name, _NOTHING))
            for column, expression in zip(table.columns, table.expressions, strict=True)
        )
        rows = table.row_count
    if _seen(path) != before:
        raise Unreadable(path, "changed while it was read")
    return QualityProfile(
        dataset_id=dataset_id,
        content_digest=content.digest,
        profiler=_profiler(),
        row_count=rows,
        size_bytes=content.size_bytes,
        columns=columns,
        metrics=tuple(QualityMetric(name, value) for name, value in metrics.items()),
    )


_NOTHING = _Wanted((), (), (), every_value=False)


def _profiler() -> str:
    from importlib.metadata import version

    return f"animus {version('animus-control')} (duckdb {version('duckdb')})"


def _seen(path: Path) -> list[tuple[str, int, int]]:
    """Names, sizes and times of change of the files."""
    files = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
    found = []
    for file in files:
        try:
            seen = file.stat()
        except OSError as error:
            raise Unreadable(file, error.strerror or str(error)) from None
        found.append((str(file), seen.st_size, seen.st_mtime_ns))
    return found


def _wanted(rules: Sequence[QualityRule], references: Sequence[QualityProfile]) -> dict[str, _Wanted]:
    """By column, what rules and references ask for."""
    patterns: dict[str, set[str]] = {}
    probabilities: dict[str, set[str]] = {}
    edges: dict[str, tuple[str, ...]] = {}
    every: set[str] = set()
    for rule in rules:
        for check in rule.checks:
            if check.pattern:
                patterns.setdefault(check.column, set()).add(check.pattern)
            if check.probability:
                probabilities.setdefault(check.column, set()).add(check.probability)
            if check.type in (QualityCheckType.ALLOWED_FRACTION, QualityCheckType.PSI):
                every.add(check.column)
    for reference in references:
        for column in reference.columns:
            if column.edges and edges.setdefault(column.name, column.edges) != column.edges:
                raise invalid(
                    "references", f"have different edges for the column {column.name!r}: profile for one at a time"
                )
    return {
        name: _Wanted(
            tuple(sorted(patterns.get(name, ()))),
            tuple(sorted(probabilities.get(name, ()))),
            edges.get(name, ()),
            name in every,
        )
        for name in patterns.keys() | probabilities.keys() | edges.keys() | every
    }


def _check_pattern(connection: "DuckDBPyConnection", pattern: str) -> None:
    import duckdb

    try:
        connection.execute("SELECT regexp_full_match('', ?)", [pattern])
    except duckdb.Error as error:
        raise invalid("pattern", f"{pattern!r} is no expression of RE2: {str(error).splitlines()[0]}") from None


def _column(table: OpenTable, column: Column, expression: str, wanted: _Wanted) -> ColumnProfile:
    connection = table.connection
    numeric = column.type in FLOATS or column.type.startswith(("int", "uint", "decimal128("))
    value = expression
    if column.type in FLOATS:
        value = f"CAST({expression} AS DOUBLE)"
    elif column.type in TEXTS:
        value = f"CAST({expression} AS VARCHAR)"
    elif column.type.startswith("timestamp[") and "UTC" not in column.type:
        value = f"CAST({expression} AS TIMESTAMP)"
    # Equal values once, with how often they stand: out of core, as nothing that orders or collects values would be.
    connection.execute("DROP TABLE IF EXISTS grouped")
    connection.execute(
        f"CREATE TABLE grouped AS SELECT {value} AS v, count(*) AS n"  # nosec B608
        f" FROM data WHERE {expression} IS NOT NULL GROUP BY v"
    )
    values, distinct = _row(connection, "SELECT coalesce(sum(n), 0), count(*) FROM grouped")
    null_count = table.row_count - int(values)
    if not distinct:
        return ColumnProfile(column.name, column.type, null_count, (), (), (), ())
    measures = [_count(QualityMeasureKind.DISTINCT_COUNT, distinct)]
    not_finite = 0
    if column.type in FLOATS:
        (found,) = _row(connection, "SELECT coalesce(sum(n) FILTER (NOT isfinite(v)), 0) FROM grouped")
        not_finite = int(found)
        measures.append(_count(QualityMeasureKind.NOT_FINITE_COUNT, not_finite))
        connection.execute("DELETE FROM grouped WHERE NOT isfinite(v)")
    edges: tuple[str, ...] = ()
    bins: tuple[int, ...] = ()
    if numeric and not_finite < values:
        numbers, edges = _numbers(connection, int(values) - not_finite, wanted)
        measures += numbers
        bins = _bins(connection, column.type, edges, int(values) - not_finite)
    elif column.type in TIMES:
        measures += _times(connection)
    if column.type in (*TEXTS, "bool", "date32") or column.type.startswith(("int", "uint")):
        measures += _pattern_counts(connection, wanted.patterns)
    counted: tuple[QualityValueCount, ...] = ()
    most = MAX_VALUES if wanted.every_value else FEW_VALUES
    if distinct <= most and not not_finite and (numeric or column.type in (*TEXTS, "bool", *TIMES)):
        counted = _values(connection, column.type)
    return ColumnProfile(column.name, column.type, null_count, tuple(measures), counted, edges, bins)


def _row(connection: "DuckDBPyConnection", sql: str, values: Sequence[object] = ()) -> tuple[Any, ...]:
    found: tuple[Any, ...] = connection.execute(sql, list(values)).fetchall()[0]
    return found


def _rows(connection: "DuckDBPyConnection", sql: str) -> Iterator[tuple[Any, ...]]:
    """The rows of an answer, a few at a time."""
    answer = connection.execute(sql)
    while batch := answer.fetchmany(BATCH):
        yield from batch


def _count(kind: QualityMeasureKind, count: int, argument: str = "") -> QualityMeasure:
    return QualityMeasure(kind, argument, str(int(count)))


def decimal_text(number: float | Decimal) -> str:
    """A finite number in the one spelling of a decimal; a double by the shortest digits that are it."""
    text = f"{Decimal(repr(number)) if isinstance(number, float) else Decimal(number):f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text == "-0" else text


def _numbers(
    connection: "DuckDBPyConnection", count: int, wanted: _Wanted
) -> tuple[list[QualityMeasure], tuple[str, ...]]:
    """The measures of finite numbers, so many in all, and the edges of their histogram."""
    asked = tuple(dict.fromkeys((*PROBABILITIES, *wanted.probabilities)))
    quantiles = _quantiles(connection, count, (*asked, *(() if wanted.edges else DECILES)))
    least, greatest = _row(connection, "SELECT min(v), max(v) FROM grouped")
    mean, deviation = _moments(connection, count, float(least), float(greatest))
    bounded = min(max(Decimal(repr(mean)), Decimal(decimal_text(least))), Decimal(decimal_text(greatest)))
    measures = [
        QualityMeasure(QualityMeasureKind.MINIMUM, "", decimal_text(least)),
        QualityMeasure(QualityMeasureKind.MAXIMUM, "", decimal_text(greatest)),
        QualityMeasure(QualityMeasureKind.MEAN, "", decimal_text(bounded)),
    ]
    if math.isfinite(deviation):  # else it is more than a double holds
        measures.append(QualityMeasure(QualityMeasureKind.STANDARD_DEVIATION, "", decimal_text(deviation)))
    measures += [QualityMeasure(QualityMeasureKind.QUANTILE, each, decimal_text(quantiles[each])) for each in asked]
    edges = wanted.edges or tuple(decimal_text(each) for each in dict.fromkeys(quantiles[each] for each in DECILES))
    return measures, edges


def _quantiles(connection: "DuckDBPyConnection", count: int, probabilities: Iterable[str]) -> dict[str, Any]:
    """By probability, the least value so that at least that part of all is at most it.

    A running count instead of DuckDB's quantile, which holds all values in memory.
    """
    names = list(dict.fromkeys(probabilities))
    places = [
        max(1, int(EXACT.multiply(Decimal(each), count).to_integral_value(ROUND_CEILING, EXACT))) for each in names
    ]
    picked = ", ".join(f"min(v) FILTER (upto >= {place})" for place in places)
    found = _row(connection, f"SELECT {picked} FROM (SELECT v, sum(n) OVER (ORDER BY v) AS upto FROM grouped)")
    return dict(zip(names, found, strict=True))


def _moments(connection: "DuckDBPyConnection", count: int, least: float, greatest: float) -> tuple[float, float]:
    """Mean and standard deviation of the population. The scale is a power of two, by which nothing is rounded."""
    exponent = min(math.frexp(max(abs(least), abs(greatest)))[1], 1_023)
    scale = math.ldexp(1.0, exponent) or 1.0
    sql = "SELECT CAST(v AS DOUBLE), n FROM grouped"
    mean = math.fsum(value / scale * times for value, times in _rows(connection, sql)) / count
    variance = math.fsum((value / scale - mean) ** 2 * times for value, times in _rows(connection, sql)) / count
    return mean * scale, min(math.sqrt(variance) * scale, greatest - least)


def _bins(connection: "DuckDBPyConnection", kind: str, edges: tuple[str, ...], count: int) -> tuple[int, ...]:
    """How many of the numbers are in each bin: above the edge before it, up to and with its own."""
    if not edges:
        return ()
    limits = [_floor(edge, kind) for edge in edges]
    upto = ", ".join("coalesce(sum(n) FILTER (v <= ?), 0)" for _ in limits)
    found = [int(each) for each in _row(connection, f"SELECT {upto} FROM grouped", limits)]
    return tuple(after - before for before, after in zip([0, *found], [*found, count], strict=True))


def _floor(edge: str, kind: str) -> object:
    """The greatest number of a column's type that is not above an edge: to compare with it is to compare exactly."""
    if kind in FLOATS:
        near = float(edge)
        if math.isinf(near):
            return math.nextafter(near, 0.0) if near > 0 else near
        return near if Decimal(near) <= Decimal(edge) else math.nextafter(near, -math.inf)
    scale = int(kind.removesuffix(")").split(", ")[1]) if kind.startswith("decimal128(") else 0
    limit = Decimal("9" * 38)
    whole = Decimal(edge).scaleb(scale, EXACT).to_integral_value(ROUND_FLOOR, EXACT)
    whole = min(max(whole, -limit), limit)
    return whole.scaleb(-scale, EXACT) if scale else int(whole)


def _times(connection: "DuckDBPyConnection") -> list[QualityMeasure]:
    """Oldest and newest; nothing where a time is infinite or outside the years 1 to 9999, which have no spelling."""
    finite, every, oldest, newest = _row(
        connection, "SELECT count(epoch_us(v)), count(*), min(epoch_us(v)), max(epoch_us(v)) FROM grouped"
    )
    spelt = [_time(oldest), _time(newest)] if finite == every else [None]
    if None in spelt:
        return []
    kinds = (QualityMeasureKind.OLDEST, QualityMeasureKind.NEWEST)
    return [QualityMeasure(kind, "", text) for kind, text in zip(kinds, spelt, strict=True) if text]


def _time(microseconds: int | None) -> str | None:
    """A time in its one spelling; None where it has none."""
    if microseconds is None:
        return None
    try:
        return format_time(EPOCH + timedelta(microseconds=microseconds))
    except OverflowError:
        return None


def _pattern_counts(connection: "DuckDBPyConnection", patterns: Sequence[str]) -> list[QualityMeasure]:
    """How many values each expression matches as a whole; a value is in the spelling of a profile."""
    counts = []
    for pattern in patterns:
        sql = "SELECT coalesce(sum(n) FILTER (regexp_full_match(CAST(v AS VARCHAR), ?)), 0) FROM grouped"
        counts.append(_count(QualityMeasureKind.PATTERN_COUNT, _row(connection, sql, [pattern])[0], pattern))
    return counts


def _values(connection: "DuckDBPyConnection", kind: str) -> tuple[QualityValueCount, ...]:
    """Every value with how often it stands; none where one has no spelling."""
    value = "epoch_us(v)" if kind in TIMES else "v"
    found: dict[str, int] = {}
    for each, count in _rows(connection, f"SELECT {value}, n FROM grouped"):
        if kind in TEXTS:
            text: str | None = each
        elif kind == "bool":
            text = "true" if each else "false"
        elif kind in TIMES:
            text = _time(each)
            if text and kind == "date32":
                text = text[:10]
        else:
            text = decimal_text(each)
        if text is None:
            return ()
        found[text] = found.get(text, 0) + int(count)
    try:
        return tuple(QualityValueCount(text, count) for text, count in found.items())
    except Invalid:
        return ()
