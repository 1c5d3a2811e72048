"""Metrics as pure states: of one batch, merged with others, and their value."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache, reduce
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp

from axonlike.training.batch import over, targets_of
from axonlike.types import Array, PyTree

__all__ = ["Metric", "accuracy"]

States = dict[str, Any]


class Logs(dict[str, Any]):
    """Numbers by name, of one step; `states` are those of its metrics, to be merged."""

    states: States

    def __init__(self, values: Mapping[str, Any], states: States) -> None:
        super().__init__(values)
        self.states = states


def _flat(logs: Logs) -> Any:
    names = tuple(logs)
    return (*(logs[name] for name in names), logs.states), names


def _whole(names: tuple[str, ...], items: Any) -> Logs:
    *values, states = items
    return Logs(dict(zip(names, values, strict=True)), states)


jax.tree_util.register_pytree_node(Logs, _flat, _whole)


class Metric(NamedTuple):
    """A metric: the state of one batch, two states as one, and a state's value."""

    name: str
    update: Callable[..., PyTree]
    merge: Callable[[Any, Any], Any]
    compute: Callable[[Any], Any]

    def merged(self, states: Iterable[PyTree]) -> PyTree:
        """Several states as one."""
        return reduce(self.merge, states)


def named(metrics: Any) -> dict[str, Metric]:
    """Metrics by name."""
    if metrics is None:
        return {}
    if isinstance(metrics, Metric):
        metrics = [metrics]
    if isinstance(metrics, Mapping):
        return dict(cast("Mapping[str, Metric]", metrics))
    return {metric.name: metric for metric in metrics}


def measured(
    metrics: dict[str, Metric], y: PyTree, batch: PyTree, mask: Array | None
) -> States:
    """The states of metrics of one batch."""
    return {
        name: metric.update(y, targets_of(batch), mask)
        for name, metric in metrics.items()
    }


def _merge_means(a: Any, b: Any) -> Any:
    weight = a["weight"] + b["weight"]
    part = b["weight"] / jnp.maximum(weight, jnp.float32(1))
    return {"mean": a["mean"] + (b["mean"] - a["mean"]) * part, "weight": weight}


@lru_cache
def accuracy() -> Metric:
    """The fraction of examples whose largest output is the label's."""

    def update(predictions: Array, targets: Array, mask: Array | None = None) -> Any:
        right = (jnp.argmax(predictions, -1) == targets).astype(jnp.float32)
        keep = jnp.ones(right.shape, bool) if mask is None else over(
            mask, right.shape, "accuracy"
        )
        weight = jnp.sum(keep.astype(jnp.float32))
        total = jnp.sum(jnp.where(keep, right, jnp.float32(0)))
        return {"mean": total / jnp.maximum(weight, jnp.float32(1)), "weight": weight}

    return Metric("accuracy", update, _merge_means, lambda state: state["mean"])
