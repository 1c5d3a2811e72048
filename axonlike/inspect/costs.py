"""What a model costs, layer by layer, read off its jaxpr.

A jaxpr knows for each equation under which path it stands and how often it runs: a scan
of n steps is n times its body, whatever was traced. Of a choice at run time (`cond`,
`switch`) the most expensive branch counts, of a loop of unknown length one pass.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any, cast

from axonlike.inspect.flops import flops, nbytes
from axonlike.inspect.trace import LAYER

Costs = Counter[tuple[str, str]]
"""By `(what, path)`; what is "flops", "activations" or "kept"."""

_OPAQUE = ("reduce", "scatter", "select_and", "sort")
"""Primitives whose jaxprs say how two numbers are combined, not what is run."""


def forward_costs(jaxpr: Any, states: int = 0) -> Costs:
    """FLOPs, and bytes that layers return, by path; the last outputs are the state."""
    total = _Walk().costs(jaxpr.jaxpr).copy()
    total["activations", ""] += _returned(jaxpr.jaxpr, states)
    return total


def inner(equation: Any) -> list[Any]:
    """The jaxprs that an equation runs."""
    if equation.primitive.name.startswith(_OPAQUE):
        return []
    values = equation.params.values()
    found = [v for value in values for v in _items(value) if _is_jaxpr(v)]
    return [getattr(v, "jaxpr", v) for v in found]


def source(equation: Any, at: int) -> tuple[Any, Any] | None:
    """The jaxpr inside that makes an output, and what it is called there."""
    found = inner(equation)
    if equation.primitive.name == "while":
        found = [equation.params["body_jaxpr"].jaxpr]
    fits = [j for j in found if len(j.outvars) == len(equation.outvars)]
    return (fits[0], fits[0].outvars[at]) if fits else None


def scope(equation: Any) -> str:
    """The path that the scopes around an equation spell."""
    stack = equation.source_info.name_stack.stack
    return "/".join(s.name for s in stack if type(s).__name__ == "Scope")


def is_layer(equation: Any) -> bool:
    """Whether it is the call of a layer."""
    return str(equation.params.get("name", "")).startswith(LAYER)


def passes(equation: Any) -> int:
    """How often what is inside runs: in a scan, and in a kernel over a grid."""
    if equation.primitive.name == "pallas_call":
        return math.prod(equation.params["grid_mapping"].grid)
    return equation.params["length"] if equation.primitive.name == "scan" else 1


def _items(value: Any) -> Any:
    """A value, or several of a kind: the branches of a choice."""
    several = isinstance(value, (tuple, list))
    if not several:
        return (value,)
    return cast("tuple[Any, ...]", value) if value and _is_jaxpr(value[0]) else ()


def _is_jaxpr(value: Any) -> bool:
    return hasattr(getattr(value, "jaxpr", value), "eqns")


class _Walk:
    """Sums over a jaxpr; what is inside is summed once, however often it is called."""

    def __init__(self) -> None:
        self._known: dict[int, Costs] = {}

    def costs(self, jaxpr: Any) -> Costs:
        """By path from here."""
        if id(jaxpr) not in self._known:
            self._known[id(jaxpr)] = self._sum(jaxpr)
        return self._known[id(jaxpr)]

    def _sum(self, jaxpr: Any) -> Costs:
        total: Costs = Counter()
        for equation in used(jaxpr):
            path = scope(equation)
            jaxprs = inner(equation)
            if not jaxprs:
                total["flops", path] += flops(equation)
            elif equation.primitive.name == "cond":
                total.update(_below(path, self._dearest(jaxprs), 1))
            else:
                for each in jaxprs:
                    below = self.costs(each)
                    total.update(_below(path, below, passes(equation)))
            if is_layer(equation):
                states = int(equation.params["name"].removeprefix(LAYER))
                total["activations", path] += _returned(jaxprs[0], states)
        return total

    def _dearest(self, branches: list[Any]) -> Costs:
        """Of several jaxprs the one with the most operations."""
        found = [self.costs(branch) for branch in branches]

        def operations(costs: Costs) -> tuple[int, int]:
            sums = [0, 0]
            for (what, _), cost in costs.items():
                sums[what == "activations"] += cost
            return sums[0], sums[1]

        return max(found, key=operations)


def _below(path: str, costs: Costs, times: int) -> Costs:
    return Counter(
        {
            (what, "/".join(filter(None, (path, rest)))): cost * times
            for (what, rest), cost in costs.items()
        }
    )


def used(jaxpr: Any) -> list[Any]:
    """The equations that something comes of; XLA takes the others out."""
    needed, kept = {id(v) for v in jaxpr.outvars}, list[Any]()
    for equation in reversed(jaxpr.eqns):
        if equation.effects or any(id(v) in needed for v in equation.outvars):
            needed.update(id(v) for v in equation.invars)
            kept.append(equation)
    return kept[::-1]


# --- what layers return


def _returned(jaxpr: Any, states: int) -> int:
    """Bytes that a layer makes for its output by itself; not what a layer in it made."""
    outputs = jaxpr.outvars[: len(jaxpr.outvars) - states]
    makers = {id(v): (e, i) for e in jaxpr.eqns for i, v in enumerate(e.outvars)}
    made = {id(v): makers[id(v)] for v in outputs if id(v) in makers}
    return sum(_made(equation, at) for equation, at in made.values())


def _made(equation: Any, at: int) -> int:
    if is_layer(equation):
        return 0
    below = source(equation, at)
    if below is None:
        return nbytes(equation.outvars[at])
    jaxpr, variable = below
    for each in jaxpr.eqns:
        if variable in each.outvars:
            place = each.outvars.index(variable)
            return _made(each, place) * passes(equation)
    return 0


# --- what is kept for the backward pass


def kept_costs(jaxpr: Any) -> Costs:
    """Bytes of what the linearized model holds besides its arguments, by path."""
    top, makers = jaxpr.jaxpr, _Makers()
    total: Costs = Counter()
    known = {id(v) for v in (*top.invars, *top.constvars)}
    for variable in top.outvars:
        made = makers.resolved(top, variable)
        if id(made) in known or hasattr(made, "val"):
            continue
        known.add(id(made))
        total["kept", makers.home(top, made)] += nbytes(made)
    return total


class _Makers:
    """Which equation of a jaxpr makes a variable."""

    def __init__(self) -> None:
        self._known: dict[int, dict[int, tuple[Any, int]]] = {}

    def of(self, jaxpr: Any, variable: Any) -> tuple[Any, int]:
        """The equation, and which of its outputs; None for an input."""
        if id(jaxpr) not in self._known:
            self._known[id(jaxpr)] = {
                id(v): (e, at) for e in jaxpr.eqns for at, v in enumerate(e.outvars)
            }
        return self._known[id(jaxpr)].get(id(variable), (None, 0))

    def resolved(self, jaxpr: Any, variable: Any) -> Any:
        """The variable that this one is, before it is rounded for storage."""
        equation, _ = self.of(jaxpr, variable)
        if equation is None or equation.primitive.name != "reduce_precision":
            return variable
        return self.resolved(jaxpr, equation.invars[0])

    def home(self, jaxpr: Any, variable: Any) -> str:
        """The path of the innermost equation that makes a variable."""
        equation, at = self.of(jaxpr, variable)
        if equation is None:
            return ""
        below, path = source(equation, at), scope(equation)
        rest = self.home(*below) if below else ""
        return "/".join(filter(None, (path, rest)))
