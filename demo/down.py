"""`make demo-down`: stops what a demo that crashed has left; no process that is not shown to be the demo's."""

import argparse
import shutil
import signal
import sys
from pathlib import Path

from demo.processes import mark_of, read_mark, stop_marked
from demo.stack import stop_left
from demo.state import MARKER, DemoError, choose_folder


def stop_demo(folder: Path) -> list[str]:
    """Stops the demo that works in the folder, its children and its PostgreSQL. Says which of them there were."""
    stopped = []
    demo = read_mark(folder / "lock")
    if demo is not None and stop_marked(demo, signal.SIGTERM, 90):
        stopped.append(f"demo (process {demo.pid})")
    stopped += stop_left(folder)
    cluster = folder / "server" / "pg"
    try:
        pid = int((cluster / "postmaster.pid").read_text().partition("\n")[0])
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except FileNotFoundError:
        return stopped
    postmaster = mark_of(pid)
    # Its file may be stale and its id another's: only a process that was started on this cluster is meant.
    if postmaster is not None and str(cluster) in arguments and stop_marked(postmaster, signal.SIGINT, 30):
        stopped.append(f"PostgreSQL (process {pid})")
    return stopped


def main() -> int:
    """Runs the command line. Exits with 0 unless the folder is not a demo's."""
    parser = argparse.ArgumentParser(prog="demo-down", description="Stops what a demo that crashed has left.")
    parser.add_argument("--state", type=Path, help="the demo's folder; without it, the one that a demo would choose")
    parser.add_argument("--purge", action="store_true", help="remove the folder too, records and all")
    options = parser.parse_args()
    try:
        folder: Path = (options.state or choose_folder()).resolve()
        if not (folder / MARKER).exists():
            print(f"no demo has worked in {folder}: nothing to do")
            return 0
        for each in stop_demo(folder):
            print(f"stopped: {each}")
        if options.purge:
            shutil.rmtree(folder)
            print(f"removed: {folder}")
        print("nothing of the demo runs")
    except (DemoError, OSError) as error:
        print(f"demo-down: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
