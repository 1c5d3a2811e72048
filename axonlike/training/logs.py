"""What steps return, fetched late and in groups, so that no step waits for numbers."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from axonlike.spec import show

AHEAD = 16
"""So many steps may be under way at most; then the older half of them is waited for.

It bounds the batches that are held in memory, and keeps old versions of JAX from a
deadlock of steps that communicate.
"""

Sink = Callable[[int, dict[str, Any]], None]


class Logs:
    """The metrics of steps that have been started, in order, each with its step."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._far = jax.default_backend() != "cpu"
        self._pending: deque[tuple[int, Mapping[str, Any]]] = deque()

    def push(self, step: int, logs: Mapping[str, Any]) -> None:
        """Adds those of a step; waits only where too many steps are under way."""
        self._pending.append((step, logs))
        if len(self._pending) >= AHEAD:
            self._take(AHEAD // 2)

    def poll(self) -> None:
        """Hands on what has been computed by now."""
        count = 0
        for _, logs in self._pending:
            if not all(map(_is_ready, logs.values())):
                break
            count += 1
        self._take(count)

    def flush(self) -> None:
        """Hands on everything, waiting for it."""
        self._take(len(self._pending))

    def _take(self, count: int) -> None:
        group = [self._pending.popleft() for _ in range(count)]
        if self._far:
            for value in (v for _, logs in group for v in logs.values()):
                if hasattr(value, "copy_to_host_async"):
                    value.copy_to_host_async()
        for step, logs in group:
            self._sink(step, {name: number(name, logs[name]) for name in logs})


def number(name: str, value: Any) -> Any:
    """A metric as a Python float; as a NumPy array where it is several numbers."""
    array = np.asarray(value)
    if array.ndim == 0 and array.dtype.kind == "f":
        return array.item()
    if array.dtype.kind not in "biuf" and not _is_float(array):
        raise TypeError(
            f"fit: expected metrics to be numbers, got {show(value)} for {name!r}. "
            "Leave it out of the logs."
        )
    return float(array.item()) if array.ndim == 0 else array


def single(where: str, name: str, value: Any) -> float:
    """A metric that is one number; of several it is not known what to make."""
    if not isinstance(value, float):
        raise TypeError(
            f"{where}: expected {name!r} to be one number, got {show(value)}. "
            "Choose another metric."
        )
    return value


def _is_float(array: Any) -> bool:
    """Whether it is of one of the float types that NumPy itself has not."""
    return bool(jnp.issubdtype(array.dtype, jnp.floating))


def check(result: Any) -> None:
    """What a first step returns is a pair with a dict, or an error that says so."""
    is_pair = isinstance(result, tuple) and len(cast("tuple[Any, ...]", result)) == 2
    if not is_pair or not is_logs(result[1]):
        what = f"{show(result[1])} for the logs" if is_pair else show(result)
        raise TypeError(
            "fit: expected a step to return (state, logs), logs being a dict of numbers "
            f"by name, got {what}. Return state, {{'loss': loss}}."
        )


def is_logs(found: Any) -> bool:
    """Whether it is numbers by name."""
    names = cast("Mapping[Any, Any]", found) if isinstance(found, Mapping) else (0,)
    return all(isinstance(name, str) for name in names)


def _is_ready(value: Any) -> bool:
    ready = getattr(value, "is_ready", None)
    return True if ready is None else ready()
