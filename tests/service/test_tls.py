"""TLS of the listeners: who is let in, who a client certificate is, and that a new certificate needs no restart."""

import asyncio
import base64
import contextlib
import http.client
import ipaddress
import logging
import os
import secrets
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
from conftest import create_database, drop_database
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID
from google.protobuf.empty_pb2 import Empty
from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import AsyncEngine

from animus.config import load_settings
from animus.dev_certificates import Authority, Pair
from animus.domain.access import Role, RoleBinding, principal_of
from animus.domain.document import seal
from animus.domain.errors import Denied
from animus.sdk.client import connect
from animus.server import StartRefused, new_id, run_server
from animus.service import identity
from animus.service.certificates import MAX_MEMBERS, METADATA, named_by
from animus.service.identity import Identity
from animus.store.embedded import EmbeddedPostgres
from animus.store.unit_of_work import Call, Change, UnitOfWork, View
from animus.tls import Tls, TlsFiles, TlsRefused
from animus.v1 import audit_pb2, project_pb2, project_pb2_grpc
from service.conftest import Caller, Failure, Server, settings_for

NOW = datetime.now(UTC).replace(microsecond=0)
TRAIN = "spiffe://corp.example/ns/train"
STRANGER = "spiffe://corp.example/ns/stranger"


@dataclass(frozen=True, slots=True)
class Pki:
    """A CA, what it issued, and one that nobody trusts."""

    authority: Authority
    server: Pair
    train: Pair
    stranger: Pair
    other: Authority
    other_train: Pair

    def trust(self, client: Pair | None = None) -> grpc.ChannelCredentials:
        """Credentials of a client that trusts the CA, with a certificate of its own or without."""
        return grpc.ssl_channel_credentials(
            self.authority.pem, client.key if client else None, client.certificate if client else None
        )


@pytest.fixture(scope="module")
def pki() -> Pki:
    """Certificates for all tests of this file."""
    authority, other = Authority.new(NOW, 1), Authority.new(NOW, 1)
    hosts = ["localhost", "127.0.0.1"]
    return Pki(
        authority,
        authority.server(hosts),
        authority.client(TRAIN),
        authority.client(STRANGER),
        other,
        other.client(TRAIN),
    )


@dataclass(slots=True)
class Secured(Server):
    """A server with TLS everywhere, and the folder that its certificate is in."""

    folder: Path = field(kw_only=True)

    def port(self, listener: str) -> int:
        """The port of `grpc`, `mtls`, `http` or `metrics`."""
        where: str = getattr(self.running, listener)
        return int(where.removesuffix("/metrics").rpartition(":")[2])


def write(folder: Path, name: str, pair: Pair) -> TlsFiles:
    """Writes a certificate and its key, each replaced as a whole."""
    for suffix, data in (("crt", pair.certificate), ("key", pair.key)):
        scratch = folder / f"{name}.new"
        scratch.touch(0o600)
        scratch.write_bytes(data)
        scratch.replace(folder / f"{name}.{suffix}")
    return TlsFiles(folder / f"{name}.crt", folder / f"{name}.key", None)


@pytest.fixture(scope="module")
async def secured(
    pki: Pki, postgres: EmbeddedPostgres, admin: AsyncEngine, template: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Secured]:
    """One server for all tests of this file; it remembers no grants, so that tests need not wait."""
    folder = tmp_path_factory.mktemp("tls")
    files = write(folder, "server", pki.server)
    (folder / "ca.crt").write_bytes(pki.authority.pem)
    name = f"tls_{secrets.token_hex(4)}"
    await create_database(admin, name, template)
    url = make_url(postgres.service_url).set(database=name).render_as_string(hide_password=False)
    settings = settings_for(
        url,
        folder / "data",
        gateway="true",
        mtls_port="0",
        tls_certificate_file=str(files.certificate),
        tls_key_file=str(files.key),
        tls_client_ca_file=str(folder / "ca.crt"),
    )
    forgetful = pytest.MonkeyPatch()
    forgetful.setattr(identity, "REMEMBER_SECONDS", 0.0)
    async with run_server(settings) as running, secure(running.grpc, pki.trust()) as channel:
        token = (folder / "data" / "admin.token").read_text().strip()
        server = Secured(running, channel, settings, Caller(channel, token), folder=folder)
        await server.project("p")
        await bind(server, "p", f"certificate:uri:{TRAIN}", Role.VIEWER)
        yield server
    forgetful.undo()
    await drop_database(admin, name)


def secure(address: str, credentials: grpc.ChannelCredentials) -> grpc.aio.Channel:
    """A connection that no other channel shares."""
    return grpc.aio.secure_channel(address, credentials, options=[("grpc.use_local_subchannel_pool", 1)])


async def bind(server: Server, project_id: str, member: str, *roles: Role, version: int = 1) -> None:
    """Writes a role binding."""
    work = UnitOfWork(server.running.engine, new_id, server.running.log.keyring.seal, None)
    binding = RoleBinding(member, roles, version)

    async def decide(view: View) -> Change:
        return Change("role_binding.set", f"projects/{project_id}", (seal(binding),), (), Empty())

    principal = principal_of("admin", Role.ADMIN, project_id)
    method = "animus.v1.AccessService/SetRoleBinding"
    await work.change(Call(method, project_id, principal, secrets.token_hex(8), False, b"{}"), decide)


@asynccontextmanager
async def calling(
    server: Secured, pki: Pki, client: Pair | None, token: str = "", port: str = "mtls"
) -> AsyncIterator[Caller]:
    """A caller with a client certificate, a token, or both."""
    async with secure(f"localhost:{server.port(port)}", pki.trust(client)) as channel:
        yield Caller(channel, token)


GET = project_pb2.GetProjectRequest(project_id="p")


def get(port: int, context: ssl.SSLContext | None, path: str = "/v1/projects/p", **headers: str) -> tuple[int, Any]:
    """Status and headers of an answer over HTTPS, or HTTP without a context."""
    kind: Any = http.client.HTTPSConnection if context else http.client.HTTPConnection
    connection = kind("127.0.0.1", port, timeout=10, **({"context": context} if context else {}))
    with contextlib.closing(connection):
        connection.request("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        answer.read()
        return answer.status, answer.headers


def trusting(authority: Authority) -> ssl.SSLContext:
    """A client's context that trusts one CA."""
    return ssl.create_default_context(cadata=authority.pem.decode())


@pytest.fixture
def presenting(pki: Pki, tmp_path: Path) -> ssl.SSLContext:
    """The context of a client with a certificate of its own."""
    files = write(tmp_path, "client", pki.train)
    context = trusting(pki.authority)
    context.load_cert_chain(files.certificate, files.key)
    return context


LISTENERS = ("grpc", "mtls", "http", "metrics")


async def handshake(port: int, version: ssl.TLSVersion) -> bytes:
    """The certificate that a listener shows to a client of one version of TLS. Raises OSError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")  # else the client itself would refuse the old ones
    context.minimum_version = context.maximum_version = version
    context.set_alpn_protocols(["h2", "http/1.1"])
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    shown: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.transport.abort()
    return shown


@pytest.mark.parametrize("listener", LISTENERS)
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
async def test_every_listener_speaks_tls_from_version_1_2_on(secured: Secured, pki: Pki, listener: str) -> None:
    """1.1 is refused, 1.3 is not, and neither is 1.2 by who asks for no client certificate."""
    port = secured.port(listener)
    with pytest.raises(OSError):
        await handshake(port, ssl.TLSVersion.TLSv1_1)
    der = x509.load_pem_x509_certificate(pki.server.certificate).public_bytes(Encoding.DER)
    for version in (ssl.TLSVersion.TLSv1_3, *([ssl.TLSVersion.TLSv1_2] if listener != "mtls" else [])):
        assert await handshake(port, version) == der


async def test_no_listener_answers_in_plain_text(secured: Secured) -> None:
    """Not on loopback either."""
    for listener in ("http", "metrics"):
        with pytest.raises((OSError, http.client.HTTPException)):
            await asyncio.to_thread(get, secured.port(listener), None)
    for listener in ("grpc", "mtls"):
        async with grpc.aio.insecure_channel(f"127.0.0.1:{secured.port(listener)}") as channel:
            with pytest.raises(Failure) as failed:
                await Caller(channel, secured.admin.token)("GetProject", GET)
        assert failed.value.code == "UNAVAILABLE"


async def test_a_client_that_trusts_another_ca_does_not_connect(secured: Secured, pki: Pki) -> None:
    """The negative control is every other test of this file."""
    async with secure(secured.running.grpc, grpc.ssl_channel_credentials(pki.other.pem)) as channel:
        with pytest.raises(Failure, match="CERTIFICATE_VERIFY_FAILED"):
            await Caller(channel, secured.admin.token)("GetProject", GET)
    for listener in ("http", "metrics"):
        with pytest.raises(ssl.SSLCertVerificationError):
            await asyncio.to_thread(get, secured.port(listener), trusting(pki.other))


async def test_metrics_and_gateway_are_served_over_tls(secured: Secured, pki: Pki) -> None:
    """The gateway calls gRPC without a certificate; a browser is told to come back over TLS, but not to localhost."""
    token = f"Bearer {secured.admin.token}"
    status, headers = await asyncio.to_thread(get, secured.port("http"), trusting(pki.authority), Authorization=token)
    assert status == 200
    assert headers["strict-transport-security"] == "max-age=31536000"
    status, headers = await asyncio.to_thread(
        get, secured.port("http"), trusting(pki.authority), Authorization=token, Host="localhost"
    )
    assert (status, headers["strict-transport-security"]) == (200, None)
    assert (await asyncio.to_thread(get, secured.port("metrics"), trusting(pki.authority), "/metrics"))[0] == 200


async def test_a_certificate_is_a_principal_with_the_roles_of_its_binding(secured: Secured, pki: Pki) -> None:
    """It may what the binding says, and is named in the audit log; without one the project does not exist for it."""
    async with calling(secured, pki, pki.train) as caller:
        assert (await caller("GetProject", GET)).project_id == "p"
        with pytest.raises(Failure) as failed:
            await caller("ListAuditEntries", audit_pb2.ListAuditEntriesRequest(project_id="p"))
        assert failed.value.reason == "ROLE_MISSING"
    entries = await secured.admin("ListAuditEntries", audit_pb2.ListAuditEntriesRequest(project_id="p", page_size=100))
    assert f"certificate:uri:{TRAIN}" in {entry.principal for entry in entries.audit_entries}
    async with calling(secured, pki, pki.stranger) as caller:
        with pytest.raises(Failure) as failed:
            await caller("GetProject", GET)
    assert failed.value.reason == "PROJECT_UNKNOWN"


async def test_a_binding_without_roles_ends_what_a_certificate_may(secured: Secured, pki: Pki) -> None:
    """On a connection that stands, too."""
    client = pki.authority.client("leaving.example")
    await bind(secured, "p", "certificate:dns:leaving.example", Role.VIEWER)
    async with calling(secured, pki, client) as caller:
        await caller("GetProject", GET)
        await bind(secured, "p", "certificate:dns:leaving.example", version=2)
        with pytest.raises(Failure) as failed:
            await caller("GetProject", GET)
    assert failed.value.reason == "PROJECT_UNKNOWN"


async def test_the_port_of_client_certificates_takes_nobody_without_one(secured: Secured, pki: Pki) -> None:
    """None at all, one of another CA, and one that is for servers: no connection, whatever the token."""
    for client in (None, pki.other_train, pki.server):
        async with calling(secured, pki, client, secured.admin.token) as caller:
            with pytest.raises(Failure) as failed:
                await caller("GetProject", GET)
        assert failed.value.code == "UNAVAILABLE"


async def test_a_token_counts_in_place_of_the_certificate(secured: Secured, pki: Pki) -> None:
    """A good one with its own roles; a bad one is refused, though the certificate alone would do."""
    async with calling(secured, pki, pki.stranger, secured.admin.token) as caller:
        await caller("GetProject", GET)
    async with calling(secured, pki, pki.train, "animus_p_" + "S" * 43) as caller:
        with pytest.raises(Failure) as failed:
            await caller("GetProject", GET)
    assert failed.value.reason == "TOKEN_INVALID"


async def test_the_sdk_calls_with_a_certificate_and_no_token(secured: Secured, pki: Pki, tmp_path: Path) -> None:
    """The files that it is given are all that it needs; a certificate without its key is refused at once."""
    files = write(tmp_path, "client", pki.train)
    address, ca = f"localhost:{secured.port('mtls')}", secured.folder / "ca.crt"
    async with connect(address, "", ca_file=ca, certificate_file=files.certificate, key_file=files.key) as channel:
        assert (await project_pb2_grpc.ProjectServiceStub(channel).GetProject(GET)).project_id == "p"
    with pytest.raises(ValueError, match="needs its key"):
        connect(address, "", ca_file=ca, certificate_file=files.certificate)


async def test_a_certificate_counts_over_http_and_is_not_asked_for(
    secured: Secured, pki: Pki, presenting: ssl.SSLContext
) -> None:
    """With one the gateway's caller is its holder; without, and without a token, nobody."""
    assert (await asyncio.to_thread(get, secured.port("http"), presenting))[0] == 200
    assert (await asyncio.to_thread(get, secured.port("http"), trusting(pki.authority)))[0] == 401


async def test_what_the_gateway_says_of_certificates_is_believed_of_nobody_else(secured: Secured, pki: Pki) -> None:
    """The gateway's metadata, sent over either port or as a header of HTTP, makes nobody the certificate's holder."""
    der = x509.load_pem_x509_certificate(pki.train.certificate).public_bytes(Encoding.DER)
    for port, client, reason in (("grpc", None, "TOKEN_INVALID"), ("mtls", pki.stranger, "PROJECT_UNKNOWN")):
        async with secure(f"localhost:{secured.port(port)}", pki.trust(client)) as channel:
            send: Any = channel.unary_unary("/animus.v1.ProjectService/GetProject")
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await send(GET.SerializeToString(), metadata=((METADATA, der),))
        assert reason.encode() in dict(failed.value.trailing_metadata() or ())["grpc-status-details-bin"]
    forged = {METADATA.replace("-", "_"): base64.b64encode(der).decode()}
    assert (await asyncio.to_thread(get, secured.port("http"), trusting(pki.authority), **forged))[0] == 401


async def test_a_new_certificate_is_taken_without_a_restart(
    secured: Secured, pki: Pki, caplog: pytest.LogCaptureFixture
) -> None:
    """New connections see it, standing ones go on; what does not fit is left out, and said once."""
    renewed = pki.authority.server(["localhost", "127.0.0.1"])
    try:
        for pair in (renewed, pki.server):
            write(secured.folder, "server", pair)
            der = x509.load_pem_x509_certificate(pair.certificate).public_bytes(Encoding.DER)
            for listener in LISTENERS:
                assert await handshake(secured.port(listener), ssl.TLSVersion.TLSv1_3) == der
        await secured.admin("GetProject", GET)
        caplog.set_level(logging.ERROR, "animus.tls")
        write(secured.folder, "server", Pair(renewed.certificate, pki.train.key))
        for listener in LISTENERS:
            assert await handshake(secured.port(listener), ssl.TLSVersion.TLSv1_3) == der
        (said,) = [record.getMessage() for record in caplog.records if record.name == "animus.tls"]
        assert "does not fit" in said
    finally:
        write(secured.folder, "server", pki.server)


async def test_a_client_ca_that_is_gone_lets_nobody_in(secured: Secured, pki: Pki, presenting: ssl.SSLContext) -> None:
    """The CAs are those of the file, not those that it ever held."""
    port = secured.port("http")
    try:
        (secured.folder / "ca.crt").write_bytes(pki.other.pem)
        with pytest.raises(OSError):
            await asyncio.to_thread(get, port, presenting)
        async with calling(secured, pki, pki.train) as caller:
            with pytest.raises(Failure) as failed:
                await caller("GetProject", GET)
        assert failed.value.code == "UNAVAILABLE"
    finally:
        (secured.folder / "ca.crt").write_bytes(pki.authority.pem)
    assert (await asyncio.to_thread(get, port, presenting))[0] == 200


# What is refused at the start


def encrypted(pair: Pair) -> bytes:
    """The same kind of key behind a password."""
    key = ec.generate_private_key(ec.SECP256R1())
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x"))


def edwards(pair: Pair) -> bytes:
    """A key of a kind that gRPC has no use for."""
    key = ed25519.Ed25519PrivateKey.generate()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@pytest.mark.parametrize(
    ("file", "change", "reason"),
    [
        ("server.key", lambda pair: Authority.new(NOW, 1).client("a.example").key, "does not fit"),
        ("server.key", encrypted, "is encrypted"),
        ("server.key", edwards, "P-256 and P-384"),
        ("server.key", lambda pair: b"x", "no private key"),
        ("server.crt", lambda pair: b"x", "no certificate"),
        ("ca.crt", lambda pair: b"x", "no certificate"),
    ],
)
def test_files_that_are_not_whole_are_refused(pki: Pki, tmp_path: Path, file: str, change: Any, reason: str) -> None:
    """Each with one line that names the file; as they were they are taken."""
    write(tmp_path, "server", pki.server)
    (tmp_path / "ca.crt").write_bytes(pki.authority.pem)
    files = TlsFiles(tmp_path / "server.crt", tmp_path / "server.key", tmp_path / "ca.crt")
    assert Tls(files).newest().certificate == pki.server.certificate
    (tmp_path / file).write_bytes(change(pki.server))
    with pytest.raises(TlsRefused, match=reason) as refused:
        Tls(files)
    assert str(tmp_path / file) in str(refused.value)
    assert "\n" not in str(refused.value)
    (tmp_path / file).unlink()
    with pytest.raises(TlsRefused, match="No such file"):
        Tls(files)


@pytest.mark.parametrize(
    ("owner", "mode", "taken"),
    [
        *((0, 0o600, True), (0, 0o440, True), (0, 0o460, False), (0, 0o604, False)),
        *((1234, 0o400, True), (1234, 0o640, False), (1234, 0o604, False), (1234, 0o622, False)),
    ],
)
def test_a_key_that_others_can_read_is_refused(
    pki: Pki, tmp_path: Path, owner: int, mode: int, taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The group may read what is root's, as administrators give keys to a service; else the owner only."""
    files = write(tmp_path, "server", pki.server)
    files.key.chmod(mode)
    look = os.fstat

    def owned(descriptor: int) -> os.stat_result:
        found = list(look(descriptor))
        found[4] = owner  # not every test process may give files away
        return os.stat_result(found)

    monkeypatch.setattr(os, "fstat", owned)
    if taken:
        Tls(files)
    else:
        with pytest.raises(TlsRefused, match=f"mode {mode:04o}"):
            Tls(files)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"tls_certificate_file": "server.crt"}, "TLS needs a certificate and its key"),
        ({"tls_key_file": "server.key"}, "TLS needs a certificate and its key"),
        ({"tls_client_ca_file": "server.crt"}, "TLS needs a certificate and its key"),
        ({"tls_certificate_file": "server.crt", "tls_key_file": "none"}, "none: No such file"),
        ({"metrics_host": "0.0.0.0"}, "0.0.0.0 is not loopback: set ANIMUS_TLS_CERTIFICATE_FILE"),
        ({"gateway_host": "192.0.2.1"}, "192.0.2.1 is not loopback"),
        ({"grpc_host": "animus.example"}, "animus.example is not loopback"),
    ],
)
async def test_a_server_that_could_not_keep_secrets_does_not_start(
    pki: Pki, tmp_path: Path, settings: dict[str, str], reason: str
) -> None:
    """Half of what TLS needs, and plain text beyond loopback, end the start before anything is opened."""
    write(tmp_path, "server", pki.server)
    paths = {name: str(tmp_path / value) if name.endswith("_file") else value for name, value in settings.items()}
    given = load_settings({f"ANIMUS_{name.upper()}": value for name, value in paths.items()})
    with pytest.raises(StartRefused, match=reason):
        async with run_server(given.model_copy(update={"data_dir": tmp_path / "data"})):
            pass
    assert not (tmp_path / "data").exists()


# What a certificate says


@pytest.fixture(scope="module")
def issued() -> Any:
    """Makes certificates with any names."""
    authority = Authority.new(NOW, 1)

    def issue(*names: x509.GeneralName) -> str:
        return authority._issue(names, ExtendedKeyUsageOID.CLIENT_AUTH).certificate.decode()

    return issue


def test_a_certificate_names_one_member_for_each_of_its_names(issued: Any) -> None:
    """URIs come first, then DNS names, then mail addresses; addresses of machines are no members."""
    certificate = issued(
        x509.RFC822Name("a@example.org"),
        x509.DNSName("b.example"),
        x509.IPAddress(ipaddress.ip_address("192.0.2.1")),
        x509.UniformResourceIdentifier("spiffe://c"),
        x509.UniformResourceIdentifier("spiffe://d"),
    )
    assert named_by(certificate).members == (
        "certificate:uri:spiffe://c",
        "certificate:uri:spiffe://d",
        "certificate:dns:b.example",
        "certificate:email:a@example.org",
    )


async def test_a_certificate_that_names_no_member_is_no_credential(issued: Any) -> None:
    """None at all, only an address, one that is too long among good ones, too many, no certificate, an expired one."""
    good = x509.DNSName("a.example")
    refused = {
        "address": issued(x509.IPAddress(ipaddress.ip_address("192.0.2.1"))),
        "long": issued(good, x509.UniformResourceIdentifier("spiffe://" + "x" * 500)),
        "space": issued(good, x509.UniformResourceIdentifier("spiffe://x\n")),
        "many": issued(*(x509.DNSName(f"{number}.example") for number in range(MAX_MEMBERS + 1))),
        "none": Authority.new(NOW, 1).pem.decode(),
        "bytes": "x",
        "expired": Authority.new(NOW - timedelta(days=3), 1).client("a.example").certificate.decode(),
    }
    for name, certificate in refused.items():
        with pytest.raises(Denied) as denied:
            await Identity(*cast(Any, [None] * 4)).principal((), certificate)
        assert denied.value.reason == "TOKEN_INVALID", name
    assert named_by(issued(good)).members == ("certificate:dns:a.example",)
