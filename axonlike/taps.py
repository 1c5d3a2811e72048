"""What an evaluation reads and edits of a model's activations, by site.

A site is where a layer's output passes through the door: its path, with `#1` for a
second use; `blocks/*/attn` for all copies of a stacked repeat, in one scan, and
`blocks/3/attn` for a copy that is run by itself. `blocks/3` is what the copy returns.
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


class BeforeStartError(AttributeError, ValueError):
    """Something needs what comes before the site where a run begins."""


class Unknown:
    """What comes before the site where a run begins: nothing can be done with it."""

    __slots__ = ("_site",)

    def __init__(self, site: str) -> None:
        self._site = site

    def __getattr__(self, name: str) -> Any:
        raise self._error()

    def __jax_array__(self) -> Any:
        raise self._error()

    def __repr__(self) -> str:
        return "nothing"

    def _error(self) -> BeforeStartError:
        return BeforeStartError(
            f"between: what comes before {self._site!r} is needed after it too, as in "
            "the shortcut of a residual. Begin where one value is all that goes on."
        )


class Start:
    """Where a run begins inside of a model: a site, and the value that it has there."""

    __slots__ = ("begun", "site", "value")

    def __init__(self, site: str, value: PyTree) -> None:
        self.site, self.value, self.begun = site, value, False

    def at(self, site: str) -> PyTree:
        """What is at a site that is not run: the value, or nothing before it."""
        if site != self.site:
            return Unknown(self.site)
        self.begun = True
        return self.value

    def below(self, site: str, *, uses: bool = False) -> str:
        """The path from a site to where the run begins; "" where it is not below.

        With `uses` also below another use of the layer, `enc#1/dense` below `enc`.
        """
        if not site:
            return self.site
        marks = "/#" if uses else "/"
        rest = self.site.removeprefix(site)
        return rest[1:] if rest != self.site and rest[:1] in marks else ""


class Taps(NamedTuple):
    """What an evaluation reads and edits.

    `points` are the copies of a stacked repeat, by its site, that run by themselves between
    scans over the others. With `stop`, what comes after the last read is not run at all.
    `every` reads everything. Of what is read inside a choice that may not run, `filled` are
    the sites with something to read in its place. A run with a `start` begins there.
    """

    reads: frozenset[str] = frozenset()
    edits: Mapping[str, Edit] = MappingProxyType({})
    indexed: Mapping[str, tuple[IndexedEdit, ...]] = MappingProxyType({})
    points: Mapping[str, tuple[int, ...]] = MappingProxyType({})
    stop: bool = False
    every: bool = False
    filled: frozenset[str] = frozenset()
    start: Start | None = None

    def visit(self, site: str, value: PyTree, frame: Any) -> PyTree:
        """The value after edits, at a site of a frame; kept when it is read."""
        if site in self.edits:
            value = self.edits[site](value)
        for edit in self.indexed.get(site, ()):
            value = edit(value, frame.at)
        if self.every or site in self.reads:
            frame.taken[site] = value
        if frame.is_read:
            raise Stop
        return value

    @property
    def pending(self) -> Start | None:
        """Where the run begins, if it has not begun."""
        return None if self.start is None or self.start.begun else self.start


def ran(site: str) -> str:
    """Where it is kept whether a site inside a choice was run."""
    return f"{site}{_RAN}"


def is_mark(site: str) -> bool:
    """Whether this is where that is kept."""
    return site.endswith(_RAN)


_RAN = "#ran"
