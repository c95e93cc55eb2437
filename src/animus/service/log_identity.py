"""What this instance's logs are called and signed with, kept in memory for the calls that need it."""

import base64
from functools import lru_cache

from animus.domain.audit import Logged
from animus.domain.checkpoint import Checkpoint
from animus.domain.errors import Invalid, NotFound
from animus.domain.log import FIRST_EPOCH, LogKeyStatus, damaged, origin_of
from animus.domain.names import project_name
from animus.domain.note import ED25519, Key
from animus.keyring import Keyring
from animus.signing import verify_checkpoint
from animus.store.log import KeyFacts, LogStore, StoredCheckpoint


class LogIdentity:
    """Epoch and keys, as they were a moment ago."""

    def __init__(self, store: LogStore, keyring: Keyring) -> None:
        self._store = store
        self._keyring = keyring
        self.epoch = FIRST_EPOCH
        self.keys: tuple[KeyFacts, ...] = ()

    async def refresh(self) -> None:
        """Reads both again. Raises Unavailable."""
        self.epoch = await self._store.epoch()
        self.keys = tuple(await self._store.keys())

    @property
    def instance_name(self) -> str:
        """What every origin begins with."""
        return self._keyring.instance_name

    def origin(self, project_id: str) -> str:
        """The origin of a log in this epoch."""
        return origin_of(self.instance_name, project_id, self.epoch)

    def verifiers(self, project_id: str, epoch: int) -> list[Key]:
        """The keys whose signatures are good for a log in an epoch: all that were not revoked."""
        origin = origin_of(self.instance_name, project_id, epoch)
        return [vkey_of(facts, origin) for facts in self.keys if status_of(facts) is not LogKeyStatus.REVOKED]

    def verified(self, project_id: str, stored: StoredCheckpoint) -> Checkpoint:
        """A checkpoint as it was stored, if a key of the log signed it and it stands where it belongs."""
        try:
            checkpoint = _verify(stored.note, tuple(self.verifiers(project_id, stored.epoch)))
        except Invalid as error:
            raise damaged(
                f"the checkpoint of size {stored.size} in epoch {stored.epoch}: {error.message}",
                checkpoint_size=str(stored.size),
            ) from None
        if checkpoint.size != stored.size:
            raise damaged(
                f"the checkpoint kept as that of size {stored.size} is one of size {checkpoint.size}",
                checkpoint_size=str(stored.size),
            )
        return checkpoint

    def receipt(self, logged: Logged) -> bytes:
        """The signed promise to publish an entry that was committed."""
        return self._keyring.receipt(self.epoch, logged)


def checkpoint_unknown(project_id: str, which: str) -> NotFound:
    """What a caller is told of a checkpoint that is not there."""
    return NotFound(
        "CHECKPOINT_UNKNOWN",
        f"the log has no checkpoint: not {which}",
        kind="LogCheckpoint",
        name=f"{project_name(project_id)}/log/checkpoints",
    )


@lru_cache(1_000)
def _verify(note: bytes, keys: tuple[Key, ...]) -> Checkpoint:
    """The checkpoint of a note that one of these keys has signed; remembered, since the same are asked for again."""
    return verify_checkpoint(note, keys)[0]


def vkey_of(facts: KeyFacts, origin: str) -> Key:
    """The verifier key of a log by its origin."""
    return Key(origin, ED25519, base64.b64decode(facts.key.value.public_key))


def status_of(facts: KeyFacts) -> LogKeyStatus:
    """What became of a key; revocation is the last word."""
    statuses = {end.value.status for end in facts.ends}
    for status in (LogKeyStatus.REVOKED, LogKeyStatus.RETIRED):
        if status in statuses:
            return status
    return LogKeyStatus.ACTIVE
