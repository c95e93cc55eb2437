"""Heads that are known: what is kept, of how many, and what becomes of the file when several write it."""

import concurrent.futures
from dataclasses import replace
from pathlib import Path

import pytest
from cli.logs import KEY, OTHER_KEY, toy_log

from animus.domain.errors import Invalid
from animus.domain.note import load_key
from animus.sdk import heads
from animus.sdk.files import Unreadable
from animus.sdk.heads import KnownHeads
from animus.signing import SigningKey, cosign, sign_note

LOG = toy_log(130)
LOG_KEY = load_key(LOG.vkey)


def sizes(known: KnownHeads) -> list[int]:
    """Sizes of the known heads, in the file's order."""
    return [head.checkpoint.size for head in known.read()]


def test_heads_are_kept_with_the_keys_that_signed_them(tmp_path: Path) -> None:
    """One a size; the later note of a size takes the place of the earlier; other logs and epochs stand beside it."""
    known = KnownHeads(tmp_path / "state" / "heads")
    assert known.read() == []
    known.add(LOG.note(5), [LOG_KEY])
    known.add(LOG.note(9), [LOG_KEY])
    witness = SigningKey("w", bytes(32))
    known.add(LOG.note(5) + cosign(LOG.checkpoint(5), witness, 1), [LOG_KEY])
    other, second = toy_log(3, "q"), toy_log(4, epoch=2)
    known.add(other.note(3), [load_key(other.vkey)])
    known.add(second.note(4), [load_key(second.vkey)])
    assert sizes(known) == [9, 5, 3, 4]
    found = known.of(LOG.origin)
    assert [(head.checkpoint.origin, head.checkpoint.size) for head in found] == [
        (LOG.origin, 5),
        (LOG.origin, 9),
        (second.origin, 4),
    ]
    assert found[0].keys == (LOG_KEY,)
    assert b" w " in found[0].note.replace("—".encode(), b"")
    known.add(LOG.note(10), [LOG_KEY], forget=found[:1])
    assert sizes(known) == [9, 3, 4, 10]
    assert known.path.stat().st_mode & 0o777 == 0o600


def test_the_newest_heads_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log that is verified each minute fills no disk: the newest extend the others."""
    monkeypatch.setattr(heads, "MAX_HEADS", 5)
    known = KnownHeads(tmp_path / "heads")
    for size in (*range(1, 9), 3):
        known.add(LOG.note(size), [LOG_KEY])
    assert sizes(known) == [5, 6, 7, 8, 3]


def test_what_no_trusted_key_signed_is_no_known_head(tmp_path: Path) -> None:
    """Neither on the way in nor on the way out."""
    known = KnownHeads(tmp_path / "heads")
    with pytest.raises(Invalid):
        known.add(replace(LOG, key=OTHER_KEY).note(3), [LOG_KEY])
    known.add(LOG.note(3), [LOG_KEY])
    forged = sign_note(LOG.checkpoint(4), [OTHER_KEY], LOG.origin)
    known.path.write_bytes(known.path.read_bytes().replace(LOG.note(3)[-50:-10], forged[-50:-10]))
    with pytest.raises(Unreadable, match="line 1"):
        known.read()
    assert KEY != OTHER_KEY


def test_heads_that_are_added_at_once_are_all_kept(tmp_path: Path) -> None:
    """Several checks at the same time lose nothing of each other's."""
    known = KnownHeads(tmp_path / "heads")
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda size: known.add(LOG.note(size), [LOG_KEY]), range(1, 41)))
    assert sorted(sizes(known)) == list(range(1, 41))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["heads", "heads.lock"]
