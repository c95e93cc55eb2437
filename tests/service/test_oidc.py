"""Calls with a JWT: roles by role bindings, one refusal for every fault, keys that rotate, issuers that are away."""

import asyncio
import datetime
import ipaddress
import json
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from sqlalchemy.ext.asyncio import AsyncEngine

from animus.cli_client import read_token
from animus.domain.access import Role, RoleBinding, principal_of
from animus.domain.document import seal
from animus.domain.errors import Unavailable
from animus.sdk.client import connect
from animus.server import StartRefused, new_id, run_server
from animus.service import calls, issuers
from animus.service.issuers import Issuers, IssuersRefused, open_issuers
from animus.service.jwt import MAX_JWT_BYTES, Untrusted
from animus.store.embedded import EmbeddedPostgres
from animus.store.unit_of_work import Call, Change, UnitOfWork, View
from animus.v1 import access_pb2, audit_pb2, dataset_pb2, project_pb2
from animus.v1.audit_pb2_grpc import AuditServiceStub
from animus.v1.project_pb2_grpc import ProjectServiceStub
from service.conftest import Caller, Failure, Server, failure_of, settings_for
from service.shared import served
from service.signers import Signer, Tree, answer, issuer, jwks, shown

FIRST, SECOND, STRANGER = (Signer.new(kid, "P-256") for kid in ("first", "second", "first"))
TOKEN_INVALID = ("UNAUTHENTICATED", "TOKEN_INVALID")


def claims(**more: Any) -> Tree:
    """The claims of a token that is good now."""
    now = int(time.time())
    return {"iss": issuer()["issuer"], "aud": "animus", "sub": "6f1d", "exp": now + 300, "groups": ["ml"], **more}


def token(signer: Signer = FIRST, **more: Any) -> str:
    """A token that is good now."""
    return signer.token("ES256", claims(**more))


def write(path: Path, text: bytes) -> Path:
    """Replaces a file as a whole, as whoever rotates keys should."""
    scratch = path.with_suffix(".new")
    scratch.write_bytes(text)
    return scratch.replace(path)


def file_of(folder: Path, *trees: Tree) -> Path:
    """A file of issuers."""
    return write(folder / "issuers.json", json.dumps(trees).encode())


# Where keys come from. The time is the test's own.


@dataclass(slots=True)
class World:
    """An issuer, on a clock of the test's own."""

    folder: Path
    now: float = 1_000.0
    asked: int = 0  # how often the keys were fetched
    reply: bytes = field(default_factory=lambda: answer(jwks(FIRST)))

    def open(self, **more: Any) -> Issuers:
        """The issuer, with what its entry in the file says."""
        return open_issuers(file_of(self.folder, issuer(**more)), lambda: self.now)

    def respond(self) -> bytes:
        """What the issuer's address answers now."""
        self.asked += 1
        return self.reply


@pytest.fixture
def world(tmp_path: Path) -> World:
    """An issuer that shows its first key, in a file too."""
    write(tmp_path / "keys.json", jwks(FIRST))
    return World(tmp_path)


async def outcome(found: Issuers, text: str) -> str:
    """The name that a token is good for, or why it is not."""
    try:
        return (await found.subject(text, time.time())).name
    except Untrusted as error:
        return str(error)
    except Unavailable as error:
        return error.reason


GOOD = "oidc:corp:6f1d"


async def test_a_file_of_keys_is_read_again_when_it_changes(world: World) -> None:
    """Within a second; a file that is broken or gone leaves the keys as they were, until a good one is there."""
    keys = world.folder / "keys.json"
    found = world.open(jwksFile=str(keys))
    write(keys, jwks(SECOND))
    assert await outcome(found, token(FIRST)) == GOOD
    world.now += issuers.LOOK_SECONDS
    assert [await outcome(found, token(each)) for each in (FIRST, SECOND)] == ["signature", GOOD]
    for spoil in (lambda: write(keys, b'{"keys": ['), lambda: write(keys, b" " * (1 << 20) + jwks(FIRST)), keys.unlink):
        spoil()
        world.now += issuers.LOOK_SECONDS
        assert [await outcome(found, token(each)) for each in (FIRST, SECOND)] == ["signature", GOOD]
    write(keys, jwks(FIRST, SECOND))
    world.now += issuers.LOOK_SECONDS
    assert [await outcome(found, token(each)) for each in (FIRST, SECOND)] == [GOOD, GOOD]


async def test_keys_are_fetched_once_for_all_and_again_for_a_new_one(world: World) -> None:
    """At the first token, and when one names a key that is not known; then not again for ten seconds."""
    async with shown(world.respond) as port:
        found = world.open(jwksUrl=f"http://127.0.0.1:{port}/jwks")
        assert await asyncio.gather(*(outcome(found, token()) for _ in range(10))) == [GOOD] * 10
        assert world.asked == 1
        world.reply = answer(jwks(SECOND))
        assert await outcome(found, token(SECOND)) == "signature", "asked a moment ago"
        assert world.asked == 1
        world.now += issuers.RETRY_SECONDS
        assert [await outcome(found, token(each)) for each in (SECOND, FIRST, SECOND)] == [GOOD, "signature", GOOD]
        assert world.asked == 2
        world.now += issuers.RETRY_SECONDS
        assert await outcome(found, token(SECOND, aud="else")) == "aud"
        assert world.asked == 2, "a token that is not good makes no request"


async def test_the_last_good_keys_stand_for_a_day(world: World) -> None:
    """Then the issuer's tokens are neither good nor bad, and the same call may succeed later."""
    found = world.open(jwksUrl="http://127.0.0.1:1/jwks")
    assert await outcome(found, token()) == "ISSUER_UNAVAILABLE"
    async with shown(world.respond) as port:
        found = world.open(jwksUrl=f"http://127.0.0.1:{port}/jwks")
        assert await outcome(found, token()) == GOOD
    world.now += issuers.KEEP_SECONDS - 1
    assert await outcome(found, token()) == GOOD
    world.now += 1
    assert await outcome(found, token()) == "ISSUER_UNAVAILABLE"
    assert await outcome(found, token(exp=0)) == "exp"


async def test_keys_of_an_address_are_renewed_without_being_asked_for(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the start of the server on, more often while there is a fault."""
    monkeypatch.setattr(issuers, "RENEW_SECONDS", 0.01)
    monkeypatch.setattr(issuers, "RETRY_SECONDS", 0.01)
    world.reply = answer(b"", "503 Service Unavailable")
    async with shown(world.respond) as port, asyncio.timeout(10):
        found = world.open(jwksUrl=f"http://127.0.0.1:{port}/jwks")
        async with found.renewed():
            while world.asked < 2:
                await asyncio.sleep(0.001)
            world.reply = answer(jwks(FIRST))
            while await outcome(found, token()) != GOOD:
                await asyncio.sleep(0.001)
            seen = world.asked
            while world.asked < seen + 2:
                await asyncio.sleep(0.001)


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"HTTP",
        b"\x00\xff\r\n\r\n",
        answer(b""),
        answer(jwks(FIRST))[:-1],
        answer(jwks(FIRST), "404 Not Found"),
        answer(jwks(FIRST), "500 Internal Server Error"),
        answer(jwks(FIRST).replace(b'"y"', b'"d": "AA", "y"')),
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        answer(jwks(FIRST) + b" " * (1 << 20)),
    ],
)
async def test_an_answer_that_is_no_set_of_keys_gives_none(world: World, reply: bytes) -> None:
    """Nor ends the looking: the next one may be good."""
    world.reply = reply
    async with shown(world.respond) as port:
        found = world.open(jwksUrl=f"http://127.0.0.1:{port}/jwks")
        assert await outcome(found, token()) == "ISSUER_UNAVAILABLE"
        world.reply = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        world.reply += b"".join(b"1\r\n%c\r\n" % each for each in jwks(FIRST)) + b"0\r\n\r\n"
        world.now += issuers.RETRY_SECONDS
        assert await outcome(found, token()) == GOOD


async def test_an_issuer_leads_nowhere_else(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a redirect nor a proxy of the environment is followed."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    async with shown(world.respond) as port:
        target = f"http://127.0.0.1:{port}/jwks"
        moved = f"HTTP/1.1 302 Found\r\nLocation: {target}\r\nContent-Length: 0\r\n\r\n".encode()
        async with shown(lambda: moved) as other:
            assert await outcome(world.open(jwksUrl=f"http://127.0.0.1:{other}/"), token()) == "ISSUER_UNAVAILABLE"
        assert world.asked == 0
        assert await outcome(world.open(jwksUrl=target), token()) == GOOD


async def test_an_issuer_that_does_not_end_its_answer_is_left(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a few seconds in all, however it spends them; one that has ended is not waited for."""
    monkeypatch.setattr(issuers, "FETCH_SECONDS", 0.2)
    world.reply = answer(jwks(FIRST))
    async with shown(world.respond, hold=True) as port:
        assert await outcome(world.open(jwksUrl=f"http://127.0.0.1:{port}/jwks"), token()) == GOOD
    world.reply = answer(jwks(FIRST))[:-1]
    async with shown(world.respond, hold=True) as port:
        found = world.open(jwksUrl=f"http://127.0.0.1:{port}/jwks")
        assert await outcome(found, token()) == "ISSUER_UNAVAILABLE"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of this machine that vouches for itself, with its key beside it."""
    folder = tmp_path_factory.mktemp("tls")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "issuer")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "issuer.key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (folder / "issuer.pem").write_bytes(made.public_bytes(Encoding.PEM))
    return folder / "issuer.pem"


async def test_an_issuer_proves_itself_by_its_certificate(world: World, certificate: Path) -> None:
    """To whom the file names, or the system trusts; another is not asked anything."""
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate, certificate.with_suffix(".key"))
    async with shown(world.respond, tls) as port:
        url = f"https://127.0.0.1:{port}/jwks"
        assert await outcome(world.open(jwksUrl=url, caFile=str(certificate)), token()) == GOOD
        assert world.asked == 1
        assert await outcome(world.open(jwksUrl=url), token()) == "ISSUER_UNAVAILABLE"
        elsewhere = url.replace("127.0.0.1", "localhost")
        assert await outcome(world.open(jwksUrl=elsewhere, caFile=str(certificate)), token()) == "ISSUER_UNAVAILABLE"
        assert world.asked == 1


# A server.


def refusal(folder: Path, path: str) -> str:
    """Why issuers of a file are refused."""
    with pytest.raises(IssuersRefused) as caught:
        open_issuers(folder / path, time.monotonic)
    return str(caught.value).replace(str(folder), "")


async def test_a_server_starts_with_good_issuers_only(tmp_path: Path) -> None:
    """One line names the setting, the file and the place in it, or the file of keys that is not good."""
    assert (
        refusal(tmp_path, "absent.json") == "ANIMUS_ISSUERS_FILE /absent.json: /absent.json: No such file or directory"
    )
    file_of(tmp_path, issuer(jwksFile=f"{tmp_path}/keys.json"), issuer(id="X"))
    assert refusal(tmp_path, "issuers.json").startswith("ANIMUS_ISSUERS_FILE /issuers.json: [1].id: is no name: ")
    file_of(tmp_path, issuer(jwksFile=f"{tmp_path}/keys.json"))
    started = "ANIMUS_ISSUERS_FILE /issuers.json: [0].jwksFile: "
    assert refusal(tmp_path, "issuers.json") == f"{started}/keys.json: No such file or directory"
    (tmp_path / "keys.json").write_bytes(jwks({"kty": "oct", "k": "AAAA"}))
    assert refusal(tmp_path, "issuers.json").startswith(f"{started}keys: has none for signatures")
    file_of(tmp_path, issuer(jwksUrl="https://id.example/", caFile=f"{tmp_path}/keys.json"))
    assert refusal(tmp_path, "issuers.json").startswith("ANIMUS_ISSUERS_FILE /issuers.json: [0].caFile: ")
    given = settings_for("", tmp_path / "data", issuers_file=str(tmp_path / "absent.json"))
    with pytest.raises(StartRefused, match=r"ANIMUS_ISSUERS_FILE .*No such file"):
        async with run_server(given):
            pass


@dataclass(slots=True)
class Trusting:
    """A server with four issuers: `corp` and `turning` by files, `far` by an address, `gone` by one that nobody has."""

    server: Server
    keys: Path  # of `turning`
    far: World
    versions: dict[str, int] = field(default_factory=dict)

    def caller(self, name: str, signer: Signer = FIRST, **more: Any) -> Caller:
        """A caller of this name, in the group of this name."""
        return Caller(self.server.channel, token(signer, **{"sub": name, "groups": [name], **more}))

    async def project(self, name: str, *roles: Role, member: str = "") -> str:
        """A new project, where a member has roles: the group of its name, if no other is given."""
        await self.server.project(name)
        if roles:
            await self.bind(name, member or f"group:corp:{name}", *roles)
        return name

    async def bind(self, project_id: str, member: str, *roles: Role) -> None:
        """Gives a member these roles in a project, and no others."""
        version = self.versions[member] = self.versions.get(member, 0) + 1
        record = seal(RoleBinding(member, roles, version))
        running = self.server.running
        work = UnitOfWork(running.engine, new_id, running.log.keyring.seal, running.log.check_sound)

        async def decide(view: View) -> Change:
            return Change("role_binding.set", f"projects/{view.project_id}", (record,), (), access_pb2.Token())

        by = principal_of("tester", Role.ADMIN, project_id)
        await work.change(Call("test.bind", project_id, by, new_id(), False, record.document), decide)


@pytest.fixture(scope="module")
async def trusting(
    postgres: EmbeddedPostgres, admin: AsyncEngine, template: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Trusting]:
    """The server of this file, with the HTTP gateway."""
    folder = tmp_path_factory.mktemp("oidc")
    keys, turning = (write(folder / name, jwks(FIRST)) for name in ("keys.json", "turning.json"))
    far = World(folder)
    async with shown(far.respond) as port:
        known = file_of(
            folder,
            issuer(jwksFile=str(keys)),
            issuer(id="turning", issuer="https://turning.example", jwksFile=str(turning)),
            issuer(id="far", issuer="https://far.example", jwksUrl=f"http://127.0.0.1:{port}/jwks"),
            issuer(id="gone", issuer="https://gone.example", jwksUrl="http://127.0.0.1:1/jwks"),
        )
        data = folder / "data"
        async with served(postgres, admin, template, data, issuers_file=str(known), gateway="true") as server:
            yield Trusting(server, turning, far)


def read(project_id: str) -> project_pb2.GetProjectRequest:
    """A read that every role may make."""
    return project_pb2.GetProjectRequest(project_id=project_id)


async def refused(caller: Caller, project_id: str) -> tuple[str, str]:
    """Code and reason of a read that fails."""
    with pytest.raises(Failure) as found:
        await caller("GetProject", read(project_id))
    return found.value.code, found.value.reason


async def changes(caller: Caller, project_id: str, wanted: tuple[str, str] | None) -> None:
    """Waits until a read of a project comes out in another way: with this failure, or without any."""
    async with asyncio.timeout(10):
        while True:
            try:
                await caller("GetProject", read(project_id))
                found = None
            except Failure as failure:
                found = failure.code, failure.reason
            if found == wanted:
                return
            await asyncio.sleep(0.02)


UNKNOWN = ("NOT_FOUND", "PROJECT_UNKNOWN")


async def test_a_group_has_the_roles_that_are_bound_to_it_for_as_long_as_they_are(trusting: Trusting) -> None:
    """Before, a project answers as a missing one; a role does what it does for anybody; taken back, it is gone."""
    project = await trusting.project("by-group")
    before = trusting.caller("by-group", groups=[project, "else"])
    assert await refused(before, project) == await refused(before, "missing") == UNKNOWN
    await trusting.bind(project, f"group:corp:{project}", Role.OPERATOR)
    caller = trusting.caller("by-group")
    dataset = dataset_pb2.Dataset(dataset_id="d", description="")
    request = dataset_pb2.CreateDatasetRequest(project_id=project, request_id="d", dataset=dataset)
    assert (await caller("CreateDataset", request)).record.principal == "oidc:corp:by-group"
    with pytest.raises(Failure) as found:
        await caller("ListAuditEntries", audit_pb2.ListAuditEntriesRequest(project_id=project))
    assert found.value.reason == "ROLE_MISSING"
    assert await refused(caller, "missing") == UNKNOWN
    assert await refused(trusting.caller("by-grou"), project) == UNKNOWN
    listed = await trusting.server.admin("ListAuditEntries", audit_pb2.ListAuditEntriesRequest(project_id=project))
    by_caller = {(each.method, each.reason) for each in listed.audit_entries if each.principal == "oidc:corp:by-group"}
    assert by_caller >= {
        ("animus.v1.DatasetService/CreateDataset", ""),
        ("animus.v1.AuditService/ListAuditEntries", "ROLE_MISSING"),
    }
    await trusting.bind(project, f"group:corp:{project}")
    await changes(caller, project, UNKNOWN)


@asynccontextmanager
async def tailing(caller: Caller, project_id: str) -> AsyncIterator[Any]:
    """A stream of a log's entries that has begun."""
    stub: Any = AuditServiceStub(caller.channel)
    call = stub.TailAuditEntries(
        audit_pb2.TailAuditEntriesRequest(project_id=project_id),
        metadata=[("authorization", f"Bearer {caller.token}")],
    )
    await call.read()
    yield call
    call.cancel()


async def ended(call: Any) -> tuple[str, str]:
    """Code and reason that a stream ends with."""
    try:
        async with asyncio.timeout(10):
            while await call.read() is not grpc.aio.EOF:
                pass
    except grpc.aio.AioRpcError as error:
        failure = failure_of(error)
        return failure.code, failure.reason
    return "OK", ""


async def test_a_stream_ends_with_its_role_and_with_its_token(
    trusting: Trusting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever calls is looked at again: without the role as a call is refused, at the token's end with its leeway."""
    monkeypatch.setattr(calls, "STREAM_IDENTITY_SECONDS", 0.1)
    role, end, neither = [await trusting.project(name, Role.AUDITOR) for name in ("role", "end", "neither")]
    leaves = time.time() - 60 + 1
    async with (
        tailing(trusting.caller(end, exp=leaves), end) as until_end,
        tailing(trusting.caller(role), role) as until_role,
        tailing(trusting.caller(neither), neither) as goes_on,
    ):
        await trusting.bind(role, f"group:corp:{role}", Role.VIEWER)
        assert await ended(until_role) == ("PERMISSION_DENIED", "ROLE_MISSING")
        assert await ended(until_end) == TOKEN_INVALID
        assert not goes_on.done()


async def test_every_fault_of_a_credential_is_answered_alike(trusting: Trusting) -> None:
    """To the byte: a token of an unknown issuer, one that expired, a forged one, and what is no token at all."""
    raw = set()
    for text in (
        token(iss="https://else.example"),
        token(exp=1),
        token(STRANGER),
        token(aud="else"),
        token()[:-2],
        FIRST.token("ES256", claims(), alg="none"),
        "a.b.c",
        "animus_p_" + "A" * 43,
        "x",
        "",
    ):
        with pytest.raises(Failure) as found:
            await Caller(trusting.server.channel, text)("GetProject", read("p"))
        raw.add(found.value.raw)
    assert len(raw) == 1


async def test_an_issuer_that_is_away_is_not_taken_for_a_bad_token(trusting: Trusting) -> None:
    """UNAVAILABLE says that the same call may succeed later; a token that is bad anyway is not excused by it."""
    gone: Tree = {"iss": "https://gone.example"}
    assert await refused(trusting.caller("x", **gone), "p") == ("UNAVAILABLE", "ISSUER_UNAVAILABLE")
    assert await refused(trusting.caller("x", exp=1, **gone), "p") == TOKEN_INVALID
    assert await refused(trusting.caller("x"), "p") == UNKNOWN


async def test_keys_rotate_under_a_running_server(trusting: Trusting, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new file is found, and what an address shows now; the old keys are refused from then on."""
    monkeypatch.setattr(issuers, "LOOK_SECONDS", 0.05)
    project = await trusting.project("rotation")
    for name in ("turning", "far"):
        await trusting.bind(project, f"oidc:{name}:x", Role.VIEWER)
        old, new = (trusting.caller("x", signer, iss=f"https://{name}.example") for signer in (FIRST, SECOND))
        await changes(old, project, None)
        write(trusting.keys, jwks(SECOND))
        trusting.far.reply = answer(jwks(SECOND))
        await changes(new, project, None)
        assert await refused(old, project) == TOKEN_INVALID
        assert await refused(trusting.caller("x", iss="https://corp.example"), project) == TOKEN_INVALID


async def test_the_largest_token_passes_every_way_in(trusting: Trusting, tmp_path: Path) -> None:
    """8 KiB by gRPC, by a file and the SDK, and by HTTP; what is longer meets the same refusal, not the transport's."""
    project = await trusting.project("large", Role.VIEWER)
    spare = (MAX_JWT_BYTES - len(trusting.caller(project, more="").token)) * 3 // 4 - 3
    longest, longer = (trusting.caller(project, more="x" * count) for count in (spare, spare + 1_000))
    assert MAX_JWT_BYTES - 8 < len(longest.token) <= MAX_JWT_BYTES < len(longer.token)
    await longest("GetProject", read(project))
    assert await refused(longer, project) == TOKEN_INVALID
    file = tmp_path / "token"
    file.write_text(f"{longest.token}\n")
    async with connect(trusting.server.running.grpc, read_token(file)) as channel:
        stub: Any = ProjectServiceStub(channel)
        assert (await stub.GetProject(read(project))).project_id == project
    async with httpx.AsyncClient(verify=False) as client:
        for caller, status in ((longest, 200), (longer, 401)):
            url = f"{trusting.server.running.http}/v1/projects/{project}"
            reply = await client.get(url, headers={"authorization": f"Bearer {caller.token}"})
            assert reply.status_code == status
