"""`animus witness` by files alone: what it cosigns, what it refuses, and that it never says two things of one log."""

import base64
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from animus.domain import document, merkle
from animus.domain.checkpoint import Checkpoint, CheckpointRequest, dump_checkpoint, dump_request, load_request
from animus.domain.merkle import EMPTY_RANGE, leaf_hash
from animus.domain.note import dump_key, load_key
from animus.sdk.witness import MAX_REQUEST_BYTES, Witness, WitnessRefusal
from animus.signing import SigningKey, cosign, sign_note, verify_checkpoint
from cli.conftest import Animus, Done
from cli.logs import INSTANCE, KEY, LOG_700, OTHER_KEY, ToyLog, entry, put, toy_log

LOG = LOG_700
NAME = "witness.example/w1"


def forked(at: int, log: ToyLog = LOG) -> ToyLog:
    """The log with another entry at an index."""
    leaves = list(log.leaves)
    leaves[at] = document.dump(entry(at, principal="intruder"))
    return replace(log, leaves=leaves)


def proof_of(log: ToyLog, old: int, size: int) -> tuple[bytes, ...]:
    """The proof that the tree of a size goes on from an older one."""
    if not 0 < old < size:
        return ()

    def node(level: int, at: int) -> bytes:
        return merkle.root(merkle.append(EMPTY_RANGE, map(leaf_hash, log.leaves[at << level : (at + 1) << level])))

    return merkle.prove_consistency(old, size, {each: node(*each) for each in merkle.consistency_nodes(old, size)})


def request_of(log: ToyLog, old: int, size: int) -> bytes:
    """A sound request to cosign the tree of a size."""
    return dump_request(CheckpointRequest(old, proof_of(log, old, size), log.note(size)))


@pytest.fixture
def witness(animus: Animus, tmp_path: Path) -> Path:
    """The folder of a witness that watches the log."""
    folder = tmp_path / "witness"
    assert animus("witness", "init", "--name", NAME, "--dir", folder).code == 0
    assert animus("witness", "trust", "--dir", folder, LOG.vkey).code == 0
    return folder


def ask(animus: Animus, folder: Path, request: bytes) -> Done:
    """Has a request cosigned; what comes of it is `cosigned`, beside the folder."""
    put(folder.parent / "request", request)
    return animus("witness", "cosign", "--dir", folder, folder.parent / "request", "-o", folder.parent / "cosigned")


def state(folder: Path) -> dict[str, bytes]:
    """Every file of a witness."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# What it does.


def test_a_new_witness_has_a_key_and_knows_no_log(animus: Animus, tmp_path: Path) -> None:
    """Its key is printed and shown; the private one is the owner's; a second init is refused and changes nothing."""
    folder = tmp_path / "deep" / "witness"
    done = animus("witness", "init", "--name", NAME, "--dir", folder)
    assert (done.code, done.err) == (0, "")
    key = load_key(done.out.strip())
    assert (key.name, key.type) == (NAME, 4)
    assert animus("witness", "show", "--dir", folder).out == done.out
    assert stat.S_IMODE((folder / "witness.key").stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    before = state(folder)
    again = animus("witness", "init", "--name", "witness.example/w2", "--dir", folder)
    assert (again.code, again.out, len(again.err.splitlines())) == (5, "", 1)
    assert state(folder) == before


@pytest.mark.parametrize("name", ["", "two words", "a+b", "x\ny"])
def test_a_name_that_no_key_has_is_refused(animus: Animus, tmp_path: Path, name: str) -> None:
    """Nothing is made of it."""
    done = animus("witness", "init", "--name", name, "--dir", tmp_path / "w")
    assert (done.code, done.out, len(done.err.splitlines())) == (2, "", 1)
    assert not (tmp_path / "w" / "witness.key").exists()


def test_trust_begins_at_nothing_and_adds_keys(animus: Animus, witness: Path) -> None:
    """A log is watched from size 0; another key of it is taken beside the first, and what is known stays."""
    assert animus("witness", "show", "--dir", witness).out.splitlines()[1:] == [
        f"{LOG.origin} size 0 root {merkle.EMPTY_ROOT.hex()}"
    ]
    assert ask(animus, witness, request_of(LOG, 0, 300)).code == 0
    other = replace(LOG, key=OTHER_KEY)
    for vkey, keys in ((LOG.vkey, 1), (other.vkey, 2), (other.vkey, 2)):
        done = animus("witness", "trust", "--dir", witness, vkey)
        assert (done.code, done.out) == (0, f"{LOG.origin} size 300 keys {keys}\n")
    assert ask(animus, witness, request_of(other, 300, 700)).code == 0
    assert animus("witness", "trust", "--dir", witness, toy_log(1, "q").vkey).out == f"{INSTANCE}/q/1 size 0 keys 1\n"
    assert [line.split(" root ")[0] for line in animus("witness", "show", "--dir", witness).out.splitlines()[1:]] == [
        f"{LOG.origin} size 700",
        f"{INSTANCE}/q/1 size 0",
    ]


def test_only_keys_of_logs_are_trusted(animus: Animus, witness: Path) -> None:
    """Neither a witness's key, nor its own, nor what is none."""
    before = state(witness)
    for vkey in (dump_key(KEY.key(key_type=4)), animus("witness", "show", "--dir", witness).out.split()[0], "x", ""):
        done = animus("witness", "trust", "--dir", witness, vkey)
        assert (done.code, done.out, len(done.err.splitlines())) == (2, "", 1), vkey
    assert state(witness) == before


def test_it_goes_on_from_head_to_head_by_files(animus: Animus, tmp_path: Path, witness: Path) -> None:
    """Requests come from an exported directory, to a folder on another machine, and its answer is good for auditors."""
    machine = tmp_path / "machine"
    machine.mkdir()
    folder = witness.rename(machine / "w")
    key = load_key(animus("witness", "show", "--dir", folder).out.split()[0])
    heads = []
    for old, size in ((0, 1), (1, 255), (255, 300), (300, 512), (512, 700), (700, 700)):
        log = LOG.write(tmp_path / "log", size)
        made = animus("witness", "request", log, "--old", old, "-o", tmp_path / "stick")
        assert (made.code, made.out) == (0, f"{LOG.origin} from size {old} to size {size}\n")
        carried = Path(shutil.copy(tmp_path / "stick", machine))
        done = animus("witness", "cosign", "--dir", folder, carried, "-o", machine / "out")
        assert (done.code, done.out) == (0, f"cosigned {LOG.origin} size {size} as {NAME}\n")
        note = (machine / "out").read_bytes()
        assert note.split(b"\n\n")[0] == LOG.note(size).split(b"\n\n")[0]
        put(log / "checkpoint", LOG.note(size) + note.split(b"\n\n")[1])
        policy = tmp_path / "policy"
        policy.write_text(f"witness w1 {dump_key(key)}\nquorum w1\n")
        verified = animus("audit", "verify", log, "--key", LOG.vkey, "--policy", policy, "--json")
        assert (verified.code, verified.json["verdict"]) == (0, "WITNESSED")
        heads.append(verified.json["witnessed"]["size"])
    assert heads == [1, 255, 300, 512, 700, 700]


def test_an_empty_log_is_cosigned_and_goes_on(animus: Animus, witness: Path) -> None:
    """Size 0 has a root too, and everything goes on from it."""
    for old, size in ((0, 0), (0, 0), (0, 3)):
        assert ask(animus, witness, request_of(LOG, old, size)).code == 0, (old, size)


def test_a_request_starts_from_what_the_log_has(animus: Animus, tmp_path: Path) -> None:
    """A witness that is ahead of the directory is a conflict; a directory that is no log, or is none, is named."""
    log = LOG.write(tmp_path / "log", 300)
    ahead = animus("witness", "request", log, "--old", 301, "-o", tmp_path / "r")
    assert (ahead.code, ahead.out, len(ahead.err.splitlines())) == (5, "", 1)
    assert "301" in ahead.err
    (log / "tile/0/000").unlink()
    assert animus("witness", "request", log, "--old", 10, "-o", tmp_path / "r").code == 7
    assert animus("witness", "request", tmp_path / "none", "-o", tmp_path / "r").code == 7
    assert animus("witness", "request", "-o", tmp_path / "r").code == 2
    assert not (tmp_path / "r").exists()


# What it refuses.


def test_another_size_is_a_conflict_that_says_the_size(animus: Animus, witness: Path) -> None:
    """Too old or too new: exit code 5 and the size to start from; the request made from there is met."""
    assert ask(animus, witness, request_of(LOG, 0, 300)).code == 0
    before = state(witness)
    for old in (0, 299, 301, 512):
        done = ask(animus, witness, request_of(LOG, old, 700))
        assert (done.code, done.out, len(done.err.splitlines())) == (5, "", 1), old
        assert done.err.endswith("make the request again with --old 300\n")
    assert state(witness) == before
    assert ask(animus, witness, request_of(LOG, 300, 700)).code == 0


OLD = 300  # what the witness below has cosigned


def sound() -> list[bytes]:
    """A sound request, in lines."""
    return request_of(LOG, OLD, 700).split(b"\n")


def note_of(size: int, root: bytes, key: SigningKey = KEY, origin: str = LOG.origin, name: str = LOG.origin) -> bytes:
    """A signed checkpoint that says anything."""
    return sign_note(dump_checkpoint(Checkpoint(origin, size, root, ())), [key], name)


def dumped(old: int, proof: tuple[bytes, ...], note: bytes) -> bytes:
    """A request that is put together without being looked at."""
    lines = [b"old %d" % old, *map(base64.b64encode, proof), b"", note]
    return b"\n".join(lines)


PROOF = proof_of(LOG, OLD, 700)
ROOT = LOG.root(700)

REFUSED: dict[str, tuple[Callable[[], bytes], int]] = {
    # The log says something else than before.
    "a fork at the same size": (lambda: request_of(forked(0), OLD, OLD), 7),
    "a fork before the known size": (lambda: request_of(forked(299), OLD, 700), 7),
    "a fork with the honest proof": (lambda: dumped(OLD, PROOF, forked(0).note(700)), 7),
    "a head that the proof does not reach": (lambda: dumped(OLD, PROOF, LOG.note(699)), 7),
    "a proof with another hash": (lambda: dumped(OLD, (bytes(32), *PROOF[1:]), LOG.note(700)), 7),
    "a proof that is too short": (lambda: dumped(OLD, PROOF[:-1], LOG.note(700)), 7),
    "a proof that is too long": (lambda: dumped(OLD, (*PROOF, bytes(32)), LOG.note(700)), 7),
    "no proof": (lambda: dumped(OLD, (), LOG.note(700)), 7),
    "an older head": (lambda: request_of(LOG, 200, 200), 5),
    "an older head from the known size": (lambda: dumped(OLD, (), LOG.note(299)), 2),
    "the empty log": (lambda: request_of(LOG, 0, 0), 5),
    "a proof between equal sizes": (lambda: dumped(OLD, PROOF, LOG.note(OLD)), 2),
    "a proof from the empty tree": (lambda: dumped(0, PROOF, LOG.note(700)), 2),
    # Who says it.
    "no key of the log": (lambda: dumped(OLD, PROOF, replace(LOG, key=OTHER_KEY).note(700)), 7),
    "the log's key under another name": (lambda: dumped(OLD, PROOF, note_of(700, ROOT, name=f"{INSTANCE}/q/1")), 7),
    "a signature of another text": (lambda: dumped(OLD, PROOF, LOG.note(700).replace(b"\n700\n", b"\n701\n")), 7),
    "a witness's signature only": (
        lambda: dumped(OLD, PROOF, LOG.checkpoint(700).encode() + b"\n" + cosign(LOG.checkpoint(700), KEY, 1)),
        7,
    ),
    "another log": (lambda: request_of(toy_log(3, "q"), 0, 3), 3),
    "another epoch": (lambda: request_of(replace(LOG, origin=f"{INSTANCE}/p/2"), OLD, 700), 3),
    # What is no request.
    "nothing": (lambda: b"", 2),
    "no text": (lambda: b"\xff" * 200, 2),
    "zeros": (lambda: bytes(200), 2),
    "a checkpoint": (lambda: LOG.note(700), 2),
    "a receipt": (lambda: dumped(OLD, (), LOG.receipt(5)), 2),
    "no old size": (lambda: b"\n".join(sound()[1:]), 2),
    "a negative size": (lambda: dumped(-1, PROOF, LOG.note(700)), 2),
    "a size beyond all": (lambda: dumped(2**63, PROOF, LOG.note(700)), 2),
    "a size with a zero before it": (lambda: b"old 0300\n" + b"\n".join(sound()[1:]), 2),
    "a size in other digits": (lambda: "old ٣٠٠\n".encode() + b"\n".join(sound()[1:]), 2),
    "a hash that is none": (lambda: dumped(OLD, (b"x", *PROOF[1:]), LOG.note(700)), 2),
    "more hashes than any proof has": (lambda: dumped(OLD, (bytes(32),) * 64, LOG.note(700)), 2),
    "the ends of lines of another system": (lambda: b"\r\n".join(sound()), 2),
    "no empty line": (lambda: request_of(LOG, OLD, 700).replace(b"\n\n", b"\n", 1), 2),
    "no signature": (lambda: dumped(OLD, PROOF, LOG.checkpoint(700).encode() + b"\n"), 2),
    "a cut": (lambda: request_of(LOG, OLD, 700)[:-1], 2),
    # More than is read.
    "a longer file than any request": (lambda: request_of(LOG, OLD, 700) + b"x" * MAX_REQUEST_BYTES, 1),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_sound_is_refused_and_leaves_nothing(animus: Animus, witness: Path, case: str) -> None:
    """An exit code and one line; no cosignature, and the witness is as it was: the sound request is met then."""
    make, code = REFUSED[case]
    assert ask(animus, witness, request_of(LOG, 0, OLD)).code == 0
    (witness.parent / "cosigned").unlink()
    before = state(witness)
    done = ask(animus, witness, make())
    assert (done.code, done.out, len(done.err.splitlines())) == (code, "", 1), done
    assert state(witness) == before
    assert not (witness.parent / "cosigned").exists()
    assert ask(animus, witness, request_of(LOG, OLD, 700)).code == 0


def test_a_request_that_is_no_file_is_refused_without_waiting(animus: Animus, witness: Path, tmp_path: Path) -> None:
    """A pipe, an endless file, a folder, and none."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path, tmp_path / "none"):
        done = animus("witness", "cosign", "--dir", witness, path, "-o", tmp_path / "out")
        assert (done.code, done.out, len(done.err.splitlines())) == (1, "", 1), path


def test_a_folder_that_is_no_witness_or_is_open_to_others_cosigns_nothing(
    animus: Animus, witness: Path, tmp_path: Path
) -> None:
    """No key, a key that others can read, a key that is none."""
    put(tmp_path / "request", request_of(LOG, 0, 300))

    def refused(folder: Path) -> str:
        done = animus("witness", "cosign", "--dir", folder, tmp_path / "request", "-o", tmp_path / "out")
        assert (done.code, done.out, len(done.err.splitlines())) == (1, "", 1)
        assert not (tmp_path / "out").exists()
        return done.err

    assert "is missing" in refused(tmp_path / "none")
    key = witness / "witness.key"
    private = key.read_text()
    key.chmod(0o640)
    assert "chmod 600" in refused(witness)
    key.chmod(0o600)
    key.write_text("PRIVATE+KEY+nothing\n")
    assert private.split("+")[-1].strip() not in refused(witness)


def test_a_state_that_something_else_wrote_is_not_gone_on_from(animus: Animus, witness: Path) -> None:
    """Damage, another log's state, and other fields stop it: it never starts again at size 0 by itself."""
    assert ask(animus, witness, request_of(LOG, 0, 300)).code == 0
    (path,) = (witness / "logs").glob("*.json")
    data = path.read_bytes()
    other = replace(LOG, origin=f"{INSTANCE}/q/1").vkey.encode()
    for changed in (
        b"",
        b"{}",
        b"[]",
        data[:-10],
        data.replace(LOG.vkey.encode(), other),
        data.replace(b"300", b'"x"'),
    ):
        path.write_bytes(changed)
        for old in (0, 300):
            done = ask(animus, witness, request_of(LOG, old, 700))
            assert (done.code, done.out, len(done.err.splitlines())) == (1, "", 1), changed
        assert path.read_bytes() == changed
    path.write_bytes(data)
    assert ask(animus, witness, request_of(LOG, 300, 700)).code == 0


# When the state moves.


def test_a_promise_is_kept_before_it_is_given(animus: Animus, witness: Path, tmp_path: Path) -> None:
    """A cosignature that cannot be written is lost, and the state has moved: asked from there, the witness signs."""
    put(tmp_path / "request", request_of(LOG, 0, 300))
    done = animus("witness", "cosign", "--dir", witness, tmp_path / "request", "-o", tmp_path / "none" / "out")
    assert (done.code, done.out, len(done.err.splitlines())) == (1, "", 1)
    again = ask(animus, witness, request_of(forked(5), 0, 300))
    assert again.code == 5
    assert ask(animus, witness, request_of(forked(5), 300, 300)).code == 7
    assert ask(animus, witness, request_of(LOG, 300, 300)).code == 0


def test_a_state_that_cannot_be_kept_gives_no_cosignature(witness: Path) -> None:
    """The clock is read for the signature only: by then the head is in the state, and without it neither happens."""
    (path,) = (witness / "logs").glob("*.json")
    seen: list[bytes] = []

    def now() -> int:
        seen.append(path.read_bytes())
        return 1_770_000_000

    Witness(witness).cosign(request_of(LOG, 0, 300), now)
    assert LOG.root(300).hex().encode() in seen[0]
    before = path.read_bytes()
    path.unlink()
    path.symlink_to(path.with_name("gone") / "elsewhere")
    with pytest.raises(WitnessRefusal):  # no state is an unknown log
        Witness(witness).cosign(request_of(LOG, 300, 700), now)
    path.unlink()
    path.write_bytes(before)
    assert len(seen) == 1


FULL = """
import resource, signal, sys
from pathlib import Path
from animus.sdk.witness import Witness
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
witness = Witness(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
try:
    witness.cosign(Path(sys.argv[2]).read_bytes(), lambda: print("signed") or 1)
except OSError as error:
    print(error.strerror)
"""


def test_a_full_disk_leaves_the_state_that_was(witness: Path, tmp_path: Path) -> None:
    """What cannot be written is not signed, and no half of it is left."""
    Witness(witness).cosign(request_of(LOG, 0, 300), lambda: 1)
    before = state(witness)
    put(tmp_path / "request", request_of(LOG, 300, 700))
    command = [sys.executable, "-c", FULL, str(witness), str(tmp_path / "request")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("File too large\n", "")
    assert state(witness) == before


COSIGN = """
import sys
from pathlib import Path
from animus.sdk.witness import Witness, WitnessRefusal
witness, requests = Witness(Path(sys.argv[1])), [path.read_bytes() for path in sorted(Path(sys.argv[2]).iterdir())]
print("ready", flush=True)
sys.stdin.readline()
for number, request in enumerate(requests):
    try:
        witness.cosign(request, lambda: 1)
        print("cosigned", number)
    except WitnessRefusal as error:
        print(type(error).__name__, number)
"""


def test_two_processes_cosign_in_one_order(witness: Path, tmp_path: Path) -> None:
    """Of two histories that part at once, each asked for by a process, one is cosigned to its end, the other never."""
    histories = [LOG, forked(0)]
    for name, log in zip("ab", histories, strict=True):
        for number, (old, size) in enumerate(zip(range(20), range(1, 21), strict=True)):
            put(tmp_path / name / f"{number:02}", request_of(log, old, size))
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", COSIGN, str(witness), str(tmp_path / name)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in "ab"
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    outcomes = [process.communicate(timeout=60)[0].split("\n")[:-1] for process in processes]
    won = [[line for line in lines if line.startswith("cosigned")] for lines in outcomes]
    assert sorted(map(len, won)) == [0, 20], outcomes
    (watched,) = Witness(witness).logs()
    winner = histories[0 if won[0] else 1]
    assert (watched.size, watched.root_hash) == (20, winner.root(20))


def test_one_process_at_a_time_makes_a_witness(tmp_path: Path) -> None:
    """Of several that make one in a folder, one does; the others are told, and its key is whole."""
    script = (
        "import sys; from pathlib import Path; from animus.sdk.witness import Witness\n"
        "try: print(Witness.create(Path(sys.argv[1]), 'w.example/' + sys.argv[2]).key.name)\n"
        "except FileExistsError: print('exists')"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "w"), name], stdout=subprocess.PIPE, text=True)
        for name in "ab"
    ]
    said = sorted(process.communicate(timeout=60)[0].strip() for process in processes)
    assert said in (["exists", "w.example/a"], ["exists", "w.example/b"])
    assert Witness(tmp_path / "w").key.name in said


# The law.

HISTORIES = [toy_log(12), forked(0, toy_log(12)), forked(5, toy_log(12)), forked(11, toy_log(12))]
ASKED = st.tuples(
    st.integers(0, 3),  # whose checkpoint
    st.integers(0, 12),  # of which size
    st.integers(0, 12) | st.none(),  # from which size; None for that which the witness has
    st.integers(0, 3) | st.none(),  # whose proof; None for its own
)


def consistent(one: tuple[ToyLog, int], other: tuple[ToyLog, int]) -> bool:
    """Whether the smaller of two trees is what the larger begins with, by their leaves."""
    (smaller, size), (larger, _) = sorted((one, other), key=lambda each: each[1])
    return list(smaller.leaves[:size]) == list(larger.leaves[:size])


@pytest.fixture(scope="module")
def numbers() -> Iterator[int]:
    """Numbers that were not used yet."""
    return iter(range(1_000_000))


@settings(max_examples=60, deadline=None)
@given(asked=st.lists(ASKED, max_size=25))
def test_no_two_cosigned_checkpoints_of_a_log_contradict_each_other(
    tmp_path_factory: pytest.TempPathFactory,
    numbers: Iterator[int],
    asked: list[tuple[int, int, int | None, int | None]],
) -> None:
    """Whatever is asked by a log that signs four histories, and whatever is restarted: cosigned heads are one line."""
    folder = tmp_path_factory.getbasetemp() / f"witness-{next(numbers)}"
    witness = Witness.create(folder, NAME)
    witness.trust(load_key(LOG.vkey))
    cosigned: list[tuple[ToyLog, int]] = []
    for whose, size, old, other in asked:
        log = HISTORIES[whose]
        (known,) = witness.logs()
        start = known.size if old is None else old
        proof = proof_of(HISTORIES[whose if other is None else other], start, size)
        sound = old in (None, known.size) and other in (None, whose) and start <= size
        try:
            data = dump_request(CheckpointRequest(start, proof, log.note(size)))
            checkpoint, note = Witness(folder).cosign(data, lambda: 1)
        except WitnessRefusal:
            possible = all(consistent((log, size), each) for each in cosigned)
            assert not (sound and possible), "a sound request was refused"
            assert list(witness.logs()) == [known]
            continue
        assert (checkpoint.size, checkpoint.root_hash) == (size, log.root(size))
        _, verified = verify_checkpoint(log.note(size) + note.split(b"\n\n")[1], [load_key(LOG.vkey)], [witness.key])
        assert witness.key in verified.signers
        cosigned.append((log, size))
    for one in cosigned:
        assert all(consistent(one, other) for other in cosigned)
    assert [size for _, size in cosigned] == sorted(size for _, size in cosigned)
    shutil.rmtree(folder)


def test_the_law_can_fail() -> None:
    """What the property stands on: the four histories do contradict each other, each at another place."""
    assert not consistent((HISTORIES[0], 1), (HISTORIES[1], 1))
    assert consistent((HISTORIES[0], 5), (HISTORIES[2], 12))
    assert not consistent((HISTORIES[0], 6), (HISTORIES[2], 12))
    assert consistent((HISTORIES[0], 11), (HISTORIES[3], 12))
    assert load_request(request_of(LOG, 5, 9)).old_size == 5
