"""Tables in CSV, Parquet and JSON Lines, read whole with DuckDB (extra `quality`), for many questions.

A table is a file or a folder of files of one format, told by their names. Memory is bounded: what does not fit is
written to a folder for the time. No type depends on a sample: CSV has no types, so ours follow from every value, by
rules of our own (docs/quality-profile.md); those of JSON Lines follow from every line; Parquet has its own.
"""

import csv
import gzip
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from animus.domain.dataset import MAX_COLUMNS, Column
from animus.domain.errors import invalid
from animus.domain.names import check_count, sorted_set
from animus.sdk.files import Unreadable
from animus.sdk.tables import arrow_type

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

MEMORY_LIMIT = "1GB"
FIRST_ROWS = 10_000
BUFFER_BYTES = 4 << 20  # of CSV that is read at a time; twice the longest line

FORMATS = {
    ".csv": "csv",
    ".csv.gz": "csv",
    ".tsv": "csv",
    ".tsv.gz": "csv",
    ".parquet": "parquet",
    ".jsonl": "jsonl",
    ".jsonl.gz": "jsonl",
    ".ndjson": "jsonl",
    ".ndjson.gz": "jsonl",
}

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


@dataclass(frozen=True, slots=True)
class OpenTable:
    """A table that SQL can read: the relation `data`, and of each column the expression that is its values."""

    connection: "DuckDBPyConnection"
    columns: tuple[Column, ...]
    expressions: tuple[str, ...]
    row_count: int


@contextmanager
def open_table(path: Path, memory_limit: str, scratch: Path | None) -> Iterator[OpenTable]:
    """Opens a table; text is parsed once into a file below `scratch`, for many questions.

    Raises Invalid for what is no table or not of one format, and Unreadable for what cannot be read as one.
    """
    files = _files(path)
    kind = _format(files[0], path)
    for file in files:
        if _format(file, path) != kind:
            raise Unreadable(path, f"holds files of different formats: {files[0].name} and {file.name}")
    try:
        import duckdb
    except ImportError:
        raise Unreadable(path, "to read tables, install DuckDB: pip install 'animus-control[quality]'") from None

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
        with connection:
            try:
                yield _open(connection, kind, files)
            except duckdb.OutOfMemoryException:
                raise Unreadable(path, f"needs more memory than {memory_limit}") from None
            except duckdb.Error as error:
                raise Unreadable(path, _line(error)) from None


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise Unreadable(path, "is missing", missing=True)
    files = sorted(each for each in path.rglob("*") if not each.is_dir()) if path.is_dir() else [path]
    if not files:
        raise Unreadable(path, "holds no file")
    return files


def _format(file: Path, path: Path) -> str:
    for ending, kind in FORMATS.items():
        if file.name.lower().endswith(ending):
            return kind
    raise Unreadable(path, f"{file.name} is no table: names end in {', '.join(FORMATS)}")


def _open(connection: "DuckDBPyConnection", kind: str, files: list[Path]) -> OpenTable:
    connection.execute("SET TimeZone = 'UTC'; SET enable_progress_bar = false")  # it would go to stdout
    paths = f"[{', '.join(_quoted(_literal_path(file)) for file in files)}]"
    made = "VIEW" if kind == "parquet" else "TABLE"
    if kind == "csv":
        names, source = _csv(files, paths)
    elif kind == "jsonl":
        source = f"read_json({paths}, format = 'newline_delimited', sample_size = -1, maximum_sample_files = 1000000)"
    else:
        source = f"read_parquet({paths})"
    connection.execute(f"CREATE {made} data AS SELECT * FROM {source}")
    relation = connection.table("data")
    if kind == "csv":
        columns, expressions = _text_columns(connection, names)
    else:
        expressions = tuple(_identifier(name) for name in relation.columns)
        columns = tuple(Column(name, _spelt(each)) for name, each in zip(relation.columns, relation.types, strict=True))
    check_count(columns, 0, MAX_COLUMNS, "columns")
    rows = connection.execute("SELECT count(*) FROM data").fetchall()[0][0]
    return OpenTable(connection, columns, expressions, rows)


def _csv(files: list[Path], paths: str) -> tuple[list[str], str]:
    """Names of the columns, and how the files are read. The dialect is fixed: a guess could drop lines."""
    tabs = {".tsv" in file.name.lower() for file in files}
    if len(tabs) > 1:
        raise Unreadable(files[0].parent, "holds both .csv and .tsv")
    delimiter = "\t" if True in tabs else ","
    names = _header(files[0], delimiter)
    for file in files[1:]:
        if _header(file, delimiter) != names:
            raise Unreadable(file, f"has other columns than {files[0].name}")
    columns = ", ".join(f"'c{index}': 'VARCHAR'" for index in range(len(names)))
    options = {
        "auto_detect": "false",
        "header": "true",
        "delim": _quoted(delimiter),
        "quote": _quoted('"'),
        "escape": _quoted('"'),
        "strict_mode": "true",
        "null_padding": "false",
        "buffer_size": str(BUFFER_BYTES),
        "columns": f"{{{columns}}}",
    }
    return names, f"read_csv({paths}, {', '.join(f'{name} = {value}' for name, value in options.items())})"


def _header(file: Path, delimiter: str) -> list[str]:
    opened = gzip.open if file.name.lower().endswith(".gz") else open
    try:
        with opened(file, "rt", encoding="utf-8-sig", newline="") as lines:
            names = next(csv.reader(lines, delimiter=delimiter, strict=True), [])
    except (OSError, UnicodeDecodeError, csv.Error, EOFError) as error:
        raise Unreadable(file, str(error)) from None
    if not names:
        raise Unreadable(file, "has no line of column names")
    sorted_set(tuple(Column(name, "utf8") for name in names), lambda column: column.name, "columns", "name")
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
    values = connection.execute(f"SELECT {', '.join(f'count(c{at})' for at in range(len(names)))} FROM data").fetchall()
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


def _misfits(connection: "DuckDBPyConnection", asked: list[tuple[int, int]], rows: str) -> tuple[int, ...]:
    """How many values of each column asked of do not fit the type asked for."""
    questions = []
    for column, at in asked:
        _, kind, pattern = TEXT_TYPES[at]
        fits = f"regexp_full_match(c{column}, {_quoted(pattern)}) AND TRY_CAST(c{column} AS {kind}) IS NOT NULL"
        if kind == "DOUBLE":  # a number too large is none, and no infinity
            finite = f"isfinite(TRY_CAST(c{column} AS DOUBLE))"
            fits += f" AND ({finite} OR regexp_full_match(c{column}, {_quoted(NOT_FINITE)}))"
        questions.append(f"count(c{column}) FILTER (NOT ({fits}))")
    answer = connection.execute(f"SELECT {', '.join(questions)} FROM (SELECT * FROM data {rows})")
    return tuple(answer.fetchall()[0])


def _spelt(kind: Any) -> str:
    """A type as Arrow spells it. JSON has texts that DuckDB takes for UUIDs; no file says that they are."""
    return "utf8" if kind.id == "uuid" else arrow_type(kind)


def _quoted(text: str) -> str:
    """A literal of SQL."""
    return "'" + text.replace("'", "''") + "'"


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _literal_path(path: Path) -> str:
    """A path whose characters stand for themselves: DuckDB takes it for a pattern."""
    return "".join(f"[{character}]" if character in "*?[" else character for character in str(path.absolute()))


def _line(error: Exception) -> str:
    """The first line of an error of DuckDB, without its kind and without advice."""
    return str(error).strip().splitlines()[0]
