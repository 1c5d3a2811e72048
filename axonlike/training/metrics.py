"""Metrics of predictions: pure states that merge, each equal to scikit-learn's.

In `al.train_step(..., metrics=...)` and `al.evaluate` they see a model's predictions and
the batch's targets. By hand: `state = metric.update(predictions, targets)`, then
`metric.merge(a, b)` and `metric.compute(state)`.
"""

from axonlike.training.classes import auroc, confusion_matrix, f1, precision, recall
from axonlike.training.means import (
    accuracy,
    mean,
    mean_absolute_error,
    mean_squared_error,
    perplexity,
    r2,
    root_mean_squared_error,
    top_k,
)
from axonlike.training.metric import Metric

__all__ = [
    "Metric",
    "accuracy",
    "auroc",
    "confusion_matrix",
    "f1",
    "mean",
    "mean_absolute_error",
    "mean_squared_error",
    "perplexity",
    "precision",
    "r2",
    "recall",
    "root_mean_squared_error",
    "top_k",
]
