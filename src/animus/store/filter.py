"""Filters and orders as SQL: the fields of every list, in one table, and conditions with every value bound.

A field is a column, generated from the document where it is large; a value of a small document is read from it. Row
security lets an index serve only what cannot leak a row, and no condition on JSON is of that kind: a condition is
checked on the rows of the project one after the other, in the order that was asked for, until the page is full.
"""

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from animus.domain.access import Role, RoleBinding, ServiceAccount, Token
from animus.domain.audit import AuditEntry, AuditOutcome
from animus.domain.dataset import Dataset, DatasetVerification, DatasetVersion
from animus.domain.environment import EnvironmentLock
from animus.domain.external_lineage import ExternalEvent, ExternalEventType, ExternalRun
from animus.domain.filter import And, FieldType, Filter, FilterField, Not, Or, Term
from animus.domain.pipeline import PipelineSpec
from animus.domain.project import Project
from animus.domain.quality import QualityEvaluation, QualityProfile, QualityRule, QualityVerdict
from animus.domain.quality_gate import QualityGate
from animus.domain.run import AdmissionRefusal, Artifact, Metric, Run
from animus.domain.state import RunState


@dataclass(frozen=True, slots=True)
class Column:
    """A field of a list, and the expression of its value: `r` is the record, `e` the entry of its writing."""

    field: FilterField
    sql: str


def _column(name: str, kind: FieldType = "text", sql: str = "") -> Column:
    return Column(FilterField(name, kind, ()), sql or f"r.{name}")


def _document(name: str, key: str, row: str = "r") -> Column:
    """Text of a small document."""
    return _column(name, sql=f"""animus.field({row}.document, '{key}') COLLATE "C" """.rstrip())


def _enum(name: str, prefix: str, members: Iterable[enum.StrEnum], sql: str) -> Column:
    values = tuple((f"{prefix}_{member.name if member else 'UNSPECIFIED'}", member.value) for member in members)
    return Column(FilterField(name, "enum", values), sql)


_LABELS = _column("labels", "labels")
_RECORD = (_column("create_time", "time", "e.time"), _column("principal", sql="e.principal"))
_STATE = (
    "coalesce((SELECT v.state FROM animus.run_event v WHERE v.project_id = r.project_id AND v.run_id = r.run_id"
    " ORDER BY v.sequence DESC LIMIT 1), 'created')"
)
_OF_RUN_SPEC = (
    "(SELECT s.{column} FROM animus.run_spec s WHERE s.project_id = r.project_id AND s.digest = r.run_spec_digest)"
)
_PIPELINE = (
    "(SELECT p.name FROM animus.run_spec s JOIN animus.pipeline_spec p ON p.project_id = s.project_id"
    " AND p.digest = s.pipeline_spec_digest WHERE s.project_id = r.project_id AND s.digest = r.run_spec_digest)"
)

_DISABLED = (
    "EXISTS (SELECT FROM animus.service_account_end x"
    " WHERE x.project_id = r.project_id AND x.service_account_id = r.service_account_id)"
)
_REVOKED = (
    "EXISTS (SELECT FROM animus.token_revocation x"
    " WHERE x.project_id = r.project_id AND x.token_digest = r.token_digest)"
)
# In the one spelling of times; that of a token that was never used is the zero of a Timestamp.
_LAST_USE = (
    'coalesce((SELECT to_char(u.use_time AT TIME ZONE \'UTC\', \'YYYY-MM-DD"T"HH24:MI:SS.US"Z"\') COLLATE "C"'
    " FROM animus.token_use u WHERE u.project_id = r.project_id AND u.token_digest = r.token_digest),"
    " '1970-01-01T00:00:00.000000Z')"
)

# A new list is a row here, one of the table in docs/lists.md, and `filter` and `order_by` in its request.
COLUMNS: dict[type, tuple[Column, ...]] = {
    Project: (
        _column("project_id"),
        _document("display_name", "displayName"),
        _document("description", "description"),
        _LABELS,
        *_RECORD,
    ),
    ServiceAccount: (
        _column("service_account_id"),
        _document("display_name", "displayName"),
        _document("description", "description"),
        _column("disabled", "bool", _DISABLED),
        *_RECORD,
    ),
    Token: (
        _column("token_digest"),
        _column("principal"),
        _enum("role", "ROLE", Role, "r.role"),
        _column("expire_time", "time"),
        _column("last_use_time", "time", _LAST_USE),
        _column("revoked", "bool", _REVOKED),
        _column("create_time", "time", "e.time"),
    ),
    RoleBinding: (_column("member"), _column("version", "integer"), *_RECORD),
    Dataset: (_column("dataset_id"), _document("description", "description"), _LABELS, *_RECORD),
    DatasetVersion: (
        _column("content_digest"),
        _column("size_bytes", "integer"),
        _column("row_count", "integer"),
        _column("media_type"),
        _column("source"),
        _column("licence"),
        _LABELS,
        *_RECORD,
    ),
    DatasetVerification: (
        _document("found_digest", "foundDigest"),
        _column("found_size_bytes", "integer", "animus.field(r.document, 'foundSizeBytes')::bigint"),
        _document("location", "location"),
        _column("matched", "bool", "animus.field(r.document, 'matched')::boolean"),
        _column("create_time", "time", "r.verify_time"),
        _column("principal", sql="e.principal"),
    ),
    EnvironmentLock: (
        _column("digest"),
        _column("python_version"),
        _column("platform_os"),
        _column("platform_architecture"),
        _column("lock_file_digest"),
        *_RECORD,
    ),
    PipelineSpec: (_column("digest"), _column("name"), _LABELS, *_RECORD),
    Run: (
        _column("run_id"),
        _column("create_time", "time"),
        _column("principal", sql="e.principal"),
        _enum("state", "RUN_STATE", RunState, _STATE),
        _column("run_spec_digest"),
        _column("pipeline", sql=_PIPELINE),
        _column("pipeline_spec_digest", sql=_OF_RUN_SPEC.format(column="pipeline_spec_digest")),
        _column("environment_lock_digest", sql=_OF_RUN_SPEC.format(column="environment_lock_digest")),
        _column("commit_sha", sql=_OF_RUN_SPEC.format(column="commit_sha")),
        _column("replay_of"),
        _LABELS,
    ),
    Artifact: (
        _column("step"),
        _column("attempt", "integer"),
        _column("name"),
        _document("digest", "digest"),
        _column("size_bytes", "integer", "animus.field(r.document, 'sizeBytes')::bigint"),
        _document("uri", "uri"),
        *_RECORD,
    ),
    Metric: (
        _column("step"),
        _column("attempt", "integer"),
        _column("name"),
        _column("index", "integer"),
        _column("occur_time", "time", """animus.field(r.document, 'occurTime') COLLATE "C\""""),
        *_RECORD,
    ),
    AuditEntry: (
        _column("entry_id", sql="e.entry_id"),
        _column("time", "time", "e.time"),
        _column("principal", sql="e.principal"),
        _document("action", "action", "e"),
        _column("resource", sql="e.resource"),
        _document("method", "method", "e"),
        _document("request_id", "requestId", "e"),
        _enum("outcome", "AUDIT_OUTCOME", AuditOutcome, "e.outcome"),
        _document("reason", "reason", "e"),
    ),
    QualityRule: (_column("rule_id"), _column("digest"), _column("description"), _LABELS, *_RECORD),
    QualityProfile: (_column("digest"), _column("profiler"), _column("row_count", "integer"), *_RECORD),
    QualityEvaluation: (
        _column("digest"),
        _column("rule_digest"),
        _column("rule_name"),
        _column("evaluator"),
        _enum("verdict", "QUALITY_VERDICT", filter(None, QualityVerdict), "r.verdict"),
        _column("evaluate_time", "time"),
        _column("principal", sql="e.principal"),
    ),
    QualityGate: (
        _column("digest"),
        _column("pipeline"),
        _column("override_allowed", "bool"),
        _column("set_time", "time"),
        _column("principal", sql="e.principal"),
    ),
    AdmissionRefusal: (
        _column("run_spec_digest"),
        _column("pipeline_spec_digest"),
        _column("replay_of"),
        _column("refuse_time", "time"),
        _column("principal", sql="e.principal"),
    ),
    ExternalEvent: (
        _column("event_time", "time"),
        _enum("event_type", "EXTERNAL_EVENT_TYPE", ExternalEventType, "r.event_type"),
        _column("job_namespace"),
        _column("job_name"),
        *_RECORD,
    ),
    ExternalRun: (
        _column("run_id"),
        _enum("state", "EXTERNAL_EVENT_TYPE", ExternalEventType, "r.state"),
        _column("job_namespace"),
        _column("job_name"),
        _column("first_event_time", "time"),
        _column("last_event_time", "time"),
    ),
}
FIELDS: dict[type, dict[str, FilterField]] = {
    kind: {column.field.name: column.field for column in columns} for kind, columns in COLUMNS.items()
}

Order = Sequence[tuple[str, bool]]  # expression, and whether it runs backwards


def order_of(kind: type, order_by: Order, key: Sequence[str]) -> list[tuple[str, bool]]:
    """The expressions of an order, and then those of a list's own that make it total, in the direction of the last."""
    sql = {column.field.name: column.sql for column in COLUMNS[kind]}
    row = "e" if kind is AuditEntry else "r"
    found = {sql[name]: backwards for name, backwards in order_by}
    last = order_by[-1][1] if order_by else key[0].startswith("-")
    for name in key:
        found.setdefault(f"{row}.{name.lstrip('-')}", last)
    return list(found.items())


def after_place(order: Order, names: Sequence[str]) -> str:
    """The condition that an item comes after a place, whose values are bound by these names."""
    if len({backwards for _, backwards in order}) == 1:  # one comparison, which an index may serve
        left, right = ", ".join(each for each, _ in order), ", ".join(f":{name}" for name in names)
        return f"({left}) {'<' if order[0][1] else '>'} ({right})"
    ways = []
    for at, (expression, backwards) in enumerate(order):
        equal = [f"{order[before][0]} = :{names[before]}" for before in range(at)]
        ways.append(" AND ".join([*equal, f"{expression} {'<' if backwards else '>'} :{names[at]}"]))
    return "(" + " OR ".join(f"({way})" for way in ways) + ")"


def condition(kind: type, tree: Filter, values: dict[str, Any]) -> str:
    """The condition of a filter of a kind; its values are added to those that the statement is given."""
    return _condition(tree, {column.field.name: column for column in COLUMNS[kind]}, values)


def _condition(tree: Filter, columns: Mapping[str, Column], values: dict[str, Any]) -> str:
    if isinstance(tree, Not):
        return f"NOT {_condition(tree.item, columns, values)}"
    if isinstance(tree, (And, Or)):
        word = " AND " if isinstance(tree, And) else " OR "
        return "(" + word.join(_condition(each, columns, values) for each in tree.items) + ")"
    return _term(tree, columns[tree.field], values)


def _term(term: Term, column: Column, values: dict[str, Any]) -> str:
    def bound(value: object, kind: str) -> str:
        name = f"filter_{len(values)}"
        values[name] = value
        return f"CAST(:{name} AS {kind})"

    kind = column.field.type
    if kind == "labels":
        label = f"'key', {bound(term.key, 'text')}"
        if term.operator != ":":
            label += f", 'value', {bound(term.value, 'text')}"
        found = f"({column.sql} @> jsonb_build_array(jsonb_build_object({label})))"
        return f"NOT {found}" if term.operator == "!=" else found
    if term.operator == ":":
        return f"(strpos({column.sql}, {bound(term.value, 'text')}) > 0)"
    type_ = {"integer": "bigint", "bool": "boolean"}.get(kind, "text")
    operator = "<>" if term.operator == "!=" else term.operator
    return f"({column.sql} {operator} {bound(term.value, type_)})"
