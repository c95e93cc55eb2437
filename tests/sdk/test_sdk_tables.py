"""Columns and rows of tables: each type, each format, names that could mislead, and files that are no tables."""

import gzip
import sys
from pathlib import Path

import duckdb
import pytest

from animus.domain.dataset import Column
from animus.domain.errors import Invalid
from animus.sdk.files import Unreadable
from animus.sdk.tables import FORMATS, Table, describe

# By the Arrow-style name: a value in duckdb's SQL.
VALUES = {
    "bool": "true",
    **{f"int{bits}": f"1::{name}" for bits, name in ((8, "INT1"), (16, "INT2"), (32, "INT4"), (64, "INT8"))},
    **{f"uint{8 * size}": f"1::UINT{8 * size}" for size in (1, 2, 4, 8)},
    "float32": "1::FLOAT",
    "float64": "1::DOUBLE",
    "utf8": "'x'",
    "binary": "'x'::BLOB",
    "date32": "DATE '2026-01-02'",
    "time64[us]": "TIME '10:00:00'",
    "timestamp[us]": "TIMESTAMP '2026-01-02 03:04:05'",
    "timestamp[ns]": "TIMESTAMP_NS '2026-01-02 03:04:05'",
    "timestamp[us, UTC]": "TIMESTAMPTZ '2026-01-02 03:04:05Z'",
    "decimal128(10, 2)": "1.5::DECIMAL(10, 2)",
    "list<int32>": "[1::INT4]",
    "struct<a: int64, b: list<struct<c: utf8>>>": "{'a': 1::INT8, 'b': [{'c': 'x'}]}",
    "map<utf8, float64>": "MAP {'a': 1::DOUBLE}",
    "fixed_size_binary[16]": "uuid()",
}
NAMED = {f"c{index}": kind for index, kind in enumerate(VALUES)}


def write_parquet(path: Path, rows: int, *values: str) -> None:
    """A Parquet file of so many equal rows."""
    columns = ", ".join(f"{value} AS c{index}" for index, value in enumerate(values))
    with duckdb.connect() as database:
        database.execute(f"COPY (SELECT {columns} FROM range({rows})) TO '{path}' (FORMAT parquet)")


def refusal(path: Path) -> str:
    """Why a path is no table."""
    with pytest.raises(Invalid) as caught:
        describe(path)
    return caught.value.message


def test_each_type_of_parquet_has_its_arrow_name(tmp_path: Path) -> None:
    """Integers, floats, texts, times, decimals, and types inside types; rows are counted."""
    write_parquet(tmp_path / "all.parquet", 3, *VALUES.values())
    table = describe(tmp_path / "all.parquet")
    assert {column.name: column.type for column in table.columns} == NAMED
    assert table.row_count == 3


ROW = ("true", "1", "0.5", "2026-01-02", "2026-01-02 03:04:05", '"a\nb"', "1", "")
OTHER = ("false", "", "2", "2026-01-03", "2026-01-02T03:04:06.5", "\u00e4", "x", "")
TYPES_OF_ROWS = ["bool", "int64", "float64", "date32", "timestamp[us]", "utf8", "utf8", "utf8"]


@pytest.mark.parametrize(("name", "mark"), [("t.csv", ","), ("T.CSV.GZ", ","), ("t.TSV", "\t"), ("t.tsv.gz", "\t")])
def test_the_values_of_csv_say_what_its_columns_are(tmp_path: Path, name: str, mark: str) -> None:
    """One type for each column that all of its values are of; a column without values is text."""
    names = ("flag", "count", "share", "day", "time", "text", "mixed", "none")
    data = "".join(mark.join(line) + "\r\n" for line in (names, ROW, OTHER)).encode("utf-8-sig")
    (tmp_path / name).write_bytes(gzip.compress(data) if name.lower().endswith(".gz") else data)
    table = describe(tmp_path / name)
    assert [(column.name, column.type) for column in table.columns] == list(zip(names, TYPES_OF_ROWS, strict=True))
    assert table.row_count == 2


def test_the_lines_of_json_say_what_its_columns_are(tmp_path: Path) -> None:
    """Keys of all lines; mixed values, what looks like a UUID, and what is null throughout are text."""
    line = '{"a": 1, "b": "5f0c3a52-6f6e-4a5f-8b0a-1f2e3d4c5b6a", "c": null, "d": [[], null], "e": {"x": 0.5}}\n'
    for name, data in (("t.jsonl", line.encode()), ("t.NDJSON.gz", gzip.compress(line.encode()))):
        (tmp_path / name).write_bytes(data)
    assert describe(tmp_path).row_count == 2
    (tmp_path / "u.jsonl").write_text('{"f": true}\n{"a": "x"}\n')
    table = describe(tmp_path)
    kinds = {"a": "utf8", "b": "utf8", "c": "utf8", "d": "list<list<utf8>>", "e": "struct<x: float64>", "f": "bool"}
    assert {column.name: column.type for column in table.columns} == kinds
    assert table.row_count == 4


@pytest.mark.parametrize(
    ("name", "rows", "row", "kinds"),
    [
        ("t.csv", "n\n" + "1\n" * 30_000, "x\n", ("int64", "utf8")),
        ("t.csv", "n\n" + "1\n" * 30_000, "0.5\n", ("int64", "float64")),
        ("t.jsonl", '{"n": 1}\n' * 30_000, '{"n": "x"}\n', ("int64", "utf8")),
    ],
)
def test_a_type_depends_on_every_row_and_on_no_sample(
    tmp_path: Path, name: str, rows: str, row: str, kinds: tuple[str, str]
) -> None:
    """One other value after thirty thousand numbers makes the column another."""
    for text, kind in zip((rows, rows + row), kinds, strict=True):
        (tmp_path / name).write_text(text)
        assert [column.type for column in describe(tmp_path / name).columns] == [kind]


def test_a_folder_is_one_table_of_its_files(tmp_path: Path) -> None:
    """Rows are added up; other columns, another format, and no file at all are refused by their path."""
    assert "no file" in refusal(tmp_path)
    (tmp_path / "below").mkdir()
    write_parquet(tmp_path / "a.parquet", 2, "1::INT4")
    write_parquet(tmp_path / "below" / "b.parquet", 3, "2::INT4")
    assert describe(tmp_path).row_count == 5
    write_parquet(tmp_path / "c.parquet", 1, "1::INT8")
    assert f"has other columns than {tmp_path}/a.parquet: {tmp_path}/c.parquet" in refusal(tmp_path)
    (tmp_path / "c.parquet").unlink()
    (tmp_path / "d.csv").write_text("c0\n1\n")
    assert f"more formats than one, parquet and csv: {tmp_path}" in refusal(tmp_path)
    (tmp_path / "README").touch()
    assert f"{tmp_path}/README" in refusal(tmp_path)


def test_the_files_of_a_csv_table_have_the_same_header(tmp_path: Path) -> None:
    """Its file is named that has another; so is the one that has a line too long."""
    (tmp_path / "a.csv").write_text('a,"A"\n1,2\n')
    (tmp_path / "b.csv").write_text("a,A\nx,4\n")
    assert describe(tmp_path) == Table((Column("a", "utf8"), Column("A", "int64")), 2)
    (tmp_path / "b.csv").write_text("a,b\n1,2\n")
    assert f"has other columns than {tmp_path}/a.csv: {tmp_path}/b.csv" in refusal(tmp_path)
    (tmp_path / "b.csv").write_text("a,A\n1,2,3\n")
    assert refusal(tmp_path).endswith(f"CSV Error on Line: 2: {tmp_path}/b.csv")


def test_a_name_stands_for_no_other_file_and_for_no_column(tmp_path: Path) -> None:
    """Characters that are patterns to DuckDB are characters; a folder named `key=value` adds no column."""
    folder = tmp_path / "year=2026" / "it's [1]*"
    folder.mkdir(parents=True)
    for index, name in enumerate(names := ("[ab].csv", "a.csv", "*.csv", "?.csv", "**.csv", "{a,b}.csv")):
        (folder / name).write_text("x\n" + "1\n" * (index + 1))
    (folder / "a.jsonl").write_text('{"x": 1}\n')
    write_parquet(tmp_path / "a.parquet", 1, "1::INT8")
    (tmp_path / "a.parquet").rename(folder / "a.parquet")
    for index, name in enumerate(names):
        assert describe(folder / name) == Table((Column("x", "int64"),), index + 1)
    assert describe(folder / "a.jsonl") == Table((Column("x", "int64"),), 1)
    assert describe(folder / "a.parquet") == Table((Column("c0", "int64"),), 1)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("t.csv", b""),
        ("t.csv", bytes(range(256)) * 9),
        ("t.csv", b"a\n\xff\n"),
        ("t.csv", b"a,b\n1,2\n1,2,3\n"),
        ("t.csv", b"a,b\n1,2\n3\n"),
        ("t.csv", b'a,b\n"1,2\n'),
        ("t.csv", b"a,a\n1,2\n"),
        ("t.csv", b"a,\n1,2\n"),
        ("t.csv", b"a" * 256 + b"\n1\n"),
        ("t.csv", b"a," * 10_000 + b"a\n"),
        ("t.csv", b"a" * (9 << 20)),
        ("t.csv.gz", b"a\n1\n"),
        ("t.tsv", b"a\tb\n1,2\n"),
        ("t.parquet", b""),
        ("t.parquet", b"a,b\n1,2\n"),
        ("t.parquet", b"PAR1" + b"\x00" * 99 + b"PAR1"),
        ("t.jsonl", b""),
        ("t.jsonl", b'{"a": 1}\n{"a": \n'),
        ("t.jsonl", b'{"a": 1}\n[2]\n'),
        ("t.json", b"{}"),
        ("t", b"a\n1\n"),
    ],
)
def test_a_file_that_is_no_table_is_refused_by_its_path(tmp_path: Path, name: str, data: bytes) -> None:
    """Empty, binary, ragged, cut, with an open quote, of names that are too long, empty, too many or twice."""
    (tmp_path / name).write_bytes(data)
    said = refusal(tmp_path / name)
    assert said.endswith(str(tmp_path / name))
    assert len(said.splitlines()) == 1


def test_what_cannot_be_read_and_what_is_a_link_are_refused(tmp_path: Path) -> None:
    """As where digests are made: a link to a folder is not passed over either. Nor is the end of a stream."""
    with pytest.raises(Unreadable, match="missing"):
        describe(tmp_path / "t.csv")
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(b"a\n1\n")[:-9])
    with pytest.raises(Unreadable, match=r"t.csv.gz: cannot be read: .*end of GZIP stream"):
        describe(tmp_path / "t.csv.gz")
    (tmp_path / "link.csv").symlink_to("t.csv.gz")
    assert "no plain file" in refusal(tmp_path / "link.csv")
    (tmp_path / "link.csv").unlink()
    (tmp_path / "link").symlink_to(tmp_path)
    assert refusal(tmp_path).endswith(f"is no plain file: {tmp_path}/link")


def test_a_file_that_was_cut_is_refused(tmp_path: Path) -> None:
    """A Parquet file without its end has no footer."""
    write_parquet(tmp_path / "t.parquet", 9, "1")
    whole = (tmp_path / "t.parquet").read_bytes()
    (tmp_path / "t.parquet").write_bytes(whole[:-1])
    assert refusal(tmp_path / "t.parquet").startswith("path: is no table that can be read")


def test_the_memory_that_a_table_may_take_is_bounded(tmp_path: Path) -> None:
    """What does not fit is refused by its path, and nothing is left in the folder for the time."""
    (tmp_path / "t.csv").write_text("a\n1\n")
    with pytest.raises(Unreadable, match=rf"{tmp_path}/t.csv: cannot be read: Out of Memory"):
        describe(tmp_path / "t.csv", "100KB", tmp_path)
    with pytest.raises(Invalid, match="memoryLimit"):
        describe(tmp_path / "t.csv", "much", tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == ["t.csv"]


def test_without_duckdb_it_is_said_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The base package has none."""
    monkeypatch.setitem(sys.modules, "duckdb", None)
    (tmp_path / "t.csv").write_text("a\n1\n")
    assert "install animus-control[quality]" in refusal(tmp_path / "t.csv")


def test_every_format_is_tested() -> None:
    """Whoever adds one adds its tests."""
    assert set(FORMATS.values()) == {"csv", "tsv", "parquet", "jsonl"}
