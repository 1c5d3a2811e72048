"""The metrics of an epoch: the states of all its steps as one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp

from axonlike.training.logs import number
from axonlike.training.metrics import Metric


class Merged:
    """What `train_step` measures, over all the examples of an epoch so far.

    Where a step has no metrics with states, this does nothing.
    """

    def __init__(self, step: Any) -> None:
        self._metrics: dict[str, Metric] = getattr(step, "metrics", None) or {}
        self._states: dict[str, Any] = {}
        self._merge: Any = jax.jit(self._merge_all)
        self._compute: Any = jax.jit(self._compute_all)

    def add(self, logs: Mapping[str, Any]) -> None:
        """One more step; nothing waits for it."""
        if not self._metrics:
            return
        new = cast(Any, logs).states
        self._states = self._merge(self._states, new) if self._states else new

    def values(self) -> dict[str, float]:
        """Numbers by name."""
        if not self._states:
            return {}
        found = self._compute(self._states)
        return {name: number(name, value) for name, value in found.items()}

    def clear(self) -> None:
        """A new epoch begins."""
        self._states = {}

    def get_state(self) -> dict[str, Any]:
        """The states themselves."""
        return self._states

    def set_state(self, states: Any) -> None:
        """Takes them again."""
        self._states = jax.tree.map(_array, states)

    def _merge_all(self, a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
        return {name: m.merge(a[name], b[name]) for name, m in self._metrics.items()}

    def _compute_all(self, states: dict[str, Any]) -> dict[str, Any]:
        return {name: m.compute(states[name]) for name, m in self._metrics.items()}


def _array(x: Any) -> Any:
    return jnp.asarray(x)
