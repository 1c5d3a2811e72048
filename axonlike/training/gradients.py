"""Gradients of a loss: of the params that are trained, of a batch whole or part by part."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from operator import itemgetter
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax import lax

from axonlike.layer import Layer
from axonlike.params import merge, partition, paths
from axonlike.selector import Where
from axonlike.surgery import trainable
from axonlike.training.batch import both, mask_of, rows_of
from axonlike.training.loss import Loss, Out, Share, loss_fn
from axonlike.training.metric import Metric, States, named
from axonlike.training.options import whole
from axonlike.types import Array, Key, Params, PyTree, State, to_dtype


def grad_fn(
    model: Layer,
    loss: Loss,
    *,
    where: Where = None,
    accumulate: int = 1,
    **options: Any,
) -> Callable[..., tuple[tuple[Array, Out], Params]]:
    """`(params, state, batch, key=None) -> ((loss, out), grads)`: a step's first half.

    Gradients are those of the params that are trained: all but those that `where` leaves
    out and those that are `frozen`. Where that is a part, `grads` is the tree of that part,
    as `al.partition` makes it, and nothing is computed for the rest.

    Args:
        model: any layer.
        loss: as for `loss_fn`.
        where: a selector of the params to train; None for all.
        accumulate: in how many parts of equal size the batch is run, one after another,
            to save memory: the mean of their gradients is that of the whole batch, except
            where a layer looks at several examples at once, as batch norm does.
        options: as for `loss_fn`: `weights`, `aux`, `metrics`, `precision`, `remat`.

    Shapes:
        grads: those of the params.

    Raises:
        PathError: `where` means nothing.
        ValueError: nothing is left to train, or the batch does not divide into parts.

    Example:
        >>> import jax, jax.numpy as jnp, optax, axonlike as al
        >>> model = al.dense(3) >> al.dense(1)
        >>> params, state = model.init(jax.random.key(0), (None, 4))
        >>> def loss(y, batch):
        ...     return optax.l2_loss(y, batch[1])
        >>> grads = al.grad_fn(model, loss, where="dense_1")
        >>> (value, out), grad = grads(params, state, (jnp.ones((8, 4)), jnp.ones((8, 1))))
        >>> list(grad)
        ['dense_1']
    """
    function = loss_fn(model, loss, **options)
    accumulate = whole("accumulate", "the number of parts", accumulate)
    measures = named(options.get("metrics"))

    def grads(
        params: Params,
        state: State,
        batch: PyTree,
        key: Key | None = None,
        *,
        rows: Array | None = None,
        scale: Array | None = None,
    ) -> tuple[tuple[Array, Out], Params]:
        trained, rest = parted(model, params, where)

        def scaled(
            trained: Params,
            state: Any,
            batch: Any,
            key: Any,
            rows: Any,
            share: Any = None,
        ) -> Any:
            whole = merge(trained, rest) if rest else trained
            value, out = function(whole, state, batch, key, rows=rows, share=share)
            times = value if scale is None else value * scale.astype(value.dtype)
            return times, (value, out)

        def one(*args: Any) -> Any:
            (_, found), grad = jax.value_and_grad(scaled, has_aux=True)(trained, *args)
            return found, grad

        if accumulate == 1:
            found, grad = one(state, batch, key, rows)
        else:
            rows_of(batch)
            pieces = jax.tree.map(partial(_split, accumulate), (batch, rows))
            pieces = *pieces, _shares(accumulate, *pieces)
            found, grad = _summed(one, accumulate, state, pieces, key, measures)
        return found, grad if scale is None else _divided(grad, scale)

    return grads


def parted(model: Layer, params: Params, where: Where) -> tuple[Params, Params]:
    """The params that are trained, and the others; integers have no gradient."""
    if not paths(params):
        raise ValueError(
            "train_step: the params have no arrays, so there is nothing to train. "
            "Pass params, state in the order in which init returned them."
        )
    still = {path for path, is_free in paths(trainable(model, params)) if not is_free}
    free = {
        path
        for path, leaf in paths(params)
        if path not in still and jnp.issubdtype(leaf.dtype, jnp.inexact)
    }
    if where is not None:
        chosen = partition(params, where, model)[0]
        free &= {path for path, _ in paths(chosen)}
    if not free:
        raise ValueError(
            "train_step: no params are left to train. "
            "Unfreeze a layer, or choose others by where=."
        )
    if len(free) == len(paths(params)):
        return params, {}

    def is_trained(path: str, _: Any) -> bool:
        return path in free

    return partition(params, is_trained)


# --- a batch in parts


def _split(parts: int, x: Any) -> Any:
    if x.shape[0] % parts:
        raise ValueError(
            f"accumulate: expected a batch that divides into {parts} equal parts, "
            f"got {x.shape[0]} rows. Pass another batch size, or batch_size= to "
            "train_step, which fills the batch up."
        )
    return jnp.reshape(x, (parts, x.shape[0] // parts, *x.shape[1:]))


def _shares(parts: int, batch: PyTree, rows: Array | None) -> Share | None:
    """How much of the batch each part is; None where all of it counts."""
    counted = both(mask_of(batch), rows)
    if counted is None:
        return None
    equal = jnp.full(parts, 1 / parts, jnp.float32)
    return Share(_share(counted), equal if rows is None else _share(rows))


def _share(counted: Array) -> Array:
    """What part of all that counts is in each part."""
    axes = tuple(range(1, counted.ndim))
    counts = jnp.sum(counted, axes, dtype=jnp.float32)
    return counts / jnp.maximum(jnp.sum(counts), jnp.float32(1))


def _summed(
    one: Callable[..., Any],
    parts: int,
    state: State,
    pieces: tuple[PyTree, Array | None, Share | None],
    key: Key | None,
    measures: dict[str, Metric],
) -> Any:
    """Value, extras and gradient of a batch that is run part by part."""

    def body(carry: Any, each: Any) -> Any:
        state, total = carry
        (batch, rows, share), index = each
        own = None if index is None else jax.random.fold_in(cast(Any, key), index)
        (value, out), grad = one(state, batch, own, rows, share)
        total = jax.tree.map(_plus, total, (value, out.terms, grad))
        return (out.state, total), out.metrics

    index = None if key is None else jnp.arange(parts, dtype=jnp.uint32)
    batch, rows, share = jax.tree.map(itemgetter(0), pieces)
    shapes: Any = jax.eval_shape(one, state, batch, key, rows, share)
    (value, out), grad = shapes
    like = value, out.terms, grad
    start = jax.tree.map(_zeros, like)
    (state, total), states = lax.scan(body, (state, start), (pieces, index))
    count = parts if share is None else 1
    value, terms, grad = jax.tree.map(partial(_mean, count), total, like)
    return (value, Out(state, terms, _merged(measures, states, parts), {})), grad


def _zeros(spec: Any) -> Array:
    return jnp.zeros(spec.shape, jnp.promote_types(spec.dtype, jnp.float32))


def _plus(total: Array, x: Array) -> Array:
    return total + to_dtype(x, total.dtype)


def _mean(count: int, total: Array, like: Any) -> Array:
    whole = total if count == 1 else total / jnp.asarray(count, total.dtype)
    return to_dtype(whole, like.dtype)


def _divided(grad: Params, scale: Array) -> Params:
    def one(g: Any) -> Any:
        return g / scale.astype(g.dtype)

    return jax.tree.map(one, grad)


def _merged(measures: dict[str, Metric], states: States, parts: int) -> States:
    """The states of all parts as one."""
    merged: States = {}
    for name, metric in measures.items():
        each = [jax.tree.map(itemgetter(i), states[name]) for i in range(parts)]
        merged[name] = metric.merged(each)
    return merged
