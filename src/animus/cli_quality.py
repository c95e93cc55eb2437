"""`animus quality`: rules, profiles, verdicts and gates. See docs/quality.md and docs/quality-profile.md."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    every_item,
    fail,
    kept_receipts,
    message_tree,
    new_request_id,
    pairs,
    print_json,
    print_list,
    print_message,
    table,
    transfer,
)

if TYPE_CHECKING:
    from animus.domain.quality import QualityProfile, QualityRule
    from animus.v1 import quality_pb2_grpc

app = typer.Typer(help="Rules, profiles, verdicts and gates.", no_args_is_help=True)
rule_app = typer.Typer(help="Rules: what data has to be like.", no_args_is_help=True)
gate_app = typer.Typer(help="Gates: which rules data must have passed before a run reads it.", no_args_is_help=True)
import_app = typer.Typer(help="Records verdicts of other tools as theirs.", no_args_is_help=True)
app.add_typer(rule_app, name="rule")
app.add_typer(gate_app, name="gate")
app.add_typer(import_app, name="import")

File = Annotated[Path, typer.Argument(help="The file.", metavar="FILE", show_default=False)]
Digest = Annotated[str, typer.Argument(help="Its digest.", metavar="DIGEST", show_default=False)]
DatasetId = Annotated[str, typer.Option("--dataset", help="Id of the dataset.", show_default=False)]
ContentDigest = Annotated[str, typer.Option("--digest", help="Content digest of the version.", show_default=False)]
Name = Annotated[
    list[str] | None,
    typer.Option("--name", help="Only what the file has of this name; needed where it has several. Repeatable."),
]
Filter = Annotated[
    str, typer.Option("--filter", help="Only what meets this condition, as docs/lists.md has it.", show_default=False)
]
OrderBy = Annotated[
    str, typer.Option(help="Fields to order by, each with ' desc' to run backwards.", show_default=False)
]

MAX_RULE_BYTES = 16 << 20
MAX_RESULT_BYTES = 512 << 20


@rule_app.command("register")
def register_rule(
    file: File,
    project: Project,
    token_file: TokenFile = None,
    address: Address = DEFAULT_ADDRESS,
    insecure: Insecure = False,
    request_id: RequestId = "",
    json: AsJson = False,
) -> None:
    """Registers the rule that a YAML or JSON file describes, and prints its digest."""
    from animus.codec import encode
    from animus.sdk.source import call
    from animus.v1 import quality_pb2

    with errors():
        rule = _read_rule(file)
        request = quality_pb2.RegisterQualityRuleRequest(project_id=project, request_id=request_id or new_request_id())
        encode(rule, request.quality_rule)
        with _service(address, token_file, insecure) as service:
            made = call(service.RegisterQualityRule, request)
        print_message(made, json, made.record.digest)


@rule_app.command("show")
def show_rule(
    digest: Digest,
    project: Project,
    token_file: TokenFile = None,
    address: Address = DEFAULT_ADDRESS,
    insecure: Insecure = False,
) -> None:
    """Prints a rule as JSON."""
    from animus.sdk.source import call
    from animus.v1 import quality_pb2

    with errors(), _service(address, token_file, insecure) as service:
        found = call(service.GetQualityRule, quality_pb2.GetQualityRuleRequest(project_id=project, digest=digest))
        print_message(found, True, "")


@rule_app.command("list")
def list_rules(
    project: Project,
    token_file: TokenFile = None,
    address: Address = DEFAULT_ADDRESS,
    insecure: Insecure = False,
    filter_: Filter = "",
    order_by: OrderBy = "",
    json: AsJson = False,
) -> None:
    """Lists the rules of the project."""
    from animus.v1 import quality_pb2

    with errors(), _service(address, token_file, insecure) as service:
        request = quality_pb2.ListQualityRulesRequest(project_id=project, filter=filter_, order_by=order_by)
        rows = every_item(service.ListQualityRules, request, "quality_rules")
        print_list(rows, json, ("rule", "digest"), lambda each: (each.rule_id, each.record.digest))


@app.command()
def profile(
    path: Annotated[Path, typer.Argument(help="The folder, or the single file.", metavar="PATH", show_default=False)],
    dataset: DatasetId,
    project: Annotated[str, typer.Option(envvar="ANIMUS_PROJECT", help="The project, where the server is asked.")] = "",
    token_file: TokenFile = None,
    address: Address = DEFAULT_ADDRESS,
    insecure: Insecure = False,
    rule: Annotated[
        list[str] | None, typer.Option(help="Measure what this rule needs: a file, or a digest. Repeatable.")
    ] = None,
    reference: Annotated[
        list[str] | None,
        typer.Option(help="Make histograms comparable with this profile: a document, or a digest. Repeatable."),
    ] = None,
    metric: Annotated[list[str] | None, typer.Option(help="A value of your own, name=decimal. Repeatable.")] = None,
    memory_limit: Annotated[str, typer.Option(help="What the tables may take of memory; more goes to disk.")] = "1GB",
    scratch: Annotated[
        Path | None, typer.Option(help="Folder for what does not fit; else the system's for temporary files.")
    ] = None,
    register: Annotated[bool, typer.Option("--register", help="Register the profile.")] = False,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File for the document.")] = None,
    request_id: RequestId = "",
) -> None:
    """Measures a table: CSV, Parquet or JSON Lines. Needs the extra `quality`.

    Writes the profile's document to the file, or else to stdout, and its digest to stderr. With --register, the profile
    is registered, and stdout has its digest unless a file takes the document.
    """
    from animus.codec import encode
    from animus.domain.document import seal
    from animus.sdk.files import replace_file
    from animus.sdk.hashing import content
    from animus.sdk.profile import profile as measure
    from animus.sdk.source import call
    from animus.v1 import quality_pb2

    metrics = dict(pairs(metric, "=", "--metric", "name=decimal"))
    with errors():
        rules, references = _asked(rule or [], reference or [], project, address, token_file, insecure)
        with transfer() as step:
            found = content(path, step)
        sealed = seal(
            measure(path, dataset, found, rules, references, metrics, memory_limit=memory_limit, scratch=scratch)
        )
        if output is not None:
            replace_file(output, sealed.document)
        if register:
            _need_project(project)
            request = quality_pb2.RegisterQualityProfileRequest(
                project_id=project, request_id=request_id or new_request_id()
            )
            encode(sealed.value, request.quality_profile)
            with _service(address, token_file, insecure) as service:
                call(service.RegisterQualityProfile, request)
            typer.echo(sealed.digest)
        elif output is None:
            typer.echo(sealed.document, nl=False)
    if not register:
        typer.echo(sealed.digest, err=True)


@app.command()
def evaluate(
    rule: Annotated[str, typer.Option(help="Digest of the rule.", show_default=False)],
    profile: Annotated[str, typer.Option(help="Digest of the profile.", show_default=False)],
    project: Project,
    token_file: TokenFile = None,
    address: Address = DEFAULT_ADDRESS,
    insecure: Insecure = False,
    request_id: RequestId = "",
    json: AsJson = False,
) -> None:
    """Evaluates a rule on a profile, and prints the verdict. Ends with 7 for FAIL and ERROR."""
    from animus.sdk.source import call
    from animus.v1 import quality_pb2

    request = quality_pb2.EvaluateQualityRequest(
        project_id=project, request_id=request_id or new_request_id(), rule_digest=rule, profile_digest=profile
    )
    with errors():
        with _service(address, token_file, insecure) as service:
            made = call(service.EvaluateQuality, request)
        print_message(made, json, "\n".join(_lines(made)))
        if made.verdict not in (quality_pb2.QUALITY_VERDICT_PASS, quality_pb2.QUALITY_VERDICT_WARN):
            raise typer.Exit(FAILED)


@app.command()
def show(
    evaluation: Annotated[str, typer.Argument(help="Digest of the evaluation.", metavar="EVALUATION")],
    project: Project,
    token_file: TokenFile = None,
    address: Address = DEFAULT_ADDRESS,
    insecure: Insecure = False,
    json: AsJson = False,
) -> None:
    """Shows a verdict and what each check came to."""
    from animus.sdk.source import call
    from animus.v1 import quality_pb2

    request = quality_pb2.GetQualityEvaluationRequest(project_id=project, digest=evaluation)
    with errors(), _service(address, token_file, insecure) as service:
        found = call(service.GetQualityEvaluation, request)
        print_message(found, json, "\n".join(_lines(found)))


@app.command("list")
def list_(
    dataset: DatasetId,
    digest: ContentDigest,
    project: Project,
    token_file: TokenFile = None,
    address: Address = DEFAULT_ADDRESS,
    insecure: Insecure = False,
    filter_: Filter = "",
    order_by: OrderBy = "",
    json: AsJson = False,
) -> None:
    """Lists the verdicts on a dataset version, the newest first."""
    from animus.v1 import quality_pb2

    request = quality_pb2.ListQualityEvaluationsRequest(
        project_id=project, dataset_id=dataset, content_digest=digest, filter=filter_, order_by=order_by
    )
    with errors(), _service(address, token_file, insecure) as service:
        rows = every_item(service.ListQualityEvaluations, request, "quality_evaluations")
        heads = ("verdict", "time", "evaluator", "rule", "evaluation")
        print_list(
            rows,
            json,
            heads,
            lambda each: (
                _verdict(each),
                each.evaluate_time.ToJsonString(),
                each.evaluator,
                each.rule_name,
                each.record.digest,
            ),
        )


@import_app.command("great-expectations")
def import_great_expectations(
    file: File,
    dataset: DatasetId,
    digest: ContentDigest,
    project: Project,
    token_file: TokenFile = None,
    address: Address = DEFAULT_ADDRESS,
    insecure: Insecure = False,
    name: Name = None,
    json: AsJson = False,
) -> None:
    """Records the validation results of Great Expectations, one verdict for each suite."""
    from animus.sdk.files import read_file
    from animus.sdk.foreign import great_expectations

    with errors():
        found = great_expectations(read_file(file, MAX_RESULT_BYTES))
        with _service(address, token_file, insecure) as service:
            _record(service, found, project, dataset, digest, name, json)


@import_app.command("dbt")
def import_dbt(
    file: File,
    dataset: DatasetId,
    digest: ContentDigest,
    project: Project,
    token_file: TokenFile = None,
    address: Address = DEFAULT_ADDRESS,
    insecure: Insecure = False,
    manifest: Annotated[
        Path | None, typer.Option(help="manifest.json of the run: says which model each test is of.")
    ] = None,
    name: Name = None,
    json: AsJson = False,
) -> None:
    """Records the tests of a run_results.json of dbt, one verdict for each model."""
    from animus.sdk.files import read_file
    from animus.sdk.foreign import dbt

    with errors():
        found = dbt(read_file(file, MAX_RESULT_BYTES), read_file(manifest, MAX_RESULT_BYTES) if manifest else None)
        with _service(address, token_file, insecure) as service:
            _record(service, found, project, dataset, digest, name, json)


@gate_app.command("set")
def set_gate(
    file: File,
    project: Project,
    token_file: TokenFile = None,
    address: Address = DEFAULT_ADDRESS,
    insecure: Insecure = False,
    request_id: RequestId = "",
    json: AsJson = False,
) -> None:
    """Sets the gate that a YAML or JSON file describes, in place of its pipeline's, and prints its digest."""
    from google.protobuf.json_format import ParseDict, ParseError

    from animus.domain.document import parse_text
    from animus.sdk.files import read_file
    from animus.sdk.source import call
    from animus.v1 import quality_gate_pb2, quality_gate_pb2_grpc

    request = quality_gate_pb2.SetQualityGateRequest(project_id=project, request_id=request_id or new_request_id())
    with errors():
        try:
            ParseDict({"qualityGate": parse_text(read_file(file, MAX_RULE_BYTES))}, request)
        except ParseError as error:
            fail(USAGE, f"{file}: {error}")
        with channel_to(address, token_file, insecure, kept_receipts()) as channel:
            made = call(quality_gate_pb2_grpc.QualityGateServiceStub(channel).SetQualityGate, request)
        print_message(made, json, made.record.digest)


@gate_app.command("show")
def show_gate(
    project: Project,
    pipeline: Annotated[str, typer.Option(help="Name of the pipeline; else the gate of every run.")] = "",
    token_file: TokenFile = None,
    address: Address = DEFAULT_ADDRESS,
    insecure: Insecure = False,
) -> None:
    """Prints the gate that governs, as JSON."""
    from animus.sdk.source import call
    from animus.v1 import quality_gate_pb2, quality_gate_pb2_grpc

    request = quality_gate_pb2.GetQualityGateRequest(project_id=project, pipeline=pipeline)
    with errors(), channel_to(address, token_file, insecure, kept_receipts()) as channel:
        print_message(call(quality_gate_pb2_grpc.QualityGateServiceStub(channel).GetQualityGate, request), True, "")


@gate_app.command("list")
def list_gates(
    project: Project,
    token_file: TokenFile = None,
    address: Address = DEFAULT_ADDRESS,
    insecure: Insecure = False,
    filter_: Filter = "",
    order_by: OrderBy = "",
    json: AsJson = False,
) -> None:
    """Lists every gate that was set."""
    from animus.v1 import quality_gate_pb2, quality_gate_pb2_grpc

    with errors(), channel_to(address, token_file, insecure, kept_receipts()) as channel:
        service = quality_gate_pb2_grpc.QualityGateServiceStub(channel)
        request = quality_gate_pb2.ListQualityGatesRequest(project_id=project, filter=filter_, order_by=order_by)
        print_list(
            every_item(service.ListQualityGates, request, "quality_gates"),
            json,
            ("pipeline", "time", "requirements", "digest"),
            lambda each: (
                each.pipeline or "*",
                each.set_time.ToJsonString(),
                str(len(each.requirements)),
                each.record.digest,
            ),
        )


@contextmanager
def _service(address: str, token_file: Path | None, insecure: bool) -> "Iterator[quality_pb2_grpc.QualityServiceStub]":
    from animus.v1 import quality_pb2_grpc

    with channel_to(address, token_file, insecure, kept_receipts()) as channel:
        yield quality_pb2_grpc.QualityServiceStub(channel)


def _need_project(project: str) -> None:
    if not project:
        fail(USAGE, "no project: give --project or ANIMUS_PROJECT")


def _read_rule(file: Path) -> "QualityRule":
    from animus.domain.quality import load_rule
    from animus.sdk.files import read_file

    return load_rule(read_file(file, MAX_RULE_BYTES))


def _asked(
    rules: list[str], references: list[str], project: str, address: str, token_file: Path | None, insecure: bool
) -> "tuple[list[QualityRule], list[QualityProfile]]":
    """Rules and references, from files or the server; the profiles that the rules name are references too."""
    from animus.codec import decode
    from animus.domain.document import load
    from animus.domain.quality import QualityProfile, QualityRule
    from animus.sdk.files import read_file
    from animus.sdk.source import call
    from animus.v1 import quality_pb2

    def is_digest(text: str) -> bool:
        return text.startswith("sha256:")

    found = [_read_rule(Path(each)) for each in rules if not is_digest(each)]
    profiles = [
        load(read_file(Path(each), MAX_RULE_BYTES), QualityProfile) for each in references if not is_digest(each)
    ]
    asked = [each for each in rules if is_digest(each)]
    wanted = {each for each in references if is_digest(each)} | {d for each in found for d in each.references()}
    if not asked and not wanted:
        return found, profiles
    _need_project(project)
    with _service(address, token_file, insecure) as service:
        for digest in asked:
            rule = call(service.GetQualityRule, quality_pb2.GetQualityRuleRequest(project_id=project, digest=digest))
            rule.ClearField("record")
            found.append(decode(rule, QualityRule, "qualityRule"))
            wanted |= set(found[-1].references())
        for digest in sorted(wanted):
            request = quality_pb2.GetQualityProfileRequest(project_id=project, digest=digest)
            profile = call(service.GetQualityProfile, request)
            profile.ClearField("record")
            profiles.append(decode(profile, QualityProfile, "qualityProfile"))
    return found, profiles


def _record(
    service: "quality_pb2_grpc.QualityServiceStub",
    found: Any,
    project: str,
    dataset: str,
    digest: str,
    names: list[str] | None,
    json: bool,
) -> None:
    """Records what another tool said of one dataset version."""
    from animus.codec import encode
    from animus.sdk.source import call
    from animus.v1 import quality_pb2

    there = [each.rule_name for each in found]
    if unknown := [name for name in names or () if name not in there]:
        fail(USAGE, f"the file has no {unknown[0]}: it has {', '.join(there)}")
    if len(found) > 1 and not names:
        fail(USAGE, f"the file has {', '.join(there)}: say by --name which are of this dataset version")
    made = []
    for each in found:
        if names and each.rule_name not in names:
            continue
        request = quality_pb2.RecordForeignEvaluationRequest(project_id=project, request_id=new_request_id())
        encode(each, request.quality_evaluation)
        request.quality_evaluation.dataset_id = dataset
        request.quality_evaluation.content_digest = digest
        made.append(call(service.RecordForeignEvaluation, request))
    if json:
        print_json([message_tree(each) for each in made])
        return
    for each in made:
        typer.echo(f"{_verdict(each)} {each.rule_name} {each.record.digest}")


def _verdict(evaluation: Any) -> str:
    from animus.v1 import quality_pb2

    return quality_pb2.QualityVerdict.Name(evaluation.verdict).removeprefix("QUALITY_VERDICT_")


def _lines(evaluation: Any) -> list[str]:
    """A verdict for people: what it is of, and a line for each check."""
    from animus.v1 import quality_pb2

    lines = [f"{_verdict(evaluation)} {evaluation.rule_name} {evaluation.record.digest}"]
    rows = [
        (
            quality_pb2.QualityOutcome.Name(each.outcome).removeprefix("QUALITY_OUTCOME_"),
            each.check,
            quality_pb2.QualitySeverity.Name(each.severity).removeprefix("QUALITY_SEVERITY_"),
            each.observed,
            each.reason,
        )
        for each in evaluation.results
    ]
    return lines + (table([("", "check", "severity", "observed", ""), *rows]) if rows else [])
