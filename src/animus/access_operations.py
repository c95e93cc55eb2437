"""Break-glass: how the owner of the database gets in when nobody else can, past every role, and on the record."""

import json
import secrets
from datetime import timedelta

from animus.codec import encode
from animus.config import Settings
from animus.domain.access import BREAK_GLASS, BreakGlass, Role, Token, principal_of
from animus.domain.document import seal
from animus.domain.names import SYSTEM_PROJECT, format_time, parse_time, token_name
from animus.log_operations import OperationRefused, opened
from animus.store.owner import NotOwner, owner_of
from animus.store.unit_of_work import Call, Change, View
from animus.v1 import access_pb2 as pb

ACTION = "access.break_glass"


async def break_glass(settings: Settings, token_digest: str, reason: str, hours: int) -> pb.Token:
    """Registers an instance administrator's token for so many hours.

    Whoever runs it has the log's private key, the server's database URL, and a login of the database's owner, which is
    named in the record beside the reason. Raises OperationRefused where that login is not the owner's.
    """
    async with opened(settings) as log:
        if not log.owner_url:
            raise OperationRefused("set ANIMUS_OWNER_DATABASE_URL or ANIMUS_OWNER_DATABASE_URL_FILE: it is the proof")
        try:
            role = await owner_of(log.engine, log.owner_url)
        except ValueError as error:
            raise OperationRefused(f"ANIMUS_OWNER_DATABASE_URL {error}") from None
        except NotOwner as error:
            raise OperationRefused(f"ANIMUS_OWNER_DATABASE_URL: {error}") from None
        record = BreakGlass(token_digest, reason, role)

        async def decide(view: View) -> Change:
            end = parse_time(view.time) + timedelta(hours=hours)
            token = Token(token_digest, BREAK_GLASS, Role.INSTANCE_ADMIN, format_time(end))
            name = token_name(SYSTEM_PROJECT, token_digest)
            return Change(ACTION, name, (seal(token), seal(record)), (), encode(token, pb.Token()))

        request = {"tokenDigest": token_digest, "reason": reason, "databaseRole": role, "hours": hours}
        call = Call(
            method=f"animus.operator/{ACTION}",
            project_id=SYSTEM_PROJECT,
            principal=principal_of(BREAK_GLASS, Role.INSTANCE_ADMIN, SYSTEM_PROJECT),
            request_id=secrets.token_hex(16),
            validate_only=False,
            request=json.dumps(request).encode(),
        )
        answer = await log.work.change(call, decide)
        return pb.Token.FromString(answer.reply)
