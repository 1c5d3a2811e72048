"""What the comparisons with PyTorch share: gradients of one weighting of outputs."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def normal(seed: int, *shape: int) -> Any:
    """Standard normal numbers, the same for both libraries."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def ours(
    model: Any, params: Any, x: Any, weight: Any, state: Any = None, **options: Any
) -> tuple[Any, Any, Any, Any]:
    """Output, gradients for params and input, new state."""

    def loss(params: Any, x: Any) -> Any:
        y, after = model.apply(params, state or {}, x, **options)
        return jnp.sum(y * weight), (y, after)

    step = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    (_, (y, after)), (for_params, for_x) = step(params, x)
    return y, for_params, for_x, after


def run(model: Any, params: Any, x: Any, state: Any = None, **options: Any) -> Any:
    """The output, compiled as a whole: quicker than operation by operation."""
    names = [name for name in options if name == "train"]
    apply = jax.jit(model.apply, static_argnames=names)
    return apply(params, state or {}, x, **options)[0]


def close(actual: Any, desired: Any, rtol: float = 1e-5) -> None:
    """Equal to `rtol` of the largest number: sums of many terms round there."""
    actual, desired = np.asarray(actual), np.asarray(desired)
    assert actual.shape == desired.shape
    scale = max(float(np.max(np.abs(desired), initial=0.0)), 1e-6)
    np.testing.assert_allclose(actual, desired, rtol=rtol, atol=rtol * scale)


def channels_first(x: Any) -> Any:
    """`(batch, channels, *spatial)`."""
    return np.moveaxis(np.asarray(x), -1, 1)


def channels_last(x: Any) -> Any:
    """`(batch, *spatial, channels)`, of a tensor or array."""
    return np.moveaxis(numpy(x), 1, -1)


def numpy(x: Any) -> Any:
    """An array, of a tensor or array."""
    return x.detach().numpy() if hasattr(x, "detach") else np.asarray(x)


def same_pads(size: int, window: int, stride: int) -> tuple[int, int]:
    """Padding of one axis for "SAME", by its definition."""
    total = max((-(-size // stride) - 1) * stride + window - size, 0)
    return total // 2, total - total // 2
