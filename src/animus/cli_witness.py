"""`animus witness`: a witness whose messages go by file, so that it can be kept on a machine without network.

`request` and `import` are for whoever reaches the server; the others are for whoever has the witness's folder.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from animus.cli_client import (
    CONFLICT,
    DEFAULT_ADDRESS,
    NOT_FOUND,
    USAGE,
    Address,
    Insecure,
    LogProject,
    TokenFile,
    channel_to,
    errors,
    fail,
    kept_receipts,
)

if TYPE_CHECKING:
    import grpc

app = typer.Typer(help="Cosigns checkpoints on a machine of its own.", no_args_is_help=True)

Folder = Annotated[Path, typer.Option("--dir", help="Folder of the witness.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="File to write.")]


@app.command()
def init(
    name: Annotated[str, typer.Option(help="Name of its key, a URL without schema, such as witness.example/w1.")],
    directory: Folder,
) -> None:
    """Makes a witness: a private key, and a state that knows no log yet. Prints its public key."""
    from animus.domain.note import dump_key
    from animus.sdk.witness import Witness

    with errors():
        typer.echo(dump_key(Witness.create(directory, name).key))


@app.command()
def trust(directory: Folder, vkey: Annotated[str, typer.Argument(help="Key of the log, under its origin.")]) -> None:
    """Watches a log from now on, or takes another key of it."""
    from animus.domain.note import load_key
    from animus.sdk.witness import Witness

    with errors():
        log = Witness(directory).trust(load_key(vkey))
        typer.echo(f"{log.origin} size {log.size} keys {len(log.keys)}")


@app.command()
def show(directory: Folder) -> None:
    """Prints the witness's public key, and the newest head that it has cosigned of each log."""
    from animus.domain.note import dump_key
    from animus.sdk.witness import Witness

    with errors():
        witness = Witness(directory)
        typer.echo(dump_key(witness.key))
        for log in witness.logs():
            typer.echo(f"{log.origin} size {log.size} root {log.root_hash.hex()}")


@app.command()
def request(
    output: Output,
    log: Annotated[
        Path | None, typer.Argument(help="An exported log; without one, the server is asked.", metavar="[DIR]")
    ] = None,
    project: LogProject = "",
    address: Address = DEFAULT_ADDRESS,
    token_file: TokenFile = None,
    insecure: Insecure = False,
    old: Annotated[int, typer.Option(min=0, help="Size of the newest head that the witness has cosigned.")] = 0,
) -> None:
    """Writes a request to cosign the newest checkpoint (the body of C2SP tlog-witness add-checkpoint)."""
    from contextlib import ExitStack

    from animus.domain.checkpoint import CheckpointRequest, dump_request
    from animus.sdk.files import replace_file
    from animus.sdk.proofs import consistency
    from animus.sdk.source import Directory, Server, Source

    with errors(), ExitStack() as stack:
        source: Source
        if log is not None:
            source = Directory(log)
        elif project:
            source = Server(stack.enter_context(channel_to(address, token_file, insecure)), project)
        else:
            fail(USAGE, "give --project, ANIMUS_PROJECT, or the folder of an exported log")
        head = source.newest()
        if old > head.checkpoint.size:
            fail(CONFLICT, f"the witness has cosigned size {old}, and the log has {head.checkpoint.size} leaves")
        proof = consistency(source, head, old)
        replace_file(output, dump_request(CheckpointRequest(old, proof, head.note)))
        typer.echo(f"{head.checkpoint.origin} from size {old} to size {head.checkpoint.size}")


@app.command()
def cosign(
    directory: Folder, request: Annotated[Path, typer.Argument(help="File of a request.")], output: Output
) -> None:
    """Cosigns the checkpoint of a request, if it goes on from all that this witness has cosigned before.

    The new head is in the witness's state before the cosignature leaves.
    """
    import time

    from animus.sdk.files import read_file, replace_file
    from animus.sdk.witness import MAX_REQUEST_BYTES, Witness

    with errors():
        witness = Witness(directory)
        checkpoint, note = witness.cosign(read_file(request, MAX_REQUEST_BYTES), lambda: int(time.time()))
        replace_file(output, note)
        typer.echo(f"cosigned {checkpoint.origin} size {checkpoint.size} as {witness.key.name}")


@app.command("import")
def import_(
    cosigned: Annotated[Path, typer.Argument(help="What `cosign` wrote.")],
    address: Address = DEFAULT_ADDRESS,
    token_file: TokenFile = None,
    insecure: Insecure = False,
) -> None:
    """Gives a cosignature to the server, which shows it from then on. Repeated, it changes nothing."""
    import hashlib

    from animus.domain.note import MAX_NOTE_BYTES, dump_signature_lines, load_note
    from animus.sdk.files import read_file
    from animus.sdk.source import Server, call, load_head
    from animus.v1 import log_pb2

    with errors():
        data = read_file(cosigned, MAX_NOTE_BYTES)
        lines = dump_signature_lines(load_note(data).signatures)
        checkpoint = load_head(str(cosigned), data).checkpoint
        receipts = kept_receipts()
        with channel_to(address, token_file, insecure, receipts) as channel:
            project_id = _log_of(channel, checkpoint.origin)
            if project_id is None:
                fail(NOT_FOUND, f"the server has no log {checkpoint.origin}, or is in another epoch of it")
            message = log_pb2.AddCosignaturesRequest(
                project_id=project_id,
                request_id=hashlib.sha256(data).hexdigest(),
                size=checkpoint.size,
                cosignatures=lines,
            )
            call(Server(channel, project_id).stub.AddCosignatures, message)
        typer.echo(f"added to {checkpoint.origin} size {checkpoint.size}")


def _log_of(channel: "grpc.Channel", origin: str) -> str | None:
    """The project whose log has this origin; None if the server has no such log."""
    from animus.domain.names import INSTANCE_LOG
    from animus.sdk.client import CallFailed
    from animus.sdk.source import Server, project_of

    for name in (project_of(origin), INSTANCE_LOG):
        try:
            if Server(channel, name).log().origin == origin:
                return name
        except CallFailed as failed:
            if failed.code.name not in ("NOT_FOUND", "INVALID_ARGUMENT"):
                raise
    return None
