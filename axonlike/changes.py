"""What edits do in a run: at which sites, to which copies, and to what part of a value."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp

from axonlike.deferred import Deferred, Edit, Op, base
from axonlike.edits import (
    Axis,
    check_not_empty,
    edited,
    nowhere_unless,
    of_one_copy,
    put,
    replaced,
)
from axonlike.errors import ShapeError
from axonlike.reading import Env, numbers_of
from axonlike.sites import Condition, Place
from axonlike.spec import show


def by_site(
    edits: tuple[Edit, ...],
    places: list[dict[str, list[Place]]],
    env: Env,
    applied: set[int],
) -> dict[str, tuple[Any, ...]]:
    """What is done at each site, in the order of the edits; of a glob, by path."""
    found: dict[str, tuple[Any, ...]] = {}
    for i, (edit, each) in enumerate(zip(edits, places, strict=True)):
        for path, its in each.items():
            own = _at_path(edit, path, list(each))
            for place in its:

                def apply(
                    value: Any,
                    at: Mapping[str, Any],
                    i: int = i,
                    edit: Edit = own,
                    place: Place = place,
                ) -> Any:
                    applied.add(i)
                    return _conditional(edit, value, env, at, place)

                found[place.site] = (*found.get(place.site, ()), apply)
    return found


def _at_path(edit: Edit, path: str, every: list[str]) -> Edit:
    """The edit of one activation out of those that a glob means."""
    check_no_path(edit.target, every if path else ())
    if not path or edit.verb == "map":
        return edit
    return edit._replace(value=Op(_own_or_same, (edit.value, path, every), {}))


def check_no_path(target: Deferred, every: Iterable[str]) -> None:
    """Refuses one of what a glob means, which has a path of its own."""
    for index in cast(Any, base(target))[1][:1]:
        if isinstance(index, str) and index in every:
            raise ValueError(
                f"activation: {target!r} is read, but not changed. "
                f"Write model[{index!r}]."
            )


def _own_or_same(value: Any, path: str, every: list[str]) -> Any:
    """What is for one path, of a dict by path as a glob is read; else the same for all."""
    if type(value) is not dict or {*every}.isdisjoint(cast("dict[Any, Any]", value)):
        return cast(Any, value)
    found = cast("dict[Any, Any]", value)
    if set(found) != {*every}:
        raise ValueError(
            f"edit: expected a value for each of {sorted(every)}, got "
            f"{sorted(map(str, found))}. Give all, or write an edit for each path."
        )
    return found[path]


def _conditional(
    edit: Edit, value: Any, env: Env, at: Mapping[str, Any], place: Place
) -> Any:
    """The edited value, where this copy is one of those that the edit is for."""
    holds: Any = None
    known: Any = None
    for condition in place.conditions:
        here, there = _holds_at(condition, env, at)
        holds = here if holds is None else holds & here
        known = there if known is None else known & there
    if holds is None:
        return _changed(edit, value, env, at, place)

    def changed(value: Any) -> Any:
        return nowhere_unless(known, _changed(edit, value, env, at, place))

    return cast(Any, jax.lax.cond(holds | ~known, changed, _same, value))


def _same(value: Any) -> Any:
    return value


def _holds_at(condition: Condition, env: Env, at: Mapping[str, Any]) -> tuple[Any, Any]:
    """Whether this copy is one of those chosen, and whether those are copies at all."""
    numbers = jnp.atleast_1d(numbers_of(condition.step, env.value(condition.chosen)))
    chosen = jnp.any(numbers == _copy(condition, at))
    return chosen, jnp.all(numbers < condition.step.copies.number)


def _changed(
    edit: Edit, value: Any, env: Env, at: Mapping[str, Any], place: Place
) -> Any:
    """What an edit makes of the value at its target."""
    indices = env.value(cast(Any, base(edit.target))[1])
    axes = _axes(place, env, at)
    name = repr(edit.target)
    indices = of_one_copy(name, value, indices, len(axes))
    check_not_empty(name, value, indices)
    return put(name, value, indices, lambda part: _part(edit, part, env, axes))


def _part(edit: Edit, part: Any, env: Env, axes: list[Axis]) -> Any:
    name = repr(edit.target)
    if edit.verb == "map":
        op = cast(Op, edit.value)
        rest = map(env.value, op.args[1:])
        kwargs = {name: env.value(item) for name, item in op.kwargs.items()}
        return replaced(name, part, op.function(part, *rest, **kwargs))
    operand = env.value(edit.value)
    return edited(edit.verb, name, part, operand, axes)


def _axes(place: Place, env: Env, at: Mapping[str, Any]) -> list[Axis]:
    """The axes that stand in front of what is read, the outermost first.

    Those of chosen copies, and of the passes of what runs a layer several times.
    """
    found = [(_depth(site), 1, Axis(number, n)) for site, number, n in at.get("", ())]
    for axis in place.axes:
        for along in _along(axis, env, at):
            found.append((_depth(axis.step.site), 0, along))
    return [axis for *_, axis in sorted(found, key=operator.itemgetter(0, 1))]


def _depth(site: str) -> int:
    return len(site.split("/")) if site else 0


def _along(axis: Condition, env: Env, at: Mapping[str, Any]) -> list[Axis]:
    """Where this copy is along the axis of the chosen ones; one alone has no axis."""
    if axis.chosen is None:
        return [Axis(_copy(axis, at), axis.step.copies.number)]
    number = axis.step.copies.number
    numbers = numbers_of(axis.step, env.value(axis.chosen))
    if numbers.ndim > 1:
        raise ShapeError(
            "edit", f"one copy of {axis.step.site[:-2]!r}, or a row of them",
            show(numbers), "Write k.reshape(-1).",
        )  # fmt: skip
    here = (numbers == _copy(axis, at)) | (numbers == number)  # what is none is NaN
    return [Axis(here, numbers.shape[0])] if numbers.ndim else []


def _copy(condition: Condition, at: Mapping[str, Any]) -> Any:
    """The number of this copy."""
    copy = condition.copy
    return jnp.asarray(copy if isinstance(copy, int) else at[copy], jnp.int32)
