"""How windows are pooled: what all pooling layers share.

Windows are rectangles, so a pooling is done one axis after the other, and along an
axis by combining shifted slices; where windows tile the input, on all axes at once.
That is several times faster than `lax.reduce_window` on a CPU, and its gradient is
exact: the first of equal maxima in row-major order gets it all.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import reduce
from typing import Any, NamedTuple, cast

import jax.numpy as jnp
import numpy as np
from jax import lax

from axonlike.layers.checks import within
from axonlike.layers.windows import (
    Padding,
    Sizes,
    axes_of,
    check_agree,
    check_padding,
    check_sizes,
    check_spatial,
    extent_of,
    pads_of,
)
from axonlike.spec import is_unknown
from axonlike.types import Array

Combine = Callable[[Any, Any], Any]
_MOST_SLICES = 16


class Window(NamedTuple):
    """The windows along one axis: taps, step, distance of taps, padding, the rest.

    `rest` is what ceil mode pads further, so that the last window fits.
    """

    size: int
    stride: int
    dilation: int
    pad: tuple[Any, Any]
    rest: Any = 0

    @property
    def pads(self) -> tuple[Any, Any]:
        """All padding before and after."""
        return self.pad[0], self.pad[1] + self.rest

    @property
    def extent(self) -> int:
        """How far a window reaches."""
        return (self.size - 1) * self.dilation + 1


def steps_of(
    kind: str,
    window: Sizes,
    strides: Sizes | None,
    padding: Padding,
    window_dilation: Sizes = 1,
) -> Sizes:
    """The strides, every option having been checked."""
    steps = window if strides is None else strides
    check_sizes(kind, window=window, strides=steps, window_dilation=window_dilation)
    check_padding(kind, padding, ("SAME", "VALID"))
    check_agree(
        kind,
        window=window,
        strides=steps,
        padding=padding,
        window_dilation=window_dilation,
    )
    return steps


def windows_of(
    kind: str,
    x: Any,
    window: Sizes,
    strides: Sizes,
    padding: Padding,
    window_dilation: Sizes = 1,
    *,
    ceil_mode: bool = False,
    floating: bool = True,
) -> list[Window]:
    """The windows along each spatial axis of a checked input."""
    options = (window, strides, padding, window_dilation)
    counted = [option for option in options if isinstance(option, (tuple, list))]
    check_spatial(kind, x, cast(Any, counted[0]) if counted else 1, floating=floating)
    ndim = x.ndim - 2
    sizes, steps = axes_of(window, ndim), axes_of(strides, ndim)
    gaps = axes_of(window_dilation, ndim)
    extent, room = extent_of(sizes, gaps), None
    if ceil_mode and padding != "SAME":  # a window may lack up to a stride less one
        room = tuple(n + s - 1 for n, s in zip(x.shape[1:-1], steps, strict=True))
    pads = pads_of(kind, x, padding, extent, steps, room)
    windows = list(map(Window, sizes, steps, gaps, pads))
    if ceil_mode:
        pairs = zip(windows, x.shape[1:-1], strict=True)
        windows = [_ceiled(one, size) for one, size in pairs]
    return windows


def _ceiled(window: Window, size: Any) -> Window:
    """As many windows as start in the input or in the padding before it."""
    low, high = window.pad
    start = size + low + min(0, high + window.stride - window.extent)
    count = (start + window.stride - 1) // window.stride
    rest = (count - 1) * window.stride + window.extent - size - low - high
    known = not is_unknown(rest)
    return window._replace(rest=max(rest, 0) if known else rest)


def pool(x: Any, windows: list[Window], fill: Any, combine: Combine) -> Array:
    """Each window's items, combined: ties go to the first in row-major order."""
    if _tiles(x, windows):
        return _tiled(x, [window.size for window in windows], combine)
    for axis in range(len(windows), 0, -1):
        x = _along(x, axis, windows[axis - 1], fill, combine)
    return x


def _tiles(x: Any, windows: list[Window]) -> bool:
    """Whether windows lie side by side, few enough numbers in each."""
    return math.prod(window.size for window in windows) <= _MOST_SLICES and all(
        window.size == window.stride
        and window.dilation == 1
        and not is_unknown(n)
        and window.pads == (0, 0)
        for n, window in zip(x.shape[1:-1], windows, strict=True)
    )


def _tiled(x: Any, sizes: list[int], combine: Combine) -> Array:
    """Windows side by side: their positions are axes of their own after a reshape."""
    counts = [n // size for n, size in zip(x.shape[1:-1], sizes, strict=True)]
    for axis, (count, size) in enumerate(zip(counts, sizes, strict=True), 1):
        if count * size != x.shape[axis]:
            x = lax.slice_in_dim(x, 0, count * size, 1, axis)
    split = [n for pair in zip(counts, sizes, strict=True) for n in pair]
    blocks = jnp.reshape(x, (x.shape[0], *split, x.shape[-1]))
    places = itertools.product(*map(range, sizes))
    return reduce(combine, [_item(blocks, place) for place in places])


def _item(blocks: Any, place: tuple[int, ...]) -> Array:
    """One position of every window."""
    start, limit = [0] * blocks.ndim, list(blocks.shape)
    for axis, i in enumerate(place):
        start[2 * axis + 2], limit[2 * axis + 2] = i, i + 1
    inner = tuple(2 * axis + 2 for axis in range(len(place)))
    return lax.squeeze(lax.slice(blocks, start, limit), inner)


def _along(x: Any, axis: int, window: Window, fill: Any, combine: Combine) -> Array:
    """One axis: slices that hold each window's first, second, ... item, combined."""
    unknown = is_unknown(x.shape[axis]) or any(map(is_unknown, window.pads))
    large = window.size > _MOST_SLICES
    if window.dilation == 1 and (unknown or large) and combine in _NATIVE:
        return _reduce_window(x, axis, window, fill, _NATIVE[combine])
    return reduce(combine, taps(x, axis, window, fill))


def taps(x: Any, axis: int, window: Window, fill: Any) -> list[Any]:
    """Slices that hold the first, second, ... item of each window along an axis."""
    if any(is_unknown(n) or n != 0 for n in window.pads):
        config = [(*window.pads, 0) if i == axis else (0, 0, 0) for i in range(x.ndim)]
        x = lax.pad(x, jnp.asarray(fill, x.dtype), config)
    count = (x.shape[axis] - window.extent) // window.stride + 1
    reach = (count - 1) * window.stride + 1
    starts = range(0, window.extent, window.dilation)
    return [lax.slice_in_dim(x, i, i + reach, window.stride, axis) for i in starts]


def _reduce_window(
    x: Any, axis: int, window: Window, fill: Any, combine: Combine
) -> Array:
    """The same by XLA: for sizes that are not known, and windows that are large."""

    def only(value: Any, other: Any) -> list[Any]:
        return [value if i == axis else other for i in range(x.ndim)]

    return lax.reduce_window(
        x,
        np.asarray(fill, x.dtype),
        combine,
        only(window.size, 1),
        only(window.stride, 1),
        only(window.pads, (0, 0)),
    )


def counts_of(x: Any, windows: list[Window], *, padding: bool) -> Array:
    """How many numbers each window holds: `(1, *spatial, 1)`, float32.

    Padding counts or not; what ceil mode adds never does.
    """
    total = jnp.ones((1,) * x.ndim, jnp.float32)
    for axis, window in enumerate(windows, 1):
        (low, high), size = window.pad, x.shape[axis]
        count = (size + sum(window.pads) - window.extent) // window.stride + 1
        shape = (count, window.size)
        place = lax.broadcasted_iota(jnp.int32, shape, 0) * window.stride
        place = place + lax.broadcasted_iota(jnp.int32, shape, 1) * window.dilation
        first, last = (0, size + low + high) if padding else (low, low + size)
        inside = (place >= first) & (place < last)
        along = jnp.sum(inside, 1, dtype=jnp.float32)
        along = jnp.expand_dims(along, [i for i in range(x.ndim) if i != axis])
        shape = (*total.shape[:axis], count, *total.shape[axis + 1 :])
        total = jnp.broadcast_to(total, shape) * jnp.broadcast_to(along, shape)
    return total


def first_max(a: Any, b: Any) -> Any:
    """The maximum; `a` (and all of the gradient) on ties, NaN where there is one."""
    return jnp.where((a >= b) | (a != a), a, b)  # noqa: PLR0124 (a != a finds NaN)


def first_min(a: Any, b: Any) -> Any:
    """The minimum; `a` (and all of the gradient) on ties, NaN where there is one."""
    return jnp.where((a <= b) | (a != a), a, b)  # noqa: PLR0124 (a != a finds NaN)


_NATIVE: dict[Combine, Combine] = {
    first_max: lax.max,
    first_min: lax.min,
    lax.add: lax.add,
}
"""What `lax.reduce_window` calls in place of each combination, for its gradient."""


def lowest(dtype: Any) -> Any:
    """What no value is below."""
    if jnp.issubdtype(dtype, jnp.inexact):
        infinite = np.isinf(np.asarray(-np.inf).astype(dtype))  # some fp8 have none
        return -np.inf if infinite else float(cast(Any, jnp.finfo(dtype)).min)
    return False if dtype == np.bool_ else int(jnp.iinfo(dtype).min)


def highest(dtype: Any) -> Any:
    """What no value is above."""
    if jnp.issubdtype(dtype, jnp.inexact):
        return -lowest(dtype)
    return True if dtype == np.bool_ else int(jnp.iinfo(dtype).max)


def norm_of(kind: str, norm: Any) -> float:
    """The order of a norm as a Python float."""
    text = "a number from 1 on"
    return within(kind, "norm", norm, low=1, high=math.inf, text=text)


def powers(x: Any, norm: float) -> Any:
    """`|x| ** norm`."""
    if norm == 2:
        return x * x
    return jnp.abs(x) if norm == 1 else jnp.abs(x) ** norm


def root(total: Any, norm: float) -> Any:
    """`total ** (1 / norm)`, whose gradient at 0 is taken as 0."""
    if norm == 1:
        return total
    some = total > 0
    safe = jnp.where(some, total, jnp.ones((), total.dtype))
    y = jnp.sqrt(safe) if norm == 2 else safe ** (1 / norm)
    return jnp.where(some, y, total)
