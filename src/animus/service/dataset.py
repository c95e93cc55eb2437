"""DatasetService."""

from animus.domain.dataset import Dataset, DatasetVerification, DatasetVersion
from animus.domain.document import differing_paths, seal, tree_of
from animus.domain.errors import Conflict
from animus.domain.names import (
    check_digest,
    check_resource_id,
    dataset_name,
    dataset_verification_name,
    dataset_version_name,
)
from animus.service.calls import Caller, call_of, creation, decode_field, new_record, record_of, resource
from animus.service.pages import Pages
from animus.store.records import Stored
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
        """Registers a version, or finds it registered."""
        version = decode_field(request, "dataset_version", "datasetVersion", DatasetVersion)
        name = dataset_version_name(request.project_id, version.dataset_id, version.content_digest)

        async def decide(view: View) -> Change:
            found = await view.find(
                DatasetVersion, dataset_id=version.dataset_id, content_digest=version.content_digest
            )
            if found is not None:
                paths = [path for path, _, _ in differing_paths(tree_of(found.value), tree_of(version))]
                if paths:
                    raise Conflict(
                        "DATASET_VERSION_DIFFERS",
                        "this content is registered, and something else is said of it",
                        name=name,
                        paths=", ".join(paths[:20]),
                    )
                return Change("dataset_version.register", name, (), (), resource(found, name, pb.DatasetVersion()))
            await view.need(Dataset, dataset_name(view.project_id, version.dataset_id), dataset_id=version.dataset_id)
            return creation(view, caller, "dataset_version.register", name, version, pb.DatasetVersion())

        return await self.work.change(call_of(caller, request), decide)

    async def GetDatasetVersion(self, request: pb.GetDatasetVersionRequest, caller: Caller) -> pb.DatasetVersion:
        """Returns a version."""
        check_resource_id(request.dataset_id, "datasetId")
        check_digest(request.content_digest, "contentDigest")
        name = dataset_version_name(request.project_id, request.dataset_id, request.content_digest)

        async def query(view: View) -> pb.DatasetVersion:
            found = await view.need(
                DatasetVersion, name, dataset_id=request.dataset_id, content_digest=request.content_digest
            )
            return resource(found, name, pb.DatasetVersion())

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
            for stored in page.items:
                name = dataset_version_name(view.project_id, dataset_id, stored.value.content_digest)
                message = resource(stored, name, reply.dataset_versions.add())
                message.ClearField("columns")
                message.ClearField("files")
            reply.next_page_token = page.next_token(lambda stored: (stored.value.content_digest,))
            return reply

        return await self.work.read(request.project_id, query)

    async def VerifyDatasetVersion(self, request: pb.VerifyDatasetVersionRequest, caller: Caller) -> Answer:
        """Records what the caller found of a copy of a version."""
        _check_version(request)
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
            await _need_version(view, request)
            sealed = seal(found)
            reply = _verification_message(view.project_id, new_record(view, caller, sealed), pb.DatasetVerification())
            return Change("dataset_version.verify", name, (sealed,), (), reply)

        return await self.work.change(call_of(caller, request), decide)

    async def ListDatasetVerifications(
        self, request: pb.ListDatasetVerificationsRequest, caller: Caller
    ) -> pb.ListDatasetVerificationsResponse:
        """Lists the verifications of a version, the newest first."""
        _check_version(request)

        async def query(view: View) -> pb.ListDatasetVerificationsResponse:
            await _need_version(view, request)
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


OfVersion = pb.VerifyDatasetVersionRequest | pb.ListDatasetVerificationsRequest


def _check_version(request: OfVersion) -> None:
    check_resource_id(request.dataset_id, "datasetId")
    check_digest(request.content_digest, "contentDigest")


async def _need_version(view: View, request: OfVersion) -> None:
    """Raises NotFound where the project has no such version."""
    name = dataset_version_name(view.project_id, request.dataset_id, request.content_digest)
    await view.need(DatasetVersion, name, dataset_id=request.dataset_id, content_digest=request.content_digest)


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
