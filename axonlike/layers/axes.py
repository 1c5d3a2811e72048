"""Axes by number, as options of layers that work on some of an input's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from axonlike.errors import ShapeError
from axonlike.layers.checks import array, is_int, some
from axonlike.spec import show

Axes = int | Sequence[int]


def axes_option(kind: str, axis: Axes) -> tuple[int, ...]:
    """The option as a tuple; refuses what is neither an int nor several different ones."""
    many = isinstance(axis, (tuple, list))
    axes: list[Any] = list(cast("Sequence[Any]", axis)) if many else [axis]
    if not all(map(is_int, axes)) or len(set(axes)) != len(axes):
        raise ValueError(
            f"{kind}: axis must be an int or several different ones, got {axis!r}."
        )
    return tuple(axes)


def axes_in(kind: str, x: Any, axes: tuple[int, ...]) -> tuple[int, ...]:
    """The axes of one floating-point array, counted from 0, in the order of its own."""
    text = f"array with axis {axes[0]}" if len(axes) == 1 else f"array with axes {axes}"
    array(kind, x, text)
    found = sorted({axis % x.ndim for axis in axes if -x.ndim <= axis < x.ndim})
    if len(found) != len(axes):
        raise ShapeError(kind, f"an {text}", show(x), "Check axis=.")
    return tuple(found)


def sizes_of(kind: str, x: Any, axes: tuple[int, ...]) -> tuple[Any, ...]:
    """Their sizes; refuses one of 0, for which no weight could be drawn."""
    if axes == (x.ndim - 1,):
        some(kind, x)
    sizes = tuple(x.shape[axis] for axis in axes)
    if any(is_int(n) and n == 0 for n in sizes):
        hint = "Leave the layer out, or the axis."
        raise ShapeError(kind, f"at least 1 along the axes {axes}", show(x), hint)
    return sizes
