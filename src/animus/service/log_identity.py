"""What this instance's logs are called and signed with, kept in memory for the calls that need it."""

import base64

from animus.domain.audit import Logged
from animus.domain.log import FIRST_EPOCH, LogKeyStatus, origin_of
from animus.domain.note import ED25519, Key
from animus.keyring import Keyring
from animus.store.log import KeyFacts, LogStore


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

    def receipt(self, logged: Logged) -> bytes:
        """The signed promise to publish an entry that was committed."""
        return self._keyring.receipt(self.epoch, logged)


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
