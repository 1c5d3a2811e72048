"""Multi-head attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from axonlike.combinators.wire import wire
from axonlike.errors import ShapeError
from axonlike.initializers import InitFunction, lecun_normal, zeros
from axonlike.layer import layer
from axonlike.layers.checks import array, exactly, positive, wide, within
from axonlike.layers.dropout import dropout
from axonlike.layers.linear import affine, affine_params
from axonlike.spec import show
from axonlike.types import Array, Key, Params, to_dtype

_RANK = "(batch, time, features)"


@layer
def attention(
    num_heads: int,
    *,
    qkv_features: int | None = None,
    out_features: int | None = None,
    causal: bool = False,
    dropout_rate: float = 0.0,
    use_bias: bool = True,
    kernel_init: InitFunction = lecun_normal(),
    bias_init: InitFunction = zeros(),
    param_dtype: Any = jnp.float32,
    precision: Any = None,
    name: str | None = None,
) -> Any:
    """Multi-head dot-product attention, of a sequence to itself or to another.

    Each head computes `softmax(q @ k.T / sqrt(head_dim)) @ v`, the softmax in float32
    at least. Self-attention takes the sequence alone, cross-attention `(query,
    keys_values)`; a mask is the third of these, or `mask=` inside a `wire`. A query
    that may attend to nothing gets the mean of all values. The weights of all heads can
    be read as the site `weights`.

    Args:
        num_heads: how many heads; positive.
        qkv_features: width of query, key and value, each for all heads together; a
            multiple of `num_heads`; None: the query's width.
        out_features: width of the output; None: the query's width.
        causal: whether position i attends to none after i.
        dropout_rate: probability of setting an attention weight to zero in training.
        use_bias: whether the four projections add a bias.
        kernel_init: initializer of their kernels.
        bias_init: initializer of their biases.
        param_dtype: dtype in which params are stored; computation follows the input's.
        precision: of all products, as in `jax.lax.dot_general`.
        name: the layer's name among its siblings.

    Shapes:
        query: `(batch, time, n)`, floating point.
        keys_values: `(batch, source, m)`; absent: the query.
        mask: bool, true where a query may attend: `(time, source)`, `(batch, time,
            source)` or `(batch, num_heads, time, source)`, any of them 1 to broadcast.
        output: `(batch, time, out_features)`, the query's dtype.
        query/kernel: `(n, qkv_features)`; query/bias: `(qkv_features,)`.
        key/kernel: `(m, qkv_features)`; key/bias: `(qkv_features,)`.
        value/kernel: `(m, qkv_features)`; value/bias: `(qkv_features,)`.
        out/kernel: `(qkv_features, out_features)`; out/bias: `(out_features,)`.

    Raises:
        ValueError: a size is not a positive int, `dropout_rate` is out of range, or the
            heads do not divide `qkv_features`.
        ShapeError: an input has another rank, batches differ, the heads do not divide
            the width, or the mask does not fit.

    Example:
        >>> import jax, jax.numpy as jnp, axonlike as al
        >>> layer = al.attention(4, causal=True)
        >>> params, state = layer.init(jax.random.key(0), al.spec("b t 32"))
        >>> params["query"]["kernel"].shape
        (32, 32)
        >>> layer.predict(params, state, jnp.ones((2, 5, 32))).shape
        (2, 5, 32)

    References:
        Vaswani et al., "Attention Is All You Need", NIPS 2017.
    """
    sizes = {"qkv_features": qkv_features, "out_features": out_features}
    given = {key: size for key, size in sizes.items() if size is not None}
    positive("attention", num_heads=num_heads, **given)
    dropout_rate = within(
        "attention", "dropout_rate", dropout_rate, low=0, high=1, text="in [0, 1)"
    )
    if qkv_features is not None and qkv_features % num_heads:
        raise ValueError(
            f"attention: qkv_features must be a multiple of num_heads {num_heads}, "
            f"got {qkv_features}."
        )

    def attend(
        sub: Any,
        query: Any,
        keys_values: Any = None,
        mask: Any = None,
        *,
        emit: Callable[[str, Any], Any],
    ) -> Array:
        query, source, mask = _inputs(query, keys_values, mask)
        _check_inputs(query, source)
        source = to_dtype(source, query.dtype)
        _check_heads(query, num_heads, qkv_features)
        q, k, v = (
            _split(project(x, query), num_heads)
            for project, x in (
                (sub.query, query),
                (sub.key, source),
                (sub.value, source),
            )
        )
        weights = _weights(q, k, _mask(q, k, mask), causal, precision)
        weights = emit("weights", weights)
        if dropout_rate > 0:
            weights = sub.dropout(weights)
        y = jnp.einsum("bhts,bshd->bthd", weights, v, precision=precision)
        merged = jnp.reshape(y, (*y.shape[:2], y.shape[2] * y.shape[3]))
        return sub.out(merged, query)

    def project(features: int | None) -> Any:
        return projection(
            features,
            use_bias=use_bias,
            kernel_init=kernel_init,
            bias_init=bias_init,
            param_dtype=param_dtype,
            precision=precision,
        )

    qkv = {part: project(qkv_features) for part in ("query", "key", "value")}
    extra = {"dropout": dropout(dropout_rate)} if dropout_rate > 0 else {}
    return wire(attend, **qkv, **extra, out=project(out_features))


@layer
def projection(
    features: int | None = None,
    *,
    use_bias: bool = True,
    kernel_init: InitFunction = lecun_normal(),
    bias_init: InitFunction = zeros(),
    param_dtype: Any = jnp.float32,
    precision: Any = None,
    name: str | None = None,
) -> Any:
    """An affine map that is as wide as a second input where no width is given.

    Args:
        features: size of the output's last axis; None: that of `like`.
        use_bias: whether to add a bias.
        kernel_init: initializer of the kernel.
        bias_init: initializer of the bias.
        param_dtype: dtype in which params are stored.
        precision: of the matrix product.
        name: the layer's name among its siblings.

    Shapes:
        x: `(..., n)`, floating point.
        like: `(..., m)`; only its width is looked at.
        output: `(..., features)`, the dtype of `x`.
        kernel: `(n, features)`, LeCun normal.
        bias: `(features,)`, zeros; absent when `use_bias` is false.

    Raises:
        ValueError: `features` is not a positive int.

    Example:
        >>> import axonlike as al
        >>> al.projection().output_spec((al.spec("b 4"), al.spec("b 6"))).shape
        (b, 6)
    """
    if features is not None:
        positive("projection", features=features)

    def init(key: Key, x: Any, like: Any) -> Params:
        shape = (x.shape[-1], features or like.shape[-1])
        return affine_params(
            key,
            shape,
            use_bias=use_bias,
            kernel_init=kernel_init,
            bias_init=bias_init,
            dtype=param_dtype,
        )

    def apply(params: Params, x: Any, like: Any) -> Array:
        return affine(params, x, precision)

    return init, apply


def _inputs(query: Any, keys_values: Any, mask: Any) -> tuple[Any, Any, Any]:
    """Query, source and mask, out of one tuple or dict where they came so."""
    if isinstance(query, dict):
        named = cast("dict[str, Any]", query)
        if "query" not in named or named.keys() - {"query", "keys_values", "mask"}:
            expected = "a dict with 'query', and 'keys_values' and 'mask' or not"
            raise ShapeError("attention", expected, show(query), "Rename its items.")
        return _inputs(
            (named["query"], named.get("keys_values"), named.get("mask")), None, None
        )
    if isinstance(query, (tuple, list)):
        items = tuple(cast("list[Any]", query))
        if not 1 <= len(items) <= 3:
            expected = "(query, keys_values, mask), the last two optional"
            raise ShapeError("attention", expected, show(query), "Pass 1 to 3 inputs.")
        query = items[0]
        keys_values = items[1] if len(items) > 1 else keys_values
        mask = items[2] if len(items) > 2 else mask
    return query, query if keys_values is None else keys_values, mask


def _check_inputs(query: Any, source: Any) -> None:
    for x in (query, source):
        exactly("attention", x, 3, _RANK, "Add an axis of size 1 where one is missing.")
    if query.shape[0] != source.shape[0]:
        got = f"{show(query)} and {show(source)}"
        hint = "Repeat the smaller one with jnp.broadcast_to."
        raise ShapeError("attention", "query and keys_values of one batch", got, hint)


def _check_heads(query: Any, num_heads: int, qkv_features: int | None) -> None:
    if qkv_features is None and query.shape[-1] % num_heads != 0:
        expected = f"{_RANK} with features a multiple of num_heads {num_heads}"
        raise ShapeError("attention", expected, show(query), "Or give qkv_features=.")


def _split(x: Array, num_heads: int) -> Array:
    """`(batch, time, heads, head_dim)`."""
    return jnp.reshape(x, (*x.shape[:2], num_heads, x.shape[-1] // num_heads))


def _weights(
    q: Array, k: Array, mask: Array | None, causal: bool, precision: Any
) -> Array:
    """Softmax over the source: `(batch, heads, time, source)`."""
    dtype = wide(q.dtype)
    shape = (q.shape[0], q.shape[2], q.shape[1], k.shape[1])
    before = _before(shape) if causal else None
    logits = jnp.einsum(
        "bthd,bshd->bhts",
        q * (q.shape[-1] ** -0.5),
        k,
        precision=precision,
        preferred_element_type=dtype,
    )
    lowest = float(cast(Any, jnp.finfo(dtype)).min)
    if mask is not None:  # a query that may attend to nothing still sees nothing later
        shut = lowest / 2 if causal else lowest
        logits = jnp.where(mask, logits, jnp.asarray(shut, dtype))
    if before is not None:
        logits = jnp.where(before, logits, jnp.asarray(lowest, dtype))
    return jax.nn.softmax(logits, -1).astype(q.dtype)


def _mask(q: Array, k: Array, mask: Any) -> Array | None:
    """Where a query may attend, for all heads; None where everywhere."""
    shape = (q.shape[0], q.shape[2], q.shape[1], k.shape[1])
    return None if mask is None else _full_mask(mask, shape)


def _before(shape: tuple[Any, ...]) -> Array:
    """True where the source's position is not after the query's."""
    return lax.broadcasted_iota(np.int32, shape, 2) >= lax.broadcasted_iota(
        np.int32, shape, 3
    )


def _full_mask(mask: Any, shape: tuple[Any, ...]) -> Array:
    array("attention", mask, "mask", floating=False)
    axes = {2: (2, 3), 3: (0, 2, 3), 4: (0, 1, 2, 3)}.get(mask.ndim)
    fits = axes is not None and all(
        n in (1, shape[axis]) for n, axis in zip(mask.shape, axes, strict=True)
    )
    if axes is None or not fits or mask.dtype != np.bool_:
        expected = f"a bool mask that broadcasts to {shape}"
        hint = (
            "True means may attend: (time, source), (batch, time, source) or all four."
        )
        raise ShapeError("attention", expected, show(mask), hint)
    if mask.ndim == 3:
        mask = jnp.expand_dims(mask, 1)
    if mask.ndim == 2:
        mask = jnp.expand_dims(mask, (0, 1))
    return jnp.broadcast_to(mask, shape)
