"""Transposed convolution: the gradient of a convolution, as a layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import jax.numpy as jnp
from jax import lax

from axonlike.errors import ShapeError
from axonlike.initializers import InitFunction, lecun_normal, zeros
from axonlike.layer import layer
from axonlike.layers.checks import last_axis, positive, some
from axonlike.layers.convolve import Geometry, by_xla, convolve
from axonlike.layers.linear import add_bias, affine_params
from axonlike.layers.windows import (
    MODES,
    Padding,
    Pads,
    Sizes,
    axes_of,
    check_some,
    check_spatial,
    check_windows,
    extent_of,
    kernel_shape,
    padded,
    pads_of,
)
from axonlike.spec import is_unknown, show
from axonlike.types import Array, Key, Params, to_dtype

_MOST_PHASES = 16


@layer
def conv_transpose(
    features: int,
    kernel_size: Sizes,
    strides: Sizes = 1,
    *,
    padding: Padding = "SAME",
    kernel_dilation: Sizes = 1,
    feature_group_count: int = 1,
    transpose_kernel: bool = False,
    use_bias: bool = True,
    mask: Any = None,
    kernel_init: InitFunction = lecun_normal(),
    bias_init: InitFunction = zeros(),
    param_dtype: Any = jnp.float32,
    precision: Any = None,
    name: str | None = None,
) -> Any:
    """Transposed convolution, channels last: `strides` outputs for each input position.

    The input is spread, with zeros in between and around, and a `conv` slides over it
    step by step. By default the kernel is not flipped, as in Flax, so this is the
    gradient of another `conv` than that of the same kernel. With `transpose_kernel` it
    is the gradient of that very one, as in PyTorch and Keras: their weights fit then.

    PyTorch's `padding=p, output_padding=q` is `padding=((n - p, n - p + q),)`, an item
    for each axis, where n is `kernel_dilation * (kernel_size - 1)`.

    Args:
        features: number of output channels; positive, a multiple of the groups.
        kernel_size: one int for every spatial axis the input has, or a tuple, one for
            each.
        strides: outputs for each input position, likewise.
        padding: `"SAME"` (output size is input size times stride), `"VALID"` (all that
            the kernel reaches), `"CIRCULAR"` (as SAME, what reaches out comes in at the
            other end), or how many zeros go around the spread input: an int for both
            sides of all axes, or for each axis an int or a pair `(low, high)`.
        kernel_dilation: distance between the kernel's taps.
        feature_group_count: groups of channels that see only one another.
        transpose_kernel: whether the kernel is stored as that of the convolution whose
            gradient this is.
        use_bias: whether to add a bias.
        mask: array of the kernel's shape that multiplies it; None: none.
        kernel_init: initializer of the kernel, drawn as for `conv` however it is stored.
        bias_init: initializer of the bias.
        param_dtype: dtype in which params are stored; computation follows the input's.
        precision: of the products, as in `jax.lax.conv_general_dilated`.
        name: the layer's name among its siblings.

    Shapes:
        input: `(batch, *spatial, in)`, floating point.
        output: `(batch, *spatial, features)`, the input's dtype.
        kernel: `(*kernel_size, in / groups, features)`, LeCun normal; with
            `transpose_kernel` `(*kernel_size, features / groups, in)`.
        bias: `(features,)`, zeros; absent when `use_bias` is false.

    Raises:
        ValueError: an option is not a size, options disagree on the number of axes, or
            the groups do not divide `features`.
        ShapeError: the input has another rank, the groups do not divide its channels,
            the mask is not of the kernel's shape, or the kernel is larger than the
            padded input.

    Example:
        >>> import jax, axonlike as al
        >>> layer = al.conv_transpose(8, 3, strides=2)
        >>> params, state = layer.init(jax.random.key(0), al.spec("b 14 14 4"))
        >>> params["kernel"].shape
        (3, 3, 4, 8)
        >>> layer.output_spec(al.spec("b 14 14 4")).shape
        (b, 28, 28, 8)

    References:
        Zeiler et al., "Deconvolutional Networks", CVPR 2010. As sub-pixel phases: Shi et
        al., "Is the deconvolution layer the same as a convolutional layer?", 2016.
        https://arxiv.org/abs/1609.07009
    """
    kind, groups = "conv_transpose", feature_group_count
    positive(kind, features=features, feature_group_count=groups)
    ranked = check_windows(
        kind,
        kernel_size,
        ("SAME", "VALID", "CIRCULAR"),
        strides=strides,
        kernel_dilation=kernel_dilation,
        padding=padding,
    )
    if features % groups:
        raise ValueError(
            f"{kind}: features must be a multiple of feature_group_count {groups}, "
            f"got {features}."
        )

    def init(key: Key, x: Any) -> Params:
        check_spatial(kind, x, ranked)
        some(kind, x)
        params = affine_params(
            key,
            kernel_shape(kind, x, kernel_size, groups, features),
            use_bias=use_bias,
            kernel_init=kernel_init,
            bias_init=bias_init,
            dtype=param_dtype,
        )
        if transpose_kernel:
            params["kernel"] = _transposed(params["kernel"], groups)
        if mask is not None and jnp.shape(mask) != params["kernel"].shape:
            hint = "Give it the shape of the kernel that it multiplies."
            expected = f"a mask of shape {params['kernel'].shape}"
            raise ShapeError(kind, expected, show(mask), hint)
        return params

    def apply(params: Params, x: Any) -> Array:
        check_spatial(kind, x, ranked)
        kernel = to_dtype(params["kernel"], x.dtype)
        if mask is not None:
            kernel = kernel * jnp.asarray(mask).astype(x.dtype)
        if transpose_kernel:
            kernel = _transposed(kernel, groups)
        last_axis(kind, x, kernel.shape[-2] * groups)
        steps = axes_of(strides, x.ndim - 2)
        dilation = axes_of(kernel_dilation, x.ndim - 2)
        extent = extent_of(kernel.shape[:-2], dilation)
        pads = _pads(padding, extent, steps)
        if padding == "CIRCULAR":
            check_some(kind, x)
            x, pads = _wrapped(x, extent, steps, transpose_kernel)
        ones, sizes = (1,) * len(steps), extent_of(x.shape[1:-1], steps)
        pads = pads_of(kind, x, pads, extent, ones, sizes)
        geometry = Geometry(ones, tuple(pads), steps, dilation, groups, precision)
        return add_bias(params, _spread(x, kernel, geometry))

    return init, apply


def _transposed(kernel: Any, groups: int) -> Array:
    """From the kernel of a convolution to that of its gradient, and back."""
    *sizes, first, last = kernel.shape
    parts = jnp.reshape(kernel, (*sizes, first, groups, last // groups))
    swapped = jnp.flip(jnp.swapaxes(parts, -1, -3), tuple(range(len(sizes))))
    return jnp.reshape(swapped, (*sizes, last // groups, groups * first))


def _pads(padding: Padding, extent: Sequence[int], strides: Sequence[int]) -> Any:
    """Zeros around the spread input: what named paddings mean, others as they are."""
    if not isinstance(padding, str):
        return padding
    pads: Pads = []
    for n, s in zip(extent, strides, strict=True):
        total = n + s - 2 + (max(n - s, 0) if padding == "VALID" else 0)
        whole = padding == "VALID" or s > n - 1
        low = n - 1 if whole else (total + 1) // 2
        pads.append((low, total - low))
    return pads


def _wrapped(
    x: Any, extent: Sequence[int], strides: Sequence[int], later: bool
) -> tuple[Any, Pads]:
    """The input once more at both ends, as far as kernels reach, and what to cut off."""
    widths: Pads = []
    pads: Pads = []
    for n, s in zip(extent, strides, strict=True):
        shift = (max(n - s, 0) + later) // 2
        before, after = (n - 1 - shift) // s, (s - 1 + shift) // s
        low = n - 1 - shift - before * s
        widths.append((before, after))
        pads.append((low, n - 2 + s - (before + after) * s - low))
    return padded(x, widths, MODES["CIRCULAR"]), pads


# --- how it is computed


def _spread(x: Any, kernel: Any, geometry: Geometry) -> Array:
    """A convolution over the input with holes, without multiplying by what is in them."""
    strides, sizes = geometry.input_dilation, kernel.shape[:-2]
    tiles = all(p == (n - 1, n - 1) for p, n in zip(geometry.pads, sizes, strict=True))
    plain = set(geometry.kernel_dilation) == {1} and geometry.groups == 1
    if sizes == strides and tiles and plain:
        return _tiles(x, kernel, geometry.precision)
    count = math.prod(strides)
    if count == 1:
        return convolve(x, kernel, geometry)
    if count > _MOST_PHASES or any(map(is_unknown, x.shape[1:-1])):
        return by_xla(x, kernel, geometry)
    choose = cast(Any, lax.platform_dependent)
    return choose(
        x,
        kernel,
        cpu=partial(_in_phases, geometry),
        default=partial(_with_holes, geometry),
    )


def _with_holes(geometry: Geometry, x: Any, kernel: Any) -> Array:
    return by_xla(x, kernel, geometry)


def _tiles(x: Any, kernel: Any, precision: Any) -> Array:
    """Kernels that do not overlap: one matrix product, laid out side by side."""
    ndim, sizes = x.ndim - 2, kernel.shape[:-2]
    flipped = jnp.flip(kernel, tuple(range(ndim)))
    y = jnp.tensordot(x, flipped, ((ndim + 1,), (ndim,)), precision=precision)
    order = [0]
    for axis in range(1, ndim + 1):
        order += [axis, axis + ndim]
    spatial = (n * s for n, s in zip(x.shape[1:-1], sizes, strict=True))
    y = jnp.transpose(y, (*order, 2 * ndim + 1))
    return jnp.reshape(y, (x.shape[0], *spatial, kernel.shape[-1]))


class _Phase(NamedTuple):
    """Every stride-th output along one axis: a convolution with some of the taps."""

    taps: slice
    touched: int
    dilation: int
    pad: tuple[int, int]


def _in_phases(geometry: Geometry, x: Any, kernel: Any) -> Array:
    """The outputs of each phase by a convolution of their own, then interleaved."""
    strides, ndim = geometry.input_dilation, x.ndim - 2
    extent = extent_of(kernel.shape[:-2], geometry.kernel_dilation)
    spread = extent_of(x.shape[1:-1], strides)
    totals = [
        n + sum(p) - e + 1
        for n, p, e in zip(spread, geometry.pads, extent, strict=True)
    ]
    counts = [-(-n // s) for n, s in zip(totals, strides, strict=True)]

    def phase(axis: int, place: tuple[int, ...]) -> Array:
        if axis == ndim:
            return _one_phase(geometry, x, kernel, place, counts)
        several = [phase(axis + 1, (*place, p)) for p in range(strides[axis])]
        return jnp.stack(several, axis + 2)

    whole = [n * s for n, s in zip(counts, strides, strict=True)]
    y = jnp.reshape(phase(0, ()), (x.shape[0], *whole, kernel.shape[-1]))
    if whole == totals:
        return y
    return lax.slice(y, (0,) * y.ndim, (x.shape[0], *totals, kernel.shape[-1]))


def _one_phase(
    geometry: Geometry,
    x: Any,
    kernel: Any,
    place: tuple[int, ...],
    counts: Sequence[int],
) -> Array:
    axes = [
        _phase(p, x.shape[i + 1], kernel.shape[i], counts[i], geometry, i)
        for i, p in enumerate(place)
    ]
    if any(axis.touched == 0 for axis in axes):
        return jnp.zeros((x.shape[0], *counts, kernel.shape[-1]), x.dtype)
    own = geometry._replace(
        pads=tuple(axis.pad for axis in axes),
        input_dilation=(1,) * len(axes),
        kernel_dilation=tuple(axis.dilation for axis in axes),
    )
    return convolve(x, kernel[tuple(axis.taps for axis in axes)], own)


def _phase(
    place: int, size: int, taps: int, count: int, geometry: Geometry, axis: int
) -> _Phase:
    """Output `stride * m + place` lies on tap t where that hits no hole."""
    stride, dilation = geometry.input_dilation[axis], geometry.kernel_dilation[axis]
    start, step = place - geometry.pads[axis][0], stride // math.gcd(stride, dilation)
    hits = [t for t in range(min(step, taps)) if (start + t * dilation) % stride == 0]
    if not hits:
        return _Phase(slice(0), 0, 1, (0, 0))
    first, apart = hits[0], dilation // math.gcd(stride, dilation)
    own = len(range(first, taps, step))
    offset = (start + first * dilation) // stride
    high = count - 1 + offset + (own - 1) * apart - (size - 1)
    return _Phase(slice(first, None, step), own, apart, (-offset, high))
