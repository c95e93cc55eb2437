"""Columns and rows of tables: each type, files that are broken, and memory that does not grow with the file."""

import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

from animus.domain.errors import Invalid
from animus.sdk.files import Unreadable
from animus.sdk.tables import READERS, describe

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


def test_the_values_of_csv_say_what_its_columns_are(tmp_path: Path) -> None:
    """One type for each column that all of its values are of; what is left out in a row is no other type."""
    for name, mark in (("t.csv", ","), ("t.TSV", "\t")):
        lines = (
            ("flag", "count", "share", "day", "time", "text", "mixed"),
            ("true", "1", "0.5", "2026-01-02", "2026-01-02 03:04:05", '"a\nb"', "1"),
            ("false", "", "2", "2026-01-03", "2026-01-02 03:04:06.5", "ä", "x"),
        )
        (tmp_path / name).write_text("".join(mark.join(line) + "\n" for line in lines))
        table = describe(tmp_path / name)
        kinds = ["bool", "int64", "float64", "date32", "timestamp[us]", "utf8", "utf8"]
        assert [(column.name, column.type) for column in table.columns] == list(zip(lines[0], kinds, strict=True))
        assert table.row_count == 2


def test_a_folder_is_one_table_of_its_files(tmp_path: Path) -> None:
    """Rows are added up; another column, another kind of file, and no file at all are refused by their path."""
    assert "no file" in refusal(tmp_path)
    (tmp_path / "below").mkdir()
    write_parquet(tmp_path / "a.parquet", 2, "1::INT4")
    write_parquet(tmp_path / "below" / "b.parquet", 3, "2::INT4")
    assert describe(tmp_path).row_count == 5
    write_parquet(tmp_path / "c.parquet", 1, "1::INT8")
    assert f"has other columns than {tmp_path}/a.parquet: {tmp_path}/c.parquet" in refusal(tmp_path)
    (tmp_path / "c.parquet").unlink()
    (tmp_path / "d.csv").write_text("c0\n1\n")
    assert "more kinds than one, .csv, .parquet" in refusal(tmp_path)
    (tmp_path / "README").touch()
    assert f"{tmp_path}/README" in refusal(tmp_path)


def test_a_name_stands_for_no_other_file(tmp_path: Path) -> None:
    """Characters that are patterns to duckdb are characters."""
    for index, name in enumerate(("[ab].csv", "a.csv", "*.csv", "?.csv", "**.csv")):
        (tmp_path / name).write_text("x\n" + "1\n" * (index + 1))
    for index, name in enumerate(("[ab].csv", "a.csv", "*.csv", "?.csv", "**.csv")):
        assert describe(tmp_path / name).row_count == index + 1


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("t.csv", b""),
        ("t.csv", bytes(range(256)) * 9),
        ("t.csv", b"a,b\n1,2\n1,2,3\n"),
        ("t.csv", b"a,b\n1,2\n3\n"),
        ("t.csv", b'a,b\n"1,2\n'),
        ("t.csv", b"a\n" + b"1\n" * 30_000 + b"x\n"),
        ("t.csv", b"a" * 256 + b"\n1\n"),
        ("t.parquet", b""),
        ("t.parquet", b"a,b\n1,2\n"),
        ("t.parquet", b"PAR1" + b"\x00" * 99 + b"PAR1"),
        ("t.json", b"{}"),
        ("t", b"a\n1\n"),
    ],
)
def test_a_file_that_is_no_table_is_refused_by_its_path(tmp_path: Path, name: str, data: bytes) -> None:
    """Empty, binary, ragged, with an open quote, of other types further down, with too long a name, of another kind."""
    (tmp_path / name).write_bytes(data)
    said = refusal(tmp_path / name)
    assert said.endswith(str(tmp_path / name))
    assert len(said.splitlines()) == 1


def test_what_cannot_be_read_and_what_is_a_link_are_refused(tmp_path: Path) -> None:
    """As where digests are made."""
    with pytest.raises(Unreadable, match="missing"):
        describe(tmp_path / "t.csv")
    (tmp_path / "t.csv").write_text("a\n1\n")
    (tmp_path / "link.csv").symlink_to("t.csv")
    assert "no plain file" in refusal(tmp_path / "link.csv")


def test_a_file_that_was_cut_is_refused(tmp_path: Path) -> None:
    """A Parquet file without its end has no footer."""
    write_parquet(tmp_path / "t.parquet", 9, "1")
    whole = (tmp_path / "t.parquet").read_bytes()
    (tmp_path / "t.parquet").write_bytes(whole[:-1])
    assert ".parquet file that can be read" in refusal(tmp_path / "t.parquet")


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """A CSV file larger than all that duckdb may hold is described, with no more than that beside the program."""
    with (tmp_path / "large.csv").open("w") as file:
        file.write("a,b\n")
        for _ in range(20):
            file.write(f"1,{'x' * 990}\n" * 8_000)
    script = (
        "import resource, sys, duckdb; from pathlib import Path; from animus.sdk.tables import describe;"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss;"
        "print(describe(Path(sys.argv[1])).row_count);"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    arguments = [sys.executable, "-c", script, str(tmp_path / "large.csv")]
    rows, grown = subprocess.run(arguments, capture_output=True, text=True, check=True).stdout.split()
    assert (tmp_path / "large.csv").stat().st_size > 150 << 20
    assert (int(rows), int(grown) < 145 << 10) == (160_000, True), grown


def test_without_duckdb_it_is_said_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The base package has none."""
    monkeypatch.setitem(sys.modules, "duckdb", None)
    (tmp_path / "t.csv").write_text("a\n1\n")
    assert "install animus-control[quality]" in refusal(tmp_path / "t.csv")


def test_every_kind_of_file_is_tested() -> None:
    """Whoever adds a kind adds its tests."""
    assert READERS.keys() == {".csv", ".tsv", ".parquet"}
