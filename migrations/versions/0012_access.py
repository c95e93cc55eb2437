"""Service accounts, role bindings, tokens of one run, the ends of tokens and accounts, and when tokens were used."""

from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def column(name: str, path: str, kind: str = "text") -> str:
    """A generated column."""
    collation = ' COLLATE "C"' if kind == "text" else ""
    return f"{name} {kind}{collation} GENERATED ALWAYS AS (animus.field(document, '{path}')::{kind}) STORED NOT NULL,"


# Columns, key and further constraints.
TABLES = {
    "service_account": (column("service_account_id", "serviceAccountId"), "service_account_id", ""),
    "service_account_end": (
        column("service_account_id", "serviceAccountId"),
        "service_account_id",
        ", FOREIGN KEY (project_id, service_account_id)"
        " REFERENCES animus.service_account (project_id, service_account_id)",
    ),
    "run_token": (
        column("token_digest", "tokenDigest")
        + column("run_id", "runId")
        + column("principal", "principal")
        + column("expire_time", "expireTime"),
        "token_digest",
        ", FOREIGN KEY (project_id, run_id) REFERENCES animus.run (project_id, run_id)",
    ),
    "token_revocation": (column("token_digest", "tokenDigest"), "token_digest", ""),
    # The key decides between writers that race for the next version.
    "role_binding": (
        column("member", "member") + column("version", "version", "integer"),
        "member, version",
        "",
    ),
    "break_glass": (column("token_digest", "tokenDigest"), "token_digest", ""),
}

INDEXES = [
    "CREATE UNIQUE INDEX ON animus.run_token (token_digest)",
    "CREATE INDEX ON animus.run_token (project_id, run_id)",
    "CREATE INDEX ON animus.role_binding (member, project_id, version DESC)",
]

# What a token was registered as, for lists.
LISTED = """
    ALTER TABLE animus.token
      ADD COLUMN principal text COLLATE "C" GENERATED ALWAYS AS (animus.field(document, 'principal')) STORED,
      ADD COLUMN role text COLLATE "C" GENERATED ALWAYS AS (animus.field(document, 'role')) STORED,
      ADD COLUMN expire_time text COLLATE "C" GENERATED ALWAYS AS (animus.field(document, 'expireTime')) STORED
"""

# No record: says which tokens are in use, to the minute, and nothing follows from it.
USES = """
    CREATE TABLE animus.token_use (
      project_id text COLLATE "C" NOT NULL,
      token_digest text COLLATE "C" NOT NULL,
      use_time timestamptz NOT NULL,
      PRIMARY KEY (project_id, token_digest)
    )
"""

OPEN = [
    # A row shows itself to whoever presents its own hash, before any project is known.
    "CREATE POLICY presented ON animus.run_token FOR SELECT"
    " USING (token_digest = nullif(current_setting('animus.token_digest', true), ''))",
    # And a role binding to whoever has proven to be its member. No member holds a line feed.
    "CREATE POLICY presented ON animus.role_binding FOR SELECT"
    " USING (member = ANY (string_to_array(nullif(current_setting('animus.members', true), ''), chr(10))))",
    "DROP FUNCTION animus.find_token",
    # Once the token's project is known, the rest is asked within it.
    """
    CREATE FUNCTION animus.find_token(presented text,
      OUT token_project text, OUT token_document bytea, OUT of_run boolean, OUT token_valid boolean)
    LANGUAGE plpgsql AS $$
    DECLARE account_project text;
    BEGIN
      PERFORM set_config('animus.token_digest', presented, true);
      SELECT t.project_id, t.document, false INTO token_project, token_document, of_run
        FROM animus.token t WHERE t.token_digest = presented;
      IF token_project IS NULL THEN
        SELECT t.project_id, t.document, true INTO token_project, token_document, of_run
          FROM animus.run_token t WHERE t.token_digest = presented;
      END IF;
      IF token_project IS NULL THEN
        token_valid := false;
        RETURN;
      END IF;
      PERFORM set_config('animus.project_id', token_project, true);
      token_valid := now() < animus.field(token_document, 'expireTime')::timestamptz
        AND NOT EXISTS (SELECT FROM animus.token_revocation r
          WHERE r.project_id = token_project AND r.token_digest = presented);
      -- A token of one run may act for a service account of the system project.
      account_project := coalesce(animus.field(token_document, 'principalProjectId'), token_project);
      PERFORM set_config('animus.project_id', account_project, true);
      token_valid := token_valid AND NOT EXISTS (SELECT FROM animus.service_account_end e
        WHERE e.project_id = account_project AND e.service_account_id = animus.field(token_document, 'principal'));
    END $$
    """,
    """
    CREATE FUNCTION animus.find_grants(members text[])
    RETURNS TABLE (binding_project text, binding_document bytea)
    LANGUAGE plpgsql AS $$
    BEGIN
      PERFORM set_config('animus.members', array_to_string(members, chr(10)), true);
      RETURN QUERY SELECT DISTINCT ON (b.member, b.project_id) b.project_id, b.document
        FROM animus.role_binding b WHERE b.member = ANY (members)
        ORDER BY b.member, b.project_id, b.version DESC;
    END $$
    """,
    # A page of used tokens, of any projects: one statement, and no write for a token that was used a minute ago.
    """
    CREATE FUNCTION animus.note_token_uses(projects text[], digests text[]) RETURNS void
    LANGUAGE plpgsql AS $$
    BEGIN
      FOR place IN 1 .. cardinality(projects) LOOP
        PERFORM set_config('animus.project_id', projects[place], true);
        INSERT INTO animus.token_use AS u (project_id, token_digest, use_time)
          VALUES (projects[place], digests[place], now())
          ON CONFLICT (project_id, token_digest) DO UPDATE SET use_time = now()
          WHERE u.use_time < now() - interval '1 minute';
      END LOOP;
    END $$
    """,
]


def isolated(table: str) -> list[str]:
    """Row security by project."""
    return [
        f"ALTER TABLE animus.{table} ENABLE ROW LEVEL SECURITY",
        f"ALTER TABLE animus.{table} FORCE ROW LEVEL SECURITY",
        f"CREATE POLICY project ON animus.{table}"
        " USING (project_id = (SELECT animus.project_in_scope()))"
        " WITH CHECK (project_id = (SELECT animus.project_in_scope()))",
    ]


def statements(table: str) -> list[str]:
    """What makes a table of documents."""
    columns, key, more = TABLES[table]
    return [
        f"""
        CREATE TABLE animus.{table} (
          project_id text COLLATE "C" NOT NULL,
          {columns}
          digest text COLLATE "C" GENERATED ALWAYS AS (animus.digest(document)) STORED NOT NULL,
          document bytea NOT NULL,
          entry_id text COLLATE "C" NOT NULL,
          written_in xid8 NOT NULL DEFAULT pg_current_xact_id(),
          FOREIGN KEY (project_id, entry_id, written_in)
            REFERENCES animus.audit_entry (project_id, entry_id, written_in),
          PRIMARY KEY (project_id, {key}){more}
        )
        """,
        *isolated(table),
        f"GRANT SELECT, INSERT (project_id, entry_id, document) ON animus.{table} TO animus_service",
        f"CREATE TRIGGER immutable_row BEFORE UPDATE OR DELETE ON animus.{table}"
        " FOR EACH ROW EXECUTE FUNCTION animus.refuse_change()",
        f"CREATE TRIGGER immutable_table BEFORE TRUNCATE ON animus.{table}"
        " FOR EACH STATEMENT EXECUTE FUNCTION animus.refuse_change()",
        f"ALTER TABLE animus.{table} ENABLE ALWAYS TRIGGER immutable_row",
        f"ALTER TABLE animus.{table} ENABLE ALWAYS TRIGGER immutable_table",
        f"CREATE INDEX ON animus.{table} (project_id, written_in)",
    ]


def upgrade() -> None:
    """Adds the tables and the functions that find who calls."""
    connection = op.get_bind()
    made = [statement for table in TABLES for statement in statements(table)]
    granted = "GRANT SELECT, INSERT, UPDATE ON animus.token_use TO animus_service"
    for statement in [*made, *INDEXES, LISTED, USES, *isolated("token_use"), granted, *OPEN]:
        connection.exec_driver_sql(statement)
