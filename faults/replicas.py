"""Takes the server that leads the log away, again and again: `python -m faults.replicas --times 10 --stops 5`.

First it is killed, and the time is taken until the other has integrated and published a new entry. Then, under load, it
is stopped for longer than its lease and goes on: by then the other leads, and the one that comes back may do no harm.
"""

import argparse
import asyncio
import signal
import sys
import time

from faults.clients import Clients
from faults.command import Figures, in_stack, judge, run, settle, spread
from faults.proofs import open_receipt
from faults.stack import Server, Stack, Violation

WRITERS = 4
PAUSE_SECONDS = 0.02
STOPPED_SECONDS = 3.0  # the lease is two
PATIENCE_SECONDS = 30.0
# One that is stopped while it writes the signer's state keeps others from it: they say so and take no change meanwhile.
LOCKED = ("signer.db: database is locked",)


async def take_away(stack: Stack, times: int, stops: int, seed: int, project_id: str = "replicas") -> Figures:
    """Kills the leader so many times, stops it so many times, and says what is left. Raises Violation."""
    stack.explained = LOCKED
    clients = Clients(stack, project_id, str(seed))
    await clients.prepare()
    integrated, published, taken_over = list[float](), list[float](), list[float]()
    async with clients.reading():
        try:
            for _ in range(times):
                after = await _kill_leader(stack, clients)
                integrated.append(after[0])
                published.append(after[1])
                await stack.wait_up()
            ending = asyncio.Event()
            async with asyncio.TaskGroup() as writers:
                for writer in range(WRITERS):
                    writers.create_task(clients.write(writer, PAUSE_SECONDS, ending.is_set))
                for _ in range(stops):
                    taken_over.append(await _stop_leader(stack, clients))
                ending.set()
        finally:
            clients.dump(stack.folder / f"history-{project_id}.jsonl")
        await settle(clients)
    return {
        "leaders_killed": times,
        "seconds_to_integrated": spread(integrated),
        "seconds_to_published": spread(published),
        "leaders_stopped": stops,
        "seconds_to_taken_over": spread(taken_over),
        **await judge(clients),
    }


async def _leader(stack: Stack) -> tuple[Server, Server, int]:
    """The server that leads, the other, and the fence. Raises Violation."""
    end = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < end:
        leader, fence = await stack.leader()
        if leader is not None and leader.address:
            return leader, next(server for server in stack.servers if server is not leader), fence
        await asyncio.sleep(0.05)
    raise Violation("no server that runs leads the log")


async def _kill_leader(stack: Stack, clients: Clients) -> tuple[float, float]:
    """Seconds from a kill of the leader until the other has integrated an entry, and until it has published it."""
    leader, other, fence = await _leader(stack)
    killed = time.monotonic()
    leader.kill()
    change = await clients.change(0, clients.dice(fence))
    entry_id = open_receipt(change.reply.receipt, stack.key(clients.project_id)).entry_id
    end = killed + PATIENCE_SECONDS
    while not await stack.rows("SELECT FROM animus.log_leaf WHERE entry_id = $1", entry_id):
        if time.monotonic() > end:
            raise Violation(f"{entry_id} has no index {PATIENCE_SECONDS:.0f} s after the leader was killed")
        await asyncio.sleep(0.02)
    integrated = time.monotonic() - killed
    await clients.wait_included(other, entry_id, PATIENCE_SECONDS)
    published = time.monotonic() - killed
    _, after = await stack.leader()
    if after <= fence:
        raise Violation(f"the fence is {after} where it was {fence}, and another leads")
    return integrated, published


async def _stop_leader(stack: Stack, clients: Clients) -> float:
    """Seconds from a stop of the leader until the other has taken over; the leader goes on after its lease."""
    leader, other, fence = await _leader(stack)
    await asyncio.sleep(clients.dice(fence).uniform(0.0, 1.0))
    pid = leader.pid
    stopped = time.monotonic()
    leader.signal(signal.SIGSTOP)
    try:
        while True:
            led, after = await stack.leader()
            if led is other:
                break
            if time.monotonic() > stopped + PATIENCE_SECONDS:
                raise Violation(f"nobody leads {PATIENCE_SECONDS:.0f} s after the leader was stopped")
            await asyncio.sleep(0.02)
        taken_over = time.monotonic() - stopped
        await asyncio.sleep(max(0.0, stopped + STOPPED_SECONDS - time.monotonic()))
    finally:
        leader.signal(signal.SIGCONT)
    if after != fence + 1:
        raise Violation(f"the fence is {after}: one change of hands was to come after {fence}")
    await clients.wait_acknowledged(20, time.monotonic(), PATIENCE_SECONDS)
    await stack.wait_up()
    if leader.pid != pid:
        raise Violation(f"{leader.name} did not live through a stop of {STOPPED_SECONDS:.0f} s")
    return taken_over


def summary(figures: Figures) -> str:
    """One line."""
    published, stopped = figures["seconds_to_published"], figures["seconds_to_taken_over"]
    return (
        f"{figures['leaders_killed']} leaders killed, a new entry published by the other after "
        f"{published['least']}/{published['median']}/{published['most']} s (least/median/most); "
        f"{figures['leaders_stopped']} stopped, taken over after {stopped['median']} s, and they did no harm when they "
        f"went on; {figures['receipts_proven']:,} receipts proven"
    )


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="faults.replicas", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--stops", type=int, default=5)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    if options.times < 1 or options.stops < 1:
        parser.error("at least one of each")
    limit = 180.0 + 20 * (options.times + options.stops)
    work = in_stack(lambda stack: take_away(stack, options.times, options.stops, options.seed))
    sys.exit(run("replicas", work, summary, options.seed, limit))


if __name__ == "__main__":
    main()
