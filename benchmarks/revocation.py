"""How soon a token that was revoked on one server is refused by another: `python -m benchmarks.revocation --times 50`.

Two servers share a PostgreSQL of their own with fsync on. A client uses a token on the second, one call after another,
while the first is told to revoke it. Both times count from the reply of RevokeToken; they are less than zero where the
second server had asked the database in between. Ends with 1 if one is more than a second, and stops by itself.
"""

import argparse
import asyncio
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
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import uvloop

from animus.v1 import access_pb2, access_pb2_grpc, project_pb2, project_pb2_grpc
from benchmarks.stack import PRODUCT, Served, machine, serving

LIMIT_SECONDS = 1.0
PROJECT = "bench"
ACCOUNT = "user"
USED_SECONDS = 1.0  # before it is revoked, at most: any phase of what a server remembers is met
AFTER_SECONDS = 0.2  # for which it goes on to be used once it was refused
PATIENCE_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Use:
    """A call with the token."""

    end: float
    accepted: bool


async def measure(times: int, seed: int) -> dict[str, Any]:
    """The times of so many revocations."""
    dice = random.Random(seed)  # noqa: S311
    refusals, acceptances, calls, seconds = list[float](), list[float](), 0, 0.0
    async with (
        machine() as here,
        serving(here, "first", PRODUCT) as first,
        serving(here, "second", PRODUCT, beside=first) as second,
    ):
        await _prepare(first)
        for number in range(times):
            uses, began, revoked = await _revoke(first, second, number, dice.uniform(0, USED_SECONDS))
            refusals.append(next(use.end for use in uses if not use.accepted) - revoked)
            acceptances.append(max(use.end for use in uses if use.accepted) - revoked)
            calls += len(uses)
            seconds += uses[-1].end - began
            print(f"{number + 1}/{times} {refusals[-1]:.3f} s", file=sys.stderr)
    return {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
        "load at the end": round(os.getloadavg()[0], 1),
        "times": times,
        "seed": seed,
        "calls_per_second": round(calls / seconds),
        "seconds_to_first_refusal": spread(refusals),
        "seconds_to_last_acceptance": spread(acceptances),
        "limit_seconds": LIMIT_SECONDS,
    }


async def _prepare(served: Served) -> None:
    await served.call(
        project_pb2_grpc.ProjectServiceStub(served.channel).CreateProject,
        project_pb2.CreateProjectRequest(
            project_id=PROJECT,
            request_id="project",
            project=project_pb2.Project(project_id=PROJECT, display_name="", description=""),
        ),
    )
    await served.call(
        access_pb2_grpc.AccessServiceStub(served.channel).CreateServiceAccount,
        access_pb2.CreateServiceAccountRequest(
            project_id=PROJECT,
            request_id="account",
            service_account=access_pb2.ServiceAccount(service_account_id=ACCOUNT, display_name="", description=""),
        ),
    )


async def _revoke(first: Served, second: Served, number: int, used_seconds: float) -> tuple[list[Use], float, float]:
    """The uses of a new token, when the first of them began, and when the reply of its revocation was there."""
    token = f"animus_{PROJECT}_{secrets.token_urlsafe(32)}"
    digest = f"sha256:{hashlib.sha256(token.encode()).hexdigest()}"
    registration = access_pb2.Token(token_digest=digest, principal=ACCOUNT, role=access_pb2.ROLE_VIEWER)
    registration.expire_time.FromDatetime(datetime.now(UTC) + timedelta(days=1))
    access = access_pb2_grpc.AccessServiceStub(first.channel)
    await first.call(
        access.CreateToken,
        access_pb2.CreateTokenRequest(project_id=PROJECT, request_id=f"token-{number}", token=registration),
    )
    uses = list[Use]()
    began = time.perf_counter()
    using = asyncio.create_task(_use(second, token, uses))
    try:
        await asyncio.wait({using}, timeout=used_seconds)
        await first.call(
            access.RevokeToken,
            access_pb2.RevokeTokenRequest(
                project_id=PROJECT, request_id=f"revoke-{number}", token_digest=digest, reason="measured"
            ),
        )
        revoked = time.perf_counter()
        await asyncio.wait({using}, timeout=PATIENCE_SECONDS)
        if not using.done():
            raise SystemExit(f"the token was not refused within {PATIENCE_SECONDS:.0f} s")
        await using
    finally:
        using.cancel()
    return uses, began, revoked


async def _use(served: Served, token: str, uses: list[Use]) -> None:
    """Uses a token, one call after another, until it has been refused for a while."""
    who_am_i = access_pb2_grpc.AccessServiceStub(served.channel).WhoAmI
    metadata = (("authorization", f"Bearer {token}"),)
    end = math.inf
    while time.perf_counter() < end:
        accepted = True
        try:
            await who_am_i(access_pb2.WhoAmIRequest(), metadata=metadata, timeout=PATIENCE_SECONDS)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAUTHENTICATED:
                raise
            accepted = False
        uses.append(Use(time.perf_counter(), accepted))
        if not accepted:
            end = min(end, uses[-1].end + AFTER_SECONDS)


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """Least, median, the 99th of a hundred, and most."""
    ordered = sorted(seconds)
    found = {
        "min": ordered[0],
        "median": statistics.median(ordered),
        "p99": ordered[math.ceil(0.99 * len(ordered)) - 1],
        "max": ordered[-1],
    }
    return {name: round(value, 4) for name, value in found.items()}


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.revocation", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--times", type=int, default=50)
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    if options.times < 1:
        parser.error("at least one")
    found = uvloop.run(measure(options.times, options.seed))
    print(json.dumps(found, indent=2))
    worst = max(found["seconds_to_first_refusal"]["max"], found["seconds_to_last_acceptance"]["max"])
    if worst > LIMIT_SECONDS:
        sys.exit(1)


if __name__ == "__main__":
    main()
