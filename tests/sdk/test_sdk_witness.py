"""The witness of a folder: it cosigns one history of a log, and nothing makes it sign two."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from cli.logs import KEY, OTHER_KEY, ToyLog, entry, toy_log
from hypothesis import given, settings
from hypothesis import strategies as st

from animus.domain import document, merkle
from animus.domain.checkpoint import CheckpointRequest, dump_request
from animus.domain.merkle import leaf_hash
from animus.domain.note import COSIGNATURE, ED25519, Key, load_key, load_note
from animus.sdk.files import Unreadable
from animus.sdk.witness import (
    Inconsistent,
    Malformed,
    NotSigned,
    OtherSize,
    UnknownLog,
    Witness,
    WitnessRefusal,
)
from animus.signing import cosign, cosignature_time, sign_note, verify_checkpoint

LOG = toy_log(40)
LOG_KEY = load_key(LOG.vkey)
NOW = 1_770_000_000


def proof_of(log: ToyLog, old: int, size: int) -> tuple[bytes, ...]:
    """The proof that the tree of a size begins with that of an old one."""
    if not 0 < old < size:
        return ()
    nodes = {
        (level, at): merkle.root(
            merkle.append(merkle.EMPTY_RANGE, map(leaf_hash, log.leaves[at << level : (at + 1) << level]))
        )
        for level, at in merkle.consistency_nodes(old, size)
    }
    return merkle.prove_consistency(old, size, nodes)


def ask(log: ToyLog, old: int, size: int) -> bytes:
    """A request to cosign a size, from an old one."""
    return dump_request(CheckpointRequest(old, proof_of(log, old, size), log.note(size)))


def fork(at: int, log: ToyLog = LOG) -> ToyLog:
    """The log with another entry at an index."""
    leaves = [*log.leaves[:at], document.dump(entry(at, principal="intruder")), *log.leaves[at + 1 :]]
    return replace(log, leaves=leaves)


@pytest.fixture
def witness(tmp_path: Path) -> Witness:
    """A witness that watches the log."""
    made = Witness.create(tmp_path / "w", "witness.example/w1")
    made.trust(LOG_KEY)
    return made


def state(witness: Witness) -> dict[str, bytes]:
    """All that the witness has written."""
    return {path.name: path.read_bytes() for path in witness.folder.rglob("*") if path.is_file()}


def sizes(witness: Witness) -> dict[str, int]:
    """What it has cosigned, by log."""
    return {log.origin: log.size for log in witness.logs()}


def test_a_new_witness_has_a_key_of_its_own(tmp_path: Path) -> None:
    """The key's file is its owner's only; another witness in the same folder is refused and changes nothing."""
    made = Witness.create(tmp_path / "w", "witness.example/w1")
    assert (made.key.name, made.key.type) == ("witness.example/w1", COSIGNATURE)
    assert (made.folder / "witness.key").stat().st_mode & 0o777 == 0o600
    before = state(made)
    with pytest.raises(FileExistsError):
        Witness.create(tmp_path / "w", "witness.example/w2")
    assert state(made) == before
    assert Witness(tmp_path / "w").key == made.key
    assert Witness.create(tmp_path / "v", "witness.example/w1").key != made.key


def test_cosignatures_follow_the_log(witness: Witness) -> None:
    """From nothing to a head, to the next, and the same again: each verifies, at the time that the clock said."""
    for old, size in ((0, 3), (3, 17), (17, 17), (17, 40)):
        checkpoint, note = witness.cosign(ask(LOG, old, size), lambda: NOW)
        assert (checkpoint.size, sizes(witness)) == (size, {LOG.origin: size})
        whole = LOG.note(size) + note.rpartition(b"\n\n")[2]
        _, verified = verify_checkpoint(whole, [LOG_KEY], [witness.key])
        assert verified.signers == (LOG_KEY, witness.key)
        assert cosignature_time(verified.signatures[1].signature) == NOW
        assert note == LOG.checkpoint(size).encode() + b"\n" + cosign(LOG.checkpoint(size), witness._key, NOW)


def refusals() -> Iterator[tuple[str, bytes, type[WitnessRefusal]]]:
    """Requests that a witness at size 17 does not meet."""
    sound = ask(LOG, 17, 40)
    yield "empty", b"", Malformed
    yield "no request", b"old\n\n", Malformed
    yield "oversized", sound + bytes(3 << 20), Malformed
    yield "no checkpoint", dump_request(CheckpointRequest(17, (), LOG.receipt(3))), Malformed
    yield "old beyond new", dump_request(CheckpointRequest(17, (), LOG.note(9))), Malformed
    yield "needless proof", dump_request(CheckpointRequest(17, (bytes(32),), LOG.note(17))), Malformed
    yield "an older one again", ask(LOG, 3, 17), OtherSize
    yield "from nothing", ask(LOG, 0, 40), OtherSize
    yield "from the wrong size", ask(LOG, 18, 40), OtherSize
    yield "a fork before", ask(fork(3), 17, 40), Inconsistent
    yield "a fork of the same size", ask(fork(3), 17, 17), Inconsistent
    yield "no proof", dump_request(CheckpointRequest(17, (), LOG.note(40))), Inconsistent
    yield "half a proof", dump_request(CheckpointRequest(17, proof_of(LOG, 17, 40)[1:], LOG.note(40))), Inconsistent
    yield "another key", ask(replace(LOG, key=OTHER_KEY), 17, 40), NotSigned
    other_name = sign_note(LOG.checkpoint(40), [KEY], "animus.example/q/1")
    yield "another name", dump_request(CheckpointRequest(17, proof_of(LOG, 17, 40), other_name)), NotSigned
    yield "another log", ask(toy_log(40, "q"), 0, 40), UnknownLog
    yield "another epoch", ask(toy_log(40, epoch=2), 17, 40), UnknownLog


@pytest.mark.parametrize(("request_", "error"), [pytest.param(r, e, id=name) for name, r, e in refusals()])
def test_what_is_refused_leaves_the_state_as_it_was(
    witness: Witness, request_: bytes, error: type[WitnessRefusal]
) -> None:
    """Malformed, replayed, forked, unsigned, unknown: one line says why, and the next sound request is met."""
    witness.cosign(ask(LOG, 0, 17), lambda: NOW)
    before = state(witness)
    with pytest.raises(error) as caught:
        witness.cosign(request_, lambda: NOW)
    assert "\n" not in str(caught.value)
    assert state(witness) == before
    witness.cosign(ask(LOG, 17, 40), lambda: NOW)


def test_a_conflict_says_from_which_size_to_ask(witness: Witness) -> None:
    """So that the request can be made again."""
    witness.cosign(ask(LOG, 0, 17), lambda: NOW)
    with pytest.raises(OtherSize, match="--old 17"):
        witness.cosign(ask(LOG, 0, 40), lambda: NOW)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_changed_request_is_never_cosigned(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Whatever byte of a sound request is changed, inserted or left out: it is refused, or says the same."""
    folder = tmp_path_factory.mktemp("w") / "w"
    made = Witness.create(folder, "witness.example/w1")
    made.trust(LOG_KEY)
    made.cosign(ask(LOG, 0, 17), lambda: NOW)
    sound = ask(LOG, 17, 40)
    at = data.draw(st.integers(0, len(sound) - 1))
    put = data.draw(st.binary(max_size=2))
    try:
        checkpoint, _ = made.cosign(sound[:at] + put + sound[at + 1 :], lambda: NOW)
    except WitnessRefusal:
        assert sizes(made) == {LOG.origin: 17}
    else:
        assert checkpoint.root_hash == LOG.root(40)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 40), st.integers(0, 40)), max_size=20))
@settings(max_examples=40, deadline=None)
def test_all_that_is_cosigned_is_one_history(
    tmp_path_factory: pytest.TempPathFactory, asked: list[tuple[int, int, int]]
) -> None:
    """Whatever is asked of it in whatever order: its roots are those of one log, and sizes never fall."""
    logs = [LOG, fork(5), fork(25)]
    made = Witness.create(tmp_path_factory.mktemp("w") / "w", "witness.example/w1")
    made.trust(LOG_KEY)
    signed: list[tuple[int, bytes]] = []
    for which, old, size in asked:
        try:
            checkpoint, _ = made.cosign(ask(logs[which], min(old, size), size), lambda: NOW)
        except WitnessRefusal:
            continue
        signed.append((checkpoint.size, checkpoint.root_hash))
    assert [size for size, _ in signed] == sorted(size for size, _ in signed)
    assert any(all(log.root(size) == root for size, root in signed) for log in logs)


def test_each_log_is_watched_for_itself(witness: Witness) -> None:
    """A second log, and a second key of the first, which keeps the head; the key of a witness is none of a log."""
    other = toy_log(9, "q")
    witness.cosign(ask(LOG, 0, 17), lambda: NOW)
    witness.trust(load_key(other.vkey))
    witness.cosign(ask(other, 0, 9), lambda: NOW)
    second = replace(LOG, key=OTHER_KEY)
    watched = witness.trust(load_key(second.vkey))
    assert (len(watched.keys), watched.size) == (2, 17)
    witness.cosign(ask(second, 17, 40), lambda: NOW)
    assert sizes(witness) == {LOG.origin: 40, other.origin: 9}
    with pytest.raises(Malformed):
        witness.trust(witness.key)


@pytest.mark.parametrize("damage", ["cut", "empty", "size", "root", "origin", "list"])
def test_a_damaged_state_signs_nothing(witness: Witness, damage: str) -> None:
    """What the witness has not written itself is not its memory."""
    witness.cosign(ask(LOG, 0, 17), lambda: NOW)
    (path,) = (witness.folder / "logs").iterdir()
    tree = json.loads(path.read_bytes())
    if damage in ("cut", "empty"):
        path.write_bytes(path.read_bytes()[:50] if damage == "cut" else b"")
    elif damage == "list":
        path.write_bytes(b"[]")
    else:
        changed = {"size": "x", "rootHash": "zz", "keys": [toy_log(1, "q").vkey]}
        key = {"size": "size", "root": "rootHash", "origin": "keys"}[damage]
        path.write_text(json.dumps({**tree, key: changed[key]}))
    before = state(witness)
    with pytest.raises(Unreadable):
        witness.cosign(ask(LOG, 17, 40), lambda: NOW)
    with pytest.raises(Unreadable):
        witness.trust(LOG_KEY)
    assert state(witness) == before


def test_a_key_that_others_can_read_is_not_used(witness: Witness) -> None:
    """Nor one that is damaged or gone; no part of it is shown."""
    path = witness.folder / "witness.key"
    path.chmod(0o640)
    with pytest.raises(Unreadable, match="chmod 600"):
        Witness(witness.folder)
    path.chmod(0o600)
    secret = path.read_text()
    path.write_text(secret[:-5])
    with pytest.raises(Unreadable) as caught:
        Witness(witness.folder)
    assert secret[-20:-5] not in str(caught.value)
    path.unlink()
    with pytest.raises(Unreadable):
        Witness(witness.folder)


def test_the_head_is_kept_before_the_cosignature_exists(witness: Witness) -> None:
    """A witness that dies in between has promised and not signed: asked from the new size, it signs the same head."""

    class Died(Exception):
        pass

    def die() -> int:
        raise Died

    with pytest.raises(Died):
        witness.cosign(ask(LOG, 0, 17), die)
    assert sizes(witness) == {LOG.origin: 17}
    with pytest.raises(OtherSize):
        witness.cosign(ask(fork(3), 0, 17), lambda: NOW)
    checkpoint, _ = witness.cosign(ask(LOG, 17, 17), lambda: NOW)
    assert checkpoint.size == 17


RACE = """
import sys
from pathlib import Path
from animus.sdk.witness import Witness, WitnessRefusal
witness = Witness(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
try:
    checkpoint, note = witness.cosign(Path(sys.argv[2]).read_bytes(), lambda: 1)
except WitnessRefusal as refusal:
    print(type(refusal).__name__)
else:
    print(checkpoint.root_hash.hex())
"""


@pytest.mark.parametrize("attempt", range(3))
def test_of_two_forks_at_once_one_is_cosigned(witness: Witness, tmp_path: Path, attempt: int) -> None:
    """Processes with one state, asked for two histories at the same moment: one of them is signed, the other never."""
    roots = []
    running = []
    for number, log in enumerate((LOG, fork(attempt))):
        request = tmp_path / f"request-{number}"
        request.write_bytes(ask(log, 0, 30))
        roots.append(log.root(30).hex())
        running.append(
            subprocess.Popen(
                [sys.executable, "-c", RACE, str(witness.folder), str(request)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            )
        )
    for process in running:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in running:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    said = [process.communicate(timeout=60)[0].strip() for process in running]
    assert sorted(each in roots for each in said) == [False, True]
    assert [each for each in said if each not in roots] == ["OtherSize"]
    (watched,) = witness.logs()
    assert watched.root_hash.hex() in said


def test_a_cosignature_is_no_signature_of_the_log(witness: Witness) -> None:
    """The note that leaves holds the witness's line alone, under its own name."""
    _, note = witness.cosign(ask(LOG, 0, 17), lambda: NOW)
    (line,) = load_note(note).signatures
    assert (line.name, line.key_id) == (witness.key.name, witness.key.key_id)
    assert Key(LOG.origin, ED25519, witness.key.public_key).key_id != line.key_id
