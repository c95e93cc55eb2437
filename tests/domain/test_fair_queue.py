"""The fair queue: its bounds and its turns hold after anything that can happen, and a greedy queue is found out."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from animus.domain.fair_queue import FairQueue, Ticket

KEYS = "abc"
STEPS = st.lists(st.tuples(st.sampled_from(["enter", "leave", "rest", "wait"]), st.integers(0, 99)), max_size=80)


class World:
    """A queue, and what is known of it by watching."""

    def __init__(self, slots: int, share: int, most: int, kind: type[FairQueue] = FairQueue) -> None:
        self.slots, self.share, self.most = slots, share, most
        self.queue = kind(slots, share, most)
        self.tickets: list[Ticket] = []
        self.lines: dict[str, list[Ticket]] = {key: [] for key in KEYS}
        self.passed: Counter[str] = Counter()  # slots that went to others while a key could have had one

    def step(self, action: str, number: int) -> None:
        """One thing that happens; one that cannot happen now is left out."""
        if action == "enter":
            key = KEYS[number % len(KEYS)]
            count = sum(ticket.key == key for ticket in self.tickets)
            ticket = self.queue.enter(key)
            assert (ticket is None) is (count >= self.most)
            if ticket is not None:
                self.tickets.append(ticket)
                self._wait(ticket)
        elif self.tickets:
            ticket = self.tickets[number % len(self.tickets)]
            line = self.lines[ticket.key]
            if action == "wait":
                if ticket.running or ticket in line:
                    return
                self._wait(ticket)
            else:
                if ticket in line:
                    line.remove(ticket)
                if action == "leave":
                    self.tickets.remove(ticket)
                    self.queue.leave(ticket)
                else:
                    self.queue.rest(ticket)
        self.hand_out()

    def hand_out(self) -> None:
        """Hands out what is free, and checks it all."""
        while (ticket := self.queue.next()) is not None:
            assert self.lines[ticket.key].pop(0) is ticket, "the order within a key"
            for key in KEYS:
                waits = bool(self.lines[key]) and self.running(key) < self.share
                self.passed[key] = self.passed[key] + 1 if waits and key != ticket.key else 0
                assert self.passed[key] < len(KEYS), f"{key} starves"
        for key in KEYS:
            if not self.lines[key] or self.running(key) == self.share:
                self.passed[key] = 0
        assert self.running() <= self.slots
        assert all(self.running(key) <= self.share for key in KEYS)
        assert len(self.queue) == len(self.tickets)
        if self.running() < self.slots:
            assert not [key for key in KEYS if self.lines[key] and self.running(key) < self.share], "a slot is idle"

    def running(self, key: str = "") -> int:
        """How many run."""
        return sum(ticket.running for ticket in self.tickets if ticket.key == key or not key)

    def _wait(self, ticket: Ticket) -> None:
        self.lines[ticket.key].append(ticket)
        self.queue.wait(ticket)


@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 6), STEPS)
def test_bounds_order_and_turns_hold_whatever_happens(
    slots: int, share: int, most: int, steps: list[tuple[str, int]]
) -> None:
    """Slots, shares and counts are kept, no slot is idle, nobody overtakes within a key, no key starves."""
    world = World(slots, min(share, slots), most)
    for action, number in steps:
        world.step(action, number)
    while world.tickets:
        world.step("leave", 0)
    assert len(world.queue) == 0
    assert world.queue._lanes == world.queue._turns == {}, "nothing is left behind"


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_slots_go_round_the_keys(slots: int) -> None:
    """With many of one key in line, the first of another is next, and then they alternate."""
    queue = FairQueue(slots, slots, 100)
    many = [queue.enter("a") for _ in range(20)]
    for ticket in many:
        assert ticket is not None
        queue.wait(ticket)
    running = [queue.next() for _ in range(slots)]
    for _ in range(5):
        ticket = queue.enter("b")
        assert ticket is not None
        queue.wait(ticket)
    order = ""
    for _ in range(10):
        first = running.pop(0)
        assert first is not None
        queue.leave(first)
        found = queue.next()
        assert found is not None
        order += found.key
        running.append(found)
    assert order == "ba" * 5


class Greedy(FairQueue):
    """A queue that serves one key to the end of its line before it looks at another."""

    def next(self) -> Ticket | None:
        """The next of the key that comes first by name."""
        self._turns = dict.fromkeys(sorted(self._turns))
        return super().next()


class Forgetful(FairQueue):
    """A queue that does not give the slot of one that was cancelled to the next."""

    def leave(self, ticket: Ticket) -> None:
        """Loses the slot."""
        running = ticket.running
        super().leave(ticket)
        self._free -= running


@pytest.mark.parametrize(("kind", "fault"), [(Greedy, "starves"), (Forgetful, "a slot is idle")])
def test_a_queue_that_is_not_fair_is_found_out(kind: type[FairQueue], fault: str) -> None:
    """Negative control: the same watching finds a planted fault."""
    world = World(1, 1, 10, kind)

    def run() -> None:
        for _ in range(20):
            for key in (0, 0, 1):
                world.step("enter", key)
            world.step("leave", [ticket.running for ticket in world.tickets].index(True))

    with pytest.raises(AssertionError, match=fault):
        run()
