"""A real server on a real database, in this process, and callers with a token for each role."""

import asyncio
import hashlib
import secrets
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from conftest import Database
from contract import METHODS
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2, status_pb2
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from animus.config import Settings, load_settings
from animus.server import Running, run_server
from animus.v1 import access_pb2, log_pb2, project_pb2


@dataclass(slots=True)  # not frozen: an exception on its way is changed
class Failure(Exception):
    """A status other than OK, with its details unpacked."""

    code: str
    message: str
    reason: str
    metadata: dict[str, str]
    fields: dict[str, str]
    preconditions: list[tuple[str, str]]
    raw: bytes


@dataclass(slots=True)
class Caller:
    """Calls methods by name with a token."""

    channel: grpc.aio.Channel
    token: str
    metadata: dict[str, str | bytes] = field(default_factory=dict)  # trailing metadata of the last call
    call: Any = None  # the last call, for tests that cancel it

    async def __call__(self, name: str, request: Message, timeout: float | None = None) -> Any:
        """The reply, or the first message of a stream. Raises Failure."""
        return await self.raw(name, request.SerializeToString(), timeout)

    async def raw(self, name: str, data: bytes, timeout: float | None = None) -> Any:
        """The same for bytes. Raises Failure."""
        if METHODS[name].server_streaming:
            (message,) = await self._messages(name, data, 1, timeout)
            return message
        return await self._replied(name, data, timeout)

    async def stream(self, name: str, request: Message, most: int = sys.maxsize, timeout: float | None = None) -> Any:
        """The messages of a stream until its end, or the first few, with which the caller goes. Raises Failure."""
        return await self._messages(name, request.SerializeToString(), most, timeout)

    async def _replied(self, name: str, data: bytes, timeout: float | None) -> Any:
        self.call = call = self._begin(self.channel.unary_unary, name, data, timeout)
        with _translated(call):
            reply = await call
        self.metadata = {str(key): value for key, value in await call.trailing_metadata()}
        return reply

    async def _messages(self, name: str, data: bytes, most: int, timeout: float | None) -> list[Any]:
        self.call = call = self._begin(self.channel.unary_stream, name, data, timeout)
        found: list[Any] = []
        with _translated(call):
            while len(found) < most and (message := await call.read()) is not grpc.aio.EOF:
                found.append(message)
        if len(found) == most:
            call.cancel()
        else:
            self.metadata = {str(key): value for key, value in await call.trailing_metadata()}
        return found

    def _begin(self, kind: Any, name: str, data: bytes, timeout: float | None) -> Any:
        method = METHODS[name]
        path = f"/{method.containing_service.full_name}/{name}"
        send = kind(path, None, GetMessageClass(method.output_type).FromString)
        return send(data, metadata=(("authorization", f"Bearer {self.token}"),) if self.token else (), timeout=timeout)


@contextmanager
def _translated(call: Any) -> Iterator[None]:
    """Raises Failure where the call failed."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise failure_of(error) from None
    except asyncio.CancelledError:
        if not call.cancelled():
            raise
        raise Failure("CANCELLED", "", "", {}, {}, [], b"") from None


def failure_of(error: grpc.aio.AioRpcError) -> Failure:
    """The failure that a caller can branch on."""
    status = status_pb2.Status()
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            status.ParseFromString(value)
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    failed = error_details_pb2.PreconditionFailure()
    for detail in status.details:
        for message in (info, bad, failed):
            detail.Unpack(message)
    return Failure(
        error.code().name,
        error.details() or "",
        info.reason,
        dict(info.metadata),
        {v.field: v.description for v in bad.field_violations},
        [(v.type, v.subject) for v in failed.violations],
        status.SerializeToString(deterministic=True),
    )


@dataclass(slots=True)
class Server:
    """A running server and ways to call it."""

    running: Running
    channel: grpc.aio.Channel
    settings: Settings
    admin: Caller
    accounts: set[tuple[str, str]] = field(default_factory=set)  # project and id of those that were made

    async def project(self, project_id: str) -> None:
        """Creates a project."""
        await self.admin(
            "CreateProject",
            project_pb2.CreateProjectRequest(
                project_id=project_id,
                request_id=f"create-{project_id}",
                project=project_pb2.Project(project_id=project_id, display_name="", description=""),
            ),
        )

    async def account(self, project_id: str, service_account_id: str) -> str:
        """Creates a service account, unless this server was asked before; returns its id."""
        if (project_id, service_account_id) not in self.accounts:
            account = access_pb2.ServiceAccount(service_account_id=service_account_id, display_name="", description="")
            request = access_pb2.CreateServiceAccountRequest(
                project_id=project_id, request_id=f"account-{service_account_id}", service_account=account
            )
            await self.admin("CreateServiceAccount", request)
            self.accounts.add((project_id, service_account_id))
        return service_account_id

    async def caller(self, project_id: str, role: str, days: float = 1) -> Caller:
        """A caller with a new token of a role in a project; its service account has the role's name."""
        token = f"animus_{project_id}_{secrets.token_urlsafe(32)}"
        message = access_pb2.Token(
            token_digest="sha256:" + hashlib.sha256(token.encode()).hexdigest(),
            principal=await self.account(project_id, role.replace("_", "-")),
            role=access_pb2.Role.Value(f"ROLE_{role.upper()}"),
        )
        message.expire_time.FromDatetime(datetime.now(UTC).replace(microsecond=0) + timedelta(days=days))
        await self.admin(
            "CreateToken",
            access_pb2.CreateTokenRequest(project_id=project_id, request_id=secrets.token_hex(8), token=message),
        )
        return Caller(self.channel, token)

    async def published(self, project_id: str) -> None:
        """Waits until a checkpoint covers every entry that a project has now."""
        log = await self.admin("GetLog", log_pb2.GetLogRequest(project_id=project_id))
        whole = log_pb2.GetCheckpointRequest(project_id=project_id, minimum_size=log.size + log.queued)
        await self.admin("GetCheckpoint", whole)


def settings_for(database_url: str, data_dir: Path, **more: str) -> Settings:
    """Settings of a server on free ports, without gateway and drain: they take a while and have tests of their own."""
    return load_settings(
        {
            "ANIMUS_DATABASE_URL": database_url,
            "ANIMUS_DATA_DIR": str(data_dir),
            "ANIMUS_GRPC_PORT": "0",
            "ANIMUS_GATEWAY": "false",
            "ANIMUS_GATEWAY_PORT": "0",
            "ANIMUS_METRICS_PORT": "0",
            "ANIMUS_DRAIN_SECONDS": "0",
            **{f"ANIMUS_{key.upper()}": value for key, value in more.items()},
        }
    )


@pytest.fixture
async def server(database: Database, tmp_path: Path) -> AsyncIterator[Server]:
    """A server of the test's own, with an empty project `p`."""
    settings = settings_for(database.service_url, tmp_path)
    async with run_server(settings) as running, open_channel(running.grpc) as channel:
        admin = Caller(channel, (tmp_path / "admin.token").read_text().strip())
        server = Server(running, channel, settings, admin)
        await server.project("p")
        yield server


@pytest.fixture
async def superuser(database: Database) -> AsyncIterator[AsyncConnection]:
    """The database's superuser."""
    engine = create_async_engine(database.admin_url, isolation_level="AUTOCOMMIT")
    async with engine.connect() as admin:
        yield admin
    await engine.dispose()


def open_channel(address: str) -> grpc.aio.Channel:
    """A channel that takes large replies."""
    return grpc.aio.insecure_channel(address, options=[("grpc.max_receive_message_length", 64 << 20)])


async def gathered(calls: list[Any]) -> list[Any]:
    """Results of calls made at once; failures are results too."""
    return await asyncio.gather(*calls, return_exceptions=True)


Fill = Callable[[Message], Message]
