"""The commands against the real server: from a change to a proof in somebody else's hands."""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from service.conftest import Server
from service.requests import dataset
from service.shared import Grown, served
from sqlalchemy.ext.asyncio import AsyncEngine

from animus.domain import document
from animus.domain.note import dump_key
from animus.sdk.client import CallFailed, connect, connect_blocking
from animus.sdk.receipts import Kept, ReceiptStore
from animus.sdk.source import call
from animus.sdk.witness import Witness
from animus.store.embedded import EmbeddedPostgres
from animus.v1 import dataset_pb2_grpc, log_pb2
from cli.conftest import Command, command


@pytest.fixture(scope="module")
def witness(tmp_path_factory: pytest.TempPathFactory) -> Witness:
    """A witness whose cosignatures the server takes."""
    return Witness.create(tmp_path_factory.mktemp("witness") / "w", "witness.example/w1")


@pytest.fixture(scope="module")
async def server(
    postgres: EmbeddedPostgres,
    admin: AsyncEngine,
    template: str,
    tmp_path_factory: pytest.TempPathFactory,
    witness: Witness,
) -> AsyncIterator[Server]:
    """The server of these tests."""
    policy = tmp_path_factory.mktemp("policy") / "policy"
    policy.write_text(f"witness w1 {dump_key(witness.key)}\nquorum w1\n")
    data_dir = tmp_path_factory.mktemp("data")
    async with served(postgres, admin, template, data_dir, log_policy_file=str(policy)) as found:
        yield found


@pytest.fixture
async def grown(server: Server) -> Grown:
    """A project of the test's own."""
    return await Grown.new(server)


@pytest.fixture
async def run(server: Server, grown: Grown, tmp_path: Path) -> Command:
    """Runs `animus` in a process of its own, as an auditor of that project."""
    auditor = await server.caller(grown.project_id, "auditor")
    return command(server, auditor.token, tmp_path, project=grown.project_id)


async def vkey(server: Server, project_id: str) -> str:
    """The key of a log, as an operator would hand it on."""
    log = await server.admin("GetLog", log_pb2.GetLogRequest(project_id=project_id))
    return str(log.keys[0].vkey)


async def test_a_log_is_verified_as_it_grows(run: Command, server: Server, grown: Grown) -> None:
    """Over the width of a tile, SIGNED at first and CONSISTENT then, with every checkpoint that was published."""
    key = await vkey(server, grown.project_id)
    first = await run("audit", "verify", "--key", key, "--json")
    assert (first.code, first.json["verdict"]) == (0, "SIGNED"), first
    await grown.grow(300)
    second = await run("audit", "verify", "--json")
    assert (second.code, second.json["verdict"], second.json["keySource"]) == (0, "CONSISTENT", "pinned"), second
    assert second.json["size"] >= first.json["size"] + 300
    assert second.json["publishedCheckpoints"] >= 2
    assert second.json["unverifiedCheckpoints"] == 0


async def test_a_log_is_verified_while_it_is_written(run: Command, server: Server, grown: Grown) -> None:
    """Changes that come in meanwhile are no contradiction."""
    key = await vkey(server, grown.project_id)
    growing = asyncio.create_task(grown.grow(300))
    for _ in range(3):
        done = await run("audit", "verify", "--key", key, "--json")
        assert done.code == 0, done
    await growing


async def test_the_log_of_the_instance_is_verified(run: Command, server: Server, grown: Grown, tmp_path: Path) -> None:
    """Its leaves are the projects' checkpoints. Who sees one project only does not see it."""
    key = await vkey(server, grown.project_id)
    await grown.grow(3)
    assert (await run("audit", "verify", "--project", "instance", "--key", key)).code == 3
    auditor = await server.caller("system", "instance_auditor")
    run = command(server, auditor.token, tmp_path, project=grown.project_id)
    done = await run("audit", "verify", "--project", "instance", "--key", key, "--json")
    assert (done.code, done.json["origin"]) == (0, "animus.example/1"), done
    assert done.json["size"] > 0
    assert (await run("audit", "verify", "--project", "system", "--key", key)).code == 0
    exported = await run("audit", "export", "--project", "instance", "--output", tmp_path / "instance")
    assert exported.code == 0, exported
    assert (await run("audit", "verify", tmp_path / "instance", "--key", key)).code == 0


async def test_an_exported_log_verifies_without_the_server(
    run: Command, server: Server, grown: Grown, tmp_path: Path
) -> None:
    """Twice, so that the second goes on from the first; and what the server says agrees with it."""
    key, folder = await vkey(server, grown.project_id), tmp_path / "log"
    await grown.grow(260)
    for more in (0, 20):
        await grown.grow(more)
        await server.published(grown.project_id)
        assert (await run("audit", "export", "--output", folder)).code == 0
        offline = await run("audit", "verify", folder, "--key", key, "--json", "--known-heads", tmp_path / "heads")
        online = await run("audit", "verify", "--key", key, "--json", "--known-heads", tmp_path / "heads")
        assert (offline.code, online.code) == (0, 0), (offline, online)
        assert online.json["verdict"] == "CONSISTENT"
    assert offline.json["verdict"] == "CONSISTENT"


async def test_each_change_of_a_client_has_a_receipt_that_becomes_a_proof(
    run: Command, server: Server, grown: Grown, tmp_path: Path
) -> None:
    """Accepted and refused changes, by asyncio and without; reads have none. Proofs by the server and by an export."""
    operator = await server.caller(grown.project_id, "operator")
    store = ReceiptStore(tmp_path / "receipts")
    names = [f"d{secrets.token_hex(4)}" for _ in range(4)]
    async with connect(server.running.grpc, operator.token, store) as channel:
        stub = dataset_pb2_grpc.DatasetServiceStub(channel)
        for name in names[:2]:
            await stub.CreateDataset(dataset(grown.project_id, name))

    def blocking() -> None:
        with connect_blocking(server.running.grpc, operator.token, store) as channel:
            stub = dataset_pb2_grpc.DatasetServiceStub(channel)
            for name in names[2:]:
                call(stub.CreateDataset, dataset(grown.project_id, name))
            taken = dataset(grown.project_id, names[0])
            taken.request_id = "another"
            with pytest.raises(CallFailed) as caught:
                call(stub.CreateDataset, taken)
            assert caught.value.reason == "DATASET_EXISTS"

    await asyncio.to_thread(blocking)
    kept = [each for each in store.read() if isinstance(each, Kept)]
    assert [(each.method, each.request_id) for each in kept] == [
        *(("animus.v1.DatasetService/CreateDataset", f"dataset-{name}") for name in names),
        ("animus.v1.DatasetService/CreateDataset", "another"),
    ]
    key = await vkey(server, grown.project_id)
    arguments = ("--receipts", store.path, "--key", key, "--json")
    online = await run("audit", "verify-receipts", *arguments, "--output", tmp_path / "proofs")
    assert (online.code, online.json["counts"]) == (0, {"INCLUDED": 5}), online
    assert len(list((tmp_path / "proofs").glob("*.tlog-proof"))) == 5
    await server.published(grown.project_id)
    await run("audit", "export", "--output", tmp_path / "log")
    offline = await run("audit", "verify-receipts", tmp_path / "log", *arguments)
    assert (offline.code, offline.json["counts"]) == (0, {"INCLUDED": 5}), offline
    places = [each["index"] for each in online.json["receipts"]]
    assert places == [each["index"] for each in offline.json["receipts"]]


async def test_entries_are_followed_and_exported_as_lines(run: Command, server: Server, grown: Grown) -> None:
    """The lines of a tail are those of an export, and filters choose among them."""
    await grown.grow(20)
    await server.published(grown.project_id)
    exported = await run("audit", "export", "--ndjson")
    assert exported.code == 0
    lines = exported.out.splitlines()
    assert [json.loads(line)["index"] for line in lines] == list(range(len(lines)))
    tail = await run("audit", "tail", "--from", 2, "--count", len(lines) - 2)
    assert (tail.code, tail.out.splitlines()) == (0, lines[2:])
    entry = json.loads(lines[5])["entry"]
    assert document.canonical(entry) in lines[5].encode()
    chosen = await run("audit", "export", "--ndjson", "--action", entry["action"], "--since", entry["time"])
    assert lines[5] in chosen.out.splitlines()
    assert (await run("audit", "export", "--ndjson", "--until", "2020-01-01")).out == ""
    assert (await run("audit", "export", "--ndjson", "--principal", "nobody")).out == ""


async def test_a_tail_waits_for_what_comes(run: Command, server: Server, grown: Grown) -> None:
    """Without --from it begins with the next entry."""
    await server.published(grown.project_id)
    size = (await server.admin("GetLog", log_pb2.GetLogRequest(project_id=grown.project_id))).size
    following = asyncio.create_task(run("audit", "tail", "--from", size, "--count", 3))
    await grown.grow(3)
    done = await following
    assert [json.loads(line)["index"] for line in done.out.splitlines()] == [size, size + 1, size + 2]


async def test_a_witness_makes_a_log_witnessed(
    run: Command, server: Server, grown: Grown, witness: Witness, tmp_path: Path
) -> None:
    """Request, cosign and import by file; the verdict says up to where, also after the log has grown and in exports."""
    key = await vkey(server, grown.project_id)
    policy = tmp_path / "policy"
    policy.write_text(f"log {key}\nwitness w1 {dump_key(witness.key)}\ngroup Uni any w1\nquorum Uni\n")
    assert (await run("witness", "trust", "--dir", witness.folder, key)).code == 0
    request, cosigned, old = tmp_path / "request", tmp_path / "cosigned", 0
    for _ in range(2):
        await grown.grow(5)
        await server.published(grown.project_id)
        assert (await run("witness", "request", "--old", old, "-o", request)).code == 0
        assert (await run("witness", "cosign", "--dir", witness.folder, request, "-o", cosigned)).code == 0
        done = await run("witness", "import", cosigned)
        assert done.code == 0, done
        old = next(log.size for log in witness.logs() if log.keys[0].name in done.out)
        verified = await run("audit", "verify", "--policy", policy, "--json")
        assert (verified.json["verdict"], verified.json["witnessed"]) == (
            "WITNESSED",
            {"size": old, "witnesses": ["w1"], "groups": ["Uni"]},
        )
    await grown.grow(5)
    await server.published(grown.project_id)
    await run("audit", "export", "--output", tmp_path / "log")
    offline = await run("audit", "verify", tmp_path / "log", "--policy", policy, "--json")
    assert (offline.json["verdict"], offline.json["witnessed"]["size"]) == ("WITNESSED", old)
    assert offline.json["size"] > old


async def test_who_may_not_see_the_log_is_told_so(server: Server, grown: Grown, tmp_path: Path) -> None:
    """Another project's token finds nothing, a viewer's is denied, a token that is none too."""
    key = await vkey(server, grown.project_id)
    other = await Grown.new(server)
    for token, code in (
        ((await server.caller(other.project_id, "auditor")).token, 3),
        ((await server.caller(grown.project_id, "viewer")).token, 4),
        ("animus_p_" + "x" * 43, 4),
    ):
        run = command(server, token, tmp_path, project=grown.project_id)
        done = await run("audit", "verify", "--key", key)
        assert (done.code, done.out, len(done.err.splitlines())) == (code, "", 1), done
