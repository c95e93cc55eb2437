"""Takes the leader away and measures how long the other server needs: `python -m faults.replicas --times 10`.

First it is killed, again and again. Then it is stopped for longer than its lease, and goes on: by then another leads,
and it may do no harm.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import statistics
import sys
import time
from typing import Any

from faults.harness import Replica, Stack, Violation, check, prove_all, stack

STOPPED_SECONDS = 5.0  # the lease is two


async def leader(found: Stack) -> tuple[Replica, int]:
    """The server that leads, and its fence."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        (row,) = await found.sql("SELECT holder, fence FROM animus.log_lead")
        pid = int(row["holder"].split("/")[1])
        for replica in found.replicas:
            if replica.process is not None and replica.process.pid == pid and replica.process.returncode is None:
                return replica, row["fence"]
        await asyncio.sleep(0.05)
    raise Violation("no server that runs leads the log")


async def run(times: int, seed: int) -> dict[str, Any]:
    """Runs it. Raises Violation."""
    dice = random.Random(seed)  # noqa: S311
    seconds = []
    async with stack(2) as found:
        for _ in range(times):
            led, fence = await leader(found)
            other = next(replica for replica in found.replicas if replica is not led)
            await led.kill()
            began = time.monotonic()
            found.replicas = [other]  # whom clients call meanwhile
            done = await found.change(0, dice)
            await found.published(done.entry_id, other)
            seconds.append(time.monotonic() - began)
            _, after = await leader(found)
            if after <= fence:
                raise Violation(f"the fence is {after} after {fence}")
            await led.start()
            found.replicas = [other, led]
        led, fence = await leader(found)
        assert led.process is not None
        other = next(replica for replica in found.replicas if replica is not led)
        os.kill(led.process.pid, signal.SIGSTOP)
        await asyncio.sleep(STOPPED_SECONDS)
        found.replicas = [other]
        done = await found.change(0, dice)
        await found.published(done.entry_id, other)
        os.kill(led.process.pid, signal.SIGCONT)
        found.replicas = [other, led]
        for _ in range(50):
            done = await found.change(0, dice)
        await found.published(done.entry_id)
        _, after = await leader(found)
        if after != fence + 1:
            raise Violation(f"the fence is {after}: one change of hands was to come after {fence}")
        checked = await check(found)
        proven = await prove_all(found)
    return {
        "kills": times,
        "seconds_to_published": {
            "least": round(min(seconds), 2),
            "median": round(statistics.median(seconds), 2),
            "most": round(max(seconds), 2),
        },
        "stopped_leader": "did no harm",
        "receipts_proven": proven,
        **checked,
    }


def main() -> None:
    """Runs the command line. Exits with 1 for a promise that was not kept."""
    parser = argparse.ArgumentParser(prog="faults.replicas", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    try:
        print(json.dumps(asyncio.run(run(options.times, options.seed)), indent=2))
    except Violation as violation:
        sys.exit(f"violation: {violation}")


if __name__ == "__main__":
    main()
