"""Pooling to a given size, whatever the input's is."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any, cast

import jax.numpy as jnp
import numpy as np
from jax import lax

from axonlike.errors import ShapeError
from axonlike.layer import layer
from axonlike.layers.checks import is_int, wide
from axonlike.layers.pooled import (
    Combine,
    Window,
    first_max,
    lowest,
    norm_of,
    pool,
    powers,
    root,
)
from axonlike.layers.windows import check_spatial
from axonlike.spec import is_unknown, show
from axonlike.types import Array, Params

Output = int | Sequence[int | None]


@layer
def adaptive_avg_pool(output_size: Output, *, name: str | None = None) -> Any:
    """Mean of as many windows as asked for, channel by channel.

    Window `i` of `m` along an axis of `n` goes from `floor(i * n / m)` up to
    `ceil((i + 1) * n / m)`, as in PyTorch: windows overlap where `m` does not divide
    `n`, and repeat where it is larger. Summed in float32 at least.

    Args:
        output_size: one int for every spatial axis the input has, or one for each,
            where None keeps the axis as it is.
        name: the layer's name among its siblings.

    Shapes:
        input: `(batch, *spatial, channels)`, floating point, any number of spatial axes
            from 1 on, their sizes known.
        output: `(batch, *output_size, channels)`, the input's dtype.

    Raises:
        ValueError: an option is out of range.
        ShapeError: the input has another rank, or spatial axes that are empty or of
            unknown size.

    Example:
        >>> import axonlike as al
        >>> al.adaptive_avg_pool((7, None)).output_spec(al.spec("b 12 5 64")).shape
        (b, 7, 5, 64)
    """
    _check_size("adaptive_avg_pool", output_size)

    def apply(params: Params, x: Any) -> Array:
        sizes = _sizes("adaptive_avg_pool", x, output_size)
        return _mean(x.astype(wide(x.dtype)), sizes).astype(x.dtype)

    return None, apply


@layer
def adaptive_max_pool(output_size: Output, *, name: str | None = None) -> Any:
    """Maximum of as many windows as asked for, channel by channel.

    Window `i` of `m` along an axis of `n` goes from `floor(i * n / m)` up to
    `ceil((i + 1) * n / m)`, as in PyTorch: windows overlap where `m` does not divide
    `n`, and repeat where it is larger. Of equal maxima
    the first in row-major order gets the whole gradient.

    Args:
        output_size: one int for every spatial axis the input has, or one for each,
            where None keeps the axis as it is.
        name: the layer's name among its siblings.

    Shapes:
        input: `(batch, *spatial, channels)`, any number of spatial axes from 1
            on, their sizes known.
        output: `(batch, *output_size, channels)`, the input's dtype.

    Raises:
        ValueError: an option is out of range.
        ShapeError: the input has another rank, or spatial axes that are empty or of
            unknown size.

    Example:
        >>> import jax.numpy as jnp, axonlike as al
        >>> x = jnp.arange(5.0).reshape(1, 5, 1)
        >>> al.adaptive_max_pool(3).predict({}, {}, x).ravel()
        Array([1., 3., 4.], dtype=float32)
    """
    _check_size("adaptive_max_pool", output_size)

    def apply(params: Params, x: Any) -> Array:
        sizes = _sizes("adaptive_max_pool", x, output_size, floating=False)
        return _pooled(x, sizes, lowest(x.dtype), first_max)

    return None, apply


@layer
def adaptive_lp_pool(
    output_size: Output, *, norm: float = 2, name: str | None = None
) -> Any:
    """Norm of as many windows as asked for: `sum(|x| ** norm) ** (1 / norm)`.

    Window `i` of `m` along an axis of `n` goes from `floor(i * n / m)` up to
    `ceil((i + 1) * n / m)`, as in PyTorch: windows overlap where `m` does not divide
    `n`, and repeat where it is larger. Computed in
    float32 at least; the gradient at a norm of 0 is 0.

    Args:
        output_size: one int for every spatial axis the input has, or one for each,
            where None keeps the axis as it is.
        norm: its order, from 1 on.
        name: the layer's name among its siblings.

    Shapes:
        input: `(batch, *spatial, channels)`, floating point, any number of spatial axes
            from 1 on, their sizes known.
        output: `(batch, *output_size, channels)`, the input's dtype.

    Raises:
        ValueError: an option is out of range.
        ShapeError: the input has another rank, or spatial axes that are empty or of
            unknown size.

    Example:
        >>> import jax.numpy as jnp, axonlike as al
        >>> al.adaptive_lp_pool(1).predict({}, {}, jnp.array([[[3.0], [4.0]]]))
        Array([[[5.]]], dtype=float32)
    """
    _check_size("adaptive_lp_pool", output_size)
    norm = norm_of("adaptive_lp_pool", norm)

    def apply(params: Params, x: Any) -> Array:
        sizes = _sizes("adaptive_lp_pool", x, output_size)
        y = powers(x.astype(wide(x.dtype)), norm)
        return root(_pooled(y, sizes, 0, lax.add), norm).astype(x.dtype)

    return None, apply


def _check_size(kind: str, output_size: Any) -> None:
    many = isinstance(output_size, (tuple, list))
    sizes = list(cast("Sequence[Any]", output_size)) if many else [output_size]
    right = [(many and n is None) or (is_int(n) and n >= 1) for n in sizes]
    if not sizes or not all(right):
        raise ValueError(
            f"{kind}: output_size must be a positive int or for each spatial axis one "
            f"or None, got {output_size!r}."
        )


def _sizes(
    kind: str, x: Any, output_size: Output, *, floating: bool = True
) -> list[int]:
    """The output's sizes, the input having been checked."""
    check_spatial(kind, x, cast(Any, output_size), floating=floating)
    many = isinstance(output_size, (tuple, list))
    asked = output_size if many else (output_size,) * (x.ndim - 2)
    pairs = list(zip(cast("Sequence[Any]", asked), x.shape[1:-1], strict=True))
    if any(size is not None and (is_unknown(n) or n == 0) for size, n in pairs):
        expected = (
            "(batch, *spatial, channels) with spatial axes of a known size from 1"
        )
        hint = "Where all positions are pooled, use a global pool."
        raise ShapeError(kind, expected, show(x), hint)
    return [n if size is None else size for size, n in pairs]


def _mean(x: Any, sizes: list[int]) -> Array:
    """The mean of the means along each axis: windows are rectangles."""
    y = _pooled(x, sizes, 0, lax.add)
    for axis, size in enumerate(sizes, 1):
        if is_unknown(size) or size == x.shape[axis]:
            continue
        starts, stops = _edges(x.shape[axis], size)
        shape = [size if i == axis else 1 for i in range(x.ndim)]
        share = np.reshape(1 / (stops - starts), shape)
        y = y * jnp.broadcast_to(jnp.asarray(share, y.dtype), y.shape)
    return y


def _pooled(x: Any, sizes: list[int], fill: Any, combine: Combine) -> Array:
    """All windows combined; side by side where the sizes divide the input's."""
    pairs = list(zip(x.shape[1:-1], sizes, strict=True))
    if all(is_int(n) and n % size == 0 for n, size in pairs):
        extents = [n // size for n, size in pairs]
        return pool(x, [Window(n, n, 1, (0, 0)) for n in extents], fill, combine)
    for axis in range(len(sizes), 0, -1):
        if not is_unknown(sizes[axis - 1]) and sizes[axis - 1] != x.shape[axis]:
            x = _adapted(x, axis, sizes[axis - 1], fill, combine)
    return x


def _adapted(x: Any, axis: int, size: int, fill: Any, combine: Combine) -> Array:
    """One axis: the first, second, ... item of each window, combined."""
    starts, stops = _edges(x.shape[axis], size)
    items: list[Any] = []
    for i in range(int(np.max(stops - starts))):
        item = jnp.take(x, np.minimum(starts + i, stops - 1), axis, mode="clip")
        shape = [size if j == axis else 1 for j in range(x.ndim)]
        inside = jnp.asarray(np.reshape(starts + i < stops, shape))
        inside = jnp.broadcast_to(inside, item.shape)
        items.append(jnp.where(inside, item, jnp.asarray(fill, item.dtype)))
    return reduce(combine, items)


def _edges(n: int, size: int) -> tuple[Any, Any]:
    """Where windows start, and where they end."""
    i = np.arange(size)
    return i * n // size, -(-(i + 1) * n // size)
