"""Recurrent cells, and layers that run them over time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from axonlike.combinators.lifted import scan
from axonlike.initializers import InitFunction, lecun_normal, orthogonal, zeros
from axonlike.layer import Cell, layer
from axonlike.layers.checks import exactly, positive
from axonlike.layers.linear import affine
from axonlike.types import Array, Key, Params, to_dtype

_STEP = "(batch, n)"
_HINT = (
    "A cell takes one time step; over sequences (batch, time, n) use lstm, gru or "
    "scan(cell)."
)


@layer
def lstm_cell(
    features: int,
    *,
    use_bias: bool = True,
    gate_fn: Callable[[Any], Any] = jax.nn.sigmoid,
    activation_fn: Callable[[Any], Any] = jnp.tanh,
    kernel_init: InitFunction = lecun_normal(),
    recurrent_kernel_init: InitFunction = orthogonal(),
    bias_init: InitFunction = zeros(),
    param_dtype: Any = jnp.float32,
    precision: Any = None,
    name: str | None = None,
) -> Any:
    """One step of a long short-term memory, for `scan`.

    With `i, f, g, o` the four parts of `x @ kernel + h @ recurrent_kernel + bias`, in
    this order: `c = sigmoid(f) * c + sigmoid(i) * tanh(g)`, `h = sigmoid(o) * tanh(c)`.
    The order is PyTorch's; its two biases are one here, their sum.

    Args:
        features: width of `h` and `c`; positive.
        use_bias: whether there is a bias.
        gate_fn: of the gates i, f, o.
        activation_fn: of g and c.
        kernel_init: initializer of each gate's part of the kernel.
        recurrent_kernel_init: initializer of each gate's part of the recurrent kernel.
        bias_init: initializer of each gate's part of the bias.
        param_dtype: dtype in which params are stored; computation follows the input's.
        precision: of the matrix products, as in `jax.lax.dot_general`.
        name: the layer's name among its siblings.

    Shapes:
        carry: `(h, c)`, each `(batch, features)`, zeros before the first step.
        x: `(batch, n)`, floating point.
        output: `h`, `(batch, features)`, the input's dtype.
        kernel: `(n, 4 * features)`, LeCun normal.
        recurrent_kernel: `(features, 4 * features)`, orthogonal for each gate.
        bias: `(4 * features,)`, zeros; absent when `use_bias` is false.

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
        Hochreiter and Schmidhuber, "Long Short-Term Memory", 1997.
    """
    positive("lstm_cell", features=features)
    inits = {"kernel": kernel_init, "recurrent_kernel": recurrent_kernel_init}
    if use_bias:
        inits["bias"] = bias_init

    def init(key: Key, carry: Any, x: Any) -> Params:
        exactly("lstm_cell", x, 2, _STEP, _HINT)
        return _gates(key, (x.shape[-1], features), 4, inits, param_dtype)

    def project(params: Params, x: Any) -> Array:
        return affine(params, x, precision)

    def apply(params: Params, carry: Any, x: Any) -> tuple[Any, Array]:
        h, c = carry
        z = x + _recurrent(params, h, precision)
        i, f, g, o = jnp.split(z, 4, -1)
        c = gate_fn(f) * c + gate_fn(i) * activation_fn(g)
        h = gate_fn(o) * activation_fn(c)
        return (h, c), h

    def initial_carry(x: Any) -> Any:
        exactly("lstm_cell", x, 2, _STEP, _HINT)
        return _zeros(x, features), _zeros(x, features)

    return Cell(init, apply, initial_carry, project)


@layer
def gru_cell(
    features: int,
    *,
    use_bias: bool = True,
    gate_fn: Callable[[Any], Any] = jax.nn.sigmoid,
    activation_fn: Callable[[Any], Any] = jnp.tanh,
    kernel_init: InitFunction = lecun_normal(),
    recurrent_kernel_init: InitFunction = orthogonal(),
    bias_init: InitFunction = zeros(),
    param_dtype: Any = jnp.float32,
    precision: Any = None,
    name: str | None = None,
) -> Any:
    """One step of a gated recurrent unit, for `scan`.

    With `r, z, n` the three parts, in this order, of the input's and the carry's
    product: `r = sigmoid(xr + hr)`, `z = sigmoid(xz + hz)`,
    `n = tanh(xn + r * (hn + b))`, `h = (1 - z) * n + z * h`. The reset gate acts after
    the product, as in PyTorch and cuDNN (Cho et al. have it before), so `n` needs a
    bias of its own there, `b`. PyTorch's other two recurrent biases are part of `bias`.

    Args:
        features: width of `h`; positive.
        use_bias: whether there are biases.
        gate_fn: of the gates r, z.
        activation_fn: of n.
        kernel_init: initializer of each gate's part of the kernel.
        recurrent_kernel_init: initializer of each gate's part of the recurrent kernel.
        bias_init: initializer of each gate's part of the bias.
        param_dtype: dtype in which params are stored; computation follows the input's.
        precision: of the matrix products, as in `jax.lax.dot_general`.
        name: the layer's name among its siblings.

    Shapes:
        carry: `h`, `(batch, features)`, zeros before the first step.
        x: `(batch, n)`, floating point.
        output: `h`, `(batch, features)`, the input's dtype.
        kernel: `(n, 3 * features)`, LeCun normal.
        recurrent_kernel: `(features, 3 * features)`, orthogonal for each gate.
        bias: `(3 * features,)`, zeros; absent when `use_bias` is false.
        recurrent_bias: `(features,)`, zeros; absent when `use_bias` is false.

    Raises:
        ValueError: `features` is not a positive int.
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
    inits = {"kernel": kernel_init, "recurrent_kernel": recurrent_kernel_init}
    if use_bias:
        inits["bias"] = bias_init

    def init(key: Key, carry: Any, x: Any) -> Params:
        exactly("gru_cell", x, 2, _STEP, _HINT)
        own, rest = jax.random.split(key)
        params = _gates(rest, (x.shape[-1], features), 3, inits, param_dtype)
        if use_bias:
            params["recurrent_bias"] = bias_init(own, (features,), param_dtype)
        return params

    def project(params: Params, x: Any) -> Array:
        return affine(params, x, precision)

    def apply(params: Params, carry: Any, x: Any) -> tuple[Array, Array]:
        h = carry
        xr, xz, xn = jnp.split(x, 3, -1)
        hr, hz, hn = jnp.split(_recurrent(params, h, precision), 3, -1)
        if use_bias:
            bias = to_dtype(params["recurrent_bias"], hn.dtype)
            hn = hn + jnp.broadcast_to(bias, hn.shape)
        r, z = gate_fn(xr + hr), gate_fn(xz + hz)
        n = activation_fn(xn + r * hn)
        h = (1 - z) * n + z * h
        return h, h

    def initial_carry(x: Any) -> Array:
        exactly("gru_cell", x, 2, _STEP, _HINT)
        return _zeros(x, features)

    return Cell(init, apply, initial_carry, project)


@layer
def lstm(
    features: int,
    *,
    reverse: bool = False,
    return_carry: bool = False,
    use_bias: bool = True,
    gate_fn: Callable[[Any], Any] = jax.nn.sigmoid,
    activation_fn: Callable[[Any], Any] = jnp.tanh,
    kernel_init: InitFunction = lecun_normal(),
    recurrent_kernel_init: InitFunction = orthogonal(),
    bias_init: InitFunction = zeros(),
    param_dtype: Any = jnp.float32,
    precision: Any = None,
    name: str | None = None,
) -> Any:
    """A long short-term memory over sequences: `scan(lstm_cell(features))`.

    The input's part of the gates is computed for all steps at once.

    Args:
        features: width of the output; positive.
        reverse: from the last step to the first; outputs stay at their places.
        return_carry: also return the last carry `(h, c)`.
        use_bias: whether there is a bias.
        gate_fn: of the gates i, f, o.
        activation_fn: of g and c.
        kernel_init: initializer of each gate's part of the kernel.
        recurrent_kernel_init: initializer of each gate's part of the recurrent kernel.
        bias_init: initializer of each gate's part of the bias.
        param_dtype: dtype in which params are stored; computation follows the input's.
        precision: of the matrix products, as in `jax.lax.dot_general`.
        name: the layer's name among its siblings.

    Shapes:
        input: `(batch, time, n)`, floating point; a wire may also give the carry before
            the first step, `sub.rnn(x, initial_carry=(h, c))`, each `(batch, features)`.
        output: `(batch, time, features)`, the input's dtype, or `(output, (h, c))`.
        kernel: `(n, 4 * features)`, gates in the order i, f, g, o.
        recurrent_kernel: `(features, 4 * features)`.
        bias: `(4 * features,)`; absent when `use_bias` is false.

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
        use_bias=use_bias,
        gate_fn=gate_fn,
        activation_fn=activation_fn,
        kernel_init=kernel_init,
        recurrent_kernel_init=recurrent_kernel_init,
        bias_init=bias_init,
        param_dtype=param_dtype,
        precision=precision,
    )
    return scan(cell, reverse=reverse, return_carry=return_carry)


@layer
def gru(
    features: int,
    *,
    reverse: bool = False,
    return_carry: bool = False,
    use_bias: bool = True,
    gate_fn: Callable[[Any], Any] = jax.nn.sigmoid,
    activation_fn: Callable[[Any], Any] = jnp.tanh,
    kernel_init: InitFunction = lecun_normal(),
    recurrent_kernel_init: InitFunction = orthogonal(),
    bias_init: InitFunction = zeros(),
    param_dtype: Any = jnp.float32,
    precision: Any = None,
    name: str | None = None,
) -> Any:
    """A gated recurrent unit over sequences: `scan(gru_cell(features))`.

    The input's part of the gates is computed for all steps at once.

    Args:
        features: width of the output; positive.
        reverse: from the last step to the first; outputs stay at their places.
        return_carry: also return the last carry `h`.
        use_bias: whether there are biases.
        gate_fn: of the gates r, z.
        activation_fn: of n.
        kernel_init: initializer of each gate's part of the kernel.
        recurrent_kernel_init: initializer of each gate's part of the recurrent kernel.
        bias_init: initializer of each gate's part of the bias.
        param_dtype: dtype in which params are stored; computation follows the input's.
        precision: of the matrix products, as in `jax.lax.dot_general`.
        name: the layer's name among its siblings.

    Shapes:
        input: `(batch, time, n)`, floating point; a wire may also give the carry before
            the first step, `sub.rnn(x, initial_carry=h)`, `(batch, features)`.
        output: `(batch, time, features)`, the input's dtype, or `(output, h)`.
        kernel: `(n, 3 * features)`, gates in the order r, z, n.
        recurrent_kernel: `(features, 3 * features)`.
        bias: `(3 * features,)`; absent when `use_bias` is false.
        recurrent_bias: `(features,)`, of n; absent when `use_bias` is false.

    Raises:
        ValueError: `features` is not a positive int.
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
        use_bias=use_bias,
        gate_fn=gate_fn,
        activation_fn=activation_fn,
        kernel_init=kernel_init,
        recurrent_kernel_init=recurrent_kernel_init,
        bias_init=bias_init,
        param_dtype=param_dtype,
        precision=precision,
    )
    return scan(cell, reverse=reverse, return_carry=return_carry)


def _gates(
    key: Key,
    shape: tuple[Any, int],
    count: int,
    inits: dict[str, InitFunction],
    dtype: Any,
) -> Params:
    """Params of `count` gates side by side, each gate's part initialized by itself."""
    features = shape[1]
    shapes = {"recurrent_kernel": (features, features), "bias": (features,)}
    params: Params = {}
    for own, (name, init) in zip(jax.random.split(key, 3), inits.items(), strict=False):
        keys = jax.random.split(own, count)
        parts = [init(k, shapes.get(name, shape), dtype) for k in keys]
        params[name] = jnp.concatenate(parts, -1)
    return params


def _recurrent(params: Params, h: Any, precision: Any) -> Array:
    kernel = to_dtype(params["recurrent_kernel"], h.dtype)
    return jnp.matmul(h, kernel, precision=precision)


def _zeros(x: Any, features: int) -> Array:
    return jnp.zeros((x.shape[0], features), x.dtype)
