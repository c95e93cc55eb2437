"""Where the demo keeps what it makes: one folder, one demo at a time.

animus-demo                 says that the folder is the demo's; without it nothing is removed
lock                        held by the running demo, and names it
server.pid, runner.pid      name the children (demo/processes.py)
server/                     the server's data directory, with the embedded PostgreSQL and the admin token
server.log                  what the server wrote
data/                       the dataset, copied from the package that ships it
runs/, artifacts/           the runner's (demo/runner.py)
runner.token                the runner's API token, 0600, and
token.json                  its registration, without the token
secrets/                    what the secretRefs of the pipeline name, 0600: made up, and never sent
run.json                    the request that created the run, until the run has ended
"""

import fcntl
import hashlib
import os
import stat
import tempfile
from pathlib import Path

from animus.store.embedded import usable_by_postgres
from demo.processes import read_mark, write_mark

CHECKOUT = Path(__file__).resolve().parents[1]
MARKER = "animus-demo"


class DemoError(RuntimeError):
    """The demo cannot go on; the text is one line that says why, and what to do."""


def choose_folder() -> Path:
    """`.demo` in the checkout, or a folder under the temporary directory or /var/lib where PostgreSQL can work.

    As root, PostgreSQL runs as another account, which may not be able to enter the checkout.
    """
    name = f"{MARKER}-{os.geteuid()}-{hashlib.sha256(os.fsencode(CHECKOUT)).hexdigest()[:12]}"
    choices = [CHECKOUT / ".demo", Path(tempfile.gettempdir()) / name, Path("/var/lib") / name]
    reasons = []
    for choice in choices:
        reason = usable_by_postgres(choice / "server")
        if reason is None:
            return choice
        reasons.append(reason)
    raise DemoError(f"no folder for the demo: {reasons[0]}")


def make_folder(folder: Path) -> None:
    """Makes the demo's folder, or checks that it is ours: in a shared directory another user may have made it."""
    try:
        # As root others may pass through, because PostgreSQL's account must; what they must not read is 0600 or 0700.
        folder.mkdir(mode=0o711 if os.geteuid() == 0 else 0o700)
        (folder / MARKER).touch(mode=0o600)
    except FileExistsError:
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
            raise DemoError(f"{folder} is not a folder that only you may write to: move it away") from None
        if not (folder / MARKER).exists() and any(folder.iterdir()):
            raise DemoError(f"{folder} holds something else than a demo: move it away") from None
        (folder / MARKER).touch(mode=0o600)


def take_lock(folder: Path) -> int:
    """Takes the folder for this process until the descriptor is closed. Raises DemoError naming who holds it."""
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        holder = read_mark(folder / "lock")
        raise DemoError(f"a demo runs already (process {holder.pid if holder else 'unknown'}): stop it first") from None
    write_mark(folder / "lock", os.getpid())
    return descriptor
