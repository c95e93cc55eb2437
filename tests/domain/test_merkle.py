"""The tree of a log: every small tree against RFC 6962 as written, published proofs, and what is near them refused."""

import base64
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from animus.domain import merkle
from animus.domain.errors import Invalid
from animus.domain.merkle import EMPTY_RANGE, EMPTY_ROOT, MAX_SIZE, CompactRange, Node
from domain import trees
from domain.trees import LEAVES, NODES, ROOTS, VECTORS, WORLD, flips, unbase64
from domain.values import LAW, refusal

SIZES = range(WORLD + 1)
Check = Callable[..., None]


def accepts(check: Check, *claim: Any) -> bool:
    """Whether a check lets a claim pass; what it raises is Invalid with the reason."""
    try:
        check(*claim)
    except Invalid as error:
        assert error.reason == "PROOF_INVALID"
        return False
    return True


def some(wanted: Sequence[Node]) -> dict[Node, bytes]:
    """These nodes of the world and no others."""
    return {node: NODES[node] for node in wanted}


# The small world.


def test_roots_are_those_of_the_standard() -> None:
    """For every size: the root, and the range's hashes, which are the roots of the perfect subtrees."""
    for size in SIZES:
        tree = merkle.append(EMPTY_RANGE, LEAVES[:size])
        assert merkle.root(tree) == ROOTS[size]
        assert tree == CompactRange(size, tuple(NODES[node] for node in merkle.range_nodes(size)))


def test_growth_in_any_two_steps_is_growth_in_one() -> None:
    """For every size and every split of it, nothing included, appending the parts gives the same range."""
    for size in SIZES:
        whole = merkle.append(EMPTY_RANGE, LEAVES[:size])
        for first in range(size + 1):
            assert merkle.append(merkle.append(EMPTY_RANGE, LEAVES[:first]), LEAVES[first:size]) == whole


def test_inclusion_proofs_are_those_of_the_standard() -> None:
    """For every index and size: made from the nodes that are asked for alone, equal to PATH, and accepted."""
    for size in SIZES:
        for index in range(size):
            proof = merkle.prove_inclusion(index, size, some(merkle.inclusion_nodes(index, size)))
            assert proof == trees.path(index, LEAVES[:size])
            merkle.check_inclusion(proof, index, size, LEAVES[index], ROOTS[size])


def test_consistency_proofs_are_those_of_the_standard() -> None:
    """For every two sizes: made from the nodes that are asked for alone, equal to PROOF, and accepted."""
    for second in SIZES:
        for first in range(1, second + 1):
            proof = merkle.prove_consistency(first, second, some(merkle.consistency_nodes(first, second)))
            assert proof == trees.proof(first, LEAVES[:second])
            merkle.check_consistency(proof, first, second, ROOTS[first], ROOTS[second])


def test_a_proof_of_inclusion_shows_nothing_else() -> None:
    """In every tree up to 11 leaves, each proof is accepted for each index, size and leaf only if it is theirs."""
    claims = [(index, size) for size in range(1, 12) for index in range(size)]
    proofs = {claim: trees.path(claim[0], LEAVES[: claim[1]]) for claim in claims}
    for proof in set(proofs.values()):
        for (index, size), wanted in proofs.items():
            for leaf in range(11):
                right = proof == wanted and leaf == index
                assert accepts(merkle.check_inclusion, proof, index, size, LEAVES[leaf], ROOTS[size]) == right


def test_a_proof_of_consistency_shows_nothing_else() -> None:
    """In every tree up to 9 leaves, each proof is accepted for two sizes only if it is theirs, and so are the roots."""
    claims = [(first, second) for second in range(1, 10) for first in range(1, second + 1)]
    proofs = {claim: trees.proof(claim[0], LEAVES[: claim[1]]) for claim in claims}
    for (first, second), wanted in proofs.items():
        for proof in set(proofs.values()):
            right = proof == wanted
            claim = (proof, first, second, ROOTS[first], ROOTS[second])
            assert accepts(merkle.check_consistency, *claim) == right
        for roots in itertools.product(ROOTS[1:10], repeat=2):
            right = roots == (ROOTS[first], ROOTS[second]) or (first == second and roots[0] == roots[1])
            assert accepts(merkle.check_consistency, wanted, first, second, *roots) == right


def mangled(hashes: Sequence[bytes]) -> Iterator[tuple[bytes, ...]]:
    """Lists near a proof: a bit changed, a hash left out, doubled, added, moved, cut short or made longer."""
    whole = tuple(hashes)
    for at, each in enumerate(whole):
        yield from ((*whole[:at], other, *whole[at + 1 :]) for other in (*flips(each), each[:-1], each + b"\x00", b""))
        yield (*whole[:at], *whole[at + 1 :])
        yield (*whole[:at], each, *whole[at:])
        yield (*whole[:at], ROOTS[1], *whole[at:])
    yield (*whole, bytes(32))
    yield (*whole, EMPTY_ROOT)
    yield from (
        (*whole[:at], whole[at + 1], whole[at], *whole[at + 2 :])
        for at in range(len(whole) - 1)
        if whole[at] != whole[at + 1]
    )


def test_a_mangled_proof_is_refused() -> None:
    """One bit changed in any hash, leaf or root, and any hash more, less, longer, shorter or elsewhere, is refused."""
    for index, size in [(0, 1), (0, 2), (6, 7), (4, 11), (12, 13), (31, 32), (32, 33), (40, WORLD)]:
        proof = trees.path(index, LEAVES[:size])
        good: list[Any] = [proof, index, size, LEAVES[index], ROOTS[size]]
        for place, others in ((0, mangled(proof)), (3, flips(LEAVES[index])), (4, flips(ROOTS[size]))):
            for other in others:
                assert not accepts(merkle.check_inclusion, *good[:place], other, *good[place + 1 :])
    for first, second in [(1, 1), (1, 2), (3, 7), (8, 13), (6, 8), (32, 33), (33, WORLD)]:
        proof = trees.proof(first, LEAVES[:second])
        good = [proof, first, second, ROOTS[first], ROOTS[second]]
        for place, others in ((0, mangled(proof)), (3, flips(ROOTS[first])), (4, flips(ROOTS[second]))):
            for other in others:
                assert not accepts(merkle.check_consistency, *good[:place], other, *good[place + 1 :])


# Trees too large to be made: all leaves are equal, so that a perfect node is known by its level.


class Uniform(Mapping[Node, bytes]):
    """The nodes of a tree of any size whose leaves are one hash."""

    def __init__(self) -> None:
        self.levels = [LEAVES[0]]
        while len(self.levels) < 64:
            self.levels.append(merkle.node_hash(self.levels[-1], self.levels[-1]))

    def __getitem__(self, node: Node) -> bytes:
        return self.levels[node[0]]

    def __iter__(self) -> Iterator[Node]:
        raise AssertionError("a proof asks for the nodes that it needs")

    def __len__(self) -> int:
        raise AssertionError("a proof asks for the nodes that it needs")

    def range(self, size: int) -> CompactRange:
        """The tree of a size."""
        return CompactRange(size, tuple(self[node] for node in merkle.range_nodes(size)))


UNIFORM = Uniform()
sizes = st.one_of(
    st.integers(1, MAX_SIZE),
    st.integers(0, 62).flatmap(lambda bits: st.integers(max(1, 2**bits - 2), min(MAX_SIZE, 2**bits + 2))),
    st.sampled_from([1, MAX_SIZE - 1, MAX_SIZE]),
)


@LAW
@given(sizes, st.data())
def test_proofs_hold_in_trees_of_any_size(size: int, data: st.DataObject) -> None:
    """Up to 2^63-1 leaves, a proof has at most 64 hashes, is accepted, and with one bit changed is not."""
    index = data.draw(st.integers(0, size - 1))
    root = merkle.root(UNIFORM.range(size))
    proof = merkle.prove_inclusion(index, size, UNIFORM)
    assert len(proof) <= 63
    merkle.check_inclusion(proof, index, size, LEAVES[0], root)
    assert not accepts(merkle.check_inclusion, proof, index, size, LEAVES[1], root)
    first = data.draw(st.integers(1, size))
    old = merkle.root(UNIFORM.range(first))
    proof = merkle.prove_consistency(first, size, UNIFORM)
    assert len(proof) <= 64
    merkle.check_consistency(proof, first, size, old, root)
    assert not accepts(merkle.check_consistency, proof, first, size, flips(old)[0], root)
    if proof:
        at = data.draw(st.integers(0, len(proof) - 1))
        wrong = (*proof[:at], data.draw(st.sampled_from(flips(proof[at]))), *proof[at + 1 :])
        assert not accepts(merkle.check_consistency, wrong, first, size, old, root)


@LAW
@given(st.integers(0, MAX_SIZE - 3_000), st.integers(0, 3_000))
def test_a_tree_of_any_size_grows(size: int, more: int) -> None:
    """Appending to a large tree gives the tree of the sum."""
    assert merkle.append(UNIFORM.range(size), [LEAVES[0]] * more) == UNIFORM.range(size + more)


def test_a_stream_longer_than_a_part_is_taken_in_parts() -> None:
    """Leaves from a generator, more than are held at a time, give the range of all of them, whatever their number."""
    for more in (-1, 0, 1, merkle.PART + 3):
        count = merkle.PART + more
        leaves = [sha256(bytes([number % 251])).digest() for number in range(count)]
        grown = merkle.append(EMPTY_RANGE, LEAVES[:5])
        grown = merkle.append(grown, (leaf for leaf in leaves))
        row: list[bytes] = [*LEAVES[:5], *leaves]
        while len(row) > 1:  # a lone last node rises, which is the same tree
            pairs = [merkle.node_hash(*row[at : at + 2]) for at in range(0, len(row) - 1, 2)]
            row = pairs + row[len(row) - len(row) % 2 :]
        assert (grown.size, merkle.root(grown)) == (count + 5, row[0])


# What no tree has.


@pytest.mark.parametrize("size", [-1, -(2**64), MAX_SIZE + 1, 2**64])
def test_a_size_that_no_tree_has_is_refused(size: int) -> None:
    """Below 0 and beyond 2^63-1, in every function that takes one."""
    assert refusal(merkle.range_nodes, size).field == "size"
    assert refusal(CompactRange, size, ()).field == "size"
    assert refusal(merkle.inclusion_nodes, 0, size).field == "size"
    assert refusal(merkle.prove_inclusion, 0, size, {}).field == "size"
    assert refusal(merkle.check_inclusion, (), 0, size, LEAVES[0], LEAVES[0]).field == "size"
    assert refusal(merkle.consistency_nodes, size, 1).field == "firstSize"
    assert refusal(merkle.consistency_nodes, 1, size).field == "secondSize"
    assert refusal(merkle.prove_consistency, 1, size, {}).field == "secondSize"
    assert refusal(merkle.check_consistency, (), size, 1, ROOTS[1], ROOTS[1]).field == "firstSize"
    assert refusal(merkle.check_consistency, (), 1, size, ROOTS[1], ROOTS[1]).field == "secondSize"


def test_what_is_not_in_the_tree_is_refused() -> None:
    """An index below 0 or beyond the leaves; a first size of 0 or beyond the second; anything of an empty tree."""
    for index in (-1, 5, 6, MAX_SIZE):
        assert refusal(merkle.inclusion_nodes, index, 5).field == "index"
        assert refusal(merkle.check_inclusion, (), index, 5, LEAVES[0], ROOTS[5]).field == "index"
    assert refusal(merkle.inclusion_nodes, 0, 0).field == "size"
    assert refusal(merkle.consistency_nodes, 6, 5).field == "firstSize"
    assert refusal(merkle.consistency_nodes, 0, 5).field == "firstSize"
    assert refusal(merkle.check_consistency, (), 0, 0, EMPTY_ROOT, EMPTY_ROOT).field == "firstSize"


def test_a_proof_is_bounded_before_it_is_checked() -> None:
    """65 hashes are refused for their number, and a hash that is not 32 bytes long by its place."""
    long = [bytes(32)] * 65
    found = refusal(merkle.check_inclusion, long, 0, MAX_SIZE, LEAVES[0], ROOTS[1])
    assert found.description == "has 65 hashes; at most 64 are allowed"
    assert refusal(merkle.check_consistency, long, 1, 2, ROOTS[1], ROOTS[2]) == found
    for wrong in (b"", bytes(31), bytes(33), bytes(64)):
        assert refusal(merkle.check_inclusion, [bytes(32), wrong], 0, 4, LEAVES[0], ROOTS[4]).field == "proof[1]"
        assert refusal(merkle.check_inclusion, [], 0, 1, wrong, ROOTS[1]).field == "leafHash"
        assert refusal(merkle.check_inclusion, [], 0, 1, LEAVES[0], wrong).field == "rootHash"
        assert refusal(merkle.check_consistency, [LEAVES[1]], 1, 2, wrong, ROOTS[2]).field == "firstRootHash"
        assert refusal(merkle.check_consistency, [LEAVES[1]], 1, 2, ROOTS[1], wrong).field == "secondRootHash"
        assert refusal(merkle.append, EMPTY_RANGE, [LEAVES[0], wrong]).field == "leafHashes"
        assert refusal(CompactRange, 3, (LEAVES[0], wrong)).field == "hashes[1]"


def test_a_range_has_one_hash_for_each_bit_of_its_size() -> None:
    """Any other number of hashes is refused."""
    for size, count in itertools.product(range(20), range(7)):
        if size.bit_count() == count:
            CompactRange(size, (LEAVES[0],) * count)
        else:
            assert refusal(CompactRange, size, (LEAVES[0],) * count).field == "hashes"


def test_growth_ends_at_the_largest_size() -> None:
    """One leaf more than a tree may have is refused."""
    last = UNIFORM.range(MAX_SIZE)
    assert merkle.append(last, []) == last
    assert refusal(merkle.append, last, [LEAVES[0]]).field == "size"


# The published vectors.

PROBES = VECTORS / "transparency-dev-merkle"


def probes(kind: str) -> list[Any]:
    """The published claims of a kind, by their names."""
    files = sorted((PROBES / kind).rglob("*.json"))
    return [pytest.param(path, id=str(path.relative_to(PROBES))[: -len(".json")]) for path in files]


def inclusion_holds(check: Check, path: Path) -> bool:
    """Whether a check accepts a published claim of inclusion."""
    claim = trees.read(str(path))
    leaf, root = unbase64([claim["leafHash"] or "", claim["root"] or ""])
    return accepts(check, unbase64(claim["proof"]), claim["leafIdx"], claim["treeSize"], leaf, root)


def consistency_holds(check: Check, path: Path) -> bool:
    """Whether a check accepts a published claim of consistency."""
    claim = trees.read(str(path))
    first, second = unbase64([claim["root1"] or "", claim["root2"] or ""])
    return accepts(check, unbase64(claim["proof"]), claim["size1"], claim["size2"], first, second)


@pytest.mark.parametrize("path", probes("inclusion"))
def test_a_published_claim_of_inclusion_comes_out_as_published(path: Path) -> None:
    """Each probe of transparency-dev/merkle is accepted or refused as it says."""
    assert inclusion_holds(merkle.check_inclusion, path) == (not trees.read(str(path))["wantErr"])


@pytest.mark.parametrize("path", probes("consistency"))
def test_a_published_claim_of_consistency_comes_out_as_published(path: Path) -> None:
    """Each probe of transparency-dev/merkle is accepted or refused as it says."""
    assert consistency_holds(merkle.check_consistency, path) == (not trees.read(str(path))["wantErr"])


def test_no_published_claim_is_missing() -> None:
    """98 of inclusion and 98 of consistency, 6 of each to be accepted."""
    for kind in ("inclusion", "consistency"):
        wanted = [trees.read(str(path.values[0]))["wantErr"] for path in probes(kind)]
        assert (wanted.count(True), wanted.count(False)) == (92, 6)


def test_the_published_tree_is_made() -> None:
    """The eight leaves, every perfect node, and the roots of sizes 0 to 8 of transparency-dev/merkle."""
    tree = trees.read("transparency-dev-merkle/reference_tree.json")
    leaves = [merkle.leaf_hash(bytes.fromhex(entry)) for entry in tree["leaf_inputs_hex"]]
    levels = [[bytes.fromhex(each) for each in level] for level in tree["node_hashes_hex_by_level"]]
    assert [len(level) for level in levels] == [8, 4, 2, 1]
    assert levels[0] == leaves
    for level in range(1, 4):
        for index, node in enumerate(levels[level]):
            assert merkle.node_hash(*levels[level - 1][2 * index : 2 * index + 2]) == node
    roots = [merkle.root(merkle.append(EMPTY_RANGE, leaves[:size])).hex() for size in range(9)]
    assert roots == tree["root_hashes_hex_by_size_0_to_8"]


# Checks that are wrong, which the vectors find.


def trusting(*claim: Any) -> None:
    """Accepts everything."""


def without_length(proof: Sequence[bytes], index: int, size: int, leaf: bytes, root: bytes) -> None:
    """Reads only as many hashes as it needs."""
    needed = len(merkle.inclusion_spans(index, size)) if 0 <= index < size <= MAX_SIZE else 0
    merkle.check_inclusion(proof[:needed], index, size, leaf, root)


def without_place(proof: Sequence[bytes], index: int, size: int, leaf: bytes, root: bytes) -> None:
    """Takes any index at which the proof holds."""
    good = [at for at in range(min(size, 16)) if accepts(merkle.check_inclusion, proof, at, size, leaf, root)]
    merkle.check_inclusion(proof, good[0] if good else index, size, leaf, root)


def without_first_root(proof: Sequence[bytes], first: int, second: int, old: bytes, new: bytes) -> None:
    """Does not ask where the first tree ends up."""
    merkle.check_hash(old, "firstRootHash")
    if 0 < first < second < 16 and proof == trees.proof(first, published_leaves()[:second]):
        return
    merkle.check_consistency(proof, first, second, old, new)


def published_leaves() -> list[bytes]:
    """The leaves of the published tree."""
    tree = trees.read("transparency-dev-merkle/reference_tree.json")
    return [merkle.leaf_hash(bytes.fromhex(entry)) for entry in tree["leaf_inputs_hex"]]


@pytest.mark.parametrize(
    ("kind", "check"),
    [
        ("inclusion", trusting),
        ("inclusion", without_length),
        ("inclusion", without_place),
        ("consistency", trusting),
        ("consistency", without_first_root),
    ],
)
def test_a_check_that_is_wrong_is_found(kind: str, check: Check) -> None:
    """Each planted check accepts a claim that it has to refuse, or the other way round."""
    holds = inclusion_holds if kind == "inclusion" else consistency_holds
    paths = [path.values[0] for path in probes(kind)]
    assert any(holds(check, path) == trees.read(str(path))["wantErr"] for path in paths)


def test_leaves_and_nodes_are_hashed_apart() -> None:
    """An entry of two hashes is no node above them, and the empty tree's root is the hash of nothing."""
    left, right = LEAVES[:2]
    assert merkle.leaf_hash(left + right) != merkle.node_hash(left, right)
    assert merkle.leaf_hash(b"\x01" + left + right) != merkle.node_hash(left, right)
    assert base64.b64encode(EMPTY_ROOT) == b"47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="
