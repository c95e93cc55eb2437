"""Issuers made up for tests: keys, tokens of any shape signed with them, and a place on this machine that shows keys.

Tokens are put together here and signed by `cryptography`, so that what makes them shares nothing with what reads them.
"""

import asyncio
import base64
import json
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

HASHES: dict[str, hashes.HashAlgorithm] = {
    "256": hashes.SHA256(),
    "384": hashes.SHA384(),
    "512": hashes.SHA512(),
}
Private = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | Ed25519PrivateKey
Tree = dict[str, Any]


def encode(data: bytes) -> str:
    """base64url without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def number(value: int, size: int = 0) -> str:
    """A number of a JWK."""
    return encode(value.to_bytes(size or (value.bit_length() + 7) // 8, "big"))


@dataclass(frozen=True, slots=True)
class Signer:
    """A key of an issuer."""

    kid: str
    private: Private

    @classmethod
    def new(cls, kid: str, kind: str) -> "Signer":
        """A new key: `rsa2048`, `P-256` and so on, or `Ed25519`."""
        if kind.startswith("rsa"):
            return cls(kid, rsa.generate_private_key(65_537, int(kind[3:])))
        if kind == "Ed25519":
            return cls(kid, Ed25519PrivateKey.generate())
        curves = {"P-256": ec.SECP256R1(), "P-384": ec.SECP384R1(), "P-521": ec.SECP521R1()}
        return cls(kid, ec.generate_private_key(curves[kind]))

    def jwk(self, **more: Any) -> Tree:
        """The public key, with other members added; those that are None are left out."""
        found: Tree
        if isinstance(self.private, rsa.RSAPrivateKey):
            numbers = self.private.public_key().public_numbers()
            found = {"kty": "RSA", "n": number(numbers.n), "e": number(numbers.e)}
        elif isinstance(self.private, ec.EllipticCurvePrivateKey):
            point, size = self.private.public_key().public_numbers(), (self.private.key_size + 7) // 8
            found = {"kty": "EC", "crv": f"P-{self.private.key_size}", "x": number(point.x, size)}
            found["y"] = number(point.y, size)
        else:
            public = self.private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
            found = {"kty": "OKP", "crv": "Ed25519", "x": encode(public)}
        return {name: value for name, value in {"kid": self.kid, **found, **more}.items() if value is not None}

    def signature(self, algorithm: str, data: bytes) -> bytes:
        """A signature as RFC 7518 and 8037 have it."""
        if isinstance(self.private, Ed25519PrivateKey):
            return self.private.sign(data)
        digest = HASHES[algorithm[2:]]
        if isinstance(self.private, ec.EllipticCurvePrivateKey):
            size = (self.private.key_size + 7) // 8
            return b"".join(
                part.to_bytes(size, "big") for part in decode_dss_signature(self.private.sign(data, ec.ECDSA(digest)))
            )
        if algorithm.startswith("PS"):
            return self.private.sign(data, padding.PSS(padding.MGF1(digest), digest.digest_size), digest)
        return self.private.sign(data, padding.PKCS1v15(), digest)

    def token(self, algorithm: str, claims: Tree | bytes, header: Tree | bytes | None = None, **more: Any) -> str:
        """A token: the header is the usual one with other members added, those that are None left out, or as given."""
        if header is None:
            usual = {"alg": algorithm, "typ": "JWT", "kid": self.kid, **more}
            header = {name: value for name, value in usual.items() if value is not None}
        parts = (part if isinstance(part, bytes) else json.dumps(part).encode() for part in (header, claims))
        data = ".".join(encode(part) for part in parts)
        return f"{data}.{encode(self.signature(algorithm, data.encode()))}"


def jwks(*keys: Signer | Tree) -> bytes:
    """A JWK Set."""
    return json.dumps({"keys": [key.jwk() if isinstance(key, Signer) else key for key in keys]}).encode()


def issuer(**more: Any) -> Tree:
    """An issuer as the file of issuers has it, with members added; those that are None are left out."""
    found = {
        "id": "corp",
        "issuer": "https://id.example/realms/corp",
        "audience": "animus",
        "algorithms": ["ES256"],
        "leewaySeconds": 60,
        "principalClaim": "sub",
        "groups": [{"claim": "groups", "prefix": ""}],
        **more,
    }
    return {name: value for name, value in found.items() if value is not None}


Respond = Callable[[], bytes]  # a whole answer


def answer(body: bytes, status: str = "200 OK") -> bytes:
    """An answer of HTTP/1.1."""
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


@asynccontextmanager
async def shown(respond: Respond, tls: ssl.SSLContext | None = None, *, hold: bool = False) -> AsyncIterator[int]:
    """The port of an HTTP server on this machine, which answers each request with what `respond` returns.

    Then it closes the connection, or holds it until the other side goes.
    """

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(respond())
            await writer.drain()
            if hold:
                await reader.read()
        except (OSError, asyncio.IncompleteReadError):
            pass  # it may go at any time
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    async with server:
        yield server.sockets[0].getsockname()[1]
