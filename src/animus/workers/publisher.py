"""Signs the heads of logs that grew.

The order decides what a crash can leave behind. Read what is committed; rebuild each tree a second way, from the head
that the signer itself remembers; promise the new head in the signer's state, durably; only then sign; only then store.
Nothing is signed inside a transaction that can roll back, and nothing that is not an extension of what was signed
before.
"""

import asyncio
from dataclasses import dataclass

import structlog

from animus.domain import merkle
from animus.domain.log import instance_entry_id
from animus.domain.merkle import EMPTY_RANGE, HASH_BYTES, CompactRange
from animus.domain.names import INSTANCE_LOG
from animus.keyring import Keyring
from animus.store.log import LogStore, LogWriter
from animus.store.signer_state import Advance, SignerState
from animus.workers.integrator import grow

LOGS = 500  # logs in one round

log = structlog.get_logger("animus.publisher")


class Contradiction(RuntimeError):
    """The database contradicts what was signed: nothing may be signed until an operator has seen to it."""


@dataclass(frozen=True, slots=True)
class Signed:
    """A checkpoint that is signed and not yet stored."""

    project_id: str
    tree: CompactRange
    note: bytes


class Publisher:
    """Signs and stores checkpoints of one epoch."""

    def __init__(self, store: LogStore, state: SignerState, keyring: Keyring) -> None:
        self._store = store
        self._state = state
        self._keyring = keyring

    async def check_all(self) -> None:
        """Raises Contradiction unless the database holds all that was ever signed in this epoch, and no more.

        To be called before the first round, and whenever the database may be another than before. Raises NotLeading.
        """
        epoch = await asyncio.to_thread(self._state.epoch)
        heads = await asyncio.to_thread(self._state.heads)
        async with self._store.lead() as writer:
            await self._check_epoch(writer, epoch)
            trees = await writer.every_tree()
            for project_id, largest in (await writer.largest_checkpoints(epoch)).items():
                if largest > heads.get(project_id, EMPTY_RANGE).size:
                    raise Contradiction(
                        f"the log of {project_id} has a checkpoint of size {largest}, which is more than this signer's "
                        "state knows of: another signer's state belongs to this database"
                    )
            known = {project_id: trees.get(project_id, EMPTY_RANGE) for project_id in heads}
            await _extended(writer, heads, known)

    async def step(self) -> int:
        """Signs the head of each log that grew, then that of the instance's log, and returns how many were stored.

        Raises Contradiction, SignerStateError, NotLeading, or Unavailable when the database does not answer. Whichever
        it is, the next call goes on, or the next leader's: a head that was promised is signed again, and is the same.
        """
        epoch = await asyncio.to_thread(self._state.epoch)
        count = 0
        for of_instance in (False, True):
            signed = await self._sign(epoch, of_instance)
            if signed:
                await self._store_signed(epoch, signed)
            count += len(signed)
        return count

    async def _sign(self, epoch: int, of_instance: bool) -> list[Signed]:
        async with self._store.lead() as writer:
            await self._check_epoch(writer, epoch)
            trees = {
                project_id: tree
                for project_id, tree in (await writer.unpublished(LOGS)).items()
                if (project_id == INSTANCE_LOG) is of_instance
            }
            if not trees:
                return []
            heads = await asyncio.to_thread(self._state.heads, list(trees))
            rebuilt = await _extended(writer, heads, trees)
        advances = [Advance(p, heads.get(p, EMPTY_RANGE), tree) for p, tree in rebuilt.items()]
        # The transaction has read only, and is over. From here on the heads are promised, whatever becomes of us.
        await asyncio.to_thread(self._state.advance, epoch, advances)
        return [
            Signed(each.log, each.after, self._keyring.checkpoint(each.log, epoch, each.after)) for each in advances
        ]

    async def _store_signed(self, epoch: int, signed: list[Signed]) -> None:
        async with self._store.lead() as writer:
            await writer.publish(epoch, [(each.project_id, each.tree.size, each.note) for each in signed])
            leaves = [
                (INSTANCE_LOG, instance_entry_id(each.project_id, epoch, each.tree.size), merkle.leaf_hash(each.note))
                for each in signed
                if each.project_id != INSTANCE_LOG
            ]
            known = await writer.indexed(INSTANCE_LOG, [entry_id for _, entry_id, _ in leaves])
            if new := [leaf for leaf in leaves if leaf[1] not in known]:
                await grow(writer, new)

    @staticmethod
    async def _check_epoch(writer: LogWriter, epoch: int) -> None:
        recorded = await writer.epoch()
        if recorded != epoch:
            raise Contradiction(
                f"the database is in epoch {recorded} of the log and the signer in {epoch}: run animus log epoch"
            )


async def _extended(
    writer: LogWriter, heads: dict[str, CompactRange], trees: dict[str, CompactRange]
) -> dict[str, CompactRange]:
    """The trees of the database, rebuilt from the signer's own heads and the leaves after them.

    Raises Contradiction unless both ways lead to the same trees.
    """
    for project_id, head in heads.items():
        if trees[project_id].size < head.size:
            raise Contradiction(
                f"the log of {project_id} has {trees[project_id].size} leaves and {head.size} were signed: the database"
                " was restored from an older state, or its end was cut off"
            )
    rebuilt = {project_id: heads.get(project_id, EMPTY_RANGE) for project_id in trees}
    async for part in writer.leaf_hashes({p: (rebuilt[p].size, tree.size) for p, tree in trees.items()}):
        before = rebuilt[part.project_id]
        if part.first != before.size or len(part.hashes) != HASH_BYTES * (part.last + 1 - part.first):
            raise Contradiction(f"the log of {part.project_id} lacks a leaf from {before.size} to {part.last}")
        hashes = (part.hashes[at : at + HASH_BYTES] for at in range(0, len(part.hashes), HASH_BYTES))
        rebuilt[part.project_id] = merkle.append(before, hashes)
        await asyncio.sleep(0)  # a long log lets others have their turn
    for project_id, tree in trees.items():
        if rebuilt[project_id] != tree:
            raise Contradiction(
                f"the log of {project_id} is no extension of what was signed: the signed head and the leaves after it"
                f" lead to another tree than that of size {tree.size} which the database has"
            )
    return rebuilt
