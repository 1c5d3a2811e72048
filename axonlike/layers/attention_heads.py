"""From the inputs of attention to what its heads gather."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp

from axonlike.frame import Frame
from axonlike.layers.attention_inputs import (
    Inputs,
    check_heads,
    full_bias,
    full_lengths,
    full_mask,
)
from axonlike.layers.attention_scores import (
    Rules,
    attended,
    by_jax,
    weighted,
    weights_of,
)
from axonlike.paths import join
from axonlike.types import Array


class Heads(NamedTuple):
    """How many heads, what they do, and the children that some options bring."""

    number: int
    groups: int
    size: int | None
    rules: Rules
    implementation: str | None
    children: frozenset[str]

    def attend(self, sub: Any, inputs: Inputs, emit: Any, decode: bool) -> Array:
        """What all heads gather, side by side: the input of the last projection."""
        if self.size is None:
            check_heads(inputs.query, self.number)
        self.check_decoding(inputs, decode)
        q, k, v = self.projected(sub, inputs)
        if "query_norm" in self.children:
            q, k = sub.query_norm(q), sub.key_norm(k)
        first: Any = 0
        if decode and "cache" in self.children:
            first = sub.cache(_swapped(k), _swapped(v), peek=True)
        if "rotary" in self.children:
            q, k = _turned(sub, inputs, q, k, first)
        q, k, v = _swapped(q), _swapped(k), _swapped(v)
        if "cache" in self.children:
            k, v = sub.cache(k, v)
        y = _swapped(self.gathered(sub, q, k, v, self.ruled(inputs, q, k, first), emit))
        return jnp.reshape(y, (*y.shape[:2], y.shape[2] * y.shape[3]))

    def projected(self, sub: Any, inputs: Inputs) -> list[Array]:
        """Queries, keys and values, `(batch, time, heads, head_dim)`."""
        query, (keys, values) = inputs.query, inputs.sources
        shared = query
        if self.groups != self.number and self.size is None:
            shared = query[..., : query.shape[-1] // self.number * self.groups]
        return [
            _split(sub.query(query, query), self.number),
            _split(sub.key(keys, shared), self.groups),
            _split(sub.value(values, shared), self.groups),
        ]

    def gathered(
        self, sub: Any, q: Array, k: Array, v: Array, rules: Rules, emit: Any
    ) -> Array:
        """Sums of values; the weights are made only where something looks at them."""
        if self.implementation is not None:
            return by_jax(q, k, v, rules, self.implementation)
        drop = sub.dropout if "dropout" in self.children else None
        if not _looked_at(emit, "weights"):
            return attended(q, k, v, rules, drop)
        weights = emit("weights", weights_of(q, k, rules))
        kept = weights if drop is None else drop(weights)
        return weighted(kept, v, rules.precision)

    def ruled(self, inputs: Inputs, q: Array, k: Array, first: Any) -> Rules:
        """The rules with what came as input, the first query being at a position."""
        shape = (*q.shape[:3], k.shape[2])
        return self.rules._replace(
            mask=full_mask(inputs.mask, shape),
            bias=full_bias(inputs.bias, shape),
            lengths=full_lengths(inputs.lengths, shape),
            offset=first,
        )

    def check_decoding(self, inputs: Inputs, decode: bool) -> None:
        """Refuses what a cache, or none, would make wrong without a word."""
        cached = "cache" in self.children
        if cached and inputs.crosses:
            raise ValueError(
                "attention: a cache is for self-attention, got keys_values. "
                "Leave cache_length out: they are all there at every step."
            )
        if decode and self.rules.causal and not cached and not inputs.crosses:
            raise ValueError(
                "attention: decoding needs the keys of earlier tokens, which are not "
                "kept. Build it with cache_length=."
            )


def _turned(
    sub: Any, inputs: Inputs, q: Array, k: Array, first: Any
) -> tuple[Array, Array]:
    """Queries and keys, turned by where they stand."""
    own = inputs.positions
    if own is None:
        own = jnp.arange(q.shape[1], dtype=jnp.int32) + first
    other = jnp.arange(k.shape[1], dtype=jnp.int32) if inputs.crosses else own
    return sub.rotary(q, own), sub.rotary(k, other)


def _split(x: Array, num_heads: int) -> Array:
    return jnp.reshape(x, (*x.shape[:2], num_heads, x.shape[-1] // num_heads))


def _swapped(x: Array) -> Array:
    """Heads before time, or back."""
    return jnp.swapaxes(x, 1, 2)


def _looked_at(emit: Any, name: str) -> bool:
    """Whether anything reads or edits a site: what nobody looks at is not made."""
    frame: Frame = emit.__self__
    taps = frame.run.taps
    if taps is None:
        return False
    site = join(frame.site, name)
    looks = taps.reads, taps.edits, taps.indexed
    return taps.every or any(site in places for places in looks)
