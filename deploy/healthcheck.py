"""Exits 0 if the service in this container answers, else 1 with one line: `healthcheck.py grpc|http ADDRESS`.

`grpc` asks grpc.health.v1 for the whole server, `http` asks the gateway's /readyz; both over TLS where ANIMUS_CA_FILE
names the CAs of the certificate.
"""

import http.client
import os
import ssl
import sys
from pathlib import Path

SECONDS = 4.0
CA_FILE = os.environ.get("ANIMUS_CA_FILE", "")


def grpc_answers(address: str) -> str:
    """Asks the health service; an empty text if it is serving, else what is wrong."""
    import grpc  # only here: the HTTP check starts without it
    from grpc_health.v1 import health_pb2

    options = [("grpc.enable_http_proxy", 0)]
    if CA_FILE:
        made = grpc.secure_channel(address, grpc.ssl_channel_credentials(Path(CA_FILE).read_bytes()), options)
    else:
        made = grpc.insecure_channel(address, options)
    with made as channel:
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        try:
            status = check(health_pb2.HealthCheckRequest(), timeout=SECONDS).status
        except grpc.RpcError as error:
            return str(error.code())
    return "" if status == health_pb2.HealthCheckResponse.SERVING else f"status {status}"


def http_answers(address: str) -> str:
    """Asks the gateway; an empty text if it is ready, else what is wrong."""
    if CA_FILE:
        context = ssl.create_default_context(cafile=CA_FILE)
        connection = http.client.HTTPSConnection(address, timeout=SECONDS, context=context)
    else:
        connection = http.client.HTTPConnection(address, timeout=SECONDS)
    try:
        connection.request("GET", "/readyz")
        status = connection.getresponse().status
    except OSError as error:
        return str(error)
    finally:
        connection.close()
    return "" if status == 200 else f"status {status}"


def main(arguments: list[str]) -> str | None:
    """What is wrong, for sys.exit, or None."""
    checks = {"grpc": grpc_answers, "http": http_answers}
    if len(arguments) != 2 or arguments[0] not in checks:
        return "usage: healthcheck.py grpc|http ADDRESS"
    problem = checks[arguments[0]](arguments[1])
    return f"{arguments[1]} does not serve: {problem}" if problem else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
