"""What was found of NaN and infinite numbers: measurements, and what they say."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from axonlike.inspect.probe import INPUT, Entry, Loop
from axonlike.selector import at

_MOST_LISTED = 8


class Row(NamedTuple):
    """What was measured in one place; one number for each pass."""

    kind: str
    """"forward", "loss", "backward", "gradient", "frozen", "param", "state" or "silent"."""
    path: str
    shape: tuple[int, ...]
    entry: Entry | None = None


class Finding(NamedTuple):
    """The first place where a pass of the model is no longer finite."""

    direction: str
    """"forward" or "backward"."""
    path: str
    """The layer that made it, "" being the model's own code; or "input", or "loss"."""
    what: str
    """"nan" or "inf"."""
    where: str
    """In what of the layer: its output, a gradient."""
    iteration: tuple[int, ...]
    """The step of a recurrence, the number of what is mapped; outermost first."""
    layer: str
    """The layer with its config."""

    def __str__(self) -> str:
        step = ", ".join(map(str, self.iteration))
        when = f" at iteration {step}" if step else ""
        layer = f": {self.layer}" if self.layer else ""
        place = f"{self.where} of {_named(self.path)}"
        return f"{self.direction}: {self.what} in {place}{when}{layer}"


@dataclass(frozen=True)
class _Event:
    """One measurement that is not finite."""

    time: tuple[float, ...]
    row: Row
    index: tuple[int, ...]
    value: float
    entry: Entry | None


@jax.tree_util.register_pytree_node_class
class NonfiniteReport:
    """Where values and gradients of a run are not finite; true if any is.

    `locate_nonfinite` and `nonfinite_guard` make it. Inside of `jax.jit` it is one array;
    `forward`, `backward` and the rest are found out when they are asked for.
    """

    def __init__(self, rows: tuple[Row, ...], numbers: Any) -> None:
        self.rows, self.numbers = rows, numbers

    @classmethod
    def of(cls, measured: list[tuple[Row, Any]]) -> NonfiniteReport:
        """All measurements as one array, which begins with a 1."""
        numbers = [jnp.ones(1), *(jnp.ravel(value) for _, value in measured)]
        return cls(tuple(row for row, _ in measured), jnp.concatenate(numbers))

    @classmethod
    def none(cls, like: NonfiniteReport, *given: Any) -> NonfiniteReport:
        """A report of nothing, as one looks where all was finite."""
        return cls(like.rows, jnp.zeros(like.numbers.shape, like.numbers.dtype))

    def tree_flatten(self) -> tuple[tuple[Any], tuple[Row, ...]]:
        """The array, and what its numbers are of."""
        return (self.numbers,), self.rows

    @classmethod
    def tree_unflatten(
        cls, rows: tuple[Row, ...], numbers: tuple[Any]
    ) -> NonfiniteReport:
        """Puts the two together again."""
        return cls(rows, *numbers)

    # --- what was found

    @cached_property
    def forward(self) -> Finding | None:
        """The first value that is not finite; None where all are."""
        events = list(self._events("forward"))
        if not events:
            return self._of_loss()
        first = min(events, key=_time)
        entry = first.entry
        if entry is not None and entry.end == INPUT:
            return self._outside(first, "input")
        return self._finding(first, entry, "the output")

    @cached_property
    def backward(self) -> Finding | None:
        """The first gradient that is not finite, last layers coming first."""
        events = [*self._events("backward"), *self._events("gradient")]
        if not events:
            return None
        first = max(events, key=_time)
        if first.row.kind == "gradient":
            name = first.row.path.rpartition("/")[2]
            return self._finding(first, first.entry, f"the gradient of {name}")
        if first.entry is not None and first.entry.end != INPUT:
            return self._outside(first, "loss")
        return self._finding(first, first.entry, "the gradient of the input")

    @property
    def first(self) -> Finding | None:
        """The finding of the forward pass, or else that of the backward pass."""
        return self.forward or self.backward

    @cached_property
    def params(self) -> tuple[str, ...]:
        """The paths of params that are not finite themselves."""
        return self._paths("param")

    @cached_property
    def state(self) -> tuple[str, ...]:
        """The paths of state that is not finite after the run."""
        return self._paths("state")

    @cached_property
    def zero_gradients(self) -> tuple[str, ...]:
        """The paths of params whose gradient is exactly zero; frozen ones left out."""
        return tuple(
            at(row.path, index)
            for row, numbers in self._measured()
            if row.kind == "gradient"
            for index in map(tuple, np.argwhere(numbers == 0).tolist())
        )

    @cached_property
    def dead_units(self) -> dict[str, tuple[int, ...]]:
        """By path of a layer, the units of its last axis that are zero in every example."""
        found: dict[str, tuple[int, ...]] = {}
        for row, numbers in self._measured():
            if row.kind != "silent" or row.entry is None:
                continue
            for path, units in _silent(row.entry, numbers):
                if units.any():
                    found[path] = tuple(np.flatnonzero(units).tolist())
        return found

    def __bool__(self) -> bool:
        return not bool(np.isfinite(np.asarray(self.numbers)).all())

    def __str__(self) -> str:
        if isinstance(self.numbers, Tracer) or not hasattr(self.numbers, "__array__"):
            return "report of what is not finite"
        lines = [str(finding) for finding in (self.forward, self.backward) if finding]
        lines = lines or ["all values and gradients are finite"]
        if self.params:
            lines.append(f"not finite themselves: {_listed(self.params)}")
        if self.state:
            lines.append(f"not finite in the state: {_listed(self.state)}")
        if self.zero_gradients:
            lines.append(f"zero gradient: {_listed(self.zero_gradients)}")
        dead = [f"{_named(p)} ({len(n)} units)" for p, n in self.dead_units.items()]
        return "\n".join([*lines, *([f"always zero: {_listed(dead)}"] if dead else [])])

    def __repr__(self) -> str:
        return f"<{str(self).splitlines()[0]}>"

    # --- how

    def _measured(self) -> Iterator[tuple[Row, np.ndarray[Any, Any]]]:
        """Each row with its numbers; of several reports in one, the largest."""
        numbers = np.asarray(self.numbers)
        if numbers.ndim > 1:
            numbers = numbers.reshape(-1, numbers.shape[-1]).max(0)
        if not numbers[0]:
            return  # nothing was looked at: everything was finite
        start = 1
        for row in self.rows:
            stop = start + math.prod(row.shape)
            yield row, numbers[start:stop].reshape(row.shape)
            start = stop

    @cached_property
    def _entries(self) -> dict[int, Entry]:
        return {row.entry.order: row.entry for row in self.rows if row.entry}

    def _events(self, kind: str) -> Iterator[_Event]:
        """What is not finite of a kind, with the time at which it came."""
        for row, numbers in self._measured():
            if row.kind != kind or np.isfinite(numbers).all():
                continue
            entry = row.entry or self._home(row.path)
            for each in np.argwhere(~np.isfinite(numbers)).tolist():
                index = tuple(each)
                value = float(numbers[index])
                time = _moment(entry, _passes(entry, row, index))
                yield _Event(time, row, index, value, entry)

    def _paths(self, kind: str) -> tuple[str, ...]:
        """The paths of arrays of a kind that are not finite."""
        return tuple(dict.fromkeys(event.row.path for event in self._events(kind)))

    def _home(self, path: str) -> Entry | None:
        """The layer that a param is of: where it was run the first time."""
        found = [e for e in self._entries.values() if e.leaf and _owns(e.site, path)]
        return max(found, key=lambda e: (len(e.site), -e.order), default=None)

    def _of_loss(self) -> Finding | None:
        """The loss, where it alone is not finite: its gradient may be, as of a constant."""
        for event in self._events("loss"):
            return Finding("forward", "loss", _what(event.value), "the value", (), "")
        return None

    def _outside(self, event: _Event, end: str) -> Finding:
        """What was made by no layer: by the code that calls it, or outside of the model."""
        entry = event.entry
        parent = None if entry is None else self._entries.get(entry.parent)
        if entry is None or parent is None:
            what = "the value" if end == "input" else "the gradient"
            return Finding(event.row.kind, end, _what(event.value), what, (), "")
        what = "its own code before" if end == "input" else "the gradient after"
        last = (
            entry.site.rpartition("/")[2] if entry.site != parent.site else "its body"
        )
        return self._finding(event, parent, f"{what} {last}, by the code")

    def _finding(self, event: _Event, entry: Entry | None, where: str) -> Finding:
        direction = "forward" if event.row.kind == "forward" else "backward"
        what = _what(event.value)
        if entry is None:
            return Finding(direction, event.row.path, what, where, (), "")
        passes = _passes(event.entry, event.row, event.index)[: len(entry.loops)]
        path, rest = _place(entry, passes)
        return Finding(direction, path, what, where, rest, entry.layer)


def _time(event: _Event) -> tuple[float, ...]:
    return event.time


def _what(value: float) -> str:
    return "nan" if math.isnan(value) else "inf"


def _named(path: str) -> str:
    return path or "the model itself"


def _listed(names: Any) -> str:
    names = list(names)
    more = len(names) - _MOST_LISTED
    shown = ", ".join(names[:_MOST_LISTED])
    return shown if more <= 0 else f"{shown} and {more} more"


def _owns(site: str, path: str) -> bool:
    """Whether a param's path is below a site, of which this may be a later use."""
    home = "/".join(step.partition("#")[0] for step in site.split("/"))
    return not home or path.startswith(f"{home}/")


def _passes(entry: Entry | None, row: Row, index: tuple[int, ...]) -> tuple[int, ...]:
    """The number of the pass in each loop; of a param, -1 where it is of all passes."""
    if row.entry is not None or entry is None:
        return index
    left = list(index)
    return tuple(left.pop(0) if loop.copies and left else -1 for loop in entry.loops)


def _moment(entry: Entry | None, passes: tuple[int, ...]) -> tuple[float, ...]:
    """When a pass comes to a layer: the places of its loops and the passes, in turn."""
    if entry is None:
        return (-1,)
    pairs = zip(entry.loops, passes, strict=False)
    both = ((loop.start, _turn(loop, number)) for loop, number in pairs)
    return (*(number for pair in both for number in pair), entry.order)


def _turn(loop: Loop, number: int) -> float:
    """When a pass comes in its loop; before all, of what is of all passes."""
    if number < 0:
        return -math.inf
    return -number if loop.backwards else number


def _place(entry: Entry, passes: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
    """The path with the numbers of the copies, and the passes that are of no copies."""
    pairs = list(zip(entry.loops, passes, strict=False))
    numbers = tuple(number for loop, number in pairs if loop.copies)
    rest = tuple(number for loop, number in pairs if not loop.copies)
    return at(entry.site, numbers), rest


def _silent(
    entry: Entry, numbers: np.ndarray[Any, Any]
) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    """The units of each copy that are zero in all other passes too; of none, none."""
    if not numbers.size:
        return
    others = tuple(i for i, loop in enumerate(entry.loops) if not loop.copies)
    units = np.asarray((numbers > 0).all(axis=others))
    for index in np.ndindex(*units.shape[:-1]):
        yield at(entry.site, index), units[index]
