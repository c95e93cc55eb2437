"""`animus access` against the real server: accounts, tokens, bindings, and the way in for who owns the database."""

import asyncio
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from service.conftest import Caller, Server
from service.requests import planned_run
from service.shared import Grown, served
from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import AsyncEngine
from structlog.testing import capture_logs

from animus.store.embedded import EmbeddedPostgres
from animus.v1 import access_pb2
from cli.conftest import Animus, Done, command

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
        with capture_logs():  # else the server of this process would write its lines where the command does
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
    assert "instance_admin" in role.err
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


async def test_the_owner_of_the_database_breaks_the_glass(
    server: Server, postgres: EmbeddedPostgres, tmp_path: Path
) -> None:
    """The token is in a file of its owner's alone, and good."""
    url = server.settings.database_url.get_secret_value()
    owner_url = make_url(postgres.owner_url).set(database=make_url(url).database)
    settings = {
        "ANIMUS_DATA_DIR": str(server.running.data_dir),
        "ANIMUS_DATABASE_URL": url,
        "ANIMUS_OWNER_DATABASE_URL": owner_url.render_as_string(hide_password=False),
    }
    file = tmp_path / "glass.token"
    words = ("access", "break-glass", "--reason", "the last administrator left", "--hours", "2")
    done = await command(server, "", tmp_path, *words, **settings)("--output", file)
    assert done.code == 0, done
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert file.read_text().strip() not in done.out + done.err
    me = await Caller(server.channel, file.read_text().strip())("WhoAmI", access_pb2.WhoAmIRequest())
    assert me.principal == "break-glass"
    assert done.out.split()[-1] == me.expire_time.ToDatetime().strftime("%Y-%m-%dT%H:%M:%SZ")


async def test_where_the_glass_is_not_broken_no_file_is_left(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With settings that are none it goes no further; without a reason, or for more than a day, it does not begin."""
    file = tmp_path / "glass.token"
    monkeypatch.setenv("ANIMUS_GRPC_PORT", "none")
    done = await run("break-glass", "--reason", "x", "--output", file)
    assert (done.code, done.out) == (1, ""), done
    assert "ANIMUS_GRPC_PORT" in done.err
    assert (await run("break-glass", "--output", file)).code == 2
    assert (await run("break-glass", "--reason", "x", "--hours", 25, "--output", file)).code == 2
    assert not file.exists()
