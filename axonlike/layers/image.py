"""Images made larger and smaller: resizing, padding, pixels to channels and back."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from axonlike.errors import ShapeError
from axonlike.layer import layer
from axonlike.layers.checks import is_int, wide
from axonlike.layers.windows import (
    Sizes,
    axes_of,
    check_padding,
    check_sizes,
    check_spatial,
    padded,
    pairs_of,
)
from axonlike.spec import is_unknown, show
from axonlike.types import Array, Params

# JAX's own annotations are partial: these are taken as untyped.
_resized = cast(Any, jax.image.resize)
_moved = cast(Any, jax.image.scale_and_translate)

Scales = float | Sequence[float]

_METHODS = (
    "nearest", "linear", "bilinear", "trilinear", "triangle", "cubic", "bicubic",
    "tricubic", "cubic-pytorch", "bicubic-pytorch", "lanczos3", "lanczos5", "area",
)  # fmt: skip
_MODES = ("constant", "edge", "reflect", "symmetric", "wrap")


@layer
def resize(
    shape: Sizes | None = None,
    *,
    scale: Scales | None = None,
    method: str = "nearest",
    antialias: bool = True,
    align_corners: bool = False,
    precision: Any = lax.Precision.HIGHEST,
    name: str | None = None,
) -> Any:
    """Resizes the spatial axes by interpolation, as `jax.image.resize` does.

    The centre of the pixels counts, as in PyTorch's `"nearest-exact"`: its `"nearest"`
    is the same for whole factors upwards only. PyTorch's interpolation is that of
    `antialias=False`, its bicubic one is `"cubic-pytorch"`.

    Args:
        shape: new sizes: one int for every spatial axis the input has, or a tuple, one
            for each. Either this or `scale`.
        scale: new sizes over old ones, likewise; what is no whole number of pixels is
            rounded down.
        method: `"nearest"`; `"linear"`, also called `"bilinear"`, `"trilinear"` and
            `"triangle"`; `"cubic"`, also `"bicubic"` and `"tricubic"`;
            `"cubic-pytorch"`, also `"bicubic-pytorch"`; `"lanczos3"`, `"lanczos5"`;
            `"area"`.
        antialias: whether filters widen where the image shrinks; not for `"nearest"`.
        align_corners: whether the centres of the outermost pixels stay where they are,
            rather than the outer edges; not for `"nearest"` and `"area"`.
        precision: of the products, as in `jax.lax.dot_general`.
        name: the layer's name among its siblings.

    Shapes:
        input: `(batch, *spatial, channels)`, floating point; any dtype for `"nearest"`.
        output: `(batch, *shape, channels)`, the input's dtype.

    Raises:
        ValueError: not just one of `shape` and `scale`, an option that is no size, or
            no such method.
        ShapeError: the input has another rank, or nothing is left of it.

    Example:
        >>> import axonlike as al
        >>> layer = al.resize((32, 48), method="bilinear")
        >>> layer.output_spec(al.spec("b 28 28 3")).shape
        (b, 32, 48, 3)
        >>> al.resize(scale=2).output_spec(al.spec("b h w 3")).shape
        (b, 2*h, 2*w, 3)
    """
    _check_resize(shape, scale, method, align_corners)
    per_axis = cast(Sizes, scale if shape is None else shape)

    def apply(params: Params, x: Any) -> Array:
        check_spatial("resize", x, per_axis, floating=method != "nearest")
        sizes = axes_of(per_axis, x.ndim - 2)
        if shape is None:
            sizes = tuple(map(_scaled, x.shape[1:-1], sizes))
        if any(not is_unknown(n) and n == 0 for n in (*sizes, *x.shape[1:-1])):
            hint = "Choose a larger shape or scale."
            raise ShapeError(
                "resize", "at least one pixel, and one left", show(x), hint
            )
        if method == "nearest":
            return _nearest(x, sizes)
        target = (x.shape[0], *sizes, x.shape[-1])
        if align_corners:
            return _corners(x, target, method, antialias, precision)
        return _resized(x, target, method, antialias, precision)

    return None, apply


@layer
def pixel_shuffle(factor: Sizes, *, name: str | None = None) -> Any:
    """Channels to pixels: each position becomes a block of `factor` positions a side.

    Channel `c` of a block is made of channels `c * block` to `(c + 1) * block - 1`, row
    by row, as in PyTorch. TensorFlow's `depth_to_space` orders them otherwise.

    Args:
        factor: one int for every spatial axis the input has, or a tuple, one for each.
        name: the layer's name among its siblings.

    Shapes:
        input: `(batch, *spatial, channels)`, any dtype.
        output: `(batch, *(spatial * factor), channels / block)`, the input's dtype.

    Raises:
        ValueError: `factor` is not a size.
        ShapeError: the input has another rank, or channels that make no whole blocks.

    Example:
        >>> import jax.numpy as jnp, axonlike as al
        >>> x = jnp.arange(4.0).reshape(1, 1, 1, 4)
        >>> al.pixel_shuffle(2).predict({}, {}, x)[0, :, :, 0]
        Array([[0., 1.],
               [2., 3.]], dtype=float32)

    References:
        Shi et al., "Real-Time Single Image and Video Super-Resolution Using an Efficient
        Sub-Pixel Convolutional Neural Network", CVPR 2016.
        https://arxiv.org/abs/1609.05158
    """
    check_sizes("pixel_shuffle", factor=factor)

    def apply(params: Params, x: Any) -> Array:
        check_spatial("pixel_shuffle", x, factor, floating=False)
        ndim = x.ndim - 2
        block = axes_of(factor, ndim)
        rest = _divided("pixel_shuffle", x, x.shape[-1], block)
        split = jnp.reshape(x, (*x.shape[:-1], rest, *block))
        pairs = ((axis, ndim + 1 + axis) for axis in range(1, ndim + 1))
        order = (0, *itertools.chain(*pairs), ndim + 1)
        sizes = (n * f for n, f in zip(x.shape[1:-1], block, strict=True))
        return jnp.reshape(jnp.transpose(split, order), (x.shape[0], *sizes, rest))

    return None, apply


@layer
def pixel_unshuffle(factor: Sizes, *, name: str | None = None) -> Any:
    """Pixels to channels: the inverse of `pixel_shuffle`.

    Args:
        factor: one int for every spatial axis the input has, or a tuple, one for each.
        name: the layer's name among its siblings.

    Shapes:
        input: `(batch, *spatial, channels)`, any dtype.
        output: `(batch, *(spatial / factor), channels * block)`, the input's dtype.

    Raises:
        ValueError: `factor` is not a size.
        ShapeError: the input has another rank, or sizes that make no whole blocks.

    Example:
        >>> import axonlike as al
        >>> al.pixel_unshuffle(2).output_spec(al.spec("b 8 6 3")).shape
        (b, 4, 3, 12)
    """
    check_sizes("pixel_unshuffle", factor=factor)

    def apply(params: Params, x: Any) -> Array:
        check_spatial("pixel_unshuffle", x, factor, floating=False)
        ndim = x.ndim - 2
        block = axes_of(factor, ndim)
        sizes = [
            _divided("pixel_unshuffle", x, n, (f,))
            for n, f in zip(x.shape[1:-1], block, strict=True)
        ]
        tiles = itertools.chain(*zip(sizes, block, strict=True))
        split = jnp.reshape(x, (x.shape[0], *tiles, x.shape[-1]))
        outer, inner = range(1, 2 * ndim, 2), range(2, 2 * ndim + 1, 2)
        together = jnp.transpose(split, (0, *outer, 2 * ndim + 1, *inner))
        channels = x.shape[-1] * math.prod(block)
        return jnp.reshape(together, (x.shape[0], *sizes, channels))

    return None, apply


@layer
def pad(
    padding: int | Sequence[int | tuple[int, int]],
    mode: str = "constant",
    value: float = 0.0,
    *,
    name: str | None = None,
) -> Any:
    """Pads the spatial axes; batch and channels stay.

    Args:
        padding: an int for both sides of all axes, or for each axis an int or a pair
            `(low, high)`.
        mode: `"constant"`, or values of the input as in `jax.numpy.pad`: `"edge"`,
            `"reflect"` (the edge once), `"symmetric"` (the edge twice), `"wrap"` (from
            the other end). PyTorch calls `"edge"` replicate and `"wrap"` circular.
        value: what a constant padding consists of.
        name: the layer's name among its siblings.

    Shapes:
        input: `(batch, *spatial, channels)`, any dtype.
        output: `(batch, *padded, channels)`, the input's dtype.

    Raises:
        ValueError: `padding` is no padding, or no such mode.
        ShapeError: the input has another rank.

    Example:
        >>> import axonlike as al
        >>> al.pad(((1, 2), 0)).output_spec(al.spec("b 8 6 3")).shape
        (b, 11, 6, 3)
    """
    check_padding("pad", padding, ())
    if mode not in _MODES:
        raise ValueError(f"pad: mode must be one of {', '.join(_MODES)}, got {mode!r}.")
    if np.ndim(value) or not isinstance(value, (int, float, complex, np.generic)):
        raise ValueError(f"pad: value must be a number, got {value!r}.")

    def apply(params: Params, x: Any) -> Array:
        check_spatial("pad", x, 1, floating=False)
        pads = pairs_of("pad", x, padding)
        if mode != "constant":
            return padded(x, pads, mode)
        config = [(low, high, 0) for low, high in [(0, 0), *pads, (0, 0)]]
        return lax.pad(x, jnp.asarray(value, x.dtype), config)

    return None, apply


# --- helpers


def _check_resize(
    shape: Sizes | None, scale: Scales | None, method: str, align_corners: bool
) -> None:
    if (shape is None) == (scale is None):
        given = f"shape={shape!r}, scale={scale!r}"
        raise ValueError(f"resize: expected either shape or scale, got {given}.")
    if shape is not None:
        check_sizes("resize", shape=shape)
    many = isinstance(scale, (tuple, list))
    scales: list[Any] = list(cast("Sequence[Any]", scale)) if many else [scale]
    if scale is not None and not (scales and all(map(_is_scale, scales))):
        raise ValueError(
            "resize: scale must be a positive number or one for each spatial axis, got "
            f"{scale!r}."
        )
    if method not in _METHODS:
        names = ", ".join(_METHODS)
        raise ValueError(f"resize: method must be one of {names}, got {method!r}.")
    if align_corners and method in {"nearest", "area"}:
        raise ValueError(
            f"resize: align_corners must be false for method {method!r}, got True."
        )


def _is_scale(value: Any) -> bool:
    number = isinstance(value, float) or is_int(value)
    return number and 0 < value < float("inf")


def _scaled(size: Any, scale: Any) -> Any:
    """A size times a scale, rounded down."""
    if float(scale).is_integer():
        return size * int(scale)
    if not is_unknown(size):
        return int(size * scale)
    if float(1 / scale).is_integer():
        return size // int(1 / scale)
    hint = "Declare them, or choose a scale that is a whole number, or 1 over one."
    raise ShapeError("resize", f"known sizes to multiply by {scale}", size, hint)


def _divided(kind: str, x: Any, size: Any, block: Sequence[int]) -> Any:
    """A size over that of a block, which must divide it."""
    count = math.prod(block)
    if size % count != 0:
        raise ShapeError(
            kind,
            f"an axis that is a multiple of {count}",
            show(x),
            "Pad it, or choose another factor.",
        )
    return size // count


def _nearest(x: Any, sizes: Sequence[Any]) -> Any:
    """Axis by axis: whole factors by repeating or skipping, whose gradients are quick."""
    for axis, new in enumerate(sizes, 1):
        old: Any = x.shape[axis]
        if new == old:
            continue
        if new % old == 0:
            wide = jnp.expand_dims(x, axis + 1)
            shape = (*x.shape[: axis + 1], new // old, *x.shape[axis + 1 :])
            joined = (*x.shape[:axis], new, *x.shape[axis + 1 :])
            x = jnp.reshape(jnp.broadcast_to(wide, shape), joined)
        elif old % new == 0:
            step = old // new
            x = lax.slice_in_dim(x, step // 2, None, step, axis)
        else:
            shape = (*x.shape[:axis], new, *x.shape[axis + 1 :])
            x = _resized(x, shape, "nearest")
    return x


def _corners(
    x: Any, target: tuple[int, ...], method: str, antialias: bool, precision: Any
) -> Array:
    """Output `i` of `new` lies at `i * (old - 1) / (new - 1)` of the input."""
    axes = tuple(range(1, x.ndim - 1))
    if any(map(is_unknown, (*x.shape[1:-1], *target[1:-1]))):
        hint = "Declare the spatial sizes, or leave align_corners false."
        raise ShapeError("resize", "known spatial sizes", show(x), hint)
    scales: list[float] = []
    shifts: list[float] = []
    for axis in axes:
        old, new = x.shape[axis], target[axis]
        one = min(old, new) == 1  # then all outputs lie on the first pixel
        scales.append(float(new) if one else (new - 1) / (old - 1))
        shifts.append(0.0 if one else 0.5 - 0.5 * scales[-1])
    return _moved(
        x,
        target,
        axes,
        jnp.asarray(scales, wide(x.dtype)),
        jnp.asarray(shifts, wide(x.dtype)),
        method,
        antialias,
        precision,
    )
