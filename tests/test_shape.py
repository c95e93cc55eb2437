"""The house rules as programs. Each is a function that finds violations, and is shown a planted one."""

import ast
import dataclasses
import enum
import importlib
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from contract import ENUMS, MESSAGES, RPCS
from google.api import annotations_pb2
from google.protobuf import any_pb2, descriptor_pb2, descriptor_pool, struct_pb2, timestamp_pb2
from google.protobuf.descriptor import Descriptor, EnumDescriptor, MethodDescriptor, ServiceDescriptor

import animus.domain
from animus.domain.access import METHODS

ROOT = Path(__file__).parents[1]
Sources = dict[str, str]  # path from the root, and text


def sources(*folders: str) -> Sources:
    """Our Python files below some folders, the generated ones left out."""
    return {
        str(path.relative_to(ROOT)): path.read_text()
        for folder in folders
        for path in sorted((ROOT / folder).rglob("*.py"))
        if "src/animus/v1/" not in str(path) and "__pycache__" not in str(path)
    }


def ignored() -> set[str]:
    """The folders that are no part of the repository."""
    return {line.strip("/") for line in (ROOT / ".gitignore").read_text().split()} | {".git"}


def repository() -> Iterator[Path]:
    """Every file of the repository."""
    skip = ignored()
    folders = [ROOT]
    while folders:
        for path in sorted(folders.pop().iterdir()):
            if path.name in skip or path.name.endswith(".egg-info") or path == ROOT / "deploy" / "secrets":
                continue
            if path.is_dir():
                folders.append(path)
            else:
                yield path


# Imports follow the floors.


def imports(text: str, package: str) -> set[str]:
    """The modules that a file imports, those inside functions too, and those for types only left out."""
    found: set[str] = set()
    nodes: list[ast.AST] = [ast.parse(text)]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            nodes.extend(node.orelse)
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            found |= {f"{module}.{alias.name}" for alias in node.names}
        nodes.extend(ast.iter_child_nodes(node))
    return found


def package_of(path: str) -> str:
    """The package of a file: `animus.domain` for src/animus/domain/names.py."""
    return ".".join(Path(path.removeprefix("src/").removeprefix("gateway/")).parent.parts)


IMPURE = sorted(
    {"animus", "google", "grpc", "sqlalchemy", "asyncpg", "requests"}
    | {"asyncio", "concurrent", "multiprocessing", "signal", "subprocess", "threading"}
    | {"http", "select", "socket", "urllib"}
    | {"io", "logging", "os", "pathlib", "shutil", "sys", "tempfile"}
    | {"random", "secrets", "time", "uuid"}
)

COMMAND_MODULES = (
    "cli", "cli_access", "cli_audit", "cli_client", "cli_dataset", "cli_env", "cli_evidence", "cli_lineage", "cli_log",
    "cli_quality", "cli_run", "cli_tls", "cli_witness",
)  # fmt: skip
COMMANDS = [*(f"animus.{name}" for name in COMMAND_MODULES), "animus.sdk"]

# folder: what it may not import, and what of that it may after all
FLOORS: dict[str, tuple[list[str], list[str]]] = {
    "src/animus/domain": (IMPURE, ["animus.domain"]),
    "src/animus/codec.py": (["animus"], ["animus.domain", "animus.v1"]),
    "src/animus/signing.py": (IMPURE, ["animus.domain"]),
    "src/animus/files.py": (["animus", "animus_gateway"], []),
    "src/animus/bag.py": (["animus", "animus_gateway"], []),
    "src/animus/keyring.py": (
        ["animus", "animus_gateway", "google", "grpc", "sqlalchemy", "asyncpg"],
        ["animus.domain", "animus.files", "animus.signing"],
    ),
    "src/animus/config.py": (["animus"], ["animus.domain"]),
    "src/animus/telemetry.py": (["animus"], ["animus.domain", "animus.v1"]),
    "src/animus/store": (
        ["animus", "animus_gateway", "grpc"],
        ["animus.domain", "animus.codec", "animus.files", "animus.store"],
    ),
    "src/animus/service": (
        ["animus", "animus_gateway", "sqlalchemy", "asyncpg"],
        [
            "animus.domain",
            "animus.bag",
            "animus.codec",
            "animus.keyring",
            "animus.signing",
            "animus.store",
            "animus.service",
            "animus.telemetry",
            "animus.v1",
        ],
    ),
    "src/animus/service/jwt.py": (IMPURE, ["animus.domain"]),
    "src/animus/workers": (
        ["animus", "animus_gateway", "google", "grpc", "sqlalchemy", "asyncpg"],
        ["animus.domain", "animus.codec", "animus.keyring", "animus.store", "animus.telemetry", "animus.workers"],
    ),
    "src/animus/sdk": (
        ["animus", "animus_gateway"],
        ["animus.domain", "animus.codec", "animus.files", "animus.signing", "animus.sdk", "animus.v1"],
    ),
    "src/animus/server.py": (COMMANDS, []),
    "src/animus/log_operations.py": (COMMANDS, []),
    "src/animus/access_operations.py": (COMMANDS, []),
    "src/animus/cli.py": (["animus_gateway"], []),
    "src/animus/cli_access.py": (["animus_gateway"], []),
    "src/animus/cli_audit.py": (["animus_gateway", "animus.store", "animus.service", "animus.server"], []),
    "src/animus/cli_lineage.py": (["animus_gateway", "animus.store", "animus.service", "animus.server"], []),
    "src/animus/cli_log.py": (["animus_gateway"], []),
    "src/animus/cli_client.py": (["animus_gateway", "animus.store", "animus.service", "animus.server"], []),
    "src/animus/cli_dataset.py": (["animus_gateway", "animus.store", "animus.service", "animus.server"], []),
    "src/animus/cli_env.py": (["animus_gateway", "animus.store", "animus.service", "animus.server"], []),
    "src/animus/cli_evidence.py": (["animus_gateway", "animus.store", "animus.service", "animus.server"], []),
    "src/animus/cli_quality.py": (["animus_gateway", "animus.store", "animus.service", "animus.server"], []),
    "src/animus/cli_run.py": (["animus_gateway", "animus.store", "animus.service", "animus.server"], []),
    "src/animus/cli_tls.py": (["animus_gateway", "animus.store", "animus.service", "animus.server"], []),
    "src/animus/tls.py": (["animus", "animus_gateway"], []),
    "src/animus/cli_witness.py": (["animus_gateway", "animus.store", "animus.service", "animus.server"], []),
    "gateway": (["animus"], ["animus.tls", "animus.v1"]),
    "demo/pipeline": (["animus", "animus_gateway", "demo"], ["demo.pipeline"]),
}


def below(module: str, package: str) -> bool:
    """Whether a module is a package or inside it."""
    return module == package or module.startswith(f"{package}.")


def floor_faults(files: Sources) -> list[str]:
    """Imports that go up or sideways."""
    faults = []
    for path, text in files.items():
        for place, (forbidden, allowed) in FLOORS.items():
            if path != place and not path.startswith(f"{place}/"):
                continue
            faults += [
                f"{path} imports {module}"
                for module in sorted(imports(text, package_of(path)))
                if any(below(module, each) for each in forbidden) and not any(below(module, each) for each in allowed)
            ]
    return faults


OWN_PLACE = {"src/animus/store/migrate.py imports animus"}  # to find the revisions beside the package


def test_imports_go_down_the_floors() -> None:
    """Each part imports only what lies below it, and the domain nothing that touches the world."""
    files = sources("src", "gateway", "demo")
    assert {place for place in FLOORS if not any(path.startswith(place) for path in files)} == set()
    assert set(floor_faults(files)) - OWN_PLACE == set()


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("src/animus/domain/x.py", "import time"),
        ("src/animus/domain/x.py", "from os import path"),
        ("src/animus/domain/x.py", "from animus.store import records"),
        ("src/animus/domain/x.py", "from ..store import records"),
        ("src/animus/domain/x.py", "def f():\n    import socket"),
        ("src/animus/domain/x.py", "from animus import codec"),
        ("src/animus/store/x.py", "from animus.service.calls import Calls"),
        ("src/animus/service/x.py", "import sqlalchemy as sa"),
        ("src/animus/service/x.py", "from animus import server"),
        ("src/animus/service/x.py", "from animus.workers.leader import Leader"),
        ("src/animus/service/jwt.py", "import time"),
        ("src/animus/workers/x.py", "from animus.service.calls import Calls"),
        ("src/animus/workers/x.py", "from sqlalchemy.exc import DBAPIError"),
        ("src/animus/workers/x.py", "import grpc"),
        ("src/animus/store/x.py", "from animus.keyring import Keyring"),
        ("src/animus/keyring.py", "from animus.store.signer_state import SignerState"),
        ("src/animus/files.py", "from animus.domain import names"),
        ("src/animus/signing.py", "import secrets"),
        ("src/animus/log_operations.py", "from animus import cli"),
        ("src/animus/sdk/x.py", "from animus.store import records"),
        ("src/animus/sdk/x.py", "import animus.server"),
        ("gateway/animus_gateway/x.py", "from animus.domain import names"),
        ("demo/pipeline/x.py", "import animus.sdk"),
    ],
)
def test_an_import_upwards_is_found(path: str, text: str) -> None:
    """One planted import, absolute, relative, inside a function or of a member, is one fault."""
    assert len(floor_faults({path: text})) == 1
    assert floor_faults({path: "import re\n"}) == []


# The domain is pure.

IMPURE_CALLS = {"open", "print", "input", "exec", "eval", "now", "utcnow", "today", "urandom", "getenv"}


def impure_calls(files: Sources) -> list[str]:
    """Calls by which a function would depend on more than its arguments."""
    faults = []
    for path, text in files.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                if name in IMPURE_CALLS:
                    faults.append(f"{path}:{node.lineno} calls {name}")
            if isinstance(node, (ast.Global, ast.Nonlocal)):
                faults.append(f"{path}:{node.lineno} changes what is outside the function")
    return faults


def test_the_domain_asks_no_clock_and_opens_no_file() -> None:
    """No function of the domain, and none that judges a JWT, reads time, environment or a file, or keeps state."""
    files = {path: text for path, text in sources("src/animus").items() if "/domain/" in path or "/jwt.py" in path}
    assert "src/animus/service/jwt.py" in files
    assert impure_calls(files) == []


@pytest.mark.parametrize("text", ["datetime.now(UTC)", "open('x')", "def f():\n    global x\n    x = 1", "print(1)"])
def test_an_impure_call_is_found(text: str) -> None:
    """One planted call is one fault."""
    assert len(impure_calls({"x.py": text})) == 1


# SQL and transactions stay in the store.

SQL = re.compile(
    r"\b(INSERT\s+INTO|UPDATE\s+[a-z_.]+\s+SET|DELETE\s+FROM|TRUNCATE\s+[a-z]|SELECT\s.+\sFROM|(?<!-----)BEGIN|COMMIT|ROLLBACK"
    r"|CREATE\s+(TABLE|ROLE|DATABASE|FUNCTION)|SET\s+LOCAL|LOCK\s+TABLE)\b",
    re.DOTALL,
)
OF_TABLES = {"src/animus/sdk/profile.py", "src/animus/sdk/tables.py"}  # SQL of DuckDB, on the caller's own files
TRANSACTION_CALLS = {"begin", "begin_nested", "commit", "rollback"}


def sql_faults(files: Sources) -> list[str]:
    """Statements in text, and calls that open or end transactions. Docstrings may speak of them."""
    faults = []
    for path, text in files.items():
        tree = ast.parse(text)
        prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
                if SQL.search(node.value):
                    faults.append(f"{path}:{node.lineno} holds SQL")
            elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") in TRANSACTION_CALLS:
                faults.append(f"{path}:{node.lineno} begins or ends a transaction")
    return faults


def test_sql_and_transactions_are_in_the_store_only() -> None:
    """Outside store/ and the migrations no line holds SQL of the database, or begins or commits."""
    files = {path: text for path, text in sources("src", "gateway", "demo").items() if "/store/" not in path}
    elsewhere = {path for path in OF_TABLES if sql_faults({path: files.pop(path)})}
    assert elsewhere == OF_TABLES
    assert sql_faults(files) == []
    assert sql_faults(sources("src/animus/store")) != []


@pytest.mark.parametrize(
    "text",
    [
        "q = 'INSERT INTO animus.run VALUES (1)'",
        "q = f'DELETE FROM {table}'",
        "q = 'SELECT a\\n FROM b'",
        "q = 'UPDATE animus.run SET a = 1'",
        "connection.begin()",
        "await session.commit()",
    ],
)
def test_sql_elsewhere_is_found(text: str) -> None:
    """One planted statement or call is one fault; the same in a docstring is none."""
    assert len(sql_faults({"x.py": text})) == 1
    assert sql_faults({"x.py": '"""Says INSERT INTO a table and SELECT a FROM b."""'}) == []


# What is put into a statement's text in the store: names of tables and columns, and constants, never a caller's value.
FORMATTED = {
    "embedded.py": {"DATABASE", "OWNER", "SERVICE", "database", "nothing_more", "passwords"},  # these are made there
    "guard.py": {"name", "role", "usual"},  # the statement to run, as the refusal of the start says it
    "log.py": {"_CHECKPOINT_PARTS"},
    "records.py": {
        *("MAX_GATE_CHECKS", "Role", "_ENTRIES", "_ENTRY_FROM", "_ENTRY_VALUES", "_FROM", "_GOVERNS", "_SELECT"),
        *("_VALUES", "_VERSIONS"),
        *("backwards", "c", "column", "columns", "conditions", "head", "listed", "ordered", "table", "where"),
        *("place", "places"),  # names of bound parameters, and how many there are
    },
    "signer_state.py": {"HEADS"},
    "unit_of_work.py": {"parts", "table"},
}
WORDS_OF_SQL = re.compile(
    r"\b(INSERT|UPDATE|DELETE|SELECT|FROM|WHERE|ORDER BY|CREATE|ALTER|GRANT|REVOKE|AND|OR|WITH)\b"
)


def formatted(files: Sources) -> dict[str, set[str]]:
    """The variables that f-strings, `%`, `+` and format() put into texts that have words of SQL, by file."""
    found: dict[str, set[str]] = {}
    for path, text in files.items():
        for node in ast.walk(ast.parse(text)):
            parts: list[ast.AST] = []
            words = ""
            if isinstance(node, ast.JoinedStr):
                words = "".join(str(part.value) for part in node.values if isinstance(part, ast.Constant))
                parts = [part.value for part in node.values if isinstance(part, ast.FormattedValue)]
            elif isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Mod, ast.Add)):
                sides = [node.left, node.right]
                words = "".join(str(side.value) for side in sides if isinstance(side, ast.Constant))
                parts = [side for side in sides if not isinstance(side, (ast.Constant, ast.JoinedStr, ast.BinOp))]
            elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "format":
                words = str(getattr(node.func.value, "value", ""))  # type: ignore[attr-defined]
                parts = [*node.args, *(keyword.value for keyword in node.keywords)]
            names = {name.id for part in parts for name in ast.walk(part) if isinstance(name, ast.Name)}
            if names and WORDS_OF_SQL.search(words):
                found.setdefault(Path(path).name, set()).update(names)
    return found


def test_what_is_put_into_statements_was_reviewed() -> None:
    """Nothing but what the list names is formatted into a statement: values are bound."""
    assert formatted(sources("src/animus/store")) == FORMATTED


@pytest.mark.parametrize(
    "text",
    [
        "f'SELECT a FROM b WHERE c = {request.name}'",
        "'SELECT a FROM b WHERE c = %s' % request.name",
        "'SELECT a FROM b WHERE c = ' + request.name",
        "'SELECT a FROM b WHERE c = {}'.format(request.name)",
    ],
)
def test_a_value_in_a_statement_is_found(text: str) -> None:
    """A planted value of a request is found, however it is put in; a bound one is none."""
    assert formatted({"x.py": text}) == {"x.py": {"request"}}
    assert formatted({"x.py": "execute('SELECT a FROM b WHERE c = :name', {'name': request.name})"}) == {}


# No code of others is run, and nothing is connected to that the operator did not name.

RUNS_CODE = {"ctypes", "marshal", "multiprocessing", "pickle", "pty", "runpy", "shelve", "subprocess"}
RUNS_CODE |= {"cloudpickle", "dill", "jinja2", "joblib", "mako"}
CONNECTS = {"aiohttp", "ftplib", "http.client", "httpx", "imaplib", "opentelemetry.exporter", "poplib", "requests"}
CONNECTS |= {"smtplib", "socket", "telnetlib", "urllib.request", "urllib3", "websockets", "xmlrpc"}
FILES = {"glob", "io", "os", "pathlib", "shutil", "tarfile", "tempfile", "zipfile"}
ON_REQUEST = ("src/animus/service/", "gateway/")  # where no file is opened: a request must not say which
CALLS = {"__import__", "compile", "eval", "exec"}
METHOD_CALLS = {"execl", "execv", "execve", "execvp", "fork", "forkpty", "popen", "posix_spawn", "spawnv", "system"}
METHOD_CALLS |= {"import_module", "full_load", "full_load_all", "load", "load_all", "unsafe_load", "unsafe_load_all"}
METHOD_CALLS |= {"create_connection", "create_unix_connection", "open_connection", "open_unix_connection", "urlopen"}
METHOD_CALLS |= {"create_async_engine", "insecure_channel", "secure_channel"}
OF_MODULES = {"load": "yaml", "load_all": "yaml", "system": "os"}  # elsewhere these names mean other things
REVIEWED = {
    "src/animus/sdk/accelerators.py imports subprocess": "the user's own nvidia-smi, with fixed arguments",
    "src/animus/store/embedded.py imports subprocess": "the PostgreSQL of the package, with arguments made here",
    "src/animus/prometheus.py imports socket": "to wake the metrics' own listener when it ends",
    "src/animus/prometheus.py calls create_connection": "the same",
    "src/animus/service/issuers.py calls open_connection": "the issuers' keys, where the operator says",
    "src/animus/service/issuers.py imports pathlib": "the same, of a file",
    "src/animus/store/engine.py calls create_async_engine": "the database that the operator names",
    "src/animus/store/migrate.py calls create_async_engine": "the same, as its owner",
    "src/animus/store/owner.py calls create_async_engine": "the same",
    "src/animus/telemetry.py imports opentelemetry.exporter": "the collector that the operator names",
    "src/animus/sdk/client.py calls insecure_channel": "the server that the user names",
    "src/animus/sdk/client.py calls secure_channel": "the same",
    "gateway/animus_gateway/main.py imports os": "settings",
    "gateway/animus_gateway/main.py imports pathlib": "certificates",
    "gateway/animus_gateway/main.py imports socket": "to listen",
    "gateway/animus_gateway/main.py calls insecure_channel": "the server that the operator names",
    "gateway/animus_gateway/main.py calls secure_channel": "the same",
    "gateway/animus_gateway/routes.py calls import_module": "modules of the package animus.v1",
}


def dangers(files: Sources) -> set[str]:
    """Where code could be run that is not ours, a connection opened, or a file on a request's word."""
    found = set()
    for path, text in files.items():
        modules = imports(text, package_of(path))
        looked_for = RUNS_CODE | CONNECTS | (FILES if path.startswith(ON_REQUEST) else set())
        found |= {f"{path} imports {each}" for each in looked_for if any(below(m, each) for m in modules)}
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.Call):
                continue
            names = CALLS | METHOD_CALLS - OF_MODULES.keys() | ({"open"} if path.startswith(ON_REQUEST) else set())
            if isinstance(node.func, ast.Name) and node.func.id in names:
                found.add(f"{path} calls {node.func.id}")
            elif isinstance(node.func, ast.Attribute) and node.func.attr in METHOD_CALLS:
                of = OF_MODULES.get(node.func.attr)
                if of is None or getattr(node.func.value, "id", "") == of:
                    found.add(f"{path} calls {node.func.attr}")
    return found


def test_no_code_is_run_and_nothing_connected_to_that_was_not_reviewed() -> None:
    """Nothing evaluates, unpickles, starts a program, connects, or opens a caller's file but what the list names."""
    assert dangers(sources("src", "gateway")) == REVIEWED.keys()


@pytest.mark.parametrize(
    "text",
    [
        "open(request.uri)",
        "from pathlib import Path",
        "import tarfile",
        "eval(request.filter)",
        "exec(text)",
        "compile(text, '', 'exec')",
        "__import__(name)",
        "import pickle",
        "from marshal import loads",
        "import shelve",
        "import subprocess",
        "from jinja2 import Template",
        "def f():\n    import ctypes",
        "os.system(command)",
        "os.popen(command)",
        "os.execv(path, [])",
        "yaml.load(text)",
        "yaml.unsafe_load(text)",
        "importlib.import_module(request.name)",
        "import socket",
        "import urllib.request",
        "from http.client import HTTPSConnection",
        "import requests",
        "import httpx",
        "from opentelemetry.exporter.otlp.proto.http import x",
        "await asyncio.open_connection(host, port)",
        "grpc.aio.secure_channel(target, credentials)",
    ],
)
def test_code_that_runs_code_or_connects_is_found(text: str) -> None:
    """Each planted line is one fault; what only has such a name is none."""
    assert len(dangers({"src/animus/service/x.py": text})) == 1
    fine = "import urllib.parse\nimport re\nre.compile('a')\norjson.loads(b'1')\nprofile.load(path)\n"
    assert dangers({"src/animus/service/x.py": fine}) == set()


# Light imports.

HEAVY = ("sqlalchemy", "alembic", "asyncpg", "duckdb", "networkx", "opentelemetry", "pydantic", "starlette", "uvicorn")


def loaded_by(statement: str) -> set[str]:
    """The heavy packages that a statement loads in a new interpreter."""
    script = f"import sys\n{statement}\nprint(*[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_command_and_the_sdk_load_nothing_heavy() -> None:
    """`animus --help` and a training script start without database, graph, telemetry or web packages."""
    sdk = [f"animus.sdk.{module.name}" for module in pkgutil.iter_modules([str(ROOT / "src/animus/sdk")])]
    assert sdk
    assert loaded_by(f"import animus.cli, animus.sdk, {', '.join(sdk)}") == set()
    assert loaded_by("import animus.store.migrate") >= {"sqlalchemy", "alembic"}


# Contract.

# Requests by POST that write nothing: their bodies are too large for a path.
READS_BY_POST = {"ValidatePipelineSpec", "DryRun"}
# Changes that answer with a stream of bytes; the receipt comes at its end.
CHANGES_THAT_STREAM = {"ExportEvidence"}
# Requests of no one project.
OF_THE_INSTANCE = {"ListProjects", "WhoAmI"}


def buf_lint(folder: Path) -> "subprocess.CompletedProcess[str]":
    """buf's answer for a folder with a buf.yaml."""
    program = Path(sys.executable).with_name("buf")
    return subprocess.run([program, "lint"], cwd=folder, capture_output=True, text=True, check=False)


def test_every_element_of_the_contract_has_a_comment() -> None:
    """buf's rules hold, those on comments among them, with no rule ignored in a proto file."""
    answer = buf_lint(ROOT)
    assert (answer.stdout, answer.returncode) == ("", 0)
    assert not [path for path in (ROOT / "proto").rglob("*.proto") if "buf:lint:ignore" in path.read_text()]


@pytest.mark.parametrize("element", ["service", "rpc", "message", "string", "enum", "BARE_ENUM_ONE"])
def test_an_element_without_a_comment_is_found(element: str, tmp_path: Path) -> None:
    """buf, as configured here, misses a comment on each kind of element."""
    proto = """syntax = "proto3";
package bare.v1;
// Comment.
service BareService {
  // Comment.
  rpc GetBare(GetBareRequest) returns (Bare);
}
// Comment.
message GetBareRequest {}
// Comment.
message Bare {
  // Comment.
  string name = 1;
}
// Comment.
enum BareEnum {
  // Comment.
  BARE_ENUM_UNSPECIFIED = 0;
  // Comment.
  BARE_ENUM_ONE = 1;
}
"""
    (tmp_path / "proto/bare/v1").mkdir(parents=True)
    (tmp_path / "proto-deps").symlink_to(ROOT / "proto-deps")
    (tmp_path / "buf.yaml").write_text((ROOT / "buf.yaml").read_text())
    file = tmp_path / "proto/bare/v1/bare.proto"
    file.write_text(proto)
    assert buf_lint(tmp_path).returncode == 0
    file.write_text(re.sub(rf" *// Comment\.\n( *{element}\b)", r"\1", proto, count=1))
    assert "non-empty comment" in buf_lint(tmp_path).stdout


def http_verb(rpc: MethodDescriptor) -> str:
    """`get`, `post` and so on, or nothing where an RPC has no HTTP rule."""
    rule = rpc.GetOptions().Extensions[annotations_pb2.http]
    return rule.WhichOneof("pattern") or ""


def rpc_faults(rpcs: Iterable[MethodDescriptor]) -> list[str]:
    """RPCs without an HTTP rule, whose request lacks a field that its kind has, or that change something and stream."""
    faults = []
    for rpc in rpcs:
        verb = http_verb(rpc)
        if not rpc.client_streaming and not verb:
            faults.append(f"{rpc.full_name} has no HTTP rule")
        if rpc.server_streaming and verb not in ("", "get") and rpc.name not in CHANGES_THAT_STREAM:
            faults.append(f"{rpc.full_name} streams and is no read: a change has one reply and one receipt")
        numbers = {field.name: field.number for field in rpc.input_type.fields}
        expected = {} if rpc.name in OF_THE_INSTANCE else {"project_id": 1}
        if verb and verb != "get" and rpc.name not in READS_BY_POST:
            expected |= {"request_id": 2, "validate_only": 3}
        elif {"request_id", "validate_only"} & numbers.keys():
            faults.append(f"{rpc.full_name} is a read and takes a request_id or validate_only")
        faults += [
            f"{rpc.full_name} has not {name} = {number}"
            for name, number in expected.items()
            if numbers.get(name) != number
        ]
        taken = [field.name for field in rpc.input_type.fields if field.number <= 3 and field.name not in expected]
        faults += [f"{rpc.full_name} gives {name} one of the numbers 1 to 3" for name in taken]
    return faults


def test_every_rpc_has_an_http_rule_and_every_change_its_three_fields() -> None:
    """project_id = 1 leads every request; request_id = 2 and validate_only = 3 stand in every change and no read."""
    assert rpc_faults(RPCS) == []
    assert {rpc.name for rpc in RPCS} >= READS_BY_POST | OF_THE_INSTANCE


def planted_service(fields: dict[str, int], verb: str, *, streams: bool = False) -> ServiceDescriptor:
    """A service with one RPC whose request has these fields, and which may stream its answer."""
    file = descriptor_pb2.FileDescriptorProto(name="planted.proto", package="planted", syntax="proto3")
    file.dependency.append("google/api/annotations.proto")
    request = file.message_type.add(name="Request")
    for name, number in fields.items():
        request.field.add(name=name, number=number, type=9, label=1)
    rpc = file.service.add(name="PlantedService").method.add(
        name="ChangeIt", input_type=".planted.Request", output_type=".planted.Request", server_streaming=streams
    )
    if verb:
        setattr(rpc.options.Extensions[annotations_pb2.http], verb, "/v1/planted")
    pool = descriptor_pool.DescriptorPool()
    for each in (descriptor_pb2.DESCRIPTOR, annotations_pb2.DESCRIPTOR.dependencies[0], annotations_pb2.DESCRIPTOR):
        pool.AddSerializedFile(each.serialized_pb)
    return pool.AddSerializedFile(file.SerializeToString()).services_by_name["PlantedService"]


CHANGE = {"project_id": 1, "request_id": 2, "validate_only": 3}


@pytest.mark.parametrize(
    ("fields", "verb", "faults"),
    [
        (CHANGE, "post", 0),
        ({"project_id": 1}, "get", 0),
        (CHANGE, "", 2),  # without a rule it is no change either
        (CHANGE, "get", 3),
        ({"project_id": 1, "validate_only": 3}, "post", 1),
        ({"project_id": 1, "request_id": 2}, "delete", 1),
        ({"project_id": 1, "request_id": 4, "validate_only": 3}, "patch", 1),
        ({"request_id": 2, "validate_only": 3}, "put", 1),
        ({"project_id": 1, "name": 2}, "get", 1),
    ],
)
def test_an_rpc_without_its_fields_is_found(fields: dict[str, int], verb: str, faults: int) -> None:
    """Each planted request has the expected number of faults."""
    assert len(rpc_faults(planted_service(fields, verb).methods)) >= faults
    assert (rpc_faults(planted_service(fields, verb).methods) == []) == (faults == 0)


def test_a_stream_that_is_no_read_by_get_is_found() -> None:
    """A stream has an HTTP rule like any RPC, and it is a get."""
    silent, change = (rpc_faults(planted_service(CHANGE, verb, streams=True).methods) for verb in ("", "post"))
    assert "planted.PlantedService.ChangeIt has no HTTP rule" in silent
    assert len(change) == 1
    assert "streams and is no read" in change[0]
    assert rpc_faults(planted_service({"project_id": 1}, "get", streams=True).methods) == []
    assert {rpc.name for rpc in RPCS if rpc.server_streaming} >= {"TailAuditEntries", "ExportAuditEntries"}


def test_every_rpc_is_in_the_role_table() -> None:
    """The table of who may call what has a row for each RPC of the contract, and for none that is not served."""
    ours = {name for name in METHODS if name.startswith("animus.v1.")}
    assert ours == {f"{rpc.containing_service.full_name}/{rpc.name}" for rpc in RPCS}


# Messages and values.

# What the server adds to a value when it answers.
ADDED = {
    "DatasetVersion": {"uris"},
    "Run": {"run_spec", "state", "plan_digest", "steps", "equal_runs"},
    "AuditEntry": {"leaf_hash", "document", "index"},
    "Tile": {"hashes"},
    "ServiceAccount": {"disabled"},
    "Token": {"last_use_time", "revoked"},
    "RoleBinding": {"etag"},
}
# What a value has and its message says elsewhere.
ELSEWHERE = {
    "DatasetVerification": {"verify_time"},  # record.create_time
    "Run": {"create_time"},  # record.create_time
    "Tile": {"level", "index", "width"},  # the request
}
# Values that never travel as a message of their own, and why.
VALUES_ONLY = {
    "And": "a part of a filter's text",
    "Attempt": "StepAttempt is derived from it",
    "AttemptSummary": "a part of a bundle's summary; StepAttempt says it",
    "BreakGlass": "what the database's owner did, beside the contract",
    "Bundle": "the request for an EntryBundle says it",
    "Checkpoint": "the text of a signed note",
    "CheckpointRequest": "what a witness is asked, as a text",
    "ComparedRun": "what is compared of a run",
    "CompactRange": "all that a tree needs to grow",
    "DatasetVersionUris": "DatasetVersion.uris says it",
    "EnvironmentDifference": "what a client finds between two locks",
    "FileDifference": "what a client finds of a copy",
    "FileManifest": "the files of a DatasetVersion, hashed by themselves",
    "FilterField": "a row of the table of fields in docs/lists.md",
    "FullTile": "a Tile, and what the level above makes of it",
    "GateFacts": "what gates and their verdicts are when a run is asked for",
    "Group": "a line of a policy's text",
    "Key": "text of its own: a verifier key",
    "Logged": "an entry that was committed, on the way to its receipt",
    "Not": "a part of a filter's text",
    "Note": "text of its own: a signed note",
    "Or": "a part of a filter's text",
    "OutputSummary": "a part of a bundle's summary; Artifact says it",
    "Policy": "a text that the user keeps",
    "PolicyLog": "a line of a policy's text",
    "Precondition": "a violation in the details of an error",
    "ProfileFacts": "a QualityProfile by its keys",
    "Principal": "who calls; WhoAmI says it in its response",
    "Rate": "a setting of the server",
    "Receipt": "the text of a signed note",
    "Refusal": "an ItemResult or an error says it",
    "Rule": "a row of the table of who may call what",
    "RunEvent": "what the server appends to a run",
    "RunEvidence": "records of a run, on the way into a bundle",
    "RunSummary": "a file of a bundle; Run says it",
    "Sealed": "a value beside its own bytes, on the way into the store",
    "ServiceAccountEnd": "ServiceAccount.disabled says it",
    "Signature": "a line of a signed note",
    "StepSummary": "a part of a bundle's summary; StepStatus says it",
    "Subgraph": "a part of a graph, on the way into a document",
    "Term": "a part of a filter's text",
    "TlogProof": "a text, a part of InclusionProof",
    "Violation": "FieldViolation, and the details of an error",
    "Witness": "a line of a policy's text",
}
# Messages that are no value, and why.
MESSAGES_ONLY = {
    "Record": "what the server knows of a stored value",
    "ProjectRoles": "a project's grants of a Principal",
    "FieldViolation": "Violation",
    "StepStatus": "derived, and part of Run",
    "StepAttempt": "Attempt",
    "ItemResult": "the answer for one item of a batch",
    "ArtifactReport": "Artifact without what the request says once",
    "MetricReport": "Metric without what the request says once",
    "DryRunReport": "a composition of values",
    "Lineage": "a composition of values",
    "Impact": "a composition of values",
    "LineageNode": "a name and its depth in one answer",
    "LineageJoin": "two names of one content, which no one writes down",
    "LineageCount": "a number of an answer",
    "Log": "a composition: how far a log has come, its keys and epochs",
    "LogKeyState": "LogKey and LogKeyEnd, with what a C2SP client calls the key",
    "LogCheckpoint": "Checkpoint beside its signed note",
    "InclusionProof": "TlogProof in parts",
    "ConsistencyProof": "hashes, as merkle proves them",
    "EntryBundle": "Bundle, as the bytes that C2SP says",
}


def domain_modules() -> list[ModuleType]:
    """Every module of the domain."""
    names = [module.name for module in pkgutil.iter_modules(animus.domain.__path__)]
    return [importlib.import_module(f"animus.domain.{name}") for name in names]


def classes(modules: Iterable[ModuleType]) -> list[type]:
    """The classes that these modules define."""
    return [
        value
        for module in modules
        for value in vars(module).values()
        if isinstance(value, type) and value.__module__ == module.__name__
    ]


CLASSES = classes(domain_modules())
VALUES = {each.__name__: each for each in CLASSES if dataclasses.is_dataclass(each)}


def field_faults(name: str, value: type, message: Descriptor) -> list[str]:
    """Where a value and its message have other fields."""
    ours = {field.name for field in dataclasses.fields(value)} - ELSEWHERE.get(name, set())
    theirs = set(message.fields_by_name) - ADDED.get(name, set()) - {"record"}
    return [f"{name}.{field} is only in {'the value' if field in ours else 'the message'}" for field in ours ^ theirs]


def test_message_and_value_have_the_same_fields() -> None:
    """Each value has a message of its name with its fields, or a reason; and each message a value, or a reason."""
    bodies = {name for name in MESSAGES if not name.endswith(("Request", "Response"))}
    assert VALUES.keys() - MESSAGES.keys() == VALUES_ONLY.keys()
    assert bodies - VALUES.keys() == MESSAGES_ONLY.keys()
    common = sorted(VALUES.keys() & MESSAGES.keys())
    assert [fault for name in common for fault in field_faults(name, VALUES[name], MESSAGES[name])] == []


def test_a_field_in_one_of_the_two_shapes_is_found() -> None:
    """A value with a field more, and one with a field less, are faults."""
    label = MESSAGES["Label"]
    more = dataclasses.make_dataclass("Label", [("key", str), ("value", str), ("colour", str)])
    less = dataclasses.make_dataclass("Label", [("key", str)])
    assert field_faults("Label", more, label) == ["Label.colour is only in the value"]
    assert field_faults("Label", less, label) == ["Label.value is only in the message"]


# Enums of the domain that are a part of another one of the contract.
PART_OF = {"RetryKind": "ErrorKind"}
ENUMS_ONLY = {
    "DifferenceKind",  # of what a client finds of a copy
    "RunEventType",  # of what the server appends to a run
    "Scope",  # of a row of the table of who may call what
}


def enum_faults(kind: type[enum.Enum], contract: EnumDescriptor, *, whole: bool) -> list[str]:
    """Where an enum of the domain and one of the contract have other members; NONE stands for UNSPECIFIED."""
    prefix = contract.values_by_number[0].name.removesuffix("UNSPECIFIED")
    theirs = {value.name.removeprefix(prefix) for value in contract.values} - {"UNSPECIFIED"}
    ours = {member.name for member in kind} - {"NONE"}
    return sorted(ours ^ theirs if whole else ours - theirs)


def test_enums_of_contract_and_domain_have_the_same_members() -> None:
    """Each enum of the domain has its namesake in the contract with the same members."""
    kinds = {each.__name__: each for each in CLASSES if issubclass(each, enum.Enum)}
    assert {name for name in kinds if PART_OF.get(name, name) not in ENUMS} == ENUMS_ONLY
    for name in kinds.keys() - ENUMS_ONLY:
        assert enum_faults(kinds[name], ENUMS[PART_OF.get(name, name)], whole=name not in PART_OF) == [], name
    planted = enum.StrEnum("planted", ["NONE", "USER", "OTHER"])
    assert enum_faults(planted, ENUMS["ErrorKind"], whole=True) == ["OTHER", "SYSTEM"]


def value_faults(values: Iterable[type]) -> list[str]:
    """Values that can change, or that fill in what nobody said."""
    faults = []
    for value in values:
        parameters = value.__dataclass_params__  # type: ignore[attr-defined]
        if not parameters.frozen or "__slots__" not in vars(value):
            faults.append(f"{value.__name__} is not frozen and slotted")
        faults += [
            f"{value.__name__}.{field.name} has a default"
            for field in dataclasses.fields(value)
            if field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        ]
    return faults


def test_values_are_frozen_and_without_defaults() -> None:
    """A value cannot change, and says everything."""
    assert value_faults(VALUES.values()) == []
    loose = dataclasses.make_dataclass("Loose", [("a", int)])
    filled = dataclasses.make_dataclass("Filled", [("a", int, 1), ("b", list, dataclasses.field(default_factory=list))])
    assert value_faults([loose]) == ["Loose is not frozen and slotted"]
    assert [fault.split()[0] for fault in value_faults([filled])] == ["Filled", "Filled.a", "Filled.b"]


# What is hashed.


def hashed() -> dict[str, Descriptor]:
    """The messages of documents, and all inside them."""
    found: dict[str, Descriptor] = {}
    waiting = [MESSAGES[name] for name, value in VALUES.items() if hasattr(value, "SCHEMA") and name in MESSAGES]
    waiting += [MESSAGES["RunSpec"], MESSAGES["PipelineSpec"], MESSAGES["ExecutionPlan"]]
    while waiting:
        message = waiting.pop()
        if message.name in found or message.name == "Record":
            continue
        found[message.name] = message
        waiting += [
            field.message_type
            for field in message.fields
            if field.message_type and field.name not in ADDED.get(message.name, set())
        ]
    found.pop("Timestamp", None)
    return found


def hashed_faults(name: str, message: descriptor_pb2.DescriptorProto) -> list[str]:
    """Fields by which two equal messages could have other bytes, or one hide what it does not say."""
    faults = []
    synthetic = {field.oneof_index for field in message.field if field.proto3_optional}
    for field in message.field:
        if field.name in {"record"} | ADDED.get(name, set()):
            continue
        if field.type in (field.TYPE_DOUBLE, field.TYPE_FLOAT):
            faults.append(f"{name}.{field.name} is a float")
        elif field.type == field.TYPE_BYTES:
            faults.append(f"{name}.{field.name} is bytes")
        elif field.type_name.startswith(".google.") and field.type_name != ".google.protobuf.Timestamp":
            faults.append(f"{name}.{field.name} is {field.type_name}")
        elif field.HasField("oneof_index") and field.oneof_index not in synthetic:
            faults.append(f"{name}.{field.name} is in a oneof")
        elif field.label != field.LABEL_REPEATED and not field.type_name and not field.proto3_optional:
            faults.append(f"{name}.{field.name} cannot say that it is absent")
    faults += [f"{name}.{nested.name} is a map" for nested in message.nested_type if nested.options.map_entry]
    return faults


def as_proto(message: Descriptor) -> descriptor_pb2.DescriptorProto:
    """A message's description as a message."""
    proto = descriptor_pb2.DescriptorProto()
    message.CopyToProto(proto)
    return proto


# Output only: the server fills them in from values, and no digest is computed of the message.
REPLIES = {"Run", "AdmissionDecision", "AdmissionCheck", "AdmissionGateCheck", "AdmissionRefusal"}
REPLIES |= {"DatasetVerification", "RunComparison", "StepComparison", "OutputComparison", "Difference"}
REPLIES |= {"ExternalEvent", "ExternalDataset"}


def test_hashed_messages_have_one_spelling() -> None:
    """No map, float, Struct, Any, oneof or bytes in a document's message, and each field can be absent."""
    messages = {name: message for name, message in hashed().items() if name not in REPLIES}
    assert messages.keys() >= {"RunSpec", "PipelineSpec", "ExecutionPlan", "DatasetVersion", "EnvironmentLock", "File"}
    assert [fault for name, message in messages.items() for fault in hashed_faults(name, as_proto(message))] == []


def test_a_message_with_several_spellings_is_found() -> None:
    """Each kind of field that is not hashed is a fault, by the names that the checks above use."""
    any_name, struct_name = any_pb2.Any.DESCRIPTOR.full_name, struct_pb2.Struct.DESCRIPTOR.full_name
    message = descriptor_pb2.DescriptorProto(name="Planted")
    message.field.add(name="a", number=1, type=1, label=1, proto3_optional=True, oneof_index=0)
    message.field.add(name="b", number=2, type=2, label=3)
    message.field.add(name="c", number=3, type=11, label=1, type_name=f".{any_name}")
    message.field.add(name="d", number=4, type=11, label=3, type_name=f".{struct_name}")
    message.field.add(name="e", number=5, type=9, label=1, oneof_index=1)
    message.field.add(name="f", number=6, type=12, label=1)
    message.field.add(name="g", number=7, type=9, label=1)
    message.nested_type.add(name="HEntry").options.map_entry = True
    fine = descriptor_pb2.DescriptorProto(name="Fine")
    fine.field.add(name="a", number=1, type=9, label=1, proto3_optional=True, oneof_index=0)
    fine.field.add(name="b", number=2, type=9, label=3)
    time_name = timestamp_pb2.Timestamp.DESCRIPTOR.full_name
    fine.field.add(name="c", number=3, type=11, label=1, type_name=f".{time_name}")
    assert [fault.split()[0][-1] for fault in hashed_faults("Planted", message)] == [*"abcdefg", "y"]
    assert hashed_faults("Fine", fine) == []


# Reasons.


def test_every_reason_of_the_contract_is_one_that_some_line_gives() -> None:
    """errors.proto names the reasons that callers meet, and no others."""
    program = "\n".join(sources("src", "gateway").values())
    reasons = {value.name.removeprefix("REASON_") for value in ENUMS["Reason"].values} - {"UNSPECIFIED"}
    assert {reason for reason in reasons if f'"{reason}"' not in program} == set()


def unknown_reasons(files: Sources) -> set[str]:
    """Reasons that domain errors are raised with and that the contract lacks."""
    reasons = {value.name.removeprefix("REASON_") for value in ENUMS["Reason"].values}
    kinds = {"NotFound", "Conflict", "Refused", "Denied", "Unavailable", "Refusal"}
    found = set()
    for text in files.values():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in kinds and node.args:
                first = node.args[0]
                if isinstance(first, ast.Constant) and isinstance(first.value, str):
                    found.add(first.value)
    return found - reasons


def test_every_reason_given_is_in_the_contract() -> None:
    """No error is raised with a reason that a client cannot look up."""
    assert unknown_reasons(sources("src")) == set()
    assert unknown_reasons({"x.py": "raise Conflict('TOO_BAD', 'text')"}) == {"TOO_BAD"}


# Texts.

# Which registry packages and images come from is the machine's own setting.
REGISTRY = re.compile(r"--(?:extra-)?index-url|--registry\b|\bFROM\s+[\w-]+\.[\w.-]+/")
MACHINE = re.compile(r"(?<![\w.~}>/-])/(?:work|root|home/[a-z]|Users/[A-Za-z]|tmp/[a-zA-Z])(?![\w]*\()[/\w]*")
UNFINISHED = re.compile(r"\b(TODO|FIXME|XXX|NotImplementedError)\b")


def text_faults(name: str, text: str) -> list[str]:
    """Names of registries, paths of one machine, and marks of unfinished work."""
    faults = [f"{name} chooses a registry: {found[0]}" for found in REGISTRY.finditer(text)]
    faults += [f"{name} has the path {found[0]}" for found in MACHINE.finditer(text)]
    return faults + [f"{name} is unfinished: {found[0]}" for found in UNFINISHED.finditer(text)]


def texts() -> Iterator[tuple[str, str]]:
    """Each text file of ours, with its name."""
    for path in repository():
        name = str(path.relative_to(ROOT))
        foreign = name.startswith(("tests/vectors/", "proto-deps/", "src/animus/v1/")) and path.name != "README.md"
        planted = path == Path(__file__)  # it holds what it looks for
        if foreign or planted or path.suffix in (".lock", ".binpb", ".txt", ".gz", ".zip") or path.name == "LICENSE":
            continue
        yield name, path.read_bytes().decode()


def test_no_file_names_a_registry_or_a_path_of_one_machine() -> None:
    """What is committed works anywhere, and is finished."""
    assert [fault for name, text in texts() for fault in text_faults(name, text)] == []


@pytest.mark.parametrize(
    "planted",
    [
        "FROM images.example/library/python",
        "--index-url https://packages.example/simple",
        "cd /work/checkout",
        "see '/root/.cache'",
        "open('/tmp/x')",
        "/home/me/animus",
        "# TODO: later",
        "raise NotImplementedError",
    ],
)
def test_a_machine_or_a_registry_in_a_text_is_found(planted: str) -> None:
    """One planted mention is one fault; the containers' own folders are none."""
    assert len(text_faults("x", planted)) == 1
    assert text_faults("x", "/tmp:size=64m /var/lib/animus https://example.org/root/x a/tmp/b") == []


LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)#\s]+)(?:#[^)]*)?\)")


def broken_links(path: Path, text: str) -> list[str]:
    """Relative links to what is not there."""
    # Code holds no link; a link's text may be code.
    prose = re.sub(r"```.*?```|`[^`\n]*`(?!\])", "", text, flags=re.DOTALL)
    targets = [target for target in LINK.findall(prose) if not re.match(r"[a-z]+:", target)]
    return [f"{path.name} links to {target}" for target in targets if not (path.parent / target).exists()]


def test_links_between_documents_lead_somewhere() -> None:
    """Each relative link in a Markdown file names a file of the repository."""
    documents = [path for path in repository() if path.suffix == ".md"]
    assert [fault for path in documents for fault in broken_links(path, path.read_text())] == []
    assert broken_links(ROOT / "x.md", "[a](README.md) [b](none.md#c) [d](https://example.org)") == [
        "x.md links to none.md"
    ]


def unlisted(index: str, names: Iterable[str]) -> set[str]:
    """Files that an index has no link to."""
    return set(names) - set(LINK.findall(index))


def test_the_indexes_are_complete() -> None:
    """docs/index.md leads to every document, and docs/adr/README.md to every decision, in order."""
    documents = [path.name for path in (ROOT / "docs").glob("*.md") if path.name != "index.md"]
    assert unlisted((ROOT / "docs/index.md").read_text(), documents) == set()
    index = (ROOT / "docs/adr/README.md").read_text()
    decisions = sorted(p.name for p in (ROOT / "docs/adr").glob("*.md") if p.name not in ("README.md", "template.md"))
    assert decisions
    assert unlisted(index, decisions) == set()
    assert [int(name[:4]) for name in decisions] == list(range(1, len(decisions) + 1))
    assert [link for link in LINK.findall(index) if link in decisions] == decisions
    assert unlisted("[a](a.md)", ["a.md", "b.md"]) == {"b.md"}


SECTIONS = ["Context", "Options", "Decision", "Consequences", "What would change it"]


def missing_sections(decision: str) -> list[str]:
    """The sections of the template that a decision lacks."""
    return [section for section in SECTIONS if f"\n## {section}\n" not in decision]


def test_every_decision_has_the_sections_of_the_template() -> None:
    """Context, options, decision, consequences, and what would change it."""
    for path in (ROOT / "docs/adr").glob("*.md"):
        if path.name != "README.md":
            assert missing_sections(path.read_text()) == [], path.name
    assert missing_sections("# A\n\n## Context\n\n## Decision\n") == ["Options", "Consequences", "What would change it"]


# Tests.


def is_test(node: ast.AST) -> bool:
    """Whether a node is a test function."""
    return isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name.startswith("test_")


def test_faults(files: Sources) -> list[str]:
    """Tests that do not say what they show, that sleep, are skipped, or stand on a mock."""
    faults = []
    for path, text in files.items():
        tree = ast.parse(text)
        for node in ast.walk(tree):
            if is_test(node):
                stated = ast.get_docstring(node)  # type: ignore[arg-type]
                if not stated or not stated.splitlines()[0].endswith("."):
                    faults.append(f"{path}:{node.lineno} has no sentence that says what it shows")  # type: ignore[attr-defined]
            elif isinstance(node, ast.Attribute) and (
                (node.attr == "sleep" and getattr(node.value, "id", "") == "time")
                or (node.attr in ("skip", "skipif", "xfail", "importorskip"))
            ):
                faults.append(f"{path}:{node.lineno} uses {node.attr}")
        faults += [f"{path} mocks" for module in imports(text, "tests") if "mock" in module]
    return faults


test_faults.__test__ = False  # type: ignore[attr-defined]  # a checker, not a test


def test_tests_say_what_they_show_and_take_no_short_cut() -> None:
    """Each test has a sentence; none sleeps, is skipped or mocks."""
    assert test_faults(sources("tests")) == []


@pytest.mark.parametrize(
    "text",
    [
        "def test_a(): pass",
        "async def test_a():\n    '''no sentence'''",
        "import time\ntime.sleep(1)",
        "pytest.mark.skip",
        "from unittest import mock",
    ],
)
def test_a_test_with_a_short_cut_is_found(text: str) -> None:
    """One planted short cut is one fault."""
    assert len(test_faults({"tests/x.py": text})) == 1


VERIFIER = "src/animus_verify.py"  # whose length has a limit


def undocumented(files: Sources) -> list[str]:
    """Public modules, classes and functions without a docstring; a method may have it in its contract or base."""
    faults = []
    for path, text in files.items():
        tree = ast.parse(text)
        if not ast.get_docstring(tree):
            faults.append(path)
        for node in tree.body:
            public = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and node.name[0] != "_"
            if path == VERIFIER and (node.end_lineno or 0) <= node.lineno + 2:  # says all of it itself
                continue
            if public and not ast.get_docstring(node):  # type: ignore[arg-type]
                faults.append(f"{path}: {node.name}")  # type: ignore[attr-defined]
    return faults


def test_public_things_say_what_they_promise() -> None:
    """Each public module, class and function of the program has a docstring."""
    assert undocumented(sources("src", "gateway", "demo", "migrations", "benchmarks", "faults", "supply")) == []
    assert undocumented({"x.py": "def f(): pass\nclass _C: pass"}) == ["x.py", "x.py: f"]
