"""Affine maps with a nonlinearity of their own: gated linear units, maxout."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from axonlike.initializers import InitFunction, lecun_normal, zeros
from axonlike.layer import layer
from axonlike.layers.checks import at_least, positive, some
from axonlike.layers.linear import affine, affine_params
from axonlike.layers.product import DotGeneral
from axonlike.types import Array, Key, Params

_HINT = "Add an axis with x[..., None]."


@layer
def glu(
    features: int,
    activation: Callable[[Any], Any] = jax.nn.sigmoid,
    *,
    use_bias: bool = True,
    kernel_init: InitFunction = lecun_normal(),
    bias_init: InitFunction = zeros(),
    param_dtype: Any = jnp.float32,
    precision: Any = None,
    dot_general: DotGeneral | None = None,
    name: str | None = None,
) -> Any:
    """Gated linear unit: an affine map times the activation of a second one.

    One product makes both: the first half of its columns is the value, the second half
    the gate, `y = value * activation(gate)`, as in PyTorch's `F.glu`. It is the first
    half of a gated feed-forward block; `dense` after it is the second.

    Args:
        features: size of the output's last axis; positive.
        activation: of the gate.
        use_bias: whether to add a bias, to value and gate.
        kernel_init: initializer of each half of the kernel.
        bias_init: initializer of each half of the bias.
        param_dtype: dtype in which params are stored; computation follows the input's.
        precision: of the matrix product, as in `jax.lax.dot_general`.
        dot_general: called in place of `jax.lax.dot_general`.
        name: the layer's name among its siblings.

    Shapes:
        input: `(..., n)`, floating point.
        output: `(..., features)`, the input's dtype.
        kernel: `(n, 2 * features)`, LeCun normal: the value's columns, then the gate's.
        bias: `(2 * features,)`, zeros; absent when `use_bias` is false.

    Raises:
        ValueError: `features` is not a positive int.
        ShapeError: the input is a scalar, or not floating point.

    Example:
        >>> import axonlike as al
        >>> al.glu(8).output_spec(al.spec("b t 6")).shape
        (b, t, 8)

    References:
        Dauphin et al., "Language Modeling with Gated Convolutional Networks", ICML 2017.
    """
    positive("glu", features=features)
    options = (use_bias, kernel_init, bias_init, param_dtype)
    init = _parts("glu", 2, features, *options)
    return init, _gated("glu", features, activation, precision, dot_general)


@layer
def swiglu(
    features: int,
    *,
    use_bias: bool = True,
    kernel_init: InitFunction = lecun_normal(),
    bias_init: InitFunction = zeros(),
    param_dtype: Any = jnp.float32,
    precision: Any = None,
    dot_general: DotGeneral | None = None,
    name: str | None = None,
) -> Any:
    """Gated linear unit with the gate's swish: `y = value * silu(gate)`.

    The language models that use it have no biases, and a width of about 8/3 of the
    input's: `swiglu(h, use_bias=False) >> dense(n, use_bias=False)`.

    Args:
        features: size of the output's last axis; positive.
        use_bias: whether to add a bias, to value and gate.
        kernel_init: initializer of each half of the kernel.
        bias_init: initializer of each half of the bias.
        param_dtype: dtype in which params are stored; computation follows the input's.
        precision: of the matrix product, as in `jax.lax.dot_general`.
        dot_general: called in place of `jax.lax.dot_general`.
        name: the layer's name among its siblings.

    Shapes:
        input: `(..., n)`, floating point.
        output: `(..., features)`, the input's dtype.
        kernel: `(n, 2 * features)`, LeCun normal: the value's columns, then the gate's.
        bias: `(2 * features,)`, zeros; absent when `use_bias` is false.

    Raises:
        ValueError: `features` is not a positive int.
        ShapeError: the input is a scalar, or not floating point.

    Example:
        >>> import axonlike as al
        >>> block = al.swiglu(16, use_bias=False) >> al.dense(6, use_bias=False)
        >>> block.output_spec(al.spec("b t 6")).shape
        (b, t, 6)

    References:
        Shazeer, "GLU Variants Improve Transformer", 2020.
        https://arxiv.org/abs/2002.05202
    """
    positive("swiglu", features=features)
    options = (use_bias, kernel_init, bias_init, param_dtype)
    init = _parts("swiglu", 2, features, *options)
    return init, _gated("swiglu", features, jax.nn.silu, precision, dot_general)


@layer
def geglu(
    features: int,
    *,
    approximate: bool = True,
    use_bias: bool = True,
    kernel_init: InitFunction = lecun_normal(),
    bias_init: InitFunction = zeros(),
    param_dtype: Any = jnp.float32,
    precision: Any = None,
    dot_general: DotGeneral | None = None,
    name: str | None = None,
) -> Any:
    """Gated linear unit with the gate's gelu: `y = value * gelu(gate)`.

    Args:
        features: size of the output's last axis; positive.
        approximate: whether gelu is the formula with tanh, as `jax.nn.gelu` does by
            default; the paper and PyTorch have the exact one.
        use_bias: whether to add a bias, to value and gate.
        kernel_init: initializer of each half of the kernel.
        bias_init: initializer of each half of the bias.
        param_dtype: dtype in which params are stored; computation follows the input's.
        precision: of the matrix product, as in `jax.lax.dot_general`.
        dot_general: called in place of `jax.lax.dot_general`.
        name: the layer's name among its siblings.

    Shapes:
        input: `(..., n)`, floating point.
        output: `(..., features)`, the input's dtype.
        kernel: `(n, 2 * features)`, LeCun normal: the value's columns, then the gate's.
        bias: `(2 * features,)`, zeros; absent when `use_bias` is false.

    Raises:
        ValueError: `features` is not a positive int.
        ShapeError: the input is a scalar, or not floating point.

    Example:
        >>> import axonlike as al
        >>> al.geglu(8, approximate=False).output_spec(al.spec("b t 6")).shape
        (b, t, 8)

    References:
        Shazeer, "GLU Variants Improve Transformer", 2020.
        https://arxiv.org/abs/2002.05202
    """
    positive("geglu", features=features)
    options = (use_bias, kernel_init, bias_init, param_dtype)
    init = _parts("geglu", 2, features, *options)
    return init, _gated(
        "geglu",
        features,
        partial(jax.nn.gelu, approximate=approximate),
        precision,
        dot_general,
    )


@layer
def maxout(
    features: int,
    pieces: int = 2,
    *,
    use_bias: bool = True,
    kernel_init: InitFunction = lecun_normal(),
    bias_init: InitFunction = zeros(),
    param_dtype: Any = jnp.float32,
    precision: Any = None,
    dot_general: DotGeneral | None = None,
    name: str | None = None,
) -> Any:
    """The largest of several affine maps, feature by feature.

    Of equal ones the first gets the whole gradient, as in PyTorch's `max`.

    Args:
        features: size of the output's last axis; positive.
        pieces: how many maps there are; positive.
        use_bias: whether to add a bias, to each map.
        kernel_init: initializer of each map's kernel.
        bias_init: initializer of each map's bias.
        param_dtype: dtype in which params are stored; computation follows the input's.
        precision: of the matrix product, as in `jax.lax.dot_general`.
        dot_general: called in place of `jax.lax.dot_general`.
        name: the layer's name among its siblings.

    Shapes:
        input: `(..., n)`, floating point.
        output: `(..., features)`, the input's dtype.
        kernel: `(n, pieces * features)`, LeCun normal: the first map's columns, then
            the second's, and so on.
        bias: `(pieces * features,)`, zeros; absent when `use_bias` is false.

    Raises:
        ValueError: a size is not a positive int.
        ShapeError: the input is a scalar, or not floating point.

    Example:
        >>> import jax, jax.numpy as jnp, axonlike as al
        >>> layer = al.maxout(1, pieces=2, use_bias=False)
        >>> params = {"kernel": jnp.array([[1.0, -1.0]])}
        >>> layer.predict(params, {}, jnp.array([[3.0], [-2.0]]))[:, 0]
        Array([3., 2.], dtype=float32)

    References:
        Goodfellow et al., "Maxout Networks", ICML 2013.
    """
    positive("maxout", features=features, pieces=pieces)
    options = (use_bias, kernel_init, bias_init, param_dtype)
    init = _parts("maxout", pieces, features, *options)

    def apply(params: Params, x: Any) -> Array:
        at_least("maxout", x, 1, "(..., n)", _HINT)
        y, *rest = _split(affine(params, x, precision, dot_general), pieces, features)
        for other in rest:
            y = jnp.where((y >= other) | (y != y), y, other)  # noqa: PLR0124 (NaN stays)
        return y

    return init, apply


def _gated(
    kind: str,
    features: int,
    activation: Callable[[Any], Any],
    precision: Any,
    dot_general: DotGeneral | None,
) -> Callable[[Params, Any], Array]:
    """The apply of a gated linear unit: the value comes first, then the gate."""
    if not callable(activation):
        raise ValueError(f"{kind}: activation must be a function, got {activation!r}.")

    def apply(params: Params, x: Any) -> Array:
        at_least(kind, x, 1, "(..., n)", _HINT)
        value, gate = _split(affine(params, x, precision, dot_general), 2, features)
        return value * activation(gate)

    return apply


def _parts(
    kind: str,
    count: int,
    features: int,
    use_bias: bool,
    kernel_init: InitFunction,
    bias_init: InitFunction,
    dtype: Any,
) -> Callable[[Key, Any], Params]:
    """The init of several affine maps side by side, each initialized by itself."""

    def init(key: Key, x: Any) -> Params:
        at_least(kind, x, 1, "(..., n)", _HINT)
        some(kind, x)
        parts = [
            affine_params(
                each,
                (x.shape[-1], features),
                use_bias=use_bias,
                kernel_init=kernel_init,
                bias_init=bias_init,
                dtype=dtype,
            )
            for each in jax.random.split(key, count)
        ]
        return {
            name: jnp.concatenate([p[name] for p in parts], -1) for name in parts[0]
        }

    return init


def _split(y: Array, count: int, features: int) -> list[Array]:
    """Equal parts of the last axis."""
    axis = y.ndim - 1
    starts = range(0, count * features, features)
    return [lax.slice_in_dim(y, i, i + features, axis=axis) for i in starts]
