"""Logs: one origin for each, seals that mean one thing, records that keep their rules, tiles whenever they are full."""

import base64
import itertools
import random
import string
from collections.abc import Iterator, Sequence
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from animus.domain import log, tile
from animus.domain.document import dump, load
from animus.domain.errors import Invalid
from animus.domain.log import FullTile, LogEpoch, LogForfeit, LogKey, LogKeyEnd, LogKeyStatus, full_tiles
from animus.domain.names import INSTANCE_LOG
from animus.domain.tile import WIDTH
from domain import trees
from domain.trees import half
from domain.values import LAW, refusal

NAMES = ["animus.example", "a", "a/b", "a/b/1", "1", "1/2", "a/1"]
PROJECTS = ["p", "q", "p-q", "pq", "p1", "instances", INSTANCE_LOG]
EPOCHS = [1, 2, 11, 12]

names = st.from_regex(log.INSTANCE_NAME, fullmatch=True)
projects = st.from_regex(r"[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True)


# What logs are called.


def test_origins_are_as_documented() -> None:
    """`<instance name>/<project>/<epoch>`; the instance's own log has no project."""
    assert log.origin_of("animus.example", "demo", 1) == "animus.example/demo/1"
    assert log.origin_of("animus.example", INSTANCE_LOG, 12) == "animus.example/12"


@pytest.mark.parametrize("name", NAMES)
def test_no_two_logs_of_an_instance_have_one_origin(name: str) -> None:
    """For every pair of project and epoch of a small world, whatever the instance's name looks like."""
    logs = list(itertools.product(PROJECTS, EPOCHS))
    assert len({log.origin_of(name, *each) for each in logs}) == len(logs)


@LAW
@given(names, st.tuples(projects, st.integers(1, log.MAX_SIZE)), st.tuples(projects, st.integers(1, log.MAX_SIZE)))
def test_an_origin_says_which_log_it_is(name: str, one: tuple[str, int], other: tuple[str, int]) -> None:
    """Equal origins are of one log; none is a number, which a receipt could not carry, or has a space or a plus."""
    origins = [log.origin_of(name, *each) for each in (one, other)]
    assert (origins[0] == origins[1]) == (one == other)
    for origin in origins:
        assert not origin.isdecimal()
        assert not set(origin) & set(string.whitespace + "+")


def test_a_leaf_of_the_instance_is_called_by_what_it_holds() -> None:
    """Project, epoch and size, which no two checkpoints share."""
    made = [log.instance_entry_id(*each) for each in itertools.product(["p", "p-1", "p1"], EPOCHS, [1, 2, 11, 111])]
    assert made[:2] == ["p/1/1", "p/1/2"]
    assert len(set(made)) == len(made)


@pytest.mark.parametrize(
    ("time", "until"),
    [
        ("2026-01-31T12:00:00.000000Z", "2026-01-31T12:01:00.000000Z"),
        ("2026-01-31T12:00:00.000001Z", "2026-01-31T12:01:00.000001Z"),
        ("2024-02-28T23:59:00.999999Z", "2024-02-29T00:00:00.999999Z"),
        ("2026-12-31T23:59:30.500000Z", "2027-01-01T00:00:30.500000Z"),
        ("0999-01-01T00:00:00.000000Z", "0999-01-01T00:01:00.000000Z"),
    ],
)
def test_an_entry_is_promised_within_a_minute(time: str, until: str) -> None:
    """60 seconds after its own time, to the microsecond, over the ends of days and years."""
    assert log.promised_by(time) == until


# Seals.


def test_seals_of_a_small_world_are_of_different_texts() -> None:
    """No two of project, entry and hash make one text, those with digits and letters at their ends included."""
    ids = ["0" * 32, "0" * 31 + "1", "a" + "0" * 31]
    hashes = [bytes(32), bytes(31) + b"\x01", b"\x00a" * 16]
    parts = list(itertools.product(["p", "p0", "p00", "a", "a0"], ids, hashes))
    assert len({log.sealed_text(*each) for each in parts}) == len(parts)


sealed = st.tuples(projects, st.from_regex(r"[0-9a-f]{32}", fullmatch=True), st.binary(min_size=32, max_size=32))


@LAW
@given(sealed, sealed)
def test_a_sealed_text_says_what_was_sealed(one: tuple[str, str, bytes], other: tuple[str, str, bytes]) -> None:
    """Read back from the text: its three parts, after what it is for."""
    assert (log.sealed_text(*one) == log.sealed_text(*other)) == (one == other)
    purpose, project, entry, leaf_hash = log.sealed_text(*one).split(b"\x00")
    assert purpose == b"animus.audit_queue/v1"
    assert (project.decode(), entry.decode(), bytes.fromhex(leaf_hash.decode())) == one


def test_parts_put_together_without_a_separator_would_be_ambiguous() -> None:
    """The check above finds a text that two different triples make."""
    clash = [("p", "1" + "0" * 31, bytes(32)), ("p1", "0" * 31, bytes(32))]
    assert len({"".join((each[0], each[1])) for each in clash}) == 1
    assert len({log.sealed_text(*each) for each in clash}) == 2


# Records.

KEY = base64.b64encode(bytes(range(32))).decode()
ROOT = "0123456789abcdef" * 4
BAD_KEYS = {
    "nothing": "",
    "short": base64.b64encode(bytes(31)).decode(),
    "long": base64.b64encode(bytes(33)).decode(),
    "no padding": KEY.rstrip("="),
    "line feed": KEY + "\n",
    "space": " " + KEY,
    "other alphabet": base64.urlsafe_b64encode(b"\xff" * 32).decode(),
    "loose bits": KEY[:-2] + chr(ord(KEY[-2]) + 1) + "=",
    "other letters": KEY[:-1] + "é",
    "hexadecimal": "00" * 32,
}


def test_a_public_key_has_one_spelling() -> None:
    """The base64 of 32 bytes as it is written, and nothing that a lenient reader takes for it."""
    assert log.decode_public_key(KEY, "publicKey") == bytes(range(32))
    for text in BAD_KEYS.values():
        assert refusal(log.decode_public_key, text, "publicKey").field == "publicKey"
        assert refusal(LogKey, "animus.example", text).field == "publicKey"
        assert refusal(LogKeyEnd, text, LogKeyStatus.RETIRED, "old").field == "publicKey"


@pytest.mark.parametrize("name", ["", ".", "-a", "a-", "a/", "/a", "A", "a b", "a+b", "a\n", "ä", "a" * 129])
def test_a_name_that_cannot_begin_an_origin_is_refused(name: str) -> None:
    """By its field, in the setting and in the key's record; 128 characters are a name, 129 are none."""
    assert refusal(log.check_instance_name, name, "ANIMUS_LOG_NAME").field == "ANIMUS_LOG_NAME"
    assert refusal(LogKey, name, KEY).field == "instanceName"
    assert LogKey("a" * 128, KEY)


def test_a_key_ends_retired_or_revoked_for_a_reason() -> None:
    """Never active, and never without 1 to 2,000 characters of why."""
    for status in (LogKeyStatus.RETIRED, LogKeyStatus.REVOKED):
        for reason in ("x", "x" * 2_000):
            assert LogKeyEnd(KEY, status, reason).status is status
    assert refusal(LogKeyEnd, KEY, LogKeyStatus.ACTIVE, "why").field == "status"
    for reason in ("", "x" * 2_001, "a\x00b"):
        assert refusal(LogKeyEnd, KEY, LogKeyStatus.RETIRED, reason).field == "reason"


def epoch(**other: Any) -> dict[str, Any]:
    """The parts of an epoch's record, with others in their place."""
    parts = {"project_id": "p", "epoch": 2, "size": 5, "root_hash": ROOT, "reason": "restored"}
    return parts | {"signed_size": 7, "signed_root_hash": ROOT} | other


BAD_EPOCHS: list[tuple[dict[str, Any], str]] = [
    ({"epoch": 1}, "epoch"),
    ({"epoch": 0}, "epoch"),
    ({"epoch": -2}, "epoch"),
    ({"epoch": 2**53}, "epoch"),
    ({"size": -1}, "size"),
    ({"size": 2**53}, "size"),
    ({"root_hash": ""}, "rootHash"),
    ({"root_hash": ROOT.upper()}, "rootHash"),
    ({"root_hash": ROOT[1:]}, "rootHash"),
    ({"root_hash": ROOT + "\n"}, "rootHash"),
    ({"signed_size": -2, "signed_root_hash": ""}, "signedSize"),
    ({"signed_size": 2**53}, "signedSize"),
    ({"signed_size": -1}, "signedRootHash"),
    ({"signed_root_hash": ""}, "signedRootHash"),
    ({"signed_size": 0, "signed_root_hash": ""}, "signedRootHash"),
    ({"signed_root_hash": "0"}, "signedRootHash"),
    ({"signed_root_hash": ROOT.upper()}, "signedRootHash"),
    ({"reason": ""}, "reason"),
    ({"reason": "x" * 2_001}, "reason"),
]


@pytest.mark.parametrize(("other", "field"), BAD_EPOCHS, ids=[str(each[0]) for each in BAD_EPOCHS])
def test_an_epoch_that_says_something_impossible_is_refused(other: dict[str, Any], field: str) -> None:
    """Each part by its field: the first epoch has no record, and a root belongs to a size that was signed."""
    assert refusal(LogEpoch, **epoch(**other)).field == field


def test_an_epoch_says_what_was_lost() -> None:
    """It goes on from a size, which may be smaller, equal or larger than what was signed, or from a lost state."""
    for signed in (0, 4, 5, 6, 2**53 - 1):
        assert LogEpoch(**epoch(signed_size=signed)).signed_size == signed
    assert LogEpoch(**epoch(signed_size=-1, signed_root_hash="")).signed_root_hash == ""
    assert LogEpoch(**epoch(size=0)).size == 0


@pytest.mark.parametrize(
    ("parts", "field"),
    [
        (("0" * 31, ROOT, "lost"), "entryId"),
        (("A" * 32, ROOT, "lost"), "entryId"),
        (("0" * 32, ROOT[1:], "lost"), "leafHash"),
        (("0" * 32, ROOT, ""), "reason"),
        (("0" * 32, ROOT, "x" * 2_001), "reason"),
    ],
)
def test_an_entry_is_given_up_by_its_id_and_hash_for_a_reason(parts: tuple[str, str, str], field: str) -> None:
    """Each part by its field."""
    assert refusal(LogForfeit, *parts).field == field
    assert load(dump(LogForfeit("0" * 32, ROOT, "lost")), LogForfeit).leaf_hash == ROOT


def test_what_is_said_of_a_damaged_log_names_the_place() -> None:
    """The problem and each place are details. Why a log is unsound may be another project's, and is not told."""
    found = log.damaged("the leaf 5 is missing", index="5")
    assert (found.reason, found.details) == ("LOG_DAMAGED", {"problem": "the leaf 5 is missing", "index": "5"})
    assert (log.unsound().reason, log.unsound().details) == ("LOG_UNSOUND", {})


# Tiles.


def rows_of(leaves: Sequence[bytes], width: int) -> list[list[bytes]]:
    """The rows of tiles above leaves, by the definition: each hash is the root of `width` of the row below."""
    rows = [list(leaves)]
    while len(rows[-1]) >= width:
        below = rows[-1]
        rows.append([trees.mth(below[at : at + width]) for at in range(0, len(below) - width + 1, width)])
    return rows


def full_of(rows: list[list[bytes]], size: int, width: int) -> set[FullTile]:
    """The full tiles of the tree of a size."""
    found = set()
    for level, row in enumerate(rows):
        for index in range(size // width ** (level + 1)):
            part = row[index * width : (index + 1) * width]
            found.add(FullTile(level, index, b"".join(part), rows[level + 1][index]))
    return found


def edges_of(rows: list[list[bytes]], size: int, width: int) -> list[list[bytes]]:
    """The hashes of the partial tiles of the tree of a size, by level."""
    edges = []
    for row in rows:
        edges.append(row[size - size % width : size])
        size //= width
    return edges


@pytest.mark.parametrize("width", [2, 4])
def test_tiles_of_a_small_world_come_when_they_are_full(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With tiles of 2 and of 4, for every size and every growth: those that the larger tree has and the smaller lacks.

    Four levels and more, by the same lines that make tiles of 256.
    """
    monkeypatch.setattr(log, "WIDTH", width)
    leaves = [sha256(bytes([number])).digest() for number in range(70)]
    rows = rows_of(leaves, width)
    full = [full_of(rows, size, width) for size in range(len(leaves) + 1)]
    assert max(each.level for each in full[-1]) >= 2
    for first in range(len(leaves) + 1):
        for end in range(first, len(leaves) + 1):
            found = full_tiles(first, leaves[first:end], edges_of(rows, first, width))
            assert set(found) == full[end] - full[first]
            assert len(set(found)) == len(found)


LARGE = [sha256(b"%d" % number).digest() for number in range(66_900)]
ROWS = rows_of(LARGE, WIDTH)


def test_the_rows_are_those_of_the_tree() -> None:
    """What the tests below compare with: a hash of a row is a perfect node, and all together make the root."""
    assert [len(row) for row in ROWS] == [66_900, 261, 1]
    for size in (256, 512, 65_536):
        above = ROWS[1][: size // WIDTH]
        assert trees.mth(above) == trees.mth(LARGE[:size])
    assert half(65_536 + 1) == 65_536


def split(rng: random.Random, count: int) -> Iterator[int]:
    """Sizes of batches that make up a count, the sizes around a tile's among them."""
    while count:
        size = min(count, rng.choice([1, 2, 255, 256, 257, rng.randint(1, 1_000), rng.randint(1, 20_000)]))
        yield size
        count -= size


@pytest.mark.parametrize("seed", range(4))
def test_a_log_that_grows_by_batches_of_any_size_gets_each_tile_once(seed: int) -> None:
    """66,900 leaves: 261 tiles of level 0 and one of level 1, those of `tree_tiles`, each with the tree's hashes."""
    found: list[FullTile] = []
    size = 0
    for batch in split(random.Random(seed), len(LARGE)):
        edges = edges_of(ROWS, size, WIDTH)
        found += full_tiles(size, LARGE[size : size + batch], edges)
        size += batch
    places = [(each.level, each.index) for each in found]
    assert sorted(places) == [(each.level, each.index) for each in tile.tree_tiles(size) if each.width == WIDTH]
    assert set(found) == full_of(ROWS, size, WIDTH)


@pytest.mark.parametrize("size", [0, 1, 255, 256, 257, 511, 512, 513, 65_279, 65_280, 65_535, 65_536, 65_537])
def test_growth_around_the_edges_of_tiles(size: int) -> None:
    """From each size by each of 0, 1, 2, 254 to 258 and 511 to 513 leaves."""
    for more in (0, 1, 2, *range(254, 259), *range(511, 514)):
        found = full_tiles(size, LARGE[size : size + more], edges_of(ROWS, size, WIDTH))
        assert set(found) == full_of(ROWS, size + more, WIDTH) - full_of(ROWS, size, WIDTH)


def test_one_leaf_may_fill_a_tile_on_each_of_three_levels() -> None:
    """The last of 2^24 leaves fills a tile of level 0, which fills that of level 1, which fills that of level 2."""
    edges = [[sha256(b"%d %d" % (level, number)).digest() for number in range(255)] for level in range(3)]
    last = sha256(b"last").digest()
    expected = []
    for level in range(3):
        hashes = [*edges[level], last]
        last = trees.mth(hashes)
        expected.append(FullTile(level, 2 ** (8 * (2 - level)) - 1, b"".join(hashes), last))
    assert full_tiles(2**24 - 1, [sha256(b"last").digest()], edges) == expected


def test_levels_without_hashes_may_be_left_out_of_the_edge() -> None:
    """A log of 65,536 leaves has no partial tile of level 0 or 1; one of 256 has no row of level 2."""
    missing: list[list[list[bytes]]] = [[], [[]], [[], []]]
    for edges in missing:
        (found,) = full_tiles(0, LARGE[:256], edges)
        assert found in full_of(ROWS, 256, WIDTH)
    (found,) = full_tiles(65_536, LARGE[65_536:65_792], [[], [], [ROWS[2][0]]])
    assert found in full_of(ROWS, 65_792, WIDTH)


@pytest.mark.parametrize("edges", [[], [[]], [LARGE[:4]], [LARGE[:6]], [LARGE[:5], ROWS[1][:1]]])
def test_an_edge_of_another_size_is_a_defect(edges: list[list[bytes]]) -> None:
    """Too few hashes, too many, or those of a level that is empty: no tile is made of them."""
    with pytest.raises(AssertionError):
        full_tiles(5, LARGE[5:256], edges)
    assert full_tiles(5, LARGE[5:256], [LARGE[:5]])


def test_a_tile_with_another_leaf_is_found() -> None:
    """The comparison above does not pass for a tile that holds one leaf twice."""
    wrong = [*LARGE[:254], LARGE[253], LARGE[255]]
    (found,) = full_tiles(0, wrong, [])
    assert found not in full_of(ROWS, 256, WIDTH)


def test_errors_of_the_log_are_of_the_domain() -> None:
    """What is refused above is Invalid with the reason of fields."""
    with pytest.raises(Invalid) as caught:
        LogKey("", KEY)
    assert caught.value.reason == "FIELD_INVALID"
