"""AccessService."""

from datetime import timedelta

from animus.domain.access import MAX_TOKEN_DAYS, Token, check_token_scope
from animus.domain.errors import Conflict, invalid
from animus.domain.names import parse_time, token_name
from animus.service.calls import Caller, call_of, creation, decode_field
from animus.store.unit_of_work import Answer, Change, UnitOfWork, View
from animus.v1 import access_pb2 as pb


class AccessService:
    """Registers API tokens by their hash."""

    def __init__(self, work: UnitOfWork) -> None:
        self.work = work

    async def CreateToken(self, request: pb.CreateTokenRequest, caller: Caller) -> Answer:
        """Registers a token."""
        token = decode_field(request, "token", "token", Token)
        check_token_scope(request.project_id, token)

        async def decide(view: View) -> Change:
            life = parse_time(token.expire_time) - parse_time(view.time)
            if not timedelta(0) < life <= timedelta(days=MAX_TOKEN_DAYS):
                raise invalid("token.expireTime", f"is past or more than {MAX_TOKEN_DAYS} days away")
            name = token_name(view.project_id, token.token_digest)
            if await view.find(Token, token_digest=token.token_digest):
                raise Conflict("TOKEN_EXISTS", "a token with this hash is registered", name=name)
            return creation(view, caller, "token.create", name, token, pb.Token())

        return await self.work.change(call_of(caller, request), decide)
