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


_ROWS = 4
_LABELS = ((0, 1), (-1, 0, 1), (-100, 0, 1), (0, 1, 2, 3))
"""Ints to try: none left out, two that mean it often, and more classes than two."""


def check_mean(function: LossFunction, y: PyTree, batch: PyTree) -> None:
    """Refuses a loss that is not the mean over examples: tried on made-up numbers.

    Only such a mean can be taken of the rows that count. All ints but 0 and 1 may be
    without meaning for a loss; then it is no finite number, and nothing is learnt.
    """

    def trial(y: PyTree, batch: PyTree) -> tuple[Array, Array]:
        return function(y, batch), jnp.mean(one_by_one(function, y, batch))

    run, given = cast(Any, jax.jit(trial)), (y, batch)
    with jax.ensure_compile_time_eval():
        found = [run(*_made_up(given, labels)) for labels in _LABELS]
    tolerance = max(map(_tolerance, jax.tree.leaves(given)), default=1e-4)
    pairs = [tuple(map(float, pair)) for pair in found]
    first, *others = [(a, bool(np.isclose(a, b, rtol=tolerance))) for a, b in pairs]
    if not first[1] or any(np.isfinite(a) and not same for a, same in others):
        raise WholeBatchError(
            "loss: one number for a batch, and not the mean over its examples, so a "
            "batch that is filled up has none. Return one number for each example, or "
            "leave batch_size out, so that short batches are run as they are."
        )


def _made_up(like: PyTree, labels: tuple[int, ...]) -> Any:
    """Numbers for a few rows, which differ from row to row as much as they can."""
    random = np.random.default_rng(0)

    def some(x: Any) -> Any:
        shape = (_ROWS, *x.shape[1:])
        if jnp.issubdtype(x.dtype, jnp.floating):
            level = np.linspace(0.3, 1, _ROWS).reshape(-1, *[1] * (len(shape) - 1))
            return np.asarray(level * random.uniform(0.1, 0.9, shape), x.dtype)
        made = random.choice(labels, shape)
        made[0], made[-1] = labels[0], labels[-1]
        return made.astype(x.dtype)

    return jax.tree.map(some, like)


def _tolerance(x: Any) -> float:
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return 1e-4
    return max(1e-4, 2 * float(cast(Any, jnp.finfo)(x.dtype).eps))
