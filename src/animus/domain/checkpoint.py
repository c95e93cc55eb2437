"""What is said of a log's tree: checkpoints, and proofs as texts that carry one.

- A checkpoint is the text of a signed note: origin, size and root hash, each on a line, and perhaps lines after them
  (C2SP tlog-checkpoint).
- A cosignature is of a time and that text (C2SP tlog-cosignature).
- A proof of inclusion is a text that ends with a checkpoint (C2SP tlog-proof). So is what a witness is asked
  (C2SP tlog-witness, add-checkpoint). There the checkpoint is bytes: whoever trusts it verifies it first.

Numbers and base64 have one spelling, so that `dump_*` of what `load_*` gave is what was read. Bad checkpoints raise
Invalid with the reason NOTE_INVALID, bad texts of proofs with PROOF_INVALID.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from animus.domain.merkle import HASH_BYTES, MAX_PROOF_HASHES, MAX_SIZE, check_hash, proof_invalid
from animus.domain.note import (
    MAX_NOTE_BYTES,
    check_bytes,
    check_text,
    decode_base64,
    encode_base64,
    is_text,
    note_invalid,
)

MAX_TIME = 2**63 - 1  # seconds since 1970
MAX_REQUEST_HASHES = 63
MAX_EXTRA_BYTES = 65_535
MAX_HEADER_BYTES = 100_000  # of a proof's text before its checkpoint: more than the longest

NUMBER = re.compile(r"0|[1-9][0-9]{0,18}")
PROOF_HEADER = "c2sp.org/tlog-proof@v1"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a log says of its tree."""

    origin: str  # which log it is; one line, not empty
    size: int  # leaves, 0 to 2^63-1
    root_hash: bytes  # 32 bytes
    extensions: tuple[str, ...]  # lines with no meaning here; none is empty

    def __post_init__(self) -> None:
        check_line(self.origin, "origin")
        if not 0 <= self.size <= MAX_SIZE:
            raise note_invalid("size", f"is {self.size}; 0 to 2^63-1 is allowed")
        if len(self.root_hash) != HASH_BYTES:
            raise note_invalid("rootHash", f"is {len(self.root_hash)} bytes long; a root has {HASH_BYTES}")
        for index, line in enumerate(self.extensions):
            check_line(line, f"extensions[{index}]")


def check_line(line: str, field: str) -> None:
    """Refuses what is no line of a checkpoint."""
    if not line or "\n" in line or not is_text(line):
        raise note_invalid(field, "is no line: it is not empty, and has no control character")


def dump_checkpoint(checkpoint: Checkpoint) -> str:
    """The text of a checkpoint."""
    root = encode_base64(checkpoint.root_hash)
    return "".join(f"{line}\n" for line in (checkpoint.origin, str(checkpoint.size), root, *checkpoint.extensions))


def load_checkpoint(text: str) -> Checkpoint:
    """The inverse of `dump_checkpoint`."""
    return Checkpoint(*checkpoint_parts(text))


def checkpoint_parts(text: str) -> tuple[str, int, bytes, tuple[str, ...]]:
    """Origin, size, root hash and further lines of a checkpoint's text. Here a root of any length passes."""
    check_text(text)
    check_bytes(text.encode())
    lines = text.split("\n")[:-1]
    if len(lines) < 3 or not all(lines):
        raise note_invalid("text", "is no checkpoint: it has an origin, a size and a root hash, and no empty line")
    origin, size, root, *extensions = lines
    root_hash = decode_base64(root)
    if not NUMBER.fullmatch(size) or int(size) > MAX_SIZE:
        raise note_invalid("size", "is no decimal number from 0 to 2^63-1 without leading zeros")
    if root_hash is None:
        raise note_invalid("rootHash", "is no base64")
    return origin, int(size), root_hash, tuple(extensions)


def cosignature_message(time: int, text: str) -> bytes:
    """What a witness signs to say that it has seen this checkpoint at this time (seconds since 1970)."""
    check_text(text)
    if not 0 <= time <= MAX_TIME:
        raise note_invalid("time", f"is {time}; 0 to 2^63-1 is allowed")
    return f"cosignature/v1\ntime {time}\n{text}".encode()


@dataclass(frozen=True, slots=True)
class TlogProof:
    """That a leaf is in a log, for verification without the log."""

    index: int  # of the leaf, 0 to 2^63-2
    hashes: tuple[bytes, ...]  # the proof of inclusion
    extra: bytes  # for the application, authenticated by nothing; empty where there is none; at most 65,535 bytes
    checkpoint: bytes  # the signed note

    def __post_init__(self) -> None:
        if not 0 <= self.index < MAX_SIZE:
            raise proof_invalid("index", f"is {self.index}; 0 to 2^63-2 is allowed")
        check_hashes(self.hashes, MAX_PROOF_HASHES)
        if len(self.extra) > MAX_EXTRA_BYTES:
            raise proof_invalid("extra", f"is {len(self.extra)} bytes long; at most {MAX_EXTRA_BYTES} are allowed")
        check_note(self.checkpoint)


def dump_proof(proof: TlogProof) -> bytes:
    """The text of a proof of inclusion."""
    extra = [f"extra {encode_base64(proof.extra)}"] if proof.extra else []
    return dump_parts([PROOF_HEADER, *extra, f"index {proof.index}"], proof.hashes, proof.checkpoint)


def load_proof(data: bytes) -> TlogProof:
    """The inverse of `dump_proof`."""
    lines, checkpoint = load_parts(data)
    if lines.pop(0) != PROOF_HEADER:
        raise proof_invalid("text", f"does not begin with the line {PROOF_HEADER}")
    extra = b""
    if lines and lines[0].startswith("extra "):
        extra = decode_base64(lines.pop(0).removeprefix("extra ")) or b""
        if not extra:
            raise proof_invalid("extra", "is no base64, or is empty")
    return TlogProof(load_number(lines, "index", "index"), load_hashes(lines, MAX_PROOF_HASHES), extra, checkpoint)


@dataclass(frozen=True, slots=True)
class CheckpointRequest:
    """What a witness is asked: to cosign a checkpoint, which goes on from the last that it has seen."""

    old_size: int  # of the last that it has seen; 0 where it has seen none
    proof: tuple[bytes, ...]  # of consistency, at most 63 hashes; empty from size 0
    checkpoint: bytes  # the signed note

    def __post_init__(self) -> None:
        if not 0 <= self.old_size <= MAX_SIZE:
            raise proof_invalid("oldSize", f"is {self.old_size}; 0 to 2^63-1 is allowed")
        check_hashes(self.proof, MAX_REQUEST_HASHES)
        if not self.old_size and self.proof:
            raise proof_invalid("proof", "has hashes; every tree begins with that of size 0, and no proof says so")
        check_note(self.checkpoint)


def dump_request(request: CheckpointRequest) -> bytes:
    """The body of a request."""
    return dump_parts([f"old {request.old_size}"], request.proof, request.checkpoint)


def load_request(data: bytes) -> CheckpointRequest:
    """The inverse of `dump_request`."""
    lines, checkpoint = load_parts(data)
    return CheckpointRequest(load_number(lines, "old", "oldSize"), load_hashes(lines, MAX_REQUEST_HASHES), checkpoint)


def check_hashes(hashes: Sequence[bytes], most: int) -> None:
    """Refuses a proof that is too long, or whose hashes are none."""
    if len(hashes) > most:
        raise proof_invalid("proof", f"has {len(hashes)} hashes; at most {most} are allowed")
    for index, each in enumerate(hashes):
        check_hash(each, f"proof[{index}]")


def check_note(data: bytes) -> None:
    """Refuses what is no signed note by its length or its end."""
    if len(data) > MAX_NOTE_BYTES or not data.endswith(b"\n"):
        raise proof_invalid("checkpoint", f"is longer than {MAX_NOTE_BYTES} bytes, or does not end with a line feed")


def dump_parts(lines: Sequence[str], hashes: Sequence[bytes], checkpoint: bytes) -> bytes:
    """Lines, hashes and a checkpoint, as all of these texts have them."""
    return "\n".join([*lines, *map(encode_base64, hashes), "", ""]).encode() + checkpoint


def load_parts(data: bytes) -> tuple[list[str], bytes]:
    """The lines before the first empty one, at least one, and the checkpoint after it."""
    if len(data) > MAX_HEADER_BYTES + MAX_NOTE_BYTES:
        raise proof_invalid("text", f"is {len(data)} bytes long; no proof is")
    header, separator, _ = data[:MAX_HEADER_BYTES].partition(b"\n\n")
    if not separator or not header.isascii():
        raise proof_invalid("text", "has no lines of ASCII and an empty line before a checkpoint")
    return header.decode().split("\n"), data[len(header) + 2 :]


def load_number(lines: list[str], word: str, field: str) -> int:
    """The number in the first line, which is taken off."""
    head, _, number = (lines.pop(0) if lines else "").partition(" ")
    if head != word or not NUMBER.fullmatch(number):
        raise proof_invalid(field, f"is missing; its line is {word!r}, a space and a decimal without leading zeros")
    return int(number)


def load_hashes(lines: Sequence[str], most: int) -> tuple[bytes, ...]:
    """The hashes of a proof, one in each line."""
    if len(lines) > most:
        raise proof_invalid("proof", f"has {len(lines)} lines; at most {most} are allowed")
    hashes = []
    for index, line in enumerate(lines):
        each = decode_base64(line)
        if each is None:
            raise proof_invalid(f"proof[{index}]", "is no base64")
        hashes.append(each)
    return tuple(hashes)
