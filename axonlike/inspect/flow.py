"""Which layers a layer takes its inputs from, read off the jaxpr of a model."""

from __future__ import annotations

from typing import Any

from axonlike.inspect.costs import inner, is_layer, scope
from axonlike.inspect.rows import Finder, Row
from axonlike.paths import join

Sources = dict[str, None]
"""Paths, in the order in which they were found."""


def sources(jaxpr: Any, finder: Finder, inputs: list[str], at: int) -> dict[str, Any]:
    """For each row that is called, by its path, the paths of rows that it reads.

    The model's own inputs have the names given; they are the variables from `at` on.
    """
    flow = _Flow(finder)
    top = jaxpr.jaxpr
    labels: list[Sources] = [{} for _ in top.invars]
    for i, name in enumerate(inputs):
        labels[at + i] = {name: None}
    flow.run(top, labels, "")
    return {path: list(found) for path, found in flow.found.items()}


class _Flow:
    def __init__(self, finder: Finder) -> None:
        self.finder, self.found = finder, dict[str, Sources]()
        self._copies: dict[str, str] = {}

    def run(self, jaxpr: Any, labels: list[Sources], path: str) -> list[Sources]:
        """Where the outputs come from, for inputs from there."""
        known = {id(v): s for v, s in zip(jaxpr.invars, labels, strict=True)}
        for equation in jaxpr.eqns:
            given = [known.get(id(v), {}) for v in equation.invars]
            here = join(path, scope(equation))
            made = self._made(equation, given, here)
            known.update(
                (id(v), s) for v, s in zip(equation.outvars, made, strict=True)
            )
        return [known.get(id(v), {}) for v in jaxpr.outvars]

    def _made(self, equation: Any, given: list[Sources], path: str) -> list[Sources]:
        merged: Sources = {}
        for each in given:
            merged.update(each)
        outputs = [merged] * len(equation.outvars)
        inside = [self._inside(j, given, merged, path) for j in inner(equation)]
        if is_layer(equation):
            row = self.finder.of_scope(path)
            if self._copies.setdefault(row.path, path) == path:  # all uses, of one copy
                self.found.setdefault(row.path, {}).update(merged)
            return [{row.path: None}] * len(equation.outvars)
        fits = inside and len(inside[0]) == len(outputs)
        return inside[0] if fits and len(inside) == 1 else outputs

    def _inside(
        self, jaxpr: Any, given: list[Sources], merged: Sources, path: str
    ) -> list[Sources]:
        extra = len(given) - len(jaxpr.invars)  # a choice's index stands in front
        labels = given[extra:] if extra >= 0 else [merged] * len(jaxpr.invars)
        return self.run(jaxpr, labels, path)


def connect(row: Row, found: dict[str, list[str]], before: list[str]) -> None:
    """Notes where rows come from, but for the one before them in a pipe."""
    own = found.get(row.path, before)
    if len(own) != 1 or own != before:
        row.connected_to = own
    for below in row.below:
        connect(below, found, own)
        own = [below.path]
