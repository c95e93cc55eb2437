"""The gates of a run are applied again: what does not follow is found, whichever digests were made to fit."""

import dataclasses
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from animus.domain.audit import AuditOutcome
from verify import bundles
from verify.bundles import OUTSIDER, Alter, Change, Quality, World, bagged, digest_of
from verify.conftest import Verify
from verify.test_verify_mutations import GOOD, records
from verify.test_verify_run import other

REASON = "the owner\naccepts \x1b[1mit"
WORLDS = {
    "passing": (Quality(), "pass, evaluated again", "pass, taken as recorded"),
    "warned": (Quality("warn"), "warn, evaluated again", "pass, taken as recorded"),
    "overridden": (Quality("fail", reason=REASON), "fail, evaluated again", "pass, taken as recorded"),
    "foreign and failed": (Quality(foreign="fail", reason=REASON), "pass, evaluated again", "fail, taken as recorded"),
    "not evaluated": (Quality(foreign="", reason=REASON), "pass, evaluated again", "no verdict"),
    "both refuse": (Quality("fail", "", REASON), "fail, evaluated again", "no verdict"),
}


@pytest.mark.parametrize("name", WORLDS)
def test_each_gate_check_and_an_override_are_reported(name: str, verify: Verify) -> None:
    """A line for each check says whose verdict it is, and one says who let the run in, and why; for machines too."""
    quality, own, foreign = WORLDS[name]
    files = World(quality=quality).run_bundle()
    code, text = verify(files)
    lines = [line for line in text.split("\n") if "gate check" in line]
    assert (code, len(lines)) == (11, 2)
    for found, evaluator in ((own, "animus"), (foreign, "dbt")):
        outcome = "admitted" if found.startswith(("pass", "warn")) else "refused"
        assert any(f"gate check {outcome}: {found}, by {evaluator} and rule sha256:" in line for line in lines)
    overrides = [line for line in text.split("\n") if "OVERRIDE" in line]
    assert [line.split("past the gates: ")[1] for line in overrides] == (
        ["the owner\\naccepts \\x1b[1mit"] if quality.reason else []
    )
    tree = json.loads(verify(files, "--json")[1])
    assert len([each for each in tree["checked"] if "gate check" in each]) == 2
    assert [each.endswith(REASON) for each in tree["overridden"]] == [True] * len(overrides)


def test_the_log_of_a_gated_run_is_a_log(verify: Verify) -> None:
    """A log bundle has every gate and every evaluation, and is checked as any other."""
    assert verify(World(quality=Quality()).log_bundle())[0] == 11


@pytest.mark.parametrize("kind", ["admission_refusal", "run", "quality_gate"])
def test_a_refusal_may_record_why_and_nothing_else(kind: str, verify: Verify) -> None:
    """An entry of a run that a gate refused has one record; no other is written by what was refused."""
    world = World()
    world.book.write("run.create", "x", ({"schema": f"animus.{kind}/v1"},), outcome=AuditOutcome.REFUSED)
    world.size = len(world.book.entries)
    expected = 11 if kind == "admission_refusal" else 30
    assert [verify(files)[0] for files in (world.run_bundle(), world.log_bundle())] == [expected, expected]


# Whatever a server says otherwise, with every digest made to fit.
Place = tuple[str, tuple[str | int, ...]]


def places(node: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The path of each leaf."""
    below: Any = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else None
    if below is None:
        yield path
        return
    for key, value in below:
        yield from places(value, (*path, key))


def leaf(node: Any, path: tuple[str | int, ...]) -> Any:
    """The leaf at a path."""
    return leaf(node[path[0]], path[1:]) if path else node


def planted(node: Any, path: tuple[str | int, ...]) -> Any:
    """A tree with the leaf at a path changed."""
    if not path:
        return (not node) if isinstance(node, bool) else other(node) if node != "" else "x"
    changed = dict(enumerate(node)) if isinstance(node, list) else dict(node)
    changed[path[0]] = planted(node[path[0]], path[1:])
    return list(changed.values()) if isinstance(node, list) else changed


def found(quality: Quality) -> dict[str, Place]:
    """By its path as text: the leaves of each document that the gates rest on, and of the admission."""
    leaves: dict[str, Place] = {}

    def note(what: str, tree: Any) -> Any:
        for path in places(tree):
            text = ".".join([what, *map(str, path)])
            is_empty = what == "rule" and "checks" in path and not leaf(tree, path)  # of another type of check
            if (what != "run" or "gate" in text or "override" in text) and not is_empty:
                leaves[text] = (what, path)
        return tree

    World(quality=dataclasses.replace(quality, alter=note))
    first: dict[str, str] = {}  # of a list the first item that has the leaf
    for text in leaves:
        first.setdefault(re.sub(r"\.\d+", "[]", text), text)
    return {text: leaves[text] for text in first.values()}


def altering(what: str, path: tuple[str | int, ...]) -> Alter:
    """Changes one leaf of one document, before its digest is made."""
    return lambda found, tree: planted(tree, path) if found == what else tree


REFUSED = Quality("fail", "fail", "reason")
LEAVES = found(REFUSED)
# What a person, a profiler or another tool says as it likes, and what was measured and no check asks for.
FREE = re.compile(
    r"rule\.description|(profile|reference)\.(profiler|sizeBytes)|reference\.(rowCount|datasetId|contentDigest)"
    r"|profile\.columns\.[01]\.type|reference\.columns\.\d\.(type|nullCount)|evaluation\.results\.\d\.reason"
    r"|foreign\.(ruleName|profileDigest|evaluatorVersion|results\.0\.(check|observed|reason))"
    r"|run\.admission\.overrideReason"
    r"|rule\.checks\.0\.maximum"  # 3600 and 3601 seconds are above a minute
)


def fits(text: str, verify: Verify) -> int:
    """The verdict on a world that has one leaf changed."""
    what, path = LEAVES[text]
    quality = dataclasses.replace(REFUSED, alter=altering(what, path))
    code, report = verify(World(succeed=False, quality=quality).run_bundle())
    assert code == 11 or report.count("\n") == 1, report
    return code


def is_free(text: str) -> bool:
    """Whether nothing follows from it."""
    return bool(FREE.fullmatch(text))


@pytest.mark.parametrize("text", [text for text in LEAVES if not is_free(text)])
def test_a_document_that_does_not_follow_is_found(text: str, verify: Verify) -> None:
    """Each field of gate, rule, profile, evaluation and admission changed, and cited by the digest that it then has."""
    assert fits(text, verify) in (20, 30, 40)


@pytest.mark.parametrize("text", [text for text in LEAVES if is_free(text)])
def test_what_nothing_follows_from_is_free(text: str, verify: Verify) -> None:
    """So the changes above are found for what they are."""
    assert fits(text, verify) == 11


# What a change of one leaf does not show.
NOT_OVERRIDDEN = {
    "our verdict": Quality("fail"),
    "the other tool's": Quality(foreign="fail"),
    "no verdict": Quality(foreign=""),
    "a reason for nothing": Quality(reason="nothing refuses"),
    "another action": Quality("fail", reason="r", action="run.create"),
    "a replay": Quality("fail", reason="r", action="run.replay"),
}


@pytest.mark.parametrize("name", NOT_OVERRIDDEN)
def test_a_run_that_a_gate_refuses_needs_an_override(name: str, verify: Verify) -> None:
    """An override needs a gate that refuses, and the action for it."""
    assert verify(World(quality=NOT_OVERRIDDEN[name]).run_bundle())[0] == 30


@pytest.mark.parametrize("allowed", [(True, True), (True, False), (False, True), (False, False)])
def test_each_gate_that_refuses_has_to_allow_the_override(allowed: tuple[bool, bool], verify: Verify) -> None:
    """Where only one refuses, the other need not."""
    gates = dict(zip(("gate", "pipeline gate"), allowed, strict=True))

    def alter(what: str, tree: Any) -> Any:
        return tree | {"overrideAllowed": gates[what]} if what in gates else tree

    both = World(quality=Quality("fail", "fail", "r", alter=alter))
    assert verify(both.run_bundle())[0] == (11 if all(allowed) else 30)
    one = World(quality=Quality("fail", "pass", "r", alter=alter))
    assert verify(one.run_bundle())[0] == (11 if allowed[0] else 30)


def two_gates(second: dict[str, Any]) -> World:
    """Both gates ask the same, the pipeline's in two requirements; its check has something else in it."""
    made: dict[str, Any] = {}

    def alter(what: str, tree: Any) -> Any:
        if what == "pipeline gate":
            asked = made["gate"]["requirements"][0]
            tree = tree | {"requirements": [asked, asked | {"datasetRef": "data"}]}
        elif what == "run":
            (check,) = (each for each in tree["admission"]["gateChecks"] if each["evaluator"] == "animus")
            checks = [check, check | {"gateDigest": digest_of(made["pipeline gate"])} | second]
            tree = tree | {"admission": tree["admission"] | {"gateChecks": sorted(checks, key=str)}}
            tree["admission"]["gateChecks"].sort(key=lambda each: str(each["gateDigest"]))
        return made.setdefault(what, tree)

    return World(quality=Quality(foreign="", alter=alter))


def test_what_gates_ask_twice_is_one_check_of_each(verify: Verify) -> None:
    """A requirement of any dataset_ref and one of this ask the same; two gates have a check each, with one verdict."""
    code, text = verify(two_gates({}).run_bundle())
    assert (code, text.count("gate check admitted: pass, evaluated again")) == (11, 2)
    for second in ({"evaluationDigest": "", "verdict": "", "outcome": "refused"}, {"evaluationDigest": ""}):
        assert verify(two_gates(second).run_bundle())[0] == 30


def test_a_gate_without_requirements_asks_nothing(verify: Verify) -> None:
    """It was set to lift the one before."""

    def alter(what: str, tree: Any) -> Any:
        if what == "pipeline gate":
            return tree | {"requirements": []}
        if what == "run":
            checks = [each for each in tree["admission"]["gateChecks"] if each["evaluator"] == "animus"]
            return tree | {"admission": tree["admission"] | {"gateChecks": checks}}
        return tree

    assert verify(World(quality=Quality(foreign="", alter=alter)).run_bundle())[0] == 11


def test_two_gates_of_one_pipeline_do_not_hold_at_once(verify: Verify) -> None:
    """Only the newest governs."""

    def alter(what: str, tree: Any) -> Any:
        return tree | {"pipeline": ""} if what == "pipeline gate" else tree

    assert verify(World(quality=Quality(alter=alter)).run_bundle())[0] == 30


def test_a_gate_that_the_run_does_not_cite_has_no_place(verify: Verify) -> None:
    """A gate in the bundle that is left out of the admission is noticed; one that is in neither cannot be."""

    def alter(what: str, tree: Any) -> Any:
        if what != "run":
            return tree
        checks = [each for each in tree["admission"]["gateChecks"] if each["evaluator"] == "animus"]
        gates = [each["gateDigest"] for each in checks]
        return tree | {"admission": tree["admission"] | {"gateChecks": checks, "gates": gates}}

    world = World(quality=Quality(foreign="", alter=alter))
    assert verify(world.run_bundle())[0] == 30
    world.quality.pop()  # the gate of the pipeline, which was set last
    code, text = verify(world.run_bundle())
    assert (code, "not shown  that no other gate" in text) == (11, True)


class Late(World):
    """A world in which one document is registered only after another, or after the run was created."""

    def __init__(self, held: str, until: str, quality: Quality) -> None:
        self.held, self.until, self.holding = held, until, list[tuple[Quality, str, dict[str, Any]]]()
        super().__init__(quality=quality)

    def _registered(self, quality: Quality, what: str, tree: dict[str, Any]) -> dict[str, Any]:
        if what == self.held:
            self.holding.append((quality, what, tree))
            return tree
        found = super()._registered(quality, what, tree)
        if what == self.until:
            self._release()
        return found

    def _happen(self, succeed: bool) -> None:
        self._release()
        super()._happen(succeed)

    def _release(self) -> None:
        while self.holding:
            super()._registered(*self.holding.pop())


ORDERS = [("rule", "evaluation"), ("profile", "evaluation"), ("reference", "evaluation")]
AFTER = [(each, "run") for each in ("reference", "profile", "rule", "evaluation", "foreign", "gate", "pipeline gate")]


@pytest.mark.parametrize(("held", "until"), ORDERS + AFTER)
def test_what_was_registered_only_after_it_was_needed_is_found(held: str, until: str, verify: Verify) -> None:
    """Rule and profiles before the evaluation, all of it before the run."""
    code, text = verify(Late(held, until, Quality()).run_bundle())
    assert (code, "only after it was needed" in text) == (30, True)
    assert verify(Late("none", until, Quality()).run_bundle())[0] == 11


@pytest.mark.parametrize(("before", "after"), [(b"was_informed_by", b"used"), (b"qualityEval", b"qualityRul")])
def test_the_edges_to_evaluations_are_made_again(before: bytes, after: bytes, verify: Verify) -> None:
    """A run was informed by each evaluation that its gate checks cite."""
    change: Change = lambda kind, data: data.replace(before, after) if kind == "lineage_edge" else data  # noqa: E731
    assert verify(World(change=change, quality=Quality()).run_bundle())[0] == 30


def test_no_changed_record_of_quality_passes(verify: Verify) -> None:
    """Files left out are missing; documents changed under the log's digests fail, whoever signs the manifests."""
    files = World(quality=REFUSED).run_bundle()
    ours = {name: data for name, data in files.items() if "/quality_" in name}
    assert len(ours) == 7
    for name in ours:
        assert verify(bagged({each: files[each] for each in files if each != name}))[0] == 20
        assert verify(bagged(files | {name.replace("bound/", "bound/x"): files[name]}))[0] == 40
    missed = []
    for number, (what, changed) in enumerate(records(ours)):
        bundle = files | changed
        signed = [bagged(bundle), bagged(bundle, OUTSIDER), bagged(bundle, sign=False)][number % 3]
        if number % 13 == 0 and verify(signed)[0] in GOOD:
            missed.append(what)
    assert missed == []
    assert verify(bundles.bagged(files))[0] == 11
