"""The checks of the fault scripts: against the published vectors, and against histories with a planted fault."""

import ast
import base64
import json
import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from faults import proofs
from faults.command import Figures, run
from faults.order import Append, Read, anomalies
from faults.proofs import Head, LogKey, Tree, Unproven
from faults.stack import Violation

VECTORS = Path(__file__).parents[1] / "vectors"


def claims(kind: str) -> list[dict[str, Any]]:
    """The published claims of a kind."""
    return [
        json.loads(path.read_text()) for path in sorted((VECTORS / "transparency-dev-merkle" / kind).rglob("*.json"))
    ]


def data(text: str | None) -> bytes:
    """The bytes of base64."""
    return base64.b64decode(text or "")


def holds(check: Callable[[], object]) -> bool:
    """Whether a check proves what it should."""
    try:
        return check() is not False
    except Unproven:
        return False


def includes(index: int, size: int, leaf: bytes, proof: list[bytes], root: bytes) -> bool:
    """Whether a proof leads to a root."""
    return proofs.included_root(index, size, leaf, proof) == root


def test_published_claims_of_inclusion_come_out_as_published() -> None:
    """Each probe of transparency-dev/merkle is proven or not as it says."""
    for claim in claims("inclusion"):
        proof = [data(each) for each in claim["proof"] or []]
        place = claim["leafIdx"], claim["treeSize"], data(claim["leafHash"])
        proven = holds(partial(includes, *place, proof, data(claim["root"])))
        assert proven is not claim["wantErr"], claim["desc"]


def test_published_claims_of_consistency_come_out_as_published() -> None:
    """Each probe of transparency-dev/merkle is proven or not as it says."""
    for claim in claims("consistency"):
        first, second = (Head(claim[f"size{each}"], data(claim[f"root{each}"])) for each in "12")
        proof = [data(each) for each in claim["proof"] or []]
        proven = holds(partial(proofs.check_consistency, first, second, proof))
        assert proven is not claim["wantErr"], claim["desc"]


def test_the_published_tree_is_made() -> None:
    """The roots of sizes 0 to 8 of transparency-dev/merkle."""
    published = json.loads((VECTORS / "transparency-dev-merkle" / "reference_tree.json").read_text())
    tree = Tree()
    roots = [tree.root().hex()]
    for entry in published["leaf_inputs_hex"]:
        tree.add(proofs.leaf_hash(bytes.fromhex(entry)))
        roots.append(tree.root().hex())
    assert roots == published["root_hashes_hex_by_size_0_to_8"]


KEY = LogKey("log.test/p/1", Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
ROOT = base64.b64encode(bytes(32)).decode()


def test_a_published_note_is_signed_as_published() -> None:
    """The note of the Go library, by its own key: the same bytes, and they open."""
    published = json.loads((VECTORS / "golang-sumdb-note" / "notes.json").read_text())
    (signer, *_) = published["sign"]
    seed = bytes.fromhex(signer["ed25519_seed_hex_published_test_key"])
    key = LogKey(signer["name"], Ed25519PrivateKey.from_private_bytes(seed))
    note = key.sign(published["text"])
    assert note.decode() == signer["expected_note"]
    assert proofs.open_note(note, key) == published["text"].splitlines()


def test_a_checkpoint_and_a_receipt_open() -> None:
    """What the key of the log has signed says what it says."""
    assert proofs.open_checkpoint(KEY.sign(f"log.test/p/1\n7\n{ROOT}\n"), KEY) == Head(7, bytes(32))
    receipt = KEY.sign(f"animus/receipt/v1\nlog.test/p/1\n{ROOT}\n{'a' * 32}\n2026-01-31T12:00:00.000000Z\n")
    assert proofs.open_receipt(receipt, KEY) == proofs.Promise(bytes(32), "a" * 32)


OTHER = LogKey("log.test/q/1", KEY.private)
STRANGER = LogKey("log.test/p/1", Ed25519PrivateKey.from_private_bytes(bytes(32)))


@pytest.mark.parametrize(
    "note",
    [
        KEY.sign(f"log.test/p/1\n7\n{ROOT}\n").replace(b"\n7\n", b"\n8\n"),
        OTHER.sign(f"log.test/p/1\n7\n{ROOT}\n"),
        STRANGER.sign(f"log.test/p/1\n7\n{ROOT}\n"),
        KEY.sign(f"log.test/q/1\n7\n{ROOT}\n"),
        KEY.sign(f"log.test/p/1\n07\n{ROOT}\n"),
        KEY.sign(f"log.test/p/1\n7\n{ROOT[:-4]}\n"),
        KEY.sign(f"log.test/p/1\n7\n{ROOT}\nmore\n"),
        KEY.sign(f"animus/receipt/v1\nlog.test/p/1\n{ROOT}\n{'a' * 32}\n2026-01-31T12:00:00.000000Z\n"),
        b"log.test/p/1\n7\n" + ROOT.encode() + b"\n",
        b"\xff",
        b"",
    ],
)
def test_what_is_no_checkpoint_of_the_log_proves_nothing(note: bytes) -> None:
    """Changed, signed by another or under another name, of another log, in another form, not signed."""
    with pytest.raises(Unproven):
        proofs.open_checkpoint(note, KEY)


def test_the_proofs_share_nothing_with_the_program() -> None:
    """Their module imports the standard library and `cryptography`."""
    tree = ast.parse(Path(proofs.__file__).read_text())
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in ([node.module or "."] if isinstance(node, ast.ImportFrom) else [each.name for each in node.names])
    }
    assert imported - set(sys.stdlib_module_names) == {"cryptography"}


# The list.


def append(value: str, began: float, ended: float, *, refused: bool = False) -> Append:
    """An append."""
    return Append(value, began, ended, refused)


def read(values: str, began: float, ended: float, *, whole: bool = True) -> Read:
    """A read of one-letter values."""
    return Read(list(values), len(values), began, ended, whole)


A, B, C = append("a", 0, 1), append("b", 2, 3), append("c", 2.5, 4)
ALL = read("abc", 9, 10)


@pytest.mark.parametrize(
    ("appends", "reads"),
    [
        ([], []),
        ([A, B, C], [ALL]),
        ([A, B, C], [read("acb", 9, 10)]),  # b and c overlapped
        ([A, B, C], [read("a", 5, 6), ALL]),  # the log is a moment behind
        ([A, B, C], [read("ab", 2.1, 2.6), read("abc", 2.7, 2.8), ALL]),
        ([A, B, C], [read("abc", 4.5, 5, whole=False), read("ab", 6, 7, whole=False), ALL]),  # a stream begins again
        ([A, append("b", 2, math.inf)], [read("a", 9, 10)]),  # nobody knows
        ([A, append("b", 2, math.inf)], [read("ab", 9, 10)]),
        ([A, append("b", 2, 3, refused=True)], [read("a", 9, 10)]),
    ],
)
def test_a_sound_history_has_no_anomaly(appends: list[Append], reads: list[Read]) -> None:
    """Whatever order the time leaves open is taken."""
    assert anomalies(appends, reads) == []


@pytest.mark.parametrize(
    ("appends", "reads", "anomaly"),
    [
        ([A, B, C], [read("bac", 9, 10)], "the append of a had ended before the append of b began"),
        ([A, B, C, append("d", 5, 6)], [read("adbc", 9, 10)], "before the append of d began"),
        ([A, B, C], [read("ab", 9, 10)], "c was acknowledged and is not in the list"),
        ([A, B], [ALL], "c is in the list and nobody appended it"),
        ([A, B, append("c", 2, 3, refused=True)], [ALL], "c is in the list and its append was refused"),
        ([A, B, C], [read("abcb", 9, 10)], "b is in the list 2 times"),
        ([A, B, C], [read("ac", 5, 6), ALL], "two reads disagree on the order of the first 2 values"),
        ([A, B, C], [read("ab", 5, 6), read("a", 7, 8), ALL], "a read of 2 had ended before a read of 1 began"),
        ([A, B, C], [read("ab", 1.2, 1.5), ALL], "a read of 2 had ended before the append of b began"),
        ([A, B, C], [read("ab", 1.2, 1.5, whole=False), ALL], "a read of 2 had ended before the append of b began"),
    ],
)
def test_a_planted_anomaly_is_found(appends: list[Append], reads: list[Read], anomaly: str) -> None:
    """Order, loss, invention, repeat, fork, a step back, a look ahead."""
    assert any(anomaly in found for found in anomalies(appends, reads))


# The command.


async def _sound(folder: Path) -> Figures:
    (folder / "data").touch()
    return {"violations": []}


async def _unsound(folder: Path) -> Figures:
    (folder / "data").touch()
    return {"violations": ["planted"]}


async def _raising(folder: Path) -> Figures:
    (folder / "data").touch()
    raise Violation("planted")


@pytest.mark.parametrize(("work", "code"), [(_sound, 0), (_unsound, 1), (_raising, 1)])
def test_a_violation_is_told_and_what_led_to_it_is_kept(
    work: Callable[[Path], Any], code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """The exit code is 1, the seed and the folder are printed, and the folder is there; else nothing is left."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert run("test", work, lambda figures: "all is well", 7, 10) == code
    out, err = capsys.readouterr()
    assert json.loads(out)["violations"] == ["planted"] * code
    assert err.startswith("test: seed 7\n")
    kept = list(tmp_path.glob("*/data"))
    assert len(kept) == code
    for path in kept:
        assert str(path.parent) in err
