"""What each layer of a run receives and returns, and its gradients, looked at in passing.

A `Probe` stands around every layer (`Run.around`). What it measures of a value leaves the
run among the reads; what it measures of a gradient leaves as the gradient of a zero, one
for each place and pass, that the value is told to depend on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp

from axonlike.combinators.over_time import scan
from axonlike.frame import Frame
from axonlike.layer import Layer
from axonlike.types import Array, PyTree

INPUT, OUTPUT = "input", "output"
SILENT = " silent"
"""What follows the key of a layer's output, for which of its units are always zero."""


class Loop(NamedTuple):
    """A loop around a layer's call."""

    start: int
    """The place of the call that runs it."""
    copies: bool
    """Whether it is over copies, which have numbers in paths."""
    backwards: bool
    """Whether its last pass is the first that runs."""


class Entry(NamedTuple):
    """One end of a layer's call: where it is, and when it comes."""

    site: str
    end: str
    layer: str
    """The layer with its config."""
    method: str
    leaf: bool
    order: int
    """Its place among all, in the order of the run."""
    loops: tuple[Loop, ...]
    """Those around it, outermost first."""
    parent: int
    """The place of the call that it is part of; -1: of none."""


class _Call(NamedTuple):
    """A layer's call that has not returned."""

    entry: Entry
    layer: Layer
    passes: int
    stars: int
    place: tuple[Any, ...]
    """What tells it from others, whenever it is traced."""


class Probe:
    """Looks at what layers receive and return; `tokens` by key make it see gradients.

    A first run, on shapes and without tokens, tells by `entries` which there are. What is
    read of each is its magnitude, and of leaves which of their units are always zero.
    """

    def __init__(self) -> None:
        self.tokens: Mapping[str, Any] = {}
        self.entries: dict[str, Entry] = {}
        self._keys: dict[Any, str] = {}
        self._calls: list[_Call] = []

    def __call__(
        self, frame: Frame, args: Any, kwargs: Any, method: str, name: str
    ) -> PyTree:
        """Runs a layer, and looks at both of its ends."""
        stretch = frame.run.taps is not None  # it reads inside, and stops there
        if method == "initial_carry" or stretch:
            return frame.layer.run(frame, args, kwargs, method)
        call = self._begin(frame, method)
        self._calls.append(call)
        try:
            args, kwargs = self._seen(frame, call, INPUT, (args, dict(kwargs)))
            y = frame.layer.run(frame, args, kwargs, method)
            return self._seen(frame, call, OUTPUT, y)
        finally:
            self._calls.pop()

    def _begin(self, frame: Frame, method: str) -> _Call:
        passes, stars = len(_passes(frame)), frame.site.split("/").count("*")
        above = self._calls[-1] if self._calls else None
        loops = above.entry.loops if above else ()
        if above and passes > above.passes:
            plain = above.layer.plain
            backwards = plain.factory is scan and plain.config["reverse"]
            copies = stars > above.stars
            loops = (*loops, Loop(above.entry.order, copies, backwards))
        entry = Entry(
            frame.site, INPUT, frame.layer.headline, method, not frame.layer.children,
            0, loops, above.entry.order if above else -1,
        )  # fmt: skip
        place = (frame.site, len(self._calls), id(frame.places), method)
        return _Call(self._known(place, entry)[1], frame.layer, passes, stars, place)

    def _known(self, place: tuple[Any, ...], entry: Entry) -> tuple[str, Entry]:
        """One end of a call, by the same name however often it is traced."""
        named = (*place, entry.end)
        if named not in self._keys:
            key = self._keys[named] = f"probe {len(self._keys)}"
            self.entries[key] = entry._replace(order=len(self.entries))
        return self._keys[named], self.entries[self._keys[named]]

    def _seen(self, frame: Frame, call: _Call, end: str, value: PyTree) -> PyTree:
        """The value, having been looked at."""
        key, entry = self._known(call.place, call.entry._replace(end=end))
        leaves, tree = cast(Any, jax.tree.flatten(value))
        at = [i for i, leaf in enumerate(leaves) if is_smooth(leaf)]
        if not at:
            return value
        fixed = [jax.lax.stop_gradient(leaves[i]) for i in at]
        found = magnitude(fixed)
        frame.taken[key] = jnp.maximum(frame.taken.get(key, found), found)
        if end == OUTPUT and entry.leaf and _has_units(fixed[0], entry):
            frame.taken[key + SILENT] = silent_units(fixed[0])
        if key not in self.tokens:
            return value
        token = _nth(self.tokens[key], frame)
        watched = cast(Any, _watched)([leaves[i] for i in at], token)
        for i, leaf in zip(at, watched, strict=True):
            leaves[i] = leaf
        return tree.unflatten(leaves)


def _has_units(leaf: Array, entry: Entry) -> bool:
    """Whether there are examples: on an axis, or each a pass of what is mapped."""
    mapped = any(not loop.copies for loop in entry.loops)
    return leaf.size > 0 and leaf.ndim + mapped > 1


def _passes(frame: Frame) -> tuple[Any, ...]:
    """The numbers of this pass in the loops around it; unrolled ones are in the path."""
    return tuple(index for index in frame.indices if not isinstance(index, int))


def _nth(token: Array, frame: Frame) -> Array:
    """The zero of this pass; there may be no pass, of nothing that is mapped."""
    if not token.size:
        return jnp.zeros((), token.dtype)
    for index in _passes(frame):
        token = cast(Any, jax.lax.dynamic_index_in_dim)(token, index, 0, keepdims=False)
    return token


def is_smooth(leaf: Any) -> bool:
    """Whether it is an array that may be NaN, and has derivatives."""
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.inexact)


@jax.custom_vjp
def _watched(leaves: list[Any], token: Array) -> list[Any]:
    """The values, whose gradients' magnitude becomes the gradient of the token.

    The token is subtracted, a zero, so that each pass has a value and gradient of its own.
    """
    zeros = (jnp.broadcast_to(token, leaf.shape).astype(leaf.dtype) for leaf in leaves)
    return [leaf - zero for leaf, zero in zip(leaves, zeros, strict=True)]


def _forward(leaves: list[Any], token: Array) -> tuple[list[Any], None]:
    return cast(Any, _watched)(leaves, token), None


def _backward(_: None, gradients: list[Any]) -> tuple[list[Any], Array]:
    return gradients, magnitude(gradients)


_watched.defvjp(_forward, _backward)


# --- measures


def magnitude(leaves: Iterable[Any]) -> Array:
    """The largest absolute value: NaN where one is, infinite where one is."""
    found = jnp.zeros((), jnp.float32)
    for leaf in leaves:
        largest = jnp.max(jnp.abs(leaf), initial=0)
        found = jnp.maximum(found, _narrowed(largest))
    return found


def summed(tree: PyTree) -> Array:
    """The sum of what is smooth in a tree: what stands for a loss."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if is_smooth(leaf)]
    sums = (jnp.sum(jnp.real(leaf).astype(jnp.float32)) for leaf in leaves)
    return sum(sums, start=jnp.zeros(()))


def _narrowed(largest: Array) -> Array:
    """In float32, in which what is finite stays so."""
    if largest.dtype.itemsize <= 4:
        return largest.astype(jnp.float32)
    most = jnp.asarray(jnp.finfo(jnp.float32).max, largest.dtype)
    kept = jnp.where(jnp.isfinite(largest), jnp.minimum(largest, most), largest)
    return kept.astype(jnp.float32)


def silent_units(leaf: Any) -> Array:
    """Which units, along the last axis, are zero everywhere."""
    return jnp.all(leaf == 0, axis=tuple(range(leaf.ndim - 1)))
