"""Affine maps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from axonlike.initializers import InitFunction, lecun_normal, zeros
from axonlike.layer import layer
from axonlike.layers.checks import at_least, positive, some
from axonlike.types import Array, Key, Params, to_dtype

DotGeneral = Callable[..., Any]
"""What has the signature of `jax.lax.dot_general`."""


@layer
def dense(
    features: int,
    *,
    use_bias: bool = True,
    kernel_init: InitFunction = lecun_normal(),
    bias_init: InitFunction = zeros(),
    param_dtype: Any = jnp.float32,
    precision: Any = None,
    dot_general: DotGeneral | None = None,
    name: str | None = None,
) -> Any:
    """Affine map of the last axis: `y = x @ kernel + bias`.

    Args:
        features: size of the output's last axis; positive.
        use_bias: whether to add a bias.
        kernel_init: initializer of the kernel.
        bias_init: initializer of the bias.
        param_dtype: dtype in which params are stored; computation follows the input's.
        precision: of the matrix product, as in `jax.lax.dot_general`.
        dot_general: called in place of `jax.lax.dot_general`, for products in int8 or
            fp8; None: JAX's own.
        name: the layer's name among its siblings.

    Shapes:
        input: `(..., n)`, floating point.
        output: `(..., features)`, the input's dtype.
        kernel: `(n, features)`, LeCun normal.
        bias: `(features,)`, zeros; absent when `use_bias` is false.

    Raises:
        ValueError: `features` is not a positive int.
        ShapeError: the input is a scalar, or not floating point.

    Example:
        >>> import jax, jax.numpy as jnp, axonlike as al
        >>> layer = al.dense(2)
        >>> params, state = layer.init(jax.random.key(0), (None, 3))
        >>> layer.predict(params, state, jnp.ones((5, 3))).shape
        (5, 2)
    """
    positive("dense", features=features)

    def init(key: Key, x: Any) -> Params:
        _check(x)
        some("dense", x)
        shape = (x.shape[-1], features)
        return affine_params(
            key,
            shape,
            use_bias=use_bias,
            kernel_init=kernel_init,
            bias_init=bias_init,
            dtype=param_dtype,
        )

    def apply(params: Params, x: Any) -> Array:
        _check(x)
        return affine(params, x, precision, dot_general)

    def _check(x: Any) -> None:
        at_least("dense", x, 1, "(..., n)", "Add an axis with x[..., None].")

    return init, apply


def affine_params(
    key: Key,
    shape: tuple[int, ...],
    *,
    use_bias: bool,
    kernel_init: InitFunction,
    bias_init: InitFunction,
    dtype: Any,
) -> Params:
    """A kernel, and a bias for its last axis."""
    kernel_key = bias_key = key
    if use_bias and getattr(bias_init, "draws", True):
        kernel_key, bias_key = jax.random.split(key)
    params = {"kernel": kernel_init(kernel_key, shape, dtype)}
    if use_bias:
        params["bias"] = bias_init(bias_key, shape[-1:], dtype)
    return params


def affine(
    params: Params, x: Any, precision: Any, dot_general: DotGeneral | None = None
) -> Array:
    """`x @ kernel + bias` in the dtype of `x`; no bias where there is none."""
    kernel = to_dtype(params["kernel"], x.dtype)
    return add_bias(params, product(x, kernel, precision, dot_general))


def product(
    x: Any, kernel: Any, precision: Any, dot_general: DotGeneral | None = None
) -> Array:
    """`x @ kernel`, by another `dot_general` where one is given."""
    if dot_general is None:  # whose derivative JAX caches, unlike lax.dot_general's
        return jnp.matmul(x, kernel, precision=precision)
    axes = (((x.ndim - 1,), (0,)), ((), ()))
    return dot_general(x, kernel, axes, precision=precision)


def add_bias(params: Params, y: Array) -> Array:
    """`y + bias` along the last axis; `y` where there is no bias."""
    if "bias" not in params:
        return y
    return y + jnp.broadcast_to(to_dtype(params["bias"], y.dtype), y.shape)
