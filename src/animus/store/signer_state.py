"""What was signed last for each log: the one state that no database may take back.

An SQLite file beside the key. Whoever can change this file can make the signer contradict itself; it may not be lost. A
head is written here, durably, before it is signed: a crash in between leaves a head that was promised and never
published, and the same head is signed again. Two processes that share the file cannot both advance one head.
"""

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from animus.domain import merkle
from animus.domain.errors import Invalid
from animus.domain.log import FIRST_EPOCH
from animus.domain.merkle import CompactRange
from animus.files import scratch_beside, sync_folder

WAIT_SECONDS = 10.0
HASH_BYTES = 32
FORMAT = 1

HEADS = "SELECT log, size, root, hashes FROM head"
SCHEMA = """
CREATE TABLE signer (format INTEGER NOT NULL, epoch INTEGER NOT NULL);
CREATE TABLE head (
  log TEXT PRIMARY KEY,
  size INTEGER NOT NULL,
  root BLOB NOT NULL,
  hashes BLOB NOT NULL
) WITHOUT ROWID;
"""


class SignerStateError(RuntimeError):
    """The signer's state is missing, is no such file, or contradicts what it is asked for; the text is one line."""


@dataclass(frozen=True, slots=True)
class Advance:
    """From the head that was signed last to the one that is to be signed."""

    log: str  # project, or `instance`
    before: CompactRange
    after: CompactRange


class SignerState:
    """The heads of one epoch. Each call is one durable transaction; none may run on the event loop."""

    def __init__(self, path: Path) -> None:
        """Raises SignerStateError when there is no such state."""
        if not path.exists():
            raise SignerStateError(f"{path} is missing: it holds what was signed last")
        self._path = path
        self.epoch()

    @classmethod
    def create(cls, path: Path, epoch: int = FIRST_EPOCH) -> "SignerState":
        """Makes the state of a signer that has signed nothing; of two that make it at once, one makes it.

        It appears under its name when it is whole.
        """
        scratch = scratch_beside(path)
        descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        os.close(descriptor)
        with closing(sqlite3.connect(scratch, isolation_level=None)) as connection:
            connection.execute("PRAGMA synchronous = EXTRA")
            connection.executescript(f"BEGIN; {SCHEMA} COMMIT")
            connection.execute("INSERT INTO signer (format, epoch) VALUES (?, ?)", (FORMAT, epoch))
        try:
            os.link(scratch, path)
        except FileExistsError:
            pass  # another server's: what it holds is what counts
        finally:
            scratch.unlink()
        sync_folder(path.parent)
        return cls(path)

    def epoch(self) -> int:
        """The epoch that these heads are of."""
        with self._transaction() as connection:
            return _epoch(connection)

    def heads(self, logs: Sequence[str] = ()) -> dict[str, CompactRange]:
        """The heads of these logs, or of all; a log that nothing was signed for is left out."""
        with self._transaction() as connection:
            if logs:
                found = (connection.execute(f"{HEADS} WHERE log = ?", (log,)).fetchone() for log in logs)
                rows = [row for row in found if row]
            else:
                rows = connection.execute(HEADS).fetchall()
            return {log: _head(log, size, root, hashes) for log, size, root, hashes in rows}

    def advance(self, epoch: int, advances: Sequence[Advance]) -> None:
        """Promises new heads, all or none. Raises SignerStateError unless each is the successor of what is promised."""
        with self._transaction() as connection:
            if _epoch(connection) != epoch:
                raise SignerStateError(f"the signer is in epoch {_epoch(connection)}, not in {epoch}")
            for each in advances:
                before, after = each.before, each.after
                if after.size <= before.size and after != before:
                    raise SignerStateError(
                        f"the head of {each.log} has {before.size} leaves: none of {after.size} comes after it"
                    )
                values = (after.size, merkle.root(after), b"".join(after.hashes), each.log)
                if before.size == 0:
                    done = connection.execute(
                        "INSERT INTO head (size, root, hashes, log) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING", values
                    )
                else:
                    done = connection.execute(
                        "UPDATE head SET size = ?, root = ?, hashes = ? WHERE log = ? AND size = ? AND root = ?",
                        (*values, before.size, merkle.root(before)),
                    )
                if done.rowcount != 1:
                    raise SignerStateError(f"another signer has advanced the head of {each.log} past {before.size}")

    def open_epoch(self, epoch: int) -> None:
        """Forgets the heads of the epoch before; their checkpoints stay signed. Does nothing when it is open."""
        with self._transaction() as connection:
            if _epoch(connection) < epoch:
                connection.execute("UPDATE signer SET epoch = ?", (epoch,))
                connection.execute("DELETE FROM head")

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """One transaction that other processes wait for; durable when it has ended without an error."""
        try:
            with closing(
                sqlite3.connect(self._path.absolute().as_uri() + "?mode=rw", WAIT_SECONDS, uri=True)
            ) as connection:
                connection.isolation_level = None
                connection.execute("PRAGMA synchronous = EXTRA")  # the directory too, once the journal is gone
                connection.execute("BEGIN IMMEDIATE")
                try:
                    yield connection
                    connection.execute("COMMIT")
                except BaseException:
                    connection.execute("ROLLBACK")
                    raise
        except sqlite3.Error as error:
            raise SignerStateError(f"{self._path}: {error}") from None


def _epoch(connection: sqlite3.Connection) -> int:
    row = connection.execute("SELECT epoch FROM signer WHERE format = ?", (FORMAT,)).fetchone()
    if row is None:
        raise SignerStateError("the signer's state is of another version of this program")
    return int(row[0])


def _head(log: str, size: int, root: bytes, hashes: bytes) -> CompactRange:
    """A head as it was promised."""
    try:
        tree = CompactRange(size, _split(hashes))
        sound = merkle.root(tree) == root
    except (Invalid, TypeError):  # SQLite keeps any type in any column
        sound = False
    if not sound:
        raise SignerStateError(f"the head of {log} in the signer's state is damaged")
    return tree


def _split(hashes: bytes) -> tuple[bytes, ...]:
    return tuple(hashes[at : at + HASH_BYTES] for at in range(0, len(hashes), HASH_BYTES))
