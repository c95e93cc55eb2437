"""Waits for logs to grow, on behalf of every call that does: one statement a moment for all of them together."""

import asyncio

from animus.service.limits import resting
from animus.store.log import LogStore

LOOK_SECONDS = 0.1


class LogGrowth:
    """Tells waiting calls that a log has come to a size."""

    def __init__(self, store: LogStore) -> None:
        self._store = store
        self._waiting: dict[asyncio.Future[None], tuple[str, int, bool]] = {}
        self._looking: asyncio.Task[None] | None = None

    async def wait_size(self, project_id: str, size: int) -> None:
        """Returns when the log has so many leaves."""
        await self._wait(project_id, size, published=False)

    async def wait_published(self, project_id: str, size: int) -> None:
        """Returns when a checkpoint covers so many leaves."""
        await self._wait(project_id, size, published=True)

    async def stop(self) -> None:
        """Ends the task that looks, if it is there."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)

    async def _wait(self, project_id: str, size: int, *, published: bool) -> None:
        reached = asyncio.get_running_loop().create_future()
        self._waiting[reached] = (project_id, size, published)
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look())
        try:
            async with resting():
                await reached
        finally:
            self._waiting.pop(reached, None)

    async def _look(self) -> None:
        while self._waiting:
            try:
                sizes = await self._store.published_sizes(sorted({project for project, _, _ in self._waiting.values()}))
            except Exception as error:  # whatever it is, those who wait learn of it: nobody looks for them any more
                for reached in list(self._waiting):
                    if not reached.done():
                        reached.set_exception(error)
                return
            for reached, (project_id, size, published) in list(self._waiting.items()):
                if sizes.get(project_id, (0, 0))[published] >= size and not reached.done():
                    reached.set_result(None)
            await asyncio.sleep(LOOK_SECONDS)
