"""Primitives that go along axes: sums, extremes, running sums, orders."""

from __future__ import annotations

from typing import Any

import numpy as np

from axonlike.io.onnx.graph import Graph, Value, stored
from axonlike.io.onnx.table import NoCounterpartError, rule

_SMALL = ("int8", "int16", "uint8", "uint16", "bool")


def _counted(g: Graph, x: Value) -> tuple[str, Any]:
    """The array in a dtype that runtimes reduce."""
    own = stored(x.dtype)
    wide = np.dtype(np.int32) if own.name in _SMALL else own
    return g.cast(x, own, wide), wide


def _reduction(primitive: str, op: str, *, exact: bool = False) -> None:
    @rule(primitive, exact=exact)
    def made(g: Graph, eqn: Any, x: Value) -> str:
        axes, out = eqn.params["axes"], stored(eqn.outvars[0].aval.dtype)
        if not axes:
            return g.ref(x)
        name, wide = _counted(g, x)
        name = g.node(op, name, np.array(axes, np.int64), keepdims=0)
        return g.cast(name, wide, out)

    del made


_reduction("reduce_sum", "ReduceSum")
_reduction("reduce_prod", "ReduceProd")
_reduction("reduce_max", "ReduceMax", exact=True)
_reduction("reduce_min", "ReduceMin", exact=True)
_reduction("reduce_or", "ReduceMax", exact=True)
_reduction("reduce_and", "ReduceMin", exact=True)


def _argument(primitive: str, op: str) -> None:
    @rule(primitive)
    def made(g: Graph, eqn: Any, x: Value) -> str:
        (axis,) = eqn.params["axes"]
        name, _ = _counted(g, x)
        found = g.node(op, name, axis=axis, keepdims=0)
        return g.cast(found, np.int64, eqn.params["index_dtype"])

    del made


_argument("argmax", "ArgMax")
_argument("argmin", "ArgMin")


@rule("cumsum")
def _cumsum(g: Graph, eqn: Any, x: Value) -> str:
    name, wide = _counted(g, x)
    axis, back = np.int64(eqn.params["axis"]), int(eqn.params["reverse"])
    return g.cast(g.node("CumSum", name, axis, reverse=back), wide, stored(x.dtype))


_STEPS = {"cummax": "Max", "cummin": "Min", "cumprod": "Mul"}


def _running(primitive: str, start: Any, *, exact: bool = False) -> None:
    """A running reduction, by a loop over the axis."""

    @rule(primitive, exact=exact)
    def made(g: Graph, eqn: Any, x: Value) -> str:
        axis, back = eqn.params["axis"], int(eqn.params["reverse"])
        name, wide = _counted(g, x)
        rest = [n for i, n in enumerate(x.shape) if i != axis]
        first = np.full((1,) * len(rest), start(wide), wide)
        first = g.whole(Value("", first.shape, wide, first), rest)
        body = g.inner()
        carry, each = body.unique("carry"), body.unique("each")
        new = Value(_step(body, primitive, carry, each, wide), tuple(rest), wide)
        infos = [body.info(n, wide, rest) for n in (carry, each)]
        found = g.nodes_of(
            "Scan", 2, first, name,
            body=body.closed(infos, [new, new]), num_scan_inputs=1,
            scan_input_axes=[axis], scan_output_axes=[axis],
            scan_input_directions=[back], scan_output_directions=[back],
        )  # fmt: skip
        return g.cast(found[1], wide, stored(x.dtype))

    del made


def _step(g: Graph, primitive: str, a: str, b: str, dtype: Any) -> str:
    if primitive in _STEPS:
        return g.node(_STEPS[primitive], a, b)
    most, least = g.node("Max", a, b), g.node("Min", a, b)
    ratio = g.node("Exp", g.node("Sub", least, most))
    return g.node("Add", most, g.node("Log", g.node("Add", ratio, np.ones((), dtype))))


def lowest(dtype: Any) -> Any:
    """The smallest number of a dtype."""
    return np.finfo(dtype).min if dtype.kind == "f" else np.iinfo(dtype).min


def _one(dtype: Any) -> Any:
    return np.ones((), dtype)


def _highest(dtype: Any) -> Any:
    return np.finfo(dtype).max if dtype.kind == "f" else np.iinfo(dtype).max


_running("cummax", lowest, exact=True)
_running("cummin", _highest, exact=True)
_running("cumprod", _one)
_running("cumlogsumexp", lowest)


@rule("sort", exact=True)
def _sort(g: Graph, eqn: Any, *inputs: Value) -> list[str]:
    """By the first array; the others follow it."""
    axis, keys = eqn.params["dimension"], eqn.params["num_keys"]
    if keys != 1:
        raise NoCounterpartError(f"it is by {keys} arrays, where ONNX sorts by one")
    name, wide = _counted(g, inputs[0])
    size = g.ints([inputs[0].shape[axis]])
    found, order = g.nodes_of("TopK", 2, name, size, axis=axis, largest=0)
    rest = [g.node("GatherElements", x, order, axis=axis) for x in inputs[1:]]
    return [g.cast(found, wide, stored(inputs[0].dtype)), *rest]


@rule("top_k", exact=True)
def _top_k(g: Graph, eqn: Any, x: Value) -> list[str]:
    axis = eqn.params.get("axis", len(x.shape) - 1)
    size, (name, wide) = g.ints([eqn.params["k"]]), _counted(g, x)
    found, order = g.nodes_of("TopK", 2, name, size, axis=axis)
    kind = eqn.outvars[1].aval.dtype
    return [g.cast(found, wide, stored(x.dtype)), g.cast(order, np.int64, kind)]
