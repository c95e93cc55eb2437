"""Child processes that do not outlive their parent, and processes that are found again after a crash.

A process is named in a file by its id and its start time, and signalled through a pidfd that was checked against both:
an id that has passed to another process is never hit.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# Runs between fork and exec. The environment is read from the kernel, because the interpreter adds to its own. A parent
# that died before prctl() sends no signal, so it is looked for afterwards.
_LAUNCH = """
import ctypes, os, sys
parent, death = int(sys.argv[1]), int(sys.argv[2])
if ctypes.CDLL(None, use_errno=True).prctl(1, death, 0, 0, 0):
    raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
if os.getppid() != parent:
    sys.exit("the parent is gone")
with open("/proc/self/environ", "rb") as file:
    pairs = [pair.partition(b"=") for pair in file.read().split(bytes(1)) if pair]
os.execve(sys.argv[3], sys.argv[3:], {name: value for name, _, value in pairs})
"""


def launch(
    command: Sequence[str], *, environment: Mapping[str, str], folder: Path, output: Path | None, death: signal.Signals
) -> "subprocess.Popen[bytes]":
    """Starts a program in a process group of its own, with this environment and no other.

    The kernel sends it `death` when the thread that called this ends. What it writes is appended to `output`, or goes
    where this process writes.
    """
    with output.open("ab") if output else contextlib.nullcontext() as file:
        return subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _LAUNCH, str(os.getpid()), str(int(death)), *command],
            env=environment,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )


def ended(process: "subprocess.Popen[bytes]", within: float) -> bool:
    """Whether a child has ended, waiting up to so many seconds; leaves its exit status for later."""
    if process.returncode is not None:
        return True
    pidfd = os.pidfd_open(process.pid)
    try:
        return _ended(pidfd, within)
    finally:
        os.close(pidfd)


def end_group(process: "subprocess.Popen[bytes]") -> int:
    """Kills what is left of a child's process group, and returns the child's exit status."""
    if process.returncode is None:  # until it is waited for, its id and its group are nobody else's
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return process.wait()


def stop(process: "subprocess.Popen[bytes]", patience: float) -> int:
    """Asks a child to end, waits so many seconds, then kills its process group. Returns its exit status."""
    if process.returncode is None:
        process.terminate()
        ended(process, patience)
    return end_group(process)


@dataclass(frozen=True, slots=True)
class Mark:
    """What names one process of this machine for all time: the boot, the process id and its start time in ticks."""

    boot: str
    pid: int
    start: str


def mark_of(pid: int) -> Mark | None:
    """The mark of a process that has not ended, or None."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = status.rpartition(")")[2].split()  # after the name, which may hold anything: state is the first
    if fields[0] in "ZX":
        return None
    return Mark(Path("/proc/sys/kernel/random/boot_id").read_text().strip(), pid, fields[19])


def write_mark(path: Path, pid: int) -> None:
    """Names a live process in a file."""
    mark = mark_of(pid)
    if mark is not None:
        path.write_text(f"{mark.boot} {mark.pid} {mark.start}\n")


def read_mark(path: Path) -> Mark | None:
    """The process that a file names, if it lives."""
    try:
        boot, pid, start = path.read_text().split()
    except (FileNotFoundError, ValueError):  # never written, or cut short by a crash
        return None
    mark = Mark(boot, int(pid), start)
    return mark if mark_of(mark.pid) == mark else None


def stop_marked(mark: Mark, number: signal.Signals, patience: float) -> bool:
    """Signals the process and waits so many seconds for its end, then kills it. False if it had ended before."""
    try:
        pidfd = os.pidfd_open(mark.pid)
    except ProcessLookupError:
        return False
    try:
        if mark_of(mark.pid) != mark:  # after pidfd_open: from here on the descriptor is of this process or none
            return False
        for each in (number, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, each)
            if _ended(pidfd, patience):
                break
        return True
    finally:
        os.close(pidfd)


def _ended(pidfd: int, within: float) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(max(0.0, within) * 1000))
