"""From what JAX traced to a graph: one equation after another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from axonlike.io.onnx import (
    control,
    elementwise,
    indexing,
    products,
    reducing,
    shaping,
    windows,
)
from axonlike.io.onnx.graph import Graph, Value
from axonlike.io.onnx.marks import Marks
from axonlike.io.onnx.table import TABLE, Entry, NoCounterpartError
from axonlike.paths import join
from axonlike.spec import is_unknown, show

FAMILIES = (control, elementwise, indexing, products, reducing, shaping, windows)
"""The modules that enter primitives into the table."""

_MOST_FOLDED = 4096
"""Constants of more numbers are left to the runtime to compute."""


class Converter:
    """Walks a traced program, and adds to a graph what each equation becomes."""

    def __init__(self, marks: Marks) -> None:
        self.marks = marks
        self.constants: dict[int, Value] = {}

    def by_node(
        self, g: Graph, eqn: Any, inputs: Sequence[Value]
    ) -> list[Value] | None:
        """What a layer that ONNX has a node for becomes, if this is one."""
        return self.marks.convert(self, g, eqn, inputs)

    def run(self, g: Graph, program: Any, inputs: Sequence[Value]) -> list[Value]:
        """What a program returns for these inputs."""
        jaxpr, consts = (
            getattr(program, "jaxpr", program),
            getattr(program, "consts", ()),
        )
        env: dict[Any, Value] = {}
        for var, const in zip(jaxpr.constvars, consts, strict=True):
            env[var] = self._constant(const)
        env.update(zip(jaxpr.invars, inputs, strict=True))
        for eqn in _needed(jaxpr):
            values = [_read(env, v) for v in eqn.invars]
            env.update(zip(eqn.outvars, self._made(g, eqn, values), strict=True))
        return [_read(env, v) for v in jaxpr.outvars]

    def _constant(self, const: Any) -> Value:
        """An array that the program holds on to; a large one is an initializer."""
        if const.size <= _MOST_FOLDED:
            return _known(np.asarray(const))
        name = f"constants/{len(self.constants)}"
        made = Value("", const.shape, const.dtype, const, name)
        return self.constants.setdefault(id(const), made)

    def _made(self, g: Graph, eqn: Any, values: list[Value]) -> list[Value]:
        entry = TABLE.get(eqn.primitive.name)
        around, here = g.scope, str(eqn.source_info.name_stack)
        g.scope = join(around, here)
        try:
            if entry is None:
                raise NoCounterpartError("it is not in the table")
            if entry.inline:
                return entry.rule(self, g, eqn, *values)
            for var in eqn.outvars:
                _check_dtype(var.aval)
            return _folded(eqn, values) or _added(g, entry, eqn, values)
        except NoCounterpartError as reason:
            raise _unsupported(reason, eqn, g.scope) from None
        finally:
            g.scope = around


def _unsupported(reason: Exception, eqn: Any, path: str) -> ValueError:
    """The error that names a primitive and where in the model it is."""
    types = ", ".join(show(v.aval) for v in eqn.invars)
    return ValueError(
        f"export_onnx: primitive {eqn.primitive.name!r} in {path or 'the model'}, of "
        f"{types}, cannot be written as ONNX: {reason}. Write the layer without it, or "
        "use al.export."
    )


def _check_dtype(aval: Any) -> None:
    if not is_plain(aval):
        raise NoCounterpartError(f"runtimes compute with no {aval.dtype}")


def is_plain(aval: Any) -> bool:
    """Whether ONNX has arrays of such numbers, and runtimes compute with them."""
    dtype = getattr(aval, "dtype", None)
    if dtype is None or jnp.issubdtype(dtype, jax.dtypes.extended):
        return False
    return dtype == jnp.bfloat16 or np.dtype(dtype).kind in "biuf"


def _needed(jaxpr: Any) -> list[Any]:
    """The equations that the outputs depend on."""
    wanted = {v for v in jaxpr.outvars if not hasattr(v, "val")}
    found: list[Any] = []
    for eqn in reversed(jaxpr.eqns):
        if wanted.intersection(eqn.outvars):
            found.append(eqn)
            wanted.update(v for v in eqn.invars if not hasattr(v, "val"))
    return found[::-1]


def _read(env: dict[Any, Value], var: Any) -> Value:
    if hasattr(var, "val"):
        return _known(np.asarray(var.val).astype(var.aval.dtype))
    return env[var]


def _known(array: np.ndarray[Any, Any]) -> Value:
    return Value("", array.shape, array.dtype, array)


def _folded(eqn: Any, values: list[Value]) -> list[Value] | None:
    """What constants make, which needs no node."""
    avals = [v.aval for v in (*eqn.invars, *eqn.outvars)]
    sizes = [n for aval in avals for n in aval.shape]
    plain = values and all(v.known for v in values) and not any(map(is_unknown, sizes))
    if not plain or any(v.aval.size > _MOST_FOLDED for v in eqn.outvars):
        return None
    arrays = [
        jnp.asarray(np.broadcast_to(v.array, var.aval.shape))
        for v, var in zip(values, eqn.invars, strict=True)
    ]
    with jax.ensure_compile_time_eval():
        found = eqn.primitive.bind(*arrays, **eqn.params)
    found = found if eqn.primitive.multiple_results else [found]
    return [_known(np.asarray(array)) for array in found]


def _added(g: Graph, entry: Entry, eqn: Any, values: list[Value]) -> list[Value]:
    """The outputs of the nodes that a rule adds."""
    if not entry.lazy:
        pairs = zip(values, eqn.invars, strict=True)
        values = [g.whole(v, var.aval.shape) for v, var in pairs]
    made = entry.rule(g, eqn, *values)
    if isinstance(made, (str, Value)):
        made = [made]
    avals = [v.aval for v in eqn.outvars]
    outputs = [
        Value(y, aval.shape, aval.dtype) if isinstance(y, str) else y
        for y, aval in zip(made, avals, strict=True)
    ]
    if entry.exact:
        return outputs
    return [g.in_precision(y) for y in outputs]
