"""Many writers on one project: `python -m faults.writers --writers 8 --seconds 30`.

No fork, no lost entry, entries = changes, and every change that was acknowledged before another began stands before it.
"""

import argparse
import asyncio
import json
import random
import sys
import time
from typing import Any

from faults.harness import Violation, check, prove_all, stack


async def run(writers: int, seconds: float, seed: int) -> dict[str, Any]:
    """Runs it. Raises Violation."""
    async with stack(2) as found:
        watching = asyncio.create_task(found.watch(random.Random(f"{seed}/watch")))  # noqa: S311
        end = time.monotonic() + seconds

        async def write(writer: int) -> None:
            dice = random.Random(f"{seed}/{writer}")  # noqa: S311
            while time.monotonic() < end:
                await found.change(writer, dice)

        await asyncio.gather(*(write(number) for number in range(writers)))
        watching.cancel()
        await found.published(found.done[-1].entry_id)
        await found.published(max(found.done, key=lambda each: each.ended).entry_id)
        checked = await check(found)
        proven = await prove_all(found)
        found.done.pop(len(found.done) // 2)  # the negative control: one change more than were acknowledged
        try:
            await check(found)
        except Violation as violation:
            planted = str(violation)
        else:
            raise Violation("the check did not find a change that nobody made")
    return {
        "writers": writers,
        "seconds": seconds,
        "acknowledged": len(found.done) + 1,
        "receipts_proven": proven,
        **checked,
        "planted_fault": planted,
    }


def main() -> None:
    """Runs the command line. Exits with 1 for a promise that was not kept."""
    parser = argparse.ArgumentParser(prog="faults.writers", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--writers", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    try:
        print(json.dumps(asyncio.run(run(options.writers, options.seconds, options.seed)), indent=2))
    except Violation as violation:
        sys.exit(f"violation: {violation}")


if __name__ == "__main__":
    main()
