"""EvidenceService: bundles that an auditor checks offline."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from google.api import httpbody_pb2

from animus.codec import decode, encode
from animus.domain.document import seal
from animus.domain.errors import invalid
from animus.domain.evidence import Evidence
from animus.domain.log import MAX_SIZE, origin_of
from animus.domain.names import check_count, check_within, project_name, run_name
from animus.domain.run import Run, check_random_id
from animus.keyring import Keyring
from animus.service.calls import Caller, call_of
from animus.service.evidence_files import bundle
from animus.service.log_growth import LogGrowth
from animus.service.log_identity import LogIdentity, checkpoint_unknown
from animus.store.unit_of_work import Answer, Change, UnitOfWork, View
from animus.v1 import evidence_pb2 as pb

ZIP = "application/zip"
MAX_KNOWN_SIZES = 16
WAIT_SECONDS = 30  # for a checkpoint that covers what was committed before the call
LOOK_SECONDS = 1.0  # after which it is asked again what that is


class EvidenceService:
    """Exports what proves a run, or a project's log."""

    def __init__(
        self,
        work: UnitOfWork,
        identity: LogIdentity,
        growth: LogGrowth,
        publish_soon: Callable[[], None],
        keyring: Keyring,
    ) -> None:
        self.work = work
        self.identity = identity
        self.growth = growth
        self.publish_soon = publish_soon
        self.keyring = keyring

    async def ExportEvidence(
        self, request: pb.ExportEvidenceRequest, caller: Caller
    ) -> AsyncGenerator[Answer | httpbody_pb2.HttpBody, None]:
        """Streams a bundle, after it was recorded what it covers."""
        _check(request)
        if not request.size:
            await self._wait_published(request.project_id)

        async def decide(view: View) -> Change:
            value = await self._cover(view, request)
            sealed = seal(value)
            known = await view.find(Evidence, digest=sealed.digest)
            name = run_name(view.project_id, value.run_id) if value.run_id else f"{project_name(view.project_id)}/log"
            return Change("evidence.export", name, () if known else (sealed,), (), encode(value, pb.Evidence()))

        answer = await self.work.change(call_of(caller, request), decide)
        yield answer
        if request.validate_only:
            return
        covered = decode(pb.Evidence.FromString(answer.reply), Evidence, "")
        skip, sent = request.offset, False
        async with aclosing(bundle(self.work, self.identity, self.keyring, covered)) as parts:
            async for part in parts:
                if skip < len(part):
                    yield httpbody_pb2.HttpBody(content_type=ZIP, data=part[skip:])
                    sent = True
                skip = max(0, skip - len(part))
        if skip:
            raise invalid("offset", f"is {skip} bytes beyond the end of the bundle")
        if not sent:  # so that the answer has a type
            yield httpbody_pb2.HttpBody(content_type=ZIP)

    async def _wait_published(self, project_id: str) -> None:
        """Returns when all that is committed now is in a checkpoint, but for entries that are quarantined meanwhile."""
        wanted = MAX_SIZE
        async with asyncio.timeout(WAIT_SECONDS):
            while True:
                size = await self.work.read(project_id, lambda view: view.log.size())
                wanted = min(wanted, size.size + size.queued)  # one that goes into quarantine gets no index
                self.publish_soon()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_SECONDS):
                        await self.growth.wait_published(project_id, wanted)
                    return

    async def _cover(self, view: View, request: pb.ExportEvidenceRequest) -> Evidence:
        """What the bundle is of, as things stand."""
        first = request.first_index
        if request.run_id:
            run = await view.need(Run, run_name(view.project_id, request.run_id), run_id=request.run_id)
            _, index = await view.log.index_of(run.entry_id)
            first = MAX_SIZE if index is None else index
        checkpoint = await view.log.checkpoint(request.size)
        if checkpoint is None:
            raise checkpoint_unknown(view.project_id, f"one of size {request.size}" if request.size else "one yet")
        if first >= checkpoint.size:
            what = "the run's creation" if request.run_id else f"the index {first}"
            raise invalid("size", f"is {checkpoint.size} in the checkpoint: that does not cover {what}")
        return Evidence(
            project_id=view.project_id,
            run_id=request.run_id,
            origin=origin_of(self.identity.instance_name, view.project_id, checkpoint.epoch),
            epoch=checkpoint.epoch,
            first_index=first,
            size=checkpoint.size,
            known_sizes=tuple({size for size in request.known_sizes if size < checkpoint.size}),
        )


def _check(request: pb.ExportEvidenceRequest) -> None:
    if request.run_id:
        check_random_id(request.run_id, "runId")
        check_within(request.first_index, 0, 0, "firstIndex")
    check_within(request.first_index, 0, MAX_SIZE, "firstIndex")
    check_within(request.size, 0, MAX_SIZE, "size")
    check_count(tuple(request.known_sizes), 0, MAX_KNOWN_SIZES, "knownSizes")
    for index, size in enumerate(request.known_sizes):
        check_within(size, 1, MAX_SIZE, f"knownSizes[{index}]")
    check_within(request.offset, 0, MAX_SIZE, "offset")
