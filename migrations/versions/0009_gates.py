"""Quality gates, and the runs that they refused."""

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

# The run's document has other fields than before, and documents never change. The owner sees no row of a table that
# forces its policies on it.
REFUSE_OLD = """
    DO $$ BEGIN
      ALTER TABLE animus.run NO FORCE ROW LEVEL SECURITY;
      IF EXISTS (SELECT FROM animus.run) THEN
        RAISE EXCEPTION 'this database has runs that were made before gates were: start with a new one';
      END IF;
      ALTER TABLE animus.run FORCE ROW LEVEL SECURITY;
    END $$
"""


def column(name: str, path: str, kind: str = "text") -> str:
    """A generated column."""
    collation = ' COLLATE "C"' if kind == "text" else ""
    value = f"animus.field(document, '{path}')::{kind}"
    return f"{name} {kind}{collation} GENERATED ALWAYS AS ({value}) STORED NOT NULL,"


# Columns and key. A gate is named by its digest; refusals may be the same but for the entry.
TABLES = {
    "quality_gate": (
        column("pipeline", "pipeline")
        + column("override_allowed", "overrideAllowed", "boolean")
        + column("set_time", "setTime"),
        "digest",
    ),
    "admission_refusal": (
        column("run_spec_digest", "runSpecDigest")
        + column("pipeline_spec_digest", "pipelineSpecDigest")
        + column("replay_of", "replayOf")
        + column("refuse_time", "refuseTime"),
        "entry_id",
    ),
}

INDEXES = {
    "quality_gate": ["pipeline, set_time DESC, digest DESC", "set_time DESC, digest DESC"],
    "admission_refusal": ["refuse_time DESC, entry_id DESC"],
}


def statements(table: str) -> list[str]:
    """What makes a table of documents, and its indexes."""
    columns, key = TABLES[table]
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
          PRIMARY KEY (project_id, {key})
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
    """Adds the two tables, to a database without runs."""
    connection = op.get_bind()
    connection.exec_driver_sql(REFUSE_OLD)
    for table in TABLES:
        for statement in statements(table):
            connection.exec_driver_sql(statement)
