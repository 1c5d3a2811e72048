"""Dropout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from axonlike.errors import ShapeError
from axonlike.layer import layer
from axonlike.layers.checks import array, is_int, within
from axonlike.spec import show
from axonlike.types import Array, Key, Params


@layer
def dropout(
    rate: float, *, broadcast_dims: Sequence[int] = (), name: str | None = None
) -> Any:
    """Sets a random fraction of the input to zero in training, and scales up the rest.

    What is kept is divided by `1 - rate`, so the expectation is the input. In
    inference, or at rate 0, nothing is computed at all.

    Args:
        rate: probability of zero, in `[0, 1)`.
        broadcast_dims: axes along which all entries share one draw: `(1, 2)` drops
            whole channels of an image.
        name: the layer's name among its siblings.

    Shapes:
        input: `(...)`, floating point.
        output: the input's shape and dtype.

    Raises:
        ValueError: `rate` is out of range, or there is no key in training.
        ShapeError: the input has no such axis, or is not floating point.

    Example:
        >>> import jax, jax.numpy as jnp, axonlike as al
        >>> layer = al.dropout(0.5)
        >>> y, _ = layer.apply({}, {}, jnp.ones(6), key=jax.random.key(0), train=True)
        >>> sorted({float(v) for v in y})
        [0.0, 2.0]
        >>> layer.predict({}, {}, jnp.ones(3))
        Array([1., 1., 1.], dtype=float32)

    References:
        Srivastava et al., "Dropout: A Simple Way to Prevent Neural Networks from
        Overfitting", JMLR 2014.
    """
    rate = within("dropout", "rate", rate, low=0, high=1, text="in [0, 1)")
    shared = tuple(broadcast_dims)
    if not all(map(is_int, shared)):
        raise ValueError(
            f"dropout: broadcast_dims must be ints, got {broadcast_dims!r}."
        )

    def check(x: Any) -> None:
        array("dropout", x, "array")
        if any(not -x.ndim <= axis < x.ndim for axis in shared):
            expected = f"an array with the axes {shared}"
            raise ShapeError("dropout", expected, show(x), "Check broadcast_dims=.")

    def pass_on(params: Params, x: Any) -> Array:
        check(x)
        return x

    def apply(params: Params, x: Any, *, key: Key | None, train: bool) -> Array:
        check(x)
        if not train:
            return x
        if key is None:
            raise ValueError(
                "dropout: expected a key in training, got None. "
                "Pass apply(..., key=jax.random.key(seed), train=True)."
            )
        once = {axis % x.ndim for axis in shared}
        shape = tuple(1 if axis in once else n for axis, n in enumerate(x.shape))
        keep = jnp.broadcast_to(jax.random.bernoulli(key, 1 - rate, shape), x.shape)
        return jnp.where(keep, x / (1 - rate), jnp.zeros((), x.dtype))

    return None, (pass_on if rate == 0 else apply)
