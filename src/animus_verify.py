#!/usr/bin/env python3
"""Verifies an evidence bundle of Animus, offline: python3 -I -S animus_verify.py BUNDLE --trust VKEY ...

This file is all that is needed: Python 3.9 or later and its standard library. It opens no connection, writes nothing
and shares no code with the server. The format of bundles is docs/evidence-format.md. Checked is, in this order:
 1. container   a ZIP whose every byte outside its members is as expected, or a folder without links
 2. bag         BagIt: both manifests list exactly the files that are there, and each has its digest
 3. statement   evidence.dsse.json is signed by a trusted key, over the manifest: so every file is what that key signed
 4. checkpoint  signed by a trusted key; its origin and size are those of evidence.json
 5. entries     from the frontier, all entries lead to the root that the checkpoint signs (RFC 6962)
 6. heads       checkpoints that the auditor kept are of this log; consistency proofs hold
 7. records     each record that an entry names is there with its digest, and no other
 8. run         (of a run bundle) what the run rests on was registered before; its plan is made again; its events are
                judged again one by one; admission, lineage, summary and statements are made again and compared
The verdict is the exit code (--accept makes a good one end with 0 too):
  0 WITNESSED      11 holds, and the witnesses that the policy asks for have cosigned the checkpoint
 10 CONSISTENT     11 holds, and the log still has what a checkpoint said that the auditor kept
 11 SIGNED         every check holds, by the word of the trusted key alone
 20 INCOMPLETE     something that has to be there is missing
 30 CONTRADICTION  a trusted key signed what does not fit together
 40 INVALID        malformed, altered, of another project, or not signed by a trusted key
 64 USAGE          this program was called wrongly
"""

from __future__ import annotations

import argparse, base64, graphlib, hashlib, heapq, json, os, re, stat, struct, sys, zipfile
from collections import Counter
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator, NoReturn, Sequence

CODES = dict(WITNESSED=0, CONSISTENT=10, SIGNED=11, INCOMPLETE=20, CONTRADICTION=30, INVALID=40, USAGE=64)
MAX_LINE, MAX_NOTE, MAX_RECORD = 65_535, 1 << 20, 64 << 20  # bytes of an entry, of a note, and of another document
MAX_SIZE, ENTRIES_IN_FILE = 2**63 - 1, 10_000

class Failure(Exception):
    """Why a bundle is not what it says: a verdict, the file at fault, and what is wrong with it."""
    def __init__(self, verdict: str, place: str, problem: str) -> None:
        super().__init__(f"{place}: {problem}")
        self.verdict, self.place, self.problem = verdict, place, problem

def invalid(place: str, problem: str) -> Failure: return Failure("INVALID", place, problem)  # malformed, altered
def missing(place: str, problem: str) -> Failure: return Failure("INCOMPLETE", place, problem)  # not there
def contradiction(place: str, problem: str) -> Failure: return Failure("CONTRADICTION", place, problem)  # does not fit

def within(place: str, work: Callable[..., Any], *given: Any) -> Any:
    """Does work on a document. What the work stumbles over is that the document has another form than it should."""
    try: return work(*given)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise invalid(place, f"has another form than it should: {type(error).__name__} {error}"[:300]) from None

# 1. JSON (animus-json-1): one spelling of each document. Sorted keys, no space, no floats, no null.
DIGEST, RANDOM_ID = re.compile("sha256:[0-9a-f]{64}"), re.compile("[0-9a-f]{32}")
MAX_DEPTH, MAX_INTEGER = 32, 2**53 - 1

def refuse_number(text: str) -> NoReturn: raise ValueError(f"holds {text[:20]}, which is no number of a document")
def load_integer(digits: str) -> int:
    if len(digits) > 17 or abs(int(digits)) > MAX_INTEGER: raise ValueError("holds an integer beyond 2^53-1")
    return int(digits)

DECODER = json.JSONDecoder(parse_float=refuse_number, parse_constant=refuse_number, parse_int=load_integer)
ENCODER = json.JSONEncoder(sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)

def dump(tree: object) -> bytes: return ENCODER.encode(tree).encode()

def parse(data: bytes, place: str) -> Any:
    """The tree of bytes that are its one spelling: a repeated key, a space or another order of keys is not."""
    try:
        tree = DECODER.decode(data.decode())
        if dump(tree) != data: raise ValueError("is not in canonical form")
    except RecursionError: raise invalid(place, "nests too deeply") from None
    except ValueError as error: raise invalid(place, f"is no canonical JSON: {error}") from None  # no UTF-8 either
    return tree
def parse_document(data: bytes, place: str, schema: str = "") -> Any:
    """As `parse`, for an object within the limits of animus-json-1; of a schema, if one is named."""
    tree = parse(data, place)
    if not isinstance(tree, dict) or not isinstance(tree.get("schema"), str):
        raise invalid(place, "is no document with a schema")
    if schema and tree["schema"] != f"animus.{schema}/v1": raise contradiction(place, f"is no {schema}")
    row: list[Any] = [tree]
    for _ in range(MAX_DEPTH + 1):  # level by level
        if any(node is None or (type(node) is str and "\0" in node) for node in row): break
        inner = [node for node in row if isinstance(node, (dict, list))]
        if not inner: return tree
        if not all(key.isascii() and "\0" not in key for node in inner if type(node) is dict for key in node): break
        row = [below for node in inner for below in (node.values() if isinstance(node, dict) else node)]
    raise invalid(place, f"holds null or NUL, a key that is no ASCII text, or nests deeper than {MAX_DEPTH} levels")

def only(tree: Any, keys: str, place: str) -> Any:
    """The object, if it has these keys and no other."""
    if isinstance(tree, dict) and tree.keys() == set(keys.split()): return tree
    raise invalid(place, f"has other fields than {keys}")
def digest_of(data: bytes) -> str: return "sha256:" + hashlib.sha256(data).hexdigest()
def hex_of(digest: str) -> str:
    """The hexadecimal digits of a digest."""
    if not DIGEST.fullmatch(digest): raise ValueError(f"{digest!r} is no digest")
    return digest[len("sha256:") :]

# 2. Trees (RFC 6962 section 2.1).
def leaf_hash(entry: bytes) -> bytes: return hashlib.sha256(b"\x00" + entry).digest()
def node_hash(left: bytes, right: bytes) -> bytes: return hashlib.sha256(b"\x01" + left + right).digest()

class Tree:
    """A tree that grows leaf by leaf: its size, and the roots of the perfect subtrees that it consists of."""
    def __init__(self, size: int, whole: Iterable[bytes]) -> None:
        self.size, self.whole = size, list(whole)
    def add(self, leaf: bytes) -> None:
        """Appends the hash of a leaf."""
        at = self.size
        while at & 1:  # each final one bit of the size is a perfect subtree that is joined with what follows it
            leaf, at = node_hash(self.whole.pop(), leaf), at >> 1
        self.whole.append(leaf)
        self.size += 1
    def root(self) -> bytes:
        """The root over all leaves so far."""
        if not self.whole: return hashlib.sha256().digest()
        above = self.whole[-1]
        for left in reversed(self.whole[:-1]): above = node_hash(left, above)
        return above

def climb(at: int, last: int, start: bytes, proof: Iterable[bytes]) -> tuple[bytes, bytes] | None:
    """From a hash in a row of a tree up to two roots: of what ends with it, and of all; nothing for another length."""
    before = after = start
    for other in proof:
        if not last: return None
        if at & 1 or at == last:
            before, after = node_hash(other, before), node_hash(other, after)
            while at and not at & 1: at, last = at >> 1, last >> 1
        else: after = node_hash(after, other)
        at, last = at >> 1, last >> 1
    return None if last else (before, after)
def included_root(index: int, size: int, leaf: bytes, proof: Sequence[bytes]) -> bytes | None:
    """The root that an inclusion proof leads to (RFC 9162 section 2.1.3.2); nothing if it has another length."""
    found = climb(index, size - 1, leaf, proof) if 0 <= index < size else None
    return found[1] if found else None
def consistent_roots(first: int, second: int, first_root: bytes, proof: Sequence[bytes]) -> tuple[bytes, bytes] | None:
    """Both roots that a consistency proof leads to (RFC 9162 section 2.1.4.2); nothing if it has another length."""
    if not 0 < first < second or not proof: return None
    start, *rest = proof if first & (first - 1) else [first_root, *proof]  # a perfect tree is not in its own proof
    at, last = first - 1, second - 1
    while at & 1: at, last = at >> 1, last >> 1
    return climb(at, last, start, rest)

# 3. Ed25519 (RFC 8032 section 5.1). Points have one spelling, and neither key nor R is of small order.
P, L = 2**255 - 19, 2**252 + 27742317777372353535851937790883648493
D, ROOT_OF_MINUS_ONE = -121665 * pow(121666, P - 2, P) % P, pow(2, (P - 1) // 4, P)
IDENTITY = (0, 1, 1, 0)  # a point is X, Y, Z, T with x = X/Z, y = Y/Z, x*y = T/Z

def add(left: Any, right: Any) -> Any:
    """The sum of two points, equal ones too."""
    a, b = (left[1] - left[0]) * (right[1] - right[0]), (left[1] + left[0]) * (right[1] + right[0])
    c, d = 2 * left[3] * right[3] % P * D, 2 * left[2] * right[2]
    e, f, g, h = (b - a) % P, (d - c) % P, (d + c) % P, (b + a) % P
    return e * f % P, g * h % P, f * g % P, e * h % P
def multiply(scalar: int, point: Any) -> Any:
    """A multiple of a point."""
    result = IDENTITY
    while scalar:
        if scalar & 1: result = add(result, point)
        point, scalar = add(point, point), scalar >> 1
    return result
def encode_point(point: Any) -> bytes:
    """The one spelling of a point."""
    inverse = pow(point[2], P - 2, P)
    return int.to_bytes(point[1] * inverse % P | (point[0] * inverse % P & 1) << 255, 32, "little")
def decode_point(data: bytes) -> Any:
    """The point of its one spelling; nothing for other bytes, and for a point of small order."""
    number = int.from_bytes(data, "little")
    y, sign = number & (1 << 255) - 1, number >> 255
    if len(data) != 32 or y >= P: return None
    square = (y * y - 1) * pow(D * y * y + 1, P - 2, P) % P
    x = pow(square, (P + 3) // 8, P)
    if (x * x - square) % P: x = x * ROOT_OF_MINUS_ONE % P
    if (x * x - square) % P or (x == 0 and sign): return None
    if x & 1 != sign: x = P - x
    point = (x, y, 1, x * y % P)
    return None if encode_point(multiply(8, point)) == encode_point(IDENTITY) else point
BASE = decode_point((4 * pow(5, P - 2, P) % P).to_bytes(32, "little"))
def is_signed(public_key: bytes, message: bytes, signature: bytes) -> bool:
    """Whether a signature of a message by a key is good: R is [S]B - [k]A, without the cofactor."""
    key, r, s = decode_point(public_key), decode_point(signature[:32]), int.from_bytes(signature[32:], "little")
    if len(signature) != 64 or key is None or r is None or s >= L: return False
    k = int.from_bytes(hashlib.sha512(signature[:32] + public_key + message).digest(), "little") % L
    minus_key = (-key[0] % P, key[1], key[2], -key[3] % P)
    return encode_point(add(multiply(s, BASE), multiply(k, minus_key))) == signature[:32]

# 4. Keys, signed notes and checkpoints (C2SP signed-note, tlog-checkpoint, tlog-cosignature, tlog-proof).
LOG_KEY, WITNESS_KEY = 1, 4
VERIFIER_KEY = re.compile(r"([^\s+]+)\+([0-9a-f]{8})\+([A-Za-z0-9+/]+={0,2})")
SIGNATURE_LINE = re.compile("\u2014 ([^\\s+]+) ([A-Za-z0-9+/]+={0,2})")
CONTROL, NUMBER = re.compile("[\\x00-\\x09\\x0b-\\x1f]"), re.compile("0|[1-9][0-9]{0,18}")

def unbase64(text: str) -> bytes | None:
    """The bytes of base64 in its one spelling."""
    try: data = base64.b64decode(text, validate=True)
    except ValueError: return None
    return data if base64.b64encode(data).decode() == text else None
class Key:
    """A public key and the name under which it signs."""
    def __init__(self, name: str, kind: int, public_key: bytes) -> None:
        self.name, self.kind, self.public_key = name, kind, public_key
        self.key_id = hashlib.sha256(name.encode() + b"\n" + bytes([kind]) + public_key).digest()[:4]
def load_key(text: str, place: str) -> Key:
    """The key of `<name>+<id>+<base64 of type and key>`."""
    match = VERIFIER_KEY.fullmatch(text) if len(text) <= 1_000 else None
    data = unbase64(match[3]) if match else None
    if match and data and len(data) == 33 and data[0] in (LOG_KEY, WITNESS_KEY) and not CONTROL.search(match[1]):
        key = Key(match[1], data[0], data[1:])
        if key.key_id.hex() == match[2]: return key
    raise invalid(place, "has no Ed25519 key of the form <name>+<8 hexadecimal digits, its id>+<base64>")

def parse_note(data: bytes, place: str) -> tuple[str, list[tuple[str, bytes, bytes]]]:
    """Text of a note, and name, key id and bytes of each signature."""
    text, separator, lines = data.rpartition(b"\n\n")
    if len(data) > MAX_NOTE or not separator or not lines.endswith(b"\n"):
        raise invalid(place, "is no signed note: a text, an empty line, and lines of signatures")
    try: body, signed = text.decode() + "\n", lines.decode().split("\n")[:-1]
    except UnicodeDecodeError: raise invalid(place, "is not UTF-8") from None
    if CONTROL.search(body) or len(signed) > 100:
        raise invalid(place, "has a control character or more than 100 signatures")
    signatures = []
    for line in signed:
        match = SIGNATURE_LINE.fullmatch(line)
        found = unbase64(match[2]) if match else None
        if not match or not found or len(found) < 5 or CONTROL.search(match[1]):
            raise invalid(place, "has a line of signatures that is not of the form \u2014 <key name> <base64>")
        signatures.append((match[1], found[:4], found[4:]))
    return body, signatures
def open_note(data: bytes, keys: Iterable[Key], place: str) -> tuple[str, list[Key]]:
    """Text of a note, and those of the keys that signed it. A false signature under the name of one is refused."""
    text, signatures = parse_note(data, place)
    signers = []
    for name, key_id, signature in signatures:
        for key in (each for each in keys if (each.name, each.key_id) == (name, key_id)):
            message = text.encode()
            if key.kind == WITNESS_KEY:
                time, signature = int.from_bytes(signature[:8], "big"), signature[8:]
                message = f"cosignature/v1\ntime {time}\n".encode() + message
                if time > MAX_SIZE: raise invalid(place, f"has a cosignature of {name} at no time that exists")
            if not is_signed(key.public_key, message, signature):
                raise invalid(place, f"has a signature of {name} that is not good")
            signers.append(key)
    return text, signers
def parse_checkpoint(text: str, place: str) -> tuple[str, int, bytes]:
    """Origin, size and root of the text of a checkpoint."""
    lines = text.split("\n")[:-1]
    root = unbase64(lines[2]) if len(lines) >= 3 and all(lines) else None
    if root is None or len(root) != 32 or not NUMBER.fullmatch(lines[1]) or int(lines[1]) > MAX_SIZE:
        raise invalid(place, "is no checkpoint: its lines are an origin, a size and the base64 of a root")
    return lines[0], int(lines[1]), root
def open_checkpoint(data: bytes, keys: Sequence[Key], place: str) -> tuple[str, int, bytes, list[Key]]:
    """Origin, size and root of a checkpoint that the log itself signed, and all of the keys that did."""
    text, signers = open_note(data, keys, place)
    origin, size, root = parse_checkpoint(text, place)
    if not any(key.kind == LOG_KEY and key.name == origin for key in signers):
        raise invalid(place, f"is not signed by a trusted key of {origin}")
    return origin, size, root, signers
def parse_hashes(lines: Sequence[str], place: str) -> list[bytes]:
    """Hashes, one in each line; at most as many as a proof may have."""
    hashes = [found for found in map(unbase64, lines[:65]) if found and len(found) == 32]
    if len(hashes) == len(lines) <= 64: return hashes
    raise invalid(place, "has a line that is no base64 of 32 bytes, or more than 64 of them")
def parse_proof(data: bytes, place: str) -> tuple[int, list[bytes], bytes]:
    """Index, hashes and checkpoint of a proof of inclusion."""
    head, separator, checkpoint = data.partition(b"\n\n")
    first, index, *lines = [*head.decode("ascii", "replace").split("\n"), "", ""]
    word, _, number = index.partition(" ")
    if not separator or first != "c2sp.org/tlog-proof@v1" or word != "index" or not NUMBER.fullmatch(number):
        raise invalid(place, "is no tlog-proof with an index and without extra data")
    return int(number), parse_hashes(lines[:-2], place), checkpoint

# 5. Policies (C2SP tlog-policy): which witnesses are trusted, and how many of whom have to agree.
class Policy:
    """Keys of logs and witnesses, groups with their thresholds, and the name whose agreement is asked."""
    def __init__(self) -> None:
        self.logs: list[Key] = []
        self.witnesses: dict[bytes, Key] = {}
        self.groups: dict[bytes, tuple[int, list[bytes]]] = {}
        self.members: set[bytes] = set()
        self.quorum: bytes | None = None
    def read(self, words: list[bytes]) -> None:
        """Takes a line. Raises ValueError with what is wrong with it."""
        kind, count, known = words[0], len(words), {*self.witnesses, *self.groups}
        fresh = count > 1 and words[1] not in {*known, b"none"}
        if kind == b"log" and count in (2, 3): self.logs.append(self.key(words[1], LOG_KEY, self.logs))
        elif kind == b"witness" and count in (3, 4) and fresh:
            self.witnesses[words[1]] = self.key(words[2], WITNESS_KEY, list(self.witnesses.values()))
        elif kind == b"group" and count >= 4 and len(self.groups) < 256 and fresh:
            counts, members = {b"any": 1, b"all": count - 3}, words[3:]
            asked = counts.get(words[2]) or (int(words[2]) if re.fullmatch(rb"[1-9][0-9]{0,3}", words[2]) else 0)
            if not 1 <= asked <= len(members) or len(set(members) & known - self.members) != len(members):
                raise ValueError("asks for none or more than all, or has a member that is undefined or one already")
            self.members.update(members)
            self.groups[words[1]] = (asked, members)
        elif kind == b"quorum" and count == 2 and self.quorum is None and words[1] in {*known, b"none"}:
            self.quorum = words[1]
        else: raise ValueError("is no line of a policy, or has a name that is defined twice or not at all")
    def key(self, text: bytes, kind: int, others: list[Key]) -> Key:
        """The key of a line."""
        key = load_key(text.decode("utf-8", "replace"), "policy")
        if key.kind == kind and key.public_key not in [o.public_key for o in others] and len(others) < 256: return key
        raise ValueError("has a key of another type, a second time, or beyond the 256th")
    def agreed(self, signers: Iterable[Key]) -> bool:
        """Whether the quorum has seen what these keys cosigned."""
        signed = {(key.name, key.public_key) for key in signers if key.kind == WITNESS_KEY}
        seen = {name for name, key in self.witnesses.items() if (key.name, key.public_key) in signed}
        for name, (threshold, members) in self.groups.items():
            if len(seen.intersection(members)) >= threshold: seen.add(name)
        return self.quorum in seen

def parse_policy(data: bytes, place: str) -> Policy:
    """The policy of a file."""
    policy = Policy()
    if len(data) > MAX_NOTE or not data.endswith(b"\n"):
        raise invalid(place, "is longer than 1 MiB, or does not end with a line feed")
    for number, line in enumerate(data.split(b"\n")[:-1], 1):
        words = line.split()
        try:
            if re.search(rb"[\x00-\x08\x0b-\x1f\x7f]", line): raise ValueError("has a control character")
            if words and not words[0].startswith(b"#"): policy.read(words)
        except (ValueError, Failure) as error: raise invalid(f"{place} line {number}", str(error)) from None
    if policy.quorum is None: raise invalid(place, "has no quorum line")
    return policy

# 6. The container: a folder without links, or a ZIP of stored members. What lies between and after the members follows
# from their names, sizes and CRCs, so those bytes are made again and compared.
PART = re.compile("[A-Za-z0-9_-][A-Za-z0-9._-]*")
LOCAL, CENTRAL, END = struct.Struct("<4s5H3L2H"), struct.Struct("<4s6H3L5H2L"), struct.Struct("<4s4H2LH")
OLDEST = 0x0021  # 1980-01-01, as a ZIP says it

class Bundle:
    """The files of a bundle by name. `untaken` are those that have found no place yet; `reading` is the last opened."""
    def __init__(self, path: Path) -> None:
        self.folder, self.reading = "", str(path)
        self.parts: dict[str, tuple[Path, int, int]] = {}  # file, start and size, in the order of names
        if path.is_dir(): self.list_folder(path, "", 0)
        else: within(path.name, self.list_zip, path)
        self.parts = dict(sorted(self.parts.items()))
        self.untaken = set(self.parts)
    def list_folder(self, path: Path, prefix: str, depth: int) -> None:
        """Finds the files of a folder; the one folder in it, if it is what a ZIP was unpacked in."""
        names = sorted(os.listdir(path))
        if not depth and len(names) == 1 and stat.S_ISDIR((path / names[0]).lstat().st_mode):
            self.folder, path = names[0], path / names[0]
            names = sorted(os.listdir(path))
        for name in names:
            mode, size = (path / name).lstat().st_mode, (path / name).lstat().st_size
            if not PART.fullmatch(name) or depth > 4 or not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
                raise invalid(prefix + name, "is no name of a bundle's file, or a link or device")
            if stat.S_ISDIR(mode): self.list_folder(path / name, f"{prefix}{name}/", depth + 1)
            else: self.parts[prefix + name] = (path / name, 0, size)
    def list_zip(self, path: Path) -> None:
        """Finds the members of a ZIP; refuses one that has a byte which those do not need."""
        at, directory, last = 0, b"", ""
        try:
            with zipfile.ZipFile(path) as archive: members = archive.infolist()
        except (zipfile.BadZipFile, RuntimeError, OSError, EOFError, struct.error) as error:
            raise invalid(path.name, f"is no ZIP that can be read: {error}") from None
        if path.stat().st_size >= 1 << 32 or len(members) >= (1 << 16) - 1:
            raise invalid(path.name, "is too large for this kind of ZIP: unpack it, and name the folder")
        with path.open("rb") as file:
            for member in members:
                name, crc, size = member.filename, member.CRC, member.file_size
                self.folder = self.folder or name.partition("/")[0]
                in_order = last < name and name.startswith(self.folder + "/")
                if len(name) > 250 or not all(map(PART.fullmatch, name.split("/"))) or not in_order:
                    raise invalid(name, "is no name of a bundle's file, or not in the order of names below one folder")
                data, last = name.encode(), name
                head = LOCAL.pack(b"PK\x03\x04", 20, 0, 0, 0, OLDEST, crc, size, size, len(data), 0) + data
                directory += CENTRAL.pack(b"PK\x01\x02", 3 << 8 | 20, 20, 0, 0, 0, OLDEST, crc, size, size, len(data),
                                          0, 0, 0, 0, 0o100644 << 16, at) + data
                file.seek(at)
                if file.read(len(head)) != head:
                    raise invalid(name, "is not stored as a member of a bundle is: plain, uncompressed, end to end")
                self.parts[name[len(self.folder) + 1 :]] = (path, at + len(head), size)
                at += len(head) + size
            file.seek(at)
            end = END.pack(b"PK\x05\x06", 0, 0, len(members), len(members), len(directory), at, 0)
            if file.read(len(directory) + len(end) + 1) != directory + end:
                raise invalid(path.name, "does not end with the directory of its members and nothing else")
    def blocks(self, name: str) -> Iterator[bytes]:
        """A file of the bundle, block by block."""
        if name not in self.parts: raise missing(name, "is not in the bundle")
        self.reading = name
        path, start, left = self.parts[name]
        with path.open("rb") as file:
            file.seek(start)
            while left:
                block = file.read(min(left, 1 << 18))
                if not block: raise invalid(name, "ends too early")
                left -= len(block)
                yield block
    def read(self, name: str, most: int = MAX_RECORD) -> bytes:
        """All of a file that has its place."""
        if name in self.parts and self.parts[name][2] > most: raise invalid(name, f"is longer than {most} bytes")
        self.untaken.discard(name)
        return b"".join(self.blocks(name))
    def lines(self, name: str, most: int = MAX_RECORD) -> Iterator[tuple[str, bytes]]:
        """Place and bytes of each line of a file that has its place, without line feeds."""
        self.untaken.discard(name)
        number, rest = 0, b""
        for block in self.blocks(name):
            *whole, rest = (rest + block).split(b"\n")
            for line in [*whole, rest]:
                if len(line) > most: raise invalid(f"{name} line {number + 1}", f"is longer than {most} bytes")
            for at, line in enumerate(whole, number + 1): yield f"{name} line {at}", line
            number += len(whole)
        if rest: raise invalid(name, "does not end with a line feed")
    def hashes(self, name: str) -> list[bytes]:
        """The hashes of a file that has one in each line."""
        return parse_hashes([line.decode("ascii", "replace") for _, line in self.lines(name, 100)], name)
    def below(self, folder: str) -> list[str]: return [name for name in self.parts if name.startswith(folder)]

# 7. The bag (RFC 8493), what it says it is, and the statement that signs it.
TAG_FILES = ["bag-info.txt", "bagit.txt", "evidence.dsse.json", "manifest-sha256.txt"]
MANIFEST_LINE = re.compile("([0-9a-f]{64})  ([A-Za-z0-9._/-]+)")

def check_manifest(bundle: Bundle, name: str, files: list[str]) -> dict[str, str]:
    """The digests of a manifest, which lists exactly these files, sorted, each with the digest that it has."""
    listed, last = {}, ""
    for place, line in bundle.lines(name):
        match = MANIFEST_LINE.fullmatch(line.decode("ascii", "replace"))
        if not match or match[2] <= last: raise invalid(place, "is no digest and path, or is not sorted")
        last, listed[match[2]] = match[2], match[1]
    for path in sorted(listed.keys() | set(files)):
        if path not in listed: raise invalid(path, f"is not listed in {name}")
        if path not in files: raise missing(path, f"is listed in {name}, and is not there")
        found = hashlib.sha256()
        for block in bundle.blocks(path): found.update(block)
        if found.hexdigest() != listed[path]: raise invalid(path, f"has another digest than {name} lists")
    return listed
def check_bag(bundle: Bundle) -> dict[str, str]:
    """The bag's own files and both manifests; the digests of the tag files."""
    if bundle.read("bagit.txt", 1_000) != b"BagIt-Version: 1.0\nTag-File-Character-Encoding: UTF-8\n":
        raise invalid("bagit.txt", "is not that of a bundle")
    check_manifest(bundle, "manifest-sha256.txt", bundle.below("data/"))
    return check_manifest(bundle, "tagmanifest-sha256.txt", TAG_FILES)
def bag_name(said: dict[str, Any]) -> str:
    """The name of the bag."""
    what = f"run-{said['runId']}" if said["runId"] else f"log-{said['firstIndex']}"
    return f"animus-{said['projectId']}-{what}-{said['size']}"
def run_name(said: dict[str, Any]) -> str: return f"projects/{said['projectId']}/runs/{said['runId']}"

def check_evidence(bundle: Bundle) -> dict[str, Any]:
    """What the bundle says it is."""
    place = "data/evidence.json"
    said: dict[str, Any] = parse_document(bundle.read(place), place, "evidence")
    only(said, "schema projectId runId origin epoch firstIndex size knownSizes", place)
    sizes, first, size = said["knownSizes"], said["firstIndex"], said["size"]
    if said["epoch"] < 1 or not said["origin"].endswith(f"/{said['projectId']}/{said['epoch']}"):
        raise invalid(place, "has an origin that is not <instance>/<project>/<epoch>")
    if (said["runId"] and not RANDOM_ID.fullmatch(said["runId"])) or not 0 <= first < size or (
            sizes != sorted(set(sizes)) or not all(0 < each < size for each in sizes)):
        raise invalid(place, "has a runId that is none, or a firstIndex or knownSizes that do not go with its size")
    subject = run_name(said) if said["runId"] else f"projects/{said['projectId']}"
    info = f"External-Description: Animus evidence\nExternal-Identifier: {subject}\n"
    if bundle.read("bag-info.txt", 1_000) != info.encode(): raise invalid("bag-info.txt", "is not that of this bundle")
    if bundle.folder not in ("", bag_name(said)): raise invalid(bundle.folder, "is another name than the bag has")
    return said

def resource(name: str, digest: str) -> dict[str, Any]: return {"digest": {"sha256": hex_of(digest)}, "name": name}

def check_statement(bundle: Bundle, name: str, kind: str, subject: Any, predicate: Any, keys: Sequence[Key]) -> None:
    """A DSSE envelope whose in-toto statement is exactly this one, signed by a trusted key."""
    ((_, data),) = bundle.lines(name)
    envelope = only(parse(data, name), "payload payloadType signatures", name)
    statement = {"_type": "https://in-toto.io/Statement/v1", "predicate": predicate, "predicateType": kind}
    payload, payload_type = unbase64(envelope["payload"]), envelope["payloadType"]
    if payload is None or payload_type != "application/vnd.in-toto+json":
        raise invalid(name, "is no envelope of an in-toto statement")
    message = b"DSSEv1 %d %s %d %s" % (len(payload_type), payload_type.encode(), len(payload), payload)
    known, signed = {hashlib.sha256(key.public_key).hexdigest(): key for key in keys}, set()
    for item in envelope["signatures"]:
        key_id, signature = only(item, "keyid sig", name)["keyid"], unbase64(item["sig"])
        if key_id in signed or not re.fullmatch("[0-9a-f]{64}", key_id) or signature is None or len(signature) != 64:
            raise invalid(name, "has a signature whose keyid is none or stands twice, or that is no signature")
        signed.add(key_id)
        if key_id in known and not is_signed(known[key_id].public_key, message, signature):
            raise invalid(name, "has a signature that is not good")
    if not signed & known.keys(): raise invalid(name, "is not signed by a trusted key")
    if payload != dump({**statement, "subject": subject}):
        raise contradiction(name, "states something else than follows from the bundle")

# 8. The log: checkpoint, entries, known heads.
ENTRY = ("schema projectId entryId principal action resource method requestId requestDigest time outcome reason records"
         " refusals replyDigest")

class Log:
    """What the checkpoint says, and what was found on the way to its root."""
    def __init__(self, bundle: Bundle, said: dict[str, Any], keys: Sequence[Key], known: Iterable[int]) -> None:
        self.bundle, self.said, self.project, self.first = bundle, said, said["projectId"], said["firstIndex"]
        place = "data/log/checkpoint"
        self.note = bundle.read(place, MAX_NOTE)
        origin, self.size, self.root, self.signers = open_checkpoint(self.note, keys, place)
        if (origin, self.size) != (said["origin"], said["size"]):
            raise contradiction(place, "is of another origin or size than evidence.json says")
        self.tree = Tree(self.first, bundle.hashes("data/log/frontier"))
        if len(self.tree.whole) != bin(self.first).count("1"):
            raise invalid("data/log/frontier", f"has not as many hashes as a tree of {self.first} leaves has subtrees")
        self.roots = {self.first: self.tree.root()}  # by size: of those that are asked for, and reached
        self.wanted, self.entry_ids = {*said["knownSizes"], *known}, set[bytes]()
    def files(self) -> list[str]: return [f"{first:020d}" for first in range(self.first, self.size, ENTRIES_IN_FILE)]
    def entries(self, file: str) -> Iterator[tuple[str, bytes, dict[str, Any]]]:
        """Place, line and tree of each entry of a file; the tree of the log grows by it."""
        name, end = f"data/entries/{file}.ndjson", min(self.size, int(file) + ENTRIES_IN_FILE)
        for place, line in self.bundle.lines(name, MAX_LINE):
            entry = within(place, check_entry, line, self.project, place)
            entry_id = bytes.fromhex(entry["entryId"])
            if entry_id in self.entry_ids or self.tree.size >= end:
                raise contradiction(place, "has the id of another entry, or is one more than the log has")
            self.entry_ids.add(entry_id)
            self.tree.add(leaf_hash(line))
            if self.tree.size in self.wanted: self.roots[self.tree.size] = self.tree.root()
            yield place, line, entry
        if self.tree.size != end: raise missing(name, f"has fewer entries than the log: it ends at {self.tree.size}")
    def check_root(self) -> None:
        """After all entries: they lead to the root that was signed, and what is known to the checkpoint."""
        if self.tree.root() != self.root:
            raise contradiction("data/log/checkpoint", "signs another root than the entries lead to")
        for size in self.said["knownSizes"]: self.check_consistency(size, self.roots.get(size))
    def check_consistency(self, size: int, root: bytes | None) -> None:
        """The proof from a tree to that of the checkpoint; of a tree whose root nobody knows, only its form."""
        place = f"data/log/consistency/{size}"
        found = consistent_roots(size, self.size, root or b"", self.bundle.hashes(place))
        is_open = root is None and not size & (size - 1)  # the proof from a perfect tree begins at its root
        if not found or (found[1] != self.root and not is_open) or found[0] != (root or found[0]):
            raise contradiction(place, f"does not lead from the tree of {size} entries to the checkpoint")
    def covers(self, size: int, root: bytes, place: str) -> bool:
        """Whether the log is shown to begin with the tree of a checkpoint that the auditor kept."""
        found = self.root if size == self.size else self.roots.get(size)
        if found is not None and found != root:
            raise contradiction(place, f"has another root of {size} entries than the log of this bundle")
        if found is None and size in self.said["knownSizes"]:
            try: self.check_consistency(size, root)
            except Failure as failure: raise contradiction(place, f"{failure.place} {failure.problem}") from None
        return size > 0 and (found is not None or size in self.said["knownSizes"])

def check_entry(line: bytes, project: str, place: str) -> dict[str, Any]:
    """The tree of an entry of the project."""
    entry: dict[str, Any] = only(parse(line, place), ENTRY, place)
    if entry["schema"] != "animus.audit_entry/v1" or not RANDOM_ID.fullmatch(entry["entryId"]):
        raise invalid(place, "is no audit entry")
    told = any(each["kind"] != "admission_refusal" for each in entry["records"])  # why a run was refused is no change
    if entry["projectId"] != project or (entry["outcome"] == "accepted") != told:
        raise contradiction(place, "is an entry of another project, or has records that do not go with its outcome")
    return entry

# 9. Records: each that an entry names, in order, and no other.
class Lines:
    """The lines of a file of records, each taken by what an entry says of it."""
    def __init__(self, bundle: Bundle, name: str) -> None:
        self.name, self.lines = name, bundle.lines(name)
    def next(self, record: dict[str, str]) -> tuple[str, bytes]:
        """Place and bytes of the next record, which has to be this one."""
        kind, digest = record["kind"], record["digest"]
        place, line = next(self.lines, (self.name, None))
        if line is None: raise missing(place, f"ends before the {kind} {digest} that an entry names")
        if digest_of(line) != digest: raise invalid(place, f"is not the {kind} {digest} that an entry names")
        if b'"schema":"animus.%s/v' % kind.encode() not in line: raise contradiction(place, f"is no {kind}")
        return place, line
    def end(self) -> None:
        if next(self.lines, None): raise invalid(self.name, "has records that no entry names")

def named_records(entry: dict[str, Any], take: Any, place: str) -> Iterator[tuple[str, str, bytes]]:
    """Kind, place and bytes of each record of an entry, those included that it names through a manifest."""
    for record in entry["records"]:
        found, line = within(place, take, record)
        yield record["kind"], found, line
        if record["kind"] == "record_manifest":
            listed = parse_document(line, found, "record_manifest")["records"]
            if len(entry["records"]) > 1 or any(each["kind"] == "record_manifest" for each in listed):
                raise contradiction(place, "names a record_manifest beside other records, or in another")
            for each in listed: yield (each["kind"], *within(found, take, each))

# 10. The plan: execution order, retries and critical path follow from the pipeline alone.
def delays_of(backoff: dict[str, Any], count: int) -> list[int]:
    """Whole seconds to wait after attempt 1, 2, ..., count: exact, rounded down, up to the maximum."""
    whole, _, fraction = backoff["multiplier"].partition(".")
    thousandths, delays, wait, scale = int(whole + fraction.ljust(3, "0")), [], backoff["initialSeconds"], 1
    for _ in range(count):
        delays.append(min(wait // scale, backoff["maxSeconds"]))
        if wait < backoff["maxSeconds"] * scale: wait, scale = wait * thousandths, scale * 1000
    return delays

def make_plan(run_spec: str, pipeline_spec: str, pipeline: dict[str, Any]) -> dict[str, Any]:
    """The plan of a pipeline, for the digests of both specs."""
    steps = {step["name"]: step for step in pipeline["spec"]["steps"]}
    before = {name: {each["fromStep"] for each in step["inputs"]["artifacts"]} for name, step in steps.items()}
    for each in pipeline["spec"]["dependencies"]: before[each["step"]].add(each["dependsOn"])
    waits = {name: sorted(names) for name, names in before.items()}
    level, worst, ready, planned = dict[str, int](), dict[str, int](), list[str](), []
    sorter = graphlib.TopologicalSorter(waits)
    sorter.prepare()  # raises ValueError where steps wait for each other
    while sorter.is_active():
        for name in sorter.get_ready(): heapq.heappush(ready, name)
        name = heapq.heappop(ready)  # of the steps whose dependencies all stand before, the one with the smallest name
        sorter.done(name)
        policy = steps[name]["retryPolicy"]
        retries = min(policy["maxAttempts"], 100) - 1 if policy["retryOn"] else 0
        delays = delays_of(policy["backoff"], retries)
        level[name] = 1 + max((level[each] for each in waits[name]), default=-1)
        worst[name] = sum(delays) + max((worst[each] for each in waits[name]), default=0)
        planned.append({
            "name": name, "level": level[name], "dependsOn": waits[name], "maxAttempts": retries + 1,
            "retryOn": policy["retryOn"], "retryDelaysSeconds": delays, "worstCaseDelaySeconds": worst[name],
        })
    path = [min(level, key=lambda name: (-level[name], name))]
    while level[path[-1]]: path.append(min(each for each in waits[path[-1]] if level[each] == level[path[-1]] - 1))
    return {"schema": "animus.execution_plan/v1", "runSpecDigest": run_spec, "pipelineSpecDigest": pipeline_spec,
            "steps": planned, "criticalPath": path[::-1]}

# 11. The state of a run: what each event may follow, and what it leads to.
ENDS = ("succeeded", "failed", "canceled")

class State:
    """States of a run and its steps while events are accepted one by one; without steps before there is a plan."""
    def __init__(self, steps: Iterable[dict[str, Any]]) -> None:
        self.cancel_requested = self.started = False
        self.planned = {step["name"]: step for step in steps}  # in the order of the plan: dependencies come first
        self.attempts: dict[str, dict[int, dict[str, Any]]] = {name: {} for name in self.planned}
        self.followers: dict[str, list[str]] = {name: [] for name in self.planned}
        self.steps: dict[str, str] = {}
        self.counts: Counter[str] = Counter()
        for name, step in self.planned.items():
            for before in step["dependsOn"]: self.followers[before].append(name)
        self.update(self.planned)
    def update(self, names: Iterable[str]) -> None:
        """Derives these steps again, and what follows from those that change."""
        left = list(names)[::-1]
        while left:
            name = left.pop()
            before, after = self.steps.get(name, ""), self.derive(name)
            if before == after: continue
            self.steps[name] = after
            self.counts.update({before: -1, after: 1})
            if before: left += self.followers[name]
    def derive(self, name: str) -> str:
        """State of a step, from its attempts and the steps that it waits for."""
        step, attempts = self.planned[name], self.attempts[name]
        last = attempts[len(attempts)] if attempts else {"state": ""}
        if last["state"] in ("succeeded", "running"): return str(last["state"])
        may_retry = len(attempts) < step["maxAttempts"] and last.get("errorKind") in step["retryOn"]
        if last["state"] == "failed" and not may_retry: return "failed"
        if self.cancel_requested or last["state"] == "canceled": return "canceled"
        before = {self.steps[each] for each in step["dependsOn"]}
        if before & {"failed", "skipped", "canceled"}: return "skipped"
        return "ready" if before <= {"succeeded"} else "pending"
    @property
    def run(self) -> str:
        """State of the run."""
        if not self.planned: return "canceled" if self.cancel_requested else "created"
        if self.counts["succeeded"] == len(self.steps): return "succeeded"
        if self.cancel_requested: return "canceling" if self.counts["running"] else "canceled"
        if not any(self.counts[each] for each in ("pending", "ready", "running")): return "failed"
        return "running" if self.started else "planned"
    def runs(self, item: dict[str, Any]) -> bool:
        """Whether the attempt of an item runs: it may end, and hand in artifacts and metrics."""
        return bool(self.attempts.get(item["step"], {}).get(item["attempt"], {}).get("state") == "running")
    def problem(self, event: dict[str, Any]) -> str:
        """Why an event may not follow; empty if it may. Outputs are the caller's matter."""
        step, attempt, kind = event["step"], event["attempt"], event["type"]
        if step not in self.steps or kind not in ("started", *ENDS):
            return f"is of a step {step!r} that the plan does not have, or of no type of events"
        if event["errorKind"] not in (("user", "system") if kind == "failed" else ("",)):
            return "has an errorKind that does not go with its type"
        if kind == "started":
            if self.steps[step] == "ready" and attempt == len(self.attempts[step]) + 1: return ""
            return f"starts attempt {attempt} of {step!r}, which is not what comes next: it is {self.steps[step]}"
        if not self.runs(event): return f"ends attempt {attempt} of {step!r}, which does not run"
        return "says canceled, and nobody asked for it" if kind == "canceled" and self.run != "canceling" else ""
    def apply(self, event: dict[str, Any]) -> None:
        """Takes an event that may follow."""
        number, attempts, time = event["attempt"], self.attempts[event["step"]], event["occurTime"]
        started = event["type"] == "started"
        if started: attempts[number] = {"attempt": number, "startTime": time, "endTime": "", "message": ""}
        else: attempts[number].update(message=event["message"], endTime=time)
        attempts[number].update(state="running" if started else event["type"], errorKind=event["errorKind"] or "none")
        self.started = True
        self.update([event["step"]])

# 12. The run: what it rests on, and all that its records say, made again.
class Run:
    """A run, from the entries that name it: index, place and line of each."""
    def __init__(self, log: Log, entries: list[tuple[int, str, bytes]]) -> None:
        self.log, self.bundle, self.entries = log, log.bundle, entries
        self.run_id, self.name, self.start = log.said["runId"], run_name(log.said), f"projects/{log.project}"
        self.files: dict[str, Lines] = {}  # of records, by kind
        self.needed: dict[tuple[str, str], int] = {}  # kind and digest of what it rests on: who needs it
        self.run: dict[str, Any] = {}
        self.plan_digest, self.state, self.sequence, self.records = "", State([]), 0, 0
        self.artifacts: dict[tuple[str, int, str], str] = {}
        self.seen: set[Any] = set()  # ids of events and points of metrics
    def take(self, record: dict[str, str]) -> tuple[str, bytes]:
        """The next record of a kind."""
        kind = record["kind"]
        return self.files.setdefault(kind, Lines(self.bundle, f"data/records/{kind}.ndjson")).next(record)
    def bound(self, kind: str, digest: str) -> dict[str, Any]:
        """A record that the run rests on."""
        name = f"data/bound/{kind}-{hex_of(digest)}.json"
        data = self.bundle.read(name)
        if digest_of(data) != digest: raise invalid(name, "has another digest than its name says")
        self.needed.setdefault((kind, digest), self.index)
        tree: dict[str, Any] = parse_document(data, name, kind)
        return tree
    def replay(self) -> None:
        """Every record of every entry in order."""
        rules = {"run": self.create, "run_event": self.event, "artifact": self.artifact, "metric": self.metric}
        for index, place, line in self.entries:
            self.edges: list[bytes] = []  # as recorded, and not yet made again
            self.expected: dict[bytes, None] = {}  # made again, and not yet recorded
            self.index, self.entry = index, parse(line, place)
            for kind, found, data in named_records(self.entry, self.take, place):
                self.records += 1
                tree = parse_document(data, found, kind)
                if kind == "lineage_edge": self.edges.append(data)
                elif kind in rules and (kind == "run") == bool(self.run):
                    raise contradiction(found, f"is a {kind} at a place where there can be none")
                elif kind in rules: within(found, rules[kind], tree, data, found)
            if self.edges != list(self.expected):
                raise contradiction(place, "has other lineage edges than follow from its records")
            if not self.run: raise missing(place, "names no run: the first entry of a run bundle creates it")
        for lines in self.files.values(): lines.end()
    def create(self, run: dict[str, Any], data: bytes, place: str) -> None:
        """The run itself: what it binds, its plan, and why it was admitted."""
        self.run, self.run_digest, start = run, digest_of(data), self.start
        if not self.entry["action"].startswith(("run.create", "run.replay")) or run["createTime"] != self.entry["time"]:
            raise contradiction(place, "was created by another action, or at another time than it says")
        self.spec = spec = self.bound("run_spec", run["runSpecDigest"])
        pipeline = self.bound("pipeline_spec", spec["pipelineSpecDigest"])
        self.bound("environment_lock", spec["environmentLockDigest"])
        self.plan = make_plan(run["runSpecDigest"], spec["pipelineSpecDigest"], pipeline)
        self.steps = {step["name"]: step for step in pipeline["spec"]["steps"]}
        self.pipeline_name = f"{start}/pipelineSpecs/{spec['pipelineSpecDigest']}"
        self.lock_name = f"{start}/environmentLocks/{spec['environmentLockDigest']}"
        self.commit_name = f"{start}/commits/{spec['commit']['repository']}@{spec['commit']['sha']}"
        self.versions = {each["datasetRef"]: f"{start}/datasets/{each['datasetId']}/versions/{each['contentDigest']}"
                         for each in spec["datasets"]}
        self.check_versions(place)
        checks = [("pipeline-spec-registered", self.pipeline_name, "pipelineSpecDigest"),
                  ("environment-lock-registered", self.lock_name, "environmentLockDigest")]
        checks += [("dataset-version-registered", name, f"datasets[{ref}]") for ref, name in self.versions.items()]
        passed = [{"name": c[0], "subject": c[1], "outcome": "admitted", "field": c[2]} for c in sorted(checks)]
        admission = {"outcome": "admitted", "checks": passed, "gates": [], "gateChecks": [], "overrideReason": ""}
        if run["runId"] != self.run_id or run["admission"] != admission:
            raise contradiction(place, "is another run, or was admitted otherwise than its bindings are")
        used = [self.pipeline_name, self.lock_name, self.commit_name, *self.versions.values()]
        self.expected = {edge(self.name, "used", each): None for each in used}
        if run["replayOf"]: self.expected[edge(self.name, "was_informed_by", f"{start}/runs/{run['replayOf']}")] = None
    def check_versions(self, place: str) -> None:
        """Each dataset version that is bound, by its dataset and content; a content of files is digested again."""
        wanted = {each["datasetRef"] for step in self.steps.values() for each in step["inputs"]["datasets"]}
        if wanted != self.versions.keys() or len(self.versions) != len(self.spec["datasets"]):
            raise contradiction(place, "binds other datasets than its pipeline reads")
        left, folder = set(self.versions.values()), "data/bound/dataset_version-"
        for name in self.bundle.below(folder):
            version = self.bound("dataset_version", "sha256:" + name[len(folder) : -len(".json")])
            files, content = {"files": version["files"], "schema": "animus.file_manifest/v1"}, version["contentDigest"]
            found = f"{self.start}/datasets/{version['datasetId']}/versions/{content}"
            if found not in left or (version["files"] and digest_of(dump(files)) != content):
                raise contradiction(name, "is bound by nothing, or its files have another digest")
            left.remove(found)
        if left: raise missing("data/bound/", f"has no dataset_version for {min(left)}")
    def check_registrations(self) -> int:
        """Each bound record was registered by an entry that a proof shows, before it was needed; their number."""
        names = [name for name in self.bundle.below("data/proofs/") if name.endswith(".json")]
        for name in names:
            index, records = within(name, self.registered, name)
            found = {(each["kind"], each["digest"]) for each in records} & self.needed.keys()
            if not found or any(index > self.needed[each] for each in found):
                raise contradiction(name, "registered nothing that the run rests on, or only after it was needed")
            for each in found: del self.needed[each]
        for kind, digest in sorted(self.needed): raise missing("data/proofs/", f"no entry of the {kind} {digest}")
        return len(names)
    def registered(self, name: str) -> tuple[int, list[dict[str, str]]]:
        """Index and records of an entry that is proven to be in the log."""
        data, other = self.bundle.read(name, MAX_LINE), name[: -len("json")] + "tlog-proof"
        index, hashes, note = parse_proof(self.bundle.read(other), other)
        records: list[dict[str, str]] = check_entry(data, self.log.project, name)["records"]
        if name != f"data/proofs/{index:020d}.json" or note != self.log.note:
            raise contradiction(other, "is of another index than its name says, or of another checkpoint")
        if included_root(index, self.log.size, leaf_hash(data), hashes) != self.log.root:
            raise contradiction(other, "does not lead from the entry to the root")
        self.index = index
        if records and records[0]["kind"] == "record_manifest":
            records = [*records, *self.bound("record_manifest", records[0]["digest"])["records"]]
        return index, records
    def event(self, event: dict[str, Any], _: bytes, place: str) -> None:
        """What happened to the run: the state that it says is the one that follows."""
        self.sequence += 1
        kind, inner, state = event["type"], event["stepEvent"], self.state
        if event["runId"] != self.run_id or event["sequence"] != self.sequence:
            raise contradiction(place, f"is not event {self.sequence} of the run")
        if (bool(event["planDigest"]), len(inner)) != (kind == "planned", int(kind == "step")):
            raise contradiction(place, f"has fields that no event of type {kind} has")
        if kind == "step": self.step_event(inner[0], place)
        elif state.run in ENDS or (state.planned if kind == "planned" else state.cancel_requested):
            raise contradiction(place, f"is {kind} a second time, or after the run has ended")
        elif kind == "planned":
            self.plan_digest, self.state = event["planDigest"], State(self.plan["steps"])
            if dump(self.bound("execution_plan", self.plan_digest)) != dump(self.plan):
                raise contradiction(place, "has another plan than the one that follows from the specs")
        elif kind == "cancel_requested":
            state.cancel_requested = True
            state.update(state.planned)
        if event["state"] != self.state.run or kind not in ("step", "planned", "cancel_requested"):
            raise contradiction(place, f"says the run is {event['state']} then; it is {self.state.run}")
        if event["reason"] and kind != "cancel_requested": raise contradiction(place, "has a reason for nothing")
    def step_event(self, event: dict[str, Any], place: str) -> None:
        """What happened to an attempt; a start with the lineage that it has."""
        problem = "repeats an eventId" if event["eventId"] in self.seen else self.state.problem(event)
        if problem: raise contradiction(place, problem)
        self.seen.add(event["eventId"])
        step, attempt = self.steps[event["step"]], event["attempt"]
        if event["type"] == "started":
            subject = f"{self.name}/steps/{step['name']}/attempts/{attempt}"
            used = [self.versions[each["datasetRef"]] for each in step["inputs"]["datasets"]]
            for each in step["inputs"]["artifacts"]:
                key = each["fromStep"], len(self.state.attempts[each["fromStep"]]), each["artifact"]
                used.append(f"{self.start}/artifacts/{self.artifacts[key]}")
            edges, self.edges = self.edges, []
            made = [edge(subject, "used", each) for each in dict.fromkeys(used)]
            if edges != [edge(subject, "was_started_by", self.name), *made]:
                raise contradiction(place, "follows other lineage edges than its start has")
        elif event["type"] == "succeeded":
            for output in step["outputs"]["artifacts"]:
                if (step["name"], attempt, output["name"]) not in self.artifacts:
                    raise contradiction(place, f"says succeeded without the declared output {output['name']!r}")
        self.state.apply(event)
    def artifact(self, item: dict[str, Any], _: bytes, place: str) -> None:
        """An output of an attempt that runs."""
        key, digest = (item["step"], item["attempt"], item["name"]), item["digest"]
        declared = {each["name"] for each in self.steps[key[0]]["outputs"]["artifacts"]}
        is_running = item["runId"] == self.run_id and self.state.runs(item)
        if key in self.artifacts or key[2] not in declared or not DIGEST.fullmatch(digest) or not is_running:
            raise contradiction(place, "is no declared output of an attempt that runs then, or is registered twice")
        self.artifacts[key] = digest
        attempt = f"{self.name}/steps/{key[0]}/attempts/{key[1]}"
        self.expected[edge(f"{self.start}/artifacts/{digest}", "was_generated_by", attempt)] = None
    def metric(self, item: dict[str, Any], _: bytes, place: str) -> None:
        """A point of a series of an attempt that runs."""
        key = item["step"], item["attempt"], item["name"], item["index"]
        if key in self.seen or not self.state.runs(item) or item["runId"] != self.run_id:
            raise contradiction(place, "is of no attempt that runs then, or is recorded twice")
        self.seen.add(key)
    def check_summary(self) -> None:
        """The summary is what the events derive. Outputs are the artifacts of attempts that succeeded."""
        found, names = self.state.attempts, self.state.steps
        ordered = sorted(self.artifacts.items(), key=lambda item: (item[0][0], item[0][2]))
        self.outputs = [{"step": step, "name": name, "attempt": attempt, "digest": digest}
                        for (step, attempt, name), digest in ordered if found[step][attempt]["state"] == "succeeded"]
        steps = [{"name": name, "state": names[name], "attempts": [found[name][at] for at in sorted(found[name])]}
                 for name in names]
        summary = {"schema": "animus.run_summary/v1", "runId": self.run_id, "state": self.state.run, "steps": steps,
                   "planDigest": self.plan_digest, "outputs": self.outputs}
        if self.bundle.read("data/summary.json") != dump(summary):
            raise contradiction("data/summary.json", "is another summary than the events derive")
    def check_statements(self, keys: Sequence[Key]) -> None:
        """Admission, and the provenance of the outputs where there are some."""
        spec, digest = self.spec, self.run["runSpecDigest"]
        passed = [f"{check['name']} {check['subject']}" for check in self.run["admission"]["checks"]]
        predicate: Any = {"configuration": [resource("animus-admission", self.run_digest)], "result": "PASSED",
                          "passedTests": passed, "warnedTests": [], "failedTests": []}
        name, kind = "data/attestations/admission.dsse.json", "https://in-toto.io/attestation/test-result/v0.1"
        within(name, check_statement, self.bundle, name, kind, [resource(self.name, digest)], predicate, keys)
        if not self.outputs: return
        versions: Any = {self.versions[each["datasetRef"]]: each["contentDigest"] for each in spec["datasets"]}
        predicate = {"buildDefinition": {
            "buildType": "urn:animus:pipeline-run:v1", "internalParameters": {"executionPlan": self.plan_digest},
            "externalParameters": {"parameters": spec["parameters"], "pipelineSpec": spec["pipelineSpecDigest"]},
            "resolvedDependencies": [
                resource(self.pipeline_name, spec["pipelineSpecDigest"]),
                resource(self.lock_name, spec["environmentLockDigest"]),
                {"digest": {"gitCommit": spec["commit"]["sha"]}, "name": self.commit_name},
                *(resource(name, content) for name, content in versions.items())],
        }, "runDetails": {
            "builder": {"id": "urn:animus:instance:" + self.log.said["origin"].rsplit("/", 2)[0]},
            "metadata": {"invocationId": self.name, "startedOn": self.run["createTime"]},
            "byproducts": [resource("run-spec", digest)]}}
        subject = [resource(f"{each['step']}/{each['name']}", str(each["digest"])) for each in self.outputs]
        name, kind = "data/attestations/provenance.dsse.json", "https://slsa.dev/provenance/v1"
        within(name, check_statement, self.bundle, name, kind, subject, predicate, keys)
def edge(subject: str, relation: str, thing: str) -> bytes:
    return dump({"schema": "animus.lineage_edge/v1", "subject": subject, "relation": relation, "object": thing})

def run_entries(log: Log) -> list[tuple[int, str, bytes]]:
    """Index, place and line of each entry that names the run; all entries are read on the way."""
    name, found = run_name(log.said), []
    for file in log.files():
        for place, line, entry in log.entries(file):
            if (entry["resource"] + "/").startswith(name + "/"): found.append((log.tree.size - 1, place, line))
            elif not found: raise contradiction(place, "does not create the run: the first entry of a run bundle does")
    return found

# 13. The verdict.
def verify(bundle: Bundle, options: argparse.Namespace, checked: list[str], not_shown: list[str]) -> str:
    """All checks in their order; the verdict."""
    tags, said = check_bag(bundle), within("data/evidence.json", check_evidence, bundle)
    if options.run not in (None, said["runId"]): raise invalid("data/evidence.json", "is of another run")
    checked.append(f"{len(bundle.parts)} files are those of the manifests")
    keys, policy = [key for key in options.keys if key.name == said["origin"]], options.agreement
    if not keys: raise invalid("data/evidence.json", f"is of {said['origin']}, for which no key is trusted")
    name, kind = "evidence.dsse.json", "urn:animus:evidence:v1"
    subject = [resource(each, "sha256:" + tags[each]) for each in TAG_FILES if each != name]
    try: within(name, check_statement, bundle, name, kind, subject, {"bag": bag_name(said)}, keys)
    except Failure as failure: raise invalid(failure.place, failure.problem) from None  # nothing was signed then
    heads = [(path, *open_checkpoint(data, keys, path)[:3]) for path, data in options.heads]
    log = Log(bundle, said, [*keys, *policy.witnesses.values()], [head[2] for head in heads])
    checked.append(f"manifest and checkpoint of {said['size']} entries are signed by a key of {said['origin']}")
    entries = run_entries(log) if said["runId"] else []
    for file in log.files() if not said["runId"] else []:
        lines = Lines(bundle, f"data/records/{file}.ndjson")
        count = sum(1 for place, _, entry in log.entries(file) for _ in named_records(entry, lines.next, place))
        if lines.name in bundle.parts: lines.end()
        checked.append(f"{count} records are those that the entries from {int(file)} name")
    log.check_root()
    checked.append(f"{log.size - log.first} entries lead to the root of the checkpoint")
    covered = [path for path, _, size, root in heads if log.covers(size, root, path)]
    checked.append(f"{len(covered)} of {len(heads)} kept checkpoints are of this log")
    not_shown += [f"that the log began with {head[0]}" for head in heads if head[0] not in covered]
    if said["runId"]:
        check_run(Run(log, entries), keys, checked)
        not_shown.append("the renderings: they are signed, and not made again")
    for name in sorted(bundle.untaken - {"evidence.dsse.json", "tagmanifest-sha256.txt"}):
        raise invalid(name, "has no place in the bundle")
    not_shown.append("that what was reported to the log is true, and anything after the checkpoint")
    signers = {(key.name, key.public_key) for key in log.signers}
    if policy.agreed(log.signers) and (not policy.logs or any((k.name, k.public_key) in signers for k in policy.logs)):
        checked.append("the quorum of the policy has cosigned the checkpoint")
        return "WITNESSED"
    not_shown.append("that others were shown the same log: no quorum of witnesses has cosigned the checkpoint")
    return "CONSISTENT" if covered else "SIGNED"

def check_run(run: Run, keys: Sequence[Key], checked: list[str]) -> None:
    """All that is said of a run."""
    run.replay()
    checked.append(f"{len(run.entries)} entries name the run {run.run_id}, and {run.records} records")
    checked.append(f"{run.check_registrations()} entries registered what the run rests on, before it was needed")
    run.check_summary()
    checked.append(f"plan and {run.sequence} events, made and judged again: the run is {run.state.run}")
    run.check_statements(keys)
    checked.append("admission, lineage, summary and statements follow from the records")
    for name in ("data/renderings/openlineage.ndjson", "data/renderings/prov.json"):
        if next(run.bundle.blocks(name)): run.bundle.untaken.discard(name)
def own_file(path: str) -> bytes:
    """A file of the auditor's own: its first 1 MiB, than which none that can be used is longer."""
    try:
        with Path(path).open("rb") as file: return file.read(MAX_NOTE + 1)
    except OSError as error: raise Failure("USAGE", path, error.strerror or "cannot be read") from None
def trusted_keys(text: str) -> list[Key]:
    """A verifier key, or those of a file."""
    lines = [text] if VERIFIER_KEY.fullmatch(text) else own_file(text).decode("utf-8", "replace").split("\n")
    keys = [load_key(line.strip(), "--trust") for line in lines if line.strip() and not line.startswith("#")]
    if not keys or any(key.kind != LOG_KEY for key in keys):
        raise Failure("USAGE", "--trust", "has no key, or one that is not of a log")
    return keys

class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn: raise Failure("USAGE", "usage", message)
def options_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options of a call, and the files that they name."""
    parser = Parser(prog="animus_verify.py", description="Verifies an evidence bundle of Animus, offline.")
    parser.add_argument("bundle", help="a ZIP file or a folder")
    parser.add_argument("--trust", action="append", required=True, help="a verifier key of the log, or a file of them")
    parser.add_argument("--known-head", action="append", default=[], help="a signed checkpoint that was kept")
    parser.add_argument("--policy", default="", help="a C2SP tlog-policy file of witnesses and their quorum")
    parser.add_argument("--run", help="id of the run that it has to be of")
    parser.add_argument("--json", action="store_true", help="a report for machines")
    parser.add_argument("--accept", choices=["signed", "consistent", "witnessed"], help="the least that exits with 0")
    parser.add_argument("--debug", action="store_true", help="let a defect of this program show its traceback")
    options = parser.parse_args(arguments)
    try:
        options.keys = [key for each in options.trust for key in trusted_keys(each)]
        options.heads = [(path, own_file(path)) for path in options.known_head]
        options.agreement = parse_policy(own_file(options.policy), options.policy) if options.policy else Policy()
    except Failure as failure: raise Failure("USAGE", failure.place, failure.problem) from None  # it is the caller's
    return options

def main(arguments: Sequence[str] | None = None) -> int:
    """Verifies, reports, and answers the exit code."""
    options, bundle = argparse.Namespace(json=False, accept=None, debug=False, bundle=""), None
    place, problem, checked, not_shown = "", "", list[str](), list[str]()
    try:
        options = options_of(arguments)
        if not Path(options.bundle).exists(): raise Failure("USAGE", options.bundle, "is not there")
        bundle = Bundle(Path(options.bundle))
        verdict = verify(bundle, options, checked, not_shown)
    except Failure as failure: verdict, place, problem = failure.verdict, failure.place, failure.problem
    except Exception as error:
        if options.debug: raise
        verdict, place = "INVALID", bundle.reading if bundle else options.bundle
        problem = f"could not be checked ({type(error).__name__})"
    report = dict(verdict=verdict, exitCode=CODES[verdict], bundle=options.bundle, file=place, problem=problem)
    lines = [f"{verdict}: {options.bundle}", *(f"  checked    {each}" for each in checked)]
    lines = [f"{verdict}: {place}: {problem}"] if problem else lines + [f"  not shown  {each}" for each in not_shown]
    document = json.dumps({**report, "checked": checked, "notShown": not_shown}, sort_keys=True)
    print((document if options.json else "\n".join(lines)).encode("ascii", "backslashreplace").decode())
    good = ["WITNESSED", "CONSISTENT", "SIGNED"]
    return 0 if options.accept and verdict in good[: good.index(options.accept.upper()) + 1] else CODES[verdict]

if __name__ == "__main__": sys.exit(main())
