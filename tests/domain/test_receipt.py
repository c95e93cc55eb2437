"""Receipts: a text of one spelling, which no checkpoint is."""

from datetime import UTC

import pytest
from hypothesis import given
from hypothesis import strategies as st

from animus.domain import receipt
from animus.domain.checkpoint import Checkpoint, dump_checkpoint, load_checkpoint
from animus.domain.errors import Invalid
from animus.domain.names import format_time
from animus.domain.receipt import Receipt
from domain.values import LAW, refusal

GOOD = Receipt("animus.example/demo/1", bytes(range(32)), "0123456789abcdef" * 2, "2026-01-31T12:00:00.000000Z")
TEXT = (
    "animus/receipt/v1\nanimus.example/demo/1\nAAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n"
    "0123456789abcdef0123456789abcdef\n2026-01-31T12:00:00.000000Z\n"
)

receipts = st.builds(
    Receipt,
    st.from_regex(r"[a-z][a-z0-9./-]{0,40}/[1-9][0-9]{0,3}", fullmatch=True),
    st.binary(min_size=32, max_size=32),
    st.from_regex(r"[0-9a-f]{32}", fullmatch=True),
    st.datetimes(timezones=st.just(UTC)).map(format_time),
)


def test_the_text_of_a_receipt_is_fixed() -> None:
    """The text that others keep for years is this one."""
    assert receipt.dump_receipt(GOOD) == TEXT
    assert receipt.load_receipt(TEXT) == GOOD


@LAW
@given(receipts)
def test_a_receipt_is_read_back(value: Receipt) -> None:
    """`load_receipt` is the inverse of `dump_receipt`."""
    assert receipt.load_receipt(receipt.dump_receipt(value)) == value


def test_a_changed_receipt_is_refused_or_another() -> None:
    """Each character changed, left out or doubled is refused, or says something else and is written so."""
    for at in range(len(TEXT)):
        for put in ("", TEXT[at] * 2, *("0aAzZ=+/\n \t\x00é٠" if TEXT[at] not in "\n" else "x")):
            other = TEXT[:at] + put + TEXT[at + 1 :]
            try:
                found = receipt.load_receipt(other)
            except Invalid as error:
                assert error.reason == "NOTE_INVALID"
            else:
                assert receipt.dump_receipt(found) == other
                assert (found == GOOD) == (other == TEXT)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        TEXT[:-1],
        TEXT + "\n",
        TEXT + "more\n",
        TEXT + "x",
        TEXT.replace("v1", "v2"),
        TEXT.replace("\n", "\r\n"),
        " " + TEXT,
    ]
    + [TEXT.replace(line + "\n", "") for line in TEXT.split("\n")[:-1]]
    + [TEXT.replace(line, "") for line in TEXT.split("\n")[:-1]],
)
def test_other_lines_are_no_receipt(text: str) -> None:
    """A line more, less or empty is refused."""
    with pytest.raises(Invalid) as caught:
        receipt.load_receipt(text)
    assert caught.value.reason == "NOTE_INVALID"


def test_a_receipt_that_could_not_be_written_does_not_exist() -> None:
    """Each part that breaks its rule is refused by field, with the reason of notes."""
    origin, leaf_hash, entry_id, time = "log.example/1", bytes(32), "0" * 32, "2026-01-31T12:00:00.000000Z"
    for wrong in ("", "a b", "a+b", "a\nb", "\x00", "7", "٣"):
        assert refusal(Receipt, wrong, leaf_hash, entry_id, time).field == "origin"
    for short in (b"", bytes(31), bytes(33)):
        assert refusal(Receipt, origin, short, entry_id, time).field == "leafHash"
    for wrong in ("", "0" * 31, "A" * 32):
        assert refusal(Receipt, origin, leaf_hash, wrong, time).field == "entryId"
    for wrong in ("", "2026-01-31T12:00:00Z", "2026-02-30T12:00:00.000000Z"):
        with pytest.raises(Invalid) as caught:
            Receipt(origin, leaf_hash, entry_id, wrong)
        assert (caught.value.reason, caught.value.violations[0].field) == ("NOTE_INVALID", "promisedBy")
    longest = receipt.MAX_RECEIPT_CHARACTERS - len(TEXT) + len(GOOD.origin)
    assert receipt.load_receipt(receipt.dump_receipt(Receipt("o" * longest, leaf_hash, entry_id, time)))
    assert refusal(Receipt, "o" * (longest + 1), leaf_hash, entry_id, time).field == "origin"
    assert refusal(receipt.load_receipt, TEXT.replace("demo", "o" * 1_000)).field == "text"


@LAW
@given(receipts, st.integers(0, 2**63 - 1))
def test_a_receipt_is_no_checkpoint_and_a_checkpoint_no_receipt(value: Receipt, size: int) -> None:
    """One key signs both, and neither text can be read as the other, whatever a checkpoint's lines are."""
    assert refusal(load_checkpoint, receipt.dump_receipt(value)).field == "size"
    text = dump_checkpoint(Checkpoint(receipt.HEADER, size, value.leaf_hash, (value.entry_id, value.promised_by)))
    assert refusal(receipt.load_receipt, text)
