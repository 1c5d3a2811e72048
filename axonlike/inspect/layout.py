"""Where boxes and arrows of a graph go: rows from top to bottom, clusters inside of rows.

Each cluster is laid out by itself, the innermost first, and is then a box in the one
around it. An arrow into or out of a cluster passes its edge at a port, so that it goes
around what is beside its way. Sugiyama, Tagawa and Toda's method: rows by the longest
path, an order with few crossings by averages, then places as near to neighbors as fit.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, cast

from axonlike.inspect.boxes import Cluster, Edge, Graph, Node
from axonlike.inspect.places import (
    LABEL,
    TITLE,
    Layout,
    Line,
    Rect,
    size_of,
    title_of,
)

_GAP, _STUB, _BETWEEN, _PADDING, _HEAD, _LANE = 26.0, 18.0, 22.0, 16.0, 24.0, 14.0
_SWEEPS = 12


def layout(graph: Graph) -> Layout:
    """The layout of a whole graph."""
    labels: dict[str, list[str]] = {}
    for edge in graph.edges:
        found = labels.setdefault(edge.source, [])
        if edge.label not in found:
            found.append(edge.label)
    return _Rows(graph.root, graph.edges, labels).laid()


@dataclass(eq=False)
class _Cell:
    """Something in a row: a box, a cluster, a port, or an arrow that passes."""

    key: Hashable
    row: int = 0
    left: float = 0.0
    right: float = 0.0
    height: float = 0.0
    x: float = 0.0
    y: float = 0.0
    part: Layout | None = None
    item: Node | Cluster | None = None

    def entry(self, source: str) -> float:
        """Where an arrow comes in, from the middle of it."""
        return self.part.entries[source] - self.left if self.part else 0.0

    def exit(self, source: str) -> float:
        """Where an arrow goes out."""
        return self.part.exits[source] - self.left if self.part else 0.0


class _Way(NamedTuple):
    """One piece of an arrow between two rows."""

    above: _Cell
    below: _Cell
    source: str

    @property
    def weight(self) -> float:
        """How much it ought to be straight: from box to box most of all."""
        passing = _is(self.above, "pass") + _is(self.below, "pass")
        return (60.0, 0.2, 20.0)[passing]


class _Rows:
    """The layout of one cluster."""

    def __init__(
        self, cluster: Cluster, edges: list[Edge], labels: dict[str, list[str]]
    ) -> None:
        self.cluster, self.labels = cluster, labels
        self.cells: dict[Hashable, _Cell] = {}
        self.tops: dict[int, tuple[float, float]] = {}
        self.owner: dict[str, _Cell] = {}
        for item in cluster.items:
            self._add(item, edges)
        self.ways: dict[tuple[Hashable, Hashable, str], _Way] = {}
        self.back: dict[tuple[Hashable, Hashable, str], _Way] = {}
        self._connect(edges)

    def laid(self) -> Layout:
        """The finished layout."""
        rows = self._ranked()
        self._ordered(rows)
        self._spread(rows)
        return self._drawn(rows)

    def _add(self, item: Node | Cluster, edges: list[Edge]) -> None:
        cell = self.cells[item.id] = _Cell(item.id, item=item)
        if isinstance(item, Cluster):
            cell.part = _Rows(item, edges, self.labels).laid()
            cell.left = cell.right = cell.part.width / 2
            cell.height = cell.part.height
            self.owner.update(dict.fromkeys(cell.part.nodes, cell))
            return
        width, cell.height = size_of(item)
        below = LABEL * len(", ".join(self.labels.get(item.id, []))) + 10
        cell.left, cell.right = width / 2, max(width / 2, below)
        self.owner[item.id] = cell

    def _connect(self, edges: list[Edge]) -> None:
        """Arrows between what is here, and to ports for what is outside."""
        order = {id(cell): i for i, cell in enumerate(self.cells.values())}
        for edge in edges:
            a, b = self.owner.get(edge.source), self.owner.get(edge.target)
            if a is b and (a is None or edge.source != edge.target or a.part):
                continue
            port = ("in" if a is None else "out", edge.source)
            if a is None or b is None:
                end = self.cells.setdefault(port, _Cell(port, left=6.0, right=6.0))
                a, b = a or end, b or end
            way = _Way(a, b, edge.source)
            inside = id(a) in order and id(b) in order
            back = inside and order[id(a)] >= order[id(b)]
            ways = self.back if back else self.ways
            ways[(a.key, b.key, edge.source)] = way

    def _ranked(self) -> list[list[_Cell]]:
        """Rows by the longest way from the top; arrows over several rows pass them."""
        cells = list(self.cells.values())
        ports = any(_is(c, "in") for c in cells)
        for cell in cells:
            cell.row = int(ports and cell.item is not None)
        for cell in cells:
            for way in self.ways.values():
                if way.above is cell:
                    way.below.row = max(way.below.row, cell.row + 1)
        last = max((cell.row for cell in cells if cell.item), default=0)
        for cell in cells:
            if _is(cell, "in", "out"):
                cell.row = 0 if _is(cell, "in") else last + 1
        self._passing()
        rows: list[list[_Cell]] = [[] for _ in range(last + 2)]
        for cell in self.cells.values():
            rows[cell.row].append(cell)
        return [row for row in rows if row]

    def _passing(self) -> None:
        for (above, below, source), way in list(self.ways.items()):
            if way.below.row <= way.above.row + 1:
                continue
            del self.ways[(above, below, source)]
            here = way.above
            for row in range(way.above.row + 1, way.below.row):
                key = ("pass", source, above, row)
                lane = _Cell(key, row, _LANE / 2, _LANE / 2)
                lane = self.cells.setdefault(key, lane)
                self.ways[(here.key, key, source)] = _Way(here, lane, source)
                here = lane
            self.ways[(here.key, below, source)] = _Way(here, way.below, source)

    def _ordered(self, rows: list[list[_Cell]]) -> None:
        """Within rows by the average place of neighbors, from above and from below."""
        for sweep in range(_SWEEPS):
            down = sweep % 2 == 0
            for row, beside in pairwise(rows if down else rows[::-1]):
                places = {id(cell): float(i) for i, cell in enumerate(row)}
                middle = {id(c): self._middle(c, places, up=down) for c in beside}
                scale = len(row) / len(beside)
                old = {id(c): i * scale for i, c in enumerate(beside)}
                beside.sort(key=_by(middle, old))

    def _middle(
        self, cell: _Cell, places: dict[int, float], *, up: bool
    ) -> float | None:
        """The average place of its neighbors in a row; None without any."""
        found: list[float] = []
        for way in self.ways.values():
            if up and way.below is cell:
                offset = way.above.exit(way.source) / (2 * way.above.left or 1)
                found.append(places[id(way.above)] + offset)
            elif not up and way.above is cell:
                offset = way.below.entry(way.source) / (2 * way.below.left or 1)
                found.append(places[id(way.below)] + offset)
        return sum(found) / len(found) if found else None

    def _spread(self, rows: list[list[_Cell]]) -> None:
        """Places along rows: as near as fits to where neighbors would have them."""
        for row in rows:
            _fit(row, [(0.0, 1.0)] * len(row))
        for sweep in range(2 * _SWEEPS):
            for row in rows if sweep % 2 == 0 else rows[::-1]:
                _fit(row, [self._wanted(c, up=sweep % 2 == 0) for c in row])
        for row in rows:
            _fit(row, [self._wanted(c, up=None) for c in row])

    def _wanted(self, cell: _Cell, *, up: bool | None) -> tuple[float, float]:
        """Where neighbors would have it, and how much they would."""
        place = weight = 0.0
        for way in self.ways.values():
            if way.below is cell and up is not False:
                x = way.above.x + way.above.exit(way.source) - cell.entry(way.source)
            elif way.above is cell and up is not True:
                x = way.below.x + way.below.entry(way.source) - cell.exit(way.source)
            else:
                continue
            place, weight = place + way.weight * x, weight + way.weight
        return (place / weight, weight) if weight else (cell.x, 0.1)

    def _drawn(self, rows: list[list[_Cell]]) -> Layout:
        made = Layout()
        nested = self.cluster.title != ""
        cells = [cell for row in rows for cell in row]
        title = TITLE * len(title_of(self.cluster)) if nested else 0.0
        left = min((c.x - c.left for c in cells), default=0.0) - _PADDING
        ports = [c.x for c in cells if c.item is None and c.row == 0]
        left = min(left, min(ports, default=left + title + 30) - title - 22)
        right = max((c.x + c.right for c in cells), default=0.0) + _PADDING
        made.width = max(right - left, title + 30) + _LANE * len(self.back)
        y = _HEAD if nested else _PADDING
        y += _STUB if self.back else 0.0
        for row in rows:
            height = max(cell.height for cell in row)
            for cell in row:
                cell.x -= left
                cell.y = y + (height - cell.height) / 2
                self._put(made, cell)
            self.tops[row[0].row] = y, y + height + (_STUB if height else 0.0)
            y += height + (_STUB if height else 0.0) + _BETWEEN
        leaves = any(_is(cell, "in", "out") for row in rows[-1:] for cell in row)
        made.height = y - _BETWEEN - (0.0 if leaves else _STUB - _PADDING)
        made.height += _STUB if self.back else 0.0
        self._lines(made)
        for i, way in enumerate(self.back.values()):
            lane = made.width - _LANE * (len(self.back) - i)
            made.lines.append(self._back_up(way, lane))
        return made

    def _back_up(self, way: _Way, lane: float) -> Line:
        """An arrow to what stands above: out below, up beside everything, in above."""
        x0 = way.above.x + way.above.exit(way.source)
        x1 = way.below.x + way.below.entry(way.source)
        low = self.tops[way.above.row][1] + 5
        high = self.tops[way.below.row][0] - 9
        below, above = way.above.y + way.above.height, way.below.y
        points = [
            (x0, below), (x0, low), (lane, low), (lane, high), (x1, high), (x1, above),
        ]  # fmt: skip
        return Line(way.source, points, isinstance(way.below.item, Node))

    def _put(self, made: Layout, cell: _Cell) -> None:
        if isinstance(cell.item, Node):
            width, height = size_of(cell.item)
            made.nodes[cell.item.id] = Rect(cell.x - width / 2, cell.y, width, height)
        elif cell.part is not None and cell.item is not None:
            rect = Rect(cell.x - cell.left, cell.y, cell.part.width, cell.part.height)
            made.clusters[cell.item.id] = rect
            made.place(cell.part, rect.x, rect.y)
        elif _is(cell, "in", "out"):
            ports = made.entries if _is(cell, "in") else made.exits
            ports[cast("tuple[str, str]", cell.key)[1]] = cell.x

    def _lines(self, made: Layout) -> None:
        for way in self.ways.values():
            x0 = way.above.x + way.above.exit(way.source)
            x1 = way.below.x + way.below.entry(way.source)
            top, end = self.tops[way.above.row]
            start, _ = self.tops[way.below.row]
            first = way.above.y + way.above.height if way.above.item else top
            last = way.below.y if way.below.item else start
            last = made.height if _is(way.below, "in", "out") else last
            first = 0.0 if _is(way.above, "in", "out") else first
            points = [(x0, first), (x0, end), (x1, start), (x1, last)]
            ends = isinstance(way.below.item, Node)
            made.lines.append(Line(way.source, points, ends))


def _is(cell: _Cell, *kinds: str) -> bool:
    """Whether it is a port or a passing arrow of a kind."""
    return cell.item is None and cast("tuple[str, ...]", cell.key)[0] in kinds


def _by(
    middle: dict[int, float | None], old: dict[int, float]
) -> Callable[[_Cell], tuple[float, float]]:
    """By the neighbors' average, else where it was."""

    def key(cell: _Cell) -> tuple[float, float]:
        found = middle[id(cell)]
        return (old[id(cell)] if found is None else found, old[id(cell)])

    return key


def _fit(row: list[_Cell], wanted: Iterable[tuple[float, float]]) -> None:
    """Places in order with room between them, nearest in squares to those wanted.

    Pool adjacent violators: neighbors that would overlap move as one.
    """
    offsets = [0.0]
    for a, b in pairwise(row):
        offsets.append(offsets[-1] + a.right + b.left + _GAP)
    pools: list[tuple[float, float, int]] = []
    for (want, weight), offset in zip(wanted, offsets, strict=True):
        pools.append((want - offset, weight, 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (a, m, i), (b, n, j) = pools.pop(-2), pools.pop()
            pools.append(((a * m + b * n) / (m + n), m + n, i + j))
    places = [value for value, _, count in pools for _ in range(count)]
    for cell, place, offset in zip(row, places, offsets, strict=True):
        cell.x = place + offset
