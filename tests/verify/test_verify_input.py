"""Bad bundles and calls: each has its exit code and one line that names the file, and none a traceback."""

import ast
import io
import json
import os
import random
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

import animus_verify as verifier
from animus.domain.note import dump_key
from verify import bundles
from verify.bundles import Files, World, bagged
from verify.conftest import Verify, verified

SOURCE = Path(verifier.__file__)
MAX_LINES = 1_180  # somebody has to read all of it
NETWORK = {"asyncio", "ftplib", "http", "multiprocessing", "socket", "socketserver", "ssl", "subprocess", "urllib"}


def test_the_file_stands_alone() -> None:
    """It imports the standard library only and nothing that opens a connection, and parses as Python 3.9."""
    text = SOURCE.read_text()
    found = {
        (name.name if isinstance(node, ast.Import) else str(node.module)).split(".")[0]
        for node in ast.walk(ast.parse(text, feature_version=(3, 9)))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in node.names
    }
    assert found <= sys.stdlib_module_names
    assert not found & NETWORK
    assert text.count("\n") <= MAX_LINES


def test_it_runs_isolated_without_environment(world: World, tmp_path: Path) -> None:
    """As a program of its own, for a ZIP and for a folder, with a report for machines."""
    path = tmp_path / "b.zip"
    path.write_bytes(bundles.zipped(world.run_bundle()))
    write_folder(tmp_path / "bag", world.run_bundle())
    for bundle in (path, tmp_path / "bag"):
        command = [sys.executable, "-I", "-S", str(SOURCE), str(bundle), "--trust", bundles.TRUST, "--json"]
        found = subprocess.run(command, env={}, capture_output=True, check=False)
        assert (found.returncode, found.stderr) == (11, b"")
        assert json.loads(found.stdout)["verdict"] == "SIGNED"


def write_folder(path: Path, files: Files) -> None:
    """A bundle as a folder."""
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)


# Verdicts.


def test_the_verdict_rises_with_what_the_auditor_knows(world: World, verify: Verify, tmp_path: Path) -> None:
    """Alone, with a kept checkpoint of each size, and with a policy; `--accept` asks for less."""
    for files in (world.run_bundle(), world.log_bundle()):
        assert verify(files)[0] == 11
        assert verify(files, "--accept", "signed")[0] == 0
        assert verify(files, "--accept", "consistent")[0] == 11
        head = tmp_path / "head"
        first = bundles.said_of(files)["firstIndex"]
        for size in range(1, world.size + 2):
            head.write_bytes(world.book.note(size))
            code, text = verify(files, "--known-head", str(head))
            reached = first < size <= world.size or size in bundles.said_of(files)["knownSizes"]
            assert code == 10 if reached else code in (10, 11), size
            assert (f"not shown  that the log began with {head}" in text) == (code == 11)
        policy = tmp_path / "policy"
        policy.write_bytes(bundles.POLICY)
        assert verify(files, "--policy", str(policy))[0] == 0
        policy.write_bytes(bundles.POLICY.replace(b"quorum w1", b"quorum none"))
        assert verify(files, "--policy", str(policy))[0] == 11


def test_a_kept_checkpoint_of_another_history_contradicts(world: World, verify: Verify, tmp_path: Path) -> None:
    """At every size that the bundle reaches; one that an outsider signed is invalid."""
    other = World()
    other.book.entries[0] = other.book.entries[0].replace(b"Vision", b"Wisdom").replace(b'"ci"', b'"cj"')
    assert other.book.entries[0] != world.book.entries[0]
    head = tmp_path / "head"
    for files in (world.run_bundle(), world.log_bundle()):
        first, known = bundles.said_of(files)["firstIndex"], bundles.said_of(files)["knownSizes"]
        for size in [*range(first + 1, world.size + 1), *known]:
            head.write_bytes(other.book.note(size))
            code, text = verify(files, "--known-head", str(head))
            assert (code, text.count("\n"), str(head) in text) == (30, 1, True), (size, text)
        head.write_bytes(world.book.note(9, bundles.OUTSIDER))
        assert verify(files, "--known-head", str(head))[0] == 40


def test_a_file_that_has_to_be_there_is_missed(world: World, verify: Verify) -> None:
    """Each file of data left out under the right signature: incomplete, or not what an absence may mean."""
    for files in (world.run_bundle(), world.log_bundle()):
        for name in files:
            left = bagged({other: files[other] for other in files if other != name})
            if name.startswith("data/") and name != "data/evidence.json":
                code, text = verify(left)
                assert (code, text.count("\n")) == (20, 1), (name, text)


def test_a_key_of_another_log_is_not_trusted(world: World, tmp_path: Path) -> None:
    """A file of keys may have those of other logs; one of them alone signs nothing here."""
    path, keys = tmp_path / "b.zip", tmp_path / "keys"
    path.write_bytes(bundles.zipped(world.run_bundle()))
    other = dump_key(bundles.SIGNER.key("animus.example/other/1"))
    keys.write_text(f"# keys\n{other}\n{bundles.TRUST}\n")
    assert verifier.main([str(path), "--trust", str(keys)]) == 11
    assert verifier.main([str(path), "--trust", other]) == 40
    assert verifier.main([str(path), "--trust", dump_key(bundles.OUTSIDER.key())]) == 40


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["b"],
        ["nowhere.zip", "--trust", bundles.TRUST],
        [str(SOURCE), "--trust", "no-such-file"],
        [str(SOURCE), "--trust", str(SOURCE)],
        [str(SOURCE), "--trust", bundles.TRUST, "--policy", str(SOURCE)],
        [str(SOURCE), "--trust", bundles.TRUST, "--known-head", "nowhere"],
        [str(SOURCE), "--trust", bundles.TRUST, "--accept", "invalid"],
        [str(SOURCE), "--trust", dump_key(bundles.WITNESS.key(key_type=4))],
    ],
    ids=str,
)
def test_a_wrong_call_is_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """It has a code of its own, and one line."""
    assert verifier.main([*arguments, "--debug"] if arguments else []) == 64
    assert capsys.readouterr().out.count("\n") == 1


# Containers.


def rezipped(files: Files, change: Callable[[zipfile.ZipFile, str], None]) -> bytes:
    """The ZIP of a bundle with something done at its end."""
    stream = io.BytesIO(bundles.zipped(files))
    with zipfile.ZipFile(stream, "a") as archive:
        change(archive, bundles.bag_name(bundles.said_of(files)))
    return stream.getvalue()


NAMES = [
    "../x",
    "/x",
    "a\\b",
    "x/../../y",
    "data//x",
    "data/./x",
    "data/\u00e9",
    "data/e\u0301",
    "data/\x01",
    "~",
    "z" * 300,
]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_name_that_leads_elsewhere_is_refused(name: str, world: World, verify: Verify) -> None:
    """Zip slip, absolute and odd names, below the folder and beside it."""
    files = world.log_bundle()
    for path in (name, f"~/{name}"):

        def add(archive: zipfile.ZipFile, folder: str, path: str = path) -> None:
            archive.writestr(bundles.member(path.replace("~", folder, 1)), b"x")

        code, text = verify(rezipped(files, add))
        assert (code, text.count("\n")) == (40, 1)


def test_members_of_another_kind_are_refused(world: World, verify: Verify) -> None:
    """Compressed ones, links, folders, duplicates, other times and modes."""
    files = world.log_bundle()

    def added(name: str, **facts: object) -> bytes:
        info = bundles.member("")
        for key, value in facts.items():
            setattr(info, key, value)

        def add(archive: zipfile.ZipFile, folder: str) -> None:
            info.filename = f"{folder}/{name}"
            archive.writestr(info, b"data " * 9)

        return rezipped(files, add)

    with pytest.warns(UserWarning, match="Duplicate name"):
        repeated = added("tagmanifest-sha256.txt")
    bad = {
        "compressed": added("zz", compress_type=zipfile.ZIP_DEFLATED),
        "link": added("zz", external_attr=0o120777 << 16),
        "folder": added("zz/", external_attr=0o40755 << 16),
        "mode": added("zz", external_attr=0o755 << 16),
        "time": added("zz", date_time=(1990, 1, 1, 0, 0, 0)),
        "extra": added("zz", extra=b"ux\x00\x00"),
        "comment": added("zz", comment=b"hello"),
        "repeated": repeated,
        "unknown": added("zz"),
    }
    for what, data in bad.items():
        code, text = verify(data)
        assert (code, text.count("\n")) == (40, 1), what


def test_bytes_around_and_within_the_structure_are_refused(world: World, verify: Verify) -> None:
    """A prefix, a suffix, a comment, every cut, and any byte of any header that was changed."""
    data = bundles.zipped(world.log_bundle())
    assert verify(data)[0] == 11
    for bad in (b"MZ" + data, data + b"\0", data + data, data[:-2] + b"\1\0x", b"", b"PK", data[:-22]):
        assert verify(bad)[0] == 40
    rng = random.Random(5)
    for at in [*rng.sample(range(len(data)), 300), *range(len(data) - 400, len(data))]:
        assert verify(data[:at])[0] == 40
        changed = data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
        if data[at] ^ changed[at] == 0x80 and data[at - 41 : at - 37] == b"PK\x01\x02":
            continue  # a mode that says that the file is a plain one, or leaves it out
        code, text = verify(changed)
        assert (text.count("\n"), code in (20, 30, 40)) == (1, True), at


def test_a_zip_of_64_bits_is_refused(world: World, verify: Verify) -> None:
    """Its members have other headers than those of a bundle; what is too large for 32 bits is verified as a folder."""
    files = world.log_bundle()
    folder, stream = bundles.bag_name(bundles.said_of(files)), io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name in sorted(files):
            info = bundles.member(f"{folder}/{name}")
            with archive.open(info, "w", force_zip64=True) as target:
                target.write(files[name])
    code, text = verify(stream.getvalue())
    assert (code, "is not stored as a member of a bundle is" in text) == (40, True)


def test_links_and_odd_names_in_a_folder_are_refused(world: World, tmp_path: Path) -> None:
    """A link to a file and one to a folder, a pipe, a name in no encoding."""
    files = world.log_bundle()

    def link(path: Path) -> None:
        (path / "data" / "log" / "frontier").unlink()
        (path / "data" / "log" / "frontier").symlink_to(path / "bagit.txt")

    changes: dict[str, Callable[[Path], object]] = {
        "link": link,
        "folder": lambda path: (path / "data" / "more").symlink_to(path / "data" / "log"),
        "pipe": lambda path: os.mkfifo(path / "data" / "pipe"),
        "bytes": lambda path: Path(os.fsdecode(os.fsencode(path) + b"/\xff")).write_bytes(b""),
    }
    for what, change in changes.items():
        path = tmp_path / what
        write_folder(path, files)
        assert verified(path)[0] == 11
        change(path)
        code, text = verified(path)
        assert (code, text.count("\n")) == (40, 1), what


def test_a_defect_is_one_line_that_names_the_file(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever the program did not foresee ends as invalid; `--debug` lets it through."""
    path = tmp_path / "b.zip"
    path.write_bytes(bundles.zipped(world.run_bundle()))
    monkeypatch.setattr(verifier, "parse_hashes", lambda lines, place: 1 // 0)
    assert verifier.main([str(path), "--trust", bundles.TRUST]) == 40
    text = capsys.readouterr().out
    assert (text.count("\n"), "data/log/frontier" in text) == (1, True)
    with pytest.raises(ZeroDivisionError):
        verifier.main([str(path), "--trust", bundles.TRUST, "--debug"])
