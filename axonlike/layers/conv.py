"""Convolution over one to three spatial axes."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import lax

from axonlike.errors import ShapeError
from axonlike.initializers import InitFunction, lecun_normal, zeros
from axonlike.layer import layer
from axonlike.layers.checks import ints, last_axis, positive, some
from axonlike.layers.linear import add_bias, affine_params
from axonlike.layers.windows import (
    Padding,
    Sizes,
    axes_of,
    check_agree,
    check_padding,
    check_rank,
    pads_of,
)
from axonlike.spec import is_unknown, show
from axonlike.types import Array, Key, Params, to_dtype

_LAYOUTS = {
    1: ("NWC", "WIO", "NWC"),
    2: ("NHWC", "HWIO", "NHWC"),
    3: ("NDHWC", "DHWIO", "NDHWC"),
}


@layer
def conv(
    features: int,
    kernel_size: Sizes,
    strides: Sizes = 1,
    *,
    padding: Padding = "SAME",
    kernel_dilation: Sizes = 1,
    feature_group_count: int = 1,
    use_bias: bool = True,
    kernel_init: InitFunction = lecun_normal(),
    bias_init: InitFunction = zeros(),
    param_dtype: Any = jnp.float32,
    precision: Any = None,
    name: str | None = None,
) -> Any:
    """Convolution over 1 to 3 spatial axes, channels last.

    As everywhere in deep learning the kernel is not flipped (it is a correlation).

    Args:
        features: number of output channels; positive, a multiple of the groups.
        kernel_size: one int for every spatial axis the input has, or 1 to 3 ints, one
            for each.
        strides: steps between windows, likewise.
        padding: `"SAME"` (output size is input size over stride, rounded up; where the
            zeros do not divide evenly, one more goes after), `"VALID"` (none),
            `"CAUSAL"` (one axis; all before, so that no output sees a later input), an
            int for both sides of all axes, or for each axis an int or a pair
            `(low, high)`.
        kernel_dilation: distance between the kernel's taps.
        feature_group_count: groups of channels that see only one another; the number
            of input channels makes it depthwise.
        use_bias: whether to add a bias.
        kernel_init: initializer of the kernel.
        bias_init: initializer of the bias.
        param_dtype: dtype in which params are stored; computation follows the input's.
        precision: of the products, as in `jax.lax.conv_general_dilated`.
        name: the layer's name among its siblings.

    Shapes:
        input: `(batch, *spatial, in)`, floating point.
        output: `(batch, *spatial, features)`, the input's dtype.
        kernel: `(*kernel_size, in / groups, features)`, LeCun normal.
        bias: `(features,)`, zeros; absent when `use_bias` is false.

    Raises:
        ValueError: an option is not a size, options disagree on the number of axes, or
            the groups do not divide `features`.
        ShapeError: the input has another rank, the groups do not divide its channels,
            or a window is larger than the padded input.

    Example:
        >>> import jax, jax.numpy as jnp, axonlike as al
        >>> layer = al.conv(8, 3, strides=2)
        >>> params, state = layer.init(jax.random.key(0), al.spec("b 28 28 1"))
        >>> params["kernel"].shape
        (3, 3, 1, 8)
        >>> layer.predict(params, state, jnp.ones((5, 28, 28, 1))).shape
        (5, 14, 14, 8)
    """
    groups = feature_group_count
    positive("conv", features=features, feature_group_count=groups)
    for option, value in (
        ("kernel_size", kernel_size),
        ("strides", strides),
        ("kernel_dilation", kernel_dilation),
    ):
        ints("conv", option, value)
    check_padding("conv", padding, ("SAME", "VALID", "CAUSAL"))
    others = {
        "strides": strides,
        "kernel_dilation": kernel_dilation,
        "padding": padding,
    }
    check_agree("conv", "kernel_size", kernel_size, **others)
    if features % groups:
        raise ValueError(
            f"conv: features must be a multiple of feature_group_count {groups}, "
            f"got {features}."
        )

    def init(key: Key, x: Any) -> Params:
        check_rank("conv", x, kernel_size)
        some("conv", x)
        channels = x.shape[-1]
        if groups > 1 and channels % groups != 0:
            raise ShapeError(
                "conv",
                f"(batch, *spatial, channels) with channels a multiple of {groups}",
                show(x),
                "Choose a feature_group_count that divides them.",
            )
        shape = (*axes_of(kernel_size, x.ndim - 2), channels // groups, features)
        return affine_params(
            key,
            shape,
            use_bias=use_bias,
            kernel_init=kernel_init,
            bias_init=bias_init,
            dtype=param_dtype,
        )

    def apply(params: Params, x: Any) -> Array:
        check_rank("conv", x, kernel_size)
        kernel = to_dtype(params["kernel"], x.dtype)
        last_axis("conv", x, kernel.shape[-2] * groups)
        steps = axes_of(strides, x.ndim - 2)
        dilation = axes_of(kernel_dilation, x.ndim - 2)
        extent = tuple(
            (n - 1) * d + 1 for n, d in zip(kernel.shape[:-2], dilation, strict=True)
        )
        y = lax.conv_general_dilated(
            x,
            kernel,
            steps,
            _pads(x, padding, extent, steps),
            rhs_dilation=dilation,
            dimension_numbers=_LAYOUTS[x.ndim - 2],
            feature_group_count=groups,
            precision=precision,
        )
        return add_bias(params, y)

    return init, apply


def _pads(
    x: Any, padding: Padding, extent: tuple[int, ...], strides: tuple[int, ...]
) -> Any:
    """As `lax.conv_general_dilated` takes it, which by pairs of unknown sizes refuses."""
    pads = pads_of("conv", x, padding, extent, strides)
    return padding if any(map(is_unknown, (n for p in pads for n in p))) else pads
