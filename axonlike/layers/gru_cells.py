"""Recurrent cells whose gate mixes the old carry and a new one: GRU and MGU."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from axonlike.initializers import InitFunction, lecun_normal, orthogonal, zeros
from axonlike.layer import Cell, layer
from axonlike.layers.checks import positive
from axonlike.layers.gates import (
    Activation,
    blend,
    carried,
    every_gate,
    gate_inits,
    gate_params,
    multiplier,
    one_step,
    projection,
    recurrent_bias,
    zeros_like_step,
)
from axonlike.layers.product import DotGeneral
from axonlike.types import Array, Key, Params


@layer
def gru_cell(
    features: int,
    *,
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
    """One step of a gated recurrent unit, for `scan`.

    With `r, z, n` the three parts, in this order, of the input's and the carry's
    product: `r = sigmoid(xr + hr)`, `z = sigmoid(xz + hz)`,
    `n = tanh(xn + r * (hn + b))`, `h = (1 - z) * n + z * h`. The reset gate acts after
    the product, as in PyTorch, cuDNN and Flax, so `n` needs a bias of its own there, `b`.
    PyTorch's other two recurrent biases are part of `bias`, unless asked for.

    Before the product, as in Cho et al. and Haiku, is `n = tanh(xn + (r * h) @ kernel)`:
    one bias less, but two products in turn, hence slower. (Haiku's z is our 1 - z.)

    Args:
        features: width of `h`; positive.
        reset_after: whether the reset gate acts after the product or before it.
        use_bias: whether there are biases.
        use_recurrent_bias: whether r and z have a second bias too, that of the carry's
            product, as in PyTorch; needs `reset_after`.
        gate_fn: of the gates r, z; element by element.
        activation_fn: of n; element by element.
        kernel_init: initializer of each gate's part of the kernel.
        recurrent_kernel_init: initializer of each gate's part of the recurrent kernel.
        bias_init: initializer of each gate's part of the bias.
        param_dtype: dtype in which params are stored; computation follows the input's.
        precision: of the matrix products, as in `jax.lax.dot_general`.
        dot_general: called in place of `jax.lax.dot_general`; None: JAX's own.
        name: the layer's name among its siblings.

    Shapes:
        carry: `h`, `(batch, features)`, zeros before the first step.
        x: `(batch, n)`, floating point.
        output: `h`, `(batch, features)`, the input's dtype.
        kernel: `(n, 3 * features)`, LeCun normal.
        recurrent_kernel: `(features, 3 * features)`, orthogonal for each gate.
        bias: `(3 * features,)`, zeros; absent when `use_bias` is false.
        recurrent_bias: `(features,)`, zeros, or `(3 * features,)` when asked for; absent
            when `use_bias` or `reset_after` is false.

    Raises:
        ValueError: `features` is not a positive int, or `use_recurrent_bias` without the
            other two.
        ShapeError: the input is not one time step.

    Example:
        >>> import jax, jax.numpy as jnp, axonlike as al
        >>> cell = al.gru_cell(4)
        >>> step = (jnp.zeros((2, 4)), jnp.ones((2, 3)))
        >>> params, state = cell.init(jax.random.key(0), step)
        >>> h, y = cell.predict(params, state, step)
        >>> y.shape
        (2, 4)

    References:
        Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder for
        Statistical Machine Translation", EMNLP 2014.
    """
    positive("gru_cell", features=features)
    if use_recurrent_bias and not (use_bias and reset_after):
        raise ValueError(
            "gru_cell: use_recurrent_bias needs use_bias and reset_after, got "
            f"{use_bias} and {reset_after}."
        )
    inits = gate_inits(kernel_init, recurrent_kernel_init, bias_init, use_bias=use_bias)
    multiply = multiplier(precision, dot_general)
    project = projection(multiply, 3)

    def init(key: Key, h: Any, x: Any) -> Params:
        one_step("gru_cell", x)
        own, rest = jax.random.split(key)
        params = gate_params(rest, (x.shape[-1], features), 3, inits, param_dtype)
        if use_recurrent_bias:
            params["recurrent_bias"] = every_gate(
                bias_init, own, 3, features, param_dtype
            )
        elif use_bias and reset_after:
            params["recurrent_bias"] = bias_init(own, (features,), param_dtype)
        return params

    def recur(params: Params, h: Any, x: Any) -> tuple[Array, ...]:
        xr, xz, xn = x
        hr, hz, hn = carried(multiply, params, h, 3)
        return xr + hr, xz + hz, xn, recurrent_bias(params, hn)

    def after(params: Params, h: Any, parts: Any) -> tuple[Array, Array]:
        r, z, xn, hn = parts
        return blend(h, activation_fn(xn + gate_fn(r) * hn), gate_fn(z))

    def before(params: Params, h: Any, x: Any) -> tuple[Array, Array]:
        xr, xz, xn = x
        kernel = params["recurrent_kernel"]
        hr, hz = jnp.split(multiply(h, kernel[:, : 2 * features]), 2, -1)
        kept = gate_fn(xr + hr) * h
        n = activation_fn(xn + multiply(kept, kernel[:, 2 * features :]))
        return blend(h, n, gate_fn(xz + hz))

    def initial_carry(x: Any) -> Array:
        one_step("gru_cell", x)
        return zeros_like_step(x, features)

    if reset_after:
        return Cell(init, after, initial_carry, project, recur)
    return Cell(init, before, initial_carry, project)


@layer
def mgu_cell(
    features: int,
    *,
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
    """One step of a minimal gated unit, for `scan`: a GRU with one gate.

    With `f, n` the two parts, in this order, of the input's and the carry's product:
    `f = sigmoid(xf + hf)`, `n = tanh(xn + f * (hn + b))`, `h = (1 - f) * n + f * h`.

    Args:
        features: width of `h`; positive.
        reset_gate: whether the gate acts on `hn`; without it, `n = tanh(xn + hn)`.
        forget_bias: what the gate's part of the bias has on top of `bias_init`.
        use_bias: whether there are biases.
        gate_fn: of the gate f; element by element.
        activation_fn: of n; element by element.
        kernel_init: initializer of each part of the kernel.
        recurrent_kernel_init: initializer of each part of the recurrent kernel.
        bias_init: initializer of each part of the bias.
        param_dtype: dtype in which params are stored; computation follows the input's.
        precision: of the matrix products, as in `jax.lax.dot_general`.
        dot_general: called in place of `jax.lax.dot_general`; None: JAX's own.
        name: the layer's name among its siblings.

    Shapes:
        carry: `h`, `(batch, features)`, zeros before the first step.
        x: `(batch, n)`, floating point.
        output: `h`, `(batch, features)`, the input's dtype.
        kernel: `(n, 2 * features)`, LeCun normal.
        recurrent_kernel: `(features, 2 * features)`, orthogonal for each part.
        bias: `(2 * features,)`, zeros, f's part 1; absent when `use_bias` is false.
        recurrent_bias: `(features,)`, zeros; absent when `use_bias` or `reset_gate` is
            false.

    Raises:
        ValueError: `features` is not a positive int.
        ShapeError: the input is not one time step.

    Example:
        >>> import axonlike as al
        >>> h, y = al.mgu_cell(4).output_spec((al.spec("b 4"), al.spec("b 3")))
        >>> y.shape
        (b, 4)

    References:
        Zhou et al., "Minimal Gated Unit for Recurrent Neural Networks", 2016.
    """
    positive("mgu_cell", features=features)
    inits = gate_inits(kernel_init, recurrent_kernel_init, bias_init, use_bias=use_bias)
    multiply = multiplier(precision, dot_general)

    def init(key: Key, h: Any, x: Any) -> Params:
        one_step("mgu_cell", x)
        own, rest = jax.random.split(key)
        params = gate_params(
            rest,
            (x.shape[-1], features),
            2,
            inits,
            param_dtype,
            forget=0,
            forget_bias=forget_bias,
        )
        if use_bias and reset_gate:
            params["recurrent_bias"] = bias_init(own, (features,), param_dtype)
        return params

    def recur(params: Params, h: Any, x: Any) -> tuple[Array, Array, Array]:
        (xf, xn), (hf, hn) = x, carried(multiply, params, h, 2)
        return xf + hf, xn, recurrent_bias(params, hn)

    def apply(params: Params, h: Any, z: Any) -> tuple[Array, Array]:
        gate, xn, hn = z
        f = gate_fn(gate)
        n = activation_fn(xn + (f * hn if reset_gate else hn))
        return blend(h, n, f)

    def initial_carry(x: Any) -> Array:
        one_step("mgu_cell", x)
        return zeros_like_step(x, features)

    return Cell(init, apply, initial_carry, projection(multiply, 2), recur)
