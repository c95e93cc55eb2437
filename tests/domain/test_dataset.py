"""Datasets, versions and manifests: what they are made of is checked, and a manifest has one digest."""

import dataclasses
import hashlib
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from animus.domain import document
from animus.domain.dataset import (
    MAX_COLUMNS,
    MAX_FILES,
    Column,
    Dataset,
    DatasetVerification,
    DatasetVersion,
    DatasetVersionId,
    DatasetVersionUris,
    DifferenceKind,
    File,
    FileDifference,
    FileManifest,
    file_differences,
)
from animus.domain.document import MAX_INTEGER
from animus.domain.labels import Label
from domain.values import LAW, ONE, SAMPLES, TWO, generated, manifest, refusal

VERSION: DatasetVersion = SAMPLES[DatasetVersion]
SINGLE = dataclasses.replace(VERSION, files=(), content_digest=TWO, size_bytes=7)
ITSELF = DatasetVersionId(SINGLE.dataset_id, TWO)
OTHER = DatasetVersionId("other", TWO)


def version_of(files: tuple[File, ...], **changes: Any) -> DatasetVersion:
    """The version whose content is these files."""
    found = FileManifest(files)
    return dataclasses.replace(
        VERSION,
        **{
            "files": files,
            "size_bytes": found.size_bytes,
            "content_digest": document.digest(document.dump(found)),
            **changes,
        },
    )


def test_the_digest_of_a_manifest_is_that_of_its_published_form() -> None:
    """Anyone can compute a content digest with a JSON writer and sha256sum: the bytes are fixed here."""
    found = FileManifest((File("b.csv", 2, TWO), File("a.csv", 1, ONE)))
    written = (
        f'{{"files":[{{"digest":"{ONE}","path":"a.csv","sizeBytes":1}},{{"digest":"{TWO}","path":"b.csv","sizeBytes":2}}'
        '],"schema":"animus.file_manifest/v1"}'
    ).encode()
    assert document.dump(found) == written
    assert document.digest(written) == "sha256:" + hashlib.sha256(written).hexdigest()
    assert version_of(found.files).content_digest == document.digest(written)


@LAW
@given(generated(manifest), st.randoms(use_true_random=False))
def test_a_version_is_of_its_files_in_any_order(found: FileManifest, rng: random.Random) -> None:
    """The order in which files are listed changes neither the manifest nor the version."""
    mixed = tuple(rng.sample(found.files, len(found.files)))
    assert FileManifest(mixed) == found
    assert version_of(mixed) == version_of(found.files)


@LAW
@given(generated(manifest))
def test_a_version_states_what_its_files_say(found: FileManifest) -> None:
    """Another size or another digest than the manifest's is refused with the right one."""
    size, content = found.size_bytes, document.digest(document.dump(found))
    assert refusal(version_of, found.files, size_bytes=size + 1).field == "sizeBytes"
    wrong = refusal(version_of, found.files, content_digest=ONE)
    assert wrong.field == "contentDigest"
    assert content in wrong.description


@pytest.mark.parametrize(
    "path",
    [
        "", "/", "/a", "a/", "a//b", ".", "..", "./a", "a/.", "a/..", "../a", "a/../b", "a/./b", "a\\b", "\\", "C:\\a",
        "a\nb", "a\n", "a\tb", "a\x00b", "a\x1b[2J", "a\x85", "\ud800", "é" * 513, "a" * 1_025,
    ],
)  # fmt: skip
def test_a_path_that_leads_elsewhere_is_refused(path: str) -> None:
    """Absolute, upward, empty and Windows paths, control characters and more than 1,024 bytes are refused."""
    assert refusal(File, path, 0, ONE).field == "path"


@pytest.mark.parametrize(
    "path", ["a", "...", "..a", "a..", "a/b/c.csv", " ", "é" * 512, "a" * 1_024, "a b", "~", "-rf", "C:a", "\u202ea"]
)
def test_other_paths_are_kept_as_they_are(path: str) -> None:
    """Any other relative path is a name of bytes, and is neither folded nor repaired."""
    assert File(path, 0, ONE).path == path


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: File("a", -1, ONE), "sizeBytes"),
        (lambda: File("a", MAX_INTEGER + 1, ONE), "sizeBytes"),
        (lambda: File("a", 0, "md5:1"), "digest"),
        (lambda: FileManifest(()), "files"),
        (lambda: FileManifest((File("a", 0, ONE), File("b", 0, ONE), File("a", 1, TWO))), "files[2].path"),
        (lambda: FileManifest((File("a", 0, ONE),) * (MAX_FILES + 1)), "files"),
        (lambda: Column("", "utf8"), "name"),
        (lambda: Column("c" * 256, "utf8"), "name"),
        (lambda: Column("a", ""), "type"),
        (lambda: Column("a", "t" * 101), "type"),
        (lambda: Dataset("A", "", ()), "datasetId"),
        (lambda: Dataset("a", "d" * 2_001, ()), "description"),
        (lambda: dataclasses.replace(SINGLE, dataset_id="a_b"), "datasetId"),
        (lambda: dataclasses.replace(SINGLE, content_digest="latest"), "contentDigest"),
        (lambda: dataclasses.replace(SINGLE, size_bytes=-1), "sizeBytes"),
        (lambda: dataclasses.replace(SINGLE, size_bytes=MAX_INTEGER + 1), "sizeBytes"),
        (lambda: dataclasses.replace(SINGLE, media_type="csv"), "mediaType"),
        (lambda: dataclasses.replace(SINGLE, row_count=-2), "rowCount"),
        (lambda: dataclasses.replace(SINGLE, row_count=MAX_INTEGER + 1), "rowCount"),
        (lambda: dataclasses.replace(SINGLE, source="s" * 2_001), "source"),
        (lambda: dataclasses.replace(SINGLE, licence="l" * 201), "licence"),
        (lambda: dataclasses.replace(SINGLE, licence="MIT; see below"), "licence"),
        (lambda: dataclasses.replace(SINGLE, licence=" MIT"), "licence"),
        (lambda: dataclasses.replace(SINGLE, licence="MIT "), "licence"),
        (lambda: dataclasses.replace(SINGLE, labels=(Label("a", ""), Label("a", "b"))), "labels[1].key"),
        (lambda: dataclasses.replace(SINGLE, derived_from=(OTHER, ITSELF)), "derivedFrom[1]"),
        (lambda: dataclasses.replace(SINGLE, derived_from=(OTHER, OTHER)), "derivedFrom[1]"),
        (lambda: dataclasses.replace(SINGLE, derived_from=(OTHER,) * 101), "derivedFrom"),
        (lambda: DatasetVersionId("A", ONE), "datasetId"),
        (lambda: DatasetVersionId("a", "x"), "contentDigest"),
        (lambda: DatasetVersionUris("a", ONE, 0, ()), "sequence"),
        (lambda: DatasetVersionUris("a", ONE, 1, ("u", "")), "uris[1]"),
        (lambda: DatasetVersionUris("a", ONE, 1, ("u" * 2_001,)), "uris[0]"),
        (lambda: DatasetVersionUris("a", ONE, 1, ("\x00",)), "uris[0]"),
        (lambda: DatasetVersionUris("a", ONE, 1, ("u", "v", "u")), "uris[2]"),
        (lambda: DatasetVersionUris("a", ONE, 1, ("u",) * 101), "uris"),
        (lambda: dataclasses.replace(SINGLE, columns=(Column("a", "b"),) * 2), "columns[1].name"),
        (lambda: dataclasses.replace(SINGLE, columns=(Column("a", "b"),) * (MAX_COLUMNS + 1)), "columns"),
        (lambda: version_of((File("a", MAX_INTEGER, ONE), File("b", 1, ONE))), "sizeBytes"),
    ],
)
def test_a_value_outside_its_rules_is_refused_by_field(make: Any, field: str) -> None:
    """Each bound is named by the field that breaks it."""
    assert refusal(make).field == field


def test_columns_keep_their_order() -> None:
    """Columns are a sequence: another order is another version."""
    backwards = dataclasses.replace(VERSION, columns=VERSION.columns[::-1])
    assert backwards.columns == VERSION.columns[::-1]
    assert document.dump(backwards) != document.dump(VERSION)


def test_where_copies_are_and_what_a_version_was_made_from_are_sets() -> None:
    """In any order they are one document; the bounds of a hundred are inclusive."""
    sources = tuple(DatasetVersionId(f"d{index:02}", ONE) for index in range(100))
    found = dataclasses.replace(SINGLE, derived_from=sources[::-1])
    assert found.derived_from == sources
    uris = tuple(f"s3://{index:02}" for index in range(100))
    assert DatasetVersionUris("a", ONE, 1, uris[::-1]).uris == uris


def test_ten_thousand_files_are_allowed() -> None:
    """The bound on files is inclusive."""
    assert len(FileManifest(tuple(File(f"f{number}", 0, ONE) for number in range(MAX_FILES))).files) == MAX_FILES


# Copies.


@pytest.mark.parametrize(
    ("field", "value", "path"),
    [
        ("dataset_id", "A", "datasetId"),
        ("content_digest", "x", "contentDigest"),
        ("found_digest", "", "foundDigest"),
        ("found_size_bytes", -1, "foundSizeBytes"),
        ("found_size_bytes", MAX_INTEGER + 1, "foundSizeBytes"),
        ("location", "x" * 2_001, "location"),
        ("matched", True, "matched"),
        ("found_digest", ONE, "matched"),
        ("verify_time", "2026-01-02", "verifyTime"),
    ],
)
def test_a_verification_says_of_itself_what_its_digests_say(field: str, value: object, path: str) -> None:
    """Each field has its rule, and whether the copy matched follows from the digests."""
    sample: DatasetVerification = SAMPLES[DatasetVerification]
    assert (sample.content_digest, sample.found_digest, sample.matched) == (ONE, TWO, False)
    assert refusal(dataclasses.replace, sample, **{field: value}).field == path


def test_a_copy_differs_by_what_is_missing_extra_and_of_other_bytes() -> None:
    """By path; another size alone is a difference too."""
    version = (File("a", 1, ONE), File("b", 1, ONE), File("c", 1, ONE), File("d", 1, ONE))
    copy = (File("e", 1, ONE), File("d", 2, ONE), File("c", 1, TWO), File("a", 1, ONE))
    assert file_differences(version, copy) == (
        FileDifference("b", DifferenceKind.MISSING),
        FileDifference("c", DifferenceKind.DIFFERENT),
        FileDifference("d", DifferenceKind.DIFFERENT),
        FileDifference("e", DifferenceKind.EXTRA),
    )


@given(generated(manifest), generated(manifest), st.randoms(use_true_random=False))
@LAW
def test_copies_differ_exactly_where_their_digests_do(one: FileManifest, two: FileManifest, rng: random.Random) -> None:
    """No difference means one digest, in any order of files; the other way round, missing and extra change places."""
    shuffled = list(one.files)
    rng.shuffle(shuffled)
    assert file_differences(one.files, tuple(shuffled)) == ()
    differences, back = file_differences(one.files, two.files), file_differences(two.files, one.files)
    same = document.digest(document.dump(one)) == document.digest(document.dump(two))
    assert (differences == ()) == same
    turned = {
        DifferenceKind.MISSING: DifferenceKind.EXTRA,
        DifferenceKind.EXTRA: DifferenceKind.MISSING,
        DifferenceKind.DIFFERENT: DifferenceKind.DIFFERENT,
    }
    assert back == tuple(FileDifference(each.path, turned[each.kind]) for each in differences)
