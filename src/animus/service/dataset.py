"""DatasetService."""

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from animus.domain.dataset import (
    Dataset,
    DatasetVerification,
    DatasetVersion,
    DatasetVersionId,
    DatasetVersionUris,
)
from animus.domain.document import Sealed, differing_paths, seal, tree_of
from animus.domain.errors import Conflict, NotFound
from animus.domain.lineage import edges_of_version
from animus.domain.names import (
    check_digest,
    check_resource_id,
    dataset_name,
    dataset_verification_name,
    dataset_version_name,
    distinct,
)
from animus.service.calls import Caller, at_path, call_of, creation, decode_field, new_record, record_of, resource
from animus.service.pages import Pages
from animus.store.records import REASONS, Stored
from animus.store.unit_of_work import Answer, Change, UnitOfWork, View
from animus.v1 import dataset_pb2 as pb


class DatasetService:
    """Registers and reads datasets and their versions."""

    def __init__(self, work: UnitOfWork, pages: Pages) -> None:
        self.work = work
        self.pages = pages

    async def CreateDataset(self, request: pb.CreateDatasetRequest, caller: Caller) -> Answer:
        """Creates a dataset."""
        dataset = decode_field(request, "dataset", "dataset", Dataset)

        async def decide(view: View) -> Change:
            name = dataset_name(view.project_id, dataset.dataset_id)
            if await view.find(Dataset, dataset_id=dataset.dataset_id):
                raise Conflict("DATASET_EXISTS", "the project has a dataset of this id", name=name)
            return creation(view, caller, "dataset.create", name, dataset, pb.Dataset())

        return await self.work.change(call_of(caller, request), decide)

    async def GetDataset(self, request: pb.GetDatasetRequest, caller: Caller) -> pb.Dataset:
        """Returns a dataset."""
        check_resource_id(request.dataset_id, "datasetId")
        name = dataset_name(request.project_id, request.dataset_id)

        async def query(view: View) -> pb.Dataset:
            return resource(await view.need(Dataset, name, dataset_id=request.dataset_id), name, pb.Dataset())

        return await self.work.read(request.project_id, query)

    async def ListDatasets(self, request: pb.ListDatasetsRequest, caller: Caller) -> pb.ListDatasetsResponse:
        """Lists datasets by id."""

        async def query(view: View) -> pb.ListDatasetsResponse:
            reply = pb.ListDatasetsResponse()
            page = await self.pages.read(view, Dataset, ("dataset_id",), request, caller.method)
            for stored in page.items:
                resource(stored, dataset_name(view.project_id, stored.value.dataset_id), reply.datasets.add())
            reply.next_page_token = page.next_token(lambda stored: (stored.value.dataset_id,))
            return reply

        return await self.work.read(request.project_id, query)

    async def RegisterDatasetVersion(self, request: pb.RegisterDatasetVersionRequest, caller: Caller) -> Answer:
        """Registers a version, or finds it registered; adds the URIs that are new."""
        version = decode_field(request, "dataset_version", "datasetVersion", DatasetVersion)
        key = DatasetVersionId(version.dataset_id, version.content_digest)
        with at_path("datasetVersion"):
            given, written_first = _following(None, key, request.dataset_version.uris)
        name = dataset_version_name(request.project_id, version.dataset_id, version.content_digest)

        async def decide(view: View) -> Change:
            found = await view.find(
                DatasetVersion, dataset_id=version.dataset_id, content_digest=version.content_digest
            )
            if found is not None:
                _check_same(found.value, version, name)
                before = (await view.uris_of([key])).get(key)
                with at_path("datasetVersion"):
                    uris, written = _following(before, key, distinct([*(before.uris if before else ()), *given.uris]))
                return _change("register", name, found, uris, written)
            await view.need(Dataset, dataset_name(view.project_id, version.dataset_id), dataset_id=version.dataset_id)
            await _need_sources(view, request.dataset_version.derived_from)
            sealed = seal(version)
            edges = [seal(edge) for edge in edges_of_version(view.project_id, version)]
            records = (sealed, *written_first, *edges)
            return _change("register", name, new_record(view, caller, sealed), given, records)

        return await self.work.change(call_of(caller, request), decide)

    async def SetDatasetVersionUris(self, request: pb.SetDatasetVersionUrisRequest, caller: Caller) -> Answer:
        """Replaces the URIs of a version."""
        check_version(request)
        key = DatasetVersionId(request.dataset_id, request.content_digest)
        _following(None, key, request.uris)  # refused before anything is asked
        name = dataset_version_name(request.project_id, request.dataset_id, request.content_digest)

        async def decide(view: View) -> Change:
            found = await need_version(view, request)
            uris, written = _following((await view.uris_of([key])).get(key), key, request.uris)
            return _change("set_uris", name, found, uris, written)

        return await self.work.change(call_of(caller, request), decide)

    async def GetDatasetVersion(self, request: pb.GetDatasetVersionRequest, caller: Caller) -> pb.DatasetVersion:
        """Returns a version with its URIs of now."""
        check_version(request)
        key = DatasetVersionId(request.dataset_id, request.content_digest)
        name = dataset_version_name(request.project_id, request.dataset_id, request.content_digest)

        async def query(view: View) -> pb.DatasetVersion:
            found = await need_version(view, request)
            return _version_message(found, name, (await view.uris_of([key])).get(key), pb.DatasetVersion())

        return await self.work.read(request.project_id, query)

    async def ListDatasetVersions(
        self, request: pb.ListDatasetVersionsRequest, caller: Caller
    ) -> pb.ListDatasetVersionsResponse:
        """Lists the versions of a dataset by content digest, without columns and files."""
        check_resource_id(request.dataset_id, "datasetId")

        async def query(view: View) -> pb.ListDatasetVersionsResponse:
            dataset_id = request.dataset_id
            await view.need(Dataset, dataset_name(view.project_id, dataset_id), dataset_id=dataset_id)
            reply = pb.ListDatasetVersionsResponse()
            page = await self.pages.read(
                view, DatasetVersion, ("content_digest",), request, caller.method, dataset_id=dataset_id
            )
            keys = [DatasetVersionId(dataset_id, stored.value.content_digest) for stored in page.items]
            uris = await view.uris_of(keys)
            for stored, key in zip(page.items, keys, strict=True):
                name = dataset_version_name(view.project_id, dataset_id, stored.value.content_digest)
                message = _version_message(stored, name, uris.get(key), reply.dataset_versions.add())
                message.ClearField("columns")
                message.ClearField("files")
            reply.next_page_token = page.next_token(lambda stored: (stored.value.content_digest,))
            return reply

        return await self.work.read(request.project_id, query)

    async def VerifyDatasetVersion(self, request: pb.VerifyDatasetVersionRequest, caller: Caller) -> Answer:
        """Records what the caller found of a copy of a version."""
        check_version(request)
        name = dataset_version_name(request.project_id, request.dataset_id, request.content_digest)

        async def decide(view: View) -> Change:
            found = DatasetVerification(
                dataset_id=request.dataset_id,
                content_digest=request.content_digest,
                found_digest=request.found_digest,
                found_size_bytes=request.found_size_bytes,
                location=request.location,
                matched=request.found_digest == request.content_digest,
                verify_time=view.time,
            )
            await need_version(view, request)
            sealed = seal(found)
            reply = _verification_message(view.project_id, new_record(view, caller, sealed), pb.DatasetVerification())
            return Change("dataset_version.verify", name, (sealed,), (), reply)

        return await self.work.change(call_of(caller, request), decide)

    async def ListDatasetVerifications(
        self, request: pb.ListDatasetVerificationsRequest, caller: Caller
    ) -> pb.ListDatasetVerificationsResponse:
        """Lists the verifications of a version, the newest first."""
        check_version(request)

        async def query(view: View) -> pb.ListDatasetVerificationsResponse:
            await need_version(view, request)
            reply = pb.ListDatasetVerificationsResponse()
            page = await self.pages.read(
                view,
                DatasetVerification,
                ("-verify_time", "-entry_id"),
                request,
                caller.method,
                dataset_id=request.dataset_id,
                content_digest=request.content_digest,
            )
            for stored in page.items:
                _verification_message(view.project_id, stored, reply.dataset_verifications.add())
            reply.next_page_token = page.next_token(lambda last: (last.value.verify_time, last.entry_id))
            return reply

        return await self.work.read(request.project_id, query)


class OfVersion(Protocol):
    """What names a dataset version: a request, or what is said of one."""

    @property
    def dataset_id(self) -> str:
        """The dataset."""

    @property
    def content_digest(self) -> str:
        """The version's content digest."""


def check_version(request: OfVersion) -> None:
    """The two fields by which a request names a version."""
    check_resource_id(request.dataset_id, "datasetId")
    check_digest(request.content_digest, "contentDigest")


async def need_version(view: View, of: OfVersion) -> Stored[DatasetVersion]:
    """The version that is named. Raises NotFound where the project has none."""
    name = dataset_version_name(view.project_id, of.dataset_id, of.content_digest)
    return await view.need(DatasetVersion, name, dataset_id=of.dataset_id, content_digest=of.content_digest)


def _check_same(found: DatasetVersion, version: DatasetVersion, name: str) -> None:
    """Raises Conflict where something else is said of the content than when it was registered."""
    paths = [path for path, _, _ in differing_paths(tree_of(found), tree_of(version))]
    if paths:
        raise Conflict(
            "DATASET_VERSION_DIFFERS",
            "this content is registered, and something else is said of it",
            name=name,
            paths=", ".join(paths[:20]),
        )


async def _need_sources(view: View, sources: Sequence[pb.DatasetVersionId]) -> None:
    """Raises NotFound for the first version that the project lacks, by its place in the request."""
    keys = [DatasetVersionId(each.dataset_id, each.content_digest) for each in sources]
    known = await view.versions_known(keys) if keys else frozenset()
    for index, key in enumerate(keys):
        if key not in known:
            field = f"datasetVersion.derivedFrom[{index}]"
            raise NotFound(
                REASONS[DatasetVersion],
                f"{field} names no version of the project; register it first",
                kind="DatasetVersion",
                name=dataset_version_name(view.project_id, key.dataset_id, key.content_digest),
                field=field,
            )


def _following(
    before: DatasetVersionUris | None, key: DatasetVersionId, uris: Iterable[str]
) -> tuple[DatasetVersionUris, tuple[Sealed[Any], ...]]:
    """The URIs of a version from now on, and the record of them where they are others than before."""
    sequence = before.sequence + 1 if before else 1
    found = DatasetVersionUris(key.dataset_id, key.content_digest, sequence, tuple(uris))
    return found, () if found.uris == (before.uris if before else ()) else (seal(found),)


def _change(
    verb: str, name: str, found: Stored[DatasetVersion], uris: DatasetVersionUris, records: tuple[Sealed[Any], ...]
) -> Change:
    """What a change to a version or its URIs comes to."""
    reply = _version_message(found, name, uris, pb.DatasetVersion())
    return Change(f"dataset_version.{verb}", name, records, (), reply)


def _version_message(
    stored: Stored[DatasetVersion], name: str, uris: DatasetVersionUris | None, message: pb.DatasetVersion
) -> pb.DatasetVersion:
    resource(stored, name, message)
    if uris:
        message.uris.extend(uris.uris)
    return message


def _verification_message(
    project_id: str, stored: Stored[DatasetVerification], message: pb.DatasetVerification
) -> pb.DatasetVerification:
    """A verification; its time is that of its record."""
    found = stored.value
    name = dataset_verification_name(project_id, found.dataset_id, found.content_digest, stored.entry_id)
    message.record.CopyFrom(record_of(stored, name))
    message.dataset_id = found.dataset_id
    message.content_digest = found.content_digest
    message.found_digest = found.found_digest
    message.found_size_bytes = found.found_size_bytes
    message.location = found.location
    message.matched = found.matched
    return message
