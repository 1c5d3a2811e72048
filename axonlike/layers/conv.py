"""Convolution over any number of spatial axes."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from axonlike.errors import ShapeError
from axonlike.initializers import InitFunction, lecun_normal, zeros
from axonlike.layer import layer
from axonlike.layers.checks import last_axis, positive, some
from axonlike.layers.convolve import ConvGeneralDilated, correlate
from axonlike.layers.linear import add_bias, affine_params
from axonlike.layers.windows import (
    PADDINGS,
    Padding,
    Sizes,
    check_spatial,
    check_windows,
    kernel_shape,
)
from axonlike.spec import show
from axonlike.types import Array, Key, Params, to_dtype


@layer
def conv(
    features: int,
    kernel_size: Sizes,
    strides: Sizes = 1,
    *,
    padding: Padding = "SAME",
    input_dilation: Sizes = 1,
    kernel_dilation: Sizes = 1,
    feature_group_count: int = 1,
    use_bias: bool = True,
    mask: Any = None,
    kernel_init: InitFunction = lecun_normal(),
    bias_init: InitFunction = zeros(),
    param_dtype: Any = jnp.float32,
    precision: Any = None,
    conv_general_dilated: ConvGeneralDilated | None = None,
    name: str | None = None,
) -> Any:
    """Convolution over any number of spatial axes, channels last.

    As everywhere in deep learning the kernel is not flipped (it is a correlation).

    Args:
        features: number of output channels; positive, a multiple of the groups.
        kernel_size: one int for every spatial axis the input has, or a tuple, one for
            each.
        strides: steps between windows, likewise.
        padding: `"SAME"` (output size is input size over stride, rounded up; where the
            zeros do not divide evenly, one more goes after), `"SAME_LOWER"` (one more
            goes before), `"VALID"` (none), `"CAUSAL"` (one axis; all before, so that no
            output sees a later input), an int for both sides of all axes, or for each
            axis an int or a pair `(low, high)`. Not with zeros but with the input's own
            values: `"CIRCULAR"` (from the other end), `"REFLECT"` (mirrored, the edge
            once), `"REPLICATE"` (the edge); those pad as many as `"SAME"` does without
            strides.
        input_dilation: distance between the input's positions, zeros in between.
        kernel_dilation: distance between the kernel's taps.
        feature_group_count: groups of channels that see only one another; the number
            of input channels makes it depthwise.
        use_bias: whether to add a bias.
        mask: array of the kernel's shape that multiplies it, as for autoregressive
            models; None: none.
        kernel_init: initializer of the kernel.
        bias_init: initializer of the bias.
        param_dtype: dtype in which params are stored; computation follows the input's.
        precision: of the products, as in `jax.lax.conv_general_dilated`.
        conv_general_dilated: called in place of `jax.lax.conv_general_dilated`, for
            products in int8 or fp8; None: JAX's own, or what is quicker.
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
            the mask is not of the kernel's shape, or a window is larger than the padded
            input.

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
    ranked = check_windows(
        "conv",
        kernel_size,
        PADDINGS,
        strides=strides,
        input_dilation=input_dilation,
        kernel_dilation=kernel_dilation,
        padding=padding,
    )
    if features % groups:
        raise ValueError(
            f"conv: features must be a multiple of feature_group_count {groups}, "
            f"got {features}."
        )

    def init(key: Key, x: Any) -> Params:
        check_spatial("conv", x, ranked)
        some("conv", x)
        shape = kernel_shape("conv", x, kernel_size, groups, features)
        if mask is not None and jnp.shape(mask) != shape:
            hint = "Give it the shape of the kernel that it multiplies."
            raise ShapeError("conv", f"a mask of shape {shape}", show(mask), hint)
        return affine_params(
            key,
            shape,
            use_bias=use_bias,
            kernel_init=kernel_init,
            bias_init=bias_init,
            dtype=param_dtype,
        )

    def apply(params: Params, x: Any) -> Array:
        check_spatial("conv", x, ranked)
        kernel = to_dtype(params["kernel"], x.dtype)
        last_axis("conv", x, kernel.shape[-2] * groups)
        if mask is not None:
            kernel = kernel * jnp.asarray(mask).astype(x.dtype)
        y = correlate(
            "conv",
            x,
            kernel,
            strides=strides,
            padding=padding,
            input_dilation=input_dilation,
            kernel_dilation=kernel_dilation,
            groups=groups,
            precision=precision,
            conv_general_dilated=conv_general_dilated,
        )
        return add_bias(params, y)

    return init, apply
