"""The Merkle tree of a log: RFC 6962 §2.1 with SHA-256. Hashes, roots, and proofs made and checked.

- The root of a tree of n > 1 leaves splits them at the largest power of two below n. Leaves and inner nodes are hashed
  with different first bytes, so that neither passes for the other.
- A *perfect* node (level, index) covers the 2^level leaves from index * 2^level. It never changes once its leaves are
  there, so these are what is stored. A proof's hash may be of several of them: `prove_*` puts it together.
- `check_*` accepts the proof that RFC 6962 §2.1.1 and §2.1.2 define for these sizes, and nothing else.

All bad input raises Invalid with the reason PROOF_INVALID.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice

from animus.domain.errors import Invalid, Violation

HASH_BYTES = 32
MAX_SIZE = 2**63 - 1
MAX_PROOF_HASHES = 64
EMPTY_ROOT = sha256().digest()

PART = 1 << 16  # leaves that `append` holds at a time

Node = tuple[int, int]  # level, from 0 at the leaves; index in the level
Span = tuple[int, int]  # leaves from the first number up to before the second


def proof_invalid(field: str, description: str) -> Invalid:
    """An Invalid for what concerns a proof or the tree."""
    return Invalid([Violation(field, description)], "PROOF_INVALID")


def check_size(size: int, least: int, field: str) -> None:
    """Refuses a size that no tree has."""
    if not least <= size <= MAX_SIZE:
        raise proof_invalid(field, f"is {size}; {least} to 2^63-1 is allowed")


def check_hash(value: bytes, field: str) -> None:
    """Refuses what is no SHA-256 hash by its length."""
    if len(value) != HASH_BYTES:
        raise proof_invalid(field, f"is {len(value)} bytes long; a hash has {HASH_BYTES}")


def check_proof(proof: Sequence[bytes]) -> None:
    """Refuses what no tree has as a proof."""
    if len(proof) > MAX_PROOF_HASHES:
        raise proof_invalid("proof", f"has {len(proof)} hashes; at most {MAX_PROOF_HASHES} are allowed")
    for index, each in enumerate(proof):
        check_hash(each, f"proof[{index}]")


def check_length(proof: Sequence[bytes], length: int) -> None:
    """Refuses a proof with more or fewer hashes than its sizes ask for."""
    if len(proof) != length:
        raise proof_invalid("proof", f"has {len(proof)} hashes; for these sizes it has {length}")


def leaf_hash(entry: bytes) -> bytes:
    """Hash of a leaf with these bytes."""
    return sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Hash of an inner node above two hashes."""
    return sha256(b"\x01" + left + right).digest()


@dataclass(frozen=True, slots=True)
class CompactRange:
    """All that a tree needs to grow: the roots of its perfect subtrees."""

    size: int  # leaves, 0 to 2^63-1
    hashes: tuple[bytes, ...]  # from the left, the largest subtree first: one for each bit of size that is 1

    def __post_init__(self) -> None:
        check_size(self.size, 0, "size")
        if len(self.hashes) != self.size.bit_count():
            raise proof_invalid("hashes", f"has {len(self.hashes)} hashes; size {self.size} has other subtrees")
        for index, each in enumerate(self.hashes):
            check_hash(each, f"hashes[{index}]")


EMPTY_RANGE = CompactRange(0, ())


def append(tree: CompactRange, leaf_hashes: Iterable[bytes]) -> CompactRange:
    """The tree with these leaves after its own. One hash for each leaf; the leaves may be a stream of any length."""
    leaves = iter(leaf_hashes)
    size, hashes = tree.size, list(tree.hashes)
    while row := list(islice(leaves, PART)):
        if set(map(len, row)) != {HASH_BYTES}:
            raise proof_invalid("leafHashes", f"holds a hash that is not {HASH_BYTES} bytes long")
        size, left_over, odd = size + len(row), size, []
        while row:  # the new nodes of one level, hashed in pairs without a call of ours for each
            if left_over & 1:
                row.insert(0, hashes.pop())
            if len(row) & 1:
                odd.append(row.pop())
            pairs = iter(row)
            row = [sha256(b"\x01" + left + right).digest() for left, right in zip(pairs, pairs, strict=True)]
            left_over >>= 1
        hashes += reversed(odd)
    return CompactRange(size, tuple(hashes))


def root(tree: CompactRange) -> bytes:
    """The root hash of a tree."""
    return fold(tree.hashes) if tree.hashes else EMPTY_ROOT


def fold(hashes: Sequence[bytes]) -> bytes:
    """The hash above the perfect nodes of a span, from the left."""
    *others, above = hashes
    for left in reversed(others):
        above = node_hash(left, above)
    return above


def range_nodes(size: int) -> tuple[Node, ...]:
    """The nodes whose hashes a CompactRange of this size holds, in its order."""
    check_size(size, 0, "size")
    return perfect_nodes((0, size))


def perfect_nodes(span: Span) -> tuple[Node, ...]:
    """The perfect nodes of a subtree's span, from the left."""
    low, high = span
    nodes = []
    while low < high:
        level = (high - low).bit_length() - 1
        assert low % (1 << level) == 0, "no subtree of an RFC 6962 tree has this span"
        nodes.append((level, low >> level))
        low += 1 << level
    return tuple(nodes)


def split(low: int, high: int) -> int:
    """Where the subtree of a span of two leaves or more has its right child begin."""
    return low + (1 << ((high - low - 1).bit_length() - 1))


def inclusion_spans(index: int, size: int) -> list[Span]:
    """What each hash of an inclusion proof covers, from the leaf's sibling to the root's child."""
    check_size(size, 1, "size")
    if not 0 <= index < size:
        raise proof_invalid("index", f"is {index}; a tree of {size} leaves has those from 0 to {size - 1}")
    low, high, spans = 0, size, []
    while high - low > 1:
        middle = split(low, high)
        if index < middle:
            spans.append((middle, high))
            high = middle
        else:
            spans.append((low, middle))
            low = middle
    return spans[::-1]


def inclusion_nodes(index: int, size: int) -> tuple[Node, ...]:
    """The perfect nodes that `prove_inclusion` needs."""
    return tuple(node for span in inclusion_spans(index, size) for node in perfect_nodes(span))


def prove_inclusion(index: int, size: int, nodes: Mapping[Node, bytes]) -> tuple[bytes, ...]:
    """The proof that the leaf at an index is in the tree of a size (RFC 6962 §2.1.1)."""
    return tuple(span_hash(span, nodes) for span in inclusion_spans(index, size))


def span_hash(span: Span, nodes: Mapping[Node, bytes]) -> bytes:
    """The hash of a span from its perfect nodes."""
    return fold([nodes[node] for node in perfect_nodes(span)])


def check_inclusion(proof: Sequence[bytes], index: int, size: int, leaf_hash: bytes, root: bytes) -> None:
    """Raises Invalid unless the proof shows this leaf at this index of the tree with this size and root."""
    check_proof(proof)
    check_hash(leaf_hash, "leafHash")
    check_hash(root, "rootHash")
    spans = inclusion_spans(index, size)
    check_length(proof, len(spans))
    above = leaf_hash
    for (low, _), other in zip(spans, proof, strict=True):
        above = node_hash(other, above) if low < index else node_hash(above, other)
    if above != root:
        raise proof_invalid("proof", "leads to another root: the leaf is not at this index of this tree")


def consistency_spans(first: int, second: int) -> list[Span]:
    """What each hash of a consistency proof covers, in its order."""
    check_size(first, 1, "firstSize")
    check_size(second, 1, "secondSize")
    if first > second:
        raise proof_invalid("firstSize", f"is {first}; the second tree has only {second} leaves")
    if first == second:
        return []
    low, high, spans = 0, second, []
    while first != high:
        middle = split(low, high)
        if first <= middle:
            spans.append((middle, high))
            high = middle
        else:
            spans.append((low, middle))
            low = middle
    # (low, first) is the last perfect subtree of the first tree. If it is all of that tree, its root is known.
    if low:
        spans.append((low, first))
    return spans[::-1]


def consistency_nodes(first: int, second: int) -> tuple[Node, ...]:
    """The perfect nodes that `prove_consistency` needs."""
    return tuple(node for span in consistency_spans(first, second) for node in perfect_nodes(span))


def prove_consistency(first: int, second: int, nodes: Mapping[Node, bytes]) -> tuple[bytes, ...]:
    """The proof that the tree of the second size begins with that of the first (RFC 6962 §2.1.2).

    The first size is at least 1: every tree begins with the empty one, and no proof says so.
    """
    return tuple(span_hash(span, nodes) for span in consistency_spans(first, second))


def check_consistency(proof: Sequence[bytes], first: int, second: int, first_root: bytes, second_root: bytes) -> None:
    """Raises Invalid unless the proof shows that the second tree begins with the first.

    For equal sizes that is a proof of no hash, and equal roots, whatever they are.
    """
    check_proof(proof)
    spans = consistency_spans(first, second)
    check_length(proof, len(spans))
    if spans:
        check_hash(first_root, "firstRootHash")
        check_hash(second_root, "secondRootHash")
    before, after = first_root, first_root
    for (low, high), other in zip(spans, proof, strict=True):
        if high == first:
            before, after = other, other
        elif low < first:
            before, after = node_hash(other, before), node_hash(other, after)
        else:
            after = node_hash(after, other)
    if before != first_root:
        raise proof_invalid("proof", "leads to another first root: the second tree does not begin with the first")
    if after != second_root:
        raise proof_invalid("proof", "leads to another second root: the second tree does not begin with the first")
