"""The keyring: keys from a file that only its owner reads, seals and receipts by them, and no secret in any text."""

import base64
import hashlib
import itertools
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import ed25519_stdlib as ed
import pytest
from domain.trees import flips

from animus import files
from animus.domain import merkle
from animus.domain.audit import Logged
from animus.domain.merkle import EMPTY_RANGE
from animus.domain.names import INSTANCE_LOG
from animus.keyring import KEY_FILE, Keyring, KeyringError, made_up_name
from animus.signing import SigningKey, dump_signing_key, verify_checkpoint, verify_receipt

NAME = "animus.example"
OLD = SigningKey(NAME, bytes(range(32)))
NEW = SigningKey(NAME, bytes(range(1, 33)))
STRANGER = SigningKey("other.example", bytes(range(2, 34)))
LOGGED = Logged("demo", "0123456789abcdef" * 2, hashlib.sha256(b"leaf").digest(), "2026-01-31T12:00:00.000000Z")


def put(folder: Path, *keys: SigningKey, mode: int = 0o600) -> Path:
    """Writes the file of keys as an operator would, over one that is there."""
    path = folder / KEY_FILE
    path.write_text("".join(f"{dump_signing_key(key)}\n" for key in keys))
    path.chmod(mode)
    return path


def keyring_of(folder: Path, *keys: SigningKey) -> Keyring:
    """A keyring with these keys."""
    put(folder, *keys)
    return Keyring(folder)


# The file.


def test_keys_are_read_in_their_order(tmp_path: Path) -> None:
    """The first is the current one; the name is that of all."""
    keys = keyring_of(tmp_path, NEW, OLD)
    assert keys.keys == (NEW, OLD)
    assert keys.instance_name == NAME
    assert keys.public_keys == tuple(base64.b64encode(ed.public_key(key.seed)).decode() for key in (NEW, OLD))


def test_a_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    """For every mode with a right of the group or of others, and the owner is told what to do; its own are fine."""
    path = put(tmp_path, OLD)
    for others in range(0o1, 0o100):
        path.chmod(0o600 | others)
        with pytest.raises(KeyringError, match=f"^{path} can be read by others: chmod 600"):
            Keyring(tmp_path)
    for owner in (0o400, 0o600, 0o700):
        path.chmod(owner)
        assert Keyring(tmp_path).keys == (OLD,)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    """Missing, and a folder in its place."""
    with pytest.raises(KeyringError, match=f"^{tmp_path / KEY_FILE} is missing"):
        Keyring(tmp_path)
    (tmp_path / KEY_FILE).mkdir(mode=0o700)
    with pytest.raises(KeyringError, match="cannot be read"):
        Keyring(tmp_path)


LINE = dump_signing_key(OLD)
SEED = LINE.rpartition("+")[2]
BAD_FILES = {
    "nothing": b"",
    "empty lines": b"\n\n",
    "a word": b"key\n",
    "an id of another key": LINE.replace(OLD.key().key_id.hex(), NEW.key().key_id.hex()).encode(),
    "another name": LINE.replace(NAME, "animus.other").encode(),
    "a seed that is short": LINE.replace(SEED, base64.b64encode(b"\x01" + OLD.seed[:-1]).decode()).encode(),
    "a seed that is long": LINE.replace(SEED, base64.b64encode(b"\x01" + OLD.seed + b"x").decode()).encode(),
    "a key of another type": LINE.replace(SEED, base64.b64encode(b"\x02" + OLD.seed).decode()).encode(),
    "padding": f"{LINE}=".encode(),
    "a public key": f"{NAME}+{OLD.key().key_id.hex()}+{SEED}".encode(),
    "a space at the end": f"{LINE} \n".encode(),
    "lines of another system": f"{LINE}\r\n".encode(),
    "two keys in a line": f"{LINE} {LINE}\n".encode(),
    "a second line cut off": f"{dump_signing_key(NEW)}\n{LINE[:-4]}".encode(),
    "a letter that is none of ASCII": f"{LINE}\né\n".encode(),
    "bytes that are no text": LINE.encode() + b"\n\xff\xfe\n",
    "NUL": LINE.encode() + b"\x00\n",
    "far too long": LINE.encode() * 10_000,
    "two instances": f"{LINE}\n{dump_signing_key(STRANGER)}\n".encode(),
    "two instances, the other way": f"{dump_signing_key(STRANGER)}\n{LINE}\n".encode(),
}
SECRETS = [
    text
    for key in (OLD, NEW, STRANGER)
    for text in (base64.b64encode(b"\x01" + key.seed).decode(), base64.b64encode(key.seed).decode(), key.seed.hex())
]


def tells(text: str) -> bool:
    """Whether a text holds a part of a key, eight characters of it or more."""
    return any(secret[at : at + 8] in text for secret in SECRETS for at in range(len(secret) - 8))


def test_a_part_of_a_key_in_a_text_is_found() -> None:
    """What the tests below look for is found where it stands, in each spelling."""
    assert all(tells(f"the key {secret[5:15]} is wrong") for secret in SECRETS)
    assert not tells(f"{NAME} {KEY_FILE} {OLD.key().key_id.hex()}")


@pytest.mark.parametrize("data", BAD_FILES.values(), ids=list(BAD_FILES))
def test_a_file_that_is_malformed_is_refused(data: bytes, tmp_path: Path) -> None:
    """In one line that names the file; neither it nor the traceback holds a part of a key."""
    path = put(tmp_path)
    path.write_bytes(data)
    with pytest.raises(KeyringError) as caught:
        Keyring(tmp_path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < len(str(path)) + 200
    assert not tells("".join(traceback.format_exception(caught.value)) + repr(caught.value.__context__))


def test_every_cut_and_flip_of_the_file_is_refused_or_another_key(tmp_path: Path) -> None:
    """A key that is not whole never becomes one that signs: its id is that of its seed."""
    path = put(tmp_path)
    whole = LINE.encode()
    for data in [whole[:at] for at in range(len(whole))] + flips(whole):
        path.write_bytes(data)
        with pytest.raises(KeyringError):
            Keyring(tmp_path)


def test_texts_of_a_keyring_hold_no_secret(tmp_path: Path) -> None:
    """Its own, those of its keys, and of what it signs and seals."""
    keys = keyring_of(tmp_path, NEW, OLD)
    tree = merkle.append(EMPTY_RANGE, [LOGGED.leaf_hash])
    made = [
        keys.seal("p", "0" * 32, bytes(32)),
        keys.receipt(1, LOGGED),
        keys.checkpoint("demo", 1, tree),
        keys.envelope(b"{}"),
    ]
    texts = [repr(keys), str(keys), repr(keys.keys), str(keys.public_keys), repr(keys.path)]
    texts += [text for data in made for text in (data.decode(errors="replace"), data.hex())]
    assert not any(tells(text) for text in texts)


# Reload.


def test_a_change_of_the_file_is_taken_up(tmp_path: Path) -> None:
    """By another file in its place, by one written over, by `write`; and nothing is read while it is the same."""
    keys = keyring_of(tmp_path, OLD)
    assert not keys.reload()
    (tmp_path / "new").mkdir()
    put(tmp_path / "new", NEW, OLD).rename(tmp_path / KEY_FILE)
    assert keys.reload()
    assert keys.keys == (NEW, OLD)
    assert not keys.reload()
    path = put(tmp_path, NEW)
    os.utime(path, ns=(1, 1))  # over the file that is there, whose time is all that tells
    assert keys.reload()
    assert keys.public_keys == (base64.b64encode(NEW.public_key).decode(),)
    keys.write([OLD, NEW])
    assert keys.keys == Keyring(tmp_path).keys == (OLD, NEW)
    assert path.stat().st_mode & 0o777 == 0o600
    assert [each.name for each in tmp_path.iterdir() if each.is_file()] == [KEY_FILE]


def test_a_file_that_becomes_bad_leaves_the_keys_as_they_were(tmp_path: Path) -> None:
    """Each look says so until it is good again; meanwhile what was read still seals."""
    keys = keyring_of(tmp_path, OLD)
    seal = keys.seal("p", "0" * 32, bytes(32))
    path = put(tmp_path, NEW, STRANGER)
    for _ in range(2):
        with pytest.raises(KeyringError, match="several instances"):
            keys.reload()
        assert keys.keys == (OLD,)
        assert keys.seal("p", "0" * 32, bytes(32)) == seal
    path.unlink()
    with pytest.raises(KeyringError, match="missing"):
        keys.reload()
    put(tmp_path, NEW, mode=0o640)
    with pytest.raises(KeyringError, match="chmod 600"):
        keys.reload()
    put(tmp_path, NEW)
    assert keys.reload()
    assert keys.keys == (NEW,)


# Seals.


def test_a_seal_holds_for_what_was_sealed(tmp_path: Path) -> None:
    """And for nothing else: each part changed, and each bit of the seal."""
    keys = keyring_of(tmp_path, OLD)
    parts = ("demo", "0123456789abcdef" * 2, LOGGED.leaf_hash)
    seal = keys.seal(*parts)
    assert keys.seal(*parts) == seal
    assert keys.is_sealed(*parts, seal)
    others: list[tuple[str, str, bytes]] = [
        ("demo2", *parts[1:]),
        ("dem", *parts[1:]),
        (parts[0], "f" * 32, parts[2]),
        *((*parts[:2], each) for each in flips(parts[2])),
    ]
    assert not any(keys.is_sealed(*each, seal) for each in others)
    assert not any(keys.is_sealed(*parts, each) for each in (b"", seal[:-1], seal + b"\x00", *flips(seal)))


def test_seals_are_good_while_their_key_is_there(tmp_path: Path) -> None:
    """For each file of one or two of three keys, and each key that sealed: good exactly if the file has it."""
    third = SigningKey(NAME, bytes(range(3, 35)))
    all_keys = [OLD, NEW, third]
    parts = ("demo", "0" * 32, bytes(32))
    seals = {key: keyring_of(tmp_path, key).seal(*parts) for key in all_keys}
    assert len(set(seals.values())) == 3
    for count in (1, 2):
        for held in itertools.permutations(all_keys, count):
            keys = keyring_of(tmp_path, *held)
            assert keys.seal(*parts) == seals[held[0]]
            assert [keys.is_sealed(*parts, seals[key]) for key in all_keys] == [key in held for key in all_keys]


def test_a_seal_is_no_signature_of_the_key(tmp_path: Path) -> None:
    """It is a MAC under a key of its own, which no public key tells."""
    keys = keyring_of(tmp_path, OLD)
    seal = keys.seal("demo", "0" * 32, bytes(32))
    public = base64.b64decode(keys.public_keys[0])
    text = b"animus.audit_queue/v1\x00demo\x00" + b"0" * 32 + b"\x00" + b"0" * 64
    for key in (public, b"", OLD.seed):
        assert hashlib.sha256(key + text).digest() != seal
    assert len(seal) == 32


# Receipts and checkpoints.


def vkeys(origin: str, *keys: SigningKey) -> list[Any]:
    """The public keys of a log."""
    return [key.key(origin) for key in keys]


def test_a_receipt_is_the_same_each_time(tmp_path: Path) -> None:
    """From one keyring, from another with the same key, and while an older key is beside it: the same bytes."""
    made = {keyring_of(tmp_path, *keys).receipt(3, LOGGED) for keys in ([NEW], [NEW], [NEW, OLD])}
    (receipt,) = made
    text, _, signature = receipt.rpartition(b"\n\n")
    assert text.decode().split("\n") == [
        "animus/receipt/v1",
        "animus.example/demo/3",
        base64.b64encode(LOGGED.leaf_hash).decode(),
        LOGGED.entry_id,
        "2026-01-31T12:01:00.000000Z",
    ]
    dash, name, data = signature.decode().rstrip("\n").split(" ")
    assert (dash, name) == ("—", "animus.example/demo/3")
    assert ed.verify(ed.public_key(NEW.seed), text + b"\n", base64.b64decode(data)[4:])


def test_a_receipt_is_read_by_the_key_of_its_log(tmp_path: Path) -> None:
    """By the current key and the origin, in each project and epoch; no other log's key has signed it."""
    keys = keyring_of(tmp_path, NEW, OLD)
    for epoch in (1, 2):
        origin = f"{NAME}/demo/{epoch}"
        receipt = verify_receipt(keys.receipt(epoch, LOGGED), vkeys(origin, NEW))
        assert (receipt.origin, receipt.leaf_hash, receipt.entry_id) == (origin, LOGGED.leaf_hash, LOGGED.entry_id)
        for others in (vkeys(origin, OLD), vkeys(f"{NAME}/demo/3", NEW), vkeys(f"{NAME}/other/{epoch}", NEW)):
            with pytest.raises(Exception, match="none by a known key"):
                verify_receipt(keys.receipt(epoch, LOGGED), others)


def test_a_checkpoint_is_signed_by_every_key(tmp_path: Path) -> None:
    """The new key's and the old key's readers both take it; the tree is the one that was asked for, bytes and all."""
    keys = keyring_of(tmp_path, NEW, OLD)
    tree = merkle.append(EMPTY_RANGE, [LOGGED.leaf_hash, bytes(32)])
    for project, origin in (("demo", f"{NAME}/demo/2"), (INSTANCE_LOG, f"{NAME}/2")):
        note = keys.checkpoint(project, 2, tree)
        assert keys.checkpoint(project, 2, tree) == note
        for key in (NEW, OLD):
            checkpoint, _ = verify_checkpoint(note, vkeys(origin, key))
            assert (checkpoint.origin, checkpoint.size, checkpoint.root_hash) == (origin, 2, merkle.root(tree))
        with pytest.raises(Exception, match="none by a known key"):
            verify_checkpoint(note, vkeys(f"{NAME}/demo/1", NEW, OLD))


# Envelopes.


def test_an_envelope_is_signed_by_every_key(tmp_path: Path) -> None:
    """The current one first, the same each time; an implementation of its own takes each signature."""
    payload = b'{"a":1}'
    keys = keyring_of(tmp_path, NEW, OLD)
    file = keys.envelope(payload)
    assert file == keys.envelope(payload)
    tree = json.loads(file)
    assert base64.b64decode(tree["payload"]) == payload
    signed = b"DSSEv1 28 application/vnd.in-toto+json 7 " + payload
    assert [each["keyid"] for each in tree["signatures"]] == [
        hashlib.sha256(key.public_key).hexdigest() for key in (NEW, OLD)
    ]
    for key, each in zip((NEW, OLD), tree["signatures"], strict=True):
        signature = base64.b64decode(each["sig"])
        assert ed.verify(key.public_key, signed, signature)
        assert not ed.verify(key.public_key, payload, signature)


# Creation.


def test_a_key_is_made_once(tmp_path: Path) -> None:
    """In a folder of its owner's; the second time it is the same, under the name that it was made with."""
    folder = tmp_path / "a" / "log"
    keys, new = Keyring.create(folder, NAME)
    assert new
    assert (folder.stat().st_mode & 0o777, (folder / KEY_FILE).stat().st_mode & 0o777) == (0o700, 0o600)
    again, new = Keyring.create(folder, "another.example")
    assert not new
    assert again.keys == keys.keys
    assert again.instance_name == NAME
    assert [path.name for path in folder.iterdir()] == [KEY_FILE]


def test_keys_and_made_up_names_are_random(tmp_path: Path) -> None:
    """No two instances have the same."""
    keys = {Keyring.create(tmp_path / str(number), NAME)[0].keys[0].seed for number in range(20)}
    assert len(keys) == 20
    assert len({made_up_name() for _ in range(20)}) == 20
    assert Keyring.create(tmp_path / "made", made_up_name())[1]


MAKER = """
import json, pathlib, sys
from animus.keyring import Keyring
print("ready", flush=True)
for line in sys.stdin:
    keys, new = Keyring.create(pathlib.Path(line.strip()), "animus.example")
    print(json.dumps([keys.public_keys[0], new]), flush=True)
"""


def python(code: str) -> subprocess.Popen[str]:
    """Another process."""
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path)}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-c", code], env=environment, text=True, **pipes)


@pytest.fixture
def makers() -> Iterator[list[subprocess.Popen[str]]]:
    """Three processes that make a key in each folder that they are told."""
    with ExitStack() as stack:
        found = [stack.enter_context(python(MAKER)) for _ in range(3)]
        for each in found:
            assert each.stdout is not None
            assert each.stdout.readline() == "ready\n"
        yield found


def test_processes_that_make_a_key_at_once_have_one(makers: list[subprocess.Popen[str]], tmp_path: Path) -> None:
    """Of three, one makes it and all have it; nothing else is left in the folder, in each of 30 folders."""
    winners = set()
    for number in range(30):
        folder = tmp_path / str(number)
        order = makers[number % 3 :] + makers[: number % 3]
        for each in order:
            print(folder, file=each.stdin, flush=True)
        said = [json.loads(each.stdout.readline()) for each in makers if each.stdout is not None]
        assert {key for key, _ in said} == {Keyring(folder).public_keys[0]}
        assert sorted(new for _, new in said) == [False, False, True]
        assert [path.name for path in folder.iterdir()] == [KEY_FILE]
        winners.add(next(at for at, (_, new) in enumerate(said) if new))
    assert len(winners) > 1  # it is decided anew each time


def test_what_another_process_is_writing_is_left_alone(tmp_path: Path) -> None:
    """Processes of two containers may have one number: neither takes the other's half-written file for its own."""
    half = tmp_path / f"{KEY_FILE}.{os.getpid()}"
    half.write_text("half")
    assert files.create_private(tmp_path / KEY_FILE, "whole\n")
    files.write_private(tmp_path / KEY_FILE, "other\n")
    assert half.read_text() == "half"
    assert (tmp_path / KEY_FILE).read_text() == "other\n"


def test_a_file_that_is_there_is_not_written_over(tmp_path: Path) -> None:
    """`create_private` says so and leaves it, and no scratch file stays."""
    path = tmp_path / "secret"
    assert files.create_private(path, "first\n")
    assert not files.create_private(path, "second\n")
    assert path.read_text() == "first\n"
    assert list(tmp_path.iterdir()) == [path]
