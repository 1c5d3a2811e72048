"""Primitives that move numbers, and those that count."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from axonlike.io.onnx.graph import Graph, Value, is_bool, is_one, stored
from axonlike.io.onnx.table import NoCounterpartError, rule
from axonlike.spec import is_unknown

_LOWEST = np.iinfo(np.int64).min


@rule("dim_as_value", lazy=True)
def _dim_as_value(g: Graph, eqn: Any) -> Value:
    dtype = eqn.outvars[0].aval.dtype
    size = g.reshape(g.sizes.vector(eqn.params["dim"]), (1,), ())
    return Value(g.cast(size, np.int64, dtype), (), dtype)


@rule("iota", lazy=True)
def _iota(g: Graph, eqn: Any) -> Value:
    shape, axis = eqn.params["shape"], eqn.params["dimension"]
    dtype, size = np.dtype(eqn.params["dtype"]), shape[axis]
    along = tuple(size if i == axis else 1 for i in range(len(shape)))
    if not is_unknown(size):
        return Value("", along, dtype, np.arange(size, dtype=dtype).reshape(along))
    name = g.cast(g.counted(size), np.int64, stored(dtype))
    return Value(g.reshape(name, (size,), along), along, dtype)


@rule("broadcast_in_dim", lazy=True, exact=True)
def _broadcast(g: Graph, eqn: Any, x: Value, *_: Value) -> Value:
    """Adds axes of 1: what takes the array repeats it, if it has to be repeated."""
    shape, axes = eqn.params["shape"], eqn.params["broadcast_dimensions"]
    sizes: list[Any] = [1] * len(shape)
    for axis, size in zip(axes, x.shape, strict=True):
        sizes[axis] = size
    return _shaped(g, x, tuple(sizes))


def _shaped(g: Graph, x: Value, shape: tuple[Any, ...]) -> Value:
    """The same numbers in a shape of other axes of 1."""
    if x.known:
        return x._replace(name="", shape=shape, array=np.reshape(x.array, shape))
    name = g.reshape(x, x.shape, shape)
    return Value(name, shape, x.dtype)


@rule("reshape", lazy=True, exact=True)
def _reshape(g: Graph, eqn: Any, x: Value, *_: Value) -> Value:
    shape, before = tuple(eqn.params["new_sizes"]), eqn.invars[0].aval.shape
    if all(map(is_one, x.shape)):  # one number, to be repeated
        return _shaped(g, x, (1,) * len(shape))
    if eqn.params.get("dimensions") is not None:
        raise NoCounterpartError("it turns axes too")
    x = g.whole(x, before)
    if x.known and not any(map(is_unknown, shape)):
        return _shaped(g, x, shape)
    return Value(g.reshape(x, before, shape), shape, x.dtype)


@rule("squeeze", lazy=True, exact=True)
def _squeeze(g: Graph, eqn: Any, x: Value) -> Value:
    axes = {axis % len(x.shape) for axis in eqn.params["dimensions"]}
    sizes = tuple(n for axis, n in enumerate(x.shape) if axis not in axes)
    return _shaped(g, x, sizes)


@rule("transpose", lazy=True, exact=True)
def _transpose(g: Graph, eqn: Any, x: Value) -> Value:
    axes = eqn.params["permutation"]
    shape = tuple(x.shape[axis] for axis in axes)
    return Value(g.transpose(x, axes), shape, x.dtype)


@rule("rev", exact=True)
def _rev(g: Graph, eqn: Any, x: Value) -> str:
    axes = eqn.params["dimensions"]
    return flipped(g, x, axes)


def flipped(g: Graph, x: Any, axes: Sequence[int]) -> str:
    """The array from its end to its start along some axes."""
    if not axes:
        return g.ref(x)
    many = len(axes)
    ends = [-1] * many, [_LOWEST] * many, list(axes), [-1] * many
    return g.node("Slice", x, *map(_numbers, ends))


def _numbers(values: Any) -> Any:
    return np.array(values, np.int64)


@rule("concatenate", exact=True)
def _concatenate(g: Graph, eqn: Any, *inputs: Value) -> str:
    return g.node("Concat", *inputs, axis=eqn.params["dimension"])


@rule("stack", exact=True)
def _stack(g: Graph, eqn: Any, *inputs: Value) -> str:
    axis = eqn.params["axis"]
    return stacked(g, inputs, axis)


def stacked(g: Graph, inputs: Sequence[Any], axis: int) -> str:
    """Arrays side by side along a new axis."""
    parts = [g.node("Unsqueeze", x, _numbers([axis])) for x in inputs]
    return g.node("Concat", *parts, axis=axis)


@rule("tile", exact=True)
def _tile(g: Graph, eqn: Any, x: Value) -> str:
    return g.node("Tile", x, g.ints(eqn.params["reps"]))


@rule("split", exact=True)
def _split(g: Graph, eqn: Any, x: Value) -> list[str]:
    sizes = eqn.params["sizes"]
    return g.nodes_of("Split", len(sizes), x, g.ints(sizes), axis=eqn.params["axis"])


@rule("slice", exact=True)
def _slice(g: Graph, eqn: Any, x: Value) -> str:
    p = eqn.params
    strides = p["strides"] or (1,) * len(x.shape)
    return cut(g, x, x.shape, p["start_indices"], p["limit_indices"], strides)


def cut(
    g: Graph, x: Any, shape: Any, start: Any, stop: Any, strides: Any = None
) -> str:
    """A slice; nothing where it is the whole array."""
    steps = strides or (1,) * len(shape)
    axes = [
        axis
        for axis, size in enumerate(shape)
        if not _is_all(size, start[axis], stop[axis], steps[axis])
    ]
    if not axes:
        return g.ref(x)
    ends = [g.ints([each[axis] for axis in axes]) for each in (start, stop)]
    return g.node("Slice", x, *ends, _numbers(axes), g.ints([steps[i] for i in axes]))


def _is_all(size: Any, start: Any, stop: Any, step: Any) -> bool:
    return str(start) == "0" and str(stop) == str(size) and str(step) == "1"


@rule("pad", exact=True)
def _pad(g: Graph, eqn: Any, x: Value, value: Value) -> str:
    return padded(g, x, x.shape, eqn.params["padding_config"], value)


def padded(g: Graph, x: Any, shape: Any, config: Any, value: Any = None) -> str:
    """Zeros, or another number, around the axes of an array and in between."""
    name, sizes = g.ref(x), list(shape)
    for axis, (_, _, hole) in enumerate(config):
        if hole:
            name = _holes(g, name, sizes, axis, hole, value)
            sizes[axis] = (sizes[axis] - 1) * (hole + 1) + 1
    pads = [(low, high) for low, high, _ in config]
    if all(str(n) == "0" for pair in pads for n in pair):
        return name
    ends = g.ints([low for low, _ in pads] + [high for _, high in pads])
    return g.node("Pad", name, ends, value)


def _holes(g: Graph, name: str, sizes: Any, axis: int, hole: int, value: Any) -> str:
    """Some numbers after each along an axis, but for the last: pads an axis of 1."""
    apart = [*sizes[: axis + 1], 1, *sizes[axis + 1 :]]
    name = g.reshape(name, sizes, apart)
    pads = np.zeros((2, len(apart)), np.int64)
    pads[1, axis + 1] = hole
    name = g.node("Pad", name, pads.reshape(-1), value)
    apart[axis + 1] = hole + 1
    merged = [*sizes[:axis], sizes[axis] * (hole + 1), *sizes[axis + 1 :]]
    name = g.reshape(name, apart, merged)
    last = _numbers([-hole])
    return g.node("Slice", name, _numbers([0]), last, _numbers([axis]))


@rule("dynamic_slice", exact=True)
def _dynamic_slice(g: Graph, eqn: Any, x: Value, *starts: Value) -> str:
    sizes = eqn.params["slice_sizes"]
    start = placed(g, starts, x.shape, sizes)
    stop = g.node("Add", start, g.ints(sizes))
    return g.node("Slice", x, start, stop, _numbers(range(len(sizes))))


def placed(g: Graph, starts: Sequence[Value], shape: Any, sizes: Any) -> str:
    """Where a block begins, so that it lies within an array."""
    if not starts:
        return g.constant(np.zeros(0, np.int64))
    parts = [g.reshape(g.cast(x, x.dtype, np.int64), (), (1,)) for x in starts]
    at = g.node("Concat", *parts, axis=0)
    room = g.ints([n - size for n, size in zip(shape, sizes, strict=True)])
    return g.node("Max", g.node("Min", at, room), np.int64(0))


@rule("dynamic_update_slice", exact=True)
def _dynamic_update_slice(
    g: Graph, eqn: Any, x: Value, update: Value, *starts: Value
) -> str:
    """The block, padded to the array's size, wherever the block is."""
    if not starts:
        return g.ref(update)
    start = placed(g, starts, x.shape, update.shape)
    after = g.node("Sub", g.ints(x.shape), g.node("Add", start, g.ints(update.shape)))
    pads = g.node("Concat", start, after, axis=0)
    inside = np.ones((1,) * len(x.shape), np.int32)
    ones = g.node("Expand", inside, g.ints(update.shape))
    here = g.cast(g.node("Pad", ones, pads), np.int32, bool)
    own = stored(x.dtype)
    wide = np.dtype(np.int32) if is_bool(own) else own
    block = g.node("Pad", g.cast(update, own, wide), pads)
    return g.cast(g.node("Where", here, block, g.cast(x, own, wide)), wide, own)
