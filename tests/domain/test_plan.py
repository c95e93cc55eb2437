"""The plan: one order, one spelling, the same in every process, and golden bytes that never change."""

import dataclasses
import hashlib
import heapq
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import rfc8785
from golden import update
from hypothesis import given
from hypothesis import strategies as st

from animus.domain import document
from animus.domain.pipeline import Backoff, BackoffType, PipelineSpec, RetryKind, RetryPolicy
from animus.domain.plan import ExecutionPlan, execution_order, make_plan
from domain.values import (
    LAW,
    ONE,
    SEQUENCES,
    SETS,
    TWO,
    bare_step,
    generated,
    graph_of,
    pipeline,
    retry_policy,
    shuffled,
)

Waits = dict[str, tuple[str, ...]]
NAMES = ["a", "a-b", "a0", "ab", "b", "b1", "b10", "b2", "c", "d", "e", "f", "zz"]
ONCE = RetryPolicy(1, (), Backoff(BackoffType.FIXED, 0, 0, "1"))


def smallest_ready_first(waits: Waits) -> list[str]:
    """The reference: a heap of the steps whose dependencies all stand before."""
    missing = {name: len(before) for name, before in waits.items()}
    ready = [name for name, count in missing.items() if count == 0]
    heapq.heapify(ready)
    order = []
    while ready:
        order.append(heapq.heappop(ready))
        for name, before in waits.items():
            if order[-1] in before:
                missing[name] -= 1
                if missing[name] == 0:
                    heapq.heappush(ready, name)
    return order


def random_graph(rng: random.Random, most: int) -> Waits:
    """A graph without a cycle whose steps stand in no order of their names."""
    names = rng.sample(NAMES, rng.randint(1, most))
    density = rng.random()
    waits = {
        name: tuple(sorted(before for before in names[:index] if rng.random() < density))
        for index, name in enumerate(names)
    }
    return dict(sorted(waits.items()))


def order_law(plan_order: Callable[[Waits], list[str]]) -> None:
    """Fails unless a function orders graphs as the reference does."""

    @LAW
    @given(generated(lambda rng: random_graph(rng, len(NAMES))))
    def law(waits: Waits) -> None:
        assert plan_order(waits) == smallest_ready_first(waits)

    law()


def test_the_smallest_ready_step_comes_next() -> None:
    """The order is that of a plain heap, on any graph."""
    order_law(execution_order)


def level_by_level(waits: Waits) -> list[str]:
    """An order that looks right: by level, then by name."""
    levels: dict[str, int] = {}
    while len(levels) < len(waits):
        for name, before in waits.items():
            if name not in levels and all(each in levels for each in before):
                levels[name] = 1 + max((levels[each] for each in before), default=-1)
    return sorted(waits, key=lambda name: (levels[name], name))


def test_another_order_is_found() -> None:
    """The law tells apart an order by levels, which keeps dependencies too."""
    with pytest.raises(AssertionError):
        order_law(level_by_level)


def test_names_are_ordered_by_their_bytes() -> None:
    """Not by locale, nor by the numbers in them."""
    assert execution_order(dict.fromkeys(["b2", "b10", "ab", "a-b", "a", "a0"], ())) == sorted(
        ["b2", "b10", "ab", "a-b", "a", "a0"], key=str.encode
    )


def test_order_does_not_depend_on_the_order_of_the_input() -> None:
    """The same graph written down in another order is ordered alike."""
    rng = random.Random(3)
    for _ in range(200):
        waits = random_graph(rng, 10)
        mixed = {name: tuple(rng.sample(waits[name], len(waits[name]))) for name in rng.sample(list(waits), len(waits))}
        assert execution_order(mixed) == execution_order(waits)


# Levels, critical path, worst case, against every chain there is.


def spec_of(waits: Waits, rng: random.Random) -> PipelineSpec:
    """A pipeline of this graph, with policies of any kind."""
    edges = [(name, before) for name, each in waits.items() for before in each]
    return graph_of([bare_step(name, retry_policy(rng)) for name in waits], edges)


def chains(waits: Waits, name: str) -> list[tuple[str, ...]]:
    """Every chain that ends at a step and begins with one that waits for nothing."""
    return [(*chain, name) for before in waits[name] for chain in chains(waits, before)] or [(name,)]


def plan_law(plan: ExecutionPlan, spec: PipelineSpec) -> None:
    """Fails unless a plan says of each step what follows from all chains that lead to it."""
    waits = spec.spec.edges()
    policies = {step.name: step.retry_policy for step in spec.spec.steps}
    delays = {
        name: policy.backoff.delays(policy.max_attempts - 1) if policy.retry_on else ()
        for name, policy in policies.items()
    }
    assert sorted(step.name for step in plan.steps) == sorted(waits)
    for step in plan.steps:
        assert step.depends_on == waits[step.name]
        assert step.level == max(len(chain) for chain in chains(waits, step.name)) - 1
        assert step.retry_on == tuple(sorted(policies[step.name].retry_on))
        assert step.retry_delays_seconds == delays[step.name]
        assert step.max_attempts == len(delays[step.name]) + 1
        assert step.worst_case_delay_seconds == max(
            sum(sum(delays[each]) for each in chain) for chain in chains(waits, step.name)
        )
    every = [chain for name in waits for chain in chains(waits, name)]
    longest = max(map(len, every))
    assert plan.critical_path == min((chain for chain in every if len(chain) == longest), key=lambda chain: chain[::-1])


def small_plan(rng: random.Random) -> tuple[ExecutionPlan, PipelineSpec]:
    """A pipeline of up to seven steps and its plan."""
    spec = spec_of(random_graph(rng, 7), rng)
    return make_plan(ONE, TWO, spec), spec


@LAW
@given(generated(small_plan))
def test_a_plan_says_what_follows_from_every_chain(made: tuple[ExecutionPlan, PipelineSpec]) -> None:
    """Levels, waits at worst and the critical path are those of a search through all chains."""
    plan_law(*made)
    plan, _ = made
    assert (plan.run_spec_digest, plan.pipeline_spec_digest) == (ONE, TWO)


@pytest.mark.parametrize(
    "wrong",
    [
        {"level": 0},
        {"worst_case_delay_seconds": 3},
        {"depends_on": ()},
        {"max_attempts": 1},
        {"retry_delays_seconds": (3,)},
    ],
)
def test_a_plan_that_says_otherwise_is_found(wrong: dict[str, Any]) -> None:
    """Each field of a step that is changed breaks the law above, and so does another critical path."""
    policy = RetryPolicy(3, (RetryKind.USER,), Backoff(BackoffType.FIXED, 2, 2, "1"))
    spec = graph_of([bare_step(name, policy) for name in "abc"], [("b", "a"), ("c", "a")])
    plan = make_plan(ONE, TWO, spec)
    plan_law(plan, spec)
    assert plan.critical_path == ("a", "b")
    with pytest.raises(AssertionError):
        plan_law(dataclasses.replace(plan, critical_path=("a", "c")), spec)
    with pytest.raises(AssertionError):
        plan_law(dataclasses.replace(plan, steps=(*plan.steps[:2], dataclasses.replace(plan.steps[2], **wrong))), spec)


@LAW
@given(generated(pipeline), st.integers())
def test_a_plan_does_not_depend_on_the_order_sent(spec: PipelineSpec, seed: int) -> None:
    """Steps, dependencies, inputs and all else shuffled: the bytes of the plan are the same, and planned twice too."""
    other = shuffled(spec, random.Random(seed), SETS - SEQUENCES)
    planned = document.dump(make_plan(ONE, TWO, spec))
    assert document.dump(make_plan(ONE, TWO, other)) == planned
    assert document.dump(make_plan(ONE, TWO, spec)) == planned


def test_a_policy_without_kinds_retries_nothing() -> None:
    """max_attempts counts only where some failure is retried."""
    policy = RetryPolicy(5, (), Backoff(BackoffType.FIXED, 7, 7, "1"))
    (step,) = make_plan(ONE, TWO, graph_of([bare_step("a", policy)])).steps
    assert (step.max_attempts, step.retry_delays_seconds, step.worst_case_delay_seconds) == (1, (), 0)


def test_ten_thousand_steps_in_a_row_are_planned() -> None:
    """Depth is no limit: a chain of 10,000 steps has as many levels, and the heap's order is the chain's."""
    names = [f"s{number:04}" for number in range(10_000)]
    spec = graph_of([bare_step(name, ONCE) for name in names], list(zip(names[1:], names, strict=False)))
    plan = make_plan(ONE, TWO, spec)
    assert [step.name for step in plan.steps] == names == list(plan.critical_path)
    assert [step.level for step in plan.steps] == list(range(10_000))


# Golden bytes.

GOLDEN = update.folders()


def test_there_are_golden_files() -> None:
    """The folder holds some cases, and each has a plan that says something."""
    assert len(GOLDEN) >= 4
    assert all(len((folder / "plan.json").read_bytes()) > 300 for folder in GOLDEN)


@pytest.mark.parametrize("folder", GOLDEN, ids=lambda folder: folder.name)
def test_digests_and_plan_are_the_golden_ones(folder: Path) -> None:
    """What was hashed once is hashed so for ever: any difference fails, and nothing is renewed by itself."""
    for name, content in update.expected(folder).items():
        assert (folder / name).read_bytes() == content, f"{name} differs: tests/golden/README.md says what that means"


@pytest.mark.parametrize("folder", GOLDEN, ids=lambda folder: folder.name)
def test_golden_files_can_be_checked_without_animus(folder: Path) -> None:
    """The plan is JCS by another implementation, and its digest is what sha256sum prints."""
    written = (folder / "plan.json").read_bytes()
    digests = dict(line.split("  ") for line in (folder / "digests").read_text().splitlines())
    assert digests["plan"] == "sha256:" + hashlib.sha256(written).hexdigest()
    tree = document.parse(written)
    assert rfc8785.dumps(tree) == written
    assert tree["runSpecDigest"] == digests["run spec"]
    assert tree["pipelineSpecDigest"] == digests["pipeline spec"]


def test_a_golden_file_that_differs_is_found(tmp_path: Path) -> None:
    """A comment changes nothing, a letter every digest; what is there is never overwritten."""
    source = GOLDEN[0]
    for name in ("pipeline.yaml", "run.yaml"):
        (tmp_path / name).write_bytes((source / name).read_bytes())
    assert update.write(tmp_path) == ["digests", "plan.json"]
    assert (tmp_path / "plan.json").read_bytes() == (source / "plan.json").read_bytes()
    commented = (tmp_path / "run.yaml").read_text() + "# A comment.\n"
    (tmp_path / "run.yaml").write_text(commented)
    assert update.expected(tmp_path) == update.expected(source)
    assert update.write(tmp_path) == []
    (tmp_path / "run.yaml").write_text(commented.replace("repository: ", "repository: x", 1))
    with pytest.raises(update.Differs):
        update.write(tmp_path)
    assert (tmp_path / "plan.json").read_bytes() == (source / "plan.json").read_bytes()


WORLDS = [
    {"PYTHONHASHSEED": "0", "TZ": "UTC", "LC_ALL": "C"},
    {"PYTHONHASHSEED": "1", "TZ": "Asia/Kathmandu", "LC_ALL": "C.UTF-8"},
    {"PYTHONHASHSEED": "4294967295", "TZ": "Pacific/Apia", "LC_ALL": "tr_TR.UTF-8", "PYTHONUTF8": "0"},
]


def printed_in_each_world(*command: str) -> set[str]:
    """What a Python program prints under other hash seeds, time zones and locales."""
    path = os.pathsep.join(each for each in sys.path if each)
    running = [
        subprocess.Popen(
            [sys.executable, *command], env={"PYTHONPATH": path, **world}, stdout=subprocess.PIPE, text=True
        )
        for world in WORLDS
    ]
    answers = [(each.communicate()[0], each.returncode) for each in running]
    assert all(code == 0 for _, code in answers)
    return {text for text, _ in answers}


def test_digests_are_the_same_in_every_process() -> None:
    """Hash seed, time zone and locale change no digest; they do change what depends on them."""
    (text,) = printed_in_each_world(update.__file__, "--show")
    assert text == update.shown()
    assert len(printed_in_each_world("-c", "import time; print({*'abcdef'}, time.localtime(0)[:4])")) == len(WORLDS)
