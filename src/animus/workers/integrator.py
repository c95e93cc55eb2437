"""Gives queued entries their place in the log.

Rows leave the queue by DELETE … RETURNING, in the transaction that writes their leaves: a crash gives both or neither.
A watermark would lose entries, since a transaction with an earlier id may commit later. Entries of transactions that
did not overlap keep their order: the later one has the larger transaction id, and whoever sees its row sees the
earlier's.
"""

from collections.abc import Iterable

import structlog

from animus.domain import merkle
from animus.domain.log import full_tiles
from animus.domain.merkle import EMPTY_RANGE, CompactRange
from animus.domain.tile import WIDTH
from animus.keyring import Keyring
from animus.store.log import Growth, LogWriter, Queued

BATCH = 4_000  # entries in one transaction

log = structlog.get_logger("animus.integrator")


class Integrator:
    """Takes entries out of the queue and writes them into their logs."""

    def __init__(self, keyring: Keyring) -> None:
        self._keyring = keyring

    async def step(self, writer: LogWriter, limit: int = BATCH) -> int:
        """Integrates the oldest entries, at most `limit`, and returns how many left the queue."""
        taken = await writer.take(limit)
        sound = await self._set_aside(writer, taken)
        if sound:
            await grow(writer, ((row.project_id, row.entry_id, row.leaf_hash) for row in sound))
        return len(taken)

    async def step_quarantine(self, writer: LogWriter) -> int:
        """Integrates what was repaired since it was put aside, drops what was given up, and returns how much left."""
        found = await writer.quarantined()
        given_up = [row for row, forfeited in found if forfeited]
        repaired = [row for row, forfeited in found if not forfeited and not self._problem(row)]
        if given_up or repaired:
            await writer.release([*given_up, *repaired])
        if repaired:
            await grow(writer, ((row.project_id, row.entry_id, row.leaf_hash) for row in repaired))
            log.warning("repaired entries integrated", entries=[row.entry_id for row in repaired])
        return len(given_up) + len(repaired)

    async def _set_aside(self, writer: LogWriter, taken: list[Queued]) -> list[Queued]:
        found = [(row, problem) for row in taken if (problem := self._problem(row))]
        if not found:
            return taken
        await writer.quarantine(found)
        for row, problem in found:
            log.error("entry quarantined", project=row.project_id, entry=row.entry_id, problem=problem)
        bad = {(row.project_id, row.entry_id) for row, _ in found}
        return [row for row in taken if (row.project_id, row.entry_id) not in bad]

    def _problem(self, row: Queued) -> str:
        """What is wrong with an entry; empty if nothing is. Its bytes are hashed again before it gets an index."""
        if not self._keyring.is_sealed(row.project_id, row.entry_id, row.leaf_hash, row.seal):
            return "its queue row was not written by a server of this instance"
        if row.document is None:
            return "its bytes are gone"
        if merkle.leaf_hash(row.document) != row.leaf_hash:
            return "its bytes do not match the hash that was taken when it was written"
        return ""


async def grow(writer: LogWriter, leaves: Iterable[tuple[str, str, bytes]]) -> None:
    """Appends leaves (log, entry id, leaf hash) to their logs, in the order in which they come."""
    by_log: dict[str, list[tuple[str, bytes]]] = {}
    for project_id, entry_id, leaf_hash in leaves:
        by_log.setdefault(project_id, []).append((entry_id, leaf_hash))
    trees = await writer.trees(by_log)
    befores = {project_id: trees.get(project_id, EMPTY_RANGE) for project_id in by_log}
    filling = {p: tree.size for p, tree in befores.items() if tree.size % WIDTH + len(by_log[p]) >= WIDTH}
    edges = await writer.edges(filling) if filling else {}
    await writer.append([_growth(p, befores[p], by_log[p], edges.get(p)) for p in by_log])


def _growth(
    project_id: str, before: CompactRange, leaves: list[tuple[str, bytes]], edges: list[list[bytes]] | None
) -> Growth:
    hashes = [leaf_hash for _, leaf_hash in leaves]
    tiles = () if edges is None else tuple(full_tiles(before.size, hashes, edges))
    return Growth(project_id, before.size, tuple(leaves), tiles, merkle.append(before, hashes))
