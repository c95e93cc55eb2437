"""`animus log`: what operators see and do of the log that a server keeps.

`show` asks a server. The others work on the server's own database and log folder, by the same ANIMUS_ settings: with
the embedded database the server is stopped first; with a database of its own, keys may be rotated while servers run
that share the folder.
"""

from collections.abc import Coroutine
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from animus.cli_client import (
    CONFLICT,
    DEFAULT_ADDRESS,
    ERROR,
    UNAVAILABLE,
    Address,
    AsJson,
    Insecure,
    LogProject,
    TokenFile,
    channel_to,
    errors,
    fail,
    message_tree,
    print_json,
)

if TYPE_CHECKING:
    from animus.config import Settings

app = typer.Typer(help="Keeps the log: epochs, keys, entries that were given up.", no_args_is_help=True)
keys = typer.Typer(help="The keys that sign the log.", no_args_is_help=True)
app.add_typer(keys, name="key")

Reason = Annotated[str, typer.Option(help="Why; it goes on the record.")]
PublicKey = Annotated[str, typer.Argument(help="Public key in base64, as `animus log key list` shows it.")]
Result = TypeVar("Result")


@app.command()
def show(
    project: LogProject,
    token_file: TokenFile = None,
    address: Address = DEFAULT_ADDRESS,
    insecure: Insecure = False,
    json: AsJson = False,
) -> None:
    """Prints a log's origin, size and keys, and what is wrong with it."""
    from animus.sdk.source import call
    from animus.v1 import log_pb2, log_pb2_grpc

    with errors(), channel_to(address, token_file, insecure) as channel:
        log = call(log_pb2_grpc.LogServiceStub(channel).GetLog, log_pb2.GetLogRequest(project_id=project))
        if json:
            print_json(message_tree(log))
            return
        typer.echo(f"{log.origin} size {log.size} published {log.published_size} queued {log.queued}")
        for key in log.keys:
            status = log_pb2.LogKeyStatus.Name(key.status).removeprefix("LOG_KEY_STATUS_").lower()
            typer.echo(f"{key.vkey} {status}{f' ({key.reason})' if key.reason else ''}")
        for problem in log.problems:
            typer.echo(f"problem: {problem}", err=True)


@app.command()
def epoch(
    reason: Reason,
    new_key: Annotated[bool, typer.Option(help="Make a new key in place of one that is lost.")] = False,
) -> None:
    """Opens a new epoch after a restore, on the record of every project: the log goes on from what is there."""
    from animus.log_operations import open_epoch

    number = run_operation(open_epoch(server_settings(), reason, new_key=new_key))
    typer.echo(f"epoch {number}")


@app.command()
def forfeit(
    project: LogProject,
    entry: Annotated[str, typer.Argument(help="Id of an entry in quarantine.")],
    reason: Reason,
) -> None:
    """Gives up an entry whose bytes were damaged before it had an index and cannot be repaired, on the record."""
    from animus.log_operations import forfeit as give_up

    run_operation(give_up(server_settings(), project, entry, reason))
    typer.echo(f"forfeited {entry}")


@keys.command("list")
def list_() -> None:
    """Prints every key that the log has had: public key, what became of it, and whether its private half is here."""
    from animus.log_operations import list_keys

    for facts, here in run_operation(list_keys(server_settings())):
        ends = ", ".join(f"{end.value.status} {end.time}: {end.value.reason}" for end in facts.ends)
        typer.echo(f"{facts.key.value.public_key} {ends or 'active'}{'' if here else ' (not in log.key)'}")


@keys.command()
def rotate() -> None:
    """Adds a new key, which signs beside the others: give log.key to the other servers, then retire the old one."""
    from animus.log_operations import rotate_key

    typer.echo(run_operation(rotate_key(server_settings())))


@keys.command()
def retire(public_key: PublicKey, reason: Reason) -> None:
    """Ends the use of a key. What it signed stays good."""
    _end(public_key, "RETIRED", reason)


@keys.command()
def revoke(public_key: PublicKey, reason: Reason) -> None:
    """Says that a key is not to be trusted: somebody else may have signed with it."""
    _end(public_key, "REVOKED", reason)


def _end(public_key: str, status: str, reason: str) -> None:
    from animus.domain.log import LogKeyStatus
    from animus.log_operations import end_key

    run_operation(end_key(server_settings(), public_key, LogKeyStatus[status], reason))
    typer.echo(f"{status.lower()} {public_key}")


def server_settings() -> "Settings":
    """The settings of the server on whose database and log an operator works."""
    from animus.config import load_settings
    from animus.telemetry import configure_logs

    try:
        settings = load_settings()
    except ValueError as error:
        fail(ERROR, str(error))
    configure_logs("warning", "text")
    return settings


def run_operation(operation: Coroutine[Any, Any, Result]) -> Result:
    """What an operation comes to, or one line and an exit code."""
    import asyncio

    from animus.domain.errors import Unavailable
    from animus.keyring import KeyringError
    from animus.log_operations import OperationRefused
    from animus.server import StartRefused
    from animus.store.embedded import EmbeddedError
    from animus.store.engine import LoginRefused
    from animus.store.guard import UnsafeDatabase
    from animus.store.migrate import MigrationRefused
    from animus.store.signer_state import SignerStateError

    with errors():
        try:
            return asyncio.run(operation)
        except OperationRefused as error:
            fail(CONFLICT, str(error))
        except Unavailable as error:
            fail(UNAVAILABLE, error.message)
        except (
            *(EmbeddedError, LoginRefused, MigrationRefused, StartRefused, UnsafeDatabase),
            *(KeyringError, SignerStateError),
        ) as error:
            fail(ERROR, str(error))
