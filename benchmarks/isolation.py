"""Whether time tells what another project has: `python -m benchmarks.isolation [--samples 5000] [--plant 0.2]`.

A caller of one project asks for ids that exist in another and for ids that exist nowhere, in pairs: the methods and
the two of a pair in an order that chance decides, one call in flight. Of each method, the differences of pairs are
tested by the sign test, two-sided, with Bonferroni's correction for the number of methods, and their median is given
with the 95 % interval of the same test: what the machine does meanwhile falls on both of a pair. Ends with 1 where the
test finds a difference that is larger than `--smallest`. `--plant` adds so many milliseconds to the calls with foreign
ids, which must be found. JSON to stdout.
"""

import argparse
import gc
import hashlib
import json
import math
import os
import platform
import random
import secrets
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import uvloop

from animus.v1 import (
    access_pb2,
    access_pb2_grpc,
    audit_pb2,
    audit_pb2_grpc,
    dataset_pb2,
    dataset_pb2_grpc,
    lineage_pb2,
    lineage_pb2_grpc,
    project_pb2,
    project_pb2_grpc,
    run_pb2,
    run_pb2_grpc,
)
from benchmarks.stack import PRODUCT, Served, machine, serving
from benchmarks.work import Prepared, new_dataset, new_run, prepare

THEIRS, OURS = "theirs", "ours00"
THINGS = 50  # of each kind in the other project, and as many that are nowhere
WARM = 50  # pairs of each method before those that count
LEVEL = 0.01
SMALLEST_MS = 0.02
BETWEEN = 1.96  # standard deviations of a 95 % interval


@dataclass(frozen=True, slots=True)
class Question:
    """A method, and its requests about things of the other project and about things of none."""

    ask: Any
    foreign: Sequence[Any]
    missing: Sequence[Any]


@dataclass(frozen=True, slots=True)
class Difference:
    """What two sets of times say, in milliseconds."""

    samples: int
    foreign: float  # medians
    missing: float
    difference: float  # the median of foreign less missing, pair by pair
    low: float  # of its 95 % interval
    high: float
    p: float  # corrected

    def told(self, smallest: float) -> bool:
        """Whether a caller can tell the two apart by a difference that is larger than what is let pass."""
        return self.p < LEVEL and abs(self.difference) > smallest

    def row(self, smallest: float) -> dict[str, Any]:
        """For JSON."""
        return {
            "samples": self.samples,
            "foreign_ms": round(self.foreign, 4),
            "missing_ms": round(self.missing, 4),
            "difference_ms": round(self.difference, 4),
            "interval_95_ms": [round(self.low, 4), round(self.high, 4)],
            # A difference by which the interval would no longer have held zero.
            "seen_from_ms": round((self.high - self.low) / 2, 4),
            "p": float(f"{self.p:.3g}"),
            "told_apart": self.told(smallest),
        }


def compare(foreign: Sequence[float], missing: Sequence[float], methods: int) -> Difference:
    """Compares times of pairs, in milliseconds."""
    pairs = sorted(one - other for one, other in zip(foreign, missing, strict=True))
    count = len(pairs)
    reach = math.ceil(BETWEEN * math.sqrt(count) / 2)  # of the ranks between which the median is, by the sign test
    low, high = max(0, count // 2 - reach), min(count - 1, count // 2 + reach)
    return Difference(
        count,
        statistics.median(foreign),
        statistics.median(missing),
        statistics.median(pairs),
        pairs[low],
        pairs[high],
        min(1.0, sign_test(pairs) * methods),
    )


def sign_test(differences: Sequence[float]) -> float:
    """The two-sided p of the sign test, by its normal approximation; differences of zero are left out.

    How large a difference is does not count, only which way it is: of a busy machine, the few that are very large say
    nothing.
    """
    more, less = sum(each > 0 for each in differences), sum(each < 0 for each in differences)
    return math.erfc(max(0, abs(more - less) - 1) / math.sqrt(2 * (more + less))) if more + less else 1.0


def _digest() -> str:
    return "sha256:" + secrets.token_hex(32)


async def questions(served: Served, prepared: dict[str, Prepared]) -> dict[str, Question]:
    """What is asked; makes the things of the other project."""
    runs, datasets = run_pb2_grpc.RunServiceStub(served.channel), dataset_pb2_grpc.DatasetServiceStub(served.channel)
    run_ids, entries, names, contents = [], [], [], []
    for _ in range(THINGS):
        run = await served.call(runs.CreateRun, new_run(THEIRS, prepared[THEIRS].run_spec))
        planned = run_pb2.PlanRunRequest(project_id=THEIRS, request_id=run.run_id, run_id=run.run_id)
        await served.call(runs.PlanRun, planned)
        run_ids.append(run.run_id)
        entries.append(run.record.audit_entry_id)
        names.append(f"d{secrets.token_hex(8)}")
        await served.call(datasets.CreateDataset, new_dataset(THEIRS, names[-1]))
        contents.append(_digest())
        await served.call(datasets.RegisterDatasetVersion, _version(THEIRS, contents[-1]))
    spec = prepared[OURS].run_spec

    def bound(content_digest: str) -> Any:
        request = new_run(OURS, spec)
        request.validate_only = True
        request.run_spec.datasets[0].content_digest = content_digest
        return request

    def node(run_id: str) -> Any:
        return lineage_pb2.GetLineageRequest(
            project_id=OURS, node=f"projects/{OURS}/runs/{run_id}", direction=lineage_pb2.LINEAGE_DIRECTION_UPSTREAM
        )

    def question(ask: Any, make: Callable[[str], Any], known: Sequence[str], new: Callable[[], str]) -> Question:
        return Question(ask, [make(each) for each in known], [make(new()) for _ in known])

    def hexadecimal() -> str:
        return secrets.token_hex(16)

    return {
        "GetRun": question(
            runs.GetRun, lambda each: run_pb2.GetRunRequest(project_id=OURS, run_id=each), run_ids, hexadecimal
        ),
        "GetPlan": question(
            runs.GetPlan, lambda each: run_pb2.GetPlanRequest(project_id=OURS, run_id=each), run_ids, hexadecimal
        ),
        "GetDataset": question(
            datasets.GetDataset,
            lambda each: dataset_pb2.GetDatasetRequest(project_id=OURS, dataset_id=each),
            names,
            lambda: f"d{secrets.token_hex(8)}",
        ),
        "GetLineage": question(
            lineage_pb2_grpc.LineageServiceStub(served.channel).GetLineage, node, run_ids, hexadecimal
        ),
        "GetAuditEntry": question(
            audit_pb2_grpc.AuditServiceStub(served.channel).GetAuditEntry,
            lambda each: audit_pb2.GetAuditEntryRequest(project_id=OURS, entry_id=each),
            entries,
            hexadecimal,
        ),
        "CreateRun, a binding": question(runs.CreateRun, bound, contents, _digest),
        "GetProject": question(
            project_pb2_grpc.ProjectServiceStub(served.channel).GetProject,
            lambda each: project_pb2.GetProjectRequest(project_id=each),
            [THEIRS] * THINGS,
            lambda: "absent",
        ),
    }


def _version(project_id: str, digest: str) -> dataset_pb2.RegisterDatasetVersionRequest:
    return dataset_pb2.RegisterDatasetVersionRequest(
        project_id=project_id,
        request_id=digest,
        dataset_version=dataset_pb2.DatasetVersion(
            dataset_id="data",
            content_digest=digest,
            size_bytes=1,
            media_type="text/csv",
            row_count=-1,
            source="",
            licence="",
        ),
    )


async def caller(served: Served) -> tuple[tuple[str, str], ...]:
    """The credentials of an administrator of our project."""
    stub = access_pb2_grpc.AccessServiceStub(served.channel)
    account = access_pb2.ServiceAccount(service_account_id="bench", display_name="", description="")
    await served.call(
        stub.CreateServiceAccount,
        access_pb2.CreateServiceAccountRequest(project_id=OURS, request_id="account", service_account=account),
    )
    token = f"animus_{OURS}_{secrets.token_urlsafe(32)}"
    message = access_pb2.Token(
        token_digest="sha256:" + hashlib.sha256(token.encode()).hexdigest(),
        principal="bench",
        role=access_pb2.ROLE_ADMIN,
    )
    message.expire_time.FromDatetime(datetime.now(UTC) + timedelta(days=1))
    await served.call(
        stub.CreateToken, access_pb2.CreateTokenRequest(project_id=OURS, request_id="token", token=message)
    )
    return (("authorization", f"Bearer {token}"),)


async def refused(ask: Any, request: Any, metadata: tuple[tuple[str, str], ...], plant_ms: float) -> float:
    """How many milliseconds a call takes to be answered with NOT_FOUND. Raises any other failure."""
    began = time.perf_counter_ns()
    try:
        await ask(request, metadata=metadata, timeout=60)
    except grpc.aio.AioRpcError as error:
        end = time.perf_counter_ns() + round(plant_ms * 1e6)
        while time.perf_counter_ns() < end:
            pass
        if error.code() is not grpc.StatusCode.NOT_FOUND:
            raise
        return (time.perf_counter_ns() - began) / 1e6
    raise AssertionError("an id of another project was found")


async def times(
    asked: dict[str, Question], metadata: tuple[tuple[str, str], ...], samples: int, plant_ms: float
) -> dict[str, tuple[list[float], list[float]]]:
    """Times of calls with foreign and with missing ids, by method and in pairs."""
    chance = random.Random(1)  # noqa: S311 (the same in each measurement)
    found: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in asked}
    for number in range(-WARM, samples):
        for name in chance.sample(sorted(asked), len(asked)):
            question, of_name = asked[name], found[name]
            pair = [(question.foreign, of_name[0], plant_ms), (question.missing, of_name[1], 0.0)]
            chance.shuffle(pair)
            for requests, into, planted in pair:
                taken = await refused(question.ask, chance.choice(requests), metadata, planted)
                if number >= 0:
                    into.append(taken)
    return found


@contextmanager
def uncollected() -> Iterator[None]:
    """Meanwhile no garbage is collected here, which would fall on one call and not on another."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


async def run(samples: int, plant_ms: float, smallest_ms: float) -> dict[str, Any]:
    """On a PostgreSQL and with a server of its own."""
    async with machine() as here, serving(here, "isolation", PRODUCT) as served:
        prepared = await prepare(served, [THEIRS, OURS], 0)
        asked = await questions(served, prepared)
        metadata = await caller(served)
        print(f"{samples} pairs of each of {len(asked)} methods", file=sys.stderr)
        with uncollected():
            found = await times(asked, metadata, samples, plant_ms)
    rows = {name: compare(*both, len(asked)).row(smallest_ms) for name, both in found.items()}
    return {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
        "load": round(os.getloadavg()[0], 1),
        "planted_ms": plant_ms,
        "level": LEVEL,
        "let_pass_ms": smallest_ms,
        "methods": rows,
        "told_apart": sorted(name for name, row in rows.items() if row["told_apart"]),
    }


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.isolation", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--samples", type=int, default=5_000, help="pairs of each method")
    parser.add_argument("--plant", type=float, default=0.0, help="milliseconds to add to calls with foreign ids")
    parser.add_argument("--smallest", type=float, default=SMALLEST_MS, help="differences up to here pass, in ms")
    arguments = parser.parse_args()
    found = uvloop.run(run(arguments.samples, arguments.plant, arguments.smallest))
    print(json.dumps(found, indent=2))
    raise SystemExit(1 if found["told_apart"] else 0)


if __name__ == "__main__":
    main()
