"""Layers that move numbers and compute none."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp

from axonlike.errors import ShapeError
from axonlike.layer import layer
from axonlike.layers.checks import at_least, exactly, is_int
from axonlike.spec import is_unknown, show
from axonlike.types import Array, Params


@layer
def flatten(*, name: str | None = None) -> Any:
    """One axis out of all but the first.

    Args:
        name: the layer's name among its siblings.

    Shapes:
        input: `(batch, ...)`.
        output: `(batch, n)`, n the product of the other sizes (1 if there are none).

    Raises:
        ShapeError: the input is a scalar.

    Example:
        >>> import axonlike as al
        >>> al.flatten().output_spec(al.spec("b 7 7 64")).shape
        (b, 3136)
    """

    def apply(params: Params, x: Any) -> Array:
        hint = "Add a batch axis with x[None]."
        at_least("flatten", x, 1, "(batch, ...)", hint, floating=False)
        return jnp.reshape(x, (x.shape[0], math.prod(x.shape[1:])))

    return None, apply


@layer
def reshape(*sizes: int, name: str | None = None) -> Any:
    """Other sizes for all but the first axis, elements in row-major order.

    Args:
        sizes: without the batch axis; one may be -1: what is left.
        name: the layer's name among its siblings.

    Shapes:
        input: `(batch, ...)`.
        output: `(batch, *sizes)`.

    Raises:
        ValueError: a size is neither a positive int nor -1, or two are -1.
        ShapeError: the input has another number of elements.

    Example:
        >>> import axonlike as al
        >>> al.reshape(7, 7, -1).output_spec(al.spec("b 3136")).shape
        (b, 7, 7, 64)
    """
    if not all(is_int(n) and (n >= 1 or n == -1) for n in sizes):
        raise ValueError(
            f"reshape: sizes must be positive ints or -1, got {sizes!r}. "
            "Leave the batch axis out: reshape(7, 7, 64)."
        )
    if sizes.count(-1) > 1:
        raise ValueError(f"reshape: only one size may be -1, got {sizes!r}.")

    def apply(params: Params, x: Any) -> Array:
        hint = "Add a batch axis with x[None]."
        at_least("reshape", x, 1, "(batch, ...)", hint, floating=False)
        total = math.prod(x.shape[1:])
        known = math.prod(n for n in sizes if n != -1)
        if not is_unknown(total) and (total % known if -1 in sizes else total != known):
            what = f"a multiple of {known}" if -1 in sizes else str(known)
            raise ShapeError(
                "reshape",
                f"(batch, ...) with {what} elements an example, for sizes {sizes}",
                show(x),
                "The product of the sizes must be that of the input's.",
            )
        full = (total // known if n == -1 else n for n in sizes)
        return jnp.reshape(x, (x.shape[0], *full))

    return None, apply


@layer
def transpose(*axes: int, name: str | None = None) -> Any:
    """The axes in another order; the batch axis stays first.

    Args:
        axes: a permutation of the input's axes 1, 2, ...: axis i + 1 of the output is
            axis `axes[i]` of the input, as in Keras's `Permute`.
        name: the layer's name among its siblings.

    Shapes:
        input: `(batch, n1, n2, ...)`.
        output: `(batch, ...)`, the other sizes permuted.

    Raises:
        ValueError: `axes` is not a permutation of 1, 2, ....
        ShapeError: the input has another rank.

    Example:
        >>> import axonlike as al
        >>> al.transpose(2, 3, 1).output_spec(al.spec("b 3 28 20")).shape
        (b, 28, 20, 3)
    """
    if not all(map(is_int, axes)) or sorted(axes) != list(range(1, len(axes) + 1)):
        raise ValueError(
            f"transpose: axes must be a permutation of 1, 2, ..., got {axes!r}. "
            "The batch axis 0 stays first and is not named: transpose(2, 1)."
        )

    def apply(params: Params, x: Any) -> Array:
        count = len(axes)
        expected = f"{count + 1} axes, the batch and {count} more"
        hint = "Name every axis but the first."
        exactly("transpose", x, count + 1, expected, hint, floating=False)
        return jnp.transpose(x, (0, *axes))

    return None, apply
