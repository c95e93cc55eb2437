"""Files that a client keeps or is given: bounded when read, whole when written, and locked where several write."""

import fcntl
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from animus.files import sync_folder


class Unreadable(Exception):
    """A file that cannot be used; the text is one line that names it and says why."""

    def __init__(self, path: Path, reason: str, *, missing: bool = False) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason
        self.missing = missing


def read_file(path: Path, most: int) -> bytes:
    """The bytes of a plain file that has so many at most. Raises Unreadable; never waits for a pipe's writer."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise Unreadable(path, "is no plain file")
            data = file.read(most + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise Unreadable(path, "is missing", missing=True) from None
    except OSError as error:
        raise Unreadable(path, error.strerror or str(error)) from None
    if len(data) > most:
        raise Unreadable(path, f"is longer than {most} bytes")
    return data


def replace_file(path: Path, data: bytes, *, mode: int = 0o666, scratch: Path | None = None) -> None:
    """Writes a file, or replaces it: whoever reads it, after a crash too, finds the old bytes or the new ones.

    The new ones are durable when it returns. `scratch` is a folder of the same file system for what is half written;
    without one it is the file's own.
    """
    write_file(path, data, mode=mode, scratch=scratch, durable=True)
    sync_folder(path.parent)


def write_file(
    path: Path, data: bytes, *, mode: int = 0o666, scratch: Path | None = None, durable: bool = False
) -> None:
    """As `replace_file`, but a power cut may leave other bytes: for what is checked when it is read."""
    half = (scratch or path.parent) / f".{path.name}.{secrets.token_hex(4)}"
    descriptor = os.open(half, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(descriptor)
        half.rename(path)
    except BaseException:
        half.unlink(missing_ok=True)
        raise


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the lock that a file stands for, against other processes and other threads; waits for it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def state_folder() -> Path:
    """Where a user's programs keep their state: `~/.local/state/animus` unless XDG_STATE_HOME says otherwise."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "animus"
