"""The `animus` command. What a subcommand needs is imported when it runs, so that the others start fast."""

import os
import sys
from importlib.metadata import version as distribution_version
from typing import TYPE_CHECKING, NoReturn

import typer

from animus import (
    cli_access,
    cli_audit,
    cli_dataset,
    cli_env,
    cli_evidence,
    cli_lineage,
    cli_log,
    cli_quality,
    cli_run,
    cli_tls,
    cli_witness,
)
from animus.cli_client import CaFile, ClientCertificateFile, ClientKeyFile, TlsFiles, use_tls

if TYPE_CHECKING:
    from animus.config import Settings

app = typer.Typer(
    help="Animus: the system of record for ML execution.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(cli_access.app, name="access")
app.add_typer(cli_audit.app, name="audit")
app.add_typer(cli_dataset.app, name="dataset")
app.add_typer(cli_env.app, name="env")
app.add_typer(cli_evidence.app, name="evidence")
app.add_typer(cli_lineage.app, name="lineage")
app.add_typer(cli_log.app, name="log")
app.add_typer(cli_quality.app, name="quality")
app.add_typer(cli_run.app, name="run")
app.add_typer(cli_tls.app, name="tls")
app.add_typer(cli_witness.app, name="witness")


@app.callback()
def options(
    ca_file: CaFile = None,
    client_certificate_file: ClientCertificateFile = None,
    client_key_file: ClientKeyFile = None,
) -> None:
    """How every command that calls a server reaches it."""
    use_tls(TlsFiles(ca_file, client_certificate_file, client_key_file))


@app.command()
def serve(gateway: bool = typer.Option(True, help="Serve HTTP/JSON in this process too.")) -> None:
    """Runs the server until SIGTERM or Ctrl+C. Settings are the ANIMUS_ variables (docs/execution.md)."""
    import uvloop

    from animus.domain.errors import Unavailable
    from animus.server import StartRefused
    from animus.server import serve as run
    from animus.store.embedded import EmbeddedError
    from animus.store.engine import LoginRefused
    from animus.store.guard import UnsafeDatabase
    from animus.store.migrate import MigrationRefused
    from animus.telemetry import configure_logs

    settings = _settings()
    configure_logs(settings.log_level, settings.log_format)
    if not gateway:
        settings = settings.model_copy(update={"gateway": False})
    try:
        uvloop.run(run(settings))
    except (StartRefused, EmbeddedError, LoginRefused, MigrationRefused, Unavailable, UnsafeDatabase) as error:
        _fail(str(error))


@app.command()
def migrate() -> None:
    """Brings the database to this version's schema, as its owner (ANIMUS_OWNER_DATABASE_URL)."""
    import asyncio

    from animus.domain.errors import Unavailable
    from animus.store.engine import LoginRefused
    from animus.store.migrate import MigrationRefused
    from animus.store.migrate import migrate as apply

    url = _settings().owner_database_url.get_secret_value()
    if not url:
        _fail("set ANIMUS_OWNER_DATABASE_URL or ANIMUS_OWNER_DATABASE_URL_FILE to the owner's database")
    try:
        applied = asyncio.run(apply(url))
    except ValueError as error:
        _fail(f"ANIMUS_OWNER_DATABASE_URL {error}")
    except (LoginRefused, MigrationRefused, Unavailable) as error:
        _fail(str(error))
    typer.echo(f"applied {', '.join(applied)}" if applied else "nothing to apply")


@app.command()
def version() -> None:
    """Prints the version."""
    typer.echo(distribution_version("animus-control"))


def main() -> None:
    """The entry point."""
    # gRPC writes lines of its own, for each handshake that failed: they are no JSON, and errors are told anyway.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    app()


def _settings() -> "Settings":
    from animus.config import load_settings

    try:
        return load_settings()
    except ValueError as error:
        _fail(str(error))


def _fail(reason: str) -> NoReturn:
    typer.echo(f"animus: {reason}", err=True)
    sys.exit(1)


if __name__ == "__main__":
    main()
