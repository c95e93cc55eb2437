"""Kills servers and PostgreSQL at random times under load: `python -m faults.kills --kills 200 --seed 1`.

Two servers share a database and the log's folder. Clients repeat every call whose outcome they do not know, with the
same request_id, until they do. What was killed starts again while the next is killed, so that starts are hit too.
Before and after each kill changes are acknowledged. Afterwards everything is checked, and faults are planted that the
check has to find.
"""

import argparse
import asyncio
import contextlib
import random
import sys
import time
from collections import Counter

import asyncpg

from faults.clients import Clients
from faults.command import Figures, in_stack, judge, run, settle, spread
from faults.stack import Server, Stack, Violation

WRITERS = 6
PAUSE_SECONDS = 0.05
LEAST_ACKNOWLEDGED = 3  # between two kills
RECOVERY_SECONDS = 60.0
POSTGRES_SHARE = 0.3
SECONDS_A_KILL = 6.0  # the limit; most take much less


async def kill_under_load(stack: Stack, kills: int, seed: int, project_id: str = "kills") -> Figures:
    """Kills so many times, and says what is left. Raises Violation."""
    clients = Clients(stack, project_id, str(seed))
    dice = clients.dice("kills")
    await clients.prepare()
    killed: Counter[str] = Counter()
    recovery: dict[str, list[float]] = {"server": [], "postgres": []}
    ending = asyncio.Event()
    began = time.monotonic()
    async with clients.reading():
        try:
            async with asyncio.TaskGroup() as writers:
                for writer in range(WRITERS):
                    writers.create_task(clients.write(writer, PAUSE_SECONDS, ending.is_set))
                await clients.wait_acknowledged(LEAST_ACKNOWLEDGED, began, RECOVERY_SECONDS)
                for victim in _plan(kills, dice):
                    await asyncio.sleep(dice.uniform(0.0, 0.8))
                    at = time.monotonic()
                    kind = await _kill(stack, victim, dice)
                    killed[kind] += 1
                    first = await clients.wait_acknowledged(LEAST_ACKNOWLEDGED, at, RECOVERY_SECONDS)
                    recovery["postgres" if kind == "postgres" else "server"].append(first - at)
                under_load = time.monotonic() - began
                ending.set()
        finally:
            clients.dump(stack.folder / f"history-{project_id}.jsonl")
        await settle(clients)
    judged = await judge(clients)
    return {
        "kills": dict(sorted(killed.items())),
        "acknowledged_per_second": round(judged["acknowledged"] / under_load, 1),
        "seconds_to_next_acknowledgement": {kind: spread(seconds) for kind, seconds in recovery.items()},
        **judged,
    }


def _plan(kills: int, dice: random.Random) -> list[str]:
    """What is killed, one after the other."""
    postgres = round(POSTGRES_SHARE * kills)
    plan = ["postgres"] * postgres + ["server"] * (kills - postgres)
    dice.shuffle(plan)
    return plan


async def _kill(stack: Stack, victim: str, dice: random.Random) -> str:
    """Kills what is to be killed, as soon as it runs, and says in which state it was. Raises Violation."""
    end = time.monotonic() + RECOVERY_SECONDS
    while time.monotonic() < end:
        if victim == "postgres":
            if stack.kill_postgres():
                return victim
        else:
            server = dice.choice(stack.servers)
            kind = await _kind_of(stack, server)
            if server.kill():
                return kind
        await asyncio.sleep(0.02)
    raise Violation(f"{victim} does not run again within {RECOVERY_SECONDS:.0f} s")


async def _kind_of(stack: Stack, server: Server) -> str:
    if not server.address:
        return "server that starts"
    with contextlib.suppress(OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
        leader, _ = await stack.leader()
        return "server that leads" if leader is server else "server that follows"
    return "server without database"


def summary(figures: Figures) -> str:
    """One line."""
    kinds = ", ".join(f"{count} {kind}" for kind, count in figures["kills"].items())
    return (
        f"{sum(figures['kills'].values())} kills ({kinds}), {figures['acknowledged']:,} changes acknowledged and each "
        f"there once, {figures['unknown']} of unknown outcome of which {figures['unknown_that_had_committed']} had "
        f"committed, {figures['receipts_proven']:,} receipts proven, {figures['heads_seen']} heads consistent"
    )


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="faults.kills", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    limit = 300 + SECONDS_A_KILL * options.kills
    work = in_stack(lambda stack: kill_under_load(stack, options.kills, options.seed))
    sys.exit(run("kills", work, summary, options.seed, limit))


if __name__ == "__main__":
    main()
