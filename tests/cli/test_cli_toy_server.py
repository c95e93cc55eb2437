"""The commands against a server that is unreachable, refuses, or lies: what each ends with."""

import json
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from animus.domain import document
from animus.domain.tile import Tile
from animus.sdk.receipts import Kept, ReceiptStore
from cli.conftest import Animus, Done
from cli.logs import LOG_700 as LOG
from cli.logs import entry, toy_log
from cli.toy_log_server import TOKEN, ToyLogServer, listed, serving


@pytest.fixture
def toy() -> ToyLogServer:
    """A server with a log of 700 entries."""
    return ToyLogServer(LOG)


@pytest.fixture
def called(animus: Animus, toy: ToyLogServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Animus]:
    """Runs `animus` with that server, its project and a token as settings."""
    token = tmp_path / "token"
    token.write_text(f"{TOKEN}\n")
    with serving(toy) as address:
        monkeypatch.setenv("ANIMUS_ADDRESS", address)
        monkeypatch.setenv("ANIMUS_PROJECT", "p")
        monkeypatch.setenv("ANIMUS_TOKEN_FILE", str(token))
        yield animus


def verify(called: Animus, *arguments: object) -> Done:
    """Verifies the server's log."""
    return called("audit", "verify", "--key", LOG.vkey, "--json", "--wait", 0.5, *arguments)


def found(done: Done) -> tuple[str, str]:
    """The finding and the place that a failed verification names."""
    assert done.code == 7, done
    return done.json["contradiction"]["finding"], done.json["contradiction"]["place"]


# Verification.


def test_a_sound_server_passes(called: Animus, toy: ToyLogServer) -> None:
    """Entries, tiles and list agree. The token went with each call; the head is kept."""
    toy.heads = [0, 1, 300, 512, 699]
    done = verify(called)
    assert (done.code, done.json["verdict"], done.json["publishedCheckpoints"]) == (0, "SIGNED", 5)
    assert toy.authorizations == {f"Bearer {TOKEN}"}
    assert called("audit", "verify", "--json").json["verdict"] == "CONSISTENT"


def test_a_log_that_grows_meanwhile_passes(called: Animus, toy: ToyLogServer) -> None:
    """Entries that were published after the list was begun are waited for, and heads after the newest left out."""
    toy.size = 600
    for each in toy.listed[695:]:
        each.ClearField("index")
    toy.heads = [600, 700]
    done = verify(called)
    assert (done.code, done.json["size"]) == (0, 700)


@pytest.mark.parametrize("index", [0, 699])
def test_a_list_with_another_entry_is_named(called: Animus, toy: ToyLogServer, index: int) -> None:
    """An entry that was changed in the list, with or without a hash that fits, is not that of the log."""
    forged = document.dump(entry(index, principal="intruder"))
    toy.listed[index] = listed(forged, index)
    assert found(verify(called))[0] == "DIFFERENT_LEAF"
    toy.listed[index] = listed(LOG.leaves[index], index)
    toy.listed[index].document = forged
    assert found(verify(called))[0] == "DIFFERENT_LEAF"
    toy.listed[index] = listed(LOG.leaves[index], index)
    toy.listed[index].principal = "intruder"
    assert found(verify(called))[0] == "DIFFERENT_LEAF"


def test_a_hidden_entry_is_named(called: Animus, toy: ToyLogServer) -> None:
    """What the log has and the list lacks."""
    del toy.listed[300]
    finding, place = found(verify(called))
    assert finding == "HIDDEN"
    assert place.startswith("entry 300 (")


def test_an_entry_outside_the_log_is_named(called: Animus, toy: ToyLogServer) -> None:
    """What the list has and the log lacks: never logged, or with an index that the log does not have."""
    inserted = document.dump(entry(800))
    toy.listed.insert(5, listed(inserted, None))
    entry_id = entry(800).entry_id
    assert found(verify(called)) == ("OUTSIDE", f"listed entry {entry_id}")
    accepted = verify(called, "--accept-outside", entry_id)
    assert (accepted.code, entry_id in accepted.err) == (0, True)
    toy.listed[5] = listed(inserted, 2**62)
    assert found(verify(called)) == ("OUTSIDE", f"entry {2**62}")
    toy.listed[5] = listed(inserted, -1)
    assert found(verify(called)) == ("OUTSIDE", "entry -1")
    toy.listed[5] = listed(inserted, 5)
    assert found(verify(called)) == ("DIFFERENT_LEAF", "entry 5")


def test_an_entry_that_waits_too_long_is_outside(called: Animus, toy: ToyLogServer) -> None:
    """A server that says `not yet` is believed for --wait seconds."""
    toy.size = 600
    toy.listed[650].ClearField("index")
    toy.failures["WaitForInclusion"] = [(grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE")] * 100_000
    assert found(verify(called))[0] == "OUTSIDE"
    toy.failures["WaitForInclusion"] = [(grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE")] * 3
    assert verify(called).code == 0


@pytest.mark.parametrize("tile", [Tile(0, 0, 256), Tile(0, 2, 188), Tile(1, 0, 2)])
def test_a_tile_of_the_server_that_is_not_that_of_its_entries_is_named(
    called: Animus, toy: ToyLogServer, tile: Tile
) -> None:
    """Each tile is asked for and compared."""
    toy.tampered[tile] = bytes(32 * tile.width)
    finding, place = found(verify(called))
    assert finding == "WRONG_TILE"
    assert place.startswith(f"tile/{tile.level}/00{tile.index}")


def test_the_log_of_another_project_is_not_taken(called: Animus, toy: ToyLogServer) -> None:
    """A server that answers with a log that was not asked for."""
    toy.log = toy_log(5, "q")
    toy.size = 5
    assert found(verify(called)) == ("UNKNOWN_LOG", "checkpoint")


def test_what_the_server_says_is_damaged_fails_the_check(called: Animus, toy: ToyLogServer) -> None:
    """LOG_DAMAGED is a finding, with the place that was asked for."""
    toy.failures["GetEntryBundle"] = [(grpc.StatusCode.DATA_LOSS, "LOG_DAMAGED")] * 3
    assert found(verify(called)) == ("DAMAGED", "tile/entries/000")
    toy.failures.clear()
    toy.failures["GetTile"] = [(grpc.StatusCode.NOT_FOUND, "TILE_UNKNOWN")] * 3
    assert found(verify(called)) == ("MISSING", "tile/0/000")


# Errors.


@pytest.mark.parametrize(
    ("code", "reason", "exit_code"),
    [
        (grpc.StatusCode.NOT_FOUND, "PROJECT_UNKNOWN", 3),
        (grpc.StatusCode.NOT_FOUND, "CHECKPOINT_UNKNOWN", 3),
        (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_INVALID", 4),
        (grpc.StatusCode.PERMISSION_DENIED, "ROLE_MISSING", 4),
        (grpc.StatusCode.FAILED_PRECONDITION, "LOG_TOO_SMALL", 5),
        (grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID", 2),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "BUSY", 6),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE", 6),
        (grpc.StatusCode.DATA_LOSS, "LOG_DAMAGED", 7),
        (grpc.StatusCode.INTERNAL, "INTERNAL", 1),
    ],
)
def test_a_refused_call_is_one_line_and_its_code(
    called: Animus, toy: ToyLogServer, tmp_path: Path, code: grpc.StatusCode, reason: str, exit_code: int
) -> None:
    """Whatever the status: one line on stderr, nothing on stdout, a fixed exit code."""
    toy.failures["GetCheckpoint"] = [(code, reason)] * 4
    done = called("audit", "export", "--output", tmp_path / "log")
    assert (done.code, done.out) == (exit_code, "")
    assert len(done.err.splitlines()) == 1
    assert not (tmp_path / "log" / "checkpoint").exists()


def test_a_call_that_was_not_taken_is_made_again(called: Animus, toy: ToyLogServer) -> None:
    """UNAVAILABLE and RESOURCE_EXHAUSTED, three times in all, are passed over; the fourth is told."""
    passing = [
        (grpc.StatusCode.UNAVAILABLE, "DRAINING"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED"),
        (grpc.StatusCode.UNAVAILABLE, "DRAINING"),
    ]
    toy.failures["GetCheckpoint"] = [*passing]
    assert verify(called).code == 0
    toy.failures["GetCheckpoint"] = [*passing, passing[0]]
    assert verify(called).code == 6


def test_no_server_is_one_line(animus: Animus, tmp_path: Path) -> None:
    """Nothing listens there."""
    (tmp_path / "token").write_text(TOKEN)
    arguments = ("--address", "127.0.0.1:1", "--token-file", tmp_path / "token", "--project", "p")
    for command in (("verify", "--key", LOG.vkey), ("export", "--output", tmp_path / "log"), ("tail",)):
        done = animus("audit", *command, *arguments)
        assert (done.code, done.out, len(done.err.splitlines())) == (6, "", 1)


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--project", "p"),
        ("--project", "p", "--token-file", "TOKEN", "--address", "nonsense"),
        ("--project", "p", "--token-file", "EMPTY"),
    ],
)
def test_settings_that_are_missing_or_wrong_are_usage_errors(
    animus: Animus, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    """No project, no token, or an address that is none."""
    (tmp_path / "TOKEN").write_text(TOKEN)
    (tmp_path / "EMPTY").write_text("")
    named = [str(tmp_path / each) if each in ("TOKEN", "EMPTY") else each for each in arguments]
    done = animus("audit", "tail", *named)
    assert (done.code, done.out, len(done.err.splitlines())) == (2, "", 1)


def test_a_token_file_that_is_missing_is_an_error(animus: Animus, tmp_path: Path) -> None:
    """It is named, and what is in others is never shown."""
    done = animus("audit", "tail", "--project", "p", "--token-file", tmp_path / "none")
    assert (done.code, done.err) == (1, f"animus: {tmp_path / 'none'}: is missing\n")


# Export.


def files_of(folder: Path) -> dict[str, bytes]:
    """The files of a directory by their names in it."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_export_verifies_and_goes_on(called: Animus, toy: ToyLogServer, tmp_path: Path) -> None:
    """The directory is that of the log. The next export fetches what is new and leaves nothing of the old behind."""
    folder = tmp_path / "log"
    toy.size, toy.heads = 300, [1, 256, 300]
    done = called("audit", "export", "--output", folder)
    assert (done.code, done.out) == (0, f"{LOG.origin} size 300 fetched 300\n")
    assert called("audit", "verify", folder, "--key", LOG.vkey).code == 0
    toy.size, toy.heads = 700, [1, 256, 300, 700]
    toy.calls.clear()
    assert called("audit", "export", "--output", folder).out == f"{LOG.origin} size 700 fetched 444\n"
    assert toy.calls.count("GetEntryBundle") == 2
    assert "GetTile" not in toy.calls
    assert files_of(folder) == files_of(LOG.write(tmp_path / "whole", heads=[1, 256, 300, 700]))
    assert called("audit", "verify", folder, "--key", LOG.vkey).code == 0
    assert called("audit", "export", "--output", folder).out == f"{LOG.origin} size 700 fetched 188\n"


@pytest.mark.parametrize("name", ["tile/entries/000", "tile/0/001", "tile/1/000.p/2", "log.vkeys", "checkpoints/300"])
def test_an_export_mends_what_is_damaged(called: Animus, toy: ToyLogServer, tmp_path: Path, name: str) -> None:
    """A file that is not right is fetched, or made, again."""
    toy.heads = [300]
    folder = LOG.write(tmp_path / "log", heads=[300])
    (folder / name).write_bytes(b"damaged")
    assert called("audit", "export", "--output", folder).code == 0
    assert called("audit", "verify", folder, "--key", LOG.vkey).code == 0


def test_an_export_that_was_cut_short_is_seen_and_finished(called: Animus, toy: ToyLogServer, tmp_path: Path) -> None:
    """Whichever bundle fails: there is no checkpoint that the files do not have, and the next export ends it."""
    folder = tmp_path / "log"
    for failures in (1, 2):
        toy.failures["GetEntryBundle"] = [(grpc.StatusCode.DATA_LOSS, "LOG_DAMAGED")] * failures
        done = called("audit", "export", "--output", folder)
        assert done.code == 7
        assert called("audit", "verify", folder, "--key", LOG.vkey).code == 7
        assert not list(folder.glob(".export"))
        toy.failures.clear()
    assert called("audit", "export", "--output", folder).code == 0
    assert called("audit", "verify", folder, "--key", LOG.vkey).code == 0


def test_an_export_is_of_one_log(called: Animus, toy: ToyLogServer, tmp_path: Path) -> None:
    """Another log, a smaller one, and one with another past, are not written over it."""
    folder = LOG.write(tmp_path / "log", 600)
    before = (folder / "checkpoint").read_bytes()
    toy.size = 500
    assert "SHRUNK" in called("audit", "export", "--output", folder).err
    forged = [*LOG.leaves[:550], *(document.dump(entry(index, principal="x")) for index in range(550, 700))]
    toy.log, toy.size = type(LOG)(forged, LOG.origin, LOG.key), 700
    assert "WRONG_ROOT" in called("audit", "export", "--output", folder).err
    toy.log, toy.size = toy_log(700, epoch=2), 700
    assert "UNKNOWN_LOG" in called("audit", "export", "--output", folder).err
    assert (folder / "checkpoint").read_bytes() == before


def test_filters_are_for_lines_of_json(called: Animus, tmp_path: Path) -> None:
    """A log with holes proves nothing; a time has to be one."""
    for arguments in (("--principal", "x"), ("--first", 3), ("--since", "2026-01-01"), ()):
        assert called("audit", "export", *arguments).code == 2
    assert called("audit", "export", "--output", tmp_path, "--action", "x").code == 2
    assert called("audit", "export", "--ndjson", "--since", "yesterday").code == 2


def test_lines_of_json_are_whole_or_not_there(called: Animus, toy: ToyLogServer, tmp_path: Path) -> None:
    """A stream that breaks leaves no file, and the one before as it was."""
    file = tmp_path / "entries"
    assert called("audit", "export", "--ndjson").out == "1\n2\n"
    assert called("audit", "export", "--ndjson", "--output", file).code == 0
    assert file.read_text() == "1\n2\n"
    file.write_text("before")
    toy.failures["ExportAuditEntries"] = [None, (grpc.StatusCode.DATA_LOSS, "LOG_DAMAGED")]
    assert called("audit", "export", "--ndjson", "--output", file).code == 7
    assert file.read_text() == "before"
    assert [path.name for path in tmp_path.iterdir() if "entries" in path.name] == ["entries"]


# Tail.


def test_a_tail_goes_on_after_each_end_of_the_stream(called: Animus, toy: ToyLogServer) -> None:
    """Neither gap nor repeat, over a server that stops after each second entry."""
    done = called("audit", "tail", "--from", 3, "--count", 5)
    lines = [json.loads(line) for line in done.out.splitlines()]
    assert [line["index"] for line in lines] == [3, 4, 5, 6, 7]
    assert [document.canonical(line["entry"]) for line in lines] == LOG.leaves[3:8]
    assert toy.calls.count("TailAuditEntries") == 3
    assert done.err.count("waiting for the server") == 2


def test_a_tail_that_is_not_the_log_ends(called: Animus, toy: ToyLogServer) -> None:
    """A gap, other bytes, damage that the server admits, and a call that is refused."""
    toy.listed[3] = listed(LOG.leaves[3], 4)
    assert called("audit", "tail", "--from", 2).code == 7
    toy.listed[3] = listed(LOG.leaves[3], 3)
    toy.listed[3].document = LOG.leaves[4]
    assert called("audit", "tail", "--from", 2).code == 7
    toy.failures["TailAuditEntries"] = [
        (grpc.StatusCode.DATA_LOSS, "LOG_DAMAGED"),
        (grpc.StatusCode.PERMISSION_DENIED, "ROLE_MISSING"),
    ]
    assert [called("audit", "tail").code for _ in range(2)] == [7, 4]


# Witnesses.


def test_a_cosignature_goes_from_the_server_to_the_witness_and_back(
    called: Animus, toy: ToyLogServer, tmp_path: Path, home: Path
) -> None:
    """The whole way by file; importing twice is one change, and its receipt is kept."""
    toy.receipts = [LOG.receipt(5)]
    witness, request, cosigned = tmp_path / "w", tmp_path / "request", tmp_path / "cosigned"
    called("witness", "init", "--name", "witness.example/w1", "--dir", witness)
    called("witness", "trust", "--dir", witness, LOG.vkey)
    for old, size in ((0, 300), (300, 700)):
        toy.size = size
        assert called("witness", "request", "--old", old, "-o", request).code == 0
        assert called("witness", "cosign", "--dir", witness, request, "-o", cosigned).code == 0
        for _ in range(2):
            done = called("witness", "import", cosigned)
            assert (done.code, done.out) == (0, f"added to {LOG.origin} size {size}\n")
    first, again = toy.cosigned[-2:]
    assert first == again
    assert (first.project_id, first.size, first.cosignatures.startswith("— witness.example/w1 ".encode())) == (
        "p",
        700,
        True,
    )
    kept = list(ReceiptStore(home / "animus/receipts").read())
    assert [(each.method, each.note) for each in kept if isinstance(each, Kept)] == [
        ("animus.v1.LogService/AddCosignatures", LOG.receipt(5))
    ] * 4


def test_a_cosignature_for_a_log_that_the_server_lacks_is_refused(
    called: Animus, toy: ToyLogServer, tmp_path: Path
) -> None:
    """Another project, another epoch: not found."""
    (tmp_path / "cosigned").write_bytes(toy_log(3, "q").note(3))
    assert called("witness", "import", tmp_path / "cosigned").code == 3
    (tmp_path / "cosigned").write_bytes(toy_log(3, epoch=2).note(3))
    assert called("witness", "import", tmp_path / "cosigned").code == 3
    (tmp_path / "cosigned").write_bytes(b"nothing\n")
    assert called("witness", "import", tmp_path / "cosigned").code == 2
