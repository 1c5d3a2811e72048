"""Primitives that go element by element."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import jax.numpy as jnp
import numpy as np

from axonlike.io.onnx.graph import Graph, Value, is_bool, joined, stored
from axonlike.io.onnx.table import NoCounterpartError, rule

Build = Callable[..., str]

# What runtimes have no arithmetic for, and the dtype in which it is done.
_WIDER = {
    "int8": "int32",
    "int16": "int32",
    "uint8": "int32",
    "uint16": "int32",
    "uint32": "int64",
    "uint64": "int64",
}


def _elementwise(*primitives: str, exact: bool = False) -> Callable[[Any], Any]:
    """Enters `build(graph, equation, *names)`, which makes a node's output."""

    def enter(build: Build) -> Build:
        def made(g: Graph, eqn: Any, *inputs: Value) -> Value:
            out = eqn.outvars[0].aval.dtype
            names = [_widened(g, x) for x in _led(g, inputs)]
            name = build(g, eqn, *names)
            wide, own = _wide(inputs[0].dtype), stored(out)
            shape = joined(*(x.shape for x in inputs))
            return Value(g.cast(name, own if is_bool(own) else wide, own), shape, out)

        rule(*primitives, lazy=True, exact=exact)(made)
        return build

    return enter


def _led(g: Graph, inputs: tuple[Value, ...]) -> list[Value]:
    """Without axes of 1 in front, which nodes add by themselves, where one has them all."""
    led = g.file.led
    if all(x.name in led or not x.shape for x in inputs):
        return list(inputs)
    return [x._replace(name=led.get(x.name, x.name)) for x in inputs]


def _wide(dtype: Any) -> Any:
    return np.dtype(_WIDER.get(np.dtype(dtype).name, stored(dtype)))


def _widened(g: Graph, x: Value) -> str:
    return g.cast(x, stored(x.dtype), _wide(x.dtype))


def _number(eqn: Any, value: Any) -> Any:
    """A number of the dtype that the first input is computed in."""
    return np.asarray(value, _wide(eqn.invars[0].aval.dtype))


# --- one node for one primitive

_UNARY = {
    "abs": "Abs",
    "acos": "Acos",
    "acosh": "Acosh",
    "asin": "Asin",
    "asinh": "Asinh",
    "atan": "Atan",
    "atanh": "Atanh",
    "ceil": "Ceil",
    "cos": "Cos",
    "cosh": "Cosh",
    "erf": "Erf",
    "exp": "Exp",
    "floor": "Floor",
    "log": "Log",
    "logistic": "Sigmoid",
    "neg": "Neg",
    "sign": "Sign",
    "sin": "Sin",
    "sinh": "Sinh",
    "sqrt": "Sqrt",
    "tan": "Tan",
    "tanh": "Tanh",
}
_BINARY = {"add": "Add", "add_any": "Add", "div": "Div", "mul": "Mul", "sub": "Sub"}
_COMPARED = {"ge": "GreaterOrEqual", "gt": "Greater", "le": "LessOrEqual", "lt": "Less"}
_LOGIC = {"and": "And", "or": "Or", "xor": "Xor"}
_EXACT = {"abs", "neg", "sign", "ceil", "floor"}


def _one_node(primitive: str, op: str, *, exact: bool = False) -> None:
    @_elementwise(primitive, exact=exact)
    def made(g: Graph, eqn: Any, *names: str) -> str:
        del eqn
        return g.node(op, *names)

    del made


for _primitive, _op in {**_UNARY, **_BINARY}.items():
    _one_node(_primitive, _op, exact=_primitive in _EXACT)


def _compared(primitive: str, op: str) -> None:
    @_elementwise(primitive)
    def made(g: Graph, eqn: Any, *names: str) -> str:
        if is_bool(eqn.invars[0].aval.dtype):
            names = tuple(g.cast(name, bool, np.int32) for name in names)
        return g.node(op, *names)

    del made


for _primitive, _op in _COMPARED.items():
    _compared(_primitive, _op)


def _logical(primitive: str, op: str) -> None:
    @_elementwise(primitive)
    def made(g: Graph, eqn: Any, *names: str) -> str:
        plain = is_bool(eqn.invars[0].aval.dtype)
        return g.node(op if plain else f"Bitwise{op}", *names)

    del made


for _primitive, _op in _LOGIC.items():
    _logical(_primitive, _op)


@_elementwise("not")
def _not(g: Graph, eqn: Any, x: str) -> str:
    return g.node("Not" if is_bool(eqn.invars[0].aval.dtype) else "BitwiseNot", x)


@_elementwise("eq")
def _eq(g: Graph, eqn: Any, a: str, b: str) -> str:
    return g.node("Equal", a, b)


@_elementwise("ne")
def _ne(g: Graph, eqn: Any, a: str, b: str) -> str:
    return g.node("Not", g.node("Equal", a, b))


@_elementwise("max", exact=True)
def _max(g: Graph, eqn: Any, a: str, b: str) -> str:
    return g.node("Or" if is_bool(eqn.invars[0].aval.dtype) else "Max", a, b)


@_elementwise("min", exact=True)
def _min(g: Graph, eqn: Any, a: str, b: str) -> str:
    return g.node("And" if is_bool(eqn.invars[0].aval.dtype) else "Min", a, b)


# --- several nodes


@_elementwise("square")
def _square(g: Graph, eqn: Any, x: str) -> str:
    return g.node("Mul", x, x)


@_elementwise("rsqrt")
def _rsqrt(g: Graph, eqn: Any, x: str) -> str:
    return g.node("Reciprocal", g.node("Sqrt", x))


@_elementwise("cbrt")
def _cbrt(g: Graph, eqn: Any, x: str) -> str:
    root = g.node("Pow", g.node("Abs", x), _number(eqn, 1 / 3))
    return g.node("Mul", g.node("Sign", x), root)


@_elementwise("exp2")
def _exp2(g: Graph, eqn: Any, x: str) -> str:
    return g.node("Pow", _number(eqn, 2), x)


@_elementwise("expm1")
def _expm1(g: Graph, eqn: Any, x: str) -> str:
    """`tanh(x / 2) * (exp(x) + 1)`, which is exact around 0."""
    half = g.node("Tanh", g.node("Mul", x, _number(eqn, 0.5)))
    return g.node("Mul", half, g.node("Add", g.node("Exp", x), _number(eqn, 1)))


@_elementwise("log1p")
def _log1p(g: Graph, eqn: Any, x: str) -> str:
    """Around 0 `2 * atanh(x / (2 + x))`, which is exact there."""
    two = _number(eqn, 2)
    near = g.node("Atanh", g.node("Div", x, g.node("Add", x, two)))
    far = g.node("Log", g.node("Add", x, _number(eqn, 1)))
    small = g.node("Less", g.node("Abs", x), _number(eqn, 0.5))
    return g.node("Where", small, g.node("Mul", near, two), far)


@_elementwise("erfc")
def _erfc(g: Graph, eqn: Any, x: str) -> str:
    return g.node("Sub", _number(eqn, 1), g.node("Erf", x))


@_elementwise("integer_pow")
def _integer_pow(g: Graph, eqn: Any, x: str) -> str:
    power = eqn.params["y"]
    if 1 <= power <= 4:
        return reduce(lambda y, _: g.node("Mul", y, x), range(power - 1), x)
    if power == -1:
        return g.node("Reciprocal", x)
    return g.node("Pow", x, _number(eqn, power))


@_elementwise("pow")
def _pow(g: Graph, eqn: Any, x: str, y: str) -> str:
    return g.node("Pow", x, y)


@_elementwise("rem")
def _rem(g: Graph, eqn: Any, a: str, b: str) -> str:
    return g.node("Mod", a, b, fmod=1)


@_elementwise("shift_left")
def _shift_left(g: Graph, eqn: Any, x: str, bits: str) -> str:
    return g.node("Mul", x, _power_of_two(g, eqn, bits))


@_elementwise("shift_right_arithmetic")
def _shift_right(g: Graph, eqn: Any, x: str, bits: str) -> str:
    """The quotient, rounded down."""
    power = _power_of_two(g, eqn, bits)
    return g.node("Div", g.node("Sub", x, g.node("Mod", x, power)), power)


@_elementwise("shift_right_logical")
def _shift_right_logical(g: Graph, eqn: Any, x: str, bits: str) -> str:
    if eqn.invars[0].aval.dtype.kind != "u":
        raise NoCounterpartError("its numbers have a sign")
    return g.node("Div", x, _power_of_two(g, eqn, bits))


def _power_of_two(g: Graph, eqn: Any, bits: str) -> str:
    return g.node("Pow", _number(eqn, 2), bits)


@_elementwise("atan2")
def _atan2(g: Graph, eqn: Any, y: str, x: str) -> str:
    """The angle in the right half plane, and half a turn more in the left one."""
    zero, pi = _number(eqn, 0), _number(eqn, np.pi)
    quarter, above = _number(eqn, np.pi / 2), g.node("GreaterOrEqual", y, zero)
    turn = g.node("Where", above, pi, -pi)
    angle = g.node("Atan", g.node("Div", y, x))
    left = g.node("Where", g.node("Less", x, zero), g.node("Add", angle, turn), angle)
    up = g.node("Mul", g.node("Sign", y), quarter)
    return g.node("Where", g.node("Equal", x, zero), up, left)


@_elementwise("round", exact=True)
def _round(g: Graph, eqn: Any, x: str) -> str:
    """Halves to even numbers, or away from zero."""
    if int(eqn.params["rounding_method"]) == 1:
        return g.node("Round", x)
    up = g.node("Floor", g.node("Add", g.node("Abs", x), _number(eqn, 0.5)))
    return g.node("Mul", g.node("Sign", x), up)


@_elementwise("is_finite")
def _is_finite(g: Graph, eqn: Any, x: str) -> str:
    wrong = g.node("Or", g.node("IsInf", x), g.node("IsNaN", x))
    return g.node("Not", wrong)


@_elementwise("clamp", exact=True)
def _clamp(g: Graph, eqn: Any, low: str, x: str, high: str) -> str:
    return g.node("Min", g.node("Max", x, low), high)


# --- dtypes and choices


@rule("convert_element_type", lazy=True)
def _convert(g: Graph, eqn: Any, x: Value) -> Value:
    dtype = eqn.outvars[0].aval.dtype
    name = g.cast(x, stored(x.dtype), stored(dtype))
    return Value(name, x.shape, dtype)


@rule("reduce_precision", lazy=True)
def _reduce_precision(g: Graph, eqn: Any, x: Value) -> Value:
    """Rounds to a dtype of 16 bits and back."""
    bits = eqn.params["exponent_bits"], eqn.params["mantissa_bits"]
    own, kinds = stored(x.dtype), {(8, 7): jnp.bfloat16, (5, 10): jnp.float16}
    if bits in ((8, 23), (11, 52)):
        return x
    if bits not in kinds:
        raise NoCounterpartError(
            f"its {bits[0]} and {bits[1]} bits are not those of bfloat16 or float16"
        )
    name = g.cast(g.cast(x, own, kinds[bits]), kinds[bits], own)
    return Value(name, x.shape, x.dtype)


@rule("select_n", lazy=True, exact=True)
def _select(g: Graph, eqn: Any, which: Value, *cases: Value) -> Value:
    """The case that `which` has the number of."""
    dtype, shape = cases[0].dtype, joined(which.shape, *(x.shape for x in cases))
    own = stored(dtype)
    wide = np.dtype(np.uint8) if is_bool(own) else own
    names = [g.cast(x, own, wide) for x in cases]
    if is_bool(which.dtype) and len(cases) == 2:
        name = g.node("Where", which, names[1], names[0])
    else:
        name = names[0]
        number = g.cast(which, which.dtype, np.int32)
        for i, case in enumerate(names[1:], 1):
            name = g.node("Where", g.node("Equal", number, np.int32(i)), case, name)
    return Value(g.cast(name, wide, own), shape, dtype)


@rule(
    "copy",
    "name",
    "optimization_barrier",
    "sharding_constraint",
    "stop_gradient",
    lazy=True,
    exact=True,
)
def _same(g: Graph, eqn: Any, *inputs: Value) -> list[Value]:
    return list(inputs)
