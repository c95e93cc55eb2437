"""The server: database, log, services, gateway, metrics; started in this order and stopped in reverse."""

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import quote

import grpc
import structlog
from google.protobuf.descriptor import FileDescriptor
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from sqlalchemy.ext.asyncio import AsyncEngine

from animus.codec import encode, sha256
from animus.config import Settings
from animus.domain.access import METHODS, Role, ServiceAccount, Token, principal_of
from animus.domain.document import seal
from animus.domain.errors import Invalid, Unavailable
from animus.domain.log import FIRST_EPOCH, LogKey, LogKeyStatus, check_instance_name, unsound
from animus.domain.names import SYSTEM_PROJECT, format_time, project_name
from animus.domain.note import Key
from animus.domain.policy import load_policy
from animus.domain.project import Project
from animus.files import create_private
from animus.keyring import Keyring, KeyringError, made_up_name
from animus.prometheus import serve_metrics
from animus.service.access import AccessService
from animus.service.audit import AuditService
from animus.service.calls import Calls
from animus.service.dataset import DatasetService
from animus.service.environment import EnvironmentService
from animus.service.evidence import EvidenceService
from animus.service.identity import Identity
from animus.service.issuers import Issuers, IssuersRefused, open_issuers
from animus.service.limits import BoundedHealth, limits_of
from animus.service.lineage import LineageService
from animus.service.log import LogService
from animus.service.log_growth import LogGrowth
from animus.service.log_identity import LogIdentity, status_of
from animus.service.pages import Pages
from animus.service.pipeline import PipelineService
from animus.service.project import ProjectService
from animus.service.quality import QualityService
from animus.service.quality_gate import QualityGateService
from animus.service.run import RunService
from animus.service.run_state import RunStates
from animus.service.runtime import RuntimeService
from animus.store.embedded import EmbeddedPostgres
from animus.store.engine import make_engine, translated
from animus.store.guard import refuse_unsafe
from animus.store.log import LogStore
from animus.store.migrate import migrate
from animus.store.signer_state import SignerState, SignerStateError
from animus.store.unit_of_work import Call, Change, UnitOfWork, View
from animus.telemetry import Telemetry, conceal
from animus.tls import Tls, TlsFiles, TlsRefused, is_loopback
from animus.v1 import (
    access_pb2,
    audit_pb2,
    dataset_pb2,
    environment_pb2,
    evidence_pb2,
    lineage_pb2,
    log_pb2,
    pipeline_pb2,
    project_pb2,
    quality_gate_pb2,
    quality_pb2,
    run_pb2,
    runtime_pb2,
)
from animus.workers.integrator import Integrator
from animus.workers.leader import Leader
from animus.workers.publisher import Publisher
from animus.workers.token_use import TokenUses

FIRST_TOKEN_DAYS = 365
MAX_METADATA_BYTES = 16 << 10  # a JWT of 8 KiB, and what else a proxy on the way adds
MAX_CALLS_OF_CONNECTION = 1_000
MAX_CALLS = 10_000  # at once, health and what is refused included: the last resort
CONNECTION_SECONDS = 3_600
SIGNER_STATE_FILE = "signer.db"
MAX_SOCKET_PATH_BYTES = 107  # of Linux; a path that is cut short would be another one
STREAM_SECONDS = 0.5  # for open health and reflection streams, which would hold the shutdown as long as it lets them

log = structlog.get_logger("animus.server")


class _Founded(Exception):
    """Another server has made the instance."""


class StartRefused(RuntimeError):
    """The server will not start: one line that says why and what to change."""


@dataclass(frozen=True, slots=True)
class Running:
    """Where a server is reached."""

    grpc: str  # host:port
    mtls: str  # host:port that requires a client certificate; empty where none is taken
    http: str  # URL; empty without gateway
    metrics: str  # URL
    data_dir: Path
    engine: AsyncEngine
    log: "ServedLog"
    token_uses: TokenUses


@dataclass(slots=True)
class ServedLog:
    """The log as this server serves it."""

    keyring: Keyring
    store: LogStore
    identity: LogIdentity
    growth: LogGrowth
    leader: Leader | None  # None where the signer's state is another server's
    problems: tuple[str, ...]  # what was wrong at the last look

    def check_sound(self) -> None:
        """Raises Unavailable while this server cannot sign: no change is taken then."""
        if self.leader is not None and self.leader.problem:
            raise unsound()

    def publish_soon(self) -> None:
        """Asks for checkpoints at once, where it is this server that makes them."""
        if self.leader is not None:
            self.leader.publish_soon()

    async def look(self) -> None:
        """Learns of keys, epochs and problems. Raises Unavailable."""
        await self.identity.refresh()
        found = await self.store.problems()
        if self.leader is not None and self.leader.problem and self.leader.problem not in found:
            found.insert(0, self.leader.problem)
        if self.leader is None:  # a leader takes up another key itself
            try:
                self.keyring.reload()
            except KeyringError as error:
                found.insert(0, str(error))
        self.problems = tuple(found)


def new_id() -> str:
    """128 random bits as 32 hexadecimal digits."""
    return secrets.token_hex(16)


def add_services(
    server: grpc.aio.Server, work: UnitOfWork, calls: Calls, pages: Pages, served: ServedLog, witnesses: Iterable[Key]
) -> list[str]:
    """Registers every service; returns their names. Raises LookupError where the access table has a gap."""
    states = RunStates()
    servicers: list[tuple[FileDescriptor, object]] = [
        (project_pb2.DESCRIPTOR, ProjectService(work, pages)),
        (access_pb2.DESCRIPTOR, AccessService(work, pages)),
        (dataset_pb2.DESCRIPTOR, DatasetService(work, pages)),
        (environment_pb2.DESCRIPTOR, EnvironmentService(work, pages)),
        (pipeline_pb2.DESCRIPTOR, PipelineService(work, pages)),
        (run_pb2.DESCRIPTOR, RunService(work, pages, states)),
        (runtime_pb2.DESCRIPTOR, RuntimeService(work, states)),
        (audit_pb2.DESCRIPTOR, AuditService(work, pages, served.growth)),
        (
            log_pb2.DESCRIPTOR,
            LogService(work, pages, served.identity, served.growth, served.publish_soon, witnesses),
        ),
        (lineage_pb2.DESCRIPTOR, LineageService(work, pages, served.identity)),
        (
            evidence_pb2.DESCRIPTOR,
            EvidenceService(work, served.identity, served.growth, served.publish_soon, served.keyring),
        ),
        (quality_pb2.DESCRIPTOR, QualityService(work, pages)),
        (quality_gate_pb2.DESCRIPTOR, QualityGateService(work, pages)),
    ]
    names = []
    for file, servicer in servicers:
        (descriptor,) = file.services_by_name.values()
        server.add_generic_rpc_handlers((calls.handler(descriptor, servicer),))
        names.append(descriptor.full_name)
    return names


@asynccontextmanager
async def run_server(settings: Settings) -> AsyncIterator[Running]:
    """A server for as long as the context lasts.

    Raises StartRefused, EmbeddedError, LoginRefused, MigrationRefused, Unavailable or UnsafeDatabase.
    """
    tls = _tls(settings)
    for setting in (settings.database_url, settings.owner_database_url, settings.page_token_key):
        conceal(setting.get_secret_value())
    data_dir = settings.data_dir.absolute()
    data_dir.mkdir(parents=True, exist_ok=True, mode=0o711)
    async with AsyncExitStack() as stack:
        issuers = _issuers(settings.issuers_file)
        engine, postgres = await open_database(stack, settings, data_dir)
        witnesses = _witnesses(settings.log_policy_file)
        served, work = await open_log(engine, settings, data_dir)
        stack.push_async_callback(served.growth.stop)
        telemetry = Telemetry(settings.otlp_endpoint)
        stack.callback(telemetry.close)
        _follow_log(telemetry, served)
        metrics_port = _serve_metrics(stack, telemetry, settings, tls)
        server = grpc.aio.server(
            options=[
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", settings.max_message_bytes),
                ("grpc.max_send_message_length", 4 * settings.max_message_bytes),
                ("grpc.max_metadata_size", MAX_METADATA_BYTES),
                ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
                # Fair turns are the services' own matter: so many calls of one connection reach them, also those that
                # many callers make through one gateway.
                ("grpc.max_concurrent_streams", MAX_CALLS_OF_CONNECTION),
                # Clients that have vanished are found out; those that ping more than allowed are cut off.
                ("grpc.keepalive_time_ms", 60_000),
                ("grpc.keepalive_timeout_ms", 20_000),
                ("grpc.keepalive_permit_without_calls", 0),
                ("grpc.http2.max_pings_without_data", 0),
                ("grpc.http2.min_recv_ping_interval_without_data_ms", 60_000),
                ("grpc.http2.max_ping_strikes", 2),
                # A connection of an hour takes no more calls, and those it has may go on for as long as any may.
                ("grpc.max_connection_idle_ms", CONNECTION_SECONDS * 1_000 // 4),
                ("grpc.max_connection_age_ms", CONNECTION_SECONDS * 1_000),
                (
                    "grpc.max_connection_age_grace_ms",
                    int(1_000 * (settings.stream_timeout_seconds + settings.call_timeout_seconds)),
                ),
            ],
            maximum_concurrent_rpcs=MAX_CALLS,
        )
        page_key = bytes.fromhex(
            settings.page_token_key.get_secret_value()
            or _kept_secret(data_dir / "page-token.key", lambda: secrets.token_hex(32))[1]
        )
        uses = TokenUses(work)
        stack.push_async_callback(uses.flush)  # after the last call has ended
        noting = asyncio.create_task(uses.run())
        stack.push_async_callback(_cancel, noting)
        await stack.enter_async_context(issuers.renewed())
        limits = limits_of(settings.call_slots, settings.pool_size, settings.rate_per_second, settings.rate_burst)
        telemetry.follow("animus_calls_open", "Calls that are in: at work, or waiting.", lambda: len(limits.calls))
        calls = Calls(
            work,
            telemetry,
            limits,
            Identity(work, issuers, limits.lookups, uses.note),
            settings.call_timeout_seconds,
            settings.stream_timeout_seconds,
            served.identity.receipt,
        )
        names = add_services(server, work, calls, Pages(page_key), served, witnesses)
        healths = BoundedHealth()
        health_pb2_grpc.add_HealthServicer_to_server(healths, server)
        if settings.reflection:
            reflection.enable_server_reflection([*names, health.SERVICE_NAME, reflection.SERVICE_NAME], server)
        for method in ("Check", "Watch", "List"):
            assert f"{health.SERVICE_NAME}/{method}" in METHODS
        grpc_address, mtls_address = _listen(server, settings, tls)
        own_socket = _own_socket(stack, server) if settings.gateway else ""
        if served.leader is not None:
            await served.leader.start()
            leading = asyncio.create_task(served.leader.run())
            stack.push_async_callback(served.leader.finish)  # after the last call has ended
            stack.push_async_callback(_cancel, leading)
        await server.start()
        stack.push_async_callback(server.stop, STREAM_SECONDS)
        watch = asyncio.create_task(_watch(served, healths, ["", *names], postgres))
        stack.push_async_callback(_cancel, watch)
        await _set_health(healths, ["", *names], health_pb2.HealthCheckResponse.SERVING)
        http = await _serve_gateway(stack, own_socket, settings, tls) if settings.gateway else ""
        metrics = f"{_scheme(tls)}://{settings.metrics_host}:{metrics_port}/metrics"
        running = Running(grpc_address, mtls_address, http, metrics, data_dir, engine, served, uses)
        _write_state(stack, running)
        stack.push_async_callback(calls.drain, settings.drain_seconds)
        # Said first when it ends: load balancers look away while open calls are still answered.
        stack.push_async_callback(_set_health, healths, ["", *names], health_pb2.HealthCheckResponse.NOT_SERVING)
        yield running


async def serve(settings: Settings) -> None:
    """Runs a server until SIGTERM or SIGINT."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    async with run_server(settings) as running:
        log.info(
            "serving",
            grpc=running.grpc,
            mtls=running.mtls,
            http=running.http,
            metrics=running.metrics,
            data_dir=str(running.data_dir),
            admin_token_file=str(running.data_dir / "admin.token"),
            stop="SIGTERM or Ctrl+C",
        )
        await stopping.wait()
        log.info("draining", seconds=settings.drain_seconds)


async def open_database(
    stack: AsyncExitStack, settings: Settings, data_dir: Path
) -> tuple[AsyncEngine, EmbeddedPostgres | None]:
    """Connections of the service role to a database that is safe to serve from; and its server if it is embedded."""
    postgres = None
    url = settings.database_url.get_secret_value()
    if not url:
        postgres = EmbeddedPostgres.start(data_dir / "postgres", log=log)
        stack.callback(postgres.stop)
        await migrate(postgres.owner_url)
        url = postgres.service_url
    try:
        engine = make_engine(url, pool_size=settings.pool_size, pgbouncer=settings.pgbouncer)
    except ValueError as error:
        raise StartRefused(f"ANIMUS_DATABASE_URL {error}") from None
    stack.push_async_callback(engine.dispose)
    password = engine.url.password or ""
    conceal(password, quote(password, safe=""))
    async with translated(), engine.connect() as connection:
        await refuse_unsafe(connection)
    return engine, postgres


def log_folder(settings: Settings) -> Path:
    """Where the log's keys and the signer's state are."""
    return (settings.log_dir or settings.data_dir / "log").absolute()


async def open_log(engine: AsyncEngine, settings: Settings, data_dir: Path) -> tuple[ServedLog, UnitOfWork]:
    """The log's keys, checked against what the database says of them, and the way to write to it.

    At the first start of an instance it makes the key, the signer's state and the first token. Raises StartRefused
    where key and database are not of one instance.
    """
    folder = log_folder(settings)
    store = LogStore(engine, f"{os.uname().nodename}/{os.getpid()}/{new_id()}")
    try:
        if not await store.keys():
            keyring = await _found_instance(engine, store, folder, settings.log_name, data_dir / "admin.token")
        else:
            keyring = Keyring(folder)
        await _check_keys(keyring, store)
        state = folder / SIGNER_STATE_FILE
        leader = None
        if state.exists():
            leader = Leader(store, keyring, Integrator(keyring), Publisher(store, SignerState(state), keyring))
        else:
            log.warning("this server signs no checkpoints: the signer's state is not here", path=str(state))
    except (KeyringError, SignerStateError) as error:
        raise StartRefused(str(error)) from None
    served = ServedLog(keyring, store, LogIdentity(store, keyring), LogGrowth(store), leader, ())
    await served.look()
    return served, UnitOfWork(engine, new_id, keyring.seal, served.check_sound)


async def _found_instance(engine: AsyncEngine, store: LogStore, folder: Path, name: str, token_file: Path) -> Keyring:
    """Makes the key, the signer's state and the first token of an instance.

    Files are written before the database knows of them, so that no crash leaves a key or a token that nobody has. Of
    several servers that start at once one registers what it found or made, and the others remove what only they have.
    """
    if name:
        try:
            check_instance_name(name, "ANIMUS_LOG_NAME")
        except Invalid as error:
            raise StartRefused(error.message) from None
    keyring, new = Keyring.create(folder, name or made_up_name())
    state = folder / SIGNER_STATE_FILE
    if not state.exists():
        SignerState.create(state, FIRST_EPOCH)
    work = UnitOfWork(engine, new_id, keyring.seal, None)
    await make_first_token(work, token_file, keyring)
    registered = {facts.key.value.public_key for facts in await store.keys()}
    if new and keyring.public_keys[0] not in registered:  # it is, if the server that was first shares this folder
        keyring.path.unlink()
        state.unlink()
    return Keyring(folder)


async def _check_keys(keyring: Keyring, store: LogStore) -> None:
    facts = await store.keys()
    known = {each.key.value.public_key: each for each in facts}
    for public_key in keyring.public_keys:
        found = known.get(public_key)
        if found is None or found.key.value.instance_name != keyring.instance_name:
            raise StartRefused(
                f"{keyring.path} is not the key of this instance's log: put the file with the key"
                f" {facts[0].key.value.public_key} there, or name its folder in ANIMUS_LOG_DIR"
            )
        if status_of(found) is not LogKeyStatus.ACTIVE:
            raise StartRefused(f"{keyring.path} holds the key {public_key}, which is {status_of(found)}: take it out")


async def make_first_token(work: UnitOfWork, path: Path, keyring: Keyring) -> None:
    """Creates the system project with the first admin token and the log's key, unless another server has done so."""
    new, token = _kept_secret(path, lambda: f"animus_{SYSTEM_PROJECT}_{secrets.token_urlsafe(32)}")
    token_digest = sha256(token.encode())
    principal = principal_of("bootstrap", Role.INSTANCE_ADMIN, SYSTEM_PROJECT)
    project = Project(SYSTEM_PROJECT, "System", "What belongs to the instance: its tokens, and denied calls.", ())
    account = ServiceAccount("admin", "Administrator", "Whom the first token of the instance is issued to.")
    key = LogKey(keyring.instance_name, keyring.public_keys[0])

    async def decide(view: View) -> Change:
        if view.project_known:
            raise _Founded
        expires = datetime.fromisoformat(view.time) + timedelta(days=FIRST_TOKEN_DAYS)
        token = Token(
            token_digest, account.service_account_id, Role.INSTANCE_ADMIN, format_time(expires.astimezone(UTC))
        )
        reply = encode(project, project_pb2.Project())
        records = (seal(project), seal(account), seal(token), seal(key))
        return Change("instance.bootstrap", project_name(SYSTEM_PROJECT), records, (), reply)

    request = json.dumps({"tokenDigest": token_digest, "publicKey": key.public_key}).encode()
    # No two servers have one request_id, unless they have one token and one key: nothing of this is ever refused and
    # audited, which it would be under a key that the instance may not have.
    call = Call("animus.bootstrap", SYSTEM_PROJECT, principal, f"first-token-{sha256(request)[-32:]}", False, request)
    try:
        await work.change(call, decide, creates_project=True)
    except _Founded:
        if new:
            _remove(path)


async def _watch(
    served: ServedLog, healths: health.aio.HealthServicer, names: Iterable[str], postgres: EmbeddedPostgres | None
) -> None:
    """Each second: starts the embedded PostgreSQL again if it died, and says whether the services can serve."""
    names = list(names)
    serving = True
    said: tuple[str, ...] = ()
    while True:
        await asyncio.sleep(1)
        if postgres is not None:
            try:
                await asyncio.to_thread(postgres.poll)
            except RuntimeError as error:
                log.error("the embedded PostgreSQL does not start", reason=str(error))
        try:
            await served.look()
            ready = not served.problems
        except Unavailable:
            ready = False
        except Exception:  # a defect, or a grant that is gone: neither may end this task unseen
            ready = False
            if serving:
                log.exception("what is wrong with the log cannot be told")
        if served.problems != said:
            said = served.problems
            for problem in said:
                log.error("the log has a problem", problem=problem)
        if ready is not serving:
            serving = ready
            log.warning("health changed", serving=serving)
            status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
            await _set_health(healths, names, status)


async def _set_health(healths: health.aio.HealthServicer, names: Iterable[str], status: int) -> None:
    for name in names:
        await healths.set(name, status)


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def _tls(settings: Settings) -> Tls | None:
    """What the listeners speak; None for plain text. Raises StartRefused where that is not allowed."""
    certificate, key = settings.tls_certificate_file, settings.tls_key_file
    if certificate is not None and key is not None:
        try:
            return Tls(TlsFiles(certificate, key, settings.tls_client_ca_file))
        except TlsRefused as error:
            raise StartRefused(str(error)) from None
    if certificate is not None or key is not None or settings.tls_client_ca_file is not None:
        raise StartRefused(
            "TLS needs a certificate and its key: set ANIMUS_TLS_CERTIFICATE_FILE and ANIMUS_TLS_KEY_FILE"
        )
    hosts = [settings.grpc_host, settings.metrics_host, *([settings.gateway_host] if settings.gateway else [])]
    for host in hosts:
        if not settings.insecure_bind and not is_loopback(host):
            raise StartRefused(
                f"{host} is not loopback: set ANIMUS_TLS_CERTIFICATE_FILE and ANIMUS_TLS_KEY_FILE, or set"
                " ANIMUS_INSECURE_BIND=true, which lets anyone on the network's path read tokens"
            )
    return None


def _scheme(tls: Tls | None) -> str:
    return "http" if tls is None else "https"


def _listen(server: grpc.aio.Server, settings: Settings, tls: Tls | None) -> tuple[str, str]:
    """The addresses of gRPC: the one for tokens, and the one for client certificates, empty where none is taken.

    They are two because gRPC has no port that asks for a certificate and can do without.
    """

    def add(port: int, setting: str, credentials: grpc.ServerCredentials | None) -> str:
        address = f"{settings.grpc_host}:{port}"
        try:
            if credentials is None:
                found = server.add_insecure_port(address)
            else:
                found = server.add_secure_port(address, credentials)
        except RuntimeError:
            raise StartRefused(f"port {port} on {settings.grpc_host} is taken: set {setting}") from None
        return f"{settings.grpc_host}:{found}"

    grpc_address = add(settings.grpc_port, "ANIMUS_GRPC_PORT", tls.credentials(require_client=False) if tls else None)
    if tls is None or not tls.takes_client_certificates:
        return grpc_address, ""
    return grpc_address, add(settings.mtls_port, "ANIMUS_MTLS_PORT", tls.credentials(require_client=True))


def _own_socket(stack: AsyncExitStack, server: grpc.aio.Server) -> str:
    """A Unix socket for the gateway of this process: no certificate is needed on it, and no port.

    Its folder is open to this account only. What comes over it is believed about client certificates.
    """
    folder = Path(tempfile.mkdtemp(prefix="animus-"))  # mode 0700
    stack.callback(shutil.rmtree, folder, ignore_errors=True)
    path = folder / "gateway"
    if len(os.fsencode(path)) > MAX_SOCKET_PATH_BYTES:
        raise StartRefused(f"{path} is too long for a socket: set TMPDIR to a shorter one")
    server.add_insecure_port(f"unix:{path}")
    return f"unix:{path}"


async def _serve_gateway(stack: AsyncExitStack, target: str, settings: Settings, tls: Tls | None) -> str:
    from animus_gateway.app import check_origins
    from animus_gateway.main import CannotListenError, open_channel, serve_gateway

    try:
        check_origins(settings.gateway_allowed_origins)
    except ValueError as error:
        raise StartRefused(f"ANIMUS_GATEWAY_ALLOWED_ORIGINS: {error}") from None
    channel = open_channel(target, 4 * settings.max_message_bytes)
    stack.push_async_callback(channel.close)
    try:
        gateway = await serve_gateway(
            channel,
            settings.gateway_host,
            settings.gateway_port,
            max_body_bytes=settings.max_message_bytes,
            timeout_seconds=settings.call_timeout_seconds,
            allowed_hosts=settings.gateway_allowed_hosts or None,
            allowed_origins=settings.gateway_allowed_origins,
            tls=tls,
        )
    except CannotListenError as error:
        raise StartRefused(str(error)) from None
    stack.push_async_callback(gateway.stop)
    return f"{_scheme(tls)}://{settings.gateway_host}:{gateway.port}"


def _follow_log(telemetry: Telemetry, served: ServedLog) -> None:
    telemetry.follow(
        "animus_log_problems", "What is wrong with the logs; 0 when all is well.", lambda: len(served.problems)
    )
    if (leader := served.leader) is not None:
        telemetry.follow("animus_log_leads", "Whether this server writes the logs.", lambda: leader.leads)
        telemetry.follow("animus_log_integrated", "Entries given an index since the start.", lambda: leader.integrated)
        telemetry.follow("animus_log_published", "Checkpoints published since the start.", lambda: leader.published)


def _serve_metrics(stack: AsyncExitStack, telemetry: Telemetry, settings: Settings, tls: Tls | None) -> int:
    if tls is not None:
        telemetry.follow(
            "animus_certificate_expire_time_seconds",
            "When the server's certificate expires, in seconds since 1970.",
            lambda: tls.newest().expire_time,
        )
    try:
        port, stop = serve_metrics(
            settings.metrics_host, settings.metrics_port, telemetry.registry, tls.context() if tls else None
        )
    except OSError:
        raise StartRefused(
            f"port {settings.metrics_port} on {settings.metrics_host} is taken: set ANIMUS_METRICS_PORT"
        ) from None
    stack.callback(stop)
    return port


def _write_state(stack: AsyncExitStack, running: Running) -> None:
    """Says where the server is, for tools on the same machine; replaced as a whole, removed at the end."""
    path = running.data_dir / "server.json"
    state = {"pid": os.getpid(), "grpc": running.grpc, "mtls": running.mtls}
    state |= {"http": running.http, "metrics": running.metrics}
    scratch = path.with_suffix(".new")
    scratch.write_text(json.dumps(state) + "\n")
    scratch.replace(path)
    stack.callback(path.unlink, missing_ok=True)


def _kept_secret(path: Path, make: Callable[[], str]) -> tuple[bool, str]:
    """A secret that is made once and kept in a file of its owner's, and whether it was made now."""
    new = not path.exists() and create_private(path, make() + "\n")
    secret = path.read_text().strip()
    conceal(secret)
    return new, secret


def _remove(path: Path) -> None:
    path.unlink()


def _witnesses(path: Path | None) -> list[Key]:
    """The keys of the witnesses of a policy file. Raises StartRefused."""
    if path is None:
        return []
    try:
        return [witness.key for witness in load_policy(path.read_bytes()).witnesses]
    except OSError as error:
        raise StartRefused(f"ANIMUS_LOG_POLICY_FILE: {error}") from None
    except Invalid as error:
        raise StartRefused(f"ANIMUS_LOG_POLICY_FILE: {error.message}") from None


def _issuers(path: Path | None) -> Issuers:
    """The issuers of a file. Raises StartRefused."""
    try:
        return open_issuers(path, time.monotonic)
    except IssuersRefused as error:
        raise StartRefused(str(error)) from None
