"""Pooling of windows: maximum, minimum, mean, norm, and blur."""

from __future__ import annotations

from functools import reduce
from math import comb, prod
from typing import Any

import jax.numpy as jnp
from jax import lax

from axonlike.layer import layer
from axonlike.layers.checks import positive, wide
from axonlike.layers.pooled import (
    Window,
    counts_of,
    first_max,
    first_min,
    highest,
    lowest,
    norm_of,
    pool,
    powers,
    root,
    steps_of,
    taps,
    windows_of,
)
from axonlike.layers.windows import (
    PADDINGS,
    Padding,
    Sizes,
    axes_of,
    check_agree,
    check_padding,
    check_sizes,
    check_spatial,
    extended,
    pads_of,
)
from axonlike.types import Array, Params


@layer
def max_pool(
    window: Sizes,
    strides: Sizes | None = None,
    padding: Padding = "VALID",
    *,
    window_dilation: Sizes = 1,
    ceil_mode: bool = False,
    name: str | None = None,
) -> Any:
    """Maximum of each window, channel by channel.

    Padding never wins. Of equal maxima the first in row-major order gets the whole
    gradient, as in PyTorch; a NaN in a window is its maximum.

    Args:
        window: one int for every spatial axis the input has, or one for each.
        strides: steps between windows; None: the window, so that none overlap.
        padding: `"VALID"` (none: what does not fill a window is left out), `"SAME"`, an
            int for both sides of all axes, or for each axis an int or a pair.
        window_dilation: distance between the numbers of a window.
        ceil_mode: whether a last window that the padded input does not fill counts
            too, as in PyTorch: it must start before the padding after the input.
        name: the layer's name among its siblings.

    Shapes:
        input: `(batch, *spatial, channels)`, any number of spatial axes from 1 on.
        output: `(batch, *spatial, channels)`, the input's dtype.

    Raises:
        ValueError: an option is not a size, or they disagree on the number of axes.
        ShapeError: the input has another rank, or a window is larger than the padded
            input.

    Example:
        >>> import jax.numpy as jnp, axonlike as al
        >>> x = jnp.arange(16.0).reshape(1, 4, 4, 1)
        >>> al.max_pool(2).predict({}, {}, x)[0, :, :, 0]
        Array([[ 5.,  7.],
               [13., 15.]], dtype=float32)
    """
    steps = steps_of("max_pool", window, strides, padding, window_dilation)

    def apply(params: Params, x: Any) -> Array:
        windows = windows_of(
            "max_pool",
            x,
            window,
            steps,
            padding,
            window_dilation,
            ceil_mode=ceil_mode,
            floating=False,
        )
        return pool(x, windows, lowest(x.dtype), first_max)

    return None, apply


@layer
def min_pool(
    window: Sizes,
    strides: Sizes | None = None,
    padding: Padding = "VALID",
    *,
    window_dilation: Sizes = 1,
    ceil_mode: bool = False,
    name: str | None = None,
) -> Any:
    """Minimum of each window, channel by channel.

    Padding never wins. Of equal minima the first in row-major order gets the whole
    gradient, as in PyTorch; a NaN in a window is its minimum.

    Args:
        window: one int for every spatial axis the input has, or one for each.
        strides: steps between windows; None: the window, so that none overlap.
        padding: `"VALID"` (none: what does not fill a window is left out), `"SAME"`, an
            int for both sides of all axes, or for each axis an int or a pair.
        window_dilation: distance between the numbers of a window.
        ceil_mode: whether a last window that the padded input does not fill counts
            too, as in PyTorch: it must start before the padding after the input.
        name: the layer's name among its siblings.

    Shapes:
        input: `(batch, *spatial, channels)`, any number of spatial axes from 1 on.
        output: `(batch, *spatial, channels)`, the input's dtype.

    Raises:
        ValueError: an option is not a size, or they disagree on the number of axes.
        ShapeError: the input has another rank, or a window is larger than the padded
            input.

    Example:
        >>> import jax.numpy as jnp, axonlike as al
        >>> x = jnp.arange(16.0).reshape(1, 4, 4, 1)
        >>> al.min_pool(2).predict({}, {}, x)[0, :, :, 0]
        Array([[ 0.,  2.],
               [ 8., 10.]], dtype=float32)
    """
    steps = steps_of("min_pool", window, strides, padding, window_dilation)

    def apply(params: Params, x: Any) -> Array:
        windows = windows_of(
            "min_pool",
            x,
            window,
            steps,
            padding,
            window_dilation,
            ceil_mode=ceil_mode,
            floating=False,
        )
        return pool(x, windows, highest(x.dtype), first_min)

    return None, apply


@layer
def avg_pool(
    window: Sizes,
    strides: Sizes | None = None,
    padding: Padding = "VALID",
    *,
    window_dilation: Sizes = 1,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    name: str | None = None,
) -> Any:
    """Mean of each window, channel by channel.

    Summed in float32 at least, and rounded once. A window of nothing but padding that
    does not count gives 0.

    Args:
        window: one int for every spatial axis the input has, or one for each.
        strides: steps between windows; None: the window, so that none overlap.
        padding: `"VALID"` (none: what does not fill a window is left out), `"SAME"`, an
            int for both sides of all axes, or for each axis an int or a pair.
        window_dilation: distance between the numbers of a window.
        ceil_mode: whether a last window that the padded input does not fill counts
            too, as in PyTorch: it must start before the padding after the input.
        count_include_pad: whether padding counts as zeros, as in Flax and PyTorch;
            otherwise the mean is over what is not padding, as in Keras. What ceil mode
            adds never counts.
        name: the layer's name among its siblings.

    Shapes:
        input: `(batch, *spatial, channels)`, floating point, any number of spatial axes
            from 1 on.
        output: `(batch, *spatial, channels)`, the input's dtype.

    Raises:
        ValueError: an option is not a size, or they disagree on the number of axes.
        ShapeError: the input has another rank, or a window is larger than the padded
            input.

    Example:
        >>> import jax.numpy as jnp, axonlike as al
        >>> x = jnp.arange(16.0).reshape(1, 4, 4, 1)
        >>> al.avg_pool(2).predict({}, {}, x)[0, :, :, 0]
        Array([[ 2.5,  4.5],
               [10.5, 12.5]], dtype=float32)
    """
    steps = steps_of("avg_pool", window, strides, padding, window_dilation)

    def apply(params: Params, x: Any) -> Array:
        windows = windows_of(
            "avg_pool", x, window, steps, padding, window_dilation, ceil_mode=ceil_mode
        )
        total = pool(x.astype(wide(x.dtype)), windows, 0, lax.add)
        added = [w.rest if count_include_pad else w.pads for w in windows]
        if all(one in (0, (0, 0)) for one in added):
            return (total * (1 / prod(w.size for w in windows))).astype(x.dtype)
        count = counts_of(x, windows, padding=count_include_pad)
        share = 1 / jnp.maximum(count, 1.0).astype(total.dtype)
        return (total * jnp.broadcast_to(share, total.shape)).astype(x.dtype)

    return None, apply


@layer
def lp_pool(
    window: Sizes,
    strides: Sizes | None = None,
    padding: Padding = "VALID",
    *,
    norm: float = 2,
    window_dilation: Sizes = 1,
    ceil_mode: bool = False,
    name: str | None = None,
) -> Any:
    """Norm of each window, channel by channel: `sum(|x| ** norm) ** (1 / norm)`.

    Computed in float32 at least. PyTorch leaves out the absolute value, which differs
    where `norm` is odd, and has NaN for the gradient of a window of zeros; here it is
    0.

    Args:
        window: one int for every spatial axis the input has, or one for each.
        strides: steps between windows; None: the window, so that none overlap.
        padding: `"VALID"` (none: what does not fill a window is left out), `"SAME"`, an
            int for both sides of all axes, or for each axis an int or a pair.
        norm: its order, from 1 on.
        window_dilation: distance between the numbers of a window.
        ceil_mode: whether a last window that the padded input does not fill counts
            too, as in PyTorch: it must start before the padding after the input.
        name: the layer's name among its siblings.

    Shapes:
        input: `(batch, *spatial, channels)`, floating point, any number of spatial axes
            from 1 on.
        output: `(batch, *spatial, channels)`, the input's dtype.

    Raises:
        ValueError: an option is not a size, or they disagree on the number of axes.
        ShapeError: the input has another rank, or a window is larger than the padded
            input.

    Example:
        >>> import jax.numpy as jnp, axonlike as al
        >>> al.lp_pool(2).predict({}, {}, jnp.array([[[3.0], [4.0]]]))
        Array([[[5.]]], dtype=float32)
    """
    norm = norm_of("lp_pool", norm)
    steps = steps_of("lp_pool", window, strides, padding, window_dilation)

    def apply(params: Params, x: Any) -> Array:
        windows = windows_of(
            "lp_pool", x, window, steps, padding, window_dilation, ceil_mode=ceil_mode
        )
        total = pool(powers(x.astype(wide(x.dtype)), norm), windows, 0, lax.add)
        return root(total, norm).astype(x.dtype)

    return None, apply


@layer
def blur_pool(
    size: int = 3,
    strides: Sizes = 2,
    padding: Padding = "REFLECT",
    *,
    name: str | None = None,
) -> Any:
    """Blur with a binomial filter, then every second position: no aliasing.

    In place of a stride: `max_pool(2, 1, "SAME") >> blur_pool()`,
    `conv(8, 3) >> blur_pool()`. The filter is an outer product of `(1, 2, 1) / 4`, or
    of the binomial numbers of another size; summed in float32 at least.

    Args:
        size: of the filter along each spatial axis.
        strides: one int for every spatial axis the input has, or one for each.
        padding: `"REFLECT"` (mirrored, the edge once), `"REPLICATE"` (the edge),
            `"CIRCULAR"` (from the other end), each as many as keeps the size without
            strides; with zeros: `"SAME"`, `"SAME_LOWER"`, an int, or for each axis an
            int or a pair; `"VALID"` (none).
        name: the layer's name among its siblings.

    Shapes:
        input: `(batch, *spatial, channels)`, floating point, any number of spatial axes
            from 1 on.
        output: `(batch, *spatial, channels)`, the input's dtype.

    Raises:
        ValueError: an option is not a size, or they disagree on the number of axes.
        ShapeError: the input has another rank, or the filter is larger than the padded
            input.

    Example:
        >>> import jax.numpy as jnp, axonlike as al
        >>> x = jnp.array([0.0, 0.0, 4.0, 0.0, 0.0, 0.0]).reshape(1, 6, 1)
        >>> al.blur_pool().predict({}, {}, x).ravel()
        Array([0., 2., 0.], dtype=float32)

    References:
        Zhang, "Making Convolutional Networks Shift-Invariant Again", ICML 2019.
    """
    positive("blur_pool", size=size)
    names = tuple(name for name in PADDINGS if name != "CAUSAL")
    check_sizes("blur_pool", strides=strides)
    check_padding("blur_pool", padding, names)
    ranked = check_agree("blur_pool", strides=strides, padding=padding)

    def apply(params: Params, x: Any) -> Array:
        check_spatial("blur_pool", x, ranked)
        y, windows = _blurred(x, size, strides, padding)
        for axis in range(len(windows), 0, -1):
            items = taps(y, axis, windows[axis - 1], 0)
            scales = [comb(size - 1, i) / 2 ** (size - 1) for i in range(size)]
            scaled = [item * by for item, by in zip(items, scales, strict=True)]
            y = reduce(lax.add, scaled)
        return y.astype(x.dtype)

    return None, apply


def _blurred(
    x: Any, size: int, strides: Sizes, padding: Padding
) -> tuple[Any, list[Window]]:
    """The wide input, padded with its own values, and the windows over it."""
    sizes, steps = (size,) * (x.ndim - 2), axes_of(strides, x.ndim - 2)
    pads = pads_of("blur_pool", x, padding, sizes, steps)
    y, pads = extended(x.astype(wide(x.dtype)), padding, pads)
    ones = (1,) * len(sizes)
    return y, list(map(Window, sizes, steps, ones, pads))
