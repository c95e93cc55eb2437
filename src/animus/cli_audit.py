"""`animus audit`: checks, copies and follows the audit log. docs/log-verification.md says what each verdict means."""

import sys
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from animus.cli_client import (
    DEFAULT_ADDRESS,
    ERROR,
    FAILED,
    UNAVAILABLE,
    USAGE,
    AcceptEpoch,
    Address,
    AsJson,
    Insecure,
    Keys,
    KnownHeadsFile,
    LogProject,
    TokenFile,
    TrustServerKey,
    channel_to,
    errors,
    fail,
    print_json,
    progress,
    read_keys,
    read_policy,
    say,
    write_stream,
)

if TYPE_CHECKING:
    import grpc
    from google.protobuf.timestamp_pb2 import Timestamp

    from animus.domain.note import Key
    from animus.domain.policy import Policy
    from animus.sdk.contradiction import Contradiction
    from animus.sdk.heads import KnownHead, KnownHeads
    from animus.sdk.leaves import Watch
    from animus.sdk.promises import Result
    from animus.sdk.receipts import Kept
    from animus.sdk.source import Head, Source
    from animus.sdk.trust import Trust, Trusted
    from animus.sdk.verification import Report, Witnessed

app = typer.Typer(help="Checks, copies and follows the audit log.", no_args_is_help=True)

Log = Annotated[
    Path | None,
    typer.Argument(help="An exported log; without one, the server is asked.", metavar="[DIR]", show_default=False),
]


@app.command()
def verify(
    log: Log = None,
    project: LogProject = "",
    address: Address = DEFAULT_ADDRESS,
    token_file: TokenFile = None,
    insecure: Insecure = False,
    key: Keys = None,
    trust_server_key: TrustServerKey = False,
    known_heads: KnownHeadsFile = None,
    head: Annotated[
        list[Path] | None, typer.Option(help="A checkpoint or .tlog-proof from elsewhere that the log must go on from.")
    ] = None,
    policy: Annotated[Path | None, typer.Option(help="C2SP tlog-policy: which witnesses count, and how many.")] = None,
    accept_epoch: AcceptEpoch = 0,
    wait: Annotated[float, typer.Option(min=0, help="Seconds that a listed entry may wait for its place.")] = 60,
    accept_outside: Annotated[
        list[str] | None, typer.Option(help="Id of a listed entry that may lack a place, such as one given up.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Checks every entry, tile and signature of a log, and that it goes on from every head known of it."""
    from animus.sdk.contradiction import Contradiction
    from animus.sdk.heads import KnownHeads

    with errors():
        given, rules = read_keys(key), read_policy(policy)
        known = KnownHeads(known_heads)
        try:
            with _opened(log, project, address, token_file, insecure) as source:
                found = source.newest()
                origin = found.checkpoint.origin
                keys = (*given, *(each.key for each in rules.logs)) if rules else given
                trust = _trusted(source, keys, known, trust_server_key, accept_epoch).of(origin)
                before = [*known.of(origin), *_elsewhere(head or [], trust, origin)]
                report = _verify(source, found, trust, before, rules, accept_epoch, wait, accept_outside or ())
        except Contradiction as contradiction:
            _print_failure(contradiction, as_json)
            raise typer.Exit(FAILED) from None
        known.add(report.head.note, report.signers, forget=report.lost)
        _print_report(report, trust, rules, as_json)


@app.command("verify-receipts")
def verify_receipts(
    log: Log = None,
    receipts: Annotated[
        Path | None, typer.Option(help="File of receipts; else the one in ~/.local/state/animus.")
    ] = None,
    project: LogProject = "",
    address: Address = DEFAULT_ADDRESS,
    token_file: TokenFile = None,
    insecure: Insecure = False,
    key: Keys = None,
    trust_server_key: TrustServerKey = False,
    known_heads: KnownHeadsFile = None,
    accept_epoch: AcceptEpoch = 0,
    output: Annotated[Path | None, typer.Option(help="Folder for the proofs, <entry id>.tlog-proof each.")] = None,
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait for an entry that has no proof yet.")] = 10,
    as_json: AsJson = False,
) -> None:
    """Turns each receipt that was kept into a proof, or into evidence that a promise was broken.

    With DIR all of that log is verified first. With --project, or DIR, the receipts of other logs are left out.
    """
    from animus.domain.checkpoint import dump_proof
    from animus.sdk.files import state_folder, write_file
    from animus.sdk.heads import KnownHeads
    from animus.sdk.receipts import ReceiptStore, Torn
    from animus.sdk.source import Directory, Server, project_of
    from animus.sdk.trust import Trusted

    with errors():
        given = read_keys(key)
        known = KnownHeads(known_heads)
        lines = list(ReceiptStore(receipts or state_folder() / "receipts").read())
        torn = [line.line for line in lines if isinstance(line, Torn)]
        found: dict[bytes, Kept] = {}
        for line in lines:
            if not isinstance(line, Torn):
                found.setdefault(line.note, line)  # a retry brings the same receipt again
        kept = list(found.values())
        if log is not None:
            source = Directory(log)
            trusted = _trusted(source, given, known, trust_server_key, accept_epoch)
            results, skipped = _by_directory(source, kept, trusted, known, accept_epoch)
        else:
            with channel_to(address, token_file, insecure) as channel:

                def claimed(origin: str) -> "tuple[Key, ...]":
                    return Server(channel, project_of(origin)).claimed_keys()

                trusted = Trusted(given, known, claimed if trust_server_key else None, accept_epoch)
                results, skipped = _by_server(channel, project, kept, trusted, known, wait)
        if output is not None:
            output.mkdir(parents=True, exist_ok=True)
            for result in results:
                if result.proof and result.receipt:
                    path = output / f"{result.receipt.entry_id}.tlog-proof"
                    write_file(path, dump_proof(result.proof), durable=True)
    raise typer.Exit(_print_results(results, torn, skipped, as_json))


@app.command()
def export(
    output: Annotated[
        Path | None, typer.Option(help="Folder of the log; with --ndjson a file, or stdout.", show_default=False)
    ] = None,
    project: LogProject = "",
    address: Address = DEFAULT_ADDRESS,
    token_file: TokenFile = None,
    insecure: Insecure = False,
    ndjson: Annotated[bool, typer.Option("--ndjson", help="Write entries as lines of JSON instead.")] = False,
    first: Annotated[int, typer.Option(min=0, help="With --ndjson: index of the first entry.")] = 0,
    principal: Annotated[str, typer.Option(help="With --ndjson: only entries of this principal.")] = "",
    action: Annotated[str, typer.Option(help="With --ndjson: only entries of this action.")] = "",
    resource: Annotated[str, typer.Option(help="With --ndjson: only entries of this resource.")] = "",
    since: Annotated[str, typer.Option(help="With --ndjson: only entries of this time (UTC) or later.")] = "",
    until: Annotated[str, typer.Option(help="With --ndjson: only entries before this time (UTC).")] = "",
) -> None:
    """Copies a log to a folder in the layout of C2SP tlog-tiles, or its entries as lines of JSON.

    Repeated, it fetches what is new. The folder can be verified without the server: animus audit verify DIR.
    """
    from animus.sdk.export import export as export_log
    from animus.sdk.source import Server
    from animus.v1 import audit_pb2, audit_pb2_grpc

    filters = {"principal": principal, "action": action, "resource": resource, "since": since, "until": until}
    if not ndjson and (first or any(filters.values())):
        fail(USAGE, "a filter is for --ndjson: a log is copied as a whole, or it proves nothing")
    if not ndjson and output is None:
        fail(USAGE, "give --output, a folder for the log")
    with errors():
        request = audit_pb2.ExportAuditEntriesRequest(
            project_id=_project(project),
            first_index=first,
            principal=principal,
            action=action,
            resource=resource,
            start_time=_time(since, "--since"),
            end_time=_time(until, "--until"),
        )
        with channel_to(address, token_file, insecure) as channel:
            if ndjson:
                write_stream(audit_pb2_grpc.AuditServiceStub(channel).ExportAuditEntries(request), output)
                return
            assert output is not None
            server = Server(channel, request.project_id)
            head = server.newest()
            with progress("exporting", head.checkpoint.size) as step:
                done = export_log(server, output, head, step)
    typer.echo(f"{done.head.checkpoint.origin} size {done.head.checkpoint.size} fetched {done.fetched}")


@app.command()
def tail(
    start: Annotated[int | None, typer.Option("--from", min=0, help="Index to start at; else the next entry.")] = None,
    project: LogProject = "",
    address: Address = DEFAULT_ADDRESS,
    token_file: TokenFile = None,
    insecure: Insecure = False,
    count: Annotated[int | None, typer.Option(min=1, help="End after so many entries.", show_default=False)] = None,
) -> None:
    """Follows the log: one line of JSON for each entry as it gets its index, across restarts of the server."""
    from animus.sdk.source import Server
    from animus.sdk.tail import follow

    with errors(), channel_to(address, token_file, insecure) as channel:
        server = Server(channel, _project(project))
        at = server.log().size if start is None else start
        for number, line in enumerate(follow(server, at, say), 1):
            sys.stdout.buffer.write(line)
            sys.stdout.buffer.flush()
            if number == count:
                return


# What the commands are made of.


def _project(project: str) -> str:
    return project or fail(USAGE, "no project: give --project or ANIMUS_PROJECT")


@contextmanager
def _opened(
    log: Path | None, project: str, address: str, token_file: Path | None, insecure: bool
) -> "Iterator[Source]":
    """The log of a directory, or of a project on the server."""
    from animus.sdk.source import Directory, Server

    if log is not None:
        yield Directory(log)
    else:
        project_id = _project(project)
        with channel_to(address, token_file, insecure) as channel:
            yield Server(channel, project_id)


def _trusted(
    source: "Source", keys: "Iterable[Key]", known: "KnownHeads", trust_server_key: bool, accept_epoch: int
) -> "Trusted":
    from animus.sdk.trust import Trusted

    return Trusted(keys, known, (lambda origin: source.claimed_keys()) if trust_server_key else None, accept_epoch)


def _elsewhere(paths: list[Path], trust: "Trust", origin: str) -> "Iterator[KnownHead]":
    """The heads of files: checkpoints, or proofs that carry one."""
    from animus.domain.checkpoint import MAX_HEADER_BYTES, PROOF_HEADER, load_proof
    from animus.domain.errors import Invalid
    from animus.domain.note import MAX_NOTE_BYTES
    from animus.sdk.contradiction import Contradiction, Finding
    from animus.sdk.files import read_file
    from animus.sdk.heads import KnownHead
    from animus.sdk.source import load_head, split_origin
    from animus.signing import verify_checkpoint

    for path in paths:
        data = read_file(path, MAX_HEADER_BYTES + MAX_NOTE_BYTES)
        try:
            found = load_head(
                str(path), load_proof(data).checkpoint if data.startswith(PROOF_HEADER.encode()) else data
            )
            its_origin = found.checkpoint.origin
            if split_origin(its_origin)[0] != split_origin(origin)[0]:
                raise Contradiction(Finding.UNKNOWN_LOG, str(path), f"is a head of {its_origin}, not of {origin}")
            _, note = verify_checkpoint(found.note, trust.keys_for(its_origin))
        except Invalid as error:
            raise Contradiction(Finding.BAD_SIGNATURE, str(path), error.message) from None
        yield KnownHead(str(path), found.checkpoint, found.note, note.signers)


def _verify(
    source: "Source",
    head: "Head",
    trust: "Trust",
    known: "list[KnownHead]",
    rules: "Policy | None",
    accept_epoch: int,
    wait: float = 0,
    accept_outside: "Collection[str]" = (),
    watches: "tuple[Watch, ...]" = (),
) -> "Report":
    """Verifies a log; of a server also that its list of entries is that of the log."""
    from animus.domain.names import INSTANCE_LOG
    from animus.sdk.contradiction import Contradiction, Finding
    from animus.sdk.listing import Listing
    from animus.sdk.source import CHECKPOINT, Server, project_of
    from animus.sdk.verification import Verification

    if isinstance(source, Server) and source.project_id != INSTANCE_LOG:
        origin = head.checkpoint.origin
        if project_of(origin) != source.project_id:
            raise Contradiction(Finding.UNKNOWN_LOG, CHECKPOINT, f"is of {origin}, not of {source.project_id}")
        for problem in source.log().problems:
            say(f"the server says of its log: {problem}")
        listing = Listing(source, accept_outside)
        with progress("reading the list", head.checkpoint.size) as step:
            head = listing.collect(wait, step)
        if head.checkpoint.origin != origin:
            raise Contradiction(Finding.UNKNOWN_LOG, CHECKPOINT, f"was of {origin}, and is of {head.checkpoint.origin}")
        for entry_id in listing.outside:
            say(f"the entry {entry_id} is listed and stands outside the log, which was accepted")
        watches = (*watches, listing.watch)
    verification = Verification(source, head, trust, known, rules, accept_epoch, watches)
    with progress("verifying", verification.size) as step:
        return verification.run(step)


def _by_directory(
    source: "Source", kept: "Iterable[Kept]", trusted: "Trusted", known: "KnownHeads", accept_epoch: int
) -> "tuple[list[Result], int]":
    """What became of receipts by an exported log, which is verified, and how many are of other logs."""
    from animus.sdk.promises import LogPromises, Promise, check_receipt, origin_of
    from animus.sdk.source import split_origin

    head = source.newest()
    origin = head.checkpoint.origin
    trust = trusted.of(origin)
    checked: list[Promise | Result] = []
    skipped = 0
    for each in kept:
        its_origin = origin_of(each)
        if its_origin and split_origin(its_origin)[0] != split_origin(origin)[0]:
            skipped += 1
        else:
            checked.append(check_receipt(each, trust.keys_for))
    promises = LogPromises([each for each in checked if isinstance(each, Promise)])
    report = _verify(source, head, trust, known.of(origin), None, accept_epoch, watches=(promises.watch,))
    results = [each for each in checked if not isinstance(each, Promise)]
    return [*results, *promises.results(source, report.head)], skipped


def _by_server(
    channel: "grpc.Channel", project: str, kept: "list[Kept]", trusted: "Trusted", known: "KnownHeads", wait: float
) -> "tuple[list[Result], int]":
    """What became of receipts by their server, and how many are of other projects than the one that is given."""
    from animus.sdk.promises import Promise, ServerPromises, check_receipt, origin_of
    from animus.sdk.source import Server, project_of

    servers: dict[str, ServerPromises] = {}
    origins: set[str] = set()
    results: list[Result] = []
    skipped = 0
    with progress("checking receipts", len(kept)) as step:
        for each in kept:
            step(1)
            origin = origin_of(each)
            name = project_of(origin)
            if origin and project not in ("", name):
                skipped += 1
                continue
            promise = check_receipt(each, trusted.keys_for)
            if isinstance(promise, Promise):
                origins.add(origin)
                if name not in servers:
                    servers[name] = ServerPromises(Server(channel, name), trusted.keys_for, wait)
                results.append(servers[name].check(promise))
            else:
                results.append(promise)
    for origin in sorted(origins):
        servers[project_of(origin)].check_known(known.of(origin))
    return results, skipped


def _time(text: str, name: str) -> "Timestamp | None":
    """A time as people write it, in UTC unless it says otherwise."""
    from datetime import UTC, datetime

    from google.protobuf.timestamp_pb2 import Timestamp

    if not text:
        return None
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        fail(USAGE, f"{name} {text} is no time such as 2026-01-31 or 2026-01-31T12:00:00Z")
    message = Timestamp()
    message.FromDatetime(time if time.tzinfo else time.replace(tzinfo=UTC))
    return message


def _print_failure(contradiction: "Contradiction", as_json: bool) -> None:
    if as_json:
        tree = {
            "finding": contradiction.finding,
            "place": contradiction.place,
            "description": contradiction.description,
        }
        print_json({"verdict": "FAILED", "contradiction": tree})
    else:
        typer.echo(f"FAILED {contradiction}")


def _print_report(report: "Report", trust: "Trust", rules: "Policy | None", as_json: bool) -> None:
    from animus.domain.note import dump_key
    from animus.sdk.trust import KeySource

    checkpoint = report.head.checkpoint
    known_size = max((head.checkpoint.size for head in report.known), default=None)
    if trust.source is KeySource.SERVER:
        say(
            "the key is the log's own word for it: compare it with one that you have from elsewhere. "
            "From now on this key is expected"
        )
    for head in report.lost:
        say(
            f"the head of size {head.checkpoint.size} of {head.checkpoint.origin} was lost in a restore: this log "
            "lacks the entries that were not restored"
        )
    if report.unverified:
        say(
            f"{report.unverified} of {report.published} published checkpoints are signed by keys that are not trusted "
            "here, but that the log says it had"
        )
    if as_json:
        print_json(
            {
                "verdict": report.verdict,
                "origin": checkpoint.origin,
                "size": checkpoint.size,
                "rootHash": checkpoint.root_hash.hex(),
                "keys": [dump_key(key) for key in report.signers],
                "keySource": trust.source,
                "knownHeads": len(report.known),
                "knownSize": known_size,
                "lostHeads": [{"origin": h.checkpoint.origin, "size": h.checkpoint.size} for h in report.lost],
                "publishedCheckpoints": report.published,
                "unverifiedCheckpoints": report.unverified,
                "witnessed": _witnessed_tree(report.witnessed),
                "cosigned": _witnessed_tree(report.cosigned),
            }
        )
        return
    typer.echo(f"{report.verdict} {checkpoint.origin} size {checkpoint.size} root {checkpoint.root_hash.hex()}")
    for key in report.signers:
        typer.echo(f"  signed by {dump_key(key)} ({trust.source})")
    if known_size is not None:
        typer.echo(f"  goes on from {len(report.known)} known before, the newest of size {known_size}")
    typer.echo(f"  passes {report.published} published checkpoints")
    if rules is not None:
        found = report.witnessed or report.cosigned
        what = "no witness of the policy has cosigned it"
        if found:
            what = f"up to size {found.size} cosigned by {', '.join(found.witnesses)}"
            what += f", for {', '.join(found.groups)}" if found.groups else ""
            what += "" if report.witnessed else ": not the quorum"
        typer.echo(f"  {what}")


def _witnessed_tree(witnessed: "Witnessed | None") -> "dict[str, object] | None":
    if witnessed is None:
        return None
    return {"size": witnessed.size, "witnesses": witnessed.witnesses, "groups": witnessed.groups}


def _print_results(results: "list[Result]", torn: list[int], skipped: int, as_json: bool) -> int:
    """Prints what became of receipts, and returns the exit code."""
    from collections import Counter

    from animus.sdk.promises import Outcome

    results = sorted(results, key=lambda result: result.kept.line)
    counts = Counter(result.outcome for result in results)
    for line in torn:
        say(f"line {line} of the receipts is torn: a crash cut it short, or something else wrote it")
    if as_json:
        print_json(
            {
                "counts": {str(outcome): counts[outcome] for outcome in sorted(counts)},
                "receipts": [_result_tree(result) for result in results],
                "skipped": skipped,
                "torn": torn,
            }
        )
    else:
        for result in results:
            if result.outcome is not Outcome.INCLUDED:
                entry_id = result.receipt.entry_id if result.receipt else "unreadable"
                typer.echo(
                    f"{result.outcome} line {result.kept.line} {entry_id} {result.kept.method} "
                    f"{result.kept.request_id}: {result.description}"
                )
        parts = [f"{counts[outcome]} {outcome}" for outcome in sorted(counts)] or ["no receipts"]
        typer.echo(", ".join(parts) + (f", {skipped} of other logs left out" if skipped else ""))
    if counts.keys() - set(Outcome):
        return FAILED
    return ERROR if torn else UNAVAILABLE if counts[Outcome.PENDING] else 0


def _result_tree(result: "Result") -> dict[str, object]:
    return {
        "line": result.kept.line,
        "method": result.kept.method,
        "requestId": result.kept.request_id,
        "outcome": result.outcome,
        "description": result.description,
        "origin": result.receipt.origin if result.receipt else None,
        "entryId": result.receipt.entry_id if result.receipt else None,
        "index": result.proof.index if result.proof else None,
    }
