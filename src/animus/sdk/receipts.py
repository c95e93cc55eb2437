"""Receipts that were kept: one file, to which lines are only ever added.

A line is a JSON object: the receipt as it came (base64 of a signed note), and the method and request_id of its call. A
line that a crash cut short stays where it is: the next one begins after it, and whoever reads is told of it.
"""

import base64
import binascii
import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import orjson

from animus.files import sync_folder
from animus.sdk.files import Unreadable

METADATA = "animus-audit-receipt-bin"


@dataclass(frozen=True, slots=True)
class Kept:
    """A receipt and the call that it came with."""

    line: int  # in the file, from 1
    note: bytes
    method: str  # such as animus.v1.RunService/CreateRun
    request_id: str  # empty where the request had none


@dataclass(frozen=True, slots=True)
class Torn:
    """A line that is none: what a crash cut short, or what something else wrote."""

    line: int  # in the file, from 1


class ReceiptStore:
    """A file of receipts. Threads and processes may write to it at once."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def keep(self, note: bytes, method: str, request_id: str) -> None:
        """Adds a receipt; it is durable when this returns. Raises OSError."""
        tree = {"method": method, "receipt": base64.b64encode(note).decode(), "requestId": request_id}
        line = orjson.dumps(tree, option=orjson.OPT_SORT_KEYS) + b"\n"
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        new = not self.path.exists()
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            size = os.fstat(descriptor).st_size
            if size and os.pread(descriptor, 1, size - 1) != b"\n":
                line = b"\n" + line  # what a crash cut short stays a line of its own
            written = os.write(descriptor, line)
            if written < len(line):
                raise OSError(f"{self.path}: only {written} of {len(line)} bytes of a receipt could be written")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if new:
            sync_folder(self.path.parent)

    def read(self) -> Iterator[Kept | Torn]:
        """What is in the file, in the order of its lines. Raises Unreadable."""
        try:
            with self.path.open("rb") as file:
                for number, line in enumerate(file, 1):
                    yield _load(number, line)
        except FileNotFoundError:
            raise Unreadable(self.path, "is missing: no receipt was kept there", missing=True) from None
        except OSError as error:
            raise Unreadable(self.path, error.strerror or str(error)) from None


def _load(number: int, line: bytes) -> Kept | Torn:
    """A line, torn where it has no end or is not what `keep` writes."""
    try:
        tree = orjson.loads(line) if line.endswith(b"\n") else None
        if not isinstance(tree, dict) or tree.keys() != {"method", "receipt", "requestId"}:
            return Torn(number)
        if not all(isinstance(value, str) for value in tree.values()):
            return Torn(number)
        return Kept(number, base64.b64decode(tree["receipt"], validate=True), tree["method"], tree["requestId"])
    except (orjson.JSONDecodeError, binascii.Error, ValueError):
        return Torn(number)
