"""LogService against an auditor who has only the specifications: answers are proven, or refused by their field."""

import asyncio
import base64
import itertools
import secrets
import shutil
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import ed25519_stdlib as ed
import pytest
from contract import METHODS
from domain import trees
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from sqlalchemy.ext.asyncio import AsyncEngine

from animus.signing import dump_signing_key, generate_signing_key
from animus.store.embedded import EmbeddedPostgres
from animus.v1 import audit_pb2, log_pb2, project_pb2
from animus.workers import leader
from service.auditor import (
    Head,
    Verifier,
    Witness,
    ask,
    entries_of,
    extends,
    hashes_of,
    head_of,
    includes,
    opened,
    proof_of,
    verifier_of,
    vkey_of,
)
from service.conftest import Caller, Failure, Server
from service.requests import dataset
from service.shared import (
    Grown,
    after_first,
    executing,
    held,
    idle,
    key_of_log,
    on_demand,
    served,
    serving,
    size_of,
    until,
)

WITNESSES = [Witness(f"witness.example/{number}", bytes([number]) * 32) for number in (1, 2)]
POLICY = "".join(f"witness w{at} {vkey_of(each.key)}\n" for at, each in enumerate(WITNESSES))
POLICY += "group both all w0 w1\nquorum both\n"
STRANGER = Witness("stranger.example/1", bytes([3]) * 32)


@pytest.fixture(scope="module")
async def server(
    postgres: EmbeddedPostgres, admin: AsyncEngine, template: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Server]:
    """The server of these tests, with a policy of two witnesses."""
    policy = tmp_path_factory.mktemp("policy") / "policy"
    policy.write_text(POLICY)
    data_dir = tmp_path_factory.mktemp("data")
    async with served(postgres, admin, template, data_dir, log_policy_file=str(policy)) as found:
        yield found


@pytest.fixture
async def grown(server: Server) -> Grown:
    """A project of the test's own."""
    return await Grown.new(server)


# A log whose every size, from 1 to 20 and from 250 to 260, has a checkpoint.

SIZES = [*range(1, 21), *range(250, 261)]


@dataclass(frozen=True, slots=True)
class History:
    """The log, and what an auditor has seen of it."""

    server: Server
    project_id: str
    key: Verifier
    heads: dict[int, Head]  # by size, as each was when it was the newest
    notes: dict[int, bytes]
    leaves: list[bytes]  # hashes of the entries as they are read at the end
    ids: list[str]

    async def ask(self, name: str, **fields: Any) -> Any:
        """The reply to a request of this log."""
        return await self.server.admin(name, request_of(name, project_id=self.project_id, **fields))


def request_of(name: str, **fields: Any) -> Message:
    """A request."""
    found: Message = GetMessageClass(METHODS[name].input_type)(**fields)
    return found


@pytest.fixture(scope="module")
async def history(server: Server) -> History:
    """The log. Its entries are read as bundles, and hashed here."""
    project = await Grown.new(server)
    key = await project.key()
    heads, notes = {}, {}
    for size in SIZES:
        if size > 1:
            await project.grow(size - (await size_of(server, project.project_id)).size if size == 250 else 1)
        checkpoint = await project.published(size)
        heads[size], notes[size] = head_of(checkpoint.note, key), checkpoint.note
        assert heads[size].size == size
    found = History(server, project.project_id, key, heads, notes, [], [])
    for index, width in ((0, 256), (1, 4)):
        bundle = await found.ask("GetEntryBundle", index=index, width=width)
        found.leaves.extend(trees.leaf(entry) for entry in entries_of(bundle.entries))
    listed = await found.ask("ListAuditEntries", page_size=1_000)
    by_index = {each.index: each for each in listed.audit_entries}
    found.ids.extend(by_index[index].entry_id for index in range(260))
    assert [bytes.fromhex(by_index[index].leaf_hash) for index in range(260)] == found.leaves
    return found


async def test_a_log_says_what_it_is(history: History) -> None:
    """Origin, epoch, sizes, its one key and nothing wrong."""
    log = await history.ask("GetLog")
    assert log.origin == f"animus.example/{history.project_id}/1"
    assert (log.epoch, log.size, log.published_size, log.queued) == (1, 260, 260, 0)
    assert (list(log.epochs), list(log.problems)) == ([], [])
    (key,) = log.keys
    assert verifier_of(key.vkey).name == log.origin
    assert (key.status, key.HasField("end_time"), key.reason) == (log_pb2.LOG_KEY_STATUS_ACTIVE, False, "")
    assert key.create_time.seconds > 0
    file = history.server.settings.data_dir / "log" / "log.key"
    seed = base64.b64decode(file.read_text().strip().split("+", 4)[4])[1:]
    assert verifier_of(key.vkey).public_key == ed.public_key(seed)


async def test_every_checkpoint_is_signed_and_is_that_of_the_entries(history: History) -> None:
    """For each size: the log's key has signed its origin, the size, and the root over the entries as they are read."""
    for size in SIZES:
        assert history.heads[size] == Head(history.key.name, size, trees.mth(history.leaves[:size]))
        assert ed.verify(history.key.public_key, *signed_by_log(history.notes[size]))


def signed_by_log(note: bytes) -> tuple[bytes, bytes]:
    """The text of a note and its first signature."""
    text, _, lines = note.rpartition(b"\n\n")
    return text + b"\n", base64.b64decode(lines.split(b"\n")[0].split(b" ")[2])[4:]


async def test_a_note_that_was_changed_is_not_signed(history: History) -> None:
    """The check above fails for another size, another root, another origin and another log's key."""
    text, signature = signed_by_log(history.notes[5])
    root = base64.b64encode(history.heads[4].root) + b"\n"
    for wrong in (text.replace(b"\n5\n", b"\n6\n"), text[:-45] + root, text.replace(b"/1\n", b"/2\n"), text[:-1]):
        assert wrong != text
        assert not ed.verify(history.key.public_key, wrong, signature)
    with pytest.raises(AssertionError):
        head_of(history.notes[5], await key_of_log(history.server, "system"))


async def test_checkpoints_are_listed_as_they_were_published(history: History) -> None:
    """Each with its fields and the very note, the smallest first; in pages of every size the same."""
    found = (await history.ask("ListCheckpoints", page_size=1_000)).checkpoints
    sizes = [each.size for each in found]
    assert sizes == sorted(set(sizes))
    assert set(sizes) >= set(SIZES)  # and perhaps one while it grew to 250
    for each in found:
        head = Head(history.key.name, each.size, trees.mth(history.leaves[: each.size]))
        assert head_of(each.note, history.key) == history.heads.get(each.size, head) == head
        assert each.note == history.notes.get(each.size, each.note)
        assert (each.origin, bytes.fromhex(each.root_hash)) == (head.origin, head.root)
    times = [each.create_time.ToNanoseconds() for each in found]
    assert times == sorted(times)
    for size in (1, 7, len(found) - 1, len(found), len(found) + 1, 0):
        listed, token, pages = [], "", 0
        while token or not pages:
            page = await history.ask("ListCheckpoints", page_size=size, page_token=token)
            listed += page.checkpoints
            token, pages = page.next_page_token, pages + 1
        assert listed == list(found)
        assert pages == -(-len(found) // (size or 50))


async def test_each_entry_of_each_small_tree_is_proven(history: History) -> None:
    """For all sizes to 20 and all indexes: the proof is that of the standard, and an auditor's algorithm takes it."""
    for size in range(1, 21):
        proofs = await asyncio.gather(
            *(history.ask("GetInclusionProof", index=index, checkpoint_size=size) for index in range(size))
        )
        for index, proof in enumerate(proofs):
            check_inclusion(history, proof, index, size)
            assert tuple(proof.hashes) == trees.path(index, history.leaves[:size])


def check_inclusion(history: History, proof: log_pb2.InclusionProof, index: int, size: int) -> None:
    """What a proof says, and that it proves it; as a text it says the same."""
    assert (proof.index, proof.entry_id) == (index, history.ids[index])
    assert bytes.fromhex(proof.leaf_hash) == history.leaves[index]
    assert proof.checkpoint.note == history.notes[size]
    assert includes(history.heads[size].root, size, index, history.leaves[index], proof.hashes)
    assert proof_of(proof.tlog_proof) == (index, list(proof.hashes), history.notes[size])


async def test_entries_are_proven_across_the_edge_of_a_tile(history: History) -> None:
    """For sizes of 250 to 260 by index, of older checkpoints and of the newest; and by id, which is the same."""
    near = [0, 1, 127, 128, 191, 192, 248, 249, *range(250, 260)]
    for size in (250, 255, 256, 257, 258, 260):
        for index in (each for each in near if each < size):
            proof = await history.ask("GetInclusionProof", index=index, checkpoint_size=size)
            check_inclusion(history, proof, index, size)
            assert tuple(proof.hashes) == trees.path(index, history.leaves[:size])
    for index in near:
        newest = await history.ask("GetInclusionProof", entry_id=history.ids[index])
        check_inclusion(history, newest, index, 260)
        assert newest == await history.ask("GetInclusionProof", index=index)
        if index < 255:
            older = await history.ask("GetInclusionProof", entry_id=history.ids[index], checkpoint_size=255)
            check_inclusion(history, older, index, 255)


async def test_what_proves_an_entry_proves_no_other(history: History) -> None:
    """The auditor's check fails for another index, size, leaf or root, and for hashes more, fewer or others."""
    for index, size in ((0, 1), (3, 7), (5, 8), (255, 260)):
        proof = list((await history.ask("GetInclusionProof", index=index, checkpoint_size=size)).hashes)
        root, leaf = history.heads[size].root, history.leaves[index]
        assert includes(root, size, index, leaf, proof)
        wrong = [(root, size, index + 1, leaf, proof), (root, size, index, history.leaves[index + 1], proof)]
        wrong += [(leaf if size > 1 else history.leaves[1], size, index, leaf, proof)]
        wrong += [(root, size, index, leaf, [*proof, leaf]), (root, 2 * size, index, leaf, proof)]
        wrong += [(root, size, index, leaf, [*proof[:at], *proof[at + 1 :]]) for at in range(len(proof))]
        wrong += [(root, size, index, leaf, [*proof[:at], leaf, *proof[at + 1 :]]) for at in range(len(proof))]
        assert not any(includes(*each) for each in wrong)


async def test_every_tree_begins_with_every_smaller_one(history: History) -> None:
    """For all pairs of sizes to 20, and many across the edge of a tile: proven, by the proof of the standard."""
    pairs = list(itertools.combinations_with_replacement(range(21), 2))
    edge = (250, 255, 256, 257, 258, 260)
    pairs += [(first, second) for first in (1, 19, 128, *edge) for second in edge]
    heads = {size: Head(history.key.name, size, trees.mth(history.leaves[:size])) for pair in pairs for size in pair}
    for first, second in (pair for pair in pairs if pair[0] <= pair[1]):
        proof = await history.ask("GetConsistencyProof", first_size=first, second_size=second)
        if second == 0:  # stands for the newest
            assert (proof.first_size, proof.second_size) == (0, 260)
            continue
        assert (proof.first_size, proof.second_size) == (first, second)
        assert extends(heads[first], heads[second], proof.hashes)
        if 0 < first < second:
            assert tuple(proof.hashes) == trees.proof(first, history.leaves[:second])
            assert not extends(heads[first], heads[second], [*proof.hashes, bytes(32)])
            assert not extends(heads[first], heads[second], proof.hashes[1:])
            assert not extends(Head("", first, bytes(32)), heads[second], proof.hashes)
            assert not extends(heads[first], Head("", second, bytes(32)), proof.hashes)
    newest = await history.ask("GetConsistencyProof", first_size=7)
    assert (newest.first_size, newest.second_size) == (7, 260)
    assert extends(heads[7], history.heads[260], newest.hashes)


async def test_tiles_are_those_of_the_tree_at_their_widths(history: History) -> None:
    """All of level 0 and 1 that a tree of 260 has, at many widths; a width of 0 is that of a full tile."""
    root = trees.mth(history.leaves[:256])
    for index, end in ((0, 256), (1, 4)):
        for width in (each for each in (*range(1, 10), 31, 32, 127, 128, 129, 254, 255, 256) if each <= end):
            tile = await history.ask("GetTile", level=0, index=index, width=width)
            assert hashes_of(tile.hashes) == history.leaves[256 * index : 256 * index + width]
    assert hashes_of((await history.ask("GetTile")).hashes) == history.leaves[:256]
    assert hashes_of((await history.ask("GetTile", level=1, width=1)).hashes) == [root]


async def test_bundles_hold_the_entries_below_their_tiles(history: History) -> None:
    """At some widths of each: the entries' bytes, which hash to the tile, and are those of GetAuditEntry."""
    for index, width in ((0, 1), (0, 2), (0, 255), (0, 256), (0, 0), (1, 1), (1, 4)):
        bundle = await history.ask("GetEntryBundle", index=index, width=width)
        entries = entries_of(bundle.entries)
        assert [trees.leaf(each) for each in entries] == history.leaves[256 * index :][: width or 256]
        entry = await history.ask("GetAuditEntry", entry_id=history.ids[256 * index])
        assert entry.document == entries[0]
        assert (entry.index, entry.leaf_hash) == (256 * index, history.leaves[256 * index].hex())


@pytest.mark.parametrize("name", ["GetTile", "GetEntryBundle"])
async def test_a_tile_that_the_tree_does_not_have_is_unknown(name: str, history: History) -> None:
    """Wider than its level is at this size, further to the right, or higher."""
    places: list[dict[str, int]] = [{"index": 1, "width": width} for width in (5, 6, 255, 256, 0)]
    places += [{"index": 2, "width": 1}, {"index": 1_000_000, "width": 1}, {"index": 2**53 - 1, "width": 256}]
    if name == "GetTile":
        places += [{"level": 1, "width": 2}, {"level": 1}, {"level": 1, "index": 1, "width": 1}]
        places += [{"level": level, "width": 1} for level in range(2, 8)]
    for place in places:
        failure = await failed(history.server.admin, name, project_id=history.project_id, **place)
        assert (failure.code, failure.reason) == ("NOT_FOUND", "TILE_UNKNOWN"), place


async def failed(caller: Caller, name: str, **fields: Any) -> Failure:
    """How a call fails."""
    with pytest.raises(Failure) as found:
        await caller(name, request_of(name, **fields))
    return found.value


# The instance's log.


async def settled(server: Server) -> dict[str, log_pb2.Log]:
    """Every project's log, once all of it is published, and the instance's."""
    projects = await server.admin("ListProjects", project_pb2.ListProjectsRequest(page_size=1_000))
    names = [*(each.project_id for each in projects.projects), "instance"]

    async def done() -> bool:
        logs.update({name: await size_of(server, name) for name in names})
        return all(log.size == log.published_size and not log.queued for log in logs.values())

    logs: dict[str, log_pb2.Log] = {}
    await until(done, "checkpoints over all that there is")
    return logs


async def test_the_instances_log_holds_exactly_the_published_checkpoints(history: History) -> None:
    """Each project's, each once, with the very bytes; in the order in which each log published them."""
    server = history.server
    published = {}
    for name, log in (await settled(server)).items():
        if name == "instance":
            leaves = log.size
            continue
        request = log_pb2.ListCheckpointsRequest(project_id=name, page_size=1_000)
        for each in (await server.admin("ListCheckpoints", request)).checkpoints:
            published[f"{name}/1/{each.size}"] = each.note
    assert leaves == len(published) > len(SIZES)
    entries: list[bytes] = []
    while len(entries) < leaves:
        index, width = len(entries) // 256, min(256, leaves - len(entries))
        bundle = await server.admin(
            "GetEntryBundle", log_pb2.GetEntryBundleRequest(project_id="instance", index=index, width=width)
        )
        entries += entries_of(bundle.entries)
    assert sorted(entries) == sorted(published.values())
    of_history = [each for each in entries if each in history.notes.values()]
    assert of_history == [history.notes[size] for size in SIZES]

    key = await key_of_log(server, "instance")
    checkpoint = await server.admin("GetCheckpoint", log_pb2.GetCheckpointRequest(project_id="instance"))
    head = head_of(checkpoint.note, key)
    assert head == Head("animus.example/1", leaves, trees.mth([trees.leaf(each) for each in entries]))
    for size in (1, 20, 250, 260):
        wanted = log_pb2.GetInclusionProofRequest(
            project_id="instance", entry_id=f"{history.project_id}/1/{size}", checkpoint_size=head.size
        )
        proof = await server.admin("GetInclusionProof", wanted)
        leaf = trees.leaf(history.notes[size])
        assert entries[proof.index] == history.notes[size]
        assert includes(head.root, head.size, proof.index, leaf, proof.hashes)
        waited = log_pb2.WaitForInclusionRequest(project_id="instance", entry_id=proof.entry_id)
        assert (await server.admin("WaitForInclusion", waited)).index == proof.index


async def test_the_instances_log_grows_by_extension(server: Server) -> None:
    """Of the last ten of its checkpoints each follows from the one before."""
    log = (await settled(server))["instance"]
    key = verifier_of(log.keys[0].vkey)
    listed = await server.admin(
        "ListCheckpoints", log_pb2.ListCheckpointsRequest(project_id="instance", page_size=1_000)
    )
    heads = [head_of(each.note, key) for each in listed.checkpoints[-10:]]
    assert heads[-1].size == log.size
    for first, second in itertools.pairwise(heads):
        assert first.size < second.size
        request = log_pb2.GetConsistencyProofRequest(
            project_id="instance", first_size=first.size, second_size=second.size
        )
        assert extends(first, second, (await server.admin("GetConsistencyProof", request)).hashes)


async def test_the_instances_log_is_seen_by_roles_of_the_instance(server: Server, grown: Grown) -> None:
    """A project's roles are told that there is no such project; what belongs to projects has no instance."""
    request = log_pb2.GetLogRequest(project_id="instance")
    auditor = await server.caller("system", "instance_auditor")
    assert (await auditor("GetLog", request)).origin == "animus.example/1"
    for role in ("admin", "auditor", "viewer"):
        caller = await server.caller(grown.project_id, role)
        assert (await failed(caller, "GetLog", project_id="instance")).reason == "PROJECT_UNKNOWN"
    for name in ("ListAuditEntries", "ListDatasets"):
        assert (await failed(server.admin, name, project_id="instance")).reason == "PROJECT_UNKNOWN"


@pytest.mark.parametrize("role", ["admin", "operator", "runtime", "viewer", "auditor"])
async def test_each_role_may_have_its_receipts_proven(role: str, server: Server, grown: Grown) -> None:
    """Hashes and signatures are for all roles of a project, entries for those that read the audit log."""
    caller = await server.caller(grown.project_id, role)
    await grown.published(1)
    for name in ("GetLog", "GetCheckpoint", "ListCheckpoints", "GetConsistencyProof"):
        await caller(name, request_of(name, project_id=grown.project_id))
    await caller("GetTile", request_of("GetTile", project_id=grown.project_id, width=1))
    await caller("GetInclusionProof", request_of("GetInclusionProof", project_id=grown.project_id, index=0))
    bundle = await ask(caller, "GetEntryBundle", request_of("GetEntryBundle", project_id=grown.project_id, width=1))
    assert bundle.reason == ("" if role in ("admin", "auditor") else "ROLE_MISSING")


# Waiting.


async def test_a_checkpoint_of_a_size_is_waited_for(server: Server, grown: Grown) -> None:
    """While an entry has no index, GetCheckpoint waits for it; the answer covers it."""
    async with held(server):
        await grown.grow()
        log = await size_of(server, grown.project_id)
        assert log.size + log.queued == 2
        waiting = asyncio.create_task(grown.published(2))
        newest = asyncio.create_task(grown.published(0))
        for _ in range(20):
            assert (await size_of(server, grown.project_id)).published_size == log.published_size < 2
        assert not waiting.done()
    assert (await waiting).size == 2
    assert (await newest).size in (1, 2)


async def test_a_checkpoint_is_made_when_it_is_asked_for(server: Server, grown: Grown) -> None:
    """While the leader's next second never comes: by GetCheckpoint and by WaitForInclusion, and by nothing else."""
    async with on_demand(server):
        for size in range(2, 6):
            (answer,) = await grown.grow()
            if size % 2:
                assert (await grown.published(size)).size == size
            else:
                entry_id = receipt_of(answer.receipt, await grown.key()).entry_id
                proof = await wait(server.admin, grown.project_id, entry_id)
                assert (proof.index, proof.checkpoint.size) == (size - 1, size)
        await idle(server)
        await grown.grow()

        async def integrated() -> bool:
            return (await size_of(server, grown.project_id)).size == 6

        await until(integrated, "an index for the last entry")
        assert (await size_of(server, grown.project_id)).published_size == 5
        assert (await grown.published(0)).size == (await grown.published(5)).size == 5
    listed = await server.admin("ListCheckpoints", log_pb2.ListCheckpointsRequest(project_id=grown.project_id))
    assert [each.size for each in listed.checkpoints][-4:] == [2, 3, 4, 5]


async def wait(caller: Caller, project_id: str, entry_id: str) -> log_pb2.InclusionProof:
    """The proof of an entry, once it can be given."""
    request = log_pb2.WaitForInclusionRequest(project_id=project_id, entry_id=entry_id)
    found: log_pb2.InclusionProof = await caller("WaitForInclusion", request)
    return found


async def test_a_log_that_is_smaller_says_how_large_it_is(server: Server, grown: Grown) -> None:
    """What is queued counts; a checkpoint beyond that is not waited for."""
    await grown.grow(2)
    for minimum in (4, 5, 2**53 - 1):
        failure = await failed(server.admin, "GetCheckpoint", project_id=grown.project_id, minimum_size=minimum)
        assert (failure.code, failure.reason) == ("FAILED_PRECONDITION", "LOG_TOO_SMALL")
        assert failure.metadata["size"] == "3"
        assert failure.preconditions == [("LOG_TOO_SMALL", f"projects/{grown.project_id}/log")]
    await grown.published(3)
    for first, second in ((0, 4), (3, 4), (4, 4), (4, 0), (2**53 - 1, 0)):
        failure = await failed(
            server.admin, "GetConsistencyProof", project_id=grown.project_id, first_size=first, second_size=second
        )
        assert (failure.reason, failure.metadata["size"]) == ("LOG_TOO_SMALL", "3"), (first, second)


async def test_an_entry_is_pending_until_a_checkpoint_covers_it(server: Server, grown: Grown) -> None:
    """In the queue, and with an index that is not published; with an older checkpoint it stays so."""
    await grown.published(1)
    names: dict[str, Any] = {"project_id": grown.project_id}
    async with held(server):
        (answer,) = await grown.grow()
        entry_id = receipt_of(answer.receipt, await grown.key()).entry_id
        assert (await size_of(server, grown.project_id)).queued == 1
        failure = await failed(server.admin, "GetInclusionProof", **names, entry_id=entry_id)
        assert (failure.code, failure.reason) == ("FAILED_PRECONDITION", "ENTRY_PENDING")
        assert failure.preconditions == [("ENTRY_PENDING", entry_id)]
        assert "WaitForInclusion" in failure.message
        entry = await server.admin("GetAuditEntry", request_of("GetAuditEntry", **names, entry_id=entry_id))
        assert not entry.HasField("index")
    await wait(server.admin, grown.project_id, entry_id)
    async with on_demand(server):
        (answer,) = await grown.grow()
        later = receipt_of(answer.receipt, await grown.key()).entry_id

        async def integrated() -> bool:
            return (await size_of(server, grown.project_id)).size == 3

        await until(integrated, "an index")
        for leaf in ({"entry_id": later}, {"index": 2}, {"index": 3}, {"entry_id": entry_id, "checkpoint_size": 1}):
            failure = await failed(server.admin, "GetInclusionProof", **names, **leaf)
            assert failure.reason == "ENTRY_PENDING", leaf
            assert failure.metadata["size"] == ("1" if "checkpoint_size" in leaf else "2")
    assert (await wait(server.admin, grown.project_id, later)).index == 2


async def test_entries_are_proven_as_soon_as_they_are_made(server: Server, grown: Grown) -> None:
    """Thirty changes at once, each followed by WaitForInclusion: all are proven, each at its own index."""
    key = await grown.key()

    async def prove() -> int:
        (answer,) = await grown.grow()
        receipt = receipt_of(answer.receipt, key)
        proof = await wait(server.admin, grown.project_id, receipt.entry_id)
        head = head_of(proof.checkpoint.note, key)
        assert bytes.fromhex(proof.leaf_hash) == receipt.leaf_hash
        assert includes(head.root, head.size, proof.index, receipt.leaf_hash, proof.hashes)
        return proof.index

    assert sorted(await asyncio.gather(*(prove() for _ in range(30)))) == list(range(1, 31))
    again = await wait(server.admin, grown.project_id, await first_entry(server, grown))
    assert again.index == 0


async def test_an_entry_that_gets_its_index_between_two_looks_is_not_missed(server: Server, grown: Grown) -> None:
    """WaitForInclusion has asked for the index or for the size, and the other it asks after that has changed."""
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(held(server))
        (answer,) = await grown.grow()
        entry_id = receipt_of(answer.receipt, await grown.key()).entry_id

        async def integrated() -> bool:
            return (await size_of(server, grown.project_id)).size == 2

        async def let_go() -> None:
            await stack.aclose()
            await until(integrated, "an index")

        looked = after_first(server, ("SELECT l.index AS leaf_index", "SELECT coalesce(max(size)"), let_go)
        with looked:
            request = log_pb2.WaitForInclusionRequest(project_id=grown.project_id, entry_id=entry_id)
            proof = await server.admin("WaitForInclusion", request, timeout=25)
    assert proof.index == 1


async def test_a_server_that_does_not_lead_looks_once_when_it_is_asked_to_publish(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And then waits for its time as before: while fifty calls are answered it does not look again and again."""
    looks = 0

    def count(statement: str) -> None:
        nonlocal looks
        looks += statement.startswith("SELECT animus.lead_log")

    async with held(server):
        monkeypatch.setattr(leader, "FOLLOW_SECONDS", 1e9)
        server.running.log.publish_soon()
        with executing(server, count):
            for _ in range(50):
                await size_of(server, "system")
    server.running.log.publish_soon()  # it would sleep on
    assert looks <= 3


async def first_entry(server: Server, grown: Grown) -> str:
    """The id of a log's first entry."""
    listed = await server.admin("ListAuditEntries", request_of("ListAuditEntries", project_id=grown.project_id))
    return str(listed.audit_entries[0].entry_id)


async def test_entries_and_checkpoints_that_are_not_there_are_unknown(server: Server, grown: Grown) -> None:
    """Ids of nothing, and of another project's entry; sizes that were never published, and a log that has none yet."""
    other = await Grown.new(server)
    foreign = await first_entry(server, other)
    names: dict[str, Any] = {"project_id": grown.project_id}
    await grown.published(1)
    for entry_id in ("0" * 32, foreign):
        for name in ("GetInclusionProof", "WaitForInclusion"):
            failure = await failed(server.admin, name, **names, entry_id=entry_id)
            assert (failure.code, failure.reason) == ("NOT_FOUND", "AUDIT_ENTRY_UNKNOWN")
    for entry_id in ("x", "p/1/0", f"{grown.project_id}/1/99", f"{grown.project_id}/2/1"):
        failure = await failed(server.admin, "GetInclusionProof", project_id="instance", entry_id=entry_id)
        assert failure.reason == "AUDIT_ENTRY_UNKNOWN"
    async with held(server):
        await grown.grow(2)
    await grown.published(3)
    for size in (2, 4, 1_000):
        failure = await failed(server.admin, "GetInclusionProof", **names, index=0, checkpoint_size=size)
        assert (failure.code, failure.reason) == ("NOT_FOUND", "CHECKPOINT_UNKNOWN")
    failure = await failed(server.admin, "GetCheckpoint", **names, cosigned=True)
    assert (failure.reason, "cosigned" in failure.message) == ("CHECKPOINT_UNKNOWN", True)
    async with held(server):
        empty = await Grown.new(server)
        names = {"project_id": empty.project_id}
        for name in ("GetConsistencyProof", "GetTile", "GetEntryBundle"):
            assert (await failed(server.admin, name, **names)).reason == "CHECKPOINT_UNKNOWN"
        assert (await failed(server.admin, "GetInclusionProof", **names, index=0)).reason == "CHECKPOINT_UNKNOWN"
        assert not (await server.admin("ListCheckpoints", request_of("ListCheckpoints", **names))).checkpoints


# Input.

READERS = [
    name
    for name, method in METHODS.items()
    if method.containing_service.name == "LogService" and name != "AddCosignatures"
]
BIG = 2**53
BAD: list[tuple[str, dict[str, Any], str]] = [
    ("GetCheckpoint", {"minimum_size": -1}, "minimumSize"),
    ("GetCheckpoint", {"minimum_size": BIG}, "minimumSize"),
    ("GetCheckpoint", {"minimum_size": BIG, "cosigned": True}, "minimumSize"),
    ("ListCheckpoints", {"page_size": -1}, "pageSize"),
    ("ListCheckpoints", {"page_token": "x"}, "pageToken"),
    ("GetInclusionProof", {}, "entryId"),
    ("GetInclusionProof", {"entry_id": "0" * 32, "index": 0}, "entryId"),
    ("GetInclusionProof", {"entry_id": "0" * 31}, "entryId"),
    ("GetInclusionProof", {"entry_id": "A" * 32}, "entryId"),
    ("GetInclusionProof", {"entry_id": "x" * 1_000_000}, "entryId"),
    ("GetInclusionProof", {"index": -1}, "index"),
    ("GetInclusionProof", {"index": BIG}, "index"),
    ("GetInclusionProof", {"index": 0, "checkpoint_size": -1}, "checkpointSize"),
    ("GetInclusionProof", {"index": 0, "checkpoint_size": BIG}, "checkpointSize"),
    ("WaitForInclusion", {}, "entryId"),
    ("WaitForInclusion", {"entry_id": "0" * 33}, "entryId"),
    ("GetConsistencyProof", {"first_size": -1}, "firstSize"),
    ("GetConsistencyProof", {"first_size": BIG}, "firstSize"),
    ("GetConsistencyProof", {"second_size": -1}, "secondSize"),
    ("GetConsistencyProof", {"second_size": BIG}, "secondSize"),
    ("GetConsistencyProof", {"first_size": 2, "second_size": 1}, "firstSize"),
    ("GetConsistencyProof", {"first_size": 2_000, "second_size": 1_000}, "firstSize"),
    ("GetTile", {"level": -1}, "level"),
    ("GetTile", {"level": 8}, "level"),
    ("GetTile", {"index": -1}, "index"),
    ("GetTile", {"index": BIG}, "index"),
    ("GetTile", {"width": -1}, "width"),
    ("GetTile", {"width": 257}, "width"),
    ("GetEntryBundle", {"index": -1}, "index"),
    ("GetEntryBundle", {"index": BIG}, "index"),
    ("GetEntryBundle", {"width": -1}, "width"),
    ("GetEntryBundle", {"width": 257}, "width"),
    *((name, {"project_id": bad}, "projectId") for name in READERS for bad in ("", "P", "a" * 64, "a/b", "a\n")),
    *(("AddCosignatures", {"size": size, "cosignatures": b"x\n"}, "size") for size in (-1, 0, BIG)),
    ("AddCosignatures", {"request_id": "", "size": 1}, "requestId"),
    ("AddCosignatures", {"request_id": "a b", "size": 1}, "requestId"),
    ("AddCosignatures", {"size": 1}, "cosignatures"),
]


@pytest.mark.parametrize(
    ("name", "fields", "field"), BAD, ids=[f"{each[0]} {each[2]} {at}" for at, each in enumerate(BAD)]
)
async def test_bad_input_is_refused_by_its_field(
    name: str, fields: dict[str, Any], field: str, history: History
) -> None:
    """Before anything is looked up, and whatever the log is like."""
    parts = {"project_id": history.project_id, **fields}
    if name == "AddCosignatures":
        parts = {"request_id": secrets.token_hex(8), **parts}
    failure = await failed(history.server.admin, name, **parts)
    assert failure.code == "INVALID_ARGUMENT"
    assert next(iter(failure.fields)).split(".")[0] == field, failure


async def test_a_page_token_is_of_its_log(history: History) -> None:
    """One of another project's, or of another method's list, is refused."""
    token = (await history.ask("ListCheckpoints", page_size=1)).next_page_token
    for name, project in (("ListCheckpoints", "system"), ("ListAuditEntries", history.project_id)):
        failure = await failed(history.server.admin, name, project_id=project, page_token=token)
        assert failure.reason == "PAGE_TOKEN_INVALID"


# Witnesses.


def cosign(
    project_id: str, size: int, *lines: bytes, request_id: str = "", validate_only: bool = False
) -> log_pb2.AddCosignaturesRequest:
    """Adds signature lines to a checkpoint."""
    return log_pb2.AddCosignaturesRequest(
        project_id=project_id,
        request_id=request_id or secrets.token_hex(8),
        validate_only=validate_only,
        size=size,
        cosignatures=b"".join(lines),
    )


def signers_of(note: bytes, key: Verifier) -> list[str]:
    """Who of the log and all witnesses has signed a note; every signature is good."""
    keys = [key, *(each.key for each in (*WITNESSES, STRANGER))]
    return [each.name for each in opened(note, keys)[1]]


async def test_cosignatures_of_witnesses_are_kept_under_their_checkpoint(server: Server, grown: Grown) -> None:
    """One, then another, then both again: each witness once, under the very note, and on the record of the project."""
    key = await grown.key()
    first = (await grown.published(1)).note
    await grown.grow()
    second = (await grown.published(2)).note
    one, two = (each.line(first) for each in WITNESSES)
    names = [each.key.name for each in WITNESSES]

    reply = await server.admin("AddCosignatures", cosign(grown.project_id, 1, one))
    assert signers_of(reply.note, key) == [key.name, names[0]]
    assert reply.note.startswith(first)
    newest = await server.admin("GetCheckpoint", request_of("GetCheckpoint", project_id=grown.project_id))
    assert newest.note == second
    cosigned = request_of("GetCheckpoint", project_id=grown.project_id, cosigned=True)
    assert (await server.admin("GetCheckpoint", cosigned)).note == reply.note

    reply = await server.admin("AddCosignatures", cosign(grown.project_id, 1, two))
    assert sorted(signers_of(reply.note, key)[1:]) == names
    later = WITNESSES[0].line(first, time=1_800_000_000)
    again = await server.admin("AddCosignatures", cosign(grown.project_id, 1, later, two, two))
    assert sorted(again.note.splitlines()) == sorted(reply.note.splitlines())

    await server.admin("AddCosignatures", cosign(grown.project_id, 2, WITNESSES[1].line(second)))
    assert (await server.admin("GetCheckpoint", cosigned)).size == 2
    request = request_of("ListCheckpoints", project_id=grown.project_id)
    listed = (await server.admin("ListCheckpoints", request)).checkpoints
    assert [len(signers_of(each.note, key)) for each in listed][:2] == [3, 2]
    proof = request_of("GetInclusionProof", project_id=grown.project_id, index=0, checkpoint_size=1)
    found = await server.admin("GetInclusionProof", proof)
    assert found.checkpoint.note == listed[0].note == proof_of(found.tlog_proof)[2]

    entries = await server.admin("ListAuditEntries", request_of("ListAuditEntries", project_id=grown.project_id))
    made = [each for each in entries.audit_entries if each.action == "log.add_cosignatures"]
    assert [[record.kind for record in each.records] for each in made] == [["log_cosignature"]] * 2 + [[]] + [
        ["log_cosignature"]
    ]
    assert [each.outcome for each in made] == [1, 1, 2, 1]
    assert made[0].resource == f"projects/{grown.project_id}/log/checkpoints/1"


async def test_both_witnesses_may_come_in_one_call_with_strangers_beside_them(server: Server, grown: Grown) -> None:
    """Lines by keys that the policy does not name are left out, wherever they stand and whatever they hold."""
    key = await grown.key()
    note = (await grown.published(1)).note
    log_line = note.rpartition(b"\n\n")[2]
    nonsense = STRANGER.line(note)[:-6] + b"AAAA=\n"
    lines = [nonsense, WITNESSES[1].line(note), STRANGER.line(note), log_line, WITNESSES[0].line(note)]
    reply = await server.admin("AddCosignatures", cosign(grown.project_id, 1, *lines))
    assert sorted(signers_of(reply.note, key)) == sorted([key.name, *(each.key.name for each in WITNESSES)])
    assert len(reply.note.rpartition(b"\n\n")[2].splitlines()) == 3


async def test_cosignatures_that_are_not_good_are_refused_and_leave_nothing(server: Server, grown: Grown) -> None:
    """Of no witness of the policy, of another checkpoint, log or time, changed, and good ones in the same call."""
    key = await grown.key()
    note = (await grown.published(1)).note
    await grown.grow()
    second = (await grown.published(2)).note
    good = WITNESSES[0].line(note)
    data = bytearray(base64.b64decode(good.split(b" ")[2]))
    other_time = bytearray(data)
    other_time[11] ^= 1
    cut = data[:-1]

    def line(signature: Iterable[int], name: str = WITNESSES[0].key.name) -> bytes:
        return f"— {name} {base64.b64encode(bytes(signature)).decode()}\n".encode()

    assert line(data) == good
    bad = [WITNESSES[0].line(second), line(other_time), line(cut), line([*data, 0]), line(data[:5])]
    bad += [line([*data[:at], data[at] ^ 1, *data[at + 1 :]]) for at in range(4, len(data), 7)]
    bad.append(WITNESSES[0].line(note.replace(b"/1\n", b"/2\n", 1)))
    for each in bad:
        for lines in ((each,), (WITNESSES[1].line(note), each), (each, WITNESSES[1].line(note))):
            answer = await ask(server.admin, "AddCosignatures", cosign(grown.project_id, 1, *lines))
            assert answer.failure is not None
            assert (answer.failure.code, answer.reason) == ("INVALID_ARGUMENT", "SIGNATURE_INVALID")
            assert list(answer.failure.fields) == ["cosignatures"]
    unknown = [STRANGER.line(note), line(data, STRANGER.key.name), line([*data[:3], data[3] ^ 1, *data[4:]])]
    for each in unknown:
        answer = await ask(server.admin, "AddCosignatures", cosign(grown.project_id, 1, each))
        assert answer.failure is not None
        assert (answer.failure.code, answer.reason) == ("NOT_FOUND", "WITNESS_UNKNOWN")
    for size in (3, 1_000):
        answer = await ask(server.admin, "AddCosignatures", cosign(grown.project_id, size, good))
        assert answer.reason == "CHECKPOINT_UNKNOWN"
    answer = await ask(server.admin, "AddCosignatures", cosign(grown.project_id, 1, good, validate_only=True))
    assert (answer.reason, answer.receipt) == ("", b"")
    assert len(signers_of(answer.reply.note, key)) == 2
    failure = await failed(server.admin, "GetCheckpoint", project_id=grown.project_id, cosigned=True)
    assert failure.reason == "CHECKPOINT_UNKNOWN"


async def test_a_retry_outlives_a_change_of_the_policy(server: Server, grown: Grown, tmp_path: Path) -> None:
    """The same call on a server that names no witness any more is answered as before; a new one is refused."""
    note = (await grown.published(1)).note
    request = cosign(grown.project_id, 1, WITNESSES[0].line(note))
    first = await ask(server.admin, "AddCosignatures", request)
    shutil.copy(server.settings.data_dir / "admin.token", tmp_path)
    (tmp_path / "log").mkdir()
    shutil.copy(server.settings.data_dir / "log" / "log.key", tmp_path / "log")
    async with serving(server.settings.database_url.get_secret_value(), tmp_path) as other:
        again = await ask(other.admin, "AddCosignatures", request)
        assert again == replace(first, replayed=True)
        new = await ask(other.admin, "AddCosignatures", cosign(grown.project_id, 1, WITNESSES[0].line(note)))
        assert new.reason == "WITNESS_UNKNOWN"


async def test_lines_that_are_none_are_refused_by_their_field(server: Server, grown: Grown) -> None:
    """Malformed, too many, too long; limits are looked at before a line is."""
    note = (await grown.published(1)).note
    good = WITNESSES[0].line(note)
    bad = {
        "nothing": b"",
        "no newline": good[:-1],
        "an empty line": b"\n",
        "an empty line after": good + b"\n",
        "the note": note,
        "a hyphen": good.replace("—".encode(), b"-"),
        "two spaces": good.replace(b" ", b"  ", 1),
        "no base64": good[:-5] + b"*=\n",
        "not UTF-8": b"\xff\xfe\n",
        "NUL": good.replace(b"witness", b"wit\x00ness"),
        "65 lines": good * 65,
        "10,000 lines": b"x\n" * 10_000,
        "too long": b"x" * (64 << 10) + b"\n",
    }
    for what, lines in bad.items():
        answer = await ask(server.admin, "AddCosignatures", cosign(grown.project_id, 1, lines))
        assert answer.failure is not None
        assert answer.failure.code == "INVALID_ARGUMENT", what
        assert next(iter(answer.failure.fields)).split(".")[0].split("[")[0] == "cosignatures", (what, answer.failure)
    assert not (await ask(server.admin, "AddCosignatures", cosign(grown.project_id, 1, good * 64))).failure


async def test_a_call_that_is_repeated_adds_nothing(server: Server, grown: Grown) -> None:
    """The same request_id answers with the first reply and receipt; with other lines it is refused."""
    note = (await grown.published(1)).note
    request = cosign(grown.project_id, 1, WITNESSES[0].line(note))
    first, again = [await ask(server.admin, "AddCosignatures", request) for _ in range(2)]
    assert (first.replayed, again.replayed) == (False, True)
    assert (first.reply, first.receipt) == (again.reply, again.receipt)
    request.cosignatures = WITNESSES[1].line(note)
    assert (await ask(server.admin, "AddCosignatures", request)).reason == "REQUEST_ID_REUSED"


async def test_calls_that_add_one_cosignature_at_once_add_it_once(server: Server, grown: Grown) -> None:
    """Ten calls with the same line, and ten with that of the other witness."""
    key = await grown.key()
    note = (await grown.published(1)).note
    requests = [cosign(grown.project_id, 1, WITNESSES[at % 2].line(note, time=at + 1)) for at in range(20)]
    answers = await asyncio.gather(*(ask(server.admin, "AddCosignatures", request) for request in requests))
    assert not any(answer.failure for answer in answers)
    found = await server.admin("GetCheckpoint", request_of("GetCheckpoint", project_id=grown.project_id, cosigned=True))
    assert sorted(signers_of(found.note, key)[1:]) == [each.key.name for each in WITNESSES]


async def test_the_instances_log_is_cosigned_too(server: Server) -> None:
    """Its checkpoints take cosignatures from roles of the instance, on the record of the system project."""
    log = (await settled(server))["instance"]
    key = verifier_of(log.keys[0].vkey)
    note = (await server.admin("GetCheckpoint", request_of("GetCheckpoint", project_id="instance"))).note
    size = head_of(note, key).size
    request = cosign("instance", size, *(each.line(note) for each in WITNESSES))
    answer = await ask(server.admin, "AddCosignatures", request)
    assert sorted(signers_of(answer.reply.note, key)[1:]) == [each.key.name for each in WITNESSES]
    found = await server.admin("GetCheckpoint", request_of("GetCheckpoint", project_id="instance", cosigned=True))
    assert (found.size, sorted(found.note.splitlines())) == (size, sorted(answer.reply.note.splitlines()))
    receipt = receipt_of(answer.receipt, await key_of_log(server, "system"))
    entry = await server.admin(
        "GetAuditEntry", request_of("GetAuditEntry", project_id="system", entry_id=receipt.entry_id)
    )
    assert (entry.action, entry.resource) == ("log.add_cosignatures", f"projects/instance/log/checkpoints/{size}")
    assert (await ask(server.admin, "AddCosignatures", request)).replayed
    auditor = await server.caller("system", "instance_auditor")
    assert not (await ask(auditor, "AddCosignatures", cosign("instance", size, WITNESSES[0].line(note)))).failure


# Receipts.


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a receipt says."""

    leaf_hash: bytes
    entry_id: str
    promised_by: str


def receipt_of(note: bytes, key: Verifier) -> Receipt:
    """A receipt that the log's key has signed for its own origin."""
    (header, origin, leaf_hash, entry_id, promised_by), signers = opened(note, [key])
    assert (header, origin, signers) == ("animus/receipt/v1", key.name, [key])
    return Receipt(base64.b64decode(leaf_hash, validate=True), entry_id, promised_by)


async def check_kept(server: Server, project_id: str, note: bytes) -> audit_pb2.AuditEntry:
    """The entry of a receipt: proven to be in the log, and nothing but what the receipt says."""
    key = await key_of_log(server, project_id)
    receipt = receipt_of(note, key)
    proof = await wait(server.admin, project_id, receipt.entry_id)
    head = head_of(proof.checkpoint.note, key)
    assert includes(head.root, head.size, proof.index, receipt.leaf_hash, proof.hashes)
    entry: audit_pb2.AuditEntry = await server.admin(
        "GetAuditEntry", request_of("GetAuditEntry", project_id=project_id, entry_id=receipt.entry_id)
    )
    assert sha256(b"\x00" + entry.document).digest() == receipt.leaf_hash
    assert entry.index == proof.index
    promised = entry.time.ToMicroseconds() + 60_000_000
    entry.time.FromMicroseconds(promised)
    assert entry.time.ToJsonString()[:19] == receipt.promised_by[:19]
    assert int(receipt.promised_by[20:26]) == promised % 1_000_000
    return entry


async def test_a_change_is_answered_with_a_receipt_that_is_kept(server: Server, grown: Grown) -> None:
    """Made, repeated, and with nothing new to write: each entry its own receipt, and a replay the first one's bytes."""
    request = dataset(grown.project_id)
    first, again = [await ask(server.admin, "CreateDataset", request) for _ in range(2)]
    assert (first.replayed, again.replayed) == (False, True)
    assert first.receipt == again.receipt != b""
    entry = await check_kept(server, grown.project_id, first.receipt)
    assert (entry.action, entry.outcome) == ("dataset.create", audit_pb2.AUDIT_OUTCOME_ACCEPTED)
    assert (await ask(server.admin, "CreateDataset", request)).receipt == first.receipt
    new, unchanged = (await grown.grow())[0], (await grown.grow())[0]
    assert new.receipt != unchanged.receipt
    entry = await check_kept(server, grown.project_id, unchanged.receipt)
    assert entry.outcome == audit_pb2.AUDIT_OUTCOME_UNCHANGED


async def test_a_refusal_is_answered_with_a_receipt_that_is_kept(server: Server, grown: Grown) -> None:
    """Each refusal its own, those of one request_id too: none was decided before."""
    await server.admin("CreateDataset", dataset(grown.project_id))
    request = dataset(grown.project_id)
    request.request_id = "again"
    answers = [await ask(server.admin, "CreateDataset", request) for _ in range(2)]
    request = dataset(grown.project_id)
    request.dataset.description = "other"
    answers.append(await ask(server.admin, "CreateDataset", request))
    reasons = ["DATASET_EXISTS", "DATASET_EXISTS", "REQUEST_ID_REUSED"]
    assert [answer.reason for answer in answers] == reasons
    assert len({answer.receipt for answer in answers}) == 3
    for answer, reason in zip(answers, reasons, strict=True):
        entry = await check_kept(server, grown.project_id, answer.receipt)
        assert (entry.outcome, entry.reason) == (audit_pb2.AUDIT_OUTCOME_REFUSED, reason)


async def test_a_denial_is_answered_with_a_receipt_of_the_callers_own_log(server: Server, grown: Grown) -> None:
    """For a role that is missing, and for a project that is not the caller's, which learns nothing of that one."""
    other = await Grown.new(server)
    viewer = await server.caller(grown.project_id, "viewer")
    denied = await ask(viewer, "CreateDataset", dataset(grown.project_id))
    foreign = await ask(viewer, "GetLog", request_of("GetLog", project_id=other.project_id))
    nowhere = await ask(viewer, "GetLog", request_of("GetLog", project_id="nowhere"))
    assert [each.reason for each in (denied, foreign, nowhere)] == [
        "ROLE_MISSING",
        "PROJECT_UNKNOWN",
        "PROJECT_UNKNOWN",
    ]
    for answer in (denied, foreign, nowhere):
        entry = await check_kept(server, grown.project_id, answer.receipt)
        assert (entry.outcome, entry.reason) == (audit_pb2.AUDIT_OUTCOME_DENIED, answer.reason)
    assert (await size_of(server, other.project_id)).size <= 1


async def test_what_is_not_logged_has_no_receipt(server: Server, grown: Grown) -> None:
    """Reads, trial calls, calls that are malformed or ask for what is not there, and those without a good token."""
    log = await grown.published(1)
    trial = dataset(grown.project_id)
    trial.validate_only = True
    assert (await ask(server.admin, "CreateDataset", trial)).receipt == b""
    await server.admin("CreateDataset", dataset(grown.project_id))
    trial.request_id = "trial"
    conflict = await ask(server.admin, "CreateDataset", trial)
    assert (conflict.reason, conflict.receipt) == ("DATASET_EXISTS", b"")
    invalid = dataset(grown.project_id, "No Name")
    unknown = request_of("WaitForInclusion", project_id=grown.project_id, entry_id="0" * 32)
    asked = [("CreateDataset", invalid), ("WaitForInclusion", unknown)]
    asked.append(("GetLog", request_of("GetLog", project_id=grown.project_id)))
    for name, request in asked:
        assert (await ask(server.admin, name, request)).receipt == b""
    stranger = Caller(server.channel, f"animus_{grown.project_id}_{'x' * 43}")
    answer = await ask(stranger, "CreateDataset", dataset(grown.project_id, "new"))
    assert (answer.reason, answer.receipt) == ("TOKEN_INVALID", b"")
    assert (await grown.published(2)).size == log.size + 1


async def test_every_method_that_changes_something_gives_a_receipt(server: Server, grown: Grown) -> None:
    """The receipt of a project's creation is of its own log, that of a token's of the project that it is for."""
    created = project_pb2.Project(project_id=f"{grown.project_id}-n", display_name="", description="")
    request = project_pb2.CreateProjectRequest(project_id=created.project_id, request_id="new", project=created)
    answer = await ask(server.admin, "CreateProject", request)
    entry = await check_kept(server, created.project_id, answer.receipt)
    assert (entry.action, entry.index) == ("project.create", 0)


# Servers without the signer's state.


async def test_a_server_that_does_not_sign_takes_up_another_key(
    postgres: EmbeddedPostgres, admin: AsyncEngine, template: str, tmp_path: Path
) -> None:
    """It seals and promises by the key that is current now; a file that it cannot use is a problem that it names."""
    async with served(postgres, admin, template, tmp_path / "one") as first:
        folder = tmp_path / "two" / "log"
        folder.mkdir(parents=True)
        shutil.copy(tmp_path / "one" / "log" / "log.key", folder)
        shutil.copy(tmp_path / "one" / "admin.token", tmp_path / "two")
        async with serving(first.settings.database_url.get_secret_value(), tmp_path / "two") as second:
            log = second.running.log
            assert log.leader is None
            (old,) = log.keyring.keys
            new = generate_signing_key(old.name, secrets.token_bytes)
            log.keyring.path.write_text(f"{dump_signing_key(new)}\n{dump_signing_key(old)}\n")

            async def taken_up() -> bool:
                return log.keyring.keys == (new, old)

            await until(taken_up, "the new key")
            log.keyring.path.write_text("nothing\n")

            async def named() -> bool:
                return any(str(log.keyring.path) in problem for problem in log.problems)

            await until(named, "the file as a problem")
            assert log.keyring.keys == (new, old)
