"""The plan: a deterministic order of a RunSpec's steps. Equal specs have equal plans, byte for byte.

- Edges are the declared dependencies and those that artifact inputs imply (`PipelineGraph.edges`).
- Order: of the steps whose dependencies all stand before, the one with the smallest name (by its bytes) comes next.
- Level: length of the longest chain of steps before a step.
- Critical path: the longest chain. From the smallest step of the highest level, go to its smallest dependency of the
  level below, down to level 0.
- Worst case: every allowed attempt but the last fails, at every step.
"""

from dataclasses import dataclass
from typing import ClassVar

import networkx

from animus.domain.pipeline import PipelineSpec, RetryKind


@dataclass(frozen=True, slots=True)
class PlanStep:
    """A step of a plan."""

    name: str
    level: int
    depends_on: tuple[str, ...]  # sorted
    max_attempts: int  # 1 where nothing is retried
    retry_on: tuple[RetryKind, ...]  # sorted
    retry_delays_seconds: tuple[int, ...]  # after attempt 1, 2, …: max_attempts - 1 items
    worst_case_delay_seconds: int  # waits of this step and of the chains before it, running time left out


@dataclass(frozen=True, slots=True)
class ExecutionPlan:
    """Every step in execution order."""

    SCHEMA: ClassVar[str] = "animus.execution_plan/v1"

    run_spec_digest: str
    pipeline_spec_digest: str
    steps: tuple[PlanStep, ...]  # in execution order
    critical_path: tuple[str, ...]  # first to last


def make_plan(run_spec_digest: str, pipeline_spec_digest: str, pipeline: PipelineSpec) -> ExecutionPlan:
    """The plan of a RunSpec. Linear in steps and edges but for the sorting; the pipeline is known to have no cycle."""
    waits = pipeline.spec.edges()
    steps = {step.name: step for step in pipeline.spec.steps}
    levels: dict[str, int] = {}
    worst: dict[str, int] = {}
    planned = []
    for name in execution_order(waits):
        policy = steps[name].retry_policy
        retries = policy.max_attempts - 1 if policy.retry_on else 0
        delays = policy.backoff.delays(retries)
        levels[name] = 1 + max((levels[before] for before in waits[name]), default=-1)
        worst[name] = sum(delays) + max((worst[before] for before in waits[name]), default=0)
        planned.append(
            PlanStep(
                name=name,
                level=levels[name],
                depends_on=waits[name],
                max_attempts=retries + 1,
                retry_on=policy.retry_on,
                retry_delays_seconds=delays,
                worst_case_delay_seconds=worst[name],
            )
        )
    return ExecutionPlan(
        run_spec_digest=run_spec_digest,
        pipeline_spec_digest=pipeline_spec_digest,
        steps=tuple(planned),
        critical_path=_critical_path(waits, levels),
    )


def execution_order(waits: dict[str, tuple[str, ...]]) -> list[str]:
    """The names in execution order, of each step and the steps that it waits for."""
    graph: networkx.DiGraph[str] = networkx.DiGraph()
    graph.add_nodes_from(waits)
    graph.add_edges_from((before, name) for name, befores in waits.items() for before in befores)
    return list(networkx.lexicographical_topological_sort(graph))


def _critical_path(waits: dict[str, tuple[str, ...]], levels: dict[str, int]) -> tuple[str, ...]:
    highest = max(levels.values())
    path = [min(name for name, level in levels.items() if level == highest)]
    while levels[path[-1]] > 0:
        path.append(min(before for before in waits[path[-1]] if levels[before] == levels[path[-1]] - 1))
    return tuple(reversed(path))
