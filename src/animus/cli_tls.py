"""`animus tls`: certificates for development. For others, take them from the CA that your machines trust."""

from pathlib import Path
from typing import Annotated

import typer

from animus.cli_client import CONFLICT, USAGE, errors, fail

app = typer.Typer(help="Makes certificates for development.", no_args_is_help=True)


@app.command()
def dev(
    directory: Annotated[Path, typer.Option(help="Folder to write to; made if it is missing, nothing is overwritten.")],
    host: Annotated[
        list[str] | None,
        typer.Option(help="Name or address of the server besides localhost, 127.0.0.1 and ::1. Repeatable."),
    ] = None,
    client: Annotated[
        list[str] | None,
        typer.Option(help="Makes a client certificate for this URI, mail address or DNS name. Repeatable."),
    ] = None,
    days: Annotated[int, typer.Option(min=1, max=90, help="How long they last.")] = 30,
) -> None:
    """Makes a CA, a server certificate and client certificates, and prints the settings that use them.

    The CA's key is thrown away: for more certificates, or when these have expired, run it again with another folder.
    """
    from datetime import UTC, datetime

    from animus.dev_certificates import HOSTS, Authority

    names = client or []
    authority = Authority.new(datetime.now(UTC).replace(microsecond=0), days)
    try:
        pairs = {"server": authority.server(list(dict.fromkeys([*HOSTS, *(host or [])])))}
        pairs |= {f"client-{number}": authority.client(name) for number, name in enumerate(names, 1)}
    except ValueError as error:
        fail(USAGE, str(error))
    files = {"ca.crt": (authority.pem, 0o644)}
    for name, pair in pairs.items():
        files |= {f"{name}.key": (pair.key, 0o600), f"{name}.crt": (pair.certificate, 0o644)}
    folder = directory.absolute()
    with errors():
        folder.mkdir(parents=True, exist_ok=True)
        for file in files:
            if (folder / file).exists():
                fail(CONFLICT, f"{folder / file} exists, and is not overwritten: give another folder")
        for file, (data, mode) in files.items():
            _write_new(folder / file, data, mode)
    lines = [
        "# the server",
        f"ANIMUS_TLS_CERTIFICATE_FILE={folder / 'server.crt'}",
        f"ANIMUS_TLS_KEY_FILE={folder / 'server.key'}",
        *([f"ANIMUS_TLS_CLIENT_CA_FILE={folder / 'ca.crt'}"] if names else []),
        "# clients",
        f"ANIMUS_CA_FILE={folder / 'ca.crt'}",
    ]
    for number, name in enumerate(names, 1):
        lines += [
            f"# the client {name}",
            f"ANIMUS_CLIENT_CERTIFICATE_FILE={folder / f'client-{number}.crt'}",
            f"ANIMUS_CLIENT_KEY_FILE={folder / f'client-{number}.key'}",
        ]
    typer.echo("\n".join(lines))


def _write_new(path: Path, data: bytes, mode: int) -> None:
    """Writes a file that is not there yet, readable as its mode says from its first moment on."""
    import os

    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
