"""`animus audit verify` on directories: what passes, and that everything else is found and named."""

import base64
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from animus.domain import document
from animus.domain.checkpoint import TlogProof, dump_proof
from animus.domain.note import ED25519, Key, dump_key
from animus.domain.tile import Tile, dump_bundle, load_bundle
from animus.sdk.contradiction import Contradiction
from animus.sdk.heads import KnownHeads
from animus.sdk.source import Directory
from animus.sdk.trust import Trusted
from animus.sdk.verification import Verification
from animus.signing import SigningKey, cosign, sign_note
from cli.conftest import Animus
from cli.logs import INSTANCE, KEY, LOG_700, OTHER_KEY, ToyLog, entry, leaves, put, toy_log

LOG = LOG_700
SMALL = toy_log(2)
INSTANCE_VKEY = dump_key(Key(INSTANCE, ED25519, KEY.public_key))


def found(animus: Animus, folder: Path, *arguments: object, key: str = LOG.vkey) -> tuple[str, str]:
    """The finding and the place that a failed verification names."""
    done = animus("audit", "verify", folder, "--key", key, "--json", *arguments)
    assert done.code == 7, done
    assert done.json["verdict"] == "FAILED"
    return done.json["contradiction"]["finding"], done.json["contradiction"]["place"]


# Verdicts and keys.


def test_a_sound_log_is_signed_and_then_consistent(animus: Animus, tmp_path: Path, home: Path) -> None:
    """The first check says SIGNED and keeps the head; the next says CONSISTENT, needing no key."""
    folder = LOG.write(tmp_path / "log", 600, [0, 1, 255, 256, 257, 599])
    first = animus("audit", "verify", folder, "--key", LOG.vkey)
    assert (first.code, first.err) == (0, "")
    assert first.out.splitlines() == [
        f"SIGNED {LOG.origin} size 600 root {LOG.root(600).hex()}",
        f"  signed by {LOG.vkey} (given)",
        "  passes 6 published checkpoints",
    ]
    LOG.write(folder)
    second = animus("audit", "verify", folder)
    assert second.out.splitlines() == [
        f"CONSISTENT {LOG.origin} size 700 root {LOG.root(700).hex()}",
        f"  signed by {LOG.vkey} (pinned)",
        "  goes on from 1 known before, the newest of size 600",
        "  passes 0 published checkpoints",
    ]
    assert [head.checkpoint.size for head in KnownHeads(home / "animus/known-heads").read()] == [600, 700]


@pytest.mark.parametrize("size", [0, 1, 2, 255, 256, 257, 511, 512])
def test_logs_of_every_shape_pass(animus: Animus, tmp_path: Path, size: int) -> None:
    """Empty logs, single entries, full and partial tiles: all verify."""
    folder = LOG.write(tmp_path / "log", size, sorted({0, size // 2, max(0, size - 1)}))
    done = animus("audit", "verify", folder, "--key", LOG.vkey, "--json")
    assert (done.code, done.json["verdict"], done.json["size"]) == (0, "SIGNED", size)
    assert done.json["rootHash"] == LOG.root(size).hex()


def test_without_a_key_nothing_is_believed(animus: Animus, tmp_path: Path) -> None:
    """No key is taken unasked. The log's own word is taken on request, said loudly, and kept to from then on."""
    folder = LOG.write(tmp_path / "log")
    refused = animus("audit", "verify", folder)
    assert (refused.code, refused.out) == (2, "")
    assert "--trust-server-key" in refused.err
    taken = animus("audit", "verify", folder, "--trust-server-key", "--json")
    assert (taken.code, taken.json["keySource"]) == (0, "server")
    assert "own word" in taken.err
    forged = replace(LOG, key=OTHER_KEY)
    forged.write(folder)
    done = animus("audit", "verify", folder, "--trust-server-key", "--json")
    assert (done.code, done.json["contradiction"]["finding"]) == (7, "BAD_SIGNATURE")


def test_a_key_is_given_in_any_of_its_forms(animus: Animus, tmp_path: Path) -> None:
    """A vkey, a file with comments, the key of the instance. One for one log is one for the others, pinned too."""
    folder = LOG.write(tmp_path / "log")
    keys = tmp_path / "keys"
    keys.write_text(f"# our log\n\n{LOG.vkey}\n")
    for key in (LOG.vkey, keys, INSTANCE_VKEY):
        assert animus("audit", "verify", folder, "--key", key).code == 0
    again = toy_log(5, "q", epoch=3).write(tmp_path / "other")
    for arguments in (("--key", INSTANCE_VKEY), ("--key", LOG.vkey), ()):
        assert animus("audit", "verify", again, *arguments).code == 0, arguments


@pytest.mark.parametrize(
    ("key", "code"),
    [
        ("nonsense", 2),
        (LOG.vkey.replace("p/1", "p/2"), 2),  # the id in it is that of another name
        (dump_key(Key("other.example/p/1", ED25519, KEY.public_key)), 7),
        (dump_key(Key("animus.exampl", ED25519, KEY.public_key)), 7),
        (dump_key(Key(LOG.origin, ED25519, OTHER_KEY.public_key)), 7),
    ],
)
def test_a_key_that_is_not_of_this_log_is_refused(animus: Animus, tmp_path: Path, key: str, code: int) -> None:
    """A text that is no key, a key of another log, another key of this one."""
    folder = LOG.write(tmp_path / "log")
    assert animus("audit", "verify", folder, "--key", key).code == code


def test_two_keys_sign_while_one_follows_the_other(animus: Animus, tmp_path: Path) -> None:
    """Both are pinned where both sign and both are trusted; a bad signature of the second is not passed over."""
    both = sign_note(LOG.checkpoint(700), [KEY, OTHER_KEY], LOG.origin)
    second = replace(LOG, key=OTHER_KEY)
    folder = LOG.write(tmp_path / "log")
    put(folder / "log.vkeys", f"{LOG.vkey}\n{second.vkey}\n".encode())
    put(folder / "checkpoint", both)
    done = animus("audit", "verify", folder, "--trust-server-key", "--json")
    assert done.json["keys"] == [LOG.vkey, second.vkey]
    put(folder / "checkpoint", second.note(700))
    assert animus("audit", "verify", folder, "--json").json["keySource"] == "pinned"
    put(folder / "checkpoint", both[:-5] + b"AAA=\n")
    assert found(animus, folder) == ("BAD_SIGNATURE", "checkpoint")


# Everything that is changed is found.


def changes_of(data: bytes) -> list[bytes]:
    """The data with each byte changed, once."""
    return [data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :] for at in range(len(data))]


def verify_directory(folder: Path, log: ToyLog) -> None:
    """Verifies as the command does, without what it costs to parse a command line."""
    source = Directory(folder)
    head = source.newest()
    trust = Trusted([Key(log.origin, ED25519, log.key.public_key)], KnownHeads(folder / "none"), None, 0)
    Verification(source, head, trust.of(head.checkpoint.origin), [], None, 0).run(lambda step: None)


def test_each_byte_of_each_file_counts(tmp_path: Path) -> None:
    """Whichever byte is changed, the check fails and names the file, or the entry in it."""
    folder = SMALL.write(tmp_path / "log", heads=[1])
    verify_directory(folder, SMALL)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    assert [path.relative_to(folder).as_posix() for path in files] == [
        "checkpoint",
        "checkpoints/1",
        "log.vkeys",
        "tile/0/000.p/2",
        "tile/entries/000.p/2",
    ]
    for path in files:
        data, name = path.read_bytes(), path.relative_to(folder).as_posix()
        for at, changed in enumerate(changes_of(data)):
            path.write_bytes(changed)
            with pytest.raises(Contradiction) as caught:
                verify_directory(folder, SMALL)
            # A changed origin makes a checkpoint that of another log.
            named = name in str(caught.value) or (name == "checkpoint" and caught.value.finding == "UNKNOWN_LOG")
            assert named, (name, at, str(caught.value))
        path.write_bytes(data)
    verify_directory(folder, SMALL)


def test_the_command_names_a_changed_file(animus: Animus, tmp_path: Path) -> None:
    """One changed byte in each file of a log with two levels of tiles: exit code 7 and the file's or entry's name."""
    folder = LOG.write(tmp_path / "log", heads=[600])
    entry_named = {
        "tile/entries/000": "entry 0",
        "tile/entries/001": "entry 256",
        "tile/entries/002.p/188": "entry 512",
    }
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        data, name = path.read_bytes(), path.relative_to(folder).as_posix()
        path.write_bytes(data[:40] + bytes([data[40] ^ 1]) + data[41:])
        done = animus("audit", "verify", folder, "--key", LOG.vkey)
        assert done.code == 7, name
        assert done.out.startswith("FAILED "), name
        assert entry_named.get(name, name) in done.out, (name, done.out)
        assert "Traceback" not in done.err
        path.write_bytes(data)
    assert animus("audit", "verify", folder, "--key", LOG.vkey).code == 0


@pytest.mark.parametrize(
    "name",
    ["checkpoint", "tile/0/000", "tile/0/002.p/188", "tile/1/000.p/2", "tile/entries/001", "tile/entries/002.p/188"],
)
def test_a_missing_file_is_named(animus: Animus, tmp_path: Path, name: str) -> None:
    """Each file of the layout is needed."""
    folder = LOG.write(tmp_path / "log")
    (folder / name).unlink()
    assert found(animus, folder) == ("MISSING", name)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("tile/0/000", "tile/0/001", ("WRONG_TILE", "tile/0/000")),
        ("tile/entries/000", "tile/entries/001", ("WRONG_ENTRY", "entry 0")),
    ],
)
def test_swapped_files_are_named(
    animus: Animus, tmp_path: Path, one: str, other: str, expected: tuple[str, str]
) -> None:
    """What is above them decides which of two is wrong."""
    folder = LOG.write(tmp_path / "log")
    first, second = (folder / one).read_bytes(), (folder / other).read_bytes()
    put(folder / one, second)
    put(folder / other, first)
    assert found(animus, folder) == expected


def test_bundles_and_tiles_swapped_together_are_found(animus: Animus, tmp_path: Path) -> None:
    """Where entries and their tile agree, the tile above them says that they stand at the wrong place."""
    folder = LOG.write(tmp_path / "log")
    for kind in ("0", "entries"):
        first, second = ((folder / f"tile/{kind}/00{i}").read_bytes() for i in (0, 1))
        put(folder / f"tile/{kind}/000", second)
        put(folder / f"tile/{kind}/001", first)
    assert found(animus, folder) == ("WRONG_TILE", "tile/0/000")


@pytest.mark.parametrize("position", [0, 300, 699])
def test_a_changed_entry_is_named_by_its_index(animus: Animus, tmp_path: Path, position: int) -> None:
    """Another principal in one entry, with a tile that is made to fit: the entry, or the tile, is named."""
    forged = list(LOG.leaves)
    forged[position] = document.dump(entry(position, principal="intruder"))
    other = replace(LOG, leaves=forged)
    folder = LOG.write(tmp_path / "log")
    width = "" if position < 512 else ".p/188"
    name = f"00{position // 256}{width}"
    other.write(tmp_path / "forged")
    shutil.copy(tmp_path / f"forged/tile/entries/{name}", folder / f"tile/entries/{name}")
    assert found(animus, folder) == ("WRONG_ENTRY", f"entry {position}")
    shutil.copy(tmp_path / f"forged/tile/0/{name}", folder / f"tile/0/{name}")
    finding, place = found(animus, folder)
    assert (finding, place) == (("WRONG_TILE", f"tile/0/{name}") if position < 512 else ("WRONG_ROOT", "checkpoint"))


def test_a_log_that_was_rewritten_needs_the_key(animus: Animus, tmp_path: Path) -> None:
    """All tiles made anew for other entries: only the signed root is against it. With another key, the signature is."""
    forged = replace(LOG, leaves=[*LOG.leaves[:-1], document.dump(entry(699, principal="intruder"))])
    folder = forged.write(tmp_path / "log")
    put(folder / "checkpoint", LOG.note(700))
    assert found(animus, folder) == ("WRONG_ROOT", "checkpoint")
    replace(forged, key=OTHER_KEY).write(folder)
    assert found(animus, folder) == ("BAD_SIGNATURE", "checkpoint")


def test_a_cut_off_tail_is_found(animus: Animus, tmp_path: Path) -> None:
    """Without its last entries a log lacks files; with an older checkpoint it is smaller than what was known."""
    folder = LOG.write(tmp_path / "log", heads=[600])
    assert animus("audit", "verify", folder, "--key", LOG.vkey).code == 0
    cut = load_bundle((folder / "tile/entries/002.p/188").read_bytes(), 188)[:88]
    put(folder / "tile/entries/002.p/88", dump_bundle(cut))
    (folder / "tile/entries/002.p/188").unlink()
    assert found(animus, folder) == ("MISSING", "tile/entries/002.p/188")
    LOG.write(folder, 600)
    assert found(animus, folder) == ("SHRUNK", "checkpoint")
    assert found(animus, folder, "--known-heads", tmp_path / "none", "--head", _file(tmp_path, LOG.note(650))) == (
        "SHRUNK",
        "checkpoint",
    )


def _file(folder: Path, data: bytes) -> Path:
    put(folder / "head", data)
    return folder / "head"


def test_an_older_checkpoint_as_the_newest_is_found(animus: Animus, tmp_path: Path) -> None:
    """The older heads and the wider tiles that are still there tell."""
    folder = LOG.write(tmp_path / "log", heads=[600, 650])
    put(folder / "checkpoint", LOG.note(600))
    assert found(animus, folder)[0] == "STRAY"
    LOG.write(folder, 600, [600])
    put(folder / "checkpoints/650", LOG.note(650))
    assert found(animus, folder) == ("SHRUNK", "checkpoint")


@pytest.mark.parametrize("name", ["tile/0/003", "tile/0/000.p/300", "tile/2/000.p/1", "tile/x", "checkpoints/old"])
def test_a_file_that_belongs_to_no_log_is_named(animus: Animus, tmp_path: Path, name: str) -> None:
    """Below `tile` and `checkpoints` stands nothing else."""
    folder = LOG.write(tmp_path / "log")
    put(folder / name, b"x")
    assert found(animus, folder) == ("STRAY", name)


def test_partial_tiles_of_smaller_trees_may_stay_and_have_to_fit(animus: Animus, tmp_path: Path) -> None:
    """A mirror keeps them: each has to be the first part of the wider one."""
    folder = LOG.write(tmp_path / "log")
    whole = (folder / "tile/0/000").read_bytes()
    bundle = load_bundle((folder / "tile/entries/000").read_bytes(), 256)
    put(folder / "tile/0/000.p/9", whole[: 9 * 32])
    put(folder / "tile/entries/000.p/9", dump_bundle(bundle[:9]))
    put(folder / "tile/1/000.p/1", (folder / "tile/1/000.p/2").read_bytes()[:32])
    assert animus("audit", "verify", folder, "--key", LOG.vkey).code == 0
    put(folder / "tile/entries/000.p/9", dump_bundle(bundle[1:10]))
    assert found(animus, folder) == ("WRONG_TILE", "tile/entries/000.p/9")


def test_a_full_tile_stands_for_a_partial_one(animus: Animus, tmp_path: Path) -> None:
    """A log may drop a partial tile once it is full, while its checkpoint is still read (C2SP tlog-tiles)."""
    full = LOG.write(tmp_path / "full", 512)
    folder = LOG.write(tmp_path / "log", 300)
    (folder / "tile/0/001.p/44").unlink()
    shutil.copy(full / "tile/0/001", folder / "tile/0/001")
    # The full one is beyond this checkpoint: it is read, and then found not to belong to it.
    assert Directory(folder).read(Tile(0, 1, 44)) == (full / "tile/0/001").read_bytes()[: 44 * 32]
    assert found(animus, folder)[0] == "STRAY"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (document.dump(entry(1, project_id="q")), "of the project 'q'"),
        (document.dump(entry(1, entry_id="1")), "no id"),
        (document.dump(entry(1, time="never")), "no audit entry: time"),
        (b'{"schema":"animus.audit_entry/v1"}', "no audit entry"),
        (document.dump(entry(1)).replace(b'":"', b'": "', 1), "no audit entry"),
        (b"", "no audit entry"),
        (b"\xff", "no audit entry"),
        (LOG.note(1), "no audit entry"),
    ],
)
def test_what_is_signed_has_to_be_an_entry_of_this_log(
    animus: Animus, tmp_path: Path, changed: bytes, said: str
) -> None:
    """The log's own signature does not make an entry of other bytes."""
    log = replace(LOG, leaves=[LOG.leaves[0], changed, *LOG.leaves[2:]])
    done = animus("audit", "verify", log.write(tmp_path / "log"), "--key", LOG.vkey)
    assert done.code == 7
    assert done.out.startswith("FAILED WRONG_ENTRY: entry 1 ")
    assert said in done.out


@pytest.mark.parametrize("places", [[(5, 6)], [(5, 600)], [(600, 650), (3, 650)]])
def test_an_entry_that_stands_twice_is_named(animus: Animus, tmp_path: Path, places: list[tuple[int, int]]) -> None:
    """The same id at two places, near and far: the second is named, the first of several such."""
    log = list(LOG.leaves)
    for first, second in places:
        log[second] = document.dump(replace(entry(first), principal="again"))
    folder = replace(LOG, leaves=log).write(tmp_path / "log")
    finding, place = found(animus, folder)
    assert finding == "REPEATED"
    assert place.startswith(f"entry {min(second for _, second in places)} (")


# Heads.


def forked(at: int) -> ToyLog:
    """The log with another entry at an index."""
    log = list(LOG.leaves)
    log[at] = document.dump(entry(at, principal="intruder"))
    return replace(LOG, leaves=log)


@pytest.mark.parametrize("size", [1, 256, 300, 512, 700])
def test_a_fork_is_found_by_a_head_that_is_known(animus: Animus, tmp_path: Path, size: int) -> None:
    """The log's own key signs two histories: whoever has seen one does not take the other, and keeps what it knows."""
    honest = LOG.write(tmp_path / "log", size)
    heads = tmp_path / "heads"
    assert animus("audit", "verify", honest, "--key", LOG.vkey, "--known-heads", heads).code == 0
    before = heads.read_bytes()
    other = forked(0).write(tmp_path / "fork")
    assert animus("audit", "verify", other, "--key", LOG.vkey, "--known-heads", tmp_path / "none").code == 0
    assert found(animus, other, "--known-heads", heads) == ("FORKED", f"{heads}:1")
    assert heads.read_bytes() == before
    assert found(animus, other, "--head", _file(tmp_path, LOG.note(size))) == ("FORKED", str(tmp_path / "head"))


def test_a_fork_after_a_known_head_cannot_be_seen_yet(animus: Animus, tmp_path: Path) -> None:
    """A negative control: what was known is extended by both histories."""
    heads = tmp_path / "heads"
    for log in (LOG.write(tmp_path / "log", 600), forked(600).write(tmp_path / "fork")):
        assert animus("audit", "verify", log, "--key", LOG.vkey, "--known-heads", heads).code == 0


def test_a_published_head_that_is_not_extended_is_found(animus: Animus, tmp_path: Path) -> None:
    """The log's older checkpoints count as much as those that were known."""
    folder = LOG.write(tmp_path / "log", heads=[100, 300])
    put(folder / "checkpoints/300", forked(100).note(300))
    assert found(animus, folder) == ("FORKED", "checkpoints/300")
    put(folder / "checkpoints/300", LOG.note(301))
    assert found(animus, folder) == ("STRAY", "checkpoints/300")
    put(folder / "checkpoints/300", replace(LOG, key=OTHER_KEY).note(300))
    assert found(animus, folder) == ("BAD_SIGNATURE", "checkpoints/300")
    put(folder / "checkpoints/300", toy_log(300, "q").note(300))
    assert found(animus, folder) == ("STRAY", "checkpoints/300")
    (folder / "checkpoints/300").rename(folder / "checkpoints/300.1")
    assert found(animus, folder) == ("UNKNOWN_LOG", "checkpoints/300.1")


def test_checkpoints_of_a_key_that_is_trusted_no_more_still_have_to_fit(animus: Animus, tmp_path: Path) -> None:
    """After a rotation the log names its old key: what that signed adds no trust, and must not contradict."""
    old = replace(LOG, key=OTHER_KEY)
    folder = LOG.write(tmp_path / "log")
    put(folder / "log.vkeys", f"{LOG.vkey}\n{old.vkey}\n".encode())
    put(folder / "checkpoints/300", old.note(300))
    done = animus("audit", "verify", folder, "--key", LOG.vkey, "--json")
    assert (done.code, done.json["unverifiedCheckpoints"]) == (0, 1)
    assert "not trusted" in done.err
    put(folder / "checkpoints/300", replace(forked(5), key=OTHER_KEY).note(300))
    assert found(animus, folder) == ("FORKED", "checkpoints/300")


def test_a_head_from_elsewhere_is_a_checkpoint_or_a_proof(animus: Animus, tmp_path: Path) -> None:
    """Both are taken; what is of another log, or not signed by it, is not."""
    folder = LOG.write(tmp_path / "log")
    proof = dump_proof(TlogProof(0, (), b"", LOG.note(300)))
    for data in (LOG.note(300), proof):
        heads = tmp_path / f"heads-{len(data)}"
        arguments = ("--key", LOG.vkey, "--known-heads", heads, "--head", _file(tmp_path, data), "--json")
        done = animus("audit", "verify", folder, *arguments)
        assert (done.code, done.json["verdict"], done.json["knownSize"]) == (0, "CONSISTENT", 300)
    for data, finding in (
        (toy_log(3, "q").note(3), "UNKNOWN_LOG"),
        (replace(LOG, key=OTHER_KEY).note(300), "BAD_SIGNATURE"),
        (b"nothing\n", "MALFORMED"),
    ):
        assert found(animus, folder, "--head", _file(tmp_path, data)) == (finding, str(tmp_path / "head"))


def test_a_damaged_file_of_known_heads_is_not_passed_over(animus: Animus, tmp_path: Path, home: Path) -> None:
    """What is remembered is not forgotten because something overwrote it."""
    folder = LOG.write(tmp_path / "log")
    assert animus("audit", "verify", folder, "--key", LOG.vkey).code == 0
    file = home / "animus/known-heads"
    data = file.read_bytes()
    for changed in (data[:-20], b"{}\n" + data, data.replace(b"700", b"701")):
        file.write_bytes(changed)
        done = animus("audit", "verify", folder)
        assert (done.code, done.out) == (1, "")
        assert f"{file}: line 1 is no known head" in done.err


# Epochs.


def test_a_new_epoch_that_lost_nothing_goes_on(animus: Animus, tmp_path: Path) -> None:
    """Known heads and published ones of the epoch before are passed; the pinned key signs under the new name."""
    old, new = LOG, replace(LOG, origin=f"{INSTANCE}/p/2")
    assert animus("audit", "verify", old.write(tmp_path / "log", 600), "--key", old.vkey).code == 0
    folder = new.write(tmp_path / "log", 700, [650])
    put(folder / "checkpoints/600.1", old.note(600))
    done = animus("audit", "verify", folder, "--json")
    assert (done.code, done.json["verdict"], done.json["knownSize"]) == (0, "CONSISTENT", 600)
    assert done.json["publishedCheckpoints"] == 2


def test_what_a_restore_cut_off_is_named_until_it_is_accepted(animus: Animus, tmp_path: Path, home: Path) -> None:
    """A head of the old epoch that is not extended fails the check; accepted once, it is forgotten."""
    old = LOG
    assert animus("audit", "verify", old.write(tmp_path / "log", 600), "--key", old.vkey).code == 0
    restored = replace(forked(500), origin=f"{INSTANCE}/p/2")
    for size in (550, 650):
        restored.write(tmp_path / "log", size)
        done = animus("audit", "verify", tmp_path / "log", "--json")
        assert (done.code, done.json["contradiction"]["finding"]) == (7, "LOST_IN_RESTORE")
        assert "--accept-epoch 2" in done.json["contradiction"]["description"]
    for epoch in (1, 3):
        assert animus("audit", "verify", tmp_path / "log", "--accept-epoch", epoch).code == 7
    done = animus("audit", "verify", tmp_path / "log", "--accept-epoch", 2, "--json")
    assert (done.code, done.json["verdict"]) == (0, "SIGNED")
    assert done.json["lostHeads"] == [{"origin": old.origin, "size": 600}]
    assert "lost in a restore" in done.err
    assert animus("audit", "verify", tmp_path / "log", "--json").json["verdict"] == "CONSISTENT"


def test_an_earlier_epoch_does_not_come_back(animus: Animus, tmp_path: Path) -> None:
    """A log that was seen in epoch 2 is not taken in epoch 1."""
    new = replace(LOG, origin=f"{INSTANCE}/p/2")
    assert animus("audit", "verify", new.write(tmp_path / "log", 600), "--key", INSTANCE_VKEY).code == 0
    LOG.write(tmp_path / "log")
    assert found(animus, tmp_path / "log", key=INSTANCE_VKEY) == ("SHRUNK", "checkpoint")


def test_a_key_of_one_epoch_is_no_key_of_another_unless_that_is_accepted(animus: Animus, tmp_path: Path) -> None:
    """The advice says how, and only for the same log."""
    new = replace(LOG, origin=f"{INSTANCE}/p/2")
    folder = new.write(tmp_path / "log")
    refused = animus("audit", "verify", folder, "--key", LOG.vkey)
    assert refused.code == 7
    assert "--accept-epoch 2" in refused.out
    assert animus("audit", "verify", folder, "--key", LOG.vkey, "--accept-epoch", 2).code == 0


# Witnesses.

WITNESSES = [SigningKey(f"witness.example/{name}", name.encode() * 32) for name in "abc"]
POLICY = "".join(f"witness {w.name[-1]} {dump_key(w.key(key_type=4))}\n" for w in WITNESSES) + (
    "group Uni any a b\ngroup Press all c\ngroup both 2 Uni Press\nquorum both\n"
)


def cosigned(size: int, *witnesses: int) -> bytes:
    """A checkpoint with the cosignatures of witnesses."""
    text = LOG.checkpoint(size)
    return LOG.note(size) + b"".join(cosign(text, WITNESSES[number], 1_770_000_000) for number in witnesses)


def test_a_log_is_witnessed_when_the_quorum_has_cosigned(animus: Animus, tmp_path: Path) -> None:
    """Organisations are counted, not keys; and the newest head with a quorum says up to where."""
    policy = tmp_path / "policy"
    policy.write_text(POLICY)
    folder = LOG.write(tmp_path / "log", heads=[300])
    arguments = ("audit", "verify", folder, "--key", LOG.vkey, "--policy", policy, "--known-heads", tmp_path / "none")

    def check(newest: tuple[int, ...], older: tuple[int, ...]) -> tuple[str, object]:
        put(folder / "checkpoint", cosigned(700, *newest))
        put(folder / "checkpoints/300", cosigned(300, *older))
        (tmp_path / "none").unlink(missing_ok=True)
        done = animus(*arguments, "--json")
        assert done.code == 0
        return done.json["verdict"], done.json["witnessed"]

    assert check((), ()) == ("SIGNED", None)
    assert check((0, 1), ()) == ("SIGNED", None)  # two keys of one organisation
    assert check((0, 2), ()) == (
        "WITNESSED",
        {"size": 700, "witnesses": ["a", "c"], "groups": ["Press", "Uni", "both"]},
    )
    assert check((0,), (1, 2)) == (
        "WITNESSED",
        {"size": 300, "witnesses": ["b", "c"], "groups": ["Press", "Uni", "both"]},
    )
    put(folder / "checkpoint", cosigned(700, 0))
    put(folder / "checkpoints/300", cosigned(300))
    said = animus(*arguments).out.splitlines()[-1]
    assert said == "  up to size 700 cosigned by a, for Uni: not the quorum"


def test_a_cosignature_that_is_not_good_refuses_the_head(animus: Animus, tmp_path: Path) -> None:
    """One of a known witness under other bytes; an unknown witness's may be anything."""
    policy = tmp_path / "policy"
    policy.write_text(POLICY)
    folder = LOG.write(tmp_path / "log")
    put(folder / "checkpoint", LOG.note(700) + cosign(LOG.checkpoint(699), WITNESSES[0], 1_770_000_000))
    assert found(animus, folder, "--policy", policy) == ("BAD_SIGNATURE", "checkpoint")
    assert animus("audit", "verify", folder, "--key", LOG.vkey).code == 0


def test_a_policy_without_a_quorum_witnesses_nothing(animus: Animus, tmp_path: Path) -> None:
    """`quorum none` asks nobody, so that nothing is shown. A policy may bring the log's key."""
    policy = tmp_path / "policy"
    policy.write_text(f"log {LOG.vkey}\n" + POLICY.replace("quorum both", "quorum none"))
    folder = LOG.write(tmp_path / "log")
    put(folder / "checkpoint", cosigned(700, 0, 1, 2))
    done = animus("audit", "verify", folder, "--policy", policy, "--json")
    assert (done.code, done.json["verdict"], done.json["witnessed"]) == (0, "SIGNED", None)
    assert done.json["cosigned"]["witnesses"] == ["a", "b", "c"]
    policy.write_text("quorum\n")
    assert animus("audit", "verify", folder, "--policy", policy).code == 2


# The instance's log.


def instance_log(*heads: tuple[ToyLog, int]) -> ToyLog:
    """The log of an instance with these projects' checkpoints as leaves."""
    return ToyLog([log.note(size) for log, size in heads], f"{INSTANCE}/1", KEY)


P, Q = toy_log(9), toy_log(9, "q")


@pytest.mark.parametrize("key", [INSTANCE_VKEY, instance_log().vkey])
def test_the_log_of_the_instance_holds_checkpoints(animus: Animus, tmp_path: Path, key: str) -> None:
    """Each is signed by the instance's key under its own log's name; sizes of one log never fall within an epoch."""
    again = replace(P, origin=f"{INSTANCE}/p/2")
    log = instance_log((P, 1), (Q, 5), (P, 3), (P, 3), (again, 2), (Q, 9))
    done = animus("audit", "verify", log.write(tmp_path / "log"), "--key", key, "--json")
    assert (done.code, done.json["origin"], done.json["size"]) == (0, f"{INSTANCE}/1", 6)


@pytest.mark.parametrize(
    ("leaf", "finding"),
    [
        (lambda: P.note(2), "FORKED"),
        (lambda: replace(P, leaves=Q.leaves).note(3), "FORKED"),
        (lambda: replace(P, key=OTHER_KEY).note(4), "BAD_SIGNATURE"),
        (lambda: replace(P, origin="other.example/p/1").note(4), "WRONG_ENTRY"),
        (lambda: instance_log((P, 1)).note(1), "WRONG_ENTRY"),
        (lambda: P.leaves[0], "MALFORMED"),
        (lambda: b"", "MALFORMED"),
    ],
)
def test_a_leaf_that_the_log_of_the_instance_cannot_have_is_named(
    animus: Animus, tmp_path: Path, leaf: Callable[[], bytes], finding: str
) -> None:
    """A smaller size, another root, another key, another instance, an entry: each at its index."""
    sound = instance_log((P, 1), (P, 3))
    log = replace(sound, leaves=[*sound.leaves, leaf()])
    folder = log.write(tmp_path / "log")
    assert found(animus, folder, key=INSTANCE_VKEY) == (finding, "entry 2")


# Files that are no files.


def test_a_directory_from_a_stranger_is_read_with_care(animus: Animus, tmp_path: Path) -> None:
    """Folders and endless files in place of files, and no directory at all, are refused without waiting."""
    folder = LOG.write(tmp_path / "log")
    shutil.copytree(folder, tmp_path / "other")
    (folder / "checkpoint").unlink()
    (folder / "checkpoint").mkdir()
    assert found(animus, folder) == ("MALFORMED", "checkpoint")
    (folder / "checkpoint").rmdir()
    (folder / "checkpoint").symlink_to("/dev/zero")
    assert found(animus, folder) == ("MALFORMED", "checkpoint")
    (tmp_path / "other/tile/entries/000").write_bytes(bytes(256 * 65_537 + 1))
    assert found(animus, tmp_path / "other") == ("MALFORMED", "tile/entries/000")
    assert found(animus, tmp_path / "nowhere") == ("MISSING", "checkpoint")


def test_a_checkpoint_of_a_tree_that_nobody_has_costs_nothing(animus: Animus, tmp_path: Path) -> None:
    """A signed size of 2^62 asks for no memory: the first bundle that is missing ends it."""
    size = 2**62
    text = f"{LOG.origin}\n{size}\n{base64.b64encode(bytes(32)).decode()}\n"
    put(tmp_path / "log/checkpoint", sign_note(text, [KEY], LOG.origin))
    assert found(animus, tmp_path / "log") == ("MISSING", "tile/entries/000")


def test_leaves_helper_makes_distinct_entries() -> None:
    """What these tests stand on: no two entries of a log are equal."""
    assert len(set(leaves(1_000))) == 1_000
