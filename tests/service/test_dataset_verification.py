"""Verifications of copies of dataset versions through the real server."""

from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from animus.v1 import audit_pb2, dataset_pb2
from service.conftest import Failure, Server, gathered
from service.requests import ONE, TWO, dataset, prepare, same, verify, version

NAME = f"projects/p/datasets/data/versions/{ONE}"


async def registered(server: Server) -> None:
    """A dataset with a version."""
    await server.admin("CreateDataset", dataset())
    await server.admin("RegisterDatasetVersion", version())


def listing(page_size: int = 0, page_token: str = "", project_id: str = "p") -> Any:
    """Asks for the verifications of the version."""
    return dataset_pb2.ListDatasetVerificationsRequest(
        project_id=project_id, dataset_id="data", content_digest=ONE, page_size=page_size, page_token=page_token
    )


async def test_what_was_found_of_a_copy_is_recorded_and_audited(server: Server) -> None:
    """A copy that matched and one that did not: a record each, by its entry, which names the version."""
    await registered(server)
    runtime = await server.caller("p", "runtime")
    good = await runtime("VerifyDatasetVersion", verify("good"))
    bad = await runtime("VerifyDatasetVersion", verify("bad", found=TWO, location=""))
    assert [(each.matched, each.found_digest, each.location) for each in (good, bad)] == [
        (True, ONE, "s3://copy"),
        (False, TWO, ""),
    ]
    assert (good.dataset_id, good.content_digest, good.found_size_bytes) == ("data", ONE, 1)
    assert good.record.name == f"{NAME}/verifications/{good.record.audit_entry_id}"
    assert good.record.principal == "runtime"
    entry = await server.admin(
        "GetAuditEntry", audit_pb2.GetAuditEntryRequest(project_id="p", entry_id=bad.record.audit_entry_id)
    )
    assert (entry.action, entry.resource, entry.principal) == ("dataset_version.verify", NAME, "runtime")
    assert entry.outcome == audit_pb2.AUDIT_OUTCOME_ACCEPTED
    assert [(each.kind, each.digest) for each in entry.records] == [("dataset_verification", bad.record.digest)]
    assert entry.time == bad.record.create_time


async def test_a_retry_is_answered_as_before_and_a_new_call_is_a_new_record(server: Server) -> None:
    """One request_id makes one record, also at once; another body under it is refused; another id makes another."""
    await registered(server)
    first, *again = await gathered([server.admin("VerifyDatasetVersion", verify("once")) for _ in range(4)])
    assert all(same(first, each) for each in again)
    with pytest.raises(Failure) as found:
        await server.admin("VerifyDatasetVersion", verify("once", found=TWO))
    assert found.value.reason == "REQUEST_ID_REUSED"
    other = await server.admin("VerifyDatasetVersion", verify("twice"))
    listed = await server.admin("ListDatasetVerifications", listing())
    assert [each.record.name for each in listed.dataset_verifications] == [other.record.name, first.record.name]


async def test_verifications_are_listed_newest_first_in_pages(server: Server) -> None:
    """Pages of two are the whole list, each item as the call answered; a token is of one version's list."""
    await registered(server)
    await server.admin("RegisterDatasetVersion", version(digest=TWO))
    made = [await server.admin("VerifyDatasetVersion", verify(f"v{index}")) for index in range(5)]
    await server.admin("VerifyDatasetVersion", verify("other", digest=TWO))
    found, token = [], ""
    while True:
        page = await server.admin("ListDatasetVerifications", listing(2, token))
        found += page.dataset_verifications
        token = page.next_page_token
        if not token:
            break
        assert len(page.dataset_verifications) == 2
        last = token
    assert [each.SerializeToString() for each in found] == [each.SerializeToString() for each in reversed(made)]
    moved = listing(2, last)
    moved.content_digest = TWO
    with pytest.raises(Failure) as failed:
        await server.admin("ListDatasetVerifications", moved)
    assert failed.value.reason == "PAGE_TOKEN_INVALID"
    with pytest.raises(Failure) as failed:
        await server.admin("ListDatasetVerifications", listing(-1))
    assert list(failed.value.fields) == ["pageSize"]


async def test_validate_only_checks_and_writes_nothing(server: Server) -> None:
    """The answer is that of the call, the list stays empty, and what is wrong is found."""
    await registered(server)
    request = verify("dry")
    request.validate_only = True
    assert (await server.admin("VerifyDatasetVersion", request)).matched
    assert not (await server.admin("ListDatasetVerifications", listing())).dataset_verifications
    request.content_digest = TWO
    with pytest.raises(Failure) as found:
        await server.admin("VerifyDatasetVersion", request)
    assert found.value.reason == "DATASET_VERSION_UNKNOWN"


@pytest.mark.parametrize(
    ("field", "value", "path"),
    [
        ("dataset_id", "", "datasetId"),
        ("dataset_id", "A", "datasetId"),
        ("content_digest", "", "contentDigest"),
        ("content_digest", ONE.upper(), "contentDigest"),
        ("found_digest", "", "foundDigest"),
        ("found_digest", ONE[:-1], "foundDigest"),
        ("found_size_bytes", -1, "foundSizeBytes"),
        ("found_size_bytes", 2**53, "foundSizeBytes"),
        ("location", "x" * 2_001, "location"),
        ("location", "a\x00b", "location"),
        ("request_id", "", "requestId"),
    ],
)
async def test_bad_input_is_refused_by_the_name_of_its_field(
    server: Server, field: str, value: str | int, path: str
) -> None:
    """INVALID_ARGUMENT, and nothing is recorded."""
    await registered(server)
    request = verify("bad")
    setattr(request, field, value)
    with pytest.raises(Failure) as found:
        await server.admin("VerifyDatasetVersion", request)
    assert (found.value.code, list(found.value.fields)) == ("INVALID_ARGUMENT", [path])
    assert not (await server.admin("ListDatasetVerifications", listing())).dataset_verifications


async def test_a_version_of_another_project_is_not_there(server: Server) -> None:
    """The project's own callers get the answer that they get for no version at all; another's get no project."""
    await registered(server)
    await server.project("other")
    mine = await server.caller("other", "admin")
    for method, own, foreign in (
        ("VerifyDatasetVersion", verify("x", "other"), verify("x", "p")),
        ("ListDatasetVerifications", listing(project_id="other"), listing()),
    ):
        with pytest.raises(Failure) as found:
            await mine(method, own)
        assert (found.value.code, found.value.reason) == ("NOT_FOUND", "DATASET_VERSION_UNKNOWN")
        with pytest.raises(Failure) as found:
            await mine(method, foreign)
        assert (found.value.code, found.value.reason) == ("NOT_FOUND", "PROJECT_UNKNOWN")


async def test_the_two_projects_lists_are_apart(server: Server) -> None:
    """The same content in two projects has each project's own verifications."""
    await registered(server)
    await server.project("other")
    await prepare(server.admin, "other")
    await server.admin("VerifyDatasetVersion", verify("x", "other"))
    assert not (await server.admin("ListDatasetVerifications", listing())).dataset_verifications
    theirs = await server.admin("ListDatasetVerifications", listing(project_id="other"))
    assert len(theirs.dataset_verifications) == 1


async def test_whoever_reads_the_data_may_say_what_it_found(server: Server) -> None:
    """Operators and runtimes record; viewers and auditors do not, and list."""
    await registered(server)
    for role, may_verify, may_list in (
        ("operator", True, True),
        ("runtime", True, False),
        ("viewer", False, True),
        ("auditor", False, True),
    ):
        caller = await server.caller("p", role)
        for method, request, allowed in (
            ("VerifyDatasetVersion", verify(role), may_verify),
            ("ListDatasetVerifications", listing(), may_list),
        ):
            if allowed:
                await caller(method, request)
                continue
            with pytest.raises(Failure) as found:
                await caller(method, request)
            assert (found.value.code, found.value.reason) == ("PERMISSION_DENIED", "ROLE_MISSING"), (role, method)


async def test_a_verification_cannot_be_changed_or_taken_away(server: Server, superuser: AsyncConnection) -> None:
    """Not by the database's superuser either, as long as the triggers are there."""
    await registered(server)
    await server.admin("VerifyDatasetVersion", verify("x"))
    for statement in (
        "UPDATE animus.dataset_verification SET project_id = 'q'",
        "DELETE FROM animus.dataset_verification",
        "TRUNCATE animus.dataset_verification",
    ):
        with pytest.raises(DBAPIError, match="keeps what was written"):
            await superuser.execute(text(statement))
