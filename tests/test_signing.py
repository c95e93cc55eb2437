"""Signatures: the accepted set is that of a second implementation, and notes are opened by known keys or not at all."""

import base64
import dataclasses
import itertools
import secrets
from collections.abc import Callable, Iterator
from hashlib import sha256
from typing import Any

import ed25519_stdlib as ed
import pytest
from domain import trees
from domain.trees import flips
from domain.values import LAW, refusal
from hypothesis import given
from hypothesis import strategies as st

from animus import signing
from animus.domain import merkle
from animus.domain.checkpoint import Checkpoint, dump_checkpoint
from animus.domain.errors import Invalid
from animus.domain.note import COSIGNATURE, ED25519, Key, Note, Signature, dump_key, dump_note, load_key, load_note
from animus.domain.receipt import Receipt, dump_receipt
from animus.signing import SigningKey, verify

Verify = Callable[[bytes, bytes, bytes], bool]

SEED = bytes(range(32))
MESSAGE = b"a message"


def lenient(data: bytes) -> ed.Point | None:
    """The point that a lenient reader sees: y modulo p, and no negative zero."""
    number = int.from_bytes(data, "little")
    y, sign = (number & 2**255 - 1) % ed.P, number >> 255
    return ed.at(y, sign) or ed.at(y, 0)


def holds(public_key: bytes, message: bytes, signature: bytes) -> bool:
    """Whether the equation holds: all that a lenient check asks."""
    key = lenient(public_key)
    if key is None:
        return False
    k, s = ed.challenge(signature[:32], public_key, message), int.from_bytes(signature[32:], "little")
    return ed.encode(ed.add(ed.multiply(s, ed.BASE), ed.multiply(k, ed.negate(key)))) == signature[:32]


def both(public_key: bytes, message: bytes, signature: bytes) -> bool:
    """The answer of `verify`, which is that of the second implementation."""
    answer = verify(public_key, message, signature)
    assert answer == ed.verify(public_key, message, signature), (public_key, message, signature)
    return answer


# Special points.


def torsion() -> list[ed.Point]:
    """The eight points of small order: what is left of points when multiplied by L."""
    found: dict[bytes, ed.Point] = {}
    for y in range(2, 100):
        if point := ed.at(y, 0):
            left = ed.multiply(ed.L, point)
            for times in range(8):
                multiple = ed.multiply(times, left)
                found[ed.encode(multiple)] = multiple
    return list(found.values())


SMALL = torsion()
GENERATOR = next(point for point in SMALL if ed.encode(ed.multiply(4, point)) != ed.encode(ed.IDENTITY))


def spelled(y: int, sign: int) -> bytes:
    """An encoding, whether or not it is of a point."""
    return (y | sign << 255).to_bytes(32, "little")


# Every encoding that is no canonical one by its number, and negative zeros.
NOT_CANONICAL = [spelled(y, sign) for y in range(ed.P, 2**255) for sign in (0, 1)]
NOT_CANONICAL += [spelled(1, 1), spelled(ed.P - 1, 1)]


def of_small_order() -> list[bytes]:
    """Every encoding that a lenient reader takes for a point of small order."""
    small = {ed.encode(point) for point in SMALL}
    ys = {int.from_bytes(each, "little") & 2**255 - 1 for each in small}
    return sorted({spelled(y + more, sign) for y in ys for more in (0, ed.P) for sign in (0, 1) if y + more < 2**255})


def test_special_points_are_all_there() -> None:
    """Eight points of small order in 14 spellings, and 40 encodings that are not canonical; the constants agree."""
    assert len(SMALL) == 8
    assert all(ed.is_small(point) for point in SMALL)
    assert {int.from_bytes(ed.encode(point), "little") & 2**255 - 1 for point in SMALL} == signing.SMALL_ORDER
    assert len(of_small_order()) == 14
    assert len(NOT_CANONICAL) == 40
    for point in of_small_order() + NOT_CANONICAL:
        assert not signing.is_sound(point)
    assert signing.is_sound(ed.encode(ed.BASE))
    assert ed.encode(ed.multiply(ed.L, ed.BASE)) == ed.encode(ed.IDENTITY)


# The same set.

WYCHEPROOF = [
    (bytes.fromhex(group["publicKey"]["pk"]), test)
    for group in trees.read("wycheproof/ed25519_test.json")["testGroups"]
    for test in group["tests"]
]


@pytest.mark.parametrize(("public_key", "test"), WYCHEPROOF, ids=[str(test["tcId"]) for _, test in WYCHEPROOF])
def test_a_published_signature_comes_out_as_published(public_key: bytes, test: dict[str, Any]) -> None:
    """Each of Wycheproof's signatures is good or bad as it says, for both implementations."""
    good = both(public_key, bytes.fromhex(test["msg"]), bytes.fromhex(test["sig"]))
    assert good == (test["result"] == "valid")


def test_no_published_signature_is_missing() -> None:
    """151 signatures, 88 of them good."""
    results = [test["result"] for _, test in WYCHEPROOF]
    assert (len(results), results.count("valid"), results.count("invalid")) == (151, 88, 63)


def test_both_sign_alike() -> None:
    """The two implementations give one public key and one signature for a seed, and accept each other's."""
    for number in range(8):
        seed = sha256(bytes([number])).digest()
        key = SigningKey("n", seed)
        assert key.public_key == ed.public_key(seed)
        signature = key.sign(MESSAGE * number)
        assert signature == ed.sign(seed, MESSAGE * number)
        assert both(key.public_key, MESSAGE * number, signature)


def test_one_changed_bit_makes_a_signature_bad() -> None:
    """Each bit of a signature, a key and a message, changed alone, is refused by both."""
    key, signature = ed.public_key(SEED), ed.sign(SEED, MESSAGE)
    assert both(key, MESSAGE, signature)
    for other in flips(signature):
        assert not both(key, MESSAGE, other)
    for other in flips(key):
        assert not both(other, MESSAGE, signature)
    for other in flips(MESSAGE):
        assert not both(key, other, signature)


def test_other_lengths_are_no_keys_and_no_signatures() -> None:
    """Every length but 32 and 64, up to 100 bytes, is refused by both, cut off or filled up."""
    key, signature = ed.public_key(SEED), ed.sign(SEED, MESSAGE)
    for length in range(100):
        assert both((key * 4)[:length], MESSAGE, signature) == (length == 32)
        assert both(key, MESSAGE, (signature * 2)[:length]) == (length == 64)


def test_s_has_one_spelling() -> None:
    """S plus each multiple of the order that fits 32 bytes is refused by both, and so is S at and near the order."""
    key, signature = ed.public_key(SEED), ed.sign(SEED, MESSAGE)
    s = int.from_bytes(signature[32:], "little")
    for times in range(1, (2**256 - 1 - s) // ed.L + 1):
        assert not both(key, MESSAGE, signature[:32] + (s + times * ed.L).to_bytes(32, "little"))
    for other in (0, 1, ed.L - 1, ed.L, ed.L + 1, 2**252, 2**253, 2**255, 2**256 - 1):
        assert not both(key, MESSAGE, signature[:32] + other.to_bytes(32, "little"))


def forged_for(key: bytes, point: ed.Point) -> tuple[bytes, bytes]:
    """A message and a signature that satisfy the equation for a key of small order, without a secret."""
    for number in itertools.count():
        message = number.to_bytes(4, "big")
        s = int.from_bytes(sha256(message).digest(), "little") % ed.L
        for times in range(8):
            r = ed.encode(ed.add(ed.multiply(s, ed.BASE), ed.multiply(times, ed.negate(point))))
            k = ed.challenge(r, key, message)
            if ed.encode(ed.multiply(k, point)) == ed.encode(ed.multiply(times, point)):
                return message, r + s.to_bytes(32, "little")
    raise AssertionError


def test_keys_of_small_order_are_refused() -> None:
    """For each spelling of each, a signature for which the equation holds is refused by both."""
    for key in of_small_order():
        point = lenient(key)
        assert point is not None
        message, signature = forged_for(key, point)
        assert not both(key, message, signature)
        assert holds(key, message, signature)


def mixed_key(torsion_point: ed.Point) -> tuple[int, ed.Point, bytes]:
    """A secret and the key of it with a part of small order."""
    scalar = ed.secret(SEED)[0] % ed.L
    point = ed.add(ed.multiply(scalar, ed.BASE), torsion_point)
    return scalar, point, ed.encode(point)


def test_points_r_of_small_order_are_refused() -> None:
    """Each of the eight as R, in a signature for which the equation holds, is refused by both."""
    scalar, _, key = mixed_key(GENERATOR)
    wanted = {ed.encode(point) for point in SMALL}
    for number in range(500):
        message = number.to_bytes(4, "big")
        for r in sorted(wanted):
            k = ed.challenge(r, key, message)
            if ed.encode(ed.multiply(k, ed.negate(GENERATOR))) == r:  # [S]B - [k]A for S = k * scalar
                signature = r + (k * scalar % ed.L).to_bytes(32, "little")
                assert not both(key, message, signature)
                assert holds(key, message, signature)
                wanted.remove(r)
    assert not wanted


def test_keys_of_mixed_order_are_judged_alike() -> None:
    """With a part of each small order in the key, both accept exactly what satisfies the equation without cofactor."""
    accepted = {True: 0, False: 0}
    for part, number in itertools.product(SMALL, range(12)):
        scalar, _, key = mixed_key(part)
        message = number.to_bytes(4, "big")
        nonce = int.from_bytes(sha256(message).digest(), "little") % ed.L
        plain = ed.multiply(nonce, ed.BASE)
        for r in {ed.encode(plain), ed.encode(ed.add(plain, ed.negate(part)))}:
            k = ed.challenge(r, key, message)
            signature = r + ((nonce + k * scalar) % ed.L).to_bytes(32, "little")
            right = ed.encode(ed.add(plain, ed.multiply(k, ed.negate(part)))) == r
            assert both(key, message, signature) == right
            accepted[right] += 1
    assert min(accepted.values()) > 10


def test_other_spellings_are_refused() -> None:
    """Each encoding that is not canonical, as a key and as R, is refused by both."""
    key, signature = ed.public_key(SEED), ed.sign(SEED, MESSAGE)
    for other in NOT_CANONICAL:
        assert not both(other, MESSAGE, signature)
        assert not both(key, MESSAGE, other + signature[32:])
        assert not both(other, MESSAGE, other + bytes(32))


def test_a_second_spelling_of_r_is_refused_though_its_hash_is_right() -> None:
    """R written as y + p, with S made for that spelling, is refused by both."""
    scalar, _, key = mixed_key(ed.IDENTITY)
    for r in NOT_CANONICAL:
        s = ed.challenge(r, key, MESSAGE) * scalar % ed.L  # right for R of order 1
        assert not both(key, MESSAGE, r + s.to_bytes(32, "little"))


@LAW
@given(st.binary(min_size=32, max_size=32), st.binary(max_size=40), st.data())
def test_the_same_set_whatever_is_changed(seed: bytes, message: bytes, data: st.DataObject) -> None:
    """Keys, messages and signatures with parts changed, swapped or made up get one answer from both."""
    key, signature = ed.public_key(seed), ed.sign(seed, message)
    special = st.sampled_from(of_small_order() + NOT_CANONICAL)
    points = st.sampled_from([key, signature[:32], key]) | special | st.binary(min_size=32, max_size=32)
    scalars = st.sampled_from([signature[32:], bytes(32)]) | st.binary(min_size=32, max_size=32)
    for _ in range(3):
        both(data.draw(points), message, data.draw(points) + data.draw(scalars))
    other = bytearray(key + signature)
    for _ in range(data.draw(st.integers(0, 3))):
        other[data.draw(st.integers(0, 95))] = data.draw(st.integers(0, 255))
    assert both(bytes(other[:32]), message, bytes(other[32:])) == (other == key + signature)


def disagreements(check: Verify) -> Iterator[bytes]:
    """The spellings of keys and points R of small order on which a check and the second implementation differ."""
    scalar, _, key = mixed_key(ed.IDENTITY)
    for spelling in of_small_order():
        point = lenient(spelling)
        assert point is not None
        message, signature = forged_for(spelling, point)
        if check(spelling, message, signature) != ed.verify(spelling, message, signature):
            yield spelling
    r = ed.encode(ed.IDENTITY)
    s = ed.challenge(r, key, MESSAGE) * scalar % ed.L
    if check(key, MESSAGE, r + s.to_bytes(32, "little")):
        yield r


def test_a_lenient_check_is_found() -> None:
    """The equation alone differs from the second implementation on every one of these inputs; `verify` on none."""
    assert len(list(disagreements(holds))) == 15
    assert list(disagreements(verify)) == []


# Keys.

SUMDB = trees.read("golang-sumdb-note/notes.json")
LOG = SigningKey("log.example/demo/1", SEED)
NEXT = SigningKey("log.example", sha256(b"next").digest())
WITNESS = SigningKey("witness.example/w", sha256(b"witness").digest())
OTHER = SigningKey("other.example", sha256(b"other").digest())


def published_key(name: str) -> SigningKey:
    """A key of the checksum database's tests."""
    (found,) = (each for each in SUMDB["sign"] if each["name"] == name)
    return SigningKey(name, bytes.fromhex(found["ed25519_seed_hex_published_test_key"]))


@pytest.mark.parametrize("name", SUMDB["keys"])
def test_a_published_key_signs_as_published(name: str) -> None:
    """Seed, public key and signature line of the checksum database's tests belong together."""
    key = published_key(name)
    assert dump_key(key.key()) == SUMDB["keys"][name]
    (case,) = (each for each in SUMDB["sign"] if each["name"] == name)
    data = signing.sign_note(SUMDB["text"], [key]).decode()
    if "expected_note" in case:
        assert data == case["expected_note"]
    else:
        assert data == f"{SUMDB['text']}\n{case['expected_signature_line']}"


def test_a_signing_key_is_read_back() -> None:
    """`load_signing_key` is the inverse of `dump_signing_key`, whose form is fixed; a key's text shows no secret."""
    text = signing.dump_signing_key(LOG)
    assert text == (
        f"PRIVATE+KEY+log.example/demo/1+{LOG.key().key_id.hex()}+AQABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f"
    )
    assert signing.load_signing_key(text) == LOG
    for secret in (SEED.hex(), repr(SEED)[2:-1], base64.b64encode(SEED).decode().rstrip("=")):
        assert secret not in repr(LOG) + str(LOG)


def test_a_changed_signing_key_is_refused_without_a_word_of_it() -> None:
    """Each character left out, changed or doubled is refused, and no error shows a part of the secret."""
    text = signing.dump_signing_key(LOG)
    secret = text.rpartition("+")[2]
    others = [
        text[:at] + put + text[at + 1 :] for at in range(len(text)) for put in ("", "A", "b", "+", "/", "\n", "é")
    ]
    others += ["", "\n", text + "\n", " " + text, text * 20, text.lower(), text.removeprefix("PRIVATE+KEY+")]
    others += [text.replace(secret, base64.b64encode(b"\x04" + SEED).decode())]
    others += [text.replace(secret, base64.b64encode(b"\x01" + SEED[1:]).decode())]
    for other in others:
        if other != text:
            with pytest.raises(Invalid) as caught:
                signing.load_signing_key(other)
            assert caught.value.reason == "NOTE_INVALID"
            assert not any(secret[at : at + 5] in caught.value.message for at in range(len(secret) - 5))


def test_a_new_key_is_made_from_the_randomness_that_is_given() -> None:
    """32 bytes are asked for, and are the seed; another number of bytes makes no key."""
    assert signing.generate_signing_key("n", lambda count: bytes(count)) == SigningKey("n", bytes(32))
    first, second = (signing.generate_signing_key("n", secrets.token_bytes) for _ in range(2))
    assert first != second
    assert refusal(signing.generate_signing_key, "n", lambda count: bytes(count - 1)).field == "seed"
    assert refusal(SigningKey, "a b", bytes(32)).field == "name"


def test_one_key_signs_for_many_logs() -> None:
    """Under each name the key has another id, and a note under one is not known under another."""
    for name in ("log.example/a/1", "log.example/b/1"):
        key = NEXT.key(name)
        assert (key.name, key.type, key.public_key) == (name, ED25519, NEXT.public_key)
        data = signing.sign_note("text\n", [NEXT], name)
        assert signing.verify_note(data, [key]).signers == (key,)
        assert refusal(signing.verify_note, data, [NEXT.key(), NEXT.key("log.example/c/1")]).field == "signatures"


# Notes.


def opens(data: bytes, keys: list[Key]) -> signing.VerifiedNote | None:
    """The verified note, or nothing where it is refused."""
    try:
        return signing.verify_note(data, keys)
    except Invalid as error:
        assert error.reason in ("SIGNATURE_INVALID", "NOTE_INVALID")
        return None


TEXT = dump_checkpoint(Checkpoint(LOG.name, 3, trees.ROOTS[3], ()))
SIGNED = signing.sign_note(TEXT, [LOG, NEXT], LOG.name)
COSIGNED = SIGNED + signing.cosign(TEXT, WITNESS, 1_679_315_147)
LOG_KEYS = [LOG.key(), NEXT.key(LOG.name)]
WITNESS_KEY = WITNESS.key(key_type=COSIGNATURE)


def test_known_keys_are_found_among_others() -> None:
    """For every set of known keys: those that signed are signers in the order of their lines; the rest are others."""
    lines = load_note(COSIGNED).signatures
    order = [*LOG_KEYS, WITNESS_KEY]
    for known in itertools.product([False, True], repeat=3):
        keys = [key for key, is_known in zip(order, known, strict=True) if is_known]
        found = opens(COSIGNED, [*reversed(keys), OTHER.key()])
        if not keys:
            assert found is None
            continue
        assert found is not None
        assert (found.text, found.signers) == (TEXT, tuple(keys))
        assert found.signatures == tuple(each for each, is_known in zip(lines, known, strict=True) if is_known)
        assert found.others == tuple(each for each, is_known in zip(lines, known, strict=True) if not is_known)


def test_a_changed_bit_of_a_note_is_refused() -> None:
    """Each bit of a note that three known keys have signed, changed alone, refuses it, or leaves a name unknown."""
    keys = [*LOG_KEYS, WITNESS_KEY]
    whole = signing.verify_note(COSIGNED, keys)
    start = len(TEXT.encode()) + 1
    for place, other in enumerate(flips(COSIGNED)):
        found = opens(other, keys)
        if found is not None:  # a name or an id is another, so that the line is by nobody known
            assert place // 8 >= start
            assert found.text == TEXT
            assert len(found.signers) == 2
            assert set(found.signers) < set(whole.signers)
            assert len(found.others) == 1


def test_one_bad_signature_by_a_known_key_refuses_the_note() -> None:
    """Whatever else is good, a good line of the same key too; a line of an unknown key may be anything."""
    good = load_note(COSIGNED)
    for bad in (bytes(64), b"x", bytes(72), good.signatures[1].signature, good.signatures[0].signature + b"\x00"):
        for place in range(4):
            line = Signature(LOG.name, LOG.key().key_id, bad)
            data = dump_note(Note(TEXT, (*good.signatures[:place], line, *good.signatures[place:])))
            found = refusal(signing.verify_note, data, [*LOG_KEYS, WITNESS_KEY])
            assert found.description == "hold one by the known key log.example/demo/1 that is not good"
            assert opens(data, [WITNESS_KEY])
            stranger = dataclasses.replace(line, name="stranger")
            data = dump_note(Note(TEXT, (*good.signatures[:place], stranger, *good.signatures[place:])))
            assert signing.verify_note(data, [*LOG_KEYS, WITNESS_KEY]).others == (stranger,)


def test_a_key_is_known_by_name_and_id_together() -> None:
    """A line with a known name and another id, or a known id under another name, is by nobody known."""
    signature = load_note(SIGNED).signatures[0]
    for line in (
        dataclasses.replace(signature, name="other.example"),
        dataclasses.replace(signature, key_id=bytes(4)),
        dataclasses.replace(signature, key_id=OTHER.key().key_id),
    ):
        data = dump_note(Note(TEXT, (line,)))
        assert refusal(signing.verify_note, data, LOG_KEYS).description == "hold none by a known key"


def colliding() -> tuple[Key, Key]:
    """Two keys with one name and id, which to find would take a while: here all ids are one."""

    class Short(Key):
        @property
        def key_id(self) -> bytes:
            return bytes(4)

    return Short("n", ED25519, LOG.public_key), Short("n", ED25519, OTHER.public_key)


def test_two_keys_with_one_name_and_id_are_refused() -> None:
    """Nobody could say whose a signature is; one key given twice is no such case."""
    first, second = colliding()
    found = refusal(signing.verify_note, SIGNED, [first, second])
    assert found.description == "cannot be verified: two known keys have the same name and id"
    assert signing.verify_note(SIGNED, LOG_KEYS * 2).signers == tuple(LOG_KEYS)


def test_a_note_signed_twice_by_one_key_has_one_signer() -> None:
    """Two good lines of a key are two signatures and one signer."""
    data = signing.sign_note(TEXT, [LOG, LOG])
    found = signing.verify_note(data, LOG_KEYS)
    assert (len(found.signers), len(found.signatures)) == (1, 2)


@pytest.mark.parametrize("case", SUMDB["open"], ids=lambda case: "+".join(case["trusted"]) or "nobody")
def test_a_published_note_opens_as_published(case: dict[str, Any]) -> None:
    """The notes of the checksum database's tests, by who is trusted."""
    keys = [load_key(SUMDB["keys"][name]) for name in case["trusted"]]
    found = opens(case["note"].encode(), keys)
    if case.get("error"):
        assert found is None
        return
    assert found is not None
    assert found.text == SUMDB["text"]
    assert [key.name for key in found.signers] == case["verified"]
    assert [signature.name for signature in found.others] == case["unverified"]


def test_the_checkpoint_of_the_checksum_database_verifies() -> None:
    """It is signed by its key, whose name is not its origin: so no log of that name speaks here."""
    real = SUMDB["real_checkpoint"]
    key = load_key(real["vkey"])
    assert signing.verify_note(real["note"].encode(), [key]).signers == (key,)
    found = refusal(signing.verify_checkpoint, real["note"].encode(), [key])
    assert found.description == "hold none by a known key of the log whose origin it has"


def test_the_example_of_signed_note_verifies() -> None:
    """The one printed note whose key is printed."""
    (example,) = (each.values[0] for each in trees.examples("signed-note.md") if "vkey" in each.values[0])
    key = load_key(example["vkey"])
    assert signing.verify_note(example["note"].encode(), [key]).text == "This is an example message.\n"


TESSERA = trees.read("transparency-dev-tessera/log.json")


@pytest.mark.parametrize("size", TESSERA["checkpoints"])
def test_a_checkpoint_of_tessera_verifies(size: str) -> None:
    """Each of the published log's checkpoints is signed by its key under its origin, and under no other name."""
    key = load_key(TESSERA["vkey"])
    data = TESSERA["checkpoints"][size].encode()
    checkpoint, found = signing.verify_checkpoint(data, [key])
    assert (checkpoint.origin, checkpoint.size, found.signers) == (TESSERA["origin"], int(size), (key,))
    assert refusal(signing.verify_checkpoint, data, [Key("other", key.type, key.public_key)])


# Checkpoints and receipts.


def test_a_checkpoint_needs_the_log_itself() -> None:
    """A witness, another log, and the log's key under another name or as a witness do not speak for the log."""
    checkpoint, found = signing.verify_checkpoint(COSIGNED, LOG_KEYS, [WITNESS_KEY])
    assert (checkpoint.size, checkpoint.root_hash) == (3, trees.ROOTS[3])
    assert found.signers == (*LOG_KEYS, WITNESS_KEY)
    alone = dump_note(Note(TEXT, load_note(COSIGNED).signatures[2:]))
    assert signing.verify_note(alone, [WITNESS_KEY])
    for data, logs, witnesses in [
        (alone, LOG_KEYS, [WITNESS_KEY]),
        (alone, [WITNESS_KEY], []),
        (signing.sign_note(TEXT, [OTHER]), [OTHER.key(), *LOG_KEYS], []),
        (signing.sign_note(TEXT, [LOG]), [], LOG_KEYS),
        (f"{TEXT}\n".encode() + signing.cosign(TEXT, LOG, 1), [LOG.key(key_type=COSIGNATURE), *LOG_KEYS], []),
        (signing.sign_note(TEXT, [LOG], "log.example/other/1"), [LOG.key("log.example/other/1"), *LOG_KEYS], []),
    ]:
        with pytest.raises(Invalid) as caught:
            signing.verify_checkpoint(data, logs, witnesses)
        assert caught.value.reason == "SIGNATURE_INVALID"
    assert refusal(signing.verify_checkpoint, signing.sign_note("text\n", [LOG]), LOG_KEYS).field == "text"


def test_a_receipt_needs_the_log_itself() -> None:
    """A receipt is verified under its origin; a checkpoint of the same key is none, and it is no checkpoint."""
    receipt = Receipt(LOG.name, trees.LEAVES[0], "0" * 32, "2026-01-31T12:00:00.000000Z")
    data = signing.sign_note(dump_receipt(receipt), [LOG])
    assert signing.verify_receipt(data, LOG_KEYS) == receipt
    stolen = signing.sign_note(dump_receipt(dataclasses.replace(receipt, origin="log.example/x/1")), [LOG])
    assert refusal(signing.verify_receipt, stolen, LOG_KEYS).field == "signatures"
    assert refusal(signing.verify_receipt, SIGNED, LOG_KEYS).field == "text"
    assert refusal(signing.verify_checkpoint, data, LOG_KEYS).field == "size"
    for other in flips(data):
        with pytest.raises(Invalid):
            signing.verify_receipt(other, LOG_KEYS)


# Cosignatures.


def test_a_cosignature_is_of_a_time_and_a_checkpoint() -> None:
    """The line is the id, eight bytes of time, and a signature of the printed form, made here by the second opinion."""
    for time in (0, 1, 1_679_315_147, 2**63 - 1):
        line = signing.cosign(TEXT, WITNESS, time)
        message = f"cosignature/v1\ntime {time}\n{TEXT}".encode()
        signature = time.to_bytes(8, "big") + ed.sign(WITNESS.seed, message)
        expected = base64.b64encode(WITNESS_KEY.key_id + signature).decode()
        assert line == f"— witness.example/w {expected}\n".encode()
        (found,) = signing.verify_note(f"{TEXT}\n".encode() + line, [WITNESS_KEY]).signatures
        assert signing.cosignature_time(found.signature) == time


def test_no_witness_signs_what_is_no_checkpoint() -> None:
    """Other texts, and times that no cosignature has, are refused."""
    assert refusal(signing.cosign, "text\n", WITNESS, 1).field == "text"
    assert refusal(signing.cosign, SIGNED.decode(), WITNESS, 1).field == "text"
    for time in (-1, 2**63):
        assert refusal(signing.cosign, TEXT, WITNESS, time).field == "time"


def test_neither_kind_of_signature_passes_for_the_other() -> None:
    """The same key as a log's and as a witness's: a line of one type under the other's id refuses the note."""
    plain, cosignature = WITNESS.key(), WITNESS_KEY
    signed = load_note(signing.sign_note(TEXT, [WITNESS])).signatures[0].signature
    cosigned = load_note(f"{TEXT}\n".encode() + signing.cosign(TEXT, WITNESS, 7)).signatures[0].signature
    for key, wrong in (
        (plain, cosigned), (plain, cosigned[8:]), (cosignature, signed), (cosignature, bytes(8) + signed),
        (cosignature, cosigned[8:]), (cosignature, (8).to_bytes(8, "big") + cosigned[8:]), (cosignature, cosigned[:7]),
        (cosignature, (2**63 + 7).to_bytes(8, "big") + cosigned[8:]), (cosignature, cosigned + b"\x00"),
    ):  # fmt: skip
        data = dump_note(Note(TEXT, (Signature(key.name, key.key_id, wrong),)))
        assert "not good" in refusal(signing.verify_note, data, [key]).description
    late = b"\xff" * 8 + WITNESS.sign(f"cosignature/v1\ntime {2**64 - 1}\n{TEXT}".encode())
    data = dump_note(Note(TEXT, (Signature(cosignature.name, cosignature.key_id, late),)))
    assert "not good" in refusal(signing.verify_note, data, [cosignature]).description


# Rekor's checkpoints, from sigstore-conformance.

REKOR = sorted((trees.VECTORS / "sigstore-conformance").glob("*.json"))
SPKI_ED25519 = bytes.fromhex("302a300506032b6570032100")


def rekor_keys(case: dict[str, Any]) -> list[Key]:
    """The Ed25519 keys of the logs that a case trusts."""
    keys = []
    for log in case["tlogs"]:
        if log["publicKey"]["keyDetails"] == "PKIX_ED25519":
            der = base64.b64decode(log["publicKey"]["rawBytes"])
            assert der.startswith(SPKI_ED25519)
            keys.append(Key(log["baseUrl"].removeprefix("https://"), ED25519, der.removeprefix(SPKI_ED25519)))
    return keys


@pytest.mark.parametrize("name", [path.stem for path in REKOR])
def test_an_entry_of_rekor_is_proved_as_published(name: str) -> None:
    """Each case passes or fails as it says: checkpoint, proof of inclusion, and the leaf's hash."""
    case = trees.read(f"sigstore-conformance/{name}.json")
    entry = case["tlogEntry"]
    proof = entry["inclusionProof"]
    leaf, root = (base64.b64decode(text) for text in (entry["canonicalizedBody"], proof["rootHash"]))
    index, size, hashes = int(proof["logIndex"]), int(proof["treeSize"]), trees.unbase64(proof["hashes"])
    merkle.check_inclusion(hashes, index, size, merkle.leaf_hash(leaf), root)
    data = proof["checkpoint"]["envelope"].encode()
    if name.endswith("_fail"):
        with pytest.raises(Invalid):
            signing.verify_checkpoint(data, rekor_keys(case))
        return
    checkpoint, found = signing.verify_checkpoint(data, rekor_keys(case))
    assert (checkpoint.size, checkpoint.root_hash) == (size, root)
    assert found.signers[0].key_id == base64.b64decode(entry["logId"]["keyId"])[:4]
    assert not set(found.others) & set(found.signatures)


def test_no_entry_of_rekor_is_missing() -> None:
    """Twelve cases, five of which must fail."""
    assert (len(REKOR), sum(path.stem.endswith("_fail") for path in REKOR)) == (12, 5)
