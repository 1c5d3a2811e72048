"""How the axes of a tensor of theirs lie in an array of ours: `"out in -> in out"`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Axes:
    """Names of the axes on both sides; their order is all that differs.

    `...` stands for any number of axes, `1` on their side for an axis of size one that
    ours lacks. `flip` says that the axes of `...` run backwards.
    """

    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    flip: bool = False

    def to_theirs(self, x: Any) -> Any:
        """An array of ours as it lies in their tensor: a view of it."""
        theirs, ours = self._named(x.ndim)
        if self.flip:
            x = x[tuple(slice(None, None, _step(name)) for name in ours)]
        x = x.transpose([ours.index(name) for name in theirs if name != "1"])
        return x[tuple(None if name == "1" else slice(None) for name in theirs)]

    def shape(self, ours: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of their tensor, for the shape of our array."""
        left, right = self._named(len(ours))
        return tuple(1 if name == "1" else ours[right.index(name)] for name in left)

    def reversed(self, ndim: int) -> Axes:
        """The same, with the axes of their tensor in reverse order."""
        theirs, ours = self._named(ndim)
        return Axes(tuple(theirs[::-1]), tuple(ours), self.flip)

    def _named(self, ndim: int) -> tuple[list[str], list[str]]:
        """The names, `...` being those of as many axes as are left."""
        count = ndim - sum(name != "..." for name in self.ours)
        rest = [f"...{i}" for i in range(count)]
        both = [
            [each for name in side for each in (rest if name == "..." else [name])]
            for side in (self.theirs, self.ours)
        ]
        return both[0], both[1]


def _step(name: str) -> int:
    return -1 if name.startswith("...") else 1


def axes(text: str) -> Axes:
    """Axes as one writes them.

    Raises:
        ValueError: the two sides do not name the same axes, each once.
    """
    sides = [tuple(side.split()) for side in text.split("->")]
    names = [sorted(name for name in side if name != "1") for side in sides]
    twice = any(len(set(each)) != len(each) for each in names)
    if len(sides) != 2 or names[0] != names[1] or twice or "1" in sides[1]:
        raise ValueError(
            f"mapping: expected axes such as 'out in -> in out', got {text!r}. Name "
            "theirs, then ours: the same ones, each once; 1 is an axis that ours lacks."
        )
    return Axes(sides[0], sides[1])


SAME = axes("... -> ...")
