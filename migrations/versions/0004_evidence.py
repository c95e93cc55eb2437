"""Exports of evidence, and the way from an entry to the records that its change wrote."""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

# What an export covers, by its digest: the same export again writes an entry, and no second record.
EVIDENCE = [
    """
    CREATE TABLE animus.evidence (
      project_id text COLLATE "C" NOT NULL,
      run_id text COLLATE "C" GENERATED ALWAYS AS (animus.field(document, 'runId')) STORED NOT NULL,
      digest text COLLATE "C" GENERATED ALWAYS AS (animus.digest(document)) STORED NOT NULL,
      document bytea NOT NULL,
      entry_id text COLLATE "C" NOT NULL,
      written_in xid8 NOT NULL DEFAULT pg_current_xact_id(),
      FOREIGN KEY (project_id, entry_id, written_in) REFERENCES animus.audit_entry (project_id, entry_id, written_in),
      PRIMARY KEY (project_id, digest)
    )
    """,
    "ALTER TABLE animus.evidence ENABLE ROW LEVEL SECURITY",
    "ALTER TABLE animus.evidence FORCE ROW LEVEL SECURITY",
    "CREATE POLICY project ON animus.evidence"
    " USING (project_id = (SELECT animus.project_in_scope()))"
    " WITH CHECK (project_id = (SELECT animus.project_in_scope()))",
    "GRANT SELECT, INSERT (project_id, entry_id, document) ON animus.evidence TO animus_service",
    "CREATE TRIGGER immutable_row BEFORE UPDATE OR DELETE ON animus.evidence"
    " FOR EACH ROW EXECUTE FUNCTION animus.refuse_change()",
    "CREATE TRIGGER immutable_table BEFORE TRUNCATE ON animus.evidence"
    " FOR EACH STATEMENT EXECUTE FUNCTION animus.refuse_change()",
    "ALTER TABLE animus.evidence ENABLE ALWAYS TRIGGER immutable_row",
    "ALTER TABLE animus.evidence ENABLE ALWAYS TRIGGER immutable_table",
]

RECORDS = [
    "project", "token", "dataset", "dataset_version", "environment_lock", "pipeline_spec", "run_spec", "run",
    "execution_plan", "run_event", "artifact", "metric", "lineage_edge", "record_manifest", "log_key", "log_key_end",
    "log_epoch", "log_forfeit", "log_cosignature", "run_comparison", "evidence",
]  # fmt: skip


def upgrade() -> None:
    """Adds both."""
    # Transactions are numbered upwards: rows come to the end of the index, which costs a writer next to nothing.
    indexes = [f"CREATE INDEX ON animus.{table} (project_id, written_in)" for table in RECORDS]
    connection = op.get_bind()
    for statement in [*EVIDENCE, *indexes]:
        connection.exec_driver_sql(statement)
