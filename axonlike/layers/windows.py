"""Windows that slide over the spatial axes: what convolution and pooling share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import jax.numpy as jnp
import numpy as np
from jax import lax

from axonlike.errors import ShapeError
from axonlike.layers.checks import at_least, exactly, is_int
from axonlike.spec import is_unknown, show
from axonlike.types import Array

Sizes = int | Sequence[int]
Padding = str | int | Sequence[int | tuple[int, int]]
Pads = list[tuple[Any, Any]]

PADDINGS = ("SAME", "SAME_LOWER", "VALID", "CAUSAL", "CIRCULAR", "REFLECT", "REPLICATE")
"""The paddings that convolutions know by name."""

MODES = {"CIRCULAR": "wrap", "REFLECT": "reflect", "REPLICATE": "edge"}
"""Paddings by values of the input, and what `jnp.pad` calls them."""


def axes_of(value: Sizes, ndim: int) -> tuple[int, ...]:
    """A size for each of `ndim` spatial axes: an int stands for all of them."""
    if isinstance(value, (tuple, list)):
        return tuple(cast("Sequence[int]", value))
    return (cast(int, value),) * ndim


def check_agree(kind: str, **options: Any) -> Sizes:
    """An option for each spatial axis, or 1; refuses others for another number of them."""
    many: dict[str, Any] = {}
    many |= {k: v for k, v in options.items() if isinstance(v, (tuple, list))}
    first = next(iter(many), "")
    for name, value in many.items():
        if len(value) != len(many[first]):
            raise ValueError(
                f"{kind}: {name} must have as many items as {first} {many[first]!r}, "
                f"got {value!r}."
            )
    return many.get(first, 1)


def check_padding(kind: str, padding: Padding, names: tuple[str, ...]) -> None:
    """Refuses a padding that is no known name, int, or sequence of ints and pairs."""
    if isinstance(padding, str):
        known = padding in names
    elif isinstance(padding, (tuple, list)):
        known = all(_is_pad(item) for item in cast("Sequence[Any]", padding))
    else:
        known = _is_pad(padding)
    if not known:
        named = f"one of {', '.join(names)}, " if names else ""
        raise ValueError(
            f"{kind}: padding must be {named}an int from 0 on, or for each spatial axis "
            f"such an int or a pair (low, high), got {padding!r}."
        )


def check_sizes(kind: str, **options: Any) -> None:
    """Refuses what is neither a positive int nor some of them, one for each axis."""
    for name, value in options.items():
        many = isinstance(value, (tuple, list))
        sizes: list[Any] = list(cast("Sequence[Any]", value)) if many else [value]
        if not sizes or not all(is_int(n) and n >= 1 for n in sizes):
            raise ValueError(
                f"{kind}: {name} must be a positive int or one for each spatial axis, "
                f"got {value!r}."
            )


def check_windows(
    kind: str, kernel_size: Sizes, names: tuple[str, ...], **options: Any
) -> Sizes:
    """Refuses windows that are none: sizes, names of paddings, numbers of axes.

    Returns an option that tells the number of axes, for `check_spatial`.
    """
    padding = options["padding"]
    sizes = {name: value for name, value in options.items() if name != "padding"}
    check_sizes(kind, kernel_size=kernel_size, **sizes)
    check_padding(kind, padding, names)
    check_agree(kind, kernel_size=kernel_size, **options)  # pairs_of tells of padding
    return check_agree(kind, kernel_size=kernel_size, **sizes)


def kernel_shape(
    kind: str, x: Any, kernel_size: Sizes, groups: int, features: int
) -> tuple[int, ...]:
    """A kernel's shape for this input, whose channels the groups must divide."""
    channels = x.shape[-1]
    if groups > 1 and channels % groups != 0:
        raise ShapeError(
            kind,
            f"(batch, *spatial, channels) with channels a multiple of {groups}",
            show(x),
            "Choose a feature_group_count that divides them.",
        )
    return (*axes_of(kernel_size, x.ndim - 2), channels // groups, features)


def check_spatial(kind: str, x: Any, sizes: Sizes, *, floating: bool = True) -> None:
    """Refuses what is not `(batch, *spatial, channels)`, at any number of axes."""
    if isinstance(sizes, (tuple, list)):
        check_rank(kind, x, sizes, floating=floating)
        return
    expected = "(batch, *spatial, channels) with 1 or more spatial axes"
    hint = "Add an axis of size 1 with x[..., None] where channels are missing."
    at_least(kind, x, 3, expected, hint, floating=floating)


def check_rank(kind: str, x: Any, sizes: Sizes, *, floating: bool = True) -> None:
    """Refuses what is not `(batch, *spatial, channels)` of the window's rank."""
    if isinstance(sizes, (tuple, list)):
        count = len(cast("Sequence[int]", sizes))
        expected = f"(batch, {'n, ' * count}channels)"
        hint = f"Option {tuple(sizes)} is for {_axes(count)}."
        exactly(kind, x, count + 2, expected, hint, floating=floating)
        return
    expected = "(batch, *spatial, channels) with 1 to 3 spatial axes"
    hint = "Add an axis of size 1 with x[..., None] where channels are missing."
    for ndim in (3, 4, 5):
        if getattr(x, "ndim", None) == ndim:
            exactly(kind, x, ndim, expected, hint, floating=floating)
            return
    exactly(kind, x, 4, expected, hint, floating=floating)


def pads_of(
    kind: str,
    x: Any,
    padding: Padding,
    window: tuple[int, ...],
    strides: tuple[int, ...],
    sizes: tuple[Any, ...] | None = None,
) -> Pads:
    """How much to pad before and after each spatial axis, for windows of this extent.

    `sizes` are those of the spatial axes, where they are not the input's own.

    Raises:
        ShapeError: a window is larger than the padded axis, or padding is for other
            axes.
    """
    sizes = tuple(x.shape[1:-1]) if sizes is None else sizes
    pads = _pads(kind, x, padding, window, strides, sizes)
    if padding != "VALID":
        check_some(kind, x)
    for size, extent, (low, high) in zip(sizes, window, pads, strict=True):
        known = not any(map(is_unknown, (size, low, high)))
        if known and size + low + high < extent:
            raise ShapeError(
                kind,
                f"spatial axes of at least {extent} after padding",
                show(x),
                "Use a smaller window, or padding='SAME'.",
            )
    return pads


def check_some(kind: str, x: Any) -> None:
    """Refuses an input without positions."""
    if any(is_int(n) and n == 0 for n in x.shape[1:-1]):
        hint = "There is nothing to slide over."
        raise ShapeError(kind, "spatial axes of at least 1", show(x), hint)


def extended(x: Any, padding: Padding, pads: Pads) -> tuple[Any, Pads]:
    """The input with what is padded by its own values, and the zeros still to pad."""
    if not (isinstance(padding, str) and padding in MODES):
        return x, pads
    return padded(x, pads, MODES[padding]), [(0, 0)] * len(pads)


def padded(x: Any, pads: Pads, mode: str) -> Array:
    """The spatial axes padded by values of the input, also where a size is unknown.

    `mode` is one of `jnp.pad`'s "wrap", "edge", "reflect" and "symmetric".
    """
    sizes = x.shape[1:-1]
    known = [(0, 0) if is_unknown(n) else p for n, p in zip(sizes, pads, strict=True)]
    y = jnp.pad(x, [(0, 0), *known, (0, 0)], mode)
    for axis, (size, pad) in enumerate(zip(sizes, pads, strict=True), 1):
        if is_unknown(size):
            y = jnp.take(y, _positions(size, pad, mode), axis, mode="clip")
    return y


def _positions(size: Any, pad: tuple[Any, Any], mode: str) -> Array:
    """Which positions stand where on a padded axis."""
    low, high = pad
    at = lax.iota(np.int32, size + low + high) - low
    size = jnp.asarray(size, np.int32)
    if mode == "wrap":
        return jnp.mod(at, size)
    if mode == "edge":
        return jnp.clip(at, 0, size - 1)
    period = 2 * size if mode == "symmetric" else jnp.maximum(2 * size - 2, 1)
    turn = jnp.mod(at, period)
    return jnp.minimum(turn, period - turn - int(mode == "symmetric"))


def extent_of(sizes: Sequence[int], dilation: Sequence[int]) -> tuple[int, ...]:
    """How far windows of these sizes reach, with gaps between what they touch."""
    return tuple((n - 1) * d + 1 for n, d in zip(sizes, dilation, strict=True))


def _pads(
    kind: str,
    x: Any,
    padding: Padding,
    window: tuple[int, ...],
    strides: tuple[int, ...],
    sizes: tuple[Any, ...],
) -> Pads:
    if isinstance(padding, str) and padding in MODES:
        return [((n - 1) // 2, n // 2) for n in window]
    if padding == "CAUSAL":
        if len(sizes) != 1:
            hint = "CAUSAL padding is for one axis of time."
            raise ShapeError(kind, "(batch, time, channels)", show(x), hint)
        return [(window[0] - 1, 0)]
    if isinstance(padding, str):
        pads = lax.padtype_to_pads(sizes, window, strides, padding)
        return [(low, high) for low, high in pads]
    return pairs_of(kind, x, padding)


def pairs_of(kind: str, x: Any, padding: int | Sequence[int | tuple[int, int]]) -> Pads:
    """An explicit padding as a pair for each spatial axis."""
    ndim = x.ndim - 2
    if isinstance(padding, int):
        return [(padding, padding)] * ndim
    items: list[Any] = list(padding)
    if len(items) != ndim:
        expected = f"{len(items)} spatial axes, as padding {padding!r} has items"
        raise ShapeError(
            kind, expected, show(x), "Give one item for each spatial axis."
        )
    return [(p, p) if is_int(p) else (p[0], p[1]) for p in items]


def _is_pad(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        pair = cast("Sequence[Any]", value)
        return len(pair) == 2 and all(is_int(n) and n >= 0 for n in pair)
    return is_int(value) and value >= 0


def _axes(count: int) -> str:
    return "1 spatial axis" if count == 1 else f"{count} spatial axes"
