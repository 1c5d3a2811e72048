"""Convolution channel by channel, and what is made of it."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from axonlike.combinators.basic import serial
from axonlike.initializers import InitFunction, lecun_normal, zeros
from axonlike.layer import layer
from axonlike.layers.checks import last_axis, positive, some
from axonlike.layers.conv import conv
from axonlike.layers.convolve import correlate
from axonlike.layers.linear import add_bias, affine_params
from axonlike.layers.windows import (
    PADDINGS,
    Padding,
    Sizes,
    axes_of,
    check_spatial,
    check_windows,
)
from axonlike.types import Array, Key, Params, to_dtype


@layer
def depthwise_conv(
    kernel_size: Sizes,
    channel_multiplier: int = 1,
    strides: Sizes = 1,
    *,
    padding: Padding = "SAME",
    kernel_dilation: Sizes = 1,
    use_bias: bool = True,
    kernel_init: InitFunction = lecun_normal(),
    bias_init: InitFunction = zeros(),
    param_dtype: Any = jnp.float32,
    precision: Any = None,
    name: str | None = None,
) -> Any:
    """Convolution of each channel by itself.

    A `conv` with as many groups as the input has channels; outputs of one channel stand
    side by side.

    Args:
        kernel_size: one int for every spatial axis the input has, or a tuple, one for
            each.
        channel_multiplier: number of outputs for each input channel.
        strides: steps between windows, likewise.
        padding: as in `conv`.
        kernel_dilation: distance between the kernel's taps.
        use_bias: whether to add a bias.
        kernel_init: initializer of the kernel.
        bias_init: initializer of the bias.
        param_dtype: dtype in which params are stored; computation follows the input's.
        precision: of the products, as in `jax.lax.conv_general_dilated`.
        name: the layer's name among its siblings.

    Shapes:
        input: `(batch, *spatial, in)`, floating point.
        output: `(batch, *spatial, in * channel_multiplier)`, the input's dtype.
        kernel: `(*kernel_size, 1, in * channel_multiplier)`, LeCun normal.
        bias: `(in * channel_multiplier,)`, zeros; absent when `use_bias` is false.

    Raises:
        ValueError: an option is not a size, or options disagree on the number of axes.
        ShapeError: the input has another rank, or a window is larger than the padded
            input.

    Example:
        >>> import jax, axonlike as al
        >>> layer = al.depthwise_conv(3, 2)
        >>> params, state = layer.init(jax.random.key(0), al.spec("b 28 28 4"))
        >>> params["kernel"].shape
        (3, 3, 1, 8)
        >>> layer.output_spec(al.spec("b 28 28 4")).shape
        (b, 28, 28, 8)
    """
    kind = "depthwise_conv"
    positive(kind, channel_multiplier=channel_multiplier)
    ranked = check_windows(
        kind,
        kernel_size,
        PADDINGS,
        strides=strides,
        kernel_dilation=kernel_dilation,
        padding=padding,
    )

    def init(key: Key, x: Any) -> Params:
        check_spatial(kind, x, ranked)
        some(kind, x)
        channels = x.shape[-1]
        shape = (
            *axes_of(kernel_size, x.ndim - 2),
            1,
            channels * channel_multiplier,
        )
        return affine_params(
            key,
            shape,
            use_bias=use_bias,
            kernel_init=kernel_init,
            bias_init=bias_init,
            dtype=param_dtype,
        )

    def apply(params: Params, x: Any) -> Array:
        check_spatial(kind, x, ranked)
        kernel = to_dtype(params["kernel"], x.dtype)
        last_axis(kind, x, kernel.shape[-1] // channel_multiplier)
        y = correlate(
            kind,
            x,
            kernel,
            strides=strides,
            padding=padding,
            kernel_dilation=kernel_dilation,
            groups=x.shape[-1],
            precision=precision,
        )
        return add_bias(params, y)

    return init, apply


@layer
def separable_conv(
    features: int,
    kernel_size: Sizes,
    strides: Sizes = 1,
    *,
    channel_multiplier: int = 1,
    padding: Padding = "SAME",
    kernel_dilation: Sizes = 1,
    use_bias: bool = True,
    kernel_init: InitFunction = lecun_normal(),
    bias_init: InitFunction = zeros(),
    param_dtype: Any = jnp.float32,
    precision: Any = None,
    name: str | None = None,
) -> Any:
    """Depthwise separable convolution: each channel by itself, then all at each position.

    As in Keras. What Haiku and Axon call separable is separable in space instead:
    `depthwise_conv((3, 1)) >> depthwise_conv((1, 3))`.

    Args:
        features: number of output channels; positive.
        kernel_size: one int for every spatial axis the input has, or a tuple, one for
            each.
        strides: steps between windows, likewise.
        channel_multiplier: number of channels in between, for each input channel.
        padding: as in `conv`.
        kernel_dilation: distance between the kernel's taps.
        use_bias: whether to add a bias, to the output alone.
        kernel_init: initializer of both kernels.
        bias_init: initializer of the bias.
        param_dtype: dtype in which params are stored; computation follows the input's.
        precision: of the products, as in `jax.lax.conv_general_dilated`.
        name: the layer's name among its siblings.

    Shapes:
        input: `(batch, *spatial, in)`, floating point.
        output: `(batch, *spatial, features)`, the input's dtype.
        depthwise/kernel: `(*kernel_size, 1, in * channel_multiplier)`, LeCun normal.
        pointwise/kernel: `(1, ..., in * channel_multiplier, features)`, LeCun normal.
        pointwise/bias: `(features,)`, zeros; absent when `use_bias` is false.

    Raises:
        ValueError: an option is not a size, or options disagree on the number of axes.
        ShapeError: the input has another rank, or a window is larger than the padded
            input.

    Example:
        >>> import jax, axonlike as al
        >>> layer = al.separable_conv(8, 3)
        >>> params, state = layer.init(jax.random.key(0), al.spec("b 28 28 4"))
        >>> jax.tree.map(jax.numpy.shape, params)["depthwise"]
        {'kernel': (3, 3, 1, 4)}
        >>> jax.tree.map(jax.numpy.shape, params)["pointwise"]
        {'bias': (8,), 'kernel': (1, 1, 4, 8)}

    References:
        Chollet, "Xception: Deep Learning with Depthwise Separable Convolutions", CVPR
        2017. https://arxiv.org/abs/1610.02357
    """
    positive("separable_conv", features=features, channel_multiplier=channel_multiplier)
    check_windows(
        "separable_conv",
        kernel_size,
        PADDINGS,
        strides=strides,
        kernel_dilation=kernel_dilation,
        padding=padding,
    )
    depthwise = depthwise_conv(
        kernel_size,
        channel_multiplier,
        strides,
        padding=padding,
        kernel_dilation=kernel_dilation,
        use_bias=False,
        kernel_init=kernel_init,
        param_dtype=param_dtype,
        precision=precision,
    )
    pointwise = conv(
        features,
        1,
        use_bias=use_bias,
        kernel_init=kernel_init,
        bias_init=bias_init,
        param_dtype=param_dtype,
        precision=precision,
    )
    return serial(depthwise=depthwise, pointwise=pointwise)
