"""What a picture of a model consists of: boxes, frames around them, and arrows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple


@dataclass(eq=False)
class Node:
    """One box: a layer, an input, the output, or where paths come together."""

    id: str
    path: str
    role: str
    """"layer", "input", "output" or "merge"."""
    title: str
    detail: str = ""
    """What stands below the title, in one line or several."""
    specs: list[str] = field(default_factory=list[str])
    """The shape of each array that comes out."""
    copies: int = 1


@dataclass(eq=False)
class Cluster:
    """Layers in a frame: what stands below one path."""

    id: str
    path: str
    title: str
    copies: int = 1
    items: list[Node | Cluster] = field(default_factory=list["Node | Cluster"])


class Edge(NamedTuple):
    """An arrow, with the shape of the array that goes along it."""

    source: str
    target: str
    label: str


@dataclass(eq=False)
class Graph:
    """The boxes of a model in their clusters, and the arrows between them."""

    root: Cluster
    edges: list[Edge]

    def nodes(self) -> list[Node]:
        """Every box, in the order of the model."""
        return [item for item in _all(self.root) if isinstance(item, Node)]

    def clusters(self) -> list[Cluster]:
        """Every cluster but that of all, outer ones first."""
        return [item for item in _all(self.root) if isinstance(item, Cluster)]


def _all(cluster: Cluster) -> Iterator[Node | Cluster]:
    for item in cluster.items:
        yield item
        if isinstance(item, Cluster):
            yield from _all(item)
