"""Listings of object stores: the digest of a folder without its bytes, and what is no digest refused by its key."""

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from animus.domain.errors import Invalid
from animus.sdk.hashing import content
from animus.sdk.object_listing import listed_content

FILES = {"a.csv": b"1", "below/b.csv": b"22", "below/ä.csv": b""}


def written(path: Path, entries: list[dict[str, Any]], form: str = "list") -> Path:
    """A listing in one of the forms that are read."""
    trees: dict[str, Any] = {"list": entries, "Contents": {"Contents": entries, "IsTruncated": False}}
    lines = "".join(json.dumps(each) + "\n" for each in entries)
    path.write_text(lines if form == "lines" else json.dumps(trees[form], indent=1))
    return path


def entry(key: str = "a", **more: Any) -> dict[str, Any]:
    """An object of one byte."""
    return {"key": key, "size": 1, "checksum": hashlib.sha256(b"1").hexdigest(), **more}


def refusal(path: Path, entries: list[dict[str, Any]]) -> str:
    """Why a listing is none."""
    with pytest.raises(Invalid) as caught:
        listed_content(written(path / "listing", entries))
    return caught.value.message


@pytest.mark.parametrize("form", ["list", "lines", "Contents"])
@pytest.mark.parametrize("spelling", ["ours", "s3"])
def test_a_listing_has_the_digest_of_the_folder(tmp_path: Path, form: str, spelling: str) -> None:
    """In hexadecimal digits or as S3 writes it, in any order, below a prefix, with folders marked."""
    entries: list[dict[str, Any]] = [{"Key": "cells/below/", "Size": 0, "ETag": "x"}]
    for name, data in reversed(FILES.items()):
        path = tmp_path / "folder" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        digest = hashlib.sha256(data)
        if spelling == "ours":
            entries.append({"key": f"cells/{name}", "size": len(data), "checksum": digest.hexdigest()})
        else:
            text = base64.b64encode(digest.digest()).decode()
            entries.append({"Key": f"cells/{name}", "Size": len(data), "ChecksumSHA256": text, "ETag": "y"})
    listing = written(tmp_path / "listing", entries, form)
    assert listed_content(listing, "cells/") == content(tmp_path / "folder")
    assert listed_content(listing) != content(tmp_path / "folder")
    with pytest.raises(Invalid, match="does not begin with 'other/': cells/"):
        listed_content(listing, "other/")


def test_one_object_on_one_line_is_a_listing(tmp_path: Path) -> None:
    """Of a folder with one file."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a").write_bytes(b"1")
    assert listed_content(written(tmp_path / "listing", [entry()], "lines")) == content(tmp_path / "folder")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"checksum": None}, "is null"),
        ({"checksum": "a" * 32}, "no SHA-256 in"),
        ({"checksum": base64.b64encode(b"1" * 16).decode()}, "no SHA-256 in"),
        ({"checksum": base64.b64encode(b"1" * 32).decode() + "-3"}, "composite"),
        ({"checksum": "0" * 64 + "-12"}, "composite"),
        ({"checksum": 7}, "no text"),
        ({"size": "1"}, "size"),
        ({"size": True}, "size"),
        ({"size": -1}, "sizeBytes"),
    ],
)
def test_what_is_no_digest_of_the_bytes_is_refused_by_its_key(tmp_path: Path, wrong: dict[str, Any], said: str) -> None:
    """MD5, composite checksums, sizes that are none."""
    found = refusal(tmp_path, [entry("good"), entry("the/bad one", **wrong)])
    assert (said in found, "the/bad one" in found) == (True, True) or wrong == {"checksum": None}


def test_an_etag_alone_is_refused(tmp_path: Path) -> None:
    """It may be MD5, or anything."""
    assert "no SHA-256" in refusal(tmp_path, [{"Key": "k", "Size": 1, "ETag": "5d41402abc4b2a76b9719d911017c592"}])


@pytest.mark.parametrize("key", ["", "/a", "a//b", "../a", "a/../b", "a\\b", "a\nb", "a/"])
def test_a_key_that_is_no_path_of_a_file_is_refused(tmp_path: Path, key: str) -> None:
    """As in a folder there could be none of it."""
    assert "listing" in refusal(tmp_path, [entry(key)])


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    """Two versions of one object are not one folder."""
    assert "'a'" in refusal(tmp_path, [entry(), entry()])


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b"7", b'{"Contents": 7}', b'{"Contents": [], "IsTruncated": true}', b"[7]", b"{}\nx\n", b"\xff"],
)
def test_what_is_no_listing_is_refused(tmp_path: Path, data: bytes) -> None:
    """Empty, cut short, or something else; the second line that is none is named."""
    (tmp_path / "listing").write_bytes(data)
    with pytest.raises(Invalid):
        listed_content(tmp_path / "listing")
