"""How the steps read and write: numbers as decimals with 9 significant digits, JSON in one spelling."""

import json
import math
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path

SIGNIFICANT_DIGITS = 9  # what the arithmetic of different processors agrees on, with room to spare


def decimal(number: float) -> str:
    """A number as a decimal in its one spelling: 9 significant digits, no exponent, no needless zero."""
    if not math.isfinite(number):
        raise ValueError(f"{number} is no number to write down")
    text = format(Decimal(f"{number:.{SIGNIFICANT_DIGITS}g}"), "f")
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def parameter(name: str) -> str:
    """The value of a parameter of the run."""
    return str(json.loads(Path("parameters.json").read_text())[name])


def write_json(path: str, tree: object) -> None:
    """Writes a tree of texts and whole numbers in its one spelling: sorted keys, no spaces."""
    Path(path).write_text(json.dumps(tree, sort_keys=True, separators=(",", ":")) + "\n")


def write_metrics(metrics: Mapping[str, float]) -> None:
    """Writes the metrics of the step."""
    write_json("metrics.json", {name: decimal(value) for name, value in metrics.items()})
