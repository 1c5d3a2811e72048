"""A learned number for each step along some axes: added, multiplied, a slope."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import lax

from axonlike.initializers import InitFunction, constant, ones, zeros
from axonlike.layer import layer
from axonlike.layers.axes import Axes, axes_in, axes_option, sizes_of
from axonlike.types import Array, Key, Params, to_dtype


@layer
def bias(
    axis: Axes = -1,
    *,
    bias_init: InitFunction = zeros(),
    param_dtype: Any = jnp.float32,
    name: str | None = None,
) -> Any:
    """A learned number added to each step along an axis: `y = x + bias`.

    Args:
        axis: the axis or axes along which it differs; `()`: one number for all.
        bias_init: initializer of the bias.
        param_dtype: dtype in which it is stored; computation follows the input's.
        name: the layer's name among its siblings.

    Shapes:
        input: `(...)`, floating point.
        output: the input's shape and dtype.
        bias: the sizes of `axis` in the input's order, zeros.

    Raises:
        ValueError: `axis` is not an int or several different ones.
        ShapeError: the input lacks the axis, or is not floating point.

    Example:
        >>> import jax, axonlike as al
        >>> params, _ = al.bias().init(jax.random.key(0), al.spec("b t 3"))
        >>> params["bias"].shape
        (3,)
    """
    axes = axes_option("bias", axis)

    def init(key: Key, x: Any) -> Params:
        sizes = sizes_of("bias", x, axes_in("bias", x, axes))
        return {"bias": bias_init(key, sizes, param_dtype)}

    def apply(params: Params, x: Any) -> Array:
        return x + along(params["bias"], x, axes_in("bias", x, axes))

    return init, apply


@layer
def scale(
    axis: Axes = -1,
    *,
    scale_init: InitFunction = ones(),
    param_dtype: Any = jnp.float32,
    name: str | None = None,
) -> Any:
    """A learned factor for each step along an axis: `y = x * scale`.

    At the end of a residual branch, from a small constant on, it is the layer scale of
    deep vision models.

    Args:
        axis: the axis or axes along which it differs; `()`: one factor for all.
        scale_init: initializer of the factors.
        param_dtype: dtype in which they are stored; computation follows the input's.
        name: the layer's name among its siblings.

    Shapes:
        input: `(...)`, floating point.
        output: the input's shape and dtype.
        scale: the sizes of `axis` in the input's order, ones.

    Raises:
        ValueError: `axis` is not an int or several different ones.
        ShapeError: the input lacks the axis, or is not floating point.

    Example:
        >>> import jax, axonlike as al
        >>> small = al.scale(scale_init=al.initializers.constant(1e-6))
        >>> block = al.residual(al.dense(3) >> small)
        >>> params, _ = block.init(jax.random.key(0), al.spec("b 3"))
        >>> params["scale"]["scale"]
        Array([1.e-06, 1.e-06, 1.e-06], dtype=float32)

    References:
        Touvron et al., "Going deeper with Image Transformers", ICCV 2021.
    """
    axes = axes_option("scale", axis)

    def init(key: Key, x: Any) -> Params:
        sizes = sizes_of("scale", x, axes_in("scale", x, axes))
        return {"scale": scale_init(key, sizes, param_dtype)}

    def apply(params: Params, x: Any) -> Array:
        return x * along(params["scale"], x, axes_in("scale", x, axes))

    return init, apply


@layer
def prelu(
    axis: Axes = (),
    *,
    negative_slope_init: InitFunction = constant(0.25),
    param_dtype: Any = jnp.float32,
    name: str | None = None,
) -> Any:
    """The identity above zero, and a learned slope below it.

    At zero itself the gradient is the slope, as in PyTorch.

    Args:
        axis: the axis or axes along which slopes differ, -1 for one a channel; `()`: one
            slope for all.
        negative_slope_init: initializer of the slopes: 0.25 as in the paper, PyTorch and
            Equinox; 0.01 in Flax.
        param_dtype: dtype in which they are stored; computation follows the input's.
        name: the layer's name among its siblings.

    Shapes:
        input: `(...)`, floating point.
        output: the input's shape and dtype.
        negative_slope: the sizes of `axis` in the input's order, 0.25.

    Raises:
        ValueError: `axis` is not an int or several different ones.
        ShapeError: the input lacks the axis, or is not floating point.

    Example:
        >>> import jax, jax.numpy as jnp, axonlike as al
        >>> layer = al.prelu()
        >>> params, state = layer.init(jax.random.key(0), (None, 2))
        >>> layer.predict(params, state, jnp.array([[-4.0, 2.0]]))
        Array([[-1.,  2.]], dtype=float32)

    References:
        He et al., "Delving Deep into Rectifiers", ICCV 2015.
    """
    axes = axes_option("prelu", axis)

    def init(key: Key, x: Any) -> Params:
        sizes = sizes_of("prelu", x, axes_in("prelu", x, axes))
        return {"negative_slope": negative_slope_init(key, sizes, param_dtype)}

    def apply(params: Params, x: Any) -> Array:
        slope = along(params["negative_slope"], x, axes_in("prelu", x, axes))
        below = jnp.where(
            x > 0, jnp.zeros_like(x), x
        )  # no 0 * inf in the slope's gradient
        return jnp.where(x > 0, x, slope * below)

    return init, apply


def along(param: Any, x: Any, axes: tuple[int, ...]) -> Array:
    """A param of these axes as an array of the input's shape and dtype."""
    return lax.broadcast_in_dim(to_dtype(param, x.dtype), x.shape, axes)
