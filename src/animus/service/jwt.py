"""JSON Web Tokens of OpenID Connect issuers: what is checked of one, and who it says is calling. No I/O, no clock.

Sources: RFC 7519 (JWT), RFC 7515 (JWS), RFC 7517, 7518 and 8037 (keys and algorithms), RFC 8725 (what goes wrong).

A token is read, which finds its issuer and checks all that needs no key, and then proven with a key of that issuer.
Only what was proven says who calls. Whatever is wrong raises Untrusted, whose text holds nothing of the token.
"""

import base64
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, NoReturn

import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from jwt.algorithms import AllowedPublicKeys

from animus.domain.access import MEMBER
from animus.domain.document import Violations, from_tree, json_name, parse_json
from animus.domain.errors import Invalid, invalid
from animus.domain.names import (
    check_count,
    check_pattern,
    check_resource_id,
    check_within,
    format_time,
    sorted_set,
)

MAX_JWT_BYTES = 8 << 10
MAX_MEMBERS = 200  # of one caller
MAX_ISSUERS = 50
MAX_KEYS = 100  # of one issuer
MAX_TIME = 253_402_300_799  # the last second of the year 9999
RSA_BITS = range(2_048, 8_192 + 1)

COMPACT = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
EXACT = re.compile(r"[!-~]{1,500}")
CLAIM = re.compile(r"(?:[!-\-/-\[\]-~]|\\\.)+(?:\.(?:[!-\-/-\[\]-~]|\\\.)+)*")  # parts with `\.` for a dot inside one
DOT = re.compile(r"(?<!\\)\.")
PREFIX = re.compile(r"(?:[!-~][ -~]{0,99})?")
FILE = re.compile(r"/[ -~]{1,4095}")
# Plain HTTP goes to this machine only. Neither user nor fragment: there is nothing to sign in with.
URL = re.compile(
    r"(?:(?P<tls>https)://(?P<host>\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)"
    r"|http://(?P<local>localhost|127(?:\.[0-9]{1,3}){3}|\[::1\]))"
    r"(?::(?P<port>[0-9]{1,5}))?(?P<path>/[!-\"$-~]*)?"
)


class Algorithm(StrEnum):
    """How an issuer may sign: by public keys only, so that no key that verifies can sign."""

    RS256 = "RS256"
    RS384 = "RS384"
    RS512 = "RS512"
    PS256 = "PS256"
    PS384 = "PS384"
    PS512 = "PS512"
    ES256 = "ES256"
    ES384 = "ES384"
    EDDSA = "EdDSA"


# What a key can verify, by its type and curve.
FITS = {
    ("RSA", None): frozenset({each for each in Algorithm if each[:2] in ("RS", "PS")}),
    ("EC", "P-256"): frozenset({Algorithm.ES256}),
    ("EC", "P-384"): frozenset({Algorithm.ES384}),
    ("OKP", "Ed25519"): frozenset({Algorithm.EDDSA}),
}


class Untrusted(Exception):
    """A token that proves nothing; its text says which check it failed, for the log alone."""


@dataclass(frozen=True, slots=True)
class GroupClaim:
    """A claim whose values become members `group:<issuer id>:<prefix><value>`."""

    claim: str  # a path of names with dots between; `\\.` is a dot inside a name
    prefix: str  # at most 100 characters

    def __post_init__(self) -> None:
        _check_claim(self.claim, "claim")
        check_pattern(PREFIX, self.prefix, "prefix", "is no prefix: give at most 100 printable ASCII characters")


@dataclass(frozen=True, slots=True)
class Issuer:
    """An issuer whose tokens are taken, and what is taken of them."""

    id: str  # in the names of its members
    issuer: str  # `iss`, exactly
    audience: str  # one of `aud`, exactly
    algorithms: tuple[Algorithm, ...]  # a set
    jwks_file: str  # absolute path; else empty
    jwks_url: str  # else empty
    ca_file: str  # of who vouches for the URL's server; empty: whom the system trusts
    leeway_seconds: int  # 0 to 300: how far its clock and the server's may be apart
    principal_claim: str  # whose value names the caller
    groups: tuple[GroupClaim, ...]  # at most 20

    def __post_init__(self) -> None:
        check_resource_id(self.id, "id")
        for field in ("issuer", "audience"):
            rule = "is empty, too long or not printable: give 1 to 500 ASCII characters without space"
            check_pattern(EXACT, getattr(self, field), field, rule)
        check_count(self.algorithms, 1, len(Algorithm), "algorithms")
        object.__setattr__(self, "algorithms", sorted_set(self.algorithms, lambda each: each, "algorithms", ""))
        if bool(self.jwks_file) == bool(self.jwks_url):
            raise invalid("jwksFile", "or jwksUrl is needed: give one of the two")
        if self.jwks_url:
            check_pattern(URL, self.jwks_url, "jwksUrl", "is no https:// address, nor an http:// one of this machine")
        for field in ("jwks_file", "ca_file"):
            if getattr(self, field):
                check_pattern(FILE, getattr(self, field), json_name(field), "is no absolute path")
        if self.ca_file and not self.jwks_url.startswith("https:"):
            raise invalid("caFile", "is for a jwksUrl of https://")
        check_within(self.leeway_seconds, 0, 300, "leewaySeconds")
        _check_claim(self.principal_claim, "principalClaim")
        check_count(self.groups, 0, 20, "groups")


@dataclass(frozen=True, slots=True)
class Key:
    """A public key of an issuer."""

    kid: str | None
    algorithms: frozenset[Algorithm]  # it can verify
    public: AllowedPublicKeys


@dataclass(frozen=True, slots=True)
class Unproven:
    """A token that may be of its issuer: whoever made it knows what the issuer's tokens look like, no more."""

    token: str
    issuer: Issuer
    algorithm: Algorithm
    kid: str | None
    claims: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Subject:
    """Whom an issuer vouched for."""

    name: str  # `oidc:<issuer id>:<subject>`, itself a member
    members: tuple[str, ...]  # sorted
    expire_time: str


def load_issuers(text: bytes) -> tuple[Issuer, ...]:
    """The issuers of a JSON list. Raises Invalid with the path of what is wrong."""
    tree = parse_json(text)
    if not isinstance(tree, list):
        raise invalid("", "is no list of issuers")
    check_count(tuple(tree), 1, MAX_ISSUERS, "")
    unsaid = {"jwksFile": "", "jwksUrl": "", "caFile": ""}
    violations, issuers = Violations(), []
    for index, each in enumerate(tree):
        try:
            issuers.append(from_tree({**unsaid, **each} if isinstance(each, dict) else each, Issuer))
        except Invalid as error:
            violations.add(f"[{index}]", error)
    violations.raise_any()
    sorted_set(tuple(issuers), lambda each: each.id, "", "id")
    sorted_set(tuple(issuers), lambda each: f"{each.issuer} {each.audience}", "", "audience")
    return tuple(issuers)


def load_keys(text: bytes) -> tuple[Key, ...]:
    """The keys of a JWK Set that can verify a token. Raises Invalid where there are none, or one that is private.

    Keys of other kinds and uses stand beside them in the sets of many issuers, and are passed over.
    """
    tree = _parsed(text)
    found = tree.get("keys") if tree else None
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise invalid("", "is no JWK Set: an object with `keys`, a list of objects, and no name twice in one")
    check_count(tuple(found), 1, MAX_KEYS, "keys")
    for index, each in enumerate(found):
        if "d" in each:
            raise invalid(f"keys[{index}]", "is a private key: the issuer keeps those to itself")
    keys = tuple(key for each in found if (key := _key(each)) is not None)
    if not keys:
        raise invalid(
            "keys", f"has none for signatures: RSA of {RSA_BITS[0]} to {RSA_BITS[-1]} bits, P-256, P-384 or Ed25519"
        )
    return keys


def _key(jwk: Mapping[str, Any]) -> Key | None:
    """A key, unless it is of a kind or for a use that is not ours."""
    kty, crv, kid, operations = jwk.get("kty"), jwk.get("crv"), jwk.get("kid"), jwk.get("key_ops", ["verify"])
    if not isinstance(kty, str) or not isinstance(crv, str | None) or not isinstance(kid, str | None):
        return None
    if jwk.get("use", "sig") != "sig" or not isinstance(operations, list) or "verify" not in operations:
        return None
    algorithms = FITS.get((kty, crv), frozenset())
    if "alg" in jwk:
        algorithms = frozenset(each for each in algorithms if each == jwk["alg"])
    if not algorithms:
        return None
    try:
        public = jwt.PyJWK(dict(jwk), min(algorithms)).key
    except (jwt.PyJWTError, ValueError, TypeError, KeyError):
        return None
    if isinstance(public, RSAPublicKey) and public.key_size not in RSA_BITS:
        return None
    return Key(kid, algorithms, public)


def read(token: str, issuers: Sequence[Issuer], now: float) -> Unproven:
    """What a token claims, with all checked that needs no key, at a time in seconds since 1970. Raises Untrusted."""
    if len(token) > MAX_JWT_BYTES or not COMPACT.fullmatch(token):
        _refuse("form")
    header, claims, _ = token.split(".")
    found = _parsed(_decoded(claims))
    if found is None:
        _refuse("claims")
    issuer = _issuer(found, issuers)
    algorithm, kid = _header(_parsed(_decoded(header)), issuer)
    _check_times(found, issuer.leeway_seconds, now)
    return Unproven(token, issuer, algorithm, kid, found)


def prove(unproven: Unproven, keys: Sequence[Key]) -> Subject:
    """Whom the issuer vouches for, if one of its keys signed the token. Raises Untrusted."""
    fitting = [key for key in keys if unproven.algorithm in key.algorithms]
    if unproven.kid is not None:
        fitting = [key for key in fitting if key.kid == unproven.kid]
    elif len(fitting) > 1:
        _refuse("kid")
    if not any(_signed(unproven, key) for key in fitting):
        _refuse("signature")
    return _subject(unproven.issuer, unproven.claims)


def _signed(unproven: Unproven, key: Key) -> bool:
    """Whether a key signed the token. PyJWT's own reading of tokens looks at each character: an attacker's lever."""
    algorithm = jwt.get_algorithm_by_name(unproven.algorithm)
    data, _, signature = unproven.token.rpartition(".")
    try:
        return algorithm.verify(data.encode(), algorithm.prepare_key(key.public), _decoded(signature))
    except (jwt.PyJWTError, ValueError):
        return False


def _refuse(check: str) -> NoReturn:
    raise Untrusted(check)


def _decoded(part: str) -> bytes:
    """The bytes of base64url in its one spelling: else a changed token could be as good as the one it was made of."""
    try:
        data = base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
    except ValueError:
        _refuse("base64")
    if base64.urlsafe_b64encode(data).rstrip(b"=").decode() != part:
        _refuse("base64")
    return data


def _parsed(text: bytes) -> dict[str, Any] | None:
    """A JSON object in which no object has a name twice; None for anything else."""

    def distinct(pairs: list[tuple[str, object]]) -> dict[str, object]:
        if len({name for name, _ in pairs}) < len(pairs):
            raise ValueError
        return dict(pairs)

    def constant(_: str) -> NoReturn:  # NaN and the infinities, which are no JSON
        raise ValueError

    try:
        tree = json.loads(text.decode(), object_pairs_hook=distinct, parse_constant=constant)
    except (ValueError, RecursionError):
        return None
    return tree if isinstance(tree, dict) else None


def _issuer(claims: Mapping[str, Any], issuers: Sequence[Issuer]) -> Issuer:
    """The one issuer that the token can be of."""
    audience = claims.get("aud")
    audiences = [audience] if isinstance(audience, str) else audience
    if not isinstance(audiences, list) or not all(isinstance(each, str) for each in audiences):
        _refuse("aud")
    of_name = [each for each in issuers if each.issuer == claims.get("iss")]
    if not of_name:
        _refuse("iss")
    found = [each for each in of_name if each.audience in audiences]
    if len(found) != 1:  # of two, neither is the one that was meant
        _refuse("aud")
    return found[0]


def _header(header: Mapping[str, Any] | None, issuer: Issuer) -> tuple[Algorithm, str | None]:
    """How the token says it was signed, and with which key. Keys, and addresses of keys, in a header mean nothing."""
    if header is None or "crit" in header or "b64" in header:
        _refuse("header")
    kind = header.get("typ", "JWT")
    if not isinstance(kind, str) or kind.lower().removeprefix("application/") not in ("jwt", "at+jwt"):
        _refuse("typ")
    if header.get("alg") not in issuer.algorithms:
        _refuse("alg")
    kid = header.get("kid")
    if "kid" in header and not isinstance(kid, str):
        _refuse("kid")
    return Algorithm(header["alg"]), kid


def _check_times(claims: Mapping[str, Any], leeway: int, now: float) -> None:
    for name in ("exp", "nbf", "iat"):
        if name in claims or name == "exp":
            value = claims.get(name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MAX_TIME:
                _refuse(name)
            if value + leeway <= now if name == "exp" else value - leeway > now:
                _refuse(name)


def _subject(issuer: Issuer, claims: Mapping[str, Any]) -> Subject:
    subject = _at(claims, issuer.principal_claim)
    name = f"oidc:{issuer.id}:{subject}"
    if not isinstance(subject, str) or not MEMBER.fullmatch(name):
        _refuse("principalClaim")
    members = {name}
    for group in issuer.groups:
        value = _at(claims, group.claim)
        values = [] if value is None else [value] if isinstance(value, str) else value
        if not isinstance(values, list) or not all(isinstance(each, str) for each in values):
            _refuse("groups")
        found = (f"group:{issuer.id}:{group.prefix}{each}" for each in values)
        members |= {each for each in found if MEMBER.fullmatch(each)}  # nothing can be bound to another
    if len(members) > MAX_MEMBERS:  # any choice among them would be arbitrary
        _refuse("members")
    expires = datetime.fromtimestamp(math.floor(claims["exp"]), UTC)
    return Subject(name, tuple(sorted(members)), format_time(expires))


def _at(claims: Mapping[str, Any], path: str) -> Any:
    """What stands at a path of claims; None where nothing does."""
    node: Any = claims
    for part in DOT.split(path):
        node = node.get(part.replace("\\.", ".")) if isinstance(node, dict) else None
    return node


def _check_claim(path: str, field: str) -> None:
    rule = "is no claim: give at most 200 printable ASCII characters without space, names with dots between them"
    if len(path) > 200:
        raise invalid(field, rule)
    check_pattern(CLAIM, path, field, rule)
