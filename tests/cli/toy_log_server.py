"""The log's contract over lists in memory, by a server that can be told to lie. The real one: test_cli_server.py."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NoReturn

import grpc
from google.api import httpbody_pb2
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from animus import codec
from animus.domain import document, merkle
from animus.domain.audit import AuditEntry
from animus.domain.merkle import leaf_hash
from animus.domain.tile import Tile, dump_bundle
from animus.sdk.receipts import METADATA
from animus.sdk.tree import TileTree
from animus.v1 import audit_pb2, audit_pb2_grpc, log_pb2, log_pb2_grpc
from cli.logs import ToyLog

TOKEN = "animus_p_" + "t" * 43


def refuse(context: Any, code: grpc.StatusCode, reason: str, message: str = "refused") -> NoReturn:
    """Ends a call with a reason of the contract."""
    detail = AnyMessage()
    detail.Pack(error_details_pb2.ErrorInfo(reason=reason, domain="animus"))
    status = status_pb2.Status(code=code.value[0], message=message, details=[detail])
    context.abort_with_status(rpc_status.to_status(status))
    raise AssertionError


def listed(data: bytes, index: int | None) -> audit_pb2.AuditEntry:
    """An entry as the audit service shows it."""
    message = codec.encode(document.load(data, AuditEntry), audit_pb2.AuditEntry())
    message.document = data
    message.leaf_hash = leaf_hash(data).hex()
    if index is not None:
        message.index = index
    return message


class ToyLogServer(log_pb2_grpc.LogServiceServicer, audit_pb2_grpc.AuditServiceServicer):
    """The log of one project. What it publishes, lists and hides is for the test to change."""

    def __init__(self, log: ToyLog, size: int | None = None) -> None:
        self.log = log
        self.size = len(log.leaves) if size is None else size
        self.project_id = "p"
        self.heads: list[int] = []
        self.listed = [listed(leaf, index) for index, leaf in enumerate(log.leaves)]
        self.receipts: list[bytes] = []  # sent with each answer of AddCosignatures
        self.cosigned: list[log_pb2.AddCosignaturesRequest] = []
        self.tampered: dict[Tile, bytes] = {}
        self.failures: dict[str, list[tuple[grpc.StatusCode, str] | None]] = {}  # by method: what the next calls get
        self.calls: list[str] = []
        self.authorizations: set[str] = set()
        self._mutex = threading.Lock()

    def _enter(self, context: Any, method: str) -> None:
        with self._mutex:
            self.calls.append(method)
            metadata = dict(context.invocation_metadata())
            self.authorizations.add(str(metadata.get("authorization", "")))
            failing = self.failures.get(method)
            failure = failing.pop(0) if failing else None
        if failure:
            refuse(context, *failure)

    def _checkpoint(self, size: int) -> log_pb2.LogCheckpoint:
        note = self.log.note(size)
        return log_pb2.LogCheckpoint(origin=self.log.origin, size=size, root_hash=self.log.root(size).hex(), note=note)

    def GetLog(self, request: log_pb2.GetLogRequest, context: grpc.ServicerContext) -> log_pb2.Log:
        self._enter(context, "GetLog")
        if request.project_id != self.project_id:
            refuse(context, grpc.StatusCode.NOT_FOUND, "PROJECT_UNKNOWN")
        log = log_pb2.Log(origin=self.log.origin, size=len(self.log.leaves), published_size=self.size)
        log.keys.add(vkey=self.log.vkey)
        return log

    def GetCheckpoint(
        self, request: log_pb2.GetCheckpointRequest, context: grpc.ServicerContext
    ) -> log_pb2.LogCheckpoint:
        self._enter(context, "GetCheckpoint")
        if request.minimum_size > len(self.log.leaves):
            refuse(context, grpc.StatusCode.FAILED_PRECONDITION, "LOG_TOO_SMALL")
        self.size = max(self.size, request.minimum_size)
        return self._checkpoint(self.size)

    def ListCheckpoints(
        self, request: log_pb2.ListCheckpointsRequest, context: grpc.ServicerContext
    ) -> log_pb2.ListCheckpointsResponse:
        self._enter(context, "ListCheckpoints")
        at = int(request.page_token or 0)
        more = str(at + 2) if at + 2 < len(self.heads) else ""
        found = [self._checkpoint(size) for size in self.heads[at : at + 2]]
        return log_pb2.ListCheckpointsResponse(checkpoints=found, next_page_token=more)

    def GetInclusionProof(
        self, request: log_pb2.GetInclusionProofRequest, context: grpc.ServicerContext
    ) -> log_pb2.InclusionProof:
        self._enter(context, "GetInclusionProof")
        return self._prove(request.entry_id, context)

    def WaitForInclusion(
        self, request: log_pb2.WaitForInclusionRequest, context: grpc.ServicerContext
    ) -> log_pb2.InclusionProof:
        self._enter(context, "WaitForInclusion")
        with self._mutex:
            self.size = len(self.log.leaves)
        return self._prove(request.entry_id, context)

    def _prove(self, entry_id: str, context: grpc.ServicerContext) -> log_pb2.InclusionProof:
        ids = [document.load(leaf, AuditEntry).entry_id for leaf in self.log.leaves]
        if entry_id not in ids:
            refuse(context, grpc.StatusCode.NOT_FOUND, "AUDIT_ENTRY_UNKNOWN")
        index = ids.index(entry_id)
        if index >= self.size:
            refuse(context, grpc.StatusCode.FAILED_PRECONDITION, "ENTRY_PENDING")
        nodes = {
            (level, at): merkle.root(
                merkle.append(merkle.EMPTY_RANGE, map(leaf_hash, self.log.leaves[at << level : (at + 1) << level]))
            )
            for level, at in merkle.inclusion_nodes(index, self.size)
        }
        return log_pb2.InclusionProof(
            entry_id=entry_id,
            index=index,
            leaf_hash=leaf_hash(self.log.leaves[index]).hex(),
            hashes=merkle.prove_inclusion(index, self.size, nodes),
            checkpoint=self._checkpoint(self.size),
        )

    def GetConsistencyProof(
        self, request: log_pb2.GetConsistencyProofRequest, context: grpc.ServicerContext
    ) -> log_pb2.ConsistencyProof:
        self._enter(context, "GetConsistencyProof")
        first, second = request.first_size, request.second_size or self.size
        nodes = {
            (level, at): merkle.root(
                merkle.append(merkle.EMPTY_RANGE, map(leaf_hash, self.log.leaves[at << level : (at + 1) << level]))
            )
            for level, at in merkle.consistency_nodes(first, second)
        }
        hashes = merkle.prove_consistency(first, second, nodes)
        return log_pb2.ConsistencyProof(first_size=first, second_size=second, hashes=hashes)

    def GetTile(self, request: log_pb2.GetTileRequest, context: grpc.ServicerContext) -> log_pb2.Tile:
        self._enter(context, "GetTile")
        wanted = Tile(request.level, request.index, request.width or 256)
        tree = TileTree()
        tiles: dict[Tile, bytes] = {}
        for first in range(0, self.size, 256):
            tiles.update(tree.add([leaf_hash(leaf) for leaf in self.log.leaves[first : min(first + 256, self.size)]]))
        tiles.update(tree.partial())
        tiles.update(self.tampered)
        if wanted not in tiles:
            refuse(context, grpc.StatusCode.NOT_FOUND, "TILE_UNKNOWN")
        return log_pb2.Tile(hashes=tiles[wanted])

    def GetEntryBundle(
        self, request: log_pb2.GetEntryBundleRequest, context: grpc.ServicerContext
    ) -> log_pb2.EntryBundle:
        self._enter(context, "GetEntryBundle")
        first = request.index * 256
        return log_pb2.EntryBundle(entries=dump_bundle(self.log.leaves[first : first + (request.width or 256)]))

    def AddCosignatures(
        self, request: log_pb2.AddCosignaturesRequest, context: grpc.ServicerContext
    ) -> log_pb2.LogCheckpoint:
        self._enter(context, "AddCosignatures")
        context.set_trailing_metadata(tuple((METADATA, receipt) for receipt in self.receipts))
        self.cosigned.append(request)
        return self._checkpoint(request.size)

    def ListAuditEntries(
        self, request: audit_pb2.ListAuditEntriesRequest, context: grpc.ServicerContext
    ) -> audit_pb2.ListAuditEntriesResponse:
        self._enter(context, "ListAuditEntries")
        at = int(request.page_token or 0)
        more = str(at + 200) if at + 200 < len(self.listed) else ""
        return audit_pb2.ListAuditEntriesResponse(audit_entries=self.listed[at : at + 200], next_page_token=more)

    def TailAuditEntries(
        self, request: audit_pb2.TailAuditEntriesRequest, context: grpc.ServicerContext
    ) -> Iterator[audit_pb2.AuditEntry]:
        """Two entries at a time, and then the server stops."""
        self._enter(context, "TailAuditEntries")
        yield from self.listed[request.first_index : request.first_index + 2]
        refuse(context, grpc.StatusCode.UNAVAILABLE, "DRAINING")

    def GetAuditEntry(
        self, request: audit_pb2.GetAuditEntryRequest, context: grpc.ServicerContext
    ) -> audit_pb2.AuditEntry:
        self._enter(context, "GetAuditEntry")
        return next(entry for entry in self.listed if entry.entry_id == request.entry_id)

    def ExportAuditEntries(
        self, request: audit_pb2.ExportAuditEntriesRequest, context: grpc.ServicerContext
    ) -> Iterator[httpbody_pb2.HttpBody]:
        """Two lines, of which the second may fail."""
        self._enter(context, "ExportAuditEntries")
        yield httpbody_pb2.HttpBody(data=b"1\n")
        self._enter(context, "ExportAuditEntries")
        yield httpbody_pb2.HttpBody(data=b"2\n")


@contextmanager
def serving(toy: ToyLogServer) -> Iterator[str]:
    """The address of a server that is up."""
    server = grpc.server(ThreadPoolExecutor(8))
    log_pb2_grpc.add_LogServiceServicer_to_server(toy, server)
    audit_pb2_grpc.add_AuditServiceServicer_to_server(toy, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()
