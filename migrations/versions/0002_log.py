"""The Merkle log: leaves, tiles and heads over the audit entries of each project.

What proves the record lives here and is itself proven: leaves, tiles and states follow from the entries, and
checkpoints are signed by a key that the database does not have. `project_id` is a project, or `instance` for the log
whose leaves are the projects' checkpoints.
"""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

REFUSE_OLD = """
    DO $$ BEGIN
      PERFORM set_config('animus.every_project', 'on', true);
      IF EXISTS (SELECT FROM animus.audit_entry) THEN
        RAISE EXCEPTION 'this database was made before the log was: start with a new one';
      END IF;
    END $$
"""

# As in the first revision: a row that a change wrote names the entry of its own transaction.
ENTRY_COLUMNS = """
      entry_id text COLLATE "C" NOT NULL,
      written_in xid8 NOT NULL DEFAULT pg_current_xact_id(),
      FOREIGN KEY (project_id, entry_id, written_in) REFERENCES animus.audit_entry (project_id, entry_id, written_in)
"""

QUEUE = [
    "DROP TABLE animus.audit_queue",
    # A leaf is at most what C2SP tlog-tiles can carry.
    "ALTER TABLE animus.audit_entry ADD CHECK (octet_length(document) <= 65535)",
    # `seal` is a MAC under a key that the database does not have: a row that a superuser made up does not pass.
    f"""
    CREATE TABLE animus.audit_queue (
      project_id text COLLATE "C" NOT NULL,
      leaf_hash bytea NOT NULL CHECK (octet_length(leaf_hash) = 32),
      seal bytea NOT NULL,
      enqueue_time timestamptz NOT NULL DEFAULT now(),
      {ENTRY_COLUMNS},
      PRIMARY KEY (project_id, entry_id)
    ) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_cost_delay = 0)
    """,
    # A transaction that began after another had committed has the larger number: the order of the log keeps that.
    "CREATE INDEX ON animus.audit_queue (written_in, entry_id)",
    """
    CREATE TABLE animus.log_quarantine (
      project_id text COLLATE "C" NOT NULL,
      entry_id text COLLATE "C" NOT NULL,
      leaf_hash bytea NOT NULL,
      seal bytea NOT NULL,
      problem text NOT NULL,
      quarantine_time timestamptz NOT NULL DEFAULT now(),
      PRIMARY KEY (project_id, entry_id)
    )
    """,
]

LOG = [
    # The one server that writes the log. `fence` goes up with each change of hands. While `problem` says why nothing
    # can be signed, no server takes a change.
    """
    CREATE TABLE animus.log_lead (
      project_id text COLLATE "C" PRIMARY KEY CHECK (project_id = 'instance'),
      holder text NOT NULL,
      fence bigint NOT NULL,
      renew_time timestamptz NOT NULL,
      problem text NOT NULL DEFAULT ''
    )
    """,
    """
    CREATE TABLE animus.log_state (
      project_id text COLLATE "C" PRIMARY KEY,
      size bigint NOT NULL,
      hashes bytea NOT NULL,
      published_size bigint NOT NULL DEFAULT 0,
      grow_time timestamptz,
      fence bigint NOT NULL
    )
    """,
    """
    CREATE TABLE animus.log_leaf (
      project_id text COLLATE "C" NOT NULL,
      index bigint NOT NULL,
      entry_id text COLLATE "C" NOT NULL,
      leaf_hash bytea NOT NULL,
      PRIMARY KEY (project_id, index),
      UNIQUE (project_id, entry_id)
    )
    """,
    """
    CREATE TABLE animus.log_tile (
      project_id text COLLATE "C" NOT NULL,
      level integer NOT NULL,
      index bigint NOT NULL,
      root bytea NOT NULL,
      hashes bytea NOT NULL CHECK (octet_length(hashes) = 8192),
      PRIMARY KEY (project_id, level, index)
    )
    """,
    "ALTER TABLE animus.log_tile ALTER COLUMN hashes SET STORAGE EXTERNAL",  # hashes do not compress
    """
    CREATE TABLE animus.log_checkpoint (
      project_id text COLLATE "C" NOT NULL,
      epoch bigint NOT NULL,
      size bigint NOT NULL,
      note bytea NOT NULL,
      create_time timestamptz NOT NULL DEFAULT now(),
      PRIMARY KEY (project_id, epoch, size)
    )
    """,
]


def record_table(name: str, columns: str, key: str) -> str:
    """A table of documents, as in the first revision; `columns` are generated from the document."""
    return f"""
    CREATE TABLE animus.{name} (
      project_id text COLLATE "C" NOT NULL,
      {columns}
      digest text COLLATE "C" GENERATED ALWAYS AS (animus.digest(document)) STORED NOT NULL,
      document bytea NOT NULL,
      {ENTRY_COLUMNS},
      PRIMARY KEY ({key})
    )
    """


def column(name: str, kind: str, path: str) -> str:
    """A generated column."""
    collate = ' COLLATE "C"' if kind == "text" else ""
    return f"{name} {kind}{collate} GENERATED ALWAYS AS (animus.field(document, '{path}')::{kind}) STORED NOT NULL,"


RECORDS = {
    "record_manifest": record_table("record_manifest", "", "project_id, entry_id"),
    "log_key": record_table("log_key", column("public_key", "text", "publicKey"), "project_id, public_key"),
    "log_key_end": record_table(
        "log_key_end",
        column("public_key", "text", "publicKey") + column("status", "text", "status"),
        "project_id, public_key, status",
    ),
    # The instance's epochs stand in the system project, under the log that they are of.
    "log_epoch": record_table(
        "log_epoch",
        column("log", "text", "projectId") + column("epoch", "bigint", "epoch"),
        "project_id, log, epoch",
    ),
    "log_forfeit": record_table("log_forfeit", column("forfeited_id", "text", "entryId"), "project_id, forfeited_id"),
    "log_cosignature": record_table(
        "log_cosignature",
        column("log", "text", "projectId")
        + column("epoch", "bigint", "epoch")
        + column("size", "bigint", "size")
        + column("vkey", "text", "vkey"),
        "project_id, log, epoch, size, vkey",
    ),
}

GRANTS = {
    "audit_queue": "SELECT, DELETE, INSERT (project_id, entry_id, leaf_hash, seal)",
    "log_quarantine": "SELECT, DELETE, INSERT (project_id, entry_id, leaf_hash, seal, problem)",
    "log_lead": "SELECT, INSERT (project_id, holder, fence, renew_time), UPDATE",
    "log_state": "SELECT, INSERT (project_id, size, hashes, grow_time, fence), UPDATE",
    "log_leaf": "SELECT, INSERT",
    "log_tile": "SELECT, INSERT",
    "log_checkpoint": "SELECT, INSERT (project_id, epoch, size, note)",
    **dict.fromkeys(RECORDS, "SELECT, INSERT (project_id, entry_id, document)"),
}
# What an UPDATE or DELETE is refused on, by trigger, to the owner and the superuser too.
KEPT = ["log_leaf", "log_tile", "log_checkpoint", *RECORDS]
# The integrator and the publisher work for all projects at once; the setting is asked for once in a statement.
OF_THE_LOG = [
    "audit_queue", "log_quarantine", "log_lead", "log_state", "log_leaf", "log_tile", "log_checkpoint", "log_epoch",
    "log_forfeit", "log_cosignature",
]  # fmt: skip


def protect(table: str) -> list[str]:
    """Isolation by project, and the grants."""
    return [
        f"ALTER TABLE animus.{table} ENABLE ROW LEVEL SECURITY",
        f"ALTER TABLE animus.{table} FORCE ROW LEVEL SECURITY",
        f"CREATE POLICY project ON animus.{table}"
        " USING (project_id = (SELECT animus.project_in_scope()))"
        " WITH CHECK (project_id = (SELECT animus.project_in_scope()))",
        f"GRANT {GRANTS[table]} ON animus.{table} TO animus_service",
    ]


def keep(table: str) -> list[str]:
    """Triggers that hold for owners and replication roles too."""
    return [
        f"CREATE TRIGGER immutable_row BEFORE UPDATE OR DELETE ON animus.{table}"
        " FOR EACH ROW EXECUTE FUNCTION animus.refuse_change()",
        f"CREATE TRIGGER immutable_table BEFORE TRUNCATE ON animus.{table}"
        " FOR EACH STATEMENT EXECUTE FUNCTION animus.refuse_change()",
        f"ALTER TABLE animus.{table} ENABLE ALWAYS TRIGGER immutable_row",
        f"ALTER TABLE animus.{table} ENABLE ALWAYS TRIGGER immutable_table",
    ]


def of_the_log(table: str) -> str:
    """Lets the log's own workers see every project's rows."""
    return (
        f"CREATE POLICY every_project ON animus.{table}"
        " USING ((SELECT current_setting('animus.every_project', true)) = 'on')"
        " WITH CHECK ((SELECT current_setting('animus.every_project', true)) = 'on')"
    )


OPEN = [
    # For a caller in the scope of one project, whom the text of the problem does not concern.
    """
    CREATE FUNCTION animus.log_sound() RETURNS boolean LANGUAGE plpgsql AS $$
    DECLARE
      sound boolean;
    BEGIN
      PERFORM set_config('animus.every_project', 'on', true);
      SELECT NOT EXISTS (SELECT FROM animus.log_lead WHERE problem <> '') INTO sound;
      PERFORM set_config('animus.every_project', '', true);
      RETURN sound;
    END $$
    """,
    # As before, what the receipt of an earlier answer is made of, and whether a change may be taken.
    "DROP FUNCTION animus.open_call",
    """
    CREATE FUNCTION animus.open_call(p_project text, p_method text, p_request_id text,
      OUT call_time text, OUT project_known boolean, OUT first_request bytea, OUT first_reply bytea,
      OUT first_entry_id text, OUT first_entry_time text, OUT first_leaf_hash bytea, OUT log_sound boolean)
    LANGUAGE plpgsql AS $$
    BEGIN
      PERFORM set_config('animus.project_id', p_project, true);
      log_sound := p_method = '' OR animus.log_sound(); -- a read has no method
      call_time := to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"');
      project_known := EXISTS (SELECT FROM animus.project p WHERE p.project_id = p_project);
      SELECT i.request, i.reply, i.entry_id INTO first_request, first_reply, first_entry_id FROM animus.idempotency i
        WHERE i.project_id = p_project AND i.method = p_method AND i.request_id = p_request_id;
      IF first_entry_id IS NOT NULL THEN
        SELECT e.time, e.leaf_hash INTO first_entry_time, first_leaf_hash FROM animus.audit_entry e
          WHERE e.project_id = p_project AND e.entry_id = first_entry_id;
      END IF;
    END $$
    """,
    # Opens a transaction that writes the log: the fence if this server leads, NULL if another does. The lock keeps out
    # others for this transaction, the row says who goes on; a holder that does not renew for two seconds has lost it.
    """
    CREATE FUNCTION animus.lead_log(p_holder text) RETURNS bigint LANGUAGE plpgsql AS $$
    DECLARE
      led bigint;
    BEGIN
      PERFORM set_config('animus.every_project', 'on', true);
      PERFORM set_config('idle_in_transaction_session_timeout', '5000', true);
      IF NOT pg_try_advisory_xact_lock(x'616E696D75736C67'::bigint) THEN
        RETURN NULL;
      END IF;
      SELECT l.fence INTO led FROM animus.log_lead l
        WHERE l.holder = p_holder AND l.renew_time > clock_timestamp() - interval '500 milliseconds';
      IF led IS NOT NULL THEN
        RETURN led; -- renewed a moment ago: a server with nothing to do writes twice a second, not ten times
      END IF;
      INSERT INTO animus.log_lead AS l (project_id, holder, fence, renew_time)
        VALUES ('instance', p_holder, 1, clock_timestamp())
        ON CONFLICT (project_id) DO UPDATE
          SET holder = p_holder, renew_time = clock_timestamp(),
            fence = l.fence + CASE WHEN l.holder = p_holder THEN 0 ELSE 1 END
          WHERE l.holder = p_holder OR l.renew_time < clock_timestamp() - interval '2 seconds'
        RETURNING l.fence INTO led;
      RETURN led;
    END $$
    """,
]


def upgrade() -> None:
    """Adds the log."""
    statements = [REFUSE_OLD, *QUEUE, *LOG, *RECORDS.values()]
    for table in GRANTS:
        statements += protect(table)
    for table in KEPT:
        statements += keep(table)
    statements += [of_the_log(table) for table in OF_THE_LOG]
    connection = op.get_bind()
    for statement in [*statements, *OPEN]:
        connection.exec_driver_sql(statement)
