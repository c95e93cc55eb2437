"""Writes a BagIt 1.0 bag (RFC 8493) as a ZIP that can be sent while it is made.

Members are stored, in the order in which they are added, with one time and mode: equal files give equal bytes. A member
is spooled to a temporary file until it is whole, since its header says how long it is; memory stays bounded.
"""

import hashlib
import io
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from typing import IO

MEMORY_BYTES = 1 << 20  # of a member; what is longer goes to disk
CHUNK_BYTES = 256 << 10
OLDEST = (1980, 1, 1, 0, 0, 0)  # that a ZIP can say
FILE_MODE = 0o100644


def spool() -> IO[bytes]:
    """A file for the content of a member, gone when it is closed."""
    return tempfile.SpooledTemporaryFile(MEMORY_BYTES)


class Bag:
    """The files of a bag, added one after the other in the order of their names."""

    def __init__(self, name: str) -> None:
        """`name` is the one folder at the top."""
        self.name = name
        self.digests: dict[str, str] = {}  # SHA-256 in hexadecimal by path
        self._sink = _Sink()
        self._zip = zipfile.ZipFile(self._sink, "w", zipfile.ZIP_STORED)

    def __enter__(self) -> "Bag":
        return self

    def __exit__(self, *_: object) -> None:
        self._zip.close()
        self._sink.close()

    def add(self, path: str, content: bytes | IO[bytes]) -> Iterator[bytes]:
        """Adds a file, and gives the next parts of the ZIP."""
        source = io.BytesIO(content) if isinstance(content, bytes) else content
        size = source.seek(0, io.SEEK_END)
        source.seek(0)
        self.digests[path] = hashlib.file_digest(source, "sha256").hexdigest()  # type: ignore[arg-type]
        source.seek(0)
        member = zipfile.ZipInfo(f"{self.name}/{path}", OLDEST)
        member.create_system = 3  # Unix, wherever this runs
        member.external_attr = FILE_MODE << 16
        member.file_size = size
        with self._zip.open(member, "w") as target:
            shutil.copyfileobj(source, target, CHUNK_BYTES)
        yield from self._sink.take()

    def manifest(self, prefix: str) -> bytes:
        """The manifest of the files so far whose paths begin so, sorted by path; `sha256sum -c` reads it."""
        return "".join(
            f"{digest}  {path}\n" for path, digest in sorted(self.digests.items()) if path.startswith(prefix)
        ).encode()

    def close(self) -> Iterator[bytes]:
        """Gives the end of the ZIP."""
        self._zip.close()
        yield from self._sink.take()


class _Sink(io.RawIOBase):
    """Where the ZIP is written: a file that gives away what is done, and knows the places of what is not."""

    def __init__(self) -> None:
        self._file = spool()
        self._given = 0  # bytes that were taken

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        return self._file.write(data)

    def tell(self) -> int:
        return self._given + self._file.tell()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        assert whence == io.SEEK_SET, "the library says places from the start"
        return self._given + self._file.seek(offset - self._given)

    def close(self) -> None:
        self._file.close()
        super().close()

    def take(self) -> Iterator[bytes]:
        """Gives all that was written, and forgets it."""
        self._file.seek(0)
        while chunk := self._file.read(CHUNK_BYTES):
            self._given += len(chunk)
            yield chunk
        self._file.close()
        self._file = spool()
