"""Checkpoints and proofs as texts: published ones come out as published, and each text has one spelling."""

import base64
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from animus.domain import checkpoint, note
from animus.domain.checkpoint import Checkpoint, CheckpointRequest, TlogProof
from animus.domain.errors import Invalid
from domain import trees
from domain.trees import LEAVES, unbase64
from domain.values import LAW, refusal

PARSE = trees.read("transparency-dev-formats/checkpoint_parse.json")
PROOFS = trees.read("transparency-dev-formats/tlog_proof.json")

lines = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters=[chr(c) for c in range(32)]), min_size=1, max_size=30
)
sizes = st.integers(0, 2**63 - 1) | st.integers(0, 100)
hashes = st.binary(min_size=32, max_size=32)
checkpoints = st.builds(Checkpoint, lines, sizes, hashes, st.lists(lines, max_size=3).map(tuple))
ends = st.binary(max_size=60).map(lambda data: data + b"\n")
proofs = st.builds(
    TlogProof, st.integers(0, 2**63 - 2), st.lists(hashes, max_size=64).map(tuple), st.binary(max_size=50), ends
)
requests = st.builds(
    CheckpointRequest, st.integers(1, 2**63 - 1), st.lists(hashes, max_size=63).map(tuple), ends
) | st.builds(CheckpointRequest, st.just(0), st.just(()), ends)


def read(load: Callable[[Any], Any], data: Any) -> Any:
    """What a text says, or nothing where it is refused."""
    try:
        return load(data)
    except Invalid as error:
        assert error.reason in ("NOTE_INVALID", "PROOF_INVALID")
        return None


@LAW
@given(checkpoints)
def test_a_checkpoint_is_read_back(value: Checkpoint) -> None:
    """`load_checkpoint` is the inverse of `dump_checkpoint`."""
    assert checkpoint.load_checkpoint(checkpoint.dump_checkpoint(value)) == value


@LAW
@given(proofs, requests)
def test_a_proof_and_a_request_are_read_back(proof: TlogProof, request: CheckpointRequest) -> None:
    """`load_*` is the inverse of `dump_*`, whatever bytes the checkpoint is."""
    assert checkpoint.load_proof(checkpoint.dump_proof(proof)) == proof
    assert checkpoint.load_request(checkpoint.dump_request(request)) == request


@LAW
@given(checkpoints, proofs, requests, st.data())
def test_each_text_has_one_spelling(
    value: Checkpoint, proof: TlogProof, request: CheckpointRequest, data: st.DataObject
) -> None:
    """A text with some of it changed, more or less is refused, or is what would be written for what was read."""
    text = checkpoint.dump_checkpoint(value)
    pieces = st.text("0123456789\n =+Aé\t", max_size=3)
    for _ in range(10):
        at = data.draw(st.integers(0, len(text)))
        end = data.draw(st.integers(at, min(len(text), at + 3)))
        other = text[:at] + data.draw(pieces) + text[end:]
        found = read(checkpoint.load_checkpoint, other)
        assert found is None or checkpoint.dump_checkpoint(found) == other
    for whole, load, dump in (
        (checkpoint.dump_proof(proof), checkpoint.load_proof, checkpoint.dump_proof),
        (checkpoint.dump_request(request), checkpoint.load_request, checkpoint.dump_request),
    ):
        for _ in range(10):
            place = data.draw(st.integers(0, len(whole)))
            stop = data.draw(st.integers(place, min(len(whole), place + 3)))
            changed = whole[:place] + data.draw(pieces).encode() + whole[stop:]
            found = read(load, changed)
            assert found is None or dump(found) == changed


# Checkpoints.

ROOT = "CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I="
GOOD = f"log.example/1\n42\n{ROOT}\n"

NOT_CHECKPOINTS = {
    "nothing": "",
    "a line feed": "\n",
    "no origin": f"42\n{ROOT}\n",
    "an empty origin": f"\n42\n{ROOT}\n",
    "no size": f"log.example/1\n{ROOT}\n",
    "no root": "log.example/1\n42\n",
    "an empty root": "log.example/1\n42\n\n",
    "an empty extension": f"{GOOD}\n",
    "an empty line among extensions": f"{GOOD}a\n\nb\n",
    "no line feed at the end": GOOD[:-1],
    "a leading zero": GOOD.replace("42", "042"),
    "two zeros": GOOD.replace("42", "00"),
    "a sign": GOOD.replace("42", "+42"),
    "minus zero": GOOD.replace("42", "-0"),
    "a space before the size": GOOD.replace("42", " 42"),
    "a space after the size": GOOD.replace("42", "42 "),
    "hexadecimal": GOOD.replace("42", "0x2a"),
    "underscores": GOOD.replace("42", "4_2"),
    "digits of another script": GOOD.replace("42", "٤٢"),
    "2^63": GOOD.replace("42", str(2**63)),
    "twenty digits": GOOD.replace("42", "9" * 20),
    "a million digits": GOOD.replace("42", "9" * 1_000_000),
    "a root of 31 bytes": GOOD.replace(ROOT, base64.b64encode(bytes(31)).decode()),
    "a root of 33 bytes": GOOD.replace(ROOT, base64.b64encode(bytes(33)).decode()),
    "no padding": GOOD.replace(ROOT, ROOT[:-1]),
    "bits in the padding": GOOD.replace("q2I=", "q2J="),
    "base64 of URLs": GOOD.replace("/X", "_X"),
    "a space after the root": GOOD.replace(ROOT, ROOT + " "),
    "a tab": GOOD.replace("log", "l\tog"),
    "a carriage return": GOOD.replace("\n", "\r\n"),
    "a surrogate": GOOD.replace("log", "\ud800"),
    "a note": f"{GOOD}\n— log.example/1 AAAAAAE=\n",
}


@pytest.mark.parametrize("name", NOT_CHECKPOINTS)
def test_what_is_nearly_a_checkpoint_is_refused(name: str) -> None:
    """Each near miss is Invalid with the reason; the checkpoint that they are near is not."""
    assert checkpoint.load_checkpoint(GOOD) == Checkpoint("log.example/1", 42, base64.b64decode(ROOT), ())
    with pytest.raises(Invalid) as caught:
        checkpoint.load_checkpoint(NOT_CHECKPOINTS[name])
    assert caught.value.reason == "NOTE_INVALID"


def test_a_checkpoint_that_could_not_be_written_does_not_exist() -> None:
    """Lines that are none, sizes that no tree has and roots that are no hash are refused by field."""
    for line in ("", "a\n", "a\nb", "\x00", "a\tb", "\ud800"):
        assert refusal(Checkpoint, line, 1, bytes(32), ()).field == "origin"
        assert refusal(Checkpoint, "a", 1, bytes(32), ("b", line)).field == "extensions[1]"
    for size in (-1, 2**63):
        assert refusal(Checkpoint, "a", size, bytes(32), ()).field == "size"
    for root in (b"", bytes(31), bytes(33)):
        assert refusal(Checkpoint, "a", 1, root, ()).field == "rootHash"


def test_a_checkpoint_is_bounded_before_it_is_read() -> None:
    """More than 1 MiB is refused for its length, and a size beyond 2^63-1 when the text is taken apart."""
    assert refusal(checkpoint.checkpoint_parts, GOOD.replace("42", str(2**63))).field == "size"
    assert refusal(checkpoint.load_checkpoint, GOOD + "x" * note.MAX_NOTE_BYTES + "\n").field == "note"


@pytest.mark.parametrize("case", [pytest.param(case, id=case["desc"]) for case in PARSE])
def test_a_published_body_comes_out_as_published(case: dict[str, Any]) -> None:
    """Each checkpoint body of transparency-dev/formats is parsed or refused as it says; such roots make no value."""
    found = read(checkpoint.checkpoint_parts, case["body"])
    if not case["ok"]:
        assert found is None
        return
    (root,) = unbase64([case.get("root_base64", case["body"].split("\n")[2])])
    assert found == (case["origin"], case["size"], root, tuple(case.get("extensions", ())))
    assert refusal(checkpoint.load_checkpoint, case["body"]).field == "rootHash"


def test_no_published_body_is_missing() -> None:
    """Ten checkpoint bodies, three of them good; three texts of proofs, and eight bad ones."""
    assert [case["ok"] for case in PARSE].count(True) == 3
    assert len(PARSE) == 10
    assert (len(PROOFS["marshal"]), len(PROOFS["reject"])) == (3, 8)


@pytest.mark.parametrize("example", trees.examples("tlog-checkpoint.md"))
def test_the_example_of_tlog_checkpoint_is_read(example: dict[str, Any]) -> None:
    """Origin, size and root are those printed, and the note is written alike."""
    data = example["note"].encode()
    value = note.load_note(data)
    found = checkpoint.load_checkpoint(value.text)
    (root,) = unbase64([example["root_base64"]])
    assert found == Checkpoint(example["origin"], example["size"], root, ())
    assert checkpoint.dump_checkpoint(found) == value.text
    assert note.dump_note(value) == data


@pytest.mark.parametrize("example", trees.examples("tlog-cosignature.md"))
def test_the_example_of_tlog_cosignature_is_read(example: dict[str, Any]) -> None:
    """The witness's line holds the printed time, and what it signed is the printed message."""
    value = note.load_note(example["note"].encode())
    assert [each.name for each in value.signatures] == example["signature_key_names"]
    signature = value.signatures[1].signature
    assert len(signature) == 72
    time = example["cosignature_timestamp"]
    assert signature[:8] == time.to_bytes(8, "big")
    assert checkpoint.cosignature_message(time, value.text) == example[f"cosigned_message_for_time_{time}"].encode()


def test_a_time_that_no_cosignature_has_is_refused() -> None:
    """Times are from 0 to 2^63-1, and what is signed is a text of a note."""
    assert checkpoint.cosignature_message(0, "a\n") == b"cosignature/v1\ntime 0\na\n"
    assert checkpoint.cosignature_message(2**63 - 1, "a\n").startswith(b"cosignature/v1\ntime 9223372036854775807\n")
    for time in (-1, 2**63):
        assert refusal(checkpoint.cosignature_message, time, "a\n").field == "time"
    assert refusal(checkpoint.cosignature_message, 1, "a").field == "text"


# Proofs and requests.

H = base64.b64encode(LEAVES[0]).decode()
NOT_PROOFS = {
    "nothing": "",
    "another version": f"c2sp.org/tlog-proof@v2\nindex 0\n{H}\n\nx\n",
    "no checkpoint": f"c2sp.org/tlog-proof@v1\nindex 0\n{H}\n",
    "an empty checkpoint": f"c2sp.org/tlog-proof@v1\nindex 0\n{H}\n\n",
    "a checkpoint without an end": f"c2sp.org/tlog-proof@v1\nindex 0\n{H}\n\nx",
    "no header": f"index 0\n{H}\n\nx\n",
    "a space before the header": f" c2sp.org/tlog-proof@v1\nindex 0\n{H}\n\nx\n",
    "a leading zero": f"c2sp.org/tlog-proof@v1\nindex 00\n{H}\n\nx\n",
    "a sign": f"c2sp.org/tlog-proof@v1\nindex +1\n{H}\n\nx\n",
    "two spaces": f"c2sp.org/tlog-proof@v1\nindex  1\n{H}\n\nx\n",
    "2^63 - 1": f"c2sp.org/tlog-proof@v1\nindex {2**63 - 1}\n{H}\n\nx\n",
    "the index after the hashes": f"c2sp.org/tlog-proof@v1\n{H}\nindex 0\n\nx\n",
    "the extra after the index": f"c2sp.org/tlog-proof@v1\nindex 0\nextra AAAA\n{H}\n\nx\n",
    "two extras": f"c2sp.org/tlog-proof@v1\nextra AAAA\nextra AAAA\nindex 0\n{H}\n\nx\n",
    "an extra of nothing": f"c2sp.org/tlog-proof@v1\nextra \nindex 0\n{H}\n\nx\n",
    "an extra without padding": f"c2sp.org/tlog-proof@v1\nextra AA\nindex 0\n{H}\n\nx\n",
    "a hash of 31 bytes": f"c2sp.org/tlog-proof@v1\nindex 0\n{base64.b64encode(bytes(31)).decode()}\n\nx\n",
    "a hash with bits in the padding": f"c2sp.org/tlog-proof@v1\nindex 0\n{'A' * 42}B=\n\nx\n",
    "a space after a hash": f"c2sp.org/tlog-proof@v1\nindex 0\n{H} \n\nx\n",
    "CR LF": f"c2sp.org/tlog-proof@v1\r\nindex 0\r\n{H}\r\n\r\nx\r\n",
    "what is no ASCII": f"c2sp.org/tlog-proof@v1\nindex ٠\n{H}\n\nx\n",
    "65 hashes": "c2sp.org/tlog-proof@v1\nindex 0\n" + f"{H}\n" * 65 + "\nx\n",
}
NOT_REQUESTS = {
    "nothing": "",
    "no old size": f"{H}\n\nx\n",
    "an empty line first": f"\nold 1\n{H}\n\nx\n",
    "no checkpoint": f"old 1\n{H}\n",
    "an empty checkpoint": f"old 1\n{H}\n\n",
    "a checkpoint without an end": f"old 1\n{H}\n\nx",
    "a leading zero": f"old 01\n{H}\n\nx\n",
    "a sign": f"old -1\n{H}\n\nx\n",
    "two spaces": f"old  1\n{H}\n\nx\n",
    "a tab": f"old\t1\n{H}\n\nx\n",
    "capitals": f"OLD 1\n{H}\n\nx\n",
    "2^63": f"old {2**63}\n{H}\n\nx\n",
    "a hash from size 0": f"old 0\n{H}\n\nx\n",
    "a hash of 33 bytes": f"old 1\n{base64.b64encode(bytes(33)).decode()}\n\nx\n",
    "no base64": "old 1\n!\n\nx\n",
    "64 hashes": "old 1\n" + f"{H}\n" * 64 + "\nx\n",
}


@pytest.mark.parametrize("name", NOT_PROOFS)
def test_what_is_nearly_a_proof_is_refused(name: str) -> None:
    """Each near miss is Invalid with the reason; the proof that they are near is not."""
    assert checkpoint.load_proof(f"c2sp.org/tlog-proof@v1\nindex 0\n{H}\n\nx\n".encode())
    with pytest.raises(Invalid) as caught:
        checkpoint.load_proof(NOT_PROOFS[name].encode())
    assert caught.value.reason == "PROOF_INVALID"


@pytest.mark.parametrize("name", NOT_REQUESTS)
def test_what_is_nearly_a_request_is_refused(name: str) -> None:
    """Each near miss is Invalid with the reason; the request that they are near is not."""
    assert checkpoint.load_request(f"old 1\n{H}\n\nx\n".encode())
    assert checkpoint.load_request(b"old 0\n\nx\n")
    with pytest.raises(Invalid) as caught:
        checkpoint.load_request(NOT_REQUESTS[name].encode())
    assert caught.value.reason == "PROOF_INVALID"


def test_bytes_that_are_no_text_are_refused() -> None:
    """What is no UTF-8 before the checkpoint is Invalid too; after it, it is the note's."""
    assert refusal(checkpoint.load_proof, b"c2sp.org/tlog-proof@v1\nindex \xff\n\nx\n").field == "text"
    assert refusal(checkpoint.load_request, b"old \xff\n\nx\n").field == "text"
    assert checkpoint.load_request(b"old 0\n\n\xff\n").checkpoint == b"\xff\n"


def test_texts_of_proofs_are_bounded_before_they_are_read() -> None:
    """64 hashes, 63 in a request, 65,535 extra bytes and a note of 1 MiB are read; more is refused."""
    largest = TlogProof(2**63 - 2, (bytes(32),) * 64, bytes(65_535), b"x" * (note.MAX_NOTE_BYTES - 1) + b"\n")
    assert checkpoint.load_proof(checkpoint.dump_proof(largest)) == largest
    request = CheckpointRequest(2**63 - 1, (bytes(32),) * 63, largest.checkpoint)
    assert checkpoint.load_request(checkpoint.dump_request(request)) == request
    assert refusal(TlogProof, 0, (bytes(32),) * 65, b"", b"\n").field == "proof"
    assert refusal(TlogProof, 0, (), bytes(65_536), b"\n").field == "extra"
    assert refusal(TlogProof, 0, (), b"", b"x" + largest.checkpoint).field == "checkpoint"
    assert refusal(TlogProof, 0, (), b"", b"").field == "checkpoint"
    assert refusal(TlogProof, -1, (), b"", b"\n").field == "index"
    assert refusal(TlogProof, 0, (bytes(31),), b"", b"\n").field == "proof[0]"
    assert refusal(CheckpointRequest, 1, (bytes(32),) * 64, b"\n").field == "proof"
    assert refusal(CheckpointRequest, 0, (bytes(32),), b"\n").field == "proof"
    assert refusal(CheckpointRequest, -1, (), b"\n").field == "oldSize"
    assert refusal(CheckpointRequest, 2**63, (), b"\n").field == "oldSize"
    assert refusal(checkpoint.load_proof, checkpoint.dump_proof(largest) + b"x" * 20_000 + b"\n").field == "text"
    assert refusal(checkpoint.load_request, b"a" * 200_000 + b"\n\nx\n").field == "text"


@pytest.mark.parametrize("case", PROOFS["marshal"], ids=lambda case: f"index {case['index']}")
def test_a_published_proof_is_written_and_read_alike(case: dict[str, Any]) -> None:
    """Each text of transparency-dev/formats is the value's, in both directions."""
    extra, *rest = unbase64([case.get("extra_base64", ""), *case["hashes_base64"]])
    value = TlogProof(case["index"], tuple(rest), extra, case["checkpoint"].encode())
    assert checkpoint.dump_proof(value) == case["text"].encode()
    assert checkpoint.load_proof(case["text"].encode()) == value


@pytest.mark.parametrize("case", PROOFS["reject"], ids=lambda case: case["desc"])
def test_a_published_bad_proof_is_refused(case: dict[str, Any]) -> None:
    """Each bad text of transparency-dev/formats is Invalid."""
    text = case.get("text")
    if text is None:
        repeated, times = case["then_repeat"]
        text = case["text_prefix"] + repeated * times + case["then"]
    assert read(checkpoint.load_proof, text.encode()) is None


@pytest.mark.parametrize("example", trees.examples("tlog-witness.md"))
def test_the_example_of_tlog_witness_is_read(example: dict[str, Any]) -> None:
    """Old size and number of hashes are those printed, the checkpoint is a note, and the body is written alike."""
    data = example["request"].encode()
    request = checkpoint.load_request(data)
    assert (request.old_size, len(request.proof)) == (example["old_size"], example["proof_lines"])
    assert checkpoint.dump_request(request) == data
    value = note.load_note(request.checkpoint)
    assert len(value.signatures) == 2
    assert checkpoint.load_checkpoint(value.text).size == 20_852_163
