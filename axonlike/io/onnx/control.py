"""Primitives that run other programs: calls, choices and loops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from axonlike.io.onnx.graph import Graph, Value, is_bool, stored
from axonlike.io.onnx.shaping import flipped, stacked
from axonlike.io.onnx.table import rule

_INNER = "jaxpr", "call_jaxpr"


@rule("custom_jvp_call", "custom_vjp_call", "jit", "remat2", inline=True)
def _call(c: Any, g: Graph, eqn: Any, *inputs: Value) -> list[Value]:
    own = c.by_node(g, eqn, inputs)
    if own is not None:
        return own
    inner = next(eqn.params[name] for name in _INNER if name in eqn.params)
    return c.run(g, inner, inputs)


@rule("platform_index", lazy=True)
def _platform(g: Graph, eqn: Any) -> Value:
    """The formula for a platform that nothing is known of: the plainest."""
    platforms = eqn.params["platforms"]
    number = platforms.index(None) if None in platforms else len(platforms) - 1
    return Value("", (), np.dtype(np.int32), np.int32(number))


@rule("cond", inline=True)
def _cond(c: Any, g: Graph, eqn: Any, index: Value, *inputs: Value) -> list[Value]:
    branches = eqn.params["branches"]
    if index.known:
        number = min(max(int(index.array), 0), len(branches) - 1)
        return c.run(g, branches[number], inputs)
    number = g.cast(index, index.dtype, np.int32)
    names = _chosen(c, g, number, branches, inputs, [v.aval for v in eqn.outvars])
    return _values(names, eqn)


def _chosen(
    c: Any, g: Graph, number: str, branches: Any, inputs: Any, avals: Any
) -> list[str]:
    """The last branch, or one of those before it."""
    *others, last = branches
    if not others:
        made = c.run(g, last, inputs)
        return [
            g.ref(g.whole(v, aval.shape)) for v, aval in zip(made, avals, strict=True)
        ]
    graphs: list[Any] = []
    for some in ([last], others):
        inner = g.inner()
        names = _chosen(c, inner, number, some, inputs, avals)
        pairs = zip(names, avals, strict=True)
        outputs = [Value(name, aval.shape, aval.dtype) for name, aval in pairs]
        graphs.append(inner.closed([], outputs))
    test = g.node("Equal", number, np.int32(len(others)))
    return g.nodes_of(
        "If", len(avals), test, then_branch=graphs[0], else_branch=graphs[1]
    )


def _values(names: Sequence[str], eqn: Any) -> list[Value]:
    avals = [v.aval for v in eqn.outvars]
    return [
        Value(name, aval.shape, aval.dtype)
        for name, aval in zip(names, avals, strict=True)
    ]


# --- loops


@rule("scan", inline=True)
def _scan(c: Any, g: Graph, eqn: Any, *inputs: Value) -> list[Value]:
    p = eqn.params
    first, many = _parts(p)
    second = first + many
    consts, carry, xs = inputs[:first], inputs[first:second], inputs[second:]
    if isinstance(p["length"], int) and _are_copies(xs):
        return _unrolled(c, g, eqn, consts, carry, xs)
    avals = [v.aval for v in p["jaxpr"].jaxpr.invars[first:]]
    carry = [g.whole(v, a.shape) for v, a in zip(carry, avals, strict=False)]
    if not xs:
        return _counted(c, g, eqn, consts, carry)
    outer = [v.aval for v in eqn.invars[second:]]
    xs = [g.whole(v, a.shape) for v, a in zip(xs, outer, strict=True)]
    inner = g.inner()
    state = [_fresh(inner, "carry", aval) for aval in avals[:many]]
    each = [_fresh(inner, "each", aval) for aval in avals[many:]]
    made = _full(c, inner, p["jaxpr"], [*consts, *state, *each])
    infos = [_info(inner, v) for v in (*state, *each)]
    how: dict[str, Any] = {"num_scan_inputs": len(xs)}
    if p["reverse"]:
        how["scan_input_directions"] = [1] * len(xs)
    if p["reverse"] and len(made) > many:
        how["scan_output_directions"] = [1] * (len(made) - many)
    body = inner.closed(infos, made)
    names = g.nodes_of("Scan", len(made), *carry, *xs, body=body, **how)
    return _values(names, eqn)


def _parts(params: Any) -> tuple[int, int]:
    """How many constants and carries a scan has; JAX 0.12 says so by trees."""
    if "ft_in" in params:
        consts, carry, _ = params["ft_in"].unpack()
        return len(list(consts)), len(list(carry))
    return params["num_consts"], params["num_carry"]


def _are_copies(xs: Sequence[Value]) -> bool:
    """Whether each pass is of a layer's own copy: its params are the steps."""
    return any("*" in x.path.split("/") for x in xs)


def _unrolled(
    c: Any, g: Graph, eqn: Any, consts: Any, carry: Any, xs: Sequence[Value]
) -> list[Value]:
    """Copy after copy, params under their own paths."""
    p, scope, many = eqn.params, g.scope, len(carry)
    length = p["length"]
    numbers = range(length)
    ys: list[Any] = [None] * length
    outer = [v.aval.shape for v in eqn.invars[len(eqn.invars) - len(xs) :]]
    for i in reversed(numbers) if p["reverse"] else numbers:
        each = [_copy(g, x, shape, i) for x, shape in zip(xs, outer, strict=True)]
        g.scope = f"{scope}/{i}" if scope else str(i)
        made = c.run(g, p["jaxpr"], [*consts, *carry, *each])
        carry, ys[i] = made[:many], _full_values(g, made[many:], eqn)
        g.scope = scope
    last = [stacked(g, [y[k] for y in ys], 0) for k in range(len(eqn.outvars) - many)]
    avals = [v.aval for v in eqn.outvars[many:]]
    pairs = zip(last, avals, strict=True)
    return [*carry, *(Value(name, a.shape, a.dtype) for name, a in pairs)]


def _full_values(g: Graph, ys: Sequence[Value], eqn: Any) -> list[Value]:
    avals = [v.aval for v in eqn.outvars[len(eqn.outvars) - len(ys) :]]
    return [g.whole(y, aval.shape[1:]) for y, aval in zip(ys, avals, strict=True)]


def _copy(g: Graph, x: Value, shape: Any, i: int) -> Value:
    """What one pass takes of an array; a param's copy has a path of its own."""
    if "*" in x.path.split("/"):
        steps = x.path.split("/")
        steps[steps.index("*")] = str(i)
        return Value("", x.shape[1:], x.dtype, x.array[i], "/".join(steps))
    if x.known:
        return Value("", tuple(shape[1:]), x.dtype, np.broadcast_to(x.array, shape)[i])
    return Value(g.node("Gather", x, np.int64(i), axis=0), x.shape[1:], x.dtype)


def _counted(c: Any, g: Graph, eqn: Any, consts: Any, carry: Any) -> list[Value]:
    """A loop of so many passes, over nothing."""
    p = eqn.params
    inner, count = g.inner(), g.reshape(g.ints([p["length"]]), (1,), ())
    avals = [v.aval for v in p["jaxpr"].jaxpr.invars[len(consts) :]]
    state = [_fresh(inner, "carry", aval) for aval in avals]
    made = _full(c, inner, p["jaxpr"], [*consts, *state])
    names = _loop(g, inner, count, None, state, carry, made, _true())
    many = len(carry)
    if p["reverse"]:
        names[many:] = [flipped(g, name, [0]) for name in names[many:]]
    return _values(names, eqn)


@rule("while", inline=True)
def _while(c: Any, g: Graph, eqn: Any, *inputs: Value) -> list[Value]:
    p = eqn.params
    tested, many = p["cond_nconsts"], p["body_nconsts"]
    of_test, of_body = inputs[:tested], inputs[tested : tested + many]
    carry = inputs[tested + many :]
    avals = [v.aval for v in eqn.outvars]
    carry = [g.whole(v, aval.shape) for v, aval in zip(carry, avals, strict=True)]
    (begin,) = _full(c, g, p["cond_jaxpr"], [*of_test, *carry])
    inner = g.inner()
    state = [_fresh(inner, "carry", aval) for aval in avals]
    made = _full(c, inner, p["body_jaxpr"], [*of_body, *state])
    if begin.shape:  # a batch of loops: those that have ended stay as they are
        (goes_on,) = _full(c, inner, p["cond_jaxpr"], [*of_test, *state])
        pairs = zip(made, state, strict=True)
        made = [_kept(inner, goes_on, new, old) for new, old in pairs]
    (again,) = _full(c, inner, p["cond_jaxpr"], [*of_test, *made])
    begin, again = _any(g, begin), _any(inner, again)
    return _values(_loop(g, inner, None, begin, state, carry, made, again), eqn)


def _any(g: Graph, test: Value) -> Value:
    """Whether one loop of a batch goes on."""
    if not test.shape:
        return test
    number = g.node("ReduceMax", g.cast(test, bool, np.int32), keepdims=0)
    return Value(g.cast(number, np.int32, bool), (), np.dtype(bool))


def _kept(g: Graph, test: Value, new: Value, old: Value) -> Value:
    """The new numbers of the loops that go on."""
    own = stored(new.dtype)
    wide = np.dtype(np.int32) if is_bool(own) else own
    ones = (1,) * (len(new.shape) - len(test.shape))
    which = g.reshape(test, test.shape, (*test.shape, *ones))
    name = g.node("Where", which, g.cast(new, own, wide), g.cast(old, own, wide))
    return Value(g.cast(name, wide, own), new.shape, new.dtype)


def _loop(
    g: Graph, inner: Graph, count: Any, begin: Any,
    state: Any, carry: Any, made: Any, again: Any,
) -> list[str]:  # fmt: skip
    """A `Loop`, whose body also gets its pass's number and whether it goes on."""
    number, on = inner.unique("pass"), inner.unique("on")
    infos = [inner.info(number, np.int64, ()), inner.info(on, bool, ())]
    infos += [_info(inner, v) for v in state]
    body = inner.closed(infos, [again, *made])
    return g.nodes_of("Loop", len(made), count, begin, *carry, body=body)


def _true() -> Value:
    return Value("", (), np.dtype(bool), np.bool_(True))


def _fresh(g: Graph, name: str, aval: Any) -> Value:
    return Value(g.unique(name), aval.shape, aval.dtype)


def _info(g: Graph, value: Value) -> Any:
    return g.info(value.name, stored(value.dtype), value.shape)


def _full(c: Any, g: Graph, jaxpr: Any, inputs: Any) -> list[Value]:
    """What a body makes, every axis of full size."""
    made, avals = c.run(g, jaxpr, inputs), [v.aval for v in jaxpr.jaxpr.outvars]
    return [g.whole(v, aval.shape) for v, aval in zip(made, avals, strict=True)]
