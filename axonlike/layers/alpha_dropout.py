"""Dropout for self-normalizing networks: mean 0 and variance 1 stay so."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from axonlike.layer import layer
from axonlike.layers.chance import in_training, in_wide, kept, rate_of
from axonlike.layers.dropout import channels_of, has_channels
from axonlike.types import Array, Key

_LOWEST = -1.7580993408473766
"""What `jax.nn.selu` tends to for small inputs: -scale * alpha."""


@layer
def alpha_dropout(rate: float, *, name: str | None = None) -> Any:
    """Sets a random fraction to selu's lowest value, then restores mean and variance.

    For after `jax.nn.selu`. Inputs of mean 0 and variance 1 give outputs of the same.
    The numbers of an output are not those of the input, whatever was kept: all are
    scaled and shifted.

    Args:
        rate: probability that a number is lost, in `[0, 1)`.
        name: the layer's name among its siblings.

    Shapes:
        input: `(...)`, floating point.
        output: the input's shape and dtype.

    Raises:
        ValueError: `rate` is out of range, or there is no key in training.
        ShapeError: the input is not floating point.

    Example:
        >>> import jax, axonlike as al
        >>> model = al.dense(64) >> jax.nn.selu >> al.alpha_dropout(0.05)
        >>> model.output_spec(al.spec("b 8")).shape
        (b, 64)

    References:
        Klambauer et al., "Self-Normalizing Neural Networks", NeurIPS 2017.
    """
    rate = rate_of("alpha_dropout", rate)

    def draw(key: Key, x: Any) -> Array:
        return _replace(key, x, rate, x.shape)

    return None, in_training("alpha_dropout", rate > 0, draw)


@layer
def feature_alpha_dropout(rate: float, *, name: str | None = None) -> Any:
    """Sets whole channels to selu's lowest value, then restores mean and variance.

    Args:
        rate: probability that a channel of an example is lost, in `[0, 1)`.
        name: the layer's name among its siblings.

    Shapes:
        input: `(batch, *spatial, channels)`, floating point.
        output: the input's shape and dtype.

    Raises:
        ValueError: `rate` is out of range, or there is no key in training.
        ShapeError: the input has fewer than two axes, or is not floating point.

    Example:
        >>> import axonlike as al
        >>> al.feature_alpha_dropout(0.1).output_spec(al.spec("b 8 8 3")).shape
        (b, 8, 8, 3)

    References:
        Klambauer et al., "Self-Normalizing Neural Networks", NeurIPS 2017.
    """
    kind = "feature_alpha_dropout"
    rate = rate_of(kind, rate)

    def draw(key: Key, x: Any) -> Array:
        return _replace(key, x, rate, channels_of(x))

    return None, in_training(kind, rate > 0, draw, has_channels(kind))


def _replace(key: Key, x: Any, rate: float, shape: tuple[Any, ...]) -> Array:
    """`scale * (x or the lowest) + shift`, of mean 0 and variance 1 where `x` is so."""
    scale = ((1 - rate) * (1 + rate * _LOWEST**2)) ** -0.5
    shift = -scale * rate * _LOWEST
    keep = jnp.broadcast_to(kept(key, rate, shape), x.shape)

    def replaced(x: Any) -> Array:
        lost = jnp.full((), scale * _LOWEST + shift, x.dtype)
        return jnp.where(keep, x * scale + shift, lost)

    return in_wide(x, replaced)
