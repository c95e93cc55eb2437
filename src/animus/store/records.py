"""Records by key: find, need, page. The same for every kind, since every record is its canonical document.

A `Stored` value carries what the audit entry of its writing says of it: who and when.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any, Generic, TypeVar

from sqlalchemy import TextClause, text
from sqlalchemy.ext.asyncio import AsyncConnection

from animus.domain import document
from animus.domain.access import (
    BreakGlass,
    Role,
    RoleBinding,
    RunToken,
    ServiceAccount,
    ServiceAccountEnd,
    Token,
    TokenRevocation,
)
from animus.domain.audit import AuditEntry, RecordManifest
from animus.domain.comparison import RunComparison
from animus.domain.dataset import Dataset, DatasetVerification, DatasetVersion, DatasetVersionId, DatasetVersionUris
from animus.domain.environment import EnvironmentLock
from animus.domain.errors import NotFound
from animus.domain.evidence import Evidence
from animus.domain.external_lineage import ExternalEvent, ExternalEventType, ExternalRun, state_of_run
from animus.domain.filter import Filter
from animus.domain.lineage import (
    MODEL,
    LineageDirection,
    LineageEdge,
    LineageNodeKind,
    LineageRelation,
    node_kind,
)
from animus.domain.log import Cosignature, LogEpoch, LogForfeit, LogKey, LogKeyEnd
from animus.domain.pipeline import PipelineSpec
from animus.domain.plan import ExecutionPlan
from animus.domain.project import Project
from animus.domain.quality import QualityEvaluation, QualityProfile, QualityRule, QualityVerdict
from animus.domain.quality_gate import QualityGate
from animus.domain.run import MAX_GATE_CHECKS, AdmissionRefusal, Artifact, GateFacts, Metric, Run, RunSpec
from animus.domain.state import RunEvent
from animus.store.filter import Order, after_place, condition

TABLES: dict[type, str] = {
    Project: "project",
    Token: "token",
    RunToken: "run_token",
    TokenRevocation: "token_revocation",
    ServiceAccount: "service_account",
    ServiceAccountEnd: "service_account_end",
    RoleBinding: "role_binding",
    BreakGlass: "break_glass",
    Dataset: "dataset",
    DatasetVersion: "dataset_version",
    DatasetVersionUris: "dataset_version_uris",
    DatasetVerification: "dataset_verification",
    EnvironmentLock: "environment_lock",
    PipelineSpec: "pipeline_spec",
    RunSpec: "run_spec",
    Run: "run",
    RunComparison: "run_comparison",
    ExecutionPlan: "execution_plan",
    RunEvent: "run_event",
    Artifact: "artifact",
    Metric: "metric",
    LineageEdge: "lineage_edge",
    ExternalEvent: "external_event",
    RecordManifest: "record_manifest",
    Evidence: "evidence",
    QualityRule: "quality_rule",
    QualityProfile: "quality_profile",
    QualityEvaluation: "quality_evaluation",
    QualityGate: "quality_gate",
    AdmissionRefusal: "admission_refusal",
    LogKey: "log_key",
    LogKeyEnd: "log_key_end",
    LogEpoch: "log_epoch",
    LogForfeit: "log_forfeit",
    Cosignature: "log_cosignature",
}

REASONS: dict[type, str] = {
    Token: "TOKEN_UNKNOWN",
    ServiceAccount: "SERVICE_ACCOUNT_UNKNOWN",
    RoleBinding: "ROLE_BINDING_UNKNOWN",
    Dataset: "DATASET_UNKNOWN",
    DatasetVersion: "DATASET_VERSION_UNKNOWN",
    EnvironmentLock: "ENVIRONMENT_LOCK_UNKNOWN",
    PipelineSpec: "PIPELINE_SPEC_UNKNOWN",
    Run: "RUN_UNKNOWN",
    ExecutionPlan: "PLAN_UNKNOWN",
    QualityRule: "QUALITY_RULE_UNKNOWN",
    QualityProfile: "QUALITY_PROFILE_UNKNOWN",
    QualityEvaluation: "QUALITY_EVALUATION_UNKNOWN",
    QualityGate: "QUALITY_GATE_UNKNOWN",
}

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Stored(Generic[Value]):
    """A record: its value, the digest of its bytes, and the entry, principal and time of its writing."""

    value: Value
    digest: str
    entry_id: str
    principal: str
    time: str


@dataclass(frozen=True, slots=True)
class RunSpecFacts:
    """What a project knows of the things that a RunSpec binds."""

    pipeline_known: bool
    environment_known: bool
    versions_known: frozenset[tuple[str, str]]  # (dataset id, content digest)
    run_spec_known: bool
    equal_runs: tuple[str, ...]  # ids, the newest first
    gated: bool  # whether any quality gate was ever set


@dataclass(frozen=True, slots=True)
class RunFacts:
    """A run with everything that its state follows from."""

    run: Stored[Run]
    spec: RunSpec
    events: tuple[RunEvent, ...]  # in sequence
    artifacts: tuple[Artifact, ...]


@dataclass(frozen=True, slots=True)
class AsOf:
    """What was written by a time, or by the entries below an index of the log; without either, all there is."""

    time: str  # empty for none; then index may be given
    index: int | None


NOW = AsOf("", None)


@dataclass(frozen=True, slots=True)
class StoredEntry:
    """An audit entry with its bytes, and where it stands in the log."""

    value: AuditEntry
    document: bytes
    leaf_hash: bytes
    index: int | None  # None while it waits for one


class Records:
    """The records of one project, read over one connection within one transaction."""

    def __init__(self, connection: AsyncConnection, project_id: str) -> None:
        self._connection = connection
        self.project_id = project_id

    async def find(self, kind: type[Value], **key: str | int) -> Stored[Value] | None:
        """The record of a key, or None."""
        rows = await self._rows(_select(TABLES[kind], tuple(key)), key)
        return stored(rows[0], kind) if rows else None

    async def need(self, kind: type[Value], name: str, **key: str | int) -> Stored[Value]:
        """The record of a key. Raises NotFound with its full name."""
        found = await self.find(kind, **key)
        if found is None:
            raise unknown(kind, name)
        return found

    async def page(
        self, kind: type[Value], order: tuple[str, ...], after: Sequence[str | int], limit: int, **where: str
    ) -> list[Stored[Value]]:
        """At most `limit` records in the order of the columns, after a place among them (empty: from the start).

        A column written `-name` runs backwards; all columns of an order run the same way.
        """
        values: dict[str, Any] = {**where, "limit": limit}
        values |= {f"after_{index}": value for index, value in enumerate(after)}
        statement = _page(TABLES[kind], LISTED.get(kind, ""), order, tuple(where), bool(after))
        return [stored(row, kind) for row in await self._rows(statement, values)]

    async def select(
        self,
        kind: type[Value],
        tree: Filter | None,
        order: Order,
        after: Sequence[str | int],
        limit: int,
        **where: str,
    ) -> list[tuple[Stored[Value], tuple[str | int, ...]]]:
        """At most `limit` records that a filter lets through, in a total order, after a place; each with its own."""
        values: dict[str, Any] = {**where, "limit": limit}
        conditions = ["r.project_id = :project_id", *(f"r.{column} = :{column}" for column in where)]
        if kind in LISTED:
            conditions.append(LISTED[kind])
        source = _FROM.format(table=TABLES[kind])
        statement = selection(kind, f"{_VALUES}{{places}}{source}", conditions, tree, order, after, values)
        return [(stored(row, kind), place_of(row, order)) for row in await self._rows(statement, values)]

    async def run_spec_facts(self, spec: RunSpec, digest: str) -> RunSpecFacts:
        """What the project knows of a RunSpec's bindings; one statement."""
        values = {
            "digest": digest,
            "pipeline": spec.pipeline_spec_digest,
            "environment": spec.environment_lock_digest,
            "datasets": [binding.dataset_id for binding in spec.datasets],
            "contents": [binding.content_digest for binding in spec.datasets],
        }
        row = (await self._rows(_RUN_SPEC_FACTS, values))[0]
        return RunSpecFacts(
            pipeline_known=row.pipeline_known,
            environment_known=row.environment_known,
            versions_known=frozenset(zip(row.datasets, row.contents, strict=True)),
            run_spec_known=row.run_spec_known,
            equal_runs=tuple(row.equal_runs),
            gated=row.gated,
        )

    async def gate_facts(self, pipeline: str, spec: RunSpec) -> GateFacts:
        """The gates that govern runs of a pipeline, and the newest verdicts that they ask for of a RunSpec's datasets.

        One statement, so that gates and verdicts are of one moment. It stops at more pairs of requirement and binding
        than a decision may have.
        """
        values = {
            "pipeline": pipeline,
            "refs": [binding.dataset_ref for binding in spec.datasets],
            "datasets": [binding.dataset_id for binding in spec.datasets],
            "contents": [binding.content_digest for binding in spec.datasets],
        }
        row = (await self._rows(_GATE_FACTS, values))[0]
        keys = zip(row.datasets, row.contents, row.rules, row.evaluators, strict=True)
        found = zip(row.digests, map(QualityVerdict, row.verdicts), strict=True)
        return GateFacts(
            gates={document.digest(each): document.load(each, QualityGate) for each in row.gates},
            newest=dict(zip(keys, found, strict=True)),
        )

    async def versions_known(self, versions: Sequence[DatasetVersionId]) -> frozenset[DatasetVersionId]:
        """Those of the dataset versions that the project has; one statement."""
        rows = await self._rows(_VERSIONS_KNOWN, _keys(versions))
        return frozenset(DatasetVersionId(row.dataset_id, row.content_digest) for row in rows)

    async def uris_of(self, versions: Sequence[DatasetVersionId]) -> dict[DatasetVersionId, DatasetVersionUris]:
        """The newest URIs of those of the dataset versions for which any were set; one statement."""
        rows = await self._rows(_URIS_OF, _keys(versions))
        found = [document.load(row.document, DatasetVersionUris) for row in rows]
        return {DatasetVersionId(each.dataset_id, each.content_digest): each for each in found}

    async def equal_runs(self, run_spec_digest: str) -> tuple[str, ...]:
        """Ids of the newest 10 runs with a RunSpec, the newest first."""
        rows = await self._rows(_EQUAL_RUNS, {"digest": run_spec_digest})
        return tuple(row.run_id for row in rows)

    async def lock_run(self, run_id: str) -> None:
        """Waits until no other transaction changes the run; what is read from then on stays true until the end."""
        await self._rows(_LOCK_RUN, {"run_id": run_id})

    async def run_facts(self, run_id: str, name: str) -> RunFacts:
        """A run with its RunSpec, events and artifacts; one statement. Raises NotFound."""
        rows = await self._rows(_RUN_FACTS, {"run_id": run_id})
        if not rows:
            raise unknown(Run, name)
        row = rows[0]
        return RunFacts(
            run=stored(row, Run),
            spec=document.load(row.run_spec, RunSpec),
            events=tuple(document.load(each, RunEvent) for each in row.events),
            artifacts=tuple(document.load(each, Artifact) for each in row.artifacts),
        )

    async def documents(self, kind: type, column: str, keys: Sequence[str]) -> dict[str, bytes]:
        """Stored bytes of the records whose unique text column has one of these values."""
        rows = await self._rows(_documents(TABLES[kind], column), {"keys": list(keys)})
        return {row.key: row.document for row in rows}

    async def known(self, kind: type, digests: Sequence[str]) -> frozenset[str]:
        """Those of the digests that a record of a kind has; one statement."""
        rows = await self._rows(_known(TABLES[kind]), {"digests": list(digests)})
        return frozenset(row.digest for row in rows)

    async def role_binding(self, member: str) -> Stored[RoleBinding] | None:
        """The binding that governs for a member, or None."""
        rows = await self._rows(_ROLE_BINDING, {"member": member})
        return stored(rows[0], RoleBinding) if rows else None

    async def token_uses(self, token_digests: Sequence[str]) -> dict[str, datetime]:
        """When those of the tokens that were used were last used, to the minute; one statement."""
        rows = await self._rows(_TOKEN_USES, {"digests": list(token_digests)})
        return {row.token_digest: row.use_time for row in rows}

    async def lock_admins(self) -> None:
        """Waits until no other transaction may leave the instance without administrator, as `lock_run` for a run."""
        await self._rows(_LOCK_ADMINS, {})

    async def has_admin(self, time: str, *, token_digest: str, service_account_id: str, member: str) -> bool:
        """Whether anyone administers the instance at a time; in the system project only.

        A token, all of a service account and a member's binding are left out, each if given.
        """
        values = {"time": time, "token": token_digest, "account": service_account_id, "member": member}
        return bool((await self._rows(_HAS_ADMIN, values))[0].found)

    async def rule_and_profile(self, rule_digest: str, profile_digest: str) -> tuple[QualityRule | None, bytes | None]:
        """A rule, and the stored bytes of a profile, which may be large; one statement."""
        row = (await self._rows(_RULE_AND_PROFILE, {"rule": rule_digest, "profile": profile_digest}))[0]
        return document.load(row.rule, QualityRule) if row.rule is not None else None, row.profile

    async def written(self, table: str, entry_ids: Sequence[str]) -> list[tuple[str, bytes]]:
        """The records of a table that the changes of these entries wrote: entry id and stored bytes; one statement."""
        rows = await self._rows(_written(table), {"entries": list(entry_ids)})
        return [(row.entry_id, row.document) for row in rows]

    async def run_states(self, run_ids: Sequence[str]) -> dict[str, tuple[str, str]]:
        """For each run with an event: its state after the last one, and the digest of its plan; one statement."""
        rows = await self._rows(_RUN_STATES, {"run_ids": list(run_ids)})
        return {row.run_id: (row.state, row.plan_digest) for row in rows}

    async def metrics_at(self, run_id: str, points: Sequence[tuple[str, int, str, int]]) -> list[Metric]:
        """The points of a run at (step, attempt, name, index); one statement."""
        values = {
            "run_id": run_id,
            "steps": [point[0] for point in points],
            "attempts": [point[1] for point in points],
            "names": [point[2] for point in points],
            "indexes": [point[3] for point in points],
        }
        return [document.load(row.document, Metric) for row in await self._rows(_METRICS_AT, values)]

    async def audit_entry(self, entry_id: str) -> StoredEntry | None:
        """An audit entry, or None."""
        rows = await self._rows(_AUDIT_ENTRY, {"entry_id": entry_id})
        return _entry(rows[0]) if rows else None

    async def select_entries(
        self, tree: Filter | None, order: Order, after: Sequence[str | int], limit: int, resource: str
    ) -> list[tuple[StoredEntry, tuple[str | int, ...]]]:
        """As `select`, of audit entries; of one resource if given."""
        values: dict[str, Any] = {"limit": limit, "resource": resource}
        conditions = ["e.project_id = :project_id", *(["e.resource = :resource"] if resource else [])]
        head = f"{_ENTRY_VALUES}{{places}}{_ENTRY_FROM}"
        statement = selection(AuditEntry, head, conditions, tree, order, after, values)
        return [(_entry(row), place_of(row, order)) for row in await self._rows(statement, values)]

    async def written_after(self, time: str) -> bool:
        """Whether there is an entry of a later time; one statement."""
        return bool((await self._rows(_WRITTEN_AFTER, {"time": time}))[0].found)

    async def links(
        self, nodes: Sequence[str], direction: LineageDirection, as_of: AsOf, limit: int
    ) -> list[tuple[str, str, str]]:
        """What leaves these nodes in a direction: subject, relation and object of edges, as a set, and of joins.

        A join is of a registered dataset version and the artifact of the same content, which something wrote; its
        relation is SAME_CONTENT. In order; one statement for all nodes.
        """
        statement = _links(_LINKS, direction, _until(as_of))
        return [tuple(row) for row in await self._rows(statement, {**_ends(nodes, as_of), "limit": limit})]

    async def models_of(self, attempts: Sequence[tuple[str, str, int]]) -> frozenset[str]:
        """Digests of the models among what attempts (run, step, number) wrote, by their pipelines; one statement."""
        runs, steps, numbers = zip(*attempts, strict=True)
        values = {"runs": list(runs), "steps": list(steps), "attempts": list(numbers), "type": MODEL}
        return frozenset(row.digest for row in await self._rows(_MODELS_OF, values))

    async def leads_on(self, nodes: Sequence[str], direction: LineageDirection, as_of: AsOf) -> bool:
        """Whether any link leaves these nodes in a direction; one statement."""
        rows = await self._rows(_links(_LEADS_ON, direction, _until(as_of)), _ends(nodes, as_of))
        return bool(rows[0].found)

    async def touched(self, nodes: Sequence[str], as_of: AsOf) -> frozenset[str]:
        """Those of the nodes that a link touches at either end; one statement."""
        statement = _links(_TOUCHED, LineageDirection.BOTH, _until(as_of))
        rows = await self._rows(statement, _ends(nodes, as_of))
        return frozenset(row.name for row in rows) & frozenset(nodes)

    async def known_edges(self, edges: Sequence[LineageEdge]) -> frozenset[LineageEdge]:
        """Those of the edges that are written already; one statement."""
        values = {
            "subjects": [edge.subject for edge in edges],
            "relations": [edge.relation.value for edge in edges],
            "objects": [edge.object for edge in edges],
        }
        rows = await self._rows(_KNOWN_EDGES, values)
        return frozenset(LineageEdge(row.subject, LineageRelation(row.relation), row.object) for row in rows)

    async def external_runs(
        self, selected: tuple[Filter | None, Order] | None, after: Sequence[str | int], limit: int
    ) -> list[tuple[ExternalRun, tuple[str | int, ...]]]:
        """At most `limit` runs of other systems after a place, by id unless selected otherwise; one statement."""
        values: dict[str, Any] = {"limit": limit}
        if selected is None:
            values["after_0"] = after[0] if after else ""
            order: Order = (("r.run_id", False),)
            which = _EXTERNAL_RUN_IDS
        else:
            tree, order = selected
            which = selection(ExternalRun, _EXTERNAL_RUN_STATES, [], tree, order, after, values).text
        places = [f"w.place_{index}" for index in range(len(order))]
        ordered = [f"{place}{' DESC' if each[1] else ''}" for place, each in zip(places, order, strict=True)]
        statement = _EXTERNAL_RUNS.format(which=which, places=", ".join(places), order=", ".join(ordered))
        return [(_external_run(row), place_of(row, order)) for row in await self._rows(text(statement), values)]

    async def _rows(self, statement: TextClause, values: dict[str, Any]) -> Sequence[Any]:
        return (await self._connection.execute(statement, {"project_id": self.project_id, **values})).all()


def _entry(row: Any) -> StoredEntry:
    return StoredEntry(document.load(row.document, AuditEntry), row.document, row.leaf_hash, row.leaf_index)


def _external_run(row: Any) -> ExternalRun:
    return ExternalRun(
        run_id=row.run_id,
        state=state_of_run({ExternalEventType(t): time for t, time in zip(row.types, row.times, strict=True)}),
        job_namespace=row.job_namespace,
        job_name=row.job_name,
        first_event_time=row.first_time,
        last_event_time=max(row.times),
        event_count=int(row.events),
        input_count=row.inputs,
        output_count=row.outputs,
    )


def table_of(kind: type) -> str:
    """The table that keeps values of a kind."""
    return TABLES[kind]


def unknown(kind: type, name: str) -> NotFound:
    """What a caller is told of a record that is not there."""
    return NotFound(REASONS[kind], f"the project has no {name.partition('/')[2]}", kind=kind.__name__, name=name)


def stored(row: Any, kind: type[Value]) -> Stored[Value]:
    """The record of a row of `_SELECT`."""
    return Stored(document.load(row.document, kind), row.digest, row.entry_id, row.principal, row.time)


_VALUES = "SELECT r.document, r.digest, r.entry_id, e.principal, e.time"
_FROM = " FROM animus.{table} r JOIN animus.audit_entry e ON e.project_id = r.project_id AND e.entry_id = r.entry_id"
_GOVERNS = (
    "NOT EXISTS (SELECT FROM animus.role_binding n"
    " WHERE n.project_id = r.project_id AND n.member = r.member AND n.version > r.version)"
)
# What a list shows, where not all records of a kind.
LISTED: dict[type, str] = {RoleBinding: f"{_GOVERNS} AND animus.field(r.document, 'roles') <> '[]'"}
PROJECTS = f"{_VALUES}{{places}}{_FROM.format(table='project')}"  # of the instance
_SELECT = f"{_VALUES}{_FROM} WHERE r.project_id = :project_id"


def selection(
    kind: type,
    head: str,
    conditions: list[str],
    tree: Filter | None,
    order: Order,
    after: Sequence[str | int],
    values: dict[str, Any],
) -> TextClause:
    """A statement of a filter and an order, with the place of each row; adds to the values that it is to be given.

    `head` is the statement as far as its conditions, with room for the columns of the place.
    """
    if tree is not None:
        conditions.append(condition(kind, tree, values))
    if after:
        names = [f"after_{index}" for index in range(len(after))]
        values |= dict(zip(names, after, strict=True))
        conditions.append(after_place(order, names))
    where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
    ordered = ", ".join(f"{expression}{' DESC' if backwards else ''}" for expression, backwards in order)
    places = "".join(f", {expression} AS place_{index}" for index, (expression, _) in enumerate(order))
    return text(f"{head.format(places=places)}{where} ORDER BY {ordered} LIMIT :limit")


def place_of(row: Any, order: Order) -> tuple[str | int, ...]:
    """Where a row of a selection stands."""
    return tuple(row[-len(order) :])


@cache
def _select(table: str, key: tuple[str, ...]) -> TextClause:
    return text(_SELECT.format(table=table) + "".join(f" AND r.{column} = :{column}" for column in key))


@cache
def _page(table: str, listed: str, order: tuple[str, ...], where: tuple[str, ...], after: bool) -> TextClause:
    backwards = order[0].startswith("-")
    columns = [column.lstrip("-") for column in order]
    sql = _SELECT.format(table=table) + "".join(f" AND r.{column} = :{column}" for column in where)
    if listed:
        sql += f" AND {listed}"
    if after:
        place = ", ".join(f":after_{index}" for index in range(len(columns)))
        sql += f" AND ({', '.join(f'r.{c}' for c in columns)}) {'<' if backwards else '>'} ({place})"
    sql += " ORDER BY " + ", ".join(f"r.{c}{' DESC' if backwards else ''}" for c in columns) + " LIMIT :limit"
    return text(sql)


@cache
def _documents(table: str, column: str) -> TextClause:
    return text(
        f"SELECT {column} AS key, document FROM animus.{table}"
        f" WHERE project_id = :project_id AND {column} = ANY(CAST(:keys AS text[]))"
    )


@cache
def _known(table: str) -> TextClause:
    return text(
        f"SELECT digest FROM animus.{table} WHERE project_id = :project_id AND digest = ANY(CAST(:digests AS text[]))"
    )


@cache
def _written(table: str) -> TextClause:
    """By the transaction, which rows have an index on."""
    return text(
        f"SELECT r.entry_id, r.document FROM animus.audit_entry e JOIN animus.{table} r"
        " ON r.project_id = e.project_id AND r.written_in = e.written_in AND r.entry_id = e.entry_id"
        " WHERE e.project_id = :project_id AND e.entry_id = ANY(CAST(:entries AS text[]))"
    )


_RUN_SPEC_FACTS = text(
    """
    SELECT
      EXISTS (SELECT FROM animus.pipeline_spec WHERE project_id = :project_id AND digest = :pipeline)
        AS pipeline_known,
      EXISTS (SELECT FROM animus.environment_lock WHERE project_id = :project_id AND digest = :environment)
        AS environment_known,
      EXISTS (SELECT FROM animus.run_spec WHERE project_id = :project_id AND digest = :digest) AS run_spec_known,
      ARRAY(SELECT run_id FROM animus.run WHERE project_id = :project_id AND run_spec_digest = :digest
            ORDER BY create_time DESC, run_id DESC LIMIT 10) AS equal_runs,
      EXISTS (SELECT FROM animus.quality_gate WHERE project_id = :project_id) AS gated,
      coalesce(array_agg(v.dataset_id), '{}') AS datasets,
      coalesce(array_agg(v.content_digest), '{}') AS contents
    FROM animus.dataset_version v
    JOIN unnest(CAST(:datasets AS text[]), CAST(:contents AS text[])) AS b (dataset_id, content_digest)
      USING (dataset_id, content_digest)
    WHERE v.project_id = :project_id
    """
)

# A requirement meets the bindings that it is about by a join on what it names: with thousands of each, no pair is
# looked at twice. Of every evaluation that counts the newest is the first of an index.
_GATE_FACTS = text(
    f"""
    WITH gate AS MATERIALIZED (
      SELECT g.document
      FROM unnest(ARRAY['', CAST(:pipeline AS text)]) AS p (pipeline) CROSS JOIN LATERAL (
        SELECT document FROM animus.quality_gate
        WHERE project_id = :project_id AND pipeline = p.pipeline ORDER BY set_time DESC, digest DESC LIMIT 1
      ) AS g
    ),
    requirement AS MATERIALIZED (
      SELECT DISTINCT r."datasetRef" AS dataset_ref, r."datasetId" AS dataset_id, r."ruleDigest" AS rule_digest,
        r.evaluator
      FROM gate CROSS JOIN LATERAL jsonb_to_recordset(convert_from(gate.document, 'UTF8')::jsonb -> 'requirements')
        AS r ("datasetRef" text, "datasetId" text, "ruleDigest" text, evaluator text)
    ),
    binding AS MATERIALIZED (
      SELECT * FROM unnest(CAST(:refs AS text[]), CAST(:datasets AS text[]), CAST(:contents AS text[]))
        AS b (dataset_ref, dataset_id, content_digest)
    ),
    asked AS (
      SELECT b.dataset_id, b.content_digest, r.rule_digest, r.evaluator
      FROM requirement AS r JOIN binding AS b ON b.dataset_ref = r.dataset_ref
      WHERE r.dataset_id IN ('', b.dataset_id)
      UNION ALL
      SELECT b.dataset_id, b.content_digest, r.rule_digest, r.evaluator
      FROM requirement AS r JOIN binding AS b ON b.dataset_id = r.dataset_id WHERE r.dataset_ref = ''
      UNION ALL
      SELECT b.dataset_id, b.content_digest, r.rule_digest, r.evaluator
      FROM requirement AS r CROSS JOIN binding AS b WHERE r.dataset_ref = '' AND r.dataset_id = ''
      LIMIT {MAX_GATE_CHECKS}
    )
    SELECT
      ARRAY(SELECT document FROM gate) AS gates,
      coalesce(array_agg(a.dataset_id), '{{}}') AS datasets,
      coalesce(array_agg(a.content_digest), '{{}}') AS contents,
      coalesce(array_agg(a.rule_digest), '{{}}') AS rules,
      coalesce(array_agg(a.evaluator), '{{}}') AS evaluators,
      coalesce(array_agg(e.digest), '{{}}') AS digests,
      coalesce(array_agg(e.verdict), '{{}}') AS verdicts
    FROM (SELECT DISTINCT * FROM asked) AS a
    CROSS JOIN LATERAL (
      SELECT digest, verdict FROM animus.quality_evaluation
      WHERE project_id = :project_id AND dataset_id = a.dataset_id AND content_digest = a.content_digest
        AND rule_digest = a.rule_digest AND evaluator = a.evaluator
      ORDER BY evaluate_time DESC, digest DESC LIMIT 1
    ) AS e
    """
)

_VERSIONS = "unnest(CAST(:datasets AS text[]), CAST(:contents AS text[])) AS w (dataset_id, content_digest)"
_VERSIONS_KNOWN = text(
    f"SELECT v.dataset_id, v.content_digest FROM animus.dataset_version v JOIN {_VERSIONS}"
    " USING (dataset_id, content_digest) WHERE v.project_id = :project_id"
)
_URIS_OF = text(
    f"SELECT u.document FROM {_VERSIONS} CROSS JOIN LATERAL (SELECT document FROM animus.dataset_version_uris"
    " WHERE project_id = :project_id AND dataset_id = w.dataset_id AND content_digest = w.content_digest"
    " ORDER BY sequence DESC LIMIT 1) AS u"
)


def _keys(versions: Sequence[DatasetVersionId]) -> dict[str, list[str]]:
    return {
        "datasets": [each.dataset_id for each in versions],
        "contents": [each.content_digest for each in versions],
    }


_EQUAL_RUNS = text(
    "SELECT run_id FROM animus.run WHERE project_id = :project_id AND run_spec_digest = :digest"
    " ORDER BY create_time DESC, run_id DESC LIMIT 10"
)

_ROLE_BINDING = text(_SELECT.format(table="role_binding") + " AND r.member = :member ORDER BY r.version DESC LIMIT 1")
_TOKEN_USES = text(
    "SELECT token_digest, use_time FROM animus.token_use"
    " WHERE project_id = :project_id AND token_digest = ANY(CAST(:digests AS text[]))"
)
_LOCK_ADMINS = text("SELECT pg_advisory_xact_lock(hashtextextended('admins of the instance', 0))")
_HAS_ADMIN = text(
    f"""
    SELECT EXISTS (
      SELECT FROM animus.token t
      WHERE t.project_id = :project_id AND t.role = '{Role.INSTANCE_ADMIN}' AND t.expire_time > :time
        AND t.token_digest <> :token AND t.principal <> :account
        AND NOT EXISTS (SELECT FROM animus.token_revocation x
          WHERE x.project_id = t.project_id AND x.token_digest = t.token_digest)
        AND NOT EXISTS (SELECT FROM animus.service_account_end x
          WHERE x.project_id = t.project_id AND x.service_account_id = t.principal)
    ) OR EXISTS (
      SELECT FROM animus.role_binding r
      WHERE r.project_id = :project_id AND r.member <> :member AND {_GOVERNS}
        AND convert_from(r.document, 'UTF8')::jsonb -> 'roles' ? '{Role.INSTANCE_ADMIN}'
    ) AS found
    """
)

_LOCK_RUN = text("SELECT pg_advisory_xact_lock(hashtextextended(:project_id || '/' || :run_id, 0))")

_RUN_FACTS = text(
    """
    SELECT r.document, r.digest, r.entry_id, e.principal, e.time, s.document AS run_spec,
      ARRAY(SELECT v.document FROM animus.run_event v
            WHERE v.project_id = :project_id AND v.run_id = :run_id ORDER BY v.sequence) AS events,
      ARRAY(SELECT a.document FROM animus.artifact a
            WHERE a.project_id = :project_id AND a.run_id = :run_id) AS artifacts
    FROM animus.run r
    JOIN animus.run_spec s ON s.project_id = r.project_id AND s.digest = r.run_spec_digest
    JOIN animus.audit_entry e ON e.project_id = r.project_id AND e.entry_id = r.entry_id
    WHERE r.project_id = :project_id AND r.run_id = :run_id
    """
)

_RUN_STATES = text(
    """
    SELECT w.run_id, last.state, coalesce(planned.plan_digest, '') AS plan_digest
    FROM unnest(CAST(:run_ids AS text[])) AS w (run_id)
    CROSS JOIN LATERAL (
      SELECT state FROM animus.run_event
      WHERE project_id = :project_id AND run_id = w.run_id ORDER BY sequence DESC LIMIT 1
    ) AS last
    LEFT JOIN LATERAL (
      SELECT animus.field(document, 'planDigest') AS plan_digest FROM animus.run_event
      WHERE project_id = :project_id AND run_id = w.run_id AND sequence = 1
    ) AS planned ON true
    """
)

_METRICS_AT = text(
    """
    SELECT m.document FROM animus.metric m
    JOIN unnest(CAST(:steps AS text[]), CAST(:attempts AS integer[]),
                CAST(:names AS text[]), CAST(:indexes AS bigint[])) AS p (step, attempt, name, index)
      USING (step, attempt, name, index)
    WHERE m.project_id = :project_id AND m.run_id = :run_id
    """
)

_RULE_AND_PROFILE = text(
    "SELECT (SELECT document FROM animus.quality_rule WHERE project_id = :project_id AND digest = :rule) AS rule,"
    " (SELECT document FROM animus.quality_profile WHERE project_id = :project_id AND digest = :profile) AS profile"
)

_ENTRY_VALUES = "SELECT e.document, e.leaf_hash, l.index AS leaf_index"
_ENTRY_FROM = (
    " FROM animus.audit_entry e LEFT JOIN animus.log_leaf l ON l.project_id = e.project_id AND l.entry_id = e.entry_id"
)
_ENTRIES = f"{_ENTRY_VALUES}{_ENTRY_FROM} WHERE e.project_id = :project_id"
_AUDIT_ENTRY = text(_ENTRIES + " AND e.entry_id = :entry_id")

_WRITTEN_AFTER = text(
    "SELECT EXISTS (SELECT FROM animus.audit_entry WHERE project_id = :project_id AND time > :time) AS found"
)

# Each attempt is looked up by itself; a pipeline is taken apart once, however many runs it has.
_MODELS_OF = text(
    """
    WITH written AS MATERIALIZED (
      SELECT w.step, a.name, a.digest, s.pipeline_spec_digest
      FROM unnest(CAST(:runs AS text[]), CAST(:steps AS text[]), CAST(:attempts AS integer[]))
        AS w (run_id, step, attempt)
      CROSS JOIN LATERAL (
        SELECT name, animus.field(document, 'digest') AS digest FROM animus.artifact
        WHERE project_id = :project_id AND run_id = w.run_id AND step = w.step AND attempt = w.attempt OFFSET 0
      ) AS a
      CROSS JOIN LATERAL (
        SELECT s.pipeline_spec_digest FROM animus.run r
        JOIN animus.run_spec s ON s.project_id = r.project_id AND s.digest = r.run_spec_digest
        WHERE r.project_id = :project_id AND r.run_id = w.run_id OFFSET 0
      ) AS s
    ),
    declared AS MATERIALIZED (
      SELECT p.digest AS pipeline_spec_digest, step.value ->> 'name' AS step, output.value ->> 'name' AS name
      FROM (SELECT DISTINCT pipeline_spec_digest FROM written) AS w
      JOIN animus.pipeline_spec p ON p.project_id = :project_id AND p.digest = w.pipeline_spec_digest
      CROSS JOIN LATERAL jsonb_array_elements(convert_from(p.document, 'UTF8')::jsonb #> '{spec,steps}') AS step
      CROSS JOIN LATERAL jsonb_array_elements(step.value #> '{outputs,artifacts}') AS output
      WHERE output.value ->> 'type' = :type
    )
    SELECT DISTINCT digest FROM written JOIN declared USING (pipeline_spec_digest, step, name)
    """
)

SAME_CONTENT = "same_content"  # no relation of an edge: nobody wrote it

_LINKS = "{links} ORDER BY subject, relation, object LIMIT :limit"
_LEADS_ON = "SELECT EXISTS ({links}) AS found"
_TOUCHED = "SELECT DISTINCT unnest(ARRAY[subject, object]) AS name FROM ({links}) AS links"

# Each node is looked up in an index by itself. LATERAL with OFFSET 0 leaves the planner no other way: where it takes
# the nodes for many, it would read a table from end to end.
_EDGES = (
    "SELECT f.subject, f.relation, f.object FROM unnest(CAST(:nodes AS text[])) AS n (name) CROSS JOIN LATERAL"
    " (SELECT l.subject, l.relation, l.object FROM animus.lineage_edge l{until}"
    " WHERE l.project_id = :project_id AND l.{end} = n.name OFFSET 0) AS f"
)
_JOINS = (
    "SELECT f.version, 'same_content', a.name FROM unnest({nodes}) AS n ({columns})"
    " CROSS JOIN LATERAL (SELECT 'projects/' || :project_id || '/artifacts/' || n.content_digest AS name) AS a"
    " CROSS JOIN LATERAL (SELECT 'projects/' || v.project_id || '/datasets/' || v.dataset_id || '/versions/'"
    " || v.content_digest AS version FROM animus.dataset_version v{until}"
    " WHERE v.project_id = :project_id AND {condition} OFFSET 0) AS f"
    " WHERE EXISTS (SELECT FROM animus.lineage_edge l{wrote} WHERE l.project_id = :project_id"
    " AND l.subject = a.name AND l.relation = 'was_generated_by' OFFSET 0)"
)
_UNTIL = {
    "": "",
    "time": " JOIN animus.audit_entry {entry} ON {entry}.project_id = {of}.project_id"
    " AND {entry}.entry_id = {of}.entry_id AND {entry}.time <= :as_of_time",
    "index": " JOIN animus.log_leaf {entry} ON {entry}.project_id = {of}.project_id"
    " AND {entry}.entry_id = {of}.entry_id AND {entry}.index < :as_of_index",
}
_VERSIONS_UP = {
    "nodes": "CAST(:datasets AS text[]), CAST(:contents AS text[])",
    "columns": "dataset_id, content_digest",
    "condition": "v.dataset_id = n.dataset_id AND v.content_digest = n.content_digest",
}
_VERSIONS_DOWN = {
    "nodes": "CAST(:digests AS text[])",
    "columns": "content_digest",
    "condition": "v.content_digest = n.content_digest",
}

_KNOWN_EDGES = text(
    """
    SELECT n.subject, n.relation, n.object
    FROM unnest(CAST(:subjects AS text[]), CAST(:relations AS text[]), CAST(:objects AS text[]))
      AS n (subject, relation, object)
    WHERE EXISTS (
      SELECT FROM animus.lineage_edge l
      WHERE l.project_id = :project_id AND l.subject = n.subject AND l.relation = n.relation AND l.object = n.object
      OFFSET 0
    )
    """
)

_EXTERNAL_RUN_IDS = """
    SELECT DISTINCT run_id, run_id AS place_0 FROM animus.external_event
    WHERE project_id = :project_id AND run_id > :after_0 ORDER BY run_id LIMIT :limit
"""
# All runs with what they are filtered by: the job of the last event, and the state as `state_of_run` has it.
_EXTERNAL_RUN_STATES = """
    SELECT r.run_id{places} FROM (
      SELECT run_id, min(event_time) AS first_event_time, max(event_time) AS last_event_time,
        (array_agg(job_namespace ORDER BY event_time DESC, digest DESC))[1] AS job_namespace,
        (array_agg(job_name ORDER BY event_time DESC, digest DESC))[1] AS job_name,
        (array_agg(event_type ORDER BY event_type IN ('COMPLETE', 'ABORT', 'FAIL') DESC, event_type <> '' DESC,
          event_time DESC,
          array_position(ARRAY['START', 'RUNNING', 'OTHER', 'COMPLETE', 'ABORT', 'FAIL'], event_type) DESC))[1] AS state
      FROM animus.external_event WHERE project_id = :project_id GROUP BY run_id
    ) AS r
"""
_EXTERNAL_RUNS = """
    SELECT w.run_id, t.types, t.times, t.first_time, t.events, l.job_namespace, l.job_name, i.inputs, o.outputs,
      {places}
    FROM ({which}) AS w
    CROSS JOIN LATERAL (SELECT 'projects/' || :project_id || '/externalRuns/' || w.run_id AS name) AS n
    CROSS JOIN LATERAL (
      SELECT array_agg(event_type) AS types, array_agg(last_time) AS times, min(first_time) AS first_time,
        sum(events) AS events
      FROM (
        SELECT event_type, min(event_time) AS first_time, max(event_time) AS last_time, count(*) AS events
        FROM animus.external_event WHERE project_id = :project_id AND run_id = w.run_id GROUP BY event_type
      ) AS each_type
    ) AS t
    CROSS JOIN LATERAL (
      SELECT job_namespace, job_name FROM animus.external_event WHERE project_id = :project_id AND run_id = w.run_id
      ORDER BY event_time DESC, digest DESC LIMIT 1
    ) AS l
    CROSS JOIN LATERAL (
      SELECT count(DISTINCT object) AS inputs FROM animus.lineage_edge
      WHERE project_id = :project_id AND subject = n.name AND relation = 'used'
    ) AS i
    CROSS JOIN LATERAL (
      SELECT count(DISTINCT subject) AS outputs FROM animus.lineage_edge
      WHERE project_id = :project_id AND object = n.name AND relation = 'was_generated_by'
    ) AS o
    ORDER BY {order}
"""


@cache
def _links(form: str, direction: LineageDirection, until: str) -> TextClause:
    """A statement about the links that leave `:nodes`. `until` is a key of `_UNTIL`."""
    parts = []
    for ways, end, versions in (
        ((LineageDirection.UPSTREAM, LineageDirection.BOTH), "subject", _VERSIONS_UP),
        ((LineageDirection.DOWNSTREAM, LineageDirection.BOTH), "object", _VERSIONS_DOWN),
    ):
        if direction not in ways:
            continue
        of_edge, of_version, of_artifact = (
            _UNTIL[until].format(entry=entry, of=of) for entry, of in (("e", "l"), ("e", "v"), ("f", "l"))
        )
        parts.append(_EDGES.format(end=end, until=of_edge))
        parts.append(_JOINS.format(**versions, until=of_version, wrote=of_artifact))
    return text(form.format(links=" UNION ".join(parts)))


def _until(as_of: AsOf) -> str:
    return "time" if as_of.time else "" if as_of.index is None else "index"


def _ends(nodes: Sequence[str], as_of: AsOf) -> dict[str, Any]:
    """What a statement about the links of nodes is given."""
    datasets, contents, digests = [], [], []
    for name in nodes:
        kind = node_kind(name)
        if kind is LineageNodeKind.DATASET_VERSION:
            _, _, _, dataset, _, content = name.split("/")
            datasets.append(dataset)
            contents.append(content)
        elif kind is LineageNodeKind.ARTIFACT:
            digests.append(name.rpartition("/")[2])
    values = {"nodes": list(nodes), "datasets": datasets, "contents": contents, "digests": digests}
    return {**values, "as_of_time": as_of.time, "as_of_index": as_of.index}
