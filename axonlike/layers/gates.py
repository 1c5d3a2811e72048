"""What recurrent cells share: params of several gates side by side, and their products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from axonlike.initializers import InitFunction
from axonlike.layers.checks import exactly
from axonlike.layers.linear import add_bias
from axonlike.layers.product import DotGeneral, product
from axonlike.types import Array, Key, Params, to_dtype

Activation = Callable[[Any], Any]
Multiply = Callable[[Any, Any], Array]


def one_step(kind: str, x: Any) -> None:
    """Refuses an input that is not one time step."""
    exactly(
        kind,
        x,
        2,
        "(batch, n)",
        "A cell takes one step at a time; lstm, gru and scan(cell) take sequences, "
        "(batch, time, n).",
    )


def gate_inits(
    kernel_init: InitFunction,
    recurrent_kernel_init: InitFunction,
    bias_init: InitFunction,
    *,
    use_bias: bool,
) -> dict[str, InitFunction]:
    """Initializers by name of the param, in the order of their keys."""
    inits = {"kernel": kernel_init, "recurrent_kernel": recurrent_kernel_init}
    return {**inits, "bias": bias_init} if use_bias else inits


def gate_params(
    key: Key,
    shape: tuple[Any, ...],
    count: int,
    inits: dict[str, InitFunction],
    dtype: Any,
    *,
    forget: int | None = None,
    forget_bias: float = 0.0,
) -> Params:
    """Params of `count` gates side by side, each gate's part initialized by itself.

    `shape` is one gate's kernel. The bias of gate `forget` has `forget_bias` on top.
    """
    features = shape[-1]
    square = (*shape[:-2], features, features)
    shapes = {"recurrent_kernel": square, "bias": (features,)}
    params: Params = {}
    for own, (name, init) in zip(jax.random.split(key, 3), inits.items(), strict=False):
        keys = jax.random.split(own, count)
        parts = [init(k, shapes.get(name, shape), dtype) for k in keys]
        if name == "bias" and forget is not None:
            parts[forget] = parts[forget] + forget_bias
        params[name] = jnp.concatenate(parts, -1)
    return params


def multiplier(precision: Any, dot_general: DotGeneral | None) -> Multiply:
    """`(x, kernel) -> x @ kernel`, in the dtype of `x`: of a step, or of all of them."""

    def multiply(x: Any, kernel: Any) -> Array:
        kernel = to_dtype(kernel, x.dtype)
        if dot_general is None and x.ndim == 2:
            return _step_product(x, kernel, precision)
        return product(x, kernel, precision, dot_general)

    return multiply


def _plain(x: Any, kernel: Any, precision: Any) -> Array:
    return jnp.matmul(x, kernel, precision=precision)


def _tangent(precision: Any, primals: Any, tangents: Any) -> tuple[Array, Array]:
    """Written so that a loop's transpose multiplies by what was transposed before it."""
    (x, kernel), (of_x, of_kernel) = primals, tangents
    axes = (((1,), (1,)), ((), ()))
    along = jax.lax.dot_general(of_x, kernel.T, axes, precision=precision)
    return _plain(x, kernel, precision), along + _plain(x, of_kernel, precision)


_step_product: Any = jax.custom_jvp(_plain, nondiff_argnums=(2,))
_step_product.defjvp(_tangent)


def projection(multiply: Multiply, count: int) -> Callable[[Params, Any], Any]:
    """The input's part of each gate: `project` of a cell.

    An array for each: a loop that takes parts of a wide one's steps runs 2.5 times slower.
    """

    def project(params: Params, x: Any) -> tuple[Array, ...]:
        y = add_bias(params, multiply(x, params["kernel"]))
        return tuple(jnp.split(y, count, -1))

    return project


def carried(multiply: Multiply, params: Params, h: Any, count: int) -> list[Array]:
    """The carry's part of each gate, with its own bias where that is every gate's."""
    y = multiply(h, params["recurrent_kernel"])
    if _is_of_every_gate(params):
        y = add_bias({"bias": params["recurrent_bias"]}, y)
    return jnp.split(y, count, -1)


def every_gate(
    init: InitFunction, key: Key, count: int, features: int, dtype: Any
) -> Array:
    """A bias of the carry's product: a part for each gate."""
    keys = jax.random.split(jax.random.fold_in(key, 3), count)
    return jnp.concatenate([init(k, (features,), dtype) for k in keys])


def _is_of_every_gate(params: Params) -> bool:
    """Whether the carry's product has a bias for more than a candidate."""
    own, kernel = params.get("recurrent_bias"), params["recurrent_kernel"]
    return own is not None and own.shape[-1] == kernel.shape[-1]


def recurrent_bias(params: Params, hn: Array) -> Array:
    """The carry's part of a candidate that a gate is to act on."""
    if "recurrent_bias" not in params or _is_of_every_gate(params):
        return hn
    bias = to_dtype(params["recurrent_bias"], hn.dtype)
    return hn + jnp.broadcast_to(bias, hn.shape)


def zeros_like_step(x: Any, features: int) -> Array:
    """A carry of zeros for a step `(batch, ..., n)`."""
    return jnp.zeros((*x.shape[:-1], features), x.dtype)


def lstm_step(
    carry: Any, z: Any, gate_fn: Activation, activation_fn: Activation
) -> tuple[Any, Array]:
    """The new `(h, c)` and `h`, from the four parts i, f, g, o of `z`."""
    i, f, g, o = z
    c = gate_fn(f) * carry[1] + gate_fn(i) * activation_fn(g)
    h = gate_fn(o) * activation_fn(c)
    return (h, c), h


def peephole_step(
    weights: Any, carry: Any, z: Any, gate_fn: Activation, activation_fn: Activation
) -> tuple[Any, Array]:
    """The same with gates that see the memory: `weights` are those of i, f and o."""
    i, f, g, o = z
    wi, wf, wo = (
        jnp.broadcast_to(to_dtype(weights[k], i.dtype), i.shape) for k in range(3)
    )
    old = carry[1]
    c = gate_fn(f + wf * old) * old + gate_fn(i + wi * old) * activation_fn(g)
    h = gate_fn(o + wo * c) * activation_fn(c)
    return (h, c), h


def blend(h: Array, n: Array, z: Array) -> tuple[Array, Array]:
    """The new carry and output: `z` of the old, the rest of the candidate."""
    h = (1 - z) * n + z * h
    return h, h
