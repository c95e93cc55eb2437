"""Two servers of one database: what one is told of a credential, the other follows by itself.

How soon is measured by benchmarks/revocation.py; here it is waited for.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import pytest
from conftest import create_database, drop_database
from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import AsyncEngine

from animus.server import run_server
from animus.store.embedded import EmbeddedPostgres
from animus.v1 import access_pb2, audit_pb2, project_pb2
from service.conftest import Caller, Failure, Server, open_channel, settings_for
from service.shared import until

NAME = "replicas_access"
GET = project_pb2.GetProjectRequest(project_id="p")


@pytest.fixture(scope="module")
async def replicas(
    postgres: EmbeddedPostgres, admin: AsyncEngine, template: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[Server, Server]]:
    """Two servers with data directories of their own, and a project `p`."""
    await create_database(admin, NAME, template)
    url = make_url(postgres.service_url).set(database=NAME).render_as_string(hide_password=False)
    folder = tmp_path_factory.mktemp("replicas")
    servers: list[Server] = []
    async with AsyncExitStack() as stack:
        for name in ("first", "second"):
            settings = settings_for(url, folder / name, log_dir=str(folder / "log"))
            running = await stack.enter_async_context(run_server(settings))
            channel = await stack.enter_async_context(open_channel(running.grpc))
            token = (folder / "first" / "admin.token").read_text().strip()
            servers.append(Server(running, channel, settings, Caller(channel, token)))
        first, second = servers
        await first.project("p")
        yield first, second
    await drop_database(admin, NAME)


def refused(caller: Caller) -> Callable[[], Awaitable[bool]]:
    """A condition: the caller's credential is taken no more."""

    async def holds() -> bool:
        try:
            await caller("GetProject", GET)
        except Failure as failure:
            assert (failure.code, failure.reason) == ("UNAUTHENTICATED", "TOKEN_INVALID"), failure
            return True
        return False

    return holds


def digest_of(caller: Caller) -> str:
    """The digest of a caller's token."""
    return f"sha256:{hashlib.sha256(caller.token.encode()).hexdigest()}"


def revocation(caller: Caller, request_id: str) -> access_pb2.RevokeTokenRequest:
    """A request that ends a caller's token."""
    return access_pb2.RevokeTokenRequest(
        project_id="p", request_id=request_id, token_digest=digest_of(caller), reason="a laptop was stolen"
    )


async def test_a_token_revoked_on_one_server_is_refused_by_the_other(replicas: tuple[Server, Server]) -> None:
    """One that the other has just taken, and remembers; another token goes on to be taken."""
    first, second = replicas
    made = [await first.caller("p", role) for role in ("viewer", "auditor")]
    viewer, auditor = (Caller(second.channel, each.token) for each in made)
    for caller in (viewer, auditor):
        await caller("GetProject", GET)
    await first.admin("RevokeToken", revocation(viewer, "revoke"))
    await until(refused(viewer), "the revoked token is refused")
    await until(refused(made[0]), "the first server refuses it too")
    await auditor("GetProject", GET)


async def test_tokens_of_an_account_disabled_on_one_server_are_refused_by_the_other(
    replicas: tuple[Server, Server],
) -> None:
    """All of them, at once."""
    first, second = replicas
    operator = await first.caller("p", "operator")
    there = Caller(second.channel, operator.token)
    me = await there("WhoAmI", access_pb2.WhoAmIRequest())
    request = access_pb2.DisableServiceAccountRequest(
        project_id="p", request_id="disable", service_account_id=me.principal, reason="the team has gone"
    )
    await first.admin("DisableServiceAccount", request)
    await until(refused(there), "a token of the disabled account is refused")


async def test_an_open_stream_ends_with_the_token_that_opened_it(replicas: tuple[Server, Server]) -> None:
    """A tail on the other server, from which nothing more would come."""
    first, second = replicas
    auditor = await first.caller("p", "auditor")
    there = Caller(second.channel, auditor.token)
    request = audit_pb2.TailAuditEntriesRequest(project_id="p", first_index=1_000_000)
    tail = asyncio.create_task(there.stream("TailAuditEntries", request))
    await there("GetProject", GET)
    await first.admin("RevokeToken", revocation(auditor, "revoke-stream"))
    async with asyncio.timeout(60):
        with pytest.raises(Failure) as found:
            await tail
    assert found.value.reason == "TOKEN_INVALID"
