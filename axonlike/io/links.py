"""Which tensors of theirs are which arrays of ours, and how numbers get across."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from axonlike.io.arrays import Array
from axonlike.io.axes import SAME, Axes
from axonlike.io.tensors import forget
from axonlike.selector import at

Read = Callable[[str], Array]
"""A tensor of theirs, by name."""
Shape = tuple[int, ...]
CHUNK = 1 << 24
"""Bytes of a tensor that are copied before they are let go."""


class Slot(NamedTuple):
    """An array of a model, or one copy in a stacked one.

    `flat` is its shape where sizes of several axes are one in theirs. One that is tied is
    stored where the other one is, and may be that one `turned`, its axes reversed.
    """

    side: int
    stored: str
    copies: Shape
    which: Shape
    shape: Shape
    dtype: np.dtype[Any]
    flat: Shape
    tied: bool = False
    turned: bool = False

    @property
    def path(self) -> str:
        """Where it stands, copies being unrolled."""
        return at(self.stored, self.which)

    def copy(self, which: Shape) -> Slot:
        """One copy of it."""
        return self._replace(which=which)


Get = Callable[[Slot], Array]
"""An array of ours."""


class Link(NamedTuple):
    """Tensors that are arrays: side by side along an axis, the same numbers both ways.

    `sizes` are those of the tensors along that axis. One to one, there is no `axis`.
    """

    theirs: tuple[str, ...]
    ours: tuple[Slot, ...]
    axes: Axes = SAME
    axis: int | None = None
    sizes: Shape = ()
    optional: bool = False
    """Whether a file may do without: ours is tied to another one."""
    written: bool = True

    @property
    def expected(self) -> dict[str, tuple[Shape, np.dtype[Any]]]:
        """The shape and dtype that each tensor has to have."""
        shape, dtype = self._shape(self.ours[0]), self.ours[0].dtype
        if self.axis is None:
            return {self.theirs[0]: (shape, dtype)}
        before, after = shape[: self.axis], shape[self.axis :][1:]
        return {
            name: ((*before, size, *after), dtype)
            for name, size in zip(self.theirs, self.sizes, strict=True)
        }

    def fill(self, arrays: list[Array], read: Read) -> None:
        """Writes what is in the tensors into arrays of our shapes."""
        views = self._views(arrays)
        for name, theirs, i, ours in self._pieces():
            _copy(views[i][ours], read(name)[theirs])

    def tensor(self, name: str, get: Get) -> Array:
        """One tensor of theirs, of our arrays."""
        parts = [
            self.axes.to_theirs(get(self.ours[i]).reshape(self.ours[i].flat))[ours]
            for other, _, i, ours in self._pieces()
            if other == name
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, self.axis)

    def _views(self, arrays: list[Array]) -> list[Array]:
        pairs = zip(arrays, self.ours, strict=True)
        return [self.axes.to_theirs(a.reshape(slot.flat)) for a, slot in pairs]

    def _pieces(self) -> Iterator[tuple[str, Any, int, Any]]:
        """What of each tensor is what of which array: their lengths need not agree."""
        if self.axis is None:
            yield self.theirs[0], ..., 0, ...
            return
        axis = self.axis
        lengths = [self._shape(slot)[axis] for slot in self.ours]
        for name, a, b in _spans(self.theirs, self.sizes):
            for i, c, d in _spans(range(len(lengths)), lengths):
                low, high = max(a, c), min(b, d)
                if low < high:
                    lead = (slice(None),) * axis
                    theirs = (*lead, slice(low - a, high - a))
                    yield name, theirs, i, (*lead, slice(low - c, high - c))

    def _shape(self, slot: Slot) -> Shape:
        return self.axes.shape(slot.flat)


class Biases(NamedTuple):
    """PyTorch's two biases of a recurrent layer, which are one of ours: their sum.

    Of a GRU that has a recurrent bias for its candidate alone, the last third stays what
    it is. Back they go as ours and zeros: no sum tells what it was of.
    """

    theirs: tuple[str, ...]
    ours: tuple[Slot, ...]
    optional: bool = False
    written: bool = True

    @property
    def expected(self) -> dict[str, tuple[Shape, np.dtype[Any]]]:
        """The shape and dtype that each tensor has to have."""
        return {name: (self.ours[0].shape, self.ours[0].dtype) for name in self.theirs}

    def fill(self, arrays: list[Array], read: Read) -> None:
        """Writes what is in the tensors into arrays of our shapes."""
        total, *rest = arrays
        recurrent, cut = read(self.theirs[1]), self._cut
        total[...] = read(self.theirs[0])
        total[:cut] += recurrent[:cut].astype(total.dtype)
        for own in rest:
            own[...] = recurrent[cut:]

    def tensor(self, name: str, get: Get) -> Array:
        """One tensor of theirs, of our arrays."""
        if name == self.theirs[0]:
            return get(self.ours[0])
        recurrent = np.zeros(self.ours[0].shape, self.ours[0].dtype)
        for slot in self.ours[1:]:
            recurrent[self._cut :] = get(slot)
        return recurrent

    @property
    def _cut(self) -> int:
        """Where the part begins that is not added."""
        return self.ours[0].shape[0] - sum(slot.shape[0] for slot in self.ours[1:])


class Count(NamedTuple):
    """A number that only theirs has: how many batches a batch norm saw."""

    theirs: tuple[str, ...]
    ours: tuple[Slot, ...] = ()
    optional: bool = True
    written: bool = True

    @property
    def expected(self) -> dict[str, tuple[Shape, np.dtype[Any]]]:
        """The shape and dtype that each tensor has to have."""
        return {self.theirs[0]: ((), np.dtype(np.int64))}

    def fill(self, arrays: list[Array], read: Read) -> None:
        """Nothing: it is not ours."""

    def tensor(self, name: str, get: Get) -> Array:
        """Zero."""
        return np.zeros((), np.int64)


def _copy(target: Array, source: Array) -> None:
    """Copies a tensor, of which never much is in memory twice."""
    if not source.ndim:
        target[...] = source
        return
    rows = max(1, CHUNK // max(1, source[:1].nbytes))
    for start in range(0, len(source), rows):
        part = slice(start, start + rows)
        target[part] = source[part]
        forget(source)


AnyLink = Link | Biases | Count


def _spans(names: Any, sizes: Any) -> Iterator[tuple[Any, int, int]]:
    """Each name with where its stretch begins and ends."""
    begin = 0
    for name, size in zip(names, sizes, strict=True):
        yield name, begin, begin + size
        begin += size
