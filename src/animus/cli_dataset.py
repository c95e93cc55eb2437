"""`animus dataset`: digests of files and folders, versions made of them, copies hashed again. See docs/dataset.md."""

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
    Project,
    RequestId,
    TokenFile,
    channel_to,
    errors,
    fail,
    kept_receipts,
    message_tree,
    new_request_id,
    pairs,
    print_json,
    transfer,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from animus.domain.dataset import DatasetVersion, FileDifference
    from animus.sdk.hashing import Content
    from animus.sdk.tables import Table

app = typer.Typer(help="Hashes, registers and verifies datasets.", no_args_is_help=True)

SomeData = Annotated[
    Path | None, typer.Argument(help="The folder, or the single file.", metavar="[PATH]", show_default=False)
]
Listing = Annotated[
    Path | None,
    typer.Option(help="Instead of PATH: an object store's listing, JSON with key, size and SHA-256 of each object."),
]
Prefix = Annotated[str, typer.Option(help="What the keys of the listing begin with; no part of the paths.")]
Describe = Annotated[
    bool, typer.Option("--describe", help="Read columns and rows of CSV, Parquet and JSON Lines (extra `quality`).")
]
Data = Annotated[Path, typer.Argument(help="The folder, or the single file.", metavar="PATH", show_default=False)]
DatasetId = Annotated[str, typer.Argument(help="Id of the dataset.", metavar="DATASET", show_default=False)]

NAMED = 20


@app.command("hash")
def hash_(
    path: SomeData = None,
    listing: Listing = None,
    prefix: Prefix = "",
    describe: Describe = False,
    json: AsJson = False,
) -> None:
    """Prints the content digest of a folder or a file, how many files, and how many bytes; with --json each file."""
    _check_place(path, listing, prefix, describe)
    with errors():
        table = _table(path, describe)
        found = _content(path, listing, prefix)
        if json:
            tree: dict[str, object] = {
                "contentDigest": found.digest,
                "sizeBytes": found.size_bytes,
                "files": [
                    {"path": file.path, "sizeBytes": file.size_bytes, "digest": file.digest} for file in found.files
                ],
            }
            if table:
                tree["columns"] = [{"name": each.name, "type": each.type} for each in table.columns]
                tree["rowCount"] = table.row_count
            print_json(tree)
            return
        typer.echo(f"{found.digest} {_size(found)}")
        if table:
            typer.echo(f"{table.row_count} rows")
            for each in table.columns:
                typer.echo(f"{each.name} {each.type}")


@app.command()
def register(
    dataset: DatasetId,
    project: Project,
    media_type: Annotated[str, typer.Option(help="IANA media type, such as text/csv.")],
    path: SomeData = None,
    listing: Listing = None,
    prefix: Prefix = "",
    token_file: TokenFile = None,
    address: Address = DEFAULT_ADDRESS,
    insecure: Insecure = False,
    uri: Annotated[
        list[str] | None, typer.Option(help="Where others find the content; never opened by Animus. Repeatable.")
    ] = None,
    column: Annotated[
        list[str] | None, typer.Option(help="Column of a table, name=type, in their order. Repeatable.")
    ] = None,
    row_count: Annotated[int, typer.Option(min=-1, help="Rows of the table; -1 where that is not known.")] = -1,
    describe: Describe = False,
    source: Annotated[str, typer.Option(help="Where the data comes from.")] = "",
    licence: Annotated[str, typer.Option(help="SPDX license expression, such as CC-BY-4.0.")] = "",
    label: Annotated[list[str] | None, typer.Option(help="Label, key=value. Repeatable.")] = None,
    derived_from: Annotated[
        list[str] | None, typer.Option(help="Version that this one was made from, DATASET@DIGEST. Repeatable.")
    ] = None,
    request_id: RequestId = "",
    json: AsJson = False,
) -> None:
    """Registers the version that a folder, a file or a listing is, and prints its full name.

    The same content registered again, with the same said of it, is the version that is there; URIs are added to it.
    """
    from dataclasses import replace

    from animus.codec import encode
    from animus.domain.dataset import Column, DatasetVersion, DatasetVersionId, DatasetVersionUris
    from animus.domain.labels import Label
    from animus.sdk.source import call
    from animus.v1 import dataset_pb2, dataset_pb2_grpc

    _check_place(path, listing, prefix, describe)
    if describe and (column or row_count >= 0):
        fail(USAGE, "--describe reads the columns and rows: give it without --column and --row-count")
    with errors():
        # What the server would refuse anyway is refused before the data is read: that may take hours.
        nothing = f"sha256:{'0' * 64}"
        empty = DatasetVersion(
            dataset_id=dataset,
            content_digest=nothing,
            size_bytes=0,
            media_type=media_type,
            row_count=row_count,
            source=source,
            licence=licence,
            labels=tuple(Label(*each) for each in pairs(label, "=", "--label", "key=value")),
            columns=tuple(Column(*each) for each in pairs(column, "=", "--column", "name=type")),
            files=(),
            derived_from=tuple(
                DatasetVersionId(*each) for each in pairs(derived_from, "@", "--derived-from", "DATASET@DIGEST")
            ),
        )
        uris = DatasetVersionUris(dataset, nothing, 1, tuple(uri or ())).uris
        with channel_to(address, token_file, insecure, kept_receipts()) as channel:
            service = dataset_pb2_grpc.DatasetServiceStub(channel)
            call(service.GetDataset, dataset_pb2.GetDatasetRequest(project_id=project, dataset_id=dataset))
            if table := _table(path, describe):
                empty = replace(empty, columns=table.columns, row_count=table.row_count)
            found = _content(path, listing, prefix)
            version = replace(empty, content_digest=found.digest, size_bytes=found.size_bytes, files=found.files)
            request = dataset_pb2.RegisterDatasetVersionRequest(
                project_id=project, request_id=request_id or new_request_id()
            )
            encode(version, request.dataset_version).uris.extend(uris)
            made = call(service.RegisterDatasetVersion, request)
        if json:
            print_json(message_tree(made))
        else:
            typer.echo(made.record.name)


@app.command("uris")
def set_uris(
    dataset: DatasetId,
    digest: Annotated[str, typer.Argument(help="Content digest of the version.", metavar="DIGEST", show_default=False)],
    project: Project,
    token_file: TokenFile = None,
    address: Address = DEFAULT_ADDRESS,
    insecure: Insecure = False,
    uri: Annotated[list[str] | None, typer.Option(help="Where others find the content. Repeatable.")] = None,
    request_id: RequestId = "",
    json: AsJson = False,
) -> None:
    """Replaces the URIs of a version by those given, or by none, and prints them."""
    from animus.sdk.source import call
    from animus.v1 import dataset_pb2, dataset_pb2_grpc

    with errors(), channel_to(address, token_file, insecure, kept_receipts()) as channel:
        made = call(
            dataset_pb2_grpc.DatasetServiceStub(channel).SetDatasetVersionUris,
            dataset_pb2.SetDatasetVersionUrisRequest(
                project_id=project,
                request_id=request_id or new_request_id(),
                dataset_id=dataset,
                content_digest=digest,
                uris=uri or (),
            ),
        )
        if json:
            print_json(message_tree(made))
            return
        for each in made.uris:
            typer.echo(each)


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
    from animus.codec import decode
    from animus.domain.dataset import DatasetVersion, file_differences
    from animus.domain.names import check_length
    from animus.sdk.source import call
    from animus.v1 import dataset_pb2, dataset_pb2_grpc

    place = path.absolute().as_uri() if location is None else location
    with errors(), channel_to(address, token_file, insecure, kept_receipts()) as channel:
        check_length(place, 0, 2_000, "location")
        service = dataset_pb2_grpc.DatasetServiceStub(channel)
        known = call(
            service.GetDatasetVersion,
            dataset_pb2.GetDatasetVersionRequest(project_id=project, dataset_id=dataset, content_digest=digest),
        )
        known.ClearField("record")
        version = decode(known, DatasetVersion, "datasetVersion")
        found = _content(path, None, "")
        verification = call(
            service.VerifyDatasetVersion,
            dataset_pb2.VerifyDatasetVersionRequest(
                project_id=project,
                request_id=request_id or new_request_id(),
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
            tree = message_tree(verification)
            named = [{"path": each.path, "kind": each.kind} for each in differences[:NAMED]]
            print_json({**tree, "differences": named, "differenceCount": len(differences)})
        else:
            for line in _lines(version, found, differences):
                typer.echo(line)
        if not matched:
            raise typer.Exit(FAILED)


def _check_place(path: Path | None, listing: Path | None, prefix: str, describe: bool) -> None:
    if (path is None) == (listing is None):
        fail(USAGE, "give PATH or --listing, and not both")
    if prefix and listing is None:
        fail(USAGE, "--prefix is of the keys of a --listing")
    if describe and path is None:
        fail(USAGE, "--describe reads the data: give PATH")


def _content(path: Path | None, listing: Path | None, prefix: str) -> "Content":
    """What a path or a listing holds, with the bytes so far on a terminal."""
    from animus.sdk.hashing import content
    from animus.sdk.object_listing import listed_content

    if path is None:
        assert listing is not None
        return listed_content(listing, prefix)
    with transfer() as step:
        return content(path, step)


def _table(path: Path | None, describe: bool) -> "Table | None":
    from animus.sdk.tables import describe as describe_table

    return describe_table(path) if path is not None and describe else None


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
