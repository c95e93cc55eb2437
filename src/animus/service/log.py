"""LogService: what proves the audit log.

Nothing is answered that was not checked first: checkpoints against the keys, proofs against checkpoints, entries
against their hashes. So a table that was tampered with makes errors that name the place, and no false proof.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace

from animus.codec import encode, timestamp
from animus.domain import merkle, tile
from animus.domain.checkpoint import Checkpoint, TlogProof, dump_proof
from animus.domain.document import seal
from animus.domain.errors import Invalid, NotFound, Refused, Violation, invalid
from animus.domain.log import MAX_SIZE, Cosignature, damaged
from animus.domain.merkle import Node
from animus.domain.names import INSTANCE_LOG, SYSTEM_PROJECT, check_length, check_within, project_name
from animus.domain.note import Key, Signature, dump_key, dump_signature_lines, load_signature_lines
from animus.domain.run import check_random_id
from animus.domain.tile import WIDTH, Tile, dump_bundle
from animus.service.calls import Caller, at_path, call_of
from animus.service.log_growth import LogGrowth
from animus.service.log_identity import LogIdentity, checkpoint_unknown, status_of, vkey_of
from animus.service.log_leaves import check_place, check_whole, data_of, missing, nodes_of
from animus.service.pages import Pages
from animus.signing import is_good
from animus.store.log import StoredCheckpoint
from animus.store.unit_of_work import Answer, Change, UnitOfWork, View
from animus.v1 import log_pb2 as pb

MAX_LEVEL = 7
MAX_COSIGNATURES = 64
MAX_COSIGNATURE_BYTES = 64 << 10


class LogService:
    """Proves what the logs hold."""

    def __init__(
        self,
        work: UnitOfWork,
        pages: Pages,
        identity: LogIdentity,
        growth: LogGrowth,
        publish_soon: Callable[[], None],
        witnesses: Iterable[Key],
    ) -> None:
        self.work = work
        self.pages = pages
        self.identity = identity
        self.growth = growth
        self.publish_soon = publish_soon
        self.witnesses = {(key.name, key.key_id): key for key in witnesses}

    async def GetLog(self, request: pb.GetLogRequest, caller: Caller) -> pb.Log:
        """Returns a log's origin, keys and size, and what is wrong with it."""
        origin = self.identity.origin(request.project_id)

        async def query(view: View) -> pb.Log:
            size = await view.log.size()
            reply = pb.Log(
                origin=origin,
                epoch=self.identity.epoch,
                size=size.size,
                published_size=size.published_size,
                queued=size.queued,
                problems=await view.log.problems(),
            )
            for epoch in await view.log.epochs():
                encode(epoch, reply.epochs.add())
            return reply

        reply = await self.work.read_log(request.project_id, query)
        for facts in self.identity.keys:
            status = status_of(facts)
            key = reply.keys.add(
                vkey=dump_key(vkey_of(facts, origin)),
                status=pb.LogKeyStatus.Value(f"LOG_KEY_STATUS_{status.name}"),
                create_time=timestamp(facts.key.time),
            )
            for end in facts.ends:
                if end.value.status is status:
                    key.end_time.CopyFrom(timestamp(end.time))
                    key.reason = end.value.reason
        return reply

    async def GetCheckpoint(self, request: pb.GetCheckpointRequest, caller: Caller) -> pb.LogCheckpoint:
        """Returns the newest checkpoint, once it has the size that is asked for."""
        check_within(request.minimum_size, 0, MAX_SIZE, "minimumSize")

        async def query(view: View) -> StoredCheckpoint | None:
            return await view.log.checkpoint(minimum=request.minimum_size, cosigned=request.cosigned)

        found = await self.work.read_log(request.project_id, query)
        if found is None and not request.cosigned:
            size = await self.work.read_log(request.project_id, lambda view: view.log.size())
            coming = size.size + size.queued
            if request.minimum_size > coming:
                raise log_too_small(request.project_id, coming)
            if coming:
                self.publish_soon()
                await self.growth.wait_published(request.project_id, max(1, request.minimum_size))
                found = await self.work.read_log(request.project_id, query)
        if found is None:
            raise checkpoint_unknown(request.project_id, "a cosigned one" if request.cosigned else "one yet")
        return self._message(request.project_id, found)

    async def ListCheckpoints(self, request: pb.ListCheckpointsRequest, caller: Caller) -> pb.ListCheckpointsResponse:
        """Lists checkpoints by epoch and size."""
        query_of = (caller.method, request.project_id)
        size, place = self.pages.size(request), self.pages.place(request, *query_of)
        after = (int(place[0]), int(place[1])) if place else (0, 0)
        found = await self.work.read_log(request.project_id, lambda view: view.log.checkpoints(after, size + 1))
        reply = pb.ListCheckpointsResponse()
        for stored in found[:size]:
            reply.checkpoints.append(self._message(request.project_id, stored))
        if len(found) > size:
            last = found[size - 1]
            reply.next_page_token = self.pages.token((last.epoch, last.size), *query_of)
        return reply

    async def GetInclusionProof(self, request: pb.GetInclusionProofRequest, caller: Caller) -> pb.InclusionProof:
        """Proves that a leaf is in the tree of a checkpoint."""
        check_within(request.checkpoint_size, 0, MAX_SIZE, "checkpointSize")
        if bool(request.entry_id) == request.HasField("index"):
            raise invalid("entryId", "and index: give exactly one of them")
        if request.entry_id:
            self._check_entry_id(request.project_id, request.entry_id)
        else:
            check_within(request.index, 0, MAX_SIZE, "index")

        async def query(view: View) -> pb.InclusionProof:
            index: int | None = request.index
            if request.entry_id:
                index = await self._index_of(view, request.entry_id)
            return await self._prove(view, request.entry_id, index, request.checkpoint_size)

        return await self.work.read_log(request.project_id, query)

    async def WaitForInclusion(self, request: pb.WaitForInclusionRequest, caller: Caller) -> pb.InclusionProof:
        """Waits for a checkpoint that covers an entry, and proves it."""
        self._check_entry_id(request.project_id, request.entry_id)

        async def find(view: View) -> tuple[int | None, int]:
            size = (await view.log.size()).size  # first: an entry without an index after this gets one beyond it
            return await self._index_of(view, request.entry_id), size

        while True:
            index, size = await self.work.read_log(request.project_id, find)
            if index is not None:
                break
            await self.growth.wait_size(request.project_id, size + 1)
        self.publish_soon()
        await self.growth.wait_published(request.project_id, index + 1)
        return await self.work.read_log(request.project_id, lambda view: self._prove(view, request.entry_id, index, 0))

    async def GetConsistencyProof(self, request: pb.GetConsistencyProofRequest, caller: Caller) -> pb.ConsistencyProof:
        """Proves that one tree is a prefix of another."""
        check_within(request.first_size, 0, MAX_SIZE, "firstSize")
        check_within(request.second_size, 0, MAX_SIZE, "secondSize")

        if 0 < request.second_size < request.first_size:
            raise invalid("firstSize", f"is {request.first_size}: give no more than secondSize, {request.second_size}")

        async def query(view: View) -> pb.ConsistencyProof:
            newest, _ = await self._checkpoint(view, 0)
            first, second = request.first_size, request.second_size or newest.size
            if max(first, second) > newest.size:
                raise log_too_small(view.project_id, newest.size)
            reply = pb.ConsistencyProof(first_size=first, second_size=second)
            if 0 < first < second:
                nodes = [*merkle.consistency_nodes(first, second), *merkle.range_nodes(first)]
                if second < newest.size:
                    nodes += merkle.consistency_nodes(second, newest.size)
                nodes += merkle.range_nodes(second)
                found = await nodes_of(view, nodes, newest.size)
                reply.hashes.extend(merkle.prove_consistency(first, second, found))
                _check_consistent(first, second, newest, found)
            return reply

        return await self.work.read_log(request.project_id, query)

    async def GetTile(self, request: pb.GetTileRequest, caller: Caller) -> pb.Tile:
        """Returns the hashes of a tile."""
        check_within(request.level, 0, MAX_LEVEL, "level")
        wanted = _tile(request.level, request.index, request.width)

        async def query(view: View) -> pb.Tile:
            await self._check_tile(view, wanted)
            hashes = (await view.log.tiles([wanted]))[wanted]
            check_whole(wanted, hashes)
            return pb.Tile(hashes=hashes)

        return await self.work.read_log(request.project_id, query)

    async def GetEntryBundle(self, request: pb.GetEntryBundleRequest, caller: Caller) -> pb.EntryBundle:
        """Returns the entries below a tile, hashed again."""
        wanted = _tile(0, request.index, request.width)
        first = wanted.index * WIDTH

        async def query(view: View) -> pb.EntryBundle:
            await self._check_tile(view, wanted)
            leaves = await view.log.leaves(first, first + wanted.width)
            entries = []
            for index, leaf in zip(range(first, first + wanted.width), leaves, strict=False):
                check_place(leaf, index)
                entries.append(data_of(leaf, index))
            if len(entries) < wanted.width:
                raise missing(first + len(entries))
            return pb.EntryBundle(entries=dump_bundle(entries))

        return await self.work.read_log(request.project_id, query)

    async def AddCosignatures(self, request: pb.AddCosignaturesRequest, caller: Caller) -> Answer:
        """Adds cosignatures of witnesses that the server's policy names."""
        check_within(request.size, 1, MAX_SIZE, "size")
        if len(request.cosignatures) > MAX_COSIGNATURE_BYTES:
            raise invalid("cosignatures", f"has {len(request.cosignatures)} bytes; {MAX_COSIGNATURE_BYTES} are allowed")
        with at_path("cosignatures"):
            lines = load_signature_lines(request.cosignatures)
        if len(lines) > MAX_COSIGNATURES:
            raise invalid("cosignatures", f"has {len(lines)} lines; {MAX_COSIGNATURES} are allowed")
        project_id = request.project_id
        found = await self.work.read_log(project_id, lambda view: view.log.checkpoint(request.size))
        name = f"{project_name(project_id)}/log/checkpoints/{request.size}"

        async def decide(view: View) -> Change:  # judges only what is new: a retry outlives a change of the policy
            if found is None:
                raise checkpoint_unknown(project_id, f"one of size {request.size}")
            records = []
            for vkey, value in self._cosignatures(project_id, found, lines).items():
                known = await view.find(Cosignature, log=project_id, epoch=found.epoch, size=found.size, vkey=vkey)
                if known is None:
                    records.append(seal(value))
            new = tuple(record.value.line for record in records)
            before = tuple(line for line in found.cosignatures if line not in new)
            reply = self._message(project_id, replace(found, cosignatures=(*before, *new)))
            return Change("log.add_cosignatures", name, tuple(records), (), reply)

        call = call_of(caller, request)
        if project_id == INSTANCE_LOG:  # has no records of its own
            call = replace(call, project_id=SYSTEM_PROJECT)
        return await self.work.change(call, decide)

    def _cosignatures(
        self, project_id: str, stored: StoredCheckpoint, lines: Iterable[Signature]
    ) -> dict[str, Cosignature]:
        """Those by witnesses of the policy, each of which must be good, by vkey."""
        text = stored.note.decode().rpartition("\n\n")[0] + "\n"
        cosignatures: dict[str, Cosignature] = {}
        for signature in lines:
            key = self.witnesses.get((signature.name, signature.key_id))
            if key is None:
                continue
            if not is_good(key, text, signature.signature):
                raise Invalid(
                    [Violation("cosignatures", f"hold one by {key.name} that is not good for this checkpoint")],
                    "SIGNATURE_INVALID",
                )
            line = dump_signature_lines([signature]).decode().removesuffix("\n")
            vkey = dump_key(key)
            cosignatures.setdefault(vkey, Cosignature(project_id, stored.epoch, stored.size, vkey, line))
        if not cosignatures:
            raise NotFound(
                "WITNESS_UNKNOWN",
                "none of the cosignatures is from a witness of ANIMUS_LOG_POLICY_FILE",
                kind="Witness",
                name=", ".join(signature.name for signature in lines),
            )
        return cosignatures

    def _message(self, project_id: str, stored: StoredCheckpoint) -> pb.LogCheckpoint:
        checkpoint = self.identity.verified(project_id, stored)
        return pb.LogCheckpoint(
            origin=checkpoint.origin,
            size=checkpoint.size,
            root_hash=checkpoint.root_hash.hex(),
            note=stored.cosigned_note,
            create_time=timestamp(stored.create_time),
        )

    async def _checkpoint(self, view: View, size: int) -> tuple[Checkpoint, StoredCheckpoint]:
        """The checkpoint of a size, or with 0 the newest."""
        found = await view.log.checkpoint(size)
        if found is None:
            raise checkpoint_unknown(view.project_id, f"one of size {size}" if size else "one yet")
        return self.identity.verified(view.project_id, found), found

    async def _prove(self, view: View, entry_id: str, index: int | None, size: int) -> pb.InclusionProof:
        checkpoint, stored = await self._checkpoint(view, size)
        if index is None or index >= checkpoint.size:
            raise Refused(
                "ENTRY_PENDING",
                f"the checkpoint of size {checkpoint.size} does not cover the entry: call WaitForInclusion",
                subject=entry_id or f"index {index}",
                size=str(checkpoint.size),
            )
        leaf = await view.log.leaf(index)
        if leaf is None:
            raise missing(index)
        hashes = merkle.prove_inclusion(
            index,
            checkpoint.size,
            await nodes_of(view, merkle.inclusion_nodes(index, checkpoint.size), checkpoint.size),
        )
        leaf_hash = merkle.leaf_hash(data_of(leaf, index))
        try:
            merkle.check_inclusion(hashes, index, checkpoint.size, leaf_hash, checkpoint.root_hash)
        except Invalid:
            raise damaged(
                f"the leaf {index} and the tiles beside it do not lead to the signed root of size {checkpoint.size}",
                index=str(index),
                entry=leaf.entry_id,
                checkpoint_size=str(checkpoint.size),
            ) from None
        note = stored.cosigned_note
        return pb.InclusionProof(
            entry_id=leaf.entry_id,
            index=index,
            leaf_hash=leaf_hash.hex(),
            hashes=hashes,
            checkpoint=self._message(view.project_id, stored),
            tlog_proof=dump_proof(TlogProof(index, hashes, b"", note)),
        )

    async def _check_tile(self, view: View, wanted: Tile) -> None:
        newest, _ = await self._checkpoint(view, 0)
        row = newest.size >> (8 * wanted.level)
        if wanted.index * WIDTH + wanted.width > row:
            raise NotFound(
                "TILE_UNKNOWN",
                f"the tree of {newest.size} leaves has no such tile",
                kind="Tile",
                name=f"{project_name(view.project_id)}/log/{tile.tile_path(wanted)}",
            )

    async def _index_of(self, view: View, entry_id: str) -> int | None:
        known, index = await view.log.index_of(entry_id)
        if not known:
            raise NotFound(
                "AUDIT_ENTRY_UNKNOWN",
                "the log has no entry of this id",
                kind="AuditEntry",
                name=f"{project_name(view.project_id)}/auditEntries/{entry_id}",
            )
        return index

    @staticmethod
    def _check_entry_id(project_id: str, entry_id: str) -> None:
        if project_id == INSTANCE_LOG:
            check_length(entry_id, 1, 200, "entryId")
        else:
            check_random_id(entry_id, "entryId")


def _tile(level: int, index: int, width: int) -> Tile:
    check_within(index, 0, MAX_SIZE, "index")
    check_within(width, 0, WIDTH, "width")
    return Tile(level, index, width or WIDTH)


def _check_consistent(first: int, second: int, newest: Checkpoint, found: dict[Node, bytes]) -> None:
    """Both proofs, from the first to the second and from there to the signed root, hold by these hashes."""
    first_root, second_root = (merkle.fold([found[node] for node in merkle.range_nodes(n)]) for n in (first, second))
    try:
        merkle.check_consistency(merkle.prove_consistency(first, second, found), first, second, first_root, second_root)
        if second < newest.size:
            proof = merkle.prove_consistency(second, newest.size, found)
            merkle.check_consistency(proof, second, newest.size, second_root, newest.root_hash)
        elif second_root != newest.root_hash:
            raise merkle.proof_invalid("root", "is another")
    except Invalid:
        raise damaged(
            f"the tiles do not lead from the tree of size {first} to the signed root of size {newest.size}",
            checkpoint_size=str(newest.size),
        ) from None


def log_too_small(project_id: str, size: int) -> Refused:
    """What a caller is told of a size that the log has not come to."""
    return Refused(
        "LOG_TOO_SMALL",
        f"the log has {size} leaves: ask for no more",
        subject=f"{project_name(project_id)}/log",
        size=str(size),
    )
