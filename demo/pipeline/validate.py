"""Step `validate`: refuses a table that is not what the later steps rely on, and reports what it holds.

The table has a first line with the names of its columns, then one line for each tumour: the features, and its class,
which is 1 for benign and 0 for malignant. The password of the table's source is only looked for: the demo's copy has no
login, a real step would use it there.
"""

import csv
import math
import os
import sys
from collections import Counter
from pathlib import Path

from demo.pipeline.files import decimal, write_json, write_metrics

CLASS = "benign"
CLASSES = {"0": "malignant", "1": "benign"}


def problems(header: list[str], rows: list[list[str]]) -> list[str]:
    """What is wrong with the table, in words; nothing if all is well."""
    if header[-1] != CLASS:
        return [f"the last column is not {CLASS!r}"]
    width = len(header)
    found = []
    for line, row in enumerate(rows, start=2):
        if len(row) != width:
            found.append(f"line {line}: {len(row)} values instead of {width}")
        elif row[-1] not in CLASSES:
            found.append(f"line {line}: the class is {row[-1]!r}")
        elif not all(is_measurement(value) for value in row[:-1]):
            found.append(f"line {line}: a value that is no measurement")
    repeated = [line for line, count in Counter(map(tuple, rows)).items() if count > 1]
    if repeated:
        found.append(f"{len(repeated)} rows stand more than once")
    if {row[-1] for row in rows} != CLASSES.keys():
        found.append("one of the two classes is missing")
    return found


def is_measurement(text: str) -> bool:
    """Whether a text is a finite number of at least 0."""
    try:
        return 0 <= float(text) < math.inf
    except ValueError:
        return False


def main() -> int:
    """Writes the report, or says what is wrong."""
    if not os.environ.get("SOURCE_PASSWORD"):
        print("SOURCE_PASSWORD is not set", file=sys.stderr)
        return 1
    with Path("inputs/measurements/tumours.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    found = problems(header, rows)
    for problem in found[:20]:
        print(problem, file=sys.stderr)
    if found:
        return 1
    classes = Counter(row[-1] for row in rows)
    features = [sorted(float(row[index]) for row in rows) for index in range(len(header) - 1)]
    write_json(
        "outputs/report",
        {
            "schema": "demo.validation_report/v1",
            "rows": len(rows),
            "classes": [{"name": CLASSES[c], "rows": classes[c]} for c in sorted(classes)],
            "ranges": [{"least": decimal(values[0]), "most": decimal(values[-1])} for values in features],
        },
    )
    write_metrics({"rows": len(rows), "features": len(features), "benign_share": classes["1"] / len(rows)})
    return 0


if __name__ == "__main__":
    sys.exit(main())
