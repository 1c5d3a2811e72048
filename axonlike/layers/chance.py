"""What dropout and noise share: keys, draws that keep, arithmetic in float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from axonlike.layers.checks import array, wide, within
from axonlike.spec import is_unknown
from axonlike.types import Array, Key, Params

Check = Callable[[Any], None]
Draw = Callable[[Any, Any], Array]


def rate_of(kind: str, rate: Any) -> float:
    """A rate as a Python float, which widens no dtype."""
    return within(kind, "rate", rate, low=0, high=1, text="in [0, 1)")


def in_training(kind: str, active: bool, draw: Draw, check: Check | None = None) -> Any:
    """An `apply` that is `draw(key, x)` in training, and returns its input otherwise.

    Where the layer is not active, it does not even ask for a key.
    """

    def checked(x: Any) -> None:
        array(kind, x, "array")
        if check is not None:
            check(x)

    def pass_on(params: Params, x: Any) -> Array:
        checked(x)
        return x

    def apply(params: Params, x: Any, *, key: Key | None, train: bool) -> Array:
        checked(x)
        if not train:
            return x
        if key is None:
            raise ValueError(
                f"{kind}: expected a key in training, got None. "
                "Pass apply(..., key=jax.random.key(seed), train=True)."
            )
        return draw(key, x)

    return apply if active else pass_on


def kept(key: Key, rate: float, shape: tuple[Any, ...]) -> Array:
    """Bools of this shape, each false with a probability of `rate`, independently.

    Random bits are what dropout costs, so one word of 32 serves several numbers where
    so few bits give the rate.
    """
    width, threshold = bits_for(rate)
    if not shape:
        return kept(key, rate, (1,))[0]
    if width == 32:
        return jax.random.bits(key, shape, jnp.uint32) >= jnp.uint32(threshold)
    per_word, size = 32 // width, shape[-1]
    count = (size + per_word - 1) // per_word
    words = jax.random.bits(key, (*shape[:-1], count), jnp.uint32)
    apart = _apart(words, width)
    bits = jnp.reshape(apart, (*shape[:-1], count * per_word))
    if is_unknown(size) or size % per_word:
        bits = lax.slice_in_dim(bits, 0, size, 1, len(shape) - 1)
    return bits >= jnp.uint32(threshold)


def bits_for(rate: float) -> tuple[int, int]:
    """How many bits a number needs, and the least value of them that keeps it.

    As few as give the rate to 1e-3 of itself, and what is kept to 1e-4 of itself.
    """
    most = min(1e-3 * rate, 1e-4 * (1 - rate))
    for width in (8, 16):
        threshold = round(rate * 2**width)
        if abs(threshold / 2**width - rate) <= most:
            return width, threshold
    return 32, min(round(rate * 2**32), 2**32 - 1)


def in_wide(x: Any, compute: Callable[[Any], Any]) -> Array:
    """What is computed of the input in float32 at least, rounded once to its dtype."""
    return compute(x.astype(wide(x.dtype))).astype(x.dtype)


def _apart(words: Any, width: int) -> Any:
    """The words' bits, `width` at a time, along a new last axis.

    By shifts: `lax.bitcast_convert_type` is no faster, and wants sizes that are known.
    """
    shape = (*words.shape, 32 // width)
    spread = lax.broadcast_in_dim(words, shape, tuple(range(words.ndim)))
    shifts = lax.broadcasted_iota(jnp.uint32, shape, words.ndim) * jnp.uint32(width)
    return (spread >> shifts) & jnp.uint32(2**width - 1)
