"""A long short-term memory of images: the cell, and the layer over time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from axonlike.combinators.over_time import scan
from axonlike.initializers import InitFunction, lecun_normal, zeros
from axonlike.layer import Cell, layer
from axonlike.layers.checks import positive, some
from axonlike.layers.convolve import correlate
from axonlike.layers.gates import Activation, gate_inits, gate_params, lstm_step
from axonlike.layers.linear import add_bias
from axonlike.layers.windows import axes_of, check_spatial, check_windows
from axonlike.types import Array, Key, Params, to_dtype

_PADDINGS = ("SAME", "VALID")


@layer
def conv_lstm_cell(
    features: int,
    kernel_size: int | Sequence[int],
    *,
    strides: int | Sequence[int] = 1,
    padding: Any = "SAME",
    forget_bias: float = 1.0,
    use_bias: bool = True,
    gate_fn: Activation = jax.nn.sigmoid,
    activation_fn: Activation = jnp.tanh,
    kernel_init: InitFunction = lecun_normal(),
    recurrent_kernel_init: InitFunction = lecun_normal(),
    bias_init: InitFunction = zeros(),
    param_dtype: Any = jnp.float32,
    precision: Any = None,
    name: str | None = None,
) -> Any:
    """One step of a long short-term memory of images: convolutions in place of products.

    As `lstm_cell`, with `i, f, g, o` the four parts of `conv(x) + conv(h)`. The carry has
    the sizes of the first convolution's output; the second one keeps them, always with
    stride 1 and padding "SAME".

    Args:
        features: channels of `h` and `c`; positive.
        kernel_size: of both convolutions; an int stands for every spatial axis.
        strides: of the input's convolution.
        padding: of the input's convolution: "SAME", "VALID", an int or one for each axis.
        forget_bias: what the forget gate's part of the bias has on top of `bias_init`.
        use_bias: whether there is a bias.
        gate_fn: of the gates i, f, o; element by element.
        activation_fn: of g and c; element by element.
        kernel_init: initializer of each gate's part of the kernel.
        recurrent_kernel_init: initializer of each gate's part of the recurrent kernel.
        bias_init: initializer of each gate's part of the bias.
        param_dtype: dtype in which params are stored; computation follows the input's.
        precision: of the convolutions, as in `jax.lax.conv_general_dilated`.
        name: the layer's name among its siblings.

    Shapes:
        carry: `(h, c)`, each `(batch, *spatial, features)`, zeros before the first step.
        x: `(batch, *spatial, n)`, floating point, any number of spatial axes.
        output: `h`, the input's dtype.
        kernel: `(*kernel_size, n, 4 * features)`, gates in the order i, f, g, o.
        recurrent_kernel: `(*kernel_size, features, 4 * features)`.
        bias: `(4 * features,)`, zeros, f's part 1; absent when `use_bias` is false.

    Raises:
        ValueError: an option is not a size, or the padding is not one of those.
        ShapeError: the input is not one time step of that rank.

    Example:
        >>> import axonlike as al
        >>> image, memory = al.spec("b 9 9 3"), al.spec("b 9 9 4")
        >>> carry, y = al.conv_lstm_cell(4, 3).output_spec(((memory, memory), image))
        >>> y.shape
        (b, 9, 9, 4)

    References:
        Shi et al., "Convolutional LSTM Network: A Machine Learning Approach for
        Precipitation Nowcasting", NIPS 2015.
    """
    positive("conv_lstm_cell", features=features)
    ranked = check_windows(
        "conv_lstm_cell", kernel_size, _PADDINGS, strides=strides, padding=padding
    )
    inits = gate_inits(kernel_init, recurrent_kernel_init, bias_init, use_bias=use_bias)

    def init(key: Key, carry: Any, x: Any) -> Params:
        _check(x)
        some("conv_lstm_cell", x)
        shape = (*axes_of(kernel_size, x.ndim - 2), x.shape[-1], features)
        return gate_params(
            key, shape, 4, inits, param_dtype, forget=1, forget_bias=forget_bias
        )

    def project(params: Params, x: Any) -> tuple[Array, ...]:
        y = _over_steps(params["kernel"], x, strides, padding)
        return tuple(jnp.split(add_bias(params, y), 4, -1))

    def recur(params: Params, carry: Any, x: Any) -> tuple[Array, ...]:
        y = _over_steps(params["recurrent_kernel"], carry[0], 1, "SAME")
        return tuple(a + b for a, b in zip(x, jnp.split(y, 4, -1), strict=True))

    def apply(params: Params, carry: Any, z: Any) -> tuple[Any, Array]:
        return lstm_step(carry, z, gate_fn, activation_fn)

    def initial_carry(x: Any) -> Any:
        _check(x)
        sizes = axes_of(kernel_size, x.ndim - 2)
        kernel = jax.ShapeDtypeStruct((*sizes, x.shape[-1], features), x.dtype)
        y: Any = jax.eval_shape(_convolved, kernel, x)
        return jnp.zeros(y.shape, x.dtype), jnp.zeros(y.shape, x.dtype)

    def _convolved(kernel: Any, x: Any) -> Array:
        return _over_steps(kernel, x, strides, padding)

    def _over_steps(kernel: Any, x: Any, strides: Any, padding: Any) -> Array:
        """The convolution of a step, or of many along leading axes."""
        lead = x.ndim - kernel.ndim + 1
        images = jnp.reshape(x, (-1, *x.shape[lead:])) if lead > 1 else x
        y = correlate(
            "conv_lstm_cell",
            images,
            to_dtype(kernel, x.dtype),
            strides=strides,
            padding=padding,
            kernel_dilation=1,
            groups=1,
            precision=precision,
        )
        return jnp.reshape(y, (*x.shape[:lead], *y.shape[1:]))

    def _check(x: Any) -> None:
        check_spatial("conv_lstm_cell", x, ranked)

    return Cell(init, apply, initial_carry, project, recur)


@layer
def conv_lstm(
    features: int,
    kernel_size: int | Sequence[int],
    *,
    reverse: bool = False,
    return_carry: bool = False,
    return_sequence: bool = True,
    unroll: int = 1,
    strides: int | Sequence[int] = 1,
    padding: Any = "SAME",
    forget_bias: float = 1.0,
    use_bias: bool = True,
    gate_fn: Activation = jax.nn.sigmoid,
    activation_fn: Activation = jnp.tanh,
    kernel_init: InitFunction = lecun_normal(),
    recurrent_kernel_init: InitFunction = lecun_normal(),
    bias_init: InitFunction = zeros(),
    param_dtype: Any = jnp.float32,
    precision: Any = None,
    name: str | None = None,
) -> Any:
    """A long short-term memory of films: `scan(conv_lstm_cell(features, kernel_size))`.

    The input's convolution is computed for all steps at once.

    Args:
        features: channels of the output; positive.
        kernel_size: of both convolutions; an int stands for every spatial axis.
        reverse: from the last step to the first; outputs stay at their places.
        return_carry: also return the last carry, `(h, c)`.
        return_sequence: the outputs of all steps, or only that of the last one.
        unroll: steps per iteration of the loop.
        strides: of the input's convolution.
        padding: of the input's convolution: "SAME", "VALID", an int or one for each axis.
        forget_bias: what the forget gate's part of the bias has on top of `bias_init`.
        use_bias: whether there is a bias.
        gate_fn: of the gates; element by element.
        activation_fn: of g and c; element by element.
        kernel_init: initializer of each gate's part of the kernel.
        recurrent_kernel_init: initializer of each gate's part of the recurrent kernel.
        bias_init: initializer of each gate's part of the bias.
        param_dtype: dtype in which params are stored; computation follows the input's.
        precision: of the convolutions, as in `jax.lax.conv_general_dilated`.
        name: the layer's name among its siblings.

    Shapes:
        x: `(batch, time, *spatial, n)`, floating point; alone, or with the other inputs of
            `scan` by name: `initial_carry`, `lengths`, `mask`, `reset`.
        output: `(batch, time, *spatial, features)`, the input's dtype; without time where
            there is no sequence; with the carry a tuple `(output, carry)`.
        kernel: `(*kernel_size, n, 4 * features)`, gates in the order i, f, g, o.
        recurrent_kernel: `(*kernel_size, features, 4 * features)`.
        bias: `(4 * features,)`; absent when `use_bias` is false.

    Raises:
        ValueError: an option is not a size, or the padding is not one of those.
        ShapeError: the input is not a sequence of images of that rank.

    Example:
        >>> import axonlike as al
        >>> al.conv_lstm(8, 3).output_spec(al.spec("b t 9 9 1")).shape
        (b, t, 9, 9, 8)

    References:
        Shi et al., "Convolutional LSTM Network: A Machine Learning Approach for
        Precipitation Nowcasting", NIPS 2015.
    """
    positive("conv_lstm", features=features)
    cell = conv_lstm_cell(
        features,
        kernel_size,
        strides=strides,
        padding=padding,
        forget_bias=forget_bias,
        use_bias=use_bias,
        gate_fn=gate_fn,
        activation_fn=activation_fn,
        kernel_init=kernel_init,
        recurrent_kernel_init=recurrent_kernel_init,
        bias_init=bias_init,
        param_dtype=param_dtype,
        precision=precision,
    )
    return scan(
        cell,
        reverse=reverse,
        return_carry=return_carry,
        return_sequence=return_sequence,
        unroll=unroll,
    )
