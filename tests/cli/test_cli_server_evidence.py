"""What is found against the real server: entries that a superuser took away, and calls that cannot be answered."""

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import Database
from ports import closed_port
from service.auditor import RECEIPT, ask
from service.conftest import Server
from service.shared import Grown, held, on_demand, serving, size_of, until
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from animus.domain import log as domain_log
from animus.domain.checkpoint import load_proof
from animus.domain.merkle import check_inclusion
from animus.domain.note import load_key, load_note
from animus.domain.receipt import Receipt, load_receipt
from animus.sdk.receipts import Kept, ReceiptStore
from animus.signing import verify_checkpoint
from animus.v1 import log_pb2
from cli.conftest import Done

Run = Callable[..., Awaitable[Done]]

COMMAND = (sys.executable, "-m", "animus.cli")
TABLES = ("audit_entry", "audit_queue", "log_leaf")


@dataclass(slots=True)
class World:
    """A server of the test's own, a project of it, and who asks."""

    server: Server
    grown: Grown
    database: Database
    run: Run
    store: ReceiptStore
    environment: dict[str, str]
    vkey: str

    async def change(self) -> Receipt:
        """One change, whose receipt is kept."""
        (answer,) = await self.grown.grow()
        self.store.keep(answer.receipt, "animus.v1.EnvironmentService/RegisterEnvironmentLock", "r")
        return load_receipt(load_note(answer.receipt).text)

    async def superuser(self, statement: str, **values: Any) -> int:
        """Runs a statement with every trigger off, and returns how many rows it touched."""
        engine = create_async_engine(self.database.admin_url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
        async with engine.connect() as connection:
            for table in TABLES:
                await connection.execute(text(f"ALTER TABLE animus.{table} DISABLE TRIGGER ALL"))
            done = await connection.execute(text(statement), values)
        await engine.dispose()
        return int(done.rowcount)

    async def receipts(self, *arguments: object, **settings: str) -> Done:
        """Checks the receipts that were kept."""
        options = ("--receipts", self.store.path, "--key", self.vkey)
        return await self.run("audit", "verify-receipts", *options, *arguments, **settings)


@pytest.fixture
async def world(database: Database, tmp_path: Path) -> AsyncIterator[World]:
    """A server with a project, an empty store of receipts, and the command in a process of its own, as an auditor."""
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    async with serving(database.service_url, data_dir) as server:
        grown = await Grown.new(server)
        auditor = await server.caller(grown.project_id, "auditor")
        token = tmp_path / "auditor.token"
        token.write_text(f"{auditor.token}\n")
        environment = {
            "PYTHONPATH": os.pathsep.join(sys.path),
            "XDG_STATE_HOME": str(tmp_path / "state"),
            "ANIMUS_ADDRESS": server.running.grpc,
            "ANIMUS_PROJECT": grown.project_id,
            "ANIMUS_TOKEN_FILE": str(token),
        }

        async def run(*arguments: object, **settings: str) -> Done:
            process = await asyncio.create_subprocess_exec(
                *(*COMMAND, *map(str, arguments)),
                env=environment | settings,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            out, err = await process.communicate()
            assert process.returncode is not None
            return Done(process.returncode, out.decode(), err.decode())

        log = await server.admin("GetLog", log_pb2.GetLogRequest(project_id=grown.project_id))
        store = ReceiptStore(tmp_path / "receipts")
        yield World(server, grown, database, run, store, environment, log.keys[0].vkey)


# Evidence.


async def test_an_entry_that_was_deleted_before_it_had_an_index_is_evidence(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it may still come it is pending; once the promise is over, server and export say that it was broken."""
    await world.change()
    async with held(world.server):
        gone = await world.change()
        monkeypatch.setattr(domain_log, "PROMISE_SECONDS", 0)
        over = await world.change()
        for entry_id in (gone.entry_id, over.entry_id):
            assert await world.superuser("DELETE FROM animus.audit_queue WHERE entry_id = :e", e=entry_id) == 1
            assert await world.superuser("DELETE FROM animus.audit_entry WHERE entry_id = :e", e=entry_id) == 1
    monkeypatch.setattr(domain_log, "PROMISE_SECONDS", 60)
    await world.change()
    done = await world.receipts("--json", "--output", tmp_path / "proofs")
    assert done.code == 7, done
    assert done.json["counts"] == {"INCLUDED": 2, "PENDING": 1, "NOT_INCLUDED_IN_TIME": 1}
    (broken,) = [each for each in done.json["receipts"] if each["outcome"] == "NOT_INCLUDED_IN_TIME"]
    assert (broken["entryId"], broken["line"]) == (over.entry_id, 3)
    said = await world.receipts()
    assert said.code == 7
    assert said.out.count(over.entry_id) == said.out.count(gone.entry_id) == 1
    assert "Traceback" not in said.err
    assert {path.name.partition(".")[0] for path in (tmp_path / "proofs").iterdir()} == {
        each["entryId"] for each in done.json["receipts"] if each["outcome"] == "INCLUDED"
    }
    await world.server.published(world.grown.project_id)
    assert (await world.run("audit", "export", "--output", tmp_path / "log")).code == 0
    offline = await world.run(
        "audit", "verify-receipts", tmp_path / "log", "--receipts", world.store.path, "--key", world.vkey, "--json"
    )
    assert (offline.code, offline.json["counts"]) == (7, done.json["counts"])
    # The log itself is sound: who has no receipt cannot know.
    assert (await world.run("audit", "verify", "--key", world.vkey)).code == 0


async def test_a_promise_that_may_still_be_kept_is_no_evidence(world: World) -> None:
    """Nothing but pending receipts: exit code 6, to be asked again; and then they are included."""
    await world.change()
    await world.server.published(world.grown.project_id)
    async with held(world.server):
        await world.change()
        done = await world.receipts("--json", "--wait", 0)
        assert (done.code, done.json["counts"]) == (6, {"INCLUDED": 1, "PENDING": 1}), done
    done = await world.receipts("--json")
    assert (done.code, done.json["counts"]) == (0, {"INCLUDED": 2}), done


@pytest.mark.parametrize(("seconds", "code", "outcome"), [(60, 0, "INCLUDED"), (0, 7, "NOT_INCLUDED_IN_TIME")])
async def test_a_log_without_any_checkpoint_keeps_its_promises_or_breaks_them(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: int, code: int, outcome: str
) -> None:
    """An entry that has an index in a log that never published is waited for in time, and evidence after it."""
    monkeypatch.setattr(domain_log, "PROMISE_SECONDS", seconds)
    async with on_demand(world.server):
        world.grown = await Grown.new(world.server)
        await world.change()
        token = tmp_path / "another.token"
        token.write_text((await world.server.caller(world.grown.project_id, "auditor")).token)

        async def indexed() -> bool:
            return (await size_of(world.server, world.grown.project_id)).queued == 0

        await until(indexed, "an empty queue")
        assert (await size_of(world.server, world.grown.project_id)).published_size == 0
        settings = {"ANIMUS_PROJECT": world.grown.project_id, "ANIMUS_TOKEN_FILE": str(token)}
        done = await world.receipts("--json", **settings)
    assert (done.code, done.json["counts"]) == (code, {outcome: 1}), done


@pytest.mark.parametrize(
    ("statement", "outcome", "others"),
    [
        ("DELETE FROM animus.audit_entry WHERE entry_id = :e", "DAMAGED", "INCLUDED"),
        (
            "UPDATE animus.audit_entry SET document = convert_to(replace(convert_from(document, 'UTF8'),"
            ' \'"principal":"admin"\', \'"principal":"nobody"\'), \'UTF8\') WHERE entry_id = :e',
            "DAMAGED",
            "INCLUDED",
        ),
        # Its hash is needed for the proofs of those beside it.
        ("DELETE FROM animus.log_leaf WHERE entry_id = :e", "NOT_INCLUDED_IN_TIME", "DAMAGED"),
    ],
)
async def test_an_entry_that_was_deleted_or_edited_later_fails_the_check(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, statement: str, outcome: str, others: str
) -> None:
    """Verification, export and receipts end with 7, each receipt for itself; older proofs and copies stay good."""
    monkeypatch.setattr(domain_log, "PROMISE_SECONDS", 0)
    receipt = await world.change()
    other = await world.change()
    await world.server.published(world.grown.project_id)
    assert (await world.run("audit", "export", "--output", tmp_path / "before")).code == 0
    assert (await world.receipts("--output", tmp_path / "proofs")).code == 0
    assert await world.superuser(statement, e=receipt.entry_id) == 1
    for arguments in (
        ("audit", "verify", "--key", world.vkey, "--wait", 0),
        ("audit", "export", "--output", tmp_path / "after"),
    ):
        done = await world.run(*arguments)
        assert done.code == 7, done
        assert len([*done.out.splitlines(), *done.err.splitlines()]) == 1, done
    assert not (tmp_path / "after" / "checkpoint").exists()
    assert (await world.run("audit", "verify", tmp_path / "before", "--key", world.vkey)).code == 0
    done = await world.receipts("--json", "--output", tmp_path / "later")
    assert done.code == 7, done
    assert [(each["entryId"], each["outcome"]) for each in done.json["receipts"]] == [
        (receipt.entry_id, outcome),
        (other.entry_id, others),
    ]
    proofs = [f"{other.entry_id}.tlog-proof"] if others == "INCLUDED" else []
    assert [path.name for path in (tmp_path / "later").iterdir()] == proofs
    proof = load_proof((tmp_path / "proofs" / f"{receipt.entry_id}.tlog-proof").read_bytes())
    checkpoint, _ = verify_checkpoint(proof.checkpoint, [load_key(world.vkey)])
    check_inclusion(proof.hashes, proof.index, checkpoint.size, receipt.leaf_hash, checkpoint.root_hash)


async def test_a_receipt_that_no_key_of_the_log_signed_is_evidence_of_nothing(world: World) -> None:
    """Changed bytes end with 7 beside good ones; a line that is torn ends with 1."""
    await world.change()
    (kept,) = world.store.read()
    assert isinstance(kept, Kept)
    changed = kept.note.replace(b"\n\n", b"x\n\n", 1)
    world.store.keep(changed, "a/B", "r")
    done = await world.receipts("--json")
    assert (done.code, done.json["counts"]) == (7, {"INCLUDED": 1, "BAD_SIGNATURE": 1}), done
    with world.store.path.open("wb") as file:
        file.write(b'{"cut')
    world.store.keep(kept.note, "a/B", "r")
    done = await world.receipts("--json")
    assert (done.code, done.json["counts"], done.json["torn"]) == (1, {"INCLUDED": 1}, [1]), done


# Export, and what operators see.


async def test_an_export_fetches_what_is_new(world: World, tmp_path: Path) -> None:
    """Of a log that grows over the width of a tile, full bundles are not asked for again; each state verifies."""
    folder = tmp_path / "log"
    heads = tmp_path / "heads"
    sizes, fetched = [], []
    for more in (5, 260, 1):
        await world.grown.grow(more)
        await world.server.published(world.grown.project_id)
        done = await world.run("audit", "export", "--output", folder)
        match = re.fullmatch(r"\S+ size (\d+) fetched (\d+)\n", done.out)
        assert match, done
        sizes.append(int(match[1]))
        fetched.append(int(match[2]))
        verified = await world.run("audit", "verify", folder, "--key", world.vkey, "--known-heads", heads, "--json")
        assert (verified.code, verified.json["size"]) == (0, sizes[-1])
        assert verified.json["verdict"] == ("SIGNED" if len(sizes) == 1 else "CONSISTENT")
    assert sizes == [sizes[0], sizes[0] + 260, sizes[0] + 261]
    assert fetched == [sizes[0], sizes[1], sizes[2] - 256]


async def test_log_show_says_what_the_log_is_and_what_is_wrong(world: World) -> None:
    """Origin, size and keys on stdout; a problem on stderr, once an entry that waits was taken away."""
    await world.server.published(world.grown.project_id)
    origin = f"animus.example/{world.grown.project_id}/1"
    show = ("log", "show", "--project", world.grown.project_id)
    done = await world.run(*show)
    assert (done.code, done.err) == (0, "")
    assert re.fullmatch(rf"{origin} size (\d+) published \1 queued 0\n{re.escape(world.vkey)} active\n", done.out)
    tree = (await world.run(*show, "--json")).json
    assert (tree["origin"], tree["keys"][0]["vkey"], tree["problems"]) == (origin, world.vkey, [])
    async with held(world.server):
        gone = await world.change()
        await world.superuser("DELETE FROM animus.audit_entry WHERE entry_id = :e", e=gone.entry_id)

    async def named() -> bool:
        return gone.entry_id in (await world.run(*show)).err

    await until(named, "the entry that is gone, among the problems")


# Errors.


@pytest.fixture
def nobody() -> Iterator[str]:
    """An address where nobody listens."""
    with closed_port() as port:
        yield f"127.0.0.1:{port}"


async def test_each_error_has_its_code_and_no_traceback(world: World, tmp_path: Path, nobody: str) -> None:
    """A wrong token 4, an unknown project 3, no server 6, wrong usage 2, a missing file 1: told on stderr only."""
    wrong = tmp_path / "wrong.token"
    wrong.write_text("animus_p_" + "x" * 43)
    verify = ("audit", "verify", "--key", world.vkey)
    cases: list[tuple[int, tuple[object, ...], dict[str, str]]] = [
        (4, verify, {"ANIMUS_TOKEN_FILE": str(wrong)}),
        (3, (*verify, "--project", "nobody"), {}),
        (6, verify, {"ANIMUS_ADDRESS": nobody}),
        (2, ("audit", "verify"), {}),
        (1, verify, {"ANIMUS_TOKEN_FILE": str(tmp_path / "none")}),
        (6, ("audit", "export", "--output", tmp_path / "log"), {"ANIMUS_ADDRESS": nobody}),
        (3, ("audit", "tail", "--from", 0), {"ANIMUS_PROJECT": "nobody"}),
    ]
    for code, arguments, settings in cases:
        done = await world.run(*arguments, **settings)
        assert (done.code, done.out, len(done.err.splitlines())) == (code, "", 1), (arguments, done)
        assert done.err.startswith("animus: ")
        assert "xxxx" not in done.err
    for arguments in (
        ("audit", "verify", "--nonsense"),
        ("audit", "verify", "--accept-epoch", "x"),
        ("audit", "nonsense"),
    ):
        done = await world.run(*arguments)
        assert (done.code, done.out, "Traceback" in done.err) == (2, "", False)


async def test_a_reader_that_has_enough_ends_it_without_a_word(world: World) -> None:
    """As in `animus audit export --ndjson | head -1`: nothing is said of the pipe that broke."""
    await world.grown.grow(400)
    await world.server.published(world.grown.project_id)

    def read() -> tuple[bytes, bytes]:
        piped = subprocess.Popen(
            [*COMMAND, "audit", "export", "--ndjson"],
            env=world.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert piped.stdout is not None
        assert piped.stderr is not None
        line = piped.stdout.readline()
        piped.stdout.close()
        err = piped.stderr.read()
        piped.stderr.close()
        piped.wait(timeout=60)
        return line, err

    line, err = await asyncio.to_thread(read)
    assert line.startswith(b'{"entry":')
    assert err == b""


async def test_the_receipt_of_the_server_is_the_one_that_is_kept(world: World) -> None:
    """What these tests stand on: the trailing metadata that the client reads is what the server sends."""
    request = world.grown.change()
    answer = await ask(world.server.admin, "RegisterEnvironmentLock", request)
    assert RECEIPT == "animus-audit-receipt-bin"
    world.store.keep(answer.receipt, "m", "r")
    assert (await world.receipts()).code == 0
