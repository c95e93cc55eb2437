"""AccessService."""

from dataclasses import replace
from datetime import timedelta

from animus.codec import timestamp
from animus.domain.access import (
    MAX_RUN_TOKEN_DAYS,
    MAX_TOKEN_DAYS,
    CredentialKind,
    Role,
    RoleBinding,
    RunToken,
    ServiceAccount,
    ServiceAccountEnd,
    Token,
    TokenRevocation,
    check_role_scope,
    check_token_scope,
)
from animus.domain.document import seal
from animus.domain.errors import Conflict, Refused, invalid
from animus.domain.names import (
    RANDOM_ID,
    SYSTEM_PROJECT,
    check_digest,
    check_pattern,
    check_resource_id,
    parse_time,
    role_binding_name,
    run_name,
    run_token_name,
    service_account_name,
    token_name,
    token_revocation_name,
)
from animus.domain.run import Run
from animus.service.calls import Caller, call_of, creation, decode_field, new_record, resource
from animus.service.pages import Pages
from animus.store.records import Stored, unknown
from animus.store.unit_of_work import Answer, Change, UnitOfWork, View
from animus.v1 import access_pb2 as pb


class AccessService:
    """Service accounts, tokens and role bindings; says who calls."""

    def __init__(self, work: UnitOfWork, pages: Pages) -> None:
        self.work = work
        self.pages = pages

    async def WhoAmI(self, request: pb.WhoAmIRequest, caller: Caller) -> pb.WhoAmIResponse:
        """Says who the caller is."""
        principal = caller.principal
        reply = pb.WhoAmIResponse(
            principal=principal.name,
            credential=pb.CredentialKind.Value(f"CREDENTIAL_KIND_{principal.credential.name}"),
            members=principal.members,
            run_id=principal.run_id,
        )
        for project_id, roles in sorted(principal.grants.items()):
            reply.grants.add(
                project_id=project_id, roles=[pb.Role.Value(f"ROLE_{role.name}") for role in sorted(roles)]
            )
        if principal.expire_time:
            reply.expire_time.CopyFrom(timestamp(principal.expire_time))
        return reply

    async def CreateServiceAccount(self, request: pb.CreateServiceAccountRequest, caller: Caller) -> Answer:
        """Creates a service account."""
        account = decode_field(request, "service_account", "serviceAccount", ServiceAccount)

        async def decide(view: View) -> Change:
            name = service_account_name(view.project_id, account.service_account_id)
            if await view.find(ServiceAccount, service_account_id=account.service_account_id):
                raise Conflict("SERVICE_ACCOUNT_EXISTS", "the project has a service account of this id", name=name)
            return creation(view, caller, "service_account.create", name, account, pb.ServiceAccount())

        return await self.work.change(call_of(caller, request), decide)

    async def GetServiceAccount(self, request: pb.GetServiceAccountRequest, caller: Caller) -> pb.ServiceAccount:
        """Returns a service account."""
        check_resource_id(request.service_account_id, "serviceAccountId")

        async def query(view: View) -> pb.ServiceAccount:
            stored, ended = await _account(view, request.service_account_id)
            return _account_message(view, stored, disabled=ended)

        return await self.work.read(request.project_id, query)

    async def ListServiceAccounts(
        self, request: pb.ListServiceAccountsRequest, caller: Caller
    ) -> pb.ListServiceAccountsResponse:
        """Lists service accounts by id."""

        async def query(view: View) -> pb.ListServiceAccountsResponse:
            reply = pb.ListServiceAccountsResponse()
            page = await self.pages.read(view, ServiceAccount, ("service_account_id",), request, caller.method)
            ids = [stored.value.service_account_id for stored in page.items]
            ended = await view.documents(ServiceAccountEnd, "service_account_id", ids)
            for stored in page.items:
                disabled = stored.value.service_account_id in ended
                reply.service_accounts.append(_account_message(view, stored, disabled=disabled))
            reply.next_page_token = page.next_token(lambda last: (last.value.service_account_id,))
            return reply

        return await self.work.read(request.project_id, query)

    async def DisableServiceAccount(self, request: pb.DisableServiceAccountRequest, caller: Caller) -> Answer:
        """Ends a service account, and with it its tokens."""
        end = ServiceAccountEnd(request.service_account_id, request.reason)

        async def decide(view: View) -> Change:
            stored, ended = await _account(view, end.service_account_id)
            name = service_account_name(view.project_id, end.service_account_id)
            if not ended:
                await _check_admin_left(view, name, service_account_id=end.service_account_id)
            reply = _account_message(view, stored, disabled=True)
            return Change("service_account.disable", name, () if ended else (seal(end),), (), reply)

        return await self.work.change(call_of(caller, request), decide)

    async def CreateToken(self, request: pb.CreateTokenRequest, caller: Caller) -> Answer:
        """Registers a token of a service account."""
        token = decode_field(request, "token", "token", Token)
        check_token_scope(request.project_id, token)

        async def decide(view: View) -> Change:
            _check_life(view, token.expire_time, MAX_TOKEN_DAYS, "token.expireTime")
            _, ended = await _account(view, token.principal)
            if ended:
                raise Refused(
                    "SERVICE_ACCOUNT_DISABLED",
                    "the service account was disabled: create the token for another",
                    subject=service_account_name(view.project_id, token.principal),
                )
            await _check_new(view, token.token_digest)
            name = token_name(view.project_id, token.token_digest)
            return creation(view, caller, "token.create", name, token, pb.Token())

        return await self.work.change(call_of(caller, request), decide)

    async def CreateRunToken(self, request: pb.CreateRunTokenRequest, caller: Caller) -> Answer:
        """Registers a token of one run, which acts under the caller's name."""
        check_pattern(RANDOM_ID, request.run_id, "runId", "is no run id")
        principal = caller.principal
        if principal.credential is not CredentialKind.TOKEN:  # nothing would end it with its maker
            raise invalid(
                "runToken.principal",
                f"would be {principal.name}, no service account: call with a token of a service account",
            )
        token = decode_field(
            request,
            "run_token",
            "runToken",
            RunToken,
            run_id=request.run_id,
            principal=principal.name,
            principal_project_id=principal.project_id,
        )

        async def decide(view: View) -> Change:
            _check_life(view, token.expire_time, MAX_RUN_TOKEN_DAYS, "runToken.expireTime")
            await view.need(Run, run_name(view.project_id, token.run_id), run_id=token.run_id)
            await _check_new(view, token.token_digest)
            name = run_token_name(view.project_id, token.run_id, token.token_digest)
            return creation(view, caller, "run_token.create", name, token, pb.RunToken())

        return await self.work.change(call_of(caller, request), decide)

    async def ListTokens(self, request: pb.ListTokensRequest, caller: Caller) -> pb.ListTokensResponse:
        """Lists tokens by digest."""

        async def query(view: View) -> pb.ListTokensResponse:
            reply = pb.ListTokensResponse()
            page = await self.pages.read(view, Token, ("token_digest",), request, caller.method)
            digests = [stored.value.token_digest for stored in page.items]
            uses = await view.token_uses(digests)
            revoked = await view.documents(TokenRevocation, "token_digest", digests)
            for stored in page.items:
                digest = stored.value.token_digest
                message = resource(stored, token_name(view.project_id, digest), reply.tokens.add())
                message.revoked = digest in revoked
                if digest in uses:
                    message.last_use_time.FromDatetime(uses[digest])
            reply.next_page_token = page.next_token(lambda last: (last.value.token_digest,))
            return reply

        return await self.work.read(request.project_id, query)

    async def RevokeToken(self, request: pb.RevokeTokenRequest, caller: Caller) -> Answer:
        """Ends a token, one of a run too."""
        revocation = TokenRevocation(request.token_digest, request.reason)

        async def decide(view: View) -> Change:
            digest = revocation.token_digest
            name = token_name(view.project_id, digest)
            if run_token := await view.find(RunToken, token_digest=digest):
                name = run_token_name(view.project_id, run_token.value.run_id, digest)
            else:
                await view.need(Token, name, token_digest=digest)
            found = await view.find(TokenRevocation, token_digest=digest)
            if not found:
                await _check_admin_left(view, name, token_digest=digest)
            sealed = seal(revocation)
            stored = found or new_record(view, caller, sealed)
            reply = resource(stored, token_revocation_name(name), pb.TokenRevocation())
            return Change("token.revoke", name, () if found else (sealed,), (), reply)

        return await self.work.change(call_of(caller, request), decide)

    async def SetRoleBinding(self, request: pb.SetRoleBindingRequest, caller: Caller) -> Answer:
        """Sets the roles of a member. The key of its next version decides between those who set them at once."""
        if request.etag:
            check_digest(request.etag, "etag")
        binding = decode_field(request, "role_binding", "roleBinding", RoleBinding, version=1)
        for role in binding.roles:
            check_role_scope(request.project_id, role, "roleBinding.roles")

        async def decide(view: View) -> Change:
            name = role_binding_name(view.project_id, binding.member)
            found = await view.role_binding(binding.member)
            if request.etag and request.etag != (found.digest if found else ""):
                raise Refused("ETAG_STALE", "the binding was changed since it was read: read it again", subject=name)
            if found is None and not binding.roles:
                raise unknown(RoleBinding, name)
            if found and found.value.roles == binding.roles:
                return Change("role_binding.set", name, (), (), _binding_message(view, found))
            if Role.INSTANCE_ADMIN not in binding.roles:
                await _check_admin_left(view, name, member=binding.member)
            sealed = seal(replace(binding, version=found.value.version + 1) if found else binding)
            reply = _binding_message(view, new_record(view, caller, sealed))
            return Change("role_binding.set", name, (sealed,), (), reply)

        return await self.work.change(call_of(caller, request), decide)

    async def ListRoleBindings(
        self, request: pb.ListRoleBindingsRequest, caller: Caller
    ) -> pb.ListRoleBindingsResponse:
        """Lists the bindings that give roles now, by member."""

        async def query(view: View) -> pb.ListRoleBindingsResponse:
            reply = pb.ListRoleBindingsResponse()
            page = await self.pages.read(view, RoleBinding, ("member",), request, caller.method)
            reply.role_bindings.extend(_binding_message(view, stored) for stored in page.items)
            reply.next_page_token = page.next_token(lambda last: (last.value.member,))
            return reply

        return await self.work.read(request.project_id, query)


async def _account(view: View, service_account_id: str) -> tuple[Stored[ServiceAccount], bool]:
    """A service account, and whether it was disabled. Raises NotFound."""
    name = service_account_name(view.project_id, service_account_id)
    stored = await view.need(ServiceAccount, name, service_account_id=service_account_id)
    return stored, await view.find(ServiceAccountEnd, service_account_id=service_account_id) is not None


def _account_message(view: View, stored: Stored[ServiceAccount], *, disabled: bool) -> pb.ServiceAccount:
    name = service_account_name(view.project_id, stored.value.service_account_id)
    message = resource(stored, name, pb.ServiceAccount())
    message.disabled = disabled
    return message


def _binding_message(view: View, stored: Stored[RoleBinding]) -> pb.RoleBinding:
    message = resource(stored, role_binding_name(view.project_id, stored.value.member), pb.RoleBinding())
    message.etag = stored.digest
    return message


def _check_life(view: View, expire_time: str, days: int, field: str) -> None:
    life = parse_time(expire_time) - parse_time(view.time)
    if not timedelta(0) < life <= timedelta(days=days):
        raise invalid(field, f"is past or more than {days} days away")


async def _check_new(view: View, token_digest: str) -> None:
    """Raises Conflict where the project has a token of this hash, one of a run too."""
    name = token_name(view.project_id, token_digest)
    found = await view.find(Token, token_digest=token_digest)
    if found is not None or await view.find(RunToken, token_digest=token_digest) is not None:
        raise Conflict("TOKEN_EXISTS", "a token with this hash is registered", name=name)


async def _check_admin_left(
    view: View, name: str, *, token_digest: str = "", service_account_id: str = "", member: str = ""
) -> None:
    """Raises Refused where nobody would administer the instance without what is about to end.

    From here on to the end of the transaction no other one can end the rest.
    """
    if view.project_id != SYSTEM_PROJECT:
        return
    await view.lock_admins()
    if not await view.has_admin(
        view.time, token_digest=token_digest, service_account_id=service_account_id, member=member
    ):
        raise Refused(
            "LAST_ADMIN",
            "nobody would administer the instance: give another the role instance_admin first",
            subject=name,
        )
