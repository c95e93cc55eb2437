"""Verdicts of other tools, from the files that they write: Great Expectations 0.18 and 1, and dbt.

They are taken as they stand and judged by nothing of ours. What each outcome of a tool becomes is said here and in
docs/quality-profile.md.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from animus.codec import sha256
from animus.domain.errors import Invalid, invalid
from animus.domain.quality import QualityOutcome, QualityResult, QualitySeverity, QualityVerdict, verdict_of

GREAT_EXPECTATIONS = "great-expectations"
DBT = "dbt"
WITHOUT_MANIFEST = "tests"  # what the tests of a dbt run are called where no manifest says of what they are

Tree = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ForeignEvaluation:
    """What another tool said, without the dataset version that it said it of."""

    rule_digest: str  # of the checks as they stand in the file, as sorted JSON
    rule_name: str
    profile_digest: str  # of the file
    evaluator: str
    evaluator_version: str
    verdict: QualityVerdict
    results: tuple[QualityResult, ...]


def great_expectations(text: bytes) -> list[ForeignEvaluation]:
    """One evaluation for each validation result in a file: of a validation, or of a checkpoint.

    A check that raised is an ERROR. Severity `critical`, or none, is ERROR; others are WARN. Raises Invalid for what is
    no such file.
    """
    tree = _object(_parse(text), "")
    if "run_results" in tree:
        found = []
        for key, each in _object(tree["run_results"], "run_results").items():
            result = _object(each, f"run_results[{key}]")
            found.append(_object(result.get("validation_result", result), f"run_results[{key}]"))
    elif "validation_results" in tree:
        raise invalid("file", "is the description of a checkpoint, without suites: save its validation results instead")
    else:
        found = [tree]
    return [_suite(each, text) for each in found]


def _suite(tree: Tree, text: bytes) -> ForeignEvaluation:
    meta = _object(tree.get("meta"), "meta")
    name = _text(tree.get("suite_name") or meta.get("expectation_suite_name"), "meta.expectation_suite_name")
    version = _text(meta.get("great_expectations_version"), "meta.great_expectations_version")
    checks: list[tuple[str, Tree, Tree]] = []
    for index, each in enumerate(_list(tree.get("results"), "results")):
        result = _object(each, f"results[{index}]")
        path = f"results[{index}].expectation_config"
        config = _object(result.get("expectation_config"), path)
        kind = _text(config.get("type") or config.get("expectation_type"), f"{path}.type")
        arguments = {key: value for key, value in _object(config.get("kwargs"), path).items() if key != "batch_id"}
        rule = {"type": kind, "kwargs": arguments, "severity": config.get("severity"), "meta": config.get("meta")}
        column = arguments.get("column")
        checks.append((f"{kind} {column}" if isinstance(column, str) else kind, rule, result))
    checks.sort(key=lambda check: (check[0], _canonical(check[1])))
    names = _distinct(name for name, _, _ in checks)
    results = tuple(_expectation(name, rule, result) for name, (_, rule, result) in zip(names, checks, strict=True))
    rules = [rule for _, rule, _ in checks]
    return _evaluation({"suite": name, "expectations": rules}, name, text, GREAT_EXPECTATIONS, version, results)


def _expectation(name: str, rule: Tree, result: Tree) -> QualityResult:
    raised = _raised(result.get("exception_info"))
    outcome = QualityOutcome.PASS if result.get("success") is True else QualityOutcome.FAIL
    if raised is not None:
        outcome = QualityOutcome.ERROR
    said = result.get("result") if isinstance(result.get("result"), dict) else {}
    observed = ""
    if said and said.get("observed_value") is not None:
        observed = json.dumps(said["observed_value"], ensure_ascii=False, sort_keys=True)
    elif said and said.get("unexpected_count") is not None:
        observed = f"{said['unexpected_count']} of {said.get('element_count')} unexpected"
    reason = "" if outcome is QualityOutcome.PASS else raised or "the expectation was not met"
    grave = rule["severity"] in (None, "critical")
    severity = QualitySeverity.ERROR if grave else QualitySeverity.WARN
    return QualityResult(name, severity, outcome, _clean(observed), _clean(reason))


def _raised(info: object) -> str | None:
    """What was raised, if anything: version 1 has one entry for each metric, 0.18 one in all."""
    if not isinstance(info, dict):
        return None
    for each in (info, *(each for each in info.values() if isinstance(each, dict))):
        if each.get("raised_exception") is True:
            return str(each.get("exception_message") or "an exception was raised")
    return None


def dbt(text: bytes, manifest: bytes | None) -> list[ForeignEvaluation]:
    """One evaluation for the tests of each model, source or seed; without a manifest, one for all tests.

    `pass` is PASS; `fail` and `warn` are FAIL, the latter of severity WARN; `error`, `skipped` and any other are ERROR.
    Else the severity is that of the manifest, or ERROR. Raises Invalid for what is no such file.
    """
    tree = _object(_parse(text), "")
    version = _text(_object(tree.get("metadata"), "metadata").get("dbt_version"), "metadata.dbt_version")
    nodes = _object(_object(_parse(manifest), "").get("nodes"), "nodes") if manifest is not None else {}
    groups: dict[str, list[tuple[str, Tree, Tree]]] = {}
    for index, each in enumerate(_list(tree.get("results"), "results")):
        result = _object(each, f"results[{index}]")
        name = _text(result.get("unique_id"), f"results[{index}].unique_id")
        if not name.startswith(("test.", "unit_test.")):
            continue
        if manifest is None or name.startswith("unit_test."):  # of code, and not of data
            if manifest is None and name.startswith("test."):
                groups.setdefault(WITHOUT_MANIFEST, []).append((name, {}, result))
            continue
        if name not in nodes:
            raise invalid("manifest", f"is of another run: it has no {name}")
        node = _object(nodes[name], f"nodes[{name}]")
        groups.setdefault(_tested(node, name), []).append((name, node, result))
    if not groups:
        raise invalid("file", "holds no result of a test of data")
    return [
        _model(name, sorted(tests, key=lambda test: test[0]), text, version) for name, tests in sorted(groups.items())
    ]


def _tested(node: Tree, name: str) -> str:
    """What a test is of; a test of several things is its own group."""
    attached = node.get("attached_node")
    if isinstance(attached, str):
        return attached
    on = _object(node.get("depends_on"), f"nodes[{name}].depends_on").get("nodes")
    return on[0] if isinstance(on, list) and len(on) == 1 and isinstance(on[0], str) else name


RULE_FIELDS = ("unique_id", "test_metadata", "column_name", "raw_code")
RULE_SETTINGS = ("severity", "where", "limit", "fail_calc", "warn_if", "error_if")


def _model(name: str, tests: list[tuple[str, Tree, Tree]], text: bytes, version: str) -> ForeignEvaluation:
    results, rules = [], []
    for test, node, result in tests:
        config = node.get("config") if isinstance(node.get("config"), dict) else {}
        settings = {key: config[key] for key in RULE_SETTINGS if key in config} if config else {}
        rules.append({"unique_id": test, **{key: node[key] for key in RULE_FIELDS if key in node}, "config": settings})
        status = result.get("status")
        warns = status == "warn" or str(settings.get("severity")).lower() == "warn"
        outcome = {"pass": QualityOutcome.PASS, "fail": QualityOutcome.FAIL, "warn": QualityOutcome.FAIL}.get(
            str(status), QualityOutcome.ERROR
        )
        failures = result.get("failures")
        results.append(
            QualityResult(
                test[:500],
                QualitySeverity.WARN if warns else QualitySeverity.ERROR,
                outcome,
                "" if failures is None else _clean(str(failures)),
                "" if outcome is QualityOutcome.PASS else _clean(str(result.get("message") or status)),
            )
        )
    return _evaluation({"node": name, "tests": rules}, name, text, DBT, version, tuple(results))


def _evaluation(
    rule: Tree, name: str, text: bytes, evaluator: str, version: str, results: tuple[QualityResult, ...]
) -> ForeignEvaluation:
    return ForeignEvaluation(
        rule_digest=sha256(_canonical(rule)),
        rule_name=name[:200],
        profile_digest=sha256(text),
        evaluator=evaluator,
        evaluator_version=version[:100],
        verdict=verdict_of(results),
        results=results,
    )


def _canonical(tree: object) -> bytes:
    """Sorted, compact JSON in UTF-8; not the canonical form of our documents, which has no fractions."""
    try:
        return json.dumps(tree, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
    except ValueError:
        raise invalid("file", "judges by NaN, an infinity, or text that is no Unicode") from None


def _parse(text: bytes) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise invalid("file", "is no JSON") from None


def _object(tree: object, path: str) -> Tree:
    if not isinstance(tree, dict):
        raise _other(path)
    return tree


def _list(tree: object, path: str) -> list[object]:
    if not isinstance(tree, list):
        raise _other(path)
    return tree


def _text(tree: object, path: str) -> str:
    if not isinstance(tree, str) or not tree:
        raise _other(path)
    return tree


def _other(path: str) -> Invalid:
    return invalid("file", f"is no result of this tool: {path or 'the whole'} is missing or of another type")


def _distinct(names: Iterable[str]) -> list[str]:
    """The names, the second and later of the same with their number."""
    seen: dict[str, int] = {}
    found = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        found.append(name[:490] if seen[name] == 1 else f"{name[:490]} #{seen[name]}")
    return found


def _clean(text: str) -> str:
    """At most a thousand characters, without controls."""
    return "".join(character if character.isprintable() else " " for character in text)[:1_000]
