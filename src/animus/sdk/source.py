"""Where a log is read from: a running server, or a directory in the layout of C2SP tlog-tiles.

    checkpoint              the newest signed head
    checkpoints/<size>      older ones; checkpoints/<size>.<epoch> where the epoch is another than the newest's
    log.vkeys               the keys that the log says it has, one a line
    tile/<L>/<N>[.p/<W>]    hashes
    tile/entries/<N>[.p/<W>]  entries

Nothing that comes from here is to be believed: `animus.sdk.verification` checks it. What is missing, or said to be
damaged, raises Contradiction with its path in this layout, whichever of the two it is.
"""

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

import grpc

from animus.domain.checkpoint import Checkpoint, load_checkpoint
from animus.domain.errors import Invalid
from animus.domain.log import FIRST_EPOCH
from animus.domain.note import MAX_NOTE_BYTES, Key, load_key, load_note
from animus.domain.tile import (
    MAX_ENTRY_BYTES,
    WIDTH,
    Bundle,
    Tile,
    bundle_path,
    dump_bundle,
    load_bundle,
    load_tile,
    parse_path,
    tile_path,
)
from animus.sdk.client import CallFailed
from animus.sdk.contradiction import Contradiction, Finding
from animus.sdk.files import Unreadable, read_file
from animus.v1 import audit_pb2_grpc, log_pb2, log_pb2_grpc

if TYPE_CHECKING:
    from google.protobuf.message import Message

CHECKPOINT = "checkpoint"
CHECKPOINTS = "checkpoints"
VKEYS = "log.vkeys"
HEAD_NAME = re.compile(r"(?P<size>0|[1-9][0-9]{0,18})(?:\.(?P<epoch>[1-9][0-9]{0,18}))?")

MAX_VKEYS_BYTES = 64 << 10
MAX_BUNDLE_BYTES = WIDTH * (2 + MAX_ENTRY_BYTES)
CALL_SECONDS = 60.0
PAGE = 1_000
READERS = 4
AHEAD = 8  # what is read before it is asked for

Place = TypeVar("Place")
Data = TypeVar("Data")
Request = TypeVar("Request", bound="Message")
Reply = TypeVar("Reply", bound="Message")


@dataclass(frozen=True, slots=True)
class Head:
    """A signed head of a log, as it was found. Nobody has checked its signatures."""

    place: str
    note: bytes
    checkpoint: Checkpoint


def load_head(place: str, note: bytes) -> Head:
    """The head of a signed note. Raises Contradiction."""
    try:
        return Head(place, note, load_checkpoint(load_note(note).text))
    except Invalid as error:
        raise Contradiction(Finding.MALFORMED, place, f"is no signed checkpoint: {error.message}") from None


def split_origin(origin: str) -> tuple[str, int]:
    """What the origins of a log's epochs have in common, and the epoch: 0 for an origin that ends in no number."""
    base, _, epoch = origin.rpartition("/")
    return (base, int(epoch)) if base and re.fullmatch(r"[1-9][0-9]{0,18}", epoch) else (origin, 0)


def project_of(origin: str) -> str:
    """The project whose log has this origin; of an instance's log, the last part of the instance's name."""
    return split_origin(origin)[0].rpartition("/")[2]


def head_path(origin: str, newest_origin: str, size: int) -> str:
    """The path of an older head."""
    epoch = "" if origin == newest_origin else f".{split_origin(origin)[1] or FIRST_EPOCH}"
    return f"{CHECKPOINTS}/{size}{epoch}"


def path_of(place: Tile | Bundle) -> str:
    """The path of a tile or a bundle."""
    return tile_path(place) if isinstance(place, Tile) else bundle_path(place.index, place.width)


class Source(Protocol):
    """A log that can be read."""

    name: str  # for people
    live: bool  # whether it may grow while it is read

    def newest(self) -> Head:
        """The newest head."""

    def heads(self) -> Iterator[Head]:
        """The heads that the log has published, by size."""

    def read(self, place: Tile | Bundle) -> bytes:
        """A tile or a bundle of the newest head's tree, or a narrower one."""

    def claimed_keys(self) -> tuple[Key, ...]:
        """The keys that the log says it has."""

    def narrower(self, size: int) -> dict[Tile | Bundle, list[Tile | Bundle]]:
        """Partial tiles and bundles beside those of the tree of a size, which has to begin as they do."""


class Directory:
    """A log in a directory."""

    live = False

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = str(folder)

    def newest(self) -> Head:
        """The head of the file `checkpoint`."""
        return load_head(CHECKPOINT, self._file(CHECKPOINT, MAX_NOTE_BYTES))

    def heads(self) -> Iterator[Head]:
        """The heads of the folder `checkpoints`, by size and epoch, each in a file of its name."""
        found = []
        for path in self._names(CHECKPOINTS):
            match = HEAD_NAME.fullmatch(path)
            if not match:
                raise Contradiction(Finding.STRAY, f"{CHECKPOINTS}/{path}", "has no name of a checkpoint")
            found.append((int(match["size"]), int(match["epoch"] or 0), path))
        newest = self.newest().checkpoint.origin
        for size, _, name in sorted(found):
            place = f"{CHECKPOINTS}/{name}"
            head = load_head(place, self._file(place, MAX_NOTE_BYTES))
            if head_path(head.checkpoint.origin, newest, head.checkpoint.size) != place:
                raise Contradiction(
                    Finding.STRAY, place, f"is the checkpoint of size {head.checkpoint.size}, not of size {size}"
                )
            yield head

    def read(self, place: Tile | Bundle) -> bytes:
        """The file of a tile or a bundle; its first part where only the full one is there."""
        most = MAX_BUNDLE_BYTES if isinstance(place, Bundle) else WIDTH * 32
        try:
            return read_file(self.folder / path_of(place), most)
        except Unreadable as error:
            if not error.missing or place.width == WIDTH:
                raise _file_fault(path_of(place), error) from None
        full = Bundle(place.index, WIDTH) if isinstance(place, Bundle) else Tile(place.level, place.index, WIDTH)
        try:
            data = read_file(self.folder / path_of(full), most)
        except Unreadable as error:
            raise _file_fault(path_of(place if error.missing else full), error) from None
        try:
            if isinstance(place, Bundle):
                return dump_bundle(load_bundle(data, WIDTH)[: place.width])
            return b"".join(load_tile(data, WIDTH)[: place.width])
        except Invalid as error:
            raise Contradiction(Finding.MALFORMED, path_of(full), error.message) from None

    def claimed_keys(self) -> tuple[Key, ...]:
        """The keys of the file `log.vkeys`; none where there is no such file."""
        try:
            return load_vkeys(VKEYS, self._file(VKEYS, MAX_VKEYS_BYTES))
        except Contradiction as contradiction:
            if contradiction.finding is Finding.MISSING:
                return ()
            raise

    def narrower(self, size: int) -> dict[Tile | Bundle, list[Tile | Bundle]]:
        """All partial files but the tree's own. Raises Contradiction for a file that is no part of the tree."""
        found: dict[Tile | Bundle, list[Tile | Bundle]] = {}
        for path in sorted((self.folder / "tile").rglob("*")):
            if path.is_dir() and not path.is_symlink():
                continue
            name = path.relative_to(self.folder).as_posix()
            try:
                place = parse_path(name)
            except Invalid as error:
                raise Contradiction(Finding.STRAY, name, error.message) from None
            own = widest(place, size)
            if own is None or place.width > own.width:
                raise Contradiction(
                    Finding.STRAY,
                    name,
                    f"is no part of the tree of {size} leaves that {CHECKPOINT} speaks of: an export was cut short, or "
                    "the checkpoint is an older one",
                )
            if place != own:
                found.setdefault(own, []).append(place)
        return found

    def _file(self, name: str, most: int) -> bytes:
        try:
            return read_file(self.folder / name, most)
        except Unreadable as error:
            raise _file_fault(name, error) from None

    def _names(self, folder: str) -> list[str]:
        try:
            return [path.name for path in (self.folder / folder).iterdir()]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise Contradiction(Finding.MALFORMED, folder, str(error.strerror)) from None


def widest(place: Tile | Bundle, size: int) -> Tile | Bundle | None:
    """The tile or bundle that the tree of a size has at a place, or None."""
    level = place.level if isinstance(place, Tile) else 0
    width = min(WIDTH, (size >> (8 * level)) - place.index * WIDTH)
    if width < 1:
        return None
    return Tile(level, place.index, width) if isinstance(place, Tile) else Bundle(place.index, width)


def _file_fault(name: str, error: Unreadable) -> Contradiction:
    return Contradiction(Finding.MISSING if error.missing else Finding.MALFORMED, name, error.reason)


def load_vkeys(place: str, data: bytes) -> tuple[Key, ...]:
    """Keys, one a line. Raises Contradiction."""
    try:
        if not data.endswith(b"\n"):
            raise Contradiction(Finding.MALFORMED, place, "does not end with a line feed")
        return tuple(load_key(line) for line in data.decode().split("\n")[:-1])
    except UnicodeDecodeError:
        raise Contradiction(Finding.MALFORMED, place, "is not UTF-8") from None
    except Invalid as error:
        raise Contradiction(Finding.MALFORMED, place, error.message) from None


class Server:
    """The log of a project on a server."""

    live = True

    def __init__(self, channel: grpc.Channel, project_id: str) -> None:
        self.project_id = project_id
        self.name = f"the log of {project_id}"
        self.stub = log_pb2_grpc.LogServiceStub(channel)
        self.audit = audit_pb2_grpc.AuditServiceStub(channel)

    def log(self) -> log_pb2.Log:
        """What the server says of the log."""
        return call(self.stub.GetLog, log_pb2.GetLogRequest(project_id=self.project_id))

    def newest(self) -> Head:
        """The newest head."""
        return self.head(0)

    def head(self, minimum_size: int) -> Head:
        """The newest head, of a size at least, once it is published."""
        request = log_pb2.GetCheckpointRequest(project_id=self.project_id, minimum_size=minimum_size)
        return load_head(CHECKPOINT, call(self.stub.GetCheckpoint, request, CHECKPOINT).note)

    def heads(self) -> Iterator[Head]:
        """The published heads, by epoch and size."""
        newest = self.newest().checkpoint.origin
        request = log_pb2.ListCheckpointsRequest(project_id=self.project_id, page_size=PAGE)
        while True:
            page = call(self.stub.ListCheckpoints, request, CHECKPOINTS)
            for each in page.checkpoints:
                head = load_head(f"{CHECKPOINTS}/{each.size}", each.note)
                place = head_path(head.checkpoint.origin, newest, head.checkpoint.size)
                yield Head(place, head.note, head.checkpoint)
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def read(self, place: Tile | Bundle) -> bytes:
        """A tile or a bundle."""
        if isinstance(place, Bundle):
            request = log_pb2.GetEntryBundleRequest(project_id=self.project_id, index=place.index, width=place.width)
            return call(self.stub.GetEntryBundle, request, path_of(place)).entries
        tile = log_pb2.GetTileRequest(
            project_id=self.project_id, level=place.level, index=place.index, width=place.width
        )
        return call(self.stub.GetTile, tile, path_of(place)).hashes

    def claimed_keys(self) -> tuple[Key, ...]:
        """The keys that GetLog names."""
        try:
            return tuple(load_key(key.vkey) for key in self.log().keys)
        except Invalid as error:
            raise Contradiction(Finding.MALFORMED, VKEYS, error.message) from None

    def narrower(self, size: int) -> dict[Tile | Bundle, list[Tile | Bundle]]:
        """A server has no files beside its log."""
        return {}


def call(
    method: "grpc.UnaryUnaryMultiCallable[Request, Reply]",
    request: Request,
    place: str = "",
    seconds: float = CALL_SECONDS,
) -> Reply:
    """The answer of a call. Raises Contradiction where it is that the log is damaged or lacks the place; CallFailed."""
    try:
        return method(request, timeout=seconds)
    except grpc.RpcError as error:
        failed = CallFailed(error)
    if failed.code is grpc.StatusCode.DATA_LOSS:
        raise Contradiction(Finding.DAMAGED, place or "the log", f"cannot be had: {failed}")
    if failed.reason == "TILE_UNKNOWN":
        raise Contradiction(Finding.MISSING, place, f"cannot be had: {failed}")
    raise failed


def read_ahead(places: Iterable[Place], read: Callable[[Place], Data], *, readers: int) -> Iterator[tuple[Place, Data]]:
    """What is at each place, in their order, read by so many threads ahead of the reader. One reads on demand."""
    if readers == 1:
        for place in places:
            yield place, read(place)
        return
    waiting: deque[tuple[Place, Future[Data]]] = deque()
    with ThreadPoolExecutor(readers) as pool:
        try:
            for place in places:
                waiting.append((place, pool.submit(read, place)))
                if len(waiting) > AHEAD:
                    first, data = waiting.popleft()
                    yield first, data.result()
            while waiting:
                first, data = waiting.popleft()
                yield first, data.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
