"""Dataset versions through the real server: what is said of one, its URIs, and what it was derived from."""

from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from animus.v1 import audit_pb2, dataset_pb2, lineage_pb2, types_pb2
from service.conftest import Failure, Server, gathered
from service.requests import ONE, TWO, dataset, same, version

THREE = "sha256:" + "3" * 64


def registration(digest: str, request_id: str, *derived_from: str, **changes: Any) -> Any:
    """Registers a version of the dataset that was made from others of it."""
    request = version(digest=digest)
    request.request_id = request_id
    request.dataset_version.ClearField("uris")
    request.dataset_version.MergeFrom(dataset_pb2.DatasetVersion(**changes))
    for each in derived_from:
        request.dataset_version.derived_from.add(dataset_id="data", content_digest=each)
    return request


def set_uris(request_id: str, *uris: str, digest: str = ONE) -> Any:
    """Replaces the URIs of the version."""
    return dataset_pb2.SetDatasetVersionUrisRequest(
        project_id="p", request_id=request_id, dataset_id="data", content_digest=digest, uris=uris
    )


async def current(server: Server, digest: str = ONE) -> Any:
    """The version as it is now."""
    request = dataset_pb2.GetDatasetVersionRequest(project_id="p", dataset_id="data", content_digest=digest)
    return await server.admin("GetDatasetVersion", request)


async def entry(server: Server, entry_id: str) -> Any:
    """An audit entry."""
    request = audit_pb2.GetAuditEntryRequest(project_id="p", entry_id=entry_id)
    return await server.admin("GetAuditEntry", request)


async def walked(server: Server, node: str, direction: int) -> Any:
    """The lineage of a version, by its digest."""
    request = lineage_pb2.GetLineageRequest(
        project_id="p",
        node=f"projects/p/datasets/data/versions/{node}",
        direction=lineage_pb2.LineageDirection.ValueType(direction),
    )
    return await server.admin("GetLineage", request)


async def test_everything_that_is_said_of_a_version_is_kept_and_compared(server: Server) -> None:
    """Rows, source, licence and labels are part of what it is; said otherwise, they are a conflict that names them."""
    await server.admin("CreateDataset", dataset())
    said: dict[str, Any] = {
        "row_count": 9,
        "source": "the lab",
        "licence": "CC-BY-4.0",
        "labels": [types_pb2.Label(key="b", value="1"), types_pb2.Label(key="a", value="2")],
    }
    made = await server.admin("RegisterDatasetVersion", registration(ONE, "first", **said))
    assert (made.row_count, made.source, made.licence) == (9, "the lab", "CC-BY-4.0")
    assert [each.key for each in made.labels] == ["a", "b"]
    assert same(made, await current(server))
    assert same(made, await server.admin("RegisterDatasetVersion", registration(ONE, "again", **said)))
    other = {"row_count": 8, "source": "a lab", "licence": "MIT", "labels": []}
    with pytest.raises(Failure) as found:
        await server.admin("RegisterDatasetVersion", registration(ONE, "other", **other))
    assert (found.value.code, found.value.reason) == ("ALREADY_EXISTS", "DATASET_VERSION_DIFFERS")
    assert set(found.value.metadata["paths"].split(", ")) >= {"rowCount", "source", "licence"}


async def test_uris_may_change_and_are_no_difference(server: Server) -> None:
    """Registered again with other URIs it has both; set, it has those alone; its digest stays what it was."""
    await server.admin("CreateDataset", dataset())
    first = await server.admin("RegisterDatasetVersion", registration(ONE, "one", uris=["s3://b", "s3://a"]))
    assert list(first.uris) == ["s3://a", "s3://b"]
    assert [each.kind for each in (await entry(server, first.record.audit_entry_id)).records] == [
        "dataset_version",
        "dataset_version_uris",
    ]
    more = await server.admin("RegisterDatasetVersion", registration(ONE, "two", uris=["s3://c", "s3://a"]))
    assert list(more.uris) == ["s3://a", "s3://b", "s3://c"]
    assert more.record == first.record
    assert list((await server.admin("RegisterDatasetVersion", registration(ONE, "three"))).uris) == list(more.uris)
    runtime = await server.caller("p", "runtime")
    with pytest.raises(Failure) as found:
        await runtime("SetDatasetVersionUris", set_uris("x", "s3://d"))
    assert found.value.reason == "ROLE_MISSING"
    operator = await server.caller("p", "operator")
    moved = await operator("SetDatasetVersionUris", set_uris("set", "s3://d"))
    assert (list(moved.uris), moved.record) == (["s3://d"], first.record)
    assert same(moved, await operator("SetDatasetVersionUris", set_uris("set", "s3://d")))
    assert same(moved, await current(server))
    listing = dataset_pb2.ListDatasetVersionsRequest(project_id="p", dataset_id="data")
    await server.admin("RegisterDatasetVersion", registration(TWO, "four"))
    listed = (await server.admin("ListDatasetVersions", listing)).dataset_versions
    assert [list(each.uris) for each in listed] == [["s3://d"], []]
    assert not (await operator("SetDatasetVersionUris", set_uris("none"))).uris
    assert not (await current(server)).uris


async def test_uris_that_are_there_are_written_once(server: Server, superuser: AsyncConnection) -> None:
    """Each change of them is one record, kept as any; the same again is none; writers at once lose nothing."""
    await server.admin("CreateDataset", dataset())
    await server.admin("RegisterDatasetVersion", registration(ONE, "first"))
    places = [f"s3://{index}" for index in range(4)]
    calls = [registration(ONE, each, uris=[each]) for each in places]
    assert not [
        e for e in await gathered([server.admin("RegisterDatasetVersion", c) for c in calls]) if isinstance(e, Failure)
    ]
    assert list((await current(server)).uris) == places
    await server.admin("SetDatasetVersionUris", set_uris("same", *reversed(places)))
    rows = await superuser.execute(text("SELECT sequence FROM animus.dataset_version_uris ORDER BY 1"))
    assert list(rows.scalars()) == [1, 2, 3, 4]
    for statement in (
        "UPDATE animus.dataset_version_uris SET project_id = 'q'",
        "DELETE FROM animus.dataset_version_uris",
        "TRUNCATE animus.dataset_version_uris",
    ):
        with pytest.raises(DBAPIError, match="keeps what was written"):
            await superuser.execute(text(statement))


async def test_bad_uris_and_unknown_versions_are_refused_by_their_field(server: Server) -> None:
    """Empty, repeated and too many, also together with those that are there; and a version that is not there."""
    await server.admin("CreateDataset", dataset())
    many = [f"s3://{index:03}" for index in range(100)]
    await server.admin("RegisterDatasetVersion", registration(ONE, "first", uris=many))
    for method, request, field in (
        ("RegisterDatasetVersion", registration(ONE, "r1", uris=["s3://more"]), "datasetVersion.uris"),
        ("RegisterDatasetVersion", registration(TWO, "r2", uris=[""]), "datasetVersion.uris[0]"),
        ("SetDatasetVersionUris", set_uris("s1", "a", "a"), "uris[1]"),
        ("SetDatasetVersionUris", set_uris("s2", "a", "x" * 2_001), "uris[1]"),
        ("SetDatasetVersionUris", set_uris("s3", *many, "a"), "uris"),
        ("SetDatasetVersionUris", set_uris("s4", digest="x"), "contentDigest"),
        ("RegisterDatasetVersion", registration(TWO, "r3", TWO), "datasetVersion.derivedFrom[0]"),
        ("RegisterDatasetVersion", registration(TWO, "r4", row_count=-2), "datasetVersion.rowCount"),
    ):
        with pytest.raises(Failure) as found:
            await server.admin(method, request)
        assert (found.value.code, list(found.value.fields)) == ("INVALID_ARGUMENT", [field])
    with pytest.raises(Failure) as found:
        await server.admin("SetDatasetVersionUris", set_uris("s5", digest=TWO))
    assert found.value.reason == "DATASET_VERSION_UNKNOWN"


async def test_a_version_leads_to_those_it_was_derived_from(server: Server) -> None:
    """Edges are written with the version, name exact versions, and are walked both ways."""
    await server.admin("CreateDataset", dataset())
    await server.admin("RegisterDatasetVersion", registration(ONE, "one"))
    await server.admin("RegisterDatasetVersion", registration(TWO, "two", ONE))
    made = await server.admin("RegisterDatasetVersion", registration(THREE, "three", TWO, ONE))
    assert [each.content_digest for each in made.derived_from] == [ONE, TWO]
    kinds = [each.kind for each in (await entry(server, made.record.audit_entry_id)).records]
    assert kinds == ["dataset_version", "lineage_edge", "lineage_edge"]
    derived = lineage_pb2.LINEAGE_RELATION_WAS_DERIVED_FROM
    for start, direction, depths in (
        (THREE, lineage_pb2.LINEAGE_DIRECTION_UPSTREAM, {THREE: 0, TWO: 1, ONE: 1}),
        (TWO, lineage_pb2.LINEAGE_DIRECTION_UPSTREAM, {TWO: 0, ONE: 1}),
        (ONE, lineage_pb2.LINEAGE_DIRECTION_DOWNSTREAM, {ONE: 0, TWO: 1, THREE: 1}),
        (TWO, lineage_pb2.LINEAGE_DIRECTION_BOTH, {TWO: 0, ONE: 1, THREE: 1}),
    ):
        found = await walked(server, start, direction)
        assert {each.name.rpartition("/")[2]: each.depth for each in found.nodes} == depths
        assert {each.relation for each in found.edges} == {derived}
    whole = await walked(server, THREE, lineage_pb2.LINEAGE_DIRECTION_UPSTREAM)
    assert {(each.subject[-1], each.object[-1]) for each in whole.edges} == {("2", "1"), ("3", "1"), ("3", "2")}


async def test_no_version_comes_from_itself_by_any_way(server: Server) -> None:
    """What is not there yet cannot be named, and what is there cannot be changed: so there is no cycle."""
    await server.admin("CreateDataset", dataset())
    with pytest.raises(Failure) as found:
        await server.admin("RegisterDatasetVersion", registration(ONE, "early", TWO))
    assert (found.value.code, found.value.reason) == ("NOT_FOUND", "DATASET_VERSION_UNKNOWN")
    assert found.value.metadata["field"] == "datasetVersion.derivedFrom[0]"
    await server.admin("RegisterDatasetVersion", registration(ONE, "one"))
    await server.admin("RegisterDatasetVersion", registration(TWO, "two", ONE))
    with pytest.raises(Failure) as found:
        await server.admin("RegisterDatasetVersion", registration(ONE, "late", TWO))
    assert found.value.reason == "DATASET_VERSION_DIFFERS"
    assert found.value.metadata["paths"].startswith("derivedFrom")


async def test_another_projects_version_is_no_source(server: Server) -> None:
    """The same content has to be registered in the project itself."""
    await server.project("other")
    await server.admin("CreateDataset", dataset())
    await server.admin("CreateDataset", dataset("other"))
    await server.admin("RegisterDatasetVersion", version("other", TWO))
    with pytest.raises(Failure) as found:
        await server.admin("RegisterDatasetVersion", registration(ONE, "one", TWO))
    assert found.value.reason == "DATASET_VERSION_UNKNOWN"
