"""Tables in CSV, Parquet and JSON Lines, read with DuckDB (extra `quality`): columns, rows, and any question in SQL.

A table is a file or a folder of files of one format, told by their names. Memory is bounded: what does not fit is
written to a folder for the time. No type depends on a sample: CSV has no types, so ours follow from every value, by
rules of our own (docs/quality-profile.md); those of JSON Lines follow from every line; Parquet has its own, and its
footers alone are read to describe it. Nothing is fetched from anywhere.

Statements are put together of paths and names, which are quoted, for a database that is a scratch file of the caller's
own: that is why bandit's doubts about them are answered with `nosec`, here and in the profiler.
"""

import csv
import gzip
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from animus.domain.dataset import MAX_COLUMNS, Column
from animus.domain.errors import Invalid, invalid
from animus.sdk.files import Unreadable
from animus.sdk.hashing import plain_files, text_of

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection
    from duckdb.sqltypes import DuckDBPyType

MEMORY_LIMIT = "1GB"
FIRST_ROWS = 10_000
QUESTIONS = 100  # of one query: DuckDB takes minutes to answer some thousands
BUFFER_BYTES = 4 << 20  # of CSV that is read at a time; twice the longest line

FORMATS = {
    ".csv": "csv",
    ".csv.gz": "csv",
    ".tsv": "tsv",
    ".tsv.gz": "tsv",
    ".parquet": "parquet",
    ".jsonl": "jsonl",
    ".jsonl.gz": "jsonl",
    ".ndjson": "jsonl",
    ".ndjson.gz": "jsonl",
}
DELIMITERS = {"csv": ",", "tsv": "\t"}

INTEGER = "0|-?[1-9][0-9]*"
NOT_FINITE = "(?i:nan|[+-]?inf(?:inity)?)"
NUMBER = r"[+-]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|" + NOT_FINITE
DATE = "[0-9]{4}-[0-9]{2}-[0-9]{2}"
TIME = DATE + r"[T ][0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,6})?"

# The types of CSV, the first that every value of a column has: the type to read it as, which it has to fit, and the
# pattern of a value. What none of them is is text, and so is a column without values.
TEXT_TYPES = (
    ("bool", "BOOLEAN", "(?i:true|false)"),
    ("int64", "BIGINT", INTEGER),
    ("decimal128(38, 0)", "DECIMAL(38, 0)", INTEGER),
    ("float64", "DOUBLE", NUMBER),
    ("date32", "DATE", DATE),
    ("timestamp[us]", "TIMESTAMP", TIME),
    ("timestamp[us, UTC]", "TIMESTAMPTZ", TIME + "(?:Z|[+-][0-9]{2}:[0-9]{2})"),
)

TYPES = {
    "boolean": "bool", "tinyint": "int8", "smallint": "int16", "integer": "int32", "bigint": "int64",
    "utinyint": "uint8", "usmallint": "uint16", "uinteger": "uint32", "ubigint": "uint64",
    "float": "float32", "double": "float64", "varchar": "utf8", "blob": "binary", "date": "date32",
    "time": "time64[us]", "time_ns": "time64[ns]", "timestamp_s": "timestamp[s]", "timestamp_ms": "timestamp[ms]",
    "timestamp": "timestamp[us]", "timestamp_ns": "timestamp[ns]", "timestamp with time zone": "timestamp[us, UTC]",
    "enum": "dictionary<utf8>", "uuid": "fixed_size_binary[16]", "interval": "month_day_nano_interval",
    "hugeint": "decimal128(38, 0)",
}  # fmt: skip
# JSON has texts that DuckDB takes for UUIDs; no file says that they are. What has no value is text, as in CSV.
JSON_TYPES = {**TYPES, "uuid": "utf8", "null": "utf8"}


@dataclass(frozen=True, slots=True)
class Table:
    """What a file, or the files of a folder together, hold as a table."""

    columns: tuple[Column, ...]
    row_count: int


@dataclass(frozen=True, slots=True)
class OpenTable:
    """A table that SQL can read: the relation `data`, and of each column the expression that is its values."""

    connection: "DuckDBPyConnection"
    columns: tuple[Column, ...]
    expressions: tuple[str, ...]
    row_count: int


def describe(path: Path, memory_limit: str = MEMORY_LIMIT, scratch: Path | None = None) -> Table:
    """The columns, with Arrow-style types, and the rows of a table. Raises as `open_table` does."""
    with open_table(path, memory_limit, scratch) as table:
        return Table(table.columns, table.row_count)


@contextmanager
def open_table(path: Path, memory_limit: str, scratch: Path | None) -> Iterator[OpenTable]:
    """Opens a table; text is parsed once into a file below `scratch`, for many questions.

    Raises Invalid, naming the path, for what is no plain file, no table or broken, for files of other formats or
    columns than each other, and for columns that cannot be written down; Invalid too where DuckDB is not installed or
    does not take the memory limit. Raises Unreadable for what cannot be read, or not within the limit.
    """
    files = _files(path)
    kind = _format(files[0])
    for file in files:
        if _format(file) != kind:
            raise invalid("path", f"has files of more formats than one, {kind} and {_format(file)}: {text_of(path)}")
    try:
        import duckdb
    except ImportError:
        raise invalid("", "reading tables needs DuckDB: install animus-control[quality]") from None

    with tempfile.TemporaryDirectory(prefix="animus-table-", dir=scratch) as folder:
        try:
            connection = duckdb.connect(
                f"{folder}/table.duckdb",
                config={
                    "memory_limit": memory_limit,
                    "temp_directory": f"{folder}/spilt",
                    "preserve_insertion_order": False,
                    "autoinstall_known_extensions": False,
                    "autoload_known_extensions": False,
                },
            )
        except duckdb.Error as error:
            raise invalid("memoryLimit", f"is {memory_limit!r}: {_line(error)}") from None
        with connection, _named(path):
            connection.execute("SET TimeZone = 'UTC'; SET enable_progress_bar = false")  # it would go to stdout
            if kind in DELIMITERS:
                columns, expressions = _open_csv(connection, files, DELIMITERS[kind])
            elif kind == "jsonl":
                columns, expressions = _open_json(connection, files, path)
            else:
                columns, expressions = _open_parquet(connection, files)
            rows = connection.execute("SELECT count(*) FROM data").fetchall()[0][0]
            yield OpenTable(connection, columns, expressions, rows)


def arrow_type(kind: "DuckDBPyType", names: Mapping[str, str] = TYPES) -> str:
    """The Arrow-style name of a type. Raises Invalid for one that has none."""
    if kind.id == "decimal":
        (_, precision), (_, scale) = kind.children
        return f"decimal128({precision}, {scale})"
    if kind.id == "list":
        return f"list<{arrow_type(_type(kind.children[0][1]), names)}>"
    if kind.id == "array":
        (_, item), (_, size) = kind.children
        return f"fixed_size_list<{arrow_type(_type(item), names)}>[{size}]"
    if kind.id == "struct":
        fields = ", ".join(f"{name}: {arrow_type(_type(child), names)}" for name, child in kind.children)
        return f"struct<{fields}>"
    if kind.id == "map":
        key, value = (arrow_type(_type(child), names) for _, child in kind.children)
        return f"map<{key}, {value}>"
    if kind.id not in names:
        raise invalid("type", f"is {kind}, which has no Arrow-style name here")
    return names[kind.id]


def _type(child: object) -> "DuckDBPyType":
    return child  # type: ignore[return-value]  # of a nested type, not a number


def _files(path: Path) -> list[Path]:
    """The file, or the files below a folder; each can be opened, and DuckDB can be told its name."""
    files = plain_files(path)
    if not files:
        raise invalid("path", f"has no file below it: {text_of(path)}")
    for file in files:
        try:
            str(file.absolute()).encode()
            with file.open("rb"):
                pass
        except UnicodeEncodeError:
            raise invalid("path", f"is not UTF-8: {text_of(file)}") from None
        except OSError as error:
            raise Unreadable(file, f"cannot be read: {error.strerror or error}") from None
    return files


def _format(file: Path) -> str:
    for ending, kind in FORMATS.items():
        if file.name.lower().endswith(ending):
            return kind
    raise invalid("path", f"is no table, whose name ends in {', '.join(FORMATS)}: {text_of(file)}")


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Turns DuckDB's errors into ours, which name the path."""
    import duckdb

    try:
        yield
    except (duckdb.IOException, duckdb.OutOfMemoryException) as error:
        raise Unreadable(Path(text_of(path)), f"cannot be read: {_line(error)}") from None
    except duckdb.Error as error:
        raise invalid("path", f"is no table that can be read, {_line(error)}: {text_of(path)}") from None


def _open_parquet(
    connection: "DuckDBPyConnection", files: Sequence[Path]
) -> tuple[tuple[Column, ...], tuple[str, ...]]:
    """Reads footers only. DuckDB takes the columns of the first file, and would cast the others to them."""
    found = []
    for file in files:
        with _named(file):
            relation = connection.read_parquet(_pattern(file), hive_partitioning=False)
        found.append(_columns(relation.columns, relation.types, TYPES, file))
        if found[-1] != found[0]:
            raise _other_columns(file, files[0])
    source = f"read_parquet({_list(files)}, hive_partitioning = false)"
    connection.execute(f"CREATE VIEW data AS SELECT * FROM {source}")  # nosec B608
    return found[0], tuple(_identifier(column.name) for column in found[0])


def _open_json(
    connection: "DuckDBPyConnection", files: Sequence[Path], path: Path
) -> tuple[tuple[Column, ...], tuple[str, ...]]:
    # A folder named key=value would add a column that is in no file.
    options = (
        "format = 'newline_delimited', records = true, sample_size = -1, maximum_sample_files = 1000000,"
        " hive_partitioning = false"
    )
    source = f"read_json({_list(files)}, {options})"
    connection.execute(f"CREATE TABLE data AS SELECT * FROM {source}")  # nosec B608
    relation = connection.table("data")
    columns = _columns(relation.columns, relation.types, JSON_TYPES, path)
    return columns, tuple(_identifier(name) for name in relation.columns)


def _open_csv(
    connection: "DuckDBPyConnection", files: Sequence[Path], delimiter: str
) -> tuple[tuple[Column, ...], tuple[str, ...]]:
    """The dialect is fixed: a guess could drop lines."""
    names = _header(files[0], delimiter)
    for file in files[1:]:
        if _header(file, delimiter) != names:
            raise _other_columns(file, files[0])
    columns = [f"c{index}" for index in range(len(names))]
    fields = ", ".join(f"{column}: 'VARCHAR'" for column in columns)
    options = {
        "auto_detect": "false",
        "header": "true",
        "delim": _quoted(delimiter),
        "quote": _quoted('"'),
        "escape": _quoted('"'),
        "strict_mode": "true",
        "null_padding": "false",
        "hive_partitioning": "false",
        "buffer_size": str(BUFFER_BYTES),
        "columns": f"{{{fields}}}",
    }
    said = ", ".join(f"{name} = {value}" for name, value in options.items())
    connection.execute(f"CREATE TABLE data ({', '.join(f'{column} VARCHAR' for column in columns)})")
    for file in files:
        with _named(file):
            source = f"read_csv({_quoted(_pattern(file))}, {said})"
            connection.execute(f"INSERT INTO data SELECT * FROM {source}")  # nosec B608
    return _text_columns(connection, names)


def _header(file: Path, delimiter: str) -> list[str]:
    """Names of the columns, which a table can have."""
    from duckdb.sqltypes import VARCHAR

    opened = gzip.open if file.name.lower().endswith(".gz") else open
    try:
        with opened(file, "rt", encoding="utf-8-sig", newline="") as lines:
            # What is longer than that without a line's end has too long a name, or too many.
            parts = iter(lambda: lines.readline(BUFFER_BYTES), "")
            names = next(csv.reader(parts, delimiter=delimiter, strict=True), [])
    except (UnicodeDecodeError, csv.Error, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise invalid("path", f"has no line of column names, {error}: {text_of(file)}") from None
    except OSError as error:
        raise Unreadable(file, f"cannot be read: {error.strerror or error}") from None
    if not names:
        raise invalid("path", f"has no line of column names: {text_of(file)}")
    _columns(names, [VARCHAR] * len(names), TYPES, file)
    seen = set[str]()
    for name in names:
        if name in seen:
            raise invalid("path", f"repeats the column name {name!r}: {text_of(file)}")
        seen.add(name)
    return names


def _text_columns(connection: "DuckDBPyConnection", names: list[str]) -> tuple[tuple[Column, ...], tuple[str, ...]]:
    """The columns of text with their types, each the first that every value fits.

    What a value of the first rows does not fit is out; what is left is asked of every value, the first type first.
    """
    every = range(len(TEXT_TYPES))
    asked = [(column, kind) for column in range(len(names)) for kind in every]
    left = [list[int]() for _ in names]
    for (column, kind), misfits in zip(asked, _misfits(connection, asked, f"LIMIT {FIRST_ROWS}"), strict=True):
        if not misfits:
            left[column].append(kind)
    counts = ", ".join(f"count(c{at})" for at in range(len(names)))
    values = connection.execute(f"SELECT {counts} FROM data").fetchall()  # nosec B608
    left = [kinds if count else [] for kinds, count in zip(left, values[0], strict=True)]
    found: dict[int, int] = {}
    while asked := [(column, kinds[0]) for column, kinds in enumerate(left) if kinds and column not in found]:
        for (column, kind), misfits in zip(asked, _misfits(connection, asked, ""), strict=True):
            if misfits:
                left[column].remove(kind)
            else:
                found[column] = kind
    columns, expressions = [], []
    for at, name in enumerate(names):
        spelt, read_as, _ = TEXT_TYPES[found[at]] if at in found else ("utf8", "VARCHAR", "")
        columns.append(Column(name, spelt))
        expressions.append(f"CAST(c{at} AS {read_as})")
    return tuple(columns), tuple(expressions)


def _misfits(connection: "DuckDBPyConnection", asked: list[tuple[int, int]], rows: str) -> list[int]:
    """How many values of each column asked of do not fit the type asked for."""
    questions = []
    for column, at in asked:
        _, kind, pattern = TEXT_TYPES[at]
        fits = f"regexp_full_match(c{column}, {_quoted(pattern)}) AND TRY_CAST(c{column} AS {kind}) IS NOT NULL"
        if kind == "DOUBLE":  # a number too large is none, and no infinity
            finite = f"isfinite(TRY_CAST(c{column} AS DOUBLE))"
            fits += f" AND ({finite} OR regexp_full_match(c{column}, {_quoted(NOT_FINITE)}))"
        questions.append(f"count(c{column}) FILTER (NOT ({fits}))")
    found: list[int] = []
    for at in range(0, len(questions), QUESTIONS):
        said = ", ".join(questions[at : at + QUESTIONS])
        columns = ", ".join(dict.fromkeys(f"c{column}" for column, _ in asked[at : at + QUESTIONS]))
        asking = f"SELECT {said} FROM (SELECT {columns} FROM data {rows})"
        found += connection.execute(asking).fetchall()[0]
    return found


def _columns(
    names: Sequence[str], kinds: "Sequence[DuckDBPyType]", spelt: Mapping[str, str], path: Path
) -> tuple[Column, ...]:
    """The columns of these types. Raises Invalid, naming the path, for what cannot be written down."""
    if len(names) > MAX_COLUMNS:
        raise invalid("path", f"has {len(names)} columns; {MAX_COLUMNS} are allowed: {text_of(path)}")
    columns = []
    for name, kind in zip(names, kinds, strict=True):
        try:
            columns.append(Column(name, arrow_type(kind, spelt)))
        except Invalid as error:
            each = error.violations[0]
            column = repr(name[:100])
            raise invalid(
                "path", f"has a column {column} whose {each.field} {each.description}: {text_of(path)}"
            ) from None
    return tuple(columns)


def _other_columns(file: Path, first: Path) -> Invalid:
    return invalid("path", f"has other columns than {text_of(first)}: {text_of(file)}")


def _quoted(text: str) -> str:
    """A literal of SQL."""
    return "'" + text.replace("'", "''") + "'"


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _list(files: Sequence[Path]) -> str:
    return f"[{', '.join(_quoted(_pattern(file)) for file in files)}]"


def _pattern(path: Path) -> str:
    """The pattern that stands for this path alone: DuckDB takes a name for one."""
    return "".join(f"[{character}]" if character in "*?[" else character for character in str(path.absolute()))


def _line(error: Exception) -> str:
    """The first line of an error of DuckDB, without its advice."""
    return str(error).strip().partition("\n")[0]
