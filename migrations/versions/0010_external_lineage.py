"""OpenLineage events of other systems."""

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

# An event by its digest: the same sent again writes an entry, and no second record.
EXTERNAL_EVENT = [
    """
    CREATE TABLE animus.external_event (
      project_id text COLLATE "C" NOT NULL,
      run_id text COLLATE "C" GENERATED ALWAYS AS (animus.field(document, 'runId')) STORED NOT NULL,
      event_time text COLLATE "C" GENERATED ALWAYS AS (animus.field(document, 'eventTime')) STORED NOT NULL,
      event_type text COLLATE "C" GENERATED ALWAYS AS (animus.field(document, 'eventType')) STORED NOT NULL,
      job_namespace text COLLATE "C" GENERATED ALWAYS AS (animus.field(document, 'jobNamespace')) STORED NOT NULL,
      job_name text COLLATE "C" GENERATED ALWAYS AS (animus.field(document, 'jobName')) STORED NOT NULL,
      digest text COLLATE "C" GENERATED ALWAYS AS (animus.digest(document)) STORED NOT NULL,
      document bytea NOT NULL,
      entry_id text COLLATE "C" NOT NULL,
      written_in xid8 NOT NULL DEFAULT pg_current_xact_id(),
      FOREIGN KEY (project_id, entry_id, written_in) REFERENCES animus.audit_entry (project_id, entry_id, written_in),
      PRIMARY KEY (project_id, digest)
    )
    """,
    "ALTER TABLE animus.external_event ENABLE ROW LEVEL SECURITY",
    "ALTER TABLE animus.external_event FORCE ROW LEVEL SECURITY",
    "CREATE POLICY project ON animus.external_event"
    " USING (project_id = (SELECT animus.project_in_scope()))"
    " WITH CHECK (project_id = (SELECT animus.project_in_scope()))",
    "GRANT SELECT, INSERT (project_id, entry_id, document) ON animus.external_event TO animus_service",
    "CREATE TRIGGER immutable_row BEFORE UPDATE OR DELETE ON animus.external_event"
    " FOR EACH ROW EXECUTE FUNCTION animus.refuse_change()",
    "CREATE TRIGGER immutable_table BEFORE TRUNCATE ON animus.external_event"
    " FOR EACH STATEMENT EXECUTE FUNCTION animus.refuse_change()",
    "ALTER TABLE animus.external_event ENABLE ALWAYS TRIGGER immutable_row",
    "ALTER TABLE animus.external_event ENABLE ALWAYS TRIGGER immutable_table",
    # A run's events in their order; with the type, its state follows from the index alone.
    "CREATE INDEX ON animus.external_event (project_id, run_id, event_time, digest) INCLUDE (event_type)",
    "CREATE INDEX ON animus.external_event (project_id, written_in)",
]


def upgrade() -> None:
    """Adds the table of events."""
    connection = op.get_bind()
    for statement in EXTERNAL_EVENT:
        connection.exec_driver_sql(statement)
