"""Normalization along the features of each position: layer norm, root mean square."""

from __future__ import annotations

from math import inf
from typing import Any

import jax.numpy as jnp

from axonlike.initializers import InitFunction, ones, zeros
from axonlike.layer import layer
from axonlike.layers.checks import epsilon_of, within
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
from axonlike.types import Array, Key, Params

_ANY = 1, "(..., n)", "Add an axis with x[..., None]."


@layer
def layer_norm(
    *,
    epsilon: float = 1e-6,
    reduction_axes: Axes = -1,
    feature_axes: Axes = -1,
    use_bias: bool = True,
    use_scale: bool = True,
    bias_init: InitFunction = zeros(),
    scale_init: InitFunction = ones(),
    param_dtype: Any = jnp.float32,
    name: str | None = None,
) -> Any:
    """Normalization of each vector along the last axis: mean 0, variance 1.

    A mask of what counts may come with the input, as `(x, mask)` or `mask=` inside a
    `wire`: true where a number enters mean and variance. All numbers are normalized.

    Args:
        epsilon: added to the variance; 1e-6 as in Flax, 1e-5 in PyTorch.
        reduction_axes: what mean and variance are taken over.
        feature_axes: along which scale and bias lie; PyTorch's are its reduction axes.
        use_bias: whether there is a learned bias.
        use_scale: whether there is a learned scale.
        bias_init: initializer of the bias.
        scale_init: initializer of the scale.
        param_dtype: dtype in which params are stored.
        name: the layer's name among its siblings.

    Shapes:
        input: `(..., n)`, floating point; mask: bool, over the input's first axes, or all
            of them; sizes may be 1.
        output: the input's shape and dtype.
        scale: `(n,)`, ones; absent when `use_scale` is false.
        bias: `(n,)`, zeros; absent when `use_bias` is false.

    Raises:
        ValueError: `epsilon` is out of range, or axes are not ints.
        ShapeError: the input is a scalar, not floating point, or without these axes; or
            the mask does not fit.

    Example:
        >>> import jax, jax.numpy as jnp, axonlike as al
        >>> layer = al.layer_norm()
        >>> params, state = layer.init(jax.random.key(0), (None, 2))
        >>> layer.predict(params, state, jnp.array([[1.0, 3.0]]))
        Array([[-0.9999995,  0.9999995]], dtype=float32)

    References:
        Ba, Kiros and Hinton, "Layer Normalization", 2016. https://arxiv.org/abs/1607.06450
    """
    epsilon = epsilon_of("layer_norm", epsilon)
    reduced = check_axes("layer_norm", "reduction_axes", reduction_axes)
    features = check_axes("layer_norm", "feature_axes", feature_axes)
    inits = wanted(scale_init, use_scale, bias_init, use_bias)

    def init(key: Key, x: Any, mask: Any = None) -> Params:
        x, _ = counted("layer_norm", x, mask, *_ANY)
        axes = axes_of("layer_norm", "feature_axes", features, x)
        return drawn(key, x, axes, inits, param_dtype)

    def apply(params: Params, x: Any, mask: Any = None) -> Array:
        x, mask = counted("layer_norm", x, mask, *_ANY)
        over = Over(axes_of("layer_norm", "reduction_axes", reduced, x))
        axes = axes_of("layer_norm", "feature_axes", features, x)
        affine = aligned("layer_norm", params, x, axes)
        mask = aligned_mask("layer_norm", x, mask)
        scale, bias = affine.get("scale"), affine.get("bias")
        return normalized(x, scale, bias, mask, over, epsilon, True)[0]

    return init, apply


@layer
def rms_norm(
    *,
    epsilon: float = 1e-6,
    reduction_axes: Axes = -1,
    feature_axes: Axes = -1,
    scale_offset: float = 0.0,
    use_bias: bool = False,
    use_scale: bool = True,
    bias_init: InitFunction = zeros(),
    scale_init: InitFunction = ones(),
    param_dtype: Any = jnp.float32,
    name: str | None = None,
) -> Any:
    """Division of each vector along the last axis by its root mean square.

    The scale is applied before the output is cast to the input's dtype, as in Flax and
    Gemma; Llama casts first. A mask is taken as `layer_norm` takes it.

    Args:
        epsilon: added to the mean square; 1e-6 as in Flax, in PyTorch the dtype's
            smallest step from 1.
        reduction_axes: what the mean square is taken over.
        feature_axes: along which scale and bias lie.
        scale_offset: added to the scale; Gemma's is 1, with `scale_init` zeros.
        use_bias: whether there is a learned bias.
        use_scale: whether there is a learned scale.
        bias_init: initializer of the bias.
        scale_init: initializer of the scale.
        param_dtype: dtype in which params are stored.
        name: the layer's name among its siblings.

    Shapes:
        input: `(..., n)`, floating point; mask: bool, over the input's first axes, or all
            of them; sizes may be 1.
        output: the input's shape and dtype.
        scale: `(n,)`, ones; absent when `use_scale` is false.
        bias: `(n,)`, zeros; absent unless `use_bias` is true.

    Raises:
        ValueError: `epsilon` is out of range, axes are not ints, or an offset is given
            without a scale.
        ShapeError: the input is a scalar, not floating point, or without these axes; or
            the mask does not fit.

    Example:
        >>> import jax, jax.numpy as jnp, axonlike as al
        >>> layer = al.rms_norm(epsilon=0.0)
        >>> params, state = layer.init(jax.random.key(0), (None, 2))
        >>> layer.predict(params, state, jnp.array([[3.0, 3.0]]))
        Array([[1., 1.]], dtype=float32)

    References:
        Zhang and Sennrich, "Root Mean Square Layer Normalization", NeurIPS 2019.
    """
    epsilon = epsilon_of("rms_norm", epsilon)
    reduced = check_axes("rms_norm", "reduction_axes", reduction_axes)
    features = check_axes("rms_norm", "feature_axes", feature_axes)
    offset = within(
        "rms_norm", "scale_offset", scale_offset,
        low=-inf, high=inf, text="a finite number",
    )  # fmt: skip
    if offset and not use_scale:
        raise ValueError(
            f"rms_norm: scale_offset must be 0 without a scale, got {scale_offset!r}."
        )
    inits = wanted(scale_init, use_scale, bias_init, use_bias)

    def init(key: Key, x: Any, mask: Any = None) -> Params:
        x, _ = counted("rms_norm", x, mask, *_ANY)
        axes = axes_of("rms_norm", "feature_axes", features, x)
        return drawn(key, x, axes, inits, param_dtype)

    def apply(params: Params, x: Any, mask: Any = None) -> Array:
        x, mask = counted("rms_norm", x, mask, *_ANY)
        over = Over(axes_of("rms_norm", "reduction_axes", reduced, x))
        axes = axes_of("rms_norm", "feature_axes", features, x)
        affine = aligned("rms_norm", params, x, axes)
        mask = aligned_mask("rms_norm", x, mask)
        if offset:
            affine["scale"] = affine["scale"] + offset
        scale, bias = affine.get("scale"), affine.get("bias")
        return normalized(x, scale, bias, mask, over, epsilon, False)[0]

    return init, apply
