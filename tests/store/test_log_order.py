"""The order of the log: nothing is lost, each index is taken once, and what came after something stands after it.

Transactions are held open by hand, so that every way in which a few can overlap is tried. The two classic mistakes are
here too, to show that these checks would find them.
"""

import asyncio
import itertools
import random
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, Protocol

import pytest
from conftest import create_database, drop_database
from domain import trees
from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from animus.domain import document, merkle
from animus.domain.access import Role, principal_of
from animus.domain.audit import AuditEntry, AuditOutcome
from animus.domain.project import Project
from animus.keyring import Keyring
from animus.store.embedded import EmbeddedPostgres
from animus.store.log import LogStore, NotLeading
from animus.store.unit_of_work import Call, Change, UnitOfWork, View
from animus.v1 import project_pb2
from animus.workers.integrator import BATCH, Integrator, grow

NAME = "log_order"


@pytest.fixture(scope="module")
async def engine(postgres: EmbeddedPostgres, admin: AsyncEngine, template: str) -> AsyncIterator[AsyncEngine]:
    """The service role's engine on a database of these tests; each takes a project of its own."""
    await create_database(admin, NAME, template)
    found = create_async_engine(make_url(postgres.service_url).set(database=NAME), pool_size=20, hide_parameters=True)
    yield found
    await found.dispose()
    await drop_database(admin, NAME)


@pytest.fixture(scope="module")
def keyring(tmp_path_factory: pytest.TempPathFactory) -> Keyring:
    """The keys of the log."""
    return Keyring.create(tmp_path_factory.mktemp("log"), "animus.example")[0]


@dataclass(slots=True)
class World:
    """One log, and what is done to it."""

    engine: AsyncEngine
    keyring: Keyring
    project_id: str = field(default_factory=lambda: f"p{secrets.token_hex(8)}")
    hashes: dict[str, bytes] = field(default_factory=dict)  # by entry, whether or not it was committed

    async def open(self, entry_id: str, stack: AsyncExitStack) -> AsyncConnection:
        """A transaction that has written an entry and not committed; closed with the stack."""
        connection = await stack.enter_async_context(self.engine.connect())
        data = document.dump(entry(self.project_id, entry_id))
        leaf_hash = self.hashes[entry_id] = trees.leaf(data)
        await connection.execute(
            text("SELECT set_config('animus.project_id', :project, true)"), {"project": self.project_id}
        )
        values = {
            "project": self.project_id,
            "entry": entry_id,
            "document": data,
            "leaf_hash": leaf_hash,
            "seal": self.keyring.seal(self.project_id, entry_id, leaf_hash),
        }
        await connection.execute(
            text("INSERT INTO animus.audit_entry (project_id, document) VALUES (:project, :document)"), values
        )
        await connection.execute(
            text(
                "INSERT INTO animus.audit_queue (project_id, entry_id, leaf_hash, seal)"
                " VALUES (:project, :entry, :leaf_hash, :seal)"
            ),
            values,
        )
        return connection

    async def leaves(self) -> list[tuple[int, str, bytes]]:
        """Index, entry and hash of each leaf."""
        async with self.engine.connect() as connection:
            await connection.execute(text("SELECT set_config('animus.every_project', 'on', true)"))
            rows = await connection.execute(
                text(
                    "SELECT index, entry_id, leaf_hash FROM animus.log_leaf WHERE project_id = :project ORDER BY index"
                ),
                {"project": self.project_id},
            )
            return [(index, entry_id, leaf_hash) for index, entry_id, leaf_hash in rows]

    async def forget(self) -> None:
        """Empties the queue, for designs that do not."""
        async with self.engine.connect() as connection, connection.begin():
            await connection.execute(text("SELECT set_config('animus.every_project', 'on', true)"))
            await connection.execute(
                text("DELETE FROM animus.audit_queue WHERE project_id = :project"), {"project": self.project_id}
            )


def entry(project_id: str, entry_id: str) -> AuditEntry:
    """An audit entry."""
    return AuditEntry(
        project_id=project_id,
        entry_id=entry_id,
        principal="tester",
        action="dataset.create",
        resource="",
        method="animus.v1.DatasetService/CreateDataset",
        request_id="r",
        request_digest="sha256:" + "0" * 64,
        time="2026-01-02T03:04:05.000000Z",
        outcome=AuditOutcome.ACCEPTED,
        reason="",
        records=(),
        refusals=(),
        reply_digest="sha256:" + "0" * 64,
    )


@pytest.fixture
def world(engine: AsyncEngine, keyring: Keyring) -> World:
    """A new log."""
    return World(engine, keyring)


# Ways to integrate.


class Design(Protocol):
    """How entries of the queue are given their order."""

    async def step(self, limit: int) -> int:
        """Gives at most `limit` entries their place, and returns how many."""

    async def order(self) -> list[str]:
        """The entries in their order."""


class Ours:
    """The integrator of the program."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._store = LogStore(world.engine, "holder")
        self._integrator = Integrator(world.keyring)

    async def step(self, limit: int) -> int:
        """A transaction of the leader."""
        async with self._store.lead() as writer:
            return await self._integrator.step(writer, limit)

    async def order(self) -> list[str]:
        """As the log has them; its indexes are dense, and its tree is that of its leaves."""
        leaves = await self._world.leaves()
        assert [index for index, _, _ in leaves] == list(range(len(leaves)))
        assert all(leaf_hash == self._world.hashes[entry_id] for _, entry_id, leaf_hash in leaves)
        async with self._store.lead() as writer:
            tree = (await writer.trees([self._world.project_id])).get(self._world.project_id, merkle.EMPTY_RANGE)
        assert tree.size == len(leaves)
        assert merkle.root(tree) == trees.mth([leaf_hash for _, _, leaf_hash in leaves])
        return [entry_id for _, entry_id, _ in leaves]


class Watermark:
    """The mistake: to remember the last number that was seen, and to look only beyond it."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._last = 0
        self._order: list[str] = []

    async def step(self, limit: int) -> int:
        """Reads on from the last transaction."""
        async with self._world.engine.connect() as connection:
            await connection.execute(text("SELECT set_config('animus.every_project', 'on', true)"))
            rows = await connection.execute(
                text(
                    "SELECT entry_id, CAST(CAST(written_in AS text) AS bigint) AS number FROM animus.audit_queue"
                    " WHERE project_id = :project AND CAST(CAST(written_in AS text) AS bigint) > :last"
                    " ORDER BY 2 LIMIT :limit"
                ),
                {"project": self._world.project_id, "last": self._last, "limit": limit},
            )
            found = rows.all()
        for row in found:
            self._order.append(row.entry_id)
            self._last = row.number
        return len(found)

    async def order(self) -> list[str]:
        """As it has seen them."""
        return self._order


# Schedules.

Event = tuple[str, str]  # `open` or `commit`, and the entry
Looks = Collection[int]  # after which events an integrator looks
ALWAYS, AT_THE_END = range(6), ()


def schedules(count: int) -> Iterator[tuple[Event, ...]]:
    """Every way in which so many transactions can open and commit; the order in which they open is none of names."""
    names = [f"{number:032x}" for number in (2, 3, 1)[:count]]
    for places in set(itertools.permutations([name for name in names for _ in range(2)])):
        seen: set[str] = set()
        events = []
        for name in places:
            events.append(("commit" if name in seen else "open", name))
            seen.add(name)
        if [name for kind, name in events if kind == "open"] == names:
            yield tuple(events)


def lost(order: Sequence[str], schedule: Sequence[Event]) -> set[str]:
    """Entries that were committed and have no place."""
    return {name for _, name in schedule} - set(order)


def misplaced(order: Sequence[str], schedule: Sequence[Event]) -> set[tuple[str, str]]:
    """Pairs that stand in the other order than their transactions, which did not overlap."""
    return {
        (first, second)
        for at, (kind, first) in enumerate(schedule)
        if kind == "commit"
        for later, second in schedule[at:]
        if later == "open" and first in order and second in order and order.index(first) > order.index(second)
    }


async def played(schedule: Sequence[Event], world: World, design: Design, limit: int, looks: Looks) -> list[str]:
    """The order that a design comes to when it looks after some of the events, and then until nothing comes."""
    async with AsyncExitStack() as stack:
        opened: dict[str, AsyncConnection] = {}
        for at, (kind, name) in enumerate(schedule):
            if kind == "open":
                opened[name] = await world.open(name, stack)
            else:
                await opened[name].commit()
            if at in looks:
                await design.step(limit)
        while await design.step(limit):
            pass
    return await design.order()


ALL = sorted(schedules(3))


def test_every_way_to_overlap_is_tried() -> None:
    """Three transactions have 15 schedules: those in which none overlap, all do, and whatever is between."""
    assert len(ALL) == 15
    kinds = {"".join(kind[0] for kind, _ in schedule) for schedule in ALL}
    assert kinds == {"ocococ", "ocoocc", "oococc", "ooccoc", "oooccc"}


@pytest.mark.parametrize("looks", [ALWAYS, AT_THE_END, [1], [2], [3], [4]], ids=str)
@pytest.mark.parametrize("limit", [1, 2, BATCH])
async def test_overlapping_transactions_all_get_in_and_others_keep_their_order(
    limit: int, looks: Looks, engine: AsyncEngine, keyring: Keyring
) -> None:
    """Every schedule of three, whether the integrator takes one entry at a time, two or all, and whenever it looks."""
    for schedule in ALL:
        world = World(engine, keyring)
        order = await played(schedule, world, Ours(world), limit, looks)
        assert lost(order, schedule) == set()
        assert len(order) == 3
        assert misplaced(order, schedule) == set()


async def test_the_first_to_open_and_last_to_commit_gets_in(world: World) -> None:
    """After the other, which had its index by then; indexes are dense."""
    first, second = (f"{number:032x}" for number in range(2))
    schedule = [("open", first), ("open", second), ("commit", second), ("commit", first)]
    assert await played(schedule, world, Ours(world), BATCH, ALWAYS) == [second, first]


async def test_a_watermark_loses_whoever_commits_late(engine: AsyncEngine, keyring: Keyring) -> None:
    """The same check finds it: in each schedule where one opens before another and commits after it, and only there."""
    for schedule in ALL:
        world = World(engine, keyring)
        order = await played(schedule, world, Watermark(world), BATCH, ALWAYS)
        await world.forget()
        opens, commits = ([name for each, name in schedule if each == kind] for kind in ("open", "commit"))
        after = {name: opens[at + 1 :] for at, name in enumerate(opens)}
        late = {name for at, name in enumerate(commits) if set(commits[:at]) & set(after[name])}
        assert lost(order, schedule) == late


def test_an_order_by_the_end_of_transactions_alone_is_found_where_it_is_wrong() -> None:
    """Entries in the other order than their transactions are misplaced; those of overlapping ones may be either way."""
    apart = [("open", "a"), ("commit", "a"), ("open", "b"), ("commit", "b")]
    across = [("open", "a"), ("open", "b"), ("commit", "a"), ("commit", "b")]
    assert misplaced(["b", "a"], apart) == {("a", "b")}
    assert misplaced(["a", "b"], apart) == misplaced(["b", "a"], across) == misplaced(["a", "b"], across) == set()


# Many writers, by the unit of work.


async def test_changes_of_many_callers_are_in_the_log_in_each_ones_order(world: World) -> None:
    """Twelve callers make ten changes each, one after another, while the integrator takes five at a time."""
    work = UnitOfWork(world.engine, lambda: secrets.token_hex(16), world.keyring.seal, None)
    principal = principal_of("tester", Role.ADMIN, world.project_id)
    made: dict[int, list[str]] = {}

    async def decide(view: View) -> Change:
        records = () if view.project_known else (document.seal(Project(world.project_id, "", "", ())),)
        return Change("project.create", f"projects/{world.project_id}", records, (), project_pb2.Project())

    async def change(request_id: str) -> str:
        call = Call("animus.v1.ProjectService/CreateProject", world.project_id, principal, request_id, False, b"{}")
        logged = (await work.change(call, decide, creates_project=True)).logged
        assert logged is not None
        world.hashes[logged.entry_id] = logged.leaf_hash
        return logged.entry_id

    async def caller(number: int) -> None:
        made[number] = [await change(f"{number}-{count}") for count in range(10)]

    ours = Ours(world)
    first = await change("first")
    calling = asyncio.gather(*(caller(number) for number in range(12)))
    while not calling.done():
        await ours.step(5)
    await calling
    while await ours.step(5):
        pass
    order = await ours.order()
    assert order[0] == first
    assert sorted(order) == sorted([first, *itertools.chain(*made.values())])
    for entries in made.values():
        assert [each for each in order if each in set(entries)] == entries


async def test_an_integrator_that_ends_in_the_middle_has_done_nothing(world: World) -> None:
    """What it took is in the queue again, no leaf is left, and the next takes all of it."""
    async with AsyncExitStack() as stack:
        for number in range(3):
            await (await world.open(f"{number:032x}", stack)).commit()
    leading = LogStore(world.engine, "holder").lead()
    writer = await leading.__aenter__()
    assert await Integrator(world.keyring).step(writer) == 3
    assert not await leading.__aexit__(ZeroDivisionError, ZeroDivisionError(), None)
    assert await world.leaves() == []
    ours = Ours(world)
    assert await ours.step(BATCH) == 3
    assert await ours.order() == [f"{number:032x}" for number in range(3)]


async def test_tiles_are_stored_when_they_are_full_on_each_level(world: World) -> None:
    """66,000 leaves in batches of many sizes, beside another log that grows: tiles of level 0 and 1, and no others."""
    leaves = [trees.leaf(b"%d" % number) for number in range(66_000)]
    store = LogStore(world.engine, "holder")
    rng = random.Random(1)
    size = 0
    while size < len(leaves):
        batch = leaves[size : size + rng.choice([1, 255, 256, 257, rng.randint(1, 20_000)])]
        other = [(f"{world.project_id}-b", f"{size}-{at}", leaf) for at, leaf in enumerate(batch[:100])]
        ours = [(world.project_id, str(size + at), leaf) for at, leaf in enumerate(batch)]
        async with store.lead() as writer:
            await grow(writer, [*ours[:50], *other, *ours[50:]])
        size += len(batch)
    roots = [trees.mth(leaves[at : at + 256]) for at in range(0, len(leaves) - 255, 256)]
    expected = [(0, at, b"".join(leaves[256 * at : 256 * at + 256]), root) for at, root in enumerate(roots)]
    expected.append((1, 0, b"".join(roots[:256]), trees.mth(roots[:256])))
    async with world.engine.connect() as connection:
        await connection.execute(text("SELECT set_config('animus.every_project', 'on', true)"))
        found = await connection.execute(
            text(
                "SELECT level, index, hashes, root FROM animus.log_tile WHERE project_id = :project"
                " ORDER BY level, index"
            ),
            {"project": world.project_id},
        )
        assert [tuple(row) for row in found] == expected
    async with store.lead() as writer:
        tree = (await writer.trees([world.project_id]))[world.project_id]
    assert (tree.size, merkle.root(tree)) == (66_000, trees.mth(leaves))


# Two writers of one head.


@dataclass(frozen=True, slots=True)
class Link:
    """A step of a head."""

    before: bytes
    after: bytes


Append = Callable[[], Awaitable[Link]]
Begin = Callable[[AsyncExitStack], Awaitable[Append | None]]  # None: not now


def forks(links: Sequence[Link]) -> set[bytes]:
    """Heads that have two successors."""
    befores = [link.before for link in links]
    return {before for before in befores if befores.count(before) > 1}


async def meeting(begin: Begin) -> list[Link]:
    """Two writers begin, then both append; one that was kept out comes again when the other has ended."""
    links = []
    async with AsyncExitStack() as one, AsyncExitStack() as other:
        appends = [await begin(one), await begin(other)]
        for append, stack in zip(appends, (one, other), strict=True):
            if append is not None:
                links.append(await append())
            await stack.aclose()
    for append in appends:
        if append is None:
            async with AsyncExitStack() as stack:
                again = await begin(stack)
                assert again is not None
                links.append(await again())
    return links


async def test_two_writers_of_the_log_make_one_line(world: World) -> None:
    """Two of one name, as of a server that was started twice: the second begins when the first has ended."""
    store = LogStore(world.engine, "holder")

    async def begin(stack: AsyncExitStack) -> Append | None:
        try:
            writer = await stack.enter_async_context(store.lead())
        except NotLeading:
            return None
        tree = (await writer.trees([world.project_id])).get(world.project_id, merkle.EMPTY_RANGE)

        async def append() -> Link:
            async with AsyncExitStack() as opened:
                await (await world.open(secrets.token_hex(16), opened)).commit()
            assert await Integrator(world.keyring).step(writer) == 1
            after = (await writer.trees([world.project_id]))[world.project_id]
            return Link(merkle.root(tree), merkle.root(after))

        return append

    links = await meeting(begin)
    assert len(links) == 2
    assert forks(links) == set()
    assert links[1].before == links[0].after
    assert len(await Ours(world).order()) == 2


async def test_a_chain_whose_head_is_read_without_a_lock_forks(postgres: EmbeddedPostgres, engine: AsyncEngine) -> None:
    """The mistake, on the same database and the same schedule: two entries on one head, and the check finds it."""
    url = make_url(postgres.admin_url).set(database=NAME)
    chain = create_async_engine(url)
    async with chain.connect() as connection, connection.begin():
        await connection.execute(
            text("CREATE TABLE chain (number bigserial, before bytea NOT NULL, after bytea NOT NULL UNIQUE)")
        )
        await connection.execute(text("INSERT INTO chain (before, after) VALUES ('', 'root')"))

    async def begin(stack: AsyncExitStack) -> Append | None:
        connection = await stack.enter_async_context(chain.connect())
        head = (await connection.execute(text("SELECT after FROM chain ORDER BY number DESC LIMIT 1"))).scalar_one()

        async def append() -> Link:
            link = Link(head, merkle.node_hash(head, secrets.token_bytes(32)))
            await connection.execute(
                text("INSERT INTO chain (before, after) VALUES (:before, :after)"),
                {"before": link.before, "after": link.after},
            )
            await connection.commit()
            return link

        return append

    links = await meeting(begin)
    await chain.dispose()
    assert len(links) == 2
    assert forks(links) == {b"root"}


async def holder(connection: AsyncConnection) -> Any:
    """Who leads, and by which fence."""
    await connection.execute(text("SELECT set_config('animus.every_project', 'on', true)"))
    return (await connection.execute(text("SELECT holder, fence FROM animus.log_lead"))).one()


async def test_one_server_leads_and_another_follows_when_it_is_gone(world: World) -> None:
    """Within its time nobody takes the lead from a holder; after it another does, under a new fence, and keeps it."""
    one, other = LogStore(world.engine, "one"), LogStore(world.engine, "other")

    async def leads(store: LogStore) -> int:
        try:
            async with store.lead() as writer:
                return writer.fence
        except NotLeading:
            return 0

    async def age(seconds: int) -> None:
        async with world.engine.connect() as connection, connection.begin():
            await connection.execute(text("SELECT set_config('animus.every_project', 'on', true)"))
            await connection.execute(
                text("UPDATE animus.log_lead SET renew_time = clock_timestamp() - make_interval(secs => :seconds)"),
                {"seconds": seconds},
            )

    await age(60)
    fence = await leads(one)
    assert fence > 0
    assert [await leads(other), await leads(one)] == [0, fence]
    await age(1)
    assert [await leads(other), await leads(one)] == [0, fence]
    await age(3)
    assert [await leads(other), await leads(one), await leads(other)] == [fence + 1, 0, fence + 1]
    async with world.engine.connect() as connection:
        assert tuple(await holder(connection)) == ("other", fence + 1)
    await age(60)
