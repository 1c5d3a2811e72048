"""Floating-point operations of one equation of a jaxpr.

A product and a sum are two operations; other arithmetic is one for each number that
comes out, exponentials and roots included. Comparisons (the larger of two is one), casts,
integers and what only moves numbers are none. So a product of matrices `(m, k)` and
`(k, n)` has `2 * m * k * n`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import jax.numpy as jnp

_NONE = frozenset(
    (
        *("ceil", "clamp", "copy", "copy_p", "convert_element_type", "device_put"),
        *("floor", "nextafter", "optimization_barrier", "reduce_precision", "round"),
        *(
            "broadcast",
            "broadcast_in_dim",
            "concatenate",
            "dynamic_slice",
            "expand_dims",
        ),
        *("dynamic_update_slice", "gather", "iota", "name", "pad", "pbroadcast"),
        *("reshape", "rev", "scatter", "select_n", "sharding_constraint", "slice"),
        *("bitcast_convert_type", "sort", "split", "squeeze", "stop_gradient", "tile"),
        *(
            "select_and_gather_add",
            "top_k",
            "transpose",
            "conj",
            "imag",
            "real",
            "sign",
        ),
        *("abs", "neg", "stack", "max", "min", "argmax", "argmin", "reduce_max"),
        *("reduce_min", "reduce_window_max", "reduce_window_min", "scatter_max"),
        *("get", "swap", "program_id", "num_programs", "load", "masked_load"),
        *("pure_callback", "io_callback", "debug_callback", "debug_print"),
        *("scatter-max", "scatter-min", "scatter_min", "cummax", "cummin"),
    )
)
"""What moves numbers, compares or rounds them, or changes a bit; and what leaves JAX."""


def flops(equation: Any) -> int:
    """How many operations an equation takes that has no jaxpr inside."""
    name = equation.primitive.name
    rule = _RULES.get(name)
    if rule is not None:
        return rule(equation) if _floating(equation.invars[0]) else 0
    if name in _NONE:
        return 0
    return sum(size(v) for v in equation.outvars if _floating(v))


def size(variable: Any) -> int:
    """How many numbers a variable holds."""
    return math.prod(getattr(variable.aval, "shape", ()))


def nbytes(variable: Any) -> int:
    """How many bytes a variable takes; a key as many as its words."""
    dtype = getattr(variable.aval, "dtype", None)
    if dtype is None:
        return 0
    return size(variable) * int(getattr(dtype, "itemsize", 0))


def _floating(variable: Any) -> bool:
    dtype = getattr(variable.aval, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jnp.inexact)


def _dot(equation: Any) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    shape = equation.invars[0].aval.shape
    return 2 * size(equation.outvars[0]) * math.prod(shape[axis] for axis in contracted)


def _ragged_dot(equation: Any) -> int:
    rows, width = equation.invars[0].aval.shape[-2:]
    return 2 * rows * width * equation.outvars[0].aval.shape[-1]


def _conv(equation: Any) -> int:
    """Each number that comes out is a sum over the kernel, at padding as elsewhere."""
    kernel = equation.invars[1].aval.shape
    features = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
    return 2 * size(equation.outvars[0]) * (math.prod(kernel) // features)


def _inputs(equation: Any) -> int:
    """A reduction: one for each number that goes in but the first of each sum."""
    return size(equation.invars[0]) - size(equation.outvars[0])


def _window(equation: Any) -> int:
    window = math.prod(equation.params["window_dimensions"])
    return size(equation.outvars[0]) * (window - 1)


def _power(equation: Any) -> int:
    """The products of repeated squaring."""
    power = abs(equation.params["y"])
    products = power.bit_length() - 1 + power.bit_count() - 1
    return size(equation.outvars[0]) * max(products, 0)


def _scattered(equation: Any) -> int:
    return size(equation.invars[2])


def _fft(equation: Any) -> int:
    lengths = math.prod(equation.params["fft_lengths"])
    largest = max(size(equation.invars[0]), size(equation.outvars[0]))
    return round(5 * largest * math.log2(max(lengths, 2)))


def _cubed(share: float) -> Callable[[Any], int]:
    """A factorization of matrices: a share of n^3 for each."""

    def rule(equation: Any) -> int:
        shape = equation.invars[0].aval.shape
        return round(share * math.prod(shape) * shape[-1])

    return rule


def _solve(equation: Any) -> int:
    return size(equation.invars[1]) * cast(int, equation.invars[0].aval.shape[-1])


_RULES: dict[str, Callable[[Any], int]] = {
    "dot_general": _dot,
    "ragged_dot_general": _ragged_dot,
    "ragged_dot": _ragged_dot,
    "conv_general_dilated": _conv,
    "reduce_sum": _inputs,
    "reduce_prod": _inputs,
    "reduce": _inputs,
    "reduce_window": _window,
    "reduce_window_sum": _window,
    "integer_pow": _power,
    "scatter-add": _scattered,
    "scatter_add": _scattered,
    "scatter-mul": _scattered,
    "scatter_mul": _scattered,
    "fft": _fft,
    "cholesky": _cubed(1 / 3),
    "lu": _cubed(2 / 3),
    "qr": _cubed(4 / 3),
    "eigh": _cubed(9),
    "svd": _cubed(12),
    "triangular_solve": _solve,
}
