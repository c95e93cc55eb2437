"""`animus audit verify-receipts`: each receipt becomes a proof, or evidence."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest

from animus.domain import document
from animus.domain.checkpoint import load_proof
from animus.domain.merkle import check_inclusion, leaf_hash
from animus.domain.names import format_time, parse_time
from animus.domain.note import ED25519, Key, dump_key
from animus.domain.receipt import Receipt, dump_receipt
from animus.sdk.receipts import ReceiptStore
from animus.signing import sign_note, verify_checkpoint
from cli.conftest import Animus, Done
from cli.logs import INSTANCE, KEY, LOG_700, OTHER_KEY, entry, put, toy_log
from cli.toy_log_server import TOKEN, ToyLogServer, serving

LOG = replace(LOG_700, leaves=LOG_700.leaves[:300])
INSTANCE_VKEY = dump_key(Key(INSTANCE, ED25519, KEY.public_key))
PAST = "2026-01-31T00:00:01.000000Z"


def soon() -> str:
    """A time that has not come."""
    return format_time(datetime.now(UTC) + timedelta(hours=1))


def absent(promised_by: str, number: int = 900) -> bytes:
    """A receipt of the log for an entry that it does not have."""
    data = document.dump(entry(number))
    receipt = Receipt(LOG.origin, leaf_hash(data), entry(number).entry_id, promised_by)
    return sign_note(dump_receipt(receipt), [KEY], LOG.origin)


def keep(folder: Path, *notes: bytes) -> Path:
    """A file of receipts."""
    file = folder / "receipts"
    file.unlink(missing_ok=True)
    for number, note in enumerate(notes):
        ReceiptStore(file).keep(note, "animus.v1.RunService/CreateRun", f"r-{number}")
    return file


def outcomes(done: Done) -> list[str]:
    """What became of each receipt, in their order."""
    return [each["outcome"] for each in done.json["receipts"]]


@pytest.fixture
def by_directory(animus: Animus, tmp_path: Path) -> Animus:
    """Checks receipts by the exported log."""
    folder = LOG.write(tmp_path / "log")

    def run(*arguments: object) -> Done:
        return animus("audit", "verify-receipts", folder, "--json", *arguments)

    return run


@pytest.fixture
def toy() -> ToyLogServer:
    """A server with the same log."""
    return ToyLogServer(LOG)


@pytest.fixture
def by_server(animus: Animus, toy: ToyLogServer, tmp_path: Path) -> Iterator[Animus]:
    """Checks receipts by a server."""
    put(tmp_path / "token", TOKEN.encode())
    with serving(toy) as address:

        def run(*arguments: object) -> Done:
            settings = ("--address", address, "--token-file", tmp_path / "token", "--wait", 0)
            return animus("audit", "verify-receipts", "--json", *settings, *arguments)

        yield run


@pytest.mark.parametrize("way", ["by_directory", "by_server"])
def test_receipts_become_proofs(request: pytest.FixtureRequest, tmp_path: Path, way: str) -> None:
    """Each proof is a C2SP tlog-proof that verifies by itself; a receipt that came twice is one."""
    run: Animus = request.getfixturevalue(way)
    indexes = [0, 7, 255, 256, 299]
    file = keep(tmp_path, *(LOG.receipt(index) for index in indexes), LOG.receipt(7))
    done = run("--receipts", file, "--key", LOG.vkey, "--output", tmp_path / "proofs")
    assert (done.code, done.json["counts"], done.json["torn"]) == (0, {"INCLUDED": 5}, [])
    assert [each["index"] for each in done.json["receipts"]] == indexes
    for index in indexes:
        proof = load_proof((tmp_path / f"proofs/{entry(index).entry_id}.tlog-proof").read_bytes())
        checkpoint, _ = verify_checkpoint(proof.checkpoint, [Key(LOG.origin, ED25519, KEY.public_key)])
        assert proof.index == index
        check_inclusion(proof.hashes, index, checkpoint.size, leaf_hash(LOG.leaves[index]), checkpoint.root_hash)


@pytest.mark.parametrize("way", ["by_directory", "by_server"])
def test_broken_promises_are_evidence(request: pytest.FixtureRequest, tmp_path: Path, way: str) -> None:
    """Absent after its time, another leaf, a bad signature, what is no receipt, a log that nobody knows."""
    run: Animus = request.getfixturevalue(way)
    other_leaf = Receipt(LOG.origin, leaf_hash(b"other"), entry(3).entry_id, PAST)
    higher = replace(LOG, origin=f"{INSTANCE}/p/2")
    file = keep(
        tmp_path,
        LOG.receipt(1),
        absent(PAST),
        sign_note(dump_receipt(other_leaf), [KEY], LOG.origin),
        replace(LOG, key=OTHER_KEY).receipt(2),
        LOG.note(5),
        higher.receipt(4),
    )
    done = run("--receipts", file, "--key", INSTANCE_VKEY)
    assert done.code == 7
    assert outcomes(done) == [
        "INCLUDED",
        "NOT_INCLUDED_IN_TIME",
        "DIFFERENT_LEAF",
        "BAD_SIGNATURE",
        "BAD_SIGNATURE",
        "UNKNOWN_LOG",
    ]


@pytest.mark.parametrize("way", ["by_directory", "by_server"])
def test_a_promise_that_may_still_be_kept_is_no_evidence(
    request: pytest.FixtureRequest, tmp_path: Path, way: str
) -> None:
    """Neither broken nor kept: the code says to ask again."""
    run: Animus = request.getfixturevalue(way)
    done = run("--receipts", keep(tmp_path, absent(soon()), LOG.receipt(1)), "--key", LOG.vkey)
    assert (done.code, outcomes(done)) == (6, ["PENDING", "INCLUDED"])


def test_an_export_judges_by_its_own_time(by_directory: Animus, tmp_path: Path) -> None:
    """The last entry's time, not the clock here, says whether the log went on without what was promised."""
    last = document.load(LOG.leaves[-1], type(entry(0))).time
    before = format_time(parse_time(last) - timedelta(microseconds=1))
    for promised_by, outcome, code in ((last, "PENDING", 6), (before, "NOT_INCLUDED_IN_TIME", 7)):
        done = by_directory("--receipts", keep(tmp_path, absent(promised_by)), "--key", LOG.vkey)
        assert (done.code, outcomes(done)) == (code, [outcome]), promised_by


@pytest.mark.parametrize("way", ["by_directory", "by_server"])
def test_after_a_restore_what_survived_is_proven_and_the_rest_is_named(
    request: pytest.FixtureRequest, tmp_path: Path, way: str
) -> None:
    """Receipts of epoch 1, and a log in epoch 2 that has lost the entries from 200 on."""
    run: Animus = request.getfixturevalue(way)
    leaves = [*LOG.leaves[:200], *(document.dump(entry(index)) for index in range(1_000, 1_050))]
    restored = replace(LOG, leaves=leaves, origin=f"{INSTANCE}/p/2")
    restored.write(tmp_path / "log")
    toy: ToyLogServer = request.getfixturevalue("toy")
    toy.log, toy.size = restored, 250
    file = keep(tmp_path, LOG.receipt(100), LOG.receipt(250), restored.receipt(220))
    done = run("--receipts", file, "--key", INSTANCE_VKEY)
    assert (done.code, outcomes(done)) == (7, ["INCLUDED", "LOST_IN_RESTORE", "INCLUDED"])
    assert "epoch 1" in done.json["receipts"][1]["description"]


@pytest.mark.parametrize("way", ["by_directory", "by_server"])
def test_a_torn_line_is_reported(request: pytest.FixtureRequest, tmp_path: Path, way: str) -> None:
    """All else is checked, the line is named, and the command does not end with 0."""
    run: Animus = request.getfixturevalue(way)
    file = keep(tmp_path, LOG.receipt(1), LOG.receipt(2))
    file.write_bytes(file.read_bytes()[:-30])
    done = run("--receipts", file, "--key", LOG.vkey)
    assert (done.code, outcomes(done), done.json["torn"]) == (1, ["INCLUDED"], [2])
    assert "line 2 of the receipts is torn" in done.err


@pytest.mark.parametrize("way", ["by_directory", "by_server"])
def test_receipts_of_other_logs_are_left_out_and_counted(
    request: pytest.FixtureRequest, tmp_path: Path, way: str
) -> None:
    """One log's answer says nothing of another's."""
    run: Animus = request.getfixturevalue(way)
    other = toy_log(5, "q")
    done = run("--receipts", keep(tmp_path, other.receipt(1), LOG.receipt(2)), "--key", INSTANCE_VKEY, "--project", "p")
    assert (done.code, outcomes(done), done.json["skipped"]) == (0, ["INCLUDED"], 1)


def test_without_a_project_each_receipt_is_asked_of_its_own(by_server: Animus, tmp_path: Path) -> None:
    """A project that the server does not know, or does not show, ends it with that error."""
    file = keep(tmp_path, LOG.receipt(2), toy_log(5, "q").receipt(1))
    assert by_server("--receipts", file, "--key", INSTANCE_VKEY).code == 3


@pytest.mark.parametrize("way", ["by_directory", "by_server"])
def test_without_a_key_no_receipt_is_believed(request: pytest.FixtureRequest, tmp_path: Path, way: str) -> None:
    """As for a log: a key is given, pinned, or taken from the log on request."""
    run: Animus = request.getfixturevalue(way)
    file = keep(tmp_path, LOG.receipt(2))
    assert run("--receipts", file).code == 2
    assert run("--receipts", file, "--trust-server-key").code == 0
    animus: Animus = request.getfixturevalue("animus")
    animus("audit", "verify", LOG.write(tmp_path / "log"), "--key", LOG.vkey)
    assert run("--receipts", file).code == 0


def test_a_file_that_is_missing_is_an_error(by_directory: Animus, home: Path) -> None:
    """Without --receipts it is the user's own, to which the command's own calls add."""
    done = by_directory("--key", LOG.vkey)
    assert (done.code, done.err) == (1, f"animus: {home}/animus/receipts: is missing: no receipt was kept there\n")
    ReceiptStore(home / "animus/receipts").keep(LOG.receipt(3), "m", "r")
    assert by_directory("--key", LOG.vkey).code == 0


def test_an_export_that_does_not_verify_proves_nothing(by_directory: Animus, tmp_path: Path) -> None:
    """No proof is written from a directory with a fault anywhere."""
    (tmp_path / "log/tile/0/001.p/44").write_bytes(bytes(44 * 32))
    done = by_directory(
        "--receipts", keep(tmp_path, LOG.receipt(2)), "--key", LOG.vkey, "--output", tmp_path / "proofs"
    )
    assert (done.code, done.out) == (7, "")
    assert "WRONG_TILE" in done.err
    assert not (tmp_path / "proofs").exists()


def test_a_proof_of_the_server_is_checked(by_server: Animus, toy: ToyLogServer, tmp_path: Path) -> None:
    """A checkpoint with another signature, and a proof of another tree, are the server's contradictions."""
    file = keep(tmp_path, LOG.receipt(2))
    toy.log = replace(LOG, key=OTHER_KEY)
    done = by_server("--receipts", file, "--key", LOG.vkey)
    assert (done.code, "BAD_SIGNATURE: checkpoint" in done.err) == (7, True)


def test_proofs_are_of_the_log_that_is_known(
    by_server: Animus, animus: Animus, toy: ToyLogServer, tmp_path: Path
) -> None:
    """A server that proves the entry in a fork is found by a head from before; a log that went on is not."""
    file = keep(tmp_path, LOG.receipt(2))
    folder = LOG.write(tmp_path / "known", 200)
    assert animus("audit", "verify", folder, "--key", LOG.vkey).code == 0
    assert by_server("--receipts", file).code == 0
    toy.size = 150  # the newest that it shows is older than the known one: it is asked for a newer
    assert by_server("--receipts", file).code == 0
    toy.log = replace(LOG, leaves=[*LOG.leaves[:50], document.dump(entry(50, principal="x")), *LOG.leaves[51:]])
    done = by_server("--receipts", file)
    assert (done.code, "FORKED" in done.err) == (7, True)


def test_a_pending_entry_is_waited_for(by_server: Animus, toy: ToyLogServer, tmp_path: Path) -> None:
    """While the promise may still be kept; after it, no proof is evidence at once."""
    late = (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE")
    for promised_by, failures, outcome in (
        (soon(), [], "INCLUDED"),
        (soon(), [late], "PENDING"),
        (soon(), None, "INCLUDED"),
        (PAST, [], "NOT_INCLUDED_IN_TIME"),
    ):
        toy.size = 100
        toy.failures["WaitForInclusion"] = list(failures or [])
        if failures is None:
            toy.failures["GetInclusionProof"] = [(grpc.StatusCode.NOT_FOUND, "CHECKPOINT_UNKNOWN")]
        done = by_server("--receipts", keep(tmp_path, LOG.receipt(200, promised_by)), "--key", LOG.vkey)
        assert outcomes(done) == [outcome]


def test_the_text_names_each_broken_promise(animus: Animus, tmp_path: Path) -> None:
    """For people: a line for each that is not included, and the counts."""
    file = keep(tmp_path, LOG.receipt(1), absent(PAST))
    done = animus("audit", "verify-receipts", LOG.write(tmp_path / "log"), "--receipts", file, "--key", LOG.vkey)
    first, last = done.out.splitlines()
    assert first.startswith(
        f"NOT_INCLUDED_IN_TIME line 2 {entry(900).entry_id} animus.v1.RunService/CreateRun r-1: was promised by"
    )
    assert last == "1 INCLUDED, 1 NOT_INCLUDED_IN_TIME"
