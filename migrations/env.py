"""How Alembic applies the revisions; `animus.store.migrate` calls it with a connection of the database's owner."""

from collections.abc import Collection, Mapping
from typing import Any

from alembic import context
from alembic.runtime.migration import MigrationContext, MigrationInfo
from sqlalchemy import Connection, text

# The same for every release: two releases must not migrate one database at once.
LOCK = 0x616E696D7573  # "animus" in ASCII

connection: Connection = context.config.attributes["connection"]
applied: list[str] = context.config.attributes["applied"]


def note(ctx: MigrationContext, step: MigrationInfo, heads: Collection[Any], run_args: Mapping[str, Any]) -> None:
    """Records a revision once it is applied."""
    if step.up_revision_id is not None:
        applied.append(step.up_revision_id)


# A session lock, because it must outlast each revision's transaction; it goes with the connection, also in a crash.
connection.execute(text("SELECT pg_advisory_lock(:lock)"), {"lock": LOCK})
connection.execute(text("CREATE SCHEMA IF NOT EXISTS animus"))
connection.commit()
context.configure(
    connection=connection,
    target_metadata=None,
    transaction_per_migration=True,
    version_table_schema="animus",
    on_version_apply=note,
)
# Alembic reads the version only now, with the lock held: whoever waited finds nothing to do.
with context.begin_transaction():
    context.run_migrations()
