"""Comparisons of runs: records like the others, named by their digest."""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

# As in the first revision: a row that a change wrote names the entry of its own transaction.
RUN_COMPARISON = """
    CREATE TABLE animus.run_comparison (
      project_id text COLLATE "C" NOT NULL,
      run_id text COLLATE "C" GENERATED ALWAYS AS (animus.field(document, 'runId')) STORED NOT NULL,
      other_run_id text COLLATE "C" GENERATED ALWAYS AS (animus.field(document, 'otherRunId')) STORED NOT NULL,
      digest text COLLATE "C" GENERATED ALWAYS AS (animus.digest(document)) STORED NOT NULL,
      document bytea NOT NULL,
      entry_id text COLLATE "C" NOT NULL,
      written_in xid8 NOT NULL DEFAULT pg_current_xact_id(),
      FOREIGN KEY (project_id, entry_id, written_in) REFERENCES animus.audit_entry (project_id, entry_id, written_in),
      FOREIGN KEY (project_id, run_id) REFERENCES animus.run (project_id, run_id),
      FOREIGN KEY (project_id, other_run_id) REFERENCES animus.run (project_id, run_id),
      PRIMARY KEY (project_id, digest)
    )
"""

# Isolation by project, insert and select only, and triggers that hold for owners and replication roles too.
PROTECT = [
    "ALTER TABLE animus.run_comparison ENABLE ROW LEVEL SECURITY",
    "ALTER TABLE animus.run_comparison FORCE ROW LEVEL SECURITY",
    "CREATE POLICY project ON animus.run_comparison"
    " USING (project_id = (SELECT animus.project_in_scope()))"
    " WITH CHECK (project_id = (SELECT animus.project_in_scope()))",
    "CREATE TRIGGER immutable_row BEFORE UPDATE OR DELETE ON animus.run_comparison"
    " FOR EACH ROW EXECUTE FUNCTION animus.refuse_change()",
    "CREATE TRIGGER immutable_table BEFORE TRUNCATE ON animus.run_comparison"
    " FOR EACH STATEMENT EXECUTE FUNCTION animus.refuse_change()",
    "ALTER TABLE animus.run_comparison ENABLE ALWAYS TRIGGER immutable_row",
    "ALTER TABLE animus.run_comparison ENABLE ALWAYS TRIGGER immutable_table",
    "GRANT SELECT, INSERT (project_id, entry_id, document) ON animus.run_comparison TO animus_service",
]


def upgrade() -> None:
    """Adds the table of comparisons."""
    connection = op.get_bind()
    for statement in [RUN_COMPARISON, *PROTECT]:
        connection.exec_driver_sql(statement)
