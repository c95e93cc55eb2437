"""`animus quality` against the real server: from a file and a rule to a verdict, and verdicts of other tools."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from service.conftest import Server
from service.requests import dataset, version
from service.shared import served
from sqlalchemy.ext.asyncio import AsyncEngine

from animus.domain.document import load
from animus.domain.quality import QualityProfile
from animus.sdk.hashing import content
from animus.store.embedded import EmbeddedPostgres
from cli.conftest import Animus, Command, command

VECTORS = Path(__file__).parents[1] / "vectors" / "quality"

RULE = """
ruleId: shop
description: what orders are like
labels: []
checks:
  - {name: enough, severity: error, type: row_count, minimum: "3"}
  - {name: state, severity: error, type: allowed_fraction, column: state, values: [a, b], minimum: "0.9"}
"""


GATE = f"""
pipeline: train
overrideAllowed: true
requirements:
  - {{datasetRef: "", datasetId: data, ruleDigest: "sha256:{"1" * 64}", evaluator: dbt}}
"""


@pytest.fixture(scope="module")
def orders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table that the rule fails."""
    path = tmp_path_factory.mktemp("orders") / "orders.csv"
    path.write_text("id,state\n1,a\n2,b\n3,x\n")
    return path


@pytest.fixture(scope="module")
async def server(
    postgres: EmbeddedPostgres,
    admin: AsyncEngine,
    template: str,
    tmp_path_factory: pytest.TempPathFactory,
    orders: Path,
) -> AsyncIterator[Server]:
    """The server of these tests, with a project `p` that has the table as a dataset version."""
    async with served(postgres, admin, template, tmp_path_factory.mktemp("data")) as found:
        await found.project("p")
        await found.admin("CreateDataset", dataset())
        request = version("p", content(orders).digest)
        request.dataset_version.size_bytes = orders.stat().st_size
        await found.admin("RegisterDatasetVersion", request)
        yield found


@pytest.fixture
async def quality(server: Server, tmp_path: Path) -> Command:
    """Runs `animus quality` in a process of its own, as an operator of the project."""
    return command(server, (await server.caller("p", "operator")).token, tmp_path, "quality")


async def test_a_table_is_profiled_and_judged(quality: Command, orders: Path, tmp_path: Path) -> None:
    """A rule is registered, a profile measured for it and registered, and a verdict of FAIL ends with 7."""
    file = tmp_path / "rule.yaml"
    file.write_text(RULE)
    done = await quality("rule", "register", file)
    assert done.code == 0, done
    rule = done.out.strip()
    document = tmp_path / "profile.json"
    done = await quality(
        *("profile", orders, "--dataset", "data", "--rule", rule, "--metric", "share=0.5", "--register"),
        *("--output", document),
    )
    assert (done.code, done.err) == (0, ""), done
    profile = done.out.strip()
    assert load(document.read_bytes(), QualityProfile).content_digest == content(orders).digest
    judged = await quality("evaluate", "--rule", rule, "--profile", profile)
    assert judged.code == 7, judged
    assert judged.out.startswith("FAIL shop sha256:")
    assert "0.666666666667 is below the minimum 0.9" in judged.out
    evaluation = judged.out.split()[2]
    shown = await quality("show", evaluation, "--json")
    assert (shown.json["verdict"], shown.json["ruleDigest"]) == ("QUALITY_VERDICT_FAIL", rule)
    of_version = ("--dataset", "data", "--digest", content(orders).digest)
    listed = await quality("list", *of_version)
    assert [line.split()[0] for line in listed.out.splitlines()][:2] == ["verdict", "FAIL"]
    passed = await quality("list", *of_version, "--filter", "verdict = QUALITY_VERDICT_PASS", "--json")
    assert passed.json == []
    wrong = await quality("gate", "list", "--order-by", "nothing")
    assert wrong.code != 0
    assert "orderBy" in wrong.err
    assert (await quality("rule", "list", "--filter", "rule_id = nothing", "--json")).json == []
    rules = await quality("rule", "list", "--order-by", "create_time desc")
    assert rules.out.splitlines()[1].split() == ["shop", rule]
    assert (await quality("rule", "show", rule)).json["ruleId"] == "shop"


async def test_verdicts_of_other_tools_are_recorded_as_theirs(quality: Command, orders: Path) -> None:
    """One for each suite or model; where a file has several, which are of this version has to be said."""
    place = ("--dataset", "data", "--digest", content(orders).digest)
    done = await quality(
        "import", "great-expectations", VECTORS / "great-expectations-1-validation.json", *place, "--json"
    )
    assert done.code == 0, done
    assert [(each["evaluator"], each["verdict"]) for each in done.json] == [
        ("great-expectations", "QUALITY_VERDICT_ERROR")
    ]
    words = ("import", "dbt", VECTORS / "dbt-run-results.json", *place, "--manifest", VECTORS / "dbt-manifest.json")
    several = await quality(*words)
    assert (several.code, "model.shop.orders, model.shop.states" in several.err) == (2, True)
    one = await quality(*words, "--name", "model.shop.states")
    assert one.out.startswith("WARN model.shop.states sha256:"), one


async def test_a_gate_is_set_by_an_admin_and_shown(server: Server, quality: Command, tmp_path: Path) -> None:
    """From a file, as the contract spells it; an operator may not; a field that it lacks is named."""
    file = tmp_path / "gate.yaml"
    file.write_text(GATE)
    denied = await quality("gate", "set", file)
    assert denied.code == 4, denied
    as_admin = command(server, (await server.caller("p", "admin")).token, tmp_path, "quality")
    done = await as_admin("gate", "set", file)
    assert (done.code, done.err) == (0, ""), done
    shown = (await quality("gate", "show", "--pipeline", "train")).json
    assert (shown["record"]["digest"], shown["overrideAllowed"]) == (done.out.strip(), True)
    listed = await quality("gate", "list", "--filter", "pipeline = train")
    assert [line.split()[0] for line in listed.out.splitlines()] == ["pipeline", "train"]
    assert (await quality("gate", "show")).code == 3
    file.write_text(GATE.replace("overrideAllowed: true", ""))
    lacking = await as_admin("gate", "set", file)
    assert (lacking.code, "qualityGate.overrideAllowed" in lacking.err) == (2, True), lacking


def test_a_profile_needs_no_server(animus: Animus, orders: Path, tmp_path: Path) -> None:
    """With a rule from a file nothing is asked of a server; the document goes to stdout, its digest to stderr."""
    file = tmp_path / "rule.yaml"
    file.write_text(RULE)
    done = animus("quality", "profile", orders, "--dataset", "data", "--rule", file)
    assert done.code == 0, done
    assert (done.json["rowCount"], done.json["columns"][1]["values"][2]) == (3, {"count": 1, "value": "x"})
    assert done.err.startswith("sha256:")


@pytest.mark.parametrize(
    ("words", "code", "why"),
    [
        (("--metric", "share"), 2, "no name=decimal"),
        (("--metric", "share=1e5"), 2, "no decimal"),
        (("--rule", f"sha256:{'0' * 64}"), 2, "no project"),
        (("--rule", "absent.yaml"), 1, "is missing"),
        (("--register",), 2, "no project"),
        (("--memory-limit", "much"), 2, "memoryLimit"),
    ],
)
def test_what_cannot_be_measured_is_said(
    animus: Animus, orders: Path, words: tuple[str, ...], code: int, why: str
) -> None:
    """By one line, and the exit code of its kind."""
    done = animus("quality", "profile", orders, "--dataset", "data", *words)
    assert (done.code, why in done.err, len(done.err.splitlines())) == (code, True, 1), done
