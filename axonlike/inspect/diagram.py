"""A model as a picture: boxes and arrows, with the shapes that go along them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from axonlike.extras import optional
from axonlike.inspect.boxes import Cluster, Graph, Node
from axonlike.inspect.graph import graph
from axonlike.inspect.places import title_of
from axonlike.inspect.svg import svg
from axonlike.layer import as_layer
from axonlike.types import PyTree


class Diagram:
    """The picture of a model; `diagram` makes it.

    `svg`, `mermaid` and `dot` are text; `str` is the SVG, which notebooks show. `nodes`,
    `clusters` and `edges` are what is drawn.
    """

    def __init__(self, graph: Graph) -> None:
        self.nodes: tuple[Node, ...] = tuple(graph.nodes())
        self.clusters: tuple[Cluster, ...] = tuple(graph.clusters())
        self.edges = tuple(graph.edges)
        self._graph = graph

    @cached_property
    def svg(self) -> str:
        """The picture, for light and dark paper."""
        return svg(self._graph)

    @cached_property
    def mermaid(self) -> str:
        """The flowchart in Mermaid's language, which GitHub draws in Markdown."""
        return "\n".join(
            ["flowchart TD", *_mermaid(self._graph.root, 1), *self._arrows]
        )

    @property
    def _arrows(self) -> Iterator[str]:
        for edge in self.edges:
            label = f'|"{_entities(edge.label)}"|' if edge.label else ""
            yield f"    {edge.source} -->{label} {edge.target}"

    @cached_property
    def dot(self) -> str:
        """The graph in Graphviz's language."""
        arrows = (
            f"  {edge.source} -> {edge.target} [label={_quoted(edge.label)}];"
            for edge in self.edges
        )
        head = ["digraph model {", '  node [shape=box, style="rounded"];']
        return "\n".join([*head, *_dot(self._graph.root, 1), *arrows, "}"])

    def save(self, path: str | Path) -> None:
        """Writes the picture; what the name ends with says how.

        Args:
            path: of a file: `.svg`, `.mmd` or `.mermaid`, `.dot` or `.gv`, or `.png`,
                for which cairosvg has to be installed.

        Raises:
            ValueError: the name ends with something else.
            ImportError: cairosvg is not installed.
        """
        path = Path(path)
        texts = {
            ".svg": "svg", ".mmd": "mermaid", ".mermaid": "mermaid", ".dot": "dot",
            ".gv": "dot",
        }  # fmt: skip
        suffix = path.suffix.lower()
        if suffix == ".png":
            cairosvg: Any = optional("cairosvg", "diagram")
            cairosvg.svg2png(bytestring=self.svg.encode(), write_to=str(path), scale=2)
        elif suffix in texts:
            path.write_text(getattr(self, texts[suffix]), encoding="utf-8")
        else:
            raise ValueError(
                f"diagram: expected a name that ends with .svg, .mmd, .dot or .png, got "
                f"{path.name!r}."
            )

    def __str__(self) -> str:
        return self.svg

    def _repr_svg_(self) -> str:
        return self.svg

    def __repr__(self) -> str:
        return f"<diagram: {len(self.nodes)} boxes, {len(self.edges)} arrows>"


def diagram(model: Any, spec: PyTree, depth: int | None = None) -> Diagram:
    """Draws a model: boxes for layers, arrows with the shapes that go along them.

    From shapes alone; no program is needed to draw it. What is composed of named layers is
    a frame around them, copies and rows of equal layers are drawn once (`x 12`), a layer
    that is used several times is one box. Layers of the catalogue are boxes.

    Args:
        model: any layer, or a function.
        spec: what stands for the input, as for `init`.
        depth: down to how many steps of a path there are frames; deeper ones are boxes.
            None: all.

    Shapes:
        As `al.spec` writes them; the dtype where it is not float32.

    Raises:
        TypeError: the model is no layer.
        ValueError: `depth` is not a positive int.

    Example:
        >>> import jax, axonlike as al
        >>> model = al.serial(body=al.dense(8) >> jax.nn.relu, head=al.dense(2))
        >>> print(al.diagram(model, al.spec("b 4")).mermaid)
        flowchart TD
            n0(["input"])
            subgraph cluster_1["body"]
                n1["dense<br/>features=8"]
                n2["relu"]
            end
            n3["head<br/>dense(features=2)"]
            n4(["output<br/>b 2"])
            n0 -->|"b 4"| n1
            n1 -->|"b 8"| n2
            n2 -->|"b 8"| n3
            n3 -->|"b 2"| n4
    """
    wrong = depth is not None and (not isinstance(depth, int) or depth < 1)
    if wrong or isinstance(depth, bool):
        raise ValueError(
            f"diagram: depth must be a positive int or None, got {depth!r}."
        )
    return Diagram(graph(as_layer(model, "diagram"), spec, depth))


_SHAPES = {
    "input": '(["{}"])', "layer": '["{}"]', "merge": '(("{}"))', "output": '(["{}"])',
}  # fmt: skip


def _mermaid(cluster: Cluster, depth: int) -> Iterator[str]:
    indent = "    " * depth
    for item in cluster.items:
        if isinstance(item, Cluster):
            yield f'{indent}subgraph {item.id}["{_entities(title_of(item))}"]'
            yield from _mermaid(item, depth + 1)
            yield f"{indent}end"
            continue
        lines = [title_of(item), *item.detail.splitlines()]
        text = "<br/>".join(map(_entities, lines))
        yield f"{indent}{item.id}{_SHAPES[item.role].format(text)}"


def _entities(text: str) -> str:
    """Text between Mermaid's quotation marks: what has a meaning there by its number."""
    return "".join(f"#{ord(c)};" if c in '"#&<>`\\;' else c for c in text)


def _dot(cluster: Cluster, depth: int) -> Iterator[str]:
    indent = "  " * depth
    for item in cluster.items:
        if isinstance(item, Cluster):
            yield f"{indent}subgraph {item.id} {{"
            yield f"{indent}  label={_quoted(title_of(item))};"
            yield from _dot(item, depth + 1)
            yield f"{indent}}}"
            continue
        text = title_of(item) + (f"\n{item.detail}" if item.detail else "")
        shape = ", shape=circle" if item.role == "merge" else ""
        yield f"{indent}{item.id} [label={_quoted(text)}{shape}];"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
