"""Ed25519: keys that sign notes, and which signatures are good.

`verify` accepts a signature exactly if

- S is below the order L of the base point;
- A (the public key) and R are points in their one spelling (y below p, no negative zero), and not of small order;
- R has the bytes of [S]B - [k mod L]A: the equation without the cofactor.

RFC 8032 leaves some of this open, and implementations differ. Here server, client and a verifier that has only the
standard library agree on every input, so that no two of them can be told different things by one signed note.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from animus.domain.checkpoint import MAX_TIME, Checkpoint, cosignature_message, load_checkpoint
from animus.domain.errors import Invalid, Violation
from animus.domain.note import (
    COSIGNATURE,
    ED25519,
    MAX_KEY_CHARACTERS,
    Key,
    Note,
    Signature,
    check_name,
    decode_base64,
    dump_note,
    dump_signature_lines,
    encode_base64,
    load_note,
    note_invalid,
)
from animus.domain.receipt import Receipt, load_receipt

SEED_BYTES = 32
SIGNATURE_BYTES = 64
TIME_BYTES = 8
PRIVATE_KEY = re.compile(r"PRIVATE\+KEY\+(?P<name>[^\s+]+)\+(?P<id>[0-9a-f]{8})\+(?P<seed>[A-Za-z0-9+/]+={0,2})")

PRIME = 2**255 - 19
# The y of the eight points of small order, which both signs share: of orders 1, 2, 4, and 8 twice.
SMALL_ORDER = frozenset(
    {
        1,
        PRIME - 1,
        0,
        2707385501144840649318225287225658788936804267575313519463743609750303402022,
        PRIME - 2707385501144840649318225287225658788936804267575313519463743609750303402022,
    }
)


def signature_invalid(description: str) -> Invalid:
    """An Invalid for a note that is not signed as it has to be."""
    return Invalid([Violation("signatures", description)], "SIGNATURE_INVALID")


def verify(public_key: bytes, message: bytes, signature: bytes) -> bool:
    """Whether a signature of a message by a key is good, by the rule above."""
    if len(signature) != SIGNATURE_BYTES or not (is_sound(public_key) and is_sound(signature[:32])):
        return False
    try:
        # OpenSSL checks S and the equation, and takes other spellings of A. It compares R by its bytes.
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
    except InvalidSignature:
        return False
    return True


def is_sound(point: bytes) -> bool:
    """Whether this spells no point of small order, and no point in a second way. Negative zero is of small order."""
    y = int.from_bytes(point, "little") & (2**255 - 1)
    return len(point) == 32 and y < PRIME and y not in SMALL_ORDER


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A private key, and the name under which it signs where no other is given. Its text shows no secret."""

    name: str
    seed: bytes = dataclasses.field(repr=False)  # 32 bytes (RFC 8032 §5.1.5)
    _private: Ed25519PrivateKey = dataclasses.field(init=False, repr=False, compare=False)
    public_key: bytes = dataclasses.field(init=False, compare=False)

    def __post_init__(self) -> None:
        check_name(self.name, "name")
        if len(self.seed) != SEED_BYTES:
            raise note_invalid("seed", f"is {len(self.seed)} bytes long; a seed has {SEED_BYTES}")
        private = Ed25519PrivateKey.from_private_bytes(self.seed)
        object.__setattr__(self, "_private", private)
        object.__setattr__(self, "public_key", private.public_key().public_bytes_raw())

    def sign(self, message: bytes) -> bytes:
        """The signature of a message, 64 bytes; the same each time."""
        return self._private.sign(message)

    def key(self, name: str | None = None, key_type: int = ED25519) -> Key:
        """The public key under a name: what verifies the notes that this key signs under it."""
        return Key(self.name if name is None else name, key_type, self.public_key)


def generate_signing_key(name: str, random_bytes: Callable[[int], bytes]) -> SigningKey:
    """A new key from a source of randomness such as `secrets.token_bytes`."""
    return SigningKey(name, random_bytes(SEED_BYTES))


def dump_signing_key(key: SigningKey) -> str:
    """A key as one line of text, which is secret: `PRIVATE+KEY+<name>+<id>+<base64 of type and seed>`."""
    seed = encode_base64(bytes([ED25519]) + key.seed)
    return f"PRIVATE+KEY+{key.name}+{key.key().key_id.hex()}+{seed}"


def load_signing_key(text: str) -> SigningKey:
    """The inverse of `dump_signing_key`. No error shows a part of the text."""
    match = PRIVATE_KEY.fullmatch(text) if len(text) <= MAX_KEY_CHARACTERS else None
    data = decode_base64(match["seed"]) if match else None
    if not match or not data or data[0] != ED25519:
        raise note_invalid("key", "is no Ed25519 key of the form PRIVATE+KEY+<name>+<8 hexadecimal digits>+<base64>")
    key = SigningKey(match["name"], data[1:])
    if key.key().key_id.hex() != match["id"]:
        raise note_invalid("key", "has an id that is not that of its name and seed")
    return key


def sign_note(text: str, keys: Iterable[SigningKey], name: str | None = None) -> bytes:
    """A note with a signature by each key, under one name or each under its own."""
    signatures = []
    for signing in keys:
        key = signing.key(name)
        signatures.append(Signature(key.name, key.key_id, signing.sign(text.encode())))
    return dump_note(Note(text, tuple(signatures)))


def cosign(text: str, signing: SigningKey, time: int) -> bytes:
    """A witness's signature line for the text of a checkpoint, at a time in seconds since 1970.

    It says that the witness has seen no larger tree of this log, and none that contradicts this one. The caller checks
    that first.
    """
    load_checkpoint(text)
    key = signing.key(key_type=COSIGNATURE)
    signature = signing.sign(cosignature_message(time, text))
    signature = time.to_bytes(TIME_BYTES, "big") + signature
    return dump_signature_lines([Signature(key.name, key.key_id, signature)])


@dataclass(frozen=True, slots=True)
class VerifiedNote:
    """A note that at least one known key has signed, and no known key has signed wrongly."""

    text: str
    signers: tuple[Key, ...]  # known keys that signed, each once, in the order of their lines
    signatures: tuple[Signature, ...]  # theirs, in the order of the lines
    others: tuple[Signature, ...]  # by keys that are not known: they may be anything


def verify_note(data: bytes, keys: Iterable[Key]) -> VerifiedNote:
    """The text of a note that known keys have signed.

    Refused is a note without a signature by a known key, and one where any signature under a known key's name and id is
    not good.
    """
    distinct = set(keys)
    known = {(key.name, key.key_id): key for key in distinct}
    if len(known) != len(distinct):
        raise signature_invalid("cannot be verified: two known keys have the same name and id")
    note = load_note(data)
    signers: dict[Key, None] = {}
    good, others = [], []
    for signature in note.signatures:
        key = known.get((signature.name, signature.key_id))
        if key is None:
            others.append(signature)
        elif is_good(key, note.text, signature.signature):
            signers[key] = None
            good.append(signature)
        else:
            raise signature_invalid(f"hold one by the known key {key.name} that is not good")
    if not signers:
        raise signature_invalid("hold none by a known key")
    return VerifiedNote(note.text, tuple(signers), tuple(good), tuple(others))


def is_good(key: Key, text: str, signature: bytes) -> bool:
    """Whether the signature of a note's line is good, by the type of its key."""
    if key.type == ED25519:
        return verify(key.public_key, text.encode(), signature)
    time = cosignature_time(signature)
    return time <= MAX_TIME and verify(key.public_key, cosignature_message(time, text), signature[TIME_BYTES:])


def cosignature_time(signature: bytes) -> int:
    """When a witness signed, in seconds since 1970, from a signature by a key of type COSIGNATURE."""
    return int.from_bytes(signature[:TIME_BYTES], "big")


def verify_checkpoint(
    data: bytes, logs: Iterable[Key], witnesses: Iterable[Key] = ()
) -> tuple[Checkpoint, VerifiedNote]:
    """A checkpoint that a known log has signed, under its origin as the key's name; and who else has."""
    logs = tuple(logs)
    note = verify_note(data, [*logs, *witnesses])
    checkpoint = load_checkpoint(note.text)
    check_signed(note, logs, checkpoint.origin)
    return checkpoint, note


def verify_receipt(data: bytes, logs: Iterable[Key]) -> Receipt:
    """A receipt that a known log has signed, under its origin as the key's name."""
    logs = tuple(logs)
    note = verify_note(data, logs)
    receipt = load_receipt(note.text)
    check_signed(note, logs, receipt.origin)
    return receipt


def check_signed(note: VerifiedNote, logs: Iterable[Key], origin: str) -> None:
    """Refuses what the log of this origin has not signed: neither a witness nor another log speaks for it."""
    if not any(key.name == origin and key in logs and key.type == ED25519 for key in note.signers):
        raise signature_invalid("hold none by a known key of the log whose origin it has")
