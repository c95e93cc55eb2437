"""What the commands that call a server or check a log have in common: settings, progress, errors and exit codes.

Exit codes: 0 done, 1 error, 2 usage, 3 not found, 4 denied, 5 conflict, 6 unavailable, 7 verification failed, a copy
that differs, or runs or environments that were not found to be alike. What was asked for goes to stdout; everything
else is lines on stderr.
"""

import errno
import secrets
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from typing import BinaryIO

    import grpc
    from google.api.httpbody_pb2 import HttpBody
    from google.protobuf.message import Message

    from animus.domain.note import Key
    from animus.domain.policy import Policy
    from animus.sdk.receipts import ReceiptStore

ERROR, USAGE, NOT_FOUND, DENIED, CONFLICT, UNAVAILABLE, FAILED = 1, 2, 3, 4, 5, 6, 7

CODES = {
    "INVALID_ARGUMENT": USAGE,
    "OUT_OF_RANGE": USAGE,
    "NOT_FOUND": NOT_FOUND,
    "UNAUTHENTICATED": DENIED,
    "PERMISSION_DENIED": DENIED,
    "ALREADY_EXISTS": CONFLICT,
    "FAILED_PRECONDITION": CONFLICT,
    "ABORTED": UNAVAILABLE,
    "DEADLINE_EXCEEDED": UNAVAILABLE,
    "RESOURCE_EXHAUSTED": UNAVAILABLE,
    "UNAVAILABLE": UNAVAILABLE,
    "DATA_LOSS": FAILED,
}
REASONS = {"SIGNATURE_INVALID": FAILED, "PROOF_INVALID": FAILED}

MAX_TOKEN_BYTES = 9 << 10  # a JWT of 8 KiB, and the end of its line

Address = Annotated[str, typer.Option(envvar="ANIMUS_ADDRESS", help="gRPC address of the server.")]
TokenFile = Annotated[Path | None, typer.Option(envvar="ANIMUS_TOKEN_FILE", help="File with the token.")]
Insecure = Annotated[
    bool, typer.Option(envvar="ANIMUS_INSECURE", help="Send the token in plain text to other than loopback.")
]
# Before the command, for all that call a server: they belong to the machine, not to what is asked for.
CaFile = Annotated[
    Path | None,
    typer.Option(
        envvar="ANIMUS_CA_FILE", help="CAs of the server's certificate (PEM). Without it, loopback is plain text."
    ),
]
ClientCertificateFile = Annotated[
    Path | None,
    typer.Option(
        "--client-certificate", envvar="ANIMUS_CLIENT_CERTIFICATE_FILE", help="Client certificate (PEM), for mTLS."
    ),
]
ClientKeyFile = Annotated[
    Path | None, typer.Option("--client-key", envvar="ANIMUS_CLIENT_KEY_FILE", help="Its key (PEM).")
]
Project = Annotated[str, typer.Option(envvar="ANIMUS_PROJECT", help="The project.")]
LogProject = Annotated[
    str, typer.Option(envvar="ANIMUS_PROJECT", help="The project; `instance` for the instance's log.")
]
RequestId = Annotated[
    str,
    typer.Option(help="Names this call: the same id is answered as before. Else one is made.", show_default=False),
]
Keys = Annotated[
    list[str] | None, typer.Option("--key", help="Trusted key of the log: a vkey, or a file of them. Repeatable.")
]
KnownHeadsFile = Annotated[
    Path | None,
    typer.Option("--known-heads", help="File of heads verified before; else the one in ~/.local/state/animus."),
]
TrustServerKey = Annotated[
    bool, typer.Option("--trust-server-key", help="Where no key is known, take the log's own word, and remember it.")
]
AcceptEpoch = Annotated[
    int, typer.Option(min=0, help="Accept that a restore cut off what was known before this epoch.", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="Write JSON.")]

DEFAULT_ADDRESS = "127.0.0.1:7443"


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Files of the machine that commands run on."""

    ca: Path | None
    client_certificate: Path | None
    client_key: Path | None


_tls: ContextVar[TlsFiles | None] = ContextVar("_tls", default=None)


def use_tls(files: TlsFiles) -> None:
    """Has the command that follows call with these."""
    _tls.set(files)


def say(text: str) -> None:
    """A line on stderr."""
    typer.echo(f"animus: {' '.join(text.split())}", err=True)


def fail(code: int, text: str) -> NoReturn:
    """Ends the command with a line on stderr."""
    say(text)
    raise typer.Exit(code)


@contextmanager
def errors() -> Iterator[None]:
    """Ends the command with one line and its exit code for what can go wrong; a defect is not among it."""
    from animus.domain.errors import DomainError
    from animus.sdk import witness
    from animus.sdk.client import CallFailed
    from animus.sdk.contradiction import Contradiction
    from animus.sdk.files import Unreadable
    from animus.sdk.trust import NoKeyError

    refusals = {
        witness.Malformed: USAGE,
        witness.UnknownLog: NOT_FOUND,
        witness.OtherSize: CONFLICT,
        witness.NotSigned: FAILED,
        witness.Inconsistent: FAILED,
    }
    try:
        yield
    except Contradiction as error:
        fail(FAILED, f"verification failed: {error}")
    except CallFailed as error:
        fail(REASONS.get(error.reason) or CODES.get(error.code.name, ERROR), str(error))
    except witness.WitnessRefusal as error:
        fail(refusals[type(error)], str(error))
    except NoKeyError as error:
        fail(USAGE, f"{error}: give --key, or --trust-server-key to take the log's own word for it")
    except DomainError as error:
        fail(USAGE, error.message)
    except Unreadable as error:
        fail(ERROR, str(error))
    except FileExistsError as error:
        fail(CONFLICT, str(error))
    except OSError as error:
        if error.errno == errno.EPIPE:  # whoever reads has enough
            raise
        fail(ERROR, f"{error.filename or ''}: {error.strerror or error}".removeprefix(": "))


def read_token(path: Path | None) -> str:
    """The token of a file."""
    from animus.sdk.files import read_file

    if path is None:
        fail(USAGE, "no token: give --token-file or ANIMUS_TOKEN_FILE, or a client certificate")
    return read_file(path, MAX_TOKEN_BYTES).decode(errors="replace").strip()


@contextmanager
def channel_to(
    address: str, token_file: Path | None, insecure: bool, receipts: "ReceiptStore | None" = None
) -> "Iterator[grpc.Channel]":
    """A channel to the server, closed at the end."""
    from animus.sdk.client import connect_blocking

    files = _tls.get() or TlsFiles(None, None, None)
    token = "" if token_file is None and files.client_certificate else read_token(token_file)
    try:
        channel = connect_blocking(
            address,
            token,
            receipts,
            insecure=insecure,
            ca_file=files.ca,
            certificate_file=files.client_certificate,
            key_file=files.client_key,
        )
    except ValueError as error:
        fail(USAGE, str(error))
    with channel:
        yield channel


def read_keys(texts: list[str] | None) -> "tuple[Key, ...]":
    """The keys of texts, each a vkey or the name of a file of them; empty lines and those with # are left out."""
    from animus.domain.errors import Invalid
    from animus.domain.note import load_key
    from animus.sdk.files import read_file
    from animus.sdk.source import MAX_VKEYS_BYTES

    keys: list[Key] = []
    for text in texts or ():
        path = Path(text)
        try:
            keys.append(load_key(text))
        except Invalid as error:
            if not path.exists():
                fail(USAGE, f"--key {text} is neither a file nor a key: {error.message}")
            lines = [line.strip() for line in read_file(path, MAX_VKEYS_BYTES).decode(errors="replace").splitlines()]
            keys += [load_key(line) for line in lines if line and not line.startswith("#")]
    return tuple(dict.fromkeys(keys))


def read_policy(path: Path | None) -> "Policy | None":
    """The policy of a file, if one is given."""
    from animus.domain.policy import MAX_POLICY_BYTES, load_policy
    from animus.sdk.files import read_file

    return load_policy(read_file(path, MAX_POLICY_BYTES)) if path else None


@contextmanager
def progress(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on stderr, if that is a terminal: call what this yields with each step's size."""
    if not sys.stderr.isatty():
        yield lambda step: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=total)
        yield lambda step: bar.advance(task, step)


@contextmanager
def transfer() -> Iterator[Callable[[int], None]]:
    """The bytes so far on stderr, if that is a terminal: call what this yields with the size of each part."""
    if not sys.stderr.isatty():
        yield lambda step: None
        return
    from rich.console import Console
    from rich.progress import DownloadColumn, Progress, SpinnerColumn, TransferSpeedColumn

    columns = (SpinnerColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda step: bar.advance(task, step)


def write_stream(parts: "Iterable[HttpBody]", output: Path | None) -> None:
    """Writes what a server streams to stdout, or to a file that is there only once it is whole. Raises CallFailed."""
    import grpc

    from animus.sdk.client import CallFailed

    def copy(file: "BinaryIO") -> None:
        try:
            for part in parts:
                file.write(part.data)
        except grpc.RpcError as error:
            raise CallFailed(error) from None

    if output is None:
        copy(sys.stdout.buffer)
        sys.stdout.buffer.flush()
        return
    half = output.with_name(f".{output.name}.half")
    try:
        with half.open("wb") as file:
            copy(file)
        half.rename(output)
    finally:
        half.unlink(missing_ok=True)


def print_json(tree: object) -> None:
    """A JSON document on stdout."""
    import orjson

    typer.echo(orjson.dumps(tree, option=orjson.OPT_INDENT_2).decode())


def every_item(method: Any, request: Any, field: str) -> Iterator[Any]:
    """Every item of a list, page by page. Raises CallFailed."""
    from animus.sdk.source import call

    while True:
        reply = call(method, request)
        yield from getattr(reply, field)
        if not reply.next_page_token:
            return
        request.page_token = reply.next_page_token


def print_message(message: "Message", json: bool, text: str) -> None:
    """A message as JSON, or a text in its place."""
    if json:
        print_json(message_tree(message))
    else:
        typer.echo(text)


def print_list(items: Iterable[Any], json: bool, heads: tuple[str, ...], row: Callable[[Any], tuple[str, ...]]) -> None:
    """Messages as JSON, or a table with a row of each."""
    if json:
        print_json([message_tree(each) for each in items])
        return
    for line in table([heads, *(row(each) for each in items)]):
        typer.echo(line)


def message_tree(message: "Message") -> dict[str, Any]:
    """The JSON of a message, fields that are empty included."""
    from google.protobuf.json_format import MessageToDict

    return MessageToDict(message, always_print_fields_with_no_presence=True)


def table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Rows as lines, with their columns aligned."""
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def new_request_id() -> str:
    """A request_id of this call alone: 128 random bits."""
    return secrets.token_hex(16)


def kept_receipts() -> "ReceiptStore":
    """Where the receipts of this user's changes are kept."""
    from animus.sdk.files import state_folder
    from animus.sdk.receipts import ReceiptStore

    return ReceiptStore(state_folder() / "receipts")


def pairs(texts: list[str] | None, separator: str, option: str, form: str) -> Iterator[tuple[str, str]]:
    """The two parts of each text. Ends the command for one without the separator."""
    for text in texts or ():
        first, found, second = text.partition(separator)
        if not found:
            fail(USAGE, f"{option} {text} is no {form}")
        yield first, second
