"""Noise from a normal distribution, added or multiplied."""

from __future__ import annotations

from math import inf, sqrt
from typing import Any

import jax

from axonlike.layer import layer
from axonlike.layers.chance import in_training, in_wide, rate_of
from axonlike.layers.checks import within
from axonlike.types import Array, Key


@layer
def gaussian_noise(stddev: float, *, name: str | None = None) -> Any:
    """Adds normal noise of mean 0 in training; in inference nothing is computed.

    Args:
        stddev: its standard deviation, from 0 on.
        name: the layer's name among its siblings.

    Shapes:
        input: `(...)`, floating point.
        output: the input's shape and dtype.

    Raises:
        ValueError: `stddev` is out of range, or there is no key in training.
        ShapeError: the input is not floating point.

    Example:
        >>> import jax, jax.numpy as jnp, axonlike as al
        >>> layer, x = al.gaussian_noise(0.1), jnp.zeros(10_000)
        >>> y, _ = layer.apply({}, {}, x, key=jax.random.key(0), train=True)
        >>> bool(abs(y.std() - 0.1) < 0.005)
        True
    """
    text = "a number from 0 on"
    stddev = within("gaussian_noise", "stddev", stddev, low=0, high=inf, text=text)

    def draw(key: Key, x: Any) -> Array:
        return in_wide(x, lambda x: x + stddev * _normal(key, x))

    return None, in_training("gaussian_noise", stddev > 0, draw)


@layer
def gaussian_dropout(rate: float, *, name: str | None = None) -> Any:
    """Multiplies by normal noise of mean 1 in training; in inference does nothing.

    The noise has the mean and variance of what `dropout(rate)` multiplies by: its
    standard deviation is `sqrt(rate / (1 - rate))`.

    Args:
        rate: of the dropout that it stands for, in `[0, 1)`.
        name: the layer's name among its siblings.

    Shapes:
        input: `(...)`, floating point.
        output: the input's shape and dtype.

    Raises:
        ValueError: `rate` is out of range, or there is no key in training.
        ShapeError: the input is not floating point.

    Example:
        >>> import axonlike as al
        >>> al.gaussian_dropout(0.2).output_spec(al.spec("b 8")).shape
        (b, 8)

    References:
        Srivastava et al., "Dropout: A Simple Way to Prevent Neural Networks from
        Overfitting", JMLR 2014, section 10.
    """
    rate = rate_of("gaussian_dropout", rate)
    stddev = sqrt(rate / (1 - rate))

    def draw(key: Key, x: Any) -> Array:
        return in_wide(x, lambda x: x * (1 + stddev * _normal(key, x)))

    return None, in_training("gaussian_dropout", rate > 0, draw)


def _normal(key: Key, x: Any) -> Array:
    return jax.random.normal(key, x.shape, x.dtype)
