"""A profile of a table larger than its memory limit: `python -m benchmarks.profile [--rows N] [--memory-limit M]`.

The same rows as CSV and as Parquet, each profiled in a process of its own: a number of few values, one of which every
value is another, a float, and a text. What a process says of its memory is the most that it had. Seconds and
megabytes go to stdout as JSON. The files are removed.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

PROFILE = """
import resource, sys, time
from pathlib import Path
from animus.sdk.hashing import content
from animus.sdk.profile import profile
path, limit = Path(sys.argv[1]), sys.argv[2]
found = content(path)
began = time.perf_counter()
made = profile(path, "data", found, [], [], {}, memory_limit=limit, scratch=path.parent)
assert made.row_count == int(sys.argv[3])
print(time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def fill(folder: Path, rows: int) -> list[Path]:
    """Writes the rows in both formats."""
    import duckdb

    paths = [folder / "rows.csv", folder / "rows.parquet"]
    with duckdb.connect(config={"memory_limit": "500MB", "temp_directory": str(folder)}) as connection:
        for path in paths:
            connection.execute(
                "COPY (SELECT i % 50 AS few, i AS every, hash(i)::DOUBLE / 1e10 AS x, 'name-' || hash(i * 7) AS t"
                f" FROM range({rows}) r(i)) TO '{path}'"
            )
    return paths


def measure(path: Path, limit: str, rows: int) -> dict[str, Any]:
    """How long a profile takes, and the most memory of its process."""
    said = subprocess.check_output([sys.executable, "-c", PROFILE, path, limit, str(rows)], text=True)  # noqa: S603
    seconds, peak_kb = said.split()
    size = path.stat().st_size / 1e6
    return {
        "MB": round(size),
        "seconds": round(float(seconds), 1),
        "MB a second": round(size / float(seconds), 1),
        "peak MB": round(int(peak_kb) * 1_024 / 1e6),
    }


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.profile", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=4_000_000)
    parser.add_argument("--memory-limit", default="50MB")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="animus-profile-", dir=given.folder) as folder:
        found = {
            path.suffix[1:]: measure(path, given.memory_limit, given.rows) for path in fill(Path(folder), given.rows)
        }
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    said = {"machine": machine, "load": round(os.getloadavg()[0], 1), "memory limit": given.memory_limit}
    print(json.dumps({**said, "rows": given.rows, **found}, indent=2))


if __name__ == "__main__":
    main()
