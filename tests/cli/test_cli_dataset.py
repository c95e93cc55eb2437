"""`animus dataset`: digests without a server, then versions and verifications on the real one."""

import hashlib
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from service.conftest import Server
from service.requests import TWO, dataset, version
from service.shared import served
from sqlalchemy.ext.asyncio import AsyncEngine

from animus.sdk import manifest
from animus.sdk.hashing import content
from animus.sdk.receipts import Kept, ReceiptStore
from animus.store.embedded import EmbeddedPostgres
from animus.v1 import audit_pb2, dataset_pb2
from cli.conftest import Animus, Command, command


@pytest.fixture(scope="module")
async def server(
    postgres: EmbeddedPostgres, admin: AsyncEngine, template: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Server]:
    """The server of these tests, with a project `p` that has a dataset `data`."""
    async with served(postgres, admin, template, tmp_path_factory.mktemp("data")) as found:
        await found.project("p")
        await found.admin("CreateDataset", dataset())
        yield found


@pytest.fixture
async def run(server: Server, tmp_path: Path) -> Command:
    """Runs `animus dataset` in a process of its own, as an operator of the project."""
    return command(server, (await server.caller("p", "operator")).token, tmp_path, "dataset")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder of three files that no other test has."""
    folder = tmp_path / "content"
    (folder / "below").mkdir(parents=True)
    (folder / "a.csv").write_text(f"a\n{tmp_path}\n")
    (folder / "below" / "b.csv").write_text("b\n")
    (folder / "c.csv").write_text("c\n")
    return folder


async def registered(run: Command, data: Path) -> str:
    """Registers the folder; the content digest."""
    done = await run("register", "data", data, "--media-type", "text/csv")
    assert done.code == 0, done
    return content(data).digest


async def verifications(server: Server, digest: str) -> Any:
    """What the project has on record, the newest first."""
    request = dataset_pb2.ListDatasetVerificationsRequest(project_id="p", dataset_id="data", content_digest=digest)
    return (await server.admin("ListDatasetVerifications", request)).dataset_verifications


# Without a server.


def test_the_digest_of_a_folder_is_printed_with_files_and_bytes(animus: Animus, data: Path) -> None:
    """A line; as JSON each file too, from which the digest follows."""
    found = content(data)
    done = animus("dataset", "hash", data)
    assert (done.code, done.out, done.err) == (0, f"{found.digest} 3 files {found.size_bytes} bytes\n", "")
    told = animus("dataset", "hash", data, "--json").json
    assert (told["contentDigest"], told["sizeBytes"]) == (found.digest, found.size_bytes)
    files = ",".join(
        f'{{"digest":"{file["digest"]}","path":"{file["path"]}","sizeBytes":{file["sizeBytes"]}}}'
        for file in told["files"]
    )
    document = f'{{"files":[{files}],"schema":"animus.file_manifest/v1"}}'
    assert f"sha256:{hashlib.sha256(document.encode()).hexdigest()}" == found.digest
    assert [file["path"] for file in told["files"]] == [file.path for file in manifest(data).files]


def test_the_digest_of_a_single_file_is_that_of_its_bytes(animus: Animus, tmp_path: Path) -> None:
    """What sha256sum prints."""
    (tmp_path / "one").write_text("1")
    digest = f"sha256:{hashlib.sha256(b'1').hexdigest()}"
    assert animus("dataset", "hash", tmp_path / "one").out == f"{digest} 1 file 1 bytes\n"
    told = animus("dataset", "hash", tmp_path / "one", "--json").json
    assert told == {"contentDigest": digest, "sizeBytes": 1, "files": []}


def test_what_has_no_digest_is_one_line_and_a_code(animus: Animus, data: Path) -> None:
    """1 for what cannot be read, 2 for what is no data; the path is named."""
    (data / "link").symlink_to("a.csv")
    (data.parent / "empty").mkdir()
    for path, code, said in (
        (data, 2, f"is no plain file: {data}/link"),
        (data / "nowhere", 1, f"{data}/nowhere: is missing"),
        (data.parent / "empty", 2, "files"),
    ):
        done = animus("dataset", "hash", path)
        assert (done.code, done.out) == (code, ""), done
        assert said in done.err
        assert len(done.err.splitlines()) == 1


def test_a_column_without_a_type_is_refused_before_any_call(animus: Animus, data: Path) -> None:
    """Usage, with the text at fault."""
    done = animus("dataset", "register", "data", data, "--project", "p", "--media-type", "text/csv", "--column", "a")
    assert (done.code, done.out, done.err) == (2, "", "animus: --column a is no name=type\n")


def test_a_listing_is_hashed_and_a_table_described(animus: Animus, data: Path) -> None:
    """The digest of the folder; columns and rows of a file."""
    listing = data.parent / "listing"
    files = [{"key": f.path, "size": f.size_bytes, "checksum": f.digest[7:]} for f in manifest(data).files]
    listing.write_text(json.dumps(files))
    assert animus("dataset", "hash", "--listing", listing).out.startswith(content(data).digest)
    (data / "c.csv").write_text("x,y\n1,2.5\n")
    told = animus("dataset", "hash", data / "c.csv", "--describe")
    assert told.out.splitlines()[1:] == ["1 rows", "x int64", "y float64"]
    tree = animus("dataset", "hash", data / "c.csv", "--describe", "--json").json
    assert (tree["rowCount"], tree["columns"][1]) == (1, {"name": "y", "type": "float64"})
    (data / "c.csv").write_bytes(b"x\n\x00\xff")
    assert animus("dataset", "hash", data / "c.csv", "--describe").code == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("hash",), "PATH or --listing"),
        (("hash", "x", "--listing", "y"), "PATH or --listing"),
        (("hash", "x", "--prefix", "y"), "--prefix"),
        (("hash", "--listing", "y", "--describe"), "--describe"),
        (("register", "d", "x", "--describe", "--row-count", "1"), "--describe"),
        (("register", "d", "x", "--label", "a"), "--label a is no key=value"),
        (("register", "d", "x", "--derived-from", "a"), "--derived-from a is no DATASET@DIGEST"),
    ],
)
def test_options_that_do_not_go_together_are_usage(animus: Animus, arguments: tuple[str, ...], said: str) -> None:
    """Before anything is read or called."""
    more = ("--project", "p", "--media-type", "text/csv") if arguments[0] == "register" else ()
    done = animus("dataset", *arguments, *more)
    assert (done.code, done.out, len(done.err.splitlines())) == (2, "", 1), done
    assert said in done.err


# With a server.


async def test_the_same_content_is_the_same_version(run: Command, server: Server, data: Path, tmp_path: Path) -> None:
    """Registered twice, from two copies: one version, with its columns in their order; a receipt is kept of each."""
    copy = tmp_path / "copy"
    shutil.copytree(data, copy)
    options = ("--media-type", "text/csv", "--uri", "s3://b/d", "--column", "z=int64", "--column", "a=timestamp[us]")
    one = await run("register", "data", data, *options)
    two = await run("register", "data", copy, *options, "--json")
    digest = content(data).digest
    assert (one.code, one.out) == (0, f"projects/p/datasets/data/versions/{digest}\n"), one
    assert (two.code, two.json["record"]["name"]) == (0, one.out.strip()), two
    assert [(each["name"], each["type"]) for each in two.json["columns"]] == [("z", "int64"), ("a", "timestamp[us]")]
    got = await server.admin(
        "GetDatasetVersion",
        dataset_pb2.GetDatasetVersionRequest(project_id="p", dataset_id="data", content_digest=digest),
    )
    assert [file.path for file in got.files] == [file.path for file in manifest(data).files]
    assert [type(line) for line in ReceiptStore(tmp_path / "state" / "animus" / "receipts").read()] == [Kept, Kept]
    assert two.json["uris"] == ["s3://b/d"]
    other = await run("register", "data", data, "--media-type", "text/plain")
    assert (other.code, len(other.err.splitlines())) == (5, 1), other


async def test_everything_is_said_of_a_version_by_options(run: Command, server: Server, data: Path) -> None:
    """Columns and rows as the data has them, source, licence, labels, and the version that it was made from."""
    before = await registered(run, data)
    (data / "a.csv").write_text("name,count\nx,1\ny,2\nz,3\n")
    said = ("--source", "the lab", "--licence", "MIT", "--label", "team=a=b", "--derived-from", f"data@{before}")
    made = await run("register", "data", data / "a.csv", "--media-type", "text/csv", "--describe", *said, "--json")
    assert made.code == 0, made
    assert (made.json["rowCount"], made.json["source"], made.json["licence"]) == ("3", "the lab", "MIT")
    assert made.json["columns"] == [{"name": "name", "type": "utf8"}, {"name": "count", "type": "int64"}]
    assert made.json["labels"] == [{"key": "team", "value": "a=b"}]
    assert made.json["derivedFrom"] == [{"datasetId": "data", "contentDigest": before}]
    moved = await run("uris", "data", content(data / "a.csv").digest, "--uri", "s3://b", "--uri", "s3://a")
    assert (moved.code, moved.out) == (0, "s3://a\ns3://b\n"), moved


async def test_a_listing_is_registered_as_the_folder_would_be(run: Command, data: Path, tmp_path: Path) -> None:
    """The same version, without the bytes."""
    digest = await registered(run, data)
    listing = tmp_path / "listing.json"
    files = [{"key": f"x/{f.path}", "size": f.size_bytes, "checksum": f.digest[7:]} for f in manifest(data).files]
    listing.write_text(json.dumps(files))
    options = ("--listing", listing, "--prefix", "x/", "--media-type", "text/csv")
    done = await run("register", "data", *options)
    assert (done.code, done.out) == (0, f"projects/p/datasets/data/versions/{digest}\n"), done


async def test_a_whole_copy_matches_and_that_is_on_record(run: Command, server: Server, data: Path) -> None:
    """Exit code 0, a line, and a record with the place; the copy's path is it unless another is given."""
    digest = await registered(run, data)
    copy = data.parent / "a copy"
    shutil.copytree(data, copy)
    done = await run("verify", "data", digest, copy)
    found = content(copy)
    assert (done.code, done.out) == (0, f"matched {digest} 3 files {found.size_bytes} bytes\n"), done
    told = await run("verify", "data", digest, copy, "--location", "s3://backup", "--json")
    assert (told.code, told.json["matched"], told.json["differences"]) == (0, True, []), told
    newest, first = await verifications(server, digest)
    assert [newest.location, first.location] == ["s3://backup", copy.as_uri()]
    assert (first.matched, first.found_digest, first.found_size_bytes) == (True, digest, found.size_bytes)
    entry = await server.admin(
        "GetAuditEntry", audit_pb2.GetAuditEntryRequest(project_id="p", entry_id=first.record.audit_entry_id)
    )
    assert (entry.action, entry.principal) == ("dataset_version.verify", "operator")


async def test_a_copy_that_differs_is_told_by_its_files_and_that_is_on_record(
    run: Command, server: Server, data: Path
) -> None:
    """Exit code 7; what is missing, extra and of other bytes, by path; recorded as not matched."""
    digest = await registered(run, data)
    (data / "a.csv").write_text("other\n")
    (data / "below" / "b.csv").rename(data / "below" / "d.csv")
    done = await run("verify", "data", digest, data)
    found = content(data)
    assert done.code == 7, done
    assert done.out.splitlines() == [
        f"differs {found.digest} 3 files {found.size_bytes} bytes",
        "different a.csv",
        "missing below/b.csv",
        "extra below/d.csv",
    ]
    told = await run("verify", "data", digest, data, "--json")
    assert (told.code, told.json["matched"], told.json["differenceCount"]) == (7, False, 3), told
    assert told.json["differences"][1] == {"path": "below/b.csv", "kind": "missing"}
    newest = (await verifications(server, digest))[0]
    assert (newest.matched, newest.found_digest) == (False, found.digest)


async def test_twenty_differences_are_named_and_the_rest_counted(run: Command, data: Path) -> None:
    """The first by path; as JSON too."""
    digest = await registered(run, data)
    for index in range(25):
        (data / f"more-{index:02}").touch()
    done = await run("verify", "data", digest, data)
    lines = done.out.splitlines()
    assert (done.code, lines[1], lines[20:]) == (7, "extra more-00", ["extra more-19", "and 5 more"]), done
    told = await run("verify", "data", digest, data, "--json")
    assert (len(told.json["differences"]), told.json["differenceCount"]) == (20, 25)


async def test_a_file_and_a_folder_are_told_apart(run: Command, server: Server, data: Path) -> None:
    """A version of a single file matches its file alone."""
    alone = data / "a.csv"
    digest = await registered(run, alone)
    assert (await run("verify", "data", digest, alone)).code == 0
    done = await run("verify", "data", digest, data)
    assert done.code == 7, done
    assert done.out.splitlines()[1:] == ["the version is a single file, and the copy is a folder"]
    other = await run("verify", "data", digest, data / "c.csv")
    assert (other.code, len(other.out.splitlines())) == (7, 1), other
    assert [each.matched for each in await verifications(server, digest)] == [False, False, True]


async def test_a_copy_without_a_digest_is_not_recorded(run: Command, server: Server, data: Path) -> None:
    """A link in it, and a copy that is not there."""
    digest = await registered(run, data)
    (data / "link").symlink_to("a.csv")
    for path, code, said in ((data, 2, "link"), (data / "nowhere", 1, "nowhere: is missing")):
        done = await run("verify", "data", digest, path)
        assert (done.code, done.out) == (code, ""), done
        assert said in done.err
    assert not await verifications(server, digest)


async def test_a_request_id_makes_a_repeated_command_one_record(run: Command, server: Server, data: Path) -> None:
    """The same id answers with the same record."""
    digest = await registered(run, data)
    told = [await run("verify", "data", digest, data, "--request-id", "once", "--json") for _ in range(2)]
    assert told[0].json["record"] == told[1].json["record"]
    assert len(await verifications(server, digest)) == 1


async def test_what_is_refused_is_one_line_and_a_code(run: Command, server: Server, data: Path, tmp_path: Path) -> None:
    """2 for what cannot be, 3 for what is not there, 4 for who may not; before the data is read."""
    await server.admin("RegisterDatasetVersion", version(digest=TWO))
    viewer = command(server, (await server.caller("p", "viewer")).token, tmp_path, "dataset")
    nowhere = tmp_path / "nowhere"
    csv = ("--media-type", "text/csv")
    for done, code, said in (
        (await run("register", "data", nowhere, "--media-type", "csv"), 2, "mediaType"),
        (await run("register", "Data", nowhere, *csv), 2, "datasetId"),
        (await run("register", "absent", nowhere, *csv), 3, "absent"),
        (await run("register", "data", nowhere, *csv, "--column", "=x"), 2, "name"),
        (await run("verify", "data", "x", nowhere), 2, "contentDigest"),
        (await run("verify", "data", f"sha256:{'0' * 64}", nowhere), 3, "sha256:0"),
        (await run("verify", "data", TWO, nowhere, "--location", "x" * 2_001), 2, "location"),
        (await viewer("register", "data", data, *csv), 4, "operator"),
        (await viewer("verify", "data", TWO, data), 4, "operator"),
    ):
        assert (done.code, done.out) == (code, ""), done
        assert said in done.err
        assert len(done.err.splitlines()) == 1
