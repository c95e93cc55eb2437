"""Environment variables of steps that say where a secret is found."""

from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

# A spec is its document, and its digest stands in runs and entries: a variable that lacks the field cannot be given it.
# Row security hides every project's specs from the owner too, unless it is not forced; another connection waits until
# it is again.
REFUSE_OLD = """
    DO $$ BEGIN
      ALTER TABLE animus.pipeline_spec NO FORCE ROW LEVEL SECURITY;
      IF EXISTS (
        SELECT FROM animus.pipeline_spec
          WHERE jsonb_path_exists(
            convert_from(document, 'UTF8')::jsonb, '$.spec.steps[*].env[*] ? (!exists (@.secretRef))'
          )
      ) THEN
        RAISE EXCEPTION
          'this database has pipelines with environment variables without a secretRef: start with a new one';
      END IF;
      ALTER TABLE animus.pipeline_spec FORCE ROW LEVEL SECURITY;
    END $$
"""


def upgrade() -> None:
    """Refuses old variables."""
    op.get_bind().exec_driver_sql(REFUSE_OLD)
