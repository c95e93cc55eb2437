"""Receipts: a log's signed promise that an entry will be in its tree by a time.

The text of the note has five lines: `animus/receipt/v1`, the log's origin, the base64 of the entry's leaf hash, its id,
and the time. The key that signs it signs checkpoints too. Neither passes for the other: the second line of a checkpoint
is a number, and an origin is none.

All bad input raises Invalid with the reason NOTE_INVALID.
"""

from dataclasses import dataclass

from animus.domain.errors import Invalid
from animus.domain.merkle import HASH_BYTES
from animus.domain.names import RANDOM_ID, check_time
from animus.domain.note import check_name, decode_base64, encode_base64, note_invalid

HEADER = "animus/receipt/v1"
MAX_RECEIPT_CHARACTERS = 1_000


@dataclass(frozen=True, slots=True)
class Receipt:
    """What was promised."""

    origin: str  # the log, and the name of the key that signs for it; no number
    leaf_hash: bytes  # 32 bytes
    entry_id: str  # 32 hexadecimal digits
    promised_by: str  # 2026-01-31T12:00:00.000000Z

    def __post_init__(self) -> None:
        check_name(self.origin, "origin")
        if self.origin.isdecimal():
            raise note_invalid("origin", "is a number; a receipt could be taken for a checkpoint")
        if len(self.leaf_hash) != HASH_BYTES:
            raise note_invalid("leafHash", f"is {len(self.leaf_hash)} bytes long; a hash has {HASH_BYTES}")
        if not RANDOM_ID.fullmatch(self.entry_id):
            raise note_invalid("entryId", "is no id of 32 lower-case hexadecimal digits")
        try:
            check_time(self.promised_by, "promisedBy")
        except Invalid as error:
            raise Invalid(error.violations, "NOTE_INVALID") from None
        if len(dump_receipt(self)) > MAX_RECEIPT_CHARACTERS:
            raise note_invalid("origin", f"makes the receipt longer than {MAX_RECEIPT_CHARACTERS} characters")


def dump_receipt(receipt: Receipt) -> str:
    """The text of a receipt."""
    lines = (HEADER, receipt.origin, encode_base64(receipt.leaf_hash), receipt.entry_id, receipt.promised_by)
    return "".join(f"{line}\n" for line in lines)


def load_receipt(text: str) -> Receipt:
    """The inverse of `dump_receipt`."""
    lines = text.split("\n") if len(text) <= MAX_RECEIPT_CHARACTERS else []
    if len(lines) != 6 or lines[0] != HEADER or lines[5]:
        raise note_invalid("text", f"is no receipt: five lines, the first of them {HEADER}")
    leaf_hash = decode_base64(lines[2])
    if leaf_hash is None:
        raise note_invalid("leafHash", "is no base64")
    return Receipt(lines[1], leaf_hash, lines[3], lines[4])
