"""What one caller may take of a server: calls a second, and turns with others at what runs at once.

A call is in from the moment in which its caller is known until its end, and has a slot while it works. It gives the
slot back while it waits for a log to grow, a stream also while its client reads; so a slot is only ever held by what
makes progress. Nothing here is of the database: each server bounds what it takes itself.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from typing import Any

import grpc
from grpc_health.v1 import health

from animus.domain.access import Principal
from animus.domain.errors import Unavailable
from animus.domain.fair_queue import FairQueue, Ticket
from animus.domain.limits import SECOND, Buckets, Rate

WAIT_SECONDS = 20.0  # for a slot; a call that was not begun by then is better made again
CALLS_OF_PROJECT = 200  # that are in, streams among them
MAX_CALLERS = 10_000  # whose rates are kept
STREAMS_OF_PROJECT = 32
STREAMS = 200
WATCHES = 100  # of health
LOOKUPS = 2  # of credentials at once
LOOKUPS_WAITING = 1_000
BACKGROUND = 4  # database connections that the log, its followers and the health check take
PROJECT_FIELD = b"\x0a"  # number 1, of bytes: with it every request of a project begins
MAX_PROJECT_LENGTH = 63


class Place:
    """Where a call is: it runs, waits for a slot, or rests."""

    def __init__(self, turns: "Turns", ticket: Ticket) -> None:
        self._turns = turns
        self._ticket = ticket

    async def run(self, wait_seconds: float | None) -> None:
        """Returns when the call has a slot. Raises Unavailable BUSY after a wait."""
        if not self._ticket.running:
            await self._turns.run(self._ticket, wait_seconds)

    def rest(self) -> None:
        """Gives the slot back, for the next."""
        self._turns.rest(self._ticket)


_here: ContextVar[Place | None] = ContextVar("animus_place", default=None)


@asynccontextmanager
async def resting() -> AsyncIterator[None]:
    """Around a wait for what others bring about: the call has no slot meanwhile, and takes its turn again afterwards.

    Who leaves by an exception goes on without: there is little left to do.
    """
    place = _here.get()
    if place is not None:
        place.rest()
    yield
    if place is not None:
        await place.run(WAIT_SECONDS)


class Turns:
    """A fair queue whose tickets are calls of this process."""

    def __init__(self, slots: int, share: int, most: int) -> None:
        self._queue = FairQueue(slots, share, most)
        self._waiting: dict[Ticket, asyncio.Future[None]] = {}

    def __len__(self) -> int:
        return len(self._queue)

    @asynccontextmanager
    async def taken(self, key: str) -> AsyncIterator[Place]:
        """A slot, in turn. Raises Unavailable BUSY at once where too many of the key are in, or after a wait."""
        ticket = self._queue.enter(key)
        if ticket is None:
            raise _busy("too many calls are open")
        place = Place(self, ticket)
        try:
            await place.run(WAIT_SECONDS)
            yield place
        finally:
            self._queue.leave(ticket)
            self._hand_out()

    async def run(self, ticket: Ticket, wait_seconds: float | None) -> None:
        """Returns when a ticket has a slot."""
        self._queue.wait(ticket)
        self._hand_out()
        if ticket.running:
            return
        turn = self._waiting[ticket] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(wait_seconds):
                await turn
        except TimeoutError:
            raise _busy("the calls before this one take too long") from None
        finally:
            del self._waiting[ticket]

    def rest(self, ticket: Ticket) -> None:
        """Gives back what a ticket has."""
        self._queue.rest(ticket)
        self._hand_out()

    def _hand_out(self) -> None:
        while (ticket := self._queue.next()) is not None:
            turn = self._waiting.get(ticket)
            if turn is not None and not turn.done():  # one that is cancelled leaves by itself, and hands on
                turn.set_result(None)


class Limits:
    """The limits of one server."""

    def __init__(self, slots: int, share: int, rate: Rate | None) -> None:
        """`share` of the slots are one project's at most; no rate is no limit."""
        self.calls = Turns(slots, share, CALLS_OF_PROJECT)
        self.lookups = Turns(LOOKUPS, LOOKUPS, LOOKUPS_WAITING)
        self._rate = rate
        self._buckets = Buckets(rate, MAX_CALLERS) if rate else None
        self._streams: Counter[str] = Counter()

    def charge(self, principal: Principal) -> None:
        """Counts a call of a caller. Raises Unavailable RATE_LIMITED, which says when there is room for it."""
        if self._buckets is None or self._rate is None:
            return
        key = f"{principal.credential}/{principal.project_id}/{principal.name}"
        wait = self._buckets.take(key, time.monotonic_ns())
        if wait:
            seconds = wait / SECOND
            raise Unavailable(
                "RATE_LIMITED",
                f"more than {self._rate.per_second} calls a second: repeat this one in {seconds:.3f} seconds",
                seconds,
                per_second=str(self._rate.per_second),
                retry_after=f"{seconds:.3f}",
            )

    @asynccontextmanager
    async def place(self, project_id: str) -> AsyncIterator[Place]:
        """A slot for a call that counts for a project. Raises Unavailable BUSY."""
        async with self.calls.taken(project_id) as place:
            _here.set(place)  # for good: every call is a task of its own
            yield place

    @contextmanager
    def stream(self, project_id: str) -> Iterator[None]:
        """Counts a stream as open. Raises Unavailable BUSY where too many are."""
        if self._streams[project_id] >= STREAMS_OF_PROJECT or self._streams.total() >= STREAMS:
            raise _busy("too many streams are open")
        self._streams[project_id] += 1
        try:
            yield
        finally:
            self._streams[project_id] -= 1
            if not self._streams[project_id]:
                del self._streams[project_id]


class BoundedHealth(health.aio.HealthServicer):
    """Health, for which nobody needs a credential; so many may watch it at once."""

    _watching = 0

    async def Watch(self, request: Any, context: Any) -> None:
        """Refuses one watch too many."""
        if self._watching >= WATCHES:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many watch the health of this server")
        self._watching += 1
        try:
            await super().Watch(request, context)
        finally:
            self._watching -= 1


def limits_of(slots: int, pool_size: int, per_second: int, burst: int) -> Limits:
    """The limits of a server with so many database connections, of which lookups and the log keep their own.

    One project has half of the slots at most, also while no other calls: so there is always one free for the first
    call of another.
    """
    slots = max(2, min(slots, pool_size - LOOKUPS - BACKGROUND))
    return Limits(slots, slots // 2, Rate(per_second, burst) if per_second else None)


def counted_for(principal: Principal, data: bytes) -> str:
    """The project that a call counts for: the one that the request names, if the caller has roles there; else its own.

    Reads the first field, without parsing the rest. Whatever the request turns out to say, the caller can only use up
    what is of a project in which it may call.
    """
    asked = ""
    if data[:1] == PROJECT_FIELD and len(data) > 1 and data[1] <= MAX_PROJECT_LENGTH:
        asked = data[2 : 2 + data[1]].decode("ascii", "replace")
    return asked if asked in principal.grants else principal.project_id


def _busy(why: str) -> Unavailable:
    return Unavailable("BUSY", f"{why}: repeat the call later")
