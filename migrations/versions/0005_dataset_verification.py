"""Verifications of copies of dataset versions."""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

# Each is a row of its own, by its entry: the same copy may be found whole today and again tomorrow.
DATASET_VERIFICATION = [
    """
    CREATE TABLE animus.dataset_verification (
      project_id text COLLATE "C" NOT NULL,
      dataset_id text COLLATE "C" GENERATED ALWAYS AS (animus.field(document, 'datasetId')) STORED NOT NULL,
      content_digest text COLLATE "C" GENERATED ALWAYS AS (animus.field(document, 'contentDigest')) STORED NOT NULL,
      verify_time text COLLATE "C" GENERATED ALWAYS AS (animus.field(document, 'verifyTime')) STORED NOT NULL,
      digest text COLLATE "C" GENERATED ALWAYS AS (animus.digest(document)) STORED NOT NULL,
      document bytea NOT NULL,
      entry_id text COLLATE "C" NOT NULL,
      written_in xid8 NOT NULL DEFAULT pg_current_xact_id(),
      FOREIGN KEY (project_id, entry_id, written_in) REFERENCES animus.audit_entry (project_id, entry_id, written_in),
      FOREIGN KEY (project_id, dataset_id, content_digest)
        REFERENCES animus.dataset_version (project_id, dataset_id, content_digest),
      PRIMARY KEY (project_id, entry_id)
    )
    """,
    "ALTER TABLE animus.dataset_verification ENABLE ROW LEVEL SECURITY",
    "ALTER TABLE animus.dataset_verification FORCE ROW LEVEL SECURITY",
    "CREATE POLICY project ON animus.dataset_verification"
    " USING (project_id = (SELECT animus.project_in_scope()))"
    " WITH CHECK (project_id = (SELECT animus.project_in_scope()))",
    "GRANT SELECT, INSERT (project_id, entry_id, document) ON animus.dataset_verification TO animus_service",
    "CREATE TRIGGER immutable_row BEFORE UPDATE OR DELETE ON animus.dataset_verification"
    " FOR EACH ROW EXECUTE FUNCTION animus.refuse_change()",
    "CREATE TRIGGER immutable_table BEFORE TRUNCATE ON animus.dataset_verification"
    " FOR EACH STATEMENT EXECUTE FUNCTION animus.refuse_change()",
    "ALTER TABLE animus.dataset_verification ENABLE ALWAYS TRIGGER immutable_row",
    "ALTER TABLE animus.dataset_verification ENABLE ALWAYS TRIGGER immutable_table",
    "CREATE INDEX ON animus.dataset_verification"
    " (project_id, dataset_id, content_digest, verify_time DESC, entry_id DESC)",
    "CREATE INDEX ON animus.dataset_verification (project_id, written_in)",
]


def upgrade() -> None:
    """Adds the table of verifications."""
    connection = op.get_bind()
    for statement in DATASET_VERIFICATION:
        connection.exec_driver_sql(statement)
