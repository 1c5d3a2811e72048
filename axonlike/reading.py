"""What expressions are worth in a run: arguments, and activations that were taken."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from axonlike.deferred import (
    UNFILLED,
    Arg,
    Deferred,
    On,
    Op,
    Site,
    base,
    ends,
    is_deferred,
)
from axonlike.edits import edited, is_traced, part_of
from axonlike.errors import PathError
from axonlike.paths import join
from axonlike.sites import Points, Step, Target, is_one, segments, within
from axonlike.taps import ran


class Reader:
    """How a target's value is put together from what a run has taken."""

    def __init__(self, target: Target, points: Points) -> None:
        self.target, self.points = target, points
        self.segments = segments(target)

    def sites(self) -> list[str]:
        """Every site that has to be read."""
        found: list[str] = []
        self._read("", 0, 0, found.append, None)
        return found

    def value(self, taken: Mapping[str, Any], env: Env) -> Any:
        """The value, in which each step that means several copies has an axis."""
        return self._read("", 0, 0, taken.__getitem__, env)

    def _read(self, prefix: str, k: int, axis: int, take: Any, env: Any) -> Any:
        here = join(prefix, self.segments[k])
        if k == len(self.target.steps):
            return take(here)
        step = self.target.steps[k]
        chosen = step.chosen
        alone = isinstance(chosen, int) and (
            step.copies.mode == "unrolled" or chosen in self.points.get(here, ())
        )
        if alone:
            return self._read(join(here, str(chosen)), k + 1, axis, take, env)
        at = axis + step.copies.outer
        if step.copies.mode != "unrolled":
            value = self._read(join(here, "*"), k + 1, axis + 1, take, env)
        else:
            numbers = range(step.copies.number)
            parts = [
                self._read(join(here, str(i)), k + 1, axis, take, env) for i in numbers
            ]
            if env is None:
                return None
            value = jax.tree.map(lambda *a: jnp.stack(a, at), *parts)
        return None if env is None else _selected(value, at, step, env)


def _selected(value: Any, axis: int, step: Step, env: Env) -> Any:
    """The chosen copies along an axis."""
    chosen = step.chosen
    if chosen is None:
        return value
    if isinstance(chosen, Deferred):
        chosen = numbers_of(step, env.value(chosen))
    index = (slice(None),) * axis + (chosen,)
    return jax.tree.map(partial(part_of, step.site, index=index), value)


def numbers_of(step: Step, chosen: Any) -> Any:
    """Which copies are meant, from 0 on; an error where a plain number is none.

    Of numbers that are known only when the program runs, one that is none becomes the
    number of copies, which is none either.
    """
    number, site = step.copies.number, step.site
    if isinstance(chosen, (int, np.integer)):
        chosen = within(int(cast(Any, chosen)), number, site)
    found = jnp.asarray(chosen)
    if not jnp.issubdtype(found.dtype, jnp.integer):
        raise TypeError(f"activation: copies of {site[:-2]!r} are chosen by integers.")
    if not is_traced(found):
        for each in np.asarray(found).ravel():
            within(int(each), number, site)
    found = found.astype(jnp.int32)
    found = jnp.where(found < 0, found + number, found)
    return jnp.where((found < 0) | (found >= number), number, found)


class Env:
    """What expressions are evaluated with: arguments, and what runs have taken."""

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        self.arguments = arguments
        self.taken: Mapping[str, Any] = {}
        self.readers: Mapping[Site, dict[str, Reader]] = {}
        self.runs: dict[str, Env] = {}
        self.running = False
        self.known: Callable[[], Iterable[str]] = tuple

    def value(self, node: Any) -> Any:
        """The value of an expression, or of a pytree of expressions."""
        if isinstance(node, Deferred):
            return self._value(node)
        if type(node) is dict:
            items = cast("dict[str, Any]", node).items()
            return {name: self.value(item) for name, item in items}
        if type(node) in (tuple, list):
            return type(node)(map(self.value, node))
        if isinstance(node, slice):
            return slice(*map(self.value, ends(node)))
        return jax.tree.map(self._leaf, node, is_leaf=is_deferred)

    def _leaf(self, node: Any) -> Any:
        return self._value(node) if isinstance(node, Deferred) else node

    def _value(self, node: Deferred) -> Any:
        if isinstance(node, Arg):
            return self.arguments[node.name]
        if isinstance(node, On):
            return self.runs[node.run].value(node.expression)
        if isinstance(node, Op):
            args = list(map(self.value, node.args))
            kwargs = {name: self.value(item) for name, item in node.kwargs.items()}
            if node.function is operator.getitem:
                return self._part(node, *args)
            try:
                return node.function(*args, **kwargs)
            except Exception as error:  # whatever the function makes of its arguments
                error.add_note(f"in the expression {node!r}")
                raise
        if isinstance(node, Site):
            found = self.readers[node]
            values = {path: self._read(node, path, r) for path, r in found.items()}
            targets = {path: r.target for path, r in found.items()}
            return values.popitem()[1] if is_one(node.path, targets) else values
        raise TypeError(f"deferred: expected an expression, got {node!r}.")

    def _part(self, node: Op, value: Any, index: Any) -> Any:
        """A part of a value; of what a glob means, that of each, or one by its path."""
        site, indices = base(node) or (None, ())
        if site is not None and not any(isinstance(i, str) for i in indices):
            found = {path: r.target for path, r in self.readers[site].items()}
            if not is_one(site.path, found):
                return {p: part_of(repr(node), v, index) for p, v in value.items()}
        return part_of(repr(node), value, index)

    def _read(self, node: Site, path: str, reader: Reader) -> Any:
        """What a site holds; where it did not run, what is to be in its place."""
        sites = reader.sites()
        if not all(site in self.taken for site in sites):
            raise self._missing(path)
        value = reader.value(self.taken, self)
        if not any(ran(site) in self.taken for site in sites):
            return value
        if node.filled is UNFILLED:
            raise ValueError(
                f"activation: {path!r} may not run. Say what is read where it does not, "
                "in every place: .fill(0.0)."
            )
        marks = {site: self._ran(site) for site in sites}
        new = edited("set", path, value, self.value(node.filled))
        return jax.tree.map(jnp.where, reader.value(marks, self), value, new)

    def _missing(self, path: str) -> Exception:
        """The error of an activation that is not there, or not yet."""
        if self.running:
            return ValueError(
                f"edits: {path!r} is needed before the run comes to it. An edit takes what "
                "comes before its target and its copies. Write .map(function) for the "
                "target's own value, on('name', ...) for that of another run."
            )
        return unmet(path, self.known())

    def _ran(self, site: str) -> Any:
        """Where a site ran: as the value there, of booleans."""
        everywhere = jax.tree.map(partial(jnp.ones_like, dtype=bool), self.taken[site])
        return self.taken.get(ran(site), everywhere)


def unmet(path: str, run: Iterable[str]) -> PathError:
    """The error of an activation that a run does not come to."""
    hint = "The run did not come to it: nothing calls it there."
    return PathError("activation", path, run, hint)
