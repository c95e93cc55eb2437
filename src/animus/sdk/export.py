"""Writes a server's log to a directory in the layout of C2SP tlog-tiles.

Entries are fetched, tiles are computed from them: the signed root shows that they are those of the server. Only
what is not there yet is fetched. The file `checkpoint` is replaced last: what was cut short is seen to be so, and the
next export goes on from there.
"""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from animus.domain import merkle
from animus.domain.errors import Invalid
from animus.domain.note import dump_key
from animus.domain.tile import WIDTH, Bundle, Tile, load_bundle, tree_bundles
from animus.sdk.contradiction import Contradiction, Finding
from animus.sdk.files import replace_file, write_file
from animus.sdk.source import (
    CHECKPOINT,
    READERS,
    VKEYS,
    Directory,
    Head,
    Server,
    head_path,
    path_of,
    read_ahead,
    split_origin,
)
from animus.sdk.tree import TileTree
from animus.sdk.verification import Progress

SCRATCH = ".export"  # a folder for what is half written


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export did."""

    head: Head
    fetched: int  # entries
    kept: int  # entries that were there


def export(server: Server, folder: Path, head: Head, progress: Progress) -> Exported:
    """Brings a directory up to a head. Raises Contradiction where the two are not of one log; CallFailed, OSError."""
    before = _before(folder, head)
    scratch = folder / SCRATCH
    scratch.mkdir(parents=True, exist_ok=True)
    try:
        fetched = _entries(server, folder, head, before, progress)
        _write(folder, VKEYS, "".join(f"{dump_key(key)}\n" for key in server.claimed_keys()).encode())
        for each in _published(server, head):
            _write(folder, head_path(each.checkpoint.origin, head.checkpoint.origin, each.checkpoint.size), each.note)
        replace_file(folder / CHECKPOINT, head.note, scratch=scratch)
        _sweep(folder, head.checkpoint.size)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return Exported(head, fetched, head.checkpoint.size - fetched)


def _before(folder: Path, head: Head) -> Head | None:
    """The head that the directory has. Raises Contradiction unless the other can come after it."""
    try:
        before = Directory(folder).newest()
    except Contradiction as contradiction:
        if contradiction.finding is not Finding.MISSING:
            raise
        return None
    if before.checkpoint.origin != head.checkpoint.origin:
        raise Contradiction(
            Finding.UNKNOWN_LOG,
            str(folder / CHECKPOINT),
            f"is of the log {before.checkpoint.origin}, and the server's is {head.checkpoint.origin}: export that to "
            "another directory",
        )
    if before.checkpoint.size > head.checkpoint.size:
        raise Contradiction(
            Finding.SHRUNK,
            CHECKPOINT,
            f"of the server is of size {head.checkpoint.size}, and that of the directory of {before.checkpoint.size}",
        )
    return before


def _entries(server: Server, folder: Path, head: Head, before: Head | None, progress: Progress) -> int:
    """Writes bundles and tiles, and returns how many entries were fetched."""
    directory = Directory(folder)
    tree = TileTree()
    fetched = 0

    def read(bundle: Bundle) -> tuple[tuple[bytes, ...], list[bytes], bytes | None]:
        if kept := _kept(directory, bundle):
            return *kept, None
        data = server.read(bundle)
        try:
            entries = load_bundle(data, bundle.width)
        except Invalid as error:
            raise Contradiction(Finding.MALFORMED, path_of(bundle), error.message) from None
        return entries, [merkle.leaf_hash(entry) for entry in entries], data

    for bundle, (entries, leaf_hashes, data) in read_ahead(tree_bundles(head.checkpoint.size), read, readers=READERS):
        first = bundle.index * WIDTH
        if before and first < before.checkpoint.size <= first + len(entries):
            _check_root(tree.root(leaf_hashes[: before.checkpoint.size - first]), before, folder / CHECKPOINT)
        if data is not None:
            fetched += len(entries)
            _write(folder, path_of(bundle), data)
        for tile, hashes in tree.add(leaf_hashes):
            if data is not None or tile.level:
                _write(folder, path_of(tile), hashes)
        progress(len(entries))
    for tile, hashes in tree.partial():
        _write(folder, path_of(tile), hashes)
    _check_root(tree.root(), head, folder)
    return fetched


def _kept(directory: Directory, bundle: Bundle) -> tuple[tuple[bytes, ...], list[bytes]] | None:
    """The entries of a full bundle that is there and is that of its tile, with their hashes."""
    if bundle.width < WIDTH:
        return None
    try:
        entries = load_bundle(directory.read(bundle), WIDTH)
        leaf_hashes = [merkle.leaf_hash(entry) for entry in entries]
        same = directory.read(Tile(0, bundle.index, WIDTH)) == b"".join(leaf_hashes)
    except (Contradiction, Invalid):
        return None
    return (entries, leaf_hashes) if same else None


def _check_root(root: bytes, head: Head, place: Path) -> None:
    if root != head.checkpoint.root_hash:
        raise Contradiction(
            Finding.WRONG_ROOT,
            str(place),
            f"and the server's entries do not lead to the root of the checkpoint of size {head.checkpoint.size}: "
            "verify the server, and export to an empty directory",
        )


def _published(server: Server, head: Head) -> Iterator[Head]:
    """The heads that belong beside this one."""
    _, epoch = split_origin(head.checkpoint.origin)
    for each in server.heads():
        if each.checkpoint.size <= head.checkpoint.size and split_origin(each.checkpoint.origin)[1] <= epoch:
            yield each


def _write(folder: Path, name: str, data: bytes) -> None:
    """Writes a file unless it has these bytes."""
    path = folder / name
    try:
        if path.read_bytes() == data:
            return
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, data, scratch=folder / SCRATCH)


def _sweep(folder: Path, size: int) -> None:
    """Removes the partial tiles and bundles of smaller trees."""
    for narrower in Directory(folder).narrower(size).values():
        for place in narrower:
            path = folder / path_of(place)
            path.unlink()
            if not any(path.parent.iterdir()):
                path.parent.rmdir()
