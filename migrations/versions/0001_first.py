"""The first schema: records as the bytes that were hashed, audit on every write, isolation by project.

Every record table has the same shape. The row is its canonical document; every other column is generated from it by
the database, so that no column can disagree with what was hashed. `entry_id` and `written_in` name the audit entry of
the row's own transaction: a row without one is refused by its foreign key. `written_in` takes its default only, since
the service role may not name it.
"""

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

ROLE_MISSING = "create the role animus_service first (deploy/postgres), then run animus migrate again"

PREPARE = [
    f"""
    DO $$ BEGIN
      IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'animus_service') THEN
        RAISE EXCEPTION '{ROLE_MISSING}';
      END IF;
    END $$
    """,
    "GRANT USAGE ON SCHEMA animus TO animus_service",
    "GRANT SELECT ON animus.alembic_version TO animus_service",
    """
    CREATE FUNCTION animus.field(document bytea, VARIADIC path text[]) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN convert_from(document, 'UTF8')::jsonb #>> path
    """,
    """
    CREATE FUNCTION animus.digest(document bytea) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN 'sha256:' || encode(sha256(document), 'hex')
    """,
    # After a transaction-local setting, a pooled connection reads '' where it once read NULL: both mean no project.
    """
    CREATE FUNCTION animus.project_in_scope() RETURNS text
    LANGUAGE sql STABLE PARALLEL SAFE RETURN nullif(current_setting('animus.project_id', true), '')
    """,
    """
    CREATE FUNCTION animus.refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
      RAISE EXCEPTION 'animus.% keeps what was written: % refused', TG_TABLE_NAME, TG_OP USING ERRCODE = '42501';
    END $$
    """,
]

AUDIT_ENTRY = """
    CREATE TABLE animus.audit_entry (
      project_id text COLLATE "C" NOT NULL,
      entry_id text COLLATE "C" GENERATED ALWAYS AS (animus.field(document, 'entryId')) STORED NOT NULL,
      time text COLLATE "C" GENERATED ALWAYS AS (animus.field(document, 'time')) STORED NOT NULL,
      principal text COLLATE "C" GENERATED ALWAYS AS (animus.field(document, 'principal')) STORED NOT NULL,
      resource text COLLATE "C" GENERATED ALWAYS AS (animus.field(document, 'resource')) STORED NOT NULL,
      outcome text COLLATE "C" GENERATED ALWAYS AS (animus.field(document, 'outcome')) STORED NOT NULL,
      leaf_hash bytea GENERATED ALWAYS AS (sha256('\\x00'::bytea || document)) STORED NOT NULL,
      written_in xid8 NOT NULL DEFAULT pg_current_xact_id(),
      document bytea NOT NULL,
      PRIMARY KEY (project_id, entry_id),
      UNIQUE (project_id, entry_id, written_in),
      CHECK (project_id = animus.field(document, 'projectId'))
    )
"""

ENTRY_COLUMNS = """
      entry_id text COLLATE "C" NOT NULL,
      written_in xid8 NOT NULL DEFAULT pg_current_xact_id(),
      FOREIGN KEY (project_id, entry_id, written_in) REFERENCES animus.audit_entry (project_id, entry_id, written_in)
"""

AUDIT_QUEUE = f"""
    CREATE TABLE animus.audit_queue (
      project_id text COLLATE "C" NOT NULL,
      {ENTRY_COLUMNS},
      PRIMARY KEY (project_id, entry_id)
    )
"""

IDEMPOTENCY = f"""
    CREATE TABLE animus.idempotency (
      project_id text COLLATE "C" NOT NULL,
      method text COLLATE "C" NOT NULL,
      request_id text COLLATE "C" NOT NULL,
      request bytea NOT NULL,
      request_digest text COLLATE "C" GENERATED ALWAYS AS (animus.digest(request)) STORED NOT NULL,
      reply bytea NOT NULL,
      {ENTRY_COLUMNS},
      PRIMARY KEY (project_id, method, request_id)
    )
"""


def record_table(name: str, columns: dict[str, str], *constraints: str) -> str:
    """A table of documents. `columns`: generated columns, as `type = path of the document`."""
    generated = []
    for column, rule in columns.items():
        kind, path = rule.split(" = ")
        keys = ", ".join(f"'{key}'" for key in path.split("."))
        collate = ' COLLATE "C"' if kind == "text" else ""
        generated.append(
            f"{column} {kind}{collate} GENERATED ALWAYS AS (animus.field(document, {keys})::{kind}) STORED"
        )
    parts = [
        'project_id text COLLATE "C" NOT NULL',
        *generated,
        'digest text COLLATE "C" GENERATED ALWAYS AS (animus.digest(document)) STORED NOT NULL',
        "document bytea NOT NULL",
        ENTRY_COLUMNS.strip(),
        *constraints,
    ]
    return f"CREATE TABLE animus.{name} ({', '.join(parts)})"


RECORDS = {
    "project": record_table(
        "project",
        {"id": "text = projectId"},
        "PRIMARY KEY (project_id)",
        "CHECK (id = project_id)",
    ),
    "token": record_table(
        "token",
        {"token_digest": "text = tokenDigest"},
        "PRIMARY KEY (project_id, token_digest)",
    ),
    "dataset": record_table(
        "dataset",
        {"dataset_id": "text = datasetId"},
        "PRIMARY KEY (project_id, dataset_id)",
    ),
    "dataset_version": record_table(
        "dataset_version",
        {"dataset_id": "text = datasetId", "content_digest": "text = contentDigest"},
        "PRIMARY KEY (project_id, dataset_id, content_digest)",
        "FOREIGN KEY (project_id, dataset_id) REFERENCES animus.dataset (project_id, dataset_id)",
    ),
    "environment_lock": record_table("environment_lock", {}, "PRIMARY KEY (project_id, digest)"),
    "pipeline_spec": record_table(
        "pipeline_spec", {"name": "text = metadata.name"}, "PRIMARY KEY (project_id, digest)"
    ),
    "run_spec": record_table("run_spec", {}, "PRIMARY KEY (project_id, digest)"),
    "run": record_table(
        "run",
        {
            "run_id": "text = runId",
            "run_spec_digest": "text = runSpecDigest",
            "create_time": "text = createTime",
        },
        "PRIMARY KEY (project_id, run_id)",
        "FOREIGN KEY (project_id, run_spec_digest) REFERENCES animus.run_spec (project_id, digest)",
    ),
    "execution_plan": record_table("execution_plan", {}, "PRIMARY KEY (project_id, digest)"),
    "run_event": record_table(
        "run_event",
        {
            "run_id": "text = runId",
            "sequence": "integer = sequence",
            "state": "text = state",
            "event_id": "text = stepEvent.0.eventId",
        },
        # The key decides between writers that race for the next place.
        "PRIMARY KEY (project_id, run_id, sequence)",
        "UNIQUE (project_id, run_id, event_id)",
        "FOREIGN KEY (project_id, run_id) REFERENCES animus.run (project_id, run_id)",
    ),
    "artifact": record_table(
        "artifact",
        {
            "run_id": "text = runId",
            "step": "text = step",
            "attempt": "integer = attempt",
            "name": "text = name",
        },
        "PRIMARY KEY (project_id, run_id, step, attempt, name)",
        "FOREIGN KEY (project_id, run_id) REFERENCES animus.run (project_id, run_id)",
    ),
    "metric": record_table(
        "metric",
        {
            "run_id": "text = runId",
            "step": "text = step",
            "attempt": "integer = attempt",
            "name": "text = name",
            "index": "bigint = index",
        },
        "PRIMARY KEY (project_id, run_id, step, attempt, name, index)",
        "FOREIGN KEY (project_id, run_id) REFERENCES animus.run (project_id, run_id)",
    ),
    # A fact that is stated twice stands twice, each with its own entry; readers take edges as a set.
    "lineage_edge": record_table(
        "lineage_edge",
        {"subject": "text = subject", "relation": "text = relation", "object": "text = object"},
        "PRIMARY KEY (project_id, subject, relation, object, entry_id)",
    ),
}

INDEXES = [
    "CREATE INDEX ON animus.audit_entry (project_id, time, entry_id)",
    "CREATE INDEX ON animus.audit_entry (project_id, resource, time, entry_id)",
    "CREATE INDEX ON animus.pipeline_spec (project_id, name, digest)",
    "CREATE INDEX ON animus.run (project_id, create_time DESC, run_id DESC)",
    "CREATE INDEX ON animus.run (project_id, run_spec_digest, create_time DESC, run_id DESC)",
    "CREATE INDEX ON animus.lineage_edge (project_id, object)",
    "CREATE UNIQUE INDEX ON animus.token (token_digest)",
]

INSERT_COLUMNS = {
    "audit_entry": "project_id, document",
    "audit_queue": "project_id, entry_id",
    "idempotency": "project_id, method, request_id, request, reply, entry_id",
    **dict.fromkeys(RECORDS, "project_id, entry_id, document"),
}


def protect(table: str, columns: str) -> list[str]:
    """Isolation by project, insert and select only, and triggers that hold for owners and replication roles too."""
    return [
        f"ALTER TABLE animus.{table} ENABLE ROW LEVEL SECURITY",
        f"ALTER TABLE animus.{table} FORCE ROW LEVEL SECURITY",
        f"CREATE POLICY project ON animus.{table}"
        " USING (project_id = animus.project_in_scope()) WITH CHECK (project_id = animus.project_in_scope())",
        f"CREATE TRIGGER immutable_row BEFORE UPDATE OR DELETE ON animus.{table}"
        " FOR EACH ROW EXECUTE FUNCTION animus.refuse_change()",
        f"CREATE TRIGGER immutable_table BEFORE TRUNCATE ON animus.{table}"
        " FOR EACH STATEMENT EXECUTE FUNCTION animus.refuse_change()",
        f"ALTER TABLE animus.{table} ENABLE ALWAYS TRIGGER immutable_row",
        f"ALTER TABLE animus.{table} ENABLE ALWAYS TRIGGER immutable_table",
        f"GRANT SELECT, INSERT ({columns}) ON animus.{table} TO animus_service",
    ]


OPEN = [
    # A token is looked up by who presents it, before any project is known: a row shows itself to its own hash.
    "CREATE POLICY presented ON animus.token FOR SELECT"
    " USING (token_digest = nullif(current_setting('animus.token_digest', true), ''))",
    # Instance roles list every project, with who created it and when.
    "CREATE POLICY every_project ON animus.project FOR SELECT"
    " USING (current_setting('animus.every_project', true) = 'on')",
    "CREATE POLICY every_project ON animus.audit_entry FOR SELECT"
    " USING (current_setting('animus.every_project', true) = 'on')",
    # One round trip opens a call: the scope for row security, the transaction's time, the answer given before.
    # A function, because within one statement nothing says that the setting is made before rows are read.
    """
    CREATE FUNCTION animus.open_call(p_project text, p_method text, p_request_id text,
      OUT call_time text, OUT project_known boolean, OUT first_request bytea, OUT first_reply bytea)
    LANGUAGE plpgsql AS $$
    BEGIN
      PERFORM set_config('animus.project_id', p_project, true);
      call_time := to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"');
      project_known := EXISTS (SELECT FROM animus.project p WHERE p.project_id = p_project);
      SELECT i.request, i.reply INTO first_request, first_reply FROM animus.idempotency i
        WHERE i.project_id = p_project AND i.method = p_method AND i.request_id = p_request_id;
    END $$
    """,
    """
    CREATE FUNCTION animus.find_token(presented text,
      OUT token_project text, OUT token_document bytea, OUT token_valid boolean)
    LANGUAGE plpgsql AS $$
    BEGIN
      PERFORM set_config('animus.token_digest', presented, true);
      SELECT t.project_id, t.document, now() < animus.field(t.document, 'expireTime')::timestamptz
        INTO token_project, token_document, token_valid
        FROM animus.token t WHERE t.token_digest = presented;
    END $$
    """,
]


def upgrade() -> None:
    """Creates the schema."""
    statements = [*PREPARE, AUDIT_ENTRY, AUDIT_QUEUE, IDEMPOTENCY, *RECORDS.values(), *INDEXES]
    for table, columns in INSERT_COLUMNS.items():
        statements += protect(table, columns)
    connection = op.get_bind()
    for statement in [*statements, *OPEN]:
        connection.exec_driver_sql(statement)
