"""`animus access` against the real server: accounts, tokens, bindings, and the way in for who owns the database."""

import asyncio
import secrets
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from service.conftest import Caller, Server
from service.requests import planned_run
from service.shared import Grown, served
from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import AsyncEngine

from animus.domain.access import BreakGlass
from animus.store.embedded import EmbeddedPostgres
from animus.store.records import Stored
from animus.store.unit_of_work import UnitOfWork
from animus.v1 import access_pb2, audit_pb2, project_pb2
from cli.conftest import Animus, Command, Done, command

Run = Callable[..., Awaitable[Done]]


@pytest.fixture(scope="module")
async def server(
    postgres: EmbeddedPostgres, admin: AsyncEngine, template: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Server]:
    """The server of these tests, with a project `p`."""
    async with served(postgres, admin, template, tmp_path_factory.mktemp("data")) as found:
        await found.project("p")
        yield found


@pytest.fixture
async def project(server: Server) -> str:
    """A project of the test's own."""
    return (await Grown.new(server)).project_id


@pytest.fixture
async def run(server: Server, project: str, animus: Animus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `animus access` in this process, as an administrator of the project."""
    file = tmp_path / "admin.token"
    file.write_text((await server.caller(project, "admin")).token)
    for name, value in (("ADDRESS", server.running.grpc), ("PROJECT", project), ("TOKEN_FILE", str(file))):
        monkeypatch.setenv(f"ANIMUS_{name}", value)

    async def run(*arguments: object) -> Done:
        return await asyncio.to_thread(animus, "access", *arguments)

    return run


def rows(done: Done) -> list[list[str]]:
    """The lines of a table without its heads, split."""
    assert done.code == 0, done
    return [line.split() for line in done.out.splitlines()[1:]]


async def test_a_token_is_made_used_listed_and_revoked(run: Run, server: Server, project: str, tmp_path: Path) -> None:
    """The file is its owner's alone, the terminal sees the digest, and who has the file is the account."""
    assert (await run("account", "create", "ci", "--display-name", "CI")).out == "ci\n"
    file = tmp_path / "ci.token"
    made = await run("token", "create", "--account", "ci", "--role", "viewer", "--output", file)
    assert made.code == 0, made
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    token, digest = file.read_text().strip(), made.out.strip()
    assert token not in made.out + made.err
    me = await run("whoami", "--token-file", file)
    assert ["principal", "ci"] in [line.split() for line in me.out.splitlines()]
    assert ["roles", "in", project, "viewer"] in [line.split() for line in me.out.splitlines()]
    assert (await run("whoami", "--json", "--token-file", file)).json["credential"] == "CREDENTIAL_KIND_TOKEN"
    await server.running.token_uses.flush()
    (listed,) = [row for row in rows(await run("token", "list")) if row[-1] == digest]
    assert listed[:2] == ["ci", "viewer"]
    assert "never" not in listed
    revoked = await run("token", "revoke", "--file", file, "--reason", "over")
    assert (revoked.code, revoked.out) == (0, f"revoked {digest}\n"), revoked
    (listed,) = rows(await run("token", "list", "--filter", 'principal = "ci"'))
    assert "revoked" in listed


async def test_a_token_is_printed_only_where_that_is_asked_for(run: Run) -> None:
    """Then it is all that stdout has, and no file is written."""
    await run("account", "create", "bot")
    words = ("token", "create", "--account", "bot", "--role", "operator", "--days", 1)
    neither = await run(*words)
    assert (neither.code, neither.out) == (2, "")
    printed = await run(*words, "--print")
    assert printed.code == 0, printed
    assert printed.out.startswith("animus_")
    assert len(printed.out.split()) == 1
    assert printed.err.startswith("sha256:")


async def test_a_token_that_is_not_registered_leaves_no_file(run: Run, tmp_path: Path) -> None:
    """An account that is not there, a role that is not there; and a file that is there is left as it was."""
    file = tmp_path / "new.token"
    unknown = await run("token", "create", "--account", "nobody", "--role", "viewer", "--output", file)
    assert (unknown.code, unknown.out, file.exists()) == (3, "", False), unknown
    role = await run("token", "create", "--account", "nobody", "--role", "king", "--output", file)
    assert (role.code, file.exists()) == (2, False), role
    assert "instance-admin" in role.err
    file.write_text("mine")
    there = await run("token", "create", "--account", "nobody", "--role", "viewer", "--output", file)
    assert (there.code, file.read_text()) == (5, "mine"), there


async def test_an_account_is_disabled_for_good(run: Run) -> None:
    """The list says so, and no token is made for it any more."""
    await run("account", "create", "old")
    done = await run("account", "disable", "old", "--reason", "the team has gone")
    assert (done.code, done.out) == (0, "disabled old\n"), done
    (row,) = [row for row in rows(await run("account", "list")) if row[0] == "old"]
    assert row[1] == "disabled"
    refused = await run("token", "create", "--account", "old", "--role", "viewer", "--print")
    assert (refused.code, refused.out) == (5, ""), refused


async def test_roles_are_bound_and_taken_back(run: Run) -> None:
    """With the etag of what was read nothing else is changed; without roles the binding is listed no more."""
    member = "group:corp:ml-admins"
    first = await run("binding", "set", member, "--role", "viewer", "--role", "operator")
    assert first.code == 0, first
    (row,) = rows(await run("binding", "list"))
    assert row[:3] == [member, "operator,", "viewer"]
    assert row[-1] == first.out.strip()
    second = await run("binding", "set", member, "--role", "viewer", "--etag", first.out.strip())
    assert second.code == 0, second
    stale = await run("binding", "set", member, "--role", "admin", "--etag", first.out.strip())
    assert stale.code in (5, 6), stale
    assert (await run("binding", "set", member)).code == 2
    assert (await run("binding", "set", member, "--no-roles")).code == 0
    assert rows(await run("binding", "list")) == []


async def test_a_token_of_a_run_is_for_that_run(
    server: Server, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Made by an operator; what has it is told which run it is for."""
    run_id = await planned_run(server)
    operator = tmp_path / "operator.token"
    operator.write_text((await server.caller("p", "operator")).token)
    monkeypatch.setenv("ANIMUS_PROJECT", "p")
    file = tmp_path / "run.token"
    made = await run("token", "run", run_id, "--hours", 2, "--output", file, "--token-file", operator)
    assert made.code == 0, made
    me = await run("whoami", "--token-file", file)
    assert ["run", run_id] in [line.split() for line in me.out.splitlines()]


# Break-glass.


async def record(server: Server, token_digest: str) -> Stored[BreakGlass]:
    """What was recorded of a token of break-glass."""
    work = UnitOfWork(server.running.engine, lambda: "", server.running.log.keyring.seal, None)
    found = await work.read("system", lambda view: view.find(BreakGlass, token_digest=token_digest))
    assert found is not None
    return found


@pytest.fixture
def owner(server: Server, postgres: EmbeddedPostgres) -> dict[str, str]:
    """The settings of who owns the database of the server."""
    url = server.settings.database_url.get_secret_value()
    owner_url = make_url(postgres.owner_url).set(database=make_url(url).database)
    return {
        "ANIMUS_DATA_DIR": str(server.running.data_dir),
        "ANIMUS_DATABASE_URL": url,
        "ANIMUS_OWNER_DATABASE_URL": owner_url.render_as_string(hide_password=False),
    }


async def broken(server: Server, owner: dict[str, str], folder: Path, *arguments: object) -> Done:
    """How `animus access break-glass` ends."""
    run: Command = command(server, "", folder, "access", "break-glass", **owner)
    return await run(*arguments)


async def entries(server: Server) -> list[audit_pb2.AuditEntry]:
    """What the log of the system project has of break-glass."""
    request = audit_pb2.ListAuditEntriesRequest(project_id="system", page_size=1_000)
    found = await server.admin("ListAuditEntries", request)
    return [entry for entry in found.audit_entries if entry.action == "access.break_glass"]


async def test_the_owner_of_the_database_gets_in_on_the_record(
    server: Server, owner: dict[str, str], tmp_path: Path
) -> None:
    """The token administers the instance for as long as was asked for; a record has the reason and the role."""
    file, reason = tmp_path / "glass.token", f"the last administrator left {secrets.token_hex(4)}"
    before = len(await entries(server))
    done = await broken(server, owner, tmp_path, "--reason", reason, "--hours", 2, "--output", file)
    assert done.code == 0, done
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    caller = Caller(server.channel, file.read_text().strip())
    me = await caller("WhoAmI", access_pb2.WhoAmIRequest())
    assert (me.principal, [(each.project_id, list(each.roles)) for each in me.grants]) == (
        "break-glass",
        [("system", [access_pb2.ROLE_INSTANCE_ADMIN])],
    )
    assert me.expire_time.ToDatetime().strftime("%Y-%m-%dT%H:%M:%SZ") in done.out
    await caller("GetProject", project_pb2.GetProjectRequest(project_id="p"))
    found = await entries(server)
    assert len(found) == before + 1
    entry = max(found, key=lambda each: each.time.ToNanoseconds())
    assert (entry.principal, entry.outcome) == ("break-glass", audit_pb2.AUDIT_OUTCOME_ACCEPTED)
    assert entry.resource == f"projects/system/tokens/{done.out.split()[0]}"
    stored = await record(server, done.out.split()[0])
    assert (stored.value.reason, stored.value.database_role) == (reason, "animus_owner")
    assert ("break_glass", stored.digest) in [(each.kind, each.digest) for each in entry.records]
    assert stored.entry_id == entry.entry_id


async def test_whoever_does_not_own_the_database_stays_out(
    server: Server, owner: dict[str, str], tmp_path: Path
) -> None:
    """The service's own login, no login, and no reason: no file, no token, no entry."""
    before = len(await entries(server))
    files = [tmp_path / f"{number}.glass" for number in range(4)]
    why = [("--reason", "curious", "--output", file) for file in files]
    service = owner | {"ANIMUS_OWNER_DATABASE_URL": owner["ANIMUS_DATABASE_URL"]}
    nobody = {name: value for name, value in owner.items() if "OWNER" not in name}
    cases = [
        (5, "does not own the schema", broken(server, service, tmp_path, *why[0])),
        (5, "set ANIMUS_OWNER_DATABASE_URL", broken(server, nobody, tmp_path, *why[1])),
        (2, "reason", broken(server, owner, tmp_path, "--reason", "", "--output", files[2])),
        (2, "--reason", broken(server, owner, tmp_path, "--output", files[3])),
    ]
    for (code, text, _), done in zip(cases, await asyncio.gather(*(each[2] for each in cases)), strict=True):
        assert (done.code, done.out) == (code, ""), done
        assert text in done.err
    assert not [file for file in files if file.exists()]
    assert len(await entries(server)) == before
