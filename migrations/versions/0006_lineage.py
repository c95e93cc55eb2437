"""Lineage in both directions: the ends of edges in an index, and dataset versions by content."""

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

STATEMENTS = [
    # A walk joins a dataset version to the artifact of the same content.
    "CREATE INDEX ON animus.dataset_version (project_id, content_digest)",
]


def upgrade() -> None:
    """Adds them."""
    connection = op.get_bind()
    for statement in STATEMENTS:
        connection.exec_driver_sql(statement)
