"""Digests of files and folders."""

import hashlib
import os
from pathlib import Path

import pytest

from animus.domain import document
from animus.domain.dataset import Column
from animus.domain.errors import Invalid
from animus.sdk import dataset_version, file_digest, manifest


def test_a_file_digest_is_the_sha256_of_its_bytes(tmp_path: Path) -> None:
    """Empty, small and larger than any buffer, a file's digest is what sha256sum prints."""
    for size in (0, 1, 3_000_001):
        data = bytes(index % 251 for index in range(size))
        (tmp_path / "file").write_bytes(data)
        assert file_digest(tmp_path / "file") == "sha256:" + hashlib.sha256(data).hexdigest()


def test_a_manifest_lists_every_file_by_its_relative_path_in_order(tmp_path: Path) -> None:
    """Nested and hidden files are listed, sorted by path as a whole, with sizes; empty folders are not."""
    for path, data in (("b/x.csv", b"12"), ("b.csv", b"1"), ("a/ä", b""), (".hidden", b"123")):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(data)
    (tmp_path / "empty").mkdir()
    found = [(file.path, file.size_bytes) for file in manifest(tmp_path).files]
    assert found == [(".hidden", 3), ("a/ä", 0), ("b.csv", 1), ("b/x.csv", 2)]


def test_the_content_digest_depends_on_names_and_bytes_and_not_on_where_the_folder_is(tmp_path: Path) -> None:
    """Two copies have one version; another byte, name or file makes another."""
    digests = []
    for index, files in enumerate(({"a": "1"}, {"a": "1"}, {"a": "2"}, {"b": "1"}, {"a": "1", "b": ""})):
        folder = tmp_path / str(index)
        folder.mkdir()
        for name, text in files.items():
            (folder / name).write_text(text)
        version = dataset_version("letters", folder, "text/plain", "", ())
        assert version.content_digest == document.digest(document.dump(manifest(folder)))
        digests.append(version.content_digest)
    assert digests[0] == digests[1]
    assert len(set(digests)) == 4


def test_a_dataset_version_holds_what_the_caller_says_and_what_the_folder_has(tmp_path: Path) -> None:
    """Columns keep their order, the size is the sum of the files' sizes."""
    (tmp_path / "one.csv").write_text("123")
    (tmp_path / "two.csv").write_text("4567")
    columns = [Column("z", "int64"), Column("a", "utf8")]
    version = dataset_version("numbers", tmp_path, "text/csv", "s3://bucket/numbers", columns)
    assert (version.size_bytes, [column.name for column in version.columns]) == (7, ["z", "a"])
    assert (version.dataset_id, version.media_type, version.uri) == ("numbers", "text/csv", "s3://bucket/numbers")


@pytest.mark.parametrize("make", ["link to a file", "link to a folder", "pipe"])
def test_what_is_neither_file_nor_folder_is_refused(tmp_path: Path, make: str) -> None:
    """A link or a pipe has no bytes of its own, so nothing with one in it has a digest; nothing waits for a writer."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("1")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "good").write_text("1")
    if make == "pipe":
        os.mkfifo(folder / "odd")
    else:
        (folder / "odd").symlink_to(outside / "file" if make == "link to a file" else outside)
    for refused in (lambda: manifest(folder), lambda: file_digest(folder / "odd")):
        with pytest.raises(Invalid, match="odd"):
            refused()


def test_an_empty_folder_is_no_dataset(tmp_path: Path) -> None:
    """A manifest has at least one file."""
    with pytest.raises(Invalid, match="files"):
        manifest(tmp_path)
