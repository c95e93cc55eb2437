"""The one way to write. Only this module commits.

`change(call, decide)` opens a transaction, answers a request_id that was seen before without deciding again, lets
`decide` read through a view that has no write method, and appends what it returns: the records, the audit entry, its
place in the queue for the log and the remembered reply, in one statement. So a change without its audit entry cannot be
written, and a retry cannot double it. What was committed is answered with the entry's leaf hash, for the receipt.

Isolation is READ COMMITTED, and needs no more: a decision rests on rows that never change, on the absence of a row
whose unique key refuses a second one, or on a run's events, which are read under the run's lock. When a key refuses,
the transaction is rolled back and `decide` runs again, so it must be repeatable: time and ids come from the view.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, TypeVar

from google.protobuf.message import Message
from sqlalchemy import TextClause, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from animus.codec import sha256
from animus.domain import document, merkle
from animus.domain.access import Principal
from animus.domain.audit import AuditEntry, AuditOutcome, AuditRecord, AuditRefusal, Logged, RecordManifest
from animus.domain.document import Sealed, differing_paths, parse_json, seal
from animus.domain.errors import Conflict, Denied, DomainError, NotFound, Refused, Unavailable
from animus.domain.filter import Filter
from animus.domain.log import unsound
from animus.domain.names import INSTANCE_LOG, project_name
from animus.domain.project import Project
from animus.domain.tile import MAX_ENTRY_BYTES
from animus.store.engine import sqlstate, translated
from animus.store.filter import Order
from animus.store.log import LogRows
from animus.store.records import PROJECTS, Records, Stored, place_of, selection, stored, table_of

TRIES = 8
COLLIDED = frozenset({"23505", "40001", "40P01"})  # another writer was first: decide again

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Call:
    """Who asks for what: everything of a request that an audit entry and a retry need."""

    method: str  # such as animus.v1.RunService/CreateRun
    project_id: str
    principal: Principal
    request_id: str
    validate_only: bool
    request: bytes  # JSON of the request without request_id and validate_only


@dataclass(frozen=True, slots=True)
class Change:
    """What a decision comes to. Without records it leaves things as they are, and is audited all the same."""

    action: str  # such as run.create
    resource: str  # full name
    records: tuple[Sealed[Any], ...]
    refusals: tuple[AuditRefusal, ...]
    reply: Message


@dataclass(frozen=True, slots=True)
class Answer:
    """The bytes to send, whether they are those of an earlier call, and the entry of the change if one was made."""

    reply: bytes
    replayed: bool
    logged: Logged | None


@dataclass(frozen=True, slots=True)
class FoundToken:
    """The registration of a token, and where it is from."""

    project_id: str
    document: bytes
    of_run: bool  # a RunToken, else a Token


class View(Records):
    """What a decision may see: the transaction's time, new ids, and the records of one project. It cannot write."""

    def __init__(
        self, connection: AsyncConnection, project_id: str, project_known: bool, time: str, new_id: Callable[[], str]
    ) -> None:
        super().__init__(connection, project_id)
        self.project_known = project_known
        self.time = time  # the database's, of this transaction
        self.log = LogRows(connection, project_id)
        self.new_id = new_id  # 128 random bits as 32 hexadecimal digits
        self.entry_id = new_id()  # of the audit entry that a change will have


Decide = Callable[[View], Awaitable[Change]]


class UnitOfWork:
    """Runs decisions and reads in transactions of the service role."""

    def __init__(
        self,
        engine: AsyncEngine,
        new_id: Callable[[], str],
        seal: Callable[[str, str, bytes], bytes],
        check_sound: Callable[[], None] | None,
    ) -> None:
        """`seal` makes the MAC of (project, entry id, leaf hash); `check_sound` raises while this server cannot sign.

        What the leading server found wrong holds for all, by the database. None is for an operator, who mends it.
        """
        self._engine = engine
        self._new_id = new_id
        self._seal = seal
        self._check_sound = check_sound

    async def change(self, call: Call, decide: Decide, *, creates_project: bool = False) -> Answer:
        """Decides and writes, once for each (project, method, request_id), and answers.

        Raises what `decide` raises; Conflict REQUEST_ID_REUSED for another body under the same request_id; NotFound
        for an unknown project; Unavailable when the database does not answer, writers keep colliding or the log is
        unsound. A Conflict or Refused is audited, with the records that it has, and carries its entry. With
        `validate_only`, everything runs and nothing is kept.
        """
        if self._check_sound is not None:
            self._check_sound()
        try:
            return await self._retried(lambda: self._change(call, decide, creates_project))
        except (Conflict, Refused) as error:
            if not call.validate_only:
                error.logged = await self.record_refusal(call, error)
            raise

    async def read(self, project_id: str, query: Callable[[View], Awaitable[Result]]) -> Result:
        """Runs a query in the scope of a project. Raises NotFound when there is no such project."""
        async with translated(), self._engine.connect() as connection, connection.begin():
            view, _ = await self._open(connection, project_id, "", "")
            if not view.project_known:
                raise project_unknown(project_id)
            return await query(view)

    async def read_log(self, project_id: str, query: Callable[[View], Awaitable[Result]]) -> Result:
        """The same for what is asked of a log, that of the instance too: its leaves are rows of every project."""
        if project_id != INSTANCE_LOG:
            return await self.read(project_id, query)
        async with translated(), self._engine.connect() as connection, connection.begin():
            view, _ = await self._open(connection, project_id, "", "")
            await connection.execute(_EVERY_PROJECT)
            return await query(view)

    async def project_exists(self, project_id: str) -> bool:
        """Whether there is a project of this id."""
        async with translated(), self._engine.connect() as connection, connection.begin():
            view, _ = await self._open(connection, project_id, "", "")
            return view.project_known

    async def select_projects(
        self, own: Sequence[str] | None, tree: Filter | None, order: Order, after: Sequence[str | int], limit: int
    ) -> list[tuple[Stored[Project], tuple[str | int, ...]]]:
        """As `Records.select`, of the projects of the instance: all of them for None, else those of `own` alone."""
        values: dict[str, Any] = {"limit": limit}
        conditions = []
        if own is not None:
            values["own"] = list(own)
            conditions = ["r.project_id = ANY(CAST(:own AS text[]))"]
        statement = selection(Project, PROJECTS, conditions, tree, order, after, values)
        async with translated(), self._engine.connect() as connection, connection.begin():
            await connection.execute(_EVERY_PROJECT)
            return [(stored(row, Project), place_of(row, order)) for row in await connection.execute(statement, values)]

    async def find_token(self, project_id: str, token_digest: str) -> FoundToken | None:
        """The registration of a token of a project that is good now; one round trip."""
        async with translated(), self._engine.connect() as connection:
            await connection.execution_options(isolation_level="AUTOCOMMIT")
            row = (await connection.execute(_FIND_TOKEN, {"project": project_id, "digest": token_digest})).one()
            return FoundToken(project_id, row.token_document, row.of_run) if row.token_valid else None

    async def find_grants(self, members: Sequence[str]) -> list[tuple[str, bytes]]:
        """The projects and role bindings that govern now for any of the members; one round trip."""
        async with translated(), self._engine.connect() as connection:
            await connection.execution_options(isolation_level="AUTOCOMMIT")
            rows = await connection.execute(_FIND_GRANTS, {"members": list(members)})
            return [(row.binding_project, row.binding_document) for row in rows]

    async def note_token_uses(self, uses: Iterable[tuple[str, str]]) -> None:
        """Says of tokens, each by project and digest, that they were used by now; one round trip."""
        # In one order, whoever calls: of two servers that have the same tokens to write, one waits for the other.
        ordered = sorted(uses)
        values = {"projects": [project for project, _ in ordered], "digests": [digest for _, digest in ordered]}
        async with translated(), self._engine.connect() as connection:
            await connection.execution_options(isolation_level="AUTOCOMMIT")
            await connection.execute(_NOTE_TOKEN_USES, values)

    async def ready(self) -> bool:
        """Whether the database answers."""
        try:
            async with translated(), self._engine.connect() as connection:
                await connection.execute(_PING)
        except Unavailable:
            return False
        return True

    async def record_refusal(self, call: Call, error: DomainError) -> Logged:
        """Audits a call that was refused or denied, in a transaction of its own, with the records of the refusal."""
        records = error.records if isinstance(error, Refused) else ()
        documents, written = _by_table(records)

        async def write() -> Logged:
            async with translated(), self._engine.connect() as connection, connection.begin():
                view, _ = await self._open(connection, call.project_id, "", "")
                outcome = AuditOutcome.DENIED if isinstance(error, Denied) else AuditOutcome.REFUSED
                entry = _entry(call, view, outcome, reason=error.reason, records=written)
                values, logged = self._leaf(call.project_id, entry, document.dump(entry))
                values |= {f"documents_{table}": items for table, items in documents.items()}
                await connection.execute(_append_statement(tuple(documents), answered=False), values)
            return logged

        return await self._retried(write)

    async def _change(self, call: Call, decide: Decide, creates_project: bool) -> Answer:
        async with translated(), self._engine.connect() as connection, connection.begin() as transaction:
            view, opened = await self._open(connection, call.project_id, call.method, call.request_id)
            if self._check_sound is not None and not opened.log_sound:
                raise unsound()
            if not view.project_known and not creates_project:
                raise project_unknown(call.project_id)
            if opened.first_reply is not None:
                if opened.first_request != call.request:
                    raise _reused(opened.first_request, call.request)
                first = Logged(call.project_id, opened.first_entry_id, opened.first_leaf_hash, opened.first_entry_time)
                return Answer(opened.first_reply, replayed=True, logged=first)
            change = await decide(view)
            reply = change.reply.SerializeToString(deterministic=True)
            logged = None
            if call.validate_only:
                await transaction.rollback()
            else:
                logged = await self._append(connection, call, view, change, reply)
        return Answer(reply, replayed=False, logged=logged)

    async def _append(
        self, connection: AsyncConnection, call: Call, view: View, change: Change, reply: bytes
    ) -> Logged:
        """Everything that a change leaves behind, in one statement."""
        documents, written = _by_table(change.records)
        outcome = (
            AuditOutcome.ACCEPTED if written else AuditOutcome.REFUSED if change.refusals else AuditOutcome.UNCHANGED
        )
        entry = _entry(
            call,
            view,
            outcome,
            action=change.action,
            resource=change.resource,
            reason=change.refusals[0].reason if outcome is AuditOutcome.REFUSED else "",
            records=written,
            refusals=change.refusals,
            reply_digest=sha256(reply),
        )
        leaf = document.dump(entry)
        if len(leaf) > MAX_ENTRY_BYTES:
            manifest = seal(RecordManifest(entry.records))
            table = table_of(RecordManifest)
            documents[table] = [manifest.document]
            leaf = document.dump(replace(entry, records=(AuditRecord(table, manifest.digest),)))
        values, logged = self._leaf(call.project_id, entry, leaf)
        values |= {f"documents_{table}": items for table, items in documents.items()}
        values |= {"method": call.method, "request_id": call.request_id, "request": call.request, "reply": reply}
        await connection.execute(_append_statement(tuple(documents), answered=True), values)
        return logged

    def _leaf(self, project_id: str, entry: AuditEntry, leaf: bytes) -> tuple[dict[str, Any], Logged]:
        """What the statement says of an entry, and what a receipt says of it."""
        leaf_hash = merkle.leaf_hash(leaf)
        values = {
            "project_id": project_id,
            "entry_id": entry.entry_id,
            "entry": leaf,
            "leaf_hash": leaf_hash,
            "seal": self._seal(project_id, entry.entry_id, leaf_hash),
        }
        return values, Logged(project_id, entry.entry_id, leaf_hash, entry.time)

    async def _open(
        self, connection: AsyncConnection, project_id: str, method: str, request_id: str
    ) -> tuple[View, Any]:
        values = {"project_id": project_id, "method": method, "request_id": request_id}
        opened = (await connection.execute(_OPEN_CALL, values)).one()
        return View(connection, project_id, opened.project_known, opened.call_time, self._new_id), opened

    async def _retried(self, work: Callable[[], Awaitable[Result]]) -> Result:
        for attempt in range(TRIES):
            try:
                return await work()
            except DBAPIError as error:
                if sqlstate(error) not in COLLIDED:
                    raise
            # Apart from each other, writers that collided once do not collide again; the wait is not a decision.
            await asyncio.sleep(random.uniform(0, 0.005 * 2**attempt))  # noqa: S311
        raise Unavailable("CONTENTION", "too many writers met at one resource: repeat the call with its request_id")


_OPEN_CALL = text("SELECT * FROM animus.open_call(:project_id, :method, :request_id)")
_EVERY_PROJECT = text("SELECT set_config('animus.every_project', 'on', true)")
_FIND_TOKEN = text("SELECT * FROM animus.find_token(:project, :digest)")
_FIND_GRANTS = text("SELECT * FROM animus.find_grants(CAST(:members AS text[]))")
_NOTE_TOKEN_USES = text("SELECT animus.note_token_uses(CAST(:projects AS text[]), CAST(:digests AS text[]))")
_PING = text("SELECT 1")


@cache
def _append_statement(tables: tuple[str, ...], *, answered: bool) -> TextClause:
    """Inserts entry and queue row, the reply if the call is answered, and rows by table. Built once for each shape."""
    parts = [
        "entry AS (INSERT INTO animus.audit_entry (project_id, document) VALUES (:project_id, :entry))",
        "queue AS (INSERT INTO animus.audit_queue (project_id, entry_id, leaf_hash, seal)"
        " VALUES (:project_id, :entry_id, :leaf_hash, :seal))",
    ]
    if answered:
        parts.append(
            "answer AS (INSERT INTO animus.idempotency (project_id, method, request_id, request, reply, entry_id)"
            " VALUES (:project_id, :method, :request_id, :request, :reply, :entry_id))"
        )
    parts += [
        f"{table}_rows AS (INSERT INTO animus.{table} (project_id, entry_id, document)"
        f" SELECT :project_id, :entry_id, unnest(CAST(:documents_{table} AS bytea[])))"
        for table in tables
    ]
    return text(f"WITH {', '.join(parts)} SELECT 1")


def _by_table(records: Iterable[Sealed[Any]]) -> tuple[dict[str, list[bytes]], tuple[AuditRecord, ...]]:
    """The bytes of records by their tables, and what an entry says of them, in their order."""
    documents: dict[str, list[bytes]] = {}
    written = []
    for record in records:
        table = table_of(type(record.value))
        documents.setdefault(table, []).append(record.document)
        written.append(AuditRecord(table, record.digest))
    return documents, tuple(written)


def _entry(
    call: Call,
    view: View,
    outcome: AuditOutcome,
    *,
    action: str = "",
    resource: str = "",
    reason: str = "",
    records: tuple[AuditRecord, ...] = (),
    refusals: tuple[AuditRefusal, ...] = (),
    reply_digest: str = "",
) -> AuditEntry:
    return AuditEntry(
        project_id=call.project_id,
        entry_id=view.entry_id,
        principal=call.principal.name,
        action=action,
        resource=resource,
        method=call.method,
        request_id=call.request_id,
        request_digest=sha256(call.request),
        time=view.time,
        outcome=outcome,
        reason=reason,
        records=records,
        refusals=refusals,
        reply_digest=reply_digest,
    )


def project_unknown(project_id: str) -> NotFound:
    """What a caller is told of a project that is not there or not its own."""
    return NotFound(
        "PROJECT_UNKNOWN", "no project of this id is visible to you", kind="Project", name=project_name(project_id)
    )


def _reused(first: bytes, this: bytes) -> Conflict:
    paths = [path or "." for path, _, _ in differing_paths(parse_json(first), parse_json(this))]
    return Conflict(
        "REQUEST_ID_REUSED",
        "this request_id was used for another request: repeat the first body, or take a new request_id",
        first_digest=sha256(first),
        this_digest=sha256(this),
        paths=", ".join(paths[:20]),
    )
