"""Sizes that are not known before a model runs, as nodes of the graph."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from axonlike.spec import names_of, size_of


class Sizes:
    """What is known in a graph about names of sizes: from which input each is taken."""

    def __init__(self, graph: Any) -> None:
        self.graph = graph
        self.vectors: dict[str, str] = {}
        self.names: dict[str, Size] = {}
        self.functions: dict[str, Callable[..., Any]] = {
            "floordiv": partial(self._of_two, "__floordiv__"),
            "mod": partial(self._of_two, "__mod__"),
            "max": partial(self._of_two, "largest"),
            "min": partial(self._of_two, "smallest"),
        }

    def learn(self, name: str, shape: tuple[Any, ...]) -> None:
        """Takes from an input the names that stand alone in its sizes, or as `2*b + 1`."""
        for axis, size in enumerate(shape):
            text = str(size)
            names = names_of(text)
            if len(set(names)) != 1 or names[0] in self.names:
                continue
            line = _line(text, names[0])
            if line is not None:
                self.names[names[0]] = self._taken(name, axis, *line)

    def vector(self, size: Any) -> str:
        """An array of int64 that holds this one size."""
        text = str(size)
        if text not in self.vectors:
            missing = [name for name in names_of(text) if name not in self.names]
            if missing:
                raise ValueError(
                    f"export_onnx: size {missing[0]!r} stands in no input by itself. "
                    f"Name it in the spec: al.spec('{missing[0]} ...')."
                )
            with_names: dict[str, Any] = {**self.functions, **self.names}
            found = size_of(text, with_names)
            self.vectors[text] = self.graph.root.ref(self._of(found).name)
        return self.vectors[text]

    def _taken(self, name: str, axis: int, times: int, more: int) -> Size:
        """The name's size, from an axis that is `times` as long and `more`."""
        root = self.graph.root
        size = Size(root, root.node("Shape", name, start=axis, end=axis + 1))
        size = size - more if more else size
        return size // times if times != 1 else size

    def _of_two(self, method: str, a: Any, b: Any) -> Size:
        return getattr(self._of(a), method)(b)

    def _of(self, size: Any) -> Size:
        if isinstance(size, Size):
            return size
        return Size(self.graph.root, np.array([size], np.int64))


class Size:
    """One size in a graph, to compute with as with a number."""

    def __init__(self, graph: Any, name: Any) -> None:
        self.graph, self.name = graph, name

    def apply(self, op: str, other: Any, *, swap: bool = False, **how: Any) -> Size:
        """What a node makes of two sizes."""
        if not isinstance(other, Size):
            other = Size(self.graph, np.array([other], np.int64))
        a, b = (other, self) if swap else (self, other)
        return Size(self.graph, self.graph.node(op, a.name, b.name, **how))

    def __add__(self, other: Any) -> Size:
        return self.apply("Add", other)

    def __radd__(self, other: Any) -> Size:
        return self.apply("Add", other, swap=True)

    def __sub__(self, other: Any) -> Size:
        return self.apply("Sub", other)

    def __rsub__(self, other: Any) -> Size:
        return self.apply("Sub", other, swap=True)

    def __mul__(self, other: Any) -> Size:
        return self.apply("Mul", other)

    def __rmul__(self, other: Any) -> Size:
        return self.apply("Mul", other, swap=True)

    def __neg__(self) -> Size:
        return self * -1

    def __mod__(self, other: Any) -> Size:
        return self.apply("Mod", other)

    def __floordiv__(self, other: Any) -> Size:
        return (self - self % other).apply("Div", other)

    def largest(self, other: Any) -> Size:
        """The larger one of two sizes."""
        return self.apply("Max", other)

    def smallest(self, other: Any) -> Size:
        """The smaller one."""
        return self.apply("Min", other)

    def __pow__(self, power: int) -> Size:
        found = self
        for _ in range(power - 1):
            found = found * self
        return found


def _line(text: str, name: str) -> tuple[int, int] | None:
    """Factor and offset of `2*b + 1`; None for what is no straight line."""
    at = [size_of(text, {name: n}) for n in (0, 1, 7, 60)]
    times, more = at[1] - at[0], at[0]
    straight = times > 0 and at == [more + times * n for n in (0, 1, 7, 60)]
    return (times, more) if straight else None
