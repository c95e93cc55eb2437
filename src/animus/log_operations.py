"""What an operator does to the log beside a server that is stopped, or that shares its database and its log folder.

Each of these is a change like any other, on the record of the projects that it concerns, by the principal `operator`:
whoever has the log's private key and the database's password.
"""

import asyncio
import base64
import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy.ext.asyncio import AsyncEngine

from animus.codec import encode
from animus.config import Settings
from animus.domain import merkle
from animus.domain.access import Role, principal_of
from animus.domain.document import seal
from animus.domain.errors import NotFound
from animus.domain.log import FIRST_EPOCH, LogEpoch, LogForfeit, LogKey, LogKeyEnd, LogKeyStatus
from animus.domain.merkle import EMPTY_RANGE, CompactRange
from animus.domain.names import INSTANCE_LOG, SYSTEM_PROJECT, project_name
from animus.domain.project import Project
from animus.files import create_private
from animus.keyring import KEY_FILE, Keyring
from animus.server import SIGNER_STATE_FILE, log_folder, new_id, open_database
from animus.signing import dump_signing_key, generate_signing_key, load_signing_key
from animus.store.filter import order_of
from animus.store.log import KeyFacts, LogStore, LogWriter, NotLeading
from animus.store.signer_state import SignerState
from animus.store.unit_of_work import Call, Change, UnitOfWork, View
from animus.v1 import log_pb2 as pb
from animus.workers.integrator import BATCH, Integrator

LEAD_SECONDS = 5.0
PAGE = 500
NEXT_KEY_FILE = "log.key.next"

Result = TypeVar("Result")


class OperationRefused(RuntimeError):
    """What was asked for cannot be done now; the text is one line that says why and what to do."""


@dataclass(frozen=True, slots=True)
class Opened:
    """The log, opened by an operator."""

    work: UnitOfWork
    store: LogStore
    keyring: Keyring
    folder: Path
    engine: AsyncEngine  # of the service role
    owner_url: str  # of the database's owner; empty where the settings have none


@asynccontextmanager
async def opened(settings: Settings, *, new_key: bool = False) -> AsyncIterator[Opened]:
    """The log of the settings' database and folder. With `new_key` a key is made where there is none."""
    data_dir = settings.data_dir.absolute()
    folder = log_folder(settings)
    async with AsyncExitStack() as stack:
        engine, postgres = await open_database(stack, settings, data_dir)
        store = LogStore(engine, f"operator/{new_id()}")
        facts = await store.keys()
        if not facts:
            raise OperationRefused("this database has no log yet: start the server once")
        if new_key and not (folder / KEY_FILE).exists():
            Keyring.create(folder, facts[0].key.value.instance_name)
        keyring = Keyring(folder)
        owner_url = postgres.owner_url if postgres else settings.owner_database_url.get_secret_value()
        yield Opened(UnitOfWork(engine, new_id, keyring.seal, None), store, keyring, folder, engine, owner_url)
        await store.hand_over()


async def open_epoch(settings: Settings, reason: str, *, new_key: bool) -> int:
    """Opens a new epoch of all logs, which go on from what the database has now, and returns its number.

    Each project's log records what had been signed before and what is left of it. The signer's state comes last: if
    this is cut short, the log stays as it was, and the next call does it anew. With `new_key`, a lost key is replaced.
    """
    async with opened(settings, new_key=new_key) as log:
        state_file = log.folder / SIGNER_STATE_FILE
        state = SignerState(state_file) if state_file.exists() else None
        heads = state.heads() if state else None
        epoch = max(await log.store.epoch(), state.epoch() if state else FIRST_EPOCH) + 1
        trees = await _trees(log)
        after: tuple[str | int, ...] = ()
        by_id = order_of(Project, (), ("project_id",))
        while page := await log.work.select_projects(None, None, by_id, after, PAGE):
            for project, _ in page:
                if project.value.project_id != SYSTEM_PROJECT:
                    name = project.value.project_id
                    await _write(log, name, "log.epoch", [_epoch_of(name, epoch, heads, trees, reason)], reason)
            after = page[-1][1]
        records: list[Any] = [_epoch_of(name, epoch, heads, trees, reason) for name in (SYSTEM_PROJECT, INSTANCE_LOG)]
        known = {facts.key.value.public_key for facts in await log.store.keys()}
        records += [
            LogKey(log.keyring.instance_name, key) for key in log.keyring.public_keys if new_key and key not in known
        ]
        await _write(log, SYSTEM_PROJECT, "log.epoch", records, reason)
        # From here on the old heads are of a closed epoch; a crash before this line is what the leader names.
        (state or SignerState.create(state_file, epoch)).open_epoch(epoch)
        return epoch


async def rotate_key(settings: Settings) -> str:
    """Adds a new current key, beside which the others go on signing, and returns its public key in base64.

    The new key is kept in a file of its own until the database knows of it, so that a crash at any point leaves a log
    that can be signed; the next call goes on with the same key.
    """
    async with opened(settings) as log:
        waiting = log.folder / NEXT_KEY_FILE
        made = generate_signing_key(log.keyring.instance_name, secrets.token_bytes)
        create_private(waiting, dump_signing_key(made) + "\n")
        key = load_signing_key(waiting.read_text().strip())
        public_key = base64.b64encode(key.public_key).decode()
        await _write(log, SYSTEM_PROJECT, "key.rotate", [LogKey(key.name, public_key)], "")
        log.keyring.reload()
        if public_key not in log.keyring.public_keys:
            log.keyring.write([key, *log.keyring.keys])
        waiting.unlink()
        return public_key


async def end_key(settings: Settings, public_key: str, status: LogKeyStatus, reason: str) -> None:
    """Ends the use of a key: retired, what it signed stays good; revoked, nothing by it is to be trusted."""
    async with opened(settings) as log:
        if public_key not in {facts.key.value.public_key for facts in await log.store.keys()}:
            raise OperationRefused(f"the log has no key {public_key}: animus log key list shows them")
        left = [key for key in log.keyring.keys if base64.b64encode(key.public_key).decode() != public_key]
        if not left:
            raise OperationRefused(f"{public_key} is the only key: rotate first")
        action = "key.retire" if status is LogKeyStatus.RETIRED else "key.revoke"
        await _write(log, SYSTEM_PROJECT, action, [LogKeyEnd(public_key, status, reason)], reason)
        if len(left) < len(log.keyring.keys):
            log.keyring.write(left)


async def list_keys(settings: Settings) -> list[tuple[KeyFacts, bool]]:
    """Every key of the log, and whether its private half is in the folder."""
    async with opened(settings) as log:
        return [(facts, facts.key.value.public_key in log.keyring.public_keys) for facts in await log.store.keys()]


async def forfeit(settings: Settings, project_id: str, entry_id: str, reason: str) -> None:
    """Gives up an entry in quarantine whose bytes cannot be repaired. The leader takes it out of quarantine."""
    async with opened(settings) as log:
        rows = await _lead(log, lambda writer: writer.quarantined())
        for row, _ in rows:
            if (row.project_id, row.entry_id) == (project_id, entry_id):
                record = LogForfeit(entry_id, row.leaf_hash.hex(), reason)
                return await _write(log, project_id, "log.forfeit", [record], reason)
        raise OperationRefused(f"no entry {entry_id} of project {project_id} is in quarantine")


async def _trees(log: Opened) -> dict[str, CompactRange]:
    """The trees of all logs, once everything in the queue has its index."""
    integrator = Integrator(log.keyring)
    while await _lead(log, integrator.step) == BATCH:
        pass
    return await _lead(log, lambda writer: writer.every_tree())


async def _lead(log: Opened, work: Callable[[LogWriter], Awaitable[Result]]) -> Result:
    """Runs work as the leader. Raises OperationRefused while a server leads and renews."""
    loop = asyncio.get_running_loop()
    end = loop.time() + LEAD_SECONDS
    while loop.time() < end:
        try:
            async with log.store.lead() as writer:
                return await work(writer)
        except NotLeading:
            await asyncio.sleep(0.2)
    raise OperationRefused("a server keeps this log: stop every server of this database first")


def _epoch_of(
    log_id: str, epoch: int, heads: dict[str, CompactRange] | None, trees: dict[str, CompactRange], reason: str
) -> LogEpoch:
    tree = trees.get(log_id, EMPTY_RANGE)
    head = None if heads is None else heads.get(log_id, EMPTY_RANGE)
    return LogEpoch(
        project_id=log_id,
        epoch=epoch,
        size=tree.size,
        root_hash=merkle.root(tree).hex(),
        signed_size=-1 if head is None else head.size,
        signed_root_hash="" if head is None else merkle.root(head).hex(),
        reason=reason,
    )


async def _write(log: Opened, project_id: str, action: str, records: Sequence[Any], reason: str) -> None:
    """One change with those of these records that are not there yet."""

    async def decide(view: View) -> Change:
        if not view.project_known:
            raise NotFound("PROJECT_UNKNOWN", "there is no such project", kind="Project", name=project_name(project_id))
        sealed = [seal(record) for record in records]
        new = [each for each in sealed if await view.find(type(each.value), digest=each.digest) is None]
        return Change(
            action, f"{project_name(project_id)}/log", tuple(new), (), encode(records[0], _MESSAGES[type(records[0])]())
        )

    request = json.dumps({"action": action, "digests": [seal(record).digest for record in records], "reason": reason})
    call = Call(
        method=f"animus.operator/{action}",
        project_id=project_id,
        principal=principal_of("operator", Role.INSTANCE_ADMIN, SYSTEM_PROJECT),
        request_id=secrets.token_hex(16),
        validate_only=False,
        request=request.encode(),
    )
    await log.work.change(call, decide)


_MESSAGES: dict[type, type[Any]] = {
    LogEpoch: pb.LogEpoch,
    LogKey: pb.LogKey,
    LogKeyEnd: pb.LogKeyEnd,
    LogForfeit: pb.LogForfeit,
}
