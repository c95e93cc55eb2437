"""An auditor who trusts nothing of the program: notes, proofs, tiles and bundles read by the specifications alone.

Nothing here imports the program's own code for them. Proofs are checked by the algorithms of RFC 9162, which go from
the leaf upwards bit by bit; the program goes from the root downwards.
"""

import base64
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import ed25519_stdlib as ed
import grpc
from contract import METHODS
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from service.conftest import Caller, Failure, failure_of

RECEIPT = "animus-audit-receipt-bin"
LOG_KEY, WITNESS_KEY = 1, 4  # types of C2SP signed-note


# Calls, with what comes beside the reply.


@dataclass(frozen=True, slots=True)
class Answer:
    """How a call came out."""

    reply: Any  # None where it failed
    failure: Failure | None
    receipt: bytes  # empty where there is none
    replayed: bool

    @property
    def reason(self) -> str:
        """Why it failed; empty where it did not."""
        return self.failure.reason if self.failure else ""


async def ask(caller: Caller, name: str, request: Message, timeout: float | None = None) -> Answer:
    """Calls a method, and takes what comes in the trailing metadata."""
    method = METHODS[name]
    send: Any = caller.channel.unary_unary(
        f"/{method.containing_service.full_name}/{name}",
        type(request).SerializeToString,
        GetMessageClass(method.output_type).FromString,
    )
    call = send(request, metadata=_credentials(caller), timeout=timeout)
    reply, failure = None, None
    try:
        reply = await call
    except grpc.aio.AioRpcError as error:
        failure = failure_of(error)
    trailing = dict(await call.trailing_metadata())
    return Answer(reply, failure, trailing.get(RECEIPT, b""), trailing.get("animus-replayed") == "true")


class Stream:
    """A stream of replies, read one by one."""

    def __init__(self, caller: Caller, name: str, request: Message) -> None:
        method = METHODS[name]
        send: Any = caller.channel.unary_stream(
            f"/{method.containing_service.full_name}/{name}",
            type(request).SerializeToString,
            GetMessageClass(method.output_type).FromString,
        )
        self.call = send(request, metadata=_credentials(caller))
        self._replies: AsyncIterator[Any] = aiter(self.call)

    async def next(self) -> Any:
        """The next reply, or None at the end. Raises Failure."""
        try:
            return await anext(self._replies, None)
        except grpc.aio.AioRpcError as error:
            raise failure_of(error) from None

    async def take(self, count: int) -> list[Any]:
        """The next so many replies."""
        return [await self.next() for _ in range(count)]

    async def rest(self) -> list[Any]:
        """All that come until the end. Raises Failure."""
        found = []
        while (reply := await self.next()) is not None:
            found.append(reply)
        return found

    async def failure(self) -> Failure:
        """How the stream fails, whatever comes before."""
        try:
            await self.rest()
        except Failure as failure:
            return failure
        raise AssertionError("the stream ended well")

    def cancel(self) -> None:
        """Leaves."""
        self.call.cancel()


def _credentials(caller: Caller) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {caller.token}"),) if caller.token else ()


# Notes (C2SP signed-note, tlog-checkpoint, tlog-cosignature).


@dataclass(frozen=True, slots=True)
class Verifier:
    """A key that notes are verified with."""

    name: str
    key_id: bytes
    type: int
    public_key: bytes


def verifier_of(vkey: str) -> Verifier:
    """The key of a text; its id is checked."""
    name, key_id, data = vkey.split("+", 2)
    found = key_of(name, base64.b64decode(data, validate=True)[0], base64.b64decode(data)[1:])
    assert found.key_id.hex() == key_id
    assert len(found.public_key) == 32
    return found


def key_of(name: str, kind: int, public_key: bytes) -> Verifier:
    """A key under a name."""
    key_id = sha256(name.encode() + b"\n" + bytes([kind]) + public_key).digest()[:4]
    return Verifier(name, key_id, kind, public_key)


def vkey_of(key: Verifier) -> str:
    """The text of a key."""
    data = base64.b64encode(bytes([key.type]) + key.public_key).decode()
    return f"{key.name}+{key.key_id.hex()}+{data}"


def opened(note: bytes, keys: Iterable[Verifier]) -> tuple[list[str], list[Verifier]]:
    """The lines of a note's text, and who of these keys has signed it. Each signature by one of them is good."""
    text, separator, lines = note.rpartition(b"\n\n")
    assert separator
    text += b"\n"
    assert lines.endswith(b"\n")
    signers = []
    for line in lines.decode().removesuffix("\n").split("\n"):
        dash, name, data = line.split(" ")
        assert dash == "—"
        signature = base64.b64decode(data, validate=True)
        for key in keys:
            if (key.name, key.key_id) == (name, signature[:4]):
                assert is_good(key, text, signature[4:]), line
                signers.append(key)
    return text.decode().removesuffix("\n").split("\n"), signers


def is_good(key: Verifier, text: bytes, signature: bytes) -> bool:
    """Whether a signature of a text is good, by its key's type."""
    if key.type == WITNESS_KEY:
        time, signature = int.from_bytes(signature[:8], "big"), signature[8:]
        text = f"cosignature/v1\ntime {time}\n".encode() + text
    return ed.verify(key.public_key, text, signature)


@dataclass(frozen=True, slots=True)
class Head:
    """What a checkpoint says."""

    origin: str
    size: int
    root: bytes


def head_of(note: bytes, key: Verifier) -> Head:
    """The head of a checkpoint that a log's key has signed, under the log's origin."""
    (origin, size, root), signers = opened(note, [key])
    assert signers == [key]
    assert origin == key.name
    return Head(origin, int(size), base64.b64decode(root, validate=True))


class Witness:
    """A witness that signs whatever it is given."""

    def __init__(self, name: str, seed: bytes) -> None:
        self._seed = seed
        self.key = key_of(name, WITNESS_KEY, ed.public_key(seed))

    def line(self, note: bytes, time: int = 1_700_000_000) -> bytes:
        """A signature line for the text of a note."""
        text = note.rpartition(b"\n\n")[0] + b"\n"
        signature = ed.sign(self._seed, f"cosignature/v1\ntime {time}\n".encode() + text)
        data = self.key.key_id + time.to_bytes(8, "big") + signature
        return f"— {self.key.name} {base64.b64encode(data).decode()}\n".encode()


# Trees (RFC 9162 §2.1).


def above(left: bytes, right: bytes) -> bytes:
    """The hash of a node."""
    return sha256(b"\x01" + left + right).digest()


def includes(root: bytes, size: int, index: int, leaf_hash: bytes, proof: Sequence[bytes]) -> bool:
    """RFC 9162 §2.1.3.2."""
    at, last, found = index, size - 1, leaf_hash
    if at > last:
        return False
    for other in proof:
        if not last:
            return False
        if at & 1 or at == last:
            found = above(other, found)
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            found = above(found, other)
        at, last = at >> 1, last >> 1
    return not last and found == root


def extends(first: Head, second: Head, proof: Sequence[bytes]) -> bool:
    """RFC 9162 §2.1.4.2, and that every tree begins with the empty one."""
    if first.size in (0, second.size):
        return not proof and (not first.size or first.root == second.root)
    hashes = [*([first.root] if not first.size & (first.size - 1) else []), *proof]
    at, last = first.size - 1, second.size - 1
    while at & 1:
        at, last = at >> 1, last >> 1
    if not hashes:
        return False
    before = after = hashes[0]
    for other in hashes[1:]:
        if not last:
            return False
        if at & 1 or at == last:
            before, after = above(other, before), above(other, after)
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            after = above(after, other)
        at, last = at >> 1, last >> 1
    return not last and (before, after) == (first.root, second.root)


# Texts and files (C2SP tlog-proof, tlog-tiles).


def proof_of(text: bytes) -> tuple[int, list[bytes], bytes]:
    """Index, hashes and checkpoint of a tlog-proof."""
    head, separator, note = text.partition(b"\n\n")
    assert separator
    first, index, *hashes = head.decode().split("\n")
    assert first == "c2sp.org/tlog-proof@v1"
    word, number = index.split(" ")
    assert word == "index"
    return int(number), [base64.b64decode(each, validate=True) for each in hashes], note


def entries_of(bundle: bytes) -> list[bytes]:
    """The entries of a bundle."""
    found = []
    while bundle:
        length = int.from_bytes(bundle[:2], "big")
        assert len(bundle) >= 2 + length
        found.append(bundle[2 : 2 + length])
        bundle = bundle[2 + length :]
    return found


def hashes_of(tile: bytes) -> list[bytes]:
    """The hashes of a tile."""
    assert len(tile) % 32 == 0
    return [tile[at : at + 32] for at in range(0, len(tile), 32)]
