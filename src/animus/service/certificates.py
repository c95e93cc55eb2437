"""Client certificates: which one a call came with, and the members that it names.

TLS has verified it by then, against the CAs of ANIMUS_TLS_CLIENT_CA_FILE. There are no revocation lists: what a
certificate may do is what the role bindings of its members say, and an empty one takes all of it back.
"""

import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import grpc
from cryptography import x509

from animus.domain.access import MEMBER

METADATA = "animus-client-certificate-bin"  # DER; what the gateway in this process says that its TLS verified
MAX_MEMBERS = 100


@dataclass(frozen=True, slots=True)
class Named:
    """What a certificate says of its holder."""

    members: tuple[str, ...]  # URIs first, then DNS names, then mail addresses; none if one is no member, or too many
    expire_time: float  # seconds since 1970


def presented(context: grpc.aio.ServicerContext[Any, Any], metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """The client certificate that a call's connection was made with, in PEM; empty where there was none.

    Metadata is believed from the Unix socket only, which nobody but this process's own gateway can reach: anyone else
    who sends it could claim to be anybody.
    """
    for certificate in context.auth_context().get("x509_pem_cert", ()):
        return bytes(certificate).decode("ascii", "replace")
    if context.peer().startswith("unix:"):
        for key, value in metadata:
            if key == METADATA and isinstance(value, bytes):
                return ssl.DER_cert_to_PEM_cert(value)
    return ""


@lru_cache(1_000)  # one for each client that is connected, or nearly so
def named_by(certificate: str) -> Named:
    """The members that a certificate in PEM names."""
    try:
        parsed = x509.load_pem_x509_certificate(certificate.encode())
        names = parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        members = [
            f"certificate:{kind}:{name}"
            for kind, of in (("uri", x509.UniformResourceIdentifier), ("dns", x509.DNSName), ("email", x509.RFC822Name))
            for name in names.get_values_for_type(of)
        ]
    except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension):
        return Named((), 0.0)
    if len(members) > MAX_MEMBERS or not all(MEMBER.fullmatch(member) for member in members):
        return Named((), 0.0)
    return Named(tuple(dict.fromkeys(members)), parsed.not_valid_after_utc.timestamp())
