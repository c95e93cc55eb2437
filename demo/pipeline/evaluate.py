"""Step `evaluate`: measures the model on the held-out rows, beside what chance would reach.

Only numpy and the model's JSON are used, not the library that trained it. Two comparisons say what chance is worth:
always answering the larger class of the training rows, and the controls, trained in the same way on shuffled labels.
`permutation_p` is the share of models, this one and the controls, that are at least as accurate as this one.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from demo.pipeline.files import write_json, write_metrics
from demo.pipeline.table import Numbers, read_table


def scores(model: dict[str, Any], scaling: dict[str, Any], features: Numbers) -> Numbers:
    """The log-odds of class 1 for each row."""
    scaled = (features - np.array(scaling["means"], float)) / np.array(scaling["scales"], float)
    return np.asarray(scaled @ np.array(model["coefficients"], float) + float(model["intercept"]))


def accuracy(labels: Numbers, log_odds: Numbers) -> float:
    """Share of rows whose class is the likelier one."""
    return float(np.mean((log_odds > 0) == (labels == 1)))


def roc_auc(labels: Numbers, log_odds: Numbers) -> float:
    """Chance that a row of class 1 scores above a row of class 0; a tie counts half (Mann-Whitney)."""
    positive, negative = log_odds[labels == 1][:, None], log_odds[labels == 0][None, :]
    return float(np.mean((positive > negative) + 0.5 * (positive == negative)))


def log_loss(labels: Numbers, log_odds: Numbers) -> float:
    """Mean negative log-likelihood in nats."""
    return float(np.mean(np.logaddexp(0, np.where(labels == 1, -log_odds, log_odds))))


def main() -> int:
    """Writes the evaluation and its metrics."""
    features, labels = read_table("inputs/test")
    model = json.loads(Path("inputs/model").read_text())
    controls = json.loads(Path("inputs/controls").read_text())["models"]
    scaling = model["scaling"]
    log_odds = scores(model, scaling, features)
    share = scaling["positives"] / scaling["rows"]
    always = np.full_like(labels, np.log(share / (1 - share)))  # the larger class, as sure as it is frequent
    shuffled = [scores(control, scaling, features) for control in controls]
    control_accuracies = [accuracy(labels, each) for each in shuffled]
    reached = sum(each >= accuracy(labels, log_odds) for each in control_accuracies)
    metrics = {
        "accuracy": accuracy(labels, log_odds),
        "roc_auc": roc_auc(labels, log_odds),
        "log_loss": log_loss(labels, log_odds),
        "baseline_accuracy": accuracy(labels, always),
        "baseline_log_loss": log_loss(labels, always),
        "control_accuracy_mean": float(np.mean(control_accuracies)),
        "control_accuracy_max": float(np.max(control_accuracies)),
        "control_roc_auc_mean": float(np.mean([roc_auc(labels, each) for each in shuffled])),
        "permutation_p": (1 + reached) / (1 + len(controls)),
    }
    write_metrics(metrics)
    predicted = log_odds > 0
    write_json(
        "outputs/evaluation",
        {
            "schema": "demo.evaluation/v1",
            "rows": len(labels),
            "confusion": [
                {"class": c, "predicted": p, "rows": int(np.sum((labels == c) & (predicted == bool(p))))}
                for c in (0, 1)
                for p in (0, 1)
            ],
            "metrics": json.loads(Path("metrics.json").read_text()),
        },
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
