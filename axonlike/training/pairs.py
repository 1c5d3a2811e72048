"""Predictions beside their targets: as arrays, of shapes that fit, and what counts."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from axonlike.errors import ShapeError
from axonlike.spec import show
from axonlike.training.batch import over
from axonlike.types import Array


def pair(
    where: str, predictions: Any, targets: Any, *, classes: bool = False
) -> tuple[Array, Array]:
    """Both as arrays; with `classes`, targets are without the last axis.

    Targets of another shape are refused: JAX would broadcast.
    """
    y, targets = _array(where, predictions), _array(where, targets)
    if classes and not y.ndim:
        raise ShapeError(where, "predictions (..., classes)", show(y))
    shape = tuple(y.shape[:-1] if classes else y.shape)
    if tuple(targets.shape) != shape:
        raise ShapeError(
            where, f"targets {list(shape)} for predictions {show(y)}", show(targets),
            "Reshape one of them.",
        )  # fmt: skip
    return jnp.asarray(y), jnp.asarray(targets)


def _array(where: str, x: Any) -> Any:
    """Numbers of any kind as an array."""
    if isinstance(x, jax.Array):
        return x
    try:
        found = np.asarray(x)
    except ValueError:  # lists of several lengths
        found = np.asarray(None)
    if not any(jnp.issubdtype(found.dtype, kind) for kind in (np.number, np.bool_)):
        raise TypeError(f"{where}: expected arrays of numbers, got {show(x)}.")
    return found


def kept(where: str, values: Any, mask: Any) -> Array:
    """Which elements count, at the full shape."""
    if mask is None:
        return jnp.ones(values.shape, bool)
    return over(jnp.asarray(mask), values.shape, where)
