"""The rows of the log: what its workers write, and what its readers ask for.

Only the server that leads writes here, in transactions that `lead` opens: an advisory lock keeps all others out for as
long as one lasts, and a row with a fencing number says who goes on. Neither is tied to a connection, so that a leader
behind pgbouncer, or one that was stopped for an hour, can do no harm: its next transaction finds another holder.
"""

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import TextClause, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from animus.domain import document
from animus.domain.log import Cosignature, FullTile, LogEpoch, LogKey, LogKeyEnd
from animus.domain.merkle import CompactRange
from animus.domain.names import INSTANCE_LOG, SYSTEM_PROJECT
from animus.domain.tile import WIDTH, Tile
from animus.store.engine import translated
from animus.store.records import Stored, stored

HASH_BYTES = 32
LAG_SECONDS = 30  # so long may an entry wait for its index, and a leaf for its checkpoint, before something is wrong


@dataclass(frozen=True, slots=True)
class Queued:
    """An entry that waits for an index, with the bytes that are stored of it now."""

    project_id: str
    entry_id: str
    leaf_hash: bytes
    seal: bytes
    document: bytes | None  # None where the entry is gone


@dataclass(frozen=True, slots=True)
class Growth:
    """What a log grows by: the leaves in their order, the tiles that become full, and the tree afterwards."""

    project_id: str
    first_index: int
    leaves: tuple[tuple[str, bytes], ...]  # entry id and leaf hash
    tiles: tuple[FullTile, ...]
    tree: CompactRange


@dataclass(frozen=True, slots=True)
class LeafHashes:
    """Hashes of leaves of one log, one after the other; with fewer than their span where leaves are missing."""

    project_id: str
    first: int
    last: int
    hashes: bytes


@dataclass(frozen=True, slots=True)
class LogSize:
    """How far a log has come."""

    size: int
    published_size: int
    queued: int


@dataclass(frozen=True, slots=True)
class StoredCheckpoint:
    """A checkpoint as it was published, with the cosignatures that came later."""

    epoch: int
    size: int
    note: bytes
    cosignatures: tuple[str, ...]
    create_time: str

    @property
    def cosigned_note(self) -> bytes:
        """The note with all its signature lines."""
        return self.note + "".join(f"{line}\n" for line in self.cosignatures).encode()


@dataclass(frozen=True, slots=True)
class StoredLeaf:
    """A leaf with the bytes that hash to it."""

    index: int
    entry_id: str
    leaf_hash: bytes
    data: bytes | None  # None where they are gone


@dataclass(frozen=True, slots=True)
class KeyFacts:
    """A key of the log as it is recorded: its record, and the records of its end."""

    key: Stored[LogKey]
    ends: tuple[Stored[LogKeyEnd], ...]


class NotLeading(Exception):
    """Another server leads, or is just about to say whether it does."""


class LogStore:
    """Opens the log for its workers, and answers for the instance as a whole."""

    def __init__(self, engine: AsyncEngine, holder: str) -> None:
        """`holder` names this server among others; two never have the same."""
        self._engine = engine
        self._holder = holder

    @asynccontextmanager
    async def lead(self) -> "AsyncIterator[LogWriter]":
        """A transaction that writes the log, committed at the end. Raises NotLeading while another server leads."""
        async with translated(), self._engine.connect() as connection, connection.begin():
            fence = (await connection.execute(_LEAD, {"holder": self._holder})).scalar_one()
            if fence is None:
                raise NotLeading
            yield LogWriter(connection, int(fence))

    async def hand_over(self) -> None:
        """Ends this server's lease, so that the next need not wait for it to run out."""
        async with translated(), self._engine.connect() as connection, connection.begin():
            await connection.execute(_EVERY_PROJECT)
            await connection.execute(_HAND_OVER, {"holder": self._holder})

    async def holds_lead(self, fence: int | None = None) -> bool:
        """Whether this server was the last to lead; with a fence, whether no other has since it led under that."""
        async with translated(), self._engine.connect() as connection, connection.begin():
            await connection.execute(_EVERY_PROJECT)
            values = {"holder": self._holder, "fence": fence}
            return bool((await connection.execute(_HOLDS_LEAD, values)).scalar_one())

    async def report(self, problem: str) -> None:
        """Tells all servers why nothing can be signed, or with an empty text that it can; only who leads is heard."""
        async with translated(), self._engine.connect() as connection, connection.begin():
            await connection.execute(_EVERY_PROJECT)
            await connection.execute(_REPORT, {"holder": self._holder, "problem": problem})

    async def epoch(self) -> int:
        """The epoch that the instance is in, from 1."""
        async with translated(), self._engine.connect() as connection, connection.begin():
            await connection.execute(_EVERY_PROJECT)
            return int((await connection.execute(_EPOCH)).scalar_one())

    async def keys(self) -> list[KeyFacts]:
        """Every key that the instance's logs have had, the oldest first."""
        async with translated(), self._engine.connect() as connection, connection.begin():
            await connection.execute(_SCOPE, {"project_id": SYSTEM_PROJECT})
            keys = [stored(row, LogKey) for row in await connection.execute(_KEYS)]
            ends = [stored(row, LogKeyEnd) for row in await connection.execute(_KEY_ENDS)]
        return [
            KeyFacts(key, tuple(end for end in ends if end.value.public_key == key.value.public_key)) for key in keys
        ]

    async def problems(self) -> list[str]:
        """What is wrong with the log of any project, a line each; one round trip."""
        async with translated(), self._engine.connect() as connection, connection.begin():
            await connection.execute(_EVERY_PROJECT)
            return list((await connection.execute(_PROBLEMS, {"project_id": None, "lag": LAG_SECONDS})).scalars())

    async def published_sizes(self, projects: Sequence[str]) -> dict[str, tuple[int, int]]:
        """For each log of these that has grown: how many leaves have an index, and how many a checkpoint."""
        async with translated(), self._engine.connect() as connection, connection.begin():
            await connection.execute(_EVERY_PROJECT)
            rows = await connection.execute(_SIZES, {"projects": list(projects)})
            return {row.project_id: (row.size, row.published_size) for row in rows}


class LogWriter:
    """What the leader reads and writes in one transaction."""

    def __init__(self, connection: AsyncConnection, fence: int) -> None:
        self._connection = connection
        self.fence = fence

    async def take(self, limit: int) -> list[Queued]:
        """Takes the oldest entries out of the queue, in the order of their transactions."""
        return [Queued(*row) for row in await self._connection.execute(_TAKE, {"limit": limit})]

    async def quarantined(self) -> list[tuple[Queued, bool]]:
        """The entries in quarantine, and whether an operator gave each up; they stay there."""
        rows = await self._connection.execute(_QUARANTINED)
        return [(Queued(*row[:5]), row.forfeited) for row in rows]

    async def quarantine(self, found: Sequence[tuple[Queued, str]]) -> None:
        """Puts entries aside, each with what is wrong with it."""
        await self._connection.execute(
            _QUARANTINE,
            {
                "projects": [row.project_id for row, _ in found],
                "entries": [row.entry_id for row, _ in found],
                "hashes": [row.leaf_hash for row, _ in found],
                "seals": [row.seal for row, _ in found],
                "problems": [problem for _, problem in found],
            },
        )

    async def release(self, rows: Sequence[Queued]) -> None:
        """Takes entries out of quarantine."""
        await self._connection.execute(
            _RELEASE,
            {"projects": [row.project_id for row in rows], "entries": [row.entry_id for row in rows]},
        )

    async def trees(self, projects: Iterable[str]) -> dict[str, CompactRange]:
        """The trees of these logs; those that have no leaf are left out."""
        rows = await self._connection.execute(_TREES, {"projects": list(projects)})
        return {row.project_id: _range(row.size, row.hashes) for row in rows}

    async def every_tree(self) -> dict[str, CompactRange]:
        """The trees of all logs."""
        return {row.project_id: _range(row.size, row.hashes) for row in await self._connection.execute(_EVERY_TREE)}

    async def edges(self, sizes: dict[str, int]) -> dict[str, list[list[bytes]]]:
        """For each of these logs at its size: the hashes of its partial tiles, by level."""
        edges: dict[str, list[list[bytes]]] = {project_id: [[]] for project_id in sizes}
        values = {"projects": list(sizes), "firsts": [size - size % WIDTH for size in sizes.values()]}
        for row in await self._connection.execute(_EDGE_LEAVES, values):
            edges[row.project_id][0].append(row.leaf_hash)
        level, counts = 1, {project_id: size // WIDTH for project_id, size in sizes.items() if size >= WIDTH}
        while counts:
            for project_id in counts:
                edges[project_id].append([])
            values = {
                "level": level - 1,
                "projects": list(counts),
                "firsts": [count - count % WIDTH for count in counts.values()],
            }
            for row in await self._connection.execute(_EDGE_ROOTS, values):
                edges[row.project_id][level].append(row.root)
            level, counts = level + 1, {p: count // WIDTH for p, count in counts.items() if count >= WIDTH}
        return edges

    async def append(self, growths: Sequence[Growth]) -> None:
        """Writes leaves, tiles and trees of several logs; one statement."""
        leaves = [
            (growth.project_id, growth.first_index + offset, entry_id, leaf_hash)
            for growth in growths
            for offset, (entry_id, leaf_hash) in enumerate(growth.leaves)
        ]
        tiles = [(growth.project_id, tile) for growth in growths for tile in growth.tiles]
        await self._connection.execute(
            _APPEND,
            {
                "leaf_projects": [leaf[0] for leaf in leaves],
                "leaf_indexes": [leaf[1] for leaf in leaves],
                "leaf_entries": [leaf[2] for leaf in leaves],
                "leaf_hashes": [leaf[3] for leaf in leaves],
                "tile_projects": [project_id for project_id, _ in tiles],
                "tile_levels": [tile.level for _, tile in tiles],
                "tile_indexes": [tile.index for _, tile in tiles],
                "tile_roots": [tile.root for _, tile in tiles],
                "tile_hashes": [tile.hashes for _, tile in tiles],
                "projects": [growth.project_id for growth in growths],
                "sizes": [growth.tree.size for growth in growths],
                "trees": [b"".join(growth.tree.hashes) for growth in growths],
                "fence": self.fence,
            },
        )

    async def indexed(self, project_id: str, entry_ids: Sequence[str]) -> set[str]:
        """Those of these entries that have an index."""
        values = {"project_id": project_id, "entries": list(entry_ids)}
        return set((await self._connection.execute(_INDEXED, values)).scalars())

    async def unpublished(self, limit: int) -> dict[str, CompactRange]:
        """Trees that no checkpoint covers yet, those that wait longest first."""
        rows = await self._connection.execute(_UNPUBLISHED, {"limit": limit})
        return {row.project_id: _range(row.size, row.hashes) for row in rows}

    async def leaf_hashes(self, spans: dict[str, tuple[int, int]]) -> AsyncIterator[LeafHashes]:
        """The hashes of the leaves in these spans (first, end), log by log in their order; streamed, many in a row."""
        values = {
            "projects": list(spans),
            "firsts": [first for first, _ in spans.values()],
            "ends": [end for _, end in spans.values()],
        }
        async with self._connection.stream(_LEAF_HASHES, values) as rows:
            async for row in rows:
                yield LeafHashes(*row)

    async def epoch(self) -> int:
        """The epoch that the instance is in, from 1."""
        return int((await self._connection.execute(_EPOCH)).scalar_one())

    async def largest_checkpoints(self, epoch: int) -> dict[str, int]:
        """For each log with a checkpoint in an epoch, the size of the largest."""
        rows = await self._connection.execute(_LARGEST, {"epoch": epoch})
        return {row.project_id: row.size for row in rows}

    async def publish(self, epoch: int, notes: Sequence[tuple[str, int, bytes]]) -> None:
        """Stores signed checkpoints: log, size and note. One that is stored already stays as it is."""
        await self._connection.execute(
            _PUBLISH,
            {
                "epoch": epoch,
                "projects": [note[0] for note in notes],
                "sizes": [note[1] for note in notes],
                "notes": [note[2] for note in notes],
            },
        )


class LogRows:
    """The log of one project, or of the instance, read over one connection within one transaction."""

    def __init__(self, connection: AsyncConnection, project_id: str) -> None:
        self._connection = connection
        self.project_id = project_id

    async def size(self) -> LogSize:
        """How far the log has come."""
        row = (await self._rows(_LOG_SIZE))[0]
        return LogSize(row.size, row.published_size, row.queued)

    async def problems(self) -> list[str]:
        """What is wrong with this log, a line each."""
        return [row[0] for row in await self._rows(_PROBLEMS, lag=LAG_SECONDS)]

    async def epochs(self) -> list[LogEpoch]:
        """The epochs after the first, in their order."""
        return [document.load(row.document, LogEpoch) for row in await self._rows(_EPOCHS)]

    async def checkpoint(self, size: int = 0, *, minimum: int = 0, cosigned: bool = False) -> StoredCheckpoint | None:
        """The checkpoint of a size; with 0 the newest, of a minimum size or cosigned where asked; None if none is."""
        if cosigned:
            rows = await self._rows(_COSIGNED_CHECKPOINT, minimum=minimum)
        elif size:
            rows = await self._rows(_CHECKPOINT_OF, size=size)
        else:
            rows = await self._rows(_CHECKPOINT, minimum=minimum)
        return _checkpoint(rows[0]) if rows else None

    async def checkpoints(self, after: tuple[int, int], limit: int) -> list[StoredCheckpoint]:
        """At most `limit` checkpoints after (epoch, size), in this order."""
        rows = await self._rows(_CHECKPOINTS, epoch=after[0], size=after[1], limit=limit)
        return [_checkpoint(row) for row in rows]

    async def index_of(self, entry_id: str) -> tuple[bool, int | None]:
        """Whether the log's project has an entry of this id, and its index if it has one."""
        row = (await self._rows(_INDEX_OF, entry_id=entry_id))[0]
        return row.known, row.leaf_index

    async def leaf(self, index: int) -> StoredLeaf | None:
        """The leaf of an index."""
        found = await self.leaves(index, index + 1)
        return found[0] if found else None

    async def leaves(self, first: int, end: int) -> list[StoredLeaf]:
        """The leaves from `first` up to before `end`, with the bytes that are stored of them now."""
        statement = _INSTANCE_LEAVES if self.project_id == INSTANCE_LOG else _LEAVES
        return [StoredLeaf(*row) for row in await self._rows(statement, first=first, end=end)]

    async def leaves_of(self, resource: str, size: int) -> list[StoredLeaf]:
        """The leaves below a size whose entries are of a resource, or of one below its name; in their order."""
        return [StoredLeaf(*row) for row in await self._rows(_LEAVES_OF, resource=resource, size=size)]

    async def tiles(self, tiles: Iterable[Tile]) -> dict[Tile, bytes]:
        """The hashes of these tiles. A tile with fewer hashes than its width is one that the log does not have."""
        wanted = list(tiles)
        values = {
            "levels": [tile.level for tile in wanted],
            "indexes": [tile.index for tile in wanted],
            "widths": [tile.width for tile in wanted],
        }
        return dict(zip(wanted, [row.hashes for row in await self._rows(_TILES, **values)], strict=True))

    async def entries(self, first: int, end: int, where: dict[str, str]) -> list[tuple[StoredLeaf, bool]]:
        """The same as `leaves` for a project, and whether each entry meets the conditions; if not, without bytes.

        `where` may hold principal, action, resource, start_time (that or later) and end_time (before it). An entry
        whose bytes are gone, or are not those that were logged, meets any.
        """
        wanted = {name: where.get(name, "") for name in ("principal", "action", "resource", "start_time", "end_time")}
        rows = await self._rows(_FILTERED_LEAVES, first=first, end=end, **wanted)
        return [(StoredLeaf(*row[:4]), row.meets) for row in rows]

    async def _rows(self, statement: TextClause, **values: Any) -> Sequence[Any]:
        return (await self._connection.execute(statement, {"project_id": self.project_id, **values})).all()


def _range(size: int, hashes: bytes) -> CompactRange:
    return CompactRange(size, tuple(hashes[at : at + HASH_BYTES] for at in range(0, len(hashes), HASH_BYTES)))


def _checkpoint(row: Any) -> StoredCheckpoint:
    lines = tuple(document.load(each, Cosignature).line for each in row.cosignatures)
    return StoredCheckpoint(row.epoch, row.size, row.note, lines, row.create_time)


_EVERY_PROJECT = text("SELECT set_config('animus.every_project', 'on', true)")
_SCOPE = text("SELECT set_config('animus.project_id', :project_id, true)")
_LEAD = text("SELECT animus.lead_log(:holder)")
_HOLDS_LEAD = text(
    "SELECT EXISTS (SELECT FROM animus.log_lead"
    " WHERE holder = :holder AND fence = coalesce(CAST(:fence AS bigint), fence))"
)
_REPORT = text("UPDATE animus.log_lead SET problem = :problem WHERE holder = :holder AND problem <> :problem")
_HAND_OVER = text("UPDATE animus.log_lead SET renew_time = '-infinity' WHERE holder = :holder")
_EPOCH = text("SELECT coalesce(max(epoch), 1) FROM animus.log_epoch WHERE log = 'instance'")
_SYSTEM_RECORDS = (
    "SELECT r.document, r.digest, r.entry_id, e.principal, e.time FROM animus.{table} r"
    " JOIN animus.audit_entry e ON e.project_id = r.project_id AND e.entry_id = r.entry_id"
    " WHERE r.project_id = 'system' ORDER BY e.time, r.public_key"
)
_KEYS = text(_SYSTEM_RECORDS.format(table="log_key"))
_KEY_ENDS = text(_SYSTEM_RECORDS.format(table="log_key_end"))

# Both limits are on the oldest of a queue: a busy log that keeps up is never behind.
_PROBLEMS = text(
    """
    SELECT 'entry ' || entry_id || ' of project ' || project_id || ' is quarantined: ' || problem
      FROM animus.log_quarantine
      WHERE project_id = coalesce(CAST(:project_id AS text), project_id)
    UNION ALL
    SELECT * FROM (
      SELECT 'entry ' || entry_id || ' of project ' || project_id || ' has waited for its index since ' || enqueue_time
        FROM animus.audit_queue
        WHERE project_id = coalesce(CAST(:project_id AS text), project_id)
        ORDER BY written_in, entry_id LIMIT 1
    ) AS oldest WHERE (SELECT enqueue_time FROM animus.audit_queue
        WHERE project_id = coalesce(CAST(:project_id AS text), project_id)
        ORDER BY written_in, entry_id LIMIT 1) < now() - make_interval(secs => :lag)
    UNION ALL
    SELECT problem FROM animus.log_lead WHERE problem <> '' AND CAST(:project_id AS text) IS NULL
    UNION ALL
    SELECT 'the log of ' || project_id || ' has grown since ' || grow_time || ' without a checkpoint'
      FROM animus.log_state
      WHERE project_id = coalesce(CAST(:project_id AS text), project_id)
        AND grow_time < now() - make_interval(secs => :lag)
    """
)
_SIZES = text(
    "SELECT project_id, size, published_size FROM animus.log_state WHERE project_id = ANY(CAST(:projects AS text[]))"
)

_TAKE = text(
    """
    WITH oldest AS (
      SELECT project_id, entry_id FROM animus.audit_queue ORDER BY written_in, entry_id LIMIT :limit
    ), taken AS (
      DELETE FROM animus.audit_queue q USING oldest o WHERE q.project_id = o.project_id AND q.entry_id = o.entry_id
      RETURNING q.project_id, q.entry_id, q.leaf_hash, q.seal, q.written_in
    )
    SELECT t.project_id, t.entry_id, t.leaf_hash, t.seal, e.document
    FROM taken t LEFT JOIN animus.audit_entry e ON e.project_id = t.project_id AND e.entry_id = t.entry_id
    ORDER BY t.written_in, t.entry_id
    """
)
_QUARANTINED = text(
    "SELECT q.project_id, q.entry_id, q.leaf_hash, q.seal, e.document, EXISTS (SELECT FROM animus.log_forfeit f"
    " WHERE f.project_id = q.project_id AND f.forfeited_id = q.entry_id) AS forfeited FROM animus.log_quarantine q"
    " LEFT JOIN animus.audit_entry e ON e.project_id = q.project_id AND e.entry_id = q.entry_id"
    " ORDER BY q.quarantine_time, q.entry_id LIMIT 1000"
)
_QUARANTINE = text(
    "INSERT INTO animus.log_quarantine (project_id, entry_id, leaf_hash, seal, problem)"
    " SELECT * FROM unnest(CAST(:projects AS text[]), CAST(:entries AS text[]), CAST(:hashes AS bytea[]),"
    " CAST(:seals AS bytea[]), CAST(:problems AS text[])) ON CONFLICT DO NOTHING"
)
_RELEASE = text(
    "DELETE FROM animus.log_quarantine q USING unnest(CAST(:projects AS text[]), CAST(:entries AS text[]))"
    " AS r (project_id, entry_id) WHERE q.project_id = r.project_id AND q.entry_id = r.entry_id"
)
_TREES = text("SELECT project_id, size, hashes FROM animus.log_state WHERE project_id = ANY(CAST(:projects AS text[]))")
_EVERY_TREE = text("SELECT project_id, size, hashes FROM animus.log_state")
# One log after the other by the index of its leaves: joined as a whole, they would be read as a whole.
_EDGE_LEAVES = text(
    "SELECT w.project_id, l.leaf_hash FROM unnest(CAST(:projects AS text[]), CAST(:firsts AS bigint[]))"
    " AS w (project_id, first) CROSS JOIN LATERAL (SELECT index, leaf_hash FROM animus.log_leaf"
    " WHERE project_id = w.project_id AND index >= w.first ORDER BY index LIMIT 256) AS l"
    " ORDER BY w.project_id, l.index"
)
_EDGE_ROOTS = text(
    "SELECT w.project_id, t.root FROM unnest(CAST(:projects AS text[]), CAST(:firsts AS bigint[]))"
    " AS w (project_id, first) CROSS JOIN LATERAL (SELECT index, root FROM animus.log_tile"
    " WHERE project_id = w.project_id AND level = :level AND index >= w.first ORDER BY index LIMIT 256) AS t"
    " ORDER BY w.project_id, t.index"
)
_APPEND = text(
    """
    WITH leaves AS (
      INSERT INTO animus.log_leaf (project_id, index, entry_id, leaf_hash)
      SELECT * FROM unnest(CAST(:leaf_projects AS text[]), CAST(:leaf_indexes AS bigint[]),
                           CAST(:leaf_entries AS text[]), CAST(:leaf_hashes AS bytea[]))
    ), tiles AS (
      INSERT INTO animus.log_tile (project_id, level, index, root, hashes)
      SELECT * FROM unnest(CAST(:tile_projects AS text[]), CAST(:tile_levels AS integer[]),
                           CAST(:tile_indexes AS bigint[]), CAST(:tile_roots AS bytea[]), CAST(:tile_hashes AS bytea[]))
    )
    INSERT INTO animus.log_state AS s (project_id, size, hashes, grow_time, fence)
    SELECT project_id, size, hashes, now(), :fence
    FROM unnest(CAST(:projects AS text[]), CAST(:sizes AS bigint[]), CAST(:trees AS bytea[]))
      AS n (project_id, size, hashes)
    ON CONFLICT (project_id) DO UPDATE
      SET size = excluded.size, hashes = excluded.hashes, fence = excluded.fence,
        grow_time = coalesce(s.grow_time, excluded.grow_time)
    """
)
_INDEXED = text(
    "SELECT entry_id FROM animus.log_leaf WHERE project_id = :project_id AND entry_id = ANY(CAST(:entries AS text[]))"
)
_UNPUBLISHED = text(
    "SELECT project_id, size, hashes FROM animus.log_state WHERE size <> published_size ORDER BY grow_time LIMIT :limit"
)
_LEAF_HASHES = text(
    """
    SELECT w.project_id, h.first, h.last, h.hashes
    FROM unnest(CAST(:projects AS text[]), CAST(:firsts AS bigint[]), CAST(:ends AS bigint[]))
      WITH ORDINALITY AS w (project_id, first, end_, place)
    CROSS JOIN LATERAL generate_series(w.first / 4096, w.end_ / 4096) AS part
    CROSS JOIN LATERAL (
      SELECT min(index) AS first, max(index) AS last, string_agg(leaf_hash, '' ORDER BY index) AS hashes
      FROM animus.log_leaf
      WHERE project_id = w.project_id AND index >= greatest(w.first, part * 4096)
        AND index < least(w.end_, (part + 1) * 4096)
    ) AS h
    WHERE h.hashes IS NOT NULL ORDER BY w.place, part
    """
)
_LARGEST = text("SELECT project_id, max(size) AS size FROM animus.log_checkpoint WHERE epoch = :epoch GROUP BY 1")
_PUBLISH = text(
    """
    WITH new AS (
      SELECT * FROM unnest(CAST(:projects AS text[]), CAST(:sizes AS bigint[]), CAST(:notes AS bytea[]))
        AS n (project_id, size, note)
    ), kept AS (
      INSERT INTO animus.log_checkpoint (project_id, epoch, size, note)
      SELECT project_id, :epoch, size, note FROM new ON CONFLICT DO NOTHING
    )
    UPDATE animus.log_state s
      SET published_size = new.size, grow_time = CASE WHEN s.size > new.size THEN now() END
      FROM new WHERE s.project_id = new.project_id
    """
)

_LOG_SIZE = text(
    """
    SELECT coalesce(max(size), 0) AS size, coalesce(max(published_size), 0) AS published_size,
      (SELECT count(*) FROM animus.audit_queue WHERE project_id = :project_id) AS queued
    FROM animus.log_state WHERE project_id = :project_id
    """
)
_EPOCHS = text(
    "SELECT document FROM animus.log_epoch WHERE log = :project_id"
    " AND project_id = CASE WHEN :project_id = 'instance' THEN 'system' ELSE :project_id END ORDER BY epoch"
)
_CHECKPOINT_PARTS = """
    SELECT c.epoch, c.size, c.note, to_char(c.create_time AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
        AS create_time,
      ARRAY(SELECT s.document FROM animus.log_cosignature s
            WHERE s.log = c.project_id AND s.epoch = c.epoch AND s.size = c.size ORDER BY s.vkey) AS cosignatures
    FROM animus.log_checkpoint c WHERE c.project_id = :project_id
"""
_CHECKPOINT_OF = text(_CHECKPOINT_PARTS + " AND c.size = :size ORDER BY c.epoch DESC LIMIT 1")
_CHECKPOINT = text(_CHECKPOINT_PARTS + " AND c.size >= :minimum ORDER BY c.epoch DESC, c.size DESC LIMIT 1")
_COSIGNED_CHECKPOINT = text(
    _CHECKPOINT_PARTS + " AND c.size >= :minimum AND (c.epoch, c.size) IN"
    " (SELECT s.epoch, s.size FROM animus.log_cosignature s WHERE s.log = :project_id)"
    " ORDER BY c.epoch DESC, c.size DESC LIMIT 1"
)
_CHECKPOINTS = text(
    _CHECKPOINT_PARTS + " AND (c.epoch, c.size) > (:epoch, :size) ORDER BY c.epoch, c.size LIMIT :limit"
)
_INDEX_OF = text(
    """
    SELECT l.index AS leaf_index, l.index IS NOT NULL
      OR EXISTS (SELECT FROM animus.audit_entry WHERE project_id = :project_id AND entry_id = :entry_id) AS known
    FROM (SELECT 1) AS one
    LEFT JOIN animus.log_leaf l ON l.project_id = :project_id AND l.entry_id = :entry_id
    """
)
_LEAVES = text(
    "SELECT l.index, l.entry_id, l.leaf_hash, e.document FROM animus.log_leaf l"
    " LEFT JOIN animus.audit_entry e ON e.project_id = l.project_id AND e.entry_id = l.entry_id"
    " WHERE l.project_id = :project_id AND l.index >= :first AND l.index < :end ORDER BY l.index"
)
# Names below a resource's begin with it and a slash, which comes right before the digit 0.
_LEAVES_OF = text(
    "SELECT l.index, l.entry_id, l.leaf_hash, e.document FROM animus.audit_entry e"
    " JOIN animus.log_leaf l ON l.project_id = e.project_id AND l.entry_id = e.entry_id"
    " WHERE e.project_id = :project_id AND l.index < :size"
    " AND (e.resource = :resource OR (e.resource > :resource || '/' AND e.resource < :resource || '0'))"
    " ORDER BY l.index"
)
# The conditions are asked of bytes that hash to the leaf: neither a changed column nor a changed entry hides itself.
_FILTERED_LEAVES = text(
    """
    SELECT l.index, l.entry_id, l.leaf_hash, CASE WHEN m.meets THEN e.document END AS document, m.meets
    FROM animus.log_leaf l
    LEFT JOIN animus.audit_entry e ON e.project_id = l.project_id AND e.entry_id = l.entry_id
    CROSS JOIN LATERAL (
      SELECT e.document IS NULL OR sha256(CAST('\\x00' AS bytea) || e.document) <> l.leaf_hash OR (
        (:principal = '' OR animus.field(e.document, 'principal') = :principal)
        AND (:action = '' OR animus.field(e.document, 'action') = :action)
        AND (:resource = '' OR animus.field(e.document, 'resource') = :resource)
        AND (:start_time = '' OR animus.field(e.document, 'time') COLLATE "C" >= :start_time)
        AND (:end_time = '' OR animus.field(e.document, 'time') COLLATE "C" < :end_time)) AS meets
    ) AS m
    WHERE l.project_id = :project_id AND l.index >= :first AND l.index < :end ORDER BY l.index
    """
)
_INSTANCE_LEAVES = text(
    """
    SELECT l.index, l.entry_id, l.leaf_hash, c.note FROM animus.log_leaf l
    LEFT JOIN animus.log_checkpoint c ON c.project_id = split_part(l.entry_id, '/', 1)
      AND c.epoch = split_part(l.entry_id, '/', 2)::bigint AND c.size = split_part(l.entry_id, '/', 3)::bigint
    WHERE l.project_id = :project_id AND l.index >= :first AND l.index < :end ORDER BY l.index
    """
)
# Only full tiles are stored: the others are made of what lies below them.
_TILES = text(
    """
    SELECT coalesce(CASE
      WHEN w.width = 256 THEN
        (SELECT hashes FROM animus.log_tile
         WHERE project_id = :project_id AND level = w.level AND index = w.index)
      WHEN w.level = 0 THEN
        (SELECT string_agg(leaf_hash, '' ORDER BY index) FROM animus.log_leaf
         WHERE project_id = :project_id AND index >= w.index * 256 AND index < w.index * 256 + w.width)
      ELSE
        (SELECT string_agg(root, '' ORDER BY index) FROM animus.log_tile
         WHERE project_id = :project_id AND level = w.level - 1
           AND index >= w.index * 256 AND index < w.index * 256 + w.width)
    END, '') AS hashes
    FROM unnest(CAST(:levels AS integer[]), CAST(:indexes AS bigint[]), CAST(:widths AS integer[]))
      WITH ORDINALITY AS w (level, index, width, place)
    ORDER BY w.place
    """
)
