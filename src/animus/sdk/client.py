"""Channels to a server. They carry the token, keep the receipts of changes, and repeat what was not taken.

They speak TLS, but for loopback addresses where no CA file is given, and where `insecure` says that something else
protects the way.

A call that answers UNAVAILABLE or RESOURCE_EXHAUSTED is made again up to three times, in the second case after the time
that the server says: a change has its request_id, so it happens once.
"""

import asyncio
import ipaddress
import json
import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from animus.sdk.files import read_file
from animus.sdk.receipts import METADATA, ReceiptStore

ADDRESS = re.compile(r"(?P<host>\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+):(?P<port>[0-9]{1,5})")
TOKEN = re.compile(r"[!-~]+")
MAX_PEM_BYTES = 4 << 20  # a bundle of every public CA has a quarter of it

RETRIES = {
    "methodConfig": [
        {
            "name": [{}],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.1s",
                "maxBackoff": "2s",
                "backoffMultiplier": 3,
                "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"],
            },
        }
    ]
}
OPTIONS = (
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.service_config", json.dumps(RETRIES)),
    # A call whose server has vanished ends within three minutes; the server allows a ping a minute.
    ("grpc.keepalive_time_ms", 120_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.enable_http_proxy", 0),  # a proxy of the environment would see the token
)


# What gRPC says of a connection that did not come about, and what that means.
HINTS = {
    "WRONG_VERSION_NUMBER": "the server speaks plain text there and no TLS",
    "CERTIFICATE_VERIFY_FAILED": "the server's certificate has expired, or is from no CA that is trusted here: name the"
    " file of its CA",
    "Hostname Verification Check failed": "the server's certificate is for other names than this address",
    "Socket closed": "the server closed the connection at once: it speaks TLS there, and the file of its CA was not"
    " named, or it requires a client certificate",
}


class CallFailed(Exception):
    """A call that was not answered with OK; its text is one line."""

    def __init__(self, error: grpc.RpcError | grpc.aio.AioRpcError) -> None:
        details = error.details() or ""
        if details.startswith("failed to connect"):
            details = next((f"cannot connect: {hint}" for text, hint in HINTS.items() if text in details), details)
        super().__init__(" ".join(details.split()) or self.code_of(error).name)
        self.code = self.code_of(error)
        self.reason = reason_of(error)

    @staticmethod
    def code_of(error: grpc.RpcError | grpc.aio.AioRpcError) -> grpc.StatusCode:
        """The status code of an error."""
        return error.code()


def reason_of(error: Any) -> str:
    """The name of a `Reason` without its prefix; empty where the error came from elsewhere than the server."""
    try:
        status = rpc_status.from_call(error)
    except ValueError:  # the details contradict the status: then they say nothing
        return ""
    info = error_details_pb2.ErrorInfo()
    for detail in status.details if status else ():
        if detail.Unpack(info):
            return str(info.reason)
    return ""


def connect(
    address: str,
    token: str,
    receipts: ReceiptStore | None = None,
    *,
    insecure: bool = False,
    ca_file: Path | None = None,
    certificate_file: Path | None = None,
    key_file: Path | None = None,
) -> grpc.aio.Channel:
    """A channel for asyncio. Raises ValueError for what cannot be used, and Unreadable for a file that cannot be read.

    Receipts are kept where a store is given: when a call returns, its receipt is durable. The server's certificate is
    checked against the CAs of `ca_file`, or those that gRPC comes with. With a client certificate and its key the token
    may be empty; a token counts in the certificate's place. All files are PEM, and are read now.
    """
    credentials = _credentials(address, insecure, ca_file, certificate_file, key_file)
    caller = _Caller(token, receipts, token_needed=certificate_file is None)
    interceptors: Sequence[Any] = (_AioUnary(caller), _AioStream(caller))
    if credentials is None:
        return grpc.aio.insecure_channel(address, options=OPTIONS, interceptors=interceptors)
    return grpc.aio.secure_channel(address, credentials, options=OPTIONS, interceptors=interceptors)


def connect_blocking(
    address: str,
    token: str,
    receipts: ReceiptStore | None = None,
    *,
    insecure: bool = False,
    ca_file: Path | None = None,
    certificate_file: Path | None = None,
    key_file: Path | None = None,
) -> grpc.Channel:
    """As `connect`, for programs without asyncio."""
    credentials = _credentials(address, insecure, ca_file, certificate_file, key_file)
    caller = _Caller(token, receipts, token_needed=certificate_file is None)
    if credentials is None:
        channel = grpc.insecure_channel(address, options=OPTIONS)
    else:
        channel = grpc.secure_channel(address, credentials, options=OPTIONS)
    return grpc.intercept_channel(channel, _BlockingUnary(caller), _BlockingStream(caller))


def _credentials(
    address: str, insecure: bool, ca_file: Path | None, certificate_file: Path | None, key_file: Path | None
) -> grpc.ChannelCredentials | None:
    """What a channel to an address is made with; None for plain text."""
    match = ADDRESS.fullmatch(address)
    if not match or int(match["port"]) > 65_535:
        raise ValueError(f"{address!r} is no address such as 127.0.0.1:7443")
    if (certificate_file is None) != (key_file is None):
        raise ValueError("a client certificate needs its key, and a key its certificate")
    files = (ca_file, key_file, certificate_file)
    given = any(files)
    if insecure and given:
        raise ValueError("plain text was asked for this address, and files for TLS were given: leave out one of them")
    if insecure or (not given and _is_loopback(match["host"].strip("[]"))):
        return None
    return grpc.ssl_channel_credentials(*(read_file(path, MAX_PEM_BYTES) if path else None for path in files))


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _Caller:
    """Who calls, and where the receipts go."""

    def __init__(self, token: str, receipts: ReceiptStore | None, *, token_needed: bool) -> None:
        if not TOKEN.fullmatch(token) and (token or token_needed):
            raise ValueError("the token is empty, or has a character that no token has")
        self.authorization = (("authorization", f"Bearer {token}"),) if token else ()
        self.receipts = receipts

    def keep(self, method: str | bytes, request: object, metadata: Iterable[tuple[str, str | bytes]] | None) -> None:
        """Keeps the receipts of a call that has ended."""
        if self.receipts is None:
            return
        name = (method.decode() if isinstance(method, bytes) else method).removeprefix("/")
        for key, value in metadata or ():
            if key == METADATA and isinstance(value, bytes):
                self.receipts.keep(value, name, getattr(request, "request_id", ""))


@dataclass(frozen=True, slots=True)
class _Details(grpc.ClientCallDetails):
    """How a call is made."""

    method: str
    timeout: float | None
    metadata: tuple[tuple[str, str | bytes], ...] | None
    credentials: grpc.CallCredentials | None
    wait_for_ready: bool | None
    compression: grpc.Compression | None


class _Blocking:
    def __init__(self, caller: _Caller) -> None:
        self.caller = caller

    def details(self, given: grpc.ClientCallDetails) -> grpc.ClientCallDetails:
        """The same call with the token."""
        metadata = (*(given.metadata or ()), *self.caller.authorization)
        return _Details(
            given.method, given.timeout, metadata, given.credentials, given.wait_for_ready, given.compression
        )


class _BlockingUnary(_Blocking, grpc.UnaryUnaryClientInterceptor):
    def intercept_unary_unary(
        self, continuation: Callable[[grpc.ClientCallDetails, Any], Any], client_call_details: Any, request: Any
    ) -> Any:
        call = continuation(self.details(client_call_details), request)

        def keep(ended: Any) -> None:
            self.caller.keep(client_call_details.method, request, ended.trailing_metadata())

        if call.done():
            keep(call)
        else:
            call.add_done_callback(keep)
        return call


class _BlockingStream(_Blocking, grpc.UnaryStreamClientInterceptor):
    def intercept_unary_stream(
        self, continuation: Callable[[grpc.ClientCallDetails, Any], Any], client_call_details: Any, request: Any
    ) -> Any:
        return continuation(self.details(client_call_details), request)


class _Aio:
    def __init__(self, caller: _Caller) -> None:
        self.caller = caller

    def details(self, given: grpc.aio.ClientCallDetails) -> grpc.aio.ClientCallDetails:
        """The same call with the token."""
        metadata = grpc.aio.Metadata(*(given.metadata or ()), *self.caller.authorization)
        return grpc.aio.ClientCallDetails(
            given.method, given.timeout, metadata, given.credentials, given.wait_for_ready
        )


class _AioUnary(_Aio, grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(
        self,
        continuation: Callable[[grpc.aio.ClientCallDetails, Any], Awaitable[Any]],
        client_call_details: grpc.aio.ClientCallDetails,
        request: Any,
    ) -> Any:
        call = await continuation(self.details(client_call_details), request)
        if self.caller.receipts is not None:
            metadata = await call.trailing_metadata()  # waits for the end, whatever it is
            await asyncio.to_thread(self.caller.keep, client_call_details.method, request, metadata)
        return call


class _AioStream(_Aio, grpc.aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(
        self,
        continuation: Callable[[grpc.aio.ClientCallDetails, Any], Awaitable[Any]],
        client_call_details: grpc.aio.ClientCallDetails,
        request: Any,
    ) -> Any:
        return await continuation(self.details(client_call_details), request)
