"""The private keys of the log, as a file holds them, and all that is signed or sealed with them.

`log.key` has one key a line; the first is the current one. Others beside it sign each checkpoint too: so a new key is
trusted before an old one goes. Whoever can read this file can sign in the log's name; whoever can only write the
database cannot.
"""

import base64
import hmac
import secrets
from collections.abc import Sequence
from pathlib import Path

from animus.domain import attestation
from animus.domain.audit import Logged
from animus.domain.checkpoint import Checkpoint, dump_checkpoint
from animus.domain.errors import Invalid
from animus.domain.log import origin_of, promised_by, sealed_text
from animus.domain.merkle import CompactRange, root
from animus.domain.receipt import Receipt, dump_receipt
from animus.files import create_private, write_private
from animus.signing import SigningKey, dump_signing_key, generate_signing_key, load_signing_key, sign_note

KEY_FILE = "log.key"


class KeyringError(RuntimeError):
    """The keys cannot be used; the text is one line that says why and holds no part of a key."""


class Keyring:
    """The keys of a folder. A change of the file is taken up by `reload`."""

    def __init__(self, folder: Path) -> None:
        """Raises KeyringError when the file is missing, empty, malformed or readable by others."""
        self.path = folder / KEY_FILE
        self._stamp: tuple[int, int] | None = None
        self.keys: tuple[SigningKey, ...] = ()
        self._seal_keys: tuple[bytes, ...] = ()
        self.reload()

    @classmethod
    def create(cls, folder: Path, instance_name: str) -> "tuple[Keyring, bool]":
        """The keys of a folder, made first if it has none; and whether they were made now."""
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        key = generate_signing_key(instance_name, secrets.token_bytes)
        new = create_private(folder / KEY_FILE, dump_signing_key(key) + "\n")
        return cls(folder), new

    def reload(self) -> bool:
        """Reads the file again if it is another than before, and says whether it was."""
        try:
            found = self.path.stat()
            stamp = (found.st_mtime_ns, found.st_ino)
            if stamp == self._stamp:
                return False
            if found.st_mode & 0o077:
                raise KeyringError(f"{self.path} can be read by others: chmod 600, and rotate the key if one may have")
            # An error of decoding would carry the whole file: what is no ASCII is no key either.
            lines = self.path.read_bytes().decode("ascii", "replace").split("\n")
        except FileNotFoundError:
            raise KeyringError(f"{self.path} is missing: it holds the private key of the log") from None
        except OSError as error:
            raise KeyringError(f"{self.path} cannot be read: {error}") from None
        try:
            keys = tuple(load_signing_key(line) for line in lines if line)
        except Invalid as error:
            raise KeyringError(f"{self.path}: {error.message}") from None
        if not keys or len({key.name for key in keys}) != 1:
            raise KeyringError(f"{self.path} holds no key, or keys of several instances")
        self.keys, self._stamp = keys, stamp
        self._seal_keys = tuple(hmac.digest(key.seed, b"animus.audit_queue/v1", "sha256") for key in keys)
        return True

    @property
    def instance_name(self) -> str:
        """What the origins of the instance's logs begin with."""
        return self.keys[0].name

    @property
    def public_keys(self) -> tuple[str, ...]:
        """The public keys in base64, the current one first."""
        return tuple(base64.b64encode(key.public_key).decode() for key in self.keys)

    def write(self, keys: Sequence[SigningKey]) -> None:
        """Replaces the keys."""
        write_private(self.path, "".join(dump_signing_key(key) + "\n" for key in keys))
        self.reload()

    def seal(self, project_id: str, entry_id: str, leaf_hash: bytes) -> bytes:
        """The MAC that a queued entry carries."""
        return hmac.digest(self._seal_keys[0], sealed_text(project_id, entry_id, leaf_hash), "sha256")

    def is_sealed(self, project_id: str, entry_id: str, leaf_hash: bytes, seal: bytes) -> bool:
        """Whether a queued entry came from a server that has one of the keys."""
        message = sealed_text(project_id, entry_id, leaf_hash)
        return any(hmac.compare_digest(hmac.digest(key, message, "sha256"), seal) for key in self._seal_keys)

    def checkpoint(self, project_id: str, epoch: int, tree: CompactRange) -> bytes:
        """The signed checkpoint of a tree. After this the signature exists: never ask for another tree of this size."""
        origin = origin_of(self.instance_name, project_id, epoch)
        return sign_note(dump_checkpoint(Checkpoint(origin, tree.size, root(tree), ())), self.keys, origin)

    def receipt(self, epoch: int, logged: Logged) -> bytes:
        """The signed promise that an entry will be in a checkpoint; the same each time."""
        origin = origin_of(self.instance_name, logged.project_id, epoch)
        text = dump_receipt(Receipt(origin, logged.leaf_hash, logged.entry_id, promised_by(logged.time)))
        return sign_note(text, self.keys[:1], origin)

    def envelope(self, payload: bytes) -> bytes:
        """The file of a statement, signed by every key; the same each time while the keys are the same."""
        message = attestation.pae(attestation.PAYLOAD_TYPE, payload)
        return attestation.envelope(payload, [(key.public_key, key.sign(message)) for key in self.keys])


def made_up_name() -> str:
    """A name for an instance that nobody has named."""
    return f"animus.local/{secrets.token_hex(8)}"
