"""The task that keeps the log: integrates ten times a second, publishes once a second and whenever it is asked to.

Every server that has the signer's state runs it, and one of them leads. What is wrong is in `problem` and, for all
servers, in the database: none takes a change until a round of a leader has found all of it well.
"""

import asyncio
import contextlib
import time

import structlog

from animus.domain.errors import Unavailable
from animus.keyring import Keyring, KeyringError
from animus.store.engine import sqlstate
from animus.store.log import LogStore, NotLeading
from animus.store.signer_state import SignerStateError
from animus.workers.integrator import BATCH, Integrator
from animus.workers.publisher import Contradiction, Publisher

INTEGRATE_SECONDS = 0.1
PUBLISH_SECONDS = 1.0
FOLLOW_SECONDS = 0.5  # between two looks of a server that does not lead

log = structlog.get_logger("animus.leader")


class Leader:
    """Runs integrator and publisher for as long as the server does."""

    def __init__(self, store: LogStore, keyring: Keyring, integrator: Integrator, publisher: Publisher) -> None:
        self._store = store
        self._keyring = keyring
        self._integrator = integrator
        self._publisher = publisher
        self._wanted = asyncio.Event()
        self._fence = 0  # under which the database was checked; 0 for not yet
        self._next_publish = 0.0
        self.problem = ""  # why nothing can be signed; empty when all is well
        self.leads = False
        self.integrated = 0  # entries, since the start
        self.published = 0  # checkpoints, since the start

    def publish_soon(self) -> None:
        """Asks for checkpoints ahead of the next second."""
        self._wanted.set()

    async def start(self) -> None:
        """One round, before the first call is served: a database that contradicts the signer takes no change at all."""
        await self._round()

    async def run(self) -> None:
        """Runs until it is cancelled."""
        while True:
            more = await self._round()
            wait = 0.0 if more else INTEGRATE_SECONDS if self.leads else FOLLOW_SECONDS
            try:
                async with asyncio.timeout(wait):
                    await self._wanted.wait()
            except TimeoutError:
                pass

    async def finish(self) -> None:
        """Integrates and publishes what there is, and hands over: a server that stops leaves nothing waiting."""
        self._next_publish = 0.0
        while await self._round():
            self._next_publish = 0.0
        with contextlib.suppress(Unavailable):
            await self._store.hand_over()

    async def _round(self) -> bool:
        """One round; says whether there is more to integrate at once."""
        try:
            more = await self._work()
            self._say("")
            return more
        except Unavailable as error:
            self._fence, self.leads = 0, False  # whatever comes back may be another database
            log.warning("the log waits for the database", reason=error.message)
            return False
        except (Contradiction, SignerStateError, KeyringError) as error:
            problem = str(error)
        except Exception as error:
            if state := sqlstate(error):
                # Rows stand where new ones belong, or a grant is gone: the tables are not as this program left them.
                problem = f"the log cannot be written: SQLSTATE {state}"
            else:  # a defect must not end the task unseen: it is said like the others, and tried again
                log.exception("the log stands still")
                problem = "a defect of the control plane; its log has the cause"
        self._say(problem)
        try:
            await self._store.report(problem)
        except Exception as error:  # this server takes no change all the same, and tries again
            log.warning("other servers cannot be told", sqlstate=sqlstate(error), reason=str(error).partition("\n")[0])
        return False

    async def _work(self) -> bool:
        try:
            return await self._lead()
        except NotLeading:  # perhaps for a moment only; if another leads meanwhile, the fence tells
            self.leads = False
            if self.problem and await self._store.holds_lead():
                raise Contradiction(self.problem) from None  # not looked at: it stands until this server has
            return False

    async def _lead(self) -> bool:
        self._keyring.reload()
        due = self._wanted.is_set() or time.monotonic() >= self._next_publish
        self._wanted.clear()
        async with self._store.lead() as writer:
            self.leads, fence = True, writer.fence
            taken = await self._integrator.step(writer)
            if due:
                await self._integrator.step_quarantine(writer)
        self.integrated += taken
        try:
            if fence == self._fence and due:
                await self._publish()
            elif fence != self._fence:
                await self._publisher.check_all()
                await self._publish()
                await self._store.report("")
                self._fence = fence
        except (Contradiction, SignerStateError) as error:
            if await self._store.holds_lead(fence):
                raise
            # Stopped for longer than its lease, it compared what it had read before with what the other signed since.
            log.warning("another server took the lead", found=str(error))
            self._fence = 0
            raise NotLeading from None
        return taken == BATCH

    async def _publish(self) -> None:
        self._next_publish = time.monotonic() + PUBLISH_SECONDS
        self.published += await self._publisher.step()

    def _say(self, problem: str) -> None:
        if problem and problem != self.problem:
            log.error("the log cannot be signed", problem=problem)
        if problem:
            self._fence, self._next_publish = 0, 0.0  # it stands until all is checked again, and signed
        elif self.problem:
            log.warning("the log can be signed again")
        self.problem = problem
