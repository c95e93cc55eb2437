"""`animus env`: makes, registers, shows and compares environment locks. Formats are in docs/environment.md."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from animus.cli_client import (
    DEFAULT_ADDRESS,
    ERROR,
    FAILED,
    USAGE,
    Address,
    AsJson,
    Insecure,
    Project,
    TokenFile,
    channel_to,
    errors,
    fail,
    kept_receipts,
    new_request_id,
    print_json,
    say,
    table,
)

if TYPE_CHECKING:
    import grpc

    from animus.domain.document import Sealed
    from animus.domain.environment import Accelerator, EnvironmentLock, Image
    from animus.domain.environment_diff import EnvironmentDifference

app = typer.Typer(help="Makes, registers and compares environment locks.", no_args_is_help=True)


MAX_DOCUMENT_BYTES = 16 << 20


@app.command()
def lock(
    path: Annotated[
        Path | None,
        typer.Argument(help="A lock file, or a folder with one; else the running environment.", metavar="[PATH]"),
    ] = None,
    python_version: Annotated[str, typer.Option(help="Of PATH: version of Python, such as 3.11.7.")] = "",
    platform_os: Annotated[str, typer.Option(help="Of PATH: linux, darwin or windows.")] = "",
    platform_architecture: Annotated[str, typer.Option(help="Of PATH: such as x86_64 or arm64.")] = "",
    running: Annotated[
        bool, typer.Option("--running", help="Of PATH: Python and platform are those of this interpreter.")
    ] = False,
    image: Annotated[
        list[str] | None, typer.Option(help="Container image, reference@sha256:<digest>. Repeatable.")
    ] = None,
    accelerator: Annotated[list[str] | None, typer.Option(help="MODEL:COUNT:DRIVER. Repeatable.")] = None,
    detect_accelerators: Annotated[
        bool, typer.Option("--detect-accelerators", help="Add those that nvidia-smi lists.")
    ] = False,
    output: Annotated[Path | None, typer.Option(help="File for the document; else stdout.")] = None,
) -> None:
    """Writes an environment lock as its canonical document, and its digest to stderr."""
    import dataclasses

    from animus.domain.document import seal
    from animus.sdk.environment import environment_of, running_environment
    from animus.sdk.files import replace_file

    given = {
        "--python-version": python_version,
        "--platform-os": platform_os,
        "--platform-architecture": platform_architecture,
    }
    if path is None or running:
        if here := [option for option, value in given.items() if value]:
            why = "--running takes them from this interpreter" if path else "they are for a lock file: name PATH"
            fail(USAGE, f"leave out {', '.join(here)}; {why}")
    elif missing := [option for option, value in given.items() if not value]:
        fail(USAGE, f"give {', '.join(missing)}, or --running for this interpreter's: a lock file does not say")
    with errors():
        images = _images(image or [])
        accelerators = _accelerators(accelerator or [], detect=detect_accelerators)
        if path is None:
            found = dataclasses.replace(running_environment(), images=images, accelerators=accelerators)
        else:
            if running:
                python_version, platform_os, platform_architecture = _running()
            found = environment_of(
                path,
                python_version=python_version,
                platform_os=platform_os,
                platform_architecture=platform_architecture,
                images=images,
                accelerators=accelerators,
            )
        sealed = seal(found)
        if output is None:
            typer.echo(sealed.document, nl=False)
        else:
            replace_file(output, sealed.document)
    typer.echo(sealed.digest, err=True)


@app.command()
def register(
    file: Annotated[Path, typer.Argument(help="The document of an environment lock, as animus env lock writes it.")],
    project: Project,
    token_file: TokenFile = None,
    address: Address = DEFAULT_ADDRESS,
    insecure: Insecure = False,
    request_id: Annotated[
        str,
        typer.Option(help="Names this call: the same id is answered as before. Else one is made.", show_default=False),
    ] = "",
) -> None:
    """Registers an environment lock, and prints its digest."""

    from animus.codec import encode
    from animus.sdk.source import call
    from animus.v1 import environment_pb2, environment_pb2_grpc

    with errors():
        sealed = _read(file)
        request = environment_pb2.RegisterEnvironmentLockRequest(
            project_id=project,
            request_id=request_id or new_request_id(),
            environment_lock=encode(sealed.value, environment_pb2.EnvironmentLock()),
        )
        receipts = kept_receipts()
        with channel_to(address, token_file, insecure, receipts) as channel:
            made = call(environment_pb2_grpc.EnvironmentServiceStub(channel).RegisterEnvironmentLock, request)
    if made.record.digest != sealed.digest:
        fail(FAILED, f"{file} has the digest {sealed.digest}, and the server registered {made.record.digest}")
    typer.echo(sealed.digest)


@app.command()
def show(
    digest: Annotated[str, typer.Argument(help="Digest of a registered environment lock.")],
    project: Project,
    token_file: TokenFile = None,
    address: Address = DEFAULT_ADDRESS,
    insecure: Insecure = False,
    json: AsJson = False,
) -> None:
    """Shows a registered environment lock, once its content has been found to have this digest."""
    import orjson

    with errors(), channel_to(address, token_file, insecure) as channel:
        sealed = _registered(channel, project, digest)
    if json:
        print_json(orjson.loads(sealed.document))
        return
    typer.echo("\n".join(table(_rows(sealed.value))))


@app.command()
def diff(
    this: Annotated[str, typer.Argument(help="A file of an environment lock, or a registered digest.", metavar="A")],
    other: Annotated[str, typer.Argument(help="What to compare it with, likewise.", metavar="B")],
    project: Project = "",
    token_file: TokenFile = None,
    address: Address = DEFAULT_ADDRESS,
    insecure: Insecure = False,
    json: AsJson = False,
) -> None:
    """Names what differs between two environment locks. Ends with 0 where nothing does, and with 7 else."""
    from contextlib import ExitStack

    from animus.domain.document import tree_of
    from animus.domain.environment_diff import compare_environments
    from animus.domain.names import DIGEST

    with errors(), ExitStack() as stack:
        channel = None
        if DIGEST.fullmatch(this) or DIGEST.fullmatch(other):
            if not project:
                fail(USAGE, "give --project or ANIMUS_PROJECT: a digest is looked up in a project")
            channel = stack.enter_context(channel_to(address, token_file, insecure))
        left, right = (
            _registered(channel, project, each) if channel and DIGEST.fullmatch(each) else _read(Path(each))
            for each in (this, other)
        )
    found = compare_environments(left.value, right.value)
    if json:
        print_json(
            {
                "equal": not found,
                "digest": left.digest,
                "otherDigest": right.digest,
                "differences": [{**_object(tree_of(each)), "change": each.change} for each in found],
            }
        )
    else:
        typer.echo("\n".join(_lines(found, left.digest, right.digest)))
    if found:
        raise typer.Exit(FAILED)


def _running() -> tuple[str, str, str]:
    """Python's version, operating system and machine of this interpreter."""
    import platform

    return platform.python_version(), platform.system().lower(), platform.machine().lower()


def _images(texts: list[str]) -> "tuple[Image, ...]":
    from animus.domain.environment import Image
    from animus.domain.errors import Invalid

    images = []
    for text in texts:
        try:
            images.append(Image(text))
        except Invalid as error:
            fail(USAGE, f"--image {text} {error.violations[0].description}")
    return tuple(images)


def _accelerators(texts: list[str], *, detect: bool) -> "tuple[Accelerator, ...]":
    from animus.sdk.accelerators import PROGRAM, DetectionFailed, detect_accelerators, parse_accelerator

    named = tuple(parse_accelerator(text) for text in texts)
    if not detect:
        return named
    try:
        found = detect_accelerators()
    except DetectionFailed as error:
        fail(ERROR, str(error))
    if not found:
        say(f"no accelerator was found{'' if found is not None else f': {PROGRAM} is not there'}")
    return (*named, *(found or ()))


def _read(path: Path) -> "Sealed[EnvironmentLock]":
    """The environment lock of a file. Raises Invalid and Unreadable."""
    from animus.domain.document import load, seal
    from animus.domain.environment import EnvironmentLock
    from animus.domain.errors import Invalid
    from animus.sdk.files import read_file

    try:
        return seal(load(read_file(path, MAX_DOCUMENT_BYTES), EnvironmentLock))
    except Invalid as error:
        fail(USAGE, f"{path} is no environment lock as animus env lock writes it: {error.message}")


def _registered(channel: "grpc.Channel", project: str, digest: str) -> "Sealed[EnvironmentLock]":
    """A registered environment lock. Ends the command where what the server answers has another digest."""
    from animus.codec import decode
    from animus.domain.document import seal
    from animus.domain.environment import EnvironmentLock
    from animus.sdk.source import call
    from animus.v1 import environment_pb2, environment_pb2_grpc

    request = environment_pb2.GetEnvironmentLockRequest(project_id=project, digest=digest)
    message = call(environment_pb2_grpc.EnvironmentServiceStub(channel).GetEnvironmentLock, request)
    message.ClearField("record")
    sealed = seal(decode(message, EnvironmentLock, ""))
    if sealed.digest != digest:
        fail(FAILED, f"verification failed: what the server has as {digest} has the digest {sealed.digest}")
    return sealed


def _rows(lock: "EnvironmentLock") -> list[tuple[str, ...]]:
    """A lock for people: all that it differs in from one that says nothing."""
    return [
        ("python", lock.python_version or "-"),
        ("platform", f"{lock.platform_os} {lock.platform_architecture}"),
        ("lock file", lock.lock_file_digest or "-"),
        *(("image", each.reference) for each in lock.images),
        *(("accelerator", f"{each.model}:{each.count}:{each.driver_version}") for each in lock.accelerators),
        *(("package", f"{each.name}=={each.version}") for each in lock.packages),
    ]


def _lines(found: "tuple[EnvironmentDifference, ...]", digest: str, other_digest: str) -> list[str]:
    """Differences for people."""
    if not found:
        return ["EQUAL", *table([("digest", digest)])]
    rows = [
        (each.field, each.name or "-", each.change, each.this_value or "-", each.other_value or "-") for each in found
    ]
    return [
        "DIFFERENT",
        *table([("digest", digest), ("other", other_digest)]),
        "",
        *table([("field", "name", "change", "this", "other"), *rows]),
    ]


def _object(tree: object) -> dict[str, object]:
    assert isinstance(tree, dict)
    return tree
