"""Normalization of each example over its positions: groups, instances, responses."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import lax

from axonlike.errors import ShapeError
from axonlike.initializers import InitFunction, constant, ones, zeros
from axonlike.layer import layer
from axonlike.layers.checks import at_least, epsilon_of, positive, wide
from axonlike.layers.normalize import (
    Axes,
    Over,
    aligned,
    aligned_mask,
    axes_of,
    check_axes,
    counted,
    drawn,
    normalized,
    wanted,
)
from axonlike.spec import show
from axonlike.types import Array, Key, Params

_BATCH = 2, "(batch, ..., channels)", "Add a batch axis with x[None]."
_POSITIONS = (
    3,
    "(batch, ..., channels) with positions",
    "Add a batch axis with x[None].",
)


@layer
def group_norm(
    num_groups: int | None = None,
    *,
    group_size: int | None = None,
    epsilon: float = 1e-6,
    reduction_axes: Axes | None = None,
    use_bias: bool = True,
    use_scale: bool = True,
    bias_init: InitFunction = zeros(),
    scale_init: InitFunction = ones(),
    param_dtype: Any = jnp.float32,
    name: str | None = None,
) -> Any:
    """Normalization of each example over all positions and the channels of a group.

    One group is layer norm over everything but the batch; as many groups as channels
    are `instance_norm`. A mask of what counts may come with the input, as `(x, mask)` or
    `mask=` inside a `wire`: true where a number enters mean and variance.

    Args:
        num_groups: how many groups of neighbouring channels; divides them. 32 if neither
            this nor `group_size` is given.
        group_size: or how many channels a group has.
        epsilon: added to the variance; 1e-6 as in Flax, 1e-5 in PyTorch.
        reduction_axes: what mean and variance are taken over, the last axis among them;
            None: all but the first.
        use_bias: whether there is a learned bias.
        use_scale: whether there is a learned scale.
        bias_init: initializer of the bias.
        scale_init: initializer of the scale.
        param_dtype: dtype in which params are stored.
        name: the layer's name among its siblings.

    Shapes:
        input: `(batch, ..., channels)`, floating point; mask: bool, over the input's
            first axes, or all of them; sizes may be 1.
        output: the input's shape and dtype.
        scale: `(channels,)`, ones; absent when `use_scale` is false.
        bias: `(channels,)`, zeros; absent when `use_bias` is false.

    Raises:
        ValueError: `num_groups` or `group_size` is not a positive int or both are given,
            `epsilon` is out of range, or axes are not ints.
        ShapeError: the input has no batch axis or not these axes, the groups do not
            divide its channels, or the mask does not fit.

    Example:
        >>> import axonlike as al
        >>> al.group_norm(4).output_spec(al.spec("b 7 7 16")).shape
        (b, 7, 7, 16)

    References:
        Wu and He, "Group Normalization", ECCV 2018.
    """
    if num_groups is not None and group_size is not None:
        raise ValueError(
            "group_norm: num_groups and group_size say the same, got "
            f"{num_groups!r} and {group_size!r}. Give one of them."
        )
    option = "num_groups" if group_size is None else "group_size"
    number = num_groups if group_size is None else group_size
    number = 32 if number is None else number
    positive("group_norm", **{option: number})
    epsilon = epsilon_of("group_norm", epsilon)
    reduced = (
        None
        if reduction_axes is None
        else check_axes("group_norm", "reduction_axes", reduction_axes)
    )
    inits = wanted(scale_init, use_scale, bias_init, use_bias)

    def init(key: Key, x: Any, mask: Any = None) -> Params:
        x, _ = counted("group_norm", x, mask, *_BATCH)
        _positions(x)
        return drawn(key, x, (x.ndim - 1,), inits, param_dtype)

    def apply(params: Params, x: Any, mask: Any = None) -> Array:
        x, mask = counted("group_norm", x, mask, *_BATCH)
        positions, channels = _positions(x), x.shape[-1]
        groups = number if option == "num_groups" else channels // number
        affine = aligned("group_norm", params, x, (x.ndim - 1,))
        mask = aligned_mask("group_norm", x, mask)
        scale, bias = affine.get("scale"), affine.get("bias")
        over = Over(positions, groups)
        return normalized(x, scale, bias, mask, over, epsilon, True)[0]

    def _positions(x: Any) -> tuple[int, ...]:
        """The axes of means but for the channels', which the groups stand for."""
        if x.shape[-1] % number != 0:
            expected = f"(batch, ..., channels) with channels a multiple of {number}"
            hint = f"Choose a {option} that divides the channels."
            raise ShapeError("group_norm", expected, show(x), hint)
        if reduced is None:
            return tuple(range(1, x.ndim - 1))
        *positions, last = axes_of("group_norm", "reduction_axes", reduced, x)
        if last != x.ndim - 1:
            hint = "Groups are of the last axis; batch_norm takes means without it."
            raise ShapeError(
                "group_norm", "reduction_axes with the last axis", str(reduced), hint
            )
        return tuple(positions)

    return init, apply


@layer
def instance_norm(
    *,
    epsilon: float = 1e-6,
    feature_axes: Axes = -1,
    use_bias: bool = True,
    use_scale: bool = True,
    bias_init: InitFunction = zeros(),
    scale_init: InitFunction = ones(),
    param_dtype: Any = jnp.float32,
    name: str | None = None,
) -> Any:
    """Normalization of each channel of each example over its positions.

    A mask of what counts is taken as `group_norm` takes it.

    Args:
        epsilon: added to the variance; 1e-6 as in Flax, 1e-5 in PyTorch.
        feature_axes: the channels; mean and variance are over all axes but these and
            the first.
        use_bias: whether there is a learned bias; PyTorch's default is none.
        use_scale: whether there is a learned scale; PyTorch's default is none.
        bias_init: initializer of the bias.
        scale_init: initializer of the scale.
        param_dtype: dtype in which params are stored.
        name: the layer's name among its siblings.

    Shapes:
        input: `(batch, ..., channels)`, floating point, with positions; mask: bool, over
            the input's first axes, or all of them; sizes may be 1.
        output: the input's shape and dtype.
        scale: `(channels,)`, ones; absent when `use_scale` is false.
        bias: `(channels,)`, zeros; absent when `use_bias` is false.

    Raises:
        ValueError: `epsilon` is out of range, or axes are not ints.
        ShapeError: the input has no positions or not these axes, or the mask does not
            fit.

    Example:
        >>> import axonlike as al
        >>> al.instance_norm().output_spec(al.spec("b 7 7 16")).shape
        (b, 7, 7, 16)

    References:
        Ulyanov, Vedaldi and Lempitsky, "Instance Normalization", 2016.
        https://arxiv.org/abs/1607.08022
    """
    epsilon = epsilon_of("instance_norm", epsilon)
    features = check_axes("instance_norm", "feature_axes", feature_axes)
    inits = wanted(scale_init, use_scale, bias_init, use_bias)

    def init(key: Key, x: Any, mask: Any = None) -> Params:
        x, _ = counted("instance_norm", x, mask, *_POSITIONS)
        axes = axes_of("instance_norm", "feature_axes", features, x)
        return drawn(key, x, axes, inits, param_dtype)

    def apply(params: Params, x: Any, mask: Any = None) -> Array:
        x, mask = counted("instance_norm", x, mask, *_POSITIONS)
        axes = axes_of("instance_norm", "feature_axes", features, x)
        over = Over(tuple(axis for axis in range(1, x.ndim) if axis not in axes))
        affine = aligned("instance_norm", params, x, axes)
        mask = aligned_mask("instance_norm", x, mask)
        scale, bias = affine.get("scale"), affine.get("bias")
        return normalized(x, scale, bias, mask, over, epsilon, True)[0]

    return init, apply


@layer
def filter_response_norm(
    *,
    epsilon: float = 1e-6,
    learn_epsilon: bool = False,
    use_threshold: bool = True,
    use_bias: bool = True,
    use_scale: bool = True,
    bias_init: InitFunction = zeros(),
    scale_init: InitFunction = ones(),
    threshold_init: InitFunction = zeros(),
    epsilon_init: InitFunction = constant(1e-4),
    param_dtype: Any = jnp.float32,
    name: str | None = None,
) -> Any:
    """Division of each channel of each example by its root mean square over positions.

    Then scale and bias, then the thresholded linear unit `max(y, threshold)`, which takes
    the place of an activation. No number depends on other examples.

    Args:
        epsilon: added to the mean square.
        learn_epsilon: whether to add the absolute value of a learned epsilon for each
            channel too; for layers with few positions.
        use_threshold: whether there is a learned threshold.
        use_bias: whether there is a learned bias.
        use_scale: whether there is a learned scale.
        bias_init: initializer of the bias.
        scale_init: initializer of the scale.
        threshold_init: initializer of the threshold.
        epsilon_init: initializer of the learned epsilon.
        param_dtype: dtype in which params are stored.
        name: the layer's name among its siblings.

    Shapes:
        input: `(batch, ..., channels)`, floating point, with positions.
        output: the input's shape and dtype.
        scale: `(channels,)`, ones; absent when `use_scale` is false.
        bias: `(channels,)`, zeros; absent when `use_bias` is false.
        threshold: `(channels,)`, zeros; absent when `use_threshold` is false.
        epsilon: `(channels,)`, 1e-4; absent unless `learn_epsilon` is true.

    Raises:
        ValueError: `epsilon` is out of range.
        ShapeError: the input has no positions.

    Example:
        >>> import jax, axonlike as al
        >>> layer = al.filter_response_norm()
        >>> params, state = layer.init(jax.random.key(0), al.spec("b 7 7 16"))
        >>> sorted(params)
        ['bias', 'scale', 'threshold']

    References:
        Singh and Krishnan, "Filter Response Normalization Layer", CVPR 2020.
    """
    epsilon = epsilon_of("filter_response_norm", epsilon)
    inits = wanted(scale_init, use_scale, bias_init, use_bias)
    if use_threshold:
        inits["threshold"] = threshold_init
    if learn_epsilon:
        inits["epsilon"] = epsilon_init

    def init(key: Key, x: Any) -> Params:
        at_least("filter_response_norm", x, *_POSITIONS)
        return drawn(key, x, (x.ndim - 1,), inits, param_dtype)

    def apply(params: Params, x: Any) -> Array:
        at_least("filter_response_norm", x, *_POSITIONS)
        p = aligned("filter_response_norm", params, x, (x.ndim - 1,))
        xs = x.astype(wide(x.dtype))
        square = jnp.mean(jnp.square(xs), tuple(range(1, x.ndim - 1)), keepdims=True)
        square = square + (jnp.abs(p["epsilon"]) if learn_epsilon else 0.0)
        y = xs * (lax.rsqrt(square + epsilon) * p.get("scale", 1.0))
        y = y + p.get("bias", 0.0)
        return (jnp.maximum(y, p["threshold"]) if use_threshold else y).astype(x.dtype)

    return init, apply
