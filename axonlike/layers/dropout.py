"""Dropout: of numbers, of channels, of whole examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from axonlike.errors import ShapeError
from axonlike.layer import layer
from axonlike.layers.chance import in_training, in_wide, kept, rate_of
from axonlike.layers.checks import is_int
from axonlike.spec import show
from axonlike.types import Array, Key


@layer
def dropout(
    rate: float, *, broadcast_dims: Sequence[int] = (), name: str | None = None
) -> Any:
    """Sets a random fraction of the input to zero in training, and scales up the rest.

    What is kept is divided by `1 - rate`, so the expectation is the input. In
    inference, or at rate 0, nothing is computed at all.

    Random bits are most of the cost: a number gets 8 of them where those give the rate
    exactly (0.25, 0.5), 16 where those give it to 2**-17 and what is kept to 1e-4 of
    itself (most rates), and otherwise 32.

    Args:
        rate: probability of zero, in `[0, 1)`.
        broadcast_dims: axes along which all entries share one draw: `(1, 2)` drops
            whole channels of an image, `(1,)` the same features at all times of a
            sequence (variational dropout).
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
        Gal and Ghahramani, "A Theoretically Grounded Application of Dropout in
        Recurrent Neural Networks", NeurIPS 2016 (one draw for all times).
    """
    rate = rate_of("dropout", rate)
    many = isinstance(broadcast_dims, (tuple, list))
    if not many or not all(map(is_int, broadcast_dims)):
        raise ValueError(
            f"dropout: broadcast_dims must be a tuple of ints, got {broadcast_dims!r}."
        )
    shared = tuple(broadcast_dims)

    def check(x: Any) -> None:
        if any(not -x.ndim <= axis < x.ndim for axis in shared):
            expected = f"an array with the axes {shared}"
            raise ShapeError("dropout", expected, show(x), "Check broadcast_dims=.")

    def draw(key: Key, x: Any) -> Array:
        once = {axis % x.ndim for axis in shared}
        shape = tuple(1 if axis in once else n for axis, n in enumerate(x.shape))
        return _drop(key, x, rate, shape)

    return None, in_training("dropout", rate > 0, draw, check)


@layer
def spatial_dropout(rate: float, *, name: str | None = None) -> Any:
    """Sets whole channels of each example to zero in training, and scales up the rest.

    Neighbours in an image or sequence are alike: dropping single numbers of a channel
    hides little. PyTorch's `Dropout2d` and Keras's `SpatialDropout2D`, for any number
    of spatial axes.

    Args:
        rate: probability that a channel is zero, in `[0, 1)`.
        name: the layer's name among its siblings.

    Shapes:
        input: `(batch, *spatial, channels)`, floating point.
        output: the input's shape and dtype.

    Raises:
        ValueError: `rate` is out of range, or there is no key in training.
        ShapeError: the input has fewer than two axes, or is not floating point.

    Example:
        >>> import jax, jax.numpy as jnp, axonlike as al
        >>> x = jnp.ones((1, 2, 2, 8))
        >>> layer = al.spatial_dropout(0.5)
        >>> y, _ = layer.apply({}, {}, x, key=jax.random.key(0), train=True)
        >>> bool((y == y[:, :1, :1]).all())
        True

    References:
        Tompson et al., "Efficient Object Localization Using Convolutional Networks",
        CVPR 2015.
    """
    rate = rate_of("spatial_dropout", rate)

    def draw(key: Key, x: Any) -> Array:
        return _drop(key, x, rate, channels_of(x))

    return None, in_training(
        "spatial_dropout", rate > 0, draw, has_channels("spatial_dropout")
    )


@layer
def drop_path(
    rate: float, *, scale_by_keep: bool = True, name: str | None = None
) -> Any:
    """Sets whole examples to zero in training: stochastic depth, on a residual branch.

    `residual(f >> drop_path(0.1))` leaves `f` out for a random tenth of the examples.

    Args:
        rate: probability that an example is zero, in `[0, 1)`.
        scale_by_keep: whether what is kept is divided by `1 - rate`, so that the
            expectation is the input.
        name: the layer's name among its siblings.

    Shapes:
        input: `(batch, ...)`, floating point.
        output: the input's shape and dtype.

    Raises:
        ValueError: `rate` is out of range, or there is no key in training.
        ShapeError: the input is a scalar, or is not floating point.

    Example:
        >>> import axonlike as al
        >>> block = al.residual(al.layer_norm() >> al.dense(8) >> al.drop_path(0.1))
        >>> block.output_spec(al.spec("b 8")).shape
        (b, 8)

    References:
        Huang et al., "Deep Networks with Stochastic Depth", ECCV 2016.
    """
    rate = rate_of("drop_path", rate)

    def check(x: Any) -> None:
        if x.ndim == 0:
            raise ShapeError("drop_path", "(batch, ...)", show(x), "Add a batch axis.")

    def draw(key: Key, x: Any) -> Array:
        shape = (x.shape[0], *(1,) * (x.ndim - 1))
        return _drop(key, x, rate, shape, scaled=scale_by_keep)

    return None, in_training("drop_path", rate > 0, draw, check)


def has_channels(kind: str) -> Any:
    """A check that refuses what is not `(batch, *spatial, channels)`."""

    def check(x: Any) -> None:
        if x.ndim < 2:
            hint = "Add the axes that are missing."
            raise ShapeError(kind, "(batch, *spatial, channels)", show(x), hint)

    return check


def channels_of(x: Any) -> tuple[Any, ...]:
    """The shape of one draw for each channel of each example."""
    return (x.shape[0], *(1,) * (x.ndim - 2), x.shape[-1])


def _drop(
    key: Key, x: Any, rate: float, shape: tuple[Any, ...], *, scaled: bool = True
) -> Array:
    """The input where a draw of this shape keeps it, scaled up, and elsewhere zero."""
    keep = jnp.broadcast_to(kept(key, rate, shape), x.shape)
    y = in_wide(x, lambda x: x * (1 / (1 - rate))) if scaled else x
    return jnp.where(keep, y, jnp.zeros((), x.dtype))
