"""What lists are filtered by, as columns: a condition then reads no document that may be large."""

from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

TEXT = """text COLLATE "C" GENERATED ALWAYS AS (animus.field(document, {path})) STORED"""
BIGINT = "bigint GENERATED ALWAYS AS (animus.field(document, {path})::bigint) STORED"
LABELS = "jsonb GENERATED ALWAYS AS (animus.field(document, {path})::jsonb) STORED"

# table: column, its form and its path in the document
COLUMNS = {
    "project": [("labels", LABELS, "'labels'")],
    "dataset": [("labels", LABELS, "'labels'")],
    "dataset_version": [
        ("size_bytes", BIGINT, "'sizeBytes'"),
        ("row_count", BIGINT, "'rowCount'"),
        ("media_type", TEXT, "'mediaType'"),
        ("source", TEXT, "'source'"),
        ("licence", TEXT, "'licence'"),
        ("labels", LABELS, "'labels'"),
    ],
    "environment_lock": [
        ("python_version", TEXT, "'pythonVersion'"),
        ("platform_os", TEXT, "'platformOs'"),
        ("platform_architecture", TEXT, "'platformArchitecture'"),
        ("lock_file_digest", TEXT, "'lockFileDigest'"),
    ],
    "pipeline_spec": [("labels", LABELS, "'metadata', 'labels'")],
    "run_spec": [
        ("pipeline_spec_digest", TEXT, "'pipelineSpecDigest'"),
        ("environment_lock_digest", TEXT, "'environmentLockDigest'"),
        ("commit_sha", TEXT, "'commit', 'sha'"),
    ],
    "run": [("labels", LABELS, "'labels'"), ("replay_of", TEXT, "'replayOf'")],
}


def upgrade() -> None:
    """Adds the columns; PostgreSQL writes each table anew, under its lock."""
    connection = op.get_bind()
    for table, columns in COLUMNS.items():
        added = ", ".join(f"ADD COLUMN {name} {form.format(path=path)}" for name, form, path in columns)
        connection.exec_driver_sql(f"ALTER TABLE animus.{table} {added}")
