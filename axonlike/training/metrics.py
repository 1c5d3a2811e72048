"""Metrics of predictions: pure states that merge, each equal to scikit-learn's.

In `al.train_step(..., metrics=...)` and `al.evaluate` they see a model's predictions and
the batch's targets. By hand: `state = metric.update(predictions, targets)`, then
`metric.merge(a, b)` and `metric.compute(state)`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from axonlike.errors import ShapeError
from axonlike.spec import show
from axonlike.training.batch import over
from axonlike.training.metric import Metric
from axonlike.types import Array, PyTree

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


# --- means


@cache
def mean(function: Callable[[Any, Any], Any], name: str = "mean") -> Metric:
    """The mean of `function(predictions, targets)`, one number an example or element.

    Args:
        function: returns an array whose first axis is that of examples.
        name: in logs.

    Shapes:
        value: a scalar of float32.

    Example:
        >>> import jax.numpy as jnp, axonlike as al
        >>> metric = al.metrics.mean(lambda y, targets: jnp.abs(y - targets), "error")
        >>> state = metric.update(jnp.array([1.0, 2.0]), jnp.array([1.0, 5.0]))
        >>> float(metric.compute(state))
        1.5
    """

    def update(
        predictions: PyTree, targets: PyTree, mask: Array | None = None
    ) -> PyTree:
        values = jnp.asarray(function(predictions, targets))
        return _mean_state(name, values.astype(jnp.float32), mask)

    return Metric(name, update, merge_means, value_of_mean)


def _mean_state(name: str, values: Array, mask: Array | None) -> PyTree:
    keep = _kept(name, values, mask)
    weight = jnp.sum(keep, dtype=jnp.float32)
    total = jnp.sum(jnp.where(keep, values, jnp.float32(0)))
    return {"mean": total / jnp.maximum(weight, jnp.float32(1)), "weight": weight}


def _kept(name: str, values: Any, mask: Any) -> Array:
    """Which elements count, at the full shape."""
    if mask is None:
        return jnp.ones(values.shape, bool)
    return over(jnp.asarray(mask), values.shape, name)


def merge_means(a: Any, b: Any) -> Any:
    """Two means as one, each by its weight."""
    weight = a["weight"] + b["weight"]
    part = b["weight"] / jnp.maximum(weight, jnp.float32(1))
    return {"mean": a["mean"] + (b["mean"] - a["mean"]) * part, "weight": weight}


def value_of_mean(state: Any) -> Array:
    """The mean; of nothing, not a number."""
    return jnp.where(state["weight"] > 0, state["mean"], jnp.float32(np.nan))


@cache
def mean_squared_error() -> Metric:
    """The mean of squared errors, over all elements.

    Shapes:
        predictions, targets: the same; floating point.

    Example:
        >>> import jax.numpy as jnp, axonlike as al
        >>> metric = al.metrics.mean_squared_error()
        >>> float(metric.compute(metric.update(jnp.zeros(4), jnp.full(4, 3.0))))
        9.0
    """
    return mean(_squared, "mean_squared_error")


@cache
def root_mean_squared_error() -> Metric:
    """The root of the mean of squared errors, over all elements.

    Shapes:
        predictions, targets: the same; floating point.

    Example:
        >>> import jax.numpy as jnp, axonlike as al
        >>> metric = al.metrics.root_mean_squared_error()
        >>> float(metric.compute(metric.update(jnp.zeros(4), jnp.full(4, 3.0))))
        3.0
    """

    def compute(state: Any) -> Array:
        return jnp.sqrt(value_of_mean(state))

    squared = mean(_squared, "root_mean_squared_error")
    return squared._replace(compute=compute)


@cache
def mean_absolute_error() -> Metric:
    """The mean of absolute errors, over all elements.

    Shapes:
        predictions, targets: the same; floating point.

    Example:
        >>> import jax.numpy as jnp, axonlike as al
        >>> metric = al.metrics.mean_absolute_error()
        >>> float(metric.compute(metric.update(jnp.zeros(4), jnp.full(4, -3.0))))
        3.0
    """

    def absolute(y: Any, targets: Any) -> Array:
        return jnp.abs(_errors("mean_absolute_error", y, targets))

    return mean(absolute, "mean_absolute_error")


def _squared(y: Any, targets: Any) -> Array:
    return jnp.square(_errors("mean_squared_error", y, targets))


def _errors(name: str, y: Any, targets: Any) -> Array:
    _alike(name, y, targets, y.shape)
    return jnp.asarray(y, jnp.float32) - jnp.asarray(targets, jnp.float32)


def _alike(name: str, y: Any, targets: Any, shape: tuple[int, ...]) -> None:
    """Refuses targets of another shape, with which JAX would broadcast."""
    if tuple(targets.shape) != tuple(shape):
        raise ShapeError(
            name, f"targets {list(shape)} for predictions {show(y)}", show(targets),
            "Reshape one of them.",
        )  # fmt: skip


@cache
def perplexity() -> Metric:
    """The exponential of the mean cross entropy of class labels, in nats.

    Shapes:
        predictions: `(..., classes)`, logits.
        targets: `(...)`, integers.

    Example:
        >>> import jax.numpy as jnp, axonlike as al
        >>> metric = al.metrics.perplexity()
        >>> logits, labels = jnp.zeros((2, 5, 8)), jnp.zeros((2, 5), int)
        >>> round(float(metric.compute(metric.update(logits, labels))), 4)
        8.0
    """

    def entropy(y: Any, targets: Any) -> Array:
        _alike("perplexity", y, targets, y.shape[:-1])
        y = jnp.asarray(y, jnp.float32)
        chosen = jnp.take_along_axis(y, jnp.asarray(targets)[..., None], -1)
        return jax.nn.logsumexp(y, -1) - chosen[..., 0]

    def compute(state: Any) -> Array:
        return jnp.exp(value_of_mean(state))

    return mean(entropy, "perplexity")._replace(compute=compute)


# --- classes


@cache
def accuracy(*, threshold: float | None = None) -> Metric:
    """The fraction of labels that are predicted.

    Args:
        threshold: None: the class is where the last axis of predictions is largest. A
            number: predictions are scores of yes or no, and above it means yes.

    Shapes:
        predictions: `(..., classes)`; as the targets, with a threshold.
        targets: `(...)`, integers.

    Example:
        >>> import jax.numpy as jnp, axonlike as al
        >>> metric = al.metrics.accuracy()
        >>> logits = jnp.array([[2.0, 1.0], [0.0, 1.0]])
        >>> float(metric.compute(metric.update(logits, jnp.array([0, 0]))))
        0.5
    """

    def right(y: Any, targets: Any) -> Array:
        found = _classes("accuracy", y, targets, threshold)
        return found == jnp.asarray(targets).astype(found.dtype)

    return mean(right, "accuracy")


@cache
def top_k(k: int = 5) -> Metric:
    """The fraction of labels that are among the `k` largest predictions.

    Among equal predictions, the lower class comes first.

    Args:
        k: how many classes are looked at; positive.

    Shapes:
        predictions: `(..., classes)`.
        targets: `(...)`, integers.

    Raises:
        ValueError: `k` is not a positive int.

    Example:
        >>> import jax.numpy as jnp, axonlike as al
        >>> metric = al.metrics.top_k(2)
        >>> logits = jnp.array([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0]])
        >>> float(metric.compute(metric.update(logits, jnp.array([1, 2]))))
        0.5
    """
    _positive("top_k", "k", k)

    def among(y: Any, targets: Any) -> Array:
        _alike("top_k", y, targets, y.shape[:-1])
        _, found = lax.top_k(jnp.asarray(y), min(k, y.shape[-1]))
        wanted = jnp.asarray(targets).astype(found.dtype)[..., None]
        return jnp.any(found == jnp.broadcast_to(wanted, found.shape), -1)

    return mean(among, "top_k")


def _positive(where: str, name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{where}: {name} must be a positive int, got {value!r}.")


def _classes(name: str, y: Any, targets: Any, threshold: float | None) -> Array:
    """The predicted classes."""
    if threshold is None:
        _alike(name, y, targets, y.shape[:-1])
        return jnp.argmax(y, -1)
    _alike(name, y, targets, y.shape)
    return (jnp.asarray(y) > threshold).astype(jnp.int32)


@cache
def confusion_matrix(num_classes: int, *, threshold: float | None = None) -> Metric:
    """How often each class (row) was predicted to be each class (column).

    Targets that are no class, such as -1, do not count.

    Args:
        num_classes: positive.
        threshold: as for `accuracy`.

    Shapes:
        predictions: `(..., num_classes)`; as the targets, with a threshold.
        targets: `(...)`, integers.
        value: `(num_classes, num_classes)`, int32.

    Raises:
        ValueError: `num_classes` is not a positive int.

    Example:
        >>> import jax.numpy as jnp, axonlike as al
        >>> metric = al.metrics.confusion_matrix(2)
        >>> logits = jnp.array([[2.0, 1.0], [0.0, 1.0]])
        >>> metric.compute(metric.update(logits, jnp.array([0, 0]))).tolist()
        [[1, 1], [0, 0]]
    """
    return _counting("confusion_matrix", num_classes, threshold, lambda state: state)


def _counting(
    name: str, num_classes: int, threshold: float | None, compute: Callable[[Any], Any]
) -> Metric:
    """A metric whose state is a confusion matrix."""
    _positive(name, "num_classes", num_classes)

    def update(predictions: Any, targets: Any, mask: Array | None = None) -> Array:
        if threshold is None and predictions.shape[-1] != num_classes:
            raise ShapeError(
                name, f"predictions (..., {num_classes})", show(predictions),
                "num_classes is the size of their last axis.",
            )  # fmt: skip
        found = _classes(name, predictions, targets, threshold).astype(jnp.int32)
        truth = jnp.asarray(targets).astype(jnp.int32)
        inside = (truth >= 0) & (truth < num_classes) & (found < num_classes)
        keep = _kept(name, truth, mask) & inside
        cell = jnp.where(keep, truth * num_classes + found, num_classes**2)
        counts = (
            jnp.zeros(num_classes**2, jnp.int32).at[cell.ravel()].add(1, mode="drop")
        )
        return counts.reshape(num_classes, num_classes)

    return Metric(name, update, _plus, compute)


def _plus(a: Array, b: Array) -> Array:
    return a + b


@cache
def precision(
    num_classes: int | None = None, *, average: str = "macro", threshold: float = 0.0
) -> Metric:
    """Of what was predicted to be a class, the fraction that is.

    A class that was never predicted counts as 0.

    Args:
        num_classes: None: of yes or no, the precision of yes.
        average: `"macro"`, the mean over classes; `"micro"`, over examples; `"none"`, one
            number for each class.
        threshold: without `num_classes`, the score above which it is yes: 0 for logits.

    Shapes:
        predictions: `(..., num_classes)`; as the targets, without `num_classes`.
        targets: `(...)`, integers.

    Raises:
        ValueError: `average` or `num_classes` is none of those.

    Example:
        >>> import jax.numpy as jnp, axonlike as al
        >>> metric = al.metrics.precision()
        >>> state = metric.update(jnp.array([1.0, 1.0, -1.0]), jnp.array([1, 0, 1]))
        >>> float(metric.compute(state))
        0.5
    """

    def value(hits: Array, predicted: Array, actual: Array) -> Array:
        return _ratio(hits, predicted)

    return _per_class("precision", value, num_classes, average, threshold)


@cache
def recall(
    num_classes: int | None = None, *, average: str = "macro", threshold: float = 0.0
) -> Metric:
    """Of what is a class, the fraction that was predicted to be.

    A class that never occurs counts as 0.

    Args:
        num_classes: as for `precision`.
        average: as for `precision`.
        threshold: as for `precision`.

    Shapes:
        predictions: `(..., num_classes)`; as the targets, without `num_classes`.
        targets: `(...)`, integers.

    Raises:
        ValueError: `average` or `num_classes` is none of those.

    Example:
        >>> import jax.numpy as jnp, axonlike as al
        >>> metric = al.metrics.recall()
        >>> state = metric.update(jnp.array([1.0, -1.0, -1.0]), jnp.array([1, 0, 1]))
        >>> float(metric.compute(state))
        0.5
    """

    def value(hits: Array, predicted: Array, actual: Array) -> Array:
        return _ratio(hits, actual)

    return _per_class("recall", value, num_classes, average, threshold)


@cache
def f1(
    num_classes: int | None = None, *, average: str = "macro", threshold: float = 0.0
) -> Metric:
    """The harmonic mean of precision and recall.

    A class that neither occurs nor is predicted counts as 0.

    Args:
        num_classes: as for `precision`.
        average: as for `precision`.
        threshold: as for `precision`.

    Shapes:
        predictions: `(..., num_classes)`; as the targets, without `num_classes`.
        targets: `(...)`, integers.

    Raises:
        ValueError: `average` or `num_classes` is none of those.

    Example:
        >>> import jax.numpy as jnp, axonlike as al
        >>> metric = al.metrics.f1()
        >>> state = metric.update(jnp.array([1.0, 1.0, -1.0]), jnp.array([1, 0, 1]))
        >>> float(metric.compute(state))
        0.5
    """

    def value(hits: Array, predicted: Array, actual: Array) -> Array:
        return _ratio(2 * hits, predicted + actual)

    return _per_class("f1", value, num_classes, average, threshold)


def _ratio(part: Array, whole: Array) -> Array:
    return part.astype(jnp.float32) / jnp.maximum(whole, 1).astype(jnp.float32)


def _per_class(
    name: str,
    value: Callable[[Array, Array, Array], Array],
    num_classes: int | None,
    average: str,
    threshold: float,
) -> Metric:
    """A metric of each class's hits, predictions and occurrences."""
    if average not in ("macro", "micro", "none"):
        raise ValueError(
            f"{name}: average must be 'macro', 'micro' or 'none', got {average!r}."
        )

    def compute(matrix: Array) -> Array:
        hits = cast(Any, jnp.diagonal)(matrix)
        counts = hits, jnp.sum(matrix, 0), jnp.sum(matrix, 1)
        if num_classes is None:
            return value(*(count[1] for count in counts))
        if average == "micro":
            return value(*map(jnp.sum, counts))
        each = value(*counts)
        return jnp.mean(each) if average == "macro" else each

    if num_classes is None:
        return _counting(name, 2, threshold, compute)
    return _counting(name, num_classes, None, compute)


@cache
def auroc() -> Metric:
    """The area under the curve of true over false positives: of yes or no.

    It is how often a score of yes is above one of no; equal scores count half. The state
    holds all scores, so it grows with what it has seen, and the value is exact.

    Shapes:
        predictions: any; scores, logits or probabilities.
        targets: the same; 0 or 1.

    Example:
        >>> import jax.numpy as jnp, axonlike as al
        >>> metric = al.metrics.auroc()
        >>> scores, labels = jnp.array([0.1, 0.4, 0.35, 0.8]), jnp.array([0, 0, 1, 1])
        >>> float(metric.compute(metric.update(scores, labels)))
        0.75

    References:
        Hanley and McNeil, "The Meaning and Use of the Area under a Receiver Operating
        Characteristic (ROC) Curve", Radiology 1982.
    """

    def update(predictions: Any, targets: Any, mask: Array | None = None) -> PyTree:
        _alike("auroc", predictions, targets, predictions.shape)
        keep = _kept("auroc", predictions, mask).ravel()
        yes = jnp.asarray(targets).astype(bool).ravel()
        scores = jnp.asarray(predictions, jnp.float32).ravel()
        return {"scores": scores, "yes": yes & keep, "no": ~yes & keep}

    return Metric("auroc", update, _joined, _area, grows=True)


def _joined(a: Any, b: Any) -> Any:
    return {name: jnp.concatenate([a[name], b[name]]) for name in a}


def _area(state: Any) -> Array:
    """The mean rank of yes among no, from the sorted scores."""
    scores, yes = state["scores"], state["yes"].astype(jnp.float32)
    order = jnp.argsort(scores)
    ranked = scores[order]
    below = jnp.cumsum(state["no"][order].astype(jnp.int32))
    below = jnp.concatenate([jnp.zeros(1, jnp.int32), below])
    first = below[jnp.searchsorted(ranked, scores, side="left")]
    last = below[jnp.searchsorted(ranked, scores, side="right")]
    beaten = (first + last).astype(jnp.float32) / (2 * below[-1]).astype(jnp.float32)
    return jnp.sum(jnp.where(state["yes"], beaten, jnp.float32(0))) / jnp.sum(yes)


# --- explained variance


@cache
def r2() -> Metric:
    """The fraction of the targets' variance that predictions explain.

    Of several outputs (the last axis, where there are two or more axes), the mean. Targets
    that are all the same have 1 where they are predicted exactly, and 0 elsewhere; fewer
    than two of them have none.

    Shapes:
        predictions, targets: `(n,)` or `(..., outputs)`; floating point.

    Example:
        >>> import jax.numpy as jnp, axonlike as al
        >>> metric = al.metrics.r2()
        >>> targets = jnp.array([1.0, 2.0, 3.0])
        >>> float(metric.compute(metric.update(targets, targets)))
        1.0
    """

    def update(predictions: Any, targets: Any, mask: Array | None = None) -> PyTree:
        errors = _errors("r2", predictions, targets)
        keep = _kept("r2", errors, mask)
        y = jnp.asarray(targets, jnp.float32)
        axes = tuple(range(max(1, y.ndim - 1)))

        def total(values: Array) -> Array:
            return jnp.sum(jnp.where(keep, values, jnp.float32(0)), axes)

        weight = total(jnp.ones(y.shape, jnp.float32))
        center = total(y) / jnp.maximum(weight, jnp.float32(1))
        off = y - jnp.broadcast_to(center, y.shape)
        return {
            "weight": weight,
            "mean": center,
            "around": total(jnp.square(off)),
            "error": total(jnp.square(errors)),
        }

    def compute(state: Any) -> Array:
        error, around = state["error"], state["around"]
        exact = jnp.where(error > 0, jnp.float32(0), jnp.float32(1))
        varies = (around > 0) | (state["weight"] < 2)
        return jnp.mean(jnp.where(varies, 1 - error / around, exact))

    return Metric("r2", update, _merge_moments, compute)


def _merge_moments(a: Any, b: Any) -> Any:
    """Counts, means and sums of squares around them, of both."""
    off = b["mean"] - a["mean"]
    both = merge_means(a, b)
    share = a["weight"] * b["weight"] / jnp.maximum(both["weight"], jnp.float32(1))
    return {
        **both,
        "around": a["around"] + b["around"] + jnp.square(off) * share,
        "error": a["error"] + b["error"],
    }
