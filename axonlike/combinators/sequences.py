"""Inputs over time: a sequence, and which of its steps count for which example."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp

from axonlike.errors import ShapeError, nearest
from axonlike.leaf import first_step
from axonlike.spec import show
from axonlike.types import Array, PyTree


class Sequences(NamedTuple):
    """The inputs of what runs over time."""

    x: PyTree
    initial_carry: PyTree = None
    lengths: Any = None
    mask: Any = None
    reset: Any = None


def sequences(kind: str, args: Any, kwargs: Mapping[str, Any]) -> Sequences:
    """The inputs by name; one that is no dict with an "x" is the sequence."""
    if len(args) == 1 and not kwargs and isinstance(args[0], dict) and "x" in args[0]:
        args, kwargs = (), cast("dict[str, Any]", args[0])
    names = Sequences._fields
    for name in kwargs:
        if name not in names:
            hint = nearest(name, names)
            raise TypeError(f"{kind}: unknown input {name!r}. {hint}")
    found = dict(zip(names, args, strict=False))
    if (
        len(args) > len(names)
        or "x" not in {**found, **kwargs}
        or found.keys() & kwargs
    ):
        raise TypeError(
            f"{kind}: expected a sequence x and optionally {', '.join(names[1:])}, got "
            f"{len(args)} inputs and {sorted(kwargs)}."
        )
    return Sequences(**found, **kwargs)


def by_time(inputs: Sequences, axis: int) -> Sequences:
    """The same with the time axis of sequences and masks first."""

    def first(a: Any) -> Any:
        if not -a.ndim <= axis < a.ndim:
            raise ShapeError("scan", f"an axis {axis} of time", show(a), "Check axis=.")
        return jnp.moveaxis(a, axis, 0)

    inputs = inputs._replace(x=jax.tree.map(first, inputs.x))
    sizes = jax.tree.leaves(inputs.x)[0].shape[:2]
    if inputs.lengths is not None:
        _check_input("lengths", inputs.lengths, sizes[1:], jnp.integer, "integer")
    for name in ("mask", "reset"):
        mask = getattr(inputs, name)
        if mask is not None:
            _check_input(name, mask, sizes[::-1] if axis else sizes, jnp.bool_, "bool")
            inputs = inputs._replace(**{name: mask.T if axis else mask})
    return inputs


def _check_input(name: str, a: Any, shape: Any, dtype: Any, kind: str) -> None:
    if (
        not hasattr(a, "shape")
        or a.shape != shape
        or not jnp.issubdtype(a.dtype, dtype)
    ):
        sizes = ", ".join(map(str, shape))
        raise ShapeError(
            "scan", f"{name} of {kind} [{sizes}]", show(a),
            "Its sizes are those of the sequence.",
        )  # fmt: skip


def valid_steps(inputs: Sequences) -> Any:
    """Which steps count, `(time, batch)`; None where all do."""
    valid = inputs.mask
    if inputs.lengths is not None:
        time = jax.tree.leaves(inputs.x)[0].shape[0]
        steps = jnp.arange(time, dtype=jnp.int32)[:, None]
        within = steps < inputs.lengths.astype(jnp.int32)[None, :]
        valid = within if valid is None else valid & within
    return valid


def where(condition: Any, chosen: PyTree, other: PyTree) -> PyTree:
    """`chosen` where the condition, of the leading axes, holds; elsewhere `other`."""

    def one(a: Any, b: Any) -> Any:
        shape = (*condition.shape, *(1,) * (a.ndim - condition.ndim))
        return jnp.where(jnp.broadcast_to(jnp.reshape(condition, shape), a.shape), a, b)

    return jax.tree.map(one, chosen, other)


def zero_unless(condition: Any, tree: PyTree) -> PyTree:
    """Zeros where the condition, of the leading axes, does not hold."""
    return where(condition, tree, jax.tree.map(_zeros_like, tree))


def _zeros_like(a: Any) -> Array:
    return jnp.zeros(a.shape, a.dtype)


def unless(valid: Any, before: PyTree, after: PyTree, y: PyTree) -> tuple[Any, Any]:
    """A step's carry and output, where it counts."""
    if valid is None:
        return after, y
    return where(valid, after, before), zero_unless(valid, y)


def last_step(ys: Array, *, valid: Any, reverse: bool) -> Array:
    """The output of each example's last step in the order of time that was run."""
    if valid is None or ys.shape[0] == 0:
        return first_step(jnp.flip(ys, 0) if not reverse else ys)
    steps = jnp.argmax(valid if reverse else jnp.flip(valid, 0), 0)
    steps = steps if reverse else ys.shape[0] - 1 - steps
    index = jnp.reshape(steps, (1, -1, *(1,) * (ys.ndim - 2)))
    return jnp.take_along_axis(ys, index, 0)[0]
