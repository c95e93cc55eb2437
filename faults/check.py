"""What must be true when the faults are over: of the clients' history, of the tables, and of what servers can prove."""

import asyncio
import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import asyncpg

from animus.v1 import log_pb2
from faults.clients import INSTANCE, Change, Clients, Failed, Seen, Tail
from faults.order import Append, Read, anomalies
from faults.proofs import (
    Head,
    LogKey,
    Tree,
    Unproven,
    check_consistency,
    included_root,
    leaf_hash,
    open_checkpoint,
    open_receipt,
)
from faults.stack import Server, Stack, Violation

PROVERS = 8
EXAMPLES = 3  # of each kind of violation


@dataclass(frozen=True, slots=True)
class Tables:
    """What the database holds of a project, and of every log."""

    leaves: Mapping[str, list[tuple[int, str, bytes]]]  # by log: index, entry id, leaf hash
    entries: Mapping[str, dict[str, bytes]]  # by project: documents by entry id
    records: Counter[tuple[str, str]]  # of the project: entry id, digest of the record's own bytes
    objects: Counter[str]  # of the project: ids of its datasets and runs
    replies: list[tuple[str, str, str, bytes]]  # of the project: method, request_id, entry id, reply
    checkpoints: list[tuple[str, int, bytes]]  # log, size, note
    waiting: int
    quarantined: int


async def read_tables(connection: "asyncpg.Connection[asyncpg.Record]", project_id: str) -> Tables:
    """Reads as the superuser."""
    fetch = connection.fetch
    leaves: dict[str, list[tuple[int, str, bytes]]] = {}
    for row in await fetch("SELECT project_id, index, entry_id, leaf_hash FROM animus.log_leaf ORDER BY 1, 2"):
        leaves.setdefault(row[0], []).append((row[1], row[2], row[3]))
    entries: dict[str, dict[str, bytes]] = {}
    for row in await fetch("SELECT project_id, entry_id, document FROM animus.audit_entry"):
        entries.setdefault(row[0], {})[row[1]] = row[2]
    tables = await fetch(
        "SELECT table_name FROM information_schema.columns WHERE table_schema = 'animus'"
        " AND column_name IN ('entry_id', 'digest', 'document') GROUP BY 1 HAVING count(*) = 3"
    )
    records: Counter[tuple[str, str]] = Counter()
    objects: Counter[str] = Counter()
    for (table,) in tables:
        statement = f"SELECT entry_id, document FROM animus.{table} WHERE project_id = $1"  # noqa: S608
        for entry_id, document in await fetch(statement, project_id):
            records[entry_id, _digest(document)] += 1
            if table in ("dataset", "run"):
                objects[json.loads(document)[f"{table}Id"]] += 1
    replies = await fetch(
        "SELECT method, request_id, entry_id, reply FROM animus.idempotency WHERE project_id = $1", project_id
    )
    checkpoints = await fetch("SELECT project_id, size, note FROM animus.log_checkpoint ORDER BY 1, 2")
    counts = await fetch(
        "SELECT (SELECT count(*) FROM animus.audit_queue), (SELECT count(*) FROM animus.log_quarantine)"
    )
    return Tables(
        leaves,
        entries,
        records,
        objects,
        [tuple(row) for row in replies],
        [tuple(row) for row in checkpoints],
        *counts[0],
    )


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that is judged: what clients were told, and what is left."""

    project_id: str
    changes: list[Change]
    seen: list[Seen]
    seen_of_instance: list[Seen]
    tails: list[Tail]
    tables: Tables
    key: LogKey
    instance_key: LogKey


async def gather(clients: Clients) -> Evidence:
    """The evidence as it stands."""
    async with clients.stack.superuser() as connection, connection.transaction(isolation="repeatable_read"):
        tables = await read_tables(connection, clients.project_id)
    return _evidence(clients, tables)


def _evidence(clients: Clients, tables: Tables) -> Evidence:
    return Evidence(
        clients.project_id,
        list(clients.changes),
        list(clients.seen),
        list(clients.seen_of_instance),
        clients.tails,
        tables,
        clients.stack.key(clients.project_id),
        clients.stack.key(""),
    )


def violations(found: Evidence) -> list[str]:
    """Every promise that the evidence contradicts, with examples."""
    checks: list[Callable[[Evidence], Iterable[str]]] = [_logs, _heads, _changes, _receipts, _tails, _order]
    every: list[str] = []
    for check in checks:
        of_one = list(check(found))
        every += of_one[:EXAMPLES]
        if len(of_one) > EXAMPLES:
            every.append(f"… and {len(of_one) - EXAMPLES} more like these")
    return every


def _logs(found: Evidence) -> Iterable[str]:
    """Indexes are dense, each entry has exactly one, its hash is that of its bytes, and nothing waits."""
    tables = found.tables
    if tables.waiting or tables.quarantined:
        yield f"{tables.waiting} entries wait for an index and {tables.quarantined} are in quarantine"
    notes = {leaf_hash(note) for log, _, note in tables.checkpoints if log != INSTANCE}
    for log in sorted(tables.leaves.keys() | tables.entries.keys()):
        leaves = tables.leaves.get(log, [])
        if [index for index, _, _ in leaves] != list(range(len(leaves))):
            yield f"the indexes of the log of {log} are not 0 to {len(leaves) - 1}"
        if log == INSTANCE:
            if Counter(leaf for _, _, leaf in leaves) != Counter(notes):
                yield "the leaves of the instance's log are not the checkpoints of the projects"
            continue
        documents = tables.entries.get(log, {})
        if Counter(entry_id for _, entry_id, _ in leaves) != Counter(documents.keys()):
            yield f"the log of {log} has {len(leaves)} leaves, and {len(documents)} entries that are not the same"
        for index, entry_id, leaf in leaves:
            document = documents.get(entry_id)
            if document is None:
                yield f"the entry of the leaf {index} of {log} is gone"
            elif leaf_hash(document) != leaf:
                yield f"the leaf {index} of {log} is not that of its entry"


def _heads(found: Evidence) -> Iterable[str]:
    """Every head that was ever shown or stored is that of the first so many leaves: so no two contradict each other."""
    for log, seen, key in (
        (found.project_id, found.seen, found.key),
        (INSTANCE, found.seen_of_instance, found.instance_key),
    ):
        heads = {each.head: each.server for each in seen}
        for name, _, note in found.tables.checkpoints:
            if name == log:
                try:
                    heads.setdefault(open_checkpoint(note, key), "the database")
                except Unproven as unproven:
                    yield f"a stored checkpoint of {log} proves nothing: {unproven}"
        leaves = found.tables.leaves.get(log, [])
        wanted = {head.size for head in heads}
        tree, roots = Tree(), {}
        for _, _, leaf in leaves:
            tree.add(leaf)
            if tree.size in wanted:
                roots[tree.size] = tree.root()
        for head, where in heads.items():
            if roots.get(head.size) != head.root:
                yield f"{where} has a head of {log} of size {head.size} that is not that of its first leaves"
        if log == found.project_id and max(wanted, default=0) != len(leaves):
            yield f"the newest head of {log} covers {max(wanted, default=0)} of {len(leaves)} leaves"


def _changes(found: Evidence) -> Iterable[str]:
    """The model is the database: each acknowledged change is there exactly once, and there is no other."""
    acked = {change.request_id: change for change in found.changes}
    tables = found.tables
    entries = {
        entry_id: json.loads(document) for entry_id, document in tables.entries.get(found.project_id, {}).items()
    }
    times = Counter(entry["requestId"] for entry in entries.values())
    for request_id in acked.keys() - times.keys():
        yield f"{request_id} was acknowledged and has no entry"
    for request_id, count in times.items():
        if request_id not in acked:
            yield f"{request_id} has an entry and was never acknowledged"
        elif count > 1:
            yield f"{request_id} has {count} entries"
    answered = {(f"animus.v1.{change.method}", change.request_id): change for change in found.changes}
    for method, request_id, entry_id, reply in tables.replies:
        change = answered.pop((method, request_id), None)
        entry: dict[str, Any] = entries.get(entry_id, {})
        if change is None:
            yield f"a reply to {request_id} is kept and was never acknowledged"
        elif reply != change.reply.data or entry.get("replyDigest") != _digest(reply):
            yield f"{request_id} was answered with other bytes than are kept"
        elif (entry.get("requestId"), entry.get("outcome")) != (request_id, "accepted"):
            yield f"the entry of {request_id} is that of another call, or of none"
    for _, request_id in answered:
        yield f"{request_id} was acknowledged and its reply is not kept"
    named = Counter((entry_id, record["digest"]) for entry_id, entry in entries.items() for record in entry["records"])
    for entry_id, digest in (named - tables.records) + (tables.records - named):
        yield f"the record {digest} of the entry {entry_id} is not as often in the tables as in the log"
    made = Counter(change.object_id for change in found.changes if change.object_id)
    for name in (made - tables.objects) + (tables.objects - made):
        yield f"{name} was made {made[name]} times by the clients' books and is there {tables.objects[name]} times"


def _receipts(found: Evidence) -> Iterable[str]:
    """Each acknowledgement came with a signed promise, and the promise was kept."""
    leaves = {entry_id: leaf for _, entry_id, leaf in found.tables.leaves.get(found.project_id, [])}
    documents = found.tables.entries.get(found.project_id, {})
    for change in found.changes:
        try:
            promise = open_receipt(change.reply.receipt, found.key)
        except Unproven as unproven:
            yield f"the receipt of {change.request_id} proves nothing: {unproven}"
            continue
        if leaves.get(promise.entry_id) != promise.leaf:
            yield f"the receipt of {change.request_id} promises a leaf that is not in the log"
        elif json.loads(documents.get(promise.entry_id, b"{}")).get("requestId") != change.request_id:
            yield f"the receipt of {change.request_id} is for another change"


def _tails(found: Evidence) -> Iterable[str]:
    """Each server streamed the log itself, without gap or repeat, over all of its ends."""
    leaves = found.tables.leaves.get(found.project_id, [])
    for tail in found.tails:
        streamed = list(zip(tail.entry_ids, tail.hashes, strict=True))
        if streamed != [(entry_id, leaf) for _, entry_id, leaf in leaves[: len(streamed)]]:
            yield f"{tail.server} streamed another order than the log has"


def _order(found: Evidence) -> Iterable[str]:
    """The log as a list: what does not overlap in time keeps its order, so that of each writer too.

    A head is a read of so many values: `_heads` has found that it is over those. What is streamed is ahead of heads, so
    each of the two is judged apart.
    """
    order = [entry_id for _, entry_id, _ in found.tables.leaves.get(found.project_id, [])]
    appends = []
    for change in found.changes:
        try:
            promise = open_receipt(change.reply.receipt, found.key)
        except Unproven:
            return  # said above
        appends.append(Append(promise.entry_id, change.began, change.ended, refused=False))
    whole = Read(order, len(order), math.inf, math.inf, whole=True)
    shown = [Read(order, each.head.size, each.began, each.ended, whole=True) for each in found.seen]
    streamed = [
        Read(tail.entry_ids, size, began, ended, whole=False)
        for tail in found.tails
        for began, ended, size in tail.reads
    ]
    yield from anomalies(appends, [*shown, whole])
    yield from anomalies(appends, [*streamed, whole])


# What servers prove.


@dataclass(frozen=True, slots=True)
class Proven:
    """How much was proven."""

    receipts: int
    heads: int
    consistency: int


async def prove(clients: Clients, found: Evidence) -> tuple[Proven, list[str]]:
    """Turns each receipt into a proof, and every two heads into a proof that one extends the other.

    Neighbours by size are enough: what extends what it extends, extends it. Raises Violation where a server refuses.
    """
    wrong: list[str] = []
    proven = 0
    proof_heads: set[Head] = set()
    left = iter(enumerate(found.changes))

    async def prove_receipts() -> None:
        nonlocal proven
        for number, change in left:
            promise = open_receipt(change.reply.receipt, found.key)
            request = log_pb2.GetInclusionProofRequest(project_id=found.project_id, entry_id=promise.entry_id)
            server = clients.stack.servers[number % len(clients.stack.servers)]
            data = await _asked(clients, server, "LogService/GetInclusionProof", request.SerializeToString())
            proof = log_pb2.InclusionProof.FromString(data)
            try:
                head = clients.open_head(found.project_id, proof.checkpoint.note)
                root = included_root(proof.index, head.size, promise.leaf, list(proof.hashes))
            except Unproven as unproven:
                wrong.append(f"the receipt of {change.request_id}: {unproven}")
                continue
            proof_heads.add(head)
            if root == head.root:
                proven += 1
            else:
                wrong.append(f"the proof of {change.request_id} leads to another root than its checkpoint has")

    await asyncio.gather(*(prove_receipts() for _ in range(PROVERS)))
    shown = {found.project_id: {each.head for each in found.seen} | proof_heads}
    shown[INSTANCE] = {each.head for each in found.seen_of_instance}
    pairs = 0
    for log, heads in shown.items():
        by_size = sorted(heads, key=lambda head: (head.size, head.root))
        for number, (first, second) in enumerate(pairwise(by_size)):
            wanted = log_pb2.GetConsistencyProofRequest(
                project_id=log, first_size=first.size, second_size=second.size
            ).SerializeToString()
            server = clients.stack.servers[number % len(clients.stack.servers)]
            data = await _asked(clients, server, "LogService/GetConsistencyProof", wanted)
            try:
                check_consistency(first, second, list(log_pb2.ConsistencyProof.FromString(data).hashes))
                pairs += 1
            except Unproven as unproven:
                wrong.append(f"two heads of {log} contradict each other: {unproven}")
    return Proven(proven, sum(map(len, shown.values())), pairs), wrong


async def _asked(clients: Clients, server: Server, method: str, request: bytes) -> bytes:
    """An answer, with a few more tries for a busy machine. Raises Violation."""
    for _ in range(5):
        try:
            return (await clients.send(server, method, request, 60)).data
        except Failed as failed:
            last = failed
            await asyncio.sleep(0.2)
    raise Violation(f"{method} answers {last.reason} when all is over")


async def problems_said(stack: Stack, clients: Clients) -> list[str]:
    """What the servers themselves say is wrong with the log."""
    said = []
    request = log_pb2.GetLogRequest(project_id=clients.project_id).SerializeToString()
    for server in stack.servers:
        found = log_pb2.Log.FromString(await _asked(clients, server, "LogService/GetLog", request))
        said += [f"{server.name} says: {problem}" for problem in found.problems]
        if found.queued or found.size != found.published_size:
            sizes = f"{found.size} leaves, {found.published_size} published, {found.queued} wait"
            said.append(f"{server.name} says: {sizes}")
    return said


# The negative controls: each plants a fault in sound evidence, which must be found.


async def plant(clients: Clients, found: Evidence) -> dict[str, str]:
    """What is found of each planted fault. Raises Violation for one that is not found."""
    middle = len(found.changes) // 2
    change = found.changes[middle]
    promise = open_receipt(change.reply.receipt, found.key)
    newest = max(found.seen, key=lambda each: each.head.size)
    forged = Head(newest.head.size, hashlib.sha256(b"fork").digest())
    first, last = found.changes[0], found.changes[-1]
    late = replace(first, tries=(replace(first.tries[0], began=last.ended + 1, ended=last.ended + 2),))
    planted = {
        "an acknowledged change that is not in the model": replace(
            found, changes=found.changes[:middle] + found.changes[middle + 1 :]
        ),
        "a change that was acknowledged and never made": replace(
            found, changes=[*found.changes, replace(last, request_id="planted", object_id="planted")]
        ),
        "an entry that a superuser removed, triggers off": await _after(
            clients, "DELETE FROM animus.audit_entry WHERE entry_id = $1", "audit_entry", promise.entry_id
        ),
        "a record that a superuser removed, triggers off": await _after(
            clients, "DELETE FROM animus.dataset WHERE dataset_id = $1", "dataset", "data"
        ),
        "a fork, shown to one client": replace(found, seen=[*found.seen, replace(newest, head=forged)]),
        "a change that stands before one that had ended": replace(found, changes=[late, *found.changes[1:]]),
    }
    said = {}
    for name, evidence in planted.items():
        wrong = violations(evidence)
        if not wrong:
            raise Violation(f"the check did not find what was planted: {name}")
        said[name] = wrong[0]
    return said


async def _after(clients: Clients, statement: str, table: str, value: str) -> Evidence:
    """The evidence after a statement of the superuser, which is then taken back."""
    async with clients.stack.superuser() as connection:
        transaction = connection.transaction()
        await transaction.start()
        try:
            await connection.execute("SET LOCAL lock_timeout = '20s'")
            await connection.execute("SET LOCAL session_replication_role = replica")  # no foreign key stands in the way
            await connection.execute(f"ALTER TABLE animus.{table} DISABLE TRIGGER immutable_row")
            if await connection.execute(statement, value) == "DELETE 0":
                raise Violation(f"nothing to remove in {table}")
            return _evidence(clients, await read_tables(connection, clients.project_id))
        finally:
            await transaction.rollback()


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
