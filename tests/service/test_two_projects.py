"""Whatever is done in one project, every answer in another stays as it was, byte by byte.

Hypothesis makes up the work: bursts of any calls of any role, with names that are new, taken, or of the other project.
After each burst, everything that can be read in the other project is read, by its admin and by one more role; in the
end by every role that may. A few bursts run with the tests; CONTRIBUTING.md says how many more are run.
"""

import asyncio
import os
import re
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

import pytest
from contract import METHODS as CONTRACT
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test
from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from animus.domain.access import METHODS, Role
from animus.store.embedded import EmbeddedPostgres
from animus.v1 import access_pb2, project_pb2
from service.conftest import Caller, Failure, Server
from service.credentials import registered
from service.shared import served
from service.worlds import MUTATES, TAIL, Told, World, made, nowhere, requests, tell

READS = [name for name in CONTRACT if name not in MUTATES]
# What tells of the instance, to those who see all of it, and not of one project.
OF_THE_INSTANCE = {("ListProjects", role) for role in Role if role.of_instance}
AT_ONCE = 12
LONG = os.environ.get("ANIMUS_ISOLATION_EXAMPLES", "")
EXAMPLES, BURSTS = (int(LONG), 5) if LONG else (2, 2)
NAMES = [field.name for field in fields(World) if field.name not in ("project_id", "node_project")]
Answers = dict[tuple[str, int, str], Told]


@dataclass(frozen=True, slots=True)
class Action:
    """A call in the busy project."""

    name: str
    role: Role
    number: int  # which of the method's requests
    field: str  # what in it is another name
    value: str  # new, later, or quiet: of the quiet project
    request_id: str
    validate_only: bool
    cut: int  # so many bytes are cut off its end


def actions() -> st.SearchStrategy[Action]:
    """Mostly calls that are let in and write; names, roles and bytes that are not good among them."""
    changes = sorted(MUTATES)
    return st.builds(
        Action,
        st.sampled_from([*changes, *changes, *sorted(READS)]),
        st.sampled_from([*[Role.ADMIN] * 4, *Role]),
        st.integers(0, 1),
        st.sampled_from(NAMES),
        st.sampled_from(["new", "later", "quiet"]),
        st.sampled_from(["", "", "again"]),
        st.sampled_from([False, False, False, True]),
        st.sampled_from([0, 0, 0, 0, 1, 3]),
    )


class Projects:
    """A busy project and a quiet one, with callers of each role."""

    def __init__(self, server: Server, busy: World, quiet: World, tokens: dict[str, dict[Role, str]]) -> None:
        self.server = server
        self.busy = busy
        self.quiet = quiet
        self.later = nowhere("busy")  # names that the quiet project asks for, and the busy one comes to have
        self.callers = {
            home: {role: Caller(server.channel, token) for role, token in (of | tokens["system"]).items()}
            for home, of in tokens.items()
        }
        self.outcomes: Counter[str] = Counter()
        self.before: Answers = {}

    async def do(self, burst: Sequence[Action]) -> None:
        """Calls, all at once."""
        await asyncio.gather(*map(self._do, burst))

    async def _do(self, action: Action) -> None:
        caller = self.callers["busy"][action.role]
        if action.name == "CreateProject":
            made_up = project_pb2.Project(project_id=f"p{secrets.token_hex(4)}", display_name="", description="")
            requested: list[Any] = [
                project_pb2.CreateProjectRequest(
                    project_id=made_up.project_id, request_id=secrets.token_hex(8), project=made_up
                )
            ]
        else:
            source = {"new": nowhere("busy"), "later": self.later, "quiet": self.quiet}[action.value]
            world = replace(self.busy, **{action.field: getattr(source, action.field)})
            requested = requests(world, action.name, action.request_id, validate_only=action.validate_only)
        data = requested[action.number % len(requested)].SerializeToString()
        again = Caller(caller.channel, caller.token)  # a caller knows one call at a time
        try:
            if CONTRACT[action.name].server_streaming:
                await again.stream(action.name, requested[action.number % len(requested)], TAIL)
            else:
                await again.raw(action.name, data[: len(data) - action.cut])
        except Failure as failure:
            assert failure.code not in ("INTERNAL", "UNKNOWN"), (action, failure)
            self.outcomes[failure.reason] += 1
        else:
            self.outcomes["OK"] += 1

    async def answers(self, roles: Collection[Role] = tuple(Role)) -> Answers:
        """Everything that can be read in the quiet project, by each role that may; and as admin, under other names."""
        asked: list[tuple[tuple[str, int, str], Role, Any]] = []
        for name in READS:
            plain = requests(self.quiet, name)
            allowed = METHODS[f"{CONTRACT[name].containing_service.full_name}/{name}"].roles
            for role in allowed & set(roles):
                if (name, role) not in OF_THE_INSTANCE:
                    some = plain if role is Role.ADMIN else plain[:1]
                    asked += [((name, at, role.value), role, request) for at, request in enumerate(some)]
            for field in NAMES:
                other = requests(replace(self.quiet, **{field: getattr(self.later, field)}), name)
                asked += [
                    ((name, at, field), Role.ADMIN, request) for at, request in enumerate(other) if request != plain[at]
                ]
        turns = asyncio.Semaphore(AT_ONCE)

        async def answer(name: str, role: Role, request: Any) -> Told:
            async with turns:
                told = await tell(Caller(self.server.channel, self.callers["quiet"][role].token), name, request)
                return timeless(told) if name == "ListTokens" else told

        told = await asyncio.gather(*(answer(key[0], role, request) for key, role, request in asked))
        return {key: each for (key, _, _), each in zip(asked, told, strict=True)}

    async def check(self, *roles: Role) -> None:
        """Raises AssertionError where an answer is not what it was, to any role or to these."""
        now = await self.answers(roles or tuple(Role))
        differ = [key for key, told in now.items() if told != self.before[key]]
        assert not differ, f"{len(differ)} answers changed: {differ[:5]}"


def timeless(told: Told) -> Told:
    """Without when tokens were last used, which reading itself changes."""
    replies = []
    for data in told.replies:
        reply = access_pb2.ListTokensResponse.FromString(data)
        for token in reply.tokens:
            token.ClearField("last_use_time")
        replies.append(reply.SerializeToString(deterministic=True))
    return replace(told, replies=tuple(replies))


@pytest.fixture(scope="module")
async def projects(
    postgres: EmbeddedPostgres, admin: AsyncEngine, template: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Projects]:
    """One server for these tests."""
    async with served(postgres, admin, template, tmp_path_factory.mktemp("data")) as server:
        worlds: dict[str, World] = {}
        tokens: dict[str, dict[Role, str]] = {}
        for project_id in ("busy", "quiet"):
            await server.project(project_id)
            worlds[project_id] = await made(server.admin, project_id)
            tokens[project_id] = await registered(server, project_id, [r for r in Role if not r.of_instance])
        tokens["system"] = await registered(server, "system", [r for r in Role if r.of_instance])
        await server.published("quiet")  # from then on nothing happens there
        found = Projects(server, worlds["busy"], worlds["quiet"], tokens)
        found.before = await found.answers()
        yield found


async def test_every_read_is_asked_and_most_succeed(projects: Projects) -> None:
    """So that there is something to see, and what is not there is asked for too."""
    assert {name for name, _, _ in projects.before} == set(READS)
    codes = Counter(told.code for told in projects.before.values())
    assert codes["OK"] > 250
    assert codes["NOT_FOUND"] > 20
    assert set(codes) == {"OK", "NOT_FOUND"}


async def test_nothing_that_is_done_in_a_project_changes_an_answer_in_another(projects: Projects) -> None:
    """Bursts of calls of any kind, after each of which everything is read again; in the end, by every role."""
    loop = asyncio.get_running_loop()

    class Machine(RuleBasedStateMachine):
        @rule(
            burst=st.lists(actions(), min_size=8, max_size=20, unique_by=lambda action: action.name),
            reader=st.sampled_from(Role),
        )
        def burst(self, burst: list[Action], reader: Role) -> None:
            asyncio.run_coroutine_threadsafe(projects.do(burst), loop).result()
            asyncio.run_coroutine_threadsafe(projects.check(Role.ADMIN, reader), loop).result()

    how = settings(
        max_examples=EXAMPLES,
        stateful_step_count=BURSTS,
        deadline=None,
        database=None,
        derandomize=not LONG,
        suppress_health_check=list(HealthCheck),
    )
    await asyncio.to_thread(run_state_machine_as_test, Machine, settings=how)
    await projects.server.published("busy")
    await projects.check()
    assert projects.outcomes["OK"] > 10
    assert len(projects.outcomes) >= 5, projects.outcomes


# Each of the two fences holds alone: conditions in the statements, and row security below them. Not so for the log's
# own tables and the list of projects, which are read for all projects at once: there the condition is the only one.

CONDITION = re.compile(r"\b((?:\w+\.)?project_id = \$\d+(?:::\w+)?)")
OF_THE_LOG = re.compile(r"animus\.(log_|audit_queue)")


@contextmanager
def without_conditions(server: Server) -> Iterator[Counter[str]]:
    """Meanwhile no statement of a read asks for the rows of one project; counts those that did."""
    dialect: Any = server.running.engine.sync_engine.dialect
    execute, changed = dialect.do_execute, Counter[str]()

    def do_execute(cursor: Any, statement: str, parameters: Any, context: Any = None) -> None:
        if not (re.match(r"\s*(INSERT|WITH entry)", statement) or OF_THE_LOG.search(statement)):
            statement, times = CONDITION.subn(r"(\1 OR true)", statement)
            changed["conditions"] += times
        execute(cursor, statement, parameters, context)

    dialect.do_execute = do_execute
    try:
        yield changed
    finally:
        dialect.do_execute = execute


async def row_security(server: Server, postgres: EmbeddedPostgres, state: str) -> None:
    """Switches it on or off, of every table, as the superuser."""
    url = make_url(postgres.admin_url).set(database=server.running.engine.url.database)
    engine = create_async_engine(url, isolation_level="AUTOCOMMIT")
    async with engine.connect() as superuser:
        tables = await superuser.execute(text("SELECT tablename FROM pg_tables WHERE schemaname = 'animus'"))
        for table in tables.scalars().all():
            if table != "alembic_version":
                await superuser.execute(text(f"ALTER TABLE animus.{table} {state} ROW LEVEL SECURITY"))
    await engine.dispose()


async def test_either_fence_alone_keeps_projects_apart_and_without_both_it_is_seen(
    projects: Projects, postgres: EmbeddedPostgres
) -> None:
    """Conditions without row security, row security without conditions: the same answers. With neither: others."""
    with without_conditions(projects.server) as changed:
        await projects.check(Role.ADMIN)
        assert changed["conditions"] > 100
    await row_security(projects.server, postgres, "DISABLE")
    try:
        await projects.check(Role.ADMIN)
        with without_conditions(projects.server), pytest.raises(AssertionError, match="answers changed"):
            await projects.check(Role.ADMIN)
    finally:
        await row_security(projects.server, postgres, "ENABLE")
    await projects.check(Role.ADMIN)
