"""The fault scripts, small: what they find on a sound system, and that they find what is planted."""

from faults import kills, replicas, writers


async def test_kills_lose_and_double_nothing() -> None:
    """After servers and PostgreSQL were killed under load, each acknowledged change is in the log once, and proven."""
    found = await kills.run(4, seed=7)
    assert sum(found["killed"].values()) == 4
    assert found["acknowledged"] == found["receipts_proven"] > 0
    assert "entry is gone" in found["planted_fault"]


async def test_another_server_takes_over() -> None:
    """When the leader is killed the other publishes; one that was stopped beyond its lease does no harm."""
    found = await replicas.run(1, seed=7)
    assert found["stopped_leader"] == "did no harm"


async def test_writers_at_once_make_one_log() -> None:
    """Eight writers for two seconds: no fork, nothing lost, and the order of calls that did not overlap is kept."""
    found = await writers.run(8, 2.0, seed=7)
    assert found["acknowledged"] == found["receipts_proven"] > 8
    assert "were acknowledged" in found["planted_fault"]
