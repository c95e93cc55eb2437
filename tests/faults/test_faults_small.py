"""The fault scripts, small: what they find in a sound system, and that each finds what is planted."""

import shutil
from collections.abc import AsyncIterator

import pytest

from faults.command import SERVERS, new_folder
from faults.fuzz import fuzz
from faults.kills import kill_under_load
from faults.replicas import take_away
from faults.stack import Stack, open_stack
from faults.writers import write_at_once


@pytest.fixture(scope="module")
async def stack(request: pytest.FixtureRequest) -> AsyncIterator[Stack]:
    """A stack for all of the scripts, each in a project of its own. Its folder is kept where a test fails."""
    folder = new_folder()
    failed = request.session.testsfailed
    async with open_stack(folder, SERVERS) as opened:
        yield opened
    if request.session.testsfailed == failed:
        shutil.rmtree(folder)
    else:
        print(f"kept: {folder}")


async def test_writers_at_once_make_one_log(stack: Stack) -> None:
    """Eight writers for two seconds: no fork, nothing lost, and the order of calls that did not overlap is kept."""
    found = await write_at_once(stack, 8, 2.0, seed=7)
    assert found["violations"] == []
    assert found["acknowledged"] == found["entries"] == found["receipts_proven"] > 8
    assert len(found["planted_and_found"]) == 6


async def test_no_message_is_answered_with_a_defect(stack: Stack) -> None:
    """Five hundred messages to all RPCs, few of them fit to be sent: a reason for each, and nothing in the log."""
    found = await fuzz(stack, 500, 7)
    assert found["violations"] == []
    assert found["codes"]["INVALID_ARGUMENT"] > found["codes"]["OK"] > 20


async def test_another_server_takes_over(stack: Stack) -> None:
    """When the leader is killed the other publishes; one that was stopped beyond its lease does no harm."""
    found = await take_away(stack, 1, 1, seed=7)
    assert found["violations"] == []
    assert found["acknowledged"] == found["entries"] == found["receipts_proven"]


async def test_kills_lose_and_double_nothing(stack: Stack) -> None:
    """After servers and PostgreSQL were killed under load, each acknowledged change is in the log once, and proven."""
    found = await kill_under_load(stack, 4, seed=7)
    assert found["violations"] == []
    assert sum(found["kills"].values()) == 4
    assert found["kills"]["postgres"] == 1
    assert found["acknowledged"] == found["entries"] == found["receipts_proven"] > 12
