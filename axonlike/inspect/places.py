"""How large what is drawn of a graph is, and where it is put."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from axonlike.inspect.boxes import Cluster, Graph, Node

TITLE, DETAIL, LABEL = 7.0, 6.0, 6.4
"""Widths of a letter: of titles, of details, of shapes on arrows."""

Point = tuple[float, float]


class Rect(NamedTuple):
    """A place, from its upper left corner."""

    x: float
    y: float
    width: float
    height: float


@dataclass
class Line:
    """A piece of an arrow; `ends` where it reaches its box.

    Of four points: down, a curve, and down again. Of six: back up, with corners.
    """

    source: str
    points: list[Point]
    ends: bool


@dataclass
class Layout:
    """Where everything is, from the upper left corner of all."""

    width: float = 0.0
    height: float = 0.0
    nodes: dict[str, Rect] = field(default_factory=dict[str, Rect])
    clusters: dict[str, Rect] = field(default_factory=dict[str, Rect])
    lines: list[Line] = field(default_factory=list[Line])
    entries: dict[str, float] = field(default_factory=dict[str, float])
    exits: dict[str, float] = field(default_factory=dict[str, float])

    def place(self, part: Layout, x: float, y: float) -> None:
        """Takes over what is in a part that stands at a point."""
        for ours, theirs in ((self.nodes, part.nodes), (self.clusters, part.clusters)):
            for name, rect in theirs.items():
                ours[name] = rect._replace(x=rect.x + x, y=rect.y + y)
        for line in part.lines:
            points = [(px + x, py + y) for px, py in line.points]
            self.lines.append(Line(line.source, points, line.ends))


def label_of(graph: Graph, node: Node) -> str:
    """What is written below a box: the shapes that leave it."""
    found = (edge.label for edge in graph.edges if edge.source == node.id)
    return ", ".join(dict.fromkeys(found))


def size_of(node: Node) -> tuple[float, float]:
    """Width and height of a box."""
    if node.role == "merge":
        return max(26.0, TITLE * len(title_of(node)) + 16), 26.0
    lines = node.detail.splitlines()
    widest = max([TITLE * len(title_of(node)), *(DETAIL * len(x) for x in lines)])
    return max(64.0, widest + 22), 26.0 + 14 * len(lines) if lines else 28.0


def title_of(item: Node | Cluster) -> str:
    """What a box or cluster is called, and how often it is there."""
    return item.title if item.copies == 1 else f"{item.title}  x {item.copies}"
