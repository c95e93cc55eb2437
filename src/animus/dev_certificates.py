"""Certificates for development: a CA made for the occasion, a server certificate and client certificates.

The CA's key is never written. Whoever had it could be the server to its clients and any client to the server; so what
is made here can be trusted for as long as the files last, and more of it comes from a CA of its own.
"""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

SKEW = timedelta(minutes=5)  # by so much may another machine's clock be behind
HOSTS = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its key, both in PEM."""

    certificate: bytes
    key: bytes


@dataclass(frozen=True, slots=True)
class Authority:
    """A CA; its key is in memory only."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def new(cls, now: datetime, days: int) -> "Authority":
        """A CA for so many days from now, which can sign no further CA."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = _name("Animus development CA")
        builder = _builder(name, name, key.public_key(), now - SKEW, days)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(_usage(signs_certificates=True), critical=True)
        return cls(builder.sign(key, hashes.SHA256()), key)

    @property
    def pem(self) -> bytes:
        """Its certificate."""
        return self.certificate.public_bytes(Encoding.PEM)

    def server(self, hosts: Sequence[str]) -> Pair:
        """A certificate for a server of these names and addresses. Raises ValueError for one that is none."""
        return self._issue([host_name(host) for host in hosts], ExtendedKeyUsageOID.SERVER_AUTH)

    def client(self, name: str) -> Pair:
        """A certificate for a client of this URI, mail address or DNS name. Raises ValueError for one that is none."""
        return self._issue([client_name(name)], ExtendedKeyUsageOID.CLIENT_AUTH)

    def _issue(self, names: Sequence[x509.GeneralName], purpose: x509.ObjectIdentifier) -> Pair:
        key = ec.generate_private_key(ec.SECP256R1())
        of = self.certificate
        days = (of.not_valid_after_utc - of.not_valid_before_utc).days
        builder = _builder(_name("Animus development"), of.subject, key.public_key(), of.not_valid_before_utc, days)
        for extension, critical in (
            (x509.BasicConstraints(ca=False, path_length=None), True),
            (_usage(signs_certificates=False), True),
            (x509.ExtendedKeyUsage([purpose]), False),
            (x509.SubjectAlternativeName(names), False),
            (x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), False),
        ):
            builder = builder.add_extension(extension, critical)
        certificate = builder.sign(self.key, hashes.SHA256())
        return Pair(
            certificate.public_bytes(Encoding.PEM),
            key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        )


def host_name(text: str) -> x509.GeneralName:
    """The name of a server in a certificate: an IP address or a DNS name. Raises ValueError."""
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(_printable(text))


def client_name(text: str) -> x509.GeneralName:
    """The name of a client in a certificate: a URI, a mail address or a DNS name. Raises ValueError."""
    if "://" in text:
        return x509.UniformResourceIdentifier(_printable(text))
    return x509.RFC822Name(_printable(text)) if "@" in text else x509.DNSName(_printable(text))


def _printable(text: str) -> str:
    if not text or not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError(f"{text!r} is no name of a host or a client")
    return text


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, start: datetime, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )
