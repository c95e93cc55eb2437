"""Verdicts of other tools, read from files that these tools wrote (tests/vectors/quality)."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from animus.domain.document import digest
from animus.domain.errors import Invalid
from animus.sdk.foreign import ForeignEvaluation, dbt, great_expectations

VECTORS = Path(__file__).parents[1] / "vectors" / "quality"


def read(name: str) -> bytes:
    """A file of another tool."""
    return (VECTORS / name).read_bytes()


def outcomes(evaluation: ForeignEvaluation) -> dict[str, tuple[str, str, str]]:
    """Severity, outcome and what was observed, by check."""
    return {each.check: (str(each.severity), str(each.outcome), each.observed) for each in evaluation.results}


def test_a_checkpoint_of_great_expectations_0_18_is_read() -> None:
    """One verdict for the suite, of checks that all weigh the same; the file's digest is what it answered with."""
    text = read("great-expectations-0.18-checkpoint.json")
    (found,) = great_expectations(text)
    assert (found.rule_name, found.evaluator, found.evaluator_version) == (
        "orders_suite",
        "great-expectations",
        "0.18.22",
    )
    assert (str(found.verdict), found.profile_digest) == ("fail", digest(text))
    assert outcomes(found) == {
        "expect_column_values_to_be_between amount": ("error", "fail", "1 of 4 unexpected"),
        "expect_column_values_to_be_unique id": ("error", "pass", "0 of 4 unexpected"),
        "expect_column_values_to_not_be_null state": ("error", "fail", "1 of 4 unexpected"),
    }


def test_a_validation_of_great_expectations_1_is_read() -> None:
    """Severities below critical are warnings; what raised has no answer."""
    (found,) = great_expectations(read("great-expectations-1-validation.json"))
    assert (found.rule_name, found.evaluator_version, str(found.verdict)) == ("orders_suite", "1.24.1", "error")
    said = outcomes(found)
    assert said["expect_column_mean_to_be_between missing"] == ("error", "error", "")
    assert said["expect_column_values_to_be_between amount"] == ("warn", "fail", "1 of 4 unexpected")
    assert any("does not exist" in each.reason for each in found.results)


def changed(name: str, change: Callable[[Any], None]) -> bytes:
    """A file of another tool, changed."""
    tree = json.loads(read(name))
    change(tree)
    return json.dumps(tree).encode()


def test_a_rule_digest_is_of_the_checks_alone() -> None:
    """Other results and ids of the same suite have the same rule; another bound is another rule."""
    name = "great-expectations-1-validation.json"
    (one,) = great_expectations(read(name))

    def rerun(tree: Any) -> None:
        tree["results"].reverse()
        for each in tree["results"]:
            each["expectation_config"]["kwargs"]["batch_id"] = "other"
            each["expectation_config"]["id"] = "other"
            each["success"] = True
            each["exception_info"] = {"raised_exception": False}

    (two,) = great_expectations(changed(name, rerun))
    assert (two.rule_digest, str(two.verdict)) == (one.rule_digest, "pass")
    assert two.profile_digest != one.profile_digest

    def bound(tree: Any) -> None:
        tree["results"][3]["expectation_config"]["kwargs"]["max_value"] = 51

    (three,) = great_expectations(changed(name, bound))
    assert three.rule_digest != one.rule_digest


def test_the_same_expectation_twice_has_two_names() -> None:
    """Names of checks are distinct, in an order that the file's does not change."""
    (found,) = great_expectations(
        changed("great-expectations-1-validation.json", lambda tree: tree["results"].append(tree["results"][0]))
    )
    assert [each.check for each in found.results][:2] == [
        "expect_column_mean_to_be_between missing",
        "expect_column_mean_to_be_between missing #2",
    ]


def test_tests_of_dbt_are_read_by_model() -> None:
    """pass, fail and warn as they are; error and skipped have no answer; what only warns is a warning."""
    orders, states = dbt(read("dbt-run-results.json"), read("dbt-manifest.json"))
    assert (orders.rule_name, orders.evaluator, orders.evaluator_version) == ("model.shop.orders", "dbt", "1.10.23")
    assert str(orders.verdict) == "error"
    assert {name.split(".")[2]: each for name, each in outcomes(orders).items()} == {
        "accepted_values_orders_state__a__b": ("warn", "fail", "1"),
        "not_null_orders_id": ("error", "pass", "0"),
        "not_null_orders_missing": ("error", "error", ""),
        "not_null_orders_state": ("error", "fail", "1"),
        "unique_orders_id": ("error", "pass", "0"),
    }
    assert (states.rule_name, str(states.verdict)) == ("model.shop.states", "warn")
    assert [each.reason for each in states.results] == ["skipped"]


def test_tests_of_dbt_without_a_manifest_are_one_group() -> None:
    """Of what they are, and how much they weigh, the results alone do not say: a warning is known by its status."""
    (found,) = dbt(read("dbt-run-results.json"), None)
    assert (found.rule_name, len(found.results), str(found.verdict)) == ("tests", 6, "error")
    assert [str(each.severity) for each in found.results].count("warn") == 1


@pytest.mark.parametrize(
    ("tool", "text", "why"),
    [
        ("gx", b"x", "no JSON"),
        ("gx", b"[" * 100_000, "no JSON"),
        ("gx", b"[]", "the whole"),
        ("gx", b"{}", "meta"),
        ("gx", read("great-expectations-1-description.json"), "description"),
        ("gx", read("dbt-run-results.json"), "meta is missing"),
        ("dbt", read("great-expectations-1-validation.json"), "metadata"),
        ("dbt", b'{"metadata": {"dbt_version": "1"}, "results": []}', "no result of a test"),
        ("dbt", b'{"metadata": {"dbt_version": "1"}, "results": [1]}', r"results\[0\]"),
    ],
)
def test_what_is_no_result_of_the_tool_is_refused(tool: str, text: bytes, why: str) -> None:
    """With the place that is missing or of another type."""
    with pytest.raises(Invalid, match=why):
        great_expectations(text) if tool == "gx" else dbt(text, None)


def test_a_manifest_of_another_run_is_refused() -> None:
    """A test that it lacks is named."""
    with pytest.raises(Invalid, match="another run"):
        dbt(read("dbt-run-results.json"), b'{"nodes": {}}')
