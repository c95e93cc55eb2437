"""Who calls: what a call's credential proves, and the roles that the records give it.

What the database says of a credential is remembered for half a second: so long may one that was revoked still be taken,
on any replica.
"""

import time
from collections import defaultdict
from collections.abc import Iterable, Sequence

from animus.codec import sha256
from animus.domain import document
from animus.domain.access import TOKEN, CredentialKind, Principal, Role, RoleBinding, RunToken, Token
from animus.domain.errors import Denied
from animus.service.limits import Turns
from animus.store.unit_of_work import UnitOfWork

REMEMBER_SECONDS = 0.5
REMEMBER_AT_MOST = 10_000
KNOWN, UNKNOWN = "known", "unknown"  # credentials, as they take turns to be looked up


class Identity:
    """Finds the principal of a call."""

    def __init__(self, work: UnitOfWork, lookups: Turns) -> None:
        self._work = work
        self._lookups = lookups
        self._known: dict[str, tuple[float, Principal]] = {}  # by digest of the token
        self._grants: dict[tuple[str, ...], tuple[float, dict[str, frozenset[Role]]]] = {}  # by members

    async def principal(self, metadata: Iterable[tuple[str, str | bytes]]) -> Principal:
        """The caller. Raises Denied TOKEN_INVALID, the same for every fault of a credential."""
        token = _bearer(metadata)
        if TOKEN.fullmatch(token):
            return await self._of_token(token)
        raise _refused()

    async def _of_token(self, token: str) -> Principal:
        digest = sha256(token.encode())
        now = time.monotonic()
        known = self._known.get(digest)
        if known and known[0] > now:
            return known[1]
        # Tokens that were good a moment ago take turns with those that nobody knows, which strangers can make up.
        async with self._lookups.taken(KNOWN if known else UNKNOWN):
            known = self._known.get(digest)
            if known and known[0] > now:  # another call of this caller has asked meanwhile
                return known[1]
            found = await self._work.find_token(digest)
        match = TOKEN.fullmatch(token)
        if found is None or match is None or found.project_id != match[1]:
            self._known.pop(digest, None)
            raise _refused()
        if found.of_run:
            run_token = document.load(found.document, RunToken)
            grants = {found.project_id: frozenset({Role.RUNTIME})}
            principal = Principal(
                run_token.principal, grants, CredentialKind.RUN_TOKEN, run_token.run_id, run_token.expire_time
            )
        else:
            registration = document.load(found.document, Token)
            grants = {found.project_id: frozenset({registration.role})}
            principal = Principal(registration.principal, grants, CredentialKind.TOKEN, "", registration.expire_time)
        if len(self._known) >= REMEMBER_AT_MOST:
            self._known.clear()
        self._known[digest] = (now + REMEMBER_SECONDS, principal)
        return principal

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
    return Denied("TOKEN_INVALID", "the call needs a valid credential: authorization: Bearer animus_…")
