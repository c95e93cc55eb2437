"""What the fault scripts share: a folder that is kept on failure, a time limit, JSON, one line, an exit code."""

import asyncio
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from faults.check import gather, plant, problems_said, prove, violations
from faults.clients import Clients
from faults.stack import Stack, Violation, open_stack

SERVERS = 2
READ_SECONDS = 60.0

Figures = dict[str, Any]


def run(
    name: str, work: Callable[[Path], Awaitable[Figures]], summary: Callable[[Figures], str], seed: int, limit: float
) -> int:
    """Does the work in a new folder, within so many seconds; prints the figures and a line.

    Returns 1 for a promise that was not kept. Then the folder stays: data directories, logs, history.
    """
    print(f"{name}: seed {seed}", file=sys.stderr, flush=True)
    folder = new_folder()
    began = time.monotonic()
    figures: Figures = {"seed": seed}
    wrong: list[str] = []

    async def bounded() -> Figures:
        async with asyncio.timeout(limit):
            return await work(folder)

    try:
        figures |= asyncio.run(bounded())
    except* (Violation, TimeoutError) as group:
        wrong += [str(error) or f"not over after {limit:.0f} s" for error in _leaves(group)]
    except* BaseException:
        print(f"{name}: kept: {folder}", file=sys.stderr)
        raise
    wrong += figures.get("violations", [])
    figures |= {"violations": wrong, "seconds": round(time.monotonic() - began)}
    print(json.dumps(figures, indent=2), flush=True)
    if wrong:
        print(f"{name}: {len(wrong)} violations, seed {seed}, kept: {folder}: {wrong[0]}", file=sys.stderr)
        return 1
    shutil.rmtree(folder)
    print(f"{name}: {summary(figures)}; no violation, seed {seed}, {figures['seconds']} s", file=sys.stderr)
    return 0


def in_stack(work: Callable[[Stack], Awaitable[Figures]]) -> Callable[[Path], Awaitable[Figures]]:
    """The same work in a folder, with a stack of its own."""

    async def done(folder: Path) -> Figures:
        async with open_stack(folder, SERVERS) as stack:
            return await work(stack)

    return done


def new_folder() -> Path:
    """A folder that PostgreSQL's account may enter."""
    folder = Path(tempfile.mkdtemp(prefix="animus-faults-"))
    folder.chmod(0o711)
    return folder


async def settle(clients: Clients) -> None:
    """Waits until the system is whole again and all of the history is published and read. Raises Violation."""
    await clients.stack.wait_up()
    await clients.wait_published(READ_SECONDS)
    await clients.wait_all_read(READ_SECONDS)


async def judge(clients: Clients) -> Figures:
    """Figures of the history, and what is wrong with it. The planted faults are for sound evidence only."""
    stack = clients.stack
    clients.dump(stack.folder / f"history-{clients.project_id}.jsonl")
    found = await gather(clients)
    wrong = [*clients.violations, *stack.problems(), *await problems_said(stack, clients), *violations(found)]
    proven, unproven = await prove(clients, found)
    wrong += unproven
    unknown = [change for change in clients.changes if change.unknown]
    return {
        "acknowledged": len(clients.changes),
        "unknown": len(unknown),
        "unknown_that_had_committed": sum(change.reply.replayed for change in unknown),
        "failed_tries": dict(sorted(clients.failures.items())),
        "sent_again": clients.repeated,
        "entries": len(found.tables.leaves.get(clients.project_id, [])),
        "checkpoints": sum(log == clients.project_id for log, _, _ in found.tables.checkpoints),
        "receipts_proven": proven.receipts,
        "heads_seen": proven.heads,
        "consistency_proofs": proven.consistency,
        "streams_resumed": sum(tail.resumed for tail in clients.tails),
        "server_starts": sum(server.starts for server in stack.servers),
        "planted_and_found": {} if wrong else await plant(clients, found),
        "violations": wrong,
    }


def spread(seconds: Sequence[float]) -> Figures:
    """Least, median and most."""
    if not seconds:
        return {}
    found = {"least": min(seconds), "median": statistics.median(seconds), "most": max(seconds)}
    return {name: round(value, 2) for name, value in found.items()}


def _leaves(error: BaseException) -> Iterator[BaseException]:
    """The errors of a group."""
    inside: Iterable[BaseException] = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
    if not inside:
        yield error
    for each in inside:
        yield from _leaves(each)
