#!/usr/bin/env python3
"""Verifies an evidence bundle of Animus, offline: python3 -I -S animus_verify.py BUNDLE --trust VKEY ...

This file is all that is needed: Python 3.9 or later and its standard library. It opens no connection, writes nothing
and shares no code with the server. The format of bundles is docs/evidence-format.md. Checked is, in this order:

 1. container   a ZIP of stored members or a folder; no other names, links, gaps or bytes than the format has
 2. bag         BagIt: both manifests list exactly the files that are there, and each has its digest
 3. statement   evidence.dsse.json is signed by a trusted key, over the manifest; so every file is what that key signed
 4. checkpoint  signed by a trusted key; its origin and size are those of evidence.json
 5. entries     from the frontier, all entries lead to the root that the checkpoint signs (RFC 6962)
 6. heads       checkpoints that the auditor kept are of this log; consistency proofs hold
 7. records     each record that an entry names is there with its digest, and no other
 8. run         (of a run bundle) the run rests on what was registered before it; its plan is made again; its events are
                judged again one by one; admission, lineage, summary and statements are made again and compared

The verdict is the exit code:

  0 WITNESSED      11 holds, and the witnesses of the policy have cosigned the checkpoint
 10 CONSISTENT     11 holds, and the log still has what a checkpoint said that the auditor kept
 11 SIGNED         every check holds, by the word of the trusted key alone
 20 INCOMPLETE     something that has to be there is missing
 30 CONTRADICTION  a trusted key signed what does not fit together
 40 INVALID        malformed, altered, of another project, or not signed by a trusted key
 64 USAGE          this program was called wrongly

Memory grows with the number of entries by about 150 bytes each, and with the records of one run; not with their sizes.
Texts are read from top to bottom: JSON, trees, signatures, notes, policies, container, bag, log, run, report.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import hashlib
import heapq
import io
import json
import os
import re
import stat
import struct
import sys
from collections import Counter
from pathlib import Path
from typing import Any, BinaryIO, Iterable, Iterator, NoReturn, Sequence

CODES = {
    "WITNESSED": 0,
    "CONSISTENT": 10,
    "SIGNED": 11,
    "INCOMPLETE": 20,
    "CONTRADICTION": 30,
    "INVALID": 40,
    "USAGE": 64,
}

MAX_MEMBERS = 200_000
MAX_LINE = 65_535  # bytes of an entry: more do not fit into a leaf
MAX_RECORD = 64 << 20  # bytes of a record or another single document
ENTRIES_IN_FILE = 10_000


class Failure(Exception):
    """Why a bundle is not what it says: a verdict, the file at fault, and what is wrong with it."""

    def __init__(self, verdict: str, place: str, problem: str) -> None:
        super().__init__(f"{place}: {problem}")
        self.verdict, self.place, self.problem = verdict, place, problem


def invalid(place: str, problem: str) -> Failure:
    """Something is malformed, altered or not signed."""
    return Failure("INVALID", place, problem)


def missing(place: str, problem: str) -> Failure:
    """Something that has to be there is not."""
    return Failure("INCOMPLETE", place, problem)


def contradiction(place: str, problem: str) -> Failure:
    """What was signed does not fit together."""
    return Failure("CONTRADICTION", place, problem)


# 1. JSON (animus-json-1): one spelling of each document. Sorted keys, no space, no floats, no null.

DIGEST = re.compile("sha256:[0-9a-f]{64}")
RANDOM_ID = re.compile("[0-9a-f]{32}")
RESOURCE_ID = re.compile("[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?")
KIND = re.compile("[a-z][a-z0-9_]{0,62}")
TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}Z")
MULTIPLIER = re.compile(r"([1-9][0-9]?)(?:\.([0-9]{0,2}[1-9]))?")
MAX_DEPTH = 32
MAX_INTEGER = 2**53 - 1


def _refuse(text: str) -> NoReturn:
    raise ValueError(f"holds {text[:20]}, which is no number of a document")


def _integer(digits: str) -> int:
    if len(digits) > 17 or abs(int(digits)) > MAX_INTEGER:
        raise ValueError("holds an integer beyond 2^53-1")
    return int(digits)


_decode = json.JSONDecoder(parse_float=_refuse, parse_constant=_refuse, parse_int=_integer).decode
_encode = json.JSONEncoder(sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


def dump(tree: object) -> bytes:
    """The one spelling of a tree."""
    return _encode(tree).encode()


def parse(data: bytes, place: str) -> Any:
    """The tree of bytes that are its one spelling: a repeated key, a space or another order of keys is not."""
    try:
        tree = _decode(data.decode())
        if dump(tree) != data:
            raise ValueError("is not in canonical form")
    except RecursionError:
        raise invalid(place, "nests too deeply") from None
    except ValueError as error:  # of UTF-8 and JSON too
        raise invalid(place, f"is no canonical JSON: {error}") from None
    return tree


def parse_document(data: bytes, place: str) -> Any:
    """As `parse`, for an object within the limits of animus-json-1."""
    tree = parse(data, place)
    if not isinstance(tree, dict) or not isinstance(tree.get("schema"), str):
        raise invalid(place, "is no document with a schema")
    nodes: list[tuple[Any, int]] = [(tree, 1)]
    while nodes:
        node, depth = nodes.pop()
        if isinstance(node, (dict, list)):
            if depth > MAX_DEPTH:
                raise invalid(place, f"nests deeper than {MAX_DEPTH} levels")
            if isinstance(node, dict) and not all(key.isascii() and "\0" not in key for key in node):
                raise invalid(place, "has a key that is no ASCII text")
            nodes += [(below, depth + 1) for below in (node.values() if isinstance(node, dict) else node)]
        elif node is None or (isinstance(node, str) and "\0" in node):
            raise invalid(place, "holds null or a NUL character")
    return tree


def misfit(node: Any, shape: Any) -> str | None:
    """The path of the first thing in a tree that is not of a shape; nothing if all is.

    A shape is a type, a pattern, a fixed text, a choice of texts, [the shape of each item], or {each key: its shape}.
    """
    if isinstance(shape, type):
        return None if type(node) is shape else ""
    if isinstance(shape, re.Pattern):
        return None if isinstance(node, str) and shape.fullmatch(node) else ""
    if isinstance(shape, list):
        if not isinstance(node, list):
            return ""
        for at, item in enumerate(node):
            found = misfit(item, shape[0])
            if found is not None:
                return f"[{at}]{found}"
        return None
    if isinstance(shape, dict):
        if not isinstance(node, dict) or node.keys() != shape.keys():
            return ""
        for key, inner in shape.items():
            found = misfit(node[key], inner)
            if found is not None:
                return f".{key}{found}"
        return None
    return None if isinstance(node, str) and (node == shape or (type(shape) is tuple and node in shape)) else ""


def fit(tree: Any, shape: Any, place: str) -> Any:
    """The tree, if it has the shape."""
    found = misfit(tree, shape)
    if found is not None:
        raise invalid(place, f"has another form than it should: {found.lstrip('.') or 'its fields'}")
    return tree


LABELS = [{"key": str, "value": str}]
RECORD = {"kind": KIND, "digest": DIGEST}
EVIDENCE = {
    "schema": "animus.evidence/v1", "projectId": RESOURCE_ID, "runId": str, "origin": str, "epoch": int,
    "firstIndex": int, "size": int, "knownSizes": [int],
}  # fmt: skip
ENTRY = {
    "schema": "animus.audit_entry/v1", "projectId": str, "entryId": RANDOM_ID, "principal": str, "action": str,
    "resource": str, "method": str, "requestId": str, "requestDigest": str, "time": TIME,
    "outcome": ("accepted", "unchanged", "refused", "denied"), "reason": str, "records": [RECORD],
    "refusals": [{"index": int, "reason": str}], "replyDigest": str,
}  # fmt: skip
RECORD_MANIFEST = {"schema": "animus.record_manifest/v1", "records": [RECORD]}
CHECK = {"name": str, "subject": str, "outcome": ("admitted", "refused"), "field": str}
RUN = {
    "schema": "animus.run/v1", "runId": RANDOM_ID, "runSpecDigest": DIGEST, "createTime": TIME, "labels": LABELS,
    "admission": {"outcome": ("admitted", "refused"), "checks": [CHECK]},
}  # fmt: skip
REPLAYED_RUN = {**RUN, "replayOf": re.compile(f"(?:{RANDOM_ID.pattern})?")}
RUN_SPEC = {
    "schema": "animus.run_spec/v1", "apiVersion": "animus/v1", "kind": "Run", "pipelineSpecDigest": DIGEST,
    "datasets": [{"datasetRef": RESOURCE_ID, "datasetId": RESOURCE_ID, "contentDigest": DIGEST}],
    "commit": {"repository": str, "sha": str}, "environmentLockDigest": DIGEST,
    "parameters": [{"name": str, "type": ("string", "int", "bool", "decimal"), "value": str}],
}  # fmt: skip
BACKOFF = {
    "type": ("fixed", "exponential"), "initialSeconds": int, "maxSeconds": int, "multiplier": MULTIPLIER,
}  # fmt: skip
STEP = {
    "name": RESOURCE_ID, "image": str, "command": [str], "args": [str],
    "inputs": {
        "datasets": [{"name": str, "datasetRef": str}],
        "artifacts": [{"name": str, "fromStep": str, "artifact": str}],
    },
    "outputs": {"artifacts": [{"name": str, "type": str, "mediaType": str}]},
    "env": [{"name": str, "value": str}], "resources": {"cpu": str, "memory": str, "gpu": int},
    "retryPolicy": {"maxAttempts": int, "retryOn": [("system", "user")], "backoff": BACKOFF},
}  # fmt: skip
PIPELINE_SPEC = {
    "schema": "animus.pipeline_spec/v1", "apiVersion": "animus/v1", "kind": "Pipeline",
    "metadata": {"name": str, "description": str, "labels": LABELS},
    "spec": {"steps": [STEP], "dependencies": [{"step": str, "dependsOn": str}]},
}  # fmt: skip
DATASET_VERSION = {
    "schema": "animus.dataset_version/v1", "datasetId": RESOURCE_ID, "contentDigest": DIGEST, "sizeBytes": int,
    "mediaType": str, "uri": str, "columns": [{"name": str, "type": str}],
    "files": [{"path": str, "sizeBytes": int, "digest": DIGEST}],
}  # fmt: skip
STEP_EVENT = {
    "eventId": str, "step": str, "attempt": int, "type": ("started", "succeeded", "failed", "canceled"),
    "errorKind": ("", "user", "system"), "message": str, "occurTime": TIME,
}  # fmt: skip
RUN_EVENT = {
    "schema": "animus.run_event/v1", "runId": str, "sequence": int, "type": ("planned", "cancel_requested", "step"),
    "planDigest": str, "reason": str, "stepEvent": [STEP_EVENT], "state": str,
}  # fmt: skip
ARTIFACT = {
    "schema": "animus.artifact/v1", "runId": str, "step": str, "attempt": int, "name": str, "digest": DIGEST,
    "sizeBytes": int, "uri": str,
}  # fmt: skip
METRIC = {
    "schema": "animus.metric/v1", "runId": str, "step": str, "attempt": int, "name": str, "index": int, "value": str,
    "occurTime": TIME,
}  # fmt: skip


def digest_of(data: bytes) -> str:
    """The digest of a document, as records are named by it."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def hex_of(digest: str) -> str:
    """The hexadecimal digits of a digest."""
    return digest[len("sha256:") :]


# 2. Trees (RFC 6962 section 2.1).


def leaf_hash(entry: bytes) -> bytes:
    """The hash of a leaf."""
    return hashlib.sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of a node above two others."""
    return hashlib.sha256(b"\x01" + left + right).digest()


class Tree:
    """A tree that grows leaf by leaf: its size, and the roots of the perfect subtrees that it consists of."""

    def __init__(self, size: int, whole: Iterable[bytes]) -> None:
        self.size, self.whole = size, list(whole)

    def add(self, leaf: bytes) -> None:
        """Appends the hash of a leaf."""
        at = self.size
        while at & 1:  # each final one bit of the size is a perfect subtree that is joined with what follows it
            leaf = node_hash(self.whole.pop(), leaf)
            at >>= 1
        self.whole.append(leaf)
        self.size += 1

    def root(self) -> bytes:
        """The root over all leaves so far."""
        if not self.whole:
            return hashlib.sha256().digest()
        above = self.whole[-1]
        for left in reversed(self.whole[:-1]):
            above = node_hash(left, above)
        return above


def included_root(index: int, size: int, leaf: bytes, proof: Sequence[bytes]) -> bytes | None:
    """The root that an inclusion proof leads to (RFC 9162 section 2.1.3.2); nothing if it has another length."""
    if not 0 <= index < size or len(proof) > 64:
        return None
    at, last, above = index, size - 1, leaf
    for other in proof:
        if not last:
            return None
        if at & 1 or at == last:
            above = node_hash(other, above)
            while at and not at & 1:
                at, last = at >> 1, last >> 1
        else:
            above = node_hash(above, other)
        at, last = at >> 1, last >> 1
    return None if last else above


def consistent_roots(
    first: int, second: int, first_root: bytes | None, proof: Sequence[bytes]
) -> tuple[bytes, bytes] | None:
    """Both roots that a consistency proof leads to (RFC 9162 section 2.1.4.2), for 0 < first < second.

    Nothing if the proof has another length. A first size that is a power of two asks for the first root.
    """
    if not 0 < first < second or len(proof) > 64:
        return None
    perfect = not first & (first - 1)
    if perfect and first_root is None:
        return None
    hashes = [first_root, *proof] if perfect and first_root is not None else list(proof)
    if not hashes or not proof:
        return None
    at, last = first - 1, second - 1
    while at & 1:
        at, last = at >> 1, last >> 1
    before = after = hashes[0]
    for other in hashes[1:]:
        if not last:
            return None
        if at & 1 or at == last:
            before, after = node_hash(other, before), node_hash(other, after)
            while at and not at & 1:
                at, last = at >> 1, last >> 1
        else:
            after = node_hash(after, other)
        at, last = at >> 1, last >> 1
    return None if last else (before, after)


# 3. Ed25519 (RFC 8032 section 5.1). Points have one spelling, and neither key nor R is of small order.

P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, P - 2, P) % P
ROOT_OF_MINUS_ONE = pow(2, (P - 1) // 4, P)

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
        if scalar & 1:
            result = add(result, point)
        point = add(point, point)
        scalar >>= 1
    return result


def encode_point(point: Any) -> bytes:
    """The one spelling of a point."""
    inverse = pow(point[2], P - 2, P)
    x, y = point[0] * inverse % P, point[1] * inverse % P
    data: bytes = (y | (x & 1) << 255).to_bytes(32, "little")
    return data


def decode_point(data: bytes) -> Any:
    """The point of its one spelling; nothing for other bytes, and for a point of small order."""
    number = int.from_bytes(data, "little")
    y, sign = number & (1 << 255) - 1, number >> 255
    if len(data) != 32 or y >= P:
        return None
    square = (y * y - 1) * pow(D * y * y + 1, P - 2, P) % P
    x = pow(square, (P + 3) // 8, P)
    if (x * x - square) % P:
        x = x * ROOT_OF_MINUS_ONE % P
    if (x * x - square) % P or (x == 0 and sign):
        return None
    if x & 1 != sign:
        x = P - x
    point = (x, y, 1, x * y % P)
    return None if encode_point(multiply(8, point)) == encode_point(IDENTITY) else point


BASE = decode_point((4 * pow(5, P - 2, P) % P).to_bytes(32, "little"))


def is_signed(public_key: bytes, message: bytes, signature: bytes) -> bool:
    """Whether a signature of a message by a key is good: R is [S]B - [k]A, without the cofactor."""
    key, r, s = decode_point(public_key), decode_point(signature[:32]), int.from_bytes(signature[32:], "little")
    if len(signature) != 64 or key is None or r is None or s >= L:
        return False
    k = int.from_bytes(hashlib.sha512(signature[:32] + public_key + message).digest(), "little") % L
    minus_key = (-key[0] % P, key[1], key[2], -key[3] % P)
    return encode_point(add(multiply(s, BASE), multiply(k, minus_key))) == signature[:32]


# 4. Keys, signed notes and checkpoints (C2SP signed-note, tlog-checkpoint, tlog-cosignature, tlog-proof).

LOG_KEY, WITNESS_KEY = 1, 4
MAX_NOTE = 1 << 20
MAX_SIZE = 2**63 - 1
VERIFIER_KEY = re.compile(r"([^\s+]+)\+([0-9a-f]{8})\+([A-Za-z0-9+/]+={0,2})")
SIGNATURE_LINE = re.compile("\u2014 ([^\\s+]+) ([A-Za-z0-9+/]+={0,2})")
CONTROL = re.compile("[\\x00-\\x09\\x0b-\\x1f]")
NUMBER = re.compile("0|[1-9][0-9]{0,18}")


def unbase64(text: str) -> bytes | None:
    """The bytes of base64 in its one spelling."""
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError:
        return None
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
    if not match or not data or len(data) != 33 or data[0] not in (LOG_KEY, WITNESS_KEY) or CONTROL.search(match[1]):
        raise invalid(place, "has no Ed25519 key of the form <name>+<8 hexadecimal digits>+<base64>")
    key = Key(match[1], data[0], data[1:])
    if key.key_id.hex() != match[2]:
        raise invalid(place, f"has a key whose id is not that of its name and bytes: {match[2]}")
    return key


def parse_note(data: bytes, place: str) -> tuple[str, list[tuple[str, bytes, bytes]]]:
    """Text of a note, and name, key id and bytes of each signature."""
    text, separator, lines = data.rpartition(b"\n\n")
    if len(data) > MAX_NOTE or not separator or not lines.endswith(b"\n"):
        raise invalid(place, "is no signed note: a text, an empty line, and lines of signatures")
    try:
        body, signed = text.decode() + "\n", lines.decode().split("\n")[:-1]
    except UnicodeDecodeError:
        raise invalid(place, "is not UTF-8") from None
    if CONTROL.search(body) or len(signed) > 100:
        raise invalid(place, "has a control character or more than 100 signatures")
    signatures = []
    for number, line in enumerate(signed, 1):
        match = SIGNATURE_LINE.fullmatch(line)
        found = unbase64(match[2]) if match else None
        if not match or not found or len(found) < 5 or CONTROL.search(match[1]):
            raise invalid(place, f"signature {number} is no line of the form \u2014 <key name> <base64>")
        signatures.append((match[1], found[:4], found[4:]))
    return body, signatures


def open_note(data: bytes, keys: Iterable[Key], place: str) -> tuple[str, list[Key]]:
    """Text of a note, and those of the keys that signed it. A false signature under the name of one is refused."""
    text, signatures = parse_note(data, place)
    signers = []
    for name, key_id, signature in signatures:
        for key in keys:
            if (key.name, key.key_id) != (name, key_id):
                continue
            message = text.encode()
            if key.kind == WITNESS_KEY:
                time, signature = int.from_bytes(signature[:8], "big"), signature[8:]
                message = f"cosignature/v1\ntime {time}\n".encode() + message
                if time > MAX_SIZE:
                    raise invalid(place, f"has a cosignature of {name} at no time that exists")
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


def parse_hashes(lines: Iterable[str], place: str) -> list[bytes]:
    """Hashes, one in each line."""
    hashes = []
    for number, line in enumerate(lines, 1):
        found = unbase64(line)
        if found is None or len(found) != 32:
            raise invalid(place, f"hash {number} is no base64 of 32 bytes")
        hashes.append(found)
    return hashes


def parse_proof(data: bytes, place: str) -> tuple[int, list[bytes], bytes]:
    """Index, hashes and checkpoint of a proof of inclusion."""
    head, separator, checkpoint = data.partition(b"\n\n")
    if not separator or not head.isascii():
        raise invalid(place, "is no tlog-proof: lines of ASCII, an empty line and a checkpoint")
    first, *lines = head.decode().split("\n")
    word, _, number = (lines.pop(0) if lines else "").partition(" ")
    if first != "c2sp.org/tlog-proof@v1" or word != "index" or not NUMBER.fullmatch(number):
        raise invalid(place, "is no tlog-proof with an index and without extra data")
    return int(number), parse_hashes(lines, place), checkpoint


# 5. Policies (C2SP tlog-policy): which witnesses are trusted, and how many of whom have to agree.


class Policy:
    """Keys of logs and witnesses, groups with their thresholds, and the name whose agreement is asked."""

    def __init__(self) -> None:
        self.logs: list[Key] = []
        self.witnesses: dict[bytes, Key] = {}
        self.groups: dict[bytes, tuple[int, list[bytes]]] = {}
        self.quorum: bytes | None = None
        self._members: set[bytes] = set()

    def read(self, words: list[bytes]) -> str:
        """Takes a line; answers what is wrong with it."""
        kind, count = words[0], len(words)
        if kind == b"log" and count in (2, 3):
            return self._add(self.logs, words[1], LOG_KEY)
        if kind == b"witness" and count in (3, 4):
            keys: list[Key] = list(self.witnesses.values())
            problem = self._name_problem(words[1]) or self._add(keys, words[2], WITNESS_KEY)
            if not problem:
                self.witnesses[words[1]] = keys[-1]
            return problem
        if kind == b"group" and count >= 4:
            return self._name_problem(words[1]) or self._group(words[1], words[2], words[3:])
        if kind == b"quorum" and count == 2:
            if self.quorum is not None or not (words[1] == b"none" or self._known(words[1])):
                return "is a second quorum, or names nothing before it"
            self.quorum = words[1]
            return ""
        return "is no line of a policy"

    def _known(self, name: bytes) -> bool:
        return name in self.witnesses or name in self.groups

    def _name_problem(self, name: bytes) -> str:
        return "defines a name twice, or the name none" if self._known(name) or name == b"none" else ""

    def _add(self, keys: list[Key], text: bytes, kind: int) -> str:
        try:
            key = load_key(text.decode(), "policy")
        except (UnicodeDecodeError, Failure):
            return "has no Ed25519 verifier key"
        if key.kind != kind or any(other.public_key == key.public_key for other in keys) or len(keys) >= 256:
            return "has a key of another type, a second time, or beyond the 256th"
        keys.append(key)
        return ""

    def _group(self, name: bytes, threshold: bytes, members: list[bytes]) -> str:
        counts = {b"any": 1, b"all": len(members)}
        asked = counts.get(threshold) or (int(threshold) if re.fullmatch(rb"[1-9][0-9]{0,3}", threshold) else 0)
        if not 1 <= asked <= len(members) or len(self.groups) >= 256:
            return "asks for no member or more than all, or is beyond the 256th group"
        for member in members:
            if not self._known(member) or member in self._members:
                return "has a member that nothing before it defines, or that is a member already"
            self._members.add(member)
        self.groups[name] = (asked, members)
        return ""

    def agreed(self, signers: Iterable[Key]) -> set[bytes]:
        """The witnesses and groups that have seen what these keys cosigned."""
        signed = {(key.name, key.public_key) for key in signers if key.kind == WITNESS_KEY}
        seen = {name for name, key in self.witnesses.items() if (key.name, key.public_key) in signed}
        for name, (threshold, members) in self.groups.items():
            if len(seen.intersection(members)) >= threshold:
                seen.add(name)
        return seen


def parse_policy(data: bytes, place: str) -> Policy:
    """The policy of a file."""
    policy = Policy()
    if len(data) > 1 << 20 or not data.endswith(b"\n"):
        raise invalid(place, "is longer than 1 MiB, or does not end with a line feed")
    for number, line in enumerate(data.split(b"\n")[:-1], 1):
        words = line.split()
        problem = "has a control character" if re.search(rb"[\x00-\x08\x0b-\x1f\x7f]", line) else ""
        if not problem and words and not words[0].startswith(b"#"):
            problem = policy.read(words)
        if problem:
            raise invalid(f"{place} line {number}", problem)
    if policy.quorum is None:
        raise invalid(place, "has no quorum line")
    return policy


# 6. The container: a ZIP of stored members that lie end to end, or a folder.

PART = re.compile("[A-Za-z0-9_-][A-Za-z0-9._-]*")
CENTRAL, LOCAL, END = struct.Struct("<4s6H3L5H2L"), struct.Struct("<4s5H3L2H"), struct.Struct("<4s4H2LH")
END64, LOCATOR = struct.Struct("<4sQ2H2L4Q"), struct.Struct("<4sLQL")
VERSIONS = (10, 20, 45)  # of the format of members that are stored: 45 has numbers of 64 bits
NARROW = 0xFFFFFFFF  # stands for a number that has 64 bits, in the extra field


class Section(io.RawIOBase):
    """A part of a file as a stream."""

    def __init__(self, path: Path, start: int, size: int) -> None:
        self._file = path.open("rb", buffering=0)
        self._file.seek(start)
        self._left = size

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Reads up to the end of the part."""
        count = self._file.readinto(memoryview(buffer)[: min(len(buffer), self._left)]) or 0
        self._left -= count
        return count

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
        super().close()


class Bundle:
    """The files of a bundle by name. Each is taken once; `reading` is the last that was opened."""

    def __init__(self, path: Path) -> None:
        self.path, self.folder, self.reading = path, "", str(path)
        self.parts: dict[str, tuple[Path, int, int, int | None]] = {}  # file, start, size and CRC, in order of names
        if path.is_dir():
            self._list_folder(path, "", 0)
        else:
            self._list_zip(path)
        self.parts = dict(sorted(self.parts.items()))
        self.untaken = set(self.parts)

    def _list_folder(self, path: Path, prefix: str, depth: int) -> None:
        with os.scandir(path) as items:
            found = list(items)
        for item in found:
            name, mode = prefix + item.name, item.stat(follow_symlinks=False).st_mode
            if not PART.fullmatch(item.name) or depth > 4 or len(self.parts) >= MAX_MEMBERS:
                raise invalid(name, "is no name of a bundle's file, or one too many")
            if stat.S_ISDIR(mode):
                self._list_folder(path / item.name, name + "/", depth + 1)
            elif stat.S_ISREG(mode):
                self.parts[name] = (path / item.name, 0, item.stat(follow_symlinks=False).st_size, None)
            else:
                raise invalid(name, "is neither a file nor a folder: links are not followed")

    def _list_zip(self, path: Path) -> None:
        place, length = path.name, path.stat().st_size
        with path.open("rb") as directory, path.open("rb") as local:
            count, start, end = self._find_directory(directory, length, place)
            if count > MAX_MEMBERS:
                raise invalid(place, f"has {count} members; at most {MAX_MEMBERS} are allowed")
            directory.seek(start)
            at, last = 0, b""
            for number in range(1, count + 1):
                name, part = self._read_member(directory, local, at, f"{place} member {number}")
                if name <= last:
                    raise invalid(place, f"its names are not distinct and sorted: {name.decode()}")
                folder, _, rest = name.decode().partition("/")
                if not rest or (self.folder and folder != self.folder):
                    raise invalid(name.decode(), "is not below the one folder of the bundle")
                self.folder, last = folder, name
                self.parts[rest] = (path, *part)
                at = part[0] + part[1]
            if at != start or directory.tell() != end:
                raise invalid(place, "has bytes that belong to no member")

    def _find_directory(self, file: BinaryIO, length: int, place: str) -> tuple[int, int, int]:
        """Number of members, start and end of the central directory: it lies right before the end records."""
        end = length - END.size
        file.seek(max(end, 0))
        fields = END.unpack(self._exactly(file, END.size, place))
        signature, disk, first_disk, here, count, size, start, comment = fields
        if signature != b"PK\x05\x06" or disk or first_disk or here != count or comment:
            raise invalid(place, "is no ZIP in one part that ends with its directory and nothing after it")
        if NARROW in (size, start) or count == 0xFFFF:
            end -= LOCATOR.size + END64.size
            file.seek(max(end, 0))
            wide = END64.unpack(self._exactly(file, END64.size, place))
            locator = LOCATOR.unpack(self._exactly(file, LOCATOR.size, place))
            if wide[0] != b"PK\x06\x06" or wide[1] != 44 or wide[4:6] != (0, 0) or wide[6] != wide[7]:
                raise invalid(place, "has another end record than a ZIP of its size has")
            if locator != (b"PK\x06\x07", 0, end, 1):
                raise invalid(place, "has another locator than a ZIP of its size has")
            count, size, start = wide[7], wide[8], wide[9]
        if start + size != end:
            raise invalid(place, "has bytes before its members or after its directory")
        return count, start, end

    def _read_member(self, directory: BinaryIO, local: BinaryIO, at: int, place: str) -> tuple[bytes, Any]:
        """Name, and start, size and CRC of the next member; its local header stands where the last one ended."""
        head = CENTRAL.unpack(self._exactly(directory, CENTRAL.size, place))
        signature, made_by, needed, flags, method, time, date, crc, packed, size, names, extras, comment = head[:13]
        disk, internal, attributes, offset = head[13:]
        name = self._exactly(directory, names, place)
        packed, size, offset = widened([packed, size, offset], self._exactly(directory, extras, place), place)
        local.seek(at)
        mine = LOCAL.unpack(self._exactly(local, LOCAL.size, place))
        other_name = self._exactly(local, mine[9], place)
        other_packed, other_size = widened([mine[7], mine[8]], self._exactly(local, mine[10], place), place)
        if signature != b"PK\x01\x02" or mine[0] != b"PK\x03\x04" or disk or comment or offset != at:
            raise invalid(place, "has no header where it should have one")
        text = name.decode("ascii", "backslashreplace")
        if len(name) > 250 or not all(PART.fullmatch(part) for part in text.split("/")):
            raise invalid(text, "is no name of a bundle's file")
        if (name, needed, flags, method, time, date, crc) != (other_name, *mine[1:7]):
            raise invalid(text, "has a local header that differs from the directory")
        if (packed, size) != (other_packed, other_size) or needed not in VERSIONS or made_by & 0xFF not in VERSIONS:
            raise invalid(text, "has a local header that differs from the directory")
        if method or packed != size or flags & ~0x0800:
            raise invalid(text, "is compressed, encrypted or streamed; members are stored")
        modes = (0o644 << 16, 0o100644 << 16)
        if (time, date, internal) != (0, 0x0021, 0) or made_by >> 8 != 3 or attributes not in modes:
            raise invalid(text, "is no plain file of mode 0644 and of 1980-01-01 00:00")
        return name, (local.tell(), size, crc)

    def _exactly(self, file: BinaryIO, count: int, place: str) -> bytes:
        data = file.read(count)
        if len(data) != count:
            raise invalid(place, "ends too early")
        return data

    def stream(self, name: str) -> BinaryIO:
        """A file of the bundle."""
        if name not in self.parts:
            raise missing(name, "is not in the bundle")
        self.reading = name
        path, start, size, _ = self.parts[name]
        return io.BufferedReader(Section(path, start, size), 1 << 18)

    def take(self, name: str) -> BinaryIO:
        """A file of the bundle that has its place there."""
        stream = self.stream(name)
        self.untaken.discard(name)
        return stream

    def read(self, name: str, most: int = MAX_RECORD) -> bytes:
        """All of a file that has its place."""
        with self.take(name) as stream:
            if self.parts[name][2] > most:
                raise invalid(name, f"is longer than {most} bytes")
            return stream.read()

    def below(self, folder: str) -> list[str]:
        """The names of the files in a folder, sorted."""
        return [name for name in self.parts if name.startswith(folder)]

    def sha256(self, name: str) -> str:
        """Hash of a file in hexadecimal; its length and CRC are those that the container says."""
        found, crc, count = hashlib.sha256(), 0, 0
        expected = self.parts[name]
        with self.stream(name) as stream:
            while True:
                block = stream.read(1 << 20)
                if not block:
                    break
                found.update(block)
                count += len(block)
                if expected[3] is not None:
                    crc = binascii.crc32(block, crc)
        if count != expected[2] or crc != (expected[3] or 0):
            raise invalid(name, "has another length or CRC than its container says")
        return found.hexdigest()


def widened(numbers: list[int], extra: bytes, place: str) -> list[int]:
    """Numbers of a header, with those that did not fit taken from the ZIP64 field: the only extra field allowed."""
    wide = [number == NARROW for number in numbers]
    if not extra and not any(wide):
        return numbers
    if len(extra) != 4 + 8 * sum(wide) or extra[:4] != struct.pack("<HH", 1, 8 * sum(wide)):
        raise invalid(place, "has an extra field that no member needs")
    values = iter(struct.unpack(f"<{sum(wide)}Q", extra[4:]))
    return [next(values) if is_wide else number for number, is_wide in zip(numbers, wide)]


# 7. The bag (RFC 8493), what it says it is, and the statement that signs it.

TAG_FILES = ["bag-info.txt", "bagit.txt", "evidence.dsse.json", "manifest-sha256.txt"]
MANIFEST_LINE = re.compile("([0-9a-f]{64})  ([A-Za-z0-9._/-]+)")
BAGIT = b"BagIt-Version: 1.0\nTag-File-Character-Encoding: UTF-8\n"


def check_manifest(bundle: Bundle, name: str, files: list[str]) -> dict[str, str]:
    """The digests of a manifest, which lists exactly these files, sorted, each with the digest that it has."""
    listed: dict[str, str] = {}
    text = bundle.read(name).decode("ascii", "replace")
    lines = text.split("\n")
    if lines.pop():
        raise invalid(name, "does not end with a line feed")
    for number, line in enumerate(lines, 1):
        match = MANIFEST_LINE.fullmatch(line)
        if not match or (listed and match[2] <= next(reversed(listed))):
            raise invalid(f"{name} line {number}", "is no digest and path, or is not sorted")
        listed[match[2]] = match[1]
    for path in sorted(listed.keys() | set(files)):
        if path not in listed:
            raise invalid(path, f"is not listed in {name}")
        if path not in files:
            if name == "manifest-sha256.txt" and path.startswith("data/"):
                raise missing(path, f"is listed in {name}, and is not there")
            raise invalid(name, f"lists {path}, which is none of its files")
        if bundle.sha256(path) != listed[path]:
            raise invalid(path, f"has another digest than {name} lists")
    return listed


def check_bag(bundle: Bundle) -> dict[str, str]:
    """The bag's own files and both manifests; the digests of the tag files."""
    for name in bundle.parts:
        if not name.startswith("data/") and name not in (*TAG_FILES, "tagmanifest-sha256.txt"):
            raise invalid(name, "is no file of a bundle")
    for name in TAG_FILES:
        if name not in bundle.parts:
            raise missing(name, "is not in the bundle")
    if bundle.read("bagit.txt", 1_000) != BAGIT:
        raise invalid("bagit.txt", "is not that of a bundle")
    check_manifest(bundle, "manifest-sha256.txt", bundle.below("data/"))
    return check_manifest(bundle, "tagmanifest-sha256.txt", TAG_FILES)


def check_evidence(bundle: Bundle, project: str, run: str) -> dict[str, Any]:
    """What the bundle says it is. `project` and `run` are what the auditor expects, or empty."""
    place = "data/evidence.json"
    said: dict[str, Any] = fit(parse_document(bundle.read(place), place), EVIDENCE, place)
    sizes, first, size = said["knownSizes"], said["firstIndex"], said["size"]
    if said["epoch"] < 1 or not said["origin"].endswith(f"/{said['projectId']}/{said['epoch']}"):
        raise invalid(place, "has an origin that is not <instance>/<project>/<epoch>")
    if said["runId"] and not RANDOM_ID.fullmatch(said["runId"]):
        raise invalid(place, "has a runId that is none")
    if not 0 <= first <= size or (said["runId"] and first == size):
        raise invalid(place, "has a firstIndex that is not within its size")
    if sizes != sorted(set(sizes)) or not all(0 < each < size for each in sizes):
        raise invalid(place, "has knownSizes that are not ascending, above 0 and below size")
    if (project and project != said["projectId"]) or (run and run != said["runId"]):
        raise invalid(place, "is of another project or run than was asked for")
    subject = run_name(said) if said["runId"] else f"projects/{said['projectId']}"
    info = f"External-Description: Animus evidence\nExternal-Identifier: {subject}\n"
    if bundle.read("bag-info.txt", 1_000) != info.encode():
        raise invalid("bag-info.txt", "is not that of this bundle")
    if bundle.folder and bundle.folder != bag_name(said):
        raise invalid(bundle.folder, f"is another folder than {bag_name(said)}")
    return said


def bag_name(said: dict[str, Any]) -> str:
    """The name of the bag."""
    what = f"run-{said['runId']}" if said["runId"] else f"log-{said['firstIndex']}"
    return f"animus-{said['projectId']}-{what}-{said['size']}"


def run_name(said: dict[str, Any]) -> str:
    """Full name of the run of a bundle."""
    return f"projects/{said['projectId']}/runs/{said['runId']}"


def check_statement(
    bundle: Bundle, name: str, kind: str, subject: list[tuple[str, str]], predicate: Any, keys: Sequence[Key]
) -> None:
    """A DSSE envelope whose statement is exactly this one, signed by a trusted key."""
    data = bundle.read(name)
    if not data.endswith(b"\n"):
        raise invalid(name, "does not end with a line feed")
    shape = {"payload": str, "payloadType": str, "signatures": [{"keyid": str, "sig": str}]}
    envelope = fit(parse(data[:-1], name), shape, name)
    statement = {
        "_type": "https://in-toto.io/Statement/v1",
        "predicate": predicate,
        "predicateType": kind,
        "subject": [{"digest": {"sha256": digest}, "name": each} for each, digest in subject],
    }
    payload, payload_type = unbase64(envelope["payload"]), envelope["payloadType"]
    if payload is None or payload_type != "application/vnd.in-toto+json":
        raise invalid(name, "is no envelope of an in-toto statement")
    message = b"DSSEv1 %d %s %d %s" % (len(payload_type), payload_type.encode(), len(payload), payload)
    known = {hashlib.sha256(key.public_key).hexdigest(): key for key in keys}
    signed: set[str] = set()
    for number, item in enumerate(envelope["signatures"], 1):
        if item["keyid"] in signed or not re.fullmatch("[0-9a-f]{64}", item["keyid"]):
            raise invalid(name, f"signature {number} has a keyid that is none, or that stands twice")
        signed.add(item["keyid"])
        signature = unbase64(item["sig"])
        if signature is None or len(signature) != 64:
            raise invalid(name, f"signature {number} is no signature")
        if item["keyid"] in known and not is_signed(known[item["keyid"]].public_key, message, signature):
            raise invalid(name, f"signature {number} is not good")
    if not signed & known.keys():
        raise invalid(name, "is not signed by a trusted key")
    if payload != dump(statement):
        raise contradiction(name, "states something else than follows from the bundle")


def check_evidence_statement(bundle: Bundle, said: dict[str, Any], tags: dict[str, str], keys: Sequence[Key]) -> None:
    """The statement over the tag files. What it covers was altered if it does not hold: nothing was signed then."""
    subject = [(name, tags[name]) for name in ("bag-info.txt", "bagit.txt", "manifest-sha256.txt")]
    predicate = {"bag": bag_name(said)}
    try:
        check_statement(bundle, "evidence.dsse.json", "urn:animus:evidence:v1", subject, predicate, keys)
    except Failure as failure:
        raise invalid(failure.place, failure.problem) from None


# 8. The log: checkpoint, entries, known heads.


class Log:
    """What the checkpoint says, and what was found on the way to its root."""

    def __init__(self, bundle: Bundle, said: dict[str, Any], keys: Sequence[Key]) -> None:
        self.bundle, self.said, self.place = bundle, said, "data/log/checkpoint"
        self.note = bundle.read(self.place, MAX_NOTE)
        origin, self.size, self.root, self.signers = open_checkpoint(self.note, keys, self.place)
        if (origin, self.size) != (said["origin"], said["size"]):
            raise contradiction(self.place, "is of another origin or size than evidence.json says")
        self.tree = self._frontier()
        self.roots = self._first_roots()  # by size: of each known size that the bundle reaches
        self.wanted: set[int] = set(said["knownSizes"])
        self.entry_ids: set[bytes] = set()
        self.covered: list[str] = []  # kept checkpoints that the log is shown to begin with

    def _frontier(self) -> Tree:
        place, first = "data/log/frontier", self.said["firstIndex"]
        text = self.bundle.read(place, 10_000).decode("ascii", "replace")
        lines = text.split("\n")
        if lines.pop():
            raise invalid(place, "does not end with a line feed")
        hashes = parse_hashes(lines, place)
        if len(hashes) != bin(first).count("1"):
            raise invalid(place, f"has {len(hashes)} hashes; a tree of {first} leaves has other subtrees")
        return Tree(first, hashes)

    def _first_roots(self) -> dict[int, bytes]:
        """Roots of the trees that the first subtrees of the frontier are."""
        roots, size = {}, 0
        first, bit = self.said["firstIndex"], 1 << 63
        while bit:
            if first & bit:
                size += bit
                roots[size] = Tree(size, self.tree.whole[: bin(size).count("1")]).root()
            bit >>= 1
        return roots

    def files(self) -> Iterator[str]:
        """The names of the files of entries, without folder and suffix."""
        return (f"{first:020d}" for first in range(self.said["firstIndex"], self.size, ENTRIES_IN_FILE))

    def entries(self, file: str) -> Iterator[tuple[str, bytes, dict[str, Any]]]:
        """Place, line and tree of each entry of a file; the tree of the log grows by it."""
        name, project = f"data/entries/{file}.ndjson", self.said["projectId"]
        count = min(ENTRIES_IN_FILE, self.size - int(file))
        with self.bundle.take(name) as stream:
            for number in range(1, count + 1):
                place = f"{name} line {number}"
                line = read_line(stream, MAX_LINE, place)
                if line is None:
                    raise missing(place, "is missing: the file has fewer entries than the log")
                entry = fit(parse(line, place), ENTRY, place)
                self._check_entry(entry, project, place)
                self.tree.add(leaf_hash(line))
                if self.tree.size in self.wanted:
                    self.roots[self.tree.size] = self.tree.root()
                yield place, line, entry
            if stream.read(1):
                raise invalid(name, "has more entries than the log, or than a file may have")

    def _check_entry(self, entry: dict[str, Any], project: str, place: str) -> None:
        if entry["projectId"] != project:
            raise contradiction(place, "is an entry of another project")
        if (entry["outcome"] == "accepted") != bool(entry["records"]):
            raise contradiction(place, "has records that do not go with its outcome")
        entry_id = bytes.fromhex(entry["entryId"])
        if entry_id in self.entry_ids:
            raise contradiction(place, "has the id of another entry")
        self.entry_ids.add(entry_id)

    def check_root(self) -> None:
        """After all entries: they lead to the root that was signed."""
        if self.tree.size != self.size or self.tree.root() != self.root:
            raise contradiction(self.place, "signs another root than the entries lead to")

    def check_proofs(self) -> None:
        """One proof of consistency for each known size."""
        folder = "data/log/consistency/"
        for size in self.said["knownSizes"]:
            self.check_consistency(size, self.roots.get(size), f"{folder}{size}")

    def check_consistency(self, size: int, root: bytes | None, place: str) -> bool:
        """Whether a proof could be checked: without a root, those from a power of two cannot."""
        text = self.bundle.read(place, 10_000).decode("ascii", "replace")
        lines = text.split("\n")
        if lines.pop():
            raise invalid(place, "does not end with a line feed")
        proof = parse_hashes(lines, place)
        if root is None and not size & (size - 1):
            return False
        found = consistent_roots(size, self.size, root, proof)
        if found is None or found[1] != self.root or (root is not None and found[0] != root):
            raise contradiction(place, "does not lead to both roots")
        return True

    def covers(self, size: int, root: bytes, place: str) -> bool:
        """Whether the log is shown to begin with the tree of a checkpoint that the auditor kept."""
        if size == self.size:
            found: bytes | None = self.root
        else:
            found = self.roots.get(size)
        if found is not None:
            if found != root:
                raise contradiction(place, f"has another root of {size} entries than the log of this bundle")
            return size > 0
        if size in self.said["knownSizes"]:
            try:
                return self.check_consistency(size, root, f"data/log/consistency/{size}")
            except Failure as failure:
                raise contradiction(place, f"{failure.place} {failure.problem}") from None
        return False


def read_line(stream: BinaryIO, most: int, place: str) -> bytes | None:
    """The next line without its line feed; nothing at the end."""
    line = stream.readline(most + 2)
    if not line:
        return None
    if line[-1:] != b"\n":
        raise invalid(place, "is longer than allowed, or does not end with a line feed")
    return line[:-1]


# 9. Records: each that an entry names, in order, and no other.


class Lines:
    """The lines of a file of records, each taken by what an entry says of it."""

    def __init__(self, bundle: Bundle, name: str) -> None:
        self.name, self.number = name, 0
        self.stream = bundle.take(name)

    def next(self, record: dict[str, str]) -> tuple[str, bytes]:
        """Place and bytes of the next record, which has to be this one."""
        self.number += 1
        place = f"{self.name} line {self.number}"
        line = read_line(self.stream, MAX_RECORD, place)
        if line is None:
            raise missing(place, f"is missing: an entry names the {record['kind']} {record['digest']}")
        if digest_of(line) != record["digest"]:
            raise invalid(place, f"is not the {record['kind']} {record['digest']} that an entry names")
        if b'"schema":"animus.%s/v' % record["kind"].encode() not in line:
            raise contradiction(place, f"is no {record['kind']}")
        return place, line

    def end(self) -> None:
        """Refuses a line more."""
        with self.stream:
            if self.stream.read(1):
                raise invalid(self.name, "has records that no entry names")


def named_records(records: list[dict[str, str]], take: Any, place: str) -> Iterator[tuple[str, str, bytes]]:
    """Kind, place and bytes of each record of an entry, those included that it names through a manifest."""
    for record in records:
        found, line = take(record)
        yield record["kind"], found, line
        if record["kind"] == "record_manifest":
            if len(records) > 1:
                raise contradiction(place, "names a record_manifest beside other records")
            for each in fit(parse_document(line, found), RECORD_MANIFEST, found)["records"]:
                if each["kind"] == "record_manifest":
                    raise contradiction(found, "names a record_manifest")
                yield (each["kind"], *take(each))


def check_log_records(log: Log) -> tuple[int, int]:
    """All entries of a log bundle with their records; the number of both."""
    entries, records = 0, 0
    for file in log.files():
        lines: Lines | None = None
        for place, _, entry in log.entries(file):
            entries += 1
            if entry["records"]:
                lines = lines or Lines(log.bundle, f"data/records/{file}.ndjson")
                records += sum(1 for _ in named_records(entry["records"], lines.next, place))
        if lines:
            lines.end()
    return entries, records


# 10. The plan: execution order, retries and critical path follow from the pipeline alone.


def delays_of(backoff: dict[str, Any], count: int) -> list[int]:
    """Whole seconds to wait after attempt 1, 2, ..., count: exact, rounded down, up to the maximum."""
    whole, fraction = MULTIPLIER.fullmatch(backoff["multiplier"]).groups()  # type: ignore[union-attr]
    thousandths = int(whole) * 1000 + int((fraction or "").ljust(3, "0"))
    delays, wait, scale = [], backoff["initialSeconds"], 1
    for _ in range(count):
        delays.append(min(wait // scale, backoff["maxSeconds"]))
        if wait < backoff["maxSeconds"] * scale:
            wait, scale = wait * thousandths, scale * 1000
    return delays


def execution_order(waits: dict[str, list[str]], place: str) -> list[str]:
    """Of the steps whose dependencies all stand before, the one with the smallest name comes next."""
    followers: dict[str, list[str]] = {name: [] for name in waits}
    for name, befores in waits.items():
        for before in befores:
            if before not in waits:
                raise invalid(place, f"waits for {before}, which is no step of it")
            followers[before].append(name)
    left = {name: len(befores) for name, befores in waits.items()}
    ready = [name for name in waits if not left[name]]
    heapq.heapify(ready)
    order = []
    while ready:
        order.append(heapq.heappop(ready))
        for name in followers[order[-1]]:
            left[name] -= 1
            if not left[name]:
                heapq.heappush(ready, name)
    if len(order) < len(waits):
        raise invalid(place, "has steps that wait for each other")
    return order


def make_plan(run_spec: str, pipeline_spec: str, pipeline: dict[str, Any], place: str) -> dict[str, Any]:
    """The plan of a pipeline, for the digests of both specs."""
    steps = {step["name"]: step for step in pipeline["spec"]["steps"]}
    before = {name: {each["fromStep"] for each in step["inputs"]["artifacts"]} for name, step in steps.items()}
    for edge in pipeline["spec"]["dependencies"]:
        before.setdefault(edge["step"], set()).add(edge["dependsOn"])
    if before.keys() != steps.keys() or len(steps) != len(pipeline["spec"]["steps"]) or not steps:
        raise invalid(place, "has no steps, two of one name, or a dependency of a step that it does not have")
    waits = {name: sorted(names) for name, names in before.items()}
    level: dict[str, int] = {}
    worst: dict[str, int] = {}
    planned = []
    for name in execution_order(waits, place):
        policy = steps[name]["retryPolicy"]
        if not 1 <= policy["maxAttempts"] <= 100 or not 0 <= policy["backoff"]["initialSeconds"] <= 86_400:
            raise invalid(place, f"has a retry policy of {name} that none has")
        retries = policy["maxAttempts"] - 1 if policy["retryOn"] else 0
        delays = delays_of(policy["backoff"], retries)
        level[name] = 1 + max((level[each] for each in waits[name]), default=-1)
        worst[name] = sum(delays) + max((worst[each] for each in waits[name]), default=0)
        planned.append({
            "name": name, "level": level[name], "dependsOn": waits[name], "maxAttempts": retries + 1,
            "retryOn": policy["retryOn"], "retryDelaysSeconds": delays, "worstCaseDelaySeconds": worst[name],
        })  # fmt: skip
    path = [min(level, key=lambda name: (-level[name], name))]
    while level[path[-1]]:
        path.append(min(each for each in waits[path[-1]] if level[each] == level[path[-1]] - 1))
    return {
        "schema": "animus.execution_plan/v1", "runSpecDigest": run_spec, "pipelineSpecDigest": pipeline_spec,
        "steps": planned, "criticalPath": path[::-1],
    }  # fmt: skip


# 11. The state of a run: what each event may follow, and what it leads to.


class State:
    """States of a run and its steps while events are accepted one by one. Steps start to count once there is a plan."""

    def __init__(self) -> None:
        self.cancel_requested = self.started = False
        self.planned: dict[str, dict[str, Any]] = {}  # steps of the plan
        self.steps: dict[str, str] = {}
        self.attempts: dict[str, dict[int, dict[str, Any]]] = {}
        self.counts: Counter[str] = Counter()
        self._followers: dict[str, list[str]] = {}
        self._waiting: dict[str, int] = {}  # dependencies that have not succeeded

    def plan(self, steps: list[dict[str, Any]]) -> None:
        """The steps of the plan, in its order."""
        for step in steps:
            name = step["name"]
            self.planned[name], self.attempts[name], self._followers[name] = step, {}, []
            self._waiting[name] = len(step["dependsOn"])
            for before in step["dependsOn"]:
                self._followers[before].append(name)
            self._move(name, "pending" if step["dependsOn"] else "ready")

    @property
    def run(self) -> str:
        """State of the run."""
        if not self.planned:
            return "canceled" if self.cancel_requested else "created"
        if self.counts["succeeded"] == len(self.steps):
            return "succeeded"
        if self.cancel_requested:
            return "canceling" if self.counts["running"] else "canceled"
        if not (self.counts["pending"] or self.counts["ready"] or self.counts["running"]):
            return "failed"
        return "running" if self.started else "planned"

    def has_ended(self) -> bool:
        """Whether nothing more happens to the run."""
        return self.run in ("succeeded", "failed", "canceled")

    def _move(self, name: str, state: str) -> None:
        self.counts[self.steps.get(name, "")] -= 1
        self.counts[state] += 1
        self.steps[name] = state

    def runs(self, step: str, attempt: int) -> bool:
        """Whether an attempt runs: it may end, and hand in artifacts and metrics."""
        return bool(self.attempts.get(step, {}).get(attempt, {}).get("state") == "running")

    def problem(self, event: dict[str, Any]) -> str:
        """Why an event may not follow; empty if it may. Outputs are the caller's matter."""
        step, attempt = event["step"], event["attempt"]
        if step not in self.steps:
            return f"is of a step {step!r} that the plan does not have"
        if (event["type"] == "failed") != bool(event["errorKind"]):
            return "has an errorKind that does not go with its type"
        if event["type"] == "started":
            if self.has_ended() or self.cancel_requested:
                return "starts an attempt after the run has ended or was cancelled"
            if self.steps[step] != "ready" or attempt != len(self.attempts[step]) + 1:
                return f"starts attempt {attempt} of {step!r}, which is not what comes next: it is {self.steps[step]}"
            return ""
        if not self.runs(step, attempt):
            return f"ends attempt {attempt} of {step!r}, which does not run"
        return (
            "says canceled, and nobody asked for it" if event["type"] == "canceled" and self.run != "canceling" else ""
        )

    def apply(self, event: dict[str, Any]) -> None:
        """Takes an event that may follow."""
        name, number, kind = event["step"], event["attempt"], event["type"]
        if kind == "started":
            self.started = True
            self.attempts[name][number] = {
                "attempt": number, "state": "running", "errorKind": "none", "message": "",
                "startTime": event["occurTime"], "endTime": "",
            }  # fmt: skip
            return self._move(name, "running")
        self.attempts[name][number].update(
            state=kind, errorKind=event["errorKind"] or "none", message=event["message"], endTime=event["occurTime"]
        )
        step = self.planned[name]
        if kind == "failed" and number < step["maxAttempts"] and event["errorKind"] in step["retryOn"]:
            return self._move(name, "canceled" if self.cancel_requested else "ready")
        self._move(name, kind)
        if kind == "succeeded":
            for follower in self._followers[name]:
                self._waiting[follower] -= 1
                if not self._waiting[follower] and self.steps[follower] == "pending":
                    self._move(follower, "ready")
        elif kind == "failed":
            self._skip(self._followers[name])
        return None

    def _skip(self, names: list[str]) -> None:
        """Steps that wait for one that will not succeed, and those that wait for them."""
        names = list(names)
        while names:
            name = names.pop()
            if self.steps[name] == "pending":
                self._move(name, "skipped")
                names += self._followers[name]

    def cancel(self) -> None:
        """Cancellation was asked for: nothing starts any more."""
        self.cancel_requested = True
        for name, state in self.steps.items():
            if state in ("pending", "ready", "skipped"):
                self._move(name, "canceled")


# 12. The run: what it rests on, and all that its records say, made again.


class Run:
    """A run, from the entries that name it."""

    def __init__(self, log: Log, entries: list[tuple[int, str, bytes]]) -> None:
        self.log, self.bundle, self.entries = log, log.bundle, entries
        self.project, self.run_id, self.name = log.said["projectId"], log.said["runId"], run_name(log.said)
        self.files: dict[str, Lines] = {}  # of records, by kind
        self.needed: set[tuple[str, str]] = set()  # kind and digest of what the run rests on
        self.run: dict[str, Any] = {}
        self.run_digest = self.plan_digest = ""
        self.plan_index = -1
        self.state, self.sequence = State(), 0
        self.event_ids: set[str] = set()
        self.artifacts: dict[tuple[str, int, str], str] = {}
        self.points: set[tuple[str, int, str, int]] = set()
        self.records = 0

    def take(self, record: dict[str, str]) -> tuple[str, bytes]:
        """The next record of a kind."""
        kind = record["kind"]
        if kind not in self.files:
            self.files[kind] = Lines(self.bundle, f"data/records/{kind}.ndjson")
        return self.files[kind].next(record)

    def bound(self, kind: str, digest: str) -> tuple[str, bytes]:
        """Name and bytes of a record that the run rests on."""
        name = f"data/bound/{kind}-{hex_of(digest)}.json"
        data = self.bundle.read(name)
        if digest_of(data) != digest:
            raise invalid(name, "has another digest than its name says")
        self.needed.add((kind, digest))
        return name, data

    def replay(self) -> None:
        """Every record of every entry in order."""
        rules: dict[str, Any] = {"run_event": self._event, "artifact": self._artifact, "metric": self._metric}
        for index, place, line in self.entries:
            self.index, self.entry = index, parse(line, place)
            self.edges: list[bytes] = []  # as recorded, and not yet made again
            self.expected: dict[bytes, None] = {}  # made again, and not yet recorded
            for kind, found, data in named_records(self.entry["records"], self.take, place):
                self.records += 1
                if kind == "lineage_edge":
                    self.edges.append(data)
                elif kind == "run" and not self.run and index == self.log.said["firstIndex"]:
                    self._create(data, found)
                elif kind in rules and self.run:
                    rules[kind](parse_document(data, found), found)
                elif kind in ("run", "run_event", "artifact", "metric"):
                    raise contradiction(found, f"is a {kind} at a place where there can be none")
                elif kind not in ("run_spec", "execution_plan", "record_manifest"):
                    parse_document(data, found)
            if self.edges != list(self.expected):
                raise contradiction(place, "has other lineage edges than follow from its records")
            if not self.run:
                raise missing(place, "names no run: the first entry of a run bundle creates it")
        for lines in self.files.values():
            lines.end()

    # What the run rests on.

    def _create(self, data: bytes, place: str) -> None:
        tree = parse_document(data, place)
        self.run = fit(tree, REPLAYED_RUN if "replayOf" in tree else RUN, place)
        self.run_digest = digest_of(data)
        if self.run["runId"] != self.run_id or self.run["createTime"] != self.entry["time"]:
            raise contradiction(place, "is another run than its entry created, or of another time")
        name, found = self.bound("run_spec", self.run["runSpecDigest"])
        self.spec: dict[str, Any] = fit(parse_document(found, name), RUN_SPEC, name)
        name, found = self.bound("pipeline_spec", self.spec["pipelineSpecDigest"])
        self.pipeline: dict[str, Any] = fit(parse_document(found, name), PIPELINE_SPEC, name)
        self.plan = make_plan(self.run["runSpecDigest"], self.spec["pipelineSpecDigest"], self.pipeline, name)
        self.steps = {step["name"]: step for step in self.pipeline["spec"]["steps"]}
        self._check_environment()
        self._check_versions()
        self._check_bindings(place)
        self._check_admission(place)
        used = [self.pipeline_name, self.environment_name, self.commit_name, *self.versions.values()]
        self.expected = {edge(self.name, "used", each): None for each in used}

    def _check_environment(self) -> None:
        name, found = self.bound("environment_lock", self.spec["environmentLockDigest"])
        if parse_document(found, name)["schema"] != "animus.environment_lock/v1":
            raise contradiction(name, "is no environment lock")

    def _check_versions(self) -> None:
        """Each dataset version that is bound, by its dataset and content; a content of files is digested again."""
        found = {}
        for name in self.bundle.below("data/bound/dataset_version-"):
            digest = "sha256:" + name[len("data/bound/dataset_version-") : -len(".json")]
            name, data = self.bound("dataset_version", digest)
            version = fit(parse_document(data, name), DATASET_VERSION, name)
            key = version["datasetId"], version["contentDigest"]
            files = {"files": version["files"], "schema": "animus.file_manifest/v1"}
            if key in found or (version["files"] and digest_of(dump(files)) != version["contentDigest"]):
                raise contradiction(name, "is a second version of its content, or its files have another digest")
            found[key] = name
        wanted = {(each["datasetId"], each["contentDigest"]) for each in self.spec["datasets"]}
        for dataset, content in sorted(wanted - found.keys()):
            raise missing("data/bound/", f"has no dataset_version of {dataset} with {content}")
        for key in found.keys() - wanted:
            raise invalid(found[key], "is bound by nothing")

    def _check_bindings(self, place: str) -> None:
        start = f"projects/{self.project}"
        self.pipeline_name = f"{start}/pipelineSpecs/{self.spec['pipelineSpecDigest']}"
        self.environment_name = f"{start}/environmentLocks/{self.spec['environmentLockDigest']}"
        self.commit_name = f"{start}/commits/{self.spec['commit']['repository']}@{self.spec['commit']['sha']}"
        self.versions = {
            each["datasetRef"]: f"{start}/datasets/{each['datasetId']}/versions/{each['contentDigest']}"
            for each in self.spec["datasets"]
        }
        wanted = {each["datasetRef"] for step in self.steps.values() for each in step["inputs"]["datasets"]}
        if wanted != self.versions.keys() or len(self.versions) != len(self.spec["datasets"]):
            raise contradiction(place, "binds other datasets than its pipeline reads")

    def _check_admission(self, place: str) -> None:
        checks = [
            ("pipeline-spec-registered", self.pipeline_name, "pipelineSpecDigest"),
            ("environment-lock-registered", self.environment_name, "environmentLockDigest"),
            *(("dataset-version-registered", name, f"datasets[{ref}]") for ref, name in self.versions.items()),
        ]
        passed = [{"name": c[0], "subject": c[1], "outcome": "admitted", "field": c[2]} for c in sorted(checks)]
        if self.run["admission"] != {"outcome": "admitted", "checks": passed}:
            raise contradiction(place, "was admitted otherwise than its bindings are")

    def check_registrations(self) -> int:
        """Each bound record was registered by an entry that a proof shows, before the run or by it; their number."""
        names = [name for name in self.bundle.below("data/proofs/") if name.endswith(".json")]
        for name in names:
            entry, index = self._proven_entry(name)
            registered = self._registered(entry, name)
            found = registered & self.needed
            if not found:
                raise invalid(name, "registered nothing that the run rests on, or what another entry did")
            self.needed -= found
            before = index < self.log.said["firstIndex"] or names_run(entry, self.name)
            # A plan may stand since another run of the same RunSpec was planned, between creation and plan of this.
            if not before and not (index < self.plan_index and {kind for kind, _ in found} == {"execution_plan"}):
                raise contradiction(name, "registered what the run rests on after the run")
        for kind, digest in sorted(self.needed):
            raise missing("data/proofs/", f"has no entry that registered the {kind} {digest}")
        return len(names)

    def _proven_entry(self, name: str) -> tuple[dict[str, Any], int]:
        data, other = self.bundle.read(name, MAX_LINE), name[: -len("json")] + "tlog-proof"
        entry = fit(parse(data, name), ENTRY, name)
        index, hashes, note = parse_proof(self.bundle.read(other, MAX_NOTE * 2), other)
        if name != f"data/proofs/{index:020d}.json" or note != self.log.note:
            raise contradiction(other, "is of another index than its name says, or of another checkpoint")
        if included_root(index, self.log.size, leaf_hash(data), hashes) != self.log.root:
            raise contradiction(other, "does not lead from the entry to the root")
        if entry["projectId"] != self.project or entry["outcome"] != "accepted":
            raise contradiction(name, "is of another project, or was not accepted")
        return entry, index

    def _registered(self, entry: dict[str, Any], name: str) -> set[tuple[str, str]]:
        records = entry["records"]
        if [each["kind"] for each in records] == ["record_manifest"]:
            digest = records[0]["digest"]
            other, data = self.bound("record_manifest", digest)
            self.needed.discard(("record_manifest", digest))
            records = fit(parse_document(data, other), RECORD_MANIFEST, other)["records"]
        return {(each["kind"], each["digest"]) for each in records}

    # What happened to it.

    def _event(self, tree: dict[str, Any], place: str) -> None:
        event = fit(tree, RUN_EVENT, place)
        self.sequence += 1
        if event["runId"] != self.run_id or event["sequence"] != self.sequence:
            raise contradiction(place, f"is not event {self.sequence} of the run")
        kind, inner = event["type"], event["stepEvent"]
        form = (bool(event["planDigest"]), len(inner))
        if form != (kind == "planned", int(kind == "step")) or (event["reason"] and kind != "cancel_requested"):
            raise contradiction(place, f"has fields that no event of type {kind} has")
        if kind == "step":
            self._step_event(inner[0], place)
        elif self.state.has_ended() or (self.state.planned if kind == "planned" else self.state.cancel_requested):
            raise contradiction(place, f"is {kind} a second time, or after the run has ended")
        elif kind == "planned":
            self._planned(event["planDigest"], place)
        else:
            self.state.cancel()
        if event["state"] != self.state.run:
            raise contradiction(place, f"says the run is {event['state']} then; it is {self.state.run}")

    def _planned(self, digest: str, place: str) -> None:
        plan = dump(self.plan)
        if digest != digest_of(plan):
            raise contradiction(place, "has another plan than the one that follows from the specs")
        name, found = self.bound("execution_plan", digest)
        if found != plan:
            raise contradiction(name, "is another plan than the one that follows from the specs")
        self.plan_digest, self.plan_index = digest, self.index
        self.state.plan(self.plan["steps"])

    def _step_event(self, event: dict[str, Any], place: str) -> None:
        problem = "repeats an eventId" if event["eventId"] in self.event_ids else self.state.problem(event)
        if problem:
            raise contradiction(place, problem)
        self.event_ids.add(event["eventId"])
        step, attempt = event["step"], event["attempt"]
        if event["type"] == "started":
            made = self._edges_of_start(self.steps[step], attempt)
            if self.edges != made:
                raise contradiction(place, "follows other lineage edges than its start has")
            self.edges = []
        elif event["type"] == "succeeded":
            for output in self.steps[step]["outputs"]["artifacts"]:
                if (step, attempt, output["name"]) not in self.artifacts:
                    raise contradiction(place, f"says succeeded without the declared output {output['name']!r}")
        self.state.apply(event)

    def _edges_of_start(self, step: dict[str, Any], attempt: int) -> list[bytes]:
        subject = f"{self.name}/steps/{step['name']}/attempts/{attempt}"
        used = [self.versions[each["datasetRef"]] for each in step["inputs"]["datasets"]]
        for each in step["inputs"]["artifacts"]:
            before = self.state.attempts[each["fromStep"]]
            number = next(number for number, other in before.items() if other["state"] == "succeeded")
            used.append(
                f"projects/{self.project}/artifacts/{self.artifacts[each['fromStep'], number, each['artifact']]}"
            )
        started = edge(subject, "was_started_by", self.name)
        return [started, *(edge(subject, "used", each) for each in dict.fromkeys(used))]

    def _check_attempt(self, item: dict[str, Any], place: str) -> None:
        if item["runId"] != self.run_id or not self.state.runs(item["step"], item["attempt"]):
            raise contradiction(place, "is of another run, or of an attempt that does not run then")

    def _artifact(self, tree: dict[str, Any], place: str) -> None:
        item = fit(tree, ARTIFACT, place)
        self._check_attempt(item, place)
        key = item["step"], item["attempt"], item["name"]
        declared = {each["name"] for each in self.steps[item["step"]]["outputs"]["artifacts"]}
        if key in self.artifacts or item["name"] not in declared:
            raise contradiction(place, "is no declared output of its step, or is registered twice")
        self.artifacts[key] = item["digest"]
        attempt = f"{self.name}/steps/{key[0]}/attempts/{key[1]}"
        self.expected[edge(f"projects/{self.project}/artifacts/{item['digest']}", "was_generated_by", attempt)] = None

    def _metric(self, tree: dict[str, Any], place: str) -> None:
        item = fit(tree, METRIC, place)
        self._check_attempt(item, place)
        key = item["step"], item["attempt"], item["name"], item["index"]
        if key in self.points:
            raise contradiction(place, "is a point that is recorded twice")
        self.points.add(key)

    # What follows from it.

    def outputs(self) -> list[dict[str, Any]]:
        """The artifacts of attempts that succeeded."""
        return [
            {"step": step, "name": name, "attempt": attempt, "digest": digest}
            for (step, attempt, name), digest in sorted(self.artifacts.items(), key=lambda i: (i[0][0], i[0][2]))
            if self.state.attempts[step][attempt]["state"] == "succeeded"
        ]

    def check_summary(self) -> None:
        """The summary is what the events derive."""
        steps = [
            {
                "name": name,
                "state": state,
                "attempts": [self.state.attempts[name][n] for n in sorted(self.state.attempts[name])],
            }
            for name, state in self.state.steps.items()
        ]
        summary = {
            "schema": "animus.run_summary/v1", "runId": self.run_id, "state": self.state.run,
            "planDigest": self.plan_digest, "steps": steps, "outputs": self.outputs(),
        }  # fmt: skip
        if self.bundle.read("data/summary.json") != dump(summary):
            raise contradiction("data/summary.json", "is another summary than the events derive")

    def check_statements(self, keys: Sequence[Key]) -> int:
        """Admission and provenance; how many there are."""
        folder = "data/attestations/"
        checks = [f"{check['name']} {check['subject']}" for check in self.run["admission"]["checks"]]
        predicate: dict[str, Any] = {
            "configuration": [{"digest": {"sha256": hex_of(self.run_digest)}, "name": "animus-admission"}],
            "failedTests": [], "passedTests": checks, "result": "PASSED",
        }  # fmt: skip
        kind, subject = (
            "https://in-toto.io/attestation/test-result/v0.1",
            [(self.name, hex_of(self.run["runSpecDigest"]))],
        )
        check_statement(self.bundle, folder + "admission.dsse.json", kind, subject, predicate, keys)
        subject = [(f"{each['step']}/{each['name']}", hex_of(each["digest"])) for each in self.outputs()]
        if not subject:
            return 1  # a provenance would be a file that nothing takes
        kind, name = "https://slsa.dev/provenance/v1", folder + "provenance.dsse.json"
        check_statement(self.bundle, name, kind, subject, self._provenance(), keys)
        return 2

    def _provenance(self) -> dict[str, Any]:
        def sha256(name: str, digest: str) -> dict[str, Any]:
            return {"digest": {"sha256": hex_of(digest)}, "name": name}

        spec, metadata = self.spec, {"invocationId": self.name, "startedOn": self.run["createTime"]}
        definition = {
            "buildType": "urn:animus:pipeline-run:v1",
            "externalParameters": {"parameters": spec["parameters"], "pipelineSpec": spec["pipelineSpecDigest"]},
            "internalParameters": {"executionPlan": self.plan_digest},
            "resolvedDependencies": [
                sha256(self.pipeline_name, spec["pipelineSpecDigest"]),
                sha256(self.environment_name, spec["environmentLockDigest"]),
                {"digest": {"gitCommit": spec["commit"]["sha"]}, "name": self.commit_name},
                *(sha256(self.versions[each["datasetRef"]], each["contentDigest"]) for each in spec["datasets"]),
            ],
        }
        instance = self.log.said["origin"].rsplit("/", 2)[0]
        details = {
            "builder": {"id": f"urn:animus:instance:{instance}"}, "metadata": metadata,
            "byproducts": [sha256("run-spec", self.run["runSpecDigest"])],
        }  # fmt: skip
        return {"buildDefinition": definition, "runDetails": details}


def edge(subject: str, relation: str, thing: str) -> bytes:
    """The bytes of a lineage edge."""
    return dump({"schema": "animus.lineage_edge/v1", "subject": subject, "relation": relation, "object": thing})


def names_run(entry: dict[str, Any], name: str) -> bool:
    """Whether an entry names a run by its full name."""
    return bool(entry["resource"] == name or entry["resource"].startswith(name + "/"))


def run_entries(log: Log) -> list[tuple[int, str, bytes]]:
    """Index, place and line of each entry that names the run; all entries are read on the way."""
    name, found = run_name(log.said), []
    for file in log.files():
        for place, line, entry in log.entries(file):
            if names_run(entry, name):
                found.append((log.tree.size - 1, place, line))
            if log.tree.size == log.said["firstIndex"] + 1 and (entry["resource"], entry["action"]) != (
                name,
                "run.create",
            ):
                raise contradiction(place, "does not create the run: it is the first entry of a run bundle")
    return found


# 13. The verdict.


class Report:
    """What was checked, what was not shown, and the verdict."""

    def __init__(self, bundle: str) -> None:
        self.bundle, self.verdict, self.place, self.problem = bundle, "", "", ""
        self.checked: list[str] = []
        self.not_shown: list[str] = []

    def fail(self, verdict: str, place: str, problem: str) -> None:
        """Why there is no good verdict."""
        self.verdict, self.place, self.problem = verdict, place, problem

    def text(self) -> str:
        """For people: one line for a failure."""
        if self.problem:
            return f"{self.verdict}: {self.place}: {self.problem}"
        return "\n".join([
            f"{self.verdict}: {self.bundle}",
            *(f"  checked    {each}" for each in self.checked),
            *(f"  not shown  {each}" for each in self.not_shown),
        ])  # fmt: skip

    def json(self) -> str:
        """For machines."""
        return json.dumps({
            "verdict": self.verdict, "exitCode": CODES[self.verdict], "bundle": self.bundle, "file": self.place,
            "problem": self.problem, "checked": self.checked, "notShown": self.not_shown,
        }, sort_keys=True)  # fmt: skip


class Trust:
    """What the auditor knows before: keys, heads, a policy, and what is expected."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.keys = [key for each in options.trust for key in trusted_keys(each)]
        self.heads = [(path, own_file(path, MAX_NOTE)) for path in options.known_head]
        self.policy = parse_policy(own_file(options.policy, MAX_NOTE), options.policy) if options.policy else Policy()
        self.project, self.run = options.project, options.run


def own_file(path: str, most: int) -> bytes:
    """A file of the auditor's own."""
    try:
        with Path(path).open("rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise Failure("USAGE", path, error.strerror or "cannot be read") from None
    if len(data) > most:
        raise Failure("USAGE", path, f"is longer than {most} bytes")
    return data


def trusted_keys(text: str) -> list[Key]:
    """A verifier key, or those of a file."""
    lines = [text]
    if not VERIFIER_KEY.fullmatch(text):
        lines = [line.strip() for line in own_file(text, MAX_NOTE).decode("utf-8", "replace").split("\n")]
    keys = [load_key(line, "--trust") for line in lines if line and not line.startswith("#")]
    if not keys or any(key.kind != LOG_KEY for key in keys):
        raise Failure("USAGE", "--trust", "has no key, or one that is not of a log")
    return keys


def verify(bundle: Bundle, trust: Trust, report: Report) -> None:
    """All checks in their order."""
    note = report.checked.append
    tags = check_bag(bundle)
    said = check_evidence(bundle, trust.project, trust.run)
    note(f"{len(bundle.parts)} files are those of the manifests")
    keys = [key for key in trust.keys if key.name == said["origin"]]
    if not keys:
        raise invalid("data/evidence.json", f"is of {said['origin']}, for which no key is trusted")
    check_evidence_statement(bundle, said, tags, keys)
    log = Log(bundle, said, [*keys, *trust.policy.witnesses.values()])
    heads = [(path, *open_checkpoint(data, keys, path)[:3]) for path, data in trust.heads]
    note(f"manifest and checkpoint of {said['size']} entries are signed by a key of {said['origin']}")
    for _, size, _ in (head[1:] for head in heads):
        log.wanted.add(size)
    if said["runId"]:
        entries = run_entries(log)
        finish_log(log, heads, report)
        check_run(Run(log, entries), keys, report)
    else:
        counts = check_log_records(log)
        finish_log(log, heads, report)
        note(f"{counts[1]} records are those that {counts[0]} entries name")
    for name in sorted(bundle.untaken):
        raise invalid(name, "has no place in the bundle")
    decide(log, trust, report)


def finish_log(log: Log, heads: list[Any], report: Report) -> None:
    """The root, proofs of consistency, and the checkpoints that the auditor kept."""
    log.check_root()
    report.checked.append(f"{log.size - log.said['firstIndex']} entries lead to the root of the checkpoint")
    log.check_proofs()
    log.covered = [path for path, _, size, root in heads if log.covers(size, root, path)]
    report.checked.append(f"{len(log.covered)} of {len(heads)} kept checkpoints are of this log")
    report.not_shown += [f"that the log began with {head[0]}" for head in heads if head[0] not in log.covered]


def check_run(run: Run, keys: Sequence[Key], report: Report) -> None:
    """All that is said of a run."""
    run.replay()
    proofs = run.check_registrations()
    run.check_summary()
    statements = run.check_statements(keys)
    for name in ("openlineage.ndjson", "prov.json"):
        run.bundle.take(f"data/renderings/{name}").close()
    report.checked += [
        f"{len(run.entries)} entries name the run and {run.records} records",
        f"{proofs} entries registered what the run rests on",
        f"plan and {run.sequence} events: the run is {run.state.run}",
        f"admission, lineage, summary and {statements} statements follow from the records",
    ]
    report.not_shown.append("the renderings: they are signed, and not made again")


def decide(log: Log, trust: Trust, report: Report) -> None:
    """The verdict of a bundle of which every check holds."""
    report.verdict = "CONSISTENT" if log.covered else "SIGNED"
    policy = trust.policy
    known_log = not policy.logs or any(
        (k.name, k.public_key) == (s.name, s.public_key) for k in policy.logs for s in log.signers
    )
    if known_log and policy.quorum in policy.agreed(log.signers):
        report.verdict = "WITNESSED"
        report.checked.append("the quorum of the policy has cosigned the checkpoint")
    elif policy.quorum is not None:
        report.not_shown.append("that the quorum of the policy has seen the checkpoint")
    if not log.covered:
        report.not_shown.append("that the log is the one that anybody else sees: keep this checkpoint as a known head")
    report.not_shown.append("that what was reported to the log is true, and anything after the checkpoint")


class Parser(argparse.ArgumentParser):
    """Ends with the code of USAGE."""

    def error(self, message: str) -> NoReturn:
        """Says how to call it."""
        raise Failure("USAGE", "usage", message)


def options_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options of a call."""
    parser = Parser(prog="animus_verify.py", description="Verifies an evidence bundle of Animus, offline.")
    parser.add_argument("bundle", help="a ZIP file or a folder")
    parser.add_argument("--trust", action="append", required=True, help="a verifier key of the log, or a file of them")
    parser.add_argument("--known-head", action="append", default=[], help="a signed checkpoint that was kept")
    parser.add_argument("--policy", default="", help="a C2SP tlog-policy file of witnesses and their quorum")
    parser.add_argument("--project", default="", help="the project that it has to be of")
    parser.add_argument("--run", default="", help="the run that it has to be of")
    parser.add_argument("--json", action="store_true", help="a report for machines")
    parser.add_argument("--accept", choices=["signed", "consistent", "witnessed"], help="the least that exits with 0")
    parser.add_argument("--debug", action="store_true", help="let a defect of this program show its traceback")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Verifies, reports, and answers the exit code."""
    report, options, bundle = Report(""), argparse.Namespace(json=False, debug=False, accept=None), None
    try:
        options = options_of(arguments)
        report.bundle = options.bundle
        if not Path(options.bundle).exists():
            raise Failure("USAGE", options.bundle, "is not there")
        try:
            trust = Trust(options)
        except Failure as failure:  # it is the auditor's own input
            raise Failure("USAGE", failure.place, failure.problem) from None
        bundle = Bundle(Path(options.bundle))
        verify(bundle, trust, report)
    except Failure as failure:
        report.fail(failure.verdict, failure.place, failure.problem)
    except Exception as error:
        if options.debug:
            raise
        place = bundle.reading if bundle else report.bundle
        report.fail("INVALID", place, f"could not be checked ({type(error).__name__})")
    text = report.json() if options.json else report.text()
    print(text.encode("ascii", "backslashreplace").decode())
    accepted = ["WITNESSED", "CONSISTENT", "SIGNED"]
    if options.accept and report.verdict in accepted[: accepted.index(options.accept.upper()) + 1]:
        return 0
    return CODES[report.verdict]


if __name__ == "__main__":
    sys.exit(main())
