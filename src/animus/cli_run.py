"""`animus run`: makes a run again, and says whether it came to the same. Verdicts are in docs/execution.md."""

from typing import Annotated

import typer

from animus.cli_client import (
    DEFAULT_ADDRESS,
    FAILED,
    Address,
    AsJson,
    Insecure,
    Project,
    RequestId,
    TokenFile,
    channel_to,
    errors,
    kept_receipts,
    message_tree,
    new_request_id,
    pairs,
    print_json,
    table,
)

app = typer.Typer(help="Replays runs and compares them.", no_args_is_help=True)

RunId = Annotated[str, typer.Argument(help="Id of the run.", metavar="RUN")]


@app.command()
def replay(
    run: RunId,
    project: Project,
    token_file: TokenFile = None,
    address: Address = DEFAULT_ADDRESS,
    insecure: Insecure = False,
    label: Annotated[list[str] | None, typer.Option(help="Label of the new run, key=value. Repeatable.")] = None,
    request_id: RequestId = "",
    json: AsJson = False,
) -> None:
    """Creates a run from the RunSpec of another, and prints its id. Plan and execute it as any other."""
    from animus.sdk.source import call
    from animus.v1 import run_pb2, run_pb2_grpc

    request = run_pb2.ReplayRunRequest(project_id=project, request_id=request_id or new_request_id(), run_id=run)
    for key, value in pairs(label, "=", "--label", "key=value"):
        request.labels.add(key=key, value=value)
    receipts = kept_receipts()
    with errors(), channel_to(address, token_file, insecure, receipts) as channel:
        made = call(run_pb2_grpc.RunServiceStub(channel).ReplayRun, request)
        if json:
            print_json(message_tree(made))
        else:
            typer.echo(made.run_id)


@app.command()
def compare(
    run: RunId,
    other: Annotated[str, typer.Argument(help="Id of the run to compare it with.", metavar="OTHER")],
    project: Project,
    token_file: TokenFile = None,
    address: Address = DEFAULT_ADDRESS,
    insecure: Insecure = False,
    request_id: RequestId = "",
    json: AsJson = False,
) -> None:
    """Records whether two runs made the same outputs, and prints where they differ.

    Ends with 0 for REPRODUCED, and with 7 for DIVERGED and INCOMPARABLE.
    """
    from animus.sdk.source import call
    from animus.v1 import run_pb2, run_pb2_grpc

    request = run_pb2.CompareRunsRequest(
        project_id=project, request_id=request_id or new_request_id(), run_id=run, other_run_id=other
    )
    receipts = kept_receipts()
    with errors(), channel_to(address, token_file, insecure, receipts) as channel:
        found = call(run_pb2_grpc.RunServiceStub(channel).CompareRuns, request)
        tree = message_tree(found)
        if json:
            print_json(tree)
        else:
            typer.echo("\n".join(_lines(tree)))
        if found.verdict != run_pb2.COMPARISON_VERDICT_REPRODUCED:
            raise typer.Exit(FAILED)


def _lines(tree: dict[str, object]) -> list[str]:
    """A comparison for people: the verdict and where it comes from, then a table of each kind that has rows."""
    verdict = _word(tree["verdict"], "COMPARISON_VERDICT_")
    first, reason = tree["firstStep"], tree["reason"]
    lines = [f"{verdict}{f': first at the step {first}' if first else ''}{f': {reason}' if reason else ''}"]
    tables = (
        ("", ("", "run", "other"), _runs(tree)),
        ("RunSpec", ("field", "run", "other"), _differences(tree)),
        ("steps", ("step", "run", "other", "attempts", "other"), _steps(tree)),
        ("outputs", ("output", "", "run", "other"), _outputs(tree)),
    )
    for title, heads, rows in tables:
        if rows:
            lines += ["", *([title] if title else []), *table([heads, *rows])]
    return lines


def _runs(tree: dict[str, object]) -> list[tuple[str, ...]]:
    return [
        ("run", _text(tree["runId"]), _text(tree["otherRunId"])),
        ("state", _word(tree["state"], "RUN_STATE_"), _word(tree["otherState"], "RUN_STATE_")),
        ("plan", _text(tree["planDigest"]), _text(tree["otherPlanDigest"])),
    ]


def _differences(tree: dict[str, object]) -> list[tuple[str, ...]]:
    return [(each["path"], _text(each["thisValue"]), _text(each["otherValue"])) for each in _items(tree, "differences")]


def _steps(tree: dict[str, object]) -> list[tuple[str, ...]]:
    return [
        (
            each["step"],
            _word(each["state"], "STEP_STATE_"),
            _word(each["otherState"], "STEP_STATE_"),
            str(each["attempts"]),
            str(each["otherAttempts"]),
        )
        for each in _items(tree, "steps")
    ]


def _outputs(tree: dict[str, object]) -> list[tuple[str, ...]]:
    return [
        (
            f"{each['step']}/{each['name']}",
            "equal" if each["equal"] else "differs",
            _text(each["digest"]),
            _text(each["otherDigest"]),
        )
        for each in _items(tree, "outputs")
    ]


def _items(tree: dict[str, object], key: str) -> list[dict[str, str]]:
    return tree[key]  # type: ignore[return-value]


def _text(value: object) -> str:
    """A value in a line; `-` for none."""
    return " ".join(str(value).split()) or "-"


def _word(value: object, prefix: str) -> str:
    """A member of an enum; `-` for none."""
    return str(value).removeprefix(prefix).replace("UNSPECIFIED", "-")
