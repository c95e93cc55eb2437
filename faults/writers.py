"""Many writers on one project, through two servers: `python -m faults.writers --writers 8 --seconds 30`.

No fork, no lost entry, as many entries as changes, and every change that was acknowledged before another began stands
before it in the log.
"""

import argparse
import asyncio
import sys
import time

from faults.clients import Clients
from faults.command import Figures, in_stack, judge, run, settle
from faults.stack import Stack


async def write_at_once(stack: Stack, writers: int, seconds: float, seed: int, project_id: str = "writers") -> Figures:
    """Lets so many write for so long, and says what is left. Raises Violation."""
    clients = Clients(stack, project_id, str(seed))
    await clients.prepare()
    end = time.monotonic() + seconds
    async with clients.reading():
        try:
            async with asyncio.TaskGroup() as group:
                for writer in range(writers):
                    group.create_task(clients.write(writer, 0.0, lambda: time.monotonic() >= end))
        finally:
            clients.dump(stack.folder / f"history-{project_id}.jsonl")
        await settle(clients)
    judged = await judge(clients)
    return {"writers": writers, "acknowledged_per_second": round(judged["acknowledged"] / seconds, 1), **judged}


def summary(figures: Figures) -> str:
    """One line."""
    return (
        f"{figures['writers']} writers, {figures['acknowledged']:,} changes acknowledged, {figures['entries']:,} "
        f"entries in their order, {figures['receipts_proven']:,} receipts proven, {figures['heads_seen']} heads "
        "consistent"
    )


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="faults.writers", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--writers", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    limit = 180 + 4 * options.seconds
    work = in_stack(lambda stack: write_at_once(stack, options.writers, options.seconds, options.seed))
    sys.exit(run("writers", work, summary, options.seed, limit))


if __name__ == "__main__":
    main()
