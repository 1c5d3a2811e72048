"""Metrics of classes: how often each was taken for which, and areas under curves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import jax.numpy as jnp

from axonlike.errors import ShapeError
from axonlike.spec import show
from axonlike.training.means import predicted
from axonlike.training.metric import Metric, once
from axonlike.training.options import real, whole
from axonlike.training.pairs import kept, pair
from axonlike.types import Array, PyTree


@once
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
    size = whole(name, "num_classes", num_classes)
    real(name, threshold=threshold)

    def update(predictions: Any, targets: Any, mask: Array | None = None) -> Array:
        found, truth = predicted(name, predictions, targets, threshold)
        if threshold is None and jnp.shape(predictions)[-1] != size:
            raise ShapeError(
                name, f"predictions (..., {size})", show(predictions),
                "num_classes is the size of their last axis.",
            )  # fmt: skip
        keep = kept(name, truth, mask) & (truth >= 0) & (truth < size)
        cell = jnp.where(keep, truth * size + found, size**2)
        counts = jnp.zeros(size**2, jnp.int32)
        return counts.at[cell.ravel()].add(1, mode="drop").reshape(size, size)

    return Metric(name, update, _plus, compute)


def _plus(a: Array, b: Array) -> Array:
    return a + b


@once
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
    return _per_class(
        "precision", lambda hits, said, is_so: _ratio(hits, said),
        num_classes, average, threshold,
    )  # fmt: skip


@once
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
    return _per_class(
        "recall", lambda hits, said, is_so: _ratio(hits, is_so),
        num_classes, average, threshold,
    )  # fmt: skip


@once
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
    return _per_class(
        "f1", lambda hits, said, is_so: _ratio(2 * hits, said + is_so),
        num_classes, average, threshold,
    )  # fmt: skip


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


@once
def auroc() -> Metric:
    """The area under the curve of true over false positives: of yes or no.

    It is how often a score of yes is above one of no; equal scores count half. The state
    holds all scores, so it grows with what it has seen, and the value is exact. It is NaN
    where there is only yes or only no, or a score is NaN.

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
        scores, targets = pair("auroc", predictions, targets)
        keep = kept("auroc", scores, mask).ravel()
        yes = targets.astype(bool).ravel()
        scores = scores.astype(jnp.float32).ravel()
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
    area = jnp.sum(jnp.where(state["yes"], beaten, jnp.float32(0))) / jnp.sum(yes)
    unknown = jnp.isnan(scores) & (state["yes"] | state["no"])
    return jnp.where(jnp.any(unknown), jnp.float32(jnp.nan), area)
