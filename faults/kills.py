"""Kills servers and PostgreSQL at random points under load: `python -m faults.kills --kills 200 --seed 1`.

Two servers share a database and the log's folder. Clients repeat every call whose outcome they do not know, with the
same request_id, until they do. Afterwards everything is checked, and then a fault is planted that the check has to
find.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import sys
import time
from typing import Any

import asyncpg

from faults.harness import Stack, Violation, check, prove_all, stack

WRITERS = 6


async def write(found: Stack, writer: int, dice: random.Random, ending: asyncio.Event) -> None:
    """Makes one change after the other."""
    while not ending.is_set():
        await found.change(writer, dice)
        await asyncio.sleep(dice.uniform(0, 0.05))


async def kill_postgres(found: Stack) -> None:
    """Ends PostgreSQL's first process as a crash would, and starts it again."""
    os.kill(found.postgres.pid, signal.SIGKILL)
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            await asyncio.to_thread(found.postgres.poll)
            await found.sql("SELECT 1")
            return
        except (OSError, RuntimeError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            last = error
            await asyncio.sleep(0.05)
    raise Violation(f"PostgreSQL does not come back: {last}")


async def run(kills: int, seed: int) -> dict[str, Any]:
    """Runs it. Raises Violation."""
    dice = random.Random(seed)  # noqa: S311
    killed = {"server": 0, "postgres": 0}
    began = time.monotonic()
    async with stack(2) as found:
        ending = asyncio.Event()
        writers = [
            asyncio.create_task(write(found, number, random.Random(f"{seed}/{number}"), ending))  # noqa: S311
            for number in range(WRITERS)
        ]
        watching = asyncio.create_task(found.watch(random.Random(f"{seed}/watch")))  # noqa: S311
        idle = 0
        for _ in range(kills):
            before = len(found.done)
            await asyncio.sleep(dice.uniform(0.1, 1.0))
            if dice.random() < 0.3:
                await kill_postgres(found)
                killed["postgres"] += 1
            else:
                replica = dice.choice(found.replicas)
                await replica.kill()
                killed["server"] += 1
                await replica.start()
            idle += len(found.done) == before
            for task in writers:
                if task.done():
                    task.result()
        ending.set()
        await asyncio.gather(*writers)
        watching.cancel()
        await found.published(max(found.done, key=lambda each: each.ended).entry_id)
        await found.published(found.done[-1].entry_id)
        checked = await check(found)
        proven = await prove_all(found)
        if idle > kills // 2:
            raise Violation(f"nothing was acknowledged between {idle} of {kills} kills: there was no load")
        planted = await plant(found)
    return {
        "seed": seed,
        "killed": killed,
        "acknowledged": len(found.done),
        "tries_of_unknown_outcome": sum(each.unknown for each in found.done),
        "receipts_proven": proven,
        **checked,
        "planted_fault": planted,
        "seconds": round(time.monotonic() - began),
    }


async def plant(found: Stack) -> str:
    """The negative control: an entry that is removed by a superuser has to be found. Returns what was found."""
    await found.sql("ALTER TABLE animus.audit_entry DISABLE TRIGGER ALL")
    await found.sql("DELETE FROM animus.audit_entry WHERE entry_id = $1", found.done[len(found.done) // 2].entry_id)
    try:
        await check(found)
    except Violation as violation:
        return str(violation)
    raise Violation("the check did not find an entry that was removed")


def main() -> None:
    """Runs the command line. Exits with 1 for a promise that was not kept."""
    parser = argparse.ArgumentParser(prog="faults.kills", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    print(f"seed {options.seed}", file=sys.stderr, flush=True)
    try:
        print(json.dumps(asyncio.run(run(options.kills, options.seed)), indent=2))
    except Violation as violation:
        sys.exit(f"violation: {violation}")


if __name__ == "__main__":
    main()
