"""Pooling of all positions: maximum, mean and norm, of padded sequences too."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import jax.numpy as jnp
from jax import lax

from axonlike.errors import ShapeError
from axonlike.layer import layer
from axonlike.layers.checks import array, wide
from axonlike.layers.pooled import lowest, norm_of, powers, root
from axonlike.layers.windows import check_some, check_spatial
from axonlike.spec import show
from axonlike.types import Array, Params


@layer
def global_max_pool(*, keepdims: bool = False, name: str | None = None) -> Any:
    """Maximum over all spatial axes, channel by channel.

    Of equal maxima the first in row-major order gets the whole gradient. With a mask
    only what it is true for counts; where it is true for nothing, the output is 0.

    Args:
        keepdims: whether spatial axes stay, with size 1.
        name: the layer's name among its siblings.

    Shapes:
        input: `(batch, *spatial, channels)`, any number of spatial axes from 1
            on; mask: bool, `(batch, *spatial)`, sizes may be 1.
        output: `(batch, channels)`, or `(batch, 1, ..., channels)`; the input's dtype.

    Raises:
        ShapeError: the input has another rank, or no positions; or the mask does not
            fit.

    Example:
        >>> import axonlike as al
        >>> al.global_max_pool().output_spec(al.spec("b 7 7 64")).shape
        (b, 64)
    """

    def apply(params: Params, x: Any, mask: Any = None) -> Array:
        x, mask = _checked("global_max_pool", x, mask, floating=False)
        if mask is not None:
            mask = jnp.broadcast_to(mask, x.shape)
            x = jnp.where(mask, x, jnp.asarray(lowest(x.dtype), x.dtype))
        y = _first_max(x)
        if mask is not None:
            some = jnp.any(mask, tuple(range(1, x.ndim - 1)))
            y = jnp.where(some, y, jnp.zeros((), y.dtype))
        return _shaped(y, x, keepdims)

    return None, apply


@layer
def global_avg_pool(*, keepdims: bool = False, name: str | None = None) -> Any:
    """Mean over all spatial axes, channel by channel.

    Summed in float32 at least. With a mask only what it is true for counts; where it is
    true for nothing, the output is 0.

    Args:
        keepdims: whether spatial axes stay, with size 1.
        name: the layer's name among its siblings.

    Shapes:
        input: `(batch, *spatial, channels)`, floating point, any number of spatial axes
            from 1 on; mask: bool, `(batch, *spatial)`, sizes may be 1.
        output: `(batch, channels)`, or `(batch, 1, ..., channels)`; the input's dtype.

    Raises:
        ShapeError: the input has another rank, or no positions; or the mask does not
            fit.

    Example:
        >>> import jax.numpy as jnp, axonlike as al
        >>> words = jnp.array([[[1.0], [3.0], [7.0]]])
        >>> padded = jnp.array([[True, True, False]])
        >>> al.global_avg_pool().predict({}, {}, (words, padded))
        Array([[2.]], dtype=float32)
    """

    def apply(params: Params, x: Any, mask: Any = None) -> Array:
        x, mask = _checked("global_avg_pool", x, mask)
        spatial = tuple(range(1, x.ndim - 1))
        if mask is None:
            return jnp.mean(x, spatial, keepdims=keepdims)
        total = jnp.sum(_where(mask, x.astype(wide(x.dtype))), spatial)
        there = jnp.broadcast_to(mask, (*x.shape[:-1], 1))
        count = jnp.sum(there, spatial, dtype=total.dtype)
        count = jnp.maximum(count, jnp.ones((), count.dtype))
        y = total / jnp.broadcast_to(count, total.shape)
        return _shaped(y.astype(x.dtype), x, keepdims)

    return None, apply


@layer
def global_lp_pool(
    *, norm: float = 2, keepdims: bool = False, name: str | None = None
) -> Any:
    """Norm over all spatial axes: `sum(|x| ** norm) ** (1 / norm)`.

    Computed in float32 at least; the gradient at a norm of 0 is 0. With a mask only
    what it is true for counts; where it is true for nothing, the output is 0.

    Args:
        norm: its order, from 1 on.
        keepdims: whether spatial axes stay, with size 1.
        name: the layer's name among its siblings.

    Shapes:
        input: `(batch, *spatial, channels)`, floating point, any number of spatial axes
            from 1 on; mask: bool, `(batch, *spatial)`, sizes may be 1.
        output: `(batch, channels)`, or `(batch, 1, ..., channels)`; the input's dtype.

    Raises:
        ValueError: `norm` is out of range.
        ShapeError: the input has another rank, or no positions; or the mask does not
            fit.

    Example:
        >>> import jax.numpy as jnp, axonlike as al
        >>> al.global_lp_pool().predict({}, {}, jnp.array([[[3.0], [4.0]]]))
        Array([[5.]], dtype=float32)
    """
    norm = norm_of("global_lp_pool", norm)

    def apply(params: Params, x: Any, mask: Any = None) -> Array:
        x, mask = _checked("global_lp_pool", x, mask)
        spatial = tuple(range(1, x.ndim - 1))
        total = jnp.sum(powers(_where(mask, x.astype(wide(x.dtype))), norm), spatial)
        return _shaped(root(total, norm).astype(x.dtype), x, keepdims)

    return None, apply


def _checked(kind: str, x: Any, mask: Any, *, floating: bool = True) -> tuple[Any, Any]:
    """The input and the mask, of its rank, if one came with it."""
    if mask is None and isinstance(x, (tuple, list)):
        items = cast("Sequence[Any]", x)
        x, mask = items if len(items) == 2 else (items, None)
    check_spatial(kind, x, 1, floating=floating)
    check_some(kind, x)
    if mask is None:
        return x, None
    array(kind, mask, "mask", floating=False)
    pairs = zip(mask.shape, x.shape, strict=False)
    fits = mask.ndim == x.ndim - 1 and all(a in (b, 1) for a, b in pairs)
    if mask.dtype != bool or not fits:
        raise ShapeError(
            kind,
            f"a bool mask (batch, *spatial) for {show(x)}",
            show(mask),
            "It is true where a position counts; sizes may be 1.",
        )
    return x, jnp.expand_dims(mask, -1)


def _where(mask: Any, x: Any) -> Any:
    """The input where the mask is true, and elsewhere 0."""
    if mask is None:
        return x
    return jnp.where(jnp.broadcast_to(mask, x.shape), x, jnp.zeros((), x.dtype))


def _first_max(x: Any) -> Array:
    """The maximum over all positions; the first of equal ones gets the gradient."""
    count = math.prod(x.shape[1:-1])
    flat = jnp.reshape(x, (x.shape[0], count, x.shape[-1]))
    place = lax.broadcasted_iota(jnp.int32, flat.shape, 1)
    first = jnp.expand_dims(lax.argmax(flat, 1, jnp.int32), 1)
    chosen = jnp.where(place == first, flat, jnp.zeros((), flat.dtype))
    return jnp.sum(chosen, 1, dtype=x.dtype)


def _shaped(y: Array, x: Any, keepdims: bool) -> Array:
    return jnp.expand_dims(y, tuple(range(1, x.ndim - 1))) if keepdims else y
