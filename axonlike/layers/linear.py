"""Affine maps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp

from axonlike.combinators.basic import serial
from axonlike.initializers import InitFunction, lecun_normal, zeros
from axonlike.layer import layer
from axonlike.layers.axes import Axes, axes_in, axes_option, sizes_of
from axonlike.layers.checks import at_least, is_int, positive
from axonlike.layers.product import DotGeneral, contract, product
from axonlike.types import Array, Key, Params, to_dtype


@layer
def dense(
    features: int | Sequence[int],
    *,
    axis: Axes = -1,
    use_bias: bool = True,
    kernel_init: InitFunction = lecun_normal(),
    bias_init: InitFunction = zeros(),
    param_dtype: Any = jnp.float32,
    precision: Any = None,
    dot_general: DotGeneral | None = None,
    name: str | None = None,
) -> Any:
    """Affine map of the last axis, or of several: `y = x @ kernel + bias`.

    All of `axis` are summed over, and the axes of `features` come last: `dense((4, 8))`
    splits into 4 heads of 8, `dense(32, axis=(-2, -1))` merges them again.

    Args:
        features: size of the output's last axis, or a tuple: sizes of as many last axes;
            positive.
        axis: the input's axis, or axes in any order, that the map takes away.
        use_bias: whether to add a bias.
        kernel_init: initializer of the kernel, as one of two axes: all inputs, all
            outputs.
        bias_init: initializer of the bias.
        param_dtype: dtype in which params are stored; computation follows the input's.
        precision: of the matrix product, as in `jax.lax.dot_general`.
        dot_general: called in place of `jax.lax.dot_general`, for products in int8 or
            fp8; None: JAX's own.
        name: the layer's name among its siblings.

    Shapes:
        input: `(..., n)`, floating point; with the axes that `axis` names.
        output: `(..., features)`, the input's dtype: axes that stay, then `features`.
        kernel: `(n, features)`, LeCun normal; for several axes their sizes in the
            input's order, then `features`.
        bias: `(features,)` or `features`, zeros; absent when `use_bias` is false.

    Raises:
        ValueError: `features` is not a positive int or several, or `axis` not an int or
            several different ones.
        ShapeError: the input lacks an axis, or is not floating point.

    Example:
        >>> import jax, jax.numpy as jnp, axonlike as al
        >>> layer = al.dense(2)
        >>> params, state = layer.init(jax.random.key(0), (None, 3))
        >>> layer.predict(params, state, jnp.ones((5, 3))).shape
        (5, 2)
        >>> heads = al.dense((4, 8)) >> al.dense(32, axis=(-2, -1))
        >>> heads.output_spec(al.spec("b t 32")).shape
        (b, t, 32)
    """
    made, axes = _features(features), axes_option("dense", axis)
    plain = is_int(features) and axes == (-1,)

    def init(key: Key, x: Any) -> Params:
        sizes = sizes_of("dense", x, _check(x))
        shapes = {"kernel": (*sizes, *made), "bias": made}
        flat = affine_params(
            key,
            (math.prod(sizes), math.prod(made)),
            use_bias=use_bias,
            kernel_init=kernel_init,
            bias_init=bias_init,
            dtype=param_dtype,
        )
        return {name: param.reshape(shapes[name]) for name, param in flat.items()}

    def apply(params: Params, x: Any) -> Array:
        at = _check(x)
        if plain:
            return affine(params, x, precision, dot_general)
        kernel = to_dtype(params["kernel"], x.dtype)
        return add_bias(params, _along(x, at, kernel, precision, dot_general))

    def _check(x: Any) -> tuple[int, ...]:
        if plain:
            at_least("dense", x, 1, "(..., n)", "Add an axis with x[..., None].")
            return (x.ndim - 1,)
        return axes_in("dense", x, axes)

    return init, apply


def _along(
    x: Any,
    at: tuple[int, ...],
    kernel: Array,
    precision: Any,
    dot_general: DotGeneral | None,
) -> Array:
    """The product along several axes, as a product of matrices where they are the last."""
    many, made = len(at), kernel.shape[len(at) :]
    if at != tuple(range(x.ndim - many, x.ndim)):
        axes = (at, tuple(range(many))), ((), ())
        return contract(x, kernel, axes, precision, dot_general)
    size, lead = math.prod(kernel.shape[:many]), x.shape[: x.ndim - many]
    rows, flat = jnp.reshape(x, (*lead, size)), jnp.reshape(kernel, (size, -1))
    return jnp.reshape(product(rows, flat, precision, dot_general), (*lead, *made))


def _features(features: int | Sequence[int]) -> tuple[int, ...]:
    """The sizes that dense makes."""
    if not isinstance(features, (tuple, list)):
        positive("dense", features=features)
        return (cast(int, features),)
    sizes = tuple(cast("Sequence[Any]", features))
    if not sizes or not all(is_int(n) and n >= 1 for n in sizes):
        raise ValueError(
            f"dense: features must be a positive int or a tuple of them, got {sizes}."
        )
    return sizes


@layer
def low_rank(
    features: int,
    rank: int,
    *,
    use_bias: bool = True,
    kernel_init: InitFunction = lecun_normal(),
    bias_init: InitFunction = zeros(),
    param_dtype: Any = jnp.float32,
    precision: Any = None,
    dot_general: DotGeneral | None = None,
    name: str | None = None,
) -> Any:
    """Affine map of the last axis by two thin kernels: `y = (x @ down) @ up + bias`.

    Instead of `n * features` weights there are `(n + features) * rank`. The map's rank
    is at most `rank`, so that less than `min(n, features)` is worth it.

    Args:
        features: size of the output's last axis; positive.
        rank: width between the two products; positive.
        use_bias: whether to add a bias, after the second product.
        kernel_init: initializer of both kernels.
        bias_init: initializer of the bias.
        param_dtype: dtype in which params are stored; computation follows the input's.
        precision: of the matrix products, as in `jax.lax.dot_general`.
        dot_general: called in place of `jax.lax.dot_general`.
        name: the layer's name among its siblings.

    Shapes:
        input: `(..., n)`, floating point.
        output: `(..., features)`, the input's dtype.
        down/kernel: `(n, rank)`, LeCun normal.
        up/kernel: `(rank, features)`, LeCun normal.
        up/bias: `(features,)`, zeros; absent when `use_bias` is false.

    Raises:
        ValueError: a size is not a positive int.
        ShapeError: the input is a scalar, or not floating point.

    Example:
        >>> import jax, axonlike as al
        >>> layer = al.low_rank(100, rank=4)
        >>> params, _ = layer.init(jax.random.key(0), al.spec("b 50"))
        >>> al.count(params), 50 * 100 + 100
        (700, 5100)
    """
    positive("low_rank", features=features, rank=rank)

    def thin(size: int, use_bias: bool) -> Any:
        return dense(
            size,
            use_bias=use_bias,
            kernel_init=kernel_init,
            bias_init=bias_init,
            param_dtype=param_dtype,
            precision=precision,
            dot_general=dot_general,
        )

    return serial(down=thin(rank, False), up=thin(features, use_bias))


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


def add_bias(params: Params, y: Array) -> Array:
    """`y + bias` along the last axis; `y` where there is no bias."""
    if "bias" not in params:
        return y
    return y + jnp.broadcast_to(to_dtype(params["bias"], y.dtype), y.shape)
