"""The `animus-gateway` command, and the same gateway inside another process."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import ipaddress
import logging
import os
import signal
import socket
import ssl
import sys
import traceback
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
import uvicorn
from google.protobuf.descriptor import FileDescriptor
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from animus.tls import Tls, TlsFiles, TlsRefused, is_loopback
from animus_gateway.app import build_app, check_origins, logger

MIB = 1024 * 1024
MAX_HEAD_BYTES = 64 * 1024
HEAD_SECONDS = 30.0
GRACE_SECONDS = 10


class CannotListenError(Exception):
    """The address cannot be listened on; the message says why and what to do."""


def open_channel(
    target: str, max_message_bytes: int, credentials: grpc.ChannelCredentials | None = None
) -> grpc.aio.Channel:
    """A channel for a gateway to `host:port` or `unix:path`, in plain text unless it is given credentials.

    Messages may have `max_message_bytes` in either direction.
    """
    options = [
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_reconnect_backoff_ms", 2_000),  # a control plane that is back is found within seconds
        # A stream has no deadline: this ends one whose server has vanished. gRPC's servers cut off who pings more
        # than once in five minutes, unless they are set up otherwise.
        ("grpc.keepalive_time_ms", 6 * 60_000),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.enable_http_proxy", 0),  # the token goes to the target, and nowhere else
    ]
    if credentials is None:
        return grpc.aio.insecure_channel(target, options=options)
    return grpc.aio.secure_channel(target, credentials, options=options)


class _Protocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 protocol with what it lacks: bounds on a request's head, in bytes and in time to arrive, and
    the client certificate that TLS verified, as ASGI's TLS extension has it.
    """

    _client_certificate: bytes | None = None
    _head_bytes = 0
    _in_head = True
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_head()
        if connection := transport.get_extra_info("ssl_object"):
            self._client_certificate = connection.getpeercert(binary_form=True)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._in_head:
            self._head_bytes += len(data)
            if self._timer is None:
                self._expect_head()
        super().data_received(data)
        if self._in_head and self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response("The request's head is too large.")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._client_certificate:
            chain = [ssl.DER_cert_to_PEM_cert(self._client_certificate)]
            self.scope["extensions"] = {"tls": {"client_cert_chain": chain}}

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._stop_timer()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._in_head = True
        self._head_bytes = 0
        super().on_message_complete()

    def _expect_head(self) -> None:
        self._timer = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class _Server(uvicorn.Server):
    """uvicorn's server without its signal handlers: the process that it runs in has its own."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@dataclass(frozen=True, slots=True)
class Gateway:
    """A gateway that listens."""

    host: str
    port: int
    _server: uvicorn.Server
    _task: asyncio.Task[None]
    _stopping: asyncio.Event

    async def stop(self) -> None:
        """Ends streams, stops listening, lets open requests end for up to ten seconds, and cancels the rest."""
        self._stopping.set()
        self._server.should_exit = True
        await self._task


async def serve_gateway(
    channel: grpc.aio.Channel,
    host: str,
    port: int,
    *,
    max_body_bytes: int = 16 * MIB,
    timeout_seconds: float = 30.0,
    ready: Callable[[], Awaitable[bool]] | None = None,
    allowed_hosts: Collection[str] | None = None,
    allowed_origins: Collection[str] = (),
    files: Sequence[FileDescriptor] | None = None,
    tls: Tls | None = None,
) -> Gateway:
    """Serves `build_app` on the running event loop. Port 0 takes a free port; the caller closes the channel.

    With `tls` it speaks HTTPS, else HTTP.

    Without `allowed_hosts`, a gateway on a loopback address answers to loopback names only, and one on any other
    address answers to any name. Raises CannotListenError.
    """
    listener = _listen(host, port)
    stopping = asyncio.Event()
    try:
        if allowed_hosts is None and _is_loopback(listener):
            allowed_hosts = {"localhost", "127.0.0.1", "::1", host}
        app = build_app(
            channel,
            max_body_bytes=max_body_bytes,
            timeout_seconds=timeout_seconds,
            ready=ready,
            allowed_hosts=allowed_hosts,
            allowed_origins=allowed_origins,
            files=files,
            stopping=stopping,
        )
        config = uvicorn.Config(
            app,
            http=_Protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="warning",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
        config.load()
        config.ssl = tls.context() if tls else None
        server = _Server(config)
        task = asyncio.get_running_loop().create_task(server.serve(sockets=[listener]), name="animus-gateway")
    except BaseException:
        listener.close()
        raise
    return Gateway(host, listener.getsockname()[1], server, task, stopping)


def _listen(host: str, port: int) -> socket.socket:
    if not 0 <= port <= 65_535:  # getaddrinfo would take it modulo 65,536
        raise CannotListenError(f"port {port} is not from 0 to 65535")
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_NUMERICSERV
        )[0]
        listener = socket.create_server(address[:2], family=family, backlog=2048)
        # Both are taken over by each connection. asyncio does not see that this is TCP, and without the first one
        # Nagle's algorithm and delayed acknowledgements together hold every answer back for 40 ms. Without the second
        # one a stream that has nothing to send would never learn that its client's host has vanished.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        return listener
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise CannotListenError(
                f"port {port} of {host} is in use; stop what listens there, or choose another port "
                "with ANIMUS_GATEWAY_PORT (0 takes a free one)"
            ) from error
        raise CannotListenError(f"cannot listen on port {port} of {host}: {error.strerror or error}") from error


def _is_loopback(listener: socket.socket) -> bool:
    return ipaddress.ip_address(listener.getsockname()[0]).is_loopback


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="animus-gateway", description="Serves the Animus API over HTTP and JSON, in front of a gRPC server."
    )
    parser.add_argument(
        "--upstream",
        metavar="HOST:PORT",
        default=os.environ.get("ANIMUS_ADDRESS"),
        help="the gRPC server (ANIMUS_ADDRESS)",
    )
    parser.add_argument(
        "--upstream-ca-file",
        metavar="FILE",
        type=Path,
        default=os.environ.get("ANIMUS_CA_FILE") or None,
        help="CAs of the gRPC server's certificate, in PEM (ANIMUS_CA_FILE; default: those that gRPC comes with, and "
        "plain text on loopback)",
    )
    parser.add_argument(
        "--insecure-upstream",
        action="store_true",
        default=_flag("ANIMUS_INSECURE"),
        help="call the gRPC server in plain text, wherever it is (ANIMUS_INSECURE)",
    )
    parser.add_argument(
        "--certificate",
        metavar="FILE",
        type=Path,
        default=os.environ.get("ANIMUS_TLS_CERTIFICATE_FILE") or None,
        help="the gateway's own certificate, in PEM: it serves HTTPS then (ANIMUS_TLS_CERTIFICATE_FILE)",
    )
    parser.add_argument(
        "--key",
        metavar="FILE",
        type=Path,
        default=os.environ.get("ANIMUS_TLS_KEY_FILE") or None,
        help="the certificate's key, in PEM (ANIMUS_TLS_KEY_FILE)",
    )
    parser.add_argument(
        "--insecure-bind",
        action="store_true",
        default=_flag("ANIMUS_INSECURE_BIND"),
        help="listen in plain text on an address other than loopback: anyone on the way reads tokens "
        "(ANIMUS_INSECURE_BIND)",
    )
    parser.add_argument(
        "--host",
        default=os.environ.get("ANIMUS_GATEWAY_HOST", "127.0.0.1"),
        help="address to listen on (ANIMUS_GATEWAY_HOST; default 127.0.0.1)",
    )
    parser.add_argument(
        "--port",
        type=int,
        default=os.environ.get("ANIMUS_GATEWAY_PORT", "8080"),
        help="port to listen on, 0 for a free one (ANIMUS_GATEWAY_PORT; default 8080)",
    )
    parser.add_argument(
        "--allowed-host",
        metavar="NAME",
        action="append",
        default=_listed("ANIMUS_GATEWAY_ALLOWED_HOSTS"),
        help="a host name that requests may be for; may be repeated (ANIMUS_GATEWAY_ALLOWED_HOSTS, with commas; "
        "default: loopback names when listening on a loopback address, else any)",
    )
    parser.add_argument(
        "--allowed-origin",
        metavar="ORIGIN",
        action="append",
        default=_listed("ANIMUS_GATEWAY_ALLOWED_ORIGINS"),
        help="an origin whose pages may call, such as https://ui.example; may be repeated "
        "(ANIMUS_GATEWAY_ALLOWED_ORIGINS, with commas; default: none)",
    )
    parser.add_argument("--timeout-seconds", type=float, default=30.0, help="deadline of a call (default 30)")
    parser.add_argument("--max-body-bytes", type=int, default=16 * MIB, help="largest request body (default 16 MiB)")
    parser.add_argument(
        "--max-message-bytes", type=int, default=64 * MIB, help="largest gRPC message, either way (default 64 MiB)"
    )
    arguments = parser.parse_args(argv)
    if not arguments.upstream:
        parser.error("give --upstream or set ANIMUS_ADDRESS")
    if (arguments.certificate is None) != (arguments.key is None):
        parser.error("a certificate needs its key: give --certificate and --key")
    if arguments.upstream_ca_file and arguments.insecure_upstream:
        parser.error("--upstream-ca-file is for TLS, and --insecure-upstream for plain text: give one of them")
    if arguments.certificate is None and not arguments.insecure_bind and not is_loopback(arguments.host):
        parser.error(f"{arguments.host} is not loopback: give --certificate and --key, or --insecure-bind")
    try:
        check_origins(arguments.allowed_origin)
    except ValueError as error:
        parser.error(str(error))
    return arguments


def _flag(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("1", "true", "yes", "on")


def _listed(variable: str) -> list[str]:
    return [part.strip() for part in os.environ.get(variable, "").split(",") if part.strip()]


def _upstream_credentials(arguments: argparse.Namespace) -> grpc.ChannelCredentials | None:
    """What the server is called with; None for plain text. A client certificate it never has: whoever called without a
    credential of their own would be this gateway then.
    """
    if arguments.upstream_ca_file:
        return grpc.ssl_channel_credentials(arguments.upstream_ca_file.read_bytes())
    host = arguments.upstream.rpartition(":")[0].strip("[]")
    local = is_loopback(host) or arguments.upstream.startswith("unix:")
    return None if local or arguments.insecure_upstream else grpc.ssl_channel_credentials()


async def _run(arguments: argparse.Namespace, credentials: grpc.ChannelCredentials | None, tls: Tls | None) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with open_channel(arguments.upstream, arguments.max_message_bytes, credentials) as channel:
        gateway = await serve_gateway(
            channel,
            arguments.host,
            arguments.port,
            max_body_bytes=arguments.max_body_bytes,
            timeout_seconds=arguments.timeout_seconds,
            allowed_hosts=arguments.allowed_host or None,
            allowed_origins=arguments.allowed_origin,
            tls=tls,
        )
        logger.info("listening on %s port %d, calling %s", gateway.host, gateway.port, arguments.upstream)
        await stop.wait()
        logger.info("stopping")
        await gateway.stop()


class Formatter(logging.Formatter):
    """Says of an exception its type and where it came from, and not its text: that may quote what a client sent."""

    def formatException(self, ei: Any) -> str:  # noqa: N802 (the library's name)
        kind, _, trace = ei
        return "".join([*traceback.format_tb(trace), kind.__name__])


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the gateway until SIGTERM or SIGINT. Exits with 1 and one line when it cannot listen or read its files."""
    arguments = _arguments(argv)
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # it writes a line for each handshake that failed
    handler = logging.StreamHandler()
    handler.setFormatter(Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    try:
        tls = Tls(TlsFiles(arguments.certificate, arguments.key, None)) if arguments.certificate else None
        asyncio.run(_run(arguments, _upstream_credentials(arguments), tls))
    except (CannotListenError, TlsRefused, OSError) as error:
        sys.exit(f"animus-gateway: {error}")


if __name__ == "__main__":
    main()
