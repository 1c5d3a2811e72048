"""What options may be, each told at once where it is something else."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from numbers import Real
from typing import Any, cast

from axonlike.spec import show


def whole(where: str, name: str, value: Any, *, lowest: int = 1) -> int:
    """An int, of Python, NumPy or JAX."""
    try:
        found = operator.index(value)
    except TypeError:
        found = lowest - 1
    if isinstance(value, bool) or found < lowest:
        wanted = "a positive int" if lowest else "an int from 0 on"
        raise ValueError(f"{where}: {name} must be {wanted}, got {shown(value)}.")
    return found


def whole_or_none(where: str, name: str, value: Any) -> int | None:
    """As `whole`, where None says that there is no such number."""
    return None if value is None else whole(where, name, value)


def positive(where: str, **numbers: Any) -> None:
    """Refuses what is no positive number, by name; None is none."""
    for name, value in numbers.items():
        if value is not None and not (is_number(value) and value > 0):
            raise ValueError(f"{where}: {name} must be positive, got {shown(value)}.")


def real(where: str, **numbers: Any) -> None:
    """Refuses what is no number, by name; None is none."""
    for name, value in numbers.items():
        if value is not None and not is_number(value):
            raise TypeError(f"{where}: {name} must be a number, got {shown(value)}.")


def is_number(value: Any) -> bool:
    """Whether it is one real number, of Python or NumPy."""
    return isinstance(value, Real) and not isinstance(value, bool)


def shown(value: Any) -> str:
    """A number or text as it is, of an array no numbers."""
    is_short = value is None or isinstance(value, (str, Real))
    return repr(value) if is_short else show(value)


def check_data(where: str, data: Any) -> None:
    """Refuses what is no batches, and one batch where several are expected."""
    if not hasattr(data, "__iter__"):
        raise TypeError(
            f"{where}: expected data to be an iterable of batches, got {show(data)}. "
            "Pass al.batches(arrays, batch_size), a list, or a loader."
        )
    items = cast("tuple[Any, ...]", data) if isinstance(data, tuple) else ()
    arrays = bool(items) and all(getattr(item, "ndim", 0) for item in items)
    if arrays or isinstance(data, (Mapping, str)):
        raise TypeError(
            f"{where}: expected data to be an iterable of batches, got {show(data)}, "
            "which is one. Write [batch], or al.batches(arrays, batch_size)."
        )
