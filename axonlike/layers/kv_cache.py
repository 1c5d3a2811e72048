"""Keys and values of the tokens so far, as state."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from axonlike.errors import ShapeError
from axonlike.layer import layer
from axonlike.layers.checks import exactly, positive
from axonlike.spec import show
from axonlike.types import Array, Key, Params, State, to_dtype

_HEADS = "(batch, heads, time, head_dim)"


@layer
def kv_cache(
    length: int, *, cache_dtype: Any = jnp.float32, name: str | None = None
) -> Any:
    """Keys and values of all tokens so far, for attention that decodes.

    Decoding (`options={"decode": True}`) writes the keys and values that come in behind
    those that are there, and returns all of them. Otherwise what comes in goes out, and
    the state stays. In a `wire`, `sub.cache(k, v, peek=True)` is the position of the
    first of them, which changes nothing; rotary positions need it before they are kept.

    A call with more tokens than the cache holds is an error. Calls that together bring
    more cannot be one, since how many there are is known at run time only: the values
    then become NaN, and stay so. A new sequence starts from the state that `init` made.

    Args:
        length: how many tokens it holds; positive.
        cache_dtype: dtype in which they are stored; they come out in their own.
        name: the layer's name among its siblings.

    Shapes:
        keys: `(batch, heads, time, head_dim)`, floating point; values: the same, with a
            last axis of their own.
        output: keys and values, `time` being `length` when decoding; when peeking `()`,
            int32.
        key: state, `(batch, heads, length, head_dim)`, zeros; value: the same for values.
        position: state, `()`, int32, zero: how many tokens were seen.

    Raises:
        ValueError: `length` is not a positive int.
        ShapeError: an input has another rank, or decoding more tokens than fit, or
            another batch than the cache was made for.

    Example:
        >>> import jax, jax.numpy as jnp, axonlike as al
        >>> layer = al.kv_cache(8)
        >>> x = jnp.ones((1, 2, 3, 4)), jnp.ones((1, 2, 3, 4))
        >>> params, state = layer.init(jax.random.key(0), x)
        >>> (keys, _), state = layer.apply({}, state, x, options={"decode": True})
        >>> keys.shape, int(state["position"])
        ((1, 2, 8, 4), 3)
    """
    positive("kv_cache", length=length)

    def init(key: Key, keys: Any, values: Any) -> tuple[Params, State]:
        state: State = {"position": jnp.zeros((), np.int32)}
        for kind, x in (("key", keys), ("value", values)):
            _check(x)
            shape = (*x.shape[:2], length, x.shape[3])
            state[kind] = jnp.zeros(shape, cache_dtype)
        return {}, state

    def apply(
        params: Params,
        keys: Any,
        values: Any,
        *,
        state: State,
        decode: bool = False,
        peek: bool = False,
    ) -> tuple[Any, State]:
        _check(keys)
        _check(values)
        first = jnp.asarray(state["position"])
        if peek:
            return (first if decode else jnp.zeros((), np.int32)), state
        if not decode:
            return (keys, values), state
        _check_room(keys, state)
        last = first + jnp.asarray(keys.shape[2], np.int32)
        kept = jnp.where(last <= length, values, jnp.asarray(jnp.nan, values.dtype))
        after = {
            "key": _written(state["key"], keys, first),
            "value": _written(state["value"], kept, first),
            "position": last,
        }
        found = zip(("key", "value"), (keys, values), strict=True)
        return tuple(to_dtype(after[kind], x.dtype) for kind, x in found), after

    return init, apply


def _check(x: Any) -> None:
    exactly("kv_cache", x, 4, _HEADS, "Split the features into heads.")


def _check_room(keys: Any, state: State) -> None:
    batch, _, length, _ = state["key"].shape
    if keys.shape[0] != batch:
        hint = "Call init with the batch that decodes."
        raise ShapeError("kv_cache", f"a batch of {batch}", show(keys), hint)
    if keys.shape[2] > length:
        hint = "Make the cache longer."
        raise ShapeError("kv_cache", f"at most {length} tokens", show(keys), hint)


def _written(cache: Any, x: Any, first: Array) -> Array:
    """The cache with new entries from a position on."""
    return lax.dynamic_update_slice_in_dim(
        jnp.asarray(cache), to_dtype(x, cache.dtype), first, axis=2
    )
