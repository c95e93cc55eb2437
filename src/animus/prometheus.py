"""Metrics for Prometheus over HTTP, from a thread of their own: they are there while the event loop is busy."""

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app

CLIENT_SECONDS = 10.0


def serve_metrics(
    host: str, port: int, registry: CollectorRegistry, context: ssl.SSLContext | None
) -> tuple[int, Callable[[], None]]:
    """Serves a registry, over TLS where a context is given; returns the port and what stops it. Raises OSError."""

    class Server(ThreadingMixIn, WSGIServer):
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        daemon_threads = True

        def get_request(self) -> tuple[socket.socket, Any]:
            connection, address = super().get_request()
            if context is not None:  # the handshake comes with the first byte read, in the connection's own thread
                connection = context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
            return connection, address

        def handle_error(self, request: Any, client_address: Any) -> None:
            """Says nothing of a client that went, or that spoke no TLS."""

    server = make_server(host, port, make_wsgi_app(registry), Server, _Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()

    def stop() -> None:
        ending = threading.Thread(target=server.shutdown)
        ending.start()
        while ending.is_alive():  # the library's loop looks up twice a second, or when someone knocks
            with contextlib.suppress(OSError):
                socket.create_connection((host, server.server_port), timeout=1).close()
            ending.join(0.01)
        server.server_close()
        thread.join()

    return server.server_port, stop


class _Handler(WSGIRequestHandler):
    timeout = CLIENT_SECONDS

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 (the library's name)
        """Says nothing."""
