"""Primitives that reduce windows."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from axonlike.io.onnx.graph import Graph, Value, stored
from axonlike.io.onnx.products import convolved
from axonlike.io.onnx.shaping import padded
from axonlike.io.onnx.table import NoCounterpartError, rule
from axonlike.spec import is_unknown

_OPTIONS = {
    "window_dimensions": "sizes",
    "window_strides": "window_strides",
    "padding": "padding",
    "base_dilation": "lhs_dilation",
    "window_dilation": "rhs_dilation",
}
"""The options of a window, and what those of a convolution are called."""


@rule("reduce_window_max", exact=True)
def _window_max(g: Graph, eqn: Any, x: Value) -> str:
    return _windowed(g, eqn, x, _most)


@rule("reduce_window_min", exact=True)
def _window_min(g: Graph, eqn: Any, x: Value) -> str:
    def least(g: Graph, x: str, shape: Any, p: Any) -> str:
        return g.node("Neg", _most(g, g.node("Neg", x), shape, p))

    return _windowed(g, eqn, x, least)


@rule("reduce_window_sum")
def _window_sum(g: Graph, eqn: Any, x: Value) -> str:
    return _windowed(g, eqn, x, _sum)


def _most(g: Graph, x: str, shape: Any, p: Any) -> str:
    if any(n > 1 for n in p["lhs_dilation"]):
        raise NoCounterpartError("its input has holes")
    pads = list(p["padding"])
    if any(is_unknown(n) for pair in pads for n in pair):
        config = [(0, 0, 0)] * 2 + [(low, high, 0) for low, high in pads]
        x = padded(g, x, shape, config, np.float32(-np.inf))
        pads = [(0, 0)] * len(pads)
    return g.node(
        "MaxPool", x,
        kernel_shape=list(p["sizes"]),
        strides=list(p["window_strides"]),
        pads=[low for low, _ in pads] + [high for _, high in pads],
        dilations=list(p["rhs_dilation"]),
    )  # fmt: skip


def _sum(g: Graph, x: str, shape: Any, p: Any) -> str:
    ones = np.ones((1, 1, *p["sizes"]), np.float32)
    return convolved(g, x, g.constant(ones), shape, p["sizes"], p)


def _windowed(g: Graph, eqn: Any, x: Value, reduced: Any) -> str:
    """With the axes of windows last, as an image of one channel."""
    p, own = eqn.params, stored(x.dtype)
    each = list(zip(*(p[name] for name in _OPTIONS), strict=True))
    spatial = [i for i, one in enumerate(each) if one != (1, 1, (0, 0), 1, 1)]
    others = [i for i in range(len(each)) if i not in spatial]
    columns = zip(*(each[i] for i in spatial), strict=True)
    options = dict(zip(_OPTIONS.values(), columns, strict=True)) | {
        "feature_group_count": 1
    }
    if not spatial:
        return g.ref(x)
    if len(spatial) > 3:
        raise NoCounterpartError(
            f"its windows have {len(spatial)} axes, where ONNX has 3 at most"
        )
    out, axes = eqn.outvars[0].aval.shape, (*others, *spatial)
    wide = own if own.kind == "f" else np.dtype(np.float32)
    name = g.transpose(g.cast(x, own, wide), axes)
    before, after = [x.shape[i] for i in axes], [out[i] for i in axes]
    flat = [math.prod(before[: len(others)]), 1, *before[len(others) :]]
    name = reduced(g, g.reshape(name, before, flat), flat, options)
    name = g.reshape(name, [flat[0], 1, *after[len(others) :]], after)
    return g.cast(g.transpose(name, tuple(map(int, np.argsort(axes)))), wide, own)
