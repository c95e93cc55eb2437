"""Digests against `sha256sum` on the same data: `python -m benchmarks.hashing [--gb N] [--rounds N] [--folder PATH]`.

One large file, and a folder of 10,000 small ones. Where there is `openssl`, which uses the processor's instructions for
SHA-256 as Python does and `sha256sum` may not, it is measured on the large file too. Each round measures both programs,
the other one first each time; the files were read once before, so that neither meets a colder cache. Medians go to
stdout as JSON. The files are removed.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

GB = 10**9
BLOCK_BYTES = 1 << 20
FILES = 10_000
FILE_BYTES = 50_000
SPARE_BYTES = 2 * GB  # of the disk, for others

# Each is a process of its own, as sha256sum is; what it says of its memory is the most that it had.
HASH = """
import resource, sys, time
from pathlib import Path
from animus.sdk.hashing import content
began = time.perf_counter()
digest = content(Path(sys.argv[1])).digest
print(digest, time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def fill(path: Path, size: int, seed: int) -> None:
    """Writes a file of so many bytes; another seed makes others."""
    block = bytes((seed * 31 + index * 7) % 251 for index in range(4_093)) * (BLOCK_BYTES // 4_093 + 1)
    with path.open("wb") as file:
        while size > 0:
            size -= file.write(block[:size])


def seconds(command: list[str]) -> float:
    """How long a command runs that must succeed."""
    began = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)  # noqa: S603 (our own command)
    return time.perf_counter() - began


def ours(path: Path) -> tuple[float, float, float]:
    """Seconds of a whole process, seconds of its hashing alone, and its peak memory in MB."""
    began = time.perf_counter()
    said = subprocess.check_output([sys.executable, "-c", HASH, path], text=True)  # noqa: S603 (our own program)
    whole = time.perf_counter() - began
    _, alone, peak_kb = said.split()
    return whole, float(alone), int(peak_kb) * 1_024 / 1e6


def with_openssl(path: Path, rounds: int) -> dict[str, Any]:
    """The median of openssl's times, if there is openssl."""
    program = shutil.which("openssl")
    if program is None:
        return {}
    found = statistics.median(seconds([program, "dgst", "-sha256", str(path)]) for _ in range(rounds))
    return {"openssl seconds": round(found, 3)}


def measure(path: Path, sha256sum: list[str], rounds: int) -> dict[str, Any]:
    """Medians of both on the same data."""
    seconds(sha256sum)
    theirs: list[float] = []
    mine: list[tuple[float, float, float]] = []
    turns: list[Callable[[], None]] = [
        lambda: theirs.append(seconds(sha256sum)),
        lambda: mine.append(ours(path)),
    ]
    for index in range(rounds):
        for turn in turns if index % 2 else reversed(turns):
            turn()
    whole, alone, peak = (statistics.median(each) for each in zip(*mine, strict=True))
    base = statistics.median(theirs)
    return {
        "sha256sum seconds": round(base, 3),
        "seconds": round(whole, 3),
        "seconds of hashing": round(alone, 3),
        "ratio": round(whole / base, 2),
        "ratio of hashing": round(alone / base, 2),
        "peak MB": round(peak, 1),
    }


def run(folder: Path, size: int, rounds: int) -> dict[str, Any]:
    """Both kinds of data, below a folder that is empty."""
    large, small = folder / "large", folder / "small"
    fill(large, size, 1)
    measured = measure(large, ["sha256sum", str(large)], rounds)
    found = {"large file": {"GB": size / GB, **measured, **with_openssl(large, rounds)}}
    large.unlink()
    small.mkdir()
    for index in range(FILES):
        fill(small / f"{index:05}", FILE_BYTES, index)
    command = ["sh", "-c", 'find "$1" -type f -print0 | xargs -0 -P2 sha256sum', "sh", str(small)]
    found["folder"] = {"files": FILES, "GB": FILES * FILE_BYTES / GB, **measure(small, command, rounds)}
    return {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
        "load": round(os.getloadavg()[0], 1),
        "rounds": rounds,
        **found,
    }


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.hashing", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--gb", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    given = parser.parse_args()
    size = int(given.gb * GB)
    needed = max(size, FILES * FILE_BYTES * 2) + SPARE_BYTES
    free = shutil.disk_usage(given.folder).free
    if free < needed:
        parser.error(f"{given.folder} has {free / GB:.1f} GB free; {needed / GB:.1f} GB are needed")
    with tempfile.TemporaryDirectory(prefix="animus-hashing-", dir=given.folder) as folder:
        print(json.dumps(run(Path(folder), size, given.rounds), indent=2))


if __name__ == "__main__":
    main()
