"""`animus run` against the real server: a run is made again, and what came of it is compared."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from service.conftest import Server
from service.requests import ONE, TWO, planned_run
from service.shared import served
from service.test_reproduction import executed, replayed
from sqlalchemy.ext.asyncio import AsyncEngine

from animus.sdk.receipts import Kept, ReceiptStore
from animus.store.embedded import EmbeddedPostgres
from animus.v1 import run_pb2
from cli.conftest import Animus, Command, command

ABSENT = "0" * 32


@pytest.fixture(scope="module")
async def server(
    postgres: EmbeddedPostgres, admin: AsyncEngine, template: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Server]:
    """The server of these tests, with a project `p`."""
    async with served(postgres, admin, template, tmp_path_factory.mktemp("data")) as found:
        await found.project("p")
        yield found


@pytest.fixture(scope="module")
async def first(server: Server) -> str:
    """A run that succeeded."""
    run_id = await planned_run(server)
    await executed(server.admin, run_id)
    return run_id


@pytest.fixture
async def run(server: Server, tmp_path: Path) -> Command:
    """Runs `animus run` in a process of its own, as an operator of the project."""
    operator = await server.caller("p", "operator")
    return command(server, operator.token, tmp_path, "run")


async def test_a_run_is_made_again(run: Command, server: Server, first: str, tmp_path: Path) -> None:
    """The id of the new run, which replays the other and has the labels; a receipt is kept of it."""
    done = await run("replay", first, "--label", "why=an audit", "--label", "empty=")
    assert done.code == 0, done
    made = await server.admin("GetRun", run_pb2.GetRunRequest(project_id="p", run_id=done.out.strip()))
    assert made.replay_of == first
    assert [(label.key, label.value) for label in made.labels] == [("empty", ""), ("why", "an audit")]
    kept = list(ReceiptStore(tmp_path / "state" / "animus" / "receipts").read())
    assert [type(line) for line in kept] == [Kept]


async def test_a_request_id_makes_a_repeated_command_one_run(run: Command, first: str) -> None:
    """The same id prints the same run; without one, each command makes its own."""
    told = [await run("replay", first, "--request-id", "once", "--json") for _ in range(2)]
    free = [await run("replay", first) for _ in range(2)]
    assert told[0].json["runId"] == told[1].json["runId"]
    assert told[0].json["replayOf"] == first
    assert len({told[0].json["runId"], *(done.out.strip() for done in free)}) == 3


async def test_a_run_that_made_the_same_is_reproduced(run: Command, server: Server, first: str) -> None:
    """Exit code 0, the verdict in the first line, and the tables; as JSON the whole answer."""
    again = await replayed(server.admin, first)
    await executed(server.admin, again, attempts=2)
    done = await run("compare", again, first)
    assert done.code == 0, done
    lines = done.out.splitlines()
    assert lines[0] == "REPRODUCED"
    rows = [line.split() for line in lines]
    for row in (
        ["run", again, first],
        ["state", "SUCCEEDED", "SUCCEEDED"],
        ["first", "SUCCEEDED", "SUCCEEDED", "2", "1"],
        ["first/table", "equal", TWO, TWO],
    ):
        assert row in rows
    assert "RunSpec" not in lines
    told = await run("compare", again, first, "--json")
    assert (told.code, told.json["verdict"]) == (0, "COMPARISON_VERDICT_REPRODUCED")
    assert told.json["outputs"] == [
        {"step": "first", "name": "table", "digest": TWO, "otherDigest": TWO, "equal": True}
    ]


async def test_a_run_that_made_something_else_is_told_with_the_step(run: Command, server: Server, first: str) -> None:
    """Exit code 7, and the step where they diverged in the first line, as text and as JSON."""
    again = await replayed(server.admin, first)
    await executed(server.admin, again, ONE)
    done = await run("compare", first, again)
    assert (done.code, done.out.splitlines()[0]) == (7, "DIVERGED: first at the step first"), done
    assert ["first/table", "differs", TWO, ONE] in [line.split() for line in done.out.splitlines()]
    told = await run("compare", first, again, "--json")
    assert (told.code, told.json["firstStep"]) == (7, "first")


async def test_runs_that_cannot_be_compared_are_told_why(run: Command, server: Server, first: str) -> None:
    """Exit code 7 and the reason."""
    made = await run("replay", first)
    done = await run("compare", first, made.out.strip())
    reason = f"the run {made.out.strip()} is CREATED; only runs that SUCCEEDED can be compared"
    assert (done.code, done.out.splitlines()[0]) == (7, f"INCOMPARABLE: {reason}"), done
    rows = [line.split() for line in done.out.splitlines()]
    assert ["first", "SUCCEEDED", "-", "1", "0"] in rows
    assert ["first/table", "differs", TWO, "-"] in rows


async def test_what_is_refused_is_one_line_and_a_code(run: Command, server: Server, first: str, tmp_path: Path) -> None:
    """2 for what cannot be, 3 for a run that is not there, 4 for who may not."""
    viewer = command(server, (await server.caller("p", "viewer")).token, tmp_path, "run")
    for done, code, said in (
        (await run("compare", first, first), 2, "otherRunId"),
        (await run("replay", "x"), 2, "runId"),
        (await run("replay", ABSENT), 3, ABSENT),
        (await run("compare", first, ABSENT), 3, ABSENT),
        (await viewer("replay", first), 4, "operator"),
        (await viewer("compare", first, ABSENT), 4, "operator"),
    ):
        assert (done.code, done.out) == (code, ""), done
        assert said in done.err
        assert len(done.err.splitlines()) == 1


def test_a_label_without_a_value_is_refused_before_any_call(animus: Animus) -> None:
    """Usage, with the text at fault."""
    done = animus("run", "replay", ABSENT, "--project", "p", "--label", "team")
    assert (done.code, done.out) == (2, "")
    assert done.err == "animus: --label team is no key=value\n"
