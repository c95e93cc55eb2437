"""JWT: whom a good one vouches for, and every way of making one that is not good; keys, and the file of issuers."""

import base64
import contextlib
import hashlib
import hmac
import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from domain.values import refusal
from hypothesis import given, settings
from hypothesis import strategies as st

from animus.domain.access import RoleBinding
from animus.domain.errors import Invalid
from animus.service.jwt import (
    MAX_JWT_BYTES,
    MAX_MEMBERS,
    Algorithm,
    Issuer,
    Subject,
    Unproven,
    Untrusted,
    load_issuers,
    load_keys,
    prove,
    read,
)
from service.signers import Signer, Tree, encode, issuer, jwks

NOW = 1_800_000_000
RSA, EC, EC2 = Signer.new("rsa", "rsa2048"), Signer.new("ec", "P-256"), Signer.new("ec2", "P-256")
P384, ED = Signer.new("p384", "P-384"), Signer.new("ed", "Ed25519")
STRANGER = Signer.new("ec", "P-256")
SHORT = Signer.new("short", "rsa1024")
SIGNERS = {"RS": RSA, "PS": RSA, "ES256": EC, "ES384": P384, "EdDSA": ED}
KEYS = jwks(RSA, EC, EC2, P384, ED)


def issuers_of(*trees: Tree) -> tuple[Issuer, ...]:
    """The issuers of a file with these."""
    return load_issuers(json.dumps(trees).encode())


CORP = issuer(jwksFile="/etc/animus/corp.jwks", algorithms=[str(each) for each in Algorithm])
(ISSUER,) = issuers_of(CORP)


def claims(**more: Any) -> Tree:
    """The claims of a good token, with some changed; those that are None are left out."""
    good = {
        "iss": CORP["issuer"],
        "aud": "animus",
        "sub": "6f1d",
        "exp": NOW + 300,
        "iat": NOW,
        "groups": ["ml"],
        **more,
    }
    return {name: value for name, value in good.items() if value is not None}


def verify(token: str, keys: bytes = KEYS, now: float = NOW, issuers: tuple[Issuer, ...] = (ISSUER,)) -> Subject:
    """Whom a token vouches for. Raises Untrusted."""
    return prove(read(token, issuers, now), load_keys(keys))


def failed(token: str, **more: Any) -> str:
    """The check that a token fails."""
    with pytest.raises(Untrusted) as caught:
        verify(token, **more)
    return str(caught.value)


def good(**more: Any) -> str:
    """A token with claims changed."""
    return EC.token("ES256", claims(**more))


# Good tokens.


@pytest.mark.parametrize("algorithm", list(Algorithm))
def test_a_good_token_vouches_for_its_subject(algorithm: str) -> None:
    """By each algorithm, with the name, the groups as members, and when it ends."""
    signer = SIGNERS.get(algorithm) or SIGNERS[algorithm[:2]]
    found = verify(signer.token(algorithm, claims()))
    assert found == Subject("oidc:corp:6f1d", ("group:corp:ml", "oidc:corp:6f1d"), "2027-01-15T08:05:00.000000Z")


OF_THE_RFCS = "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ"
PUBLISHED = {
    # RFC 7515, A.2
    "RS256": (
        f"eyJhbGciOiJSUzI1NiJ9.{OF_THE_RFCS}.cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4"
        "Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQ"
        "BMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np"
        "6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw",
        {
            "kty": "RSA",
            "e": "AQAB",
            "n": "ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-y"
            "RT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQO"
            "S-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2e"
            "thFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ",
        },
    ),
    # RFC 7515, A.3
    "ES256": (
        f"eyJhbGciOiJFUzI1NiJ9.{OF_THE_RFCS}.DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfK"
        "TUJqPP3-Kg6NU1Q",
        {
            "kty": "EC",
            "crv": "P-256",
            "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
            "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0",
        },
    ),
    # RFC 8037, A.4
    "EdDSA": (
        "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc.hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijc"
        "NR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg",
        {"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"},
    ),
}


@pytest.mark.parametrize("algorithm", PUBLISHED)
def test_the_published_signatures_verify(algorithm: str) -> None:
    """Those of RFC 7515 and 8037, whose payloads are no claims of ours; with a byte changed in one, none does."""
    token, key = PUBLISHED[algorithm]
    keys = load_keys(jwks(key))
    head, payload, signature = token.split(".")
    for text, ok in ((token, True), (f"{head}.{payload[:-1]}{chr(ord(payload[-1]) ^ 4)}.{signature}", False)):
        unproven = Unproven(text, ISSUER, Algorithm(algorithm), None, claims())
        if ok:
            assert prove(unproven, keys).name == "oidc:corp:6f1d"
        else:
            with pytest.raises(Untrusted, match="signature"):
                prove(unproven, keys)


# Whom it vouches for.

GROUPS = [
    {"claim": "groups", "prefix": ""},
    {"claim": "realm_access.roles", "prefix": "role/"},
    {"claim": "kubernetes\\.io.namespace", "prefix": "ns/"},
]


def test_claims_become_members() -> None:
    """Of lists and single values, below names with dots inside them, each once; what no record can name does not."""
    (found,) = issuers_of({**CORP, "groups": GROUPS})
    token = good(
        groups=["b", "a", "b", "Ünlü", "", " x"],
        realm_access={"roles": ["admin"]},
        **{"kubernetes.io": {"namespace": "train"}, "kubernetes": {"io": {"namespace": "no"}}},
    )
    subject = verify(token, issuers=(found,))
    assert subject.members == (
        *("group:corp:a", "group:corp:b", "group:corp:ns/train", "group:corp:role/admin", "oidc:corp:6f1d"),
    )
    for member in subject.members:
        RoleBinding(member, (), 1)
    assert verify(good(groups=None), issuers=(found,)).members == ("oidc:corp:6f1d",)


def test_the_principal_is_of_the_claim_that_the_issuer_names() -> None:
    """Below a path too, and in the issuer's own name space."""
    (found,) = issuers_of({**CORP, "id": "k8s", "principalClaim": "a.b", "groups": []})
    assert verify(good(a={"b": "system:serviceaccount:ml:train"}), issuers=(found,)).members == (
        "oidc:k8s:system:serviceaccount:ml:train",
    )


@pytest.mark.parametrize("subject", ["", " x", "x ", "é", "a\nb", "x" * 401, 7, None, ["x"], {"a": "b"}, True])
def test_a_subject_that_cannot_be_a_member_is_refused(subject: object) -> None:
    """Whatever is no text, or none that a role binding could name."""
    assert failed(good(sub=subject)) == "principalClaim"


@pytest.mark.parametrize("groups", [7, True, {"a": "b"}, ["a", 7], [["a"]], [None]])
def test_groups_that_are_no_texts_are_refused(groups: object) -> None:
    """They are not left out in silence: the issuer is set up in another way than the file of issuers says."""
    assert failed(good(groups=groups)) == "groups"


def test_more_members_than_are_looked_up_are_refused() -> None:
    """Two hundred with the caller itself, and not an arbitrary part of more."""
    many = [f"g{index}" for index in range(MAX_MEMBERS)]
    assert len(verify(good(groups=many[1:])).members) == MAX_MEMBERS
    assert failed(good(groups=many)) == "members"


# Attacks: each token and the check that it fails.


def unsigned(header: Tree) -> str:
    """Header and good claims."""
    return ".".join(encode(json.dumps(part).encode()) for part in (header, claims()))


def hmac_token(algorithm: str, secret: bytes) -> str:
    """A token whose secret is what is known of an issuer."""
    data = unsigned({"alg": algorithm, "typ": "JWT", "kid": "rsa"})
    digest = {"HS256": hashlib.sha256, "HS384": hashlib.sha384, "HS512": hashlib.sha512}[algorithm]
    return f"{data}.{encode(hmac.new(secret, data.encode(), digest).digest())}"


def parts(token: str) -> list[str]:
    """Header, claims and signature."""
    return token.split(".")


def swapped(token: str, place: int, part: str) -> str:
    """A token with another part in one place."""
    return ".".join(part if index == place else each for index, each in enumerate(parts(token)))


def renamed(algorithm: object) -> str:
    """A good token whose header names another algorithm."""
    return swapped(good(), 0, encode(json.dumps({"alg": algorithm}).encode()))


ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


def respelt(part: str) -> str:
    """The same bytes to a reader that drops the bits that base64 has too many."""
    other = part[:-1] + ALPHABET[ALPHABET.index(part[-1]) ^ 1]
    assert base64.urlsafe_b64decode(other + "==") == base64.urlsafe_b64decode(part + "==")
    return other


ODD = next(each for more in ("", "x") if len(parts(each := good(more=more))[1]) % 4)
RSA_PUBLIC = RSA.private.public_key()
DOUBLED = json.dumps(claims()).encode()[:-1] + b', "sub": "root"}'
NO_TIMES: list[Any] = ["1900000000", True, [], -1, 10**300, 1e300, 253_402_300_800]
ATTACKS: dict[str, tuple[Callable[[], str], str]] = {
    **{
        f"algorithm {name}": (partial(renamed, name), "alg")
        for name in ("none", "None", "nOnE", "NONE", "", "HS256", "ES512", "es256", "RS1", None, 7, ["ES256"], {"a": 1})
    },
    "no algorithm": (lambda: EC.token("ES256", claims(), alg=None), "alg"),
    "none without signature": (lambda: f"{unsigned({'alg': 'none'})}.", "form"),
    **{
        f"{algorithm} with the public key as secret, {form}": (partial(hmac_token, algorithm, secret), "alg")
        for algorithm in ("HS256", "HS384", "HS512")
        for form, secret in {
            "PEM": RSA_PUBLIC.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
            "DER": RSA_PUBLIC.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
            "JWK": json.dumps(RSA.jwk()).encode(),
        }.items()
    },
    "another key of the same kid": (lambda: STRANGER.token("ES256", claims()), "signature"),
    "a kid of another key of the issuer": (lambda: EC.token("ES256", claims(), kid="ec2"), "signature"),
    "a kid of a key of another kind": (lambda: EC.token("ES256", claims(), kid="rsa"), "signature"),
    "a kid that nobody has": (lambda: EC.token("ES256", claims(), kid="../../dev/null"), "signature"),
    "no kid where several keys fit": (lambda: EC.token("ES256", claims(), kid=None), "kid"),
    "a kid that is no text": (lambda: EC.token("ES256", claims(), kid=7), "kid"),
    "a kid that is null": (lambda: EC.token("ES256", claims(), {"alg": "ES256", "kid": None}), "kid"),
    "RS256 in the header, signed by P-256": (lambda: EC.token("ES256", claims(), alg="RS256"), "signature"),
    "ES256 in the header, signed by RSA": (lambda: RSA.token("RS256", claims(), alg="ES256"), "signature"),
    "PS256 signed as RS256": (lambda: RSA.token("RS256", claims(), alg="PS256"), "signature"),
    "ES384 by P-256": (lambda: EC.token("ES256", claims(), alg="ES384"), "signature"),
    "RSA of 1024 bits": (lambda: SHORT.token("RS256", claims()), "signature"),
    "claims of another token": (lambda: swapped(good(), 1, parts(good(sub="root"))[1]), "signature"),
    "a signature of another token": (lambda: swapped(good(), 2, parts(good(sub="root"))[2]), "signature"),
    "no signature": (lambda: swapped(good(), 2, ""), "form"),
    "an empty-looking signature": (lambda: swapped(good(), 2, "AA"), "signature"),
    "a signature of zeros": (lambda: swapped(good(), 2, encode(bytes(64))), "signature"),
    "a signature with more behind it": (
        lambda: swapped(good(), 2, encode(base64.urlsafe_b64decode(parts(good())[2] + "==") + b"\x00")),
        "signature",
    ),
    "critical extensions": (lambda: EC.token("ES256", claims(), crit=["exp"], exp=NOW), "header"),
    "no critical extension": (lambda: EC.token("ES256", claims(), crit=[]), "header"),
    "an unencoded payload": (lambda: EC.token("ES256", claims(), b64=False, crit=["b64"]), "header"),
    "an unencoded payload in secret": (lambda: EC.token("ES256", claims(), b64=False), "header"),
    "another type": (lambda: EC.token("ES256", claims(), typ="logout+jwt"), "typ"),
    "a type that is no text": (lambda: EC.token("ES256", claims(), typ=["JWT"]), "typ"),
    "a header with a name twice": (
        lambda: EC.token("ES256", claims(), b'{"alg":"none","alg":"ES256","kid":"ec"}'),
        "header",
    ),
    "a header that is a list": (lambda: EC.token("ES256", claims(), b"[]"), "header"),
    "a header that is no JSON": (lambda: EC.token("ES256", claims(), b"{"), "header"),
    "a name twice": (lambda: EC.token("ES256", DOUBLED), "claims"),
    "a name twice, deeper": (lambda: EC.token("ES256", b'{"a":{"b":1,"b":2}}'), "claims"),
    "NaN": (lambda: EC.token("ES256", b'{"exp":NaN}'), "claims"),
    "no UTF-8": (lambda: EC.token("ES256", b'{"sub":"\xff"}'), "claims"),
    "UTF-16": (lambda: EC.token("ES256", json.dumps(claims()).encode("utf-16")), "claims"),
    "nesting that ends the stack": (lambda: EC.token("ES256", b'{"a":' + b"[" * 5_000 + b"]" * 500 + b"}"), "claims"),
    "an endless number": (lambda: EC.token("ES256", b'{"exp":' + b"9" * 5_000 + b"}"), "claims"),
    "claims that are a list": (lambda: EC.token("ES256", b"[]"), "claims"),
    "two parts": (lambda: ".".join(parts(good())[:2]), "form"),
    "five parts": (lambda: f"{good()}.x.y", "form"),
    "padding": (lambda: f"{good()}==", "form"),
    "a line end": (lambda: f"{good()}\n", "form"),
    "claims in another spelling": (lambda: swapped(ODD, 1, respelt(parts(ODD)[1])), "base64"),
    "a signature in another spelling": (lambda: swapped(ODD, 2, respelt(parts(ODD)[2])), "base64"),
    "base64 that ends in nothing": (lambda: swapped(good(), 1, "A"), "base64"),
    "9 KiB": (lambda: good(more="x" * 9_216), "form"),
    "another audience": (lambda: good(aud="else"), "aud"),
    "an audience in other letters": (lambda: good(aud="Animus"), "aud"),
    "other audiences": (lambda: good(aud=["else", "animus2"]), "aud"),
    "no audience": (lambda: good(aud=None), "aud"),
    "an audience that is a number": (lambda: good(aud=7), "aud"),
    "an audience among numbers": (lambda: good(aud=["animus", 7]), "aud"),
    "another issuer": (lambda: good(iss="https://id.example/realms/other"), "iss"),
    "an issuer with a slash more": (lambda: good(iss=CORP["issuer"] + "/"), "iss"),
    "no issuer": (lambda: good(iss=None), "iss"),
    "an issuer that is a list": (lambda: good(iss=[CORP["issuer"]]), "iss"),
    "expired": (lambda: good(exp=NOW - 60), "exp"),
    "no expiry": (lambda: good(exp=None), "exp"),
    **{f"an expiry of {value!r}": (partial(good, exp=value), "exp") for value in NO_TIMES},
    "an expiry without end": (
        lambda: EC.token("ES256", json.dumps(claims(exp=float("1e99"))).replace("1e+99", "1e999").encode()),
        "exp",
    ),
    "not yet": (lambda: good(nbf=NOW + 61), "nbf"),
    "a beginning that is a text": (lambda: good(nbf="0"), "nbf"),
    "issued in the future": (lambda: good(iat=NOW + 61), "iat"),
    "issued at no time": (lambda: EC.token("ES256", {**claims(), "iat": None}), "iat"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_refused_by_the_check_that_is_there_for_it(name: str) -> None:
    """And by no other, so that none of the checks is idle."""
    make, check = ATTACKS[name]
    assert failed(make()) == check


def test_the_checks_and_the_file_of_issuers_are_as_documented() -> None:
    """Each check has its word in the table, which is all that a log says of a token; the example is taken."""
    text = (Path(__file__).parents[2] / "docs" / "oidc.md").read_text()
    table = text.partition("## What is checked")[2].partition("\n## ")[0]
    words = {word for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for word in re.findall(r"`(\w+)`", row)}
    assert words == {check for _, check in ATTACKS.values()} | {"principalClaim", "groups", "members"}
    (example,) = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
    assert [each.id for each in load_issuers(example.encode())] == ["corp"]


def test_keys_in_the_header_mean_nothing() -> None:
    """`jwk`, `jku`, `x5u` and `x5c` do not make a stranger's token good, nor spoil a good one."""
    more: Tree = {"jwk": STRANGER.jwk(), "jku": "http://127.0.0.1:1/", "x5u": "http://127.0.0.1:1/", "x5c": ["AA=="]}
    assert failed(STRANGER.token("ES256", claims(), **more)) == "signature"
    assert verify(EC.token("ES256", claims(), **more)).name == "oidc:corp:6f1d"


def test_a_token_that_is_changed_in_one_character_is_refused() -> None:
    """At every place, with what differs in the last bit, which base64 may drop, and with what is no base64."""
    token = ED.token("EdDSA", claims())
    for place, old in enumerate(token):
        for other in (ALPHABET[ALPHABET.find(old) ^ 1] if old != "." else "A", ".", "=", ""):
            if other != old:
                failed(token[:place] + other + token[place + 1 :])


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_any_other_text_is_refused(data: st.DataObject) -> None:
    """A good token with any characters in any place is refused, and is no defect."""
    token = ED.token("EdDSA", claims())
    start = data.draw(st.integers(0, len(token)))
    end = data.draw(st.integers(start, len(token)))
    other = token[:start] + data.draw(st.text(max_size=20)) + token[end:]
    if other != token:
        failed(other)


SHAPES = [
    "null",
    "true",
    "0",
    "-1",
    "1.5",
    "1e999",
    '""',
    '"x"',
    "[]",
    "[[]]",
    '["x", 7]',
    "{}",
    '{"a": {}}',
    "9" * 400,
]


@pytest.mark.parametrize("shape", SHAPES)
def test_claims_of_any_shape_are_no_defect(shape: str) -> None:
    """A signed token with anything for a claim or for a part of its header is good or refused."""
    tokens = [
        ED.token("EdDSA", json.dumps(claims(**{name: "@"})).replace('"@"', shape).encode())
        for name in ("iss", "aud", "sub", "exp", "nbf", "iat", "groups", "x")
    ]
    tokens += [
        ED.token("EdDSA", claims(), json.dumps({"alg": "EdDSA", name: "@"}).replace('"@"', shape).encode())
        for name in ("alg", "typ", "kid", "x")
    ]
    for token in tokens:
        with contextlib.suppress(Untrusted):
            verify(token)


# Time.


def test_the_leeway_is_allowed_at_both_ends() -> None:
    """Sixty seconds here: to the second, fractions included, and none where the issuer's is 0."""
    (strict,) = issuers_of({**CORP, "leewaySeconds": 0})
    token = good(exp=NOW, nbf=NOW - 10, iat=NOW - 10)
    assert verify(token, now=NOW + 59.9)
    assert failed(token, now=NOW + 60) == "exp"
    assert verify(token, now=NOW - 70)
    assert failed(token, now=NOW - 70.1) == "nbf"
    assert verify(token, now=NOW - 0.1, issuers=(strict,))
    assert failed(token, now=NOW, issuers=(strict,)) == "exp"
    assert failed(token, now=NOW - 10.1, issuers=(strict,)) == "nbf"
    assert failed(good(nbf=None, iat=NOW + 1), issuers=(strict,)) == "iat"
    assert verify(good(exp=NOW + 0.5), issuers=(strict,)).expire_time == "2027-01-15T08:00:00.000000Z"
    assert verify(good(exp=253_402_300_799)).expire_time == "9999-12-31T23:59:59.000000Z"


def test_a_token_may_be_of_several_audiences() -> None:
    """If ours is among them."""
    assert verify(good(aud=["else", "animus"])).name == "oidc:corp:6f1d"


def test_a_token_is_as_long_as_is_allowed() -> None:
    """To the byte."""
    spare = (MAX_JWT_BYTES - len(good(more=""))) * 3 // 4
    longest = next(token for count in range(spare, 0, -1) if len(token := good(more="x" * count)) <= MAX_JWT_BYTES)
    assert MAX_JWT_BYTES - len(longest) < 3
    assert verify(longest)
    assert failed(good(more="x" * (spare + 3))) == "form"


@pytest.mark.parametrize("kind", [None, "JWT", "jwt", "at+jwt", "application/at+jwt"])
def test_an_access_token_may_say_so(kind: str | None) -> None:
    """RFC 9068's type is taken, and none."""
    assert verify(EC.token("ES256", claims(), typ=kind))


# Several issuers.


def test_each_issuer_has_its_own_keys_and_names() -> None:
    """Of two audiences of one issuer the token's decides; of a token for both, neither does."""
    both = issuers_of(CORP, {**CORP, "id": "other", "audience": "other"})
    assert verify(good(), issuers=both).name == "oidc:corp:6f1d"
    assert verify(good(aud=["other"]), issuers=both).name == "oidc:other:6f1d"
    assert failed(good(aud=["other", "animus"]), issuers=both) == "aud"
    assert failed(good(), issuers=()) == "iss"


def test_an_algorithm_that_the_issuer_does_not_use_is_refused() -> None:
    """Though a key of its would fit."""
    (only,) = issuers_of({**CORP, "algorithms": ["ES384"]})
    assert failed(good(), issuers=(only,)) == "alg"


# Keys.


@pytest.mark.parametrize(
    ("jwk", "usable"),
    [
        (EC.jwk(), True),
        (EC.jwk(use="sig", key_ops=["verify"], alg="ES256"), True),
        (EC.jwk(use="enc"), False),
        (EC.jwk(key_ops=["sign"]), False),
        (EC.jwk(key_ops="verify"), False),
        (EC.jwk(alg="ES384"), False),
        (EC.jwk(alg="ECDH-ES"), False),
        (EC.jwk(alg=["ES256"]), False),
        (EC.jwk(kid=7), False),
        (EC.jwk(kty="RSA"), False),
        (EC.jwk(kty=["EC"]), False),
        (EC.jwk(crv="P-384"), False),
        (EC.jwk(crv="secp256k1"), False),
        (EC.jwk(crv=None), False),
        (EC.jwk(y=EC.jwk()["x"]), False),
        (EC.jwk(x=7), False),
        (EC.jwk(x=None), False),
        (Signer.new("x", "P-521").jwk(), False),
        (ED.jwk(x="AA"), False),
        (ED.jwk(crv="Ed448"), False),
        (ED.jwk(crv="X25519"), False),
        (RSA.jwk(), True),
        (RSA.jwk(alg="PS512"), True),
        (RSA.jwk(alg="RSA-OAEP"), False),
        (RSA.jwk(e="AA"), False),
        (RSA.jwk(n="AQAB"), False),
        (RSA.jwk(n=None), False),
        (SHORT.jwk(), False),
        (RSA.jwk(n=encode(b"\xff" * 1_025)), False),
        ({"kty": "oct", "k": "AAAA", "alg": "HS256"}, False),
        ({}, False),
    ],
)
def test_a_key_that_is_not_for_signatures_is_passed_over(jwk: Tree, usable: bool) -> None:
    """Beside a good one it does no harm; alone it is no set of keys."""
    assert len(load_keys(jwks(jwk, P384))) == 1 + usable
    if not usable:
        assert "has none for signatures" in refusal(load_keys, jwks(jwk)).description


def test_a_key_signs_what_it_says_it_does() -> None:
    """With an `alg` it takes this one only; without `kid` it is found where it is the only one that fits."""
    assert failed(RSA.token("RS256", claims()), keys=jwks(RSA.jwk(alg="PS256"))) == "signature"
    assert verify(RSA.token("PS256", claims()), keys=jwks(RSA.jwk(alg="PS256")))
    assert verify(EC.token("ES256", claims(), kid=None), keys=jwks(EC.jwk(kid=None), RSA, ED))
    assert failed(EC.token("ES256", claims()), keys=jwks(EC.jwk(kid=None))) == "signature"
    assert verify(EC.token("ES256", claims()), keys=jwks(STRANGER, EC)), "of two keys of one kid either may do"


@pytest.mark.parametrize(
    ("text", "field"),
    [
        (b"", ""),
        (b"[]", ""),
        (b"{}", ""),
        (b'{"keys": {}}', ""),
        (b'{"keys": [7]}', ""),
        (b'{"keys": [], "keys": []}', ""),
        (b'{"keys": []}', "keys"),
        (jwks(*[EC] * 101), "keys"),
        (jwks(RSA, EC.jwk(d="AA")), "keys[1]"),
        (jwks(RSA).replace(b'"e"', b'"e": "AQAB", "e"'), ""),
    ],
)
def test_a_set_of_keys_that_is_none_is_refused(text: bytes, field: str) -> None:
    """As a whole: a private key in it too, which no issuer would show."""
    assert refusal(load_keys, text).field == field


# The file of issuers.


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"id": "Corp"}, "id"),
        ({"issuer": ""}, "issuer"),
        ({"issuer": "a b"}, "issuer"),
        ({"audience": "ä"}, "audience"),
        ({"algorithms": []}, "algorithms"),
        ({"algorithms": ["ES256", "ES256"]}, "algorithms[1]"),
        ({"algorithms": ["none"]}, "algorithms[0]"),
        ({"algorithms": ["ES256", "HS256"]}, "algorithms[1]"),
        ({"jwksFile": None}, "jwksFile"),
        ({"jwksUrl": "https://id.example/jwks"}, "jwksFile"),
        ({"jwksFile": "corp.jwks"}, "jwksFile"),
        ({"caFile": "/ca.pem"}, "caFile"),
        ({"leewaySeconds": 301}, "leewaySeconds"),
        ({"leewaySeconds": -1}, "leewaySeconds"),
        ({"leewaySeconds": 1.5}, "leewaySeconds"),
        ({"leewaySeconds": None}, "leewaySeconds"),
        ({"principalClaim": ""}, "principalClaim"),
        ({"principalClaim": "a..b"}, "principalClaim"),
        ({"principalClaim": "a\\b"}, "principalClaim"),
        ({"principalClaim": "x" * 201}, "principalClaim"),
        ({"groups": [{"claim": "a"}]}, "groups[0].prefix"),
        ({"groups": [{"claim": ".", "prefix": ""}]}, "groups[0].claim"),
        ({"groups": [{"claim": "a", "prefix": " x"}]}, "groups[0].prefix"),
        ({"groups": [{"claim": "a", "prefix": "", "role": "admin"}]}, "groups[0].role"),
        ({"groups": [{"claim": "a", "prefix": ""}] * 21}, "groups"),
        ({"roles": ["admin"]}, "roles"),
        ({"secret": "x"}, "secret"),
    ],
)
def test_an_issuer_that_breaks_a_rule_is_refused_by_its_field(change: Tree, field: str) -> None:
    """Fields that are not known too: a role is nothing that this file can give."""
    wrong = issuer(**{"jwksFile": "/x", **change})
    assert refusal(issuers_of, {**CORP, "id": "first", "audience": "first"}, wrong).field == f"[1].{field}"


@pytest.mark.parametrize(
    ("url", "ok"),
    [
        ("https://id.example/realms/corp/certs?x=1", True),
        ("https://id.example:8443", True),
        ("https://[2001:db8::1]/jwks", True),
        ("http://127.0.0.1:8080/jwks", True),
        ("http://localhost/jwks", True),
        ("http://[::1]:80/jwks", True),
        ("http://id.example/jwks", False),
        ("http://127.0.0.1.example/jwks", False),
        ("http://localhost@id.example/jwks", False),
        ("https://user:secret@id.example/jwks", False),
        ("https://id.example/jwks#x", False),
        ("https://id.example/a b", False),
        ("https://id.example/\r\nX: y", False),
        ("file:///etc/passwd", False),
        ("ftp://id.example/jwks", False),
        ("HTTPS://id.example/jwks", False),
    ],
)
def test_keys_come_over_tls_or_from_this_machine(url: str, ok: bool) -> None:
    """No other scheme, no credentials, nothing that ends a line."""
    if ok:
        assert issuers_of(issuer(jwksUrl=url))[0].jwks_url == url
    else:
        assert refusal(issuers_of, issuer(jwksUrl=url)).field == "[0].jwksUrl"


def test_two_issuers_have_two_ids_and_tell_their_tokens_apart() -> None:
    """The same id, or the same issuer and audience, is refused."""
    assert refusal(issuers_of, CORP, {**CORP, "audience": "other"}).field == "[1].id"
    assert refusal(issuers_of, CORP, {**CORP, "id": "other"}).field == "[1].audience"


@pytest.mark.parametrize(
    "text", [b"", b"{}", b"[]", b"[7]", b"- id: x", b"[{}, ", b'[{"id": "a", "id": "b"}]', b"[NaN]"]
)
def test_a_file_that_is_no_list_of_issuers_is_refused(text: bytes) -> None:
    """It is JSON in which no name stands twice."""
    with pytest.raises(Invalid):
        load_issuers(text)
