"""The signer's state: each head has one successor, whoever asks, and a head that was promised is never forgotten."""

import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from conftest import short_temporary_directory
from domain import trees
from domain.values import LAW
from hypothesis import given
from hypothesis import strategies as st

from animus.domain import merkle
from animus.domain.merkle import EMPTY_RANGE, CompactRange
from animus.store import signer_state
from animus.store.signer_state import Advance, SignerState, SignerStateError

LEAVES = [trees.leaf(bytes([number])) for number in range(40)]
OTHERS = [*LEAVES[:3], *(trees.leaf(b"other" + bytes([number])) for number in range(3, 40))]


def tree(size: int, leaves: list[bytes] = LEAVES) -> CompactRange:
    """The tree of the first leaves."""
    return merkle.append(EMPTY_RANGE, leaves[:size])


def step(before: int, after: int, log: str = "p") -> Advance:
    """From one size of the log to another."""
    return Advance(log, tree(before), tree(after))


@pytest.fixture
def path(directory: Path) -> Path:
    """Where a state may be."""
    return directory / "signer.db"


@pytest.fixture
def state(path: Path) -> SignerState:
    """The state of a signer that has signed nothing."""
    return SignerState.create(path)


def refused(call: Callable[..., object], *args: Any) -> str:
    """The one line with which a call is refused."""
    with pytest.raises(SignerStateError) as caught:
        call(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Heads.


def test_a_new_signer_has_signed_nothing(state: SignerState, path: Path) -> None:
    """Epoch 1, no head, and a file that only its owner reads, alone in its folder."""
    assert (state.epoch(), state.heads(), state.heads(["p"])) == (1, {}, {})
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(path.parent.iterdir()) == [path]


def test_heads_are_remembered(state: SignerState, path: Path) -> None:
    """Each log's last, by every handle; those that are asked for, or all."""
    state.advance(1, [step(0, 5), step(0, 7, "q")])
    state.advance(1, [step(5, 6)])
    for each in (state, SignerState(path), SignerState.create(path)):
        assert each.heads() == {"p": tree(6), "q": tree(7)}
        assert each.heads(["q", "r"]) == {"q": tree(7)}


def test_the_two_worlds_of_these_tests_differ() -> None:
    """From size 4 on their trees are others, and below the same."""
    assert [merkle.root(tree(size)) == merkle.root(tree(size, OTHERS)) for size in range(6)] == [True] * 4 + [False] * 2


def test_a_head_has_one_successor(path: Path, state: SignerState) -> None:
    """For every size of the head, of what is taken for it and of what is to follow: only from it, and only larger."""
    for head in range(5):
        for before in range(5):
            for after in range(6):
                with closing(sqlite3.connect(path)) as connection, connection:
                    connection.execute("DELETE FROM head")
                if head:
                    state.advance(1, [step(0, head)])
                if before == head and after >= before and after:
                    state.advance(1, [step(before, after)])
                    assert state.heads() == {"p": tree(after)}
                elif before or after:
                    assert "head of p" in refused(state.advance, 1, [step(before, after)])
                    assert state.heads() == ({"p": tree(head)} if head else {})


def test_the_same_head_may_be_promised_again(state: SignerState) -> None:
    """What a crash after the promise asks for: it is signed again, and is the same."""
    state.advance(1, [step(0, 5)])
    state.advance(1, [step(5, 5)])
    assert state.heads() == {"p": tree(5)}


def test_another_head_of_one_size_is_refused(state: SignerState) -> None:
    """In place of the head, and as if that had never been: the root decides, not the size."""
    state.advance(1, [step(0, 5)])
    other = tree(5, OTHERS)
    assert "5 leaves" in refused(state.advance, 1, [Advance("p", tree(5), other)])
    assert "another signer" in refused(state.advance, 1, [Advance("p", other, tree(6, OTHERS))])
    assert "another signer" in refused(state.advance, 1, [Advance("p", EMPTY_RANGE, other)])
    assert state.heads() == {"p": tree(5)}


def test_advances_are_made_all_or_none(state: SignerState) -> None:
    """One that is refused among five, at each place, leaves all five logs as they were."""
    state.advance(1, [step(0, 3, log) for log in "abcde"])
    before = state.heads()
    for wrong in range(5):
        advances = [step(2 if at == wrong else 3, 9, log) for at, log in enumerate("abcde")]
        assert f"head of {'abcde'[wrong]}" in refused(state.advance, 1, advances)
        assert state.heads() == before
    state.advance(1, [step(3, 9, log) for log in "abcde"])
    assert set(state.heads().values()) == {tree(9)}


def test_one_log_twice_in_one_promise_keeps_the_rule(state: SignerState) -> None:
    """The second follows the first, or neither is promised."""
    refused(state.advance, 1, [step(0, 5), step(0, 6)])
    assert state.heads() == {}
    state.advance(1, [step(0, 5), step(5, 6)])
    assert state.heads() == {"p": tree(6)}


# Epochs.


def test_a_new_epoch_forgets_the_heads(state: SignerState) -> None:
    """Once; opened again, or an earlier one, nothing is forgotten. Promises are of the epoch that is open."""
    state.advance(1, [step(0, 5)])
    state.open_epoch(1)
    assert (state.epoch(), state.heads()) == (1, {"p": tree(5)})
    state.open_epoch(3)
    assert (state.epoch(), state.heads()) == (3, {})
    for epoch in (1, 2, 4):
        assert refused(state.advance, epoch, [step(0, 5)]) == f"the signer is in epoch 3, not in {epoch}"
    state.advance(3, [Advance("p", EMPTY_RANGE, tree(4, OTHERS))])
    for epoch in (1, 2, 3):
        state.open_epoch(epoch)
        assert (state.epoch(), state.heads()) == (3, {"p": tree(4, OTHERS)})


def test_a_state_may_begin_in_a_later_epoch(path: Path) -> None:
    """That of a signer whose state was lost."""
    assert SignerState.create(path, 7).epoch() == 7


# Never two heads of one size.

moves = st.tuples(
    st.sampled_from(["head", "old", "made up", "empty"]),  # what is taken for the head
    st.integers(0, 2**32),  # which
    st.integers(0, 12),  # the size of what should follow
    st.booleans(),  # whether that is of the other world
    st.integers(0, 1),  # by which of two handles
    st.integers(0, 19),  # 0: a new epoch first
)


@LAW
@given(st.lists(moves, max_size=40))
def test_no_schedule_makes_two_heads_of_one_size(schedule: list[tuple[str, int, int, bool, int, int]]) -> None:
    """Whatever two signers ask for, in whatever order: within an epoch a size has one root, and the head only grows."""
    folder = short_temporary_directory()
    handles = [SignerState.create(folder / "signer.db"), SignerState(folder / "signer.db")]
    promised: dict[tuple[int, int], bytes] = {}
    seen = [EMPTY_RANGE]
    epoch = 1
    for taken_for, which, size, of_other, handle, opens in schedule:
        if opens == 0:
            epoch += 1
            handles[handle].open_epoch(epoch)
            seen = [EMPTY_RANGE]
        head = handles[1 - handle].heads().get("p", EMPTY_RANGE)
        before = {
            "head": head,
            "old": seen[which % len(seen)],
            "made up": tree(which % 13, OTHERS if which & 1 else LEAVES),
            "empty": EMPTY_RANGE,
        }[taken_for]
        after = tree(size, OTHERS if of_other else LEAVES)
        try:
            handles[handle].advance(epoch, [Advance("p", before, after)])
        except SignerStateError:
            assert handles[handle].heads().get("p", EMPTY_RANGE) == head
        else:
            assert promised.setdefault((epoch, after.size), merkle.root(after)) == merkle.root(after)
            assert after.size >= head.size
            assert handles[1 - handle].heads().get("p", EMPTY_RANGE) == after
            seen.append(after)
    shutil.rmtree(folder)


# Processes.

ADVANCER = """
import json, pathlib, sys
from animus.domain import merkle
from animus.domain.merkle import EMPTY_RANGE
from animus.store.signer_state import Advance, SignerState, SignerStateError

leaves = [bytes.fromhex(line) for line in json.loads(sys.argv[2])]
state = SignerState(pathlib.Path(sys.argv[1]))
print("ready", flush=True)
for line in sys.stdin:
    before, after = (merkle.append(EMPTY_RANGE, leaves[:size]) for size in json.loads(line))
    try:
        state.advance(1, [Advance("p", before, after)])
        print(json.dumps(""), flush=True)
    except SignerStateError as error:
        print(json.dumps(str(error)), flush=True)
"""


def python(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Another process."""
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path)}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], env=environment, text=True, **pipes)


def line_of(process: subprocess.Popen[str]) -> str:
    """The next line that a process says."""
    assert process.stdout is not None
    return process.stdout.readline()


def test_of_two_processes_that_advance_one_head_at_once_one_does(path: Path, state: SignerState) -> None:
    """In each of 40 rounds both go from the same head to trees of one size: one succeeds, the other is told so."""
    ways = [LEAVES, [*LEAVES[:0], *(trees.leaf(b"b%d" % number) for number in range(40))]]
    texts = [json.dumps([leaf.hex() for leaf in way]) for way in ways]
    won: list[int] = []
    with python(ADVANCER, path, texts[0]) as one, python(ADVANCER, path, texts[1]) as other:
        assert [line_of(each) for each in (one, other)] == ["ready\n"] * 2
        for _ in range(40):
            with closing(sqlite3.connect(path)) as connection, connection:
                connection.execute("DELETE FROM head")
            for each in (one, other) if len(won) % 2 else (other, one):
                print("[0, 9]", file=each.stdin, flush=True)
            said = [json.loads(line_of(each)) for each in (one, other)]
            won.append(said.index(""))
            assert sorted(said) == ["", "another signer has advanced the head of p past 0"]
            assert state.heads() == {"p": tree(9, ways[won[-1]])}
    assert set(won) == {0, 1}  # it is decided anew each time


KILLED = """
import os, pathlib, signal, sys
from animus.domain import merkle
from animus.domain.merkle import EMPTY_RANGE
from animus.store.signer_state import Advance, SignerState

class Deadly(list):
    def __iter__(self):
        for at, each in enumerate(super().__iter__()):
            if at == count:
                os.kill(os.getpid(), signal.SIGKILL)
            yield each
        if count == len(self):
            os.kill(os.getpid(), signal.SIGKILL)

count = int(sys.argv[2])
def tree(size):
    return merkle.append(EMPTY_RANGE, [bytes([number]) * 32 for number in range(size)])
state = SignerState(pathlib.Path(sys.argv[1]))
state.advance(1, Deadly(Advance(f"log{number}", tree(3), tree(30)) for number in range(1_000)))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_signer_killed_within_a_promise_has_promised_all_or_nothing(path: Path) -> None:
    """kill -9 before the first of 1,000 statements, after some, before the commit: nothing; after it: all."""
    before, after = (merkle.append(EMPTY_RANGE, [bytes([number]) * 32 for number in range(size)]) for size in (3, 30))
    logs = [f"log{number}" for number in range(1_000)]
    counts = (0, 1, 500, 999, 1_000, 1_001)
    files = [path.with_name(f"signer{count}.db") for count in counts]
    for file in files:
        SignerState.create(file).advance(1, [Advance(log, EMPTY_RANGE, before) for log in logs])
    children = [python(KILLED, file, count) for file, count in zip(files, counts, strict=True)]
    for child in children:
        with child:
            assert child.wait(30) == -signal.SIGKILL
    for file, count in zip(files, counts, strict=True):
        promised = count > 1_000
        assert SignerState(file).heads() == dict.fromkeys(logs, after if promised else before), count
        SignerState(file).advance(1, [Advance(log, after if promised else before, after) for log in logs])
        assert SignerState(file).heads() == dict.fromkeys(logs, after)


GROWER = """
import pathlib, sys
from animus.domain import merkle
from animus.domain.merkle import EMPTY_RANGE
from animus.store.signer_state import Advance, SignerState

state = SignerState(pathlib.Path(sys.argv[1]))
head = state.heads().get("p", EMPTY_RANGE)
while True:
    after = merkle.append(head, [head.size.to_bytes(32, "big")])
    state.advance(1, [Advance("p", head, after)])
    head = after
    print(head.size, flush=True)
"""


def test_a_signer_killed_at_any_time_remembers_what_it_promised(path: Path, state: SignerState) -> None:
    """Killed eight times while it promises one head after another: the last that it said is there, or the next."""
    rng = random.Random(1)
    size = 0
    for _ in range(8):
        with python(GROWER, path) as grower:
            for _ in range(rng.randint(1, 60)):
                size = int(line_of(grower))
            grower.kill()
            assert grower.stdout is not None
            for line in grower.stdout:
                size = int(line)
        found = state.heads()["p"]
        assert found.size in (size, size + 1)
        assert found == merkle.append(EMPTY_RANGE, [number.to_bytes(32, "big") for number in range(found.size)])


# Files.


def test_a_state_that_is_not_there_is_named(path: Path, state: SignerState) -> None:
    """At the start, and when it goes while a signer runs; none is made in its place."""
    path.unlink()
    assert refused(SignerState, path) == f"{path} is missing: it holds what was signed last"
    for call in (state.epoch, state.heads, lambda: state.advance(1, [step(0, 1)]), lambda: state.open_epoch(2)):
        assert str(path) in refused(call)
    assert list(path.parent.iterdir()) == []


def test_a_file_that_is_no_state_is_refused(path: Path, state: SignerState) -> None:
    """Empty, text, cut off, written over, another database, a folder: in one line that names the file."""
    state.advance(1, [step(0, 5)])
    whole = path.read_bytes()
    bad = [b"", b"text\n", b"\x00" * 4_096, os.urandom(4_096), whole[:100], whole[:4_096], b"x" + whole[1:]]
    bad.append(whole[:100] + bytes(len(whole) - 100))
    for data in bad:
        path.write_bytes(data)
        assert refused(SignerState, path).startswith(f"{path}: ")
    path.unlink()
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE other (x)")
    assert "no such table: signer" in refused(SignerState, path)
    path.unlink()
    path.mkdir()
    assert refused(SignerState, path).startswith(f"{path}: ")


@pytest.mark.parametrize(
    "statement",
    ["UPDATE signer SET format = 2", "UPDATE signer SET format = 0", "DELETE FROM signer"],
)
def test_a_state_of_another_version_is_refused(statement: str, path: Path, state: SignerState) -> None:
    """At the start, and by a signer that runs while another version takes the file over."""
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(statement)
    for call in (lambda: SignerState(path), state.epoch, lambda: state.advance(1, [step(0, 1)])):
        assert refused(call) == "the signer's state is of another version of this program"


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE head SET root = zeroblob(32)",
        "UPDATE head SET root = x''",
        "UPDATE head SET hashes = zeroblob(64)",
        "UPDATE head SET hashes = zeroblob(63)",
        "UPDATE head SET hashes = x''",
        "UPDATE head SET hashes = 'text'",
        "UPDATE head SET root = 'text'",
        "UPDATE head SET size = 4",
        "UPDATE head SET size = 7",
        "UPDATE head SET size = -1",
        "UPDATE head SET size = 'text'",
    ],
)
def test_a_head_that_was_damaged_is_no_head(statement: str, path: Path, state: SignerState) -> None:
    """Its hashes lead to its root, or nothing goes on from it; other logs go on."""
    state.advance(1, [step(0, 5)])
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(statement)
    state.advance(1, [step(0, 5, "q")])
    assert refused(state.heads) == refused(state.heads, ["p"]) == "the head of p in the signer's state is damaged"
    assert state.heads(["q"]) == {"q": tree(5)}


def test_a_file_that_another_holds_is_waited_for_and_then_given_up(
    path: Path, state: SignerState, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that stopped in the middle holds the lock: the others say so, and go on when it ends."""
    monkeypatch.setattr(signer_state, "WAIT_SECONDS", 0.05)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        for call in (state.heads, lambda: state.advance(1, [step(0, 1)])):
            assert refused(call) == f"{path}: database is locked"
    state.advance(1, [step(0, 1)])


def test_a_path_of_any_letters_is_a_path(directory: Path) -> None:
    """What means something in a URL means nothing here."""
    folder = directory / "a b%20?mode=memory#x"
    folder.mkdir()
    SignerState.create(folder / "signer.db").advance(1, [step(0, 1)])
    assert SignerState(folder / "signer.db").heads() == {"p": tree(1)}
    assert [each.name for each in folder.iterdir()] == ["signer.db"]


def test_a_state_is_made_once(path: Path) -> None:
    """Made again, it is the one that is there; two processes that make it at once have one."""
    maker = "import pathlib, sys; from animus.store.signer_state import SignerState\nprint('ready', flush=True)\n"
    maker += "for line in sys.stdin: print(SignerState.create(pathlib.Path(line.strip())).epoch(), flush=True)"
    with python(maker) as one, python(maker) as other:
        assert [line_of(each) for each in (one, other)] == ["ready\n"] * 2
        for number in range(20):
            folder = path.parent / str(number)
            folder.mkdir()
            for each in (one, other):
                print(folder / "signer.db", file=each.stdin, flush=True)
            assert [line_of(each) for each in (one, other)] == ["1\n"] * 2
            assert [each.name for each in folder.iterdir()] == ["signer.db"]
    found = SignerState(folder / "signer.db")
    found.advance(1, [step(0, 5)])
    assert SignerState.create(folder / "signer.db", 3).heads() == {"p": tree(5)}
    assert found.epoch() == 1
