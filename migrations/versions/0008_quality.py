"""Quality: rules, profiles of dataset versions, and the verdicts of the one on the other."""

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def column(name: str, path: str, kind: str = "text") -> str:
    """A generated column."""
    collation = ' COLLATE "C"' if kind == "text" else ""
    value = f"animus.field(document, '{path}')::{kind}"
    return f"{name} {kind}{collation} GENERATED ALWAYS AS ({value}) STORED NOT NULL,"


OF_VERSION = """
      FOREIGN KEY (project_id, dataset_id, content_digest)
        REFERENCES animus.dataset_version (project_id, dataset_id, content_digest),
"""
VERSION = column("dataset_id", "datasetId") + column("content_digest", "contentDigest")

# Columns, and what they refer to. Another tool's verdict names a rule and an answer that are no records here.
TABLES = {
    "quality_rule": (
        column("rule_id", "ruleId") + column("description", "description") + column("labels", "labels", "jsonb"),
        "",
    ),
    "quality_profile": (
        VERSION + column("profiler", "profiler") + column("row_count", "rowCount", "bigint"),
        OF_VERSION,
    ),
    "quality_evaluation": (
        VERSION
        + column("rule_digest", "ruleDigest")
        + column("rule_name", "ruleName")
        + column("evaluator", "evaluator")
        + column("evaluate_time", "evaluateTime")
        + column("verdict", "verdict"),
        OF_VERSION,
    ),
}

INDEXES = {
    "quality_rule": ["rule_id, digest"],
    "quality_profile": ["dataset_id, content_digest, digest"],
    "quality_evaluation": [
        "dataset_id, content_digest, evaluate_time DESC, digest DESC",
        # The newest of a rule and evaluator is what a gate reads.
        "dataset_id, content_digest, rule_digest, evaluator, evaluate_time DESC, digest DESC",
    ],
}


def statements(table: str) -> list[str]:
    """What makes a table of documents by their digests, and its indexes."""
    columns, references = TABLES[table]
    return [
        f"""
        CREATE TABLE animus.{table} (
          project_id text COLLATE "C" NOT NULL,
          {columns}
          digest text COLLATE "C" GENERATED ALWAYS AS (animus.digest(document)) STORED NOT NULL,
          document bytea NOT NULL,
          entry_id text COLLATE "C" NOT NULL,
          written_in xid8 NOT NULL DEFAULT pg_current_xact_id(),
          FOREIGN KEY (project_id, entry_id, written_in)
            REFERENCES animus.audit_entry (project_id, entry_id, written_in),
          {references}
          PRIMARY KEY (project_id, digest)
        )
        """,
        f"ALTER TABLE animus.{table} ENABLE ROW LEVEL SECURITY",
        f"ALTER TABLE animus.{table} FORCE ROW LEVEL SECURITY",
        f"CREATE POLICY project ON animus.{table}"
        " USING (project_id = (SELECT animus.project_in_scope()))"
        " WITH CHECK (project_id = (SELECT animus.project_in_scope()))",
        f"GRANT SELECT, INSERT (project_id, entry_id, document) ON animus.{table} TO animus_service",
        f"CREATE TRIGGER immutable_row BEFORE UPDATE OR DELETE ON animus.{table}"
        " FOR EACH ROW EXECUTE FUNCTION animus.refuse_change()",
        f"CREATE TRIGGER immutable_table BEFORE TRUNCATE ON animus.{table}"
        " FOR EACH STATEMENT EXECUTE FUNCTION animus.refuse_change()",
        f"ALTER TABLE animus.{table} ENABLE ALWAYS TRIGGER immutable_row",
        f"ALTER TABLE animus.{table} ENABLE ALWAYS TRIGGER immutable_table",
        *(f"CREATE INDEX ON animus.{table} (project_id, {columns})" for columns in INDEXES[table]),
        f"CREATE INDEX ON animus.{table} (project_id, written_in)",
    ]


def upgrade() -> None:
    """Adds the three tables."""
    connection = op.get_bind()
    for table in TABLES:
        for statement in statements(table):
            connection.exec_driver_sql(statement)
