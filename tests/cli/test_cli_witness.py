"""`animus witness` by file: each step's output, and what each refusal ends with."""

from dataclasses import replace
from pathlib import Path

import pytest

from animus.domain import document
from animus.domain.note import load_key
from animus.signing import verify_checkpoint
from cli.conftest import Animus
from cli.logs import LOG_700 as LOG
from cli.logs import OTHER_KEY, entry, put, toy_log


@pytest.fixture
def witness(animus: Animus, tmp_path: Path) -> Path:
    """The folder of a witness that watches the log."""
    folder = tmp_path / "w"
    assert animus("witness", "init", "--name", "witness.example/w1", "--dir", folder).code == 0
    assert animus("witness", "trust", "--dir", folder, LOG.vkey).out == f"{LOG.origin} size 0 keys 1\n"
    return folder


def request(animus: Animus, folder: Path, log: Path, old: int = 0) -> Path:
    """A request by an exported log."""
    path = folder / "request"
    assert animus("witness", "request", log, "--old", old, "-o", path).code == 0
    return path


def test_a_witness_cosigns_exported_logs_as_they_grow(animus: Animus, witness: Path, tmp_path: Path) -> None:
    """Without any server: the cosignature that comes out makes the log WITNESSED under a policy."""
    vkey = animus("witness", "show", "--dir", witness).out.splitlines()[0]
    policy = tmp_path / "policy"
    policy.write_text(f"witness w1 {vkey}\nquorum w1\n")
    out = tmp_path / "cosigned"
    for old, size in ((0, 300), (300, 700)):
        log = LOG.write(tmp_path / "log", size)
        done = animus("witness", "cosign", "--dir", witness, request(animus, tmp_path, log, old), "-o", out)
        assert (done.code, done.out) == (0, f"cosigned {LOG.origin} size {size} as witness.example/w1\n")
        shown = animus("witness", "show", "--dir", witness).out.splitlines()
        assert shown == [vkey, f"{LOG.origin} size {size} root {LOG.root(size).hex()}"]
        put(log / "checkpoint", LOG.note(size) + out.read_bytes().rpartition(b"\n\n")[2])
        verify_checkpoint((log / "checkpoint").read_bytes(), [load_key(LOG.vkey)], [load_key(vkey)])
        done = animus("audit", "verify", log, "--key", LOG.vkey, "--policy", policy, "--json")
        assert (done.json["verdict"], done.json["witnessed"]["size"]) == ("WITNESSED", size)


def test_a_request_that_starts_elsewhere_is_made_again(animus: Animus, witness: Path, tmp_path: Path) -> None:
    """The conflict has a code of its own and says the size; with that the same log is cosigned."""
    out = tmp_path / "cosigned"
    small = LOG.write(tmp_path / "log", 300)
    assert animus("witness", "cosign", "--dir", witness, request(animus, tmp_path, small), "-o", out).code == 0
    out.unlink()
    log = LOG.write(tmp_path / "log")
    done = animus("witness", "cosign", "--dir", witness, request(animus, tmp_path, log), "-o", out)
    assert (done.code, done.out, "--old 300" in done.err) == (5, "", True)
    assert not out.exists()
    assert animus("witness", "cosign", "--dir", witness, request(animus, tmp_path, log, 300), "-o", out).code == 0
    assert animus("witness", "request", small, "--old", 900, "-o", tmp_path / "request").code == 5


def test_each_refusal_has_its_code_and_one_line(animus: Animus, witness: Path, tmp_path: Path) -> None:
    """Malformed 2, missing 1, unknown log 3, other size 5, not signed or forked 7; nothing is written."""
    out = tmp_path / "cosigned"
    path = request(animus, tmp_path, LOG.write(tmp_path / "log", 300))
    first = path.read_bytes()
    assert animus("witness", "cosign", "--dir", witness, path, "-o", out).code == 0
    out.unlink()
    forked = replace(LOG, leaves=[document.dump(entry(0, principal="x")), *LOG.leaves[1:]])
    cases = [
        (7, request(animus, tmp_path, forked.write(tmp_path / "fork"), 300).read_bytes()),
        (7, request(animus, tmp_path, replace(LOG, key=OTHER_KEY).write(tmp_path / "key"), 300).read_bytes()),
        (3, request(animus, tmp_path, toy_log(9, "q").write(tmp_path / "other")).read_bytes()),
        (5, first),
        (2, b"nothing"),
        (2, bytes(1000)),
        (1, bytes(4 << 20)),
    ]
    before = animus("witness", "show", "--dir", witness).out
    for code, data in cases:
        put(tmp_path / "case", data)
        done = animus("witness", "cosign", "--dir", witness, tmp_path / "case", "-o", out)
        assert (done.code, done.out, len(done.err.splitlines())) == (code, "", 1), done
        assert not out.exists()
    assert animus("witness", "cosign", "--dir", witness, tmp_path / "none", "-o", out).code == 1
    assert animus("witness", "show", "--dir", witness).out == before


def test_what_is_no_witness_is_refused(animus: Animus, witness: Path, tmp_path: Path) -> None:
    """A folder without a key, one that has one already, names and keys that are none, and no log to ask."""
    assert animus("witness", "init", "--name", "witness.example/w2", "--dir", witness).code == 5
    assert animus("witness", "init", "--name", "no name", "--dir", tmp_path / "v").code == 2
    assert not (tmp_path / "v").exists()
    assert animus("witness", "show", "--dir", tmp_path / "v").code == 1
    assert animus("witness", "trust", "--dir", witness, "nonsense").code == 2
    vkey = animus("witness", "show", "--dir", witness).out.splitlines()[0]
    assert animus("witness", "trust", "--dir", witness, vkey).code == 2
    assert animus("witness", "request", "-o", tmp_path / "request").code == 2
    damaged = LOG.write(tmp_path / "log")
    put(damaged / "tile/1/000.p/2", bytes(64))
    assert animus("witness", "request", damaged, "--old", 300, "-o", tmp_path / "request").code == 7
