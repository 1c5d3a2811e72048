"""What a training step changes, and the scale of a loss in 16 bits."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from axonlike.types import Array, Key, Params, PyTree, State, to_dtype


class TrainState(NamedTuple):
    """Everything that a training step changes: a pytree, to be saved and resumed.

    Made by `step.start(params, state, key=...)`. A step takes one and returns the next;
    the arrays of the one that it took are given away (donated).

    Args:
        step: how many steps were taken.
        params: of the model.
        model_state: the model's state.
        opt_state: the optimizer's state, of the params that are trained.
        key: the root of all random numbers; a step's own is folded in from `step`.
        ema: a moving average of the params; None where none is kept.
        loss_scale: a `LossScale`; None where it does not change.

    Shapes:
        step: a scalar of int32.
        params, model_state: as `init` made them.
        ema: those of the params, no float shorter than float32.

    Example:
        >>> import jax, optax, axonlike as al
        >>> model = al.dense(1)
        >>> def loss(y, batch):
        ...     return optax.l2_loss(y, batch[1])
        >>> step = al.train_step(model, loss, optax.sgd(0.1))
        >>> params, state = model.init(jax.random.key(0), (None, 3))
        >>> ts = step.start(params, state, key=jax.random.key(1))
        >>> isinstance(ts, al.TrainState), int(ts.step)
        (True, 0)
    """

    step: Array
    params: Params
    model_state: State
    opt_state: PyTree
    key: Key | None
    ema: Params | None = None
    loss_scale: LossScale | None = None


class LossScale(NamedTuple):
    """By what a loss is multiplied so that its gradients do not vanish in 16 bits.

    It is halved when a gradient is not finite, and doubled after `_PATIENCE` steps in
    which all were.
    """

    scale: Array
    finite_steps: Array


_FIRST = 2.0**15
_PATIENCE = 2000
_LARGEST = 2.0**24


def first_scale() -> LossScale:
    """The scale that training starts with."""
    return LossScale(jnp.asarray(_FIRST, jnp.float32), jnp.asarray(0, jnp.int32))


def next_scale(before: LossScale, finite: Array) -> LossScale:
    """The scale after a step whose gradients were finite, or not."""
    grows = before.finite_steps + 1 >= _PATIENCE
    grown = jnp.minimum(before.scale * 2, jnp.float32(_LARGEST))
    scale = jnp.where(grows, grown, before.scale)
    lowered = jnp.maximum(before.scale / 2, jnp.float32(1))
    steps = jnp.where(grows | ~finite, 0, before.finite_steps + 1)
    return LossScale(jnp.where(finite, scale, lowered), steps.astype(jnp.int32))


def all_finite(tree: PyTree) -> Array:
    """Whether every number of a tree is finite."""
    leaves: list[Any] = jax.tree.leaves(tree)
    found = [jnp.all(jnp.isfinite(leaf)) for leaf in leaves]
    return jnp.all(jnp.stack(found)) if found else jnp.asarray(True)


def averages(params: Params) -> Params:
    """Params in dtypes that an average can be kept in."""
    return jax.tree.map(_wide, params)


def _wide(x: Any) -> Any:
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return x
    return to_dtype(x, jnp.promote_types(x.dtype, jnp.float32))


def owned(tree: PyTree) -> PyTree:
    """The same arrays in buffers of their own, so that these can be given away."""
    return jax.tree.map(_own, tree)


def _own(x: Any) -> Array:
    array = jnp.asarray(x) if not hasattr(x, "sharding") else x
    if getattr(array, "weak_type", False):
        array = jax.lax.convert_element_type(array, array.dtype)
    return jax.device_put(array, may_alias=False)
