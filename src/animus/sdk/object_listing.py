"""What an object store lists, as the content of the folder that a copy of the objects would be. Nothing is opened.

A listing has an object for each: its key, its size, and its SHA-256, in hexadecimal digits or in base64 as S3's
`ChecksumSHA256` is. It is JSON, as a list or below `Contents`, or one object a line.
"""

import base64
import binascii
import re
from pathlib import Path

from animus.domain import document
from animus.domain.dataset import MAX_FILES, File, FileManifest
from animus.domain.document import parse_json
from animus.domain.errors import Invalid, invalid
from animus.sdk.files import read_file
from animus.sdk.hashing import Content

MAX_BYTES = 64 << 20
HEXADECIMAL = re.compile(r"[0-9a-fA-F]{64}")
COMPOSITE = re.compile(r".+-[0-9]+")  # of a multipart upload: a digest of the parts' digests

KEYS, SIZES = ("key", "Key"), ("size", "Size")
CHECKSUMS = ("checksum", "sha256", "ChecksumSHA256")


def listed_content(path: Path, prefix: str = "") -> Content:
    """The content of a folder that holds the listed objects by their keys, which begin with `prefix`.

    Its digest is that of the folder itself. A key that ends in a slash marks a folder, and is left out. Raises Invalid,
    naming the key, for an object without the SHA-256 of its bytes: an ETag is none, nor is a multipart upload's
    composite checksum; for a key that no manifest can hold, or that stands twice. Raises Unreadable as `read_file`.
    """
    files = [_file(entry, at, prefix) for at, entry in enumerate(_entries(read_file(path, MAX_BYTES)))]
    found = FileManifest(tuple(file for file in files if file is not None))
    return Content(document.digest(document.dump(found)), found.size_bytes, found.files)


def _entries(data: bytes) -> list[object]:
    lines = [line for line in data.splitlines() if line.strip()]
    try:
        tree = parse_json(data)
    except Invalid as error:
        if len(lines) < 2:
            raise invalid("listing", error.violations[0].description) from None
        tree = [_line(line, number) for number, line in enumerate(lines, 1)]
    if isinstance(tree, dict) and "Contents" in tree:
        if tree.get("IsTruncated") is True:
            raise invalid("listing", "is truncated: list all objects")
        tree = tree["Contents"]
    if isinstance(tree, dict):  # one line
        tree = [tree]
    if not isinstance(tree, list):
        raise invalid("listing", "is no list of objects")
    if len(tree) > 2 * MAX_FILES:  # folders may be marked
        raise invalid("listing", f"has more than {MAX_FILES} objects")
    return tree


def _line(line: bytes, number: int) -> object:
    try:
        return parse_json(line)
    except Invalid as error:
        raise invalid("listing", f"line {number}: {error.violations[0].description}") from None


def _file(entry: object, at: int, prefix: str) -> File | None:
    if not isinstance(entry, dict):
        raise invalid(f"listing[{at}]", "is no object")
    key, size = _field(entry, KEYS), _field(entry, SIZES)
    if not isinstance(key, str) or not key:
        raise invalid(f"listing[{at}].key", "is missing or no text")
    where = f"listing[{at}]: {key}"
    if not key.startswith(prefix):
        raise invalid("listing", f"has a key that does not begin with {prefix!r}: {key}")
    if not isinstance(size, int) or isinstance(size, bool):
        raise invalid(where, "has no size in bytes")
    if key.endswith("/") and size == 0:
        return None
    digest = _digest(entry, where)
    try:
        return File(key.removeprefix(prefix), size, digest)
    except Invalid as error:
        raise invalid(where, f"{error.violations[0].field} {error.violations[0].description}") from None


def _field(entry: dict[str, object], names: tuple[str, ...]) -> object:
    return next((entry[name] for name in names if name in entry), None)


def _digest(entry: dict[str, object], where: str) -> str:
    text = _field(entry, CHECKSUMS)
    if text is None:
        raise invalid(
            where, "has no SHA-256; an ETag is no digest of the bytes: have the store compute a full checksum"
        )
    if not isinstance(text, str):
        raise invalid(where, "has a checksum that is no text")
    if COMPOSITE.fullmatch(text):
        raise invalid(where, "has the composite checksum of a multipart upload, which is none of the bytes")
    if HEXADECIMAL.fullmatch(text):
        return f"sha256:{text.lower()}"
    try:
        digest = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        digest = b""
    if len(digest) != 32:
        raise invalid(where, "has a checksum that is no SHA-256 in hexadecimal digits or base64")
    return f"sha256:{digest.hex()}"
