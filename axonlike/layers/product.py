"""Matrix products, with a gradient for the kernel that CPUs are fast at."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from axonlike.types import Array

DotGeneral = Callable[..., Any]
"""What has the signature of `jax.lax.dot_general`."""


def product(
    x: Any, kernel: Any, precision: Any, dot_general: DotGeneral | None = None
) -> Array:
    """`x @ kernel`, by another `dot_general` where one is given."""
    if dot_general is not None:
        axes = (((x.ndim - 1,), (0,)), ((), ()))
        return dot_general(x, kernel, axes, precision=precision)
    if x.ndim <= 2:  # jnp.matmul, whose derivative JAX caches, unlike lax.dot_general's
        return jnp.matmul(x, kernel, precision=precision)
    return _many(x, kernel, precision)


def contract(
    x: Any, kernel: Any, axes: Any, precision: Any, dot_general: DotGeneral | None
) -> Array:
    """`jax.lax.dot_general` along these axes, or another where one is given."""
    if dot_general is None:
        return lax.dot_general(x, kernel, axes, precision=precision)
    return dot_general(x, kernel, axes, precision=precision)


# The kernel's gradient is a product along all axes of `x` but the last. XLA for CPU
# copies an input of such a product where there are several, and not where they are one:
# forward and backward of (16, 64, 256) @ (256, 1024) took half the time. Elsewhere axes
# are left as they are, for they may be spread over devices. All of it is under jit,
# inlined, so that JAX traces it once for each shape.


def _plain(x: Any, kernel: Any, precision: Any) -> Array:
    return jnp.matmul(x, kernel, precision=precision)


def _rows(x: Any, kernel: Any, precision: Any) -> Array:
    """The same with all axes of `x` but the last as one."""
    flat = jnp.reshape(x, (math.prod(x.shape[:-1]), x.shape[-1]))
    y = jnp.matmul(flat, kernel, precision=precision)
    return jnp.reshape(y, (*x.shape[:-1], kernel.shape[-1]))


def _by_kernel(x: Any, kernel: Any, precision: Any) -> Array:
    """The same, to be transposed with respect to the kernel."""
    branches = {"cpu": _rows, "default": _plain}
    given = {k: partial(f, precision=precision) for k, f in branches.items()}
    either = partial(cast(Any, lax).platform_dependent, **given)
    keep_x: Any = cast(Any, jax).checkpoint(either, prevent_cse=False)
    return keep_x(x, kernel)  # and not, for each product, a reshaped one


_cached: Callable[..., Array] = jax.jit(_by_kernel, static_argnums=2, inline=True)


def _jvp(precision: Any, primals: Any, tangents: Any) -> tuple[Array, Array]:
    (x, kernel), (dx, dkernel) = primals, tangents
    y, parts = _plain(x, kernel, precision), list[Array]()
    if not isinstance(dx, SymbolicZero):
        parts.append(_plain(dx, kernel, precision))
    if not isinstance(dkernel, SymbolicZero):
        parts.append(_cached(x, dkernel, precision))
    return y, sum(parts[1:], parts[0]) if parts else jnp.zeros_like(y)


_taught: Any = jax.custom_jvp(_plain, nondiff_argnums=(2,))
_taught.defjvp(_jvp, symbolic_zeros=True)
_many: Callable[..., Array] = jax.jit(_taught, static_argnums=2, inline=True)
