"""Digests of files and folders, and the dataset versions that they make."""

import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from animus.domain import document
from animus.domain.dataset import Column, DatasetVersion, File, FileManifest
from animus.domain.errors import invalid


def file_digest(path: Path) -> str:
    """`sha256:` and the SHA-256 of a file's bytes; reads it as a stream. Raises Invalid unless it is a plain file."""
    return _read(path)[0]


def manifest(folder: Path) -> FileManifest:
    """Every file below a folder by its relative path, size and digest; hidden files too, empty folders not.

    Raises Invalid for a symbolic link or anything else that is neither file nor folder: a link says nothing of the
    bytes that it may lead to tomorrow. Nothing guards against a writer that is at work meanwhile; the digest is of the
    bytes that were read.
    """
    files = []
    for path in _walk(folder):
        digest, size_bytes = _read(path)
        files.append(File(path.relative_to(folder).as_posix(), size_bytes, digest))
    return FileManifest(tuple(files))


def dataset_version(
    dataset_id: str, folder: Path, media_type: str, uri: str, columns: Sequence[Column]
) -> DatasetVersion:
    """The version that a folder's content is: its content digest is that of the folder's manifest."""
    found = manifest(folder)
    return DatasetVersion(
        dataset_id=dataset_id,
        content_digest=document.digest(document.dump(found)),
        size_bytes=found.size_bytes,
        media_type=media_type,
        uri=uri,
        columns=tuple(columns),
        files=found.files,
    )


def _walk(folder: Path) -> Iterator[Path]:
    """The entries below a folder that are no folders, whatever else they are."""
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda e: e.name):
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(Path(entry.path))
            else:
                yield Path(entry.path)


def _read(path: Path) -> tuple[str, int]:
    """Digest and size of the same bytes. Never follows a link, never waits for a pipe's writer."""
    if not stat.S_ISREG(path.lstat().st_mode):
        raise invalid("path", f"is no plain file: {path}")
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return f"sha256:{digest}", file.tell()
