"""Columns and rows of CSV and Parquet files, read by duckdb (extra `quality`). See docs/dataset.md.

Files are read as streams, in memory that does not grow with them: a Parquet file's schema and row count are in its
footer; the first 20,480 rows of a CSV file say what its types are, and all others are checked against them. Nothing is
fetched from anywhere.
"""

import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from animus.domain.dataset import Column
from animus.domain.errors import Invalid, invalid
from animus.sdk.files import Unreadable
from animus.sdk.hashing import text_of

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection, DuckDBPyRelation
    from duckdb.sqltypes import DuckDBPyType

MEMORY = "128MB"
# CSV as RFC 4180 has it, with a header line. To let all rows say what the types are would load the file.
CSV: dict[str, Any] = {
    "header": True,
    "quotechar": '"',
    "escapechar": '"',
    "strict_mode": True,
    "sample_size": 20_480,
    "skiprows": 0,
}
READERS: "dict[str, Callable[[DuckDBPyConnection, str], DuckDBPyRelation]]" = {
    ".csv": lambda database, name: database.read_csv(name, delimiter=",", **CSV),
    ".tsv": lambda database, name: database.read_csv(name, delimiter="\t", **CSV),
    ".parquet": lambda database, name: database.read_parquet(name),
}
READ_EACH = "count(*), count(COLUMNS(*))"
TYPES = {
    "boolean": "bool", "tinyint": "int8", "smallint": "int16", "integer": "int32", "bigint": "int64",
    "utinyint": "uint8", "usmallint": "uint16", "uinteger": "uint32", "ubigint": "uint64",
    "float": "float32", "double": "float64", "varchar": "utf8", "blob": "binary", "date": "date32",
    "time": "time64[us]", "time_ns": "time64[ns]", "timestamp_s": "timestamp[s]", "timestamp_ms": "timestamp[ms]",
    "timestamp": "timestamp[us]", "timestamp_ns": "timestamp[ns]", "timestamp with time zone": "timestamp[us, UTC]",
    "enum": "dictionary<utf8>", "uuid": "fixed_size_binary[16]", "interval": "month_day_nano_interval",
    "hugeint": "decimal128(38, 0)",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Table:
    """What a file, or the files of a folder together, hold as a table."""

    columns: tuple[Column, ...]
    row_count: int


def describe(path: Path) -> Table:
    """The columns, with Arrow-style types, and the rows of a CSV or Parquet file, or of a folder of files of one kind.

    Raises Invalid, naming the path, where a file is of another kind or broken, its columns cannot be written down, or
    the files of a folder have other columns than each other; Unreadable where one cannot be read; Invalid where duckdb
    is not installed.
    """
    files = list(_files(path))
    kinds = {file.suffix.lower() for file in files}
    for file in files:
        if file.suffix.lower() not in READERS:
            raise invalid("path", f"is neither {', '.join(READERS)}: {text_of(file)}")
    if len(kinds) > 1:
        raise invalid("path", f"has files of more kinds than one, {', '.join(sorted(kinds))}: {text_of(path)}")
    with open_database() as database:
        tables = [_table(database, file) for file in files]
    for file, table in zip(files, tables, strict=True):
        if table.columns != tables[0].columns:
            raise invalid("path", f"has other columns than {text_of(files[0])}: {text_of(file)}")
    return Table(tables[0].columns, sum(table.row_count for table in tables))


def open_database(memory: str = MEMORY) -> "DuckDBPyConnection":
    """A duckdb database in memory that fetches nothing. Raises Invalid where duckdb is not installed."""
    try:
        import duckdb
    except ImportError:
        raise invalid("", "reading tables needs duckdb: install animus-control[quality]") from None
    database = duckdb.connect(":memory:")
    database.execute("SET autoinstall_known_extensions = false; SET autoload_known_extensions = false")
    database.execute("SET memory_limit = ?", [memory])
    return database


def read_table(database: "DuckDBPyConnection", file: Path) -> "DuckDBPyRelation":
    """The table of a file, by the end of its name, which READERS has. Raises as duckdb does."""
    # A name is a pattern to duckdb: what would stand for other names is made to stand for itself.
    return READERS[file.suffix.lower()](database, re.sub(r"([*?\[])", r"[\1]", str(file.absolute())))


def arrow_type(kind: "DuckDBPyType") -> str:
    """The Arrow-style name of a type. Raises Invalid for one that has none."""
    if kind.id == "decimal":
        (_, precision), (_, scale) = kind.children
        return f"decimal128({precision}, {scale})"
    if kind.id == "list":
        return f"list<{arrow_type(_type(kind.children[0][1]))}>"
    if kind.id == "array":
        (_, item), (_, size) = kind.children
        return f"fixed_size_list<{arrow_type(_type(item))}>[{size}]"
    if kind.id == "struct":
        fields = ", ".join(f"{name}: {arrow_type(_type(child))}" for name, child in kind.children)
        return f"struct<{fields}>"
    if kind.id == "map":
        key, value = (arrow_type(_type(child)) for _, child in kind.children)
        return f"map<{key}, {value}>"
    if kind.id not in TYPES:
        raise invalid("type", f"is {kind}, which has no Arrow-style name here")
    return TYPES[kind.id]


def _type(child: object) -> "DuckDBPyType":
    return child  # type: ignore[return-value]  # of a nested type, not a number


def _files(path: Path) -> Iterator[Path]:
    """The file, or the files below a folder by their paths."""
    try:
        mode = path.lstat().st_mode
        found = sorted(each for each in path.rglob("*") if not each.is_dir()) if stat.S_ISDIR(mode) else [path]
        modes = [each.lstat().st_mode for each in found]
        for each in found:
            with each.open("rb"):
                pass
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        reason = "is missing" if missing else f"cannot be read: {error.strerror or error}"
        raise Unreadable(Path(error.filename or path), reason, missing=missing) from None
    if not found:
        raise invalid("path", f"has no file below it: {text_of(path)}")
    for each, mode in zip(found, modes, strict=True):
        if not stat.S_ISREG(mode):
            raise invalid("path", f"is no plain file: {text_of(each)}")
        yield each


def _table(database: "DuckDBPyConnection", file: Path) -> Table:
    import duckdb

    if not file.stat().st_size:
        raise invalid("path", f"is empty: {text_of(file)}")
    try:
        relation = read_table(database, file)
        names, kinds = relation.columns, relation.types
        # Counting the values of a column reads each of them by its type.
        rows = relation.aggregate("count(*)" if file.suffix.lower() == ".parquet" else READ_EACH).fetchall()
    except duckdb.Error as error:
        said = str(error).partition("\n")[0]
        raise invalid("path", f"is no {file.suffix.lower()} file that can be read, {said}: {text_of(file)}") from None
    columns = []
    for name, kind in zip(names, kinds, strict=True):
        try:
            columns.append(Column(name, arrow_type(kind)))
        except Invalid as error:
            each = error.violations[0]
            raise invalid(
                "path", f"has a column {name!r} whose {each.field} {each.description}: {text_of(file)}"
            ) from None
    return Table(tuple(columns), rows[0][0])
