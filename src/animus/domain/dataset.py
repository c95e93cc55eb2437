"""Datasets, their versions, the file manifest that a version's content digest is of, and verifications of copies."""

from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

from animus.domain import document
from animus.domain.document import MAX_INTEGER
from animus.domain.errors import invalid
from animus.domain.labels import Label, sorted_labels
from animus.domain.names import (
    check_count,
    check_digest,
    check_length,
    check_licence,
    check_media_type,
    check_resource_id,
    check_time,
    check_within,
    sorted_set,
)

MAX_FILES = 10_000
MAX_COLUMNS = 10_000
MAX_URIS = 100
MAX_DERIVED_FROM = 100
UNKNOWN = -1  # how many rows there are


@dataclass(frozen=True, slots=True)
class Dataset:
    """A name for versions to stand under."""

    SCHEMA: ClassVar[str] = "animus.dataset/v1"

    dataset_id: str
    description: str  # 0 to 2,000 characters
    labels: tuple[Label, ...]

    def __post_init__(self) -> None:
        check_resource_id(self.dataset_id, "datasetId")
        check_length(self.description, 0, 2_000, "description")
        object.__setattr__(self, "labels", sorted_labels(self.labels))


@dataclass(frozen=True, slots=True)
class Column:
    """A column of tabular data."""

    name: str  # 1 to 255 characters
    type: str  # Arrow-style type name, 1 to 100 characters

    def __post_init__(self) -> None:
        check_length(self.name, 1, 255, "name")
        check_length(self.type, 1, 100, "type")


@dataclass(frozen=True, slots=True)
class File:
    """A file of a dataset version."""

    path: str  # relative, `/` between its parts, 1 to 1,024 bytes
    size_bytes: int
    digest: str

    def __post_init__(self) -> None:
        check_length(self.path, 1, 1_024, "path")
        parts = self.path.split("/")
        if len(self.path.encode()) > 1_024 or "\\" in self.path or any(part in ("", ".", "..") for part in parts):
            raise invalid("path", "is no relative path of at most 1,024 bytes with '/' between non-empty parts")
        if "\n" in self.path or "\t" in self.path:
            raise invalid("path", "holds a control character")
        check_within(self.size_bytes, 0, MAX_INTEGER, "sizeBytes")
        check_digest(self.digest, "digest")


@dataclass(frozen=True, slots=True)
class FileManifest:
    """The files of a dataset version as a set; its digest is the version's content digest."""

    SCHEMA: ClassVar[str] = "animus.file_manifest/v1"

    files: tuple[File, ...]

    def __post_init__(self) -> None:
        check_count(self.files, 1, MAX_FILES, "files")
        object.__setattr__(self, "files", sorted_set(self.files, lambda f: f.path, "files", "path"))

    @property
    def size_bytes(self) -> int:
        """Bytes in all."""
        return sum(file.size_bytes for file in self.files)


class DifferenceKind(StrEnum):
    """How a copy differs from a version in one file."""

    MISSING = "missing"  # from the copy
    EXTRA = "extra"  # in the copy
    DIFFERENT = "different"  # other bytes


@dataclass(frozen=True, slots=True)
class FileDifference:
    """A file in which a copy differs from a version."""

    path: str
    kind: DifferenceKind


def file_differences(expected: tuple[File, ...], found: tuple[File, ...]) -> tuple[FileDifference, ...]:
    """Where the files of a copy are not those of a version, by path; none exactly where they are the same set."""
    wanted, there = ({file.path: file for file in files} for files in (expected, found))
    differences = []
    for path in sorted(wanted.keys() | there.keys()):
        if path not in there:
            differences.append(FileDifference(path, DifferenceKind.MISSING))
        elif path not in wanted:
            differences.append(FileDifference(path, DifferenceKind.EXTRA))
        elif wanted[path] != there[path]:
            differences.append(FileDifference(path, DifferenceKind.DIFFERENT))
    return tuple(differences)


@dataclass(frozen=True, slots=True)
class DatasetVersionId:
    """What a dataset version is named by."""

    dataset_id: str
    content_digest: str

    def __post_init__(self) -> None:
        check_resource_id(self.dataset_id, "datasetId")
        check_digest(self.content_digest, "contentDigest")


@dataclass(frozen=True, slots=True)
class DatasetVersion:
    """One immutable state of a dataset, identified by (dataset_id, content_digest)."""

    SCHEMA: ClassVar[str] = "animus.dataset_version/v1"

    dataset_id: str
    content_digest: str
    size_bytes: int
    media_type: str
    row_count: int  # UNKNOWN where that is not known, or the data is no table
    source: str  # where it comes from, 0 to 2,000 characters
    licence: str  # SPDX expression, or empty
    labels: tuple[Label, ...]
    columns: tuple[Column, ...]  # in their order; none where the data is no table
    files: tuple[File, ...]  # a set; none for a single file
    derived_from: tuple[DatasetVersionId, ...]  # a set, registered before

    def __post_init__(self) -> None:
        check_resource_id(self.dataset_id, "datasetId")
        check_digest(self.content_digest, "contentDigest")
        check_within(self.size_bytes, 0, MAX_INTEGER, "sizeBytes")
        check_media_type(self.media_type, "mediaType")
        check_within(self.row_count, UNKNOWN, MAX_INTEGER, "rowCount")
        check_length(self.source, 0, 2_000, "source")
        check_licence(self.licence, "licence")
        object.__setattr__(self, "labels", sorted_labels(self.labels))
        self._check_derived_from()
        check_count(self.columns, 0, MAX_COLUMNS, "columns")
        sorted_set(self.columns, lambda c: c.name, "columns", "name")
        if not self.files:
            return
        manifest = FileManifest(self.files)
        object.__setattr__(self, "files", manifest.files)
        if self.size_bytes != manifest.size_bytes:
            raise invalid("sizeBytes", f"is {self.size_bytes}, and the files have {manifest.size_bytes} bytes")
        expected = document.digest(document.dump(manifest))
        if self.content_digest != expected:
            raise invalid("contentDigest", f"is not {expected}, the digest of the manifest of the files")

    def _check_derived_from(self) -> None:
        check_count(self.derived_from, 0, MAX_DERIVED_FROM, "derivedFrom")
        for index, each in enumerate(self.derived_from):
            if each == DatasetVersionId(self.dataset_id, self.content_digest):
                raise invalid(f"derivedFrom[{index}]", "is this version itself")
        found = sorted_set(self.derived_from, lambda v: f"{v.dataset_id}/{v.content_digest}", "derivedFrom", "")
        object.__setattr__(self, "derived_from", found)


@dataclass(frozen=True, slots=True)
class DatasetVersionUris:
    """Where copies of a version were said to be; that of the highest sequence governs.

    No part of the version: the same content in another place is the same version.
    """

    SCHEMA: ClassVar[str] = "animus.dataset_version_uris/v1"

    dataset_id: str
    content_digest: str
    sequence: int  # from 1, of the version
    uris: tuple[str, ...]  # a set; opaque, each 1 to 2,000 characters

    def __post_init__(self) -> None:
        check_resource_id(self.dataset_id, "datasetId")
        check_digest(self.content_digest, "contentDigest")
        check_within(self.sequence, 1, MAX_INTEGER, "sequence")
        check_count(self.uris, 0, MAX_URIS, "uris")
        for index, uri in enumerate(self.uris):
            check_length(uri, 1, 2_000, f"uris[{index}]")
        object.__setattr__(self, "uris", sorted_set(self.uris, str, "uris", ""))


@dataclass(frozen=True, slots=True)
class DatasetVerification:
    """That someone computed the digest of a copy of a version at a time, and whether it is the version's."""

    SCHEMA: ClassVar[str] = "animus.dataset_verification/v1"

    dataset_id: str
    content_digest: str  # of the version
    found_digest: str  # of the copy
    found_size_bytes: int
    location: str  # of the copy; opaque, 0 to 2,000 characters
    matched: bool
    verify_time: str

    def __post_init__(self) -> None:
        check_resource_id(self.dataset_id, "datasetId")
        check_digest(self.content_digest, "contentDigest")
        check_digest(self.found_digest, "foundDigest")
        check_within(self.found_size_bytes, 0, MAX_INTEGER, "foundSizeBytes")
        check_length(self.location, 0, 2_000, "location")
        if self.matched != (self.found_digest == self.content_digest):
            raise invalid("matched", "says something else than the two digests do")
        check_time(self.verify_time, "verifyTime")
