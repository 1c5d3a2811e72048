"""Recurrent layers over time: `scan` of a cell."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from axonlike.combinators.over_time import scan
from axonlike.initializers import InitFunction, lecun_normal, orthogonal, zeros
from axonlike.layer import layer
from axonlike.layers.cells import lstm_cell, rnn_cell
from axonlike.layers.checks import positive
from axonlike.layers.gates import Activation
from axonlike.layers.gru_cells import gru_cell, mgu_cell
from axonlike.layers.product import DotGeneral


@layer
def rnn(
    features: int,
    *,
    reverse: bool = False,
    return_carry: bool = False,
    return_sequence: bool = True,
    unroll: int = 1,
    residual: bool = False,
    use_bias: bool = True,
    activation_fn: Activation = jnp.tanh,
    kernel_init: InitFunction = lecun_normal(),
    recurrent_kernel_init: InitFunction = orthogonal(),
    bias_init: InitFunction = zeros(),
    param_dtype: Any = jnp.float32,
    precision: Any = None,
    dot_general: DotGeneral | None = None,
    name: str | None = None,
) -> Any:
    """A simple recurrent network over sequences: `scan(rnn_cell(features))`.

    The input's part of the sum is computed for all steps at once.

    Args:
        features: width of the output; positive.
        reverse: from the last step to the first; outputs stay at their places.
        return_carry: also return the last carry, `h`.
        return_sequence: the outputs of all steps, or only that of the last one.
        unroll: steps per iteration of the loop.
        residual: whether `h` is added inside of the activation as well.
        use_bias: whether there is a bias.
        activation_fn: of the sum; element by element.
        kernel_init: initializer of each gate's part of the kernel.
        recurrent_kernel_init: initializer of each gate's part of the recurrent kernel.
        bias_init: initializer of each gate's part of the bias.
        param_dtype: dtype in which params are stored; computation follows the input's.
        precision: of the matrix products, as in `jax.lax.dot_general`.
        dot_general: called in place of `jax.lax.dot_general`; None: JAX's own.
        name: the layer's name among its siblings.

    Shapes:
        x: `(batch, time, n)`, floating point; alone, or with the other inputs of `scan`
            by name: `initial_carry`, `lengths`, `mask`, `reset`.
        output: `(batch, time, features)`, the input's dtype; `(batch, features)` without
            the sequence; with the carry a tuple `(output, carry)`.
        kernel: `(n, features)`.
        recurrent_kernel: `(features, features)`.
        bias: `(features,)`; absent when `use_bias` is false.

    Raises:
        ValueError: `features` is not a positive int.
        ShapeError: the input is not a sequence of vectors.

    Example:
        >>> import axonlike as al
        >>> al.rnn(8).output_spec(al.spec("b t 4")).shape
        (b, t, 8)

    References:
        Elman, "Finding Structure in Time", 1990.
    """
    positive("rnn", features=features)
    cell = rnn_cell(
        features,
        residual=residual,
        use_bias=use_bias,
        activation_fn=activation_fn,
        kernel_init=kernel_init,
        recurrent_kernel_init=recurrent_kernel_init,
        bias_init=bias_init,
        param_dtype=param_dtype,
        precision=precision,
        dot_general=dot_general,
    )
    return scan(
        cell,
        reverse=reverse,
        return_carry=return_carry,
        return_sequence=return_sequence,
        unroll=unroll,
    )


@layer
def lstm(
    features: int,
    *,
    reverse: bool = False,
    return_carry: bool = False,
    return_sequence: bool = True,
    unroll: int = 1,
    peephole: bool = False,
    forget_bias: float = 1.0,
    use_bias: bool = True,
    use_recurrent_bias: bool = False,
    gate_fn: Activation = jax.nn.sigmoid,
    activation_fn: Activation = jnp.tanh,
    kernel_init: InitFunction = lecun_normal(),
    recurrent_kernel_init: InitFunction = orthogonal(),
    bias_init: InitFunction = zeros(),
    param_dtype: Any = jnp.float32,
    precision: Any = None,
    dot_general: DotGeneral | None = None,
    name: str | None = None,
) -> Any:
    """A long short-term memory over sequences: `scan(lstm_cell(features))`.

    The input's part of the gates is computed for all steps at once.

    Args:
        features: width of the output; positive.
        reverse: from the last step to the first; outputs stay at their places.
        return_carry: also return the last carry, `(h, c)`.
        return_sequence: the outputs of all steps, or only that of the last one.
        unroll: steps per iteration of the loop.
        peephole: whether the gates see the memory.
        forget_bias: what the forget gate's part of the bias has on top of `bias_init`.
        use_bias: whether there is a bias.
        use_recurrent_bias: whether the carry's product has a bias of its own too, for
            every gate, as in PyTorch.
        gate_fn: of the gates; element by element.
        activation_fn: of g and c; element by element.
        kernel_init: initializer of each gate's part of the kernel.
        recurrent_kernel_init: initializer of each gate's part of the recurrent kernel.
        bias_init: initializer of each gate's part of the bias.
        param_dtype: dtype in which params are stored; computation follows the input's.
        precision: of the matrix products, as in `jax.lax.dot_general`.
        dot_general: called in place of `jax.lax.dot_general`; None: JAX's own.
        name: the layer's name among its siblings.

    Shapes:
        x: `(batch, time, n)`, floating point; alone, or with the other inputs of `scan`
            by name: `initial_carry`, `lengths`, `mask`, `reset`.
        output: `(batch, time, features)`, the input's dtype; `(batch, features)` without
            the sequence; with the carry a tuple `(output, carry)`.
        kernel: `(n, 4 * features)`, gates in the order i, f, g, o.
        recurrent_kernel: `(features, 4 * features)`.
        bias: `(4 * features,)`; absent when `use_bias` is false.
        recurrent_bias: `(4 * features,)`; absent unless asked for.
        peephole: `(3, features)`, for i, f, o; absent unless asked for.

    Raises:
        ValueError: `features` is not a positive int.
        ShapeError: the input is not a sequence of vectors.

    Example:
        >>> import axonlike as al
        >>> al.lstm(8).output_spec(al.spec("b t 4")).shape
        (b, t, 8)

    References:
        Hochreiter and Schmidhuber, "Long Short-Term Memory", 1997.
    """
    positive("lstm", features=features)
    cell = lstm_cell(
        features,
        peephole=peephole,
        forget_bias=forget_bias,
        use_bias=use_bias,
        use_recurrent_bias=use_recurrent_bias,
        gate_fn=gate_fn,
        activation_fn=activation_fn,
        kernel_init=kernel_init,
        recurrent_kernel_init=recurrent_kernel_init,
        bias_init=bias_init,
        param_dtype=param_dtype,
        precision=precision,
        dot_general=dot_general,
    )
    return scan(
        cell,
        reverse=reverse,
        return_carry=return_carry,
        return_sequence=return_sequence,
        unroll=unroll,
    )


@layer
def gru(
    features: int,
    *,
    reverse: bool = False,
    return_carry: bool = False,
    return_sequence: bool = True,
    unroll: int = 1,
    reset_after: bool = True,
    use_bias: bool = True,
    use_recurrent_bias: bool = False,
    gate_fn: Activation = jax.nn.sigmoid,
    activation_fn: Activation = jnp.tanh,
    kernel_init: InitFunction = lecun_normal(),
    recurrent_kernel_init: InitFunction = orthogonal(),
    bias_init: InitFunction = zeros(),
    param_dtype: Any = jnp.float32,
    precision: Any = None,
    dot_general: DotGeneral | None = None,
    name: str | None = None,
) -> Any:
    """A gated recurrent unit over sequences: `scan(gru_cell(features))`.

    The input's part of the gates is computed for all steps at once.

    Args:
        features: width of the output; positive.
        reverse: from the last step to the first; outputs stay at their places.
        return_carry: also return the last carry, `h`.
        return_sequence: the outputs of all steps, or only that of the last one.
        unroll: steps per iteration of the loop.
        reset_after: whether the reset gate acts after the product or before it.
        use_bias: whether there are biases.
        use_recurrent_bias: whether r and z have a second bias too, that of the carry's
            product, as in PyTorch; needs `reset_after`.
        gate_fn: of the gates; element by element.
        activation_fn: of n; element by element.
        kernel_init: initializer of each gate's part of the kernel.
        recurrent_kernel_init: initializer of each gate's part of the recurrent kernel.
        bias_init: initializer of each gate's part of the bias.
        param_dtype: dtype in which params are stored; computation follows the input's.
        precision: of the matrix products, as in `jax.lax.dot_general`.
        dot_general: called in place of `jax.lax.dot_general`; None: JAX's own.
        name: the layer's name among its siblings.

    Shapes:
        x: `(batch, time, n)`, floating point; alone, or with the other inputs of `scan`
            by name: `initial_carry`, `lengths`, `mask`, `reset`.
        output: `(batch, time, features)`, the input's dtype; `(batch, features)` without
            the sequence; with the carry a tuple `(output, carry)`.
        kernel: `(n, 3 * features)`, gates in the order r, z, n.
        recurrent_kernel: `(features, 3 * features)`.
        bias: `(3 * features,)`; absent when `use_bias` is false.
        recurrent_bias: `(features,)`, of n, or `(3 * features,)` when asked for; absent
            when `use_bias` or `reset_after` is false.

    Raises:
        ValueError: `features` is not a positive int, or `use_recurrent_bias` without
            `use_bias` and `reset_after`.
        ShapeError: the input is not a sequence of vectors.

    Example:
        >>> import axonlike as al
        >>> al.gru(8).output_spec(al.spec("b t 4")).shape
        (b, t, 8)

    References:
        Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder for
        Statistical Machine Translation", EMNLP 2014.
    """
    positive("gru", features=features)
    cell = gru_cell(
        features,
        reset_after=reset_after,
        use_bias=use_bias,
        use_recurrent_bias=use_recurrent_bias,
        gate_fn=gate_fn,
        activation_fn=activation_fn,
        kernel_init=kernel_init,
        recurrent_kernel_init=recurrent_kernel_init,
        bias_init=bias_init,
        param_dtype=param_dtype,
        precision=precision,
        dot_general=dot_general,
    )
    return scan(
        cell,
        reverse=reverse,
        return_carry=return_carry,
        return_sequence=return_sequence,
        unroll=unroll,
    )


@layer
def mgu(
    features: int,
    *,
    reverse: bool = False,
    return_carry: bool = False,
    return_sequence: bool = True,
    unroll: int = 1,
    reset_gate: bool = True,
    forget_bias: float = 1.0,
    use_bias: bool = True,
    gate_fn: Activation = jax.nn.sigmoid,
    activation_fn: Activation = jnp.tanh,
    kernel_init: InitFunction = lecun_normal(),
    recurrent_kernel_init: InitFunction = orthogonal(),
    bias_init: InitFunction = zeros(),
    param_dtype: Any = jnp.float32,
    precision: Any = None,
    dot_general: DotGeneral | None = None,
    name: str | None = None,
) -> Any:
    """A minimal gated unit over sequences: `scan(mgu_cell(features))`.

    The input's part of the gate is computed for all steps at once.

    Args:
        features: width of the output; positive.
        reverse: from the last step to the first; outputs stay at their places.
        return_carry: also return the last carry, `h`.
        return_sequence: the outputs of all steps, or only that of the last one.
        unroll: steps per iteration of the loop.
        reset_gate: whether the gate acts on the carry's part of n.
        forget_bias: what the gate's part of the bias has on top of `bias_init`.
        use_bias: whether there are biases.
        gate_fn: of the gates; element by element.
        activation_fn: of n; element by element.
        kernel_init: initializer of each gate's part of the kernel.
        recurrent_kernel_init: initializer of each gate's part of the recurrent kernel.
        bias_init: initializer of each gate's part of the bias.
        param_dtype: dtype in which params are stored; computation follows the input's.
        precision: of the matrix products, as in `jax.lax.dot_general`.
        dot_general: called in place of `jax.lax.dot_general`; None: JAX's own.
        name: the layer's name among its siblings.

    Shapes:
        x: `(batch, time, n)`, floating point; alone, or with the other inputs of `scan`
            by name: `initial_carry`, `lengths`, `mask`, `reset`.
        output: `(batch, time, features)`, the input's dtype; `(batch, features)` without
            the sequence; with the carry a tuple `(output, carry)`.
        kernel: `(n, 2 * features)`, parts in the order f, n.
        recurrent_kernel: `(features, 2 * features)`.
        bias: `(2 * features,)`; absent when `use_bias` is false.
        recurrent_bias: `(features,)`, of n; absent when `use_bias` or `reset_gate` is
            false.

    Raises:
        ValueError: `features` is not a positive int.
        ShapeError: the input is not a sequence of vectors.

    Example:
        >>> import axonlike as al
        >>> al.mgu(8).output_spec(al.spec("b t 4")).shape
        (b, t, 8)

    References:
        Zhou et al., "Minimal Gated Unit for Recurrent Neural Networks", 2016.
    """
    positive("mgu", features=features)
    cell = mgu_cell(
        features,
        reset_gate=reset_gate,
        forget_bias=forget_bias,
        use_bias=use_bias,
        gate_fn=gate_fn,
        activation_fn=activation_fn,
        kernel_init=kernel_init,
        recurrent_kernel_init=recurrent_kernel_init,
        bias_init=bias_init,
        param_dtype=param_dtype,
        precision=precision,
        dot_general=dot_general,
    )
    return scan(
        cell,
        reverse=reverse,
        return_carry=return_carry,
        return_sequence=return_sequence,
        unroll=unroll,
    )
