"""Checks that layers of several families make of their options and inputs."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Any, cast

import jax.numpy as jnp
import numpy as np

from axonlike.errors import ShapeError
from axonlike.spec import show

_COMPLEX = frozenset(
    (
        "avg_pool",
        "bias",
        "bilinear",
        "conv",
        "dense",
        "dropout",
        "einsum",
        "global_avg_pool",
        "scale",
    )
)
"""The layers whose formula holds for complex numbers as it does for real ones."""


def is_int(value: object) -> bool:
    """Whether a value is a whole number; a bool is not."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def positive(kind: str, **options: Any) -> None:
    """Refuses options that are not positive ints."""
    for name, value in options.items():
        if not is_int(value) or value < 1:
            raise ValueError(f"{kind}: {name} must be a positive int, got {value!r}.")


def within(
    kind: str, name: str, value: Any, *, low: float, high: float, text: str
) -> float:
    """An option as a Python float, which widens no dtype; `[low, high)`, as `text` says."""
    number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    if not number or not low <= value < high:
        raise ValueError(f"{kind}: {name} must be {text}, got {value!r}.")
    return float(cast(Any, value))


def epsilon_of(kind: str, value: Any) -> float:
    """An epsilon as a Python float, from 0 on."""
    return within(kind, "epsilon", value, low=0, high=inf, text="a number from 0 on")


def array(kind: str, x: Any, expected: str, *, floating: bool = True) -> None:
    """Refuses inputs that are not one array, or not of a floating-point dtype."""
    if not (hasattr(x, "shape") and hasattr(x, "dtype")):
        hint = "Pick one item: pick(0) or on_item(0, ...)."
        one = expected if expected.startswith("array") else f"array {expected}"
        raise ShapeError(kind, f"one {one}", show(x), hint)
    numbers = jnp.inexact if kind in _COMPLEX else jnp.floating
    if floating and not jnp.issubdtype(x.dtype, numbers):
        hint = "Convert it with x.astype(jnp.float32), or embed ids with embedding()."
        raise ShapeError(kind, f"a floating-point {expected}", show(x), hint)


def at_least(
    kind: str, x: Any, ndim: int, expected: str, hint: str, *, floating: bool = True
) -> None:
    """Refuses inputs of fewer axes."""
    array(kind, x, expected, floating=floating)
    if x.ndim < ndim:
        raise ShapeError(kind, expected, show(x), hint)


def exactly(
    kind: str, x: Any, ndim: int, expected: str, hint: str, *, floating: bool = True
) -> None:
    """Refuses inputs of another rank."""
    array(kind, x, expected, floating=floating)
    if x.ndim != ndim:
        raise ShapeError(kind, expected, show(x), hint)


def some(kind: str, x: Any) -> None:
    """Refuses an input without features, for which no weight could be drawn."""
    width = x.shape[-1]
    if is_int(width) and width == 0:
        raise ShapeError(
            kind,
            "a last axis of at least 1",
            show(x),
            "Leave the layer out, or the axis.",
        )


def last_axis(kind: str, x: Any, width: int) -> None:
    """Refuses an input whose last axis is not what the params were made for.

    Said here because a param of width 1 would broadcast without a word.
    """
    if x.shape[-1] != width:
        raise ShapeError(
            kind, f"(..., {width})", show(x), "The params were made for that width."
        )


def ints(kind: str, name: str, value: int | Sequence[int]) -> None:
    """Refuses what is neither a positive int nor 1 to 3 of them."""
    many = isinstance(value, (tuple, list))
    sizes: list[Any] = list(cast("Sequence[Any]", value)) if many else [value]
    if not 1 <= len(sizes) <= 3 or not all(is_int(n) and n >= 1 for n in sizes):
        raise ValueError(
            f"{kind}: {name} must be a positive int or 1 to 3 of them, got {value!r}."
        )


def wide(dtype: Any) -> Any:
    """The dtype that sums and statistics are computed in: float32 at least."""
    return jnp.float32 if jnp.finfo(dtype).bits < 32 else dtype
