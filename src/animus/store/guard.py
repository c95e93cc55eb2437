"""Refuses to serve from a database on which the promises would not hold.

Row security, grants and immutability mean nothing to a superuser, an owner or a BYPASSRLS role; durability means
nothing with fsync off; and a schema that lost a trigger looks like a sound one until someone tries. So the server asks
once, at its start, over the connection that it will serve with.
"""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from animus.store.migrate import head, revision_of

OLDEST = 15  # the first major version whose public schema and role rules we rely on

# Tables of schema `animus` whose rows change by design, and why that is no gap in the record.
REASONS: dict[str, str] = {
    "audit_queue": "entries leave it for the log; each carries a MAC, and its leaf hash is in a receipt",
    "log_quarantine": "entries leave it when their bytes are repaired",
    "log_lead": "who writes the log now; a lease and its fencing number",
    "token_use": "when a token was last used, to the minute; nothing follows from it",
    "log_state": "follows from the leaves; the signer rebuilds it a second way before it signs",
}
EXEMPT = frozenset(REASONS)

# Tables whose rows no change wrote, and what holds them in place of an audit entry of their own transaction.
UNAUDITED: dict[str, str] = {
    "audit_entry": "the entry itself",
    "log_quarantine": "the integrator moves entries here from the queue, where each had its entry's key",
    "token_use": "when a token was last used; says nothing of what was done",
    "log_lead": "who writes the log now; says nothing of what was done",
    "log_state": "follows from the leaves",
    "log_leaf": "follows from the entries, each of which gets one place",
    "log_tile": "follows from the leaves",
    "log_checkpoint": "signed by a key that the database does not have",
}

_ROLES = text(
    """
    WITH RECURSIVE held(oid) AS (
        SELECT oid FROM pg_roles WHERE rolname IN (current_user, session_user)
        UNION
        SELECT m.roleid FROM pg_auth_members m JOIN held ON m.member = held.oid
    )
    SELECT r.rolname, r.rolname IN (current_user, session_user) AS own, r.rolsuper, r.rolbypassrls, r.rolcreaterole,
           EXISTS (SELECT FROM pg_database d WHERE d.datname = current_database() AND d.datdba = r.oid) AS database,
           EXISTS (SELECT FROM pg_namespace s WHERE s.nspname = 'animus' AND s.nspowner = r.oid) AS schema,
           ARRAY(SELECT t.relname::text FROM pg_class t
                 WHERE t.relnamespace = to_regnamespace('animus') AND t.relkind IN ('r', 'p') AND t.relowner = r.oid
                 ORDER BY 1) AS tables
    FROM held JOIN pg_roles r USING (oid)
    ORDER BY own DESC, r.rolname
    """
)
_SETTINGS = text(
    "SELECT name, setting FROM pg_settings"
    " WHERE name IN ('server_version_num', 'fsync', 'full_page_writes', 'synchronous_commit',"
    " 'statement_timeout', 'lock_timeout', 'idle_in_transaction_session_timeout')"
)
# What ends a statement, a wait or a transaction that nobody ends, and what deploy/postgres/roles.sql sets it to.
TIMEOUTS = {"statement_timeout": "30s", "lock_timeout": "10s", "idle_in_transaction_session_timeout": "60s"}
# tgtype: 4 INSERT, 8 DELETE, 16 UPDATE, 32 TRUNCATE. With a condition or a list of columns it lets something through.
_TABLES = text(
    """
    SELECT t.relname, t.relrowsecurity AND t.relforcerowsecurity AS forced,
           coalesce((SELECT bit_or(g.tgtype::int) FROM pg_trigger g
                     WHERE g.tgrelid = t.oid AND NOT g.tgisinternal AND g.tgname LIKE 'immutable%'
                       AND g.tgenabled = 'A' AND g.tgqual IS NULL AND g.tgattr::text = ''), 0) & 56 = 56 AS immutable,
           EXISTS (SELECT FROM pg_constraint c JOIN pg_trigger g ON g.tgconstraint = c.oid AND g.tgrelid = t.oid
                   WHERE c.conrelid = t.oid AND c.contype = 'f' AND c.confrelid = to_regclass('animus.audit_entry')
                     AND cardinality(c.conkey) = 3 AND g.tgtype & 4 = 4 AND g.tgenabled IN ('O', 'A')) AS audited
    FROM pg_class t
    WHERE t.relnamespace = to_regnamespace('animus') AND t.relkind IN ('r', 'p') AND t.relname <> 'alembic_version'
    ORDER BY t.relname
    """
)


class UnsafeDatabase(RuntimeError):
    """The database, or the role that serves from it, is not one to serve from; the text is one line with each reason.

    `reasons` holds them one by one.
    """

    def __init__(self, reasons: list[str]):
        super().__init__("; ".join(reasons))
        self.reasons = reasons


async def refuse_unsafe(connection: AsyncConnection, exempt: Collection[str] = EXEMPT) -> None:
    """Raises UnsafeDatabase with every reason found, and returns only if there is none.

    `exempt` names the tables that need no immutability trigger; row security is demanded of all, and the key to the
    audit entry of all that are not UNAUDITED. Reads catalogues only; to be called on the service role's connection.
    """
    roles = (await connection.execute(_ROLES)).mappings().all()
    settings = {row.name: row.setting for row in await connection.execute(_SETTINGS)}
    tables = (await connection.execute(_TABLES)).mappings().all()
    reasons = []
    for role in roles:
        powers = {
            "is a superuser": role["rolsuper"],
            "bypasses row security": role["rolbypassrls"],
            "may create roles": role["rolcreaterole"],
            "owns the database": role["database"],
            "owns the schema animus": role["schema"],
            f"owns tables of the schema animus ({', '.join(role['tables'])})": role["tables"],
        }
        who = f"the role {role['rolname']}" if role["own"] else f"the service is a member of {role['rolname']}, which"
        reasons += [f"{who} {power}" for power, held in powers.items() if held]
    reasons += unsafe_settings(settings)
    reasons += endless(settings, roles[0]["rolname"])
    reasons += await _unmigrated(connection, head())
    for table in tables:
        if not table["forced"]:
            reasons.append(f"row security is not forced on the table {table['relname']}")
        if not table["immutable"] and table["relname"] not in exempt:
            reasons.append(f"no enabled trigger keeps the rows of the table {table['relname']}")
        if not table["audited"] and table["relname"] not in UNAUDITED:
            reasons.append(f"no key ties the rows of the table {table['relname']} to the audit entry of their writing")
    if reasons:
        raise UnsafeDatabase(reasons)


def unsafe_settings(settings: dict[str, str]) -> list[str]:
    """The reasons among PostgreSQL's settings, by name as in pg_settings."""
    reasons = []
    version = int(settings["server_version_num"]) // 10_000
    if version < OLDEST:
        reasons.append(f"this is PostgreSQL {version} and {OLDEST} is the oldest that will do")
    reasons += [f"{name} is off" for name in ("fsync", "full_page_writes") if settings[name] != "on"]
    if settings["synchronous_commit"] == "off":  # local is the next value up
        reasons.append("synchronous_commit is off")
    return reasons


def endless(settings: dict[str, str], role: str) -> list[str]:
    """The timeouts that a role's connections lack. Behind pgbouncer the server cannot set them itself."""
    return [
        f"{name} of the role {role} is 0: ALTER ROLE {role} SET {name} = '{usual}'"
        for name, usual in TIMEOUTS.items()
        if settings[name] == "0"
    ]


async def _unmigrated(connection: AsyncConnection, wanted: str) -> list[str]:
    try:
        async with connection.begin_nested():
            found = await revision_of(connection)
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) != "42501":  # insufficient_privilege
            raise
        return ["the role may not read animus.alembic_version: run animus migrate with this release"]
    if found == wanted:
        return []
    return [f"the schema is at revision {found or 'none'} and this release needs {wanted}: run animus migrate"]
