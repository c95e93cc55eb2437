"""The files of an evidence bundle, in the order of their names (docs/evidence-format.md).

Everything that a bundle covers is immutable, so it is read in many short transactions; what is read is checked against
the log before it is handed out, and the tree of all entries against the signed checkpoint. Memory holds one run's
records at most, metrics left out, and otherwise a few hundred entries.
"""

import hashlib
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from itertools import chain
from typing import IO, Any, TypeVar

from animus.bag import Bag, spool
from animus.domain import merkle
from animus.domain.attestation import TAG_FILES, admission_statement, evidence_statement, provenance_statement
from animus.domain.audit import AuditEntry, AuditRecord, RecordManifest
from animus.domain.checkpoint import Checkpoint, TlogProof, dump_proof
from animus.domain.dataset import DatasetVersion
from animus.domain.document import digest, dump, load
from animus.domain.environment import EnvironmentLock
from animus.domain.errors import Invalid, Unavailable
from animus.domain.evidence import Evidence, RunEvidence, bag_name, summarize
from animus.domain.lineage import LineageEdge
from animus.domain.log import damaged
from animus.domain.merkle import CompactRange
from animus.domain.names import distinct, project_name, run_name
from animus.domain.note import encode_base64
from animus.domain.openlineage import events as openlineage_events
from animus.domain.pipeline import PipelineSpec
from animus.domain.plan import ExecutionPlan
from animus.domain.prov import document as prov_document
from animus.domain.quality import EVALUATOR, QualityEvaluation, QualityProfile, QualityRule
from animus.domain.quality_gate import QualityGate
from animus.domain.run import Artifact, Run, RunSpec
from animus.domain.state import RunEvent, RunEventType
from animus.keyring import Keyring
from animus.service.log_identity import LogIdentity
from animus.service.log_leaves import check_place, data_of, missing, nodes_of
from animus.store.log import StoredCheckpoint
from animus.store.records import table_of
from animus.store.unit_of_work import UnitOfWork, View

ENTRIES_IN_FILE = 10_000
BATCH = 200  # entries read at once
RECORDS = 2_000  # records read at once, unless one entry has more
BAGIT = b"BagIt-Version: 1.0\nTag-File-Character-Encoding: UTF-8\n"

Value = TypeVar("Value")
File = tuple[str, bytes | IO[bytes]]


@dataclass(frozen=True, slots=True)
class Named:
    """An entry with the records that its change wrote; a manifest of records comes before those that it lists."""

    index: int
    entry_id: str
    records: tuple[AuditRecord, ...]


@dataclass(frozen=True, slots=True)
class Bound:
    """A record that a run rests on, and the entry of its registration."""

    table: str
    digest: str
    document: bytes
    entry_id: str


@dataclass(frozen=True, slots=True)
class Registration:
    """An entry that registered something which a run rests on."""

    index: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Covered:
    """What every bundle has, read and checked."""

    evidence: Evidence
    stored: StoredCheckpoint
    checkpoint: Checkpoint
    frontier: CompactRange
    consistency: dict[int, tuple[bytes, ...]]


@dataclass(frozen=True, slots=True)
class CoveredRun:
    """What a bundle of a run has beside it."""

    run: RunEvidence
    named: tuple[Named, ...]
    bound: tuple[Bound, ...]
    registrations: tuple[Registration, ...]


async def bundle(
    work: UnitOfWork, identity: LogIdentity, keyring: Keyring, evidence: Evidence
) -> AsyncGenerator[bytes, None]:
    """The bytes of a bundle, part by part. Raises Unavailable LOG_DAMAGED where the store is not what was logged."""
    covered = await work.read(evidence.project_id, lambda view: _cover(view, identity, evidence))
    run = None
    if evidence.run_id:
        run = await work.read(evidence.project_id, lambda view: _cover_run(view, evidence))
    subject = run_name(evidence.project_id, evidence.run_id) if run else project_name(evidence.project_id)
    info = f"External-Description: Animus evidence\nExternal-Identifier: {subject}\n".encode()
    with Bag(bag_name(evidence)) as bag:
        for part in chain(bag.add("bag-info.txt", info), bag.add("bagit.txt", BAGIT)):
            yield part
        async with aclosing(_payload(work, keyring, covered, run)) as files:
            async for path, content in files:
                for part in bag.add(f"data/{path}", content):
                    yield part
        manifest = bag.manifest("data/")
        bag.digests["manifest-sha256.txt"] = hashlib.sha256(manifest).hexdigest()
        statement = evidence_statement(bag.name, [(name, f"sha256:{bag.digests[name]}") for name in TAG_FILES])
        for part in bag.add("evidence.dsse.json", keyring.envelope(statement)):
            yield part
        for part in bag.add("manifest-sha256.txt", manifest):
            yield part
        tags = [line for line in bag.manifest("").splitlines(keepends=True) if b"  data/" not in line]
        for part in chain(bag.add("tagmanifest-sha256.txt", b"".join(tags)), bag.close()):
            yield part


async def _payload(
    work: UnitOfWork, keyring: Keyring, covered: Covered, run: CoveredRun | None
) -> AsyncGenerator[File, None]:
    """The files of `data/`."""
    project_id = covered.evidence.project_id
    if run:
        yield "attestations/admission.dsse.json", keyring.envelope(admission_statement(run.run))
        if statement := provenance_statement(run.run):
            yield "attestations/provenance.dsse.json", keyring.envelope(statement)
        for name, content in sorted((f"bound/{b.table}-{b.digest[7:]}.json", b.document) for b in run.bound):
            yield name, content
    async with aclosing(_entries(work, covered, run)) as files:
        async for file in files:
            yield file
    yield "evidence.json", dump(covered.evidence)
    yield "log/checkpoint", covered.stored.cosigned_note
    for name, hashes in sorted((f"log/consistency/{size}", each) for size, each in covered.consistency.items()):
        yield name, _hash_lines(hashes)
    yield "log/frontier", _hash_lines(covered.frontier.hashes)
    if not run:
        async with aclosing(_records_by_entry(work, covered)) as files:
            async for file in files:
                yield file
        return
    for file in await work.read(project_id, lambda view: _proofs(view, covered, run)):
        yield file
    for table in sorted({record.kind for entry in run.named for record in entry.records}):
        with spool() as records:
            await _write_records(work, project_id, table, run.named, records)
            yield f"records/{table}.ndjson", records
    yield "renderings/openlineage.ndjson", b"".join(event + b"\n" for event in openlineage_events(run.run))
    yield "renderings/prov.json", prov_document(run.run)
    yield "summary.json", dump(summarize(run.run))


async def _cover(view: View, identity: LogIdentity, evidence: Evidence) -> Covered:
    stored = await view.log.checkpoint(evidence.size)
    if stored is None or stored.epoch != evidence.epoch:
        raise damaged(
            f"the checkpoint of size {evidence.size} in epoch {evidence.epoch} is gone",
            checkpoint_size=str(evidence.size),
        )
    frontier = merkle.range_nodes(evidence.first_index)
    wanted = [*frontier, *chain.from_iterable(merkle.consistency_nodes(s, evidence.size) for s in evidence.known_sizes)]
    nodes = await nodes_of(view, wanted, evidence.size)
    return Covered(
        evidence=evidence,
        stored=stored,
        checkpoint=identity.verified(view.project_id, stored),
        frontier=CompactRange(evidence.first_index, tuple(nodes[node] for node in frontier)),
        consistency={s: merkle.prove_consistency(s, evidence.size, nodes) for s in evidence.known_sizes},
    )


async def _cover_run(view: View, evidence: Evidence) -> CoveredRun:
    """Everything about a run up to the size of the bundle: what came later is not part of it."""
    name = run_name(view.project_id, evidence.run_id)
    named = await _named(
        view,
        [
            (leaf.index, load(data_of(leaf, leaf.index), AuditEntry))
            for leaf in await view.log.leaves_of(name, evidence.size)
        ],
    )
    if not named or named[0].index != evidence.first_index:
        raise damaged(f"the entry at index {evidence.first_index} is not found by its resource {name}", resource=name)
    try:
        return await _load_run(view, evidence, named)
    except Invalid as error:  # what was written fitted together
        raise damaged(f"the records of {name} do not fit together: {error.message}", resource=name) from None


async def _load_run(view: View, evidence: Evidence, named: Sequence[Named]) -> CoveredRun:
    events = await _values(view, named, RunEvent)
    plan_digest = next((event.plan_digest for event in events if event.type is RunEventType.PLANNED), "")
    run = (await _values(view, named, Run))[0]
    bound: list[Bound] = []
    spec = await _bind(view, bound, RunSpec, digest=run.run_spec_digest)
    pipeline = await _bind(view, bound, PipelineSpec, digest=spec.pipeline_spec_digest)
    environment = await _bind(view, bound, EnvironmentLock, digest=spec.environment_lock_digest)
    keys = dict.fromkeys((each.dataset_id, each.content_digest) for each in spec.datasets)
    versions = [
        await _bind(view, bound, DatasetVersion, dataset_id=dataset, content_digest=content)
        for dataset, content in keys
    ]
    plan = await _bind(view, bound, ExecutionPlan, digest=plan_digest) if plan_digest else None
    for gate in run.admission.gates:
        await _bind(view, bound, QualityGate, digest=gate)
    evaluations = [await _bind(view, bound, QualityEvaluation, digest=each) for each in run.admission.evaluations()]
    rules = await _bind_judged(view, bound, evaluations)
    registrations = await _register(view, bound)
    return CoveredRun(
        RunEvidence(
            project_id=view.project_id,
            origin=evidence.origin,
            run=run,
            run_digest=digest(dump(run)),
            spec=spec,
            pipeline=pipeline,
            environment=environment,
            versions=tuple(versions),
            evaluations=tuple(evaluations),
            rules=tuple(rules),
            plan=plan,
            plan_digest=plan_digest,
            events=tuple(events),
            artifacts=tuple(await _values(view, named, Artifact)),
            edges=tuple(await _values(view, named, LineageEdge)),
        ),
        tuple(named),
        tuple(bound),
        registrations,
    )


async def _bind_judged(view: View, bound: list[Bound], evaluations: Iterable[QualityEvaluation]) -> list[QualityRule]:
    """The rules and profiles that our evaluations were made of, each bound once; the rules."""
    ours = [each for each in evaluations if each.evaluator == EVALUATOR]
    rules = [await _bind(view, bound, QualityRule, digest=each) for each in distinct(e.rule_digest for e in ours)]
    references = (digest for rule in rules for digest in rule.references())
    for profile in distinct(chain((each.profile_digest for each in ours), references)):
        await _bind(view, bound, QualityProfile, digest=profile)
    return rules


async def _bind(view: View, bound: list[Bound], kind: type[Value], **key: str) -> Value:
    """A record that the run rests on, found by its key; noted with the entry that registered it."""
    stored = await view.find(kind, **key)
    if stored is None:
        raise damaged(f"the {table_of(kind)} {' '.join(key.values())} is gone", **key)
    document = dump(stored.value)
    bound.append(Bound(table_of(kind), digest(document), document, stored.entry_id))
    return stored.value


async def _register(view: View, bound: list[Bound]) -> tuple[Registration, ...]:
    """The entries that registered these records, in their order; manifests by which they name them become bound too.

    A record counts only if the entry names it: its row alone proves nothing.
    """
    found = []
    for entry_id in {each.entry_id: None for each in bound}:
        _, index = await view.log.index_of(entry_id)
        leaf = None if index is None else await view.log.leaf(index)
        if index is None or leaf is None:
            raise damaged(f"the entry {entry_id} is gone", entry=entry_id)
        data = data_of(leaf, index)
        (named,) = await _named(view, [(index, load(data, AuditEntry))])
        for each in bound:
            if each.entry_id == entry_id and AuditRecord(each.table, each.digest) not in named.records:
                raise damaged(f"the {each.table} {each.digest} is not what was logged", entry=entry_id)
        table = table_of(RecordManifest)
        if any(record.kind == table for record in named.records):
            bound += [Bound(table, digest(each), each, entry_id) for each in await _documents(view, [named], table)]
        found.append(Registration(index, data))
    return tuple(sorted(found, key=lambda each: each.index))


async def _named(view: View, entries: Sequence[tuple[int, AuditEntry]]) -> list[Named]:
    """The entries with all their records, those in manifests too."""
    table = table_of(RecordManifest)
    manifests = dict(
        await view.written(
            table, [entry.entry_id for _, entry in entries if any(record.kind == table for record in entry.records)]
        )
    )
    found = []
    for index, entry in entries:
        records = entry.records
        if any(record.kind == table for record in records):
            document = manifests.get(entry.entry_id, b"")
            if digest(document) != records[0].digest:
                raise _lost(records[0], entry.entry_id)
            records = (*records, *load(document, RecordManifest).records)
        found.append(Named(index, entry.entry_id, records))
    return found


async def _documents(view: View, named: Iterable[Named], table: str) -> list[bytes]:
    """The records of one kind that these entries' changes wrote, in the order in which the entries name them."""
    wanted = [(entry.entry_id, record) for entry in named for record in entry.records if record.kind == table]
    found = {
        (entry_id, digest(document)): document
        for entry_id, document in await view.written(table, list(dict.fromkeys(entry_id for entry_id, _ in wanted)))
    }
    try:
        return [found[entry_id, record.digest] for entry_id, record in wanted]
    except KeyError:
        raise _lost(*next((r, e) for e, r in wanted if (e, r.digest) not in found)) from None


async def _values(view: View, named: Sequence[Named], kind: type[Value]) -> list[Value]:
    return [load(document, kind) for document in await _documents(view, named, table_of(kind))]


def _lost(record: AuditRecord, entry_id: str) -> Unavailable:
    return damaged(
        f"the {record.kind} {record.digest} that entry {entry_id} wrote is gone, or is not what was logged",
        entry=entry_id,
        digest=record.digest,
    )


async def _entries(work: UnitOfWork, covered: Covered, run: CoveredRun | None) -> AsyncGenerator[File, None]:
    """The entries. With the last file, their tree has led to the signed root, and no entry of the run was left out."""
    evidence, tree = covered.evidence, covered.frontier
    expected = {entry.index for entry in run.named} if run else set()
    mark = f'"resource":"{run_name(evidence.project_id, evidence.run_id)}'.encode()
    marks = (mark + b'"', mark + b"/") if run else ()
    for start in range(evidence.first_index, evidence.size, ENTRIES_IN_FILE):
        with spool() as file:
            for first in range(start, min(start + ENTRIES_IN_FILE, evidence.size), BATCH):
                end = min(first + BATCH, start + ENTRIES_IN_FILE, evidence.size)
                leaves = await work.read(evidence.project_id, _leaves(first, end))
                hashes = []
                for index, leaf in zip(range(first, end), leaves, strict=False):
                    check_place(leaf, index)
                    data = data_of(leaf, index)
                    if any(each in data for each in marks) and index not in expected:
                        raise damaged(f"the entry at index {index} is not found by its resource", index=str(index))
                    file.write(data + b"\n")
                    hashes.append(leaf.leaf_hash)
                if len(leaves) < end - first:
                    raise missing(first + len(leaves))
                tree = merkle.append(tree, hashes)
            if tree.size == evidence.size and merkle.root(tree) != covered.checkpoint.root_hash:
                raise damaged(
                    f"the entries do not lead to the signed root of size {evidence.size}",
                    checkpoint_size=str(evidence.size),
                )
            yield f"entries/{start:020d}.ndjson", file


async def _records_by_entry(work: UnitOfWork, covered: Covered) -> AsyncGenerator[File, None]:
    """The records of a bundle of the log, in files like those of the entries."""
    evidence = covered.evidence

    async def entries(view: View, first: int, end: int) -> list[Named]:
        leaves = await view.log.leaves(first, end)
        if len(leaves) < end - first:
            raise missing(first + len(leaves))
        return await _named(view, [(leaf.index, load(data_of(leaf, leaf.index), AuditEntry)) for leaf in leaves])

    async def documents(view: View, named: Sequence[Named]) -> list[bytes]:
        tables = sorted({record.kind for entry in named for record in entry.records})
        found = {table: iter(await _documents(view, named, table)) for table in tables}
        return [next(found[record.kind]) for entry in named for record in entry.records]

    for start in range(evidence.first_index, evidence.size, ENTRIES_IN_FILE):
        with spool() as file:
            for first in range(start, min(start + ENTRIES_IN_FILE, evidence.size), BATCH):
                end = min(first + BATCH, start + ENTRIES_IN_FILE, evidence.size)
                for part in _parts(await work.read(evidence.project_id, _with(entries, first, end))):
                    for document in await work.read(evidence.project_id, _with(documents, part)):
                        file.write(document + b"\n")
            if file.tell():
                yield f"records/{start:020d}.ndjson", file


async def _write_records(
    work: UnitOfWork, project_id: str, table: str, named: Sequence[Named], file: IO[bytes]
) -> None:
    """Writes the file of one kind of a run's records."""
    for part in _parts([entry for entry in named if any(record.kind == table for record in entry.records)]):
        for document in await work.read(project_id, _with(_documents, part, table)):
            file.write(document + b"\n")


def _parts(named: Sequence[Named]) -> Iterator[list[Named]]:
    """The entries in parts whose records are read at once: many entries with few records, or few with many."""
    part: list[Named] = []
    count = 0
    for entry in named:
        if part and count + len(entry.records) > RECORDS:
            yield part
            part, count = [], 0
        part.append(entry)
        count += len(entry.records)
    if part:
        yield part


async def _proofs(view: View, covered: Covered, run: CoveredRun) -> list[File]:
    """The entries that registered what the run rests on, each with its proof."""
    files: list[File] = []
    size = covered.checkpoint.size
    nodes = await nodes_of(
        view, chain.from_iterable(merkle.inclusion_nodes(each.index, size) for each in run.registrations), size
    )
    for each in run.registrations:
        hashes = merkle.prove_inclusion(each.index, size, nodes)
        proof = TlogProof(each.index, hashes, b"", covered.stored.cosigned_note)
        files.append((f"proofs/{each.index:020d}.json", each.data))
        files.append((f"proofs/{each.index:020d}.tlog-proof", dump_proof(proof)))
    return files


def _leaves(first: int, end: int) -> Callable[[View], Any]:
    return lambda view: view.log.leaves(first, end)


def _with(query: Callable[..., Any], *arguments: object) -> Callable[[View], Any]:
    return lambda view: query(view, *arguments)


def _hash_lines(hashes: Iterable[bytes]) -> bytes:
    return "".join(encode_base64(each) + "\n" for each in hashes).encode()
