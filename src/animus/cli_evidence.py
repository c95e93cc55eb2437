"""`animus evidence`: exports, verifies and shows what proves a run or a log. docs/evidence.md is for auditors."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from animus.cli_client import (
    DEFAULT_ADDRESS,
    USAGE,
    Address,
    AsJson,
    Insecure,
    Project,
    TokenFile,
    channel_to,
    errors,
    fail,
    new_request_id,
    print_json,
    transfer,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

app = typer.Typer(help="Exports, verifies and shows evidence.", no_args_is_help=True)

Bundle = Annotated[Path, typer.Argument(help="A bundle: a ZIP, or the folder of an unpacked one.")]


@app.command()
def export(
    output: Annotated[Path, typer.Option(help="File for the bundle; with --folder, a new folder.")],
    run: Annotated[str, typer.Option(help="Id of the run; without one, the project's log.")] = "",
    project: Project = "",
    address: Address = DEFAULT_ADDRESS,
    token_file: TokenFile = None,
    insecure: Insecure = False,
    first: Annotated[int, typer.Option(min=0, help="Of a log: index of the first entry.")] = 0,
    size: Annotated[int, typer.Option(min=0, help="Size of the checkpoint to export up to; 0 for the newest.")] = 0,
    known_head: Annotated[
        list[Path] | None,
        typer.Option(help="A checkpoint that the auditor keeps: the bundle proves that the log goes on from it."),
    ] = None,
    folder: Annotated[bool, typer.Option("--folder", help="Unpack the bundle.")] = False,
) -> None:
    """Exports a bundle. What was cut short goes on when the command is given again."""
    from animus.sdk.evidence import download, unpack
    from animus.v1 import evidence_pb2

    if not project:
        fail(USAGE, "give --project or ANIMUS_PROJECT")
    if output.exists() and (not folder or any(output.iterdir() if output.is_dir() else [output])):
        fail(USAGE, f"{output} exists: name a new {'folder' if folder else 'file'}")
    with errors():
        request = evidence_pb2.ExportEvidenceRequest(
            project_id=project,
            request_id=new_request_id(),
            run_id=run,
            first_index=first,
            size=size,
            known_sizes=sorted({_size_of(path) for path in known_head or ()} - {0}),
        )
        target = output.with_name(f"{output.name}.zip") if folder else output
        with channel_to(address, token_file, insecure) as channel, transfer() as step:
            written = download(channel, request, target, step)
        if folder:
            unpack(target, output)
            target.unlink()
    typer.echo(f"{output} {written} bytes")


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def verify(context: typer.Context, bundle: Bundle) -> None:
    """Verifies a bundle with animus_verify.py, and ends with its exit code; options are those of that program."""
    import animus_verify

    raise typer.Exit(animus_verify.main([str(bundle), *context.args]))


@app.command()
def show(bundle: Bundle, as_json: AsJson = False) -> None:
    """Shows what a bundle says of itself. Nothing of it is verified."""
    from animus.sdk.evidence import summarize

    with errors():
        summary = summarize(bundle)
        if as_json:
            print_json({"verified": False, "evidence": summary.evidence, "run": summary.run})
            return
        for line in _lines(summary.evidence, summary.run):
            typer.echo(line)


def _lines(evidence: dict[str, Any], run: dict[str, Any] | None) -> "Iterator[str]":
    yield "not verified: animus evidence verify checks it"
    what = f"run {evidence.get('runId')}" if run else "log"
    yield f"{what} of project {evidence.get('projectId')}"
    yield f"origin {evidence.get('origin')}, entries {evidence.get('firstIndex')} up to {evidence.get('size')}"
    if run:
        yield f"state {run.get('state')}, plan {run.get('planDigest') or 'none'}"
        for step in _items(run, "steps"):
            attempts = [f"{each.get('attempt')} {each.get('state')}" for each in _items(step, "attempts")]
            yield f"  step {step.get('name')}: {step.get('state')}{''.join(f', attempt {each}' for each in attempts)}"
        for each in _items(run, "outputs"):
            yield f"  output {each.get('step')}/{each.get('name')}: {each.get('digest')}"


def _items(tree: dict[str, Any], key: str) -> list[dict[str, Any]]:
    found = tree.get(key)
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def _size_of(path: Path) -> int:
    """The size that a checkpoint or a line of known heads says."""
    from animus.domain.checkpoint import load_checkpoint
    from animus.domain.note import MAX_NOTE_BYTES, load_note
    from animus.sdk.files import read_file

    return load_checkpoint(load_note(read_file(path, MAX_NOTE_BYTES)).text).size
