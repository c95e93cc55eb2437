"""Signed notes: what is read is written again alike, and everything that is nearly a note is refused."""

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from animus.domain import note
from animus.domain.errors import Invalid
from animus.domain.note import COSIGNATURE, ED25519, Key, Note, Signature
from domain import trees
from domain.values import LAW, refusal

SUMDB = trees.read("golang-sumdb-note/notes.json")

# Text of a note: no surrogates, and of the control characters below U+0020 the line feed alone.
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters=[chr(c) for c in range(32) if c != 10]))
names = st.text(
    st.characters(exclude_categories=["Cs", "Cc", "Zs", "Zl", "Zp"], exclude_characters="+"), min_size=1, max_size=20
)
signatures = st.builds(Signature, names, st.binary(min_size=4, max_size=4), st.binary(min_size=1, max_size=80))
notes = st.builds(Note, texts.map(lambda text: text + "\n"), st.lists(signatures, min_size=1, max_size=6).map(tuple))
keys = st.builds(Key, names, st.sampled_from([ED25519, COSIGNATURE]), st.binary(min_size=32, max_size=32))

LINE = "— name.example AAAAAAE=\n"
GOOD = f"text\n\n{LINE}".encode()


def read(data: bytes) -> Note | None:
    """The note of some bytes, or nothing where they are refused."""
    try:
        return note.load_note(data)
    except Invalid as error:
        assert error.reason == "NOTE_INVALID"
        return None


@LAW
@given(notes)
def test_a_note_is_read_back(value: Note) -> None:
    """`load_note` is the inverse of `dump_note`, whatever the text."""
    assert note.load_note(note.dump_note(value)) == value
    lines = note.dump_signature_lines(value.signatures)
    assert note.load_signature_lines(lines) == value.signatures


@LAW
@given(notes, st.data())
def test_a_note_has_one_spelling(value: Note, data: st.DataObject) -> None:
    """A note with bytes changed, more or less is refused, or is what would be written for what was read."""
    whole = note.dump_note(value)
    for _ in range(20):
        at = data.draw(st.integers(0, len(whole)))
        end = data.draw(st.integers(at, min(len(whole), at + 3)))
        other = whole[:at] + data.draw(st.binary(max_size=4)) + whole[end:]
        found = read(other)
        assert found is None or note.dump_note(found) == other


def test_a_changed_byte_in_a_signature_line_never_goes_unseen() -> None:
    """Each other value of each byte of a note is refused, or gives another note."""
    value = note.load_note(GOOD)
    for at, byte in itertools.product(range(len(GOOD)), range(256)):
        if byte != GOOD[at]:
            assert read(GOOD[:at] + bytes([byte]) + GOOD[at + 1 :]) != value


NOT_NOTES = {
    "nothing": b"",
    "a text alone": b"text\n",
    "no signatures": b"text\n\n",
    "no text": b"\n" + LINE.encode(),
    "a signature alone": LINE.encode(),
    "no empty line": f"text\n{LINE}".encode(),
    "no line feed at the end": GOOD[:-1],
    "two line feeds at the end": GOOD + b"\n",
    "something after it": GOOD + b"x",
    "a line that is no signature": GOOD + b"x\n",
    "CR LF": GOOD.replace(b"\n", b"\r\n"),
    "a tab in the text": b"a\tb\n\n" + LINE.encode(),
    "a NUL in the text": b"a\x00b\n\n" + LINE.encode(),
    "an escape in the text": b"\x1b[31m\n\n" + LINE.encode(),
    "a vertical tab in a name": "a\n\n— na\x0bme AAAAAAE=\n".encode(),
    "Latin-1": "é\n\n".encode("latin-1") + LINE.encode(),
    "a surrogate": b"\xed\xa0\x80\n\n" + LINE.encode(),
    "an overlong NUL": b"\xc0\x80\n\n" + LINE.encode(),
    "a hyphen for the dash": b"a\n\n- name.example AAAAAAE=\n",
    "an en dash": "a\n\n– name.example AAAAAAE=\n".encode(),
    "no dash": b"a\n\nname.example AAAAAAE=\n",
    "no space after the dash": "a\n\n—name.example AAAAAAE=\n".encode(),
    "two spaces after the dash": "a\n\n—  name.example AAAAAAE=\n".encode(),
    "a space at the end": "a\n\n— name.example AAAAAAE= \n".encode(),
    "two spaces between": "a\n\n— name.example  AAAAAAE=\n".encode(),
    "no name": "a\n\n— AAAAAAE=\n".encode(),
    "a name with a plus sign": "a\n\n— na+me AAAAAAE=\n".encode(),
    "a name with a space of Unicode": "a\n\n— na\u00a0me AAAAAAE=\n".encode(),
    "a name with an ideographic space": "a\n\n— na\u3000me AAAAAAE=\n".encode(),
    "a name with a line separator": "a\n\n— na\u2028me AAAAAAE=\n".encode(),
    "a name with a next line": "a\n\n— na\x85me AAAAAAE=\n".encode(),
    "no base64": "a\n\n— name.example \n".encode(),
    "no padding": "a\n\n— name.example AAAAAAE\n".encode(),
    "too much padding": "a\n\n— name.example AAAAAAE==\n".encode(),
    "bits in the padding": "a\n\n— name.example AAAAAAF=\n".encode(),
    "base64 of URLs": "a\n\n— name.example AAAAA-_=\n".encode(),
    "a line feed in base64": "a\n\n— name.example AAAA\nAAE=\n".encode(),
    "a key id alone": "a\n\n— name.example AAAAAA==\n".encode(),
    "less than a key id": "a\n\n— name.example AAAA\n".encode(),
    "a byte order mark before a line": "a\n\n\ufeff— name.example AAAAAAE=\n".encode(),
}


@pytest.mark.parametrize("name", NOT_NOTES)
def test_what_is_nearly_a_note_is_refused(name: str) -> None:
    """Each near miss is Invalid with the reason; the note that they are near is not."""
    assert read(GOOD)
    assert read(NOT_NOTES[name]) is None


def test_a_line_at_fault_is_named_by_its_place() -> None:
    """The field says which signature line it is, for one that has only a key id too."""
    for line in ("— name.example AAAAAA==\n", "— name.example AAAA\n", "x\n"):
        assert refusal(note.load_note, GOOD + line.encode()).field == "signatures[1]"


def test_a_text_may_hold_anything_that_text_may() -> None:
    """Empty lines, lines like signatures, DEL and every plane of Unicode are text; the last empty line parts it."""
    for text in ("\n", "\n\n\n", "a\n\nb\n", f"a\n\n{LINE}", f"{LINE}", "\x7f\x80\u2028\U0010ffff\n", "— \n", " \n"):
        value = note.load_note(f"{text}\n{LINE}".encode())
        assert value.text == text
        assert len(value.signatures) == 1


def test_a_note_is_bounded_before_it_is_read() -> None:
    """1 MiB and 100 signatures are read, one byte or one signature more is refused, and 16 are nothing special."""
    for count in (16, 100):
        assert len(note.load_note(b"a\n\n" + LINE.encode() * count).signatures) == count
    assert refusal(note.load_note, b"a\n\n" + LINE.encode() * 101).field == "signatures"
    assert refusal(note.load_signature_lines, LINE.encode() * 101).field == "signatures"
    room = note.MAX_NOTE_BYTES - len(f"\n\n{LINE}".encode())
    largest = b"a" * room + b"\n\n" + LINE.encode()
    assert len(note.load_note(largest).text) == room + 1
    assert refusal(note.load_note, b"a" + largest).field == "note"
    assert refusal(note.load_note, b"\xff" * (note.MAX_NOTE_BYTES + 1)).field == "note"
    assert refusal(note.load_signature_lines, b"\n" * (note.MAX_NOTE_BYTES + 1)).field == "note"
    signature = note.load_note(GOOD).signatures[0]
    assert refusal(Note, "a" * (room + 1) + "\n", (signature,)).field == "note"
    assert refusal(Note, "a\n", ()).field == "signatures"
    assert refusal(Note, "a\n", (signature,) * 101).field == "signatures"


def test_a_value_that_could_not_be_written_does_not_exist() -> None:
    """Texts, names, ids and signatures that break a rule are refused by field."""
    good = Signature("n", bytes(4), b"s")
    for text in ("", "a", "a\r\n", "a\x00\n", "\ud800\n"):
        assert refusal(Note, text, (good,)).field == "text"
    for name in ("", "a b", "a+b", "a\n", "\u2003", "\x00", "a\x1fb", "\ud800"):
        assert refusal(Signature, name, bytes(4), b"s").field == "name"
        assert refusal(Key, name, ED25519, bytes(32)).field == "name"
    for key_id in (b"", bytes(3), bytes(5)):
        assert refusal(Signature, "n", key_id, b"s").field == "keyId"
    assert refusal(Signature, "n", bytes(4), b"").field == "signature"
    for wrong in (0, 2, 3, 5, 6, 255, 256, -1):
        assert refusal(Key, "n", wrong, bytes(32)).field == "type"
    for public_key in (b"", bytes(31), bytes(33)):
        assert refusal(Key, "n", ED25519, public_key).field == "publicKey"


# Keys.


@LAW
@given(keys)
def test_a_key_is_read_back(key: Key) -> None:
    """`load_key` is the inverse of `dump_key`."""
    assert note.load_key(note.dump_key(key)) == key


def test_a_changed_key_is_refused() -> None:
    """Another character at any place of a key, one more and one less, is refused: the id is of name, type and key."""
    text = SUMDB["keys"]["PeterNeumann"]
    for at in range(len(text)):
        assert refusal(note.load_key, text[:at] + text[at + 1 :])
        for other in set("PA0a9+/= \n—é") - {text[at]}:
            assert refusal(note.load_key, text[:at] + other + text[at + 1 :])
            assert refusal(note.load_key, text[:at] + other + text[at:])


def test_a_key_in_capitals_or_too_long_is_refused() -> None:
    """An id has lower-case digits, and a key in text form at most 1,000 characters."""
    text = SUMDB["keys"]["EnochRoot"]
    assert refusal(note.load_key, text.replace("af0cfe78", "AF0CFE78")).field == "key"
    longest = note.dump_key(Key("n" * (note.MAX_KEY_CHARACTERS - 54), ED25519, bytes(32)))
    assert len(longest) == note.MAX_KEY_CHARACTERS
    assert note.load_key(longest)
    longer = note.dump_key(Key("n" * (note.MAX_KEY_CHARACTERS - 53), ED25519, bytes(32)))
    assert refusal(note.load_key, longer).field == "key"


@pytest.mark.parametrize("text", SUMDB["bad_vkeys"])
def test_the_bad_keys_of_the_checksum_database_are_refused(text: str) -> None:
    """A key with too much base64, and one of an unknown type."""
    assert refusal(note.load_key, text)


@pytest.mark.parametrize("name", SUMDB["keys"])
def test_the_keys_of_the_checksum_database_are_read(name: str) -> None:
    """Each published key has its name and is written alike."""
    key = note.load_key(SUMDB["keys"][name])
    assert (key.name, key.type) == (name, ED25519)
    assert note.dump_key(key) == SUMDB["keys"][name]


def test_an_id_tells_the_type() -> None:
    """One public key under one name has another id for each type, and another under each name."""
    ids = {Key(name, kind, bytes(32)).key_id for name in ("a", "b") for kind in (ED25519, COSIGNATURE)}
    assert len(ids) == 4


# Published notes.


@pytest.mark.parametrize("example", trees.examples("signed-note.md"))
def test_the_examples_of_signed_note_are_read(example: dict[str, Any]) -> None:
    """Each printed note is read and written alike, its text with an empty line too."""
    data = example["note"].encode()
    value = note.load_note(data)
    assert note.dump_note(value) == data
    expected = example.get("signature_key_names", ["example.com/foo"])
    assert [each.name for each in value.signatures] == expected


def test_no_published_example_is_missing() -> None:
    """Nine examples of C2SP's pages; of the checksum database 2 keys, 2 bad ones, 2 signings and 3 readings."""
    count = {
        "signed-note.md": 2,
        "tlog-checkpoint.md": 1,
        "tlog-cosignature.md": 1,
        "tlog-witness.md": 1,
        "tlog-tiles.md": 3,
        "tlog-policy.md": 1,
    }
    assert {spec: len(trees.examples(spec)) for spec in count} == count
    assert len(trees.read("c2sp-specs/examples.json")) == sum(count.values()) == 9
    assert [len(SUMDB[part]) for part in ("keys", "bad_vkeys", "sign", "open")] == [2, 2, 2, 3]
