"""Primitives that read or write at places that are computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from axonlike.io.onnx.graph import Graph, Value, is_bool, stored
from axonlike.io.onnx.shaping import cut, padded
from axonlike.io.onnx.table import NoCounterpartError, rule


class Where(NamedTuple):
    """Which axes of an array are looked up, and how its blocks lie in the other array.

    The array's axes come in the order `batch` (paired with those of the indices),
    `looked` (by which it is indexed), `rest`; those of a result in the order: the
    indices', then the window of each of `looked`, then `rest`.
    """

    batch: tuple[int, ...]
    looked: tuple[int, ...]
    rest: tuple[int, ...]
    sizes: tuple[Any, ...]
    """The window along each of `looked`."""


def _where(shape: Any, batch: Any, looked: Any, sizes: Any) -> Where:
    taken = (*batch, *looked)
    rest = tuple(axis for axis in range(len(shape)) if axis not in taken)
    return Where(
        tuple(batch), tuple(looked), rest, tuple(sizes[axis] for axis in looked)
    )


def _starts(g: Graph, indices: Value, axes: Sequence[int]) -> tuple[str, list[Any]]:
    """The indices as int64, their axes of the batch first, and their shape."""
    last = len(indices.shape) - 1
    others = [axis for axis in range(last) if axis not in axes]
    order = [*axes, *others, last]
    name = g.cast(indices, indices.dtype, np.int64)
    return g.transpose(name, order), [indices.shape[axis] for axis in order]


def _windows(g: Graph, start: str, shape: list[Any], where: Where) -> tuple[str, Any]:
    """An index for every place of each window, from that of its first place."""
    several = [i for i, size in enumerate(where.sizes) if str(size) != "1"]
    if not several:
        return start, shape
    *lead, depth = shape
    ones = [1] * len(where.sizes)
    name = g.reshape(start, shape, [*lead, *ones, depth])
    sizes = list(ones)
    for i in several:
        sizes[i] = where.sizes[i]
        steps = g.counted(where.sizes[i])
        along = [where.sizes[i] if j == i else 1 for j in range(len(ones))]
        steps = g.reshape(steps, [where.sizes[i]], [*along, 1])
        unit = np.eye(len(ones), dtype=np.int64)[i]
        name = g.node("Add", name, g.node("Mul", steps, unit))
    return name, [*lead, *sizes, depth]


def _bounds(g: Graph, shape: Any, where: Where) -> str:
    """The last place at which a window lies within the array."""
    return g.ints(
        [shape[axis] - n for axis, n in zip(where.looked, where.sizes, strict=True)]
    )


def _clipped(g: Graph, start: str, last: str) -> str:
    return g.node("Max", g.node("Min", start, last), np.int64(0))


def _inside(g: Graph, start: str, last: str, depth: int) -> str:
    """Whether each window lies within the array; the last axis is gone."""
    early = g.node("Less", start, np.int64(0))
    late = g.node("Greater", start, last)
    wrong = g.node("Or", early, late)
    if depth == 1:
        return g.node("Not", g.node("Squeeze", wrong, np.array([-1])))
    wrong = g.cast(wrong, bool, np.int32)
    found = g.node("ReduceMax", wrong, np.array([-1]), keepdims=0)
    return g.node("Equal", found, np.int32(0))


def _mode(params: Any) -> str:
    mode = params["mode"]
    return getattr(mode, "name", str(mode)).upper()


@rule("gather", exact=True)
def _gather(g: Graph, eqn: Any, x: Value, indices: Value) -> str:
    p, out = eqn.params, eqn.outvars[0].aval
    d, sizes = p["dimension_numbers"], p["slice_sizes"]
    batch = tuple(d.operand_batching_dims)
    where = _where(x.shape, batch, d.start_index_map, sizes)
    start, shape = _starts(g, indices, d.start_indices_batching_dims)
    last, before = _bounds(g, x.shape, where), start
    fill = _mode(p) == "FILL_OR_DROP" and not _surely(indices, x.shape, where)
    if fill or _mode(p) == "CLIP":
        start = _clipped(g, start, last)
    places, full = _windows(g, start, shape, where)
    order = (*where.batch, *where.looked, *where.rest)
    source = _cut_rest(g, x, where, sizes)
    rest = [sizes[axis] for axis in where.rest]
    if len(where.looked) == 1 and not batch:
        name = g.reshape(places, full, full[:-1])
        name = g.node("Gather", g.transpose(source, order), name, axis=0)
    else:
        source = g.transpose(source, order)
        name = g.node("GatherND", source, places, batch_dims=len(batch))
    gone = d.collapsed_slice_dims
    pairs = zip(where.looked, where.sizes, strict=True)
    windows = [(axis, n) for axis, n in pairs if axis not in gone]
    axes = [axis for axis, _ in windows] + list(where.rest)
    made = [*shape[:-1], *(n for _, n in windows), *rest]
    name = g.reshape(name, [*full[:-1], *rest], made)
    if fill:
        inside = _inside(g, before, last, len(where.looked))
        name = _filled(g, name, made, inside, shape[:-1], eqn)
    return g.transpose(name, _order(axes, d, indices, out))


def _surely(indices: Value, shape: Any, where: Where) -> bool:
    """Whether indices that are known lie within the array."""
    known = indices.known and all(isinstance(shape[i], int) for i in where.looked)
    if not known:
        return False
    ends = [shape[axis] - n for axis, n in zip(where.looked, where.sizes, strict=True)]
    places = np.asarray(indices.array)
    return bool(np.all(places >= 0) and np.all(places <= np.array(ends)))


def _cut_rest(g: Graph, x: Value, where: Where, sizes: Any) -> str:
    """The array, of the axes that are not looked up only the beginning that is taken."""
    stop = [sizes[i] if i in where.rest else n for i, n in enumerate(x.shape)]
    return cut(g, x, x.shape, [0] * len(stop), stop)


def _filled(g: Graph, name: str, shape: Any, inside: str, lead: Any, eqn: Any) -> str:
    """A number that means nothing, where a window does not lie within the array."""
    dtype = eqn.outvars[0].aval.dtype
    own, fill = stored(dtype), eqn.params["fill_value"]
    if fill is None:
        kind = np.dtype(dtype).kind
        fill = True if kind == "b" else np.iinfo(own).min if kind == "i" else np.nan
        fill = np.iinfo(own).max if kind == "u" else fill
    inside = g.reshape(inside, lead, [*lead, *(1,) * (len(shape) - len(lead))])
    wide = np.dtype(np.int32) if is_bool(own) else own
    value = np.asarray(fill).astype(wide)
    found = g.node("Where", inside, g.cast(name, own, wide), value)
    return g.cast(found, wide, own)


def _order(axes: list[int], d: Any, indices: Value, out: Any) -> tuple[int, ...]:
    """Where each axis of the result is now: those of the indices, and of each block."""
    lead, paired = len(indices.shape) - 1, list(d.start_indices_batching_dims)
    came = [*paired, *(axis for axis in range(lead) if axis not in paired)]
    of_indices = [came.index(axis) for axis in range(lead)]
    of_blocks = [lead + axes.index(axis) for axis in sorted(axes)]
    return tuple(
        of_blocks.pop(0) if axis in d.offset_dims else of_indices.pop(0)
        for axis in range(len(out.shape))
    )


# --- writing

_COMBINED = {
    "scatter": "none",
    "scatter-add": "add",
    "scatter-max": "max",
    "scatter-min": "min",
    "scatter-mul": "mul",
}


@rule(*_COMBINED)
def _scatter(g: Graph, eqn: Any, x: Value, indices: Value, updates: Value) -> str:
    """Blocks that do not lie within the array go to a place added at its end."""
    p = eqn.params
    d = p["dimension_numbers"]
    how = _COMBINED[eqn.primitive.name]
    if d.operand_batching_dims:
        raise NoCounterpartError("some axes of the indices are a batch")
    sizes = _window_sizes(x, updates, d)
    where = _where(x.shape, (), d.scatter_dims_to_operand_dims, sizes)
    if any(str(sizes[i]) != str(x.shape[i]) for i in where.rest):
        raise NoCounterpartError("it writes parts of axes without indices")
    own = stored(x.dtype)
    wide = np.dtype(np.int32) if own.kind in "bui" and own.itemsize < 4 else own
    start, shape = _starts(g, indices, ())
    last = _bounds(g, x.shape, where)
    order = (*where.looked, *where.rest)
    sized = [x.shape[axis] for axis in order]
    source = g.transpose(g.cast(x, own, wide), order)
    drop = _mode(p) != "CLIP" and not _surely(indices, x.shape, where)
    if _mode(p) == "CLIP":
        start = _clipped(g, start, last)
    elif drop:
        start, source = _aside(g, start, last, source, sized, where)
    places, full = _windows(g, start, shape, where)
    blocks = _blocks(g, updates, where, d, wide)
    rest = sized[len(where.looked) :]
    blocks = g.reshape(blocks, [*shape[:-1], *where.sizes, *rest], [*full[:-1], *rest])
    name = g.node("ScatterND", source, places, blocks, reduction=how)
    if drop:
        name = cut(g, name, [None] * len(sized), [0] * len(sized), sized)
    return g.cast(g.transpose(name, tuple(map(int, np.argsort(order)))), wide, own)


def _window_sizes(x: Value, updates: Value, d: Any) -> list[Any]:
    """The size of a block along each axis of the array."""
    sizes = [updates.shape[axis] for axis in d.update_window_dims]
    inserted = set(d.inserted_window_dims)
    return [1 if i in inserted else sizes.pop(0) for i in range(len(x.shape))]


def _aside(
    g: Graph, start: str, last: str, source: str, sized: Any, where: Where
) -> tuple[str, str]:
    """Indices and array such that what lies outside falls on places of its own."""
    inside = g.node(
        "Unsqueeze", _inside(g, start, last, len(where.looked)), np.array([-1])
    )
    end = g.ints(sized[: len(where.looked)])
    config = [(0, n, 0) for n in where.sizes] + [(0, 0, 0)] * len(where.rest)
    return g.node("Where", inside, start, end), padded(g, source, sized, config)


def _blocks(g: Graph, updates: Value, where: Where, d: Any, dtype: Any) -> str:
    """What is written, its axes in the order of `Where`."""
    windows, rank = list(d.update_window_dims), len(updates.shape)
    lead = [axis for axis in range(rank) if axis not in windows]
    kept = [
        axis
        for axis in range(len(where.looked) + len(where.rest))
        if axis not in d.inserted_window_dims
    ]
    of = dict(zip(kept, windows, strict=True))
    order = [of[axis] for axis in (*where.looked, *where.rest) if axis in of]
    name = g.cast(updates, stored(updates.dtype), dtype)
    name = g.transpose(name, (*lead, *order))
    shape = [updates.shape[axis] for axis in (*lead, *order)]
    target = [
        *(updates.shape[axis] for axis in lead),
        *where.sizes,
        *(updates.shape[of[axis]] for axis in where.rest),
    ]
    return g.reshape(name, shape, target)
