"""The tables that `split` writes, as arrays."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float64]


def read_table(path: str) -> tuple[Numbers, Numbers]:
    """Features by row, and the class of each row: 0 or 1."""
    rows = [line.split(",") for line in Path(path).read_text().splitlines()]
    return (
        np.array([[float(value) for value in row[:-1]] for row in rows]),
        np.array([float(row[-1]) for row in rows]),
    )
