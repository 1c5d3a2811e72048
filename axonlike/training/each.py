"""A loss that is one number for a whole batch, taken of each example by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from axonlike.types import Array, PyTree

LossFunction = Callable[[Any, Any], Any]


class WholeBatchError(ValueError):
    """Something is of a batch as a whole, so that rows cannot be left out of it."""


def one_by_one(function: LossFunction, y: PyTree, batch: PyTree) -> Array:
    """The loss of each example, as a batch of one."""

    def alone(y: PyTree, batch: PyTree) -> Array:
        return function(jax.tree.map(_row, y), jax.tree.map(_row, batch))

    return jax.vmap(alone)(y, batch)


def _row(x: Any) -> Any:
    return x[None]


def check_mean(function: LossFunction, y: PyTree, batch: PyTree) -> None:
    """Refuses a loss that is not the mean over examples: tried once, on made-up numbers.

    Only such a mean can be taken of the rows that count.
    """
    random = np.random.default_rng(0)

    def some(x: Any) -> Any:
        shape, dtype = (3, *x.shape[1:]), x.dtype
        if jnp.issubdtype(dtype, jnp.floating):
            return random.uniform(0.1, 0.9, shape).astype(dtype)
        return random.integers(0, 2, shape).astype(dtype)

    def trial(y: PyTree, batch: PyTree) -> tuple[Array, Array]:
        return function(y, batch), jnp.mean(one_by_one(function, y, batch))

    with jax.ensure_compile_time_eval():
        whole, mean = cast(Any, jax.jit(trial))(*jax.tree.map(some, (y, batch)))
    if not np.isclose(float(whole), float(mean), rtol=1e-2):
        raise WholeBatchError(
            "loss: one number for a batch, and not the mean over its examples, so a "
            "batch that is filled up has none. Return one number for each example, or "
            "leave batch_size out, so that short batches are run as they are."
        )
