"""Digests of files and folders, and the dataset versions that they make.

Everything is read as a stream, on every core, in memory that does not grow with the data: a block for each core, and a
line for each file. What cannot be read, is neither file nor folder, or changes meanwhile is an error that names its
path, never a digest of something else.
"""

import errno
import hashlib
import os
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from animus.domain import document
from animus.domain.dataset import MAX_FILES, UNKNOWN, Column, DatasetVersion, DatasetVersionId, File, FileManifest
from animus.domain.errors import Invalid, invalid
from animus.domain.labels import Label
from animus.sdk.files import Unreadable

BLOCK_BYTES = 1 << 20
MAX_THREADS = 8

Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Content:
    """What a file or a folder holds: its content digest, bytes in all, and the files of a folder by path."""

    digest: str
    size_bytes: int
    files: tuple[File, ...]  # none for a single file


def file_digest(path: Path, progress: Progress | None = None) -> str:
    """`sha256:` and the SHA-256 of a file's bytes; reads it as a stream.

    Raises Invalid unless it is a plain file, and Unreadable where it cannot be read or changes meanwhile.
    """
    return _hash_files([_found(path, "")], progress)[0]


def manifest(folder: Path, progress: Progress | None = None) -> FileManifest:
    """Every file below a folder by its relative path, size and digest; hidden files too, empty folders not.

    Raises Invalid for a symbolic link or anything else that is neither file nor folder: a link says nothing of the
    bytes that it may lead to tomorrow; and for a path that no manifest can hold. Raises Unreadable where something
    cannot be read, or a file or a listing changes between the first look at it and the last. Each file is as it was at
    one moment; that it changed after it was read is not seen.

    `progress` is called with the bytes of each step, by one thread at a time; what it raises ends the work, and passes.
    """
    listings = dict[Path, tuple[int, ...]]()
    found = sorted(_walk(folder, listings), key=lambda each: each.relative)
    digests = _hash_files(found, progress)
    for path, before in listings.items():
        if _listing(path) != before:
            raise _changed(path)
    return FileManifest(
        tuple(File(each.relative, each.size_bytes, digest) for each, digest in zip(found, digests, strict=True))
    )


def content(path: Path, progress: Progress | None = None) -> Content:
    """What a file or a folder holds. Raises as `file_digest` and `manifest` do."""
    if stat.S_ISDIR(_stat(path).st_mode):
        found = manifest(path, progress)
        return Content(document.digest(document.dump(found)), found.size_bytes, found.files)
    file = _found(path, "")
    return Content(_hash_files([file], progress)[0], file.size_bytes, ())


def plain_files(path: Path) -> list[Path]:
    """The file, or the files below a folder in the order of its manifest. Raises as `content` does."""
    if not stat.S_ISDIR(_stat(path).st_mode):
        return [_found(path, "").path]
    return [each.path for each in sorted(_walk(path, {}), key=lambda each: each.relative)]


def dataset_version(
    dataset_id: str,
    folder: Path,
    media_type: str,
    columns: Sequence[Column],
    progress: Progress | None = None,
    *,
    row_count: int = UNKNOWN,
    source: str = "",
    licence: str = "",
    labels: Sequence[Label] = (),
    derived_from: Sequence[DatasetVersionId] = (),
) -> DatasetVersion:
    """The version that the content of a folder, or of a single file, is. Raises as `content` does."""
    found = content(folder, progress)
    return DatasetVersion(
        dataset_id=dataset_id,
        content_digest=found.digest,
        size_bytes=found.size_bytes,
        media_type=media_type,
        row_count=row_count,
        source=source,
        licence=licence,
        labels=tuple(labels),
        columns=tuple(columns),
        files=found.files,
        derived_from=tuple(derived_from),
    )


@dataclass(frozen=True, slots=True)
class _Found:
    """A plain file, as it was when it was found."""

    path: Path
    relative: str  # in its folder
    size_bytes: int
    state: tuple[int, ...]


def _found(path: Path, relative: str) -> _Found:
    """Raises Invalid unless there is a plain file: no link, and no pipe, whose writer would be waited for."""
    seen = _stat(path)
    if not stat.S_ISREG(seen.st_mode):
        raise invalid("path", f"is no plain file: {text_of(path)}")
    return _Found(path, relative, seen.st_size, _state(seen))


def _walk(folder: Path, listings: dict[Path, tuple[int, ...]]) -> Iterator[_Found]:
    """The files below a folder, in any order; fills in the folders that were listed. Refuses a file too many."""
    waiting = [(folder, "")]
    count = 0
    while waiting:
        at, prefix = waiting.pop()
        listings[at] = _listing(at)
        for name, is_folder in _entries(at):
            path, relative = at / name, prefix + name
            if is_folder:
                waiting.append((path, f"{relative}/"))
                continue
            count += 1
            if count > MAX_FILES:
                raise invalid("path", f"has more than {MAX_FILES} files below it: {text_of(folder)}")
            _check_relative(path, relative)
            yield _found(path, relative)


def _entries(folder: Path) -> list[tuple[str, bool]]:
    """Names in a folder, and whether each is a folder itself."""
    try:
        with os.scandir(folder) as entries:
            return [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    except OSError as error:
        raise _unreadable(folder, error) from None


def _check_relative(path: Path, relative: str) -> None:
    """Refuses what no manifest can hold, before anything is read."""
    try:
        relative.encode()
    except UnicodeEncodeError:
        raise invalid("path", f"is not UTF-8: {text_of(path)}") from None
    try:
        File(relative, 0, f"sha256:{'0' * 64}")
    except Invalid as error:
        raise invalid("path", f"{error.violations[0].description}: {text_of(path)}") from None


def _hash_files(files: Sequence[_Found], progress: Progress | None) -> list[str]:
    """Digests in the order of the files. The largest are begun first, so that no thread is left alone with one."""
    digests = [""] * len(files)
    pending = iter(sorted(range(len(files)), key=lambda index: -files[index].size_bytes))
    stop = threading.Event()
    lock = threading.Lock()

    def step(size: int) -> None:
        if stop.is_set():
            raise _Stopped
        if progress is not None:
            with lock:
                progress(size)

    def work() -> None:
        buffer = memoryview(bytearray(BLOCK_BYTES))
        try:
            for index in pending:  # a step of a list's iterator is one for all threads
                digests[index] = _hash(files[index], buffer, step)
        except _Stopped:
            return
        except BaseException:
            stop.set()
            raise

    threads = min(len(files), MAX_THREADS, os.cpu_count() or 1)
    if threads <= 1:
        work()
        return digests
    with ThreadPoolExecutor(threads, "animus-hash") as pool:
        working = [pool.submit(work) for _ in range(threads)]
        try:
            for each in working:
                each.result()
        finally:
            stop.set()  # an interrupt ends the work within a block
    return digests


class _Stopped(Exception):
    """Another thread has failed, and says why."""


def _hash(file: _Found, buffer: memoryview, step: Progress) -> str:
    """The digest of a file that is, before and after, what was found."""
    digest = hashlib.sha256()
    try:
        descriptor = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise _unreadable(file.path, error) from None
    try:
        if _state(os.fstat(descriptor)) != file.state:
            raise _changed(file.path)
        left = file.size_bytes
        while size := _fill(buffer, descriptor, file.path):
            digest.update(buffer[:size])
            left -= size
            step(size)
            if left < 0:  # what grows as fast as it is read has no end
                raise _changed(file.path)
        if left or _state(os.fstat(descriptor)) != file.state:
            raise _changed(file.path)
    finally:
        os.close(descriptor)
    return f"sha256:{digest.hexdigest()}"


def _fill(buffer: memoryview, descriptor: int, path: Path) -> int:
    try:
        return os.readv(descriptor, [buffer])
    except OSError as error:
        raise _unreadable(path, error) from None


def _stat(path: Path) -> os.stat_result:
    try:
        return path.lstat()
    except OSError as error:
        raise _unreadable(path, error) from None


def _state(seen: os.stat_result) -> tuple[int, ...]:
    """What is another after a change. A program can set the first time back, and not the second."""
    return (seen.st_mode, seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns)


def _listing(folder: Path) -> tuple[int, ...]:
    """What is another after a name came or went. Raises Invalid unless there is a folder."""
    seen = _stat(folder)
    if not stat.S_ISDIR(seen.st_mode):
        raise invalid("path", f"is no folder: {text_of(folder)}")
    return (seen.st_dev, seen.st_ino, seen.st_mtime_ns)


def _unreadable(path: Path, error: OSError) -> Unreadable:
    missing = error.errno in (errno.ENOENT, errno.ENOTDIR)
    reason = "is missing" if missing else f"cannot be read: {error.strerror or error}"
    return Unreadable(Path(text_of(path)), reason, missing=missing)


def _changed(path: Path) -> Unreadable:
    return Unreadable(Path(text_of(path)), "changed while it was read: digests are of what stands still")


def text_of(path: Path) -> str:
    """A path in one line of text; what is no UTF-8, or no character to print, is escaped."""
    text = os.fsencode(path).decode(errors="backslashreplace")
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)
