"""The arithmetic that all norms share: mean 0 and variance 1, and its derivative.

Statistics are computed in float32 at least. The mean is taken twice, the second time of
what the first left over, and the variance of the centred values: `mean(x**2) - mean(x)**2`
would lose all its digits where the mean is large.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax import lax

from axonlike.errors import ShapeError
from axonlike.initializers import InitFunction
from axonlike.layers.checks import array, at_least, is_int, last_axis, wide
from axonlike.spec import show
from axonlike.types import Array, Key, Params, to_dtype

Axes = int | Sequence[int]
_AFFINE = "scale", "bias"


class Over(NamedTuple):
    """Which numbers have their mean taken together.

    All along `axes`; with `num_groups`, also the neighbouring channels of a group; with
    `axis_name`, also those of the other devices along that axis of a mesh, or of `vmap`.
    """

    axes: tuple[int, ...]
    num_groups: int = 0
    axis_name: Any = None


def mean(x: Array, mask: Array | None, over: Over) -> Array:
    """The mean of what the mask says counts; 0 where nothing does. Keeps the axes."""
    if mask is None:
        return _shared(jnp.mean(x, over.axes, keepdims=True), over)
    none, mask = jnp.zeros((), x.dtype), jnp.broadcast_to(mask, x.shape)
    total = jnp.sum(jnp.where(mask, x, none), over.axes, keepdims=True)
    count = jnp.sum(mask.astype(x.dtype), over.axes, keepdims=True)
    total, count = _shared(total, over), _shared(count, over)
    return total / jnp.where(count > 0, count, jnp.ones((), x.dtype))


def _shared(each: Array, over: Over) -> Array:
    """The mean over the channels of a group, and over devices.

    Groups are formed of few numbers, after the positions: the large array is never
    reshaped to a short last axis, over which a CPU would sum slowly.
    """
    if over.num_groups:
        parts = (*each.shape[:-1], over.num_groups, each.shape[-1] // over.num_groups)
        groups = jnp.mean(jnp.reshape(each, parts), -1, keepdims=True)
        each = jnp.reshape(jnp.broadcast_to(groups, parts), each.shape)
    if over.axis_name is None:
        return each
    return cast(Array, lax.pmean(each, over.axis_name))


def _standard(
    x: Array, mask: Array | None, over: Over, epsilon: float, centred: bool
) -> tuple[Array, Array, Array | None, Array]:
    """The values at mean 0 and variance 1; the factor to that; mean and variance."""
    if not centred:
        var = mean(jnp.square(x), mask, over)
        factor = lax.rsqrt(var + epsilon)
        return x * factor, factor, None, var
    first = mean(x, mask, over)
    x = x - first
    rest = mean(x, mask, over)  # a mean of 1000 is exact to 3e-5 only: what it missed
    var = mean(jnp.square(x), mask, over) - jnp.square(rest)
    below = var < 0  # by rounding, where large numbers are all equal
    var = jnp.where(below, jnp.zeros((), var.dtype), var)
    factor = lax.rsqrt(var + epsilon)
    return (x - rest) * factor, factor, first + rest, var


Result = tuple[Array, Array | None, Array]


def _normalized(
    x: Array,
    scale: Array | None,
    bias: Array | None,
    mask: Array | None,
    over: Over,
    epsilon: float,
    centred: bool,
) -> Result:
    z, _, mean_, var = _standard(x.astype(wide(x.dtype)), mask, over, epsilon, centred)
    return _affine(z, scale, bias).astype(x.dtype), mean_, var


def _affine(z: Array, scale: Array | None, bias: Array | None) -> Array:
    y = z if scale is None else z * scale
    return y if bias is None else y + bias


def _derivative(
    over: Over, epsilon: float, centred: bool, primals: Any, tangents: Any
) -> tuple[Result, Result]:
    """Both sums of the backward pass at once, each over one product.

    What JAX derives from the formula sums one after the other; in float32 on a CPU this
    takes a quarter of its time.
    """
    x, scale, bias, mask = primals
    dx = tangents[0].astype(wide(x.dtype))
    z, factor, mean_, var = _standard(x.astype(dx.dtype), mask, over, epsilon, centred)
    along = mean(z * dx, mask, over)
    level = mean(dx, mask, over) if centred else None
    across = scale is not None and any(scale.shape[axis] != 1 for axis in over.axes)
    change: Callable[..., Array] = _change_across if across else _change
    dy = change(z, factor, scale, dx, along, level, tangents[1], tangents[2])
    y = _affine(z, scale, bias)
    return (y.astype(x.dtype), mean_, var), (
        dy.astype(x.dtype), level, 2 * along / factor,
    )  # fmt: skip


def _change(
    z: Array, factor: Array, scale: Any, dx: Array, along: Array, level: Any,
    dscale: Any, dbias: Any,
) -> Array:  # fmt: skip
    """Of the output, where scale and bias belong to what is averaged together.

    Written such that its transpose sums over positions once for the params and the input.
    """
    slope = factor if scale is None else factor * scale
    by_z = -slope * along if dscale is None else dscale - slope * along
    dy = slope * dx + z * by_z
    if level is None:
        return dy if dbias is None else dy + dbias
    return dy + (-slope * level if dbias is None else dbias - slope * level)


def _change_across(
    z: Array, factor: Array, scale: Array, dx: Array, along: Array, level: Any,
    dscale: Array, dbias: Any,
) -> Array:  # fmt: skip
    """Of the output, where each number that is averaged has its own scale.

    Behind a barrier scale and factor are others than the forward pass's: XLA would make
    one broadcast for both, as large as the input, and write it to memory.
    """
    own_scale, own_factor = lax.optimization_barrier((scale, factor))
    dz = own_factor * dx - z * (factor * along)
    if level is not None:
        dz = dz - factor * level
    dy = dz * own_scale + z * dscale
    return dy if dbias is None else dy + dbias


_with_derivative = jax.custom_jvp(_normalized, nondiff_argnums=(4, 5, 6))
_with_derivative.defjvp(_derivative)

# Under a jit of its own, for XLA then fuses a deep stack of them as well as one.
normalized: Callable[..., Result] = jax.jit(_with_derivative, static_argnums=(4, 5, 6))
"""`(x, scale, bias, mask, over, epsilon, centred) -> (y, mean, var)`.

Scale and bias are None or have the rank of `x`, in the dtype of the statistics.
"""


# --- what the layers around it share: inputs, axes, params


def counted(
    kind: str, x: Any, mask: Any, ndim: int, expected: str, hint: str
) -> tuple[Any, Any]:
    """The input, checked, and the mask of what counts, if one came with it."""
    if mask is None and isinstance(x, (tuple, list)):
        items = cast("Sequence[Any]", x)
        x, mask = items if len(items) == 2 else (items, None)
    at_least(kind, x, ndim, expected, hint)
    return x, mask


def aligned_mask(kind: str, x: Any, mask: Any) -> Array | None:
    """A mask over the first axes of the input, of its rank."""
    if mask is None:
        return None
    array(kind, mask, "mask", floating=False)
    pairs = zip(mask.shape, x.shape, strict=False)
    fits = mask.ndim <= x.ndim and all(a in (b, 1) for a, b in pairs)
    if mask.dtype != bool or not fits:
        raise ShapeError(
            kind, f"a bool mask of the first axes of {show(x)}", show(mask),
            "It is true where a number counts; sizes may be 1.",
        )  # fmt: skip
    return jnp.reshape(mask, (*mask.shape, *(1,) * (x.ndim - mask.ndim)))


def check_axes(kind: str, option: str, value: Any) -> tuple[int, ...]:
    """Refuses what is neither an int nor several different ones."""
    many = isinstance(value, (tuple, list))
    axes: list[Any] = list(cast("Sequence[Any]", value)) if many else [value]
    if not axes or not all(map(is_int, axes)) or len(set(axes)) < len(axes):
        raise ValueError(
            f"{kind}: {option} must be an int or several different ones, got {value!r}."
        )
    return tuple(axes)


def axes_of(kind: str, option: str, axes: tuple[int, ...], x: Any) -> tuple[int, ...]:
    """Axes counted from the front, in order."""
    found = sorted({axis % x.ndim for axis in axes if -x.ndim <= axis < x.ndim})
    if len(found) < len(axes):
        raise ShapeError(kind, f"axes {axes}", show(x), f"Check {option}=.")
    return tuple(found)


def wanted(
    scale: InitFunction, use_scale: bool, bias: InitFunction, use_bias: bool
) -> dict[str, InitFunction]:
    """Initializers by name, of those params that are used."""
    inits = {"scale": scale} if use_scale else {}
    return {**inits, "bias": bias} if use_bias else inits


def drawn(
    key: Key,
    x: Any,
    axes: tuple[int, ...],
    inits: Mapping[str, InitFunction],
    dtype: Any,
) -> Params:
    """Scale, bias and the like, with the sizes of the feature axes."""
    names = (*_AFFINE, *(name for name in inits if name not in _AFFINE))
    keys = dict(zip(names, jax.random.split(key, len(names)), strict=True))
    shape = tuple(x.shape[axis] for axis in axes)
    return {k: init(keys[k], shape, dtype) for k, init in inits.items()}


def aligned(kind: str, params: Params, x: Any, axes: tuple[int, ...]) -> dict[str, Any]:
    """Arrays over the feature axes at the rank of `x`, in the dtype of its statistics."""
    shape = [x.shape[axis] if axis in axes else 1 for axis in range(x.ndim)]
    if axes == (x.ndim - 1,):
        for param in params.values():
            last_axis(kind, x, param.shape[0])
    dtype = wide(x.dtype)
    return {k: jnp.reshape(to_dtype(p, dtype), shape) for k, p in params.items()}
