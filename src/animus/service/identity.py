"""Who calls: what a call's credential proves, and the roles that the records give it.

What the database says of a credential is remembered for half a second: so long may one that was revoked still be taken,
on any replica.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime

import structlog

from animus.codec import sha256
from animus.domain import document
from animus.domain.access import TOKEN, CredentialKind, Principal, Role, RoleBinding, RunToken, Token
from animus.domain.errors import Denied
from animus.domain.names import format_time
from animus.service.certificates import named_by
from animus.service.issuers import Issuers
from animus.service.jwt import Untrusted
from animus.service.limits import Turns
from animus.store.unit_of_work import UnitOfWork

REMEMBER_SECONDS = 0.5
REMEMBER_AT_MOST = 10_000
KNOWN, UNKNOWN = "known", "unknown"  # credentials, as they take turns to be looked up

log = structlog.get_logger("animus.identity")


class Identity:
    """Finds the principal of a call."""

    def __init__(
        self, work: UnitOfWork, issuers: Issuers, lookups: Turns, note_use: Callable[[str, str], None]
    ) -> None:
        """`note_use` is told project and digest of an API token that is taken, each time that the database is asked."""
        self._work = work
        self._issuers = issuers
        self._lookups = lookups
        self._note_use = note_use
        self._known: dict[str, tuple[float, Principal]] = {}  # by digest of the token
        self._grants: dict[tuple[str, ...], tuple[float, dict[str, frozenset[Role]]]] = {}  # by members

    async def principal(self, metadata: Iterable[tuple[str, str | bytes]], certificate: str) -> Principal:
        """The caller. Raises Denied TOKEN_INVALID, the same for every fault of a credential.

        `certificate` is the client certificate of the connection, verified, in PEM; empty where there is none. A bearer
        credential counts in its place. Raises Unavailable too, where nothing can be said of a credential: the database
        or the issuer does not answer.
        """
        token = _bearer(metadata)
        if TOKEN.fullmatch(token):
            return await self._of_token(token)
        if token.count(".") == 2:
            return await self._of_jwt(token)
        if not token and certificate:
            return await self._of_certificate(certificate)
        raise _refused()

    async def _of_token(self, token: str) -> Principal:
        digest = sha256(token.encode())
        now = time.monotonic()
        known = self._known.get(digest)
        if known and known[0] > now:
            return known[1]
        match = TOKEN.fullmatch(token)
        assert match is not None  # or it was not called
        # Tokens that were good a moment ago take turns with those that nobody knows, which strangers can make up.
        async with self._lookups.taken(KNOWN if known else UNKNOWN):
            known = self._known.get(digest)
            if known and known[0] > now:  # another call of this caller has asked meanwhile
                return known[1]
            found = await self._work.find_token(match[1], digest)
        if found is None:
            self._known.pop(digest, None)
            raise _refused()
        if found.of_run:
            run_token = document.load(found.document, RunToken)
            grants = {found.project_id: frozenset({Role.RUNTIME})}
            principal = Principal(
                run_token.principal, grants, CredentialKind.RUN_TOKEN, run_token.run_id, run_token.expire_time, ()
            )
        else:
            registration = document.load(found.document, Token)
            self._note_use(found.project_id, digest)
            grants = {found.project_id: frozenset({registration.role})}
            principal = Principal(
                registration.principal, grants, CredentialKind.TOKEN, "", registration.expire_time, ()
            )
        if len(self._known) >= REMEMBER_AT_MOST:
            self._known.clear()
        self._known[digest] = (now + REMEMBER_SECONDS, principal)
        return principal

    async def _of_jwt(self, token: str) -> Principal:
        try:
            subject = await self._issuers.subject(token, time.time())
        except Untrusted as error:
            log.debug("a JWT was refused", check=str(error))
            raise _refused() from None
        grants = await self._granted(subject.members)
        return Principal(subject.name, grants, CredentialKind.JWT, "", subject.expire_time, subject.members)

    async def _of_certificate(self, certificate: str) -> Principal:
        named = named_by(certificate)
        if not named.members or named.expire_time <= time.time():  # a connection may outlive its certificate
            raise _refused()
        grants = await self._granted(named.members)
        expires = format_time(datetime.fromtimestamp(named.expire_time, UTC))
        return Principal(named.members[0], grants, CredentialKind.CERTIFICATE, "", expires, named.members)

    async def _granted(self, members: Sequence[str]) -> dict[str, frozenset[Role]]:
        """The roles of the members by project, as their role bindings give them."""
        key = tuple(members)
        now = time.monotonic()
        known = self._grants.get(key)
        if known and known[0] > now:
            return known[1]
        roles: dict[str, frozenset[Role]] = defaultdict(frozenset)
        async with self._lookups.taken(KNOWN):  # the members are proven
            found = await self._work.find_grants(key)
        for project_id, binding in found:
            if granted := document.load(binding, RoleBinding).roles:
                roles[project_id] |= frozenset(granted)
        if len(self._grants) >= REMEMBER_AT_MOST:
            self._grants.clear()
        self._grants[key] = (now + REMEMBER_SECONDS, dict(roles))
        return dict(roles)


def _bearer(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """The bearer credential of a call, empty where there is none. Raises Denied for a header that is not one."""
    values = [value for key, value in metadata if key == "authorization"]
    if not values:
        return ""
    if len(values) > 1 or not isinstance(values[0], str):
        raise _refused()
    scheme, _, credential = values[0].partition(" ")
    if scheme.lower() != "bearer" or not credential:
        raise _refused()
    return credential


def _refused() -> Denied:
    return Denied("TOKEN_INVALID", "the call needs a valid credential: authorization: Bearer <token>")
