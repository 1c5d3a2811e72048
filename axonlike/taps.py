"""What an evaluation reads and edits of a model's activations, by site.

A site is where a layer's output passes through the door: its path, with `#1` for a
second use; `blocks/*/attn` for all copies of a stacked repeat, in one scan, and
`blocks/3/attn` for a copy that is run by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from axonlike.types import PyTree

Edit = Callable[[Any], Any]
IndexedEdit = Callable[[Any, Mapping[str, Any]], Any]
"""`(value, at) -> value`; `at` tells by `"blocks/*"` which copy of `blocks` this is."""


class Stop(BaseException):
    """All that was asked for has been read, so nothing more has to be run."""


class Taps(NamedTuple):
    """What an evaluation reads and edits.

    `points` are the copies of a stacked repeat, by its site, that run by themselves between
    scans over the others. With `stop`, what comes after the last read is not run at all.
    `every` reads everything.
    """

    reads: frozenset[str] = frozenset()
    edits: Mapping[str, Edit] = MappingProxyType({})
    indexed: Mapping[str, tuple[IndexedEdit, ...]] = MappingProxyType({})
    points: Mapping[str, tuple[int, ...]] = MappingProxyType({})
    stop: bool = False
    every: bool = False

    def visit(self, site: str, value: PyTree, frame: Any) -> PyTree:
        """The value after edits, at a site of a frame; kept when it is read."""
        if site in self.edits:
            value = self.edits[site](value)
        for edit in self.indexed.get(site, ()):
            value = edit(value, frame.at)
        if self.every or site in self.reads:
            frame.taken[site] = value
        if self.stop and frame.open and frame.taken.keys() >= self.reads:
            raise Stop
        return value
