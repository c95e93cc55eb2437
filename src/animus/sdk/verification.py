"""Checks a log as a whole: each leaf, each tile, the root, and every head that is known of it.

The entries are hashed, and everything above them is computed from these hashes: so a log passes only if the signed root
is that of the entries that it shows. Where two parts contradict each other, a third decides which one is named.

Verdicts, each with what the ones before say:

- SIGNED: a trusted key has signed the head, and all that the log shows is what the head says.
- CONSISTENT: the log goes on from a head that was verified here before.
- WITNESSED: so many witnesses as the policy asks for have cosigned a head that the log has, or goes on from.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from animus.domain import merkle
from animus.domain.checkpoint import Checkpoint
from animus.domain.errors import Invalid
from animus.domain.note import Key, dump_key
from animus.domain.policy import NONE, Policy, agreed, quorum_met, witnesses_of
from animus.domain.tile import WIDTH, Bundle, Tile, load_bundle, load_tile, tree_bundles
from animus.sdk.contradiction import Contradiction, Finding
from animus.sdk.heads import KnownHead
from animus.sdk.leaves import AuditEntries, ProjectCheckpoints, Watch, place_of
from animus.sdk.source import CHECKPOINT, READERS, VKEYS, Head, Source, path_of, read_ahead, split_origin, widest
from animus.sdk.tree import TileTree, root_of_edges
from animus.sdk.trust import Trust, under
from animus.signing import VerifiedNote, verify_checkpoint

Progress = Callable[[int], None]  # leaves that were checked since the last time


class Verdict(StrEnum):
    """How much is shown of a log."""

    SIGNED = "SIGNED"
    CONSISTENT = "CONSISTENT"
    WITNESSED = "WITNESSED"


@dataclass(frozen=True, slots=True)
class Witnessed:
    """The newest head that enough witnesses have cosigned."""

    size: int
    witnesses: tuple[str, ...]  # names in the policy
    groups: tuple[str, ...]  # that have agreed, such as organisations


@dataclass(frozen=True, slots=True)
class Report:
    """What was shown of a log."""

    verdict: Verdict
    head: Head
    signers: tuple[Key, ...]  # trusted keys that signed the head
    known: tuple[KnownHead, ...]  # heads known before that the log goes on from
    lost: tuple[KnownHead, ...]  # heads known of earlier epochs that it does not go on from, which was accepted
    published: int  # heads that the log itself has published
    unverified: int  # of these, those that no trusted key has signed, but one that the log says it had
    witnessed: Witnessed | None
    cosigned: Witnessed | None  # the newest head that any witness of the policy has cosigned


@dataclass(frozen=True, slots=True)
class _Expected:
    """A head whose root has to be that of the tree at its size."""

    place: str
    checkpoint: Checkpoint
    known: KnownHead | None  # None for what the log published
    earlier: bool  # known of an earlier epoch: a restore may have cut it off


class _Leaves(Protocol):
    def check(self, index: int, data: bytes, leaf_hash: bytes) -> None: ...
    def finish(self) -> None: ...


class Verification:
    """One check of one log."""

    def __init__(
        self,
        source: Source,
        head: Head,
        trust: Trust,
        known: Iterable[KnownHead],
        policy: Policy | None,
        accept_epoch: int,
        watches: tuple[Watch, ...] = (),
    ) -> None:
        self._source = source
        self._head = head
        self._trust = trust
        self._known = list(known)
        self._policy = policy
        self._witnesses = tuple(witness.key for witness in policy.witnesses) if policy else ()
        self._accept_epoch = accept_epoch
        self._watches = watches
        self._claimed = source.claimed_keys()
        self._tree = TileTree()
        self._extended: list[KnownHead] = []
        self._lost: list[KnownHead] = []
        self._published = self._unverified = 0
        self._witnessed: Witnessed | None = None
        self._cosigned: Witnessed | None = None

    @property
    def size(self) -> int:
        """Number of leaves that will be checked."""
        return self._head.checkpoint.size

    def run(self, progress: Progress) -> Report:
        """Checks everything. Raises Contradiction for the first thing that is wrong."""
        note = self._signed(self._head, self._trust.keys)
        trusted = [key for key in note.signers if key in self._trust.keys]
        if self._claimed and not {key.public_key for key in trusted} & {key.public_key for key in self._claimed}:
            raise Contradiction(Finding.MALFORMED, VKEYS, f"lacks the key that signed {CHECKPOINT}")
        self._count(note, self.size)
        self._check_leaves(self._expected(), progress)
        verdict = Verdict.CONSISTENT if self._extended else Verdict.SIGNED
        return Report(
            verdict=Verdict.WITNESSED if self._witnessed else verdict,
            head=self._head,
            signers=tuple(trusted),
            known=tuple(self._extended),
            lost=tuple(self._lost),
            published=self._published,
            unverified=self._unverified,
            witnessed=self._witnessed,
            cosigned=self._cosigned,
        )

    # Heads.

    def _signed(self, head: Head, keys: tuple[Key, ...]) -> VerifiedNote:
        """The note of a head that one of these keys has signed, and none of all known keys wrongly."""
        claimed = under(head.checkpoint.origin, self._claimed)
        try:
            _, note = verify_checkpoint(head.note, {*keys, *claimed}, self._witnesses)
        except Invalid as error:
            raise Contradiction(Finding.BAD_SIGNATURE, head.place, error.message) from None
        if not any(key in keys for key in note.signers):
            others = ", ".join(dump_key(key) for key in note.signers if key in claimed)
            raise Contradiction(
                Finding.BAD_SIGNATURE,
                head.place,
                f"is signed by no trusted key, but by one that the log says it has: {others}",
            )
        return note

    def _count(self, note: VerifiedNote, size: int) -> None:
        """Keeps who has cosigned a head, if it is the largest such."""
        if self._policy is None:
            return
        names = witnesses_of(self._policy, note.signers)
        seen = agreed(self._policy, names)
        groups = [group.name for group in self._policy.groups if group.name in seen]
        found = Witnessed(size, _texts(names), _texts(groups))
        if names and (self._cosigned is None or size >= self._cosigned.size):
            self._cosigned = found
        met = self._policy.quorum != NONE and quorum_met(self._policy, names)
        if met and (self._witnessed is None or size >= self._witnessed.size):
            self._witnessed = found

    def _expected(self) -> Iterator[_Expected]:
        """The heads that the tree has to pass, by size: those known here and those that the log has published."""
        ours = iter(sorted(self._known_heads(), key=lambda each: each.checkpoint.size))
        theirs = self._published_heads()
        one, other = next(ours, None), next(theirs, None)
        while one or other:
            if other is None or (one is not None and one.checkpoint.size <= other.checkpoint.size):
                assert one is not None
                yield one
                one = next(ours, None)
            else:
                yield other
                other = next(theirs, None)

    def _known_heads(self) -> Iterator[_Expected]:
        newest = self._head.checkpoint
        epoch = split_origin(newest.origin)[1]
        for head in self._known:
            its_epoch = split_origin(head.checkpoint.origin)[1]
            if its_epoch > epoch:
                raise Contradiction(
                    Finding.SHRUNK,
                    CHECKPOINT,
                    f"is of epoch {epoch}, and {head.place} of epoch {its_epoch} of this log",
                )
            if head.checkpoint.size <= newest.size:
                yield _Expected(head.place, head.checkpoint, head, its_epoch < epoch)
            elif its_epoch < epoch:
                self._lose(head, f"the log has {newest.size} leaves")
            else:
                raise Contradiction(
                    Finding.SHRUNK,
                    CHECKPOINT,
                    f"is of size {newest.size}, and {head.place} of size {head.checkpoint.size} of this log",
                )

    def _lose(self, head: KnownHead, why: str) -> None:
        """Takes note of a head of an earlier epoch that the log does not go on from. Raises unless that is accepted."""
        epoch = split_origin(self._head.checkpoint.origin)[1]
        if self._accept_epoch != epoch:
            raise Contradiction(
                Finding.LOST_IN_RESTORE,
                head.place,
                f"is a head of {head.checkpoint.origin} of size {head.checkpoint.size}, and epoch {epoch} does not go "
                f"on from it ({why}): an older database was restored. If that is known to you, repeat with "
                f"--accept-epoch {epoch}",
            )
        self._lost.append(head)

    def _published_heads(self) -> Iterator[_Expected]:
        newest = self._head.checkpoint
        base, epoch = split_origin(newest.origin)
        last = -1
        for head in self._source.heads():
            checkpoint = head.checkpoint
            its_base, its_epoch = split_origin(checkpoint.origin)
            if its_base != base or its_epoch > epoch:
                raise Contradiction(Finding.UNKNOWN_LOG, head.place, f"is of the log {checkpoint.origin}")
            if checkpoint.size > newest.size:
                if self._source.live and its_epoch == epoch:
                    return  # it has grown since
                raise Contradiction(
                    Finding.SHRUNK,
                    CHECKPOINT,
                    f"is of size {newest.size}, and {head.place} of size {checkpoint.size}: it is not the newest",
                )
            if checkpoint.size < last:
                raise Contradiction(
                    Finding.FORKED, head.place, f"is of size {checkpoint.size}, after a head of size {last}"
                )
            last = checkpoint.size
            self._published += 1
            self._check_published(head)
            yield _Expected(head.place, checkpoint, None, False)

    def _check_published(self, head: Head) -> None:
        """Raises unless a trusted key has signed it, or at least one that the log says it had."""
        trusted = self._trust.keys_for(head.checkpoint.origin)
        note = self._signed(head, (*trusted, *under(head.checkpoint.origin, self._claimed)))
        if any(key in trusted for key in note.signers):
            self._count(note, head.checkpoint.size)
        else:
            self._unverified += 1

    def _check_head(self, expected: _Expected, root: bytes) -> None:
        """Raises Contradiction unless the tree has the root that a head says."""
        checkpoint = expected.checkpoint
        if root == checkpoint.root_hash:
            if known := expected.known:
                self._extended.append(known)
                self._count(self._signed(Head(known.place, known.note, checkpoint), known.keys), checkpoint.size)
            return
        why = f"the tree of the log has the root {root.hex()} at its size, not {checkpoint.root_hash.hex()}"
        if expected.known and expected.earlier:
            self._lose(expected.known, why)
            return
        raise Contradiction(
            Finding.FORKED,
            expected.place,
            f"is a signed head of size {checkpoint.size} that the newest one does not go on from: {why}",
        )

    # Leaves and tiles.

    def _check_leaves(self, heads: Iterator[_Expected], progress: Progress) -> None:
        source, tree = self._source, self._tree
        narrower = source.narrower(self.size)
        leaves: _Leaves | None = None
        head = next(heads, None)
        while head and head.checkpoint.size == 0:
            self._check_head(head, merkle.EMPTY_ROOT)
            head = next(heads, None)

        def read(bundle: Bundle) -> tuple[bytes, bytes]:
            return source.read(bundle), source.read(Tile(0, bundle.index, bundle.width))

        for bundle, (data, hashes) in read_ahead(tree_bundles(self.size), read, readers=READERS if source.live else 1):
            first = bundle.index * WIDTH
            entries = _load_bundle(bundle, data)
            leaf_hashes = [merkle.leaf_hash(entry) for entry in entries]
            tile = Tile(0, bundle.index, bundle.width)
            if b"".join(leaf_hashes) != hashes:
                raise self._blame(tile, leaf_hashes, hashes)
            self._check_narrower(narrower.pop(bundle, ()), entries)
            self._check_narrower(narrower.pop(tile, ()), leaf_hashes)
            if leaves is None:
                leaves = self._kind(entries[0])
            for index, (entry, leaf_hash) in enumerate(zip(entries, leaf_hashes, strict=True), first):
                leaves.check(index, entry, leaf_hash)
            while head and head.checkpoint.size <= first + len(entries):
                self._check_head(head, tree.root(leaf_hashes[: head.checkpoint.size - first]))
                head = next(heads, None)
            for above, computed in tree.add(leaf_hashes)[1:]:  # that of level 0 was compared
                self._check_tile(above, computed, narrower)
            progress(len(entries))
        for above, computed in tree.partial():
            if above.level:
                self._check_tile(above, computed, narrower)
        if tree.root() != self._head.checkpoint.root_hash:
            raise Contradiction(
                Finding.WRONG_ROOT,
                CHECKPOINT,
                f"says that the root of {self.size} leaves is {self._head.checkpoint.root_hash.hex()}, and the leaves "
                f"have the root {tree.root().hex()}",
            )
        assert head is None
        assert not narrower
        if leaves:
            leaves.finish()

    def _kind(self, first: bytes) -> _Leaves:
        """What the leaves have to be, by the first: an entry is a JSON object, a checkpoint begins with a name."""
        origin = self._head.checkpoint.origin
        return AuditEntries(origin, self._watches) if first[:1] == b"{" else ProjectCheckpoints(origin, self._trust)

    def _check_tile(self, tile: Tile, computed: bytes, narrower: dict[Tile | Bundle, list[Tile | Bundle]]) -> None:
        found = self._source.read(tile)
        if found != computed:
            raise self._blame(tile, load_tile(computed, tile.width), found)
        self._check_narrower(narrower.pop(tile, ()), load_tile(computed, tile.width))

    def _check_narrower(self, places: Iterable[Tile | Bundle], items: Iterable[bytes]) -> None:
        """Raises unless each partial tile or bundle is the first part of the whole one."""
        items = tuple(items)
        for place in places:
            data = self._source.read(place)
            try:
                load = load_bundle if isinstance(place, Bundle) else load_tile
                same = load(data, place.width) == items[: place.width]
            except Invalid as error:
                raise Contradiction(Finding.MALFORMED, path_of(place), error.message) from None
            if not same:
                raise Contradiction(Finding.WRONG_TILE, path_of(place), "is not what the wider one begins with")

    def _blame(self, tile: Tile, computed: Iterable[bytes], data: bytes) -> Contradiction:
        """Which of two is named where a tile is not that of what is below it: what is above them decides."""
        below = tuple(computed)
        try:
            found = load_tile(data, tile.width)
        except Invalid as error:
            return Contradiction(Finding.MALFORMED, path_of(tile), error.message)
        if not self._agrees(tile, found):
            return Contradiction(Finding.WRONG_TILE, path_of(tile), "is not that of the entries below it")
        at = next(at for at, (one, other) in enumerate(zip(below, found, strict=True)) if one != other)
        index = tile.index * WIDTH + at
        if tile.level:
            child = Tile(tile.level - 1, index, WIDTH)
            return Contradiction(
                Finding.WRONG_TILE, path_of(child), "and the entries below it are not those of the signed tree"
            )
        bundle = path_of(Bundle(tile.index, tile.width))
        return Contradiction(
            Finding.WRONG_ENTRY, place_of(index), f"in {bundle} is not the leaf that the signed tree has at this index"
        )

    def _agrees(self, tile: Tile, hashes: tuple[bytes, ...]) -> bool:
        """Whether the hash above a full tile, or the signed root above a partial one, is that of these hashes."""
        if tile.width == WIDTH:
            parent = widest(Tile(tile.level + 1, tile.index // WIDTH, 1), self.size)
            assert isinstance(parent, Tile)
            place = (tile.index % WIDTH) * merkle.HASH_BYTES
            above = merkle.root(merkle.append(merkle.EMPTY_RANGE, hashes))
            return self._source.read(parent)[place : place + merkle.HASH_BYTES] == above
        edges = [list(edge) for edge in self._tree.edges]
        edges[tile.level] = list(hashes)
        return root_of_edges(edges) == self._head.checkpoint.root_hash


def _load_bundle(bundle: Bundle, data: bytes) -> tuple[bytes, ...]:
    try:
        return load_bundle(data, bundle.width)
    except Invalid as error:
        raise Contradiction(Finding.MALFORMED, path_of(bundle), error.message) from None


def _texts(names: Iterable[bytes]) -> tuple[str, ...]:
    """Names of a policy, which are bytes with no meaning, for people."""
    return tuple(sorted(name.decode(errors="backslashreplace") for name in names))
