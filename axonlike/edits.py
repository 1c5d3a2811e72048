"""What edits make of an activation: the arithmetic, and what does not fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any, NamedTuple, cast

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from axonlike.deferred import ends
from axonlike.errors import PathError, ShapeError
from axonlike.spec import show

# --- one verb each


class Axis(NamedTuple):
    """One of the axes in front of what is read at a site that is run several times."""

    here: Any  # the number of this run; or where it is in a row of chosen copies
    length: int


def edited(
    verb: str, name: str, part: Any, operand: Any, axes: Sequence[Axis] = ()
) -> Any:
    """The value after an edit; `name` is that of its target in errors.

    Where the activation is a pytree, the operand is one like it, or goes for every array.
    What has `axes` in front of what goes there is one value for each run of the site.
    """
    change = partial(_VERBS[verb], name)
    operands = _each(verb, name, part, operand)
    if axes:
        operands = jax.tree.map(partial(_own, verb, name, axes), part, operands)
    return jax.tree.map(change, part, operands)


def replaced(name: str, part: Any, new: Any) -> Any:
    """What a function put in the place of an activation: a value of the same kind."""
    if jax.tree.structure(part) != jax.tree.structure(new):
        raise ShapeError(
            "edit", f"what fits {name}, {show(part)}", show(new),
            "Return the same structure.",
        )  # fmt: skip
    return edited("set", name, part, new)


def _each(verb: str, name: str, part: Any, operand: Any) -> Any:
    """An operand for each array of an activation."""
    if jax.tree.structure(part) == jax.tree.structure(operand):
        return operand
    if not jax.tree_util.all_leaves([operand]):
        raise ShapeError(
            "edit", f"what fits {name}, {show(part)}", show(operand),
            f"Give {verb} one value, or one for each array.",
        )  # fmt: skip
    return jax.tree.map(partial(_same, operand), part)


def _same(operand: Any, _: Any) -> Any:
    return operand


def _own(verb: str, name: str, axes: Sequence[Axis], array: Any, operand: Any) -> Any:
    """What is for this run of a site, of a value that has more axes than goes there."""
    if getattr(operand, "ndim", 0) <= max(array.ndim, 2 * (verb == "rotate")):
        return operand
    lengths = tuple(axis.length for axis in axes)
    if operand.shape[: len(axes)] != lengths:
        whole = jax.ShapeDtypeStruct((*lengths, *array.shape), array.dtype)
        raise ShapeError(
            "edit", f"what fits {name}, {show(array)}, or {show(whole)} for all of them",
            show(operand), "Give one of the two.",
        )  # fmt: skip
    return reduce(partial(_row, verb), axes, jnp.asarray(operand))


def _row(verb: str, operand: Any, axis: Axis) -> Any:
    """What is for this run; what is added to a copy that is chosen twice adds up."""
    if not jnp.ndim(axis.here):
        return operand[axis.here]
    if verb != "add":
        return operand[jnp.argmax(axis.here)]
    here = jnp.reshape(axis.here, (-1, *(1,) * (operand.ndim - 1)))
    rows = jnp.where(here, operand, jnp.zeros_like(operand))
    return jnp.sum(rows, 0, dtype=operand.dtype)


def _set(name: str, array: Any, value: Any) -> Any:
    return _fitted("set", name, array, value)


def _add(name: str, array: Any, value: Any) -> Any:
    return array + _fitted("add", name, array, value)


def _scale(name: str, array: Any, value: Any) -> Any:
    return array * _fitted("scale", name, array, value)


def _rotate(name: str, array: Any, value: Any) -> Any:
    _check_last_axis("rotate", name, array)
    matrix, n = _cast("rotate", name, array, value), array.shape[-1]
    if matrix.shape[-2:] != (n, n):
        raise ShapeError(
            "edit", f"a matrix [{n}, {n}] to rotate {name}", show(matrix),
            "It multiplies the last axis from the right.",
        )  # fmt: skip
    try:
        return _fitted("rotate", name, array, array @ matrix)
    except ValueError:
        raise ShapeError(
            "edit", f"a matrix [{n}, {n}] to rotate {name}, {show(array)}", show(matrix),
            "Give one for all, or one for each in the axes in front.",
        ) from None  # fmt: skip


def _project_out(name: str, array: Any, value: Any) -> Any:
    _check_last_axis("project_out", name, array)
    number, n = _cast("project_out", name, array, value), array.shape[-1]
    if number.shape[-1:] != (n,):
        raise ShapeError(
            "edit", f"a direction [{n}] to project out of {name}", show(number),
            "It is one of the last axis.",
        )  # fmt: skip
    if not is_traced(value) and not np.asarray(value).any(-1).all():
        raise ValueError(
            f"edit: project_out got a direction that is zero at {name}, along which there "
            "is nothing to take out. Give a direction, or leave the edit out."
        )
    square = jnp.sum(jnp.square(jnp.abs(number)), -1, keepdims=True)
    long = jnp.sqrt(jnp.where(square == 0, jnp.ones_like(square), square))
    unit = number / jnp.broadcast_to(long, number.shape).astype(number.dtype)
    unit = _fitted("project_out", name, array, unit)
    along = jnp.sum(array * jnp.conj(unit), -1, keepdims=True)
    return array - jnp.broadcast_to(along, array.shape) * unit


_VERBS: dict[str, Callable[[str, Any, Any], Any]] = {
    "set": _set, "add": _add, "scale": _scale, "rotate": _rotate,
    "project_out": _project_out,
}  # fmt: skip


# --- what fits


_KINDS = (jnp.bool_, jnp.integer, jnp.floating, jnp.complexfloating)


def _kind(dtype: Any) -> int:
    """Of two dtypes the one of the lower kind goes into the other without loss."""
    found = [i for i, kind in enumerate(_KINDS) if jnp.issubdtype(dtype, kind)]
    return found[0] if found else len(_KINDS)


def _cast(verb: str, name: str, array: Any, value: Any) -> Any:
    """A value in the dtype of what it edits; a fraction is none of integers."""
    try:
        new = jnp.asarray(value)
    except TypeError:
        raise TypeError(
            f"edit: {name} is {show(array)}, and {verb} got {value!r:.60}. "
            "Give a number or an array."
        ) from None
    if _kind(new.dtype) > _kind(array.dtype):
        raise TypeError(
            f"edit: {name} is {show(array)}, and {verb} got {show(new)}, which it cannot "
            "hold. Cast the value, or edit an activation of that kind."
        )
    return new.astype(array.dtype)


def _fitted(verb: str, name: str, array: Any, value: Any) -> Any:
    """A value in the shape and dtype of what it edits."""
    new = _cast(verb, name, array, value)
    try:
        return jnp.broadcast_to(new, array.shape)
    except ValueError:
        raise ShapeError(
            "edit", f"what fits {name}, {show(array)}", show(new),
            "Give a value that broadcasts to it.",
        ) from None  # fmt: skip


def _check_last_axis(verb: str, name: str, array: Any) -> None:
    if array.ndim == 0 or not jnp.issubdtype(array.dtype, jnp.inexact):
        raise ShapeError(
            "edit", f"floats with a last axis at {name}", show(array),
            f"There is nothing to {verb} there.",
        )  # fmt: skip


# --- parts of a value


def part_of(name: str, value: Any, index: Any) -> Any:
    """`value[index]`; never a neighbour of an item that is not there.

    A plain number out of range is an error. Of one that is known only when the program
    runs, the item is NaN, or the lowest integer. `name` is that of the part in errors.
    """
    if type(value) is dict and isinstance(index, str) and index not in value:
        raise PathError(name, index, map(str, cast("dict[Any, Any]", value)))
    value = cast(Any, value)
    try:
        _check_index(value, index)
        if not _is_late(value, index):
            return value[index]
        return value.at[index].get(mode="fill")
    except (IndexError, KeyError, TypeError) as error:
        raise IndexError(
            f"{name}: there is no such part of {show(value)}: {error}. Choose another."
        ) from None


def put(
    name: str, value: Any, indices: tuple[Any, ...], change: Callable[[Any], Any]
) -> Any:
    """A value with a part of it changed; all of it is NaN if that part is not there."""
    if not indices:
        return change(value)
    first, *rest = indices
    if isinstance(value, (tuple, list)):
        items = list(cast("list[Any]", value))
        items[first] = put(name, part_of(name, items, first), tuple(rest), change)
        make = cast(Any, type(cast(Any, value)))
        return make(*items) if hasattr(make, "_fields") else make(items)
    if isinstance(value, dict):
        items = cast("dict[Any, Any]", value)
        part = part_of(name, items, first)
        return {**items, first: put(name, part, tuple(rest), change)}
    part = put(name, part_of(name, value, first), tuple(rest), change)
    new = value.at[first].set(part)
    if not _is_late(value, first):
        return new
    there = jnp.ones(value.shape, bool).at[first].get(mode="fill", fill_value=False)
    return nowhere_unless(jnp.all(there), new)


def of_one_copy(
    name: str, value: Any, indices: tuple[Any, ...], axes: int
) -> tuple[Any, ...]:
    """Indices of one copy's value, out of those of all with their axes in front."""
    found: list[Any] = []
    for index in indices if axes else ():
        each = cast("tuple[Any, ...]", index if isinstance(index, tuple) else (index,))
        if isinstance(value, (tuple, list, dict)):  # of which an index chooses an item
            found.append(index)
            value = part_of(name, value, index)
            continue
        whole = [isinstance(i, slice) and i == slice(None) for i in each[:axes]]
        if False in whole and each[whole.index(False)] is not Ellipsis:
            raise ValueError(
                f"edit: {name} slices the axis of copies, which stands in front. Choose "
                "copies in the path, as in blocks/1:3, and write `:` or `...` for them, "
                "and for what vmap maps over."
            )
        found.append(each[whole.index(False) if False in whole else axes :])
    return tuple(found) if axes else indices


def check_not_empty(name: str, value: Any, indices: tuple[Any, ...]) -> None:
    """Refuses to change a slice of an array in which nothing is, as in `t[:, 9:]` of 4."""
    for index in indices:
        each = cast("tuple[Any, ...]", index if isinstance(index, tuple) else (index,))
        plain = all(
            isinstance(i, (int, slice, type(None), type(Ellipsis))) for i in each
        )
        if not plain or not hasattr(value, "shape") or not value.size:
            return
        whole, value = value, part_of(name, value, index)
        if not value.size:
            raise ValueError(
                f"edit: there is nothing at {name}, of {show(whole)}. "
                "Choose a slice that is not empty."
            )


def nowhere_unless(holds: Any, value: Any) -> Any:
    """A pytree as it is, or what stands for an item that is not there."""

    def one(array: Any) -> Any:
        if jnp.issubdtype(array.dtype, jnp.inexact):  # a factor: gradients are NaN too
            return array * jnp.where(holds, 1, jnp.nan).astype(array.dtype)
        if array.dtype == bool:
            lowest = jnp.asarray(False)
        else:
            lowest = jnp.asarray(jnp.iinfo(array.dtype).min, array.dtype)
        return jnp.where(holds, array, jnp.broadcast_to(lowest, array.shape))

    return jax.tree.map(one, value)


def _is_late(value: Any, index: Any) -> bool:
    """Whether an item of an array is chosen by numbers that are not plain ones."""
    each = cast("tuple[Any, ...]", index if isinstance(index, tuple) else (index,))
    return hasattr(value, "at") and any(map(_is_number_later, each))


def _is_number_later(part: Any) -> bool:
    array = hasattr(part, "dtype") and not isinstance(part, np.generic)
    return array and jnp.issubdtype(cast(Any, part).dtype, jnp.integer)


def is_traced(value: Any) -> bool:
    """Whether a value is known only when the program runs."""
    return isinstance(value, jax.core.Tracer)


def _check_index(value: Any, index: Any) -> None:
    """Refuses a plain number out of range, which JAX would clamp to the last item."""
    shape = getattr(value, "shape", None)
    each = cast("tuple[Any, ...]", index if isinstance(index, tuple) else (index,))
    if shape is None or not all(isinstance(n, int) for n in shape):
        return
    numbers = tuple(map(_plain, each))
    kinds = (int, np.integer, np.ndarray, slice, type(None), type(Ellipsis))
    if all(isinstance(number, kinds) for number in numbers):
        np.broadcast_to(np.zeros(()), cast("tuple[int, ...]", shape))[numbers]


def _plain(part: Any) -> Any:
    """One index in NumPy: concrete arrays of integers are looked at, slices are not."""
    if isinstance(part, slice):
        return slice(*(None for _ in ends(part)))
    if isinstance(part, jax.Array) and not is_traced(part):
        return np.asarray(part)
    return part
