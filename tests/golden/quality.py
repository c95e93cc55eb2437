"""What follows from the golden rule and profiles, and must follow from them for ever.

PYTHONPATH=src python tests/golden/quality.py   writes the files that `quality/` lacks; changes none
"""

import sys
from pathlib import Path

from animus.domain import document
from animus.domain.quality import QualityProfile, load_rule
from animus.domain.quality_evaluation import evaluate

HERE = Path(__file__).parent / "quality"
TIME = "2026-01-02T03:04:05.678901Z"


def expected() -> dict[str, bytes]:
    """The files that follow from `rule.yaml`, `profile.json` and `reference.json`, by name."""
    texts = {name: (HERE / name).read_bytes() for name in ("profile.json", "reference.json")}
    profiles = {name: document.load(each, QualityProfile) for name, each in texts.items()}
    rule = document.seal(load_rule((HERE / "rule.yaml").read_bytes()))
    evaluation = evaluate(
        "p",
        rule.value,
        rule.digest,
        profiles["profile.json"],
        document.digest(texts["profile.json"]),
        {document.digest(texts["reference.json"]): profiles["reference.json"]},
        TIME,
    )
    found = {"rule.json": rule.document, "evaluation.json": document.dump(evaluation)}
    lines = [f"{name}  {document.digest(each)}\n" for name, each in sorted((texts | found).items())]
    return found | {"digests": "".join(lines).encode()}


if __name__ == "__main__":
    for name, content in expected().items():
        if not (HERE / name).exists():
            (HERE / name).write_bytes(content)
            sys.stdout.write(f"wrote quality/{name}\n")
