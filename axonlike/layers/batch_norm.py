"""Normalization over the batch, with running statistics."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import lax

from axonlike.errors import ShapeError
from axonlike.initializers import InitFunction, ones, zeros
from axonlike.layer import layer
from axonlike.layers.checks import epsilon_of, wide, within
from axonlike.layers.normalize import (
    Axes,
    Over,
    aligned,
    aligned_mask,
    axes_of,
    check_axes,
    counted,
    drawn,
    mean,
    normalized,
    wanted,
)
from axonlike.spec import is_unknown, show
from axonlike.types import Array, Key, Params, State

_BATCH = 2, "(batch, ..., channels)", "Add a batch axis with x[None]."


@layer
def batch_norm(
    *,
    momentum: float = 0.99,
    epsilon: float = 1e-5,
    axis: Axes = -1,
    axis_name: Any = None,
    use_running_average: bool | None = None,
    use_bias: bool = True,
    use_scale: bool = True,
    bias_init: InitFunction = zeros(),
    scale_init: InitFunction = ones(),
    param_dtype: Any = jnp.float32,
    name: str | None = None,
) -> Any:
    """Normalization of each channel over the batch and all positions.

    In training by the batch's own statistics, and the running ones move towards them:
    `running = momentum * running + (1 - momentum) * batch`. In inference by the running
    ones. The running variance is that of the batch, divided by its size, as in Flax and
    Keras; PyTorch divides by one less there, and its `momentum` is `1 - momentum`.

    A mask of what counts may come with the input, as `(x, mask)` or `mask=` inside a
    `wire`: true where a number enters the statistics (padding does not). A batch of which
    nothing counts leaves the running statistics as they are. `options={"rows": rows}`
    tells all batch norms of a model which examples count.

    Args:
        momentum: fraction of the running statistics that a step keeps, in `[0, 1]`.
        epsilon: added to the variance.
        axis: the channels; several axes have statistics for each combination.
        axis_name: of `jax.vmap`, `jax.pmap` or a mesh under `jax.shard_map`, over which
            the statistics of a training step are taken together; or a tuple of names.
            Under `jax.jit` with shardings none is needed: the batch is one array there.
        use_running_average: True: by the running statistics in training too, which then
            stay (a frozen batch norm); False: by the batch's in inference too, those of
            each device; None: as `train` says.
        use_bias: whether there is a learned bias.
        use_scale: whether there is a learned scale.
        bias_init: initializer of the bias.
        scale_init: initializer of the scale.
        param_dtype: dtype in which params are stored; the statistics are in float32 at
            least, or they would stand still.
        name: the layer's name among its siblings.

    Shapes:
        input: `(batch, ..., channels)`, floating point; mask: bool, over the input's
            first axes, or all of them; sizes may be 1.
        output: the input's shape and dtype.
        scale: `(channels,)`, ones; absent when `use_scale` is false.
        bias: `(channels,)`, zeros; absent when `use_bias` is false.
        mean: state, `(channels,)`, zeros.
        var: state, `(channels,)`, ones.

    Raises:
        ValueError: `momentum` or `epsilon` is out of range, or axes are not ints.
        ShapeError: the input has no batch axis, or in training no examples; or the mask
            does not fit.

    Example:
        >>> import jax, jax.numpy as jnp, axonlike as al
        >>> layer = al.batch_norm(momentum=0.9)
        >>> x = jnp.array([[1.0], [3.0]])
        >>> params, state = layer.init(jax.random.key(0), x)
        >>> y, state = layer.apply(params, state, x, train=True)
        >>> state["mean"], state["var"]
        (Array([0.2], dtype=float32), Array([1.], dtype=float32))

    References:
        Ioffe and Szegedy, "Batch Normalization", ICML 2015.
    """
    momentum = within(
        "batch_norm", "momentum", momentum, low=0, high=1 + 1e-12, text="in [0, 1]"
    )
    epsilon = epsilon_of("batch_norm", epsilon)
    channels = check_axes("batch_norm", "axis", axis)
    inits = wanted(scale_init, use_scale, bias_init, use_bias)

    def init(key: Key, x: Any, mask: Any = None) -> tuple[Params, State]:
        x, _ = counted("batch_norm", x, mask, *_BATCH)
        axes = axes_of("batch_norm", "axis", channels, x)
        shape = tuple(x.shape[axis] for axis in axes)
        return drawn(key, x, axes, inits, param_dtype), {
            "mean": jnp.zeros(shape, wide(param_dtype)),
            "var": jnp.ones(shape, wide(param_dtype)),
        }

    def apply(
        params: Params,
        x: Any,
        mask: Any = None,
        *,
        state: State,
        train: bool,
        rows: Any = None,
    ) -> tuple[Array, State]:
        x, mask = counted("batch_norm", x, mask, *_BATCH)
        axes = axes_of("batch_norm", "axis", channels, x)
        affine = aligned("batch_norm", params, x, axes)
        running = aligned("batch_norm", state, x, axes)
        mask = _both(*(aligned_mask("batch_norm", x, each) for each in (mask, rows)))
        if train if use_running_average is None else not use_running_average:
            over = _over(x, axes, axis_name if train else None)
            scale, bias = affine.get("scale"), affine.get("bias")
            y, *batch = normalized(x, scale, bias, mask, over, epsilon, True)
            if train:
                state = _moved(state, batch, momentum, _seen(mask, over))
            return y, state
        factor = lax.rsqrt(running["var"] + epsilon) * affine.get("scale", 1.0)
        y = (x.astype(factor.dtype) - running["mean"]) * factor
        return (y + affine.get("bias", 0.0)).astype(x.dtype), state

    return init, apply


def _over(x: Any, axes: tuple[int, ...], axis_name: Any) -> Over:
    """Everything but the channels, of which there has to be something."""
    others = tuple(axis for axis in range(x.ndim) if axis not in axes)
    if any(not is_unknown(x.shape[axis]) and x.shape[axis] == 0 for axis in others):
        hint = "Statistics of an empty batch are not defined: skip it in training."
        expected = "(batch, ..., channels) with examples"
        raise ShapeError("batch_norm", expected, show(x), hint)
    return Over(others, axis_name=axis_name)


def _both(mask: Array | None, rows: Array | None) -> Array | None:
    """What counts by both masks."""
    if mask is None or rows is None:
        return rows if mask is None else mask
    return mask & rows


def _seen(mask: Array | None, over: Over) -> Array | None:
    """Whether anything of the batch counts, on any device; None without a mask."""
    if mask is None:
        return None
    everything = Over(tuple(range(mask.ndim)), axis_name=over.axis_name)
    return jnp.reshape(mean(mask.astype(jnp.float32), None, everything), ()) > 0


def _moved(state: State, batch: Any, momentum: float, seen: Array | None) -> State:
    """The running statistics after a step, in their own dtype."""
    after: State = {}
    for name, measured in zip(("mean", "var"), batch, strict=True):
        running = jnp.asarray(state[name])
        own = jnp.reshape(measured, running.shape).astype(running.dtype)
        new = momentum * running + (1 - momentum) * own
        after[name] = new if seen is None else jnp.where(seen, new, running)
    return after
