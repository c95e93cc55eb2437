"""Signed notes: a text, and lines of signatures under it (C2SP signed-note).

- A note is UTF-8 without control characters (those below U+0020) other than the line feed. Its text ends with a line
  feed, and is parted from the signature lines by the last empty line.
- A signature line is `— <key name> <base64 of key id and signature>`. A key is known by its name together with its id.
- A key's name is not empty, and has neither a space of Unicode nor a plus sign.
- Base64 has one spelling. So `dump_*` of what `load_*` gave is what was read.

Nothing here says that a signature is good: `animus.signing` does. All bad input raises Invalid with the reason
NOTE_INVALID.
"""

import base64
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass

from animus.domain.errors import Invalid, Violation

ED25519 = 0x01  # signatures of the text itself
COSIGNATURE = 0x04  # signatures of a witness, of a time and the text; Ed25519 too
KEY_BYTES = 32
KEY_ID_BYTES = 4

MAX_NOTE_BYTES = 1 << 20
MAX_SIGNATURES = 100
MAX_KEY_CHARACTERS = 1_000  # of a key in text form

NAME = re.compile(r"[^\s+]+")
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f]")
VERIFIER_KEY = re.compile(r"(?P<name>[^\s+]+)\+(?P<id>[0-9a-f]{8})\+(?P<key>[A-Za-z0-9+/]+={0,2})")
SIGNATURE_LINE = re.compile(r"— (?P<name>[^\s+]+) (?P<signature>[A-Za-z0-9+/]+={0,2})")


def note_invalid(field: str, description: str) -> Invalid:
    """An Invalid for what concerns a note, its text or a key."""
    return Invalid([Violation(field, description)], "NOTE_INVALID")


def encode_base64(data: bytes) -> str:
    """Base64 in its one spelling (RFC 4648 §4), padded."""
    return base64.b64encode(data).decode()


def decode_base64(text: str) -> bytes | None:
    """The inverse of `encode_base64`; nothing for text that it does not write."""
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError:
        return None
    return data if encode_base64(data) == text else None


def check_name(name: str, field: str) -> None:
    """Refuses what is no name of a key."""
    if not NAME.fullmatch(name) or not is_text(name):
        raise note_invalid(field, "is no name of a key: it is not empty, and has no space and no '+'")


def is_text(text: str) -> bool:
    """Whether text may stand in a note."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return not CONTROL.search(text)


@dataclass(frozen=True, slots=True)
class Key:
    """A public key, and the name under which it signs."""

    name: str
    type: int  # ED25519 or COSIGNATURE
    public_key: bytes  # 32 bytes (RFC 8032 §5.1.5)

    def __post_init__(self) -> None:
        check_name(self.name, "name")
        if self.type not in (ED25519, COSIGNATURE):
            raise note_invalid("type", f"is {self.type}; a key has type {ED25519}, or {COSIGNATURE} for a witness")
        if len(self.public_key) != KEY_BYTES:
            raise note_invalid("publicKey", f"is {len(self.public_key)} bytes long; a key has {KEY_BYTES}")

    @property
    def key_id(self) -> bytes:
        """The first four bytes of a hash of the key. Others can be made with the same id: it only finds the key."""
        return hashlib.sha256(self.name.encode() + b"\n" + bytes([self.type]) + self.public_key).digest()[:KEY_ID_BYTES]


def dump_key(key: Key) -> str:
    """A key as text: `<name>+<id in hexadecimal>+<base64 of type and key>`."""
    return f"{key.name}+{key.key_id.hex()}+{encode_base64(bytes([key.type]) + key.public_key)}"


def load_key(text: str) -> Key:
    """The inverse of `dump_key`."""
    match = VERIFIER_KEY.fullmatch(text) if len(text) <= MAX_KEY_CHARACTERS else None
    data = decode_base64(match["key"]) if match else None
    if not match or not data:
        raise note_invalid("key", "is no key of the form <name>+<8 hexadecimal digits>+<base64>")
    key = Key(match["name"], data[0], data[1:])
    if key.key_id.hex() != match["id"]:
        raise note_invalid("key", f"has the id {match['id']}, which is not that of this name and key")
    return key


@dataclass(frozen=True, slots=True)
class Signature:
    """A signature under a note. Whether it is good, only its key can tell."""

    name: str
    key_id: bytes  # 4 bytes
    signature: bytes  # not empty

    def __post_init__(self) -> None:
        check_name(self.name, "name")
        if len(self.key_id) != KEY_ID_BYTES:
            raise note_invalid("keyId", f"is {len(self.key_id)} bytes long; an id has {KEY_ID_BYTES}")
        if not self.signature:
            raise note_invalid("signature", "is empty")


@dataclass(frozen=True, slots=True)
class Note:
    """A text with signatures under it; at most 1 MiB in all."""

    text: str  # ends with a line feed
    signatures: tuple[Signature, ...]  # 1 to 100

    def __post_init__(self) -> None:
        check_text(self.text)
        if not 1 <= len(self.signatures) <= MAX_SIGNATURES:
            raise note_invalid("signatures", f"has {len(self.signatures)} items; 1 to {MAX_SIGNATURES} are allowed")
        check_bytes(dump_note(self))


def check_text(text: str) -> None:
    """Refuses what is no text of a note."""
    if not text.endswith("\n") or not is_text(text):
        raise note_invalid("text", "is no text of a note: it ends with a line feed, and has no other control character")


def check_bytes(data: bytes) -> None:
    """Refuses a note that is too long, before it is read."""
    if len(data) > MAX_NOTE_BYTES:
        raise note_invalid("note", f"is {len(data)} bytes long; at most {MAX_NOTE_BYTES} are allowed")


def dump_note(note: Note) -> bytes:
    """The bytes of a note."""
    return f"{note.text}\n".encode() + dump_signature_lines(note.signatures)


def load_note(data: bytes) -> Note:
    """The inverse of `dump_note`."""
    check_bytes(data)
    text, separator, _ = data.rpartition(b"\n\n")
    if not separator:
        raise note_invalid("note", "has no empty line between a text and its signatures")
    return Note(decode(text + b"\n"), load_signature_lines(data[len(text) + 2 :]))


def dump_signature_lines(signatures: Iterable[Signature]) -> bytes:
    """Signatures as they stand under a note, each with its line feed."""
    return "".join(f"— {each.name} {encode_base64(each.key_id + each.signature)}\n" for each in signatures).encode()


def load_signature_lines(data: bytes) -> tuple[Signature, ...]:
    """The inverse of `dump_signature_lines`, for 1 to 100 lines."""
    check_bytes(data)
    count = data.count(b"\n")
    if not data.endswith(b"\n") or not 1 <= count <= MAX_SIGNATURES:
        raise note_invalid("signatures", f"are not 1 to {MAX_SIGNATURES} lines, each with a line feed at its end")
    return tuple(load_signature(line, number) for number, line in enumerate(decode(data).split("\n")[:-1]))


def load_signature(line: str, number: int) -> Signature:
    """The signature of one line, without its line feed."""
    match = SIGNATURE_LINE.fullmatch(line)
    data = decode_base64(match["signature"]) if match else None
    if not match or not data or len(data) <= KEY_ID_BYTES:
        raise note_invalid(f"signatures[{number}]", "is no line of the form — <key name> <base64>")
    return Signature(match["name"], data[:KEY_ID_BYTES], data[KEY_ID_BYTES:])


def decode(data: bytes) -> str:
    """The characters of a part of a note."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise note_invalid("note", "is not UTF-8") from None
