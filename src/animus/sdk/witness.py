"""A witness in a folder: its key, and for each log that it watches the newest head that it has cosigned.

The folder may be on a machine without network: what is asked of it comes as a file (the body of C2SP tlog-witness
add-checkpoint), and so does its answer. A witness says one thing only: that of this log it has never signed a head that
contradicts another. So the head that it cosigns is in its state, durably, before the cosignature exists.
"""

import hashlib
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import orjson

from animus.domain import merkle
from animus.domain.checkpoint import MAX_HEADER_BYTES, Checkpoint, load_checkpoint, load_request
from animus.domain.errors import Invalid
from animus.domain.note import COSIGNATURE, ED25519, MAX_NOTE_BYTES, Key, dump_key, load_key, load_note
from animus.files import create_private
from animus.sdk.files import Unreadable, locked, read_file, replace_file
from animus.signing import (
    SigningKey,
    cosign,
    dump_signing_key,
    generate_signing_key,
    load_signing_key,
    verify_checkpoint,
)

KEY_FILE = "witness.key"
LOCK_FILE = "lock"
LOGS = "logs"
MAX_KEY_BYTES = 4 << 10
MAX_STATE_BYTES = 2 * MAX_NOTE_BYTES
MAX_REQUEST_BYTES = MAX_HEADER_BYTES + MAX_NOTE_BYTES


class WitnessRefusal(Exception):
    """A request that the witness does not meet; the text is one line. Its state is as it was."""


class Malformed(WitnessRefusal):
    """It is no request."""


class UnknownLog(WitnessRefusal):
    """It is of a log that the witness was not told to trust."""


class NotSigned(WitnessRefusal):
    """The log has not signed the checkpoint."""


class OtherSize(WitnessRefusal):
    """It starts from another size than that of the newest head that the witness has."""


class Inconsistent(WitnessRefusal):
    """The checkpoint does not go on from that head: the log has forked, or the proof is wrong."""


@dataclass(frozen=True, slots=True)
class WatchedLog:
    """What a witness knows of a log."""

    keys: tuple[Key, ...]  # at least one, all of the log's origin
    size: int  # of the newest head that it has cosigned; 0 where there is none
    root_hash: bytes
    note: bytes  # that head; empty where there is none

    @property
    def origin(self) -> str:
        """The log's name."""
        return self.keys[0].name


class Witness:
    """The witness of a folder."""

    def __init__(self, folder: Path) -> None:
        """Raises Unreadable where the folder has no key."""
        self.folder = folder
        path = folder / KEY_FILE
        text = read_file(path, MAX_KEY_BYTES)
        if path.stat().st_mode & 0o077:
            raise Unreadable(path, "can be read by others: chmod 600, and make a new witness if one may have")
        try:
            self._key: SigningKey = load_signing_key(text.decode(errors="replace").removesuffix("\n"))
        except Invalid as error:
            raise Unreadable(path, error.message) from None

    @classmethod
    def create(cls, folder: Path, name: str) -> "Witness":
        """A new witness. Raises FileExistsError where the folder has one, and Invalid for what is no name."""
        text = dump_signing_key(generate_signing_key(name, secrets.token_bytes)) + "\n"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        (folder / LOGS).mkdir(exist_ok=True, mode=0o700)
        if not create_private(folder / KEY_FILE, text):
            raise FileExistsError(f"{folder / KEY_FILE} exists: one folder has one witness")
        return cls(folder)

    @property
    def key(self) -> Key:
        """The public key that verifies its cosignatures."""
        return self._key.key(key_type=COSIGNATURE)

    def trust(self, key: Key) -> WatchedLog:
        """Watches a log from now on, or takes another key of it. Raises Invalid unless it is a log's key."""
        if key.type != ED25519:
            raise Malformed(f"{dump_key(key)} is the key of a witness, not of a log")
        with locked(self.folder / LOCK_FILE):
            known = self._load(key.name)
            keys = (*known.keys, key) if known else (key,)
            log = WatchedLog(
                tuple(dict.fromkeys(keys)),
                known.size if known else 0,
                known.root_hash if known else merkle.EMPTY_ROOT,
                known.note if known else b"",
            )
            self._store(log)
        return log

    def logs(self) -> Iterator[WatchedLog]:
        """The logs that it watches, by name."""
        found = [self._read(path) for path in (self.folder / LOGS).glob("*.json")]
        yield from sorted(found, key=lambda log: log.origin)

    def cosign(self, data: bytes, now: Callable[[], int]) -> tuple[Checkpoint, bytes]:
        """The checkpoint of a request, and the note of its text with this witness's cosignature.

        When this returns, the witness will never cosign anything that contradicts it. Raises WitnessRefusal.
        """
        try:
            request = load_request(data)
            checkpoint = load_checkpoint(load_note(request.checkpoint).text)
        except Invalid as error:
            raise Malformed(f"this is no request for a cosignature: {error.message}") from None
        with locked(self.folder / LOCK_FILE):
            known = self._load(checkpoint.origin)
            if known is None:
                raise UnknownLog(f"the log {checkpoint.origin} is not watched: animus witness trust")
            try:
                _, note = verify_checkpoint(request.checkpoint, known.keys)
            except Invalid as error:
                raise NotSigned(f"the checkpoint is not signed by the log: {error.message}") from None
            _check(known, request.old_size, request.proof, checkpoint)
            self._store(WatchedLog(known.keys, checkpoint.size, checkpoint.root_hash, request.checkpoint))
            # If the witness dies here, it has promised and not signed: ask again from the new size, and it signs.
            return checkpoint, note.text.encode() + b"\n" + cosign(note.text, self._key, now())

    def _path(self, origin: str) -> Path:
        return self.folder / LOGS / f"{hashlib.sha256(origin.encode()).hexdigest()}.json"

    def _load(self, origin: str) -> WatchedLog | None:
        path = self._path(origin)
        return self._read(path) if path.exists() else None

    def _read(self, path: Path) -> WatchedLog:
        """Raises Unreadable for what `_store` has not written: then nothing is cosigned."""
        try:
            tree = orjson.loads(read_file(path, MAX_STATE_BYTES))
            log = WatchedLog(
                tuple(load_key(key) for key in tree["keys"]),
                int(tree["size"]),
                bytes.fromhex(tree["rootHash"]),
                tree["checkpoint"].encode(),
            )
            sound = self._path(log.origin) == path and {key.name for key in log.keys} == {log.origin}
        except (Invalid, orjson.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError, IndexError):
            sound = False
        if not sound:
            raise Unreadable(path, "is no state of a witness: it was changed by something else")
        return log

    def _store(self, log: WatchedLog) -> None:
        tree = {
            "origin": log.origin,
            "keys": [dump_key(key) for key in log.keys],
            "size": log.size,
            "rootHash": log.root_hash.hex(),
            "checkpoint": log.note.decode(),
        }
        replace_file(self._path(log.origin), orjson.dumps(tree, option=orjson.OPT_INDENT_2) + b"\n", mode=0o600)


def _check(known: WatchedLog, old_size: int, proof: tuple[bytes, ...], checkpoint: Checkpoint) -> None:
    """Raises WitnessRefusal unless a checkpoint goes on from the known head (C2SP tlog-witness)."""
    if old_size > checkpoint.size:
        raise Malformed(f"the request starts from size {old_size}, beyond its checkpoint of size {checkpoint.size}")
    if old_size != known.size:
        raise OtherSize(
            f"the request starts from size {old_size}, and this witness has cosigned size {known.size} of "
            f"{checkpoint.origin}: make the request again with --old {known.size}"
        )
    if proof and checkpoint.size == known.size:
        raise Malformed("the request has a proof, and both trees have one size")
    if checkpoint.size == known.size and checkpoint.root_hash != known.root_hash:
        raise Inconsistent(
            f"the checkpoint of size {checkpoint.size} of {checkpoint.origin} has the root "
            f"{checkpoint.root_hash.hex()}, and this witness has cosigned {known.root_hash.hex()}: the log has forked; "
            "keep the request as evidence"
        )
    if checkpoint.size == known.size or known.size == 0:
        return
    try:
        merkle.check_consistency(proof, known.size, checkpoint.size, known.root_hash, checkpoint.root_hash)
    except Invalid as error:
        raise Inconsistent(
            f"the checkpoint of size {checkpoint.size} of {checkpoint.origin} is not shown to go on from size "
            f"{known.size}: {error.message}"
        ) from None
