"""A server that writes a log with faults, and signs it all rightly, is found out by what has to follow."""

import base64
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from domain.values import TIME

from verify import bundles
from verify.bundles import Change, World
from verify.conftest import Verify

KINDS = ("run", "run_event", "artifact", "metric", "lineage_edge", "execution_plan", "run_spec")
# What a runtime or a person may say as it likes; nothing follows from it. The message is that of a start.
FREE = re.compile(
    r"metric\.(value|occurTime|index|name)|artifact\.(uri|sizeBytes)|run_event\.stepEvent\[\]\.(eventId|message)"
)


def other(leaf: Any) -> Any:
    """Another value of the same type and, where it has a form, of the same form."""
    if isinstance(leaf, int):
        return leaf + 1_000
    if leaf == TIME:
        return f"2027{leaf[4:]}"
    return leaf[:-1] + ("1" if leaf[-1] == "0" else "0") if leaf and leaf[-1] in "0123456789abcdef" else leaf + "x"


def leaves(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Path and tree of each leaf changed; the places of a list have one path."""
    below: Any = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else None
    if below is None:
        yield path, other(node)
        return
    for key, value in below:
        for found, changed in leaves(value, f"{path}.{key}" if isinstance(node, dict) else f"{path}[]"):
            if isinstance(node, dict):
                yield found, node | {key: changed}
            else:
                yield found, [*node[:key], changed, *node[key + 1 :]]


def changes() -> dict[str, tuple[bytes, bytes]]:
    """By path: the bytes of a record of the run, and the same with this one place changed."""
    world = World()
    found: dict[str, tuple[bytes, bytes]] = {}
    for written in world.book.records[world.first : world.size]:
        for kind, data in written:
            if kind in KINDS:
                for path, tree in leaves(json.loads(data), kind):
                    found.setdefault(path, (data, bundles.compact(tree)))
    return found


CHANGES = changes()


def planted(before: bytes, after: bytes) -> Change:
    """Writes a record otherwise than it should be."""
    return lambda kind, data: after if data == before else data


@pytest.mark.parametrize("path", [path for path in CHANGES if not FREE.fullmatch(path)])
def test_a_record_that_does_not_follow_is_found(path: str, verify: Verify) -> None:
    """Each field of the run's records changed when it is written: entries, tree and signatures are right."""
    code, text = verify(World(change=planted(*CHANGES[path])).run_bundle())
    assert code in (20, 30, 40), path
    assert text.count("\n") == 1


@pytest.mark.parametrize("path", [path for path in CHANGES if FREE.fullmatch(path)])
def test_what_nothing_follows_from_is_free(path: str, verify: Verify) -> None:
    """A value that a runtime reports is its own word: so the changes above are found for what they are."""
    assert verify(World(change=planted(*CHANGES[path])).run_bundle())[0] == 11


def test_a_run_that_is_being_cancelled_is_shown(verify: Verify) -> None:
    """Its state is that of its events."""
    code, text = verify(World(succeed=False).run_bundle())
    assert code == 11
    assert "the run is canceling" in text


def test_a_plan_that_another_run_wrote_after_this_was_created_counts(verify: Verify) -> None:
    """Two runs of one RunSpec have one plan, which the one that is planned first registers."""
    assert verify(World(plan_known=True).run_bundle())[0] == 11


def test_a_run_that_replays_another_is_a_run(verify: Verify) -> None:
    """The field is part of the record, and asks for an edge to the run that it names."""
    for replayed, code in (("", 11), ("f" * 32, 30), ("x", 30)):

        def change(kind: str, data: bytes, replayed: str = replayed) -> bytes:
            return bundles.compact(json.loads(data) | {"replayOf": replayed}) if kind == "run" else data

        world = World(change=change)
        files = world.run_bundle()
        (record,) = (data for kind, data in world.book.records[world.first] if kind == "run")
        # The admission names the run's record by its digest.
        path = "data/attestations/admission.dsse.json"
        statement = json.loads(base64.b64decode(json.loads(files[path])["payload"]))
        statement["predicate"]["configuration"][0]["digest"]["sha256"] = bundles.hex_of(record)
        files[path] = bundles.envelope(bundles.compact(statement))
        assert verify(bundles.bagged(files))[0] == code


def test_statements_are_made_again(verify: Verify, world: World) -> None:
    """Each place of a statement changed and signed by the right key contradicts; by an outsider it is invalid."""
    files = world.run_bundle()
    for name in ("admission", "provenance"):
        path = f"data/attestations/{name}.dsse.json"
        payload = json.loads(base64.b64decode(json.loads(files[path])["payload"]))
        for where, tree in leaves(payload, ""):
            changed = files | {path: bundles.envelope(bundles.compact(tree))}
            assert verify(bundles.bagged(changed))[0] == 30, where
        changed = files | {path: bundles.envelope(bundles.compact(payload), bundles.OUTSIDER)}
        assert verify(bundles.bagged(changed))[0] == 40
