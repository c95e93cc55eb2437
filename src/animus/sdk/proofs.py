"""Proofs made from a log's tiles, or asked of its server; each is checked before it is handed out."""

from collections.abc import Iterable

from animus.domain import merkle
from animus.domain.checkpoint import TlogProof
from animus.domain.errors import Invalid
from animus.domain.merkle import Node
from animus.domain.tile import Tile, nodes_in, tiles_of
from animus.sdk.contradiction import Contradiction, Finding
from animus.sdk.source import CHECKPOINT, Head, Server, Source, call
from animus.v1 import log_pb2


def inclusion(source: Source, head: Head, index: int, leaf_hash: bytes) -> TlogProof:
    """That a leaf is at an index of a head's tree, from the tiles. Raises Contradiction where they do not show it."""
    size = head.checkpoint.size
    hashes = merkle.prove_inclusion(index, size, _nodes(source, merkle.inclusion_nodes(index, size), size))
    try:
        merkle.check_inclusion(hashes, index, size, leaf_hash, head.checkpoint.root_hash)
    except Invalid as error:
        raise Contradiction(Finding.WRONG_TILE, f"the proof of entry {index}", error.message) from None
    return TlogProof(index, hashes, b"", head.note)


def consistency(source: Source, head: Head, old_size: int) -> tuple[bytes, ...]:
    """That a head's tree begins with that of another size; none where there is nothing to show.

    What the tiles of a directory do not show raises Contradiction. Whether the server's proof is good, only whoever
    knows the root of the old size can tell.
    """
    size = head.checkpoint.size
    if not 0 < old_size < size:
        return ()
    if isinstance(source, Server):
        request = log_pb2.GetConsistencyProofRequest(
            project_id=source.project_id, first_size=old_size, second_size=size
        )
        return tuple(call(source.stub.GetConsistencyProof, request).hashes)
    nodes = _nodes(source, [*merkle.consistency_nodes(old_size, size), *merkle.range_nodes(old_size)], size)
    hashes = merkle.prove_consistency(old_size, size, nodes)
    old_root = merkle.fold([nodes[node] for node in merkle.range_nodes(old_size)])
    check_extends(hashes, old_size, old_root, head)
    return hashes


def check_extends(hashes: tuple[bytes, ...], old_size: int, old_root: bytes, head: Head, place: str = "") -> None:
    """Raises Contradiction unless a head's tree begins with that of an old size and root."""
    size, root = head.checkpoint.size, head.checkpoint.root_hash
    try:
        if old_size:
            merkle.check_consistency(hashes, old_size, size, old_root, root)
    except Invalid as error:
        raise Contradiction(
            Finding.FORKED,
            place or CHECKPOINT,
            f"of size {size} does not go on from the tree of size {old_size}: {error.message}",
        ) from None


def _nodes(source: Source, nodes: Iterable[Node], size: int) -> dict[Node, bytes]:
    wanted = tuple(dict.fromkeys(nodes))
    tiles: dict[Tile, bytes] = {tile: source.read(tile) for tile in tiles_of(wanted, size)}
    return nodes_in(tiles, wanted)
