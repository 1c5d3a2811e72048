"""Convolution with weights of its own at each position."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from axonlike.errors import ShapeError
from axonlike.initializers import InitFunction, lecun_normal, zeros
from axonlike.layer import layer
from axonlike.layers.checks import last_axis, positive, some
from axonlike.layers.convolve import Geometry, under_taps
from axonlike.layers.windows import (
    PADDINGS,
    Padding,
    Sizes,
    axes_of,
    check_spatial,
    check_windows,
    extended,
    extent_of,
    pads_of,
)
from axonlike.spec import show
from axonlike.types import Array, Key, Params, to_dtype


@layer
def conv_local(
    features: int,
    kernel_size: Sizes,
    strides: Sizes = 1,
    *,
    padding: Padding = "SAME",
    input_dilation: Sizes = 1,
    kernel_dilation: Sizes = 1,
    use_bias: bool = True,
    kernel_init: InitFunction = lecun_normal(),
    bias_init: InitFunction = zeros(),
    param_dtype: Any = jnp.float32,
    precision: Any = None,
    name: str | None = None,
) -> Any:
    """Locally connected: a convolution whose kernel differs from position to position.

    The spatial sizes are part of the params: they must be known, and stay.

    Args:
        features: number of output channels; positive.
        kernel_size: one int for every spatial axis the input has, or a tuple, one for
            each.
        strides: steps between windows, likewise.
        padding: as in `conv`.
        input_dilation: distance between the input's positions, zeros in between.
        kernel_dilation: distance between the kernel's taps.
        use_bias: whether to add a bias, at each position its own.
        kernel_init: initializer of the kernel, for one position as for a `conv`.
        bias_init: initializer of the bias.
        param_dtype: dtype in which params are stored; computation follows the input's.
        precision: of the products, as in `jax.lax.dot_general`.
        name: the layer's name among its siblings.

    Shapes:
        input: `(batch, *spatial, in)`, floating point.
        output: `(batch, *positions, features)`, the input's dtype.
        kernel: `(*positions, *kernel_size, in, features)`, LeCun normal.
        bias: `(*positions, features)`, zeros; absent when `use_bias` is false.

    Raises:
        ValueError: an option is not a size, or options disagree on the number of axes.
        ShapeError: the input has another rank or size, or a window is larger than the
            padded input.

    Example:
        >>> import jax, axonlike as al
        >>> layer = al.conv_local(8, 3, strides=2)
        >>> params, state = layer.init(jax.random.key(0), al.spec("b 10 10 4"))
        >>> params["kernel"].shape
        (5, 5, 3, 3, 4, 8)
        >>> layer.output_spec(al.spec("b 10 10 4")).shape
        (b, 5, 5, 8)
    """
    kind = "conv_local"
    positive(kind, features=features)
    ranked = check_windows(
        kind,
        kernel_size,
        PADDINGS,
        strides=strides,
        input_dilation=input_dilation,
        kernel_dilation=kernel_dilation,
        padding=padding,
    )

    def geometry(x: Any) -> tuple[Any, tuple[int, ...], Geometry]:
        """The input padded by its values, the kernel's sizes, and where windows lie."""
        check_spatial(kind, x, ranked)
        sizes, steps, holes, dilation = (
            axes_of(option, x.ndim - 2)
            for option in (kernel_size, strides, input_dilation, kernel_dilation)
        )
        extent = extent_of(sizes, dilation)
        wide = extent_of(x.shape[1:-1], holes)
        pads = pads_of(kind, x, padding, extent, steps, wide)
        x, pads = extended(x, padding, pads)
        return x, sizes, Geometry(steps, tuple(pads), holes, dilation)

    def patches(x: Any) -> Array:
        """What each window lies on: `(batch, *positions, taps, in)`."""
        x, sizes, where = geometry(x)
        return jnp.stack([under for _, under in under_taps(x, sizes, where)], -2)

    def init(key: Key, x: Any) -> Params:
        check_spatial(kind, x, ranked)
        some(kind, x)
        positions = jax.eval_shape(patches, x).shape[1:-2]
        shape = (*axes_of(kernel_size, x.ndim - 2), x.shape[-1], features)
        kernel_key, bias_key = jax.random.split(key)
        keys = jax.random.split(kernel_key, math.prod(positions))
        drawn = jax.vmap(partial(_draw, kernel_init, shape, param_dtype))(keys)
        params = {"kernel": jnp.reshape(drawn, (*positions, *shape))}
        if use_bias:
            params["bias"] = bias_init(bias_key, (*positions, features), param_dtype)
        return params

    def apply(params: Params, x: Any) -> Array:
        kernel = to_dtype(params["kernel"], x.dtype)
        last_axis(kind, x, kernel.shape[-2])
        lies_on, ndim = patches(x), x.ndim - 2
        positions = kernel.shape[:ndim]
        if lies_on.shape[1:-2] != positions:
            expected = f"spatial sizes that give {positions} positions"
            hint = "The params were made for those positions."
            raise ShapeError(kind, expected, show(x), hint)
        flat = jnp.reshape(kernel, (*positions, -1, *kernel.shape[-2:]))
        summed = ((ndim + 1, ndim + 2), (ndim, ndim + 1))
        shared = (tuple(range(1, ndim + 1)), tuple(range(ndim)))
        y = lax.dot_general(lies_on, flat, (summed, shared), precision=precision)
        y = jnp.moveaxis(y, ndim, 0)
        if "bias" not in params:
            return y
        return y + jnp.broadcast_to(to_dtype(params["bias"], y.dtype), y.shape)

    return init, apply


def _draw(init: InitFunction, shape: tuple[int, ...], dtype: Any, key: Key) -> Array:
    return init(key, shape, dtype)
