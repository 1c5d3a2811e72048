"""The metrics of an epoch: the states of all its steps as one."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp

from axonlike.errors import PathError
from axonlike.training.logs import number
from axonlike.training.metric import Metric


class Merged:
    """What `train_step` measures, over all the examples of an epoch so far.

    Where a step has no metrics with states, this does nothing.
    """

    def __init__(self, step: Any) -> None:
        self._metrics: dict[str, Metric] = getattr(step, "metrics", None) or {}
        self._states: dict[str, Any] = {}
        self._parts: dict[str, list[Any]] = {}

    def __bool__(self) -> bool:
        """Whether there is anything to merge."""
        return bool(self._metrics)

    def add(self, logs: Mapping[str, Any]) -> None:
        """One more step; nothing waits for it."""
        new: dict[str, Any] = dict(cast(Any, logs).states)
        for name, metric in self._metrics.items():
            if metric.grows:
                self._parts.setdefault(name, []).append(new.pop(name))
        if self._states:
            self._states = self._each(_merge, self._states, new)
            return
        self._states = new
        self._each(_merge, new, new)  # compiled at the first step, not later
        self._each(_compute, new)

    def values(self) -> dict[str, Any]:
        """Numbers by name."""
        found = self._each(_compute, self.get_state())
        return {name: number(name, value) for name, value in found.items()}

    def clear(self) -> None:
        """A new epoch begins."""
        self._states, self._parts = {}, {}

    def get_state(self) -> dict[str, Any]:
        """The states, those that grow put together."""
        for name, parts in self._parts.items():
            self._parts[name] = [self._metrics[name].merged(parts)]
        return {**self._states, **{name: p[0] for name, p in self._parts.items()}}

    def set_state(self, states: Mapping[str, Any]) -> None:
        """Takes them again."""
        for name, state in states.items():
            if name not in self._metrics:
                hint = "Resume with the metrics that there were."
                raise PathError("fit", name, self._metrics, hint)
            arrays = jax.tree.map(_array, state)
            if self._metrics[name].grows:
                self._parts[name] = [arrays]
            else:
                self._states[name] = arrays

    def _each(self, run: Any, *states: dict[str, Any]) -> dict[str, Any]:
        """What a function says of every metric's states."""
        metrics = self._metrics
        return {n: run(metrics[n], *(each[n] for each in states)) for n in states[0]}


@partial(jax.jit, static_argnums=0)
def _merge(metric: Metric, a: Any, b: Any) -> Any:
    return metric.merge(a, b)


@partial(jax.jit, static_argnums=0)
def _compute(metric: Metric, state: Any) -> Any:
    return metric.compute(state)


def _array(x: Any) -> Any:
    return jnp.asarray(x)
