"""Dataset versions that say where they come from and what they were made from, and URIs apart from them."""

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

# A version is its document: what was written in the old fields cannot be read in the new ones. Row security hides the
# versions of every project from the owner too, unless it is not forced; another connection waits until it is again.
REFUSE_OLD = [
    "ALTER TABLE animus.dataset_version NO FORCE ROW LEVEL SECURITY",
    """
    DO $$ BEGIN
      IF EXISTS (SELECT FROM animus.dataset_version) THEN
        RAISE EXCEPTION 'this database has dataset versions with a URI inside: start with a new one';
      END IF;
    END $$
    """,
    "ALTER TABLE animus.dataset_version FORCE ROW LEVEL SECURITY",
]

# The highest sequence governs; its key refuses a second writer, who decides again.
DATASET_VERSION_URIS = [
    """
    CREATE TABLE animus.dataset_version_uris (
      project_id text COLLATE "C" NOT NULL,
      dataset_id text COLLATE "C" GENERATED ALWAYS AS (animus.field(document, 'datasetId')) STORED NOT NULL,
      content_digest text COLLATE "C" GENERATED ALWAYS AS (animus.field(document, 'contentDigest')) STORED NOT NULL,
      sequence bigint GENERATED ALWAYS AS (animus.field(document, 'sequence')::bigint) STORED NOT NULL,
      digest text COLLATE "C" GENERATED ALWAYS AS (animus.digest(document)) STORED NOT NULL,
      document bytea NOT NULL,
      entry_id text COLLATE "C" NOT NULL,
      written_in xid8 NOT NULL DEFAULT pg_current_xact_id(),
      FOREIGN KEY (project_id, entry_id, written_in) REFERENCES animus.audit_entry (project_id, entry_id, written_in),
      FOREIGN KEY (project_id, dataset_id, content_digest)
        REFERENCES animus.dataset_version (project_id, dataset_id, content_digest),
      PRIMARY KEY (project_id, dataset_id, content_digest, sequence)
    )
    """,
    "ALTER TABLE animus.dataset_version_uris ENABLE ROW LEVEL SECURITY",
    "ALTER TABLE animus.dataset_version_uris FORCE ROW LEVEL SECURITY",
    "CREATE POLICY project ON animus.dataset_version_uris"
    " USING (project_id = (SELECT animus.project_in_scope()))"
    " WITH CHECK (project_id = (SELECT animus.project_in_scope()))",
    "GRANT SELECT, INSERT (project_id, entry_id, document) ON animus.dataset_version_uris TO animus_service",
    "CREATE TRIGGER immutable_row BEFORE UPDATE OR DELETE ON animus.dataset_version_uris"
    " FOR EACH ROW EXECUTE FUNCTION animus.refuse_change()",
    "CREATE TRIGGER immutable_table BEFORE TRUNCATE ON animus.dataset_version_uris"
    " FOR EACH STATEMENT EXECUTE FUNCTION animus.refuse_change()",
    "ALTER TABLE animus.dataset_version_uris ENABLE ALWAYS TRIGGER immutable_row",
    "ALTER TABLE animus.dataset_version_uris ENABLE ALWAYS TRIGGER immutable_table",
    "CREATE INDEX ON animus.dataset_version_uris (project_id, written_in)",
]


def upgrade() -> None:
    """Refuses old versions, and adds the table of URIs."""
    connection = op.get_bind()
    for statement in [*REFUSE_OLD, *DATASET_VERSION_URIS]:
        connection.exec_driver_sql(statement)
