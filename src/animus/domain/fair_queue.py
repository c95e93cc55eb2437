"""Who runs next: slots go round the keys that wait, one at a time, and within a key in the order of asking.

Sans I/O: it is told what happens and says who runs. What holds after every call of it:
- No more tickets run than there are slots, and of one key no more than its share.
- Nobody who may run waits while a slot is free, once `next` has answered None.
- A key that waits below its share gets a slot before any other gets a second one.
- Of one key no more tickets are in than it may have, running or not.
- A ticket that goes leaves nothing behind, whatever it was doing.
"""


class Ticket:
    """One that runs, waits to run, or is in and does neither."""

    __slots__ = ("key", "running")

    def __init__(self, key: str) -> None:
        self.key = key
        self.running = False


class _Lane:
    """The tickets of one key."""

    __slots__ = ("count", "line", "running")

    def __init__(self) -> None:
        self.count = 0
        self.running = 0
        self.line: dict[Ticket, None] = {}  # those that wait, in order


class FairQueue:
    """Slots, and those who want them."""

    def __init__(self, slots: int, share: int, most: int) -> None:
        """`share` of the slots are one key's at most, and `most` tickets are in for it."""
        self._free = slots
        self._share = share
        self._most = most
        self._lanes: dict[str, _Lane] = {}
        self._turns: dict[str, None] = {}  # the keys that wait below their share, in the order of their turns

    def __len__(self) -> int:
        return sum(lane.count for lane in self._lanes.values())

    def enter(self, key: str) -> Ticket | None:
        """A new ticket, which does not wait yet; None where the key has as many as it may."""
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = _Lane()
        elif lane.count >= self._most:
            return None
        lane.count += 1
        return Ticket(key)

    def wait(self, ticket: Ticket) -> None:
        """Puts a ticket, which neither runs nor waits, at the end of its key's line."""
        lane = self._lanes[ticket.key]
        lane.line[ticket] = None
        self._take_turn(ticket.key, lane)

    def next(self) -> Ticket | None:
        """The ticket that runs from now on, if there is one; to be asked again until there is none."""
        if not (self._free and self._turns):
            return None
        key = next(iter(self._turns))
        del self._turns[key]
        lane = self._lanes[key]
        ticket = next(iter(lane.line))
        del lane.line[ticket]
        ticket.running = True
        lane.running += 1
        self._free -= 1
        self._take_turn(key, lane)
        return ticket

    def rest(self, ticket: Ticket) -> None:
        """Gives a ticket's slot back, or its place in the line; it stays in."""
        lane = self._lanes[ticket.key]
        if ticket.running:
            ticket.running = False
            lane.running -= 1
            self._free += 1
            self._take_turn(ticket.key, lane)
        elif ticket in lane.line:
            del lane.line[ticket]
            if not lane.line:
                self._turns.pop(ticket.key, None)

    def leave(self, ticket: Ticket) -> None:
        """Ends a ticket, whatever it was doing."""
        self.rest(ticket)
        lane = self._lanes[ticket.key]
        lane.count -= 1
        if not lane.count:
            del self._lanes[ticket.key]

    def _take_turn(self, key: str, lane: _Lane) -> None:
        if lane.line and lane.running < self._share:
            self._turns.setdefault(key)
