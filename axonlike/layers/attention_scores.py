"""The formula of attention: logits, who attends to whom, and the sum of values.

Arrays are head first, `(batch, heads, time, head_dim)`, so that each head's products are
plain matrix products of neighbouring numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from axonlike.layers.checks import is_int, wide
from axonlike.layers.positions import alibi_slopes
from axonlike.types import Array

Change = Callable[[Array], Array]

_SHORTEST_BLOCK, _MOST_BLOCKS = 128, 8


class Rules(NamedTuple):
    """What logits are made of besides queries and keys, and who attends to whom."""

    causal: bool = False
    window: int | None = None
    alibi: bool = False
    soft_cap: float | None = None
    scale: float | None = None
    precision: Any = None
    lengths: Array | None = None
    """How many keys of each example there are."""
    mask: Array | None = None
    """Four axes, each of full size or 1; so has `bias`."""
    bias: Array | None = None
    offset: Any = 0
    """The position of the first query; the first key's is `first`."""
    first: Any = 0

    @property
    def near(self) -> bool:
        """Whether queries attend to some stretch of keys only."""
        return self.causal or self.window is not None

    def part(self, rows: slice, columns: slice) -> Rules:
        """The same for some queries and some keys."""
        cut = {
            name: None if x is None else _cut(_cut(x, 2, rows), 3, columns)
            for name, x in (("mask", self.mask), ("bias", self.bias))
        }
        return self._replace(
            **cut,
            offset=self.offset + rows.start,
            first=self.first + columns.start,
        )


def attended(
    q: Array, k: Array, v: Array, rules: Rules, change: Change | None = None
) -> Array:
    """What each query gathers; `change` is what becomes of the weights in training.

    Long sequences of which each query sees a stretch go block by block of queries, so
    that most of what is masked is not computed: half of it where causal.
    """
    edges = _blocks(q, k, rules)
    if edges is None:
        return _gathered(q, k, v, rules, change)
    parts: list[Array] = []
    for rows in edges:
        columns = _columns(rows, rules)
        keys, values = _cut(k, 2, columns), _cut(v, 2, columns)
        part = rules.part(rows, columns)
        parts.append(_gathered(_cut(q, 2, rows), keys, values, part, change))
    return jnp.concatenate(parts, 2)


def by_jax(q: Array, k: Array, v: Array, rules: Rules, implementation: str) -> Array:
    """The same by `jax.nn.dot_product_attention`, which knows no cap."""
    shape = (*q.shape[:3], k.shape[2])
    bias = None if rules.bias is None else rules.bias.astype(q.dtype)
    if rules.alibi:
        slant = slanted(rules, shape, q.dtype)
        bias = (
            slant
            if bias is None
            else jnp.broadcast_to(bias, shape) + jnp.broadcast_to(slant, shape)
        )
    mask = rules.mask
    options: dict[str, Any] = {}
    if is_int(rules.offset) and rules.offset == 0:
        options = {"is_causal": rules.causal, "key_value_seq_lengths": rules.lengths}
        if rules.window is not None:
            behind = rules.window - 1
            options["local_window_size"] = (behind, 0 if rules.causal else behind)
    else:
        may = allowed(rules, shape)
        both = [jnp.broadcast_to(x, shape) for x in (may, mask) if x is not None]
        mask = jnp.logical_and(*both) if len(both) == 2 else (both or [None])[0]
    y = jax.nn.dot_product_attention(
        *(jnp.swapaxes(x, 1, 2) for x in (q, k, v)),
        bias=bias,
        mask=mask,
        scale=rules.scale,
        implementation=cast(Any, implementation),
        **options,
    )
    return jnp.swapaxes(y, 1, 2)


def weights_of(q: Array, k: Array, rules: Rules) -> Array:
    """Softmax over the source, in the query's dtype: `(batch, heads, time, source)`."""
    return jax.nn.softmax(_logits(q, k, rules), -1).astype(q.dtype)


def weighted(weights: Array, v: Array, precision: Any) -> Array:
    """The sum of values by weights; heads that share values stand together."""
    grouped = _grouped(weights, v.shape[1])
    y = jnp.matmul(grouped, v, precision=precision)
    return jnp.reshape(y, (*weights.shape[:3], v.shape[3]))


def allowed(rules: Rules, shape: tuple[Any, ...]) -> Array | None:
    """Where distance and length let a query attend; None where everywhere."""
    found: list[Array] = []
    if rules.near:
        distance = _distance(rules, shape)
        if rules.causal:
            found.append(distance >= 0)
        if rules.window is not None:
            far = distance if rules.causal else jnp.abs(distance)
            found.append(far < rules.window)
    if rules.lengths is not None:
        column = lax.broadcasted_iota(np.int32, (1, 1, 1, shape[3]), 3)
        lengths = jnp.reshape(rules.lengths, (rules.lengths.shape[0], 1, 1, 1))
        size = (lengths.shape[0], 1, 1, shape[3])
        column, lengths = (jnp.broadcast_to(x, size) for x in (column, lengths))
        found.append(column + rules.first < lengths)
    if not found:
        return None
    both = [jnp.broadcast_to(each, shape) for each in found]
    return both[0] if len(both) == 1 else jnp.logical_and(*_paired(both))


def slanted(rules: Rules, shape: tuple[Any, ...], dtype: Any) -> Array:
    """What ALiBi adds to logits: a slope for each head, times the distance."""
    slopes = jnp.asarray(alibi_slopes(shape[1]), dtype)
    slopes = jnp.reshape(slopes, (1, shape[1], 1, 1))
    far = jnp.abs(_distance(rules, shape)).astype(dtype)
    size = (1, *shape[1:])
    return -jnp.broadcast_to(slopes, size) * jnp.broadcast_to(far, size)


def _gathered(
    q: Array, k: Array, v: Array, rules: Rules, change: Change | None
) -> Array:
    """Softmax and sum, divided last: the weights themselves are never needed.

    The derivative then is that of flash attention, one pass over the logits less each
    way; the largest logit is a constant, since the quotient does not depend on it.
    """
    logits = _logits(q, k, rules)
    if is_int(k.shape[2]) and k.shape[2] == 0:
        return jnp.zeros((*q.shape[:3], v.shape[3]), q.dtype)
    most = lax.stop_gradient(jnp.max(logits, -1, keepdims=True))
    grown = jnp.exp(logits - jnp.broadcast_to(most, logits.shape))
    total = jnp.sum(grown, -1, keepdims=True)
    grown = grown.astype(v.dtype)
    if change is not None:
        grown = change(grown)
    grouped = _grouped(grown, v.shape[1])
    y = _product(grouped, v, rules.precision, total.dtype)
    y = jnp.reshape(y, (*grown.shape[:3], v.shape[3]))
    return (y / jnp.broadcast_to(total, y.shape)).astype(q.dtype)


def _logits(q: Array, k: Array, rules: Rules) -> Array:
    """Products of queries and keys in float32 at least: scale, cap, biases, masks."""
    dtype = wide(q.dtype)
    scale = q.shape[-1] ** -0.5 if rules.scale is None else rules.scale
    queries, keys = _grouped(q * scale, k.shape[1]), jnp.swapaxes(k, 2, 3)
    logits = _product(queries, keys, rules.precision, dtype)
    shape = (*q.shape[:3], k.shape[2])
    logits = jnp.reshape(logits, shape)
    if rules.soft_cap is not None:
        logits = rules.soft_cap * jnp.tanh(logits / rules.soft_cap)
    if rules.alibi:
        logits = logits + jnp.broadcast_to(slanted(rules, shape, dtype), shape)
    if rules.bias is not None:
        logits = logits + jnp.broadcast_to(rules.bias.astype(dtype), shape)
    return _masked(logits, rules)


def _product(a: Array, b: Array, precision: Any, dtype: Any) -> Array:
    """`a @ b` in a dtype that may be wider than theirs."""
    if a.dtype == dtype:
        return jnp.matmul(a, b, precision=precision, preferred_element_type=dtype)
    return cast(Any, _widened)(a, b, precision, dtype)


@partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _widened(a: Array, b: Array, precision: Any, dtype: Any) -> Array:
    """Its derivative is in the dtype of `a` and `b`: products of 16 bits both ways."""
    return jnp.matmul(a, b, precision=precision, preferred_element_type=dtype)


@_widened.defjvp
def _widened_jvp(precision: Any, dtype: Any, primals: Any, tangents: Any) -> Any:
    (a, b), (da, db) = primals, tangents
    by_a = jnp.matmul(da, b, precision=precision)
    by_b = jnp.matmul(a, db, precision=precision)
    y = cast(Any, _widened)(a, b, precision, dtype)
    return y, (by_a + by_b).astype(dtype)


def _masked(logits: Array, rules: Rules) -> Array:
    """The lowest number where a query may not attend.

    Half of it where only the mask forbids: a query that the mask leaves with nothing
    still sees nothing that is later, or past the end.
    """
    may = allowed(rules, logits.shape)
    lowest = float(cast(Any, jnp.finfo(logits.dtype)).min)
    if rules.mask is not None:
        shut = jnp.asarray(lowest if may is None else lowest / 2, logits.dtype)
        logits = jnp.where(jnp.broadcast_to(rules.mask, logits.shape), logits, shut)
    if may is None:
        return logits
    return jnp.where(may, logits, jnp.asarray(lowest, logits.dtype))


def _distance(rules: Rules, shape: tuple[Any, ...]) -> Array:
    """How far before each query each key stands: `(1, 1, time, source)`."""
    size = (1, 1, *shape[2:])
    rows, columns = (lax.broadcasted_iota(np.int32, size, axis) for axis in (2, 3))
    start = rules.offset - rules.first
    return rows - columns if is_int(start) and start == 0 else rows - columns + start


def _paired(found: list[Array]) -> tuple[Array, Array]:
    """Two conditions out of two or three."""
    first, *rest = found
    return first, rest[0] if len(rest) == 1 else jnp.logical_and(*rest)


def _grouped(x: Array, groups: Any) -> Array:
    """Queries of all heads that share a key: `(batch, groups, heads * time, ...)`."""
    if x.shape[1] == groups:
        return x
    return jnp.reshape(
        x, (x.shape[0], groups, x.shape[1] // groups * x.shape[2], x.shape[3])
    )


def _blocks(q: Array, k: Array, rules: Rules) -> list[slice] | None:
    """The queries in blocks; None where all at once is as fast."""
    time, source = q.shape[2], k.shape[2]
    known = all(is_int(n) for n in (time, source, rules.offset, rules.first))
    if not rules.near or not known or time < 2 * _SHORTEST_BLOCK or time > source:
        return None
    most = _MOST_BLOCKS if rules.window is None else 2 * _MOST_BLOCKS
    rows = -(-time // min(most, time // _SHORTEST_BLOCK))
    return [slice(i, min(i + rows, time)) for i in range(0, time, rows)]


def _columns(rows: slice, rules: Rules) -> slice:
    """The keys that some of these queries may attend to."""
    window = rules.window
    start = 0 if window is None else max(0, rows.start - window + 1)
    later = 0 if rules.causal else cast(int, window) - 1
    return slice(start, rows.stop + later)


def _cut(x: Array, axis: int, part: slice) -> Array:
    """Some steps along an axis; an axis of 1 stands for any number of them."""
    if is_int(x.shape[axis]) and x.shape[axis] == 1:
        return x
    stop = min(part.stop, x.shape[axis])
    return lax.slice_in_dim(x, part.start, stop, axis=axis)
