"""Step `train`: a logistic regression on standardised features, and the same model on shuffled labels as controls.

The controls show what this training reaches on this data when there is nothing to learn. One would not do: the features
are so alike that a single model of noise ranks the held-out rows anywhere between very badly and rather well.

The model is written as decimals in JSON: nothing in it runs when it is loaded.
"""

import sys

import numpy as np
from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]
from sklearn.preprocessing import StandardScaler  # type: ignore[import-untyped]

from demo.pipeline.files import decimal, parameter, write_json, write_metrics
from demo.pipeline.table import Numbers, read_table


def fit(features: Numbers, labels: Numbers, inverse_regularisation: float) -> LogisticRegression:
    """The model of standardised features, solved until no written digit changes."""
    model = LogisticRegression(C=inverse_regularisation, solver="newton-cholesky", tol=1e-10, max_iter=1000)
    return model.fit(features, labels)


def weights(model: LogisticRegression) -> dict[str, object]:
    """What a fitted model is, in decimals."""
    return {"coefficients": [decimal(value) for value in model.coef_[0]], "intercept": decimal(model.intercept_[0])}


def main() -> int:
    """Writes the model and its controls."""
    features, labels = read_table("inputs/train")
    seed, controls = int(parameter("seed")), int(parameter("controls"))
    inverse_regularisation = float(parameter("inverse_regularisation"))
    scaler = StandardScaler().fit(features)
    scaled = scaler.transform(features)
    model = fit(scaled, labels, inverse_regularisation)
    scaling = {
        "means": [decimal(value) for value in scaler.mean_],
        "scales": [decimal(value) for value in scaler.scale_],
        "rows": len(labels),
        "positives": int(labels.sum()),
    }
    write_json("outputs/model", {"schema": "demo.logistic_regression/v1", "scaling": scaling, **weights(model)})
    write_json(
        "outputs/controls",
        {
            "schema": "demo.shuffled_label_controls/v1",
            "models": [
                weights(fit(scaled, np.random.default_rng([seed, k]).permutation(labels), inverse_regularisation))
                for k in range(controls)
            ],
        },
    )
    write_metrics(
        {"training_accuracy": float(model.score(scaled, labels)), "newton_iterations": float(model.n_iter_[0])}
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
