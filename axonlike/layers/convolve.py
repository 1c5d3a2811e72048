"""How convolutions are computed: the fastest of several ways to write the same sums.

On a CPU, XLA's own grouped convolution and its gradients are 10 to 50 times slower than
what is written here. Elsewhere they are left to XLA, by `lax.platform_dependent`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from axonlike.layers.checks import wide
from axonlike.layers.windows import (
    Padding,
    Sizes,
    axes_of,
    extended,
    extent_of,
    pads_of,
)
from axonlike.spec import is_unknown
from axonlike.types import Array

ConvGeneralDilated = Callable[..., Any]
"""What has the signature of `jax.lax.conv_general_dilated`."""
Taps = Iterator[tuple[tuple[int, ...], Array]]

_MOST_TAPS = 128
_FEW_TAPS = 9
_BLOCK = 16
_MOST_BLOCKS = 4


class Geometry(NamedTuple):
    """Where the windows of a convolution lie; sizes for each spatial axis."""

    strides: tuple[int, ...]
    pads: tuple[tuple[Any, Any], ...]
    input_dilation: tuple[int, ...]
    kernel_dilation: tuple[int, ...]
    groups: int = 1
    precision: Any = None


def layout(ndim: int) -> tuple[str, str, str]:
    """Dimension numbers of input, kernel and output: channels last."""
    axes = "abcdefghijklmnop"[:ndim]
    return f"N{axes}C", f"{axes}IO", f"N{axes}C"


def correlate(
    kind: str,
    x: Any,
    kernel: Any,
    *,
    strides: Sizes,
    padding: Padding,
    kernel_dilation: Sizes,
    groups: int,
    precision: Any,
    input_dilation: Sizes = 1,
    conv_general_dilated: ConvGeneralDilated | None = None,
) -> Array:
    """Pads as asked, and convolves."""
    ndim = x.ndim - 2
    steps, holes = axes_of(strides, ndim), axes_of(input_dilation, ndim)
    dilation = axes_of(kernel_dilation, ndim)
    extent = extent_of(kernel.shape[:-2], dilation)
    sizes = extent_of(x.shape[1:-1], holes)
    pads = pads_of(kind, x, padding, extent, steps, sizes)
    x, pads = extended(x, padding, pads)
    geometry = Geometry(steps, tuple(pads), holes, dilation, groups, precision)
    if conv_general_dilated is not None:
        return conv_general_dilated(
            x,
            kernel,
            steps,
            pads,
            lhs_dilation=holes,
            rhs_dilation=dilation,
            dimension_numbers=layout(ndim),
            feature_group_count=groups,
            precision=precision,
        )
    if any(map(is_unknown, (n for pair in pads for n in pair))):
        none = ((0, 0),) * ndim  # XLA's convolution takes known padding only
        alone = geometry._replace(pads=none, input_dilation=(1,) * ndim)
        return by_xla(_zero_padded(x, geometry), kernel, alone)
    return convolve(x, kernel, geometry)


def convolve(x: Any, kernel: Any, geometry: Geometry) -> Array:
    """The convolution of `x` with a kernel `(*sizes, channels / groups, features)`."""
    if _lie_apart(x, kernel, geometry):
        return _product(x, kernel, geometry)
    if geometry.groups == 1 or not _is_known(x, geometry):
        return by_xla(x, kernel, geometry)
    choose = cast(Any, lax.platform_dependent)
    return choose(
        x,
        kernel,
        cpu=partial(_grouped, geometry),
        default=partial(_by_xla_at, geometry),
    )


def _by_xla_at(geometry: Geometry, x: Any, kernel: Any) -> Array:
    return by_xla(x, kernel, geometry)


def by_xla(x: Any, kernel: Any, geometry: Geometry) -> Array:
    """The convolution as XLA has it."""
    return lax.conv_general_dilated(
        x,
        kernel,
        geometry.strides,
        geometry.pads,
        lhs_dilation=geometry.input_dilation,
        rhs_dilation=geometry.kernel_dilation,
        dimension_numbers=layout(x.ndim - 2),
        feature_group_count=geometry.groups,
        precision=geometry.precision,
    )


def _is_known(x: Any, geometry: Geometry) -> bool:
    """Whether slices along the spatial axes can be written."""
    numbers = (*x.shape[1:-1], *itertools.chain(*geometry.pads))
    return not any(map(is_unknown, numbers)) and set(geometry.input_dilation) == {1}


# --- windows that do not overlap: one matrix product


def _lie_apart(x: Any, kernel: Any, geometry: Geometry) -> bool:
    """Whether the windows are single positions, or tile the input."""
    plain = geometry.groups == 1 and set(geometry.input_dilation) == {1}
    if not plain or any(p != (0, 0) for p in geometry.pads):
        return False
    sizes = kernel.shape[:-2]
    if all(k == 1 for k in sizes):
        return True
    return (
        sizes == geometry.strides
        and not any(map(is_unknown, x.shape[1:-1]))
        and all(n % k == 0 for n, k in zip(x.shape[1:-1], sizes, strict=True))
        and all(
            d == 1 or k == 1
            for k, d in zip(sizes, geometry.kernel_dilation, strict=True)
        )
    )


def _product(x: Any, kernel: Any, geometry: Geometry) -> Array:
    sizes, ndim = kernel.shape[:-2], x.ndim - 2
    if all(k == 1 for k in sizes):
        if any(s > 1 for s in geometry.strides):
            x = x[(slice(None), *(slice(None, None, s) for s in geometry.strides))]
        kernel = jnp.reshape(kernel, kernel.shape[-2:])
        return jnp.matmul(x, kernel, precision=geometry.precision)
    tiles = [(n // k, k) for n, k in zip(x.shape[1:-1], sizes, strict=True)]
    x = jnp.reshape(x, (x.shape[0], *itertools.chain(*tiles), x.shape[-1]))
    inside = (*range(2, 2 * ndim + 1, 2), 2 * ndim + 1)
    return jnp.tensordot(
        x, kernel, (inside, tuple(range(ndim + 1))), precision=geometry.precision
    )


# --- groups


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _grouped(geometry: Geometry, x: Any, kernel: Any) -> Array:
    """A grouped convolution: shifted multiples of the input, or group by group."""
    if kernel.shape[-2] > 1:
        return _in_blocks(x, kernel, geometry, 1)
    if math.prod(kernel.shape[:-2]) > _MOST_TAPS:
        return by_xla(x, kernel, geometry)
    return _shifted(x, kernel, geometry)


@partial(_grouped.defjvp, symbolic_zeros=True)
def _grouped_jvp(
    geometry: Geometry, primals: tuple[Any, Any], tangents: tuple[Any, Any]
) -> tuple[Array, Array]:
    """The same sums for both tangents, written so that what JAX transposes is quick.

    That is with several groups in one block, though it multiplies by zeros, or by shifts
    where there would be too many blocks to compile.
    """
    (x, kernel), (for_x, for_kernel) = primals, tangents
    terms, each = math.prod(kernel.shape[:-2]), kernel.shape[-2]
    together = _together(geometry.groups, _BLOCK // each)
    by_shifts = each == 1 and terms <= _MOST_TAPS
    many = geometry.groups // together > _MOST_BLOCKS
    y: Array = cast(Any, _grouped)(geometry, x, kernel)
    parts: list[Array] = []
    if not isinstance(for_x, SymbolicZero):
        if by_shifts and (many or terms <= _FEW_TAPS):
            parts.append(_shifted(for_x, kernel, geometry))
        else:
            parts.append(_in_blocks(for_x, kernel, geometry, together))
    if not isinstance(for_kernel, SymbolicZero):
        if by_shifts and many:
            parts.append(_shifted(x, for_kernel, geometry))
        else:
            parts.append(_in_blocks(x, for_kernel, geometry, together))
    return y, parts[0] + parts[1] if len(parts) == 2 else parts[0]


def _together(groups: int, most: int) -> int:
    """The largest number up to `most` that divides the groups."""
    return next(n for n in range(max(most, 1), 0, -1) if groups % n == 0)


def _shifted(x: Any, kernel: Any, geometry: Geometry) -> Array:
    """One group a channel: for each of the kernel's taps, the input under it, times it."""
    dtype, out = wide(x.dtype), x.dtype
    x, kernel = x.astype(dtype), kernel.astype(dtype)
    if kernel.shape[-1] != x.shape[-1]:
        several = (*x.shape, kernel.shape[-1] // x.shape[-1])
        x = jnp.broadcast_to(jnp.expand_dims(x, -1), several)
        x = jnp.reshape(x, (*several[:-2], kernel.shape[-1]))
    y: Any = None
    for at, under in under_taps(x, kernel.shape[:-2], geometry):
        scale = jnp.broadcast_to(kernel[(*at, 0)], under.shape)
        y = under * scale if y is None else y + under * scale
    return y.astype(out)


def under_taps(x: Any, sizes: tuple[int, ...], geometry: Geometry) -> Taps:
    """For each tap its place in the kernel, and what it touches: slices of the input."""
    extent = extent_of(sizes, geometry.kernel_dilation)
    x = _zero_padded(x, geometry)
    room = [n - e + 1 for n, e in zip(x.shape[1:-1], extent, strict=True)]
    strides = (1, *geometry.strides, 1)
    for at in itertools.product(*map(range, sizes)):
        start = [i * d for i, d in zip(at, geometry.kernel_dilation, strict=True)]
        stop = [i + n for i, n in zip(start, room, strict=True)]
        first, last = (0, *start, 0), (x.shape[0], *stop, x.shape[-1])
        yield at, lax.slice(x, first, last, strides)


def _zero_padded(x: Any, geometry: Geometry) -> Array:
    """The input with zeros around its spatial axes, and in its holes."""
    pairs = zip(geometry.pads, geometry.input_dilation, strict=True)
    config = [(*pad, hole - 1) for pad, hole in pairs]
    if all(each == (0, 0, 0) for each in config):
        return x
    return lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *config, (0, 0, 0)])


def _in_blocks(x: Any, kernel: Any, geometry: Geometry, together: int) -> Array:
    """A convolution for every `together` groups, with zeros between those."""
    count = geometry.groups // together
    alone = geometry._replace(groups=1)
    each, width = kernel.shape[-2] * together, kernel.shape[-1] // count
    parts: list[Array] = []
    for i in range(count):
        part = lax.slice_in_dim(x, i * each, (i + 1) * each, axis=-1)
        own = lax.slice_in_dim(kernel, i * width, (i + 1) * width, axis=-1)
        parts.append(by_xla(part, _block_diagonal(own, together), alone))
    return jnp.concatenate(parts, -1)


def _block_diagonal(kernel: Any, groups: int) -> Array:
    """A kernel that sees all channels of its groups, from one that sees a group's own."""
    if groups == 1:
        return kernel
    *sizes, each, features = kernel.shape
    own = features // groups
    shape = (*sizes, groups, each, groups, own)
    spread = jnp.reshape(kernel, (*sizes, 1, each, groups, own))
    rows, columns = (
        lax.broadcasted_iota("int32", shape, len(sizes) + axis) for axis in (0, 2)
    )
    zeros = jnp.zeros((), kernel.dtype)
    full = jnp.where(rows == columns, jnp.broadcast_to(spread, shape), zeros)
    return jnp.reshape(full, (*sizes, groups * each, features))
