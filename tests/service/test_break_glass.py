"""Break-glass: who owns the database gets in past every role, on the record, and nobody else does."""

import hashlib
import secrets
from collections.abc import AsyncIterator

import pytest
from pydantic import SecretStr
from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import AsyncEngine

from animus.access_operations import break_glass
from animus.config import Settings
from animus.domain.access import BreakGlass
from animus.domain.errors import Invalid
from animus.log_operations import OperationRefused
from animus.store.embedded import EmbeddedPostgres
from animus.store.unit_of_work import UnitOfWork
from animus.v1 import access_pb2, audit_pb2, project_pb2
from service.conftest import Caller, Failure, Server
from service.shared import served


@pytest.fixture(scope="module")
async def server(
    postgres: EmbeddedPostgres, admin: AsyncEngine, template: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Server]:
    """The server of these tests."""
    async with served(postgres, admin, template, tmp_path_factory.mktemp("data")) as found:
        await found.project("p")
        yield found


@pytest.fixture
def owner(server: Server, postgres: EmbeddedPostgres) -> Settings:
    """The server's settings, with the login of the owner."""
    database = make_url(server.settings.database_url.get_secret_value()).database
    return with_owner(
        server.settings, make_url(postgres.owner_url).set(database=database).render_as_string(hide_password=False)
    )


def with_owner(settings: Settings, url: str) -> Settings:
    """The same settings with a URL in the place of the owner's."""
    return settings.model_copy(update={"owner_database_url": SecretStr(url)})


def new_token() -> tuple[str, str]:
    """A token of the system project, and its digest."""
    token = f"animus_system_{secrets.token_urlsafe(32)}"
    return token, f"sha256:{hashlib.sha256(token.encode()).hexdigest()}"


async def entries(server: Server) -> list[audit_pb2.AuditEntry]:
    """What the log of the system project has of break-glass."""
    found = await server.admin("ListAuditEntries", audit_pb2.ListAuditEntriesRequest(project_id="system"))
    return [entry for entry in found.audit_entries if entry.action == "access.break_glass"]


async def test_the_owner_gets_in_on_the_record(server: Server, owner: Settings) -> None:
    """The token administers the instance; the entry has the principal, and a record with the reason and the role."""
    token, digest = new_token()
    made = await break_glass(owner, digest, "the last administrator left", 2)
    caller = Caller(server.channel, token)
    me = await caller("WhoAmI", access_pb2.WhoAmIRequest())
    assert [(each.project_id, list(each.roles)) for each in me.grants] == [("system", [access_pb2.ROLE_INSTANCE_ADMIN])]
    assert (me.principal, me.expire_time) == ("break-glass", made.expire_time)
    await caller("GetProject", project_pb2.GetProjectRequest(project_id="p"))
    (entry,) = [each for each in await entries(server) if each.resource == f"projects/system/tokens/{digest}"]
    assert (entry.principal, entry.outcome) == ("break-glass", audit_pb2.AUDIT_OUTCOME_ACCEPTED)
    assert made.expire_time.ToNanoseconds() - entry.time.ToNanoseconds() == 2 * 3600 * 10**9
    work = UnitOfWork(server.running.engine, lambda: "", server.running.log.keyring.seal, None)
    stored = await work.read("system", lambda view: view.find(BreakGlass, token_digest=digest))
    assert stored is not None
    assert stored.value == BreakGlass(digest, "the last administrator left", "animus_owner")
    assert ("break_glass", stored.digest) in [(each.kind, each.digest) for each in entry.records]
    await server.published("system")  # the entry was sealed with the key of this instance


@pytest.mark.parametrize("given", ["service", "none", "no URL"])
async def test_whoever_does_not_own_the_database_stays_out(server: Server, owner: Settings, given: str) -> None:
    """The service's own login, none, and what is no login: no token, no entry."""
    urls = {"service": owner.database_url.get_secret_value(), "none": "", "no URL": "secret :"}
    token, digest = new_token()
    before = len(await entries(server))
    with pytest.raises(OperationRefused, match="ANIMUS_OWNER_DATABASE_URL") as refused:
        await break_glass(with_owner(owner, urls[given]), digest, "curious", 1)
    assert "secret" not in str(refused.value)
    assert len(await entries(server)) == before
    with pytest.raises(Failure):
        await Caller(server.channel, token)("WhoAmI", access_pb2.WhoAmIRequest())


async def test_a_reason_is_needed(server: Server, owner: Settings) -> None:
    """An empty one is refused by its name."""
    with pytest.raises(Invalid) as refused:
        await break_glass(owner, new_token()[1], "", 1)
    assert [each.field for each in refused.value.violations] == ["reason"]


@pytest.mark.parametrize("project_id", ["p", "system"])
async def test_no_service_account_is_break_glass(server: Server, project_id: str) -> None:
    """Nobody acts under its name, and nobody shuts it out by disabling it."""
    account = access_pb2.ServiceAccount(service_account_id="break-glass", display_name="", description="")
    request = access_pb2.CreateServiceAccountRequest(project_id=project_id, request_id="x", service_account=account)
    with pytest.raises(Failure) as refused:
        await server.admin("CreateServiceAccount", request)
    assert list(refused.value.fields) == ["serviceAccount.serviceAccountId"]
