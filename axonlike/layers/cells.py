"""Recurrent cells: one step, for `scan` to run over time.

All of them are one idea. The input and the carry `h` each have a kernel with the parts
of all gates side by side; `project` multiplies the input's for all steps at once, `recur`
the carry's, and `apply` goes element by element.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from axonlike.initializers import InitFunction, lecun_normal, orthogonal, zeros
from axonlike.layer import Cell, layer
from axonlike.layers.checks import positive
from axonlike.layers.gates import (
    Activation,
    carried,
    every_gate,
    gate_inits,
    gate_params,
    lstm_step,
    multiplier,
    one_step,
    peephole_step,
    projection,
    zeros_like_step,
)
from axonlike.layers.product import DotGeneral
from axonlike.types import Array, Key, Params


@layer
def rnn_cell(
    features: int,
    *,
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
    """One step of a simple recurrent network: `h = tanh(x @ kernel + h @ recurrent + b)`.

    Args:
        features: width of `h`; positive.
        residual: whether `h` is added inside of the activation as well.
        use_bias: whether there is a bias.
        activation_fn: of the sum.
        kernel_init: initializer of the kernel.
        recurrent_kernel_init: initializer of the recurrent kernel.
        bias_init: initializer of the bias.
        param_dtype: dtype in which params are stored; computation follows the input's.
        precision: of the matrix products, as in `jax.lax.dot_general`.
        dot_general: called in place of `jax.lax.dot_general`; None: JAX's own.
        name: the layer's name among its siblings.

    Shapes:
        carry: `h`, `(batch, features)`, zeros before the first step.
        x: `(batch, n)`, floating point.
        output: `h`, `(batch, features)`, the input's dtype.
        kernel: `(n, features)`, LeCun normal.
        recurrent_kernel: `(features, features)`, orthogonal.
        bias: `(features,)`, zeros; absent when `use_bias` is false.

    Raises:
        ValueError: `features` is not a positive int.
        ShapeError: the input is not one time step.

    Example:
        >>> import axonlike as al
        >>> h, y = al.rnn_cell(4).output_spec((al.spec("b 4"), al.spec("b 3")))
        >>> y.shape
        (b, 4)

    References:
        Elman, "Finding Structure in Time", 1990. Residual: Yue et al., "Residual
        Recurrent Neural Networks for Learning Sequential Representations", 2018.
    """
    positive("rnn_cell", features=features)
    inits = gate_inits(kernel_init, recurrent_kernel_init, bias_init, use_bias=use_bias)
    multiply = multiplier(precision, dot_general)

    def init(key: Key, h: Any, x: Any) -> Params:
        one_step("rnn_cell", x)
        return gate_params(key, (x.shape[-1], features), 1, inits, param_dtype)

    def recur(params: Params, h: Any, x: Any) -> Array:
        x = x[0] + multiply(h, params["recurrent_kernel"])
        return x + h if residual else x

    def apply(params: Params, h: Any, z: Any) -> tuple[Array, Array]:
        h = activation_fn(z)
        return h, h

    def initial_carry(x: Any) -> Array:
        one_step("rnn_cell", x)
        return zeros_like_step(x, features)

    return Cell(init, apply, initial_carry, projection(multiply, 1), recur)


@layer
def lstm_cell(
    features: int,
    *,
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
    """One step of a long short-term memory, for `scan`.

    With `i, f, g, o` the four parts of `x @ kernel + h @ recurrent_kernel + bias`, in
    this order: `c = sigmoid(f) * c + sigmoid(i) * tanh(g)`, `h = sigmoid(o) * tanh(c)`.
    The order is PyTorch's; its two biases are one here, their sum.

    A memory that starts out by forgetting half of itself each step learns nothing over
    many steps: the forget gate's bias starts at 1, as in Haiku, Keras and trax (0 in
    Flax Linen; uniform in PyTorch). It stands in the params: nothing is added in a step.

    Args:
        features: width of `h` and `c`; positive.
        peephole: whether the gates see the memory: `i` and `f` the old `c`, `o` the new
            one, each by a weight per feature.
        forget_bias: what the forget gate's part of the bias has on top of `bias_init`.
        use_bias: whether there is a bias.
        use_recurrent_bias: whether the carry's product has a bias of its own too, as in
            PyTorch: an optimizer then moves their sum twice as fast.
        gate_fn: of the gates i, f, o; element by element.
        activation_fn: of g and c; element by element.
        kernel_init: initializer of each gate's part of the kernel.
        recurrent_kernel_init: initializer of each gate's part of the recurrent kernel.
        bias_init: initializer of each gate's part of the bias.
        param_dtype: dtype in which params are stored; computation follows the input's.
        precision: of the matrix products, as in `jax.lax.dot_general`.
        dot_general: called in place of `jax.lax.dot_general`; None: JAX's own.
        name: the layer's name among its siblings.

    Shapes:
        carry: `(h, c)`, each `(batch, features)`, zeros before the first step.
        x: `(batch, n)`, floating point.
        output: `h`, `(batch, features)`, the input's dtype.
        kernel: `(n, 4 * features)`, LeCun normal.
        recurrent_kernel: `(features, 4 * features)`, orthogonal for each gate.
        bias: `(4 * features,)`, zeros, f's part 1; absent when `use_bias` is false.
        recurrent_bias: `(4 * features,)`, zeros; absent unless asked for.
        peephole: `(3, features)`, for i, f, o, zeros; absent unless asked for.

    Raises:
        ValueError: `features` is not a positive int.
        ShapeError: the input is not one time step.

    Example:
        >>> import jax, jax.numpy as jnp, axonlike as al
        >>> cell = al.lstm_cell(4)
        >>> carry = (jnp.zeros((2, 4)), jnp.zeros((2, 4)))
        >>> params, state = cell.init(jax.random.key(0), (carry, jnp.ones((2, 3))))
        >>> (h, c), y = cell.predict(params, state, (carry, jnp.ones((2, 3))))
        >>> y.shape
        (2, 4)

    References:
        Hochreiter and Schmidhuber, "Long Short-Term Memory", 1997. Peepholes: Gers and
        Schmidhuber, "Recurrent Nets that Time and Count", 2000. Forget bias: Jozefowicz
        et al., "An Empirical Exploration of Recurrent Network Architectures", ICML 2015.
    """
    positive("lstm_cell", features=features)
    inits = gate_inits(kernel_init, recurrent_kernel_init, bias_init, use_bias=use_bias)
    multiply = multiplier(precision, dot_general)

    def init(key: Key, carry: Any, x: Any) -> Params:
        one_step("lstm_cell", x)
        params = gate_params(
            key,
            (x.shape[-1], features),
            4,
            inits,
            param_dtype,
            forget=1,
            forget_bias=forget_bias,
        )
        if use_recurrent_bias:
            params["recurrent_bias"] = every_gate(
                bias_init, key, 4, features, param_dtype
            )
        if peephole:
            params["peephole"] = jnp.zeros((3, features), param_dtype)
        return params

    def recur(params: Params, carry: Any, x: Any) -> tuple[Array, ...]:
        parts = carried(multiply, params, carry[0], 4)
        return tuple(a + b for a, b in zip(x, parts, strict=True))

    def apply(params: Params, carry: Any, z: Any) -> tuple[Any, Array]:
        if peephole:
            return peephole_step(params["peephole"], carry, z, gate_fn, activation_fn)
        return lstm_step(carry, z, gate_fn, activation_fn)

    def initial_carry(x: Any) -> Any:
        one_step("lstm_cell", x)
        return zeros_like_step(x, features), zeros_like_step(x, features)

    return Cell(init, apply, initial_carry, projection(multiply, 4), recur)
