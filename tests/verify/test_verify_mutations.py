"""Whatever is changed in a bundle is noticed: by anybody without the key, and by its owner where records do not fit."""

import itertools
import json
import random
from collections.abc import Iterator
from typing import Any

import pytest

from verify import bundles
from verify.bundles import OUTSIDER, Files, World, bagged
from verify.conftest import Verify

GOOD = {0, 10, 11}
FLIPS = 3


def flips(files: Files) -> Iterator[tuple[str, Files]]:
    """Single bytes of each file changed."""
    rng = random.Random(7)
    for name, data in files.items():
        for at in rng.sample(range(len(data)), min(FLIPS, len(data))):
            changed = data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
            yield f"{name} byte {at}", files | {name: changed}


def moves(files: Files, others: Files) -> Iterator[tuple[str, Files]]:
    """Each file left out, repeated under another name, cut, and taken from another bundle."""
    for name, data in files.items():
        yield f"{name} left out", {other: files[other] for other in files if other != name}
        yield f"{name} twice", files | {f"{name}.copy": data}
        yield f"{name} twice in data", files | {f"data/{name.replace('/', '-')}": data}
        yield f"{name} cut", files | {name: data[:-1]}
        yield f"{name} longer", files | {name: data + b"\n"}
        if name in others and others[name] != data:
            yield f"{name} of another", files | {name: others[name]}


def trees(node: Any) -> Iterator[Any]:
    """A JSON value with one leaf changed, one key or item taken away, or one added."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield {other: node[other] for other in node if other != key}
            for changed in trees(value):
                yield node | {key: changed}
        yield node | {"added": ""}
    elif isinstance(node, list):
        for at, value in enumerate(node):
            yield node[:at] + node[at + 1 :]
            for changed in trees(value):
                yield [*node[:at], changed, *node[at + 1 :]]
        yield [*node, node[0] if node else "added"]
    elif isinstance(node, str):
        yield node + "x"
        yield node[:-1] + chr((ord(node[-1]) ^ 1) if node else 97)
    else:
        yield node + 1


def records(files: Files) -> Iterator[tuple[str, Files]]:
    """Each JSON document of the data changed in each place."""
    for name, data in files.items():
        if not name.startswith("data/") or not name.endswith((".json", ".ndjson")) or "renderings" in name:
            continue
        ended = b"\n" if data.endswith(b"\n") else b""
        lines = data.removesuffix(b"\n").split(b"\n")
        for at, line in enumerate(lines):
            for number, tree in enumerate(trees(json.loads(line))):
                changed = [*lines[:at], bundles.compact(tree), *lines[at + 1 :]]
                yield f"{name} line {at + 1} change {number}", files | {name: b"\n".join(changed) + ended}


KINDS = ["run", "log"]


@pytest.fixture(params=KINDS)
def files(request: pytest.FixtureRequest, world: World) -> Files:
    """A bundle of each kind."""
    return world.run_bundle() if request.param == "run" else world.log_bundle()


def test_no_changed_file_passes(files: Files, verify: Verify) -> None:
    """Bytes, files and names that were changed, with the manifests as they were."""
    other = World(succeed=False)
    others = other.run_bundle() if said_run(files) else other.log_bundle()
    found = [(what, verify(changed)[0]) for what, changed in [*flips(files), *moves(files, others)]]
    print(len(found), "changes")
    assert [what for what, code in found if code in GOOD] == []


def said_run(files: Files) -> str:
    """The run of a bundle."""
    return str(bundles.said_of(files)["runId"])


def test_no_changed_record_passes_with_new_manifests(files: Files, verify: Verify) -> None:
    """Each document changed in every fourth place, its digests made anew by whoever has not the key."""
    missed, count = [], 0
    for number, (what, changed) in enumerate(itertools.islice(records(files), None, None, 4)):
        signed = bagged(changed, OUTSIDER) if number % 2 else bagged(changed, sign=False)
        count += 1
        if verify(signed)[0] in GOOD:
            missed.append(what)
    print(count, "changes")
    assert count > 250
    assert missed == []


def test_no_changed_file_passes_with_new_manifests(files: Files, verify: Verify) -> None:
    """Bytes of data changed, and signed by a key that is not trusted."""
    changes = [(what, changed) for what, changed in flips(files) if what.startswith("data/")]
    assert [what for what, changed in changes if verify(bagged(changed, OUTSIDER))[0] in GOOD] == []


def test_no_changed_record_passes_under_the_right_signature(files: Files, verify: Verify) -> None:
    """A server that signs what it likes cannot change a record, the summary or a statement: they contradict the log."""
    rng, missed, count = random.Random(3), [], 0
    for what, changed in records(files):
        # Every place of what no entry fixes; of the rest, whose digests the log holds, one place in twenty.
        fixed = not what.startswith(("data/summary", "data/attestations", "data/evidence"))
        if fixed and rng.random() > 1 / 20:
            continue
        count += 1
        code, text = verify(bagged(changed))
        assert text.count("\n") == 1 or code in GOOD, text
        if code in GOOD:
            missed.append(what)
    print(count, "changes")
    assert missed == []


RUBBISH = [b"", b"\n", b"{}", b"[]\n", b"\xff\xfe", b"null", b"A" * 100, b"[" * 50_000 + b"\n"]


def test_rubbish_under_the_right_signature_is_one_line(files: Files, verify: Verify) -> None:
    """Whatever the trusted key signs in place of a file, the verifier says what is wrong with it."""
    for name in files:
        if name.startswith("data/") and "renderings" not in name:
            for data in RUBBISH:
                if data == files[name]:
                    continue
                code, text = verify(bagged(files | {name: data}))
                assert (code in GOOD, text.count("\n")) == (False, 1), (name, data[:9])


def test_the_bundles_pass_unchanged(files: Files, verify: Verify) -> None:
    """The changes are what fails."""
    assert verify(files)[0] == 11
    assert verify(bagged(files))[0] == 11
