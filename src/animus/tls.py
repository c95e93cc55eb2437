"""TLS of what listens: one certificate for all of it, taken anew from its files without a restart.

The files are looked at in every handshake. What has changed is taken if it is whole: a key that fits the certificate,
in a file that nobody else may read. Else what was good before stays in use, and the fault is logged once. Connections
that stand keep what they began with.

Whoever can read the key can be this server to its clients; whoever can change the client CA can be any client to it.
"""

import ipaddress
import logging
import os
import ssl
import stat
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key

CURVES = ("secp256r1", "secp384r1")

logger = logging.getLogger("animus.tls")


class TlsRefused(Exception):
    """What cannot be used for TLS; one line that says why and what to change."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Where the server's certificate is, and whom it takes client certificates from."""

    certificate: Path  # PEM: the server's, then those of the CAs between it and the root
    key: Path  # PEM, not encrypted
    client_ca: Path | None  # PEM: CAs of client certificates


@dataclass(frozen=True, slots=True)
class Loaded:
    """What the files held when they were whole."""

    certificate: bytes
    key: bytes
    client_ca: bytes  # empty where no client certificate is taken
    context: ssl.SSLContext
    expire_time: float  # of the server's certificate, seconds since 1970


class Tls:
    """The newest good content of the files."""

    def __init__(self, files: TlsFiles) -> None:
        """Raises TlsRefused where the files are not whole."""
        self._files = files
        self._lock = threading.Lock()
        self._stamp = _stamp(files)
        self._loaded = _load(files)
        self.takes_client_certificates = files.client_ca is not None

    def newest(self) -> Loaded:
        """Looks at the files, and says what is to be used from now on."""
        with self._lock:
            stamp = _stamp(self._files)
            if stamp != self._stamp:
                self._stamp = stamp
                try:
                    self._loaded = _load(self._files)
                except TlsRefused as error:
                    logger.error("the changed certificate is not taken, the one before stays in use: %s", error)
                else:
                    logger.info("took the changed certificate")
            return self._loaded

    def context(self) -> ssl.SSLContext:
        """The context of a listener of HTTP. With a client CA it asks for certificates, and can do without."""
        context = _Context(ssl.PROTOCOL_TLS_SERVER)
        context.newest = lambda: self.newest().context
        return context

    def credentials(self, *, require_client: bool) -> grpc.ServerCredentials:
        """The credentials of a port of gRPC, which requires a client certificate or does not ask for one."""

        def configuration(loaded: Loaded) -> grpc.ServerCertificateConfiguration:
            root = loaded.client_ca if require_client else None
            return grpc.ssl_server_certificate_configuration([(loaded.key, loaded.certificate)], root)

        given = self.newest()

        def fetch() -> Any:
            nonlocal given
            newest = self.newest()
            if newest is given:
                return None  # what it has
            given = newest
            return configuration(newest)

        return grpc.dynamic_ssl_server_credentials(configuration(given), fetch, require_client)


class _Context(ssl.SSLContext):
    """Stands for the newest context in each handshake: one that is loaded into again would keep every CA it had."""

    newest: Callable[[], ssl.SSLContext]

    def wrap_bio(self, *arguments: Any, **options: Any) -> ssl.SSLObject:
        return self.newest().wrap_bio(*arguments, **options)

    def wrap_socket(self, *arguments: Any, **options: Any) -> ssl.SSLSocket:
        return self.newest().wrap_socket(*arguments, **options)


def is_loopback(host: str) -> bool:
    """Whether what is sent to a host stays on this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _stamp(files: TlsFiles) -> list[tuple[int, ...]]:
    """What tells that a file is another one, or was written to."""
    stamps: list[tuple[int, ...]] = []
    for path in (files.certificate, files.key, files.client_ca):
        try:
            found = path.stat() if path else None
        except OSError:
            found = None
        stamps.append((found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_size) if found else ())
    return stamps


def _load(files: TlsFiles) -> Loaded:
    certificate, key = _read(files.certificate), _read(files.key, private=True)
    chain = _certificates(files.certificate, certificate)
    try:
        private_key = load_pem_private_key(key, None)
    except TypeError:
        raise TlsRefused(f"{files.key}: the key is encrypted; give one that is not") from None
    except (ValueError, UnsupportedAlgorithm):
        raise TlsRefused(f"{files.key} holds no private key in PEM") from None
    curve = private_key.curve.name if isinstance(private_key, ec.EllipticCurvePrivateKey) else ""
    if not isinstance(private_key, rsa.RSAPrivateKey) and curve not in CURVES:
        raise TlsRefused(f"{files.key}: gRPC takes keys of RSA and of the curves P-256 and P-384, no others")
    if private_key.public_key() != chain[0].public_key():
        raise TlsRefused(f"the key {files.key} does not fit the first certificate of {files.certificate}")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    client_ca = b""
    try:
        context.load_cert_chain(files.certificate, files.key, password="")  # nosec B106 (else it would ask on a terminal)
        if files.client_ca is not None:
            client_ca = _read(files.client_ca)
            _certificates(files.client_ca, client_ca)
            context.load_verify_locations(cadata=client_ca.decode("ascii", "replace"))
            context.verify_mode = ssl.CERT_OPTIONAL
    except (OSError, ssl.SSLError) as error:  # changed while it was read, or more than this machine's policy allows
        raise TlsRefused(f"{files.certificate} and {files.key} cannot be used: {error}") from None
    return Loaded(certificate, key, client_ca, context, chain[0].not_valid_after_utc.timestamp())


def _read(path: Path, *, private: bool = False) -> bytes:
    try:
        with path.open("rb") as file:
            if private:
                _check_private(path, os.fstat(file.fileno()))
            return file.read()
    except OSError as error:
        raise TlsRefused(f"{path}: {error.strerror}") from None


def _check_private(path: Path, found: os.stat_result) -> None:
    """Refuses a key that others can read.

    The group may where the file is root's: the administrator gave it to the group then, as Kubernetes does with
    `fsGroup` and Debian with `ssl-cert`. A group that a file of one's own has may be everybody's.
    """
    mode = stat.S_IMODE(found.st_mode)
    if mode & (0o037 if found.st_uid == 0 else 0o077):
        raise TlsRefused(f"others can read or change the key {path} (mode {mode:04o}): chmod 0600")


def _certificates(path: Path, data: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(data)
    except ValueError:
        raise TlsRefused(f"{path} holds no certificate in PEM") from None
