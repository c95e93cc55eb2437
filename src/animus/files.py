"""Files that keep secrets or promises: readable by their owner only, whole or not there, and durable."""

import os
import secrets
from pathlib import Path


def write_private(path: Path, text: str) -> None:
    """Writes a file, or replaces it."""
    scratch = _scratch(path, text)
    scratch.rename(path)
    sync_folder(path.parent)


def create_private(path: Path, text: str) -> bool:
    """Writes a file unless there is one; of several that do it at once, one writes it. Says whether it was this one."""
    scratch = _scratch(path, text)
    try:
        os.link(scratch, path)
    except FileExistsError:
        return False
    finally:
        scratch.unlink()
    sync_folder(path.parent)
    return True


def scratch_beside(path: Path) -> Path:
    """A name in the same folder that nobody else has: the number of a process is the same in each container."""
    return path.with_name(f"{path.name}.{secrets.token_hex(8)}")


def _scratch(path: Path, text: str) -> Path:
    scratch = scratch_beside(path)
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    return scratch


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
