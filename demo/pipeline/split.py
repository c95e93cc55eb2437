"""Step `split`: parts the table into rows to train on and rows held out, each class in the same proportion.

A row's place is decided by a hash of the seed and the row itself: neither the order of the rows, nor a library's random
numbers, nor a row that is added later moves another row's rank.
"""

import hashlib
import sys
from fractions import Fraction
from pathlib import Path

from demo.pipeline.files import parameter, write_metrics


def part(rows: list[str], seed: str, held_out: Fraction) -> tuple[list[str], list[str]]:
    """The rows to train on and the rows held out, sorted."""
    train: list[str] = []
    test: list[str] = []
    for label in ("0", "1"):
        ranked = sorted(
            (row for row in rows if row.endswith("," + label)),
            key=lambda row: hashlib.sha256(f"{seed}:{row}".encode()).digest(),
        )
        count = int(len(ranked) * held_out)
        test += ranked[:count]
        train += ranked[count:]
    return sorted(train), sorted(test)


def main() -> int:
    """Writes both parts."""
    _, *rows = Path("inputs/measurements/tumours.csv").read_text().splitlines()
    train, test = part(rows, parameter("seed"), Fraction(parameter("test_fraction")))
    Path("outputs/train").write_text("\n".join(train) + "\n")
    Path("outputs/test").write_text("\n".join(test) + "\n")
    write_metrics({"train_rows": len(train), "test_rows": len(test)})
    return 0


if __name__ == "__main__":
    sys.exit(main())
