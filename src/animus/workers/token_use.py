"""When tokens were last used: gathered in memory as they are taken, and written now and then.

Nothing follows from it, so it is in nobody's way: what cannot be written is dropped.
"""

import asyncio

import structlog

from animus.store.unit_of_work import UnitOfWork

FLUSH_SECONDS = 30.0
HELD_AT_MOST = 10_000
WRITE_SECONDS = 5.0  # so long may a shutdown wait for it

log = structlog.get_logger("animus.token_use")


class TokenUses:
    """Remembers which tokens were used since it last wrote."""

    def __init__(self, work: UnitOfWork) -> None:
        self._work = work
        self._used: set[tuple[str, str]] = set()  # project and digest
        self._failing = False

    def note(self, project_id: str, token_digest: str) -> None:
        """Remembers that a token was used. Beyond what is held at most, it is forgotten."""
        if len(self._used) < HELD_AT_MOST:
            self._used.add((project_id, token_digest))

    async def run(self) -> None:
        """Writes every half a minute, until it is cancelled."""
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            await self.flush()

    async def flush(self) -> None:
        """Writes what came since the last time. Raises nothing; the first of several failures is logged."""
        used, self._used = self._used, set()
        if not used:
            return
        try:
            async with asyncio.timeout(WRITE_SECONDS):
                await self._work.note_token_uses(used)
        except Exception as error:  # whatever it is, a defect too: no call depends on it
            if not self._failing:
                log.warning("when tokens were used cannot be written", reason=str(error) or type(error).__name__)
            self._failing = True
        else:
            self._failing = False
