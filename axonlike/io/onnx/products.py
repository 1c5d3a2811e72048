"""Products of matrices, and convolutions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from axonlike.io.onnx.graph import Graph, Value, stored
from axonlike.io.onnx.shaping import flipped, padded
from axonlike.io.onnx.table import NoCounterpartError, rule
from axonlike.spec import is_unknown


@rule("dot_general")
def _dot_general(g: Graph, eqn: Any, a: Value, b: Value) -> str:
    """A product of matrices, once axes are in order: batch, rows, summed, columns."""
    (a_sum, b_sum), (a_batch, b_batch) = eqn.params["dimension_numbers"]
    out = eqn.outvars[0].aval
    kind = stored(out.dtype)
    wide = np.dtype(np.int32) if kind.itemsize < 4 and kind.kind in "iub" else kind
    x, y = (g.cast(v, stored(v.dtype), wide) for v in (a, b))
    rows = _others(a, (*a_batch, *a_sum))
    columns = _others(b, (*b_batch, *b_sum))
    x = g.transpose(x, (*a_batch, *rows, *a_sum))
    y = g.transpose(y, (*b_batch, *b_sum, *columns))
    batch = [a.shape[i] for i in a_batch]
    summed = [a.shape[i] for i in a_sum]
    high, wid = [a.shape[i] for i in rows], [b.shape[i] for i in columns]
    flat = bool(batch) and len(high) != 1
    tall = [math.prod(high)] if flat or not high else high
    x = g.reshape(x, [*batch, *high, *summed], [*batch, *tall, math.prod(summed)])
    y = g.reshape(
        y, [*batch, *summed, *wid], [*batch, math.prod(summed), math.prod(wid)]
    )
    name = g.node("MatMul", x, y)
    name = g.reshape(name, [*batch, *tall, math.prod(wid)], out.shape)
    return g.cast(name, wide, kind)


def _others(x: Value, axes: Sequence[int]) -> list[int]:
    return [axis for axis in range(len(x.shape)) if axis not in axes]


@rule("conv_general_dilated")
def _conv(g: Graph, eqn: Any, x: Value, kernel: Value) -> str:
    """Channels first in between; holes in the input are a transposed convolution."""
    p = eqn.params
    if p["batch_group_count"] != 1:
        raise NoCounterpartError("the batch is in groups")
    numbers, out = p["dimension_numbers"], stored(eqn.outvars[0].aval.dtype)
    x_axes, k_axes = numbers.lhs_spec, numbers.rhs_spec
    image = g.transpose(g.cast(x, stored(x.dtype), out), x_axes)
    weights = g.transpose(g.cast(kernel, stored(kernel.dtype), out), k_axes)
    shape = [x.shape[axis] for axis in x_axes]
    sizes = [kernel.shape[axis] for axis in k_axes[2:]]
    if _is_transposed(p, sizes):
        name = _conv_transposed(g, image, weights, sizes, p)
    else:
        name = convolved(g, image, weights, shape, sizes, p)
    back = np.argsort(numbers.out_spec)
    return g.transpose(name, tuple(map(int, back)))


def convolved(g: Graph, x: str, kernel: str, shape: Any, sizes: Any, p: Any) -> str:
    """A convolution, channels first."""
    pads = [(low, high) for low, high in p["padding"]]
    holes = [n - 1 for n in p["lhs_dilation"]]
    if any(holes) or any(is_unknown(n) or n < 0 for pair in pads for n in pair):
        config = [(0, 0, 0)] * 2 + [
            (*pad, hole) for pad, hole in zip(pads, holes, strict=True)
        ]
        x, pads = padded(g, x, shape, config), [(0, 0)] * len(pads)
    return g.node(
        "Conv", x, kernel,
        kernel_shape=list(sizes),
        strides=list(p["window_strides"]),
        pads=[low for low, _ in pads] + [high for _, high in pads],
        dilations=list(p["rhs_dilation"]),
        group=p["feature_group_count"],
    )  # fmt: skip


def _is_transposed(p: Any, sizes: Any) -> bool:
    """Whether it is what ONNX calls a transposed convolution."""
    plain = set(p["window_strides"]) == {1} and p["feature_group_count"] == 1
    ends = zip(p["padding"], sizes, p["rhs_dilation"], p["lhs_dilation"], strict=True)
    return (
        plain
        and any(n > 1 for n in p["lhs_dilation"])
        and all(
            low <= (k - 1) * d and (k - 1) * d - high > -hole
            for (low, high), k, d, hole in ends
        )
    )


def _conv_transposed(g: Graph, x: str, kernel: str, sizes: Any, p: Any) -> str:
    """The kernel reversed, inputs before outputs."""
    spatial = range(2, 2 + len(sizes))
    kernel = g.transpose(flipped(g, kernel, spatial), (1, 0, *spatial))
    extent = [(k - 1) * d for k, d in zip(sizes, p["rhs_dilation"], strict=True)]
    pairs = list(zip(p["padding"], extent, strict=True))
    ends = [e - high for (_, high), e in pairs]
    return g.node(
        "ConvTranspose", x, kernel,
        kernel_shape=list(sizes),
        strides=list(p["lhs_dilation"]),
        dilations=list(p["rhs_dilation"]),
        pads=[e - low for (low, _), e in pairs] + [max(n, 0) for n in ends],
        output_padding=[max(-n, 0) for n in ends],
    )  # fmt: skip
