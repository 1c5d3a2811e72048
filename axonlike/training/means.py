"""Metrics that are means over examples, or over elements."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from axonlike.errors import ShapeError
from axonlike.spec import show
from axonlike.training.metric import Metric, once
from axonlike.training.options import real, whole
from axonlike.training.pairs import kept, pair
from axonlike.types import Array, PyTree


@once
def mean(function: Callable[[Any, Any], Any], name: str = "mean") -> Metric:
    """The mean of `function(predictions, targets)`, one number an example or element.

    Args:
        function: returns an array whose first axis is that of examples.
        name: in logs.

    Shapes:
        value: a scalar of float32.

    Raises:
        TypeError: `function` cannot be called.
        ShapeError: in `update`, it returns one number for a batch.

    Example:
        >>> import jax.numpy as jnp, axonlike as al
        >>> metric = al.metrics.mean(lambda y, targets: jnp.abs(y - targets), "error")
        >>> state = metric.update(jnp.array([1.0, 2.0]), jnp.array([1.0, 5.0]))
        >>> float(metric.compute(state))
        1.5
    """
    if not callable(function):
        raise TypeError(
            f"mean: expected a function of (predictions, targets), got {show(function)}."
        )

    def update(
        predictions: PyTree, targets: PyTree, mask: Array | None = None
    ) -> PyTree:
        values = jnp.asarray(function(predictions, targets))
        if not values.ndim and any(map(np.ndim, jax.tree.leaves(targets))):
            raise ShapeError(
                name, "one number for each example", show(values),
                "Return the numbers, and not their mean.",
            )  # fmt: skip
        return _mean_state(name, values.astype(jnp.float32), mask)

    return Metric(name, update, merge_means, value_of_mean)


def _mean_state(name: str, values: Array, mask: Array | None) -> PyTree:
    keep = kept(name, values, mask)
    weight = jnp.sum(keep, dtype=jnp.float32)
    total = jnp.sum(jnp.where(keep, values, jnp.float32(0)))
    return {"mean": total / jnp.maximum(weight, jnp.float32(1)), "weight": weight}


def merge_means(a: Any, b: Any) -> Any:
    """Two means as one, each by its weight."""
    weight = a["weight"] + b["weight"]
    part = b["weight"] / jnp.maximum(weight, jnp.float32(1))
    return {"mean": a["mean"] + (b["mean"] - a["mean"]) * part, "weight": weight}


def value_of_mean(state: Any) -> Array:
    """The mean; of nothing, not a number."""
    return jnp.where(state["weight"] > 0, state["mean"], jnp.float32(np.nan))


@once
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


@once
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


@once
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
    y, targets = pair(name, y, targets)
    return jnp.asarray(y, jnp.float32) - jnp.asarray(targets, jnp.float32)


@once
def perplexity() -> Metric:
    """The exponential of the mean cross entropy of class labels, in nats.

    A label that is no class, such as -1, makes it NaN, unless a mask leaves it out.

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
        y, labels = pair("perplexity", y, targets, classes=True)
        y, labels = y.astype(jnp.float32), labels.astype(jnp.int32)
        none = jnp.where(labels < 0, y.shape[-1], labels)  # of which JAX makes NaN
        chosen = jnp.take_along_axis(y, none[..., None], -1)
        return jax.nn.logsumexp(y, -1) - chosen[..., 0]

    def compute(state: Any) -> Array:
        return jnp.exp(value_of_mean(state))

    return mean(entropy, "perplexity")._replace(compute=compute)


@once
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
    real("accuracy", threshold=threshold)

    def right(y: Any, targets: Any) -> Array:
        found, labels = predicted("accuracy", y, targets, threshold)
        return found == labels

    return mean(right, "accuracy")


@once
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
    k = whole("top_k", "k", k)

    def among(y: Any, targets: Any) -> Array:
        y, labels = pair("top_k", y, targets, classes=True)
        _, found = lax.top_k(y, min(k, y.shape[-1]))
        wanted = labels.astype(found.dtype)[..., None]
        return jnp.any(found == jnp.broadcast_to(wanted, found.shape), -1)

    return mean(among, "top_k")


def predicted(
    where: str, y: Any, targets: Any, threshold: float | None
) -> tuple[Array, Array]:
    """The classes that are predicted, and those that are."""
    y, targets = pair(where, y, targets, classes=threshold is None)
    found = jnp.argmax(y, -1) if threshold is None else y > threshold
    return found.astype(jnp.int32), targets.astype(jnp.int32)


# --- explained variance


@once
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
        keep = kept("r2", errors, mask)
        y = jnp.asarray(targets, jnp.float32)
        axes = tuple(range(y.ndim))[: max(1, y.ndim - 1)]

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
