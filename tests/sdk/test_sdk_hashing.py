"""Digests of files and folders."""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from animus.domain import document
from animus.domain.dataset import Column, File, FileManifest
from animus.domain.errors import Invalid
from animus.sdk import dataset_version, file_digest, hashing, manifest
from animus.sdk.files import Unreadable


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
        version = dataset_version("letters", folder, "text/plain", ())
        assert version.content_digest == document.digest(document.dump(manifest(folder)))
        digests.append(version.content_digest)
    assert digests[0] == digests[1]
    assert len(set(digests)) == 4


def test_a_dataset_version_holds_what_the_caller_says_and_what_the_folder_has(tmp_path: Path) -> None:
    """Columns keep their order, the size is the sum of the files' sizes."""
    (tmp_path / "one.csv").write_text("123")
    (tmp_path / "two.csv").write_text("4567")
    columns = [Column("z", "int64"), Column("a", "utf8")]
    version = dataset_version("numbers", tmp_path, "text/csv", columns, source="the lab")
    assert (version.size_bytes, [column.name for column in version.columns]) == (7, ["z", "a"])
    assert (version.dataset_id, version.media_type, version.source) == ("numbers", "text/csv", "the lab")


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


# Laws.

NAMES = st.text("abcä .-_", min_size=1, max_size=6).filter(lambda name: name not in (".", ".."))
TREES = st.dictionaries(NAMES, st.binary(max_size=300), min_size=1, max_size=8)
SEVERAL = settings(max_examples=40, deadline=None)


def naive(folder: Path) -> FileManifest:
    """The manifest by the plainest way: each file read whole, in the order in which the folder is listed."""
    files = []
    for path in folder.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            files.append(
                File(path.relative_to(folder).as_posix(), len(data), f"sha256:{hashlib.sha256(data).hexdigest()}")
            )
    return FileManifest(tuple(files))


def write(folder: Path, tree: dict[str, bytes], *, backwards: bool = False) -> None:
    """Writes the files in one order or the other, each second one below a folder."""
    for index, name in sorted(enumerate(tree), reverse=backwards):
        path = folder / ("below" if index % 2 else ".") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(tree[name])


@given(TREES, st.integers(1, 400), st.integers(1, 5))
@SEVERAL
def test_any_folder_has_the_digest_of_the_plainest_way_by_any_block_size_and_number_of_threads(
    tree: dict[str, bytes], block_bytes: int, threads: int
) -> None:
    """Blocks of any size, any number of threads and any order of writing make the one manifest; all bytes are told."""
    told: list[int] = []
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as name:
        patch.setattr(hashing, "BLOCK_BYTES", block_bytes)
        patch.setattr(hashing, "MAX_THREADS", threads)
        one, two = Path(name) / "one", Path(name) / "two"
        write(one, tree)
        write(two, tree, backwards=True)
        found = manifest(one, told.append)
        assert found == naive(one) == manifest(two)
        assert sum(told) == found.size_bytes
        assert max(told, default=0) <= block_bytes


@given(st.binary(max_size=2_000), st.integers(1, 700))
@SEVERAL
def test_a_single_file_has_the_digest_of_its_bytes_by_any_block_size(data: bytes, block_bytes: int) -> None:
    """As a content it has no files, and its own size."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(hashing, "BLOCK_BYTES", block_bytes)
        path = Path(folder) / "file"
        path.write_bytes(data)
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        assert file_digest(path) == digest
        assert hashing.content(path) == hashing.Content(digest, len(data), ())
        version = dataset_version("one", path, "text/csv", ())
        assert (version.content_digest, version.size_bytes, version.files) == (digest, len(data), ())


@given(TREES, st.data())
@SEVERAL
def test_any_changed_byte_file_or_name_changes_the_digest(tree: dict[str, bytes], data: st.DataObject) -> None:
    """A byte flipped, put in or taken away, a file renamed, added or removed."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, tree)
        before = hashing.content(folder).digest
        victim = data.draw(st.sampled_from(sorted(path for path in folder.rglob("*") if path.is_file())))
        held = victim.read_bytes()
        change = data.draw(st.sampled_from(["flip", "append", "cut", "rename", "add", "remove"]))
        if change == "flip" and held:
            at = data.draw(st.integers(0, len(held) - 1))
            victim.write_bytes(held[:at] + bytes([held[at] ^ 1]) + held[at + 1 :])
        elif change == "cut" and held:
            victim.write_bytes(held[:-1])
        elif change == "rename":
            victim.rename(victim.with_name("renamed"))
        elif change == "remove" and len(tree) > 1:
            victim.unlink()
        elif change == "add":
            (folder / "added").touch()
        else:
            victim.write_bytes(held + b"0")
        assert hashing.content(folder).digest != before
        shutil.rmtree(folder / "below", ignore_errors=True)


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """A process that hashes a file of 256 MB has hardly more memory than one that hashes nothing."""
    with (tmp_path / "large").open("wb") as file:
        file.truncate(256 << 20)
    (tmp_path / "small").touch()
    program = (
        "import resource, sys; from pathlib import Path; from animus.sdk import file_digest;"
        "file_digest(Path(sys.argv[1])); print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    environment = {"PYTHONPATH": os.pathsep.join(sys.path)}
    peaks = [
        int(subprocess.check_output([sys.executable, "-c", program, tmp_path / name], env=environment))
        for name in ("small", "large")
    ]
    assert peaks[1] - peaks[0] < 16 << 10


# What is refused.


def when_first_told(act: Callable[[], object]) -> Callable[[int], None]:
    """A progress callback that does something once, while files are read."""
    pending = [act]

    def progress(_size: int) -> None:
        if pending:
            pending.pop()()

    return progress


@pytest.fixture
def blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks so small that a file of a few bytes takes several, and one thread, so that their order is known."""
    monkeypatch.setattr(hashing, "BLOCK_BYTES", 2)
    monkeypatch.setattr(hashing, "MAX_THREADS", 1)


def rewritten(path: Path) -> None:
    """Other bytes of the same number under the same time: what a copy tool does that keeps times."""
    times = path.stat()
    path.write_bytes(bytes(reversed(path.read_bytes())))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.write_bytes(b"123456789"),
        lambda path: path.write_bytes(b"1"),
        lambda path: os.truncate(path, 0),
        rewritten,
    ],
    ids=["grown", "shrunk", "emptied", "rewritten"],
)
@pytest.mark.usefixtures("blocks")
def test_a_file_that_changes_while_it_is_read_has_no_digest(tmp_path: Path, change: Callable[[Path], None]) -> None:
    """The error names it, whether the file is asked for or its folder."""
    path = tmp_path / "moving"
    for read in (lambda told: file_digest(path, told), lambda told: manifest(tmp_path, told)):
        path.write_bytes(b"123456")
        with pytest.raises(Unreadable, match="moving: changed while it was read"):
            read(when_first_told(lambda: change(path)))


@pytest.mark.usefixtures("blocks")
def test_a_file_that_never_ends_is_given_up(tmp_path: Path) -> None:
    """One that grows by as much as is read is refused as soon as it is longer than it was."""
    path = tmp_path / "growing"
    path.write_bytes(b"123456")

    def grow(size: int) -> None:
        with path.open("ab") as file:
            file.write(bytes(2 * size))

    with pytest.raises(Unreadable, match="growing: changed"):
        file_digest(path, grow)


@pytest.mark.parametrize("change", ["added", "removed", "replaced"])
@pytest.mark.usefixtures("blocks")
def test_a_listing_that_changes_meanwhile_is_an_error(tmp_path: Path, change: str) -> None:
    """A name that comes, one that goes before it was read, and another file under the same name."""
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "first").write_bytes(b"12345678")
    (tmp_path / "below" / "second").write_bytes(b"1")

    def act() -> None:
        if change == "added":
            (tmp_path / "below" / "third").touch()
        elif change == "removed":
            (tmp_path / "below" / "second").unlink()
        else:
            (tmp_path / "other").write_bytes(b"1")
            (tmp_path / "other").rename(tmp_path / "below" / "second")

    names = {"added": "below: changed", "removed": "second: is missing", "replaced": "second: changed"}
    with pytest.raises(Unreadable, match=names[change]):
        manifest(tmp_path, when_first_told(act))


def test_a_name_that_is_not_utf_8_is_refused_in_text_that_can_be_printed(tmp_path: Path) -> None:
    """A file's name or a folder's; the error shows the byte."""
    odd = os.fsdecode(bytes(tmp_path) + b"/odd-\xff")
    Path(odd).mkdir()
    Path(odd, "file").touch()
    (tmp_path / "good").touch()
    with pytest.raises(Invalid, match=r"is not UTF-8: .*odd-\\xff/file") as found:
        manifest(tmp_path)
    assert found.value.message.isprintable()


@pytest.mark.parametrize("name", ["a\\b", "a\nb", "a\tb", "\x1b[31m", "/".join(["d" * 200] * 6)])
def test_a_path_that_no_manifest_can_hold_is_refused_before_anything_is_read(tmp_path: Path, name: str) -> None:
    """Backslashes, control characters and more than 1,024 bytes, by name, in one line."""
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("1")
    (tmp_path / "good").write_text("1")
    told: list[int] = []
    with pytest.raises(Invalid, match=r"^path: ") as found:
        manifest(tmp_path, told.append)
    assert hashing.text_of(path) in found.value.message
    assert found.value.message.isprintable()
    assert told == []


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_is_missing_is_named(tmp_path: Path, kind: str) -> None:
    """A path that leads nowhere, for each function."""
    read: Callable[[Path], object] = file_digest if kind == "file" else manifest
    for each in (read, hashing.content):
        with pytest.raises(Unreadable, match="nowhere: is missing"):
            each(tmp_path / "nowhere")


def test_a_file_is_no_folder_and_a_link_to_a_folder_is_neither(tmp_path: Path) -> None:
    """Each is named."""
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path)
    for path in (tmp_path / "file", tmp_path / "link"):
        with pytest.raises(Invalid, match=f"is no folder: .*{path.name}"):
            manifest(path)
    with pytest.raises(Invalid, match=r"is no plain file: .*link"):
        hashing.content(tmp_path / "link")


AS_NOBODY = """
import os, sys
from pathlib import Path
from animus.sdk.files import Unreadable
from animus.sdk.hashing import manifest
if os.geteuid() == 0:  # who reads everything
    os.setuid(65534)
try:
    manifest(Path(sys.argv[1]))
except Unreadable as error:
    print(error)
"""


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_may_not_be_read_is_named(kind: str) -> None:
    """A file or a folder without the right to read it."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        path = Path(folder) / "closed"
        path.mkdir() if kind == "folder" else path.touch()
        path.chmod(0)
        environment = {"PYTHONPATH": os.pathsep.join(sys.path)}
        said = subprocess.check_output([sys.executable, "-c", AS_NOBODY, folder], env=environment, text=True)
        path.chmod(0o700)
    assert said == f"{path}: cannot be read: Permission denied\n"


def test_a_file_whose_bytes_cannot_be_read_is_named() -> None:
    """The memory of a process is a plain file, of which the first page is none."""
    with pytest.raises(Unreadable, match="mem: cannot be read: Input/output error"):
        file_digest(Path("/proc/self/mem"))


def test_a_file_that_says_another_size_than_it_has_is_named() -> None:
    """Files of the kernel say that they are empty."""
    with pytest.raises(Unreadable, match="status: changed while it was read"):
        file_digest(Path("/proc/self/status"))


def test_more_files_than_a_manifest_holds_are_refused_before_any_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One more than the bound is too many."""
    monkeypatch.setattr(hashing, "MAX_FILES", 3)
    for index in range(3):
        (tmp_path / str(index)).write_text("1")
    assert len(manifest(tmp_path).files) == 3
    (tmp_path / "more").write_text("1")
    told: list[int] = []
    with pytest.raises(Invalid, match="more than 3 files"):
        manifest(tmp_path, told.append)
    assert told == []


# Progress.


def test_progress_is_told_by_one_thread_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every byte once, however many threads read."""
    monkeypatch.setattr(hashing, "BLOCK_BYTES", 3_000)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    for index in range(40):
        (tmp_path / str(index)).write_bytes(bytes(index * 500))
    inside = threading.Lock()
    told: list[int] = []

    def progress(size: int) -> None:
        assert inside.acquire(blocking=False)
        told.append(size)
        inside.release()

    assert manifest(tmp_path, progress).size_bytes == sum(told) == sum(index * 500 for index in range(40))


@pytest.mark.parametrize("error", [ValueError("enough"), BrokenPipeError("enough"), KeyboardInterrupt()])
def test_what_progress_raises_ends_the_work_and_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """Nothing is read after it, by any thread, but the block at hand; none of the threads stays."""
    monkeypatch.setattr(hashing, "BLOCK_BYTES", 100)
    for index in range(20):
        (tmp_path / str(index)).write_bytes(bytes(1_000))
    told: list[int] = []

    def progress(size: int) -> None:
        told.append(size)
        raise error

    with pytest.raises(type(error)):
        manifest(tmp_path, progress)
    assert len(told) <= hashing.MAX_THREADS
    assert not [each for each in threading.enumerate() if each.name.startswith("animus-hash")]
