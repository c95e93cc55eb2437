"""`animus tls dev`, and what commands say of a server that speaks something else than they do."""

import stat
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import grpc
import pytest
from cryptography import x509

from animus.sdk import client as sdk_client
from animus.tls import Tls, TlsFiles
from cli.conftest import Animus

FILES = {"ca.crt", "server.crt", "server.key", "client-1.crt", "client-1.key"}


@pytest.fixture
def made(animus: Animus, tmp_path: Path) -> Path:
    """A folder of certificates as the command makes them."""
    folder = tmp_path / "tls"
    done = animus("tls", "dev", "--directory", folder, "--client", "spiffe://x/y", "--host", "animus.example")
    assert (done.code, done.err) == (0, "")
    settings = dict(line.split("=") for line in done.out.splitlines() if not line.startswith("#"))
    assert settings == {
        "ANIMUS_TLS_CERTIFICATE_FILE": str(folder / "server.crt"),
        "ANIMUS_TLS_KEY_FILE": str(folder / "server.key"),
        "ANIMUS_TLS_CLIENT_CA_FILE": str(folder / "ca.crt"),
        "ANIMUS_CA_FILE": str(folder / "ca.crt"),
        "ANIMUS_CLIENT_CERTIFICATE_FILE": str(folder / "client-1.crt"),
        "ANIMUS_CLIENT_KEY_FILE": str(folder / "client-1.key"),
    }
    return folder


def test_what_it_makes_the_server_takes(made: Path) -> None:
    """Keys for their owner only, names as asked for, no key of the CA, and at most 90 days."""
    assert {path.name for path in made.iterdir()} == FILES
    for path in made.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == (0 if path.suffix == ".key" else 0o044)
    Tls(TlsFiles(made / "server.crt", made / "server.key", made / "ca.crt"))
    server, client = (x509.load_pem_x509_certificate((made / f"{n}.crt").read_bytes()) for n in ("server", "client-1"))
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost", "animus.example"]
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1"]
    names = client.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == ["spiffe://x/y"]
    assert (server.not_valid_after_utc - server.not_valid_before_utc).days == 30


def test_nothing_is_overwritten_and_nothing_half_made(made: Path, animus: Animus) -> None:
    """A file that is there, a name that is none and too many days end it before anything is written."""
    (made / "ca.crt").unlink()
    before = {path.name: path.read_bytes() for path in made.iterdir()}
    done = animus("tls", "dev", "--directory", made)
    assert (done.code, done.err.count("\n")) == (5, 1)
    assert {path.name: path.read_bytes() for path in made.iterdir()} == before
    other = made / "other"
    for words in (("--host", "a b"), ("--client", ""), ("--client", "ä@b.c"), ("--days", "91"), ("--days", "0")):
        assert animus("tls", "dev", "--directory", other, *words).code == 2
    assert not other.exists()


@pytest.fixture
def ports(made: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """Ports of a gRPC server without services: plain text, TLS, and TLS that requires a client certificate."""
    monkeypatch.setattr(sdk_client, "OPTIONS", (("grpc.use_local_subchannel_pool", 1),))  # no retries to wait for
    pair = ((made / "server.key").read_bytes(), (made / "server.crt").read_bytes())
    server = grpc.server(futures.ThreadPoolExecutor(1))
    found = {
        "plain": server.add_insecure_port("127.0.0.1:0"),
        "tls": server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair])),
        "mtls": server.add_secure_port(
            "127.0.0.1:0", grpc.ssl_server_credentials([pair], (made / "ca.crt").read_bytes(), True)
        ),
    }
    server.start()
    yield found
    server.stop(None).wait()


def test_one_line_says_what_the_server_speaks(
    made: Path, ports: dict[str, int], animus: Animus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plain text to TLS, TLS to plain text, another CA, no client certificate; and what works has no such line."""
    (made / "token").write_text("t")
    animus("tls", "dev", "--directory", made / "other")
    ca, other = {"--ca-file": made / "ca.crt"}, {"--ca-file": made / "other" / "ca.crt"}
    client = {"--client-certificate": made / "client-1.crt", "--client-key": made / "client-1.key"}
    token = ("--token-file", made / "token")
    cases = [
        ("plain", ca, token, "speaks plain text there"),
        ("tls", {}, token, "speaks TLS there"),
        ("tls", other, token, "from no CA that is trusted here"),
        ("mtls", ca, token, "requires a client certificate"),
        ("plain", {}, token, "Method not found"),
        ("tls", ca, token, "Method not found"),
        ("mtls", {**ca, **client}, (), "Method not found"),
        ("mtls", {**ca, "--client-certificate": made / "client-1.crt"}, (), "needs its key"),
        ("tls", ca, (), "no token"),
        ("tls", {"--ca-file": made / "none"}, token, "none: is missing"),
        ("tls", ca, (*token, "--insecure"), "leave out one of them"),
    ]
    for port, options, words, said in cases:
        before = [word for option in options.items() for word in option]
        address = f"127.0.0.1:{ports[port]}"
        done = animus(*before, "run", "replay", "0" * 32, "--project", "p", "--address", address, *words)
        assert said in done.err, done.err
        assert (done.code != 0, done.err.count("\n"), done.out) == (True, 1, "")
    monkeypatch.setenv("ANIMUS_CA_FILE", str(made / "ca.crt"))
    address = f"127.0.0.1:{ports['tls']}"
    done = animus("run", "replay", "0" * 32, "--project", "p", "--address", address, *token)
    assert "Method not found" in done.err
