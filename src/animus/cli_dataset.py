"""`animus dataset`: digests of files and folders, versions made of them, copies hashed again. See docs/dataset.md."""

import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from animus.cli_client import (
    DEFAULT_ADDRESS,
    FAILED,
    USAGE,
    Address,
    AsJson,
    Insecure,
    TokenFile,
    channel_to,
    errors,
    fail,
    print_json,
    transfer,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from animus.domain.dataset import Column, DatasetVersion, FileDifference
    from animus.sdk.hashing import Content
    from animus.sdk.receipts import ReceiptStore

app = typer.Typer(help="Hashes, registers and verifies datasets.", no_args_is_help=True)

Data = Annotated[Path, typer.Argument(help="The folder, or the single file.", metavar="PATH", show_default=False)]
DatasetId = Annotated[str, typer.Argument(help="Id of the dataset.", metavar="DATASET", show_default=False)]
Project = Annotated[str, typer.Option(envvar="ANIMUS_PROJECT", help="The project.")]
RequestId = Annotated[
    str,
    typer.Option(help="Names this call: the same id is answered as before. Else one is made.", show_default=False),
]

NAMED = 20


@app.command("hash")
def hash_(path: Data, json: AsJson = False) -> None:
    """Prints the content digest of a folder or a file, how many files, and how many bytes; with --json each file."""
    with errors():
        found = _content(path)
        if json:
            print_json(
                {
                    "contentDigest": found.digest,
                    "sizeBytes": found.size_bytes,
                    "files": [
                        {"path": file.path, "sizeBytes": file.size_bytes, "digest": file.digest} for file in found.files
                    ],
                }
            )
        else:
            typer.echo(f"{found.digest} {_size(found)}")


@app.command()
def register(
    dataset: DatasetId,
    path: Data,
    project: Project,
    media_type: Annotated[str, typer.Option(help="IANA media type, such as text/csv.")],
    token_file: TokenFile = None,
    address: Address = DEFAULT_ADDRESS,
    insecure: Insecure = False,
    uri: Annotated[str, typer.Option(help="Where others find the content; never opened by Animus.")] = "",
    column: Annotated[
        list[str] | None, typer.Option(help="Column of a table, name=type, in their order. Repeatable.")
    ] = None,
    request_id: RequestId = "",
    json: AsJson = False,
) -> None:
    """Registers the version that a folder or a file is, and prints its full name.

    The same content registered again, with the same said of it, is the version that is there.
    """
    from dataclasses import replace

    from google.protobuf.json_format import MessageToDict

    from animus.codec import encode
    from animus.domain.dataset import DatasetVersion
    from animus.sdk.source import call
    from animus.v1 import dataset_pb2, dataset_pb2_grpc

    with errors():
        # What the server would refuse anyway is refused before the data is read: that may take hours.
        empty = DatasetVersion(dataset, f"sha256:{'0' * 64}", 0, media_type, uri, _columns(column), ())
        with channel_to(address, token_file, insecure, _receipts()) as channel:
            service = dataset_pb2_grpc.DatasetServiceStub(channel)
            call(service.GetDataset, dataset_pb2.GetDatasetRequest(project_id=project, dataset_id=dataset))
            found = _content(path)
            version = replace(empty, content_digest=found.digest, size_bytes=found.size_bytes, files=found.files)
            request = dataset_pb2.RegisterDatasetVersionRequest(
                project_id=project, request_id=request_id or secrets.token_hex(16)
            )
            encode(version, request.dataset_version)
            made = call(service.RegisterDatasetVersion, request)
        if json:
            print_json(MessageToDict(made, always_print_fields_with_no_presence=True))
        else:
            typer.echo(made.record.name)


@app.command()
def verify(
    dataset: DatasetId,
    digest: Annotated[str, typer.Argument(help="Content digest of the version.", metavar="DIGEST", show_default=False)],
    path: Data,
    project: Project,
    token_file: TokenFile = None,
    address: Address = DEFAULT_ADDRESS,
    insecure: Insecure = False,
    location: Annotated[
        str | None, typer.Option(help="What to record as the place of the copy; else its path.", show_default=False)
    ] = None,
    request_id: RequestId = "",
    json: AsJson = False,
) -> None:
    """Hashes a copy of a version again, and records whether it matched.

    Ends with 0 where it did and with 7 where not, and names files that are missing, extra or different. A copy that
    cannot be read has no digest, and nothing is recorded.
    """
    from google.protobuf.json_format import MessageToDict

    from animus.codec import decode
    from animus.domain.dataset import DatasetVersion, file_differences
    from animus.domain.names import check_length
    from animus.sdk.source import call
    from animus.v1 import dataset_pb2, dataset_pb2_grpc

    place = path.absolute().as_uri() if location is None else location
    with errors(), channel_to(address, token_file, insecure, _receipts()) as channel:
        check_length(place, 0, 2_000, "location")
        service = dataset_pb2_grpc.DatasetServiceStub(channel)
        known = call(
            service.GetDatasetVersion,
            dataset_pb2.GetDatasetVersionRequest(project_id=project, dataset_id=dataset, content_digest=digest),
        )
        known.ClearField("record")
        version = decode(known, DatasetVersion, "datasetVersion")
        found = _content(path)
        verification = call(
            service.VerifyDatasetVersion,
            dataset_pb2.VerifyDatasetVersionRequest(
                project_id=project,
                request_id=request_id or secrets.token_hex(16),
                dataset_id=dataset,
                content_digest=digest,
                found_digest=found.digest,
                found_size_bytes=found.size_bytes,
                location=place,
            ),
        )
        matched = found.digest == digest
        differences = () if matched else file_differences(version.files, found.files)
        if json:
            tree = MessageToDict(verification, always_print_fields_with_no_presence=True)
            named = [{"path": each.path, "kind": each.kind} for each in differences[:NAMED]]
            print_json({**tree, "differences": named, "differenceCount": len(differences)})
        else:
            for line in _lines(version, found, differences):
                typer.echo(line)
        if not matched:
            raise typer.Exit(FAILED)


def _content(path: Path) -> "Content":
    """What a path holds, with the bytes so far on a terminal."""
    from animus.sdk.hashing import content

    with transfer() as step:
        return content(path, step)


def _receipts() -> "ReceiptStore":
    from animus.sdk.files import state_folder
    from animus.sdk.receipts import ReceiptStore

    return ReceiptStore(state_folder() / "receipts")


def _columns(texts: list[str] | None) -> "tuple[Column, ...]":
    from animus.domain.dataset import Column

    columns = []
    for text in texts or ():
        name, separator, kind = text.partition("=")
        if not separator:
            fail(USAGE, f"--column {text} is no name=type")
        columns.append(Column(name, kind))
    return tuple(columns)


def _size(found: "Content") -> str:
    count = len(found.files) or 1
    return f"{count} {'file' if count == 1 else 'files'} {found.size_bytes} bytes"


def _lines(version: "DatasetVersion", found: "Content", differences: "Sequence[FileDifference]") -> "Iterator[str]":
    matched = found.digest == version.content_digest
    yield f"{'matched' if matched else 'differs'} {found.digest} {_size(found)}"
    if matched:
        return
    if bool(version.files) != bool(found.files):
        one, other = ("folder", "single file") if version.files else ("single file", "folder")
        yield f"the version is a {one}, and the copy is a {other}"
        return
    for each in differences[:NAMED]:
        yield f"{each.kind} {each.path}"
    if len(differences) > NAMED:
        yield f"and {len(differences) - NAMED} more"
